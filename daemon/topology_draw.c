/* topology_draw.c: the machine as text, for a person: cores in the order of the machine under
 * headings of package, node and third-level cache, on each the threads that are pinned to it; then
 * memory by node, and the threads that are pinned to no core.
 *
 * Who is where is what the system says, not what was asked of it: /proc/self/task with each
 * thread's affinity, and /proc/self/numa_maps, whose lines count a mapping's pages by node.
 *
 * Limits: THREADS_MAX threads, lines of numa_maps of 4 KiB; what is beyond is not shown. */
#include "topology.h"

#include <dirent.h>
#include <inttypes.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define THREADS_MAX 2048u
#define GIB(bytes)  ((double)(bytes) / 1073741824.0)
#define MIB(bytes)  ((double)(bytes) / 1048576.0)

struct thread {
    char name[32];
    cpu_set_t cpus[8]; /* 8,192 processors */
    uint32_t core;     /* of topology.cores; TOPOLOGY_NONE: it may run on several */
};

struct drawing {
    const struct topology *topology;
    uint32_t n_workers;
    struct thread *threads;
    uint32_t n_threads;
    uint32_t order[TOPOLOGY_CPUS_MAX]; /* of the cores, as the machine has them */
    uint64_t bytes[TOPOLOGY_NODES_MAX];
    bool bytes_known;
};

/* ---- threads --------------------------------------------------------------------------------- */

static uint32_t core_of(const struct topology *t, const cpu_set_t *cpus, size_t size)
{
    for (uint32_t i = 0; i < t->n_cpus; i++) {
        const struct topology_core *c = &t->cores[i];
        int here = 0;
        for (uint32_t k = 0; k < c->n_siblings; k++)
            here += c->siblings[k] < 8 * size && CPU_ISSET_S(c->siblings[k], size, cpus);
        if (here > 0)
            return here == CPU_COUNT_S(size, cpus) ? i : TOPOLOGY_NONE;
    }
    return TOPOLOGY_NONE;
}

static void read_thread(struct drawing *d, const char *tid)
{
    struct thread *t = &d->threads[d->n_threads];
    char path[64];
    memset(t, 0, sizeof *t);
    if (sched_getaffinity(atoi(tid), sizeof t->cpus, t->cpus) < 0)
        return; /* it ended meanwhile */
    snprintf(path, sizeof path, "/proc/self/task/%.20s/comm", tid);
    FILE *f = fopen(path, "re");
    if (f == NULL)
        return;
    if (fgets(t->name, sizeof t->name, f) != NULL) {
        t->name[strcspn(t->name, "\n")] = '\0';
        t->core = core_of(d->topology, t->cpus, sizeof t->cpus);
        d->n_threads++;
    }
    fclose(f);
}

static void read_threads(struct drawing *d)
{
    DIR *folder = opendir("/proc/self/task");
    struct dirent *entry;
    while (folder != NULL && d->n_threads < THREADS_MAX && (entry = readdir(folder)) != NULL)
        if (entry->d_name[0] >= '0' && entry->d_name[0] <= '9')
            read_thread(d, entry->d_name);
    if (folder != NULL)
        closedir(folder);
}

/* "0-3,8" */
static void print_cpus(FILE *out, const struct thread *t)
{
    const char *before = "";
    for (size_t i = 0; i < 8 * sizeof t->cpus; i++) {
        size_t first = i;
        while (i < 8 * sizeof t->cpus && CPU_ISSET_S(i, sizeof t->cpus, t->cpus))
            i++;
        if (i == first)
            continue;
        fprintf(out, i == first + 1 ? "%s%zu" : "%s%zu-%zu", before, first, i - 1);
        before = ",";
    }
}

static void draw_other_threads(const struct drawing *d, FILE *out)
{
    bool *seen = calloc(d->n_threads + 1u, sizeof *seen);
    for (uint32_t i = 0; i < d->n_threads && seen != NULL; i++) {
        const char *before = "  ";
        if (seen[i] || d->threads[i].core != TOPOLOGY_NONE)
            continue;
        for (uint32_t k = i; k < d->n_threads; k++) {
            const struct thread *t = &d->threads[k];
            if (memcmp(t->cpus, d->threads[i].cpus, sizeof t->cpus) != 0)
                continue;
            seen[k] = true;
            fprintf(out, "%s%s", before, t->name);
            before = ", ";
        }
        fputs(": cpu ", out);
        print_cpus(out, &d->threads[i]);
        fputc('\n', out);
    }
    free(seen);
}

/* ---- memory ---------------------------------------------------------------------------------- */

static void add_pages(struct drawing *d, const char *line)
{
    const char *size = strstr(line, "kernelpagesize_kB=");
    uint64_t kib = size != NULL ? strtoull(size + strlen("kernelpagesize_kB="), NULL, 10) : 4;
    for (const char *at = line; (at = strstr(at, " N")) != NULL;) {
        char *end;
        at += 2;
        unsigned long node = strtoul(at, &end, 10);
        if (end == at || *end != '=')
            continue;
        uint64_t pages = strtoull(end + 1, NULL, 10);
        for (uint32_t i = 0; i < d->topology->n_memory_nodes; i++)
            if (d->topology->nodes[i].number == node)
                d->bytes[i] += pages * kib << 10;
    }
}

static void read_memory(struct drawing *d)
{
    char line[4096];
    FILE *f = fopen("/proc/self/numa_maps", "re");
    if (f == NULL)
        return; /* a kernel without NUMA */
    d->bytes_known = true;
    while (fgets(line, sizeof line, f) != NULL)
        add_pages(d, line);
    fclose(f);
}

static void draw_memory(const struct drawing *d, FILE *out)
{
    fputs("memory\n", out);
    for (uint32_t i = 0; i < d->topology->n_memory_nodes; i++) {
        const struct topology_node *n = &d->topology->nodes[i];
        fprintf(out, "  node %" PRIu32 "  %.1f GiB", n->number, GIB(n->bytes));
        if (d->bytes_known)
            fprintf(out, ", inferd has %.1f MiB there", MIB(d->bytes[i]));
        fputs(n->n_cores == 0 ? "; no cores: used when the others are full\n" : "\n", out);
    }
}

/* ---- cores ----------------------------------------------------------------------------------- */

static int by_place(const struct topology_core *x, const struct topology_core *y)
{
    const uint32_t a[] = {x->package, x->node, x->l3, x->number};
    const uint32_t b[] = {y->package, y->node, y->l3, y->number};
    for (size_t i = 0; i < sizeof a / sizeof a[0]; i++)
        if (a[i] != b[i])
            return a[i] < b[i] ? -1 : 1;
    return 0;
}

static int compare(const void *a, const void *b, void *topology)
{
    const struct topology_core *cores = ((const struct topology *)topology)->cores;
    return by_place(&cores[*(const uint32_t *)a], &cores[*(const uint32_t *)b]);
}

static void draw_heading(const struct topology_core *c, const struct topology_core *before,
                         FILE *out)
{
    if (before != NULL && before->package == c->package && before->node == c->node &&
        before->l3 == c->l3)
        return;
    fprintf(out, "package %" PRIu32, c->package);
    if (c->node != TOPOLOGY_NONE)
        fprintf(out, ", node %" PRIu32, c->node);
    if (c->l3 != TOPOLOGY_NONE)
        fprintf(out, ", L3 %" PRIu32 " of %.1f MiB", c->l3, (double)c->l3_kib / 1024);
    fputc('\n', out);
}

static void draw_core(const struct drawing *d, uint32_t core, FILE *out)
{
    const struct topology_core *c = &d->topology->cores[core];
    const char *before = "  ";
    fprintf(out, "  core %-3" PRIu32 " cpu", c->number);
    for (uint32_t i = 0; i < c->n_siblings; i++)
        fprintf(out, " %" PRIu32, c->siblings[i]);
    if (c->l2_kib != 0)
        fprintf(out, "  L2 %.1f MiB", (double)c->l2_kib / 1024);
    if (c->slow)
        fputs("  slow", out);
    if (core < d->n_workers)
        fprintf(out, "  worker %" PRIu32, core);
    for (uint32_t i = 0; i < d->n_threads; i++)
        if (d->threads[i].core == core && d->topology->n_cpus > 1) {
            fprintf(out, "%s%s", before, d->threads[i].name);
            before = ", ";
        }
    fputc('\n', out);
}

char *topology_draw(const struct topology *t, uint32_t n_threads)
{
    char *text = NULL;
    size_t bytes = 0;
    struct drawing *d = calloc(1, sizeof *d);
    FILE *out = d != NULL ? open_memstream(&text, &bytes) : NULL;
    if (out != NULL && (d->threads = calloc(THREADS_MAX, sizeof *d->threads)) != NULL) {
        d->topology = t;
        d->n_workers = n_threads;
        read_threads(d);
        read_memory(d);
        for (uint32_t i = 0; i < t->n_cpus; i++)
            d->order[i] = i;
        qsort_r(d->order, t->n_cpus, sizeof d->order[0], compare, (void *)(uintptr_t)t);
        fprintf(out, "%s\n", t->text);
        for (uint32_t i = 0; i < t->n_cpus; i++) {
            draw_heading(&t->cores[d->order[i]], i > 0 ? &t->cores[d->order[i - 1]] : NULL, out);
            draw_core(d, d->order[i], out);
        }
        draw_memory(d, out);
        fputs("threads on no core of their own\n", out);
        draw_other_threads(d, out);
        free(d->threads);
    }
    bool whole = d != NULL && out != NULL && d->topology != NULL && ferror(out) == 0;
    if (out != NULL && fclose(out) != 0)
        whole = false;
    free(d);
    if (!whole) {
        free(text);
        return NULL;
    }
    return text;
}
