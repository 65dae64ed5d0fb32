/* cache.h: how a head's keys and values are rounded for the sequence state.
 *
 * F32 and F16 are stored as they are; Q8_0 as blocks of 32 numbers along the head, as in blocks.h.
 * Q4_0 as a cache type means codes of a rotated head in the blocks below, of 4 bits for keys and of
 * 5 for values, which serve that purpose better than a file's Q4_0: cache.c says why. The encoders
 * here are shared by every backend that runs on the processor, so that all round alike. Pure
 * functions, any thread. */
#ifndef INFERD_KERNELS_REF_CACHE_H
#define INFERD_KERNELS_REF_CACHE_H

#include <stdbool.h>
#include <stdint.h>

enum ref_cached { REF_KEY, REF_VALUE };

/* 32 numbers of the keys of a Q4_0 cache: number i is
 *   d (q - 7.5 - s / 2),   d = half-precision number of word, s = its lowest three bits. */
struct ref_cache_key {
    uint16_t word;
    uint8_t qs[16]; /* number i in the low nibble of byte i, number 16 + i in the high one */
};
_Static_assert(sizeof(struct ref_cache_key) == 18, "keys of a Q4_0 cache: 4.5 bits per number");

/* And of the values: d (q - 15.5 - s), where bit i of `high` is the fifth bit of number i. */
struct ref_cache_value {
    uint16_t word;
    uint8_t qs[16];
    uint8_t high[4];
};
_Static_assert(sizeof(struct ref_cache_value) == 22, "values of a Q4_0 cache: 5.5 bits per number");

/* Whether keys, or values, can be kept so when their heads have `dim` numbers. */
bool ref_cache_fits(uint32_t type, uint32_t dim);

/* Bytes of n numbers of keys or values. */
uint64_t ref_cache_bytes(uint32_t type, enum ref_cached what, uint64_t n);

/* Whether heads are rotated before they are rounded: keys and the queries that meet them; values,
 * and the sums of values turned back. */
bool ref_cache_rotates(uint32_t type);

/* x = H x for one head: Hadamard matrices of the largest power of two that divides n, normalized.
 * H is its own inverse. */
void ref_cache_rotate(float *x, uint32_t n);

/* n numbers, a multiple of the block, to F32, F16, Q8_0 or Q4_0 and back. Of blocks, what is not
 * finite or beyond 65504 is cut to that, so that what comes back is finite. */
void ref_cache_encode(uint32_t type, enum ref_cached what, const float *x, void *ret, uint64_t n);
void ref_cache_decode(uint32_t type, enum ref_cached what, const void *bytes, float *ret,
                      uint64_t n);

#endif
