/* The null backend: the same tokens every time, the scripted faults, and its own cost. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "backend_host.h"

#include <errno.h>
#include <math.h>
#include <string.h>
#include <time.h>

#define VOCAB       1000
#define PAGE_TOKENS 16
#define N_PAGES     8

static const struct infer_tensor tensors[1] = {
    {"token_embd", INFER_TYPE_F32, 2, {8, VOCAB, 1, 1}, 32, VOCAB}};
static const struct infer_plan plan = {
    .shape = {.n_vocab = VOCAB}, .tensors = tensors, .n_tensors = 1};
static const struct infer_state_config config = {.page_tokens = PAGE_TOKENS,
                                                 .n_pages = N_PAGES,
                                                 .max_rows = 64,
                                                 .max_seqs = 8,
                                                 .max_outputs = 64};

struct session {
    struct host_memory memory;
    struct infer_host host;
    const struct infer_backend_api *api;
    struct infer_backend *backend;
    struct infer_backend_model *model;
};

static void session_init(struct session *s, const char *options)
{
    static const float rows[8 * VOCAB];
    memset(s, 0, sizeof *s);
    s->host = host_make(&s->memory);
    s->api = host_load("null");
    assert_string_equal(s->api->name, "null");
    assert_int_equal(s->api->open(&s->host, options, &s->backend), 0);
    assert_int_equal(s->api->model_open(s->backend, &plan, &config, &s->model), 0);
    assert_int_equal(s->api->tensor_write(s->model, 0, 0, VOCAB, rows), 0);
    assert_int_equal(s->api->model_ready(s->model), 0);
}

static void session_done(struct session *s)
{
    s->api->model_close(s->model);
    s->api->close(s->backend);
    assert_int_equal(s->memory.held, 0);
}

static const uint32_t pages[N_PAGES] = {0, 1, 2, 3, 4, 5, 6, 7};

/* A step of one row; gives run()'s result. */
static int step(struct session *s, int32_t previous, uint32_t position,
                struct infer_batch_output *output)
{
    struct infer_batch_seq seq = {0, 1, position, N_PAGES, pages};
    struct infer_batch batch = {.n_rows = 1,
                                .n_seqs = 1,
                                .n_outputs = 1,
                                .tokens = &previous,
                                .seqs = &seq,
                                .outputs = output};
    return s->api->run(s->model, &batch);
}

static int32_t draw(struct session *s, uint64_t seed, int32_t previous, uint32_t position)
{
    struct infer_sampling sampling = {.seed = seed};
    struct infer_batch_output output = {.sample = 1, .target = -1, .sampling = &sampling};
    assert_int_equal(step(s, previous, position, &output), 0);
    return output.token;
}

static void tokens_are_a_function_of_seed_token_and_position(void **state)
{
    (void)state;
    struct session a, b;
    uint32_t same_seed = 0, same_token = 0, same_position = 0, histogram[10] = {0};
    session_init(&a, "");
    session_init(&b, "");
    for (int32_t i = 0; i < 5000; i++) {
        int32_t token = draw(&a, 7, i % VOCAB, (uint32_t)i % 100);
        assert_in_range(token, 3, VOCAB - 1);
        assert_int_equal(draw(&b, 7, i % VOCAB, (uint32_t)i % 100), token);
        same_seed += draw(&a, 8, i % VOCAB, (uint32_t)i % 100) == token;
        same_token += draw(&a, 7, (i + 1) % VOCAB, (uint32_t)i % 100) == token;
        same_position += draw(&a, 7, i % VOCAB, (uint32_t)(i + 1) % 100) == token;
        histogram[token / (VOCAB / 10)]++;
    }
    /* By chance one in 997. */
    assert_true(same_seed < 30 && same_token < 30 && same_position < 30);
    for (int i = 0; i < 10; i++)
        assert_in_range(histogram[i], 380, 620); /* 500 +- 5.6 deviations */
    session_done(&a);
    session_done(&b);
}

static void batches_give_the_same_tokens(void **state)
{
    (void)state;
    struct session s;
    struct infer_sampling sampling[2] = {{.seed = 1}, {.seed = 2}};
    int32_t tokens[5] = {10, 11, 12, 13, 14};
    const uint32_t other_pages[1] = {7};
    struct infer_batch_seq seqs[2] = {{3, 2, 4, 1, other_pages}, {0, 3, 40, N_PAGES, pages}};
    struct infer_batch_output outputs[3] = {
        {.row = 2, .sample = 1, .target = -1, .sampling = &sampling[0]},
        {.row = 2, .sample = 1, .target = -1, .sampling = &sampling[1]},
        {.row = 4, .sample = 1, .target = -1, .sampling = &sampling[1]},
    };
    struct infer_batch batch = {.n_rows = 5,
                                .n_seqs = 2,
                                .n_outputs = 3,
                                .tokens = tokens,
                                .seqs = seqs,
                                .outputs = outputs};
    session_init(&s, "");
    uint64_t takes = s.memory.takes;
    assert_int_equal(s.api->run(s.model, &batch), 0);
    assert_int_equal(s.memory.takes, takes);
    assert_int_equal(outputs[0].token, draw(&s, 1, 12, 42));
    assert_int_equal(outputs[1].token, draw(&s, 2, 12, 42));
    assert_int_equal(outputs[2].token, draw(&s, 2, 14, 5));
    session_done(&s);
}

static void results_fit_together(void **state)
{
    (void)state;
    static float logits[VOCAB];
    struct session s;
    struct infer_sampling sampling = {.seed = 3};
    struct infer_batch_output output = {
        .sample = 1, .target = 5, .n_top = INFER_TOP_MAX, .sampling = &sampling, .logits = logits};
    session_init(&s, "");
    assert_int_equal(step(&s, 77, 9, &output), 0);
    assert_int_equal(output.top[0].token, output.token);
    assert_true(output.logprob == output.top[0].logprob);
    assert_true(output.target_logprob == logits[5]);
    for (int i = 0; i < (int)INFER_TOP_MAX; i++) {
        assert_true(output.top[i].logprob == logits[output.top[i].token]);
        assert_true(i == 0 || output.top[i].logprob < output.top[i - 1].logprob);
    }
    for (int i = 0; i < VOCAB; i++)
        assert_true(isfinite(logits[i]) && logits[i] <= output.logprob);

    int32_t before = output.token;
    struct infer_logit_bias bias[2] = {{before, -INFINITY}, {before + 1, -INFINITY}};
    output.bias = bias;
    output.n_bias = 2;
    assert_int_equal(step(&s, 77, 9, &output), 0);
    assert_true(output.token != before && output.token != before + 1);
    output.sample = 0;
    output.sampling = NULL;
    assert_int_equal(step(&s, 77, 9, &output), 0);
    session_done(&s);
}

static void an_end_token_can_be_asked_for(void **state)
{
    (void)state;
    struct session s;
    session_init(&s, "eos_after=20,eos=2");
    for (uint32_t position = 0; position < 40; position++) {
        if (position + 1 >= 20)
            assert_int_equal(draw(&s, 1, 9, position), 2);
        else
            assert_int_not_equal(draw(&s, 1, 9, position), 2);
    }
    struct infer_sampling sampling = {.seed = 1};
    struct infer_logit_bias ban = {2, -INFINITY};
    struct infer_batch_output output = {
        .sample = 1, .target = -1, .sampling = &sampling, .bias = &ban, .n_bias = 1};
    assert_int_equal(step(&s, 9, 30, &output), 0);
    assert_int_not_equal(output.token, 2);
    session_done(&s);
}

static void steps_fail_as_scripted(void **state)
{
    (void)state;
    struct session s;
    struct infer_sampling sampling = {.seed = 1};
    struct infer_batch_output output = {.sample = 1, .target = -1, .sampling = &sampling};
    session_init(&s, "fail_step=3,lose_step=6");
    const int wanted[] = {0, 0, -EIO, 0, 0, -ENODEV, -ENODEV, -ENODEV};
    for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++)
        assert_int_equal(step(&s, 1, 1, &output), wanted[i]);
    assert_non_null(strstr(s.api->last_error(s.backend), "lost"));
    session_done(&s);
}

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void delays_are_kept(void **state)
{
    (void)state;
    static const struct {
        const char *options;
        uint64_t us;
    } cases[] = {{"delay_us=2000", 2000},
                 {"delay_us=50", 50},
                 {"row_delay_us=3000", 3000},
                 {"delay_us=500,row_delay_us=1500", 2000}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct session s;
        session_init(&s, cases[i].options);
        uint64_t start = now_ns();
        draw(&s, 1, 1, 1);
        assert_true(now_ns() - start >= cases[i].us * 1000);
        session_done(&s);
    }
}

/* One row of a step that is submitted; the batch is the caller's until it is collected. */
struct one_row {
    int32_t token;
    struct infer_batch_seq seq;
    struct infer_batch_output output;
    struct infer_batch batch;
};

static void one_row(struct one_row *r, int32_t token, uint32_t position,
                    const struct infer_sampling *sampling)
{
    r->token = token;
    r->seq = (struct infer_batch_seq){0, 1, position, N_PAGES, pages};
    r->output = (struct infer_batch_output){.sample = 1, .target = -1, .sampling = sampling};
    r->batch = (struct infer_batch){.n_rows = 1,
                                    .n_seqs = 1,
                                    .n_outputs = 1,
                                    .tokens = &r->token,
                                    .seqs = &r->seq,
                                    .outputs = &r->output};
}

static void a_step_goes_on_from_what_the_one_before_draws(void **state)
{
    (void)state;
    struct session s;
    struct infer_sampling sampling = {.seed = 11};
    struct one_row rows[2];
    int32_t want = 5;
    session_init(&s, "check_rows=1,delay_us=1000");
    one_row(&rows[0], 5, 0, &sampling);
    uint64_t start = now_ns();
    assert_int_equal(s.api->submit(s.model, &rows[0].batch), 0);
    for (uint32_t i = 0; i < 40; i++) {
        struct one_row *next = &rows[(i + 1) % 2];
        one_row(next, INFER_TOKEN_DRAWN(0), i + 1, &sampling);
        assert_int_equal(s.api->submit(s.model, &next->batch), 0);
        assert_int_equal(s.api->submit(s.model, &next->batch), -EINVAL); /* two are under way */
        assert_int_equal(s.api->collect(s.model, &rows[i % 2].batch), 0);
        assert_true(now_ns() - start >= 1000000u * (i + 1)); /* one after the other */
        rows[i % 2].token = rows[i % 2].output.token;
    }
    assert_int_equal(s.api->collect(s.model, &rows[0].batch), 0);
    int32_t drawn = rows[0].output.token;
    assert_int_equal(s.api->collect(s.model, &rows[0].batch), -EINVAL); /* none is */
    for (uint32_t i = 0; i < 41; i++)
        want = draw(&s, 11, want, i);
    assert_int_equal(drawn, want);
    session_done(&s);
}

static void what_was_not_drawn_is_refused(void **state)
{
    (void)state;
    struct session s;
    struct infer_sampling sampling = {.seed = 11};
    struct one_row r;
    session_init(&s, "");
    one_row(&r, INFER_TOKEN_DRAWN(0), 0, &sampling);
    assert_int_equal(s.api->submit(s.model, &r.batch), -EINVAL); /* there was no step */
    draw(&s, 1, 5, 0);
    assert_int_equal(s.api->run(s.model, &r.batch), 0);
    r.token = INFER_TOKEN_DRAWN(1);
    assert_int_equal(s.api->submit(s.model, &r.batch), -EINVAL);
    one_row(&r, 7, 0, &sampling);
    r.output.sample = 0;
    assert_int_equal(s.api->run(s.model, &r.batch), 0);
    one_row(&r, INFER_TOKEN_DRAWN(0), 1, &sampling);
    assert_int_equal(s.api->submit(s.model, &r.batch), -EINVAL); /* it drew nothing */
    session_done(&s);
}

static void bad_options_are_refused(void **state)
{
    (void)state;
    static const char *const bad[] = {"speed=9",
                                      "delay_us",
                                      "delay_us=",
                                      "delay_us=-1",
                                      "delay_us=1x",
                                      "=5",
                                      ",delay_us=1",
                                      "refuse=2",
                                      "delay_us=99999999999",
                                      "delay_us= 1",
                                      "page_bytes=18446744073709551616",
                                      "a_key_that_is_longer_than_any_that_there_could_be=1"};
    struct host_memory memory = {0};
    struct infer_host host = host_make(&memory);
    const struct infer_backend_api *api = host_load("null");
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct infer_backend *backend = NULL;
        if (api->open(&host, bad[i], &backend) != -EINVAL)
            fail_msg("'%s' was taken", bad[i]);
        assert_null(backend);
        assert_true(strlen(api->last_error(NULL)) > 10);
    }
    host.abi++;
    struct infer_backend *backend = NULL;
    assert_int_equal(api->open(&host, "", &backend), -EINVAL);
    assert_int_equal(memory.held, 0);
}

static void a_model_can_be_refused(void **state)
{
    (void)state;
    struct host_memory memory = {0};
    struct infer_host host = host_make(&memory);
    const struct infer_backend_api *api = host_load("null");
    struct infer_backend *backend;
    struct infer_backend_model *model = NULL;
    assert_int_equal(api->open(&host, "refuse=1", &backend), 0);
    assert_int_equal(api->model_open(backend, &plan, &config, &model), -ENOMEM);
    assert_null(model);
    api->close(backend);
    assert_int_equal(memory.held, 0);
}

/* What a model would take on a device is taken from the memory that it claims, and from no other.
 */
static void a_device_has_its_own_memory(void **state)
{
    (void)state;
    struct host_memory memory = {0};
    struct infer_host host = host_make(&memory);
    const struct infer_backend_api *api = host_load("null");
    struct infer_backend *backend, *none = NULL;
    struct infer_backend_model *model, *other = NULL;
    struct infer_device device;
    struct infer_estimate e;
    assert_int_equal(api->open(&host, "memory=100000,page_bytes=4096,device=0", &backend), 0);
    assert_int_equal(api->estimate(backend, &plan, &config, &e), 0);
    assert_int_equal(e.weights_bytes, 32 * VOCAB);
    uint64_t takes = e.weights_bytes + N_PAGES * e.page_bytes + e.scratch_bytes;
    assert_int_equal(api->model_open(backend, &plan, &config, &model), 0);
    api->describe(backend, &device);
    assert_int_equal(device.memory, 100000);
    assert_int_equal(device.memory_free, 100000 - takes);
    assert_true(memory.held < 4096);
    assert_int_equal(api->model_open(backend, &plan, &config, &other), -ENOMEM);
    assert_null(other);
    api->model_close(model);
    api->describe(backend, &device);
    assert_int_equal(device.memory_free, 100000);
    api->close(backend);
    assert_int_equal(api->open(&host, "device=1", &none), -ENODEV);
    assert_int_equal(api->open(&host, "memory=1000,devices=2,device=2", &none), -ENODEV);
    assert_null(none);
    assert_int_equal(api->open(&host, "memory=1000,devices=2,device=1", &backend), 0);
    api->close(backend);
    assert_int_equal(api->open(&host, "", &backend), 0);
    api->describe(backend, &device);
    assert_true(device.memory == 0 && device.memory_free == 0);
    api->close(backend);
    assert_int_equal(memory.held, 0);
}

static void the_loading_contract_is_checked(void **state)
{
    (void)state;
    static const float rows[8 * VOCAB];
    struct host_memory memory = {0};
    struct infer_host host = host_make(&memory);
    const struct infer_backend_api *api = host_load("null");
    struct infer_backend *backend;
    struct infer_backend_model *model;
    struct infer_batch batch = {0};
    assert_int_equal(api->open(&host, "", &backend), 0);
    assert_int_equal(api->model_open(backend, &plan, &config, &model), 0);
    assert_int_equal(api->tensor_write(model, 1, 0, 1, rows), -EINVAL);
    assert_int_equal(api->tensor_write(model, 0, 1, 1, rows), -EINVAL);
    assert_int_equal(api->tensor_write(model, 0, 0, 10, rows), 0);
    assert_int_equal(api->tensor_write(model, 0, 5, 10, rows), -EINVAL);
    assert_int_equal(api->tensor_write(model, 0, 10, VOCAB, rows), -EINVAL);
    assert_int_equal(api->model_ready(model), -EINVAL);
    assert_non_null(strstr(api->last_error(backend), "10 of 1000"));
    assert_int_equal(api->run(model, &batch), -EINVAL);
    assert_int_equal(api->tensor_write(model, 0, 10, VOCAB - 10, rows), 0);
    assert_int_equal(api->model_ready(model), 0);
    assert_int_equal(api->run(model, &batch), 0);
    api->model_close(model);
    api->close(backend);
    assert_int_equal(memory.held, 0);
}

/* A page holds the ids of its rows plus one. */
static void pages_remember_their_tokens(void **state)
{
    (void)state;
    struct session s;
    struct infer_estimate estimate;
    static uint32_t page[100];
    session_init(&s, "page_bytes=321");
    assert_int_equal(s.api->estimate(s.backend, &plan, &config, &estimate), 0);
    assert_int_equal(estimate.page_bytes, 384); /* whole cache lines */
    draw(&s, 1, 500, PAGE_TOKENS + 3);
    assert_int_equal(s.api->page_read(s.model, 1, page), 0);
    for (int i = 0; i < PAGE_TOKENS; i++)
        assert_int_equal(page[i], i == 3 ? 501 : 0);
    assert_int_equal(s.api->page_copy(s.model, 5, 1), 0);
    assert_int_equal(s.api->page_zero(s.model, 1), 0);
    assert_int_equal(s.api->page_read(s.model, 1, page), 0);
    assert_int_equal(page[3], 0);
    assert_int_equal(s.api->page_read(s.model, 5, page), 0);
    assert_int_equal(page[3], 501);
    page[4] = 99;
    assert_int_equal(s.api->page_write(s.model, 2, page), 0);
    assert_int_equal(s.api->page_read(s.model, 2, page), 0);
    assert_int_equal(page[4], 99);
    assert_int_equal(s.api->page_read(s.model, N_PAGES, page), -EINVAL);

    struct infer_batch_output output = {.target = -1};
    assert_int_equal(step(&s, 1, N_PAGES * PAGE_TOKENS, &output), -EINVAL);
    session_done(&s);
}

/* A page says which positions its rows are for; a shift moves them, and only rows that are there.
 */
static void shifts_move_positions(void **state)
{
    (void)state;
    struct session s;
    static uint32_t page[2 * PAGE_TOKENS];
    session_init(&s, "");
    draw(&s, 1, 500, PAGE_TOKENS + 3);
    assert_int_equal(s.api->page_shift(s.model, 1, -5), 0);
    assert_int_equal(s.api->page_read(s.model, 1, page), 0);
    for (int i = 0; i < PAGE_TOKENS; i++) {
        assert_int_equal(page[i], i == 3 ? 501 : 0);
        assert_int_equal(page[PAGE_TOKENS + i], i == 3 ? PAGE_TOKENS - 2 : 0);
    }
    assert_int_equal(s.api->page_shift(s.model, N_PAGES, 1), -EINVAL);
    session_done(&s);
}

/* check_rows=1: rows that are not there, or not for their positions, fail the step. A sequence of
 * three pages loses the second; it goes on only with the third one shifted. */
static void cached_rows_can_be_checked(void **state)
{
    (void)state;
    struct session s;
    struct infer_batch_output output = {.target = -1};
    const uint32_t left[N_PAGES] = {0, 2, 3};
    struct infer_batch_seq seq = {0, 1, 2 * PAGE_TOKENS, 3, left};
    int32_t token = 9;
    struct infer_batch batch = {.n_rows = 1,
                                .n_seqs = 1,
                                .n_outputs = 1,
                                .tokens = &token,
                                .seqs = &seq,
                                .outputs = &output};
    session_init(&s, "check_rows=1");
    assert_int_equal(step(&s, 7, 1, &output), -EINVAL);
    for (uint32_t i = 0; i < 3 * PAGE_TOKENS; i++)
        assert_int_equal(step(&s, 7, i, &output), 0);
    assert_int_equal(s.api->run(s.model, &batch), -EINVAL);
    assert_non_null(strstr(s.api->last_error(s.backend), "lacks rows before 32"));
    assert_int_equal(s.api->page_shift(s.model, 2, -PAGE_TOKENS), 0);
    assert_int_equal(s.api->run(s.model, &batch), 0);
    seq.n_pages = 1;
    assert_int_equal(s.api->run(s.model, &batch), -EINVAL);
    session_done(&s);
}

/* The best of several runs, so that a busy machine does not fail it; about 20 ns when idle. */
static void a_step_costs_next_to_nothing(void **state)
{
    (void)state;
    enum { STEPS = 20000 };
    struct session s;
    struct infer_sampling sampling = {.seed = 1};
    struct infer_batch_output output = {.sample = 1, .target = -1, .sampling = &sampling};
    uint64_t best = UINT64_MAX;
    session_init(&s, "");
    for (int round = 0; round < 5; round++) {
        uint64_t start = now_ns();
        for (uint32_t i = 0; i < STEPS; i++)
            step(&s, (int32_t)(i % VOCAB), i % 100, &output);
        uint64_t taken = now_ns() - start;
        best = taken < best ? taken : best;
    }
    print_message("%.0f ns per step of one row\n", (double)best / STEPS);
#if !defined(__SANITIZE_ADDRESS__)
    assert_true(best / STEPS < 300);
#endif
    session_done(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tokens_are_a_function_of_seed_token_and_position),
        cmocka_unit_test(batches_give_the_same_tokens),
        cmocka_unit_test(results_fit_together),
        cmocka_unit_test(an_end_token_can_be_asked_for),
        cmocka_unit_test(steps_fail_as_scripted),
        cmocka_unit_test(delays_are_kept),
        cmocka_unit_test(a_step_goes_on_from_what_the_one_before_draws),
        cmocka_unit_test(what_was_not_drawn_is_refused),
        cmocka_unit_test(bad_options_are_refused),
        cmocka_unit_test(a_model_can_be_refused),
        cmocka_unit_test(a_device_has_its_own_memory),
        cmocka_unit_test(the_loading_contract_is_checked),
        cmocka_unit_test(pages_remember_their_tokens),
        cmocka_unit_test(shifts_move_positions),
        cmocka_unit_test(cached_rows_can_be_checked),
        cmocka_unit_test(a_step_costs_next_to_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
