/* cuda_rig.h: a cache on the device and sequences with random queries, keys and values, run step by
 * step through the kernels that put them into pages and attend to them, or moved there. Attention
 * as it should be, plainly, in double precision. Header only; cmocka. */
#ifndef INFERD_TESTS_KERNEL_CUDA_RIG_H
#define INFERD_TESTS_KERNEL_CUDA_RIG_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "cuda/cuda.h"
#include "kernel/cuda_packed.h"
#include "ref/cache.h"
#include "ref/ops.h"
#include "ref/quant.h"
#include "ref/rope.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define LAYERS     2u
#define LAYER      1u /* the one that is used; the other must stay as it is */
#define PAGE       CUDA_PAGE_TOKENS
#define SEQS_MAX   3u
#define ROWS_MAX   256u /* of a step */
#define SEQ_PAGES  20u
#define PAGES      (SEQS_MAX * SEQ_PAGES + 1u)
#define PARTIALS   1024u
#define DIM_MAX    256u
#define PIECES_MAX 1024u

struct shape {
    const char *name;
    uint32_t n_heads, n_kv_heads, dim_k, dim_v;
    uint32_t rope_style, rope_dims;
    bool norms;
    uint32_t window;
};

/* Tiles of 16 pairs and fewer, several tiles per row, heads of the fast kernels and others, heads
 * that are no multiple of 16, rotation of all and of some dimensions. */
static const struct shape shapes[] = {
    {"4/2 heads of 64", 4, 2, 64, 64, INFER_ROPE_PAIRS, 64, false, 0},
    {"8/2 heads of 128", 8, 2, 128, 128, INFER_ROPE_HALVES, 128, true, 0},
    {"6/2 heads of 64, window", 6, 2, 64, 64, INFER_ROPE_HALVES, 40, false, 37},
    {"7/1 heads of 128, window", 7, 1, 128, 128, INFER_ROPE_PAIRS, 18, false, 100},
    {"3/1 heads of 96", 3, 1, 96, 96, INFER_ROPE_HALVES, 96, false, 0},
    {"6/2 heads of 40 and 27", 6, 2, 40, 27, INFER_ROPE_PAIRS, 38, true, 0},
    {"18/1 heads of 32", 18, 1, 32, 32, INFER_ROPE_HALVES, 32, false, 70},
    {"3/3 heads of 80", 3, 3, 80, 80, INFER_ROPE_HALVES, 80, false, 0},
    {"4/2 heads of 128 and 64", 4, 2, 128, 64, INFER_ROPE_PAIRS, 128, false, 0},
    {"2/1 heads of 256", 2, 1, 256, 256, INFER_ROPE_HALVES, 256, false, 0},
    {"16/1 heads of 64", 16, 1, 64, 64, INFER_ROPE_PAIRS, 64, false, 0},
    {"20/1 heads of 64, window", 20, 1, 64, 64, INFER_ROPE_HALVES, 64, true, 90},
};
#define N_SHAPES (sizeof shapes / sizeof shapes[0])

static const struct {
    uint32_t k, v;
} types[] = {
    {INFER_TYPE_F16, INFER_TYPE_F16},   {INFER_TYPE_Q8_0, INFER_TYPE_Q8_0},
    {INFER_TYPE_Q4_0, INFER_TYPE_Q4_0}, {INFER_TYPE_Q8_0, INFER_TYPE_Q4_0},
    {INFER_TYPE_Q4_0, INFER_TYPE_F16},
};
#define N_TYPES (sizeof types / sizeof types[0])

/* Whether such caches have heads of that shape. */
static inline bool fits(const struct shape *shape, size_t type)
{
    return ref_cache_fits(types[type].k, shape->dim_k) &&
           ref_cache_fits(types[type].v, shape->dim_v);
}

/* ---- numbers --------------------------------------------------------------------------------- */

static uint64_t random_state;

static inline uint32_t draw(void)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 33);
}

/* About normal: the sum of four. */
static inline float draw_normal(void)
{
    double sum = 0;
    for (int i = 0; i < 4; i++)
        sum += draw() * 0x1p-31 - 0.5;
    return (float)(sum * 1.7320508);
}

static inline uint32_t draw_between(uint32_t low, uint32_t high)
{
    return low + draw() % (high - low + 1);
}

static inline void must(cudaError_t error)
{
    if (error != cudaSuccess)
        fail_msg("%s", cudaGetErrorString(error));
}

static inline void *device_take(size_t bytes)
{
    void *p = NULL;
    must(cudaMalloc(&p, bytes));
    must(cudaMemset(p, 0xff, bytes));
    return p;
}

static inline void to_device(void *to, const void *from, size_t bytes)
{
    if (bytes)
        must(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice));
}

/* ---- the rig --------------------------------------------------------------------------------- */

/* Of each sequence, rows of q, k, v as they come out of the products; keys and values as they are
 * in the pages; its attention as it should be; and as it came out, halves. */
struct sequence {
    uint32_t n;
    float *q, *k, *v; /* [n][heads][dim] */
    float *key, *value;
    double *want;
    uint16_t *got;
};

/* How steps are run otherwise than cuda_cut() says. */
struct ways {
    bool apart;      /* rows are turned by a kernel of their own */
    bool streams;    /* and a piece is a warp's, where that can be */
    uint32_t chunks; /* of every piece of one tile; 0: as the cut says */
};

struct rig {
    const struct shape *shape;
    struct infer_shape model;
    struct infer_rope rope;
    struct cuda_limits device;
    struct cuda_cache cache;
    float inv_freq[DIM_MAX / 2], q_norm[DIM_MAX], k_norm[DIM_MAX];
    struct sequence seqs[SEQS_MAX];
    /* device memory */
    float *d_inv_freq, *d_q_norm, *d_k_norm, *d_q, *d_k, *d_v, *d_partials;
    uint16_t *d_queries;
    uint32_t *d_row_seq, *d_row_position, *d_pages;
    struct cuda_seq *d_seqs;
    struct cuda_piece *d_pieces;
    struct cuda_merge *d_merges;
    struct cuda_packed packed;
    size_t values_bytes;
    uint32_t n_merges, n_wide; /* that there have been: rows in several pieces, wide pieces */
    uint32_t n_turned;         /* steps whose attention turned its rows itself */
    uint32_t n_streamed;       /* whose pieces were a warp's each */
    struct ways ways;
};

static inline uint32_t q_size(const struct rig *r)
{
    return r->shape->n_heads * r->shape->dim_k;
}
static inline uint32_t k_size(const struct rig *r)
{
    return r->shape->n_kv_heads * r->shape->dim_k;
}
static inline uint32_t v_size(const struct rig *r)
{
    return r->shape->n_kv_heads * r->shape->dim_v;
}
static inline uint32_t o_size(const struct rig *r)
{
    return r->shape->n_heads * r->shape->dim_v;
}

static inline uint32_t page_of(uint32_t seq, uint32_t index)
{
    /* Not in order, and page 0 is no one's. */
    return 1 + (index * 7 % SEQ_PAGES) * SEQS_MAX + seq;
}

static inline void clear_pages(const struct rig *r)
{
    must(cudaMemset(r->cache.pages, 0, r->cache.page_bytes * PAGES));
}

static inline void take_device(struct rig *r)
{
    const uint32_t columns = o_size(r);
    r->d_inv_freq = device_take(sizeof r->inv_freq);
    r->d_q_norm = device_take(sizeof r->q_norm);
    r->d_k_norm = device_take(sizeof r->k_norm);
    to_device(r->d_inv_freq, r->inv_freq, sizeof r->inv_freq);
    to_device(r->d_q_norm, r->q_norm, sizeof r->q_norm);
    to_device(r->d_k_norm, r->k_norm, sizeof r->k_norm);
    r->d_q = device_take(sizeof(float) * ROWS_MAX * q_size(r));
    r->d_k = device_take(sizeof(float) * ROWS_MAX * k_size(r));
    r->d_v = device_take(sizeof(float) * ROWS_MAX * v_size(r));
    r->d_queries = device_take(sizeof(uint16_t) * ROWS_MAX * r->shape->n_heads * r->cache.dim_k);
    r->d_partials = device_take(cuda_partial_bytes(&r->cache, PARTIALS));
    r->d_row_seq = device_take(sizeof(uint32_t) * ROWS_MAX);
    r->d_row_position = device_take(sizeof(uint32_t) * ROWS_MAX);
    r->d_pages = device_take(sizeof(uint32_t) * PAGES);
    r->d_seqs = device_take(sizeof(struct cuda_seq) * SEQS_MAX);
    r->d_pieces = device_take(sizeof(struct cuda_piece) * PIECES_MAX);
    r->d_merges = device_take(sizeof(struct cuda_merge) * PIECES_MAX);
    r->values_bytes = cuda_packed_bytes(ROWS_MAX, columns);
    r->packed = (struct cuda_packed){
        .values = device_take(r->values_bytes), .cols = columns, .blocks = (columns + 63) / 64 * 2};
    r->cache.pages = device_take(r->cache.page_bytes * PAGES);
    clear_pages(r);
}

static inline void give_device(struct rig *r)
{
    void *all[] = {r->d_inv_freq, r->d_q_norm,  r->d_k_norm,   r->d_q,       r->d_k,
                   r->d_v,        r->d_queries, r->d_partials, r->d_row_seq, r->d_row_position,
                   r->d_pages,    r->d_seqs,    r->d_pieces,   r->d_merges,  r->packed.values,
                   r->cache.pages};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        must(cudaFree(all[i]));
}

static inline struct infer_state_config state_of(uint32_t k_type, uint32_t v_type)
{
    return (struct infer_state_config){.page_tokens = PAGE,
                                       .n_pages = PAGES,
                                       .k_type = k_type,
                                       .v_type = v_type,
                                       .max_rows = ROWS_MAX,
                                       .max_seqs = SEQS_MAX};
}

static inline struct infer_shape model_of(const struct shape *s)
{
    return (struct infer_shape){.n_layers = LAYERS,
                                .n_heads = s->n_heads,
                                .n_kv_heads = s->n_kv_heads,
                                .head_dim = s->dim_k,
                                .head_dim_v = s->dim_v,
                                .norm_eps = 1e-5f};
}

/* ---- what should come out -------------------------------------------------------------------- */

/* Head norm and rotation, as the reference has them. */
static inline void finish_head(const struct rig *r, float *head, const float *norm,
                               uint32_t position)
{
    float cosine[DIM_MAX / 2], sine[DIM_MAX / 2];
    if (r->shape->norms)
        ref_rms_norm(head, norm, head, r->shape->dim_k, r->model.norm_eps);
    for (uint32_t p = 0; p < r->rope.n_dims / 2; p++) {
        float angle = (float)position * r->inv_freq[p];
        cosine[p] = cosf(angle) * r->rope.magnitude;
        sine[p] = sinf(angle) * r->rope.magnitude;
    }
    ref_rope_turn(&r->rope, cosine, sine, head);
}

/* A head as the cache gives it back, its rotation undone. */
static inline void through_cache(uint32_t type, enum ref_cached what, const float *from, float *to,
                                 uint32_t dim)
{
    uint8_t bytes[4 * DIM_MAX];
    memcpy(to, from, dim * sizeof(float));
    if (ref_cache_rotates(type))
        ref_cache_rotate(to, dim);
    ref_cache_encode(type, what, to, bytes, dim);
    ref_cache_decode(type, what, bytes, to, dim);
    if (ref_cache_rotates(type))
        ref_cache_rotate(to, dim);
}

static inline void attend_head(const struct rig *r, const struct sequence *s, uint32_t row,
                               uint32_t head, const float *q, double *o)
{
    const struct shape *sh = r->shape;
    const uint32_t kv = head / (sh->n_heads / sh->n_kv_heads);
    const uint32_t first = sh->window && row >= sh->window ? row - sh->window + 1 : 0;
    double most = -INFINITY, sum = 0, *score = malloc(sizeof(double) * (row + 1));
    for (uint32_t j = first; j <= row; j++) {
        const float *k = s->key + ((size_t)j * sh->n_kv_heads + kv) * sh->dim_k;
        score[j] = 0;
        for (uint32_t d = 0; d < sh->dim_k; d++)
            score[j] += (double)q[d] * (double)k[d] / sqrt((double)sh->dim_k);
        most = fmax(most, score[j]);
    }
    memset(o, 0, sh->dim_v * sizeof(double));
    for (uint32_t j = first; j <= row; j++) {
        const float *v = s->value + ((size_t)j * sh->n_kv_heads + kv) * sh->dim_v;
        double p = exp(score[j] - most);
        sum += p;
        for (uint32_t d = 0; d < sh->dim_v; d++)
            o[d] += p * (double)v[d];
    }
    for (uint32_t d = 0; d < sh->dim_v; d++)
        o[d] /= sum;
    free(score);
}

/* What pages should hold of the sequence's keys and values. */
static inline void encode_rows(const struct rig *r, const struct sequence *s, float *keys,
                               float *values)
{
    const struct shape *sh = r->shape;
    for (uint32_t i = 0; i < s->n * sh->n_kv_heads; i++) {
        float head[DIM_MAX];
        memcpy(head, s->k + (size_t)i * sh->dim_k, sh->dim_k * sizeof(float));
        finish_head(r, head, r->k_norm, i / sh->n_kv_heads);
        through_cache(r->cache.k_type, REF_KEY, head, keys + (size_t)i * sh->dim_k, sh->dim_k);
        through_cache(r->cache.v_type, REF_VALUE, s->v + (size_t)i * sh->dim_v,
                      values + (size_t)i * sh->dim_v, sh->dim_v);
    }
}

/* Attention over what the pages do hold. */
static inline void attend_rows(const struct rig *r, struct sequence *s)
{
    const struct shape *sh = r->shape;
    for (uint32_t i = 0; i < s->n * sh->n_heads; i++) {
        float q[DIM_MAX];
        memcpy(q, s->q + (size_t)i * sh->dim_k, sh->dim_k * sizeof(float));
        finish_head(r, q, r->q_norm, i / sh->n_heads);
        attend_head(r, s, i / sh->n_heads, i % sh->n_heads, q, s->want + (size_t)i * sh->dim_v);
    }
}

static inline float *random_floats(size_t n, float size)
{
    float *x = malloc(n * sizeof *x);
    assert_non_null(x);
    for (size_t i = 0; i < n; i++)
        x[i] = draw_normal() * size;
    return x;
}

static inline void make_sequence(struct rig *r, struct sequence *s, uint32_t n)
{
    s->n = n;
    s->q = random_floats((size_t)n * q_size(r), 1.5f);
    s->k = random_floats((size_t)n * k_size(r), 1.5f);
    s->v = random_floats((size_t)n * v_size(r), 1);
    s->key = malloc((size_t)n * k_size(r) * sizeof(float));
    s->value = malloc((size_t)n * v_size(r) * sizeof(float));
    s->want = malloc((size_t)n * o_size(r) * sizeof(double));
    s->got = calloc((size_t)n * o_size(r), sizeof(uint16_t));
}

static inline void make_rig(struct rig *r, const struct shape *shape, uint32_t k_type,
                            uint32_t v_type, const uint32_t lengths[SEQS_MAX])
{
    const struct infer_state_config state = state_of(k_type, v_type);
    memset(r, 0, sizeof *r);
    random_state = 5;
    r->shape = shape;
    r->model = model_of(shape);
    assert_int_equal(cuda_cache_init(&r->cache, &r->model, &state), 0);
    must(cuda_limits_of(&r->device));
    r->cache.narrow = cuda_wide_bytes(&r->cache) > r->device.shared_bytes;
    for (uint32_t p = 0; p < shape->rope_dims / 2; p++)
        r->inv_freq[p] = powf(10000.0f, -2.0f * (float)p / (float)shape->rope_dims);
    for (uint32_t d = 0; d < shape->dim_k; d++) {
        r->q_norm[d] = 1 + 0.3f * draw_normal();
        r->k_norm[d] = 1 + 0.3f * draw_normal();
    }
    r->rope = (struct infer_rope){.style = shape->rope_style,
                                  .n_dims = shape->rope_dims,
                                  .inv_freq = r->inv_freq,
                                  .magnitude = 1.125f};
    take_device(r);
    for (uint32_t s = 0; s < SEQS_MAX; s++)
        if (lengths[s])
            make_sequence(r, &r->seqs[s], lengths[s]);
}

static inline void free_rig(struct rig *r)
{
    give_device(r);
    for (uint32_t i = 0; i < SEQS_MAX; i++) {
        struct sequence *s = &r->seqs[i];
        free(s->q), free(s->k), free(s->v), free(s->key), free(s->value), free(s->want);
        free(s->got);
    }
}

/* ---- steps ----------------------------------------------------------------------------------- */

/* Rows [position, position + n) of a sequence, in a step. */
struct part {
    uint32_t seq, position, n;
};

struct step_host {
    uint32_t n_rows, n_seqs;
    struct cuda_cut cut;
    uint32_t row_seq[ROWS_MAX], row_position[ROWS_MAX], pages[PAGES];
    struct cuda_seq seqs[SEQS_MAX];
    struct cuda_piece pieces[PIECES_MAX];
    struct cuda_merge merges[PIECES_MAX];
};

/* The rows' numbers, padded to 8 rows with rows of no sequence. */
static inline void write_rows(struct rig *r, struct step_host *h, const struct part *parts,
                              uint32_t n)
{
    uint32_t word = 0, row = 0;
    h->n_seqs = n;
    for (uint32_t i = 0; i < n; i++) {
        const struct sequence *s = &r->seqs[parts[i].seq];
        uint32_t n_pages = (parts[i].position + parts[i].n + PAGE - 1) / PAGE;
        h->seqs[i] = (struct cuda_seq){row, parts[i].n, parts[i].position, word};
        for (uint32_t p = 0; p < n_pages; p++)
            h->pages[word++] = page_of(parts[i].seq, p);
        size_t from = parts[i].position;
        to_device(r->d_q + (size_t)row * q_size(r), s->q + from * q_size(r),
                  sizeof(float) * parts[i].n * q_size(r));
        to_device(r->d_k + (size_t)row * k_size(r), s->k + from * k_size(r),
                  sizeof(float) * parts[i].n * k_size(r));
        to_device(r->d_v + (size_t)row * v_size(r), s->v + from * v_size(r),
                  sizeof(float) * parts[i].n * v_size(r));
        for (uint32_t j = 0; j < parts[i].n; j++, row++) {
            h->row_seq[row] = i;
            h->row_position[row] = parts[i].position + j;
        }
    }
    for (; row % CUDA_ROWS_PAD != 0; row++) {
        h->row_seq[row] = UINT32_MAX;
        h->row_position[row] = 0;
    }
    assert_true(row <= ROWS_MAX);
    h->n_rows = row;
}

/* The packed rows back into the sequences; their padding. */
static inline void read_rows(struct rig *r, const struct step_host *h)
{
    const struct cuda_packed *p = &r->packed;
    uint16_t *values = malloc(r->values_bytes);
    must(cudaMemcpy(values, p->values, r->values_bytes, cudaMemcpyDeviceToHost));
    for (uint32_t row = 0; row < h->n_rows; row++) {
        if (h->row_seq[row] == UINT32_MAX)
            continue;
        uint32_t seq = (h->pages[h->seqs[h->row_seq[row]].first_page] - 1) % SEQS_MAX;
        uint16_t *to = r->seqs[seq].got + (size_t)h->row_position[row] * o_size(r);
        for (uint32_t column = 0; column < p->blocks * 32; column++) {
            uint16_t v = values[packed_at(p, row, column)];
            if (column < o_size(r))
                to[column] = v;
            else
                assert_int_equal(v, 0);
        }
    }
    free(values);
}

static inline void poison(struct rig *r)
{
    must(cudaMemset(r->packed.values, 0xff, r->values_bytes));
    must(cudaMemset(r->d_partials, 0xff, cuda_partial_bytes(&r->cache, PARTIALS)));
    must(cudaMemset(r->d_queries, 0xff,
                    sizeof(uint16_t) * ROWS_MAX * r->shape->n_heads * r->cache.dim_k));
}

/* Pieces and merges are padded with some that are none. */
static inline void run_kernels(struct rig *r, struct step_host *h)
{
    for (uint32_t i = 0; i < 2; i++) {
        h->pieces[h->cut.n_pieces++] = (struct cuda_piece){0};
        if (h->cut.n_merges)
            h->merges[h->cut.n_merges++] = (struct cuda_merge){0};
    }
    poison(r);
    to_device(r->d_row_seq, h->row_seq, sizeof(uint32_t) * h->n_rows);
    to_device(r->d_row_position, h->row_position, sizeof(uint32_t) * h->n_rows);
    to_device(r->d_pages, h->pages, sizeof h->pages);
    to_device(r->d_seqs, h->seqs, sizeof h->seqs);
    to_device(r->d_pieces, h->pieces, sizeof(struct cuda_piece) * h->cut.n_pieces);
    to_device(r->d_merges, h->merges, sizeof(struct cuda_merge) * h->cut.n_merges);
    r->packed.tiles = cuda_packed_tiles(h->n_rows, r->device.shared_bytes);
    const struct cuda_step step = {.row_seq = r->d_row_seq,
                                   .row_position = r->d_row_position,
                                   .seqs = r->d_seqs,
                                   .pages = r->d_pages,
                                   .pieces = r->d_pieces,
                                   .n_rows = h->n_rows,
                                   .n_pieces = h->cut.n_pieces};
    const struct cuda_turn turn = {.q = r->d_q,
                                   .k = r->d_k,
                                   .v = r->d_v,
                                   .q_stride = q_size(r),
                                   .k_stride = k_size(r),
                                   .v_stride = v_size(r),
                                   .q_norm = r->shape->norms ? r->d_q_norm : NULL,
                                   .k_norm = r->shape->norms ? r->d_k_norm : NULL,
                                   .eps = r->model.norm_eps,
                                   .rope_style = r->rope.style,
                                   .rope_dims = r->rope.n_dims,
                                   .inv_freq = r->d_inv_freq,
                                   .magnitude = r->rope.magnitude,
                                   .scale = 1.0f / sqrtf((float)r->shape->dim_k),
                                   .queries = r->d_queries,
                                   .layer = LAYER};
    struct cuda_attend attend = {.queries = r->d_queries,
                                 .streams = h->cut.streams,
                                 .layer = LAYER,
                                 .window = r->shape->window,
                                 .partials = r->d_partials,
                                 .merges = r->d_merges,
                                 .n_merges = h->cut.n_merges,
                                 .to = r->packed};
    if (h->cut.turns)
        attend.turn = turn;
    else
        must(cuda_turn_and_cache(&r->cache, &turn, &step, NULL));
    must(cuda_attend(&r->cache, &attend, &step, NULL));
    must(cudaStreamSynchronize(NULL));
    read_rows(r, h);
}

/* A narrow piece that has all chunks, cut into pieces of n chunks. */
static inline void shred(struct step_host *h, struct cuda_piece tile, uint32_t n,
                         uint32_t *partials)
{
    struct cuda_merge merge = {.first_row = tile.first_row,
                               .n_rows = tile.n_rows,
                               .first_chunk = tile.first_chunk,
                               .n_chunks = tile.n_chunks,
                               .partial = *partials};
    for (uint32_t at = 0; at < merge.n_chunks; at += n) {
        struct cuda_piece *piece = &h->pieces[h->cut.n_pieces++];
        *piece = tile;
        piece->first_chunk += at;
        piece->n_chunks = n < merge.n_chunks - at ? n : merge.n_chunks - at;
        piece->partial = *partials;
        *partials += piece->n_chunks * tile.n_rows;
    }
    h->merges[h->cut.n_merges++] = merge;
    assert_true(*partials <= PARTIALS && h->cut.n_pieces < PIECES_MAX);
}

/* What the rig's ways ask for. */
static inline void go_ways(const struct rig *r, struct step_host *h)
{
    const struct ways *w = &r->ways;
    const uint32_t n = h->cut.n_pieces;
    static struct cuda_piece whole[PIECES_MAX];
    uint32_t partials = 0;
    if (w->apart)
        h->cut.turns = false;
    if (w->streams)
        h->cut.streams = cuda_heads_known(&r->cache);
    if (!w->chunks || h->cut.n_merges)
        return;
    memcpy(whole, h->pieces, n * sizeof whole[0]);
    h->cut.n_pieces = 0;
    for (uint32_t i = 0; i < n; i++) {
        if (whole[i].n_rows > cuda_piece_rows(&r->cache))
            h->pieces[h->cut.n_pieces++] = whole[i];
        else
            shred(h, whole[i], w->chunks, &partials);
    }
}

/* One step, cut for a device of so many processors. */
static inline void run_step(struct rig *r, const struct part *parts, uint32_t n,
                            uint32_t n_processors)
{
    static struct step_host h;
    uint32_t pieces, merges, partials;
    memset(&h, 0, sizeof h);
    write_rows(r, &h, parts, n);
    /* Pieces that are not cut by the window have chunks that it leaves nothing of. */
    cuda_cut(&r->cache, h.seqs, n, r->ways.chunks ? 0 : r->shape->window, n_processors, h.pieces,
             h.merges, &h.cut);
    cuda_cut_most(&r->cache, ROWS_MAX, SEQS_MAX, n_processors, &pieces, &merges, &partials);
    assert_true(h.cut.n_pieces <= pieces && h.cut.n_merges <= merges && partials <= PARTIALS);
    go_ways(r, &h);
    r->n_merges += h.cut.n_merges;
    r->n_turned += h.cut.turns;
    r->n_streamed += h.cut.streams;
    for (uint32_t i = 0; i < h.cut.n_pieces; i++)
        r->n_wide += h.pieces[i].n_rows > cuda_piece_rows(&r->cache);
    run_kernels(r, &h);
}

/* A whole sequence from position 0 on, in steps of `rows`. */
static inline void run_alone(struct rig *r, uint32_t seq, uint32_t rows, uint32_t n_processors)
{
    const uint32_t n = r->seqs[seq].n;
    for (uint32_t at = 0; at < n; at += rows) {
        struct part part = {seq, at, n - at < rows ? n - at : rows};
        run_step(r, &part, 1, n_processors);
    }
}

/* All sequences, side by side, in steps of random sizes. */
static inline void run_mixed(struct rig *r, uint32_t n_processors, uint32_t rows_max)
{
    uint32_t at[SEQS_MAX] = {0};
    for (;;) {
        struct part parts[SEQS_MAX];
        uint32_t n = 0;
        for (uint32_t i = 0; i < SEQS_MAX; i++) {
            uint32_t s = SEQS_MAX - 1 - i, left = r->seqs[s].n - at[s];
            if (!left)
                continue;
            uint32_t rows = draw() % 4 == 0 ? 1 : draw_between(1, rows_max);
            rows = rows < left ? rows : left;
            parts[n++] = (struct part){s, at[s], rows};
            at[s] += rows;
        }
        if (!n)
            return;
        run_step(r, parts, n, n_processors);
    }
}

/* ---- what is in the pages -------------------------------------------------------------------- */

/* Number d of the key, or value, in slot t of a page's head: cache.cuh's picture, read plainly. */
static inline double cached_key(const struct cuda_cache *c, const uint8_t *keys, uint32_t t,
                                uint32_t d)
{
    uint32_t j = d / 32, lane = t % 8 * 4 + d % 32 / 8, half = t / 8, i = d % 8;
    uint16_t scale = 0;
    if (c->k_type == INFER_TYPE_F16) {
        memcpy(&scale, keys + (((j * 2 + half) * 32 + lane) * 8 + i) * 2, 2);
        return (double)ref_f16_to_f32(scale);
    }
    size_t before = 16u * c->dim_k / (c->k_type == INFER_TYPE_Q8_0 ? 1 : 2);
    memcpy(&scale, keys + before + ((j * 8 + t % 8) * 2 + half) * 2, 2);
    if (c->k_type == INFER_TYPE_Q8_0)
        return (double)ref_f16_to_f32(scale) * (keys[((j * 32 + lane) * 2 + half) * 8 + i] - 128);
    uint32_t codes;
    memcpy(&codes, keys + ((j * 32 + lane) * 2 + half) * 4, 4);
    uint32_t code = codes >> (4 * (i / 2) + 16 * (i % 2)) & 15;
    return (double)ref_f16_to_f32(scale) * (code - 7.5 - (scale & 7) * 0.5);
}

static inline double cached_value(const struct cuda_cache *c, const uint8_t *values, uint32_t t,
                                  uint32_t d)
{
    uint32_t i = d / 16, half = d % 16 / 8, lane = d % 8 * 4 + t % 8 / 2;
    uint32_t key = t / 8 * 2 + t % 2; /* of 2 q, 2 q + 1, 2 q + 8, 2 q + 9 */
    uint16_t scale = 0;
    if (c->v_type == INFER_TYPE_F16) {
        memcpy(&scale, values + (((i * 32 + lane) * 2 + half) * 4 + key) * 2, 2);
        return (double)ref_f16_to_f32(scale);
    }
    size_t before = 16u * c->dim_v / (c->v_type == INFER_TYPE_Q8_0 ? 1 : 2);
    size_t high = c->v_type == INFER_TYPE_Q8_0 ? 0 : (c->dim_v + 63) / 64 * 128u;
    memcpy(&scale, values + before + high + ((d / 32 * 4 + t % 8 / 2) * 4 + key) * 2, 2);
    if (c->v_type == INFER_TYPE_Q8_0)
        return (double)ref_f16_to_f32(scale) *
               (values[((i * 32 + lane) * 2 + half) * 4 + key] - 128);
    uint32_t byte = key % 2 * 2 + key / 2;
    uint32_t code = values[(i * 32 + lane) * 4 + byte] >> 4 * half & 15;
    uint32_t fifth = values[before + (d / 64 * 32 + lane) * 4 + byte] >> d % 64 / 8 & 1;
    return (double)ref_f16_to_f32(scale) * ((code | fifth << 4) - 15.5 - (scale & 7));
}

/* A head of a page, its rotation undone. */
static inline void read_cached(const struct rig *r, const uint8_t *page, uint32_t layer,
                               uint32_t kv, uint32_t t, enum ref_cached what, float *ret)
{
    const struct cuda_cache *c = &r->cache;
    const uint8_t *head = page + layer * c->layer_bytes + kv * c->head_bytes;
    const uint32_t dim = what == REF_KEY ? c->head_dim : c->head_dim_v;
    for (uint32_t d = 0; d < dim; d++)
        ret[d] = (float)(what == REF_KEY ? cached_key(c, head, t, d)
                                         : cached_value(c, head + c->key_bytes, t, d));
    if (ref_cache_rotates(what == REF_KEY ? c->k_type : c->v_type))
        ref_cache_rotate(ret, dim);
}

static inline uint8_t *page_bytes(const struct rig *r, uint32_t page)
{
    uint8_t *bytes = malloc(r->cache.page_bytes);
    assert_non_null(bytes);
    must(cudaMemcpy(bytes, r->cache.pages + page * r->cache.page_bytes, r->cache.page_bytes,
                    cudaMemcpyDeviceToHost));
    return bytes;
}

/* All keys and values of a sequence. */
static inline void read_pages(const struct rig *r, struct sequence *s, uint32_t seq)
{
    const struct shape *sh = r->shape;
    for (uint32_t p = 0; p < (s->n + PAGE - 1) / PAGE; p++) {
        uint8_t *page = page_bytes(r, page_of(seq, p));
        for (uint32_t row = p * PAGE; row < s->n && row < (p + 1) * PAGE; row++) {
            for (uint32_t kv = 0; kv < sh->n_kv_heads; kv++) {
                size_t at = (size_t)row * sh->n_kv_heads + kv;
                read_cached(r, page, LAYER, kv, row % PAGE, REF_KEY, s->key + at * sh->dim_k);
                read_cached(r, page, LAYER, kv, row % PAGE, REF_VALUE, s->value + at * sh->dim_v);
            }
        }
        for (size_t i = 0; i < r->cache.layer_bytes; i++)
            assert_int_equal(page[(1 - LAYER) * r->cache.layer_bytes + i], 0);
        free(page);
    }
}

#endif
