/* test_past.c: a request that continues a past draws what one request with all the tokens draws. */
#include "fake_state.h"

static int32_t tokens[FAKE_TOKENS_MAX];

/* Runs a request to the end of its answer: tokens[from .. to) after n_new new ones before `from`.
 */
static struct engine_sequence *answer(struct engine_model *m, struct engine_past *past,
                                      uint32_t from, uint32_t n_new, uint32_t to, uint32_t window,
                                      uint64_t seed)
{
    struct infer_sampling p = fake_sampling(seed, to - from);
    struct engine_request r = fake_request(tokens + from - n_new, n_new, &p);
    r.window = window;
    r.past = past;
    struct engine_sequence *s = fake_new(m, &r);
    assert_true(s->n_prompt == from);
    engine_sequence_begin(s);
    fake_run_tokens(s, 37, tokens + from, to - from);
    assert_int_equal(s->output.finish, INFER_FINISH_LENGTH);
    return s;
}

static struct engine_past *keep(struct engine_sequence *s)
{
    struct engine_past *past = NULL;
    assert_int_equal(engine_sequence_keep(s, &past), 0);
    engine_sequence_free(s);
    return past;
}

/* Six turns, each with one request's tokens as the measure. */
static void check_turns(struct engine_model *m, uint32_t window, bool lose_index)
{
    enum { ASKED = 50, ANSWERED = 34, TURN = ASKED + ANSWERED, TURNS = 6 };
    struct engine_past *past = NULL;
    for (uint32_t turn = 0; turn < TURNS; turn++) {
        uint32_t from = turn * TURN + ASKED, to = from + ANSWERED;
        struct infer_sampling p = fake_sampling(50 + turn, ANSWERED);
        fake_prompt(tokens + turn * TURN, ASKED, turn);
        fake_expect(tokens, from, to, &p, window, 0);
        struct engine_sequence *s = answer(m, past, from, ASKED, to, window, 50 + turn);
        bool slid_before = window > 0 && turn * TURN > window;
        uint32_t in_index = (turn * TURN - 1) / FAKE_ROWS * FAKE_ROWS; /* the last never ran */
        if (window == 0)
            assert_true(s->n_found == (turn == 0 || lose_index ? 0 : in_index));
        if (slid_before)
            assert_true(s->n_found == turn * TURN - 1);
        past = keep(s);
        const int32_t *kept;
        uint32_t n = engine_past_tokens(past, &kept);
        assert_int_equal(n, to);
        assert_memory_equal(kept, tokens, to * sizeof *kept);
        assert_ptr_equal(engine_past_model(past), m);
        assert_true(engine_past_bytes(past) >= to * sizeof *kept);
        assert_int_equal(engine_past_pages(past), kv_pool_used(m->pool));
        if (window == 0)
            assert_int_equal(engine_past_pages(past), 0);
        if (lose_index) {
            struct kv_sequence all;
            uint32_t n_free = kv_pool_available(m->pool) * FAKE_ROWS;
            assert_int_equal(kv_sequence_init(m->pool, &all, n_free, 9), 0);
            assert_int_equal(kv_sequence_grow(m->pool, &all, n_free), 0);
            kv_sequence_done(m->pool, &all);
        }
    }
    engine_past_free(past);
    assert_int_equal(kv_pool_used(m->pool), 0);
}

static void test_a_continued_answer_is_one_request(void **state)
{
    check_turns(*state, 0, false);
}

static void test_a_continued_answer_needs_no_index(void **state)
{
    check_turns(*state, 0, true);
}

static void test_a_slid_window_goes_on_in_its_state(void **state)
{
    check_turns(*state, 64, false);
    check_turns(*state, 96, true);
    check_turns(*state, 256, false);
}

static void test_a_long_conversation_is_constant_memory(void **state)
{
    struct engine_model *m = *state;
    struct engine_past *past = NULL;
    uint32_t n = 0;
    size_t bytes = 0;
    for (uint32_t turn = 0; turn < 60; turn++) {
        struct infer_sampling p = fake_sampling(50 + turn, 300);
        p.penalty_window = INFER_PENALTY_WINDOW_MAX; /* sees the past */
        fake_prompt(tokens + n, 100, turn);
        fake_expect(tokens, n + 100, n + 400, &p, 64, 0);
        struct engine_request r = fake_request(tokens + n, 100, &p);
        r.window = 64;
        r.past = past;
        struct engine_sequence *s = fake_new(m, &r);
        assert_true(s->n_room < 9000);
        engine_sequence_begin(s);
        fake_run_tokens(s, 64, tokens + n + 100, 300);
        past = keep(s);
        n += 400;
        if (turn == 40)
            bytes = engine_past_bytes(past);
    }
    assert_int_equal(engine_past_bytes(past), bytes);
    assert_int_equal(engine_past_pages(past), 4);
    engine_past_free(past);
}

static void test_a_window_may_begin_in_a_plain_past(void **state)
{
    struct engine_model *m = *state;
    struct infer_sampling p = fake_sampling(1, 100), q = fake_sampling(2, 200);
    fake_prompt(tokens, 200, 1);
    fake_expect(tokens, 200, 300, &p, 0, 0);
    struct engine_past *past = keep(answer(m, NULL, 200, 200, 300, 0, 1));
    fake_prompt(tokens + 300, 20, 2);
    fake_expect(tokens, 320, 520, &q, 64, 0);
    engine_sequence_free(answer(m, past, 320, 20, 520, 64, 2));
}

/* Nothing new: the last token's row is owed, and the answer goes on. */
static void test_a_past_alone_can_be_continued(void **state)
{
    struct engine_model *m = *state;
    static const uint32_t windows[] = {0, 64};
    for (int i = 0; i < 2; i++) {
        struct infer_sampling p = fake_sampling(1, 300);
        fake_prompt(tokens, 100, 1);
        fake_expect(tokens, 100, 400, &p, windows[i], 0);
        struct engine_past *past = keep(answer(m, NULL, 100, 100, 200, windows[i], 1));
        past = keep(answer(m, past, 200, 0, 300, windows[i], 1));
        engine_sequence_free(answer(m, past, 300, 0, 400, windows[i], 1));
    }
}

static void test_a_cancelled_prompt_is_kept_as_far_as_it_came(void **state)
{
    struct engine_model *m = *state;
    static const uint32_t windows[] = {0, 64};
    for (int i = 0; i < 2; i++) {
        struct infer_sampling p = fake_sampling(1, 50);
        fake_prompt(tokens, 300, 1);
        fake_expect(tokens, 300, 350, &p, windows[i], 0);
        struct engine_request r = fake_request(tokens, 290, &p);
        r.window = windows[i];
        struct engine_sequence *s = fake_new(m, &r);
        engine_sequence_begin(s);
        for (int j = 0; j < 3; j++)
            assert_false(fake_step(s, 50));
        engine_sequence_free(answer(m, keep(s), 300, 10, 350, windows[i], 1));
    }
}

static void test_an_end_token_stays(void **state)
{
    struct engine_model *m = *state;
    struct infer_sampling p = fake_sampling(1, 50);
    size_t n_end;
    const int32_t *end = tokenizer_end_tokens(m->tokenizer, &n_end), *kept;
    fake_prompt(tokens, 20, 1);
    tokens[20] = end[0];
    struct engine_request r = fake_request(tokens, 21, &p);
    struct engine_past *past = keep(fake_new(m, &r));
    assert_int_equal(engine_past_tokens(past, &kept), 21);
    assert_int_equal(kept[20], end[0]);
    engine_past_free(past);
}

static void test_what_cannot_be_continued_is_refused_with_numbers(void **state)
{
    struct engine_model *m = *state, *other = fake_model(FAKE_PAGES);
    struct infer_sampling p = fake_sampling(1, 100);
    fake_prompt(tokens, 500, 1);
    fake_expect(tokens, 20, 120, &p, 64, 0);
    struct engine_past *past = keep(answer(m, NULL, 20, 20, 120, 64, 1));
    fake_prompt(tokens, 500, 1);
    struct engine_request r = fake_request(tokens, 5, &p);
    r.past = past;
    fake_expect_refusal(m, &r, INFER_E_BAD_PARAMETER,
                        "the conversation's window of 64 tokens with 4 sinks has slid; ask for "
                        "that one again, not for 0 with 0");
    r.window = 64;
    r.sinks = 5;
    fake_expect_refusal(m, &r, INFER_E_BAD_PARAMETER,
                        "the conversation's window of 64 tokens with 4 sinks has slid; ask for "
                        "that one again, not for 64 with 5");
    r.sinks = 4; /* the default, named */
    fake_expect_refusal(other, &r, INFER_E_BAD_PARAMETER, "the conversation is one with fake");
    engine_past_free(past);

    r = fake_request(tokens, 400, &p);
    past = keep(fake_new(m, &r));
    r = fake_request(tokens, 112, &p);
    r.past = past;
    fake_expect_refusal(m, &r, INFER_E_PROMPT_TOO_LONG,
                        "the conversation has 400 tokens and 112 are new, the context of fake "
                        "holds 512 with the answer; a window lets old ones leave");
    r.n_tokens = 111;
    engine_sequence_free(fake_new(m, &r)); /* fits, and the past is gone with it */
    r = fake_request(tokens, 0, &p);
    fake_expect_refusal(m, &r, INFER_E_PROMPT_EMPTY, "the prompt holds no token");
    void *model = other;
    teardown(&model);
}

/* ---- the past as it was ---------------------------------------------------------------------- */

static void test_a_failed_request_leaves_the_past_as_it_was(void **state)
{
    struct engine_model *m = *state;
    static const uint32_t windows[] = {0, 64};
    for (int i = 0; i < 2; i++) {
        struct infer_sampling p = fake_sampling(1, 100);
        int32_t bad[40];
        fake_prompt(tokens, 20, 1);
        fake_expect(tokens, 20, 120, &p, windows[i], 0);
        struct engine_past *past = keep(answer(m, NULL, 20, 20, 120, windows[i], 1));
        for (uint32_t rows = 0; rows < 8; rows += 7) { /* before and after it has run a little */
            fake_prompt(bad, 40, 99);
            struct engine_request r = fake_request(bad, 40, &p);
            r.window = windows[i];
            r.past = past;
            struct engine_sequence *s = fake_new(m, &r);
            engine_sequence_begin(s);
            if (rows > 0)
                fake_step(s, rows);
            past = NULL;
            assert_int_equal(engine_sequence_revert(s, &past), 0);
            engine_sequence_free(s);
        }
        fake_prompt(tokens + 120, 30, 2);
        fake_expect(tokens, 150, 250, &p, windows[i], 0);
        engine_sequence_free(answer(m, past, 150, 30, 250, windows[i], 1));
    }
}

static void test_a_window_that_slid_since_cannot_go_back(void **state)
{
    struct engine_model *m = *state;
    struct infer_sampling p = fake_sampling(1, 100);
    fake_prompt(tokens, 20, 1);
    fake_expect(tokens, 20, 120, &p, 64, 0);
    struct engine_past *past = keep(answer(m, NULL, 20, 20, 120, 64, 1));
    fake_prompt(tokens + 120, 40, 2);
    struct engine_request r = fake_request(tokens + 120, 40, &p);
    r.window = 64;
    r.past = past;
    struct engine_sequence *s = fake_new(m, &r);
    engine_sequence_begin(s);
    while (!fake_step(s, 40))
        ;
    past = NULL;
    assert_int_equal(engine_sequence_revert(s, &past), -ENODATA);
    assert_null(past);
    assert_int_equal(kv_pool_used(m->pool), 0);
    engine_sequence_free(s);
}

/* A past whose pages were saved, as such or while a request that continues it waited. */
static void test_a_saved_past_goes_on(void **state)
{
    struct engine_model *m = *state;
    static _Alignas(64) uint8_t memory[FAKE_PAGES * sizeof fake.pages[0]];
    struct infer_sampling p = fake_sampling(1, 100);
    fake_prompt(tokens, 20, 1);
    fake_expect(tokens, 20, 120, &p, 64, 0);
    for (int way = 0; way < 3; way++) {
        struct engine_past *past = keep(answer(m, NULL, 20, 20, 120, 64, 1));
        fake_prompt(tokens + 120, 30, 2);
        fake_expect(tokens, 150, 250, &p, 64, 0);
        assert_false(engine_past_is_saved(past));
        assert_true(engine_past_saved_bytes(past) > 0);
        if (way == 0) {
            fake.fail_read = 2;
            assert_int_equal(engine_past_save(past, memory), -EIO);
            assert_false(engine_past_is_saved(past));
            assert_int_equal(engine_past_save(past, memory), 0);
        }
        struct engine_request r = fake_request(tokens + 120, 30, &p);
        r.window = 64;
        r.past = past;
        struct engine_sequence *s = fake_new(m, &r);
        if (way > 0)
            assert_int_equal(engine_sequence_save(s, memory), 0);
        assert_int_equal(kv_pool_used(m->pool), 0);
        if (way == 2) { /* it gave up: the past is as it was, and saved */
            past = NULL;
            assert_int_equal(engine_sequence_revert(s, &past), 0);
            assert_true(engine_past_is_saved(past));
            assert_int_equal(engine_past_pages(past), 0);
            engine_sequence_free(s);
            r.past = past;
            s = fake_new(m, &r);
        }
        assert_true(s->saved);
        memset(fake.pages, 0xee, sizeof fake.pages);
        assert_int_equal(engine_sequence_restore(s, memory), 0);
        assert_int_equal(engine_sequence_begin(s), 0);
        fake_run_tokens(s, 37, tokens + 150, 100);
        engine_sequence_free(s);
        assert_int_equal(kv_pool_used(m->pool), 0);
    }
}

/* A sequence that is over while it is saved leaves what was saved. */
static void test_a_saved_sequence_leaves_a_saved_past(void **state)
{
    struct engine_model *m = *state;
    static _Alignas(64) uint8_t memory[FAKE_PAGES * sizeof fake.pages[0]];
    struct infer_sampling p = fake_sampling(1, 100);
    fake_prompt(tokens, 20, 1);
    fake_expect(tokens, 20, 120, &p, 64, 0);
    struct engine_sequence *s = answer(m, NULL, 20, 20, 120, 64, 1);
    assert_int_equal(engine_sequence_save(s, memory), 0);
    struct engine_past *past = keep(s);
    assert_true(engine_past_is_saved(past));
    fake_prompt(tokens + 120, 30, 2);
    fake_expect(tokens, 150, 250, &p, 64, 0);
    struct engine_request r = fake_request(tokens + 120, 30, &p);
    r.window = 64;
    r.past = past;
    s = fake_new(m, &r);
    assert_int_equal(engine_sequence_restore(s, memory), 0);
    engine_sequence_begin(s);
    fake_run_tokens(s, 37, tokens + 150, 100);
    engine_sequence_free(s);
}

/* What a request continues plainly can be had back as long as its tokens are there. */
static void test_a_plain_past_comes_back_from_a_slid_window(void **state)
{
    struct engine_model *m = *state;
    struct infer_sampling p = fake_sampling(1, 50);
    fake_prompt(tokens, 20, 1);
    fake_expect(tokens, 20, 70, &p, 0, 0);
    struct engine_past *past = keep(answer(m, NULL, 20, 20, 70, 0, 1));
    struct engine_request r = fake_request(tokens, 60, &p);
    r.window = 64;
    r.past = past;
    struct engine_sequence *s = fake_new(m, &r);
    engine_sequence_begin(s);
    while (!fake_step(s, 40))
        ;
    assert_true(s->n_slid > 0);
    assert_int_equal(engine_sequence_revert(s, &past), 0);
    engine_sequence_free(s);
    fake_prompt(tokens + 70, 30, 2);
    fake_expect(tokens, 100, 150, &p, 0, 0);
    engine_sequence_free(answer(m, past, 100, 30, 150, 0, 1));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_a_continued_answer_is_one_request),
        TEST(test_a_continued_answer_needs_no_index),
        TEST(test_a_slid_window_goes_on_in_its_state),
        TEST(test_a_long_conversation_is_constant_memory),
        TEST(test_a_window_may_begin_in_a_plain_past),
        TEST(test_a_past_alone_can_be_continued),
        TEST(test_a_cancelled_prompt_is_kept_as_far_as_it_came),
        TEST(test_an_end_token_stays),
        TEST(test_what_cannot_be_continued_is_refused_with_numbers),
        TEST(test_a_failed_request_leaves_the_past_as_it_was),
        TEST(test_a_window_that_slid_since_cannot_go_back),
        TEST(test_a_saved_past_goes_on),
        TEST(test_a_saved_sequence_leaves_a_saved_past),
        TEST(test_a_plain_past_comes_back_from_a_slid_window),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
