/* test_queue.c: what those hear who wait: where they stand, in which order they start, that a
 * deadline or another process can end them; and what the status page says meanwhile.
 *
 * One sequence runs at a time, and each step takes as long as STEP says: whoever runs does so until
 * he is cancelled, so that every order below is the test's own doing. */
#include "integration/many.h"
#include "support/answer.h"

#include <sys/mman.h>

#define STEP "delay_us=20000"

static struct daemon d;
static struct infer_conn *conn, *other;

static int start(const char *policy)
{
    static const char model[] = "unix=" DAEMON_MODEL;
    const char *argv[12] = {"--model",           model, "--backend",  "null",
                            "--backend-options", STEP,  "--parallel", "1"};
    if (policy) {
        argv[8] = "--policy";
        argv[9] = policy;
    }
    daemon_start(&d, argv);
    conn = many_connect(&d);
    other = many_connect(&d);
    return conn && other ? 0 : -1;
}

static int setup(void **state)
{
    return start(NULL);
}

static int setup_clamped(void **state)
{
    return start("default:best=normal");
}

static int teardown(void **state)
{
    infer_close(other);
    infer_close(conn);
    daemon_stop(&d);
    daemon_done(&d);
    return 0;
}

/* What a failed test left running ends with its connection. */
static int renew(void **state)
{
    infer_close(conn);
    conn = many_connect(&d);
    if (!conn)
        return -1;
    answer_wait_sessions(other, 2);
    answer_wait_idle(other);
    return 0;
}

/* ---- steps of a test ------------------------------------------------------------------------- */

static uint32_t submit(uint32_t max_tokens, uint32_t priority, uint32_t deadline_ms)
{
    static uint64_t fresh = 1;
    struct infer_request r;
    int32_t ids[8];
    uint32_t id;
    many_ids(ids, 8, fresh++);
    many_request(&r, ids, 8, max_tokens);
    r.priority = priority;
    r.deadline_ms = deadline_ms;
    assert_int_equal(infer_submit(conn, &r, &id), 0);
    return id;
}

/* A request without an end that has begun to run. */
static uint32_t submit_running(struct many_answer *a)
{
    uint32_t id = submit(0, 0, 0);
    many_wait_token(conn, id, a);
    return id;
}

/* The next QUEUED event of a request. */
static void next_queued(uint32_t id, struct infer_event *e)
{
    assert_int_equal(infer_next(conn, id, 30000 * program_slowness(), e), 1);
    if (e->kind != INFER_EVENT_QUEUED)
        fail_msg("event %u, error %d, where QUEUED was awaited", e->kind, e->error);
}

static void wait_position(uint32_t id, uint32_t *last, uint32_t wanted)
{
    struct infer_event e;
    while (*last != wanted) {
        next_queued(id, &e);
        assert_true(e.position < *last);
        *last = e.position;
    }
}

static void finish_by_cancel(uint32_t id)
{
    struct many_answer a;
    assert_int_equal(infer_cancel(conn, id), 0);
    many_gather(conn, id, &a);
    assert_int_equal(a.error, 0);
    assert_int_equal(a.finish, INFER_FINISH_CANCEL);
}

/* ---- positions ------------------------------------------------------------------------------- */

static void test_positions_count_down(void **state)
{
    enum { N = 4 };
    static struct many_answer a;
    struct infer_event e;
    uint32_t id[N], position[N], running = submit_running(&a);
    for (uint32_t i = 0; i < N; i++) {
        id[i] = submit(0, 0, 0);
        next_queued(id[i], &e);
        assert_int_equal(e.position, i);
        assert_int_equal(e.n_prompt, 8);
        assert_true(e.id > a.id);
        position[i] = e.position;
    }
    for (uint32_t turn = 0; turn < N; turn++) {
        finish_by_cancel(running);
        running = id[turn];
        many_wait_token(conn, running, &a);
        for (uint32_t i = turn + 1; i < N; i++)
            wait_position(id[i], &position[i], i - turn - 1);
    }
    finish_by_cancel(running);
    many_assert_pages_back(conn);
}

/* Who leaves from the middle lets those behind move up, and nobody else. */
static void test_leaving_moves_those_behind(void **state)
{
    static struct many_answer a;
    struct infer_event e;
    uint32_t running = submit_running(&a), id[3], position[3];
    for (uint32_t i = 0; i < 3; i++) {
        id[i] = submit(0, 0, 0);
        next_queued(id[i], &e);
        position[i] = e.position;
    }
    finish_by_cancel(id[1]);
    wait_position(id[2], &position[2], 1);
    assert_int_equal(infer_next(conn, id[0], 0, &e), 0);
    finish_by_cancel(id[2]);
    finish_by_cancel(id[0]);
    finish_by_cancel(running);
    many_assert_pages_back(conn);
}

static void assert_starts_in_order(const uint32_t *id, uint32_t n)
{
    struct infer_event e;
    uint32_t next = 0, open = n;
    while (open > 0) {
        assert_int_equal(infer_next(conn, 0, 30000 * program_slowness(), &e), 1);
        if (e.kind == INFER_EVENT_DONE) {
            assert_int_equal(e.error, 0);
            open--;
        } else if (e.kind == INFER_EVENT_TOKEN && e.has_token && e.index == 0) {
            assert_true(next < n);
            assert_int_equal(e.request, id[next++]);
        }
    }
    assert_int_equal(next, n);
}

static void test_priorities_order_the_start(void **state)
{
    static struct many_answer a;
    uint32_t running = submit_running(&a), id[6];
    id[4] = submit(2, INFER_PRIORITY_BATCH, 0);
    id[2] = submit(2, INFER_PRIORITY_NORMAL, 0);
    id[5] = submit(2, INFER_PRIORITY_BATCH, 0);
    id[0] = submit(2, INFER_PRIORITY_INTERACTIVE, 0);
    id[3] = submit(2, INFER_PRIORITY_NORMAL, 0);
    id[1] = submit(2, INFER_PRIORITY_INTERACTIVE, 0);
    finish_by_cancel(running);
    assert_starts_in_order(id, 6);
}

/* Within a class and a user who is in a hurry goes first. */
static void test_deadlines_order_the_start(void **state)
{
    static struct many_answer a;
    uint32_t running = submit_running(&a), id[3];
    id[2] = submit(2, 0, 0);
    id[1] = submit(2, 0, 600000);
    id[0] = submit(2, 0, 300000);
    finish_by_cancel(running);
    assert_starts_in_order(id, 3);
}

/* With best=normal nobody is before others by calling himself interactive. */
static void test_policy_clamps_priority(void **state)
{
    static struct many_answer a;
    uint32_t running = submit_running(&a), id[3];
    id[0] = submit(2, INFER_PRIORITY_NORMAL, 0);
    id[2] = submit(2, INFER_PRIORITY_BATCH, 0);
    id[1] = submit(2, INFER_PRIORITY_INTERACTIVE, 0);
    finish_by_cancel(running);
    assert_starts_in_order(id, 3);
}

/* ---- deadlines ------------------------------------------------------------------------------- */

static void test_deadline_ends_a_waiting_request(void **state)
{
    static struct many_answer a;
    uint32_t running = submit_running(&a);
    uint32_t patient = submit(2, 0, 600000), hasty = submit(2, 0, 60);
    many_gather(conn, hasty, &a);
    assert_int_equal(a.error, INFER_E_DEADLINE);
    assert_int_equal(a.finish, INFER_FINISH_ERROR);
    assert_int_equal(a.n, 0);
    finish_by_cancel(running);
    many_gather(conn, patient, &a);
    many_assert_good(&a, 2);
    many_assert_pages_back(conn);
}

/* It says when to start, not when to be ready: 25 steps take much longer than the deadline. */
static void test_deadline_does_not_end_a_running_request(void **state)
{
    static struct many_answer a;
    uint32_t id = submit(25, 0, 400);
    many_wait_token(conn, id, &a);
    usleep(450000);
    many_gather(conn, id, &a);
    assert_int_equal(a.error, 0);
    assert_int_equal(a.finish, INFER_FINISH_LENGTH);
}

/* ---- ending by id ---------------------------------------------------------------------------- */

/* Not by its own client, who therefore hears of it as an error. */
static void assert_ended(const struct many_answer *a)
{
    assert_int_equal(a->error, INFER_E_CANCELLED);
    assert_int_equal(a->finish, INFER_FINISH_CANCEL);
}

static void test_end_own_from_another_connection(void **state)
{
    static struct many_answer a;
    struct infer_event e;
    uint32_t running = submit_running(&a), waiting = submit(0, 0, 0);
    uint64_t id = a.id;
    next_queued(waiting, &e);
    assert_int_equal(infer_end(other, e.id), 0);
    many_gather(conn, waiting, &a);
    assert_ended(&a);
    assert_int_equal(a.n, 0);

    assert_int_equal(infer_end(other, id), 0);
    many_gather(conn, running, &a);
    assert_ended(&a);
    assert_int_equal(infer_end(other, id), -INFER_E_NOT_FOUND);
    assert_int_equal(infer_end(other, e.id), -INFER_E_NOT_FOUND);
    assert_int_equal(infer_end(other, 0), -INFER_E_NOT_FOUND);
    assert_int_equal(infer_end(other, UINT64_MAX), -INFER_E_NOT_FOUND);
    many_assert_pages_back(conn);
}

struct foreign {
    uint64_t target, id;
    int code[2];
    char detail[2][INFER_DETAIL_MAX];
    struct many_answer answer;
};

static struct foreign *foreign_new(void)
{
    struct foreign *f =
        mmap(NULL, sizeof *f, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(f != MAP_FAILED);
    many_let_in(&d);
    return f;
}

static int try_to_end(void *arg)
{
    struct foreign *f = arg;
    struct infer_conn *c = many_connect(&d);
    if (!c)
        return 1;
    for (int i = 0; i < 2; i++) {
        f->code[i] = infer_end(c, i == 0 ? f->target : UINT64_MAX);
        snprintf(f->detail[i], sizeof f->detail[i], "%s", infer_detail(c));
    }
    infer_close(c);
    return 0;
}

static void test_end_of_a_foreign_request(void **state)
{
    static struct many_answer a;
    struct infer_event e;
    MANY_NEEDS_ROOT();
    struct foreign *f = foreign_new();
    uint32_t running = submit_running(&a);
    f->target = a.id;
    many_join(many_start(MANY_ALICE, try_to_end, f));
    assert_int_equal(f->code[0], -INFER_E_NOT_FOUND);
    assert_int_equal(f->code[1], -INFER_E_NOT_FOUND); /* no such id at all: the same words */
    assert_string_equal(f->detail[0], f->detail[1]);
    do /* it goes on */
        assert_int_equal(infer_next(conn, running, 30000, &e), 1);
    while (e.kind != INFER_EVENT_TOKEN || e.index < 3);
    finish_by_cancel(running);
    munmap(f, sizeof *f);
}

static int ask_and_tell(void *arg)
{
    struct foreign *f = arg;
    struct infer_request r;
    struct infer_event e;
    int32_t token = 300;
    uint32_t request;
    struct infer_conn *c = many_connect(&d);
    if (!c)
        return 1;
    many_request(&r, &token, 1, 0);
    if (infer_submit(c, &r, &request) != 0 || infer_next(c, request, 30000, &e) != 1 ||
        e.kind != INFER_EVENT_QUEUED)
        return 2;
    __atomic_store_n(&f->id, e.id, __ATOMIC_RELEASE);
    many_gather(c, request, &f->answer);
    infer_close(c);
    return 0;
}

static void test_root_ends_anybodys(void **state)
{
    MANY_NEEDS_ROOT();
    struct foreign *f = foreign_new();
    pid_t pid = many_start(MANY_ALICE, ask_and_tell, f);
    while (__atomic_load_n(&f->id, __ATOMIC_ACQUIRE) == 0) {
        int status;
        if (waitpid(pid, &status, WNOHANG) == pid)
            fail_msg("the client process ended with %#x", (unsigned)status);
        usleep(1000);
    }
    assert_int_equal(infer_end(conn, f->id), 0);
    many_join(pid);
    assert_ended(&f->answer);
    many_assert_pages_back(conn);
    munmap(f, sizeof *f);
}

/* ---- the status page ------------------------------------------------------------------------- */

static const struct infer_page_sequence *find(const struct infer_page *page, uint64_t id)
{
    for (uint32_t i = 0; i < page->n_sequences; i++)
        if (page->sequences[i].id == id)
            return &page->sequences[i];
    fail_msg("request %llu is not on the status page", (unsigned long long)id);
    return NULL;
}

/* Reads until the page shows so many sequences, one running if there are any. */
static void read_page(struct infer_page *page, uint32_t n_sequences)
{
    uint64_t end = test_clock_us() + 20000000u * (unsigned)program_slowness(), written = 0;
    for (;;) {
        assert_int_equal(infer_read_page(other, page), 0);
        assert_true(page->written_us >= written);
        written = page->written_us;
        if (page->n_sequences == n_sequences && page->status.n_running == (n_sequences > 0))
            return;
        if (test_clock_us() > end)
            fail_msg("the status page shows %u sequences", page->n_sequences);
        usleep(5000);
    }
}

static void assert_waits(const struct infer_page *page, const struct infer_event *queued,
                         uint32_t priority)
{
    const struct infer_page_sequence *s = find(page, queued->id);
    assert_int_equal(s->state, INFER_SEQUENCE_WAITING);
    assert_int_equal(s->position, queued->position);
    assert_int_equal(s->priority, priority);
    assert_int_equal(s->n_prompt, 8);
    assert_int_equal(s->n_cached, 0);
    assert_int_equal(s->n_tokens, 0);
    assert_int_equal(s->n_pages, 0);
    assert_int_equal(s->uid, getuid());
}

static void test_status_page_shows_what_runs(void **state)
{
    static struct many_answer a;
    static struct infer_page page;
    struct infer_event queued[2];
    uint32_t running = submit_running(&a);
    uint32_t first = submit(0, INFER_PRIORITY_NORMAL, 0),
             second = submit(0, INFER_PRIORITY_BATCH, 0);
    next_queued(first, &queued[0]);
    next_queued(second, &queued[1]);
    read_page(&page, 3);
    const struct infer_page_sequence *s = find(&page, a.id);
    assert_int_equal(s->state, INFER_SEQUENCE_DECODE);
    assert_int_equal(s->uid, getuid());
    assert_int_equal(s->pid, getpid());
    assert_int_equal(s->n_prompt, 8);
    assert_true(s->n_tokens > 0);
    /* The token drawn last is not in the state yet. */
    assert_int_equal(s->n_cached, s->n_prompt + s->n_tokens - 1);
    assert_int_equal(s->n_pages, (s->n_cached + 15) / 16);
    assert_string_equal(s->client, "test_queue");
    assert_waits(&page, &queued[0], INFER_PRIORITY_NORMAL);
    assert_waits(&page, &queued[1], INFER_PRIORITY_BATCH);
    assert_true(find(&page, queued[0].id)->age_us < s->age_us);
    assert_int_equal(page.status.n_running, 1);
    assert_int_equal(page.status.n_waiting, 2);
    assert_int_equal(page.status.n_pages_used, s->n_pages);
    assert_int_equal(page.status.pid, d.pid);
    assert_int_equal(page.status.n_sessions, 2);

    uint32_t seen = 0;
    for (uint32_t i = 0; i < page.n_users; i++) {
        if (page.users[i].uid != getuid())
            continue;
        assert_int_equal(page.users[i].n_running, 1);
        assert_int_equal(page.users[i].n_waiting, 2);
        assert_int_equal(page.users[i].weight, 100);
        seen++;
    }
    assert_int_equal(seen, 1);
    finish_by_cancel(second);
    finish_by_cancel(first);
    finish_by_cancel(running);
}

/* Of an idle daemon the page says so, and agrees with what the daemon answers. */
static void test_status_page_of_an_idle_daemon(void **state)
{
    static struct many_answer a;
    static struct infer_page page;
    struct infer_status s;
    finish_by_cancel(submit_running(&a));
    many_assert_pages_back(conn);
    read_page(&page, 0);
    assert_int_equal(infer_status(conn, &s), 0);
    assert_int_equal(page.status.n_waiting, 0);
    assert_int_equal(page.status.n_pages_used, 0);
    assert_int_equal(page.status.n_pages, s.n_pages);
    assert_int_equal(page.status.n_tokens, s.n_tokens);
    assert_int_equal(page.status.n_steps, s.n_steps);
    assert_string_equal(page.status.version, s.version);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_positions_count_down, renew),
        cmocka_unit_test_setup(test_leaving_moves_those_behind, renew),
        cmocka_unit_test_setup(test_priorities_order_the_start, renew),
        cmocka_unit_test_setup(test_deadlines_order_the_start, renew),
        cmocka_unit_test_setup(test_deadline_ends_a_waiting_request, renew),
        cmocka_unit_test_setup(test_deadline_does_not_end_a_running_request, renew),
        cmocka_unit_test_setup(test_end_own_from_another_connection, renew),
        cmocka_unit_test_setup(test_end_of_a_foreign_request, renew),
        cmocka_unit_test_setup(test_root_ends_anybodys, renew),
        cmocka_unit_test_setup(test_status_page_shows_what_runs, renew),
        cmocka_unit_test_setup(test_status_page_of_an_idle_daemon, renew),
    };
    const struct CMUnitTest clamped[] = {
        cmocka_unit_test_setup(test_policy_clamps_priority, renew),
    };
    int failed = cmocka_run_group_tests_name("queue", tests, setup, teardown);
    return failed + cmocka_run_group_tests_name("clamped", clamped, setup_clamped, teardown);
}
