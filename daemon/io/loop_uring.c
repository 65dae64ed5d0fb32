/* loop_uring.c: the event loop on io_uring.
 *
 * Each armed watch has one operation in the kernel that names it: multishot accept (re-armed single
 * accept before 5.19), recvmsg into the watch's own buffer, or a one-shot poll that is re-armed
 * after its callback, which is what makes loop_readable() level-triggered. All submissions of a
 * turn travel in the one system call that also waits; timers are that call's timeout.
 *
 * Arming and cancelling only put the watch on the todo list; the list becomes submissions at the
 * start of the next turn, as far as the submission queue has room. That keeps the ring to one
 * thread (IORING_SETUP_SINGLE_ISSUER: the ring starts disabled, and the thread of the first
 * loop_run() becomes its issuer) and makes a full queue a matter of one more turn.
 *
 * Cancelling is asynchronous. A dead watch stays in memory until its operation and the cancel
 * request, both of which carry its address, have completed (in_flight == 0), so the address cannot
 * meanwhile come to mean another watch. What a dead watch's operation still brings is thrown away:
 * a datagram dropped, an accepted connection closed.
 *
 * Completions: the kernel keeps what overflows the queue (IORING_FEAT_NODROP) and liburing fetches
 * it; a multishot operation that ended early for that reason is re-armed.
 *
 * Needs a 5.11 kernel (a timeout in the waiting call). Limits: 256 entries, 256 completions a turn.
 */
#include "io/loop_impl.h"

#include "base/clock.h"
#include "io/ring.h"

#include <errno.h>
#include <liburing.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ENTRIES              256
#define COMPLETIONS_PER_TURN 256
#define DRAIN_NS             2000000000u

#define TAG_CANCEL                                                                                 \
    1u /* in the low bit of user_data: this is the cancel request, not the operation */

struct loop_uring {
    struct io_uring ring;
    bool enabled;
    bool multishot, direct;
    struct loop_watch_list todo;
    unsigned in_flight;
};

static void todo_add(struct loop_uring *u, struct loop_watch *w)
{
    if (w->on_todo)
        return;
    w->on_todo = true;
    TAILQ_INSERT_TAIL(&u->todo, w, todo_links);
}

static void todo_remove(struct loop_uring *u, struct loop_watch *w)
{
    if (!w->on_todo)
        return;
    w->on_todo = false;
    TAILQ_REMOVE(&u->todo, w, todo_links);
}

static int uring_arm(struct loop *l, struct loop_watch *w)
{
    todo_add(l->impl, w);
    return 0;
}

static void uring_forget(struct loop *l, struct loop_watch *w)
{
    if (w->armed)
        todo_add(l->impl, w); /* becomes a cancel request */
    else
        todo_remove(l->impl, w);
}

/* ---- submissions ----------------------------------------------------------------------------- */

static void prepare_operation(struct loop_uring *u, struct loop_watch *w, struct io_uring_sqe *sqe)
{
    bool poll = !u->direct || w->by_poll;
    if (w->kind == LOOP_WATCH_ACCEPT && !poll) {
        if (u->multishot)
            io_uring_prep_multishot_accept(sqe, w->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        else
            io_uring_prep_accept(sqe, w->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    } else if (w->kind == LOOP_WATCH_RECEIVE && !poll) {
        w->message.msg_flags = 0;
        io_uring_prep_recvmsg(sqe, w->fd, &w->message, 0);
    } else {
        w->by_poll = true;
        io_uring_prep_poll_add(sqe, w->fd, POLLIN);
    }
    io_uring_sqe_set_data64(sqe, (uintptr_t)w);
    w->armed = true;
}

/* Turns the todo list into submissions; false when the queue was too small for it. */
static bool todo_submit(struct loop_uring *u)
{
    struct loop_watch *w;
    while ((w = TAILQ_FIRST(&u->todo)) != NULL) {
        struct io_uring_sqe *sqe = io_uring_get_sqe(&u->ring);
        if (sqe == NULL)
            return false;
        todo_remove(u, w);
        if (w->live) {
            prepare_operation(u, w, sqe);
        } else {
            io_uring_prep_cancel64(sqe, (uintptr_t)w, 0);
            io_uring_sqe_set_data64(sqe, (uintptr_t)w | TAG_CANCEL);
        }
        w->in_flight++;
        u->in_flight++;
    }
    return true;
}

/* ---- completions ----------------------------------------------------------------------------- */

static void complete_accept(struct loop *l, struct loop_watch *w, int res)
{
    struct loop_uring *u = l->impl;
    if (res == -EINVAL && u->multishot)
        u->multishot = false; /* a kernel before 5.19; a real EINVAL comes again */
    else if (res == -EAGAIN)
        w->by_poll = true; /* older kernels do not wait on a non-blocking socket */
    else
        loop_accepted(l, w, res);
}

static void complete_receive(struct loop *l, struct loop_watch *w, int res)
{
    if (res == -EAGAIN)
        w->by_poll = true;
    else
        loop_received(l, w, res, w->message.msg_flags);
}

static void complete_operation(struct loop *l, struct loop_watch *w, int res, bool polled)
{
    if (polled)
        loop_ready(l, w, res < 0 ? POLLERR | POLLNVAL : (uint32_t)res);
    else if (w->kind == LOOP_WATCH_ACCEPT)
        complete_accept(l, w, res);
    else
        complete_receive(l, w, res);
    if (w->live && !w->armed && !w->paused && !w->over)
        todo_add(l->impl, w);
}

static void complete(struct loop *l, uint64_t data, int res, uint32_t flags)
{
    struct loop_uring *u = l->impl;
    struct loop_watch *w = (struct loop_watch *)(uintptr_t)(data & ~(uint64_t)TAG_CANCEL);
    bool polled = w->by_poll;

    if ((flags & IORING_CQE_F_MORE) == 0) {
        w->in_flight--;
        u->in_flight--;
        if ((data & TAG_CANCEL) != 0)
            return;
        w->armed = false;
    }
    if (w->live) {
        complete_operation(l, w, res, polled);
    } else {
        if (w->kind == LOOP_WATCH_ACCEPT && !polled && res >= 0)
            close(res);
        if (!w->armed)
            todo_remove(u, w); /* it ended by itself: nothing to cancel */
    }
}

static void reap(struct loop *l)
{
    struct loop_uring *u = l->impl;
    struct io_uring_cqe *cqe;
    for (int i = 0; i < COMPLETIONS_PER_TURN && io_uring_peek_cqe(&u->ring, &cqe) == 0; i++) {
        uint64_t data = cqe->user_data;
        int res = cqe->res;
        uint32_t flags = cqe->flags;
        io_uring_cqe_seen(&u->ring, cqe); /* first: the callback may lead back to the ring */
        complete(l, data, res, flags);
    }
}

static int submit_and_wait(struct loop_uring *u, int64_t timeout_ns)
{
    if (timeout_ns < 0)
        return io_uring_submit_and_wait(&u->ring, 1);
    struct __kernel_timespec t = {.tv_sec = timeout_ns / 1000000000,
                                  .tv_nsec = timeout_ns % 1000000000};
    struct io_uring_cqe *cqe;
    return io_uring_submit_and_wait_timeout(&u->ring, &cqe, 1, &t, NULL);
}

static int uring_wait(struct loop *l, int64_t timeout_ns)
{
    struct loop_uring *u = l->impl;
    if (!todo_submit(u)) {
        io_uring_submit(&u->ring); /* what it refuses stays in the queue */
        if (!todo_submit(u))
            timeout_ns = 0;
    }
    int r = submit_and_wait(u, timeout_ns);
    /* EBUSY, EAGAIN: completions are to be fetched before more is taken in. */
    if (r < 0 && r != -ETIME && r != -EINTR && r != -EBUSY && r != -EAGAIN)
        return r;
    reap(l);
    return 0;
}

/* ---- life ------------------------------------------------------------------------------------ */

static int uring_start(struct loop *l)
{
    struct loop_uring *u = l->impl;
    if (u->enabled)
        return 0;
    int r = ring_enable(&u->ring);
    if (r < 0)
        return r;
    u->enabled = true;
    return 0;
}

/* All watches are dead. Their operations write to their buffers and may accept connections until
 * the kernel says that they ended, so wait for that. Only the issuer thread can; should another
 * one free the loop, the buffers that the kernel may still write to are never freed. */
static void uring_done(struct loop *l)
{
    struct loop_uring *u = l->impl;
    uint64_t end = clock_ns() + DRAIN_NS;
    while (u->in_flight > 0 && clock_ns() < end)
        if (uring_wait(l, 100000000) < 0)
            break;
    struct loop_watch *w;
    while ((w = TAILQ_FIRST(&u->todo)) != NULL)
        todo_remove(u, w);
    io_uring_queue_exit(&u->ring);
    TAILQ_FOREACH(w, &l->dead, links)
    if (w->kind != LOOP_WATCH_RECEIVE)
        w->in_flight = 0; /* no completion comes any more, and the kernel knows no address in w */
    free(u);
}

/* The newest set of flags that the kernel knows. The ring can do what this file does with it. */
static int setup_ring(struct io_uring *ring, unsigned without)
{
    static const uint8_t opcodes[] = {IORING_OP_ACCEPT, IORING_OP_RECVMSG, IORING_OP_POLL_ADD,
                                      IORING_OP_ASYNC_CANCEL};
    static const unsigned flag_sets[] = {
        IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN, /* 6.1 */
        IORING_SETUP_COOP_TASKRUN,                               /* 5.19 */
        0,
    };
    int r = -EINVAL;
    for (size_t i = (without & LOOP_URING_NO_MODERN) ? 2 : 0; i < 3 && r == -EINVAL; i++) {
        struct io_uring_params params = {.flags = flag_sets[i] | IORING_SETUP_R_DISABLED};
        r = io_uring_queue_init_params(ENTRIES, ring, &params);
    }
    if (r < 0)
        return r;
    r = ring_restrict(ring, opcodes, sizeof opcodes);
    if (r < 0)
        io_uring_queue_exit(ring);
    return r;
}

int loop_uring_init(struct loop *l, unsigned without)
{
    static const struct loop_ops ops = {
        .name = "io_uring",
        .start = uring_start,
        .arm = uring_arm,
        .forget = uring_forget,
        .wait = uring_wait,
        .done = uring_done,
    };
    const unsigned needed = IORING_FEAT_NODROP | IORING_FEAT_FAST_POLL | IORING_FEAT_EXT_ARG;
    struct loop_uring *u = calloc(1, sizeof *u);
    if (u == NULL)
        return -ENOMEM;
    int r = setup_ring(&u->ring, without);
    if (r < 0) {
        free(u);
        return r;
    }
    if ((u->ring.features & needed) != needed) {
        io_uring_queue_exit(&u->ring);
        free(u);
        return -ENOSYS;
    }
    u->multishot = (without & LOOP_URING_NO_MULTISHOT) == 0;
    u->direct = (without & LOOP_URING_NO_DIRECT) == 0;
    TAILQ_INIT(&u->todo);
    l->ops = &ops;
    l->impl = u;
    return 0;
}
