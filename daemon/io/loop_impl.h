/* loop_impl.h: what loop.c shares with its two implementations. Included by those and by the
 * loop's own tests alone.
 *
 * loop.c owns the watches, timers, posted calls and what a ready descriptor means; an
 * implementation owns waiting for descriptors. Life of a watch:
 *
 *   live    in l->watches; the user knows it.
 *   dead    in l->dead, after unwatch: no callback any more, but the memory stays until the end of
 *           the loop's turn and until the kernel has returned every operation that names it
 *           (in_flight == 0).
 */
#ifndef INFERD_IO_LOOP_IMPL_H
#define INFERD_IO_LOOP_IMPL_H

#include "io/loop.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <sys/queue.h>
#include <sys/socket.h>

enum loop_watch_kind {
    LOOP_WATCH_ACCEPT,
    LOOP_WATCH_RECEIVE,
    LOOP_WATCH_READABLE,
    LOOP_WATCH_SIGNAL,
    LOOP_WATCH_TIMER,
};

struct loop_watch {
    TAILQ_ENTRY(loop_watch) links; /* l->watches or l->dead */
    enum loop_watch_kind kind;
    bool live;
    bool unowned; /* nobody has the pointer: a timer ends itself */
    bool paused;  /* accept, waiting for its timer */
    bool over;    /* nothing more to report */
    bool armed;   /* the implementation waits for fd */
    int fd;       /* -1: timer */
    void *ctx;
    union {
        void (*accept)(void *ctx, int fd);
        void (*receive)(void *ctx, const void *bytes, ssize_t n);
        void (*readable)(void *ctx, uint32_t poll_events);
        void (*signal)(void *ctx, int signo);
        void (*timer)(void *ctx);
    } fn;
    /* timer heap; nanoseconds */
    uint64_t deadline, interval, sequence;
    size_t heap_at; /* SIZE_MAX: not in it */
    /* io_uring's own */
    TAILQ_ENTRY(loop_watch) todo_links;
    bool on_todo;
    bool by_poll; /* accept or receive by readiness: the kernel would not wait in the call itself */
    unsigned in_flight;
    /* receive */
    struct msghdr message;
    struct iovec vector;
    size_t bytes_max;
    uint8_t bytes[];
};

TAILQ_HEAD(loop_watch_list, loop_watch);

struct loop_ops {
    const char *name;
    /* At every loop_run(), by the loop's thread. */
    int (*start)(struct loop *l);
    /* Wait for w->fd from now on; w is live and not armed. */
    int (*arm)(struct loop *l, struct loop_watch *w);
    /* Stop waiting for it; w was unwatched. */
    void (*forget)(struct loop *l, struct loop_watch *w);
    /* Wait at most timeout_ns (-1: for ever), then dispatch a bounded number of what is ready. */
    int (*wait)(struct loop *l, int64_t timeout_ns);
    /* Release everything; watches with in_flight > 0 afterwards are never freed. */
    void (*done)(struct loop *l);
};

struct loop_call;

struct loop {
    const struct loop_ops *ops;
    void *impl;
    struct loop_watch_list watches, dead;
    struct loop_watch **heap;
    size_t n_heap, heap_capacity, n_timed; /* n_timed: live watches that may enter the heap */
    uint64_t sequence;
    uint64_t wakeups;
    int wake_fd; /* eventfd: a posted call or a stop */
    _Atomic(struct loop_call *) calls;
    atomic_bool stopping;
    atomic_int stop_code;
};

/* Parts of io_uring that tests can do without, to walk the paths of older kernels. */
#define LOOP_URING_NO_MODERN    1u /* setup flags of 5.19 and 6.1 */
#define LOOP_URING_NO_MULTISHOT 2u /* accept of 5.19 */
#define LOOP_URING_NO_DIRECT    4u /* accept and recvmsg: poll, then the plain call */

int loop_uring_init(struct loop *l, unsigned without);
int loop_epoll_init(struct loop *l);
int loop_new_without(enum loop_kind kind, unsigned without, struct loop **ret);

/* What implementations report. Each may call back into the user's code, which may unwatch w. */
void loop_ready(struct loop *l, struct loop_watch *w, uint32_t poll_events);
void loop_accepted(struct loop *l, struct loop_watch *w, int fd_or_error);
void loop_received(struct loop *l, struct loop_watch *w, ssize_t n, int message_flags);

#endif
