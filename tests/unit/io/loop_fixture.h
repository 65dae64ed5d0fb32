/* loop_fixture.h: runs each test of the event loop on epoll, on io_uring, and on io_uring without
 * what newer kernels brought. */
#ifndef INFERD_TESTS_UNIT_IO_LOOP_FIXTURE_H
#define INFERD_TESTS_UNIT_IO_LOOP_FIXTURE_H

#include "io/loop_impl.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>

#include <cmocka.h>

struct variant {
    const char *name;
    enum loop_kind kind;
    unsigned without;
};

static const struct variant variants[] = {
    {"epoll", LOOP_EPOLL, 0},
    {"io_uring", LOOP_IO_URING, 0},
    {"io_uring of 5.11", LOOP_IO_URING, LOOP_URING_NO_MODERN | LOOP_URING_NO_MULTISHOT},
    {"io_uring, poll only", LOOP_IO_URING, LOOP_URING_NO_DIRECT},
};

/* One loop per test; what callbacks count lies here. */
static struct loop *loop;
static int hits;
static int errors;

/* Runs the loop for at most so long; -ETIME when nobody stopped it. */
static void time_out(void *ctx)
{
    (void)ctx;
    loop_stop(loop, 99);
}

static int run_for_ms(unsigned ms)
{
    struct loop_watch *w;
    assert_int_equal(loop_timer(loop, ms * 1000ull, 0, time_out, NULL, &w), 0);
    int r = loop_run(loop);
    loop_unwatch(loop, w);
    return r == 99 ? -ETIME : r;
}

static int loop_setup(void **state)
{
    const struct variant *v = *state;
    hits = errors = 0;
    loop = NULL;
    if (loop_new_without(v->kind, v->without, &loop) < 0 && v->kind == LOOP_EPOLL)
        return -1;
    return 0;
}

static int loop_teardown(void **state)
{
    (void)state;
    loop_free(loop);
    loop = NULL;
    return 0;
}

#define NEED_LOOP()                                                                                \
    do {                                                                                           \
        if (loop == NULL)                                                                          \
            skip();                                                                                \
    } while (0)

struct loop_case {
    const char *name;
    CMUnitTestFunction function;
};

/* clang-format off */
#define CASE(name) {#name, name}
/* clang-format on */

#define N_VARIANTS (sizeof variants / sizeof variants[0])

/* What a program's main() returns. */
static int run_cases(const struct loop_case *cases, size_t n_cases)
{
    struct CMUnitTest all[N_VARIANTS * 32];
    static char names[N_VARIANTS * 32][96];
    struct rlimit files;
    if (n_cases > 32)
        return 1;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0 && files.rlim_cur < 1024) {
        files.rlim_cur = files.rlim_max < 1024 ? files.rlim_max : 1024;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    size_t n = 0;
    for (size_t v = 0; v < N_VARIANTS; v++)
        for (size_t c = 0; c < n_cases; c++, n++) {
            snprintf(names[n], sizeof names[n], "%s: %s", variants[v].name, cases[c].name);
            all[n] = (struct CMUnitTest){.name = names[n],
                                         .test_func = cases[c].function,
                                         .setup_func = loop_setup,
                                         .teardown_func = loop_teardown,
                                         .initial_state = (void *)(uintptr_t)&variants[v]};
        }
    return _cmocka_run_group_tests("loop", all, n, NULL, NULL);
}

#endif
