/* cut.h: a plan cut between two layers into the plans of two parts, as backend.h has them. */
#ifndef INFERD_MODEL_CUT_H
#define INFERD_MODEL_CUT_H

#include "inferd/backend.h"

/* The most tensors that one operation names. */
#define PLAN_OP_TENSORS 9u

/* Where the operation names a tensor, NONE included: how many, and each of them. */
uint32_t plan_op_tensors(struct infer_op *op, uint32_t *ret[PLAN_OP_TENSORS]);

/* One part: its own operations and the tensors that they use, in the plan's order. */
struct plan_part {
    struct infer_plan backend;
    uint32_t *tensor_of; /* the plan's tensor i is this one's; INFER_TENSOR_NONE: not used here */
    /* private */
    struct infer_tensor *tensors;
    struct infer_op *ops;
};

/* The first n_first layers, at least one, and the others, at least one. A tensor that both use (a
 * tied embedding) is in both. The plan outlives its parts, whose rotation is the plan's own.
 * -ENOMEM: nothing was made. */
int plan_cut(const struct infer_plan *plan, uint32_t n_first, struct plan_part ret[2]);
void plan_part_done(struct plan_part *part);

#endif
