/* test_loop_time.c: timers, posted calls, stops and signals, as io/loop.h promises them. */
#include "loop_fixture.h"

#include "base/clock.h"

#include <pthread.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>

static void stop_now(void *ctx)
{
    (void)ctx;
    loop_stop(loop, 0);
}

/* ---- timers ---------------------------------------------------------------------------------- */

#define N_TIMERS 3000

static struct tick {
    uint64_t deadline, sequence;
} ticks[N_TIMERS];
static struct tick last_tick;

static void tick_fires(void *ctx)
{
    struct tick *t = ctx;
    if (clock_ns() < t->deadline)
        errors++; /* early */
    if (t->deadline < last_tick.deadline ||
        (t->deadline == last_tick.deadline && t->sequence < last_tick.sequence))
        errors++;
    last_tick = *t;
    if (++hits == N_TIMERS)
        loop_stop(loop, 0);
}

static void thousands_of_timers_in_order(void **state)
{
    NEED_LOOP();
    uint32_t x = 12345;
    last_tick = (struct tick){0};
    for (int i = 0; i < N_TIMERS; i++) {
        struct loop_watch *w;
        x = x * 1664525u + 1013904223u;
        uint64_t delay_us = (x >> 16) % 60000, before = clock_ns();
        assert_int_equal(loop_timer(loop, delay_us, 0, tick_fires, &ticks[i], &w), 0);
        ticks[i] = (struct tick){w->deadline, w->sequence};
        assert_in_range(w->deadline, before + delay_us * 1000, clock_ns() + delay_us * 1000);
    }
    assert_int_equal(run_for_ms(10000), 0);
    assert_int_equal(hits, N_TIMERS);
    assert_int_equal(errors, 0);
}

static struct loop_watch *periodic;

static void periodic_fires(void *ctx)
{
    (void)ctx;
    if (++hits == 5) {
        loop_unwatch(loop, periodic);
        assert_int_equal(loop_timer(loop, 30000, 0, stop_now, NULL, NULL), 0);
    }
}

static void periodic_timer_until_it_unwatches_itself(void **state)
{
    NEED_LOOP();
    uint64_t start = clock_us();
    assert_int_equal(loop_timer(loop, 2000, 3000, periodic_fires, NULL, &periodic), 0);
    assert_int_equal(run_for_ms(5000), 0);
    assert_int_equal(hits, 5);
    assert_true(clock_us() - start >= 2000 + 4 * 3000 + 30000);
}

static void slow_periodic(void *ctx)
{
    (void)ctx;
    if (hits++ == 0)
        usleep(40000);
}

static void missed_periods_are_skipped(void **state)
{
    NEED_LOOP();
    assert_int_equal(loop_timer(loop, 1000, 10000, slow_periodic, NULL, &periodic), 0);
    assert_int_equal(run_for_ms(65), -ETIME);
    assert_in_range(hits, 1, 4); /* 1 ms, then from 51 ms on; not the four between */
    loop_unwatch(loop, periodic);
}

static void again_at_once(void *ctx)
{
    hits++;
    loop_timer(loop, 0, 0, again_at_once, ctx, NULL);
}

static void zero_timers_starve_nobody(void **state)
{
    NEED_LOOP();
    assert_int_equal(loop_timer(loop, 0, 0, again_at_once, NULL, NULL), 0);
    assert_int_equal(run_for_ms(20), -ETIME);
    assert_true(hits > 1);
}

static struct loop_watch *removed[100];

static void remove_the_rest(void *ctx)
{
    (void)ctx;
    for (int i = 0; i < 100; i++)
        if (i % 3 != 0)
            loop_unwatch(loop, removed[i]);
}

static void count_timer(void *ctx)
{
    (void)ctx;
    hits++;
}

static void timers_removed_from_the_middle(void **state)
{
    NEED_LOOP();
    for (int i = 0; i < 100; i++)
        assert_int_equal(loop_timer(loop, 5000 + (unsigned)(i * 37 % 100) * 50, 0, count_timer,
                                    NULL, &removed[i]),
                         0);
    assert_int_equal(loop_timer(loop, 0, 0, remove_the_rest, NULL, NULL), 0);
    assert_int_equal(loop_timer(loop, UINT64_MAX, UINT64_MAX, count_timer, NULL, NULL), 0);
    assert_int_equal(run_for_ms(50), -ETIME);
    assert_int_equal(hits, 34);
}

/* ---- posts, stops, signals ------------------------------------------------------------------- */

#define N_POSTERS 4
#define N_POSTS   5000

struct post {
    int thread, number;
};

static struct post posts[N_POSTERS][N_POSTS];
static int next_post[N_POSTERS];

static void post_runs(void *ctx)
{
    struct post *p = ctx;
    if (p->number != next_post[p->thread]++)
        errors++;
    if (++hits == N_POSTERS * N_POSTS)
        loop_stop(loop, 11);
}

static void *poster(void *ctx)
{
    int thread = (int)(intptr_t)ctx;
    for (int i = 0; i < N_POSTS; i++) {
        posts[thread][i] = (struct post){thread, i};
        if (loop_post(loop, post_runs, &posts[thread][i]) < 0)
            return (void *)1;
    }
    return NULL;
}

static void posts_from_threads_are_never_lost(void **state)
{
    NEED_LOOP();
    pthread_t threads[N_POSTERS];
    memset(next_post, 0, sizeof next_post);
    for (int i = 0; i < N_POSTERS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, poster, (void *)(intptr_t)i), 0);
    int r = run_for_ms(20000);
    for (int i = 0; i < N_POSTERS; i++) {
        void *failed;
        pthread_join(threads[i], &failed);
        assert_null(failed);
    }
    assert_int_equal(r, 11);
    assert_int_equal(hits, N_POSTERS * N_POSTS);
    assert_int_equal(errors, 0);
}

static void *stop_later(void *ctx)
{
    (void)ctx;
    usleep(20000);
    loop_post(loop, count_timer, NULL);
    loop_stop(loop, 42);
    return NULL;
}

static void stop_from_another_thread(void **state)
{
    NEED_LOOP();
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, stop_later, NULL), 0);
    assert_int_equal(loop_run(loop), 42);
    pthread_join(thread, NULL);
    assert_int_equal(hits, 1); /* posted before the stop */
    loop_stop(loop, 5);
    assert_int_equal(loop_run(loop), 5);
    assert_int_equal(loop_post(loop, count_timer, NULL), 0); /* dropped with the loop, not leaked */
}

static int seen_signals[3];

static void on_signal(void *ctx, int signo)
{
    struct loop_watch **w = ctx;
    if (hits < 3)
        seen_signals[hits] = signo;
    if (signo == SIGTERM) {
        loop_unwatch(loop, *w);
        loop_stop(loop, 0);
    } else if (signo == SIGUSR1) {
        raise(SIGTERM);
    }
    hits++;
}

static void signals_arrive(void **state)
{
    NEED_LOOP();
    struct loop_watch *w;
    sigset_t set, old;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGTERM);
    assert_int_equal(pthread_sigmask(SIG_BLOCK, NULL, &old), 0);
    assert_int_equal(loop_signal(loop, &set, on_signal, &w, &w), 0);
    assert_int_equal(kill(getpid(), SIGUSR1), 0);
    assert_int_equal(run_for_ms(5000), 0);
    assert_int_equal(hits, 2);
    assert_int_equal(seen_signals[0], SIGUSR1);
    assert_int_equal(seen_signals[1], SIGTERM);
    assert_int_equal(pthread_sigmask(SIG_SETMASK, &old, NULL), 0);
}

static void interrupt(int signo)
{
    (void)signo;
}

static void interrupted_waits_go_on(void **state)
{
    NEED_LOOP();
    struct sigaction action = {.sa_handler = interrupt}, old;
    struct itimerval often = {{0, 2000}, {0, 2000}}, never = {{0, 0}, {0, 0}};
    assert_int_equal(sigaction(SIGALRM, &action, &old), 0);
    assert_int_equal(setitimer(ITIMER_REAL, &often, NULL), 0);
    int r = run_for_ms(60);
    assert_int_equal(setitimer(ITIMER_REAL, &never, NULL), 0);
    assert_int_equal(sigaction(SIGALRM, &old, NULL), 0);
    assert_int_equal(r, -ETIME);
}

static const struct loop_case cases[] = {
    CASE(thousands_of_timers_in_order),   CASE(periodic_timer_until_it_unwatches_itself),
    CASE(missed_periods_are_skipped),     CASE(zero_timers_starve_nobody),
    CASE(timers_removed_from_the_middle), CASE(posts_from_threads_are_never_lost),
    CASE(stop_from_another_thread),       CASE(signals_arrive),
    CASE(interrupted_waits_go_on),
};

int main(void)
{
    return run_cases(cases, sizeof cases / sizeof cases[0]);
}
