/* dispatch_internal.h: the hub's state, shared by its files:
 *
 *   dispatch.c                the loop, its threads and messages, what is due to clients
 *   dispatch_request.c        from a record to a job, and a job's end
 *   dispatch_models.c         models that come and go, and who waits for them
 *   dispatch_queue.c          a job's way into the scheduler: several answers, limits, WAIT
 *   dispatch_step.c           the step, and what comes out of it
 *   dispatch_pressure.c       who gives up his pages, where they go, how they come back
 *   dispatch_conversations.c  what an answer leaves behind
 *   dispatch_status.c         what status, models and the status page say
 *   dispatch_metrics.c        what is counted and where; what METRICS copies */
#ifndef INFERD_DISPATCH_INTERNAL_H
#define INFERD_DISPATCH_INTERNAL_H

#include "conversations.h"
#include "dispatch.h"
#include "job.h"
#include "metrics.h"
#include "sched/sched.h"
#include "swap.h"

#include "inferd/client.h"

#include <pthread.h>
#include <stdatomic.h>

/* Payloads and results of all requests together. Above it new requests are refused: a client's
 * memory bill is the daemon's otherwise. */
#define DISPATCH_HELD_BYTES_MAX (256ull << 20)
/* Text up to this size is tokenized on the engine thread: about a quarter millisecond. */
#define DISPATCH_INLINE_BYTES_MAX 2048u
/* Defaults of struct dispatch_config. */
#define DISPATCH_SLOW_PREEMPT_US      10000000u
#define DISPATCH_SLOW_READER_US       20000000u
#define DISPATCH_CONVERSATION_IDLE_US (4u * 3600u * UINT64_C(1000000))
#define DISPATCH_SWAP_SHARE           4u /* of the state memory: one part in so many */
/* Users with a policy or a domain of their own. */
#define DISPATCH_USERS_MAX 1024u
/* Who waits for a model hears of it so often. */
#define DISPATCH_WAITING_NEWS_US 10000000u
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
    uint32_t metrics_user; /* entry of struct metrics; NONE before its first request for tokens */
    bool closed;           /* we gave up on it: no more reading or writing */
    bool hung_up;          /* and told the event thread */
};

/* SWAPPED: to the preparing thread and back, like PREPARED. */
enum message_kind {
    MESSAGE_ADD,
    MESSAGE_REMOVE,
    MESSAGE_PREPARED,
    MESSAGE_SWAPPED,
    MESSAGE_DRAIN,
    MESSAGE_MODEL,
    MESSAGE_LEAVE,
    MESSAGE_LIMITS,
    MESSAGE_STOP
};

struct message {
    struct message *next;
    enum message_kind kind;
    struct connection *connection;
    struct session *session;
    struct job *job;
    struct swap_state *saved;
    uint32_t index; /* MODEL, LEAVE */
    enum dispatch_leave leave;
    void *told; /* MODEL: struct dispatch_model, LIMITS: struct dispatch_limits; owned */
};

/* What was done in one second. */
struct second {
    uint64_t at; /* which second of the clock */
    uint64_t prompt_tokens, prompt_us, tokens, tokens_us;
    uint64_t decode_steps, decode_us; /* of steps that did nothing but decode */
};

/* The last seconds of work, for the speeds that status shows. */
#define DISPATCH_SECONDS 10
struct seconds {
    struct second of[DISPATCH_SECONDS];
};

/* A model's place. */
struct model_slot {
    struct dispatch_model is;
    bool live;                      /* config.models[i] is ready for use */
    uint32_t n_uses;                /* jobs with uses_model */
    uint32_t n_waiting;             /* jobs that are held for it */
    _Atomic uint64_t idle_since_us; /* 0: in use, or not live */
    struct seconds seconds;
};

/* A user who is not like the others. */
struct special_user {
    uint32_t uid;
    bool has_policy, has_domain;
    uint32_t max_waiting, domain;
};

struct message_queue {
    pthread_mutex_t lock;
    pthread_cond_t filled; /* the preparing thread waits on its own queue */
    struct message *first, **last;
    atomic_bool any; /* a hint that saves the lock */
};

struct dispatch {
    struct dispatch_config config;
    struct sched *sched;
    struct client *clients;
    struct job **by_slot; /* INFER_SEQUENCES_MAX */
    struct job *stalled;
    struct job *held; /* in the order they came */
    uint32_t n_held;
    bool retry_held; /* somebody left the scheduler: a limit may allow more */
    struct special_user *users;
    uint32_t n_users;
    struct conversations *conversations;
    struct model_slot slots[INFER_MODELS_MAX];
    uint32_t n_leaving;
    atomic_uint wanted, left, stayed;      /* struct dispatch_news */
    bool swap_derived;                     /* its size follows the models */
    uint32_t past_pages[INFER_MODELS_MAX]; /* held by idle conversations */
    uint32_t lent_pages[INFER_MODELS_MAX]; /* by requests that wait to go on from one */
    struct swap *swap;
    uint64_t copy_ps;                      /* per byte saved and restored, as measured */
    uint64_t prefill_ns[INFER_MODELS_MAX]; /* per row, as measured; 0: not yet */
    struct sched_work *plan;
    struct engine_work *work;
    bool late; /* what the last step gave is not published yet */
    /* The step that was submitted before the one that runs was over. */
    struct {
        bool under_way;
        uint32_t model, n;
        struct sched_work *plan;
    } ahead;
    uint64_t collected_us; /* when the last step was over */
    uint64_t next_id;
    uint64_t held_bytes;
    bool stopping, draining;
    void (*drained)(void *ctx); /* to be told; NULL: was told, or nobody asked */
    void *drained_ctx;

    struct message_queue inbox, prepare;
    pthread_t engine_thread, prepare_thread;
    bool started;     /* its threads run */
    atomic_uint wake; /* futex: counts reasons to wake up */
    atomic_bool asleep;
    atomic_uint_fast64_t turns;  /* of the engine thread: that it moves */
    atomic_uint stepping;        /* the model that it waits for, or DISPATCH_NO_MODEL */
    atomic_uint_fast64_t counts; /* running in the upper half, waiting in the lower */
    atomic_bool counts_told;     /* on_counts is on its way */

    uint32_t n_sessions;
    uint64_t session_bytes; /* of their rings */
    uint64_t n_requests, n_failed, n_prompt_tokens, n_tokens, n_steps, start_us;
    struct seconds seconds;                  /* of all models */
    uint64_t memory_bytes, memory_available; /* as last read */
    uint64_t tick_us;                        /* when the next tick is due */
    bool page_stale;                         /* something ran since the status page was written */
    struct infer_page page;
    struct metrics metrics;
};

/* dispatch.c */
/* Makes everything that was written to the clients' rings visible, and wakes who sleeps. */
void dispatch_publish(struct dispatch *d);
void dispatch_flush(struct dispatch *d, struct job *job);
void dispatch_clear_stalled(struct dispatch *d, struct job *job);
int dispatch_send(struct message_queue *q, struct message message);

/* dispatch_request.c */
bool dispatch_poll(struct dispatch *d, struct client *client); /* true: something was there */
void dispatch_prepare(struct dispatch *d, struct job *job);
void dispatch_prepared(struct dispatch *d, struct job *job);
void dispatch_hold_bytes(struct dispatch *d, struct job *job);
uint64_t dispatch_held_bytes(const struct dispatch *d);
void dispatch_link(struct client *client, struct job *job);
/* What follows is the job's end; it may be freed. */
void dispatch_finish(struct dispatch *d, struct job *job, uint32_t finish, int code,
                     const char *text);
void dispatch_drop(struct dispatch *d, struct job *job);

/* dispatch_models.c */
/* The model that the job names is in job->model; negative: there is none, job->report. */
int dispatch_choose_model(struct dispatch *d, struct job *job);
/* True: it is loaded. Else the job waits for that, or is over already. */
bool dispatch_await_model(struct dispatch *d, struct job *job);
void dispatch_tell_waiting(struct dispatch *d, struct job *job, uint64_t now_us);
void dispatch_use_model(struct dispatch *d, struct job *job);
void dispatch_release_model(struct dispatch *d, struct job *job);
/* The models that dispatch_new() found loaded. */
void dispatch_first_models(struct dispatch *d);
void dispatch_model_told(struct dispatch *d, uint32_t index, const struct dispatch_model *told);
void dispatch_model_leaves(struct dispatch *d, uint32_t index, enum dispatch_leave how);
/* Those that leave and have no request any more have left. */
void dispatch_models_left(struct dispatch *d);

/* dispatch_queue.c */
void dispatch_hold(struct dispatch *d, struct job *job, enum job_hold why);
void dispatch_unhold(struct dispatch *d, struct job *job);
/* Is there a place for one more job? */
bool dispatch_has_room(const struct dispatch *d);
void dispatch_take_limits(struct dispatch *d, const struct dispatch_limits *limits);
uint64_t dispatch_domain(const struct dispatch *d, uint32_t uid);
int dispatch_special_user(struct dispatch *d, uint32_t uid, struct special_user **ret);
/* A job that is prepared: into the scheduler, or HELD, or refused. */
void dispatch_queue(struct dispatch *d, struct job *job);
void dispatch_leave_queue(struct dispatch *d, struct job *job);
/* The prompt of several answers has run. */
void dispatch_prompt_ran(struct dispatch *d, struct job *job);
/* Those that wait for a limit are tried again. */
void dispatch_retry_held(struct dispatch *d, uint64_t now_us);
void dispatch_tick_held(struct dispatch *d, uint64_t now_us);
/* Of a job that ends before the others of its request could join: they end as it does. */
void dispatch_finish_others(struct dispatch *d, struct job *job, uint32_t finish, int code,
                            const char *text);

/* dispatch_step.c */
/* True: something ran, or can soon. Afterwards d->late: what came out is to be published beside the
 * next step, which follows at once. */
bool dispatch_step(struct dispatch *d);
void dispatch_fail_all(struct dispatch *d, int code, const char *text);

/* dispatch_pressure.c */
void dispatch_relieve(struct dispatch *d, uint64_t now_us);
/* A job that was planned and is preempted: true when it can run now. */
bool dispatch_come_back(struct dispatch *d, struct job *job);
/* Nobody can run: those who hold pages and do not run give them. True: one did. */
bool dispatch_make_room(struct dispatch *d);
void dispatch_swapped(struct dispatch *d, struct swap_state *saved);
void dispatch_forget_saved(struct dispatch *d, struct job *job);
/* Writes what a past holds to the store and gives up its pages; NULL: it could not. */
struct swap_state *dispatch_save_past(struct dispatch *d, struct engine_past *past);
void dispatch_measured(struct dispatch *d, uint32_t model, uint64_t n_rows, uint64_t took_us);

/* dispatch_conversations.c */
int dispatch_conversations_new(struct dispatch *d);
/* Gives the job the conversation that it names or makes; negative: job->report says why not. */
int dispatch_take_conversation(struct dispatch *d, struct job *job);
/* From its past the job holds so many pages while it waits; 0: it runs, or gave them away. */
void dispatch_lend_pages(struct dispatch *d, struct job *job, uint32_t n_pages);
/* The job is over: its conversation has what came, or is as it was before. */
void dispatch_put_conversation(struct dispatch *d, struct job *job);
/* FORGET; the job is finished. */
void dispatch_forget_conversation(struct dispatch *d, struct job *job);
/* The idle conversation that was used longest ago of those that hold pages gives them: it is saved,
 * or, when that cannot be, goes. False: none holds any. */
bool dispatch_give_past_pages(struct dispatch *d, uint32_t model);
/* The idle conversation that was used longest ago of those in the store goes. False: none is. */
bool dispatch_forget_stored(struct dispatch *d);
/* All idle ones with this model go. */
void dispatch_forget_model(struct dispatch *d, uint32_t model);
/* Of those, the ones that are more than tokens: that hold pages, or have a state in the store. */
void dispatch_forget_states(struct dispatch *d, uint32_t model);
/* Has it a past that is more than tokens? */
bool dispatch_has_state(const struct job *job);

/* dispatch_metrics.c */
int dispatch_metrics(struct dispatch *d, struct job *job);
void dispatch_count_asked(struct dispatch *d, struct job *job);
void dispatch_count_refused(struct dispatch *d, const struct job *job, enum metrics_limit limit);
void dispatch_count_started(struct dispatch *d, const struct job *job);
void dispatch_count_token(struct dispatch *d, const struct job *job, uint64_t now_us);
void dispatch_count_ended(struct dispatch *d, const struct job *job);
void dispatch_count_dropped(struct dispatch *d, const struct job *job);

/* dispatch_status.c */
/* False: nobody has this number. */
bool dispatch_describe_model(const struct dispatch *d, uint32_t index, struct infer_model *ret);
void dispatch_fill_status(const struct dispatch *d, struct infer_status *ret);
int dispatch_models(const struct dispatch *d, struct job *job);
int dispatch_status(struct dispatch *d, struct job *job);
/* Preparing thread. */
void dispatch_draw_topology(struct dispatch *d, struct job *job);
void dispatch_read_memory(struct dispatch *d);
void dispatch_count_step(struct dispatch *d, uint32_t model, uint32_t n, uint64_t from_us,
                         uint64_t to_us);
void dispatch_write_page(struct dispatch *d, uint64_t now_us);

#endif
