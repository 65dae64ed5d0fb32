/* stream.c: see stream.h.
 *
 * A ring of N_BUFFERS buffers between two threads. The reader fills them in order and owns those
 * from `filled` on; the sink's thread owns those from `emptied` to `filled`. Both counts run freely
 * under one mutex. A buffer holds up to PIECES pieces, each whole rows of one extent, so that many
 * small tensors cost one hand-over together.
 *
 * Invariants: emptied <= filled <= emptied + N_BUFFERS. The reader ends when it has read all, has
 * failed or sees `cancelled`; an error of its own is told only after the sink took everything that
 * was read before it.
 *
 * Limits: buffers of 2 MiB, or of one row where that is longer, at most ROW_BYTES_MAX. */
#include "io/stream.h"

#include "base/checked.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define N_BUFFERS     4
#define PIECES        64
#define BUFFER_BYTES  ((uint64_t)2 << 20)
#define ROW_BYTES_MAX ((uint64_t)1 << 30)
#define ALIGNMENT     64u

struct piece {
    const struct stream_extent *extent;
    uint64_t first_row, n_rows;
    uint64_t at; /* in the buffer */
};

struct buffer {
    uint8_t *data;
    size_t n_pieces;
    struct piece pieces[PIECES];
};

struct stream {
    const struct stream_extent *extents;
    size_t n_extents;
    uint64_t buffer_bytes, total_bytes;
    uint8_t *memory;
    struct buffer buffers[N_BUFFERS];
    /* the reader's position */
    size_t extent;
    uint64_t row;
    /* shared */
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    uint64_t filled, emptied;
    bool cancelled, ended;
    int result; /* the reader's, once ended */
    struct report report;
};

/* ---- the reader's thread --------------------------------------------------------------------- */

static int read_failed(struct stream *s, const struct stream_extent *e, uint64_t offset, int error)
{
    return report_fail(&s->report, INFER_E_MODEL_UNREADABLE, "%s: reading at byte %" PRIu64 ": %s",
                       e->path, offset, strerror(error));
}

static int read_exactly(struct stream *s, const struct stream_extent *e, uint64_t offset,
                        uint64_t bytes, uint8_t *to)
{
    while (bytes > 0) {
        ssize_t n = pread(e->fd, to, bytes, (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return read_failed(s, e, offset, errno);
        if (n == 0)
            return report_fail(&s->report, INFER_E_MODEL_UNREADABLE,
                               "%s: the file ends at byte %" PRIu64 ", %" PRIu64
                               " more were expected; it changed while it was read",
                               e->path, offset, bytes);
        to += n;
        offset += (uint64_t)n;
        bytes -= (uint64_t)n;
    }
    return 0;
}

/* The next rows of the current extent that fit into [at, end of buffer); 0 rows: none fit. */
static struct piece next_piece(const struct stream *s, uint64_t at)
{
    const struct stream_extent *e = &s->extents[s->extent];
    uint64_t rows = e->bytes / e->row_bytes - s->row;
    uint64_t room = (s->buffer_bytes - at) / e->row_bytes;
    return (struct piece){
        .extent = e, .first_row = s->row, .n_rows = rows < room ? rows : room, .at = at};
}

/* Fills b with as many pieces as it takes; b->n_pieces == 0: everything was read. */
static int fill(struct stream *s, struct buffer *b)
{
    uint64_t at = 0;
    b->n_pieces = 0;
    while (s->extent < s->n_extents && b->n_pieces < PIECES && at < s->buffer_bytes) {
        const struct stream_extent *e = &s->extents[s->extent];
        if (s->row == e->bytes / e->row_bytes) {
            s->extent++;
            s->row = 0;
            continue;
        }
        struct piece p = next_piece(s, at);
        if (p.n_rows == 0)
            break;
        int r = read_exactly(s, e, e->offset + p.first_row * e->row_bytes, p.n_rows * e->row_bytes,
                             b->data + at);
        if (r < 0)
            return r;
        b->pieces[b->n_pieces++] = p;
        s->row += p.n_rows;
        at += p.n_rows * e->row_bytes;
        at = (at + ALIGNMENT - 1) & ~(uint64_t)(ALIGNMENT - 1);
    }
    return 0;
}

/* NULL: cancelled. */
static struct buffer *wait_for_empty(struct stream *s)
{
    pthread_mutex_lock(&s->mutex);
    while (!s->cancelled && s->filled - s->emptied == N_BUFFERS)
        pthread_cond_wait(&s->changed, &s->mutex);
    struct buffer *b = s->cancelled ? NULL : &s->buffers[s->filled % N_BUFFERS];
    pthread_mutex_unlock(&s->mutex);
    return b;
}

static void *reader_main(void *ctx)
{
    struct stream *s = ctx;
    struct buffer *b;
    int r = 0;
    bool more = true;
    while (more && (b = wait_for_empty(s)) != NULL) {
        r = fill(s, b);
        more = r >= 0 && b->n_pieces > 0;
        pthread_mutex_lock(&s->mutex);
        if (b->n_pieces > 0)
            s->filled++;
        pthread_cond_signal(&s->changed);
        pthread_mutex_unlock(&s->mutex);
    }
    pthread_mutex_lock(&s->mutex);
    s->ended = true;
    s->result = r;
    pthread_cond_signal(&s->changed);
    pthread_mutex_unlock(&s->mutex);
    return NULL;
}

/* The reader has no business with the process's signals. */
static int reader_start(struct stream *s, pthread_t *ret)
{
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int r = pthread_create(ret, NULL, reader_main, s);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return -r;
}

/* ---- the caller's thread --------------------------------------------------------------------- */

/* NULL: the reader ended and all that it read was taken. */
static const struct buffer *wait_for_filled(struct stream *s)
{
    pthread_mutex_lock(&s->mutex);
    while (!s->ended && s->filled == s->emptied)
        pthread_cond_wait(&s->changed, &s->mutex);
    const struct buffer *b = NULL;
    if (s->filled != s->emptied)
        b = &s->buffers[s->emptied % N_BUFFERS];
    pthread_mutex_unlock(&s->mutex);
    return b;
}

static void give_back(struct stream *s, bool cancel)
{
    pthread_mutex_lock(&s->mutex);
    s->emptied++;
    s->cancelled = cancel;
    pthread_cond_signal(&s->changed);
    pthread_mutex_unlock(&s->mutex);
}

static int drain(struct stream *s, const struct stream_sink *sink)
{
    const struct buffer *b;
    uint64_t done = 0;
    int r = 0;
    while (r >= 0 && (b = wait_for_filled(s)) != NULL) {
        for (size_t i = 0; i < b->n_pieces && r >= 0; i++) {
            const struct piece *p = &b->pieces[i];
            r = sink->rows(sink->ctx, p->extent->tensor, p->first_row, p->n_rows, b->data + p->at);
            done += p->n_rows * p->extent->row_bytes;
        }
        if (r >= 0 && sink->progress != NULL)
            sink->progress(sink->ctx, done, s->total_bytes);
        give_back(s, r < 0);
    }
    return r < 0 ? r : 0;
}

/* ---- set-up ---------------------------------------------------------------------------------- */

static int measure(struct stream *s, struct report *report)
{
    s->buffer_bytes = BUFFER_BYTES;
    for (size_t i = 0; i < s->n_extents; i++) {
        const struct stream_extent *e = &s->extents[i];
        uint64_t end;
        if (e->row_bytes == 0 || e->bytes % e->row_bytes != 0 ||
            checked_add(e->offset, e->bytes, &end) || end > INT64_MAX ||
            checked_add(s->total_bytes, e->bytes, &s->total_bytes))
            return report_fail(report, INFER_E_MODEL_FORMAT,
                               "%s: an extent of %" PRIu64 " bytes at byte %" PRIu64
                               " does not hold whole rows of %" PRIu64 " bytes",
                               e->path, e->bytes, e->offset, e->row_bytes);
        if (e->row_bytes > ROW_BYTES_MAX)
            return report_fail(report, INFER_E_MODEL_FORMAT,
                               "%s: a row of %" PRIu64 " bytes; at most %" PRIu64 " are supported",
                               e->path, e->row_bytes, ROW_BYTES_MAX);
        if (e->row_bytes > s->buffer_bytes)
            s->buffer_bytes = e->row_bytes;
        if (i == 0 || e->fd != s->extents[i - 1].fd)
            posix_fadvise(e->fd, 0, 0, POSIX_FADV_SEQUENTIAL); /* a hint: read ahead further */
    }
    return checked_align(s->buffer_bytes, BUFFER_BYTES, &s->buffer_bytes) ? -EOVERFLOW : 0;
}

static int take_buffers(struct stream *s, struct report *report)
{
    size_t bytes = s->buffer_bytes * N_BUFFERS + BUFFER_BYTES;
    uint8_t *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return report_fail(report, INFER_E_OUT_OF_MEMORY, "no memory for %zu bytes of read buffers",
                           bytes);
    madvise(memory, bytes, MADV_HUGEPAGE); /* a hint */
    uintptr_t aligned = ((uintptr_t)memory + BUFFER_BYTES - 1) & ~(uintptr_t)(BUFFER_BYTES - 1);
    for (size_t i = 0; i < N_BUFFERS; i++)
        s->buffers[i].data = memory + (aligned - (uintptr_t)memory) + i * s->buffer_bytes;
    s->memory = memory;
    return 0;
}

static int run(struct stream *s, const struct stream_sink *sink, struct report *report)
{
    pthread_t reader;
    int r = reader_start(s, &reader);
    if (r < 0)
        return report_fail(report, INFER_E_OUT_OF_MEMORY, "cannot start a thread to read with: %s",
                           strerror(-r));
    r = drain(s, sink);
    pthread_join(reader, NULL);
    if (r < 0)
        return r;
    if (s->result < 0 && report != NULL)
        *report = s->report;
    return s->result;
}

int stream_read(const struct stream_extent *extents, size_t n, const struct stream_sink *sink,
                struct report *report)
{
    struct stream s = {.extents = extents, .n_extents = n};
    int r = measure(&s, report);
    if (r < 0)
        return r;
    r = take_buffers(&s, report);
    if (r < 0)
        return r;
    pthread_mutex_init(&s.mutex, NULL);
    pthread_cond_init(&s.changed, NULL);
    r = run(&s, sink, report);
    pthread_cond_destroy(&s.changed);
    pthread_mutex_destroy(&s.mutex);
    munmap(s.memory, s.buffer_bytes * N_BUFFERS + BUFFER_BYTES);
    return r;
}
