/* test_swap.c: the store of saved states: bounds, the way to the file and back, disks that fail. */
#include "swap.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmocka.h>

static struct swap *new_store(uint64_t memory, uint64_t file)
{
    struct swap *s = NULL;
    int error = 1;
    assert_int_equal(swap_new(memory, file, file > 0 ? "/tmp" : NULL, &s, &error), 0);
    if (error == -EOPNOTSUPP || error == -EISDIR) {
        swap_free(s);
        print_message("skipped: /tmp takes no file without a name\n");
        skip();
    }
    assert_int_equal(error, 0);
    return s;
}

static void fill(struct swap_state *state, size_t bytes, int seed)
{
    uint8_t *p = swap_memory(state);
    assert_int_equal((uintptr_t)p % 64, 0);
    for (size_t i = 0; i < bytes; i++)
        p[i] = (uint8_t)(i * 31 + i / 251 + (size_t)seed);
}

static void check(const struct swap_state *state, size_t bytes, int seed)
{
    const uint8_t *p = swap_memory(state);
    for (size_t i = 0; i < bytes; i++)
        if (p[i] != (uint8_t)(i * 31 + i / 251 + (size_t)seed))
            fail_msg("byte %zu of state %d differs", i, seed);
}

/* A state that is filled and, when it must, in the file. */
static struct swap_state *put(struct swap *s, size_t bytes, int seed)
{
    struct swap_state *state = swap_take(s, bytes);
    if (state == NULL)
        return NULL;
    assert_int_equal(swap_place(state), SWAP_HERE);
    fill(state, bytes, seed);
    if (swap_start(s, state)) {
        assert_int_equal(swap_place(state), SWAP_GOING);
        check(state, bytes, seed); /* still to be had */
        swap_transfer(state);
        assert_true(swap_end(s, state, NULL));
        assert_int_equal(swap_place(state), SWAP_AWAY);
    }
    return state;
}

static void back(struct swap *s, struct swap_state *state, size_t bytes, int seed)
{
    if (swap_place(state) == SWAP_AWAY) {
        assert_true(swap_start(s, state));
        assert_int_equal(swap_place(state), SWAP_COMING);
        swap_transfer(state);
        assert_true(swap_end(s, state, NULL));
    }
    assert_int_equal(swap_place(state), SWAP_HERE);
    assert_false(swap_start(s, state));
    check(state, bytes, seed);
    swap_give(s, state);
}

static void memory_has_a_bound(void **state)
{
    (void)state;
    struct swap *s = new_store(1000, 0);
    struct swap_state *a = swap_take(s, 500), *b = swap_take(s, 449), *c;
    assert_non_null(a);
    assert_null(b); /* 512 + 512 with the alignment */
    b = swap_take(s, 448);
    assert_non_null(b);
    assert_null(swap_take(s, 64));
    assert_null(swap_take(s, SIZE_MAX));
    assert_false(swap_start(s, a)); /* there is no file */
    assert_int_equal(swap_memory_bytes(s), 960);
    swap_give(s, a);
    c = swap_take(s, 512);
    assert_non_null(c);
    swap_give(s, b);
    swap_give(s, c);
    assert_int_equal(swap_memory_bytes(s), 0);
    swap_free(s);
}

static void no_memory_at_all(void **state)
{
    (void)state;
    struct swap *s = new_store(0, 0);
    assert_null(swap_take(s, 1));
    swap_free(s);
}

static void to_the_file_and_back(void **state)
{
    (void)state;
    enum { N = 12 };
    static const size_t bytes[N] = {100,    4096, 5000, 100000, 64,   65,
                                    300000, 4095, 4097, 12345,  2000, 70000};
    struct swap *s = new_store(8192, 1u << 20);
    struct swap_state *all[N];
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < N; i++) {
            all[i] = put(s, bytes[i], i);
            assert_non_null(all[i]);
        }
        assert_int_equal(swap_place(all[0]), SWAP_HERE);
        assert_int_equal(swap_place(all[6]), SWAP_AWAY);
        assert_true(swap_memory_bytes(s) <= 8192);
        assert_true(swap_file_bytes(s) > 400000);
        for (int i = 0; i < N; i++)
            back(s, all[(i * 5 + round) % N], bytes[(i * 5 + round) % N], (i * 5 + round) % N);
        assert_int_equal(swap_memory_bytes(s) + swap_file_bytes(s), 0);
    }
    swap_free(s);
}

/* Gaps are used again, so that the file's bound is one of what is in it. */
static void gaps_are_filled(void **state)
{
    (void)state;
    struct swap *s = new_store(0, 4 * 1024);
    struct swap_state *all[4];
    for (int i = 0; i < 4; i++)
        assert_non_null(all[i] = put(s, 1024, i));
    assert_null(put(s, 64, 9));
    for (int i = 0; i < 200; i++) {
        int k = i * 7 % 4;
        back(s, all[k], 1024, k);
        assert_non_null(all[k] = put(s, 1024, k));
    }
    back(s, all[1], 1024, 1);
    back(s, all[2], 1024, 2);
    assert_null(put(s, 2049, 1));
    assert_non_null(all[1] = put(s, 2048, 1)); /* both gaps became one */
    back(s, all[1], 2048, 1);
    back(s, all[0], 1024, 0);
    back(s, all[3], 1024, 3);
    swap_free(s);
}

static void given_back_on_the_way(void **state)
{
    (void)state;
    struct swap *s = new_store(0, 1u << 20);
    struct swap_state *a = swap_take(s, 1000);
    fill(a, 1000, 1);
    swap_set_owner(a, s);
    assert_true(swap_start(s, a));
    swap_give(s, a);
    assert_null(swap_owner(a));
    swap_transfer(a);
    assert_false(swap_end(s, a, NULL));
    a = put(s, 1000, 2);
    assert_true(swap_start(s, a));
    swap_give(s, a);
    swap_transfer(a);
    assert_false(swap_end(s, a, NULL));
    assert_int_equal(swap_memory_bytes(s) + swap_file_bytes(s), 0);
    swap_free(s);
}

/* A disk that is full: the state stays in memory, and nothing more is sent to the file. */
static void a_write_that_fails(void **state)
{
    (void)state;
    struct rlimit limit, small;
    struct swap *s = new_store(0, 1u << 20);
    struct swap_state *first = put(s, 4096, 3), *a;
    int error = 0;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &limit), 0);
    signal(SIGXFSZ, SIG_IGN);
    small = limit;
    small.rlim_cur = 8192;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    a = swap_take(s, 20000);
    fill(a, 20000, 4);
    assert_true(swap_start(s, a));
    swap_transfer(a);
    assert_true(swap_end(s, a, &error));
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
    assert_int_equal(error, -EFBIG);
    assert_int_equal(swap_place(a), SWAP_HERE);
    check(a, 20000, 4);
    assert_null(swap_take(s, 64));
    swap_give(s, a);
    back(s, first, 4096, 3); /* what was written before can still be read */
    swap_free(s);
}

/* The store's file among our descriptors: the newest one. */
static int newest_descriptor(void)
{
    int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    assert_true(fd > 0);
    close(fd);
    return fd - 1;
}

/* A file that lost its end: the state is lost, and says so. */
static void a_read_that_fails(void **state)
{
    (void)state;
    struct swap *s = new_store(0, 1u << 20);
    int fd = newest_descriptor(), error = 0;
    struct swap_state *a = put(s, 10000, 5), *b = put(s, 10000, 6);
    assert_int_equal(ftruncate(fd, 15000), 0);
    assert_true(swap_start(s, b));
    swap_transfer(b);
    assert_true(swap_end(s, b, &error));
    assert_int_equal(error, -EIO);
    assert_int_equal(swap_place(b), SWAP_LOST);
    assert_false(swap_start(s, b));
    swap_give(s, b);
    back(s, a, 10000, 5);
    swap_free(s);
}

static void no_such_folder(void **state)
{
    (void)state;
    struct swap *s = NULL;
    int error = 0;
    assert_int_equal(swap_new(128, 4096, "/nonexistent/folder", &s, &error), 0);
    assert_int_equal(error, -ENOENT);
    struct swap_state *a = swap_take(s, 100);
    assert_non_null(a);
    assert_null(swap_take(s, 100));
    swap_give(s, a);
    swap_free(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(memory_has_a_bound),    cmocka_unit_test(no_memory_at_all),
        cmocka_unit_test(to_the_file_and_back),  cmocka_unit_test(gaps_are_filled),
        cmocka_unit_test(given_back_on_the_way), cmocka_unit_test(a_write_that_fails),
        cmocka_unit_test(a_read_that_fails),     cmocka_unit_test(no_such_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
