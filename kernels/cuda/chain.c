/* chain.c: which plans' products between two attentions run as one kernel (chain.cu) in steps of
 * few rows, and these kernels' arguments.
 *
 * A plan's layers must be all alike in their operations, as those of every known model are: QKV,
 * ATTEND, PROJECT of o, FFN_GATED with gate and up of one format, PROJECT of t. Types and shapes of
 * their matrices may differ. What does not fit has a kernel for each operation.
 *
 * Chain 0 is the first layer's QKV alone, chain i the rest of layer i - 1 and the QKV of layer i,
 * the last the rest of the last layer. Chain i uses exchange i % 2 (chain 0 neither) and clears
 * that of the chain before it, the first that of the last: so every step finds the first one it
 * uses clean, once both have been at the beginning. A step that fails may leave them otherwise,
 * after which nothing would go on: cuda_chain_clean().
 *
 * Blocks of a chain wait for each other, so nothing that waits may run beside it: steps of other
 * models on the device come after it (cuda_chain_after, cuda_chain_done). Kernels that lay weights
 * out may run beside it; they wait for nothing and end. */
#include "cuda/model.h"

#define OPS_PER_LAYER 5u

/* An operation's matrix, as the kernel wants it; no addresses before the matrices have theirs. */
static struct cuda_line line_of(const struct infer_backend_model *m, uint32_t w, uint32_t bias,
                                uint32_t pair_rows)
{
    const struct infer_tensor *t = &m->plan->tensors[w];
    const uint32_t rows = (uint32_t)t->n_rows, cols = (uint32_t)t->ne[0];
    const uint8_t *pieces = m->tensors[w].matrix.pieces;
    return (struct cuda_line){.w = {pieces, pieces},
                              .bias = cuda_plan_vector(m, bias),
                              .format = cuda_format_of(t->type),
                              .rows = rows,
                              .units = (cols + CUDA_UNIT - 1) / CUDA_UNIT,
                              .pairs = (rows + pair_rows - 1) / pair_rows};
}

/* What a layer adds to the chain before its attention, and to the one behind it. */
static bool add_layer(const struct infer_backend_model *m, const struct infer_op *ops,
                      struct cuda_chain *before, struct cuda_chain *behind)
{
    const struct infer_op *qkv = &ops[0], *attend = &ops[1], *o = &ops[2], *ffn = &ops[3],
                          *down = &ops[4];
    const uint32_t none = INFER_TENSOR_NONE, two = 2 * CUDA_TILE_ROWS;
    if (qkv->kind != INFER_OP_QKV || attend->kind != INFER_OP_ATTEND ||
        o->kind != INFER_OP_PROJECT || o->as.project.from != INFER_VALUE_O ||
        ffn->kind != INFER_OP_FFN_GATED || down->kind != INFER_OP_PROJECT ||
        down->as.project.from != INFER_VALUE_T)
        return false;
    before->last = CUDA_PART_QKV;
    before->norm = cuda_plan_vector(m, qkv->norm);
    before->lines[CUDA_LINE_Q] = line_of(m, qkv->as.qkv.wq, qkv->as.qkv.bq, two);
    before->lines[CUDA_LINE_K] = line_of(m, qkv->as.qkv.wk, qkv->as.qkv.bk, two);
    before->lines[CUDA_LINE_V] = line_of(m, qkv->as.qkv.wv, qkv->as.qkv.bv, two);
    before->lines[CUDA_LINE_Q].to = m->scratch.q;
    before->lines[CUDA_LINE_K].to = m->scratch.k;
    before->lines[CUDA_LINE_V].to = m->scratch.v;
    before->lines[CUDA_LINE_Q].stride = m->q_stride;
    before->lines[CUDA_LINE_K].stride = m->k_stride;
    before->lines[CUDA_LINE_V].stride = m->v_stride;
    behind->first = CUDA_PART_O;
    behind->last = CUDA_PART_DOWN;
    behind->ffn_norm = cuda_plan_vector(m, ffn->norm);
    behind->activation = ffn->as.ffn.activation;
    behind->lines[CUDA_PART_O] = line_of(m, o->as.project.w, o->as.project.b, two);
    behind->lines[CUDA_PART_DOWN] = line_of(m, down->as.project.w, down->as.project.b, two);
    const struct cuda_line up = line_of(m, ffn->as.ffn.up, none, CUDA_TILE_ROWS);
    struct cuda_line *gated = &behind->lines[CUDA_PART_GATED];
    *gated = line_of(m, ffn->as.ffn.gate, none, CUDA_TILE_ROWS);
    gated->w[1] = up.w[0];
    return up.format == gated->format;
}

static struct cuda_chain blank(const struct infer_backend_model *m, uint32_t i)
{
    const struct infer_shape *s = &m->plan->shape;
    return (struct cuda_chain){.first = CUDA_PART_QKV,
                               .n_rows = 1,
                               .n_embd = s->n_embd,
                               .n_ffn = s->n_ffn,
                               .o_cols = s->n_heads * s->head_dim_v,
                               .x = m->scratch.x,
                               .x_stride = (uint32_t)m->x_stride,
                               .o = m->scratch.packed_o,
                               .eps = s->norm_eps,
                               .exchange = m->scratch.exchange,
                               .own = i % 2,
                               .before = (i + 1) % 2};
}

/* All chains; how many there are, 0: the plan's layers are not of one kind. */
static uint32_t describe(struct infer_backend_model *m)
{
    const struct infer_plan *plan = m->plan;
    const uint32_t first = plan->n_ops && plan->ops[0].kind == INFER_OP_EMBED ? 1 : 0;
    uint32_t n = 0, i;
    m->chains[0] = blank(m, 0);
    for (i = first; i + OPS_PER_LAYER <= plan->n_ops; i += OPS_PER_LAYER, n++) {
        m->chains[n + 1] = blank(m, n + 1);
        if (!add_layer(m, &plan->ops[i], &m->chains[n], &m->chains[n + 1]))
            return 0;
    }
    if (i + 1 == plan->n_ops && plan->ops[i].kind == INFER_OP_HEAD)
        i++;
    m->chains[0].before = n % 2;
    return i == plan->n_ops && n ? n + 1 : 0;
}

uint32_t cuda_chains_most(const struct infer_plan *plan)
{
    return plan->n_ops / OPS_PER_LAYER + 1;
}

static bool all_fit(const struct infer_backend_model *m, uint32_t n_rows)
{
    for (uint32_t i = 0; i < m->n_chains; i++) {
        struct cuda_chain chain = m->chains[i];
        chain.n_rows = n_rows;
        if (!cuda_chain_fit(&chain, m->backend->shared_bytes))
            return false;
    }
    return true;
}

void cuda_chain_measure(struct infer_backend_model *m)
{
    m->n_chains = m->backend->chains ? describe(m) : 0;
    m->chain_rows = 0;
    for (uint32_t rows = 1; m->n_chains && rows <= CUDA_CHAIN_ROWS; rows *= 2)
        if (all_fit(m, rows))
            m->chain_rows = rows;
    if (!m->chain_rows)
        m->n_chains = 0;
}

bool cuda_chain_takes(const struct infer_backend_model *m, const struct infer_batch *batch)
{
    if (cuda_bucket_rows(batch->n_rows) > m->chain_rows)
        return false;
    for (uint32_t i = 0; i < batch->n_seqs; i++)
        if ((uint64_t)batch->seqs[i].position + batch->seqs[i].n_rows > m->backend->chains)
            return false;
    return true;
}

size_t cuda_chain_bytes(const struct infer_backend_model *m)
{
    return m->n_chains ? 2 * cuda_chain_exchange_bytes(&m->chains[0]) : 0;
}

cudaError_t cuda_chain_clean(struct infer_backend_model *m)
{
    if (!m->n_chains)
        return cudaSuccess;
    return cudaMemsetAsync(m->scratch.exchange, 0xff, cuda_chain_bytes(m), m->stream);
}

cudaError_t cuda_chain_ready(struct infer_backend_model *m)
{
    if (!m->n_chains)
        return cudaSuccess;
    describe(m); /* once more, with addresses */
    const uint32_t n_blocks = cuda_chain_blocks();
    for (uint32_t i = 0; i < m->n_chains; i++)
        m->chains[i].n_blocks = n_blocks;
    if (!n_blocks)
        m->n_chains = m->chain_rows = 0;
    return cuda_chain_clean(m);
}

cudaError_t cuda_chain_launch(struct infer_backend_model *m, const struct cuda_bucket *bucket,
                              uint32_t i)
{
    struct cuda_chain chain = m->chains[i];
    chain.n_rows = bucket->rows;
    return cuda_chain_run(&chain, m->backend->shared_bytes, m->stream);
}

cudaError_t cuda_chain_model(struct infer_backend *b)
{
    cudaEvent_t event = atomic_load(&b->step_done), none = NULL;
    atomic_fetch_add(&b->n_models, 1);
    if (!event) {
        cudaError_t error = cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
        if (error != cudaSuccess)
            return error;
        if (!atomic_compare_exchange_strong(&b->step_done, &none, event))
            cudaEventDestroy(event); /* another model's loader made it meanwhile */
    }
    return cudaSuccess;
}

void cuda_chain_model_gone(struct infer_backend *b)
{
    atomic_fetch_sub(&b->n_models, 1);
}

void cuda_chain_close(struct infer_backend *b)
{
    cudaEvent_t event = atomic_load(&b->step_done);
    if (event)
        cudaEventDestroy(event);
}

cudaError_t cuda_chain_after(struct infer_backend_model *m)
{
    if (atomic_load(&m->backend->n_models) < 2)
        return cudaSuccess;
    return cudaStreamWaitEvent(m->stream, atomic_load(&m->backend->step_done), 0);
}

cudaError_t cuda_chain_done(struct infer_backend_model *m)
{
    return cudaEventRecord(atomic_load(&m->backend->step_done), m->stream);
}
