/* test_sandbox.c: each case in a child of its own, since nobody comes out of a sandbox again. */
#include "sandbox.h"

#include "io/loop.h"
#include "io/stream.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#if defined(__SANITIZE_ADDRESS__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SANITIZED 1
#endif
#endif
#ifndef SANITIZED
#define SANITIZED 0 /* the sanitizer's leak check needs ptrace, prctl, clone, mmap */
#endif

#define NO_FILTER 77

/* ---- in the sandbox -------------------------------------------------------------------------- */

/* The wait status of a child that enters the sandbox and runs fn; its exit status is fn's value. */
static int in_sandbox_of(bool gpu, int (*fn)(void))
{
    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        char note[SANDBOX_NOTE_MAX];
        if (sandbox_enter(gpu, note) < 0) {
            fprintf(stderr, "%s\n", note);
            _exit(NO_FILTER);
        }
        _exit(fn());
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    if (WIFEXITED(status) && WEXITSTATUS(status) == NO_FILTER) {
        print_message("skip - no filter of system calls here\n");
        skip();
    }
    return status;
}

static void expect_exit(int status, int value)
{
    if (!WIFEXITED(status))
        fail_msg("ended by signal %d", WTERMSIG(status));
    assert_int_equal(WEXITSTATUS(status), value);
}

static void expect_killed(int (*fn)(void))
{
    int status = in_sandbox_of(false, fn);
    if (!WIFSIGNALED(status))
        fail_msg("it lived and exited with %d", WEXITSTATUS(status));
    assert_int_equal(WTERMSIG(status), SIGSYS);
}

/* ---- what kills ------------------------------------------------------------------------------ */

static int start_program(void)
{
    char *const arguments[] = {"true", NULL}, *const environment[] = {NULL};
    execve("/bin/true", arguments, environment);
    return 1;
}

static int trace(void)
{
    ptrace(PTRACE_ATTACH, getppid(), NULL, NULL);
    return 1;
}

static int start_process(void)
{
    if (syscall(SYS_fork) == 0)
        _exit(0);
    return 1;
}

static int clone_process(void)
{
    if (syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, 0) == 0)
        _exit(0);
    return 1;
}

static int mount_something(void)
{
    mount("none", "/tmp", "tmpfs", 0, NULL);
    return 1;
}

static int change_user(void)
{
    syscall(SYS_setuid, 0);
    return 1;
}

static int enter_namespace(void)
{
    unshare(CLONE_NEWUSER);
    return 1;
}

static int load_bpf(void)
{
    syscall(SYS_bpf, 0, NULL, 0);
    return 1;
}

static void what_takes_over_is_killed(void **state)
{
    (void)state;
    expect_killed(start_program);
    expect_killed(start_process);
    expect_killed(mount_something);
    expect_killed(change_user);
    expect_killed(enter_namespace);
    expect_killed(load_bpf);
    if (SANITIZED)
        return;
    expect_killed(trace);
    expect_killed(clone_process);
}

/* A thread that was there before the sandbox is in it, too. */
static pthread_barrier_t barrier;

static void *older_thread(void *arg)
{
    pthread_barrier_wait(&barrier);
    start_program();
    return arg;
}

static void threads_that_run_are_in_it(void **state)
{
    (void)state;
    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        char note[SANDBOX_NOTE_MAX];
        pthread_t thread;
        pthread_barrier_init(&barrier, NULL, 2);
        pthread_create(&thread, NULL, older_thread, NULL);
        if (sandbox_enter(false, note) < 0)
            _exit(NO_FILTER);
        pthread_barrier_wait(&barrier);
        pthread_join(thread, NULL);
        _exit(1);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    if (WIFEXITED(status) && WEXITSTATUS(status) == NO_FILTER)
        skip();
    assert_true(WIFSIGNALED(status));
    assert_int_equal(WTERMSIG(status), SIGSYS);
}

/* ---- what fails ------------------------------------------------------------------------------ */

#define MUST(condition)                                                                            \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%d: %s: errno %d\n", __LINE__, #condition, errno);                    \
            return 1;                                                                              \
        }                                                                                          \
    } while (0)
#define MUST_FAIL(call, with)                                                                      \
    do {                                                                                           \
        errno = 0;                                                                                 \
        MUST((call) == -1 && errno == (with));                                                     \
    } while (0)

static int try_others(void)
{
    struct rlimit limit = {1 << 20, 1 << 20};
    MUST_FAIL(socket(AF_INET, SOCK_STREAM, 0), EPERM);
    MUST_FAIL(socket(AF_NETLINK, SOCK_RAW, 0), EPERM);
    MUST_FAIL(symlink("/etc/passwd", "/tmp/inferd-no-link"), EPERM);
    MUST_FAIL(syscall(SYS_chown, "/", 0, 0), EPERM);
    MUST_FAIL(syscall(SYS_clone3, NULL, 0), ENOSYS);
    MUST_FAIL(syscall(SYS_io_setup, 1, NULL), EPERM);
    MUST_FAIL(syscall(9999), EPERM);
    if (SANITIZED)
        return 0;
    MUST_FAIL(kill(getppid(), SIGTERM), EPERM);
    MUST_FAIL(ioctl(0, TIOCSTI, "x"), EPERM);
    MUST_FAIL(prctl(PR_SET_DUMPABLE, 1), EPERM);
    MUST_FAIL(setrlimit(RLIMIT_CORE, &limit), EPERM);
    MUST_FAIL(syscall(SYS_tgkill, getppid(), getppid(), 0), EPERM);
    errno = 0;
    MUST(mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) ==
             MAP_FAILED &&
         errno == EPERM);
    void *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MUST(p != MAP_FAILED);
    MUST_FAIL(mprotect(p, 4096, PROT_READ | PROT_EXEC), EPERM);
    return 0;
}

static void the_rest_fails(void **state)
{
    (void)state;
    expect_exit(in_sandbox_of(false, try_others), 0);
}

static int look_at_privileges(void)
{
    bool system = geteuid() < 1000; /* the daemon of all users: no core, no debugger */
    if (!SANITIZED)
        MUST(prctl(PR_GET_DUMPABLE) == !system);
    FILE *f = fopen("/proc/self/status", "re");
    char line[128];
    bool none = false, filtered = false;
    while (f != NULL && fgets(line, sizeof line, f) != NULL) {
        none |= strcmp(line, "NoNewPrivs:\t1\n") == 0;
        filtered |= strcmp(line, "Seccomp:\t2\n") == 0;
    }
    MUST(f != NULL && none && filtered);
    fclose(f);
    return 0;
}

static void no_privileges_are_gained(void **state)
{
    (void)state;
    expect_exit(in_sandbox_of(false, look_at_privileges), 0);
}

/* ---- what a GPU's driver may ----------------------------------------------------------------- */

static int compile_code(void)
{
    void *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MUST(p != MAP_FAILED);
    MUST(mprotect(p, 4096, PROT_READ | PROT_EXEC) == 0);
    MUST_FAIL(ioctl(-1, 0xc0de), EBADF); /* it came through to the kernel */
    return 0;
}

static int start_program_on_gpu(void)
{
    return start_program();
}

static void a_gpu_needs_more_and_not_all(void **state)
{
    (void)state;
    expect_exit(in_sandbox_of(true, compile_code), 0);
    int status = in_sandbox_of(true, start_program_on_gpu);
    assert_true(WIFSIGNALED(status));
    assert_int_equal(WTERMSIG(status), SIGSYS);
}

/* ---- what still works ------------------------------------------------------------------------ */

static void *new_thread(void *arg)
{
    *(int *)arg = 42;
    return arg;
}

static void on_timer(void *loop)
{
    loop_stop(loop, 7);
}

static int take_rows(void *ctx, uint32_t tensor, uint64_t first_row, uint64_t n_rows,
                     const void *data)
{
    (void)tensor;
    (void)first_row;
    (void)data;
    *(uint64_t *)ctx += n_rows;
    return 0;
}

/* A model that is loaded later: a thread, a ring or reads of its own, huge pages, the page cache.
 */
static int stream(void)
{
    static const enum stream_method methods[] = {STREAM_URING, STREAM_PREAD};
    int fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    MUST(fd >= 0);
    for (size_t i = 0; i < 2; i++) {
        uint64_t rows = 0;
        struct report report = {0};
        struct stream_extent extent = {
            .fd = fd, .path = "/proc/self/exe", .bytes = 40000, .row_bytes = 100};
        struct stream_sink sink = {.ctx = &rows, .rows = take_rows};
        struct stream_options options = {.method = methods[i]};
        struct stream_stats stats;
        int r = stream_read(&extent, 1, &sink, &options, &stats, &report);
        if (r < 0)
            fprintf(stderr, "%s\n", report.text);
        MUST(r == 0 && rows == 400 && stats.uring == (methods[i] == STREAM_URING));
    }
    return close(fd);
}

static void models_load_in_it(void **state)
{
    (void)state;
    expect_exit(in_sandbox_of(false, stream), 0);
}

static int work(void)
{
    pthread_t thread;
    int value = 0;
    MUST(pthread_create(&thread, NULL, new_thread, &value) == 0);
    MUST(pthread_join(thread, NULL) == 0 && value == 42);
    static const enum loop_kind kinds[] = {LOOP_AUTO, LOOP_EPOLL};
    for (size_t i = 0; i < 2; i++) {
        struct loop *loop;
        MUST(loop_new(kinds[i], &loop) == 0);
        MUST(loop_timer(loop, 1000, 0, on_timer, loop, NULL) == 0);
        MUST(loop_run(loop) == 7);
        loop_free(loop);
    }
    char *big = malloc(8u << 20);
    MUST(big != NULL);
    memset(big, 1, 8u << 20);
    free(big);
    int fds[2], memory = memfd_create("x", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    MUST(memory >= 0 && ftruncate(memory, 4096) == 0);
    MUST(fcntl(memory, F_ADD_SEALS, F_SEAL_SHRINK) == 0);
    int s = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    MUST(s >= 0 && pipe2(fds, O_CLOEXEC) == 0);
    MUST(write(fds[1], "x", 1) == 1);
    MUST(kill(getppid(), 0) == 0);
    struct rlimit limit;
    MUST(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    unsigned char resident[1];
    MUST(mincore((void *)((uintptr_t)&barrier & ~4095ul), 1, resident) == 0 || errno == ENOMEM);
    uint64_t range[2] = {0}, counts[5];
    MUST(syscall(451, memory, range, counts, 0) == 0 || errno == ENOSYS || errno == EOPNOTSUPP);
    return 0;
}

static void the_daemons_own_work_goes_on(void **state)
{
    (void)state;
    expect_exit(in_sandbox_of(false, work), 0);
}

static int give_up(void)
{
    abort();
}

static void an_assertion_still_ends_it(void **state)
{
    (void)state;
    int status = in_sandbox_of(false, give_up);
    assert_true(WIFSIGNALED(status));
    assert_int_equal(WTERMSIG(status), SIGABRT);
}

/* ---- files below a directory ----------------------------------------------------------------- */

static char folder[64];
static int directory = -1;

static int make_folder(void **state)
{
    (void)state;
    strcpy(folder, "/tmp/inferd-sandbox-XXXXXX");
    if (mkdtemp(folder) == NULL || (directory = open(folder, O_RDONLY | O_DIRECTORY)) < 0)
        return -1;
    int outside = openat(directory, "outside", O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    if (outside < 0 || mkdirat(directory, "models", 0700) < 0 ||
        mkdirat(directory, "models/deep", 0700) < 0)
        return -1;
    close(outside);
    close(directory);
    char path[128];
    snprintf(path, sizeof path, "%s/models", folder);
    directory = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int file = openat(directory, "m.gguf", O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    int deep = openat(directory, "deep/d.gguf", O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    if (file < 0 || deep < 0 || write(file, "GGUF", 4) != 4 ||
        symlinkat("m.gguf", directory, "link.gguf") < 0 ||
        symlinkat("../outside", directory, "out.gguf") < 0 ||
        symlinkat("deep", directory, "linked") < 0 || mkfifoat(directory, "pipe.gguf", 0600) < 0)
        return -1;
    close(file);
    close(deep);
    return 0;
}

static int remove_folder(void **state)
{
    (void)state;
    static const char *const names[] = {"m.gguf",   "deep/d.gguf", "link.gguf",
                                        "out.gguf", "linked",      "pipe.gguf"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        unlinkat(directory, names[i], 0);
    unlinkat(directory, "deep", AT_REMOVEDIR);
    unlinkat(directory, "../outside", 0);
    close(directory);
    char path[128];
    snprintf(path, sizeof path, "%s/models", folder);
    rmdir(path);
    return rmdir(folder);
}

static const struct {
    const char *path;
    int want; /* 0: opens */
} paths[] = {
    {"m.gguf", 0},
    {"deep/d.gguf", 0},
    {"./deep//d.gguf", 0},
    {"../outside", -EXDEV},
    {"deep/../../outside", -EXDEV},
    {"/etc/passwd", -EXDEV},
    {"link.gguf", -ELOOP},
    {"out.gguf", -ELOOP},
    {"linked/d.gguf", -ELOOP},
    {"deep", -EISDIR},
    {"deep/", -EISDIR},
    {".", -EISDIR},
    {"pipe.gguf", -EINVAL}, /* and does not wait for its writer */
    {"absent.gguf", -ENOENT},
    {"m.gguf/x", -ENOTDIR},
    {"", -ENOENT},
};

static int check_paths(void)
{
    for (size_t i = 0; i < sizeof paths / sizeof paths[0]; i++) {
        int fd = sandbox_open_beneath(directory, paths[i].path);
        if (paths[i].want < 0 ? fd != paths[i].want : fd < 0) {
            fprintf(stderr, "'%s': %d, not %d\n", paths[i].path, fd, paths[i].want);
            return 1;
        }
        if (fd < 0)
            continue;
        MUST((fcntl(fd, F_GETFL) & (O_NONBLOCK | O_ACCMODE)) == O_RDONLY);
        MUST((fcntl(fd, F_GETFD) & FD_CLOEXEC) != 0);
        close(fd);
    }
    return 0;
}

static void nothing_leads_out(void **state)
{
    (void)state;
    assert_int_equal(check_paths(), 0);
    expect_exit(in_sandbox_of(false, check_paths), 0);
}

/* Links of /proc/self/fd are no way out: "magic" links jump without a path. */
static void magic_links_are_refused(void **state)
{
    (void)state;
    int self = open("/proc/self", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int file = openat(directory, "m.gguf", O_RDONLY | O_CLOEXEC);
    char path[32];
    assert_true(self >= 0 && file >= 0);
    snprintf(path, sizeof path, "fd/%d", file);
    assert_int_equal(sandbox_open_beneath(self, path), -ELOOP);
    assert_int_equal(sandbox_open_beneath(self, "exe"), -ELOOP);
    close(self);
    close(file);
}

/* ---- descriptors of clients ------------------------------------------------------------------ */

static void only_files_for_reading(void **state)
{
    (void)state;
    int fds[2];
    assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
    assert_int_equal(sandbox_check_file(fds[0]), -EINVAL);
    close(fds[0]);
    close(fds[1]);
    assert_int_equal(sandbox_check_file(-1), -EBADF);
    assert_int_equal(sandbox_check_file(directory), -EISDIR);
    static const struct {
        const char *path;
        int flags, want;
    } rows[] = {
        {"m.gguf", O_RDONLY, 0},          {"m.gguf", O_RDWR, 0},
        {"m.gguf", O_WRONLY, -EACCES},    {"m.gguf", O_PATH, -EACCES},
        {"/dev/zero", O_RDONLY, -EINVAL}, {"pipe.gguf", O_RDONLY | O_NONBLOCK, -EINVAL},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        int fd = openat(directory, rows[i].path, rows[i].flags | O_CLOEXEC);
        assert_true(fd >= 0);
        assert_int_equal(sandbox_check_file(fd), rows[i].want);
        close(fd);
    }
    int s = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_int_equal(sandbox_check_file(s), -EINVAL);
    close(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_takes_over_is_killed),
        cmocka_unit_test(threads_that_run_are_in_it),
        cmocka_unit_test(the_rest_fails),
        cmocka_unit_test(no_privileges_are_gained),
        cmocka_unit_test(a_gpu_needs_more_and_not_all),
        cmocka_unit_test(the_daemons_own_work_goes_on),
        cmocka_unit_test(models_load_in_it),
        cmocka_unit_test(an_assertion_still_ends_it),
        cmocka_unit_test_setup_teardown(nothing_leads_out, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(magic_links_are_refused, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(only_files_for_reading, make_folder, remove_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
