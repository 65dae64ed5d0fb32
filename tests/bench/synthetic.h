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
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/mman.h>

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

/* ---- a plan ---------------------------------------------------------------------------------- */

#define SYNTHETIC_LAYER_TENSORS 9u

/* A llama of such a shape: its tensors are the embedding table, the last norm, the head unless it
 * is the table, and those of each layer. */
struct synthetic_plan {
    struct infer_tensor *tensors;
    struct infer_op *ops;
    float inv_freq[128];
    struct infer_plan plan;
};

static inline void synthetic_tensor(struct synthetic_plan *p, uint32_t i, uint32_t type,
                                    uint64_t cols, uint64_t rows)
{
    struct infer_tensor *t = &p->tensors[i];
    snprintf(t->name, sizeof t->name, "t%u", i);
    t->type = type;
    t->n_dims = rows > 1 ? 2 : 1;
    t->ne[0] = cols;
    t->ne[1] = rows;
    t->ne[2] = t->ne[3] = 1;
    t->row_bytes = ref_row_bytes(type, cols);
    t->n_rows = rows;
}

/* Its tensors are t, t + 1 and so on, its operations begin at op. */
static inline void synthetic_layer(struct synthetic_plan *p, const struct infer_shape *s,
                                   uint32_t type, uint32_t l, uint32_t t, struct infer_op *op)
{
    const uint32_t none = INFER_TENSOR_NONE;
    uint64_t q = (uint64_t)s->n_heads * s->head_dim, kv = (uint64_t)s->n_kv_heads * s->head_dim;
    synthetic_tensor(p, t, INFER_TYPE_F32, s->n_embd, 1);
    synthetic_tensor(p, t + 1, type, s->n_embd, q);
    synthetic_tensor(p, t + 2, type, s->n_embd, kv);
    synthetic_tensor(p, t + 3, type, s->n_embd, kv);
    synthetic_tensor(p, t + 4, type, q, s->n_embd);
    synthetic_tensor(p, t + 5, INFER_TYPE_F32, s->n_embd, 1);
    synthetic_tensor(p, t + 6, type, s->n_embd, s->n_ffn);
    synthetic_tensor(p, t + 7, type, s->n_embd, s->n_ffn);
    synthetic_tensor(p, t + 8, type, s->n_ffn, s->n_embd);
    op[0] = (struct infer_op){.kind = INFER_OP_QKV,
                              .layer = l,
                              .norm = t,
                              .as.qkv = {t + 1, t + 2, t + 3, none, none, none, none, none}};
    op[1] = (struct infer_op){
        .kind = INFER_OP_ATTEND, .layer = l, .as.attend = {1.0f / sqrtf((float)s->head_dim), 0}};
    op[2] = (struct infer_op){
        .kind = INFER_OP_PROJECT, .layer = l, .as.project = {INFER_VALUE_O, t + 4, none}};
    op[3] = (struct infer_op){.kind = INFER_OP_FFN_GATED,
                              .layer = l,
                              .norm = t + 5,
                              .as.ffn = {t + 6, t + 7, INFER_ACT_SILU}};
    op[4] = (struct infer_op){
        .kind = INFER_OP_PROJECT, .layer = l, .as.project = {INFER_VALUE_T, t + 8, none}};
}

/* False: rows of these types do not fit the shape. tied: the head is the embedding table. */
static inline bool synthetic_plan_init(struct synthetic_plan *ret, const struct infer_shape *s,
                                       uint32_t type, uint32_t head_type, bool tied)
{
    const uint32_t outer = tied ? 2 : 3, n_ops = 2 + 5 * s->n_layers;
    uint32_t n_tensors = outer + s->n_layers * SYNTHETIC_LAYER_TENSORS;
    bool fit = true;
    ret->tensors = calloc(n_tensors, sizeof *ret->tensors);
    ret->ops = calloc(n_ops, sizeof *ret->ops);
    if (!ret->tensors || !ret->ops)
        abort();
    synthetic_tensor(ret, 0, tied ? head_type : type, s->n_embd, s->n_vocab);
    synthetic_tensor(ret, 1, INFER_TYPE_F32, s->n_embd, 1);
    if (!tied)
        synthetic_tensor(ret, 2, head_type, s->n_embd, s->n_vocab);
    ret->ops[0] = (struct infer_op){.kind = INFER_OP_EMBED, .as.embed = {0, 1}};
    for (uint32_t l = 0; l < s->n_layers; l++)
        synthetic_layer(ret, s, type, l, outer + l * SYNTHETIC_LAYER_TENSORS, &ret->ops[1 + 5 * l]);
    ret->ops[n_ops - 1] =
        (struct infer_op){.kind = INFER_OP_HEAD, .norm = 1, .as.head = {tied ? 0 : 2, 1}};
    for (uint32_t i = 0; i < s->head_dim / 2; i++)
        ret->inv_freq[i] = powf(500000.0f, -2.0f * (float)i / (float)s->head_dim);
    for (uint32_t i = 0; i < n_tensors; i++)
        fit = fit && ret->tensors[i].row_bytes > 0;
    ret->plan = (struct infer_plan){.shape = *s,
                                    .rope = {.style = INFER_ROPE_PAIRS,
                                             .n_dims = s->head_dim,
                                             .inv_freq = ret->inv_freq,
                                             .magnitude = 1},
                                    .tensors = ret->tensors,
                                    .n_tensors = n_tensors,
                                    .ops = ret->ops,
                                    .n_ops = n_ops};
    return fit;
}

/* ---- the host -------------------------------------------------------------------------------- */

/* memory_take() and memory_give() of struct infer_host. */
static inline void *synthetic_take(void *ctx, size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return NULL;
    madvise(p, bytes, MADV_HUGEPAGE);
    return p;
}

static inline void synthetic_give(void *ctx, void *memory, size_t bytes)
{
    munmap(memory, bytes);
}

#endif
