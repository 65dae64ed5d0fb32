/* daemon.c: a private inferd for one test. */
#include "support/daemon.h"
#include "support/program.h"

#include "inferd/client.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>

#include <cmocka.h>

#define ARGUMENTS_MAX 64

uint64_t test_clock_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000u + (uint64_t)t.tv_nsec / 1000u;
}

char *daemon_read_log(const struct daemon *d)
{
    size_t room = 1 << 20, n = 0;
    char *text = malloc(room);
    assert_non_null(text);
    FILE *f = fopen(d->log, "r");
    if (f) {
        n = fread(text, 1, room - 1, f);
        fclose(f);
    }
    text[n] = '\0';
    return text;
}

static void show_log(const struct daemon *d)
{
    char *text = daemon_read_log(d);
    fprintf(stderr, "---- log of inferd\n%s----\n", text);
    free(text);
}

static void make_folder(struct daemon *d)
{
    const char *base = getenv("TMPDIR");
    if (!base || strlen(base) > 32)
        base = "/tmp";
    snprintf(d->folder, sizeof d->folder, "%s/inferd-test.XXXXXX", base);
    if (!mkdtemp(d->folder))
        fail_msg("%s: %s", d->folder, strerror(errno));
    snprintf(d->socket, sizeof d->socket, "%s/inferd.sock", d->folder);
    snprintf(d->log, sizeof d->log, "%s/log", d->folder);
}

static void exec_daemon(const struct daemon *d, const char *const *argv, const char *path)
{
    int log = open(d->log, O_WRONLY | O_CREAT | O_APPEND, 0600);
    int in = open("/dev/null", O_RDONLY);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (log < 0 || in < 0 || dup2(in, 0) < 0 || dup2(log, 1) < 0 || dup2(log, 2) < 0)
        _exit(127);
    execv(path, (char *const *)(uintptr_t)argv);
    dprintf(2, "%s: %s\n", path, strerror(errno));
    _exit(127);
}

/* Does this daemon, and not the rest of a killed one, accept connections? (The kernel may keep a
 * dead process's listening socket for a moment where io_uring had work on it.) */
static bool accepts(const struct daemon *d)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    struct ucred who = {0};
    socklen_t n = sizeof who;
    snprintf(a.sun_path, sizeof a.sun_path, "%s", d->socket);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    bool ok = connect(fd, (struct sockaddr *)&a, sizeof a) == 0 &&
              getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &n) == 0 && who.pid == d->pid;
    close(fd);
    return ok;
}

/* How often a daemon has said there that it is ready. */
static unsigned times_ready(const struct daemon *d)
{
    unsigned n = 0;
    if (access(d->log, R_OK) < 0)
        return 0;
    char *text = daemon_read_log(d);
    for (const char *at = text; (at = strstr(at, "ready at ")) != NULL; at++)
        n++;
    free(text);
    return n;
}

void daemon_start(struct daemon *d, const char *const *arguments)
{
    const unsigned before = d->folder[0] ? times_ready(d) : 0;
    daemon_start_only(d, arguments);
    uint64_t end = test_clock_us() + 20000000u * (unsigned)program_slowness();
    while (times_ready(d) == before) {
        if (!daemon_alive(d) || test_clock_us() > end) {
            show_log(d);
            daemon_kill(d);
            fail_msg("inferd does not get ready");
        }
        usleep(2000);
    }
}

void daemon_start_only(struct daemon *d, const char *const *arguments)
{
    const char *argv[ARGUMENTS_MAX];
    char path[PATH_MAX];
    size_t n = 0;
    if (!d->folder[0])
        make_folder(d);
    snprintf(path, sizeof path, "%s", program_path("inferd"));
    argv[n++] = path;
    argv[n++] = "--socket";
    argv[n++] = d->socket;
    while (*arguments && n < ARGUMENTS_MAX - 1)
        argv[n++] = *arguments++;
    argv[n] = NULL;

    fflush(NULL);
    d->pid = fork();
    if (d->pid < 0)
        fail_msg("fork: %s", strerror(errno));
    if (d->pid == 0)
        exec_daemon(d, argv, path);

    uint64_t end = test_clock_us() + 20000000u * (unsigned)program_slowness();
    while (!accepts(d)) {
        int status;
        if (waitpid(d->pid, &status, WNOHANG) == d->pid) {
            d->pid = 0;
            show_log(d);
            fail_msg("inferd ended while starting, status %#x", (unsigned)status);
        }
        if (test_clock_us() > end) {
            show_log(d);
            daemon_kill(d);
            fail_msg("inferd does not accept connections");
        }
        usleep(2000);
    }
}

void daemon_start_backend(struct daemon *d, const char *backend, const char *options)
{
    const char *argv[8] = {"--model", "unix=" DAEMON_MODEL, "--backend", backend};
    if (options) {
        argv[4] = "--backend-options";
        argv[5] = options;
    }
    daemon_start(d, argv);
}

int daemon_wait(struct daemon *d, int timeout_s)
{
    int status;
    uint64_t end = test_clock_us() + 1000000u * (unsigned)(timeout_s * program_slowness());
    assert_true(d->pid > 0);
    for (;;) {
        pid_t got = waitpid(d->pid, &status, WNOHANG);
        if (got == d->pid)
            break;
        if (test_clock_us() > end) {
            show_log(d);
            daemon_kill(d);
            fail_msg("inferd does not end");
        }
        usleep(1000);
    }
    d->pid = 0;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static void assert_log_clean(const struct daemon *d)
{
    char *text = daemon_read_log(d);
    if (strstr(text, "Sanitizer: ") || strstr(text, ": runtime error: "))
        fail_msg("a sanitizer complains of inferd:\n%s", text);
    free(text);
}

void daemon_stop(struct daemon *d)
{
    assert_true(d->pid > 0);
    kill(d->pid, SIGTERM);
    int status = daemon_wait(d, 20);
    assert_log_clean(d);
    if (status != 0) {
        show_log(d);
        fail_msg("inferd ended with status %d", status);
    }
}

void daemon_kill(struct daemon *d)
{
    if (d->pid <= 0)
        return;
    kill(d->pid, SIGKILL);
    while (waitpid(d->pid, NULL, 0) < 0 && errno == EINTR)
        ;
    d->pid = 0;
}

static void remove_folder(const char *folder)
{
    char path[PATH_MAX];
    DIR *dir = opendir(folder);
    if (!dir)
        return;
    for (struct dirent *e; (e = readdir(dir));) {
        snprintf(path, sizeof path, "%s/%s", folder, e->d_name);
        unlink(path);
    }
    closedir(dir);
    rmdir(folder);
}

void daemon_done(struct daemon *d)
{
    if (d->pid > 0)
        daemon_stop(d);
    if (d->folder[0])
        remove_folder(d->folder);
    memset(d, 0, sizeof *d);
}

bool daemon_alive(const struct daemon *d)
{
    siginfo_t info = {0};
    if (d->pid <= 0)
        return false;
    /* WNOWAIT leaves an ended child for daemon_wait(). */
    if (waitid(P_PID, (id_t)d->pid, &info, WEXITED | WNOHANG | WNOWAIT) < 0)
        return false;
    return info.si_pid == 0;
}

void daemon_assert_serves(const struct daemon *d)
{
    struct infer_connect_options options = {.socket = d->socket};
    struct infer_conn *c;
    struct infer_request r;
    struct infer_event e;
    uint32_t id;
    if (!daemon_alive(d)) {
        show_log(d);
        fail_msg("inferd is not alive");
    }
    int code = infer_connect(&options, &c);
    if (code < 0)
        fail_msg("connect: %s: %s", infer_strerror(code), infer_detail(NULL));
    infer_request_default(&r);
    r.text = "The kernel";
    r.sampling.max_tokens = 3;
    r.sampling.ignore_eos = 1;
    r.sampling.seed = 1;
    assert_int_equal(infer_submit(c, &r, &id), 0);
    int timeout_ms = 20000 * program_slowness(), n_tokens = 0;
    do {
        code = infer_next(c, id, timeout_ms, &e);
        if (code != 1)
            fail_msg("infer_next: %d (%s)", code, infer_strerror(code));
        n_tokens += e.kind == INFER_EVENT_TOKEN && e.has_token;
    } while (e.kind != INFER_EVENT_DONE);
    if (e.error)
        fail_msg("request ended with %s: %.*s", infer_error_name(e.error), (int)e.text_bytes,
                 e.text);
    assert_int_equal(n_tokens, 3);
    infer_close(c);
}

uint64_t daemon_cpu_ns(const struct daemon *d)
{
    char path[PATH_MAX];
    uint64_t sum = 0;
    snprintf(path, sizeof path, "/proc/%d/task", (int)d->pid);
    DIR *dir = opendir(path);
    if (!dir)
        return 0;
    for (struct dirent *e; (e = readdir(dir));) {
        unsigned long long ns;
        if (e->d_name[0] == '.')
            continue;
        snprintf(path, sizeof path, "/proc/%d/task/%s/schedstat", (int)d->pid, e->d_name);
        FILE *f = fopen(path, "r");
        if (!f)
            continue;
        if (fscanf(f, "%llu", &ns) == 1)
            sum += ns;
        fclose(f);
    }
    closedir(dir);
    return sum;
}

static int count_descriptors(const struct daemon *d)
{
    char path[64];
    int n = 0;
    snprintf(path, sizeof path, "/proc/%d/fd", (int)d->pid);
    DIR *dir = opendir(path);
    if (!dir)
        return -1;
    while (readdir(dir))
        n++;
    closedir(dir);
    return n - 2;
}

int daemon_descriptors(const struct daemon *d)
{
    int n = count_descriptors(d), same = 0;
    for (int i = 0; i < 250 && same < 10; i++) {
        usleep(20000);
        int now = count_descriptors(d);
        same = now == n ? same + 1 : 0;
        n = now;
    }
    return n;
}
