/* raw.h: a client that speaks the protocol by hand, so that a test can speak it wrongly. */
#ifndef INFERD_TESTS_RAW_H
#define INFERD_TESTS_RAW_H

#include "inferd/abi.h"
#include "inferd/client.h"
#include "support/daemon.h"

struct raw {
    int socket;
    int fd[INFER_ABI_FDS];
    struct infer_abi_client_words *ours;         /* request file */
    const struct infer_abi_daemon_words *theirs; /* token file */
    uint8_t *requests;
    const uint8_t *tokens;
    uint32_t request_bytes, token_bytes;
    uint32_t tail; /* of the request ring */
    uint32_t head; /* of the token ring */
    struct infer_abi_welcome welcome;
};

/* A connected socket before the handshake; negative errno. */
int raw_socket(const struct daemon *d);
void raw_hello_default(struct infer_abi_hello *ret);
/* Sends so many bytes as the hello and waits for the answer. 1: a welcome came (see r->welcome);
 * 0: the daemon closed the connection without one. Mapped when welcome.error is 0. */
int raw_handshake(struct raw *r, const struct daemon *d, const void *hello, size_t bytes);
/* A good handshake; fails the test otherwise. */
void raw_open(struct raw *r, const struct daemon *d);
void raw_close(struct raw *r);

/* Puts bytes into the request ring as they are and moves the private tail; raw_publish() shows it
 * to the daemon and rings the doorbell. */
void raw_put(struct raw *r, const void *bytes, uint32_t n);
void raw_publish(struct raw *r);
/* Free bytes in the request ring. */
uint32_t raw_room(const struct raw *r);

/* A SUBMIT with its payload in the same record; fields may be changed in *ret before it is put. */
void raw_submit_default(struct infer_abi_submit *ret, uint32_t request, uint32_t max_tokens);
void raw_put_submit(struct raw *r, const struct infer_abi_submit *submit, const void *payload,
                    uint32_t payload_bytes);

/* The next event within the time: 1, copied to buffer (INFER_RECORD_MAX bytes); 0: none; -1: the
 * daemon closed the session. */
int raw_next(struct raw *r, int timeout_ms, void *buffer);
/* Skips events until DONE of this request; its error; -1: the session was closed; -2: silence for
 * timeout_ms. */
int raw_wait_done(struct raw *r, uint32_t request, int timeout_ms);
/* Is the session closed by the daemon within the time? */
bool raw_wait_closed(struct raw *r, int timeout_ms);

#endif
