/* walk.c: see walk.h. Pure but for the callbacks; any thread. */
#include "ref/walk.h"

#include "ref/quant.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

struct at_op {
    const struct infer_plan *plan;
    const struct ref_walk *walk;
    const struct infer_op *op;
};

__attribute__((format(printf, 3, 4))) static int refuse(const struct ref_walk *walk, int error,
                                                        const char *format, ...)
{
    char why[256];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(why, sizeof why, format, arguments);
    va_end(arguments);
    return walk->refuse(walk->ctx, error, why);
}

int ref_walk_tensor(const struct infer_plan *plan, const struct ref_walk *walk,
                    const struct ref_use *use)
{
    if (use->tensor >= plan->n_tensors)
        return refuse(walk, -EINVAL, "the plan names no tensor as %s", use->role);
    const struct infer_tensor *t = &plan->tensors[use->tensor];
    if (!ref_type_known(t->type))
        return refuse(walk, -ENOTSUP, "tensor %.64s has type %" PRIu32 ", which is not supported",
                      t->name, t->type);
    if (t->ne[0] != use->cols || t->n_rows != use->rows)
        return refuse(walk, -EINVAL,
                      "tensor %.64s is %" PRIu64 " x %" PRIu64 ", but %s must be %" PRIu64
                      " x %" PRIu64,
                      t->name, t->ne[0], t->n_rows, use->role, use->cols, use->rows);
    if (t->row_bytes == 0 || t->row_bytes != ref_row_bytes(t->type, use->cols))
        return refuse(walk, -EINVAL, "tensor %.64s: %" PRIu64 " values are no whole %s row",
                      t->name, use->cols, ref_type_name(t->type));
    return walk->use(walk->ctx, use);
}

static int matrix(const struct at_op *at, const char *role, uint32_t tensor, uint64_t rows,
                  uint64_t cols)
{
    const struct ref_use use = {
        .op = at->op, .role = role, .tensor = tensor, .rows = rows, .cols = cols};
    return ref_walk_tensor(at->plan, at->walk, &use);
}

static int vector(const struct at_op *at, const char *role, uint32_t tensor, uint64_t n)
{
    const struct ref_use use = {
        .op = at->op, .role = role, .tensor = tensor, .rows = 1, .cols = n, .vector = true};
    return ref_walk_tensor(at->plan, at->walk, &use);
}

static int optional(const struct at_op *at, const char *role, uint32_t tensor, uint64_t n)
{
    return tensor == INFER_TENSOR_NONE ? 0 : vector(at, role, tensor, n);
}

static int walk_qkv(const struct at_op *at)
{
    const struct infer_shape *s = &at->plan->shape;
    const struct infer_op *op = at->op;
    const uint64_t n_q = (uint64_t)s->n_heads * s->head_dim;
    const uint64_t n_k = (uint64_t)s->n_kv_heads * s->head_dim;
    const uint64_t n_v = (uint64_t)s->n_kv_heads * s->head_dim_v;
    const struct {
        const char *weights, *bias;
        uint32_t w, b;
        uint64_t rows;
    } part[3] = {{"query weights", "query bias", op->as.qkv.wq, op->as.qkv.bq, n_q},
                 {"key weights", "key bias", op->as.qkv.wk, op->as.qkv.bk, n_k},
                 {"value weights", "value bias", op->as.qkv.wv, op->as.qkv.bv, n_v}};
    int r = vector(at, "attention norm", op->norm, s->n_embd);
    for (int i = 0; i < 3 && r >= 0; i++)
        r = matrix(at, part[i].weights, part[i].w, part[i].rows, s->n_embd);
    for (int i = 0; i < 3 && r >= 0; i++)
        r = optional(at, part[i].bias, part[i].b, part[i].rows);
    if (r >= 0)
        r = optional(at, "query head norm", op->as.qkv.q_norm, s->head_dim);
    if (r >= 0)
        r = optional(at, "key head norm", op->as.qkv.k_norm, s->head_dim);
    return r;
}

static int walk_project(const struct at_op *at)
{
    const struct infer_shape *s = &at->plan->shape;
    const struct infer_op *op = at->op;
    const bool from_o = op->as.project.from == INFER_VALUE_O;
    if (!from_o && op->as.project.from != INFER_VALUE_T)
        return refuse(at->walk, -ENOTSUP, "a projection from value %" PRIu32 " is not supported",
                      op->as.project.from);
    uint64_t n_in = from_o ? (uint64_t)s->n_heads * s->head_dim_v : s->n_ffn;
    int r = matrix(at, "projection", op->as.project.w, s->n_embd, n_in);
    return r < 0 ? r : optional(at, "projection bias", op->as.project.b, s->n_embd);
}

static int walk_ffn(const struct at_op *at)
{
    const struct infer_shape *s = &at->plan->shape;
    const struct infer_op *op = at->op;
    if (op->as.ffn.activation > INFER_ACT_GELU_TANH)
        return refuse(at->walk, -ENOTSUP, "activation %" PRIu32 " is not supported",
                      op->as.ffn.activation);
    int r = vector(at, "feed-forward norm", op->norm, s->n_embd);
    if (r >= 0)
        r = matrix(at, "gate", op->as.ffn.gate, s->n_ffn, s->n_embd);
    return r < 0 ? r : matrix(at, "up", op->as.ffn.up, s->n_ffn, s->n_embd);
}

static int walk_op(const struct at_op *at)
{
    const struct infer_shape *s = &at->plan->shape;
    const struct infer_op *op = at->op;
    int r;
    if ((op->kind == INFER_OP_QKV || op->kind == INFER_OP_ATTEND) && op->layer >= s->n_layers)
        return refuse(at->walk, -EINVAL, "an operation names layer %" PRIu32 " of %" PRIu32,
                      op->layer, s->n_layers);
    if ((op->kind == INFER_OP_EMBED && op != at->plan->ops) ||
        (op->kind == INFER_OP_HEAD && op != at->plan->ops + at->plan->n_ops - 1))
        return refuse(at->walk, -EINVAL, "the plan embeds in its midst, or goes on after its head");
    switch (op->kind) {
    case INFER_OP_EMBED:
        return matrix(at, "embedding", op->as.embed.table, s->n_vocab, s->n_embd);
    case INFER_OP_QKV:
        return walk_qkv(at);
    case INFER_OP_PROJECT:
        return walk_project(at);
    case INFER_OP_FFN_GATED:
        return walk_ffn(at);
    case INFER_OP_HEAD:
        r = vector(at, "final norm", op->norm, s->n_embd);
        return r < 0 ? r : matrix(at, "head", op->as.head.w, s->n_vocab, s->n_embd);
    case INFER_OP_ATTEND:
    case INFER_OP_ALL_REDUCE: /* of a plan that is not cut by heads: its own sum */
        return 0;
    default:
        return refuse(at->walk, -ENOTSUP, "operation %" PRIu32 " is not supported", op->kind);
    }
}

int ref_walk(const struct infer_plan *plan, const struct ref_walk *walk)
{
    int r = 0;
    for (uint32_t i = 0; i < plan->n_ops && r >= 0; i++) {
        const struct at_op at = {plan, walk, &plan->ops[i]};
        r = walk_op(&at);
    }
    return r;
}
