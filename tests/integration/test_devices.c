/* test_devices.c: which device a model goes to, what leaves which memory for it, and what is told
 * of all that. A null backend that claims a memory of its own plays the GPU; on it the embedded
 * model takes 36 MiB of weights and, for 2048 tokens, at least 8 MiB of pages. */
#include "integration/life.h"
#include "support/openmetrics.h"

#define MIB    (UINT64_C(1) << 20)
#define CTX    "ctx = 2048\ndevice-layers = all\n"
#define DEVICE "page_bytes=65536,delay_us=1000,memory="

/* A model goes to the device whole or not at all, but for start_layers(). */
static void start_with(const char *memory, const char *more, const char *daemon_keys,
                       const char *sections)
{
    char options[160], keys[160];
    snprintf(options, sizeof options, DEVICE "%s%s", memory, more);
    snprintf(keys, sizeof keys, CTX "%s", daemon_keys);
    start("null,cpu", options, keys, sections);
}

/* layers: of the configuration, with its line's end. */
static void start_layers(const char *memory, const char *more, const char *layers,
                         const char *sections)
{
    char options[160], keys[160];
    snprintf(options, sizeof options, DEVICE "%s%s", memory, more);
    snprintf(keys, sizeof keys, "ctx = 2048\n%s", layers);
    start("null,cpu", options, keys, sections);
}

static void expect_on(struct infer_conn *c, const char *name, const char *device)
{
    struct infer_model m = find(c, name);
    if (m.state != INFER_MODEL_READY || strcmp(m.device, device) != 0)
        fail_msg("%s is in state %u on '%s', not on %s", name, m.state, m.device, device);
}

static void expect_asked(struct infer_conn *c, const char *name, const char *device)
{
    assert_int_equal(ask(c, name), 0);
    expect_on(c, name, device);
}

static void end_request(struct infer_conn *c, uint32_t id)
{
    assert_int_equal(infer_cancel(c, id), 0);
    take(c, id, UINT32_MAX);
}

/* A request for it that has begun and goes on for long. */
static uint32_t keep_busy(struct infer_conn *c, const char *name)
{
    uint32_t id = submit(c, name, 1900);
    assert_int_equal(take(c, id, 1), 0);
    return id;
}

/* ---- the choice ------------------------------------------------------------------------------ */

static void a_model_goes_where_there_is_room(void **state)
{
    (void)state;
    start_with("67108864", "", "", "[model a]\n@[model b]\n@device = cpu\n[model c]\n@");
    struct infer_conn *c = open_conn();
    uint32_t id = keep_busy(c, "a");
    expect_on(c, "a", "null:0");
    expect_asked(c, "b", "cpu");
    expect_asked(c, "c", "cpu"); /* a is in use */
    assert_log("c: goes to cpu, not to null:0: ");
    /* It stays there; the choice is made when it is loaded again. */
    end_request(c, id);
    expect_asked(c, "c", "cpu");
    assert_int_equal(infer_unload(d.socket, "c", 0), 0);
    assert_int_equal(infer_unload(d.socket, "a", 0), 0);
    expect_asked(c, "c", "null:0");
    infer_close(c);
}

static void a_model_that_the_device_never_holds(void **state)
{
    (void)state;
    start_with("41943040", "", "", "[model a]\n@preload = yes\n[model b]\n@device = null\n");
    struct infer_conn *c = open_conn();
    expect_asked(c, "a", "cpu");
    assert_log("a: goes to cpu, not to null:0: ");
    assert_int_equal(ask(c, "b"), INFER_E_MODEL_TOO_LARGE);
    assert_log("(on null:0)");
    infer_close(c);
}

static void the_second_device_comes_before_the_processors(void **state)
{
    (void)state;
    start_with(
        "67108864", ",devices=2", "",
        "[model a]\n@[model b]\n@[model c]\n@device = null:1\n[model d]\n@device = null:2\n");
    struct infer_conn *c = open_conn();
    expect_asked(c, "a", "null:0");
    expect_asked(c, "b", "null:1"); /* nobody has to leave for it */
    expect_on(c, "a", "null:0");
    expect_asked(c, "c", "null:1");
    assert_int_equal(state_of(c, "b"), INFER_MODEL_LISTED);
    expect_on(c, "a", "null:0"); /* though it was used longer ago */
    assert_int_equal(ask(c, "d"), INFER_E_BACKEND_LOAD);
    infer_close(c);
}

static void a_device_that_is_not_open(void **state)
{
    (void)state;
    struct infer_event e;
    start("cpu", "", "device = cuda:0\n", "[model a]\n@[model b]\n@device = cpu\n");
    struct infer_conn *c = open_conn();
    uint32_t id = submit(c, "a", 4);
    do
        assert_int_equal(infer_next(c, id, 1000 * WAIT_S * program_slowness(), &e), 1);
    while (e.kind != INFER_EVENT_DONE);
    assert_int_equal(e.error, INFER_E_BACKEND_LOAD);
    assert_non_null(strstr(e.text, "a is for the device 'cuda:0', which is not open (cpu); give it "
                                   "another device, or have its backend opened"));
    assert_int_equal(state_of(c, "a"), INFER_MODEL_FAILED);
    expect_asked(c, "b", "cpu");
    infer_close(c);
}

/* What `inferctl load --device` does. */
static void a_manager_names_the_device(void **state)
{
    (void)state;
    struct infer_load load;
    infer_load_default(&load);
    load.path = DAEMON_MODEL;
    load.n_context = 2048;
    load.parallel = 1;
    start_with("268435456", "", "device = cpu\n", "[model listed]\n@");
    load.socket = d.socket;
    struct infer_conn *c = open_conn();
    static const struct {
        const char *device, *on;
    } cases[] = {{NULL, "cpu"},
                 {"auto", "null:0"},
                 {"null", "null:0"},
                 {"cpu", "cpu"},
                 {"null:0", "null:0"}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        load.name = "asked";
        load.device = cases[i].device;
        if (infer_load(&load, NULL) < 0)
            fail_msg("%s: %s", cases[i].device, infer_detail(NULL));
        expect_on(c, "asked", cases[i].on);
        assert_int_equal(infer_unload(d.socket, "asked", 0), 0);
    }
    load.device = "cuda:0";
    assert_int_equal(infer_load(&load, NULL), -INFER_E_BACKEND_LOAD);
    assert_non_null(strstr(infer_detail(NULL), "the device 'cuda:0', which is not open"));
    load.device = "";
    assert_int_equal(infer_load(&load, NULL), -INFER_E_INVALID);
    load.device = "a device whose name is longer than a name can be";
    assert_int_equal(infer_load(&load, NULL), -INFER_E_INVALID);
    load.device = "cpu";
    load.path = NULL;
    load.name = "listed";
    assert_int_equal(infer_load(&load, NULL), -INFER_E_INVALID);
    assert_non_null(strstr(infer_detail(NULL), "a device goes with a file"));
    load.path = DAEMON_MODEL;
    load.name = "asked";
    /* A program from before devices. */
    load.device = (const char *)1;
    load.bytes = offsetof(struct infer_load, device);
    assert_int_equal(infer_load(&load, NULL), 0);
    expect_on(c, "asked", "cpu");
    infer_close(c);
}

static void a_device_that_refuses_a_model_is_passed_over(void **state)
{
    (void)state;
    start_with("67108864", ",refuse=1", "",
               "[model a]\n@preload = yes\n[model b]\n@[model c]\n@device = null\n");
    struct infer_conn *c = open_conn();
    expect_asked(c, "a", "cpu");
    expect_asked(c, "b", "cpu");
    assert_log("a: null:0 has refused it, though ");
    assert_log("b: null:0 has refused it, though ");
    assert_int_equal(ask(c, "c"), INFER_E_MODEL_TOO_LARGE);
    infer_close(c);
    char *log = daemon_read_log(&d);
    assert_null(strstr(log, "c: null:0 has refused it"));
    free(log);
}

/* Where there is no GPU the default is the processors, without a word. */
static void auto_is_the_processors(void **state)
{
    (void)state;
    if (access("/dev/nvidiactl", F_OK) == 0)
        skip();
    start("auto", "isa=plain", "", "[model a]\n@");
    struct infer_conn *c = open_conn();
    expect_asked(c, "a", "cpu");
    assert_non_null(strstr(find(c, "a").backend, "plain"));
    infer_close(c);
    char *log = daemon_read_log(&d);
    assert_null(strstr(log, "warning"));
    free(log);
}

/* ---- room ------------------------------------------------------------------------------------ */

static void what_leaves_leaves_the_device(void **state)
{
    (void)state;
    start_with("67108864", "", "",
               "[model old]\n@device = cpu\n[model a]\n@[model b]\n@[model c]\n@device = null\n");
    struct infer_conn *c = open_conn();
    expect_asked(c, "old", "cpu"); /* used longest ago, but elsewhere */
    expect_asked(c, "a", "null:0");
    expect_asked(c, "b", "null:0"); /* an idle model leaves before it goes to the processors */
    assert_int_equal(state_of(c, "a"), INFER_MODEL_LISTED);
    assert_log("a: leaves null:0, b needs its memory");
    uint32_t id = keep_busy(c, "b");
    assert_int_equal(ask(c, "c"), INFER_E_MODEL_NO_ROOM);
    end_request(c, id);
    wait_state(c, "c", INFER_MODEL_FAILED);
    expect_on(c, "old", "cpu");
    infer_close(c);
}

/* Nor does anything on the device leave for the host's memory. */
static void the_hosts_memory_is_apart(void **state)
{
    (void)state;
    start_with("67108864", "", "memory-limit = 120M\n",
               "[model a]\n@[model b]\n@device = cpu\nstate-memory = 48M\nctx = 256\n"
               "[model c]\n@device = cpu\nstate-memory = 48M\nctx = 256\n");
    struct infer_conn *c = open_conn();
    expect_asked(c, "a", "null:0"); /* used longest ago, but elsewhere */
    expect_asked(c, "b", "cpu");
    expect_asked(c, "c", "cpu");
    assert_int_equal(state_of(c, "b"), INFER_MODEL_LISTED);
    expect_on(c, "a", "null:0");
    infer_close(c);
}

static void a_pinned_model_stays_on_the_device(void **state)
{
    (void)state;
    start_with("67108864", "", "",
               "[model a]\n@pin = yes\n[model b]\n@[model c]\n@device = null:0\n");
    struct infer_conn *c = open_conn();
    expect_asked(c, "a", "null:0");
    expect_asked(c, "b", "cpu");
    assert_int_equal(ask(c, "c"), INFER_E_MODEL_NO_ROOM);
    assert_log("are available on null:0");
    expect_on(c, "a", "null:0");
    infer_close(c);
}

static void state_is_sized_by_the_device(void **state)
{
    (void)state;
    start_with("268435456", "", "", "[model a]\n@state-memory = 16M\n[model b]\n@");
    struct infer_conn *c = open_conn();
    expect_asked(c, "a", "null:0");
    assert_in_range(find(c, "a").state_bytes, 16 * MIB, 17 * MIB);
    expect_asked(c, "b", "null:0"); /* a quarter of what is left beside its weights */
    uint64_t left = 268435456 - 16 * MIB - 2 * find(c, "a").weights_bytes;
    assert_in_range(find(c, "b").state_bytes, left / 4 - MIB, left / 4 + MIB);
    infer_close(c);
}

static void a_limit_for_the_device(void **state)
{
    (void)state;
    start_with("268435456", "", "device-memory-limit = 48M\n",
               "[model a]\n@pin = yes\nstate-memory = 8M\n[model b]\n@[model c]\n@");
    struct infer_conn *c = open_conn();
    expect_asked(c, "a", "null:0");
    expect_asked(c, "b", "cpu");
    write_config(CTX, "[model a]\n@pin = yes\nstate-memory = 8M\n[model b]\n@[model c]\n@");
    assert_int_equal(infer_reload(d.socket), 0);
    assert_string_equal(infer_detail(NULL), "device-memory-limit");
    expect_asked(c, "c", "null:0");
    infer_close(c);
}

/* ---- layers ---------------------------------------------------------------------------------- */

/* The first n layers of the model on the device, the rest on the processors. */
static void expect_split(struct infer_conn *c, const char *name, uint32_t n)
{
    struct infer_model m = find(c, name);
    expect_on(c, name, "null:0");
    assert_string_equal(m.rest_device, "cpu");
    assert_int_equal(m.device_layers, n);
    assert_in_range(n, 1, m.n_layers - 1);
    assert_true(m.rest_weights_bytes > 0 && m.rest_weights_bytes < m.weights_bytes);
    assert_true(m.rest_state_bytes > 0 && m.rest_state_bytes < m.state_bytes);
}

static uint32_t layers_of(struct infer_conn *c, const char *name)
{
    return find(c, name).device_layers;
}

static void the_first_layers_go_to_the_device(void **state)
{
    (void)state;
    uint32_t before = 0;
    static const char *const memory[] = {"25165824", "33554432", "41943040"};
    for (size_t i = 0; i < 3; i++) {
        start_layers(memory[i], "", "", "[model a]\n@preload = yes\n[model b]\n@device = null\n");
        struct infer_conn *c = open_conn();
        uint32_t n = layers_of(c, "a");
        expect_split(c, "a", n);
        assert_true(n > before); /* the more memory, the more layers */
        before = n;
        assert_log("a: goes to null:0 (layers 0 to ");
        assert_log(" of 12) and cpu, not to null:0 alone: ");
        assert_log("loaded on null:0 (layers 0 to ");
        assert_int_equal(ask(c, "a"), 0);
        expect_asked(c, "b", "null:0"); /* a leaves for it */
        expect_split(c, "b", n);
        assert_int_equal(state_of(c, "a"), INFER_MODEL_LISTED);
        infer_close(c);
        teardown(NULL);
    }
}

/* What one that is in use leaves, or another device that takes more. */
static void layers_go_where_most_of_them_fit(void **state)
{
    (void)state;
    start_layers("67108864", "", "", "[model a]\n@[model b]\n@");
    struct infer_conn *c = open_conn();
    uint32_t id = keep_busy(c, "a");
    expect_on(c, "a", "null:0");
    assert_string_equal(find(c, "a").rest_device, "");
    expect_asked(c, "b", "null:0");
    expect_split(c, "b", layers_of(c, "b"));
    end_request(c, id);
    infer_close(c);
    teardown(NULL);
    start_layers("41943040", ",devices=2", "",
                 "[model a]\n@[model b]\n@[model c]\n@device = cpu\n");
    c = open_conn();
    id = keep_busy(c, "a");
    expect_split(c, "a", layers_of(c, "a"));
    expect_asked(c, "b", "null:1");
    assert_string_equal(find(c, "b").rest_device, "cpu");
    assert_int_equal(layers_of(c, "b"), layers_of(c, "a"));
    expect_asked(c, "c", "cpu");
    end_request(c, id);
    infer_close(c);
}

static void as_many_layers_as_it_says(void **state)
{
    (void)state;
    start_layers("134217728", "", "device-layers = 5\n",
                 "[model five]\n@[model one]\n@device-layers = 1\n[model whole]\n"
                 "@device-layers = auto\n[model twelve]\n@device-layers = 12\n");
    struct infer_conn *c = open_conn();
    expect_asked(c, "five", "null:0");
    expect_split(c, "five", 5);
    expect_asked(c, "one", "null:0");
    expect_split(c, "one", 1);
    expect_asked(c, "whole", "null:0");
    assert_string_equal(find(c, "whole").rest_device, "");
    assert_int_equal(find(c, "whole").rest_weights_bytes, 0);
    expect_asked(c, "twelve", "null:0");
    assert_string_equal(find(c, "twelve").rest_device, "");
    infer_close(c);
}

static void layers_that_the_device_does_not_hold(void **state)
{
    (void)state;
    start_layers("25165824", "", "",
                 "[model a]\n@device-layers = 11\n[model b]\n@device-layers = 11\ndevice = null\n"
                 "[model c]\n@device-layers = all\n");
    struct infer_conn *c = open_conn();
    expect_asked(c, "a", "cpu");
    assert_log("a: goes to cpu, not to null:0: ");
    assert_log("11 of its 12 layers need ");
    assert_int_equal(ask(c, "b"), INFER_E_MODEL_TOO_LARGE);
    expect_asked(c, "c", "cpu");
    infer_close(c);
    teardown(NULL);
    start_layers("4194304", "", "", "[model a]\n@"); /* not one of them */
    c = open_conn();
    expect_asked(c, "a", "cpu");
    assert_log("a: nor do some of its layers: ");
    infer_close(c);
}

static void the_rest_needs_the_hosts_memory(void **state)
{
    (void)state;
    start_layers("33554432", "", "memory-limit = 12M\n", "[model a]\n@device = null\n");
    struct infer_conn *c = open_conn();
    assert_int_equal(ask(c, "a"), INFER_E_MODEL_TOO_LARGE);
    infer_close(c);
    teardown(NULL);
    /* What is idle there makes room for it, and is not asked for more than that. */
    start_layers("25165824", "", "memory-limit = 100M\n",
                 "[model old]\n@device = cpu\nstate-memory = 40M\n[model a]\n@device = null\n"
                 "state-memory = 8M\n");
    c = open_conn();
    expect_asked(c, "old", "cpu");
    expect_asked(c, "a", "null:0");
    expect_split(c, "a", layers_of(c, "a"));
    assert_int_equal(state_of(c, "old"), INFER_MODEL_LISTED);
    infer_close(c);
}

static void a_split_that_is_refused_takes_nothing(void **state)
{
    (void)state;
    start_layers("33554432", ",refuse=1", "", "[model a]\n@");
    struct infer_conn *c = open_conn();
    expect_asked(c, "a", "cpu");
    assert_log("a: null:0 has refused it, though ");
    assert_int_equal(find(c, "a").device_layers, 0);
    infer_close(c);
}

static void a_device_lost_with_some_layers_ends_the_daemon(void **state)
{
    (void)state;
    start_layers("33554432", ",lose_step=3", "", "[model a]\n@");
    struct infer_conn *c = open_conn();
    assert_int_equal(take(c, submit(c, "a", 100), UINT32_MAX), INFER_E_BACKEND_LOST);
    assert_int_equal(daemon_wait(&d, 5), 75);
    infer_close(c);
}

/* ---- what is told ---------------------------------------------------------------------------- */

static double metric(struct infer_conn *c, const char *series)
{
    char *text;
    size_t n;
    assert_int_equal(infer_metrics(c, &text, &n), 0);
    double value = openmetrics_value(text, series);
    infer_free(text);
    return value;
}

#define KIND(kind) "inferd_device_memory_bytes{device=\"null:0\",kind=\"" kind "\"}"

static void the_ledger_of_a_device(void **state)
{
    (void)state;
    struct infer_loaded dry = {.bytes = sizeof dry};
    struct infer_load load;
    start_with("67108864", "", "", "[model a]\n@[model b]\n@device = cpu\n");
    struct infer_conn *c = open_conn();
    assert_int_equal((uint64_t)metric(c, KIND("free")), 67108864);
    infer_load_default(&load);
    load.socket = d.socket;
    load.path = DAEMON_MODEL;
    load.name = "x";
    load.dry_run = 1;
    assert_int_equal(infer_load(&load, &dry), 0);
    assert_int_equal(dry.available_bytes, 67108864);
    expect_asked(c, "a", "null:0");
    struct infer_model m = find(c, "a");
    uint64_t takes = (uint64_t)metric(c, KIND("models"));
    assert_int_equal(m.device_memory, 67108864);
    assert_int_equal(m.device_free, 67108864 - takes);
    assert_in_range(m.weights_bytes + m.state_bytes + m.scratch_bytes, takes, takes + MIB / 4);
    assert_int_equal((uint64_t)metric(c, KIND("all")), 67108864);
    assert_int_equal((uint64_t)metric(c, KIND("free")), 67108864 - takes);
    expect_asked(c, "b", "cpu");
    assert_int_equal(find(c, "b").device_memory, 0);
    assert_int_equal((uint64_t)metric(c, KIND("models")), takes);
    assert_int_equal(infer_unload(d.socket, "a", 0), 0);
    assert_int_equal((uint64_t)metric(c, KIND("models")), 0);
    assert_int_equal((uint64_t)metric(c, KIND("free")), 67108864);
    assert_string_equal(find(c, "a").device, "");
    infer_close(c);
}

/* Of a split each ledger has its part, and gets it back. */
static void the_ledgers_of_a_split(void **state)
{
    (void)state;
    start_layers("33554432", "", "", "[model a]\n@");
    struct infer_conn *c = open_conn();
    expect_asked(c, "a", "null:0");
    struct infer_model m = find(c, "a");
    expect_split(c, "a", m.device_layers);
    uint64_t takes = (uint64_t)metric(c, KIND("models"));
    uint64_t rest = m.rest_weights_bytes + m.rest_state_bytes + m.rest_scratch_bytes;
    assert_int_equal(m.device_memory, 33554432);
    assert_int_equal(m.device_free, 33554432 - takes);
    assert_in_range(m.weights_bytes + m.state_bytes + m.scratch_bytes - rest, takes,
                    takes + MIB / 4);
    assert_true(rest > 8 * MIB);
    assert_int_equal(infer_unload(d.socket, "a", 0), 0);
    assert_int_equal((uint64_t)metric(c, KIND("models")), 0);
    assert_int_equal((uint64_t)metric(c, KIND("free")), 33554432);
    assert_string_equal(find(c, "a").rest_device, "");
    assert_int_equal(find(c, "a").device_layers, 0);
    infer_close(c);
}

/* Two models on two backends, at the same time. */
static void each_steps_on_its_own(void **state)
{
    (void)state;
    start_with("67108864", ",eos_after=1,eos=2", "", "[model a]\n@[model b]\n@device = cpu\n");
    struct infer_conn *c = open_conn();
    uint32_t ids[] = {submit(c, "a", 100), submit(c, "b", 20)};
    for (size_t i = 0; i < 2; i++)
        assert_int_equal(take(c, ids[i], UINT32_MAX), 0);
    expect_on(c, "a", "null:0");
    expect_on(c, "b", "cpu");
    infer_close(c);
}

/* A device that is lost ends the daemon, whatever the others do. */
static void a_lost_device_ends_the_daemon(void **state)
{
    (void)state;
    start_with("67108864", ",lose_step=5,lose_hangs=1", "",
               "[model a]\n@[model b]\n@device = cpu\n");
    struct infer_conn *c = open_conn();
    expect_asked(c, "b", "cpu");
    uint32_t ids[] = {submit(c, "a", 100), submit(c, "b", 1900)};
    for (size_t i = 0; i < 2; i++)
        assert_int_equal(take(c, ids[i], UINT32_MAX), INFER_E_BACKEND_LOST);
    assert_int_equal(daemon_wait(&d, 5), 75);
    infer_close(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_model_goes_where_there_is_room),
        TEST(a_model_that_the_device_never_holds),
        TEST(the_second_device_comes_before_the_processors),
        TEST(a_device_that_is_not_open),
        TEST(a_manager_names_the_device),
        TEST(a_device_that_refuses_a_model_is_passed_over),
        TEST(auto_is_the_processors),
        TEST(what_leaves_leaves_the_device),
        TEST(the_hosts_memory_is_apart),
        TEST(a_pinned_model_stays_on_the_device),
        TEST(state_is_sized_by_the_device),
        TEST(a_limit_for_the_device),
        TEST(the_first_layers_go_to_the_device),
        TEST(layers_go_where_most_of_them_fit),
        TEST(as_many_layers_as_it_says),
        TEST(layers_that_the_device_does_not_hold),
        TEST(the_rest_needs_the_hosts_memory),
        TEST(a_split_that_is_refused_takes_nothing),
        TEST(a_device_lost_with_some_layers_ends_the_daemon),
        TEST(the_ledger_of_a_device),
        TEST(the_ledgers_of_a_split),
        TEST(each_steps_on_its_own),
        TEST(a_lost_device_ends_the_daemon),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
