/* stream.h: reads extents of model files in large pieces and hands them on in whole rows.
 *
 * A thread of its own keeps a deep queue of large reads under way, past the page cache where the
 * file system allows it, while the caller's thread runs the sink on what has come, in order: so the
 * disk and the backend's repacking overlap. Files are read, never mapped: a file that shrinks or a
 * disk that fails is an error here and not a signal.
 *
 * Which way a piece comes, first that is possible:
 *   buffered  what the page cache holds already: copying is faster than any disk
 *   direct    O_DIRECT into buffers that are registered with the kernel, on huge pages
 *   buffered  where the file system has no O_DIRECT; stats.note says so
 * Either through io_uring, or, where the kernel or a filter forbids that, by pread().
 *
 * The page cache is left as it was found: what a buffered read brought in is dropped again, what
 * was there before stays. Where the kernel does not tell what was there, nothing is dropped.
 *
 * Threads: stream_read() may run in several threads at once; sink functions are called by the
 * thread that called it. When a read never ends (a file that a process serves which has stopped),
 * the call ends after stall_ms and leaves its reading thread, buffers and own descriptors behind
 * until the kernel lets go of them. */
#ifndef INFERD_IO_STREAM_H
#define INFERD_IO_STREAM_H

#include "base/report.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* bytes is a multiple of row_bytes, which is not 0. fd is of a regular file; its offset and flags
 * are not used or changed. */
struct stream_extent {
    int fd;
    const char *path, *name; /* for messages: of the file, and of the tensor or NULL */
    uint64_t offset, bytes, row_bytes;
    uint32_t tensor;
};

struct stream_sink {
    void *ctx;
    /* Whole rows of one extent, in ascending order, each once. data is valid during the call, or
     * longer, see hold(); its address is congruent to the rows' place in the file modulo 64. A
     * negative value ends the stream. */
    int (*rows)(void *ctx, uint32_t tensor, uint64_t first_row, uint64_t n_rows, const void *data);
    /* May be NULL. After each piece that the sink took; done == total at the end. */
    void (*progress)(void *ctx, uint64_t done_bytes, uint64_t total_bytes);
    /* All three or NULL: of a sink that is not done with data when rows() returns, such as a device
     * that copies by itself. After hold(), data within [memory, memory + bytes) stays valid until
     * wait(n), which returns once the sink is done with what the first n calls of rows() gave, or
     * let_go(), once it is done with all; data elsewhere is as ever. let_go() comes whenever hold()
     * was not negative. A negative hold() is a note; a negative wait() ends the stream. */
    int (*hold)(void *ctx, void *memory, size_t bytes);
    int (*wait)(void *ctx, uint64_t n);
    void (*let_go)(void *ctx);
};

enum stream_method { STREAM_AUTO, STREAM_URING, STREAM_PREAD };

#define STREAM_READ_BYTES_MIN 4096u
#define STREAM_READ_BYTES_MAX (4u << 20)
#define STREAM_DEPTH_MAX      64u

struct stream_io;

/* All zero: the defaults. */
struct stream_options {
    enum stream_method method; /* AUTO: io_uring, or pread() where that cannot be had */
    uint32_t read_bytes;       /* of one read: a power of two within the bounds above; 0: 2 MiB */
    uint32_t depth;            /* reads under way at once, at most STREAM_DEPTH_MAX; 0: 16 */
    uint32_t stall_ms;         /* UNREADABLE when no byte comes for so long; 0: 30 s */
    bool huge_pages;           /* buffers on huge pages that were set aside; else by advice */
    /* Places the buffers before they are touched; NULL: they are the calling thread's, by first
     * touch. A failure is a note, not an error. */
    int (*bind)(void *ctx, void *memory, size_t bytes, int node);
    void *bind_ctx;
    int node;
    const struct stream_io *io; /* the system's calls, which tests replace; NULL: the system's */
};

struct stream_stats {
    uint64_t bytes;                        /* handed to the sink */
    uint64_t direct_bytes, buffered_bytes; /* read, with gaps and alignment */
    uint64_t bytes_per_s;                  /* bytes over took_us */
    uint64_t took_us, sink_us, wait_us;    /* in all; in the sink; waiting for bytes */
    uint64_t n_reads, n_retries;           /* retries: short, interrupted and failed reads */
    uint32_t n_files, n_files_direct;
    bool uring, registered, huge_pages; /* huge_pages: those set aside, not by advice */
    bool held;                          /* the sink took data later than rows() returned */
    char note[160];                     /* "", or why a slower way was taken */
};

/* Extents in the order given. 0; what the sink returned, the report untouched; or
 * -INFER_E_MODEL_UNREADABLE, -INFER_E_MODEL_FORMAT, -INFER_E_OUT_OF_MEMORY with a sentence, after
 * the sink took all rows before the place that the sentence names. A file whose size or times
 * change meanwhile is UNREADABLE at the end. options, ret_stats and report may be NULL; the stats
 * are also filled on failure. */
int stream_read(const struct stream_extent *extents, size_t n, const struct stream_sink *sink,
                const struct stream_options *options, struct stream_stats *ret_stats,
                struct report *report);

#endif
