/* dispatch_models.c: models that come and go, and who waits for them.
 *
 * Loading and unloading are the event thread's business (models.c); the hub hears what a model is
 * (dispatch_set_model), says when a request wants one that is not loaded, and lets go of one that
 * is to leave once its last request has ended. A model's engine is touched while it is `live` and
 * at no other time: from READY until the news say that it left.
 *
 * A request for a model that is not loaded is HELD until the model is READY, FAILED or gone. What
 * uses a model is counted: a job from its preparation on until it is over, whatever its client has
 * still to read then. A conversation's past that is tokens alone outlives the model; one that holds
 * pages, or a state in the store, is forgotten with it (dispatch_conversations.c).
 *
 * Threads: the engine's, but for dispatch_take_news() and dispatch_model_idle_since(). */
#include "dispatch_internal.h"

#include "base/clock.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

static void post_news(struct dispatch *d)
{
    if (d->config.on_models != NULL)
        loop_post(d->config.loop, d->config.on_models, d->config.models_ctx);
}

struct dispatch_news dispatch_take_news(struct dispatch *d)
{
    return (struct dispatch_news){.wanted = atomic_exchange(&d->wanted, 0),
                                  .left = atomic_exchange(&d->left, 0),
                                  .stayed = atomic_exchange(&d->stayed, 0)};
}

uint64_t dispatch_model_idle_since(const struct dispatch *d, uint32_t index)
{
    return atomic_load_explicit(&d->slots[index].idle_since_us, memory_order_acquire);
}

/* ---- who uses it ----------------------------------------------------------------------------- */

static void set_idle_since(struct model_slot *slot, uint64_t us)
{
    atomic_store_explicit(&slot->idle_since_us, us, memory_order_release);
}

void dispatch_use_model(struct dispatch *d, struct job *job)
{
    struct model_slot *slot = &d->slots[job->model_index];
    assert(slot->live && !job->uses_model);
    job->uses_model = true;
    slot->n_uses++;
    set_idle_since(slot, 0);
}

void dispatch_release_model(struct dispatch *d, struct job *job)
{
    if (!job->uses_model)
        return;
    struct model_slot *slot = &d->slots[job->model_index];
    assert(slot->n_uses > 0);
    job->uses_model = false;
    if (--slot->n_uses == 0)
        set_idle_since(slot, clock_us());
}

/* ---- which one ------------------------------------------------------------------------------- */

int dispatch_choose_model(struct dispatch *d, struct job *job)
{
    char served[INFER_DETAIL_MAX / 2] = "none";
    size_t n = 0;
    if (job->ask.conversation != 0)
        return 0; /* the conversation says */
    for (uint32_t i = 0; i < d->config.n_models; i++) {
        const struct dispatch_model *m = &d->slots[i].is;
        if (m->state == DISPATCH_MODEL_NONE)
            continue;
        if (n < sizeof served)
            n += (size_t)snprintf(served + n, sizeof served - n, "%s%s", n ? ", " : "",
                                  m->about.name);
        if (job->ask.model[0] != '\0' && strcmp(job->ask.model, m->about.name) != 0)
            continue;
        job->model = &d->config.models[i];
        job->model_index = i;
        return 0;
    }
    return report_fail(&job->report, INFER_E_UNKNOWN_MODEL, "'%s' is not served; served: %s",
                       job->ask.model, served);
}

/* ---- waiting for it -------------------------------------------------------------------------- */

static void want(struct dispatch *d, uint32_t index)
{
    atomic_fetch_or(&d->wanted, 1u << index);
    post_news(d);
}

static void end(struct dispatch *d, struct job *job, int code, const char *text)
{
    dispatch_finish(d, job, INFER_FINISH_ERROR, code, text);
}

bool dispatch_await_model(struct dispatch *d, struct job *job)
{
    struct model_slot *slot = &d->slots[job->model_index];
    const struct dispatch_model *m = &slot->is;
    if (m->state == DISPATCH_MODEL_READY)
        return true;
    if (m->state == DISPATCH_MODEL_FAILED && clock_us() < m->retry_us) {
        end(d, job, m->report.code, m->report.text);
        return false;
    }
    if (dispatch_has_state(job)) { /* LEAVING: waiting for its end would keep pages from it */
        end(d, job, INFER_E_UNLOADED,
            "its model leaves, and with it the conversation, whose window has slid");
        return false;
    }
    if (!dispatch_has_room(d)) {
        char text[INFER_DETAIL_MAX];
        snprintf(text, sizeof text, "%u requests are known already", INFER_SEQUENCES_MAX);
        end(d, job, INFER_E_QUEUE_FULL, text);
        return false;
    }
    dispatch_hold(d, job, JOB_HOLD_MODEL);
    job->position = slot->n_waiting++;
    job->start_us = m->load_us;
    job->queued_due = job->ask.op == INFER_ABI_GENERATE;
    job->told_us = clock_us();
    if (m->state == DISPATCH_MODEL_LISTED || m->state == DISPATCH_MODEL_FAILED)
        want(d, job->model_index);
    dispatch_flush(d, job);
    return false;
}

/* A client that hears nothing for long takes the daemon for dead. */
void dispatch_tell_waiting(struct dispatch *d, struct job *job, uint64_t now_us)
{
    if (now_us - job->told_us < DISPATCH_WAITING_NEWS_US || job->stalled)
        return;
    job->told_us = now_us;
    job->start_us = d->slots[job->model_index].is.load_us;
    job->queued_due = true;
    dispatch_flush(d, job);
}

static struct job *first_waiting(const struct dispatch *d, uint32_t index)
{
    struct job *job = d->held;
    while (job != NULL && (job->hold != JOB_HOLD_MODEL || job->model_index != index))
        job = job->next_held;
    return job;
}

/* They may be freed, and others with them: the list is walked anew after each. */
static void end_waiting(struct dispatch *d, uint32_t index, int code, const char *text)
{
    for (struct job *job; (job = first_waiting(d, index)) != NULL;)
        end(d, job, code, text);
}

static void go_on(struct dispatch *d, uint32_t index)
{
    uint64_t now = clock_us();
    for (struct job *job; (job = first_waiting(d, index)) != NULL;) {
        if (job->deadline_us != 0 && now > job->deadline_us) {
            end(d, job, INFER_E_DEADLINE, "it waited until its deadline");
            continue;
        }
        dispatch_leave_queue(d, job);
        dispatch_prepare(d, job);
    }
}

/* ---- coming and going ------------------------------------------------------------------------ */

static void size_swap(struct dispatch *d)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < d->config.n_models; i++)
        if (d->slots[i].live)
            bytes += d->config.models[i].memory.page_bytes * d->config.models[i].state.n_pages;
    if (d->swap_derived)
        swap_set_memory(d->swap, bytes / DISPATCH_SWAP_SHARE);
}

/* Another file under the same name: its tokens are others. */
static void forget_other(struct dispatch *d, uint32_t index, uint64_t identity)
{
    struct model_slot *slot = &d->slots[index];
    if (slot->is.identity == identity)
        return;
    for (struct job *job = d->held, *next; job != NULL; job = next) {
        next = job->next_held;
        if (job->hold != JOB_HOLD_MODEL || job->model_index != index || !job->continues)
            continue;
        end(d, job, INFER_E_NOT_FOUND, "another model has taken the place of the conversation's");
        next = d->held;
    }
    dispatch_forget_model(d, index);
    d->prefill_ns[index] = 0;
}

static void make_live(struct dispatch *d, uint32_t index)
{
    struct model_slot *slot = &d->slots[index];
    assert(!slot->live && slot->n_uses == 0 && d->past_pages[index] == 0);
    slot->live = true;
    slot->seconds = (struct seconds){0};
    set_idle_since(slot, clock_us());
    sched_set_pages(d->sched, index, d->config.models[index].state.n_pages);
    sched_set_rows(d->sched, index, d->config.models[index].state.max_rows);
    size_swap(d);
}

void dispatch_first_models(struct dispatch *d)
{
    for (uint32_t i = 0; i < d->config.n_models; i++) {
        const struct engine_model *m = &d->config.models[i];
        struct dispatch_model *is = &d->slots[i].is;
        if (m->weights == NULL)
            continue;
        is->state = DISPATCH_MODEL_READY;
        snprintf(is->about.name, sizeof is->about.name, "%s", m->name);
        make_live(d, i);
    }
}

void dispatch_model_told(struct dispatch *d, uint32_t index, const struct dispatch_model *told)
{
    struct model_slot *slot = &d->slots[index];
    bool leaving = slot->is.state == DISPATCH_MODEL_LEAVING && slot->live;
    uint64_t identity = slot->is.identity;
    if (told->state == DISPATCH_MODEL_READY && !slot->live) {
        if (identity != 0)
            forget_other(d, index, told->identity);
        make_live(d, index);
    }
    if (told->state == DISPATCH_MODEL_READY)
        identity = told->identity;
    assert((told->state == DISPATCH_MODEL_READY) == slot->live || leaving);
    slot->is = *told;
    slot->is.identity = identity;
    if (leaving) /* until it has left; what it is then will be told again */
        slot->is.state = DISPATCH_MODEL_LEAVING;
    d->page_stale = true;
    switch (slot->is.state) {
    case DISPATCH_MODEL_READY:
        go_on(d, index);
        break;
    case DISPATCH_MODEL_FAILED:
        end_waiting(d, index, told->report.code, told->report.text);
        break;
    case DISPATCH_MODEL_NONE:
        end_waiting(d, index, told->report.code != 0 ? told->report.code : INFER_E_UNLOADED,
                    told->report.text);
        dispatch_forget_model(d, index);
        slot->is.identity = 0;
        break;
    case DISPATCH_MODEL_LISTED:
        if (slot->n_waiting > 0)
            want(d, index);
        break;
    default:
        break;
    }
}

static void end_users(struct dispatch *d, uint32_t index)
{
    static const char text[] = "its model was told to leave at once";
    for (struct client *client = d->clients; client != NULL; client = client->next)
        for (struct job *job = client->jobs; job != NULL;) {
            bool is = job->uses_model && job->model_index == index;
            if (is && job->phase == JOB_PREPARING && !job->cancelled) {
                job->cancelled = true;
                job->cancel_code = INFER_E_UNLOADED;
            }
            if (is && (job->phase == JOB_HELD || job->phase == JOB_RUNNING)) {
                end(d, job, INFER_E_UNLOADED, text);
                job = client->jobs; /* which of them are left? */
            } else {
                job = job->next;
            }
        }
}

void dispatch_model_leaves(struct dispatch *d, uint32_t index, enum dispatch_leave how)
{
    struct model_slot *slot = &d->slots[index];
    if (!slot->live || (how == DISPATCH_LEAVE_IDLE && slot->n_uses > 0)) {
        atomic_fetch_or(&d->stayed, 1u << index);
        post_news(d);
        return;
    }
    d->n_leaving += slot->is.state != DISPATCH_MODEL_LEAVING;
    slot->is.state = DISPATCH_MODEL_LEAVING;
    if (how == DISPATCH_LEAVE_NOW)
        end_users(d, index);
}

void dispatch_models_left(struct dispatch *d)
{
    for (uint32_t i = 0; i < d->config.n_models; i++) {
        struct model_slot *slot = &d->slots[i];
        if (!slot->live || slot->is.state != DISPATCH_MODEL_LEAVING || slot->n_uses > 0)
            continue;
        if (d->ahead.under_way && d->ahead.model == i) /* nobody is in it: it is over soon */
            continue;
        dispatch_forget_states(d, i);
        slot->live = false;
        d->n_leaving--;
        set_idle_since(slot, 0);
        sched_set_pages(d->sched, i, 0);
        sched_set_available(d->sched, i, 0);
        size_swap(d);
        atomic_fetch_or(&d->left, 1u << i);
        post_news(d);
    }
}
