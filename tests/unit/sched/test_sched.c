/* test_sched.c: the policy of sched.h, each sentence of it. */
#include "sched/sched.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

static struct sched *make(uint32_t max_running, uint32_t step_rows, uint32_t n_models,
                          uint32_t n_pages)
{
    struct sched *s;
    struct sched_config c = {16, max_running, step_rows, n_models};
    assert_int_equal(sched_new(&c, &s), 0);
    for (uint32_t m = 0; m < n_models; m++)
        sched_set_pages(s, m, n_pages);
    return s;
}

static uint32_t add(struct sched *s, uint32_t model, uint32_t n_rows, uint32_t n_pages)
{
    uint32_t slot = UINT32_MAX;
    struct sched_request r = {model, 1000, n_rows, n_pages};
    assert_int_equal(sched_add(s, &r, 0, &slot), 0);
    sched_check(s);
    return slot;
}

static void test_decodes_come_before_prefill(void **state)
{
    (void)state;
    struct sched *s = make(4, 8, 1, 100);
    struct sched_work w[8];
    uint32_t model = 9;
    uint32_t prompt = add(s, 0, 20, 1), decode = add(s, 0, 1, 1);
    assert_int_equal(sched_plan(s, 0, &model, w, 8), 2);
    assert_int_equal(model, 0);
    assert_int_equal(w[0].slot, decode);
    assert_int_equal(w[0].n_rows, 1);
    assert_int_equal(w[1].slot, prompt);
    assert_int_equal(w[1].n_rows, 7); /* what the budget leaves */
    sched_free(s);
}

static void test_a_prompt_runs_in_chunks_until_it_owes_one_row(void **state)
{
    (void)state;
    struct sched *s = make(4, 8, 1, 100);
    struct sched_work w[8];
    uint32_t model, slot = add(s, 0, 18, 1);
    const uint32_t expected[] = {8, 8, 2, 1, 1};
    for (int i = 0; i < 5; i++) {
        assert_int_equal(sched_plan(s, 0, &model, w, 8), 1);
        assert_int_equal(w[0].n_rows, expected[i]);
        sched_ran(s, slot, w[0].n_rows, i >= 2);
    }
    sched_free(s);
}

static void test_waiting_is_first_come_first_served(void **state)
{
    (void)state;
    struct sched *s = make(8, 8, 1, 10);
    struct sched_work w[8];
    uint32_t model;
    uint32_t a = add(s, 0, 1, 6), big = add(s, 0, 1, 10), small = add(s, 0, 1, 1);
    assert_int_equal(sched_plan(s, 0, &model, w, 8), 1); /* big does not fit, small may not pass */
    assert_int_equal(w[0].slot, a);
    assert_int_equal(sched_position(s, a), 0);
    assert_int_equal(sched_position(s, big), 0);
    assert_int_equal(sched_position(s, small), 1);
    sched_remove(s, a);
    assert_int_equal(sched_plan(s, 0, &model, w, 8), 1);
    assert_int_equal(w[0].slot, big);
    sched_check(s);
    sched_free(s);
}

static void test_running_slots_are_bounded(void **state)
{
    (void)state;
    struct sched *s = make(2, 8, 1, 100);
    struct sched_work w[8];
    uint32_t model;
    for (int i = 0; i < 5; i++)
        add(s, 0, 1, 1);
    assert_int_equal(sched_plan(s, 0, &model, w, 8), 2);
    struct sched_counts c = sched_count(s);
    assert_int_equal(c.n_running, 2);
    assert_int_equal(c.n_waiting, 3);
    sched_check(s);
    sched_free(s);
}

static void test_models_take_turns(void **state)
{
    (void)state;
    struct sched *s = make(8, 8, 3, 100);
    struct sched_work w[8];
    uint32_t model, seen[3] = {0};
    uint32_t slots[3];
    for (uint32_t m = 0; m < 3; m++)
        slots[m] = add(s, m, 1, 1);
    for (int i = 0; i < 30; i++) {
        assert_int_equal(sched_plan(s, 0, &model, w, 8), 1);
        assert_int_equal(w[0].slot, slots[model]);
        sched_ran(s, w[0].slot, 1, 1);
        seen[model]++;
    }
    for (int m = 0; m < 3; m++)
        assert_int_equal(seen[m], 10);
    sched_free(s);
}

static void test_a_parked_sequence_gets_no_rows_and_keeps_its_place(void **state)
{
    (void)state;
    struct sched *s = make(8, 8, 1, 100);
    struct sched_work w[8];
    uint32_t model;
    uint32_t a = add(s, 0, 1, 1), b = add(s, 0, 1, 1);
    assert_int_equal(sched_plan(s, 0, &model, w, 8), 2);
    sched_park(s, a);
    sched_park(s, a); /* twice is once */
    assert_int_equal(sched_count(s).n_parked, 1);
    assert_int_equal(sched_plan(s, 0, &model, w, 8), 1);
    assert_int_equal(w[0].slot, b);
    sched_park(s, b);
    assert_int_equal(sched_plan(s, 0, &model, w, 8), 0);
    sched_resume(s, a);
    sched_resume(s, b);
    assert_int_equal(sched_plan(s, 0, &model, w, 8), 2);
    assert_int_equal(sched_count(s).n_parked, 0);
    sched_free(s);
}

static void test_what_can_never_fit_is_refused(void **state)
{
    (void)state;
    struct sched *s = make(8, 8, 1, 10);
    uint32_t slot = 77;
    struct sched_request r = {0, 0, 1, 11};
    assert_int_equal(sched_add(s, &r, 0, &slot), -E2BIG);
    assert_int_equal(slot, 77);
    r.n_pages = 1;
    for (int i = 0; i < 16; i++)
        assert_int_equal(sched_add(s, &r, 0, &slot), 0);
    assert_int_equal(sched_add(s, &r, 0, &slot), -ENOSPC);
    sched_remove(s, slot);
    assert_int_equal(sched_add(s, &r, 0, &slot), 0);
    sched_check(s);
    sched_free(s);
}

/* A thousand random lives: invariants hold at every step, everybody finishes. */
static void test_random_traffic_drains(void **state)
{
    (void)state;
    struct sched *s = make(5, 16, 2, 12);
    uint32_t left[16] = {0}, x = 3, finished = 0, model;
    bool live[16] = {false};
    struct sched_work w[16];
    for (int step = 0; finished < 1000 && step < 200000; step++) {
        struct sched_request r = {(x >> 9) & 1, 0, 1 + ((x >> 12) % 40), 1 + ((x >> 20) % 6)};
        uint32_t slot;
        x = x * 1664525u + 1013904223u;
        if ((x >> 30) == 0 && sched_add(s, &r, 0, &slot) == 0) {
            live[slot] = true;
            left[slot] = 1 + (x >> 8) % 10;
        }
        uint32_t n = sched_plan(s, 0, &model, w, 16), rows = 0;
        for (uint32_t i = 0; i < n; i++) {
            assert_true(live[w[i].slot]);
            rows += w[i].n_rows;
            bool last = --left[w[i].slot] == 0;
            sched_ran(s, w[i].slot, w[i].n_rows, !last);
            if (last) {
                sched_remove(s, w[i].slot);
                live[w[i].slot] = false;
                finished++;
            }
        }
        assert_true(rows <= 16);
        sched_check(s);
    }
    assert_int_equal(finished, 1000);
    sched_free(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_decodes_come_before_prefill),
        cmocka_unit_test(test_a_prompt_runs_in_chunks_until_it_owes_one_row),
        cmocka_unit_test(test_waiting_is_first_come_first_served),
        cmocka_unit_test(test_running_slots_are_bounded),
        cmocka_unit_test(test_models_take_turns),
        cmocka_unit_test(test_a_parked_sequence_gets_no_rows_and_keeps_its_place),
        cmocka_unit_test(test_what_can_never_fit_is_refused),
        cmocka_unit_test(test_random_traffic_drains),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
