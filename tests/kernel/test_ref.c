/* The reference backend on tiny models: its logits against an independent computation in double,
 * the independence of a row from everything beside it, pages, and what it refuses. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "backend_host.h"
#include "ref/cache.h"
#include "tiny_model.h"

#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

/* ---- the independent computation: one whole sequence, in double ------------------------------ */

struct truth {
    double x[LENGTH][EMBD];
    double q[LENGTH][HEADS][64], k[LENGTH][KV_HEADS][64], v[LENGTH][KV_HEADS][64];
    double o[LENGTH][HEADS * 64];
    double logits[LENGTH][VOCAB];
};

static void truth_norm(const double *x, const float *weight, double *y, uint32_t n)
{
    double mean = 0;
    for (uint32_t i = 0; i < n; i++)
        mean += x[i] * x[i] / n;
    for (uint32_t i = 0; i < n; i++)
        y[i] = x[i] / sqrt(mean + (double)1e-5f) * (double)weight[i];
}

/* Row r of the tensor times x, plus its bias. */
static double truth_product(const struct tiny *m, uint32_t tensor, uint32_t bias, uint64_t r,
                            const double *x)
{
    uint64_t n = m->tensors[tensor].ne[0];
    double sum = bias != INFER_TENSOR_NONE ? (double)m->values[bias][r] : 0;
    for (uint64_t i = 0; i < n; i++)
        sum += (double)m->values[tensor][r * n + i] * x[i];
    return sum;
}

/* As rotation of the complex number a + ib by the angle. */
static void truth_rope(const struct tiny *m, double *head, uint32_t position)
{
    uint32_t n = m->variant.rope_dims;
    for (uint32_t i = 0; i < n / 2; i++) {
        uint32_t at_a = m->variant.rope_style == INFER_ROPE_PAIRS ? 2 * i : i;
        uint32_t at_b = m->variant.rope_style == INFER_ROPE_PAIRS ? 2 * i + 1 : i + n / 2;
        double angle = position * (double)m->inv_freq[i], a = head[at_a], b = head[at_b];
        head[at_a] = (double)m->variant.magnitude * (a * cos(angle) - b * sin(angle));
        head[at_b] = (double)m->variant.magnitude * (a * sin(angle) + b * cos(angle));
    }
}

static void truth_qkv(const struct tiny *m, const struct infer_op *op, struct truth *t, uint32_t p)
{
    uint32_t dim = m->variant.head_dim, dim_v = m->variant.head_dim_v;
    double h[EMBD];
    truth_norm(t->x[p], m->values[op->norm], h, EMBD);
    for (uint32_t n = 0; n < HEADS; n++) {
        for (uint32_t d = 0; d < dim; d++)
            t->q[p][n][d] = truth_product(m, op->as.qkv.wq, op->as.qkv.bq, n * dim + d, h);
        if (m->variant.head_norms)
            truth_norm(t->q[p][n], m->values[op->as.qkv.q_norm], t->q[p][n], dim);
        truth_rope(m, t->q[p][n], p);
    }
    for (uint32_t n = 0; n < KV_HEADS; n++) {
        for (uint32_t d = 0; d < dim; d++)
            t->k[p][n][d] = truth_product(m, op->as.qkv.wk, op->as.qkv.bk, n * dim + d, h);
        for (uint32_t d = 0; d < dim_v; d++)
            t->v[p][n][d] = truth_product(m, op->as.qkv.wv, op->as.qkv.bv, n * dim_v + d, h);
        if (m->variant.head_norms)
            truth_norm(t->k[p][n], m->values[op->as.qkv.k_norm], t->k[p][n], dim);
        truth_rope(m, t->k[p][n], p);
    }
}

static void truth_attend(const struct tiny *m, struct truth *t, uint32_t p)
{
    uint32_t dim = m->variant.head_dim, dim_v = m->variant.head_dim_v;
    for (uint32_t n = 0; n < HEADS; n++) {
        uint32_t kv = n * KV_HEADS / HEADS;
        double weight[LENGTH], sum = 0;
        for (uint32_t j = 0; j <= p; j++) {
            double score = 0;
            for (uint32_t d = 0; d < dim; d++)
                score += t->q[p][n][d] * t->k[j][kv][d];
            bool hidden = m->variant.window > 0 && p - j >= m->variant.window;
            weight[j] = hidden ? 0 : exp(score / sqrt(dim));
            sum += weight[j];
        }
        for (uint32_t d = 0; d < dim_v; d++) {
            double value = 0;
            for (uint32_t j = 0; j <= p; j++)
                value += weight[j] / sum * t->v[j][kv][d];
            t->o[p][n * dim_v + d] = value;
        }
    }
}

static double truth_activate(uint32_t activation, double x)
{
    if (activation == INFER_ACT_SILU)
        return x / (1 + exp(-x));
    return 0.5 * x * (1 + tanh(sqrt(2 / 3.14159265358979324) * (x + 0.044715 * x * x * x)));
}

static void truth_ffn(const struct tiny *m, const struct infer_op *op, const struct infer_op *down,
                      struct truth *t, uint32_t p)
{
    double h[EMBD], hidden[FFN];
    truth_norm(t->x[p], m->values[op->norm], h, EMBD);
    for (uint32_t i = 0; i < FFN; i++)
        hidden[i] = truth_activate(m->variant.activation,
                                   truth_product(m, op->as.ffn.gate, INFER_TENSOR_NONE, i, h)) *
                    truth_product(m, op->as.ffn.up, INFER_TENSOR_NONE, i, h);
    for (uint32_t i = 0; i < EMBD; i++)
        t->x[p][i] += truth_product(m, down->as.project.w, INFER_TENSOR_NONE, i, hidden);
}

/* ops: embed, then per layer qkv, attend, project, all-reduce, ffn, project, then head. */
static struct truth *truth_new(const struct tiny *m, const int32_t *tokens)
{
    struct truth *t = calloc(1, sizeof *t);
    assert_non_null(t);
    for (uint32_t p = 0; p < LENGTH; p++) {
        for (uint32_t i = 0; i < EMBD; i++)
            t->x[p][i] = (double)m->values[m->ops[0].as.embed.table][tokens[p] * EMBD + i] *
                         (double)m->variant.embed_scale;
    }
    for (uint32_t l = 0; l < LAYERS; l++) {
        const struct infer_op *ops = m->ops + 1 + 6 * l;
        for (uint32_t p = 0; p < LENGTH; p++)
            truth_qkv(m, ops, t, p);
        for (uint32_t p = 0; p < LENGTH; p++) {
            truth_attend(m, t, p);
            for (uint32_t i = 0; i < EMBD; i++)
                t->x[p][i] +=
                    truth_product(m, ops[2].as.project.w, ops[2].as.project.b, i, t->o[p]);
            truth_ffn(m, ops + 4, ops + 5, t, p);
        }
    }
    const struct infer_op *head = m->ops + m->plan.n_ops - 1;
    for (uint32_t p = 0; p < LENGTH; p++) {
        double h[EMBD];
        truth_norm(t->x[p], m->values[head->norm], h, EMBD);
        for (uint32_t i = 0; i < VOCAB; i++)
            t->logits[p][i] = (double)head->as.head.scale *
                              truth_product(m, head->as.head.w, INFER_TENSOR_NONE, i, h);
    }
    return t;
}

/* ---- the backend under test ------------------------------------------------------------------ */

struct session {
    struct host_memory memory;
    struct infer_host host;
    const struct infer_backend_api *api;
    struct infer_backend *backend;
    struct infer_backend_model *model;
    struct infer_estimate estimate;
};

static const struct infer_state_config state_f32 = {
    .page_tokens = PAGE_TOKENS,
    .n_pages = N_PAGES,
    .k_type = INFER_TYPE_F32,
    .v_type = INFER_TYPE_F32,
    .max_rows = MAX_ROWS,
    .max_seqs = 8,
    .max_outputs = MAX_ROWS,
};

static struct session *session_new(const struct tiny *m, const struct infer_state_config *config)
{
    struct session *s = calloc(1, sizeof *s);
    assert_non_null(s);
    s->host = host_make(&s->memory);
    s->api = host_load("ref");
    assert_int_equal(s->api->open(&s->host, "", &s->backend), 0);
    assert_int_equal(s->api->estimate(s->backend, &m->plan, config, &s->estimate), 0);
    uint64_t before = s->memory.held;
    assert_int_equal(s->api->model_open(s->backend, &m->plan, config, &s->model), 0);
    /* The estimate is what is taken, pages rounded alike. */
    assert_int_equal(s->memory.held - before, s->estimate.weights_bytes +
                                                  s->estimate.scratch_bytes +
                                                  config->n_pages * s->estimate.page_bytes);
    for (uint32_t i = 0; i < m->plan.n_tensors; i++) {
        const struct infer_tensor *t = &m->tensors[i];
        uint64_t first = t->n_rows / 3; /* in two parts */
        assert_int_equal(s->api->tensor_write(s->model, i, 0, first, m->encoded[i]), 0);
        assert_int_equal(s->api->tensor_write(s->model, i, first, t->n_rows - first,
                                              m->encoded[i] + first * t->row_bytes),
                         0);
    }
    assert_int_equal(s->api->model_ready(s->model), 0);
    return s;
}

static void session_free(struct session *s)
{
    s->api->model_close(s->model);
    s->api->close(s->backend);
    assert_int_equal(s->memory.held, 0);
    free(s);
}

/* One sequence's part of a step: `n` tokens from `position` on; logits[i] gets row i's. */
struct part {
    uint32_t position, n;
    const uint32_t *pages;
    const int32_t *tokens; /* of the whole sequence */
    float (*logits)[VOCAB];
};

static int session_step(struct session *s, const struct part *parts, uint32_t n_parts)
{
    int32_t tokens[MAX_ROWS];
    struct infer_batch_seq seqs[8];
    struct infer_batch_output outputs[MAX_ROWS];
    struct infer_batch batch = {.tokens = tokens, .seqs = seqs, .outputs = outputs};

    memset(outputs, 0, sizeof outputs);
    for (uint32_t i = 0; i < n_parts; i++) {
        seqs[batch.n_seqs++] = (struct infer_batch_seq){
            .first_row = batch.n_rows,
            .n_rows = parts[i].n,
            .position = parts[i].position,
            .n_pages = LENGTH / PAGE_TOKENS,
            .pages = parts[i].pages,
        };
        for (uint32_t j = 0; j < parts[i].n; j++) {
            outputs[batch.n_outputs++] = (struct infer_batch_output){
                .row = batch.n_rows, .target = -1, .logits = parts[i].logits[j]};
            tokens[batch.n_rows++] = parts[i].tokens[parts[i].position + j];
        }
    }
    uint64_t takes = s->memory.takes;
    int error = s->api->run(s->model, &batch);
    assert_int_equal(s->memory.takes, takes); /* run() allocates nothing */
    return error;
}

static const uint32_t pages_in_order[6] = {0, 1, 2, 3, 4, 5};
static const uint32_t pages_shuffled[6] = {31, 7, 39, 12, 6, 20};
static const uint32_t pages_other[6] = {9, 30, 8, 33, 11, 10};

static void some_tokens(int32_t *tokens, uint32_t n, uint32_t seed)
{
    for (uint32_t i = 0; i < n; i++)
        tokens[i] = (int32_t)((seed + i * i * 31 + i * 17) % VOCAB);
}

/* Sums are in double or nearly so; what is left are the float32 values between operations, about
 * 15 roundings of 6e-8 in a chain per layer, of which most average out: 2e-6 of the largest logit,
 * six times what is seen. A wrong mask, norm or constant is off by far more. */
static void logits_match_the_equations(void **state)
{
    (void)state;
    for (size_t v = 0; v < N_VARIANTS; v++) {
        struct tiny *m = tiny_new(&variants[v]);
        struct session *s = session_new(m, &state_f32);
        int32_t tokens[LENGTH];
        static float logits[LENGTH][VOCAB];
        some_tokens(tokens, LENGTH, 5);
        struct truth *t = truth_new(m, tokens);
        struct part part = {0, LENGTH, pages_shuffled, tokens, logits};
        assert_int_equal(session_step(s, &part, 1), 0);
        double largest = 0, error = 0;
        for (uint32_t p = 0; p < LENGTH; p++) {
            for (uint32_t i = 0; i < VOCAB; i++) {
                largest = fmax(largest, fabs(t->logits[p][i]));
                error = fmax(error, fabs(t->logits[p][i] - (double)logits[p][i]));
            }
        }
        print_message("%s: error %.1e of %.2f\n", variants[v].name, error, largest);
        assert_true(largest > 0.1);
        assert_true(error < 2e-6 * largest);
        free(t);
        session_free(s);
        tiny_free(m);
    }
}

/* The same tokens, whole, in chunks, one by one, beside others, in other pages: the same bits. */
static void rows_depend_on_their_sequence_alone(void **state)
{
    (void)state;
    static const uint32_t types[] = {INFER_TYPE_F32, INFER_TYPE_F16, INFER_TYPE_Q8_0,
                                     INFER_TYPE_Q4_0};
    static float whole[LENGTH][VOCAB], chunked[LENGTH][VOCAB], beside[LENGTH][VOCAB];
    static float noise[LENGTH][VOCAB];
    for (size_t v = 0; v < 5 * 4; v++) { /* the variants whose heads a Q8_0 cache can hold */
        struct infer_state_config config = state_f32;
        config.k_type = config.v_type = types[v % 4];
        struct tiny *m = tiny_new(&variants[v / 4]);
        struct session *s = session_new(m, &config);
        int32_t tokens[LENGTH], others[LENGTH];
        some_tokens(tokens, LENGTH, 5);
        some_tokens(others, LENGTH, 60);

        struct part part = {0, LENGTH, pages_in_order, tokens, whole};
        assert_int_equal(session_step(s, &part, 1), 0);

        part.pages = pages_shuffled;
        for (uint32_t at = 0, n = 1; at < LENGTH; at += n, n = n % 5 + 2) {
            part.position = at;
            part.n = n < LENGTH - at ? n : LENGTH - at;
            part.logits = chunked + at;
            assert_int_equal(session_step(s, &part, 1), 0);
        }
        assert_memory_equal(whole, chunked, sizeof whole);

        for (uint32_t at = 0; at < LENGTH; at++) { /* one by one, between two others */
            struct part parts[3] = {{at < 20 ? 0 : 20, 1 + at % 4, pages_other, others, noise},
                                    {at, 1, pages_shuffled, tokens, beside + at},
                                    {at, 1, pages_in_order, others, noise + 8}};
            assert_int_equal(session_step(s, parts, 3), 0);
        }
        assert_memory_equal(whole, beside, sizeof whole);
        session_free(s);
        tiny_free(m);
    }
}

/* A half-precision cache errs by 2^-12 of each cached value, Q8_0 by 2^-8 of the block's largest,
 * Q4_0 by a fourteenth of the deviation (see few_bits_round_well): all well under these bounds
 * after two layers, and not zero: the types do act. */
static void smaller_caches_stay_close(void **state)
{
    (void)state;
    static float logits[4][LENGTH][VOCAB];
    static const uint32_t types[] = {INFER_TYPE_F32, INFER_TYPE_F16, INFER_TYPE_Q8_0,
                                     INFER_TYPE_Q4_0};
    static const double bounds[] = {0, 2e-3, 5e-2, 0.3};
    struct tiny *m = tiny_new(&variants[0]);
    int32_t tokens[LENGTH];
    uint64_t page_bytes[4];
    some_tokens(tokens, LENGTH, 5);
    for (int k = 0; k < 4; k++) {
        struct infer_state_config config = state_f32;
        config.k_type = config.v_type = types[k];
        struct session *s = session_new(m, &config);
        struct part part = {0, LENGTH, pages_in_order, tokens, logits[k]};
        assert_int_equal(session_step(s, &part, 1), 0);
        page_bytes[k] = s->estimate.page_bytes;
        double error = 0, largest = 0;
        for (uint32_t i = 0; i < LENGTH * VOCAB; i++) {
            double wanted = logits[0][i / VOCAB][i % VOCAB];
            error = fmax(error, fabs((double)logits[k][i / VOCAB][i % VOCAB] - wanted));
            largest = fmax(largest, fabs(wanted));
        }
        assert_true(error <= bounds[k] * largest);
        assert_true(k == 0 || error > 0);
        session_free(s);
    }
    assert_int_equal(page_bytes[0], 2 * page_bytes[1]);
    assert_true(page_bytes[2] < page_bytes[1] * 34 / 64 + 64);
    assert_true(page_bytes[3] < page_bytes[1] * 20 / 64 + 64);
    tiny_free(m);
}

/* ---- rounding of what is cached -------------------------------------------------------------- */

static float random_normal(void)
{
    float sum = 0;
    for (int i = 0; i < 12; i++)
        sum += random_value();
    return sum / 2; /* twelve of variance 1/3 */
}

/* The rotation is its own inverse and keeps dot products. */
static void rotation_keeps_products(void **state)
{
    (void)state;
    static const uint32_t sizes[] = {32, 64, 96, 128, 160};
    random_state = 9;
    for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++) {
        float a[160], b[160], turned[160];
        double before = 0, after = 0;
        for (uint32_t i = 0; i < sizes[s]; i++) {
            turned[i] = a[i] = random_normal();
            b[i] = random_normal();
            before += (double)a[i] * (double)b[i];
        }
        ref_cache_rotate(turned, sizes[s]);
        ref_cache_rotate(b, sizes[s]);
        for (uint32_t i = 0; i < sizes[s]; i++)
            after += (double)turned[i] * (double)b[i];
        assert_true(fabs(before - after) < 1e-4);
        ref_cache_rotate(turned, sizes[s]);
        for (uint32_t i = 0; i < sizes[s]; i++)
            assert_true(fabsf(turned[i] - a[i]) < 1e-5f);
    }
    float one[32] = {0};
    one[5] = 1; /* an outlier goes evenly to all */
    ref_cache_rotate(one, 32);
    for (int i = 0; i < 32; i++)
        assert_true(fabsf(fabsf(one[i]) - 1 / sqrtf(32)) < 1e-6f);
}

/* Mean squared error over normal numbers of deviation 1, at every size a half-precision scale can
 * have, also where they are not centred: Q8_0 has steps of about 2.1 / 127, which leaves
 * (2.1 / 127)^2 / 12 = 2.3e-5. 32 numbers reach over 4.1 deviations: 15 steps leave (4.1 / 15)^2 /
 * 12 = 0.0062, 31 steps 0.00146, and the choice of the range takes a tenth off the first. */
static void few_bits_round_well(void **state)
{
    (void)state;
    static const float sizes[] = {1e-2f, 1, 3e3f}, centres[] = {0, 1.5f, -4};
    random_state = 10;
    for (int t = 0; t < 9; t++) {
        float x[32], back[32], size = sizes[t % 3], centre = centres[t / 3];
        double squares[3] = {0, 0, 0};
        for (int n = 0; n < 2000; n++) {
            uint8_t bytes[34];
            for (int i = 0; i < 32; i++)
                x[i] = size * (random_normal() + centre);
            for (int k = 0; k < 3; k++) {
                uint32_t type = k ? INFER_TYPE_Q4_0 : INFER_TYPE_Q8_0;
                enum ref_cached what = k == 2 ? REF_VALUE : REF_KEY;
                ref_cache_encode(type, what, x, bytes, 32);
                ref_cache_decode(type, what, bytes, back, 32);
                for (int i = 0; i < 32; i++)
                    squares[k] += pow((double)((x[i] - back[i]) / size), 2) / 64000;
            }
        }
        print_message("size %g, centre %g: squared error %.2g, %.2g, %.2g\n", (double)size,
                      (double)centre, squares[0], squares[1], squares[2]);
        assert_true(squares[0] < (centre == 0 ? 6e-5 : 4e-4));
        assert_true(squares[1] < (centre == 0 ? 0.006 : 0.03));
        assert_true(squares[2] < (centre == 0 ? 0.0016 : 0.007));
    }
}

/* Whatever comes in, what is read back is finite: a masked row's weight of 0 must give 0. */
static void cached_blocks_are_finite(void **state)
{
    (void)state;
    static const float odd[] = {0,       -0.0f,    NAN,   INFINITY, -INFINITY, 1e-45f,
                                3.4e38f, -3.4e38f, 1e-8f, 65504,    -70000,    1e-30f};
    const int n_odd = sizeof odd / sizeof odd[0];
    for (int t = 0; t < n_odd * n_odd * 2; t++) {
        float x[32], back[32];
        uint8_t bytes[34];
        for (int i = 0; i < 32; i++)
            x[i] = i % 7 == 3 && t >= n_odd * n_odd ? 1.0f + (float)i
                                                    : odd[i % 2 ? t % n_odd : t / n_odd % n_odd];
        for (int k = 0; k < 3; k++) {
            uint32_t type = k ? INFER_TYPE_Q4_0 : INFER_TYPE_Q8_0;
            enum ref_cached what = k == 2 ? REF_VALUE : REF_KEY;
            ref_cache_encode(type, what, x, bytes, 32);
            ref_cache_decode(type, what, bytes, back, 32);
            for (int i = 0; i < 32; i++)
                assert_true(isfinite(back[i]));
        }
    }
    float zeros[32] = {0}, back[32];
    uint8_t bytes[34];
    for (int k = 0; k < 2; k++) {
        enum ref_cached what = k ? REF_VALUE : REF_KEY;
        ref_cache_encode(INFER_TYPE_Q4_0, what, zeros, bytes, 32);
        ref_cache_decode(INFER_TYPE_Q4_0, what, bytes, back, 32);
        for (int i = 0; i < 32; i++)
            assert_true(fabsf(back[i]) < 1e-5f);
    }
}

/* Pages carry the whole state: copied, or read and written back, a sequence goes on elsewhere. */
static void pages_carry_the_state(void **state)
{
    (void)state;
    static float whole[LENGTH][VOCAB], rest[LENGTH][VOCAB];
    struct tiny *m = tiny_new(&variants[1]);
    struct session *s = session_new(m, &state_f32);
    uint8_t *saved = malloc(s->estimate.page_bytes * 6);
    uint8_t *zeros = calloc(1, s->estimate.page_bytes);
    int32_t tokens[LENGTH];
    some_tokens(tokens, LENGTH, 5);
    struct part part = {0, LENGTH, pages_in_order, tokens, whole};
    assert_int_equal(session_step(s, &part, 1), 0);

    for (uint32_t i = 0; i < 6; i++) {
        assert_int_equal(s->api->page_copy(s->model, pages_other[i], pages_in_order[i]), 0);
        assert_int_equal(
            s->api->page_read(s->model, pages_in_order[i], saved + i * s->estimate.page_bytes), 0);
        assert_int_equal(s->api->page_zero(s->model, pages_in_order[i]), 0);
    }
    part = (struct part){14, LENGTH - 14, pages_other, tokens, rest + 14};
    assert_int_equal(session_step(s, &part, 1), 0);
    assert_memory_equal(whole + 14, rest + 14, sizeof whole[0] * (LENGTH - 14));

    part.pages = pages_in_order; /* zeroed: other results */
    part.n = 1;
    assert_int_equal(session_step(s, &part, 1), 0);
    assert_memory_not_equal(whole + 14, rest + 14, sizeof whole[0]);
    for (uint32_t i = 0; i < 6; i++)
        assert_int_equal(
            s->api->page_write(s->model, pages_in_order[i], saved + i * s->estimate.page_bytes), 0);
    assert_int_equal(session_step(s, &part, 1), 0);
    assert_memory_equal(whole + 14, rest + 14, sizeof whole[0]);

    assert_int_equal(s->api->page_zero(s->model, 3), 0);
    assert_int_equal(s->api->page_read(s->model, 3, saved), 0);
    assert_memory_equal(saved, zeros, s->estimate.page_bytes);
    assert_int_equal(s->api->page_zero(s->model, N_PAGES), -EINVAL);
    assert_int_equal(s->api->page_copy(s->model, 0, N_PAGES), -EINVAL);
    free(saved);
    free(zeros);
    session_free(s);
    tiny_free(m);
}

/* Outputs of all kinds, more rows than the head takes at once, several outputs of one row. */
static void outputs_are_filled(void **state)
{
    (void)state;
    static float logits[LENGTH][VOCAB];
    struct tiny *m = tiny_new(&variants[0]);
    struct session *s = session_new(m, &state_f32);
    int32_t tokens[LENGTH];
    some_tokens(tokens, LENGTH, 5);
    struct part part = {0, LENGTH, pages_in_order, tokens, logits};
    assert_int_equal(session_step(s, &part, 1), 0);

    struct infer_sampling greedy, warm;
    infer_sampling_default(&greedy);
    greedy.temperature = 0;
    infer_sampling_default(&warm);
    struct infer_batch_output outputs[3 * LENGTH];
    memset(outputs, 0, sizeof outputs);
    for (uint32_t i = 0; i < 3 * LENGTH; i++)
        outputs[i] = (struct infer_batch_output){
            .row = i / 3, .target = -1, .sample = i % 3 < 2, .sampling = i % 3 ? &warm : &greedy};
    for (uint32_t p = 0; p < LENGTH; p++) {
        outputs[3 * p].n_top = 5;
        outputs[3 * p + 1].uniform = 0.999;
        outputs[3 * p + 2].target = 11;
    }
    struct infer_batch_seq seq = {0, LENGTH, 0, 6, pages_shuffled};
    struct infer_batch batch = {.n_rows = LENGTH,
                                .n_seqs = 1,
                                .n_outputs = 3 * LENGTH,
                                .tokens = tokens,
                                .seqs = &seq,
                                .outputs = outputs};
    assert_int_equal(s->api->run(s->model, &batch), 0);
    uint32_t differ = 0;
    for (uint32_t p = 0; p < LENGTH; p++) {
        double sum = 0;
        int32_t best = 0;
        for (int32_t i = 0; i < VOCAB; i++) {
            sum += exp((double)logits[p][i]);
            best = logits[p][i] > logits[p][best] ? i : best;
        }
        assert_int_equal(outputs[3 * p].token, best);
        assert_int_equal(outputs[3 * p].top[0].token, best);
        assert_true(fabs(outputs[3 * p].logprob - ((double)logits[p][best] - log(sum))) < 1e-5);
        assert_true(fabs(outputs[3 * p + 2].target_logprob - ((double)logits[p][11] - log(sum))) <
                    1e-5);
        differ += outputs[3 * p + 1].token != best;
    }
    assert_true(differ > LENGTH / 2); /* 0.999 draws from the tail */
    session_free(s);
    tiny_free(m);
}

/* ---- what is refused ------------------------------------------------------------------------- */

struct refusal {
    const char *says; /* part of the sentence */
    int error;
    void (*spoil)(struct tiny *m, struct infer_state_config *state);
};

static void spoil_kind(struct tiny *m, struct infer_state_config *state)
{
    m->ops[2].kind = 77;
}
static void spoil_type(struct tiny *m, struct infer_state_config *state)
{
    m->tensors[3].type = 16;
}
static void spoil_rows(struct tiny *m, struct infer_state_config *state)
{
    m->tensors[2].n_rows--;
}
static void spoil_row_bytes(struct tiny *m, struct infer_state_config *state)
{
    m->tensors[0].row_bytes--;
}
static void spoil_handle(struct tiny *m, struct infer_state_config *state)
{
    m->ops[3].as.project.w = m->plan.n_tensors;
}
static void spoil_norm(struct tiny *m, struct infer_state_config *state)
{
    m->tensors[1].type = INFER_TYPE_F16;
    m->tensors[1].row_bytes /= 2;
}
static void spoil_layer(struct tiny *m, struct infer_state_config *state)
{
    m->ops[2].layer = LAYERS;
}
static void spoil_heads(struct tiny *m, struct infer_state_config *state)
{
    m->plan.shape.n_kv_heads = 3;
}
static void spoil_zero(struct tiny *m, struct infer_state_config *state)
{
    m->plan.shape.n_vocab = 0;
}
static void spoil_rope(struct tiny *m, struct infer_state_config *state)
{
    m->plan.rope.n_dims = 34;
}
static void spoil_activation(struct tiny *m, struct infer_state_config *state)
{
    m->ops[5].as.ffn.activation = 9;
}
static void spoil_cache(struct tiny *m, struct infer_state_config *state)
{
    state->k_type = INFER_TYPE_Q4_1;
}
static void spoil_cache_heads(struct tiny *m, struct infer_state_config *state)
{
    m->plan.shape.n_embd = EMBD;
    state->v_type = INFER_TYPE_Q8_0;
}
static void spoil_pages(struct tiny *m, struct infer_state_config *state)
{
    state->page_tokens = 0;
}

static const struct refusal refusals[] = {
    {"operation 77", -ENOTSUP, spoil_kind},
    {"blk.0.attn_k has type 16", -ENOTSUP, spoil_type},
    {"blk.0.attn_q is", -EINVAL, spoil_rows},
    {"blk.0.token_embd", -EINVAL, spoil_row_bytes},
    {"no tensor as projection", -EINVAL, spoil_handle},
    {"blk.0.attn_norm must be F32", -ENOTSUP, spoil_norm},
    {"layer 2 of 2", -EINVAL, spoil_layer},
    {"cannot share", -EINVAL, spoil_heads},
    {"zero", -EINVAL, spoil_zero},
    {"34", -EINVAL, spoil_rope},
    {"activation 9", -ENOTSUP, spoil_activation},
    {"cache of type Q4_1", -ENOTSUP, spoil_cache},
    {"multiple of 32, not 6", -ENOTSUP, spoil_cache_heads},
    {"pages", -EINVAL, spoil_pages},
};

static void bad_plans_are_refused_by_name(void **state)
{
    (void)state;
    const struct infer_backend_api *api = host_load("ref");
    for (size_t i = 0; i < sizeof refusals / sizeof refusals[0]; i++) {
        struct host_memory memory = {0};
        struct infer_host host = host_make(&memory);
        struct infer_state_config config = state_f32;
        struct infer_backend *backend;
        struct infer_backend_model *model = NULL;
        struct infer_estimate estimate;
        struct tiny *m = tiny_new(&variants[refusals[i].spoil == spoil_cache_heads ? 5 : 0]);
        assert_int_equal(api->open(&host, "", &backend), 0);
        assert_int_equal(api->estimate(backend, &m->plan, &config, &estimate), 0);
        refusals[i].spoil(m, &config);
        assert_int_equal(api->estimate(backend, &m->plan, &config, &estimate), refusals[i].error);
        assert_int_equal(api->model_open(backend, &m->plan, &config, &model), refusals[i].error);
        assert_null(model);
        if (strstr(api->last_error(backend), refusals[i].says) == NULL)
            fail_msg("'%s' does not say '%s'", api->last_error(backend), refusals[i].says);
        api->close(backend);
        assert_int_equal(memory.held, 0);
        tiny_free(m);
    }
}

static void bad_calls_are_refused(void **state)
{
    (void)state;
    struct host_memory memory = {0};
    struct infer_host host = host_make(&memory);
    const struct infer_backend_api *api = host_load("ref");
    struct infer_backend *backend;
    struct infer_backend_model *model;
    struct infer_batch batch = {0};
    struct tiny *m = tiny_new(&variants[0]);

    assert_int_equal(api->open(&host, "speed=9", &backend), -EINVAL);
    assert_non_null(strstr(api->last_error(NULL), "speed=9"));
    assert_int_equal(api->open(&host, "", &backend), 0);
    memory.limit = memory.held + 5000; /* enough for the struct, not for the weights */
    assert_int_equal(api->model_open(backend, &m->plan, &state_f32, &model), -ENOMEM);
    memory.limit = 0;
    assert_int_equal(api->model_open(backend, &m->plan, &state_f32, &model), 0);
    assert_int_equal(api->tensor_write(model, 0, 1, 1, m->encoded[0]), -EINVAL);
    assert_int_equal(api->tensor_write(model, 0, 0, VOCAB + 1, m->encoded[0]), -EINVAL);
    assert_int_equal(api->tensor_write(model, m->plan.n_tensors, 0, 1, m->encoded[0]), -EINVAL);
    assert_int_equal(api->tensor_write(model, 0, 0, VOCAB, m->encoded[0]), 0);
    assert_int_equal(api->tensor_write(model, 0, 0, 1, m->encoded[0]), -EINVAL);
    assert_int_equal(api->model_ready(model), -EINVAL);
    assert_non_null(strstr(api->last_error(backend), "blk.0.attn_norm: 0 of 1"));
    assert_int_equal(api->run(model, &batch), -EINVAL);
    api->model_close(model);
    api->close(backend);
    assert_int_equal(memory.held, 0);
    tiny_free(m);
}

static void bad_batches_are_refused(void **state)
{
    (void)state;
    struct tiny *m = tiny_new(&variants[0]);
    struct session *s = session_new(m, &state_f32);
    int32_t tokens[2] = {1, 2};
    uint32_t pages[1] = {0};
    struct infer_batch_output outputs[2] = {{.row = 0, .target = -1}, {.row = 1, .target = -1}};
    const struct infer_batch_seq good = {0, 2, 0, 1, pages};
    struct infer_batch_seq seq = good;
    struct infer_batch batch = {.n_rows = 2,
                                .n_seqs = 1,
                                .n_outputs = 2,
                                .tokens = tokens,
                                .seqs = &seq,
                                .outputs = outputs};
    assert_int_equal(s->api->run(s->model, &batch), 0);
    tokens[1] = VOCAB;
    assert_int_equal(s->api->run(s->model, &batch), -EINVAL);
    tokens[1] = -1;
    assert_int_equal(s->api->run(s->model, &batch), -EINVAL);
    tokens[1] = 1;
    pages[0] = N_PAGES;
    assert_int_equal(s->api->run(s->model, &batch), -EINVAL);
    pages[0] = 0;
    seq.position = PAGE_TOKENS - 1;
    assert_int_equal(s->api->run(s->model, &batch), -EINVAL);
    seq.position = UINT32_MAX;
    assert_int_equal(s->api->run(s->model, &batch), -EINVAL);
    seq = good;
    seq.first_row = 1;
    assert_int_equal(s->api->run(s->model, &batch), -EINVAL);
    seq = good;
    outputs[0].row = 1, outputs[1].row = 0;
    assert_int_equal(s->api->run(s->model, &batch), -EINVAL);
    outputs[0].row = 0, outputs[1].row = 2;
    assert_int_equal(s->api->run(s->model, &batch), -EINVAL);
    outputs[1].row = 1;
    assert_int_equal(s->api->run(s->model, &batch), 0);
    session_free(s);
    tiny_free(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(logits_match_the_equations),
        cmocka_unit_test(rows_depend_on_their_sequence_alone),
        cmocka_unit_test(smaller_caches_stay_close),
        cmocka_unit_test(rotation_keeps_products),
        cmocka_unit_test(few_bits_round_well),
        cmocka_unit_test(cached_blocks_are_finite),
        cmocka_unit_test(pages_carry_the_state),
        cmocka_unit_test(outputs_are_filled),
        cmocka_unit_test(bad_plans_are_refused_by_name),
        cmocka_unit_test(bad_calls_are_refused),
        cmocka_unit_test(bad_batches_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
