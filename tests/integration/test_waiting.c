/* test_waiting.c: who waits for a limit instead of being refused, whose pages go to others while he
 * does not read, and who shares what was computed. */
#include "integration/many.h"
#include "support/answer.h"

#include <sys/mman.h>

static struct daemon d;
static struct infer_conn *conn;
static uint64_t fresh = 1; /* seed of the next prompt that nobody asked before */

static int start(const char *const *arguments)
{
    daemon_start(&d, arguments);
    conn = many_connect(&d);
    return conn ? 0 : -1;
}

/* 6,000 tokens a minute are 100 a second. */
static int setup_limits(void **state)
{
    return start((const char *[]){"--model", "unix=" DAEMON_MODEL, "--backend", "null",
                                  "--backend-options", "delay_us=1000", "--policy",
                                  "default:waiting=2,running=1,tokens-per-minute=6000", NULL});
}

/* When a client that does not read ends; his pages are anybody's after a quarter of that. Long
 * enough for several clients to get there before the first one ends. */
static int slow_reader_s(void)
{
    return program_slowness() == 1 ? 4 : 16;
}

/* 64 pages; steps so slow that all requests of a client have begun before its ring is full. */
static int setup_readers(void **state)
{
    char preempt[16], timeout[16];
    snprintf(preempt, sizeof preempt, "%ds", slow_reader_s() / 4);
    snprintf(timeout, sizeof timeout, "%ds", slow_reader_s());
    return start((const char *[]){
        "--model", "unix=" DAEMON_MODEL, "--backend", "null", "--backend-options",
        "check_rows=1,page_bytes=65536,delay_us=3000", "--state-memory", "4M", "--ctx", "512",
        "--slow-reader-preempt", preempt, "--slow-reader-timeout", timeout, NULL});
}

static int setup_domains(void **state)
{
    return start((const char *[]){"--model", "unix=" DAEMON_MODEL, "--backend", "null", "--policy",
                                  "65533:domain=team", "--policy", "65532:domain=team", NULL});
}

static int teardown(void **state)
{
    infer_close(conn);
    daemon_stop(&d);
    daemon_done(&d);
    return 0;
}

/* ---- limits ---------------------------------------------------------------------------------- */

static void over_a_limit_one_may_wait(void **state)
{
    enum { N = 8 };
    static struct many_answer a[N];
    struct infer_request r;
    int32_t ids[10];
    uint32_t id[N], n_refused = 0;
    many_ids(ids, 10, fresh++);
    for (int wait = 0; wait < 2; wait++) {
        many_request(&r, ids, 10, 20);
        r.wait = wait;
        for (int i = 0; i < N; i++)
            assert_int_equal(infer_submit(conn, &r, &id[i]), 0);
        for (int i = 0; i < N; i++) {
            many_gather(conn, id[i], &a[i]);
            if (wait && a[i].error != 0)
                fail_msg("%s: %s", infer_error_name(a[i].error), a[i].detail);
            assert_true(a[i].error == 0 || a[i].error == INFER_E_QUOTA);
            n_refused += a[i].error != 0;
            assert_false(a[i].token_before_queued || a[i].queued_after_token);
        }
        assert_true(n_refused > 0);
    }
    many_assert_pages_back(conn);
}

/* Answers count, too: three of them pass a limit of two who wait, whether they would wait or not.
 */
static void answers_count(void **state)
{
    static struct many_answer a;
    struct infer_request r;
    int32_t ids[10];
    many_ids(ids, 10, fresh++);
    for (int wait = 0; wait < 2; wait++) {
        many_request(&r, ids, 10, 2);
        r.n_answers = 3;
        r.wait = wait;
        many_get(conn, &r, &a);
        assert_int_equal(a.error, INFER_E_QUOTA);
        assert_int_equal(a.n, 0);
    }
    r.n_answers = 2;
    many_get(conn, &r, &a);
    assert_int_equal(a.error, 0);
}

static void one_that_waits_has_a_deadline(void **state)
{
    static struct many_answer a;
    struct infer_request r;
    int32_t ids[10];
    uint32_t busy[3];
    many_ids(ids, 10, fresh++);
    many_request(&r, ids, 10, 0);
    for (int i = 0; i < 3; i++) {
        r.wait = 1;
        assert_int_equal(infer_submit(conn, &r, &busy[i]), 0);
    }
    r.deadline_ms = 150;
    many_get(conn, &r, &a);
    assert_int_equal(a.error, INFER_E_DEADLINE);
    for (int i = 0; i < 3; i++)
        infer_cancel(conn, busy[i]);
    for (int i = 0; i < 3; i++) {
        many_gather(conn, busy[i], &a);
        assert_int_equal(a.finish, INFER_FINISH_CANCEL);
    }
    many_assert_pages_back(conn);
}

/* The bucket is empty: the estimate says when it will hold the prompt, and then it runs. */
static void tokens_a_minute(void **state)
{
    static struct many_answer a;
    static int32_t ids[1900];
    struct infer_request r;
    struct infer_event e;
    uint32_t id;
    do {
        many_ids(ids, 1900, fresh++);
        many_request(&r, ids, 1900, 1);
        many_get(conn, &r, &a);
    } while (a.error == 0);
    assert_int_equal(a.error, INFER_E_QUOTA);
    many_request(&r, ids, 1900, 0);
    many_get(conn, &r, &a);
    assert_int_equal(a.error, INFER_E_QUOTA);
    /* At most 1,900 tokens are missing now; take the smallest that are not there. */
    uint32_t n = 100;
    for (; n < 1900; n += 100) {
        many_request(&r, ids, n, 1);
        r.wait = 1;
        assert_int_equal(infer_submit(conn, &r, &id), 0);
        assert_int_equal(infer_next(conn, id, 30000 * program_slowness(), &e), 1);
        assert_int_equal(e.kind, INFER_EVENT_QUEUED);
        if (e.start_us > 0)
            break;
        many_gather(conn, id, &a);
        assert_int_equal(a.error, 0);
    }
    assert_true(n < 1900);
    assert_true(e.start_us <= 20000000u);
    do {
        assert_int_equal(infer_next(conn, id, 30000 * program_slowness(), &e), 1);
    } while (e.kind != INFER_EVENT_DONE);
    assert_int_equal(e.error, 0);
}

/* ---- slow readers ---------------------------------------------------------------------------- */

static void one_who_does_not_read_gives_his_pages(void **state)
{
    enum { N = 2 };
    static struct many_answer alone, slow, other;
    static int32_t ids[100];
    struct infer_conn *lazy = answer_connect_ring(&d, INFER_TOKEN_RING_MIN);
    struct infer_request r;
    struct infer_status s;
    uint32_t id[N];
    many_ids(ids, 100, fresh++);
    many_request(&r, ids, 100, 400);
    r.sampling.temperature = 1.0f;
    r.sampling.logprobs = 20; /* large events: the ring is full early */
    many_get(conn, &r, &alone);
    assert_int_equal(alone.error, 0);
    for (int i = 0; i < N; i++)
        assert_int_equal(infer_submit(lazy, &r, &id[i]), 0);
    /* Others need nearly all pages; they come when the second is over. */
    many_ids(ids, 100, fresh++);
    many_request(&r, ids, 100, 0);
    many_get(conn, &r, &other);
    assert_int_equal(other.error, 0);
    assert_int_equal(other.finish, INFER_FINISH_LENGTH);
    for (int i = 0; i < N; i++) {
        many_gather(lazy, id[i], &slow);
        if (slow.error != 0)
            fail_msg("%s: %s", infer_error_name(slow.error), slow.detail);
        assert_int_equal(slow.n, alone.n);
        assert_memory_equal(slow.ids, alone.ids, alone.n * sizeof *alone.ids);
    }
    assert_int_equal(infer_status(conn, &s), 0);
    infer_close(lazy);
    many_assert_pages_back(conn);
}

/* Many of them: at least one has to give. */
static void who_never_reads_is_preempted_then_ended(void **state)
{
    enum { N = 4 };
    static struct many_answer a;
    static int32_t ids[400];
    struct infer_conn *lazy = answer_connect_ring(&d, INFER_TOKEN_RING_MIN);
    struct infer_request r;
    struct infer_status before, after;
    uint32_t id[N], n_slow = 0;
    assert_int_equal(infer_status(conn, &before), 0);
    for (int i = 0; i < N; i++) {
        many_ids(ids, 200, fresh++);
        many_request(&r, ids, 200, 300);
        r.sampling.logprobs = 20;
        assert_int_equal(infer_submit(lazy, &r, &id[i]), 0);
    }
    uint64_t end = test_clock_us() + 10000000u * (unsigned)program_slowness();
    do {
        usleep(20000);
        assert_int_equal(infer_status(conn, &after), 0);
    } while ((after.n_parked < 2 || after.n_pages_used < 34) && test_clock_us() < end);
    assert_true(after.n_parked >= 2 && after.n_pages_used >= 34);
    /* This one needs 32 pages, more than they leave. */
    many_ids(ids, 400, fresh++);
    many_request(&r, ids, 400, 100);
    many_get(conn, &r, &a);
    assert_int_equal(a.error, 0);
    assert_int_equal(infer_status(conn, &after), 0);
    assert_true(after.n_preemptions > before.n_preemptions);
    usleep((unsigned)slow_reader_s() * 1000000u + 500000u);
    char seconds[32];
    snprintf(seconds, sizeof seconds, "%d seconds", slow_reader_s());
    for (int i = 0; i < N; i++) {
        many_gather(lazy, id[i], &a);
        n_slow += a.error == INFER_E_SLOW_READER;
        if (a.error == INFER_E_SLOW_READER)
            assert_non_null(strstr(a.detail, seconds));
        else
            assert_int_equal(a.error, 0);
    }
    assert_true(n_slow > 0);
    infer_close(lazy);
    many_assert_pages_back(conn);
}

/* ---- shared domains -------------------------------------------------------------------------- */

static int ask_once(void *arg)
{
    struct many_answer *a = arg;
    int32_t ids[100];
    struct infer_request r;
    struct infer_conn *c = many_connect(&d);
    if (!c)
        return 1;
    many_ids(ids, 100, 4711);
    many_request(&r, ids, 100, 4);
    many_get(c, &r, a);
    infer_close(c);
    return 0;
}

static void a_shared_domain_finds_what_one_computed(void **state)
{
    MANY_NEEDS_ROOT();
    struct many_answer *a =
        mmap(NULL, sizeof *a, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(a != MAP_FAILED);
    many_let_in(&d);
    many_join(many_start(MANY_ALICE, ask_once, a));
    assert_int_equal(a->n_cached, 0);
    many_join(many_start(MANY_BOB, ask_once, a));
    assert_int_equal(a->n_cached, 96);
    many_join(many_start(getuid(), ask_once, a)); /* no member */
    assert_int_equal(a->n_cached, 0);
    munmap(a, sizeof *a);
}

int main(void)
{
    const struct CMUnitTest limits[] = {
        cmocka_unit_test(over_a_limit_one_may_wait),
        cmocka_unit_test(answers_count),
        cmocka_unit_test(one_that_waits_has_a_deadline),
        cmocka_unit_test(tokens_a_minute),
    };
    const struct CMUnitTest readers[] = {
        cmocka_unit_test(one_who_does_not_read_gives_his_pages),
        cmocka_unit_test(who_never_reads_is_preempted_then_ended),
    };
    const struct CMUnitTest domains[] = {
        cmocka_unit_test(a_shared_domain_finds_what_one_computed),
    };
    int failed = cmocka_run_group_tests_name("limits", limits, setup_limits, teardown);
    failed += cmocka_run_group_tests_name("readers", readers, setup_readers, teardown);
    return failed + cmocka_run_group_tests_name("domains", domains, setup_domains, teardown);
}
