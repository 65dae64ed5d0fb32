/* notify.c: see notify.h.
 *
 * Owns one datagram socket. The library's sd_notify() is not used for sending: it makes a socket
 * for each message, which a sandbox may forbid, and waits without bound when the manager's queue is
 * full, which would stop the event thread.
 *
 * Timers: one while a status line waits for its second to end; the watchdog's. An idle daemon has
 * none but the latter. */
#include "notify.h"

#include "base/clock.h"
#include "base/log.h"
#include "messages.h"

#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

/* How often a message is tried, for NOTIFY_PATIENCE_MS each. */
#define TRIES_READY 40
#define TRIES       1
#define AT_ONCE     0

struct notify {
    struct loop *loop;
    int fd; /* -1: nobody to tell */
    struct sockaddr_un address;
    socklen_t address_bytes;
    bool ready, stores;
    char status[NOTIFY_STATUS_MAX], sent[NOTIFY_STATUS_MAX];
    uint64_t sent_us; /* of the last status; 0: none */
    struct loop_watch *status_timer;
    uint64_t progress; /* bytes, as last told */
    uint64_t watchdog_us;
    struct loop_watch *watchdog_timer;
    bool (*moves)(void *ctx);
    void *moves_ctx;
    bool hung; /* said so in the log */
};

/* ---- messages -------------------------------------------------------------------------------- */

/* fd: -1, or a descriptor to pass. */
static int send_message(struct notify *n, const char *text, int fd, int tries)
{
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control = {{0}};
    struct iovec part = {(void *)(uintptr_t)text, strlen(text)};
    struct msghdr message = {.msg_name = &n->address,
                             .msg_namelen = n->address_bytes,
                             .msg_iov = &part,
                             .msg_iovlen = 1};
    if (fd >= 0) {
        message.msg_control = control.bytes;
        message.msg_controllen = sizeof control.bytes;
        struct cmsghdr *c = CMSG_FIRSTHDR(&message);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof fd);
        memcpy(CMSG_DATA(c), &fd, sizeof fd);
    }
    ssize_t sent;
    do
        sent = sendmsg(n->fd, &message, MSG_NOSIGNAL | (tries == AT_ONCE ? MSG_DONTWAIT : 0));
    while (sent < 0 && (errno == EINTR || (errno == EAGAIN && --tries > 0)));
    if (sent >= 0)
        return 0;
    int error = errno;
    log_debug("the service manager was not told '%.60s': %s", text, strerror(error));
    return -error;
}

/* An absolute path, or '@' and a name without one. */
static int read_address(struct notify *n, const char *text)
{
    size_t bytes = strlen(text);
    if ((text[0] != '/' && text[0] != '@') || bytes < 2 || bytes >= sizeof n->address.sun_path)
        return -EINVAL;
    n->address.sun_family = AF_UNIX;
    memcpy(n->address.sun_path, text, bytes);
    if (text[0] == '@')
        n->address.sun_path[0] = '\0';
    n->address_bytes =
        (socklen_t)(offsetof(struct sockaddr_un, sun_path) + bytes + (text[0] == '/'));
    return 0;
}

static int open_socket(struct notify *n, const char *address)
{
    struct timeval patience = {.tv_usec = NOTIFY_PATIENCE_MS * 1000};
    int rc = read_address(n, address);
    if (rc < 0)
        return rc;
    n->fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (n->fd < 0)
        return -errno;
    (void)setsockopt(n->fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    return 0;
}

int notify_new(struct loop *loop, struct notify **ret)
{
    const char *address = getenv("NOTIFY_SOCKET"), *store = getenv("FDSTORE");
    struct notify *n = calloc(1, sizeof *n);
    if (n == NULL)
        return -ENOMEM;
    n->loop = loop;
    n->fd = -1;
    int rc = address != NULL ? open_socket(n, address) : 0;
    if (rc < 0) {
        free(n);
        return rc;
    }
    if (n->fd >= 0) {
        n->stores = store == NULL || strtoul(store, NULL, 10) > 0;
        if (sd_watchdog_enabled(0, &n->watchdog_us) <= 0)
            n->watchdog_us = 0;
    }
    unsetenv("NOTIFY_SOCKET");
    unsetenv("WATCHDOG_USEC");
    unsetenv("WATCHDOG_PID");
    unsetenv("FDSTORE");
    *ret = n;
    return 0;
}

void notify_free(struct notify *n)
{
    if (n == NULL)
        return;
    if (n->status_timer != NULL)
        loop_unwatch(n->loop, n->status_timer);
    if (n->watchdog_timer != NULL)
        loop_unwatch(n->loop, n->watchdog_timer);
    if (n->fd >= 0)
        close(n->fd);
    free(n);
}

bool notify_is_on(const struct notify *n)
{
    return n != NULL && n->fd >= 0;
}

/* ---- states ---------------------------------------------------------------------------------- */

/* The text without what would end its line. */
static void take_status(struct notify *n, const char *text)
{
    snprintf(n->status, sizeof n->status, "%s", text);
    for (char *c = n->status; *c != '\0'; c++)
        if ((unsigned char)*c < 0x20)
            *c = ' ';
}

void notify_ready(struct notify *n, const char *status)
{
    char text[NOTIFY_STATUS_MAX + 64];
    if (!notify_is_on(n))
        return;
    n->ready = true;
    take_status(n, status);
    snprintf(text, sizeof text, "READY=1\nSTATUS=%s", n->status);
    if (send_message(n, text, -1, TRIES_READY) == 0)
        memcpy(n->sent, n->status, sizeof n->sent);
    n->sent_us = clock_us();
}

void notify_reloading(struct notify *n)
{
    char text[64];
    if (!notify_is_on(n))
        return;
    snprintf(text, sizeof text, "RELOADING=1\nMONOTONIC_USEC=%llu", (unsigned long long)clock_us());
    (void)send_message(n, text, -1, TRIES);
}

void notify_stopping(struct notify *n, uint64_t at_most_us)
{
    char text[64];
    if (!notify_is_on(n))
        return;
    snprintf(text, sizeof text, "STOPPING=1\nEXTEND_TIMEOUT_USEC=%llu",
             (unsigned long long)at_most_us);
    (void)send_message(n, text, -1, TRIES);
}

/* ---- the status line ------------------------------------------------------------------------- */

static void send_status(struct notify *n, bool extend)
{
    char text[NOTIFY_STATUS_MAX + 64];
    int bytes = snprintf(text, sizeof text, "STATUS=%s", n->status);
    if (extend)
        snprintf(text + bytes, sizeof text - (size_t)bytes, "\nEXTEND_TIMEOUT_USEC=%u",
                 NOTIFY_EXTEND_US);
    if (send_message(n, text, -1, AT_ONCE) == 0)
        memcpy(n->sent, n->status, sizeof n->sent);
    n->sent_us = clock_us();
}

static void on_status_timer(void *ctx)
{
    struct notify *n = ctx;
    n->status_timer = NULL;
    if (strcmp(n->status, n->sent) != 0)
        send_status(n, false);
}

void notify_status(struct notify *n, const char *text)
{
    if (!notify_is_on(n))
        return;
    take_status(n, text);
    if (strcmp(n->status, n->sent) == 0 || n->status_timer != NULL)
        return;
    uint64_t now = clock_us(), due = n->sent_us + NOTIFY_STATUS_US;
    if (n->sent_us == 0 || now >= due)
        send_status(n, false);
    else
        (void)loop_timer(n->loop, due - now, 0, on_status_timer, n, &n->status_timer);
}

/* Also called where no loop runs yet: what comes too early is left out, for more will follow. */
void notify_progress(struct notify *n, const char *text, uint64_t done)
{
    if (!notify_is_on(n))
        return;
    bool moved = done != n->progress;
    if (n->sent_us != 0 && clock_us() < n->sent_us + NOTIFY_STATUS_US)
        return;
    take_status(n, text);
    if (!moved && strcmp(n->status, n->sent) == 0)
        return;
    n->progress = done;
    send_status(n, moved && !n->ready);
}

/* ---- the watchdog ---------------------------------------------------------------------------- */

static void on_watchdog(void *ctx)
{
    struct notify *n = ctx;
    if (n->moves(n->moves_ctx)) {
        n->hung = false;
        (void)send_message(n, "WATCHDOG=1", -1, TRIES);
    } else if (!n->hung) {
        n->hung = true;
        log_event(LOG_LEVEL_ERROR, &(struct log_fields){.message_id = MESSAGE_ENGINE_STUCK},
                  "the engine has not moved for %.1f s; the watchdog is not fed",
                  (double)n->watchdog_us / 2e6);
    }
}

int notify_watch(struct notify *n, bool (*moves)(void *ctx), void *ctx)
{
    if (!notify_is_on(n) || n->watchdog_us == 0)
        return 0;
    n->moves = moves;
    n->moves_ctx = ctx;
    uint64_t half = n->watchdog_us / 2 > 0 ? n->watchdog_us / 2 : 1;
    return loop_timer(n->loop, half, half, on_watchdog, n, &n->watchdog_timer);
}

/* ---- the descriptor store -------------------------------------------------------------------- */

bool notify_stores(const struct notify *n)
{
    return notify_is_on(n) && n->stores;
}

int notify_store(struct notify *n, int fd, const char *name)
{
    char text[NOTIFY_NAME_MAX + 64];
    if (!notify_stores(n))
        return -ENOTSUP;
    if (strlen(name) >= NOTIFY_NAME_MAX)
        return -EINVAL;
    snprintf(text, sizeof text, "FDSTORE=1\nFDNAME=%s", name);
    return send_message(n, text, fd, TRIES);
}

void notify_unstore(struct notify *n, const char *name)
{
    char text[NOTIFY_NAME_MAX + 64];
    if (!notify_stores(n) || strlen(name) >= NOTIFY_NAME_MAX)
        return;
    snprintf(text, sizeof text, "FDSTOREREMOVE=1\nFDNAME=%s", name);
    (void)send_message(n, text, -1, TRIES);
}
