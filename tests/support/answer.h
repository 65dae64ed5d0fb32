/* answer.h: submits a request and gathers the whole answer. For tests. */
#ifndef INFERD_TESTS_ANSWER_H
#define INFERD_TESTS_ANSWER_H

#include "inferd/client.h"
#include "support/daemon.h"

struct answer {
    int32_t *ids;
    float *logprobs;
    struct infer_logprob *top; /* [n][n_top] */
    size_t *ends;              /* bytes of text that were there after each token's event */
    size_t n, n_top;
    char *text;
    size_t text_bytes;
    int32_t *prompt; /* when want_prompt */
    size_t n_prompt;
    int error;
    uint32_t finish;
    uint32_t n_generated;
    char detail[INFER_DETAIL_MAX];
};

/* Connects to the test's daemon; fails the test when that does not work. */
struct infer_conn *answer_connect(const struct daemon *d);
/* As above with a token ring of so many bytes (0: default). */
struct infer_conn *answer_connect_ring(const struct daemon *d, uint32_t token_ring_bytes);

/* Submits and reads until DONE. Fails the test on anything that the contract of client.h forbids:
 * an event before QUEUED, a gap in the token indices, half a UTF-8 sequence, silence for long. */
void answer_get(struct infer_conn *c, const struct infer_request *r, struct answer *ret);
/* The reading half. */
void answer_gather(struct infer_conn *c, uint32_t id, struct answer *ret);
void answer_done(struct answer *a);

/* Wait until the daemon's status says that no request is left, or that so many sessions are; they
 * fail after 10 s. */
void answer_wait_idle(struct infer_conn *c);
void answer_wait_sessions(struct infer_conn *c, uint32_t n);

#endif
