/* test_admit.c: what a request may say, and the sentence it gets when it may not. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "proto/admit.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct session_request make(uint32_t op, uint32_t input, const void *data, uint32_t bytes)
{
    struct session_request r;
    memset(&r, 0, sizeof r);
    r.kind = INFER_ABI_SUBMIT;
    r.request = 7;
    r.submit.fixed_bytes = sizeof r.submit;
    r.submit.op = op;
    r.submit.input = input;
    r.submit.input_bytes = bytes;
    infer_sampling_default(&r.submit.sampling);
    r.payload_bytes = bytes;
    r.payload = bytes > 0 ? malloc(bytes) : NULL;
    if (bytes > 0)
        memcpy(r.payload, data, bytes);
    return r;
}

/* Appends a section to the payload. */
static void append(struct session_request *r, uint32_t *section, const void *data, uint32_t bytes)
{
    r->payload = realloc(r->payload, r->payload_bytes + bytes);
    memcpy(r->payload + r->payload_bytes, data, bytes);
    r->payload_bytes += bytes;
    *section += bytes;
}

static void expect(struct session_request r, int code, const char *sentence)
{
    struct admit_request a;
    struct report report = {0};
    int e = admit_parse(&r, &a, &report);
    assert_int_equal(e, -code);
    assert_null(r.payload); /* taken in either case */
    if (code == 0)
        admit_done(&a);
    else
        assert_int_equal(report.code, code);
    if (sentence != NULL)
        assert_string_equal(report.text, sentence);
}

static void expect_sampling(struct infer_sampling s, const char *sentence)
{
    struct report report = {0};
    if (sentence == NULL) {
        assert_int_equal(admit_check_sampling(&s, &report), 0);
        return;
    }
    assert_true(admit_check_sampling(&s, &report) < 0);
    assert_int_equal(report.code, s.reserved[16] ? INFER_E_UNSUPPORTED : INFER_E_BAD_PARAMETER);
    assert_string_equal(report.text, sentence);
}

static void test_sampling_floats(void **state)
{
    static const struct {
        size_t offset;
        float low, high;
        bool above;
        const char *name;
    } rows[] = {
        {offsetof(struct infer_sampling, temperature), 0, 100, false, "temperature"},
        {offsetof(struct infer_sampling, top_p), 0, 1, true, "top_p"},
        {offsetof(struct infer_sampling, min_p), 0, 1, false, "min_p"},
        {offsetof(struct infer_sampling, typical_p), 0, 1, true, "typical_p"},
        {offsetof(struct infer_sampling, repetition_penalty), 0, 10, true, "repetition_penalty"},
        {offsetof(struct infer_sampling, frequency_penalty), -10, 10, false, "frequency_penalty"},
        {offsetof(struct infer_sampling, presence_penalty), -10, 10, false, "presence_penalty"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        float good[] = {rows[i].high, rows[i].above ? nextafterf(rows[i].low, 1) : rows[i].low};
        float bad[] = {nextafterf(rows[i].high, INFINITY),
                       rows[i].above ? rows[i].low : nextafterf(rows[i].low, -INFINITY), NAN,
                       INFINITY, -INFINITY};
        struct infer_sampling s;
        struct report report;
        infer_sampling_default(&s);
        for (size_t k = 0; k < sizeof good / sizeof good[0]; k++) {
            memcpy((char *)&s + rows[i].offset, &good[k], sizeof good[k]);
            assert_int_equal(admit_check_sampling(&s, NULL), 0);
        }
        for (size_t k = 0; k < sizeof bad / sizeof bad[0]; k++) {
            memcpy((char *)&s + rows[i].offset, &bad[k], sizeof bad[k]);
            assert_int_equal(admit_check_sampling(&s, &report), -INFER_E_BAD_PARAMETER);
            assert_memory_equal(report.text, rows[i].name, strlen(rows[i].name));
        }
    }
}

static void test_sampling_sentences(void **state)
{
    struct infer_sampling s, d;
    infer_sampling_default(&d);
    expect_sampling(d, NULL);
    s = d;
    s.top_p = 1.5f;
    expect_sampling(s, "top_p is 1.5; it must be above 0 and at most 1");
    s = d;
    s.temperature = -1;
    expect_sampling(s, "temperature is -1; it must be at least 0 and at most 100");
    s = d;
    s.top_k = INFER_TOP_K_MAX;
    expect_sampling(s, NULL);
    s.top_k++;
    expect_sampling(s, "top_k is 1048577; it must be at most 1048576");
    s = d;
    s.penalty_window = INFER_PENALTY_WINDOW_MAX + 1;
    expect_sampling(s, "penalty_window is 4097; it must be at most 4096");
    s = d;
    s.logprobs = INFER_TOP_MAX + 1;
    expect_sampling(s, "logprobs is 21; it must be at most 20");
    s = d;
    s.ignore_eos = 2;
    expect_sampling(s, "ignore_eos is 2; it must be at most 1");
    s = d;
    s.reserved[16] = 1;
    expect_sampling(s, "the client set a sampling parameter that this daemon does not know; update "
                       "the daemon");
    s = d;
    s.max_tokens = UINT32_MAX;
    s.seed = UINT64_MAX;
    expect_sampling(s, NULL);
}

static void test_sampling_reaches_the_request(void **state)
{
    struct session_request r = make(INFER_ABI_GENERATE, INFER_ABI_TEXT, "hello", 5);
    struct admit_request a;
    struct report report;
    r.submit.sampling.top_p = 0;
    expect(r, INFER_E_BAD_PARAMETER, "top_p is 0; it must be above 0 and at most 1");

    r = make(INFER_ABI_GENERATE, INFER_ABI_TEXT, "hello", 5);
    r.submit.sampling.bytes = 60;
    expect(r, INFER_E_BAD_REQUEST, "the sampling parameters take 60 bytes; they must take 128");
    r = make(INFER_ABI_GENERATE, INFER_ABI_TEXT, "hello", 5);
    r.submit.sampling.bytes = 68;
    expect(r, INFER_E_BAD_REQUEST, NULL);

    r = make(INFER_ABI_GENERATE, INFER_ABI_TEXT, "hello", 5);
    r.submit.fixed_bytes += 16; /* a newer client */
    r.submit.sampling.seed = 99;
    assert_int_equal(admit_parse(&r, &a, &report), 0);
    assert_int_equal(a.sampling.seed, 99);
    assert_int_equal(a.sampling.bytes, sizeof a.sampling);
    admit_done(&a);

    r = make(INFER_ABI_TOKENIZE, INFER_ABI_TEXT, "hello", 5);
    r.submit.sampling.top_p = 7; /* means nothing here */
    expect(r, 0, NULL);
}

static void test_priority_and_deadline(void **state)
{
    static const uint32_t ops[] = {INFER_ABI_GENERATE, INFER_ABI_SCORE};
    struct admit_request a;
    struct report report;
    for (uint32_t i = 0; i < 2 * 3; i++) {
        struct session_request r = make(ops[i / 3], INFER_ABI_TEXT, "hello", 5);
        r.submit.priority = i % 3;
        r.submit.deadline_ms = i == 0 ? 0 : UINT32_MAX - i;
        assert_int_equal(admit_parse(&r, &a, &report), 0);
        assert_int_equal(a.priority, i % 3);
        assert_int_equal(a.deadline_ms, i == 0 ? 0 : UINT32_MAX - i);
        assert_true(a.target == 0);
        admit_done(&a);
    }
    struct session_request r = make(INFER_ABI_GENERATE, INFER_ABI_TEXT, "hello", 5);
    r.submit.priority = 3;
    expect(r, INFER_E_BAD_PARAMETER, "priority is 3; it must be at most 2");
    r = make(INFER_ABI_GENERATE, INFER_ABI_TEXT, "hello", 5);
    r.submit.priority = UINT32_MAX;
    expect(r, INFER_E_BAD_PARAMETER, "priority is 4294967295; it must be at most 2");
}

static void test_end(void **state)
{
    struct admit_request a;
    struct report report;
    struct session_request r = make(INFER_ABI_END, 0, NULL, 0);
    r.submit.target = 1ull << 40;
    assert_int_equal(admit_parse(&r, &a, &report), 0);
    assert_true(a.op == INFER_ABI_END && a.target == 1ull << 40 && a.input == 0);
    admit_done(&a);
    expect(make(INFER_ABI_END, 0, NULL, 0), 0, NULL); /* 0 is an id that nobody has */
    expect(make(INFER_ABI_END, INFER_ABI_TEXT, "hello", 5), INFER_E_BAD_REQUEST,
           "the request carries 5 bytes; it takes none");
    r = make(INFER_ABI_STATUS, 0, NULL, 0);
    r.submit.target = 1;
    expect(r, INFER_E_BAD_REQUEST, "operation 5 takes no target");
    r = make(INFER_ABI_METRICS + 1, 0, NULL, 0);
    expect(r, INFER_E_UNSUPPORTED, "operation 11 is not known");
}

static void test_forget(void **state)
{
    struct admit_request a;
    struct report report;
    struct session_request r = make(INFER_ABI_FORGET, 0, NULL, 0);
    r.submit.target = 1ull << 41;
    assert_int_equal(admit_parse(&r, &a, &report), 0);
    assert_true(a.op == INFER_ABI_FORGET && a.target == 1ull << 41 && a.input == 0);
    admit_done(&a);
    expect(make(INFER_ABI_FORGET, 0, "x", 1), INFER_E_BAD_REQUEST,
           "the request carries 1 bytes; it takes none");
    r = make(INFER_ABI_FORGET, 0, NULL, 0);
    r.submit.conversation = 1; /* what it ends is its target */
    expect(r, INFER_E_BAD_REQUEST, NULL);
}

static struct session_request generate(void)
{
    return make(INFER_ABI_GENERATE, INFER_ABI_TEXT, "hello", 5);
}

static void test_answers(void **state)
{
    static const uint32_t given[] = {0, 1, 2, INFER_ANSWERS_MAX};
    struct admit_request a;
    struct report report;
    struct session_request r;
    for (size_t i = 0; i < sizeof given / sizeof given[0]; i++) {
        r = generate();
        r.submit.n_answers = given[i];
        r.submit.flags = INFER_ABI_WAIT;
        assert_int_equal(admit_parse(&r, &a, &report), 0);
        assert_int_equal(a.n_answers, given[i] > 0 ? given[i] : 1);
        assert_true(a.window == 0 && a.sinks == 0 && a.conversation == 0);
        assert_int_equal(a.flags, INFER_ABI_WAIT);
        admit_done(&a);
    }
    r = generate();
    r.submit.n_answers = INFER_ANSWERS_MAX + 1;
    expect(r, INFER_E_BAD_PARAMETER, "n_answers is 65; it must be at most 64");
    r = generate();
    r.submit.n_answers = UINT32_MAX;
    expect(r, INFER_E_BAD_PARAMETER, "n_answers is 4294967295; it must be at most 64");
    r = generate();
    r.submit.n_answers = 2;
    r.submit.flags = INFER_ABI_KEEP;
    expect(r, INFER_E_BAD_PARAMETER, "n_answers is 2; it must be 1 in a conversation");
    r = generate();
    r.submit.n_answers = 3;
    r.submit.conversation = 7;
    expect(r, INFER_E_BAD_PARAMETER, "n_answers is 3; it must be 1 in a conversation");
    r = generate();
    r.submit.reserved = 1;
    expect(r, INFER_E_UNSUPPORTED,
           "the client set a field that this daemon does not know; update the daemon");
}

static void test_window(void **state)
{
    static const struct {
        uint32_t window, sinks, admitted; /* sinks as admitted */
        const char *sentence;
    } rows[] = {
        {0, 0, 0, NULL},
        {64, 0, INFER_SINKS_DEFAULT, NULL},
        {64, 1, 1, NULL},
        {64, 16, 16, NULL},
        {UINT32_MAX, UINT32_MAX / 4, UINT32_MAX / 4, NULL},
        {63, 0, 0, "window is 63; it must be 0 (none) or at least 64"},
        {1, 9, 0, "window is 1; it must be 0 (none) or at least 64"},
        {0, 4, 0, "sinks is 4; it must be 0 without a window"},
        {64, 17, 0, "sinks is 17; it must be at most 16, a quarter of the window"},
        {259, 65, 0, "sinks is 65; it must be at most 64, a quarter of the window"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct session_request r = generate();
        struct admit_request a;
        struct report report;
        r.submit.window = rows[i].window;
        r.submit.sinks = rows[i].sinks;
        if (rows[i].sentence != NULL) {
            expect(r, INFER_E_BAD_PARAMETER, rows[i].sentence);
            continue;
        }
        assert_int_equal(admit_parse(&r, &a, &report), 0);
        assert_int_equal(a.window, rows[i].window);
        assert_int_equal(a.sinks, rows[i].admitted);
        admit_done(&a);
    }
}

static void test_conversation(void **state)
{
    struct session_request r = generate();
    struct admit_request a;
    struct report report;
    r.submit.flags = INFER_ABI_KEEP;
    assert_int_equal(admit_parse(&r, &a, &report), 0);
    assert_true(a.conversation == 0 && a.flags == INFER_ABI_KEEP);
    admit_done(&a);
    r = generate();
    r.submit.conversation = UINT64_MAX; /* implies KEEP */
    r.submit.n_answers = 1;
    r.submit.window = 64;
    assert_int_equal(admit_parse(&r, &a, &report), 0);
    assert_true(a.conversation == UINT64_MAX && a.flags == INFER_ABI_KEEP && a.window == 64);
    admit_done(&a);
    r = make(INFER_ABI_GENERATE, INFER_ABI_TEXT, NULL, 0);
    r.submit.conversation = 5;
    r.submit.flags = INFER_ABI_ADD_BOS; /* there is none in a conversation's middle */
    expect(r, INFER_E_PROMPT_EMPTY, NULL);
}

static void test_third_form_is_for_generate(void **state)
{
    static const size_t fields[] = {
        offsetof(struct infer_abi_submit, n_answers), offsetof(struct infer_abi_submit, window),
        offsetof(struct infer_abi_submit, sinks), offsetof(struct infer_abi_submit, conversation)};
    static const struct {
        uint32_t op, input;
        bool runs;
    } ops[] = {{INFER_ABI_SCORE, INFER_ABI_TEXT, true},
               {INFER_ABI_TOKENIZE, INFER_ABI_TEXT, false},
               {INFER_ABI_DETOKENIZE, INFER_ABI_TOKENS, false},
               {INFER_ABI_STATUS, 0, false},
               {INFER_ABI_MODELS, 0, false},
               {INFER_ABI_END, 0, false},
               {INFER_ABI_FORGET, 0, false},
               {INFER_ABI_METRICS, 0, false},
               {INFER_ABI_TOPOLOGY, 0, false}};
    for (size_t i = 0; i < sizeof ops / sizeof ops[0]; i++) {
        uint32_t bytes = ops[i].input != 0 ? 4 : 0;
        char sentence[128];
        snprintf(sentence, sizeof sentence,
                 "operation %u takes no flag KEEP, n_answers, window, sinks or conversation",
                 ops[i].op);
        for (size_t k = 0; k < sizeof fields / sizeof fields[0]; k++) {
            struct session_request r = make(ops[i].op, ops[i].input, "\1\0\0", bytes);
            memset((char *)&r.submit + fields[k], 1, sizeof(uint32_t));
            expect(r, INFER_E_BAD_REQUEST, sentence);
        }
        struct session_request r = make(ops[i].op, ops[i].input, "\1\0\0", bytes);
        r.submit.flags = INFER_ABI_KEEP;
        expect(r, INFER_E_BAD_REQUEST, sentence);
        r = make(ops[i].op, ops[i].input, "\1\0\0", bytes);
        r.submit.flags = INFER_ABI_WAIT; /* what runs may wait, what is answered at once may not */
        expect(r, ops[i].runs ? 0 : INFER_E_BAD_REQUEST, NULL);
    }
}

static void test_text(void **state)
{
    struct session_request r = make(INFER_ABI_GENERATE, INFER_ABI_TEXT, "a\0\xff", 3);
    struct admit_request a;
    struct report report;
    strcpy(r.submit.model, "unix");
    r.submit.flags = INFER_ABI_ADD_BOS | INFER_ABI_WANT_PROMPT;
    assert_int_equal(admit_parse(&r, &a, &report), 0);
    assert_int_equal(a.request, 7);
    assert_int_equal(a.op, INFER_ABI_GENERATE);
    assert_int_equal(a.text.bytes, 3);
    assert_memory_equal(a.text.data, "a\0\xff", 3);
    assert_string_equal(a.model, "unix");
    assert_int_equal(a.flags, INFER_ABI_ADD_BOS | INFER_ABI_WANT_PROMPT);
    admit_done(&a);

    r = make(INFER_ABI_GENERATE, INFER_ABI_TEXT, NULL, 0);
    expect(r, INFER_E_PROMPT_EMPTY, NULL);
    r = make(INFER_ABI_GENERATE, INFER_ABI_TEXT, NULL, 0);
    r.submit.flags = INFER_ABI_ADD_BOS; /* BOS may make a prompt of it */
    expect(r, 0, NULL);
    expect(make(INFER_ABI_TOKENIZE, INFER_ABI_TEXT, NULL, 0), 0, NULL);
    expect(make(INFER_ABI_DETOKENIZE, INFER_ABI_TOKENS, NULL, 0), 0, NULL);
    expect(make(INFER_ABI_GENERATE, INFER_ABI_TOKENS, NULL, 0), INFER_E_PROMPT_EMPTY, NULL);
    expect(make(INFER_ABI_GENERATE, INFER_ABI_MESSAGES, NULL, 0), INFER_E_PROMPT_EMPTY, NULL);
}

static void test_head(void **state)
{
    struct session_request r = make(99, INFER_ABI_TEXT, "x", 1);
    expect(r, INFER_E_UNSUPPORTED, "operation 99 is not known");
    r = make(INFER_ABI_GENERATE, INFER_ABI_TEXT, "x", 1);
    r.kind = 55;
    expect(r, INFER_E_UNSUPPORTED, "records of kind 55 are not known");
    r = make(INFER_ABI_GENERATE, INFER_ABI_TEXT, "x", 1);
    r.submit.flags = 0x40 | INFER_ABI_WAIT;
    expect(r, INFER_E_UNSUPPORTED, "the flags 0x40 are not known");
    r = make(INFER_ABI_GENERATE, INFER_ABI_TEXT, "x", 1);
    memset(r.submit.model, 'm', sizeof r.submit.model);
    expect(r, INFER_E_BAD_REQUEST, "the model's name is too long; it may take 63 bytes");
    static const uint32_t inputs[] = {0, 4, 31, 32, UINT32_MAX};
    for (size_t i = 0; i < sizeof inputs / sizeof inputs[0]; i++)
        expect(make(INFER_ABI_GENERATE, inputs[i], "x", 1), INFER_E_BAD_REQUEST, NULL);
    expect(make(INFER_ABI_SCORE, INFER_ABI_MESSAGES, "x", 1), INFER_E_BAD_REQUEST, NULL);
    expect(make(INFER_ABI_TOKENIZE, INFER_ABI_TOKENS, "xxxx", 4), INFER_E_BAD_REQUEST, NULL);
    expect(make(INFER_ABI_DETOKENIZE, INFER_ABI_TEXT, "x", 1), INFER_E_BAD_REQUEST, NULL);
    expect(make(INFER_ABI_STATUS, 0, NULL, 0), 0, NULL);
    expect(make(INFER_ABI_MODELS, 0, NULL, 0), 0, NULL);
    expect(make(INFER_ABI_TOPOLOGY, 0, NULL, 0), 0, NULL);
    expect(make(INFER_ABI_TOPOLOGY, 0, "x", 1), INFER_E_BAD_REQUEST, NULL);
    expect(make(INFER_ABI_STATUS, 0, "x", 1), INFER_E_BAD_REQUEST,
           "the request carries 1 bytes; it takes none");
    r = make(INFER_ABI_SCORE, INFER_ABI_TEXT, "x", 1);
    r.submit.n_top = INFER_TOP_MAX;
    expect(r, 0, NULL);
    r = make(INFER_ABI_SCORE, INFER_ABI_TEXT, "x", 1);
    r.submit.n_top = INFER_TOP_MAX + 1;
    expect(r, INFER_E_BAD_PARAMETER, "n_top is 21; it must be at most 20");
    r = make(INFER_ABI_GENERATE, INFER_ABI_TEXT, "x", 1);
    r.submit.input_bytes = 2; /* more than there is */
    expect(r, INFER_E_BAD_REQUEST, NULL);
    r = make(INFER_ABI_GENERATE, INFER_ABI_TEXT, "x", 1);
    r.submit.stops_bytes = UINT32_MAX;
    r.submit.biases_bytes = 1; /* the sum wraps in 32 bits */
    expect(r, INFER_E_BAD_REQUEST, NULL);
    r = make(INFER_ABI_GENERATE, INFER_ABI_TEXT, NULL, 0);
    r.error = INFER_E_OUT_OF_MEMORY;
    expect(r, INFER_E_OUT_OF_MEMORY, NULL);
}

static void test_tokens(void **state)
{
    int32_t ids[3] = {1, 0, INT32_MAX};
    struct session_request r =
        make(INFER_ABI_GENERATE, INFER_ABI_TOKENS, ids, (uint32_t)sizeof ids);
    struct admit_request a;
    struct report report;
    assert_int_equal(admit_parse(&r, &a, &report), 0);
    assert_int_equal(a.n_tokens, 3);
    assert_int_equal(a.tokens[2], INT32_MAX);
    admit_done(&a);
    ids[1] = -5;
    expect(make(INFER_ABI_GENERATE, INFER_ABI_TOKENS, ids, sizeof ids), INFER_E_BAD_TOKEN,
           "token 1 is -5; ids are 0 or more");
    expect(make(INFER_ABI_GENERATE, INFER_ABI_TOKENS, ids, 11), INFER_E_BAD_REQUEST,
           "the token ids take 11 bytes; it must be a multiple of 4");
}

static uint32_t put_message(uint8_t *to, uint32_t role, uint32_t content, const char *text)
{
    struct infer_abi_message head = {role, content};
    memcpy(to, &head, sizeof head);
    memcpy(to + sizeof head, text, strlen(text));
    return (uint32_t)(sizeof head + strlen(text));
}

static void test_messages(void **state)
{
    uint8_t bytes[200];
    uint32_t n = put_message(bytes, 6, 5, "systemcrisp");
    struct admit_request a;
    struct report report;
    n += put_message(bytes + n, 4, 0, "user");
    struct session_request r = make(INFER_ABI_GENERATE, INFER_ABI_MESSAGES, bytes, n);
    assert_int_equal(admit_parse(&r, &a, &report), 0);
    assert_int_equal(a.n_messages, 2);
    assert_int_equal(a.messages[0].role.bytes, 6);
    assert_memory_equal(a.messages[0].content.data, "crisp", 5);
    assert_memory_equal(a.messages[1].role.data, "user", 4);
    assert_int_equal(a.messages[1].content.bytes, 0);
    admit_done(&a);
    for (uint32_t cut = 1; cut < n; cut++) /* only a whole number of messages passes */
        expect(make(INFER_ABI_GENERATE, INFER_ABI_MESSAGES, bytes, cut),
               cut == 19 ? 0 : INFER_E_BAD_REQUEST, NULL);
    n = put_message(bytes, 0, 4, "text");
    expect(make(INFER_ABI_GENERATE, INFER_ABI_MESSAGES, bytes, n), INFER_E_BAD_REQUEST,
           "the role of message 0 takes 0 bytes; it must take 1 to 32");
    n = put_message(bytes, INFER_ROLE_MAX + 1, 0, "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa");
    expect(make(INFER_ABI_GENERATE, INFER_ABI_MESSAGES, bytes, n), INFER_E_BAD_REQUEST, NULL);
    n = put_message(bytes, 4, UINT32_MAX - 3, "user");
    expect(make(INFER_ABI_GENERATE, INFER_ABI_MESSAGES, bytes, n), INFER_E_BAD_REQUEST, NULL);

    for (uint32_t count = INFER_MESSAGES_MAX; count <= INFER_MESSAGES_MAX + 1; count++) {
        uint8_t *many = malloc((size_t)count * 9);
        for (uint32_t i = 0; i < count; i++)
            put_message(many + (size_t)i * 9, 1, 0, "u");
        expect(make(INFER_ABI_GENERATE, INFER_ABI_MESSAGES, many, count * 9),
               count == INFER_MESSAGES_MAX ? 0 : INFER_E_BAD_REQUEST, NULL);
        free(many);
    }
}

static void put_stop(struct session_request *r, uint32_t announced, const char *text)
{
    append(r, &r->submit.stops_bytes, &announced, 4);
    append(r, &r->submit.stops_bytes, text, (uint32_t)strlen(text));
}

static void test_stops_and_biases(void **state)
{
    struct session_request r = make(INFER_ABI_GENERATE, INFER_ABI_TEXT, "odd", 3);
    struct infer_logit_bias biases[2] = {{5, -INFINITY}, {6, 2.5f}};
    struct admit_request a;
    struct report report;
    put_stop(&r, 2, "\n\n");
    put_stop(&r, 3, "END");
    append(&r, &r.submit.biases_bytes, biases, sizeof biases);
    assert_int_equal(admit_parse(&r, &a, &report), 0);
    assert_int_equal(a.n_stops, 2);
    assert_int_equal(a.stops[1].bytes, 3);
    assert_memory_equal(a.stops[1].data, "END", 3);
    assert_int_equal(a.n_biases, 2);
    assert_true(a.biases[1].token == 6 && a.biases[1].bias == 2.5f);
    admit_done(&a);

    static const struct {
        uint32_t announced;
        const char *text;
        int code;
    } rows[] = {{0, "", INFER_E_BAD_PARAMETER},
                {INFER_STOP_BYTES_MAX + 1, "xx", INFER_E_BAD_PARAMETER},
                {3, "xx", INFER_E_BAD_REQUEST},
                {1, "xx", INFER_E_BAD_REQUEST}, /* one byte too many for nothing */
                {UINT32_MAX, "xx", INFER_E_BAD_PARAMETER}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        r = make(INFER_ABI_GENERATE, INFER_ABI_TEXT, "x", 1);
        put_stop(&r, rows[i].announced, rows[i].text);
        expect(r, rows[i].code, NULL);
    }
    for (uint32_t n = INFER_STOPS_MAX; n <= INFER_STOPS_MAX + 1; n++) {
        r = make(INFER_ABI_GENERATE, INFER_ABI_TEXT, "x", 1);
        for (uint32_t i = 0; i < n; i++)
            put_stop(&r, 1, "s");
        expect(r, n == INFER_STOPS_MAX ? 0 : INFER_E_BAD_PARAMETER, NULL);
    }
    r = make(INFER_ABI_SCORE, INFER_ABI_TEXT, "x", 1);
    put_stop(&r, 1, "s");
    expect(r, INFER_E_BAD_REQUEST, NULL);
}

static void test_bad_biases(void **state)
{
    static struct infer_logit_bias many[INFER_LOGIT_BIASES_MAX + 1];
    static const float bad[] = {NAN, INFINITY};
    for (size_t i = 0; i < 2; i++) {
        struct infer_logit_bias one = {1, bad[i]};
        struct session_request r = make(INFER_ABI_GENERATE, INFER_ABI_TEXT, "x", 1);
        append(&r, &r.submit.biases_bytes, &one, sizeof one);
        expect(r, INFER_E_BAD_PARAMETER, NULL);
    }
    struct infer_logit_bias one = {-1, 0};
    struct session_request r = make(INFER_ABI_GENERATE, INFER_ABI_TEXT, "x", 1);
    append(&r, &r.submit.biases_bytes, &one, sizeof one);
    expect(r, INFER_E_BAD_TOKEN, "the token of logit bias 0 is -1; ids are 0 or more");
    r = make(INFER_ABI_GENERATE, INFER_ABI_TEXT, "x", 1);
    append(&r, &r.submit.biases_bytes, &one, 7);
    expect(r, INFER_E_BAD_REQUEST, NULL);
    for (uint32_t n = INFER_LOGIT_BIASES_MAX; n <= INFER_LOGIT_BIASES_MAX + 1; n++) {
        r = make(INFER_ABI_GENERATE, INFER_ABI_TEXT, "x", 1);
        append(&r, &r.submit.biases_bytes, many, n * (uint32_t)sizeof many[0]);
        expect(r, n == INFER_LOGIT_BIASES_MAX ? 0 : INFER_E_BAD_PARAMETER, NULL);
    }
}

/* Any bytes at all, many times: an answer, never a crash (the sanitizers watch). */
static void test_noise(void **state)
{
    uint32_t seed = 1;
    for (int i = 0; i < 20000; i++) {
        uint8_t bytes[64];
        for (size_t k = 0; k < sizeof bytes; k++) {
            seed = seed * 1664525u + 1013904223u;
            bytes[k] = (seed >> 24) < 128 ? (uint8_t)(seed >> 8 & 7) : (uint8_t)(seed >> 16);
        }
        struct session_request r =
            make(bytes[0] % 10, bytes[1] % 5, bytes + 8, bytes[2] % (sizeof bytes - 7));
        if (r.payload_bytes >= 24) {
            r.submit.input_bytes -= 24;
            r.submit.stops_bytes = bytes[3] % 25;
            r.submit.biases_bytes = 24 - r.submit.stops_bytes;
        }
        struct admit_request a;
        struct report report;
        if (bytes[4] < 4) { /* now and then what the third form brought */
            r.submit.n_answers = bytes[5];
            r.submit.window = bytes[6];
            r.submit.sinks = bytes[7] & 31u;
            r.submit.conversation = bytes[5] & 2u;
        }
        if (admit_parse(&r, &a, &report) == 0)
            admit_done(&a);
        else
            assert_true(report.text[0] != '\0');
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sampling_floats),
        cmocka_unit_test(test_sampling_sentences),
        cmocka_unit_test(test_sampling_reaches_the_request),
        cmocka_unit_test(test_priority_and_deadline),
        cmocka_unit_test(test_end),
        cmocka_unit_test(test_forget),
        cmocka_unit_test(test_answers),
        cmocka_unit_test(test_window),
        cmocka_unit_test(test_conversation),
        cmocka_unit_test(test_third_form_is_for_generate),
        cmocka_unit_test(test_text),
        cmocka_unit_test(test_head),
        cmocka_unit_test(test_tokens),
        cmocka_unit_test(test_messages),
        cmocka_unit_test(test_stops_and_biases),
        cmocka_unit_test(test_bad_biases),
        cmocka_unit_test(test_noise),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
