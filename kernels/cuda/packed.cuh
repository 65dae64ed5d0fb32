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

/* Columns c .. c + 3 of a row; c a multiple of 4. */
static __device__ __forceinline__ cuda_packed_four cuda_packed_at(const cuda_packed &to, size_t row,
                                                                  uint32_t c)
{
    const size_t tile = row / 8, block = c / 32;
    const uint32_t g = row % 8, half = c % 32 / 16, q = c % 16 / 4;
    uint32_t *words = reinterpret_cast<uint32_t *>(to.values);
    if (to.tiles == 0)
        return {words + (tile * to.blocks + block) * 128 + 16 * g + 4 * q + 2 * half, 1};
    const size_t at = (tile / to.tiles * to.blocks + block) * to.tiles + tile % to.tiles;
    return {words + at * 128 + 64 * half + 4 * g + q, 32};
}

/* Column c alone. */
static __device__ __forceinline__ uint16_t *cuda_packed_number(const cuda_packed &to, size_t row,
                                                               uint32_t c)
{
    const cuda_packed_four four = cuda_packed_at(to, row, c / 4 * 4);
    return reinterpret_cast<uint16_t *>(four.first + (c % 4 / 2) * four.apart) + c % 2;
}

#endif
