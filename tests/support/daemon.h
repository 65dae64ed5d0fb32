/* daemon.h: a private inferd for one test: own folder, own socket, own log.
 *
 * A test program that dies takes its daemons with it. Every function fails the test when it cannot
 * do what it says. */
#ifndef INFERD_TESTS_DAEMON_H
#define INFERD_TESTS_DAEMON_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define DAEMON_MODEL "models/unix-46m-Q6_K.gguf"

struct daemon {
    pid_t pid; /* 0: not running */
    char folder[64];
    char socket[96];
    char log[96];
};

/* Starts inferd with these arguments (NULL-terminated; --socket is added) and waits until its log
 * says that it is ready. The struct may be reused after daemon_stop() or daemon_kill(): socket path
 * and folder stay the same then. */
void daemon_start(struct daemon *d, const char *const *arguments);
/* Waits no longer than until it accepts connections. */
void daemon_start_only(struct daemon *d, const char *const *arguments);
/* The embedded model, named "unix", on the null backend (options may be NULL) or another. */
void daemon_start_backend(struct daemon *d, const char *backend, const char *options);

/* Asks it to stop (SIGTERM) and asserts that it exits with 0 and that no sanitizer complained. */
void daemon_stop(struct daemon *d);
/* Kills it with SIGKILL. */
void daemon_kill(struct daemon *d);
/* Waits for it to exit by itself; its exit status, or 128 + signal. */
int daemon_wait(struct daemon *d, int timeout_s);
/* Removes the folder; stops the daemon when it still runs. */
void daemon_done(struct daemon *d);

/* Is the process there and not a zombie? */
bool daemon_alive(const struct daemon *d);
/* Asserts that it is alive and answers a whole request from a fresh connection. */
void daemon_assert_serves(const struct daemon *d);
/* The log so far; freed by the caller. */
char *daemon_read_log(const struct daemon *d);

/* CPU time that all its threads have used, in ns; 0 when it cannot be read. */
uint64_t daemon_cpu_ns(const struct daemon *d);
/* Number of descriptors that it holds open, once that has not changed for 200 ms: it listens before
 * it has all of them, and takes a moment to see that a client has gone. After 5 s whatever it is.
 */
int daemon_descriptors(const struct daemon *d);

uint64_t test_clock_us(void);

#endif
