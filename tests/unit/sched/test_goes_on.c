/* test_goes_on.c: when a step may begin without a plan, the plan would have been the same. */
#include "sched/sched.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#define ROOM 64u

struct world {
    struct sched *s;
    struct sched_work work[ROOM]; /* the step under way */
    uint32_t n, model;
};

static void begin(struct world *w, uint32_t max_running, uint32_t n_models)
{
    struct sched_config c = {
        .max_sequences = 64, .max_running = max_running, .step_rows = 32, .n_models = n_models};
    *w = (struct world){0};
    assert_int_equal(sched_new(&c, &w->s), 0);
    for (uint32_t m = 0; m < n_models; m++) {
        sched_set_pages(w->s, m, 1000);
        sched_set_available(w->s, m, 1000);
    }
}

static uint32_t add(struct world *w, uint32_t model, uint32_t uid, uint32_t n_rows)
{
    uint32_t slot = UINT32_MAX;
    struct sched_request r = {.model = model, .uid = uid, .n_rows = n_rows, .n_pages = 10};
    assert_int_equal(sched_add(w->s, &r, 0, &slot, NULL), 0);
    return slot;
}

static uint32_t plan(struct world *w)
{
    w->n = sched_plan(w->s, 0, &w->model, w->work, ROOM);
    return w->n;
}

static bool goes_on(struct world *w)
{
    bool goes = sched_goes_on(w->s, 0, w->model, w->work, w->n);
    sched_check(w->s);
    return goes;
}

static void ran(struct world *w)
{
    for (uint32_t i = 0; i < w->n; i++)
        sched_ran(w->s, w->work[i].slot, w->work[i].n_rows, 1);
    sched_check(w->s);
}

static void test_decodes_alone_go_on(void **state)
{
    (void)state;
    struct world w;
    begin(&w, 8, 1);
    uint32_t a = add(&w, 0, 1, 1), b = add(&w, 0, 1, 1);
    assert_int_equal(plan(&w), 2);
    assert_true(goes_on(&w));
    ran(&w);
    assert_true(goes_on(&w)); /* the step that began without a plan is under way */
    sched_park(w.s, b);
    assert_false(goes_on(&w)); /* it is in the step and will not be in the next */
    sched_resume(w.s, b);
    sched_remove(w.s, b);
    w.n = 1;
    w.work[0].slot = a;
    assert_true(goes_on(&w)); /* the step was over for b, and is for those that are left */
    w.n = 0;
    assert_false(goes_on(&w));
    sched_free(w.s);
}

static void test_a_prompt_stops_it(void **state)
{
    (void)state;
    struct world w;
    begin(&w, 8, 1);
    add(&w, 0, 1, 40);
    assert_int_equal(plan(&w), 1);
    assert_false(goes_on(&w));
    sched_ran(w.s, w.work[0].slot, w.work[0].n_rows, 0);
    assert_int_equal(plan(&w), 1);
    assert_int_equal(w.work[0].n_rows, 8); /* its last rows draw a token, and it decodes then */
    assert_false(goes_on(&w));
    ran(&w);
    assert_int_equal(plan(&w), 1);
    assert_true(goes_on(&w));
    add(&w, 0, 1, 3);
    assert_false(goes_on(&w));
    ran(&w);
    assert_int_equal(plan(&w), 2);
    sched_free(w.s);
}

static void test_who_waits_stops_it_where_he_could_start(void **state)
{
    (void)state;
    struct world w;
    begin(&w, 3, 1);
    for (int i = 0; i < 5; i++)
        add(&w, 0, 1, 1);
    assert_int_equal(plan(&w), 3);
    assert_true(goes_on(&w)); /* two wait, and every slot is taken */
    sched_ran(w.s, w.work[0].slot, 1, 0);
    sched_remove(w.s, w.work[0].slot);
    w.work[0] = w.work[--w.n];
    assert_false(goes_on(&w));
    sched_free(w.s);
}

static void test_slots_that_are_kept_stop_it_for_newcomers_alone(void **state)
{
    (void)state;
    struct world w;
    begin(&w, 16, 1); /* two of them are for uids that run nothing */
    for (int i = 0; i < 20; i++)
        add(&w, 0, 1, 1);
    assert_int_equal(plan(&w), 14);
    assert_true(goes_on(&w));
    struct sched_request batch = {.uid = 2, .n_rows = 1, .n_pages = 1, .class = SCHED_CLASS_BATCH};
    uint32_t slot;
    assert_int_equal(sched_add(w.s, &batch, 0, &slot, NULL), 0);
    assert_true(goes_on(&w)); /* no newcomer before it has aged */
    assert_false(sched_goes_on(w.s, 1000000000, 0, w.work, w.n) &&
                 sched_goes_on(w.s, 2000000000, 0, w.work, w.n) &&
                 sched_goes_on(w.s, 3000000000, 0, w.work, w.n));
    sched_remove(w.s, slot);
    assert_true(goes_on(&w));
    add(&w, 0, 3, 1);
    assert_false(goes_on(&w));
    sched_free(w.s);
}

static void test_another_model_has_its_turn(void **state)
{
    (void)state;
    struct world w;
    begin(&w, 8, 2);
    uint32_t first = add(&w, 0, 1, 1), other = add(&w, 1, 1, 1);
    assert_int_equal(plan(&w), 1);
    assert_false(goes_on(&w));
    sched_remove(w.s, w.model == 0 ? other : first);
    assert_true(goes_on(&w));
    sched_free(w.s);
}

/* One to four uids with one to seven sequences each: whenever it goes on, the plan after the step
 * is all of the step again, though now and then somebody is skipped for another's sake. */
static void test_the_plan_would_have_been_the_same(void **state)
{
    (void)state;
    uint32_t n_goes = 0, n_stops = 0, random = 1;
    for (uint32_t day = 0; day < 200; day++) {
        struct world w;
        begin(&w, 64, 1);
        uint32_t n_uids = 1 + day % 4;
        for (uint32_t uid = 0; uid < n_uids; uid++)
            for (uint32_t i = 0; i <= (day / 4 + 3 * uid) % 7; i++)
                add(&w, 0, 1 + uid, 1);
        assert_true(plan(&w) > 0);
        for (uint32_t step = 0; step < 100; step++) {
            bool goes = goes_on(&w);
            uint32_t n = w.n;
            ran(&w);
            random = random * 1664525 + 1013904223;
            if (goes && (random >> 24) % 2 == 0) { /* one step more without a plan */
                n_goes++;
                continue;
            }
            uint32_t next = plan(&w);
            if (goes)
                assert_int_equal(next, n);
            n_goes += goes;
            n_stops += !goes;
        }
        sched_free(w.s);
    }
    print_message("%u steps went on, %u did not\n", n_goes, n_stops);
    assert_true(n_goes > 1000 && n_stops > 1000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_decodes_alone_go_on),
        cmocka_unit_test(test_a_prompt_stops_it),
        cmocka_unit_test(test_who_waits_stops_it_where_he_could_start),
        cmocka_unit_test(test_slots_that_are_kept_stop_it_for_newcomers_alone),
        cmocka_unit_test(test_another_model_has_its_turn),
        cmocka_unit_test(test_the_plan_would_have_been_the_same),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
