/* test_conversations.c: conversations that the daemon keeps: what is continued is what would have
 * been sent again, by their owner alone, for as long as they are kept. */
#include "integration/many.h"

#include <sys/mman.h>

enum { PAGE = 16 };

static struct daemon d;
static struct infer_conn *conn;
static uint64_t fresh = 1; /* seed of the next prompt that nobody asked before */

static int start(const char *const *arguments)
{
    daemon_start(&d, arguments);
    conn = many_connect(&d);
    return conn ? 0 : -1;
}

static int setup_null(void **state)
{
    return start((const char *[]){"--model", "unix=" DAEMON_MODEL, "--backend", "null",
                                  "--backend-options", "check_rows=1", "--conversation-idle", "1s",
                                  NULL});
}

static int setup_plain(void **state)
{
    return start((const char *[]){"--model", "unix=" DAEMON_MODEL, "--backend", "null",
                                  "--backend-options", "check_rows=1", NULL});
}

static int setup_slow(void **state)
{
    return start((const char *[]){"--model", "unix=" DAEMON_MODEL, "--backend", "null",
                                  "--backend-options", "check_rows=1,delay_us=2000", NULL});
}

static int setup_cpu(void **state)
{
    return start((const char *[]){"--model", "unix=" DAEMON_MODEL, "--backend", "cpu", NULL});
}

static int teardown(void **state)
{
    infer_close(conn);
    daemon_stop(&d);
    daemon_done(&d);
    return 0;
}

/* Asks; the answer's id is that of its conversation. */
static void ask(struct infer_conn *c, const int32_t *ids, size_t n, uint64_t conversation,
                struct many_answer *ret)
{
    struct infer_request r;
    many_request(&r, ids, n, 30);
    r.sampling.temperature = 1.0f;
    r.keep = 1;
    r.conversation = conversation;
    many_get(c, &r, ret);
}

static void ask_well(struct infer_conn *c, const int32_t *ids, size_t n, uint64_t conversation,
                     struct many_answer *ret)
{
    ask(c, ids, n, conversation, ret);
    if (ret->error != 0)
        fail_msg("%s: %s", infer_error_name(ret->error), ret->detail);
    if (conversation != 0)
        assert_int_equal(ret->id, conversation);
}

static void assert_same(const struct many_answer *a, const struct many_answer *b)
{
    assert_int_equal(a->n, b->n);
    assert_memory_equal(a->ids, b->ids, a->n * sizeof *a->ids);
}

/* Each turn is what a request with everything so far would be, but for what it costs. */
static void a_conversation_goes_on(void **state)
{
    static struct many_answer a, whole;
    int32_t ids[512], turn[10];
    size_t n = 40;
    uint64_t id = 0;
    many_ids(ids, n, fresh++);
    ask_well(conn, ids, n, 0, &a);
    id = a.id;
    for (int i = 0; i < 3; i++) {
        struct infer_conn *other = many_connect(&d); /* over any connection */
        size_t computed = n + a.n - 1;
        memcpy(ids + n, a.ids, a.n * sizeof *ids);
        n += a.n;
        many_ids(turn, 10, fresh++);
        memcpy(ids + n, turn, sizeof turn);
        n += 10;
        ask_well(other, turn, 10, id, &a);
        assert_int_equal(a.n_prompt, n);
        assert_int_equal(a.n_cached, computed / PAGE * PAGE);
        infer_close(other);
        struct infer_request r;
        many_request(&r, ids, n, 30);
        r.sampling.temperature = 1.0f;
        many_get(conn, &r, &whole);
        assert_same(&whole, &a);
    }
    assert_int_equal(infer_forget(conn, id), 0);
    ask(conn, turn, 10, id, &a);
    assert_int_equal(a.error, INFER_E_NOT_FOUND);
    assert_int_equal(infer_forget(conn, id), -INFER_E_NOT_FOUND);
    many_assert_pages_back(conn);
}

static void unknown_ones(void **state)
{
    static struct many_answer a;
    int32_t ids[10];
    many_ids(ids, 10, fresh++);
    ask(conn, ids, 10, 1u << 30, &a);
    assert_int_equal(a.error, INFER_E_NOT_FOUND);
    assert_int_equal(infer_forget(conn, 1u << 30), -INFER_E_NOT_FOUND);
    /* A request that kept nothing is none. */
    struct infer_request r;
    many_request(&r, ids, 10, 2);
    many_get(conn, &r, &a);
    assert_int_equal(a.error, 0);
    assert_int_equal(infer_forget(conn, a.id), -INFER_E_NOT_FOUND);
}

static void idle_ones_go(void **state)
{
    static struct many_answer a;
    int32_t ids[10];
    uint64_t id;
    many_ids(ids, 10, fresh++);
    ask_well(conn, ids, 10, 0, &a);
    id = a.id;
    ask_well(conn, ids, 10, id, &a);
    usleep(1300000);
    ask(conn, ids, 10, id, &a);
    assert_int_equal(a.error, INFER_E_NOT_FOUND);
}

/* The user's oldest makes room, and memory has a bound. */
static void no_more_than_the_bound(void **state)
{
    static struct many_answer a, first, second;
    struct infer_status s;
    int32_t ids[10];
    many_ids(ids, 10, fresh++);
    ask_well(conn, ids, 10, 0, &first);
    ask_well(conn, ids, 10, 0, &second);
    for (uint32_t i = 0; i + 1 < INFER_CONVERSATIONS_USER_MAX; i++)
        ask_well(conn, ids, 10, 0, &a);
    assert_int_equal(infer_status(conn, &s), 0);
    assert_int_equal(s.n_conversations, INFER_CONVERSATIONS_USER_MAX);
    ask(conn, ids, 10, first.id, &a);
    assert_int_equal(a.error, INFER_E_NOT_FOUND);
    ask_well(conn, ids, 10, second.id, &a);
}

/* Its window slid: the state itself is kept, and the tokens go on as in one answer. */
static void a_window_goes_on(void **state)
{
    static struct many_answer one, a;
    struct infer_request r;
    struct infer_status s;
    int32_t ids[50];
    uint64_t id;
    many_ids(ids, 50, fresh++);
    many_request(&r, ids, 50, 200);
    r.window = 128;
    r.keep = 1;
    r.sampling.temperature = 1.0f;
    many_get(conn, &r, &a);
    assert_int_equal(a.error, 0);
    id = a.id;
    assert_int_equal(infer_status(conn, &s), 0);
    assert_in_range(s.n_pages_used, 1, 128 / PAGE);
    for (int i = 0; i < 2; i++) {
        /* Twice: once as it is, once after a request that could not start left it as it was. */
        many_request(&r, ids, 5, 60);
        r.window = i == 0 ? 256 : 128;
        r.keep = 1;
        r.conversation = id;
        many_get(conn, &r, &one);
        assert_int_equal(one.error, i == 0 ? INFER_E_BAD_PARAMETER : 0);
    }
    assert_int_equal(one.n, 60);
    assert_int_equal(one.n_cached, 249);
    assert_int_equal(one.n_prompt, 255);
    assert_int_equal(infer_forget(conn, id), 0);
    many_assert_pages_back(conn);
}

static void one_request_at_a_time(void **state)
{
    static struct many_answer a;
    struct infer_request r;
    int32_t ids[20];
    uint32_t running;
    uint64_t id;
    many_ids(ids, 20, fresh++);
    ask_well(conn, ids, 20, 0, &a);
    id = a.id;
    many_request(&r, ids, 20, 0);
    r.conversation = id;
    assert_int_equal(infer_submit(conn, &r, &running), 0);
    static struct many_answer b;
    many_wait_token(conn, running, &b);
    ask(conn, ids, 20, id, &a);
    assert_int_equal(a.error, INFER_E_CONVERSATION);
    assert_int_equal(infer_forget(conn, id), -INFER_E_CONVERSATION);
    /* A cancelled answer stays as far as it came. */
    assert_int_equal(infer_cancel(conn, running), 0);
    many_gather(conn, running, &b);
    assert_int_equal(b.finish, INFER_FINISH_CANCEL);
    ask_well(conn, ids, 5, id, &a);
    assert_true(a.n_prompt > 20 + 30 + 20 + 5);
}

/* What fails before its first token leaves the conversation as it was. */
static void an_error_changes_nothing(void **state)
{
    static struct many_answer a, b;
    struct infer_request r;
    int32_t ids[20], wrong[3] = {5, 1 << 28, 5};
    many_ids(ids, 20, fresh++);
    ask_well(conn, ids, 20, 0, &a);
    ask(conn, wrong, 3, a.id, &b);
    assert_int_equal(b.error, INFER_E_BAD_TOKEN);
    many_request(&r, ids, 20, 10);
    r.conversation = a.id;
    r.model = "another";
    many_get(conn, &r, &b);
    assert_int_equal(b.error, INFER_E_BAD_PARAMETER);
    uint32_t id;
    r.model = "unix";
    assert_int_equal(infer_submit(conn, &r, &id), 0);
    infer_cancel(conn, id);
    many_gather(conn, id, &b);
    uint32_t came = b.n;
    ask_well(conn, ids, 5, a.id, &b);
    assert_int_equal(b.n_prompt, came > 0 ? 20 + 30 + 20 + came + 5 : 20 + 30 + 5);
}

/* A killed client's conversation is still its user's. */
static int leave(void *arg)
{
    struct infer_request r;
    struct infer_event e;
    int32_t ids[20];
    uint32_t request;
    struct infer_conn *c = many_connect(&d);
    many_ids(ids, 20, 99);
    many_request(&r, ids, 20, 0);
    r.keep = 1;
    if (!c || infer_submit(c, &r, &request) < 0)
        return 1;
    while (infer_next(c, request, 30000 * program_slowness(), &e) == 1) {
        if (e.kind == INFER_EVENT_QUEUED)
            *(uint64_t *)arg = e.id;
        if (e.kind == INFER_EVENT_TOKEN && e.index == 5)
            _exit(0);
    }
    return 1;
}

static void a_dead_client_s_conversation(void **state)
{
    static struct many_answer a;
    int32_t ids[5];
    uint64_t *id = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(id != MAP_FAILED);
    many_join(many_start(getuid(), leave, id));
    many_ids(ids, 5, fresh++);
    uint64_t end = test_clock_us() + 10000000u;
    do {
        ask(conn, ids, 5, *id, &a);
    } while (a.error == INFER_E_CONVERSATION && test_clock_us() < end);
    assert_int_equal(a.error, 0);
    assert_true(a.n_prompt >= 20 + 6 + 5);
    munmap(id, 4096);
}

struct foreign {
    uint64_t id;
    struct many_answer known, unknown;
    int forget, forget_unknown;
};

static int pry(void *arg)
{
    struct foreign *f = arg;
    int32_t ids[5];
    struct infer_conn *c = many_connect(&d);
    if (!c)
        return 1;
    many_ids(ids, 5, 1234);
    ask(c, ids, 5, f->id, &f->known);
    ask(c, ids, 5, f->id + 1000000, &f->unknown);
    f->forget = infer_forget(c, f->id);
    f->forget_unknown = infer_forget(c, f->id + 1000000);
    infer_close(c);
    return 0;
}

static void another_user_finds_nothing(void **state)
{
    static struct many_answer a;
    int32_t ids[20];
    MANY_NEEDS_ROOT();
    struct foreign *f =
        mmap(NULL, sizeof *f, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(f != MAP_FAILED);
    many_let_in(&d);
    many_ids(ids, 20, fresh++);
    ask_well(conn, ids, 20, 0, &a);
    f->id = a.id;
    many_join(many_start(MANY_ALICE, pry, f));
    assert_int_equal(f->known.error, INFER_E_NOT_FOUND);
    assert_int_equal(f->unknown.error, INFER_E_NOT_FOUND);
    assert_string_equal(f->known.detail, f->unknown.detail);
    assert_int_equal(f->forget, -INFER_E_NOT_FOUND);
    assert_int_equal(f->forget_unknown, -INFER_E_NOT_FOUND);
    ask_well(conn, ids, 5, f->id, &a);
    munmap(f, sizeof *f);
}

/* New messages go on as if the whole chat had been rendered. */
static void a_chat_goes_on(void **state)
{
    static const struct infer_message first = {"user", "What is tar?"}, then = {"user", "And zip?"};
    static struct many_answer a, b, whole;
    char text[4096];
    size_t n = 0;
    struct infer_request r;
    uint32_t id;
    infer_request_default(&r);
    r.messages = &first;
    r.n_messages = 1;
    r.sampling.temperature = 0;
    r.sampling.max_tokens = 60;
    r.keep = 1;
    assert_int_equal(infer_submit(conn, &r, &id), 0);
    memset(&a, 0, sizeof a);
    for (;;) {
        struct infer_event e;
        assert_int_equal(infer_next(conn, id, 30000 * program_slowness(), &e), 1);
        if (e.kind == INFER_EVENT_TOKEN && n + e.text_bytes < sizeof text) {
            memcpy(text + n, e.text, e.text_bytes);
            n += e.text_bytes;
        }
        if (many_take(&a, &e))
            break;
    }
    text[n] = '\0';
    assert_int_equal(a.error, 0);
    r.messages = &then;
    r.conversation = a.id;
    many_get(conn, &r, &b);
    assert_int_equal(b.error, 0);
    assert_true(b.n_cached >= (a.n_prompt + a.n - 1) / PAGE * PAGE);
    const struct infer_message all[] = {first, {"assistant", text}, then};
    r.messages = all;
    r.n_messages = 3;
    r.conversation = 0;
    r.keep = 0;
    many_get(conn, &r, &whole);
    assert_int_equal(whole.error, 0);
    assert_int_equal(whole.n_prompt, b.n_prompt);
    assert_same(&whole, &b);
}

int main(void)
{
    const struct CMUnitTest on_null[] = {
        cmocka_unit_test(a_conversation_goes_on),
        cmocka_unit_test(unknown_ones),
        cmocka_unit_test(idle_ones_go),
        cmocka_unit_test(a_window_goes_on),
        cmocka_unit_test(another_user_finds_nothing),
    };
    const struct CMUnitTest on_plain[] = {
        cmocka_unit_test(no_more_than_the_bound),
    };
    const struct CMUnitTest on_slow[] = {
        cmocka_unit_test(one_request_at_a_time),
        cmocka_unit_test(an_error_changes_nothing),
        cmocka_unit_test(a_dead_client_s_conversation),
    };
    const struct CMUnitTest on_cpu[] = {
        cmocka_unit_test(a_conversation_goes_on),
        cmocka_unit_test(a_chat_goes_on),
        cmocka_unit_test(a_window_goes_on),
    };
    int failed = cmocka_run_group_tests_name("null", on_null, setup_null, teardown);
    failed += cmocka_run_group_tests_name("plain", on_plain, setup_plain, teardown);
    failed += cmocka_run_group_tests_name("slow", on_slow, setup_slow, teardown);
    return failed + cmocka_run_group_tests_name("cpu", on_cpu, setup_cpu, teardown);
}
