/* admit.h: from a request record to a checked, typed request.
 *
 * Works on private copies only (session.h made them), so nothing here races with the client; but
 * every length and number in them is still the client's choice and is checked here. What passes
 * obeys limits.h and needs no further look but for what only the model knows (vocabulary, context,
 * template).
 *
 * Threads: any; pure. */
#ifndef INFERD_PROTO_ADMIT_H
#define INFERD_PROTO_ADMIT_H

#include "proto/session.h"

#include <stddef.h>

struct admit_bytes {
    const char *data;
    uint32_t bytes;
};

struct admit_message {
    struct admit_bytes role, content;
};

struct admit_request {
    uint32_t request; /* the client's number */
    uint32_t op;      /* enum infer_abi_op */
    uint32_t flags;   /* conversation not 0: KEEP is among them */
    uint32_t n_top;
    char model[INFER_MODEL_NAME_MAX]; /* NUL-terminated; "": default */
    uint32_t input;          /* enum infer_abi_input; 0 for what takes no input: STATUS, END, ... */
    struct admit_bytes text; /* TEXT */
    struct admit_message *messages; /* MESSAGES; points into payload */
    uint32_t n_messages;
    const int32_t *tokens; /* TOKENS; aligned copy */
    uint32_t n_tokens;
    struct admit_bytes stops[INFER_STOPS_MAX];
    uint32_t n_stops;
    struct infer_logit_bias *biases; /* aligned copy */
    uint32_t n_biases;
    struct infer_sampling sampling; /* complete: fields that the client did not know are defaults */
    uint32_t priority;              /* enum infer_priority */
    uint32_t deadline_ms;           /* 0: none */
    uint64_t target;                /* END, FORGET: a daemon-wide id, which need not exist */
    uint32_t n_answers;             /* 1 .. INFER_ANSWERS_MAX */
    uint32_t window;                /* 0: none; at least INFER_WINDOW_MIN */
    uint32_t sinks;                 /* complete, at most window / 4; 0 without window */
    uint64_t conversation;          /* 0: none; need not exist */
    uint8_t *payload;               /* owns what the fields above point to */
};

/* Takes the payload of a SUBMIT (sets r->payload to NULL). On failure the payload is freed and
 * report says which field is wrong, its value and its range. */
int admit_parse(struct session_request *r, struct admit_request *ret, struct report *report);
void admit_done(struct admit_request *a);

/* Are the parameters within the ranges that sampling.h states? Also used by tests. */
int admit_check_sampling(const struct infer_sampling *s, struct report *report);

#endif
