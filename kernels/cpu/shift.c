/* shift.c: the keys of a page to other positions.
 *
 *   k'[j] = R(delta) k[j],   R(delta) turns pair i of the first n_dims by delta * inv_freq[i]
 *
 * for the 16 rows of every layer and kv head; values stay. Half numbers lie 16 rows side by side
 * and are turned as they lie. Codes are decoded (and their rotation undone), turned and rounded
 * anew by the reference's own functions, so that a page says the same as the reference's.
 *
 * Rounding anew costs a share of the key as large as the first rounding did, each time: windows
 * should slide by many rows at once, not one by one.
 *
 * Half numbers take little more than their loads, and the caller alone turns them; codes take the
 * encoder's search per head, and the workers share them. On two cores of a Zen 4 EPYC a page of a
 * 46M-parameter model takes 13 us in F16, 100 in Q8_0, 260 in Q4_0 (tests/bench/bench_kernels.c).
 *
 * Nothing is allocated: angles go where a step has its own. */
#include "cpu/model.h"

#include "ref/cache.h"
#include "ref/rope.h"

#include <errno.h>
#include <inttypes.h>

struct shift_job {
    struct infer_backend_model *m;
    uint8_t *page;
};

/* The keys of one layer and kv head. */
static void shift_halves(const struct infer_backend_model *m, uint8_t *keys)
{
    const struct infer_rope *rope = &m->plan->rope;
    const uint32_t n_pairs = rope->n_dims / 2;
    const bool pairs = rope->style == INFER_ROPE_PAIRS;
    uint16_t *halves = (uint16_t *)(void *)keys;
    for (uint32_t p = 0; p < n_pairs; p++) {
        uint32_t first = pairs ? 2 * p : p, second = pairs ? first + 1 : first + n_pairs;
        m->backend->isa.turn_f16(halves + (size_t)CPU_PAGE_TOKENS * first,
                                 halves + (size_t)CPU_PAGE_TOKENS * second, m->cosine[p],
                                 m->sine[p]);
    }
}

static void shift_codes(const struct infer_backend_model *m, uint8_t *keys, float *row)
{
    const uint32_t type = m->state.k_type, dim = m->plan->shape.head_dim;
    for (uint32_t slot = 0; slot < CPU_PAGE_TOKENS; slot++) {
        cpu_cache_key_read(keys, type, dim, slot, row);
        if (ref_cache_rotates(type))
            ref_cache_rotate(row, dim);
        ref_rope_turn(&m->plan->rope, m->cosine, m->sine, row);
        if (ref_cache_rotates(type))
            ref_cache_rotate(row, dim);
        cpu_cache_key(keys, type, dim, slot, row);
    }
}

static void shift_items(struct cpu_worker *worker, void *arg)
{
    const struct shift_job *job = arg;
    const uint32_t n = job->m->plan->shape.n_layers * job->m->plan->shape.n_kv_heads;
    cpu_section(worker);
    for (;;) {
        uint32_t item = cpu_item(worker);
        if (item >= n)
            return;
        shift_codes(job->m, job->page + job->m->head_bytes * item,
                    job->m->locals[worker->index].row);
    }
}

int cpu_page_shift(struct infer_backend_model *m, uint32_t page, int32_t delta)
{
    const struct infer_shape *s = &m->plan->shape;
    if (page >= m->state.n_pages)
        return cpu_fail(m->backend, -EINVAL, "there are %" PRIu32 " pages", m->state.n_pages);
    if (delta == 0 || m->plan->rope.n_dims == 0)
        return 0;
    struct shift_job job = {m, (uint8_t *)m->pages.memory + m->page_bytes * page};
    ref_rope_delta(&m->plan->rope, delta, m->cosine, m->sine);
    if (m->state.k_type != INFER_TYPE_F16) {
        cpu_pool_run(m->backend->pool, shift_items, &job);
        return 0;
    }
    for (uint32_t i = 0; i < s->n_layers * s->n_kv_heads; i++)
        shift_halves(m, job.page + m->head_bytes * i);
    return 0;
}
