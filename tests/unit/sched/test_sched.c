/* test_sched.c: the policy of sched.h, each sentence of it. */
#include "sched/sched.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

/* All of them free: pages as such are test_pages.c's business. */
static void set_pages(struct sched *s, uint32_t model, uint32_t n_pages)
{
    sched_set_pages(s, model, n_pages);
    sched_set_available(s, model, n_pages);
}

static struct sched *make(uint32_t max_running, uint32_t step_rows, uint32_t n_models,
                          uint32_t n_pages)
{
    struct sched *s;
    struct sched_config c = {.max_sequences = 16,
                             .max_running = max_running,
                             .step_rows = step_rows,
                             .n_models = n_models};
    assert_int_equal(sched_new(&c, &s), 0);
    for (uint32_t m = 0; m < n_models; m++)
        set_pages(s, m, n_pages);
    return s;
}

static uint32_t add(struct sched *s, uint32_t model, uint32_t n_rows, uint32_t n_pages)
{
    uint32_t slot = UINT32_MAX;
    struct sched_request r = {.model = model, .uid = 1000, .n_rows = n_rows, .n_pages = n_pages};
    assert_int_equal(sched_add(s, &r, 0, &slot, NULL), 0);
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
    assert_int_equal(w[1].n_rows, 1); /* until steps were measured */
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
    uint32_t a = add(s, 0, 96, 6), big = add(s, 0, 160, 10), small = add(s, 0, 1, 1);
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
    struct sched_request r = {.n_rows = 1, .n_pages = 11};
    assert_int_equal(sched_add(s, &r, 0, &slot, NULL), -E2BIG);
    assert_int_equal(slot, 77);
    r.n_pages = 1;
    for (int i = 0; i < 16; i++)
        assert_int_equal(sched_add(s, &r, 0, &slot, NULL), 0);
    assert_int_equal(sched_add(s, &r, 0, &slot, NULL), -ENOSPC);
    sched_remove(s, slot);
    assert_int_equal(sched_add(s, &r, 0, &slot, NULL), 0);
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
        struct sched_request r = {
            .model = (x >> 9) & 1, .n_rows = 1 + ((x >> 12) % 40), .n_pages = 1 + ((x >> 20) % 6)};
        uint32_t slot;
        x = x * 1664525u + 1013904223u;
        if ((x >> 30) == 0 && sched_add(s, &r, 0, &slot, NULL) == 0) {
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

/* ---- several uids ---------------------------------------------------------------------------- */

struct ask {
    uint32_t uid, n_rows, n_pages;
    enum sched_class class;
    uint64_t deadline_us;
};

static uint32_t add_at(struct sched *s, uint64_t now_us, struct ask a)
{
    uint32_t slot = UINT32_MAX;
    struct sched_request r = {.uid = a.uid,
                              .n_rows = a.n_rows > 0 ? a.n_rows : 1,
                              .n_pages = a.n_pages > 0 ? a.n_pages : 1,
                              .class = a.class,
                              .deadline_us = a.deadline_us};
    assert_int_equal(sched_add(s, &r, now_us, &slot, NULL), 0);
    sched_check(s);
    return slot;
}

/* The next to start when one slot is all there is: plans, and lets it end. */
static uint32_t next_start(struct sched *s, uint64_t now_us)
{
    struct sched_work w[8];
    uint32_t model;
    assert_int_equal(sched_plan(s, now_us, &model, w, 8), 1);
    sched_check(s);
    sched_ran(s, w[0].slot, w[0].n_rows, 0);
    sched_remove(s, w[0].slot);
    return w[0].slot;
}

static void test_starts_go_by_class_then_deadline_then_arrival(void **state)
{
    (void)state;
    struct sched *s = make(1, 8, 1, 100);
    uint32_t batch = add_at(s, 1, (struct ask){.class = SCHED_CLASS_BATCH, .deadline_us = 5});
    uint32_t normal = add_at(s, 1, (struct ask){.class = SCHED_CLASS_NORMAL});
    uint32_t first = add_at(s, 1, (struct ask){.class = SCHED_CLASS_INTERACTIVE});
    uint32_t second = add_at(s, 1, (struct ask){.class = SCHED_CLASS_INTERACTIVE});
    uint32_t late = add_at(s, 1, (struct ask){.deadline_us = 900});
    uint32_t early = add_at(s, 1, (struct ask){.deadline_us = 800});
    const uint32_t expected[] = {early, late, first, second, normal, batch};
    for (uint32_t i = 0; i < 6; i++)
        assert_int_equal(sched_position(s, expected[i]), i);
    for (uint32_t i = 0; i < 6; i++)
        assert_int_equal(next_start(s, 1), expected[i]);
    sched_free(s);
}

static void test_starts_go_by_what_a_uid_was_served(void **state)
{
    (void)state;
    struct sched *s = make(1, 8, 1, 100);
    uint32_t a[3], b[3];
    for (int i = 0; i < 3; i++)
        a[i] = add_at(s, 1, (struct ask){.uid = 1, .deadline_us = 7}); /* is no matter here */
    for (int i = 0; i < 3; i++)
        b[i] = add_at(s, 1, (struct ask){.uid = 2});
    const uint32_t expected[] = {a[0], b[0], a[1], b[1], a[2], b[2]};
    assert_true(sched_position(s, b[0]) < sched_position(s, a[2]));
    for (int i = 0; i < 6; i++)
        assert_int_equal(next_start(s, 1), expected[i]);
    sched_free(s);
}

static void test_what_running_sequences_owe_counts_for_starts(void **state)
{
    (void)state;
    struct sched *s = make(3, 8, 1, 100);
    struct sched_work w[8];
    uint32_t model;
    uint32_t a = add_at(s, 1, (struct ask){.uid = 1, .n_rows = 50});
    uint32_t a2 = add_at(s, 1, (struct ask){.uid = 1, .n_rows = 50});
    uint32_t b = add_at(s, 1, (struct ask){.uid = 2, .n_rows = 20});
    uint32_t b2 = add_at(s, 1, (struct ask){.uid = 2, .n_rows = 20});
    sched_plan(s, 1, &model, w, 8);
    assert_int_equal(sched_estimate_us(s, a, 9), 0);
    assert_int_equal(sched_estimate_us(s, b, 9), 0);
    assert_int_equal(sched_estimate_us(s, b2, 9), 0);
    assert_true(sched_estimate_us(s, a2, 9) >= 9); /* the one that waits */
    sched_free(s);
}

static void test_each_age_is_one_class_up(void **state)
{
    (void)state;
    struct sched_config c = {
        .max_sequences = 16, .max_running = 1, .step_rows = 8, .n_models = 1, .age_us = 1000};
    struct sched *s;
    struct sched_work w[8];
    uint32_t model;
    assert_int_equal(sched_new(&c, &s), 0);
    set_pages(s, 0, 100);
    uint32_t runs = add_at(s, 1, (struct ask){0});
    sched_plan(s, 1, &model, w, 8);
    uint32_t batch = add_at(s, 1, (struct ask){.class = SCHED_CLASS_BATCH});
    uint32_t normal = add_at(s, 900, (struct ask){.class = SCHED_CLASS_NORMAL});
    assert_int_equal(sched_position(s, batch), 1);
    sched_plan(s, 1002, &model, w, 8); /* as normal, it came first */
    assert_int_equal(sched_position(s, batch), 0);
    assert_int_equal(sched_position(s, normal), 1);
    sched_plan(s, 2100, &model, w, 8);
    uint32_t fresh = add_at(s, 2200, (struct ask){.deadline_us = 1});
    sched_plan(s, 2200, &model, w, 8); /* as interactive, but a deadline is before none */
    assert_int_equal(sched_position(s, fresh), 0);
    assert_int_equal(sched_position(s, batch), 1);
    sched_plan(s, 3101, &model, w, 8); /* and now before all of its uid */
    assert_int_equal(sched_position(s, batch), 0);
    assert_int_equal(sched_position(s, normal), 1); /* this one has become interactive, twice */
    assert_int_equal(sched_position(s, fresh), 2);
    sched_check(s);
    sched_remove(s, runs);
    sched_free(s);
}

static void test_parked_for_a_moment_ages_on(void **state)
{
    (void)state;
    struct sched_config c = {
        .max_sequences = 16, .max_running = 1, .step_rows = 8, .n_models = 1, .age_us = 1000};
    struct sched *s;
    struct sched_work w[8];
    uint32_t model;
    assert_int_equal(sched_new(&c, &s), 0);
    set_pages(s, 0, 100);
    add_at(s, 1, (struct ask){0});
    sched_plan(s, 1, &model, w, 8);
    uint32_t often = add_at(s, 1, (struct ask){.class = SCHED_CLASS_NORMAL});
    uint32_t long_time = add_at(s, 1, (struct ask){.class = SCHED_CLASS_NORMAL});
    uint32_t fresh = add_at(s, 1, (struct ask){.deadline_us = 1});
    assert_int_equal(sched_position(s, often), 1);
    for (uint64_t now = 100; now <= 2100; now += 100) {
        sched_park(s, often);
        sched_resume(s, often);
        if (now == 500)
            sched_park(s, long_time);
        if (now == 1500)
            sched_resume(s, long_time);
        sched_plan(s, now, &model, w, 8);
        sched_check(s);
    }
    assert_int_equal(sched_position(s, often), 0); /* twice up: before all of its uid */
    assert_int_equal(sched_position(s, fresh), 1);
    assert_int_equal(sched_position(s, long_time), 2); /* not once: it was parked when due */
    sched_plan(s, 3200, &model, w, 8);
    assert_int_equal(sched_position(s, long_time), 1);
    sched_free(s);
}

static void test_newcomers_have_slots_but_not_for_batch(void **state)
{
    (void)state;
    struct sched *s = make(4, 8, 1, 100);
    struct sched_work w[8];
    uint32_t model;
    for (int i = 0; i < 6; i++)
        add_at(s, 1, (struct ask){.uid = 1});
    assert_int_equal(sched_plan(s, 1, &model, w, 8), 3);
    uint32_t batch = add_at(s, 1, (struct ask){.uid = 2, .class = SCHED_CLASS_BATCH});
    assert_int_equal(sched_plan(s, 1, &model, w, 8), 3);
    uint32_t other = add_at(s, 1, (struct ask){.uid = 3});
    assert_int_equal(sched_plan(s, 1, &model, w, 8), 4);
    assert_int_equal(sched_estimate_us(s, other, 1), 0);
    sched_remove(s, other);
    assert_int_equal(sched_plan(s, 20000001, &model, w, 8), 3); /* it aged by one class */
    assert_int_equal(sched_plan(s, 30000002, &model, w, 8), 4); /* and by the next */
    assert_int_equal(sched_estimate_us(s, batch, 1), 0);
    sched_free(s);
}

static uint32_t starts_of_one_uid(uint32_t max_running, uint32_t newcomer_slots,
                                  enum sched_class class)
{
    struct sched_config c = {.max_sequences = 16,
                             .max_running = max_running,
                             .step_rows = 64,
                             .n_models = 1,
                             .newcomer_slots = newcomer_slots};
    struct sched *s;
    struct sched_work w[16];
    uint32_t model;
    assert_int_equal(sched_new(&c, &s), 0);
    set_pages(s, 0, 100);
    for (int i = 0; i < 16; i++)
        add_at(s, 1, (struct ask){.uid = 1, .class = class});
    uint32_t n = sched_plan(s, 1, &model, w, 16);
    sched_check(s);
    sched_free(s);
    return n;
}

static void test_newcomer_slots_at_their_edges(void **state)
{
    (void)state;
    assert_int_equal(starts_of_one_uid(8, 0, SCHED_CLASS_NORMAL), 7);
    assert_int_equal(starts_of_one_uid(3, 0, SCHED_CLASS_NORMAL), 3);
    assert_int_equal(starts_of_one_uid(8, SCHED_NO_NEWCOMER_SLOTS, SCHED_CLASS_NORMAL), 8);
    assert_int_equal(starts_of_one_uid(8, 1, SCHED_CLASS_NORMAL), 7);
    assert_int_equal(starts_of_one_uid(8, 7, SCHED_CLASS_NORMAL), 1);
    assert_int_equal(starts_of_one_uid(8, 8, SCHED_CLASS_BATCH), 1); /* one is for everybody */
    assert_int_equal(starts_of_one_uid(8, UINT32_MAX - 1, SCHED_CLASS_BATCH), 1);
    assert_int_equal(starts_of_one_uid(1, 5, SCHED_CLASS_BATCH), 1);
}

/* With skips_max 1 nobody misses two steps in a row, however far its uid is ahead. */
static void test_skips_max_1_is_every_other_step(void **state)
{
    (void)state;
    struct sched_config c = {.max_sequences = 16,
                             .max_running = 16,
                             .step_rows = 64,
                             .n_models = 1,
                             .skips_max = 1,
                             .lag_rows = 1};
    struct sched *s;
    struct sched_work w[16];
    uint32_t model, ran[16] = {0};
    bool before[16];
    assert_int_equal(sched_new(&c, &s), 0);
    set_pages(s, 0, 100);
    for (int i = 0; i < 9; i++)
        add_at(s, 1, (struct ask){.uid = i > 0});
    memset(before, true, sizeof before);
    for (int step = 0; step < 200; step++) {
        bool now[16] = {false};
        uint32_t n = sched_plan(s, 1, &model, w, 16);
        for (uint32_t i = 0; i < n; i++) {
            now[w[i].slot] = true;
            ran[w[i].slot]++;
            sched_ran(s, w[i].slot, 1, 1);
        }
        for (int i = 0; i < 9; i++)
            assert_true(now[i] || before[i]);
        memcpy(before, now, sizeof before);
    }
    assert_int_equal(ran[0], 200);
    assert_in_range(ran[1], 100, 110);
    sched_free(s);
}

static void test_lag_and_skips_may_be_as_large_as_can_be(void **state)
{
    (void)state;
    struct sched_config c = {.max_sequences = 16,
                             .max_running = 16,
                             .step_rows = 64,
                             .n_models = 1,
                             .skips_max = UINT32_MAX,
                             .lag_rows = UINT32_MAX,
                             .credit_rows = UINT32_MAX,
                             .age_us = UINT32_MAX};
    struct sched *s;
    struct sched_work w[16];
    uint32_t model;
    assert_int_equal(sched_new(&c, &s), 0);
    set_pages(s, 0, 100);
    for (int i = 0; i < 9; i++)
        add_at(s, 1, (struct ask){.uid = i > 0});
    for (int step = 0; step < 100; step++) {
        assert_int_equal(sched_plan(s, 1, &model, w, 16), 9); /* nobody is held back */
        for (uint32_t i = 0; i < 9; i++)
            sched_ran(s, w[i].slot, 1, 1);
        sched_check(s);
    }
    sched_free(s);
}

/* ---- limits of a uid ------------------------------------------------------------------------- */

static int try_add(struct sched *s, uint32_t uid, uint32_t n_rows, uint32_t n_pages,
                   uint64_t now_us, enum sched_limit *ret_limit)
{
    uint32_t slot;
    struct sched_request r = {.uid = uid, .n_rows = n_rows, .n_pages = n_pages};
    *ret_limit = SCHED_LIMIT_NONE;
    int rc = sched_add(s, &r, now_us, &slot, ret_limit);
    sched_check(s);
    return rc;
}

static void test_limits_that_refuse_name_themselves(void **state)
{
    (void)state;
    struct sched *s = make(2, 8, 1, 100);
    enum sched_limit limit;
    struct sched_policy p = {.max_waiting = 2, .max_pages = 10};
    assert_int_equal(sched_set_policy(s, 5, &p), 0);
    assert_int_equal(try_add(s, 5, 1, 11, 1, &limit), -E2BIG);
    assert_int_equal(try_add(s, 5, 1, 10, 1, &limit), 0);
    assert_int_equal(try_add(s, 5, 1, 1, 1, &limit), 0);
    assert_int_equal(try_add(s, 5, 1, 1, 1, &limit), -EDQUOT);
    assert_int_equal(limit, SCHED_LIMIT_WAITING);
    assert_int_equal(try_add(s, 6, 1, 11, 1, &limit), 0);
    assert_int_equal(limit, SCHED_LIMIT_NONE);
    p.weight = SCHED_WEIGHT_MAX + 1;
    assert_int_equal(sched_set_policy(s, 5, &p), -EINVAL);
    p = (struct sched_policy){.best_class = (enum sched_class)3};
    assert_int_equal(sched_set_policy(s, 5, &p), -EINVAL);
    sched_free(s);
}

static void test_tokens_a_minute_are_a_bucket(void **state)
{
    (void)state;
    struct sched *s = make(2, 512, 1, 100);
    enum sched_limit limit;
    struct sched_policy p = {.tokens_per_minute = 600};
    assert_int_equal(sched_set_policy(s, 5, &p), 0);
    assert_int_equal(try_add(s, 5, 400, 1, 1, &limit), 0);
    assert_int_equal(try_add(s, 5, 300, 1, 1, &limit), -EDQUOT);
    assert_int_equal(limit, SCHED_LIMIT_TOKENS);
    assert_int_equal(sched_quota_us(s, 5, 300, 1), 1 + 10000000); /* 100 tokens at 10 a second */
    assert_int_equal(try_add(s, 5, 300, 1, 10000000, &limit), -EDQUOT);
    assert_int_equal(try_add(s, 5, 300, 1, 10000001, &limit), 0);
    /* More than a minute's worth needs a full bucket and makes a debt. */
    assert_int_equal(try_add(s, 5, 5000, 1, 10000001 + 59999999, &limit), -EDQUOT);
    assert_int_equal(try_add(s, 5, 5000, 1, 10000001 + 60000000, &limit), 0);
    assert_int_equal(sched_quota_us(s, 5, 1, 70000001), 70000001 + 440100000);
    assert_int_equal(sched_quota_us(s, 99, 1, 70000001), 70000001);
    sched_free(s);
}

static void test_a_prompt_that_never_ran_is_paid_back(void **state)
{
    (void)state;
    struct sched *s = make(2, 512, 1, 100);
    enum sched_limit limit;
    struct sched_policy p = {.tokens_per_minute = 600};
    assert_int_equal(sched_set_policy(s, 5, &p), 0);
    uint32_t slot = add_at(s, 1, (struct ask){.uid = 5, .n_rows = 600});
    assert_int_equal(try_add(s, 5, 600, 1, 1, &limit), -EDQUOT);
    sched_remove(s, slot);
    assert_int_equal(try_add(s, 5, 600, 1, 1, &limit), 0);
    sched_free(s);
}

static void test_rows_found_in_a_cache_are_neither_owed_nor_paid(void **state)
{
    (void)state;
    struct sched *s = make(2, 512, 1, 100);
    struct sched_work w[8];
    struct sched_user_counts u;
    enum sched_limit limit;
    uint32_t model;
    struct sched_policy p = {.tokens_per_minute = 600};
    assert_int_equal(sched_set_policy(s, 5, &p), 0);
    uint32_t slot = add_at(s, 1, (struct ask){.uid = 5, .n_rows = 600});
    assert_int_equal(sched_plan(s, 1, &model, w, 8), 1);
    assert_int_equal(w[0].n_rows, 512);
    sched_found(s, slot, 590);
    sched_check(s);
    sched_ran(s, slot, 10, 1);
    sched_check(s);
    assert_int_equal(sched_users(s, &u, 1), 1);
    assert_int_equal(u.n_prefill_rows, 10);
    assert_int_equal(try_add(s, 5, 591, 1, 1, &limit), -EDQUOT);
    assert_int_equal(try_add(s, 5, 590, 1, 1, &limit), 0);
    sched_free(s);
}

static void test_limits_that_let_wait_hold_up_nobody_else(void **state)
{
    (void)state;
    struct sched *s = make(8, 8, 1, 100);
    struct sched_work w[8];
    uint32_t model;
    struct sched_policy p = {.max_running = 1}, q = {.max_pages = 10};
    assert_int_equal(sched_set_policy(s, 1, &p), 0);
    assert_int_equal(sched_set_policy(s, 2, &q), 0);
    for (int i = 0; i < 2; i++)
        add_at(s, 1, (struct ask){.uid = 1});
    for (int i = 0; i < 2; i++)
        add_at(s, 1, (struct ask){.uid = 2, .n_pages = 6});
    add_at(s, 1, (struct ask){.uid = 3});
    assert_int_equal(sched_plan(s, 1, &model, w, 8), 3);
    assert_int_equal(sched_set_policy(s, 1, NULL), 0); /* back to the default */
    assert_int_equal(sched_plan(s, 1, &model, w, 8), 4);
    sched_check(s);
    sched_free(s);
}

static void test_a_class_above_the_best_is_clamped(void **state)
{
    (void)state;
    struct sched *s = make(1, 8, 1, 100);
    struct sched_policy p = {.best_class = SCHED_CLASS_BATCH};
    assert_int_equal(sched_set_policy(s, 1, &p), 0);
    uint32_t clamped = add_at(s, 1, (struct ask){.uid = 1, .class = SCHED_CLASS_INTERACTIVE});
    uint32_t normal = add_at(s, 1, (struct ask){.uid = 2, .class = SCHED_CLASS_NORMAL});
    assert_int_equal(next_start(s, 1), normal);
    assert_int_equal(next_start(s, 1), clamped);
    sched_free(s);
}

static void test_uids_are_recycled_but_not_those_in_use(void **state)
{
    (void)state;
    struct sched_config c = {
        .max_sequences = 16, .max_running = 4, .step_rows = 8, .n_models = 1, .n_users_max = 3};
    struct sched *s;
    struct sched_user_counts users[3];
    struct sched_policy p = {.weight = 7};
    enum sched_limit limit;
    assert_int_equal(sched_new(&c, &s), 0);
    set_pages(s, 0, 100);
    assert_int_equal(sched_set_policy(s, 1, &p), 0);
    uint32_t slot = add_at(s, 1, (struct ask){.uid = 2});
    add_at(s, 1, (struct ask){.uid = 3});
    assert_int_equal(try_add(s, 4, 1, 1, 1, &limit), -EDQUOT);
    assert_int_equal(limit, SCHED_LIMIT_USERS);
    assert_int_equal(sched_set_policy(s, 4, &p), -ENOSPC);
    sched_remove(s, slot);
    assert_int_equal(try_add(s, 4, 1, 1, 2, &limit), 0);
    assert_int_equal(sched_users(s, users, 3), 3);
    assert_int_equal(users[0].uid, 1);
    assert_int_equal(users[0].weight, 7);
    assert_int_equal(users[1].uid, 4);
    assert_int_equal(users[1].n_waiting, 1);
    sched_free(s);
}

/* ---- the step -------------------------------------------------------------------------------- */

/* One decode and six prompts of the same uid, then a bystander's decode. */
static void test_a_crowd_of_prompts_may_lengthen_a_step_more(void **state)
{
    (void)state;
    struct sched *s = make(16, 512, 1, 100);
    struct sched_work w[16];
    uint32_t model, rows[2] = {0};
    sched_measured(s, 0, 512, 0, 51200);
    sched_measured(s, 0, 0, 1, 10000);
    add_at(s, 1, (struct ask){.uid = 1});
    for (int i = 0; i < 6; i++)
        add_at(s, 1, (struct ask){.uid = 1, .n_rows = 500});
    for (int with = 0; with < 2; with++) {
        uint32_t n = sched_plan(s, 1, &model, w, 16);
        for (uint32_t i = 0; i < n; i++)
            rows[with] += w[i].n_rows > 1 ? w[i].n_rows : 0;
        add_at(s, 1, (struct ask){.uid = 2});
    }
    assert_int_equal(rows[0], 6 * 50);
    assert_int_equal(rows[1], 50);
    sched_free(s);
}

static void test_decodes_leave_room_for_prefill(void **state)
{
    (void)state;
    struct sched *s = make(16, 8, 1, 100);
    struct sched_work w[16];
    uint32_t model, prefill = 0;
    for (int i = 0; i < 12; i++)
        add_at(s, 1, (struct ask){.uid = 1});
    uint32_t prompt = add_at(s, 1, (struct ask){.uid = 1, .n_rows = 20});
    uint32_t n = sched_plan(s, 1, &model, w, 16);
    for (uint32_t i = 0; i < n; i++)
        prefill += w[i].slot == prompt ? w[i].n_rows : 0;
    assert_int_equal(n, 7);       /* a quarter of 8 rows is left */
    assert_int_equal(prefill, 1); /* of which one is taken, until steps were measured */
    sched_free(s);
}

/* Twelve decodes of one uid in steps of four: each runs in one step of three. */
static void test_decodes_of_a_uid_take_turns(void **state)
{
    (void)state;
    struct sched *s = make(16, 4, 1, 100);
    struct sched_work w[16];
    uint32_t model, ran[16] = {0};
    for (int i = 0; i < 12; i++)
        add_at(s, 1, (struct ask){.uid = 1});
    for (int step = 0; step < 30; step++) {
        uint32_t n = sched_plan(s, 1, &model, w, 16);
        assert_int_equal(n, 4);
        for (uint32_t i = 0; i < n; i++) {
            ran[w[i].slot]++;
            sched_ran(s, w[i].slot, 1, 1);
        }
    }
    for (int i = 0; i < 12; i++)
        assert_int_equal(ran[i], 10);
    sched_free(s);
}

/* A lone stream beside another lone stream runs in each step, whoever had more before. */
static void test_a_lone_stream_is_not_held_back_for_another(void **state)
{
    (void)state;
    struct sched *s = make(8, 64, 1, 100);
    struct sched_work w[8];
    uint32_t model;
    uint32_t a = add_at(s, 1, (struct ask){.uid = 1});
    add_at(s, 1, (struct ask){.uid = 2, .n_rows = 2000});
    for (int step = 0; step < 300; step++) {
        uint32_t n = sched_plan(s, 1, &model, w, 8), seen = 0;
        for (uint32_t i = 0; i < n; i++) {
            seen += w[i].slot == a;
            bool last_chunk = w[i].slot == a || w[i].n_rows == 1;
            sched_ran(s, w[i].slot, w[i].n_rows, last_chunk);
        }
        assert_int_equal(seen, 1);
    }
    sched_free(s);
}

static void test_prefill_rows_go_by_class_then_service(void **state)
{
    (void)state;
    struct sched *s = make(8, 10, 1, 100);
    struct sched_work w[8];
    uint32_t model;
    uint32_t batch = add_at(s, 1, (struct ask){.uid = 1, .n_rows = 30, .class = SCHED_CLASS_BATCH});
    uint32_t a = add_at(s, 1, (struct ask){.uid = 2, .n_rows = 30});
    uint32_t b = add_at(s, 1, (struct ask){.uid = 3, .n_rows = 30});
    const uint32_t expected[] = {a, b, a, b, a, b, batch};
    for (int i = 0; i < 7; i++) {
        assert_int_equal(sched_plan(s, 1, &model, w, 8), 1);
        assert_int_equal(w[0].slot, expected[i]);
        sched_ran(s, w[0].slot, 10, 0);
    }
    sched_free(s);
}

static void test_fewer_pages_let_wait_until_they_come_back(void **state)
{
    (void)state;
    struct sched *s = make(8, 8, 1, 10);
    struct sched_work w[8];
    uint32_t model, a = add(s, 0, 128, 8), b = add(s, 0, 48, 3), slot;
    struct sched_request r = {.uid = 1000, .n_rows = 1, .n_pages = 6};
    assert_int_equal(sched_plan(s, 0, &model, w, 8), 1);
    sched_set_pages(s, 0, 5);
    assert_int_equal(sched_add(s, &r, 0, &slot, NULL), -E2BIG);
    sched_set_available(s, 0, 0); /* a took its eight */
    sched_ran(s, a, 128, 1);
    assert_int_equal(sched_plan(s, 0, &model, w, 8), 1); /* it runs in what it has */
    assert_int_equal(w[0].slot, a);
    sched_check(s);
    sched_remove(s, a);
    sched_set_available(s, 0, 5);
    assert_int_equal(sched_plan(s, 0, &model, w, 8), 1);
    assert_int_equal(w[0].slot, b);
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
        cmocka_unit_test(test_starts_go_by_class_then_deadline_then_arrival),
        cmocka_unit_test(test_starts_go_by_what_a_uid_was_served),
        cmocka_unit_test(test_what_running_sequences_owe_counts_for_starts),
        cmocka_unit_test(test_each_age_is_one_class_up),
        cmocka_unit_test(test_parked_for_a_moment_ages_on),
        cmocka_unit_test(test_newcomers_have_slots_but_not_for_batch),
        cmocka_unit_test(test_newcomer_slots_at_their_edges),
        cmocka_unit_test(test_skips_max_1_is_every_other_step),
        cmocka_unit_test(test_lag_and_skips_may_be_as_large_as_can_be),
        cmocka_unit_test(test_limits_that_refuse_name_themselves),
        cmocka_unit_test(test_tokens_a_minute_are_a_bucket),
        cmocka_unit_test(test_a_prompt_that_never_ran_is_paid_back),
        cmocka_unit_test(test_rows_found_in_a_cache_are_neither_owed_nor_paid),
        cmocka_unit_test(test_limits_that_let_wait_hold_up_nobody_else),
        cmocka_unit_test(test_a_class_above_the_best_is_clamped),
        cmocka_unit_test(test_uids_are_recycled_but_not_those_in_use),
        cmocka_unit_test(test_a_crowd_of_prompts_may_lengthen_a_step_more),
        cmocka_unit_test(test_decodes_leave_room_for_prefill),
        cmocka_unit_test(test_decodes_of_a_uid_take_turns),
        cmocka_unit_test(test_a_lone_stream_is_not_held_back_for_another),
        cmocka_unit_test(test_prefill_rows_go_by_class_then_service),
        cmocka_unit_test(test_fewer_pages_let_wait_until_they_come_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
