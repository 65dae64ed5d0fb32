/* test_prefix.c: a prompt's beginning that was computed before is not computed again, the answer is
 * the same token by token, and nobody finds what another user computed. */
#include "integration/many.h"

#include <sys/mman.h>

enum { PAGE = 16, PROMPT_MAX = 512 };

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
    return start((const char *[]){"--model", "unix=" DAEMON_MODEL, "--backend", "null", NULL});
}

static int setup_cpu(void **state)
{
    return start((const char *[]){"--model", "unix=" DAEMON_MODEL, "--backend", "cpu", NULL});
}

/* 64 pages in all, 32 of them for the longest sequence. */
static int setup_small(void **state)
{
    return start((const char *[]){"--model", "unix=" DAEMON_MODEL, "--backend", "null",
                                  "--backend-options", "page_bytes=65536", "--state-memory", "4M",
                                  "--ctx", "512", NULL});
}

static int teardown(void **state)
{
    infer_close(conn);
    daemon_stop(&d);
    daemon_done(&d);
    return 0;
}

/* Asks and asserts that the answer is whole; returns the cached tokens of the prompt. */
static uint32_t ask(const int32_t *ids, size_t n, uint32_t max_tokens, struct many_answer *a)
{
    struct infer_request r;
    many_request(&r, ids, n, max_tokens);
    many_get(conn, &r, a);
    many_assert_good(a, max_tokens);
    assert_int_equal(a->n_prompt, n);
    assert_true(a->n_cached < n);
    assert_int_equal(a->n_cached % PAGE, 0);
    return a->n_cached;
}

/* ---- counts ---------------------------------------------------------------------------------- */

static void test_repeated_prompt(void **state)
{
    static const size_t lengths[] = {1, 2, 15, 16, 17, 31, 32, 33, 48, 100, 256, 511};
    static struct many_answer a;
    int32_t ids[PROMPT_MAX];
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        size_t n = lengths[i];
        many_ids(ids, n, fresh++);
        assert_int_equal(ask(ids, n, 5, &a), 0);
        /* The last token runs in any case: it draws the first one. */
        assert_int_equal(ask(ids, n, 5, &a), (n - 1) / PAGE * PAGE);
        assert_int_equal(ask(ids, n, 1, &a), (n - 1) / PAGE * PAGE);
    }
    many_assert_pages_back(conn);
}

static void test_common_beginning(void **state)
{
    static const size_t common[] = {0, 1, 15, 16, 17, 50, 64, 95};
    static struct many_answer a;
    int32_t first[100], other[100];
    many_ids(first, 100, fresh++);
    assert_int_equal(ask(first, 100, 3, &a), 0);
    for (size_t i = 0; i < sizeof common / sizeof common[0]; i++) {
        many_ids(other, 100, fresh++);
        memcpy(other, first, common[i] * sizeof *other);
        if (other[common[i]] == first[common[i]])
            other[common[i]]++;
        assert_int_equal(ask(other, 100, 3, &a), common[i] / PAGE * PAGE);
    }
}

/* The same tokens at another place are another state. */
static void test_shifted_text_is_not_found(void **state)
{
    static struct many_answer a;
    int32_t ids[100];
    many_ids(ids, 100, fresh++);
    assert_int_equal(ask(ids, 100, 3, &a), 0);
    assert_int_equal(ask(ids + PAGE, 100 - PAGE, 3, &a), 0);
    assert_int_equal(ask(ids + 1, 99, 3, &a), 0);
}

/* The answer is part of the next question: all of it was computed but its last token. */
static void test_continued_conversation(void **state)
{
    static struct many_answer a;
    int32_t ids[PROMPT_MAX];
    size_t n = 40;
    many_ids(ids, n, fresh++);
    assert_int_equal(ask(ids, n, 30, &a), 0);
    for (int turn = 0; turn < 4; turn++) {
        size_t computed = n + a.n - 1;
        memcpy(ids + n, a.ids, a.n * sizeof *ids);
        n += a.n;
        many_ids(ids + n, 10, fresh++);
        n += 10;
        assert_int_equal(ask(ids, n, 30, &a), computed / PAGE * PAGE);
    }
    many_assert_pages_back(conn);
}

static void test_cancelled_answer_leaves_its_prompt(void **state)
{
    static struct many_answer a;
    struct infer_request r;
    int32_t ids[100];
    uint32_t id;
    many_ids(ids, 100, fresh++);
    many_request(&r, ids, 100, 0);
    assert_int_equal(infer_submit(conn, &r, &id), 0);
    many_wait_token(conn, id, &a);
    infer_cancel(conn, id);
    many_gather(conn, id, &a);
    assert_int_equal(ask(ids, 100, 3, &a), 96);
    many_assert_pages_back(conn);
}

/* Texts are scored once: their state is not kept, and no score is missed for what is cached. */
static void test_scores_are_not_cached(void **state)
{
    static struct many_answer a;
    struct infer_request r;
    struct infer_scores s;
    int32_t ids[100];
    many_ids(ids, 100, fresh++);
    many_request(&r, ids, 100, 0);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(infer_score(conn, &r, 0, &s), 0);
        assert_int_equal(s.n, 100);
        infer_scores_free(&s);
        assert_int_equal(ask(ids, 100, 3, &a), i ? 96 : 0);
    }
    many_assert_pages_back(conn);
}

/* ---- the same answers ------------------------------------------------------------------------ */

static void assert_same(const struct many_answer *a, const struct many_answer *b)
{
    assert_int_equal(a->n, b->n);
    assert_memory_equal(a->ids, b->ids, a->n * sizeof *a->ids);
    assert_memory_equal(a->logprobs, b->logprobs, a->n * sizeof *a->logprobs);
}

static void compare(float temperature, const int32_t *ids, size_t n)
{
    static struct many_answer without, with;
    struct infer_request r;
    many_request(&r, ids, n, 24);
    r.sampling.temperature = temperature;
    r.sampling.logprobs = 1;
    many_get(conn, &r, &without);
    many_assert_good(&without, 24);
    assert_int_equal(without.n_cached, 0);
    for (int i = 0; i < 2; i++) {
        many_get(conn, &r, &with);
        many_assert_good(&with, 24);
        assert_int_equal(with.n_cached, (n - 1) / PAGE * PAGE);
        assert_same(&without, &with);
    }
}

static void test_same_tokens(void **state)
{
    static const size_t lengths[] = {17, 32, 100, 300};
    int32_t ids[PROMPT_MAX];
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++)
        for (int drawn = 0; drawn < 2; drawn++) {
            many_ids(ids, lengths[i], fresh++);
            compare(drawn ? 1.0f : 0.0f, ids, lengths[i]);
        }
    many_assert_pages_back(conn);
}

/* Several answers read the same pages at once, one of them ends early. */
static void test_same_tokens_side_by_side(void **state)
{
    enum { N = 6 };
    static struct many_answer alone, each[N];
    struct infer_request r;
    int32_t ids[100];
    uint32_t id[N];
    many_ids(ids, 100, fresh++);
    many_request(&r, ids, 100, 24);
    r.sampling.temperature = 1.0f;
    r.sampling.logprobs = 1;
    many_get(conn, &r, &alone);
    many_assert_good(&alone, 24);
    for (int i = 0; i < N; i++) {
        r.sampling.max_tokens = i == 0 ? 2 : 24;
        assert_int_equal(infer_submit(conn, &r, &id[i]), 0);
    }
    for (int i = 0; i < N; i++) {
        many_gather(conn, id[i], &each[i]);
        many_assert_good(&each[i], i == 0 ? 2 : 24);
        assert_int_equal(each[i].n_cached, 96);
        if (i > 0)
            assert_same(&alone, &each[i]);
    }
    many_assert_pages_back(conn);
}

/* ---- memory ---------------------------------------------------------------------------------- */

/* What is cached gives way to what is asked, the oldest first. */
static void test_cache_gives_way(void **state)
{
    static struct many_answer a;
    struct infer_status s;
    int32_t old[100], new[100], ids[200];
    assert_int_equal(infer_status(conn, &s), 0);
    assert_true(s.n_pages >= 32 && s.n_pages < 200);
    many_ids(old, 100, fresh++);
    assert_int_equal(ask(old, 100, 3, &a), 0);
    for (int i = 0; i < 40; i++) {
        many_ids(ids, 200, fresh++);
        assert_int_equal(ask(ids, 200, 10, &a), 0);
    }
    many_ids(new, 100, fresh++);
    assert_int_equal(ask(new, 100, 3, &a), 0);
    assert_int_equal(ask(old, 100, 3, &a), 0);
    assert_int_equal(ask(new, 100, 3, &a), 96);
    many_assert_pages_back(conn);
}

/* ---- other users ----------------------------------------------------------------------------- */

struct foreign {
    int32_t ids[100];
    struct many_answer answer[2];
};

static int ask_twice(void *arg)
{
    struct foreign *f = arg;
    struct infer_request r;
    struct infer_conn *c = many_connect(&d);
    if (!c)
        return 1;
    many_request(&r, f->ids, 100, 8);
    for (int i = 0; i < 2; i++)
        many_get(c, &r, &f->answer[i]);
    infer_close(c);
    return 0;
}

static void test_nobody_finds_what_another_computed(void **state)
{
    static const uid_t users[] = {MANY_ALICE, MANY_BOB};
    static struct many_answer a;
    MANY_NEEDS_ROOT();
    struct foreign *f =
        mmap(NULL, sizeof *f, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(f != MAP_FAILED);
    many_let_in(&d);
    many_ids(f->ids, 100, fresh++);
    assert_int_equal(ask(f->ids, 100, 8, &a), 0);
    assert_int_equal(ask(f->ids, 100, 8, &a), 96);
    for (int i = 0; i < 2; i++) {
        memset(f->answer, 0, sizeof f->answer);
        many_join(many_start(users[i], ask_twice, f));
        many_assert_good(&f->answer[0], 8);
        many_assert_good(&f->answer[1], 8);
        assert_int_equal(f->answer[0].n_cached, 0);
        assert_int_equal(f->answer[1].n_cached, 96);
        assert_memory_equal(f->answer[0].ids, a.ids, 8 * sizeof *a.ids);
        assert_memory_equal(f->answer[1].ids, a.ids, 8 * sizeof *a.ids);
    }
    assert_int_equal(ask(f->ids, 100, 8, &a), 96);
    many_assert_pages_back(conn);
    munmap(f, sizeof *f);
}

int main(void)
{
    const struct CMUnitTest on_null[] = {
        cmocka_unit_test(test_repeated_prompt),
        cmocka_unit_test(test_common_beginning),
        cmocka_unit_test(test_shifted_text_is_not_found),
        cmocka_unit_test(test_continued_conversation),
        cmocka_unit_test(test_cancelled_answer_leaves_its_prompt),
        cmocka_unit_test(test_scores_are_not_cached),
        cmocka_unit_test(test_nobody_finds_what_another_computed),
    };
    const struct CMUnitTest on_small[] = {
        cmocka_unit_test(test_cache_gives_way),
    };
    const struct CMUnitTest on_cpu[] = {
        cmocka_unit_test(test_same_tokens),
        cmocka_unit_test(test_same_tokens_side_by_side),
        cmocka_unit_test(test_nobody_finds_what_another_computed),
    };
    int failed = cmocka_run_group_tests_name("null", on_null, setup_null, teardown);
    failed += cmocka_run_group_tests_name("small", on_small, setup_small, teardown);
    return failed + cmocka_run_group_tests_name("cpu", on_cpu, setup_cpu, teardown);
}
