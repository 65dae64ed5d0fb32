/* request.c: the unfinished requests of a connection, and the events that wait for their callers.
 *
 * Owns every struct request. A request is found by its id through CONN_TABLE chains. Public ones
 * that have something to give stand in the ready list, oldest first, so that infer_next() of any
 * request takes them in turn.
 *
 * Threads: mutex is held. Limits: a stash holds what its caller left unread, in the end one whole
 * answer; its memory is kept until the request ends. */
#include "conn.h"

#include <stdlib.h>
#include <string.h>

struct request *request_find(struct infer_conn *c, uint32_t id)
{
    struct request *r = c->table[id & (CONN_TABLE - 1)];
    while (r != NULL && r->id != id)
        r = r->chain;
    return r;
}

static uint32_t new_id(struct infer_conn *c)
{
    do
        c->id_last++;
    while (c->id_last == 0 || request_find(c, c->id_last) != NULL);
    return c->id_last;
}

struct request *request_add(struct infer_conn *c, const struct infer_abi_submit *submit,
                            bool private_call)
{
    struct request *r = c->spare;
    c->spare = NULL;
    if (r == NULL && (r = malloc(sizeof *r)) == NULL)
        return NULL;
    memset(r, 0, sizeof *r);
    r->id = new_id(c);
    r->op = submit->op;
    r->n_answers = submit->n_answers < 1                   ? 1
                   : submit->n_answers > INFER_ANSWERS_MAX ? INFER_ANSWERS_MAX
                                                           : submit->n_answers;
    r->private_call = private_call;
    struct request **chain = &c->table[r->id & (CONN_TABLE - 1)];
    r->chain = *chain;
    *chain = r;
    return r;
}

static void leave_ready(struct infer_conn *c, struct request *r)
{
    if (!r->ready)
        return;
    *(r->ready_previous != NULL ? &r->ready_previous->ready_next : &c->ready_first) = r->ready_next;
    *(r->ready_next != NULL ? &r->ready_next->ready_previous : &c->ready_last) = r->ready_previous;
    r->ready_next = r->ready_previous = NULL;
    r->ready = false;
}

static void join_ready(struct infer_conn *c, struct request *r)
{
    if (r->ready || r->private_call)
        return;
    r->ready_previous = c->ready_last;
    *(c->ready_last != NULL ? &c->ready_last->ready_next : &c->ready_first) = r;
    c->ready_last = r;
    r->ready = true;
}

void request_remove(struct infer_conn *c, struct request *r)
{
    struct request **chain = &c->table[r->id & (CONN_TABLE - 1)];
    while (*chain != r)
        chain = &(*chain)->chain;
    *chain = r->chain;
    leave_ready(c, r);
    free(r->stash.data);
    free(r->prompt);
    if (c->spare == NULL)
        c->spare = r;
    else
        free(r);
}

void request_remove_all(struct infer_conn *c, bool forget)
{
    for (size_t i = 0; i < CONN_TABLE && !forget; i++)
        while (c->table[i] != NULL)
            request_remove(c, c->table[i]);
    if (!forget)
        free(c->spare);
    c->spare = NULL;
    memset(c->table, 0, sizeof c->table);
    c->ready_first = c->ready_last = NULL;
}

void request_end(struct infer_conn *c, struct request *r, int code)
{
    if (r->done_stashed || r->ended != 0)
        return;
    r->ended = code;
    join_ready(c, r);
}

bool request_has_stash(const struct request *r)
{
    return r->stash.head != r->stash.tail;
}

bool request_is_ready(const struct request *r)
{
    return request_has_stash(r) || r->ended != 0;
}

/* Room for n more bytes at the tail. */
static int stash_grow(struct stash *s, size_t n)
{
    if (s->head > 0 && s->size - s->tail < n) {
        memmove(s->data, s->data + s->head, s->tail - s->head);
        s->tail -= s->head;
        s->head = 0;
    }
    if (s->size - s->tail >= n)
        return 0;
    size_t size = s->size < 4096 ? 4096 : s->size;
    while (size - s->tail < n) {
        if (size > SIZE_MAX / 2)
            return -1;
        size *= 2;
    }
    uint8_t *data = realloc(s->data, size);
    if (data == NULL)
        return -1;
    s->data = data;
    s->size = size;
    return 0;
}

void request_stash(struct infer_conn *c, struct request *r, const struct record *record)
{
    struct stash *s = &r->stash;
    size_t padded = infer_ring_padded(record->u.head.bytes);
    if (r->ended != 0)
        return; /* it has lost an event already; what follows would mislead */
    if (stash_grow(s, padded) < 0) {
        request_end(c, r, INFER_E_OUT_OF_MEMORY);
        return;
    }
    memcpy(s->data + s->tail, record->u.bytes, padded);
    s->tail += padded;
    if (record->u.head.kind == INFER_ABI_EV_DONE)
        r->done_stashed = true;
    join_ready(c, r);
}

void request_unstash(struct infer_conn *c, struct request *r, struct record *ret)
{
    struct stash *s = &r->stash;
    struct infer_abi_record head;
    memcpy(&head, s->data + s->head, sizeof head);
    memcpy(ret->u.bytes, s->data + s->head, head.bytes);
    s->head += infer_ring_padded(head.bytes);
    if (s->head == s->tail) {
        s->head = s->tail = 0;
        if (r->ended == 0)
            leave_ready(c, r);
    } else if (r->ready) { /* to the end of the line */
        leave_ready(c, r);
        join_ready(c, r);
    }
}
