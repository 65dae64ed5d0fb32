/* stream_pread.c: reads by pread(), where io_uring cannot be had. Reads are made one after the
 * other, in the order in which they were started; the kernel is told of those that wait, so that a
 * file that is read through the page cache is on its way before it is asked for.
 *
 * A read that never returns holds the reading thread; nothing can be done about it from here. */
#include "io/stream_impl.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

struct queue {
    uint32_t first, n;
    uint32_t slots[STREAM_DEPTH_MAX];
};

static void start(struct stream *s, uint32_t slot)
{
    struct queue *q = s->queue_state;
    const struct stream_slot *t = &s->slots[slot];
    assert(q->n < STREAM_DEPTH_MAX);
    q->slots[(q->first + q->n++) % STREAM_DEPTH_MAX] = slot;
    if (!t->direct) /* a hint */
        posix_fadvise(stream_slot_fd(s, t), (off_t)(t->chunk.offset + t->got),
                      (off_t)(t->chunk.bytes - t->got), POSIX_FADV_WILLNEED);
}

static int reap(struct stream *s, uint32_t *ret_slot, int *ret_result)
{
    struct queue *q = s->queue_state;
    assert(q->n > 0);
    uint32_t slot = q->slots[q->first];
    const struct stream_slot *t = &s->slots[slot];
    q->first = (q->first + 1) % STREAM_DEPTH_MAX;
    q->n--;
    ssize_t n = pread(stream_slot_fd(s, t), t->data + t->got, t->chunk.bytes - t->got,
                      (off_t)(t->chunk.offset + t->got));
    *ret_slot = slot;
    *ret_result = n < 0 ? -errno : (int)n;
    return 1;
}

static uint32_t cancel(struct stream *s)
{
    struct queue *q = s->queue_state;
    uint32_t n = q->n;
    q->n = 0;
    return n;
}

static void done(struct stream *s)
{
    free(s->queue_state);
    s->queue_state = NULL;
}

int stream_pread_init(struct stream *s)
{
    static const struct stream_queue queue = {start, reap, cancel, done};
    s->queue_state = calloc(1, sizeof(struct queue));
    if (s->queue_state == NULL)
        return -ENOMEM;
    s->queue = &queue;
    return 0;
}
