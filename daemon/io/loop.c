/* loop.c: what both event loops share: watches and their lives, timers, posted calls, signals, and
 * what to do with a descriptor that is ready. See loop.h for the contract, loop_impl.h for the cut.
 *
 * Invariants: a watch is in exactly one of l->watches and l->dead. The heap has room for every
 * watch that may enter it, so arming a timer never fails. Dead watches are freed only between
 * turns, when no callback of theirs can be on the stack.
 *
 * Threads: l->calls, l->stopping, l->stop_code and wake_fd are for any thread, the rest is the
 * loop's. A poster writes wake_fd only when it found the list empty; the loop reads wake_fd before
 * it takes the list, so a call pushed after the taking finds the list empty and writes again.
 *
 * Limits: 16 connections per listening socket and turn, so that a storm of them starves nobody. */
#include "io/loop_impl.h"

#include "base/clock.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#define ACCEPTS_PER_TURN 16
#define ACCEPT_PAUSE_NS  100000000u

struct loop_call {
    struct loop_call *next;
    void (*fn)(void *ctx);
    void *ctx;
};

/* ---- the timer heap: a binary heap by (deadline, sequence) ----------------------------------- */

static bool timer_before(const struct loop_watch *a, const struct loop_watch *b)
{
    return a->deadline != b->deadline ? a->deadline < b->deadline : a->sequence < b->sequence;
}

static void heap_set(struct loop *l, size_t at, struct loop_watch *w)
{
    l->heap[at] = w;
    w->heap_at = at;
}

static void heap_up(struct loop *l, size_t at, struct loop_watch *w)
{
    while (at > 0 && timer_before(w, l->heap[(at - 1) / 2])) {
        heap_set(l, at, l->heap[(at - 1) / 2]);
        at = (at - 1) / 2;
    }
    heap_set(l, at, w);
}

static void heap_down(struct loop *l, size_t at, struct loop_watch *w)
{
    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= l->n_heap)
            break;
        if (child + 1 < l->n_heap && timer_before(l->heap[child + 1], l->heap[child]))
            child++;
        if (!timer_before(l->heap[child], w))
            break;
        heap_set(l, at, l->heap[child]);
        at = child;
    }
    heap_set(l, at, w);
}

static void heap_add(struct loop *l, struct loop_watch *w, uint64_t deadline)
{
    assert(w->heap_at == SIZE_MAX && l->n_heap < l->heap_capacity);
    w->deadline = deadline;
    w->sequence = l->sequence++;
    heap_up(l, l->n_heap++, w);
}

static void heap_remove(struct loop *l, struct loop_watch *w)
{
    size_t at = w->heap_at;
    if (at == SIZE_MAX)
        return;
    w->heap_at = SIZE_MAX;
    struct loop_watch *last = l->heap[--l->n_heap];
    if (last == w)
        return;
    if (at > 0 && timer_before(last, l->heap[(at - 1) / 2]))
        heap_up(l, at, last);
    else
        heap_down(l, at, last);
}

static int heap_reserve(struct loop *l, size_t n)
{
    if (n <= l->heap_capacity)
        return 0;
    size_t capacity = l->heap_capacity == 0 ? 16 : 2 * l->heap_capacity;
    struct loop_watch **heap = reallocarray(l->heap, capacity, sizeof *heap);
    if (heap == NULL)
        return -ENOMEM;
    l->heap = heap;
    l->heap_capacity = capacity;
    return 0;
}

static uint64_t saturated_add(uint64_t a, uint64_t b)
{
    return a > UINT64_MAX - b ? UINT64_MAX : a + b;
}

static uint64_t ns_of_us(uint64_t us)
{
    return us > UINT64_MAX / 1000 ? UINT64_MAX : us * 1000;
}

/* The first time after now that lies a whole number of intervals behind deadline. */
static uint64_t next_deadline(uint64_t deadline, uint64_t interval, uint64_t now)
{
    uint64_t late = now - deadline;
    return saturated_add(now, interval - late % interval);
}

static void timer_fire(struct loop *l, struct loop_watch *w, uint64_t now)
{
    heap_remove(l, w);
    if (w->kind == LOOP_WATCH_ACCEPT) {
        w->paused = false;
        if (l->ops->arm(l, w) < 0) { /* try again as if accept had failed */
            w->paused = true;
            heap_add(l, w, now + ACCEPT_PAUSE_NS);
        }
        return;
    }
    if (w->interval > 0)
        heap_add(l, w, next_deadline(w->deadline, w->interval, now));
    w->fn.timer(w->ctx);
    if (w->live && w->interval == 0 && w->unowned)
        loop_unwatch(l, w);
}

/* Fires what was due when the turn began; timers that callbacks add wait for the next turn. */
static void timers_run(struct loop *l)
{
    if (l->n_heap == 0)
        return;
    uint64_t now = clock_ns(), limit = l->sequence;
    while (l->n_heap > 0 && l->heap[0]->deadline <= now && l->heap[0]->sequence < limit)
        timer_fire(l, l->heap[0], now);
}

static int64_t timers_wait_ns(const struct loop *l)
{
    if (l->n_heap == 0)
        return -1;
    uint64_t now = clock_ns(), deadline = l->heap[0]->deadline;
    if (deadline <= now)
        return 0;
    return deadline - now > INT64_MAX ? INT64_MAX : (int64_t)(deadline - now);
}

/* ---- watches --------------------------------------------------------------------------------- */

static int watch_new(struct loop *l, enum loop_watch_kind kind, int fd, size_t bytes, void *ctx,
                     struct loop_watch **ret)
{
    bool timed = kind == LOOP_WATCH_TIMER || kind == LOOP_WATCH_ACCEPT;
    if (bytes > SIZE_MAX - sizeof(struct loop_watch))
        return -EINVAL;
    int r = timed ? heap_reserve(l, l->n_timed + 1) : 0;
    if (r < 0)
        return r;
    struct loop_watch *w = calloc(1, sizeof *w + bytes);
    if (w == NULL)
        return -ENOMEM;
    w->kind = kind;
    w->live = true;
    w->fd = fd;
    w->ctx = ctx;
    w->heap_at = SIZE_MAX;
    w->bytes_max = bytes;
    if (timed)
        l->n_timed++;
    TAILQ_INSERT_TAIL(&l->watches, w, links);
    *ret = w;
    return 0;
}

static void watch_bury(struct loop *l, struct loop_watch *w)
{
    w->live = false;
    heap_remove(l, w);
    if (w->kind == LOOP_WATCH_TIMER || w->kind == LOOP_WATCH_ACCEPT)
        l->n_timed--;
    TAILQ_REMOVE(&l->watches, w, links);
    TAILQ_INSERT_TAIL(&l->dead, w, links);
}

/* Starts the watch; on failure it is gone again. */
static int watch_start(struct loop *l, struct loop_watch *w, struct loop_watch **ret)
{
    int r = l->ops->arm(l, w);
    if (r < 0) {
        watch_bury(l, w);
        return r;
    }
    if (ret != NULL)
        *ret = w;
    else
        w->unowned = true;
    return 0;
}

static void dead_free(struct loop *l)
{
    struct loop_watch *w, *next;
    for (w = TAILQ_FIRST(&l->dead); w != NULL; w = next) {
        next = TAILQ_NEXT(w, links);
        if (w->in_flight > 0 || w->on_todo)
            continue;
        TAILQ_REMOVE(&l->dead, w, links);
        free(w);
    }
}

int loop_accept(struct loop *l, int listen_fd, void (*fn)(void *ctx, int fd), void *ctx,
                struct loop_watch **ret)
{
    struct loop_watch *w;
    int r = watch_new(l, LOOP_WATCH_ACCEPT, listen_fd, 0, ctx, &w);
    if (r < 0)
        return r;
    w->fn.accept = fn;
    return watch_start(l, w, ret);
}

int loop_receive(struct loop *l, int fd, size_t max_bytes,
                 void (*fn)(void *ctx, const void *bytes, ssize_t n), void *ctx,
                 struct loop_watch **ret)
{
    struct loop_watch *w;
    if (max_bytes == 0)
        return -EINVAL;
    int r = watch_new(l, LOOP_WATCH_RECEIVE, fd, max_bytes, ctx, &w);
    if (r < 0)
        return r;
    w->fn.receive = fn;
    w->vector = (struct iovec){.iov_base = w->bytes, .iov_len = max_bytes};
    w->message = (struct msghdr){.msg_iov = &w->vector, .msg_iovlen = 1};
    return watch_start(l, w, ret);
}

int loop_readable(struct loop *l, int fd, void (*fn)(void *ctx, uint32_t poll_events), void *ctx,
                  struct loop_watch **ret)
{
    struct loop_watch *w;
    int r = watch_new(l, LOOP_WATCH_READABLE, fd, 0, ctx, &w);
    if (r < 0)
        return r;
    w->fn.readable = fn;
    return watch_start(l, w, ret);
}

int loop_timer(struct loop *l, uint64_t first_us, uint64_t interval_us, void (*fn)(void *ctx),
               void *ctx, struct loop_watch **ret)
{
    struct loop_watch *w;
    int r = watch_new(l, LOOP_WATCH_TIMER, -1, 0, ctx, &w);
    if (r < 0)
        return r;
    w->fn.timer = fn;
    w->interval = ns_of_us(interval_us);
    heap_add(l, w, saturated_add(clock_ns(), ns_of_us(first_us)));
    if (ret != NULL)
        *ret = w;
    else
        w->unowned = true;
    return 0;
}

int loop_signal(struct loop *l, const sigset_t *set, void (*fn)(void *ctx, int signo), void *ctx,
                struct loop_watch **ret)
{
    struct loop_watch *w;
    int r = pthread_sigmask(SIG_BLOCK, set, NULL);
    if (r != 0)
        return -r;
    int fd = signalfd(-1, set, SFD_NONBLOCK | SFD_CLOEXEC);
    if (fd < 0)
        return -errno;
    r = watch_new(l, LOOP_WATCH_SIGNAL, fd, 0, ctx, &w);
    if (r >= 0) {
        w->fn.signal = fn;
        r = watch_start(l, w, ret);
    }
    if (r < 0)
        close(fd);
    return r;
}

void loop_unwatch(struct loop *l, struct loop_watch *w)
{
    if (w == NULL)
        return;
    assert(w->live);
    watch_bury(l, w);
    if (w->kind != LOOP_WATCH_TIMER)
        l->ops->forget(l, w);
    if (w->kind == LOOP_WATCH_SIGNAL)
        close(w->fd);
}

/* ---- what a ready descriptor means ----------------------------------------------------------- */

static bool accept_transient(int error)
{
    switch (error) {
    case ECONNABORTED: /* the peer left while it waited in the queue */
    case EINTR:
    case EAGAIN:
    case EPROTO:
    case EPERM: /* a firewall's word on one connection */
        return true;
    default:
        return false;
    }
}

void loop_accepted(struct loop *l, struct loop_watch *w, int fd_or_error)
{
    if (fd_or_error < 0 && accept_transient(-fd_or_error))
        return;
    w->fn.accept(w->ctx, fd_or_error);
    if (fd_or_error >= 0 || !w->live)
        return;
    /* Out of descriptors or memory: the connection stays in the queue, and trying at once would
     * spin. A descriptor that cannot accept at all is over. */
    if (fd_or_error == -EBADF || fd_or_error == -EINVAL || fd_or_error == -ENOTSOCK ||
        fd_or_error == -EOPNOTSUPP) {
        w->over = true;
    } else {
        w->paused = true;
        heap_remove(l, w);
        heap_add(l, w, clock_ns() + ACCEPT_PAUSE_NS);
    }
}

void loop_received(struct loop *l, struct loop_watch *w, ssize_t n, int message_flags)
{
    (void)l;
    if (n == -EINTR || n == -EAGAIN)
        return;
    if (n > 0 && (message_flags & MSG_TRUNC) != 0)
        n = -EMSGSIZE;
    if (n <= 0)
        w->over = true;
    w->fn.receive(w->ctx, w->bytes, n);
}

static void accept_ready(struct loop *l, struct loop_watch *w)
{
    for (int i = 0; i < ACCEPTS_PER_TURN && w->live && !w->paused && !w->over; i++) {
        int fd = accept4(w->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd < 0 && errno == EAGAIN)
            return;
        loop_accepted(l, w, fd < 0 ? -errno : fd);
    }
}

static void receive_ready(struct loop *l, struct loop_watch *w)
{
    w->message.msg_flags = 0;
    ssize_t n = recvmsg(w->fd, &w->message, MSG_DONTWAIT);
    if (n < 0)
        n = -errno;
    loop_received(l, w, n, w->message.msg_flags);
}

static void signal_ready(struct loop_watch *w)
{
    struct signalfd_siginfo info;
    while (w->live && read(w->fd, &info, sizeof info) == (ssize_t)sizeof info)
        w->fn.signal(w->ctx, (int)info.ssi_signo);
}

void loop_ready(struct loop *l, struct loop_watch *w, uint32_t poll_events)
{
    if (!w->live || w->over || w->paused)
        return;
    switch (w->kind) {
    case LOOP_WATCH_ACCEPT:
        accept_ready(l, w);
        break;
    case LOOP_WATCH_RECEIVE:
        receive_ready(l, w);
        break;
    case LOOP_WATCH_READABLE:
        w->over = (poll_events & POLLNVAL) != 0;
        w->fn.readable(w->ctx, poll_events);
        break;
    case LOOP_WATCH_SIGNAL:
        signal_ready(w);
        break;
    case LOOP_WATCH_TIMER:
        break;
    }
}

/* ---- posted calls, running, stopping --------------------------------------------------------- */

static void wake(struct loop *l)
{
    uint64_t one = 1;
    int saved = errno; /* a signal handler may be here */
    ssize_t n = write(l->wake_fd, &one, sizeof one);
    (void)n; /* EAGAIN: 2^64 wake-ups are pending, one more says nothing new */
    errno = saved;
}

int loop_post(struct loop *l, void (*fn)(void *ctx), void *ctx)
{
    struct loop_call *call = malloc(sizeof *call);
    if (call == NULL)
        return -ENOMEM;
    call->fn = fn;
    call->ctx = ctx;
    struct loop_call *head = atomic_load_explicit(&l->calls, memory_order_relaxed);
    do
        call->next = head;
    while (!atomic_compare_exchange_weak_explicit(&l->calls, &head, call, memory_order_release,
                                                  memory_order_relaxed));
    if (head == NULL)
        wake(l);
    return 0;
}

/* Takes the whole list, newest first, and turns it round. */
static struct loop_call *calls_take(struct loop *l)
{
    struct loop_call *newest = atomic_exchange_explicit(&l->calls, NULL, memory_order_acquire);
    struct loop_call *oldest = NULL;
    while (newest != NULL) {
        struct loop_call *next = newest->next;
        newest->next = oldest;
        oldest = newest;
        newest = next;
    }
    return oldest;
}

static void calls_run(struct loop *l)
{
    struct loop_call *call = calls_take(l);
    while (call != NULL) {
        struct loop_call *next = call->next;
        call->fn(call->ctx);
        free(call);
        call = next;
    }
}

static void wake_ready(void *ctx, uint32_t poll_events)
{
    struct loop *l = ctx;
    uint64_t count;
    (void)poll_events;
    if (read(l->wake_fd, &count, sizeof count) == (ssize_t)sizeof count)
        calls_run(l);
}

void loop_stop(struct loop *l, int code)
{
    atomic_store(&l->stop_code, code);
    atomic_store(&l->stopping, true);
    wake(l);
}

int loop_run(struct loop *l)
{
    int r = l->ops->start(l);
    if (r < 0)
        return r;
    while (!atomic_load(&l->stopping)) {
        r = l->ops->wait(l, timers_wait_ns(l));
        if (r < 0)
            return r;
        l->wakeups++;
        timers_run(l);
        dead_free(l);
    }
    calls_run(l);
    dead_free(l);
    atomic_store(&l->stopping, false);
    return atomic_load(&l->stop_code);
}

uint64_t loop_wakeups(const struct loop *l)
{
    return l->wakeups;
}

const char *loop_name(const struct loop *l)
{
    return l->ops->name;
}

/* ---- life ------------------------------------------------------------------------------------ */

static int init_implementation(struct loop *l, enum loop_kind kind, unsigned without)
{
    int r = kind == LOOP_EPOLL ? -ENOSYS : loop_uring_init(l, without);
    if (r < 0 && kind != LOOP_IO_URING)
        r = loop_epoll_init(l);
    return r;
}

int loop_new_without(enum loop_kind kind, unsigned without, struct loop **ret)
{
    struct loop *l = calloc(1, sizeof *l);
    if (l == NULL)
        return -ENOMEM;
    TAILQ_INIT(&l->watches);
    TAILQ_INIT(&l->dead);
    l->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    int r = l->wake_fd < 0 ? -errno : init_implementation(l, kind, without);
    if (r < 0) {
        if (l->wake_fd >= 0)
            close(l->wake_fd);
        free(l);
        return r;
    }
    r = loop_readable(l, l->wake_fd, wake_ready, l, NULL);
    if (r < 0) {
        loop_free(l);
        return r;
    }
    *ret = l;
    return 0;
}

int loop_new(enum loop_kind kind, struct loop **ret)
{
    return loop_new_without(kind, 0, ret);
}

void loop_free(struct loop *l)
{
    if (l == NULL)
        return;
    struct loop_watch *w;
    while ((w = TAILQ_FIRST(&l->watches)) != NULL)
        loop_unwatch(l, w);
    l->ops->done(l);
    dead_free(l);
    struct loop_call *call = calls_take(l);
    while (call != NULL) {
        struct loop_call *next = call->next;
        free(call);
        call = next;
    }
    close(l->wake_fd);
    free(l->heap);
    free(l);
}
