/* test_answers.c: what libinferclient says and hears of several answers, windows and conversations,
 * and older programs of them. INFERD_BUILD names the folder of the library ("build"). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "fixture.h"

#include <dlfcn.h>

/* ---- several answers ------------------------------------------------------------------------- */

/* The formula is a promise: who keeps a seed wants the same answers from the next version. */
static void test_answer_seeds(void **state)
{
    assert_true(infer_answer_seed(0, 0) == 0);
    assert_true(infer_answer_seed(UINT64_MAX, 0) == UINT64_MAX);
    assert_true(infer_answer_seed(0, 1) == UINT64_C(0xe220a8397b1dcdaf)); /* splitmix64's first */
    assert_true(infer_answer_seed(0, 2) == UINT64_C(0x6e789e6aa1b965f4));
    assert_true(infer_answer_seed(0, 3) == UINT64_C(0x06c45d188009454f));
    /* The finalizer maps 0 alone to 0. */
    assert_true(infer_answer_seed(-UINT64_C(0x9e3779b97f4a7c15), 1) == 1);
    for (uint32_t i = 1; i < 1000; i++) {
        assert_true(infer_answer_seed(7, i) != 0);
        assert_true(infer_answer_seed(7, i) == infer_answer_seed_of(7, i));
        assert_true(infer_answer_seed(7, i) != infer_answer_seed(7, i - 1));
        assert_true(infer_answer_seed(7, i) != infer_answer_seed(8, i));
    }
}

static uint32_t ask_several(struct infer_conn *c, const char *text, uint32_t n)
{
    struct infer_request r;
    uint32_t id;
    infer_request_default(&r);
    assert_true(r.n_answers == 0 && r.window == 0 && r.conversation == 0 && !r.keep && !r.wait);
    r.text = text;
    r.n_answers = n;
    assert_int_equal(infer_submit(c, &r, &id), 0);
    return id;
}

/* Answer a of n has `total` tokens and one more for each answer after it. */
static void read_several(struct infer_conn *c, uint32_t id, uint32_t n, uint32_t total)
{
    uint32_t sent[INFER_ANSWERS_MAX] = {0}, n_complete = 0, n_tokens = 0;
    bool complete[INFER_ANSWERS_MAX] = {false};
    struct infer_event e;
    for (;;) {
        assert_int_equal(infer_next(c, id, 10000, &e), 1);
        if (e.kind == INFER_EVENT_QUEUED)
            continue;
        if (e.kind == INFER_EVENT_DONE)
            break;
        char text[32];
        assert_true(e.answer < n && !complete[e.answer]);
        if (e.kind == INFER_EVENT_ANSWER) {
            assert_int_equal(sent[e.answer], total + n - 1 - e.answer);
            assert_int_equal(e.n_generated, sent[e.answer]);
            assert_true(e.error == 0 && e.finish == INFER_FINISH_STOP && e.request == id);
            assert_int_equal(e.decode_us, 100 + e.answer);
            complete[e.answer] = true;
            n_complete++;
            continue;
        }
        assert_int_equal(e.kind, INFER_EVENT_TOKEN);
        assert_int_equal(e.index, sent[e.answer]);
        snprintf(text, sizeof text, "a%u:%u ", e.answer, e.index);
        assert_string_equal(e.text, text);
        sent[e.answer]++;
        n_tokens++;
    }
    assert_int_equal(n_complete, n);
    assert_true(e.error == 0 && e.finish == INFER_FINISH_STOP && e.answer == 0);
    assert_int_equal(e.n_generated, n_tokens);
}

static void test_several_answers(void **state)
{
    struct fixture *f = *state;
    static const uint32_t n[] = {2, 3, INFER_ANSWERS_MAX};
    for (size_t i = 0; i < sizeof n / sizeof n[0]; i++)
        read_several(f->conn, ask_several(f->conn, "count:4", n[i]), n[i], 4);
    read_several(f->conn, ask_several(f->conn, "count:0", 2), 2, 0);
    read_all(f->conn, ask_several(f->conn, "third", 1),
             "answers 1 window 0 sinks 0 conversation 0");
}

/* Two requests at once: what comes of the one while the other is read stays with it. */
static void test_several_answers_in_a_stash(void **state)
{
    struct fixture *f = *state;
    uint32_t a = ask_several(f->conn, "count:40", 5);
    uint32_t b = ask_several(f->conn, "count:30", 7);
    read_several(f->conn, b, 7, 30);
    read_several(f->conn, a, 5, 40);
}

static void test_several_answers_cancelled(void **state)
{
    struct fixture *f = *state;
    struct infer_event e;
    uint32_t id = ask_several(f->conn, "hang", 4);
    assert_int_equal(infer_next(f->conn, id, 10000, &e), 1);
    assert_int_equal(infer_cancel(f->conn, id), 0);
    assert_int_equal(infer_next(f->conn, id, 10000, &e), 1);
    assert_true(e.kind == INFER_EVENT_DONE && e.finish == INFER_FINISH_CANCEL && e.error == 0);
}

/* ---- what the request says ------------------------------------------------------------------- */

static void expect_third(struct infer_conn *c, const struct infer_request *r, const char *text)
{
    uint32_t id;
    assert_int_equal(infer_submit(c, r, &id), 0);
    read_all(c, id, text);
}

static void test_the_fields_arrive(void **state)
{
    struct fixture *f = *state;
    struct infer_request r;
    struct infer_event e;
    struct infer_scores scores;
    uint32_t id;
    infer_request_default(&r);
    r.text = "third";
    expect_third(f->conn, &r, "answers 1 window 0 sinks 0 conversation 0");
    r.window = 256;
    r.wait = 2;
    expect_third(f->conn, &r, "answers 1 window 256 sinks 4 conversation 0 wait");
    r.sinks = 64;
    r.keep = 1;
    r.wait = 0;
    expect_third(f->conn, &r, "answers 1 window 256 sinks 64 conversation 0 keep");
    r.sinks = 65; /* the daemon says so, in one place for all clients */
    assert_int_equal(infer_submit(f->conn, &r, &id), 0);
    assert_int_equal(infer_next(f->conn, id, 10000, &e), 1);
    assert_true(e.kind == INFER_EVENT_DONE && e.error == INFER_E_BAD_PARAMETER);
    /* A score of the same request leaves aside what does not concern it. */
    r.n_answers = 9;
    r.conversation = 5;
    assert_int_equal(infer_score(f->conn, &r, 0, &scores), 0);
    infer_scores_free(&scores);
}

/* A program that was built with the second form of the struct: nothing beyond it is looked at. */
static void test_requests_of_the_second_form(void **state)
{
    struct fixture *f = *state;
    const uint32_t second_form = offsetof(struct infer_request, n_answers);
    struct infer_request r;
    uint32_t id;
    infer_request_default(&r);
    r.text = "fields";
    r.bytes = second_form;
    r.priority = INFER_PRIORITY_BATCH;
    struct infer_request *old = malloc(second_form);
    memcpy(old, &r, second_form);
    assert_int_equal(infer_submit(f->conn, old, &id), 0);
    read_all(f->conn, id, "priority 2 deadline 0");
    free(old);
    r.text = "third";
    r.n_answers = r.window = r.sinks = UINT32_MAX;
    r.keep = r.wait = -1;
    r.conversation = UINT64_MAX;
    expect_third(f->conn, &r, "answers 1 window 0 sinks 0 conversation 0");
}

/* A program that was linked before there were several answers: the library writes no more than its
 * structs hold. */
static void test_programs_of_the_second_form(void **state)
{
    struct fixture *f = *state;
    const char *folder = getenv("INFERD_BUILD");
    char path[4096];
    snprintf(path, sizeof path, "%s/libinferclient.so.0", folder != NULL ? folder : "build");
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    assert_non_null(library);
    union {
        void *symbol;
        void (*request_default)(struct infer_request *);
        int (*next)(struct infer_conn *, uint32_t, int, struct infer_event *);
        int (*submit)(struct infer_conn *, const struct infer_request *, uint32_t *);
        int (*connect)(const struct infer_connect_options *, struct infer_conn **);
        void (*close)(struct infer_conn *);
        void (*load_default)(struct infer_load *);
    } call;
    struct infer_connect_options o = {.socket = f->daemon->path};
    struct infer_conn *c;
    struct infer_request r;
    struct infer_event e;
    struct infer_load load;
    uint32_t id;
    memset(&load, 0xaa, sizeof load);
    call.symbol = dlvsym(library, "infer_load_default", "INFERCLIENT_3");
    assert_non_null(call.symbol);
    call.load_default(&load);
    assert_int_equal(load.bytes, offsetof(struct infer_load, device));
    assert_true(load.keep_alive_s == UINT32_MAX && load.progress_ctx == NULL);
    assert_true((uintptr_t)load.device == (uintptr_t)0xaaaaaaaaaaaaaaaa);
    call.symbol = dlvsym(library, "infer_connect", "INFERCLIENT_0");
    assert_int_equal(call.connect(&o, &c), 0);

    memset(&r, 0xaa, sizeof r);
    call.symbol = dlvsym(library, "infer_request_default", "INFERCLIENT_0");
    assert_non_null(call.symbol);
    call.request_default(&r);
    assert_int_equal(r.bytes, offsetof(struct infer_request, n_answers));
    assert_int_equal(r.sampling.max_tokens, 512);
    assert_true(r.n_answers == 0xaaaaaaaa && r.conversation == UINT64_C(0xaaaaaaaaaaaaaaaa));
    r.text = "third";
    call.symbol = dlvsym(library, "infer_submit", "INFERCLIENT_0");
    assert_int_equal(call.submit(c, &r, &id), 0);
    memset(&e, 0xaa, sizeof e);
    call.symbol = dlvsym(library, "infer_next", "INFERCLIENT_0");
    assert_non_null(call.symbol);
    do {
        assert_int_equal(call.next(c, id, 10000, &e), 1);
        if (e.kind == INFER_EVENT_TOKEN)
            assert_string_equal(e.text, "answers 1 window 0 sinks 0 conversation 0");
        assert_int_equal(e.answer, 0xaaaaaaaa);
    } while (e.kind != INFER_EVENT_DONE);
    assert_int_equal(e.error, 0);
    assert_int_equal(call.next(c, id, 0, NULL), -INFER_E_INVALID);
    call.symbol = dlsym(library, "infer_request_default"); /* today's is the default */
    call.request_default(&r);
    assert_int_equal(r.bytes, sizeof r);
    call.symbol = dlvsym(library, "infer_close", "INFERCLIENT_0");
    call.close(c);
    dlclose(library);
}

/* ---- conversations --------------------------------------------------------------------------- */

/* Reads to DONE; the id that QUEUED told. */
static uint64_t read_kept(struct infer_conn *c, uint32_t id, const char *text)
{
    struct infer_event e;
    uint64_t queued = 0;
    do {
        assert_int_equal(infer_next(c, id, 10000, &e), 1);
        if (e.kind == INFER_EVENT_QUEUED)
            queued = e.id;
        if (e.kind == INFER_EVENT_TOKEN)
            assert_string_equal(e.text, text);
    } while (e.kind != INFER_EVENT_DONE);
    assert_int_equal(e.error, 0);
    return queued;
}

static int error_of(struct infer_conn *c, const struct infer_request *r)
{
    struct infer_event e;
    uint32_t id;
    assert_int_equal(infer_submit(c, r, &id), 0);
    do
        assert_int_equal(infer_next(c, id, 10000, &e), 1);
    while (e.kind != INFER_EVENT_DONE);
    return e.error;
}

static void test_conversation(void **state)
{
    struct fixture *f = *state;
    struct infer_message m = {"user", "turns"};
    struct infer_request r;
    uint32_t id;
    infer_request_default(&r);
    r.messages = &m;
    r.n_messages = 1;
    r.keep = 1;
    assert_int_equal(infer_submit(f->conn, &r, &id), 0);
    uint64_t talk = read_kept(f->conn, id, "conversation 77 turn 0 of 1 messages");
    assert_true(talk == 77);
    r.keep = 0; /* implied */
    r.conversation = talk;
    struct infer_conn *other = join(f->daemon, 0, 0);
    assert_int_equal(infer_submit(other, &r, &id), 0);
    assert_true(read_kept(other, id, "conversation 77 turn 1 of 1 messages") == 78);
    infer_close(other);

    assert_int_equal(infer_forget(f->conn, 78), -INFER_E_NOT_FOUND);
    assert_non_null(strstr(infer_detail(f->conn), "no such id"));
    assert_int_equal(infer_forget(f->conn, 0), -INFER_E_NOT_FOUND);
    assert_int_equal(infer_forget(NULL, 77), -INFER_E_INVALID);
    m.content = "hang";
    assert_int_equal(infer_submit(f->conn, &r, &id), 0);
    assert_int_equal(infer_forget(f->conn, talk), -INFER_E_CONVERSATION);
    assert_int_equal(error_of(f->conn, &r), INFER_E_CONVERSATION);
    assert_int_equal(infer_cancel(f->conn, id), 0);
    assert_true(read_kept(f->conn, id, "") == 79);
    assert_int_equal(infer_forget(f->conn, talk), 0);
    assert_int_equal(infer_forget(f->conn, talk), -INFER_E_NOT_FOUND);
    assert_int_equal(error_of(f->conn, &r), INFER_E_NOT_FOUND);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_answer_seeds),
        WITH_DAEMON(test_several_answers),
        WITH_DAEMON(test_several_answers_in_a_stash),
        WITH_DAEMON(test_several_answers_cancelled),
        WITH_DAEMON(test_the_fields_arrive),
        WITH_DAEMON(test_requests_of_the_second_form),
        WITH_DAEMON(test_programs_of_the_second_form),
        WITH_DAEMON(test_conversation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
