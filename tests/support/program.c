/* program.c: runs a program to its end and keeps what it wrote.
 *
 * Output goes through two anonymous files rather than pipes, so that a program which writes much
 * on both never waits for the test. */
#include "support/program.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>

#include <cmocka.h>

const char *program_path(const char *name)
{
    static char path[PATH_MAX];
    const char *build = getenv("INFERD_BUILD");
    if (strchr(name, '/'))
        return name;
    snprintf(path, sizeof path, "%s/%s", build ? build : "build", name);
    return path;
}

int program_slowness(void)
{
    const char *build = getenv("INFERD_BUILD");
    return build && strstr(build, "san") ? 8 : 1;
}

static int memory_file(const char *name)
{
    int fd = memfd_create(name, MFD_CLOEXEC);
    if (fd < 0)
        fail_msg("memfd_create: %s", strerror(errno));
    return fd;
}

static char *read_all(int fd, size_t *ret_bytes)
{
    struct stat st;
    if (fstat(fd, &st) < 0)
        fail_msg("fstat: %s", strerror(errno));
    size_t bytes = (size_t)st.st_size;
    char *text = malloc(bytes + 1);
    assert_non_null(text);
    for (size_t have = 0; have < bytes;) {
        ssize_t n = pread(fd, text + have, bytes - have, (off_t)have);
        if (n <= 0)
            fail_msg("pread: %s", strerror(errno));
        have += (size_t)n;
    }
    text[bytes] = '\0';
    *ret_bytes = bytes;
    return text;
}

static void write_all(int fd, const char *data, size_t bytes)
{
    for (size_t done = 0; done < bytes;) {
        ssize_t n = pwrite(fd, data + done, bytes - done, (off_t)done);
        if (n <= 0)
            fail_msg("pwrite: %s", strerror(errno));
        done += (size_t)n;
    }
}

/* Waits for the child, killing it when its time is over. */
static int wait_status(pid_t pid, int timeout_s)
{
    int status, timed_out = 0;
    struct timespec now, end;
    clock_gettime(CLOCK_MONOTONIC, &end);
    end.tv_sec += timeout_s;
    for (unsigned pause_us = 200;;) {
        pid_t got = waitpid(pid, &status, WNOHANG);
        if (got == pid)
            break;
        if (got < 0 && errno != EINTR)
            fail_msg("waitpid: %s", strerror(errno));
        clock_gettime(CLOCK_MONOTONIC, &now);
        if (!timed_out &&
            (now.tv_sec > end.tv_sec || (now.tv_sec == end.tv_sec && now.tv_nsec > end.tv_nsec))) {
            timed_out = 1;
            kill(pid, SIGKILL);
        }
        usleep(pause_us);
        if (pause_us < 10000)
            pause_us *= 2;
    }
    if (timed_out)
        return 124;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

void program_run(const char *const *argv, const char *input, size_t input_bytes, int timeout_s,
                 struct program_result *ret)
{
    int in = input ? memory_file("stdin") : open("/dev/null", O_RDONLY | O_CLOEXEC);
    int out = memory_file("stdout"), err = memory_file("stderr");
    char path[PATH_MAX];
    assert_true(in >= 0);
    if (input)
        write_all(in, input, input_bytes);
    snprintf(path, sizeof path, "%s", program_path(argv[0]));

    fflush(NULL);
    pid_t pid = fork();
    if (pid < 0)
        fail_msg("fork: %s", strerror(errno));
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (dup2(in, 0) < 0 || dup2(out, 1) < 0 || dup2(err, 2) < 0)
            _exit(127);
        execv(path, (char *const *)(uintptr_t)argv);
        dprintf(2, "%s: %s\n", path, strerror(errno));
        _exit(127);
    }
    ret->status = wait_status(pid, timeout_s * program_slowness());
    ret->out = read_all(out, &ret->out_bytes);
    ret->err = read_all(err, &ret->err_bytes);
    close(in);
    close(out);
    close(err);
    if (strstr(ret->err, "Sanitizer: ") || strstr(ret->err, ": runtime error: "))
        fail_msg("%s: %s", path, ret->err);
}

void program_result_done(struct program_result *r)
{
    free(r->out);
    free(r->err);
    memset(r, 0, sizeof *r);
}
