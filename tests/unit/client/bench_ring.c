/* bench_ring.c: how long a request and its first token take through the rings, and what a streamed
 * token costs, with no model behind them. Run by hand:
 *
 *     make build/tests/unit/client/bench_ring && build/tests/unit/client/bench_ring
 *
 * Daemon and client spin on a core each. Beside it, in the same run, a byte over a SOCK_SEQPACKET
 * pair between two threads: as programs do it, sleeping in recv(2), and spinning. */
#include "fake_daemon.h"

#include "base/clock.h"

#include <sched.h>
#include <sys/resource.h>

#define ROUNDS 20000
#define TOKENS 2000000u

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static void show(const char *what, uint64_t *ns, size_t n)
{
    qsort(ns, n, sizeof *ns, compare);
    printf("%-44s p50 %7.2f us   p99 %8.2f us\n", what, (double)ns[n / 2] / 1e3,
           (double)ns[n * 99 / 100] / 1e3);
}

static void pin(pthread_t thread, int core)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(core, &set);
    (void)pthread_setaffinity_np(thread, sizeof set, &set);
}

static struct infer_conn *join(struct fake_daemon *d)
{
    struct infer_connect_options o = {.socket = d->path, .spin_us = UINT32_MAX};
    struct infer_conn *c;
    int r = infer_connect(&o, &c);
    if (r < 0) {
        fprintf(stderr, "cannot connect: %s\n", infer_strerror(r));
        exit(1);
    }
    return c;
}

static void round_trips(struct fake_daemon *d, uint64_t *ns)
{
    struct infer_conn *c = join(d);
    struct infer_request request;
    struct infer_event event;
    uint32_t id;
    infer_request_default(&request);
    request.text = "count:1";
    for (int i = 0; i < ROUNDS; i++) {
        uint64_t start = clock_ns();
        if (infer_submit(c, &request, &id) < 0)
            exit(1);
        do
            if (infer_next(c, id, -1, &event) != 1)
                exit(1);
        while (event.kind != INFER_EVENT_TOKEN);
        ns[i] = clock_ns() - start;
        while (event.kind != INFER_EVENT_DONE)
            if (infer_next(c, id, -1, &event) != 1)
                exit(1);
    }
    show("submit to first token, rings", ns, ROUNDS);
    infer_close(c);
}

static double cpu_us(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) * 1e6 +
           (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec);
}

static void stream(struct fake_daemon *d)
{
    struct infer_conn *c = join(d);
    struct infer_request request;
    struct infer_event event;
    uint32_t id;
    char text[32];
    infer_request_default(&request);
    snprintf(text, sizeof text, "count:%u", TOKENS);
    request.text = text;
    double cpu = cpu_us();
    uint64_t start = clock_ns();
    if (infer_submit(c, &request, &id) < 0)
        exit(1);
    do
        if (infer_next(c, id, -1, &event) != 1)
            exit(1);
    while (event.kind != INFER_EVENT_DONE);
    double ns = (double)(clock_ns() - start);
    printf("%-44s wall %.0f ns   cpu %.0f ns\n", "one streamed token, daemon and client",
           ns / TOKENS, (cpu_us() - cpu) * 1e3 / TOKENS);
    infer_close(c);
}

struct echo {
    int pair[2];
    int flags; /* of recv(2) */
};

static void *echo_main(void *arg)
{
    struct echo *e = arg;
    int fd = e->pair[1];
    char byte;
    for (;;) {
        ssize_t n = recv(fd, &byte, 1, e->flags);
        if (n == 0)
            return NULL;
        if (n == 1)
            (void)!send(fd, &byte, 1, 0);
    }
}

static void socket_echo(uint64_t *ns, const char *what, int flags)
{
    struct echo e = {.flags = flags};
    pthread_t thread;
    char byte = 1;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, e.pair) < 0)
        exit(1);
    pthread_create(&thread, NULL, echo_main, &e);
    pin(thread, 1);
    for (int i = 0; i < ROUNDS; i++) {
        uint64_t start = clock_ns();
        (void)!send(e.pair[0], &byte, 1, 0);
        while (recv(e.pair[0], &byte, 1, flags) != 1)
            ;
        ns[i] = clock_ns() - start;
    }
    close(e.pair[0]);
    pthread_join(thread, NULL);
    close(e.pair[1]);
    show(what, ns, ROUNDS);
}

int main(void)
{
    static uint64_t ns[ROUNDS];
    struct fake_daemon *d = fake_new();
    d->spinning = true;
    pin(pthread_self(), 0);
    pin(d->thread, 1);
    round_trips(d, ns);
    stream(d);
    fake_free(d);
    socket_echo(ns, "a byte and back, Unix socket, sleeping", 0);
    socket_echo(ns, "a byte and back, Unix socket, spinning", MSG_DONTWAIT);
    return 0;
}
