/* dispatch_internal.h: the hub's state, shared by dispatch.c (the loop), dispatch_request.c
 * (from a record to a job) and dispatch_status.c (what status and models answer). */
#ifndef INFERD_DISPATCH_INTERNAL_H
#define INFERD_DISPATCH_INTERNAL_H

#include "dispatch.h"
#include "job.h"
#include "sched/sched.h"

#include "inferd/client.h"

#include <pthread.h>
#include <stdatomic.h>

/* Payloads and results of all requests together. Above it new requests are refused: a client's
 * memory bill is the daemon's otherwise. */
#define DISPATCH_HELD_BYTES_MAX (256ull << 20)
/* Text up to this size is tokenized on the engine thread: about a quarter millisecond. */
#define DISPATCH_INLINE_BYTES_MAX 2048u
/* A client that leaves its ring full for so long loses the request. */
#define DISPATCH_SLOW_READER_US 20000000u
/* How often the queue's news and the status page go out while anything runs. */
#define DISPATCH_TICK_US 100000u
/* Requests taken from one ring before the others get their turn. */
#define DISPATCH_POLLS_PER_TURN 32u

struct client {
    struct client *next, *previous;
    struct session *session;
    struct connection *connection;
    struct job *jobs;
    uint32_t n_jobs;
    bool closed;  /* we gave up on it: no more reading or writing */
    bool hung_up; /* and told the event thread */
};

enum message_kind { MESSAGE_ADD, MESSAGE_REMOVE, MESSAGE_PREPARED, MESSAGE_STOP };

struct message {
    struct message *next;
    enum message_kind kind;
    struct connection *connection;
    struct session *session;
    struct job *job;
};

struct message_queue {
    pthread_mutex_t lock;
    pthread_cond_t filled; /* the preparing thread waits on its own queue */
    struct message *first, **last;
    atomic_bool any; /* a hint that saves the lock */
};

/* One second of work, for the speeds that status shows. */
#define DISPATCH_SECONDS 10
struct second {
    uint64_t at; /* which second of the clock */
    uint64_t prompt_tokens, prompt_us, tokens, tokens_us;
};

struct dispatch {
    struct dispatch_config config;
    struct sched *sched;
    struct client *clients;
    struct job **by_slot; /* INFER_SEQUENCES_MAX */
    struct job *stalled;
    struct sched_work *plan;
    struct engine_work *work;
    uint64_t next_id;
    uint64_t held_bytes;
    bool stopping;

    struct message_queue inbox, prepare;
    pthread_t engine_thread, prepare_thread;
    bool started;     /* its threads run */
    atomic_uint wake; /* futex: counts reasons to wake up */
    atomic_bool asleep;

    uint32_t n_sessions;
    uint64_t n_requests, n_failed, n_prompt_tokens, n_tokens, n_steps, start_us;
    struct second seconds[DISPATCH_SECONDS];
    uint64_t memory_bytes, memory_available; /* as last read */
    uint64_t tick_us;                        /* when the next tick is due */
    bool page_stale;                         /* something ran since the status page was written */
    struct infer_page page;
};

/* dispatch.c */
void dispatch_flush(struct dispatch *d, struct job *job);
void dispatch_clear_stalled(struct dispatch *d, struct job *job);
void dispatch_finish(struct dispatch *d, struct job *job, uint32_t finish, int code,
                     const char *text);
int dispatch_send(struct message_queue *q, struct message message);

/* dispatch_request.c */
bool dispatch_poll(struct dispatch *d, struct client *client); /* true: something was there */
void dispatch_prepared(struct dispatch *d, struct job *job);
void dispatch_hold(struct dispatch *d, struct job *job);
void dispatch_leave_sched(struct dispatch *d, struct job *job);
void dispatch_drop(struct dispatch *d, struct job *job);

/* dispatch_status.c */
int dispatch_models(const struct dispatch *d, struct job *job);
int dispatch_status(struct dispatch *d, struct job *job);
void dispatch_read_memory(struct dispatch *d);
void dispatch_count_step(struct dispatch *d, uint32_t model, uint32_t n, uint64_t from_us,
                         uint64_t to_us);
void dispatch_write_page(struct dispatch *d, uint64_t now_us);

#endif
