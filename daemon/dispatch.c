/* dispatch.c: the engine thread's loop (see dispatch.h). */
#include "dispatch_internal.h"

#include "base/clock.h"
#include "base/log.h"
#include "inferd/ring.h"

#include <assert.h>
#include <errno.h>
#include <linux/futex.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* ---- messages -------------------------------------------------------------------------------- */

static void queue_init(struct message_queue *q)
{
    pthread_mutex_init(&q->lock, NULL);
    pthread_cond_init(&q->filled, NULL);
    q->last = &q->first;
}

static void queue_done(struct message_queue *q)
{
    assert(q->first == NULL);
    pthread_cond_destroy(&q->filled);
    pthread_mutex_destroy(&q->lock);
}

static void queue_append(struct message_queue *q, struct message *m)
{
    m->next = NULL;
    pthread_mutex_lock(&q->lock);
    *q->last = m;
    q->last = &m->next;
    atomic_store_explicit(&q->any, true, memory_order_release);
    pthread_cond_signal(&q->filled);
    pthread_mutex_unlock(&q->lock);
}

int dispatch_send(struct message_queue *q, struct message message)
{
    struct message *m = malloc(sizeof *m);
    if (m == NULL)
        return -ENOMEM;
    *m = message;
    queue_append(q, m);
    return 0;
}

static struct message *queue_take_all(struct message_queue *q, bool wait)
{
    if (!wait && !atomic_load_explicit(&q->any, memory_order_acquire))
        return NULL;
    pthread_mutex_lock(&q->lock);
    while (wait && q->first == NULL)
        pthread_cond_wait(&q->filled, &q->lock);
    struct message *all = q->first;
    q->first = NULL;
    q->last = &q->first;
    atomic_store_explicit(&q->any, false, memory_order_relaxed);
    pthread_mutex_unlock(&q->lock);
    return all;
}

void dispatch_wake(struct dispatch *d)
{
    atomic_fetch_add_explicit(&d->wake, 1, memory_order_seq_cst);
    if (atomic_load_explicit(&d->asleep, memory_order_seq_cst))
        syscall(SYS_futex, &d->wake, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

/* ---- a job's events -------------------------------------------------------------------------- */

static void set_stalled(struct dispatch *d, struct job *job)
{
    job->stalled = true;
    job->stalled_since_us = clock_us();
    job->next_stalled = d->stalled;
    d->stalled = job;
    if (job->slot != JOB_NO_SLOT)
        sched_park(d->sched, job->slot);
}

void dispatch_clear_stalled(struct dispatch *d, struct job *job)
{
    for (struct job **at = &d->stalled; *at != NULL; at = &(*at)->next_stalled)
        if (*at == job) {
            *at = job->next_stalled;
            break;
        }
    job->stalled = false;
    if (job->slot != JOB_NO_SLOT && !job->fetching)
        sched_resume(d->sched, job->slot);
}

/* Puts what is due; a full ring parks the job, DONE ends it. The job may be freed. */
void dispatch_flush(struct dispatch *d, struct job *job)
{
    struct client *client = job->client;
    if (client->closed)
        return;
    int rc = job_flush(job, client->session);
    if (rc == -EAGAIN) {
        if (!job->stalled)
            set_stalled(d, job);
    } else if (rc < 0) {
        client->closed = true;
        session_close(client->session, INFER_E_PROTOCOL);
    } else if (rc > 0) {
        dispatch_drop(d, job);
    } else if (job->stalled) {
        dispatch_clear_stalled(d, job);
    }
}

static void slow_reader(struct dispatch *d, struct job *job)
{
    char text[INFER_DETAIL_MAX];
    snprintf(text, sizeof text, "the token ring was full for %.3g seconds",
             (double)d->config.slow_cancel_us / 1e6);
    dispatch_finish(d, job, INFER_FINISH_ERROR, INFER_E_SLOW_READER, text);
}

/* The list changes when a job is flushed, and others of its request may go with one that ends: it
 * is walked anew after each that was ended. */
static bool flush_stalled_once(struct dispatch *d, uint64_t now_us)
{
    for (struct job *job = d->stalled, *next; job != NULL; job = next) {
        next = job->next_stalled;
        bool runs = job->phase == JOB_RUNNING || job->phase == JOB_HELD;
        if (runs && now_us - job->stalled_since_us > d->config.slow_cancel_us) {
            slow_reader(d, job);
            return true;
        }
        dispatch_flush(d, job);
    }
    return false;
}

static void flush_stalled(struct dispatch *d)
{
    uint64_t now = clock_us();
    while (flush_stalled_once(d, now))
        ;
}

/* ---- clients --------------------------------------------------------------------------------- */

static uint64_t ring_bytes(const struct session *session)
{
    uint32_t request, token;
    session_ring_sizes(session, &request, &token);
    return (uint64_t)request + token + 2u * INFER_ABI_DATA_OFFSET;
}

static void add_client(struct dispatch *d, struct message *m)
{
    struct client *client = calloc(1, sizeof *client);
    if (client == NULL) {
        session_close(m->session, INFER_E_OUT_OF_MEMORY);
        return; /* the client hangs up, its removal finds nobody */
    }
    client->session = m->session;
    client->connection = m->connection;
    client->metrics_user = METRICS_USER_NONE;
    client->next = d->clients;
    if (client->next != NULL)
        client->next->previous = client;
    d->clients = client;
    d->n_sessions++;
    d->metrics.connections++;
    d->session_bytes += ring_bytes(m->session);
}

static void remove_client(struct dispatch *d, struct connection *c)
{
    struct client *client = d->clients;
    while (client != NULL && client->connection != c)
        client = client->next;
    if (client != NULL) {
        while (client->jobs != NULL)
            dispatch_drop(d, client->jobs);
        if (client->previous != NULL)
            client->previous->next = client->next;
        else
            d->clients = client->next;
        if (client->next != NULL)
            client->next->previous = client->previous;
        d->session_bytes -= ring_bytes(client->session);
        free(client);
        d->n_sessions--;
    }
    loop_post(d->config.loop, d->config.on_free, c);
}

/* A session that broke the protocol keeps no job; its socket is hung up by the event thread, whose
 * removal then frees the rest. */
static void give_up(struct dispatch *d, struct client *client)
{
    while (client->jobs != NULL)
        dispatch_drop(d, client->jobs);
    if (client->connection != NULL && !client->hung_up) {
        client->hung_up = true;
        loop_post(d->config.loop, d->config.on_close, client->connection);
    }
}

static bool take_messages(struct dispatch *d)
{
    struct message *all = queue_take_all(&d->inbox, false);
    bool any = all != NULL;
    while (all != NULL) {
        struct message *m = all;
        all = m->next;
        switch (m->kind) {
        case MESSAGE_ADD:
            add_client(d, m);
            break;
        case MESSAGE_REMOVE:
            remove_client(d, m->connection);
            break;
        case MESSAGE_PREPARED:
            dispatch_prepared(d, m->job);
            break;
        case MESSAGE_SWAPPED:
            dispatch_swapped(d, m->saved);
            break;
        case MESSAGE_DRAIN:
            d->draining = true;
            break;
        case MESSAGE_MODEL:
            dispatch_model_told(d, m->index, m->told);
            break;
        case MESSAGE_LEAVE:
            dispatch_model_leaves(d, m->index, m->leave);
            break;
        case MESSAGE_LIMITS:
            dispatch_take_limits(d, m->told);
            break;
        case MESSAGE_STOP:
            d->stopping = true;
            break;
        }
        free(m->told);
        free(m);
    }
    return any;
}

static bool poll_clients(struct dispatch *d)
{
    bool any = false;
    for (struct client *client = d->clients; client != NULL; client = client->next) {
        if (!client->closed && session_pending(client->session))
            any |= dispatch_poll(d, client);
        if (client->closed)
            give_up(d, client);
    }
    return any;
}

void dispatch_publish(struct dispatch *d)
{
    for (struct client *client = d->clients; client != NULL; client = client->next)
        if (!client->closed)
            session_publish(client->session);
}

/* ---- ten times a second -----------------------------------------------------------------------
 */

static void tell_position(struct dispatch *d, struct job *job, uint64_t now_us)
{
    uint32_t position = sched_position(d->sched, job->slot);
    if (position == job->position || job->stalled || job->phase != JOB_RUNNING)
        return;
    uint64_t start = sched_estimate_us(d->sched, job->slot, now_us);
    job->position = position;
    job->start_us = start > now_us ? start - now_us : 0;
    job->queued_due = true;
    dispatch_flush(d, job);
}

/* Those that wait hear how the queue moves, and end when their deadline is over; the status page
 * shows what runs. An idle daemon does none of this and does not wake up for it. */
static void tick(struct dispatch *d, uint64_t now_us)
{
    struct sched_counts counts = sched_count(d->sched);
    uint32_t n_left = counts.n_waiting + counts.n_running;
    d->tick_us = now_us + DISPATCH_TICK_US;
    for (uint32_t slot = 0; slot < INFER_SEQUENCES_MAX && n_left > 0; slot++) {
        struct job *job = d->by_slot[slot];
        n_left -= job != NULL;
        if (job == NULL || job->started_us != 0) /* one that has its slot may still wait for rows */
            continue;
        if (job->deadline_us != 0 && now_us > job->deadline_us)
            dispatch_finish(d, job, INFER_FINISH_ERROR, INFER_E_DEADLINE,
                            "it waited until its deadline");
        else if (job->wants_queue)
            tell_position(d, job, now_us);
    }
    dispatch_tick_held(d, now_us);
    d->retry_held = true;
    dispatch_write_page(d, now_us);
}

/* ---- sleeping -------------------------------------------------------------------------------- */

static bool pending(const struct dispatch *d)
{
    if (atomic_load_explicit(&d->inbox.any, memory_order_acquire))
        return true;
    for (const struct client *client = d->clients; client != NULL; client = client->next)
        if (!client->closed && session_pending(client->session))
            return true;
    return false;
}

/* Polls for a while: a client that answers at once costs no system call on either side. */
static bool spin(const struct dispatch *d)
{
    if (d->config.spin_us == 0)
        return pending(d);
    uint64_t until = clock_ns() + 1000ull * d->config.spin_us;
    do {
        for (int i = 0; i < 8; i++) {
            if (pending(d))
                return true;
            infer_ring_pause();
        }
    } while (clock_ns() < until);
    return false;
}

static void sleep_until_woken(struct dispatch *d)
{
    unsigned seen = atomic_load_explicit(&d->wake, memory_order_seq_cst);
    bool came = false;
    if (d->page_stale) { /* idle from here on: the page says so */
        dispatch_read_memory(d);
        dispatch_write_page(d, clock_us());
    }
    atomic_store_explicit(&d->asleep, true, memory_order_seq_cst);
    for (struct client *client = d->clients; client != NULL; client = client->next)
        came |= !client->closed && session_sleep(client->session);
    if (!came && !atomic_load_explicit(&d->inbox.any, memory_order_seq_cst)) {
        /* A parked client does not ring when it made room, and a limit's minute passes unheard. */
        struct timespec soon = {0, d->stalled != NULL ? 2000000 : 1000 * DISPATCH_TICK_US};
        bool look = d->stalled != NULL || d->held != NULL;
        syscall(SYS_futex, &d->wake, FUTEX_WAIT_PRIVATE, seen, look ? &soon : NULL, NULL, 0);
    }
    atomic_store_explicit(&d->asleep, false, memory_order_seq_cst);
    for (struct client *client = d->clients; client != NULL; client = client->next)
        if (!client->closed)
            session_awake(client->session);
}

/* ---- threads --------------------------------------------------------------------------------- */

static void end_everything(struct dispatch *d)
{
    dispatch_fail_all(d, INFER_E_SHUTDOWN, "the daemon is stopping");
    for (struct client *client = d->clients; client != NULL; client = client->next) {
        for (struct job *job = client->jobs, *next; job != NULL; job = next) {
            next = job->next;
            if (job->phase == JOB_PREPARING)
                job->cancelled = true;
        }
        if (!client->closed) {
            session_publish(client->session);
            client->closed = true;
            session_close(client->session, INFER_E_SHUTDOWN);
        }
    }
}

/* The thread that calls run() is the backend's worker 0: on another worker's processor it would
 * halve the speed of both. */
static void pin_thread(int cpu)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    if (cpu >= 0 && cpu < CPU_SETSIZE) {
        CPU_SET(cpu, &set);
        pthread_setaffinity_np(pthread_self(), sizeof set, &set);
    }
}

/* Refused or not, what a client has not read yet is not over. */
static void tell_drained(struct dispatch *d)
{
    for (const struct client *client = d->clients; client != NULL; client = client->next)
        if (!client->closed && client->jobs != NULL)
            return;
    loop_post(d->config.loop, d->drained, d->drained_ctx);
    d->drained = NULL;
}

bool dispatch_turn(struct dispatch *d)
{
    atomic_fetch_add_explicit(&d->turns, 1, memory_order_relaxed);
    bool busy = take_messages(d);
    busy |= poll_clients(d);
    if (d->stalled != NULL)
        flush_stalled(d);
    if (d->retry_held)
        dispatch_retry_held(d, clock_us());
    if (d->n_leaving > 0)
        dispatch_models_left(d);
    if (busy)
        dispatch_publish(d); /* QUEUED must not wait for the step */
    busy |= dispatch_step(d);
    if (!d->late)
        dispatch_publish(d);
    uint64_t now = clock_us();
    if (now >= d->tick_us) {
        tick(d, now);
        dispatch_publish(d); /* what it ended must be heard, also when nothing else happens */
    }
    if (d->draining && d->drained != NULL)
        tell_drained(d);
    return busy;
}

static void *engine_main(void *arg)
{
    struct dispatch *d = arg;
    pthread_setname_np(pthread_self(), "inferd-engine");
    pin_thread(d->config.cpu);
    while (!d->stopping)
        if (!dispatch_turn(d) && !spin(d))
            sleep_until_woken(d);
    end_everything(d);
    return NULL;
}

static void *prepare_main(void *arg)
{
    struct dispatch *d = arg;
    pthread_setname_np(pthread_self(), "inferd-prepare");
    for (;;) {
        struct message *all = queue_take_all(&d->prepare, true);
        while (all != NULL) {
            struct message *m = all;
            all = m->next;
            if (m->kind == MESSAGE_STOP) {
                assert(all == NULL);
                free(m);
                return NULL;
            }
            if (m->kind == MESSAGE_SWAPPED)
                swap_transfer(m->saved);
            else if (m->job->ask.op == INFER_ABI_TOPOLOGY)
                dispatch_draw_topology(d, m->job);
            else
                job_prepare(m->job);
            /* The message that brought it brings it back: no memory is needed. */
            queue_append(&d->inbox, m);
            dispatch_wake(d);
        }
    }
}

static void fill_defaults(struct dispatch_config *c)
{
    if (c->slow_preempt_us == 0)
        c->slow_preempt_us = DISPATCH_SLOW_PREEMPT_US;
    if (c->slow_cancel_us == 0)
        c->slow_cancel_us = DISPATCH_SLOW_READER_US;
    if (c->conversation_idle_us == 0)
        c->conversation_idle_us = DISPATCH_CONVERSATION_IDLE_US;
}

/* A store without its file is a store. */
static int new_swap(struct dispatch *d)
{
    const struct dispatch_config *c = &d->config;
    int error = 0;
    int rc = swap_new(c->swap_bytes, c->swap_file_bytes, c->state_directory, &d->swap, &error);
    if (rc == 0 && error < 0)
        log_warning("no swap file in %s: %s; states of preempted sequences stay in memory",
                    c->state_directory, strerror(-error));
    return rc;
}

static int new_sched(struct dispatch *d)
{
    const struct dispatch_config *c = &d->config;
    uint64_t park_us = c->slow_preempt_us;
    struct sched_config sched = {.max_sequences = INFER_SEQUENCES_MAX,
                                 .max_running = c->max_running,
                                 .step_rows = c->step_rows,
                                 .n_models = c->n_models,
                                 .page_tokens = c->models[0].state.page_tokens, /* 0: as loaded */
                                 .park_us = park_us < UINT32_MAX ? (uint32_t)park_us : UINT32_MAX,
                                 .policy = c->policy,
                                 .skips_max = c->skips_max,
                                 .newcomer_slots = c->newcomer_slots};
    return sched_new(&sched, &d->sched);
}

int dispatch_new(const struct dispatch_config *config, struct dispatch **ret)
{
    struct dispatch *d = calloc(1, sizeof *d);
    if (d == NULL)
        return -ENOMEM;
    d->config = *config;
    assert(config->n_models <= INFER_MODELS_MAX);
    fill_defaults(&d->config);
    d->swap_derived = config->swap_bytes == 0;
    d->start_us = clock_us();
    d->metrics.start_s = (double)time(NULL);
    d->metrics.n_starts = config->n_starts;
    queue_init(&d->inbox);
    queue_init(&d->prepare);
    atomic_init(&d->stepping, DISPATCH_NO_MODEL);
    d->by_slot = calloc(INFER_SEQUENCES_MAX, sizeof *d->by_slot);
    d->plan = calloc(INFER_STEP_SEQS_MAX, sizeof *d->plan);
    d->work = calloc(INFER_STEP_SEQS_MAX, sizeof *d->work);
    d->ahead.plan = calloc(INFER_STEP_SEQS_MAX, sizeof *d->ahead.plan);
    if (d->by_slot == NULL || d->plan == NULL || d->work == NULL || d->ahead.plan == NULL ||
        new_sched(d) < 0 || new_swap(d) < 0 || dispatch_conversations_new(d) < 0) {
        dispatch_free(d);
        return -ENOMEM;
    }
    dispatch_first_models(d);
    dispatch_read_memory(d);
    dispatch_write_page(d, d->start_us);
    *ret = d;
    return 0;
}

int dispatch_set_policy(struct dispatch *d, uint32_t uid, const struct sched_policy *policy)
{
    struct special_user *user;
    int rc = sched_set_policy(d->sched, uid, policy);
    if (rc == 0)
        rc = dispatch_special_user(d, uid, &user);
    if (rc < 0)
        return rc;
    user->has_policy = policy != NULL;
    user->max_waiting = policy != NULL ? policy->max_waiting : 0;
    return 0;
}

int dispatch_set_domain(struct dispatch *d, uint32_t uid, uint32_t shared_domain)
{
    struct special_user *user;
    int rc = dispatch_special_user(d, uid, &user);
    if (rc < 0)
        return rc;
    user->has_domain = true;
    user->domain = shared_domain;
    return 0;
}

int dispatch_start(struct dispatch *d)
{
    int rc = pthread_create(&d->prepare_thread, NULL, prepare_main, d);
    if (rc != 0)
        return -rc;
    d->started = true;
    rc = pthread_create(&d->engine_thread, NULL, engine_main, d);
    if (rc != 0) {
        d->started = false;
        dispatch_send(&d->prepare, (struct message){.kind = MESSAGE_STOP});
        pthread_join(d->prepare_thread, NULL);
        return -rc;
    }
    return 0;
}

int dispatch_drain(struct dispatch *d, void (*drained)(void *ctx), void *ctx)
{
    d->drained = drained; /* read after the message */
    d->drained_ctx = ctx;
    int rc = dispatch_send(&d->inbox, (struct message){.kind = MESSAGE_DRAIN});
    dispatch_wake(d);
    return rc;
}

struct dispatch_counts dispatch_take_counts(struct dispatch *d)
{
    atomic_store_explicit(&d->counts_told, false, memory_order_seq_cst);
    uint64_t counts = atomic_load_explicit(&d->counts, memory_order_seq_cst);
    return (struct dispatch_counts){(uint32_t)(counts >> 32), (uint32_t)counts};
}

bool dispatch_moves(const struct dispatch *d, uint64_t *seen)
{
    uint64_t turns = atomic_load_explicit(&d->turns, memory_order_relaxed);
    bool moved = turns != *seen;
    *seen = turns;
    return moved || atomic_load_explicit(&d->asleep, memory_order_relaxed);
}

uint32_t dispatch_stepping(const struct dispatch *d)
{
    return atomic_load_explicit(&d->stepping, memory_order_relaxed);
}

void dispatch_stop(struct dispatch *d)
{
    if (!d->started)
        return;
    dispatch_send(&d->inbox, (struct message){.kind = MESSAGE_STOP});
    dispatch_wake(d);
    pthread_join(d->engine_thread, NULL);
    dispatch_send(&d->prepare, (struct message){.kind = MESSAGE_STOP});
    pthread_join(d->prepare_thread, NULL);
    d->started = false;
    while (d->clients != NULL || atomic_load(&d->inbox.any)) {
        take_messages(d); /* what the preparing thread gave back, removals */
        if (d->clients != NULL)
            remove_client(d, d->clients->connection);
    }
}

/* What came when nobody takes it any more. */
static void drop_messages(struct dispatch *d)
{
    for (struct message *m = queue_take_all(&d->inbox, false), *next; m != NULL; m = next) {
        next = m->next;
        free(m->told);
        free(m);
    }
}

void dispatch_free(struct dispatch *d)
{
    drop_messages(d);
    queue_done(&d->inbox);
    queue_done(&d->prepare);
    conversations_free(d->conversations);
    swap_free(d->swap);
    sched_free(d->sched);
    free(d->users);
    free(d->by_slot);
    free(d->plan);
    free(d->work);
    free(d->ahead.plan);
    free(d);
}

int dispatch_add(struct dispatch *d, struct connection *c, struct session *session)
{
    int rc = dispatch_send(
        &d->inbox, (struct message){.kind = MESSAGE_ADD, .connection = c, .session = session});
    dispatch_wake(d);
    return rc;
}

void dispatch_remove(struct dispatch *d, struct connection *c)
{
    dispatch_send(&d->inbox, (struct message){.kind = MESSAGE_REMOVE, .connection = c});
    dispatch_wake(d);
}

static int tell(struct dispatch *d, struct message message, const void *told, size_t bytes)
{
    message.told = malloc(bytes);
    if (message.told == NULL)
        return -ENOMEM;
    memcpy(message.told, told, bytes);
    int rc = dispatch_send(&d->inbox, message);
    if (rc < 0)
        free(message.told);
    dispatch_wake(d);
    return rc;
}

int dispatch_set_model(struct dispatch *d, uint32_t index, const struct dispatch_model *model)
{
    assert(index < d->config.n_models);
    return tell(d, (struct message){.kind = MESSAGE_MODEL, .index = index}, model, sizeof *model);
}

int dispatch_set_limits(struct dispatch *d, const struct dispatch_limits *limits)
{
    return tell(d, (struct message){.kind = MESSAGE_LIMITS}, limits,
                sizeof *limits + limits->n_users * sizeof limits->users[0]);
}

int dispatch_leave_model(struct dispatch *d, uint32_t index, enum dispatch_leave how)
{
    assert(index < d->config.n_models);
    int rc = dispatch_send(&d->inbox,
                           (struct message){.kind = MESSAGE_LEAVE, .index = index, .leave = how});
    dispatch_wake(d);
    return rc;
}
