/* loop.h: the daemon's event loop: one small interface, two implementations chosen at run time.
 *
 * io_uring (through liburing) is the first choice; epoll stands in where the kernel, a container
 * or a seccomp filter forbids io_uring. Callers cannot tell them apart but by loop_name().
 *
 * Threads: everything is called by the loop's thread, which is the thread that calls loop_run();
 * before the first loop_run() another thread may set the loop up, alone. loop_post() and
 * loop_stop() may be called by any thread at any time while the loop exists.
 *
 * Watches: made by loop_accept() .. loop_signal(), ended by loop_unwatch() or loop_free(). ret may
 * be NULL: the watch lives as long as the loop, a timer that fires once until it fired. A
 * descriptor has at most one watch, and is unwatched before it is closed; the loop never closes
 * one that it was given. Callbacks may call everything here but loop_run() and loop_free().
 *
 * Failure: negative errno, *ret untouched. */
#ifndef INFERD_IO_LOOP_H
#define INFERD_IO_LOOP_H

#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct loop;
struct loop_watch;

enum loop_kind { LOOP_AUTO, LOOP_IO_URING, LOOP_EPOLL };

/* AUTO: io_uring, or epoll where that cannot be had. An explicit kind that is not available is an
 * error (-EPERM, -ENOSYS). */
int loop_new(enum loop_kind kind, struct loop **ret);
/* Ends all watches. Calls that were posted after the loop stopped are dropped. */
void loop_free(struct loop *l);
const char *loop_name(const struct loop *l); /* "io_uring" or "epoll" */

/* fd >= 0: a connection, non-blocking and close-on-exec, now the callee's. fd < 0: an errno, such
 * as -EMFILE: the loop pauses accepting for a tenth of a second, then goes on by itself. */
int loop_accept(struct loop *l, int listen_fd, void (*fn)(void *ctx, int fd), void *ctx,
                struct loop_watch **ret);

/* Each datagram of a SEQPACKET socket. n > 0: its bytes, valid during the call. n == 0: the peer
 * hung up (or sent an empty datagram, which SEQPACKET cannot tell apart). n < 0: an errno;
 * -EMSGSIZE for a datagram above max_bytes. After n <= 0 nothing more is reported: unwatch, then
 * close. Descriptors that a peer attaches are discarded by the kernel. */
int loop_receive(struct loop *l, int fd, size_t max_bytes,
                 void (*fn)(void *ctx, const void *bytes, ssize_t n), void *ctx,
                 struct loop_watch **ret);

/* Called with poll(2) bits as long as fd is readable, hung up or in error: level-triggered, so fn
 * must drain fd or unwatch it. fd must be non-blocking for that. */
int loop_readable(struct loop *l, int fd, void (*fn)(void *ctx, uint32_t poll_events), void *ctx,
                  struct loop_watch **ret);

/* First after first_us, then every interval_us (0: once), never early. Timers fire in the order of
 * their times, equal ones in the order they were made. A loop that was late skips the periods it
 * missed. */
int loop_timer(struct loop *l, uint64_t first_us, uint64_t interval_us, void (*fn)(void *ctx),
               void *ctx, struct loop_watch **ret);

/* Blocks the signals of set in the calling thread (and those it starts afterwards) and hears of
 * them here. They stay blocked after unwatch. */
int loop_signal(struct loop *l, const sigset_t *set, void (*fn)(void *ctx, int signo), void *ctx,
                struct loop_watch **ret);

/* No callback of w after this returns, though its call may be the one that is running. w is gone.
 * A datagram that was already taken from the socket is dropped, an accepted connection closed. */
void loop_unwatch(struct loop *l, struct loop_watch *w);

/* Runs fn on the loop's thread, calls of one thread in their order. -ENOMEM, else never lost: all
 * that was posted before loop_stop() runs before loop_run() returns. */
int loop_post(struct loop *l, void (*fn)(void *ctx), void *ctx);

/* Until loop_stop(), whose code it returns, or a negative errno when waiting itself fails. May be
 * called again, by the same thread. A stop that came before the run ends it at once. */
int loop_run(struct loop *l);
/* Also from a signal handler. code >= 0. */
void loop_stop(struct loop *l, int code);

/* How often the loop woke up: an idle loop does not. */
uint64_t loop_wakeups(const struct loop *l);

#endif
