/* step.c: one batch through the plan, on the model's stream.
 *
 *   EMBED     rows of the table to x
 *   QKV       x normed and packed | q, k, v | rotation, cache
 *   ATTEND    pieces of attention | merged where a row's keys were cut; o packed. In steps of few
 *             tiles the pieces do rotation and cache themselves
 *   PROJECT   x += W from
 *   FFN_GATED x normed and packed | t = act(gate) up, packed
 *   HEAD      per block of outputs: their rows normed and packed | logits | tokens
 *
 * Before it what the batch says comes to the device, after it the results go to the host (run.c);
 * of a part of a model x does so, too (stream.c).
 *
 * A bar is a kernel's end: seven to nine dependent kernels a layer. Each may start while the one
 * before it drains (device.cuh), so that its weights are on their way when x is ready. In steps of
 * few rows all products between two attentions are one kernel (chain.c). Steps of up to
 * CUDA_GRAPH_ROWS rows are captured (graph.c); larger ones keep the device busy for longer than
 * their launches take.
 *
 * Nothing is allocated here. One thread at a time per model. */
#include "cuda/model.h"

struct at_step {
    struct infer_backend_model *m;
    const struct cuda_bucket *bucket;
    struct cuda_numbers numbers; /* on the device */
    struct cuda_step step;
    struct cuda_turn turn;           /* that the next attention does; q NULL: none */
    const struct infer_batch *batch; /* where raw logits are wanted */
};

static cudaError_t embed(const struct at_step *s, const struct cuda_op *op)
{
    struct infer_backend_model *m = s->m;
    cudaError_t error =
        cuda_matrix_read(op->w[0], s->numbers.tokens, s->bucket->rows, op->op->as.embed.scale,
                         m->scratch.drawn, m->scratch.x, m->x_stride, m->stream);
    cuda_profile_mark(m, CUDA_PHASE_EMBED);
    return error;
}

/* In the order that products of so many rows want. */
static struct cuda_packed packed(const struct infer_backend_model *m, struct cuda_packed p,
                                 uint32_t rows)
{
    p.tiles = cuda_packed_tiles(rows, m->backend->shared_bytes);
    return p;
}

/* Rows of x, or those that `index` names, normed and packed. */
static cudaError_t pack(const struct at_step *s, const struct cuda_op *op, const int32_t *index,
                        uint32_t n)
{
    struct infer_backend_model *m = s->m;
    const struct cuda_packed to = packed(m, m->scratch.packed_x, n);
    cudaError_t error = cuda_pack(m->scratch.x, m->x_stride, index, n, op->norm,
                                  m->plan->shape.norm_eps, &to, m->stream);
    cuda_profile_mark(m, CUDA_PHASE_PACK);
    return error;
}

static cudaError_t qkv(const struct at_step *s, const struct cuda_op *op)
{
    struct infer_backend_model *m = s->m;
    const struct cuda_scratch *c = &m->scratch;
    float *const to[3] = {c->q, c->k, c->v};
    const size_t stride[3] = {m->q_stride, m->k_stride, m->v_stride};
    struct cuda_product products[3];
    cudaError_t error = pack(s, op, NULL, s->bucket->rows);
    for (int i = 0; i < 3; i++)
        products[i] = (struct cuda_product){.w = *op->w[i],
                                            .x = packed(m, c->packed_x, s->bucket->rows),
                                            .n_rows = s->bucket->rows,
                                            .finish = CUDA_STORE,
                                            .scale = 1,
                                            .bias = op->bias[i],
                                            .to = to[i],
                                            .stride = stride[i],
                                            .sums = c->sums};
    if (error == cudaSuccess)
        error = cuda_multiply(products, 3, m->stream);
    cuda_profile_mark(m, CUDA_PHASE_QKV);
    return error;
}

/* What is done to the results of QKV's products: by a kernel of its own, or by attention's, which
 * follows. */
static struct cuda_turn turn_of(const struct at_step *s, const struct cuda_op *op)
{
    const struct infer_backend_model *m = s->m;
    const struct cuda_scratch *c = &m->scratch;
    const struct infer_rope *rope = &m->plan->rope;
    return (struct cuda_turn){.q = c->q,
                              .k = c->k,
                              .v = c->v,
                              .q_stride = m->q_stride,
                              .k_stride = m->k_stride,
                              .v_stride = m->v_stride,
                              .q_norm = op->q_norm,
                              .k_norm = op->k_norm,
                              .eps = m->plan->shape.norm_eps,
                              .rope_style = rope->style,
                              .rope_dims = rope->n_dims,
                              .inv_freq = m->inv_freq,
                              .magnitude = rope->magnitude,
                              .scale = op->attend_scale,
                              .queries = c->queries,
                              .layer = op->op->layer};
}

static cudaError_t turn(struct at_step *s, const struct cuda_op *op)
{
    const struct cuda_turn turn = turn_of(s, op);
    if (s->bucket->turns) {
        s->turn = turn;
        return cudaSuccess;
    }
    cudaError_t error = cuda_turn_and_cache(&s->m->cache, &turn, &s->step, s->m->stream);
    cuda_profile_mark(s->m, CUDA_PHASE_TURN);
    return error;
}

static cudaError_t attend(const struct at_step *s, const struct cuda_op *op)
{
    struct infer_backend_model *m = s->m;
    const struct cuda_attend attend = {.queries = m->scratch.queries,
                                       .turn = s->turn,
                                       .streams = s->bucket->streams,
                                       .layer = op->op->layer,
                                       .window = op->op->as.attend.window,
                                       .partials = m->scratch.partials,
                                       .merges = s->numbers.merges,
                                       .n_merges = s->bucket->merges,
                                       .to = packed(m, m->scratch.packed_o, s->bucket->rows)};
    cudaError_t error = cuda_attend(&m->cache, &attend, &s->step, m->stream);
    cuda_profile_mark(m, CUDA_PHASE_ATTEND);
    return error;
}

static cudaError_t project(const struct at_step *s, const struct cuda_op *op)
{
    struct infer_backend_model *m = s->m;
    bool from_o = op->op->as.project.from == INFER_VALUE_O;
    const struct cuda_product product = {
        .w = *op->w[0],
        .x = packed(m, from_o ? m->scratch.packed_o : m->scratch.packed_t, s->bucket->rows),
        .n_rows = s->bucket->rows,
        .finish = CUDA_ADD,
        .scale = 1,
        .bias = op->bias[0],
        .to = m->scratch.x,
        .stride = m->x_stride,
        .sums = m->scratch.sums};
    cudaError_t error = cuda_multiply(&product, 1, m->stream);
    cuda_profile_mark(m, from_o ? CUDA_PHASE_PROJECT_O : CUDA_PHASE_PROJECT_T);
    return error;
}

static cudaError_t feed_forward(const struct at_step *s, const struct cuda_op *op)
{
    struct infer_backend_model *m = s->m;
    const struct cuda_scratch *c = &m->scratch;
    const uint32_t activation = op->op->as.ffn.activation;
    struct cuda_product products[2] = {{.w = *op->w[0],
                                        .v = *op->w[1],
                                        .x = packed(m, c->packed_x, s->bucket->rows),
                                        .n_rows = s->bucket->rows,
                                        .finish = CUDA_GATED,
                                        .activation = activation,
                                        .scale = 1,
                                        .gated = packed(m, c->packed_t, s->bucket->rows),
                                        .sums = c->sums}};
    cudaError_t error = pack(s, op, NULL, s->bucket->rows);
    if (error != cudaSuccess)
        return error;
    if (op->w[0]->format == op->w[1]->format) {
        error = cuda_multiply(products, 1, m->stream);
    } else {
        products[0].finish = CUDA_STORE;
        products[0].to = c->gate;
        products[0].stride = m->t_stride;
        products[1] = products[0];
        products[1].w = *op->w[1];
        products[1].to = c->up;
        error = cuda_multiply(products, 2, m->stream);
        if (error == cudaSuccess)
            error = cuda_pack_gated(c->gate, c->up, m->t_stride, s->bucket->rows, activation,
                                    &products[0].gated, m->stream);
    }
    cuda_profile_mark(m, CUDA_PHASE_GATED);
    return error;
}

/* ---- the head -------------------------------------------------------------------------------- */

static bool wants_logits(const struct infer_batch *batch)
{
    for (uint32_t i = 0; i < batch->n_outputs; i++)
        if (batch->outputs[i].logits)
            return true;
    return false;
}

/* Raw logits of a block of outputs, to the caller's memory. */
static cudaError_t copy_logits(struct infer_backend_model *m, const struct cuda_bucket *bucket,
                               const struct infer_batch *batch, uint32_t block)
{
    struct cuda_numbers numbers;
    cuda_numbers_place(&numbers, bucket, m->numbers);
    const uint32_t first = block * CUDA_HEAD_OUTPUTS;
    for (uint32_t i = first; i < batch->n_outputs && i < first + CUDA_HEAD_OUTPUTS; i++) {
        float *to = batch->outputs[i].logits;
        if (!to)
            continue;
        cudaError_t error = cudaMemcpyAsync(
            to, m->scratch.logits + m->logits_stride * numbers.outputs[i].row,
            m->plan->shape.n_vocab * sizeof(float), cudaMemcpyDeviceToHost, m->stream);
        if (error != cudaSuccess)
            return error;
    }
    return cudaSuccess;
}

static cudaError_t head_block(const struct at_step *s, const struct cuda_op *op, uint32_t block)
{
    struct infer_backend_model *m = s->m;
    const uint32_t rows = cuda_head_rows(s->bucket), first = block * CUDA_HEAD_OUTPUTS;
    const uint32_t rest = s->bucket->outputs - first;
    const struct cuda_product product = {.w = *op->w[0],
                                         .x = packed(m, m->scratch.packed_x, rows),
                                         .n_rows = rows,
                                         .finish = CUDA_STORE,
                                         .scale = op->op->as.head.scale,
                                         .to = m->scratch.logits,
                                         .stride = m->logits_stride,
                                         .sums = m->scratch.sums};
    cudaError_t error = pack(s, op, s->numbers.output_rows + (size_t)rows * block, rows);
    if (error == cudaSuccess)
        error = cuda_multiply(&product, 1, m->stream);
    cuda_profile_mark(m, CUDA_PHASE_HEAD);
    if (error == cudaSuccess)
        error = cuda_sample(m->scratch.logits, m->logits_stride, m->plan->shape.n_vocab,
                            s->numbers.outputs + first,
                            rest < CUDA_HEAD_OUTPUTS ? rest : CUDA_HEAD_OUTPUTS,
                            (const struct infer_logit_bias *)(const void *)s->numbers.words,
                            (const int32_t *)s->numbers.words, m->scratch.sample,
                            m->scratch.drawn + first, m->stream);
    cuda_profile_mark(m, CUDA_PHASE_SAMPLE);
    if (error == cudaSuccess && s->batch)
        error = copy_logits(m, s->bucket, s->batch, block);
    return error;
}

static cudaError_t head(const struct at_step *s, const struct cuda_op *op)
{
    cudaError_t error = cudaSuccess;
    for (uint32_t b = 0; b < cuda_head_blocks(s->bucket) && error == cudaSuccess; b++)
        error = head_block(s, op, b);
    return error;
}

/* ---- the whole ------------------------------------------------------------------------------- */

static cudaError_t launch_op(struct at_step *s, const struct cuda_op *op)
{
    switch (op->op->kind) {
    case INFER_OP_EMBED:
        return embed(s, op);
    case INFER_OP_QKV: {
        cudaError_t error = qkv(s, op);
        return error == cudaSuccess ? turn(s, op) : error;
    }
    case INFER_OP_ATTEND:
        return attend(s, op);
    case INFER_OP_PROJECT:
        return project(s, op);
    case INFER_OP_FFN_GATED:
        return feed_forward(s, op);
    case INFER_OP_HEAD:
        return head(s, op);
    default: /* ALL_REDUCE: this plan is its only part */
        return cudaSuccess;
    }
}

static cudaError_t chain(const struct at_step *s, uint32_t i)
{
    cudaError_t error = cuda_chain_launch(s->m, s->bucket, i);
    cuda_profile_mark(s->m, CUDA_PHASE_CHAIN);
    return error;
}

/* A chain of products before each layer's attention, and one after the last's. */
static cudaError_t launch_chained(struct at_step *s, const struct cuda_op *op, uint32_t *n)
{
    cudaError_t error = cudaSuccess;
    switch (op->op->kind) {
    case INFER_OP_QKV:
        error = chain(s, (*n)++);
        return error == cudaSuccess ? turn(s, op) : error;
    case INFER_OP_PROJECT:
        if (*n + 1 == s->m->n_chains && op->op->as.project.from == INFER_VALUE_T)
            error = chain(s, (*n)++);
        return error;
    case INFER_OP_FFN_GATED:
        return error;
    default:
        return launch_op(s, op);
    }
}

cudaError_t cuda_step_launch(struct infer_backend_model *m, const struct cuda_bucket *bucket,
                             const struct infer_batch *batch)
{
    struct at_step s = {.m = m, .bucket = bucket, .batch = batch};
    cuda_numbers_place(&s.numbers, bucket, m->scratch.numbers);
    s.step = (struct cuda_step){.tokens = s.numbers.tokens,
                                .row_seq = s.numbers.row_seq,
                                .row_position = s.numbers.row_position,
                                .seqs = s.numbers.seqs,
                                .pages = s.numbers.words,
                                .pieces = s.numbers.pieces,
                                .output_rows = s.numbers.output_rows,
                                .n_rows = bucket->rows,
                                .n_pieces = bucket->pieces};
    cudaError_t error = cudaSuccess;
    uint32_t n_chains = 0;
    for (uint32_t i = 0; i < m->plan->n_ops && error == cudaSuccess; i++)
        error =
            bucket->chained ? launch_chained(&s, &m->ops[i], &n_chains) : launch_op(&s, &m->ops[i]);
    return error;
}

cudaError_t cuda_step_start(struct infer_backend_model *m, const struct cuda_bucket *bucket,
                            const struct infer_batch *batch)
{
    bool logits = wants_logits(batch);
    if (m->backend->graphs && bucket->rows <= CUDA_GRAPH_ROWS &&
        (!logits || cuda_head_blocks(bucket) == 1)) {
        cudaError_t error = cuda_graph_launch(m, bucket);
        if (error == cudaSuccess && logits)
            error = copy_logits(m, bucket, batch, 0);
        if (!cuda_graph_refused(m, error))
            return error;
    }
    cuda_profile_begin(m, false);
    return cuda_step_launch(m, bucket, logits ? batch : NULL);
}

int cuda_step_warm(struct infer_backend_model *m)
{
    struct cuda_bucket bucket = {
        .rows = CUDA_ROWS_PAD, .pieces = 1, .merges = 1, .outputs = m->state.max_outputs ? 1 : 0};
    size_t bytes = cuda_batch_blank(m, &bucket);
    cudaError_t error =
        cudaMemcpyAsync(m->scratch.numbers, m->numbers, bytes, cudaMemcpyHostToDevice, m->stream);
    if (error == cudaSuccess)
        error = cuda_step_launch(m, &bucket, NULL);
    cudaError_t waited = cudaStreamSynchronize(m->stream);
    return cuda_check(m->backend, error != cudaSuccess ? error : waited, "a step of no sequence");
}
