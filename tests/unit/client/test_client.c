/* test_client.c: libinferclient against a daemon in a thread (fake_daemon.h): answers, waiting,
 * loss, reconnect, fork, threads, main loops. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "fixture.h"

#include "base/clock.h"
#include <sys/epoll.h>
#include <sys/wait.h>

static void test_echo(void **state)
{
    struct fixture *f = *state;
    struct infer_event e;
    const char *text = "the answer is the question, with \xff\xfe bytes";
    uint32_t id = ask(f->conn, text);
    assert_int_equal(infer_next(f->conn, id, 10000, &e), 1);
    assert_int_equal(e.kind, INFER_EVENT_QUEUED);
    assert_int_equal(e.id, 77);
    assert_int_equal(e.n_prompt, strlen(text));
    read_all(f->conn, id, text);
    assert_int_equal(infer_next(f->conn, id, 0, &e), -INFER_E_NOT_FOUND);
    assert_string_equal(infer_daemon_version(f->conn), INFERD_VERSION);
}

static void test_prompt_event_is_one(void **state)
{
    struct fixture *f = *state;
    struct infer_request r;
    struct infer_event e;
    uint32_t id;
    char text[1501];
    for (int i = 0; i < 1500; i++)
        text[i] = (char)('a' + i % 26);
    text[1500] = '\0';
    infer_request_default(&r);
    r.text = text;
    r.want_prompt = 1;
    assert_int_equal(infer_submit(f->conn, &r, &id), 0);
    do
        assert_int_equal(infer_next(f->conn, id, 10000, &e), 1);
    while (e.kind == INFER_EVENT_QUEUED);
    assert_int_equal(e.kind, INFER_EVENT_PROMPT);
    assert_int_equal(e.n_tokens, 1500);
    for (int i = 0; i < 1500; i++)
        assert_int_equal(e.tokens[i], 'a' + i % 26);
    read_all(f->conn, id, text);
}

static void test_logprobs_and_text_do_not_collide(void **state)
{
    struct fixture *f = *state;
    struct infer_request r;
    struct infer_event e;
    uint32_t id;
    infer_request_default(&r);
    r.text = "1234567" /* 7: a pad byte */ "abcd"; /* 4: none */
    r.sampling.logprobs = 2;
    assert_int_equal(infer_submit(f->conn, &r, &id), 0);
    int n = 0;
    do {
        assert_int_equal(infer_next(f->conn, id, 10000, &e), 1);
        if (e.kind != INFER_EVENT_TOKEN)
            continue;
        assert_string_equal(e.text, n++ == 0 ? "1234567" : "abcd");
        assert_int_equal(e.n_top, 2);
        assert_int_equal(e.top[1].token, 2);
        assert_true(e.top[1].logprob == -1.5f);
    } while (e.kind != INFER_EVENT_DONE);
    assert_int_equal(n, 2);
}

static void test_daemon_refuses(void **state)
{
    struct fixture *f = *state;
    struct infer_request r;
    struct infer_event e;
    uint32_t id = ask(f->conn, "bad");
    assert_int_equal(infer_next(f->conn, id, 10000, &e), 1);
    assert_int_equal(e.kind, INFER_EVENT_DONE);
    assert_int_equal(e.error, INFER_E_UNKNOWN_MODEL);
    assert_string_equal(e.text, "no such thing as \"bad\"");
    infer_request_default(&r);
    r.text = "x";
    r.sampling.top_p = 1.5f;
    assert_int_equal(infer_submit(f->conn, &r, &id), 0);
    assert_int_equal(infer_next(f->conn, id, 10000, &e), 1);
    assert_int_equal(e.error, INFER_E_BAD_PARAMETER);
}

static void test_invalid_arguments(void **state)
{
    struct fixture *f = *state;
    struct infer_request r;
    struct infer_message m = {"user", "hi"};
    const char *many[INFER_STOPS_MAX + 1];
    uint32_t id = 12345;
    infer_request_default(&r);
    assert_int_equal(infer_submit(f->conn, &r, &id), -INFER_E_INVALID);
    assert_string_equal(infer_detail(f->conn), "give exactly one of text, messages and tokens");
    r.text = "x";
    r.messages = &m;
    r.n_messages = 1;
    assert_int_equal(infer_submit(f->conn, &r, &id), -INFER_E_INVALID);
    r.text = NULL;
    m.content = NULL;
    assert_int_equal(infer_submit(f->conn, &r, &id), -INFER_E_INVALID);
    r.messages = NULL;
    r.text = "x";
    r.text_bytes = INFER_REQUEST_BYTES_MAX + 1;
    assert_int_equal(infer_submit(f->conn, &r, &id), -INFER_E_REQUEST_TOO_LARGE);
    r.text_bytes = 0;
    for (size_t i = 0; i <= INFER_STOPS_MAX; i++)
        many[i] = "s";
    r.stops = many;
    r.n_stops = INFER_STOPS_MAX + 1;
    assert_int_equal(infer_submit(f->conn, &r, &id), -INFER_E_INVALID);
    r.n_stops = 0;
    r.model = "a name that is far too long for any model, because it has more than 63 bytes in it";
    assert_int_equal(infer_submit(f->conn, &r, &id), -INFER_E_INVALID);
    r.model = NULL;
    r.sampling.bytes = 0;
    assert_int_equal(infer_submit(f->conn, &r, &id), -INFER_E_INVALID);
    assert_int_equal(id, 12345);
    assert_int_equal(infer_cancel(f->conn, 999), -INFER_E_NOT_FOUND);
}

static void test_long_stream_wraps(void **state)
{
    struct fixture *f = *state;
    struct infer_conn *c = join(f->daemon, INFER_REQUEST_RING_MIN, INFER_TOKEN_RING_MIN);
    for (int i = 1; i < 40; i++) { /* answers of all lengths shift the ring's phase */
        char text[32];
        snprintf(text, sizeof text, "count:%d", i * 37);
        assert_int_equal(read_all(c, ask(c, text), NULL), i * 37);
    }
    infer_close(c);
}

static void test_slow_reader_loses_nothing(void **state)
{
    struct fixture *f = *state;
    struct infer_conn *c = join(f->daemon, 0, INFER_TOKEN_RING_MIN);
    uint32_t id = ask(c, "count:3000");
    usleep(50000); /* the ring is full now and the sequence parked */
    assert_int_equal(read_all(c, id, NULL), 3000);
    infer_close(c);
}

static void test_big_prompt_in_fragments(void **state)
{
    struct fixture *f = *state;
    size_t bytes = 1 << 20;
    char *text = malloc(bytes + 1);
    for (size_t i = 0; i < bytes; i++)
        text[i] = (char)('A' + i * 7 % 53);
    text[bytes] = '\0';
    struct infer_conn *c = join(f->daemon, INFER_REQUEST_RING_MIN, 0);
    read_all(c, ask(c, text), text);
    assert_int_equal(f->daemon->n_payload_bytes, (int)bytes);
    infer_close(c);
    free(text);
}

static void *release_later(void *arg)
{
    struct fake_daemon *d = arg;
    usleep(60000);
    d->stalled = false;
    return NULL;
}

static void test_submit_waits_for_a_full_ring(void **state)
{
    struct fixture *f = *state;
    struct infer_conn *c = join(f->daemon, INFER_REQUEST_RING_MIN, 0);
    pthread_t thread;
    uint32_t id[40];
    f->daemon->stalled = true;
    pthread_create(&thread, NULL, release_later, f->daemon);
    uint64_t start = clock_us();
    for (int i = 0; i < 40; i++) /* 40 records of 184 bytes do not fit 4096 */
        id[i] = ask(c, "count:3");
    assert_true(clock_us() - start > 20000);
    pthread_join(thread, NULL);
    for (int i = 0; i < 40; i++)
        assert_int_equal(read_all(c, id[i], NULL), 3);
    infer_close(c);
}

static void test_events_of_others_are_kept(void **state)
{
    struct fixture *f = *state;
    struct infer_event e;
    uint32_t a = ask(f->conn, "first answer"), b = ask(f->conn, "second answer"),
             c = ask(f->conn, "count:500");
    read_all(f->conn, c, NULL);
    read_all(f->conn, b, "second answer");
    int done = 0, tokens = 0;
    while (done < 1) { /* any request: only the first is left */
        assert_int_equal(infer_next(f->conn, 0, 10000, &e), 1);
        assert_int_equal(e.request, a);
        done += e.kind == INFER_EVENT_DONE;
        tokens += e.kind == INFER_EVENT_TOKEN;
    }
    assert_int_equal(tokens, 2);
    assert_int_equal(infer_next(f->conn, 0, 0, &e), 0);
    assert_int_equal(infer_next(f->conn, 0, 20, &e), 0);
}

static void test_cancel(void **state)
{
    struct fixture *f = *state;
    struct infer_event e;
    uint32_t id = ask(f->conn, "hang");
    assert_int_equal(infer_next(f->conn, id, 10000, &e), 1);
    assert_int_equal(infer_next(f->conn, id, 30, &e), 0);
    assert_int_equal(infer_cancel(f->conn, id), 0);
    assert_int_equal(infer_next(f->conn, id, 10000, &e), 1);
    assert_int_equal(e.kind, INFER_EVENT_DONE);
    assert_int_equal(e.finish, INFER_FINISH_CANCEL);
    assert_int_equal(infer_cancel(f->conn, id), -INFER_E_NOT_FOUND);
}

static void test_one_shot_calls(void **state)
{
    struct fixture *f = *state;
    struct infer_model *models;
    struct infer_status status;
    struct infer_scores scores;
    struct infer_request r;
    int32_t *ids, three[] = {'a', 'b', 'c'};
    char *text;
    size_t n;
    uint32_t id = ask(f->conn, "stays untouched"); /* one-shot calls step over its events */

    assert_int_equal(infer_models(f->conn, &models, &n), 0);
    assert_int_equal(n, 2);
    assert_string_equal(models[1].name, "two");
    assert_int_equal(models[1].n_vocab, 20);
    infer_free(models);
    assert_int_equal(infer_status(f->conn, &status), 0);
    assert_int_equal(status.pid, 42);
    assert_string_equal(status.event_loop, "fake");
    assert_int_equal(infer_tokenize(f->conn, NULL, "hey\0you", 7, 0, 0, &ids, &n), 0);
    assert_int_equal(n, 7);
    assert_int_equal(ids[3], 0);
    assert_int_equal(ids[6], 'u');
    infer_free(ids);
    assert_int_equal(infer_tokenize(f->conn, NULL, "", 0, 0, 0, &ids, &n), 0);
    assert_int_equal(n, 0);
    infer_free(ids);
    assert_int_equal(infer_detokenize(f->conn, NULL, three, 3, 0, &text, &n), 0);
    assert_int_equal(n, 3);
    assert_string_equal(text, "abc");
    infer_free(text);

    infer_request_default(&r);
    r.text = "0123456789";
    assert_int_equal(infer_score(f->conn, &r, 3, &scores), 0);
    assert_int_equal(scores.n, 10);
    assert_int_equal(scores.tokens[9], 9);
    assert_true(scores.top[9 * 3 + 2].logprob == -2.0f);
    infer_scores_free(&scores);
    three[1] = -4;
    assert_int_equal(infer_detokenize(f->conn, NULL, three, 3, 0, &text, &n), -INFER_E_BAD_TOKEN);
    assert_int_equal(strlen(infer_detail(f->conn)) > 0, 1);
    read_all(f->conn, id, "stays untouched");
}

static void test_lost_daemon_and_reconnect(void **state)
{
    struct fixture *f = *state;
    struct infer_event e;
    uint32_t a = ask(f->conn, "hang"), b = ask(f->conn, "hang");
    assert_int_equal(infer_next(f->conn, a, 10000, &e), 1);
    assert_int_equal(infer_next(f->conn, a, 20, &e), 0); /* asleep by futex for a while */
    fake_kill(f->daemon);
    uint64_t start = clock_us();
    assert_int_equal(infer_next(f->conn, a, -1, &e), 1);
    assert_true(clock_us() - start < 100000);
    assert_int_equal(e.kind, INFER_EVENT_DONE);
    assert_int_equal(e.error, INFER_E_DAEMON_LOST);
    do /* what the daemon had said before it died comes first */
        assert_int_equal(infer_next(f->conn, 0, -1, &e), 1);
    while (e.kind != INFER_EVENT_DONE);
    assert_int_equal(e.request, b);
    assert_int_equal(e.error, INFER_E_DAEMON_LOST);
    assert_int_equal(infer_next(f->conn, 0, -1, &e), -INFER_E_DAEMON_LOST);

    struct infer_request r;
    uint32_t id;
    infer_request_default(&r);
    r.text = "x";
    assert_int_equal(infer_submit(f->conn, &r, &id), -INFER_E_DAEMON_ABSENT);
    assert_int_equal(infer_submit(f->conn, &r, &id), -INFER_E_DAEMON_ABSENT);
    assert_int_equal(infer_next(f->conn, 0, 0, &e), -INFER_E_DAEMON_LOST);
    fake_start(f->daemon);
    read_all(f->conn, ask(f->conn, "back again"), "back again");
}

struct sleeper {
    struct infer_conn *conn;
    uint32_t id;
    atomic_bool asleep;
    uint64_t woken_us;
    int error;
};

static void *sleep_in_next(void *arg)
{
    struct sleeper *s = arg;
    struct infer_event e = {0};
    s->asleep = true;
    while (infer_next(s->conn, s->id, -1, &e) == 1 && e.kind != INFER_EVENT_DONE)
        ;
    s->woken_us = clock_us();
    s->error = e.error;
    return NULL;
}

static void test_a_sleeper_hears_of_death_and_goodbye(void **state)
{
    struct fixture *f = *state;
    for (int goodbye = 0; goodbye < 2; goodbye++) {
        struct sleeper s = {.conn = f->conn, .id = ask(f->conn, "hang")};
        pthread_t thread;
        pthread_create(&thread, NULL, sleep_in_next, &s);
        usleep(120000);
        uint64_t start = clock_us();
        if (goodbye)
            f->daemon->close_code = INFER_E_SHUTDOWN;
        else
            fake_kill(f->daemon);
        pthread_join(thread, NULL);
        assert_true(s.woken_us - start < 100000);
        assert_int_equal(s.error, goodbye ? INFER_E_SHUTDOWN : INFER_E_DAEMON_LOST);
        if (!goodbye)
            fake_start(f->daemon);
    }
}

static void test_idle_connection_finds_the_new_daemon(void **state)
{
    struct fixture *f = *state;
    read_all(f->conn, ask(f->conn, "one"), "one");
    fake_kill(f->daemon);
    fake_start(f->daemon);
    usleep(30000);
    read_all(f->conn, ask(f->conn, "two"), "two"); /* no error in between */
}

static void test_fork(void **state)
{
    struct fixture *f = *state;
    uint32_t id = ask(f->conn, "count:2000");
    pid_t child = fork();
    if (child == 0) {
        struct infer_event e;
        bool good = infer_next(f->conn, id, 0, &e) == -INFER_E_NOT_FOUND;
        struct infer_request r;
        infer_request_default(&r);
        r.text = "count:50";
        uint32_t mine, n = 0;
        good = good && infer_submit(f->conn, &r, &mine) == 0;
        while (good && infer_next(f->conn, mine, 10000, &e) == 1 && e.kind != INFER_EVENT_DONE)
            n += e.kind == INFER_EVENT_TOKEN;
        infer_close(f->conn);
        _exit(good && n == 50 ? 0 : 1);
    }
    int status;
    assert_int_equal(read_all(f->conn, id, NULL), 2000);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    read_all(f->conn, ask(f->conn, "still here"), "still here");
}

static void *many_calls(void *arg)
{
    struct infer_conn *c = arg;
    for (int i = 0; i < 200; i++) {
        int32_t *ids;
        char text[16];
        size_t n;
        int bytes = snprintf(text, sizeof text, "%d", i);
        if (infer_tokenize(c, NULL, text, (size_t)bytes, 0, 0, &ids, &n) != 0)
            return (void *)1;
        bool good = n == (size_t)bytes && ids[0] == text[0];
        infer_free(ids);
        if (!good)
            return (void *)2;
    }
    return NULL;
}

static void test_many_threads(void **state)
{
    struct fixture *f = *state;
    pthread_t threads[6];
    uint32_t id = ask(f->conn, "count:5000");
    for (int i = 0; i < 6; i++)
        pthread_create(&threads[i], NULL, many_calls, f->conn);
    assert_int_equal(read_all(f->conn, id, NULL), 5000);
    for (int i = 0; i < 6; i++) {
        void *bad;
        pthread_join(threads[i], &bad);
        assert_null(bad);
    }
}

static void test_second_waiter_is_busy(void **state)
{
    struct fixture *f = *state;
    struct infer_event e;
    struct sleeper s = {.conn = f->conn, .id = ask(f->conn, "hang")};
    pthread_t thread;
    pthread_create(&thread, NULL, sleep_in_next, &s);
    while (!s.asleep)
        usleep(1000);
    usleep(20000);
    assert_int_equal(infer_next(f->conn, s.id, -1, &e), -INFER_E_BUSY);
    struct infer_status status; /* a one-shot call waits beside the waiter */
    assert_int_equal(infer_status(f->conn, &status), 0);
    assert_int_equal(infer_cancel(f->conn, s.id), 0);
    pthread_join(thread, NULL);
    assert_int_equal(s.error, 0);
}

/* One turn of a program's main loop. true: something may be there. */
static bool wait_readable(int fd, int timeout_ms)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    return poll(&p, 1, timeout_ms) == 1;
}

static void test_main_loop(void **state)
{
    struct fixture *f = *state;
    struct infer_event e;
    struct epoll_event ready;
    int outer = epoll_create1(EPOLL_CLOEXEC);
    int fd = infer_poll_fd(f->conn);
    assert_true(fd >= 0);
    assert_int_equal(infer_poll_fd(f->conn), fd);
    struct epoll_event want = {.events = EPOLLIN};
    assert_int_equal(epoll_ctl(outer, EPOLL_CTL_ADD, fd, &want), 0);
    assert_false(wait_readable(fd, 0));
    for (int round = 0; round < 50; round++) {
        uint32_t n = 0, done = 0;
        ask(f->conn, "count:400");
        ask(f->conn, "count:1");
        while (done < 2) {
            assert_int_equal(epoll_wait(outer, &ready, 1, 5000), 1);
            int r;
            while ((r = infer_next(f->conn, 0, 0, &e)) == 1) {
                n += e.kind == INFER_EVENT_TOKEN;
                done += e.kind == INFER_EVENT_DONE;
                if (e.kind == INFER_EVENT_DONE && round % 2 == 1)
                    break; /* a program that stops at DONE must not hang either */
            }
            assert_true(r >= 0);
        }
        assert_int_equal(n, 401);
    }
    while (infer_next(f->conn, 0, 0, &e) == 1)
        ;
    assert_false(wait_readable(fd, 0));
    close(outer);
}

static void test_main_loop_beside_one_shot_calls(void **state)
{
    struct fixture *f = *state;
    struct infer_event e;
    struct infer_status status;
    int fd = infer_poll_fd(f->conn);
    uint32_t id = ask(f->conn, "count:100"), n = 0;
    usleep(20000);
    assert_int_equal(infer_status(f->conn, &status), 0); /* takes the tokens out of the ring */
    assert_true(wait_readable(fd, 0));
    bool done = false;
    while (!done) {
        assert_true(wait_readable(fd, 5000));
        while (infer_next(f->conn, id, 0, &e) == 1) {
            n += e.kind == INFER_EVENT_TOKEN;
            done = done || e.kind == INFER_EVENT_DONE;
        }
    }
    assert_int_equal(n, 100);
}

static void test_main_loop_hears_of_death(void **state)
{
    struct fixture *f = *state;
    struct infer_event e;
    int fd = infer_poll_fd(f->conn);
    uint32_t id = ask(f->conn, "hang");
    while (wait_readable(fd, 100))
        assert_true(infer_next(f->conn, 0, 0, &e) >= 0);
    fake_kill(f->daemon);
    assert_true(wait_readable(fd, 100));
    int r;
    while ((r = infer_next(f->conn, 0, 0, &e)) == 0)
        assert_true(wait_readable(fd, 100));
    assert_int_equal(r, 1);
    assert_int_equal(e.request, id);
    assert_int_equal(e.error, INFER_E_DAEMON_LOST);
    assert_int_equal(infer_next(f->conn, 0, 0, &e), -INFER_E_DAEMON_LOST);
    fake_start(f->daemon);
    id = ask(f->conn, "count:9");
    assert_int_equal(infer_poll_fd(f->conn), fd);
    bool done = false;
    while (!done) {
        assert_true(wait_readable(fd, 5000));
        while (infer_next(f->conn, 0, 0, &e) == 1)
            done = done || e.kind == INFER_EVENT_DONE;
    }
}

static void test_connect_errors(void **state)
{
    struct infer_connect_options o = {.socket = "/tmp/inferd-there-is-no-such-socket"};
    struct infer_conn *c = (struct infer_conn *)state;
    char path[200];
    assert_int_equal(infer_connect(&o, &c), -INFER_E_DAEMON_ABSENT);
    assert_non_null(strstr(infer_detail(NULL), "No such file"));
    memset(path, 'a', sizeof path);
    path[199] = '\0';
    o.socket = path;
    assert_int_equal(infer_connect(&o, &c), -INFER_E_SOCKET_PATH);
    o.socket = "/dev/null";
    assert_true(infer_connect(&o, &c) < 0);
    assert_ptr_equal(c, state);
    infer_close(NULL);
}

static void test_socket_choice(void **state)
{
    struct fixture *f = *state;
    struct infer_conn *c;
    char other[80];
    setenv("INFERD_SOCKET", f->daemon->path, 1);
    assert_int_equal(infer_connect(NULL, &c), 0);
    infer_close(c);
    unsetenv("INFERD_SOCKET");
    setenv("XDG_RUNTIME_DIR", f->daemon->folder, 1);
    snprintf(other, sizeof other, "%s/inferd.sock", f->daemon->folder);
    assert_int_equal(symlink(f->daemon->path, other), 0);
    assert_int_equal(infer_connect(NULL, &c), 0);
    infer_close(c);
    unlink(other);
    unsetenv("XDG_RUNTIME_DIR");
}

static void test_error_table(void **state)
{
    assert_string_equal(infer_error_name(-INFER_E_UNKNOWN_MODEL), "UNKNOWN_MODEL");
    assert_string_equal(infer_error_name(7), "");
    assert_int_equal(infer_error_exit(-INFER_E_DAEMON_ABSENT), 3);
    assert_int_equal(infer_error_exit(0), 0);
    assert_string_equal(infer_strerror(ENOENT), "No such file or directory");
    assert_string_equal(infer_strerror(-ENOENT), "No such file or directory");
    assert_non_null(infer_strerror(INT32_MIN));
    assert_string_equal(infer_finish_name(INFER_FINISH_LENGTH), "length");
    assert_string_equal(infer_finish_name(99), "");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_DAEMON(test_echo),
        WITH_DAEMON(test_prompt_event_is_one),
        WITH_DAEMON(test_logprobs_and_text_do_not_collide),
        WITH_DAEMON(test_daemon_refuses),
        WITH_DAEMON(test_invalid_arguments),
        WITH_DAEMON(test_long_stream_wraps),
        WITH_DAEMON(test_slow_reader_loses_nothing),
        WITH_DAEMON(test_big_prompt_in_fragments),
        WITH_DAEMON(test_submit_waits_for_a_full_ring),
        WITH_DAEMON(test_events_of_others_are_kept),
        WITH_DAEMON(test_cancel),
        WITH_DAEMON(test_one_shot_calls),
        WITH_DAEMON(test_lost_daemon_and_reconnect),
        WITH_DAEMON(test_a_sleeper_hears_of_death_and_goodbye),
        WITH_DAEMON(test_idle_connection_finds_the_new_daemon),
        WITH_DAEMON(test_fork),
        WITH_DAEMON(test_many_threads),
        WITH_DAEMON(test_second_waiter_is_busy),
        WITH_DAEMON(test_main_loop),
        WITH_DAEMON(test_main_loop_beside_one_shot_calls),
        WITH_DAEMON(test_main_loop_hears_of_death),
        cmocka_unit_test(test_connect_errors),
        WITH_DAEMON(test_socket_choice),
        cmocka_unit_test(test_error_table),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
