/* test_stream_faults.c: every single call and every single read of a stream fails once, in every
 * way it can, on every way a stream can go. What must hold each time: all rows arrive right, or the
 * error is exact and the rows before it arrived right; no descriptor, no memory is left.
 *
 * The file is small and so are the reads, so that "every" is some dozens. */
#include "unit/io/stream_fixture.h"

#include "base/clock.h"

#include <limits.h>
#include <sched.h>

#define FILE_BYTES (300u << 10)
#define READ_BYTES 8192u
#define DEPTH      5u
#define N_EXTENTS  3u

static struct stream_extent extents[N_EXTENTS];
static int file;

static int make_file(void **state)
{
    (void)state;
    file = pattern_on_disk(FILE_BYTES);
    extents[0] = (struct stream_extent){file, "m.gguf", "norm", 96, 4000, 4000, 0};
    extents[1] = (struct stream_extent){file, "m.gguf", "up", 4128, 250 * 1000, 1000, 1};
    extents[2] = (struct stream_extent){file, "m.gguf", "down", 290000, 17000, 17000, 2};
    return 0;
}

static int close_file(void **state)
{
    (void)state;
    return close(file);
}

struct outcome {
    int rc;
    struct report report;
    uint64_t bytes;
    struct stream_stats stats;
};

/* One stream under the shim; asserts what must always hold. */
static struct outcome once(const struct way *w, struct shim *h, uint32_t stall_ms)
{
    struct taker t = {.extents = extents};
    struct stream_sink sink = {.ctx = &t, .rows = take};
    static struct stream_io io; /* a reader that is left behind still calls it */
    io = shim_io(h);
    struct stream_options o = {.method = w->method,
                               .read_bytes = READ_BYTES,
                               .depth = DEPTH,
                               .stall_ms = stall_ms,
                               .io = &io};
    struct outcome r = {0};
    h->no_direct = w->no_direct;
    r.rc = stream_read(extents, N_EXTENTS, &sink, &o, &r.stats, &r.report);
    r.bytes = t.bytes;
    assert_int_equal(t.wrong, 0);
    if (r.rc == 0) {
        assert_all_taken(&t, N_EXTENTS);
        assert_int_equal(r.report.code, 0);
    } else {
        assert_int_equal(r.rc, -r.report.code);
        assert_true(r.report.text[0] != '\0');
    }
    return r;
}

static void assert_nothing_left(const struct shim *h)
{
    assert_int_equal(h->mapped, h->unmapped);
    assert_int_equal(h->opened + 1, h->closed); /* and the duplicate of the caller's */
}

/* Where the reads of an undisturbed stream begin. */
static int find_reads(uint64_t offsets[64])
{
    static struct shim h;
    h = (struct shim){0};
    assert_int_equal(once(&ways[2], &h, 0).rc, 0);
    assert_in_range(h.reads, 30, 64);
    memcpy(offsets, h.offsets, (size_t)h.reads * sizeof *offsets);
    return h.reads;
}

/* The first byte that is asked for of a read at this offset, and whose it is. */
static const struct stream_extent *first_wanted(uint64_t offset, uint64_t *ret)
{
    for (uint32_t i = 0; i < N_EXTENTS; i++)
        if (extents[i].offset + extents[i].bytes > offset) {
            *ret = offset > extents[i].offset ? offset : extents[i].offset;
            return &extents[i];
        }
    fail();
    return NULL;
}

/* Whole rows that lie before the read at this offset. */
static uint64_t bytes_before(uint64_t offset)
{
    uint64_t n = 0;
    for (uint32_t i = 0; i < N_EXTENTS; i++)
        if (offset > extents[i].offset) {
            uint64_t in = offset - extents[i].offset;
            in = in < extents[i].bytes ? in : extents[i].bytes;
            n += in - in % extents[i].row_bytes;
        }
    return n;
}

/* ---- every read ------------------------------------------------------------------------------ */

struct fault {
    const char *name;
    int result, times;
    uint64_t short_bytes;
    const char *sentence; /* NULL: the stream goes on */
};

static const struct fault faults[] = {
    {"EIO once", -EIO, 1, 0, NULL},
    {"EIO three times", -EIO, 3, 0, NULL},
    {"EIO for ever", -EIO, INT_MAX, 0, "Input/output error, four times; see the disk"},
    {"EINTR, again and again", -EINTR, 20, 0, NULL},
    {"EAGAIN, again and again", -EAGAIN, 4, 0, NULL},
    {"another error", -ENODEV, 1, 0, "No such device"},
    {"no byte once", 0, 1, 0, NULL},
    {"no byte for ever", 0, INT_MAX, 0, "Input/output error, four times; see the disk"},
    {"one byte", 0, 1, 1, NULL},
    {"an odd part", 0, 1, 3001, NULL},
    {"a page", 0, 1, 4096, NULL},
};

static void check_fault(const struct way *w, const struct fault *f, uint64_t offset)
{
    static struct shim h;
    h = (struct shim){.read_offset = offset,
                      .read_result = f->result,
                      .read_times = f->times,
                      .short_bytes = f->short_bytes};
    struct outcome r = once(w, &h, 0);
    assert_nothing_left(&h);
    if (f->sentence == NULL) {
        assert_int_equal(r.rc, 0);
        /* a read of one page can come no shorter than a page */
        assert_true(r.stats.n_retries > 0 || f->short_bytes >= 3001);
        return;
    }
    uint64_t at = 0;
    const struct stream_extent *e = first_wanted(offset, &at);
    char wanted[256];
    snprintf(wanted, sizeof wanted, "m.gguf: %s: reading at byte %llu: %s", e->name,
             (unsigned long long)at, f->sentence);
    assert_int_equal(r.rc, -INFER_E_MODEL_UNREADABLE);
    assert_string_equal(r.report.text, wanted);
    assert_int_equal(r.bytes, bytes_before(offset));
}

static void every_read_fails_once_in_every_way(void **state)
{
    (void)state;
    uint64_t offsets[64];
    int n = find_reads(offsets), descriptors = count_descriptors();
    for (size_t w = 0; w < N_WAYS; w++)
        for (size_t f = 0; way_open(&ways[w]) && f < sizeof faults / sizeof faults[0]; f++)
            for (int i = 0; i < n; i++)
                check_fault(&ways[w], &faults[f], offsets[i]);
    assert_int_equal(count_descriptors(), descriptors);
}

static void a_world_that_gives_little_at_a_time(void **state)
{
    (void)state;
    static struct shim h;
    for (size_t w = 0; w < N_WAYS; w++) {
        if (!way_open(&ways[w]))
            continue;
        h = (struct shim){.read_times = -1, .short_bytes = 1030, .interrupt_every = 3};
        struct outcome r = once(&ways[w], &h, 0);
        assert_int_equal(r.rc, 0);
        assert_true(h.reads > 300);
        assert_nothing_left(&h);
    }
}

static void a_direct_read_that_is_refused_is_made_otherwise(void **state)
{
    (void)state;
    static struct shim h;
    for (size_t w = 0; w < N_WAYS; w++) {
        if (!way_open(&ways[w]) || ways[w].no_direct)
            continue;
        h = (struct shim){.read_offset = 8192, .read_times = 1, .read_result = -EINVAL};
        struct outcome r = once(&ways[w], &h, 0);
        if (r.stats.direct_bytes == 0) { /* a file system without O_DIRECT: EINVAL is an error */
            assert_int_equal(r.rc, -INFER_E_MODEL_UNREADABLE);
            continue;
        }
        assert_int_equal(r.rc, 0);
        assert_non_null(strstr(r.stats.note, "refused"));
        assert_nothing_left(&h);
    }
}

/* ---- every other call ------------------------------------------------------------------------ */

/* The N-th of open, stat, map and ring fails, for every N. */
static void every_call_fails_once(void **state)
{
    (void)state;
    static struct shim h;
    static const int errors[] = {-EIO, -EACCES, -ENOMEM, -EMFILE, -EINVAL};
    int descriptors = count_descriptors(), ended[2] = {0};
    for (size_t w = 0; w < N_WAYS; w++)
        for (size_t e = 0; way_open(&ways[w]) && e < sizeof errors / sizeof errors[0]; e++) {
            h = (struct shim){0};
            assert_int_equal(once(&ways[w], &h, 0).rc, 0);
            for (int n = 1, calls = h.calls; n <= calls; n++) {
                h = (struct shim){.fail_call = n, .call_error = errors[e]};
                struct outcome r = once(&ways[w], &h, 0);
                assert_int_equal(h.mapped, h.unmapped);
                assert_int_equal(count_descriptors(), descriptors);
                ended[r.rc == 0]++;
            }
        }
    /* some failures end the stream and some have a way round */
    assert_true(ended[0] > 0 && ended[1] > 0);
}

static void no_memory_is_an_error(void **state)
{
    (void)state;
    static struct shim h;
    h = (struct shim){.no_map = true};
    struct outcome r = once(&ways[2], &h, 0);
    assert_int_equal(r.rc, -INFER_E_OUT_OF_MEMORY);
    assert_int_equal(h.opened, 0);
}

/* ---- time and change ------------------------------------------------------------------------- */

static void a_slow_disk_is_waited_for(void **state)
{
    (void)state;
    static struct shim h;
    for (size_t w = 0; w < N_WAYS; w++) {
        if (!way_open(&ways[w]))
            continue;
        h = (struct shim){.delay_us = 10000};
        uint64_t start = clock_us();
        assert_int_equal(once(&ways[w], &h, 250).rc, 0); /* each byte in time, all of them not */
        assert_true(clock_us() - start > 300000);
        assert_nothing_left(&h);
    }
}

static void a_read_that_never_ends_is_left_behind(void **state)
{
    (void)state;
    int descriptors = count_descriptors();
    for (size_t w = 0; w < N_WAYS; w++) {
        if (!way_open(&ways[w]))
            continue;
        static struct shim h;
        h = (struct shim){.hold = true};
        uint64_t start = clock_us();
        struct outcome r = once(&ways[w], &h, 100);
        uint64_t took = clock_us() - start;
        assert_int_equal(r.rc, -INFER_E_MODEL_UNREADABLE);
        assert_string_equal(r.report.text,
                            "m.gguf: norm: no byte came for 0.1 s, from byte 96 on; the disk, or "
                            "who serves this file, does not answer");
        assert_in_range(took, 100000, 20000000);
        assert_int_equal(h.mapped - h.unmapped, 1); /* where the read may still write to */
        h.hold = false;
        for (int i = 0; i < 2000 && h.mapped != h.unmapped; i++)
            usleep(5000);
        assert_nothing_left(&h);
    }
    assert_int_equal(count_descriptors(), descriptors);
}

static void a_file_that_is_cut_meanwhile(void **state)
{
    (void)state;
    for (size_t w = 0; w < N_WAYS; w++)
        for (int n = 1; way_open(&ways[w]) && n < 30; n += 7) {
            static struct shim h;
            h = (struct shim){.truncate_fd = file, .truncate_at_read = n};
            struct outcome r = once(&ways[w], &h, 0);
            assert_int_equal(r.rc, -INFER_E_MODEL_UNREADABLE);
            assert_non_null(strstr(r.report.text, "changed while it was read; load it again"));
            assert_nothing_left(&h);
            close(file);
            make_file(NULL);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_read_fails_once_in_every_way),
        cmocka_unit_test(a_world_that_gives_little_at_a_time),
        cmocka_unit_test(a_direct_read_that_is_refused_is_made_otherwise),
        cmocka_unit_test(every_call_fails_once),
        cmocka_unit_test(no_memory_is_an_error),
        cmocka_unit_test(a_slow_disk_is_waited_for),
        cmocka_unit_test(a_read_that_never_ends_is_left_behind),
        cmocka_unit_test(a_file_that_is_cut_meanwhile),
    };
    return cmocka_run_group_tests(tests, make_file, close_file);
}
