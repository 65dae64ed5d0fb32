/* step.c: one batch through the plan, by all workers together.
 *
 * Every worker walks the same operations. Each is one or two sections (pool.h) whose items the
 * workers take as they come free, with a barrier after each section:
 *
 *   EMBED      rows: table row to x; angles of the row's position; the same of a part of a model
 *              that takes x from the batch instead
 *   QKV        [pack rows |] groups of weight rows: q, k, v | [rows: rotation, cache |]
 *   ATTEND     (sequence, kv head, 64 pairs)
 *   PROJECT    [pack rows |] groups of weight rows: x += W from
 *   FFN_GATED  [pack rows |] groups of weight rows: t = act(gate) up
 *   HEAD       [pack rows |] groups of weight rows: logits | rows: sampling
 *
 * The parts in brackets vanish where a step has few rows: up to CPU_SELF_ROWS rows every worker
 * packs x for itself, and where every sequence has a single row the attention item turns and
 * caches its own. A decoding step so passes 5 barriers a layer, a prefill 10.
 *
 * Measured on two cores of a Zen 4 EPYC by tests/bench/bench_kernels.c, two threads: 46M parameters
 * in Q6_K, 512 rows of prefill at 4,200 tokens/s (40 G operations: 330 G/s beside attention's 30),
 * decode at 1,000 (38 MB of weights: 38 GB/s, part of it from the third-level cache) and at 850
 * from row 512 on; 1B parameters in Q4_0, prefill 250 (480 G/s), decode 35 to 45 (29 to 37 GB/s,
 * which is what the memory gives).
 *
 * What a section's items compute does not depend on who takes them or how they were cut, so the
 * results have the same bits at any number of threads. Nothing is allocated. */
#include "cpu/model.h"

#include "ref/cache.h"
#include "ref/quant.h"
#include "ref/walk.h"

#include <errno.h>
#include <math.h>
#include <string.h>

#define ROWS_PER_ITEM 8u
/* Weight groups times rows of one kernel call: 2 KiB of results. */
#define CALL_VALUES 512u
/* Rows up to which the weights' way from memory counts beside the work on them. */
#define STREAM_ROWS 64u
/* Packed rows that are kept close (in the second-level cache) while all weights pass by. */
#define BLOCK_BYTES (512u << 10)

struct at_work {
    struct cpu_worker *worker;
    struct infer_backend_model *m;
    const struct cpu_isa *isa;
    struct cpu_local *local;
    uint32_t n_workers;
};

/* Rows of x in their packings, and how far apart they are. */
struct packed_rows {
    const uint8_t *at[CPU_PARTS];
    size_t row[CPU_PARTS];
    uint32_t n;
};

static uint32_t min_u32(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

/* The widest tile that fits n rows: a power of two. */
static uint32_t tile_of(const struct cpu_isa *isa, uint32_t n, uint32_t *ret_log2)
{
    uint32_t log2 = n >= 8 ? 3 : n >= 4 ? 2 : n >= 2 ? 1 : 0;
    if ((1u << log2) > isa->tile)
        log2 = 2;
    *ret_log2 = log2;
    return 1u << log2;
}

/* The tile of a product: one that lacks a single row is filled with the row before it, for the
 * pass over the weights that a second tile would take costs more than a row. */
static uint32_t product_tile(const struct cpu_isa *isa, uint32_t n, uint32_t *ret_log2)
{
    return tile_of(isa, n == 3 || (n == 7 && isa->tile >= 8) ? n + 1 : n, ret_log2);
}

/* ---- packing --------------------------------------------------------------------------------- */

struct source {
    const float *rows;
    size_t stride;
    const uint32_t *index; /* which rows; NULL: the first n */
    const float *norm;     /* NULL: as they are */
    uint32_t cols, n;
};

/* Rows first .. first + T - 1, one tile; the last one stands for those beyond. */
static void pack_tile(const struct at_work *w, const struct cpu_op *op, const struct source *s,
                      uint8_t *const packed[CPU_PARTS], uint32_t first, uint32_t T)
{
    for (uint32_t t = 0; t < T; t++) {
        uint32_t i = min_u32(first + t, s->n - 1);
        const float *x = s->rows + s->stride * (s->index ? s->index[i] : i);
        if (s->norm) {
            w->isa->norm(w->local->h, x, s->norm, s->cols, w->m->plan->shape.norm_eps);
            x = w->local->h;
        }
        for (uint32_t p = 0; p < op->n_packings; p++) {
            size_t row = cpu_packed_bytes(op->packings[p], s->cols);
            w->isa->pack(packed[p] + row * first, T, t, x, s->cols, op->packings[p]);
        }
    }
}

static struct packed_rows pack(const struct at_work *w, const struct cpu_op *op,
                               const struct source *s)
{
    bool self = s->n <= CPU_SELF_ROWS || w->n_workers == 1;
    uint8_t *const *packed = s->n <= CPU_SELF_ROWS ? w->local->packed : w->m->packed;
    struct packed_rows ret = {.n = s->n};
    uint32_t log2;

    for (uint32_t p = 0; p < op->n_packings; p++) {
        ret.at[p] = packed[p];
        ret.row[p] = cpu_packed_bytes(op->packings[p], s->cols);
    }
    if (self) {
        for (uint32_t first = 0; first < s->n;) {
            uint32_t T = product_tile(w->isa, s->n - first, &log2);
            pack_tile(w, op, s, packed, first, T);
            first += T;
        }
        return ret;
    }
    cpu_section(w->worker);
    for (;;) {
        uint32_t first = cpu_item(w->worker) * ROWS_PER_ITEM;
        if (first >= s->n)
            break;
        uint32_t end = min_u32(first + ROWS_PER_ITEM, s->n);
        while (first < end) {
            uint32_t T = product_tile(w->isa, end - first, &log2);
            pack_tile(w, op, s, packed, first, T);
            first += T;
        }
    }
    cpu_barrier(w->worker);
    return ret;
}

/* ---- products -------------------------------------------------------------------------------- */

enum finish { FINISH_STORE, FINISH_ADD, FINISH_GATED };

struct target {
    float *to;
    size_t stride;
    float scale;
};

/* Results of one kernel call, T rows of n numbers, to where they belong. */
static void finish(float *to, size_t stride, const float *from, size_t from_stride, uint32_t T,
                   uint32_t n, const float *bias, float scale, bool add)
{
    for (uint32_t t = 0; t < T; t++, to += stride, from += from_stride) {
        if (add)
            for (uint32_t i = 0; i < n; i++)
                to[i] += from[i];
        else if (scale == 1.0f)
            memcpy(to, from, n * sizeof(float));
        else
            for (uint32_t i = 0; i < n; i++)
                to[i] = from[i] * scale;
        if (bias)
            for (uint32_t i = 0; i < n; i++)
                to[i] += bias[i];
    }
}

/* Asks for a run's first bytes: the rest is asked for by the kernels on their way. */
static void fetch_start(const struct cpu_matrix *a, uint32_t first, uint32_t last)
{
    const uint8_t *from = a->data + a->group_bytes * first;
    size_t bytes = a->group_bytes * (last - first);
    for (size_t i = 0; i < bytes && i < CPU_FETCH_AHEAD; i += 64)
        __builtin_prefetch(from + i, 0, 2);
}

/* Groups first .. last - 1 of a node's slice of part i (for FINISH_GATED of both parts) for rows
 * begin .. end - 1. */
static void product(const struct at_work *w, const struct cpu_op *op, uint32_t node, uint32_t i,
                    const struct packed_rows *x, const struct target *target, enum finish how,
                    uint32_t first, uint32_t last, uint32_t begin, uint32_t end)
{
    _Alignas(64) float buffer[CALL_VALUES], second[CALL_VALUES];
    const struct cpu_matrix *a = &op->slices[i][node];
    const uint32_t base = cpu_slice_first(w->worker->pool, op->part[i]->n_groups, node) * CPU_GROUP;
    uint32_t log2;

    product_tile(w->isa, end - begin, &log2);
    uint32_t groups = CALL_VALUES / CPU_GROUP >> log2;
    fetch_start(a, first, last);
    if (how == FINISH_GATED)
        fetch_start(&op->slices[1][node], first, last);
    for (uint32_t g = first; g < last; g += groups) {
        uint32_t stop = min_u32(g + groups, last);
        uint32_t at = base + g * CPU_GROUP, n = min_u32(stop * CPU_GROUP, a->rows) - g * CPU_GROUP;
        size_t stride = (size_t)(stop - g) * CPU_GROUP;
        for (uint32_t row = begin; row < end;) {
            uint32_t T = product_tile(w->isa, end - row, &log2);
            float *to = target->to + target->stride * row + at;
            uint32_t reach = row == begin ? last : 0; /* the first tile brings the weights */
            uint32_t p = op->packing[i];
            w->isa->matmul[a->format][log2](a, g, stop, reach, x->at[p] + x->row[p] * row, buffer,
                                            stride);
            if (how == FINISH_GATED) {
                const struct cpu_matrix *up = &op->slices[1][node];
                p = op->packing[1];
                w->isa->matmul[up->format][log2](up, g, stop, reach, x->at[p] + x->row[p] * row,
                                                 second, stride);
                w->isa->gated(buffer, second, (uint32_t)stride * T, op->op->as.ffn.activation);
            }
            finish(to, target->stride, buffer, stride, min_u32(T, end - row), n,
                   op->bias[i] ? op->bias[i] + at : NULL, target->scale, how == FINISH_ADD);
            row += T;
        }
    }
}

/* Groups first .. last - 1 of a node's slices of the parts laid end to end. */
static void span(const struct at_work *w, const struct cpu_op *op, uint32_t node, uint32_t n_parts,
                 const struct packed_rows *x, const struct target *targets, enum finish how,
                 uint32_t first, uint32_t last, uint32_t begin, uint32_t end)
{
    for (uint32_t i = 0, base = 0; i < n_parts && base < last; i++) {
        uint32_t n = op->slices[i][node].n_groups;
        if (first < base + n)
            product(w, op, node, i, x, &targets[i], how, first > base ? first - base : 0,
                    min_u32(last - base, n), begin, end);
        base += n;
    }
}

/* What a node has of all parts of an operation. Few rows: each of its workers has a share of its
 * own, five eighths in all, and takes from the rest in small pieces; long runs of weights stream
 * best. Many rows: pieces of groups by blocks of rows that stay in the second-level cache. */
static void products_of(const struct at_work *w, const struct cpu_op *op, uint32_t node,
                        const struct packed_rows *x, const struct target *targets, enum finish how)
{
    const struct cpu_pool *pool = w->worker->pool;
    uint32_t n_workers = pool->first_of_node[node + 1] - pool->first_of_node[node];
    uint32_t n_parts = how == FINISH_GATED ? 1 : op->n_parts, total = 0, block = x->n;
    for (uint32_t i = 0; i < n_parts; i++)
        total += op->slices[i][node].n_groups;
    if (!total)
        return;
    bool few = x->n <= STREAM_ROWS;
    uint32_t share = few ? total * 5 / 8 / n_workers : 0;
    uint32_t rest = total - share * n_workers;
    uint32_t piece = rest / (n_workers * (few ? 4 : 12)) + 1;
    uint32_t n_pieces = (rest + piece - 1) / piece;

    if (x->row[0] * block > BLOCK_BYTES) {
        block = (uint32_t)(BLOCK_BYTES / x->row[0]) / CPU_TILE * CPU_TILE;
        if (block < 4 * CPU_TILE)
            block = 4 * CPU_TILE;
    }
    uint32_t n_blocks = (x->n + block - 1) / block;

    if (share && node == w->worker->node)
        span(w, op, node, n_parts, x, targets, how, share * w->worker->at_node,
             share * (w->worker->at_node + 1), 0, x->n);
    for (;;) {
        uint32_t item = cpu_item_of(w->worker, node);
        if (item >= n_pieces * n_blocks)
            break;
        uint32_t begin = item / n_pieces * block;
        uint32_t first = share * n_workers + item % n_pieces * piece;
        span(w, op, node, n_parts, x, targets, how, first, min_u32(first + piece, total), begin,
             min_u32(begin + block, x->n));
    }
}

/* All parts of an operation: what the worker's own node has first; who is done there helps the
 * next, so that no node waits for one whose workers were held up. */
static void products(const struct at_work *w, const struct cpu_op *op, const struct packed_rows *x,
                     const struct target *targets, enum finish how)
{
    const uint32_t n_nodes = w->worker->pool->n_nodes;
    cpu_section(w->worker);
    for (uint32_t i = 0; i < n_nodes; i++)
        products_of(w, op, (w->worker->node + i) % n_nodes, x, targets, how);
    cpu_barrier(w->worker);
}

/* ---- embedding and rotation ------------------------------------------------------------------ */

static void read_table(const struct infer_backend_model *m, const struct cpu_tensor *table,
                       uint32_t token, float *ret)
{
    uint32_t row;
    const struct cpu_matrix *slice = cpu_slice_of(m, table, token, &row);
    cpu_matrix_read(slice, row, ret);
}

static void embed_row(const struct infer_backend_model *m, const struct infer_op *op,
                      uint32_t token, float *x)
{
    const struct cpu_tensor *table = &m->tensors[op->as.embed.table];
    const struct infer_tensor *file = &m->plan->tensors[op->as.embed.table];
    const uint32_t n_embd = m->plan->shape.n_embd;
    if (table->role == CPU_MATRIX)
        read_table(m, table, token, x);
    else
        ref_decode_row(file->type, table->rows + file->row_bytes * token, x, n_embd);
    if (op->as.embed.scale != 1.0f)
        for (uint32_t i = 0; i < n_embd; i++)
            x[i] *= op->as.embed.scale;
}

/* What a plan begins with: x of every row, and its angles. */
static void enter(const struct at_work *w)
{
    struct infer_backend_model *m = w->m;
    const struct infer_rope *rope = &m->plan->rope;
    const uint32_t half = rope->n_dims / 2, n_embd = m->plan->shape.n_embd;
    const bool takes = ref_plan_takes_x(m->plan);

    cpu_section(w->worker);
    for (;;) {
        uint32_t first = cpu_item(w->worker) * ROWS_PER_ITEM;
        if (first >= m->batch->n_rows)
            break;
        for (uint32_t r = first; r < min_u32(first + ROWS_PER_ITEM, m->batch->n_rows); r++) {
            const struct infer_batch_seq *seq = &m->batch->seqs[m->row_seq[r]];
            float position = (float)(seq->position + (r - seq->first_row));
            float *x = m->x + m->x_stride * r;
            for (uint32_t i = 0; i < half; i++) {
                float angle = position * rope->inv_freq[i];
                m->cosine[(size_t)half * r + i] = cosf(angle) * rope->magnitude;
                m->sine[(size_t)half * r + i] = sinf(angle) * rope->magnitude;
            }
            if (takes)
                memcpy(x, m->batch->x + (size_t)n_embd * r, n_embd * sizeof(float));
            else
                embed_row(m, m->plan->ops, (uint32_t)m->batch->tokens[r], x);
        }
    }
    cpu_barrier(w->worker);
}

static uint8_t *cached_head(const struct infer_backend_model *m, uint32_t layer, uint32_t kv_head)
{
    return (uint8_t *)m->pages.memory + m->layer_bytes * layer + m->head_bytes * kv_head;
}

/* RMSNorm of one head in place. Heads need not be padded, so it goes by way of a padded row. */
static void norm_head(const struct at_work *w, float *x, const float *norm)
{
    uint32_t n = w->m->plan->shape.head_dim;
    float *row = w->local->row;
    memcpy(row, x, n * sizeof(float));
    for (uint32_t i = n; i % CPU_GROUP; i++)
        row[i] = 0;
    w->isa->norm(row, row, norm, n, w->m->plan->shape.norm_eps);
    memcpy(x, row, n * sizeof(float));
}

/* One row of one kv head into its page. */
static void cache_row(const struct at_work *w, uint8_t *page, uint32_t slot, const float *k,
                      const float *v)
{
    struct infer_backend_model *m = w->m;
    const struct infer_shape *s = &m->plan->shape;
    const uint32_t k_type = m->state.k_type, v_type = m->state.v_type, dim = s->head_dim;
    uint8_t *values = page + m->key_bytes;

    if (k_type == INFER_TYPE_F16) {
        uint16_t *keys = (uint16_t *)(void *)page;
        w->isa->to_f16(w->local->halves, k, dim);
        for (uint32_t d = 0; d < dim; d++)
            keys[(size_t)CPU_PAGE_TOKENS * d + slot] = w->local->halves[d];
    } else {
        cpu_cache_key(page, k_type, dim, slot, k);
    }
    if (v_type == INFER_TYPE_F16) {
        w->isa->to_f16(w->local->halves, v, s->head_dim_v);
        memcpy(values + 2 * (size_t)m->dim_v * slot, w->local->halves,
               s->head_dim_v * sizeof(uint16_t));
    } else {
        cpu_cache_value(values, v_type, s->head_dim_v, slot, v);
    }
}

/* One row of one kv head: its queries turned, its key turned and cached, its value cached. A type
 * of cache whose heads are rotated (ref/cache.h) turns all of them once more. */
static void turn_and_cache(const struct at_work *w, const struct cpu_op *op, uint32_t r,
                           uint32_t kv_head)
{
    struct infer_backend_model *m = w->m;
    const struct infer_shape *s = &m->plan->shape;
    const struct infer_rope *rope = &m->plan->rope;
    const struct infer_batch_seq *seq = &m->batch->seqs[m->row_seq[r]];
    const uint32_t position = seq->position + (r - seq->first_row), dim = s->head_dim;
    const uint32_t per_kv = s->n_heads / s->n_kv_heads;
    const bool rotates = ref_cache_rotates(m->state.k_type);
    const float *cosine = m->cosine + (size_t)rope->n_dims / 2 * r;
    const float *sine = m->sine + (size_t)rope->n_dims / 2 * r;
    float *q = m->q + m->q_stride * r + (size_t)dim * per_kv * kv_head;
    float *k = m->k + m->k_stride * r + (size_t)dim * kv_head;
    float *v = m->v + m->v_stride * r + (size_t)s->head_dim_v * kv_head;

    for (uint32_t h = 0; h < per_kv; h++, q += dim) {
        if (op->q_norm)
            norm_head(w, q, op->q_norm);
        w->isa->rope(q, cosine, sine, rope->n_dims, rope->style);
        if (rotates)
            ref_cache_rotate(q, dim);
    }
    if (op->k_norm)
        norm_head(w, k, op->k_norm);
    w->isa->rope(k, cosine, sine, rope->n_dims, rope->style);
    if (rotates)
        ref_cache_rotate(k, dim);
    if (ref_cache_rotates(m->state.v_type))
        ref_cache_rotate(v, s->head_dim_v);
    cache_row(w,
              cached_head(m, op->op->layer, kv_head) +
                  m->page_bytes * seq->pages[position / CPU_PAGE_TOKENS],
              position % CPU_PAGE_TOKENS, k, v);
}

static void qkv(const struct at_work *w, const struct cpu_op *op)
{
    struct infer_backend_model *m = w->m;
    struct source source = {.rows = m->x,
                            .stride = m->x_stride,
                            .norm = op->norm,
                            .cols = m->plan->shape.n_embd,
                            .n = m->batch->n_rows};
    const struct target targets[3] = {
        {m->q, m->q_stride, 1.0f}, {m->k, m->k_stride, 1.0f}, {m->v, m->v_stride, 1.0f}};
    struct packed_rows x = pack(w, op, &source);
    products(w, op, &x, targets, FINISH_STORE);
    if (m->single)
        return; /* the attention's items do it */

    cpu_section(w->worker);
    for (;;) {
        uint32_t first = cpu_item(w->worker) * ROWS_PER_ITEM;
        if (first >= m->batch->n_rows)
            break;
        for (uint32_t r = first; r < min_u32(first + ROWS_PER_ITEM, m->batch->n_rows); r++)
            for (uint32_t h = 0; h < m->plan->shape.n_kv_heads; h++)
                turn_and_cache(w, op, r, h);
    }
    cpu_barrier(w->worker);
}

/* ---- attention ------------------------------------------------------------------------------- */

/* Pairs first .. last - 1 of a sequence and kv head; pair i is query i / per_kv, head i % per_kv.
 */
static void attend_pairs(const struct at_work *w, const struct infer_op *op,
                         const struct infer_batch_seq *seq, uint32_t kv_head, uint32_t first,
                         uint32_t last)
{
    struct infer_backend_model *m = w->m;
    const struct infer_shape *s = &m->plan->shape;
    const uint32_t per_kv = s->n_heads / s->n_kv_heads, dim = s->head_dim;
    const uint32_t window = op->as.attend.window;
    struct cpu_attend a = {.pages_base = cached_head(m, op->layer, kv_head),
                           .page_bytes = m->page_bytes,
                           .key_bytes = m->key_bytes,
                           .value_bytes = m->value_bytes,
                           .k_type = m->state.k_type,
                           .v_type = m->state.v_type,
                           .pages = seq->pages,
                           .head_dim = dim,
                           .dim_v = m->dim_v,
                           .streams = seq->n_rows * per_kv <= CPU_ATTEND_ITEM,
                           .q = w->local->q,
                           .scores = w->local->scores,
                           .out = w->local->out};
    while (first < last) {
        uint32_t log2, T = tile_of(w->isa, last - first, &log2);
        for (uint32_t t = 0; t < T; t++) {
            uint32_t row = (first + t) / per_kv, head = kv_head * per_kv + (first + t) % per_kv;
            const float *q = m->q + m->q_stride * (seq->first_row + row) + (size_t)dim * head;
            a.limit[t] = seq->position + row + 1;
            a.first[t] = window && a.limit[t] > window ? a.limit[t] - window : 0;
            if (a.k_type != INFER_TYPE_F16)
                cpu_query_pack((uint8_t *)w->local->q, T, t, q, dim, op->as.attend.scale);
            for (uint32_t d = 0; d < dim && a.k_type == INFER_TYPE_F16; d++)
                w->local->q[(size_t)T * d + t] = q[d] * op->as.attend.scale;
        }
        w->isa->attend[log2](&a);
        for (uint32_t t = 0; t < T; t++) {
            uint32_t row = (first + t) / per_kv, head = kv_head * per_kv + (first + t) % per_kv;
            float *o = m->o + m->o_stride * (seq->first_row + row) + (size_t)s->head_dim_v * head;
            memcpy(o, a.out + (size_t)m->dim_v * t, s->head_dim_v * sizeof(float));
            if (ref_cache_rotates(a.v_type))
                ref_cache_rotate(o, s->head_dim_v);
        }
        first += T;
    }
}

static void attend(const struct at_work *w, const struct cpu_op *op, const struct cpu_op *cache)
{
    struct infer_backend_model *m = w->m;
    const struct infer_shape *s = &m->plan->shape;
    const uint32_t per_kv = s->n_heads / s->n_kv_heads;

    cpu_section(w->worker);
    for (uint32_t i = 0;;) {
        uint32_t item = cpu_item(w->worker);
        if (item >= m->attend_base[m->batch->n_seqs])
            break;
        while (item >= m->attend_base[i + 1])
            i++; /* items come in ascending order */
        const struct infer_batch_seq *seq = &m->batch->seqs[i];
        uint32_t at = item - m->attend_base[i];
        uint32_t kv_head = at % s->n_kv_heads, first = at / s->n_kv_heads * CPU_ATTEND_ITEM;
        uint32_t n = seq->n_rows * per_kv;
        if (m->single)
            turn_and_cache(w, cache, seq->first_row, kv_head);
        attend_pairs(w, op->op, seq, kv_head, first, min_u32(first + CPU_ATTEND_ITEM, n));
    }
    cpu_barrier(w->worker);
}

/* ---- the rest -------------------------------------------------------------------------------- */

static void project(const struct at_work *w, const struct cpu_op *op)
{
    struct infer_backend_model *m = w->m;
    bool from_o = op->op->as.project.from == INFER_VALUE_O;
    struct source source = {.rows = from_o ? m->o : m->t,
                            .stride = from_o ? m->o_stride : m->t_stride,
                            .cols = op->part[0]->cols,
                            .n = m->batch->n_rows};
    const struct target target = {m->x, m->x_stride, 1.0f};
    struct packed_rows x = pack(w, op, &source);
    products(w, op, &x, &target, FINISH_ADD);
}

static void feed_forward(const struct at_work *w, const struct cpu_op *op)
{
    struct infer_backend_model *m = w->m;
    struct source source = {.rows = m->x,
                            .stride = m->x_stride,
                            .norm = op->norm,
                            .cols = m->plan->shape.n_embd,
                            .n = m->batch->n_rows};
    const struct target target = {m->t, m->t_stride, 1.0f};
    struct packed_rows x = pack(w, op, &source);
    products(w, op, &x, &target, FINISH_GATED);
}

static void sample_row(const struct at_work *w, uint32_t index, float *logits)
{
    struct infer_backend_model *m = w->m;
    uint32_t n_vocab = m->plan->shape.n_vocab;
    for (uint32_t i = m->out_first[index]; i < m->out_first[index + 1]; i++) {
        struct infer_batch_output *output = &m->batch->outputs[i];
        if (output->logits)
            memcpy(output->logits, logits, n_vocab * sizeof(float));
        ref_sample(&w->local->sample, logits, output);
    }
}

static void head(const struct at_work *w, const struct cpu_op *op)
{
    struct infer_backend_model *m = w->m;
    const struct target target = {m->logits, m->logits_stride, op->op->as.head.scale};

    for (uint32_t first = 0; first < m->n_out_rows; first += m->head_rows) {
        struct source source = {.rows = m->x,
                                .stride = m->x_stride,
                                .index = m->out_rows + first,
                                .norm = op->norm,
                                .cols = m->plan->shape.n_embd,
                                .n = min_u32(m->head_rows, m->n_out_rows - first)};
        struct packed_rows x = pack(w, op, &source);
        products(w, op, &x, &target, FINISH_STORE);
        cpu_section(w->worker);
        for (;;) {
            uint32_t i = cpu_item(w->worker);
            if (i >= source.n)
                break;
            sample_row(w, first + i, m->logits + m->logits_stride * i);
        }
        cpu_barrier(w->worker);
    }
}

static void run_worker(struct cpu_worker *worker, void *arg)
{
    struct infer_backend_model *m = arg;
    const struct at_work w = {.worker = worker,
                              .m = m,
                              .isa = &m->backend->isa,
                              .local = &m->locals[worker->index],
                              .n_workers = worker->pool->n_workers};
    const struct cpu_op *cache = NULL; /* the QKV whose keys a single row's attention caches */

    enter(&w);
    for (uint32_t i = 0; i < m->plan->n_ops; i++) {
        const struct cpu_op *op = &m->ops[i];
        switch (op->op->kind) {
        case INFER_OP_QKV:
            qkv(&w, op);
            cache = op;
            break;
        case INFER_OP_ATTEND:
            attend(&w, op, cache);
            break;
        case INFER_OP_PROJECT:
            project(&w, op);
            break;
        case INFER_OP_FFN_GATED:
            feed_forward(&w, op);
            break;
        case INFER_OP_HEAD:
            head(&w, op);
            break;
        default: /* EMBED: done; ALL_REDUCE: the plan is not cut by heads */
            break;
        }
    }
}

/* The rows' sequences, the attention's items, and the outputs' rows. */
static void begin(struct infer_backend_model *m, struct infer_batch *batch)
{
    const struct infer_shape *s = &m->plan->shape;
    const uint32_t per_kv = s->n_heads / s->n_kv_heads;

    m->batch = batch;
    m->single = true;
    m->attend_base[0] = 0;
    for (uint32_t i = 0; i < batch->n_seqs; i++) {
        const struct infer_batch_seq *seq = &batch->seqs[i];
        uint32_t pieces = (seq->n_rows * per_kv + CPU_ATTEND_ITEM - 1) / CPU_ATTEND_ITEM;
        for (uint32_t r = 0; r < seq->n_rows; r++)
            m->row_seq[seq->first_row + r] = i;
        if (seq->n_rows != 1 || pieces != 1)
            m->single = false;
        m->attend_base[i + 1] = m->attend_base[i] + pieces * s->n_kv_heads;
    }
    m->n_out_rows = 0;
    for (uint32_t i = 0; i < batch->n_outputs; i++) {
        if (i && batch->outputs[i].row == batch->outputs[i - 1].row)
            continue;
        m->out_rows[m->n_out_rows] = batch->outputs[i].row;
        m->out_first[m->n_out_rows++] = i;
    }
    m->out_first[m->n_out_rows] = batch->n_outputs;
}

int cpu_run(struct infer_backend_model *m, struct infer_batch *batch)
{
    if (batch->n_rows > m->state.max_rows || batch->n_seqs > m->state.max_seqs ||
        batch->n_outputs > m->state.max_outputs)
        return cpu_fail(m->backend, -EIO, "a batch of %u rows, %u sequences and %u outputs",
                        batch->n_rows, batch->n_seqs, batch->n_outputs);
    if (!ref_batch_fits(m->plan, batch))
        return cpu_fail(m->backend, -EINVAL, "a part of a model without x, or with outputs");
    begin(m, batch);
    cpu_pool_run(m->backend->pool, run_worker, m);
    const uint32_t n_embd = m->plan->shape.n_embd;
    for (uint32_t r = 0; r < batch->n_rows && ref_plan_gives_x(m->plan); r++)
        memcpy(batch->x + (size_t)n_embd * r, m->x + m->x_stride * r, n_embd * sizeof(float));
    return 0;
}
