/* test_stream.c: io/stream.h, with a pread() that interrupts, comes short and fails on demand. */
#include "io/stream.h"

#include "base/clock.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmocka.h>

static atomic_int pread_calls;
static int pread_interrupts, pread_short_bytes, pread_fails_at;

/* Stands in for libc's in this program. */
ssize_t pread(int fd, void *to, size_t bytes, off_t offset)
{
    int call = atomic_fetch_add(&pread_calls, 1);
    if (pread_interrupts != 0 && call % pread_interrupts == 0) {
        errno = EINTR;
        return -1;
    }
    if (pread_fails_at != 0 && call >= pread_fails_at) {
        errno = EIO;
        return -1;
    }
    if (pread_short_bytes != 0 && bytes > (size_t)pread_short_bytes)
        bytes = (size_t)pread_short_bytes;
    return (ssize_t)syscall(SYS_pread64, fd, to, bytes, offset);
}

static int reset(void **state)
{
    (void)state;
    pread_calls = 0;
    pread_interrupts = pread_short_bytes = pread_fails_at = 0;
    return 0;
}

/* A file whose byte i is a function of i. */
static uint8_t byte_at(uint64_t i)
{
    return (uint8_t)((i * 2654435761u) >> 13);
}

static int patterned_file(size_t bytes)
{
    int fd = memfd_create("model", MFD_CLOEXEC);
    assert_true(fd >= 0);
    uint8_t *data = malloc(bytes);
    assert_non_null(data);
    for (size_t i = 0; i < bytes; i++)
        data[i] = byte_at(i);
    size_t done = 0;
    while (done < bytes) {
        ssize_t n = write(fd, data + done, bytes - done);
        assert_true(n > 0);
        done += (size_t)n;
    }
    free(data);
    return fd;
}

struct taker {
    const struct stream_extent *extents;
    uint64_t next_row[256];
    uint32_t last_tensor;
    uint64_t bytes, progress, total;
    int wrong;
    uint64_t fail_after; /* bytes; 0: never */
};

static int take(void *ctx, uint32_t tensor, uint64_t first_row, uint64_t n_rows, const void *data)
{
    struct taker *t = ctx;
    const struct stream_extent *e = &t->extents[tensor];
    const uint8_t *bytes = data;
    if (tensor < t->last_tensor || first_row != t->next_row[tensor] || n_rows == 0 ||
        (uintptr_t)data % 64 != 0)
        t->wrong++;
    for (uint64_t i = 0; i < n_rows * e->row_bytes; i++)
        t->wrong += bytes[i] != byte_at(e->offset + first_row * e->row_bytes + i);
    t->last_tensor = tensor;
    t->next_row[tensor] += n_rows;
    t->bytes += n_rows * e->row_bytes;
    return t->fail_after != 0 && t->bytes >= t->fail_after ? -123456 : 0;
}

static void note(void *ctx, uint64_t done, uint64_t total)
{
    struct taker *t = ctx;
    t->wrong += done < t->progress || done > total;
    t->progress = done;
    t->total = total;
}

/* Extents of all sorts over a file of 12 MB: tiny ones, long ones, rows longer than a buffer. */
#define N_EXTENTS 150

static uint64_t make_extents(int fd, struct stream_extent *extents)
{
    uint64_t offset = 32, total = 0;
    for (uint32_t i = 0; i < N_EXTENTS; i++) {
        uint64_t row = i == 75 ? 3000001 : 1 + (i * 7919u) % 4099, rows = 1 + (i * 31u) % 23;
        if (i == 75)
            rows = 2;
        if (i == 10)
            rows = 0;
        if (i == 100)
            rows = 900;
        extents[i] = (struct stream_extent){.fd = fd,
                                            .path = "model.gguf",
                                            .offset = offset,
                                            .bytes = row * rows,
                                            .row_bytes = row,
                                            .tensor = i};
        offset += row * rows + i % 32;
        total += row * rows;
    }
    assert_true(offset < 12u << 20);
    return total;
}

static void check_whole_read(void)
{
    struct stream_extent extents[N_EXTENTS];
    int fd = patterned_file(12u << 20);
    uint64_t total = make_extents(fd, extents);
    struct taker t = {.extents = extents};
    struct stream_sink sink = {.ctx = &t, .rows = take, .progress = note};
    struct report report = {0};
    assert_int_equal(stream_read(extents, N_EXTENTS, &sink, &report), 0);
    assert_int_equal(t.wrong, 0);
    assert_int_equal(t.bytes, total);
    assert_int_equal(t.progress, total);
    assert_int_equal(t.total, total);
    for (uint32_t i = 0; i < N_EXTENTS; i++)
        assert_int_equal(t.next_row[i], extents[i].bytes / extents[i].row_bytes);
    close(fd);
}

static void rows_arrive_whole_and_in_order(void **state)
{
    (void)state;
    check_whole_read();
}

static void short_and_interrupted_reads_are_resumed(void **state)
{
    (void)state;
    pread_interrupts = 3;
    pread_short_bytes = 10007;
    check_whole_read();
    assert_true(pread_calls > 1000);
}

static void no_extents_is_nothing(void **state)
{
    (void)state;
    struct taker t = {0};
    struct stream_sink sink = {.ctx = &t, .rows = take};
    assert_int_equal(stream_read(NULL, 0, &sink, NULL), 0);
    assert_int_equal(t.bytes, 0);
}

static void a_bad_read_names_file_and_place(void **state)
{
    (void)state;
    int fd = patterned_file(9u << 20);
    struct stream_extent e = {fd, "dir/m.gguf", 4096, 8u << 20, 1024, 0};
    struct taker t = {.extents = &e};
    struct stream_sink sink = {.ctx = &t, .rows = take};
    struct report report = {0};
    pread_fails_at = 2;
    assert_int_equal(stream_read(&e, 1, &sink, &report), -INFER_E_MODEL_UNREADABLE);
    assert_int_equal(report.code, INFER_E_MODEL_UNREADABLE);
    assert_string_equal(report.text, "dir/m.gguf: reading at byte 4198400: Input/output error");
    assert_int_equal(t.wrong, 0);
    assert_int_equal(t.bytes, 4u << 20); /* what was read before it */
    assert_int_equal(stream_read(&e, 1, &sink, NULL), -INFER_E_MODEL_UNREADABLE);
    close(fd);
}

static void a_file_that_shrank_is_an_error(void **state)
{
    (void)state;
    int fd = patterned_file(9u << 20);
    struct stream_extent e = {fd, "m.gguf", 0, 9u << 20, 512, 0};
    struct taker t = {.extents = &e};
    struct stream_sink sink = {.ctx = &t, .rows = take};
    struct report report = {0};
    assert_int_equal(ftruncate(fd, 5000000), 0);
    assert_int_equal(stream_read(&e, 1, &sink, &report), -INFER_E_MODEL_UNREADABLE);
    assert_non_null(strstr(report.text, "m.gguf: the file ends at byte 5000000"));
    assert_int_equal(t.wrong, 0);
    close(fd);
}

static void a_sink_that_fails_ends_the_stream(void **state)
{
    (void)state;
    int fd = patterned_file(40u << 20);
    struct stream_extent e = {fd, "m.gguf", 0, 40u << 20, 512, 0};
    struct taker t = {.extents = &e, .fail_after = 3u << 20};
    struct stream_sink sink = {.ctx = &t, .rows = take};
    struct report report = {0};
    assert_int_equal(stream_read(&e, 1, &sink, &report), -123456);
    assert_int_equal(report.code, 0);
    assert_int_equal(t.bytes, 4u << 20);
    assert_in_range(pread_calls, 2, 7); /* reading stopped too */
    close(fd);
}

static void extents_that_make_no_sense(void **state)
{
    (void)state;
    const struct stream_extent bad[] = {
        {0, "m", 0, 100, 0, 0},
        {0, "m", 0, 100, 33, 0},
        {0, "m", UINT64_MAX - 10, 100, 10, 0},
        {0, "m", INT64_MAX - 10, 100, 10, 0},
        {0, "m", 0, (uint64_t)4 << 30, (uint64_t)2 << 30, 0},
    };
    struct taker t = {0};
    struct stream_sink sink = {.ctx = &t, .rows = take};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct report report = {0};
        assert_int_equal(stream_read(&bad[i], 1, &sink, &report), -INFER_E_MODEL_FORMAT);
        assert_true(report.text[0] != '\0');
    }
    assert_int_equal(pread_calls, 0);
}

static int ignore(void *ctx, uint32_t tensor, uint64_t first, uint64_t n, const void *data)
{
    (void)first;
    (void)n;
    *(uint64_t *)ctx += tensor + ((const uint8_t *)data)[0];
    return 0;
}

/* A bound with a wide margin, since machines that run tests are noisy; the figure is printed. */
static void a_cached_file_reads_at_memory_speed(void **state)
{
    (void)state;
    int fd = patterned_file(38u << 20);
    struct stream_extent e = {fd, "m.gguf", 0, 38u << 20, 1024, 0};
    uint64_t sum = 0, best = UINT64_MAX;
    struct stream_sink sink = {.ctx = &sum, .rows = ignore};
    for (int i = 0; i < 7; i++) {
        uint64_t start = clock_us();
        assert_int_equal(stream_read(&e, 1, &sink, NULL), 0);
        uint64_t took = clock_us() - start;
        best = took < best ? took : best;
    }
    print_message("38 MiB from the page cache, best of 7: %.1f ms\n", (double)best / 1000);
    assert_true(best < 150000);
    close(fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(rows_arrive_whole_and_in_order, reset),
        cmocka_unit_test_setup(short_and_interrupted_reads_are_resumed, reset),
        cmocka_unit_test_setup(no_extents_is_nothing, reset),
        cmocka_unit_test_setup(a_bad_read_names_file_and_place, reset),
        cmocka_unit_test_setup(a_file_that_shrank_is_an_error, reset),
        cmocka_unit_test_setup(a_sink_that_fails_ends_the_stream, reset),
        cmocka_unit_test_setup(extents_that_make_no_sense, reset),
        cmocka_unit_test_setup(a_cached_file_reads_at_memory_speed, reset),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
