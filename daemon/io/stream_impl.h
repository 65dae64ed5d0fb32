/* stream_impl.h: what the stream's files share. Included by those and by the stream's tests alone.
 *
 *   stream.c         the caller's thread: set-up, whole rows to the sink, the deadline
 *   stream_cut.c     pure: extents to a sequence of aligned reads, and reads back to rows
 *   stream_file.c    one file: its two descriptors, what the page cache holds, did it change
 *   stream_reader.c  the reading thread, over either of
 *   stream_uring.c   a queue of reads in io_uring
 *   stream_pread.c   a queue that reads its first when it is asked
 *
 * A ring of slots lies between two threads. The reader owns those from `filled` on, the caller
 * those from `emptied` to `filled`. Both counts run freely under `mutex`. Reads end in any order;
 * `filled` moves over them in theirs. Of the caller's, those up to `handed` were given to a sink
 * that may not be done with them yet.
 *
 * The struct has two owners, the caller and the reading thread, and all that the thread needs is in
 * it (copies of the extents, descriptors of its own): a thread that the kernel does not let go of
 * can be left behind, and whoever is last frees it. */
#ifndef INFERD_IO_STREAM_IMPL_H
#define INFERD_IO_STREAM_IMPL_H

#include "io/stream.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <sys/types.h>

/* The system as the stream sees it. Every function but `done` is as the call of its name, with a
 * negative errno for failure. */
struct stream_io {
    void *ctx;
    int (*open)(void *ctx, const char *path, int flags);
    int (*close)(void *ctx, int fd);
    int (*stat)(void *ctx, int fd, struct stat *ret);
    void *(*map)(void *ctx, size_t bytes, int flags); /* anonymous; NULL */
    void (*unmap)(void *ctx, void *memory, size_t bytes);
    int (*ring)(void *ctx); /* may io_uring be used? Asked before it is set up */
    /* Every read that ended passes here: what it returned, or a negative errno. */
    int (*done)(void *ctx, uint64_t offset, uint64_t bytes, int result);
};

extern const struct stream_io stream_io_system;

#define STREAM_PAGE       4096u /* reads lie on such bounds, at least */
#define STREAM_PAGES_MAX  (STREAM_READ_BYTES_MAX / STREAM_PAGE)
#define STREAM_HUGE_BYTES ((size_t)2 << 20)

/* ---- the cut --------------------------------------------------------------------------------- */

struct stream_part {
    uint64_t offset, bytes, row_bytes;
    uint32_t tensor, file;
    char *name;
};

/* The next byte: so many bytes of this part are behind it. */
struct stream_cursor {
    size_t part;
    uint64_t at;
};

/* One aligned read: [offset, offset + bytes), of which the first `needed` matter. */
struct stream_chunk {
    uint32_t file;
    uint64_t offset, bytes, needed;
    struct stream_cursor from, to;
};

struct stream_plan {
    struct stream_part *parts;
    size_t n_parts;
    uint64_t read_bytes; /* a power of two, at least STREAM_PAGE */
};

/* The next read from *at on, which moves behind it; false: there is none. */
bool stream_cut(const struct stream_plan *p, struct stream_cursor *at, struct stream_chunk *ret);

/* Hands on the rows that a chunk completes, and keeps what it has of the next row in join, memory
 * for the longest row and 64 bytes, aligned to 64. Negative: what the sink returned. */
int stream_rows(const struct stream_plan *p, uint8_t *join, const struct stream_chunk *chunk,
                const uint8_t *data, const struct stream_sink *sink, uint64_t *done);

/* ---- files ----------------------------------------------------------------------------------- */

struct stream_file {
    char *path;
    int given;  /* a duplicate of the caller's descriptor */
    int plain;  /* for buffered reads: `given`, or a description of its own; -1 before open */
    int direct; /* with O_DIRECT, or -1 */
    uint32_t align;
    bool cache_known; /* the kernel tells what the page cache holds */
    struct stat before;
};

/* What of a chunk was in the page cache. */
struct stream_cached {
    uint32_t n_pages, n_cached;
    uint8_t pages[STREAM_PAGES_MAX / 8]; /* only when 0 < n_cached < n_pages */
};

/* Opens plain and direct. note: why not direct. Negative errno, -EISDIR for what is no file. */
int stream_file_open(struct stream_file *f, const struct stream_io *io, char note[160]);
void stream_file_close(struct stream_file *f, const struct stream_io *io);
/* Did its size, times or identity change? 1, 0 or a negative errno. */
int stream_file_changed(const struct stream_file *f, const struct stream_io *io);
/* False: not known. */
bool stream_file_cached(struct stream_file *f, uint64_t offset, uint64_t bytes,
                        struct stream_cached *ret);
/* Drops from the page cache what was not in it before. */
void stream_file_drop(const struct stream_file *f, uint64_t offset,
                      const struct stream_cached *before);

/* ---- the stream ------------------------------------------------------------------------------ */

struct stream;

enum stream_slot_state { STREAM_FREE, STREAM_BUSY, STREAM_FULL, STREAM_FAILED };

struct stream_slot {
    uint8_t *data;
    struct stream_chunk chunk;
    enum stream_slot_state state; /* the reader's */
    uint64_t got;
    uint32_t tries; /* failures since the last byte came */
    int error;      /* FAILED: negative errno; 0: the file ends too early */
    bool direct, drop;
    struct stream_cached cached; /* when drop */
    uint64_t n_calls; /* of rows(), up to the last that was about this slot; the caller's */
};

/* How reads are made. start() takes a slot; reap() begins what was started and returns 1 with one
 * that ended, 0 when none did for a while, or a negative errno: the queue itself is broken. */
struct stream_queue {
    void (*start)(struct stream *s, uint32_t slot);
    int (*reap)(struct stream *s, uint32_t *ret_slot, int *ret_result);
    /* What was started should end soon, as it likes. Returns how many need not be reaped. */
    uint32_t (*cancel)(struct stream *s);
    void (*done)(struct stream *s);
};

struct stream {
    struct stream_plan plan;
    struct stream_file *files;
    uint32_t n_files;
    const struct stream_io *io;
    enum stream_method method;
    uint64_t total_bytes;
    uint8_t *memory; /* the slots' */
    size_t memory_bytes;
    uint8_t *buffers; /* within memory, aligned */
    struct stream_slot *slots;
    uint32_t n_slots;
    uint8_t *join;   /* the caller's */
    uint64_t handed; /* the caller's, and so is held: the sink keeps data for later */
    bool held;
    struct stream_cursor next; /* the reader's */
    const struct stream_queue *queue;
    void *queue_state;
    bool keep_memory; /* reads may be under way that nobody hears of: the memory stays */

    pthread_mutex_t mutex;
    pthread_cond_t changed;
    uint64_t filled, emptied;
    uint64_t beat; /* counts signs of life */
    bool cancelled, ended;
    uint32_t n_owners;
    int result; /* the reader's, once ended */
    struct report report;
    struct stream_stats stats;
};

/* Negative errno: not to be had. */
int stream_uring_init(struct stream *s, bool *ret_registered);
int stream_pread_init(struct stream *s);
/* Where a slot's read goes on. */
int stream_slot_fd(const struct stream *s, const struct stream_slot *slot);

void *stream_reader_main(void *stream);
void stream_unref(struct stream *s);

#endif
