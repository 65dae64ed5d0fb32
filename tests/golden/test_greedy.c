/* test_greedy.c: greedy answers of the embedded model against a reference.
 *
 * tests/data/greedy.unix-46m-Q6_K.jsonl holds one object per prompt of tests/data/prompts.txt:
 * prompt_ids, ids, and per step the margin by which the reference's best logit led the second. The
 * reference ran the file's dequantized weights in float32. Where two logits nearly tie, rounding
 * decides; so ids must be equal up to (not including) the first step whose margin is under a bound:
 *
 *   ref   0.02   the same arithmetic in another order of additions
 *   cpu   0.5    activations may be rounded to 8 bits before each product: half a step of 1/127 of
 *                a block's largest value, in every product of 12 layers, moves logits by a few
 *                tenths at most; likewise where a CUDA device, here played by the processor, has
 *                some of the layers: it rounds them to halves
 *   cuda  0.1    activations are halves: logits are off by well under a hundredth of the largest
 *                (test_cuda.c has the sum), which are about 10 here
 *
 * INFERD_TEST_CUDA=1 runs the CUDA backend alone, on this machine's GPU; else it is emulated.
 * Everything goes through inferctl, as a user would do it. */
#include "support/daemon.h"
#include "support/program.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>

#include <cmocka.h>

enum { PROMPTS_MAX = 64 };

static json_t *cases[PROMPTS_MAX];
static char *prompts[PROMPTS_MAX];
static size_t n_cases, n_prompts;

static char *read_file(const char *path)
{
    char *text = malloc(1 << 20);
    FILE *f = fopen(path, "r");
    assert_non_null(text);
    if (!f)
        fail_msg("%s is not there", path);
    size_t n = fread(text, 1, (1 << 20) - 1, f);
    text[n] = '\0';
    fclose(f);
    return text;
}

static int setup(void **state)
{
    char *text = read_file("tests/data/greedy.unix-46m-Q6_K.jsonl"), *rest = text, *line;
    while ((line = strsep(&rest, "\n")) && n_cases < PROMPTS_MAX)
        if (*line && (cases[n_cases] = json_loads(line, 0, NULL)))
            n_cases++;
    free(text);

    text = read_file("tests/data/prompts.txt");
    for (char *p = text; p && n_prompts < PROMPTS_MAX;) {
        char *end = strstr(p, "\n%%\n");
        if (end)
            *end = '\0';
        prompts[n_prompts++] = strdup(p);
        p = end ? end + 4 : NULL;
    }
    free(text);
    assert_true(n_cases >= 12);
    assert_int_equal(n_cases, n_prompts);
    return 0;
}

static int teardown(void **state)
{
    for (size_t i = 0; i < n_cases; i++) {
        json_decref(cases[i]);
        free(prompts[i]);
    }
    return 0;
}

/* inferctl prompt ... --json; its one object. */
static json_t *ask(const struct daemon *d, const char *const *arguments, const char *input)
{
    const char *argv[24] = {"inferctl", "--socket", d->socket, "prompt",
                            "--raw",    "--temp",   "0",       "--json"};
    size_t n = 8;
    while (*arguments && n < 23)
        argv[n++] = *arguments++;
    argv[n] = NULL;
    struct program_result r;
    json_error_t error;
    program_run(argv, input, input ? strlen(input) : 0, 120, &r);
    if (r.status != 0)
        fail_msg("inferctl prompt: status %d: %s", r.status, r.err);
    json_t *answer = json_loads(r.out, 0, &error);
    if (!answer)
        fail_msg("not one JSON object: %s: %s", error.text, r.out);
    program_result_done(&r);
    return answer;
}

static void ids_to_text(const json_t *ids, char *ret, size_t room)
{
    size_t at = 0;
    ret[0] = '\0';
    for (size_t i = 0; i < json_array_size(ids); i++)
        at += (size_t)snprintf(ret + at, room - at, "%s%lld", i ? "," : "",
                               (long long)json_integer_value(json_array_get(ids, i)));
    assert_true(at < room);
}

/* Steps that must be equal. */
static size_t steps_to_compare(const json_t *c, double bound)
{
    const json_t *margin = json_object_get(c, "margin");
    size_t n = json_array_size(margin);
    for (size_t i = 0; i < n; i++)
        if (json_number_value(json_array_get(margin, i)) < bound)
            return i;
    return n;
}

static void compare_greedy_of(const struct daemon *d, const char *backend, double bound, size_t n,
                              size_t tokens_max)
{
    size_t compared = 0;
    for (size_t i = 0; i < n; i++) {
        char prompt[8192], count[24];
        const json_t *wanted = json_object_get(cases[i], "ids");
        size_t steps = steps_to_compare(cases[i], bound);
        if (steps > tokens_max)
            steps = tokens_max;
        ids_to_text(json_object_get(cases[i], "prompt_ids"), prompt, sizeof prompt);
        snprintf(count, sizeof count, "%zu", steps ? steps : 1);
        const char *arguments[] = {"--max-tokens", count, "--ids", prompt, NULL};
        json_t *answer = ask(d, arguments, NULL);
        assert_true(json_equal(json_object_get(answer, "prompt_ids"),
                               json_object_get(cases[i], "prompt_ids")));
        const json_t *ids = json_object_get(answer, "ids");
        for (size_t s = 0; s < steps; s++) {
            long long want = json_integer_value(json_array_get(wanted, s));
            const json_t *have = json_array_get(ids, s);
            /* An end token may be told by `finish` alone. */
            if (!have && s + 1 == json_array_size(wanted)) {
                assert_string_equal(json_string_value(json_object_get(answer, "finish")), "stop");
                break;
            }
            if (!have || json_integer_value(have) != want)
                fail_msg("%s, prompt %zu, step %zu: %lld, wanted %lld", backend, i, s,
                         have ? (long long)json_integer_value(have) : -1, want);
        }
        compared += steps;
        json_decref(answer);
    }
    printf("%s: %zu steps equal\n", backend, compared);
    assert_true(compared >= n * 2);
}

static void compare_greedy(const char *backend, double bound, size_t n, size_t tokens_max)
{
    struct daemon d = {0};
    daemon_start_backend(&d, backend, NULL);
    compare_greedy_of(&d, backend, bound, n, tokens_max);
    daemon_done(&d);
}

static void test_greedy_ref(void **state)
{
    /* The scalar reference is slow, more so under sanitizers. */
    if (program_slowness() > 1)
        compare_greedy("ref", 0.02, 2, 4);
    else
        compare_greedy("ref", 0.02, n_cases, 1000);
}

static void test_greedy_cpu(void **state)
{
    compare_greedy("cpu", 0.5, n_cases, program_slowness() > 1 ? 8 : 1000);
}

/* inferctl's exit status when nobody answers at the socket. */
#define NO_DAEMON 3

/* How many layers of the daemon's one model are on a device with the rest on the processors. */
static long long layers_on_device(const struct daemon *d)
{
    struct program_result r;
    const char *argv[] = {"inferctl", "--socket", d->socket, "models", "--json", NULL};
    program_run(argv, NULL, 0, 30, &r);
    /* Emulated, under sanitizers, the model takes longer to load than a client waits. */
    for (int i = 0; i < 5 && r.status == NO_DAEMON; i++) {
        program_result_done(&r);
        program_run(argv, NULL, 0, 30, &r);
    }
    assert_int_equal(r.status, 0);
    json_t *models = json_loads(r.out, 0, NULL), *m = json_array_get(models, 0);
    assert_non_null(m);
    assert_string_equal(json_string_value(json_object_get(m, "device")), "cuda-emulated:0");
    assert_string_equal(json_string_value(json_object_get(m, "rest_device")), "cpu");
    long long n = json_integer_value(json_object_get(m, "device_layers"));
    assert_in_range(n, 1, json_integer_value(json_object_get(m, "n_layers")) - 1);
    json_decref(models);
    program_result_done(&r);
    return n;
}

/* Too large for the device: as many layers as fit are there, and the answers are the same. */
static void test_greedy_in_a_split(void **state)
{
    static const char *const memory[] = {"sms=2,memory=60000000", "sms=2,memory=80000000"};
    struct daemon d = {0};
    const bool slow = program_slowness() > 1;
    long long n[2];
    if (access(program_path("inferd-backend-cuda-emulated.so"), R_OK) != 0)
        skip();
    for (size_t i = 0; i < 2; i++) {
        setenv("INFERD_CUDA_EMULATED", memory[i], 1);
        daemon_start_backend(&d, "cuda-emulated,cpu", NULL);
        n[i] = layers_on_device(&d);
        compare_greedy_of(&d, "cuda and cpu", 0.5, slow ? 1 : 2, slow ? 2 : 4);
        daemon_done(&d);
        d = (struct daemon){0};
    }
    unsetenv("INFERD_CUDA_EMULATED");
    assert_true(n[0] < n[1]);
}

static bool real_gpu(void)
{
    const char *cuda = getenv("INFERD_TEST_CUDA");
    return cuda && strcmp(cuda, "1") == 0;
}

/* Emulated, a token takes a second, and under sanitizers ten. */
static void test_greedy_cuda(void **state)
{
    if (real_gpu())
        compare_greedy("cuda", 0.1, n_cases, 1000);
    else if (program_slowness() > 1)
        skip();
    else
        compare_greedy("cuda-emulated", 0.1, 2, 4);
}

/* The text of each prompt becomes the reference's prompt_ids, special tokens parsed. */
static void test_prompt_ids_from_text(void **state)
{
    struct daemon d = {0};
    daemon_start_backend(&d, "null", NULL);
    for (size_t i = 0; i < n_cases; i++) {
        const char *arguments[] = {"--special", "--max-tokens", "1", "--", prompts[i], NULL};
        json_t *answer = ask(&d, arguments, NULL);
        if (!json_equal(json_object_get(answer, "prompt_ids"),
                        json_object_get(cases[i], "prompt_ids"))) {
            char *text = json_dumps(json_object_get(answer, "prompt_ids"), JSON_COMPACT);
            fail_msg("prompt %zu: %s", i, text);
        }
        json_decref(answer);
    }
    daemon_done(&d);
}

/* Chat templates: a message gives the same ids as the markup written by hand. */
static void test_chat_template_gives_the_same_ids(void **state)
{
    struct daemon d = {0};
    struct program_result r;
    daemon_start_backend(&d, "null", NULL);
    const char *argv[] = {"inferctl",     "--socket", d.socket, "prompt",       "--json",
                          "--max-tokens", "1",        "--",     "What is tar?", NULL};
    program_run(argv, NULL, 0, 30, &r);
    assert_int_equal(r.status, 0);
    json_t *answer = json_loads(r.out, 0, NULL);
    assert_non_null(answer);
    assert_true(
        json_equal(json_object_get(answer, "prompt_ids"), json_object_get(cases[0], "prompt_ids")));
    json_decref(answer);
    program_result_done(&r);
    daemon_done(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_prompt_ids_from_text),
        cmocka_unit_test(test_chat_template_gives_the_same_ids),
        cmocka_unit_test(test_greedy_cpu),
        cmocka_unit_test(test_greedy_in_a_split),
        cmocka_unit_test(test_greedy_cuda),
        cmocka_unit_test(test_greedy_ref),
    };
    if (real_gpu())
        cmocka_set_test_filter("test_greedy_cuda");
    return cmocka_run_group_tests(tests, setup, teardown);
}
