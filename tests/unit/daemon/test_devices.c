/* test_devices.c: which devices open and which do not matter, whose options are whose, the ledger.
 * Loading a backend and its self-test are played here. */
#include "devices.h"

#include "base/log.h"
#include "selftest.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* ---- backends that are played ---------------------------------------------------------------- */

struct infer_backend {
    uint64_t memory, memory_free;
    uint32_t number;
};

static struct {
    const char *name;
    int error;          /* that loading it ends with */
    uint64_t memory;    /* of each of its devices; 0: the host's */
    uint32_t n_devices; /* -ENODEV from there on; 0: it knows no option device= */
    uint32_t wrong;     /* a bit for each device that fails the self-test */
    uint32_t old;       /* a bit for each that is of a kind which it does not run on */
    uint32_t n_gone;    /* so many more times there is no device */
    uint32_t n_tests;
    struct infer_backend_api api;
} played[4];

static char opened[256];
static uint32_t n_open, n_between;
static struct infer_host host = {.n_cpus = 8}, gpu_host = {.n_cpus = 1};
static struct devices devices;
static struct report report;

static void describe(const struct infer_backend *backend, struct infer_device *ret)
{
    *ret = (struct infer_device){
        .name = "a device", .memory = backend->memory, .memory_free = backend->memory_free};
}

static int fails(struct report *r, int error)
{
    report_fail(r, INFER_E_BACKEND_LOAD, "it does not load (%d)", error);
    return error;
}

int backend_load(const char *name, const char *options, const struct infer_host *on,
                 struct backend *ret, struct report *r)
{
    size_t i = 0, n = strlen(opened);
    while (i < 4 && (played[i].name == NULL || strcmp(played[i].name, name) != 0))
        i++;
    if (i == 4)
        return fails(r, -ENOENT);
    const char *which = strstr(options, "device=");
    uint32_t number = which != NULL ? (uint32_t)atoi(which + 7) : 0;
    snprintf(opened + n, sizeof opened - n, "%s(%s)%u ", name, options, on->n_cpus);
    if (played[i].error != 0)
        return fails(r, played[i].error);
    if (played[i].n_gone > 0) {
        played[i].n_gone--;
        return fails(r, -ENODEV);
    }
    if (which != NULL && number >= played[i].n_devices)
        return fails(r, played[i].n_devices > 0 ? -ENODEV : -EINVAL);
    if ((played[i].old & 1u << number) != 0)
        return fails(r, -ENOTSUP);
    struct infer_backend *instance = calloc(1, sizeof *instance);
    assert_non_null(instance);
    instance->memory = instance->memory_free = played[i].memory;
    instance->number = number;
    played[i].api = (struct infer_backend_api){.name = played[i].name, .describe = describe};
    *ret = (struct backend){.api = &played[i].api, .instance = instance, .handle = instance};
    n_open++;
    return 0;
}

void backend_unload(struct backend *b)
{
    free(b->instance);
    *b = (struct backend){0};
    n_open--;
}

int selftest_run(const struct infer_backend_api *api, struct infer_backend *backend,
                 struct report *r)
{
    size_t i = 0;
    while (&played[i].api != api)
        i++;
    played[i].n_tests++;
    return (played[i].wrong & 1u << backend->number) != 0
               ? report_fail(r, INFER_E_BACKEND_LOAD, "wrong")
               : 0;
}

/* ---- what the log has ------------------------------------------------------------------------ */

static uint32_t n_lines[LOG_LEVEL_DEBUG + 1];

static bool sink(int level, const struct log_fields *fields, const char *text)
{
    (void)fields;
    (void)text;
    n_lines[level]++;
    return true;
}

static void between(void *ctx)
{
    (void)ctx;
    n_between++;
    strcat(opened, "| ");
}

static struct lost lost;
static uint64_t wait_us;

static int open_all(const char *backends, const char *options)
{
    struct devices_config config = {.backends = backends,
                                    .options = options,
                                    .host = &host,
                                    .gpu_host = &gpu_host,
                                    .lost = &lost,
                                    .wait_us = wait_us,
                                    .between = between};
    opened[0] = '\0';
    n_between = 0;
    memset(n_lines, 0, sizeof n_lines);
    memset(&devices, 0, sizeof devices);
    report = (struct report){0};
    log_set_sink(sink);
    int rc = devices_open(&config, &devices, &report);
    log_set_sink(NULL);
    return rc;
}

static void play(size_t i, const char *name, int error, uint64_t memory, uint32_t n_devices)
{
    memset(&played[i], 0, sizeof played[i]);
    played[i].name = name;
    played[i].error = error;
    played[i].memory = memory;
    played[i].n_devices = n_devices;
}

static int begin(void **state)
{
    (void)state;
    memset(played, 0, sizeof played);
    lost = (struct lost){.fd = -1};
    wait_us = 0;
    play(0, "cpu", 0, 0, 0);
    return 0;
}

static int end(void **state)
{
    (void)state;
    devices_close(&devices);
    return n_open == 0 ? 0 : -1;
}

static void expect_devices(const char *list)
{
    char text[128];
    devices_list(&devices, text, sizeof text);
    assert_string_equal(text, list);
}

/* ---- auto ------------------------------------------------------------------------------------ */

static void no_gpu_is_no_complaint(void **state)
{
    (void)state;
    static const int errors[] = {-ENOENT, -ENODEV, -ELIBACC};
    for (size_t i = 0; i < 3; i++) {
        play(1, errors[i] == -ENOENT ? NULL : "cuda", errors[i], 0, 0);
        assert_int_equal(open_all("auto", "isa=plain"), 0);
        expect_devices("cpu");
        assert_int_equal(n_between, 1);
        assert_int_equal(strncmp(opened, "cpu(isa=plain)8 | ", 18), 0);
        assert_int_equal(n_lines[LOG_LEVEL_INFO], errors[i] != -ENOENT);
        assert_int_equal(n_lines[LOG_LEVEL_WARNING] + n_lines[LOG_LEVEL_ERROR], 0);
        assert_false(devices_have_gpu(&devices));
        devices_close(&devices);
    }
}

static void a_broken_gpu_backend_is_a_warning(void **state)
{
    (void)state;
    play(1, "cuda", -INFER_E_BACKEND_LOAD, 0, 0);
    assert_int_equal(open_all("auto", ""), 0);
    expect_devices("cpu");
    assert_int_equal(n_lines[LOG_LEVEL_WARNING], 1);
}

static void all_gpus_open(void **state)
{
    (void)state;
    play(1, "cuda", 0, 1000, 3);
    assert_int_equal(open_all("auto", "isa=plain,cuda.graphs=0"), 0);
    expect_devices("cpu, cuda:0, cuda:1, cuda:2");
    assert_string_equal(opened, "cpu(isa=plain)8 | cuda(graphs=0)1 cuda(graphs=0,device=1)1 "
                                "cuda(graphs=0,device=2)1 cuda(graphs=0,device=3)1 ");
    assert_int_equal(n_lines[LOG_LEVEL_WARNING], 0);
    assert_true(devices_have_gpu(&devices));
    assert_int_equal(devices.device[1].memory, 1000);
    assert_int_equal(devices.device[0].memory, 0);
}

static void a_gpu_that_computes_wrongly_is_left_alone(void **state)
{
    (void)state;
    play(1, "cuda", 0, 1000, 1);
    played[1].wrong = 1;
    assert_int_equal(open_all("auto", ""), 0);
    expect_devices("cpu, cuda:0"); /* it has not computed yet */
    assert_int_equal(played[1].n_tests, 0);
    for (int i = 0; i < 2; i++) {
        report = (struct report){0};
        assert_int_equal(device_test(&devices.device[1], &report), -INFER_E_BACKEND_LOAD);
        assert_string_equal(report.text, "wrong");
    }
    assert_int_equal(played[1].n_tests, 1);
    assert_int_equal(device_test(&devices.device[0], &report), 0);
    assert_int_equal(played[0].n_tests, 1); /* as it opened */
    devices_close(&devices);
    /* One that was asked for is an error, and so are the processors. */
    assert_int_equal(open_all("cuda,cpu", ""), -INFER_E_BACKEND_LOAD);
    assert_string_equal(report.text, "wrong");
    played[0].wrong = 1;
    assert_int_equal(open_all("auto", ""), -INFER_E_BACKEND_LOAD);
}

static void the_processors_must_open(void **state)
{
    (void)state;
    play(0, "cpu", -INFER_E_BACKEND_LOAD, 0, 0);
    play(1, "cuda", 0, 1000, 1);
    assert_int_equal(open_all("auto", ""), -INFER_E_BACKEND_LOAD);
    assert_int_equal(n_open, 0);
}

static void the_other_gpus_stay(void **state)
{
    (void)state;
    play(1, "cuda", 0, 1000, 3);
    played[1].wrong = 1u << 1;
    assert_int_equal(open_all("cuda,cpu", ""), 0);
    expect_devices("cpu, cuda:0, cuda:2");
    assert_int_equal(n_lines[LOG_LEVEL_WARNING], 1);
}

static void an_old_gpu_hides_no_newer_one(void **state)
{
    (void)state;
    play(1, "cuda", 0, 1000, 3);
    played[1].old = 1u << 0 | 1u << 2;
    assert_int_equal(open_all("auto", ""), 0);
    expect_devices("cpu, cuda:1");
    assert_int_equal(n_lines[LOG_LEVEL_INFO], 2);
    assert_int_equal(n_lines[LOG_LEVEL_WARNING], 0);
    devices_close(&devices);
    assert_int_equal(open_all("cuda,cpu", ""), -INFER_E_BACKEND_LOAD);
    played[1].n_devices = 100;
    played[1].old = UINT32_MAX;
    assert_int_equal(open_all("auto", ""), 0);
    expect_devices("cpu");
}

/* ---- those that were lost -------------------------------------------------------------------- */

static void lose(const char *name, uint32_t times)
{
    for (uint32_t i = 0; i < times; i++)
        snprintf(lost.lines[lost.n++].device, sizeof lost.lines[0].device, "%s", name);
}

static void one_that_was_lost_computes_at_once(void **state)
{
    (void)state;
    play(1, "cuda", 0, 1000, 2);
    lose("cuda:0", 1);
    assert_int_equal(open_all("auto", ""), 0);
    expect_devices("cpu, cuda:0, cuda:1");
    assert_int_equal(played[1].n_tests, 1);
    assert_int_equal(n_lines[LOG_LEVEL_WARNING], 0);
}

static void one_that_was_lost_is_waited_for(void **state)
{
    (void)state;
    play(1, "cuda", 0, 1000, 2);
    lose("cuda:0", 2);
    wait_us = 60000000;
    played[1].n_gone = 2;
    assert_int_equal(open_all("auto", ""), 0);
    expect_devices("cpu, cuda:0, cuda:1");
    assert_int_equal(n_lines[LOG_LEVEL_WARNING], 1);
    devices_close(&devices);
    wait_us = 0;
    played[1].n_gone = 1;
    assert_int_equal(open_all("auto", ""), 0);
    expect_devices("cpu, cuda:1");
    assert_int_equal(n_lines[LOG_LEVEL_WARNING], 2);
    devices_close(&devices);
    played[1].n_gone = 1;
    assert_int_equal(open_all("cuda,cpu", ""), -INFER_E_BACKEND_LOST);
    assert_non_null(strstr(report.text, "is not back"));
}

static void one_that_was_lost_again_and_again_is_left_alone(void **state)
{
    (void)state;
    play(1, "cuda", 0, 1000, 2);
    lose("cuda:0", LOST_TIMES_MAX);
    assert_int_equal(open_all("auto", ""), 0);
    expect_devices("cpu, cuda:1");
    assert_int_equal(n_lines[LOG_LEVEL_WARNING], 1);
    devices_close(&devices);
    assert_int_equal(open_all("cuda,cpu", ""), -INFER_E_BACKEND_LOAD);
}

static void it_is_marked(void **state)
{
    (void)state;
    play(1, "cuda", 0, 1000, 2);
    assert_int_equal(open_all("auto", ""), 0);
    devices_set_lost(&devices, "cuda:1");
    assert_false(devices.device[0].is_lost || devices.device[1].is_lost);
    assert_true(devices.device[2].is_lost);
    devices_set_lost(NULL, "cuda:1");
}

/* ---- lists ----------------------------------------------------------------------------------- */

static void a_list_is_these_alone(void **state)
{
    (void)state;
    play(1, "cuda", 0, 1000, 0); /* knows of no other device */
    play(2, "null", 0, 0, 1);
    assert_int_equal(open_all("cuda,null", "x=1,null.delay_us=5,y=2"), 0);
    expect_devices("null, cuda:0"); /* those with workers first */
    assert_string_equal(opened, "null(delay_us=5)8 | cuda(x=1,y=2)1 cuda(x=1,y=2,device=1)1 ");
    devices_close(&devices);
    assert_int_equal(open_all("null", ""), 0);
    expect_devices("null");
    devices_close(&devices);
    assert_int_equal(open_all("absent", ""), -INFER_E_BACKEND_LOAD);
    assert_int_equal(open_all("null,absent", ""), -INFER_E_BACKEND_LOAD);
    assert_int_equal(n_open, 0);
}

static void one_gpu_by_its_number(void **state)
{
    (void)state;
    play(1, "cuda", 0, 1000, 4);
    assert_int_equal(open_all("auto", "cuda.device=2"), 0);
    expect_devices("cpu, cuda:2");
}

static void lists_that_are_none(void **state)
{
    (void)state;
    static const char *const bad[][2] = {
        {"cpu,cpu", ""},
        {"auto,cpu", ""},
        {"cpu,", ""},
        {",cpu", ""},
        {"", ""},
        {"cpu,,null", ""},
        {"cpu", "null.x=1"},
        {"cpu", "x=1,cuda.y=2"},
        {"a,b,c,d,e,f,g,h,i", ""},
        {"cpu", ".x=1"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        if (open_all(bad[i][0], bad[i][1]) != -INFER_E_INVALID || report.text[0] == '\0')
            fail_msg("'%s' with '%s' is taken", bad[i][0], bad[i][1]);
}

static void names(void **state)
{
    (void)state;
    char first[BACKEND_NAME_MAX];
    play(1, "cuda", 0, 1000, 2);
    assert_int_equal(open_all("auto", ""), 0);
    const struct device *cpu = &devices.device[0], *gpu = &devices.device[2];
    assert_true(device_is(cpu, "auto") && device_is(cpu, "cpu") && !device_is(cpu, "cpu:0"));
    assert_true(device_is(gpu, "auto") && device_is(gpu, "cuda") && device_is(gpu, "cuda:1"));
    assert_true(!device_is(gpu, "cuda:0") && !device_is(gpu, "cpu") && !device_is(gpu, ""));
    assert_true(devices_first("auto", first));
    assert_string_equal(first, "cpu");
    assert_true(devices_first("null,cpu", first));
    assert_string_equal(first, "null");
    assert_false(devices_first("", first));
}

/* ---- the ledger ------------------------------------------------------------------------------ */

static void what_is_taken_is_not_available(void **state)
{
    (void)state;
    play(1, "cuda", 0, 1000, 1);
    assert_int_equal(open_all("auto", ""), 0);
    struct device *gpu = &devices.device[1];
    assert_int_equal(device_available(gpu, 0), 1000);
    assert_int_equal(device_available(gpu, 700), 700);
    device_take(gpu, 300);
    gpu->backend.instance->memory_free = 650; /* others take of it, too */
    assert_int_equal(device_available(gpu, 0), 650);
    assert_int_equal(device_available(gpu, 700), 400);
    assert_int_equal(device_available(gpu, 200), 0);
    device_give(gpu, 300);
    assert_int_equal(device_available(gpu, 200), 200);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, begin, end)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(no_gpu_is_no_complaint),
        TEST(a_broken_gpu_backend_is_a_warning),
        TEST(all_gpus_open),
        TEST(a_gpu_that_computes_wrongly_is_left_alone),
        TEST(the_other_gpus_stay),
        TEST(the_processors_must_open),
        TEST(an_old_gpu_hides_no_newer_one),
        TEST(one_that_was_lost_computes_at_once),
        TEST(one_that_was_lost_is_waited_for),
        TEST(one_that_was_lost_again_and_again_is_left_alone),
        TEST(it_is_marked),
        TEST(a_list_is_these_alone),
        TEST(one_gpu_by_its_number),
        TEST(lists_that_are_none),
        TEST(names),
        TEST(what_is_taken_is_not_available),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
