/* synthetic.h: models of known shapes with normally distributed weights, for measurements.
 *
 * Speed and power depend on shapes, types and on how random the bits are, not on what a model says;
 * zeros would flatter a GPU. A tensor's rows are taken from a pool of drawn blocks at random
 * places: drawing gigabytes takes longer than what is to be measured. */
#ifndef INFERD_BENCH_SYNTHETIC_H
#define INFERD_BENCH_SYNTHETIC_H

#include "inferd/backend.h"
#include "ref/quant.h"

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define SYNTHETIC_POOL_BYTES ((size_t)64 << 20)
#define SYNTHETIC_CODES      (1u << 16)
/* Deviation of weights: what models of this size have. */
#define SYNTHETIC_DEVIATION 0.02f

struct synthetic {
    float normal[SYNTHETIC_CODES]; /* a table of normal numbers */
    uint64_t seed;
};

static inline uint64_t synthetic_next(struct synthetic *r)
{
    r->seed ^= r->seed << 13;
    r->seed ^= r->seed >> 7;
    r->seed ^= r->seed << 17;
    return r->seed;
}

/* "8b", "1b" (Llama 3's) or "tiny". */
static inline bool synthetic_shape(const char *name, struct infer_shape *ret)
{
    static const struct {
        const char *name;
        struct infer_shape shape;
    } all[] = {
        {"8b", {32, 4096, 14336, 128256, 32, 8, 128, 128, 16384, 1e-5f}},
        {"1b", {16, 2048, 8192, 128256, 32, 8, 64, 64, 16384, 1e-5f}},
        {"tiny", {2, 256, 512, 1024, 4, 2, 64, 64, 512, 1e-5f}},
    };
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        if (strcmp(all[i].name, name) == 0) {
            *ret = all[i].shape;
            return true;
        }
    return false;
}

/* UINT32_MAX: no type has that name. */
static inline uint32_t synthetic_type(const char *name)
{
    for (uint32_t t = 0; t < 64; t++)
        if (ref_type_known(t) && strcasecmp(ref_type_name(t), name) == 0)
            return t;
    return UINT32_MAX;
}

/* Whether blocks of that type can be drawn. */
static inline bool synthetic_can(uint32_t type)
{
    return type == INFER_TYPE_F16 || type == INFER_TYPE_Q8_0 || type == INFER_TYPE_Q4_0 ||
           type == INFER_TYPE_Q4_K || type == INFER_TYPE_Q6_K;
}

static inline void synthetic_init(struct synthetic *r)
{
    r->seed = 88172645463325252u;
    for (uint32_t i = 0; i < SYNTHETIC_CODES; i += 2) { /* Box and Muller */
        double u = (double)(synthetic_next(r) >> 11) * 0x1p-53 + 0x1p-54,
               v = (double)(synthetic_next(r) >> 11) * 0x1p-53;
        double length = sqrt(-2 * log(u));
        r->normal[i] = (float)(length * cos(2 * M_PI * v));
        r->normal[i + 1] = (float)(length * sin(2 * M_PI * v));
    }
}

/* n whole numbers around `middle`, from 0 to most. */
static inline void synthetic_codes(struct synthetic *r, uint8_t *to, uint32_t n, float middle,
                                   float deviation, int most)
{
    for (uint32_t i = 0; i < n; i += 4) {
        uint64_t four = synthetic_next(r);
        for (uint32_t k = i; k < i + 4 && k < n; k++, four >>= 16) {
            int code =
                (int)floorf(middle + deviation * r->normal[four & (SYNTHETIC_CODES - 1)] + 0.5f);
            to[k] = (uint8_t)(code < 0 ? 0 : code > most ? most : code);
        }
    }
}

static inline void synthetic_put_half(uint8_t *at, float value)
{
    uint16_t half = ref_f32_to_f16(value);
    memcpy(at, &half, 2);
}

/* 256 values: scales and minima of 32 .. 47 and codes of 4 bits. */
static inline void synthetic_draw_q4_k(struct synthetic *r, uint8_t *block)
{
    uint8_t c[256];
    synthetic_put_half(block, SYNTHETIC_DEVIATION * 4.4f / 15 / 40);
    synthetic_put_half(block + 2, SYNTHETIC_DEVIATION * 2.2f / 40);
    uint64_t random = synthetic_next(r);
    for (int i = 0; i < 8; i++)
        block[4 + i] =
            (uint8_t)(0xa0 | (random >> 4 * i & 15)); /* 32 + low, and 2 << 6 of another */
    for (int i = 8; i < 12; i++)
        block[4 + i] = (uint8_t)(random >> 8 * (i - 4));
    synthetic_codes(r, c, 256, 7.5f, 3.4f, 15);
    for (int i = 0; i < 128; i++)
        block[16 + i] = (uint8_t)(c[i] | c[128 + i] << 4);
}

/* 256 values: codes of 6 bits in two planes, 16 signed scales. */
static inline void synthetic_draw_q6_k(struct synthetic *r, uint8_t *block)
{
    uint8_t c[256];
    synthetic_codes(r, c, 256, 32, 14, 63);
    for (int half = 0; half < 2; half++) {
        const uint8_t *v = c + 128 * half;
        for (int l = 0; l < 32; l++) {
            block[64 * half + l] = (uint8_t)((v[l] & 15) | (v[l + 64] & 15) << 4);
            block[64 * half + 32 + l] = (uint8_t)((v[l + 32] & 15) | (v[l + 96] & 15) << 4);
            block[128 + 32 * half + l] = (uint8_t)(v[l] >> 4 | v[l + 32] >> 4 << 2 |
                                                   v[l + 64] >> 4 << 4 | v[l + 96] >> 4 << 6);
        }
    }
    synthetic_codes(r, block + 192, 16, 56, 8, 127);
    synthetic_put_half(block + 208, SYNTHETIC_DEVIATION * 2.3f / 32 / 56);
}

static inline void synthetic_draw_block(struct synthetic *r, uint32_t type, uint8_t *block)
{
    uint8_t c[32];
    switch (type) {
    case INFER_TYPE_F16:
        synthetic_put_half(block,
                           SYNTHETIC_DEVIATION * r->normal[synthetic_next(r) % SYNTHETIC_CODES]);
        break;
    case INFER_TYPE_Q4_0:
        synthetic_put_half(block, SYNTHETIC_DEVIATION * 2.2f / 8);
        synthetic_codes(r, c, 32, 8, 3.6f, 15);
        for (int i = 0; i < 16; i++)
            block[2 + i] = (uint8_t)(c[i] | c[16 + i] << 4);
        break;
    case INFER_TYPE_Q8_0:
        synthetic_put_half(block, SYNTHETIC_DEVIATION * 2.2f / 127);
        synthetic_codes(r, c, 32, 128, 57, 255);
        for (int i = 0; i < 32; i++)
            block[2 + i] = c[i] ^ 0x80;
        break;
    case INFER_TYPE_Q4_K:
        synthetic_draw_q4_k(r, block);
        break;
    case INFER_TYPE_Q6_K:
        synthetic_draw_q6_k(r, block);
        break;
    default:
        break;
    }
}

/* Blocks of one type, from which rows are taken at random places. */
static inline uint8_t *synthetic_pool(struct synthetic *r, uint32_t type)
{
    uint8_t *pool = malloc(SYNTHETIC_POOL_BYTES);
    size_t size = ref_block_bytes(type);
    if (!pool)
        abort();
    for (size_t at = 0; at + size <= SYNTHETIC_POOL_BYTES; at += size)
        synthetic_draw_block(r, type, pool + at);
    return pool;
}

/* n rows of the pool, at a random place; n * row_bytes is at most half of it. */
static inline const uint8_t *synthetic_rows(struct synthetic *r, const uint8_t *pool, uint32_t type,
                                            uint64_t n, uint64_t row_bytes)
{
    const size_t size = ref_block_bytes(type);
    uint64_t room = (SYNTHETIC_POOL_BYTES - n * row_bytes) / size;
    return pool + size * (synthetic_next(r) % room);
}

#endif
