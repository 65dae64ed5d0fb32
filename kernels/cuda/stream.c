/* stream.c: the residual stream of a part of a model, from and to the host.
 *
 * x crosses as it lies on the device, float32 in rows of x_stride numbers, through pinned memory of
 * the model's own, so that the copies run in order with the step on its stream and nothing waits
 * but the step's end; they stay outside of captured steps, which find x where EMBED would have left
 * it. Bytes: 4 n_embd per row and direction, so 16 KB for a row of 4,096 numbers and 8 MB for the
 * 512 rows of the largest step. Nothing is allocated; one thread at a time per model. */
#include "cuda/model.h"

#include "ref/walk.h"

#include <string.h>

size_t cuda_stream_bytes(const struct infer_backend_model *m, uint32_t n_rows)
{
    if (!ref_plan_takes_x(m->plan) && !ref_plan_gives_x(m->plan))
        return 0;
    return m->x_stride * n_rows * sizeof(float);
}

/* Rows of the bucket that are none are zero, as good as any. */
cudaError_t cuda_stream_up(struct infer_backend_model *m, const struct cuda_bucket *bucket,
                           const struct infer_batch *batch)
{
    const uint32_t n_embd = m->plan->shape.n_embd;
    if (!ref_plan_takes_x(m->plan))
        return cudaSuccess;
    for (uint32_t r = 0; r < batch->n_rows; r++)
        memcpy(m->x + m->x_stride * r, batch->x + (size_t)n_embd * r, n_embd * sizeof(float));
    memset(m->x + m->x_stride * batch->n_rows, 0,
           cuda_stream_bytes(m, bucket->rows - batch->n_rows));
    return cudaMemcpyAsync(m->scratch.x, m->x, cuda_stream_bytes(m, bucket->rows),
                           cudaMemcpyHostToDevice, m->stream);
}

cudaError_t cuda_stream_down(struct infer_backend_model *m, uint32_t n_rows)
{
    if (!ref_plan_gives_x(m->plan))
        return cudaSuccess;
    return cudaMemcpyAsync(m->x, m->scratch.x, cuda_stream_bytes(m, n_rows), cudaMemcpyDeviceToHost,
                           m->stream);
}

void cuda_stream_read(const struct infer_backend_model *m, struct infer_batch *batch)
{
    const uint32_t n_embd = m->plan->shape.n_embd;
    for (uint32_t r = 0; r < batch->n_rows && ref_plan_gives_x(m->plan); r++)
        memcpy(batch->x + (size_t)n_embd * r, m->x + m->x_stride * r, n_embd * sizeof(float));
}
