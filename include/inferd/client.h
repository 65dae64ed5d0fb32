/* client.h: libinferclient, the way a program uses inferd.
 *
 *     struct infer_conn *c;
 *     struct infer_request r;
 *     struct infer_event e;
 *     uint32_t id;
 *
 *     infer_connect(NULL, &c);
 *     infer_request_default(&r);
 *     r.text = "What is tar?";
 *     infer_submit(c, &r, &id);
 *     while (infer_next(c, id, -1, &e) == 1 && e.kind != INFER_EVENT_DONE)
 *         fwrite(e.text, 1, e.text_bytes, stdout);
 *     infer_close(c);
 *
 * (client/examples/hello.c is this with errors handled.)
 *
 * Return values: 0 or positive is success, negative is minus an INFER_E_ code of errors.h;
 * infer_strerror() makes a sentence of it and infer_detail() adds what is particular to this case.
 * Out-parameters (ret_*) are untouched on failure.
 *
 * Threads. A connection may be used by several threads: submit, cancel and the one-shot calls take
 * a lock. infer_next() may wait in one thread at a time; a second gets INFER_E_BUSY. Different
 * connections share nothing.
 *
 * Lost daemon. When the daemon dies, every unfinished request ends with a DONE event whose error
 * is INFER_E_DAEMON_LOST, within 100 ms also for a sleeping infer_next(); when the daemon stops in
 * order, what it could not finish ends with INFER_E_SHUTDOWN. The next infer_submit() or one-shot
 * call connects again, with the same struct infer_conn and infer_poll_fd(). Where the service
 * manager keeps the connection for the next daemon, such a call waits up to 30 s for that daemon to
 * come, and infer_next() takes notice of it when it is there.
 *
 * Fork. A child may not use its parent's connection: its first call on it notices, forgets the
 * parent's requests and connects anew. The parent is not disturbed.
 *
 * The library never logs, never exits, never touches signals, environment (but for reading
 * INFERD_SOCKET and XDG_RUNTIME_DIR) or the working directory, and needs libc alone. */
#ifndef INFERD_CLIENT_H
#define INFERD_CLIENT_H

#include "errors.h"
#include "limits.h"
#include "sampling.h"

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct infer_conn;

/* ---- connection ------------------------------------------------------------------------------ */

struct infer_connect_options {
    const char *socket;          /* NULL: $INFERD_SOCKET, then $XDG_RUNTIME_DIR/inferd.sock when it
                                    exists, then /run/inferd/inferd.sock */
    const char *client_name;     /* shown by `inferctl status`; NULL: the program's name */
    uint32_t request_ring_bytes; /* 0: default; limits.h has the bounds */
    uint32_t token_ring_bytes;
    uint32_t spin_us; /* how long infer_next() polls before it sleeps; 0: 20; UINT32_MAX: ever */
};

/* Connects and maps the rings. A daemon that is there but does not answer, as it does not while it
 * starts, is waited for, 30 s at most. options may be NULL. On failure nothing is held and
 * *ret_conn is untouched; infer_detail(NULL) tells more (per thread). */
int infer_connect(const struct infer_connect_options *options, struct infer_conn **ret_conn);

/* Ends all requests and frees everything. NULL is allowed. */
void infer_close(struct infer_conn *conn);

/* A descriptor that is readable when infer_next() has something to give, or the daemon is gone;
 * for poll, epoll, GLib, Qt. Owned by the connection; do not read it, call infer_next(.., 0, ..)
 * until that returns 0. It stays the same over a reconnect. Negative code on failure. */
int infer_poll_fd(struct infer_conn *conn);

/* Version of the daemon at the other end ("0.1.0"), and of this library. */
const char *infer_daemon_version(struct infer_conn *conn);
const char *infer_version(void);

/* ---- requests -------------------------------------------------------------------------------- */

struct infer_message {
    const char *role; /* "system", "user", "assistant" */
    const char *content;
};

/* Give exactly one of text, messages or tokens. Nothing is kept after infer_submit() returns. */
struct infer_request {
    uint32_t bytes;                       /* sizeof(struct infer_request) as the caller knows it */
    uint32_t op;                          /* 0: generate */
    const char *model;                    /* NULL: the only model, or the first configured */
    const char *text;                     /* any bytes; not necessarily UTF-8 */
    size_t text_bytes;                    /* 0: strlen(text) */
    const struct infer_message *messages; /* rendered with the model's chat template */
    size_t n_messages;
    const int32_t *tokens; /* taken as they are */
    size_t n_tokens;
    int parse_special;        /* text may name special tokens, such as <|im_start|> */
    int no_bos;               /* do not prepend BOS where the model's file asks for it */
    int want_prompt;          /* a PROMPT event with the prompt's token ids comes first */
    int show_special;         /* special tokens of the answer appear in its text */
    const char *const *stops; /* answers end before any of these strings */
    size_t n_stops;
    const struct infer_logit_bias *biases;
    size_t n_biases;
    struct infer_sampling sampling;
    uint32_t priority;    /* enum infer_priority */
    uint32_t deadline_ms; /* fail with DEADLINE unless it starts within this time; 0: wait */
    /* Answers drawn from the one prompt, whose state they share; 0 and 1: one. Answer i is what a
     * request of its own with seed infer_answer_seed(sampling.seed, i) would be. Events tell which
     * answer they belong to; each ends with an ANSWER event, all of them with DONE. One that is
     * refused, lost or cancelled may end with DONE alone. */
    uint32_t n_answers;
    /* An endless answer (attention sinks and a sliding window, arXiv:2309.17453): when the sequence
     * is `window` tokens long, a quarter of it, the oldest after the first `sinks`, leaves, and the
     * rest moves up. Memory stays constant and max_tokens is not bounded by the context. window: 0
     * off, else 64 .. the model's context; sinks: 0 is INFER_SINKS_DEFAULT, at most window / 4. */
    uint32_t window, sinks;
    /* The daemon keeps prompt and answer, so that a later request of the same user, over any
     * connection, goes on from there: its `conversation` is the id of this one's QUEUED event, and
     * its input is only what is new (messages: the new turns). It ends by infer_forget(), by the
     * daemon's restart, or after hours without use; then NOT_FOUND. Not with n_answers. */
    int keep;
    uint64_t conversation; /* 0: none; implies keep. CONVERSATION while another request has it */
    int wait; /* over a limit of the user: wait in line instead of failing with QUOTA */
};

/* The seed of a request's answer i; of answer 0 the seed itself. */
uint64_t infer_answer_seed(uint64_t seed, uint32_t answer);

/* Zeroes the request and sets the defaults of sampling.h. */
void infer_request_default(struct infer_request *request);

/* Queues a request. Returns as soon as it is in the ring; waits (without bound, but for a lost
 * daemon) only while the ring is full. *ret_id names it on this connection. Errors found here:
 * INVALID, REQUEST_TOO_LARGE, DAEMON_ABSENT, DAEMON_LOST; the daemon's come as DONE events. */
int infer_submit(struct infer_conn *conn, const struct infer_request *request, uint32_t *ret_id);

/* Asks the daemon to stop a request within one step. Its DONE event still comes (finish CANCEL, or
 * whatever was on its way). INFER_E_NOT_FOUND when it is already over. */
int infer_cancel(struct infer_conn *conn, uint32_t id);

/* ---- events ---------------------------------------------------------------------------------- */

enum infer_event_kind {
    INFER_EVENT_QUEUED = 1, /* admitted; again when it moved in the queue */
    INFER_EVENT_PROMPT = 2, /* tokens of the prompt, when asked for */
    INFER_EVENT_TOKEN = 3,  /* one token, or text alone (has_token 0) */
    INFER_EVENT_RESULT = 4, /* a part of the result of a score, tokenize, ... request */
    INFER_EVENT_DONE = 5,   /* the last one */
    INFER_EVENT_ANSWER = 6, /* one of several answers is complete; fields as of DONE */
};

/* A name for enum infer_finish of sampling.h: "stop", "string", "length", "cancel", "error"; "" for
 * others. */
const char *infer_finish_name(uint32_t finish);

struct infer_event {
    uint32_t kind;    /* enum infer_event_kind */
    uint32_t request; /* whose */
    /* QUEUED */
    uint64_t id;
    uint32_t position; /* requests before it */
    /* QUEUED, DONE */
    uint32_t n_prompt;
    /* PROMPT */
    const int32_t *tokens;
    size_t n_tokens;
    /* TOKEN */
    int has_token;
    int32_t token;
    uint32_t index;
    float logprob;
    const struct infer_logprob *top;
    size_t n_top;
    /* TOKEN: text; DONE: the error's detail; RESULT: raw bytes. Not NUL-terminated by contract,
     * though a NUL does follow. Whole UTF-8 sequences only. */
    const char *text;
    size_t text_bytes;
    /* RESULT */
    uint32_t result; /* enum infer_abi_result of abi.h */
    /* DONE */
    int error;       /* 0 or a (positive) INFER_E_ code */
    uint32_t finish; /* enum infer_finish */
    uint32_t n_generated;
    uint32_t n_prompt_cached;
    uint64_t queue_us, prefill_us, decode_us;
    /* QUEUED */
    uint64_t start_us; /* estimated time until it starts; 0: now, or not known */
    /* TOKEN, ANSWER: which of n_answers, from 0; DONE: the answer that the error is of */
    uint32_t answer;
};

/* The next event of request id (0: of any request), waiting at most timeout_ms (-1: for ever, 0:
 * not at all). 1: *ret_event is set, its pointers valid until the next call of infer_next() on
 * this connection. 0: nothing within the time. INFER_E_NOT_FOUND: id is no unfinished request.
 * Events of other requests are kept for their own callers. */
int infer_next(struct infer_conn *conn, uint32_t id, int timeout_ms, struct infer_event *ret_event);

/* ---- one-shot calls: submit, wait, gather ---------------------------------------------------- */

/* All of these wait for the daemon's answer (timeout: 60 s of silence is DAEMON_LOST) and return
 * memory that the caller frees with infer_free(). */
void infer_free(void *memory);

struct infer_model {
    uint32_t bytes; /* sizeof(struct infer_model) at the daemon */
    char name[INFER_MODEL_NAME_MAX];
    char architecture[32];
    char description[64];   /* "46.2M Q6_K" */
    char backend[64];       /* "cpu: AVX-512 VNNI, 2 threads" */
    char chat_template[32]; /* "chatml", or "" when there is none that the daemon knows */
    uint32_t n_vocab, n_context, n_embd, n_layers;
    uint64_t n_parameters;
    uint64_t weights_bytes, state_bytes, scratch_bytes;
    int32_t bos, eos; /* -1: none */
    uint32_t add_bos; /* the file asks for BOS before text */
    uint32_t state;   /* enum infer_model_state; of older daemons 0: it is ready */
    /* Of a model that is not loaded everything above but its name is 0 or "". */
    uint32_t index;                   /* infer_page_sequence.model */
    uint32_t pinned;                  /* it never leaves for another model's sake */
    uint32_t keep_alive_s;            /* unused for so long, it leaves; 0: it stays */
    uint32_t n_requests;              /* unfinished ones, those that wait for it included */
    uint64_t idle_us;                 /* since its last request ended; 0: it has some */
    uint64_t vocabulary_bytes;        /* tokenizer, template and plan */
    uint64_t done_bytes, total_bytes; /* LOADING: of the file */
    int32_t error;                    /* FAILED: why, an INFER_E_ code */
    uint32_t reserved;
    char
        device[INFER_DEVICE_NAME_MAX]; /* what it runs on, "cpu" or "cuda:0"; of older daemons "" */
    uint64_t device_memory; /* of that device: bytes of its own, where weights, the pages of the
                             * state and scratch are; 0: it uses the host's */
    uint64_t device_free;   /* of these, what is free now */
    /* Of a model whose memory no device of its own holds: its first layers are on `device`, and
     * what follows them is here, in the host's memory. "" and 0: it is all on `device`. */
    char rest_device[40];
    uint32_t device_layers; /* of n_layers, those on `device` */
    uint32_t reserved_2;
    uint64_t rest_weights_bytes, rest_state_bytes, rest_scratch_bytes; /* of those above */
    uint64_t file_bytes; /* of its tensors in the file; weights_bytes is more where the backend
                          * keeps a type in a wider form */
    /* At which the device's own memory can be read, as measured, in bytes a second, and at which
     * the steps of the last 10 s that did nothing but decode read the weights: as many bytes as in
     * the file, all but the embedding table, once a step. 0: not known, or there were none; of a
     * model on two devices always. */
    uint64_t device_read_per_s, weights_read_per_s;
};

enum infer_model_state {
    INFER_MODEL_READY = 1,
    INFER_MODEL_LISTED = 2, /* not loaded; its first request loads it */
    INFER_MODEL_LOADING = 3,
    INFER_MODEL_LEAVING = 4, /* its requests end, then it is unloaded */
    INFER_MODEL_FAILED = 5,  /* it could not be loaded; a later request tries again */
};

int infer_models(struct infer_conn *conn, struct infer_model **ret_models, size_t *ret_n);

struct infer_status {
    uint32_t bytes; /* sizeof(struct infer_status) at the daemon */
    uint32_t pid;
    char version[32];
    char event_loop[16]; /* "io_uring" or "epoll" */
    uint64_t uptime_us;
    uint64_t memory_bytes;     /* resident */
    uint64_t memory_available; /* of the machine */
    uint32_t n_models, n_sessions;
    uint32_t n_running, n_waiting, n_parked;
    uint32_t n_pages, n_pages_used;
    uint32_t page_tokens;
    uint64_t n_requests, n_failed;      /* since start */
    uint64_t n_prompt_tokens, n_tokens; /* since start */
    double prompt_tokens_per_s;         /* over the steps of the last 10 s that did such work */
    double tokens_per_s;
    uint64_t n_steps;
    uint64_t n_preemptions;   /* since start: sequences that gave their pages to others */
    uint64_t n_conversations; /* kept now */
    uint32_t n_preempted;     /* of n_waiting: those that ran before */
    uint32_t reserved_32;
    uint64_t request_bytes;      /* host memory of unfinished requests: payloads and results */
    uint64_t conversation_bytes; /* host memory of conversations */
    uint64_t swap_memory_bytes;  /* saved states of preempted sequences, in memory */
    uint64_t swap_file_bytes;    /* and in the swap file */
    uint64_t session_bytes;      /* rings of all connections */
};

int infer_status(struct infer_conn *conn, struct infer_status *ret_status);

/* The daemon's counters, gauges and histograms as OpenMetrics text 1.0.0, NUL-terminated. Counts by
 * user are in it for root and the daemon's own user; others get the sums and their own.
 * UNSUPPORTED from an older daemon. */
int infer_metrics(struct infer_conn *conn, char **ret_text, size_t *ret_bytes);
/* The daemon's machine as text for a person: packages, nodes, caches and cores, which of the
 * daemon's threads is where, and its memory by node. To be freed with infer_free(). */
int infer_topology(struct infer_conn *conn, char **ret_text, size_t *ret_bytes);

/* Ends the request with this daemon-wide id (infer_event.id, infer_page), of any connection: one's
 * own, or anybody's for root and the user the daemon runs as. Uniformly NOT_FOUND otherwise. */
int infer_end(struct infer_conn *conn, uint64_t id);

/* Ends a conversation of this user (infer_request.keep): the daemon forgets its tokens and state.
 * NOT_FOUND for an unknown one and another user's alike; CONVERSATION while a request has it. */
int infer_forget(struct infer_conn *conn, uint64_t conversation);

/* ---- the status page: what runs, read from shared memory without asking the daemon ----------- */

#define INFER_PAGE_SEQUENCES 256u
#define INFER_PAGE_USERS     64u

enum infer_sequence_state {
    INFER_SEQUENCE_WAITING = 1,
    INFER_SEQUENCE_PREFILL = 2,
    INFER_SEQUENCE_DECODE = 3,
    INFER_SEQUENCE_PARKED = 4,    /* its client does not read */
    INFER_SEQUENCE_PREEMPTED = 5, /* it gave its pages to others and waits to go on */
};

struct infer_page_sequence {
    uint64_t id;
    uint32_t uid, pid;
    uint32_t model; /* index into infer_models() */
    uint32_t state; /* enum infer_sequence_state */
    uint32_t priority;
    uint32_t n_prompt, n_cached, n_tokens; /* cached: rows in its state; tokens: drawn so far */
    uint32_t n_pages;
    uint32_t position; /* WAITING */
    uint64_t age_us;   /* since admission */
    char client[INFER_CLIENT_NAME_MAX];
};

struct infer_page_user {
    uint32_t uid, weight;
    uint32_t n_running, n_waiting;
    uint32_t n_pages; /* set aside for what runs: the most it can come to hold */
    uint32_t reserved;
    uint64_t n_prompt_tokens, n_tokens; /* served since the user was last idle for long */
};

/* Written by the daemon at most ten times a second while anything runs, and once when it becomes
 * idle. Entries beyond the two bounds are left out; the counts in status are complete. */
struct infer_page {
    struct infer_status status;
    uint64_t written_us; /* CLOCK_MONOTONIC */
    uint32_t n_sequences, n_users;
    struct infer_page_sequence sequences[INFER_PAGE_SEQUENCES];
    struct infer_page_user users[INFER_PAGE_USERS];
};

/* What the status file holds: a sequence lock. sequence is odd while the daemon writes; a reader
 * copies page and takes the copy when sequence was even and the same before and after. */
struct infer_status_page {
    uint32_t sequence;
    uint32_t bytes; /* sizeof(struct infer_page) at the daemon */
    struct infer_page page;
};

/* A consistent copy of the page. No message passes, the daemon does not wake up. */
int infer_read_page(struct infer_conn *conn, struct infer_page *ret_page);

int infer_tokenize(struct infer_conn *conn, const char *model, const char *text, size_t text_bytes,
                   int add_bos, int parse_special, int32_t **ret_tokens, size_t *ret_n);

/* *ret_text is NUL-terminated; its bytes are counted without. */
int infer_detokenize(struct infer_conn *conn, const char *model, const int32_t *tokens, size_t n,
                     int show_special, char **ret_text, size_t *ret_bytes);

/* Log-probability of each token given those before it; logprob of the first is NaN. top holds
 * n_top entries per token (NULL when n_top is 0), those of the first token are NaN too. */
struct infer_scores {
    size_t n;
    int32_t *tokens;
    float *logprobs;
    uint32_t n_top;
    struct infer_logprob *top; /* [n][n_top] */
};

/* Scores request->text or request->tokens; no_bos and parse_special are honoured. Free with
 * infer_scores_free(). */
int infer_score(struct infer_conn *conn, const struct infer_request *request, uint32_t n_top,
                struct infer_scores *ret_scores);
void infer_scores_free(struct infer_scores *scores);

/* ---- managing: models that come and go ----------------------------------------------------------
 *
 * For root and the user that the daemon runs as, over a socket beside the one for use
 * ("inferd.sock" has "inferd-manage.sock"). These calls make a connection of their own and wait for
 * the answer; infer_detail(NULL) tells more of what they returned. */

/* What to load. All but path may be left as infer_load_default() set it. */
struct infer_load {
    uint32_t bytes;     /* sizeof(struct infer_load) as the caller knows it */
    uint32_t n_context; /* 0: the configuration's, as with what follows */
    /* Opened here and handed over open: the daemon needs no permission on it or on its folders. Of
     * a split model the first part; the others are found beside it by their names. NULL: the
     * model that the daemon lists by this name. */
    const char *path;
    const char *name;   /* NULL: the file's without folder, ".gguf" and part number */
    const char *socket; /* the daemon's, as infer_connect() has it */
    const char *cache_type_k, *cache_type_v; /* "f16", "q8_0", "q4_0" */
    uint64_t state_bytes;
    uint32_t parallel;
    uint32_t keep_alive_s; /* 0: it stays; UINT32_MAX: the configuration's */
    int pin;               /* it never leaves for another model's sake */
    int dry_run;           /* only say what it would take */
    /* Called a few times a second; total_bytes is 0 before anything was read. Not 0: stop loading,
     * CANCELLED. May be NULL. */
    int (*progress)(void *ctx, uint64_t done_bytes, uint64_t total_bytes);
    void *progress_ctx;
    const char *device; /* what holds it: "auto", "cpu", "cuda:0"; NULL: the configuration's */
};

/* What it takes, by purpose. */
struct infer_loaded {
    uint32_t bytes; /* sizeof(struct infer_loaded) as the caller knows it, set by him */
    uint32_t n_context;
    uint64_t weights_bytes, state_bytes, scratch_bytes, vocabulary_bytes;
    uint64_t available_bytes; /* that this was compared with */
    uint32_t n_pages, page_tokens;
};

void infer_load_default(struct infer_load *load);
/* Returns when the model is ready (or, of a dry run, sized: MODEL_TOO_LARGE also fills *ret). ret
 * may be NULL. MODEL_*, UNKNOWN_MODEL, INVALID, CANCELLED, DAEMON_*. */
int infer_load(const struct infer_load *load, struct infer_loaded *ret);
/* Returns when it has left and its memory is given back: after its requests have ended, or with
 * `force` at once, and they end with UNLOADED. UNKNOWN_MODEL. */
int infer_unload(const char *socket, const char *name, int force);
/* The daemon reads its configuration again. infer_detail(NULL) is what changed, or why nothing. */
int infer_reload(const char *socket);

/* ---- errors ---------------------------------------------------------------------------------- */

/* A sentence for a code of errors.h or an errno, of either sign. Static memory. */
const char *infer_strerror(int code);
/* "UNKNOWN_MODEL" and the like; "" for an unknown code. */
const char *infer_error_name(int code);
/* inferctl's exit status for a code. */
int infer_error_exit(int code);
/* What is particular to the last failure on this connection (NULL: of infer_connect() in this
 * thread), or "". Valid until the next call on the connection. */
const char *infer_detail(struct infer_conn *conn);

#ifdef __cplusplus
}
#endif

#endif
