/* bench_start.c: from nothing to the first token, and from death to the news of it.
 *
 *   start-up    from the fork before inferd's exec to the first token of an answer on the embedded
 *               model, CPU backend; the client tries to connect every half millisecond
 *   death       from kill(SIGKILL) to the return of a sleeping infer_next() with DAEMON_LOST */
#include "bench/bench.h"
#include "inferd/client.h"
#include "support/daemon.h"
#include "support/program.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { STARTS = 10, DEATHS = 10 };

static double now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

static void die(const char *what)
{
    fprintf(stderr, "bench_start: %s\n", what);
    exit(1);
}

static pid_t start(const char *socket_path, const char *backend, const char *options)
{
    const char *argv[] = {"inferd",
                          "--model",
                          "unix=" DAEMON_MODEL,
                          "--socket",
                          socket_path,
                          "--backend",
                          backend,
                          "--log-level",
                          "error",
                          options ? "--backend-options" : NULL,
                          options,
                          NULL};
    const char *path = program_path("inferd");
    pid_t pid = fork();
    if (pid < 0)
        die("fork");
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        execv(path, (char *const *)(uintptr_t)argv);
        _exit(127);
    }
    return pid;
}

static struct infer_conn *join(const char *socket_path, pid_t pid)
{
    struct infer_connect_options options = {.socket = socket_path};
    struct infer_conn *c;
    while (infer_connect(&options, &c) < 0) {
        if (waitpid(pid, NULL, WNOHANG) == pid)
            die("inferd ended while starting");
        usleep(500);
    }
    return c;
}

static double start_to_token(const char *socket_path)
{
    const struct infer_message message = {.role = "user", .content = "What is tar?"};
    struct infer_request r;
    struct infer_event e;
    uint32_t id;
    double began = now_ms();
    pid_t pid = start(socket_path, "cpu", NULL);
    struct infer_conn *c = join(socket_path, pid);
    infer_request_default(&r);
    r.messages = &message;
    r.n_messages = 1;
    r.sampling.max_tokens = 1;
    if (infer_submit(c, &r, &id) < 0)
        die("infer_submit");
    do
        if (infer_next(c, id, 30000, &e) != 1 || e.kind == INFER_EVENT_DONE)
            die("no token");
    while (e.kind != INFER_EVENT_TOKEN);
    double took = now_ms() - began;
    infer_close(c);
    kill(pid, SIGTERM);
    waitpid(pid, NULL, 0);
    return took;
}

struct victim {
    pid_t pid;
    double killed_ms;
};

static void *kill_later(void *argument)
{
    struct victim *v = argument;
    usleep(150000);
    v->killed_ms = now_ms();
    kill(v->pid, SIGKILL);
    return NULL;
}

static double death_to_news(const char *socket_path)
{
    const int32_t token = 5;
    struct infer_request r;
    struct infer_event e;
    struct victim v = {.pid = start(socket_path, "null", "delay_us=5000000")};
    pthread_t thread;
    uint32_t id;
    struct infer_conn *c = join(socket_path, v.pid);
    infer_request_default(&r);
    r.tokens = &token;
    r.n_tokens = 1;
    if (infer_submit(c, &r, &id) < 0 || pthread_create(&thread, NULL, kill_later, &v))
        die("cannot begin");
    do
        if (infer_next(c, id, 30000, &e) != 1)
            die("no news");
    while (e.kind != INFER_EVENT_DONE);
    double told = now_ms();
    pthread_join(thread, NULL);
    if (e.error != INFER_E_DAEMON_LOST)
        die("ended otherwise");
    infer_close(c);
    waitpid(v.pid, NULL, 0);
    return told - v.killed_ms;
}

int main(void)
{
    double up[STARTS], down[DEATHS];
    char folder[] = "/tmp/inferd-bench.XXXXXX", socket_path[64];
    if (!mkdtemp(folder))
        die("mkdtemp");
    snprintf(socket_path, sizeof socket_path, "%s/s", folder);
    start_to_token(socket_path); /* reads the model into the page cache */
    for (int i = 0; i < STARTS; i++)
        up[i] = start_to_token(socket_path);
    for (int i = 0; i < DEATHS; i++)
        down[i] = death_to_news(socket_path);
    unlink(socket_path);
    rmdir(folder);
    bench_row("start of inferd to first token", "ms", up, STARTS, "< 500");
    bench_row("death of inferd to DAEMON_LOST", "ms", down, DEATHS, "< 100");
    return 0;
}
