/* selftest.c: see selftest.h.
 *
 * The model: two layers, grouped heads, matrices of Q8_0, norms of F32, weights of a linear
 * congruential generator. Its prompt runs as one batch, then each token as one of its own, so that
 * prefill, decode, rotation, attention over cached rows, the head and greedy sampling all take
 * part. What is right was computed by the scalar reference, kernels/ref: the tokens, each at least
 * 1.3 more likely (in log-probability) than the next, and their log-probabilities. A backend may
 * round as it likes: the one with 8-bit activations
 * differs by 0.03; one that computes something else or
 * not a number by far more.
 *
 * The null backend makes its tokens, delays and faults up, that is what it is for: it is let be. */
#include "selftest.h"

#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EMBD        64u
#define HEADS       2u
#define KV_HEADS    1u
#define HEAD_DIM    32u
#define FFN         128u
#define VOCAB       64u
#define LAYERS      2u
#define PROMPT      9u
#define ANSWER      8u
#define PAGE_TOKENS 16u
#define BLOCK       32u /* values of a Q8_0 block */
#define BLOCK_BYTES 34u
#define ROW_BYTES_MAX                                                                              \
    (FFN / BLOCK * BLOCK_BYTES > EMBD * 4u ? FFN / BLOCK * BLOCK_BYTES : EMBD * 4u)
#define SEED      255u /* with the clearest answers of the first 400 */
#define TOLERANCE 0.15f

/* Scales of the matrices' blocks as IEEE half precision. */
#define HALF_2_TO_MINUS_9 0x1800u
#define HALF_2_TO_MINUS_7 0x2000u

enum { EMBED, HEAD, NORM, LAYER, LAYER_TENSORS = 9, TENSORS = LAYER + LAYERS * LAYER_TENSORS };
enum { ATTN_NORM, WQ, WK, WV, WO, FFN_NORM, GATE, UP, DOWN };

struct tiny {
    struct infer_plan plan;
    struct infer_tensor tensors[TENSORS];
    struct infer_op ops[2 + 5 * LAYERS];
    float inv_freq[HEAD_DIM / 2];
    uint64_t random;
};

static const int32_t prompt[PROMPT] = {1, 17, 42, 5, 5, 63, 30, 8, 21};
static const int32_t right_tokens[ANSWER] = {7, 56, 2, 29, 43, 29, 48, 24};
static const float right_logprobs[ANSWER] = {-0.2871f, -0.0349f, -0.4493f, -0.1385f,
                                             -0.1168f, -0.3699f, -0.4722f, -0.0434f};

/* ---- the model ------------------------------------------------------------------------------- */

static uint32_t set_tensor(struct tiny *m, uint32_t index, uint32_t columns, uint32_t rows)
{
    struct infer_tensor *t = &m->tensors[index];
    bool vector = rows == 1;
    *t = (struct infer_tensor){.type = vector ? INFER_TYPE_F32 : INFER_TYPE_Q8_0,
                               .n_dims = vector ? 1 : 2,
                               .ne = {columns, rows, 1, 1},
                               .row_bytes =
                                   vector ? columns * sizeof(float) : columns / BLOCK * BLOCK_BYTES,
                               .n_rows = rows};
    snprintf(t->name, sizeof t->name, "selftest.%u", index);
    return index;
}

static void add_layer(struct tiny *m, uint32_t layer)
{
    uint32_t at = LAYER + layer * LAYER_TENSORS, *n = &m->plan.n_ops;
    set_tensor(m, at + ATTN_NORM, EMBD, 1);
    set_tensor(m, at + WQ, EMBD, HEADS * HEAD_DIM);
    set_tensor(m, at + WK, EMBD, KV_HEADS * HEAD_DIM);
    set_tensor(m, at + WV, EMBD, KV_HEADS * HEAD_DIM);
    set_tensor(m, at + WO, HEADS * HEAD_DIM, EMBD);
    set_tensor(m, at + FFN_NORM, EMBD, 1);
    set_tensor(m, at + GATE, EMBD, FFN);
    set_tensor(m, at + UP, EMBD, FFN);
    set_tensor(m, at + DOWN, FFN, EMBD);
    m->ops[(*n)++] = (struct infer_op){.kind = INFER_OP_QKV,
                                       .layer = layer,
                                       .norm = at + ATTN_NORM,
                                       .as.qkv = {.wq = at + WQ,
                                                  .wk = at + WK,
                                                  .wv = at + WV,
                                                  .bq = INFER_TENSOR_NONE,
                                                  .bk = INFER_TENSOR_NONE,
                                                  .bv = INFER_TENSOR_NONE,
                                                  .q_norm = INFER_TENSOR_NONE,
                                                  .k_norm = INFER_TENSOR_NONE}};
    m->ops[(*n)++] = (struct infer_op){.kind = INFER_OP_ATTEND,
                                       .layer = layer,
                                       .norm = INFER_TENSOR_NONE,
                                       .as.attend = {.scale = 0.17677669f}}; /* 1 / sqrt(32) */
    m->ops[(*n)++] = (struct infer_op){
        .kind = INFER_OP_PROJECT,
        .layer = layer,
        .norm = INFER_TENSOR_NONE,
        .as.project = {.from = INFER_VALUE_O, .w = at + WO, .b = INFER_TENSOR_NONE}};
    m->ops[(*n)++] = (struct infer_op){
        .kind = INFER_OP_FFN_GATED,
        .layer = layer,
        .norm = at + FFN_NORM,
        .as.ffn = {.gate = at + GATE, .up = at + UP, .activation = INFER_ACT_SILU}};
    m->ops[(*n)++] = (struct infer_op){
        .kind = INFER_OP_PROJECT,
        .layer = layer,
        .norm = INFER_TENSOR_NONE,
        .as.project = {.from = INFER_VALUE_T, .w = at + DOWN, .b = INFER_TENSOR_NONE}};
}

static void make_model(struct tiny *m)
{
    *m = (struct tiny){.random = SEED};
    m->plan = (struct infer_plan){.shape = {.n_layers = LAYERS,
                                            .n_embd = EMBD,
                                            .n_ffn = FFN,
                                            .n_vocab = VOCAB,
                                            .n_heads = HEADS,
                                            .n_kv_heads = KV_HEADS,
                                            .head_dim = HEAD_DIM,
                                            .head_dim_v = HEAD_DIM,
                                            .n_context = 2 * PAGE_TOKENS,
                                            .norm_eps = 1e-5f},
                                  .rope = {.style = INFER_ROPE_HALVES,
                                           .n_dims = HEAD_DIM,
                                           .inv_freq = m->inv_freq,
                                           .magnitude = 1},
                                  .tensors = m->tensors,
                                  .n_tensors = TENSORS,
                                  .ops = m->ops};
    for (uint32_t i = 0; i < HEAD_DIM / 2; i++)
        m->inv_freq[i] = 1.0f / (float)(1u << i);
    m->ops[m->plan.n_ops++] =
        (struct infer_op){.kind = INFER_OP_EMBED,
                          .norm = INFER_TENSOR_NONE,
                          .as.embed = {.table = set_tensor(m, EMBED, EMBD, VOCAB), .scale = 1}};
    for (uint32_t layer = 0; layer < LAYERS; layer++)
        add_layer(m, layer);
    m->ops[m->plan.n_ops++] =
        (struct infer_op){.kind = INFER_OP_HEAD,
                          .norm = set_tensor(m, NORM, EMBD, 1),
                          .as.head = {.w = set_tensor(m, HEAD, EMBD, VOCAB), .scale = 1}};
}

static int32_t next_random(struct tiny *m) /* in [-127, 127] */
{
    m->random = m->random * 6364136223846793005u + 1442695040888963407u;
    return (int32_t)((m->random >> 33) % 255u) - 127;
}

static void make_row(struct tiny *m, uint32_t tensor, uint8_t *row)
{
    const struct infer_tensor *t = &m->tensors[tensor];
    uint16_t scale = tensor == HEAD ? HALF_2_TO_MINUS_7 : HALF_2_TO_MINUS_9;
    for (uint32_t i = 0; i < t->ne[0]; i++) {
        int32_t value = next_random(m);
        if (t->type == INFER_TYPE_F32) { /* a norm: about 1 */
            float norm = 1.0f + (float)value / 512.0f;
            memcpy(row + i * sizeof norm, &norm, sizeof norm);
            continue;
        }
        uint8_t *block = row + i / BLOCK * BLOCK_BYTES;
        memcpy(block, &scale, sizeof scale);
        block[sizeof scale + i % BLOCK] = (uint8_t)(int8_t)value;
    }
}

static int write_weights(struct tiny *m, const struct infer_backend_api *api,
                         struct infer_backend_model *model)
{
    uint8_t row[ROW_BYTES_MAX];
    int rc = 0;
    for (uint32_t t = 0; t < TENSORS; t++)
        for (uint64_t i = 0; i < m->tensors[t].n_rows && rc == 0; i++) {
            make_row(m, t, row);
            rc = api->tensor_write(model, t, i, 1, row);
        }
    return rc < 0 ? rc : api->model_ready(model);
}

/* ---- running it ------------------------------------------------------------------------------ */

/* Rows of tokens from position on; the token that follows, and its log-probability. */
static int run(const struct infer_backend_api *api, struct infer_backend_model *model,
               const int32_t *tokens, uint32_t n, uint32_t position, int32_t *ret,
               float *ret_logprob)
{
    static const uint32_t pages[2] = {1, 0}; /* not in order */
    struct infer_sampling sampling;
    infer_sampling_default(&sampling);
    sampling.temperature = 0;
    struct infer_batch_seq seq = {.n_rows = n,
                                  .position = position,
                                  .n_pages = (position + n + PAGE_TOKENS - 1) / PAGE_TOKENS,
                                  .pages = pages};
    struct infer_batch_output output = {
        .row = n - 1, .sample = 1, .target = -1, .n_top = 1, .sampling = &sampling};
    struct infer_batch batch = {.n_rows = n,
                                .n_seqs = 1,
                                .n_outputs = 1,
                                .tokens = tokens,
                                .seqs = &seq,
                                .outputs = &output};
    int rc = api->run(model, &batch);
    *ret = output.token;
    *ret_logprob = output.logprob;
    return rc;
}

static int code_of(int rc)
{
    return rc == -ENODEV ? INFER_E_BACKEND_LOST : INFER_E_BACKEND_LOAD;
}

static int compare(const struct infer_backend_api *api, struct infer_backend *backend,
                   struct infer_backend_model *model, struct report *report)
{
    int32_t token = 0;
    float logprob = 0;
    for (uint32_t i = 0; i < ANSWER; i++) {
        int rc = i == 0 ? run(api, model, prompt, PROMPT, 0, &token, &logprob)
                        : run(api, model, &token, 1, PROMPT + i - 1, &token, &logprob);
        if (rc < 0)
            return report_fail(report, code_of(rc),
                               "backend %s: its self-test failed: %s; choose another --backend",
                               api->name, api->last_error(backend));
        /* written so that NaN is wrong */
        if (!(token == right_tokens[i] && fabsf(logprob - right_logprobs[i]) <= TOLERANCE))
            return report_fail(report, INFER_E_BACKEND_LOAD,
                               "backend %s computes wrongly: token %d with log-probability %.3f in "
                               "its self-test, where %d with %.3f is right; the device, its driver "
                               "or the build is at fault; choose another --backend",
                               api->name, token, (double)logprob, right_tokens[i],
                               (double)right_logprobs[i]);
    }
    return 0;
}

int selftest_run(const struct infer_backend_api *api, struct infer_backend *backend,
                 struct report *report)
{
    static struct tiny tiny;
    const struct infer_state_config state = {.page_tokens = PAGE_TOKENS,
                                             .n_pages = 2,
                                             .k_type = INFER_TYPE_F16,
                                             .v_type = INFER_TYPE_F16,
                                             .max_rows = PROMPT,
                                             .max_seqs = 1,
                                             .max_outputs = 1};
    struct infer_backend_model *model;
    if (strcmp(api->name, "null") == 0)
        return 0;
    make_model(&tiny);
    int rc = api->model_open(backend, &tiny.plan, &state, &model);
    bool open = rc == 0;
    if (open) {
        rc = write_weights(&tiny, api, model);
        if (rc == 0) {
            rc = compare(api, backend, model, report);
            api->model_close(model);
            return rc;
        }
    }
    rc = report_fail(report, code_of(rc),
                     "backend %s does not take the self-test's model: %s; choose another --backend",
                     api->name, api->last_error(backend));
    if (open)
        api->model_close(model);
    return rc;
}
