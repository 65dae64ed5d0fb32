/* test_library.c: what libinferclient promises, against a real daemon on the null backend: death of
 * the daemon, reconnection, fork, threads, cancel, an event loop of one's own, a slow reader. */
#include "support/answer.h"
#include "support/program.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>

#include <cmocka.h>

static struct daemon d; /* the null backend without a delay, for those tests that leave it alive */

static int setup(void **state)
{
    daemon_start_backend(&d, "null", NULL);
    return 0;
}

static int teardown(void **state)
{
    daemon_done(&d);
    return 0;
}

static void request_hello(struct infer_request *r, uint32_t max_tokens, uint64_t seed)
{
    infer_request_default(r);
    r->text = "Hello there";
    r->sampling.max_tokens = max_tokens;
    r->sampling.ignore_eos = 1;
    r->sampling.seed = seed;
}

static void next_token(struct infer_conn *c, uint32_t id, uint32_t index)
{
    struct infer_event e;
    do {
        int code = infer_next(c, id, 10000 * program_slowness(), &e);
        if (code != 1)
            fail_msg("infer_next: %d (%s)", code, infer_strerror(code));
        assert_int_not_equal(e.kind, INFER_EVENT_DONE);
    } while (e.kind != INFER_EVENT_TOKEN || !e.has_token);
    assert_int_equal(e.index, index);
}

/* ---- one answer ------------------------------------------------------------------------------ */

static void test_answer(void **state)
{
    struct infer_conn *c = answer_connect(&d);
    struct infer_request r;
    struct answer a;
    request_hello(&r, 100, 3);
    r.want_prompt = 1;
    answer_get(c, &r, &a);
    assert_int_equal(a.error, 0);
    assert_int_equal(a.finish, INFER_FINISH_LENGTH);
    assert_int_equal(a.n, 100);
    assert_int_equal(a.n_generated, 100);
    assert_true(a.n_prompt > 0);

    char *text;
    size_t bytes, n;
    int32_t *tokens;
    assert_int_equal(infer_detokenize(c, NULL, a.ids, a.n, 0, &text, &bytes), 0);
    assert_true(bytes >=
                a.text_bytes); /* an unfinished UTF-8 sequence may be held back at the end */
    assert_in_range(bytes - a.text_bytes, 0, 3);
    assert_memory_equal(text, a.text, a.text_bytes);
    infer_free(text);
    assert_int_equal(infer_tokenize(c, "unix", r.text, strlen(r.text), 1, 0, &tokens, &n), 0);
    assert_int_equal(n, a.n_prompt);
    assert_memory_equal(tokens, a.prompt, n * sizeof *tokens);
    infer_free(tokens);
    answer_done(&a);
    infer_close(c);
}

static void test_seeds(void **state)
{
    struct infer_conn *c = answer_connect(&d);
    struct infer_request r;
    struct answer a, b, other;
    request_hello(&r, 50, 11);
    answer_get(c, &r, &a);
    answer_get(c, &r, &b);
    assert_int_equal(a.n, b.n);
    assert_memory_equal(a.ids, b.ids, a.n * sizeof *a.ids);
    r.sampling.seed = 12;
    answer_get(c, &r, &other);
    assert_true(memcmp(a.ids, other.ids, a.n * sizeof *a.ids) != 0);
    answer_done(&a);
    answer_done(&b);
    answer_done(&other);
    infer_close(c);
}

static void test_status_and_models(void **state)
{
    struct infer_conn *c = answer_connect(&d);
    struct infer_status s, later;
    struct infer_model *models;
    struct infer_request r;
    struct answer a;
    size_t n;
    assert_int_equal(infer_status(c, &s), 0);
    assert_int_equal(s.pid, d.pid);
    assert_string_equal(s.version, infer_daemon_version(c));
    assert_true(!strcmp(s.event_loop, "io_uring") || !strcmp(s.event_loop, "epoll"));
    assert_int_equal(s.n_models, 1);
    assert_true(s.n_sessions >= 1);
    assert_true(s.memory_bytes > 0 && s.memory_available > 0);
    request_hello(&r, 10, 1);
    answer_get(c, &r, &a);
    answer_done(&a);
    assert_int_equal(infer_status(c, &later), 0);
    assert_true(later.n_requests > s.n_requests);
    assert_true(later.n_tokens >= s.n_tokens + 10);
    assert_true(later.uptime_us > s.uptime_us);
    assert_int_equal(infer_models(c, &models, &n), 0);
    assert_int_equal(n, 1);
    assert_string_equal(models->name, "unix");
    assert_string_equal(models->architecture, "llama");
    assert_int_equal(models->n_vocab, 16384);
    assert_int_equal(models->n_layers, 12);
    assert_int_equal(models->n_embd, 512);
    infer_free(models);
    infer_close(c);
}

/* Both implementations of the event loop serve alike, and status tells which one runs. */
static void test_event_loops(void **state)
{
    static const char *const loops[] = {"epoll", "io_uring"};
    for (size_t i = 0; i < 2; i++) {
        struct daemon own = {0};
        struct infer_status s;
        const char *argv[] = {
            "--model", "unix=" DAEMON_MODEL, "--backend", "null", "--event-loop", loops[i], NULL};
        daemon_start(&own, argv);
        struct infer_conn *c = answer_connect(&own);
        assert_int_equal(infer_status(c, &s), 0);
        assert_string_equal(s.event_loop, loops[i]);
        infer_close(c);
        for (int n = 0; n < 5; n++)
            daemon_assert_serves(&own);
        daemon_done(&own);
    }
}

static void check_crowd(const char *loop)
{
    enum { CROWD = 150 };
    struct daemon own = {0};
    struct infer_connect_options options = {.socket = own.socket};
    const char *argv[] = {
        "--model", "unix=" DAEMON_MODEL, "--backend", "null", "--event-loop", loop, NULL};
    pid_t pids[CROWD];
    int status, n_failed = 0;
    daemon_start(&own, argv);
    assert_int_equal(kill(own.pid, SIGSTOP), 0);
    for (int i = 0; i < CROWD; i++) {
        struct infer_conn *c;
        pids[i] = fork();
        assert_true(pids[i] >= 0);
        if (pids[i] == 0)
            _exit(infer_connect(&options, &c) < 0);
    }
    usleep(300000);
    assert_int_equal(kill(own.pid, SIGCONT), 0);
    for (int i = 0; i < CROWD; i++) {
        assert_int_equal(waitpid(pids[i], &status, 0), pids[i]);
        n_failed += status != 0;
    }
    assert_int_equal(n_failed, 0);
    daemon_done(&own);
}

/* More processes than may be silent for long connect at the same moment: the daemon is stopped
 * until all of them wait for it. */
static void test_a_crowd_connects_at_once(void **state)
{
    check_crowd("io_uring");
    check_crowd("epoll");
}

/* What a step gave is seen while the next one runs, or at once when there is none. */
static void test_tokens_come_during_the_next_step(void **state)
{
    enum { STEP_US = 400000, LATE_US = 250000, TOKENS = 3 };
    struct daemon own = {0};
    struct infer_request r;
    struct infer_event e;
    uint32_t id;
    daemon_start_backend(&own, "null", "delay_us=400000");
    struct infer_conn *c = answer_connect(&own);
    request_hello(&r, TOKENS, 1);
    uint64_t from = test_clock_us();
    assert_int_equal(infer_submit(c, &r, &id), 0);
    for (uint32_t n = 0; n < TOKENS;) {
        assert_int_equal(infer_next(c, id, 20000, &e), 1);
        if (e.kind != INFER_EVENT_TOKEN || !e.has_token)
            continue;
        n++;
        if (program_slowness() == 1)
            assert_in_range(test_clock_us() - from, n * STEP_US, n * STEP_US + LATE_US);
    }
    do
        assert_int_equal(infer_next(c, id, 20000, &e), 1);
    while (e.kind != INFER_EVENT_DONE);
    if (program_slowness() == 1)
        assert_in_range(test_clock_us() - from, TOKENS * STEP_US, TOKENS * STEP_US + LATE_US);
    infer_close(c);
    daemon_done(&own);
}

/* ---- the daemon dies ------------------------------------------------------------------------- */

/* The bound is 100 ms; a loaded machine under sanitizers gets more. tests/bench measures it. */
static void assert_told_in_time(uint64_t since_us)
{
    uint64_t took = test_clock_us() - since_us;
    if (took > 2000000u)
        fail_msg("told after %llu ms", (unsigned long long)took / 1000);
}

static void assert_lost(struct infer_conn *c, uint32_t id)
{
    struct infer_event e;
    int code;
    do
        code = infer_next(c, id, 10000, &e);
    while (code == 1 && e.kind != INFER_EVENT_DONE);
    assert_int_equal(code, 1);
    assert_int_equal(e.error, INFER_E_DAEMON_LOST);
    assert_int_equal(e.finish, INFER_FINISH_ERROR);
}

static void test_daemon_killed_mid_stream(void **state)
{
    struct daemon own = {0};
    struct infer_request r;
    struct answer a;
    uint32_t id[3], other;
    daemon_start_backend(&own, "null", "delay_us=2000");
    struct infer_conn *c = answer_connect(&own);
    request_hello(&r, 1900, 1);
    for (int i = 0; i < 3; i++)
        assert_int_equal(infer_submit(c, &r, &id[i]), 0);
    for (uint32_t i = 0; i < 5; i++)
        next_token(c, id[0], i);
    uint64_t killed = test_clock_us();
    daemon_kill(&own);
    assert_lost(c, id[0]);
    assert_told_in_time(killed);
    assert_lost(c, id[1]); /* every unfinished request ends so */
    assert_lost(c, id[2]);
    assert_told_in_time(killed);

    int code = infer_submit(c, &r, &other);
    if (code != -INFER_E_DAEMON_ABSENT)
        fail_msg("without a daemon: %d (%s)", code, infer_strerror(code));
    struct infer_status s;
    assert_int_equal(infer_status(c, &s), -INFER_E_DAEMON_ABSENT);

    daemon_start_backend(&own, "null", NULL); /* over the stale socket of the dead one */
    request_hello(&r, 20, 1);
    answer_get(c, &r, &a); /* connects again by itself */
    assert_int_equal(a.error, 0);
    assert_int_equal(a.n, 20);
    answer_done(&a);
    assert_int_equal(infer_status(c, &s), 0);
    assert_int_equal(s.pid, own.pid);
    infer_close(c);
    daemon_done(&own);
}

struct waiter {
    struct infer_conn *c;
    uint32_t id;
    struct infer_event e;
    int code;
    uint64_t told_us;
};

static void *wait_for_done(void *argument)
{
    struct waiter *w = argument;
    do
        w->code = infer_next(w->c, w->id, 20000, &w->e);
    while (w->code == 1 && w->e.kind != INFER_EVENT_DONE);
    w->told_us = test_clock_us();
    return NULL;
}

/* Nothing arrives, the thread sleeps: it must wake when the daemon is gone. */
static void test_daemon_killed_while_client_sleeps(void **state)
{
    struct daemon own = {0};
    struct infer_request r;
    pthread_t thread;
    daemon_start_backend(&own, "null", "delay_us=3000000");
    struct infer_conn *c = answer_connect(&own);
    struct waiter w = {.c = c};
    request_hello(&r, 100, 1);
    assert_int_equal(infer_submit(c, &r, &w.id), 0);
    assert_int_equal(pthread_create(&thread, NULL, wait_for_done, &w), 0);
    usleep(300000);
    uint64_t killed = test_clock_us();
    daemon_kill(&own);
    pthread_join(thread, NULL);
    assert_int_equal(w.code, 1);
    assert_int_equal(w.e.error, INFER_E_DAEMON_LOST);
    if (w.told_us - killed > 2000000u)
        fail_msg("told after %llu ms", (unsigned long long)(w.told_us - killed) / 1000);
    infer_close(c);
    daemon_done(&own);
}

static void test_daemon_killed_while_epoll_waits(void **state)
{
    struct daemon own = {0};
    struct infer_request r;
    struct epoll_event event = {.events = EPOLLIN};
    uint32_t id;
    daemon_start_backend(&own, "null", "delay_us=3000000");
    struct infer_conn *c = answer_connect(&own);
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    request_hello(&r, 100, 1);
    assert_int_equal(infer_submit(c, &r, &id), 0);
    assert_int_equal(epoll_ctl(epoll, EPOLL_CTL_ADD, infer_poll_fd(c), &event), 0);
    struct infer_event e;
    while (infer_next(c, id, 0, &e) == 1)
        ;
    uint64_t killed = test_clock_us();
    daemon_kill(&own);
    for (;;) {
        if (epoll_wait(epoll, &event, 1, 5000) != 1)
            fail_msg("the descriptor of infer_poll_fd() stays silent");
        if (infer_next(c, id, 0, &e) == 1 && e.kind == INFER_EVENT_DONE)
            break;
    }
    assert_int_equal(e.error, INFER_E_DAEMON_LOST);
    assert_told_in_time(killed);
    close(epoll);
    infer_close(c);
    daemon_done(&own);
}

/* An orderly stop without a drain ends requests too, and the daemon still exits with 0. */
static void test_daemon_stops_mid_stream(void **state)
{
    static const char *const arguments[] = {
        "--model",       "unix=" DAEMON_MODEL, "--backend", "null", "--backend-options",
        "delay_us=2000", "--drain-timeout",    "0",         NULL};
    struct daemon own = {0};
    struct infer_request r;
    struct infer_event e;
    uint32_t id;
    daemon_start(&own, arguments);
    struct infer_conn *c = answer_connect(&own);
    request_hello(&r, 1900, 1);
    assert_int_equal(infer_submit(c, &r, &id), 0);
    next_token(c, id, 0);
    daemon_stop(&own);
    int code;
    do
        code = infer_next(c, id, 10000, &e);
    while (code == 1 && e.kind != INFER_EVENT_DONE);
    assert_int_equal(code, 1);
    if (e.error != INFER_E_SHUTDOWN && e.error != INFER_E_DAEMON_LOST)
        fail_msg("ended with %s", infer_error_name(e.error));
    infer_close(c);
    daemon_done(&own);
}

/* The backend fails one step: that request ends with a typed error, the next one works. */
static void test_backend_fails_once(void **state)
{
    struct daemon own = {0};
    struct infer_request r;
    struct answer a;
    daemon_start_backend(&own, "null", "fail_step=5");
    struct infer_conn *c = answer_connect(&own);
    request_hello(&r, 50, 1);
    answer_get(c, &r, &a);
    assert_int_equal(a.error, INFER_E_BACKEND);
    assert_true(a.n < 50);
    answer_done(&a);
    answer_get(c, &r, &a);
    assert_int_equal(a.error, 0);
    assert_int_equal(a.n, 50);
    answer_done(&a);
    infer_close(c);
    daemon_done(&own);
}

/* The backend is lost: what runs and what waits ends with a typed error, and the daemon ends within
 * a second, also when the driver hangs, with a status by which systemd starts it again. */
static void lose_backend(const char *options)
{
    struct daemon own = {0};
    struct infer_request r;
    struct infer_event e;
    uint32_t ids[3];
    daemon_start_backend(&own, "null", options);
    struct infer_conn *c = answer_connect(&own);
    request_hello(&r, 50, 1);
    for (size_t i = 0; i < 3; i++)
        assert_int_equal(infer_submit(c, &r, &ids[i]), 0);
    uint64_t told = 0;
    for (size_t i = 0; i < 3; i++) {
        do
            assert_int_equal(infer_next(c, ids[i], 10000 * program_slowness(), &e), 1);
        while (e.kind != INFER_EVENT_DONE);
        if (told == 0)
            told = test_clock_us();
        if (e.error != INFER_E_BACKEND_LOST)
            fail_msg("%zu ended with %s", i, infer_error_name(e.error));
    }
    assert_int_equal(daemon_wait(&own, 10), 75);
    uint64_t took = test_clock_us() - told;
    if (took > 1000000u * (unsigned)program_slowness())
        fail_msg("it took %llu us to end", (unsigned long long)took);
    infer_close(c);
    daemon_done(&own);
}

static void test_backend_lost(void **state)
{
    lose_backend("delay_us=10000,lose_step=5");
}

static void test_backend_lost_and_hangs(void **state)
{
    lose_backend("delay_us=10000,lose_step=5,lose_hangs=1");
}

/* ---- cancel, slow readers -------------------------------------------------------------------- */

static void test_cancel(void **state)
{
    struct daemon own = {0};
    struct infer_request r;
    struct answer a;
    uint32_t id;
    daemon_start_backend(&own, "null", "delay_us=2000");
    struct infer_conn *c = answer_connect(&own);
    request_hello(&r, 1900, 1);
    assert_int_equal(infer_submit(c, &r, &id), 0);
    next_token(c, id, 0);
    next_token(c, id, 1);
    assert_int_equal(infer_cancel(c, id), 0);
    uint64_t cancelled = test_clock_us();
    struct infer_event e;
    int code;
    uint32_t after = 0;
    while ((code = infer_next(c, id, 10000, &e)) == 1 && e.kind != INFER_EVENT_DONE)
        after += e.kind == INFER_EVENT_TOKEN;
    assert_int_equal(code, 1);
    assert_int_equal(e.finish, INFER_FINISH_CANCEL);
    assert_told_in_time(cancelled);
    assert_true(e.n_generated < 1900);
    /* Within one step, plus what was under way: generous for a machine that is busy elsewhere. */
    assert_in_range(after, 0, 200);
    assert_int_equal(infer_cancel(c, id), -INFER_E_NOT_FOUND);
    assert_int_equal(infer_cancel(c, 123456), -INFER_E_NOT_FOUND);

    request_hello(&r, 5, 1);
    answer_get(c, &r, &a); /* the connection is as good as new */
    assert_int_equal(a.n, 5);
    answer_done(&a);
    answer_wait_idle(c);
    infer_close(c);
    daemon_done(&own);
}

static void test_close_frees_the_sequence(void **state)
{
    struct infer_conn *watcher = answer_connect(&d);
    struct infer_request r;
    uint32_t id;
    for (int i = 0; i < 30; i++) {
        struct infer_conn *c = answer_connect_ring(&d, INFER_TOKEN_RING_MIN);
        request_hello(&r, 1900, (uint64_t)i + 1);
        assert_int_equal(infer_submit(c, &r, &id), 0);
        infer_close(c);
    }
    struct infer_status s;
    answer_wait_idle(watcher);
    answer_wait_sessions(watcher, 1);
    assert_int_equal(infer_status(watcher, &s), 0);
    assert_int_equal(s.n_pages_used, 0);
    infer_close(watcher);
}

/* A full token ring parks that sequence, never the engine; nothing is lost when reading resumes. */
static void test_slow_reader_is_parked(void **state)
{
    enum { TOKENS = 1500 };
    struct infer_conn *slow = answer_connect_ring(&d, INFER_TOKEN_RING_MIN);
    struct infer_conn *fast = answer_connect(&d);
    struct infer_request r;
    struct infer_status s;
    struct answer a, again;
    uint32_t id;
    request_hello(&r, TOKENS, 21);
    assert_int_equal(infer_submit(slow, &r, &id), 0);
    uint64_t end = test_clock_us() + 10000000u * (unsigned)program_slowness();
    do {
        assert_int_equal(infer_status(fast, &s), 0);
        if (test_clock_us() > end)
            fail_msg("never parked: %u running, %u waiting", s.n_running, s.n_waiting);
    } while (s.n_parked != 1);

    for (uint64_t i = 0; i < 20; i++) {
        request_hello(&r, 200, 100 + i);
        answer_get(fast, &r, &a);
        assert_int_equal(a.error, 0);
        assert_int_equal(a.n, 200);
        answer_done(&a);
    }
    assert_int_equal(infer_status(fast, &s), 0);
    assert_int_equal(s.n_parked, 1);

    answer_gather(slow, id, &a); /* checks that no index is missing */
    assert_int_equal(a.error, 0);
    assert_int_equal(a.n, TOKENS);
    request_hello(&r, TOKENS, 21);
    answer_get(fast, &r, &again);
    assert_memory_equal(a.ids, again.ids, TOKENS * sizeof *a.ids);
    answer_done(&a);
    answer_done(&again);
    infer_close(slow);
    infer_close(fast);
}

/* ---- fork, threads, event loops -------------------------------------------------------------- */

static int child_uses_connection(struct infer_conn *c)
{
    struct infer_request r;
    struct infer_event e;
    uint32_t id, n = 0;
    request_hello(&r, 10, 5);
    if (infer_submit(c, &r, &id) < 0)
        return 1;
    do {
        if (infer_next(c, id, 20000, &e) != 1)
            return 2;
        n += e.kind == INFER_EVENT_TOKEN && e.has_token;
    } while (e.kind != INFER_EVENT_DONE);
    infer_close(c);
    return e.error ? 3 : n == 10 ? 0 : 4;
}

static void test_fork(void **state)
{
    struct daemon own = {0};
    struct infer_request r;
    struct answer a;
    uint32_t id;
    int status;
    daemon_start_backend(&own, "null", "delay_us=500");
    struct infer_conn *c = answer_connect(&own);
    request_hello(&r, 400, 9);
    assert_int_equal(infer_submit(c, &r, &id), 0);
    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0)
        _exit(child_uses_connection(c));
    answer_gather(c, id, &a); /* the parent is not disturbed */
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    assert_int_equal(a.error, 0);
    assert_int_equal(a.n, 400);
    answer_done(&a);
    infer_close(c);
    daemon_done(&own);
}

enum { THREADS = 6, ROUNDS = 15, TOKENS_EACH = 30 };

struct worker {
    struct infer_conn *c;
    unsigned number;
    int32_t ids[ROUNDS][TOKENS_EACH];
    char problem[128];
};

/* Only numbers of an event are used: its pointers end with the next call, by whatever thread. */
static bool worker_round(struct worker *w, int round)
{
    struct infer_request r;
    struct infer_event e = {0};
    uint32_t id, n = 0;
    request_hello(&r, TOKENS_EACH, w->number * 1000 + (unsigned)round + 1);
    int code = infer_submit(w->c, &r, &id);
    if (code < 0) {
        snprintf(w->problem, sizeof w->problem, "submit: %s", infer_strerror(code));
        return false;
    }
    for (;;) {
        code = infer_next(w->c, id, 20, &e);
        if (code == 0 || code == -INFER_E_BUSY) {
            usleep(200);
            continue;
        }
        if (code != 1 || e.request != id) {
            snprintf(w->problem, sizeof w->problem, "next: %d, request %u of %u", code, e.request,
                     id);
            return false;
        }
        if (e.kind == INFER_EVENT_TOKEN && e.has_token) {
            if (e.index != n || n >= TOKENS_EACH) {
                snprintf(w->problem, sizeof w->problem, "token %u came as %u", n, e.index);
                return false;
            }
            w->ids[round][n++] = e.token;
        }
        if (e.kind == INFER_EVENT_DONE)
            break;
    }
    if (e.error || n != TOKENS_EACH)
        snprintf(w->problem, sizeof w->problem, "%u tokens, error %d", n, e.error);
    return !w->problem[0];
}

static void *worker_main(void *argument)
{
    struct worker *w = argument;
    for (int i = 0; i < ROUNDS && worker_round(w, i); i++)
        ;
    return NULL;
}

static void test_threads_on_one_connection(void **state)
{
    static struct worker workers[THREADS];
    pthread_t thread[THREADS];
    struct infer_conn *c = answer_connect(&d);
    memset(workers, 0, sizeof workers);
    for (unsigned i = 0; i < THREADS; i++) {
        workers[i].c = c;
        workers[i].number = i;
        assert_int_equal(pthread_create(&thread[i], NULL, worker_main, &workers[i]), 0);
    }
    for (unsigned i = 0; i < THREADS; i++)
        pthread_join(thread[i], NULL);
    for (unsigned i = 0; i < THREADS; i++) {
        struct infer_request r;
        struct answer a;
        if (workers[i].problem[0])
            fail_msg("thread %u: %s", i, workers[i].problem);
        request_hello(&r, TOKENS_EACH, i * 1000 + 1); /* alone: the same tokens */
        answer_get(c, &r, &a);
        assert_memory_equal(a.ids, workers[i].ids[0], sizeof workers[i].ids[0]);
        answer_done(&a);
    }
    infer_close(c);
}

static void test_poll_fd_with_epoll(void **state)
{
    struct daemon own = {0};
    struct infer_request r;
    struct infer_event e;
    struct epoll_event event = {.events = EPOLLIN};
    uint32_t id[3], n_tokens = 0, n_done = 0;
    daemon_start_backend(&own, "null", "delay_us=300");
    struct infer_conn *c = answer_connect(&own);
    int epoll = epoll_create1(EPOLL_CLOEXEC), fd = infer_poll_fd(c);
    assert_true(fd >= 0);
    assert_int_equal(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event), 0);
    assert_int_equal(epoll_wait(epoll, &event, 1, 0), 0); /* silent while there is nothing */
    request_hello(&r, 100, 1);
    for (int i = 0; i < 3; i++)
        assert_int_equal(infer_submit(c, &r, &id[i]), 0);
    while (n_done < 3) {
        if (epoll_wait(epoll, &event, 1, 10000 * program_slowness()) != 1)
            fail_msg("silence after %u tokens and %u answers", n_tokens, n_done);
        int code;
        while ((code = infer_next(c, 0, 0, &e)) == 1) {
            n_tokens += e.kind == INFER_EVENT_TOKEN && e.has_token;
            n_done += e.kind == INFER_EVENT_DONE;
        }
        assert_int_equal(code, 0);
    }
    assert_int_equal(n_tokens, 300);
    close(epoll);
    infer_close(c);
    daemon_done(&own);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_answer),
        cmocka_unit_test(test_seeds),
        cmocka_unit_test(test_status_and_models),
        cmocka_unit_test(test_event_loops),
        cmocka_unit_test(test_a_crowd_connects_at_once),
        cmocka_unit_test(test_tokens_come_during_the_next_step),
        cmocka_unit_test(test_daemon_killed_mid_stream),
        cmocka_unit_test(test_daemon_killed_while_client_sleeps),
        cmocka_unit_test(test_daemon_killed_while_epoll_waits),
        cmocka_unit_test(test_daemon_stops_mid_stream),
        cmocka_unit_test(test_backend_fails_once),
        cmocka_unit_test(test_backend_lost),
        cmocka_unit_test(test_backend_lost_and_hangs),
        cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_close_frees_the_sequence),
        cmocka_unit_test(test_slow_reader_is_parked),
        cmocka_unit_test(test_fork),
        cmocka_unit_test(test_threads_on_one_connection),
        cmocka_unit_test(test_poll_fd_with_epoll),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
