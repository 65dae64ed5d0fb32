/* listener.c: see listener.h.
 *
 * Who may listen where is settled by a lock beside the socket (PATH.lock): it is held as long as
 * the daemon lives, so a socket without a lock holder is stale and may be replaced. One lock is for
 * both sockets. The service manager's sockets need none and are never removed: the next daemon has
 * them. */
#include "listener.h"

#include "base/log.h"
#include "inferd/abi.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

/* Above it the manager has gone mad: sessions, and the sockets. */
#define KEPT_MAX (2u * INFER_SESSIONS_MAX)

/* ---- what the service manager passed --------------------------------------------------------- */

static int take_listening(const char *name, int fd, int *to, struct report *report)
{
    if (sd_is_socket_unix(fd, SOCK_SEQPACKET, 1, NULL, 0) <= 0)
        return report_fail(report, INFER_E_SOCKET_PATH,
                           "the socket '%s' that the service manager passed is no listening Unix "
                           "socket of sequential packets; its unit must say "
                           "ListenSequentialPacket=",
                           name);
    if (*to >= 0)
        return report_fail(report, INFER_E_SOCKET_PATH,
                           "the service manager passed two sockets named '%s'; one will do", name);
    *to = fd;
    return 0;
}

/* A stranger in the store is no reason not to start. */
static bool take_kept(struct activation *a, const char *name, int fd)
{
    size_t bytes = strlen(name);
    if (strncmp(name, "client-", 7) != 0 || bytes >= NOTIFY_NAME_MAX ||
        sd_is_socket_unix(fd, SOCK_SEQPACKET, 0, NULL, 0) <= 0)
        return false;
    struct activation_kept *kept = &a->kept[a->n_kept++];
    kept->fd = fd;
    memcpy(kept->name, name, bytes + 1);
    return true;
}

static int take_one(struct activation *a, const char *name, int fd, struct report *report)
{
    int rc = 0;
    if (fcntl(fd, F_SETFL, O_NONBLOCK) < 0)
        rc = report_fail(report, INFER_E_SOCKET_PATH, "the socket '%s' that was passed: %s", name,
                         strerror(errno));
    else if (strcmp(name, "use") == 0)
        rc = take_listening(name, fd, &a->use_fd, report);
    else if (strcmp(name, "manage") == 0)
        rc = take_listening(name, fd, &a->manage_fd, report);
    else if (!take_kept(a, name, fd)) {
        log_warning("the service manager passed a descriptor named '%.64s', which is of no use",
                    name);
        close(fd);
    }
    if (rc < 0)
        close(fd);
    return rc;
}

int activation_take(struct activation *ret, struct report *report)
{
    struct activation a = {.use_fd = -1, .manage_fd = -1};
    char **names = NULL;
    int rc = 0, n = sd_listen_fds_with_names(1, &names);
    if (n < 0)
        return report_fail(report, INFER_E_SOCKET_PATH,
                           "the service manager's LISTEN_FDS cannot be used: %s", strerror(-n));
    if (n > 0 && (unsigned)n <= KEPT_MAX)
        a.kept = calloc((size_t)n, sizeof *a.kept);
    if (n > 0 && a.kept == NULL)
        rc = report_fail(report, INFER_E_OUT_OF_MEMORY, "no memory for %d descriptors", n);
    for (int i = 0; i < n; i++) {
        if (rc == 0)
            rc = take_one(&a, names[i], SD_LISTEN_FDS_START + i, report);
        else
            close(SD_LISTEN_FDS_START + i);
    }
    for (int i = 0; i < n; i++)
        free(names[i]);
    free(names);
    if (rc < 0) {
        activation_done(&a);
        return rc;
    }
    *ret = a;
    return 0;
}

void activation_done(struct activation *a)
{
    if (a->use_fd >= 0)
        close(a->use_fd);
    if (a->manage_fd >= 0)
        close(a->manage_fd);
    for (size_t i = 0; i < a->n_kept; i++)
        if (a->kept[i].fd >= 0)
            close(a->kept[i].fd);
    free(a->kept);
    *a = (struct activation){.use_fd = -1, .manage_fd = -1};
}

/* ---- our own sockets ------------------------------------------------------------------------- */

/* The lock's file may be removed by its last holder between our open and our flock: then we hold a
 * file that nobody else can see, and try again. */
static int take_lock(struct listener *l, struct report *report)
{
    for (;;) {
        struct stat held, seen;
        l->lock_fd = open(l->lock_path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
        if (l->lock_fd < 0)
            return report_fail(report, INFER_E_SOCKET_PATH,
                               "cannot create %s: %s; choose another --socket", l->lock_path,
                               strerror(errno));
        if (flock(l->lock_fd, LOCK_EX | LOCK_NB) < 0)
            return report_fail(report, INFER_E_SOCKET_BUSY,
                               "another daemon listens at %s; stop it or choose another --socket",
                               l->path);
        if (fstat(l->lock_fd, &held) == 0 && stat(l->lock_path, &seen) == 0 &&
            held.st_ino == seen.st_ino && held.st_dev == seen.st_dev)
            return 0;
        close(l->lock_fd);
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

static struct sockaddr_un address_of(const char path[LISTENER_PATH_MAX])
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    memcpy(address.sun_path, path, LISTENER_PATH_MAX);
    return address;
}

/* Removes a socket that a dead daemon left; refuses to remove anything else. */
static int clear_path(const char path[LISTENER_PATH_MAX], struct report *report)
{
    struct stat st;
    if (lstat(path, &st) < 0)
        return 0;
    if (!S_ISSOCK(st.st_mode))
        return report_fail(report, INFER_E_SOCKET_PATH,
                           "%s exists and is no socket; remove it or choose another --socket",
                           path);
    struct sockaddr_un address = address_of(path);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    int rc = fd < 0 ? -1 : connect(fd, (struct sockaddr *)&address, sizeof address);
    int why = errno;
    bool alive = rc == 0 ? !owner_is_gone(fd) : why == EAGAIN;
    if (fd >= 0)
        close(fd);
    if (alive)
        return report_fail(report, INFER_E_SOCKET_BUSY,
                           "somebody listens at %s; stop it or choose another --socket", path);
    unlink(path);
    return 0;
}

/* The descriptor of a new socket at path, or negative with a report. */
static int bind_at(const char path[LISTENER_PATH_MAX], struct report *report)
{
    struct sockaddr_un address = address_of(path);
    int rc = clear_path(path, report);
    if (rc < 0)
        return rc;
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return report_fail(report, INFER_E_SOCKET_PATH, "cannot make a socket: %s",
                           strerror(errno));
    mode_t before = umask(0177);
    rc = bind(fd, (struct sockaddr *)&address, sizeof address);
    int why = errno;
    umask(before);
    if (rc < 0 || listen(fd, SOMAXCONN) < 0) {
        why = rc < 0 ? why : errno;
        close(fd);
        return report_fail(report, INFER_E_SOCKET_PATH,
                           "cannot listen at %s: %s; choose another --socket", path, strerror(why));
    }
    return fd;
}

bool listener_manage_path(const char *path, char ret[LISTENER_PATH_MAX])
{
    static const char suffix[] = ".sock";
    size_t bytes = strlen(path), end = sizeof suffix - 1;
    bool cut = bytes > end && strcmp(path + bytes - end, suffix) == 0;
    int n;
    if (strcmp(path, INFER_SYSTEM_SOCKET) == 0)
        n = snprintf(ret, LISTENER_PATH_MAX, "%s", INFER_SYSTEM_MANAGE_SOCKET);
    else
        n = snprintf(ret, LISTENER_PATH_MAX, "%.*s-manage%s", (int)(cut ? bytes - end : bytes),
                     path, cut ? suffix : "");
    return n > 0 && (size_t)n < LISTENER_PATH_MAX;
}

static int open_own(const char *path, struct listener *l, struct report *report)
{
    int rc;
    if (strlen(path) >= sizeof l->path)
        return report_fail(
            report, INFER_E_SOCKET_PATH,
            "the socket's path has %zu bytes, %zu is the most; choose another --socket",
            strlen(path), sizeof l->path - 1);
    snprintf(l->path, sizeof l->path, "%s", path);
    snprintf(l->lock_path, sizeof l->lock_path, "%s.lock", path);
    if ((rc = take_lock(l, report)) < 0 || (rc = l->use_fd = bind_at(l->path, report)) < 0)
        return rc;
    if (l->manage_fd >= 0)
        return 0;
    if (!listener_manage_path(path, l->manage_path)) {
        l->manage_path[0] = '\0';
        log_warning("%s leaves no room for '-manage': models cannot be managed", path);
        return 0;
    }
    rc = l->manage_fd = bind_at(l->manage_path, report);
    if (rc < 0)
        l->manage_path[0] = '\0'; /* whatever is there is not ours */
    return rc < 0 ? rc : 0;
}

int listener_open(const char *path, struct activation *a, struct listener *ret,
                  struct report *report)
{
    struct listener l = {.use_fd = a->use_fd, .manage_fd = a->manage_fd, .lock_fd = -1};
    a->use_fd = a->manage_fd = -1;
    int rc = l.use_fd >= 0 ? 0 : open_own(path, &l, report);
    if (rc < 0) {
        if (l.use_fd < 0) /* what is there is somebody else's */
            l.path[0] = l.lock_path[0] = '\0';
        listener_close(&l);
        return rc;
    }
    *ret = l;
    return 0;
}

void listener_close(struct listener *l)
{
    if (l->path[0] != '\0')
        unlink(l->path);
    if (l->manage_path[0] != '\0')
        unlink(l->manage_path);
    if (l->use_fd >= 0)
        close(l->use_fd);
    if (l->manage_fd >= 0)
        close(l->manage_fd);
    if (l->lock_fd >= 0) {
        if (l->lock_path[0] != '\0')
            unlink(l->lock_path);
        close(l->lock_fd);
    }
    *l = (struct listener){.use_fd = -1, .manage_fd = -1, .lock_fd = -1};
}
