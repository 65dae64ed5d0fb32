/* bench_serve.c: many users at once, through the daemon, with the embedded model.
 *
 *   bench_serve together   one sample for tests/bench/serve.sh, which takes turns with llama.cpp
 *   bench_serve stutter | users | prefix | steps      rows of the table; all four by default
 *   bench_serve crowd FILE BACKEND [CLIENTS [OPTIONS]]   samples for tests/bench/gpu_daemon.sh;
 *                                                     OPTIONS are the backend's
 *
 *   together  CLIENTS connections, each with its own thread, submit a prompt of PROMPT random
 *             tokens at once and get ANSWER tokens each; then the same requests again, whose
 *             prompts are cached now, so that nearly all of it is decoding; then the same kind of
 *             requests one after the other. Prints tokens per second: answer tokens over the whole
 *             time, prompt and answer tokens over the whole time, answer tokens with the prompts
 *             cached, answer tokens one request after the other.
 *   stutter   the gaps between the tokens of one answer, alone, and while another user's client
 *             submits prompts of LONG_PROMPT tokens, each a new one, one after the other. By a
 *             daemon that has used all of its sequence state before: the first touch of a huge
 *             page costs a step on a virtual machine whose host has to find that memory 5 ms.
 *   users     two users with 1 and 31 clients that always ask: the share of the one. Needs root.
 *   prefix    time to the first token of a prompt of PREFIX tokens, new and repeated.
 *   steps     CPU time of the whole daemon per step with many sequences on the null backend: the
 *             scheduler, the batch, tokens to text, and one event per token on the rings. One
 *             user's streams do not get all the slots there are (sched.h, newcomer_slots), so the
 *             table says how many ran per step, and what that makes for all of them.
 *
 *   crowd     CLIENTS (64) processes, each with one stream from a prompt of CROWD_PROMPT tokens. As
 *             the prompts have run before, all decode from nearly the first step on. Counts from
 *             when the last has its CROWD_FROM-th token until the first has its last: tokens per
 *             second, and how many sequences a step had on average.
 *
 * Clients sleep as those of a program would (spin_us 1): they share the processors with the
 * backend. Measures take turns, REPEATS times, so that a machine that slows down slows all. */
#include "bench/bench.h"
#include "inferd/client.h"
#include "support/daemon.h"

#include <errno.h>
#include <limits.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { CLIENTS = 32, PROMPT = 128, ANSWER = 128 };
enum { STREAM_TOKENS = 500, LONG_PROMPT = 1900, REPEATS = 3 };
/* Two long prompts and the stream; as many prompts as touch all of it. */
#define STUTTER_STATE "64M"
enum { STUTTER_WARM = 5 };
enum { USERS_CLIENTS = 31, USERS_WARM_MS = 4000, USERS_MS = 10000 };
enum { PREFIX = 1500, PREFIX_REPEATS = 7 };
enum { STEP_CONNECTIONS = 4, STEP_EACH = 64, STEP_FROM = 100, STEP_TO = 1500, STEP_ANSWER = 1900 };
enum { STEP_REPEATS = 9 };
enum { CROWD_MAX = 256, CROWD_PROMPT = 128, CROWD_ANSWER = 192, CROWD_FROM = 16 };
enum { ALICE = 65533, BOB = 65532, IDS_MAX = 2048 };

static struct daemon d;

static void die(const char *what)
{
    fprintf(stderr, "bench_serve: %s: %s\n", what, strerror(errno));
    exit(1);
}

static double now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

/* ---- clients --------------------------------------------------------------------------------- */

static struct infer_conn *join_ring(uint32_t token_ring_bytes)
{
    struct infer_connect_options options = {
        .socket = d.socket, .spin_us = 1, .token_ring_bytes = token_ring_bytes};
    struct infer_conn *c;
    int code = infer_connect(&options, &c);
    if (code < 0) {
        fprintf(stderr, "bench_serve: %s\n", infer_strerror(code));
        exit(1);
    }
    return c;
}

static struct infer_conn *join(void)
{
    return join_ring(0);
}

/* Random ids that were not given before, in no process. */
static void fresh_ids(int32_t *ids, size_t n)
{
    static uint64_t state;
    if (state == 0)
        state = (uint64_t)now_us() ^ (uint64_t)getpid() << 40 ^ (uint64_t)(uintptr_t)ids << 20;
    for (size_t i = 0; i < n; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        ids[i] = 300 + (int32_t)((state >> 33) % 4000);
    }
}

static uint32_t submit(struct infer_conn *c, const int32_t *ids, size_t n, uint32_t max_tokens)
{
    struct infer_request r;
    uint32_t id;
    infer_request_default(&r);
    r.tokens = ids;
    r.n_tokens = n;
    r.sampling.max_tokens = max_tokens;
    r.sampling.ignore_eos = 1;
    r.sampling.temperature = 0;
    r.sampling.seed = 1;
    int code = infer_submit(c, &r, &id);
    if (code < 0) {
        fprintf(stderr, "bench_serve: infer_submit: %s\n", infer_strerror(code));
        exit(1);
    }
    return id;
}

/* The next event of a request; true when it is a token. */
static bool next(struct infer_conn *c, uint32_t id, struct infer_event *e)
{
    int code = infer_next(c, id, 60000, e);
    if (code != 1 || (e->kind == INFER_EVENT_DONE && e->error)) {
        fprintf(stderr, "bench_serve: infer_next: %d, error %d\n", code, code == 1 ? e->error : 0);
        exit(1);
    }
    return e->kind == INFER_EVENT_TOKEN && e->has_token;
}

static uint32_t read_all(struct infer_conn *c, uint32_t id, uint32_t *ret_cached)
{
    struct infer_event e;
    uint32_t n = 0;
    do
        n += next(c, id, &e);
    while (e.kind != INFER_EVENT_DONE);
    if (ret_cached)
        *ret_cached = e.n_prompt_cached;
    return n;
}

/* state: bytes for sequence state; NULL: what the daemon chooses. */
static void start(const char *backend, const char *parallel, const char *state)
{
    const char *threads = getenv("INFERD_THREADS");
    const char *argv[] = {"--model",
                          "unix=" DAEMON_MODEL,
                          "--backend",
                          backend,
                          "--parallel",
                          parallel,
                          "--threads",
                          threads ? threads : "0",
                          state ? "--state-memory" : NULL,
                          state,
                          NULL};
    daemon_start(&d, argv);
}

/* Runs fn in a child process; as another user when this one is root. */
static pid_t start_client(uid_t uid, void (*fn)(void *arg), void *arg)
{
    fflush(NULL);
    pid_t pid = fork();
    if (pid < 0)
        die("fork");
    if (pid > 0)
        return pid;
    if (geteuid() == 0 && (setresgid(uid, uid, uid) < 0 || setresuid(uid, uid, uid) < 0))
        die("setresuid");
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    fn(arg);
    _exit(0);
}

static void end_client(pid_t pid)
{
    if (waitpid(pid, NULL, WNOHANG) != 0) {
        fprintf(stderr, "bench_serve: a client process ended by itself\n");
        exit(1);
    }
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
}

static void let_in(void)
{
    if (chmod(d.folder, 0711) < 0 || chmod(d.socket, 0666) < 0)
        die("chmod");
}

static void *shared(size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        die("mmap");
    return p;
}

/* ---- together -------------------------------------------------------------------------------- */

struct client {
    pthread_t thread;
    struct infer_conn *c;
    int32_t ids[PROMPT];
    uint32_t cached;
};

static pthread_barrier_t gate;

static void *ask_once(void *arg)
{
    struct client *client = arg;
    pthread_barrier_wait(&gate);
    uint32_t id = submit(client->c, client->ids, PROMPT, ANSWER);
    if (read_all(client->c, id, &client->cached) != ANSWER)
        die("an answer is too short");
    return NULL;
}

/* Seconds from the first submit to the last DONE. */
static double all_at_once(struct client *clients)
{
    pthread_barrier_init(&gate, NULL, CLIENTS + 1);
    for (int i = 0; i < CLIENTS; i++)
        if (pthread_create(&clients[i].thread, NULL, ask_once, &clients[i]) != 0)
            die("pthread_create");
    pthread_barrier_wait(&gate);
    double from = now_us();
    for (int i = 0; i < CLIENTS; i++)
        pthread_join(clients[i].thread, NULL);
    pthread_barrier_destroy(&gate);
    return (now_us() - from) / 1e6;
}

static void bench_together(void)
{
    static struct client clients[CLIENTS];
    double n_answer = CLIENTS * ANSWER, n_prompt = CLIENTS * PROMPT;
    int32_t ids[PROMPT];
    start("cpu", "48", NULL);
    for (int i = 0; i < CLIENTS; i++) {
        clients[i].c = join();
        fresh_ids(clients[i].ids, PROMPT);
    }
    fresh_ids(ids, PROMPT); /* the first steps touch memory for the first time */
    read_all(clients[0].c, submit(clients[0].c, ids, PROMPT, 8), NULL);
    double fresh_s = all_at_once(clients);
    for (int i = 0; i < CLIENTS; i++)
        if (clients[i].cached != 0)
            die("a new prompt was cached");
    double cached_s = all_at_once(clients);
    double from = now_us();
    for (int i = 0; i < CLIENTS; i++) {
        fresh_ids(clients[i].ids, PROMPT);
        uint32_t id = submit(clients[i].c, clients[i].ids, PROMPT, ANSWER);
        read_all(clients[i].c, id, NULL);
    }
    double alone_s = (now_us() - from) / 1e6;
    printf("answer %.2f whole %.2f decode %.2f alone %.2f\n", n_answer / fresh_s,
           (n_prompt + n_answer) / fresh_s, n_answer / cached_s, n_answer / alone_s);
    for (int i = 0; i < CLIENTS; i++)
        infer_close(clients[i].c);
    daemon_stop(&d);
    daemon_done(&d);
}

/* ---- stutter --------------------------------------------------------------------------------- */

static void stream_gaps(struct infer_conn *c, double *ret_p50, double *ret_p99)
{
    static double gaps[STREAM_TOKENS];
    struct infer_event e;
    int32_t ids[16];
    size_t n = 0;
    double last = 0;
    fresh_ids(ids, 16);
    uint32_t id = submit(c, ids, 16, STREAM_TOKENS);
    do {
        if (!next(c, id, &e))
            continue;
        double now = now_us();
        if (last > 0)
            gaps[n++] = (now - last) / 1e3;
        last = now;
    } while (e.kind != INFER_EVENT_DONE);
    *ret_p50 = bench_quantile(gaps, n, 0.50);
    *ret_p99 = bench_quantile(gaps, n, 0.99);
}

/* New long prompts, one after the other; counts those that are through. */
static void disturb(void *arg)
{
    uint32_t *n_done = arg;
    static int32_t ids[LONG_PROMPT];
    struct infer_conn *c = join();
    for (;;) {
        fresh_ids(ids, LONG_PROMPT);
        read_all(c, submit(c, ids, LONG_PROMPT, 1), NULL);
        __atomic_add_fetch(n_done, 1, __ATOMIC_RELAXED);
    }
}

/* Returns once n prompts are through. */
static pid_t start_disturbing(uint32_t *n_done, uint32_t n)
{
    *n_done = 0;
    pid_t pid = start_client(ALICE, disturb, n_done);
    while (__atomic_load_n(n_done, __ATOMIC_RELAXED) < n)
        usleep(10000);
    return pid;
}

static void bench_stutter(void)
{
    static double p50[REPEATS], p99[REPEATS], busy50[REPEATS], busy99[REPEATS], ratio[REPEATS];
    static double prompts[REPEATS];
    uint32_t *n_done = shared(sizeof *n_done);
    start("cpu", "16", STUTTER_STATE);
    let_in();
    struct infer_conn *c = join();
    stream_gaps(c, &p50[0], &p99[0]); /* warm */
    end_client(start_disturbing(n_done, STUTTER_WARM));
    for (int i = 0; i < REPEATS; i++) {
        stream_gaps(c, &p50[i], &p99[i]);
        pid_t pid = start_disturbing(n_done, 1); /* then prompt step times are known */
        uint32_t before = __atomic_load_n(n_done, __ATOMIC_RELAXED);
        double from = now_us();
        stream_gaps(c, &busy50[i], &busy99[i]);
        prompts[i] = (__atomic_load_n(n_done, __ATOMIC_RELAXED) - before) * (double)LONG_PROMPT /
                     ((now_us() - from) / 1e6);
        end_client(pid);
        ratio[i] = busy99[i] / p99[i];
    }
    infer_close(c);
    daemon_stop(&d);
    daemon_done(&d);
    munmap(n_done, sizeof *n_done);
    bench_row("gap between tokens, alone, p50", "ms", p50, REPEATS, "");
    bench_row("gap between tokens, alone, p99", "ms", p99, REPEATS, "");
    bench_row("gap beside 1900-token prompts, p50", "ms", busy50, REPEATS, "");
    bench_row("gap beside 1900-token prompts, p99", "ms", busy99, REPEATS, "");
    bench_row("gap p99, beside prompts / alone", "x", ratio, REPEATS, "<= 2");
    bench_row("prefill meanwhile (whole prompts)", "tokens/s", prompts, REPEATS, "");
}

/* ---- users ----------------------------------------------------------------------------------- */

static void keep_asking(void *arg)
{
    uint32_t *n_tokens = arg;
    int32_t ids[32];
    struct infer_event e;
    struct infer_conn *c = join();
    for (;;) {
        fresh_ids(ids, 32);
        uint32_t id = submit(c, ids, 32, 128);
        do {
            if (next(c, id, &e))
                __atomic_add_fetch(n_tokens, 1, __ATOMIC_RELAXED);
        } while (e.kind != INFER_EVENT_DONE);
    }
}

static double given(const uint32_t *n_tokens)
{
    return __atomic_load_n(n_tokens, __ATOMIC_RELAXED);
}

static void bench_users(void)
{
    static double share[REPEATS], total[REPEATS];
    pid_t pids[1 + USERS_CLIENTS];
    if (geteuid() != 0) {
        fprintf(stderr, "bench_serve: users: skipped, a second uid needs root\n");
        return;
    }
    for (int i = 0; i < REPEATS; i++) {
        uint32_t *n_tokens = shared(2 * sizeof *n_tokens);
        start("cpu", "48", NULL);
        let_in();
        for (int k = 0; k <= USERS_CLIENTS; k++)
            pids[k] = start_client(k ? BOB : ALICE, keep_asking, &n_tokens[k > 0]);
        usleep(USERS_WARM_MS * 1000);
        double alice = given(&n_tokens[0]), bob = given(&n_tokens[1]), from = now_us();
        usleep(USERS_MS * 1000);
        alice = given(&n_tokens[0]) - alice;
        bob = given(&n_tokens[1]) - bob;
        total[i] = (alice + bob) / ((now_us() - from) / 1e6);
        share[i] = 100 * alice / (alice + bob);
        for (int k = 0; k <= USERS_CLIENTS; k++)
            end_client(pids[k]);
        daemon_stop(&d);
        munmap(n_tokens, 2 * sizeof *n_tokens);
    }
    daemon_done(&d);
    bench_row("users with 1 and 31 clients: share of the one", "%", share, REPEATS, "45..55");
    bench_row("users with 1 and 31 clients: both together", "tokens/s", total, REPEATS, "");
}

/* ---- prefix ---------------------------------------------------------------------------------- */

static double first_token_ms(struct infer_conn *c, const int32_t *ids)
{
    struct infer_event e;
    double from = now_us();
    uint32_t id = submit(c, ids, PREFIX, 2);
    while (!next(c, id, &e))
        ;
    double took = (now_us() - from) / 1e3;
    read_all(c, id, NULL);
    return took;
}

static void bench_prefix(void)
{
    static double fresh[PREFIX_REPEATS], repeated[PREFIX_REPEATS], ratio[PREFIX_REPEATS];
    int32_t ids[PREFIX];
    start("cpu", "16", NULL);
    struct infer_conn *c = join();
    for (int i = -1; i < PREFIX_REPEATS; i++) {
        fresh_ids(ids, PREFIX);
        double first = first_token_ms(c, ids), again = first_token_ms(c, ids);
        if (i < 0)
            continue;
        fresh[i] = first;
        repeated[i] = again;
        ratio[i] = 100 * again / first;
    }
    infer_close(c);
    daemon_stop(&d);
    daemon_done(&d);
    bench_row("first token of a 1500-token prompt, new", "ms", fresh, PREFIX_REPEATS, "");
    bench_row("first token of a 1500-token prompt, repeated", "ms", repeated, PREFIX_REPEATS, "");
    bench_row("first token, repeated / new", "%", ratio, PREFIX_REPEATS, "<= 5");
}

/* ---- steps ----------------------------------------------------------------------------------- */

struct streams {
    struct infer_conn *c[STEP_CONNECTIONS];
    uint64_t n_tokens;
    uint32_t open;
};

/* Reads what is there on every connection. */
static void drain(struct streams *s)
{
    struct infer_event e;
    for (int i = 0; i < STEP_CONNECTIONS; i++)
        while (infer_next(s->c[i], 0, 0, &e) == 1) {
            if (e.kind == INFER_EVENT_DONE && e.error) {
                fprintf(stderr, "bench_serve: a stream ended: error %d\n", e.error);
                exit(1);
            }
            s->n_tokens += e.kind == INFER_EVENT_TOKEN && e.has_token;
            s->open -= e.kind == INFER_EVENT_DONE;
        }
}

static void drain_until(struct streams *s, uint64_t n_tokens)
{
    while (s->open > 0 && s->n_tokens < n_tokens)
        drain(s);
}

static void measure_steps(double *ret_step_us, double *ret_batch)
{
    struct infer_status before, after;
    struct streams s = {.open = STEP_CONNECTIONS * STEP_EACH};
    const int32_t token = 300;
    start("null", "256", NULL);
    struct infer_conn *ask = join();
    for (int i = 0; i < STEP_CONNECTIONS; i++)
        s.c[i] = join_ring(INFER_TOKEN_RING_MAX);
    for (int i = 0; i < STEP_CONNECTIONS; i++)
        for (int k = 0; k < STEP_EACH; k++)
            submit(s.c[i], &token, 1, STEP_ANSWER);
    uint64_t each = STEP_CONNECTIONS * STEP_EACH;
    drain_until(&s, STEP_FROM * each);
    double cpu = (double)daemon_cpu_ns(&d);
    if (infer_status(ask, &before) < 0)
        die("infer_status");
    drain_until(&s, STEP_TO * each);
    cpu = (double)daemon_cpu_ns(&d) - cpu;
    if (infer_status(ask, &after) < 0)
        die("infer_status");
    double steps = (double)(after.n_steps - before.n_steps);
    double tokens = (double)(after.n_tokens - before.n_tokens);
    *ret_step_us = cpu / 1e3 / steps;
    *ret_batch = tokens / steps;
    drain_until(&s, UINT64_MAX);
    for (int i = 0; i < STEP_CONNECTIONS; i++)
        infer_close(s.c[i]);
    infer_close(ask);
    daemon_stop(&d);
}

static void bench_steps(void)
{
    static double step[STEP_REPEATS], scaled[STEP_REPEATS], batch[STEP_REPEATS];
    for (int i = 0; i < STEP_REPEATS; i++) {
        measure_steps(&step[i], &batch[i]);
        scaled[i] = step[i] * STEP_CONNECTIONS * STEP_EACH / batch[i];
    }
    daemon_done(&d);
    bench_row("null backend, 256 streams: sequences per step", "", batch, STEP_REPEATS, "");
    bench_row("null backend, 256 streams: daemon's CPU per step", "us", step, STEP_REPEATS, "< 50");
    bench_row("the same, for 256 sequences per step", "us", scaled, STEP_REPEATS, "< 50");
}

/* ---- crowd ----------------------------------------------------------------------------------- */

struct crowd {
    uint32_t n_ready, go; /* rounds */
    uint32_t n_through;
    struct member {
        double at_us[CROWD_ANSWER]; /* of each token of the last round */
    } members[CROWD_MAX];
};

static struct crowd *crowd;

static void keep_in_step(void *arg)
{
    struct member *m = arg;
    int32_t ids[CROWD_PROMPT];
    struct infer_event e;
    struct infer_conn *c = join();
    fresh_ids(ids, CROWD_PROMPT);
    for (int i = 0; i < CROWD_PROMPT; i++) /* of the smallest vocabulary of bench_model.c */
        ids[i] = 300 + ids[i] % 700;
    for (uint32_t round = 1;; round++) {
        __atomic_add_fetch(&crowd->n_ready, 1, __ATOMIC_SEQ_CST);
        while (__atomic_load_n(&crowd->go, __ATOMIC_SEQ_CST) < round)
            usleep(500);
        uint32_t id = submit(c, ids, CROWD_PROMPT, CROWD_ANSWER), n = 0;
        do
            if (next(c, id, &e) && n < CROWD_ANSWER)
                m->at_us[n++] = now_us();
        while (e.kind != INFER_EVENT_DONE);
        if (n != CROWD_ANSWER)
            die("an answer is too short");
        __atomic_add_fetch(&crowd->n_through, 1, __ATOMIC_SEQ_CST);
    }
}

static void wait_for_crowd(const uint32_t *count, uint32_t n)
{
    while (__atomic_load_n(count, __ATOMIC_SEQ_CST) < n) {
        if (waitpid(-1, NULL, WNOHANG) > 0)
            die("the daemon or a client process ended by itself");
        usleep(1000);
    }
}

/* All of them, once. */
static void crowd_round(uint32_t n, uint32_t round, struct infer_conn *ask, double *ret_batch)
{
    struct infer_status before, after;
    wait_for_crowd(&crowd->n_ready, n * round);
    __atomic_store_n(&crowd->n_through, 0, __ATOMIC_SEQ_CST);
    if (infer_status(ask, &before) < 0)
        die("infer_status");
    __atomic_store_n(&crowd->go, round, __ATOMIC_SEQ_CST);
    wait_for_crowd(&crowd->n_through, n);
    if (infer_status(ask, &after) < 0)
        die("infer_status");
    *ret_batch =
        (double)(after.n_tokens - before.n_tokens) / (double)(after.n_steps - before.n_steps);
}

/* Tokens per second while all were decoding. */
static double crowd_rate(uint32_t n)
{
    double from = 0, to = INFINITY, tokens = 0;
    for (uint32_t i = 0; i < n; i++) {
        const double *at = crowd->members[i].at_us;
        from = at[CROWD_FROM - 1] > from ? at[CROWD_FROM - 1] : from;
        to = at[CROWD_ANSWER - 1] < to ? at[CROWD_ANSWER - 1] : to;
    }
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t t = 0; t < CROWD_ANSWER; t++)
            tokens += crowd->members[i].at_us[t] > from && crowd->members[i].at_us[t] <= to;
    if (to <= from)
        die("they were never all decoding");
    return tokens / (to - from) * 1e6;
}

static void bench_crowd(const char *file, const char *backend, uint32_t n, const char *options)
{
    char model[PATH_MAX], parallel[16];
    pid_t pids[CROWD_MAX];
    double batch;
    snprintf(model, sizeof model, "crowd=%s", file);
    snprintf(parallel, sizeof parallel, "%u", n);
    const char *threads = getenv("INFERD_THREADS");
    const char *argv[] = {"--model",
                          model,
                          "--backend",
                          backend,
                          "--parallel",
                          parallel,
                          "--newcomer-slots",
                          "none",
                          "--ctx",
                          "512",
                          "--threads",
                          threads ? threads : "0",
                          options ? "--backend-options" : NULL,
                          options,
                          NULL};
    daemon_start(&d, argv);
    let_in();
    crowd = shared(sizeof *crowd);
    for (uint32_t i = 0; i < n; i++)
        pids[i] = start_client(ALICE, keep_in_step, &crowd->members[i]);
    struct infer_conn *ask = join();
    crowd_round(n, 1, ask, &batch); /* prompts into the cache, steps captured */
    for (uint32_t round = 2; round < 2 + REPEATS; round++) {
        crowd_round(n, round, ask, &batch);
        printf("%.1f %.1f\n", crowd_rate(n), batch);
        fflush(stdout);
    }
    for (uint32_t i = 0; i < n; i++)
        end_client(pids[i]);
    infer_close(ask);
    daemon_stop(&d);
    daemon_done(&d);
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        void (*run)(void);
        bool always;
    } parts[] = {{"together", bench_together, false},
                 {"stutter", bench_stutter, true},
                 {"users", bench_users, true},
                 {"prefix", bench_prefix, true},
                 {"steps", bench_steps, true}};
    enum { N_PARTS = sizeof parts / sizeof parts[0] };
    signal(SIGPIPE, SIG_IGN);
    if (argc >= 4 && strcmp(argv[1], "crowd") == 0) {
        uint32_t n = argc > 4 ? (uint32_t)strtoul(argv[4], NULL, 10) : 64;
        if (n == 0 || n > CROWD_MAX) {
            fprintf(stderr, "bench_serve: a crowd is 1 to %d clients\n", CROWD_MAX);
            return 2;
        }
        bench_crowd(argv[2], argv[3], n, argc > 5 ? argv[5] : NULL);
        return 0;
    }
    for (int i = 1; i < argc; i++) {
        int k = 0;
        while (k < N_PARTS && strcmp(argv[i], parts[k].name) != 0)
            k++;
        if (k == N_PARTS) {
            fprintf(stderr, "bench_serve: there is no part '%s'\n", argv[i]);
            return 2;
        }
        parts[k].run();
    }
    for (int k = 0; k < N_PARTS && argc == 1; k++)
        if (parts[k].always)
            parts[k].run();
    return 0;
}
