/* cache.c: rows of keys and values into a page, and queries into the form that meets them.
 *
 * A page holds, for one layer and kv head, the keys of 16 rows and then their values, each part
 * padded to a cache line. B is the number of 32-number blocks of a head:
 *
 *           keys                                        values
 *   F16     [head_dim][16] halves                       [16][dim_v] halves
 *   Q8_0    [B][8][16][4] bytes, value + 128;           [16][dim_v] bytes;
 *           [B][16] half scales                         [B][16] half scales
 *   Q4_0    [B][4][16][4] bytes: the low nibbles are    [16][dim_v / 2] bytes, each block
 *           4 numbers, the high ones the 4 after        as in ref/cache.h; [16][dim_v / 8] bytes,
 *           them; [B][16] words                         the fifth bits; [B][16] words
 *
 * So one vector has four numbers of each of 16 keys, which one instruction multiplies with four
 * bytes of a query and sums; and a row's values lie side by side. Per number: 16 bits, 8.5, or 4.5
 * for keys and 5.5 for values.
 *
 * A query is packed to two bytes per number, by blocks of 32 like the keys' own:
 * x = d (128 h + l), d = max|x| / 16256, |h| <= 127, |l| <= 64. Its error, at most d / 2 =
 * max|x| / 32512, is far under that of the keys, and the integer sums are exact.
 *
 * Rounding is kernels/ref's own (ref/cache.h), so a page says the same as the reference's. Pure
 * functions, any thread. */
#include "cpu/cpu.h"

#include "ref/blocks.h"
#include "ref/cache.h"

#include <math.h>
#include <string.h>

static size_t line(size_t bytes)
{
    return (bytes + 63) / 64 * 64;
}

size_t cpu_key_bytes(uint32_t type, uint32_t dim)
{
    const size_t n = (size_t)CPU_PAGE_TOKENS * dim, blocks = n / CPU_BLOCK;
    return line(type == INFER_TYPE_F16    ? 2 * n
                : type == INFER_TYPE_Q8_0 ? n + 2 * blocks
                                          : n / 2 + 2 * blocks);
}

size_t cpu_value_bytes(uint32_t type, uint32_t dim)
{
    const size_t n = (size_t)CPU_PAGE_TOKENS * dim, blocks = n / CPU_BLOCK;
    return line(type == INFER_TYPE_F16    ? 2 * n
                : type == INFER_TYPE_Q8_0 ? n + 2 * blocks
                                          : n / 2 + n / 8 + 2 * blocks);
}

static void key_q8_0(uint8_t *codes, uint8_t *scales, uint32_t slot, const float *x)
{
    struct ref_q8_0 block;
    ref_cache_encode(INFER_TYPE_Q8_0, REF_KEY, x, &block, CPU_BLOCK);
    memcpy(scales + 2 * slot, &block.d, 2);
    codes += 4 * slot;
    for (uint32_t i = 0; i < CPU_BLOCK; i++)
        codes[4 * CPU_PAGE_TOKENS * (i / 4) + i % 4] = (uint8_t)(block.qs[i] + 128);
}

static void key_q4_0(uint8_t *codes, uint8_t *words, uint32_t slot, const float *x)
{
    struct ref_cache_key block;
    ref_cache_encode(INFER_TYPE_Q4_0, REF_KEY, x, &block, CPU_BLOCK);
    memcpy(words + 2 * slot, &block.word, 2);
    codes += 4 * slot;
    for (uint32_t i = 0; i < CPU_BLOCK / 2; i++) {
        uint32_t at = 8 * (i / 4) + i % 4, shift = at < 16 ? 0 : 4;
        uint32_t first = block.qs[at % 16] >> shift & 15,
                 next = block.qs[at % 16 + 4] >> shift & 15;
        codes[4 * CPU_PAGE_TOKENS * (i / 4) + i % 4] = (uint8_t)(first | next << 4);
    }
}

void cpu_cache_key(uint8_t *keys, uint32_t type, uint32_t dim, uint32_t slot, const float *x)
{
    const size_t n = (size_t)CPU_PAGE_TOKENS * CPU_BLOCK, all = (size_t)CPU_PAGE_TOKENS * dim;
    for (uint32_t b = 0; b < dim / CPU_BLOCK; b++, x += CPU_BLOCK) {
        if (type == INFER_TYPE_Q8_0)
            key_q8_0(keys + n * b, keys + all + 2 * CPU_PAGE_TOKENS * b, slot, x);
        else
            key_q4_0(keys + n / 2 * b, keys + all / 2 + 2 * CPU_PAGE_TOKENS * b, slot, x);
    }
}

static void read_q8_0(const uint8_t *codes, const uint8_t *scales, uint32_t slot, float *ret)
{
    struct ref_q8_0 block;
    memcpy(&block.d, scales + 2 * slot, 2);
    codes += 4 * slot;
    for (uint32_t i = 0; i < CPU_BLOCK; i++)
        block.qs[i] = (int8_t)(codes[4 * CPU_PAGE_TOKENS * (i / 4) + i % 4] - 128);
    ref_cache_decode(INFER_TYPE_Q8_0, REF_KEY, &block, ret, CPU_BLOCK);
}

static void read_q4_0(const uint8_t *codes, const uint8_t *words, uint32_t slot, float *ret)
{
    struct ref_cache_key block = {0};
    memcpy(&block.word, words + 2 * slot, 2);
    codes += 4 * slot;
    for (uint32_t i = 0; i < CPU_BLOCK / 2; i++) {
        uint32_t both = codes[4 * CPU_PAGE_TOKENS * (i / 4) + i % 4];
        uint32_t at = 8 * (i / 4) + i % 4, shift = at < 16 ? 0 : 4;
        block.qs[at % 16] |= (uint8_t)((both & 15) << shift);
        block.qs[at % 16 + 4] |= (uint8_t)(both >> 4 << shift);
    }
    ref_cache_decode(INFER_TYPE_Q4_0, REF_KEY, &block, ret, CPU_BLOCK);
}

void cpu_cache_key_read(const uint8_t *keys, uint32_t type, uint32_t dim, uint32_t slot, float *ret)
{
    const size_t n = (size_t)CPU_PAGE_TOKENS * CPU_BLOCK, all = (size_t)CPU_PAGE_TOKENS * dim;
    for (uint32_t b = 0; b < dim / CPU_BLOCK; b++, ret += CPU_BLOCK) {
        if (type == INFER_TYPE_Q8_0)
            read_q8_0(keys + n * b, keys + all + 2 * CPU_PAGE_TOKENS * b, slot, ret);
        else
            read_q4_0(keys + n / 2 * b, keys + all / 2 + 2 * CPU_PAGE_TOKENS * b, slot, ret);
    }
}

void cpu_cache_value(uint8_t *values, uint32_t type, uint32_t dim, uint32_t slot, const float *x)
{
    const bool wide = type == INFER_TYPE_Q8_0;
    const size_t row = wide ? dim : dim / 2, high_row = wide ? 0 : dim / 8;
    uint8_t *to = values + row * slot, *high = values + CPU_PAGE_TOKENS * row + high_row * slot;
    uint8_t *scales = values + CPU_PAGE_TOKENS * (row + high_row) + 2 * slot;
    for (uint32_t b = 0; b < dim / CPU_BLOCK; b++, x += CPU_BLOCK, scales += 2 * CPU_PAGE_TOKENS) {
        if (wide) {
            struct ref_q8_0 block;
            ref_cache_encode(type, REF_VALUE, x, &block, CPU_BLOCK);
            memcpy(scales, &block.d, 2);
            memcpy(to + sizeof block.qs * b, block.qs, sizeof block.qs);
        } else {
            struct ref_cache_value block;
            ref_cache_encode(type, REF_VALUE, x, &block, CPU_BLOCK);
            memcpy(scales, &block.word, 2);
            memcpy(to + sizeof block.qs * b, block.qs, sizeof block.qs);
            memcpy(high + sizeof block.high * b, block.high, sizeof block.high);
        }
    }
}

/* ---- queries --------------------------------------------------------------------------------- */

static float largest_of(const float *x, uint32_t n)
{
    float largest = 0;
    for (uint32_t i = 0; i < n; i++)
        largest = fabsf(x[i]) > largest ? fabsf(x[i]) : largest;
    return largest;
}

/* Codes [dim / 4][M][4 high, 4 low], then numbers [block][M]. A block with anything that is not
 * finite is zero: what comes of it is finite, as in every other kernel's cache. */
void cpu_query_pack(uint8_t *packed, uint32_t M, uint32_t m, const float *q, uint32_t dim,
                    float scale)
{
    const float nearest = 12582912.0f; /* rounds |x| < 2^22 to the nearest integer */
    const uint32_t n = CPU_BLOCK;
    uint8_t *numbers = packed + (size_t)2 * dim * M, *to = packed + 8 * m;
    for (uint32_t b = 0; b < dim / n; b++, q += n) {
        struct cpu_query_block block = {0};
        float top = largest_of(q, n), total = 0;
        for (uint32_t i = 0; i < n; i++)
            total += q[i];
        bool sane = top > 1e-30f && top < 1e30f && total == total;
        float inverse = sane ? 16256.0f / top : 0;
        for (uint32_t i = 0; i < n; i++) {
            float x = sane ? (q[i] * inverse + nearest) - nearest : 0;
            float h = (x * 0.0078125f + nearest) - nearest;
            int32_t high = (int32_t)h, low = (int32_t)(x - 128.0f * h);
            uint8_t *at = to + (size_t)8 * M * (i / 4) + i % 4;
            at[0] = (uint8_t)high;
            at[4] = (uint8_t)low;
            block.high += high;
            block.low += low;
        }
        to += (size_t)2 * M * n;
        block.scale = sane ? scale / inverse : 0;
        memcpy(numbers + sizeof block * ((size_t)M * b + m), &block, sizeof block);
    }
}
