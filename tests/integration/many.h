/* many.h: what the tests of many users share: prompts of token ids, whole answers with all that was
 * said about their place in the queue, and clients of another uid.
 *
 * Nothing here asserts but what runs in the test's own process, so that threads and child processes
 * can use it: a failure in them is a value that comes back. */
#ifndef INFERD_TESTS_MANY_H
#define INFERD_TESTS_MANY_H

#include "inferd/client.h"
#include "support/daemon.h"
#include "support/program.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>

#include <cmocka.h>

/* Nobody's uids. A test that needs them runs as root or not at all. */
enum { MANY_ALICE = 65533, MANY_BOB = 65532 };
enum { MANY_TOKENS_MAX = 512, MANY_POSITIONS_MAX = 32 };

struct many_answer {
    int error; /* of DONE, or negative: what infer_next() said */
    uint32_t finish;
    uint64_t id; /* daemon-wide */
    uint32_t n_prompt, n_cached;
    uint32_t n; /* tokens */
    int32_t ids[MANY_TOKENS_MAX];
    float logprobs[MANY_TOKENS_MAX];
    uint32_t n_positions;
    uint32_t positions[MANY_POSITIONS_MAX];
    bool token_before_queued, queued_after_token, gap; /* never */
    char detail[INFER_DETAIL_MAX];
};

/* ---- requests -------------------------------------------------------------------------------- */

static inline uint64_t many_mix(uint64_t x)
{
    x = (x ^ (x >> 31)) * 0x7fb5d329728ea185u;
    x = (x ^ (x >> 27)) * 0x81dadef4bc2dd44du;
    return x ^ (x >> 33);
}

/* n ordinary token ids that only this seed gives. */
static inline void many_ids(int32_t *ret, size_t n, uint64_t seed)
{
    for (size_t i = 0; i < n; i++)
        ret[i] = 300 + (int32_t)(many_mix(seed * 1000003u + i + 1) % 4000);
}

static inline void many_request(struct infer_request *r, const int32_t *ids, size_t n,
                                uint32_t max_tokens)
{
    infer_request_default(r);
    r->tokens = ids;
    r->n_tokens = n;
    r->sampling.max_tokens = max_tokens;
    r->sampling.ignore_eos = 1;
    r->sampling.seed = 7;
}

/* Takes one event in; true when it was the last. */
static inline bool many_take(struct many_answer *a, const struct infer_event *e)
{
    switch (e->kind) {
    case INFER_EVENT_QUEUED:
        a->id = e->id;
        a->queued_after_token |= a->n > 0;
        if (a->n_positions < MANY_POSITIONS_MAX)
            a->positions[a->n_positions++] = e->position;
        return false;
    case INFER_EVENT_TOKEN:
        a->token_before_queued |= a->n_positions == 0;
        if (!e->has_token)
            return false;
        a->gap |= e->index != a->n;
        if (a->n < MANY_TOKENS_MAX) {
            a->ids[a->n] = e->token;
            a->logprobs[a->n] = e->logprob;
        }
        a->n++;
        return false;
    case INFER_EVENT_DONE:
        a->error = e->error;
        a->finish = e->finish;
        a->n_prompt = e->n_prompt;
        a->n_cached = e->n_prompt_cached;
        snprintf(a->detail, sizeof a->detail, "%.*s", (int)e->text_bytes, e->text ? e->text : "");
        return true;
    default:
        return false;
    }
}

/* Reads until DONE; a->error is negative when infer_next() failed or was silent for long. */
static inline void many_gather(struct infer_conn *c, uint32_t request, struct many_answer *a)
{
    struct infer_event e;
    memset(a, 0, sizeof *a);
    for (;;) {
        int code = infer_next(c, request, 30000 * program_slowness(), &e);
        if (code != 1) {
            a->error = code < 0 ? code : -INFER_E_DAEMON_LOST;
            return;
        }
        if (many_take(a, &e))
            return;
    }
}

static inline void many_get(struct infer_conn *c, const struct infer_request *r,
                            struct many_answer *a)
{
    uint32_t request;
    int code = infer_submit(c, r, &request);
    memset(a, 0, sizeof *a);
    a->error = code;
    if (code == 0)
        many_gather(c, request, a);
}

/* In the test's own process: the answer is whole and without error. */
static inline void many_assert_good(const struct many_answer *a, uint32_t n_tokens)
{
    if (a->error != 0)
        fail_msg("%s: %s", infer_error_name(a->error), a->detail);
    assert_int_equal(a->n, n_tokens);
    assert_false(a->token_before_queued || a->queued_after_token || a->gap);
    assert_true(a->n_positions > 0);
}

/* Reads events of this request until its first token; fails the test at DONE or silence. */
static inline void many_wait_token(struct infer_conn *c, uint32_t request, struct many_answer *a)
{
    struct infer_event e;
    memset(a, 0, sizeof *a);
    while (a->n == 0) {
        assert_int_equal(infer_next(c, request, 30000 * program_slowness(), &e), 1);
        if (many_take(a, &e))
            fail_msg("the request ended: %s: %s", infer_error_name(a->error), a->detail);
    }
}

/* ---- the daemon ------------------------------------------------------------------------------ */

/* Any uid may connect from now on. */
static inline void many_let_in(const struct daemon *d)
{
    assert_int_equal(chmod(d->folder, 0711), 0);
    assert_int_equal(chmod(d->socket, 0666), 0);
}

static inline struct infer_conn *many_connect(const struct daemon *d)
{
    struct infer_connect_options options = {.socket = d->socket};
    struct infer_conn *c = NULL;
    return infer_connect(&options, &c) == 0 ? c : NULL;
}

/* Waits until nothing runs; then no page may be held. */
static inline void many_assert_pages_back(struct infer_conn *c)
{
    struct infer_status s;
    uint64_t end = test_clock_us() + 20000000u * (unsigned)program_slowness();
    do {
        usleep(1000);
        assert_int_equal(infer_status(c, &s), 0);
    } while (s.n_running + s.n_waiting + s.n_parked > 0 && test_clock_us() < end);
    assert_int_equal(s.n_running + s.n_waiting + s.n_parked, 0);
    assert_int_equal(s.n_pages_used, 0);
    assert_true(s.n_pages > 0);
}

/* ---- other users ----------------------------------------------------------------------------- */

/* Starts fn(arg) in a process of this uid; it dies with the test. fn's value is its exit status. */
static inline pid_t many_start(uid_t uid, int (*fn)(void *arg), void *arg)
{
    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid > 0)
        return pid;
    signal(SIGPIPE, SIG_IGN);
    if (uid != getuid() && (setresgid(uid, uid, uid) < 0 || setresuid(uid, uid, uid) < 0))
        _exit(126);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    _exit(fn(arg));
}

/* Waits for it and asserts that it was content. */
static inline void many_join(pid_t pid)
{
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        fail_msg("a client process ended with %#x", (unsigned)status);
}

static inline void many_kill(pid_t pid)
{
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
}

#define MANY_NEEDS_ROOT()                                                                          \
    do {                                                                                           \
        if (geteuid() != 0) {                                                                      \
            print_message("skipped: another uid needs root\n");                                    \
            skip();                                                                                \
        }                                                                                          \
    } while (0)

#endif
