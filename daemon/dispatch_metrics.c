/* dispatch_metrics.c: what the hub counts of a request on its way, and the copy that METRICS tells.
 *
 * A request counts once, also when it has several answers: what belongs to it as a whole (prompt,
 * waiting, outcome) is counted for its first answer, tokens for each.
 *
 * Cost on the step path: some ten plain stores per token and no call of the system. */
#include "dispatch_internal.h"

#include "devices.h"
#include "inferd/abi.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static bool wants_tokens(const struct job *job)
{
    return job->ask.op == INFER_ABI_GENERATE || job->ask.op == INFER_ABI_SCORE;
}

/* NULL: of nobody who is counted. */
static struct metrics_user *user_of(struct dispatch *d, const struct job *job)
{
    uint32_t i = job->client->metrics_user;
    return i != METRICS_USER_NONE ? &d->metrics.users[i] : NULL;
}

/* ---- a request's way ------------------------------------------------------------------------- */

void dispatch_count_asked(struct dispatch *d, struct job *job)
{
    struct client *client = job->client;
    if (!wants_tokens(job))
        return;
    if (client->metrics_user == METRICS_USER_NONE)
        client->metrics_user = metrics_user(&d->metrics, session_peer(client->session)->uid);
    d->metrics.users[client->metrics_user].requests++;
}

void dispatch_count_refused(struct dispatch *d, const struct job *job, enum metrics_limit limit)
{
    metrics_refused(&d->metrics, job->client->metrics_user, limit);
}

void dispatch_count_started(struct dispatch *d, const struct job *job)
{
    if (job->answer != 0)
        return;
    struct metrics_model *model = metrics_model(&d->metrics, job->model_index, job->model->name);
    struct metrics_user *user = user_of(d, job);
    uint64_t n_prompt = job->sequence->n_prompt;
    model->prompt_tokens += n_prompt;
    model->cached_tokens += job->n_found;
    if (user != NULL)
        user->prompt_tokens += n_prompt;
    metrics_add(&d->metrics.queue_wait[job->priority], job->started_us - job->admitted_us);
}

void dispatch_count_token(struct dispatch *d, const struct job *job, uint64_t now_us)
{
    struct metrics_model *model = &d->metrics.models[job->model_index];
    struct metrics_user *user = user_of(d, job);
    model->tokens++;
    if (user != NULL)
        user->tokens++;
    if (job->first_token_us != 0)
        metrics_add(&model->between_tokens, now_us - job->last_token_us);
    else if (job->answer == 0)
        metrics_add(&model->first_token, now_us - job->admitted_us);
}

void dispatch_count_ended(struct dispatch *d, const struct job *job)
{
    if (job->answer == 0)
        metrics_finished(&d->metrics, job->ask.op, job->finish, job->report.code);
}

/* Also called for what has ended: then it was counted. */
void dispatch_count_dropped(struct dispatch *d, const struct job *job)
{
    if (job->answer == 0 && job->phase != JOB_DRAINING)
        metrics_finished(&d->metrics, job->ask.op, METRICS_FINISH_ABANDONED, 0);
}

/* ---- the copy -------------------------------------------------------------------------------- */

static void count_waiting(const struct dispatch *d, struct metrics_snapshot *s)
{
    struct sched_counts counts = sched_count(d->sched);
    uint32_t n_left = counts.n_waiting + counts.n_running;
    for (uint32_t slot = 0; slot < INFER_SEQUENCES_MAX && n_left > 0; slot++) {
        const struct job *job = d->by_slot[slot];
        n_left -= job != NULL;
        if (job != NULL && job->started_us == 0)
            s->n_waiting[job->priority]++;
    }
    for (const struct job *job = d->held; job != NULL; job = job->next_held)
        s->n_waiting[job->priority]++;
}

_Static_assert(DEVICES_MAX <= METRICS_DEVICES_MAX, "each has a place");

static void copy_devices(const struct devices *from, struct metrics_snapshot *s)
{
    for (uint32_t i = 0; from != NULL && i < from->n; i++) {
        const struct device *d = &from->device[i];
        struct metrics_device *to = &s->devices[s->n_devices++];
        struct infer_device now = {0};
        d->backend.api->describe(d->backend.instance, &now);
        snprintf(to->name, sizeof to->name, "%s", d->name);
        snprintf(to->description, sizeof to->description, "%.63s", now.name);
        to->memory_bytes = now.memory;
        to->free_bytes = now.memory_free;
        to->models_bytes = atomic_load_explicit(&d->taken_bytes, memory_order_relaxed);
    }
}

int dispatch_metrics(struct dispatch *d, struct job *job)
{
    uint32_t uid = session_peer(job->client->session)->uid;
    struct metrics_snapshot *s = calloc(1, sizeof *s);
    if (s == NULL)
        return -INFER_E_OUT_OF_MEMORY;
    s->counters = d->metrics;
    metrics_show_users(s, uid == 0 || uid == geteuid(), uid);
    metrics_copy_loads(&s->loads, d->config.loads);
    copy_devices(d->config.devices, s);
    for (uint32_t i = 0; i < d->config.n_models; i++) {
        struct metrics_model_now *now = &s->models[s->n_models];
        if (!dispatch_describe_model(d, i, &now->info))
            continue;
        if (d->slots[i].live)
            now->pages = kv_pool_count(d->config.models[i].pool);
        s->n_models++;
    }
    dispatch_fill_status(d, &s->status);
    count_waiting(d, s);
    job->snapshot = s;
    return 0;
}
