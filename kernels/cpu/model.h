/* model.h: a model as the CPU backend holds it, between model.c, which lays it out, and step.c,
 * which runs it. */
#ifndef INFERD_KERNELS_CPU_MODEL_H
#define INFERD_KERNELS_CPU_MODEL_H

#include "cpu/cpu.h"
#include "cpu/pool.h"
#include "ref/sample.h"

/* Rows up to which every worker packs x for itself instead of sharing the work over a barrier. */
#define CPU_SELF_ROWS 4u
/* Output rows whose logits are held at a time. */
#define CPU_HEAD_ROWS 32u
/* (query, head) pairs of one attention item. */
#define CPU_ATTEND_ITEM 64u

struct infer_backend {
    const struct infer_host *host;
    struct cpu_isa isa;
    struct cpu_pool *pool;
};

enum cpu_role { CPU_UNUSED, CPU_VECTOR, CPU_TABLE, CPU_MATRIX };

struct cpu_tensor {
    uint32_t role;
    struct cpu_matrix matrix;  /* CPU_MATRIX; without data: that is in */
    struct cpu_matrix *slices; /* one for each node: consecutive groups of it */
    uint8_t *rows;             /* CPU_TABLE: as in the file */
    float *vector;             /* CPU_VECTOR: n_rows rows, padded with zeros to 16 numbers */
};

/* An operation with its tensors found. part[i] multiplies what packings[packing[i]] made; its
 * groups lie in slices[i], of which each node has one. */
struct cpu_op {
    const struct infer_op *op;
    uint32_t n_parts, n_packings;
    const struct cpu_matrix *part[CPU_PARTS];
    const struct cpu_matrix *slices[CPU_PARTS];
    const float *bias[CPU_PARTS];
    uint32_t packing[CPU_PARTS];
    struct cpu_packing packings[CPU_PARTS];
    const float *norm;
    const float *q_norm, *k_norm;
};

/* One worker's own memory. */
struct cpu_local {
    float *h;                   /* a row of x, normed */
    uint8_t *packed[CPU_PARTS]; /* CPU_SELF_ROWS rows */
    float *q, *scores, *out;    /* attention */
    uint16_t *halves;
    float *row;     /* one padded row, for tails */
    float *convert; /* one row of any tensor, for tensor_write */
    struct ref_sample_scratch sample;
};

struct cpu_taken {
    void *memory;
    size_t bytes;
};

struct infer_backend_model {
    struct infer_backend *backend;
    const struct infer_plan *plan;
    struct infer_state_config state;
    struct cpu_taken tables, weights, pages, scratch;
    struct cpu_tensor *tensors;
    struct cpu_matrix *slices; /* [n_tensors][n_nodes] */
    struct cpu_op *ops;

    /* Sequence state: page, then layer, then kv head: keys, values (cache.c). */
    size_t page_bytes, layer_bytes, head_bytes, key_bytes, value_bytes;
    uint32_t dim_v; /* head_dim_v rounded up to 16 */

    /* Rows of values; strides in numbers, multiples of 16. */
    float *x, *q, *k, *v, *o, *t;
    size_t x_stride, q_stride, k_stride, v_stride, o_stride, t_stride;
    uint8_t *packed[CPU_PARTS];
    size_t packed_row[CPU_PARTS]; /* the largest row of each */
    float *cosine, *sine;         /* [max_rows][n_dims / 2] */
    float *logits;                /* [head_rows][logits_stride] */
    size_t logits_stride;
    uint32_t head_rows;
    struct cpu_local *locals; /* per worker */

    /* The step that runs. */
    struct infer_batch *batch;
    uint32_t *row_seq;     /* [max_rows] which sequence */
    uint32_t *attend_base; /* [max_seqs + 1] first attention item of each sequence */
    uint32_t *out_rows;    /* [max_outputs] distinct rows, ascending */
    uint32_t *out_first;   /* [max_outputs + 1] their first output */
    uint32_t n_out_rows;
    bool single; /* every sequence has one row */
};

/* The first group of a matrix that lies on a node; the next node's, or all, is where they end. A
 * node's share is that of its workers among all. */
static inline uint32_t cpu_slice_first(const struct cpu_pool *pool, uint32_t n_groups,
                                       uint32_t node)
{
    return (uint32_t)((uint64_t)n_groups * pool->first_of_node[node] / pool->n_workers);
}
/* Where a row of a matrix lies: the slice, and its row there. */
const struct cpu_matrix *cpu_slice_of(const struct infer_backend_model *model,
                                      const struct cpu_tensor *tensor, uint32_t row,
                                      uint32_t *ret_row);

int cpu_model_estimate(struct infer_backend *backend, const struct infer_plan *plan,
                       const struct infer_state_config *state, struct infer_estimate *ret);
int cpu_model_open(struct infer_backend *backend, const struct infer_plan *plan,
                   const struct infer_state_config *state, struct infer_backend_model **ret);
int cpu_model_write(struct infer_backend_model *model, uint32_t tensor, uint64_t first_row,
                    uint64_t n_rows, const void *rows);
int cpu_model_ready(struct infer_backend_model *model);
void cpu_model_close(struct infer_backend_model *model);
int cpu_page_copy(struct infer_backend_model *model, uint32_t to, uint32_t from);
int cpu_page_zero(struct infer_backend_model *model, uint32_t page);
int cpu_page_read(struct infer_backend_model *model, uint32_t page, void *ret_bytes);
int cpu_page_write(struct infer_backend_model *model, uint32_t page, const void *bytes);

/* shift.c */
int cpu_page_shift(struct infer_backend_model *model, uint32_t page, int32_t delta);

/* step.c */
int cpu_run(struct infer_backend_model *model, struct infer_batch *batch);

/* backend.c: writes last_error and returns `error`. */
__attribute__((format(printf, 3, 4))) int cpu_fail(struct infer_backend *backend, int error,
                                                   const char *format, ...);

#endif
