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
