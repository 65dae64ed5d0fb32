/* test_queue.c: what libinferclient says and hears of the queue: priorities and deadlines, places
 * that move, the end of requests by their daemon-wide id, and the status page. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "fixture.h"

#include "base/clock.h"

static void test_priority_and_deadline_arrive(void **state)
{
    struct fixture *f = *state;
    struct infer_request r;
    uint32_t id;
    infer_request_default(&r);
    assert_true(r.priority == INFER_PRIORITY_NORMAL && r.deadline_ms == 0);
    r.text = "fields";
    assert_int_equal(infer_submit(f->conn, &r, &id), 0);
    read_all(f->conn, id, "priority 0 deadline 0");
    r.priority = INFER_PRIORITY_BATCH;
    r.deadline_ms = 1500;
    assert_int_equal(infer_submit(f->conn, &r, &id), 0);
    read_all(f->conn, id, "priority 2 deadline 1500");
}

/* A program that was built with the first form of the struct: nothing beyond it is looked at (the
 * sanitizer sees to that), and a newer one may say more than this library knows. */
static void test_requests_of_other_ages(void **state)
{
    struct fixture *f = *state;
    const uint32_t first_form = offsetof(struct infer_request, priority);
    struct infer_request r;
    struct infer_scores scores;
    uint32_t id;
    infer_request_default(&r);
    r.text = "fields";
    r.bytes = first_form;
    struct infer_request *old = malloc(first_form);
    memcpy(old, &r, first_form);
    assert_int_equal(infer_submit(f->conn, old, &id), 0);
    read_all(f->conn, id, "priority 0 deadline 0");
    assert_int_equal(infer_score(f->conn, old, 0, &scores), 0);
    infer_scores_free(&scores);
    free(old);
    struct {
        struct infer_request r;
        char more[64];
    } newer = {.r = r};
    newer.r.bytes = sizeof newer;
    newer.r.deadline_ms = 7;
    assert_int_equal(infer_submit(f->conn, &newer.r, &id), 0);
    read_all(f->conn, id, "priority 0 deadline 7");
    r.bytes = first_form - 1;
    assert_int_equal(infer_submit(f->conn, &r, &id), -INFER_E_INVALID);
    assert_int_equal(infer_score(f->conn, &r, 0, &scores), -INFER_E_INVALID);
}

static void test_queued_again_as_it_moves(void **state)
{
    struct fixture *f = *state;
    uint32_t id = ask(f->conn, "queue:2");
    struct infer_event e;
    for (uint32_t position = 3; position-- > 0;) {
        assert_int_equal(infer_next(f->conn, id, 10000, &e), 1);
        assert_int_equal(e.kind, INFER_EVENT_QUEUED);
        assert_int_equal(e.position, position);
        assert_true(e.start_us == position * 1500000ull && e.id == 77 && e.n_prompt == 7);
    }
    read_all(f->conn, id, "queue:2");
}

/* The second QUEUED comes while the prompt's ids are being gathered. */
static void test_prompt_event_of_a_waiting_request(void **state)
{
    struct fixture *f = *state;
    struct infer_request r;
    struct infer_event e;
    uint32_t id;
    infer_request_default(&r);
    r.text = "queue:1";
    r.want_prompt = 1;
    assert_int_equal(infer_submit(f->conn, &r, &id), 0);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(infer_next(f->conn, id, 10000, &e), 1);
        assert_int_equal(e.kind, INFER_EVENT_QUEUED);
    }
    assert_int_equal(infer_next(f->conn, id, 10000, &e), 1);
    assert_int_equal(e.kind, INFER_EVENT_PROMPT);
    assert_int_equal(e.n_tokens, 7);
    read_all(f->conn, id, "queue:1");
}

static void test_end(void **state)
{
    struct fixture *f = *state;
    struct infer_conn *other = join(f->daemon, 0, 0);
    uint32_t id = ask(f->conn, "hang");
    struct infer_event e;
    assert_int_equal(infer_next(f->conn, id, 10000, &e), 1);
    assert_int_equal(e.kind, INFER_EVENT_QUEUED);
    assert_int_equal(infer_end(other, e.id + 1), -INFER_E_NOT_FOUND);
    assert_int_equal(infer_end(other, 0), -INFER_E_NOT_FOUND);
    assert_int_equal(infer_end(other, e.id), 0); /* of another connection */
    assert_int_equal(infer_next(f->conn, id, 10000, &e), 1);
    assert_int_equal(e.kind, INFER_EVENT_DONE);
    assert_int_equal(e.finish, INFER_FINISH_CANCEL);
    assert_int_equal(infer_end(NULL, 1), -INFER_E_INVALID);
    infer_close(other);
}

static void test_read_page(void **state)
{
    static struct infer_page page, old;
    struct fixture *f = *state;
    struct infer_event e;
    uint32_t id = ask(f->conn, "hang");
    int n_requests = f->daemon->n_requests;
    assert_int_equal(infer_next(f->conn, id, 10000, &e), 1);
    n_requests = f->daemon->n_requests;
    uint64_t until = clock_us() + 10000000;
    do
        assert_int_equal(infer_read_page(f->conn, &page), 0);
    while (page.n_sequences == 0 && clock_us() < until);
    assert_int_equal(page.n_sequences, 1);
    assert_int_equal(page.status.pid, 42);
    assert_true(page.sequences[0].id == e.id && page.sequences[0].uid == getuid());
    assert_int_equal(page.sequences[0].pid, getpid());
    assert_int_equal(page.sequences[0].state, INFER_SEQUENCE_DECODE);
    assert_int_equal(page.n_users, 1);
    assert_int_equal(f->daemon->n_requests, n_requests); /* nobody was asked */
    do
        assert_int_equal(infer_read_page(f->conn, &old), 0);
    while (old.written_us == page.written_us && clock_us() < until);
    assert_true(old.written_us > page.written_us);
    assert_int_equal(infer_read_page(NULL, &page), -INFER_E_INVALID);
    assert_int_equal(infer_read_page(f->conn, NULL), -INFER_E_INVALID);
}

/* A page of a daemon that is gone is not shown; the new daemon's is. */
static void test_read_page_after_a_restart(void **state)
{
    static struct infer_page page;
    struct fixture *f = *state;
    assert_int_equal(infer_read_page(f->conn, &page), 0);
    fake_kill(f->daemon);
    page.n_sequences = 12345;
    assert_int_equal(infer_read_page(f->conn, &page), -INFER_E_DAEMON_ABSENT);
    assert_int_equal(page.n_sequences, 12345);
    assert_true(infer_detail(f->conn)[0] != '\0');
    fake_start(f->daemon);
    assert_int_equal(infer_read_page(f->conn, &page), 0);
}

static void *read_pages(void *arg)
{
    struct infer_page page;
    for (int i = 0; i < 300; i++)
        if (infer_read_page(arg, &page) != 0)
            return arg;
    return NULL;
}

static void test_pages_beside_a_stream(void **state)
{
    struct fixture *f = *state;
    pthread_t threads[2];
    void *failed;
    for (int i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, read_pages, f->conn), 0);
    assert_int_equal(read_all(f->conn, ask(f->conn, "count:20000"), NULL), 20000);
    for (int i = 0; i < 2; i++) {
        pthread_join(threads[i], &failed);
        assert_null(failed);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_DAEMON(test_priority_and_deadline_arrive),
        WITH_DAEMON(test_requests_of_other_ages),
        WITH_DAEMON(test_queued_again_as_it_moves),
        WITH_DAEMON(test_prompt_event_of_a_waiting_request),
        WITH_DAEMON(test_end),
        WITH_DAEMON(test_read_page),
        WITH_DAEMON(test_read_page_after_a_restart),
        WITH_DAEMON(test_pages_beside_a_stream),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
