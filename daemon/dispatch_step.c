/* dispatch_step.c: the step: who runs is the scheduler's word, what comes out goes to the clients.
 *
 * Between plan and step the jobs that start or come back get their pages: from the cache, from the
 * first answer of their request, or from where their state was saved. One that cannot have them now
 * runs in a later step.
 *
 * A device that works by itself leaves this thread idle during a step. What can be done then:
 *
 *   One step ahead. When the next step can only be the same decodes over again (sched_goes_on()),
 * it is submitted before this one is waited for, with tokens that the device fills in, so that the
 *   device goes from one to the other without a pause. Then this step is collected, and what it
 * gave goes to scheduler and clients as ever. At its turn the next step is what the scheduler would
 *   have planned in that moment, less those that have left it: who ended, was cancelled, or could
 *   not pass on its token. For them it was for nothing, and nobody is charged for it. Who came
 *   meanwhile is in the step after it. So the scheduler, pages under pressure and all that begins
 * or comes back see steps that follow each other, and are at work only when nothing is ahead.
 *
 *   Else what this step gives goes to the clients during the next one. A system call per client
 * that sleeps is as long as a good part of a step with many of them. */
#include "dispatch_internal.h"

#include "base/clock.h"
#include "base/log.h"
#include "devices.h"
#include "messages.h"

#include <errno.h>

/* ---- what comes out -------------------------------------------------------------------------- */

static void after_step(struct dispatch *d, struct job *job, uint32_t n_rows, uint64_t now_us)
{
    struct engine_sequence *s = job->sequence;
    bool finished = s->kind == ENGINE_SCORE ? engine_sequence_rows(s) == 0
                                            : s->output.has_token && s->output.finish != 0;
    if (s->output.n_gave > 0)
        sched_gave(d->sched, job->slot, s->output.n_gave);
    sched_ran(d->sched, job->slot, n_rows, !finished && s->output.has_token);
    if (s->output.has_token) {
        job->token_due = true;
        job->text_sent = 0;
        dispatch_count_token(d, job, now_us);
        job->last_token_us = now_us;
        if (job->first_token_us == 0)
            job->first_token_us = now_us;
        dispatch_prompt_ran(d, job);
    }
    if (finished)
        dispatch_finish(d, job, s->kind == ENGINE_SCORE ? INFER_FINISH_NONE : s->output.finish, 0,
                        NULL);
    else if (s->output.has_token)
        dispatch_flush(d, job);
}

void dispatch_fail_all(struct dispatch *d, int code, const char *text)
{
    for (uint32_t slot = 0; slot < INFER_SEQUENCES_MAX; slot++)
        if (d->by_slot[slot] != NULL)
            dispatch_finish(d, d->by_slot[slot], INFER_FINISH_ERROR, code, text);
    while (d->held != NULL)
        dispatch_finish(d, d->held, INFER_FINISH_ERROR, code, text);
}

static void step_failed(struct dispatch *d, const struct engine_model *m, uint32_t n, int rc)
{
    const char *why = m->api->last_error(m->backend);
    struct log_fields fields = {.message_id = MESSAGE_STEP_FAILED, .model = m->name};
    log_event(LOG_LEVEL_ERROR, &fields, "%s: a step failed: %s", m->name, why);
    if (rc == -ENODEV) {
        const uint32_t model = (uint32_t)(m - d->config.models);
        devices_set_lost(d->config.devices, d->slots[model].is.about.device);
        d->stopping = true;
        dispatch_fail_all(d, INFER_E_BACKEND_LOST, why);
        loop_stop(d->config.loop, DISPATCH_EXIT_LOST);
        return;
    }
    for (uint32_t i = 0; i < n; i++)
        if (d->by_slot[d->plan[i].slot] != NULL)
            dispatch_finish(d, d->by_slot[d->plan[i].slot], INFER_FINISH_ERROR, INFER_E_BACKEND,
                            why);
}

/* ---- who can run ----------------------------------------------------------------------------- */

/* An answer of the same request whose state has all of the prompt; NULL: none. */
static const struct engine_sequence *with_prompt(const struct job *job)
{
    for (const struct job *other = job->client->jobs; other != NULL; other = other->next) {
        const struct engine_sequence *s = other->sequence;
        if (other->answers == job->answers && other != job && other->phase == JOB_RUNNING &&
            other->started_us != 0 && !other->preempted && s->n_cached >= s->n_prompt)
            return s;
    }
    return NULL;
}

/* A job's first step: what the cache or another answer has of its prompt need not run. */
static void begin(struct dispatch *d, struct job *job, uint64_t now_us)
{
    const struct engine_sequence *from = job->answers != NULL ? with_prompt(job) : NULL;
    uint32_t found = from != NULL ? engine_sequence_fork(job->sequence, from)
                                  : engine_sequence_begin(job->sequence);
    dispatch_lend_pages(d, job, 0);
    job->started_us = now_us;
    job->n_found = (uint32_t)job->sequence->n_found;
    dispatch_count_started(d, job);
    if (found > 0)
        sched_found(d->sched, job->slot, found);
}

/* Takes its pages from cache or store; false: it does not run in this step, or is over. */
static bool make_ready(struct dispatch *d, struct sched_work *work, uint64_t now_us)
{
    struct job *job = d->by_slot[work->slot];
    if (job->preempted && !dispatch_come_back(d, job))
        return false;
    if (job->started_us == 0)
        begin(d, job, now_us);
    uint32_t owed = engine_sequence_rows(job->sequence);
    uint32_t rows = work->n_rows < owed ? work->n_rows : owed;
    work->n_rows = engine_sequence_clamp(job->sequence, rows);
    return true;
}

/* The scheduler counted before the jobs of this step took what they found: those that come last go
 * without when the pages do not reach. */
static bool fits(const struct dispatch *d, const struct sched_work *work, uint32_t *left)
{
    const struct engine_sequence *s = d->by_slot[work->slot]->sequence;
    const struct kv_pool *pool = s->model->pool;
    uint64_t rows = s->n_cached - s->n_slid;
    if (s->window.rows > 0 && rows >= s->window.rows)
        rows -= s->window.leave; /* the step slides it first */
    uint64_t end = rows + work->n_rows;
    uint32_t want = kv_pool_pages_for(pool, end), has = s->state.n_pages;
    uint32_t need = want > has ? want - has : 0;
    if (need > *left)
        return false;
    *left -= need;
    return true;
}

/* Leaves those of the plan that can run now. */
static uint32_t keep_ready(struct dispatch *d, uint32_t model, uint32_t n, uint64_t now_us)
{
    uint32_t n_ready = 0, n_fit = 0;
    for (uint32_t i = 0; i < n; i++)
        if (make_ready(d, &d->plan[i], now_us))
            d->plan[n_ready++] = d->plan[i];
    uint32_t left = kv_pool_available(d->config.models[model].pool);
    for (uint32_t i = 0; i < n_ready; i++)
        if (fits(d, &d->plan[i], &left))
            d->plan[n_fit++] = d->plan[i];
    return n_fit;
}

/* ---- one step ahead -------------------------------------------------------------------------- */

/* The step under way draws its last token: there is room for no other. */
static bool is_full(const struct engine_sequence *s)
{
    return s->kind == ENGINE_GENERATE && s->n_tokens + 1 >= s->max_tokens;
}

/* The pages that one more row takes, beyond those of the rows under way. */
static uint32_t pages_for_next(const struct engine_sequence *s)
{
    return kv_pool_pages_for(s->model->pool, (uint64_t)s->state.n_tokens + 1) - s->state.n_pages;
}

/* Behind the first n of d->plan, which are under way. */
static void go_ahead(struct dispatch *d, uint32_t model, uint32_t n)
{
    struct engine_model *m = &d->config.models[model];
    uint32_t n_next = 0, n_pages = 0;
    if (m->api->max_under_way < 2 || !sched_goes_on(d->sched, clock_us(), model, d->plan, n))
        return;
    for (uint32_t i = 0; i < n; i++) {
        struct engine_sequence *s = d->by_slot[d->plan[i].slot]->sequence;
        if (is_full(s))
            continue;
        if (!engine_sequence_follows(s))
            return;
        n_pages += pages_for_next(s);
        d->ahead.plan[n_next] = d->plan[i];
        d->work[n_next++] = (struct engine_work){s, 1};
    }
    if (n_next == 0 || n_pages > kv_pool_available(m->pool))
        return;
    /* If it cannot be submitted, then the step that is planned instead tells why. */
    d->ahead.under_way = engine_submit(m, d->work, n_next) == 0;
    d->ahead.model = model;
    d->ahead.n = n_next;
    d->metrics.steps_ahead += d->ahead.under_way;
}

/* Its turn has come: d->plan has those who are still in it; returns how many these are. */
static uint32_t take_ahead(struct dispatch *d)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < d->ahead.n; i++) {
        struct job *job = d->by_slot[d->ahead.plan[i].slot];
        if (job == NULL || !engine_sequence_under_way(job->sequence))
            continue; /* it ended, and the slot may be another's */
        if (job->stalled)
            engine_sequence_leave(job->sequence); /* its last token is not passed on yet */
        else
            d->plan[n++] = d->ahead.plan[i];
    }
    d->ahead.under_way = false;
    return n;
}

/* ---- the step -------------------------------------------------------------------------------- */

/* For who watches the engine: whom it waits for. */
static void set_stepping(struct dispatch *d, uint32_t model)
{
    atomic_store_explicit(&d->stepping, model, memory_order_relaxed);
}

/* late: what the last step gave is not published yet. */
static int submit(struct dispatch *d, uint32_t model, uint32_t n, bool late)
{
    struct engine_model *m = &d->config.models[model];
    for (uint32_t i = 0; i < n; i++)
        d->work[i] = (struct engine_work){d->by_slot[d->plan[i].slot]->sequence, d->plan[i].n_rows};
    if (late && !engine_model_works_alone(m))
        dispatch_publish(d); /* of another model's step */
    set_stepping(d, model);
    int rc = engine_submit(m, d->work, n);
    set_stepping(d, DISPATCH_NO_MODEL);
    return rc;
}

/* The step under way has its end, and all that is done beside it. */
static void finish(struct dispatch *d, uint32_t model, uint32_t n, uint64_t from_us, bool late)
{
    struct engine_model *m = &d->config.models[model];
    go_ahead(d, model, n);
    if (late)
        dispatch_publish(d);
    set_stepping(d, model);
    int rc = engine_collect(m);
    set_stepping(d, DISPATCH_NO_MODEL);
    d->collected_us = clock_us();
    if (rc < 0) {
        step_failed(d, m, n, rc);
        return;
    }
    dispatch_count_step(d, model, n, from_us, d->collected_us);
    for (uint32_t i = 0; i < n; i++)
        after_step(d, d->by_slot[d->plan[i].slot], d->plan[i].n_rows, d->collected_us);
    d->late = engine_model_works_alone(m) && !d->ahead.under_way;
}

bool dispatch_step(struct dispatch *d)
{
    uint32_t model = d->ahead.model, n;
    uint64_t from = clock_us();
    bool late = d->late;
    d->late = false; /* without a step the caller publishes at once */
    if (d->ahead.under_way) {
        n = take_ahead(d);
        finish(d, model, n, d->collected_us, late);
        return true;
    }
    dispatch_relieve(d, from);
    n = sched_plan(d->sched, from, &model, d->plan, INFER_STEP_SEQS_MAX);
    if (n == 0)
        return dispatch_make_room(d);
    n = keep_ready(d, model, n, from);
    if (n == 0)
        return true;
    int rc = submit(d, model, n, late);
    if (rc < 0)
        step_failed(d, &d->config.models[model], n, rc);
    else
        finish(d, model, n, from, late && engine_model_works_alone(&d->config.models[model]));
    return true;
}
