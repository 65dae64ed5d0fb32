/* dispatch.h: the hub, and the engine thread.
 *
 * The one place that ties proto (what clients ask) to sched (who runs) to engine (what comes out)
 * and back to the token rings. One thread, the engine thread, does all of it in a loop:
 *
 *   take messages from the event thread | poll the request rings | put what is due |
 *   plan a step, run it, hand the tokens out | publish | spin, then sleep
 *
 * (with a device that works by itself, mostly: plan the next step and submit it, then wait for this
 * one and hand its tokens out; dispatch_step.c has how). Nothing in the loop waits for a client,
 * and no lock is held while a step runs. The event thread (server.c) owns sockets and descriptors;
 * it and the engine thread talk through two queues of messages, dispatch_add/remove in one
 * direction, loop_post() in the other. A third thread prepares long prompts, so that tokenizing a
 * megabyte does not stop anybody's stream. */
#ifndef INFERD_DISPATCH_H
#define INFERD_DISPATCH_H

#include "engine/engine.h"
#include "inferd/client.h"
#include "io/loop.h"
#include "proto/session.h"
#include "proto/status_page.h"
#include "sched/sched.h"

struct dispatch;
struct devices;
struct connection; /* server.c's */
struct metrics_loads;

/* The loop's code, and the exit status, when a backend was lost for good: sysexits' EX_TEMPFAIL, so
 * that a supervisor starts us again. */
#define DISPATCH_EXIT_LOST 75

enum dispatch_model_state {
    DISPATCH_MODEL_NONE, /* the number is nobody's */
    DISPATCH_MODEL_LISTED,
    DISPATCH_MODEL_LOADING,
    DISPATCH_MODEL_READY,
    DISPATCH_MODEL_LEAVING, /* the hub's own word, between dispatch_leave_model() and its news */
    DISPATCH_MODEL_FAILED,
};

/* What the event thread tells of a model. */
struct dispatch_model {
    enum dispatch_model_state state;
    struct infer_model about; /* name, pinned, keep_alive_s; LOADING: done_bytes, total_bytes */
    uint64_t identity;        /* READY: as loader_identity() has it */
    uint64_t load_us;         /* LISTED, LOADING: how long it will take, as far as is known */
    uint64_t retry_us;        /* FAILED: requests ask for another try from then on */
    struct report report;     /* FAILED, NONE: what requests that wait for it are told */
};

enum dispatch_leave {
    DISPATCH_LEAVE_IDLE, /* only if it has no request */
    DISPATCH_LEAVE_DRAIN,
    DISPATCH_LEAVE_NOW, /* its requests end with UNLOADED */
};

/* Sets of models, a bit each. */
struct dispatch_news {
    uint32_t wanted; /* a request waits for it: it was LISTED, or FAILED some time ago */
    uint32_t left;   /* nothing of the hub's uses it any more; told once, after leaving */
    uint32_t stayed; /* asked to leave when idle, it was not */
};

struct dispatch_config {
    /* Places for n_models models, whose numbers are their places; those that are loaded already
     * are ready. The hub touches one only while it is READY or LEAVING. */
    struct engine_model *models;
    uint32_t n_models;
    void (*on_models)(void *ctx); /* on the event thread: dispatch_take_news() */
    void *models_ctx;
    uint32_t max_running;
    uint32_t step_rows;
    struct sched_policy policy; /* of every user that has none of his own */
    uint32_t shared_domain;     /* of every user that has none of his own; 0: his alone */
    uint32_t skips_max;         /* of struct sched_config; 0: its default */
    uint32_t newcomer_slots;    /* likewise */
    /* A client that leaves its ring full: after the one its pages may be taken, after the other the
     * request ends. 0: 10 s, 20 s. */
    uint64_t slow_preempt_us, slow_cancel_us;
    uint64_t conversation_idle_us; /* one that nobody continues for so long is forgotten; 0: 4 h */
    /* Where the states of preempted sequences go: host memory (0: a quarter of the memory of all
     * sequence state), then a file in the folder (0 or NULL: none). */
    uint64_t swap_bytes, swap_file_bytes;
    const char *state_directory;
    uint32_t spin_us; /* how long the engine thread polls before it sleeps */
    int cpu;          /* where the engine thread runs, beside the backend's workers; -1: anywhere */
    /* The machine as text, to be freed; called on the preparing thread. NULL: UNSUPPORTED. */
    char *(*draw_topology)(void *draw_ctx);
    void *draw_ctx;
    struct loop *loop;
    struct status_page *page;    /* written ten times a second while anything runs */
    struct devices *devices;     /* whose memory METRICS tells, whose loss is marked; may be NULL */
    struct metrics_loads *loads; /* what loading counted, for METRICS; may be NULL */
    uint64_t n_starts;           /* likewise: of metrics_count_start(); 0: not known */
    /* Called on the event thread, with a connection. */
    void (*on_close)(void *connection); /* we ended this session: hang up */
    void (*on_free)(void *connection);  /* the last use of its session is over */
    /* Called on the event thread when the counts have changed; may be NULL. */
    void (*on_counts)(void *ctx);
    void *on_counts_ctx;
};

/* As of the last write of the status page. */
struct dispatch_counts {
    uint32_t n_running, n_waiting;
};

int dispatch_new(const struct dispatch_config *config, struct dispatch **ret);
/* A user's own policy; before dispatch_start(). Negative: see sched_set_policy(). */
int dispatch_set_policy(struct dispatch *d, uint32_t uid, const struct sched_policy *policy);
/* The users of one shared domain (a number from 1 on) find each other's cached prompts; 0: none.
 * -ENOSPC: too many users. Before dispatch_start(). */
int dispatch_set_domain(struct dispatch *d, uint32_t uid, uint32_t shared_domain);
/* Event thread only, from dispatch_new() on: a model has come, gone or changed. -ENOMEM. */
int dispatch_set_model(struct dispatch *d, uint32_t index, const struct dispatch_model *model);
/* A READY one is to leave: no request gets it from now on, and once its last has ended the news say
 * that it left. -ENOMEM. */
int dispatch_leave_model(struct dispatch *d, uint32_t index, enum dispatch_leave how);
struct dispatch_news dispatch_take_news(struct dispatch *d);
/* Since when a READY model has had no request; 0: it has some. Any thread. */
uint64_t dispatch_model_idle_since(const struct dispatch *d, uint32_t index);

/* What a reload of the configuration may change; policy and shared_domain as in struct
 * dispatch_config, the users' own by uid. All of it takes effect at once. -ENOMEM. */
struct dispatch_limits {
    uint64_t slow_preempt_us, slow_cancel_us, conversation_idle_us;
    struct sched_policy policy;
    uint32_t shared_domain;
    uint32_t n_users;
    struct dispatch_user {
        uint32_t uid;
        struct sched_policy policy;
        uint32_t domain;
    } users[];
};
int dispatch_set_limits(struct dispatch *d, const struct dispatch_limits *limits);

/* Starts the engine and preparing threads. */
int dispatch_start(struct dispatch *d);
/* One turn of the engine thread's loop; true when there was something to do. For who drives the hub
 * from a thread and a clock of his own (the simulator) and never calls dispatch_start(). */
bool dispatch_turn(struct dispatch *d);
/* New requests are refused with SHUTDOWN, those that are there go on; drained() is called on the
 * event thread when none is left. Once. */
int dispatch_drain(struct dispatch *d, void (*drained)(void *ctx), void *ctx);
/* Ends every request with SHUTDOWN, closes every session, joins the threads. */
void dispatch_stop(struct dispatch *d);
void dispatch_free(struct dispatch *d);

/* Event thread only. A session is added once and removed once; after its removal the engine thread
 * answers with on_free, and only then may the session be freed. */
int dispatch_add(struct dispatch *d, struct connection *c, struct session *session);
void dispatch_remove(struct dispatch *d, struct connection *c);

/* A client rang its doorbell. Any thread. */
void dispatch_wake(struct dispatch *d);

/* Event thread. What runs and waits; the next change is told by on_counts again. */
struct dispatch_counts dispatch_take_counts(struct dispatch *d);
/* Any thread. Has the engine thread taken a turn since *seen, or does it sleep because there is
 * nothing to do? *seen is brought up to date. */
bool dispatch_moves(const struct dispatch *d, uint64_t *seen);
/* Any thread. The model whose step is under way, or DISPATCH_NO_MODEL. */
#define DISPATCH_NO_MODEL UINT32_MAX
uint32_t dispatch_stepping(const struct dispatch *d);

#endif
