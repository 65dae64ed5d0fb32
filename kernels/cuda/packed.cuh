/* packed.cuh: where a number of x lies in the orders of struct cuda_packed (cuda.h), for the
 * kernels that write it. */
#ifndef INFERD_KERNELS_CUDA_PACKED_CUH
#define INFERD_KERNELS_CUDA_PACKED_CUH

#include "cuda/cuda.h"
#include "cuda/device.cuh"

/* Words of four columns: the first two's, and how many words on the other two's is. */
struct cuda_packed_four {
    uint32_t *first;
    uint32_t apart;

    __device__ __forceinline__ void store(uint32_t low, uint32_t high) const
    {
        first[0] = low;
        first[apart] = high;
    }
};

/* A row, in the order for FEW rows or more: where its words begin, and how many words on the next
 * 32 columns are, of these the second 16, of these the next four, of these the second two. */
template <bool FEW> struct cuda_packed_row {
    static constexpr uint32_t halves = FEW ? 2 : 64, fours = FEW ? 4 : 1, twos = FEW ? 1 : 32;
    uint32_t *words;
    uint32_t blocks;

    __device__ __forceinline__ cuda_packed_row(const cuda_packed &to, size_t row)
    {
        const size_t tile = row / 8;
        const uint32_t g = row % 8;
        const uint32_t set = FEW ? 0 : (uint32_t)__ffs((int)to.tiles) - 1; /* a power of two */
        const size_t first = ((tile >> set) * to.blocks << set) + (FEW ? 0 : tile & (to.tiles - 1));
        words = reinterpret_cast<uint32_t *>(to.values) + first * 128 + (FEW ? 16 : 4) * g;
        blocks = 128u << set;
    }
    /* Columns c and c + 1; c even. */
    __device__ __forceinline__ uint32_t *at(uint32_t c) const
    {
        return words + (size_t)(c / 32) * blocks + c % 32 / 16 * halves + c % 16 / 4 * fours +
               c % 4 / 2 * twos;
    }
};

/* Columns c .. c + 3 of a row; c a multiple of 4. */
static __device__ __forceinline__ cuda_packed_four cuda_packed_at(const cuda_packed &to, size_t row,
                                                                  uint32_t c)
{
    if (to.tiles == 0)
        return {cuda_packed_row<true>(to, row).at(c), cuda_packed_row<true>::twos};
    return {cuda_packed_row<false>(to, row).at(c), cuda_packed_row<false>::twos};
}

/* Column c alone. */
static __device__ __forceinline__ uint16_t *cuda_packed_number(const cuda_packed &to, size_t row,
                                                               uint32_t c)
{
    const cuda_packed_four four = cuda_packed_at(to, row, c / 4 * 4);
    return reinterpret_cast<uint16_t *>(four.first + (c % 4 / 2) * four.apart) + c % 2;
}

#endif
