/* test_fairness.c: what each of several users gets, and what a limit says that is reached.
 *
 * Shares are counted, not timed: while clients of two users keep the daemon busy, the tokens that
 * each user's clients were given over the next so many of both. */
#include "integration/many.h"

#include <sys/mman.h>

enum { CLIENTS_MAX = 8, SETTLE_TOKENS = 1500, COUNTED_TOKENS = 5000 };

static struct daemon d;
static struct infer_conn *conn;

/* ---- shares ---------------------------------------------------------------------------------- */

struct crowd {
    uint32_t n_tokens[2]; /* given to each user; atomic */
};

static struct crowd *crowd;

/* A client: one request after the other, each with a prompt of its own, until it is killed. */
static int keep_asking(void *arg)
{
    uint32_t who = *(uint32_t *)arg;
    struct infer_request r;
    struct infer_event e;
    int32_t ids[24];
    uint32_t id;
    struct infer_conn *c = many_connect(&d);
    if (!c)
        return 1;
    for (uint64_t seed = (uint64_t)getpid() << 20;; seed++) {
        many_ids(ids, 24, seed);
        many_request(&r, ids, 24, 50 + (uint32_t)(many_mix(seed) % 50));
        if (infer_submit(c, &r, &id) != 0)
            return 2;
        do {
            if (infer_next(c, id, -1, &e) != 1 || (e.kind == INFER_EVENT_DONE && e.error != 0))
                return 3;
            if (e.kind == INFER_EVENT_TOKEN && e.has_token)
                __atomic_add_fetch(&crowd->n_tokens[who], 1, __ATOMIC_RELAXED);
        } while (e.kind != INFER_EVENT_DONE);
    }
}

static uint32_t given(uint32_t who)
{
    return __atomic_load_n(&crowd->n_tokens[who], __ATOMIC_RELAXED);
}

/* Waits until both together were given so many more. */
static void wait_given(uint32_t n)
{
    uint32_t from = given(0) + given(1);
    uint64_t end = test_clock_us() + 60000000u * (unsigned)program_slowness();
    while (given(0) + given(1) - from < n) {
        if (test_clock_us() > end)
            fail_msg("%u tokens in a minute", given(0) + given(1) - from);
        usleep(1000);
    }
}

static void start_daemon(const char *parallel, const char *const *policies)
{
    const char *argv[16] = {"--model",           "unix=" DAEMON_MODEL, "--backend",  "null",
                            "--backend-options", "delay_us=300",       "--parallel", parallel};
    for (size_t n = 8; *policies; n += 2) {
        argv[n] = "--policy";
        argv[n + 1] = *policies++;
    }
    daemon_start(&d, argv);
    many_let_in(&d);
}

/* Percent of the tokens that Alice gets with so many clients beside Bob with so many. */
static double share(uint32_t n_alice, uint32_t n_bob, const char *parallel,
                    const char *const *policies)
{
    pid_t pids[2 * CLIENTS_MAX];
    uint32_t who[2] = {0, 1}, n = n_alice + n_bob;
    crowd = mmap(NULL, sizeof *crowd, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(crowd != MAP_FAILED && n <= 2 * CLIENTS_MAX);
    start_daemon(parallel, policies);
    for (uint32_t i = 0; i < n; i++)
        pids[i] = many_start(i < n_alice ? MANY_ALICE : MANY_BOB, keep_asking, &who[i >= n_alice]);
    while (given(0) == 0 || given(1) == 0)
        wait_given(1);
    wait_given(SETTLE_TOKENS);
    uint32_t alice = given(0), bob = given(1);
    wait_given(COUNTED_TOKENS);
    alice = given(0) - alice;
    bob = given(1) - bob;
    for (uint32_t i = 0; i < n; i++) {
        assert_int_equal(waitpid(pids[i], NULL, WNOHANG), 0); /* it still asks */
        many_kill(pids[i]);
    }
    daemon_stop(&d);
    daemon_done(&d);
    munmap(crowd, sizeof *crowd);
    print_message("%u clients beside %u, %s at once: %.1f %%\n", n_alice, n_bob, parallel,
                  100.0 * alice / (alice + bob));
    return 100.0 * alice / (alice + bob);
}

static void assert_between(double value, double low, double high)
{
    if (value < low || value > high)
        fail_msg("a share of %.1f %%, %.0f to %.0f is right", value, low, high);
}

static const char *const nothing[] = {NULL};

static void test_one_client_beside_seven(void **state)
{
    MANY_NEEDS_ROOT();
    assert_between(share(1, 7, "16", nothing), 40, 60);
}

/* Seven want the four slots: the one has his, and his half. */
static void test_one_client_beside_seven_who_wait(void **state)
{
    MANY_NEEDS_ROOT();
    assert_between(share(1, 7, "4", nothing), 40, 60);
}

static void test_equal_crowds(void **state)
{
    MANY_NEEDS_ROOT();
    assert_between(share(4, 4, "16", nothing), 42, 58);
}

static void test_weights(void **state)
{
    static const char *const policies[] = {"65533:weight=100", "65532:weight=300", NULL};
    MANY_NEEDS_ROOT();
    assert_between(share(4, 4, "16", policies), 18, 33);
}

/* ---- limits ---------------------------------------------------------------------------------- */

static void start_limited(const char *parallel, const char *options, const char *policy)
{
    const char *argv[] = {"--model", "unix=" DAEMON_MODEL, "--backend", "null",     "--parallel",
                          parallel,  "--backend-options",  options,     "--policy", policy,
                          NULL};
    daemon_start(&d, argv);
    conn = many_connect(&d);
    assert_non_null(conn);
}

static int teardown(void **state)
{
    infer_close(conn);
    conn = NULL;
    if (d.pid > 0)
        daemon_stop(&d);
    daemon_done(&d);
    return 0;
}

static uint32_t submit(uint64_t seed, size_t n_prompt, uint32_t max_tokens)
{
    struct infer_request r;
    int32_t ids[256];
    uint32_t id;
    many_ids(ids, n_prompt, seed);
    many_request(&r, ids, n_prompt, max_tokens);
    assert_int_equal(infer_submit(conn, &r, &id), 0);
    return id;
}

static void assert_refused(uint32_t id, int error, const char *limit)
{
    static struct many_answer a;
    many_gather(conn, id, &a);
    assert_int_equal(a.error, error);
    assert_int_equal(a.finish, INFER_FINISH_ERROR);
    assert_int_equal(a.n, 0);
    if (!strstr(a.detail, limit))
        fail_msg("'%s' does not name the limit of %s", a.detail, limit);
}

static void assert_answered(uint32_t id, uint32_t n_tokens)
{
    static struct many_answer a;
    many_gather(conn, id, &a);
    many_assert_good(&a, n_tokens);
}

/* The bucket refills with one token a second: what is left of 60 does not pay for the second. */
static void test_tokens_per_minute(void **state)
{
    start_limited("4", "delay_us=0", "default:tokens-per-minute=60");
    assert_answered(submit(1, 30, 28), 28);
    assert_refused(submit(2, 30, 1), INFER_E_QUOTA, "tokens a minute");
    assert_refused(submit(3, 30, 1), INFER_E_QUOTA, "tokens a minute");
    many_assert_pages_back(conn);
}

static void test_waiting_requests(void **state)
{
    static struct many_answer a;
    start_limited("1", "delay_us=20000", "default:waiting=2");
    uint32_t running = submit(1, 8, 0), waiting[2];
    many_wait_token(conn, running, &a);
    waiting[0] = submit(2, 8, 2);
    waiting[1] = submit(3, 8, 2);
    assert_refused(submit(4, 8, 2), INFER_E_QUOTA, "waiting requests");
    assert_int_equal(infer_cancel(conn, running), 0);
    many_gather(conn, running, &a);
    assert_answered(waiting[0], 2);
    assert_answered(waiting[1], 2);
    assert_answered(submit(5, 8, 2), 2); /* there is room again */
    many_assert_pages_back(conn);
}

/* One at a time of each user: the others wait, though slots are free. */
static void test_running_requests(void **state)
{
    enum { N = 5 };
    struct infer_event e;
    start_limited("8", "delay_us=500", "default:running=1");
    uint32_t id[N], at = 0;
    for (uint32_t i = 0; i < N; i++)
        id[i] = submit(1 + i, 8, 20);
    while (at < N) {
        assert_int_equal(infer_next(conn, 0, 30000 * program_slowness(), &e), 1);
        if (e.kind == INFER_EVENT_QUEUED)
            continue;
        assert_int_equal(e.request, id[at]);
        if (e.kind == INFER_EVENT_DONE) {
            assert_int_equal(e.error, 0);
            at++;
        }
    }
    many_assert_pages_back(conn);
}

/* Pages at once: what fits one after the other waits, what never fits is refused. */
static void test_pages(void **state)
{
    struct infer_event e;
    start_limited("8", "delay_us=500", "default:pages=4");
    uint32_t first = submit(1, 20, 40), second = submit(2, 20, 40), huge = submit(3, 60, 10);
    bool first_done = false, second_done = false, huge_done = false;
    while (!first_done || !second_done || !huge_done) {
        assert_int_equal(infer_next(conn, 0, 30000 * program_slowness(), &e), 1);
        if (e.kind == INFER_EVENT_TOKEN && e.request == second)
            assert_true(first_done);
        if (e.kind != INFER_EVENT_DONE)
            continue;
        assert_int_equal(e.error, e.request == huge ? INFER_E_NO_MEMORY : 0);
        first_done |= e.request == first;
        second_done |= e.request == second;
        huge_done |= e.request == huge;
    }
    many_assert_pages_back(conn);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_client_beside_seven),
        cmocka_unit_test(test_one_client_beside_seven_who_wait),
        cmocka_unit_test(test_equal_crowds),
        cmocka_unit_test(test_weights),
        cmocka_unit_test_teardown(test_tokens_per_minute, teardown),
        cmocka_unit_test_teardown(test_waiting_requests, teardown),
        cmocka_unit_test_teardown(test_running_requests, teardown),
        cmocka_unit_test_teardown(test_pages, teardown),
    };
    return cmocka_run_group_tests_name("fairness", tests, NULL, NULL);
}
