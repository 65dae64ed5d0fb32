/* model.c: from a plan to memory, and back.
 *
 * Device memory is three blocks per model: weights (vectors, then matrices in the device's own
 * formats, all zero before the first row comes), pages (zero), and scratch (rows of values for the
 * largest step, a block of logits, partial attention, the step's numbers, staging). Nothing else is
 * allocated there afterwards, but for the runtime's own captured steps. Host memory comes from
 * memory_take(): the tables that stand here, and one block that the device copies from and to,
 * which is pinned where the system lets us.
 *
 * Bytes, for rows R of the largest step, outputs O at a time, vocabulary V: R * (4 * (n_embd + q +
 * k
 * + v) + 2 * (n_embd + o + n_ffn) + 2 * q) + 4 O V, and the partial attention.
 *
 * Sizes come from a plan that the daemon has checked; the sums below are checked again, because
 * they decide how much memory is written. One thread at a time per model. */
#include "cuda/model.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

/* ---- sums ------------------------------------------------------------------------------------ */

/* Hands out places in a block; first with base NULL to measure, then to build. */
struct places {
    uint8_t *base;
    size_t used;
    bool overflow;
};

static void *place(struct places *p, size_t count, size_t size)
{
    size_t bytes, end;
    if (__builtin_mul_overflow(count, size, &bytes) ||
        __builtin_add_overflow(bytes, CUDA_ALIGN - 1, &bytes) ||
        __builtin_add_overflow(p->used, bytes / CUDA_ALIGN * CUDA_ALIGN, &end)) {
        p->overflow = true;
        return NULL;
    }
    void *at = p->base ? p->base + p->used : NULL;
    p->used = end;
    return at;
}

/* A row of floats begins where a line of memory does. */
static size_t pad64(size_t n)
{
    return (n + 63) / 64 * 64;
}

static void place_packed(struct cuda_packed *ret, struct places *p, uint32_t rows, uint32_t cols)
{
    ret->values = place(p, 1, cuda_packed_bytes(rows, cols));
    ret->cols = cols;
    ret->blocks = (cols + 63) / 64 * 2;
}

/* ---- places ---------------------------------------------------------------------------------- */

static void place_weights(struct infer_backend_model *m, struct places *p)
{
    m->inv_freq = place(p, m->plan->rope.n_dims / 2 + 1, sizeof(float));
    for (uint32_t i = 0; i < m->plan->n_tensors; i++)
        if (m->tensors[i].role == CUDA_VECTOR)
            m->tensors[i].vector = place(p, pad64(m->plan->tensors[i].ne[0]), sizeof(float));
    for (uint32_t i = 0; i < m->plan->n_tensors; i++) {
        const struct infer_tensor *t = &m->plan->tensors[i];
        if (m->tensors[i].role != CUDA_MATRIX)
            continue;
        size_t bytes = cuda_matrix_bytes(t->type, (uint32_t)t->n_rows, (uint32_t)t->ne[0]);
        if (!bytes)
            p->overflow = true;
        void *memory = place(p, 1, bytes);
        if (p->base)
            cuda_matrix_init(&m->tensors[i].matrix, t->type, (uint32_t)t->n_rows,
                             (uint32_t)t->ne[0], memory);
    }
}

/* What the layers' operations ask for besides weights. */
static void measure_ops(struct infer_backend_model *m)
{
    const struct infer_plan *plan = m->plan;
    bool sees_all = false;
    for (uint32_t i = 0; i < plan->n_ops; i++) {
        const struct infer_op *op = &plan->ops[i];
        if (op->kind == INFER_OP_FFN_GATED && cuda_format_of(plan->tensors[op->as.ffn.gate].type) !=
                                                  cuda_format_of(plan->tensors[op->as.ffn.up].type))
            m->splits_gated = true;
        if (op->kind != INFER_OP_ATTEND)
            continue;
        sees_all = sees_all || !op->as.attend.window;
        if (op->as.attend.window > m->window)
            m->window = op->as.attend.window;
    }
    if (sees_all)
        m->window = 0;
}

/* The largest piece of file rows: whole tensors that are small, whole rows of others. */
static void measure_stage(struct infer_backend_model *m)
{
    for (uint32_t i = 0; i < m->plan->n_tensors; i++) {
        const struct infer_tensor *t = &m->plan->tensors[i];
        size_t row = m->tensors[i].role == CUDA_VECTOR ? t->ne[0] * sizeof(float) : t->row_bytes;
        size_t rows = row && row <= CUDA_STAGE_BYTES ? CUDA_STAGE_BYTES / row : 1;
        size_t bytes = row * (rows < t->n_rows ? rows : t->n_rows);
        if (m->tensors[i].role != CUDA_UNUSED && bytes > m->stage_bytes)
            m->stage_bytes = bytes;
    }
    m->stage_bytes = (m->stage_bytes + CUDA_ALIGN - 1) / CUDA_ALIGN * CUDA_ALIGN;
}

/* All but addresses that follows from plan and state. */
static void measure(struct infer_backend_model *m)
{
    const struct infer_shape *s = &m->plan->shape;
    m->max_rows = cuda_bucket_rows(m->state.max_rows);
    const struct cuda_bucket largest = {.outputs = cuda_bucket_outputs(m->state.max_outputs)};
    m->head_rows = cuda_head_rows(&largest);
    uint64_t pages = ((uint64_t)s->n_context + CUDA_PAGE_TOKENS - 1) / CUDA_PAGE_TOKENS;
    m->max_pages = !pages || pages > m->state.n_pages ? m->state.n_pages : (uint32_t)pages;
    m->x_stride = pad64(s->n_embd);
    m->q_stride = pad64((size_t)s->n_heads * s->head_dim);
    m->k_stride = pad64((size_t)s->n_kv_heads * s->head_dim);
    m->v_stride = pad64((size_t)s->n_kv_heads * s->head_dim_v);
    m->t_stride = pad64(s->n_ffn);
    m->logits_stride = pad64(s->n_vocab);
    measure_ops(m);
    measure_stage(m);
    cuda_cut_most(&m->cache, m->max_rows, m->state.max_seqs, m->backend->n_processors,
                  &m->max_pieces, &m->max_merges, &m->max_partials);
    m->max_pieces = cuda_bucket_pieces(m->max_pieces);
    m->max_merges = cuda_bucket_merges(m->max_merges);
    cuda_chain_measure(m);
    m->numbers_bytes = cuda_numbers_max(m);
}

static void place_scratch(struct infer_backend_model *m, struct places *p)
{
    const struct infer_shape *s = &m->plan->shape;
    struct cuda_scratch *c = &m->scratch;
    const size_t rows = m->max_rows;
    const uint32_t packed = m->max_rows > m->head_rows ? m->max_rows : m->head_rows;

    c->x = place(p, rows * m->x_stride, sizeof(float));
    c->q = place(p, rows * m->q_stride, sizeof(float));
    c->k = place(p, rows * m->k_stride, sizeof(float));
    c->v = place(p, rows * m->v_stride, sizeof(float));
    c->gate = c->up = NULL;
    if (m->splits_gated) {
        c->gate = place(p, rows * m->t_stride, sizeof(float));
        c->up = place(p, rows * m->t_stride, sizeof(float));
    }
    c->queries = place(p, rows * s->n_heads, m->cache.dim_k * sizeof(uint16_t));
    place_packed(&c->packed_x, p, packed, s->n_embd);
    place_packed(&c->packed_o, p, m->max_rows, s->n_heads * s->head_dim_v);
    place_packed(&c->packed_t, p, m->max_rows, s->n_ffn);
    c->logits = place(p, m->head_rows * m->logits_stride, sizeof(float));
    c->partials = place(p, 1, cuda_partial_bytes(&m->cache, m->max_partials));
    c->sums_bytes = cuda_sums_bytes(packed, m->backend->n_processors);
    c->sums = c->sums_bytes ? place(p, 1, c->sums_bytes) : NULL;
    c->sample = place(
        p, 1, m->state.max_outputs ? cuda_sample_scratch_bytes(s->n_vocab, CUDA_HEAD_OUTPUTS) : 0);
    c->drawn = place(p, cuda_bucket_outputs(m->state.max_outputs), sizeof *c->drawn);
    c->numbers = place(p, 1, m->numbers_bytes);
    c->stages = place(p, CUDA_STAGES, m->stage_bytes);
    c->exchange = place(p, 1, cuda_chain_bytes(m));
}

static void place_pinned(struct infer_backend_model *m, struct places *p)
{
    for (uint32_t i = 0; i < CUDA_RUNS; i++) {
        struct cuda_run *run = &m->runs[i];
        run->numbers = place(p, 1, m->numbers_bytes);
        run->drawn = place(p, cuda_bucket_outputs(m->state.max_outputs), sizeof *run->drawn);
    }
    m->numbers = m->runs[0].numbers;
    m->x = place(p, 1, cuda_stream_bytes(m, m->max_rows));
    m->pieces = place(p, m->max_pieces, sizeof *m->pieces);
    m->merges = place(p, m->max_merges, sizeof *m->merges);
    uint8_t *stages = place(p, CUDA_STAGES, m->stage_bytes);
    for (uint32_t i = 0; i < CUDA_STAGES && p->base; i++) {
        m->stages[i].host = stages + m->stage_bytes * i;
        m->stages[i].device = m->scratch.stages + m->stage_bytes * i;
    }
}

static void place_tables(struct infer_backend_model **ret, const struct infer_plan *plan,
                         struct places *p)
{
    struct infer_backend_model *m = place(p, 1, sizeof *m);
    struct cuda_tensor *tensors = place(p, plan->n_tensors, sizeof *tensors);
    struct cuda_op *ops = place(p, plan->n_ops, sizeof *ops);
    struct cuda_graph *graphs = place(p, CUDA_GRAPHS, sizeof *graphs);
    struct cuda_chain *chains = place(p, cuda_chains_most(plan), sizeof *chains);
    if (!p->base)
        return;
    m->tensors = tensors;
    m->ops = ops;
    m->graphs = graphs;
    m->chains = chains;
    *ret = m;
}

/* ---- host memory ----------------------------------------------------------------------------- */

static void give(struct infer_backend *b, struct cuda_taken *taken)
{
    if (taken->pinned)
        cudaHostUnregister(taken->memory);
    if (taken->memory)
        b->host->memory_give(b->host->ctx, taken->memory, taken->bytes);
    *taken = (struct cuda_taken){0};
}

static int take(struct infer_backend *b, struct cuda_taken *ret, size_t bytes, const char *what)
{
    void *memory = b->host->memory_take(b->host->ctx, bytes);
    if (!memory)
        return cuda_fail(-ENOMEM, "no memory for %zu bytes of %s", bytes, what);
    *ret = (struct cuda_taken){.memory = memory, .bytes = bytes};
    return 0;
}

/* Copies from and to memory that is not pinned come out the same, only later. */
static void pin(struct infer_backend *b, struct cuda_taken *taken)
{
    cudaError_t error = cudaHostRegister(taken->memory, taken->bytes, cudaHostRegisterPortable);
    taken->pinned = error == cudaSuccess;
    if (taken->pinned)
        return;
    cudaGetLastError();
    cuda_log(b, INFER_LOG_WARNING, "cuda: %zu bytes cannot be pinned, copies will be slow: %s",
             taken->bytes, cudaGetErrorString(error));
}

/* ---- a model's life -------------------------------------------------------------------------- */

struct sizes {
    size_t weights, scratch, pinned;
};

static int measure_blocks(struct infer_backend_model *m, struct sizes *ret)
{
    struct places weights = {0}, scratch = {0}, pinned = {0};
    place_weights(m, &weights);
    place_scratch(m, &scratch);
    place_pinned(m, &pinned);
    if (weights.overflow || scratch.overflow || pinned.overflow || !m->numbers_bytes ||
        __builtin_mul_overflow((size_t)m->state.n_pages, m->cache.page_bytes, &m->pages_bytes))
        return cuda_fail(-EINVAL, "the plan's sizes overflow");
    *ret = (struct sizes){weights.used, scratch.used, pinned.used};
    return 0;
}

/* Attention has another way where there is little shared memory; drawing has none. */
static int check_shared(struct infer_backend_model *m)
{
    const uint32_t n_vocab = m->plan->shape.n_vocab, has = m->backend->shared_bytes;
    const size_t needed = m->state.max_outputs ? cuda_sample_shared_bytes(n_vocab) : 0;
    m->cache.narrow = cuda_wide_bytes(&m->cache) > has;
    if (needed <= has)
        return 0;
    return cuda_fail(-ENOTSUP,
                     "to draw one of %u tokens takes %zu KiB of shared memory, of which GPU %d has "
                     "%u; use device = cpu for this model",
                     n_vocab, needed >> 10, m->backend->device, has >> 10);
}

/* The tables of a plan, checked; nothing on the device yet. */
static int prepare(struct infer_backend *b, const struct infer_plan *plan,
                   const struct infer_state_config *state, struct infer_backend_model **ret,
                   struct sizes *ret_sizes)
{
    struct cuda_taken tables = {0};
    struct places measured = {0};
    struct infer_backend_model *m = NULL;
    place_tables(&m, plan, &measured);
    if (measured.overflow)
        return cuda_fail(-EINVAL, "the plan's sizes overflow");
    int r = take(b, &tables, measured.used, "tables");
    if (r < 0)
        return r;
    struct places built = {.base = tables.memory};
    place_tables(&m, plan, &built);
    m->backend = b;
    m->plan = plan;
    m->state = *state;
    m->tables = tables;
    r = cuda_plan_check(plan, state, m->tensors);
    if (r >= 0)
        r = cuda_cache_init(&m->cache, &plan->shape, state);
    if (r >= 0)
        r = check_shared(m);
    if (r >= 0) {
        measure(m);
        r = measure_blocks(m, ret_sizes);
    }
    if (r < 0) {
        give(b, &tables);
        return r;
    }
    *ret = m;
    return 0;
}

/* Of the device's memory: what stands in the host's, the tables and the staging, is not a part. */
int cuda_model_estimate(struct infer_backend *b, const struct infer_plan *plan,
                        const struct infer_state_config *state, struct infer_estimate *ret)
{
    struct infer_backend_model *m;
    struct sizes sizes;
    int r = prepare(b, plan, state, &m, &sizes);
    if (r < 0)
        return r;
    *ret = (struct infer_estimate){.weights_bytes = sizes.weights,
                                   .page_bytes = m->cache.page_bytes,
                                   .scratch_bytes = sizes.scratch};
    struct cuda_taken tables = m->tables;
    give(b, &tables);
    return 0;
}

/* The device's three blocks. */
static int take_device(struct infer_backend_model *m, const struct sizes *sizes)
{
    struct infer_backend *b = m->backend;
    void *pages = NULL;
    int r = cuda_check(b, cudaMalloc(&m->weights, sizes->weights), "weights");
    if (r >= 0)
        r = cuda_check(b, cudaMalloc(&pages, m->pages_bytes), "pages");
    m->cache.pages = r < 0 ? NULL : pages;
    if (r >= 0)
        r = cuda_check(b, cudaMalloc(&m->scratch_memory, sizes->scratch), "scratch");
    m->weights_bytes = sizes->weights;
    m->scratch_bytes = sizes->scratch;
    return r;
}

static int make_streams(struct infer_backend_model *m)
{
    struct infer_backend *b = m->backend;
    int r = cuda_check(b, cudaStreamCreateWithFlags(&m->stream, cudaStreamNonBlocking), "a stream");
    if (r >= 0)
        r = cuda_check(b, cudaStreamCreateWithFlags(&m->loading, cudaStreamNonBlocking),
                       "a stream");
    if (r >= 0)
        r = cuda_check(b, cudaStreamCreateWithFlags(&m->copying, cudaStreamNonBlocking),
                       "a stream");
    for (uint32_t i = 0; i < CUDA_RUNS && r >= 0; i++)
        r = cuda_check(b, cudaEventCreateWithFlags(&m->runs[i].done, cudaEventDisableTiming),
                       "an event");
    for (uint32_t i = 0; i < CUDA_STAGES && r >= 0; i++) {
        struct cuda_stage *stage = &m->stages[i];
        r = cuda_check(b, cudaEventCreateWithFlags(&stage->copied, cudaEventDisableTiming),
                       "an event");
        if (r >= 0)
            r = cuda_check(b, cudaEventCreateWithFlags(&stage->laid, cudaEventDisableTiming),
                           "an event");
    }
    return r;
}

/* Everything is in place: addresses, zeros, angles. */
static int build(struct infer_backend_model *m)
{
    struct infer_backend *b = m->backend;
    struct places weights = {.base = m->weights}, scratch = {.base = m->scratch_memory};
    struct places pinned = {.base = m->pinned.memory};
    place_weights(m, &weights);
    place_scratch(m, &scratch);
    place_pinned(m, &pinned);
    cuda_plan_resolve(m);
    int r = cuda_check(b, cudaMemsetAsync(m->weights, 0, m->weights_bytes, m->loading), "weights");
    if (r >= 0)
        r = cuda_check(b, cudaMemsetAsync(m->cache.pages, 0, m->pages_bytes, m->stream), "pages");
    if (r >= 0 && m->scratch.sums)
        r = cuda_check(b, cudaMemsetAsync(m->scratch.sums, 0xff, m->scratch.sums_bytes, m->stream),
                       "scratch");
    size_t angles = m->plan->rope.n_dims / 2 * sizeof(float);
    if (r >= 0 && angles)
        r = cuda_check(b,
                       cudaMemcpyAsync(m->inv_freq, m->plan->rope.inv_freq, angles,
                                       cudaMemcpyHostToDevice, m->loading),
                       "angles");
    if (r >= 0)
        r = cuda_check(b, cuda_chain_ready(m), "chains");
    if (r >= 0)
        r = cuda_profile_new(m);
    /* The pages may be used (page_write) before the model is ready. */
    if (r >= 0)
        r = cuda_check(b, cudaStreamSynchronize(m->stream), "pages");
    return r;
}

int cuda_model_open(struct infer_backend *b, const struct infer_plan *plan,
                    const struct infer_state_config *state, struct infer_backend_model **ret)
{
    struct infer_backend_model *m;
    struct sizes sizes;
    int r = cuda_enter(b);
    if (r < 0)
        return r;
    if (!atomic_exchange(&b->begun, true))
        atomic_store(&b->read_bytes_per_s, cuda_probe_read());
    r = prepare(b, plan, state, &m, &sizes);
    if (r < 0)
        return r;
    r = cuda_check(b, cuda_chain_model(b), "an event");
    if (r >= 0)
        r = take(b, &m->pinned, sizes.pinned, "staging");
    if (r >= 0) {
        pin(b, &m->pinned);
        r = take_device(m, &sizes);
    }
    if (r >= 0)
        r = make_streams(m);
    if (r >= 0)
        r = build(m);
    if (r < 0) {
        cuda_model_close(m);
        return r;
    }
    *ret = m;
    return 0;
}

int cuda_model_ready(struct infer_backend_model *m)
{
    int r = cuda_enter(m->backend);
    for (uint32_t i = 0; i < m->plan->n_tensors && r >= 0; i++) {
        const struct infer_tensor *file = &m->plan->tensors[i];
        if (m->tensors[i].role != CUDA_UNUSED && m->tensors[i].n_written != file->n_rows)
            r = cuda_fail(-EINVAL, "tensor %.64s: %" PRIu64 " of %" PRIu64 " rows came", file->name,
                          m->tensors[i].n_written, file->n_rows);
    }
    if (r >= 0)
        r = cuda_check(m->backend, cudaStreamSynchronize(m->loading), "loading");
    if (r >= 0)
        r = cuda_step_warm(m);
    m->ready = r >= 0;
    return r;
}

void cuda_model_close(struct infer_backend_model *m)
{
    if (!m)
        return;
    struct infer_backend *b = m->backend;
    struct cuda_taken tables = m->tables;
    cudaSetDevice(b->device);
    if (m->stream)
        cudaStreamSynchronize(m->stream);
    if (m->copying)
        cudaStreamSynchronize(m->copying);
    if (m->loading)
        cudaStreamSynchronize(m->loading);
    cuda_chain_model_gone(b);
    cuda_rows_unpin(m);
    cuda_graphs_free(m);
    cuda_profile_free(m);
    for (uint32_t i = 0; i < CUDA_RUNS; i++)
        if (m->runs[i].done)
            cudaEventDestroy(m->runs[i].done);
    for (uint32_t i = 0; i < CUDA_STAGES; i++) {
        if (m->stages[i].copied)
            cudaEventDestroy(m->stages[i].copied);
        if (m->stages[i].laid)
            cudaEventDestroy(m->stages[i].laid);
    }
    if (m->stream)
        cudaStreamDestroy(m->stream);
    if (m->loading)
        cudaStreamDestroy(m->loading);
    if (m->copying)
        cudaStreamDestroy(m->copying);
    cudaFree(m->weights);
    cudaFree(m->cache.pages);
    cudaFree(m->scratch_memory);
    give(b, &m->pinned);
    give(b, &tables);
    cudaGetLastError(); /* of a lost device */
}
