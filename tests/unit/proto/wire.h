/* wire.h: the client's side of a session, by hand: what libinferclient does, and what it never
 * would. The memory is mapped through the descriptors that a client gets. */
#ifndef TESTS_UNIT_PROTO_WIRE_H
#define TESTS_UNIT_PROTO_WIRE_H

#include "inferd/ring.h"
#include "proto/session.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

struct wire {
    struct session *session;
    uint32_t request_bytes, token_bytes;
    struct infer_abi_client_words *words;
    uint8_t *requests;
    const struct infer_abi_daemon_words *daemon;
    const uint8_t *tokens;
    uint32_t tail, head;
};

static inline void wire_open(struct wire *w, uint32_t request_bytes, uint32_t token_bytes)
{
    struct peer peer = {.uid = 1, .client = "test"};
    memset(w, 0, sizeof *w);
    if (session_new(&peer, request_bytes, token_bytes, -1, &w->session) < 0)
        abort();
    struct session_fds fds = session_descriptors(w->session);
    w->request_bytes = request_bytes;
    w->token_bytes = token_bytes;
    void *a = mmap(NULL, INFER_ABI_DATA_OFFSET + request_bytes, PROT_READ | PROT_WRITE, MAP_SHARED,
                   fds.fd[0], 0);
    void *b = mmap(NULL, INFER_ABI_DATA_OFFSET + token_bytes, PROT_READ, MAP_SHARED, fds.fd[1], 0);
    if (a == MAP_FAILED || b == MAP_FAILED)
        abort();
    w->words = a;
    w->requests = (uint8_t *)a + INFER_ABI_DATA_OFFSET;
    w->daemon = b;
    w->tokens = (const uint8_t *)b + INFER_ABI_DATA_OFFSET;
}

static inline void wire_close(struct wire *w)
{
    session_free(w->session);
    munmap(w->words, INFER_ABI_DATA_OFFSET + w->request_bytes);
    munmap((void *)(uintptr_t)w->daemon, INFER_ABI_DATA_OFFSET + w->token_bytes);
}

static inline void wire_publish(struct wire *w)
{
    infer_ring_store(&w->words->request_tail, w->tail);
}

/* A record of head.bytes = announced, of which n bytes are really written. Not yet published. */
static inline void wire_put(struct wire *w, uint16_t kind, uint32_t request, uint32_t announced,
                            const void *body, uint32_t n)
{
    struct infer_abi_record head = {.bytes = announced, .kind = kind, .request = request};
    infer_ring_put(w->requests, w->request_bytes, w->tail, &head, sizeof head);
    if (n > 0)
        infer_ring_put(w->requests, w->request_bytes, w->tail + (uint32_t)sizeof head, body, n);
    w->tail += infer_ring_padded(sizeof head + n);
}

/* A SUBMIT with fixed_bytes of fixed part (beyond the struct: 0xee) and the first n bytes of
 * its payload. */
static inline void wire_submit(struct wire *w, uint32_t request, struct infer_abi_submit *submit,
                               uint32_t fixed_bytes, const void *payload, uint32_t n)
{
    uint8_t body[INFER_RECORD_MAX];
    memset(body, 0xee, sizeof body);
    submit->fixed_bytes = fixed_bytes;
    memcpy(body, (uint8_t *)submit + 16,
           (fixed_bytes < sizeof *submit ? fixed_bytes : sizeof *submit) - 16);
    if (n > 0)
        memcpy(body + fixed_bytes - 16, payload, n);
    wire_put(w, INFER_ABI_SUBMIT, request, fixed_bytes + n, body, fixed_bytes - 16 + n);
}

/* The next event, 0 when there is none. record has INFER_RECORD_MAX bytes. */
static inline uint32_t wire_take(struct wire *w, void *record)
{
    struct infer_abi_record head;
    uint32_t tail = infer_ring_load(&w->daemon->token_tail);
    if (tail == w->head)
        return 0;
    infer_ring_get(w->tokens, w->token_bytes, w->head, &head, sizeof head);
    infer_ring_get(w->tokens, w->token_bytes, w->head, record, head.bytes);
    w->head += infer_ring_padded(head.bytes);
    infer_ring_store(&w->words->token_head, w->head);
    return head.bytes;
}

#endif
