/* test_conversations.c: the table of conversations: whose they are, who has them, which go. */
#include "conversations.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { MAX = 8, USER_MAX = 4, IDLE = 1000, BYTES = 10 };

static int released[256];

static const void *saved_with; /* what the last one that went had saved */

static void release(void *ctx, void *past, void *saved)
{
    assert_ptr_equal(ctx, released);
    saved_with = saved;
    released[*(int *)past]++;
    free(past);
}

static void *past_of(int number)
{
    int *past = malloc(sizeof *past);
    assert_non_null(past);
    *past = number;
    return past;
}

static struct conversations *new_table(void)
{
    struct conversations *c = NULL;
    struct conversations_config config = {
        .max = MAX, .user_max = USER_MAX, .idle_us = IDLE, .ctx = released, .release = release};
    memset(released, 0, sizeof released);
    assert_int_equal(conversations_new(&config, &c), 0);
    return c;
}

/* An idle conversation of this id and uid, used at this time; its past is its id. */
static void keep(struct conversations *c, uint64_t id, uint32_t uid, uint64_t now)
{
    struct conversation *one;
    assert_int_equal(conversations_add(c, id, uid, now, &one), 0);
    assert_true(one->busy);
    conversations_put(c, one, past_of((int)id), BYTES, now);
}

static int has(struct conversations *c, uint64_t id, uint32_t uid, uint64_t now)
{
    struct conversation *one;
    int rc = conversations_take(c, id, uid, now, &one);
    if (rc == 0) {
        assert_int_equal(*(int *)one->past, (int)id);
        uint64_t used = one->used_us;
        conversations_put(c, one, one->past, one->bytes, used);
    }
    return rc;
}

static void whose_it_is(void **state)
{
    (void)state;
    struct conversations *c = new_table();
    struct conversation *one;
    keep(c, 1, 100, 5);
    assert_int_equal(has(c, 1, 100, 6), 0);
    assert_int_equal(has(c, 1, 101, 6), -ENOENT);
    assert_int_equal(has(c, 2, 100, 6), -ENOENT);
    assert_int_equal(has(c, 0, 0, 6), -ENOENT); /* what a free entry looks like */
    assert_int_equal(conversations_forget(c, 1, 101, 6), -ENOENT);
    assert_int_equal(conversations_take(c, 1, 100, 6, &one), 0);
    assert_int_equal(conversations_take(c, 1, 100, 6, &one), -EBUSY);
    assert_int_equal(conversations_take(c, 1, 101, 6, &one), -ENOENT); /* not even that */
    assert_int_equal(conversations_forget(c, 1, 100, 6), -EBUSY);
    conversations_put(c, one, one->past, one->bytes, 7);
    assert_int_equal(conversations_forget(c, 1, 100, 8), 0);
    assert_int_equal(released[1], 1);
    assert_int_equal(has(c, 1, 100, 9), -ENOENT);
    conversations_free(c);
}

static void what_it_keeps(void **state)
{
    (void)state;
    struct conversations *c = new_table();
    struct conversation *one;
    keep(c, 1, 100, 5);
    assert_int_equal(conversations_bytes(c), BYTES);
    assert_int_equal(conversations_take(c, 1, 100, 6, &one), 0);
    conversations_put(c, one, past_of(2), 3 * BYTES, 6);
    assert_int_equal(released[1], 1);
    assert_int_equal(conversations_bytes(c), 3 * BYTES);
    assert_int_equal(conversations_take(c, 1, 100, 6, &one), 0);
    assert_int_equal(*(int *)one->past, 2);
    conversations_put(c, one, NULL, 0, 6); /* nothing to continue */
    assert_int_equal(released[2], 1);
    assert_int_equal(conversations_bytes(c), 0);
    assert_int_equal(conversations_count(c), 0);
    assert_int_equal(has(c, 1, 100, 7), -ENOENT);
    conversations_free(c);
}

static void idle_ones_expire(void **state)
{
    (void)state;
    struct conversations *c = new_table();
    struct conversation *one;
    keep(c, 1, 100, 10);
    keep(c, 2, 100, 20);
    assert_int_equal(has(c, 1, 100, 10 + IDLE), 0);
    assert_int_equal(has(c, 1, 100, 11 + IDLE), -ENOENT); /* also before it was cleared away */
    assert_int_equal(conversations_count(c), 2);
    conversations_expire(c, 11 + IDLE);
    assert_int_equal(released[1], 1);
    assert_int_equal(released[2], 0);
    assert_int_equal(conversations_take(c, 2, 100, 20 + IDLE, &one), 0);
    conversations_expire(c, 100 * IDLE); /* busy: it stays */
    assert_int_equal(conversations_count(c), 1);
    conversations_put(c, one, one->past, one->bytes, 100 * IDLE);
    assert_int_equal(has(c, 2, 100, 101 * IDLE), 0);
    conversations_free(c);
    assert_int_equal(released[2], 1);
}

static void a_full_user_loses_his_oldest(void **state)
{
    (void)state;
    struct conversations *c = new_table();
    struct conversation *busy[USER_MAX], *one;
    keep(c, 1, 100, 30);
    keep(c, 2, 100, 10);
    keep(c, 3, 100, 20);
    keep(c, 4, 100, 40);
    keep(c, 5, 200, 1);
    keep(c, 6, 100, 50);
    assert_int_equal(released[2], 1);
    assert_int_equal(conversations_count(c), 5);
    assert_int_equal(has(c, 5, 200, 51), 0);
    /* Those that are busy stay, and then there is no room. */
    static const uint64_t rest[USER_MAX] = {1, 3, 4, 6};
    for (int i = 0; i < USER_MAX; i++)
        assert_int_equal(conversations_take(c, rest[i], 100, 51, &busy[i]), 0);
    assert_int_equal(conversations_add(c, 7, 100, 51, &one), -EBUSY);
    assert_int_equal(conversations_add(c, 7, 200, 51, &one), 0);
    conversations_put(c, one, NULL, 0, 51);
    for (int i = 0; i < USER_MAX; i++)
        conversations_put(c, busy[i], busy[i]->past, busy[i]->bytes, 52);
    conversations_free(c);
}

static void a_full_table_costs_who_has_most(void **state)
{
    (void)state;
    struct conversations *c = new_table();
    for (uint64_t i = 0; i < 4; i++)
        keep(c, 1 + i, 100, 100 + i);
    for (uint64_t i = 0; i < 3; i++)
        keep(c, 10 + i, 200, 50 + i); /* older than all of the other user */
    keep(c, 20, 300, 1);
    assert_int_equal(conversations_count(c), MAX);
    keep(c, 30, 400, 200);
    assert_int_equal(conversations_count(c), MAX);
    assert_int_equal(released[1], 1);
    assert_int_equal(released[10], 0);
    assert_int_equal(released[20], 0);
    conversations_free(c);
}

static bool is_odd(const void *ctx, const struct conversation *one)
{
    assert_ptr_equal(ctx, released);
    return *(const int *)one->past % 2 == 1;
}

static void the_oldest_that_matches(void **state)
{
    (void)state;
    struct conversations *c = new_table();
    struct conversation *one;
    for (uint64_t id = 1; id <= 4; id++)
        keep(c, id, (uint32_t)id, 10 * id);
    assert_int_equal(conversations_take(c, 1, 1, 50, &one), 0);
    assert_int_equal(conversations_oldest(c, is_odd, released)->id, 3);
    assert_int_equal(released[3], 0);
    assert_true(conversations_forget_oldest(c, is_odd, released)); /* 1 is busy */
    assert_int_equal(released[3], 1);
    assert_false(conversations_forget_oldest(c, is_odd, released));
    assert_true(conversations_forget_oldest(c, NULL, NULL));
    assert_int_equal(released[2], 1);
    conversations_put(c, one, one->past, one->bytes, 50);
    conversations_free(c);
    for (int id = 1; id <= 4; id++)
        assert_int_equal(released[id], 1);
}

/* What is saved goes with the past that it is of. */
static void what_is_saved(void **state)
{
    (void)state;
    struct conversations *c = new_table();
    struct conversation *one;
    int a, b;
    keep(c, 1, 100, 5);
    conversations_oldest(c, NULL, NULL)->saved = &a;
    assert_int_equal(conversations_take(c, 1, 100, 6, &one), 0);
    assert_ptr_equal(one->saved, &a);
    conversations_put(c, one, one->past, one->bytes, 7); /* as it was */
    assert_ptr_equal(one->saved, &a);
    assert_int_equal(conversations_take(c, 1, 100, 8, &one), 0);
    one->saved = NULL; /* the caller took past and all */
    free(one->past);
    one->past = NULL;
    one->saved = &b;
    conversations_put(c, one, past_of(2), BYTES, 9);
    assert_ptr_equal(one->saved, &b);
    assert_int_equal(released[1], 0);
    assert_int_equal(conversations_forget(c, 1, 100, 10), 0);
    assert_int_equal(released[2], 1);
    assert_ptr_equal(saved_with, &b);
    keep(c, 3, 100, 11);
    assert_true(conversations_forget_oldest(c, NULL, NULL));
    assert_null(saved_with); /* nothing of the one before is left */
    conversations_free(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(whose_it_is),
        cmocka_unit_test(what_it_keeps),
        cmocka_unit_test(idle_ones_expire),
        cmocka_unit_test(a_full_user_loses_his_oldest),
        cmocka_unit_test(a_full_table_costs_who_has_most),
        cmocka_unit_test(the_oldest_that_matches),
        cmocka_unit_test(what_is_saved),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
