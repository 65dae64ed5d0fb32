/* cuda_packed.h: where a number of packed x lies, as the comment of struct cuda_packed says: the
 * tests' own reading of it. Header only. */
#ifndef INFERD_TESTS_KERNEL_CUDA_PACKED_H
#define INFERD_TESTS_KERNEL_CUDA_PACKED_H

#include "cuda/cuda.h"

/* Of row n, column c: which of the halves. */
static inline size_t packed_at(const struct cuda_packed *p, uint32_t n, uint32_t c)
{
    static const uint32_t order[16] = {0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15};
    uint32_t tile = n / 8, g = n % 8, block = c / 32, half = c % 32 / 16, at = 0;
    if (p->tiles == 0)
        return (((size_t)tile * p->blocks + block) * 32 + 4 * g + c % 16 / 4) * 8 + half * 4 +
               c % 4;
    while (order[at] != c % 16)
        at++;
    return (((size_t)(tile / p->tiles) * p->blocks + block) * p->tiles + tile % p->tiles) * 256 +
           (2 * half + at / 8) * 64 + g * 8 + at % 8;
}

#endif
