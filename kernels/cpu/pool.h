/* pool.h: the threads of the CPU backend, and how they meet. */
#ifndef INFERD_KERNELS_CPU_POOL_H
#define INFERD_KERNELS_CPU_POOL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define CPU_THREADS_MAX 256u

struct cpu_pool;

/* One thread at work; worker 0 is whoever called cpu_pool_run(). */
struct cpu_worker {
    struct cpu_pool *pool;
    uint32_t index;
    uint32_t section; /* how many sections this worker has begun, ever; the same for all */
    int cpu;          /* to pin to; -1: nowhere */
    pthread_t thread;
    bool started;
};

typedef void (*cpu_job)(struct cpu_worker *worker, void *arg);

/* Lines of their own: what spinning threads read, and what all of them write. */
struct cpu_pool {
    _Alignas(128) _Atomic uint32_t epoch; /* one more with every job; sleepers wait on it */
    _Atomic uint32_t idle_sleepers;
    _Atomic bool stop;
    _Atomic int caller_cpu; /* where worker 0 runs */
    cpu_job job;
    void *arg;
    _Alignas(128) _Atomic uint32_t arrived;
    _Alignas(128) _Atomic uint32_t phase; /* one more with every barrier passed */
    _Atomic uint32_t phase_sleepers;
    struct {
        _Alignas(128) _Atomic uint32_t next;
    } items[4]; /* of section s in slot s % 4 */
    _Alignas(128) uint32_t n_workers;
    struct cpu_worker workers[CPU_THREADS_MAX];
};

/* Starts n_workers - 1 threads, number i pinned to cpus[i] where i < n_cpus. 0 or -errno. */
int cpu_pool_init(struct cpu_pool *pool, uint32_t n_workers, const uint32_t *cpus, uint32_t n_cpus);
void cpu_pool_done(struct cpu_pool *pool);

/* Runs `job` on every worker, the caller included, and returns when all have finished. */
void cpu_pool_run(struct cpu_pool *pool, cpu_job job, void *arg);

/* Inside a job. A section is a list of items that workers take one by one; every worker begins
 * the same sections in the same order, and passes a barrier between two of them. */
void cpu_section(struct cpu_worker *worker);
static inline uint32_t cpu_item(struct cpu_worker *worker)
{
    return atomic_fetch_add_explicit(&worker->pool->items[worker->section % 4].next, 1,
                                     memory_order_relaxed);
}
void cpu_barrier(struct cpu_worker *worker);

#endif
