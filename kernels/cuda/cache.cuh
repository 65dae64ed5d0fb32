/* cache.cuh: how keys and values lie in a page, and how a warp reads them as tensor-core fragments.
 *
 * A page holds, for each layer and key head in turn, 16 keys, then 16 values. The unit of reading
 * is, for keys, 32 dimensions of the 16 keys; for values, 16 dimensions of the 16. Of a unit lane
 * 4 g + q holds what it has of the B fragments of cuda_mma, so that a warp reads whole lines:
 *
 *   key unit j:    keys g (half 0) and g + 8 (half 1), dimensions 32 j + 8 q .. + 7. Two products
 *                  of 16 dimensions: the first takes numbers 0 .. 3 of the 8, the second 4 .. 7.
 *                  A query is read by the same rule, so both agree which number is which.
 *   value unit i:  dimensions 16 i + g (half 0) and 16 i + g + 8 (half 1), of each the keys 2 q,
 *                  2 q + 1, 2 q + 8, 2 q + 9.
 *
 * Bytes of one head of a page, K key units and V value units, B blocks of 32 dimensions:
 *
 *          keys                                       values
 *   F16    [K][half][lane] 8 halves                   [V][lane][half] 4 halves
 *   Q8_0   [K][lane][half] 8 codes + 128;             [V][lane][half] 4 codes + 128;
 *          [K][g][half] half scales                   [B][q][4] half scales, keys as above
 *   Q4_0   [K][lane][half] 8 codes in 32 bits;        [V][lane] 4 bytes, a key each: the low four
 *          [K][g][half] words                         bits of both halves; [V / 4][lane] 4 bytes,
 *                                                     a key each: the fifth bits of 8 dimensions;
 *                                                     [B][q][4] words
 *
 * The eight 4-bit codes c0 .. c7 of a key lie as c0 c2 c4 c6 c1 c3 c5 c7, lowest first: pairs are
 * 16 bits apart. The four bytes of a value lane are the keys 2 q, 2 q + 8, 2 q + 1, 2 q + 9 for the
 * same reason. No byte belongs to two keys: rows of one page are written by different warps.
 *
 * Codes mean what they mean in ref/cache.h. A decoded number is rounded to half-precision. */
#ifndef INFERD_KERNELS_CUDA_CACHE_CUH
#define INFERD_KERNELS_CUDA_CACHE_CUH

#include "cuda/cuda.h"

#include "cuda/device.cuh"

#define CACHE_DIM_MAX 256u /* a head's dimensions, padded */
/* In place of a type: which of the three is known at run time only. */
#define CACHE_ANY 0xffffu

static __device__ inline uint8_t *cache_keys(const cuda_cache &c, uint32_t layer, uint32_t kv,
                                             uint32_t page)
{
    return c.pages + page * c.page_bytes + layer * c.layer_bytes + kv * c.head_bytes;
}

static __device__ inline uint8_t *cache_values(const cuda_cache &c, uint32_t layer, uint32_t kv,
                                               uint32_t page)
{
    return cache_keys(c, layer, kv, page) + c.key_bytes;
}

/* ---- where one number is --------------------------------------------------------------------- */

/* Of numbers d .. d + 7 (d a multiple of 8) of the key in slot t: which group of 8 numbers. */
static __device__ inline uint32_t cache_key_group(uint32_t type, uint32_t t, uint32_t d)
{
    uint32_t lane = t % 8 * 4 + d % 32 / 8, half = t / 8, unit = d / 32;
    return type == INFER_TYPE_F16 ? (unit * 2 + half) * 32 + lane : (unit * 32 + lane) * 2 + half;
}

/* Of number d of the value in slot t: which of the page's numbers, by lane and half. */
static __device__ inline uint32_t cache_value_number(uint32_t t, uint32_t d)
{
    uint32_t lane = d % 8 * 4 + t % 8 / 2, half = d % 16 / 8;
    return ((d / 16 * 32 + lane) * 2 + half) * 4 + t / 8 * 2 + t % 2;
}

/* The scale of block b of the key, of the value, in slot t: which of the page's. */
static __device__ inline uint32_t cache_key_scale(uint32_t t, uint32_t b)
{
    return (b * 8 + t % 8) * 2 + t / 8;
}
static __device__ inline uint32_t cache_value_scale(uint32_t t, uint32_t b)
{
    return (b * 4 + t % 8 / 2) * 4 + t / 8 * 2 + t % 2;
}

/* Bytes before the scales, and before a Q4_0 cache's fifth bits, of `dim` dimensions. */
static __device__ inline uint32_t cache_codes_bytes(uint32_t type, uint32_t dim)
{
    return type == INFER_TYPE_Q8_0 ? CUDA_PAGE_TOKENS * dim : CUDA_PAGE_TOKENS * dim / 2;
}
static __device__ inline uint32_t cache_high_bytes(uint32_t dim)
{
    return (dim + 63) / 64 * 128;
}

/* ---- codes to numbers ------------------------------------------------------------------------ */

/* Two codes of 8 bits, plus 128, in bytes `low` and `high` of v, times the scales. */
static __device__ inline uint32_t cache_two_bytes(uint32_t v, uint32_t pick, __half2 scales)
{
    /* 0x6400 + u is 1024 + u */
    __half2 code =
        __hsub2(cuda_bits_half2(__byte_perm(v, 0x64646464u, pick)), cuda_bits_half2(0x64806480u));
    return cuda_half2_bits(__hmul2(code, scales));
}

/* Two codes of up to 6 bits at bits 4 and 20 of v: d (c - offset). 0x5400 + 16 c is 64 + c. */
static __device__ inline uint32_t cache_two_codes(uint32_t v, uint32_t mask, __half2 offset,
                                                  __half2 scales)
{
    __half2 code = __hsub2(cuda_bits_half2(cuda_and_or(v, mask, 0x54005400u)), offset);
    return cuda_half2_bits(__hmul2(code, scales));
}

/* 64 + middle + s * step of two words, s their lowest three bits. */
static __device__ inline __half2 cache_offsets(uint32_t words, float middle, float step)
{
    return __floats2half2_rn(64 + middle + (float)(words & 7) * step,
                             64 + middle + (float)(words >> 16 & 7) * step);
}

/* ---- a lane's part of a unit ----------------------------------------------------------------- */

/* Where a page is read from: the cache, or a block's copy of it in shared memory. */
struct cache_memory {
    static __device__ inline uint4 sixteen(const void *p)
    {
        return cuda_stream16(p);
    }
    static __device__ inline uint2 eight(const void *p)
    {
        return cuda_stream8(p);
    }
    static __device__ inline uint32_t four(const void *p)
    {
        return cuda_stream4(p);
    }
};
struct cache_copy {
    static __device__ inline uint4 sixteen(const void *p)
    {
        return *reinterpret_cast<const uint4 *>(p);
    }
    static __device__ inline uint2 eight(const void *p)
    {
        return *reinterpret_cast<const uint2 *>(p);
    }
    static __device__ inline uint32_t four(const void *p)
    {
        return *reinterpret_cast<const uint32_t *>(p);
    }
};

/* What was loaded, and after that the fragment of one half: .x, .y its first product's and .z, .w
 * the second's for keys; .x, .y its numbers for values. */
template <uint32_t TYPE> struct cache_key_unit;
template <uint32_t TYPE> struct cache_value_unit;

template <> struct cache_key_unit<INFER_TYPE_F16> {
    uint4 v[2];
    template <class From = cache_memory>
    __device__ inline void load(const cuda_cache &c, const uint8_t *keys, uint32_t j, uint32_t lane)
    {
        v[0] = From::sixteen(keys + (j * 64 + lane) * 16);
        v[1] = From::sixteen(keys + (j * 64 + 32 + lane) * 16);
    }
    __device__ inline uint4 fragment(uint32_t half) const
    {
        return v[half];
    }
};

template <> struct cache_value_unit<INFER_TYPE_F16> {
    uint4 v;
    template <class From = cache_memory>
    __device__ inline void load(const cuda_cache &c, const uint8_t *values, uint32_t i,
                                uint32_t lane)
    {
        v = From::sixteen(values + (i * 32 + lane) * 16);
    }
    __device__ inline uint4 fragments() const
    {
        return v;
    }
};

template <> struct cache_key_unit<INFER_TYPE_Q8_0> {
    uint4 v;
    uint32_t scales;
    template <class From = cache_memory>
    __device__ inline void load(const cuda_cache &c, const uint8_t *keys, uint32_t j, uint32_t lane)
    {
        v = From::sixteen(keys + (j * 32 + lane) * 16);
        scales =
            From::four(keys + cache_codes_bytes(INFER_TYPE_Q8_0, c.dim_k) + (j * 8 + lane / 4) * 4);
    }
    __device__ inline uint4 fragment(uint32_t half) const
    {
        uint32_t low = half ? v.z : v.x, high = half ? v.w : v.y;
        __half2 both = cuda_bits_half2(scales);
        __half2 d = half ? __high2half2(both) : __low2half2(both);
        return make_uint4(cache_two_bytes(low, 0x4140, d), cache_two_bytes(low, 0x4342, d),
                          cache_two_bytes(high, 0x4140, d), cache_two_bytes(high, 0x4342, d));
    }
};

template <> struct cache_value_unit<INFER_TYPE_Q8_0> {
    uint2 v, scales;
    template <class From = cache_memory>
    __device__ inline void load(const cuda_cache &c, const uint8_t *values, uint32_t i,
                                uint32_t lane)
    {
        v = From::eight(values + (i * 32 + lane) * 8);
        scales = From::eight(values + cache_codes_bytes(INFER_TYPE_Q8_0, c.dim_v) +
                             (i / 2 * 4 + lane % 4) * 8);
    }
    __device__ inline uint4 fragments() const
    {
        __half2 first = cuda_bits_half2(scales.x), second = cuda_bits_half2(scales.y);
        return make_uint4(cache_two_bytes(v.x, 0x4140, first), cache_two_bytes(v.x, 0x4342, second),
                          cache_two_bytes(v.y, 0x4140, first),
                          cache_two_bytes(v.y, 0x4342, second));
    }
};

template <> struct cache_key_unit<INFER_TYPE_Q4_0> {
    uint2 v;
    uint32_t words;
    template <class From = cache_memory>
    __device__ inline void load(const cuda_cache &c, const uint8_t *keys, uint32_t j, uint32_t lane)
    {
        v = From::eight(keys + (j * 32 + lane) * 8);
        words =
            From::four(keys + cache_codes_bytes(INFER_TYPE_Q4_0, c.dim_k) + (j * 8 + lane / 4) * 4);
    }
    __device__ inline uint4 fragment(uint32_t half) const
    {
        uint32_t codes = half ? v.y : v.x, word = half ? words >> 16 : words & 0xffff;
        __half2 d = cuda_bits_half2(word << 16 | word);
        __half2 offset = cache_offsets(word << 16 | word, 7.5f, 0.5f);
        return make_uint4(cache_two_codes(codes << 4, 0x00f000f0u, offset, d),
                          cache_two_codes(codes, 0x00f000f0u, offset, d),
                          cache_two_codes(codes >> 4, 0x00f000f0u, offset, d),
                          cache_two_codes(codes >> 8, 0x00f000f0u, offset, d));
    }
};

template <> struct cache_value_unit<INFER_TYPE_Q4_0> {
    uint32_t v, high;
    uint2 words;
    template <class From = cache_memory>
    __device__ inline void load(const cuda_cache &c, const uint8_t *values, uint32_t i,
                                uint32_t lane)
    {
        uint32_t codes_bytes = cache_codes_bytes(INFER_TYPE_Q4_0, c.dim_v);
        v = From::four(values + (i * 32 + lane) * 4);
        high = From::four(values + codes_bytes + (i / 4 * 32 + lane) * 4) >> i % 4 * 2;
        words = From::eight(values + codes_bytes + cache_high_bytes(c.dim_v) +
                            (i / 2 * 4 + lane % 4) * 8);
    }
    /* `codes` has the low four bits at 4 and 20, `fifth` the fifth at 8 and 24 */
    static __device__ inline uint32_t two(uint32_t codes, uint32_t fifth, __half2 offset,
                                          uint32_t d)
    {
        return cache_two_codes((codes & 0x00f000f0u) | (fifth & 0x01000100u), 0x01f001f0u, offset,
                               cuda_bits_half2(d));
    }
    __device__ inline uint4 fragments() const
    {
        __half2 first = cache_offsets(words.x, 15.5f, 1), second = cache_offsets(words.y, 15.5f, 1);
        return make_uint4(two(v << 4, high << 8, first, words.x),
                          two(v >> 4, high, second, words.y), two(v, high << 7, first, words.x),
                          two(v >> 8, high >> 1, second, words.y));
    }
};

/* Decoded as they are loaded. */
template <> struct cache_key_unit<CACHE_ANY> {
    uint4 v[2];
    template <uint32_t TYPE, class From>
    __device__ inline void take(const cuda_cache &c, const uint8_t *keys, uint32_t j, uint32_t lane)
    {
        cache_key_unit<TYPE> unit;
        unit.template load<From>(c, keys, j, lane);
        v[0] = unit.fragment(0);
        v[1] = unit.fragment(1);
    }
    template <class From = cache_memory>
    __device__ inline void load(const cuda_cache &c, const uint8_t *keys, uint32_t j, uint32_t lane)
    {
        if (c.k_type == INFER_TYPE_F16)
            take<INFER_TYPE_F16, From>(c, keys, j, lane);
        else if (c.k_type == INFER_TYPE_Q8_0)
            take<INFER_TYPE_Q8_0, From>(c, keys, j, lane);
        else
            take<INFER_TYPE_Q4_0, From>(c, keys, j, lane);
    }
    __device__ inline uint4 fragment(uint32_t half) const
    {
        return v[half];
    }
};

template <> struct cache_value_unit<CACHE_ANY> {
    uint4 v;
    template <uint32_t TYPE, class From>
    __device__ inline void take(const cuda_cache &c, const uint8_t *values, uint32_t i,
                                uint32_t lane)
    {
        cache_value_unit<TYPE> unit;
        unit.template load<From>(c, values, i, lane);
        v = unit.fragments();
    }
    template <class From = cache_memory>
    __device__ inline void load(const cuda_cache &c, const uint8_t *values, uint32_t i,
                                uint32_t lane)
    {
        if (c.v_type == INFER_TYPE_F16)
            take<INFER_TYPE_F16, From>(c, values, i, lane);
        else if (c.v_type == INFER_TYPE_Q8_0)
            take<INFER_TYPE_Q8_0, From>(c, values, i, lane);
        else
            take<INFER_TYPE_Q4_0, From>(c, values, i, lane);
    }
    __device__ inline uint4 fragments() const
    {
        return v;
    }
};

/* ---- rotation of a head before it is rounded ------------------------------------------------- */

/* x = H x of ref_cache_rotate, by n_threads threads that `together` makes wait for each other. */
template <typename Together>
static __device__ inline void cache_rotate(float *x, uint32_t n, uint32_t thread,
                                           uint32_t n_threads, Together together)
{
    uint32_t block = n & (0u - n);
    float scale = 1.0f / sqrtf((float)block);
    for (uint32_t half = 1; half < block; half *= 2) {
        together();
        for (uint32_t p = thread; p < n / 2; p += n_threads) {
            uint32_t i = p / half * 2 * half + p % half;
            float a = x[i], b = x[i + half];
            x[i] = __fadd_rn(a, b);
            x[i + half] = __fsub_rn(a, b);
        }
    }
    together();
    for (uint32_t i = thread; i < n; i += n_threads)
        x[i] = __fmul_rn(x[i], scale);
    together();
}

#endif
