/* test_metrics.c: counting, and the text, which tests/support/openmetrics.c reads strictly; that
 * reader is held against texts that are wrong first. */
#include "metrics.h"

#include "inferd/abi.h"
#include "support/openmetrics.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

/* ---- the reader ------------------------------------------------------------------------------ */

#define COUNTER   "# TYPE a counter\n# HELP a x\n"
#define HISTOGRAM "# TYPE h_seconds histogram\n# UNIT h_seconds seconds\n# HELP h_seconds x\n"

static void test_reader_takes(void **state)
{
    static const char *const texts[] = {
        "# EOF\n",
        COUNTER "a_total 1\n# EOF\n",
        COUNTER "a_total{b=\"c\"} 1\na_total{b=\"d\\\\\\\"\\n\"} 2.5\n# EOF\n",
        HISTOGRAM "h_seconds_bucket{le=\"0.1\"} 1\nh_seconds_bucket{le=\"+Inf\"} 2\n"
                  "h_seconds_count 2\nh_seconds_sum 0.5\n# EOF\n",
    };
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        const char *wrong = openmetrics_check(texts[i], strlen(texts[i]));
        if (wrong != NULL)
            fail_msg("text %zu: %s", i, wrong);
    }
}

static void test_reader_refuses(void **state)
{
    static const char *const texts[] = {
        "",
        "# EOF",
        "# EOF\n# EOF\n",
        "\n# EOF\n",
        "a_total 1\n# EOF\n",
        COUNTER "a 1\n# EOF\n",
        COUNTER "a_total -1\n# EOF\n",
        COUNTER "a_total 1 \n# EOF\n",
        COUNTER "a_total 0x1\n# EOF\n",
        COUNTER "a_total  1\n# EOF\n",
        COUNTER "a_total 1\na_total 2\n# EOF\n",
        COUNTER "a_total{b=\"c\"} 1\na_total{b=\"d\"} 1\na_total{b=\"c\"} 1\n# EOF\n",
        COUNTER "a_total{b=\"c\",b=\"d\"} 1\n# EOF\n",
        COUNTER "a_total{b=\"c\n\"} 1\n# EOF\n",
        COUNTER "a_total{b=\"\\t\"} 1\n# EOF\n",
        COUNTER "a_total{b=\"\xff\"} 1\n# EOF\n",
        COUNTER "a_total{b=\"\xed\xa0\x80\"} 1\n# EOF\n",
        COUNTER "a_total{1=\"c\"} 1\n# EOF\n",
        COUNTER "a_total{} 1\n# EOF\n",
        COUNTER COUNTER "# EOF\n",
        COUNTER "# TYPE a_total gauge\n# HELP a_total x\n# EOF\n",
        "# TYPE a counter\na_total 1\n# EOF\n",
        "# TYPE a_total counter\n# HELP a_total x\n# EOF\n",
        "# TYPE a gauge\n# UNIT a seconds\n# HELP a x\n# EOF\n",
        "# TYPE a gauge\n# HELP a x\na_total 1\n# EOF\n",
        "# TYPE a info\n# HELP a x\na_info 2\n# EOF\n",
        "# HELP a x\n# TYPE a gauge\na 1\n# EOF\n",
        "# TYPE a gauge\n# HELP a x\n# TYPE b gauge\n# HELP b x\na 1\n# EOF\n",
        HISTOGRAM "h_seconds_bucket{le=\"0.1\"} 1\nh_seconds_count 1\nh_seconds_sum 1\n# EOF\n",
        HISTOGRAM "h_seconds_bucket{le=\"0.1\"} 3\nh_seconds_bucket{le=\"+Inf\"} 2\n# EOF\n",
        HISTOGRAM "h_seconds_bucket{le=\"2.0\"} 1\nh_seconds_bucket{le=\"1.0\"} 2\n"
                  "h_seconds_bucket{le=\"+Inf\"} 2\n# EOF\n",
        HISTOGRAM "h_seconds_bucket{le=\"1\"} 1\nh_seconds_bucket{le=\"+Inf\"} 2\n# EOF\n",
        HISTOGRAM "h_seconds_bucket{le=\"+Inf\"} 2\nh_seconds_count 1\nh_seconds_sum 1\n# EOF\n",
        HISTOGRAM "h_seconds_bucket{le=\"+Inf\"} 2\nh_seconds_count 2\n# EOF\n",
        HISTOGRAM "h_seconds_total 1\n# EOF\n",
    };
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++)
        if (openmetrics_check(texts[i], strlen(texts[i])) == NULL)
            fail_msg("text %zu is taken:\n%s", i, texts[i]);
}

/* ---- counting -------------------------------------------------------------------------------- */

static struct metrics_snapshot s;

static void clear(void)
{
    memset(&s, 0, sizeof s);
}

static char *render(void)
{
    size_t bytes = 0;
    char *text = metrics_render(&s, &bytes);
    assert_non_null(text);
    assert_int_equal(strlen(text), bytes);
    const char *wrong = openmetrics_check(text, bytes);
    if (wrong != NULL)
        fail_msg("%s", wrong);
    return text;
}

static void expect(const char *text, const char *sample, double value)
{
    double got = openmetrics_value(text, sample);
    if (got != value)
        fail_msg("%s is %g, not %g", sample, got, value);
}

static void test_buckets(void **state)
{
    struct metrics_histogram h = {0};
    uint64_t sum = 0;
    for (unsigned i = 0; i < METRICS_BUCKETS; i++) {
        assert_true(i == 0 || metrics_bounds_us[i] > metrics_bounds_us[i - 1]);
        metrics_add(&h, metrics_bounds_us[i]);
        metrics_add(&h, metrics_bounds_us[i] + 1u);
        sum += 2ull * metrics_bounds_us[i] + 1;
    }
    metrics_add(&h, 0);
    for (unsigned i = 0; i <= METRICS_BUCKETS; i++) /* its own bound, and the one before plus 1 */
        assert_int_equal(h.counts[i], i == METRICS_BUCKETS ? 1 : 2);
    assert_int_equal(h.sum_us, sum);
    metrics_add(&h, UINT64_MAX / 2);
    assert_int_equal(h.counts[METRICS_BUCKETS], 2);
}

static void test_histogram_text(void **state)
{
    clear();
    metrics_add(&s.counters.steps[METRICS_DECODE], 100);
    metrics_add(&s.counters.steps[METRICS_DECODE], 2000);
    metrics_add(&s.counters.steps[METRICS_DECODE], 200000001);
    char *text = render();
    expect(text, "inferd_step_seconds_bucket{kind=\"decode\",le=\"0.0001\"}", 1);
    expect(text, "inferd_step_seconds_bucket{kind=\"decode\",le=\"0.001\"}", 1);
    expect(text, "inferd_step_seconds_bucket{kind=\"decode\",le=\"0.0025\"}", 2);
    expect(text, "inferd_step_seconds_bucket{kind=\"decode\",le=\"120.0\"}", 2);
    expect(text, "inferd_step_seconds_bucket{kind=\"decode\",le=\"+Inf\"}", 3);
    expect(text, "inferd_step_seconds_count{kind=\"decode\"}", 3);
    expect(text, "inferd_step_seconds_sum{kind=\"decode\"}", 200.002101);
    expect(text, "inferd_step_seconds_count{kind=\"mixed\"}", 0);
    free(text);
}

static void test_outcomes(void **state)
{
    static const struct {
        const char *name;
        int code;
    } errors[] = {
#define ROW(name, code, exit_status, text) {#name, code},
        INFER_ERROR_TABLE (ROW)
#undef ROW
    };
    size_t n = sizeof errors / sizeof errors[0];
    clear();
    struct metrics *m = &s.counters;
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k <= i; k++)
            metrics_finished(m, INFER_ABI_GENERATE, INFER_FINISH_ERROR, errors[i].code);
    metrics_finished(m, INFER_ABI_METRICS, INFER_FINISH_NONE, 0);
    metrics_finished(m, INFER_ABI_FORGET, INFER_FINISH_NONE, 0);
    metrics_finished(m, 0, INFER_FINISH_ERROR, INFER_E_BAD_REQUEST);
    metrics_finished(m, INFER_ABI_METRICS + 1, INFER_FINISH_ERROR, INFER_E_BAD_REQUEST);
    metrics_finished(m, UINT32_MAX, INFER_FINISH_ERROR, INFER_E_BAD_REQUEST);
    metrics_finished(m, INFER_ABI_SCORE, METRICS_FINISH_ABANDONED, 0);
    char *text = render();
    for (size_t i = 0; i < n; i++) {
        char sample[96];
        snprintf(sample, sizeof sample, "inferd_errors_total{error=\"%s\"}", errors[i].name);
        expect(text, sample, (double)(i + 1) + (errors[i].code == INFER_E_BAD_REQUEST ? 3 : 0));
    }
    expect(text, "inferd_requests_total{op=\"generate\",finish=\"error\"}",
           (double)(n * (n + 1) / 2));
    expect(text, "inferd_requests_total{op=\"metrics\",finish=\"none\"}", 1);
    expect(text, "inferd_requests_total{op=\"forget\",finish=\"none\"}", 1);
    expect(text, "inferd_requests_total{op=\"other\",finish=\"error\"}", 3);
    expect(text, "inferd_requests_total{op=\"score\",finish=\"abandoned\"}", 1);
    free(text);
}

static void test_users(void **state)
{
    clear();
    struct metrics *m = &s.counters;
    for (uint32_t uid = 1000; uid < 1000 + METRICS_USERS_MAX + 3; uid++) {
        uint32_t user = metrics_user(m, uid);
        m->users[user].requests++;
        m->users[user].tokens += uid;
        metrics_refused(m, user, METRICS_LIMIT_TOKENS);
    }
    assert_int_equal(metrics_user(m, 1001), 1); /* known uids stay where they are */
    assert_int_equal(metrics_user(m, 5), METRICS_USERS_MAX);
    metrics_refused(m, METRICS_USER_NONE, METRICS_LIMIT_MEMORY);
    struct metrics_snapshot copy = s;

    char *text = render();
    expect(text, "inferd_user_requests_total{uid=\"1063\"}", 1);
    expect(text, "inferd_user_requests_total{uid=\"1064\"}", -1);
    expect(text, "inferd_user_requests_total{uid=\"other\"}", 3);
    expect(text, "inferd_user_tokens_total{uid=\"other\"}", 1064 + 1065 + 1066);
    expect(text, "inferd_user_refusals_total{uid=\"1000\",limit=\"tokens_per_minute\"}", 1);
    expect(text, "inferd_refusals_total{limit=\"tokens_per_minute\"}", METRICS_USERS_MAX + 3);
    expect(text, "inferd_refusals_total{limit=\"memory\"}", 1);
    free(text);

    metrics_show_users(&s, true, 1003);
    assert_memory_equal(&s, &copy, sizeof s);
    metrics_show_users(&s, false, 1003);
    text = render();
    expect(text, "inferd_user_tokens_total{uid=\"1003\"}", 1003);
    assert_true(openmetrics_sum(text, "inferd_user_tokens_total") == 1003);
    assert_true(openmetrics_sum(text, "inferd_user_refusals_total") == 1);
    assert_null(strstr(text, "other\""));
    expect(text, "inferd_refusals_total{limit=\"tokens_per_minute\"}", METRICS_USERS_MAX + 3);
    free(text);
    for (uint32_t i = 1; i <= METRICS_USERS_MAX; i++) /* nothing of others is left in memory */
        assert_int_equal(s.counters.users[i].tokens, 0);

    s = copy;
    metrics_show_users(&s, false, 7); /* who was never seen, and one of the others */
    text = render();
    assert_null(strstr(text, "uid="));
    free(text);
}

static void test_models(void **state)
{
    clear();
    metrics_model(&s.counters, 0, "a")->tokens = 5;
    assert_int_equal(metrics_model(&s.counters, 0, "a")->tokens, 5);
    metrics_model(&s.counters, 1, "b")->tokens = 7;
    s.n_models = 2;
    strcpy(s.models[0].info.name, "c"); /* it has the place of "a", nothing was asked of it yet */
    strcpy(s.models[1].info.name, "b");
    s.models[0].info.state = INFER_MODEL_LISTED;
    s.models[1].info.state = INFER_MODEL_READY;
    s.models[1].info.index = 1;
    s.models[1].info.n_requests = 3;
    s.models[1].pages = (struct kv_counts){.n_pages = 6,
                                           .n_free = 1,
                                           .n_cached = 2,
                                           .n_held = 3,
                                           .n_shared = 2,
                                           .evictions = 9,
                                           .zeroed = 8,
                                           .copied = 4};
    char *text = render();
    expect(text, "inferd_tokens_total{model=\"c\"}", 0);
    expect(text, "inferd_tokens_total{model=\"b\"}", 7);
    expect(text, "inferd_model_state{model=\"b\",state=\"ready\"}", 1);
    expect(text, "inferd_model_state{model=\"b\",state=\"listed\"}", 0);
    expect(text, "inferd_model_state{model=\"c\",state=\"listed\"}", 1);
    expect(text, "inferd_model_requests{model=\"b\"}", 3);
    assert_null(strstr(text, "inferd_model_memory_bytes{model=\"c\"")); /* it has none */
    expect(text, "inferd_model_memory_bytes{model=\"b\",purpose=\"weights\"}", 0);
    expect(text, "inferd_pages{model=\"b\",state=\"cached\"}", 2);
    expect(text, "inferd_pages{model=\"b\",state=\"held\"}", 3);
    expect(text, "inferd_pages_shared{model=\"b\"}", 2);
    expect(text, "inferd_pages_evicted_total{model=\"b\"}", 9);
    expect(text, "inferd_pages_zeroed_total{model=\"b\"}", 8);
    expect(text, "inferd_pages_copied_total{model=\"b\"}", 4);
    free(text);
    assert_int_equal(metrics_model(&s.counters, 0, "c")->tokens, 0);
}

static void test_devices(void **state)
{
    clear();
    s.n_devices = 2;
    s.devices[0] = (struct metrics_device){"cpu", "CPU, 2 threads", 0, 0, 0};
    s.devices[1] = (struct metrics_device){"cuda:0", "a \"GPU\"", 1000, 300, 600};
    s.n_models = 1;
    s.models[0].info.state = INFER_MODEL_READY;
    strcpy(s.models[0].info.name, "m");
    strcpy(s.models[0].info.device, "cuda:0");
    strcpy(s.models[0].info.rest_device, "cpu");
    char *text = render();
    assert_non_null(strstr(text, "backend=\"\",device=\"cuda:0\",rest_device=\"cpu\"} 1\n"));
    expect(text, "inferd_device_info{device=\"cpu\",description=\"CPU, 2 threads\"}", 1);
    expect(text, "inferd_device_memory_bytes{device=\"cuda:0\",kind=\"all\"}", 1000);
    expect(text, "inferd_device_memory_bytes{device=\"cuda:0\",kind=\"free\"}", 300);
    expect(text, "inferd_device_memory_bytes{device=\"cuda:0\",kind=\"models\"}", 600);
    assert_null(strstr(text, "inferd_device_memory_bytes{device=\"cpu\"")); /* the host's */
    free(text);
}

/* ---- the text -------------------------------------------------------------------------------- */

static void test_hostile_labels(void **state)
{
    clear();
    s.n_models = 1;
    struct infer_model *m = &s.models[0].info;
    m->state = INFER_MODEL_READY;
    strcpy(m->name, "a\"b\\c\nd\te\x7f");
    strcpy(m->architecture,
           "\xc3\xa9\xc3\x28\xff\xf0\x9f\x8c\x8d\xed\xa0\x80\xc0\xaf\xf4\x90\x80\x80");
    memset(m->description, '"', sizeof m->description - 1);
    memset(m->backend, 0xe2, sizeof m->backend - 1);
    char *text = render();
    assert_non_null(strstr(text, "model=\"a\\\"b\\\\c\xef\xbf\xbd"
                                 "d\xef\xbf\xbd"
                                 "e\xef\xbf\xbd\""));
    assert_non_null(
        strstr(text, "architecture=\"\xc3\xa9\xef\xbf\xbd(\xef\xbf\xbd\xf0\x9f\x8c\x8d"));
    free(text);
}

static void test_largest(void **state)
{
    memset(&s, 0x7f, sizeof s);
    s.n_models = INFER_MODELS_MAX;
    s.n_devices = METRICS_DEVICES_MAX;
    for (uint32_t i = 0; i < METRICS_DEVICES_MAX; i++) {
        snprintf(s.devices[i].name, sizeof s.devices[i].name, "a-device:%u", i);
        s.devices[i].description[63] = '\0';
    }
    s.counters.n_users = METRICS_USERS_MAX;
    s.counters.start_s = 1.7e9;
    s.status.version[5] = s.status.event_loop[5] = '\0';
    for (uint32_t i = 0; i < INFER_MODELS_MAX; i++) {
        struct infer_model *m = &s.models[i].info;
        m->index = i;
        m->state = INFER_MODEL_READY;
        memset(m->name, 'a', sizeof m->name - 1);
        m->name[0] = (char)('A' + i % 26);
        m->name[1] = (char)('A' + i / 26);
        m->name[sizeof m->name - 1] = m->architecture[31] = m->description[63] = '\0';
        m->backend[63] = m->chat_template[31] = m->device[39] = m->rest_device[39] = '\0';
        memcpy(s.counters.models[i].name, m->name, sizeof m->name);
        /* Counts whose sums do not pass 2^64. */
        for (unsigned k = 0; k <= METRICS_BUCKETS; k++)
            s.counters.models[i].first_token.counts[k] = UINT64_MAX / 64 + k;
    }
    for (uint32_t i = 0; i < METRICS_USERS_MAX; i++)
        s.counters.users[i].uid = UINT32_MAX - i;
    struct metrics_histogram *all[] = {&s.counters.steps[0], &s.counters.queue_wait[0],
                                       &s.counters.models[0].between_tokens};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        memset(all[i], 0, sizeof *all[i] * (i < 2 ? 3 : 1));
    for (uint32_t i = 0; i < INFER_MODELS_MAX; i++)
        memset(&s.counters.models[i].between_tokens, 0, sizeof s.counters.models[i].between_tokens);
    char *text = render();
    assert_in_range(strlen(text), 100000, 1000000);
    expect(text, "inferd_user_requests_total{uid=\"4294967295\"}", (double)0x7f7f7f7f7f7f7f7f);
    free(text);
}

static void test_locale_and_numbers(void **state)
{
    clear();
    s.counters.start_s = 1795447169;
    s.counters.saved_bytes = 123456789012345;
    atomic_store(&s.loads.took_us, 1500000);
    char *text = render();
    assert_non_null(strstr(text, "\nprocess_start_time_seconds 1795447169.0\n"));
    assert_non_null(strstr(text, "\ninferd_swap_saved_bytes_total 123456789012345\n"));
    assert_non_null(strstr(text, "\ninferd_load_seconds_total 1.5\n"));
    assert_true(openmetrics_value(text, "process_resident_memory_bytes") > 65536);
    assert_null(strstr(text, "inferd_starts")); /* not known */
    free(text);
    s.counters.n_starts = 3;
    text = render();
    expect(text, "inferd_starts_total", 3);
    free(text);
}

/* ---- starts ---------------------------------------------------------------------------------- */

static void put_file(const char *folder, const char *name, const char *text)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "we");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static void test_starts(void **state)
{
    char folder[] = "/tmp/inferd-starts-XXXXXX", path[128], target[128];
    assert_non_null(mkdtemp(folder));
    assert_int_equal(metrics_count_start(folder), 1);
    assert_int_equal(metrics_count_start(folder), 2);
    put_file(folder, "starts", "41\n");
    assert_int_equal(metrics_count_start(folder), 42);
    static const char *const garbage[] = {"", "x", "-5", "99999999999999999999999999"};
    for (size_t i = 0; i < sizeof garbage / sizeof garbage[0]; i++) {
        put_file(folder, "starts", garbage[i]);
        assert_int_equal(metrics_count_start(folder), 1);
    }
    /* A link is not followed, neither to read nor to write. */
    snprintf(target, sizeof target, "%s/other", folder);
    put_file(folder, "other", "7");
    snprintf(path, sizeof path, "%s/starts", folder);
    unlink(path);
    assert_int_equal(symlink(target, path), 0);
    assert_int_equal(metrics_count_start(folder), 1);
    struct stat st;
    assert_int_equal(lstat(path, &st), 0);
    assert_true(S_ISREG(st.st_mode) && (st.st_mode & 0777) == 0600);
    assert_int_equal(stat(target, &st), 0);
    assert_int_equal(st.st_size, 1);
    unlink(path);
    unlink(target);
    rmdir(folder);
    assert_int_equal(metrics_count_start(folder), -ENOENT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reader_takes),
        cmocka_unit_test(test_reader_refuses),
        cmocka_unit_test(test_buckets),
        cmocka_unit_test(test_histogram_text),
        cmocka_unit_test(test_outcomes),
        cmocka_unit_test(test_users),
        cmocka_unit_test(test_models),
        cmocka_unit_test(test_hostile_labels),
        cmocka_unit_test(test_devices),
        cmocka_unit_test(test_largest),
        cmocka_unit_test(test_locale_and_numbers),
        cmocka_unit_test(test_starts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
