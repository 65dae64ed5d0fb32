/* model.c: from a plan to memory: every tensor gets a role, a layout and a place; four pieces of
 * memory are taken from the host (tables, weights, pages, scratch) and given back at close.
 *
 * Roles. What a product uses is a matrix and is repacked (format.c); a table that only EMBED reads
 * keeps the file's encoding; norms and biases become float32. A tied embedding is a matrix, from
 * which EMBED reads rows back.
 *
 * Nodes. Where the processors belong to several NUMA nodes, each matrix is cut by rows, in groups,
 * in proportion to the nodes' workers: consecutive groups make a slice, all slices of a node lie
 * together in memory that is bound to it, and step.c lets a node's workers multiply what their node
 * has. What every worker reads a little of (norms, biases, tables of which a step reads single
 * rows), sequence state and scratch lie in turn on all nodes: whoever takes an item of the
 * attention finds its pages as near or far as anybody else. No result depends on the cut.
 *
 * Sizes come from a plan that the daemon has checked; the sums below are checked again, because
 * they decide how much memory is written. One thread at a time. */
#include "cpu/model.h"

#include "ref/cache.h"
#include "ref/quant.h"
#include "ref/walk.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#define LINE 64u

/* ---- sums ------------------------------------------------------------------------------------ */

/* Hands out places in a piece of memory; first with base NULL to measure, then to build. */
struct layer_out {
    uint8_t *base;
    size_t used;
    bool overflow;
};

static void *place(struct layer_out *out, size_t count, size_t size)
{
    size_t bytes, end;
    if (__builtin_mul_overflow(count, size, &bytes) ||
        __builtin_add_overflow(bytes, LINE - 1, &bytes) ||
        __builtin_add_overflow(out->used, bytes / LINE * LINE, &end)) {
        out->overflow = true;
        return NULL;
    }
    void *at = out->base ? out->base + out->used : NULL;
    out->used = end;
    return at;
}

static size_t pad16(size_t n)
{
    return (n + 15) / 16 * 16;
}

/* ---- the plan -------------------------------------------------------------------------------- */

struct checker {
    struct infer_backend *backend;
    const struct infer_plan *plan;
    struct cpu_tensor *tensors;
};

/* A table that a product uses, too, is a matrix. */
static int use(void *ctx, const struct ref_use *use)
{
    const struct checker *c = ctx;
    const struct infer_tensor *file = &c->plan->tensors[use->tensor];
    struct cpu_tensor *t = &c->tensors[use->tensor];
    const uint32_t role = use->vector                       ? CPU_VECTOR
                          : use->op->kind == INFER_OP_EMBED ? CPU_TABLE
                                                            : CPU_MATRIX;
    if (cpu_format_of(file->type) < 0)
        return cpu_fail(c->backend, -ENOTSUP, "tensor %s has type %" PRIu32 ", which is not known",
                        file->name, file->type);
    if ((use->vector || t->role == CPU_VECTOR) && t->role != CPU_UNUSED && t->role != role)
        return cpu_fail(c->backend, -EINVAL, "tensor %s is used as a matrix and as a vector",
                        file->name);
    if (role > t->role)
        t->role = role;
    if (t->role == CPU_MATRIX)
        cpu_matrix_init(&t->matrix, file->type, (uint32_t)use->rows, (uint32_t)use->cols);
    return 0;
}

static int refuse(void *ctx, int error, const char *why)
{
    const struct checker *c = ctx;
    return cpu_fail(c->backend, error, "%s", why);
}

static int check_cache(struct infer_backend *b, uint32_t type, uint32_t dim)
{
    if (type != INFER_TYPE_F16 && type != INFER_TYPE_Q8_0 && type != INFER_TYPE_Q4_0)
        return cpu_fail(b, -ENOTSUP, "this backend caches keys and values as F16, Q8_0 or Q4_0");
    if (!ref_cache_fits(type, dim))
        return cpu_fail(b, -ENOTSUP,
                        "a %s cache needs heads of a multiple of %" PRIu32 ", not %" PRIu32,
                        ref_type_name(type), ref_block(type), dim);
    return 0;
}

static int check_shape(struct infer_backend *b, const struct infer_plan *plan,
                       const struct infer_state_config *state)
{
    const struct infer_shape *s = &plan->shape;
    if (!s->n_embd || !s->n_vocab || !s->n_heads || !s->n_kv_heads || !s->head_dim ||
        !s->head_dim_v || s->n_heads % s->n_kv_heads || s->n_vocab > INFER_VOCAB_MAX)
        return cpu_fail(b, -EINVAL, "the plan's shape is not consistent");
    if ((s->n_embd | s->n_ffn | s->n_heads | s->n_layers) > 1u << 20 || s->head_dim > 1u << 12 ||
        s->head_dim_v > 1u << 12)
        return cpu_fail(b, -ENOTSUP, "the plan's shape is too large");
    if (plan->rope.n_dims > s->head_dim || plan->rope.n_dims % 2)
        return cpu_fail(b, -EINVAL, "the rotation covers %" PRIu32 " of %" PRIu32 " dimensions",
                        plan->rope.n_dims, s->head_dim);
    if (state->page_tokens != CPU_PAGE_TOKENS)
        return cpu_fail(b, -ENOTSUP, "pages of %" PRIu32 " tokens; this backend has pages of %u",
                        state->page_tokens, CPU_PAGE_TOKENS);
    int r = check_cache(b, state->k_type, s->head_dim);
    if (r >= 0)
        r = check_cache(b, state->v_type, s->head_dim_v);
    if (r < 0)
        return r;
    if (!state->max_rows || state->max_rows > INFER_STEP_ROWS_MAX ||
        state->max_seqs > INFER_STEP_SEQS_MAX)
        return cpu_fail(b, -EINVAL, "steps of %" PRIu32 " rows and %" PRIu32 " sequences",
                        state->max_rows, state->max_seqs);
    return 0;
}

/* ---- operations with their tensors ----------------------------------------------------------- */

static void add_part(struct infer_backend_model *m, struct cpu_op *op, uint32_t w, uint32_t bias)
{
    const struct cpu_matrix *matrix = &m->tensors[w].matrix;
    struct cpu_packing packing = cpu_format_packing(matrix->format);
    uint32_t i = op->n_parts++, p = 0;

    op->part[i] = matrix;
    op->slices[i] = m->tensors[w].slices;
    op->bias[i] = bias == INFER_TENSOR_NONE ? NULL : m->tensors[bias].vector;
    for (; p < op->n_packings; p++) {
        struct cpu_packing *other = &op->packings[p];
        if (other->is_float != packing.is_float)
            continue;
        /* Formats with minima need no offset and take any. */
        if (other->offset == packing.offset || !packing.offset)
            break;
        if (!other->offset) {
            other->offset = packing.offset;
            break;
        }
    }
    if (p == op->n_packings)
        op->packings[op->n_packings++] = packing;
    op->packing[i] = p;
}

static const float *vector_of(const struct infer_backend_model *m, uint32_t index)
{
    return index == INFER_TENSOR_NONE ? NULL : m->tensors[index].vector;
}

static void resolve(struct infer_backend_model *m, const struct infer_op *op, struct cpu_op *ret)
{
    *ret = (struct cpu_op){.op = op};
    switch (op->kind) {
    case INFER_OP_QKV:
        ret->norm = vector_of(m, op->norm);
        add_part(m, ret, op->as.qkv.wq, op->as.qkv.bq);
        add_part(m, ret, op->as.qkv.wk, op->as.qkv.bk);
        add_part(m, ret, op->as.qkv.wv, op->as.qkv.bv);
        ret->q_norm = vector_of(m, op->as.qkv.q_norm);
        ret->k_norm = vector_of(m, op->as.qkv.k_norm);
        break;
    case INFER_OP_PROJECT:
        add_part(m, ret, op->as.project.w, op->as.project.b);
        break;
    case INFER_OP_FFN_GATED:
        ret->norm = vector_of(m, op->norm);
        add_part(m, ret, op->as.ffn.gate, INFER_TENSOR_NONE);
        add_part(m, ret, op->as.ffn.up, INFER_TENSOR_NONE);
        break;
    case INFER_OP_HEAD:
        ret->norm = vector_of(m, op->norm);
        add_part(m, ret, op->as.head.w, INFER_TENSOR_NONE);
        break;
    default:
        break;
    }
}

/* ---- places ---------------------------------------------------------------------------------- */

/* The slices of all matrices, consecutive groups each. */
static void cut(struct infer_backend_model *m)
{
    const struct cpu_pool *pool = m->backend->pool;
    for (uint32_t i = 0; i < m->plan->n_tensors; i++) {
        struct cpu_tensor *t = &m->tensors[i];
        t->slices = m->slices + (size_t)pool->n_nodes * i;
        for (uint32_t n = 0; n < pool->n_nodes && t->role == CPU_MATRIX; n++) {
            const uint32_t groups = t->matrix.n_groups;
            struct cpu_matrix *slice = &t->slices[n];
            uint32_t first = cpu_slice_first(pool, groups, n);
            *slice = t->matrix;
            slice->n_groups = cpu_slice_first(pool, groups, n + 1) - first;
            slice->rows = slice->n_groups * CPU_GROUP;
            if (slice->rows > t->matrix.rows - first * CPU_GROUP) /* the last is padded */
                slice->rows = t->matrix.rows - first * CPU_GROUP;
        }
    }
}

const struct cpu_matrix *cpu_slice_of(const struct infer_backend_model *m,
                                      const struct cpu_tensor *t, uint32_t row, uint32_t *ret_row)
{
    uint32_t n = 0;
    while (row >= t->slices[n].n_groups * CPU_GROUP) /* a row of the matrix: one has it */
        row -= t->slices[n++].n_groups * CPU_GROUP;
    *ret_row = row;
    return &t->slices[n];
}

/* Tells the host where the bytes from *from to out->used shall lie, and moves *from there. Parts
 * for different nodes share no huge page. */
static void end_part(struct infer_backend_model *m, struct layer_out *out, size_t *from,
                     uint32_t node)
{
    const struct infer_host *host = m->backend->host;
    if (!host->memory_place || m->backend->pool->n_nodes < 2)
        return;
    size_t over = out->used % INFER_PLACE_BYTES;
    if (over)
        place(out, 1, INFER_PLACE_BYTES - over);
    if (out->base && out->used > *from)
        host->memory_place(host->ctx, out->base + *from, out->used - *from, node);
    *from = out->used;
}

static void place_weights(struct infer_backend_model *m, struct layer_out *out)
{
    size_t from = 0;
    for (uint32_t i = 0; i < m->plan->n_tensors; i++) {
        struct cpu_tensor *t = &m->tensors[i];
        const struct infer_tensor *file = &m->plan->tensors[i];
        if (t->role == CPU_TABLE)
            t->rows = place(out, file->n_rows, file->row_bytes);
        else if (t->role == CPU_VECTOR)
            t->vector = place(out, pad16(file->ne[0]), sizeof(float));
    }
    end_part(m, out, &from, INFER_NODE_ALL);
    for (uint32_t n = 0; n < m->backend->pool->n_nodes; n++) {
        for (uint32_t i = 0; i < m->plan->n_tensors; i++) {
            struct cpu_matrix *slice = &m->tensors[i].slices[n];
            if (m->tensors[i].role == CPU_MATRIX)
                slice->data = place(out, slice->n_groups, slice->group_bytes);
        }
        end_part(m, out, &from, n);
    }
}

static void place_local(struct infer_backend_model *m, struct cpu_local *l, struct layer_out *out)
{
    const struct infer_shape *s = &m->plan->shape;
    size_t head = pad16(s->head_dim > m->dim_v ? s->head_dim : m->dim_v);
    struct cpu_local own = {0};
    size_t widest = 0;
    own.h = place(out, m->x_stride, sizeof(float));
    for (int i = 0; i < (int)CPU_PARTS; i++)
        own.packed[i] = place(out, CPU_SELF_ROWS, m->packed_row[i]);
    /* A packed query is shorter than its floats. */
    own.q = place(out, (size_t)CPU_TILE * s->head_dim, sizeof(float));
    own.scores = place(out, (size_t)CPU_TILE * CPU_ATTEND_CHUNK, sizeof(float));
    own.out = place(out, (size_t)CPU_TILE * m->dim_v, sizeof(float));
    own.halves = place(out, head, sizeof(uint16_t));
    own.row = place(out, head, sizeof(float));
    for (uint32_t i = 0; i < m->plan->n_tensors; i++)
        if (m->plan->tensors[i].ne[0] > widest && m->tensors[i].role == CPU_MATRIX)
            widest = m->plan->tensors[i].ne[0];
    own.convert = place(out, widest, sizeof(float));
    void *sample = place(out, ref_sample_scratch_bytes(s->n_vocab), 1);
    if (out->base) {
        ref_sample_scratch_init(&own.sample, s->n_vocab, sample);
        *l = own;
    }
}

static void measure_strides(struct infer_backend_model *m)
{
    const struct infer_shape *s = &m->plan->shape;
    m->dim_v = (uint32_t)pad16(s->head_dim_v);
    m->key_bytes = cpu_key_bytes(m->state.k_type, s->head_dim);
    m->value_bytes = cpu_value_bytes(m->state.v_type, m->dim_v);
    m->head_bytes = m->key_bytes + m->value_bytes;
    m->layer_bytes = m->head_bytes * s->n_kv_heads;
    m->page_bytes = m->layer_bytes * s->n_layers;
    m->x_stride = pad16(s->n_embd);
    m->q_stride = pad16((size_t)s->n_heads * s->head_dim);
    m->k_stride = pad16((size_t)s->n_kv_heads * s->head_dim);
    m->v_stride = pad16((size_t)s->n_kv_heads * s->head_dim_v);
    m->o_stride = pad16((size_t)s->n_heads * s->head_dim_v);
    m->t_stride = pad16(s->n_ffn);
    m->logits_stride = pad16(s->n_vocab);
    m->head_rows = m->state.max_outputs < CPU_HEAD_ROWS ? m->state.max_outputs : CPU_HEAD_ROWS;
    for (uint32_t i = 0; i < m->plan->n_ops; i++) {
        const struct cpu_op *op = &m->ops[i];
        for (uint32_t p = 0; p < op->n_packings; p++) {
            size_t bytes = cpu_packed_bytes(op->packings[p], op->part[0]->cols);
            if (bytes > m->packed_row[p])
                m->packed_row[p] = bytes;
        }
    }
}

static void place_scratch(struct infer_backend_model *m, struct layer_out *out)
{
    const size_t rows = m->state.max_rows;
    const uint32_t n_workers = m->backend->pool->n_workers;

    m->x = place(out, rows * m->x_stride, sizeof(float));
    m->q = place(out, rows * m->q_stride, sizeof(float));
    m->k = place(out, rows * m->k_stride, sizeof(float));
    m->v = place(out, rows * m->v_stride, sizeof(float));
    m->o = place(out, rows * m->o_stride, sizeof(float));
    m->t = place(out, rows * m->t_stride, sizeof(float));
    size_t head_rows = m->head_rows > rows ? m->head_rows : rows;
    for (int i = 0; i < (int)CPU_PARTS; i++)
        m->packed[i] = place(out, head_rows + 1, m->packed_row[i]); /* a tile may be filled up */
    m->cosine = place(out, rows * m->plan->rope.n_dims / 2, sizeof(float));
    m->sine = place(out, rows * m->plan->rope.n_dims / 2, sizeof(float));
    m->logits = place(out, m->head_rows * m->logits_stride, sizeof(float));
    m->row_seq = place(out, rows, sizeof(uint32_t));
    m->attend_base = place(out, (size_t)m->state.max_seqs + 1, sizeof(uint32_t));
    m->out_rows = place(out, m->state.max_outputs, sizeof(uint32_t));
    m->out_first = place(out, (size_t)m->state.max_outputs + 1, sizeof(uint32_t));
    m->locals = place(out, n_workers, sizeof *m->locals);
    for (uint32_t i = 0; i < n_workers; i++)
        place_local(m, m->locals + (out->base ? i : 0), out);
}

static size_t tables_bytes(const struct infer_backend *b, const struct infer_plan *plan)
{
    struct layer_out out = {0};
    place(&out, 1, sizeof(struct infer_backend_model));
    place(&out, plan->n_tensors, sizeof(struct cpu_tensor));
    place(&out, plan->n_tensors, b->pool->n_nodes * sizeof(struct cpu_matrix));
    place(&out, plan->n_ops, sizeof(struct cpu_op));
    return out.overflow ? SIZE_MAX : out.used;
}

static void give(struct infer_backend *b, struct cpu_taken *taken)
{
    if (taken->memory)
        b->host->memory_give(b->host->ctx, taken->memory, taken->bytes);
    *taken = (struct cpu_taken){0};
}

static int take(struct infer_backend *b, struct cpu_taken *ret, size_t bytes, const char *what)
{
    if (!bytes)
        return 0;
    void *memory = b->host->memory_take(b->host->ctx, bytes);
    if (!memory)
        return cpu_fail(b, -ENOMEM, "no memory for %zu bytes of %s", bytes, what);
    *ret = (struct cpu_taken){memory, bytes};
    return 0;
}

/* The tables of a plan, checked and resolved; no weights, pages or scratch yet. */
static int prepare(struct infer_backend *b, const struct infer_plan *plan,
                   const struct infer_state_config *state, struct infer_backend_model **ret)
{
    struct cpu_taken tables = {0};
    int r = check_shape(b, plan, state);
    if (r >= 0)
        r = take(b, &tables, tables_bytes(b, plan), "tables");
    if (r < 0)
        return r;
    struct layer_out out = {.base = tables.memory};
    struct infer_backend_model *m = place(&out, 1, sizeof *m);
    *m =
        (struct infer_backend_model){.backend = b, .plan = plan, .state = *state, .tables = tables};
    m->tensors = place(&out, plan->n_tensors, sizeof *m->tensors);
    m->slices = place(&out, plan->n_tensors, b->pool->n_nodes * sizeof *m->slices);
    m->ops = place(&out, plan->n_ops, sizeof *m->ops);
    struct checker checker = {b, plan, m->tensors};
    const struct ref_walk walk = {&checker, use, refuse};
    r = ref_walk(plan, &walk);
    if (r < 0) {
        give(b, &tables);
        return r;
    }
    cut(m);
    for (uint32_t i = 0; i < plan->n_ops; i++)
        resolve(m, &plan->ops[i], &m->ops[i]);
    measure_strides(m);
    *ret = m;
    return 0;
}

/* What workers take from as it comes: a part of it on every node. */
static void spread(struct infer_backend *b, const struct cpu_taken *taken)
{
    if (b->host->memory_place && taken->memory)
        b->host->memory_place(b->host->ctx, taken->memory, taken->bytes, INFER_NODE_ALL);
}

static int measure(struct infer_backend_model *m, struct infer_estimate *ret)
{
    struct layer_out weights = {0}, scratch = {0};
    place_weights(m, &weights);
    place_scratch(m, &scratch);
    if (weights.overflow || scratch.overflow)
        return cpu_fail(m->backend, -EINVAL, "the plan's sizes overflow");
    ret->weights_bytes = weights.used;
    ret->page_bytes = m->page_bytes;
    ret->scratch_bytes = scratch.used + m->tables.bytes;
    return 0;
}

/* ---- the interface --------------------------------------------------------------------------- */

int cpu_model_estimate(struct infer_backend *b, const struct infer_plan *plan,
                       const struct infer_state_config *state, struct infer_estimate *ret)
{
    struct infer_backend_model *m;
    struct infer_estimate e = {0};
    int r = prepare(b, plan, state, &m);
    if (r < 0)
        return r;
    r = measure(m, &e);
    struct cpu_taken tables = m->tables;
    give(b, &tables);
    if (r >= 0)
        *ret = e;
    return r;
}

int cpu_model_open(struct infer_backend *b, const struct infer_plan *plan,
                   const struct infer_state_config *state, struct infer_backend_model **ret)
{
    struct infer_backend_model *m;
    struct infer_estimate e = {0};
    size_t pages = 0;
    int r = prepare(b, plan, state, &m);
    if (r < 0)
        return r;
    r = measure(m, &e);
    if (r >= 0 && __builtin_mul_overflow((size_t)state->n_pages, m->page_bytes, &pages))
        r = cpu_fail(b, -EINVAL, "the pages' size overflows");
    if (r >= 0)
        r = take(b, &m->weights, e.weights_bytes, "weights");
    if (r >= 0)
        r = take(b, &m->pages, pages, "pages");
    if (r >= 0)
        r = take(b, &m->scratch, e.scratch_bytes - m->tables.bytes, "scratch");
    if (r < 0) {
        cpu_model_close(m);
        return r;
    }
    spread(b, &m->pages);
    spread(b, &m->scratch);
    struct layer_out weights = {.base = m->weights.memory}, scratch = {.base = m->scratch.memory};
    place_weights(m, &weights);
    place_scratch(m, &scratch);
    for (uint32_t i = 0; i < plan->n_ops; i++)
        resolve(m, &plan->ops[i], &m->ops[i]); /* the vectors have their places now */
    *ret = m;
    return 0;
}

/* Rows of a matrix on their way in; items are groups of 16 rows, so that no two workers write to
 * the same one. */
struct write_job {
    struct infer_backend_model *m;
    const struct cpu_tensor *tensor;
    const struct infer_tensor *file;
    uint64_t first, end;
    const uint8_t *rows;
};

static void write_rows(const struct write_job *job, uint64_t row, uint64_t end, float *scratch)
{
    for (; row < end; row++) {
        uint32_t at;
        const struct cpu_matrix *slice = cpu_slice_of(job->m, job->tensor, (uint32_t)row, &at);
        cpu_matrix_write(slice, job->file->type, at,
                         job->rows + job->file->row_bytes * (row - job->first), scratch);
    }
}

static void write_groups(struct cpu_worker *worker, void *arg)
{
    const struct write_job *job = arg;
    float *scratch = job->m->locals[worker->index].convert;
    cpu_section(worker);
    for (;;) {
        uint64_t group = job->first / CPU_GROUP + cpu_item(worker);
        uint64_t row = group * CPU_GROUP, end = row + CPU_GROUP;
        if (row >= job->end)
            return;
        row = row < job->first ? job->first : row;
        end = end > job->end ? job->end : end;
        write_rows(job, row, end, scratch);
    }
}

int cpu_model_write(struct infer_backend_model *m, uint32_t tensor, uint64_t first_row,
                    uint64_t n_rows, const void *rows)
{
    if (tensor >= m->plan->n_tensors)
        return cpu_fail(m->backend, -EINVAL, "the plan has no tensor %" PRIu32, tensor);
    const struct infer_tensor *file = &m->plan->tensors[tensor];
    struct cpu_tensor *t = &m->tensors[tensor];
    if (first_row > file->n_rows || n_rows > file->n_rows - first_row)
        return cpu_fail(m->backend, -EINVAL, "tensor %s has %" PRIu64 " rows", file->name,
                        file->n_rows);
    if (!n_rows || t->role == CPU_UNUSED)
        return 0;
    if (t->role == CPU_TABLE) {
        memcpy(t->rows + first_row * file->row_bytes, rows, n_rows * file->row_bytes);
    } else if (t->role == CPU_VECTOR) {
        ref_decode_row(file->type, rows, t->vector, file->ne[0]);
    } else {
        struct write_job job = {m, t, file, first_row, first_row + n_rows, rows};
        /* While another model steps, the rows are this thread's work alone. */
        if (!cpu_pool_try(m->backend->pool, write_groups, &job))
            write_rows(&job, job.first, job.end, m->locals[0].convert);
    }
    return 0;
}

int cpu_model_ready(struct infer_backend_model *m)
{
    return 0;
}

void cpu_model_close(struct infer_backend_model *m)
{
    if (!m)
        return;
    struct infer_backend *b = m->backend;
    struct cpu_taken tables = m->tables;
    give(b, &m->weights);
    give(b, &m->pages);
    give(b, &m->scratch);
    give(b, &tables);
}

/* ---- pages ----------------------------------------------------------------------------------- */

static uint8_t *page_at(struct infer_backend_model *m, uint32_t page)
{
    if (page >= m->state.n_pages)
        return NULL;
    return (uint8_t *)m->pages.memory + m->page_bytes * page;
}

int cpu_page_copy(struct infer_backend_model *m, uint32_t to, uint32_t from)
{
    uint8_t *target = page_at(m, to), *source = page_at(m, from);
    if (!target || !source)
        return cpu_fail(m->backend, -EINVAL, "there are %" PRIu32 " pages", m->state.n_pages);
    if (target != source)
        memcpy(target, source, m->page_bytes);
    return 0;
}

int cpu_page_zero(struct infer_backend_model *m, uint32_t page)
{
    uint8_t *target = page_at(m, page);
    if (!target)
        return cpu_fail(m->backend, -EINVAL, "there are %" PRIu32 " pages", m->state.n_pages);
    memset(target, 0, m->page_bytes);
    return 0;
}

int cpu_page_read(struct infer_backend_model *m, uint32_t page, void *ret_bytes)
{
    const uint8_t *source = page_at(m, page);
    if (!source)
        return cpu_fail(m->backend, -EINVAL, "there are %" PRIu32 " pages", m->state.n_pages);
    memcpy(ret_bytes, source, m->page_bytes);
    return 0;
}

int cpu_page_write(struct infer_backend_model *m, uint32_t page, const void *bytes)
{
    uint8_t *target = page_at(m, page);
    if (!target)
        return cpu_fail(m->backend, -EINVAL, "there are %" PRIu32 " pages", m->state.n_pages);
    memcpy(target, bytes, m->page_bytes);
    return 0;
}
