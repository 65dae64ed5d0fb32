/* stream.c: see stream.h; stream_impl.h says how the work is cut.
 *
 * Here: what the caller's thread does. It checks the extents, takes the buffers (so that they lie
 * in its own node's memory), starts the reading thread, runs the sink over the slots in order, and
 * watches that something comes. A sink that holds on to data keeps up to a quarter of the slots,
 * and gives all of them back before this thread waits for the disk.
 *
 * Invariant: the caller waits for nothing but its own sink without a deadline, so no disk and no
 * file system can hold it: at the worst the reading thread is left behind with what it owns.
 *
 * Limits: a row of at most ROW_BYTES_MAX; STREAM_DEPTH_MAX reads of STREAM_READ_BYTES_MAX. */
#include "io/stream_impl.h"

#include "base/checked.h"
#include "base/clock.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define READ_BYTES    (2u << 20)
#define DEPTH         16u
#define STALL_MS      30000u
#define GRACE_US      2000000u /* that a reader which gave no sign of life gets to end */
#define ROW_BYTES_MAX ((uint64_t)1 << 30)
#define HELD_SHARE    4u /* of the slots: the sink holds at most one part in so many */

/* ---- life ------------------------------------------------------------------------------------ */

static void stream_free(struct stream *s)
{
    for (uint32_t i = 0; i < s->n_files; i++) {
        stream_file_close(&s->files[i], s->io);
        free(s->files[i].path);
    }
    for (size_t i = 0; s->plan.parts != NULL && i < s->plan.n_parts; i++)
        free(s->plan.parts[i].name);
    if (s->memory != NULL && !s->keep_memory)
        s->io->unmap(s->io->ctx, s->memory, s->memory_bytes);
    pthread_cond_destroy(&s->changed);
    pthread_mutex_destroy(&s->mutex);
    free(s->files);
    free(s->plan.parts);
    free(s->slots);
    free(s->join);
    free(s);
}

void stream_unref(struct stream *s)
{
    pthread_mutex_lock(&s->mutex);
    bool last = --s->n_owners == 0;
    pthread_mutex_unlock(&s->mutex);
    if (last)
        stream_free(s);
}

static struct stream *stream_new(const struct stream_options *o)
{
    struct stream *s = calloc(1, sizeof *s);
    pthread_condattr_t monotonic;
    if (s == NULL)
        return NULL;
    pthread_mutex_init(&s->mutex, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&s->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    s->n_owners = 1;
    s->io = o->io != NULL ? o->io : &stream_io_system;
    s->method = o->method;
    s->plan.read_bytes = o->read_bytes != 0 ? o->read_bytes : READ_BYTES;
    return s;
}

/* ---- the extents ----------------------------------------------------------------------------- */

static int no_memory(struct report *report)
{
    return report_fail(report, INFER_E_OUT_OF_MEMORY, "no memory for the list of what to read");
}

static int check_extent(const struct stream_extent *e, uint64_t *total, struct report *report)
{
    uint64_t end;
    if (e->row_bytes == 0 || e->bytes % e->row_bytes != 0 ||
        checked_add(e->offset, e->bytes, &end) || end > INT64_MAX - STREAM_READ_BYTES_MAX ||
        checked_add(*total, e->bytes, total))
        return report_fail(report, INFER_E_MODEL_FORMAT,
                           "%s: an extent of %" PRIu64 " bytes at byte %" PRIu64
                           " does not hold whole rows of %" PRIu64 " bytes",
                           e->path, e->bytes, e->offset, e->row_bytes);
    if (e->row_bytes > ROW_BYTES_MAX)
        return report_fail(report, INFER_E_MODEL_FORMAT,
                           "%s: a row of %" PRIu64 " bytes; at most %" PRIu64 " are supported",
                           e->path, e->row_bytes, ROW_BYTES_MAX);
    return 0;
}

/* The file of a descriptor, which is the last one's most of the time. */
static int add_file(struct stream *s, const struct stream_extent *extents, size_t i,
                    const size_t *first_use, uint32_t *ret, struct report *report)
{
    for (uint32_t f = s->n_files; f-- > 0;)
        if (extents[first_use[f]].fd == extents[i].fd) {
            *ret = f;
            return 0;
        }
    struct stream_file file = {.plain = -1, .direct = -1};
    file.given = fcntl(extents[i].fd, F_DUPFD_CLOEXEC, 3);
    if (file.given < 0)
        return report_fail(report, INFER_E_MODEL_UNREADABLE, "%s: its descriptor: %s",
                           extents[i].path, strerror(errno));
    file.path = strdup(extents[i].path);
    *ret = s->n_files;
    s->files[s->n_files++] = file;
    return file.path != NULL ? 0 : no_memory(report);
}

static int copy_extents(struct stream *s, const struct stream_extent *extents, size_t n,
                        struct report *report)
{
    uint64_t row_max = 0;
    int r = 0;
    for (size_t i = 0; i < n && r == 0; i++) {
        r = check_extent(&extents[i], &s->total_bytes, report);
        row_max = extents[i].row_bytes > row_max ? extents[i].row_bytes : row_max;
    }
    if (r < 0)
        return r;
    size_t *first_use = calloc(n + 1, sizeof *first_use);
    s->files = calloc(n + 1, sizeof *s->files);
    s->plan.parts = calloc(n + 1, sizeof *s->plan.parts);
    s->join = aligned_alloc(64, (row_max + 127) & ~(uint64_t)63);
    if (first_use == NULL || s->files == NULL || s->plan.parts == NULL || s->join == NULL)
        r = no_memory(report);
    for (size_t i = 0; i < n && r == 0; i++) {
        const struct stream_extent *e = &extents[i];
        struct stream_part *p = &s->plan.parts[s->plan.n_parts++];
        *p = (struct stream_part){e->offset, e->bytes, e->row_bytes, e->tensor, 0, NULL};
        p->name = strdup(e->name != NULL ? e->name : "a tensor");
        first_use[s->n_files] = i;
        r = p->name == NULL ? no_memory(report)
                            : add_file(s, extents, i, first_use, &p->file, report);
    }
    free(first_use);
    s->stats.n_files = s->n_files;
    return r;
}

/* ---- the buffers ----------------------------------------------------------------------------- */

/* As many as there are reads, at most depth. */
static int take_slots(struct stream *s, uint32_t depth, struct report *report)
{
    struct stream_cursor at = {0};
    struct stream_chunk chunk;
    while (s->n_slots < depth && stream_cut(&s->plan, &at, &chunk))
        s->n_slots++;
    s->slots = calloc(s->n_slots + 1u, sizeof *s->slots);
    return s->slots != NULL ? 0 : no_memory(report);
}

/* Page by page, by this thread: where memory is taken on first touch, it is this node's. */
static void touch(uint8_t *memory, size_t bytes)
{
    if (madvise(memory, bytes, MADV_POPULATE_WRITE) == 0)
        return;
    for (size_t i = 0; i < bytes; i += STREAM_PAGE)
        ((volatile uint8_t *)memory)[i] = 0;
}

static int take_buffers(struct stream *s, const struct stream_options *o, struct report *report)
{
    size_t bytes = s->n_slots * s->plan.read_bytes;
    size_t huge = (bytes + STREAM_HUGE_BYTES - 1) & ~(STREAM_HUGE_BYTES - 1);
    if (o->huge_pages) {
        s->memory_bytes = huge;
        s->memory = s->io->map(s->io->ctx, huge, MAP_HUGETLB);
        s->stats.huge_pages = s->memory != NULL;
        if (s->memory == NULL)
            snprintf(s->stats.note, sizeof s->stats.note,
                     "no huge pages are set aside for the read buffers; see vm.nr_hugepages");
    }
    if (s->memory == NULL) {
        s->memory_bytes = bytes < STREAM_HUGE_BYTES ? bytes : huge + STREAM_HUGE_BYTES;
        s->memory = s->io->map(s->io->ctx, s->memory_bytes, 0);
    }
    if (s->memory == NULL)
        return report_fail(report, INFER_E_OUT_OF_MEMORY, "no memory for %zu bytes of read buffers",
                           bytes);
    uintptr_t at = (uintptr_t)s->memory;
    if (s->memory_bytes > huge)
        at = (at + STREAM_HUGE_BYTES - 1) & ~(uintptr_t)(STREAM_HUGE_BYTES - 1);
    s->buffers = s->memory + (at - (uintptr_t)s->memory);
    madvise(s->buffers, bytes, MADV_HUGEPAGE); /* a hint */
    int r = o->bind != NULL ? o->bind(o->bind_ctx, s->buffers, bytes, o->node) : 0;
    if (r < 0)
        snprintf(s->stats.note, sizeof s->stats.note,
                 "the read buffers cannot be bound to node %d: %s", o->node, strerror(-r));
    touch(s->buffers, bytes);
    for (uint32_t i = 0; i < s->n_slots; i++)
        s->slots[i].data = s->buffers + i * s->plan.read_bytes;
    return 0;
}

/* ---- the caller's side ----------------------------------------------------------------------- */

/* Waits for a change until that time; false: it has come. Under the mutex. */
static bool wait_until(struct stream *s, uint64_t until_us)
{
    struct timespec t = {.tv_sec = (time_t)(until_us / 1000000),
                         .tv_nsec = (long)(until_us % 1000000) * 1000};
    return pthread_cond_timedwait(&s->changed, &s->mutex, &t) != ETIMEDOUT;
}

static bool next_is_filled(struct stream *s)
{
    pthread_mutex_lock(&s->mutex);
    bool is = s->filled != s->handed;
    pthread_mutex_unlock(&s->mutex);
    return is;
}

/* 1: a slot is filled. 0: the reader ended, and all it read was taken. -ETIMEDOUT. */
static int wait_for_filled(struct stream *s, uint64_t stall_us)
{
    int r = 0;
    pthread_mutex_lock(&s->mutex);
    uint64_t beat = s->beat, until_us = clock_us() + stall_us;
    while (!s->ended && s->filled == s->handed && r == 0) {
        if (!wait_until(s, until_us) && s->beat == beat && !s->ended)
            r = -ETIMEDOUT;
        if (s->beat != beat) {
            beat = s->beat;
            until_us = clock_us() + stall_us;
        }
    }
    if (s->filled != s->handed)
        r = 1;
    pthread_mutex_unlock(&s->mutex);
    return r;
}

/* Gives handed slots back to the reader until the sink holds only so many. */
static int empty_slots(struct stream *s, const struct stream_sink *sink, uint32_t held)
{
    int r = 0;
    while (r >= 0 && s->handed - s->emptied > held) { /* `emptied` is written here alone */
        if (s->held)
            r = sink->wait(sink->ctx, s->slots[s->emptied % s->n_slots].n_calls);
        pthread_mutex_lock(&s->mutex);
        s->emptied++;
        pthread_cond_signal(&s->changed);
        pthread_mutex_unlock(&s->mutex);
    }
    return r < 0 ? r : 0;
}

static int stalled(const struct stream *s, const struct stream_cursor *at, uint64_t stall_us,
                   struct report *report)
{
    const struct stream_part *e = &s->plan.parts[at->part < s->plan.n_parts ? at->part : 0];
    return report_fail(report, INFER_E_MODEL_UNREADABLE,
                       "%s: %s: no byte came for %.1f s, from byte %" PRIu64
                       " on; the disk, or who serves this file, does not answer",
                       s->files[e->file].path, e->name, (double)stall_us / 1e6, e->offset + at->at);
}

/* A sink whose calls are counted. */
struct counted {
    const struct stream_sink *sink;
    uint64_t n_calls;
};

static int count_rows(void *ctx, uint32_t tensor, uint64_t first_row, uint64_t n_rows,
                      const void *data)
{
    struct counted *c = ctx;
    c->n_calls++;
    return c->sink->rows(c->sink->ctx, tensor, first_row, n_rows, data);
}

/* The rows of the next slot. */
static int hand_on(struct stream *s, struct counted *counted, struct stream_stats *mine)
{
    const struct stream_sink *sink = counted->sink, through = {.ctx = counted, .rows = count_rows};
    struct stream_slot *t = &s->slots[s->handed % s->n_slots];
    int r = stream_rows(&s->plan, s->join, &t->chunk, t->data, &through, &mine->bytes);
    if (r >= 0 && sink->progress != NULL)
        sink->progress(sink->ctx, mine->bytes, s->total_bytes);
    t->n_calls = counted->n_calls;
    s->handed++;
    return r;
}

/* Runs the sink until the reader ended or the sink failed. */
static int drain(struct stream *s, const struct stream_sink *sink, uint64_t stall_us,
                 struct stream_stats *mine, struct report *report)
{
    const uint32_t held = s->held ? s->n_slots / HELD_SHARE : 0;
    struct counted counted = {.sink = sink};
    struct stream_cursor at = {0};
    int r = 0;
    while (r >= 0) {
        uint64_t start = clock_us();
        if (s->handed != s->emptied && !next_is_filled(s))
            r = empty_slots(s, sink, 0);
        uint64_t emptied = clock_us();
        mine->sink_us += emptied - start;
        if (r < 0)
            return r;
        r = wait_for_filled(s, stall_us);
        uint64_t filled = clock_us();
        mine->wait_us += filled - emptied;
        if (r == 0)
            return 0;
        if (r < 0)
            return stalled(s, &at, stall_us, report);
        at = s->slots[s->handed % s->n_slots].chunk.to;
        r = hand_on(s, &counted, mine);
        if (r >= 0)
            r = empty_slots(s, sink, held);
        mine->sink_us += clock_us() - filled;
    }
    return r;
}

/* Whether the sink may keep data of the buffers. */
static void hold(struct stream *s, const struct stream_sink *sink)
{
    if (sink->hold == NULL)
        return;
    int r = sink->hold(sink->ctx, s->buffers, s->n_slots * s->plan.read_bytes);
    s->held = r >= 0;
    if (r < 0 && s->stats.note[0] == '\0')
        snprintf(s->stats.note, sizeof s->stats.note,
                 "its device cannot read the buffers by itself: %s", strerror(-r));
}

/* Ends the reader, or leaves it behind when it does not end. False: left behind. */
static bool end_reader(struct stream *s, pthread_t reader, uint64_t stall_us)
{
    uint64_t until_us = clock_us() + stall_us;
    pthread_mutex_lock(&s->mutex);
    s->cancelled = true;
    pthread_cond_broadcast(&s->changed);
    while (!s->ended && (wait_until(s, until_us) || clock_us() < until_us)) {
    }
    bool ended = s->ended;
    pthread_mutex_unlock(&s->mutex);
    if (ended)
        pthread_join(reader, NULL);
    else
        pthread_detach(reader);
    return ended;
}

/* The reader has no business with the process's signals. */
static int start_reader(struct stream *s, pthread_t *ret)
{
    sigset_t all, old;
    sigfillset(&all);
    s->n_owners = 2;
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int r = pthread_create(ret, NULL, stream_reader_main, s);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (r != 0)
        s->n_owners = 1;
    return -r;
}

static int run(struct stream *s, const struct stream_sink *sink, uint64_t stall_us,
               struct stream_stats *ret_stats, struct report *report)
{
    struct stream_stats mine = {0};
    struct report stall_report = {0};
    pthread_t reader;
    uint64_t start = clock_us();
    hold(s, sink);
    int r = start_reader(s, &reader);
    bool started = r >= 0;
    if (!started)
        report_fail(report, INFER_E_OUT_OF_MEMORY, "cannot start a thread to read with: %s",
                    strerror(-r));
    else
        r = drain(s, sink, stall_us, &mine, &stall_report);
    if (s->held)
        sink->let_go(sink->ctx);
    if (!started)
        return -INFER_E_OUT_OF_MEMORY;
    if (stall_report.code != 0 && stall_us > GRACE_US)
        stall_us = GRACE_US;
    bool ended = end_reader(s, reader, stall_us);
    pthread_mutex_lock(&s->mutex);
    *ret_stats = s->stats;
    if (stall_report.code == 0 && r == 0 && ended) {
        r = s->result;
        stall_report = s->report;
    }
    pthread_mutex_unlock(&s->mutex);
    if (stall_report.code != 0 && report != NULL)
        *report = stall_report;
    ret_stats->held = s->held;
    ret_stats->bytes = mine.bytes;
    ret_stats->sink_us = mine.sink_us;
    ret_stats->wait_us = mine.wait_us;
    ret_stats->took_us = clock_us() - start;
    if (ret_stats->took_us > 0)
        ret_stats->bytes_per_s = (uint64_t)((double)mine.bytes * 1e6 / (double)ret_stats->took_us);
    return r;
}

static bool is_read_size(uint32_t bytes)
{
    return bytes == 0 || (bytes >= STREAM_READ_BYTES_MIN && bytes <= STREAM_READ_BYTES_MAX &&
                          (bytes & (bytes - 1)) == 0);
}

int stream_read(const struct stream_extent *extents, size_t n, const struct stream_sink *sink,
                const struct stream_options *options, struct stream_stats *ret_stats,
                struct report *report)
{
    const struct stream_options defaults = {0}, *o = options != NULL ? options : &defaults;
    struct stream_stats stats = {0};
    uint32_t depth = o->depth != 0 ? o->depth : DEPTH;
    assert(is_read_size(o->read_bytes) && depth <= STREAM_DEPTH_MAX);
    struct stream *s = stream_new(o);
    if (s == NULL)
        return no_memory(report);
    int r = copy_extents(s, extents, n, report);
    if (r == 0)
        r = take_slots(s, depth, report);
    if (r == 0 && s->n_slots > 0)
        r = take_buffers(s, o, report);
    if (r == 0 && s->n_slots > 0)
        r = run(s, sink, (o->stall_ms != 0 ? o->stall_ms : STALL_MS) * (uint64_t)1000, &stats,
                report);
    if (ret_stats != NULL)
        *ret_stats = stats;
    stream_unref(s);
    return r;
}
