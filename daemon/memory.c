/* memory.c: see memory.h.
 *
 * Small blocks come from malloc's arena, those of 128 KiB and more from mmap, so that giving one
 * back returns it to the system at once. From 2 MiB on a block starts at a huge page and asks for
 * huge pages: a decode step walks all weights, and with 4 KiB pages it would miss the TLB on each.
 *
 * Placement on a NUMA node is MPOL_PREFERRED and not MPOL_BIND: a full node costs speed, not the
 * process. Nodes without a worker are used for nothing but overflow.
 *
 * Invariant: the sum of all purposes equals the total, and no account goes below zero. */
#include "memory.h"

#include "base/log.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/mempolicy.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MAPPED_BYTES ((size_t)128 << 10)
#define HUGE_BYTES   ((size_t)2 << 20)
#define ALIGNMENT    64u
#define OS_NODES_MAX 1024u

#ifndef MAP_HUGE_2MB
#define MAP_HUGE_2MB (21 << 26)
#endif

static _Thread_local uint32_t current_owner = MEMORY_NO_OWNER;

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

static void *map_pages(size_t bytes, int flags)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

/* bytes is a multiple of HUGE_BYTES. Maps more and cuts off what lies before and behind. */
static void *map_aligned(size_t bytes, int advice)
{
    if (bytes > SIZE_MAX - HUGE_BYTES)
        return NULL;
    uint8_t *p = map_pages(bytes + HUGE_BYTES, 0);
    if (p == NULL)
        return NULL;
    size_t before = -(uintptr_t)p & (HUGE_BYTES - 1);
    if (before > 0)
        munmap(p, before);
    munmap(p + before + bytes, HUGE_BYTES - before);
    madvise(p + before, bytes, advice); /* a hint: kernels may be built without */
    return p + before;
}

static void *map_huge(struct memory *m, size_t bytes)
{
    if (m->huge == MEMORY_HUGE_EXPLICIT) {
        void *p = map_pages(bytes, MAP_HUGETLB | MAP_HUGE_2MB);
        if (p != NULL)
            return p;
        if (!atomic_exchange(&m->huge_warned, true))
            log_warning("--huge-pages explicit: the huge pages that are set aside (sysctl "
                        "vm.nr_hugepages) do not hold %zu more; using transparent ones",
                        bytes / HUGE_BYTES);
    }
    return map_aligned(bytes, m->huge == MEMORY_HUGE_OFF ? MADV_NOHUGEPAGE : MADV_HUGEPAGE);
}

static void *block_new(struct memory *m, size_t bytes)
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
    return bytes >= HUGE_BYTES ? map_huge(m, mapped) : map_pages(mapped, 0);
}

void memory_init(struct memory *m, uint64_t limit_bytes)
{
    memset(m, 0, sizeof *m);
    m->limit_bytes = limit_bytes;
}

void memory_set_huge(struct memory *m, enum memory_huge huge)
{
    char text[64] = "";
    m->huge = huge;
    if (huge != MEMORY_HUGE_TRANSPARENT && huge != MEMORY_HUGE_EXPLICIT)
        return;
    int fd = open("/sys/kernel/mm/transparent_hugepage/enabled", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd >= 0 ? read(fd, text, sizeof text - 1) : 0;
    if (fd >= 0)
        close(fd);
    if (huge == MEMORY_HUGE_TRANSPARENT && (n <= 0 || strstr(text, "[never]") != NULL))
        log_warning("--huge-pages transparent: this system gives none; see "
                    "/sys/kernel/mm/transparent_hugepage/enabled");
}

void *memory_take(struct memory *m, enum memory_purpose purpose, size_t bytes)
{
    if (bytes == 0 || !account_add(&m->total, bytes, m->limit_bytes))
        return NULL;
    void *block = block_new(m, bytes);
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

void memory_set_owner(uint32_t owner)
{
    assert(owner <= MEMORY_NO_OWNER);
    current_owner = owner;
}

uint64_t memory_owner_bytes(const struct memory *m, uint32_t owner)
{
    return atomic_load_explicit(&m->owners[owner].bytes, memory_order_relaxed);
}

uint64_t memory_resident_bytes(void)
{
    unsigned long long pages = 0, shared = 0;
    FILE *f = fopen("/proc/self/statm", "re");
    if (f == NULL)
        return 0;
    if (fscanf(f, "%*s %llu %llu", &pages, &shared) != 2 || pages < shared)
        pages = shared = 0;
    fclose(f);
    return (pages - shared) * (uint64_t)sysconf(_SC_PAGESIZE);
}

uint64_t memory_left(const struct memory *m, uint64_t system_available)
{
    uint64_t taken = memory_total_bytes(m), touched = memory_resident_bytes();
    uint64_t promised = taken > touched ? taken - touched : 0;
    return system_available > promised ? system_available - promised : 0;
}

/* ---- NUMA nodes ------------------------------------------------------------------------------ */

void memory_set_nodes(struct memory *m, const uint32_t *nodes, uint32_t n_nodes)
{
    m->n_nodes = n_nodes < MEMORY_NODES_MAX ? n_nodes : MEMORY_NODES_MAX;
    memcpy(m->nodes, nodes, m->n_nodes * sizeof *nodes);
}

int memory_bind(void *memory, void *block, size_t bytes, int node)
{
    const struct memory *m = memory;
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    const unsigned bits = 8 * sizeof(unsigned long);
    unsigned long mask[OS_NODES_MAX / 8 / sizeof(unsigned long)] = {0};
    uintptr_t first = ((uintptr_t)block + page - 1) & ~(page - 1);
    uintptr_t end = ((uintptr_t)block + bytes) & ~(page - 1);
    if (node < MEMORY_NODE_ALL || (node != MEMORY_NODE_ALL && (uint32_t)node >= m->n_nodes))
        return -EINVAL;
    for (uint32_t i = 0; i < m->n_nodes; i++)
        if ((node == MEMORY_NODE_ALL || i == (uint32_t)node) && m->nodes[i] < OS_NODES_MAX)
            mask[m->nodes[i] / bits] |= 1ul << m->nodes[i] % bits;
    if (first >= end)
        return 0;
    int mode = node == MEMORY_NODE_ALL ? MPOL_INTERLEAVE : MPOL_PREFERRED;
    /* One more than there are: the kernel leaves out the last bit. */
    return syscall(SYS_mbind, first, end - first, mode, mask, (unsigned long)OS_NODES_MAX + 1, 0) <
                   0
               ? -errno
               : 0;
}

/* ---- the table for backends ------------------------------------------------------------------ */

static void *host_take(void *ctx, size_t bytes)
{
    struct memory *m = ctx;
    void *block = memory_take(m, MEMORY_BACKEND, bytes);
    if (block != NULL)
        account_add(&m->owners[current_owner], bytes, 0);
    return block;
}

static void host_give(void *ctx, void *block, size_t bytes)
{
    struct memory *m = ctx;
    if (block != NULL)
        account_remove(&m->owners[current_owner], bytes);
    memory_give(m, MEMORY_BACKEND, block, bytes);
}

static int host_place(void *ctx, void *memory, size_t bytes, uint32_t node)
{
    return memory_bind(ctx, memory, bytes, node == INFER_NODE_ALL ? MEMORY_NODE_ALL : (int)node);
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

void memory_host_nodes(const struct memory *m, const uint32_t *nodes, struct infer_host *host)
{
    host->nodes = nodes;
    host->n_nodes = m->n_nodes;
    host->memory_place = host_place;
}
