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
 *           4 numbers, the high ones the 4 after        as in ref/cache.h;
 *           them; [B][2][16] words                      [B][2][16] words
 *
 * So one vector has four numbers of each of 16 keys, which one instruction multiplies with four
 * bytes of a query and sums; and a row's values lie side by side. Per number: 16 bits, 8.5 or 5.
 *
 * A query is packed to two bytes per number, by blocks of the keys' own scales (32 numbers, or 16):
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

size_t cpu_cache_bytes(uint32_t type, uint32_t dim)
{
    const size_t n = (size_t)CPU_PAGE_TOKENS * dim, blocks = n / CPU_BLOCK;
    switch (type) {
    case INFER_TYPE_Q8_0:
        return line(n + 2 * blocks);
    case INFER_TYPE_Q4_0:
        return line(n / 2 + 4 * blocks);
    default: /* F16 */
        return 2 * n;
    }
}

static void key_q8_0(uint8_t *codes, uint8_t *scales, uint32_t slot, const float *x)
{
    struct ref_q8_0 block;
    ref_cache_encode(INFER_TYPE_Q8_0, x, &block, CPU_BLOCK);
    memcpy(scales + 2 * slot, &block.d, 2);
    codes += 4 * slot;
    for (uint32_t i = 0; i < CPU_BLOCK; i++)
        codes[4 * CPU_PAGE_TOKENS * (i / 4) + i % 4] = (uint8_t)(block.qs[i] + 128);
}

static uint32_t nibble(const struct ref_cache_q4 *b, uint32_t i)
{
    return i < 16 ? b->qs[i] & 15u : b->qs[i - 16] >> 4;
}

static void put_nibble(struct ref_cache_q4 *b, uint32_t i, uint32_t code)
{
    b->qs[i % 16] |= (uint8_t)(i < 16 ? code : code << 4);
}

static void key_q4_0(uint8_t *codes, uint8_t *words, uint32_t slot, const float *x)
{
    struct ref_cache_q4 block;
    ref_cache_encode(INFER_TYPE_Q4_0, x, &block, CPU_BLOCK);
    for (uint32_t h = 0; h < 2; h++)
        memcpy(words + 2 * (CPU_PAGE_TOKENS * h + slot), &block.word[h], 2);
    codes += 4 * slot;
    for (uint32_t i = 0; i < CPU_BLOCK / 2; i++) {
        uint32_t at = 8 * (i / 4) + i % 4;
        codes[4 * CPU_PAGE_TOKENS * (i / 4) + i % 4] =
            (uint8_t)(nibble(&block, at) | nibble(&block, at + 4) << 4);
    }
}

void cpu_cache_key(uint8_t *keys, uint32_t type, uint32_t dim, uint32_t slot, const float *x)
{
    const size_t n = (size_t)CPU_PAGE_TOKENS * CPU_BLOCK, all = (size_t)CPU_PAGE_TOKENS * dim;
    for (uint32_t b = 0; b < dim / CPU_BLOCK; b++, x += CPU_BLOCK) {
        if (type == INFER_TYPE_Q8_0)
            key_q8_0(keys + n * b, keys + all + 2 * CPU_PAGE_TOKENS * b, slot, x);
        else
            key_q4_0(keys + n / 2 * b, keys + all / 2 + 4 * CPU_PAGE_TOKENS * b, slot, x);
    }
}

static void read_q8_0(const uint8_t *codes, const uint8_t *scales, uint32_t slot, float *ret)
{
    struct ref_q8_0 block;
    memcpy(&block.d, scales + 2 * slot, 2);
    codes += 4 * slot;
    for (uint32_t i = 0; i < CPU_BLOCK; i++)
        block.qs[i] = (int8_t)(codes[4 * CPU_PAGE_TOKENS * (i / 4) + i % 4] - 128);
    ref_cache_decode(INFER_TYPE_Q8_0, &block, ret, CPU_BLOCK);
}

static void read_q4_0(const uint8_t *codes, const uint8_t *words, uint32_t slot, float *ret)
{
    struct ref_cache_q4 block = {0};
    for (uint32_t h = 0; h < 2; h++)
        memcpy(&block.word[h], words + 2 * (CPU_PAGE_TOKENS * h + slot), 2);
    codes += 4 * slot;
    for (uint32_t i = 0; i < CPU_BLOCK / 2; i++) {
        uint32_t both = codes[4 * CPU_PAGE_TOKENS * (i / 4) + i % 4], at = 8 * (i / 4) + i % 4;
        put_nibble(&block, at, both & 15);
        put_nibble(&block, at + 4, both >> 4);
    }
    ref_cache_decode(INFER_TYPE_Q4_0, &block, ret, CPU_BLOCK);
}

void cpu_cache_key_read(const uint8_t *keys, uint32_t type, uint32_t dim, uint32_t slot, float *ret)
{
    const size_t n = (size_t)CPU_PAGE_TOKENS * CPU_BLOCK, all = (size_t)CPU_PAGE_TOKENS * dim;
    for (uint32_t b = 0; b < dim / CPU_BLOCK; b++, ret += CPU_BLOCK) {
        if (type == INFER_TYPE_Q8_0)
            read_q8_0(keys + n * b, keys + all + 2 * CPU_PAGE_TOKENS * b, slot, ret);
        else
            read_q4_0(keys + n / 2 * b, keys + all / 2 + 4 * CPU_PAGE_TOKENS * b, slot, ret);
    }
}

void cpu_cache_value(uint8_t *values, uint32_t type, uint32_t dim, uint32_t slot, const float *x)
{
    const size_t row = type == INFER_TYPE_Q8_0 ? dim : dim / 2;
    uint8_t *scales = values + CPU_PAGE_TOKENS * row, *to = values + row * slot;
    for (uint32_t b = 0; b < dim / CPU_BLOCK; b++, x += CPU_BLOCK) {
        if (type == INFER_TYPE_Q8_0) {
            struct ref_q8_0 block;
            ref_cache_encode(type, x, &block, CPU_BLOCK);
            memcpy(scales + 2 * (CPU_PAGE_TOKENS * b + slot), &block.d, 2);
            memcpy(to + sizeof block.qs * b, block.qs, sizeof block.qs);
        } else {
            struct ref_cache_q4 block;
            ref_cache_encode(type, x, &block, CPU_BLOCK);
            for (uint32_t h = 0; h < 2; h++)
                memcpy(scales + 2 * (CPU_PAGE_TOKENS * (2 * b + h) + slot), &block.word[h], 2);
            memcpy(to + sizeof block.qs * b, block.qs, sizeof block.qs);
        }
    }
}

/* ---- queries --------------------------------------------------------------------------------- */

static uint32_t query_block(uint32_t k_type)
{
    return k_type == INFER_TYPE_Q8_0 ? CPU_BLOCK : CPU_BLOCK / 2;
}

static float largest_of(const float *x, uint32_t n)
{
    float largest = 0;
    for (uint32_t i = 0; i < n; i++)
        largest = fabsf(x[i]) > largest ? fabsf(x[i]) : largest;
    return largest;
}

/* Codes [dim / 4][M][4 high, 4 low], then numbers [block][M]. A block with anything that is not
 * finite is zero: what comes of it is finite, as in every other kernel's cache. */
void cpu_query_pack(uint8_t *packed, uint32_t k_type, uint32_t M, uint32_t m, const float *q,
                    uint32_t dim, float scale)
{
    const float nearest = 12582912.0f; /* rounds |x| < 2^22 to the nearest integer */
    const uint32_t n = query_block(k_type);
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
