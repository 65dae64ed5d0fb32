/* run.c: interprets the plan over one batch, operation by operation.
 *
 * The batch's numbers were checked by the daemon; they are checked here once more, because the
 * oracle is also what a faulty caller is tested against. Nothing is changed by a batch that fails
 * the check. Threads: one caller at a time. Allocates nothing. */
#include "ref/ops.h"
#include "ref/walk.h"

#include <errno.h>
#include <string.h>

/* All rows of the sequence, and the pages for all of its positions, exist. */
static bool seq_fits(const struct infer_backend_model *model, const struct infer_batch *batch,
                     const struct infer_batch_seq *seq)
{
    uint64_t end = (uint64_t)seq->position + seq->n_rows;
    if (seq->first_row > batch->n_rows || seq->n_rows > batch->n_rows - seq->first_row)
        return false;
    if (end > (uint64_t)seq->n_pages * model->state.page_tokens || end > model->scratch.n_scores)
        return false;
    for (uint32_t i = 0; i < seq->n_pages; i++) {
        if (seq->pages[i] >= model->state.n_pages)
            return false;
    }
    return true;
}

static int batch_check(struct infer_backend_model *model, const struct infer_batch *batch)
{
    struct infer_backend *backend = model->backend;
    uint32_t n_rows = 0;
    if (!model->ready)
        return ref_fail(backend, -EINVAL, "the model is not ready");
    if (batch->n_rows > model->state.max_rows)
        return ref_fail(backend, -EINVAL, "a batch of %u rows, but %u at most", batch->n_rows,
                        model->state.max_rows);
    for (uint32_t s = 0; s < batch->n_seqs; s++) {
        if (!seq_fits(model, batch, &batch->seqs[s]))
            return ref_fail(backend, -EINVAL, "sequence %u of the batch does not fit", s);
        n_rows += batch->seqs[s].n_rows;
    }
    if (n_rows != batch->n_rows)
        return ref_fail(backend, -EINVAL, "sequences of %u rows in a batch of %u", n_rows,
                        batch->n_rows);
    for (uint32_t b = 0; b < batch->n_rows; b++) {
        if (batch->tokens[b] < 0 || (uint32_t)batch->tokens[b] >= model->plan->shape.n_vocab)
            return ref_fail(backend, -EINVAL, "row %u has token %d", b, (int)batch->tokens[b]);
    }
    for (uint32_t i = 0; i < batch->n_outputs; i++) {
        if (batch->outputs[i].row >= batch->n_rows ||
            (i > 0 && batch->outputs[i].row < batch->outputs[i - 1].row) ||
            (batch->outputs[i].sample && batch->outputs[i].sampling == NULL))
            return ref_fail(backend, -EINVAL, "output %u is not in order", i);
    }
    if (!ref_batch_fits(model->plan, batch))
        return ref_fail(backend, -EINVAL, "a part of a model without x, or with outputs");
    return 0;
}

int ref_run(struct infer_backend_model *model, struct infer_batch *batch)
{
    int error = batch_check(model, batch);
    if (error != 0)
        return error;
    const size_t x_bytes = (size_t)batch->n_rows * model->plan->shape.n_embd * sizeof(float);
    ref_rope_table(model, batch);
    if (ref_plan_takes_x(model->plan) && x_bytes > 0)
        memcpy(model->scratch.x, batch->x, x_bytes);
    for (uint32_t i = 0; i < model->plan->n_ops; i++) {
        const struct infer_op *op = &model->plan->ops[i];
        switch (op->kind) {
        case INFER_OP_EMBED:
            ref_op_embed(model, op, batch);
            break;
        case INFER_OP_QKV:
            ref_op_qkv(model, op, batch);
            break;
        case INFER_OP_ATTEND:
            ref_op_attend(model, op, batch);
            break;
        case INFER_OP_PROJECT:
            ref_op_project(model, op, batch);
            break;
        case INFER_OP_FFN_GATED:
            ref_op_ffn_gated(model, op, batch);
            break;
        case INFER_OP_HEAD:
            ref_op_head(model, op, batch);
            break;
        case INFER_OP_ALL_REDUCE: /* the sum over one part is the part */
            break;
        }
    }
    if (ref_plan_gives_x(model->plan) && x_bytes > 0)
        memcpy(batch->x, model->scratch.x, x_bytes);
    return 0;
}
