/* dispatch.h: the hub, and the engine thread.
 *
 * The one place that ties proto (what clients ask) to sched (who runs) to engine (what comes out)
 * and back to the token rings. One thread, the engine thread, does all of it in a loop:
 *
 *   take messages from the event thread | poll the request rings | put what is due |
 *   plan a step, run it, hand the tokens out | publish | spin, then sleep
 *
 * Nothing in the loop waits for a client, and no lock is held while a step runs. The event thread
 * (server.c) owns sockets and descriptors; it and the engine thread talk through two queues of
 * messages, dispatch_add/remove in one direction, loop_post() in the other. A third thread prepares
 * long prompts, so that tokenizing a megabyte does not stop anybody's stream. */
#ifndef INFERD_DISPATCH_H
#define INFERD_DISPATCH_H

#include "engine/engine.h"
#include "io/loop.h"
#include "proto/session.h"
#include "proto/status_page.h"
#include "sched/sched.h"

struct dispatch;
struct connection; /* server.c's */
struct metrics_loads;

struct dispatch_config {
    struct engine_model *models;
    uint32_t n_models;
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

#endif
