/* topology.c: see topology.h.
 *
 * Processors come from hwloc with everything switched off that start-up would wait for: no PCI, no
 * I/O devices, no plug-ins, no cpuid walk over all cores. Limits come from the control
 * groups, both versions: the tightest of the process's group and its ancestors.
 *
 * Limits: control-group paths of 1 KiB, files of 8 KiB, 64 levels. */
#include "topology.h"

#include <errno.h>
#include <fcntl.h>
#include <hwloc.h>
#include <inttypes.h>
#include <limits.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LEVELS_MAX 64

/* ---- processors ------------------------------------------------------------------------------ */

/* The fastest kinds first; of one kind, node by node. */
static int core_compare(const void *a, const void *b)
{
    const struct topology_core *x = a, *y = b;
    if (x->slow != y->slow)
        return x->slow ? 1 : -1;
    if (x->kind != y->kind)
        return x->kind > y->kind ? -1 : 1;
    if (x->node != y->node)
        return x->node < y->node ? -1 : 1;
    return x->siblings[0] < y->siblings[0] ? -1 : x->siblings[0] > y->siblings[0];
}

static int load(const char *description, hwloc_topology_t *ret)
{
    hwloc_topology_t t;
    /* Plug-ins look for GPUs and displays and cost more than all the rest. */
    setenv("HWLOC_PLUGINS_PATH", "", 0);
    if (hwloc_topology_init(&t) < 0)
        return -ENOMEM;
    hwloc_topology_set_all_types_filter(t, HWLOC_TYPE_FILTER_KEEP_NONE);
    hwloc_topology_set_type_filter(t, HWLOC_OBJ_PACKAGE, HWLOC_TYPE_FILTER_KEEP_ALL);
    hwloc_topology_set_type_filter(t, HWLOC_OBJ_L3CACHE, HWLOC_TYPE_FILTER_KEEP_ALL);
    hwloc_topology_set_type_filter(t, HWLOC_OBJ_L2CACHE, HWLOC_TYPE_FILTER_KEEP_ALL);
    hwloc_topology_set_type_filter(t, HWLOC_OBJ_CORE, HWLOC_TYPE_FILTER_KEEP_ALL);
    /* Without groups a NUMA node within a package would have nothing to hang on. */
    hwloc_topology_set_type_filter(t, HWLOC_OBJ_GROUP, HWLOC_TYPE_FILTER_KEEP_STRUCTURE);
    int r = 0;
    if (description == NULL) {
        hwloc_topology_set_components(t, HWLOC_TOPOLOGY_COMPONENTS_FLAG_BLACKLIST, "x86");
        hwloc_topology_set_flags(t, HWLOC_TOPOLOGY_FLAG_RESTRICT_TO_CPUBINDING |
                                        HWLOC_TOPOLOGY_FLAG_IS_THISSYSTEM);
    } else if (description[0] == '<') {
        r = hwloc_topology_set_xmlbuffer(t, description, (int)strlen(description) + 1);
    } else {
        r = hwloc_topology_set_synthetic(t, description);
    }
    errno = 0;
    if (r < 0 || hwloc_topology_load(t) < 0) {
        r = errno != 0 ? -errno : -EINVAL;
        hwloc_topology_destroy(t);
        return r;
    }
    *ret = t;
    return 0;
}

/* ---- kinds of cores -------------------------------------------------------------------------- */

struct kind {
    int rank;
    const char *type;        /* "IntelAtom"; NULL: not told */
    unsigned long speeds[2]; /* MHz and capacity; 0: not told */
};

static struct kind kind_of(hwloc_topology_t t, hwloc_const_cpuset_t cpus)
{
    struct kind k = {0};
    struct hwloc_info_s *infos = NULL;
    unsigned n = 0;
    int efficiency = -1;
    int kind = hwloc_cpukinds_get_by_cpuset(t, cpus, 0);
    if (kind < 0 ||
        hwloc_cpukinds_get_info(t, (unsigned)kind, NULL, &efficiency, &n, &infos, 0) < 0)
        return k;
    k.rank = efficiency;
    for (unsigned i = 0; i < n; i++) {
        if (strcmp(infos[i].name, "CoreType") == 0)
            k.type = infos[i].value;
        else if (strcmp(infos[i].name, "FrequencyMaxMHz") == 0)
            k.speeds[0] = strtoul(infos[i].value, NULL, 10);
        else if (strcmp(infos[i].name, "LinuxCapacity") == 0)
            k.speeds[1] = strtoul(infos[i].value, NULL, 10);
    }
    return k;
}

/* Does a core of this kind hold up one of the fastest? See topology.h. */
static bool is_slow(const struct kind *k, const struct kind *fastest)
{
    if (k->rank >= fastest->rank)
        return false;
    if (k->type != NULL && fastest->type != NULL && strcmp(k->type, fastest->type) != 0)
        return true;
    for (int i = 0; i < 2; i++)
        if (k->speeds[i] != 0 && fastest->speeds[i] != 0 &&
            k->speeds[i] <= fastest->speeds[i] / 4 * 3)
            return true;
    return false;
}

/* ---- cores ----------------------------------------------------------------------------------- */

/* The number of the NUMA node beside the processors; of several, the one with the fewest
 * processors, and then the first: what spans more or has no processors is memory for overflow. */
static uint32_t node_of(hwloc_topology_t t, hwloc_const_cpuset_t cpus)
{
    hwloc_obj_t best = NULL, node = NULL;
    while ((node = hwloc_get_next_obj_by_type(t, HWLOC_OBJ_NUMANODE, node)) != NULL)
        if (hwloc_bitmap_intersects(node->cpuset, cpus) &&
            (best == NULL || hwloc_bitmap_weight(node->cpuset) < hwloc_bitmap_weight(best->cpuset)))
            best = node;
    return best != NULL ? best->os_index : TOPOLOGY_NONE;
}

static struct topology_core core_of(hwloc_topology_t t, hwloc_obj_t object,
                                    hwloc_const_cpuset_t usable)
{
    struct topology_core c = {.number = object->logical_index,
                              .node = node_of(t, usable),
                              .l3 = TOPOLOGY_NONE,
                              .kind = kind_of(t, usable).rank};
    unsigned cpu;
    hwloc_bitmap_foreach_begin(cpu, usable) if (c.n_siblings < TOPOLOGY_SIBLINGS_MAX)
        c.siblings[c.n_siblings++] = cpu;
    hwloc_bitmap_foreach_end();
    for (hwloc_obj_t up = object->parent; up != NULL; up = up->parent) {
        if (up->type == HWLOC_OBJ_PACKAGE) {
            c.package = up->logical_index;
        } else if (up->type == HWLOC_OBJ_L2CACHE) {
            c.l2_kib = (uint32_t)(up->attr->cache.size >> 10);
        } else if (up->type == HWLOC_OBJ_L3CACHE) {
            c.l3 = up->logical_index;
            c.l3_kib = (uint32_t)(up->attr->cache.size >> 10);
        }
    }
    return c;
}

static void mark_slow(hwloc_topology_t t, struct topology *ret)
{
    struct kind fastest = {.rank = INT_MIN};
    hwloc_bitmap_t cpus = hwloc_bitmap_alloc();
    for (int pass = 0; pass < 2 && cpus != NULL; pass++)
        for (uint32_t i = 0; i < ret->n_cpus; i++) {
            hwloc_bitmap_only(cpus, ret->cores[i].siblings[0]);
            struct kind k = kind_of(t, cpus);
            if (pass == 0 && k.rank > fastest.rank)
                fastest = k;
            else if (pass == 1)
                ret->n_slow += ret->cores[i].slow = is_slow(&k, &fastest);
        }
    hwloc_bitmap_free(cpus);
}

/* How many different values a field of the cores has. */
static uint32_t count_different(const struct topology *t, size_t field)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < t->n_cpus; i++) {
        const char *value = (const char *)&t->cores[i] + field;
        uint32_t k = 0;
        while (k < i && memcmp((const char *)&t->cores[k] + field, value, sizeof(uint32_t)) != 0)
            k++;
        n += k == i;
    }
    return n;
}

static void take_nodes(hwloc_topology_t t, struct topology *ret)
{
    hwloc_const_nodeset_t allowed = hwloc_topology_get_allowed_nodeset(t);
    hwloc_obj_t object = NULL;
    while ((object = hwloc_get_next_obj_by_type(t, HWLOC_OBJ_NUMANODE, object)) != NULL &&
           ret->n_memory_nodes < TOPOLOGY_NODES_MAX) {
        if (!hwloc_bitmap_isset(allowed, object->os_index))
            continue;
        struct topology_node *node = &ret->nodes[ret->n_memory_nodes++];
        *node = (struct topology_node){.number = object->os_index,
                                       .bytes = object->attr->numanode.local_memory};
        for (uint32_t i = 0; i < ret->n_cpus; i++)
            node->n_cores += ret->cores[i].node == node->number;
    }
}

/* Machines that do not tell their cores count each processor as one. */
static int take_cores(hwloc_topology_t t, struct topology *ret)
{
    hwloc_const_cpuset_t allowed = hwloc_topology_get_allowed_cpuset(t);
    hwloc_obj_type_t type =
        hwloc_get_nbobjs_by_type(t, HWLOC_OBJ_CORE) > 0 ? HWLOC_OBJ_CORE : HWLOC_OBJ_PU;
    hwloc_bitmap_t usable = hwloc_bitmap_alloc();
    hwloc_obj_t object = NULL;
    if (usable == NULL)
        return -ENOMEM;
    while (ret->n_cpus < TOPOLOGY_CPUS_MAX &&
           (object = hwloc_get_next_obj_by_type(t, type, object)) != NULL) {
        hwloc_bitmap_and(usable, object->cpuset, allowed);
        if (!hwloc_bitmap_iszero(usable))
            ret->cores[ret->n_cpus++] = core_of(t, object, usable);
    }
    hwloc_bitmap_free(usable);
    if (ret->n_cpus == 0)
        return -ENODEV;
    mark_slow(t, ret);
    qsort(ret->cores, ret->n_cpus, sizeof ret->cores[0], core_compare);
    for (uint32_t i = 0; i < ret->n_cpus; i++)
        ret->cpus[i] = ret->cores[i].siblings[0];
    ret->n_nodes = count_different(ret, offsetof(struct topology_core, node));
    ret->n_packages = count_different(ret, offsetof(struct topology_core, package));
    ret->n_threads = (uint32_t)hwloc_bitmap_weight(allowed);
    take_nodes(t, ret);
    return 0;
}

/* ---- who is where ---------------------------------------------------------------------------- */

/* The first rules of topology.h. */
static uint32_t threads_of(const struct topology *t)
{
    uint32_t fast = t->n_cpus - t->n_slow;
    /* A thread more than the quota feeds would make all others wait for it. */
    uint32_t fed = t->quota_percent == 0 ? UINT32_MAX : t->quota_percent / 100;
    uint32_t n = fast >= TOPOLOGY_FAST_MIN ? fast : t->n_cpus;
    if (n == t->n_cpus && n >= TOPOLOGY_SPARE_MIN)
        n--;
    if (n > fed)
        n = fed;
    return n > 0 ? n : 1;
}

void topology_place(const struct topology *t, uint32_t n_threads, struct topology_places *ret)
{
    ret->n_nodes = ret->n_others = 0;
    for (uint32_t i = 0; i < n_threads; i++) {
        uint32_t k = 0, node = t->cores[i].node == TOPOLOGY_NONE ? 0 : t->cores[i].node;
        while (k < ret->n_nodes && ret->nodes[k] != node)
            k++;
        if (k == ret->n_nodes && k < TOPOLOGY_NODES_MAX)
            ret->nodes[ret->n_nodes++] = node;
        ret->worker_nodes[i] = k < TOPOLOGY_NODES_MAX ? k : 0;
    }
    for (uint32_t i = n_threads; i < t->n_cpus; i++)
        for (uint32_t k = 0; k < t->cores[i].n_siblings && ret->n_others < TOPOLOGY_CPUS_MAX; k++)
            ret->others[ret->n_others++] = t->cores[i].siblings[k];
}

int topology_keep_off(const struct topology_places *places)
{
    cpu_set_t set[16]; /* 16,384 processors */
    if (places->n_others == 0)
        return 0;
    CPU_ZERO_S(sizeof set, set);
    for (uint32_t i = 0; i < places->n_others; i++)
        if (places->others[i] < 8 * sizeof set)
            CPU_SET_S(places->others[i], sizeof set, set);
    return sched_setaffinity(0, sizeof set, set) < 0 ? -errno : 0;
}

/* ---- limits of the control group, and memory ------------------------------------------------- */

static bool read_text(const char *path, char *text, size_t size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    size_t n = 0;
    ssize_t r;
    while (n < size - 1 && (r = read(fd, text + n, size - 1 - n)) > 0)
        n += (size_t)r;
    close(fd);
    text[n] = '\0';
    return n > 0;
}

static bool read_limit_file(const char *directory, const char *name, char *text, size_t size)
{
    char path[2048];
    int n = snprintf(path, sizeof path, "%s/%s", directory, name);
    return n > 0 && (size_t)n < sizeof path && read_text(path, text, size);
}

static bool read_number(const char *directory, const char *name, uint64_t *ret)
{
    char text[64], *end;
    if (!read_limit_file(directory, name, text, sizeof text) || text[0] < '0' || text[0] > '9')
        return false; /* "max" and "-1" are no limits */
    errno = 0;
    uint64_t value = strtoull(text, &end, 10);
    if (errno != 0 || end == text)
        return false;
    *ret = value;
    return true;
}

/* The value behind "key" at the start of a line. */
static uint64_t line_value(const char *text, const char *key)
{
    size_t n = strlen(key);
    for (const char *line = text; line != NULL; line = strchr(line, '\n')) {
        line += *line == '\n';
        if (strncmp(line, key, n) == 0 && (line[n] == ' ' || line[n] == ':'))
            return strtoull(line + n + 1, NULL, 10);
    }
    return 0;
}

static void tighten_quota(struct topology *t, uint64_t quota_us, uint64_t period_us)
{
    if (quota_us == 0 || period_us == 0 || quota_us > UINT64_MAX / 100)
        return;
    uint64_t percent = quota_us * 100 / period_us;
    percent = percent == 0 ? 1 : percent > UINT32_MAX ? UINT32_MAX : percent;
    if (t->quota_percent == 0 || percent < t->quota_percent)
        t->quota_percent = (uint32_t)percent;
}

/* The page cache of the group counts as used there, but is given back on demand. */
static void tighten_memory(struct topology *t, const char *directory, const char *limit_name,
                           const char *used_name)
{
    uint64_t limit, used = 0;
    char stat[8192];
    if (!read_number(directory, limit_name, &limit) || limit == 0)
        return;
    read_number(directory, used_name, &used);
    uint64_t cache = 0;
    if (read_limit_file(directory, "memory.stat", stat, sizeof stat))
        cache = line_value(stat, "inactive_file") + line_value(stat, "active_file");
    used -= cache < used ? cache : used;
    uint64_t left = used < limit ? limit - used : 0;
    if (limit < t->memory_total || t->memory_total == 0)
        t->memory_total = limit;
    if (left < t->memory_available)
        t->memory_available = left;
}

static void read_group(struct topology *t, const char *directory)
{
    char text[64];
    uint64_t quota = 0, period = 0;
    if (read_limit_file(directory, "cpu.max", text, sizeof text)) {
        if (sscanf(text, "%" SCNu64 " %" SCNu64, &quota, &period) == 2)
            tighten_quota(t, quota, period);
    } else if (read_number(directory, "cpu.cfs_quota_us", &quota) &&
               read_number(directory, "cpu.cfs_period_us", &period)) {
        tighten_quota(t, quota, period);
    }
    tighten_memory(t, directory, "memory.max", "memory.current");
    tighten_memory(t, directory, "memory.limit_in_bytes", "memory.usage_in_bytes");
}

/* The group at mount/path and all above it, down to the mount itself. */
static void read_groups(struct topology *t, const char *mount, char *path)
{
    char directory[2048];
    for (int level = 0; level < LEVELS_MAX; level++) {
        int n = snprintf(directory, sizeof directory, "%s%s", mount, path);
        if (n > 0 && (size_t)n < sizeof directory)
            read_group(t, directory);
        char *slash = strrchr(path, '/');
        if (slash == NULL)
            return;
        *slash = '\0';
    }
}

/* One line of /proc/self/cgroup: "0::/a/b" for version 2, "4:memory:/a/b" for version 1. */
static void read_cgroup_line(struct topology *t, const char *root, char *line)
{
    char mount[512];
    char *controllers = strchr(line, ':');
    char *path = controllers != NULL ? strchr(controllers + 1, ':') : NULL;
    if (path == NULL)
        return;
    *path++ = '\0';
    controllers++;
    size_t n = strlen(path);
    if (n > 0 && path[n - 1] == '/')
        path[n - 1] = '\0';
    if (controllers[0] == '\0')
        snprintf(mount, sizeof mount, "%s/sys/fs/cgroup", root);
    else if (strcmp(controllers, "memory") == 0 || strcmp(controllers, "cpu") == 0 ||
             strcmp(controllers, "cpu,cpuacct") == 0)
        snprintf(mount, sizeof mount, "%s/sys/fs/cgroup/%s", root, controllers);
    else
        return;
    read_groups(t, mount, path);
}

void topology_limits(const char *root, struct topology *topology)
{
    char path[512], text[8192];
    snprintf(path, sizeof path, "%s/proc/meminfo", root);
    if (read_text(path, text, sizeof text)) {
        topology->memory_total = line_value(text, "MemTotal") * 1024;
        topology->memory_available = line_value(text, "MemAvailable") * 1024;
    }
    snprintf(path, sizeof path, "%s/proc/self/cgroup", root);
    if (!read_text(path, text, sizeof text))
        return;
    char *rest = NULL;
    for (char *line = strtok_r(text, "\n", &rest); line != NULL; line = strtok_r(NULL, "\n", &rest))
        read_cgroup_line(topology, root, line);
}

/* ---- together -------------------------------------------------------------------------------- */

static void describe(struct topology *t)
{
    const double gib = 1024.0 * 1024 * 1024;
    char quota[48] = "";
    if (t->quota_percent > 0)
        snprintf(quota, sizeof quota, ", limited to %u.%02u of them", t->quota_percent / 100,
                 t->quota_percent % 100);
    snprintf(t->text, sizeof t->text,
             "%u core%s (%u threads%s), %u NUMA node%s, %.1f GiB memory (%.1f GiB available)",
             t->n_cpus, t->n_cpus == 1 ? "" : "s", t->n_threads, quota, t->n_nodes,
             t->n_nodes == 1 ? "" : "s", (double)t->memory_total / gib,
             (double)t->memory_available / gib);
}

int topology_discover(struct topology *ret, const char *description)
{
    hwloc_topology_t h = NULL;
    struct topology *t = calloc(1, sizeof *t);
    int r = t != NULL ? load(description, &h) : -ENOMEM;
    if (r == 0) {
        r = take_cores(h, t);
        hwloc_topology_destroy(h);
    }
    if (r < 0) {
        free(t);
        return r;
    }
    if (description == NULL)
        topology_limits("", t);
    t->default_threads = threads_of(t);
    describe(t);
    *ret = *t;
    free(t);
    return 0;
}
