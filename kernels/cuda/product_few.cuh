/* product_few.cuh: what product.cu, a product in a kernel of its own, and chain.cu, several of them
 * in one, have in common: how a warp multiplies one tile's unit with up to 16 rows of x,
 * and where its partial sums meet those of the other segments.
 *
 * Both work on pairs of tiles: 32 rows of W, or of CUDA_GATED 16 of W and 16 of V. Of a block's
 * warps FEW_WARPS multiply, each one tile of the pair and one segment of the columns; further ones
 * add the partial sums, in the order that product.cuh fixes, while the others are at the next pair.
 */
#ifndef INFERD_KERNELS_CUDA_PRODUCT_FEW_CUH
#define INFERD_KERNELS_CUDA_PRODUCT_FEW_CUH

#include "cuda/packed.cuh"
#include "cuda/product.cuh"

#define FEW_WARPS  (2 * CUDA_SEGMENTS) /* that multiply */
#define FEW_PLACES 2u                  /* for the partial sums of as many pairs, where they fit */
/* Floats between the partial sums of two rows of x in shared memory: a pair's 32 rows of W for each
 * segment, and 4 that keep what a warp writes at a time out of each other's banks. */
#define FEW_REST (32 * CUDA_SEGMENTS + 4)

/* ---- x --------------------------------------------------------------------------------------- */

/* Where a lane reads x: of its first block. Lanes of rows that do not exist read the last
 * one again: no more bytes, and nobody looks at their results. */
template <int NT, bool COPIED> struct x_source {
    const uint8_t *values[NT];

    static constexpr uint32_t block_bytes = COPIED ? 64 : 512;

    __device__ __forceinline__ uint4 value(int t, uint32_t block) const
    {
        const uint4 *from = (const uint4 *)(values[t] + block * block_bytes);
        return COPIED ? *from : __ldcg(from);
    }
};

/* ---- a tile's unit ----------------------------------------------------------------------------
 */

/* acc[n] += of a piece's 64 columns times NT tiles of x, from block `block` of it. */
template <uint32_t FORMAT, int NT, bool COPIED>
static __device__ __forceinline__ void multiply_unit(float acc[NT][4], const uint8_t *piece,
                                                     const x_source<NT, COPIED> &x, uint32_t block,
                                                     uint32_t lane)
{
    cuda_share<FORMAT, 2> share;
    cuda_share_load(&share, piece, 0, lane);
#pragma unroll
    for (uint32_t b = 0; b < 2; b++) {
        uint32_t a[2][4];
        cuda_fragment(share, 2 * b, a[0]);
        cuda_fragment(share, 2 * b + 1, a[1]);
#pragma unroll
        for (int n = 0; n < NT; n++) {
            const uint4 v = x.value(n, block + b);
            const uint32_t low[2] = {v.x, v.y}, high[2] = {v.z, v.w};
            cuda_mma(acc[n], a[0], low);
            cuda_mma(acc[n], a[1], high);
        }
    }
}

/* ---- ends ------------------------------------------------------------------------------------ */

/* The warp's partial sums, of the rows of x that exist, from its rows of W of its segment on. */
template <int NT>
static __device__ __forceinline__ void partial_store(float *partial, const float acc[NT][4],
                                                     uint32_t n_rows, uint32_t lane)
{
#pragma unroll
    for (int n = 0; n < NT; n++) {
        uint32_t row = 8 * n + lane % 4 * 2;
        float *at = partial + row * FEW_REST + lane / 4;
#pragma unroll
        for (uint32_t i = 0; i < 2; i++) {
            if (row + i >= n_rows)
                continue;
            at[i * FEW_REST] = acc[n][i];
            at[i * FEW_REST + 8] = acc[n][i + 2];
        }
    }
}

/* Row n of x and, per lane, one row of W of the pair: the sum of the partial sums. */
static __device__ __forceinline__ float total_of(const float *partial, uint32_t n, uint32_t lane)
{
    const float *from = partial + n * FEW_REST + lane;
    float total = 0;
#pragma unroll
    for (uint32_t k = 0; k < CUDA_SEGMENTS; k += CUDA_QUARTER) {
        float quarter = 0;
#pragma unroll
        for (uint32_t s = k; s < k + CUDA_QUARTER; s++)
            quarter = __fadd_rn(quarter, from[32 * s]);
        total = __fadd_rn(total, quarter);
    }
    return total;
}

/* CUDA_GATED of row n: lanes 0 .. 15 have the gate's columns, lanes 16 .. 31 the same of up. After
 * the last pair the columns that pad to a multiple of 64. */
static __device__ __forceinline__ void finish_gated(const cuda_packed &to, uint32_t activation,
                                                    uint32_t pairs, uint32_t pair, uint32_t n,
                                                    uint32_t lane, float total)
{
    float up = __shfl_xor_sync(0xffffffff, total, 16);
    uint16_t bits = (uint16_t)cuda_half2_cut(cuda_gate(activation, total, up), 0);
    if (lane >= 16)
        return;
    *cuda_packed_number(to, n, 16 * pair + lane) = bits;
    if (pair + 1 < pairs)
        return;
#pragma unroll 1
    for (uint32_t c = 16 * pairs; c < 32 * to.blocks; c += 16)
        *cuda_packed_number(to, n, c + lane) = 0;
}

/* ---- between warps --------------------------------------------------------------------------- */

/* Between the warps that multiply and the one that finishes: a pair's partial sums are there, and
 * their place is free again. */
struct meeting {
    cuda_barrier summed[FEW_PLACES], freed[FEW_PLACES];
};

/* Which of n places a block's next pair has, and how often it was used before. */
struct place {
    uint32_t n = FEW_PLACES, at = 0, parity = 0;

    __device__ __forceinline__ void next()
    {
        parity ^= at + 1 == n;
        at = at + 1 == n ? 0 : at + 1;
    }
};

#endif
