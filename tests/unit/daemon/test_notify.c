/* test_notify.c: what goes to the service manager, heard at a socket of the test's own. */
#include "notify.h"

#include "base/clock.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

static struct loop *loop;
static struct notify *notify;
static int manager = -1;
static char heard[1024];

static void listen_at(const char *name)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    size_t bytes = strlen(name);
    memcpy(a.sun_path, name, bytes);
    if (name[0] == '@')
        a.sun_path[0] = '\0';
    manager = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    assert_int_equal(bind(manager, (struct sockaddr *)&a,
                          (socklen_t)(offsetof(struct sockaddr_un, sun_path) + bytes)),
                     0);
    setenv("NOTIFY_SOCKET", name, 1);
}

static const char *abstract_name(void)
{
    static char name[64];
    snprintf(name, sizeof name, "@inferd-test-notify-%d", (int)getpid());
    return name;
}

static int set_up(void **state)
{
    unsetenv("FDSTORE");
    unsetenv("WATCHDOG_USEC");
    unsetenv("WATCHDOG_PID");
    listen_at(abstract_name());
    assert_int_equal(loop_new(LOOP_EPOLL, &loop), 0);
    return 0;
}

static int tear_down(void **state)
{
    notify_free(notify);
    notify = NULL;
    loop_free(loop);
    close(manager);
    unsetenv("NOTIFY_SOCKET");
    return 0;
}

static void make(void)
{
    assert_int_equal(notify_new(loop, &notify), 0);
}

/* The next message; "" when none has come. */
static const char *hear(void)
{
    ssize_t n = recv(manager, heard, sizeof heard - 1, 0);
    heard[n > 0 ? n : 0] = '\0';
    return heard;
}

static void end_loop(void *ctx)
{
    loop_stop(loop, 0);
}

static void run_for(unsigned ms)
{
    assert_int_equal(loop_timer(loop, ms * 1000u, 0, end_loop, NULL, NULL), 0);
    assert_int_equal(loop_run(loop), 0);
}

static void test_without_a_manager(void **state)
{
    unsetenv("NOTIFY_SOCKET");
    setenv("WATCHDOG_USEC", "1000", 1);
    make();
    assert_false(notify_is_on(notify));
    assert_false(notify_stores(notify));
    notify_ready(notify, "serving");
    notify_status(notify, "serving");
    notify_stopping(notify, 1);
    assert_int_equal(notify_store(notify, 0, "x"), -ENOTSUP);
    assert_int_equal(notify_watch(notify, NULL, NULL), 0);
    uint64_t before = loop_wakeups(loop);
    run_for(50);
    assert_true(loop_wakeups(loop) <= before + 2); /* this test's own timer */
    notify_ready(NULL, "");
    assert_false(notify_is_on(NULL));
}

static void test_bad_addresses(void **state)
{
    char longest[160];
    const char *const bad[] = {"", "/", "@", "relative", "vsock:1:2", longest};
    memset(longest, '/', sizeof longest - 1);
    longest[sizeof longest - 1] = '\0';
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        setenv("NOTIFY_SOCKET", bad[i], 1);
        assert_int_equal(notify_new(loop, &notify), -EINVAL);
        assert_null(notify);
    }
}

static void test_states(void **state)
{
    make();
    assert_null(getenv("NOTIFY_SOCKET")); /* nobody whom we might start inherits it */
    notify_ready(notify, "serving 2 models");
    assert_string_equal(hear(), "READY=1\nSTATUS=serving 2 models");
    notify_reloading(notify);
    assert_int_equal(strncmp(hear(), "RELOADING=1\nMONOTONIC_USEC=", 27), 0);
    uint64_t told = strtoull(heard + 27, NULL, 10);
    assert_true(told <= clock_us() && clock_us() - told < 5000000);
    notify_stopping(notify, 12345678);
    assert_string_equal(hear(), "STOPPING=1\nEXTEND_TIMEOUT_USEC=12345678");
    assert_string_equal(hear(), "");
}

static void test_path_address(void **state)
{
    char folder[] = "/tmp/inferd-test-XXXXXX", path[64];
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/notify", folder);
    close(manager);
    listen_at(path);
    make();
    notify_ready(notify, "");
    assert_string_equal(hear(), "READY=1\nSTATUS=");
    unlink(path);
    rmdir(folder);
}

/* Once a second at most, the last one wins, nothing twice. */
static void test_status(void **state)
{
    make();
    notify_status(notify, "one");
    assert_string_equal(hear(), "STATUS=one");
    notify_status(notify, "one");
    for (int i = 0; i < 100; i++)
        notify_status(notify, i % 2 ? "three\nREADY=1" : "two");
    assert_string_equal(hear(), "");
    run_for(600);
    assert_string_equal(hear(), "");
    run_for(700);
    assert_string_equal(hear(), "STATUS=three READY=1"); /* a line is a line */
    assert_string_equal(hear(), "");
    notify_status(notify, "four");
    notify_status(notify, "three\nREADY=1"); /* back before it was told */
    uint64_t before = loop_wakeups(loop);
    run_for(1300);
    assert_string_equal(hear(), "");
    assert_true(loop_wakeups(loop) <= before + 4);
    before = loop_wakeups(loop);
    run_for(300);
    assert_true(loop_wakeups(loop) <= before + 2); /* idle: no timer is left */
}

/* More time is asked for only while bytes flow, and only before READY. */
static void test_progress(void **state)
{
    make();
    notify_progress(notify, "loading x: 0 %", 0);
    assert_string_equal(hear(), "STATUS=loading x: 0 %");
    notify_progress(notify, "loading x: 1 %", 100);
    assert_string_equal(hear(), "");
    usleep(1050000);
    notify_progress(notify, "loading x: 2 %", 200);
    assert_string_equal(hear(), "STATUS=loading x: 2 %\nEXTEND_TIMEOUT_USEC=30000000");
    usleep(1050000);
    notify_progress(notify, "loading x: 2 %", 200);
    assert_string_equal(hear(), "");
    notify_ready(notify, "serving");
    hear();
    usleep(1050000);
    notify_progress(notify, "loading y: 50 %", 300);
    assert_string_equal(hear(), "STATUS=loading y: 50 %");
}

static bool is_moving(void *ctx)
{
    return *(bool *)ctx;
}

static int count_fed(unsigned ms)
{
    int n = 0;
    run_for(ms);
    while (strcmp(hear(), "") != 0)
        n += strcmp(heard, "WATCHDOG=1") == 0;
    return n;
}

static void test_watchdog(void **state)
{
    char pid[16];
    bool moving = true;
    snprintf(pid, sizeof pid, "%d", (int)getpid());
    setenv("WATCHDOG_USEC", "200000", 1);
    setenv("WATCHDOG_PID", pid, 1);
    make();
    assert_int_equal(notify_watch(notify, is_moving, &moving), 0);
    assert_in_range(count_fed(1050), 5, 11); /* twice in its time; fewer on a slow machine */
    moving = false;
    assert_int_equal(count_fed(500), 0);
    moving = true;
    assert_true(count_fed(500) > 0);
}

static void test_watchdog_of_another(void **state)
{
    bool moving = true;
    setenv("WATCHDOG_USEC", "100000", 1);
    setenv("WATCHDOG_PID", "1", 1);
    make();
    assert_int_equal(notify_watch(notify, is_moving, &moving), 0);
    assert_int_equal(count_fed(300), 0);
}

static void test_store(void **state)
{
    char text[256], long_name[NOTIFY_NAME_MAX + 1], control[CMSG_SPACE(sizeof(int))];
    struct iovec part = {text, sizeof text - 1};
    struct msghdr m = {.msg_iov = &part,
                       .msg_iovlen = 1,
                       .msg_control = control,
                       .msg_controllen = sizeof control};
    int ends[2], got;
    struct stat sent, come;
    make();
    assert_true(notify_stores(notify));
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
    assert_int_equal(notify_store(notify, ends[0], "client-1"), 0);
    ssize_t n = recvmsg(manager, &m, MSG_CMSG_CLOEXEC);
    assert_true(n > 0);
    text[n] = '\0';
    assert_string_equal(text, "FDSTORE=1\nFDNAME=client-1");
    assert_non_null(CMSG_FIRSTHDR(&m));
    memcpy(&got, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof got);
    assert_true(fstat(got, &come) == 0 && fstat(ends[0], &sent) == 0);
    assert_true(come.st_ino == sent.st_ino);
    notify_unstore(notify, "client-1");
    assert_string_equal(hear(), "FDSTOREREMOVE=1\nFDNAME=client-1");
    memset(long_name, 'x', sizeof long_name);
    long_name[NOTIFY_NAME_MAX] = '\0';
    assert_int_equal(notify_store(notify, ends[0], long_name), -EINVAL);
    close(got);
    close(ends[0]);
    close(ends[1]);
}

static void test_no_store(void **state)
{
    setenv("FDSTORE", "0", 1);
    make();
    assert_false(notify_stores(notify));
    assert_int_equal(notify_store(notify, manager, "client-1"), -ENOTSUP);
}

/* A manager that does not read, or is gone, does not stop us. */
static void test_deaf_manager(void **state)
{
    make();
    uint64_t began = clock_us();
    for (int i = 0; i < 2000; i++) {
        notify_stopping(notify, 1);
        if (clock_us() - began > NOTIFY_PATIENCE_MS * 1000u)
            break; /* the queue is full */
    }
    assert_true(clock_us() - began < 5000000);
    began = clock_us();
    notify_status(notify, "never waits");
    assert_true(clock_us() - began < 200000);
    close(manager);
    manager = -1;
    notify_ready(notify, "nobody hears it");
    assert_true(clock_us() - began < 2000000);
}

#define NOTIFY(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        NOTIFY(test_without_a_manager),
        NOTIFY(test_bad_addresses),
        NOTIFY(test_states),
        NOTIFY(test_path_address),
        NOTIFY(test_status),
        NOTIFY(test_progress),
        NOTIFY(test_watchdog),
        NOTIFY(test_store),
        NOTIFY(test_no_store),
        NOTIFY(test_watchdog_of_another),
        NOTIFY(test_deaf_manager),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
