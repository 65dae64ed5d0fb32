/* test_selftest.c: backends that compute pass, one that is wrong in any way does not. */
#include "selftest.h"

#include "backend_load.h"
#include "memory.h"

#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static struct memory memory;
static struct infer_host host;
static const uint32_t cpus[] = {0};
static struct report report;

static void load(const char *name, const char *options, struct backend *ret)
{
    const char *build = getenv("INFERD_BUILD");
    report = (struct report){0};
    memory_init(&memory, 0);
    memory_host_init(&memory, cpus, 1, &host);
    if (backend_load_from(build != NULL ? build : "build", name, options, &host, ret, &report) < 0)
        fail_msg("%s", report.text);
}

static void test_good_backends(void **state)
{
    static const char *const rows[][2] = {
        {"ref", ""}, {"cpu", "isa=plain"}, {"cpu", ""}, {"null", "fail_step=1"}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct backend b;
        load(rows[i][0], rows[i][1], &b);
        if (selftest_run(b.api, b.instance, &report) < 0)
            fail_msg("%s", report.text);
        backend_unload(&b);
        assert_int_equal(memory_total_bytes(&memory), 0);
    }
}

/* ---- a backend that goes wrong in one step --------------------------------------------------- */

enum fault { NONE, TOKEN, NAN_LOGPROB, SMALL_ERROR, LARGE_ERROR, FAILS, LOST, OPEN, WRITE, READY };

static const struct infer_backend_api *good;
static enum fault fault;
static uint32_t n_runs, faulty_run;

static int faulty_run_fn(struct infer_backend_model *model, struct infer_batch *batch)
{
    int rc = good->run(model, batch);
    if (n_runs++ != faulty_run)
        return rc;
    if (fault == TOKEN)
        batch->outputs[0].token ^= 1;
    else if (fault == NAN_LOGPROB)
        batch->outputs[0].logprob = NAN;
    else if (fault == SMALL_ERROR)
        batch->outputs[0].logprob += 0.05f;
    else if (fault == LARGE_ERROR)
        batch->outputs[0].logprob -= 0.5f;
    else if (fault == FAILS)
        return -EIO;
    else if (fault == LOST)
        return -ENODEV;
    return rc;
}

static int faulty_open(struct infer_backend *backend, const struct infer_plan *plan,
                       const struct infer_state_config *state, struct infer_backend_model **ret)
{
    return fault == OPEN ? -ENOMEM : good->model_open(backend, plan, state, ret);
}

static int faulty_write(struct infer_backend_model *model, uint32_t tensor, uint64_t first_row,
                        uint64_t n_rows, const void *rows)
{
    if (fault == WRITE && tensor == 7)
        return -EIO;
    return good->tensor_write(model, tensor, first_row, n_rows, rows);
}

static int faulty_ready(struct infer_backend_model *model)
{
    return fault == READY ? -EIO : good->model_ready(model);
}

static void test_faults(void **state)
{
    struct backend b;
    load("ref", "", &b);
    good = b.api;
    struct infer_backend_api api = *good;
    api.run = faulty_run_fn;
    api.model_open = faulty_open;
    api.tensor_write = faulty_write;
    api.model_ready = faulty_ready;
    uint64_t held = memory_total_bytes(&memory); /* by the backend itself */
    for (fault = NONE; fault <= READY; fault++)
        for (faulty_run = 0; faulty_run < 8; faulty_run++) {
            n_runs = 0;
            report = (struct report){0};
            int rc = selftest_run(&api, b.instance, &report);
            int right = fault == NONE || fault == SMALL_ERROR ? 0
                        : fault == LOST                       ? -INFER_E_BACKEND_LOST
                                                              : -INFER_E_BACKEND_LOAD;
            if (rc != right)
                fail_msg("fault %d in run %u: %d: %s", fault, faulty_run, rc, report.text);
            if (rc < 0)
                assert_non_null(strstr(report.text, "choose another --backend"));
            assert_int_equal(memory_total_bytes(&memory), held);
        }
    backend_unload(&b);
}

/* Weights that do not arrive as they were sent. */
static int flipping_write(struct infer_backend_model *model, uint32_t tensor, uint64_t first_row,
                          uint64_t n_rows, const void *rows)
{
    uint8_t row[4096];
    if (tensor != faulty_run || n_rows != 1)
        return good->tensor_write(model, tensor, first_row, n_rows, rows);
    memset(row, 0, sizeof row);
    return good->tensor_write(model, tensor, first_row, 1, row);
}

/* Each tensor counts: without any one of them the answer is another. */
static void test_every_tensor_counts(void **state)
{
    struct backend b;
    load("ref", "", &b);
    good = b.api;
    struct infer_backend_api api = *good;
    api.tensor_write = flipping_write;
    for (faulty_run = 0; faulty_run < 21; faulty_run++)
        if (selftest_run(&api, b.instance, &report) != -INFER_E_BACKEND_LOAD)
            fail_msg("tensor %u is of no account", faulty_run);
    backend_unload(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_good_backends),
                                       cmocka_unit_test(test_faults),
                                       cmocka_unit_test(test_every_tensor_counts)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
