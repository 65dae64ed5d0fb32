/* test_metrics.c: the metrics of a real daemon add up, and tell nobody of others; and
 * `inferctl metrics --http` behind real TCP sockets, with heads that are hostile, slow or cut. */
#include "integration/many.h"
#include "support/answer.h"
#include "support/openmetrics.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

static struct daemon d;
static struct infer_conn *conn;

static int setup(void **state)
{
    static const char model[] = "unix=" DAEMON_MODEL;
    static const char *const argv[] = {"--model",
                                       model,
                                       "--backend",
                                       "null",
                                       "--backend-options",
                                       "delay_us=200",
                                       "--policy",
                                       "default:waiting=3",
                                       "--parallel",
                                       "2",
                                       NULL};
    daemon_start(&d, argv);
    conn = many_connect(&d);
    return conn ? 0 : -1;
}

static int teardown(void **state)
{
    infer_close(conn);
    daemon_stop(&d);
    daemon_done(&d);
    return 0;
}

static char *fetch(struct infer_conn *c)
{
    char *text = NULL;
    size_t bytes = 0;
    int code = infer_metrics(c, &text, &bytes);
    if (code < 0)
        fail_msg("infer_metrics: %s: %s", infer_error_name(code), infer_detail(c));
    assert_int_equal(strlen(text), bytes);
    const char *wrong = openmetrics_check(text, bytes);
    if (wrong != NULL)
        fail_msg("%s", wrong);
    return text;
}

/* ---- the numbers ----------------------------------------------------------------------------- */

/* By how much a sample, or the sum over those of a name, grew. */
static double grew(const char *before, const char *after, const char *sample)
{
    if (strchr(sample, '{') == NULL)
        return openmetrics_sum(after, sample) - openmetrics_sum(before, sample);
    double was = openmetrics_value(before, sample), is = openmetrics_value(after, sample);
    return (is < 0 ? 0 : is) - (was < 0 ? 0 : was);
}

static void assert_grew(const char *before, const char *after, const char *sample, double by)
{
    double got = grew(before, after, sample);
    if (got != by)
        fail_msg("%s grew by %g, not by %g", sample, got, by);
}

static void test_answers(void **state)
{
    int32_t ids[100];
    struct infer_request r;
    struct many_answer a;
    char uid[96];
    char *before = fetch(conn);
    many_ids(ids, 100, 1);
    many_request(&r, ids, 100, 20);
    many_get(conn, &r, &a);
    many_assert_good(&a, 20);
    many_get(conn, &r, &a); /* its prompt is cached: six whole pages of 16 */
    many_assert_good(&a, 20);
    assert_int_equal(a.n_cached, 96);
    char *after = fetch(conn);
    assert_grew(before, after, "inferd_requests_total{op=\"generate\",finish=\"length\"}", 2);
    assert_grew(before, after, "inferd_prompt_tokens_total{model=\"unix\"}", 200);
    assert_grew(before, after, "inferd_prompt_cached_tokens_total{model=\"unix\"}", 96);
    assert_grew(before, after, "inferd_prefix_hit_tokens_total{model=\"unix\"}", 96);
    assert_grew(before, after, "inferd_tokens_total{model=\"unix\"}", 40);
    assert_grew(before, after, "inferd_first_token_seconds_count{model=\"unix\"}", 2);
    assert_grew(before, after, "inferd_between_tokens_seconds_count{model=\"unix\"}", 38);
    assert_grew(before, after, "inferd_step_seconds_count{kind=\"decode\"}", 38);
    assert_grew(before, after, "inferd_rows_total{kind=\"prompt\"}", 104);
    assert_grew(before, after, "inferd_rows_total{kind=\"decode\"}", 38);
    assert_grew(before, after, "inferd_queue_wait_seconds_count{class=\"normal\"}", 2);
    assert_grew(before, after, "inferd_errors_total", 0);
    /* A step takes 200 us at least, and the gap between tokens is not less than a step. */
    assert_true(grew(before, after, "inferd_step_seconds_sum{kind=\"decode\"}") >= 38 * 200e-6);
    assert_true(grew(before, after, "inferd_between_tokens_seconds_sum{model=\"unix\"}") >=
                38 * 200e-6);
    snprintf(uid, sizeof uid, "inferd_user_tokens_total{uid=\"%u\"}", getuid());
    assert_grew(before, after, uid, 40);
    snprintf(uid, sizeof uid, "inferd_user_prompt_tokens_total{uid=\"%u\"}", getuid());
    assert_grew(before, after, uid, 200);
    snprintf(uid, sizeof uid, "inferd_user_requests_total{uid=\"%u\"}", getuid());
    assert_grew(before, after, uid, 2);
    assert_true(openmetrics_sum(after, "inferd_pages") ==
                openmetrics_value(after, "inferd_pages{model=\"unix\",state=\"free\"}") +
                    openmetrics_value(after, "inferd_pages{model=\"unix\",state=\"cached\"}"));
    infer_free(before);
    infer_free(after);
}

static void test_several_answers(void **state)
{
    int32_t ids[33];
    struct infer_request r;
    struct infer_event e;
    uint32_t id;
    char *before = fetch(conn);
    many_ids(ids, 33, 2);
    many_request(&r, ids, 33, 5);
    r.n_answers = 3;
    assert_int_equal(infer_submit(conn, &r, &id), 0);
    do
        assert_int_equal(infer_next(conn, id, 30000 * program_slowness(), &e), 1);
    while (e.kind != INFER_EVENT_DONE);
    assert_int_equal(e.error, 0);
    char *after = fetch(conn);
    assert_grew(before, after, "inferd_requests_total{op=\"generate\",finish=\"length\"}", 1);
    assert_grew(before, after, "inferd_prompt_tokens_total{model=\"unix\"}", 33);
    assert_grew(before, after, "inferd_tokens_total{model=\"unix\"}", 15);
    assert_grew(before, after, "inferd_first_token_seconds_count{model=\"unix\"}", 1);
    assert_grew(before, after, "inferd_between_tokens_seconds_count{model=\"unix\"}", 12);
    assert_grew(before, after, "inferd_user_tokens_total", 15);
    infer_free(before);
    infer_free(after);
}

static void test_outcomes(void **state)
{
    int32_t ids[16];
    struct infer_request r;
    struct many_answer a;
    uint32_t id[8];
    char *before = fetch(conn);
    many_ids(ids, 16, 3);
    many_request(&r, ids, 16, 5);
    r.model = "other";
    many_get(conn, &r, &a);
    assert_int_equal(a.error, INFER_E_UNKNOWN_MODEL);
    r.model = NULL;
    r.sampling.max_tokens = 1000000; /* whoever runs does so until he is cancelled */
    r.window = 64;
    /* Two run, three wait, the sixth is one too many. */
    for (int i = 0; i < 2; i++) {
        assert_int_equal(infer_submit(conn, &r, &id[i]), 0);
        many_wait_token(conn, id[i], &a);
    }
    r.priority = INFER_PRIORITY_BATCH;
    for (int i = 2; i < 6; i++)
        assert_int_equal(infer_submit(conn, &r, &id[i]), 0);
    many_gather(conn, id[5], &a);
    assert_int_equal(a.error, INFER_E_QUOTA);
    char *during = fetch(conn);
    assert_true(openmetrics_value(during, "inferd_running") == 2);
    assert_true(openmetrics_value(during, "inferd_waiting{class=\"batch\"}") == 3);
    assert_true(openmetrics_value(during, "inferd_waiting{class=\"normal\"}") == 0);
    assert_true(openmetrics_value(during, "inferd_queue_length") == 3);
    assert_true(openmetrics_value(during, "inferd_pages{model=\"unix\",state=\"held\"}") >= 2);
    for (int i = 0; i < 5; i++) {
        assert_int_equal(infer_cancel(conn, id[i]), 0);
        many_gather(conn, id[i], &a);
    }
    struct infer_conn *leaver = many_connect(&d); /* ends by hanging up */
    assert_non_null(leaver);
    r.priority = INFER_PRIORITY_NORMAL;
    assert_int_equal(infer_submit(leaver, &r, &id[6]), 0);
    many_wait_token(leaver, id[6], &a);
    infer_close(leaver);
    answer_wait_sessions(conn, 1);
    char *after = fetch(conn);
    assert_grew(before, after, "inferd_requests_total{op=\"generate\",finish=\"cancel\"}", 5);
    assert_grew(before, after, "inferd_requests_total{op=\"generate\",finish=\"error\"}", 2);
    assert_grew(before, after, "inferd_requests_total{op=\"generate\",finish=\"abandoned\"}", 1);
    assert_grew(before, after, "inferd_errors_total{error=\"UNKNOWN_MODEL\"}", 1);
    assert_grew(before, after, "inferd_errors_total{error=\"QUOTA\"}", 1);
    assert_grew(before, after, "inferd_refusals_total{limit=\"waiting\"}", 1);
    assert_grew(before, after, "inferd_refusals_total", 1);
    assert_grew(before, after, "inferd_user_refusals_total", 1);
    assert_grew(before, after, "inferd_connections_opened_total", 1);
    assert_true(openmetrics_value(after, "inferd_connections") == 1);
    infer_free(before);
    infer_free(during);
    infer_free(after);
}

static void test_takes_no_input(void **state)
{
    struct infer_request r;
    uint32_t id;
    infer_request_default(&r);
    r.op = 10; /* INFER_ABI_METRICS */
    r.text = "x";
    assert_int_equal(infer_submit(conn, &r, &id), -INFER_E_INVALID);
    assert_int_equal(infer_metrics(NULL, NULL, NULL), -INFER_E_INVALID);
}

/* Many at once, over one connection and while something runs: each is whole. */
static void test_many_readers(void **state)
{
    struct infer_conn *readers[8];
    struct infer_request r;
    struct many_answer a;
    int32_t ids[16];
    uint32_t id;
    many_ids(ids, 16, 4);
    many_request(&r, ids, 16, 1000000);
    r.window = 64;
    assert_int_equal(infer_submit(conn, &r, &id), 0);
    many_wait_token(conn, id, &a);
    for (int i = 0; i < 8; i++)
        assert_non_null(readers[i] = many_connect(&d));
    for (int round = 0; round < 5; round++)
        for (int i = 0; i < 8; i++)
            infer_free(fetch(readers[i]));
    for (int i = 0; i < 8; i++)
        infer_close(readers[i]);
    assert_int_equal(infer_cancel(conn, id), 0);
    many_gather(conn, id, &a);
    answer_wait_sessions(conn, 1);
    struct infer_status s;
    assert_int_equal(infer_status(conn, &s), 0);
    assert_int_equal(s.request_bytes, 0); /* copies and texts were given back */
}

/* ---- privacy --------------------------------------------------------------------------------- */

/* Asks for tokens as this uid, then looks at the metrics: its own counts and the sums alone. */
static int be_alice(void *arg)
{
    struct infer_conn *c = many_connect(&d);
    struct infer_request r;
    struct many_answer a;
    int32_t ids[16];
    char *text, own[96];
    size_t bytes;
    if (c == NULL)
        return 1;
    many_ids(ids, 16, 5);
    many_request(&r, ids, 16, 7);
    many_get(c, &r, &a);
    if (a.error != 0 || infer_metrics(c, &text, &bytes) != 0)
        return 2;
    snprintf(own, sizeof own, "inferd_user_tokens_total{uid=\"%u\"}", (unsigned)MANY_ALICE);
    bool good = openmetrics_check(text, bytes) == NULL && openmetrics_value(text, own) == 7 &&
                openmetrics_sum(text, "inferd_user_tokens_total") == 7 &&
                openmetrics_sum(text, "inferd_tokens_total") > 7 &&
                strstr(text, "uid=\"0\"") == NULL && strstr(text, "other\"") == NULL;
    infer_free(text);
    infer_close(c);
    return good ? 0 : 3;
}

static int be_bob(void *arg)
{
    struct infer_conn *c = many_connect(&d);
    char *text;
    size_t bytes;
    if (c == NULL || infer_metrics(c, &text, &bytes) != 0)
        return 1;
    bool good = openmetrics_check(text, bytes) == NULL && strstr(text, "uid=") == NULL;
    infer_free(text);
    infer_close(c);
    return good ? 0 : 3;
}

static void test_privacy(void **state)
{
    MANY_NEEDS_ROOT();
    int32_t ids[16];
    struct infer_request r;
    struct many_answer a;
    many_ids(ids, 16, 6);
    many_request(&r, ids, 16, 3);
    many_get(conn, &r, &a);
    many_assert_good(&a, 3);
    many_let_in(&d);
    many_join(many_start(MANY_ALICE, be_alice, NULL));
    many_join(many_start(MANY_BOB, be_bob, NULL));
    char *text = fetch(conn); /* root sees both, and no line of Bob's, who asked for no token */
    assert_true(openmetrics_value(text, "inferd_user_tokens_total{uid=\"65533\"}") == 7);
    assert_true(openmetrics_value(text, "inferd_user_tokens_total{uid=\"0\"}") >= 3);
    assert_null(strstr(text, "uid=\"65532\""));
    infer_free(text);
}

/* ---- HTTP ------------------------------------------------------------------------------------ */

struct served {
    int fd; /* the scraper's end */
    pid_t pid;
};

/* A connection over the loopback whose other end is inferctl's standard input and output. */
static struct served serve(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t n = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(listener, (struct sockaddr *)&address, n), 0);
    assert_int_equal(listen(listener, 1), 0);
    assert_int_equal(getsockname(listener, (struct sockaddr *)&address, &n), 0);
    struct served s = {.fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)};
    assert_int_equal(connect(s.fd, (struct sockaddr *)&address, n), 0);
    int accepted = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    assert_true(accepted >= 0);
    close(listener);
    const char *program = program_path("inferctl");
    fflush(NULL);
    s.pid = fork();
    assert_true(s.pid >= 0);
    if (s.pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        dup2(accepted, 0);
        dup2(accepted, 1);
        execl(program, program, "--socket", d.socket, "metrics", "--http", (char *)NULL);
        _exit(127);
    }
    close(accepted);
    return s;
}

/* Reads until the other side ends the connection. */
static size_t read_answer(int fd, char *to, size_t room)
{
    size_t n = 0;
    for (;;) {
        struct pollfd p = {fd, POLLIN, 0};
        assert_int_equal(poll(&p, 1, 30000 * program_slowness()), 1);
        ssize_t got = recv(fd, to + n, room - 1 - n, 0);
        if (got <= 0)
            break;
        n += (size_t)got;
        assert_true(n < room - 1);
    }
    to[n] = '\0';
    return n;
}

static void finish(struct served s, int status)
{
    int ended;
    close(s.fd);
    assert_int_equal(waitpid(s.pid, &ended, 0), s.pid);
    if (!WIFEXITED(ended) || WEXITSTATUS(ended) != status)
        fail_msg("inferctl ended with %#x", (unsigned)ended);
}

static char answer[1 << 20];

/* Sends the bytes, perhaps one by one; the answer's status, its body (or NULL). */
static int ask(const char *head, size_t bytes, bool slowly, const char **ret_body)
{
    struct served s = serve();
    for (size_t i = 0; i < bytes; i += slowly ? 1 : bytes)
        if (send(s.fd, head + i, slowly ? 1 : bytes, MSG_NOSIGNAL) < 0)
            break;
    size_t n = read_answer(s.fd, answer, sizeof answer);
    finish(s, 0);
    if (n < 12 || strncmp(answer, "HTTP/1.1 ", 9) != 0)
        fail_msg("no answer to '%.40s': '%.40s'", head, answer);
    char *body = strstr(answer, "\r\n\r\n");
    assert_non_null(body);
    const char *length = strstr(answer, "\r\nContent-Length: ");
    assert_true(length != NULL && length < body);
    assert_non_null(strstr(answer, "\r\nConnection: close\r\n"));
    body += 4;
    if (strncmp(head, "HEAD ", 5) != 0)
        assert_int_equal(strtoul(length + 18, NULL, 10), strlen(body));
    if (ret_body != NULL)
        *ret_body = body;
    return atoi(answer + 9);
}

static void expect(int status, const char *head)
{
    int got = ask(head, strlen(head), false, NULL);
    if (got != status)
        fail_msg("'%.60s' is answered with %d, not with %d", head, got, status);
}

static void test_http_get(void **state)
{
    static const char get[] = "GET /metrics HTTP/1.1\r\nHost: localhost:9479\r\n"
                              "Accept: application/openmetrics-text\r\n\r\n";
    const char *body;
    for (int slowly = 0; slowly < 2; slowly++) {
        assert_int_equal(ask(get, strlen(get), slowly, &body), 200);
        assert_non_null(strstr(answer, "\r\nContent-Type: application/openmetrics-text; "
                                       "version=1.0.0; charset=utf-8\r\n"));
        const char *wrong = openmetrics_check(body, strlen(body));
        if (wrong != NULL)
            fail_msg("%s", wrong);
        assert_true(openmetrics_value(body, "inferd_connections") == 2);
    }
    static const char head[] = "HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n";
    assert_int_equal(ask(head, strlen(head), false, &body), 200);
    assert_string_equal(body, "");
    expect(200, "GET /metrics HTTP/1.0\r\n\r\n");
    expect(200, "GET /metrics HTTP/1.0\n\n");
    expect(200, "GET /metrics?name=x HTTP/1.1\r\nhOST: [::1]\r\n\r\n");
    expect(200, "GET http://localhost/metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
    expect(200, "GET /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc");
    expect(200, "GET /metrics HTTP/1.0\r\n\r\nGET /metrics HTTP/1.0\r\n\r\n"); /* one each */
}

static void test_http_refusals(void **state)
{
    expect(404, "GET / HTTP/1.0\r\n\r\n");
    expect(404, "GET /metrics/ HTTP/1.0\r\n\r\n");
    expect(404, "GET /metrics/../../etc/passwd HTTP/1.0\r\n\r\n");
    expect(404, "GET /metricsx HTTP/1.0\r\n\r\n");
    expect(404, "GET http://localhost HTTP/1.0\r\n\r\n");
    expect(404, "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n");
    expect(405, "POST /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
    assert_non_null(strstr(answer, "\r\nAllow: GET, HEAD\r\n"));
    expect(405, "get /metrics HTTP/1.1\r\nHost: a\r\n\r\n");
    static const char *const bad[] = {
        "\r\n\r\n",
        "\r\nGET /metrics HTTP/1.0\r\n\r\n",
        "GET /metrics\r\n\r\n",
        "GET  /metrics HTTP/1.0\r\n\r\n",
        "GET /metrics  HTTP/1.0\r\n\r\n",
        "GET /metrics HTTP/1.0 \r\n\r\n",
        " GET /metrics HTTP/1.0\r\n\r\n",
        "GET /metrics HTTP/2.0\r\n\r\n",
        "GET /metrics http/1.0\r\n\r\n",
        "GET /metrics HTTP/1.\r\n\r\n",
        "GET /metrics HTTP/1.10\r\n\r\n",
        "GET /met\trics HTTP/1.0\r\n\r\n",
        "GE(T /metrics HTTP/1.0\r\n\r\n",
        "GET /metrics HTTP/1.1\r\n\r\n", /* no Host */
        "GET /metrics HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        "GET /metrics HTTP/1.0\r\nno colon\r\n\r\n",
        "GET /metrics HTTP/1.0\r\n: x\r\n\r\n",
        "GET /metrics HTTP/1.0\r\na b: x\r\n\r\n",
        "GET /metrics HTTP/1.0\r\na : x\r\n\r\n",
        "GET /metrics HTTP/1.0\r\na: x\r\n folded\r\n\r\n",
        "GET /metrics HTTP/1.0\r\na: x\ry\r\n\r\n",
        "GET /metrics HTTP/1.0\r\na: \x01\r\n\r\n",
        "\x16\x03\x01\x02\n\n", /* how TLS begins */
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        expect(400, bad[i]);
    static const char nul[] = "GET /metrics HTTP/1.0\r\na: \0\r\n\r\n";
    assert_int_equal(ask(nul, sizeof nul - 1, false, NULL), 400);
}

/* A head of exactly 8 KiB is taken, one byte more is not; and a head has 100 fields at most. */
static void test_http_bounds(void **state)
{
    static char head[16384];
    for (int more = 0; more < 2; more++) {
        int n = snprintf(head, sizeof head, "GET /metrics HTTP/1.0\r\na: ");
        memset(head + n, 'x', 8192u - 4 - (size_t)n + (size_t)more);
        memcpy(head + 8192 - 4 + more, "\r\n\r\n", 5);
        assert_int_equal(strlen(head), 8192 + more);
        expect(more ? 400 : 200, head);
    }
    memset(head, 'x', sizeof head - 1);
    expect(400, head);
    for (int fields = 100; fields <= 101; fields++) {
        size_t n = (size_t)snprintf(head, sizeof head, "GET /metrics HTTP/1.0\r\n");
        for (int i = 0; i < fields; i++)
            n += (size_t)snprintf(head + n, sizeof head - n, "a: b\r\n");
        snprintf(head + n, sizeof head - n, "\r\n");
        expect(fields == 100 ? 200 : 400, head);
    }
}

static void test_http_cut_and_slow(void **state)
{
    struct served s = serve(); /* who leaves without a word gets none */
    shutdown(s.fd, SHUT_WR);
    assert_int_equal(read_answer(s.fd, answer, sizeof answer), 0);
    finish(s, 0);

    s = serve(); /* a head that is cut */
    assert_int_equal(send(s.fd, "GET /metrics", 12, 0), 12);
    shutdown(s.fd, SHUT_WR);
    read_answer(s.fd, answer, sizeof answer);
    assert_int_equal(strncmp(answer, "HTTP/1.1 400 ", 13), 0);
    finish(s, 0);

    s = serve(); /* who does not read the answer, and leaves */
    struct linger reset = {1, 0};
    setsockopt(s.fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    assert_int_equal(send(s.fd, "GET /metrics HTTP/1.0\r\n\r\n", 25, 0), 25);
    close(s.fd);
    int ended; /* it may have been through already */
    assert_int_equal(waitpid(s.pid, &ended, 0), s.pid);
    assert_true(WIFEXITED(ended) && WEXITSTATUS(ended) <= 1);

    s = serve(); /* a head that never ends, byte by byte: 5 s in all, not from the last byte */
    uint64_t from = test_clock_us();
    struct pollfd p = {s.fd, POLLIN, 0};
    while (poll(&p, 1, 250) == 0 && test_clock_us() - from < 30000000)
        assert_int_equal(send(s.fd, "G", 1, MSG_NOSIGNAL), 1);
    assert_true(test_clock_us() - from >= 4900000);
    read_answer(s.fd, answer, sizeof answer);
    assert_int_equal(strncmp(answer, "HTTP/1.1 408 ", 13), 0);
    finish(s, 0);
}

static void test_http_without_daemon(void **state)
{
    daemon_kill(&d);
    struct served s = serve();
    assert_int_equal(send(s.fd, "GET /metrics HTTP/1.0\r\n\r\n", 25, 0), 25);
    read_answer(s.fd, answer, sizeof answer);
    assert_int_equal(strncmp(answer, "HTTP/1.1 503 ", 13), 0);
    assert_null(strstr(answer, d.folder)); /* no path goes out */
    finish(s, 1);
    infer_close(conn);
    assert_int_equal(setup(NULL), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_answers),
        cmocka_unit_test(test_several_answers),
        cmocka_unit_test(test_outcomes),
        cmocka_unit_test(test_takes_no_input),
        cmocka_unit_test(test_many_readers),
        cmocka_unit_test(test_privacy),
        cmocka_unit_test(test_http_get),
        cmocka_unit_test(test_http_refusals),
        cmocka_unit_test(test_http_bounds),
        cmocka_unit_test(test_http_cut_and_slow),
        cmocka_unit_test(test_http_without_daemon),
    };
    signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests(tests, setup, teardown);
}
