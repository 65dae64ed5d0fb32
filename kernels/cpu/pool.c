/* pool.c: owns the backend's threads.
 *
 * Between steps a thread watches `epoch` for about 150 us, then sleeps on it with a futex; inside a
 * step it waits at a barrier for about 50 us before it sleeps. So a step finds the threads awake
 * while tokens follow each other closely, and an idle daemon costs nothing.
 *
 * Worker 0 is not ours to pin, so the kernel may put it on the processor of a pinned thread; there
 * whoever spins keeps the other from arriving. A waiting thread that finds itself in such company
 * yields the processor instead.
 *
 * A sleeper announces itself before the kernel compares the word, and who changes the word looks
 * for sleepers after: both sequentially consistent, so one of the two sees the other.
 *
 * The items of section s are counted in slot s % 4. Worker 0 clears slot (s + 1) % 4 when it
 * begins section s: that slot was last used in section s - 3, which every worker has left, since a
 * barrier stands between sections; and it is next used after the barrier that ends section s.
 * Each slot has a list for every NUMA node (step.c); sections that need one use the first. */
#include "cpu/pool.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define SPIN_IDLE_NS    150000
#define SPIN_BARRIER_NS 50000

static inline void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void futex_sleep(_Atomic uint32_t *word, uint32_t while_is)
{
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, while_is, NULL, NULL, 0);
}

static void futex_wake_all(_Atomic uint32_t *word)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

/* Whether the worker shares its processor with another of the pool. */
static bool crowded(const struct cpu_worker *worker)
{
    const struct cpu_pool *pool = worker->pool;
    int here = atomic_load_explicit(&pool->caller_cpu, memory_order_relaxed);
    if (worker->index)
        return worker->cpu == here;
    for (uint32_t i = 1; i < pool->n_workers; i++)
        if (pool->workers[i].cpu == here)
            return true;
    return false;
}

/* Until *word is no longer `before`. */
static void wait_change(const struct cpu_worker *worker, _Atomic uint32_t *word, uint32_t before,
                        _Atomic uint32_t *sleepers, int64_t spin_ns)
{
    int64_t end = 0;
    for (uint32_t i = 1;; i++) {
        if (atomic_load_explicit(word, memory_order_acquire) != before)
            return;
        relax();
        if (i % 64 == 0) { /* about a microsecond */
            if (crowded(worker))
                sched_yield();
            int64_t now = now_ns();
            if (!end)
                end = now + spin_ns;
            else if (now >= end)
                break;
        }
    }
    atomic_fetch_add(sleepers, 1);
    while (atomic_load(word) == before)
        futex_sleep(word, before);
    atomic_fetch_sub(sleepers, 1);
}

void cpu_barrier(struct cpu_worker *worker)
{
    struct cpu_pool *pool = worker->pool;
    if (pool->n_workers == 1)
        return;
    uint32_t phase = atomic_load_explicit(&pool->phase, memory_order_relaxed);
    /* acq_rel: the last to arrive sees what all others wrote before they arrived. */
    if (atomic_fetch_add_explicit(&pool->arrived, 1, memory_order_acq_rel) + 1 == pool->n_workers) {
        atomic_store_explicit(&pool->arrived, 0, memory_order_relaxed);
        atomic_fetch_add(&pool->phase, 1);
        if (atomic_load(&pool->phase_sleepers))
            futex_wake_all(&pool->phase);
    } else {
        wait_change(worker, &pool->phase, phase, &pool->phase_sleepers, SPIN_BARRIER_NS);
    }
}

void cpu_section(struct cpu_worker *worker)
{
    struct cpu_pool *pool = worker->pool;
    worker->section++;
    if (worker->index == 0) {
        for (uint32_t i = 0; i < pool->n_nodes; i++)
            atomic_store_explicit(&pool->items[(worker->section + 1) % 4][i].next, 0,
                                  memory_order_relaxed);
        int here = sched_getcpu();
        if (here != atomic_load_explicit(&pool->caller_cpu, memory_order_relaxed))
            atomic_store_explicit(&pool->caller_cpu, here, memory_order_relaxed);
    }
}

static void *worker_main(void *arg)
{
    struct cpu_worker *worker = arg;
    struct cpu_pool *pool = worker->pool;
    uint32_t epoch = 0;

    for (;;) {
        wait_change(worker, &pool->epoch, epoch, &pool->idle_sleepers, SPIN_IDLE_NS);
        epoch++;
        if (atomic_load_explicit(&pool->stop, memory_order_relaxed))
            return NULL;
        pool->job(worker, pool->arg);
        cpu_barrier(worker);
    }
}

static void announce(struct cpu_pool *pool)
{
    atomic_fetch_add(&pool->epoch, 1);
    if (atomic_load(&pool->idle_sleepers))
        futex_wake_all(&pool->epoch);
}

static void run(struct cpu_pool *pool, cpu_job job, void *arg)
{
    pool->job = job;
    pool->arg = arg;
    if (pool->n_workers > 1)
        announce(pool);
    job(&pool->workers[0], arg);
    cpu_barrier(&pool->workers[0]);
}

void cpu_pool_run(struct cpu_pool *pool, cpu_job job, void *arg)
{
    atomic_fetch_add(&pool->wanted, 1);
    pthread_mutex_lock(&pool->busy);
    run(pool, job, arg);
    pthread_mutex_unlock(&pool->busy);
    atomic_fetch_sub(&pool->wanted, 1);
}

bool cpu_pool_try(struct cpu_pool *pool, cpu_job job, void *arg)
{
    if (atomic_load(&pool->wanted) > 0 || pthread_mutex_trylock(&pool->busy) != 0)
        return false;
    run(pool, job, arg);
    pthread_mutex_unlock(&pool->busy);
    return true;
}

/* The threads take no signals: those belong to the program. Pinning is a preference; where the
 * processor is not ours to use, the thread runs where it may. */
static int start(struct cpu_worker *worker)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int r = pthread_create(&worker->thread, NULL, worker_main, worker);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (r)
        return -r;
    worker->started = true;
    char name[16];
    snprintf(name, sizeof name, "inferd-cpu-%" PRIu32, worker->index);
    pthread_setname_np(worker->thread, name);
    if (worker->cpu >= 0 && worker->cpu < CPU_SETSIZE) {
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET((unsigned)worker->cpu, &set);
        pthread_setaffinity_np(worker->thread, sizeof set, &set);
    }
    return 0;
}

static void count_nodes(struct cpu_pool *pool)
{
    uint32_t counts[CPU_NODES_MAX] = {0};
    for (uint32_t i = 0; i < pool->n_workers; i++)
        pool->workers[i].at_node = counts[pool->workers[i].node]++;
    for (uint32_t i = 0; i < pool->n_nodes; i++)
        pool->first_of_node[i + 1] = pool->first_of_node[i] + counts[i];
}

int cpu_pool_init(struct cpu_pool *pool, uint32_t n_workers, const uint32_t *cpus, uint32_t n_cpus,
                  const uint32_t *nodes, uint32_t n_nodes)
{
    if (n_workers < 1 || n_workers > CPU_THREADS_MAX)
        return -EINVAL;
    memset(pool, 0, sizeof *pool);
    pthread_mutex_init(&pool->busy, NULL);
    pool->n_workers = n_workers;
    pool->n_nodes = nodes && n_nodes && n_nodes <= CPU_NODES_MAX ? n_nodes : 1;
    atomic_store(&pool->caller_cpu, -1);
    for (uint32_t i = 0; i < n_workers; i++) {
        struct cpu_worker *worker = &pool->workers[i];
        worker->pool = pool;
        worker->index = i;
        worker->cpu = i < n_cpus ? (int)cpus[i] : -1;
        worker->node = pool->n_nodes > 1 && i < n_cpus && nodes[i] < n_nodes ? nodes[i] : 0;
    }
    count_nodes(pool);
    for (uint32_t i = 1; i < n_workers; i++) {
        int r = start(&pool->workers[i]);
        if (r < 0) {
            cpu_pool_done(pool);
            return r;
        }
    }
    return 0;
}

void cpu_pool_done(struct cpu_pool *pool)
{
    atomic_store(&pool->stop, true);
    announce(pool);
    for (uint32_t i = 1; i < pool->n_workers; i++)
        if (pool->workers[i].started)
            pthread_join(pool->workers[i].thread, NULL);
    pthread_mutex_destroy(&pool->busy);
}
