/* memory.h: large blocks for the model's weights, state and scratch, with an account of them; and
 * the table of services that a backend gets.
 *
 * The ledger. What a backend takes is charged to an owner, a model's index, that the calling thread
 * names before it opens a model and before it closes it: a backend takes and gives what belongs to
 * a model in model_open() and model_close(), and nothing but its own in open() and close().
 *
 * Threads: take, give, bind and the accounts from any thread; the rest before they start. Blocks
 * are zeroed, aligned to 64 bytes, and from 2 MiB on to huge pages. Nothing is reserved before it
 * is taken, and nothing is kept after it was given back. */
#ifndef INFERD_MEMORY_H
#define INFERD_MEMORY_H

#include "inferd/backend.h"

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

enum memory_purpose {
    MEMORY_BACKEND, /* what backends take: weights, sequence state, scratch */
    MEMORY_ENGINE,
    MEMORY_PURPOSES
};

/* Nobody's: of the backend itself. */
#define MEMORY_NO_OWNER INFER_MODELS_MAX

struct memory_account {
    _Atomic uint64_t bytes;
    _Atomic uint64_t peak_bytes;
};

/* How blocks from 2 MiB on come by huge pages. */
enum memory_huge {
    MEMORY_HUGE_AUTO,        /* ask for transparent ones; where there are none, never mind */
    MEMORY_HUGE_TRANSPARENT, /* the same, with a warning where there are none */
    MEMORY_HUGE_EXPLICIT,    /* from those set aside (vm.nr_hugepages), else transparent, warned */
    MEMORY_HUGE_OFF,
};

#define MEMORY_NODES_MAX 64u
#define MEMORY_NODE_ALL  (-1)

struct memory {
    uint64_t limit_bytes; /* over all purposes; 0: none */
    enum memory_huge huge;
    atomic_bool huge_warned;
    uint32_t nodes[MEMORY_NODES_MAX]; /* the operating system's number of each of the workers' */
    uint32_t n_nodes;
    struct memory_account total;
    struct memory_account purposes[MEMORY_PURPOSES];
    struct memory_account owners[MEMORY_NO_OWNER + 1]; /* of MEMORY_BACKEND */
};

void memory_init(struct memory *m, uint64_t limit_bytes);

/* NULL: the system has none, or the limit would be passed. bytes > 0. */
void *memory_take(struct memory *m, enum memory_purpose purpose, size_t bytes);
/* The same bytes and purpose as taken; block may be NULL. */
void memory_give(struct memory *m, enum memory_purpose purpose, void *block, size_t bytes);

void memory_set_huge(struct memory *m, enum memory_huge huge);

/* The workers' NUMA nodes, by the operating system's numbers, on a machine of several. */
void memory_set_nodes(struct memory *m, const uint32_t *nodes, uint32_t n_nodes);

/* The whole pages within [block, block + bytes), not yet written to, shall lie on a node, an index
 * into those of memory_set_nodes(), or in turn on all. A node that is full gives way to the next.
 * Negative errno: they lie where they are first written from. */
int memory_bind(void *memory, void *block, size_t bytes, int node);

uint64_t memory_bytes(const struct memory *m, enum memory_purpose purpose);
uint64_t memory_total_bytes(const struct memory *m);
uint64_t memory_peak_bytes(const struct memory *m);

/* Whose account it is that backends take from and give to on this thread: a model's index, or
 * MEMORY_NO_OWNER, as at first. */
void memory_set_owner(uint32_t owner);
uint64_t memory_owner_bytes(const struct memory *m, uint32_t owner);

/* This process's anonymous memory as the kernel counts it; 0 when it cannot be read. */
uint64_t memory_resident_bytes(void);
/* Of what the system calls available, the part that was not promised yet: blocks that were taken
 * but not touched are still counted there. */
uint64_t memory_left(const struct memory *m, uint64_t system_available);

/* Fills *ret: memory on account of MEMORY_BACKEND in m, lines to the daemon's log, and the
 * processors to use (n_cpus >= 1). m and cpus stay alive as long as *ret. */
void memory_host_init(struct memory *m, const uint32_t *cpus, uint32_t n_cpus,
                      struct infer_host *ret);
/* After memory_set_nodes(): to which of them each of cpus belongs. */
void memory_host_nodes(const struct memory *m, const uint32_t *nodes, struct infer_host *host);

#endif
