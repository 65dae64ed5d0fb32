/* cut.c: see cut.h.
 *
 * A layer begins with its QKV, and a finished plan has its layers in order: so the second part
 * begins at the QKV of layer n_first. Threads: any; no state. */
#include "model/cut.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

uint32_t plan_op_tensors(struct infer_op *op, uint32_t *ret[PLAN_OP_TENSORS])
{
    uint32_t n = 0;
    if (op->kind == INFER_OP_QKV || op->kind == INFER_OP_FFN_GATED || op->kind == INFER_OP_HEAD)
        ret[n++] = &op->norm;
    switch (op->kind) {
    case INFER_OP_EMBED:
        ret[n++] = &op->as.embed.table;
        break;
    case INFER_OP_QKV:
        ret[n++] = &op->as.qkv.wq;
        ret[n++] = &op->as.qkv.wk;
        ret[n++] = &op->as.qkv.wv;
        ret[n++] = &op->as.qkv.bq;
        ret[n++] = &op->as.qkv.bk;
        ret[n++] = &op->as.qkv.bv;
        ret[n++] = &op->as.qkv.q_norm;
        ret[n++] = &op->as.qkv.k_norm;
        break;
    case INFER_OP_PROJECT:
        ret[n++] = &op->as.project.w;
        ret[n++] = &op->as.project.b;
        break;
    case INFER_OP_FFN_GATED:
        ret[n++] = &op->as.ffn.gate;
        ret[n++] = &op->as.ffn.up;
        break;
    case INFER_OP_HEAD:
        ret[n++] = &op->as.head.w;
        break;
    default:
        break;
    }
    return n;
}

static uint32_t first_op_of(const struct infer_plan *plan, uint32_t layer)
{
    uint32_t i = 0;
    while (plan->ops[i].kind != INFER_OP_QKV || plan->ops[i].layer != layer)
        i++; /* every layer has one */
    return i;
}

/* The part's operations, by the plan's numbers of tensors as yet. */
static void copy_ops(const struct infer_plan *plan, uint32_t from, uint32_t end, uint32_t layer,
                     struct plan_part *part)
{
    for (uint32_t i = from; i < end; i++) {
        struct infer_op *op = &part->ops[i - from];
        *op = plan->ops[i];
        if (op->kind != INFER_OP_EMBED && op->kind != INFER_OP_HEAD)
            op->layer -= layer;
    }
    part->backend.n_ops = end - from;
}

/* Those that its operations name, and the operations by these. */
static void copy_tensors(const struct infer_plan *plan, struct plan_part *part)
{
    uint32_t *named[PLAN_OP_TENSORS], n = 0;
    for (uint32_t i = 0; i < plan->n_tensors; i++)
        part->tensor_of[i] = INFER_TENSOR_NONE;
    for (uint32_t i = 0; i < part->backend.n_ops; i++)
        for (uint32_t k = plan_op_tensors(&part->ops[i], named); k > 0; k--)
            if (*named[k - 1] != INFER_TENSOR_NONE)
                part->tensor_of[*named[k - 1]] = 0;
    for (uint32_t i = 0; i < plan->n_tensors; i++) {
        if (part->tensor_of[i] == INFER_TENSOR_NONE)
            continue;
        part->tensors[n] = plan->tensors[i];
        part->tensor_of[i] = n++;
    }
    for (uint32_t i = 0; i < part->backend.n_ops; i++)
        for (uint32_t k = plan_op_tensors(&part->ops[i], named); k > 0; k--)
            if (*named[k - 1] != INFER_TENSOR_NONE)
                *named[k - 1] = part->tensor_of[*named[k - 1]];
    part->backend.n_tensors = n;
}

static int make_part(const struct infer_plan *plan, uint32_t first, uint32_t n_layers,
                     struct plan_part *ret)
{
    uint32_t end_layer = first + n_layers;
    uint32_t from = first == 0 ? 0 : first_op_of(plan, first);
    uint32_t end = end_layer == plan->shape.n_layers ? plan->n_ops : first_op_of(plan, end_layer);
    *ret = (struct plan_part){.backend = {.shape = plan->shape, .rope = plan->rope}};
    ret->tensor_of = calloc(plan->n_tensors, sizeof *ret->tensor_of);
    ret->tensors = calloc(plan->n_tensors, sizeof *ret->tensors);
    ret->ops = calloc(end - from, sizeof *ret->ops);
    if (ret->tensor_of == NULL || ret->tensors == NULL || ret->ops == NULL) {
        plan_part_done(ret);
        return -ENOMEM;
    }
    ret->backend.shape.n_layers = n_layers;
    ret->backend.tensors = ret->tensors;
    ret->backend.ops = ret->ops;
    copy_ops(plan, from, end, first, ret);
    copy_tensors(plan, ret);
    return 0;
}

int plan_cut(const struct infer_plan *plan, uint32_t n_first, struct plan_part ret[2])
{
    assert(n_first > 0 && n_first < plan->shape.n_layers);
    int rc = make_part(plan, 0, n_first, &ret[0]);
    if (rc < 0)
        return rc;
    rc = make_part(plan, n_first, plan->shape.n_layers - n_first, &ret[1]);
    if (rc < 0)
        plan_part_done(&ret[0]);
    return rc;
}

void plan_part_done(struct plan_part *part)
{
    free(part->tensor_of);
    free(part->tensors);
    free(part->ops);
    *part = (struct plan_part){0};
}
