/* poll.c: infer_poll_fd(), one descriptor that speaks for a connection in a program's main loop.
 *
 * It is an epoll set of three: the bell, which the daemon rings while client.waiting is EVENTFD,
 * and which hangs up when the daemon dies; the socket, which becomes readable when it hangs up,
 * too, or when the next daemon says welcome; and the nudge, an eventfd of our own for events that
 * another thread or a one-shot call took out of the ring.
 *
 * Rule against lost wake-ups: whenever a call goes back to the main loop with nothing more to give
 * (infer_next() returned 0, DONE or an error; a request was submitted; a one-shot call ended), the
 * flag is stored, then a fence, then the ring is looked at once more (edge C of ring.h); what came
 * in between is announced with the nudge. The bell is emptied only just before that, so a ring that
 * comes late costs a needless look, never a missed one. */
#include "conn.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

void poll_nudge(struct infer_conn *c)
{
    static const uint64_t one = 1;
    if (c->poll_fd < 0 || c->nudged)
        return;
    c->nudged = true;
    (void)!write(c->nudge_fd, &one, sizeof one);
}

void poll_arm(struct infer_conn *c)
{
    if (c->poll_fd < 0)
        return;
    if (c->ready_first != NULL)
        poll_nudge(c);
    if (c->leader || c->lost != 0) /* a leader comes here itself when it is through */
        return;
    conn_publish_head(c);
    c->poll_armed = true;
    infer_ring_store(&c->link.client->waiting, INFER_ABI_EVENTFD);
    infer_ring_fence(); /* edge C */
    if (infer_ring_load(&c->link.daemon->token_tail) != c->token_head ||
        infer_ring_load(&c->link.daemon->closed) != 0)
        poll_nudge(c);
}

void poll_disarm(struct infer_conn *c)
{
    if (!c->poll_armed)
        return;
    c->poll_armed = false;
    c->poll_dirty = true;
    if (c->lost == 0)
        infer_ring_store(&c->link.client->waiting, INFER_ABI_AWAKE);
}

void poll_quiet(struct infer_conn *c)
{
    uint8_t bytes[64];
    if (c->poll_fd < 0)
        return;
    if (c->poll_dirty && c->lost == 0)
        while (read(c->link.fd[3], bytes, sizeof bytes) == (ssize_t)sizeof bytes)
            ;
    c->poll_dirty = false;
    if (c->nudged && c->ready_first == NULL) {
        (void)!read(c->nudge_fd, bytes, sizeof bytes);
        c->nudged = false;
    }
}

int poll_add_link(struct infer_conn *c)
{
    struct epoll_event bell = {.events = EPOLLIN};
    struct epoll_event hangup = {.events = EPOLLIN | EPOLLRDHUP};
    if (c->poll_fd < 0)
        return 0;
    if (epoll_ctl(c->poll_fd, EPOLL_CTL_ADD, c->link.fd[3], &bell) < 0 ||
        epoll_ctl(c->poll_fd, EPOLL_CTL_ADD, c->link.socket, &hangup) < 0)
        return -1;
    return 0;
}

void poll_remove_link(struct infer_conn *c)
{
    if (c->poll_fd < 0)
        return;
    c->poll_armed = c->poll_dirty = false;
    (void)epoll_ctl(c->poll_fd, EPOLL_CTL_DEL, c->link.fd[3], NULL);
    (void)epoll_ctl(c->poll_fd, EPOLL_CTL_DEL, c->link.socket, NULL);
}

void poll_remove_bell(struct infer_conn *c)
{
    if (c->poll_fd < 0)
        return;
    c->poll_armed = c->poll_dirty = false;
    (void)epoll_ctl(c->poll_fd, EPOLL_CTL_DEL, c->link.fd[3], NULL);
}

void poll_done(struct infer_conn *c)
{
    if (c->poll_fd >= 0)
        close(c->poll_fd);
    if (c->nudge_fd >= 0)
        close(c->nudge_fd);
    c->poll_fd = c->nudge_fd = -1;
    c->poll_armed = c->poll_dirty = c->nudged = false;
}

static int make_poll(struct infer_conn *c)
{
    struct epoll_event nudge = {.events = EPOLLIN};
    c->nudge_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    c->poll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (c->nudge_fd < 0 || c->poll_fd < 0 ||
        epoll_ctl(c->poll_fd, EPOLL_CTL_ADD, c->nudge_fd, &nudge) < 0 || poll_add_link(c) < 0) {
        poll_done(c);
        return conn_fail(c, INFER_E_OUT_OF_MEMORY, "no descriptor for the epoll set");
    }
    if (c->lost != 0 && c->link.kept) { /* what is over would stay readable */
        poll_remove_bell(c);
        if (c->welcome_until_us == 0)
            poll_remove_link(c);
    }
    return 0;
}

API int infer_poll_fd(struct infer_conn *conn)
{
    if (conn == NULL)
        return -INFER_E_INVALID;
    conn_check_fork(conn);
    pthread_mutex_lock(&conn->write_mutex);
    int r = conn->linked ? 0 : conn_ensure(conn); /* in a child, or after a failed reconnect */
    pthread_mutex_lock(&conn->mutex);
    if (r == 0 && conn->poll_fd < 0 && (r = make_poll(conn)) == 0)
        poll_arm(conn);
    if (r == 0)
        r = conn->poll_fd;
    pthread_mutex_unlock(&conn->mutex);
    pthread_mutex_unlock(&conn->write_mutex);
    return r;
}
