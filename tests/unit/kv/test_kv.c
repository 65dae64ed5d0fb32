/* test_kv.c: the page ledger: what is held, shared, trimmed and given back always adds up. */
#include "kv/kv.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

static void test_grow_and_trim(void **state)
{
    (void)state;
    struct kv_pool *pool;
    struct kv_sequence s;
    assert_int_equal(kv_pool_new(4, 16, &pool), 0);
    assert_int_equal(kv_sequence_init(pool, &s, 100), 0);
    assert_int_equal(s.room, 7);
    assert_int_equal(kv_sequence_grow(pool, &s, 1), 0);
    assert_int_equal(s.n_pages, 1);
    assert_int_equal(kv_sequence_grow(pool, &s, 16), 0);
    assert_int_equal(s.n_pages, 1);
    assert_int_equal(kv_sequence_grow(pool, &s, 17), 0);
    assert_int_equal(s.n_pages, 2);
    kv_sequence_trim(pool, &s, 16);
    assert_int_equal(s.n_pages, 1);
    assert_int_equal(kv_pool_used(pool), 1);
    kv_sequence_done(pool, &s);
    assert_int_equal(kv_pool_used(pool), 0);
    kv_pool_free(pool);
}

static void test_a_failed_grow_takes_nothing(void **state)
{
    (void)state;
    struct kv_pool *pool;
    struct kv_sequence a, b;
    assert_int_equal(kv_pool_new(3, 16, &pool), 0);
    assert_int_equal(kv_sequence_init(pool, &a, 48), 0);
    assert_int_equal(kv_sequence_init(pool, &b, 48), 0);
    assert_int_equal(kv_sequence_grow(pool, &a, 32), 0);
    assert_int_equal(kv_sequence_grow(pool, &b, 32), -ENOSPC);
    assert_int_equal(b.n_pages, 0);
    assert_int_equal(kv_pool_used(pool), 2);
    kv_check(pool, (const struct kv_sequence *[]){&a, &b}, 2);
    kv_sequence_done(pool, &a);
    assert_int_equal(kv_sequence_grow(pool, &b, 48), 0);
    kv_sequence_done(pool, &b);
    kv_pool_free(pool);
}

static void test_shared_pages_are_read_only_and_outlive_their_first_holder(void **state)
{
    (void)state;
    struct kv_pool *pool;
    struct kv_sequence a, b;
    assert_int_equal(kv_pool_new(8, 16, &pool), 0);
    assert_int_equal(kv_sequence_init(pool, &a, 64), 0);
    assert_int_equal(kv_sequence_init(pool, &b, 64), 0);
    assert_int_equal(kv_sequence_grow(pool, &a, 40), 0);
    assert_int_equal(kv_sequence_share(pool, &a, &b, 40), 32); /* whole pages only */
    assert_int_equal(kv_pool_used(pool), 3);
    assert_false(kv_sequence_writable(pool, &b, 31));
    assert_false(kv_sequence_writable(pool, &a, 0));
    assert_true(kv_sequence_writable(pool, &a, 33));
    kv_check(pool, (const struct kv_sequence *[]){&a, &b}, 2);
    kv_sequence_done(pool, &a);
    assert_int_equal(kv_pool_used(pool), 2);
    assert_true(kv_sequence_writable(pool, &b, 31));
    kv_sequence_done(pool, &b);
    kv_pool_free(pool);
}

static uint32_t next_random(uint32_t *x)
{
    *x = *x * 1664525u + 1013904223u;
    return *x >> 8;
}

static void test_random_life_keeps_the_ledger(void **state)
{
    (void)state;
    enum { N = 12 };
    struct kv_pool *pool;
    struct kv_sequence s[N];
    const struct kv_sequence *all[N];
    uint32_t x = 7;
    assert_int_equal(kv_pool_new(40, 4, &pool), 0);
    for (int i = 0; i < N; i++) {
        assert_int_equal(kv_sequence_init(pool, &s[i], 64), 0);
        all[i] = &s[i];
    }
    for (int step = 0; step < 5000; step++) {
        struct kv_sequence *one = &s[next_random(&x) % N];
        uint32_t tokens = next_random(&x) % 65;
        switch (next_random(&x) % 4) {
        case 0:
        case 1:
            kv_sequence_grow(pool, one, tokens);
            break;
        case 2:
            kv_sequence_trim(pool, one, tokens);
            break;
        default:
            kv_sequence_trim(pool, one, 0);
            kv_sequence_share(pool, &s[next_random(&x) % N], one, tokens);
            break;
        }
        kv_check(pool, all, N);
    }
    for (int i = 0; i < N; i++)
        kv_sequence_done(pool, &s[i]);
    kv_pool_free(pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_grow_and_trim),
        cmocka_unit_test(test_a_failed_grow_takes_nothing),
        cmocka_unit_test(test_shared_pages_are_read_only_and_outlive_their_first_holder),
        cmocka_unit_test(test_random_life_keeps_the_ledger),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
