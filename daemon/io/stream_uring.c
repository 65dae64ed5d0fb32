/* stream_uring.c: reads through io_uring. What was started is submitted in one batch by the next
 * reap(). The slots' memory is registered, so that the kernel neither looks up nor pins its pages
 * for each read; where the limit on locked memory forbids that, reads name the memory themselves.
 *
 * Opcodes: READ_FIXED or READ, ASYNC_CANCEL; the ring takes no others. Everything is called by the
 * reading thread, but for the start. */
#include "io/ring.h"
#include "io/stream_impl.h"

#include <assert.h>
#include <errno.h>
#include <liburing.h>
#include <stdlib.h>

#define TICK_NS   200000000  /* how long reap() waits before it lets its caller look around */
#define USER_NONE UINT64_MAX /* of an operation whose end tells nothing */

struct queue {
    struct io_uring ring;
    bool fixed;
    uint32_t n_busy;
    bool busy[STREAM_DEPTH_MAX];
};

static void start(struct stream *s, uint32_t slot)
{
    struct queue *q = s->queue_state;
    const struct stream_slot *t = &s->slots[slot];
    struct io_uring_sqe *sqe = io_uring_get_sqe(&q->ring);
    assert(sqe != NULL && !q->busy[slot]); /* the ring holds two for each slot */
    int fd = stream_slot_fd(s, t);
    unsigned bytes = (unsigned)(t->chunk.bytes - t->got);
    if (q->fixed)
        io_uring_prep_read_fixed(sqe, fd, t->data + t->got, bytes, t->chunk.offset + t->got, 0);
    else
        io_uring_prep_read(sqe, fd, t->data + t->got, bytes, t->chunk.offset + t->got);
    io_uring_sqe_set_data64(sqe, slot);
    q->busy[slot] = true;
    q->n_busy++;
}

static int reap(struct stream *s, uint32_t *ret_slot, int *ret_result)
{
    struct queue *q = s->queue_state;
    struct io_uring_cqe *cqe = NULL;
    struct __kernel_timespec tick = {.tv_nsec = TICK_NS};
    for (;;) {
        int r = 0;
        if (io_uring_sq_ready(&q->ring) > 0 || io_uring_peek_cqe(&q->ring, &cqe) != 0) {
            cqe = NULL;
            r = io_uring_submit_and_wait_timeout(&q->ring, &cqe, 1, &tick, NULL);
        }
        if (cqe == NULL && io_uring_peek_cqe(&q->ring, &cqe) != 0) {
            if (r == -EINTR)
                continue;
            return r >= 0 || r == -ETIME || r == -EAGAIN || r == -EBUSY ? 0 : r;
        }
        uint64_t user = io_uring_cqe_get_data64(cqe);
        int result = cqe->res;
        io_uring_cqe_seen(&q->ring, cqe);
        if (user >= s->n_slots)
            continue;
        assert(q->busy[user]);
        q->busy[user] = false;
        q->n_busy--;
        *ret_slot = (uint32_t)user;
        *ret_result = result;
        return 1;
    }
}

static uint32_t cancel(struct stream *s)
{
    struct queue *q = s->queue_state;
    for (uint32_t i = 0; i < s->n_slots; i++) {
        struct io_uring_sqe *sqe = q->busy[i] ? io_uring_get_sqe(&q->ring) : NULL;
        if (sqe == NULL)
            continue;
        io_uring_prep_cancel64(sqe, i, 0);
        io_uring_sqe_set_data64(sqe, USER_NONE);
    }
    io_uring_submit(&q->ring);
    return 0; /* each is still to be reaped */
}

static void done(struct stream *s)
{
    struct queue *q = s->queue_state;
    if (q->n_busy > 0)
        s->keep_memory = true; /* the queue broke: reads may still write there */
    io_uring_queue_exit(&q->ring);
    free(q);
    s->queue_state = NULL;
}

int stream_uring_init(struct stream *s, bool *ret_registered)
{
    static const struct stream_queue queue = {start, reap, cancel, done};
    int r = s->io->ring(s->io->ctx);
    if (r < 0)
        return r;
    struct queue *q = calloc(1, sizeof *q);
    if (q == NULL)
        return -ENOMEM;
    r = io_uring_queue_init(2 * s->n_slots, &q->ring, IORING_SETUP_R_DISABLED);
    if (r < 0) {
        free(q);
        return r;
    }
    struct iovec all = {s->buffers, s->n_slots * s->plan.read_bytes};
    q->fixed = io_uring_register_buffers(&q->ring, &all, 1) == 0;
    /* TIMEOUT is how liburing waits for a while on kernels before 5.11. */
    const uint8_t opcodes[] = {
        q->fixed ? IORING_OP_READ_FIXED : IORING_OP_READ,
        IORING_OP_ASYNC_CANCEL,
        q->ring.features & IORING_FEAT_EXT_ARG ? IORING_OP_ASYNC_CANCEL : IORING_OP_TIMEOUT,
    };
    r = ring_restrict(&q->ring, opcodes, sizeof opcodes);
    if (r == 0)
        r = ring_enable(&q->ring);
    if (r < 0) {
        io_uring_queue_exit(&q->ring);
        free(q);
        return r;
    }
    s->queue_state = q;
    s->queue = &queue;
    *ret_registered = q->fixed;
    return 0;
}
