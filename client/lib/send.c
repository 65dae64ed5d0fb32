/* send.c: the producer of the request ring.
 *
 * A payload goes straight from the caller's memory into the ring, cut into a SUBMIT and as many
 * DATA records as it takes; each is published when it is whole, so that the daemon works on the
 * first while we write the next.
 *
 * A full ring. The daemon frees room by moving request_head and tells nobody; the writer spins
 * briefly, then sleeps in slices that grow to WAIT_SLICE_US_MAX, and looks whether the daemon still
 * lives. It also empties the token ring into the stashes meanwhile: a daemon that waits for room
 * there must not wait for a thread that waits here.
 *
 * Threads: write_mutex is held, mutex is not. */
#include "conn.h"

#include <string.h>
#include <time.h>

#define WAIT_SPINS        500u
#define WAIT_SLICE_US     20u
#define WAIT_SLICE_US_MAX 1000u
#define WAIT_LOOK_US      20000u /* between two looks at the socket */

/* What of a payload is not yet sent. */
struct source {
    const struct send_piece *piece;
    uint32_t offset; /* into *piece */
    uint32_t left;   /* bytes of all pieces */
};

/* 1: room; 0: none; negative: the daemon's head is impossible. */
static int look_for_room(struct infer_conn *c, uint32_t need)
{
    uint32_t bytes = c->link.request_bytes;
    if (bytes - (c->request_tail - c->request_head) >= need)
        return 1;
    c->request_head = infer_ring_load(&c->link.daemon->request_head); /* edge B */
    uint32_t used = infer_ring_used(bytes, c->request_head, c->request_tail);
    if (used == UINT32_MAX)
        return -INFER_E_PROTOCOL;
    return bytes - used >= need;
}

/* One turn of waiting; negative when the link is lost. */
static int look_after_daemon(struct infer_conn *c, bool look_at_socket)
{
    pthread_mutex_lock(&c->mutex);
    if (c->lost == 0 && look_at_socket && link_is_dead(&c->link))
        conn_bury(c);
    if (c->lost == 0 && !c->leader) {
        receive_drain(c);
        conn_publish_head(c);
    }
    int r = -c->lost;
    pthread_mutex_unlock(&c->mutex);
    return r;
}

static int wait_for_room(struct infer_conn *c, uint32_t need)
{
    uint32_t slice_us = WAIT_SLICE_US, waited_us = 0;
    uint64_t spins = 0;
    for (;;) {
        int r = look_for_room(c, need);
        if (r < 0) {
            pthread_mutex_lock(&c->mutex);
            conn_lose(c, -r);
            pthread_mutex_unlock(&c->mutex);
        }
        if (r != 0)
            return r < 0 ? r : 0;
        if (spins++ < WAIT_SPINS) {
            infer_ring_pause();
            continue;
        }
        waited_us += slice_us;
        if ((r = look_after_daemon(c, waited_us >= WAIT_LOOK_US)) < 0)
            return r;
        if (waited_us >= WAIT_LOOK_US)
            waited_us = 0;
        struct timespec nap = {.tv_nsec = (long)slice_us * 1000};
        nanosleep(&nap, NULL);
        slice_us = slice_us * 2 > WAIT_SLICE_US_MAX ? WAIT_SLICE_US_MAX : slice_us * 2;
    }
}

static void put_payload(struct infer_conn *c, uint32_t at, struct source *source, uint32_t n)
{
    while (n > 0) {
        uint32_t part = source->piece->bytes - source->offset;
        if (part > n)
            part = n;
        if (part > 0)
            infer_ring_put(c->link.request_data, c->link.request_bytes, at,
                           (const uint8_t *)source->piece->data + source->offset, part);
        at += part;
        n -= part;
        source->left -= part;
        source->offset += part;
        if (source->offset == source->piece->bytes && source->left > 0) {
            source->piece++;
            source->offset = 0;
        }
    }
}

/* Puts and publishes one record: fixed_bytes bytes of *fixed, whose head's length is set here, and
 * what fits of the payload. */
static int put_record(struct infer_conn *c, struct infer_abi_record *fixed, uint32_t fixed_bytes,
                      struct source *source)
{
    uint32_t payload = INFER_RECORD_MAX - fixed_bytes;
    if (payload > source->left)
        payload = source->left;
    fixed->bytes = fixed_bytes + payload;
    int r = wait_for_room(c, infer_ring_padded(fixed->bytes));
    if (r < 0)
        return r;
    infer_ring_put(c->link.request_data, c->link.request_bytes, c->request_tail, fixed,
                   fixed_bytes);
    put_payload(c, c->request_tail + fixed_bytes, source, payload);
    c->request_tail += infer_ring_padded(fixed->bytes);
    infer_ring_store(&c->link.client->request_tail, c->request_tail); /* edge A */
    infer_ring_fence();                                               /* edge C */
    if (infer_ring_load(&c->link.daemon->waiting) == INFER_ABI_EVENTFD)
        link_ring_doorbell(&c->link);
    return 0;
}

int send_submit(struct infer_conn *c, struct infer_abi_submit *submit,
                const struct send_piece *pieces, size_t n_pieces)
{
    struct source source = {.piece = pieces};
    for (size_t i = 0; i < n_pieces; i++)
        source.left += pieces[i].bytes;
    submit->head.kind = INFER_ABI_SUBMIT;
    submit->fixed_bytes = sizeof *submit;
    int r = put_record(c, &submit->head, sizeof *submit, &source);
    while (r == 0 && source.left > 0) {
        struct infer_abi_record data = {.kind = INFER_ABI_DATA, .request = submit->head.request};
        r = put_record(c, &data, sizeof data, &source);
    }
    return r;
}

int send_cancel(struct infer_conn *c, uint32_t id)
{
    struct source nothing = {.left = 0};
    struct infer_abi_record cancel = {.kind = INFER_ABI_CANCEL, .request = id};
    pthread_mutex_lock(&c->mutex);
    int lost = c->lost; /* with no link there are no rings */
    pthread_mutex_unlock(&c->mutex);
    if (lost != 0)
        return -lost;
    return put_record(c, &cancel, sizeof cancel, &nothing);
}
