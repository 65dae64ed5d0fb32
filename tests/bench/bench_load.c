/* bench_load.c: how fast a file becomes a model. tests/bench/load.sh runs it beside fio and
 * llama.cpp, tests/bench/gpu_daemon.sh where there is a GPU.
 *
 *   bench_load read FILE [read_bytes depth]
 *           bytes per second of stream_read() over the file, with a sink that does nothing:
 *           "MIB_PER_S direct_mib buffered_mib way"
 *   bench_load raw FILE
 *           the file read past the page cache by 16 threads, 2 MiB at a time, which is what the
 *           disk gives: "MIB_PER_S"
 *   bench_load load FILE BACKEND
 *           a daemon that runs without a model loads it twice: "MS MS" of infer_load(), the first
 *           of which begins with the device, too; what the daemon's log says of where they went
 *   bench_load start FILE
 *           milliseconds from the fork before inferd's exec to the first token of an answer to
 *           one token, CPU backend
 *
 * INFERD_THREADS: threads of the daemon. INFERD_BUILD: where inferd is. The caller of read and
 * start drops the page cache; raw and load drop the file from it, as far as the kernel agrees. */
#include "inferd/client.h"
#include "io/stream.h"
#include "support/program.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
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

/* ---- the disk alone -------------------------------------------------------------------------- */

#define RAW_THREADS 16
#define RAW_BYTES   ((size_t)2 << 20)

static void drop(const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        die(path);
    fsync(fd);
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    close(fd);
}

struct raw {
    int fd;
    uint64_t bytes;
    _Atomic uint64_t next, done;
};

static void *read_raw(void *arg)
{
    struct raw *r = arg;
    uint8_t *to = aligned_alloc(RAW_BYTES, RAW_BYTES);
    ssize_t n = to != NULL ? 1 : -1;
    if (to != NULL) {
        madvise(to, RAW_BYTES, MADV_HUGEPAGE);
        memset(to, 0, RAW_BYTES);
    }
    for (uint64_t at; n > 0 && (at = atomic_fetch_add(&r->next, RAW_BYTES)) < r->bytes;) {
        n = pread(r->fd, to, RAW_BYTES, (off_t)at);
        atomic_fetch_add(&r->done, n > 0 ? (uint64_t)n : 0);
    }
    free(to);
    return NULL;
}

static void raw_file(const char *path)
{
    static struct raw r;
    pthread_t threads[RAW_THREADS];
    struct stat st;
    drop(path);
    r.fd = open(path, O_RDONLY | O_CLOEXEC | O_DIRECT);
    if (r.fd < 0) /* a file system without O_DIRECT */
        r.fd = open(path, O_RDONLY | O_CLOEXEC);
    if (r.fd < 0 || fstat(r.fd, &st) < 0)
        die(path);
    r.bytes = (uint64_t)st.st_size;
    double start = now_ms();
    for (int i = 0; i < RAW_THREADS; i++)
        if (pthread_create(&threads[i], NULL, read_raw, &r) != 0)
            die("pthread_create");
    for (int i = 0; i < RAW_THREADS; i++)
        pthread_join(threads[i], NULL);
    if (r.done != r.bytes)
        die("the file could not be read to its end");
    printf("%.1f\n", (double)r.bytes / 1048576 / (now_ms() - start) * 1e3);
    close(r.fd);
}

/* ---- the daemon, from nothing to a token ----------------------------------------------------- */

static pid_t start_daemon(const char *const *arguments, const char *socket_path)
{
    const char *threads = getenv("INFERD_THREADS"), *path = program_path("inferd");
    const char *argv[40] = {"inferd", "--socket", socket_path};
    size_t n = 3;
    while (*arguments != NULL && n < 36)
        argv[n++] = *arguments++;
    if (threads != NULL) {
        argv[n++] = "--threads";
        argv[n++] = threads;
    }
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

static struct infer_conn *connect_to(pid_t pid, const char *socket_path)
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

/* Its lines about the model go to standard error. */
static void load_beside(const char *model, const char *backend, const char *socket_path,
                        double ret_ms[2])
{
    char folder[64]; /* the socket's, in which there is no model */
    snprintf(folder, sizeof folder, "%.*s", (int)(strrchr(socket_path, '/') - socket_path),
             socket_path);
    const char *argv[] = {"--model-directory", folder,  "--backend", backend,
                          "--log-level",       "debug", NULL};
    struct infer_load load;
    pid_t pid = start_daemon(argv, socket_path);
    struct infer_conn *c = connect_to(pid, socket_path);
    infer_load_default(&load);
    load.path = model;
    load.name = "bench";
    load.socket = socket_path;
    load.n_context = 1024;
    load.parallel = 64;
    for (int i = 0; i < 2; i++) {
        drop(model);
        double began = now_ms();
        if (infer_load(&load, NULL) < 0)
            die(infer_detail(NULL));
        ret_ms[i] = now_ms() - began;
        if (infer_unload(socket_path, "bench", 0) < 0)
            die(infer_detail(NULL));
    }
    infer_close(c);
    kill(pid, SIGTERM);
    waitpid(pid, NULL, 0);
}

static double start_to_token(const char *model, const char *socket_path)
{
    const int32_t token = 5;
    char name[512];
    snprintf(name, sizeof name, "bench=%s", model);
    const char *argv[] = {"--model",    name, "--backend",   "cpu",   "--ctx", "1024",
                          "--parallel", "1",  "--log-level", "error", NULL};
    struct infer_request r;
    struct infer_event e;
    uint32_t id;
    double began = now_ms();
    pid_t pid = start_daemon(argv, socket_path);
    struct infer_conn *c = connect_to(pid, socket_path);
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
    } else if (argc == 3 && strcmp(argv[1], "raw") == 0) {
        raw_file(argv[2]);
    } else if ((argc == 3 && strcmp(argv[1], "start") == 0) ||
               (argc == 4 && strcmp(argv[1], "load") == 0)) {
        char folder[] = "/tmp/inferd-bench.XXXXXX", socket_path[64];
        if (!mkdtemp(folder))
            die("mkdtemp");
        snprintf(socket_path, sizeof socket_path, "%s/s", folder);
        double ms[2];
        if (argc == 3) {
            printf("%.1f\n", start_to_token(argv[2], socket_path));
        } else {
            load_beside(argv[2], argv[3], socket_path, ms);
            printf("%.1f %.1f\n", ms[0], ms[1]);
        }
        unlink(socket_path);
        rmdir(folder);
    } else {
        die("usage: bench_load read FILE [read_bytes depth] | raw FILE | load FILE BACKEND | "
            "start FILE");
    }
    return 0;
}
