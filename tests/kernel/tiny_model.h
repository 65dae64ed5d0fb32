/* tiny_model.h: models of two layers with random weights, in the variants that a plan can express.
 * Header only; include after cmocka.h. */
#ifndef INFERD_TESTS_KERNEL_TINY_MODEL_H
#define INFERD_TESTS_KERNEL_TINY_MODEL_H

#include "inferd/backend.h"
#include "ref/quant.h"

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define LAYERS      2
#define EMBD        48
#define FFN         80
#define VOCAB       97
#define HEADS       4
#define KV_HEADS    2
#define PAGE_TOKENS 4
#define N_PAGES     40
#define MAX_ROWS    32
#define LENGTH      24 /* tokens of the test's sequence */
#define TENSORS_MAX 40
#define OPS_MAX     16

struct variant {
    const char *name;
    uint32_t rope_style, rope_dims;
    float magnitude;
    uint32_t head_dim, head_dim_v;
    uint32_t window, activation;
    bool biases, head_norms, tied;
    float embed_scale, head_scale;
    uint32_t weight_type; /* of the matrices whose rows allow it; else F32 */
};

static const struct variant variants[] = {
    {"llama", INFER_ROPE_PAIRS, 32, 1, 32, 32, 0, INFER_ACT_SILU, false, false, false, 1, 1,
     INFER_TYPE_F32},
    {"qwen2: halves, biases, tied", INFER_ROPE_HALVES, 32, 1, 32, 32, 0, INFER_ACT_SILU, true,
     false, true, 1, 1, INFER_TYPE_BF16},
    {"qwen3: halves, head norms", INFER_ROPE_HALVES, 32, 1, 32, 32, 0, INFER_ACT_SILU, false, true,
     false, 1, 1, INFER_TYPE_F16},
    {"partial rope with magnitude, pairs, window", INFER_ROPE_PAIRS, 16, 1.25f, 32, 32, 5,
     INFER_ACT_SILU, false, false, false, 1, 1, INFER_TYPE_F32},
    {"partial rope, halves, gelu, scales, other values", INFER_ROPE_HALVES, 24, 1, 32, 64, 3,
     INFER_ACT_GELU_TANH, true, true, true, 6.5f, 0.25f, INFER_TYPE_F32},
    {"no rope, odd head size", INFER_ROPE_PAIRS, 0, 1, 10, 6, 0, INFER_ACT_SILU, false, false,
     false, 1, 1, INFER_TYPE_F32},
};
#define N_VARIANTS (sizeof variants / sizeof variants[0])

struct tiny {
    struct variant variant;
    struct infer_plan plan;
    struct infer_tensor tensors[TENSORS_MAX];
    struct infer_op ops[OPS_MAX];
    float inv_freq[16];
    uint8_t *encoded[TENSORS_MAX]; /* what goes to the backend */
    float *values[TENSORS_MAX];    /* the same, decoded */
};

static uint64_t random_state;

static float random_value(void) /* in [-1, 1) */
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (float)(int32_t)(random_state >> 32) * 0x1p-31f;
}

static uint32_t tiny_tensor(struct tiny *m, const char *name, uint32_t layer, uint64_t rows,
                            uint64_t cols, float center, float spread)
{
    uint32_t index = m->plan.n_tensors++;
    struct infer_tensor *t = &m->tensors[index];
    uint32_t type = rows > 1 ? m->variant.weight_type : INFER_TYPE_F32;
    assert_true(index < TENSORS_MAX);
    snprintf(t->name, sizeof t->name, "blk.%u.%s", layer, name);
    t->type = type;
    t->n_dims = rows > 1 ? 2 : 1;
    t->ne[0] = cols;
    t->ne[1] = rows;
    t->ne[2] = t->ne[3] = 1;
    t->row_bytes = ref_row_bytes(type, cols);
    t->n_rows = rows;
    m->values[index] = malloc(rows * cols * sizeof(float));
    m->encoded[index] = malloc(rows * t->row_bytes);
    for (uint64_t i = 0; i < rows * cols; i++)
        m->values[index][i] = center + spread * random_value();
    for (uint64_t r = 0; r < rows; r++) {
        float *row = m->values[index] + r * cols;
        assert_true(ref_encode_row(type, row, m->encoded[index] + r * t->row_bytes, cols));
        ref_decode_row(type, m->encoded[index] + r * t->row_bytes, row, cols);
    }
    return index;
}

static struct infer_op *tiny_op(struct tiny *m, uint32_t kind, uint32_t layer)
{
    struct infer_op *op = &m->ops[m->plan.n_ops++];
    assert_true(m->plan.n_ops <= OPS_MAX);
    op->kind = kind;
    op->layer = layer;
    op->norm = INFER_TENSOR_NONE;
    return op;
}

static void tiny_layer(struct tiny *m, uint32_t l)
{
    const struct variant *v = &m->variant;
    uint64_t n_q = HEADS * v->head_dim, n_k = KV_HEADS * v->head_dim;
    uint64_t n_v = KV_HEADS * v->head_dim_v, n_o = HEADS * v->head_dim_v;
    uint32_t none = INFER_TENSOR_NONE;

    struct infer_op *op = tiny_op(m, INFER_OP_QKV, l);
    op->norm = tiny_tensor(m, "attn_norm", l, 1, EMBD, 1, 0.3f);
    op->as.qkv.wq = tiny_tensor(m, "attn_q", l, n_q, EMBD, 0, 0.3f);
    op->as.qkv.wk = tiny_tensor(m, "attn_k", l, n_k, EMBD, 0, 0.3f);
    op->as.qkv.wv = tiny_tensor(m, "attn_v", l, n_v, EMBD, 0, 0.3f);
    op->as.qkv.bq = v->biases ? tiny_tensor(m, "bq", l, 1, n_q, 0, 0.5f) : none;
    op->as.qkv.bk = v->biases ? tiny_tensor(m, "bk", l, 1, n_k, 0, 0.5f) : none;
    op->as.qkv.bv = v->biases ? tiny_tensor(m, "bv", l, 1, n_v, 0, 0.5f) : none;
    op->as.qkv.q_norm = v->head_norms ? tiny_tensor(m, "qn", l, 1, v->head_dim, 1, 0.3f) : none;
    op->as.qkv.k_norm = v->head_norms ? tiny_tensor(m, "kn", l, 1, v->head_dim, 1, 0.3f) : none;

    op = tiny_op(m, INFER_OP_ATTEND, l);
    op->as.attend.scale = 1 / sqrtf((float)v->head_dim);
    op->as.attend.window = v->window;

    op = tiny_op(m, INFER_OP_PROJECT, l);
    op->as.project.from = INFER_VALUE_O;
    op->as.project.w = tiny_tensor(m, "attn_output", l, EMBD, n_o, 0, 0.2f);
    op->as.project.b = v->biases ? tiny_tensor(m, "bo", l, 1, EMBD, 0, 0.5f) : none;
    tiny_op(m, INFER_OP_ALL_REDUCE, l);

    op = tiny_op(m, INFER_OP_FFN_GATED, l);
    op->norm = tiny_tensor(m, "ffn_norm", l, 1, EMBD, 1, 0.3f);
    op->as.ffn.gate = tiny_tensor(m, "ffn_gate", l, FFN, EMBD, 0, 0.4f);
    op->as.ffn.up = tiny_tensor(m, "ffn_up", l, FFN, EMBD, 0, 0.4f);
    op->as.ffn.activation = v->activation;

    op = tiny_op(m, INFER_OP_PROJECT, l);
    op->as.project.from = INFER_VALUE_T;
    op->as.project.w = tiny_tensor(m, "ffn_down", l, EMBD, FFN, 0, 0.2f);
    op->as.project.b = none;
}

static struct tiny *tiny_new(const struct variant *variant)
{
    struct tiny *m = calloc(1, sizeof *m);
    assert_non_null(m);
    m->variant = *variant;
    random_state = 42;
    m->plan.shape = (struct infer_shape){
        .n_layers = LAYERS,
        .n_embd = EMBD,
        .n_ffn = FFN,
        .n_vocab = VOCAB,
        .n_heads = HEADS,
        .n_kv_heads = KV_HEADS,
        .head_dim = variant->head_dim,
        .head_dim_v = variant->head_dim_v,
        .n_context = 64,
        .norm_eps = 1e-5f,
    };
    for (uint32_t i = 0; i < variant->rope_dims / 2; i++)
        m->inv_freq[i] = powf(1000.0f, -2.0f * (float)i / (float)variant->rope_dims);
    m->plan.rope = (struct infer_rope){variant->rope_style, variant->rope_dims, m->inv_freq,
                                       variant->magnitude};
    m->plan.tensors = m->tensors;
    m->plan.ops = m->ops;

    struct infer_op *op = tiny_op(m, INFER_OP_EMBED, 0);
    op->as.embed.table = tiny_tensor(m, "token_embd", 0, VOCAB, EMBD, 0, 1);
    op->as.embed.scale = variant->embed_scale;
    for (uint32_t l = 0; l < LAYERS; l++)
        tiny_layer(m, l);
    op = tiny_op(m, INFER_OP_HEAD, 0);
    op->norm = tiny_tensor(m, "output_norm", 0, 1, EMBD, 1, 0.3f);
    op->as.head.w = variant->tied ? m->ops[0].as.embed.table
                                  : tiny_tensor(m, "output", 0, VOCAB, EMBD, 0, 0.5f);
    op->as.head.scale = variant->head_scale;
    return m;
}

static void tiny_free(struct tiny *m)
{
    for (uint32_t i = 0; i < m->plan.n_tensors; i++) {
        free(m->values[i]);
        free(m->encoded[i]);
    }
    free(m);
}

#endif
