/* test_soak.c: thousands of requests of mixed length from several threads and connections, with
 * cancels at random and client processes that are killed in the middle of everything: no wrong
 * token, and nothing left behind.
 *
 * A request is a function of its number alone (what(i)). First each is run alone, one after the
 * other, on a daemon of its own; that is the oracle. Then a busy daemon answers all of them in two
 * identical rounds. After each: no page, sequence or session is left, it holds as many descriptors
 * as before, and the second round took no more than GROWTH_MAX of memory.
 *
 * Many prompts begin alike, so that the prefix cache has hits all the time; one thread has the
 * smallest ring there is, so that its sequences are parked now and then.
 *
 * INFERD_LONG=1 runs four times as many. */
#include "integration/many.h"

#include <pthread.h>
#include <stdatomic.h>

enum { REQUESTS = 5000, REQUESTS_LONG = 20000, THREADS = 4, FLIGHT = 16 };
enum { VICTIMS = 60, VICTIMS_LONG = 240, VICTIM_REQUESTS = 12 };
enum { PROMPT_MAX = 300, ANSWER_MAX = 90, FAMILIES = 8 };
enum { GROWTH_MAX = 16 << 20 };

static struct daemon d;
static uint32_t n_requests, n_victims;

/* ---- the requests ---------------------------------------------------------------------------- */

struct what {
    uint32_t n_prompt, max_tokens;
    uint64_t seed;
    uint32_t priority;
    uint32_t cancel_after; /* tokens; UINT32_MAX: never */
    bool by_id;            /* cancelled by its daemon-wide id, from another connection */
    int32_t ids[PROMPT_MAX];
};

static void what(uint32_t i, struct what *ret)
{
    uint64_t r = many_mix(i + 1);
    ret->n_prompt = 1 + (uint32_t)(r % 10 < 7 ? r >> 8 & 63 : (r >> 8) % (PROMPT_MAX - 1));
    ret->max_tokens = 1 + (uint32_t)((r >> 20) % ANSWER_MAX);
    ret->seed = 1 + (r >> 32);
    ret->priority = (uint32_t)(r >> 5) % 3;
    ret->by_id = (r >> 13 & 3) == 0;
    ret->cancel_after =
        (r >> 15) % 4 == 0 ? (uint32_t)(r >> 17) % (ret->max_tokens + 4) : UINT32_MAX;
    many_ids(ret->ids, ret->n_prompt, i + 1000);
    /* A prefix of one of some families, of any length. */
    uint32_t n_common = (uint32_t)(r >> 40) % ret->n_prompt;
    if (r >> 50 & 1)
        many_ids(ret->ids, n_common, 1 + (r >> 51) % FAMILIES);
}

static void request_of(struct infer_request *r, const struct what *w)
{
    many_request(r, w->ids, w->n_prompt, w->max_tokens);
    r->sampling.seed = w->seed;
    r->priority = w->priority;
}

/* ---- alone ----------------------------------------------------------------------------------- */

static int32_t (*expected)[ANSWER_MAX];

static void test_alone(void **state)
{
    static struct many_answer a;
    const char *argv[] = {"--model", "unix=" DAEMON_MODEL, "--backend", "null", "--parallel", "1",
                          NULL};
    struct infer_request r;
    struct what w;
    expected = calloc(n_requests, sizeof *expected);
    assert_non_null(expected);
    daemon_start(&d, argv);
    struct infer_conn *c = many_connect(&d);
    assert_non_null(c);
    for (uint32_t i = 0; i < n_requests; i++) {
        what(i, &w);
        request_of(&r, &w);
        many_get(c, &r, &a);
        many_assert_good(&a, w.max_tokens);
        memcpy(expected[i], a.ids, a.n * sizeof *a.ids);
    }
    infer_close(c);
    daemon_stop(&d);
    daemon_done(&d);
}

/* ---- a busy thread --------------------------------------------------------------------------- */

struct flight {
    uint32_t i, request; /* request 0: free */
    uint32_t n;
    uint32_t cancel_after, max_tokens;
    uint64_t id;
    bool by_id, cancelled;
};

struct worker {
    pthread_t thread;
    uint32_t ring_bytes;
    atomic_uint *next;
    struct flight flights[FLIGHT];
    uint32_t n_open, n_cancelled, n_cached;
    char error[256]; /* what was wrong first */
};

static void complain(struct worker *w, const struct flight *f, const char *text, int code)
{
    if (!w->error[0])
        snprintf(w->error, sizeof w->error, "request %u after %u tokens: %s (%d %s)", f->i, f->n,
                 text, code, infer_error_name(code));
}

static void launch(struct worker *w, struct infer_conn *c, struct flight *f)
{
    struct infer_request r;
    struct what what_to;
    uint32_t i = atomic_fetch_add(w->next, 1);
    if (i >= n_requests)
        return;
    what(i, &what_to);
    request_of(&r, &what_to);
    *f = (struct flight){.i = i,
                         .cancel_after = what_to.cancel_after,
                         .max_tokens = what_to.max_tokens,
                         .by_id = what_to.by_id};
    int code = infer_submit(c, &r, &f->request);
    if (code != 0)
        complain(w, f, "infer_submit", code);
    else
        w->n_open++;
}

/* Cancels when its time has come. It may be over already: that is no error. */
static void maybe_cancel(struct worker *w, struct infer_conn *c, struct infer_conn *other,
                         struct flight *f)
{
    if (f->cancelled || f->n < f->cancel_after || f->id == 0)
        return;
    f->cancelled = true;
    int code = f->by_id ? infer_end(other, f->id) : infer_cancel(c, f->request);
    if (code != 0 && code != -INFER_E_NOT_FOUND)
        complain(w, f, "cancel", code);
}

static void ended(struct worker *w, struct flight *f, const struct infer_event *e)
{
    bool cut = e->finish == INFER_FINISH_CANCEL && f->cancelled;
    int error = cut && f->by_id ? INFER_E_CANCELLED : 0; /* ended by another connection */
    if (e->error != error)
        complain(w, f, "DONE with an error", e->error);
    else if (!cut && (e->finish != INFER_FINISH_LENGTH || f->n != f->max_tokens))
        complain(w, f, infer_finish_name(e->finish), 0);
    w->n_cancelled += cut;
    w->n_cached += e->n_prompt_cached;
    w->n_open--;
    f->request = 0;
}

static void take(struct worker *w, struct infer_conn *c, struct infer_conn *other,
                 const struct infer_event *e)
{
    struct flight *f = w->flights;
    while (f < w->flights + FLIGHT && f->request != e->request)
        f++;
    if (f == w->flights + FLIGHT) {
        snprintf(w->error, sizeof w->error, "an event of request %u, which is over", e->request);
        return;
    }
    if (e->kind == INFER_EVENT_QUEUED) {
        f->id = e->id;
    } else if (e->kind == INFER_EVENT_TOKEN && e->has_token) {
        if (e->index != f->n || f->n >= f->max_tokens)
            complain(w, f, "a gap in its tokens", 0);
        else if (e->token != expected[f->i][f->n])
            complain(w, f, "a wrong token", 0);
        f->n++;
    } else if (e->kind == INFER_EVENT_DONE) {
        ended(w, f, e);
        launch(w, c, f);
        return;
    }
    maybe_cancel(w, c, other, f);
}

static void *work(void *arg)
{
    struct worker *w = arg;
    struct infer_connect_options options = {.socket = d.socket, .token_ring_bytes = w->ring_bytes};
    struct infer_conn *c = NULL, *other = NULL;
    struct infer_event e;
    if (infer_connect(&options, &c) < 0 || infer_connect(&options, &other) < 0) {
        snprintf(w->error, sizeof w->error, "infer_connect");
        infer_close(c);
        return NULL;
    }
    for (int i = 0; i < FLIGHT; i++)
        launch(w, c, &w->flights[i]);
    while (w->n_open > 0 && !w->error[0]) {
        int code = infer_next(c, 0, 60000 * program_slowness(), &e);
        if (code != 1)
            snprintf(w->error, sizeof w->error, "infer_next: %d %s", code, infer_error_name(-code));
        else
            take(w, c, other, &e);
    }
    infer_close(other);
    infer_close(c);
    return NULL;
}

/* ---- clients that are killed ----------------------------------------------------------------- */

/* Asks for much, reads some of it, says so with one byte and goes on until it is killed. */
static void be_victim(uint32_t number, int tell)
{
    struct infer_request r;
    struct infer_event e;
    int32_t ids[PROMPT_MAX];
    uint32_t id, n_events = (uint32_t)(many_mix(number) % 200);
    struct infer_conn *c = many_connect(&d);
    if (!c)
        _exit(1);
    for (uint32_t i = 0; i < VICTIM_REQUESTS; i++) {
        uint32_t n = 1 + (uint32_t)(many_mix(number * 100 + i) % (PROMPT_MAX - 1));
        many_ids(ids, n, 1 + number % FAMILIES);
        many_request(&r, ids, n, 1500);
        if (infer_submit(c, &r, &id) != 0)
            _exit(2);
    }
    while (n_events-- > 0)
        if (infer_next(c, 0, -1, &e) != 1)
            _exit(3);
    (void)!write(tell, "", 1);
    if (number % 2) /* some never read again: the daemon parks them first */
        pause();
    while (infer_next(c, 0, -1, &e) == 1)
        ;
    _exit(4);
}

static bool kill_one(uint32_t number)
{
    int pipe_fd[2], status;
    char byte;
    if (pipe(pipe_fd) < 0)
        return false;
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        close(pipe_fd[0]);
        be_victim(number, pipe_fd[1]);
    }
    close(pipe_fd[1]);
    bool ready = pid > 0 && read(pipe_fd[0], &byte, 1) == 1;
    if (ready && number % 3 == 0)
        usleep(2000);
    close(pipe_fd[0]);
    if (pid < 0)
        return false;
    kill(pid, SIGKILL);
    return waitpid(pid, &status, 0) == pid && ready && WIFSIGNALED(status);
}

/* In a process of its own, because it forks while the test has threads. */
static int kill_clients(void *arg)
{
    for (uint32_t i = 0; i < n_victims; i++)
        if (!kill_one(i))
            return 1;
    return 0;
}

/* ---- a round --------------------------------------------------------------------------------- */

static void run_round(void)
{
    static struct worker workers[THREADS];
    atomic_uint next = 0;
    uint32_t n_cancelled = 0, n_cached = 0;
    memset(workers, 0, sizeof workers);
    pid_t killer = many_start(getuid(), kill_clients, NULL);
    for (int i = 0; i < THREADS; i++) {
        workers[i].next = &next;
        workers[i].ring_bytes = i == 0 ? INFER_TOKEN_RING_MIN : 0;
        assert_int_equal(pthread_create(&workers[i].thread, NULL, work, &workers[i]), 0);
    }
    for (int i = 0; i < THREADS; i++)
        pthread_join(workers[i].thread, NULL);
    many_join(killer);
    for (int i = 0; i < THREADS; i++) {
        if (workers[i].error[0])
            fail_msg("thread %d: %s", i, workers[i].error);
        n_cancelled += workers[i].n_cancelled;
        n_cached += workers[i].n_cached;
    }
    assert_true(n_cancelled > 0);
    assert_true(n_cached > n_requests);
    print_message("%u requests, %u of them cancelled, %u prompt tokens cached, %u clients killed\n",
                  n_requests, n_cancelled, n_cached, n_victims);
}

/* Everything is given back; *ret is the status then. */
static void assert_nothing_left(struct infer_conn *c, int descriptors, struct infer_status *ret)
{
    uint64_t end = test_clock_us() + 20000000u * (unsigned)program_slowness();
    for (;;) {
        assert_int_equal(infer_status(c, ret), 0);
        if (ret->n_sessions == 1 && daemon_descriptors(&d) == descriptors &&
            ret->n_running + ret->n_waiting + ret->n_parked == 0)
            break;
        if (test_clock_us() > end)
            fail_msg("%u sessions, %d descriptors where %d were, %u running, %u waiting, %u parked",
                     ret->n_sessions, daemon_descriptors(&d), descriptors, ret->n_running,
                     ret->n_waiting, ret->n_parked);
        usleep(2000);
    }
    assert_int_equal(ret->n_pages_used, 0);
}

static void test_together(void **state)
{
    const char *argv[] = {"--model", "unix=" DAEMON_MODEL, "--backend", "null", "--parallel", "24",
                          NULL};
    struct infer_status before, after;
    assert_non_null(expected);
    daemon_start(&d, argv);
    struct infer_conn *c = many_connect(&d);
    assert_non_null(c);
    int descriptors = daemon_descriptors(&d);
    assert_true(descriptors > 0);
    run_round();
    assert_nothing_left(c, descriptors, &before);
    run_round();
    assert_nothing_left(c, descriptors, &after);
    print_message("resident: %llu KiB, then %llu KiB\n",
                  (unsigned long long)before.memory_bytes >> 10,
                  (unsigned long long)after.memory_bytes >> 10);
    /* AddressSanitizer keeps freed memory back; LeakSanitizer counts there, when the daemon ends.
     */
    if (program_slowness() == 1)
        assert_true(after.memory_bytes < before.memory_bytes + GROWTH_MAX);
    assert_true(after.n_requests >= 2 * (uint64_t)n_requests);
    daemon_assert_serves(&d);
    infer_close(c);
    daemon_stop(&d);
    daemon_done(&d);
    free(expected);
    expected = NULL;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_alone),
        cmocka_unit_test(test_together),
    };
    const char *is_long = getenv("INFERD_LONG");
    bool more = is_long && is_long[0] == '1';
    n_requests = more ? REQUESTS_LONG : REQUESTS;
    n_victims = more ? VICTIMS_LONG : VICTIMS;
    return cmocka_run_group_tests_name("soak", tests, NULL, NULL);
}
