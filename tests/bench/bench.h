/* bench.h: rows of the bench table. A row is what one measure gave over its repeats:
 *
 *   name | unit | median | lowest | highest | repeats | goal
 *
 * one line on standard output; tests/bench/run.sh makes the table of them. */
#ifndef INFERD_BENCH_H
#define INFERD_BENCH_H

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

/* Seconds, of a clock that only goes forward. */
static inline double bench_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static inline int bench_compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Sorts the values; the q-th quantile, 0 <= q <= 1. */
static inline double bench_quantile(double *values, size_t n, double q)
{
    qsort(values, n, sizeof *values, bench_compare);
    double at = q * (double)(n - 1);
    size_t i = (size_t)at;
    if (i + 1 >= n)
        return values[n - 1];
    return values[i] + (values[i + 1] - values[i]) * (at - (double)i);
}

static inline void bench_row(const char *name, const char *unit, double *values, size_t n,
                             const char *goal)
{
    double median = bench_quantile(values, n, 0.5);
    printf("%s|%s|%.4g|%.4g|%.4g|%zu|%s\n", name, unit, median, values[0], values[n - 1], n, goal);
    fflush(stdout);
}

#endif
