/* upload.c: rows of the file on their way to the device.
 *
 * A ring of CUDA_STAGES pieces, each of pinned host memory and as much device memory: while one is
 * filled by the caller's thread, another is copied and a third laid out by a kernel, all on the
 * model's loading stream, so that steps of other models go on beside it. The caller's rows are read
 * before the call returns. Bound: the slower of one thread's memcpy and the bus; the kernel reads
 * and writes device memory only.
 *
 * Vectors are decoded to float32 here; they are few and short. One thread at a time per model. */
#include "cuda/model.h"

#include "ref/quant.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

/* The ring's next piece, once it is free. */
static int next_stage(struct infer_backend_model *m, struct cuda_stage **ret)
{
    struct cuda_stage *stage = &m->stages[m->next_stage];
    int r = cuda_check(m->backend, cudaEventSynchronize(stage->done), "loading weights");
    if (r < 0)
        return r;
    m->next_stage = (m->next_stage + 1) % CUDA_STAGES;
    *ret = stage;
    return 0;
}

static int write_vector(struct infer_backend_model *m, const struct infer_tensor *file, float *to,
                        const void *row)
{
    struct cuda_stage *stage;
    int r = next_stage(m, &stage);
    if (r < 0)
        return r;
    ref_decode_row(file->type, row, (float *)(void *)stage->host, file->ne[0]);
    cudaError_t error = cudaMemcpyAsync(to, stage->host, file->ne[0] * sizeof(float),
                                        cudaMemcpyHostToDevice, m->loading);
    if (error == cudaSuccess)
        error = cudaEventRecord(stage->done, m->loading);
    return cuda_check(m->backend, error, "loading a vector");
}

static int write_piece(struct infer_backend_model *m, const struct cuda_matrix *matrix,
                       uint64_t row, uint64_t n, const void *rows, size_t row_bytes)
{
    struct cuda_stage *stage;
    int r = next_stage(m, &stage);
    if (r < 0)
        return r;
    memcpy(stage->host, rows, n * row_bytes);
    cudaError_t error = cudaMemcpyAsync(stage->device, stage->host, n * row_bytes,
                                        cudaMemcpyHostToDevice, m->loading);
    if (error == cudaSuccess)
        error = cuda_matrix_write(matrix, (uint32_t)row, (uint32_t)n, stage->device, row_bytes,
                                  m->loading);
    if (error == cudaSuccess)
        error = cudaEventRecord(stage->done, m->loading);
    return cuda_check(m->backend, error, "loading weights");
}

/* Pieces end where a tile of the matrix does, as far as they can. */
static int write_matrix(struct infer_backend_model *m, const struct cuda_matrix *matrix,
                        uint64_t first_row, uint64_t n_rows, const uint8_t *rows, size_t row_bytes)
{
    const uint64_t most = m->stage_bytes / row_bytes, end = first_row + n_rows;
    for (uint64_t row = first_row; row < end;) {
        uint64_t n = end - row < most ? end - row : most;
        if (n > CUDA_TILE_ROWS && row + n < end)
            n -= (row + n) % CUDA_TILE_ROWS;
        int r = write_piece(m, matrix, row, n, rows + row_bytes * (row - first_row), row_bytes);
        if (r < 0)
            return r;
        row += n;
    }
    return 0;
}

int cuda_model_write(struct infer_backend_model *m, uint32_t tensor, uint64_t first_row,
                     uint64_t n_rows, const void *rows)
{
    if (tensor >= m->plan->n_tensors)
        return cuda_fail(-EINVAL, "the plan has no tensor %" PRIu32, tensor);
    const struct infer_tensor *file = &m->plan->tensors[tensor];
    struct cuda_tensor *t = &m->tensors[tensor];
    if (first_row != t->n_written || n_rows > file->n_rows - first_row)
        return cuda_fail(
            -EINVAL, "tensor %.64s: rows %" PRIu64 " + %" PRIu64 " after %" PRIu64 " of %" PRIu64,
            file->name, first_row, n_rows, t->n_written, file->n_rows);
    int r = cuda_enter(m->backend);
    if (r >= 0 && n_rows && t->role == CUDA_VECTOR)
        r = write_vector(m, file, t->vector, rows);
    else if (r >= 0 && n_rows && t->role == CUDA_MATRIX)
        r = write_matrix(m, &t->matrix, first_row, n_rows, rows, file->row_bytes);
    if (r >= 0)
        t->n_written += n_rows;
    return r;
}
