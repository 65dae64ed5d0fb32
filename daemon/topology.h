/* topology.h: which processors and how much memory this process may use, and who works where.
 *
 * The rules.
 *   Workers     one per physical core that the process may run on, never two on one core: the
 *               second thread of a core shares its arithmetic and its caches.
 *   Kinds       on a machine of fast and slow cores the fast ones alone, when there are
 *               TOPOLOGY_FAST_MIN of them: a step has many barriers, and each waits for the
 *               slowest. With fewer fast cores all are used, since the backend deals out most of
 *               its work in pieces and a slow core takes fewer. Kinds count as slow by their type,
 *               or by three quarters of the fastest kind's frequency or capacity; what differs by
 *               less, such as a few favoured cores, is all fast.
 *   Others      the event thread and those that prepare and load stay off the workers' cores: on
 *               cores that have no worker anyway, and from TOPOLOGY_SPARE_MIN cores on, one core is
 *               left to them. On less, a core would cost more than its interruptions.
 *   Engine      the engine thread is worker 0: while a step runs it has nothing else to do.
 *   Asked for   --threads overrides all this but "one per core": slow cores come last.
 *
 * Threads: call topology_discover() before the process starts others (it sets an environment
 * variable for hwloc). The result is plain data. */
#ifndef INFERD_TOPOLOGY_H
#define INFERD_TOPOLOGY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Cores that are used; a larger machine is used up to here. */
#define TOPOLOGY_CPUS_MAX     1024u
#define TOPOLOGY_NODES_MAX    64u
#define TOPOLOGY_SIBLINGS_MAX 8u /* logical processors of a core */
#define TOPOLOGY_FAST_MIN     4u
#define TOPOLOGY_SPARE_MIN    8u
#define TOPOLOGY_NONE         UINT32_MAX

/* A core that the process may run on. */
struct topology_core {
    uint32_t siblings[TOPOLOGY_SIBLINGS_MAX]; /* those it may run on; a worker gets the first */
    uint32_t n_siblings;
    uint32_t number;  /* hwloc's, over the machine */
    uint32_t node;    /* operating system's number; TOPOLOGY_NONE: not told */
    uint32_t package; /* hwloc's number */
    uint32_t l3;      /* which third-level cache; TOPOLOGY_NONE: it has none */
    uint32_t l2_kib, l3_kib;
    int kind; /* hwloc's rank: higher is faster */
    bool slow;
};

struct topology_node {
    uint32_t number; /* the operating system's */
    uint32_t n_cores;
    uint64_t bytes;
};

struct topology {
    /* One logical processor per physical core that the process may run on, best first: the fastest
     * kind of core, those of the first NUMA node before those of the next. */
    uint32_t cpus[TOPOLOGY_CPUS_MAX];
    struct topology_core cores[TOPOLOGY_CPUS_MAX]; /* in the same order */
    uint32_t n_cpus;                               /* at least 1 */
    uint32_t n_slow;                               /* of them: the last ones */
    uint32_t n_threads;        /* logical processors that the process may run on */
    uint32_t n_nodes;          /* NUMA nodes that these belong to */
    uint32_t n_packages;       /* likewise */
    uint32_t quota_percent;    /* of one processor's time, from the control group; 0: no limit */
    uint32_t default_threads;  /* by the rules above, and what the quota feeds: at least 1 */
    uint64_t memory_total;     /* bytes; the machine's or the control group's */
    uint64_t memory_available; /* without swapping */
    /* Every node the process may take memory of, also those without processors, which only serve
     * when the others are full. */
    struct topology_node nodes[TOPOLOGY_NODES_MAX];
    uint32_t n_memory_nodes;
    char text[160]; /* "8 cores (16 threads), 1 NUMA node, 31.2 GiB memory (28.0 ...)" */
};

/* description NULL: this machine. Else, for tests, hwloc's XML (begins with '<') or synthetic
 * description ("numa:2 core:4 pu:2"); memory and quota are then zero. Negative errno. */
int topology_discover(struct topology *ret, const char *description);

/* Who is where when n_threads <= n_cpus threads compute. */
struct topology_places {
    uint32_t worker_nodes[TOPOLOGY_CPUS_MAX]; /* of each worker: number of its node, from 0 on */
    uint32_t nodes[TOPOLOGY_NODES_MAX];       /* the operating system's number of each of these */
    uint32_t n_nodes;                         /* at least 1 */
    uint32_t others[TOPOLOGY_CPUS_MAX];       /* logical processors that are on no worker's core */
    uint32_t n_others;                        /* 0: there are none, so the others run anywhere */
};
void topology_place(const struct topology *t, uint32_t n_threads, struct topology_places *ret);

/* Keeps the calling thread, and those it starts from now on, on places->others, if there are any.
 * Negative errno. */
int topology_keep_off(const struct topology_places *places);

/* topology_draw.c: the machine as text, with this process's threads and its memory where they are.
 * To be freed; NULL when memory is out. Reads /proc: any thread, not one in a hurry. */
char *topology_draw(const struct topology *t, uint32_t n_threads);

/* The part that reads /proc and /sys, below root ("" for the machine's own): fills quota_percent,
 * memory_total and memory_available. What cannot be read counts as no limit. */
void topology_limits(const char *root, struct topology *topology);

#endif
