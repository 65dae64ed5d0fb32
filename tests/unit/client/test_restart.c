/* test_restart.c: libinferclient when the daemon goes and another one comes, over a socket that was
 * kept meanwhile: one error for each unfinished request, then on with the same connection; and
 * welcomes that no good daemon would send. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "fixture.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>

/* Who has heard of the daemon just now does not look at the socket before it submits. */
#define QUIET_US 50000

static int set_up_kept(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    f->daemon = fake_new();
    f->daemon->keeps = true;
    f->conn = join(f->daemon, 0, 0);
    *state = f;
    return 0;
}

static int count_fds(void)
{
    int n = 0;
    for (int fd = 0; fd < 256; fd++)
        n += fcntl(fd, F_GETFD) >= 0;
    return n;
}

/* Waits for QUEUED, so that the request is known to run. */
static uint32_t ask_hanging(struct infer_conn *c)
{
    struct infer_event e;
    uint32_t id = ask(c, "hang");
    assert_int_equal(infer_next(c, id, 10000, &e), 1);
    assert_int_equal(e.kind, INFER_EVENT_QUEUED);
    return id;
}

static void expect_end(struct infer_conn *c, uint32_t id, int error)
{
    struct infer_event e;
    uint64_t began = clock_us();
    assert_int_equal(infer_next(c, id, 5000, &e), 1);
    assert_int_equal(e.kind, INFER_EVENT_DONE);
    assert_int_equal(e.error, error);
    assert_true(clock_us() - began < 2000000); /* not the 30 s that a welcome may take */
    assert_int_equal(infer_next(c, id, 0, &e), -INFER_E_NOT_FOUND);
}

struct later {
    struct fake_daemon *daemon;
    unsigned after_us;
    pthread_t thread;
};

static void *start_later(void *arg)
{
    struct later *l = arg;
    usleep(l->after_us);
    fake_start(l->daemon);
    return NULL;
}

/* Killed: the socket stays open, the bell hangs up. A request submitted meanwhile waits. */
static void test_killed(void **state)
{
    struct fixture *f = *state;
    uint32_t first = ask_hanging(f->conn), second = ask_hanging(f->conn);
    fake_kill(f->daemon);
    assert_int_equal(f->daemon->n_kept, 1);
    expect_end(f->conn, first, INFER_E_DAEMON_LOST);
    expect_end(f->conn, second, INFER_E_DAEMON_LOST);
    struct later l = {f->daemon, 200000, 0};
    uint64_t began = clock_us();
    pthread_create(&l.thread, NULL, start_later, &l);
    uint32_t id = ask(f->conn, "count:1000");
    assert_true(clock_us() - began >= 200000);
    pthread_join(l.thread, NULL);
    assert_int_equal(read_all(f->conn, id, NULL), 1000);
    assert_int_equal(f->daemon->n_requests, 3);
}

static void test_stopped(void **state)
{
    struct fixture *f = *state;
    uint32_t id = ask_hanging(f->conn);
    f->daemon->close_code = INFER_E_SHUTDOWN;
    expect_end(f->conn, id, INFER_E_SHUTDOWN);
    fake_kill(f->daemon);
    fake_start(f->daemon);
    id = ask(f->conn, "hello again, all of you");
    read_all(f->conn, id, "hello again, all of you");
}

/* Nobody looks while several daemons come and go: the last one's welcome counts. */
static void test_many_restarts_unseen(void **state)
{
    struct fixture *f = *state;
    int n_fds = count_fds();
    for (int i = 0; i < 20; i++) {
        fake_kill(f->daemon);
        assert_int_equal(f->daemon->n_kept, 1);
        fake_start(f->daemon);
    }
    usleep(QUIET_US);
    assert_int_equal(read_all(f->conn, ask(f->conn, "count:10"), NULL), 10);
    assert_int_equal(count_fds(), n_fds);
}

/* Nothing leaks and no request is lost when restarts and requests come in turns. */
static void test_many_restarts_seen(void **state)
{
    struct fixture *f = *state;
    int n_fds = count_fds();
    for (int i = 0; i < 20; i++) {
        uint32_t id = ask_hanging(f->conn);
        fake_kill(f->daemon);
        expect_end(f->conn, id, INFER_E_DAEMON_LOST);
        fake_start(f->daemon);
        read_all(f->conn, ask(f->conn, "hello"), "hello");
    }
    assert_int_equal(count_fds(), n_fds);
    assert_int_equal(f->daemon->n_requests, 40);
}

/* The one who kept the socket gives it up: connected anew. */
static void test_not_kept_after_all(void **state)
{
    struct fixture *f = *state;
    uint32_t id = ask_hanging(f->conn);
    fake_kill(f->daemon);
    expect_end(f->conn, id, INFER_E_DAEMON_LOST);
    close(f->daemon->kept[0].socket);
    f->daemon->n_kept = 0;
    struct infer_request r;
    infer_request_default(&r);
    r.text = "hello";
    assert_int_equal(infer_submit(f->conn, &r, &id), -INFER_E_DAEMON_ABSENT);
    fake_start(f->daemon);
    read_all(f->conn, ask(f->conn, "hello"), "hello");
}

static bool readable(int fd, int timeout_ms)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    return poll(&p, 1, timeout_ms) == 1;
}

/* A main loop: the descriptor speaks when the daemon dies, is silent while nobody is there, speaks
 * when the next one comes, and stays the same one. */
static void test_main_loop(void **state)
{
    struct fixture *f = *state;
    struct infer_event e;
    int fd = infer_poll_fd(f->conn);
    for (int i = 0; i < 3; i++) {
        uint32_t id = ask_hanging(f->conn);
        assert_int_equal(infer_next(f->conn, 0, 0, &e), 0);
        fake_kill(f->daemon);
        assert_true(readable(fd, 2000));
        assert_int_equal(infer_next(f->conn, 0, 0, &e), 1);
        assert_int_equal(e.request, id);
        assert_int_equal(e.error, INFER_E_DAEMON_LOST);
        assert_int_equal(infer_next(f->conn, 0, 0, &e), -INFER_E_DAEMON_LOST);
        assert_false(readable(fd, 50));
        fake_start(f->daemon);
        assert_true(readable(fd, 2000));
        assert_int_equal(infer_next(f->conn, 0, 0, &e), 0);
        assert_false(readable(fd, 50));
        assert_int_equal(infer_poll_fd(f->conn), fd);
        ask(f->conn, "count:3");
        uint32_t n = 0;
        e.kind = 0;
        do {
            if (infer_next(f->conn, 0, 0, &e) == 0)
                assert_true(readable(fd, 5000));
            else
                n += e.kind == INFER_EVENT_TOKEN;
        } while (e.kind != INFER_EVENT_DONE);
        assert_int_equal(n, 3);
    }
    fake_kill(f->daemon); /* and when the socket hangs up in the end */
    assert_true(readable(fd, 2000));
    assert_int_equal(infer_next(f->conn, 0, 0, &e), -INFER_E_DAEMON_LOST);
    close(f->daemon->kept[0].socket);
    f->daemon->n_kept = 0;
    assert_true(readable(fd, 2000));
    assert_int_equal(infer_next(f->conn, 0, 0, &e), -INFER_E_DAEMON_LOST);
    assert_false(readable(fd, 50));
    fake_start(f->daemon);
}

/* The page is the new daemon's. */
static void test_page(void **state)
{
    static struct infer_page page;
    struct fixture *f = *state;
    assert_int_equal(infer_read_page(f->conn, &page), 0);
    fake_kill(f->daemon);
    f->daemon->started_us = clock_us();
    fake_start(f->daemon);
    usleep(50000);
    assert_int_equal(infer_read_page(f->conn, &page), 0);
    assert_true(page.status.uptime_us < 60000000);
    assert_string_equal(page.status.version, "0.1");
}

/* A child never takes its parent's welcome. */
static void test_fork(void **state)
{
    struct fixture *f = *state;
    uint32_t id = ask_hanging(f->conn);
    fake_kill(f->daemon);
    expect_end(f->conn, id, INFER_E_DAEMON_LOST);
    pid_t child = fork();
    if (child == 0) {
        struct infer_request r;
        infer_request_default(&r);
        r.text = "hello";
        _exit(infer_submit(f->conn, &r, &id) == -INFER_E_DAEMON_ABSENT ? 0 : 1);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    fake_start(f->daemon);
    read_all(f->conn, ask(f->conn, "hello"), "hello");
}

/* ---- many ------------------------------------------------------------------------------------ */

#define USERS    FAKE_SESSIONS
#define RESTARTS 10

struct user {
    struct fake_daemon *daemon;
    atomic_bool *over;
    pthread_t thread;
    uint32_t n_good, n_lost, n_other;
};

/* Never connects but once. */
static void *user_main(void *arg)
{
    struct user *u = arg;
    struct infer_conn *c = join(u->daemon, 0, 0);
    while (!*u->over) {
        struct infer_request r;
        struct infer_event e = {0};
        uint32_t id;
        infer_request_default(&r);
        r.text = "count:50";
        int code = infer_submit(c, &r, &id);
        while (code == 0 && e.kind != INFER_EVENT_DONE)
            if (infer_next(c, id, 20000, &e) != 1)
                code = 1;
        if (code == 0)
            code = -e.error;
        u->n_good += code == 0;
        u->n_lost += code == -INFER_E_DAEMON_LOST;
        u->n_other += code != 0 && code != -INFER_E_DAEMON_LOST;
    }
    infer_close(c);
    return NULL;
}

static void test_many_clients(void **state)
{
    struct fake_daemon *d = fake_new();
    struct user users[USERS];
    atomic_bool over = false;
    d->keeps = true;
    for (int i = 0; i < USERS; i++) {
        users[i] = (struct user){.daemon = d, .over = &over};
        pthread_create(&users[i].thread, NULL, user_main, &users[i]);
    }
    for (int i = 0; i < RESTARTS; i++) {
        usleep(60000);
        fake_kill(d);
        usleep(20000);
        fake_start(d);
    }
    usleep(200000);
    over = true;
    for (int i = 0; i < USERS; i++) {
        pthread_join(users[i].thread, NULL);
        assert_int_equal(users[i].n_other, 0);
        assert_true(users[i].n_lost <= RESTARTS);
        assert_true(users[i].n_good > 0);
    }
    fake_free(d);
}

/* ---- strange welcomes ------------------------------------------------------------------------ */

static void send_strange(int socket, const struct infer_abi_welcome *welcome, size_t bytes,
                         int n_fds, off_t file_bytes, int seals)
{
    int fds[8];
    char control[CMSG_SPACE(sizeof fds)] = {0};
    for (int i = 0; i < n_fds; i++) {
        fds[i] = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
        if (fds[i] < 0 || ftruncate(fds[i], file_bytes) < 0 ||
            (seals != 0 && fcntl(fds[i], F_ADD_SEALS, seals) < 0))
            abort();
    }
    struct iovec part = {(void *)(uintptr_t)welcome, bytes};
    struct msghdr m = {.msg_iov = &part, .msg_iovlen = 1};
    if (n_fds > 0) {
        m.msg_control = control;
        m.msg_controllen = CMSG_SPACE((size_t)n_fds * sizeof(int));
        struct cmsghdr *c = CMSG_FIRSTHDR(&m);
        *c = (struct cmsghdr){.cmsg_level = SOL_SOCKET,
                              .cmsg_type = SCM_RIGHTS,
                              .cmsg_len = CMSG_LEN((size_t)n_fds * sizeof(int))};
        memcpy(CMSG_DATA(c), fds, (size_t)n_fds * sizeof(int));
    }
    assert_true(sendmsg(socket, &m, MSG_NOSIGNAL) >= 0);
    for (int i = 0; i < n_fds; i++)
        close(fds[i]);
}

/* Each is refused without a crash or a leak, and the connection is made anew. */
static void test_strange_welcomes(void **state)
{
    enum {
        SHORT,
        EMPTY,
        MAGIC,
        VERSION,
        FEW,
        MANY,
        RING,
        HUGE_RING,
        FILE_SHORT,
        UNSEALED,
        REFUSAL
    };
    for (int i = SHORT; i <= REFUSAL; i++) {
        struct fake_daemon *d = fake_new();
        d->keeps = true;
        struct infer_conn *c = join(d, 0, 0);
        int n_fds = 5, seals = F_SEAL_SHRINK, before = count_fds();
        size_t bytes = sizeof(struct infer_abi_welcome);
        off_t file_bytes = 1 << 20;
        struct infer_abi_welcome w = {.magic = INFER_ABI_MAGIC,
                                      .bytes = sizeof w,
                                      .version = INFER_ABI_VERSION,
                                      .request_ring_bytes = INFER_REQUEST_RING_DEFAULT,
                                      .token_ring_bytes = INFER_TOKEN_RING_DEFAULT,
                                      .features = INFER_ABI_KEEPS_SOCKET};
        uint32_t id = ask_hanging(c);
        fake_kill(d);
        expect_end(c, id, INFER_E_DAEMON_LOST);
        if (i == SHORT)
            bytes = 100;
        else if (i == EMPTY)
            bytes = 0;
        else if (i == MAGIC)
            w.magic++;
        else if (i == VERSION)
            w.version = 9;
        else if (i == FEW)
            n_fds = 3;
        else if (i == MANY) {
            n_fds = 8;
            w.magic++;
        } else if (i == RING)
            w.token_ring_bytes = 12345;
        else if (i == HUGE_RING)
            w.request_ring_bytes = UINT32_MAX;
        else if (i == FILE_SHORT)
            file_bytes = 4096; /* would be SIGBUS */
        else if (i == UNSEALED)
            seals = 0;
        else {
            w.error = INFER_E_SESSIONS_FULL;
            n_fds = 0;
        }
        send_strange(d->kept[0].socket, &w, bytes, n_fds, file_bytes, seals);
        struct infer_request r;
        infer_request_default(&r);
        r.text = "hello";
        assert_int_equal(infer_submit(c, &r, &id), -INFER_E_DAEMON_ABSENT);
        close(d->kept[0].socket);
        d->n_kept = 0;
        fake_start(d);
        read_all(c, ask(c, "hello"), "hello");
        if (count_fds() != before)
            fail_msg("welcome %d: %d descriptors, %d before", i, count_fds(), before);
        infer_close(c);
        fake_free(d);
    }
}

/* One that can be used, though its daemon is a liar: it never answers, then speaks again and again.
 * Each of its welcomes ends what was submitted before; nothing hangs. */
static void test_welcome_after_welcome(void **state)
{
    struct fixture *f = *state;
    struct infer_event e;
    struct infer_abi_welcome w = {.magic = INFER_ABI_MAGIC,
                                  .bytes = sizeof w,
                                  .version = INFER_ABI_VERSION,
                                  .request_ring_bytes = INFER_REQUEST_RING_DEFAULT,
                                  .token_ring_bytes = INFER_TOKEN_RING_DEFAULT,
                                  .features = INFER_ABI_KEEPS_SOCKET};
    int before = count_fds();
    fake_kill(f->daemon);
    usleep(QUIET_US);
    for (int i = 0; i < 30; i++) {
        send_strange(f->daemon->kept[0].socket, &w, sizeof w, 5, 1 << 20, F_SEAL_SHRINK);
        uint32_t id = ask(f->conn, "hello");
        send_strange(f->daemon->kept[0].socket, &w, sizeof w, 5, 1 << 20, F_SEAL_SHRINK);
        expect_end(f->conn, id, INFER_E_DAEMON_LOST);
        assert_int_equal(infer_next(f->conn, 0, 0, &e), 0); /* the second of them is taken */
    }
    close(f->daemon->kept[0].socket);
    f->daemon->n_kept = 0;
    fake_start(f->daemon);
    usleep(QUIET_US);
    read_all(f->conn, ask(f->conn, "hello"), "hello");
    assert_int_equal(count_fds(), before);
}

/* What stands in a stored descriptor's name comes back, and nothing else is taken for it. */
static void test_memory_as_text(void **state)
{
    static const char *const bad[] = {"",
                                      "16-18",
                                      "16-18_",
                                      "16_18-",
                                      "32-18-",
                                      "16-99-",
                                      "1a-18-",
                                      "-1-18-",
                                      "16-18-4",
                                      "16-18-00",
                                      "16-18-4G",
                                      "16-18-4a4b4",
                                      "16-18-6161616161616161616161616161616161616161616161616161"
                                      "616161616161616161616161616161616161616161616161616161616161"
                                      "6161616161616161616161616161616161616161616161616161616161"};
    struct peer peer = {.client = "a program: \"x\""};
    struct peer_memory memory;
    struct session *s;
    char text[PEER_MEMORY_TEXT];
    assert_int_equal(session_new(&peer, 1u << 13, 1u << 20, -1, &s), 0);
    peer_memory_print(s, text);
    assert_int_equal(strspn(text, "0123456789abcdef-"), strlen(text));
    assert_true(peer_memory_parse(text, &memory));
    assert_int_equal(memory.request_ring_bytes, 1u << 13);
    assert_int_equal(memory.token_ring_bytes, 1u << 20);
    assert_string_equal(memory.client, peer.client);
    session_free(s);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        if (peer_memory_parse(bad[i], &memory))
            fail_msg("'%s' was taken", bad[i]);
}

#define KEPT(test) cmocka_unit_test_setup_teardown(test, set_up_kept, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        KEPT(test_killed),
        KEPT(test_stopped),
        KEPT(test_many_restarts_unseen),
        KEPT(test_many_restarts_seen),
        KEPT(test_not_kept_after_all),
        KEPT(test_main_loop),
        KEPT(test_page),
        KEPT(test_fork),
        cmocka_unit_test(test_many_clients),
        cmocka_unit_test(test_strange_welcomes),
        KEPT(test_welcome_after_welcome),
        cmocka_unit_test(test_memory_as_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
