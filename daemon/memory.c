/* memory.c: see memory.h.
 *
 * Small blocks come from malloc's arena, those of 128 KiB and more from mmap, so that giving one
 * back returns it to the system at once. From 2 MiB on a block starts at a huge page and asks for
 * huge pages: a decode step walks all weights, and with 4 KiB pages it would miss the TLB on each.
 *
 * Invariant: the sum of all purposes equals the total, and no account goes below zero. */
#include "memory.h"

#include "base/log.h"

#include <assert.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define MAPPED_BYTES ((size_t)128 << 10)
#define HUGE_BYTES   ((size_t)2 << 20)
#define ALIGNMENT    64u

/* False when it would pass limit (0: none). */
static bool account_add(struct memory_account *a, uint64_t bytes, uint64_t limit)
{
    uint64_t was = atomic_load_explicit(&a->bytes, memory_order_relaxed);
    do {
        if (bytes > UINT64_MAX - was || (limit != 0 && was + bytes > limit))
            return false;
    } while (!atomic_compare_exchange_weak_explicit(&a->bytes, &was, was + bytes,
                                                    memory_order_relaxed, memory_order_relaxed));
    uint64_t now = was + bytes, peak = atomic_load_explicit(&a->peak_bytes, memory_order_relaxed);
    while (peak < now &&
           !atomic_compare_exchange_weak_explicit(&a->peak_bytes, &peak, now, memory_order_relaxed,
                                                  memory_order_relaxed))
        ;
    return true;
}

static void account_remove(struct memory_account *a, uint64_t bytes)
{
    uint64_t was = atomic_fetch_sub_explicit(&a->bytes, bytes, memory_order_relaxed);
    assert(was >= bytes);
}

static size_t mapped_bytes(size_t bytes)
{
    size_t page = bytes >= HUGE_BYTES ? HUGE_BYTES : (size_t)sysconf(_SC_PAGESIZE);
    return bytes > SIZE_MAX - page ? 0 : (bytes + page - 1) & ~(page - 1);
}

static void *map_pages(size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

/* bytes is a multiple of HUGE_BYTES. Maps more and cuts off what lies before and behind. */
static void *map_huge(size_t bytes)
{
    if (bytes > SIZE_MAX - HUGE_BYTES)
        return NULL;
    uint8_t *p = map_pages(bytes + HUGE_BYTES);
    if (p == NULL)
        return NULL;
    size_t before = -(uintptr_t)p & (HUGE_BYTES - 1);
    if (before > 0)
        munmap(p, before);
    munmap(p + before + bytes, HUGE_BYTES - before);
    madvise(p + before, bytes, MADV_HUGEPAGE); /* a hint: kernels may be built without */
    return p + before;
}

static void *block_new(size_t bytes)
{
    if (bytes < MAPPED_BYTES) {
        void *p;
        if (posix_memalign(&p, ALIGNMENT, bytes) != 0)
            return NULL;
        return memset(p, 0, bytes);
    }
    size_t mapped = mapped_bytes(bytes);
    if (mapped == 0)
        return NULL;
    return bytes >= HUGE_BYTES ? map_huge(mapped) : map_pages(mapped);
}

void memory_init(struct memory *m, uint64_t limit_bytes)
{
    memset(m, 0, sizeof *m);
    m->limit_bytes = limit_bytes;
}

void *memory_take(struct memory *m, enum memory_purpose purpose, size_t bytes)
{
    if (bytes == 0 || !account_add(&m->total, bytes, m->limit_bytes))
        return NULL;
    void *block = block_new(bytes);
    if (block == NULL) {
        account_remove(&m->total, bytes);
        return NULL;
    }
    account_add(&m->purposes[purpose], bytes, 0);
    return block;
}

void memory_give(struct memory *m, enum memory_purpose purpose, void *block, size_t bytes)
{
    if (block == NULL)
        return;
    account_remove(&m->purposes[purpose], bytes);
    account_remove(&m->total, bytes);
    if (bytes < MAPPED_BYTES)
        free(block);
    else
        munmap(block, mapped_bytes(bytes));
}

uint64_t memory_bytes(const struct memory *m, enum memory_purpose purpose)
{
    return atomic_load_explicit(&m->purposes[purpose].bytes, memory_order_relaxed);
}

uint64_t memory_total_bytes(const struct memory *m)
{
    return atomic_load_explicit(&m->total.bytes, memory_order_relaxed);
}

uint64_t memory_peak_bytes(const struct memory *m)
{
    return atomic_load_explicit(&m->total.peak_bytes, memory_order_relaxed);
}

/* ---- the table for backends ------------------------------------------------------------------ */

static void *host_take(void *ctx, size_t bytes)
{
    return memory_take(ctx, MEMORY_BACKEND, bytes);
}

static void host_give(void *ctx, void *block, size_t bytes)
{
    memory_give(ctx, MEMORY_BACKEND, block, bytes);
}

/* A backend's levels are the log's, but nothing holds it to them. */
static void host_log(void *ctx, int level, const char *text)
{
    (void)ctx;
    if (level < LOG_LEVEL_ERROR)
        level = LOG_LEVEL_ERROR;
    if (level > LOG_LEVEL_DEBUG)
        level = LOG_LEVEL_DEBUG;
    log_line(level, "%s", text);
}

void memory_host_init(struct memory *m, const uint32_t *cpus, uint32_t n_cpus,
                      struct infer_host *ret)
{
    *ret = (struct infer_host){
        .abi = INFER_BACKEND_ABI,
        .ctx = m,
        .log = host_log,
        .memory_take = host_take,
        .memory_give = host_give,
        .cpus = cpus,
        .n_cpus = n_cpus,
    };
}
