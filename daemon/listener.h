/* listener.h: where the daemon listens: at sockets that the service manager passed, or at its own.
 *
 * There are two: one for everybody who may use models, one for who manages them. The manager names
 * them "use" and "manage" (FileDescriptorName=); beside them it passes back what a former daemon
 * left in its store (notify.h). Without a socket "use" the daemon makes both itself, mode 0600:
 * PATH, and beside it the managing one, inferd-manage.sock for inferd.sock.
 *
 * Threads: start and stop, one at a time; before that the process has one thread (umask). */
#ifndef INFERD_LISTENER_H
#define INFERD_LISTENER_H

#include "base/report.h"
#include "notify.h"

#include <stdbool.h>
#include <stddef.h>
#include <sys/un.h>

#define LISTENER_PATH_MAX sizeof(((struct sockaddr_un *)0)->sun_path)

/* ---- what the service manager passed --------------------------------------------------------- */

struct activation_kept {
    int fd;                     /* -1: taken */
    char name[NOTIFY_NAME_MAX]; /* as given to notify_store() */
};

struct activation {
    int use_fd, manage_fd; /* -1: none, or taken */
    struct activation_kept *kept;
    size_t n_kept;
};

/* From LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES, which leave the environment. All that is in
 * *ret is close-on-exec and non-blocking. A socket of another kind than it must be is refused
 * (SOCKET_PATH), what has no known name is closed. */
int activation_take(struct activation *ret, struct report *report);
/* Closes what was not taken. */
void activation_done(struct activation *a);

/* ---- listening ------------------------------------------------------------------------------- */

struct listener {
    int use_fd, manage_fd;               /* manage_fd -1: nobody can manage */
    int lock_fd;                         /* -1: the socket is the service manager's */
    char path[LISTENER_PATH_MAX];        /* "" when it is the service manager's */
    char manage_path[LISTENER_PATH_MAX]; /* likewise */
    char lock_path[LISTENER_PATH_MAX + 8];
};

/* Takes the sockets out of *a, or binds at path; a socket that nobody answers on is replaced.
 * SOCKET_BUSY, SOCKET_PATH. */
int listener_open(const char *path, struct activation *a, struct listener *ret,
                  struct report *report);
/* Closes, and removes what it made. */
void listener_close(struct listener *l);

/* "x-manage.sock" for "x.sock", "x-manage" for "x", the system's own for the system's (abi.h).
 * False: it is too long for a socket. */
bool listener_manage_path(const char *path, char ret[LISTENER_PATH_MAX]);

#endif
