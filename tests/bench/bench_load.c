/* bench_load.c: how fast a file becomes a model. tests/bench/load.sh runs it beside fio and
 * llama.cpp.
 *
 *   bench_load read FILE [read_bytes depth]    bytes per second of stream_read() over the file,
 * with a sink that does nothing: "MIB_PER_S direct_mib buffered_mib way" bench_load start FILE
 * milliseconds from the fork before inferd's exec to the first token of an answer to one token, CPU
 * backend
 *
 * INFERD_THREADS: threads of the daemon. The caller drops the page cache. */
#include "inferd/client.h"
#include "io/stream.h"
#include "support/program.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void die(const char *what)
{
    fprintf(stderr, "bench_load: %s\n", what);
    exit(1);
}

static double now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

/* ---- the stream alone ------------------------------------------------------------------------ */

static int ignore(void *ctx, uint32_t tensor, uint64_t first_row, uint64_t n_rows, const void *data)
{
    *(uint64_t *)ctx += n_rows + ((const uint8_t *)data)[0];
    return 0;
}

static void read_file(const char *path, uint32_t read_bytes, uint32_t depth)
{
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) < 0)
        die(path);
    uint64_t sum = 0, rows = (uint64_t)st.st_size / 4608; /* of 8192 values in Q4_0 */
    struct stream_extent e = {fd, path, "all", 0, rows * 4608, 4608, 0};
    struct stream_sink sink = {.ctx = &sum, .rows = ignore};
    struct stream_options o = {.read_bytes = read_bytes, .depth = depth};
    struct stream_stats s;
    struct report report = {0};
    double start = now_ms();
    if (stream_read(&e, 1, &sink, &o, &s, &report) < 0)
        die(report.text);
    double took = now_ms() - start;
    printf("%.1f %.0f %.0f %s%s\n", (double)s.bytes / 1048576 / took * 1e3,
           (double)s.direct_bytes / 1048576, (double)s.buffered_bytes / 1048576,
           s.uring ? "io_uring" : "pread", s.registered ? "+registered" : "");
    close(fd);
}

/* ---- the daemon, from nothing to a token ----------------------------------------------------- */

static pid_t start_daemon(const char *model, const char *socket_path)
{
    const char *threads = getenv("INFERD_THREADS"), *path = program_path("inferd");
    char name[512];
    snprintf(name, sizeof name, "bench=%s", model);
    const char *argv[] = {"inferd",    "--model",
                          name,        "--socket",
                          socket_path, "--backend",
                          "cpu",       "--ctx",
                          "1024",      "--parallel",
                          "1",         "--log-level",
                          "error",     threads != NULL ? "--threads" : NULL,
                          threads,     NULL};
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

static double start_to_token(const char *model, const char *socket_path)
{
    const int32_t token = 5;
    struct infer_connect_options options = {.socket = socket_path};
    struct infer_conn *c;
    struct infer_request r;
    struct infer_event e;
    uint32_t id;
    double began = now_ms();
    pid_t pid = start_daemon(model, socket_path);
    while (infer_connect(&options, &c) < 0) {
        if (waitpid(pid, NULL, WNOHANG) == pid)
            die("inferd ended while starting");
        usleep(500);
    }
    infer_request_default(&r);
    r.tokens = &token;
    r.n_tokens = 1;
    r.sampling.max_tokens = 1;
    if (infer_submit(c, &r, &id) < 0)
        die("infer_submit");
    do
        if (infer_next(c, id, 120000, &e) != 1)
            die("no answer");
    while (e.kind == INFER_EVENT_QUEUED);
    double took = now_ms() - began;
    if (e.kind == INFER_EVENT_DONE && e.error != 0)
        die("the request failed");
    infer_close(c);
    kill(pid, SIGTERM);
    waitpid(pid, NULL, 0);
    return took;
}

int main(int argc, char **argv)
{
    if (argc >= 3 && strcmp(argv[1], "read") == 0) {
        read_file(argv[2], argc > 3 ? (uint32_t)strtoul(argv[3], NULL, 10) : 0,
                  argc > 4 ? (uint32_t)strtoul(argv[4], NULL, 10) : 0);
    } else if (argc == 3 && strcmp(argv[1], "start") == 0) {
        char folder[] = "/tmp/inferd-bench.XXXXXX", socket_path[64];
        if (!mkdtemp(folder))
            die("mkdtemp");
        snprintf(socket_path, sizeof socket_path, "%s/s", folder);
        printf("%.1f\n", start_to_token(argv[2], socket_path));
        unlink(socket_path);
        rmdir(folder);
    } else {
        die("usage: bench_load read FILE [read_bytes depth] | start FILE");
    }
    return 0;
}
