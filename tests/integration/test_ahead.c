/* test_ahead.c: answers whose steps are given to the device one step ahead, through the daemon and
 * its rings, are those of steps that wait for each other.
 *
 * The other side of the comparison: a request for a single token is never one step ahead, for there
 * is no step behind it. So each token of an answer must be the one that a request for one token
 * draws when all tokens before it are its prompt. Ends of all kinds come while a step is under way.
 *
 * On the null backend, whose tokens are a function of seed, token and position; and on the CUDA
 * one, with the embedded model, by default emulated (tests/support/cuda) and hence for few tokens;
 * INFERD_TEST_CUDA=1 takes the GPU of this machine. */
#include "many.h"
#include "support/answer.h"
#include "support/openmetrics.h"

enum { CONNECTIONS = 4, REQUESTS_MAX = 16, PROMPT = 6 };

static struct daemon d;
static struct infer_conn *conns[CONNECTIONS];

static void begin(const char *backend, const char *options)
{
    daemon_start_backend(&d, backend, options);
    for (int i = 0; i < CONNECTIONS; i++)
        conns[i] = answer_connect(&d);
}

static void end(void)
{
    for (int i = 0; i < CONNECTIONS; i++)
        infer_close(conns[i]);
    daemon_done(&d);
}

static double steps_ahead(void)
{
    char *text;
    size_t bytes;
    assert_int_equal(infer_metrics(conns[0], &text, &bytes), 0);
    double n = openmetrics_value(text, "inferd_steps_ahead_total");
    infer_free(text);
    return n;
}

/* Greedy ones and seeded ones, of different lengths. */
static void request_of(struct infer_request *r, uint32_t i, const int32_t *ids, size_t n,
                       uint32_t max_tokens)
{
    many_request(r, ids, n, max_tokens);
    r->sampling.seed = 100 + i;
    r->sampling.temperature = i % 2 == 0 ? 0.0f : 0.9f;
    r->sampling.logprobs = i % 3;
}

static void check_one_by_one(uint32_t which, const int32_t *prompt, const struct many_answer *a)
{
    int32_t ids[PROMPT + MANY_TOKENS_MAX];
    memcpy(ids, prompt, PROMPT * sizeof *ids);
    memcpy(ids + PROMPT, a->ids, a->n * sizeof *ids);
    for (uint32_t i = 0; i < a->n; i++) {
        struct infer_request r;
        struct many_answer one;
        request_of(&r, which, ids, PROMPT + i, 1);
        many_get(conns[0], &r, &one);
        many_assert_good(&one, 1);
        if (one.ids[0] != a->ids[i])
            fail_msg("token %u of answer %u is %d, and %d when it waits", i, which, a->ids[i],
                     one.ids[0]);
    }
}

/* All at once, from several connections; answer i has `length` + i tokens. */
static void check_many(uint32_t n, uint32_t length)
{
    static int32_t prompts[REQUESTS_MAX][PROMPT];
    static struct many_answer answers[REQUESTS_MAX];
    uint32_t ids[REQUESTS_MAX];
    double before = steps_ahead();
    for (uint32_t i = 0; i < n; i++) {
        struct infer_request r;
        many_ids(prompts[i], PROMPT, i + 1);
        request_of(&r, i, prompts[i], PROMPT, length + i);
        assert_int_equal(infer_submit(conns[i % CONNECTIONS], &r, &ids[i]), 0);
    }
    for (uint32_t i = 0; i < n; i++) {
        many_gather(conns[i % CONNECTIONS], ids[i], &answers[i]);
        many_assert_good(&answers[i], length + i);
        assert_int_equal(answers[i].finish, INFER_FINISH_LENGTH);
    }
    double ahead = steps_ahead() - before;
    for (uint32_t i = 0; i < n; i++)
        check_one_by_one(i, prompts[i], &answers[i]);
    assert_true(ahead >= length / 2);
    assert_true(steps_ahead() - before == ahead); /* one token has nothing behind it */
}

static void test_tokens_on_null(void **state)
{
    begin("null", "delay_us=300,check_rows=1");
    check_many(REQUESTS_MAX, 60);
    end();
}

static void test_tokens_on_cuda(void **state)
{
    const char *cuda = getenv("INFERD_TEST_CUDA");
    const bool real = cuda != NULL && strcmp(cuda, "1") == 0;
    if (!real && program_slowness() > 1)
        skip(); /* tests/kernel/test_ahead.c has the kernels under sanitizers */
    begin(real ? "cuda" : "cuda-emulated", NULL);
    check_many(real ? REQUESTS_MAX : 2, real ? 60 : 3);
    end();
}

/* ---- ends ------------------------------------------------------------------------------------ */

static void answer_of(struct infer_conn *c, struct infer_request *r, struct answer *a)
{
    answer_get(c, r, a);
    if (a->error != 0)
        fail_msg("%s: %s", infer_error_name(a->error), a->detail);
}

/* The end token comes where a step is under way that would go on from it. */
static void test_an_end_token_ends(void **state)
{
    int32_t ids[PROMPT];
    struct infer_request r;
    begin("null", "delay_us=300,check_rows=1,eos_after=40,eos=0");
    many_ids(ids, PROMPT, 1);
    double before = steps_ahead();
    for (int i = 0; i < 5; i++) {
        struct many_answer a;
        many_request(&r, ids, PROMPT, 200);
        r.sampling.ignore_eos = 0;
        many_get(conns[0], &r, &a);
        many_assert_good(&a, 40 - PROMPT + 1);
        assert_int_equal(a.finish, INFER_FINISH_STOP);
    }
    assert_true(steps_ahead() - before >= 5 * 25);
    end();
}

static void test_a_stop_string_ends(void **state)
{
    struct infer_request r;
    struct answer full, cut;
    char stop[16];
    const char *stops[] = {stop};
    int32_t ids[PROMPT];
    begin("null", "delay_us=300,check_rows=1");
    many_ids(ids, PROMPT, 1);
    many_request(&r, ids, PROMPT, 60);
    answer_of(conns[0], &r, &full);
    assert_true(full.text_bytes > 60);
    snprintf(stop, sizeof stop, "%.5s", full.text + full.text_bytes / 2);
    r.stops = stops;
    r.n_stops = 1;
    answer_of(conns[0], &r, &cut);
    assert_int_equal(cut.finish, INFER_FINISH_STRING);
    assert_true(cut.n < full.n && cut.text_bytes <= full.text_bytes / 2);
    assert_memory_equal(cut.text, full.text, cut.text_bytes);
    answer_done(&full);
    answer_done(&cut);
    end();
}

/* Some are cancelled or lose their connection; the others go on, and no page is lost. */
static void test_who_leaves_disturbs_nobody(void **state)
{
    static int32_t prompts[8][PROMPT];
    static struct many_answer answers[8], first;
    uint32_t ids[8];
    struct infer_status status;
    begin("null", "delay_us=500,check_rows=1");
    for (uint32_t round = 0; round < 6; round++) {
        struct infer_conn *gone = answer_connect(&d);
        for (uint32_t i = 0; i < 8; i++) {
            struct infer_request r;
            many_ids(prompts[i], PROMPT, 1 + i);
            request_of(&r, i, prompts[i], PROMPT, 80);
            assert_int_equal(infer_submit(i < 2 ? gone : conns[i % CONNECTIONS], &r, &ids[i]), 0);
        }
        many_wait_token(conns[2], ids[2], &first);
        infer_cancel(conns[2], ids[2]);
        infer_close(gone);
        for (uint32_t i = 2; i < 8; i++) {
            many_gather(conns[i % CONNECTIONS], ids[i], &answers[i]);
            if (i == 2)
                assert_int_equal(answers[i].finish, INFER_FINISH_CANCEL);
            else
                many_assert_good(&answers[i], 80);
        }
    }
    for (uint32_t i = 3; i < 8; i++)
        check_one_by_one(i, prompts[i], &answers[i]);
    assert_true(steps_ahead() > 100);
    answer_wait_idle(conns[0]);
    status.bytes = sizeof status;
    assert_int_equal(infer_status(conns[0], &status), 0);
    assert_int_equal(status.n_running, 0);
    end();
}

/* A model that is told to leave at once does so though a step with all its requests is under way.
 */
static void test_the_model_leaves(void **state)
{
    int32_t ids[PROMPT];
    begin("null", "delay_us=2000,check_rows=1");
    many_ids(ids, PROMPT, 1);
    for (int round = 0; round < 4; round++) {
        struct infer_request r;
        struct many_answer a;
        uint32_t id;
        many_request(&r, ids, PROMPT, 400);
        assert_int_equal(infer_submit(conns[0], &r, &id), 0);
        many_wait_token(conns[0], id, &a);
        assert_int_equal(infer_unload(d.socket, "unix", 1), 0);
        many_gather(conns[0], id, &a);
        assert_int_equal(a.error, INFER_E_UNLOADED);
        many_request(&r, ids, PROMPT, 30); /* it is loaded again */
        many_get(conns[0], &r, &a);
        many_assert_good(&a, 30);
    }
    end();
}

/* A step that fails ends the requests in it, once, and the next ones are served. */
static void test_a_failed_step_takes_the_one_behind_it_along(void **state)
{
    int32_t ids[PROMPT];
    struct infer_request r;
    struct many_answer a;
    begin("null", "delay_us=300,check_rows=1,fail_step=20");
    many_ids(ids, PROMPT, 1);
    many_request(&r, ids, PROMPT, 100);
    many_get(conns[0], &r, &a);
    assert_int_equal(a.error, INFER_E_BACKEND);
    assert_true(a.n < 20);
    many_get(conns[0], &r, &a);
    many_assert_good(&a, 100);
    end();
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tokens_on_null),
        cmocka_unit_test(test_an_end_token_ends),
        cmocka_unit_test(test_a_stop_string_ends),
        cmocka_unit_test(test_who_leaves_disturbs_nobody),
        cmocka_unit_test(test_the_model_leaves),
        cmocka_unit_test(test_a_failed_step_takes_the_one_behind_it_along),
        cmocka_unit_test(test_tokens_on_cuda),
    };
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
