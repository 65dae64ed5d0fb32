/* test_pages.c: pages that run out: claims, the reserve, who is preempted, and how he comes back
 * (sentences 1, 3, 4 and 10 to 13 of the policy in sched.h). */
#include "sched/sched.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#define NOBODY UINT32_MAX
#define ROOM   16u

/* Pages of 16 rows. Nobody has a slot kept for him. */
static struct sched *make(uint32_t n_pages)
{
    struct sched *s;
    struct sched_config c = {.max_sequences = 32,
                             .max_running = 16,
                             .step_rows = 512,
                             .n_models = 1,
                             .park_us = 1000,
                             .newcomer_slots = SCHED_NO_NEWCOMER_SLOTS};
    assert_int_equal(sched_new(&c, &s), 0);
    sched_set_pages(s, 0, n_pages);
    sched_set_available(s, 0, n_pages);
    return s;
}

static uint32_t add(struct sched *s, uint32_t uid, uint32_t n_rows, uint32_t n_pages)
{
    uint32_t slot = NOBODY;
    struct sched_request r = {.uid = uid, .n_rows = n_rows, .n_pages = n_pages};
    assert_int_equal(sched_add(s, &r, 1, &slot, NULL), 0);
    sched_check(s);
    return slot;
}

static uint32_t add_class(struct sched *s, uint32_t uid, uint32_t n_rows, uint32_t n_pages,
                          enum sched_class class)
{
    uint32_t slot = NOBODY;
    struct sched_request r = {.uid = uid, .n_rows = n_rows, .n_pages = n_pages, .class = class};
    assert_int_equal(sched_add(s, &r, 1, &slot, NULL), 0);
    return slot;
}

/* Rows that a plan gives to `slot`, with so many pages available. */
static uint32_t planned(struct sched *s, uint64_t now_us, uint32_t available, uint32_t slot)
{
    struct sched_work w[ROOM];
    uint32_t model, rows = 0;
    sched_set_available(s, 0, available);
    uint32_t n = sched_plan(s, now_us, &model, w, ROOM);
    sched_check(s);
    for (uint32_t i = 0; i < n; i++)
        rows += w[i].slot == slot ? w[i].n_rows : 0;
    return rows;
}

/* Lets it start and run through its prompt, so that it owes one row. */
static void run_prompt(struct sched *s, uint32_t available, uint32_t slot, uint32_t n_rows)
{
    while (n_rows > 0) {
        uint32_t rows = planned(s, 1, available, slot);
        assert_in_range(rows, 1, n_rows);
        n_rows -= rows;
        sched_ran(s, slot, rows, n_rows == 0);
    }
}

static struct sched_user_counts user(const struct sched *s, uint32_t uid)
{
    struct sched_user_counts all[8];
    uint32_t n = sched_users(s, all, 8);
    for (uint32_t i = 0; i < n; i++)
        if (all[i].uid == uid)
            return all[i];
    fail();
    return all[0];
}

static uint32_t n_running(const struct sched *s)
{
    return sched_count(s).n_running;
}

static uint32_t victim(struct sched *s, uint64_t now_us, uint32_t available)
{
    sched_set_available(s, 0, available);
    return sched_victim(s, 0, now_us);
}

/* ---- starting -------------------------------------------------------------------------------- */

static void test_no_page_is_set_aside_for_a_life(void **state)
{
    (void)state;
    struct sched *s = make(10);
    for (int i = 0; i < 3; i++)
        add(s, 1, 16, 10); /* each may come to hold them all */
    planned(s, 1, 10, 0);
    assert_int_equal(n_running(s), 3);
    sched_free(s);
}

static void test_a_start_claims_the_pages_of_its_prompt(void **state)
{
    (void)state;
    struct sched *s = make(6);
    uint32_t a = add(s, 1, 60, 6), b = add(s, 1, 40, 6); /* 4 and 3 pages */
    assert_int_equal(planned(s, 1, 6, a), 60);
    assert_int_equal(n_running(s), 1);
    assert_int_equal(sched_position(s, b), 0);
    sched_ran(s, a, 20, 0); /* two taken, two still claimed */
    assert_int_equal(planned(s, 1, 4, b), 0);
    assert_int_equal(n_running(s), 1);
    sched_ran(s, a, 40, 1);
    assert_int_equal(planned(s, 1, 2, b), 0);
    sched_remove(s, a);
    assert_int_equal(planned(s, 1, 6, b), 40);
    sched_free(s);
}

/* Before an answer ended: a page for each, at most a sixteenth of the pool. */
static void test_a_start_leaves_a_page_for_each_that_runs(void **state)
{
    (void)state;
    struct sched *s = make(64);
    uint32_t slots[7];
    for (int i = 0; i < 6; i++) {
        slots[i] = add(s, 1, 16, 20);
        run_prompt(s, 64 - i, slots[i], 16);
    }
    slots[6] = add(s, 1, 16, 20);
    planned(s, 1, 4, slots[6]); /* one and a reserve of 4: 64 / 16, though 6 run */
    assert_int_equal(n_running(s), 6);
    planned(s, 1, 5, slots[6]);
    assert_int_equal(n_running(s), 7);
    sched_free(s);
}

static void test_alone_it_needs_no_reserve(void **state)
{
    (void)state;
    struct sched *s = make(64);
    uint32_t a = add(s, 1, 64 * 16, 64);
    assert_int_equal(planned(s, 1, 63, a), 0);
    assert_int_equal(planned(s, 1, 64, a), 512);
    sched_free(s);
}

/* Answers grew by ten pages: one that has just begun has one of these, and a third of the other
 * nine is kept. */
static void test_the_reserve_follows_what_answers_came_to(void **state)
{
    (void)state;
    struct sched *s = make(64);
    uint32_t a = add(s, 1, 16, 20);
    run_prompt(s, 64, a, 16);
    for (int i = 0; i < 10 * 16; i++)
        sched_ran(s, a, 1, 1);
    sched_remove(s, a);
    uint32_t b = add(s, 1, 16, 20);
    run_prompt(s, 64, b, 16);
    uint32_t c = add(s, 1, 16, 20);
    planned(s, 1, 3, c);
    assert_int_equal(n_running(s), 1);
    planned(s, 1, 4, c);
    assert_int_equal(n_running(s), 2);
    sched_free(s);
}

/* The same for who outranks what runs, by class or by far less service: it will grow from theirs.
 */
static void test_no_reserve_is_kept_for_who_will_give_way(void **state)
{
    (void)state;
    for (int by_class = 0; by_class < 2; by_class++) {
        struct sched *s = make(64);
        uint32_t a = add(s, 1, 16, 20);
        run_prompt(s, 64, a, 16);
        for (int i = 0; i < 10 * 16; i++)
            sched_ran(s, a, 1, 1);
        sched_remove(s, a);
        uint32_t b = add_class(s, 1, 16, 20, by_class ? SCHED_CLASS_BATCH : SCHED_CLASS_NORMAL);
        uint32_t other = add_class(s, 2, 16, 20, SCHED_CLASS_NORMAL);
        planned(s, 1, 64, b);
        sched_ran(s, b, 16, 1);
        sched_ran(s, other, 16, 1);
        sched_remove(s, other);
        for (int i = 0; !by_class && i < 600; i++) /* service alone, in one page at the end */
            sched_ran(s, b, 1, 1);
        uint32_t c = add_class(s, by_class ? 1 : 2, 16, 20, SCHED_CLASS_NORMAL);
        planned(s, 1, 1, c);
        assert_int_equal(n_running(s), 2);
        sched_check(s);
        sched_free(s);
    }
}

static void test_the_next_in_order_is_not_overtaken_for_pages(void **state)
{
    (void)state;
    struct sched *s = make(8);
    uint32_t a = add(s, 1, 16, 8);
    run_prompt(s, 8, a, 16);
    uint32_t big = add(s, 1, 128, 8), small = add(s, 1, 1, 1);
    assert_int_equal(planned(s, 1, 7, small), 0);
    assert_int_equal(n_running(s), 1);
    sched_remove(s, a);
    assert_int_equal(planned(s, 1, 8, big), 128);
    sched_free(s);
}

/* ---- the step -------------------------------------------------------------------------------- */

static void test_prefill_is_cut_to_what_fits_beside_decodes(void **state)
{
    (void)state;
    struct sched *s = make(40);
    uint32_t a = add(s, 1, 16, 40);
    run_prompt(s, 40, a, 16); /* its next row takes a page */
    sched_measured(s, 0, 512, 0, 512);
    sched_measured(s, 0, 0, 1, 10000);
    uint32_t b = add(s, 1, 320, 40);
    assert_true(planned(s, 1, 39, b) > 0);
    sched_ran(s, b, 8, 0);
    assert_int_equal(planned(s, 1, 3, b), 40); /* half a page that it has, and two */
    assert_int_equal(planned(s, 1, 3, a), 1);
    assert_int_equal(planned(s, 1, 1, b), 8);
    assert_int_equal(planned(s, 1, 0, a), 0);
    assert_int_equal(planned(s, 1, 0, b), 8);
    sched_free(s);
}

/* The cache may give it all at once: so all of it must be there. */
static void test_who_has_not_begun_runs_only_when_all_its_pages_are_there(void **state)
{
    (void)state;
    struct sched *s = make(40);
    uint32_t a = add(s, 1, 320, 40);
    assert_true(planned(s, 1, 20, a) > 0);
    assert_int_equal(planned(s, 1, 19, a), 0); /* somebody took one: not begun yet */
    assert_int_equal(planned(s, 1, 20, a), 320);
    sched_found(s, a, 300);
    sched_check(s);
    sched_ran(s, a, 20, 1);
    assert_int_equal(planned(s, 1, 20, a), 1);
    sched_free(s);
}

static void test_a_window_that_slid_gives_pages_back(void **state)
{
    (void)state;
    struct sched *s = make(4);
    uint32_t a = add(s, 1, 48, 4);
    run_prompt(s, 4, a, 48);
    assert_int_equal(planned(s, 1, 0, a), 0);
    sched_gave(s, a, 2); /* 16 rows, one page */
    sched_check(s);
    assert_int_equal(planned(s, 1, 0, a), 0);
    assert_int_equal(planned(s, 1, 1, a), 1);
    sched_ran(s, a, 1, 1);
    for (int i = 0; i < 15; i++) {
        assert_int_equal(planned(s, 1, 0, a), 1);
        sched_ran(s, a, 1, 1);
    }
    assert_int_equal(planned(s, 1, 0, a), 0);
    sched_free(s);
}

/* ---- the victim ------------------------------------------------------------------------------ */

/* Four answers whose next rows take a page each. */
static void make_short(struct sched *s, uint32_t slots[4])
{
    slots[0] = add_class(s, 1, 16, 40, SCHED_CLASS_NORMAL);
    slots[1] = add_class(s, 2, 16, 40, SCHED_CLASS_INTERACTIVE);
    slots[2] = add_class(s, 3, 32, 40, SCHED_CLASS_INTERACTIVE);
    slots[3] = add_class(s, 2, 16, 40, SCHED_CLASS_INTERACTIVE);
    for (int i = 0; i < 4; i++)
        planned(s, 1, 40, slots[i]);
    sched_ran(s, slots[0], 16, 1);
    sched_ran(s, slots[1], 16, 1);
    sched_ran(s, slots[2], 32, 1);
    sched_ran(s, slots[3], 16, 1);
    sched_check(s);
}

static void test_nobody_is_preempted_while_all_can_go_on(void **state)
{
    (void)state;
    struct sched *s = make(40);
    uint32_t slots[4];
    assert_int_equal(sched_victim(s, 0, 1), NOBODY);
    make_short(s, slots);
    assert_int_equal(victim(s, 1, 4), NOBODY);
    assert_int_not_equal(victim(s, 1, 3), NOBODY);
    sched_free(s);
}

/* Parked, then class, then service, then arrival; the highest never. */
static void test_the_lowest_in_rank_goes_first_and_the_highest_never(void **state)
{
    (void)state;
    struct sched *s = make(40);
    uint32_t slots[4];
    make_short(s, slots);
    sched_ran(s, slots[2], 1, 1); /* uid 3 is served more than uid 2 */
    for (int i = 0; i < 15; i++)
        sched_ran(s, slots[2], 1, 1);
    sched_park(s, slots[1]);
    const uint32_t expected[] = {slots[1], slots[0], slots[2]};
    for (int i = 0; i < 3; i++) {
        assert_int_equal(victim(s, 1, 0), expected[i]);
        sched_remove(s, expected[i]);
        sched_check(s);
    }
    assert_int_equal(victim(s, 1, 0), NOBODY);
    sched_free(s);
}

static void test_of_one_uid_who_came_last_goes_first(void **state)
{
    (void)state;
    struct sched *s = make(40);
    uint32_t slots[3];
    for (int i = 0; i < 3; i++) {
        slots[i] = add(s, 1, 16, 40);
        run_prompt(s, 40, slots[i], 16);
    }
    for (uint32_t i = 3; i-- > 1;) {
        assert_int_equal(victim(s, 1, 0), slots[i]);
        sched_preempted(s, slots[i], 17, 2);
        sched_check(s);
    }
    assert_int_equal(victim(s, 1, 0), NOBODY);
    assert_int_equal(sched_position(s, slots[1]), 0); /* and comes back first */
    assert_int_equal(sched_position(s, slots[2]), 1);
    sched_free(s);
}

static void test_of_those_parked_the_longest_goes_first(void **state)
{
    (void)state;
    struct sched *s = make(40);
    uint32_t slots[4];
    make_short(s, slots);
    planned(s, 10, 40, 0);
    sched_park(s, slots[2]);
    planned(s, 20, 40, 0);
    sched_park(s, slots[0]);
    assert_int_equal(victim(s, 20, 1), slots[2]);
    sched_resume(s, slots[2]);
    assert_int_equal(victim(s, 20, 1), slots[0]);
    sched_free(s);
}

/* Its class as it aged counts, and is kept. */
static void test_who_aged_keeps_his_rank(void **state)
{
    (void)state;
    struct sched *s = make(40);
    uint32_t a = add_class(s, 1, 1, 40, SCHED_CLASS_INTERACTIVE);
    sched_park(s, a); /* does not start, does not age */
    uint32_t b = add_class(s, 1, 160, 40, SCHED_CLASS_BATCH);
    planned(s, 10000001, 0, b);
    planned(s, 20000001, 0, b);
    planned(s, 30000001, 0, b); /* now ahead of its uid's others */
    sched_resume(s, a);
    assert_int_equal(sched_position(s, b), 0);
    assert_int_equal(sched_position(s, a), 1);
    sched_free(s);
}

static void test_a_prompt_has_all_it_claims_or_somebody_goes(void **state)
{
    (void)state;
    struct sched *s = make(20);
    uint32_t a = add(s, 1, 16, 20), b = add(s, 1, 64, 20);
    assert_true(planned(s, 1, 20, a) > 0);
    sched_ran(s, a, 16, 1);
    assert_int_equal(victim(s, 1, 5), NOBODY); /* four claimed, one for an answer's row */
    assert_int_equal(victim(s, 1, 4), b);
    sched_preempted(s, b, 64, 4); /* it had started but not run */
    sched_check(s);
    assert_int_equal(victim(s, 1, 4), NOBODY);
    assert_int_equal(sched_count(s).n_preempted, 1);
    sched_free(s);
}

/* ---- parked ---------------------------------------------------------------------------------- */

static void test_one_parked_long_enough_gives_way_to_who_waits(void **state)
{
    (void)state;
    struct sched *s = make(8);
    uint32_t a = add(s, 1, 64, 8), b = add(s, 1, 16, 8);
    run_prompt(s, 8, a, 64);
    sched_ran(s, b, 16, 1);
    uint32_t c = add(s, 2, 64, 8);
    planned(s, 5, 3, c);
    sched_park(s, a);
    planned(s, 10, 3, c);
    assert_int_equal(n_running(s), 2);
    assert_int_equal(victim(s, 1004, 3), NOBODY); /* parked at 5 */
    assert_int_equal(victim(s, 1005, 3), a);
    sched_preempted(s, a, 65, 5);
    assert_int_equal(victim(s, 1005, 7), NOBODY);
    assert_int_equal(planned(s, 1005, 7, c) > 0, 1);
    assert_int_equal(planned(s, 1005, 7, a), 0); /* parked: it waits on */
    sched_check(s);
    sched_free(s);
}

/* Its pages would not be enough. */
static void test_one_parked_is_left_alone_when_that_helps_nobody(void **state)
{
    (void)state;
    struct sched *s = make(16);
    uint32_t a = add(s, 1, 16, 8), b = add(s, 1, 160, 16);
    planned(s, 1, 16, a);
    sched_ran(s, a, 16, 1);
    sched_ran(s, b, 160, 1);
    uint32_t c = add(s, 2, 128, 16);
    sched_park(s, a);
    planned(s, 2, 5, c);
    assert_int_equal(victim(s, 9999, 5), NOBODY); /* 5 and 1 of 8 */
    sched_park(s, b);
    assert_int_equal(victim(s, 9999, 5), a); /* with b's ten, it helps; a is parked longest */
    sched_free(s);
}

static void test_one_that_waits_and_is_parked_holds_up_nobody(void **state)
{
    (void)state;
    struct sched *s = make(8);
    uint32_t a = add(s, 1, 16, 8), b = add(s, 1, 16, 8);
    sched_park(s, a);
    sched_check(s);
    assert_int_equal(planned(s, 1, 8, b), 16);
    assert_int_equal(n_running(s), 1);
    assert_int_equal(sched_count(s).n_waiting, 1);
    sched_resume(s, a);
    assert_true(planned(s, 1, 8, a) > 0);
    sched_park(s, a);
    sched_preempted(s, a, 16, 1);
    sched_check(s);
    sched_remove(s, a);
    sched_check(s);
    assert_int_equal(sched_count(s).n_parked, 0);
    sched_free(s);
}

/* ---- coming back ----------------------------------------------------------------------------- */

static void test_rows_that_run_again_are_prefill_and_not_charged(void **state)
{
    (void)state;
    struct sched *s = make(40);
    struct sched_policy p = {.tokens_per_minute = 6000};
    assert_int_equal(sched_set_policy(s, 1, &p), 0);
    uint32_t a = add(s, 1, 40, 10);
    run_prompt(s, 40, a, 40);
    for (int i = 0; i < 10; i++)
        sched_ran(s, a, 1, 1);
    uint64_t quota = sched_quota_us(s, 1, 6000, 1);
    sched_preempted(s, a, 51, 4);
    sched_check(s);
    struct sched_counts counts = sched_count(s);
    assert_int_equal(counts.n_preempted, 1);
    assert_int_equal(counts.n_preemptions, 1);
    assert_int_equal(planned(s, 1, 40, a), 51);
    assert_int_equal(sched_count(s).n_preempted, 0);
    sched_ran(s, a, 30, 0);
    sched_check(s);
    assert_int_equal(sched_quota_us(s, 1, 6000, 1), quota);
    assert_int_equal(user(s, 1).n_prefill_rows, 40);
    assert_int_equal(planned(s, 1, 40, a), 21);
    sched_ran(s, a, 21, 1); /* 20 again and the one that was due: a decode */
    assert_int_equal(user(s, 1).n_prefill_rows, 40);
    assert_int_equal(user(s, 1).n_decode_rows, 11);
    assert_int_equal(sched_quota_us(s, 1, 6000, 1), quota + 10000); /* a token at 100 a second */
    sched_free(s);
}

/* A prompt that was cut short: what did not run yet is charged. Twice, to no other end. */
static void test_a_prompt_preempted_twice_is_charged_once(void **state)
{
    (void)state;
    struct sched *s = make(40);
    uint32_t a = add(s, 1, 300, 40);
    planned(s, 1, 40, a);
    sched_ran(s, a, 100, 0);
    sched_preempted(s, a, 300, 19);
    planned(s, 1, 40, a);
    sched_ran(s, a, 60, 0);
    sched_preempted(s, a, 300, 19);
    sched_check(s);
    planned(s, 1, 40, a);
    sched_found(s, a, 48); /* its pages were still cached */
    sched_check(s);
    assert_int_equal(user(s, 1).n_prefill_rows, 100);
    sched_ran(s, a, 252, 1);
    assert_int_equal(user(s, 1).n_prefill_rows, 300);
    assert_int_equal(sched_count(s).n_preemptions, 2);
    sched_free(s);
}

static void test_who_does_not_read_pays_again(void **state)
{
    (void)state;
    struct sched *s = make(40);
    uint32_t a = add(s, 1, 100, 40);
    run_prompt(s, 40, a, 100);
    sched_park(s, a);
    sched_preempted(s, a, 101, 7);
    sched_resume(s, a);
    assert_int_equal(planned(s, 1, 40, a), 101);
    sched_ran(s, a, 101, 1);
    sched_check(s);
    assert_int_equal(user(s, 1).n_prefill_rows, 201);
    sched_free(s);
}

static void test_saved_pages_come_back_and_one_row_is_owed(void **state)
{
    (void)state;
    struct sched *s = make(40);
    uint32_t a = add(s, 1, 100, 40);
    run_prompt(s, 40, a, 100); /* 7 pages, 12 rows left in the last */
    sched_preempted(s, a, 1, 7);
    sched_check(s);
    assert_int_equal(planned(s, 1, 6, a), 0);
    assert_int_equal(n_running(s), 0);
    assert_int_equal(planned(s, 1, 7, a), 1);
    sched_ran(s, a, 1, 1);
    assert_int_equal(planned(s, 1, 0, a), 1); /* 102 rows are done, not 1 */
    assert_int_equal(user(s, 1).n_decode_rows, 1);
    sched_free(s);
}

static void test_a_preempted_one_returns_when_its_pages_are_free(void **state)
{
    (void)state;
    struct sched *s = make(20);
    uint32_t a = add(s, 1, 64, 20), b = add(s, 1, 64, 20), c = add(s, 1, 16, 20);
    planned(s, 1, 20, a);
    sched_ran(s, a, 64, 1);
    sched_ran(s, b, 64, 1);
    sched_ran(s, c, 16, 1);
    sched_preempted(s, b, 65, 5);
    sched_preempted(s, c, 17, 2);
    assert_int_equal(planned(s, 1, 5, c), 0); /* b is first, and wants one more, for a */
    assert_int_equal(n_running(s), 1);
    assert_int_equal(planned(s, 1, 6, b) > 0, 1);
    assert_int_equal(n_running(s), 2);
    sched_free(s);
}

static void test_a_preempted_one_is_ahead_of_its_uids_others_of_its_class(void **state)
{
    (void)state;
    struct sched *s = make(20);
    uint32_t a = add(s, 1, 64, 20), b = add_class(s, 1, 32, 20, SCHED_CLASS_NORMAL);
    run_prompt(s, 20, a, 64);
    uint32_t urgent = NOBODY;
    struct sched_request r = {.uid = 1, .n_rows = 1, .n_pages = 1, .deadline_us = 2};
    assert_int_equal(sched_add(s, &r, 1, &urgent, NULL), 0);
    sched_preempted(s, a, 65, 5);
    sched_preempted(s, b, 32, 2);
    assert_int_equal(sched_position(s, a), 0);
    assert_int_equal(sched_position(s, urgent), 1);
    assert_int_equal(sched_position(s, b), 2); /* of a worse class */
    assert_true(sched_estimate_us(s, b, 7) >= 7);
    sched_check(s);
    sched_free(s);
}

/* ---- limits ---------------------------------------------------------------------------------- */

static void test_max_pages_bounds_the_sum_of_what_they_can_come_to(void **state)
{
    (void)state;
    struct sched *s = make(100);
    struct sched_policy p = {.max_pages = 10};
    assert_int_equal(sched_set_policy(s, 1, &p), 0);
    uint32_t a = add(s, 1, 1, 6), b = add(s, 1, 1, 6);
    assert_int_equal(planned(s, 1, 100, a), 1);
    assert_int_equal(user(s, 1).n_pages, 6);
    sched_ran(s, a, 1, 1);
    sched_preempted(s, a, 2, 1);
    assert_int_equal(user(s, 1).n_pages, 0);
    assert_int_equal(planned(s, 1, 100, a), 2);
    assert_int_equal(planned(s, 1, 100, b), 0);
    assert_int_equal(user(s, 1).n_pages, 6);
    sched_free(s);
}

static void test_max_waiting_does_not_count_preempted_ones(void **state)
{
    (void)state;
    struct sched *s = make(100);
    struct sched_policy p = {.max_waiting = 1};
    struct sched_request r = {.uid = 1, .n_rows = 1, .n_pages = 1};
    uint32_t slot;
    enum sched_limit limit;
    assert_int_equal(sched_set_policy(s, 1, &p), 0);
    uint32_t a = add(s, 1, 16, 6);
    run_prompt(s, 100, a, 16);
    sched_preempted(s, a, 17, 2);
    assert_int_equal(sched_add(s, &r, 1, &slot, NULL), 0);
    assert_int_equal(sched_add(s, &r, 1, &slot, &limit), -EDQUOT);
    assert_int_equal(limit, SCHED_LIMIT_WAITING);
    sched_free(s);
}

/* ---- what does not run and holds pages ------------------------------------------------------- */

/* It goes on from a kept state of n_held rows. */
static uint32_t add_kept(struct sched *s, uint32_t n_rows, uint32_t n_held, uint32_t n_pages,
                         bool away)
{
    uint32_t slot = NOBODY;
    struct sched_request r = {
        .uid = 2, .n_rows = n_rows, .n_pages = n_pages, .n_held = n_held, .away = away};
    assert_int_equal(sched_add(s, &r, 1, &slot, NULL), 0);
    sched_check(s);
    return slot;
}

static void assert_lacks(const struct sched *s, uint32_t n_pages, uint32_t slot, bool stuck)
{
    struct sched_lack lack = sched_lacks(s, 0);
    assert_int_equal(lack.n_pages, n_pages);
    assert_int_equal(lack.slot, slot);
    assert_int_equal(lack.stuck, stuck);
}

/* Eight pages; five are held by one that waits behind one that needs four. */
static void test_who_waits_gives_way_to_the_next_in_order(void **state)
{
    (void)state;
    struct sched *s = make(8);
    uint32_t next = add(s, 1, 49, 8), holder = add_kept(s, 21, 80, 5, false);
    assert_lacks(s, 0, NOBODY, false); /* there was no plan yet */
    assert_int_equal(planned(s, 1, 3, next), 0);
    assert_true(sched_waits(s, next) && sched_waits(s, holder));
    assert_lacks(s, 1, next, true);
    sched_left_pages(s, holder);
    sched_set_available(s, 0, 8);
    assert_lacks(s, 0, NOBODY, false);
    assert_int_equal(planned(s, 1, 8, next), 49);
    assert_true(!sched_waits(s, next) && sched_waits(s, holder));
    sched_ran(s, next, 49, 1);
    assert_int_equal(planned(s, 1, 4, holder), 0); /* it needs all five now */
    assert_lacks(s, 1, holder, false);             /* and `next` will end */
    sched_remove(s, next);
    assert_int_equal(planned(s, 1, 8, holder), 21);
    sched_free(s);
}

static void test_who_brings_pages_is_first_with_them(void **state)
{
    (void)state;
    struct sched *s = make(8);
    uint32_t holder = add_kept(s, 21, 80, 5, false), next = add(s, 1, 49, 8);
    assert_int_equal(planned(s, 1, 3, holder), 21); /* no more than it has */
    assert_true(sched_waits(s, next));
    sched_free(s);
}

static void test_a_state_that_is_away_needs_its_pages(void **state)
{
    (void)state;
    struct sched *s = make(8);
    uint32_t slot = add_kept(s, 1, 79, 6, true);
    assert_int_equal(planned(s, 1, 4, slot), 0);
    assert_lacks(s, 1, slot, true);
    assert_int_equal(planned(s, 1, 5, slot), 1);
    sched_free(s);
}

/* Of two that run one can be preempted; one alone is stuck until the holder gives. */
static void test_who_runs_alone_is_stuck_behind_holders(void **state)
{
    (void)state;
    struct sched *s = make(8);
    uint32_t a = add(s, 1, 32, 8), b = add(s, 1, 32, 8);
    run_prompt(s, 8, a, 32);
    run_prompt(s, 6, b, 32);
    uint32_t holder = add_kept(s, 1, 64, 5, false);
    sched_set_available(s, 0, 0);
    assert_lacks(s, 2, NOBODY, false);
    assert_int_equal(sched_victim(s, 0, 2), b);
    sched_remove(s, b);
    assert_lacks(s, 1, NOBODY, true);
    assert_int_equal(sched_victim(s, 0, 2), NOBODY);
    assert_true(sched_waits(s, holder));
    sched_left_pages(s, holder);
    sched_set_available(s, 0, 4);
    assert_lacks(s, 0, NOBODY, false);
    assert_int_equal(planned(s, 2, 4, a), 1);
    sched_free(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_no_page_is_set_aside_for_a_life),
        cmocka_unit_test(test_a_start_claims_the_pages_of_its_prompt),
        cmocka_unit_test(test_a_start_leaves_a_page_for_each_that_runs),
        cmocka_unit_test(test_alone_it_needs_no_reserve),
        cmocka_unit_test(test_the_reserve_follows_what_answers_came_to),
        cmocka_unit_test(test_no_reserve_is_kept_for_who_will_give_way),
        cmocka_unit_test(test_the_next_in_order_is_not_overtaken_for_pages),
        cmocka_unit_test(test_prefill_is_cut_to_what_fits_beside_decodes),
        cmocka_unit_test(test_who_has_not_begun_runs_only_when_all_its_pages_are_there),
        cmocka_unit_test(test_a_window_that_slid_gives_pages_back),
        cmocka_unit_test(test_nobody_is_preempted_while_all_can_go_on),
        cmocka_unit_test(test_the_lowest_in_rank_goes_first_and_the_highest_never),
        cmocka_unit_test(test_of_one_uid_who_came_last_goes_first),
        cmocka_unit_test(test_of_those_parked_the_longest_goes_first),
        cmocka_unit_test(test_who_aged_keeps_his_rank),
        cmocka_unit_test(test_a_prompt_has_all_it_claims_or_somebody_goes),
        cmocka_unit_test(test_one_parked_long_enough_gives_way_to_who_waits),
        cmocka_unit_test(test_one_parked_is_left_alone_when_that_helps_nobody),
        cmocka_unit_test(test_one_that_waits_and_is_parked_holds_up_nobody),
        cmocka_unit_test(test_rows_that_run_again_are_prefill_and_not_charged),
        cmocka_unit_test(test_a_prompt_preempted_twice_is_charged_once),
        cmocka_unit_test(test_who_does_not_read_pays_again),
        cmocka_unit_test(test_saved_pages_come_back_and_one_row_is_owed),
        cmocka_unit_test(test_a_preempted_one_returns_when_its_pages_are_free),
        cmocka_unit_test(test_a_preempted_one_is_ahead_of_its_uids_others_of_its_class),
        cmocka_unit_test(test_max_pages_bounds_the_sum_of_what_they_can_come_to),
        cmocka_unit_test(test_max_waiting_does_not_count_preempted_ones),
        cmocka_unit_test(test_who_waits_gives_way_to_the_next_in_order),
        cmocka_unit_test(test_who_brings_pages_is_first_with_them),
        cmocka_unit_test(test_a_state_that_is_away_needs_its_pages),
        cmocka_unit_test(test_who_runs_alone_is_stuck_behind_holders),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
