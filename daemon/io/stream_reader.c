/* stream_reader.c: the reading thread: opens the files, keeps the slots' reads under way, judges
 * what comes back, and looks at the end whether a file changed.
 *
 * A slot's life: FREE -> BUSY (start) -> FULL or FAILED, and FREE again when the caller emptied it.
 * A read that came short, was interrupted or failed goes on in its slot from where it stopped. The
 * first FAILED slot in order, not in time, ends the stream: all before it are handed on, so the
 * same fault gives the same rows and the same sentence every time.
 *
 * Invariants: emptied <= filled <= started <= emptied + n_slots. The thread touches nothing that
 * the caller owns, so it may outlive the call. It ends only when no read is under way.
 *
 * Limits: an error is retried RETRIES times in a row; a read that ends with "again" after 1 ms, for
 * as long as the caller has patience. */
#include "io/stream_impl.h"

#include "base/clock.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define RETRIES 3

struct reader {
    struct stream *s;
    uint64_t started;
    uint32_t n_busy;
    bool failing;              /* a slot failed: start no more */
    bool all_started;          /* nothing is left to start */
    struct stream_stats stats; /* the reader's part, copied to s->stats at each beat */
};

int stream_slot_fd(const struct stream *s, const struct stream_slot *slot)
{
    const struct stream_file *f = &s->files[slot->chunk.file];
    return slot->direct ? f->direct : f->plain;
}

/* A sign of life; fills what is full in order, and wakes the caller. */
static void beat(struct reader *r)
{
    struct stream *s = r->s;
    pthread_mutex_lock(&s->mutex);
    while (s->filled < r->started && s->slots[s->filled % s->n_slots].state == STREAM_FULL)
        s->filled++;
    s->beat++;
    s->stats = r->stats;
    pthread_cond_signal(&s->changed);
    pthread_mutex_unlock(&s->mutex);
}

/* ---- one read -------------------------------------------------------------------------------- */

static void start(struct reader *r, uint32_t slot)
{
    struct stream *s = r->s;
    s->slots[slot].state = STREAM_BUSY;
    s->queue->start(s, slot);
    r->n_busy++;
    r->stats.n_reads++;
}

/* Chooses the way for the next chunk and starts it. */
static void start_chunk(struct reader *r, const struct stream_chunk *chunk)
{
    struct stream *s = r->s;
    uint32_t at = (uint32_t)(r->started % s->n_slots);
    struct stream_slot *t = &s->slots[at];
    struct stream_file *f = &s->files[chunk->file];
    t->chunk = *chunk;
    t->got = 0;
    t->tries = 0;
    bool known = stream_file_cached(f, chunk->offset, chunk->bytes, &t->cached);
    bool cached = known && t->cached.n_cached == t->cached.n_pages;
    t->direct = f->direct >= 0 && !cached;
    t->drop = !t->direct && known && !cached;
    r->started++;
    start(r, at);
}

static void fail(struct reader *r, struct stream_slot *t, int error)
{
    t->state = STREAM_FAILED;
    t->error = error;
    r->failing = true;
}

static void pause_1ms(void)
{
    nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
}

/* No byte came. Goes on (true), or fails the slot. */
static bool judge_failure(struct reader *r, struct stream_slot *t, int result)
{
    struct stream *s = r->s;
    struct stream_file *f = &s->files[t->chunk.file];
    struct stat now;
    if (result == -EAGAIN)
        pause_1ms();
    if (result == -EINTR || result == -EAGAIN)
        return true;
    if (t->direct && (result == -EINVAL || result == -EOPNOTSUPP)) {
        t->direct = false; /* it said that it would take these */
        snprintf(r->stats.note, sizeof r->stats.note,
                 "%.80s: a read past the page cache was refused", f->path);
        return true;
    }
    if (result == 0 && (s->io->stat(s->io->ctx, f->given, &now) < 0 ||
                        (uint64_t)now.st_size < t->chunk.offset + t->chunk.needed)) {
        fail(r, t, 0);
        return false;
    }
    if ((result == 0 || result == -EIO) && t->tries++ < RETRIES)
        return true;
    fail(r, t, result == 0 ? -EIO : result);
    return false;
}

static void complete(struct reader *r, struct stream_slot *t)
{
    const struct stream_file *f = &r->s->files[t->chunk.file];
    if (t->drop)
        stream_file_drop(f, t->chunk.offset, &t->cached);
    *(t->direct ? &r->stats.direct_bytes : &r->stats.buffered_bytes) += t->got;
    t->state = STREAM_FULL;
}

static void judge(struct reader *r, uint32_t slot, int result)
{
    struct stream *s = r->s;
    struct stream_slot *t = &s->slots[slot];
    uint64_t offset = t->chunk.offset + t->got, bytes = t->chunk.bytes - t->got;
    uint64_t align = t->direct ? s->files[t->chunk.file].align : 1;
    result = s->io->done(s->io->ctx, offset, bytes, result);
    uint64_t more = result > 0 ? (uint64_t)result : 0;
    if (more > bytes)
        more = bytes;
    if (t->got + more >= t->chunk.needed) {
        t->got += more;
        complete(r, t);
        return;
    }
    more -= more % align; /* the rest is read again, from where it may begin */
    bool go_on = true;
    t->got += more;
    if (more > 0)
        t->tries = 0;
    else
        go_on = judge_failure(r, t, result > 0 ? 0 : result);
    if (go_on) {
        r->stats.n_retries++;
        start(r, slot);
    }
}

/* ---- all of them ----------------------------------------------------------------------------- */

/* Starts what the free slots take. False: cancelled. */
static bool start_all(struct reader *r)
{
    struct stream *s = r->s;
    struct stream_chunk chunk;
    pthread_mutex_lock(&s->mutex);
    while (!s->cancelled && r->n_busy == 0 && !r->failing && !r->all_started &&
           r->started - s->emptied == s->n_slots)
        pthread_cond_wait(&s->changed, &s->mutex);
    uint64_t emptied = s->emptied;
    bool cancelled = s->cancelled;
    pthread_mutex_unlock(&s->mutex);
    while (!cancelled && !r->failing && !r->all_started && r->started - emptied < s->n_slots) {
        r->all_started = !stream_cut(&s->plan, &s->next, &chunk);
        if (!r->all_started)
            start_chunk(r, &chunk);
    }
    return !cancelled;
}

/* Is the first that is not filled one that failed? Only the reader moves `filled`. */
static const struct stream_slot *failed(const struct reader *r)
{
    const struct stream *s = r->s;
    const struct stream_slot *t = &s->slots[s->filled % s->n_slots];
    return s->filled < r->started && t->state == STREAM_FAILED ? t : NULL;
}

/* Until all is read, one failed, or the caller has enough. */
static int read_all(struct reader *r)
{
    struct stream *s = r->s;
    uint32_t slot;
    int result, rc = 0;
    while (rc >= 0 && start_all(r) && r->n_busy > 0 && failed(r) == NULL) {
        rc = s->queue->reap(s, &slot, &result);
        if (rc <= 0)
            continue;
        r->n_busy--;
        judge(r, slot, result);
        beat(r);
    }
    if (r->n_busy > 0)
        r->n_busy -= s->queue->cancel(s);
    while (r->n_busy > 0 && rc >= 0) {
        rc = s->queue->reap(s, &slot, &result);
        r->n_busy -= rc > 0;
    }
    return rc;
}

/* The first of the parts that lies in the slot and is not complete. */
static int report_failed(struct stream *s, const struct stream_slot *t, struct report *report)
{
    uint64_t at = t->chunk.offset + t->got;
    size_t part = t->chunk.from.part;
    while (part < t->chunk.to.part && s->plan.parts[part].offset + s->plan.parts[part].bytes <= at)
        part++;
    const struct stream_part *e = &s->plan.parts[part];
    const char *path = s->files[e->file].path;
    at = at > e->offset ? at : e->offset;
    if (t->error == 0)
        return report_fail(report, INFER_E_MODEL_UNREADABLE,
                           "%s: %s: the file ends at byte %" PRIu64
                           " or before; it changed while it was read; load it again",
                           path, e->name, at);
    return report_fail(report, INFER_E_MODEL_UNREADABLE,
                       "%s: %s: reading at byte %" PRIu64 ": %s%s", path, e->name, at,
                       strerror(-t->error), t->error == -EIO ? ", four times; see the disk" : "");
}

static int open_files(struct reader *r, struct report *report)
{
    struct stream *s = r->s;
    for (uint32_t i = 0; i < s->n_files; i++) {
        struct stream_file *f = &s->files[i];
        int rc = stream_file_open(f, s->io, r->stats.note);
        if (rc < 0)
            return report_fail(report, INFER_E_MODEL_UNREADABLE, "%s: %s", f->path,
                               rc == -EISDIR ? "not a regular file" : strerror(-rc));
        r->stats.n_files_direct += f->direct >= 0;
        beat(r);
    }
    for (size_t i = 0; i < s->plan.n_parts; i++) {
        const struct stream_part *e = &s->plan.parts[i];
        const struct stream_file *f = &s->files[e->file];
        if (e->bytes > 0 && e->offset + e->bytes > (uint64_t)f->before.st_size)
            return report_fail(report, INFER_E_MODEL_UNREADABLE,
                               "%s: the file ends at byte %" PRIu64 ", %s at byte %" PRIu64
                               ": it is cut short; get it again",
                               f->path, (uint64_t)f->before.st_size, e->name, e->offset + e->bytes);
    }
    return 0;
}

static int check_unchanged(const struct stream *s, struct report *report)
{
    for (uint32_t i = 0; i < s->n_files; i++) {
        int rc = stream_file_changed(&s->files[i], s->io);
        if (rc != 0)
            return report_fail(report, INFER_E_MODEL_UNREADABLE, "%s: %s", s->files[i].path,
                               rc < 0 ? strerror(-rc)
                                      : "the file changed while it was read; load it again");
    }
    return 0;
}

static int open_queue(struct reader *r, struct report *report)
{
    struct stream *s = r->s;
    int rc = s->method == STREAM_PREAD ? -ENOSYS : stream_uring_init(s, &r->stats.registered);
    r->stats.uring = rc == 0;
    if (rc < 0 && s->method != STREAM_URING) {
        if (s->method == STREAM_AUTO && r->stats.note[0] == '\0')
            snprintf(r->stats.note, sizeof r->stats.note, "read by pread, io_uring: %s",
                     strerror(-rc));
        rc = stream_pread_init(s);
    }
    if (rc < 0)
        return report_fail(report, INFER_E_OUT_OF_MEMORY, "no queue to read with: %s",
                           strerror(-rc));
    return 0;
}

static int read_stream(struct reader *r, struct report *report)
{
    struct stream *s = r->s;
    int rc = open_files(r, report);
    if (rc == 0)
        rc = open_queue(r, report);
    if (rc < 0)
        return rc;
    int broken = read_all(r);
    s->queue->done(s);
    const struct stream_slot *t = failed(r);
    if (t != NULL)
        return report_failed(s, t, report);
    if (broken < 0)
        return report_fail(report, INFER_E_MODEL_UNREADABLE, "%s: the queue of reads failed: %s",
                           s->files[0].path, strerror(-broken));
    return check_unchanged(s, report);
}

void *stream_reader_main(void *stream)
{
    struct stream *s = stream;
    struct reader r = {.s = s, .stats = s->stats};
    struct report report = {0};
    int rc = read_stream(&r, &report);
    beat(&r);
    pthread_mutex_lock(&s->mutex);
    s->report = report;
    s->result = rc;
    s->ended = true;
    pthread_cond_signal(&s->changed);
    pthread_mutex_unlock(&s->mutex);
    stream_unref(s);
    return NULL;
}
