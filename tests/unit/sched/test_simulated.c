/* test_simulated.c: what the policy of sched.h comes to under load, and what it costs. */
#include "sim.h"

#include <errno.h>
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include <cmocka.h>

/* A processor: a row costs as much as the fixed part of a step divided by 4. */
#define CPU_FIXED  4000u
#define CPU_DECODE 1000u
/* An accelerator: rows are nearly free beside the weights that each step reads. */
#define GPU_FIXED  10000u
#define GPU_DECODE 50u

static struct sim *make(struct sched_config config, uint32_t fixed_us, uint32_t decode_us,
                        uint32_t prefill_us)
{
    struct sim *sim = calloc(1, sizeof *sim);
    assert_non_null(sim);
    config.n_models = 1;
    config.max_sequences = config.max_sequences > 0 ? config.max_sequences : 1024;
    config.step_rows = config.step_rows > 0 ? config.step_rows : 512;
    assert_int_equal(sched_new(&config, &sim->sched), 0);
    sim->pages = 1000000;
    sim->page_tokens = 16;
    sched_set_pages(sim->sched, 0, sim->pages);
    sched_set_available(sim->sched, 0, sim->pages);
    sim->fixed_us = fixed_us;
    sim->decode_us = decode_us;
    sim->prefill_us = prefill_us;
    sim->now_us = 1000000;
    return sim;
}

static void done(struct sim *sim)
{
    sched_free(sim->sched);
    free(sim);
}

static void run(struct sim *sim, uint32_t n_steps)
{
    for (uint32_t i = 0; i < n_steps; i++) {
        sim_step(sim);
        if (i % 64 == 0)
            sched_check(sim->sched);
    }
}

static void assert_share(uint64_t part, uint64_t whole, double low, double high)
{
    double share = (double)part / (double)whole;
    if (share < low || share > high)
        fail_msg("%" PRIu64 " of %" PRIu64 " is %.1f%%", part, whole, 100 * share);
}

/* ---- shares ---------------------------------------------------------------------------------- */

struct mix {
    const char *machine;
    uint32_t fixed_us, decode_us, max_running, step_rows, prompt, answer, skips_max;
};

static double tokens_per_s(const struct sim *sim)
{
    return 1e6 * (double)sim->n_tokens / (double)(sim->now_us - 1000000);
}

/* The same load without any sharing: one uid. */
static double unshared(const struct mix *m)
{
    struct sched_config c = {.max_running = m->max_running, .step_rows = m->step_rows};
    struct sim *sim = make(c, m->fixed_us, m->decode_us, m->decode_us / 2);
    sim_client(sim, 32, 1, m->prompt, m->answer);
    run(sim, 6000);
    double rate = tokens_per_s(sim);
    done(sim);
    return rate;
}

static void one_and_31(const struct mix *m, double low, double high)
{
    struct sched_config c = {
        .max_running = m->max_running, .step_rows = m->step_rows, .skips_max = m->skips_max};
    struct sim *sim = make(c, m->fixed_us, m->decode_us, m->decode_us / 2);
    struct sim_client *light = sim_client(sim, 1, 1, m->prompt, m->answer);
    struct sim_client *heavy = sim_client(sim, 31, 2, m->prompt, m->answer);
    run(sim, 1000); /* 31 prompts at once are not the steady state */
    uint64_t light_before = light->n_tokens, before = sim->n_tokens;
    run(sim, 6000);
    double all = unshared(m);
    print_message(
        "1 vs 31, %s, %3u running, %3u + %4u tokens, skips %2u: light has %4.1f%%, %6.0f "
        "tokens/s (unshared %6.0f), longest gap light %4.0f ms, heavy %4.0f ms\n",
        m->machine, m->max_running, m->prompt, m->answer, m->skips_max > 0 ? m->skips_max : 64,
        100.0 * (double)(light->n_tokens - light_before) / (double)(sim->n_tokens - before),
        tokens_per_s(sim), all, (double)light->gap_us_max / 1000, (double)heavy->gap_us_max / 1000);
    assert_int_equal(light->n_tokens + sim_tokens(sim, 2), sim->n_tokens);
    assert_share(light->n_tokens - light_before, sim->n_tokens - before, low, high);
    done(sim);
}

static void test_one_client_and_31_get_equal_shares(void **state)
{
    (void)state;
    const struct mix mixes[] = {
        {"processor  ", CPU_FIXED, CPU_DECODE, 32, 512, 16, 100, 0},
        {"processor  ", CPU_FIXED, CPU_DECODE, 32, 512, 16, 1000, 0},
        {"processor  ", CPU_FIXED, CPU_DECODE, 16, 512, 16, 100, 0},
        {"processor  ", CPU_FIXED, CPU_DECODE, 8, 512, 16, 100, 0},
        {"processor  ", CPU_FIXED, CPU_DECODE, 4, 512, 16, 100, 0},
        {"processor  ", CPU_FIXED, CPU_DECODE, 32, 8, 16, 100, 0},
        {"accelerator", GPU_FIXED, GPU_DECODE, 32, 512, 16, 100, 0},
    };
    for (size_t i = 0; i < sizeof mixes / sizeof *mixes; i++)
        one_and_31(&mixes[i], 0.45, 0.55);
}

/* What the larger uid runs while the other one is away or in its prompt is made up for as far as
 * its answers are long enough: here they are not quite. */
static void test_long_prompts_and_short_answers_come_near(void **state)
{
    (void)state;
    const struct mix m = {"processor  ", CPU_FIXED, CPU_DECODE, 32, 512, 200, 100, 0};
    one_and_31(&m, 0.40, 0.60);
}

/* The price is bounded: nobody skips more than skips_max steps, whoever is behind. */
static void test_skips_max_bounds_the_price(void **state)
{
    (void)state;
    const struct mix m = {"accelerator", GPU_FIXED, GPU_DECODE, 32, 512, 16, 100, 3};
    one_and_31(&m, 0.09, 0.15); /* 1 of about 8.75 */
}

static void test_shares_follow_weights(void **state)
{
    (void)state;
    struct sched_config c = {.max_running = 64};
    struct sched_policy p = {.weight = 300};
    struct sim *sim = make(c, CPU_FIXED, CPU_DECODE, 500);
    assert_int_equal(sched_set_policy(sim->sched, 2, &p), 0);
    sim_client(sim, 16, 1, 16, 100);
    sim_client(sim, 16, 2, 16, 100);
    run(sim, 4000);
    assert_share(sim_tokens(sim, 2), sim->n_tokens, 0.72, 0.78);
    done(sim);
}

/* The same where slots are scarce, so that shares come from who starts and who decodes. */
static void test_shares_follow_weights_among_starts(void **state)
{
    (void)state;
    struct sched_config c = {.max_running = 8};
    struct sched_policy p = {.weight = 300};
    struct sim *sim = make(c, CPU_FIXED, CPU_DECODE, 500);
    assert_int_equal(sched_set_policy(sim->sched, 2, &p), 0);
    sim_client(sim, 30, 1, 16, 60);
    sim_client(sim, 30, 2, 16, 60);
    run(sim, 8000);
    assert_share(sim_tokens(sim, 2), sim->n_tokens, 0.70, 0.80);
    done(sim);
}

static void test_eight_uids_of_all_sizes_share_equally(void **state)
{
    (void)state;
    struct sched_config c = {.max_running = 64};
    struct sim *sim = make(c, CPU_FIXED, CPU_DECODE, 500);
    for (uint32_t uid = 0; uid < 8; uid++)
        sim_client(sim, 1 + 2 * uid, uid, 16 + 8 * uid, 40 + 20 * uid);
    run(sim, 8000);
    for (uint32_t uid = 0; uid < 8; uid++)
        assert_share(sim_tokens(sim, uid), sim->n_tokens, 0.11, 0.14);
    done(sim);
}

static void test_a_newcomer_is_not_credited(void **state)
{
    (void)state;
    struct sched_config c = {.max_running = 32};
    struct sim *sim = make(c, CPU_FIXED, CPU_DECODE, 500);
    sim_client(sim, 4, 1, 16, 100);
    run(sim, 4000);
    uint64_t before = sim->n_tokens, old_before = sim_tokens(sim, 1);
    sim_client(sim, 4, 2, 16, 100);
    run(sim, 500);
    assert_share(sim_tokens(sim, 1) - old_before, sim->n_tokens - before, 0.45, 0.55);
    done(sim);
}

static void test_a_long_pause_is_no_credit(void **state)
{
    (void)state;
    struct sched_config c = {.max_running = 32};
    struct sim *sim = make(c, CPU_FIXED, CPU_DECODE, 500);
    struct sim_client *away = sim_client(sim, 4, 2, 16, 50);
    for (int i = 0; i < 4; i++)
        away[i].pause = 3000;
    sim_client(sim, 4, 1, 16, 100);
    run(sim, 3060); /* they have just come back */
    uint64_t before = sim->n_tokens, old_before = sim_tokens(sim, 1);
    run(sim, 45);
    assert_share(sim_tokens(sim, 1) - old_before, sim->n_tokens - before, 0.42, 0.58);
    done(sim);
}

/* Who stays away for a moment only does not lose its turn, but the claim has a bound. */
static void test_nobody_is_held_back_for_one_who_does_not_run(void **state)
{
    (void)state;
    struct sched_config c = {.max_running = 32};
    struct sim *sim = make(c, GPU_FIXED, GPU_DECODE, 50);
    struct sim_client *light = sim_client(sim, 1, 1, 16, 10);
    light->pause = 90;
    sim_client(sim, 16, 2, 16, 100);
    run(sim, 5000);
    /* In nine of ten steps the light one is away and all 16 run. */
    assert_true(sim->n_tokens > 5000 * 16 * 3 / 4);
    done(sim);
}

/* ---- classes --------------------------------------------------------------------------------- */

static void test_batch_waits_for_interactive_but_not_for_ever(void **state)
{
    (void)state;
    struct sched_config c = {.max_running = 4, .age_us = 2000000};
    struct sim *sim = make(c, CPU_FIXED, CPU_DECODE, 500);
    struct sim_client *fast = sim_client(sim, 16, 1, 16, 20);
    struct sim_client *batch = sim_client(sim, 2, 2, 16, 20);
    for (int i = 0; i < 16; i++)
        fast[i].class = SCHED_CLASS_INTERACTIVE;
    batch[0].class = batch[1].class = SCHED_CLASS_BATCH;
    run(sim, 20000);
    assert_true(batch[0].n_done > 10 && batch[1].n_done > 10);
    assert_true(batch[0].wait_us_max >= 4000000); /* two classes up */
    /* Then its uid is the one served least: the next free slot is his. */
    assert_true(batch[0].wait_us_max < 4000000 + 500000);
    done(sim);
}

/* Its own uid's flood of better requests does not keep it out either. */
static void test_batch_is_not_starved_by_its_own_uid(void **state)
{
    (void)state;
    struct sched_config c = {.max_running = 4, .age_us = 1000000};
    struct sim *sim = make(c, CPU_FIXED, CPU_DECODE, 500);
    struct sim_client *fast = sim_client(sim, 16, 1, 16, 20);
    struct sim_client *batch = sim_client(sim, 1, 1, 16, 20);
    for (int i = 0; i < 16; i++)
        fast[i].class = SCHED_CLASS_INTERACTIVE;
    batch->class = SCHED_CLASS_BATCH;
    run(sim, 20000);
    assert_true(batch->n_done > 10);
    assert_true(batch->wait_us_max >= 2000000 && batch->wait_us_max < 4000000);
    done(sim);
}

/* ---- limits ---------------------------------------------------------------------------------- */

static void test_tokens_a_minute(void **state)
{
    (void)state;
    struct sched_config c = {.max_running = 32};
    struct sched_policy p = {.tokens_per_minute = 3000};
    struct sim *sim = make(c, CPU_FIXED, CPU_DECODE, 500);
    assert_int_equal(sched_set_policy(sim->sched, 1, &p), 0);
    struct sim_client *limited = sim_client(sim, 4, 1, 50, 50);
    sim_client(sim, 1, 2, 16, 100); /* keeps the clock going */
    while (sim->now_us < 1000000 + UINT64_C(600000000))
        sim_step(sim);
    uint64_t rows = 0;
    for (int i = 0; i < 4; i++)
        rows += limited[i].n_done * 99; /* 50 of the prompt draw the first of 50 tokens */
    print_message("3000 tokens a minute, full bucket, 10 minutes: %" PRIu64 " tokens\n", rows);
    assert_in_range(rows, 32500, 33500);
    assert_true(limited->n_refused > 0);
    done(sim);
}

/* ---- the step's budget ----------------------------------------------------------------------- */

static void test_a_long_prompt_lengthens_decode_steps_by_a_stated_share(void **state)
{
    (void)state;
    struct sched_config c = {.max_running = 32};
    struct sim *sim = make(c, 9000, 1000, 100); /* a decode takes 10 ms */
    struct sim_client *decoder = sim_client(sim, 1, 1, 16, 2000);
    run(sim, 100);
    struct sim_client *prompt = sim_client(sim, 1, 2, 4000, 2);
    prompt->pause = 1000000;
    while (prompt->n_done == 0)
        sim_step(sim);
    print_message("4000-token prompt beside a decoder: steps of %.1f ms became %.1f ms, at most "
                  "%u prefill rows in one\n",
                  (double)sim->decode_step_us_max / 1000, (double)sim->mixed_step_us_max / 1000,
                  sim->prefill_rows_beside_decode_max);
    assert_true(sim->mixed_step_us_max <= 15500);
    assert_true(sim->prefill_rows_beside_decode_max >= 40);
    assert_true(decoder->gap_us_max <= 15500);
    assert_int_equal(decoder->n_tokens, sim->n_steps); /* the decoder ran in each of them */
    done(sim);
}

static void test_prefill_runs_at_least_one_row(void **state)
{
    (void)state;
    struct sched_config c = {.max_running = 32};
    struct sim *sim = make(c, 0, 1000, 1000); /* a row of prefill is as dear as a decode */
    sim_client(sim, 1, 1, 16, 2000);
    run(sim, 50);
    struct sim_client *prompt = sim_client(sim, 1, 2, 1000, 2);
    uint64_t before = sim->n_steps;
    while (prompt->n_done == 0)
        sim_step(sim);
    /* One a step, but for one step in 64, which has decodes alone. */
    assert_in_range(sim->n_steps - before, 1000, 1000 + 1000 / 64 + 5);
    done(sim);
}

/* ---- overcommit ------------------------------------------------------------------------------ */

struct load {
    const char *what;
    uint32_t n_uids, n_clients, prompt, answer;
    bool mixed; /* lengths vary by client */
    uint32_t save_percent, again_percent_max;
};

/* All clients at their longest need three times what there is. */
static void overcommitted(const struct load *l)
{
    struct sched_config c = {.max_running = 64};
    struct sim *sim = make(c, GPU_FIXED, GPU_DECODE, 20);
    sim->save_percent = l->save_percent;
    uint64_t need = 0;
    for (uint32_t i = 0; i < l->n_clients; i++) {
        uint32_t scale = l->mixed ? 1 + i / l->n_uids % 4 : 2;
        struct sim_client *client =
            sim_client(sim, 1, i % l->n_uids, l->prompt * scale / 2, l->answer * scale / 2);
        need += sim_pages_for(sim, client->prompt + client->answer);
    }
    sim->pages = (uint32_t)(need / 3);
    sched_set_pages(sim->sched, 0, sim->pages);
    uint64_t held = 0;
    for (int i = 0; i < 20000; i++) {
        assert_true(sim_step(sim));
        held += sim->pages - sim_available(sim);
        if (i % 16 == 0)
            sched_check(sim->sched);
    }
    uint64_t done_min = UINT64_MAX, wait = 0, gap = 0, done_all = 0;
    for (uint32_t i = 0; i < l->n_clients; i++) {
        struct sim_client *client = &sim->clients[i];
        done_min = client->n_done < done_min ? client->n_done : done_min;
        done_all += client->n_done;
        wait = client->wait_us_max > wait ? client->wait_us_max : wait;
        gap = client->gap_us_max > gap ? client->gap_us_max : gap;
    }
    print_message("3x overcommit, %-34s %4.1f%% of rows twice, %5.2f preemptions an answer (at "
                  "most %2u), %4.1f%% of pages held, %5.0f tokens/s, done %" PRIu64
                  " (fewest %" PRIu64 "), longest wait %5.1f s, gap %5.1f s\n",
                  l->what, 100.0 * (double)sim->n_again / (double)sim->n_rows,
                  (double)sim->n_preempted / (double)done_all, sim->preempt_again_max,
                  (double)held / 20000 * 100 / sim->pages, tokens_per_s(sim), done_all, done_min,
                  (double)wait / 1e6, (double)gap / 1e6);
    assert_true(sim->n_preempted > 0);
    assert_true(sim->n_again * 100 <= sim->n_rows * l->again_percent_max);
    assert_true(sim->n_preempted < done_all);
    assert_true(sim->preempt_again_max <= 8);
    /* It climbs to the top in two ages, and then one that runs has to end. */
    assert_true(wait < 20000000 + UINT64_C(2) * l->answer * 2 * 15000);
    assert_true(done_min * 4 * (l->mixed ? 4 : 1) >= done_all / l->n_clients);
    done(sim);
}

/* Two uids, equal weights, a third of the pages that all would need: equal shares all the same. */
static void share_overcommitted(uint32_t n_first, uint32_t n_second)
{
    struct sched_config c = {.max_running = 64};
    struct sim *sim = make(c, CPU_FIXED, CPU_DECODE, 200);
    sim_client(sim, n_first, 1, 64, 600);
    sim_client(sim, n_second, 2, 64, 600);
    sim->pages = (n_first + n_second) * sim_pages_for(sim, 664) / 3;
    sched_set_pages(sim->sched, 0, sim->pages);
    run(sim, 2000);
    uint64_t before = sim->n_tokens, first = sim_tokens(sim, 1);
    run(sim, 20000);
    print_message("3x overcommit, %2u and %2u clients: the first uid has %4.1f%%, %" PRIu64
                  " preemptions\n",
                  n_first, n_second,
                  100.0 * (double)(sim_tokens(sim, 1) - first) / (double)(sim->n_tokens - before),
                  sim->n_preempted);
    assert_true(sim->n_preempted > 0);
    assert_share(sim_tokens(sim, 1) - first, sim->n_tokens - before, 0.45, 0.55);
    done(sim);
}

static void test_overcommitted_shares_are_equal(void **state)
{
    (void)state;
    share_overcommitted(16, 16);
    share_overcommitted(4, 28);
    share_overcommitted(1, 31);
}

static void test_overcommit_does_not_thrash(void **state)
{
    (void)state;
    const struct load loads[] = {
        {"1 uid, 32 equal", 1, 32, 64, 600, false, 0, 30},
        {"1 uid, 32 of 4 lengths", 1, 32, 64, 600, true, 0, 30},
        {"2 uids, 32 equal", 2, 32, 64, 600, false, 0, 30},
        {"2 uids, 32 of 4 lengths", 2, 32, 64, 600, true, 0, 30},
        {"8 uids, 32 of 4 lengths", 8, 32, 64, 600, true, 0, 30},
        {"32 uids, 32 equal", 32, 32, 64, 600, false, 0, 30},
        {"32 uids, 64 of 2 lengths", 32, 64, 64, 600, true, 0, 30},
        {"8 uids, 64, long prompts", 8, 64, 600, 200, true, 0, 30},
        {"8 uids, 64, very long answers", 8, 64, 16, 2000, true, 0, 30},
        {"8 uids, 32 of 4 lengths, half saved", 8, 32, 64, 600, true, 50, 30},
    };
    for (size_t i = 0; i < sizeof loads / sizeof *loads; i++)
        overcommitted(&loads[i]);
}

/* ---- everything at once ---------------------------------------------------------------------- */

static uint32_t draw(uint64_t *x, uint32_t n)
{
    *x = *x * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(*x >> 33) % n;
}

struct life {
    bool live, saved;
    uint32_t model, owed, left, done, n_pages;
};

#define RANDOM_PAGE 4u

static uint32_t random_pages(uint32_t n_rows)
{
    return (n_rows + RANDOM_PAGE - 1) / RANDOM_PAGE;
}

static void random_add(struct sched *s, struct life *lives, uint64_t *x, uint64_t now)
{
    uint32_t n_rows = 1 + draw(x, 60), left = 1 + draw(x, 20);
    struct sched_request r = {.model = draw(x, 3),
                              .uid = draw(x, 9),
                              .n_rows = n_rows,
                              .n_pages = random_pages(n_rows + left),
                              .class = (enum sched_class)draw(x, 3),
                              .deadline_us = draw(x, 3) == 0 ? now + draw(x, 100000) : 0};
    uint32_t slot = 0;
    enum sched_limit limit = SCHED_LIMIT_NONE;
    int rc = sched_add(s, &r, now, &slot, &limit);
    assert_int_equal(rc == -EDQUOT, limit != SCHED_LIMIT_NONE);
    if (rc == 0) {
        assert_false(lives[slot].live);
        lives[slot] = (struct life){
            .live = true, .model = r.model, .owed = n_rows, .left = left, .n_pages = r.n_pages};
        assert_true(sched_position(s, slot) < 64);
        assert_true(sched_estimate_us(s, slot, now) >= now);
    } else if (limit == SCHED_LIMIT_TOKENS) {
        assert_true(sched_quota_us(s, r.uid, r.n_rows, now) > now);
    }
}

static void random_disturb(struct sched *s, struct life *lives, uint64_t *x, uint32_t *pages)
{
    uint32_t slot = draw(x, 64);
    if (lives[slot].live && draw(x, 2) == 0)
        sched_park(s, slot);
    else if (lives[slot].live)
        sched_resume(s, slot);
    slot = draw(x, 64);
    if (lives[slot].live && draw(x, 20) == 0) {
        sched_remove(s, slot);
        lives[slot].live = false;
    }
    if (draw(x, 200) == 0) {
        uint32_t model = draw(x, 3);
        pages[model] = 9 + draw(x, 20);
        sched_set_pages(s, model, pages[model]);
    }
    if (draw(x, 100) == 0) {
        struct sched_policy p = {draw(x, 10001),      draw(x, 4),  draw(x, 9),
                                 draw(x, 2) * 100000, draw(x, 20), (enum sched_class)draw(x, 3)};
        int rc = sched_set_policy(s, draw(x, 9), draw(x, 2) ? &p : NULL);
        assert_true(rc == 0 || rc == -ENOSPC);
    }
}

static uint32_t random_available(const struct life *lives, uint32_t model, uint32_t pages)
{
    uint32_t held = 0;
    for (int slot = 0; slot < 64; slot++)
        if (lives[slot].live && lives[slot].model == model && !lives[slot].saved)
            held += random_pages(lives[slot].done);
    return held < pages ? pages - held : 0;
}

static void random_preempt(struct sched *s, struct life *l, uint32_t slot, uint64_t *x)
{
    l->saved = l->done > 0 && draw(x, 2) == 0;
    if (!l->saved) {
        l->owed += l->done;
        l->done = 0;
    }
    sched_preempted(s, slot, l->owed, random_pages(l->done + l->owed));
    sched_check(s);
}

static void random_relieve(struct sched *s, struct life *lives, uint64_t *x, uint64_t now,
                           const uint32_t *pages)
{
    for (uint32_t m = 0; m < 3; m++) {
        uint32_t victim, n = 0;
        sched_set_available(s, m, random_available(lives, m, pages[m]));
        while ((victim = sched_victim(s, m, now)) != UINT32_MAX) {
            assert_true(victim < 64 && lives[victim].live && lives[victim].model == m);
            assert_int_equal(sched_position(s, victim), 0); /* it runs */
            assert_true(++n <= 10);
            random_preempt(s, &lives[victim], victim, x);
            sched_set_available(s, m, random_available(lives, m, pages[m]));
        }
    }
}

/* A cache may have some of what a sequence starts with. */
static void random_begin(struct sched *s, struct life *l, struct sched_work *w, uint64_t *x)
{
    if (l->done == 0 && l->owed > 1 && draw(x, 4) == 0) {
        uint32_t found = draw(x, l->owed - 1) + 1;
        sched_found(s, w->slot, found);
        sched_check(s);
        l->done = found;
        l->owed -= found;
        w->n_rows = w->n_rows < l->owed ? w->n_rows : l->owed;
    }
    l->saved = false;
}

static uint32_t random_step(struct sched *s, struct life *lives, uint64_t *x, uint64_t *now,
                            const uint32_t *pages)
{
    struct sched_work w[12];
    random_relieve(s, lives, x, *now, pages);
    uint32_t model = 99, rows = 0, n = sched_plan(s, *now, &model, w, 12), finished = 0;
    uint32_t available = n > 0 ? random_available(lives, model, pages[model]) : 0;
    bool seen[64] = {false};
    uint32_t kinds[2] = {0};
    *now += 500 + draw(x, 20000);
    for (uint32_t i = 0; i < n; i++) {
        struct life *l = &lives[w[i].slot];
        assert_true(l->live && !seen[w[i].slot]);
        assert_in_range(w[i].n_rows, 1, l->owed);
        uint32_t held = l->saved ? 0 : random_pages(l->done);
        random_begin(s, l, &w[i], x);
        seen[w[i].slot] = true;
        rows += w[i].n_rows;
        kinds[w[i].n_rows > 1] += w[i].n_rows;
        l->owed -= w[i].n_rows;
        l->done += w[i].n_rows;
        assert_true(random_pages(l->done) - held <= available);
        available -= random_pages(l->done) - held;
        bool drew = l->owed == 0;
        l->owed += drew && --l->left > 0;
        sched_ran(s, w[i].slot, w[i].n_rows, drew && l->owed > 0);
        if (l->owed == 0) {
            sched_remove(s, w[i].slot);
            l->live = false;
            finished++;
        }
    }
    if (n > 0)
        sched_measured(s, model, kinds[1], kinds[0], 1 + draw(x, 30000));
    assert_true(n <= 12 && rows <= 24);
    return finished;
}

static void test_random_traffic_keeps_every_invariant(void **state)
{
    (void)state;
    uint32_t finished = 0;
    uint64_t n_preemptions = 0;
    for (uint64_t seed = 1; seed <= 20; seed++) {
        struct sched_config c = {.max_sequences = 64,
                                 .max_running = 10,
                                 .step_rows = 24,
                                 .n_models = 3,
                                 .page_tokens = RANDOM_PAGE,
                                 .park_us = 200000,
                                 .n_users_max = 6,
                                 .age_us = 100000};
        struct sched *s;
        struct life lives[64] = {{false}};
        uint32_t pages[3] = {20, 20, 20};
        uint64_t x = seed, now = 0;
        assert_int_equal(sched_new(&c, &s), 0);
        for (uint32_t m = 0; m < 3; m++)
            sched_set_pages(s, m, 20);
        for (int i = 0; i < 2000; i++) {
            if (draw(&x, 3) != 0)
                random_add(s, lives, &x, now);
            random_disturb(s, lives, &x, pages);
            finished += random_step(s, lives, &x, &now, pages);
            sched_check(s);
        }
        n_preemptions += sched_count(s).n_preemptions;
        for (uint32_t m = 0; m < 3; m++) { /* nobody is left behind */
            pages[m] = 28;
            sched_set_pages(s, m, pages[m]);
        }
        for (uint32_t slot = 0; slot < 64; slot++)
            if (lives[slot].live)
                sched_resume(s, slot);
        for (uint32_t uid = 0; uid < 9; uid++)
            sched_set_policy(s, uid, NULL);
        for (int i = 0; i < 3000; i++)
            random_step(s, lives, &x, &now, pages);
        struct sched_counts counts = sched_count(s);
        assert_int_equal(counts.n_waiting + counts.n_running + counts.n_parked, 0);
        sched_check(s);
        sched_free(s);
    }
    print_message("random traffic: %u finished, %" PRIu64 " preemptions\n", finished,
                  n_preemptions);
    assert_true(n_preemptions > 500);
    assert_true(finished > 3000);
}

/* ---- cost ------------------------------------------------------------------------------------ */

static double wall_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return 1e6 * (double)t.tv_sec + (double)t.tv_nsec / 1e3;
}

static void measure(const char *what, uint32_t n_users, uint32_t n_clients, uint32_t prompt,
                    uint32_t answer, uint32_t step_rows)
{
    struct sched_config c = {.max_running = 256, .step_rows = step_rows, .max_sequences = 4096};
    struct sim *sim = make(c, CPU_FIXED, CPU_DECODE, 500);
    struct sched_work w[SIM_ROOM];
    uint32_t model;
    double plan_us = 0, plan_us_max = 0, ran_us = 0;
    for (uint32_t i = 0; i < n_clients; i++)
        sim_client(sim, 1, i % n_users, prompt, answer)->pause = i % 7;
    run(sim, 600);
    for (int i = 0; i < 2000; i++) {
        sim_submit(sim);
        double from = wall_us();
        uint32_t n = sched_plan(sim->sched, sim->now_us, &model, w, SIM_ROOM);
        double to = wall_us();
        plan_us += to - from;
        plan_us_max = to - from > plan_us_max ? to - from : plan_us_max;
        sim->now_us += 5000;
        sim->n_steps++;
        from = wall_us();
        for (uint32_t j = 0; j < n; j++)
            sim_ran(sim, &w[j], sim->now_us);
        ran_us += wall_us() - from;
    }
    print_message("%-62s plan %5.1f us (max %5.1f), after the step %5.1f us\n", what,
                  plan_us / 2000, plan_us_max, ran_us / 2000);
    done(sim);
}

/* Pages for a third: some uids' requests wait for them, and what runs is preempted for the rest. */
static void measure_pressure(const char *what, uint32_t n_users)
{
    struct sched_config c = {.max_running = 256, .max_sequences = 4096};
    struct sim *sim = make(c, CPU_FIXED, CPU_DECODE, 500);
    struct sched_work w[SIM_ROOM];
    uint32_t model, n_running = 0;
    double plan_us = 0, victim_us = 0;
    for (uint32_t i = 0; i < 512; i++)
        sim_client(sim, 1, i % n_users, 64, 400);
    sim->pages = 512 * sim_pages_for(sim, 464) / 3;
    sched_set_pages(sim->sched, 0, sim->pages);
    run(sim, 600);
    for (int i = 0; i < 2000; i++) {
        sim_submit(sim);
        sim_relieve(sim);
        double from = wall_us();
        (void)sched_victim(sim->sched, 0, sim->now_us);
        double asked = wall_us();
        uint32_t n = sched_plan(sim->sched, sim->now_us, &model, w, SIM_ROOM);
        plan_us += wall_us() - asked;
        victim_us += asked - from;
        n_running += sched_count(sim->sched).n_running;
        sim->now_us += 5000;
        sim->n_steps++;
        for (uint32_t j = 0; j < n; j++)
            sim_ran(sim, &w[j], sim->now_us);
    }
    print_message("%-62s plan %5.1f us, victim %4.1f us, %u running\n", what, plan_us / 2000,
                  victim_us / 2000, n_running / 2000);
    done(sim);
}

/* 4,095 requests wait behind one that runs. */
static void measure_queue(const char *what, uint32_t n_users)
{
    struct sched_config c = {.max_running = 1, .max_sequences = 4096};
    struct sim *sim = make(c, CPU_FIXED, CPU_DECODE, 500);
    struct sched_work w[4];
    uint32_t model, slot = 0, sum = 0;
    uint64_t x = 1;
    double from = wall_us();
    for (uint32_t i = 0; i < 4096; i++) {
        struct sched_request r = {.uid = i % n_users,
                                  .n_rows = 1,
                                  .n_pages = 1,
                                  .class = (enum sched_class)draw(&x, 3),
                                  .deadline_us = 1 + draw(&x, 1000)};
        assert_int_equal(sched_add(sim->sched, &r, 1, &slot, NULL), 0);
    }
    double added = wall_us();
    for (uint32_t i = 1; i < 4096; i++)
        sum += sched_position(sim->sched, i);
    double asked = wall_us(), start_us_max = 0;
    for (uint32_t i = 0; i < 4096; i++) {
        double before = wall_us();
        assert_int_equal(sched_plan(sim->sched, 2, &model, w, 4), 1);
        double took = wall_us() - before;
        start_us_max = took > start_us_max ? took : start_us_max;
        sched_ran(sim->sched, w[0].slot, 1, 0);
        sched_remove(sim->sched, w[0].slot);
    }
    print_message("%-62s add %.1f us, position %.1f us, plan with a start %.1f us (max %.1f)%s\n",
                  what, (added - from) / 4096, (asked - added) / 4096, (wall_us() - asked) / 4096,
                  start_us_max, sum == 0 ? "?" : "");
    done(sim);
}

static void test_cost_of_a_step(void **state)
{
    (void)state;
    measure("256 decodes of 1 uid", 1, 256, 16, 400, 512);
    measure("256 decodes of 32 uids", 32, 256, 16, 400, 512);
    measure("256 decodes of 256 uids", 256, 256, 16, 400, 512);
    measure("256 decodes of 256 uids, 128 rows: quotas by heap", 256, 256, 16, 400, 128);
    measure("256 running, 512 clients of 100 uids, answers of 4: starts", 100, 512, 16, 4, 512);
    measure("256 long prompts of 256 uids: who gets prefill", 256, 256, 4000, 4, 512);
    measure_pressure("512 clients of 4 uids, pages for a third", 4);
    measure_pressure("512 clients of 256 uids, pages for a third", 256);
    measure_queue("4095 waiting of 1 uid", 1);
    measure_queue("4095 waiting of 256 uids", 256);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_client_and_31_get_equal_shares),
        cmocka_unit_test(test_long_prompts_and_short_answers_come_near),
        cmocka_unit_test(test_skips_max_bounds_the_price),
        cmocka_unit_test(test_shares_follow_weights),
        cmocka_unit_test(test_shares_follow_weights_among_starts),
        cmocka_unit_test(test_eight_uids_of_all_sizes_share_equally),
        cmocka_unit_test(test_a_newcomer_is_not_credited),
        cmocka_unit_test(test_a_long_pause_is_no_credit),
        cmocka_unit_test(test_nobody_is_held_back_for_one_who_does_not_run),
        cmocka_unit_test(test_batch_waits_for_interactive_but_not_for_ever),
        cmocka_unit_test(test_batch_is_not_starved_by_its_own_uid),
        cmocka_unit_test(test_tokens_a_minute),
        cmocka_unit_test(test_a_long_prompt_lengthens_decode_steps_by_a_stated_share),
        cmocka_unit_test(test_prefill_runs_at_least_one_row),
        cmocka_unit_test(test_overcommitted_shares_are_equal),
        cmocka_unit_test(test_overcommit_does_not_thrash),
        cmocka_unit_test(test_random_traffic_keeps_every_invariant),
        cmocka_unit_test(test_cost_of_a_step),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
