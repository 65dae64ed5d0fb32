/* topology.h: which processors and how much memory this process may use.
 *
 * Threads: call topology_discover() before the process starts others (it sets an environment
 * variable for hwloc). The result is plain data. */
#ifndef INFERD_TOPOLOGY_H
#define INFERD_TOPOLOGY_H

#include <stdint.h>

/* Cores that are used; a larger machine is used up to here. */
#define TOPOLOGY_CPUS_MAX 1024u

struct topology {
    /* One logical processor per physical core that the process may run on, best first: the fastest
     * kind of core, those of the first NUMA node before those of the next. */
    uint32_t cpus[TOPOLOGY_CPUS_MAX];
    uint32_t n_cpus;           /* at least 1 */
    uint32_t n_threads;        /* logical processors that the process may run on */
    uint32_t n_nodes;          /* NUMA nodes that these belong to */
    uint32_t quota_percent;    /* of one processor's time, from the control group; 0: no limit */
    uint32_t default_threads;  /* n_cpus, or what the quota feeds: at least 1 */
    uint64_t memory_total;     /* bytes; the machine's or the control group's */
    uint64_t memory_available; /* without swapping */
    char text[160];            /* "8 cores (16 threads), 1 NUMA node, 31.2 GiB memory (28.0 ...)" */
};

/* description NULL: this machine. Else, for tests, hwloc's XML (begins with '<') or synthetic
 * description ("numa:2 core:4 pu:2"); memory and quota are then zero. Negative errno. */
int topology_discover(struct topology *ret, const char *description);

/* The part that reads /proc and /sys, below root ("" for the machine's own): fills quota_percent,
 * memory_total and memory_available. What cannot be read counts as no limit. */
void topology_limits(const char *root, struct topology *topology);

#endif
