/* notify.h: what the daemon tells the service manager that started it: readiness, what it is doing,
 * that it lives, and the descriptors that are to outlive it. The protocol is sd_notify(3)'s.
 *
 * Started by hand, without NOTIFY_SOCKET, all of this does nothing and sets no timer.
 *
 * Threads: the event thread; before loop_run() the thread that starts the daemon. Never waits for
 * the manager longer than NOTIFY_PATIENCE_MS, but for READY. */
#ifndef INFERD_NOTIFY_H
#define INFERD_NOTIFY_H

#include "io/loop.h"

#include <stdbool.h>
#include <stdint.h>

#define NOTIFY_STATUS_MAX  256u /* bytes of a status line, with the NUL */
#define NOTIFY_NAME_MAX    128u /* of a stored descriptor's name */
#define NOTIFY_PATIENCE_MS 250
/* Status lines are at least so far apart. */
#define NOTIFY_STATUS_US 1000000u
/* While a model loads, each step forward asks for so much more time to start. */
#define NOTIFY_EXTEND_US 30000000u

struct notify;

/* Reads NOTIFY_SOCKET, WATCHDOG_USEC, WATCHDOG_PID and FDSTORE and removes them from the
 * environment. Negative errno; -EINVAL: the address cannot be used. */
int notify_new(struct loop *loop, struct notify **ret);
/* n may be NULL, as in all that follows. */
void notify_free(struct notify *n);
/* Is there a manager? */
bool notify_is_on(const struct notify *n);

/* READY=1, once the daemon can serve; also after a reload. status: goes with it at once. */
void notify_ready(struct notify *n, const char *status);
void notify_reloading(struct notify *n);
/* STOPPING=1; the stop may take so long. */
void notify_stopping(struct notify *n, uint64_t at_most_us);

/* STATUS=: one line for a person, at most NOTIFY_STATUS_MAX - 1 bytes. Sent when it differs from
 * the last one, at most once a second; of several within a second the last is sent at its end. */
void notify_status(struct notify *n, const char *text);
/* The same while something is read: when `done` has grown, the start may take longer, too. */
void notify_progress(struct notify *n, const char *text, uint64_t done);

/* From here on the manager's watchdog, if it set one, is fed twice in its time, as long as moves()
 * says so. Called at most once. */
int notify_watch(struct notify *n, bool (*moves)(void *ctx), void *ctx);

/* Could the manager keep descriptors? (Whether it does depends on FileDescriptorStoreMax=, which
 * managers before systemd 254 do not tell.) */
bool notify_stores(const struct notify *n);
/* The manager gets a copy of fd, under a name of its own: printable, without ':'. It lets go of it
 * when it hangs up. Negative errno. */
int notify_store(struct notify *n, int fd, const char *name);
void notify_unstore(struct notify *n, const char *name);

#endif
