/* test_answers.c: answers of the embedded model on the CPU backend: that they make sense, that
 * they are the same alone or batched, that stop strings hold across token borders, that
 * log-probabilities agree between generating and scoring. */
#include "support/answer.h"
#include "support/program.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>

#include <cmocka.h>

static struct daemon d;
static struct infer_conn *conn;

static int setup(void **state)
{
    daemon_start_backend(&d, "cpu", NULL);
    conn = answer_connect(&d);
    return 0;
}

static int teardown(void **state)
{
    infer_close(conn);
    daemon_done(&d);
    return 0;
}

static const struct infer_message question = {.role = "user", .content = "What is tar?"};

static void request_question(struct infer_request *r)
{
    infer_request_default(r);
    r->messages = &question;
    r->n_messages = 1;
    r->sampling.temperature = 0;
    r->sampling.max_tokens = 24;
}

static void request_raw(struct infer_request *r, const char *text, uint32_t max_tokens)
{
    infer_request_default(r);
    r->text = text;
    r->sampling.max_tokens = max_tokens;
    r->sampling.seed = 42;
}

static void get(const struct infer_request *r, struct answer *a)
{
    answer_get(conn, r, a);
    if (a->error)
        fail_msg("%s: %s", infer_error_name(a->error), a->detail);
}

static void test_greedy_answer_makes_sense(void **state)
{
    struct infer_request r;
    struct answer a;
    request_question(&r);
    get(&r, &a);
    assert_non_null(strstr(a.text, "rchiv")); /* archive, archiving */
    assert_null(strstr(a.text, "<|"));        /* special tokens do not show */
    answer_done(&a);
}

static void test_end_token_ends(void **state)
{
    struct infer_request r;
    struct answer a;
    request_question(&r);
    r.sampling.max_tokens = 200;
    get(&r, &a);
    assert_int_equal(a.finish, INFER_FINISH_STOP);
    assert_true(a.n_generated < 200);
    answer_done(&a);
    r.sampling.max_tokens = 4;
    get(&r, &a);
    assert_int_equal(a.finish, INFER_FINISH_LENGTH);
    assert_int_equal(a.n, 4);
    answer_done(&a);
}

/* A stop string made of the end of one token and the beginning of the next one. */
static void test_stop_string_across_tokens(void **state)
{
    struct infer_request r;
    struct answer full, cut;
    char stop[16];
    const char *stops[] = {"no such text will come \x01", stop};
    size_t tried = 0;
    request_question(&r);
    get(&r, &full);
    for (size_t i = 1; i + 1 < full.n && tried < 4; i += 3) {
        size_t border = full.ends[i];
        if (border < 2 || border + 2 > full.text_bytes)
            continue;
        memcpy(stop, full.text + border - 2, 4);
        stop[4] = '\0';
        size_t before = (size_t)(strstr(full.text, stop) - full.text);
        r.stops = stops;
        r.n_stops = 2;
        get(&r, &cut);
        assert_int_equal(cut.finish, INFER_FINISH_STRING);
        assert_int_equal(cut.text_bytes, before);
        assert_memory_equal(cut.text, full.text, before);
        answer_done(&cut);
        tried++;
    }
    assert_true(tried >= 2);
    answer_done(&full);
}

/* What was held back because a stop string might have come is given out when none does. */
static void test_text_held_back_comes_at_the_end(void **state)
{
    struct infer_request r;
    struct answer full, same;
    char stop[INFER_STOP_BYTES_MAX];
    const char *stops[] = {stop};
    request_question(&r);
    get(&r, &full);
    assert_true(full.text_bytes > 6);
    snprintf(stop, sizeof stop, "%.5s\x01", full.text + full.text_bytes - 5);
    r.stops = stops;
    r.n_stops = 1;
    get(&r, &same);
    assert_string_equal(full.text, same.text);
    assert_int_equal(full.finish, same.finish);
    answer_done(&full);
    answer_done(&same);
}

static void test_seed(void **state)
{
    struct infer_request r;
    struct answer a, b, other;
    request_raw(&r, "The kernel", 24);
    r.sampling.temperature = 1.2f;
    r.sampling.ignore_eos = 1;
    get(&r, &a);
    get(&r, &b);
    r.sampling.seed = 43;
    get(&r, &other);
    assert_int_equal(a.n, 24);
    assert_memory_equal(a.ids, b.ids, a.n * sizeof *a.ids);
    assert_true(memcmp(a.ids, other.ids, a.n * sizeof *a.ids) != 0);
    answer_done(&a);
    answer_done(&b);
    answer_done(&other);
}

/* The same tokens, alone or batched with others of other lengths. */
static void test_alone_or_batched(void **state)
{
    enum { N = 5 };
    static const char *const texts[N] = {"The kernel", "To install the package, run",
                                         "In computer science, a hash table is", "open",
                                         "It was a bright cold day in April, and"};
    struct infer_request r[N];
    struct answer alone, batched;
    uint32_t id[N];
    struct answer all[N];
    for (size_t i = 0; i < N; i++) {
        request_raw(&r[i], texts[i], 16);
        r[i].sampling.seed = i + 1;
        r[i].sampling.ignore_eos = 1;
    }
    for (size_t i = 0; i < N; i++)
        assert_int_equal(infer_submit(conn, &r[i], &id[i]), 0);
    for (size_t i = 0; i < N; i++)
        answer_gather(conn, id[i], &all[i]);
    for (size_t i = 0; i < N; i++) {
        get(&r[i], &alone);
        batched = all[i];
        assert_int_equal(batched.error, 0);
        assert_int_equal(alone.n, batched.n);
        assert_memory_equal(alone.ids, batched.ids, alone.n * sizeof *alone.ids);
        answer_done(&alone);
        answer_done(&all[i]);
    }
}

static void test_logprobs(void **state)
{
    struct infer_request r;
    struct answer a;
    request_raw(&r, "The kernel", 12);
    r.sampling.temperature = 0;
    r.sampling.logprobs = INFER_TOP_MAX;
    r.sampling.ignore_eos = 1;
    get(&r, &a);
    assert_int_equal(a.n_top, INFER_TOP_MAX);
    for (size_t i = 0; i < a.n; i++) {
        const struct infer_logprob *top = a.top + i * a.n_top;
        double sum = 0;
        for (size_t k = 0; k < a.n_top; k++) {
            sum += exp(top[k].logprob);
            assert_true(k == 0 || top[k].logprob <= top[k - 1].logprob);
        }
        assert_true(sum > 0.05 && sum <= 1.0 + 1e-4);
        assert_int_equal(top[0].token, a.ids[i]);
        assert_true(fabsf(top[0].logprob - a.logprobs[i]) < 1e-5f);
    }
    answer_done(&a);
}

/* Scoring prompt and answer gives what generating them gave: one path prefills, the other decodes,
 * and a row's result may not depend on that. */
static void test_score_agrees_with_generation(void **state)
{
    struct infer_request r;
    struct answer a;
    struct infer_scores s;
    request_raw(&r, "The kernel", 16);
    r.sampling.logprobs = 1;
    r.sampling.ignore_eos = 1;
    r.want_prompt = 1;
    get(&r, &a);
    size_t n = a.n_prompt + a.n;
    int32_t *tokens = calloc(n, sizeof *tokens);
    assert_non_null(tokens);
    memcpy(tokens, a.prompt, a.n_prompt * sizeof *tokens);
    memcpy(tokens + a.n_prompt, a.ids, a.n * sizeof *tokens);
    infer_request_default(&r);
    r.tokens = tokens;
    r.n_tokens = n;
    assert_int_equal(infer_score(conn, &r, 3, &s), 0);
    assert_int_equal(s.n, n);
    assert_int_equal(s.n_top, 3);
    assert_memory_equal(s.tokens, tokens, n * sizeof *tokens);
    assert_true(isnan(s.logprobs[0]));
    for (size_t i = 1; i < n; i++) {
        assert_true(s.logprobs[i] <= 0);
        assert_true(s.logprobs[i] <= s.top[i * 3].logprob + 1e-5f);
        assert_true(s.top[i * 3].logprob >= s.top[i * 3 + 2].logprob);
    }
    for (size_t i = 0; i < a.n; i++)
        if (fabsf(s.logprobs[a.n_prompt + i] - a.logprobs[i]) > 1e-3f)
            fail_msg("token %zu: scored %.5f, generated with %.5f", i,
                     (double)s.logprobs[a.n_prompt + i], (double)a.logprobs[i]);
    infer_scores_free(&s);
    free(tokens);
    answer_done(&a);
}

static void test_logit_bias(void **state)
{
    struct infer_request r;
    struct answer a, b;
    request_question(&r);
    r.sampling.max_tokens = 3;
    get(&r, &a);
    const struct infer_logit_bias ban = {.token = a.ids[0], .bias = -INFINITY};
    r.biases = &ban;
    r.n_biases = 1;
    get(&r, &b);
    for (size_t i = 0; i < b.n; i++)
        assert_int_not_equal(b.ids[i], a.ids[0]);
    answer_done(&b);
    const struct infer_logit_bias force = {.token = 100, .bias = 1000.0f};
    r.biases = &force;
    get(&r, &b);
    for (size_t i = 0; i < b.n; i++)
        assert_int_equal(b.ids[i], 100);
    answer_done(&a);
    answer_done(&b);
}

static void test_prompt_longer_than_a_step(void **state)
{
    struct infer_request r;
    struct answer a, b;
    static char text[6000];
    for (size_t i = 0; i + 1 < sizeof text; i++)
        text[i] = "the quick brown fox jumps over the lazy dog\n"[i % 44];
    if (program_slowness() > 1)
        text[2600] = '\0'; /* still more than one step of rows */
    request_raw(&r, text, 4);
    r.sampling.temperature = 0;
    r.want_prompt = 1;
    get(&r, &a);
    assert_true(a.n_prompt > INFER_STEP_ROWS);
    /* The text repeats itself, and the model has seen it often enough to go on with it. */
    get(&r, &b);
    assert_int_equal(a.n, b.n);
    assert_memory_equal(a.ids, b.ids, a.n * sizeof *a.ids);
    answer_done(&a);
    answer_done(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_greedy_answer_makes_sense),
        cmocka_unit_test(test_end_token_ends),
        cmocka_unit_test(test_stop_string_across_tokens),
        cmocka_unit_test(test_text_held_back_comes_at_the_end),
        cmocka_unit_test(test_seed),
        cmocka_unit_test(test_alone_or_batched),
        cmocka_unit_test(test_logprobs),
        cmocka_unit_test(test_score_agrees_with_generation),
        cmocka_unit_test(test_logit_bias),
        cmocka_unit_test(test_prompt_longer_than_a_step),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
