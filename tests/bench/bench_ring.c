/* bench_ring.c: what the way to the daemon and back costs, with a backend that computes nothing.
 *
 *   round trip   from infer_submit() of a one-token prompt to its first token in infer_next(), both
 *                sides spinning on their own core; p50 and p99
 *   socket echo  64 bytes over SOCK_SEQPACKET to another process and back, the usual blocking way,
 *                and with both sides spinning on MSG_DONTWAIT
 *   a token      CPU time of daemon and client together per streamed token, from the threads'
 *                schedstat; beside it the same for one message of a token event's size per token
 *                over the socket
 *
 * The measures take turns, REPEATS times, so that a machine that slows down slows all of them. */
#include "bench/bench.h"
#include "inferd/client.h"
#include "support/daemon.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { REPEATS = 9, TRIPS = 4000, ECHOES = 2000, STREAM_TOKENS = 1900, STREAM_ROUNDS = 8 };
enum { ECHO_BYTES = 64, TOKEN_BYTES = 40 };

static void die(const char *what)
{
    fprintf(stderr, "bench_ring: %s: %s\n", what, strerror(errno));
    exit(1);
}

static double now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

static double own_cpu_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

/* ---- the daemon ------------------------------------------------------------------------------ */

static struct infer_conn *join(const struct daemon *d, uint32_t spin_us)
{
    struct infer_connect_options options = {.socket = d->socket, .spin_us = spin_us};
    struct infer_conn *c;
    int code = infer_connect(&options, &c);
    if (code < 0) {
        fprintf(stderr, "bench_ring: %s\n", infer_strerror(code));
        exit(1);
    }
    return c;
}

static void next(struct infer_conn *c, uint32_t id, struct infer_event *e)
{
    int code = infer_next(c, id, 10000, e);
    if (code != 1 || (e->kind == INFER_EVENT_DONE && e->error)) {
        fprintf(stderr, "bench_ring: infer_next: %d, error %d\n", code, code == 1 ? e->error : 0);
        exit(1);
    }
}

static void round_trips(struct infer_conn *c, double *ret_p50, double *ret_p99)
{
    static double us[TRIPS];
    const int32_t token = 5;
    struct infer_request r;
    struct infer_event e;
    uint32_t id;
    infer_request_default(&r);
    r.tokens = &token;
    r.n_tokens = 1;
    r.sampling.max_tokens = 1;
    r.sampling.ignore_eos = 1;
    r.sampling.seed = 1;
    for (int i = -200; i < TRIPS; i++) {
        double start = now_us();
        if (infer_submit(c, &r, &id) < 0)
            die("infer_submit");
        do
            next(c, id, &e);
        while (e.kind != INFER_EVENT_TOKEN);
        if (i >= 0)
            us[i] = now_us() - start;
        while (e.kind != INFER_EVENT_DONE)
            next(c, id, &e);
    }
    *ret_p50 = bench_quantile(us, TRIPS, 0.50);
    *ret_p99 = bench_quantile(us, TRIPS, 0.99);
}

/* CPU time of both sides per token over n_streams answers at once. */
static double stream_cost(const struct daemon *d, struct infer_conn *c, unsigned n_streams)
{
    const int32_t token = 5;
    struct infer_request r;
    struct infer_event e;
    uint32_t id;
    double tokens = 0, client = own_cpu_us(), daemon = (double)daemon_cpu_ns(d);
    infer_request_default(&r);
    r.tokens = &token;
    r.n_tokens = 1;
    r.sampling.max_tokens = STREAM_TOKENS;
    r.sampling.ignore_eos = 1;
    r.sampling.seed = 1;
    for (unsigned round = 0; round < STREAM_ROUNDS; round++) {
        unsigned open = n_streams;
        for (unsigned i = 0; i < n_streams; i++)
            if (infer_submit(c, &r, &id) < 0)
                die("infer_submit");
        while (open) {
            next(c, 0, &e);
            tokens += e.kind == INFER_EVENT_TOKEN && e.has_token;
            open -= e.kind == INFER_EVENT_DONE;
        }
    }
    return (own_cpu_us() - client + ((double)daemon_cpu_ns(d) - daemon) / 1e3) / tokens;
}

/* ---- the socket ------------------------------------------------------------------------------ */

/* The other side: echoes, or swallows, until the socket closes. */
static pid_t start_other(int *ret_fd, int echo, int flags)
{
    int fd[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fd) < 0)
        die("socketpair");
    pid_t pid = fork();
    if (pid < 0)
        die("fork");
    if (pid == 0) {
        char bytes[ECHO_BYTES];
        close(fd[0]);
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (;;) {
            ssize_t n = recv(fd[1], bytes, sizeof bytes, flags);
            if (n < 0 && errno == EAGAIN)
                continue;
            if (n <= 0)
                _exit(0);
            if (echo && send(fd[1], bytes, (size_t)n, MSG_NOSIGNAL) < 0)
                _exit(1);
        }
    }
    close(fd[1]);
    *ret_fd = fd[0];
    return pid;
}

static void stop_other(pid_t pid, int fd)
{
    close(fd);
    waitpid(pid, NULL, 0);
}

static double echo_trip(int flags)
{
    static double us[ECHOES];
    char bytes[ECHO_BYTES] = {0};
    int fd;
    pid_t pid = start_other(&fd, 1, flags);
    for (int i = -200; i < ECHOES; i++) {
        double start = now_us();
        ssize_t n;
        if (send(fd, bytes, sizeof bytes, MSG_NOSIGNAL) < 0)
            die("send");
        do
            n = recv(fd, bytes, sizeof bytes, flags);
        while (n < 0 && errno == EAGAIN);
        if (n <= 0)
            die("recv");
        if (i >= 0)
            us[i] = now_us() - start;
    }
    stop_other(pid, fd);
    return bench_quantile(us, ECHOES, 0.50);
}

static double children_cpu_us(void)
{
    struct rusage u;
    getrusage(RUSAGE_CHILDREN, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) * 1e6 +
           (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec);
}

/* One message per token to a blocking receiver: CPU time of both sides per message. */
static double message_cost(void)
{
    enum { N = 30000 };
    char bytes[TOKEN_BYTES] = {0};
    int fd;
    double sender = own_cpu_us(), receiver = children_cpu_us();
    pid_t pid = start_other(&fd, 0, 0);
    for (int i = 0; i < N; i++)
        if (send(fd, bytes, sizeof bytes, MSG_NOSIGNAL) < 0)
            die("send");
    stop_other(pid, fd);
    return (own_cpu_us() - sender + children_cpu_us() - receiver) / N;
}

int main(void)
{
    static double p50[REPEATS], p99[REPEATS], blocking[REPEATS], spinning[REPEATS];
    static double one[REPEATS], many[REPEATS], message[REPEATS], ratio[REPEATS];
    struct daemon awake = {0}, usual = {0};
    const char *spin[] = {
        "--model", "unix=" DAEMON_MODEL, "--backend", "null", "--spin-us", "1000000", NULL};
    for (int i = 0; i < REPEATS; i++) {
        daemon_start(&awake, spin);
        struct infer_conn *c = join(&awake, UINT32_MAX);
        round_trips(c, &p50[i], &p99[i]);
        infer_close(c);
        daemon_stop(&awake); /* it would spin beside the others */
        blocking[i] = echo_trip(0);
        spinning[i] = echo_trip(MSG_DONTWAIT);
        ratio[i] = blocking[i] / p50[i];

        daemon_start_backend(&usual, "null", NULL);
        c = join(&usual, 0);
        one[i] = stream_cost(&usual, c, 1);
        many[i] = stream_cost(&usual, c, 16);
        infer_close(c);
        daemon_stop(&usual);
        message[i] = message_cost();
    }
    daemon_done(&awake);
    daemon_done(&usual);
    bench_row("ring: submit to first token, p50", "us", p50, REPEATS, "< 5");
    bench_row("ring: submit to first token, p99", "us", p99, REPEATS, "");
    bench_row("socket: echo, blocking, p50", "us", blocking, REPEATS, "");
    bench_row("socket: echo, both sides spinning, p50", "us", spinning, REPEATS, "");
    bench_row("socket echo / ring", "x", ratio, REPEATS, ">= 5");
    bench_row("CPU per token, daemon + client, 1 stream", "us", one, REPEATS, "< 2");
    bench_row("CPU per token, daemon + client, 16 streams", "us", many, REPEATS, "< 2");
    bench_row("CPU per token over a socket, both sides", "us", message, REPEATS, "");
    return 0;
}
