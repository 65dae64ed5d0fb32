/* test_memory.c: blocks and their accounts, and the table that backends get. */
#include "memory.h"

#include "base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/mempolicy.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmocka.h>

static const size_t sizes[] = {1,      63,      64,      4096,    131071,         131072,
                               131073, 2097151, 2097152, 2097153, (5u << 20) + 17};
#define N_SIZES (sizeof sizes / sizeof sizes[0])

static void blocks_are_zeroed_and_aligned(void **state)
{
    (void)state;
    struct memory m;
    memory_init(&m, 0);
    for (int round = 0; round < 2; round++) /* the second may get used memory again */
        for (size_t i = 0; i < N_SIZES; i++) {
            uint8_t *p = memory_take(&m, MEMORY_ENGINE, sizes[i]);
            assert_non_null(p);
            assert_int_equal((uintptr_t)p % 64, 0);
            if (sizes[i] >= 2097152)
                assert_int_equal((uintptr_t)p % 2097152, 0);
            for (size_t k = 0; k < sizes[i]; k++)
                if (p[k] != 0)
                    fail_msg("byte %zu of %zu is %d", k, sizes[i], p[k]);
            memset(p, 0xff, sizes[i]);
            assert_int_equal(memory_bytes(&m, MEMORY_ENGINE), sizes[i]);
            memory_give(&m, MEMORY_ENGINE, p, sizes[i]);
        }
    assert_int_equal(memory_total_bytes(&m), 0);
    assert_int_equal(memory_peak_bytes(&m), sizes[N_SIZES - 1]);
    memory_give(&m, MEMORY_ENGINE, NULL, 5);
    assert_int_equal(memory_total_bytes(&m), 0);
}

static void what_a_backend_takes_is_its_owners(void **state)
{
    (void)state;
    static const uint32_t cpus[1];
    struct memory m;
    struct infer_host host;
    memory_init(&m, 0);
    memory_host_init(&m, cpus, 1, &host);
    void *own = host.memory_take(host.ctx, 100);
    memory_set_owner(3);
    void *a = host.memory_take(host.ctx, 3u << 20);
    memory_set_owner(5);
    void *b = host.memory_take(host.ctx, 70);
    assert_true(own != NULL && a != NULL && b != NULL);
    assert_int_equal(memory_owner_bytes(&m, MEMORY_NO_OWNER), 100);
    assert_int_equal(memory_owner_bytes(&m, 3), 3u << 20);
    assert_int_equal(memory_owner_bytes(&m, 5), 70);
    assert_int_equal(memory_total_bytes(&m), (3u << 20) + 170);
    host.memory_give(host.ctx, b, 70);
    memory_set_owner(3);
    host.memory_give(host.ctx, a, 3u << 20);
    memory_set_owner(MEMORY_NO_OWNER);
    host.memory_give(host.ctx, own, 100);
    for (uint32_t i = 0; i <= MEMORY_NO_OWNER; i++)
        assert_int_equal(memory_owner_bytes(&m, i), 0);
    assert_int_equal(memory_total_bytes(&m), 0);
}

/* Blocks are address space until they are touched; the system calls such memory available. */
static void what_was_promised_is_not_left(void **state)
{
    (void)state;
    const size_t bytes = 256u << 20;
    struct memory m;
    memory_init(&m, 0);
    assert_true(memory_resident_bytes() > 0 && memory_resident_bytes() < bytes);
    assert_int_equal(memory_left(&m, 1u << 30), 1u << 30);
    uint8_t *p = memory_take(&m, MEMORY_BACKEND, bytes);
    assert_non_null(p);
    assert_true(memory_left(&m, 1u << 30) < (1u << 30) - bytes + memory_resident_bytes() + 1);
    assert_int_equal(memory_left(&m, 1000), 0);
    memset(p, 1, bytes); /* now the system knows */
    assert_int_equal(memory_left(&m, 1u << 30), 1u << 30);
    memory_give(&m, MEMORY_BACKEND, p, bytes);
}

static void accounts_by_purpose_and_the_limit(void **state)
{
    (void)state;
    struct memory m;
    memory_init(&m, 10000);
    void *a = memory_take(&m, MEMORY_BACKEND, 6000), *b = memory_take(&m, MEMORY_ENGINE, 4000);
    assert_non_null(a);
    assert_non_null(b);
    assert_null(memory_take(&m, MEMORY_ENGINE, 1));
    assert_int_equal(memory_bytes(&m, MEMORY_BACKEND), 6000);
    assert_int_equal(memory_bytes(&m, MEMORY_ENGINE), 4000);
    assert_int_equal(memory_total_bytes(&m), 10000);
    memory_give(&m, MEMORY_BACKEND, a, 6000);
    assert_int_equal(memory_total_bytes(&m), 4000);
    assert_int_equal(memory_peak_bytes(&m), 10000);
    memory_give(&m, MEMORY_ENGINE, b, 4000);
}

static void impossible_sizes_are_refused(void **state)
{
    (void)state;
    struct memory m;
    memory_init(&m, 0);
    assert_null(memory_take(&m, MEMORY_ENGINE, 0));
    assert_null(memory_take(&m, MEMORY_ENGINE, SIZE_MAX));
    assert_null(memory_take(&m, MEMORY_ENGINE, SIZE_MAX - 4096));
    assert_null(memory_take(&m, MEMORY_ENGINE, SIZE_MAX - (2u << 20) + 1));
    assert_null(memory_take(&m, MEMORY_ENGINE, (size_t)1 << 62));
    assert_int_equal(memory_total_bytes(&m), 0);
}

static void *take_and_give(void *ctx)
{
    struct memory *m = ctx;
    for (size_t i = 0; i < 2000; i++) {
        size_t bytes = 1 + i % 300;
        void *p = memory_take(m, MEMORY_BACKEND, bytes);
        if (p != NULL)
            memory_give(m, MEMORY_BACKEND, p, bytes);
    }
    return NULL;
}

static void accounts_hold_in_many_threads(void **state)
{
    (void)state;
    struct memory m;
    pthread_t threads[4];
    memory_init(&m, 500); /* some are refused */
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, take_and_give, &m), 0);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(memory_total_bytes(&m), 0);
    assert_int_equal(memory_bytes(&m, MEMORY_BACKEND), 0);
    assert_in_range(memory_peak_bytes(&m), 300, 500);
}

/* What the host's log() writes to standard error. */
static void log_of(const struct infer_host *host, int level, const char *text, char *ret, size_t n)
{
    int fds[2], old = dup(STDERR_FILENO);
    assert_int_equal(pipe2(fds, O_NONBLOCK), 0);
    dup2(fds[1], STDERR_FILENO);
    host->log(host->ctx, level, text);
    dup2(old, STDERR_FILENO);
    ssize_t got = read(fds[0], ret, n - 1);
    ret[got > 0 ? got : 0] = '\0';
    close(old);
    close(fds[0]);
    close(fds[1]);
}

static void the_host_of_a_backend(void **state)
{
    (void)state;
    static const uint32_t cpus[] = {4, 2};
    struct memory m;
    struct infer_host host;
    char line[256];
    memory_init(&m, 1000);
    memory_host_init(&m, cpus, 2, &host);
    assert_int_equal(host.abi, INFER_BACKEND_ABI);
    assert_ptr_equal(host.cpus, cpus);
    assert_int_equal(host.n_cpus, 2);
    void *p = host.memory_take(host.ctx, 1000);
    assert_non_null(p);
    assert_null(host.memory_take(host.ctx, 1));
    assert_int_equal(memory_bytes(&m, MEMORY_BACKEND), 1000);
    host.memory_give(host.ctx, p, 1000);
    assert_int_equal(memory_bytes(&m, MEMORY_BACKEND), 0);
    log_of(&host, INFER_LOG_WARNING, "100%s", line, sizeof line);
    assert_non_null(strstr(line, "warning: 100%s\n"));
    log_of(&host, INFER_LOG_DEBUG, "not shown", line, sizeof line);
    assert_string_equal(line, "");
    log_of(&host, -5, "odd level", line, sizeof line);
    assert_non_null(strstr(line, "error: odd level\n"));
}

/* ---- NUMA nodes and huge pages --------------------------------------------------------------- */

/* The policy of the page at p, and whether node 0 is among its nodes. */
static int policy_at(void *p, bool *ret_node_0)
{
    int mode = -1;
    unsigned long mask[16] = {0};
    assert_int_equal(syscall(SYS_get_mempolicy, &mode, mask, 8 * sizeof mask, p, MPOL_F_ADDR), 0);
    *ret_node_0 = mask[0] & 1;
    return mode;
}

static void places_on_nodes(void **state)
{
    (void)state;
    static const uint32_t nodes[] = {0}, of_cpus[] = {0, 0}, cpus[] = {0, 1};
    const size_t bytes = 6u << 20;
    struct memory m;
    struct infer_host host;
    bool node_0;
    memory_init(&m, 0);
    memory_host_init(&m, cpus, 2, &host);
    assert_null(host.memory_place); /* of one node there is nothing to say */
    memory_set_nodes(&m, nodes, 1);
    memory_host_nodes(&m, of_cpus, &host);
    assert_int_equal(host.n_nodes, 1);
    assert_ptr_equal(host.nodes, of_cpus);
    uint8_t *p = host.memory_take(host.ctx, bytes);
    assert_non_null(p);
    assert_int_equal((uintptr_t)p % INFER_PLACE_BYTES, 0);
    int r = host.memory_place(host.ctx, p + 100, (4u << 20) - 100, 0);
    if (r == -EPERM || r == -ENOSYS) {
        print_message("skip - places_on_nodes: mbind: %s\n", strerror(-r));
        skip();
    }
    assert_int_equal(r, 0);
    assert_int_equal(host.memory_place(host.ctx, p + (4u << 20), 2u << 20, INFER_NODE_ALL), 0);
    assert_int_equal(policy_at(p, &node_0), MPOL_DEFAULT); /* not wholly within */
    assert_int_equal(policy_at(p + 4096, &node_0), MPOL_PREFERRED);
    assert_true(node_0);
    assert_int_equal(policy_at(p + (4u << 20), &node_0), MPOL_INTERLEAVE);
    assert_int_equal(host.memory_place(host.ctx, p, 100, 0), 0); /* no whole page: nothing */
    assert_int_equal(host.memory_place(host.ctx, p, bytes, 1), -EINVAL);
    assert_int_equal(memory_bind(&m, p, bytes, -2), -EINVAL);
    for (size_t i = 0; i < bytes; i += 4096)
        assert_int_equal(p[i], 0);
    host.memory_give(host.ctx, p, bytes);
}

/* Whichever kind of huge pages is asked for, there is memory. */
static void huge_pages_of_every_kind(void **state)
{
    (void)state;
    static const enum memory_huge kinds[] = {MEMORY_HUGE_AUTO, MEMORY_HUGE_TRANSPARENT,
                                             MEMORY_HUGE_EXPLICIT, MEMORY_HUGE_OFF};
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        const size_t bytes = (5u << 20) + 123;
        struct memory m;
        memory_init(&m, 0);
        memory_set_huge(&m, kinds[i]);
        uint8_t *p = memory_take(&m, MEMORY_BACKEND, bytes);
        assert_non_null(p);
        assert_int_equal((uintptr_t)p % (2u << 20), 0);
        for (size_t k = 0; k < bytes; k += 4096)
            assert_int_equal(p[k]++, 0);
        memory_give(&m, MEMORY_BACKEND, p, bytes);
        assert_int_equal(memory_total_bytes(&m), 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(blocks_are_zeroed_and_aligned),
        cmocka_unit_test(accounts_by_purpose_and_the_limit),
        cmocka_unit_test(what_a_backend_takes_is_its_owners),
        cmocka_unit_test(what_was_promised_is_not_left),
        cmocka_unit_test(impossible_sizes_are_refused),
        cmocka_unit_test(accounts_hold_in_many_threads),
        cmocka_unit_test(the_host_of_a_backend),
        cmocka_unit_test(places_on_nodes),
        cmocka_unit_test(huge_pages_of_every_kind),
    };
    unsetenv("JOURNAL_STREAM");
    return cmocka_run_group_tests(tests, NULL, NULL);
}
