/* test_kv.c: the page ledger without an index: what is held, shared, copied, trimmed and given back
 * always adds up. */
#include "fake_pages.h"

#include <errno.h>

static struct fake_pages fake;
static const int32_t text[] = {5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20};

static void test_grow_and_trim(void **state)
{
    (void)state;
    struct kv_pool *pool;
    struct kv_sequence s;
    struct kv_config c = {.n_pages = 4, .page_tokens = 16};
    assert_int_equal(kv_pool_new(&c, &pool), 0);
    assert_int_equal(kv_sequence_init(pool, &s, 100, 7), 0);
    assert_int_equal(s.room, 7);
    assert_int_equal(kv_sequence_grow(pool, &s, 1), 0);
    assert_int_equal(s.n_pages, 1);
    assert_int_equal(kv_sequence_grow(pool, &s, 16), 0);
    assert_int_equal(s.n_pages, 1);
    assert_int_equal(kv_sequence_grow(pool, &s, 17), 0);
    assert_int_equal(s.n_pages, 2);
    assert_int_equal(kv_sequence_grow(pool, &s, 3), 0); /* fewer: nothing */
    assert_int_equal(s.n_tokens, 17);
    kv_sequence_trim(pool, &s, 16);
    assert_int_equal(s.n_pages, 1);
    kv_sequence_trim(pool, &s, 90); /* more: nothing */
    assert_int_equal(s.n_tokens, 16);
    assert_int_equal(kv_pool_used(pool), 1);
    assert_int_equal(kv_pool_available(pool), 3);
    kv_sequence_done(pool, &s);
    assert_int_equal(kv_pool_used(pool), 0);
    assert_int_equal(kv_pool_count(pool).n_free, 4); /* nothing was published */
    kv_pool_free(pool);
}

static void test_a_pool_of_no_pages(void **state)
{
    (void)state;
    struct kv_pool *pool;
    struct kv_sequence s;
    struct kv_config c = {.n_pages = 0, .page_tokens = 16};
    assert_int_equal(kv_pool_new(&c, &pool), 0);
    assert_int_equal(kv_sequence_init(pool, &s, 0, 7), 0);
    assert_int_equal(kv_sequence_match(pool, &s, text, 16), 0);
    assert_int_equal(kv_sequence_grow(pool, &s, 0), 0);
    kv_sequence_publish(pool, &s, text, 0);
    kv_check(pool, (const struct kv_sequence *[]){&s}, 1);
    kv_sequence_done(pool, &s);
    assert_int_equal(kv_sequence_init(pool, &s, 16, 7), 0);
    assert_int_equal(kv_sequence_match(pool, &s, text, 16), 0);
    assert_int_equal(kv_sequence_grow(pool, &s, 1), -ENOSPC);
    kv_sequence_done(pool, &s);
    kv_pool_free(pool);
    kv_pool_free(NULL);
}

static void test_a_failed_grow_takes_nothing(void **state)
{
    (void)state;
    struct kv_pool *pool = fake_pool(&fake, 3);
    struct kv_sequence a, b;
    assert_int_equal(kv_sequence_init(pool, &a, 12, 7), 0);
    assert_int_equal(kv_sequence_init(pool, &b, 12, 7), 0);
    assert_int_equal(kv_sequence_grow(pool, &a, 8), 0);
    assert_int_equal(kv_sequence_grow(pool, &b, 8), -ENOSPC);
    assert_int_equal(b.n_pages, 0);
    assert_int_equal(b.n_tokens, 0);
    assert_int_equal(kv_pool_used(pool), 2);
    kv_check(pool, (const struct kv_sequence *[]){&a, &b}, 2);
    kv_sequence_done(pool, &a);
    assert_int_equal(kv_sequence_grow(pool, &b, 12), 0);
    kv_sequence_done(pool, &b);
    kv_pool_free(pool);
}

static void test_fork_shares_whole_pages_and_copies_the_rest(void **state)
{
    (void)state;
    struct kv_pool *pool = fake_pool(&fake, 8);
    struct kv_sequence a, b;
    const struct kv_sequence *all[] = {&a, &b};
    assert_int_equal(kv_sequence_init(pool, &a, 16, 7), 0);
    assert_int_equal(kv_sequence_init(pool, &b, 16, 7), 0);
    fake_prefill(&fake, pool, &a, text, 10);
    assert_int_equal(kv_sequence_fork(pool, &a, &b, 10), 0);
    assert_int_equal(fake.n_copied, 1);
    assert_int_equal(fake.last_from, a.pages[2]);
    assert_int_equal(fake.last_to, b.pages[2]);
    assert_int_equal(kv_pool_used(pool), 4);
    assert_int_equal(kv_pool_count(pool).n_shared, 2);
    assert_int_equal(b.n_published, 2);
    assert_false(kv_sequence_writable(pool, &b, 7));
    assert_false(kv_sequence_writable(pool, &a, 0));
    assert_true(kv_sequence_writable(pool, &a, 10));
    assert_true(kv_sequence_writable(pool, &b, 10));
    fake_check(&fake, &b, text);
    kv_check(pool, all, 2);
    kv_sequence_done(pool, &a); /* b outlives it */
    fake_check(&fake, &b, text);
    assert_int_equal(kv_pool_used(pool), 3);
    kv_check(pool, all + 1, 1);
    kv_sequence_done(pool, &b);
    kv_pool_free(pool);
}

static void test_a_fork_at_a_page_boundary_needs_no_page(void **state)
{
    (void)state;
    struct kv_pool *pool = fake_pool(&fake, 2);
    struct kv_sequence a, b;
    assert_int_equal(kv_sequence_init(pool, &a, 8, 7), 0);
    assert_int_equal(kv_sequence_init(pool, &b, 8, 7), 0);
    fake_prefill(&fake, pool, &a, text, 7);
    assert_int_equal(kv_sequence_fork(pool, &a, &b, 7), -ENOSPC); /* and takes nothing */
    assert_int_equal(b.n_pages, 0);
    assert_int_equal(kv_pool_count(pool).n_shared, 0);
    kv_check(pool, (const struct kv_sequence *[]){&a, &b}, 2);
    assert_int_equal(kv_sequence_fork(pool, &a, &b, 4), 0);
    assert_int_equal(b.n_tokens, 4);
    assert_int_equal(fake.n_copied, 0);
    kv_sequence_done(pool, &a);
    kv_sequence_done(pool, &b);
    kv_pool_free(pool);
}

static void test_n_answers_go_their_own_ways(void **state)
{
    (void)state;
    struct kv_pool *pool = fake_pool(&fake, 16);
    struct kv_sequence s[4];
    const struct kv_sequence *all[4];
    int32_t tokens[4][16];
    for (uint32_t i = 0; i < 4; i++) {
        all[i] = &s[i];
        memcpy(tokens[i], text, sizeof tokens[i]);
        assert_int_equal(kv_sequence_init(pool, &s[i], 16, 7), 0);
    }
    fake_prefill(&fake, pool, &s[0], text, 9);
    for (uint32_t i = 1; i < 4; i++)
        assert_int_equal(kv_sequence_fork(pool, &s[0], &s[i], 9), 0);
    for (uint32_t n = 10; n <= 16; n++)
        for (uint32_t i = 0; i < 4; i++) {
            tokens[i][n - 1] = (int32_t)(100 + i);
            assert_int_equal(kv_sequence_grow(pool, &s[i], n), 0);
            fake_write(&fake, pool, &s[i], tokens[i], n - 1);
            kv_sequence_publish(pool, &s[i], tokens[i], n);
            kv_check(pool, all, 4);
        }
    assert_int_equal(fake.n_copied, 3);
    assert_int_equal(kv_pool_used(pool), 2 + 4 * 2);
    for (uint32_t i = 0; i < 4; i++)
        fake_check(&fake, &s[i], tokens[i]);
    for (uint32_t i = 0; i < 4; i++)
        kv_sequence_done(pool, &s[i]);
    assert_int_equal(kv_pool_count(pool).n_cached, 10);
    kv_pool_free(pool);
}

/* Unpublished pages that are shared are not entered: the other holder would hold an indexed page
 * without its ancestors. */
static void test_an_unpublished_fork_waits_with_publishing(void **state)
{
    (void)state;
    struct kv_pool *pool = fake_pool(&fake, 8);
    struct kv_sequence a, b;
    const struct kv_sequence *all[] = {&a, &b};
    assert_int_equal(kv_sequence_init(pool, &a, 16, 7), 0);
    assert_int_equal(kv_sequence_init(pool, &b, 16, 7), 0);
    assert_int_equal(kv_sequence_grow(pool, &a, 8), 0);
    fake_write(&fake, pool, &a, text, 0);
    assert_int_equal(kv_sequence_fork(pool, &a, &b, 8), 0);
    kv_sequence_publish(pool, &a, text, 8);
    assert_int_equal(a.n_published, 0);
    kv_check(pool, all, 2);
    kv_sequence_trim(pool, &b, 4);
    kv_sequence_publish(pool, &a, text, 8);
    assert_int_equal(a.n_published, 0); /* its first page is still shared */
    kv_sequence_trim(pool, &b, 0);
    kv_sequence_publish(pool, &a, text, 8);
    assert_int_equal(a.n_published, 2);
    kv_check(pool, all, 2);
    kv_sequence_done(pool, &a);
    kv_sequence_done(pool, &b);
    kv_pool_free(pool);
}

/* Rows as a backend would have them after the slide, but for the turn of their keys. */
static void expect_rows(const struct kv_sequence *s, const uint64_t *rows)
{
    for (uint32_t i = 0; i < s->n_tokens; i++)
        assert_true(fake.rows[s->pages[i / FAKE_TOKENS]][i % FAKE_TOKENS] == rows[i]);
}

static void test_a_slide_moves_rows_up_in_the_sequence_own_pages(void **state)
{
    (void)state;
    struct kv_pool *pool = fake_pool(&fake, 8);
    struct kv_sequence a, b;
    const struct kv_sequence *all[] = {&a, &b};
    uint64_t rows[16], row = 0;
    for (uint32_t i = 0; i < 16; i++)
        rows[i] = row = fake_row(row, 7, text[i]);
    assert_int_equal(kv_sequence_init(pool, &a, 16, 7), 0);
    assert_int_equal(kv_sequence_init(pool, &b, 16, 7), 0);
    fake_prefill(&fake, pool, &a, text, 14);
    assert_int_equal(kv_sequence_match(pool, &b, text, 14), 12);
    uint32_t sink = a.pages[0], gone = a.pages[1], moved = a.pages[2], last = a.pages[3];
    assert_int_equal(kv_sequence_slide(pool, &a, 4, 4), 0);
    kv_check(pool, all, 2);
    assert_int_equal(a.n_tokens, 10);
    assert_int_equal(a.n_pages, 3);
    assert_int_equal(a.n_published, 1);
    assert_int_equal(a.pages[0], sink);
    assert_int_not_equal(a.pages[1], moved); /* b's and the index's */
    assert_int_equal(a.pages[2], last);      /* its own already */
    assert_int_equal(b.pages[1], gone);
    memmove(rows + 4, rows + 8, 8 * sizeof *rows);
    expect_rows(&a, rows);
    fake_check(&fake, &b, text);
    assert_true(kv_sequence_writable(pool, &a, 4) && !kv_sequence_writable(pool, &a, 3));
    assert_int_equal(kv_sequence_slide(pool, &a, 4, 4), 0); /* no page is taken now */
    assert_int_equal(fake.n_copied, 1);
    assert_int_equal(kv_pool_used(pool), 4); /* b's three, the first of them a's, too, and one */
    kv_sequence_done(pool, &b);
    kv_check(pool, all, 1);
    kv_sequence_done(pool, &a);
    kv_pool_free(pool);
}

static void test_a_slide_of_nothing_makes_the_pages_its_own(void **state)
{
    (void)state;
    struct kv_pool *pool = fake_pool(&fake, 4);
    struct kv_sequence a;
    assert_int_equal(kv_sequence_init(pool, &a, 16, 7), 0);
    fake_prefill(&fake, pool, &a, text, 12);
    assert_int_equal(kv_sequence_slide(pool, &a, 4, 0), 0);
    assert_int_equal(a.n_tokens, 12);
    assert_int_equal(a.n_published, 1);
    assert_false(kv_sequence_writable(pool, &a, 0));
    assert_true(kv_sequence_writable(pool, &a, 4) && kv_sequence_writable(pool, &a, 11));
    fake_check(&fake, &a, text);
    kv_check(pool, (const struct kv_sequence *[]){&a}, 1);
    kv_sequence_done(pool, &a);
    kv_pool_free(pool);
}

/* Every page is held: what others hold cannot be copied, what is only published is taken out of the
 * index where it lies. */
static void test_a_slide_in_a_full_pool(void **state)
{
    (void)state;
    struct kv_pool *pool = fake_pool(&fake, 4);
    struct kv_sequence a, b;
    const struct kv_sequence *all[] = {&a, &b};
    assert_int_equal(kv_sequence_init(pool, &a, 16, 7), 0);
    assert_int_equal(kv_sequence_init(pool, &b, 16, 7), 0);
    fake_prefill(&fake, pool, &a, text, 16);
    assert_int_equal(kv_sequence_match(pool, &b, text, 12), 12);
    uint32_t before[4];
    memcpy(before, a.pages, sizeof before);
    assert_int_equal(kv_sequence_slide(pool, &a, 4, 4), -ENOSPC);
    assert_memory_equal(before, a.pages, sizeof before);
    assert_int_equal(a.n_tokens, 16);
    assert_int_equal(a.n_published, 4);
    kv_check(pool, all, 2);
    kv_sequence_trim(pool, &b, 4);
    assert_int_equal(kv_sequence_slide(pool, &a, 4, 4), 0);
    assert_int_equal(fake.n_copied, 0);
    assert_int_equal(a.pages[1], before[2]);
    assert_int_equal(a.pages[2], before[3]);
    kv_check(pool, all, 2);
    kv_sequence_done(pool, &a);
    kv_sequence_done(pool, &b);
    kv_pool_free(pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_grow_and_trim),
        cmocka_unit_test(test_a_pool_of_no_pages),
        cmocka_unit_test(test_a_failed_grow_takes_nothing),
        cmocka_unit_test(test_fork_shares_whole_pages_and_copies_the_rest),
        cmocka_unit_test(test_a_fork_at_a_page_boundary_needs_no_page),
        cmocka_unit_test(test_n_answers_go_their_own_ways),
        cmocka_unit_test(test_an_unpublished_fork_waits_with_publishing),
        cmocka_unit_test(test_a_slide_moves_rows_up_in_the_sequence_own_pages),
        cmocka_unit_test(test_a_slide_of_nothing_makes_the_pages_its_own),
        cmocka_unit_test(test_a_slide_in_a_full_pool),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
