/* product_share.cuh: which block of product_many.cu has which columns of which tile, and where
 * blocks that share a tile find each other's sums. Everything follows from two numbers, the
 * division: no block asks another what it does. */
#ifndef INFERD_KERNELS_CUDA_PRODUCT_SHARE_CUH
#define INFERD_KERNELS_CUDA_PRODUCT_SHARE_CUH

#include "cuda/product.cuh"

#define SLOTS 4u /* quarters and segments of a block's runs of tiles that it shares, at most */

/* ---- which columns of which tile ------------------------------------------------------------- */

/* How tiles are shared out over blocks. Of the first `whole` each is one block's, which has every
 * gridDim.x'th of them. Of those that are left a block has `deep` runs (of `halves` segments each):
 * some of a tile's, or the last of one and the first of the next. */
struct division {
    uint32_t whole, deep;
};

/* Where a block is: runs first .. last - 1 of a tile. */
struct course {
    uint32_t whole, n_tiles, n_sets, halves, units;
    uint32_t next_whole, rest, rest_end; /* runs of the tiles that are left */
    uint32_t tile, first, last;

    __device__ __forceinline__ course(const cuda_work &work, division by, uint32_t x_rows,
                                      uint32_t h)
        : whole(by.whole), halves(h), units(work.jobs[0].units), next_whole(blockIdx.x),
          rest(blockIdx.x * by.deep)
    {
        n_sets = (work.n_rows + x_rows - 1) / x_rows;
        n_tiles = work.n_blocks * n_sets;
        rest_end = min(rest + by.deep, (n_tiles - whole) * runs());
        take();
    }
    __device__ __forceinline__ uint32_t runs() const
    {
        return CUDA_SEGMENTS / halves;
    }
    __device__ __forceinline__ void take()
    {
        const bool is_whole = next_whole < whole;
        tile = is_whole ? next_whole : whole + rest / runs();
        first = is_whole ? 0 : rest % runs();
        last = is_whole ? runs() : min(first + (rest_end - min(rest, rest_end)), runs());
    }
    __device__ __forceinline__ bool some() const
    {
        return next_whole < whole || rest < rest_end;
    }
    __device__ __forceinline__ bool all_columns() const
    {
        return last - first == runs();
    }
    __device__ __forceinline__ void next()
    {
        if (next_whole < whole)
            next_whole += gridDim.x;
        else
            rest += last - first;
        take();
    }
    __device__ __forceinline__ uint32_t block() const
    {
        return tile / n_sets;
    }
    __device__ __forceinline__ uint32_t set() const
    {
        return tile % n_sets;
    }
    __device__ __forceinline__ uint32_t begin(uint32_t run, uint32_t half) const
    {
        return segment_begin(run * halves + half, units);
    }
    __device__ __forceinline__ uint32_t end(uint32_t run, uint32_t half) const
    {
        return begin(run, half + 1);
    }
    /* Stages of a run: as many as its longest segment needs. */
    __device__ __forceinline__ uint32_t stages(uint32_t run, uint32_t of_stage) const
    {
        uint32_t most = end(run, 0) - begin(run, 0);
        if (halves == 2)
            most = max(most, end(run, 1) - begin(run, 1));
        return (most + of_stage - 1) / of_stage;
    }
};

/* ---- sums that are shared ----------------------------------------------------------------------
 */

/* Sums that blocks make for each other. A block has SLOTS slots, one after the other for each
 * quarter (or, at the end of its runs, segment) that it has summed; of each tile that is left a
 * counter says how many blocks have. Which runs are whose follows from the division. */
struct shared_sums {
    uint32_t *counters;
    float4 *slots;
    uint32_t slot_fours; /* of a slot */
    uint32_t deep;

    __device__ __forceinline__ uint32_t run_of(const course &c, uint32_t run) const
    {
        return (c.tile - c.whole) * c.runs() + run;
    }
    __device__ __forceinline__ float4 *of_run(const course &c, uint32_t run) const
    {
        const uint32_t at = run_of(c, run), block = at / deep, per_slot = c.halves == 1 ? 2 : 1;
        const uint32_t slot = at / per_slot - block * deep / per_slot;
        return slots + (size_t)(block * SLOTS + slot) * slot_fours;
    }
    /* Of run `even`, where the next one is another block's; nullptr: they have been added. */
    __device__ __forceinline__ float4 *begun(const course &c, uint32_t even) const
    {
        return (run_of(c, even) + 1) % deep == 0 ? of_run(c, even) : nullptr;
    }
    __device__ __forceinline__ uint32_t *counter(const course &c) const
    {
        return counters + (c.tile - c.whole);
    }
    __device__ __forceinline__ uint32_t n_blocks(const course &c) const
    {
        return run_of(c, c.runs() - 1) / deep - run_of(c, 0) / deep + 1;
    }
};

#endif
