/* test_window.c: a window slides at rows that follow from counts alone, its rows stay what they
 * were, and its memory is constant. */
#include "fake_state.h"

static int32_t tokens[FAKE_TOKENS_MAX];

static void test_what_no_window_can_be_is_refused_with_numbers(void **state)
{
    struct infer_sampling p = fake_sampling(1, 10);
    fake_prompt(tokens, 20, 1);
    struct engine_request r = fake_request(tokens, 20, &p);
    r.window = 63;
    fake_expect_refusal(*state, &r, INFER_E_BAD_PARAMETER,
                        "a window of 63 tokens; with fake it may have 64 to 512");
    r.window = 513;
    fake_expect_refusal(*state, &r, INFER_E_BAD_PARAMETER,
                        "a window of 513 tokens; with fake it may have 64 to 512");
    r.window = 100;
    r.sinks = 26;
    fake_expect_refusal(*state, &r, INFER_E_BAD_PARAMETER,
                        "26 sinks; in a window of 100 tokens there may be 25");
    r.window = 0;
    fake_expect_refusal(*state, &r, INFER_E_BAD_PARAMETER,
                        "26 sinks without a window; set the window, too");
    r.window = 64;
    r.sinks = 0;
    r.kind = ENGINE_SCORE;
    fake_expect_refusal(*state, &r, INFER_E_BAD_PARAMETER,
                        "scores take no window; they want every token's whole context");
}

static void test_a_window_is_whole_pages(void **state)
{
    static const struct {
        uint32_t window, sinks, rows, first, leave;
    } cases[] = {{64, 0, 64, 16, 16},      {64, 16, 64, 16, 16},      {79, 17, 64, 32, 16},
                 {80, 20, 80, 32, 16},     {96, 4, 96, 16, 32},       {100, 1, 96, 16, 32},
                 {256, 64, 256, 64, 64},   {511, 127, 496, 128, 128}, {512, 0, 512, 16, 128},
                 {512, 128, 512, 128, 128}};
    struct infer_sampling p = fake_sampling(1, 0);
    fake_prompt(tokens, 20, 1);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct engine_request r = fake_request(tokens, 20, &p);
        r.window = cases[i].window;
        r.sinks = cases[i].sinks;
        struct engine_sequence *s = fake_new(*state, &r);
        assert_int_equal(s->window.rows, cases[i].rows);
        assert_int_equal(s->window.sinks, cases[i].first);
        assert_int_equal(s->window.leave, cases[i].leave);
        assert_int_equal(engine_sequence_pages(s), cases[i].rows / FAKE_ROWS);
        assert_true(s->max_tokens == UINT64_MAX);
        engine_sequence_free(s);
    }
}

/* Each cut of the rows into steps, and prompts shorter and longer than the window. */
static void test_the_cut_into_steps_changes_nothing(void **state)
{
    static const uint32_t prompts[] = {1, 47, 64, 65, 80, 150, 400};
    struct engine_model *m = *state;
    for (size_t i = 0; i < sizeof prompts / sizeof prompts[0]; i++) {
        uint32_t n = prompts[i], n_answer = 150;
        uint64_t log = 0, shifts = 0;
        struct infer_sampling p = fake_sampling(5 + i, n_answer);
        fake_prompt(tokens, n, i);
        fake_expect(tokens, n, n + n_answer, &p, 96, 20);
        for (uint32_t most = 1; most < 140; most += most < 40 ? 1 : 7) {
            struct engine_request r = fake_request(tokens, n, &p);
            r.window = 96;
            r.sinks = 20;
            fake.log = fake.n_shifts = 0;
            struct engine_sequence *s = fake_new(m, &r);
            assert_int_equal(engine_sequence_begin(s), 0);
            fake_run_tokens(s, most, tokens + n, n_answer);
            assert_int_equal(s->output.finish, INFER_FINISH_LENGTH);
            engine_sequence_free(s);
            assert_int_equal(kv_pool_used(m->pool), 0);
            assert_int_equal(kv_pool_count(m->pool).n_cached, 0); /* nothing is published */
            if (most > 1) {
                assert_true(log == fake.log);
                assert_int_equal(shifts, fake.n_shifts);
            }
            log = fake.log;
            shifts = fake.n_shifts;
        }
    }
}

static void test_windows_share_a_batch_with_others(void **state)
{
    struct engine_model *m = *state;
    static int32_t want[3][600];
    static const uint32_t windows[] = {64, 0, 128};
    struct engine_sequence *s[3];
    struct infer_sampling p[3];
    struct engine_work work[3];
    uint32_t n[3] = {0}, draws = 0;
    for (uint32_t i = 0; i < 3; i++) {
        p[i] = fake_sampling(i + 1, 300);
        fake_prompt(want[i], 100, i);
        fake_expect(want[i], 100, 400, &p[i], windows[i], 0);
        struct engine_request r = fake_request(want[i], 100, &p[i]);
        r.window = windows[i];
        s[i] = fake_new(m, &r);
        engine_sequence_begin(s[i]);
    }
    for (uint32_t left = 3; left > 0;) {
        uint32_t n_work = 0;
        for (uint32_t i = 0; i < 3; i++) {
            uint32_t rows = engine_sequence_rows(s[i]),
                     most = 1 + (uint32_t)(rng_at(9, draws++) % 40);
            rows = engine_sequence_clamp(s[i], rows < most ? rows : most);
            if (n[i] < 300 && rng_at(10, draws++) % 3 != 0)
                work[n_work++] = (struct engine_work){s[i], rows};
        }
        if (n_work == 0)
            continue;
        assert_int_equal(engine_step(m, work, n_work), 0);
        const struct kv_sequence *all[] = {&s[0]->state, &s[1]->state, &s[2]->state};
        kv_check(m->pool, all, 3);
        for (uint32_t i = 0; i < n_work; i++)
            for (uint32_t j = 0; j < 3; j++)
                if (work[i].sequence == s[j] && s[j]->output.has_token) {
                    assert_int_equal(s[j]->output.token, want[j][100 + n[j]++]);
                    left -= n[j] == 300;
                }
    }
    for (uint32_t i = 0; i < 3; i++)
        engine_sequence_free(s[i]);
}

static void test_an_endless_answer_takes_constant_memory(void **state)
{
    struct engine_model *m = *state;
    const uint32_t n = 30, n_answer = 30000;
    struct infer_sampling p = fake_sampling(3, 0);
    p.penalty_window = INFER_PENALTY_WINDOW_MAX;
    fake_prompt(tokens, n, 1);
    struct engine_request r = fake_request(tokens, n, &p);
    r.window = 64;
    struct engine_sequence *s = fake_new(m, &r);
    fake_expect(tokens, n, n + n_answer, &p, 64, 0);
    uint32_t room = s->n_room, gave = 0;
    assert_true(room < 5000);
    engine_sequence_begin(s);
    for (uint32_t i = 0; i < n_answer; i++) {
        fake_step(s, n);
        assert_true(s->output.has_token && s->output.finish == INFER_FINISH_NONE);
        assert_int_equal(s->output.token, tokens[n + i]);
        assert_int_equal(s->output.index, i);
        assert_true(s->state.n_pages <= 4);
        gave += s->output.n_gave;
    }
    assert_int_equal(s->n_room, room);
    assert_true(s->n_tokens == n + n_answer && s->n_forgotten > 20000);
    assert_true(s->n_slid / FAKE_ROWS == gave);
    engine_sequence_free(s);
}

static void test_max_tokens_may_exceed_the_context(void **state)
{
    struct infer_sampling p = fake_sampling(3, 2 * FAKE_CONTEXT);
    fake_prompt(tokens, 30, 1);
    fake_expect(tokens, 30, 30 + p.max_tokens, &p, 64, 0);
    struct engine_request r = fake_request(tokens, 30, &p);
    r.window = 64;
    struct engine_sequence *s = fake_new(*state, &r);
    engine_sequence_begin(s);
    fake_run_tokens(s, 30, tokens + 30, p.max_tokens - 1);
    assert_int_equal(s->output.finish, INFER_FINISH_NONE);
    fake_run_tokens(s, 30, tokens + 29 + p.max_tokens, 1);
    assert_int_equal(s->output.finish, INFER_FINISH_LENGTH);
    engine_sequence_free(s);
}

static void test_a_cached_prefix_is_the_same_as_computing_it(void **state)
{
    struct engine_model *m = *state;
    const uint32_t n = 200, n_answer = 200;
    struct infer_sampling p = fake_sampling(3, n_answer), one = fake_sampling(3, 1);
    fake_prompt(tokens, n, 1);
    struct engine_request r = fake_request(tokens, n, &one);
    struct engine_sequence *first = fake_new(m, &r);
    engine_sequence_begin(first);
    while (!fake_step(first, 50))
        ;
    fake_expect(tokens, n, n + n_answer, &p, 96, 0);
    r.sampling = &p;
    r.window = 96;
    struct engine_sequence *s = fake_new(m, &r);
    assert_int_equal(engine_sequence_begin(s), 96); /* all that is plain */
    assert_int_equal(s->n_found, 96);
    assert_int_equal(s->state.pages[0], first->state.pages[0]);
    for (uint32_t i = 1; i < 6; i++)
        assert_int_not_equal(s->state.pages[i], first->state.pages[i]);
    const struct kv_sequence *all[] = {&s->state, &first->state};
    kv_check(m->pool, all, 2);
    fake_run_tokens(s, 50, tokens + n, n_answer);
    kv_check(m->pool, all, 2);
    engine_sequence_free(s);
    engine_sequence_free(first);
}

/* No page for the copies of what others hold: the sinks' pages are shared, the rest is computed. */
static void test_a_lack_of_pages_only_costs_prefill(void **state)
{
    (void)state;
    struct engine_model *m = fake_model(16);
    const uint32_t n = 190;
    struct infer_sampling p = fake_sampling(3, 100), one = fake_sampling(3, 1);
    fake_prompt(tokens, n, 1);
    struct engine_request r = fake_request(tokens, n, &one);
    struct engine_sequence *first = fake_new(m, &r);
    engine_sequence_begin(first);
    while (!fake_step(first, 50))
        ;
    assert_int_equal(kv_pool_available(m->pool), 4);
    fake_expect(tokens, n, n + 100, &p, 96, 0);
    r.sampling = &p;
    r.window = 96;
    struct engine_sequence *s = fake_new(m, &r);
    assert_int_equal(engine_sequence_begin(s), 16);
    assert_int_equal(kv_pool_available(m->pool), 4);
    engine_sequence_free(first);
    fake_run_tokens(s, 50, tokens + n, 100);
    engine_sequence_free(s);
    void *model = m;
    teardown(&model);
}

static void test_a_page_that_cannot_be_shifted_fails_the_step(void **state)
{
    struct engine_model *m = *state;
    struct infer_sampling p = fake_sampling(3, 100);
    fake_prompt(tokens, 64, 1);
    struct engine_request r = fake_request(tokens, 64, &p);
    r.window = 64;
    struct engine_sequence *s = fake_new(m, &r);
    struct engine_past *past = NULL;
    engine_sequence_begin(s);
    assert_true(fake_step(s, 64));
    fake.fail_shift = 2;
    uint64_t rows = fake.n_rows;
    struct engine_work work = {s, 1};
    assert_int_equal(engine_step(m, &work, 1), -EIO);
    assert_true(fake.n_rows == rows); /* it was not run */
    assert_int_equal(engine_sequence_keep(s, &past), -ENODATA);
    assert_null(past);
    assert_int_equal(kv_pool_used(m->pool), 0);
    engine_sequence_free(s);
    s = fake_new(m, &r); /* the model goes on */
    engine_sequence_begin(s);
    assert_true(fake_step(s, 64) && fake_step(s, 1));
    engine_sequence_free(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_what_no_window_can_be_is_refused_with_numbers),
        TEST(test_a_window_is_whole_pages),
        TEST(test_the_cut_into_steps_changes_nothing),
        TEST(test_windows_share_a_batch_with_others),
        TEST(test_an_endless_answer_takes_constant_memory),
        TEST(test_max_tokens_may_exceed_the_context),
        TEST(test_a_cached_prefix_is_the_same_as_computing_it),
        cmocka_unit_test(test_a_lack_of_pages_only_costs_prefill),
        TEST(test_a_page_that_cannot_be_shifted_fails_the_step),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
