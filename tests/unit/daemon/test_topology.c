/* test_topology.c: described machines, made-up control groups, and the machine at hand. */
#include "topology.h"

#include "base/clock.h"

#include <ftw.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

static void one_processor_per_core(void **state)
{
    (void)state;
    struct topology t;
    assert_int_equal(topology_discover(&t, "numa:1 core:4 pu:2"), 0);
    assert_int_equal(t.n_cpus, 4);
    assert_int_equal(t.n_threads, 8);
    assert_int_equal(t.n_nodes, 1);
    assert_int_equal(t.default_threads, 4);
    for (uint32_t i = 0; i < 4; i++)
        assert_int_equal(t.cpus[i], 2 * i);
    assert_string_equal(t.text,
                        "4 cores (8 threads), 1 NUMA node, 0.0 GiB memory (0.0 GiB available)");
}

/* Linux often numbers the second threads after all the first ones, and nodes in turn. */
static void first_node_first(void **state)
{
    (void)state;
    struct topology t;
    assert_int_equal(topology_discover(&t, "numa:2 core:3 pu:2(indexes=0,6,2,8,4,10,1,7,3,9,5,11)"),
                     0);
    static const uint32_t want[] = {0, 2, 4, 1, 3, 5};
    assert_int_equal(t.n_cpus, 6);
    assert_int_equal(t.n_nodes, 2);
    assert_memory_equal(t.cpus, want, sizeof want);
}

static void more_cores_than_are_used(void **state)
{
    (void)state;
    struct topology t;
    assert_int_equal(topology_discover(&t, "numa:4 core:512 pu:1"), 0);
    assert_int_equal(t.n_cpus, TOPOLOGY_CPUS_MAX);
    assert_int_equal(t.n_threads, 2048);
    assert_int_equal(t.cpus[1023], 1023);
}

static const char xml[] =
    "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
    "<!DOCTYPE topology SYSTEM \"hwloc2.dtd\">\n"
    "<topology version=\"2.0\">\n"
    "<object type=\"Machine\" os_index=\"0\" cpuset=\"0x0000000f\" complete_cpuset=\"0x0000000f\""
    " allowed_cpuset=\"0x0000000c\" nodeset=\"0x00000001\" complete_nodeset=\"0x00000001\""
    " allowed_nodeset=\"0x00000001\" gp_index=\"1\">\n"
    "<object type=\"NUMANode\" os_index=\"0\" cpuset=\"0x0000000f\" complete_cpuset=\"0x0000000f\""
    " nodeset=\"0x00000001\" complete_nodeset=\"0x00000001\" gp_index=\"9\" "
    "local_memory=\"1024\"/>\n"
    "<object type=\"Core\" os_index=\"0\" cpuset=\"0x00000003\" complete_cpuset=\"0x00000003\""
    " nodeset=\"0x00000001\" complete_nodeset=\"0x00000001\" gp_index=\"2\">\n"
    "<object type=\"PU\" os_index=\"0\" cpuset=\"0x00000001\" complete_cpuset=\"0x00000001\""
    " nodeset=\"0x00000001\" complete_nodeset=\"0x00000001\" gp_index=\"3\"/>\n"
    "<object type=\"PU\" os_index=\"1\" cpuset=\"0x00000002\" complete_cpuset=\"0x00000002\""
    " nodeset=\"0x00000001\" complete_nodeset=\"0x00000001\" gp_index=\"4\"/></object>\n"
    "<object type=\"Core\" os_index=\"1\" cpuset=\"0x0000000c\" complete_cpuset=\"0x0000000c\""
    " nodeset=\"0x00000001\" complete_nodeset=\"0x00000001\" gp_index=\"5\">\n"
    "<object type=\"PU\" os_index=\"2\" cpuset=\"0x00000004\" complete_cpuset=\"0x00000004\""
    " nodeset=\"0x00000001\" complete_nodeset=\"0x00000001\" gp_index=\"6\"/>\n"
    "<object type=\"PU\" os_index=\"3\" cpuset=\"0x00000008\" complete_cpuset=\"0x00000008\""
    " nodeset=\"0x00000001\" complete_nodeset=\"0x00000001\" gp_index=\"7\"/></object>\n"
    "</object>\n</topology>\n";

static void forbidden_cores_are_left_out(void **state)
{
    (void)state;
    struct topology t;
    assert_int_equal(topology_discover(&t, xml), 0);
    assert_int_equal(t.n_cpus, 1);
    assert_int_equal(t.cpus[0], 2);
    assert_int_equal(t.n_threads, 2);
}

static void nonsense_is_refused(void **state)
{
    (void)state;
    struct topology t = {.n_cpus = 77};
    assert_true(topology_discover(&t, "core:banana") < 0);
    assert_true(topology_discover(&t, "<nothing/>") < 0);
    assert_int_equal(t.n_cpus, 77);
}

/* ---- machines that are not here -------------------------------------------------------------- */

static void discover_file(const char *name, struct topology *ret)
{
    char path[128], *text = calloc(1, 1 << 16);
    assert_non_null(text);
    snprintf(path, sizeof path, "tests/data/topology/%s.xml", name);
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    assert_in_range(fread(text, 1, (1 << 16) - 1, f), 1, (1 << 16) - 2);
    fclose(f);
    assert_int_equal(topology_discover(ret, text), 0);
    free(text);
}

#define END UINT32_MAX

/* What topology_place() makes of the default number of threads. */
struct machine {
    const char *name;
    uint32_t n_nodes, n_packages, n_memory_nodes, n_slow;
    uint32_t workers[16], worker_nodes[16]; /* processors; the operating system's nodes */
    uint32_t others[16];
};

static const struct machine machines[] = {
    {"two-sockets", 2, 2, 2, 0, {0, 1, 2, 3, 4, 5, 6, END}, {0, 0, 0, 0, 1, 1, 1}, {7, 15, END}},
    {"sub-numa",
     4,
     2,
     4,
     0,
     {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, END},
     {0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3},
     {11, 23, END}},
    {"smt", 1, 1, 1, 0, {0, 1, 2, 3, 4, 5, 6, END}, {0}, {7, 15, END}},
    /* Six fast cores of two threads, eight slow ones: the slow ones are the other threads'. */
    {"hybrid", 1, 1, 1, 8, {0, 2, 4, 6, 8, 10, END}, {0}, {12, 14, 16, 18, 20, 22, 24, 26, END}},
    /* Two fast ones are too few: all work, the fast ones first. */
    {"hybrid-two-fast", 1, 1, 1, 8, {0, 1, 2, 3, 4, 5, 6, 7, 8, END}, {0}, {9, END}},
    {"big-little", 1, 1, 1, 4, {4, 5, 6, 7, END}, {0}, {0, 1, 2, 3, END}},
    /* 4.9 instead of 4.6 GHz makes no slow cores, but goes first. */
    {"favoured-cores", 1, 1, 1, 0, {2, 3, 0, 1, 4, 5, 6, END}, {0}, {7, END}},
    /* Processors 2-5 and 11-13 of sixteen: core 2 without its second thread. */
    {"cpuset", 2, 2, 2, 0, {2, 3, 4, 5, END}, {0, 0, 1, 1}, {END}},
    {"memory-only-node", 2, 2, 3, 0, {0, 1, 2, 3, 4, 5, 6, END}, {0, 0, 0, 0, 1, 1, 1}, {7, END}},
    /* Core 1 is offline, cores 3 and 9 of the others by a thread: 5 cores, none to spare. */
    {"offline", 1, 1, 1, 0, {0, 2, 4, 5, 7, END}, {0}, {END}},
};

static void expect_list(const char *name, const uint32_t *want, const uint32_t *got, uint32_t n)
{
    uint32_t i = 0;
    for (; want[i] != END; i++)
        if (i >= n || want[i] != got[i])
            fail_msg("%s: number %u is %u, not %u", name, i, i < n ? got[i] : END, want[i]);
    if (i != n)
        fail_msg("%s: there are %u, not %u", name, n, i);
}

static void machines_as_files(void **state)
{
    (void)state;
    static struct topology t;
    static struct topology_places p;
    for (size_t i = 0; i < sizeof machines / sizeof machines[0]; i++) {
        const struct machine *m = &machines[i];
        print_message("%s\n", m->name);
        discover_file(m->name, &t);
        assert_int_equal(t.n_nodes, m->n_nodes);
        assert_int_equal(t.n_packages, m->n_packages);
        assert_int_equal(t.n_memory_nodes, m->n_memory_nodes);
        assert_int_equal(t.n_slow, m->n_slow);
        topology_place(&t, t.default_threads, &p);
        assert_int_equal(p.n_nodes, m->n_nodes);
        expect_list(m->name, m->workers, t.cpus, t.default_threads);
        expect_list(m->name, m->others, p.others, p.n_others);
        for (uint32_t k = 0; k < t.default_threads; k++)
            assert_int_equal(p.nodes[p.worker_nodes[k]], m->worker_nodes[k]);
    }
}

/* --threads takes the slow cores last, and leaves whole cores to the others. */
static void more_and_fewer_threads(void **state)
{
    (void)state;
    static struct topology t;
    static struct topology_places p;
    discover_file("hybrid", &t);
    topology_place(&t, 9, &p);
    assert_int_equal(t.cpus[6], 12);
    expect_list("others of nine", (const uint32_t[]){18, 20, 22, 24, 26, END}, p.others,
                p.n_others);
    topology_place(&t, t.n_cpus, &p);
    assert_int_equal(p.n_others, 0);
    discover_file("sub-numa", &t);
    topology_place(&t, 3, &p);
    assert_int_equal(p.n_nodes, 1); /* all on the first node, and so is their memory */
    assert_int_equal(p.nodes[0], 0);
    assert_int_equal(p.n_others, 18);
}

static void the_drawing(void **state)
{
    (void)state;
    static struct topology t;
    discover_file("memory-only-node", &t);
    char *text = topology_draw(&t, 7);
    assert_non_null(text);
    const char *first = strstr(text, "package 0, node 0, L3 0 of 32.0 MiB\n  core 0   cpu 0");
    const char *second = strstr(text, "package 1, node 1, L3 1 of 32.0 MiB\n  core 4   cpu 4");
    assert_true(first != NULL && second > first);
    const char *last = strstr(text, "  core 6   cpu 6  worker 6");
    const char *free_core = strstr(text, "  core 7   cpu 7");
    assert_true(last > second && free_core > last);
    assert_null(strstr(text, "worker 7"));
    assert_true(strstr(text, "  node 2  256.0 GiB") != NULL ||
                strstr(text, "  node 0  256.0 GiB") != NULL);
    assert_non_null(strstr(text, "; no cores: used when the others are full\n"));
    assert_non_null(strstr(text, "test_topology")); /* this very thread */
    free(text);
}

/* A core that a thread is pinned to shows its name. */
static void a_pinned_thread_is_drawn(void **state)
{
    (void)state;
    static struct topology t;
    static struct topology_places p;
    cpu_set_t old;
    assert_int_equal(topology_discover(&t, NULL), 0);
    if (t.n_cpus < 2) {
        print_message("skip - one core\n");
        skip();
    }
    assert_int_equal(sched_getaffinity(0, sizeof old, &old), 0);
    topology_place(&t, t.n_cpus - 1, &p);
    assert_int_equal(topology_keep_off(&p), 0);
    char *text = topology_draw(&t, t.n_cpus - 1);
    cpu_set_t now;
    assert_int_equal(sched_getaffinity(0, sizeof now, &now), 0);
    assert_int_equal(sched_setaffinity(0, sizeof old, &old), 0);
    assert_int_equal(CPU_COUNT(&now), t.cores[t.n_cpus - 1].n_siblings);
    assert_true(CPU_ISSET(t.cpus[t.n_cpus - 1], &now));
    char line[64];
    assert_non_null(text);
    snprintf(line, sizeof line, "  core %-3u cpu %u", t.cores[t.n_cpus - 1].number,
             t.cpus[t.n_cpus - 1]);
    const char *at = strstr(text, line);
    assert_non_null(at);
    const char *name = strstr(at, "test_topology");
    assert_true(name != NULL && name < strchr(at, '\n'));
    free(text);
}

/* ---- this machine ---------------------------------------------------------------------------- */

static void this_machine(void **state)
{
    (void)state;
    struct topology t;
    uint64_t start = clock_us();
    assert_int_equal(topology_discover(&t, NULL), 0);
    uint64_t took = clock_us() - start;
    print_message("%s, found in %.1f ms\n", t.text, (double)took / 1000);
    cpu_set_t allowed;
    assert_int_equal(sched_getaffinity(0, sizeof allowed, &allowed), 0);
    assert_int_equal(t.n_threads, CPU_COUNT(&allowed));
    assert_in_range(t.n_cpus, 1, t.n_threads);
    assert_in_range(t.default_threads, 1, t.n_cpus);
    for (uint32_t i = 0; i < t.n_cpus; i++)
        assert_true(CPU_ISSET(t.cpus[i], &allowed));
    assert_true(t.memory_total >= (64u << 20));
    assert_in_range(t.memory_available, 1, t.memory_total);
    assert_true(took < 250000);
}

static void affinity_is_respected(void **state)
{
    (void)state;
    cpu_set_t old, one;
    assert_int_equal(sched_getaffinity(0, sizeof old, &old), 0);
    int cpu = CPU_SETSIZE - 1;
    while (!CPU_ISSET(cpu, &old))
        cpu--;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    assert_int_equal(sched_setaffinity(0, sizeof one, &one), 0);
    struct topology t;
    int r = topology_discover(&t, NULL);
    assert_int_equal(sched_setaffinity(0, sizeof old, &old), 0);
    assert_int_equal(r, 0);
    assert_int_equal(t.n_cpus, 1);
    assert_int_equal(t.n_threads, 1);
    assert_int_equal(t.cpus[0], cpu);
}

/* ---- control groups in a made-up root -------------------------------------------------------- */

static char root[64];

static void put(const char *path, const char *text)
{
    char full[512];
    snprintf(full, sizeof full, "%s%s", root, path);
    for (char *slash = full + strlen(root) + 1; (slash = strchr(slash, '/')) != NULL; slash++) {
        *slash = '\0';
        mkdir(full, 0755);
        *slash = '/';
    }
    FILE *f = fopen(full, "w");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    fclose(f);
}

static int make_root(void **state)
{
    (void)state;
    strcpy(root, "/tmp/inferd-topology-XXXXXX");
    if (mkdtemp(root) == NULL)
        return -1;
    put("/proc/meminfo",
        "MemTotal:       1000 kB\nMemFree:         1 kB\nMemAvailable:    800 kB\n");
    return 0;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st;
    (void)type;
    (void)ftw;
    return remove(path);
}

static int remove_root(void **state)
{
    (void)state;
    return nftw(root, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

static void no_group_no_limit(void **state)
{
    (void)state;
    struct topology t = {0};
    topology_limits(root, &t);
    assert_int_equal(t.quota_percent, 0);
    assert_int_equal(t.memory_total, 1000 * 1024);
    assert_int_equal(t.memory_available, 800 * 1024);
    put("/proc/self/cgroup", "0::/gone\n");
    topology_limits(root, &t);
    assert_int_equal(t.quota_percent, 0);
}

static void the_tightest_group_above_counts(void **state)
{
    (void)state;
    struct topology t = {0};
    put("/proc/self/cgroup", "0::/system.slice/inferd.service\n");
    put("/sys/fs/cgroup/system.slice/inferd.service/cpu.max", "max 100000\n");
    put("/sys/fs/cgroup/system.slice/cpu.max", "150000 100000\n");
    put("/sys/fs/cgroup/cpu.max", "900000 100000\n");
    put("/sys/fs/cgroup/system.slice/inferd.service/memory.max", "512000\n");
    put("/sys/fs/cgroup/system.slice/inferd.service/memory.current", "400000\n");
    put("/sys/fs/cgroup/system.slice/inferd.service/memory.stat",
        "anon 1\ninactive_file 100000\nactive_file 50000\nslab 7\n");
    put("/sys/fs/cgroup/system.slice/memory.max", "max\n");
    topology_limits(root, &t);
    assert_int_equal(t.quota_percent, 150);
    assert_int_equal(t.memory_total, 512000);
    assert_int_equal(t.memory_available, 512000 - 250000);
}

static void a_full_group_has_nothing_left(void **state)
{
    (void)state;
    struct topology t = {0};
    put("/proc/self/cgroup", "0::/\n");
    put("/sys/fs/cgroup/cpu.max", "500 100000\n");
    put("/sys/fs/cgroup/memory.max", "4096\n");
    put("/sys/fs/cgroup/memory.current", "8192\n");
    topology_limits(root, &t);
    assert_int_equal(t.quota_percent, 1);
    assert_int_equal(t.memory_total, 4096);
    assert_int_equal(t.memory_available, 0);
}

static void groups_of_version_1(void **state)
{
    (void)state;
    struct topology t = {0};
    put("/proc/self/cgroup", "12:cpu,cpuacct:/box\n4:memory:/box\n1:name=systemd:/box\n0::/\n");
    put("/sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us", "250000\n");
    put("/sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_period_us", "100000\n");
    put("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n");
    put("/sys/fs/cgroup/memory/box/memory.limit_in_bytes", "300000\n");
    put("/sys/fs/cgroup/memory/box/memory.usage_in_bytes", "100000\n");
    put("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
    topology_limits(root, &t);
    assert_int_equal(t.quota_percent, 250);
    assert_int_equal(t.memory_total, 300000);
    assert_int_equal(t.memory_available, 200000);
}

static void damaged_files_are_no_limit(void **state)
{
    (void)state;
    struct topology t = {0};
    put("/proc/self/cgroup", "0::\nnonsense\n0:\n:\n\n0::/a\n");
    put("/sys/fs/cgroup/a/cpu.max", "lots of it\n");
    put("/sys/fs/cgroup/a/memory.max", "99999999999999999999999\n");
    topology_limits(root, &t);
    assert_int_equal(t.quota_percent, 0);
    assert_int_equal(t.memory_total, 1000 * 1024);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_processor_per_core),
        cmocka_unit_test(first_node_first),
        cmocka_unit_test(more_cores_than_are_used),
        cmocka_unit_test(forbidden_cores_are_left_out),
        cmocka_unit_test(nonsense_is_refused),
        cmocka_unit_test(machines_as_files),
        cmocka_unit_test(more_and_fewer_threads),
        cmocka_unit_test(the_drawing),
        cmocka_unit_test(a_pinned_thread_is_drawn),
        cmocka_unit_test(this_machine),
        cmocka_unit_test(affinity_is_respected),
        cmocka_unit_test_setup_teardown(no_group_no_limit, make_root, remove_root),
        cmocka_unit_test_setup_teardown(the_tightest_group_above_counts, make_root, remove_root),
        cmocka_unit_test_setup_teardown(a_full_group_has_nothing_left, make_root, remove_root),
        cmocka_unit_test_setup_teardown(groups_of_version_1, make_root, remove_root),
        cmocka_unit_test_setup_teardown(damaged_files_are_no_limit, make_root, remove_root),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
