/* cpu_rig.h: small models with random weights, on two backends at once, for test_cpu*.c.
 *
 * Everything goes through the backend's own interface (INFERD_BUILD says where the shared objects
 * are): a model is a plan with random rows in the file's encoding, which the CPU backend and the
 * reference load alike. */
#ifndef TESTS_KERNEL_CPU_RIG_H
#define TESTS_KERNEL_CPU_RIG_H

#include "inferd/backend.h"

#include "ref/blocks.h"
#include "ref/quant.h"

#include <dlfcn.h>
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define TENSORS_MAX 64u
#define ROWS_MAX    160u
#define PAGES_MAX   64u

static const uint32_t all_types[] = {
    INFER_TYPE_F32,   INFER_TYPE_F16,   INFER_TYPE_BF16,  INFER_TYPE_Q4_0,   INFER_TYPE_Q4_1,
    INFER_TYPE_Q5_0,  INFER_TYPE_Q5_1,  INFER_TYPE_Q8_0,  INFER_TYPE_Q2_K,   INFER_TYPE_Q3_K,
    INFER_TYPE_Q4_K,  INFER_TYPE_Q5_K,  INFER_TYPE_Q6_K,  INFER_TYPE_IQ4_NL, INFER_TYPE_IQ4_XS,
    INFER_TYPE_IQ3_S, INFER_TYPE_TQ1_0, INFER_TYPE_TQ2_0, INFER_TYPE_MXFP4,
};
#define N_TYPES (sizeof all_types / sizeof all_types[0])

static const char *const levels[] = {"isa=avx512,threads=2", "isa=avx2,threads=2",
                                     "isa=scalar,threads=2"};
#define N_LEVELS 3u

/* ---- random numbers and rows ----------------------------------------------------------------- */

static uint64_t seed = 1;

static inline uint32_t draw(void)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(seed >> 33);
}

/* About normal, deviation 1. */
static inline float draw_normal(void)
{
    float sum = 0;
    for (int i = 0; i < 12; i++)
        sum += (float)(draw() >> 7) * 0x1p-24f;
    return sum - 6.0f;
}

static inline void put_half(uint8_t *at, float scale)
{
    uint16_t half = ref_f32_to_f16(scale * (0.5f + (float)(draw() % 1024) / 1024.0f));
    memcpy(at, &half, 2);
}

/* One random block: every bit of codes and small scales drawn, the half-precision scales sane. */
static inline void draw_block(uint32_t type, uint8_t *block, float scale)
{
    uint32_t size = ref_block_bytes(type);
    for (uint32_t i = 0; i < size; i++)
        block[i] = (uint8_t)(draw() >> 9);
    switch (type) {
    case INFER_TYPE_Q4_1:
    case INFER_TYPE_Q5_1:
        put_half(block, scale / 8);
        put_half(block + 2, draw() % 2 ? scale : -scale);
        break;
    case INFER_TYPE_Q4_K:
    case INFER_TYPE_Q5_K:
        put_half(block, scale / 256);
        put_half(block + 2, scale / 32);
        break;
    case INFER_TYPE_Q2_K:
        put_half(block + offsetof(struct ref_q2_k, d), scale / 16);
        put_half(block + offsetof(struct ref_q2_k, dmin), scale / 16);
        break;
    case INFER_TYPE_Q3_K:
    case INFER_TYPE_TQ1_0:
    case INFER_TYPE_TQ2_0:
    case INFER_TYPE_Q6_K: /* d stands last */
        put_half(block + size - 2, type == INFER_TYPE_Q6_K ? scale / 1024 : scale / 16);
        break;
    case INFER_TYPE_MXFP4:
        block[0] = (uint8_t)(118 + draw() % 8);
        break;
    case INFER_TYPE_IQ4_XS:
        put_half(block, scale / 1024);
        break;
    default: /* d stands first */
        put_half(block,
                 type == INFER_TYPE_Q8_0 || type == INFER_TYPE_IQ4_NL ? scale / 64 : scale / 8);
        break;
    }
}

static inline void draw_row(uint32_t type, uint8_t *row, uint64_t n, float scale, float centre)
{
    if (ref_block(type) == 1) {
        uint64_t size = ref_row_bytes(type, 1);
        for (uint64_t k = 0; k < n; k++) {
            float value = centre + scale * draw_normal();
            ref_encode_row(type, &value, row + size * k, 1);
        }
        return;
    }
    for (uint64_t k = 0; k < n; k += ref_block(type))
        draw_block(type, row + ref_row_bytes(type, k), scale);
}

/* ---- a model and the backends that run it ---------------------------------------------------- */

struct model {
    struct infer_shape shape;
    struct infer_tensor tensors[TENSORS_MAX];
    uint8_t *data[TENSORS_MAX];
    struct infer_op ops[24];
    float inv_freq[64];
    struct infer_plan plan;
};

struct loaded {
    void *so;
    const struct infer_backend_api *api;
    struct infer_host host;
    struct infer_backend *backend;
    struct infer_backend_model *model;
    const struct model *of;
    uint64_t taken, estimated;
};

static inline void on_log(void *ctx, int level, const char *text)
{
}

static inline void *on_take(void *ctx, size_t bytes)
{
    struct loaded *l = ctx;
    void *p = NULL;
    l->taken += bytes;
    if (posix_memalign(&p, bytes < INFER_PLACE_BYTES ? 64 : INFER_PLACE_BYTES, bytes) != 0)
        return NULL;
    return memset(p, 0, bytes);
}

static inline void on_give(void *ctx, void *memory, size_t bytes)
{
    struct loaded *l = ctx;
    l->taken -= bytes;
    free(memory);
}

static const uint32_t cpus[8] = {0, 1, 2, 3, 4, 5, 6, 7};

/* The machine that backends are opened on from here on: n_cpus processors and their nodes. */
static struct {
    uint32_t n_cpus, n_nodes;
    const uint32_t *nodes;
    int (*memory_place)(void *ctx, void *memory, size_t bytes, uint32_t node);
} machine = {.n_cpus = 2};

static struct infer_state_config state_config = {.page_tokens = 16,
                                                 .n_pages = PAGES_MAX,
                                                 .k_type = INFER_TYPE_F16,
                                                 .v_type = INFER_TYPE_F16,
                                                 .max_rows = ROWS_MAX,
                                                 .max_seqs = 8,
                                                 .max_outputs = ROWS_MAX};

/* How the models that are loaded from here on keep keys and values. */
static inline void keep(uint32_t k_type, uint32_t v_type)
{
    state_config.k_type = k_type;
    state_config.v_type = v_type;
}

/* -ENOTSUP where the machine lacks what the options ask for. */
static inline int open_backend(struct loaded *l, const char *name, const char *options)
{
    const char *build = getenv("INFERD_BUILD");
    char path[512];
    memset(l, 0, sizeof *l);
    snprintf(path, sizeof path, "%s/inferd-backend-%s.so", build ? build : "build", name);
    l->so = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!l->so)
        fail_msg("%s", dlerror());
    infer_backend_entry entry = NULL;
    *(void **)&entry = dlsym(l->so, INFER_BACKEND_SYMBOL);
    assert_non_null(entry);
    l->api = entry();
    assert_int_equal(l->api->abi, INFER_BACKEND_ABI);
    l->host = (struct infer_host){.abi = INFER_BACKEND_ABI,
                                  .ctx = l,
                                  .log = on_log,
                                  .memory_take = on_take,
                                  .memory_give = on_give,
                                  .cpus = cpus,
                                  .n_cpus = machine.n_cpus,
                                  .nodes = machine.nodes,
                                  .n_nodes = machine.n_nodes,
                                  .memory_place = machine.memory_place};
    int r = l->api->open(&l->host, options, &l->backend);
    if (r < 0)
        dlclose(l->so);
    return r;
}

static inline void load(struct loaded *l, const struct model *m)
{
    struct infer_estimate e;
    uint64_t before = l->taken; /* a backend may keep something of its own */
    l->of = m;
    int r = l->api->estimate(l->backend, &m->plan, &state_config, &e);
    if (r < 0)
        fail_msg("estimate: %s", l->api->last_error(l->backend));
    assert_int_equal(l->taken, before);
    r = l->api->model_open(l->backend, &m->plan, &state_config, &l->model);
    if (r < 0)
        fail_msg("model_open: %s", l->api->last_error(l->backend));
    l->estimated = e.weights_bytes;
    for (uint32_t i = 0; i < m->plan.n_tensors; i++) {
        const struct infer_tensor *t = &m->tensors[i];
        /* Uneven pieces, as a stream would bring them. */
        for (uint64_t row = 0, n; row < t->n_rows; row += n) {
            n = t->n_rows - row < 7 ? t->n_rows - row : 7;
            assert_int_equal(
                l->api->tensor_write(l->model, i, row, n, m->data[i] + t->row_bytes * row), 0);
        }
    }
    assert_int_equal(l->api->model_ready(l->model), 0);
}

static inline void unload(struct loaded *l)
{
    l->api->model_close(l->model);
    l->api->close(l->backend);
    assert_int_equal(l->taken, 0);
    dlclose(l->so);
}

static inline void add_tensor(struct model *m, uint32_t i, uint32_t type, uint64_t cols,
                              uint64_t rows, float centre)
{
    struct infer_tensor *t = &m->tensors[i];
    assert_true(i < TENSORS_MAX);
    snprintf(t->name, sizeof t->name, "t%u", i);
    t->type = type;
    t->n_dims = 2;
    t->ne[0] = cols;
    t->ne[1] = rows;
    t->ne[2] = t->ne[3] = 1;
    t->row_bytes = ref_row_bytes(type, cols);
    t->n_rows = rows;
    assert_true(t->row_bytes > 0);
    m->data[i] = malloc(t->row_bytes * rows);
    assert_non_null(m->data[i]);
    float scale = centre != 0 ? 0.2f : 1.0f / sqrtf((float)cols);
    for (uint64_t r = 0; r < rows; r++)
        draw_row(type, m->data[i] + r * t->row_bytes, cols, scale, centre);
    if (m->plan.n_tensors <= i)
        m->plan.n_tensors = i + 1;
}

static inline void free_model(struct model *m)
{
    for (uint32_t i = 0; i < m->plan.n_tensors; i++)
        free(m->data[i]);
}

static inline void finish_plan(struct model *m, uint32_t n_ops)
{
    m->plan.shape = m->shape;
    m->plan.tensors = m->tensors;
    m->plan.ops = m->ops;
    m->plan.n_ops = n_ops;
    if (!m->plan.rope.inv_freq)
        m->plan.rope = (struct infer_rope){.n_dims = 0, .inv_freq = m->inv_freq, .magnitude = 1};
}

/* Rows of tokens[first ..] of one sequence; its logits, of every row, to logits. */
struct part {
    uint32_t position, n;
    const int32_t *tokens;
    const uint32_t *pages;
    float *logits; /* NULL: not wanted */
};

/* On models that are parts of one, each handing x to the next. */
static inline void run_chain(struct loaded *const *chain, uint32_t n_chain, float *x,
                             const struct part *parts, uint32_t n_parts)
{
    static int32_t tokens[ROWS_MAX];
    static struct infer_batch_output outputs[ROWS_MAX];
    struct infer_batch_seq seqs[8];
    struct infer_batch batch = {.tokens = tokens, .seqs = seqs, .outputs = outputs, .x = x};
    for (uint32_t i = 0; i < n_parts; i++) {
        const struct part *p = &parts[i];
        seqs[i] = (struct infer_batch_seq){.first_row = batch.n_rows,
                                           .n_rows = p->n,
                                           .position = p->position,
                                           .n_pages = (p->position + p->n + 15) / 16,
                                           .pages = p->pages};
        for (uint32_t r = 0; r < p->n; r++) {
            if (p->logits)
                outputs[batch.n_outputs++] = (struct infer_batch_output){
                    .row = batch.n_rows,
                    .target = -1,
                    .logits = p->logits + (size_t)r * chain[0]->of->shape.n_vocab};
            tokens[batch.n_rows++] = p->tokens[r];
        }
    }
    batch.n_seqs = n_parts;
    const uint32_t n_outputs = batch.n_outputs;
    for (uint32_t i = 0; i < n_chain; i++) {
        const struct loaded *l = chain[i];
        batch.n_outputs = i + 1 < n_chain ? 0 : n_outputs;
        int r = l->api->run(l->model, &batch);
        if (r < 0)
            fail_msg("run: %s", l->api->last_error(l->backend));
    }
}

static inline void run_batch(struct loaded *l, const struct part *parts, uint32_t n_parts)
{
    run_chain(&l, 1, NULL, parts, n_parts);
}

static inline void level_or_skip(const char *options)
{
    struct loaded l;
    int r = open_backend(&l, "cpu", options);
    if (r == -ENOTSUP) {
        print_message("skip - %s: this processor does not have it\n", options);
        skip();
    }
    assert_int_equal(r, 0);
    l.api->close(l.backend);
    dlclose(l.so);
}

/* ---- whole models ---------------------------------------------------------------------------- */

struct recipe {
    const char *name;
    uint32_t type, v_type, head_type; /* of the matrices; the values' own; the tied head's */
    uint32_t n_heads, n_kv_heads, head_dim, head_dim_v;
    uint32_t style, rope_dims, window;
    bool biases, head_norms, gelu;
    double tolerance; /* relative error of logits against the reference */
};

/* Tolerances: both sides cache keys and values as F16, and a value that lies within float32 noise
 * of the middle of two half numbers may go either way: 2^-11 of a few numbers, well under 1e-3 of
 * the logits. 8-bit codes of x: half a percent per product (see check_products), which the seven
 * products of a layer and the residual stream bring to about one percent of the logits. */
static const struct recipe recipes[] = {
    {"f32 pairs", INFER_TYPE_F32, INFER_TYPE_F32, INFER_TYPE_F32, 4, 2, 64, 64, INFER_ROPE_PAIRS,
     64, 0, false, false, false, 1e-3},
    {"bf16 halves biases", INFER_TYPE_BF16, INFER_TYPE_BF16, INFER_TYPE_BF16, 4, 4, 40, 40,
     INFER_ROPE_HALVES, 32, 0, true, false, false, 1e-3},
    {"f16 head norms odd sizes", INFER_TYPE_F16, INFER_TYPE_F32, INFER_TYPE_BF16, 6, 2, 27, 19,
     INFER_ROPE_HALVES, 20, 0, false, true, true, 1e-3},
    {"f32 window many heads", INFER_TYPE_F32, INFER_TYPE_F32, INFER_TYPE_F16, 14, 2, 32, 32,
     INFER_ROPE_PAIRS, 32, 37, false, false, false, 1e-3},
    {"q6_k", INFER_TYPE_Q6_K, INFER_TYPE_Q6_K, INFER_TYPE_Q6_K, 4, 2, 64, 64, INFER_ROPE_PAIRS, 64,
     0, false, false, false, 4e-2},
    {"q4_k with q6_k, mixed", INFER_TYPE_Q4_K, INFER_TYPE_Q6_K, INFER_TYPE_Q8_0, 4, 2, 64, 64,
     INFER_ROPE_PAIRS, 64, 0, true, false, false, 4e-2},
    {"q4_0 with q8_0 and f16", INFER_TYPE_Q4_0, INFER_TYPE_F16, INFER_TYPE_Q8_0, 4, 1, 64, 64,
     INFER_ROPE_HALVES, 64, 0, false, true, false, 4e-2},
};
#define N_RECIPES (sizeof recipes / sizeof recipes[0])

/* For tests of what sequences keep, which say in what type the matrices are: heads of 64, of 32
 * with many queries to a key and a window, of 128. And of keys that move: both styles, all
 * dimensions and some; the magnitude of 1.125 must not count again; a window of 37 rows lets a
 * sequence be moved as a whole. */
static const struct recipe kept_recipes[] = {
    {"64", 0, 0, 0, 4, 2, 64, 64, INFER_ROPE_PAIRS, 64, 0, false, false, false, 0},
    {"32, window", 0, 0, 0, 14, 2, 32, 32, INFER_ROPE_PAIRS, 32, 37, false, true, false, 0},
    {"128", 0, 0, 0, 4, 1, 128, 128, INFER_ROPE_HALVES, 64, 0, true, false, false, 0},
};
#define N_KEPT (sizeof kept_recipes / sizeof kept_recipes[0])
static const struct recipe moved_recipes[] = {
    {"pairs of 64", 0, 0, 0, 4, 2, 64, 64, INFER_ROPE_PAIRS, 64, 37, false, false, false, 0},
    {"halves, 40 of 64", 0, 0, 0, 4, 2, 64, 32, INFER_ROPE_HALVES, 40, 37, true, true, false, 0},
    {"pairs, 18 of 32", 0, 0, 0, 6, 2, 32, 64, INFER_ROPE_PAIRS, 18, 37, false, false, false, 0},
    {"halves of 96", 0, 0, 0, 3, 1, 96, 96, INFER_ROPE_HALVES, 96, 37, false, false, false, 0},
};
#define N_MOVED (sizeof moved_recipes / sizeof moved_recipes[0])

static inline struct recipe recipe_in(const struct recipe *recipe, uint32_t type)
{
    struct recipe r = *recipe;
    r.type = r.v_type = r.head_type = type;
    return r;
}

static inline void add_layer(struct model *m, const struct recipe *c, uint32_t l, uint32_t *next)
{
    const struct infer_shape *s = &m->shape;
    struct infer_op *op = &m->ops[1 + 5 * l];
    const uint32_t none = INFER_TENSOR_NONE;
    uint32_t t = *next, q = c->n_heads * c->head_dim, k = c->n_kv_heads * c->head_dim;
    uint32_t v = c->n_kv_heads * c->head_dim_v;

    add_tensor(m, t, INFER_TYPE_F32, s->n_embd, 1, 1);
    add_tensor(m, t + 1, c->type, s->n_embd, q, 0);
    add_tensor(m, t + 2, c->type, s->n_embd, k, 0);
    add_tensor(m, t + 3, c->v_type, s->n_embd, v, 0);
    add_tensor(m, t + 4, c->type, c->n_heads * c->head_dim_v, s->n_embd, 0);
    add_tensor(m, t + 5, INFER_TYPE_F32, s->n_embd, 1, 1);
    add_tensor(m, t + 6, c->type, s->n_embd, s->n_ffn, 0);
    add_tensor(m, t + 7, c->type, s->n_embd, s->n_ffn, 0);
    add_tensor(m, t + 8, c->type, s->n_ffn, s->n_embd, 0);
    *next = t + 9;
    for (uint32_t i = 0; i < 5; i++)
        op[i].layer = l;
    op[0].kind = INFER_OP_QKV;
    op[0].norm = t;
    op[0].as.qkv.wq = t + 1;
    op[0].as.qkv.wk = t + 2;
    op[0].as.qkv.wv = t + 3;
    op[0].as.qkv.bq = op[0].as.qkv.bk = op[0].as.qkv.bv = none;
    op[0].as.qkv.q_norm = op[0].as.qkv.k_norm = none;
    op[2].as.project.b = op[4].as.project.b = none;
    if (c->biases) {
        add_tensor(m, *next, INFER_TYPE_F32, q, 1, 0.1f);
        add_tensor(m, *next + 1, INFER_TYPE_F32, k, 1, 0.1f);
        add_tensor(m, *next + 2, INFER_TYPE_F32, v, 1, 0.1f);
        add_tensor(m, *next + 3, INFER_TYPE_F32, s->n_embd, 1, 0.1f);
        op[0].as.qkv.bq = *next;
        op[0].as.qkv.bk = *next + 1;
        op[0].as.qkv.bv = *next + 2;
        op[2].as.project.b = op[4].as.project.b = *next + 3;
        *next += 4;
    }
    if (c->head_norms) {
        add_tensor(m, *next, INFER_TYPE_F32, c->head_dim, 1, 1);
        add_tensor(m, *next + 1, INFER_TYPE_F32, c->head_dim, 1, 1);
        op[0].as.qkv.q_norm = *next;
        op[0].as.qkv.k_norm = *next + 1;
        *next += 2;
    }
    op[1].kind = INFER_OP_ATTEND;
    op[1].as.attend.scale = 1.0f / sqrtf((float)c->head_dim);
    op[1].as.attend.window = c->window;
    op[2].kind = op[4].kind = INFER_OP_PROJECT;
    op[2].as.project.from = INFER_VALUE_O;
    op[2].as.project.w = t + 4;
    op[3].kind = INFER_OP_FFN_GATED;
    op[3].norm = t + 5;
    op[3].as.ffn.gate = t + 6;
    op[3].as.ffn.up = t + 7;
    op[3].as.ffn.activation = c->gelu ? INFER_ACT_GELU_TANH : INFER_ACT_SILU;
    op[4].as.project.from = INFER_VALUE_T;
    op[4].as.project.w = t + 8;
}

static inline void make_model_of(struct model *m, const struct recipe *c, uint32_t n_layers)
{
    uint32_t next = 2;
    memset(m, 0, sizeof *m);
    seed = 77;
    m->shape = (struct infer_shape){.n_layers = n_layers,
                                    .n_embd = 256,
                                    .n_ffn = 256,
                                    .n_vocab = 75,
                                    .n_heads = c->n_heads,
                                    .n_kv_heads = c->n_kv_heads,
                                    .head_dim = c->head_dim,
                                    .head_dim_v = c->head_dim_v,
                                    .n_context = 1024,
                                    .norm_eps = 1e-5f};
    m->plan.rope = (struct infer_rope){
        .style = c->style, .n_dims = c->rope_dims, .inv_freq = m->inv_freq, .magnitude = 1.125f};
    for (uint32_t i = 0; i < c->rope_dims / 2; i++)
        m->inv_freq[i] = powf(100.0f, -2.0f * (float)i / (float)c->rope_dims);
    add_tensor(m, 0, c->head_type, m->shape.n_embd, m->shape.n_vocab, 0);
    add_tensor(m, 1, INFER_TYPE_F32, m->shape.n_embd, 1, 1);
    m->ops[0] = (struct infer_op){.kind = INFER_OP_EMBED, .as.embed = {.table = 0, .scale = 3}};
    for (uint32_t l = 0; l < n_layers; l++)
        add_layer(m, c, l, &next);
    m->ops[1 + 5 * n_layers] =
        (struct infer_op){.kind = INFER_OP_HEAD, .norm = 1, .as.head = {.w = 0, .scale = 0.5f}};
    finish_plan(m, 2 + 5 * n_layers);
}

static inline void make_model(struct model *m, const struct recipe *c)
{
    make_model_of(m, c, 2);
}

/* A sequence of 64 rows loses rows 16 .. 31, and goes on for as many. */
static inline void slide(struct loaded *l, const int32_t *tokens, bool shifts, float *ret)
{
    static const uint32_t pages[] = {11, 12, 13, 14}, after[] = {11, 13, 14, 15};
    run_batch(l, &(struct part){0, 64, tokens, pages, NULL}, 1);
    for (uint32_t p = 13; p < 15 && shifts; p++)
        assert_int_equal(l->api->page_shift(l->model, p, -16), 0);
    run_batch(l, &(struct part){48, 16, tokens + 64, after, ret}, 1);
}

static inline double relative_error(const float *a, const float *b, size_t n)
{
    double error = 0, power = 0;
    for (size_t i = 0; i < n; i++) {
        error += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        power += (double)b[i] * b[i];
    }
    return power > 0 ? sqrt(error / power) : INFINITY;
}

static inline void shuffled_pages(uint32_t pages[PAGES_MAX])
{
    for (uint32_t i = 0; i < PAGES_MAX; i++)
        pages[i] = i;
    for (uint32_t i = PAGES_MAX - 1; i > 0; i--) {
        uint32_t j = draw() % (i + 1), other = pages[j];
        pages[j] = pages[i];
        pages[i] = other;
    }
}

/* What a sampled token of a sequence is drawn with: of its seed and its position alone. */
static inline double uniform_at(uint64_t of_seed, uint32_t position)
{
    uint64_t h = (of_seed * 1000003u + position) * 0x9e3779b97f4a7c15u;
    return (double)((h ^ h >> 29) >> 11) * 0x1p-53;
}

static inline void draw_tokens(int32_t *tokens, uint32_t n, uint32_t n_vocab)
{
    for (uint32_t i = 0; i < n; i++)
        tokens[i] = (int32_t)(draw() % n_vocab);
}

/* 150 tokens: two chunks of the attention, and partial pages and tiles at every end. */
#define LENGTH 150u

/* The reference's logits of all rows of a sequence. For each key that model, tokens and state are
 * the same for, it computes them once. */
#define REF_KEYS 32u
static inline const float *ref_logits(uint32_t key, const struct model *m, const int32_t *tokens,
                                      const uint32_t *pages)
{
    static float *known[REF_KEYS];
    struct loaded ref;
    assert_true(key < REF_KEYS);
    if (known[key])
        return known[key];
    float *logits = malloc((size_t)LENGTH * m->shape.n_vocab * sizeof *logits);
    assert_non_null(logits);
    assert_int_equal(open_backend(&ref, "ref", ""), 0);
    load(&ref, m);
    run_batch(&ref, &(struct part){0, LENGTH, tokens, pages, logits}, 1);
    unload(&ref);
    known[key] = logits;
    return logits;
}

/* The logits of a sequence fed in pieces of the given sizes, the last repeated. */
static inline void run_pieces(struct loaded *l, const int32_t *tokens, const uint32_t *pages,
                              const uint32_t *pieces, float *logits)
{
    for (uint32_t at = 0, i = 0; at < LENGTH; i += pieces[i + 1] != 0) {
        uint32_t n = LENGTH - at < pieces[i] ? LENGTH - at : pieces[i];
        run_batch(
            l,
            &(struct part){at, n, tokens + at, pages, logits + (size_t)at * l->of->shape.n_vocab},
            1);
        at += n;
    }
}

/* Beside others: a short sequence that decodes, and one that prefills in pieces of 5. */
static inline void run_mixed(struct loaded *l, const int32_t *tokens, const uint32_t *pages,
                             float *logits)
{
    uint32_t other = 0;
    for (uint32_t at = 0; at < LENGTH;) {
        uint32_t n = at < 60 ? 1 : 11;
        if (n > LENGTH - at)
            n = LENGTH - at;
        struct part parts[3] = {
            {other, 1, tokens + other, pages + 20, NULL},
            {at, n, tokens + at, pages, logits + (size_t)at * l->of->shape.n_vocab},
            {5 * other, 5, tokens + other, pages + 30, NULL},
        };
        run_batch(l, parts, 3);
        at += n;
        other = (other + 1) % 50;
    }
}

#endif
