/* pool.h: the threads of the CPU backend, and how they meet. */
#ifndef INFERD_KERNELS_CPU_POOL_H
#define INFERD_KERNELS_CPU_POOL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define CPU_THREADS_MAX 256u
#define CPU_NODES_MAX   32u /* NUMA nodes that are told apart */

struct cpu_pool;

/* One thread at work; worker 0 is whoever called cpu_pool_run(), one thread at a time. */
struct cpu_worker {
    struct cpu_pool *pool;
    uint32_t index;
    uint32_t section; /* how many sections this worker has begun, ever; the same for all */
    int cpu;          /* to pin to; -1: nowhere */
    uint32_t node;    /* its NUMA node, */
    uint32_t at_node; /* and which of that node's workers it is */
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
    } items[4][CPU_NODES_MAX];             /* of section s in slot s % 4: a list for each node */
    pthread_mutex_t busy;                  /* held by the thread whose job runs */
    _Alignas(128) _Atomic uint32_t wanted; /* threads in cpu_pool_run() */
    _Alignas(128) uint32_t n_workers;
    uint32_t n_nodes;                          /* at least 1 */
    uint32_t first_of_node[CPU_NODES_MAX + 1]; /* how many workers the nodes before it have */
    struct cpu_worker workers[CPU_THREADS_MAX];
};

/* Starts n_workers - 1 threads, number i pinned to cpus[i] where i < n_cpus, which belongs to node
 * nodes[i] of n_nodes; nodes NULL, or more of them than CPU_NODES_MAX: all are one. 0 or -errno. */
int cpu_pool_init(struct cpu_pool *pool, uint32_t n_workers, const uint32_t *cpus, uint32_t n_cpus,
                  const uint32_t *nodes, uint32_t n_nodes);
void cpu_pool_done(struct cpu_pool *pool);

/* Runs `job` on every worker, the caller included, and returns when all have finished. Two threads
 * may call it: one waits for the other. */
void cpu_pool_run(struct cpu_pool *pool, cpu_job job, void *arg);
/* The same for a thread that must not hold up steps: false, and nothing was run, when the pool
 * works or another thread waits for it. */
bool cpu_pool_try(struct cpu_pool *pool, cpu_job job, void *arg);

/* Inside a job. A section is a list of items that workers take one by one, or one such list for
 * each node; every worker begins the same sections in the same order, and passes a barrier between
 * two of them. */
void cpu_section(struct cpu_worker *worker);
static inline uint32_t cpu_item_of(struct cpu_worker *worker, uint32_t node)
{
    return atomic_fetch_add_explicit(&worker->pool->items[worker->section % 4][node].next, 1,
                                     memory_order_relaxed);
}
static inline uint32_t cpu_item(struct cpu_worker *worker)
{
    return cpu_item_of(worker, 0);
}
void cpu_barrier(struct cpu_worker *worker);

#endif
