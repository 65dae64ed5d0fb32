/* memory.h: large blocks for the model's weights, state and scratch, with an account of them; and
 * the table of services that a backend gets.
 *
 * Threads: take, give and the accounts from any thread. Blocks are zeroed, aligned to 64 bytes, and
 * from 2 MiB on to huge pages. Nothing is reserved before it is taken, and nothing is kept after it
 * was given back. */
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

struct memory_account {
    _Atomic uint64_t bytes;
    _Atomic uint64_t peak_bytes;
};

struct memory {
    uint64_t limit_bytes; /* over all purposes; 0: none */
    struct memory_account total;
    struct memory_account purposes[MEMORY_PURPOSES];
};

void memory_init(struct memory *m, uint64_t limit_bytes);

/* NULL: the system has none, or the limit would be passed. bytes > 0. */
void *memory_take(struct memory *m, enum memory_purpose purpose, size_t bytes);
/* The same bytes and purpose as taken; block may be NULL. */
void memory_give(struct memory *m, enum memory_purpose purpose, void *block, size_t bytes);

uint64_t memory_bytes(const struct memory *m, enum memory_purpose purpose);
uint64_t memory_total_bytes(const struct memory *m);
uint64_t memory_peak_bytes(const struct memory *m);

/* Fills *ret: memory on account of MEMORY_BACKEND in m, lines to the daemon's log, and the
 * processors to use (n_cpus >= 1). m and cpus stay alive as long as *ret. */
void memory_host_init(struct memory *m, const uint32_t *cpus, uint32_t n_cpus,
                      struct infer_host *ret);

#endif
