/* norm.cuh: rows of activations in units of 8 columns, and RMSNorm of them, for rows.cu and
 * chain.cu.
 *
 * A unit is what one lane of a fragment holds, 4 columns and the 4 that lie 16 further on. The mean
 * of squares is added up in an order that the number of columns fixes: thread t of up to 512 its
 * units t, t + 512, ... in ascending order, lanes of a warp in a tree, warps in a tree. */
#ifndef INFERD_KERNELS_CUDA_NORM_CUH
#define INFERD_KERNELS_CUDA_NORM_CUH

#include "cuda/cuda.h"
#include "cuda/device.cuh"
#include "cuda/packed.cuh"

struct unit {
    float v[8];
};

/* The first column of a unit; its other half begins 16 further on. */
static __device__ __forceinline__ uint32_t unit_column(uint32_t unit)
{
    return unit / 4 * 32 + unit % 4 * 4;
}

/* 4 numbers from row[column]; zeros from row[cols] on. */
template <bool ALIGNED>
static __device__ __forceinline__ void load4(float ret[4], const float *row, uint32_t column,
                                             uint32_t cols)
{
    if (ALIGNED) { /* cols is a multiple of 4 */
        float4 v = make_float4(0, 0, 0, 0);
        if (column < cols)
            v = *reinterpret_cast<const float4 *>(row + column);
        ret[0] = v.x;
        ret[1] = v.y;
        ret[2] = v.z;
        ret[3] = v.w;
    } else {
#pragma unroll
        for (uint32_t i = 0; i < 4; i++)
            ret[i] = column + i < cols ? row[column + i] : 0.0f;
    }
}

template <bool ALIGNED>
static __device__ __forceinline__ unit load_unit(const float *row, uint32_t n, uint32_t cols)
{
    unit u;
    load4<ALIGNED>(u.v, row, unit_column(n), cols);
    load4<ALIGNED>(u.v + 4, row, unit_column(n) + 16, cols);
    return u;
}

/* In half-precision, as product_few.cuh reads them. */
static __device__ __forceinline__ uint4 unit_halves(const unit &u)
{
    return make_uint4(cuda_half2_cut(u.v[0], u.v[1]), cuda_half2_cut(u.v[2], u.v[3]),
                      cuda_half2_cut(u.v[4], u.v[5]), cuda_half2_cut(u.v[6], u.v[7]));
}

/* Unit n of row `row`; nothing where n is beyond the last. */
static __device__ __forceinline__ void store_unit(const cuda_packed &to, uint32_t row, uint32_t n,
                                                  const unit &u)
{
    if (n / 4 >= to.blocks)
        return;
    const uint4 h = unit_halves(u);
    const cuda_packed_four at = cuda_packed_at(to, row, unit_column(n));
    if (to.tiles == 0) { /* all eight stand together */
        *reinterpret_cast<uint4 *>(at.first) = h;
        return;
    }
    at.store(h.x, h.y);
    cuda_packed_at(to, row, unit_column(n) + 16).store(h.z, h.w);
}

static __device__ __forceinline__ float square(float sum, const unit &u)
{
#pragma unroll
    for (uint32_t i = 0; i < 8; i++)
        sum = fmaf(u.v[i], u.v[i], sum);
    return sum;
}

/* The sum over the lanes of a warp, in all of them. */
static __device__ __forceinline__ float norm_warp_sum(float sum)
{
#pragma unroll
    for (int apart = 16; apart > 0; apart /= 2)
        sum += __shfl_xor_sync(0xffffffffu, sum, apart);
    return sum;
}

static __device__ __forceinline__ float norm_scale(float squares, uint32_t cols, float eps)
{
    return 1.0f / sqrtf(squares / (float)cols + eps);
}

static __device__ __forceinline__ unit normed(const unit &x, float scale, const unit &weight)
{
    unit y;
#pragma unroll
    for (uint32_t k = 0; k < 8; k++)
        y.v[k] = x.v[k] * scale * weight.v[k];
    return y;
}

#endif
