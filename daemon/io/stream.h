/* stream.h: reads extents of model files in large pieces and hands them on in whole rows.
 *
 * A thread of its own reads ahead into a few buffers while the caller's thread runs the sink, so
 * that reading and the backend's repacking overlap. Files are read, never mapped: a file that
 * shrinks or a disk that fails is an error here and not a signal.
 *
 * Threads: stream_read() may run in several threads at once; sink functions are called by the
 * thread that called it. */
#ifndef INFERD_IO_STREAM_H
#define INFERD_IO_STREAM_H

#include "base/report.h"

#include <stddef.h>
#include <stdint.h>

/* bytes is a multiple of row_bytes, which is not 0. */
struct stream_extent {
    int fd;
    const char *path; /* for messages */
    uint64_t offset, bytes, row_bytes;
    uint32_t tensor;
};

struct stream_sink {
    void *ctx;
    /* Whole rows of one extent, in ascending order, each once; data is aligned to 64 bytes and
     * valid during the call. A negative value ends the stream. */
    int (*rows)(void *ctx, uint32_t tensor, uint64_t first_row, uint64_t n_rows, const void *data);
    /* May be NULL. After each piece that the sink took; done == total at the end. */
    void (*progress)(void *ctx, uint64_t done_bytes, uint64_t total_bytes);
};

/* Extents in the order given. 0; what the sink returned, the report untouched; or
 * -INFER_E_MODEL_UNREADABLE, -INFER_E_MODEL_FORMAT, -INFER_E_OUT_OF_MEMORY with a sentence. */
int stream_read(const struct stream_extent *extents, size_t n, const struct stream_sink *sink,
                struct report *report);

#endif
