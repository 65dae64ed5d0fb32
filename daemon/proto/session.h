/* session.h: one client's connection after the handshake: its two rings, seen from the daemon.
 *
 * SECURITY. This module and admit.c are the only readers of client memory. The client can write
 * every byte of the request file at any time, from any thread; so every shared word is loaded once,
 * atomically, into private memory, checked there, and never looked at again; records are copied
 * out of the ring before a field of them is read; and the daemon's own indices live in private
 * memory, the shared copies being write-only. What is impossible (a tail that outruns the ring, a
 * record that is shorter than its head or longer than INFER_RECORD_MAX, a payload that overruns
 * what its SUBMIT announced) ends the session with INFER_E_PROTOCOL; it is never repaired.
 *
 * Threads: all functions of one session are called by one thread, the engine thread (dispatch.c);
 * session_new() by the event thread before it hands the session over. Nothing here blocks.
 * Memory: rings are allocated at the handshake; the payload buffer grows to the announced size,
 * at most INFER_REQUEST_BYTES_MAX, and is given away with each finished request. */
#ifndef INFERD_PROTO_SESSION_H
#define INFERD_PROTO_SESSION_H

#include "base/report.h"
#include "inferd/abi.h"

#include <stdbool.h>
#include <sys/types.h>

/* Who is at the other end, from the kernel (SO_PEERCRED); client is the program's own claim and
 * only ever shown. */
struct peer {
    uid_t uid;
    gid_t gid;
    pid_t pid;
    char client[INFER_CLIENT_NAME_MAX]; /* printable, NUL-terminated */
    /* The socket is to outlive the daemon. Before the handshake: if the client can live with that;
     * of a session's peer: it can, and was told. */
    bool kept;
};

struct session;

/* The descriptors a client gets, in the order of abi.h; owned by the session but for the last, the
 * status file's. */
struct session_fds {
    int fd[INFER_ABI_FDS];
};

/* Makes and maps both sealed files, the doorbell and the bell. Ring sizes as granted. status_fd: of
 * status_page.h, borrowed; it outlives the session. */
int session_new(const struct peer *peer, uint32_t request_ring_bytes, uint32_t token_ring_bytes,
                int status_fd, struct session **ret);
/* Unmaps and closes; the client's own mappings stay valid for it. */
void session_free(struct session *s);

const struct peer *session_peer(const struct session *s);
struct session_fds session_descriptors(const struct session *s);
void session_ring_sizes(const struct session *s, uint32_t *ret_request, uint32_t *ret_token);
/* The eventfd that the client writes when we sleep; the caller watches it, and drains it with
 * session_drain_doorbell(). Never read(2) it: the client shares the file and can clear O_NONBLOCK,
 * so that a read would block when it also took the count first. */
int session_doorbell(const struct session *s);
void session_drain_doorbell(const struct session *s);

/* ---- requests -------------------------------------------------------------------------------- */

/* One complete record in private memory. SUBMIT: payload holds payload_bytes bytes, given away:
 * the caller frees it with free(). */
struct session_request {
    uint16_t kind;    /* enum infer_abi_request_kind, or any other number: answer UNSUPPORTED */
    uint32_t request; /* never 0 */
    struct infer_abi_submit
        submit;       /* SUBMIT: the fixed part, unknown tail cut, missing tail zero */
    uint8_t *payload; /* SUBMIT: NULL when payload_bytes is 0 */
    uint32_t payload_bytes;
    int error; /* 0, or the INFER_E_ code to answer (REQUEST_TOO_LARGE, OUT_OF_MEMORY): the payload
                  was skipped, the session lives */
};

/* 1: *ret is a request. 0: nothing complete is there. Negative: -INFER_E_PROTOCOL, close it.
 * At most one ring's worth of bytes is consumed per call. */
int session_poll(struct session *s, struct session_request *ret);

/* Is there anything to read? One acquire load. */
bool session_pending(const struct session *s);

/* ---- events ---------------------------------------------------------------------------------- */

/* Written into the ring at once, seen by the client at the next session_publish(). A record goes in
 * whole or not at all: -EAGAIN when the ring lacks room (park the sequence), -INFER_E_PROTOCOL when
 * the client's head is impossible. */

/* Could a record of so many bytes be put now? INFER_RECORD_MAX always fits an empty ring. Also true
 * for a session that broke the protocol: the put that follows says so. */
bool session_has_room(struct session *s, uint32_t bytes);

/* May be put again for the same request as it moves in the queue. start_us: estimated time until it
 * starts; 0: now, or not known. */
int session_put_queued(struct session *s, uint32_t request, uint64_t id, uint32_t n_prompt,
                       uint32_t position, uint64_t start_us);
/* answer: which of the request's, 0 when it has one. text_bytes <= INFER_TOKEN_TEXT_MAX, n_top <=
 * INFER_TOP_MAX. text_only: INFER_ABI_TEXT_ONLY. */
int session_put_token(struct session *s, uint32_t request, uint32_t answer, int32_t token,
                      float logprob, uint32_t index, bool text_only, const char *text,
                      uint32_t text_bytes, const struct infer_logprob *top, uint32_t n_top);
/* bytes <= SESSION_RESULT_MAX. */
#define SESSION_RESULT_MAX (INFER_RECORD_MAX - sizeof(struct infer_abi_result_head))
int session_put_result(struct session *s, uint32_t request, uint32_t what, uint32_t offset,
                       const void *data, uint32_t bytes);
/* One of several answers is complete. done->head is filled here; detail may be NULL. */
int session_put_answer(struct session *s, uint32_t request, uint32_t answer,
                       const struct infer_abi_done *done, const char *detail);
/* The request is over. answer: whose error done carries; 0 without one. */
int session_put_done(struct session *s, uint32_t request, uint32_t answer,
                     const struct infer_abi_done *done, const char *detail);

/* Makes what was put visible and wakes the client if it sleeps. Costs one store and one load when
 * it does not, nothing when nothing was put. */
void session_publish(struct session *s);

/* Tells the client (words.closed) and wakes it; the session can only be freed after that. */
void session_close(struct session *s, int code);

/* ---- sleeping -------------------------------------------------------------------------------- */

/* Before the engine thread sleeps it announces that in every session; true: a request came in
 * meanwhile (edge C of ring.h), do not sleep. After it woke it clears the announcement. */
bool session_sleep(struct session *s);
void session_awake(struct session *s);

#endif
