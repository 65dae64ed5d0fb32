/* model.h: the reference backend's model: weights as in the file, pages, working memory. */
#ifndef INFERD_KERNELS_REF_MODEL_H
#define INFERD_KERNELS_REF_MODEL_H

#include "inferd/backend.h"
#include "ref/sample.h"

#include <stdbool.h>
#include <stdint.h>

/* Rows of logits that are held at a time: the head's weights are decoded once per so many. */
#define REF_HEAD_ROWS 8u

struct infer_backend {
    const struct infer_host *host;
};

/* One tensor: its rows in the file's encoding. */
struct ref_weights {
    const struct infer_tensor *info;
    uint8_t *rows;
    uint64_t n_written;
};

/* Bytes of everything, computed the same way for estimate and open. */
struct ref_sizes {
    uint64_t model;        /* the model struct and its table of tensors */
    uint64_t weights;      /* all tensors, each padded to 64 */
    uint64_t k_row, v_row; /* one cached row of one layer, encoded */
    uint64_t layer;        /* page_tokens rows of keys, then as many of values */
    uint64_t page;         /* all layers, padded to 64 */
    uint64_t pages;
    uint64_t scratch;
};

/* Working memory. Activations are row-major, one row per batch row. */
struct ref_scratch {
    float *x, *h;         /* [max_rows][n_embd] */
    float *q;             /* [max_rows][n_heads * head_dim] */
    float *k, *v;         /* [max_rows][n_kv_heads * head_dim(_v)] */
    float *o;             /* [max_rows][n_heads * head_dim_v] */
    float *t, *u;         /* [max_rows][n_ffn] */
    float *cosine, *sine; /* [max_rows][rope.n_dims / 2], times the magnitude */
    float *weight_row;    /* the longest row of a matrix, decoded */
    float *cached_row;    /* one head's part of a cached row, decoded */
    float *scores;        /* [n_heads / n_kv_heads][all cached rows there can be] */
    double *sums;         /* [n_heads / n_kv_heads][head_dim_v] */
    float *logits;        /* [REF_HEAD_ROWS][n_vocab] */
    void *sampler;
    uint64_t n_scores; /* length of one row of scores */
};

struct infer_backend_model {
    struct infer_backend *backend;
    const struct infer_plan *plan;
    struct infer_state_config state;
    struct ref_sizes sizes;
    struct ref_weights *weights; /* one per tensor of the plan */
    uint8_t *weights_memory, *pages, *scratch_memory;
    struct ref_scratch scratch;
    struct ref_sample_scratch sampler;
    bool ready;
};

/* Sets the sentence of last_error() and returns `error`. */
int ref_fail(struct infer_backend *backend, int error, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* 0, -EINVAL or -ENOTSUP with the reason in last_error(). */
int ref_plan_check(struct infer_backend *backend, const struct infer_plan *plan,
                   const struct infer_state_config *state);

/* The functions of the backend's table. */
int ref_open(const struct infer_host *host, const char *options, struct infer_backend **ret);
void ref_close(struct infer_backend *backend);
const char *ref_last_error(const struct infer_backend *backend);
void ref_describe(const struct infer_backend *backend, struct infer_device *ret);
int ref_estimate(struct infer_backend *backend, const struct infer_plan *plan,
                 const struct infer_state_config *state, struct infer_estimate *ret);
int ref_model_open(struct infer_backend *backend, const struct infer_plan *plan,
                   const struct infer_state_config *state, struct infer_backend_model **ret);
int ref_tensor_write(struct infer_backend_model *model, uint32_t tensor, uint64_t first_row,
                     uint64_t n_rows, const void *rows);
int ref_model_ready(struct infer_backend_model *model);
void ref_model_close(struct infer_backend_model *model);
int ref_run(struct infer_backend_model *model, struct infer_batch *batch);
int ref_page_copy(struct infer_backend_model *model, uint32_t to, uint32_t from);
int ref_page_zero(struct infer_backend_model *model, uint32_t page);
int ref_page_read(struct infer_backend_model *model, uint32_t page, void *ret_bytes);
int ref_page_write(struct infer_backend_model *model, uint32_t page, const void *bytes);
int ref_page_shift(struct infer_backend_model *model, uint32_t page, int32_t delta);

#endif
