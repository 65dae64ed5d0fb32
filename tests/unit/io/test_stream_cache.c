/* test_stream_cache.c: io/stream.h leaves the page cache as it found it, page by page. */
#include "unit/io/stream_fixture.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#ifndef SYS_cachestat
#define SYS_cachestat 451
#endif

#define N_PAGES    1500u
#define FILE_BYTES (N_PAGES * 4096u - 1000u)

static int file;
static bool by_seeing; /* the kernel tells what is cached, and forgets what it is asked to */

/* Which pages are in the cache now; the mapping is not touched. */
static unsigned look(unsigned char pages[N_PAGES])
{
    unsigned n = 0;
    void *map = mmap(NULL, FILE_BYTES, PROT_READ, MAP_SHARED, file, 0);
    assert_true(map != MAP_FAILED);
    assert_int_equal(mincore(map, FILE_BYTES, pages), 0);
    munmap(map, FILE_BYTES);
    for (unsigned i = 0; i < N_PAGES; i++)
        n += pages[i] &= 1;
    return n;
}

static void read_pages(unsigned first, unsigned n)
{
    uint8_t *data = malloc(n * 4096u);
    assert_non_null(data);
    assert_true(pread(file, data, n * 4096u, first * 4096) > 0);
    free(data);
}

/* Nothing of it in the cache, and no reading ahead of what the test itself reads. */
static int forget(void **state)
{
    (void)state;
    unsigned char pages[N_PAGES];
    posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
    posix_fadvise(file, 0, 0, POSIX_FADV_RANDOM);
    by_seeing = sysconf(_SC_PAGESIZE) == 4096 && look(pages) == 0;
    return 0;
}

static int make_file(void **state)
{
    (void)state;
    file = pattern_on_disk(FILE_BYTES);
    return 0;
}

static int close_file(void **state)
{
    (void)state;
    return close(file);
}

static struct stream_stats read_it(const struct way *w)
{
    struct stream_extent e = {file, "m.gguf", "w", 77, 6000 * 1000, 1000, 0};
    struct taker t = {.extents = &e};
    struct stream_sink sink = {.ctx = &t, .rows = take};
    struct shim h = {.no_direct = w->no_direct};
    struct stream_io io = shim_io(&h);
    struct stream_options o = {.method = w->method, .read_bytes = 1u << 18, .depth = 4, .io = &io};
    struct stream_stats stats;
    assert_int_equal(stream_read(&e, 1, &sink, &o, &stats, NULL), 0);
    assert_all_taken(&t, 1);
    return stats;
}

static void what_was_not_there_is_not_there_after(void **state)
{
    (void)state;
    unsigned char pages[N_PAGES];
    for (size_t w = 0; w < N_WAYS; w++) {
        if (!way_open(&ways[w]))
            continue;
        forget(NULL);
        if (!by_seeing)
            skip();
        read_it(&ways[w]);
        assert_int_equal(look(pages), 0);
    }
}

static void what_was_there_stays_page_by_page(void **state)
{
    (void)state;
    unsigned char before[N_PAGES], after[N_PAGES];
    for (size_t w = 0; w < N_WAYS; w++) {
        if (!way_open(&ways[w]))
            continue;
        forget(NULL);
        if (!by_seeing)
            skip();
        read_pages(0, 3);
        read_pages(7, 1);
        read_pages(100, 300); /* whole reads and parts of them */
        read_pages(700, 1);
        read_pages(702, 1);
        read_pages(N_PAGES - 1, 1);
        assert_in_range(look(before), 307, 500);
        read_it(&ways[w]);
        look(after);
        assert_memory_equal(before, after, N_PAGES);
    }
}

static void what_is_there_is_copied_from_there(void **state)
{
    (void)state;
    for (size_t w = 0; w < N_WAYS; w++) {
        if (!way_open(&ways[w]))
            continue;
        forget(NULL);
        if (!by_seeing)
            skip();
        struct stream_stats cold = read_it(&ways[w]);
        read_pages(0, N_PAGES);
        struct stream_stats warm = read_it(&ways[w]);
        assert_int_equal(warm.direct_bytes, 0);
        assert_true(warm.buffered_bytes >= 6000 * 1000);
        if (cold.n_files_direct > 0)
            assert_int_equal(cold.buffered_bytes, 0);
    }
}

/* This program once more, before a kernel that does not have cachestat(2). */
static void the_same_on_older_kernels(void **state)
{
    (void)state;
    int status;
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        execl("/proc/self/exe", "test_stream_cache", "older", (char *)NULL);
        _exit(126);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == 77)
        skip();
    assert_int_equal(WEXITSTATUS(status), 0);
}

static bool forbid_cachestat(void)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_cachestat, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {.len = 4, .filter = filter};
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

int main(int argc, char **argv)
{
    (void)argv;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(what_was_not_there_is_not_there_after, forget),
        cmocka_unit_test_setup(what_was_there_stays_page_by_page, forget),
        cmocka_unit_test_setup(what_is_there_is_copied_from_there, forget),
        cmocka_unit_test(the_same_on_older_kernels),
    };
    if (argc == 1)
        return cmocka_run_group_tests(tests, make_file, close_file);
    if (!forbid_cachestat())
        return 77;
    const struct CMUnitTest older[] = {tests[0], tests[1], tests[2]};
    return cmocka_run_group_tests(older, make_file, close_file);
}
