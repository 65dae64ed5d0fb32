/* rng.h: random numbers that are a function of (seed, index), so that the n-th draw of a request
 * does not depend on which requests ran beside it. The mixer is SplitMix64's finalizer (Steele,
 * Lea, Flood: Fast splittable pseudorandom number generators, 2014). */
#ifndef INFERD_BASE_RNG_H
#define INFERD_BASE_RNG_H

#include <stdint.h>

static inline uint64_t rng_mix(uint64_t x)
{
    x += UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

static inline uint64_t rng_at(uint64_t seed, uint64_t index)
{
    return rng_mix(rng_mix(seed) ^ rng_mix(~index));
}

/* In [0, 1), 53 bits. */
static inline double rng_uniform(uint64_t seed, uint64_t index)
{
    return (double)(rng_at(seed, index) >> 11) * 0x1p-53;
}

#endif
