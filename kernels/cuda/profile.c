/* profile.c: where a step's time goes: diagnosis, asked for by the option profile=N.
 *
 * An event stands behind each group of launches, also inside captured steps, so that the
 * processor's own time does not count. It keeps kernels from overlapping, and so a profiled step is
 * somewhat slower than others. After N steps of as many rows, a table of microseconds per step goes
 * to the log, by phase, and begins anew. */
#include "cuda/model.h"

#include <errno.h>
#include <stdio.h>

static const char *const names[CUDA_PHASES] = {
    [CUDA_PHASE_EMBED] = "embed",       [CUDA_PHASE_PACK] = "norms",
    [CUDA_PHASE_QKV] = "q, k, v",       [CUDA_PHASE_TURN] = "turn and cache",
    [CUDA_PHASE_ATTEND] = "attend",     [CUDA_PHASE_PROJECT_O] = "project o",
    [CUDA_PHASE_GATED] = "gate and up", [CUDA_PHASE_PROJECT_T] = "project t",
    [CUDA_PHASE_CHAIN] = "chains",      [CUDA_PHASE_HEAD] = "head",
    [CUDA_PHASE_SAMPLE] = "sample",
};

struct cuda_profile {
    uint32_t n_events, n_marks; /* of the table; of this step */
    uint32_t n_steps, n_rows;   /* since the last report; rows of each */
    bool captured;
    size_t bytes;
    double us[CUDA_PHASES];
    uint32_t count[CUDA_PHASES];
    cudaEvent_t begin;
    struct mark {
        cudaEvent_t event;
        enum cuda_phase phase;
    } marks[];
};

int cuda_profile_new(struct infer_backend_model *m)
{
    struct infer_backend *b = m->backend;
    const struct cuda_bucket largest = {.outputs = cuda_bucket_outputs(m->state.max_outputs)};
    if (!b->profile)
        return 0;
    uint32_t n = 3 * m->plan->n_ops + 3 * cuda_head_blocks(&largest);
    size_t bytes = sizeof(struct cuda_profile) + n * sizeof(struct mark);
    struct cuda_profile *p = b->host->memory_take(b->host->ctx, bytes);
    if (!p)
        return cuda_fail(-ENOMEM, "no memory for a profile");
    p->n_events = n;
    p->bytes = bytes;
    m->profile = p;
    cudaError_t error = cudaEventCreate(&p->begin);
    for (uint32_t i = 0; i < n && error == cudaSuccess; i++)
        error = cudaEventCreate(&p->marks[i].event);
    return cuda_check(b, error, "events");
}

void cuda_profile_free(struct infer_backend_model *m)
{
    struct cuda_profile *p = m->profile;
    if (!p)
        return;
    if (p->begin)
        cudaEventDestroy(p->begin);
    for (uint32_t i = 0; i < p->n_events; i++)
        if (p->marks[i].event)
            cudaEventDestroy(p->marks[i].event);
    m->backend->host->memory_give(m->backend->host->ctx, p, p->bytes);
    m->profile = NULL;
}

static void record(struct infer_backend_model *m, cudaEvent_t event)
{
    cudaEventRecordWithFlags(
        event, m->stream, m->profile->captured ? cudaEventRecordExternal : cudaEventRecordDefault);
}

void cuda_profile_begin(struct infer_backend_model *m, bool captured)
{
    if (!m->profile)
        return;
    m->profile->n_marks = 0;
    m->profile->captured = captured;
    record(m, m->profile->begin);
}

void cuda_profile_mark(struct infer_backend_model *m, enum cuda_phase phase)
{
    struct cuda_profile *p = m->profile;
    if (!p || p->n_marks == p->n_events)
        return;
    struct mark *mark = &p->marks[p->n_marks++];
    mark->phase = phase; /* the same at this place in every step: they follow the plan */
    record(m, mark->event);
}

uint32_t cuda_profile_marks(struct infer_backend_model *m, uint32_t n)
{
    if (m->profile && n)
        m->profile->n_marks = n;
    return m->profile ? m->profile->n_marks : 0;
}

static void report(struct infer_backend_model *m)
{
    struct cuda_profile *p = m->profile;
    double sum = 0;
    for (int i = 0; i < CUDA_PHASES; i++)
        sum += p->us[i] / p->n_steps;
    cuda_log(m->backend, INFER_LOG_INFO, "profile: %u steps of %u rows: %.1f us", p->n_steps,
             p->n_rows, sum);
    for (int i = 0; i < CUDA_PHASES; i++)
        if (p->count[i])
            cuda_log(m->backend, INFER_LOG_INFO,
                     "profile:   %-14s %9.1f us %5.1f %%  %4u times %8.2f us", names[i],
                     p->us[i] / p->n_steps, 100 * p->us[i] / p->n_steps / sum,
                     p->count[i] / p->n_steps, p->us[i] / p->count[i]);
}

static void begin_anew(struct cuda_profile *p, uint32_t n_rows)
{
    for (int i = 0; i < CUDA_PHASES; i++)
        p->us[i] = p->count[i] = 0;
    p->n_steps = 0;
    p->n_rows = n_rows;
}

void cuda_profile_end(struct infer_backend_model *m, uint32_t n_rows)
{
    struct cuda_profile *p = m->profile;
    if (!p)
        return;
    if (n_rows != p->n_rows)
        begin_anew(p, n_rows);
    cudaEvent_t before = p->begin;
    for (uint32_t i = 0; i < p->n_marks; before = p->marks[i++].event) {
        float ms = 0;
        cudaEventElapsedTime(&ms, before, p->marks[i].event);
        p->us[p->marks[i].phase] += 1e3 * (double)ms;
        p->count[p->marks[i].phase]++;
    }
    if (++p->n_steps < m->backend->profile)
        return;
    report(m);
    begin_anew(p, n_rows);
}
