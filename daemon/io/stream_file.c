/* stream_file.c: one file as the stream reads it: a description for buffered and one for direct
 * reads, what the page cache holds of it, and whether it changed.
 *
 * Descriptors come from outside, even from clients, so their flags are not touched: both
 * descriptions are opened anew through /proc/self/fd, with the daemon's own rights. Where that is
 * not allowed the descriptor is used as it is, and reads are buffered. Opening a file that a
 * process serves may take for ever; only the reading thread does it.
 *
 * What the page cache holds is told by cachestat(2), since Linux 6.5, or by mincore(2), which
 * answers "all" to those who do not own the file: it is asked only by those who do. Limits: only
 * where pages are of 4 KiB, else nothing is known and nothing dropped. */
#include "io/stream_impl.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SYS_cachestat
#define SYS_cachestat 451 /* on every architecture */
#endif

/* ---- opening --------------------------------------------------------------------------------- */

static bool same_file(const struct stat *a, const struct stat *b)
{
    return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

/* A description of its own of the same file, or a negative errno. */
static int open_again(const struct stream_file *f, const struct stream_io *io, int flags)
{
    char path[32];
    struct stat now;
    snprintf(path, sizeof path, "/proc/self/fd/%d", f->given);
    int fd = io->open(io->ctx, path, O_RDONLY | O_CLOEXEC | O_NOCTTY | flags);
    if (fd < 0)
        return fd;
    int r = io->stat(io->ctx, fd, &now);
    if (r == 0 && !same_file(&now, &f->before))
        r = -ESTALE;
    if (r == 0)
        return fd;
    io->close(io->ctx, fd);
    return r;
}

/* 0; else the file system does not take direct reads that are cut at STREAM_PAGE. */
static int direct_alignment(int fd, uint32_t *ret)
{
    *ret = STREAM_PAGE;
#ifdef STATX_DIOALIGN
    struct statx x;
    if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &x) == 0 && (x.stx_mask & STATX_DIOALIGN)) {
        uint32_t at = x.stx_dio_offset_align, memory = x.stx_dio_mem_align;
        if (at == 0 || at > STREAM_PAGE || memory > STREAM_PAGE || STREAM_PAGE % at != 0)
            return -EINVAL;
        *ret = at;
    }
#endif
    return 0;
}

static void open_direct(struct stream_file *f, const struct stream_io *io, char note[160])
{
    const char *slash = strrchr(f->path, '/');
    const char *name = slash != NULL ? slash + 1 : f->path;
    int fd = open_again(f, io, O_DIRECT);
    int r = fd < 0 ? fd : direct_alignment(fd, &f->align);
    if (r == 0) {
        f->direct = fd;
        return;
    }
    if (fd >= 0)
        io->close(io->ctx, fd);
    if (r == -EINVAL || r == -EOPNOTSUPP)
        snprintf(note, 160, "%.80s: read through the page cache, its file system has no O_DIRECT",
                 name);
    else
        snprintf(note, 160, "%.80s: read through the page cache, opening it for O_DIRECT: %s", name,
                 strerror(-r));
}

int stream_file_open(struct stream_file *f, const struct stream_io *io, char note[160])
{
    int r = io->stat(io->ctx, f->given, &f->before);
    if (r < 0)
        return r;
    if (!S_ISREG(f->before.st_mode))
        return -EISDIR;
    f->cache_known = sysconf(_SC_PAGESIZE) == STREAM_PAGE;
    f->plain = open_again(f, io, 0);
    if (f->plain < 0)
        f->plain = f->given;
    else /* reads and hints name what they want: nothing else comes into the page cache */
        posix_fadvise(f->plain, 0, 0, POSIX_FADV_RANDOM);
    open_direct(f, io, note);
    return 0;
}

void stream_file_close(struct stream_file *f, const struct stream_io *io)
{
    if (f->direct >= 0)
        io->close(io->ctx, f->direct);
    if (f->plain >= 0 && f->plain != f->given)
        io->close(io->ctx, f->plain);
    if (f->given >= 0)
        io->close(io->ctx, f->given);
    f->given = f->plain = f->direct = -1;
}

static bool same_time(struct timespec a, struct timespec b)
{
    return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec;
}

int stream_file_changed(const struct stream_file *f, const struct stream_io *io)
{
    struct stat now;
    int r = io->stat(io->ctx, f->given, &now);
    if (r < 0)
        return r;
    return !same_file(&now, &f->before) || now.st_size != f->before.st_size ||
           !same_time(now.st_mtim, f->before.st_mtim) || !same_time(now.st_ctim, f->before.st_ctim);
}

/* ---- the page cache -------------------------------------------------------------------------- */

/* Pages of a range that are cached, or a negative errno. */
static int64_t count_cached(const struct stream_file *f, uint64_t offset, uint64_t n_pages)
{
    struct {
        uint64_t offset, bytes;
    } range = {offset, n_pages * STREAM_PAGE};
    struct {
        uint64_t cached, dirty, writeback, evicted, recently_evicted;
    } told = {0};
    if (syscall(SYS_cachestat, f->plain, &range, &told, 0) != 0)
        return -errno;
    return (int64_t)(told.cached < n_pages ? told.cached : n_pages);
}

static void mark(struct stream_cached *c, uint32_t first, uint32_t n)
{
    for (uint32_t i = first; i < first + n; i++)
        c->pages[i / 8] |= (uint8_t)(1u << i % 8);
}

/* Halves a range until each part is cached whole or not at all. */
static bool mark_cached(const struct stream_file *f, uint64_t offset, struct stream_cached *c,
                        uint32_t first, uint32_t n)
{
    int64_t cached = count_cached(f, offset + (uint64_t)first * STREAM_PAGE, n);
    if (cached < 0)
        return false;
    if (cached == n)
        mark(c, first, n);
    if (cached == 0 || cached == n || n == 1)
        return true;
    return mark_cached(f, offset, c, first, n / 2) &&
           mark_cached(f, offset, c, first + n / 2, n - n / 2);
}

/* The file's pages are asked about, not touched: a mapping that lies behind its end does no harm.
 */
static bool ask_mincore(const struct stream_file *f, uint64_t offset, struct stream_cached *c)
{
    unsigned char told[STREAM_PAGES_MAX];
    size_t bytes = (size_t)c->n_pages * STREAM_PAGE;
    if (f->before.st_uid != geteuid() && geteuid() != 0)
        return false;
    void *map = mmap(NULL, bytes, PROT_READ, MAP_SHARED, f->plain, (off_t)offset);
    if (map == MAP_FAILED)
        return false;
    bool known = mincore(map, bytes, told) == 0;
    munmap(map, bytes);
    for (uint32_t i = 0; known && i < c->n_pages; i++)
        if (told[i] & 1) {
            mark(c, i, 1);
            c->n_cached++;
        }
    return known;
}

bool stream_file_cached(struct stream_file *f, uint64_t offset, uint64_t bytes,
                        struct stream_cached *ret)
{
    uint64_t size = (uint64_t)f->before.st_size;
    if (!f->cache_known || offset >= size)
        return false;
    bytes = bytes < size - offset ? bytes : size - offset;
    struct stream_cached *c = ret;
    *c = (struct stream_cached){.n_pages = (uint32_t)((bytes + STREAM_PAGE - 1) / STREAM_PAGE)};
    int64_t cached = count_cached(f, offset, c->n_pages);
    if (cached >= 0) {
        c->n_cached = (uint32_t)cached;
        f->cache_known = cached == 0 || cached == c->n_pages || f->direct >= 0 ||
                         mark_cached(f, offset, c, 0, c->n_pages);
    } else {
        f->cache_known = ask_mincore(f, offset, c);
    }
    return f->cache_known;
}

void stream_file_drop(const struct stream_file *f, uint64_t offset,
                      const struct stream_cached *before)
{
    uint32_t i = 0;
    while (i < before->n_pages) {
        uint32_t first = i;
        while (i < before->n_pages &&
               (before->n_cached == 0 || !(before->pages[i / 8] >> i % 8 & 1)))
            i++;
        if (i > first)
            posix_fadvise(f->plain, (off_t)(offset + (uint64_t)first * STREAM_PAGE),
                          (off_t)(i - first) * STREAM_PAGE, POSIX_FADV_DONTNEED);
        while (i < before->n_pages && before->n_cached > 0 && before->pages[i / 8] >> i % 8 & 1)
            i++;
    }
}

/* ---- the system ------------------------------------------------------------------------------ */

static int system_open(void *ctx, const char *path, int flags)
{
    (void)ctx;
    int fd = open(path, flags);
    return fd < 0 ? -errno : fd;
}

static int system_close(void *ctx, int fd)
{
    (void)ctx;
    return close(fd) < 0 ? -errno : 0;
}

static int system_stat(void *ctx, int fd, struct stat *ret)
{
    (void)ctx;
    return fstat(fd, ret) < 0 ? -errno : 0;
}

static void *system_map(void *ctx, size_t bytes, int flags)
{
    (void)ctx;
    void *m = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
    return m == MAP_FAILED ? NULL : m;
}

static void system_unmap(void *ctx, void *memory, size_t bytes)
{
    (void)ctx;
    munmap(memory, bytes);
}

static int system_ring(void *ctx)
{
    (void)ctx;
    return 0;
}

static int system_done(void *ctx, uint64_t offset, uint64_t bytes, int result)
{
    (void)ctx, (void)offset, (void)bytes;
    return result;
}

const struct stream_io stream_io_system = {.open = system_open,
                                           .close = system_close,
                                           .stat = system_stat,
                                           .map = system_map,
                                           .unmap = system_unmap,
                                           .ring = system_ring,
                                           .done = system_done};
