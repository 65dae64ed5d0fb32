/* test_prefix.c: what is published is found again by whoever may find it, stays as it is, goes in
 * the order of its last use, and never crosses a domain. */
#include "fake_pages.h"
#include "kv/pool.h"

#include <errno.h>

enum { ALICE = 1000, BOB = 1001, MAX = 32 };

static struct fake_pages fake;
static const int32_t text[MAX] = {5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20,
                                  21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36};

static void start(struct kv_pool *pool, struct kv_sequence *s, uint64_t domain)
{
    assert_int_equal(kv_sequence_init(pool, s, MAX, domain), 0);
}

/* One whole request: prefill and end. Returns the rows that match found. */
static uint32_t ask(struct kv_pool *pool, uint64_t domain, const int32_t *tokens, uint32_t n)
{
    struct kv_sequence s;
    start(pool, &s, domain);
    uint32_t found = fake_prefill(&fake, pool, &s, tokens, n);
    kv_check(pool, (const struct kv_sequence *[]){&s}, 1);
    kv_sequence_done(pool, &s);
    kv_check(pool, NULL, 0);
    return found;
}

/* How many rows a request would find; leaves all but the order of use as it was. */
static uint32_t peek(struct kv_pool *pool, uint64_t domain, const int32_t *tokens, uint32_t n)
{
    struct kv_sequence s;
    start(pool, &s, domain);
    uint32_t found = kv_sequence_match(pool, &s, tokens, n);
    fake_check(&fake, &s, tokens);
    kv_sequence_done(pool, &s);
    return found;
}

/* ---- finding --------------------------------------------------------------------------------- */

static void test_the_longest_prefix_of_whole_pages_is_found(void **state)
{
    (void)state;
    struct kv_pool *pool = fake_pool(&fake, 16);
    int32_t other[MAX];
    assert_int_equal(ask(pool, ALICE, text, 18), 0);
    assert_int_equal(kv_pool_count(pool).n_cached, 4);
    for (uint32_t n = 0; n <= MAX; n++)
        assert_int_equal(peek(pool, ALICE, text, n), n < 16 ? n / 4 * 4 : 16);
    for (uint32_t differs = 0; differs < 16; differs++) {
        memcpy(other, text, sizeof other);
        other[differs] ^= 1;
        assert_int_equal(peek(pool, ALICE, other, MAX), differs / 4 * 4);
    }
    assert_int_equal(peek(pool, ALICE, text + 4, 8), 0); /* the same tokens elsewhere */
    kv_pool_free(pool);
}

static void test_a_match_takes_no_more_than_there_is_room_for(void **state)
{
    (void)state;
    struct kv_pool *pool = fake_pool(&fake, 16);
    struct kv_sequence s;
    ask(pool, ALICE, text, 16);
    assert_int_equal(kv_sequence_init(pool, &s, 8, ALICE), 0);
    assert_int_equal(kv_sequence_match(pool, &s, text, 16), 8);
    kv_sequence_done(pool, &s);
    kv_pool_free(pool);
}

static void test_a_conversation_goes_on_from_where_it_was(void **state)
{
    (void)state;
    struct kv_pool *pool = fake_pool(&fake, 16);
    assert_int_equal(ask(pool, ALICE, text, 9), 0);
    assert_int_equal(ask(pool, ALICE, text, 17), 8);
    assert_int_equal(ask(pool, ALICE, text, 32), 16);
    struct kv_counts c = kv_pool_count(pool);
    assert_int_equal(c.lookups, 3);
    assert_int_equal(c.hits_tokens, 24);
    assert_int_equal(c.n_cached, 8);
    assert_int_equal(c.evictions + c.zeroed + c.copied + c.merged, 0);
    kv_pool_free(pool);
}

static void test_publishing_row_by_row_is_publishing_at_once(void **state)
{
    (void)state;
    static struct fake_pages fake_b;
    struct kv_pool *a = fake_pool(&fake, 16), *b = fake_pool(&fake_b, 16);
    struct kv_sequence s, t;
    start(a, &s, ALICE);
    start(b, &t, ALICE);
    for (uint32_t n = 1; n <= 30; n++) {
        assert_int_equal(kv_sequence_grow(a, &s, n), 0);
        fake_write(&fake, a, &s, text, n - 1);
        kv_sequence_publish(a, &s, text, n);
        kv_sequence_publish(a, &s, text, n); /* twice is once */
        assert_int_equal(s.n_published, n / 4);
        kv_check(a, (const struct kv_sequence *[]){&s}, 1);
    }
    assert_int_equal(kv_sequence_grow(b, &t, 30), 0);
    fake_write(&fake_b, b, &t, text, 0);
    kv_sequence_publish(b, &t, text, 30);
    assert_int_equal(t.n_published, s.n_published);
    assert_memory_equal(s.pages, t.pages, s.n_pages * sizeof *s.pages);
    kv_sequence_done(a, &s);
    kv_sequence_done(b, &t);
    for (uint32_t n = 0; n <= MAX; n++)
        assert_int_equal(peek(a, ALICE, text, n), n < 28 ? n / 4 * 4 : 28);
    kv_check(a, NULL, 0);
    kv_check(b, NULL, 0);
    kv_pool_free(a);
    kv_pool_free(b);
}

static void test_hashes_that_all_collide_change_nothing(void **state)
{
    (void)state;
    struct kv_pool *pool = fake_pool(&fake, 64);
    int32_t tokens[MAX];
    kv_pool_truncate_hashes(pool, 0);
    for (int32_t i = 0; i < 8; i++) {
        memcpy(tokens, text, sizeof tokens);
        tokens[4 + i / 4] = 100 + i;
        assert_int_equal(ask(pool, i % 2 ? ALICE : BOB, tokens, 12), i < 2 ? 0 : 4);
    }
    for (int32_t i = 0; i < 8; i++) {
        memcpy(tokens, text, sizeof tokens);
        tokens[4 + i / 4] = 100 + i;
        assert_int_equal(peek(pool, i % 2 ? ALICE : BOB, tokens, 12), 12);
        assert_int_equal(peek(pool, i % 2 ? BOB : ALICE, tokens, 12), 4);
    }
    assert_int_equal(kv_pool_count(pool).n_cached, 2 + 8 * 2);
    kv_pool_free(pool);
}

/* Where an entry stands depends on everything that it is compared by, and on the boot key: so where
 * one domain's prefixes stand says nothing to another one's lookups. */
static void test_a_hash_covers_key_domain_parent_and_tokens(void **state)
{
    (void)state;
    struct kv_pool *pool = fake_pool(&fake, 4);
    struct kv_sequence s;
    uint64_t seen[8];
    start(pool, &s, ALICE);
    fake_prefill(&fake, pool, &s, text, 8);
    seen[0] = kv_index_hash(pool, ALICE, KV_PAGE_NONE, text);
    seen[1] = kv_index_hash(pool, BOB, KV_PAGE_NONE, text);
    seen[2] = kv_index_hash(pool, ALICE, s.pages[0], text);
    seen[3] = kv_index_hash(pool, ALICE, s.pages[1], text);
    for (uint32_t i = 0; i < FAKE_TOKENS; i++) {
        int32_t tokens[FAKE_TOKENS];
        memcpy(tokens, text, sizeof tokens);
        tokens[i] ^= 1 << 30;
        seen[4 + i] = kv_index_hash(pool, ALICE, KV_PAGE_NONE, tokens);
    }
    for (uint32_t i = 0; i < 8; i++)
        for (uint32_t j = 0; j < i; j++)
            assert_int_not_equal(seen[i], seen[j]);
    kv_sequence_done(pool, &s);
    pool->config.key[15] ^= 1;
    assert_int_not_equal(kv_index_hash(pool, ALICE, KV_PAGE_NONE, text), seen[0]);
    kv_pool_free(pool);
}

/* ---- computed twice -------------------------------------------------------------------------- */

static void test_equal_prompts_at_once_end_up_with_one_copy(void **state)
{
    (void)state;
    struct kv_pool *pool = fake_pool(&fake, 16);
    struct kv_sequence a, b;
    const struct kv_sequence *all[] = {&a, &b};
    start(pool, &a, ALICE);
    start(pool, &b, ALICE);
    assert_int_equal(kv_sequence_grow(pool, &a, 10), 0);
    assert_int_equal(kv_sequence_grow(pool, &b, 10), 0);
    fake_write(&fake, pool, &a, text, 0);
    fake_write(&fake, pool, &b, text, 0);
    assert_int_equal(kv_pool_used(pool), 6);
    kv_sequence_publish(pool, &a, text, 10);
    kv_sequence_publish(pool, &b, text, 10);
    kv_check(pool, all, 2);
    assert_memory_equal(a.pages, b.pages, 2 * sizeof *a.pages);
    assert_int_not_equal(a.pages[2], b.pages[2]);
    assert_int_equal(kv_pool_used(pool), 4);
    assert_int_equal(kv_pool_count(pool).merged, 2);
    assert_int_equal(kv_pool_count(pool).n_shared, 2);
    fake_check(&fake, &b, text);
    kv_sequence_done(pool, &a);
    kv_sequence_done(pool, &b);
    kv_pool_free(pool);
}

/* The reason for it: what nobody holds can be had, also when the first holder left and the second
 * published what follows. */
static void test_pages_that_nobody_holds_can_always_be_had(void **state)
{
    (void)state;
    struct kv_pool *pool = fake_pool(&fake, 8);
    struct kv_sequence a, b, c;
    const struct kv_sequence *all[] = {&b, &c};
    start(pool, &a, ALICE);
    start(pool, &b, ALICE);
    start(pool, &c, ALICE);
    assert_int_equal(kv_sequence_grow(pool, &b, 12), 0);
    fake_write(&fake, pool, &b, text, 0);
    fake_prefill(&fake, pool, &a, text, 8);
    kv_sequence_done(pool, &a);
    kv_sequence_publish(pool, &b, text, 12); /* two pages of a's, one of its own */
    assert_int_equal(kv_pool_count(pool).merged, 2);
    assert_int_equal(kv_pool_available(pool), 5);
    assert_int_equal(kv_sequence_grow(pool, &c, 20), 0);
    kv_check(pool, all, 2);
    assert_int_equal(kv_pool_available(pool), 0);
    fake_check(&fake, &b, text);
    kv_sequence_done(pool, &b);
    kv_sequence_done(pool, &c);
    kv_pool_free(pool);
}

/* ---- giving up ------------------------------------------------------------------------------- */

static void test_the_least_recently_used_goes_first_and_ends_before_starts(void **state)
{
    (void)state;
    struct kv_pool *pool = fake_pool(&fake, 9);
    struct kv_sequence s;
    int32_t x[MAX], y[MAX];
    memcpy(x, text, sizeof x);
    memcpy(y, text, sizeof y);
    x[0] = 1;
    y[0] = 2;
    ask(pool, ALICE, text, 12);
    ask(pool, ALICE, x, 12);
    ask(pool, ALICE, y, 12);
    assert_int_equal(kv_pool_count(pool).n_free, 0);
    assert_int_equal(kv_pool_available(pool), 9);
    assert_int_equal(peek(pool, ALICE, text, 12), 12); /* used again: x is the oldest now */

    start(pool, &s, ALICE);
    const uint32_t left[] = {8, 4, 0};
    for (uint32_t i = 0; i < 3; i++) {
        assert_int_equal(kv_sequence_grow(pool, &s, 4 * (i + 1)), 0);
        assert_int_equal(kv_pool_count(pool).evictions, i + 1);
        kv_check(pool, (const struct kv_sequence *[]){&s}, 1);
        assert_int_equal(peek(pool, ALICE, x, 12), left[i]);
        assert_int_equal(peek(pool, ALICE, y, 12), 12); /* in this order: x is the oldest again */
        assert_int_equal(peek(pool, ALICE, text, 12), 12);
    }
    kv_sequence_done(pool, &s);
    kv_pool_free(pool);
}

static void test_held_pages_and_their_ancestors_stay(void **state)
{
    (void)state;
    struct kv_pool *pool = fake_pool(&fake, 6);
    struct kv_sequence reader, taker;
    ask(pool, ALICE, text, 16);
    start(pool, &reader, ALICE);
    start(pool, &taker, ALICE);
    assert_int_equal(kv_sequence_match(pool, &reader, text, 8), 8);
    assert_int_equal(kv_pool_available(pool), 4);
    assert_int_equal(kv_sequence_grow(pool, &taker, 20), -ENOSPC);
    assert_int_equal(kv_pool_count(pool).evictions, 0); /* a failed grow gives up nothing */
    assert_int_equal(kv_sequence_grow(pool, &taker, 16), 0);
    assert_int_equal(kv_pool_count(pool).evictions, 2);
    fake_check(&fake, &reader, text);
    kv_check(pool, (const struct kv_sequence *[]){&reader, &taker}, 2);
    kv_sequence_done(pool, &reader);
    kv_sequence_done(pool, &taker);
    assert_int_equal(peek(pool, ALICE, text, 16), 8);
    kv_pool_free(pool);
}

/* ---- roll-back ------------------------------------------------------------------------------- */

static void test_a_roll_back_leaves_what_was_published(void **state)
{
    (void)state;
    struct kv_pool *pool = fake_pool(&fake, 16);
    struct kv_sequence s;
    const struct kv_sequence *all[] = {&s};
    int32_t other[MAX];
    memcpy(other, text, sizeof other);
    other[6] = 99;
    start(pool, &s, ALICE);
    fake_prefill(&fake, pool, &s, text, 16);
    kv_sequence_trim(pool, &s, 6); /* into the middle of the second page */
    assert_int_equal(s.n_published, 1);
    assert_int_equal(kv_pool_count(pool).n_cached, 2);
    assert_false(kv_sequence_writable(pool, &s, 6));
    kv_check(pool, all, 1);
    assert_int_equal(kv_sequence_grow(pool, &s, 13), 0); /* gets its own copy of that page */
    assert_int_equal(fake.n_copied, 1);
    assert_true(kv_sequence_writable(pool, &s, 6));
    fake_write(&fake, pool, &s, other, 6);
    kv_sequence_publish(pool, &s, other, 13);
    fake_check(&fake, &s, other);
    kv_check(pool, all, 1);
    kv_sequence_done(pool, &s);
    assert_int_equal(peek(pool, ALICE, text, 16), 16);
    assert_int_equal(peek(pool, ALICE, other, 16), 12);
    kv_pool_free(pool);
}

static void test_a_roll_back_that_is_run_again_finds_its_page(void **state)
{
    (void)state;
    struct kv_pool *pool = fake_pool(&fake, 16);
    struct kv_sequence s;
    start(pool, &s, ALICE);
    fake_prefill(&fake, pool, &s, text, 8);
    uint32_t second = s.pages[1];
    kv_sequence_trim(pool, &s, 6);
    assert_int_equal(kv_sequence_grow(pool, &s, 8), 0);
    assert_int_not_equal(s.pages[1], second);
    fake_write(&fake, pool, &s, text, 6);
    kv_sequence_publish(pool, &s, text, 8); /* the same rows again: back to the cached page */
    assert_int_equal(s.pages[1], second);
    assert_int_equal(kv_pool_count(pool).n_cached, 0);
    kv_check(pool, (const struct kv_sequence *[]){&s}, 1);
    kv_sequence_done(pool, &s);
    kv_pool_free(pool);
}

static void test_a_roll_back_in_a_full_pool_writes_in_place(void **state)
{
    (void)state;
    struct kv_pool *pool = fake_pool(&fake, 2);
    struct kv_sequence s;
    int32_t other[MAX];
    memcpy(other, text, sizeof other);
    other[6] = 99;
    start(pool, &s, ALICE);
    fake_prefill(&fake, pool, &s, text, 8);
    kv_sequence_trim(pool, &s, 6);
    assert_int_equal(kv_pool_available(pool), 0);
    assert_int_equal(kv_sequence_grow(pool, &s, 8), 0);
    assert_int_equal(fake.n_copied, 0);
    fake_write(&fake, pool, &s, other, 6);
    kv_sequence_publish(pool, &s, other, 8);
    kv_check(pool, (const struct kv_sequence *[]){&s}, 1);
    kv_sequence_done(pool, &s);
    assert_int_equal(peek(pool, ALICE, text, 8), 4);
    assert_int_equal(peek(pool, ALICE, other, 8), 8);
    kv_pool_free(pool);
}

static void test_a_roll_back_into_a_shared_page_needs_a_page(void **state)
{
    (void)state;
    struct kv_pool *pool = fake_pool(&fake, 2);
    struct kv_sequence a, b;
    const struct kv_sequence *all[] = {&a, &b};
    start(pool, &a, ALICE);
    start(pool, &b, ALICE);
    fake_prefill(&fake, pool, &a, text, 8);
    assert_int_equal(kv_sequence_match(pool, &b, text, 8), 8);
    kv_sequence_trim(pool, &b, 6);
    kv_check(pool, all, 2);
    assert_int_equal(kv_sequence_grow(pool, &b, 7), -ENOSPC);
    assert_int_equal(b.n_tokens, 6);
    kv_check(pool, all, 2);
    kv_sequence_trim(pool, &a, 0); /* now it alone holds the page */
    assert_int_equal(kv_sequence_grow(pool, &b, 7), 0);
    assert_int_equal(b.pages[1], 1);
    kv_check(pool, all, 2);
    kv_sequence_done(pool, &a);
    kv_sequence_done(pool, &b);
    kv_pool_free(pool);
}

/* ---- privacy --------------------------------------------------------------------------------- */

static void test_nothing_is_found_across_domains(void **state)
{
    (void)state;
    struct kv_pool *pool = fake_pool(&fake, 16);
    ask(pool, ALICE, text, 16);
    assert_int_equal(peek(pool, BOB, text, 16), 0);
    assert_int_equal(ask(pool, BOB, text, 16), 0);
    assert_int_equal(kv_pool_count(pool).merged, 0);
    assert_int_equal(kv_pool_count(pool).n_cached, 8);
    assert_int_equal(peek(pool, ALICE, text, 16), 16);
    assert_int_equal(peek(pool, BOB, text, 16), 16);
    kv_pool_free(pool);
}

/* A shared domain's number is a uid's with a bit above the 32nd. */
static void test_a_domain_is_64_bits_wide(void **state)
{
    (void)state;
    const uint64_t shared = UINT64_C(1) << 32 | ALICE;
    struct kv_pool *pool = fake_pool(&fake, 8);
    ask(pool, ALICE, text, 16);
    assert_int_equal(peek(pool, shared, text, 16), 0);
    assert_int_equal(ask(pool, shared, text, 16), 0);
    assert_int_equal(peek(pool, shared, text, 16), 16);
    assert_int_equal(peek(pool, ALICE, text, 16), 16);
    assert_int_equal(kv_pool_count(pool).zeroed, 0);
    ask(pool, ALICE, text + 1, 4); /* the oldest page is the shared domain's */
    assert_int_equal(kv_pool_count(pool).zeroed, 1);
    kv_pool_free(pool);
}

static void test_pages_are_zeroed_when_their_domain_changes_and_only_then(void **state)
{
    (void)state;
    struct kv_pool *pool = fake_pool(&fake, 4);
    int32_t x[MAX];
    memcpy(x, text, sizeof x);
    x[0] = 1;
    ask(pool, ALICE, text, 15); /* three published, one free again */
    assert_int_equal(fake.n_zeroed, 0);
    ask(pool, ALICE, x, 16); /* its own old pages */
    assert_int_equal(kv_pool_count(pool).evictions, 3);
    assert_int_equal(fake.n_zeroed, 0);
    ask(pool, BOB, text, 7); /* a cached one and one that was given back */
    assert_int_equal(fake.n_zeroed, 2);
    ask(pool, BOB, text, 8); /* the page that Bob gave back */
    assert_int_equal(fake.n_zeroed, 2);
    ask(pool, ALICE, text, 16);
    assert_int_equal(fake.n_zeroed, 4);
    assert_int_equal(kv_pool_count(pool).zeroed, 4);
    kv_pool_free(pool);
}

/* Who could not have its pages zeroed did not run; nobody sees what they hold. */
static void test_a_page_that_was_not_zeroed_is_zeroed_when_it_is_taken_next(void **state)
{
    (void)state;
    struct kv_pool *pool = fake_pool(&fake, 2);
    struct kv_sequence s;
    ask(pool, ALICE, text, 3);
    for (uint32_t i = 0; i < 3; i++) { /* Bob's, Bob's again, Alice's own: none may be trusted */
        fake.fail_zero = 1;
        assert_int_equal(kv_sequence_init(pool, &s, 8, i < 2 ? BOB : ALICE), 0);
        assert_int_equal(kv_sequence_grow(pool, &s, 1), 0);
        assert_int_equal(fake.fail_zero, 0);
        kv_check(pool, (const struct kv_sequence *[]){&s}, 1);
        kv_sequence_done(pool, &s);
    }
    assert_int_equal(fake.n_zeroed, 0);
    ask(pool, BOB, text, 3);
    assert_int_equal(fake.n_zeroed, 1);
    ask(pool, BOB, text, 3);
    assert_int_equal(fake.n_zeroed, 1);
    assert_int_equal(kv_pool_count(pool).zeroed, 1);
    kv_pool_free(pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_longest_prefix_of_whole_pages_is_found),
        cmocka_unit_test(test_a_match_takes_no_more_than_there_is_room_for),
        cmocka_unit_test(test_a_conversation_goes_on_from_where_it_was),
        cmocka_unit_test(test_publishing_row_by_row_is_publishing_at_once),
        cmocka_unit_test(test_hashes_that_all_collide_change_nothing),
        cmocka_unit_test(test_a_hash_covers_key_domain_parent_and_tokens),
        cmocka_unit_test(test_equal_prompts_at_once_end_up_with_one_copy),
        cmocka_unit_test(test_pages_that_nobody_holds_can_always_be_had),
        cmocka_unit_test(test_the_least_recently_used_goes_first_and_ends_before_starts),
        cmocka_unit_test(test_held_pages_and_their_ancestors_stay),
        cmocka_unit_test(test_a_roll_back_leaves_what_was_published),
        cmocka_unit_test(test_a_roll_back_that_is_run_again_finds_its_page),
        cmocka_unit_test(test_a_roll_back_in_a_full_pool_writes_in_place),
        cmocka_unit_test(test_a_roll_back_into_a_shared_page_needs_a_page),
        cmocka_unit_test(test_nothing_is_found_across_domains),
        cmocka_unit_test(test_a_domain_is_64_bits_wide),
        cmocka_unit_test(test_pages_are_zeroed_when_their_domain_changes_and_only_then),
        cmocka_unit_test(test_a_page_that_was_not_zeroed_is_zeroed_when_it_is_taken_next),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
