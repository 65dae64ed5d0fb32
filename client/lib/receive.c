/* receive.c: the consumer of the token ring, and how threads wait.
 *
 * The busy path makes no system call: as long as there are records, infer_next() copies one,
 * decodes it and returns; the head is published when the ring was found empty or a quarter of it
 * was read. An idle connection spins for spin_us, then sleeps on token_tail in slices of
 * CONN_SLICE_MS, and after a slice without news asks the socket whether the daemon lives.
 *
 * Threads: mutex is held but in lead(). See conn.h. */
#include "conn.h"

#include <errno.h>
#include <linux/futex.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define SPIN_BURST  16u
#define SPIN_US_MAX 10000u /* of one turn; a caller who spins for ever takes more turns */

/* ---- taking records -------------------------------------------------------------------------- */

/* 1: the next record is in *ret. 0: the ring is empty, or the link is lost. */
static int next_record(struct infer_conn *c, struct record *ret)
{
    const struct link *link = &c->link;
    if (c->lost != 0)
        return 0;
    if (c->token_tail == c->token_head) {
        conn_publish_head(c);
        c->token_tail = infer_ring_load(&link->daemon->token_tail); /* edge A */
        if (c->token_tail == c->token_head)
            return 0;
    }
    uint32_t used = infer_ring_used(link->token_bytes, c->token_head, c->token_tail);
    struct infer_abi_record *head = &ret->u.head;
    if (used == UINT32_MAX || used < sizeof *head)
        goto broken;
    infer_ring_get(link->token_data, link->token_bytes, c->token_head, head, sizeof *head);
    uint32_t bytes = head->bytes;
    if (bytes < sizeof *head || bytes > INFER_RECORD_MAX || infer_ring_padded(bytes) > used)
        goto broken;
    infer_ring_get(link->token_data, link->token_bytes, c->token_head + (uint32_t)sizeof *head,
                   ret->u.bytes + sizeof *head, bytes - (uint32_t)sizeof *head);
    c->token_head += infer_ring_padded(bytes);
    if (c->token_head - c->token_head_published >= link->token_bytes / 4)
        conn_publish_head(c);
    return 1;

broken:
    c->token_tail = c->token_head;
    conn_lose(c, INFER_E_PROTOCOL);
    return 0;
}

static void keep(struct infer_conn *c, struct request *r, const struct record *record)
{
    request_stash(c, r, record);
    if (c->followers > 0)
        pthread_cond_broadcast(&c->changed);
    if (!r->private_call)
        poll_nudge(c);
}

void receive_drain(struct infer_conn *c)
{
    struct record record;
    while (next_record(c, &record) == 1) {
        struct request *r = request_find(c, record.u.head.request);
        if (r != NULL)
            keep(c, r, &record);
    }
}

/* An event of r out of its stash, which is ready. */
static int take_stashed(struct infer_conn *c, struct request *r, struct record *record,
                        struct infer_event *ret)
{
    while (request_has_stash(r)) {
        request_unstash(c, r, record);
        int e = event_decode(c, r, record, ret);
        if (e != 0)
            return e;
    }
    if (r->ended == 0)
        return 0;
    event_ended(c, r, ret);
    return 1;
}

/* 1: an event. 0: nothing is there. Negative: there will be nothing. */
static int take_event(struct infer_conn *c, uint32_t id, struct record *record,
                      struct infer_event *ret)
{
    struct request *r = id != 0 ? request_find(c, id) : c->ready_first;
    int e = 0;
    if (id != 0 && r == NULL)
        return -INFER_E_NOT_FOUND;
    while (e == 0 && r != NULL && request_is_ready(r)) {
        e = take_stashed(c, r, record, ret);
        if (id == 0)
            r = c->ready_first;
    }
    while (e == 0 && next_record(c, record) == 1) {
        r = request_find(c, record->u.head.request);
        if (r == NULL)
            continue; /* of a one-shot call that gave up */
        if (id != 0 ? r->id == id : !r->private_call)
            e = event_decode(c, r, record, ret);
        else
            keep(c, r, record);
    }
    if (e < 0) { /* a DONE that cannot be read does not end a request, we do */
        r->done_stashed = false;
        conn_lose(c, -e);
        request_end(c, r, -e);
    }
    return e > 0 ? e : 0;
}

/* ---- waiting --------------------------------------------------------------------------------- */

static uint64_t min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* The leader's watch, without the mutex: until the tail moves, the daemon closes, the deadline
 * passes, or a slice is over. */
static void lead(const struct link *link, uint32_t head, uint32_t spin_us, uint64_t deadline_us)
{
    const uint32_t *tail = &link->daemon->token_tail;
    uint64_t start = conn_now_us(), now = start;
    uint64_t spin_until = start + (spin_us < SPIN_US_MAX ? spin_us : SPIN_US_MAX);
    do {
        for (unsigned i = 0; i < SPIN_BURST; i++) {
            if (infer_ring_load(tail) != head)
                return;
            infer_ring_pause();
        }
        now = conn_now_us();
    } while (now < spin_until && now < deadline_us);
    if (spin_us == UINT32_MAX || now >= deadline_us)
        return;

    infer_ring_store(&link->client->waiting, INFER_ABI_FUTEX);
    infer_ring_fence(); /* edge C */
    if (infer_ring_load(tail) == head && infer_ring_load(&link->daemon->closed) == 0) {
        uint64_t slice_us = min_u64(deadline_us - now, CONN_SLICE_MS * 1000u);
        struct timespec slice = {.tv_nsec = (long)slice_us * 1000};
        syscall(SYS_futex, tail, FUTEX_WAIT, head, &slice, NULL, 0);
    }
    infer_ring_store(&link->client->waiting, INFER_ABI_AWAKE);
}

/* Waits for what the leader finds. */
static void follow(struct infer_conn *c, uint64_t deadline_us)
{
    uint64_t until = min_u64(deadline_us, conn_now_us() + CONN_SLICE_MS * 1000u);
    struct timespec t = {.tv_sec = (time_t)(until / 1000000u),
                         .tv_nsec = (long)(until % 1000000u) * 1000};
    c->followers++;
    pthread_cond_timedwait(&c->changed, &c->mutex, &t);
    c->followers--;
}

static void wait_for_events(struct infer_conn *c, uint64_t deadline_us)
{
    if (c->leader) {
        follow(c, deadline_us);
        return;
    }
    uint32_t head = c->token_head;
    poll_disarm(c);
    conn_publish_head(c);
    c->leader = true;
    pthread_mutex_unlock(&c->mutex);
    lead(&c->link, head, c->spin_us, deadline_us);
    pthread_mutex_lock(&c->mutex);
    c->leader = false;
    if (c->followers > 0)
        pthread_cond_broadcast(&c->changed);
    if (infer_ring_load(&c->link.daemon->token_tail) != head)
        c->heard_us = conn_coarse_us();
    else if (link_is_dead(&c->link))
        conn_bury(c);
}

/* A look at the socket for callers who never wait. Each time when a main loop was woken, now and
 * then when a program polls. */
static void look_at_socket(struct infer_conn *c)
{
    uint64_t now = conn_coarse_us();
    if (c->lost != 0 || c->leader || (c->poll_fd < 0 && now - c->heard_us <= CONN_QUIET_US))
        return;
    c->heard_us = now;
    if (link_is_dead(&c->link))
        conn_bury(c);
}

int receive_event(struct infer_conn *c, uint32_t id, int timeout_ms, struct record *record,
                  struct infer_event *ret)
{
    uint64_t deadline_us = timeout_ms < 0 ? UINT64_MAX : 0;
    for (bool looked = false;;) {
        int r = take_event(c, id, record, ret);
        if (r != 0)
            return r;
        if (c->lost != 0) { /* it may have been lost just now: then requests have ended */
            if (id == 0 && c->ready_first == NULL && !conn_look_for_welcome(c))
                return -c->lost;
            continue;
        }
        if (timeout_ms == 0) {
            if (looked)
                return 0;
            look_at_socket(c);
            looked = true;
            continue;
        }
        if (deadline_us != UINT64_MAX) {
            uint64_t now = conn_now_us();
            if (deadline_us == 0)
                deadline_us = now + (uint64_t)timeout_ms * 1000u;
            if (now >= deadline_us)
                return 0;
        }
        wait_for_events(c, deadline_us);
    }
}

API int infer_next(struct infer_conn *conn, uint32_t id, int timeout_ms,
                   struct infer_event *ret_event)
{
    if (conn == NULL || ret_event == NULL)
        return -INFER_E_INVALID;
    conn_check_fork(conn);
    pthread_mutex_lock(&conn->mutex);
    if (conn->in_next) {
        pthread_mutex_unlock(&conn->mutex);
        return -INFER_E_BUSY;
    }
    conn->in_next = true;
    free(conn->event_prompt);
    conn->event_prompt = NULL;
    poll_disarm(conn);
    struct request *r = id != 0 ? request_find(conn, id) : NULL;
    int e = r != NULL && r->private_call
                ? -INFER_E_NOT_FOUND
                : receive_event(conn, id, timeout_ms, &conn->event, ret_event);
    if (e < 0)
        conn_fail(conn, -e, NULL);
    if (e == 0 || (conn->lost != 0 && conn->link.kept)) /* a welcome will be heard of */
        poll_quiet(conn);
    if (e <= 0 || ret_event->kind == INFER_EVENT_DONE)
        poll_arm(conn);
    conn->in_next = false;
    pthread_mutex_unlock(&conn->mutex);
    return e;
}
