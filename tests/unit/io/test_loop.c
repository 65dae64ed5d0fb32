/* test_loop.c: sockets, readiness and the lives of watches, as io/loop.h promises them. */
#include "loop_fixture.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/un.h>
#include <unistd.h>

/* ---- sockets --------------------------------------------------------------------------------- */

static struct sockaddr_un address;
static socklen_t address_bytes;

static int listen_somewhere(void)
{
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    address = (struct sockaddr_un){.sun_family = AF_UNIX};
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof address.sun_family), 0);
    address_bytes = sizeof address; /* autobind chose an abstract name */
    assert_int_equal(getsockname(fd, (struct sockaddr *)&address, &address_bytes), 0);
    assert_int_equal(listen(fd, 512), 0);
    return fd;
}

static int connect_there(void)
{
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&address, address_bytes), 0);
    return fd;
}

/* A server that remembers what each connection said. */
struct talker {
    int fd;
    struct loop_watch *watch;
    char said[64];
    ssize_t last;
};

static struct talker talkers[256];
static int n_talkers, n_gone, want_gone;

static void on_bytes(void *ctx, const void *bytes, ssize_t n)
{
    struct talker *t = ctx;
    t->last = n;
    if (n > 0) {
        strncat(t->said, bytes, (size_t)n);
        strcat(t->said, ";");
        return;
    }
    loop_unwatch(loop, t->watch);
    close(t->fd);
    if (++n_gone == want_gone)
        loop_stop(loop, 7);
}

static void on_connection(void *ctx, int fd)
{
    (void)ctx;
    if (fd < 0) {
        errors++;
        return;
    }
    int flags = fcntl(fd, F_GETFL), fd_flags = fcntl(fd, F_GETFD);
    if ((flags & O_NONBLOCK) == 0 || (fd_flags & FD_CLOEXEC) == 0)
        errors++;
    struct talker *t = &talkers[n_talkers++];
    *t = (struct talker){.fd = fd};
    if (loop_receive(loop, fd, 16, on_bytes, t, &t->watch) < 0)
        errors++;
}

static void serve(int clients)
{
    n_talkers = n_gone = 0;
    want_gone = clients;
}

static void accept_receive_hangup(void **state)
{
    NEED_LOOP();
    int fd = listen_somewhere();
    struct loop_watch *w;
    serve(1);
    assert_int_equal(loop_accept(loop, fd, on_connection, NULL, &w), 0);
    int client = connect_there();
    assert_int_equal(send(client, "one", 3, 0), 3);
    assert_int_equal(send(client, "two", 3, 0), 3);
    close(client);
    assert_int_equal(run_for_ms(5000), 7);
    assert_int_equal(errors, 0);
    assert_string_equal(talkers[0].said, "one;two;");
    assert_int_equal(talkers[0].last, 0);
    loop_unwatch(loop, w);
    close(fd);
}

static void many_connections_keep_their_order(void **state)
{
    NEED_LOOP();
    int fd = listen_somewhere(), clients[200];
    serve(200);
    assert_int_equal(loop_accept(loop, fd, on_connection, NULL, NULL), 0);
    for (int i = 0; i < 200; i++) {
        clients[i] = connect_there();
        char text[32];
        for (int k = 0; k < 3; k++)
            assert_true(send(clients[i], text, (size_t)sprintf(text, "%d.%d", i, k), 0) > 0);
    }
    for (int i = 0; i < 200; i++)
        close(clients[i]);
    assert_int_equal(run_for_ms(10000), 7);
    assert_int_equal(errors, 0);
    assert_int_equal(n_talkers, 200);
    for (int i = 0; i < 200; i++) {
        char want[64];
        sprintf(want, "%d.0;%d.1;%d.2;", i, i, i);
        assert_string_equal(talkers[i].said, want);
    }
    close(fd);
}

static void datagram_too_long_ends_the_watch(void **state)
{
    NEED_LOOP();
    int fd = listen_somewhere();
    serve(1);
    assert_int_equal(loop_accept(loop, fd, on_connection, NULL, NULL), 0);
    int client = connect_there();
    assert_int_equal(send(client, "0123456789abcdef", 16, 0), 16); /* exactly the limit */
    assert_int_equal(send(client, "0123456789abcdefg", 17, 0), 17);
    assert_int_equal(run_for_ms(5000), 7);
    assert_string_equal(talkers[0].said, "0123456789abcdef;");
    assert_int_equal(talkers[0].last, -EMSGSIZE);
    close(client);
    close(fd);
}

/* Out of descriptors: told, not spun on, and accepted once there are some again. */
static void accept_pauses_when_descriptors_run_out(void **state)
{
    NEED_LOOP();
    int fd = listen_somewhere();
    serve(1);
    assert_int_equal(loop_accept(loop, fd, on_connection, NULL, NULL), 0);
    int client = connect_there();
    struct rlimit old, none;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &old), 0);
    none = (struct rlimit){.rlim_cur = (rlim_t)client, .rlim_max = old.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
    uint64_t before = loop_wakeups(loop);
    int r = run_for_ms(250);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &old), 0);
    assert_int_equal(r, -ETIME);
    assert_in_range(errors, 1, 4);
    assert_in_range(loop_wakeups(loop) - before, 1, 20);
    assert_int_equal(n_talkers, 0);
    errors = 0;
    close(client);
    assert_int_equal(run_for_ms(5000), 7);
    assert_int_equal(errors, 0);
    close(fd);
}

/* After unwatch and close nothing of the socket is left, though an operation was in the kernel. */
static void unwatch_then_close_hangs_up(void **state)
{
    NEED_LOOP();
    int pair[2];
    struct talker *t = &talkers[0];
    *t = (struct talker){0};
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, pair), 0);
    assert_int_equal(loop_receive(loop, pair[0], 64, on_bytes, t, &t->watch), 0);
    assert_int_equal(run_for_ms(10), -ETIME);
    loop_unwatch(loop, t->watch);
    close(pair[0]);
    assert_int_equal(run_for_ms(10), -ETIME);
    struct pollfd p = {.fd = pair[1], .events = POLLIN};
    assert_int_equal(poll(&p, 1, 2000), 1);
    assert_true((p.revents & POLLHUP) != 0);
    close(pair[1]);
    int fd = listen_somewhere();
    struct loop_watch *w;
    assert_int_equal(loop_accept(loop, fd, on_connection, NULL, &w), 0);
    assert_int_equal(run_for_ms(10), -ETIME);
    loop_unwatch(loop, w);
    close(fd);
    assert_int_equal(run_for_ms(10), -ETIME);
    int client = socket(AF_UNIX, SOCK_SEQPACKET, 0);
    assert_int_equal(connect(client, (struct sockaddr *)&address, address_bytes), -1);
    assert_int_equal(errno, ECONNREFUSED);
    close(client);
}

/* Connections that the kernel had accepted for a watch that is gone are closed, not lost. */
static int late_client;

static void connect_then_unwatch(void *ctx)
{
    struct loop_watch **w = ctx;
    late_client = connect_there();
    loop_unwatch(loop, *w);
}

static void late_connections_are_closed(void **state)
{
    NEED_LOOP();
    int fd = listen_somewhere();
    struct loop_watch *w;
    assert_int_equal(loop_accept(loop, fd, on_connection, NULL, &w), 0);
    n_talkers = 0;
    assert_int_equal(loop_timer(loop, 2000, 0, connect_then_unwatch, &w, NULL), 0);
    assert_int_equal(run_for_ms(30), -ETIME);
    close(fd);
    assert_int_equal(n_talkers, 0);
    struct pollfd p = {.fd = late_client, .events = POLLIN};
    assert_int_equal(poll(&p, 1, 2000), 1);
    assert_true((p.revents & POLLHUP) != 0);
    close(late_client);
}

/* ---- readiness ------------------------------------------------------------------------------- */

/* Leaves the value there three times; then the loop must fall silent. */
static void drain_the_fourth_time(void *ctx, uint32_t events)
{
    int *fd = ctx;
    uint64_t value;
    if ((events & POLLIN) == 0)
        errors++;
    if (++hits < 4)
        return;
    if (read(*fd, &value, sizeof value) != (ssize_t)sizeof value)
        errors++;
    loop_stop(loop, 0);
}

static void readable_is_level_triggered(void **state)
{
    NEED_LOOP();
    int fd = eventfd(1, EFD_NONBLOCK);
    struct loop_watch *w;
    assert_int_equal(loop_readable(loop, fd, drain_the_fourth_time, &fd, &w), 0);
    assert_int_equal(run_for_ms(5000), 0);
    assert_int_equal(hits, 4);
    assert_int_equal(run_for_ms(20), -ETIME);
    assert_int_equal(hits, 4);
    assert_int_equal(eventfd_write(fd, 1), 0);
    assert_int_equal(run_for_ms(5000), 0);
    assert_int_equal(hits, 5);
    assert_int_equal(errors, 0);
    loop_unwatch(loop, w);
    close(fd);
}

static void stop_on_hangup(void *ctx, uint32_t events)
{
    struct loop_watch **w = ctx;
    if ((events & POLLHUP) != 0)
        loop_stop(loop, 3);
    loop_unwatch(loop, *w);
}

static void readable_tells_of_hangup(void **state)
{
    NEED_LOOP();
    int fds[2];
    struct loop_watch *w;
    assert_int_equal(pipe(fds), 0);
    assert_int_equal(loop_readable(loop, fds[0], stop_on_hangup, &w, &w), 0);
    close(fds[1]);
    assert_int_equal(run_for_ms(5000), 3);
    close(fds[0]);
}

static struct loop_watch *both[2];

static void unwatch_both(void *ctx, uint32_t events)
{
    (void)ctx;
    (void)events;
    hits++;
    loop_unwatch(loop, both[0]);
    loop_unwatch(loop, both[1]);
}

static void unwatch_in_callback_silences_the_other(void **state)
{
    NEED_LOOP();
    int a = eventfd(1, EFD_NONBLOCK), b = eventfd(1, EFD_NONBLOCK);
    for (int round = 0; round < 20; round++) {
        hits = 0;
        assert_int_equal(loop_readable(loop, a, unwatch_both, NULL, &both[0]), 0);
        assert_int_equal(loop_readable(loop, b, unwatch_both, NULL, &both[1]), 0);
        assert_int_equal(run_for_ms(5), -ETIME);
        assert_int_equal(hits, 1);
    }
    close(a);
    close(b);
}

static void hit_and_stop(void *ctx, uint32_t events)
{
    (void)ctx;
    (void)events;
    hits++;
    loop_stop(loop, 0);
}

static void fail_readable(void *ctx, uint32_t events)
{
    (void)ctx;
    (void)events;
    errors++;
}

/* More watches come and go than any queue holds; the last one still works. */
static void churn(void *ctx)
{
    int *fd = ctx;
    for (int i = 0; i < 3000; i++) {
        struct loop_watch *w;
        if (loop_readable(loop, *fd, fail_readable, NULL, &w) < 0)
            errors++;
        else
            loop_unwatch(loop, w);
    }
    if (loop_readable(loop, *fd, hit_and_stop, NULL, NULL) < 0 || eventfd_write(*fd, 1) != 0)
        errors++;
}

static void watches_churn(void **state)
{
    NEED_LOOP();
    int fd = eventfd(0, EFD_NONBLOCK);
    assert_int_equal(loop_timer(loop, 0, 0, churn, &fd, NULL), 0);
    assert_int_equal(run_for_ms(5000), 0);
    assert_int_equal(hits, 1);
    assert_int_equal(errors, 0);
    close(fd);
}

static int many_fds[600];
static struct loop_watch *many_watches[600];

static void drain_one(void *ctx, uint32_t events)
{
    int *fd = ctx;
    uint64_t value;
    (void)events;
    if (read(*fd, &value, sizeof value) == (ssize_t)sizeof value && ++hits == 600)
        loop_stop(loop, 0);
}

/* More armed at once than the submission queue holds, and all of them ready at once. */
static void many_watches_at_once(void **state)
{
    NEED_LOOP();
    for (int i = 0; i < 600; i++) {
        many_fds[i] = eventfd(0, EFD_NONBLOCK);
        assert_true(many_fds[i] >= 0);
        assert_int_equal(
            loop_readable(loop, many_fds[i], drain_one, &many_fds[i], &many_watches[i]), 0);
    }
    for (int round = 0; round < 3; round++) {
        hits = 0;
        for (int i = 0; i < 600; i++)
            assert_int_equal(eventfd_write(many_fds[i], 1), 0);
        assert_int_equal(run_for_ms(5000), 0);
        assert_int_equal(hits, 600);
    }
    for (int i = 0; i < 600; i++) {
        loop_unwatch(loop, many_watches[i]);
        close(many_fds[i]);
    }
    assert_int_equal(run_for_ms(5), -ETIME);
}

/* ---- cost, and life -------------------------------------------------------------------------- */

static uint64_t wakeups_then;

static void note_wakeups(void *ctx)
{
    (void)ctx;
    wakeups_then = loop_wakeups(loop);
}

static void no_signal(void *ctx, int signo)
{
    (void)ctx;
    (void)signo;
    errors++;
}

static void idle_loop_does_not_wake(void **state)
{
    NEED_LOOP();
    int fd = listen_somewhere(), pair[2], event = eventfd(0, EFD_NONBLOCK);
    sigset_t set, old;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    pthread_sigmask(SIG_BLOCK, NULL, &old);
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, pair), 0);
    assert_int_equal(loop_accept(loop, fd, on_connection, NULL, NULL), 0);
    assert_int_equal(loop_receive(loop, pair[0], 64, on_bytes, &talkers[0], NULL), 0);
    assert_int_equal(loop_readable(loop, event, fail_readable, NULL, NULL), 0);
    assert_int_equal(loop_signal(loop, &set, no_signal, NULL, NULL), 0);
    assert_int_equal(loop_timer(loop, 20000, 0, note_wakeups, NULL, NULL), 0);
    assert_int_equal(run_for_ms(320), -ETIME);
    /* note_wakeups() saw the turn that it ran in; the turn of the time-out follows. A timed wait
     * may end a moment early, which costs one more turn. */
    assert_in_range(loop_wakeups(loop) - wakeups_then, 1, 2);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    loop_free(loop); /* with everything in flight */
    loop = NULL;
    close(fd);
    close(pair[0]);
    close(pair[1]);
    close(event);
}

static void *run_it(void *ctx)
{
    (void)ctx;
    return (void *)(intptr_t)loop_run(loop);
}

static void loop_made_here_runs_there(void **state)
{
    NEED_LOOP();
    pthread_t thread;
    void *code;
    assert_int_equal(loop_timer(loop, 1000, 0, time_out, NULL, NULL), 0);
    assert_int_equal(pthread_create(&thread, NULL, run_it, NULL), 0);
    pthread_join(thread, &code);
    assert_int_equal((intptr_t)code, 99);
}

static void bad_arguments(void **state)
{
    NEED_LOOP();
    struct loop_watch *w = (struct loop_watch *)&hits;
    assert_int_equal(loop_receive(loop, 0, 0, on_bytes, NULL, &w), -EINVAL);
    assert_ptr_equal(w, &hits);
    loop_unwatch(loop, NULL);
}

static const struct loop_case cases[] = {
    CASE(accept_receive_hangup),
    CASE(many_connections_keep_their_order),
    CASE(datagram_too_long_ends_the_watch),
    CASE(accept_pauses_when_descriptors_run_out),
    CASE(unwatch_then_close_hangs_up),
    CASE(late_connections_are_closed),
    CASE(readable_is_level_triggered),
    CASE(readable_tells_of_hangup),
    CASE(unwatch_in_callback_silences_the_other),
    CASE(watches_churn),
    CASE(many_watches_at_once),
    CASE(idle_loop_does_not_wake),
    CASE(loop_made_here_runs_there),
    CASE(bad_arguments),
};

int main(void)
{
    return run_cases(cases, sizeof cases / sizeof cases[0]);
}
