/* test_session.c: the daemon's end of the rings, with honest and hostile clients. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "wire.h"

#include "base/clock.h"
#include "proto/admit.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <unistd.h>

#define BIG ((uint32_t)sizeof(struct infer_abi_submit))

static struct infer_abi_submit plain_submit(uint32_t input_bytes)
{
    struct infer_abi_submit s;
    memset(&s, 0, sizeof s);
    s.op = INFER_ABI_GENERATE;
    s.input = INFER_ABI_TEXT;
    s.input_bytes = input_bytes;
    infer_sampling_default(&s.sampling);
    return s;
}

static void test_requests_wrap_at_every_offset(void **state)
{
    struct wire w;
    struct session_request r;
    uint8_t payload[600];
    wire_open(&w, INFER_REQUEST_RING_MIN, INFER_TOKEN_RING_MIN);
    for (size_t i = 0; i < sizeof payload; i++)
        payload[i] = (uint8_t)(i * 31);
    for (uint32_t round = 0; round < 3000; round++) { /* lengths of 0..599 at all phases */
        uint32_t n = round * 7 % 600;
        struct infer_abi_submit s = plain_submit(n);
        uint32_t first = n < 300 ? n : 300;
        wire_submit(&w, round + 1, &s, BIG, payload, first);
        if (n > first)
            wire_put(&w, INFER_ABI_DATA, round + 1, 16 + n - first, payload + first, n - first);
        wire_publish(&w);
        assert_true(session_pending(w.session));
        assert_int_equal(session_poll(w.session, &r), 1);
        assert_int_equal(r.kind, INFER_ABI_SUBMIT);
        assert_int_equal(r.request, round + 1);
        assert_int_equal(r.error, 0);
        assert_int_equal(r.payload_bytes, n);
        if (n > 0)
            assert_memory_equal(r.payload, payload, n);
        free(r.payload);
        assert_false(session_pending(w.session));
        assert_int_equal(session_poll(w.session, &r), 0);
        assert_int_equal(w.daemon->request_head, w.tail);
    }
    wire_close(&w);
}

static void test_events_wrap_at_every_offset(void **state)
{
    struct wire w;
    uint8_t record[INFER_RECORD_MAX], data[INFER_RECORD_MAX];
    wire_open(&w, INFER_REQUEST_RING_MIN, INFER_TOKEN_RING_MIN);
    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (uint8_t)(i * 17);
    for (uint32_t i = 0; i < 5000; i++) {
        uint32_t n = i % (SESSION_RESULT_MAX + 1);
        assert_int_equal(session_put_result(w.session, 5, INFER_ABI_BYTES, i, data, n), 0);
        assert_int_equal(wire_take(&w, record), 0); /* not published yet */
        session_publish(w.session);
        assert_int_equal(wire_take(&w, record), sizeof(struct infer_abi_result_head) + n);
        struct infer_abi_result_head head;
        memcpy(&head, record, sizeof head);
        assert_int_equal(head.head.request, 5);
        assert_int_equal(head.offset, i);
        assert_memory_equal(record + sizeof head, data, n);
    }
    wire_close(&w);
}

static void test_every_event(void **state)
{
    struct wire w;
    union {
        uint8_t bytes[INFER_RECORD_MAX];
        struct infer_abi_queued queued;
        struct infer_abi_token token;
        struct infer_abi_done done;
    } e;
    struct infer_logprob top[2] = {{7, -1}, {8, -2}}, *got;
    struct infer_abi_done done = {.error = INFER_E_BACKEND, .finish = 5, .decode_us = 99};
    char text[INFER_TOKEN_TEXT_MAX + 1];
    memset(text, 'x', sizeof text);
    wire_open(&w, INFER_REQUEST_RING_MIN, INFER_TOKEN_RING_MIN);
    assert_int_equal(session_put_queued(w.session, 9, 1ull << 40, 3, 2, 1ull << 33), 0);
    assert_int_equal(session_put_token(w.session, 9, 3, 5, -0.5f, 1, true, "abcde", 5, top, 2), 0);
    assert_int_equal(session_put_answer(w.session, 9, 63, &done, NULL), 0);
    assert_int_equal(session_put_done(w.session, 9, 2, &done, "why"), 0);
    session_publish(w.session);
    assert_int_equal(wire_take(&w, &e), sizeof e.queued);
    assert_true(e.queued.id == 1ull << 40 && e.queued.n_prompt == 3 && e.queued.position == 2);
    assert_true(e.queued.start_us == 1ull << 33);
    assert_int_equal(wire_take(&w, &e), sizeof e.token + 8 + 16);
    assert_int_equal(e.token.head.flags, INFER_ABI_TEXT_ONLY);
    assert_int_equal(e.token.head.answer, 3);
    assert_memory_equal(e.bytes + sizeof e.token, "abcde\0\0\0", 8);
    got = (struct infer_logprob *)(void *)(e.bytes + sizeof e.token + 8);
    assert_true(got[1].token == 8 && got[1].logprob == -2);
    assert_int_equal(wire_take(&w, &e), sizeof e.done);
    assert_true(e.done.head.kind == INFER_ABI_EV_ANSWER && e.done.head.answer == 63 &&
                e.done.head.request == 9 && e.done.detail_bytes == 0 && e.done.decode_us == 99);
    assert_int_equal(wire_take(&w, &e), sizeof e.done + 3);
    assert_int_equal(e.done.head.answer, 2);
    assert_true(e.done.error == INFER_E_BACKEND && e.done.detail_bytes == 3 &&
                e.done.decode_us == 99 && e.done.head.kind == INFER_ABI_EV_DONE);
    assert_int_equal(session_put_token(w.session, 1, 0, 0, 0, 0, 0, text, sizeof text, NULL, 0),
                     -EINVAL);
    assert_int_equal(session_put_result(w.session, 1, 1, 0, text, SESSION_RESULT_MAX + 1), -EINVAL);
    wire_close(&w);
}

static void test_full_token_ring_parks(void **state)
{
    struct wire w;
    uint8_t record[INFER_RECORD_MAX];
    uint32_t n = 0, seen = 0;
    wire_open(&w, INFER_REQUEST_RING_MIN, INFER_TOKEN_RING_MIN);
    while (session_put_token(w.session, 1, 0, (int32_t)n, 0, n, false, "hello", 5, NULL, 0) == 0)
        n++;
    assert_int_equal(n, INFER_TOKEN_RING_MIN / 40);
    assert_false(session_has_room(w.session, 40));
    assert_true(session_has_room(w.session, INFER_TOKEN_RING_MIN % 40 & ~7u));
    session_publish(w.session);
    assert_true(wire_take(&w, record) > 0);
    seen++;
    assert_true(session_has_room(w.session, 40));
    assert_int_equal(
        session_put_token(w.session, 1, 0, (int32_t)n, 0, n, false, "hello", 5, NULL, 0), 0);
    assert_int_equal(session_put_token(w.session, 1, 0, 0, 0, 0, false, "hello", 5, NULL, 0),
                     -EAGAIN);
    session_publish(w.session);
    for (; wire_take(&w, record) > 0; seen++) {
        struct infer_abi_token token;
        memcpy(&token, record, sizeof token);
        assert_int_equal(token.index, seen);
    }
    assert_int_equal(seen, n + 1);
    assert_true(session_has_room(w.session, INFER_RECORD_MAX));
    wire_close(&w);
}

/* A fresh session, one thing done to it by the caller of expect_broken(). */
static void expect_broken(struct wire *w)
{
    struct session_request r;
    wire_publish(w);
    assert_int_equal(session_poll(w->session, &r), -INFER_E_PROTOCOL);
    assert_int_equal(session_poll(w->session, &r), -INFER_E_PROTOCOL); /* never repaired */
    assert_int_equal(session_put_queued(w->session, 1, 1, 1, 1, 0), -INFER_E_PROTOCOL);
    session_close(w->session, INFER_E_PROTOCOL);
    assert_int_equal(w->daemon->closed, INFER_E_PROTOCOL);
    wire_close(w);
}

static void test_impossible_tails(void **state)
{
    static const uint32_t tails[] = {INFER_REQUEST_RING_MIN + 8,
                                     1,
                                     4,
                                     8, /* less than a head */
                                     UINT32_MAX,
                                     (uint32_t)-8,
                                     1u << 31};
    struct wire w;
    for (size_t i = 0; i < sizeof tails / sizeof tails[0]; i++) {
        wire_open(&w, INFER_REQUEST_RING_MIN, INFER_TOKEN_RING_MIN);
        w.tail = tails[i];
        expect_broken(&w);
    }
}

static void test_impossible_token_heads(void **state)
{
    static const uint32_t heads[] = {8, 40, (uint32_t)-8, 1u << 31, 4};
    for (size_t i = 0; i < sizeof heads / sizeof heads[0]; i++) {
        struct wire w;
        int r;
        wire_open(&w, INFER_REQUEST_RING_MIN, INFER_TOKEN_RING_MIN);
        if (heads[i] == 4) { /* published, but no record ends there */
            session_put_queued(w.session, 1, 1, 1, 1, 0);
            session_publish(w.session);
        }
        infer_ring_store(&w.words->token_head, heads[i]); /* read ahead of what was written */
        do
            r = session_put_queued(w.session, 1, 1, 1, 1, 0);
        while (r == 0);
        assert_int_equal(r, -INFER_E_PROTOCOL);
        expect_broken(&w);
    }
}

static void test_bad_record_lengths(void **state)
{
    static const uint8_t zeros[INFER_RECORD_MAX];
    struct session_request r;
    struct wire w;
    for (uint32_t announced = 0; announced <= INFER_RECORD_MAX + 64; announced++) {
        wire_open(&w, INFER_REQUEST_RING_MIN, INFER_TOKEN_RING_MIN);
        wire_put(&w, INFER_ABI_CANCEL, 1, announced, zeros, 48);
        wire_publish(&w);
        int e = session_poll(w.session, &r);
        assert_int_equal(e, announced >= 16 && announced <= 64 ? 1 : -INFER_E_PROTOCOL);
        wire_close(&w);
    }
    for (uint32_t announced = 16; announced < BIG; announced++) {
        wire_open(&w, INFER_REQUEST_RING_MIN, INFER_TOKEN_RING_MIN);
        wire_put(&w, INFER_ABI_SUBMIT, 1, announced, zeros, 256);
        expect_broken(&w);
    }
}

static void test_bad_records(void **state)
{
    struct infer_abi_submit s = plain_submit(100);
    uint8_t bytes[sizeof s] = {0};
    static const uint32_t fixed[] = {0, 16, INFER_ABI_SUBMIT_MIN - 1, 300, UINT32_MAX};
    struct wire w;
    for (size_t i = 0; i < sizeof fixed / sizeof fixed[0]; i++) {
        wire_open(&w, INFER_REQUEST_RING_MIN, INFER_TOKEN_RING_MIN);
        s.fixed_bytes = fixed[i];
        memcpy(bytes, (uint8_t *)&s + 16, BIG - 16);
        wire_put(&w, INFER_ABI_SUBMIT, 1, BIG, bytes, BIG - 16);
        expect_broken(&w);
    }
    for (int i = 0; i < 7; i++) {
        wire_open(&w, INFER_REQUEST_RING_MIN, INFER_TOKEN_RING_MIN);
        if (i == 0) { /* no number */
            wire_put(&w, INFER_ABI_CANCEL, 0, 16, NULL, 0);
        } else if (i == 1) { /* DATA without SUBMIT */
            wire_put(&w, INFER_ABI_DATA, 1, 24, bytes, 8);
        } else if (i == 2) { /* more than announced, at once */
            wire_submit(&w, 1, &s, BIG, bytes, 101);
        } else {
            wire_submit(&w, 1, &s, BIG, bytes, 90);
            if (i == 3) /* more than announced, later */
                wire_put(&w, INFER_ABI_DATA, 1, 16 + 11, bytes, 11);
            else if (i == 4) /* of another request */
                wire_put(&w, INFER_ABI_DATA, 2, 16 + 10, bytes, 10);
            else if (i == 5) /* another SUBMIT in between */
                wire_submit(&w, 2, &s, BIG, bytes, 100);
            else /* empty DATA could go on for ever */
                wire_put(&w, INFER_ABI_DATA, 1, 16, NULL, 0);
        }
        expect_broken(&w);
    }
}

static void test_unknown_kind_is_handed_on(void **state)
{
    struct session_request r;
    struct wire w;
    wire_open(&w, INFER_REQUEST_RING_MIN, INFER_TOKEN_RING_MIN);
    wire_put(&w, 77, 3, 16, NULL, 0);
    wire_put(&w, INFER_ABI_CANCEL, 4, 16, NULL, 0);
    wire_publish(&w);
    assert_int_equal(session_poll(w.session, &r), 1);
    assert_true(r.kind == 77 && r.request == 3 && r.payload == NULL);
    assert_int_equal(session_poll(w.session, &r), 1);
    assert_true(r.kind == INFER_ABI_CANCEL && r.request == 4);
    wire_close(&w);
}

static void test_longer_fixed_part(void **state)
{
    struct infer_abi_submit s = plain_submit(5);
    struct session_request r;
    struct wire w;
    wire_open(&w, INFER_REQUEST_RING_MIN, INFER_TOKEN_RING_MIN);
    wire_submit(&w, 1, &s, BIG + 40, "hello", 5); /* a newer client knows more fields */
    wire_publish(&w);
    assert_int_equal(session_poll(w.session, &r), 1);
    assert_int_equal(r.payload_bytes, 5);
    assert_memory_equal(r.payload, "hello", 5);
    assert_int_equal(r.submit.fixed_bytes, BIG + 40);
    free(r.payload);
    wire_close(&w);
}

/* Every length from the first form to this one: what the client did not know reads as zero, the
 * payload begins where it said. */
static void test_shorter_fixed_part(void **state)
{
    struct infer_abi_submit s = plain_submit(5);
    struct session_request r;
    struct wire w;
    s.priority = s.deadline_ms = UINT32_MAX;
    s.target = s.conversation = UINT64_MAX;
    s.n_answers = s.window = s.sinks = s.reserved = UINT32_MAX;
    for (uint32_t fixed = INFER_ABI_SUBMIT_MIN; fixed <= BIG; fixed++) {
        struct infer_abi_submit want;
        wire_open(&w, INFER_REQUEST_RING_MIN, INFER_TOKEN_RING_MIN);
        wire_submit(&w, 1, &s, fixed, "hello", 5);
        wire_publish(&w);
        assert_int_equal(session_poll(w.session, &r), 1);
        assert_int_equal(r.payload_bytes, 5);
        assert_memory_equal(r.payload, "hello", 5);
        memset(&want, 0, sizeof want);
        memcpy(&want, &s, fixed);
        assert_memory_equal((uint8_t *)&r.submit + 16, (uint8_t *)&want + 16, BIG - 16);
        free(r.payload);
        wire_close(&w);
    }
    wire_open(&w, INFER_REQUEST_RING_MIN, INFER_TOKEN_RING_MIN);
    wire_submit(&w, 1, &s, INFER_ABI_SUBMIT_MIN, "hello", 5);
    wire_publish(&w);
    struct admit_request a;
    struct report report;
    assert_int_equal(session_poll(w.session, &r), 1);
    assert_int_equal(admit_parse(&r, &a, &report), 0);
    assert_true(a.priority == INFER_PRIORITY_NORMAL && a.deadline_ms == 0 && a.target == 0);
    assert_true(a.n_answers == 1 && a.window == 0 && a.sinks == 0 && a.conversation == 0);
    admit_done(&a);
    s.priority = INFER_PRIORITY_BATCH;
    s.target = 0;
    wire_submit(&w, 2, &s, offsetof(struct infer_abi_submit, n_answers), "hello", 5);
    wire_publish(&w);
    assert_int_equal(session_poll(w.session, &r), 1);
    assert_int_equal(admit_parse(&r, &a, &report), 0);
    assert_true(a.priority == INFER_PRIORITY_BATCH && a.deadline_ms == UINT32_MAX);
    assert_true(a.n_answers == 1 && a.window == 0 && a.sinks == 0 && a.conversation == 0);
    admit_done(&a);
    wire_submit(&w, 3, &s, INFER_ABI_SUBMIT_MIN - 1, "hello", 5);
    wire_publish(&w);
    assert_int_equal(session_poll(w.session, &r), -INFER_E_PROTOCOL);
    wire_close(&w);
}

static void test_oversize_payload_is_skipped(void **state)
{
    struct infer_abi_submit s = plain_submit(INFER_REQUEST_BYTES_MAX);
    static uint8_t bytes[1024];
    struct session_request r;
    struct wire w;
    int e = 0;
    s.stops_bytes = 1;
    wire_open(&w, INFER_REQUEST_RING_MIN, INFER_TOKEN_RING_MIN);
    wire_submit(&w, 1, &s, BIG, bytes, 0);
    uint32_t left = INFER_REQUEST_BYTES_MAX + 1;
    while (left > 0) {
        assert_int_equal(e, 0);
        uint32_t n = left < sizeof bytes ? left : sizeof bytes;
        wire_put(&w, INFER_ABI_DATA, 1, 16 + n, bytes, n);
        wire_publish(&w);
        left -= n;
        e = session_poll(w.session, &r);
    }
    assert_int_equal(e, 1);
    assert_int_equal(r.error, INFER_E_REQUEST_TOO_LARGE);
    assert_null(r.payload);
    struct admit_request a;
    struct report report;
    assert_int_equal(admit_parse(&r, &a, &report), -INFER_E_REQUEST_TOO_LARGE);
    wire_put(&w, INFER_ABI_CANCEL, 1, 16, NULL, 0); /* the session lives */
    wire_publish(&w);
    assert_int_equal(session_poll(w.session, &r), 1);
    wire_close(&w);
}

static void test_seals_hold(void **state)
{
    struct wire w;
    char path[64];
    wire_open(&w, INFER_REQUEST_RING_MIN, INFER_TOKEN_RING_MIN);
    struct session_fds fds = session_descriptors(w.session);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(ftruncate(fds.fd[i], 0), -1);
        assert_int_equal(ftruncate(fds.fd[i], 1 << 20), -1);
        assert_int_equal(fcntl(fds.fd[i], F_ADD_SEALS, F_SEAL_WRITE), -1);
    }
    snprintf(path, sizeof path, "/proc/self/fd/%d", fds.fd[1]);
    int again = open(path, O_RDWR | O_CLOEXEC); /* may open; what counts is what it can do */
    int tries[2] = {fds.fd[1], again};
    for (int i = 0; i < 2; i++) {
        if (tries[i] < 0)
            continue;
        assert_true(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, tries[i], 0) ==
                    MAP_FAILED);
        assert_int_equal(pwrite(tries[i], "x", 1, 0), -1);
        assert_int_equal(fallocate(tries[i], FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096),
                         -1);
        void *map = mmap(NULL, 4096, PROT_READ, MAP_SHARED, tries[i], 0);
        assert_true(map != MAP_FAILED);
        assert_int_equal(mprotect(map, 4096, PROT_READ | PROT_WRITE), -1);
        munmap(map, 4096);
    }
    if (again >= 0)
        close(again);
    assert_int_equal(session_put_queued(w.session, 1, 1, 1, 1, 0), 0); /* the daemon still writes */
    session_publish(w.session);
    assert_int_equal(w.daemon->token_tail, sizeof(struct infer_abi_queued));
    wire_close(&w);
}

/* A client that tries to stop the daemon in a system call on a shared descriptor. */
static void test_shared_descriptors_never_block(void **state)
{
    struct wire w;
    uint64_t many = 0xfffffffffffffffeull;
    wire_open(&w, INFER_REQUEST_RING_MIN, INFER_TOKEN_RING_MIN);
    struct session_fds fds = session_descriptors(w.session);
    for (int i = 2; i < 4; i++)
        assert_int_equal(fcntl(fds.fd[i], F_SETFL, 0), 0); /* O_NONBLOCK off */
    (void)!write(fds.fd[3], &many, sizeof many);
    alarm(5); /* kills the test when it blocks */
    for (uint32_t i = 0; i < 100000; i++) {
        uint8_t record[INFER_RECORD_MAX];
        infer_ring_store(&w.words->waiting, INFER_ABI_EVENTFD);
        assert_int_equal(session_put_queued(w.session, 1, i, 1, 1, 0), 0);
        session_publish(w.session);
        assert_int_equal(wire_take(&w, record), sizeof(struct infer_abi_queued));
    }
    session_drain_doorbell(w.session); /* empty and "blocking" */
    alarm(0);
    wire_close(&w);
}

static bool readable(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    return poll(&p, 1, 0) == 1;
}

static void test_bell(void **state)
{
    struct wire w;
    uint8_t record[INFER_RECORD_MAX];
    uint64_t rings[8];
    wire_open(&w, INFER_REQUEST_RING_MIN, INFER_TOKEN_RING_MIN);
    int bell = session_descriptors(w.session).fd[3];
    session_put_queued(w.session, 1, 1, 1, 1, 0);
    session_publish(w.session);
    assert_false(readable(bell)); /* the client is awake */
    infer_ring_store(&w.words->waiting, INFER_ABI_EVENTFD);
    session_publish(w.session);
    assert_false(readable(bell)); /* nothing new */
    for (int i = 0; i < 5; i++) {
        session_put_queued(w.session, 1, 1, 1, 1, 0);
        session_publish(w.session);
    }
    assert_int_equal(read(bell, rings, sizeof rings), 8); /* once until the head moves */
    while (wire_take(&w, record) > 0)
        ;
    session_put_queued(w.session, 1, 1, 1, 1, 0);
    session_publish(w.session);
    assert_int_equal(read(bell, rings, sizeof rings), 8);
    session_close(w.session, INFER_E_SHUTDOWN);
    assert_true(readable(bell));
    wire_close(&w);
}

/* A client may have read an event before the daemon comes to wake it for that event. Were the bell
 * rung then, the client would find nothing, sleep with its head unmoved, and get no next bell. */
static void test_bell_after_the_client_read_already(void **state)
{
    struct wire w;
    wire_open(&w, INFER_REQUEST_RING_MIN, INFER_TOKEN_RING_MIN);
    int bell = session_descriptors(w.session).fd[3];
    session_put_queued(w.session, 1, 1, 1, 1, 0);
    infer_ring_store(&w.words->waiting, INFER_ABI_EVENTFD);
    /* As the daemon sees it between its two loads. */
    infer_ring_store(&w.words->token_head, sizeof(struct infer_abi_queued));
    session_publish(w.session);
    assert_false(readable(bell));
    session_put_queued(w.session, 1, 2, 1, 1, 0);
    session_publish(w.session);
    assert_true(readable(bell));
    wire_close(&w);
}

static void test_sleep(void **state)
{
    struct wire w;
    uint64_t one = 1;
    wire_open(&w, INFER_REQUEST_RING_MIN, INFER_TOKEN_RING_MIN);
    assert_false(session_sleep(w.session));
    assert_int_equal(w.daemon->waiting, INFER_ABI_EVENTFD);
    wire_put(&w, INFER_ABI_CANCEL, 1, 16, NULL, 0);
    wire_publish(&w);
    assert_true(session_sleep(w.session));
    session_awake(w.session);
    assert_int_equal(w.daemon->waiting, INFER_ABI_AWAKE);
    assert_int_equal(write(session_descriptors(w.session).fd[2], &one, 8), 8);
    assert_true(readable(session_doorbell(w.session)));
    session_drain_doorbell(w.session);
    assert_false(readable(session_doorbell(w.session)));
    wire_close(&w);
}

/* ---- double fetch -------------------------------------------------------------------------------
 * A thread flips words of published records while the session reads them. Whatever the session
 * makes of it must be one of the values, whole, or PROTOCOL. */

struct flipper {
    struct wire *w;
    atomic_bool stop;
    uint32_t at; /* offset into the ring */
    uint32_t values[2];
};

static void *flip(void *arg)
{
    struct flipper *f = arg;
    uint32_t *word = (uint32_t *)(void *)(f->w->requests + f->at);
    for (uint32_t i = 0; !f->stop; i++)
        __atomic_store_n(word, f->values[i & 1], __ATOMIC_RELAXED);
    return NULL;
}

static void flip_word(uint32_t at, uint32_t a, uint32_t b)
{
    uint64_t end = clock_us() + 60000;
    int good = 0, bad = 0;
    while (clock_us() < end) {
        struct wire w;
        struct session_request r;
        struct admit_request admitted;
        struct report report;
        pthread_t thread;
        wire_open(&w, INFER_REQUEST_RING_MIN, INFER_TOKEN_RING_MIN);
        struct flipper f = {.w = &w, .at = at, .values = {a, b}};
        struct infer_abi_submit s = plain_submit(64);
        uint8_t bytes[64] = {'a'};
        wire_submit(&w, 1, &s, BIG, bytes, 64);
        wire_submit(&w, 2, &s, BIG, bytes, 64);
        assert_int_equal(pthread_create(&thread, NULL, flip, &f), 0);
        wire_publish(&w);
        for (int i = 0; i < 8; i++) {
            int e = session_poll(w.session, &r);
            assert_true(e == 0 || e == 1 || e == -INFER_E_PROTOCOL);
            bad += e < 0;
            if (e == 1) {
                assert_true(r.payload_bytes <= INFER_REQUEST_BYTES_MAX && r.request != 0);
                if (admit_parse(&r, &admitted, &report) == 0)
                    admit_done(&admitted);
                good++;
            }
        }
        f.stop = true;
        pthread_join(thread, NULL);
        wire_close(&w);
    }
    assert_true(good + bad > 0);
}

static void test_double_fetch(void **state)
{
    flip_word(offsetof(struct infer_abi_record, bytes), BIG + 64, 17);
    flip_word(offsetof(struct infer_abi_record, bytes), BIG + 64, INFER_RECORD_MAX);
    flip_word(offsetof(struct infer_abi_record, kind), INFER_ABI_SUBMIT, INFER_ABI_CANCEL);
    flip_word(offsetof(struct infer_abi_submit, fixed_bytes), BIG, BIG + 64);
    flip_word(offsetof(struct infer_abi_submit, fixed_bytes), BIG, UINT32_MAX);
    flip_word(offsetof(struct infer_abi_submit, input_bytes), 64, INFER_REQUEST_BYTES_MAX);
    flip_word(offsetof(struct infer_abi_submit, input), INFER_ABI_TEXT, INFER_ABI_MESSAGES);
    flip_word(offsetof(struct infer_abi_submit, stops_bytes), 0, UINT32_MAX);
}

static void test_bad_ring_sizes(void **state)
{
    struct peer peer = {.uid = 0};
    struct session *s;
    assert_int_equal(session_new(&peer, 4097, INFER_TOKEN_RING_MIN, -1, &s), -EINVAL);
    assert_int_equal(session_new(&peer, 2048, INFER_TOKEN_RING_MIN, -1, &s), -EINVAL);
    assert_int_equal(session_new(&peer, 4096, INFER_TOKEN_RING_MAX * 2, -1, &s), -EINVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_requests_wrap_at_every_offset),
        cmocka_unit_test(test_events_wrap_at_every_offset),
        cmocka_unit_test(test_every_event),
        cmocka_unit_test(test_full_token_ring_parks),
        cmocka_unit_test(test_impossible_tails),
        cmocka_unit_test(test_impossible_token_heads),
        cmocka_unit_test(test_bad_record_lengths),
        cmocka_unit_test(test_bad_records),
        cmocka_unit_test(test_unknown_kind_is_handed_on),
        cmocka_unit_test(test_longer_fixed_part),
        cmocka_unit_test(test_shorter_fixed_part),
        cmocka_unit_test(test_oversize_payload_is_skipped),
        cmocka_unit_test(test_seals_hold),
        cmocka_unit_test(test_shared_descriptors_never_block),
        cmocka_unit_test(test_bell),
        cmocka_unit_test(test_bell_after_the_client_read_already),
        cmocka_unit_test(test_sleep),
        cmocka_unit_test(test_double_fetch),
        cmocka_unit_test(test_bad_ring_sizes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
