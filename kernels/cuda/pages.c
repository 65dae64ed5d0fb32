/* pages.c: pages outside of a step: copied, zeroed, read, written, shifted.
 *
 * All on the model's stream, so that they are in order with its steps; only those that touch the
 * caller's memory wait for it. One thread at a time per model. */
#include "cuda/model.h"

#include <errno.h>
#include <inttypes.h>

static uint8_t *page_at(const struct infer_backend_model *m, uint32_t page)
{
    return m->cache.pages + m->cache.page_bytes * page;
}

static int enter(struct infer_backend_model *m, uint32_t page)
{
    if (page >= m->state.n_pages)
        return cuda_fail(-EINVAL, "there is no page %" PRIu32 " of %" PRIu32, page,
                         m->state.n_pages);
    return cuda_enter(m->backend);
}

int cuda_page_copy(struct infer_backend_model *m, uint32_t to, uint32_t from)
{
    int r = enter(m, to > from ? to : from);
    if (r < 0 || to == from)
        return r;
    return cuda_check(m->backend, cuda_cache_copy(&m->cache, to, from, m->stream),
                      "copying a page");
}

int cuda_page_zero(struct infer_backend_model *m, uint32_t page)
{
    int r = enter(m, page);
    if (r < 0)
        return r;
    return cuda_check(m->backend,
                      cudaMemsetAsync(page_at(m, page), 0, m->cache.page_bytes, m->stream),
                      "zeroing a page");
}

int cuda_page_read(struct infer_backend_model *m, uint32_t page, void *ret_bytes)
{
    int r = enter(m, page);
    if (r < 0)
        return r;
    cudaError_t error = cudaMemcpyAsync(ret_bytes, page_at(m, page), m->cache.page_bytes,
                                        cudaMemcpyDeviceToHost, m->stream);
    if (error == cudaSuccess)
        error = cudaStreamSynchronize(m->stream);
    return cuda_check(m->backend, error, "reading a page");
}

int cuda_page_write(struct infer_backend_model *m, uint32_t page, const void *bytes)
{
    int r = enter(m, page);
    if (r < 0)
        return r;
    cudaError_t error = cudaMemcpyAsync(page_at(m, page), bytes, m->cache.page_bytes,
                                        cudaMemcpyHostToDevice, m->stream);
    if (error == cudaSuccess)
        error = cudaStreamSynchronize(m->stream);
    return cuda_check(m->backend, error, "writing a page");
}

int cuda_page_shift(struct infer_backend_model *m, uint32_t page, int32_t delta)
{
    const struct infer_rope *rope = &m->plan->rope;
    int r = enter(m, page);
    if (r < 0 || delta == 0 || rope->n_dims == 0)
        return r;
    return cuda_check(
        m->backend,
        cuda_cache_shift(&m->cache, page, delta, rope->style, rope->n_dims, m->inv_freq, m->stream),
        "shifting a page");
}
