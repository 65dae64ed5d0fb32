/* test_lost.c: what becomes of the daemon when its GPU is lost, gone or hangs. The CUDA backend
 * over emulated kernels plays the GPU, under its own name, so that "auto" finds it: the tests have
 * a folder with the daemon and its backends. One layer of the model is on the device, the rest on
 * the processors, since emulated kernels are slow. */
#include "integration/life.h"

#include <fcntl.h>
#include <limits.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>

#define EMULATED "INFERD_CUDA_EMULATED"
#define ONE      "[model a]\n@"
#define TWO      "[model a]\n@[model b]\n@"

static char programs[PATH_MAX], state_path[PATH_MAX], lost_path[PATH_MAX + 8];
/* Files: the device is gone; what it does wrong it does from now on. */
static char gone_path[PATH_MAX + 8], armed_path[PATH_MAX + 8];

static const char *const files[][2] = {
    {"inferd", "inferd"},
    {"inferd-backend-cpu.so", "inferd-backend-cpu.so"},
    {"inferd-backend-cuda-emulated.so", "inferd-backend-cuda.so"},
};
#define N_FILES (sizeof files / sizeof files[0])

/* ---- the device ------------------------------------------------------------------------------ */

static void set(const char *path, bool there)
{
    if (!there) {
        unlink(path);
        return;
    }
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    close(fd);
}

static void start_on(const char *backend, const char *device, const char *wait,
                     const char *sections)
{
    char keys[PATH_MAX + 256];
    setenv(EMULATED, device, 1);
    snprintf(
        keys, sizeof keys,
        "ctx = 2048\nparallel = 1\ndevice-layers = 1\nstate-directory = %s\ndevice-wait = %s\n",
        state_path, wait);
    write_config(keys, sections);
    start_configured(daemon_start_only, backend, "");
    unsetenv(EMULATED);
}

/* Was lost `n` times, `ago_s` seconds ago, as former daemons noted it. */
static void write_lost(int n, int ago_s)
{
    FILE *f = fopen(lost_path, "w");
    assert_non_null(f);
    for (int i = 0; i < n; i++)
        fprintf(f, "cuda:0 %lld\n", (long long)time(NULL) - ago_s);
    assert_int_equal(fclose(f), 0);
}

static int lines_of_lost(void)
{
    char line[128];
    int n = 0;
    FILE *f = fopen(lost_path, "r");
    assert_non_null(f);
    while (fgets(line, sizeof line, f))
        n += strncmp(line, "cuda:0 ", 7) == 0;
    fclose(f);
    return n;
}

static void wait_log(const char *text)
{
    uint64_t end = test_clock_us() + 1000000u * WAIT_S * (unsigned)program_slowness();
    for (;;) {
        char *log = daemon_read_log(&d);
        bool found = strstr(log, text) != NULL;
        if (!found && test_clock_us() > end)
            fail_msg("the log lacks '%s':\n%s", text, log);
        free(log);
        if (found)
            return;
        usleep(5000);
    }
}

static void expect_served_on(const char *device)
{
    struct infer_conn *c = open_conn();
    assert_int_equal(ask(c, "a"), 0);
    assert_string_equal(find(c, "a").device, device);
    infer_close(c);
}

/* From now on the device does wrong: a request of the model on it ends, and so does the daemon. */
static void expect_loss(const char *model)
{
    struct infer_conn *c = open_conn();
    set(armed_path, true);
    assert_int_equal(take(c, submit(c, model, 1000), UINT32_MAX), INFER_E_BACKEND_LOST);
    assert_int_equal(daemon_wait(&d, 5), 75);
    infer_close(c);
    assert_int_equal(lines_of_lost(), 1);
}

/* ---- lost ------------------------------------------------------------------------------------ */

static void a_device_that_is_lost_is_waited_for(void **state)
{
    (void)state;
    start_on("auto", "fail=20", "30s", ONE);
    expect_served_on("cuda:0");
    expect_loss("a");
    set(armed_path, false);
    set(gone_path, true);
    start_on("auto", "", "60s", ONE);
    wait_log("cuda:0 was lost lately and is waited for");
    set(gone_path, false);
    expect_served_on("cuda:0");
    daemon_stop(&d);
    /* Started again while it is there, nothing is waited for. */
    start_on("auto", "", "60s", ONE);
    expect_served_on("cuda:0");
}

static void the_processors_take_over(void **state)
{
    (void)state;
    write_lost(1, 2);
    set(gone_path, true);
    start_on("auto", "", "1s", "[model a]\n@[model b]\n@device = cuda\n");
    expect_served_on("cpu");
    assert_log("cuda:0 was lost and is not back");
    assert_log("going on without it");
    struct infer_conn *c = open_conn();
    assert_int_equal(ask(c, "b"), INFER_E_BACKEND_LOAD); /* it is for the GPU alone */
    infer_close(c);
    assert_int_equal(lines_of_lost(), 1);
}

static void without_the_device_by_name_it_starts_again(void **state)
{
    (void)state;
    write_lost(1, 2);
    set(gone_path, true);
    start_on("cuda,cpu", "", "1s", ONE);
    assert_int_equal(daemon_wait(&d, 10), 75);
    assert_log("cuda:0 was lost and is not back");
}

static void asked_to_stop_it_waits_no_longer(void **state)
{
    (void)state;
    write_lost(1, 2);
    set(gone_path, true);
    start_on("auto", "", "60s", ONE);
    wait_log("cuda:0 was lost lately and is waited for");
    daemon_stop(&d);
}

static void a_device_that_is_lost_again_and_again_is_left_alone(void **state)
{
    (void)state;
    write_lost(3, 500);
    start_on("auto", "", "30s", ONE);
    expect_served_on("cpu");
    assert_log("cuda:0 was lost 3 times within 10 minutes");
    daemon_stop(&d);
    write_lost(3, 700); /* long ago */
    start_on("auto", "", "30s", ONE);
    expect_served_on("cuda:0");
    assert_int_equal(lines_of_lost(), 0);
}

static void lost_while_a_model_loads(void **state)
{
    (void)state;
    start_on("auto", "fail=1", "30s", TWO);
    expect_served_on("cuda:0");
    expect_loss("b");
}

/* ---- not before a model goes there ----------------------------------------------------------- */

static void a_device_that_nobody_uses_computes_nothing(void **state)
{
    (void)state;
    set(armed_path, true);
    start_on("auto", "fail=1", "30s", "[model a]\n@device = cpu\n[model b]\n@");
    expect_served_on("cpu"); /* its first kernel would have been its last */
    expect_loss("b");
}

/* ---- a step that does not end ---------------------------------------------------------------- */

/* How often the watchdog was fed since the last time. */
static int count_fed(int manager)
{
    char text[4096];
    int n_fed = 0;
    for (ssize_t n; (n = recv(manager, text, sizeof text - 1, MSG_DONTWAIT)) > 0;) {
        text[n] = '\0';
        n_fed += strstr(text, "WATCHDOG=1") != NULL;
    }
    return n_fed;
}

static void a_hung_step_trips_the_watchdog(void **state)
{
    (void)state;
    const unsigned watchdog_us = 400000u * (unsigned)program_slowness();
    char text[16];
    snprintf(text, sizeof text, "%u", watchdog_us);
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    snprintf(at.sun_path, sizeof at.sun_path, "%s/manager", folder);
    int manager = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(manager, (struct sockaddr *)&at, sizeof at), 0);
    setenv("NOTIFY_SOCKET", at.sun_path, 1);
    setenv("WATCHDOG_USEC", text, 1);
    start_on("auto", "hang=20", "30s", ONE);
    unsetenv("NOTIFY_SOCKET");
    unsetenv("WATCHDOG_USEC");
    expect_served_on("cuda:0");
    struct infer_conn *c = open_conn();
    set(armed_path, true);
    submit(c, "a", 1000);
    wait_log("the engine has not moved");
    /* Emulated steps may be slow, too, but they end. */
    for (int i = 0, n_fed = 1; n_fed > 0; i++) {
        assert_true(i < 20);
        count_fed(manager);
        usleep(2 * watchdog_us);
        n_fed = count_fed(manager);
    }
    daemon_kill(&d); /* the manager's next step */
    assert_int_equal(lines_of_lost(), 1);
    infer_close(c);
    close(manager);
    unlink(at.sun_path);
}

/* ---- the folder ------------------------------------------------------------------------------ */

static int clean(void **state)
{
    teardown(state);
    set(gone_path, false);
    set(armed_path, false);
    unlink(lost_path);
    return 0;
}

/* In the build folder, so that files can be linked and the build's kind is in its name. */
static int make_programs(void **state)
{
    char from[PATH_MAX], to[PATH_MAX + 64];
    if (access(program_path(files[N_FILES - 1][0]), R_OK) != 0 || make_folder(state) < 0)
        return -1;
    snprintf(programs, sizeof programs, "%s", program_path("tests"));
    if (realpath(programs, from) == NULL)
        return -1;
    snprintf(programs, sizeof programs, "%.4000s/lost.XXXXXX", from);
    if (mkdtemp(programs) == NULL)
        return -1;
    for (size_t i = 0; i < N_FILES; i++) {
        snprintf(from, sizeof from, "%s", program_path(files[i][0]));
        snprintf(to, sizeof to, "%s/%s", programs, files[i][1]);
        if (link(from, to) < 0)
            return -1;
    }
    snprintf(state_path, sizeof state_path, "%.4000s/state", programs);
    snprintf(lost_path, sizeof lost_path, "%s/lost", state_path);
    snprintf(gone_path, sizeof gone_path, "%.4000s/gone", programs);
    snprintf(armed_path, sizeof armed_path, "%.4000s/armed", programs);
    setenv("INFERD_BUILD", programs, 1);
    setenv("INFERD_CUDA_EMULATED_GONE", gone_path, 1);
    setenv("INFERD_CUDA_EMULATED_ARMED", armed_path, 1);
    return mkdir(state_path, 0700);
}

static int remove_programs(void **state)
{
    char path[PATH_MAX + 64];
    for (size_t i = 0; i < N_FILES; i++) {
        snprintf(path, sizeof path, "%s/%s", programs, files[i][1]);
        unlink(path);
    }
    snprintf(path, sizeof path, "%s/starts", state_path);
    unlink(path);
    if (rmdir(state_path) < 0 || rmdir(programs) < 0)
        return -1;
    return remove_folder(state);
}

#define LOST(name) cmocka_unit_test_teardown(name, clean)

int main(void)
{
    const struct CMUnitTest tests[] = {
        LOST(a_device_that_is_lost_is_waited_for),
        LOST(the_processors_take_over),
        LOST(without_the_device_by_name_it_starts_again),
        LOST(asked_to_stop_it_waits_no_longer),
        LOST(a_device_that_is_lost_again_and_again_is_left_alone),
        LOST(lost_while_a_model_loads),
        LOST(a_device_that_nobody_uses_computes_nothing),
        LOST(a_hung_step_trips_the_watchdog),
    };
    if (access(program_path(files[N_FILES - 1][0]), R_OK) != 0) {
        print_message("skip - built without the emulated CUDA backend\n");
        return 0;
    }
    return cmocka_run_group_tests(tests, make_programs, remove_programs);
}
