/* test_requests.c: well-formed records that ask for what cannot be: parameters out of range,
 * unknown models, prompts that do not fit, tokens that do not exist. Each ends with its own code
 * and a sentence that names the culprit; nothing else is disturbed. */
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
    daemon_start_backend(&d, "null", NULL);
    conn = answer_connect(&d);
    return 0;
}

static int teardown(void **state)
{
    infer_close(conn);
    daemon_done(&d);
    return 0;
}

static int after_each(void **state)
{
    daemon_assert_serves(&d);
    return 0;
}

static void request_hello(struct infer_request *r)
{
    infer_request_default(r);
    r->text = "Hello";
    r->sampling.max_tokens = 3;
    r->sampling.ignore_eos = 1;
}

/* The request ends with this code, whether the library or the daemon finds it out, and the detail
 * holds `says`. */
static void assert_refused(const struct infer_request *r, int wanted, const char *says)
{
    struct answer a;
    uint32_t id;
    int code = infer_submit(conn, r, &id);
    if (code < 0) {
        if (-code != wanted && -code != INFER_E_INVALID)
            fail_msg("infer_submit: %s, wanted %s", infer_error_name(code),
                     infer_error_name(wanted));
        return;
    }
    answer_gather(conn, id, &a);
    if (a.error != wanted)
        fail_msg("%s (%s), wanted %s for %s", infer_error_name(a.error), a.detail,
                 infer_error_name(wanted), says);
    assert_int_equal(a.finish, INFER_FINISH_ERROR);
    assert_int_equal(a.n, 0);
    if (!strstr(a.detail, says))
        fail_msg("the detail does not say \"%s\": %s", says, a.detail);
    answer_done(&a);
}

static void test_floats_out_of_range(void **state)
{
    const struct {
        size_t at;
        const char *name;
        float bad[4];
    } fields[] = {
#define FIELD(name) offsetof(struct infer_sampling, name), #name
        {FIELD(temperature), {-0.1f, 100.5f, INFINITY, NAN}},
        {FIELD(top_p), {0.0f, -1.0f, 1.01f, NAN}},
        {FIELD(min_p), {-0.01f, 1.01f, INFINITY, NAN}},
        {FIELD(typical_p), {0.0f, -1.0f, 1.01f, NAN}},
        {FIELD(repetition_penalty), {0.0f, -1.0f, 10.5f, NAN}},
        {FIELD(frequency_penalty), {-10.5f, 10.5f, -INFINITY, NAN}},
        {FIELD(presence_penalty), {-10.5f, 10.5f, INFINITY, NAN}},
    };
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        for (size_t v = 0; v < 4; v++) {
            struct infer_request r;
            request_hello(&r);
            memcpy((uint8_t *)&r.sampling + fields[i].at, &fields[i].bad[v], sizeof(float));
            assert_refused(&r, INFER_E_BAD_PARAMETER, fields[i].name);
        }
    }
}

static void test_integers_out_of_range(void **state)
{
    const struct {
        size_t at;
        const char *name;
        uint32_t bad;
    } fields[] = {
        {FIELD(top_k), INFER_TOP_K_MAX + 1},
        {FIELD(penalty_window), INFER_PENALTY_WINDOW_MAX + 1},
        {FIELD(logprobs), INFER_TOP_MAX + 1},
    };
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        struct infer_request r;
        request_hello(&r);
        memcpy((uint8_t *)&r.sampling + fields[i].at, &fields[i].bad, sizeof(uint32_t));
        assert_refused(&r, INFER_E_BAD_PARAMETER, fields[i].name);
    }
}

static void test_answers_and_windows_out_of_range(void **state)
{
    struct infer_request r;
    request_hello(&r);
    r.n_answers = INFER_ANSWERS_MAX + 1;
    assert_refused(&r, INFER_E_BAD_PARAMETER, "n_answers is 65");
    r.n_answers = 2;
    r.keep = 1;
    assert_refused(&r, INFER_E_BAD_PARAMETER, "n_answers is 2");
    r.keep = 0;
    r.conversation = UINT64_MAX;
    assert_refused(&r, INFER_E_BAD_PARAMETER, "n_answers is 2");
    request_hello(&r);
    r.window = INFER_WINDOW_MIN - 1;
    assert_refused(&r, INFER_E_BAD_PARAMETER, "window is 63");
    r.window = INFER_WINDOW_MIN;
    r.sinks = INFER_WINDOW_MIN / 4 + 1;
    assert_refused(&r, INFER_E_BAD_PARAMETER, "sinks is 17");
    r.window = 0;
    assert_refused(&r, INFER_E_BAD_PARAMETER, "sinks is 17");
    request_hello(&r);
    r.op = 2; /* a score */
    r.keep = 1;
    assert_refused(&r, INFER_E_BAD_REQUEST, "KEEP");
}

/* The ends of each range are within it. */
static void test_range_ends(void **state)
{
    struct infer_request r;
    struct answer a;
    for (int high = 0; high < 2; high++) {
        request_hello(&r);
        r.sampling.temperature = high ? 100.0f : 0.0f;
        r.sampling.top_p = high ? 1.0f : 1e-6f;
        r.sampling.min_p = high ? 1.0f : 0.0f;
        r.sampling.typical_p = high ? 1.0f : 1e-6f;
        r.sampling.repetition_penalty = high ? 10.0f : 1e-3f;
        r.sampling.frequency_penalty = high ? 10.0f : -10.0f;
        r.sampling.presence_penalty = high ? 10.0f : -10.0f;
        r.sampling.top_k = high ? INFER_TOP_K_MAX : 0;
        r.sampling.penalty_window = high ? INFER_PENALTY_WINDOW_MAX : 0;
        r.sampling.logprobs = high ? INFER_TOP_MAX : 0;
        answer_get(conn, &r, &a);
        if (a.error)
            fail_msg("%s: %s", infer_error_name(a.error), a.detail);
        assert_int_equal(a.n, 3);
        answer_done(&a);
    }
}

static void test_unknown_model(void **state)
{
    struct infer_request r;
    request_hello(&r);
    r.model = "no-such-model";
    assert_refused(&r, INFER_E_UNKNOWN_MODEL, "unix"); /* those that are served */
}

static void test_prompt_too_long(void **state)
{
    struct infer_request r;
    struct infer_model *models;
    size_t n_models, n;
    int32_t *tokens;
    char number[16], *text = malloc(40001);
    assert_non_null(text);
    for (size_t i = 0; i < 40000; i++)
        text[i] = "lorem ipsum "[i % 12];
    text[40000] = '\0';
    assert_int_equal(infer_models(conn, &models, &n_models), 0);
    assert_int_equal(infer_tokenize(conn, NULL, text, 40000, 0, 0, &tokens, &n), 0);
    assert_true(n > models->n_context);
    request_hello(&r);
    r.text = text;
    snprintf(number, sizeof number, "%zu", n);
    assert_refused(&r, INFER_E_PROMPT_TOO_LONG, number);
    snprintf(number, sizeof number, "%u", models->n_context);
    assert_refused(&r, INFER_E_PROMPT_TOO_LONG, number);
    r.text = NULL;
    r.tokens = tokens;
    r.n_tokens = n;
    assert_refused(&r, INFER_E_PROMPT_TOO_LONG, number);
    r.op = 2; /* a score of it does not fit either */
    assert_refused(&r, INFER_E_PROMPT_TOO_LONG, number);
    infer_free(tokens);
    infer_free(models);
    free(text);
}

static void test_prompt_of_the_largest_size(void **state)
{
    struct infer_request r;
    struct answer a;
    size_t n = INFER_REQUEST_BYTES_MAX;
    char *text = malloc(n + 2);
    assert_non_null(text);
    memset(text, 'a', n + 1);
    text[n + 1] = '\0';
    request_hello(&r);
    r.text = text;
    r.text_bytes = n + 1;
    assert_refused(&r, INFER_E_REQUEST_TOO_LARGE, "");
    r.text_bytes = 1 << 20; /* a long run of one letter */
    answer_get(conn, &r, &a);
    assert_int_equal(a.error, INFER_E_PROMPT_TOO_LONG);
    answer_done(&a);
    free(text);
}

static void test_empty_prompt(void **state)
{
    struct infer_request r;
    const int32_t none = 0;
    request_hello(&r);
    r.text = "";
    r.no_bos = 1;
    assert_refused(&r, INFER_E_PROMPT_EMPTY, "");
    r.text = NULL;
    r.tokens = &none;
    r.n_tokens = 0;
    assert_refused(&r, INFER_E_PROMPT_EMPTY, "");
}

static void test_bad_tokens(void **state)
{
    struct infer_request r;
    static const int32_t bad[] = {-1, INT32_MIN, INT32_MAX, 16384};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        const int32_t tokens[] = {5, bad[i], 6};
        request_hello(&r);
        r.text = NULL;
        r.tokens = tokens;
        r.n_tokens = 3;
        assert_refused(&r, INFER_E_BAD_TOKEN, "");
        char *text;
        size_t bytes;
        assert_int_equal(infer_detokenize(conn, NULL, tokens, 3, 0, &text, &bytes),
                         -INFER_E_BAD_TOKEN);
    }
    const struct infer_logit_bias bias = {.token = 16384, .bias = 1.0f};
    request_hello(&r);
    r.biases = &bias;
    r.n_biases = 1;
    assert_refused(&r, INFER_E_BAD_TOKEN, "16384");
}

static void test_invalid_utf8_is_bytes(void **state)
{
    static const char text[] =
        "\xff\xfe broken \xc3( \xe2\x82 \xf0\x9f\x98 \x80\xbf\xed\xa0\x80 end";
    struct infer_request r;
    struct answer a;
    int32_t *tokens;
    char *back;
    size_t n, bytes;
    request_hello(&r);
    r.text = text;
    r.text_bytes = sizeof text - 1;
    r.want_prompt = 1;
    answer_get(conn, &r, &a);
    assert_int_equal(a.error, 0);
    assert_int_equal(a.n, 3);
    assert_true(a.n_prompt > 0);
    answer_done(&a);
    assert_int_equal(infer_tokenize(conn, NULL, text, sizeof text - 1, 0, 0, &tokens, &n), 0);
    assert_int_equal(infer_detokenize(conn, NULL, tokens, n, 0, &back, &bytes), 0);
    assert_non_null(strstr(back, " broken "));
    assert_string_equal(back + bytes - 4, " end");
    infer_free(tokens);
    infer_free(back);
}

static void test_too_many_pieces(void **state)
{
    enum { N = INFER_STOPS_MAX + 1 };
    const char *stops[N];
    static char stop[INFER_STOP_BYTES_MAX + 2];
    static struct infer_logit_bias biases[INFER_LOGIT_BIASES_MAX + 1];
    static struct infer_message messages[INFER_MESSAGES_MAX + 1];
    struct infer_request r;
    struct answer a;
    for (size_t i = 0; i < N; i++)
        stops[i] = "stop";
    memset(stop, 's', sizeof stop - 1);

    request_hello(&r);
    r.stops = stops;
    r.n_stops = N - 1;
    answer_get(conn, &r, &a);
    assert_int_equal(a.error, 0);
    answer_done(&a);
    r.n_stops = N;
    assert_refused(&r, INFER_E_BAD_PARAMETER, "");
    stops[0] = stop;
    r.n_stops = 1;
    assert_refused(&r, INFER_E_BAD_PARAMETER, "");
    stops[0] = "";
    assert_refused(&r, INFER_E_BAD_PARAMETER, "");

    request_hello(&r);
    r.biases = biases;
    r.n_biases = INFER_LOGIT_BIASES_MAX + 1;
    assert_refused(&r, INFER_E_BAD_PARAMETER, "");
    biases[0].bias = NAN;
    r.n_biases = 1;
    assert_refused(&r, INFER_E_BAD_PARAMETER, "");

    request_hello(&r);
    for (size_t i = 0; i <= INFER_MESSAGES_MAX; i++)
        messages[i] = (struct infer_message){.role = "user", .content = "x"};
    r.text = NULL;
    r.messages = messages;
    r.n_messages = INFER_MESSAGES_MAX + 1;
    assert_refused(&r, INFER_E_BAD_PARAMETER, "");
}

static void test_unknown_operation(void **state)
{
    struct infer_request r;
    request_hello(&r);
    r.op = 4711;
    assert_refused(&r, INFER_E_UNSUPPORTED, "");
}

/* A prompt that fills the context but for one token still gets that one. */
static void test_context_is_usable_to_the_end(void **state)
{
    struct infer_request r;
    struct infer_model *models;
    struct answer a;
    size_t n_models;
    assert_int_equal(infer_models(conn, &models, &n_models), 0);
    size_t n = models->n_context - 1;
    int32_t *tokens = calloc(n + 1, sizeof *tokens);
    assert_non_null(tokens);
    for (size_t i = 0; i <= n; i++)
        tokens[i] = 5 + (int32_t)(i % 100);
    request_hello(&r);
    r.text = NULL;
    r.tokens = tokens;
    r.n_tokens = n;
    r.sampling.max_tokens = 0;
    answer_get(conn, &r, &a);
    assert_int_equal(a.error, 0);
    assert_int_equal(a.finish, INFER_FINISH_LENGTH);
    assert_in_range(a.n, 1, 2);
    answer_done(&a);
    free(tokens);
    infer_free(models);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_teardown(name, after_each)
    const struct CMUnitTest tests[] = {
        TEST(test_floats_out_of_range),
        TEST(test_integers_out_of_range),
        TEST(test_answers_and_windows_out_of_range),
        TEST(test_range_ends),
        TEST(test_unknown_model),
        TEST(test_prompt_too_long),
        TEST(test_prompt_of_the_largest_size),
        TEST(test_empty_prompt),
        TEST(test_bad_tokens),
        TEST(test_invalid_utf8_is_bytes),
        TEST(test_too_many_pieces),
        TEST(test_unknown_operation),
        TEST(test_context_is_usable_to_the_end),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
