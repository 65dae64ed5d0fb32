/* stream_fixture.h: what the stream's tests share: a file whose bytes are known, a sink that checks
 * every row, and a system whose calls fail on demand and are counted. */
#ifndef INFERD_TESTS_STREAM_FIXTURE_H
#define INFERD_TESTS_STREAM_FIXTURE_H

#include "io/stream_impl.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

/* ---- a file whose byte i is a function of i -------------------------------------------------- */

static inline uint8_t byte_at(uint64_t i)
{
    return (uint8_t)((i * 2654435761u) >> 13);
}

static inline void write_pattern(int fd, size_t bytes)
{
    uint8_t *data = malloc(bytes);
    assert_non_null(data);
    for (size_t i = 0; i < bytes; i++)
        data[i] = byte_at(i);
    for (size_t done = 0; done < bytes;) {
        ssize_t n = write(fd, data + done, bytes - done);
        assert_true(n > 0);
        done += (size_t)n;
    }
    free(data);
}

/* In the folder for temporary files, already without a name; written out and not in the cache. */
static inline int pattern_on_disk(size_t bytes)
{
    const char *folder = getenv("TMPDIR");
    char path[256];
    snprintf(path, sizeof path, "%s/inferd-stream.XXXXXX", folder != NULL ? folder : "/tmp");
    int fd = mkostemp(path, O_CLOEXEC);
    assert_true(fd >= 0);
    unlink(path);
    write_pattern(fd, bytes);
    fsync(fd);
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    return fd;
}

static inline int pattern_in_memory(size_t bytes)
{
    int fd = memfd_create("model", MFD_CLOEXEC);
    assert_true(fd >= 0);
    write_pattern(fd, bytes);
    return fd;
}

/* ---- a sink ---------------------------------------------------------------------------------- */

#define TENSORS_MAX 256

struct taker {
    const struct stream_extent *extents; /* in the order in which they are read, tensor == index */
    uint64_t next_row[TENSORS_MAX];
    uint32_t last_tensor;
    uint64_t bytes, progress, total;
    int wrong;
    uint64_t fail_after; /* bytes; 0: never */
    void (*each)(void *ctx);
    void *each_ctx;
};

static inline int take(void *ctx, uint32_t tensor, uint64_t first_row, uint64_t n_rows,
                       const void *data)
{
    struct taker *t = ctx;
    const struct stream_extent *e = &t->extents[tensor];
    const uint8_t *bytes = data;
    uint64_t offset = e->offset + first_row * e->row_bytes;
    if (tensor < t->last_tensor || first_row != t->next_row[tensor] || n_rows == 0 ||
        (uintptr_t)data % 64 != offset % 64)
        t->wrong++;
    for (uint64_t i = 0; i < n_rows * e->row_bytes; i++)
        t->wrong += bytes[i] != byte_at(offset + i);
    t->last_tensor = tensor;
    t->next_row[tensor] += n_rows;
    t->bytes += n_rows * e->row_bytes;
    if (t->each != NULL)
        t->each(t->each_ctx);
    return t->fail_after != 0 && t->bytes >= t->fail_after ? -123456 : 0;
}

static inline void note_progress(void *ctx, uint64_t done, uint64_t total)
{
    struct taker *t = ctx;
    t->wrong += done < t->progress || done > total;
    t->progress = done;
    t->total = total;
}

/* Asserts that every row came, and came right. */
static inline void assert_all_taken(const struct taker *t, size_t n)
{
    assert_int_equal(t->wrong, 0);
    uint64_t total = 0;
    for (size_t i = 0; i < n; i++) {
        assert_int_equal(t->next_row[i], t->extents[i].bytes / t->extents[i].row_bytes);
        total += t->extents[i].bytes;
    }
    assert_int_equal(t->bytes, total);
}

/* ---- a system that fails --------------------------------------------------------------------- */

struct shim {
    bool no_direct, no_open, no_ring, no_map;
    /* The call that is the fail_call-th (from 1) of open, stat, map and ring fails with this. */
    int fail_call, call_error;
    /* The read at this place ends so, this many times. INT_MIN: it comes short, by all but
     * short_bytes. */
    uint64_t read_offset;
    int read_times, read_result;
    uint64_t short_bytes; /* 0: never; else every read comes short so, of read_times == -1 */
    int interrupt_every;  /* this many-th read ends with EINTR and EAGAIN, in turns; 0: never */
    int delay_us;         /* of each read */
    atomic_bool hold;     /* reads do not end while this is set */
    atomic_int held;      /* how many are held */
    int truncate_fd, truncate_at_read; /* that many-th read truncates the file to nothing */
    /* counted */
    atomic_int calls, opened, closed, mapped, unmapped, reads, direct_opens;
    uint64_t offsets[4096]; /* of the reads, by one thread */
};

static inline bool shim_fails(struct shim *h)
{
    return atomic_fetch_add(&h->calls, 1) + 1 == h->fail_call;
}

static inline int shim_open(void *ctx, const char *path, int flags)
{
    struct shim *h = ctx;
    if (shim_fails(h))
        return h->call_error;
    if (h->no_open)
        return -EACCES;
    if ((flags & O_DIRECT) && h->no_direct)
        return -EINVAL;
    int fd = stream_io_system.open(NULL, path, flags);
    h->opened += fd >= 0;
    h->direct_opens += fd >= 0 && (flags & O_DIRECT);
    return fd;
}

static inline int shim_close(void *ctx, int fd)
{
    ((struct shim *)ctx)->closed++;
    return stream_io_system.close(NULL, fd);
}

static inline int shim_stat(void *ctx, int fd, struct stat *ret)
{
    struct shim *h = ctx;
    return shim_fails(h) ? h->call_error : stream_io_system.stat(NULL, fd, ret);
}

static inline void *shim_map(void *ctx, size_t bytes, int flags)
{
    struct shim *h = ctx;
    if (shim_fails(h) || h->no_map)
        return NULL;
    void *m = stream_io_system.map(NULL, bytes, flags);
    h->mapped += m != NULL;
    return m;
}

static inline void shim_unmap(void *ctx, void *memory, size_t bytes)
{
    ((struct shim *)ctx)->unmapped++;
    stream_io_system.unmap(NULL, memory, bytes);
}

static inline int shim_ring(void *ctx)
{
    struct shim *h = ctx;
    return shim_fails(h) ? h->call_error : h->no_ring ? -EPERM : 0;
}

static inline int shim_done(void *ctx, uint64_t offset, uint64_t bytes, int result)
{
    struct shim *h = ctx;
    int n = h->reads++;
    if (n < (int)(sizeof h->offsets / sizeof h->offsets[0]))
        h->offsets[n] = offset;
    if (h->delay_us > 0)
        usleep((useconds_t)h->delay_us);
    if (h->hold)
        h->held++;
    while (h->hold)
        usleep(1000);
    if (h->truncate_at_read != 0 && n + 1 == h->truncate_at_read)
        assert_int_equal(ftruncate(h->truncate_fd, 0), 0);
    if (h->interrupt_every != 0 && n % h->interrupt_every == 0)
        return n % 2 == 0 ? -EINTR : -EAGAIN;
    if (h->short_bytes != 0 && h->read_times == -1 && result > (int)h->short_bytes)
        return (int)h->short_bytes;
    if (h->read_times > 0 && offset == h->read_offset) {
        h->read_times--;
        if (h->short_bytes == 0)
            return h->read_result;
        return result > (int)h->short_bytes ? (int)h->short_bytes : result;
    }
    return result;
}

static inline struct stream_io shim_io(struct shim *h)
{
    return (struct stream_io){h,        shim_open,  shim_close, shim_stat,
                              shim_map, shim_unmap, shim_ring,  shim_done};
}

static inline int count_descriptors(void)
{
    int n = 0;
    DIR *d = opendir("/proc/self/fd");
    assert_non_null(d);
    while (readdir(d) != NULL)
        n++;
    closedir(d);
    return n;
}

/* ---- the ways a stream can go ---------------------------------------------------------------- */

struct way {
    const char *name;
    enum stream_method method;
    bool no_direct;
};

static const struct way ways[] = {
    {"io_uring, direct", STREAM_URING, false},
    {"io_uring, buffered", STREAM_URING, true},
    {"pread, direct", STREAM_PREAD, false},
    {"pread, buffered", STREAM_PREAD, true},
};
#define N_WAYS (sizeof ways / sizeof ways[0])

/* A kernel or a filter may forbid io_uring; then its ways are left out. */
static inline bool have_uring(void)
{
    static int known = -1;
    if (known < 0) {
        int fd = pattern_in_memory(4096);
        struct stream_extent e = {fd, "x", "x", 0, 4096, 4096, 0};
        struct taker t = {.extents = &e};
        struct stream_sink sink = {.ctx = &t, .rows = take};
        struct stream_options o = {.method = STREAM_URING};
        known = stream_read(&e, 1, &sink, &o, NULL, NULL) == 0;
        close(fd);
        if (!known)
            print_message("io_uring cannot be had here: its ways are left out\n");
    }
    return known == 1;
}

static inline bool way_open(const struct way *w)
{
    return w->method != STREAM_URING || have_uring();
}

#endif
