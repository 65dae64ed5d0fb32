/* plan.c: which plans the reference backend runs: all that backend.h can express, if consistent.
 *
 * The daemon has checked the plan too; this is the second lock, and where a new operation or
 * tensor type is refused by name. Pure; the reason is left in the backend's last_error. */
#include "ref/cache.h"
#include "ref/model.h"
#include "ref/quant.h"
#include "ref/walk.h"

#include <errno.h>

struct checker {
    struct infer_backend *backend;
    const struct infer_plan *plan;
};

/* Norms and biases are what the contract says; everything else is decoded, whatever its type. */
static int check_use(void *ctx, const struct ref_use *use)
{
    const struct checker *c = ctx;
    const struct infer_tensor *t = &c->plan->tensors[use->tensor];
    if (use->vector && t->type != INFER_TYPE_F32)
        return ref_fail(c->backend, -ENOTSUP, "tensor %.64s must be F32", t->name);
    return 0;
}

static int refuse(void *ctx, int error, const char *why)
{
    const struct checker *c = ctx;
    return ref_fail(c->backend, error, "%s", why);
}

/* Those that no operation uses, too: all are kept. */
static int check_tensors(const struct checker *c, const struct ref_walk *walk)
{
    int error = 0;
    for (uint32_t i = 0; i < c->plan->n_tensors && error == 0; i++) {
        const struct infer_tensor *t = &c->plan->tensors[i];
        const struct ref_use use = {
            .role = "a tensor of the plan", .tensor = i, .rows = t->n_rows, .cols = t->ne[0]};
        error = ref_walk_tensor(c->plan, walk, &use);
    }
    return error;
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
    const struct ref_walk walk = {&c, check_use, refuse};
    int error = check_shape(&c);
    if (error == 0)
        error = ref_walk(plan, &walk);
    if (error == 0)
        error = check_tensors(&c, &walk);
    if (error != 0)
        return error;
    if (state->page_tokens == 0 || state->n_pages == 0 || state->max_rows == 0 ||
        state->max_rows > INFER_STEP_ROWS_MAX)
        return ref_fail(backend, -EINVAL, "%u pages of %u tokens and steps of %u rows",
                        state->n_pages, state->page_tokens, state->max_rows);
    error = check_cache_type(&c, state->k_type, plan->shape.head_dim);
    if (error == 0)
        error = check_cache_type(&c, state->v_type, plan->shape.head_dim_v);
    return error;
}
