/* server.c: see server.h.
 *
 * A connection's life. It is accepted and identified, has HELLO_SECONDS to say hello, and then has
 * a session, which the engine thread uses (dispatch_add). It ends when its socket hangs up, when it
 * sends anything after its hello, or when the engine thread gives it up (server_on_close). Each of
 * these comes to hang_up(), which closes the socket and asks the engine thread to let go of the
 * session (dispatch_remove, once); the answer, server_on_free(), frees session and connection.
 *
 * Over a restart. The socket of a client that can take a second welcome (abi.h) goes into the
 * service manager's store, under the name client-NUMBER-MEMORY (peer_memory_print). The next
 * daemon gets it back, identifies the peer again, and welcomes it as server_start() begins. While
 * the manager holds its copy, closing ours tells the client nothing: to end a connection is to shut
 * it down, to leave it to the next daemon is to close it alone (server_free).
 *
 * Limits: INFER_SESSIONS_MAX connections, HELLO_MAX of them without a session for longer than
 * HELLO_PATIENCE_US, HELLO_BURST_MAX at all. */
#include "server.h"

#include "base/clock.h"
#include "base/log.h"
#include "messages.h"
#include "proto/peer.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define HELLO_SECONDS 5
#define HELLO_MAX     64u
/* Of clients that start together many are accepted before the first hello is read. */
#define HELLO_BURST_MAX   (INFER_SESSIONS_MAX / 2)
#define HELLO_PATIENCE_US 250000u
#define ENDED_TELL_US     1000000u /* between two lines about clients that were ended */

struct connection {
    struct connection *next, *previous;
    struct server *server;
    struct peer peer;
    struct session *session; /* NULL before the hello */
    int fd;                  /* -1 once hung up */
    struct loop_watch *socket_watch, *doorbell_watch;
    uint64_t accepted_us;
    char stored[NOTIFY_NAME_MAX]; /* its name in the manager's store; "": it is not there */
};

struct server {
    struct loop *loop;
    struct dispatch *dispatch;
    const struct status_page *page; /* its descriptor goes to every client */
    struct notify *notify;
    struct listener listener;
    struct loop_watch *accept_watch, *manage_watch;
    void (*on_manage)(void *ctx, int fd, const struct peer *peer);
    void *on_manage_ctx;
    struct activation_kept *formers; /* clients of a former daemon, until server_start() */
    size_t n_formers;
    uint64_t last_stored; /* number in the last name that was given */
    uint64_t ended_told_us;
    bool draining;
    bool hello_timer; /* armed while somebody has not said hello: an idle daemon has no timer */
    struct connection *connections;
    uint32_t n_connections, n_without_session, next_session;
};

int server_new(struct loop *loop, const char *socket_path, struct activation *a,
               struct notify *notify, struct server **ret, struct report *report)
{
    struct server *s = calloc(1, sizeof *s);
    if (s == NULL)
        return report_fail(report, INFER_E_OUT_OF_MEMORY, "no memory for the server");
    s->loop = loop;
    s->notify = notify;
    int rc = listener_open(socket_path, a, &s->listener, report);
    if (rc < 0) {
        free(s);
        return rc;
    }
    s->formers = a->kept;
    s->n_formers = a->n_kept;
    a->kept = NULL;
    a->n_kept = 0;
    *ret = s;
    return 0;
}

void server_on_manage(struct server *s,
                      void (*accepted)(void *ctx, int fd, const struct peer *peer), void *ctx)
{
    s->on_manage = accepted;
    s->on_manage_ctx = ctx;
}

const char *server_place(const struct server *s)
{
    return s->listener.path[0] != '\0' ? s->listener.path : "the service manager's socket";
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
    if (c->stored[0] != '\0') {
        notify_unstore(c->server->notify, c->stored);
        shutdown(c->fd, SHUT_RDWR); /* the manager's copy would keep the client waiting */
    }
    close(c->fd);
    c->fd = -1;
    if (c->session == NULL)
        free_connection(c);
    else
        dispatch_remove(c->server->dispatch, c);
}

void server_on_close(void *connection)
{
    const struct connection *c = connection;
    struct log_fields fields = {
        .message_id = MESSAGE_CLIENT_ENDED, .has_uid = true, .uid = (unsigned)c->peer.uid};
    uint64_t now = clock_us();
    if (c->fd >= 0 && now >= c->server->ended_told_us + ENDED_TELL_US) { /* no flood by a client */
        c->server->ended_told_us = now;
        log_event(LOG_LEVEL_INFO, &fields,
                  "process %d of user %u lost its connection: it broke the protocol, or there was "
                  "no memory for it",
                  (int)c->peer.pid, (unsigned)c->peer.uid);
    }
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

static uint32_t next_session(struct server *s)
{
    if (++s->next_session == 0)
        s->next_session = 1;
    return s->next_session;
}

/* Negative: the connection is to be hung up. */
static int begin_session(struct connection *c, struct session *session)
{
    struct server *s = c->server;
    c->session = session;
    s->n_without_session--;
    int rc = loop_readable(s->loop, session_doorbell(session), on_doorbell, c, &c->doorbell_watch);
    return rc < 0 ? rc : dispatch_add(s->dispatch, c, session);
}

/* A client that was promised it and is not stored after all sees its socket hang up with us. */
static void store(struct connection *c)
{
    struct server *s = c->server;
    char name[NOTIFY_NAME_MAX], memory[PEER_MEMORY_TEXT];
    peer_memory_print(c->session, memory);
    snprintf(name, sizeof name, "client-%llu-%s", (unsigned long long)++s->last_stored, memory);
    if (notify_store(s->notify, c->fd, name) == 0)
        memcpy(c->stored, name, sizeof name);
}

static void shake_hands(struct connection *c, const void *hello, size_t bytes)
{
    struct server *s = c->server;
    struct session *session;
    c->peer.kept = notify_stores(s->notify);
    if (peer_handshake(c->fd, &c->peer, hello, bytes, next_session(s),
                       s->draining ? INFER_E_SHUTDOWN : 0, status_page_fd(s->page), &session) < 0 ||
        begin_session(c, session) < 0) {
        hang_up(c);
        return;
    }
    if (session_peer(session)->kept)
        store(c);
}

static void on_socket(void *ctx, const void *bytes, ssize_t n)
{
    struct connection *c = ctx;
    if (n > 0 && c->session == NULL)
        shake_hands(c, bytes, (size_t)n);
    else
        hang_up(c);
}

/* The hello is not waited for, the refusal tells why. */
static void turn_away(int fd, const struct peer *peer, int code)
{
    struct session *none;
    struct infer_abi_hello hello = {.magic = INFER_ABI_MAGIC,
                                    .bytes = sizeof hello,
                                    .version_min = INFER_ABI_VERSION_MIN,
                                    .version_max = INFER_ABI_VERSION};
    peer_handshake(fd, peer, &hello, sizeof hello, 0, code, -1, &none);
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
    if (oldest != NULL && (s->n_without_session >= HELLO_BURST_MAX ||
                           clock_us() - oldest->accepted_us > HELLO_PATIENCE_US))
        hang_up(oldest);
}

/* NULL: fd is closed. */
static struct connection *new_connection(struct server *s, int fd, const struct peer *peer)
{
    struct connection *c = calloc(1, sizeof *c);
    if (c == NULL) {
        close(fd);
        return NULL;
    }
    *c = (struct connection){.server = s, .peer = *peer, .fd = fd, .accepted_us = clock_us()};
    if (loop_receive(s->loop, fd, sizeof(struct infer_abi_hello) + 4096, on_socket, c,
                     &c->socket_watch) < 0) {
        close(fd);
        free(c);
        return NULL;
    }
    c->next = s->connections;
    if (c->next != NULL)
        c->next->previous = c;
    s->connections = c;
    s->n_connections++;
    s->n_without_session++;
    return c;
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
    if (s->draining)
        turn_away(fd, &peer, INFER_E_SHUTDOWN);
    else if (s->n_connections >= INFER_SESSIONS_MAX)
        turn_away(fd, &peer, INFER_E_SESSIONS_FULL);
    else if (new_connection(s, fd, &peer) != NULL)
        arm_hello_timer(s);
}

/* Permissions of the socket let root alone, or the daemon's user, in; but they can be changed. */
static void on_accept_manager(void *ctx, int fd)
{
    struct server *s = ctx;
    struct peer peer;
    if (fd < 0) {
        log_warning("accept at the managing socket: %s", strerror(-fd));
        return;
    }
    if (s->on_manage != NULL && peer_identify(fd, &peer) == 0 &&
        (peer.uid == 0 || peer.uid == geteuid()))
        s->on_manage(s->on_manage_ctx, fd, &peer);
    else
        close(fd);
}

/* ---- clients of a former daemon -------------------------------------------------------------- */

/* "client-NUMBER-MEMORY" */
static bool parse_stored(const char *name, uint64_t *ret_number, struct peer_memory *ret)
{
    const char *digits = name + strlen("client-");
    size_t n = strspn(digits, "0123456789");
    if (strncmp(name, "client-", strlen("client-")) != 0 || n == 0 || n > 18 || digits[n] != '-' ||
        !peer_memory_parse(digits + n + 1, ret))
        return false;
    *ret_number = strtoull(digits, NULL, 10);
    return true;
}

/* fd is taken over in any case. */
static bool adopt(struct server *s, int fd, const char *name)
{
    struct peer peer;
    struct peer_memory memory;
    uint64_t number = 0;
    struct session *session;
    bool known = parse_stored(name, &number, &memory) && peer_identify(fd, &peer) == 0 &&
                 s->n_connections < INFER_SESSIONS_MAX;
    if (number > s->last_stored)
        s->last_stored = number;
    struct connection *c = known ? new_connection(s, fd, &peer) : NULL;
    if (!known) {
        shutdown(fd, SHUT_RDWR); /* whoever it is connects anew */
        close(fd);
        notify_unstore(s->notify, name);
    }
    if (c == NULL)
        return false;
    snprintf(c->stored, sizeof c->stored, "%s", name);
    if (peer_welcome_again(fd, &peer, &memory, next_session(s), status_page_fd(s->page), &session) <
            0 ||
        begin_session(c, session) < 0) {
        hang_up(c);
        return false;
    }
    return true;
}

static void adopt_formers(struct server *s)
{
    size_t n = 0;
    for (size_t i = 0; i < s->n_formers; i++) {
        n += adopt(s, s->formers[i].fd, s->formers[i].name);
        s->formers[i].fd = -1;
    }
    if (s->n_formers > 0)
        log_event(LOG_LEVEL_INFO, &(struct log_fields){.message_id = MESSAGE_CLIENTS_KEPT},
                  "%zu of %zu clients of the former daemon go on", n, s->n_formers);
    free(s->formers);
    s->formers = NULL;
    s->n_formers = 0;
}

/* ---- life ------------------------------------------------------------------------------------ */

int server_start(struct server *s, struct dispatch *d, const struct status_page *page)
{
    s->dispatch = d;
    s->page = page;
    adopt_formers(s);
    int rc = loop_accept(s->loop, s->listener.use_fd, on_accept, s, &s->accept_watch);
    if (rc == 0 && s->listener.manage_fd >= 0)
        rc = loop_accept(s->loop, s->listener.manage_fd, on_accept_manager, s, &s->manage_watch);
    return rc;
}

void server_drain(struct server *s)
{
    s->draining = true;
    if (s->listener.path[0] == '\0')
        server_stop(s);
}

void server_stop(struct server *s)
{
    if (s->accept_watch != NULL)
        loop_unwatch(s->loop, s->accept_watch);
    if (s->manage_watch != NULL)
        loop_unwatch(s->loop, s->manage_watch);
    s->accept_watch = s->manage_watch = NULL;
}

void server_free(struct server *s)
{
    if (s == NULL)
        return;
    server_stop(s);
    while (s->connections != NULL)
        free_connection(s->connections);
    for (size_t i = 0; i < s->n_formers; i++) /* of a start that failed: the next one has them */
        close(s->formers[i].fd);
    free(s->formers);
    listener_close(&s->listener);
    free(s);
}
