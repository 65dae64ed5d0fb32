/* test_engine.c: sequences and steps over a scripted backend: the tokenizer and plan are those of
 * the embedded model, the tokens are the test's. */
#include "engine/engine.h"

#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define MODEL "models/unix-46m-Q6_K.gguf"

/* ---- the scripted backend: draws script[i] as the i-th token, remembers the last batch ------- */

static const int32_t *script;
static uint32_t script_at;
static struct infer_batch last;
static struct infer_batch_seq last_seqs[8];
static struct infer_batch_output last_outputs[INFER_STEP_ROWS_MAX];
static uint32_t rows_seen;
static int fail_with;

static int fake_run(struct infer_backend_model *model, struct infer_batch *batch)
{
    (void)model;
    if (fail_with != 0)
        return fail_with;
    rows_seen += batch->n_rows;
    for (uint32_t i = 0; i < batch->n_outputs; i++) {
        struct infer_batch_output *o = &batch->outputs[i];
        if (o->sample)
            o->token = script[script_at++];
        o->logprob = -1.5f;
        o->target_logprob = -(float)o->target;
        for (uint32_t t = 0; t < o->n_top; t++)
            o->top[t] = (struct infer_logprob){(int32_t)t, -0.5f};
    }
    last = *batch;
    memcpy(last_seqs, batch->seqs, batch->n_seqs * sizeof *last_seqs);
    memcpy(last_outputs, batch->outputs, batch->n_outputs * sizeof *last_outputs);
    return 0;
}

static void fake_close(struct infer_backend_model *model)
{
    (void)model;
}

static const struct infer_backend_api fake = {.run = fake_run, .model_close = fake_close};

static int setup(void **state)
{
    struct engine_model *m = calloc(1, sizeof *m);
    struct gguf *g;
    struct report r = {0};
    assert_int_equal(gguf_open(MODEL, &g, &r), 0);
    assert_int_equal(plan_new(g, &m->plan, &r), 0);
    assert_int_equal(tokenizer_new(g, &m->tokenizer, &r), 0);
    assert_int_equal(chat_template_new(g, &m->chat, &r), 0);
    gguf_free(g);
    m->api = &fake;
    m->n_context = 64;
    m->state = (struct infer_state_config){.page_tokens = 16,
                                           .n_pages = 16,
                                           .max_rows = INFER_STEP_ROWS_MAX,
                                           .max_seqs = 8,
                                           .max_outputs = INFER_STEP_ROWS_MAX};
    assert_int_equal(engine_model_init(m), 0);
    script_at = rows_seen = 0;
    fail_with = 0;
    *state = m;
    return 0;
}

static int teardown(void **state)
{
    engine_model_done(*state);
    free(*state);
    return 0;
}

static const int32_t prompt[] = {100, 101, 102, 103, 104, 105, 106, 107, 108, 109,
                                 110, 111, 112, 113, 114, 115, 116, 117, 118, 119};

static struct engine_request request(const struct infer_sampling *s)
{
    return (struct engine_request){
        .kind = ENGINE_GENERATE, .tokens = prompt, .n_tokens = 20, .sampling = s};
}

static void step(struct engine_model *m, struct engine_sequence *s, uint32_t n_rows)
{
    struct engine_work work = {s, n_rows};
    assert_int_equal(engine_step(m, &work, 1), 0);
}

/* ---- tests ----------------------------------------------------------------------------------- */

static void test_a_token_is_drawn_with_the_last_row_alone(void **state)
{
    struct engine_model *m = *state;
    struct engine_sequence *s;
    struct infer_sampling p;
    static const int32_t drawn[] = {200, 201};
    infer_sampling_default(&p);
    struct engine_request r = request(&p);
    script = drawn;
    assert_int_equal(engine_sequence_new(m, &r, &s, NULL), 0);
    assert_int_equal(engine_sequence_rows(s), 20);
    step(m, s, 7);
    assert_false(s->output.has_token);
    assert_int_equal(last.n_outputs, 0);
    assert_int_equal(kv_pool_used(m->pool), 1);
    step(m, s, 13);
    assert_int_equal(last_seqs[0].position, 7);
    assert_int_equal(last_outputs[0].row, 12);
    assert_int_equal(last_outputs[0].n_seen, 20);
    assert_true(s->output.has_token);
    assert_int_equal(s->output.token, 200);
    assert_int_equal(kv_pool_used(m->pool), 2);
    step(m, s, 1);
    assert_int_equal(last_seqs[0].position, 20);
    assert_int_equal(last.tokens[0], 200);
    assert_int_equal(s->output.index, 1);
    engine_sequence_free(s);
    assert_int_equal(kv_pool_used(m->pool), 0);
}

static void test_the_draw_depends_on_seed_and_position_alone(void **state)
{
    struct engine_model *m = *state;
    static const int32_t drawn[] = {200, 201, 200, 201};
    struct infer_sampling p;
    double first[2];
    infer_sampling_default(&p);
    p.seed = 42;
    struct engine_request r = request(&p);
    script = drawn;
    for (int i = 0; i < 2; i++) {
        struct engine_sequence *s;
        assert_int_equal(engine_sequence_new(m, &r, &s, NULL), 0);
        step(m, s, i == 0 ? 20 : 5);
        if (i == 1)
            step(m, s, 15);
        first[i] = last_outputs[0].uniform;
        step(m, s, 1);
        assert_true(last_outputs[0].uniform != first[i]);
        engine_sequence_free(s);
    }
    assert_true(first[0] == first[1]);
}

static void test_an_end_token_ends_unless_it_is_banned(void **state)
{
    struct engine_model *m = *state;
    struct engine_sequence *s;
    struct infer_sampling p;
    static const int32_t drawn[] = {2, 200};
    size_t n_end;
    infer_sampling_default(&p);
    struct engine_request r = request(&p);
    script = drawn;
    assert_int_equal(engine_sequence_new(m, &r, &s, NULL), 0);
    step(m, s, 20);
    assert_int_equal(s->output.finish, INFER_FINISH_STOP);
    assert_int_equal(s->output.text_bytes, 0);
    engine_sequence_free(s);

    p.ignore_eos = 1;
    tokenizer_end_tokens(m->tokenizer, &n_end);
    assert_int_equal(engine_sequence_new(m, &r, &s, NULL), 0);
    step(m, s, 20);
    assert_int_equal(last_outputs[0].n_bias, n_end);
    assert_true(isinf(last_outputs[0].bias[0].bias) && last_outputs[0].bias[0].bias < 0);
    assert_int_equal(s->output.finish, 0);
    engine_sequence_free(s);
}

static void test_length_ends_by_request_and_by_context(void **state)
{
    struct engine_model *m = *state;
    struct engine_sequence *s;
    struct infer_sampling p;
    int32_t drawn[64];
    for (int i = 0; i < 64; i++)
        drawn[i] = 300;
    infer_sampling_default(&p);
    struct engine_request r = request(&p);
    const uint32_t asked[] = {2, 0, 5000};
    const uint32_t given[] = {2, 44, 44}; /* the context holds 64 */
    for (int c = 0; c < 3; c++) {
        p.max_tokens = asked[c];
        script = drawn;
        script_at = 0;
        assert_int_equal(engine_sequence_new(m, &r, &s, NULL), 0);
        uint32_t n = 0;
        do {
            step(m, s, engine_sequence_rows(s));
            n++;
        } while (s->output.finish == 0);
        assert_int_equal(s->output.finish, INFER_FINISH_LENGTH);
        assert_int_equal(n, given[c]);
        engine_sequence_free(s);
    }
}

static void test_a_stop_string_ends_over_token_borders(void **state)
{
    struct engine_model *m = *state;
    struct engine_sequence *s;
    struct infer_sampling p;
    struct token_list l = {0};
    const struct stop_string stop = {"lo wor", 6};
    char all[256];
    size_t n = 0;
    assert_int_equal(tokenizer_encode(m->tokenizer, "hello world", 11, 0, NULL, 0, &l), 0);
    assert_true(l.n >= 2);
    infer_sampling_default(&p);
    struct engine_request r = request(&p);
    r.stops = &stop;
    r.n_stops = 1;
    script = l.ids;
    assert_int_equal(engine_sequence_new(m, &r, &s, NULL), 0);
    do {
        step(m, s, engine_sequence_rows(s));
        memcpy(all + n, s->text, s->output.text_bytes);
        n += s->output.text_bytes;
    } while (s->output.finish == 0);
    all[n] = '\0';
    assert_int_equal(s->output.finish, INFER_FINISH_STRING);
    assert_string_equal(all, "hel");
    engine_sequence_free(s);
    token_list_free(&l);
}

static void test_scores_name_each_next_token(void **state)
{
    struct engine_model *m = *state;
    struct engine_sequence *s;
    struct engine_request r = {.kind = ENGINE_SCORE, .tokens = prompt, .n_tokens = 20, .n_top = 2};
    assert_int_equal(engine_sequence_new(m, &r, &s, NULL), 0);
    assert_int_equal(engine_sequence_rows(s), 19);
    step(m, s, 10);
    step(m, s, 9);
    assert_int_equal(engine_sequence_rows(s), 0);
    assert_int_equal(s->n_scored, 20);
    for (uint32_t i = 0; i < 20; i++) {
        assert_true(i == 0 ? isnan(s->logprobs[i]) : s->logprobs[i] == -(float)prompt[i]);
        assert_int_equal(s->top[2 * i + 1].token, i == 0 ? -1 : 1);
    }
    engine_sequence_free(s);
}

static void test_several_sequences_share_a_batch(void **state)
{
    struct engine_model *m = *state;
    struct engine_sequence *a, *b;
    struct infer_sampling p;
    static const int32_t drawn[] = {200, 201};
    infer_sampling_default(&p);
    struct engine_request r = request(&p);
    script = drawn;
    assert_int_equal(engine_sequence_new(m, &r, &a, NULL), 0);
    r.n_tokens = 3;
    assert_int_equal(engine_sequence_new(m, &r, &b, NULL), 0);
    struct engine_work work[] = {{a, 20}, {b, 3}};
    assert_int_equal(engine_step(m, work, 2), 0);
    assert_int_equal(last.n_rows, 23);
    assert_int_equal(last_seqs[1].first_row, 20);
    assert_int_equal(last_outputs[1].row, 22);
    assert_int_equal(a->output.token, 200);
    assert_int_equal(b->output.token, 201);
    const struct kv_sequence *both[] = {&a->state, &b->state};
    kv_check(m->pool, both, 2);
    engine_sequence_free(a);
    engine_sequence_free(b);
}

static void expect_refusal(struct engine_model *m, const struct engine_request *r, int code,
                           const char *word)
{
    struct engine_sequence *s = NULL;
    struct report report = {0};
    assert_int_equal(engine_sequence_new(m, r, &s, &report), -code);
    assert_null(s);
    assert_int_equal(report.code, code);
    assert_non_null(strstr(report.text, word));
}

static void test_what_does_not_fit_the_model_is_refused_with_numbers(void **state)
{
    struct engine_model *m = *state;
    struct infer_sampling p;
    int32_t many[80] = {5};
    infer_sampling_default(&p);
    struct engine_request r = request(&p);
    r.n_tokens = 0;
    expect_refusal(m, &r, INFER_E_PROMPT_EMPTY, "no token");
    r.tokens = many;
    r.n_tokens = 64; /* fits, but leaves no room for an answer */
    expect_refusal(m, &r, INFER_E_PROMPT_TOO_LONG, "64 tokens");
    r.kind = ENGINE_SCORE;
    r.n_tokens = 65;
    expect_refusal(m, &r, INFER_E_PROMPT_TOO_LONG, "65 tokens");
    r.n_tokens = 4;
    many[3] = 16384;
    expect_refusal(m, &r, INFER_E_BAD_TOKEN, "16384");
    many[3] = -1;
    expect_refusal(m, &r, INFER_E_BAD_TOKEN, "-1");
    many[3] = 1;
    struct infer_logit_bias bias = {20000, 1.0f};
    r.biases = &bias;
    r.n_biases = 1;
    expect_refusal(m, &r, INFER_E_BAD_TOKEN, "20000");
}

static void test_a_failed_step_is_told(void **state)
{
    struct engine_model *m = *state;
    struct engine_sequence *s;
    struct infer_sampling p;
    infer_sampling_default(&p);
    struct engine_request r = request(&p);
    assert_int_equal(engine_sequence_new(m, &r, &s, NULL), 0);
    fail_with = -EIO;
    struct engine_work work = {s, 20};
    assert_int_equal(engine_step(m, &work, 1), -EIO);
    assert_int_equal(s->n_cached, 0);
    engine_sequence_free(s);
    assert_int_equal(kv_pool_used(m->pool), 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_a_token_is_drawn_with_the_last_row_alone),
        TEST(test_the_draw_depends_on_seed_and_position_alone),
        TEST(test_an_end_token_ends_unless_it_is_banned),
        TEST(test_length_ends_by_request_and_by_context),
        TEST(test_a_stop_string_ends_over_token_borders),
        TEST(test_scores_name_each_next_token),
        TEST(test_several_sequences_share_a_batch),
        TEST(test_what_does_not_fit_the_model_is_refused_with_numbers),
        TEST(test_a_failed_step_is_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
