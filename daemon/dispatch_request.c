/* dispatch_request.c: from a record on a ring to a job that is prepared, and a job's end. */
#include "dispatch_internal.h"

#include "base/clock.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- a job's place in the daemon ------------------------------------------------------------- */

uint64_t dispatch_held_bytes(const struct dispatch *d)
{
    return d->held_bytes + conversations_bytes(d->conversations);
}

void dispatch_hold_bytes(struct dispatch *d, struct job *job)
{
    uint64_t now = job->ask.payload != NULL ? job->payload_bytes : 0;
    now += job->result != NULL ? job->result_bytes : 0;
    now += job->snapshot != NULL ? sizeof *job->snapshot : 0;
    d->held_bytes += now - job->held_bytes;
    job->held_bytes = now;
}

void dispatch_link(struct client *client, struct job *job)
{
    job->client = client;
    job->next = client->jobs;
    if (job->next != NULL)
        job->next->previous = job;
    client->jobs = job;
    client->n_jobs++;
}

static void unlink_job(struct job *job)
{
    if (job->previous != NULL)
        job->previous->next = job->next;
    else
        job->client->jobs = job->next;
    if (job->next != NULL)
        job->next->previous = job->previous;
    job->client->n_jobs--;
    job->client = NULL;
    job->next = job->previous = NULL;
}

/* Takes the job out of every list and frees it, at once or, while it is being prepared, as soon as
 * the preparing thread gives it back. */
void dispatch_drop(struct dispatch *d, struct job *job)
{
    dispatch_count_dropped(d, job);
    dispatch_leave_queue(d, job);
    if (job->stalled)
        dispatch_clear_stalled(d, job);
    unlink_job(job);
    d->held_bytes -= job->held_bytes;
    job->held_bytes = 0;
    if (job->phase == JOB_PREPARING)
        return; /* its past and its model are being read */
    dispatch_put_conversation(d, job);
    dispatch_forget_saved(d, job);
    dispatch_release_model(d, job);
    job_free(job);
}

void dispatch_finish(struct dispatch *d, struct job *job, uint32_t finish, int code,
                     const char *text)
{
    d->n_failed += code != 0 && job->answer == 0;
    dispatch_leave_queue(d, job);
    job_finish(job, finish, code, text);
    dispatch_count_ended(d, job);
    if (job->answers != NULL && !job->answers->prompt_ran)
        dispatch_finish_others(d, job, finish, code, text);
    dispatch_put_conversation(d, job);
    dispatch_forget_saved(d, job);
    if (job->sequence != NULL) /* whatever the client has still to read */
        engine_sequence_end(job->sequence);
    dispatch_release_model(d, job);
    dispatch_hold_bytes(d, job);
    dispatch_flush(d, job);
}

/* ---- preparing ------------------------------------------------------------------------------- */

void dispatch_prepared(struct dispatch *d, struct job *job)
{
    job->phase = JOB_DRAINING;
    if (job->client == NULL) { /* its client went away meanwhile */
        dispatch_put_conversation(d, job);
        dispatch_forget_saved(d, job);
        dispatch_release_model(d, job);
        job_free(job);
        return;
    }
    dispatch_hold_bytes(d, job);
    if (job->cancelled)
        dispatch_finish(d, job, job->cancel_code ? INFER_FINISH_ERROR : INFER_FINISH_CANCEL,
                        job->cancel_code, NULL);
    else if (job->report.code != 0)
        dispatch_finish(d, job, INFER_FINISH_ERROR, job->report.code, NULL);
    else if (job->ask.op == INFER_ABI_GENERATE || job->ask.op == INFER_ABI_SCORE)
        dispatch_queue(d, job);
    else
        dispatch_finish(d, job, INFER_FINISH_NONE, 0, NULL);
}

void dispatch_prepare(struct dispatch *d, struct job *job)
{
    if (job->model != NULL) /* METRICS has none */
        dispatch_use_model(d, job);
    job->phase = JOB_PREPARING;
    bool is_long = job->payload_bytes > DISPATCH_INLINE_BYTES_MAX || job->snapshot != NULL;
    if (d->started && is_long &&
        dispatch_send(&d->prepare, (struct message){.kind = MESSAGE_PREPARED, .job = job}) == 0)
        return;
    job_prepare(job);
    dispatch_prepared(d, job);
}

/* ---- ending ---------------------------------------------------------------------------------- */

static struct job *find_job(const struct client *client, uint32_t request)
{
    struct job *job = client->jobs;
    while (job != NULL && job->request != request)
        job = job->next;
    return job;
}

/* Ends a request that is not over yet, all its answers; their jobs may be freed. */
static void end_jobs(struct dispatch *d, struct client *client, uint32_t request, int code,
                     const char *text)
{
    struct job *job = client->jobs;
    while (job != NULL) {
        if (job->request == request && job->phase == JOB_PREPARING)
            job->cancelled = true;
        if (job->request == request && (job->phase == JOB_HELD || job->phase == JOB_RUNNING)) {
            dispatch_finish(d, job, INFER_FINISH_CANCEL, code, text);
            job = client->jobs; /* which of them are left? */
        } else {
            job = job->next;
        }
    }
}

/* Ends another request by its daemon-wide id. Who may not end it does not learn that it exists. */
static void end_request(struct dispatch *d, struct job *job)
{
    uid_t uid = session_peer(job->client->session)->uid;
    bool any = uid == 0 || uid == geteuid();
    for (struct client *client = d->clients; client != NULL; client = client->next)
        for (struct job *other = client->jobs; other != NULL; other = other->next) {
            if (other->id != job->ask.target || other == job ||
                !(any || session_peer(client->session)->uid == uid))
                continue;
            end_jobs(d, client, other->request, INFER_E_CANCELLED, "it was ended by its id");
            dispatch_finish(d, job, INFER_FINISH_NONE, 0, NULL);
            return;
        }
    dispatch_finish(d, job, INFER_FINISH_ERROR, INFER_E_NOT_FOUND, "no request has this id");
}

/* What is answered without tokens: 1 when the job was finished here. */
static int answer_at_once(struct dispatch *d, struct job *job)
{
    int rc = 0;
    switch (job->ask.op) {
    case INFER_ABI_STATUS:
        rc = dispatch_status(d, job);
        break;
    case INFER_ABI_MODELS:
        rc = dispatch_models(d, job);
        break;
    case INFER_ABI_METRICS:
        rc = dispatch_metrics(d, job);
        if (rc < 0)
            break;
        dispatch_hold_bytes(d, job);
        dispatch_prepare(d, job);
        return 1;
    case INFER_ABI_TOPOLOGY: /* reads files, so it is for the preparing thread */
        job->phase = JOB_PREPARING;
        if (d->started &&
            dispatch_send(&d->prepare, (struct message){.kind = MESSAGE_PREPARED, .job = job}) == 0)
            return 1;
        dispatch_draw_topology(d, job);
        dispatch_prepared(d, job);
        return 1;
    case INFER_ABI_END:
        job->phase = JOB_DRAINING;
        end_request(d, job);
        return 1;
    case INFER_ABI_FORGET:
        job->phase = JOB_DRAINING;
        dispatch_forget_conversation(d, job);
        return 1;
    default:
        return 0;
    }
    dispatch_finish(d, job, rc < 0 ? INFER_FINISH_ERROR : INFER_FINISH_NONE, -rc, NULL);
    return 1;
}

/* limit: METRICS_LIMITS when it was none. */
static void refuse(struct dispatch *d, struct job *job, int code, const char *text,
                   enum metrics_limit limit)
{
    if (limit != METRICS_LIMITS)
        dispatch_count_refused(d, job, limit);
    job->phase = JOB_DRAINING;
    dispatch_finish(d, job, INFER_FINISH_ERROR, code, text);
}

/* ---- records --------------------------------------------------------------------------------- */

/* The job that stands for a record, admitted or not; NULL only when memory is out. */
static struct job *new_job(struct dispatch *d, struct client *client, struct session_request *r)
{
    struct admit_request ask = {0};
    struct report report = {0};
    if (r->error != 0)
        report_fail(&report, r->error, "the request holds %u bytes or more, %u is the most",
                    r->payload_bytes, INFER_REQUEST_BYTES_MAX);
    else if (r->kind != INFER_ABI_SUBMIT)
        report_fail(&report, INFER_E_UNSUPPORTED, "record kind %u is not known", r->kind);
    else
        admit_parse(r, &ask, &report);
    ask.request = r->request;
    struct job *job = job_new(&ask);
    if (job == NULL) {
        admit_done(&ask);
        free(r->payload);
        return NULL;
    }
    job->report = report;
    job->payload_bytes = r->payload_bytes;
    job->id = ++d->next_id;
    job->admitted_us = clock_us();
    job->priority = job->ask.priority;
    if (job->ask.deadline_ms != 0)
        job->deadline_us = job->admitted_us + 1000ull * job->ask.deadline_ms;
    dispatch_link(client, job);
    dispatch_hold_bytes(d, job);
    d->n_requests++;
    dispatch_count_asked(d, job);
    return job;
}

static uint32_t answers_of(const struct job *job)
{
    return job->ask.n_answers > 1 ? job->ask.n_answers : 1;
}

/* Idle conversations go before a request is refused. */
static bool has_memory(struct dispatch *d)
{
    while (dispatch_held_bytes(d) > DISPATCH_HELD_BYTES_MAX)
        if (!conversations_forget_oldest(d->conversations, NULL, NULL))
            return false;
    return true;
}

static void submit(struct dispatch *d, struct client *client, struct session_request *r)
{
    uint32_t n_before = client->n_jobs;
    struct job *job = new_job(d, client, r);
    if (job == NULL) {
        client->closed = true;
        session_close(client->session, INFER_E_OUT_OF_MEMORY);
    } else if (job->report.code != 0) {
        refuse(d, job, job->report.code, NULL, METRICS_LIMITS);
    } else if (d->stopping) {
        refuse(d, job, INFER_E_SHUTDOWN, "the daemon is stopping", METRICS_LIMITS);
    } else if (n_before + answers_of(job) > INFER_SESSION_REQUESTS_MAX) {
        refuse(d, job, INFER_E_QUEUE_FULL,
               "256 requests of this connection, or answers of them, are unfinished",
               METRICS_LIMIT_CONNECTION);
    } else if (!has_memory(d)) {
        refuse(d, job, INFER_E_QUEUE_FULL, "the daemon holds 256 MiB of requests already",
               METRICS_LIMIT_MEMORY);
    } else if (!answer_at_once(d, job)) { /* who looks or ends others may do so to the last */
        if (d->draining)
            refuse(d, job, INFER_E_SHUTDOWN, "the daemon is stopping", METRICS_LIMITS);
        else if (dispatch_choose_model(d, job) < 0 || dispatch_take_conversation(d, job) < 0)
            refuse(d, job, job->report.code, NULL, METRICS_LIMITS);
        else if (dispatch_await_model(d, job))
            dispatch_prepare(d, job);
    }
}

bool dispatch_poll(struct dispatch *d, struct client *client)
{
    bool any = false;
    for (uint32_t i = 0; i < DISPATCH_POLLS_PER_TURN && !client->closed; i++) {
        /* Who leaves twice the limit unread is not read either: his ring fills, his submit waits.
         */
        if (client->n_jobs >= 2 * INFER_SESSION_REQUESTS_MAX)
            break;
        struct session_request r;
        int rc = session_poll(client->session, &r);
        if (rc == 0)
            break;
        any = true;
        if (rc > 0 && r.kind == INFER_ABI_CANCEL) {
            end_jobs(d, client, r.request, 0, NULL);
        } else if (rc > 0 && find_job(client, r.request) == NULL) {
            submit(d, client, &r);
        } else {
            if (rc > 0)
                free(r.payload);
            client->closed = true;
            session_close(client->session, INFER_E_PROTOCOL);
        }
    }
    return any;
}
