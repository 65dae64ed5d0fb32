/* plan.c: builds the plan: hyperparameters, tensors, operations. See plan.h and architecture.h.
 *
 * Owns: the plan's four arrays. Invariants of a finished plan, which a backend relies on: every
 * tensor index in an operation is below n_tensors or INFER_TENSOR_NONE where that is allowed; every
 * tensor has the shape that the operation's comment in backend.h gives, in a type of enum
 * infer_type, norms and biases in F32; n_heads is a multiple of n_kv_heads; each tensor of the
 * file is used, but for those listed as harmless. Threads: plan_new() any, one per plan; no state
 * of its own. Limits: below; the products of any of them fit 64 bits. */
#include "model/plan.h"

#include "model/architecture.h"
#include "model/gguf_head.h"

#include <assert.h>
#include <inttypes.h>
#include <malloc.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LAYERS_MAX    1024u
#define WIDTH_MAX     (1u << 17) /* n_embd */
#define FFN_MAX       (1u << 20)
#define HEADS_MAX     1024u
#define HEAD_DIM_MAX  1024u
#define CONTEXT_MAX   (1u << 30)
#define OPS_PER_LAYER 5u

static const struct architecture *const architecture_table[] = {
    &architecture_llama,
    &architecture_qwen2,
    &architecture_qwen3,
};

int plan_fail(struct plan_builder *b, int code, const char *format, ...)
{
    char sentence[INFER_DETAIL_MAX];
    va_list args;
    va_start(args, format);
    vsnprintf(sentence, sizeof sentence, format, args);
    va_end(args);
    return report_fail(b->report, code, "%.128s: %s", b->file, sentence);
}

/* ---- keys ------------------------------------------------------------------------------------ */

int plan_key_u32(struct plan_builder *b, const char *name, uint32_t min, uint32_t max,
                 uint32_t *ret)
{
    char key[96];
    uint64_t v = 0;
    snprintf(key, sizeof key, "%s.%s", b->architecture, name);
    enum gguf_value_type type;
    if (!gguf_has(b->g, key, &type))
        return 0;
    if (type == GGUF_ARRAY)
        return plan_fail(b, INFER_E_MODEL_UNSUPPORTED,
                         "key '%s' is an array: layers that differ are not known for this "
                         "architecture",
                         key);
    if (!gguf_get_u64(b->g, key, &v))
        return plan_fail(b, INFER_E_MODEL_FORMAT, "key '%s' is not a whole number from 0 on", key);
    if (v < min || v > max)
        return plan_fail(b, INFER_E_MODEL_FORMAT,
                         "key '%s' is %" PRIu64 "; %" PRIu32 " to %" PRIu32 " are possible", key, v,
                         min, max);
    *ret = (uint32_t)v;
    return 0;
}

int plan_key_f32(struct plan_builder *b, const char *name, float min, float max, float *ret)
{
    char key[96];
    float v = 0;
    snprintf(key, sizeof key, "%s.%s", b->architecture, name);
    if (!gguf_has(b->g, key, NULL))
        return 0;
    if (!gguf_get_f32(b->g, key, &v))
        return plan_fail(b, INFER_E_MODEL_FORMAT, "key '%s' is not a float32", key);
    if (!(v >= min && v <= max))
        return plan_fail(b, INFER_E_MODEL_FORMAT, "key '%s' is %g; %g to %g are possible", key,
                         (double)v, (double)min, (double)max);
    *ret = v;
    return 0;
}

static int key_required(struct plan_builder *b, const char *name, uint32_t min, uint32_t max,
                        uint32_t *ret)
{
    char key[96];
    snprintf(key, sizeof key, "%s.%s", b->architecture, name);
    if (!gguf_has(b->g, key, NULL))
        return plan_fail(b, INFER_E_MODEL_FORMAT, "key '%s' is missing", key);
    return plan_key_u32(b, name, min, max, ret);
}

/* Keys that change what the model computes in a way that no operation here has. */
static int keys_refuse(struct plan_builder *b)
{
    static const struct {
        const char *name;
        double neutral;
    } keys[] = {
        {"expert_count", 0},
        {"attention.clamp_kqv", 0},
        {"attention.max_alibi_bias", 0},
        {"attention.scale", 0},
        {"attention.temperature_scale", 0},
        {"attn_logit_softcapping", 0},
        {"final_logit_softcapping", 0},
        {"embedding_scale", 1},
        {"residual_scale", 1},
        {"logit_scale", 1},
    };
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        char key[96], text[64] = "?";
        uint32_t u = 0;
        float f = 0;
        snprintf(key, sizeof key, "%s.%s", b->architecture, keys[i].name);
        if (!gguf_has(b->g, key, NULL))
            continue;
        if (gguf_get_u32(b->g, key, &u)) {
            if ((double)u == keys[i].neutral)
                continue;
            snprintf(text, sizeof text, "%" PRIu32, u);
        } else if (gguf_get_f32(b->g, key, &f)) {
            if ((double)f == keys[i].neutral || f == 0)
                continue;
            snprintf(text, sizeof text, "%g", (double)f);
        }
        if (strcmp(keys[i].name, "expert_count") == 0)
            return plan_fail(b, INFER_E_MODEL_UNSUPPORTED,
                             "key '%s' is %s: mixtures of experts are not supported", key, text);
        return plan_fail(b, INFER_E_MODEL_UNSUPPORTED,
                         "key '%s' is %s, which is not known for this architecture", key, text);
    }
    char key[96];
    bool causal = true;
    snprintf(key, sizeof key, "%s.attention.causal", b->architecture);
    if (gguf_get_bool(b->g, key, &causal) && !causal)
        return plan_fail(b, INFER_E_MODEL_UNSUPPORTED,
                         "key '%s' is false: this model reads text, it does not write it", key);
    return 0;
}

static int shape_heads(struct plan_builder *b)
{
    struct infer_shape *s = &b->shape;
    int r = key_required(b, "attention.head_count", 1, HEADS_MAX, &s->n_heads);
    s->n_kv_heads = s->n_heads;
    if (r == 0)
        r = plan_key_u32(b, "attention.head_count_kv", 1, HEADS_MAX, &s->n_kv_heads);
    if (r < 0)
        return r;
    if (s->n_heads % s->n_kv_heads != 0)
        return plan_fail(b, INFER_E_MODEL_FORMAT,
                         "key '%s.attention.head_count' is %" PRIu32
                         ", not a multiple of head_count_kv %" PRIu32,
                         b->architecture, s->n_heads, s->n_kv_heads);
    s->head_dim = s->head_dim_v = 0;
    if (s->n_embd % s->n_heads == 0)
        s->head_dim = s->head_dim_v = s->n_embd / s->n_heads;
    r = plan_key_u32(b, "attention.key_length", 1, HEAD_DIM_MAX, &s->head_dim);
    if (r == 0)
        r = plan_key_u32(b, "attention.value_length", 1, HEAD_DIM_MAX, &s->head_dim_v);
    if (r < 0)
        return r;
    if (s->head_dim == 0 || s->head_dim_v == 0)
        return plan_fail(b, INFER_E_MODEL_FORMAT,
                         "%" PRIu32 " heads do not divide the embedding_length %" PRIu32
                         ", and there is no key '%s.attention.key_length' and value_length",
                         s->n_heads, s->n_embd, b->architecture);
    if (s->head_dim > HEAD_DIM_MAX || s->head_dim % 2 != 0)
        return plan_fail(b, INFER_E_MODEL_UNSUPPORTED,
                         "heads of %" PRIu32 " values; even sizes up to %u are supported",
                         s->head_dim, HEAD_DIM_MAX);
    return 0;
}

static int shape_vocabulary(struct plan_builder *b)
{
    const struct gguf_tensor *t = gguf_find_tensor(b->g, "token_embd.weight");
    uint64_t n_tokens = 0;
    if (t == NULL)
        return plan_fail(b, INFER_E_MODEL_FORMAT, "tensor 'token_embd.weight' is missing");
    if (t->tensor.n_rows > INFER_VOCAB_MAX)
        return plan_fail(b, INFER_E_MODEL_UNSUPPORTED,
                         "tensor 'token_embd.weight' has %" PRIu64
                         " rows; vocabularies of up to %u "
                         "tokens are supported",
                         t->tensor.n_rows, INFER_VOCAB_MAX);
    b->shape.n_vocab = (uint32_t)t->tensor.n_rows;
    if (gguf_get_array(b->g, "tokenizer.ggml.tokens", GGUF_STRING, &n_tokens) &&
        n_tokens != b->shape.n_vocab)
        return plan_fail(b, INFER_E_MODEL_FORMAT,
                         "key 'tokenizer.ggml.tokens' holds %" PRIu64
                         " tokens, but tensor 'token_embd.weight' has %" PRIu32 " rows",
                         n_tokens, b->shape.n_vocab);
    return 0;
}

static int shape_window(struct plan_builder *b, const struct architecture *a)
{
    int r = plan_key_u32(b, "attention.sliding_window", 0, UINT32_MAX, &b->window);
    if (r < 0)
        return r;
    if (b->window >= b->shape.n_context)
        b->window = 0;
    if (b->window > 0 && !a->has_window)
        return plan_fail(b, INFER_E_MODEL_UNSUPPORTED,
                         "key '%s.attention.sliding_window' is %" PRIu32
                         ", and this architecture's files do not say for which layers",
                         b->architecture, b->window);
    return 0;
}

static int shape_read(struct plan_builder *b, const struct architecture *a)
{
    struct infer_shape *s = &b->shape;
    char key[96];
    int r = keys_refuse(b);
    if (r == 0)
        r = key_required(b, "block_count", 1, LAYERS_MAX, &s->n_layers);
    if (r == 0)
        r = key_required(b, "context_length", 1, CONTEXT_MAX, &s->n_context);
    if (r == 0)
        r = key_required(b, "embedding_length", 1, WIDTH_MAX, &s->n_embd);
    if (r == 0)
        r = key_required(b, "feed_forward_length", 1, FFN_MAX, &s->n_ffn);
    if (r == 0)
        r = shape_heads(b);
    if (r < 0)
        return r;
    snprintf(key, sizeof key, "%s.attention.layer_norm_rms_epsilon", b->architecture);
    if (!gguf_has(b->g, key, NULL))
        return plan_fail(b, INFER_E_MODEL_FORMAT, "key '%s' is missing", key);
    r = plan_key_f32(b, "attention.layer_norm_rms_epsilon", 0, 1, &s->norm_eps);
    if (r == 0)
        r = shape_window(b, a);
    return r < 0 ? r : shape_vocabulary(b);
}

/* ---- tensors --------------------------------------------------------------------------------- */

static void tensor_name(char name[64], int layer, const char *stem)
{
    if (layer < 0)
        snprintf(name, 64, "%s", stem);
    else
        snprintf(name, 64, "blk.%d.%s", layer, stem);
}

/* "2 x 3 x 4", rows last as in the file. */
static void shape_text(const struct infer_tensor *t, char text[96])
{
    size_t n = 0;
    for (uint32_t d = 0; d < t->n_dims; d++)
        n += (size_t)snprintf(text + n, 96 - n, "%s%" PRIu64, d ? " x " : "", t->ne[d]);
}

/* Finds, checks and adds a tensor. rows 0: a float32 vector. */
static int tensor_add(struct plan_builder *b, const char *name, uint64_t rows, uint64_t columns,
                      uint32_t *ret)
{
    const struct gguf_tensor *t = gguf_find_tensor(b->g, name);
    char shape[96];
    if (t == NULL)
        return plan_fail(b, INFER_E_MODEL_FORMAT, "tensor '%s' is missing", name);
    const struct infer_tensor *x = &t->tensor;
    if (x->ne[0] != columns || x->n_rows != (rows > 0 ? rows : 1) || x->ne[2] != 1 ||
        x->ne[3] != 1) {
        shape_text(x, shape);
        if (rows > 0)
            return plan_fail(b, INFER_E_MODEL_FORMAT,
                             "tensor '%s' has the shape %s; %" PRIu64 " x %" PRIu64 " is expected",
                             name, shape, columns, rows);
        return plan_fail(b, INFER_E_MODEL_FORMAT,
                         "tensor '%s' has the shape %s; %" PRIu64 " is expected", name, shape,
                         columns);
    }
    if (rows == 0 && x->type != INFER_TYPE_F32)
        return plan_fail(b, INFER_E_MODEL_UNSUPPORTED,
                         "tensor '%s' has the type %s; F32 is expected of norms and biases", name,
                         type_info(x->type)->name);
    if (!type_info(x->type)->readable)
        return plan_fail(b, INFER_E_MODEL_UNSUPPORTED,
                         "tensor '%s' has the type %s, which inferd does not compute with", name,
                         type_info(x->type)->name);
    uint32_t index = (uint32_t)(t - gguf_tensor(b->g, 0));
    if (b->plan_index[index] == INFER_TENSOR_NONE) {
        uint32_t i = b->n_tensors++;
        b->plan_index[index] = i;
        b->plan->tensors[i] = *x;
        b->plan->tensor_map[i] = index;
        b->plan->n_parameters += x->ne[0] * x->n_rows;
        b->plan->file_bytes += t->bytes;
    }
    *ret = b->plan_index[index];
    return 0;
}

int plan_matrix(struct plan_builder *b, int layer, const char *name, uint64_t rows,
                uint64_t columns, uint32_t *ret)
{
    char full[64];
    tensor_name(full, layer, name);
    return tensor_add(b, full, rows, columns, ret);
}

int plan_vector(struct plan_builder *b, int layer, const char *name, uint64_t n, uint32_t *ret)
{
    char full[64];
    tensor_name(full, layer, name);
    return tensor_add(b, full, 0, n, ret);
}

int plan_vector_optional(struct plan_builder *b, int layer, const char *name, uint64_t n,
                         uint32_t *ret)
{
    char full[64];
    tensor_name(full, layer, name);
    if (gguf_find_tensor(b->g, full) == NULL) {
        *ret = INFER_TENSOR_NONE;
        return 0;
    }
    return tensor_add(b, full, 0, n, ret);
}

/* A tensor that no operation uses means that the model computes something else. */
static int tensors_check_used(struct plan_builder *b)
{
    for (uint32_t i = 0; i < gguf_n_tensors(b->g); i++) {
        const char *name = gguf_tensor(b->g, i)->tensor.name;
        const char *tail = strrchr(name, '.');
        if (b->plan_index[i] != INFER_TENSOR_NONE || strcmp(name, "rope_freqs.weight") == 0)
            continue;
        /* Tables of rotations that old converters wrote; computed here. */
        if (strcmp(name, "rope_freqs") == 0 ||
            (tail != NULL && strcmp(tail, ".attn_rot_embd") == 0) ||
            strstr(name, ".attn_rot_embd.") != NULL || strstr(name, ".rotary_emb.inv_freq") != NULL)
            continue;
        return plan_fail(b, INFER_E_MODEL_UNSUPPORTED,
                         "tensor '%s' has no use in the architecture '%s' as it is known here",
                         name, b->architecture);
    }
    return 0;
}

/* ---- operations ------------------------------------------------------------------------------ */

static void op_add(struct plan_builder *b, const struct infer_op *op)
{
    assert(b->n_ops < b->ops_max);
    b->plan->ops[b->n_ops++] = *op;
}

int plan_embed(struct plan_builder *b)
{
    struct infer_op op = {.kind = INFER_OP_EMBED, .norm = INFER_TENSOR_NONE};
    op.as.embed.scale = 1;
    int r = plan_matrix(b, -1, "token_embd.weight", b->shape.n_vocab, b->shape.n_embd,
                        &op.as.embed.table);
    if (r == 0)
        op_add(b, &op);
    return r;
}

static int qkv_biases(struct plan_builder *b, uint32_t layer, uint32_t flags, struct infer_op *op)
{
    const struct infer_shape *s = &b->shape;
    uint64_t n_q = (uint64_t)s->n_heads * s->head_dim, n_k = (uint64_t)s->n_kv_heads * s->head_dim;
    uint64_t n_v = (uint64_t)s->n_kv_heads * s->head_dim_v;
    op->as.qkv.bq = op->as.qkv.bk = op->as.qkv.bv = INFER_TENSOR_NONE;
    op->as.qkv.q_norm = op->as.qkv.k_norm = INFER_TENSOR_NONE;
    int r = 0;
    if (flags & (PLAN_BIAS_QKV | PLAN_BIAS_QKV_OPTIONAL)) {
        int (*vector)(struct plan_builder *, int, const char *, uint64_t, uint32_t *) =
            flags & PLAN_BIAS_QKV ? plan_vector : plan_vector_optional;
        r = vector(b, (int)layer, "attn_q.bias", n_q, &op->as.qkv.bq);
        if (r == 0)
            r = vector(b, (int)layer, "attn_k.bias", n_k, &op->as.qkv.bk);
        if (r == 0)
            r = vector(b, (int)layer, "attn_v.bias", n_v, &op->as.qkv.bv);
    }
    if (r == 0 && (flags & PLAN_HEAD_NORMS)) {
        r = plan_vector(b, (int)layer, "attn_q_norm.weight", s->head_dim, &op->as.qkv.q_norm);
        if (r == 0)
            r = plan_vector(b, (int)layer, "attn_k_norm.weight", s->head_dim, &op->as.qkv.k_norm);
    }
    return r;
}

int plan_attention(struct plan_builder *b, uint32_t layer, uint32_t flags)
{
    const struct infer_shape *s = &b->shape;
    int l = (int)layer;
    struct infer_op qkv = {.kind = INFER_OP_QKV, .layer = layer};
    int r = plan_vector(b, l, "attn_norm.weight", s->n_embd, &qkv.norm);
    if (r == 0)
        r = plan_matrix(b, l, "attn_q.weight", (uint64_t)s->n_heads * s->head_dim, s->n_embd,
                        &qkv.as.qkv.wq);
    if (r == 0)
        r = plan_matrix(b, l, "attn_k.weight", (uint64_t)s->n_kv_heads * s->head_dim, s->n_embd,
                        &qkv.as.qkv.wk);
    if (r == 0)
        r = plan_matrix(b, l, "attn_v.weight", (uint64_t)s->n_kv_heads * s->head_dim_v, s->n_embd,
                        &qkv.as.qkv.wv);
    if (r == 0)
        r = qkv_biases(b, layer, flags, &qkv);
    if (r < 0)
        return r;
    struct infer_op attend = {.kind = INFER_OP_ATTEND, .layer = layer, .norm = INFER_TENSOR_NONE};
    attend.as.attend.scale = (float)(1 / sqrt((double)s->head_dim));
    attend.as.attend.window = b->window;
    struct infer_op out = {.kind = INFER_OP_PROJECT, .layer = layer, .norm = INFER_TENSOR_NONE};
    out.as.project.from = INFER_VALUE_O;
    out.as.project.b = INFER_TENSOR_NONE;
    r = plan_matrix(b, l, "attn_output.weight", s->n_embd, (uint64_t)s->n_heads * s->head_dim_v,
                    &out.as.project.w);
    if (r == 0 && (flags & PLAN_BIAS_OUT_OPTIONAL))
        r = plan_vector_optional(b, l, "attn_output.bias", s->n_embd, &out.as.project.b);
    if (r < 0)
        return r;
    op_add(b, &qkv);
    op_add(b, &attend);
    op_add(b, &out);
    return 0;
}

int plan_ffn_gated(struct plan_builder *b, uint32_t layer, enum infer_activation activation)
{
    const struct infer_shape *s = &b->shape;
    int l = (int)layer;
    struct infer_op ffn = {.kind = INFER_OP_FFN_GATED, .layer = layer};
    ffn.as.ffn.activation = activation;
    struct infer_op down = {.kind = INFER_OP_PROJECT, .layer = layer, .norm = INFER_TENSOR_NONE};
    down.as.project.from = INFER_VALUE_T;
    down.as.project.b = INFER_TENSOR_NONE;
    int r = plan_vector(b, l, "ffn_norm.weight", s->n_embd, &ffn.norm);
    if (r == 0)
        r = plan_matrix(b, l, "ffn_gate.weight", s->n_ffn, s->n_embd, &ffn.as.ffn.gate);
    if (r == 0)
        r = plan_matrix(b, l, "ffn_up.weight", s->n_ffn, s->n_embd, &ffn.as.ffn.up);
    if (r == 0)
        r = plan_matrix(b, l, "ffn_down.weight", s->n_embd, s->n_ffn, &down.as.project.w);
    if (r < 0)
        return r;
    op_add(b, &ffn);
    op_add(b, &down);
    return 0;
}

int plan_head(struct plan_builder *b)
{
    struct infer_op op = {.kind = INFER_OP_HEAD};
    op.as.head.scale = 1;
    bool tied = gguf_find_tensor(b->g, "output.weight") == NULL;
    int r = plan_vector(b, -1, "output_norm.weight", b->shape.n_embd, &op.norm);
    if (r == 0)
        r = plan_matrix(b, -1, tied ? "token_embd.weight" : "output.weight", b->shape.n_vocab,
                        b->shape.n_embd, &op.as.head.w);
    if (r == 0)
        op_add(b, &op);
    return r;
}

/* ---- the plan -------------------------------------------------------------------------------- */

/* Copies what a person will read: printable, cut at size. */
static void text_copy(char *to, size_t size, const char *from, size_t bytes)
{
    size_t n = bytes < size - 1 ? bytes : size - 1;
    while (n < bytes && n > 0 && ((unsigned char)from[n] & 0xc0) == 0x80)
        n--;
    for (size_t i = 0; i < n; i++)
        to[i] = (unsigned char)from[i] < 0x20 || from[i] == 0x7f ? '?' : from[i];
    to[n] = '\0';
}

static void plan_describe(struct plan_builder *b)
{
    struct plan *p = b->plan;
    struct gguf_string name;
    size_t stem = strlen(b->file);
    if (stem > 5 && strcmp(b->file + stem - 5, ".gguf") == 0)
        stem -= 5;
    if (gguf_get_string(b->g, "general.name", &name) && name.bytes > 0)
        text_copy(p->name, sizeof p->name, name.data, name.bytes);
    else
        text_copy(p->name, sizeof p->name, b->file, stem);

    uint64_t bytes[64] = {0}; /* by type; ids of readable types are below 64 */
    uint32_t main_type = 0;
    for (uint32_t i = 0; i < b->n_tensors; i++) {
        uint32_t type = p->tensors[i].type;
        assert(type < 64);
        bytes[type] += p->tensors[i].row_bytes * p->tensors[i].n_rows;
        if (bytes[type] > bytes[main_type])
            main_type = type;
    }
    static const char units[] = "KMBT";
    double n = (double)p->n_parameters / 1e3;
    size_t unit = 0;
    while (n >= 999.5 && unit + 2 < sizeof units) {
        n /= 1e3;
        unit++;
    }
    snprintf(p->description, sizeof p->description, n < 99.95 ? "%.1f%c %s" : "%.0f%c %s", n,
             units[unit], type_info(main_type)->name);
}

static int plan_allocate(struct plan_builder *b)
{
    uint32_t n = gguf_n_tensors(b->g);
    struct plan *p = b->plan;
    b->ops_max = 2 + OPS_PER_LAYER * b->shape.n_layers;
    p->tensors = calloc(n, sizeof *p->tensors);
    p->tensor_map = calloc(n, sizeof *p->tensor_map);
    p->ops = calloc(b->ops_max, sizeof *p->ops);
    b->plan_index = malloc(n * sizeof *b->plan_index);
    if (p->tensors == NULL || p->tensor_map == NULL || p->ops == NULL || b->plan_index == NULL)
        return plan_fail(b, INFER_E_OUT_OF_MEMORY, "no memory for its plan");
    for (uint32_t i = 0; i < n; i++)
        b->plan_index[i] = INFER_TENSOR_NONE;
    return 0;
}

static int architecture_find(struct plan_builder *b, const struct architecture **ret)
{
    struct gguf_string name, type;
    if (gguf_get_string(b->g, "general.type", &type) &&
        !(type.bytes == 5 && memcmp(type.data, "model", 5) == 0))
        return plan_fail(
            b, INFER_E_MODEL_UNSUPPORTED,
            "key 'general.type' is '%.*s': this is a part of a model or an addition to "
            "one, not a model",
            type.bytes < 40 ? (int)type.bytes : 40, type.data);
    if (!gguf_get_string(b->g, "general.architecture", &name))
        return plan_fail(b, INFER_E_MODEL_FORMAT, "key 'general.architecture' is missing");
    if (gguf_n_tensors(b->g) == 0)
        return plan_fail(b, INFER_E_MODEL_UNSUPPORTED,
                         "the file holds a vocabulary only, no weights; it can be inspected, not "
                         "served");
    for (size_t i = 0; i < sizeof architecture_table / sizeof architecture_table[0]; i++) {
        const struct architecture *a = architecture_table[i];
        if (strlen(a->name) == name.bytes && memcmp(a->name, name.data, name.bytes) == 0) {
            *ret = a;
            return 0;
        }
    }
    int shown = name.bytes < 60 ? (int)name.bytes : 60;
    return plan_fail(b, INFER_E_MODEL_UNSUPPORTED,
                     "the architecture '%.*s' is not supported; llama, qwen2 and qwen3 are", shown,
                     name.data);
}

static int plan_build(struct plan_builder *b)
{
    const struct architecture *a = NULL;
    int r = architecture_find(b, &a);
    if (r < 0)
        return r;
    snprintf(b->architecture, sizeof b->architecture, "%s", a->name);
    r = shape_read(b, a);
    if (r == 0)
        r = plan_allocate(b);
    if (r == 0)
        r = plan_rope(b, a->rope_style);
    if (r == 0)
        r = a->build(b);
    if (r == 0)
        r = tensors_check_used(b);
    if (r < 0)
        return r;
    struct plan *p = b->plan;
    p->backend.shape = b->shape;
    p->backend.tensors = p->tensors;
    p->backend.n_tensors = b->n_tensors;
    p->backend.ops = p->ops;
    p->backend.n_ops = b->n_ops;
    p->gguf_tensor = p->tensor_map;
    memcpy(p->architecture, b->architecture, sizeof p->architecture);
    plan_describe(b);
    return 0;
}

static uint64_t step_bytes(const struct plan *p)
{
    uint32_t table = INFER_TENSOR_NONE;
    for (uint32_t i = 0; i < p->backend.n_ops; i++) {
        const struct infer_op *op = &p->backend.ops[i];
        if (op->kind == INFER_OP_EMBED)
            table = op->as.embed.table;
        else if (op->kind == INFER_OP_HEAD && op->as.head.w == table)
            table = INFER_TENSOR_NONE;
    }
    if (table == INFER_TENSOR_NONE)
        return p->file_bytes;
    return p->file_bytes - p->tensors[table].row_bytes * p->tensors[table].n_rows;
}

int plan_new(const struct gguf *g, struct plan **ret, struct report *report)
{
    struct plan_builder b = {
        .g = g, .report = report, .file = gguf_file_name(gguf_part_path(g, 0))};
    b.plan = calloc(1, sizeof *b.plan);
    if (b.plan == NULL)
        return plan_fail(&b, INFER_E_OUT_OF_MEMORY, "no memory for its plan");
    int r = plan_build(&b);
    free(b.plan_index);
    if (r < 0) {
        plan_free(b.plan);
        return r;
    }
    b.plan->step_bytes = step_bytes(b.plan);
    *ret = b.plan;
    return 0;
}

size_t plan_bytes(const struct plan *p)
{
    return malloc_usable_size((void *)(uintptr_t)p) + malloc_usable_size(p->tensors) +
           malloc_usable_size(p->tensor_map) + malloc_usable_size(p->ops) +
           malloc_usable_size(p->inv_freq);
}

void plan_free(struct plan *p)
{
    if (p == NULL)
        return;
    free(p->tensors);
    free(p->tensor_map);
    free(p->ops);
    free(p->inv_freq);
    free(p);
}
