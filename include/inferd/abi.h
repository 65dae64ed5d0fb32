/* abi.h: the wire between libinferclient and the daemon: handshake, shared files, records.
 *
 * Handshake, over a SOCK_SEQPACKET Unix socket:
 *
 *   client -> daemon   infer_abi_hello
 *   daemon -> client   infer_abi_welcome, with five descriptors (SCM_RIGHTS) when error is 0:
 *                      [0] the request file   memfd, sealed; the client maps it read-write
 *                      [1] the token file     memfd, sealed FUTURE_WRITE too; mapped read-only
 *                      [2] the doorbell       eventfd; the client writes it to wake the daemon
 *                      [3] the bell           reading end of a pipe; the daemon writes 8 bytes
 *                                             to wake the client
 *
 *                      [4] the status file    memfd, sealed FUTURE_WRITE, one for all sessions;
 *                                             mapped read-only: struct infer_status_page
 *
 * After that the socket carries nothing: its closing tells each side that the other is gone, and
 * so does, on the client's side, the hang-up of the bell, whose writing end the daemon alone holds.
 *
 * A second welcome. A service manager may keep the daemon's end of the socket while one daemon ends
 * and the next one starts. The client that can live with that says so (INFER_ABI_TAKES_WELCOMES),
 * the daemon that will do so answers so (INFER_ABI_KEEPS_SOCKET). The next daemon then sends
 * another infer_abi_welcome with new descriptors over the same socket; no hello comes before it.
 * The files of the first welcome are dead from then on, unfinished requests are lost. A client
 * that has seen the bell hang up, or `closed` with SHUTDOWN, waits for that welcome for a while;
 * when the socket hangs up too there will be none.
 *
 * Each file has one writer. The request file holds the words and records that the client writes,
 * the token file those that the daemon writes:
 *
 *   request file:  infer_abi_client_words | data of the request ring (at INFER_ABI_DATA_OFFSET)
 *   token file:    infer_abi_daemon_words | data of the token ring   (at INFER_ABI_DATA_OFFSET)
 *
 * The bell is a pipe and not an eventfd because a client shares the open file: it could fill an
 * eventfd's counter, make it blocking, and stop the daemon in write(2).
 *
 * Wake-ups. Having rung, the daemon does not ring again before token_head moves; so a client stores
 * token_head before it stores waiting, and looks at token_tail once more before it sleeps.
 *
 * Negotiation. The daemon picks the largest version both know. Within a version structs only grow
 * at their end: a sender says how many bytes of a struct it knows (`bytes`, `fixed_bytes`), a
 * receiver takes what it knows and reads the rest as zero; less than the struct's first form (the
 * _MIN constants) is a protocol error. An unknown record kind from the client is answered with
 * UNSUPPORTED; an unknown event kind is to be skipped by the client.
 *
 * All integers are in the machine's byte order: the wire never leaves the machine. */
#ifndef INFERD_ABI_H
#define INFERD_ABI_H

#include "limits.h"
#include "sampling.h"

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define INFER_ABI_MAGIC       0x64666e69u /* "infd" */
#define INFER_ABI_VERSION_MIN 1u
#define INFER_ABI_VERSION     1u
#define INFER_ABI_DATA_OFFSET 4096u
#define INFER_ABI_FDS         5

/* ---- handshake ------------------------------------------------------------------------------- */

struct infer_abi_hello {
    uint32_t magic;
    uint32_t bytes; /* sizeof this struct at the sender */
    uint32_t version_min, version_max;
    uint32_t request_ring_bytes; /* wanted; rounded up to a power of two and clamped; 0: default */
    uint32_t token_ring_bytes;
    uint32_t flags; /* INFER_ABI_TAKES_WELCOMES */
    uint32_t reserved;
    char client[INFER_CLIENT_NAME_MAX]; /* program's name, for status; any bytes, NUL-terminated */
};

struct infer_abi_welcome {
    uint32_t magic;
    uint32_t bytes;
    uint32_t version; /* the version both will speak */
    int32_t error;    /* 0 or an INFER_E_ code; no descriptors then */
    uint32_t session;
    uint32_t request_ring_bytes, token_ring_bytes;
    uint32_t features;             /* INFER_ABI_KEEPS_SOCKET */
    char daemon[32];               /* version of the daemon, "0.1.0" */
    char detail[INFER_DETAIL_MAX]; /* what went wrong, for a person; "" when nothing */
};

/* infer_abi_hello.flags: the client takes a second welcome. */
#define INFER_ABI_TAKES_WELCOMES 1u
/* infer_abi_welcome.features: the socket may outlive the daemon, and bring a second welcome. */
#define INFER_ABI_KEEPS_SOCKET 1u

#define INFER_ABI_HELLO_MIN   64u
#define INFER_ABI_WELCOME_MIN 576u

/* ---- the shared words ------------------------------------------------------------------------ */

/* How a side sleeps, so that the other knows whether and how to wake it. */
enum infer_abi_waiting {
    INFER_ABI_AWAKE = 0,
    INFER_ABI_FUTEX = 1,   /* client only: on token_tail */
    INFER_ABI_EVENTFD = 2, /* the daemon on its doorbell, the client on its bell */
};

/* First page of the request file; written by the client alone. */
struct infer_abi_client_words {
    uint32_t request_tail; /* producer of the request ring */
    uint8_t pad0[124];
    uint32_t token_head; /* consumer of the token ring */
    uint8_t pad1[124];
    uint32_t waiting; /* enum infer_abi_waiting */
    uint8_t pad2[124];
};

/* First page of the token file; written by the daemon alone. */
struct infer_abi_daemon_words {
    uint32_t token_tail; /* producer of the token ring; the client's futex */
    uint8_t pad0[124];
    uint32_t request_head; /* consumer of the request ring */
    uint8_t pad1[124];
    uint32_t waiting; /* INFER_ABI_EVENTFD: ring the doorbell after a store of request_tail */
    uint8_t pad2[124];
    uint32_t closed; /* an INFER_E_ code once the daemon has ended the session */
    uint8_t pad3[124];
};

/* ---- records --------------------------------------------------------------------------------- */

/* Every record of either ring. It takes infer_ring_padded(bytes) of the ring. */
struct infer_abi_record {
    uint32_t bytes;   /* the whole record with this head, at most INFER_RECORD_MAX */
    uint16_t kind;    /* enum infer_abi_request_kind or infer_abi_event_kind */
    uint16_t flags;   /* per kind */
    uint32_t request; /* chosen by the client, not 0, unique among its unfinished requests */
    uint32_t answer;  /* of an event: which of the request's answers; zero from the client */
};

enum infer_abi_request_kind {
    INFER_ABI_SUBMIT = 1, /* infer_abi_submit, then the first bytes of the payload */
    INFER_ABI_DATA = 2,   /* more bytes of the payload of the last SUBMIT */
    INFER_ABI_CANCEL =
        3, /* the head alone; DONE follows with finish CANCEL, or nothing if it is over */
};

enum infer_abi_op {
    INFER_ABI_GENERATE = 1,   /* QUEUED, [PROMPT], TOKEN*, DONE */
    INFER_ABI_SCORE = 2,      /* RESULT(SCORES)*, DONE */
    INFER_ABI_TOKENIZE = 3,   /* RESULT(IDS)*, DONE */
    INFER_ABI_DETOKENIZE = 4, /* RESULT(TEXT)*, DONE */
    INFER_ABI_STATUS = 5,     /* RESULT(STATUS), DONE; no payload, no model */
    INFER_ABI_MODELS = 6,     /* RESULT(MODELS)*, DONE; no payload, no model */
    /* Ends the request whose daemon-wide id is submit.target: one of the same user's, or anybody's
     * for root and the daemon's own user. NOT_FOUND for an unknown id and somebody else's alike. */
    INFER_ABI_END = 7, /* DONE */
    /* Ends the conversation submit.target. NOT_FOUND for an unknown id and another user's alike. */
    INFER_ABI_FORGET = 8, /* DONE */
    /* The machine as text: cores, who works there, memory by node. For a person: no program can
     * rely on its form. */
    INFER_ABI_TOPOLOGY = 9, /* RESULT(BYTES)*, DONE; no payload, no model */
    /* OpenMetrics text 1.0.0. Sums for everybody; counts by user for root and the daemon's own
     * user, and of his own for everybody else. No payload, no model. */
    INFER_ABI_METRICS = 10, /* RESULT(BYTES)*, DONE */
};

enum infer_abi_input {
    INFER_ABI_TEXT = 1,     /* bytes without a terminating NUL; need not be UTF-8 */
    INFER_ABI_MESSAGES = 2, /* infer_abi_message, role, content, repeated; no padding */
    INFER_ABI_TOKENS = 3,   /* int32_t ids */
};

struct infer_abi_message {
    uint32_t role_bytes;
    uint32_t content_bytes;
};

/* infer_abi_submit.flags */
#define INFER_ABI_PARSE_SPECIAL 1u /* text may name special tokens such as <|im_start|> */
#define INFER_ABI_ADD_BOS       2u /* prepend BOS as the model's file wants it (never to TOKENS) */
#define INFER_ABI_WANT_PROMPT                                                                      \
    4u /* RESULT(IDS) with the prompt's token ids before the first TOKEN */
#define INFER_ABI_SHOW_SPECIAL 8u /* text of special tokens appears in answers and DETOKENIZE */

/* The daemon keeps prompt and answer as a conversation whose id is this request's (QUEUED); one
 * that continues a conversation keeps that one's id. */
#define INFER_ABI_KEEP 16u
/* Over a limit of its user (QUOTA) the request waits until the limit allows it. */
#define INFER_ABI_WAIT 32u

/* Payload sections follow each other without padding, in this order: input, stop strings (each a
 * uint32_t length and its bytes), logit biases (struct infer_logit_bias each). */
struct infer_abi_submit {
    struct infer_abi_record head;
    uint32_t fixed_bytes; /* sizeof this struct at the sender; the payload begins there */
    uint32_t op;          /* enum infer_abi_op */
    uint32_t flags;
    uint32_t input; /* enum infer_abi_input */
    uint32_t input_bytes;
    uint32_t stops_bytes;
    uint32_t biases_bytes;
    uint32_t n_top;                   /* SCORE: most likely tokens per position */
    char model[INFER_MODEL_NAME_MAX]; /* "": the only model served, or the first */
    struct infer_sampling sampling;   /* GENERATE */
    /* Below: since the second form; zero when the sender did not know them. */
    uint32_t priority;    /* enum infer_priority */
    uint32_t deadline_ms; /* DEADLINE unless it starts within so many milliseconds; 0: none */
    uint64_t target;      /* END, FORGET */
    /* Below: since the third form. GENERATE alone. */
    uint32_t n_answers; /* drawn from the one prompt, at most INFER_ANSWERS_MAX; 0 and 1: one */
    uint32_t window;    /* old tokens leave when the sequence is so long; 0: never */
    uint32_t sinks;     /* with window: so many first tokens never leave; 0: INFER_SINKS_DEFAULT */
    uint32_t reserved;
    uint64_t conversation; /* the input continues this one; 0: none */
};

#define INFER_ABI_SUBMIT_MIN 240u

enum infer_abi_event_kind {
    /* At admission, and again when the position changes while it waits. One of any operation that
     * waits for its model to be loaded also hears it every ten seconds. */
    INFER_ABI_EV_QUEUED = 1,
    INFER_ABI_EV_TOKEN = 2,
    INFER_ABI_EV_RESULT = 3,
    INFER_ABI_EV_DONE = 4,
    /* One of several answers is complete: an infer_abi_done for it alone. Only when n_answers > 1;
     * DONE, with the sums of all and the first error, follows the last of them. */
    INFER_ABI_EV_ANSWER = 5,
};

/* The request was admitted, or has moved in the queue. */
struct infer_abi_queued {
    struct infer_abi_record head;
    uint64_t id;       /* daemon-wide */
    uint32_t n_prompt; /* tokens of the prompt */
    uint32_t position; /* requests before it; 0: it runs at the next step */
    uint64_t start_us; /* estimate: microseconds until it starts; 0: now, or not known yet */
};

/* flags of a TOKEN: text that became final without a token of its own (held back while a stop
 * string could still match, or while a UTF-8 sequence was incomplete). */
#define INFER_ABI_TEXT_ONLY 1u

/* One token: then text_bytes bytes of text padded to 4, then n_top infer_logprob entries. */
struct infer_abi_token {
    struct infer_abi_record head;
    int32_t token;
    float logprob;  /* when the request asked for logprobs, otherwise 0 */
    uint32_t index; /* 0 for the answer's first token */
    uint16_t text_bytes;
    uint16_t n_top;
};

enum infer_abi_result {
    INFER_ABI_IDS = 1,           /* int32_t each */
    INFER_ABI_SCORES = 2,        /* infer_abi_score, then its top entries, repeated */
    INFER_ABI_BYTES = 3,         /* text */
    INFER_ABI_STATUS_RECORD = 4, /* struct infer_status of client.h */
    INFER_ABI_MODEL_RECORD = 5,  /* one struct infer_model of client.h */
};

/* A part of a result, then the bytes. */
struct infer_abi_result_head {
    struct infer_abi_record head;
    uint32_t what;   /* enum infer_abi_result */
    uint32_t offset; /* bytes of this result that came before */
};

/* One scored token: log P(token | those before it); the first of a sequence has none (NaN). */
struct infer_abi_score {
    int32_t token;
    float logprob;
    uint32_t n_top; /* infer_logprob entries that follow */
};

/* The last event of every request: then detail_bytes of text for a person. */
struct infer_abi_done {
    struct infer_abi_record head;
    int32_t error;   /* 0 or an INFER_E_ code */
    uint32_t finish; /* enum infer_finish of sampling.h */
    uint32_t n_prompt, n_tokens;
    uint32_t n_prompt_cached; /* prompt tokens that cost no prefill */
    uint32_t detail_bytes;
    uint64_t queue_us;   /* admission to first step */
    uint64_t prefill_us; /* first step to first token */
    uint64_t decode_us;  /* first token to last */
};

/* ---- managing -------------------------------------------------------------------------------- */

/* The sockets of the daemon that serves all users. */
#define INFER_SYSTEM_SOCKET        "/run/inferd/inferd.sock"
#define INFER_SYSTEM_MANAGE_SOCKET "/run/inferd/manage.sock"

/* Over a SOCK_SEQPACKET socket of its own, beside the one for use: its path has "-manage" before
 * the ".sock" at its end (or at the end), but for the system's. For root and the daemon's own user
 * alone.
 *
 *   manager -> daemon   infer_manage_request; of LOAD with the model's files (SCM_RIGHTS)
 *   daemon -> manager   infer_manage_event, PROGRESS any number of times, then one DONE
 *
 * Then the next request may follow. Hanging up during LOAD cancels it. The files are the parts of
 * one model in their order: regular files that are open for reading, which the daemon reads and
 * does not look for by any path; so whoever may open them may have them loaded. */
#define INFER_MANAGE_MAGIC     0x6d666e69u /* "infm" */
#define INFER_MANAGE_FILES_MAX 128u        /* half of what the kernel takes in one message */
#define INFER_MANAGE_DEFAULT   UINT32_MAX  /* as keep_alive_s: the configuration's */

enum infer_manage_op {
    INFER_MANAGE_LOAD = 1,
    INFER_MANAGE_UNLOAD = 2,
    INFER_MANAGE_RELOAD = 3, /* the configuration */
};

/* infer_manage_request.flags */
#define INFER_MANAGE_DRY_RUN 1u /* LOAD: say what it would take, and nothing more */
#define INFER_MANAGE_PIN     2u /* LOAD: it never leaves for another model's sake */
#define INFER_MANAGE_FORCE   4u /* UNLOAD: its requests end now */
#define INFER_MANAGE_DEVICE  8u /* LOAD: device is set; older daemons refuse the flag */

/* Of what is 0, the configuration's. */
struct infer_manage_request {
    uint32_t magic;
    uint32_t bytes; /* sizeof this struct at the sender */
    uint32_t op;    /* enum infer_manage_op */
    uint32_t flags;
    uint32_t n_context, parallel;
    uint32_t k_type, v_type; /* enum infer_type: F16, Q8_0 or Q4_0 */
    uint64_t state_bytes;
    uint32_t keep_alive_s; /* 0: it stays; INFER_MANAGE_DEFAULT */
    uint32_t n_files;      /* descriptors with this message; 0: of LOAD, the model that is listed */
    char name[INFER_MODEL_NAME_MAX];
    char file[INFER_MODEL_NAME_MAX];    /* what messages call the file */
    char device[INFER_DEVICE_NAME_MAX]; /* with DEVICE: "auto", "cpu", "cuda" or "cuda:0" */
};

enum infer_manage_kind { INFER_MANAGE_PROGRESS = 1, INFER_MANAGE_DONE = 2 };

struct infer_manage_event {
    uint32_t magic;
    uint32_t bytes;
    uint32_t kind;                    /* enum infer_manage_kind */
    int32_t error;                    /* DONE: 0 or an INFER_E_ code */
    uint64_t done_bytes, total_bytes; /* PROGRESS */
    /* DONE of LOAD: by purpose, as estimated. */
    uint64_t weights_bytes, state_bytes, scratch_bytes, vocabulary_bytes;
    uint64_t available_bytes; /* that it was compared with */
    uint32_t n_context, n_pages, page_tokens, reserved;
    char detail[INFER_DETAIL_MAX]; /* for a person */
};

#define INFER_MANAGE_REQUEST_MIN 176u
#define INFER_MANAGE_EVENT_MIN   600u

#define INFER_ABI_ASSERT(name, condition) typedef char infer_abi_assert_##name[(condition) ? 1 : -1]

INFER_ABI_ASSERT(hello, sizeof(struct infer_abi_hello) == INFER_ABI_HELLO_MIN);
INFER_ABI_ASSERT(welcome, sizeof(struct infer_abi_welcome) == INFER_ABI_WELCOME_MIN);
INFER_ABI_ASSERT(client_words, sizeof(struct infer_abi_client_words) == 384);
INFER_ABI_ASSERT(daemon_words, sizeof(struct infer_abi_daemon_words) == 512);
INFER_ABI_ASSERT(record, sizeof(struct infer_abi_record) == 16);
INFER_ABI_ASSERT(submit, sizeof(struct infer_abi_submit) == INFER_ABI_SUBMIT_MIN + 40);
INFER_ABI_ASSERT(sampling, sizeof(struct infer_sampling) == 128);
INFER_ABI_ASSERT(queued, sizeof(struct infer_abi_queued) == 40);
INFER_ABI_ASSERT(token, sizeof(struct infer_abi_token) == 32);
INFER_ABI_ASSERT(result, sizeof(struct infer_abi_result_head) == 24);
INFER_ABI_ASSERT(done, sizeof(struct infer_abi_done) == 64);
INFER_ABI_ASSERT(manage_request, sizeof(struct infer_manage_request) ==
                                     INFER_MANAGE_REQUEST_MIN + INFER_DEVICE_NAME_MAX);
INFER_ABI_ASSERT(manage_event, sizeof(struct infer_manage_event) == INFER_MANAGE_EVENT_MIN);

#ifdef __cplusplus
}
#endif

#endif
