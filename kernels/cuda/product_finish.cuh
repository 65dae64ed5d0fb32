/* product_finish.cuh: what becomes of a tile's results, which product_many.cu has in shared memory:
 * they are y, or are added to it, or what a gate lets pass of them is packed for the next product.
 *
 * Results are [x_rows][row_floats] of a SHAPE, for each row of x the tile's 128 rows of W. Lanes
 * take neighbours of these, so that y is written line by line of memory. */
#ifndef INFERD_KERNELS_CUDA_PRODUCT_FINISH_CUH
#define INFERD_KERNELS_CUDA_PRODUCT_FINISH_CUH

#include "cuda/packed.cuh"
#include "cuda/product.cuh"
#include "cuda/product_share.cuh"

#define BANDS     2u /* of a tile */
#define BAND_ROWS (CUDA_TILE_ROWS * CUDA_BAND)

/* What a warp finishes its share of: row tiles first .. end - 1 of a set of x's for a pair of
 * bands. */
struct part {
    uint32_t pair, set, first, end, warp, warps, lane;
};

/* CUDA_GATED: of each row four columns a lane, a row tile by 16 columns a warp. Rows of W that pad
 * a band are zero, and so are the columns that they make. */
template <class SHAPE>
static __device__ __forceinline__ void finish_gated(const cuda_work &work, const float *results,
                                                    part p)
{
#pragma unroll 2
    for (uint32_t i = 4 * p.first + p.warp; i < 4 * p.end; i += p.warps) {
        const uint32_t n = i / 4 * 8 + p.lane / 4, c = i % 4 * 16 + p.lane % 4 * 4;
        const uint32_t row = p.set * SHAPE::x_rows + n, at = n * SHAPE::row_floats + c;
        if (row >= work.n_rows)
            continue;
        const float4 gate = *(const float4 *)&results[at];
        const float4 up = *(const float4 *)&results[at + BAND_ROWS];
        cuda_packed_at(work.gated, row, p.pair * BAND_ROWS + c)
            .store(cuda_half2_cut(cuda_gate(work.activation, gate.x, up.x),
                                  cuda_gate(work.activation, gate.y, up.y)),
                   cuda_half2_cut(cuda_gate(work.activation, gate.z, up.z),
                                  cuda_gate(work.activation, gate.w, up.w)));
    }
}

/* CUDA_STORE and CUDA_ADD: a warp has 32 rows of W by `at_once` of x at a time. What is added to is
 * not read here: the second-level cache adds, and nobody waits for it. */
template <class SHAPE, uint32_t at_once>
static __device__ __forceinline__ void finish_rows(const cuda_work &work, const cuda_job &job,
                                                   const float *results, part p)
{
    const bool add = work.finish == CUDA_ADD;
#pragma unroll 1
    for (uint32_t i = p.warp;; i += p.warps) {
        const uint32_t n = 8 * p.first + i / 4 * at_once, r = i % 4 * 32 + p.lane;
        const uint32_t row = p.pair * BANDS * BAND_ROWS + r, x_row = p.set * SHAPE::x_rows + n;
        if (n >= 8 * p.end)
            break;
        if (row >= job.rows)
            continue;
        float *to = job.to + x_row * job.stride + row;
        const float bias = job.bias ? job.bias[row] : 0.0f;
        const uint32_t rows =
            min(min(work.n_rows - min(x_row, work.n_rows), 8 * p.end - n), at_once);
        float total[at_once];
#pragma unroll
        for (uint32_t k = 0; k < at_once; k++)
            total[k] = results[(n + k) * SHAPE::row_floats + r];
#pragma unroll
        for (uint32_t k = 0; k < at_once; k++) {
            const float result = cuda_result(add, job.scale, total[k], bias);
            if (k >= rows)
                break;
            if (add)
                cuda_add_to(to + k * job.stride, result);
            else
                to[k * job.stride] = result;
        }
    }
}

template <class SHAPE, uint32_t at_once>
static __device__ __forceinline__ void finish(const cuda_work &work, const course &c,
                                              const float *results, uint32_t first, uint32_t end,
                                              uint32_t warp, uint32_t warps, uint32_t lane)
{
    const cuda_job &job = work.jobs[cuda_job_of(work, c.block())];
    const part p = {c.block() - job.first_block, c.set(), first, end, warp, warps, lane};
    if (work.finish == CUDA_GATED)
        finish_gated<SHAPE>(work, results, p);
    else
        finish_rows<SHAPE, at_once>(work, job, results, p);
}

#endif
