/* test_cpu.c: the CPU backend against the reference, at every instruction level of this machine.
 *
 * Three rigs, all through the backend's own interface (INFERD_BUILD says where the shared objects
 * are): a head alone (rows of an F32 embedding times one matrix) for the products of each tensor
 * type, small two-layer models beside kernels/ref, and the same models run in different batches,
 * which must give the same bits. */
#include "inferd/backend.h"

#include "cpu/simd_plain.h"

#include "cpu/exp.h"
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

#define TENSORS_MAX 40u
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

static uint32_t draw(void)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(seed >> 33);
}

/* About normal, deviation 1. */
static float draw_normal(void)
{
    float sum = 0;
    for (int i = 0; i < 12; i++)
        sum += (float)(draw() >> 7) * 0x1p-24f;
    return sum - 6.0f;
}

static void put_half(uint8_t *at, float scale)
{
    uint16_t half = ref_f32_to_f16(scale * (0.5f + (float)(draw() % 1024) / 1024.0f));
    memcpy(at, &half, 2);
}

/* One random block: every bit of codes and small scales drawn, the half-precision scales sane. */
static void draw_block(uint32_t type, uint8_t *block, float scale)
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

static void draw_row(uint32_t type, uint8_t *row, uint64_t n, float scale, float centre)
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

static void on_log(void *ctx, int level, const char *text)
{
}

static void *on_take(void *ctx, size_t bytes)
{
    struct loaded *l = ctx;
    void *p = NULL;
    l->taken += bytes;
    if (posix_memalign(&p, 64, bytes) != 0)
        return NULL;
    return memset(p, 0, bytes);
}

static void on_give(void *ctx, void *memory, size_t bytes)
{
    struct loaded *l = ctx;
    l->taken -= bytes;
    free(memory);
}

static const uint32_t cpus[8] = {0, 1, 2, 3, 4, 5, 6, 7};
static const struct infer_state_config state_config = {.page_tokens = 16,
                                                       .n_pages = PAGES_MAX,
                                                       .k_type = INFER_TYPE_F16,
                                                       .v_type = INFER_TYPE_F16,
                                                       .max_rows = ROWS_MAX,
                                                       .max_seqs = 8,
                                                       .max_outputs = ROWS_MAX};

/* -ENOTSUP where the machine lacks what the options ask for. */
static int open_backend(struct loaded *l, const char *name, const char *options)
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
                                  .n_cpus = 2};
    int r = l->api->open(&l->host, options, &l->backend);
    if (r < 0)
        dlclose(l->so);
    return r;
}

static void load(struct loaded *l, const struct model *m)
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

static void unload(struct loaded *l)
{
    l->api->model_close(l->model);
    l->api->close(l->backend);
    assert_int_equal(l->taken, 0);
    dlclose(l->so);
}

static void add_tensor(struct model *m, uint32_t i, uint32_t type, uint64_t cols, uint64_t rows,
                       float centre)
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

static void free_model(struct model *m)
{
    for (uint32_t i = 0; i < m->plan.n_tensors; i++)
        free(m->data[i]);
}

static void finish_plan(struct model *m, uint32_t n_ops)
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

static void run_batch(struct loaded *l, const struct part *parts, uint32_t n_parts)
{
    static int32_t tokens[ROWS_MAX];
    static struct infer_batch_output outputs[ROWS_MAX];
    struct infer_batch_seq seqs[8];
    struct infer_batch batch = {.tokens = tokens, .seqs = seqs, .outputs = outputs};
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
                    .logits = p->logits + (size_t)r * l->of->shape.n_vocab};
            tokens[batch.n_rows++] = p->tokens[r];
        }
    }
    batch.n_seqs = n_parts;
    int r = l->api->run(l->model, &batch);
    if (r < 0)
        fail_msg("run: %s", l->api->last_error(l->backend));
}

/* ---- products -------------------------------------------------------------------------------- */

/* logits = W rms(x): a plan of an embedding and a head. */
static void make_head(struct model *m, uint32_t type, uint32_t cols, uint32_t rows)
{
    memset(m, 0, sizeof *m);
    m->shape = (struct infer_shape){.n_layers = 1,
                                    .n_embd = cols,
                                    .n_ffn = 32,
                                    .n_vocab = rows,
                                    .n_heads = 1,
                                    .n_kv_heads = 1,
                                    .head_dim = 16,
                                    .head_dim_v = 16,
                                    .n_context = 1024,
                                    .norm_eps = 1e-5f};
    add_tensor(m, 0, INFER_TYPE_F32, cols, rows, 0);
    add_tensor(m, 1, INFER_TYPE_F32, cols, 1, 1);
    add_tensor(m, 2, type, cols, rows, 0);
    m->ops[0] = (struct infer_op){.kind = INFER_OP_EMBED, .as.embed = {.table = 0, .scale = 1}};
    m->ops[1] =
        (struct infer_op){.kind = INFER_OP_HEAD, .norm = 1, .as.head = {.w = 2, .scale = 1}};
    finish_plan(m, 2);
}

/* What one output may differ by, for x in 32-column blocks of 8-bit codes with step d = max / 127:
 * each x is off by at most d / 2, so the sum by at most sum |w| d / 2. Float formats, and the sums
 * themselves: cols roundings of partial sums, each under 2^-24 of sum |w x|, in two chains; 1e-5
 * covers 168 of them in one chain and, as they do not all point one way, many times more. Q2_K is
 * also rounded to 8 bits itself: at most 1/254 of the largest |w| of its block. */
static double allowed(uint32_t type, const float *w, const double *h, uint32_t cols)
{
    double bound = 0, products = 0;
    for (uint32_t b = 0; b < cols; b += 32) {
        double largest = 0, top_w = 0, sum_w = 0, sum_h = 0;
        for (uint32_t k = b; k < b + 32 && k < cols; k++) {
            largest = fmax(largest, fabs(h[k]));
            top_w = fmax(top_w, fabs((double)w[k]));
            sum_w += fabs((double)w[k]);
            sum_h += fabs(h[k]);
            products += fabs(w[k] * h[k]);
        }
        if (ref_block(type) > 1)
            bound += sum_w * largest / 254 * 1.0001;
        if (type == INFER_TYPE_Q2_K) /* and the two errors' product */
            bound += top_w / 254 * (sum_h + 32 * largest / 254) * 1.01;
    }
    return bound + 1e-5 * products;
}

/* rms(x) * norm of a token, in double. */
static void normed(const struct model *m, int32_t token, double *ret)
{
    const uint32_t cols = m->shape.n_embd;
    const float *x = (const float *)(const void *)m->data[0] + (size_t)cols * (size_t)token;
    const float *norm = (const float *)(const void *)m->data[1];
    double sum = 0;
    for (uint32_t k = 0; k < cols; k++)
        sum += (double)x[k] * x[k];
    for (uint32_t k = 0; k < cols; k++)
        ret[k] = x[k] / sqrt(sum / cols + 1e-5) * norm[k];
}

static void check_products(struct loaded *l, const struct model *m, uint32_t n)
{
    const uint32_t cols = m->shape.n_embd, rows = m->shape.n_vocab;
    const uint32_t type = m->tensors[2].type;
    static const uint32_t pages[PAGES_MAX];
    int32_t tokens[64];
    float *logits = malloc(sizeof *logits * n * rows), *w = malloc(sizeof *w * cols);
    double *h = malloc(sizeof *h * cols * n), error = 0, power = 0;
    assert_true(logits && w && h && n <= 64);
    for (uint32_t i = 0; i < n; i++) {
        tokens[i] = (int32_t)(draw() % rows);
        normed(m, tokens[i], h + (size_t)cols * i);
    }
    run_batch(l, &(struct part){0, n, tokens, pages, logits}, 1);

    for (uint32_t r = 0; r < rows; r++) {
        ref_decode_row(type, m->data[2] + m->tensors[2].row_bytes * r, w, cols);
        for (uint32_t i = 0; i < n; i++) {
            const double *x = h + (size_t)cols * i;
            double want = 0, got = logits[(size_t)rows * i + r], w2 = 0, h2 = 0;
            for (uint32_t k = 0; k < cols; k++) {
                want += w[k] * x[k];
                w2 += (double)w[k] * w[k];
                h2 += x[k] * x[k];
            }
            if (!(fabs(got - want) <= allowed(type, w, x, cols)))
                fail_msg("%s %u x %u, row %u of %u, output %u: %g, should be %g",
                         ref_type_name(type), rows, cols, i, n, r, got, want);
            error += (got - want) * (got - want);
            power += w2 * h2 / cols;
        }
    }
    /* Rounding to steps of d leaves d / sqrt(12) on average: with d = 2.2 deviations / 127, half a
     * percent of |w| |h| / sqrt(cols), which is what the sum of cols independent products comes to.
     * Four times that, for blocks whose largest number stands out, still shows a systematic error
     * that the bound of the worst case would not. */
    double limit = ref_block(type) == 1 ? 1e-5 : type == INFER_TYPE_Q2_K ? 3e-2 : 2e-2;
    if (rows * n >= 200 && !(sqrt(error / power) < limit))
        fail_msg("%s %u x %u: relative error %g", ref_type_name(type), rows, cols,
                 sqrt(error / power));
    free(logits);
    free(w);
    free(h);
}

/* Sizes around the tile of 16 rows and of 8 rows of x; columns of one and several blocks. */
static void products_of(const char *options, uint32_t type)
{
    static const uint32_t blocks[] = {1, 3, 8}, rows[] = {1, 37, 100};
    static const uint32_t batches[] = {1, 2, 3, 7, 8, 13, 40};
    for (size_t c = 0; c < 3; c++) {
        uint32_t block = ref_block(type);
        uint32_t cols = block == 1 ? 17 * blocks[c] + 4 : block * blocks[c];
        if (block == 256 && blocks[c] == 8)
            cols = 512;
        for (size_t r = 0; r < 3; r++) {
            struct loaded l;
            struct model m;
            if (open_backend(&l, "cpu", options) < 0)
                return;
            make_head(&m, type, cols, rows[r]);
            load(&l, &m);
            for (size_t i = 0; i < sizeof batches / sizeof batches[0]; i++)
                if (r == 1 || i % 2 == 0)
                    check_products(&l, &m, batches[i]);
            unload(&l);
            free_model(&m);
        }
    }
}

static void level_or_skip(const char *options)
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

static void test_products(void **state)
{
    const char *options = *state;
    level_or_skip(options);
    for (size_t i = 0; i < N_TYPES; i++)
        products_of(options, all_types[i]);
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

static void add_layer(struct model *m, const struct recipe *c, uint32_t l, uint32_t *next)
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

static void make_model(struct model *m, const struct recipe *c)
{
    uint32_t next = 2;
    memset(m, 0, sizeof *m);
    seed = 77;
    m->shape = (struct infer_shape){.n_layers = 2,
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
    for (uint32_t l = 0; l < 2; l++)
        add_layer(m, c, l, &next);
    m->ops[11] =
        (struct infer_op){.kind = INFER_OP_HEAD, .norm = 1, .as.head = {.w = 0, .scale = 0.5f}};
    finish_plan(m, 12);
}

static double relative_error(const float *a, const float *b, size_t n)
{
    double error = 0, power = 0;
    for (size_t i = 0; i < n; i++) {
        error += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        power += (double)b[i] * b[i];
    }
    return power > 0 ? sqrt(error / power) : INFINITY;
}

static void shuffled_pages(uint32_t pages[PAGES_MAX])
{
    for (uint32_t i = 0; i < PAGES_MAX; i++)
        pages[i] = i;
    for (uint32_t i = PAGES_MAX - 1; i > 0; i--) {
        uint32_t j = draw() % (i + 1), other = pages[j];
        pages[j] = pages[i];
        pages[i] = other;
    }
}

static void draw_tokens(int32_t *tokens, uint32_t n, uint32_t n_vocab)
{
    for (uint32_t i = 0; i < n; i++)
        tokens[i] = (int32_t)(draw() % n_vocab);
}

/* 150 tokens: two chunks of the attention, and partial pages and tiles at every end. */
#define LENGTH 150u

static void test_models(void **state)
{
    const char *options = *state;
    level_or_skip(options);
    for (size_t i = 0; i < N_RECIPES; i++) {
        struct loaded ref, cpu;
        struct model m;
        uint32_t pages[PAGES_MAX];
        int32_t tokens[LENGTH];
        make_model(&m, &recipes[i]);
        size_t n = (size_t)LENGTH * m.shape.n_vocab;
        float *want = malloc(n * sizeof *want), *got = malloc(n * sizeof *got);
        assert_true(want && got);
        draw_tokens(tokens, LENGTH, m.shape.n_vocab);
        shuffled_pages(pages);
        assert_int_equal(open_backend(&ref, "ref", ""), 0);
        assert_int_equal(open_backend(&cpu, "cpu", options), 0);
        load(&ref, &m);
        load(&cpu, &m);
        run_batch(&ref, &(struct part){0, LENGTH, tokens, pages, want}, 1);
        run_batch(&cpu, &(struct part){0, LENGTH, tokens, pages, got}, 1);
        double error = relative_error(got, want, n);
        print_message("%s, %s: relative error of the logits %.2g\n", options, recipes[i].name,
                      error);
        if (!(error < recipes[i].tolerance))
            fail_msg("%s: relative error %g", recipes[i].name, error);
        unload(&ref);
        unload(&cpu);
        free_model(&m);
        free(want);
        free(got);
    }
}

/* ---- the same bits in every batch ------------------------------------------------------------ */

/* The logits of a sequence fed in pieces of the given sizes, the last repeated. */
static void run_pieces(struct loaded *l, const int32_t *tokens, const uint32_t *pages,
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
static void run_mixed(struct loaded *l, const int32_t *tokens, const uint32_t *pages, float *logits)
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

static void test_same_bits(void **state)
{
    const char *options = *state;
    static const uint32_t ones[] = {1, 0}, uneven[] = {7, 16, 33, 2, 3, 5, 0}, tens[] = {100, 0};
    level_or_skip(options);
    bool slow = strstr(options, "scalar"); /* two recipes show what is its own */
    for (size_t i = slow ? 2 : 0; i < N_RECIPES; i += slow ? 3 : 1) {
        struct loaded l;
        struct model m;
        uint32_t pages[PAGES_MAX];
        int32_t tokens[LENGTH];
        make_model(&m, &recipes[i]);
        size_t n = (size_t)LENGTH * m.shape.n_vocab, bytes = n * sizeof(float);
        float *want = malloc(bytes), *got = malloc(bytes);
        assert_true(want && got);
        draw_tokens(tokens, LENGTH, m.shape.n_vocab);
        shuffled_pages(pages);
        assert_int_equal(open_backend(&l, "cpu", options), 0);
        load(&l, &m);
        run_batch(&l, &(struct part){0, LENGTH, tokens, pages, want}, 1);
        assert_true(isfinite(want[n - 1]) && want[n - 1] != 0);
        run_pieces(&l, tokens, pages, ones, got);
        assert_memory_equal(got, want, bytes);
        run_pieces(&l, tokens, pages, uneven, got);
        assert_memory_equal(got, want, bytes);
        run_pieces(&l, tokens, pages, tens, got);
        assert_memory_equal(got, want, bytes);
        run_mixed(&l, tokens, pages, got);
        assert_memory_equal(got, want, bytes);
        unload(&l);

        /* Nor on the number of threads. */
        char one[64];
        snprintf(one, sizeof one, "%.*s,threads=1", (int)strcspn(options, ","), options);
        assert_int_equal(open_backend(&l, "cpu", one), 0);
        load(&l, &m);
        run_batch(&l, &(struct part){0, LENGTH, tokens, pages, got}, 1);
        assert_memory_equal(got, want, bytes);
        unload(&l);
        free_model(&m);
        free(want);
        free(got);
    }
}

/* ---- the rest -------------------------------------------------------------------------------- */

/* A page copied, read and written back carries the sequence; a zeroed one does not. */
static void test_pages(void **state)
{
    struct loaded l;
    struct model m;
    uint32_t pages[PAGES_MAX], moved[3] = {40, 41, 42};
    int32_t tokens[48];
    struct infer_estimate e;
    make_model(&m, &recipes[0]);
    size_t row = m.shape.n_vocab;
    float *want = malloc(row * sizeof *want), *got = malloc(row * sizeof *got);
    draw_tokens(tokens, 48, m.shape.n_vocab);
    for (uint32_t i = 0; i < PAGES_MAX; i++)
        pages[i] = i;
    assert_int_equal(open_backend(&l, "cpu", ""), 0);
    load(&l, &m);
    assert_int_equal(l.api->estimate(l.backend, &m.plan, &state_config, &e), 0);
    uint8_t *bytes = malloc(e.page_bytes);
    assert_true(want && got && bytes);
    run_batch(&l, &(struct part){0, 47, tokens, pages, NULL}, 1);
    assert_int_equal(l.api->page_copy(l.model, 40, 0), 0);
    assert_int_equal(l.api->page_read(l.model, 1, bytes), 0);
    assert_int_equal(l.api->page_write(l.model, 41, bytes), 0);
    assert_int_equal(l.api->page_copy(l.model, 42, 2), 0);
    run_batch(&l, &(struct part){47, 1, tokens + 47, pages, want}, 1);
    run_batch(&l, &(struct part){47, 1, tokens + 47, moved, got}, 1);
    assert_memory_equal(got, want, row * sizeof *want);
    assert_int_equal(l.api->page_zero(l.model, 41), 0);
    run_batch(&l, &(struct part){47, 1, tokens + 47, moved, got}, 1);
    assert_memory_not_equal(got, want, row * sizeof *want);
    assert_int_equal(l.api->page_zero(l.model, PAGES_MAX), -EINVAL);
    unload(&l);
    free_model(&m);
    free(want);
    free(got);
    free(bytes);
}

/* Greedy tokens and log-probabilities come from the logits that are asked for beside them. */
static void test_outputs(void **state)
{
    struct loaded l;
    struct model m;
    static const uint32_t pages[PAGES_MAX] = {3, 1, 2};
    struct infer_sampling sampling;
    int32_t tokens[20];
    make_model(&m, &recipes[0]);
    uint32_t n = m.shape.n_vocab;
    float *logits = malloc(n * sizeof *logits);
    assert_non_null(logits);
    draw_tokens(tokens, 20, n);
    assert_int_equal(open_backend(&l, "cpu", ""), 0);
    load(&l, &m);
    infer_sampling_default(&sampling);
    sampling.temperature = 0;
    struct infer_batch_seq seq = {.n_rows = 20, .n_pages = 2, .pages = pages};
    struct infer_batch_output outputs[3] = {
        {.row = 4, .target = 9},
        {.row = 19, .sample = 1, .target = -1, .sampling = &sampling, .logits = logits},
        {.row = 19, .sample = 1, .target = 5, .n_top = 2, .sampling = &sampling},
    };
    struct infer_batch batch = {.n_rows = 20,
                                .n_seqs = 1,
                                .n_outputs = 3,
                                .tokens = tokens,
                                .seqs = &seq,
                                .outputs = outputs};
    assert_int_equal(l.api->run(l.model, &batch), 0);
    int32_t best = 0;
    double sum = 0;
    for (uint32_t i = 0; i < n; i++) {
        best = logits[i] > logits[best] ? (int32_t)i : best;
        sum += exp((double)logits[i]);
    }
    assert_int_equal(outputs[1].token, best);
    assert_int_equal(outputs[2].token, best);
    assert_int_equal(outputs[2].top[0].token, best);
    assert_float_equal(outputs[2].target_logprob, (float)(logits[5] - log(sum)), 1e-4f);
    assert_true(outputs[0].target_logprob < 0 && isfinite(outputs[0].target_logprob));
    unload(&l);
    free_model(&m);
    free(logits);
}

/* Types with a layout of their own take at most 1.1 times their file, and what cannot run is
 * refused with a sentence. */
static void test_estimates(void **state)
{
    static const uint32_t native[] = {INFER_TYPE_Q4_0, INFER_TYPE_Q4_1,   INFER_TYPE_Q5_0,
                                      INFER_TYPE_Q5_1, INFER_TYPE_Q8_0,   INFER_TYPE_Q4_K,
                                      INFER_TYPE_Q5_K, INFER_TYPE_Q6_K,   INFER_TYPE_IQ4_NL,
                                      INFER_TYPE_F16,  INFER_TYPE_IQ4_XS, INFER_TYPE_MXFP4};
    struct loaded l;
    struct model m;
    struct infer_estimate e;
    assert_int_equal(open_backend(&l, "cpu", ""), 0);
    for (size_t i = 0; i < sizeof native / sizeof native[0]; i++) {
        make_head(&m, native[i], 512, 512);
        assert_int_equal(l.api->estimate(l.backend, &m.plan, &state_config, &e), 0);
        uint64_t file = 0;
        for (uint32_t t = 0; t < m.plan.n_tensors; t++)
            file += m.tensors[t].row_bytes * m.tensors[t].n_rows;
        assert_true(e.weights_bytes >= file && e.weights_bytes <= file + file / 10);
        free_model(&m);
    }
    make_head(&m, INFER_TYPE_Q8_0, 64, 32);
    struct infer_state_config other = state_config;
    other.k_type = INFER_TYPE_Q8_0;
    assert_int_equal(l.api->estimate(l.backend, &m.plan, &other, &e), -ENOTSUP);
    assert_true(strlen(l.api->last_error(l.backend)) > 10);
    m.ops[0].kind = 99;
    assert_int_equal(l.api->estimate(l.backend, &m.plan, &state_config, &e), -ENOTSUP);
    m.ops[0].kind = INFER_OP_EMBED;
    m.tensors[2].type = 4;
    assert_int_equal(l.api->estimate(l.backend, &m.plan, &state_config, &e), -ENOTSUP);
    m.tensors[2].type = INFER_TYPE_Q8_0;
    m.tensors[2].n_rows = 33;
    assert_int_equal(l.api->estimate(l.backend, &m.plan, &state_config, &e), -EINVAL);
    assert_int_equal(l.taken, 0);
    free_model(&m);
    l.api->close(l.backend);
    dlclose(l.so);
}

/* The kernels' e^x, in plain arithmetic. One rounding each for n * ln 2, the polynomial's last two
 * steps and the result, 6e-8 apiece, and the polynomial's own 1e-8. */
static void test_exp(void **state)
{
    double worst = 0;
    for (int i = -870000; i <= 880000; i++) {
        float x = (float)i * 1e-4f;
        double want = exp((double)x), got = vf_exp(vf_set(x))[0];
        if (x >= -87.0f)
            worst = fmax(worst, fabs(got - want) / want);
    }
    print_message("largest relative error of exp: %.2g\n", worst);
    assert_true(worst < 3e-7);
    assert_true(vf_exp(vf_set(0.0f))[0] == 1.0f);
    assert_true(vf_exp(vf_set(-INFINITY))[0] == 0.0f);
    assert_true(vf_exp(vf_set(-87.5f))[0] == 0.0f);
}

static void test_options(void **state)
{
    static const char *const bad[] = {"isa=",      "isa",        "threads=0",
                                      "threads=x", "colour=red", "threads=1000000"};
    struct loaded l;
    struct infer_device device;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        assert_int_equal(open_backend(&l, "cpu", bad[i]), -EINVAL);
    assert_int_equal(open_backend(&l, "cpu", "isa=avx9"), -ENOTSUP);
    assert_int_equal(open_backend(&l, "cpu", "threads=3,isa=scalar"), 0);
    l.api->describe(l.backend, &device);
    assert_string_equal(device.name, "CPU, plain C, 3 threads");
    l.api->close(l.backend);
    dlclose(l.so);
}

int main(void)
{
    struct CMUnitTest tests[3 * N_LEVELS + 5];
    size_t n = 0;
    static char names[3 * N_LEVELS][64];
    static const struct {
        const char *name;
        CMUnitTestFunction run;
    } levelled[3] = {
        {"products", test_products}, {"models", test_models}, {"same bits", test_same_bits}};
    for (size_t t = 0; t < 3; t++)
        for (size_t i = 0; i < N_LEVELS; i++, n++) {
            snprintf(names[n], sizeof names[n], "%s %s", levelled[t].name, levels[i]);
            tests[n] = (struct CMUnitTest){
                .name = names[n], .test_func = levelled[t].run, .initial_state = (void *)levels[i]};
        }
    tests[n++] = (struct CMUnitTest)cmocka_unit_test(test_pages);
    tests[n++] = (struct CMUnitTest)cmocka_unit_test(test_outputs);
    tests[n++] = (struct CMUnitTest)cmocka_unit_test(test_estimates);
    tests[n++] = (struct CMUnitTest)cmocka_unit_test(test_exp);
    tests[n++] = (struct CMUnitTest)cmocka_unit_test(test_options);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
