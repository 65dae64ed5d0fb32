/* test_status_page.c: the page that all clients may read: that they cannot write it, and that a
 * reader who keeps to the sequence lock never sees half of one page and half of another. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "inferd/ring.h"
#include "proto/status_page.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static const struct infer_status_page *map_page(const struct status_page *p)
{
    void *map =
        mmap(NULL, sizeof(struct infer_status_page), PROT_READ, MAP_SHARED, status_page_fd(p), 0);
    assert_true(map != MAP_FAILED);
    return map;
}

static void unmap_page(const struct infer_status_page *page)
{
    munmap((void *)(uintptr_t)page, sizeof *page);
}

static void test_a_new_page_is_zero(void **state)
{
    static const struct infer_page zero;
    struct status_page *p;
    assert_int_equal(status_page_new(&p), 0);
    const struct infer_status_page *page = map_page(p);
    assert_int_equal(page->sequence, 0);
    assert_int_equal(page->bytes, sizeof(struct infer_page));
    assert_memory_equal(&page->page, &zero, sizeof zero);
    status_page_free(p);
    assert_int_equal(page->bytes, sizeof(struct infer_page)); /* the reader's mapping stays */
    unmap_page(page);
    status_page_free(NULL);
}

static void test_what_is_written_is_seen(void **state)
{
    static struct infer_page wanted;
    struct status_page *p;
    assert_int_equal(status_page_new(&p), 0);
    const struct infer_status_page *page = map_page(p);
    for (uint32_t i = 1; i <= 3; i++) {
        memset(&wanted, (int)(i * 37), sizeof wanted);
        status_page_write(p, &wanted);
        assert_int_equal(page->sequence, 2 * i);
        assert_memory_equal(&page->page, &wanted, sizeof wanted);
    }
    unmap_page(page);
    status_page_free(p);
}

/* By the descriptor, by one reopened through /proc, by mapping, by changing its size. */
static void test_a_client_cannot_write(void **state)
{
    struct status_page *p;
    char path[64];
    assert_int_equal(status_page_new(&p), 0);
    int fd = status_page_fd(p);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int again = open(path, O_RDWR | O_CLOEXEC);
    int fds[] = {fd, again};
    assert_true(again >= 0 || errno == EACCES);
    for (int i = 0; i < 2 && fds[i] >= 0; i++) {
        assert_int_equal(write(fds[i], "x", 1), -1);
        assert_int_equal(pwrite(fds[i], "x", 1, 0), -1);
        assert_int_equal(ftruncate(fds[i], 0), -1);
        assert_int_equal(ftruncate(fds[i], 1 << 20), -1);
        assert_int_equal(fallocate(fds[i], FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096),
                         -1);
        assert_int_equal(fcntl(fds[i], F_ADD_SEALS, F_SEAL_WRITE), -1);
        assert_true(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fds[i], 0) == MAP_FAILED);
        void *map = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fds[i], 0);
        assert_true(map != MAP_FAILED);
        assert_int_equal(mprotect(map, 4096, PROT_READ | PROT_WRITE), -1);
        munmap(map, 4096);
    }
    if (again >= 0)
        close(again);
    static struct infer_page page; /* the daemon still can */
    status_page_write(p, &page);
    status_page_free(p);
}

static void *write_pages(void *arg)
{
    static struct infer_page page;
    struct status_page *p = arg;
    for (uint32_t i = 1; i <= 20000; i++) {
        memset(&page, (int)(i % 251), sizeof page);
        status_page_write(p, &page);
    }
    return NULL;
}

static void test_no_reader_sees_half_a_page(void **state)
{
    typedef uint64_t __attribute__((may_alias)) word;
    enum { WORDS = sizeof(struct infer_page) / 8 };
    static uint64_t copy[WORDS];
    struct status_page *p;
    pthread_t writer;
    uint32_t last = 0, taken = 0;
    assert_int_equal(status_page_new(&p), 0);
    const struct infer_status_page *page = map_page(p);
    const word *from = (const word *)&page->page;
    assert_int_equal(pthread_create(&writer, NULL, write_pages, p), 0);
    while (last < 40000) {
        uint32_t sequence = infer_ring_load(&page->sequence);
        for (size_t i = 0; i < WORDS; i++)
            copy[i] = __atomic_load_n(&from[i], __ATOMIC_RELAXED);
        __atomic_thread_fence(__ATOMIC_ACQUIRE);
        if ((sequence & 1) != 0 || infer_ring_load(&page->sequence) != sequence)
            continue;
        for (size_t i = 1; i < WORDS; i++)
            if (copy[i] != copy[0])
                fail_msg("word %zu is of another page", i);
        assert_int_equal(copy[0] & 0xff, sequence / 2 % 251);
        assert_true(sequence >= last);
        last = sequence;
        taken++;
    }
    pthread_join(writer, NULL);
    assert_true(taken > 0);
    unmap_page(page);
    status_page_free(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_new_page_is_zero),
        cmocka_unit_test(test_what_is_written_is_seen),
        cmocka_unit_test(test_a_client_cannot_write),
        cmocka_unit_test(test_no_reader_sees_half_a_page),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
