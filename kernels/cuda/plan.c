/* plan.c: which plans the CUDA backend runs, and its operations with their tensors found.
 *
 * The daemon has checked the plan; this is the second lock, and where an operation, a tensor type
 * or a shape that there is no kernel for is refused by name. What products use, and the embedding
 * table, is a matrix in the device's own format; norms and biases become float32.
 *
 * One order of operations is asked for: an ATTEND follows the QKV whose queries it uses, since
 * those are scaled for it where they are turned, and it is their only one. Pure but for last_error;
 * any thread. */
#include "cuda/model.h"

#include "ref/quant.h"
#include "ref/walk.h"

#include <errno.h>
#include <inttypes.h>

/* Numbers that fit a grid's dimensions and 32-bit indices with room. */
#define DIM_MAX      (1u << 20)
#define HEAD_DIM_MAX (1u << 12)
/* Each may bring 24 KiB of biases and seen tokens. */
#define OUTPUTS_MAX 4096u

struct checker {
    const struct infer_plan *plan;
    struct cuda_tensor *tensors;
};

static int use(void *ctx, const struct ref_use *use)
{
    const struct checker *c = ctx;
    const struct infer_tensor *file = &c->plan->tensors[use->tensor];
    struct cuda_tensor *t = &c->tensors[use->tensor];
    const uint32_t role = use->vector ? CUDA_VECTOR : CUDA_MATRIX;
    if (cuda_format_of(file->type) >= CUDA_FORMATS)
        return cuda_fail(-ENOTSUP, "tensor %.64s has type %" PRIu32 ", which is not known",
                         file->name, file->type);
    if (t->role != CUDA_UNUSED && t->role != role)
        return cuda_fail(-EINVAL, "tensor %.64s is used as a matrix and as a vector", file->name);
    t->role = role;
    return 0;
}

static int refuse(void *ctx, int error, const char *why)
{
    (void)ctx;
    return cuda_fail(error, "%s", why);
}

/* Every ATTEND has a QKV of its own before it. */
static int check_order(const struct infer_plan *plan)
{
    bool queries = false;
    for (uint32_t i = 0; i < plan->n_ops; i++) {
        uint32_t kind = plan->ops[i].kind;
        if (kind == INFER_OP_ATTEND && !queries)
            return cuda_fail(-ENOTSUP, "operation %" PRIu32 " attends without queries of its own",
                             i);
        if (kind == INFER_OP_QKV || kind == INFER_OP_ATTEND)
            queries = kind == INFER_OP_QKV;
    }
    return 0;
}

static int check_shape(const struct infer_plan *plan, const struct infer_state_config *state)
{
    const struct infer_shape *s = &plan->shape;
    if (!s->n_layers || !s->n_embd || !s->n_ffn || !s->n_vocab || !s->n_heads || !s->n_kv_heads ||
        !s->head_dim || !s->head_dim_v || s->n_heads % s->n_kv_heads ||
        s->n_vocab > INFER_VOCAB_MAX)
        return cuda_fail(-EINVAL, "the plan's shape is not consistent");
    if ((s->n_embd | s->n_ffn | s->n_heads | s->n_layers) >= DIM_MAX ||
        s->head_dim > HEAD_DIM_MAX || s->head_dim_v > HEAD_DIM_MAX ||
        (uint64_t)s->n_heads * s->head_dim > DIM_MAX ||
        (uint64_t)s->n_heads * s->head_dim_v > DIM_MAX)
        return cuda_fail(-ENOTSUP, "the plan's shape is too large");
    if (plan->rope.n_dims > s->head_dim || plan->rope.n_dims % 2 ||
        (plan->rope.n_dims && !plan->rope.inv_freq))
        return cuda_fail(-EINVAL, "the rotation covers %" PRIu32 " of %" PRIu32 " dimensions",
                         plan->rope.n_dims, s->head_dim);
    if (plan->rope.style > INFER_ROPE_HALVES)
        return cuda_fail(-ENOTSUP, "rotation style %" PRIu32 " is not known", plan->rope.style);
    if (state->page_tokens != CUDA_PAGE_TOKENS)
        return cuda_fail(-ENOTSUP, "pages of %" PRIu32 " tokens; this backend has pages of %u",
                         state->page_tokens, CUDA_PAGE_TOKENS);
    if (!state->n_pages || !state->max_rows || state->max_rows > INFER_STEP_ROWS_MAX ||
        !state->max_seqs || state->max_seqs > INFER_STEP_ROWS_MAX ||
        state->max_outputs > OUTPUTS_MAX)
        return cuda_fail(-EINVAL,
                         "%" PRIu32 " pages, and steps of %" PRIu32 " rows, %" PRIu32
                         " sequences and %" PRIu32 " outputs",
                         state->n_pages, state->max_rows, state->max_seqs, state->max_outputs);
    return 0;
}

int cuda_plan_check(const struct infer_plan *plan, const struct infer_state_config *state,
                    struct cuda_tensor *tensors)
{
    struct checker c = {plan, tensors};
    const struct ref_walk walk = {&c, use, refuse};
    struct cuda_cache cache;
    int r = check_shape(plan, state);
    if (r >= 0)
        r = ref_walk(plan, &walk);
    if (r >= 0)
        r = check_order(plan);
    if (r >= 0 && cuda_cache_init(&cache, &plan->shape, state) < 0)
        r = cuda_fail(-ENOTSUP,
                      "this backend keeps no keys of %" PRIu32 " numbers as %s with values of "
                      "%" PRIu32 " as %s, %" PRIu32 " queries to a key",
                      plan->shape.head_dim, ref_type_name(state->k_type), plan->shape.head_dim_v,
                      ref_type_name(state->v_type), plan->shape.n_heads / plan->shape.n_kv_heads);
    return r;
}

/* ---- operations with their tensors ----------------------------------------------------------- */

static const struct cuda_matrix *matrix_of(const struct infer_backend_model *m, uint32_t index)
{
    return &m->tensors[index].matrix;
}

const float *cuda_plan_vector(const struct infer_backend_model *m, uint32_t index)
{
    return index == INFER_TENSOR_NONE ? NULL : m->tensors[index].vector;
}

static float scale_after(const struct infer_plan *plan, uint32_t qkv)
{
    for (uint32_t i = qkv + 1; i < plan->n_ops && plan->ops[i].kind != INFER_OP_QKV; i++)
        if (plan->ops[i].kind == INFER_OP_ATTEND)
            return plan->ops[i].as.attend.scale;
    return 1; /* nobody asks for these queries */
}

static void resolve(const struct infer_backend_model *m, uint32_t index, struct cuda_op *ret)
{
    const struct infer_op *op = &m->plan->ops[index];
    *ret = (struct cuda_op){.op = op};
    switch (op->kind) {
    case INFER_OP_EMBED:
        ret->w[0] = matrix_of(m, op->as.embed.table);
        break;
    case INFER_OP_QKV:
        ret->norm = cuda_plan_vector(m, op->norm);
        ret->w[0] = matrix_of(m, op->as.qkv.wq);
        ret->w[1] = matrix_of(m, op->as.qkv.wk);
        ret->w[2] = matrix_of(m, op->as.qkv.wv);
        ret->bias[0] = cuda_plan_vector(m, op->as.qkv.bq);
        ret->bias[1] = cuda_plan_vector(m, op->as.qkv.bk);
        ret->bias[2] = cuda_plan_vector(m, op->as.qkv.bv);
        ret->q_norm = cuda_plan_vector(m, op->as.qkv.q_norm);
        ret->k_norm = cuda_plan_vector(m, op->as.qkv.k_norm);
        ret->attend_scale = scale_after(m->plan, index);
        break;
    case INFER_OP_PROJECT:
        ret->w[0] = matrix_of(m, op->as.project.w);
        ret->bias[0] = cuda_plan_vector(m, op->as.project.b);
        break;
    case INFER_OP_FFN_GATED:
        ret->norm = cuda_plan_vector(m, op->norm);
        ret->w[0] = matrix_of(m, op->as.ffn.gate);
        ret->w[1] = matrix_of(m, op->as.ffn.up);
        break;
    case INFER_OP_HEAD:
        ret->norm = cuda_plan_vector(m, op->norm);
        ret->w[0] = matrix_of(m, op->as.head.w);
        break;
    default:
        break;
    }
}

void cuda_plan_resolve(struct infer_backend_model *m)
{
    for (uint32_t i = 0; i < m->plan->n_ops; i++)
        resolve(m, i, &m->ops[i]);
}
