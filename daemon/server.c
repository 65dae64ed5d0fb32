/* server.c: see server.h.
 *
 * A connection's life. It is accepted and identified, has HELLO_SECONDS to say hello, and then has
 * a session, which the engine thread uses (dispatch_add). It ends when its socket hangs up, when it
 * sends anything after its hello, or when the engine thread gives it up (server_on_close). Each of
 * these comes to hang_up(), which closes the socket and asks the engine thread to let go of the
 * session (dispatch_remove, once); the answer, server_on_free(), frees session and connection.
 *
 * Who may listen where is settled by a lock beside the socket (PATH.lock): it is held as long as
 * the daemon lives, so a socket without a lock holder is stale and may be replaced.
 *
 * Limits: INFER_SESSIONS_MAX connections, HELLO_MAX of them without a session. */
#include "server.h"

#include "base/clock.h"
#include "base/log.h"
#include "proto/peer.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define HELLO_SECONDS 5
#define HELLO_MAX     64u

struct connection {
    struct connection *next, *previous;
    struct server *server;
    struct peer peer;
    struct session *session; /* NULL before the hello */
    int fd;                  /* -1 once hung up */
    struct loop_watch *socket_watch, *doorbell_watch;
    uint64_t accepted_us;
};

struct server {
    struct loop *loop;
    struct dispatch *dispatch;
    const struct status_page *page; /* its descriptor goes to every client */
    struct loop_watch *accept_watch;
    bool hello_timer; /* armed while somebody has not said hello: an idle daemon has no timer */
    struct connection *connections;
    uint32_t n_connections, n_without_session, next_session;
    int listen_fd, lock_fd;
    char path[sizeof((struct sockaddr_un *)0)->sun_path];
    char lock_path[sizeof((struct sockaddr_un *)0)->sun_path + 8];
};

/* ---- the socket ------------------------------------------------------------------------------ */

/* The lock's file may be removed by its last holder between our open and our flock: then we hold a
 * file that nobody else can see, and try again. */
static int take_lock(struct server *s, struct report *report)
{
    for (;;) {
        struct stat held, seen;
        s->lock_fd = open(s->lock_path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
        if (s->lock_fd < 0)
            return report_fail(report, INFER_E_SOCKET_PATH,
                               "cannot create %s: %s; choose another --socket", s->lock_path,
                               strerror(errno));
        if (flock(s->lock_fd, LOCK_EX | LOCK_NB) < 0)
            return report_fail(report, INFER_E_SOCKET_BUSY,
                               "another daemon listens at %s; stop it or choose another --socket",
                               s->path);
        if (fstat(s->lock_fd, &held) == 0 && stat(s->lock_path, &seen) == 0 &&
            held.st_ino == seen.st_ino && held.st_dev == seen.st_dev)
            return 0;
        close(s->lock_fd);
    }
}

/* The kernel may keep the listening socket of a daemon that was killed for a moment, while io_uring
 * ends its work on it. */
static bool owner_is_gone(int fd)
{
    struct ucred owner = {0};
    socklen_t n = sizeof owner;
    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &owner, &n) == 0 && owner.pid > 0 &&
           kill(owner.pid, 0) < 0 && errno == ESRCH;
}

/* Removes a socket that a dead daemon left; refuses to remove anything else. */
static int clear_path(struct server *s, struct report *report)
{
    struct stat st;
    if (lstat(s->path, &st) < 0)
        return 0;
    if (!S_ISSOCK(st.st_mode))
        return report_fail(report, INFER_E_SOCKET_PATH,
                           "%s exists and is no socket; remove it or choose another --socket",
                           s->path);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    memcpy(address.sun_path, s->path, sizeof s->path);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    int rc = fd < 0 ? -1 : connect(fd, (struct sockaddr *)&address, sizeof address);
    int why = errno;
    bool alive = rc == 0 ? !owner_is_gone(fd) : why == EAGAIN;
    if (fd >= 0)
        close(fd);
    if (alive)
        return report_fail(report, INFER_E_SOCKET_BUSY,
                           "somebody listens at %s; stop it or choose another --socket", s->path);
    unlink(s->path);
    return 0;
}

static int listen_at(struct server *s, struct report *report)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    memcpy(address.sun_path, s->path, sizeof s->path);
    s->listen_fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (s->listen_fd < 0)
        return report_fail(report, INFER_E_SOCKET_PATH, "cannot make a socket: %s",
                           strerror(errno));
    mode_t before = umask(0177);
    int rc = bind(s->listen_fd, (struct sockaddr *)&address, sizeof address);
    int why = errno;
    umask(before);
    if (rc < 0 || listen(s->listen_fd, SOMAXCONN) < 0)
        return report_fail(report, INFER_E_SOCKET_PATH,
                           "cannot listen at %s: %s; choose another --socket", s->path,
                           strerror(rc < 0 ? why : errno));
    return 0;
}

int server_new(struct loop *loop, const char *socket_path, struct server **ret,
               struct report *report)
{
    struct server *s = calloc(1, sizeof *s);
    if (s == NULL)
        return report_fail(report, INFER_E_OUT_OF_MEMORY, "no memory for the server");
    s->loop = loop;
    s->listen_fd = s->lock_fd = -1;
    int rc = 0;
    if (strlen(socket_path) >= sizeof s->path)
        rc =
            report_fail(report, INFER_E_SOCKET_PATH,
                        "the socket's path has %zu bytes, %zu is the most; choose another --socket",
                        strlen(socket_path), sizeof s->path - 1);
    strncpy(s->path, socket_path, sizeof s->path - 1);
    snprintf(s->lock_path, sizeof s->lock_path, "%s.lock", s->path);
    if (rc == 0)
        rc = take_lock(s, report);
    if (rc == 0)
        rc = clear_path(s, report);
    if (rc == 0)
        rc = listen_at(s, report);
    if (rc < 0) {
        if (s->listen_fd >= 0)
            close(s->listen_fd);
        if (s->lock_fd >= 0)
            close(s->lock_fd);
        free(s);
        return rc;
    }
    *ret = s;
    return 0;
}

/* ---- connections ----------------------------------------------------------------------------- */

static void unlink_connection(struct connection *c)
{
    struct server *s = c->server;
    if (c->previous != NULL)
        c->previous->next = c->next;
    else
        s->connections = c->next;
    if (c->next != NULL)
        c->next->previous = c->previous;
    s->n_connections--;
}

static void free_connection(struct connection *c)
{
    struct server *s = c->server;
    if (c->socket_watch != NULL)
        loop_unwatch(s->loop, c->socket_watch);
    if (c->doorbell_watch != NULL)
        loop_unwatch(s->loop, c->doorbell_watch);
    if (c->fd >= 0)
        close(c->fd);
    if (c->session != NULL)
        session_free(c->session);
    else
        s->n_without_session--;
    unlink_connection(c);
    free(c);
}

static void hang_up(struct connection *c)
{
    if (c->fd < 0)
        return; /* it was done already, and the engine thread asked */
    loop_unwatch(c->server->loop, c->socket_watch);
    c->socket_watch = NULL;
    close(c->fd);
    c->fd = -1;
    if (c->session == NULL)
        free_connection(c);
    else
        dispatch_remove(c->server->dispatch, c);
}

void server_on_close(void *connection)
{
    hang_up(connection);
}

void server_on_free(void *connection)
{
    free_connection(connection);
}

static void on_doorbell(void *ctx, uint32_t poll_events)
{
    struct connection *c = ctx;
    (void)poll_events;
    session_drain_doorbell(c->session);
    dispatch_wake(c->server->dispatch);
}

static void shake_hands(struct connection *c, const void *hello, size_t bytes)
{
    struct server *s = c->server;
    struct session *session;
    if (++s->next_session == 0)
        s->next_session = 1;
    if (peer_handshake(c->fd, &c->peer, hello, bytes, s->next_session, 0, status_page_fd(s->page),
                       &session) < 0) {
        hang_up(c);
        return;
    }
    c->session = session;
    s->n_without_session--;
    if (loop_readable(s->loop, session_doorbell(session), on_doorbell, c, &c->doorbell_watch) < 0 ||
        dispatch_add(s->dispatch, c, session) < 0)
        hang_up(c);
}

static void on_socket(void *ctx, const void *bytes, ssize_t n)
{
    struct connection *c = ctx;
    if (n > 0 && c->session == NULL)
        shake_hands(c, bytes, (size_t)n);
    else
        hang_up(c);
}

/* Too many connections: the hello is not waited for, the refusal tells why. */
static void turn_away(int fd, const struct peer *peer)
{
    struct session *none;
    struct infer_abi_hello hello = {.magic = INFER_ABI_MAGIC,
                                    .bytes = sizeof hello,
                                    .version_min = INFER_ABI_VERSION_MIN,
                                    .version_max = INFER_ABI_VERSION};
    peer_handshake(fd, peer, &hello, sizeof hello, 0, INFER_E_SESSIONS_FULL, -1, &none);
    close(fd);
}

static void arm_hello_timer(struct server *s);

/* Who connects and says nothing gives his place back. */
static void on_hello_timer(void *ctx)
{
    struct server *s = ctx;
    uint64_t now = clock_us();
    s->hello_timer = false;
    for (struct connection *c = s->connections, *next; c != NULL; c = next) {
        next = c->next;
        if (c->session == NULL && now - c->accepted_us >= HELLO_SECONDS * 1000000u)
            hang_up(c);
    }
    arm_hello_timer(s);
}

static void arm_hello_timer(struct server *s)
{
    if (s->n_without_session > 0 && !s->hello_timer)
        s->hello_timer =
            loop_timer(s->loop, HELLO_SECONDS * 1000000u, 0, on_hello_timer, s, NULL) == 0;
}

/* Who says hello does so at once; who has been silent longest makes room, so that silent
 * connections cannot keep others out. */
static void drop_oldest_silent(struct server *s)
{
    struct connection *oldest = NULL;
    for (struct connection *c = s->connections; c != NULL; c = c->next)
        if (c->session == NULL) /* newest first: the last one seen is the oldest */
            oldest = c;
    if (oldest != NULL)
        hang_up(oldest);
}

static void on_accept(void *ctx, int fd)
{
    struct server *s = ctx;
    struct peer peer;
    if (fd < 0) {
        log_warning("accept: %s", strerror(-fd));
        return;
    }
    if (peer_identify(fd, &peer) < 0) {
        close(fd);
        return;
    }
    if (s->n_without_session >= HELLO_MAX)
        drop_oldest_silent(s);
    if (s->n_connections >= INFER_SESSIONS_MAX) {
        turn_away(fd, &peer);
        return;
    }
    struct connection *c = calloc(1, sizeof *c);
    if (c == NULL) {
        close(fd);
        return;
    }
    *c = (struct connection){.server = s, .peer = peer, .fd = fd, .accepted_us = clock_us()};
    if (loop_receive(s->loop, fd, sizeof(struct infer_abi_hello) + 4096, on_socket, c,
                     &c->socket_watch) < 0) {
        close(fd);
        free(c);
        return;
    }
    c->next = s->connections;
    if (c->next != NULL)
        c->next->previous = c;
    s->connections = c;
    s->n_connections++;
    s->n_without_session++;
    arm_hello_timer(s);
}

int server_start(struct server *s, struct dispatch *d, const struct status_page *page)
{
    s->dispatch = d;
    s->page = page;
    return loop_accept(s->loop, s->listen_fd, on_accept, s, &s->accept_watch);
}

void server_stop(struct server *s)
{
    if (s->accept_watch != NULL)
        loop_unwatch(s->loop, s->accept_watch);
    s->accept_watch = NULL;
}

void server_free(struct server *s)
{
    if (s == NULL)
        return;
    server_stop(s);
    while (s->connections != NULL)
        free_connection(s->connections);
    unlink(s->path);
    close(s->listen_fd);
    unlink(s->lock_path);
    close(s->lock_fd);
    free(s);
}
