/* test_load.c: a daemon that loads a model from a cold and from a warm page cache: both serve, and
 * the weights are in the page cache afterwards exactly where they were before. */
#include "support/daemon.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

/* The head of the file is read through the page cache: keys, vocabulary, the list of tensors. */
#define HEAD_BYTES ((size_t)8 << 20)
/* The system takes cold pages away by itself, here and there. A load that does it does it each
 * time. */
#define TRIES 5

static char copy[128];
static int file = -1;
static size_t n_pages, n_head;
static unsigned char *before, *after;

static int copy_model(void **state)
{
    (void)state;
    const char *folder = getenv("TMPDIR");
    struct stat st;
    int from = open(DAEMON_MODEL, O_RDONLY | O_CLOEXEC);
    snprintf(copy, sizeof copy, "%s/inferd-load.XXXXXX", folder != NULL ? folder : "/tmp");
    file = mkostemp(copy, O_CLOEXEC);
    if (from < 0 || file < 0 || fstat(from, &st) != 0)
        return -1;
    while (copy_file_range(from, NULL, file, NULL, 1u << 24, 0) > 0) {
    }
    close(from);
    n_pages = ((size_t)st.st_size + 4095) / 4096;
    n_head = HEAD_BYTES / 4096;
    before = calloc(n_pages, 1);
    after = calloc(n_pages, 1);
    return fsync(file) == 0 && lseek(file, 0, SEEK_END) == st.st_size && before != NULL &&
                   after != NULL && n_pages > 2 * n_head
               ? 0
               : -1;
}

static int remove_copy(void **state)
{
    (void)state;
    free(before);
    free(after);
    close(file);
    return unlink(copy);
}

/* How many of the pages behind the head are cached. */
static size_t look(unsigned char *pages)
{
    size_t n = 0;
    void *map = mmap(NULL, n_pages * 4096, PROT_READ, MAP_SHARED, file, 0);
    assert_true(map != MAP_FAILED);
    assert_int_equal(mincore(map, n_pages * 4096, pages), 0);
    munmap(map, n_pages * 4096);
    for (size_t i = 0; i < n_pages; i++)
        pages[i] &= 1;
    for (size_t i = n_head; i < n_pages; i++)
        n += pages[i];
    return n;
}

static void read_pages(size_t first, size_t n)
{
    char *data = malloc(n * 4096);
    assert_non_null(data);
    assert_true(pread(file, data, n * 4096, (off_t)(first * 4096)) > 0);
    free(data);
}

/* Loads it, asks it something; *ret_log is freed by the caller. */
static void load(char **ret_log)
{
    static struct daemon d;
    char model[160];
    snprintf(model, sizeof model, "unix=%s", copy);
    daemon_start(&d, (const char *const[]){"--model", model, "--backend", "cpu", "--log-level",
                                           "debug", NULL});
    daemon_assert_serves(&d);
    daemon_stop(&d);
    *ret_log = daemon_read_log(&d);
    daemon_done(&d);
}

/* None came in, none went. */
static bool left_as_it_was(void)
{
    look(after);
    return memcmp(before + n_head, after + n_head, n_pages - n_head) == 0;
}

static void a_load_leaves_the_page_cache_as_it_was(void **state)
{
    (void)state;
    bool left = false;
    for (int i = 0; i < TRIES && !left; i++) {
        char *log;
        posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
        posix_fadvise(file, 0, 0, POSIX_FADV_RANDOM);
        if (sysconf(_SC_PAGESIZE) != 4096 || look(before) != 0)
            skip(); /* a file system that keeps everything, or does not tell */
        read_pages(n_head + 1000, 5);
        look(before);
        load(&log);
        assert_non_null(strstr(log, "unix: read "));
        free(log);
        left = left_as_it_was();
    }
    assert_true(left);
}

static void a_cached_file_is_not_read_from_the_disk(void **state)
{
    (void)state;
    bool left = false;
    for (int i = 0; i < TRIES && !left; i++) {
        char *log;
        read_pages(0, n_pages);
        if (sysconf(_SC_PAGESIZE) != 4096 || look(before) != n_pages - n_head)
            continue;
        load(&log);
        left = strstr(log, "(0 MiB direct, ") != NULL && left_as_it_was();
        free(log);
    }
    assert_true(left);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_load_leaves_the_page_cache_as_it_was),
        cmocka_unit_test(a_cached_file_is_not_read_from_the_disk),
    };
    return cmocka_run_group_tests(tests, copy_model, remove_copy);
}
