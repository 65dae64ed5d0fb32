/* test_several.c: several answers from one prompt, windows, and what happens when pages run out:
 * every answer is the one that it would be alone. */
#include "integration/many.h"

enum { PAGE = 16, ANSWERS_MAX = 8, LOAD = 24 };

static struct daemon d;
static struct infer_conn *conn;
static uint64_t fresh = 1; /* seed of the next prompt that nobody asked before */

static int start(const char *const *arguments)
{
    daemon_start(&d, arguments);
    conn = many_connect(&d);
    return conn ? 0 : -1;
}

static int setup_null(void **state)
{
    return start((const char *[]){"--model", "unix=" DAEMON_MODEL, "--backend", "null",
                                  "--backend-options", "check_rows=1", NULL});
}

static int setup_cpu(void **state)
{
    return start((const char *[]){"--model", "unix=" DAEMON_MODEL, "--backend", "cpu", NULL});
}

/* 64 pages in all; prefill is dear, so that states are saved: all of them in memory. */
static int setup_scarce(void **state)
{
    return start((const char *[]){"--model", "unix=" DAEMON_MODEL, "--backend", "null",
                                  "--backend-options",
                                  "check_rows=1,page_bytes=65536,row_delay_us=20", "--state-memory",
                                  "4M", "--ctx", "512", "--swap-memory", "16M", NULL});
}

/* The same with next to no memory for states, and a file. */
static int setup_file(void **state)
{
    return start((const char *[]){
        "--model", "unix=" DAEMON_MODEL, "--backend", "null", "--backend-options",
        "check_rows=1,page_bytes=65536,row_delay_us=20", "--state-memory", "4M", "--ctx", "512",
        "--swap-memory", "64K", "--swap-file", "64M", "--state-directory", "/tmp", NULL});
}

/* The same with room for no state at all: everything is computed again. */
static int setup_again(void **state)
{
    return start((const char *[]){"--model", "unix=" DAEMON_MODEL, "--backend", "null",
                                  "--backend-options", "check_rows=1,page_bytes=65536,delay_us=200",
                                  "--state-memory", "4M", "--ctx", "512", "--swap-memory", "64K",
                                  NULL});
}

static int teardown(void **state)
{
    infer_close(conn);
    daemon_stop(&d);
    daemon_done(&d);
    return 0;
}

static void assert_same(const struct many_answer *a, const struct many_answer *b)
{
    assert_int_equal(a->n, b->n);
    size_t n = a->n < MANY_TOKENS_MAX ? a->n : MANY_TOKENS_MAX;
    assert_memory_equal(a->ids, b->ids, n * sizeof *a->ids);
}

/* ---- several answers ------------------------------------------------------------------------- */

struct several {
    struct many_answer answers[ANSWERS_MAX];
    bool complete[ANSWERS_MAX];
    uint32_t n_complete, n_generated;
    struct infer_event done;
    char detail[INFER_DETAIL_MAX];
};

static void gather_several(uint32_t id, uint32_t n, struct several *ret)
{
    struct infer_event e;
    memset(ret, 0, sizeof *ret);
    for (;;) {
        int code = infer_next(conn, id, 30000 * program_slowness(), &e);
        if (code != 1)
            fail_msg("infer_next: %d (%s)", code, infer_strerror(code));
        if (e.kind == INFER_EVENT_DONE) {
            ret->done = e;
            snprintf(ret->detail, sizeof ret->detail, "%.*s", (int)e.text_bytes,
                     e.text ? e.text : "");
            return;
        }
        if (e.kind == INFER_EVENT_QUEUED)
            continue;
        assert_true(e.answer < n);
        struct many_answer *a = &ret->answers[e.answer];
        assert_false(ret->complete[e.answer]);
        if (e.kind == INFER_EVENT_ANSWER) {
            assert_int_equal(e.n_generated, a->n);
            a->error = e.error;
            a->finish = e.finish;
            a->n_prompt = e.n_prompt;
            a->n_cached = e.n_prompt_cached;
            ret->complete[e.answer] = true;
            ret->n_complete++;
            ret->n_generated += e.n_generated;
        } else {
            assert_int_equal(e.kind, INFER_EVENT_TOKEN);
            many_take(a, &e);
            assert_false(a->gap);
        }
    }
}

/* n answers are those of n requests with the seeds that client.h promises. */
static void answers_equal_requests(void **state)
{
    static const uint32_t counts[] = {2, 3, ANSWERS_MAX};
    static struct several all;
    static struct many_answer alone;
    struct infer_request r;
    int32_t ids[100];
    for (size_t k = 0; k < sizeof counts / sizeof counts[0]; k++) {
        uint32_t n = counts[k], id;
        many_ids(ids, 100, fresh++);
        many_request(&r, ids, 100, 20);
        r.sampling.temperature = 1.0f;
        r.sampling.seed = 1000 + k;
        r.n_answers = n;
        assert_int_equal(infer_submit(conn, &r, &id), 0);
        gather_several(id, n, &all);
        assert_int_equal(all.done.error, 0);
        assert_int_equal(all.n_complete, n);
        assert_int_equal(all.done.n_generated, 20 * n);
        assert_int_equal(all.done.n_prompt, 100);
        assert_int_equal(all.done.finish, INFER_FINISH_LENGTH);
        for (uint32_t i = 0; i < n; i++) {
            assert_int_equal(all.answers[i].error, 0);
            /* The prompt ran once: the others run its last row alone. */
            assert_int_equal(all.answers[i].n_cached, i == 0 ? 0 : 99);
            r.n_answers = 1;
            r.sampling.seed = infer_answer_seed(1000 + k, i);
            many_get(conn, &r, &alone);
            assert_int_equal(alone.error, 0);
            assert_same(&alone, &all.answers[i]);
        }
        assert_true(memcmp(all.answers[0].ids, all.answers[1].ids, 20 * sizeof(int32_t)) != 0);
    }
    many_assert_pages_back(conn);
}

/* Without a seed one is drawn, for all of them. */
static void answers_without_a_seed(void **state)
{
    static struct several all;
    struct infer_request r;
    int32_t ids[20];
    uint32_t id;
    many_ids(ids, 20, fresh++);
    many_request(&r, ids, 20, 12);
    r.sampling.temperature = 1.0f;
    r.sampling.seed = 0;
    r.n_answers = 3;
    assert_int_equal(infer_submit(conn, &r, &id), 0);
    gather_several(id, 3, &all);
    assert_int_equal(all.n_complete, 3);
    assert_true(memcmp(all.answers[0].ids, all.answers[1].ids, 12 * sizeof(int32_t)) != 0);
    assert_true(memcmp(all.answers[1].ids, all.answers[2].ids, 12 * sizeof(int32_t)) != 0);
}

/* The prompt's pages are there once. */
static void answers_share_pages(void **state)
{
    static struct several all;
    static struct infer_page page;
    struct infer_request r;
    int32_t ids[400];
    uint32_t id, most = 0, n_seen = 0;
    struct infer_event e;
    many_ids(ids, 400, fresh++);
    many_request(&r, ids, 400, 200);
    r.n_answers = ANSWERS_MAX;
    r.sampling.temperature = 1.0f;
    assert_int_equal(infer_submit(conn, &r, &id), 0);
    memset(&all, 0, sizeof all);
    do {
        assert_int_equal(infer_next(conn, id, 30000 * program_slowness(), &e), 1);
        assert_int_equal(infer_read_page(conn, &page), 0);
        n_seen = page.n_sequences > n_seen ? page.n_sequences : n_seen;
        most = page.status.n_pages_used > most ? page.status.n_pages_used : most;
    } while (e.kind != INFER_EVENT_DONE);
    assert_int_equal(e.error, 0);
    /* 25 pages of prompt, and 13 for each answer; apart they would take 8 * 38. */
    assert_true(most <= 25 + ANSWERS_MAX * 14);
    many_assert_pages_back(conn);
}

static void cancel_ends_all_answers(void **state)
{
    struct infer_request r;
    int32_t ids[100];
    uint32_t id;
    for (int early = 0; early < 2; early++) {
        many_ids(ids, 100, fresh++);
        many_request(&r, ids, 100, 0);
        r.n_answers = 4;
        assert_int_equal(infer_submit(conn, &r, &id), 0);
        if (!early) {
            struct many_answer first;
            many_wait_token(conn, id, &first);
        }
        assert_int_equal(infer_cancel(conn, id), 0);
        struct infer_event e;
        uint32_t n_answers = 0;
        do {
            assert_int_equal(infer_next(conn, id, 30000 * program_slowness(), &e), 1);
            n_answers += e.kind == INFER_EVENT_ANSWER;
        } while (e.kind != INFER_EVENT_DONE);
        assert_int_equal(e.finish, INFER_FINISH_CANCEL);
        assert_true(n_answers == 4 || (early && n_answers == 0));
    }
    many_assert_pages_back(conn);
}

/* A connection's 256 requests are answers, too. */
static void too_many_answers(void **state)
{
    struct infer_request r;
    int32_t ids[20];
    uint32_t id[6];
    many_ids(ids, 20, fresh++);
    many_request(&r, ids, 20, 1);
    r.n_answers = INFER_ANSWERS_MAX;
    r.sampling.max_tokens = 400;
    for (int i = 0; i < 6; i++)
        assert_int_equal(infer_submit(conn, &r, &id[i]), 0);
    int n_refused = 0;
    for (int i = 5; i >= 0; i--) {
        struct infer_event e;
        infer_cancel(conn, id[i]);
        do {
            assert_int_equal(infer_next(conn, id[i], 30000 * program_slowness(), &e), 1);
        } while (e.kind != INFER_EVENT_DONE);
        n_refused += e.error == INFER_E_QUEUE_FULL;
    }
    assert_true(n_refused >= 1);
    many_assert_pages_back(conn);
}

/* ---- windows --------------------------------------------------------------------------------- */

/* 2,000 tokens in a window of 256: constant pages, the same tokens each time. */
static void an_answer_longer_than_the_context(void **state)
{
    struct infer_request r;
    struct infer_event e;
    int32_t ids[100];
    uint64_t hash[2] = {0, 0};
    many_ids(ids, 100, fresh++);
    for (int round = 0; round < 2; round++) {
        static struct infer_page page;
        uint32_t id, n = 0, most = 0;
        many_request(&r, ids, 100, 2000);
        r.sampling.temperature = 1.0f;
        r.window = 256;
        assert_int_equal(infer_submit(conn, &r, &id), 0);
        do {
            assert_int_equal(infer_next(conn, id, 30000 * program_slowness(), &e), 1);
            if (e.kind == INFER_EVENT_TOKEN && e.has_token) {
                assert_int_equal(e.index, n);
                hash[round] = many_mix(hash[round] + (uint64_t)e.token + n++);
            }
            if (n % 50 == 0)
                assert_int_equal(infer_read_page(conn, &page), 0);
            most = page.status.n_pages_used > most ? page.status.n_pages_used : most;
        } while (e.kind != INFER_EVENT_DONE);
        assert_int_equal(e.error, 0);
        assert_int_equal(e.finish, INFER_FINISH_LENGTH);
        assert_int_equal(n, 2000);
        assert_true(most <= 256 / PAGE + 1);
    }
    assert_true(hash[0] == hash[1]);
    many_assert_pages_back(conn);
}

/* ---- pressure -------------------------------------------------------------------------------- */

/* Three times what there is room for: each answer is the one that it is alone. */
static void every_answer_is_its_own(void **state)
{
    static struct many_answer alone[LOAD], loaded[LOAD];
    static int32_t ids[LOAD][120];
    struct infer_request r[LOAD];
    struct infer_status before, after;
    uint32_t id[LOAD];
    for (int i = 0; i < LOAD; i++) {
        many_ids(ids[i], 120, fresh++);
        many_request(&r[i], ids[i], (size_t)(20 + i * 37 % 100), 140 + (uint32_t)i * 53 % 60);
        r[i].sampling.temperature = 1.0f;
        r[i].sampling.seed = (uint64_t)i + 1;
        if (i % 6 == 5)
            r[i].window = 96;
        many_get(conn, &r[i], &alone[i]);
        assert_int_equal(alone[i].error, 0);
    }
    assert_int_equal(infer_status(conn, &before), 0);
    for (int i = 0; i < LOAD; i++)
        assert_int_equal(infer_submit(conn, &r[i], &id[i]), 0);
    for (int i = 0; i < LOAD; i++)
        many_gather(conn, id[i], &loaded[i]);
    assert_int_equal(infer_status(conn, &after), 0);
    for (int i = 0; i < LOAD; i++) {
        if (i % 6 == 5 && loaded[i].error == INFER_E_NO_MEMORY)
            continue; /* a slid window that could not be saved */
        if (loaded[i].error != 0)
            fail_msg("answer %d: %s: %s", i, infer_error_name(loaded[i].error), loaded[i].detail);
        assert_same(&alone[i], &loaded[i]);
    }
    print_message("%u pages, %llu preemptions\n", after.n_pages,
                  (unsigned long long)(after.n_preemptions - before.n_preemptions));
    assert_true(after.n_preemptions > before.n_preemptions);
    many_assert_pages_back(conn);
}

int main(void)
{
    const struct CMUnitTest on_null[] = {
        cmocka_unit_test(answers_equal_requests),
        cmocka_unit_test(answers_without_a_seed),
        cmocka_unit_test(answers_share_pages),
        cmocka_unit_test(cancel_ends_all_answers),
        cmocka_unit_test(too_many_answers),
        cmocka_unit_test(an_answer_longer_than_the_context),
    };
    const struct CMUnitTest on_cpu[] = {
        cmocka_unit_test(answers_equal_requests),
        cmocka_unit_test(an_answer_longer_than_the_context),
    };
    const struct CMUnitTest scarce[] = {
        cmocka_unit_test(every_answer_is_its_own),
    };
    int failed = cmocka_run_group_tests_name("null", on_null, setup_null, teardown);
    failed += cmocka_run_group_tests_name("cpu", on_cpu, setup_cpu, teardown);
    failed += cmocka_run_group_tests_name("saved in memory", scarce, setup_scarce, teardown);
    failed += cmocka_run_group_tests_name("saved in a file", scarce, setup_file, teardown);
    return failed + cmocka_run_group_tests_name("computed again", scarce, setup_again, teardown);
}
