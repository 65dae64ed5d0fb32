/* test_cost.c: what the scheduler learns from the times of steps (sentence 9 of the policy). */
#include "sched/sched.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

static struct sched *make(void)
{
    struct sched *s;
    struct sched_config c = {
        .max_sequences = 16, .max_running = 16, .step_rows = 512, .n_models = 1};
    assert_int_equal(sched_new(&c, &s), 0);
    sched_set_pages(s, 0, 100);
    sched_set_available(s, 0, 100);
    return s;
}

static uint32_t add(struct sched *s, uint32_t uid, uint32_t n_rows, uint32_t n_pages)
{
    uint32_t slot = UINT32_MAX;
    struct sched_request r = {.uid = uid, .n_rows = n_rows, .n_pages = n_pages};
    assert_int_equal(sched_add(s, &r, 1, &slot, NULL), 0);
    return slot;
}

static void test_prefill_budget_follows_the_measured_times(void **state)
{
    (void)state;
    struct sched *s = make();
    assert_int_equal(sched_prefill_budget(s, 0, 0), 512);
    assert_int_equal(sched_prefill_budget(s, 0, 1), 1); /* nothing was measured */
    sched_measured(s, 0, 512, 0, 51200);                /* 100 us a row */
    sched_measured(s, 0, 0, 1, 10000);
    sched_measured(s, 0, 0, 32, 40000);
    assert_int_equal(sched_prefill_budget(s, 0, 1), 50);
    assert_int_equal(sched_prefill_budget(s, 0, 30), 200);
    assert_int_equal(sched_prefill_budget(s, 0, 8), 50); /* the nearest below that is known */
    assert_int_equal(sched_prefill_budget(s, 0, 0), 512);
    for (int i = 0; i < 200; i++)
        sched_measured(s, 0, 10, 1, 10000 + 10 * 1000); /* rows became dearer */
    assert_true(sched_prefill_budget(s, 0, 1) <= 6);
    for (int i = 0; i < 200; i++)
        sched_measured(s, 0, 10, 1, 10000);
    assert_int_equal(sched_prefill_budget(s, 0, 1), 512);
    sched_free(s);
}

/* A step without decodes is as long as the model may have it, once that is known to be over soon.
 */
static void test_long_steps_are_for_fast_models(void **state)
{
    (void)state;
    struct sched *s = make();
    struct sched_work w[16];
    uint32_t model;
    sched_set_rows(s, 0, 1024);
    assert_int_equal(sched_prefill_budget(s, 0, 0), 512); /* nothing was measured */
    sched_measured(s, 0, 512, 0, 512 * 60);               /* 60 us a row: 61 ms */
    assert_int_equal(sched_prefill_budget(s, 0, 0), 512);
    for (int i = 0; i < 200; i++)
        sched_measured(s, 0, 512, 0, 512 * 40);
    assert_int_equal(sched_prefill_budget(s, 0, 0), 1024);

    uint32_t a = add(s, 1, 1, 1), b = add(s, 2, 1500, 90);
    sched_measured(s, 0, 0, 1, 1000000); /* room for far more beside a decode */
    assert_int_equal(sched_plan(s, 1, &model, w, 16), 2);
    assert_int_equal(w[0].n_rows, 1);
    assert_int_equal(w[1].n_rows, 511);
    sched_remove(s, a);
    assert_int_equal(sched_plan(s, 2, &model, w, 16), 1);
    assert_int_equal(w[0].n_rows, 1024);
    sched_remove(s, b);
    sched_set_rows(s, 0, 100);
    assert_int_equal(sched_prefill_budget(s, 0, 0), 512);
    sched_free(s);
}

/* The first mixed step made a guess at what its decodes take: the next has them alone, and then one
 * of 65. */
static void test_decodes_are_measured_alone_now_and_then(void **state)
{
    (void)state;
    struct sched *s = make();
    struct sched_work w[16];
    uint32_t model, alone = 0;
    uint32_t a = add(s, 1, 1, 1);
    add(s, 2, 1000000, 90);
    for (int step = 0; step < 2 + 130; step++) {
        uint32_t n = sched_plan(s, 1, &model, w, 16);
        bool prefill = n == 2;
        assert_int_equal(w[0].slot, a);
        for (uint32_t i = 0; i < n; i++)
            sched_ran(s, w[i].slot, w[i].n_rows, w[i].slot == a);
        sched_measured(s, 0, prefill ? w[1].n_rows : 0, 1,
                       10000 + (prefill ? w[1].n_rows : 0) * 100);
        alone += !prefill;
        assert_int_equal(prefill, step != 1 && step != 66 && step != 131);
    }
    assert_int_equal(alone, 3);
    assert_in_range(sched_prefill_budget(s, 0, 1), 45, 55);
    sched_free(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_prefill_budget_follows_the_measured_times),
        cmocka_unit_test(test_long_steps_are_for_fast_models),
        cmocka_unit_test(test_decodes_are_measured_alone_now_and_then),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
