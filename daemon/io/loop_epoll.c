/* loop_epoll.c: the event loop where io_uring is not to be had. Level-triggered epoll; each watch
 * is in the set while it is armed. epoll_pwait2() gives timers their microseconds; kernels before
 * 5.11 round up to milliseconds.
 *
 * Limits: 64 events a turn. */
#include "io/loop_impl.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <unistd.h>

#define EVENTS_PER_TURN 64

struct loop_epoll {
    int fd;
    bool coarse; /* no epoll_pwait2() */
};

static int epoll_start(struct loop *l)
{
    (void)l;
    return 0;
}

static int epoll_arm(struct loop *l, struct loop_watch *w)
{
    struct loop_epoll *e = l->impl;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = w};
    if (epoll_ctl(e->fd, EPOLL_CTL_ADD, w->fd, &event) < 0)
        return -errno;
    w->armed = true;
    return 0;
}

static void epoll_forget(struct loop *l, struct loop_watch *w)
{
    struct loop_epoll *e = l->impl;
    if (w->armed)
        epoll_ctl(e->fd, EPOLL_CTL_DEL, w->fd, NULL);
    w->armed = false;
}

static int wait_coarse(int fd, struct epoll_event *events, int64_t timeout_ns)
{
    int64_t ms = timeout_ns < 0 ? -1 : timeout_ns / 1000000 + (timeout_ns % 1000000 != 0);
    return epoll_wait(fd, events, EVENTS_PER_TURN, ms > INT32_MAX ? INT32_MAX : (int)ms);
}

static int wait_events(struct loop_epoll *e, struct epoll_event *events, int64_t timeout_ns)
{
    if (!e->coarse) {
        struct timespec t = {.tv_sec = timeout_ns / 1000000000, .tv_nsec = timeout_ns % 1000000000};
        int n = epoll_pwait2(e->fd, events, EVENTS_PER_TURN, timeout_ns < 0 ? NULL : &t, NULL);
        if (n >= 0 || (errno != ENOSYS && errno != EPERM))
            return n;
        e->coarse = true;
    }
    return wait_coarse(e->fd, events, timeout_ns);
}

static int epoll_wait_turn(struct loop *l, int64_t timeout_ns)
{
    struct epoll_event events[EVENTS_PER_TURN];
    int n = wait_events(l->impl, events, timeout_ns);
    if (n < 0)
        return errno == EINTR ? 0 : -errno;
    for (int i = 0; i < n; i++) {
        struct loop_watch *w = events[i].data.ptr;
        loop_ready(l, w, events[i].events);
        if (w->live && (w->paused || w->over))
            epoll_forget(l, w);
    }
    return 0;
}

static void epoll_done(struct loop *l)
{
    struct loop_epoll *e = l->impl;
    close(e->fd);
    free(e);
}

int loop_epoll_init(struct loop *l)
{
    static const struct loop_ops ops = {
        .name = "epoll",
        .start = epoll_start,
        .arm = epoll_arm,
        .forget = epoll_forget,
        .wait = epoll_wait_turn,
        .done = epoll_done,
    };
    struct loop_epoll *e = calloc(1, sizeof *e);
    if (e == NULL)
        return -ENOMEM;
    e->fd = epoll_create1(EPOLL_CLOEXEC);
    if (e->fd < 0) {
        int error = errno;
        free(e);
        return -error;
    }
    l->ops = &ops;
    l->impl = e;
    return 0;
}
