/* test_stream.c: io/stream.h over real files: whole rows in order on every way, what the stats and
 * the sentences say, what a sink that fails and a file that changes lead to. Faults of single calls
 * are in test_stream_faults.c, the page cache in test_stream_cache.c. */
#include "unit/io/stream_fixture.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>

/* Extents of all sorts over a file of 12 MB: tiny ones, long ones, rows longer than a read. */
#define N_EXTENTS  150
#define FILE_BYTES (12u << 20)

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
                                            .path = "dir/model.gguf",
                                            .name = "blk.0.ffn_up.weight",
                                            .offset = offset,
                                            .bytes = row * rows,
                                            .row_bytes = row,
                                            .tensor = i};
        offset += row * rows + i % 32;
        total += row * rows;
    }
    assert_true(offset < FILE_BYTES);
    return total;
}

static struct stream_stats check_whole_read(int fd, const struct stream_options *o)
{
    struct stream_extent extents[N_EXTENTS];
    uint64_t total = make_extents(fd, extents);
    struct taker t = {.extents = extents};
    struct stream_sink sink = {.ctx = &t, .rows = take, .progress = note_progress};
    struct stream_stats stats;
    struct report report = {0};
    int rc = stream_read(extents, N_EXTENTS, &sink, o, &stats, &report);
    assert_string_equal(report.text, "");
    assert_int_equal(rc, 0);
    assert_all_taken(&t, N_EXTENTS);
    assert_int_equal(t.progress, total);
    assert_int_equal(t.total, total);
    assert_int_equal(stats.bytes, total);
    assert_true(stats.bytes_per_s > 0 && stats.took_us >= stats.sink_us);
    assert_int_equal(stats.n_files, 1);
    return stats;
}

static void rows_arrive_whole_and_in_order(void **state)
{
    (void)state;
    int fds[] = {pattern_in_memory(FILE_BYTES), pattern_on_disk(FILE_BYTES)};
    static const uint32_t reads[] = {4096, 65536, 0, STREAM_READ_BYTES_MAX},
                          depths[] = {1, 3, 0, STREAM_DEPTH_MAX};
    for (size_t w = 0; w < N_WAYS; w++)
        for (size_t i = 0; way_open(&ways[w]) && i < 8; i++) {
            struct shim h = {.no_direct = ways[w].no_direct};
            struct stream_io io = shim_io(&h);
            struct stream_options o = {.method = ways[w].method,
                                       .read_bytes = reads[i / 2],
                                       .depth = depths[i / 2],
                                       .io = &io};
            struct stream_stats stats = check_whole_read(fds[i % 2], &o);
            assert_true(stats.uring == (ways[w].method == STREAM_URING));
            assert_int_equal(h.mapped, h.unmapped);
            assert_int_equal(h.opened + 1, h.closed); /* and the duplicate */
            if (ways[w].no_direct) {
                assert_int_equal(stats.direct_bytes, 0);
                assert_non_null(strstr(stats.note, "has no O_DIRECT"));
            }
        }
    close(fds[0]);
    close(fds[1]);
}

static void the_defaults_do(void **state)
{
    (void)state;
    int fd = pattern_on_disk(FILE_BYTES);
    check_whole_read(fd, NULL);
    close(fd);
}

static void a_descriptor_that_cannot_be_opened_again(void **state)
{
    (void)state;
    int fd = pattern_on_disk(FILE_BYTES);
    struct shim h = {.no_open = true};
    struct stream_io io = shim_io(&h);
    struct stream_options o = {.io = &io};
    struct stream_stats stats = check_whole_read(fd, &o);
    assert_int_equal(stats.n_files_direct, 0);
    assert_non_null(strstr(stats.note, "opening it for O_DIRECT: Permission denied"));
    close(fd);
}

static int bind_calls;
static int bind_to(void *ctx, void *memory, size_t bytes, int node)
{
    bind_calls++;
    *(int *)ctx = node;
    memset(memory, 0, bytes);
    return node == 3 ? -EPERM : 0;
}

static void buffers_are_bound_before_they_are_used(void **state)
{
    (void)state;
    int fd = pattern_on_disk(FILE_BYTES), node = 0;
    struct stream_options o = {.bind = bind_to, .bind_ctx = &node, .node = 1, .huge_pages = true};
    check_whole_read(fd, &o);
    assert_int_equal(node, 1);
    o.node = 3;
    struct stream_stats stats = check_whole_read(fd, &o);
    assert_non_null(strstr(stats.note, "node 3: Operation not permitted"));
    assert_int_equal(bind_calls, 2);
    close(fd);
}

/* A sink that looks at what lies in the buffers only once it is asked to be done with it. */
struct keeper {
    struct taker t;
    const uint8_t *memory;
    size_t bytes;
    int refuses;
    uint64_t n_calls, n_done, most; /* most: calls that were held at once */
    uint32_t holds, lets_go;
    uint64_t fail_at; /* wait() fails from this call on; 0: never */
    struct {
        const uint8_t *data; /* NULL: looked at in time */
        uint64_t offset, bytes;
    } calls[16384];
};

static int keep_rows(void *ctx, uint32_t tensor, uint64_t first_row, uint64_t n_rows,
                     const void *data)
{
    struct keeper *k = ctx;
    const struct stream_extent *e = &k->t.extents[tensor];
    const uint8_t *at = data;
    uint64_t i = k->n_calls++;
    assert_in_range(i, 0, 16383);
    k->calls[i].offset = e->offset + first_row * e->row_bytes;
    k->calls[i].bytes = n_rows * e->row_bytes;
    k->calls[i].data = at >= k->memory && at < k->memory + k->bytes ? at : NULL;
    if (k->n_calls - k->n_done > k->most)
        k->most = k->n_calls - k->n_done;
    return take(&k->t, tensor, first_row, n_rows, data);
}

static int keep_wait(void *ctx, uint64_t n)
{
    struct keeper *k = ctx;
    k->t.wrong += n > k->n_calls;
    for (; k->n_done < n; k->n_done++)
        for (uint64_t i = 0; k->calls[k->n_done].data && i < k->calls[k->n_done].bytes; i++)
            k->t.wrong += k->calls[k->n_done].data[i] != byte_at(k->calls[k->n_done].offset + i);
    return k->fail_at != 0 && n >= k->fail_at ? -654321 : 0;
}

static int keep_hold(void *ctx, void *memory, size_t bytes)
{
    struct keeper *k = ctx;
    k->holds++;
    if (k->refuses)
        return k->refuses;
    k->memory = memory;
    k->bytes = bytes;
    return 0;
}

static void keep_let_go(void *ctx)
{
    struct keeper *k = ctx;
    keep_wait(k, k->n_calls);
    k->lets_go++;
    k->memory = NULL;
}

static int read_into(struct keeper *k, int fd, struct stream_options *o, struct stream_stats *ret)
{
    static struct stream_extent extents[N_EXTENTS];
    make_extents(fd, extents);
    k->t.extents = extents;
    struct stream_sink sink = {.ctx = k,
                               .rows = keep_rows,
                               .progress = NULL,
                               .hold = keep_hold,
                               .wait = keep_wait,
                               .let_go = keep_let_go};
    return stream_read(extents, N_EXTENTS, &sink, o, ret, NULL);
}

static void a_sink_that_reads_later_finds_its_data(void **state)
{
    (void)state;
    static struct keeper k;
    int fd = pattern_in_memory(FILE_BYTES);
    static const uint32_t depths[] = {1, 3, 8, 0, STREAM_DEPTH_MAX};
    for (size_t i = 0; i < sizeof depths / sizeof depths[0]; i++) {
        struct stream_options o = {.read_bytes = 65536, .depth = depths[i]};
        struct stream_stats stats;
        k = (struct keeper){0};
        assert_int_equal(read_into(&k, fd, &o, &stats), 0);
        assert_all_taken(&k.t, N_EXTENTS);
        assert_true(stats.held);
        assert_int_equal(k.n_done, k.n_calls);
        assert_int_equal(k.holds, 1);
        assert_int_equal(k.lets_go, 1);
    }
    assert_true(k.most > 1);
    close(fd);
}

static void a_sink_that_cannot_hold_reads_at_once(void **state)
{
    (void)state;
    static struct keeper k;
    struct stream_options o = {.read_bytes = 65536};
    struct stream_stats stats;
    int fd = pattern_in_memory(FILE_BYTES);
    k = (struct keeper){.refuses = -ENOMEM};
    assert_int_equal(read_into(&k, fd, &o, &stats), 0);
    assert_all_taken(&k.t, N_EXTENTS);
    assert_false(stats.held);
    assert_non_null(strstr(stats.note, "cannot read the buffers by itself: Cannot allocate"));
    assert_int_equal(k.n_done + k.lets_go, 0);

    k = (struct keeper){.fail_at = 20}; /* its device is lost */
    assert_int_equal(read_into(&k, fd, &o, &stats), -654321);
    assert_int_equal(k.t.wrong, 0);
    assert_int_equal(k.lets_go, 1);
    close(fd);
}

/* Asserts nothing: a child must not go on with the other tests. */
static bool read_in_child(int fd, enum stream_method method, struct stream_stats *ret)
{
    struct stream_extent extents[N_EXTENTS];
    uint64_t total = make_extents(fd, extents);
    struct taker t = {.extents = extents};
    struct stream_sink sink = {.ctx = &t, .rows = take};
    struct stream_options o = {.method = method};
    return stream_read(extents, N_EXTENTS, &sink, &o, ret, NULL) == 0 && t.wrong == 0 &&
           t.bytes == total;
}

/* In a child whose kernel answers io_uring_setup with EPERM, as container runtimes' filters do. */
static int without_io_uring(int fd)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {.len = 4, .filter = filter};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0)
        return 77;
    struct stream_stats stats;
    if (!read_in_child(fd, STREAM_AUTO, &stats))
        return 1;
    return !stats.uring && strstr(stats.note, "read by pread") != NULL ? 0 : 2;
}

/* In a child that may lock less memory than the buffers take. */
static int without_locked_memory(int fd)
{
    struct rlimit little = {1 << 20, 1 << 20};
    struct stream_stats stats;
    if (setrlimit(RLIMIT_MEMLOCK, &little) != 0 || (geteuid() == 0 && setuid(65534) != 0))
        return 77;
    if (!read_in_child(fd, STREAM_AUTO, &stats))
        return 1;
    return stats.registered ? 2 : 0;
}

static void in_a_child(int (*fn)(int fd))
{
    int status, fd = pattern_in_memory(FILE_BYTES);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0)
        _exit(fn(fd));
    close(fd);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == 77)
        skip();
    assert_int_equal(WEXITSTATUS(status), 0);
}

static void a_filter_leads_to_pread(void **state)
{
    (void)state;
    in_a_child(without_io_uring);
}

static void no_locked_memory_leads_to_plain_reads(void **state)
{
    (void)state;
    in_a_child(without_locked_memory);
}

static void no_extents_is_nothing(void **state)
{
    (void)state;
    struct taker t = {0};
    struct stream_sink sink = {.ctx = &t, .rows = take};
    struct stream_stats stats;
    assert_int_equal(stream_read(NULL, 0, &sink, NULL, &stats, NULL), 0);
    assert_int_equal(t.bytes + stats.bytes + stats.n_reads, 0);
}

static void a_file_that_is_too_short_is_refused_at_once(void **state)
{
    (void)state;
    int fd = pattern_in_memory(5000000);
    struct stream_extent e = {fd, "m.gguf", "output.weight", 0, 9u << 20, 512, 0};
    struct taker t = {.extents = &e};
    struct stream_sink sink = {.ctx = &t, .rows = take};
    struct report report = {0};
    assert_int_equal(stream_read(&e, 1, &sink, NULL, NULL, &report), -INFER_E_MODEL_UNREADABLE);
    assert_string_equal(report.text, "m.gguf: the file ends at byte 5000000, output.weight at byte "
                                     "9437184: it is cut short; get it again");
    assert_int_equal(t.bytes, 0);
    close(fd);
}

static void write_a_byte(void *ctx)
{
    const int *fd = ctx;
    uint8_t byte = byte_at(1);
    assert_int_equal(pwrite(*fd, &byte, 1, 1), 1);
}

static void a_file_that_changes_is_an_error(void **state)
{
    (void)state;
    for (int disk = 0; disk < 2; disk++) {
        int fd = disk ? pattern_on_disk(4u << 20) : pattern_in_memory(4u << 20);
        struct stream_extent e = {fd, "m.gguf", "w", 0, 4u << 20, 512, 0};
        struct taker t = {.extents = &e, .each = write_a_byte, .each_ctx = &fd};
        struct stream_sink sink = {.ctx = &t, .rows = take};
        struct stream_options o = {.read_bytes = 65536, .depth = 4};
        struct report report = {0};
        usleep(20000); /* the file's times tick in steps of up to 10 ms */
        assert_int_equal(stream_read(&e, 1, &sink, &o, NULL, &report), -INFER_E_MODEL_UNREADABLE);
        assert_string_equal(report.text,
                            "m.gguf: the file changed while it was read; load it again");
        assert_int_equal(t.wrong, 0);
        close(fd);
    }
}

static void only_regular_files(void **state)
{
    (void)state;
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    int others[] = {ends[0], open("/", O_RDONLY | O_CLOEXEC), open("/dev/zero", O_RDONLY)};
    for (size_t i = 0; i < 3; i++) {
        struct stream_extent e = {others[i], "m.gguf", "w", 0, 512, 512, 0};
        struct taker t = {.extents = &e};
        struct stream_sink sink = {.ctx = &t, .rows = take};
        struct report report = {0};
        assert_int_equal(stream_read(&e, 1, &sink, NULL, NULL, &report), -INFER_E_MODEL_UNREADABLE);
        assert_string_equal(report.text, "m.gguf: not a regular file");
        close(others[i]);
    }
    close(ends[1]);
    struct stream_extent closed = {ends[1], "m.gguf", "w", 0, 512, 512, 0};
    struct stream_sink sink = {.rows = take};
    struct report report = {0};
    assert_int_equal(stream_read(&closed, 1, &sink, NULL, NULL, &report),
                     -INFER_E_MODEL_UNREADABLE);
    assert_string_equal(report.text, "m.gguf: its descriptor: Bad file descriptor");
}

static void a_sink_that_fails_ends_the_stream(void **state)
{
    (void)state;
    int fd = pattern_on_disk(FILE_BYTES);
    for (size_t w = 0; w < N_WAYS; w++) {
        if (!way_open(&ways[w]))
            continue;
        struct shim h = {.no_direct = ways[w].no_direct};
        struct stream_io io = shim_io(&h);
        struct stream_options o = {
            .method = ways[w].method, .read_bytes = 65536, .depth = 4, .io = &io};
        struct stream_extent e = {fd, "m.gguf", "w", 0, FILE_BYTES, 512, 0};
        struct taker t = {.extents = &e, .fail_after = 1u << 20};
        struct stream_sink sink = {.ctx = &t, .rows = take};
        struct report report = {0};
        assert_int_equal(stream_read(&e, 1, &sink, &o, NULL, &report), -123456);
        assert_int_equal(report.code, 0);
        assert_int_equal(t.wrong, 0);
        assert_int_equal(t.bytes, 1u << 20);
        assert_in_range(h.reads, 16, 24); /* reading stopped too */
        assert_int_equal(h.mapped, h.unmapped);
        assert_int_equal(h.opened + 1, h.closed);
    }
    close(fd);
}

static void extents_that_make_no_sense(void **state)
{
    (void)state;
    const struct stream_extent bad[] = {
        {0, "m", "w", 0, 100, 0, 0},
        {0, "m", "w", 0, 100, 33, 0},
        {0, "m", "w", UINT64_MAX - 10, 100, 10, 0},
        {0, "m", "w", INT64_MAX - 10, 100, 10, 0},
        {0, "m", "w", INT64_MAX - 110, 100, 10, 0},
        {0, "m", "w", 0, (uint64_t)4 << 30, (uint64_t)2 << 30, 0},
    };
    struct taker t = {0};
    struct shim h = {0};
    struct stream_io io = shim_io(&h);
    struct stream_options o = {.io = &io};
    struct stream_sink sink = {.ctx = &t, .rows = take};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct report report = {0};
        assert_int_equal(stream_read(&bad[i], 1, &sink, &o, NULL, &report), -INFER_E_MODEL_FORMAT);
        assert_true(report.text[0] != '\0');
    }
    assert_int_equal(h.calls + h.reads, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_arrive_whole_and_in_order),
        cmocka_unit_test(the_defaults_do),
        cmocka_unit_test(a_descriptor_that_cannot_be_opened_again),
        cmocka_unit_test(buffers_are_bound_before_they_are_used),
        cmocka_unit_test(a_sink_that_reads_later_finds_its_data),
        cmocka_unit_test(a_sink_that_cannot_hold_reads_at_once),
        cmocka_unit_test(a_filter_leads_to_pread),
        cmocka_unit_test(no_locked_memory_leads_to_plain_reads),
        cmocka_unit_test(no_extents_is_nothing),
        cmocka_unit_test(a_file_that_is_too_short_is_refused_at_once),
        cmocka_unit_test(a_file_that_changes_is_an_error),
        cmocka_unit_test(only_regular_files),
        cmocka_unit_test(a_sink_that_fails_ends_the_stream),
        cmocka_unit_test(extents_that_make_no_sense),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
