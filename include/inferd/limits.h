/* limits.h: every bound of the contract between client, daemon and backend, with its reason.
 *
 * A bound that only one module knows stands in that module; what two sides must agree on, or what
 * a user can run into, stands here. Sizes are bytes unless the name says otherwise. */
#ifndef INFERD_LIMITS_H
#define INFERD_LIMITS_H

/* Rings: powers of two. The token ring holds about 4,000 short token events, so that a client may
 * sleep for seconds at reading speed before its sequence is parked. */
#define INFER_REQUEST_RING_MIN     (4u << 10)
#define INFER_REQUEST_RING_DEFAULT (64u << 10)
#define INFER_REQUEST_RING_MAX     (4u << 20)
#define INFER_TOKEN_RING_MIN       (16u << 10)
#define INFER_TOKEN_RING_DEFAULT   (256u << 10)
#define INFER_TOKEN_RING_MAX       (4u << 20)

/* One record on a ring: small enough that the smallest ring holds two of them. */
#define INFER_RECORD_MAX 2048u

/* What one request may carry (text, messages or 4-byte token ids, stop strings and biases):
 * one million token ids. The daemon holds at most one unfinished payload per session. */
#define INFER_REQUEST_BYTES_MAX (4u << 20)

#define INFER_MODEL_NAME_MAX     64u  /* with the NUL; also what a status line can show */
#define INFER_DEVICE_NAME_MAX    40u  /* likewise; "cuda:0" */
#define INFER_CLIENT_NAME_MAX    32u  /* with the NUL; shown by status */
#define INFER_DETAIL_MAX         512u /* with the NUL; one sentence that names numbers */
#define INFER_MESSAGES_MAX       4096u
#define INFER_ROLE_MAX           32u /* bytes of a role's name */
#define INFER_STOPS_MAX          16u
#define INFER_STOP_BYTES_MAX     128u /* one stop string; bounds the text held back while matching */
#define INFER_LOGIT_BIASES_MAX   1024u
#define INFER_TOP_MAX            20u /* log-probabilities per position, as hosted services allow */
#define INFER_TOKEN_TEXT_MAX     1024u /* text of one token event; a longer text is split */
#define INFER_TOP_K_MAX          (1u << 20)
#define INFER_PENALTY_WINDOW_MAX 4096u /* tokens that the penalties look back on */

/* Answers drawn from one prompt. */
#define INFER_ANSWERS_MAX 64u
/* First tokens that stay when a window slides: arXiv:2309.17453 finds four enough. */
#define INFER_SINKS_DEFAULT 4u
/* The smallest window: four pages of sequence state. */
#define INFER_WINDOW_MIN 64u
/* Conversations that the daemon keeps, and of one user. */
#define INFER_CONVERSATIONS_MAX      1024u
#define INFER_CONVERSATIONS_USER_MAX 128u

/* Requests of one session that are queued or running. */
#define INFER_SESSION_REQUESTS_MAX 256u
/* Sessions of one daemon: each costs two mappings, six descriptors and its rings. */
#define INFER_SESSIONS_MAX 1024u
/* Sequences that the scheduler knows, waiting ones included. */
#define INFER_SEQUENCES_MAX 4096u
/* Models of one daemon. */
#define INFER_MODELS_MAX 32u
/* Rows (tokens) of one backend step; sizes a backend's scratch memory. */
#define INFER_STEP_ROWS_MAX 1024u
/* Of a step that somebody may wait for: one with decodes, or of a backend that is not so fast that
 * more rows are over soon. One that works in the host's memory has room for no more. */
#define INFER_STEP_ROWS 512u
/* Sequences that one step may serve. */
#define INFER_STEP_SEQS_MAX 256u
/* Largest vocabulary taken from a file: four times the largest in use. */
#define INFER_VOCAB_MAX (1u << 20)

#endif
