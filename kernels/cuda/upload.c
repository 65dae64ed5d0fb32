/* upload.c: rows of the file on their way to the device.
 *
 * Three things go on at once, a piece of rows each, in a ring of CUDA_STAGES: the caller reads the
 * file, the bus copies (stream `copying`), a kernel lays rows out as products want them (stream
 * `loading`). A stage's events tie them together: `copied` lets the kernel begin and the source be
 * written again, `laid` lets the next copy into the stage's device memory begin. Nothing waits for
 * a tensor's end, and steps of other models go on beside it.
 *
 * Rows within the range of rows_pin() are copied from where they lie. Those elsewhere (rows that
 * two reads share, callers without a range) pass through the stage's own pinned memory, and are
 * read before the call returns; then one thread's memcpy is the bound, else the bus is.
 *
 * Which calls of tensor_write have been read: a stage keeps the number of the call whose rows it
 * has, and is used again only once these are copied. So all calls but those in the ring are.
 *
 * Vectors are decoded to float32 here; they are few and short. One thread at a time per model. */
#include "cuda/model.h"

#include "ref/quant.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

/* The ring's next stage, whose source may be written again. */
static int next_stage(struct infer_backend_model *m, struct cuda_stage **ret)
{
    struct cuda_stage *stage = &m->stages[m->next_stage];
    int r = cuda_check(m->backend, cudaEventSynchronize(stage->copied), "loading weights");
    if (r < 0)
        return r;
    m->next_stage = (m->next_stage + 1) % CUDA_STAGES;
    stage->call = m->n_writes;
    *ret = stage;
    return 0;
}

/* Behind the zeros that the weights' memory is filled with first, hence on the kernels' stream. */
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
        error = cudaEventRecord(stage->copied, m->loading);
    return cuda_check(m->backend, error, "loading a vector");
}

static bool is_pinned(const struct infer_backend_model *m, const uint8_t *rows, size_t bytes)
{
    return m->rows && rows >= m->rows && bytes <= m->rows_bytes &&
           (size_t)(rows - m->rows) <= m->rows_bytes - bytes;
}

static cudaError_t copy_piece(struct infer_backend_model *m, const struct cuda_stage *stage,
                              const void *from, size_t bytes)
{
    cudaError_t error = cudaStreamWaitEvent(m->copying, stage->laid, 0);
    if (error == cudaSuccess)
        error = cudaMemcpyAsync(stage->device, from, bytes, cudaMemcpyHostToDevice, m->copying);
    if (error == cudaSuccess)
        error = cudaEventRecord(stage->copied, m->copying);
    return error;
}

static int write_piece(struct infer_backend_model *m, const struct cuda_matrix *matrix,
                       uint64_t row, uint64_t n, const uint8_t *rows, size_t row_bytes)
{
    struct cuda_stage *stage;
    int r = next_stage(m, &stage);
    if (r < 0)
        return r;
    if (!is_pinned(m, rows, n * row_bytes))
        rows = memcpy(stage->host, rows, n * row_bytes);
    cudaError_t error = copy_piece(m, stage, rows, n * row_bytes);
    if (error == cudaSuccess)
        error = cudaStreamWaitEvent(m->loading, stage->copied, 0);
    if (error == cudaSuccess)
        error = cuda_matrix_write(matrix, (uint32_t)row, (uint32_t)n, stage->device, row_bytes,
                                  m->loading);
    if (error == cudaSuccess)
        error = cudaEventRecord(stage->laid, m->loading);
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
    m->n_writes++;
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

/* ---- the caller's own memory ----------------------------------------------------------------- */

int cuda_rows_pin(struct infer_backend_model *m, void *memory, size_t bytes)
{
    int r = cuda_enter(m->backend);
    if (r < 0)
        return r;
    if (m->rows)
        return cuda_fail(-EBUSY, "a range of rows is pinned already");
    cudaError_t error = cudaHostRegister(memory, bytes, cudaHostRegisterPortable);
    if (error == cudaErrorMemoryAllocation) { /* of the host's pages: the device is not short */
        cudaGetLastError();
        return cuda_fail(-ENOMEM, "%zu bytes of the host's memory cannot be pinned", bytes);
    }
    r = cuda_check(m->backend, error, "pinning the read buffers");
    if (r < 0)
        return r;
    m->rows = memory;
    m->rows_bytes = bytes;
    return 0;
}

int cuda_rows_wait(struct infer_backend_model *m, uint64_t n)
{
    int r = cuda_enter(m->backend);
    for (uint32_t i = 0; i < CUDA_STAGES && r >= 0; i++)
        if (m->stages[i].call <= n)
            r = cuda_check(m->backend, cudaEventSynchronize(m->stages[i].copied),
                           "loading weights");
    return r;
}

void cuda_rows_unpin(struct infer_backend_model *m)
{
    if (!m->rows)
        return;
    cudaSetDevice(m->backend->device);
    cudaStreamSynchronize(m->copying);
    cudaHostUnregister(m->rows);
    cudaGetLastError(); /* of a lost device */
    m->rows = NULL;
    m->rows_bytes = 0;
}
