/* ops.h: the operations of a plan, over all rows of a batch. */
#ifndef INFERD_KERNELS_REF_OPS_H
#define INFERD_KERNELS_REF_OPS_H

#include "ref/model.h"

#include <stdint.h>

/* Sum of a[i] * b[i] in an order that depends on n alone. */
float ref_dot(const float *a, const float *b, uint64_t n);

/* out[row][r] = W[r] . in[row] (+ bias[r]), or out[row][r] += that. The matrix is decoded row by
 * row, each once for all rows of the batch. `bias` may be INFER_TENSOR_NONE. */
struct ref_product {
    uint32_t w, bias;
    const float *in;
    float *out;
    uint32_t n_rows;
    bool add;
    float scale; /* of the whole product, bias included */
};
void ref_multiply(struct infer_backend_model *model, const struct ref_product *product);

/* y = x / sqrt(mean(x^2) + eps) * weight */
void ref_rms_norm(const float *x, const float *weight, float *y, uint32_t n, float eps);

void ref_rope_table(struct infer_backend_model *model, const struct infer_batch *batch);

void ref_op_embed(struct infer_backend_model *model, const struct infer_op *op,
                  const struct infer_batch *batch);
void ref_op_qkv(struct infer_backend_model *model, const struct infer_op *op,
                const struct infer_batch *batch);
void ref_op_attend(struct infer_backend_model *model, const struct infer_op *op,
                   const struct infer_batch *batch);
void ref_op_project(struct infer_backend_model *model, const struct infer_op *op,
                    const struct infer_batch *batch);
void ref_op_ffn_gated(struct infer_backend_model *model, const struct infer_op *op,
                      const struct infer_batch *batch);
void ref_op_head(struct infer_backend_model *model, const struct infer_op *op,
                 struct infer_batch *batch);

/* Where a cached row of keys or values of one layer lies. */
uint8_t *ref_cached_key(const struct infer_backend_model *model, uint32_t layer,
                        const struct infer_batch_seq *seq, uint32_t position);
uint8_t *ref_cached_value(const struct infer_backend_model *model, uint32_t layer,
                          const struct infer_batch_seq *seq, uint32_t position);

#endif
