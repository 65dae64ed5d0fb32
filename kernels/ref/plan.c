/* plan.c: which plans the reference backend runs: all that backend.h can express, if consistent.
 *
 * The daemon has checked the plan too; this is the second lock, and where a new operation or
 * tensor type is refused by name. Pure; the reason is left in the backend's last_error. */
#include "ref/cache.h"
#include "ref/model.h"
#include "ref/quant.h"

#include <errno.h>

struct checker {
    struct infer_backend *backend;
    const struct infer_plan *plan;
};

static int check_matrix(const struct checker *c, const char *role, uint32_t tensor, uint64_t n_out,
                        uint64_t n_in)
{
    if (tensor >= c->plan->n_tensors)
        return ref_fail(c->backend, -EINVAL, "the plan names no tensor as %s", role);
    const struct infer_tensor *t = &c->plan->tensors[tensor];
    if (!ref_type_known(t->type))
        return ref_fail(c->backend, -ENOTSUP, "tensor %.64s has type %u, which is not supported",
                        t->name, t->type);
    if (t->ne[0] != n_in || t->n_rows != n_out)
        return ref_fail(c->backend, -EINVAL,
                        "tensor %.64s is %llu x %llu, but %s must be %llu x %llu", t->name,
                        (unsigned long long)t->ne[0], (unsigned long long)t->n_rows, role,
                        (unsigned long long)n_in, (unsigned long long)n_out);
    if (t->row_bytes == 0 || t->row_bytes != ref_row_bytes(t->type, n_in))
        return ref_fail(c->backend, -EINVAL, "tensor %.64s: %llu values are no whole %s row",
                        t->name, (unsigned long long)n_in, ref_type_name(t->type));
    return 0;
}

static int check_vector(const struct checker *c, const char *role, uint32_t tensor, uint64_t n)
{
    int error = check_matrix(c, role, tensor, 1, n);
    if (error == 0 && c->plan->tensors[tensor].type != INFER_TYPE_F32)
        return ref_fail(c->backend, -ENOTSUP, "tensor %.64s must be F32",
                        c->plan->tensors[tensor].name);
    return error;
}

static int check_optional(const struct checker *c, const char *role, uint32_t tensor, uint64_t n)
{
    return tensor == INFER_TENSOR_NONE ? 0 : check_vector(c, role, tensor, n);
}

static int check_qkv(const struct checker *c, const struct infer_op *op)
{
    const struct infer_shape *s = &c->plan->shape;
    uint64_t n_q = (uint64_t)s->n_heads * s->head_dim;
    uint64_t n_k = (uint64_t)s->n_kv_heads * s->head_dim;
    uint64_t n_v = (uint64_t)s->n_kv_heads * s->head_dim_v;
    int error = check_vector(c, "attention norm", op->norm, s->n_embd);
    if (error == 0)
        error = check_matrix(c, "query weights", op->as.qkv.wq, n_q, s->n_embd);
    if (error == 0)
        error = check_matrix(c, "key weights", op->as.qkv.wk, n_k, s->n_embd);
    if (error == 0)
        error = check_matrix(c, "value weights", op->as.qkv.wv, n_v, s->n_embd);
    if (error == 0)
        error = check_optional(c, "query bias", op->as.qkv.bq, n_q);
    if (error == 0)
        error = check_optional(c, "key bias", op->as.qkv.bk, n_k);
    if (error == 0)
        error = check_optional(c, "value bias", op->as.qkv.bv, n_v);
    if (error == 0)
        error = check_optional(c, "query head norm", op->as.qkv.q_norm, s->head_dim);
    if (error == 0)
        error = check_optional(c, "key head norm", op->as.qkv.k_norm, s->head_dim);
    return error;
}

static int check_project(const struct checker *c, const struct infer_op *op)
{
    const struct infer_shape *s = &c->plan->shape;
    uint64_t n_in;
    if (op->as.project.from == INFER_VALUE_O)
        n_in = (uint64_t)s->n_heads * s->head_dim_v;
    else if (op->as.project.from == INFER_VALUE_T)
        n_in = s->n_ffn;
    else
        return ref_fail(c->backend, -ENOTSUP, "a projection from value %u is not supported",
                        op->as.project.from);
    int error = check_matrix(c, "projection", op->as.project.w, s->n_embd, n_in);
    if (error == 0)
        error = check_optional(c, "projection bias", op->as.project.b, s->n_embd);
    return error;
}

static int check_ffn(const struct checker *c, const struct infer_op *op)
{
    const struct infer_shape *s = &c->plan->shape;
    if (op->as.ffn.activation > INFER_ACT_GELU_TANH)
        return ref_fail(c->backend, -ENOTSUP, "activation %u is not supported",
                        op->as.ffn.activation);
    int error = check_vector(c, "feed-forward norm", op->norm, s->n_embd);
    if (error == 0)
        error = check_matrix(c, "gate", op->as.ffn.gate, s->n_ffn, s->n_embd);
    if (error == 0)
        error = check_matrix(c, "up", op->as.ffn.up, s->n_ffn, s->n_embd);
    return error;
}

static int check_head(const struct checker *c, const struct infer_op *op)
{
    const struct infer_shape *s = &c->plan->shape;
    int error = check_vector(c, "final norm", op->norm, s->n_embd);
    if (error == 0)
        error = check_matrix(c, "head", op->as.head.w, s->n_vocab, s->n_embd);
    return error;
}

static int check_op(const struct checker *c, const struct infer_op *op)
{
    const struct infer_shape *s = &c->plan->shape;
    if ((op->kind == INFER_OP_QKV || op->kind == INFER_OP_ATTEND) && op->layer >= s->n_layers)
        return ref_fail(c->backend, -EINVAL, "an operation names layer %u of %u", op->layer,
                        s->n_layers);
    switch (op->kind) {
    case INFER_OP_EMBED:
        return check_matrix(c, "embedding", op->as.embed.table, s->n_vocab, s->n_embd);
    case INFER_OP_QKV:
        return check_qkv(c, op);
    case INFER_OP_PROJECT:
        return check_project(c, op);
    case INFER_OP_FFN_GATED:
        return check_ffn(c, op);
    case INFER_OP_HEAD:
        return check_head(c, op);
    case INFER_OP_ATTEND:
    case INFER_OP_ALL_REDUCE: /* one part: its own sum */
        return 0;
    default:
        return ref_fail(c->backend, -ENOTSUP, "operation %u is not supported", op->kind);
    }
}

static int check_shape(const struct checker *c)
{
    const struct infer_shape *s = &c->plan->shape;
    const struct infer_rope *rope = &c->plan->rope;
    if (s->n_layers == 0 || s->n_embd == 0 || s->n_ffn == 0 || s->n_vocab == 0 || s->n_heads == 0 ||
        s->n_kv_heads == 0 || s->head_dim == 0 || s->head_dim_v == 0)
        return ref_fail(c->backend, -EINVAL, "the model's shape has a zero");
    if (s->n_vocab > INFER_VOCAB_MAX)
        return ref_fail(c->backend, -EINVAL, "a vocabulary of %u is too large", s->n_vocab);
    if (s->n_heads % s->n_kv_heads != 0)
        return ref_fail(c->backend, -EINVAL, "%u heads cannot share %u key heads", s->n_heads,
                        s->n_kv_heads);
    if (rope->n_dims > s->head_dim || rope->n_dims % 2 != 0 ||
        (rope->n_dims > 0 && rope->inv_freq == NULL))
        return ref_fail(c->backend, -EINVAL, "rope over %u of %u dimensions", rope->n_dims,
                        s->head_dim);
    if (rope->style > INFER_ROPE_HALVES)
        return ref_fail(c->backend, -ENOTSUP, "rope style %u is not supported", rope->style);
    return 0;
}

static int check_cache_type(const struct checker *c, uint32_t type, uint32_t head_dim)
{
    if (type != INFER_TYPE_F32 && type != INFER_TYPE_F16 && type != INFER_TYPE_Q8_0 &&
        type != INFER_TYPE_Q4_0)
        return ref_fail(c->backend, -ENOTSUP, "a cache of type %s is not supported",
                        ref_type_name(type));
    if (!ref_cache_fits(type, head_dim))
        return ref_fail(c->backend, -ENOTSUP, "a %s cache needs heads of a multiple of %u, not %u",
                        ref_type_name(type), ref_block(type), head_dim);
    return 0;
}

int ref_plan_check(struct infer_backend *backend, const struct infer_plan *plan,
                   const struct infer_state_config *state)
{
    struct checker c = {backend, plan};
    int error = check_shape(&c);
    if (error != 0)
        return error;
    for (uint32_t i = 0; i < plan->n_ops; i++) {
        error = check_op(&c, &plan->ops[i]);
        if (error != 0)
            return error;
    }
    for (uint32_t i = 0; i < plan->n_tensors; i++) {
        const struct infer_tensor *t = &plan->tensors[i];
        error = check_matrix(&c, "a tensor of the plan", i, t->n_rows, t->ne[0]);
        if (error != 0)
            return error;
    }
    if (state->page_tokens == 0 || state->n_pages == 0 || state->max_rows == 0 ||
        state->max_rows > INFER_STEP_ROWS_MAX)
        return ref_fail(backend, -EINVAL, "%u pages of %u tokens and steps of %u rows",
                        state->n_pages, state->page_tokens, state->max_rows);
    error = check_cache_type(&c, state->k_type, plan->shape.head_dim);
    if (error == 0)
        error = check_cache_type(&c, state->v_type, plan->shape.head_dim_v);
    return error;
}
