/* test_loop_choice.c: which event loop is chosen, and what a forbidden io_uring leads to. */
#include "io/loop.h"

#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static struct loop *loop;

static void stop_now(void *ctx)
{
    (void)ctx;
    loop_stop(loop, 0);
}

static void explicit_kinds_are_what_they_say(void **state)
{
    (void)state;
    assert_int_equal(loop_new(LOOP_EPOLL, &loop), 0);
    assert_string_equal(loop_name(loop), "epoll");
    loop_free(loop);
    int r = loop_new(LOOP_IO_URING, &loop);
    if (r < 0) {
        assert_int_equal(loop_new(LOOP_AUTO, &loop), 0);
        assert_string_equal(loop_name(loop), "epoll");
    } else {
        assert_string_equal(loop_name(loop), "io_uring");
        loop_free(loop);
        assert_int_equal(loop_new(LOOP_AUTO, &loop), 0);
        assert_string_equal(loop_name(loop), "io_uring");
    }
    loop_free(loop);
    loop_free(NULL);
}

/* In a child whose kernel answers io_uring_setup with EPERM, as container runtimes' filters do. */
static int without_io_uring(void)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {.len = 4, .filter = filter};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0)
        return 77;
    if (loop_new(LOOP_IO_URING, &loop) != -EPERM)
        return 1;
    if (loop_new(LOOP_AUTO, &loop) != 0 || strcmp(loop_name(loop), "epoll") != 0)
        return 2;
    if (loop_timer(loop, 1000, 0, stop_now, NULL, NULL) != 0)
        return 4;
    return loop_run(loop) == 0 ? 0 : 3;
}

static void a_filter_leads_to_epoll(void **state)
{
    (void)state;
    int status;
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0)
        _exit(without_io_uring());
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == 77)
        skip();
    assert_int_equal(WEXITSTATUS(status), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(explicit_kinds_are_what_they_say),
        cmocka_unit_test(a_filter_leads_to_epoll),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
