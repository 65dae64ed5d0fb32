/* dispatch_queue.c: a job's way into the scheduler.
 *
 * Several answers. Their prompt runs once, for the first answer. The others are HELD until it has
 * run, then each joins as a sequence that shares its pages. They count as waiting from the start,
 * so that a request is admitted with all its answers or refused as a whole. If the first one ends
 * before its prompt has run, the others end as it does.
 *
 * Limits. Over a limit of its user a request is refused, or, when it asked to WAIT, HELD and tried
 * again when somebody leaves the scheduler and ten times a second. Of one user those that wait go
 * in the order in which they came.
 *
 * The list of held jobs has them in order of arrival; there are at most INFER_SEQUENCES_MAX jobs in
 * it and in the scheduler together. */
#include "dispatch_internal.h"

#include "base/clock.h"
#include "base/log.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

/* Users of whom one was tried in vain that a round remembers; more are tried without need. */
#define FAILED_USERS_MAX 64u

static uint32_t uid_of(const struct job *job)
{
    return session_peer(job->client->session)->uid;
}

/* ---- users ----------------------------------------------------------------------------------- */

static const struct special_user *find_user(const struct dispatch *d, uint32_t uid)
{
    for (uint32_t i = 0; i < d->n_users; i++)
        if (d->users[i].uid == uid)
            return &d->users[i];
    return NULL;
}

int dispatch_special_user(struct dispatch *d, uint32_t uid, struct special_user **ret)
{
    struct special_user *user = (struct special_user *)find_user(d, uid);
    if (user == NULL) {
        if (d->n_users == DISPATCH_USERS_MAX)
            return -ENOSPC;
        struct special_user *grown = realloc(d->users, (d->n_users + 1) * sizeof *grown);
        if (grown == NULL)
            return -ENOMEM;
        d->users = grown;
        user = &d->users[d->n_users++];
        *user = (struct special_user){.uid = uid};
    }
    *ret = user;
    return 0;
}

/* Uids are domains below 2^32, shared domains are above. */
uint64_t dispatch_domain(const struct dispatch *d, uint32_t uid)
{
    const struct special_user *user = find_user(d, uid);
    uint32_t shared = user != NULL && user->has_domain ? user->domain : d->config.shared_domain;
    return shared != 0 ? UINT64_C(1) << 32 | shared : uid;
}

static uint32_t max_waiting(const struct dispatch *d, uint32_t uid)
{
    const struct special_user *user = find_user(d, uid);
    uint32_t max =
        user != NULL && user->has_policy ? user->max_waiting : d->config.policy.max_waiting;
    return max != 0 ? max : UINT32_MAX;
}

void dispatch_take_limits(struct dispatch *d, const struct dispatch_limits *limits)
{
    d->config.slow_preempt_us = limits->slow_preempt_us;
    d->config.slow_cancel_us = limits->slow_cancel_us;
    d->config.policy = limits->policy;
    d->config.shared_domain = limits->shared_domain;
    conversations_set_idle(d->conversations, limits->conversation_idle_us);
    uint64_t park_us = limits->slow_preempt_us;
    sched_set_default(d->sched, &limits->policy,
                      park_us < UINT32_MAX ? (uint32_t)park_us : UINT32_MAX);
    for (uint32_t i = 0; i < d->n_users; i++)
        sched_set_policy(d->sched, d->users[i].uid, NULL);
    d->n_users = 0;
    for (uint32_t i = 0; i < limits->n_users; i++)
        if (dispatch_set_policy(d, limits->users[i].uid, &limits->users[i].policy) < 0 ||
            dispatch_set_domain(d, limits->users[i].uid, limits->users[i].domain) < 0)
            log_warning("user %u: too many users are active; the default policy stands",
                        limits->users[i].uid);
    d->retry_held = true;
}

/* ---- the list of those that are held --------------------------------------------------------- */

void dispatch_hold(struct dispatch *d, struct job *job, enum job_hold why)
{
    struct job **at = &d->held;
    while (*at != NULL)
        at = &(*at)->next_held;
    *at = job;
    job->next_held = NULL;
    job->phase = JOB_HELD;
    job->hold = why;
    d->n_held++;
}

void dispatch_unhold(struct dispatch *d, struct job *job)
{
    struct job **at = &d->held;
    while (*at != job)
        at = &(*at)->next_held;
    *at = job->next_held;
    job->next_held = NULL;
    job->hold = JOB_HOLD_NONE;
    d->n_held--;
}

void dispatch_leave_queue(struct dispatch *d, struct job *job)
{
    if (job->slot != JOB_NO_SLOT) {
        sched_remove(d->sched, job->slot);
        d->by_slot[job->slot] = NULL;
        job->slot = JOB_NO_SLOT;
        d->retry_held = true;
    }
    if (job->hold == JOB_HOLD_MODEL)
        d->slots[job->model_index].n_waiting--;
    if (job->hold != JOB_HOLD_NONE)
        dispatch_unhold(d, job);
}

bool dispatch_has_room(const struct dispatch *d)
{
    struct sched_counts counts = sched_count(d->sched);
    return counts.n_waiting + counts.n_running + d->n_held < INFER_SEQUENCES_MAX;
}

/* ---- into the scheduler ---------------------------------------------------------------------- */

static enum sched_class class_of(uint32_t priority)
{
    return priority == INFER_PRIORITY_INTERACTIVE ? SCHED_CLASS_INTERACTIVE
           : priority == INFER_PRIORITY_BATCH     ? SCHED_CLASS_BATCH
                                                  : SCHED_CLASS_NORMAL;
}

/* Jobs of a user that have not started: in the scheduler, or held for their prompt. */
static uint32_t count_waiting(const struct dispatch *d, uint32_t uid)
{
    uint32_t n = 0;
    for (const struct client *client = d->clients; client != NULL; client = client->next) {
        if (session_peer(client->session)->uid != uid)
            continue;
        for (const struct job *job = client->jobs; job != NULL; job = job->next)
            n += (job->phase == JOB_RUNNING && job->started_us == 0) ||
                 (job->phase == JOB_HELD && job->hold == JOB_HOLD_PROMPT && !job->answers->held);
    }
    return n;
}

/* Room for n answers, of which the scheduler sees one for now. */
static int check_room(const struct dispatch *d, const struct job *job, uint32_t n,
                      enum sched_limit *ret_limit)
{
    struct sched_counts counts = sched_count(d->sched);
    if (counts.n_waiting + counts.n_running + d->n_held + n > INFER_SEQUENCES_MAX)
        return -ENOSPC;
    if (n == 1 && d->n_held == 0)
        return 0; /* the scheduler counts for itself */
    uint32_t uid = uid_of(job), max = max_waiting(d, uid);
    if (max == UINT32_MAX || count_waiting(d, uid) + n <= max)
        return 0;
    *ret_limit = SCHED_LIMIT_WAITING;
    return -EDQUOT;
}

static int enter(struct dispatch *d, struct job *job, uint64_t now_us, enum sched_limit *ret_limit)
{
    const struct engine_sequence *s = job->sequence;
    struct sched_request r = {.model = job->model_index,
                              .uid = uid_of(job),
                              .n_rows = engine_sequence_rows(s),
                              .n_pages = engine_sequence_pages(s),
                              .n_held = (uint32_t)(s->n_cached - s->n_slid),
                              .away = s->saved,
                              .class = class_of(job->priority),
                              .deadline_us = job->deadline_us};
    uint32_t slot;
    int rc = sched_add(d->sched, &r, now_us, &slot, ret_limit);
    if (rc < 0)
        return rc;
    job->slot = slot;
    job->phase = JOB_RUNNING;
    d->by_slot[slot] = job;
    if (job->stalled)
        sched_park(d->sched, slot);
    uint64_t start = sched_estimate_us(d->sched, slot, now_us);
    job->start_us = start > now_us ? start - now_us : 0;
    job->position = sched_position(d->sched, slot);
    return 0;
}

/* What the scheduler did not take, as an error with the limit's name. */
static void refuse(struct dispatch *d, struct job *job, int rc, enum sched_limit limit)
{
    static const char *const names[] = {"", "waiting requests", "tokens a minute", "users at once"};
    char text[INFER_DETAIL_MAX];
    int code = INFER_E_QUEUE_FULL;

    dispatch_count_refused(d, job,
                           rc == -E2BIG                   ? METRICS_LIMIT_PAGES
                           : rc != -EDQUOT                ? METRICS_LIMIT_SEQUENCES
                           : limit == SCHED_LIMIT_TOKENS  ? METRICS_LIMIT_TOKENS
                           : limit == SCHED_LIMIT_WAITING ? METRICS_LIMIT_WAITING
                                                          : METRICS_LIMIT_USERS);
    if (rc == -E2BIG) {
        code = INFER_E_NO_MEMORY;
        snprintf(
            text, sizeof text,
            "it may need %u pages of sequence state, there are %u, and a policy may allow less; "
            "ask for fewer tokens or start the daemon with a larger --state-memory",
            engine_sequence_pages(job->sequence), job->model->state.n_pages);
    } else if (rc == -EDQUOT) {
        code = INFER_E_QUOTA;
        snprintf(text, sizeof text, "the limit of %s is reached%s", names[limit],
                 limit == SCHED_LIMIT_TOKENS ? "; wait a minute" : "");
    } else {
        snprintf(text, sizeof text, "%u requests are known already", INFER_SEQUENCES_MAX);
    }
    dispatch_finish(d, job, INFER_FINISH_ERROR, code, text);
}

/* Does one of this user wait for a limit? */
static bool has_held(const struct dispatch *d, uint32_t uid)
{
    for (const struct job *job = d->held; job != NULL; job = job->next_held)
        if (job->hold == JOB_HOLD_LIMIT && uid_of(job) == uid)
            return true;
    return false;
}

/* In, or held for a limit, or refused (negative). */
static int enter_or_hold(struct dispatch *d, struct job *job, uint32_t n)
{
    enum sched_limit limit = SCHED_LIMIT_NONE;
    uint64_t now = job->admitted_us;
    bool waits = job->ask.flags & INFER_ABI_WAIT;
    uint32_t uid = uid_of(job);
    int rc = check_room(d, job, n, &limit);
    if (rc == 0 && waits && has_held(d, uid))
        rc = -EDQUOT;
    if (rc == 0)
        rc = enter(d, job, now, &limit);
    if (rc == -EDQUOT && waits && n <= max_waiting(d, uid)) {
        uint64_t start = sched_quota_us(d->sched, uid, engine_sequence_rows(job->sequence), now);
        job->start_us = start > now ? start - now : 0;
        job->position = sched_count(d->sched).n_waiting + d->n_held;
        dispatch_hold(d, job, JOB_HOLD_LIMIT);
        rc = 0;
    }
    if (rc < 0)
        refuse(d, job, rc, limit);
    return rc;
}

static int add_others(struct dispatch *d, struct job *job)
{
    struct job *others[INFER_ANSWERS_MAX];
    uint32_t n = job->ask.n_answers;
    assert(n <= INFER_ANSWERS_MAX);
    int rc = job_start_others(job, dispatch_domain(d, uid_of(job)), others);
    for (uint32_t i = 0; i + 1 < n && rc == 0; i++) {
        dispatch_link(job->client, others[i]);
        dispatch_hold(d, others[i], JOB_HOLD_PROMPT);
        dispatch_use_model(d, others[i]);
    }
    if (rc == 0)
        job->answers->held = job->phase == JOB_HELD;
    return rc;
}

void dispatch_queue(struct dispatch *d, struct job *job)
{
    uint32_t n = job->ask.n_answers > 1 ? job->ask.n_answers : 1;
    if (job_start(job, dispatch_domain(d, uid_of(job))) < 0) {
        dispatch_finish(d, job, INFER_FINISH_ERROR, job->report.code, NULL);
        return;
    }
    bool generates = job->ask.op == INFER_ABI_GENERATE;
    if (engine_sequence_rows(job->sequence) == 0) {
        job->queued_due = generates;
        dispatch_finish(d, job, INFER_FINISH_NONE, 0, NULL);
        return;
    }
    if (enter_or_hold(d, job, n) < 0)
        return;
    if (n > 1 && add_others(d, job) < 0) {
        dispatch_finish(d, job, INFER_FINISH_ERROR, job->report.code, NULL);
        return;
    }
    job_started(job);
    dispatch_hold_bytes(d, job);
    job->wants_queue = job->queued_due = generates;
    dispatch_flush(d, job);
}

/* ---- those that are held --------------------------------------------------------------------- */

void dispatch_prompt_ran(struct dispatch *d, struct job *job)
{
    struct answers *answers = job->answers;
    if (answers == NULL || answers->prompt_ran)
        return;
    answers->prompt_ran = true;
    d->retry_held = true;
    for (struct job *other = d->held; other != NULL; other = other->next_held)
        if (other->answers == answers)
            other->hold = JOB_HOLD_LIMIT;
}

void dispatch_finish_others(struct dispatch *d, struct job *job, uint32_t finish, int code,
                            const char *text)
{
    struct answers *answers = job->answers;
    answers->prompt_ran = true;
    for (struct job *other = d->held; other != NULL;) {
        if (other->answers == answers && other != job) {
            dispatch_finish(d, other, finish, code, code != 0 ? job->report.text : text);
            other = d->held; /* the list has changed */
        } else {
            other = other->next_held;
        }
    }
}

static bool is_in(const uint32_t *uids, uint32_t n, uint32_t uid)
{
    for (uint32_t i = 0; i < n; i++)
        if (uids[i] == uid)
            return true;
    return false;
}

void dispatch_retry_held(struct dispatch *d, uint64_t now_us)
{
    uint32_t failed[FAILED_USERS_MAX], n_failed = 0;
    d->retry_held = false;
    for (struct job *job = d->held, *next; job != NULL; job = next) {
        enum sched_limit limit = SCHED_LIMIT_NONE;
        next = job->next_held;
        if (job->hold != JOB_HOLD_LIMIT || is_in(failed, n_failed, uid_of(job)))
            continue;
        dispatch_unhold(d, job); /* so that it does not stand in its own way */
        /* Its other answers count as waiting already, unless they came with it and do not yet. */
        bool all = job->answers != NULL && job->answers->held;
        int rc = check_room(d, job, all ? job->answers->n : 1, &limit);
        if (rc == 0)
            rc = enter(d, job, now_us, &limit);
        if (rc == 0) {
            if (all)
                job->answers->held = false;
            continue;
        }
        if (rc == -E2BIG) { /* waiting does not make it smaller */
            refuse(d, job, rc, limit);
            next = d->held; /* its other answers ended with it */
            continue;
        }
        struct job **at = &d->held;
        while (*at != next)
            at = &(*at)->next_held;
        *at = job;
        job->next_held = next;
        job->hold = JOB_HOLD_LIMIT;
        d->n_held++;
        if (n_failed < FAILED_USERS_MAX)
            failed[n_failed++] = uid_of(job);
    }
}

void dispatch_tick_held(struct dispatch *d, uint64_t now_us)
{
    for (struct job *job = d->held; job != NULL;) {
        if (job->deadline_us == 0 || now_us <= job->deadline_us) {
            struct job *next = job->next_held;
            if (job->hold == JOB_HOLD_MODEL)
                dispatch_tell_waiting(d, job, now_us);
            job = next;
            continue;
        }
        dispatch_finish(d, job, INFER_FINISH_ERROR, INFER_E_DEADLINE,
                        "it waited until its deadline");
        job = d->held; /* others may have ended with it */
    }
}
