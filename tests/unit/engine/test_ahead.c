/* test_ahead.c: a step that is submitted before the one before it is collected leaves what it would
 * have left had it waited, and nothing of those that left it.
 *
 * The backend of fake_state.h works by itself here: what came out of a step is kept from its
 * outputs until it is collected, and a row's token may be what the step before draws. */
#include "fake_state.h"

struct under_way {
    struct infer_batch_output outputs[16];
    int rc;
};

static struct under_way steps[2];
static uint32_t n_steps, n_drawn;
static int32_t drawn[16];

static int alone_submit(struct infer_backend_model *m, struct infer_batch *b)
{
    static int32_t tokens[INFER_STEP_ROWS_MAX];
    struct infer_batch known = *b;
    struct under_way *step = &steps[n_steps];
    assert_true(n_steps < 2 && b->n_outputs <= 16);
    if (fake_fails(&m->fail_submit))
        return -EIO;
    for (uint32_t i = 0; i < b->n_rows; i++) {
        tokens[i] = b->tokens[i];
        if (tokens[i] < 0) {
            assert_in_range(-1 - tokens[i], 0, n_drawn - 1);
            tokens[i] = drawn[-1 - tokens[i]];
        }
    }
    known.tokens = tokens;
    step->rc = fake_run(m, &known);
    n_drawn = b->n_outputs;
    for (uint32_t i = 0; i < b->n_outputs; i++) {
        step->outputs[i] = b->outputs[i];
        drawn[i] = b->outputs[i].token;
        b->outputs[i].token = -77;
    }
    n_steps++;
    return 0;
}

static int alone_collect(struct infer_backend_model *m, struct infer_batch *b)
{
    (void)m;
    assert_true(n_steps > 0);
    int rc = steps[0].rc;
    memcpy(b->outputs, steps[0].outputs, b->n_outputs * sizeof *b->outputs);
    steps[0] = steps[1];
    n_steps--;
    return rc;
}

static struct infer_backend_api alone_api;

static int setup_alone(void **state)
{
    alone_api = fake_api;
    alone_api.submit = alone_submit;
    alone_api.collect = alone_collect;
    alone_api.max_under_way = 2;
    fake_model_api = &alone_api;
    n_steps = n_drawn = 0;
    return setup(state);
}

static int teardown_alone(void **state)
{
    fake_model_api = &fake_api;
    return teardown(state);
}

#define ALONE(name) cmocka_unit_test_setup_teardown(name, setup_alone, teardown_alone)

static void must_submit(struct engine_model *m, struct engine_sequence *const *s, uint32_t n)
{
    struct engine_work work[8];
    for (uint32_t i = 0; i < n; i++)
        work[i] = (struct engine_work){
            s[i], engine_sequence_under_way(s[i]) ? 1 : engine_sequence_rows(s[i])};
    assert_int_equal(engine_submit(m, work, n), 0);
}

static void check_pages(struct engine_model *m, struct engine_sequence *const *s, uint32_t n)
{
    const struct kv_sequence *all[8];
    for (uint32_t i = 0; i < n; i++)
        all[i] = &s[i]->state;
    kv_check(m->pool, all, n);
}

static struct infer_sampling forward(uint64_t seed, uint32_t max_tokens)
{
    struct infer_sampling p = fake_sampling(seed, max_tokens);
    p.penalty_window = 0; /* fake_state.h draws by all that the penalties see */
    return p;
}

/* ---- the same tokens ------------------------------------------------------------------------- */

static void test_tokens_are_those_of_steps_that_wait(void **state)
{
    struct engine_model *m = *state;
    enum { N = 3, PROMPT = 20, ANSWER = 70 };
    static int32_t want[N][PROMPT + ANSWER];
    struct engine_sequence *s[N];
    struct infer_sampling p[N];
    uint32_t n_got = 0, n_ahead = 0;
    for (uint32_t i = 0; i < N; i++) {
        p[i] = forward(i + 1, ANSWER - 10 * i); /* they end one after the other */
        fake_prompt(want[i], PROMPT, i + 1);
        fake_expect(want[i], PROMPT, PROMPT + ANSWER, &p[i], 0, 0);
        struct engine_request r = fake_request(want[i], PROMPT, &p[i]);
        s[i] = fake_new(m, &r);
        engine_sequence_begin(s[i]);
    }
    struct engine_sequence *now[N] = {s[0], s[1], s[2]}, *next[N];
    must_submit(m, now, N);
    for (uint32_t n = N; n > 0;) {
        uint32_t n_next = 0;
        for (uint32_t i = 0; i < n; i++)
            if (engine_sequence_follows(now[n - 1 - i])) /* in another order each time */
                next[n_next++] = now[n - 1 - i];
        if (n_next > 0)
            must_submit(m, next, n_next);
        n_ahead += n_next;
        assert_int_equal(engine_collect(m), 0);
        check_pages(m, s, N);
        for (uint32_t i = 0; i < n; i++) {
            uint32_t which = now[i] == s[0] ? 0 : now[i] == s[1] ? 1 : 2;
            assert_true(now[i]->output.has_token);
            assert_int_equal(now[i]->output.token, want[which][PROMPT + now[i]->output.index]);
            n_got++;
            bool is_last = now[i]->output.index + 1 == p[which].max_tokens;
            assert_int_equal(now[i]->output.finish,
                             is_last ? INFER_FINISH_LENGTH : INFER_FINISH_NONE);
        }
        memcpy(now, next, sizeof now);
        n = n_next;
    }
    assert_int_equal(n_got, 70 + 60 + 50);
    assert_int_equal(n_ahead, n_got - N);
    for (uint32_t i = 0; i < N; i++)
        engine_sequence_free(s[i]);
    assert_int_equal(kv_pool_used(m->pool), 0);
}

/* ---- leaving --------------------------------------------------------------------------------- */

enum { PROMPT = 30, ANSWER = 20 };

static struct engine_sequence *one(struct engine_model *m, int32_t *want)
{
    struct infer_sampling p = forward(5, ANSWER);
    fake_prompt(want, PROMPT, 9);
    fake_expect(want, PROMPT, PROMPT + ANSWER, &p, 0, 0);
    struct engine_request r = fake_request(want, PROMPT, &p);
    struct engine_sequence *s = fake_new(m, &r);
    engine_sequence_begin(s);
    return s;
}

/* The prompt's step is collected, and one more is under way. */
static void two_steps(struct engine_model *m, struct engine_sequence *s)
{
    must_submit(m, &s, 1);
    must_submit(m, &s, 1);
    assert_int_equal(engine_collect(m), 0);
    assert_true(engine_sequence_under_way(s));
}

static void test_a_step_that_was_left_leaves_nothing(void **state)
{
    struct engine_model *m = *state;
    static int32_t want[PROMPT + ANSWER];
    struct engine_sequence *s = one(m, want);
    must_submit(m, &s, 1);
    for (uint32_t i = 0; i < ANSWER; i++) {
        bool left = i % 3 == 2;
        if (engine_sequence_follows(s))
            must_submit(m, &s, 1);
        assert_int_equal(engine_collect(m), 0);
        assert_int_equal(s->output.token, want[PROMPT + i]);
        if (i + 1 == ANSWER)
            break;
        if (left) { /* it could not pass on its token */
            engine_sequence_leave(s);
            engine_sequence_leave(s);
            assert_false(engine_sequence_under_way(s));
            assert_int_equal(s->state.n_tokens, s->n_cached);
            check_pages(m, &s, 1);
            assert_int_equal(engine_collect(m), 0);
            assert_int_equal(s->output.token, want[PROMPT + i]); /* as it was */
            must_submit(m, &s, 1);
        }
    }
    engine_sequence_free(s);
}

static void test_it_may_be_freed_or_ended_while_a_step_is_under_way(void **state)
{
    struct engine_model *m = *state;
    static int32_t want[PROMPT + ANSWER];
    for (int how = 0; how < 2; how++) {
        struct engine_sequence *s = one(m, want);
        two_steps(m, s);
        if (how == 0) {
            engine_sequence_end(s);
            assert_int_equal(kv_pool_used(m->pool), 0);
            assert_int_equal(engine_collect(m), 0);
            engine_sequence_free(s);
        } else {
            engine_sequence_free(s);
            assert_int_equal(kv_pool_used(m->pool), 0);
            struct engine_sequence *other = one(m, want); /* may be where the other was */
            assert_int_equal(engine_collect(m), 0);
            assert_false(other->output.has_token);
            engine_sequence_free(other);
        }
    }
}

static void test_it_may_be_dropped_or_saved_while_a_step_is_under_way(void **state)
{
    struct engine_model *m = *state;
    static int32_t want[PROMPT + ANSWER];
    for (int how = 0; how < 2; how++) {
        struct engine_sequence *s = one(m, want);
        two_steps(m, s);
        void *memory = aligned_alloc(64, engine_sequence_saved_bytes(s));
        if (how == 0)
            engine_sequence_drop(s);
        else
            assert_int_equal(engine_sequence_save(s, memory), 0);
        assert_int_equal(kv_pool_used(m->pool), 0);
        assert_int_equal(engine_collect(m), 0);
        if (how == 0)
            engine_sequence_begin(s);
        else
            assert_int_equal(engine_sequence_restore(s, memory), 0);
        fake_run_tokens(s, 40, want + PROMPT + 1, ANSWER - 1);
        engine_sequence_free(s);
        free(memory);
    }
}

static void test_what_is_kept_has_no_row_of_the_step(void **state)
{
    struct engine_model *m = *state;
    static int32_t want[PROMPT + ANSWER];
    struct engine_sequence *s = one(m, want);
    struct engine_past *past;
    const int32_t *kept;
    two_steps(m, s);
    assert_int_equal(engine_sequence_keep(s, &past), 0);
    assert_int_equal(engine_past_tokens(past, &kept), PROMPT + 1);
    assert_memory_equal(kept, want, (PROMPT + 1) * sizeof *kept);
    assert_int_equal(engine_collect(m), 0);
    engine_past_free(past);
    engine_sequence_free(s);
}

/* ---- who follows, and who does not ----------------------------------------------------------- */

static bool follows(struct engine_model *m, const struct engine_request *r)
{
    struct engine_sequence *s = fake_new(m, r);
    engine_sequence_begin(s);
    assert_false(engine_sequence_follows(s)); /* nothing is under way */
    uint32_t n = engine_sequence_clamp(s, engine_sequence_rows(s));
    assert_int_equal(engine_submit(m, &(struct engine_work){s, n}, 1), 0);
    bool can = engine_sequence_follows(s);
    assert_int_equal(engine_collect(m), 0);
    engine_sequence_free(s);
    return can;
}

static void test_who_follows(void **state)
{
    struct engine_model *m = *state;
    static int32_t tokens[64];
    fake_prompt(tokens, 64, 3);
    struct infer_sampling p = fake_sampling(1, 10);
    struct engine_request r = fake_request(tokens, 64, &p);
    assert_true(follows(m, &r));
    p.repetition_penalty = 1.1f;
    assert_false(follows(m, &r));
    p.penalty_window = 0; /* they look at nothing */
    assert_true(follows(m, &r));
    p = fake_sampling(1, 10);
    p.presence_penalty = 0.5f;
    assert_false(follows(m, &r));
    p = fake_sampling(1, 10);
    p.frequency_penalty = 0.5f;
    assert_false(follows(m, &r));
    p = fake_sampling(1, 1); /* the token under way is the last */
    assert_false(follows(m, &r));
    p = fake_sampling(1, 2);
    assert_true(follows(m, &r));
    r.window = 64; /* the next row would slide it */
    p = fake_sampling(1, 10);
    assert_false(follows(m, &r));
    r.n_tokens = 63;
    assert_true(follows(m, &r));
    struct engine_request score = {
        .kind = ENGINE_SCORE, .domain = 7, .tokens = tokens, .n_tokens = 10};
    assert_false(follows(m, &score));
}

static void test_half_a_prompt_draws_nothing_to_follow(void **state)
{
    struct engine_model *m = *state;
    static int32_t want[PROMPT + ANSWER];
    struct engine_sequence *s = one(m, want);
    assert_int_equal(engine_submit(m, &(struct engine_work){s, 10}, 1), 0);
    assert_false(engine_sequence_follows(s));
    assert_int_equal(engine_collect(m), 0);
    fake_run_tokens(s, 40, want + PROMPT, ANSWER);
    engine_sequence_free(s);
}

/* ---- faults ---------------------------------------------------------------------------------- */

static void test_a_step_that_cannot_begin_changes_nothing(void **state)
{
    struct engine_model *m = *state;
    static int32_t want[PROMPT + ANSWER];
    struct engine_sequence *s = one(m, want);
    must_submit(m, &s, 1);
    fake.fail_submit = 1;
    uint32_t n_pages = s->state.n_pages;
    assert_int_equal(engine_submit(m, &(struct engine_work){s, 1}, 1), -EIO);
    assert_false(s->failed);
    assert_int_equal(s->state.n_pages, n_pages);
    assert_int_equal(engine_collect(m), 0);
    assert_int_equal(s->output.token, want[PROMPT]);
    check_pages(m, &s, 1);
    fake_run_tokens(s, 40, want + PROMPT + 1, ANSWER - 1);
    fake.fail_submit = 1; /* and with nothing else under way it is over */
    engine_sequence_free(s);
    s = one(m, want);
    assert_int_equal(engine_submit(m, &(struct engine_work){s, 1}, 1), -EIO);
    assert_true(s->failed);
    engine_sequence_free(s);
}

static void test_a_step_that_fails_takes_the_next_along(void **state)
{
    struct engine_model *m = *state;
    static int32_t want[PROMPT + ANSWER];
    struct engine_sequence *s = one(m, want);
    fake.fail_run = 1;
    must_submit(m, &s, 1);
    assert_int_equal(engine_collect(m), -EIO);
    assert_true(s->failed);
    engine_sequence_free(s);

    s = one(m, want);
    must_submit(m, &s, 1);
    fake.fail_run = 1;
    must_submit(m, &s, 1);
    assert_int_equal(engine_collect(m), 0);
    assert_int_equal(s->output.token, want[PROMPT]);
    assert_int_equal(engine_collect(m), -EIO);
    assert_true(s->failed);
    engine_sequence_free(s);
    assert_int_equal(kv_pool_used(m->pool), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        ALONE(test_tokens_are_those_of_steps_that_wait),
        ALONE(test_a_step_that_was_left_leaves_nothing),
        ALONE(test_it_may_be_freed_or_ended_while_a_step_is_under_way),
        ALONE(test_it_may_be_dropped_or_saved_while_a_step_is_under_way),
        ALONE(test_what_is_kept_has_no_row_of_the_step),
        ALONE(test_who_follows),
        ALONE(test_half_a_prompt_draws_nothing_to_follow),
        ALONE(test_a_step_that_cannot_begin_changes_nothing),
        ALONE(test_a_step_that_fails_takes_the_next_along),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
