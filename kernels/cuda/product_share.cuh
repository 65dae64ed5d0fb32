/* product_share.cuh: which block of product_many.cu has which columns of which tile, and where
 * blocks that share a tile find each other's sums. Everything follows from two numbers, the
 * division: no block asks another what it does. */
#ifndef INFERD_KERNELS_CUDA_PRODUCT_SHARE_CUH
#define INFERD_KERNELS_CUDA_PRODUCT_SHARE_CUH

#include "cuda/product.cuh"

#define QUARTERS 4u
#define SLOTS    4u /* quarters and segments of a block's runs of tiles that it shares, at most */

/* ---- which columns of which tile ------------------------------------------------------------- */

/* How tiles are shared out over blocks. Of the first `whole` each is one block's, which has every
 * gridDim.x'th of them. Of those that are left a block has `deep` runs (of `halves` segments each):
 * some of a tile's, or the last of one and the first of the next. */
struct division {
    uint32_t whole, deep;
};

/* Where a block is: runs first .. last - 1 of a tile. */
struct course {
    uint32_t whole, deep, n_tiles, n_sets, halves, units;
    uint32_t next_whole, rest, rest_end; /* runs of the tiles that are left */
    uint32_t tile, first, last;

    __device__ __forceinline__ course(const cuda_work &work, division by, uint32_t x_rows,
                                      uint32_t h)
        : whole(by.whole), deep(by.deep), halves(h), units(work.jobs[0].units),
          next_whole(blockIdx.x), rest(blockIdx.x * by.deep)
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
    /* Whether it has all columns of this tile, and something to do after it. */
    __device__ __forceinline__ bool more_follows() const
    {
        return next_whole < whole &&
               (next_whole + gridDim.x < whole || (n_tiles - whole) * runs() > blockIdx.x * deep);
    }
    __device__ __forceinline__ void next()
    {
        if (next_whole < whole)
            next_whole += gridDim.x;
        else
            rest += last - first;
        take();
    }
    /* To the first of the tiles that are left, after all. */
    __device__ __forceinline__ void back_to_rest()
    {
        rest = blockIdx.x * deep;
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
 * quarter (or, at the end of its runs, segment) that it has summed. Each of a tile's blocks
 * finishes some of its rows: it takes their sums from all slots of the tile, where it waits for
 * those that are not there yet, and leaves all ones, as which they are known to be missing. Which
 * runs are whose follows from the division. */
struct shared_sums {
    uint4 *slots;
    uint32_t slot_fours; /* of a slot */
    uint32_t deep;

    __device__ __forceinline__ uint32_t run_of(const course &c, uint32_t run) const
    {
        return (c.tile - c.whole) * c.runs() + run;
    }
    __device__ __forceinline__ uint4 *of_run(const course &c, uint32_t run) const
    {
        const uint32_t at = run_of(c, run), block = at / deep, per_slot = c.halves == 1 ? 2 : 1;
        const uint32_t slot = at / per_slot - block * deep / per_slot;
        return slots + (size_t)(block * SLOTS + slot) * slot_fours;
    }
    /* Of run `even`, where the next one is another block's; nullptr: they have been added. */
    __device__ __forceinline__ uint4 *begun(const course &c, uint32_t even) const
    {
        return (run_of(c, even) + 1) % deep == 0 ? of_run(c, even) : nullptr;
    }
    /* Blocks of a tile; which of them this one is. */
    __device__ __forceinline__ uint32_t n_blocks(const course &c) const
    {
        return run_of(c, c.runs() - 1) / deep - run_of(c, 0) / deep + 1;
    }
    __device__ __forceinline__ uint32_t nth_block(const course &c) const
    {
        return blockIdx.x - run_of(c, 0) / deep;
    }
};

/* Where one lane finds the sums of a tile: each quarter's, or those of its first segment and of its
 * second. */
struct shared_quarters {
    uint4 *from[2 * QUARTERS]; /* nullptr: a segment that was added to the quarter already */

    __device__ __forceinline__ shared_quarters(const shared_sums &sums, const course &c,
                                               uint32_t at)
    {
#pragma unroll
        for (uint32_t q = 0; q < QUARTERS; q++) {
            uint4 *begun = c.halves == 1 ? sums.begun(c, 2 * q) : nullptr;
            from[2 * q] = begun ? begun + at : nullptr;
            from[2 * q + 1] = sums.of_run(c, (q + 1) * CUDA_QUARTER / c.halves - 1) + at;
        }
    }
    /* What is there now; whether it is all that there will be. */
    __device__ __forceinline__ bool look(uint4 seen[2 * QUARTERS], uint32_t at) const
    {
        bool there = true;
#pragma unroll
        for (uint32_t i = 0; i < 2 * QUARTERS; i++)
            seen[i] = from[i] ? cuda_now16(from[i] + at) : make_uint4(0, 0, 0, 0);
#pragma unroll
        for (uint32_t i = 0; i < 2 * QUARTERS; i++)
            there &= max(max(seen[i].x, seen[i].y), max(seen[i].z, seen[i].w)) != UINT32_MAX;
        return there;
    }
    /* The sum of all quarters, when all is there; all ones again. */
    __device__ __forceinline__ void take(const uint4 seen[2 * QUARTERS], uint32_t at,
                                         float ret[4]) const
    {
        ret[0] = ret[1] = ret[2] = ret[3] = 0;
#pragma unroll
        for (uint32_t q = 0; q < QUARTERS; q++) {
            const uint4 a = seen[2 * q], b = seen[2 * q + 1];
            ret[0] = __fadd_rn(ret[0], quarter(a.x, b.x));
            ret[1] = __fadd_rn(ret[1], quarter(a.y, b.y));
            ret[2] = __fadd_rn(ret[2], quarter(a.z, b.z));
            ret[3] = __fadd_rn(ret[3], quarter(a.w, b.w));
        }
#pragma unroll
        for (uint32_t i = 0; i < 2 * QUARTERS; i++)
            if (from[i])
                from[i][at] = make_uint4(UINT32_MAX, UINT32_MAX, UINT32_MAX, UINT32_MAX);
    }
    static __device__ __forceinline__ float quarter(uint32_t first, uint32_t second)
    {
        return __fadd_rn(__fadd_rn(0.0f, __uint_as_float(first)), __uint_as_float(second));
    }
};

#endif
