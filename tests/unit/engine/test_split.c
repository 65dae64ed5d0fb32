/* test_split.c: a model on two backends: what each is asked, in which order, and what becomes of
 * the one when the other fails. The two are scripted and write down what they see. */
#include "engine/split.h"
#include "model/plan.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define MODEL    "models/unix-46m-Q6_K.gguf"
#define MAX_ROWS 8u
#define PAGE     96u /* of the first side; the second's is half of it */

/* ---- two scripted sides ---------------------------------------------------------------------- */

struct infer_backend_model {
    struct infer_backend *of;
};

struct infer_backend {
    uint32_t number;
    struct infer_plan plan;
    struct infer_state_config state;
    struct infer_backend_model model;
    uint32_t n_open; /* models */
    uint64_t rows;   /* that came */
    int fail_open, fail_write, fail_run, fail_page;
    char page[PAGE]; /* what page_write() brought; page_read() gives it */
};

static struct infer_backend sides[2];
static char story[512]; /* calls in order: side, what */

static void tell(const struct infer_backend *b, const char *what)
{
    size_t n = strlen(story);
    snprintf(story + n, sizeof story - n, "%u %s;", b->number, what);
}

static const char *side_error(const struct infer_backend *b)
{
    return b->number == 0 ? "the first is out of order" : "the second is out of order";
}

static void side_describe(const struct infer_backend *b, struct infer_device *ret)
{
    ret->memory = 1000 + b->number;
}

static int side_estimate(struct infer_backend *b, const struct infer_plan *plan,
                         const struct infer_state_config *state, struct infer_estimate *ret)
{
    *ret = (struct infer_estimate){.weights_bytes = plan->n_tensors,
                                   .page_bytes = PAGE / (b->number + 1),
                                   .scratch_bytes = state->max_outputs};
    return 0;
}

static int side_open(struct infer_backend *b, const struct infer_plan *plan,
                     const struct infer_state_config *state, struct infer_backend_model **ret)
{
    tell(b, "open");
    if (b->fail_open != 0)
        return b->fail_open;
    b->plan = *plan;
    b->state = *state;
    b->model.of = b;
    b->n_open++;
    *ret = &b->model;
    return 0;
}

static int side_write(struct infer_backend_model *m, uint32_t tensor, uint64_t first, uint64_t n,
                      const void *rows)
{
    assert_true(tensor < m->of->plan.n_tensors);
    assert_string_equal(rows, m->of->plan.tensors[tensor].name);
    m->of->rows += n;
    (void)first;
    return m->of->fail_write;
}

static int side_ready(struct infer_backend_model *m)
{
    tell(m->of, "ready");
    return 0;
}

static void side_close(struct infer_backend_model *m)
{
    tell(m->of, "close");
    m->of->n_open--;
}

static int side_run(struct infer_backend_model *m, struct infer_batch *batch)
{
    tell(m->of, "run");
    if (m->of->fail_run != 0)
        return m->of->fail_run;
    assert_non_null(batch->x);
    if (m->of->number == 0) {
        assert_int_equal(batch->n_outputs, 0);
        batch->x[0] = 17;
    } else {
        assert_true(batch->x[0] == 17);
        for (uint32_t i = 0; i < batch->n_outputs; i++)
            batch->outputs[i].token = 42;
    }
    return 0;
}

static int side_copy(struct infer_backend_model *m, uint32_t to, uint32_t from)
{
    char text[32];
    snprintf(text, sizeof text, "copy %u %u", to, from);
    tell(m->of, text);
    return m->of->fail_page;
}

static int side_zero(struct infer_backend_model *m, uint32_t page)
{
    (void)page;
    tell(m->of, "zero");
    return m->of->fail_page;
}

static int side_shift(struct infer_backend_model *m, uint32_t page, int32_t delta)
{
    char text[32];
    snprintf(text, sizeof text, "shift %u %d", page, delta);
    tell(m->of, text);
    return m->of->fail_page;
}

static int side_page_read(struct infer_backend_model *m, uint32_t page, void *ret)
{
    (void)page;
    memcpy(ret, m->of->page, PAGE / (m->of->number + 1));
    return m->of->fail_page;
}

static int side_page_write(struct infer_backend_model *m, uint32_t page, const void *bytes)
{
    (void)page;
    memcpy(m->of->page, bytes, PAGE / (m->of->number + 1));
    return m->of->fail_page;
}

#define SIDE(side_name)                                                                            \
    {                                                                                              \
        .name = side_name, .last_error = side_error, .describe = side_describe,                    \
        .estimate = side_estimate, .model_open = side_open, .tensor_write = side_write,            \
        .model_ready = side_ready, .model_close = side_close, .run = side_run,                     \
        .page_copy = side_copy, .page_zero = side_zero, .page_read = side_page_read,               \
        .page_write = side_page_write, .page_shift = side_shift                                    \
    }
static const struct infer_backend_api first_api = SIDE("gpu"), second_api = SIDE("cpu");

/* ---- the split under test -------------------------------------------------------------------- */

static uint64_t held; /* of the host's memory */
static bool no_memory;
static struct plan *plan;
static struct infer_backend *split;
static const struct infer_state_config config = {
    .page_tokens = 16, .n_pages = 4, .max_rows = MAX_ROWS, .max_seqs = 2, .max_outputs = 3};

static void *take(void *ctx, size_t bytes)
{
    (void)ctx;
    held += no_memory ? 0 : bytes;
    return no_memory ? NULL : calloc(1, bytes);
}

static void give(void *ctx, void *memory, size_t bytes)
{
    (void)ctx;
    held -= bytes;
    free(memory);
}

static const struct infer_host host = {.memory_take = take, .memory_give = give};

static int setup(void **state)
{
    struct gguf *g;
    struct report report = {0};
    (void)state;
    assert_int_equal(gguf_open(MODEL, &g, &report), 0);
    assert_int_equal(plan_new(g, &plan, &report), 0);
    gguf_free(g);
    sides[0] = (struct infer_backend){.number = 0};
    sides[1] = (struct infer_backend){.number = 1};
    story[0] = '\0';
    no_memory = false;
    const struct split_side both[2] = {{&first_api, &sides[0]}, {&second_api, &sides[1]}};
    assert_int_equal(split_new(&plan->backend, 2, both, &host, &split), 0);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    split_api.close(split);
    plan_free(plan);
    assert_int_equal(held, 0);
    assert_int_equal(sides[0].n_open + sides[1].n_open, 0);
    return 0;
}

static struct infer_backend_model *open_model(void)
{
    struct infer_backend_model *m = NULL;
    assert_int_equal(split_api.model_open(split, &plan->backend, &config, &m), 0);
    story[0] = '\0';
    return m;
}

static void expect_error(const char *text)
{
    assert_string_equal(split_api.last_error(split), text);
}

/* ---- tests ----------------------------------------------------------------------------------- */

static void sizes_are_the_sum(void **state)
{
    struct infer_estimate e[2], sum;
    (void)state;
    assert_int_equal(split_estimate(split, &config, e), 0);
    assert_int_equal(split_api.estimate(split, &plan->backend, &config, &sum), 0);
    assert_int_equal(e[0].scratch_bytes, 0); /* no outputs there */
    assert_int_equal(e[1].scratch_bytes, 3 + MAX_ROWS * plan->backend.shape.n_embd * sizeof(float));
    assert_int_equal(sum.weights_bytes, e[0].weights_bytes + e[1].weights_bytes);
    assert_true(sum.weights_bytes >= plan->backend.n_tensors);
    assert_int_equal(sum.page_bytes, PAGE + PAGE / 2);
    assert_int_equal(sum.scratch_bytes, e[0].scratch_bytes + e[1].scratch_bytes);
    struct infer_device device = {0};
    split_api.describe(split, &device);
    assert_int_equal(device.memory, 1000);
}

static void each_side_gets_its_layers(void **state)
{
    struct infer_backend_model *m = open_model();
    (void)state;
    uint64_t rows = 0;
    assert_int_equal(sides[0].plan.shape.n_layers, 2);
    assert_int_equal(sides[1].plan.shape.n_layers, plan->backend.shape.n_layers - 2);
    assert_int_equal(sides[0].state.max_outputs, 0);
    assert_int_equal(sides[1].state.max_outputs, 3);
    assert_int_equal(sides[0].state.n_pages, 4);
    for (uint32_t i = 0; i < plan->backend.n_tensors; i++, rows += 2)
        assert_int_equal(split_api.tensor_write(m, i, 0, 2, plan->backend.tensors[i].name), 0);
    assert_int_equal(split_api.model_ready(m), 0);
    assert_string_equal(story, "0 ready;1 ready;");
    assert_int_equal(sides[0].rows, 2 * sides[0].plan.n_tensors);
    assert_int_equal(sides[1].rows, 2 * sides[1].plan.n_tensors);
    assert_true(sides[0].rows + sides[1].rows >= rows);
    split_api.model_close(m);
}

static void a_step_runs_through_both(void **state)
{
    struct infer_backend_model *m = open_model();
    struct infer_batch_output outputs[2] = {{.sample = 1}, {.sample = 1}};
    struct infer_batch batch = {.n_rows = 2, .n_outputs = 2, .outputs = outputs};
    (void)state;
    assert_int_equal(split_api.run(m, &batch), 0);
    assert_string_equal(story, "0 run;1 run;");
    assert_int_equal(outputs[1].token, 42);
    assert_int_equal(batch.n_outputs, 2);
    assert_null(batch.x);
    sides[1].fail_run = -EIO;
    assert_int_equal(split_api.run(m, &batch), -EIO);
    expect_error("cpu: the second is out of order");
    sides[0].fail_run = -ENODEV; /* the device is lost: the second need not try */
    story[0] = '\0';
    assert_int_equal(split_api.run(m, &batch), -ENODEV);
    assert_string_equal(story, "0 run;");
    expect_error("gpu: the first is out of order");
    split_api.model_close(m);
}

static void a_page_is_on_both(void **state)
{
    struct infer_backend_model *m = open_model();
    char bytes[PAGE + PAGE / 2], back[sizeof bytes];
    (void)state;
    assert_int_equal(split_api.page_copy(m, 2, 1), 0);
    assert_int_equal(split_api.page_zero(m, 1), 0);
    assert_int_equal(split_api.page_shift(m, 3, -16), 0);
    assert_string_equal(story, "0 copy 2 1;1 copy 2 1;0 zero;1 zero;0 shift 3 -16;1 shift 3 -16;");
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (char)i;
    assert_int_equal(split_api.page_write(m, 1, bytes), 0);
    assert_memory_equal(sides[0].page, bytes, PAGE);
    assert_memory_equal(sides[1].page, bytes + PAGE, PAGE / 2);
    assert_int_equal(split_api.page_read(m, 1, back), 0);
    assert_memory_equal(back, bytes, sizeof bytes);
    sides[1].fail_page = -EIO;
    assert_int_equal(split_api.page_copy(m, 2, 1), -EIO);
    assert_int_equal(split_api.page_zero(m, 2), -EIO);
    assert_int_equal(split_api.page_read(m, 2, back), -EIO);
    assert_int_equal(split_api.page_write(m, 2, back), -EIO);
    assert_int_equal(split_api.page_shift(m, 2, 1), -EIO);
    expect_error("cpu: the second is out of order");
    split_api.model_close(m);
}

static void what_fails_gives_everything_back(void **state)
{
    struct infer_backend_model *m = NULL;
    (void)state;
    sides[1].fail_open = -ENOMEM;
    assert_int_equal(split_api.model_open(split, &plan->backend, &config, &m), -ENOMEM);
    assert_null(m);
    assert_string_equal(story, "0 open;1 open;0 close;");
    assert_int_equal(held, 0);
    expect_error("cpu: the second is out of order");
    sides[0].fail_open = -ENOMEM;
    story[0] = '\0';
    assert_int_equal(split_api.model_open(split, &plan->backend, &config, &m), -ENOMEM);
    assert_string_equal(story, "0 open;");
    sides[0].fail_open = sides[1].fail_open = 0;
    no_memory = true; /* for x */
    story[0] = '\0';
    assert_int_equal(split_api.model_open(split, &plan->backend, &config, &m), -ENOMEM);
    assert_string_equal(story, "");
    no_memory = false;
    m = open_model();
    sides[1].fail_write = -EIO;
    uint32_t last = plan->backend.n_tensors;
    int rc = 0;
    while (rc == 0 && last-- > 0)
        rc = split_api.tensor_write(m, last, 0, 1, plan->backend.tensors[last].name);
    assert_int_equal(rc, -EIO);
    expect_error("cpu: the second is out of order");
    split_api.model_close(m);
}

#define TEST(function) cmocka_unit_test_setup_teardown(function, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(sizes_are_the_sum),
        TEST(each_side_gets_its_layers),
        TEST(a_step_runs_through_both),
        TEST(a_page_is_on_both),
        TEST(what_fails_gives_everything_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
