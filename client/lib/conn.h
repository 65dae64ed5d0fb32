/* conn.h: inside libinferclient: one connection, its two rings and its unfinished requests.
 *
 * Roles. The rings have one producer and one consumer, but a connection has many threads:
 *   writer  whoever holds write_mutex: puts records into the request ring;
 *   reader  whoever holds mutex: takes records out of the token ring. A record that is not what
 *           the reader waits for is kept with its request (`stash`);
 *   leader  the one thread that spins and sleeps for all of them, without the mutex, while
 *           `leader` is set. The others wait on `changed`.
 * Lock order: write_mutex, then mutex.
 *
 * The link (socket, descriptors, mappings) is replaced by a thread that holds write_mutex and
 * mutex while there is no leader; so a writer, a leader, and a holder of mutex may each use it.
 *
 * Lost and found. A link is lost when the daemon ended it or died. Where the socket is kept for the
 * next daemon, `welcome_until_us` says how long its welcome is waited for: conn_ensure() waits,
 * infer_next() takes it when it is there. It brings new descriptors; the socket stays the same.
 *
 * Fork. `mark` is a page of its own with MADV_WIPEONFORK: the kernel gives a child zeroes there,
 * so that each call tells parent from child by one load. (A pid would cost a system call, and
 * pthread_atfork() handlers cannot be removed when the library is unloaded.) Where the kernel
 * lacks it, each call compares getpid(). */
#ifndef INFERCLIENT_CONN_H
#define INFERCLIENT_CONN_H

#include "inferd/abi.h"
#include "inferd/client.h"
#include "inferd/ring.h"

#include <pthread.h>
#include <stdbool.h>
#include <sys/types.h>

#define API __attribute__((visibility("default")))

/* Longest sleep between two looks at the socket; half of the promised 100 ms. */
#define CONN_SLICE_MS 50
/* A writer asks the socket first when it has heard nothing from the daemon for so long. */
#define CONN_QUIET_US 10000u
/* How long a lost connection waits for the next daemon's welcome before it connects anew. */
#define CONN_WELCOME_US 30000000u
#define CONN_TABLE      64u /* hash chains; a power of two */

/* One live connection to a daemon. */
struct link {
    int socket;
    int fd[INFER_ABI_FDS]; /* in the order of abi.h; the memory files are closed once mapped */
    void *request_map, *token_map;
    const struct infer_status_page *status; /* NULL: an older daemon has none */
    size_t status_bytes;                    /* of the mapping */
    uint32_t request_bytes, token_bytes;
    struct infer_abi_client_words *client;
    const struct infer_abi_daemon_words *daemon;
    uint8_t *request_data;
    const uint8_t *token_data;
    uint32_t session;
    bool kept; /* a second welcome may come over the socket */
    char version[32];
};

/* Bytes first in, first out; whole records, padded. */
struct stash {
    uint8_t *data;
    size_t head, tail, size;
};

/* An unfinished request: from infer_submit() until its DONE was given to the caller. */
struct request {
    uint32_t id;
    uint32_t op;
    bool private_call;         /* of a one-shot call: invisible to infer_next() */
    bool done_stashed;         /* the daemon is through with it */
    bool ready;                /* in the ready list */
    int ended;                 /* INFER_E_ code: DONE is made up once the stash is empty */
    uint32_t n_answers;        /* asked for, at most INFER_ANSWERS_MAX; 1 for other operations */
    uint64_t answers_complete; /* bits of those whose ANSWER was given */
    struct request *chain;
    struct request *ready_next, *ready_previous;
    struct stash stash;
    uint8_t *prompt; /* token ids gathered for the PROMPT event */
    uint32_t prompt_bytes, prompt_got;
};

/* A record in private memory, with room for the NUL after its text. */
struct record {
    union {
        uint8_t bytes[INFER_RECORD_MAX + 8];
        uint64_t align;
        struct infer_abi_record head;
    } u;
};

struct infer_conn {
    uint32_t *mark; /* 1 here, 0 in a fresh child, 2 while a child resets */
    pid_t pid;      /* 0 when mark works */

    pthread_mutex_t write_mutex;
    uint32_t request_tail; /* count of bytes written */
    uint32_t request_head; /* the daemon's, as last seen */
    uint64_t heard_us;     /* coarse clock: when the daemon was last known to live */

    pthread_mutex_t mutex;
    pthread_cond_t changed;
    unsigned followers;
    bool leader;
    bool in_next;
    bool poll_armed;           /* client.waiting is EVENTFD */
    bool poll_dirty;           /* the bell may have been rung */
    bool nudged;               /* the nudge is readable */
    int poll_fd;               /* epoll, -1: infer_poll_fd() was never called */
    int nudge_fd;              /* eventfd of our own: events wait in stashes */
    int lost;                  /* 0 when connected, else an INFER_E_ code */
    uint64_t welcome_until_us; /* lost: the next daemon may welcome us until then; 0: it will not */
    bool linked;               /* link holds something, be it lost or not */
    struct link link;
    uint32_t token_head, token_head_published, token_tail;

    struct request *table[CONN_TABLE];
    struct request *ready_first, *ready_last; /* public requests with something to give */
    struct request *spare;                    /* one freed request, to save a malloc */
    uint32_t id_last;

    struct record event; /* what the last infer_next() gave points here */
    uint8_t *event_prompt;

    uint32_t spin_us;
    uint32_t request_ring_wanted, token_ring_wanted;
    char *socket_path;
    char client_name[INFER_CLIENT_NAME_MAX];
    char version[32];
    char detail[INFER_DETAIL_MAX];
};

/* ---- link.c: making and ending a link, choice of the socket ---------------------------------- */

/* The socket's path by the rule of client.h; malloc'ed, or NULL. */
char *link_choose_socket(const char *wanted);
/* detail: INFER_DETAIL_MAX bytes. Negative INFER_E_ code. */
int link_open(const char *path, const char *client_name, uint32_t request_ring_bytes,
              uint32_t token_ring_bytes, struct link *ret, char *detail);
/* Without waiting: takes the welcome of the next daemon. 1: *ret has the same socket, and *old is
 * dead memory for link_drop(). 0: none is there. Negative: there will be none that can be used. */
int link_renew(const struct link *old, const char *path, struct link *ret, char *detail);
/* Waits for something to happen on the socket. */
void link_await(const struct link *link, int timeout_ms);
/* Frees all but the socket. */
void link_drop(struct link *link);
/* parting: also ends the connection for children that still hold the socket. */
void link_close(struct link *link, bool parting);
/* Has the daemon gone, or does the next one speak? One system call. */
bool link_is_dead(const struct link *link);
void link_ring_doorbell(const struct link *link);
/* A connected socket that waits for at most some seconds in each call. */
int link_connect(const char *path, int *ret_fd, char *detail);

/* ---- conn.c ---------------------------------------------------------------------------------- */

uint64_t conn_now_us(void);
/* What infer_detail(NULL) gives: INFER_DETAIL_MAX bytes of this thread. */
char *conn_thread_detail(void);
uint64_t conn_coarse_us(void);

/* To be called first in every public function that takes a connection. */
void conn_check_fork(struct infer_conn *c);
/* With mutex held: writes detail (printf; NULL: none) and returns -code. */
int conn_fail(struct infer_conn *c, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* With write_mutex held: if the link is gone, waits for the next daemon's welcome where one may
 * come, and connects again otherwise. */
int conn_ensure(struct infer_conn *c);
/* With mutex held, for who must not wait: takes the welcome if it is there. True: the link lives.
 */
bool conn_look_for_welcome(struct infer_conn *c);

/* The rest with mutex held. Marks the link lost and ends every request with the code. */
void conn_lose(struct infer_conn *c, int code);
/* After a look at the socket said so: takes what the daemon left, then conn_lose(). */
void conn_bury(struct infer_conn *c);
void conn_publish_head(struct infer_conn *c);

/* ---- poll.c: the descriptor for main loops; with mutex held; all do nothing without one ------ */

/* Before a call returns to the main loop: lets the descriptor speak for what comes or waits. */
void poll_arm(struct infer_conn *c);
/* A thread looks for itself now. */
void poll_disarm(struct infer_conn *c);
/* Nothing is left to give: the descriptor is to be silent until something comes. */
void poll_quiet(struct infer_conn *c);
/* An event waits in a stash. */
void poll_nudge(struct infer_conn *c);
/* Adds the link to the epoll set, or takes it out. */
int poll_add_link(struct infer_conn *c);
/* The daemon is gone: its bell would stay readable. */
void poll_remove_bell(struct infer_conn *c);
void poll_remove_link(struct infer_conn *c);
/* Closes it. The set may be shared with a parent process, so nothing is taken out of it. */
void poll_done(struct infer_conn *c);

/* ---- request.c: the table, stashes; with mutex held ------------------------------------------ */

struct request *request_find(struct infer_conn *c, uint32_t id);
/* A new one with an id of its own, or NULL without memory. */
struct request *request_add(struct infer_conn *c, const struct infer_abi_submit *submit,
                            bool private_call);
void request_remove(struct infer_conn *c, struct request *r);
/* Ends it from our side; its stash is given first. */
void request_end(struct infer_conn *c, struct request *r, int code);
/* Keeps a record; without memory the request ends with OUT_OF_MEMORY. */
void request_stash(struct infer_conn *c, struct request *r, const struct record *record);
bool request_has_stash(const struct request *r);
/* Takes the oldest record out of a stash that is not empty. */
void request_unstash(struct infer_conn *c, struct request *r, struct record *ret);
bool request_is_ready(const struct request *r);
/* forget: leave all memory as it is (it may be inconsistent). */
void request_remove_all(struct infer_conn *c, bool forget);

/* ---- send.c: the producer of the request ring; with write_mutex held ------------------------- */

struct send_piece {
    const void *data;
    uint32_t bytes;
};
/* Puts submit and its payload, in as many records as it takes; waits while the ring is full. */
int send_submit(struct infer_conn *c, struct infer_abi_submit *submit,
                const struct send_piece *pieces, size_t n_pieces);
int send_cancel(struct infer_conn *c, uint32_t id);

/* ---- submit.c -------------------------------------------------------------------------------- */

/* A request with what the one-shot calls need on top. */
struct ask {
    const struct infer_request *request; /* as its caller knows it: look at its `bytes` */
    uint32_t n_top;
    uint64_t target;
};

/* The request with zeroes for what its caller does not know; false: less than its first form. */
bool submit_known(const struct infer_request *request, struct infer_request *ret);
int submit_request(struct infer_conn *c, const struct ask *ask, bool private_call,
                   uint32_t *ret_id);

/* ---- receive.c: the consumer of the token ring ----------------------------------------------- */

/* With mutex held: moves all that is in the ring into the stashes. */
void receive_drain(struct infer_conn *c);
/* With mutex held (left and taken again while waiting). id 0: of any public request. timeout_ms as
 * of infer_next(). 1: *ret is filled, pointing into *record. */
int receive_event(struct infer_conn *c, uint32_t id, int timeout_ms, struct record *record,
                  struct infer_event *ret);

/* ---- event.c: from a record to an event ------------------------------------------------------ */

/* With mutex held. 1: *ret is an event. 0: the record gives none (yet). A DONE removes r.
 * Negative: the record is malformed. */
int event_decode(struct infer_conn *c, struct request *r, struct record *record,
                 struct infer_event *ret);
/* The DONE of a request that ended from our side; removes r. */
void event_ended(struct infer_conn *c, struct request *r, struct infer_event *ret);

/* struct infer_load before it could name a device. */
#define LOAD_OLDER_BYTES offsetof(struct infer_load, device)

#endif
