/* test_protocol.c: clients that break the protocol, on purpose or by dying. Whatever one of them
 * does, the daemon lives and serves the others at once: every test ends with a whole request from
 * a fresh connection. */
#include "inferd/ring.h"
#include "support/answer.h"
#include "support/program.h"
#include "support/raw.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>

#include <cmocka.h>

static struct daemon d;
static bool broken; /* by this test or the one before: the next one gets a new daemon */

static int setup(void **state)
{
    daemon_start_backend(&d, "null", NULL);
    return 0;
}

static int teardown(void **state)
{
    if (broken)
        daemon_kill(&d);
    daemon_done(&d);
    return 0;
}

static int before_each(void **state)
{
    if (broken) {
        daemon_kill(&d);
        daemon_start_backend(&d, "null", NULL);
    }
    broken = true;
    return 0;
}

static int after_each(void **state)
{
    daemon_assert_serves(&d);
    broken = false;
    return 0;
}

/* ---- handshake ------------------------------------------------------------------------------- */

static void assert_no_session(const void *hello, size_t bytes)
{
    struct raw r;
    int answered = raw_handshake(&r, &d, hello, bytes);
    if (answered && r.welcome.error == 0)
        fail_msg("a hello of %zu bytes was taken", bytes);
    raw_close(&r);
}

static void test_hello_garbage(void **state)
{
    static uint8_t bytes[65536];
    struct infer_abi_hello hello;
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (uint8_t)(i * 2654435761u >> 24);
    const size_t sizes[] = {1, 4, 15, 63, 64, 100, 4096, sizeof bytes};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        assert_no_session(bytes, sizes[i]);
    raw_hello_default(&hello);
    hello.magic ^= 1;
    assert_no_session(&hello, sizeof hello);
    raw_hello_default(&hello);
    assert_no_session(&hello, sizeof hello - 1); /* half a hello */
    hello.bytes = 8;
    assert_no_session(&hello, sizeof hello);
}

static void test_hello_versions(void **state)
{
    struct infer_abi_hello hello;
    struct raw r;
    static const uint32_t foreign[][2] = {{0, 0}, {2, 9}, {UINT32_MAX, UINT32_MAX}};
    for (size_t i = 0; i < sizeof foreign / sizeof *foreign; i++) {
        raw_hello_default(&hello);
        hello.version_min = foreign[i][0];
        hello.version_max = foreign[i][1];
        assert_int_equal(raw_handshake(&r, &d, &hello, sizeof hello), 1);
        assert_int_equal(r.welcome.error, INFER_E_VERSION);
        assert_true(strlen(r.welcome.detail) > 10);
        raw_close(&r);
    }
    raw_hello_default(&hello);
    hello.version_max = 99; /* a newer client that still knows version 1 */
    assert_int_equal(raw_handshake(&r, &d, &hello, sizeof hello), 1);
    assert_int_equal(r.welcome.error, 0);
    assert_int_equal(r.welcome.version, INFER_ABI_VERSION);
    raw_close(&r);
}

/* A newer client's longer hello, and ring sizes from nothing to everything. */
static void test_hello_longer_and_ring_sizes(void **state)
{
    struct {
        struct infer_abi_hello hello;
        uint8_t more[64];
    } longer;
    struct raw r;
    static const uint32_t sizes[] = {0, 1, 4096, 100000, 1u << 31, UINT32_MAX};
    memset(&longer, 0xa5, sizeof longer);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        raw_hello_default(&longer.hello);
        longer.hello.bytes = sizeof longer;
        longer.hello.request_ring_bytes = longer.hello.token_ring_bytes = sizes[i];
        assert_int_equal(raw_handshake(&r, &d, &longer, sizeof longer), 1);
        assert_int_equal(r.welcome.error, 0);
        assert_in_range(r.request_bytes, INFER_REQUEST_RING_MIN, INFER_REQUEST_RING_MAX);
        assert_in_range(r.token_bytes, INFER_TOKEN_RING_MIN, INFER_TOKEN_RING_MAX);
        assert_int_equal(r.request_bytes & (r.request_bytes - 1), 0);
        assert_int_equal(r.token_bytes & (r.token_bytes - 1), 0);
        raw_close(&r);
    }
}

static void test_silent_connections(void **state)
{
    int fd[100];
    for (size_t i = 0; i < 100; i++) {
        fd[i] = raw_socket(&d);
        assert_true(fd[i] >= 0);
    }
    daemon_assert_serves(&d);
    for (size_t i = 0; i < 100; i++)
        close(fd[i]);
}

/* The daemon must not keep what a hello carried along: descriptors of the client's. */
static void test_hello_with_descriptors(void **state)
{
    int before = daemon_descriptors(&d);
    for (int round = 0; round < 20; round++) {
        union {
            char room[CMSG_SPACE(sizeof(int) * 8)];
            struct cmsghdr align;
        } control = {0};
        struct infer_abi_hello hello;
        struct iovec iov = {.iov_base = &hello, .iov_len = sizeof hello};
        struct msghdr m = {.msg_iov = &iov,
                           .msg_iovlen = 1,
                           .msg_control = &control,
                           .msg_controllen = sizeof control};
        struct cmsghdr *c = CMSG_FIRSTHDR(&m);
        int fds[8], s = raw_socket(&d);
        for (int i = 0; i < 8; i++)
            fds[i] = 0;
        raw_hello_default(&hello);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof fds);
        memcpy(CMSG_DATA(c), fds, sizeof fds);
        assert_true(s >= 0);
        assert_true(sendmsg(s, &m, MSG_NOSIGNAL) > 0);
        usleep(1000);
        close(s);
    }
    daemon_assert_serves(&d);
    for (int i = 0; i < 50 && daemon_descriptors(&d) > before; i++) {
    }
    assert_in_range(daemon_descriptors(&d), 1, before);
}

/* As many sessions as the daemon takes, and more: the rest hear SESSIONS_FULL; all is given back.
 */
static void test_many_sessions(void **state)
{
    enum { WANTED = INFER_SESSIONS_MAX + 20 };
    struct rlimit limit;
    static struct raw all[WANTED];
    size_t n = 0, refused = 0;
    int before = daemon_descriptors(&d);
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    size_t room = limit.rlim_cur > 100 ? (size_t)(limit.rlim_cur - 100) / 6 : 10;
    size_t wanted = room < WANTED ? room : WANTED;
    for (; n < wanted; n++) {
        struct infer_abi_hello hello;
        raw_hello_default(&hello);
        hello.request_ring_bytes = INFER_REQUEST_RING_MIN;
        hello.token_ring_bytes = INFER_TOKEN_RING_MIN;
        int answered = raw_handshake(&all[n], &d, &hello, sizeof hello);
        if (!answered || all[n].welcome.error) {
            if (answered)
                assert_int_equal(all[n].welcome.error, INFER_E_SESSIONS_FULL);
            refused++;
        }
    }
    assert_true(daemon_alive(&d));
    if (wanted > INFER_SESSIONS_MAX)
        assert_true(refused > 0);
    for (size_t i = 0; i < n; i++)
        raw_close(&all[i]);
    for (int i = 0; i < 50 && daemon_descriptors(&d) > before; i++) {
    }
    assert_in_range(daemon_descriptors(&d), 1, before);
}

/* ---- the shared files ------------------------------------------------------------------------ */

static void test_seals_hold(void **state)
{
    struct raw r;
    char path[64];
    raw_open(&r, &d);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(ftruncate(r.fd[i], 0), -1);
        assert_int_equal(ftruncate(r.fd[i], 1 << 26), -1);
        int seals = fcntl(r.fd[i], F_GET_SEALS);
        assert_int_equal(seals & (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL),
                         F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
    }
    assert_true(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, r.fd[1], 0) == MAP_FAILED);
    snprintf(path, sizeof path, "/proc/self/fd/%d", r.fd[1]);
    int again = open(path, O_RDWR | O_CLOEXEC);
    if (again >= 0) {
        assert_true(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, again, 0) == MAP_FAILED);
        assert_int_equal(pwrite(again, "x", 1, 0), -1);
        close(again);
    }
    assert_int_equal(mprotect((void *)(uintptr_t)r.theirs, 4096, PROT_READ | PROT_WRITE), -1);
    raw_close(&r);
}

/* Whatever shares its open file description with the client can be filled, emptied and made
 * blocking by it. A daemon that then reads or writes it without care stops for everybody. */
static void test_bells_turned_against_the_daemon(void **state)
{
    struct raw r;
    struct infer_abi_submit submit;
    uint64_t full = UINT64_MAX - 1, drained;
    raw_open(&r, &d);
    for (int i = 2; i < 4; i++)
        assert_int_equal(fcntl(r.fd[i], F_SETFL, fcntl(r.fd[i], F_GETFL) & ~O_NONBLOCK), 0);
    (void)!write(r.fd[3], &full, sizeof full);
    infer_ring_store(&r.ours->waiting, INFER_ABI_EVENTFD);
    raw_submit_default(&submit, 1, 50);
    submit.input_bytes = 5;
    raw_put_submit(&r, &submit, "Hello", 5);
    raw_publish(&r);
    usleep(50000);
    daemon_assert_serves(&d);

    /* Ring, and take the ring back before the daemon can read it. */
    for (int i = 0; i < 200; i++) {
        uint64_t one = 1;
        assert_int_equal(write(r.fd[2], &one, sizeof one), sizeof one);
        fcntl(r.fd[2], F_SETFL, O_NONBLOCK);
        (void)!read(r.fd[2], &drained, sizeof drained);
        fcntl(r.fd[2], F_SETFL, 0);
        usleep(i % 7 * 50);
    }
    daemon_assert_serves(&d);
    raw_close(&r);
}

/* ---- the request ring ------------------------------------------------------------------------ */

static void assert_closed(struct raw *r, const char *what)
{
    if (!raw_wait_closed(r, 5000))
        fail_msg("%s: the session was not closed", what);
    raw_close(r);
}

static void test_impossible_tail(void **state)
{
    static const uint32_t beyond[] = {1, 8, 4096, 1u << 31, UINT32_MAX / 2};
    for (size_t i = 0; i < sizeof beyond / sizeof *beyond; i++) {
        struct raw r;
        raw_open(&r, &d);
        r.tail = r.request_bytes + beyond[i];
        raw_publish(&r);
        assert_closed(&r, "tail beyond the ring");
    }
    struct raw r;
    raw_open(&r, &d);
    r.tail = (uint32_t)-8; /* before the head */
    raw_publish(&r);
    assert_closed(&r, "tail before the head");
}

static void test_impossible_head(void **state)
{
    static const uint32_t heads[] = {8, 1u << 31, UINT32_MAX - 7};
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++) {
        struct raw r;
        struct infer_abi_submit submit;
        raw_open(&r, &d);
        infer_ring_store(&r.ours->token_head, heads[i]); /* nothing was there to read */
        raw_submit_default(&submit, 1, 20);
        submit.input_bytes = 5;
        raw_put_submit(&r, &submit, "Hello", 5);
        raw_publish(&r);
        assert_closed(&r, "head beyond the tail");
    }
}

static void test_record_lengths(void **state)
{
    static const uint32_t lengths[] = {
        0, 1, 8, 15, INFER_RECORD_MAX + 1, 1u << 20, 1u << 31, UINT32_MAX - 7, UINT32_MAX};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        struct raw r;
        uint8_t record[INFER_RECORD_MAX] = {0};
        struct infer_abi_record head = {
            .bytes = lengths[i], .kind = INFER_ABI_SUBMIT, .request = 1};
        memcpy(record, &head, sizeof head);
        raw_open(&r, &d);
        raw_put(&r, record, sizeof record);
        raw_publish(&r);
        assert_closed(&r, "record length");
    }
}

/* A record that is longer than what was published so far is not there yet, or a lie: either way
 * nobody waits for it. */
static void test_record_half_published(void **state)
{
    struct raw r;
    struct infer_abi_submit submit;
    raw_open(&r, &d);
    raw_submit_default(&submit, 1, 5);
    submit.head.bytes = 1024;
    submit.input_bytes = 1024 - sizeof submit;
    infer_ring_put(r.requests, r.request_bytes, 0, &submit, 16);
    r.tail = 16;
    raw_publish(&r);
    usleep(20000);
    daemon_assert_serves(&d);
    raw_close(&r);
}

static void test_unknown_kind(void **state)
{
    struct raw r;
    struct infer_abi_record head = {.bytes = sizeof head, .kind = 4711, .request = 9};
    raw_open(&r, &d);
    raw_put(&r, &head, sizeof head);
    raw_publish(&r);
    assert_int_equal(raw_wait_done(&r, 9, 5000), INFER_E_UNSUPPORTED);
    raw_close(&r);
}

static void test_request_zero(void **state)
{
    struct raw r;
    struct infer_abi_submit submit;
    raw_open(&r, &d);
    raw_submit_default(&submit, 0, 5);
    submit.input_bytes = 5;
    raw_put_submit(&r, &submit, "Hello", 5);
    raw_publish(&r);
    int code = raw_wait_done(&r, 0, 5000);
    if (code != -1 && code != INFER_E_BAD_REQUEST && code != INFER_E_PROTOCOL)
        fail_msg("request 0 ended with %d", code);
    raw_close(&r);
}

static void test_duplicate_request(void **state)
{
    struct raw r;
    struct infer_abi_submit submit;
    raw_open(&r, &d);
    for (int i = 0; i < 3; i++) {
        raw_submit_default(&submit, 5, 1500);
        submit.input_bytes = 5;
        raw_put_submit(&r, &submit, "Hello", 5);
    }
    raw_publish(&r);
    int code = raw_wait_done(&r, 5, 5000); /* of the second: malformed; or the session ends */
    if (code != -1 && code != INFER_E_BAD_REQUEST && code != INFER_E_PROTOCOL)
        fail_msg("a duplicate number ended with %d", code);
    raw_close(&r);
}

/* Fields of a SUBMIT that contradict each other or the record. */
static void test_submit_lengths(void **state)
{
    static const struct {
        uint32_t fixed, input, stops, biases;
    } cases[] = {
        {0, 5, 0, 0},
        {INFER_ABI_SUBMIT_MIN - 1, 5, 0, 0},
        {INFER_ABI_SUBMIT_MIN + 4096, 5, 0, 0},
        {UINT32_MAX, 5, 0, 0},
        {INFER_ABI_SUBMIT_MIN, UINT32_MAX, 0, 0},
        {INFER_ABI_SUBMIT_MIN, UINT32_MAX, UINT32_MAX, UINT32_MAX},
        {INFER_ABI_SUBMIT_MIN, 5, UINT32_MAX - 4, 0},
        {INFER_ABI_SUBMIT_MIN, 1u << 31, 1u << 31, 5},
        {INFER_ABI_SUBMIT_MIN, 4, 0, 0},                           /* more came than was said */
        {INFER_ABI_SUBMIT_MIN, 0, 5, 0},                           /* a stop string's length lies */
        {INFER_ABI_SUBMIT_MIN, 0, 0, 5},                           /* biases are 8 bytes each */
        {INFER_ABI_SUBMIT_MIN, INFER_REQUEST_BYTES_MAX + 1, 0, 0}, /* too much */
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct raw r;
        struct infer_abi_submit submit;
        raw_open(&r, &d);
        raw_submit_default(&submit, 3, 5);
        submit.head.bytes = sizeof submit + 5;
        submit.fixed_bytes = cases[i].fixed;
        submit.input_bytes = cases[i].input;
        submit.stops_bytes = cases[i].stops;
        submit.biases_bytes = cases[i].biases;
        raw_put_submit(&r, &submit, "\377\377\377\377\377", 5);
        raw_publish(&r);
        usleep(2000);
        daemon_assert_serves(&d);
        /* Where the lengths leave a payload open, silence is right. */
        int code = infer_ring_load(&r.theirs->closed) ? -1 : raw_wait_done(&r, 3, 100);
        if (code == 0)
            fail_msg("case %zu was answered as if it were right", i);
        raw_close(&r);
    }
}

/* Every value of every 32-bit field, one at a time, replaced by extremes. */
static void test_submit_fields(void **state)
{
    static const uint32_t values[] = {0, 1, 0x7fffffff, 0x80000000u, UINT32_MAX, 0x7fc00000};
    struct infer_abi_submit submit;
    struct raw r;
    raw_open(&r, &d);
    uint32_t request = 1;
    for (size_t at = sizeof submit.head + 4; at < sizeof submit; at += 4) {
        for (size_t v = 0; v < sizeof values / sizeof *values; v++) {
            uint8_t bytes[sizeof submit];
            raw_submit_default(&submit, ++request, 3);
            submit.input_bytes = 5;
            submit.head.bytes = sizeof submit + 5;
            memcpy(bytes, &submit, sizeof submit);
            memcpy(bytes + at, &values[v], 4);
            memcpy(&submit, bytes, sizeof submit);
            raw_put_submit(&r, &submit, "Hello", 5);
            raw_publish(&r);
            /* Lengths may leave a payload open: what matters is that the daemon goes on. */
            union {
                struct infer_abi_record head;
                uint8_t bytes[INFER_RECORD_MAX];
            } e;
            int code, n = 0;
            while ((code = raw_next(&r, 20, &e)) == 1 && n++ < 3000)
                if (e.head.kind == INFER_ABI_EV_DONE)
                    break;
            if (code <= 0) {
                raw_close(&r);
                raw_open(&r, &d);
            }
        }
    }
    raw_close(&r);
}

static void test_payload_never_comes(void **state)
{
    for (int round = 0; round < 10; round++) {
        struct raw r;
        struct infer_abi_submit submit;
        raw_open(&r, &d);
        raw_submit_default(&submit, 1, 5);
        submit.head.bytes = sizeof submit + 100;
        submit.input_bytes = INFER_REQUEST_BYTES_MAX;
        uint8_t part[100] = {'a'};
        raw_put_submit(&r, &submit, part, sizeof part);
        raw_publish(&r);
        usleep(1000);
        if (round == 0)
            daemon_assert_serves(&d);
        raw_close(&r); /* dies with the payload half sent */
    }
}

static void put_data(struct raw *r, uint32_t request, uint32_t bytes)
{
    uint8_t record[INFER_RECORD_MAX] = {0};
    struct infer_abi_record head = {
        .bytes = (uint32_t)sizeof head + bytes, .kind = INFER_ABI_DATA, .request = request};
    memcpy(record, &head, sizeof head);
    memset(record + sizeof head, 'b', bytes);
    raw_put(r, record, head.bytes);
}

static void test_payload_disorder(void **state)
{
    struct raw r;
    struct infer_abi_submit submit;
    raw_open(&r, &d);
    put_data(&r, 1, 100); /* of no request */
    raw_publish(&r);
    assert_closed(&r, "DATA without SUBMIT");

    raw_open(&r, &d);
    raw_submit_default(&submit, 1, 5);
    submit.head.bytes = sizeof submit + 10;
    submit.input_bytes = 50;
    raw_put_submit(&r, &submit, "0123456789", 10);
    put_data(&r, 1, 1000); /* more than was announced */
    raw_publish(&r);
    assert_closed(&r, "DATA beyond the payload");

    raw_open(&r, &d);
    raw_put_submit(&r, &submit, "0123456789", 10);
    put_data(&r, 2, 40); /* of another request */
    raw_publish(&r);
    int code = raw_wait_closed(&r, 1000) ? -1 : raw_wait_done(&r, 1, 5000);
    assert_int_not_equal(code, 0);
    raw_close(&r);
}

/* ---- floods and deaths ----------------------------------------------------------------------- */

static void test_flood(void **state)
{
    enum { N = 3000 };
    struct raw r;
    struct infer_abi_submit submit;
    union {
        struct infer_abi_record head;
        uint8_t bytes[INFER_RECORD_MAX];
    } e;
    uint32_t sent = 0, done = 0;
    raw_open(&r, &d);
    while (done < N) {
        while (sent < N && raw_room(&r) >= 512) {
            raw_submit_default(&submit, ++sent, 2);
            submit.head.bytes = sizeof submit + 5;
            submit.input_bytes = 5;
            raw_put_submit(&r, &submit, "Hello", 5);
            infer_ring_store(&r.ours->request_tail, r.tail);
        }
        raw_publish(&r);
        int code = raw_next(&r, 10000, &e);
        if (code != 1)
            fail_msg("after %u of %u answers: %s", done, sent, code ? "closed" : "silence");
        done += e.head.kind == INFER_ABI_EV_DONE;
    }
    assert_int_equal(raw_next(&r, 20, &e), 0); /* each was answered once */
    raw_close(&r);
}

static void test_flood_of_cancels(void **state)
{
    struct raw r;
    raw_open(&r, &d);
    for (uint32_t i = 1; i <= 20000; i++) {
        struct infer_abi_record head = {
            .bytes = sizeof head, .kind = INFER_ABI_CANCEL, .request = i};
        uint64_t end = test_clock_us() + 10000000u * (unsigned)program_slowness();
        while (raw_room(&r) < 64) {
            raw_publish(&r);
            if (test_clock_us() > end)
                fail_msg("the daemon stopped reading at %u", i);
        }
        raw_put(&r, &head, sizeof head);
    }
    raw_publish(&r);
    daemon_assert_serves(&d);
    raw_close(&r);
}

static void child_dies_mid_request(void)
{
    struct raw r;
    struct infer_abi_submit submit;
    raw_open(&r, &d);
    for (uint32_t i = 1; i <= 8; i++) {
        raw_submit_default(&submit, i, 1900);
        submit.head.bytes = sizeof submit + 5;
        submit.input_bytes = 5;
        raw_put_submit(&r, &submit, "Hello", 5);
    }
    raw_publish(&r);
    usleep(2000);
    kill(getpid(), SIGKILL);
}

static void test_death_mid_request(void **state)
{
    for (int i = 0; i < 10; i++) {
        int status;
        fflush(NULL);
        pid_t pid = fork();
        assert_true(pid >= 0);
        if (pid == 0) {
            child_dies_mid_request();
            _exit(1);
        }
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_true(WIFSIGNALED(status));
    }
    struct infer_conn *c = answer_connect(&d);
    answer_wait_idle(c);
    answer_wait_sessions(c, 1); /* only this one is left */
    infer_close(c);
}

/* One that never reads is parked; others are served at full speed meanwhile. */
static void test_never_reads(void **state)
{
    struct raw r;
    struct infer_abi_hello hello;
    struct infer_abi_submit submit;
    raw_hello_default(&hello);
    hello.token_ring_bytes = INFER_TOKEN_RING_MIN;
    assert_int_equal(raw_handshake(&r, &d, &hello, sizeof hello), 1);
    for (uint32_t i = 1; i <= 4; i++) {
        raw_submit_default(&submit, i, 1900);
        submit.head.bytes = sizeof submit + 5;
        submit.input_bytes = 5;
        raw_put_submit(&r, &submit, "Hello", 5);
    }
    raw_publish(&r);
    usleep(20000);
    for (int i = 0; i < 20; i++)
        daemon_assert_serves(&d);
    raw_close(&r);
}

/* An argument picks tests by a pattern. */
int main(int argc, char **argv)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, before_each, after_each)
    const struct CMUnitTest tests[] = {
        TEST(test_hello_garbage),
        TEST(test_hello_versions),
        TEST(test_hello_longer_and_ring_sizes),
        TEST(test_silent_connections),
        TEST(test_hello_with_descriptors),
        TEST(test_many_sessions),
        TEST(test_seals_hold),
        TEST(test_bells_turned_against_the_daemon),
        TEST(test_impossible_tail),
        TEST(test_impossible_head),
        TEST(test_record_lengths),
        TEST(test_record_half_published),
        TEST(test_unknown_kind),
        TEST(test_request_zero),
        TEST(test_duplicate_request),
        TEST(test_submit_lengths),
        TEST(test_submit_fields),
        TEST(test_payload_never_comes),
        TEST(test_payload_disorder),
        TEST(test_flood),
        TEST(test_flood_of_cancels),
        TEST(test_death_mid_request),
        TEST(test_never_reads),
    };
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, setup, teardown);
}
