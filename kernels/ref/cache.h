/* cache.h: how a head's keys and values are rounded for the sequence state.
 *
 * F32 and F16 are stored as they are; Q8_0 as blocks of 32 numbers along the head, as in blocks.h.
 * Q4_0 as a cache type means 4-bit codes of a rotated head in the block below, which serves that
 * purpose better than a file's Q4_0: cache.c says why. The encoders here are shared by every
 * backend that runs on the processor, so that all round alike. Pure functions, any thread. */
#ifndef INFERD_KERNELS_REF_CACHE_H
#define INFERD_KERNELS_REF_CACHE_H

#include <stdbool.h>
#include <stdint.h>

/* 32 numbers of a Q4_0 cache, two halves of 16: number i of half h is
 *   d (q - 7.5 - s / 2),   d = half-precision number of word[h], s = its lowest three bits. */
struct ref_cache_q4 {
    uint16_t word[2];
    uint8_t qs[16]; /* number i of the first half in the low nibble of byte i, of the second in
                       the high one */
};
_Static_assert(sizeof(struct ref_cache_q4) == 20, "a Q4_0 cache has 5 bits per number");

/* Whether keys, or values, can be kept so when their heads have `dim` numbers. */
bool ref_cache_fits(uint32_t type, uint32_t dim);

/* Bytes of n numbers. */
uint64_t ref_cache_bytes(uint32_t type, uint64_t n);

/* Whether heads are rotated before they are rounded: keys and the queries that meet them; values,
 * and the sums of values turned back. */
bool ref_cache_rotates(uint32_t type);

/* x = H x for one head: Hadamard matrices of the largest power of two that divides n, normalized.
 * H is its own inverse. */
void ref_cache_rotate(float *x, uint32_t n);

/* n numbers, a multiple of the block, to F32, F16, Q8_0 or Q4_0 and back. Of blocks, what is not
 * finite or beyond 65504 is cut to that, so that what comes back is finite. */
void ref_cache_encode(uint32_t type, const float *x, void *ret, uint64_t n);
void ref_cache_decode(uint32_t type, const void *bytes, float *ret, uint64_t n);

#endif
