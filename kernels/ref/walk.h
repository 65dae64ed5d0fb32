/* walk.h: the tensors that a plan's operations use, one after the other: what every backend asks of
 * a plan before it runs it.
 *
 * backend.h says which operation names which tensor, and of what shape; that is written down once,
 * here. A backend brings what is its own: the types that it computes with, what it makes of a
 * tensor, and where its sentences go. */
#ifndef INFERD_KERNELS_REF_WALK_H
#define INFERD_KERNELS_REF_WALK_H

#include "inferd/backend.h"

#include <stdbool.h>

/* One use of a tensor that the plan has, of a known type, with these rows and columns. */
struct ref_use {
    const struct infer_op *op;
    const char *role; /* "query weights" */
    uint32_t tensor;
    uint64_t rows, cols;
    bool vector; /* float32 by the contract, one row: a norm or a bias */
};

struct ref_walk {
    void *ctx;
    /* 0, or the walk's end, for which it has left a sentence. */
    int (*use)(void *ctx, const struct ref_use *use);
    /* Leaves the sentence where the backend's last_error() finds it, and returns the error. */
    int (*refuse)(void *ctx, int error, const char *why);
};

/* Operations in order, of each its norm, its matrices and their biases; vectors that are NONE where
 * that is allowed are left out. -EINVAL: the plan contradicts itself; -ENOTSUP: it holds an
 * operation or a tensor type that backend.h does not have; or what a callback returned. */
int ref_walk(const struct infer_plan *plan, const struct ref_walk *walk);

/* Whether the plan is a part of a model that takes the residual stream from the batch, and whether
 * it is one that leaves it there. */
static inline bool ref_plan_takes_x(const struct infer_plan *plan)
{
    return plan->n_ops > 0 && plan->ops[0].kind != INFER_OP_EMBED;
}
static inline bool ref_plan_gives_x(const struct infer_plan *plan)
{
    return plan->n_ops > 0 && plan->ops[plan->n_ops - 1].kind != INFER_OP_HEAD;
}
/* Does the batch bring what a part needs: a place for x, and no outputs where there is no HEAD? */
static inline bool ref_batch_fits(const struct infer_plan *plan, const struct infer_batch *batch)
{
    const bool gives = ref_plan_gives_x(plan);
    return ((!ref_plan_takes_x(plan) && !gives) || batch->x != NULL || batch->n_rows == 0) &&
           (!gives || batch->n_outputs == 0);
}

/* The same check of a tensor that no operation need use. */
int ref_walk_tensor(const struct infer_plan *plan, const struct ref_walk *walk,
                    const struct ref_use *use);

#endif
