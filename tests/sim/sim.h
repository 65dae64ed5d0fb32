/* sim.h: the hub with everything behind it, in one thread, on a clock of its own.
 *
 * What is real: dispatch.c with job.c, the scheduler, the page ledger, the engine, sessions and
 * admission, and the rings in their sealed memory files. What stands in: time (clock_ns() is the
 * simulator's), the event loop (a queue of posted calls), the sockets (clients get their sessions
 * from session_new()), and the device (the null backend, whose steps take simulated time, fail on
 * schedule, and draw tokens that depend on every row of the state they read).
 *
 * A seed is a whole day: scenario.c draws who the users are and what they may do, ask.c what is
 * asked and what must come out, client.c plays the clients, world.c owns the hub and the device,
 * watch.c looks at each step's plan. The same seed does the same things: the trace, a hash of all
 * that happened and when, is equal.
 *
 * One simulation at a time; it is `sim`. */
#ifndef INFERD_TESTS_SIM_H
#define INFERD_TESTS_SIM_H

#include "base/rng.h"
#include "dispatch_internal.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>

enum {
    SIM_USERS_MAX = 6,
    SIM_CLIENTS_MAX = 24,
    SIM_ASKS_MAX = 48, /* of one client at once */
    SIM_MODELS_MAX = 2,
    SIM_PAGE_TOKENS = 16,
    SIM_CONTEXT_MAX = 512,    /* what the file says the model was made for */
    SIM_PREFIXES = 8,         /* that prompts share */
    SIM_ANSWERS_MAX = 4,      /* of one request */
    SIM_TALKS_MAX = 4,        /* conversations of one client */
    SIM_SEEN = 1 << 14,       /* prefixes that users have sent */
    SIM_SATURATED_FROM = 500, /* steps of a saturated scenario that are compared */
    SIM_SATURATED_STEPS = 2500,
    SIM_REST_MOST_US = 250000, /* an idle hub with somebody parked looks again after so long */
};

/* ---- random numbers -------------------------------------------------------------------------- */

struct sim_random {
    uint64_t state;
};

static inline uint64_t random_next(struct sim_random *r)
{
    return rng_mix(r->state++ * UINT64_C(0x9e3779b97f4a7c15));
}

/* In 0 .. n - 1. */
static inline uint32_t random_below(struct sim_random *r, uint32_t n)
{
    return (uint32_t)((random_next(r) >> 32) * n >> 32);
}

static inline uint32_t random_between(struct sim_random *r, uint32_t low, uint32_t high)
{
    return low + random_below(r, high - low + 1);
}

static inline bool random_chance(struct sim_random *r, uint32_t permille)
{
    return random_below(r, 1000) < permille;
}

/* ---- what the seed says ---------------------------------------------------------------------- */

struct sim_user {
    uint32_t uid;
    struct sched_policy policy; /* all zero: the default one */
    uint32_t n_decoded;         /* tokens its clients got, of a saturated scenario's middle */
};

enum sim_habit {
    HABIT_PROMPT, /* reads whatever is there */
    HABIT_SLOW,   /* reads a little now and then */
    HABIT_NEVER,  /* reads nothing for a long time, then everything */
};

struct sim_client_plan {
    uint32_t user;
    enum sim_habit habit;
    uint32_t request_ring_bytes, token_ring_bytes;
    uint32_t n_asks, n_at_once;
    uint32_t think_us; /* at most, between an answer and the next request */
    uint64_t start_us; /* when it connects */
    uint64_t read_us;  /* SLOW: between two looks; NEVER: when it begins to read */
    uint64_t kill_us;  /* 0: never */
    uint64_t break_us; /* breaks the protocol; 0: never */
    uint32_t prompt_max, answer_max;
    uint32_t odd_permille; /* of requests that are wrong or no GENERATE */
    uint32_t cancel_permille, deadline_permille, logprobs;
};

struct scenario {
    uint64_t seed;
    bool saturated; /* everybody always has something to run: shares are compared */
    uint32_t n_models, n_pages, n_context, max_running, step_rows;
    struct sched_policy policy;
    uint32_t step_us, row_us;                             /* what a step takes */
    bool ahead;                                           /* the device works by itself */
    uint32_t fail_permille, page_fail_permille;           /* of steps; of copied or zeroed pages */
    uint64_t lose_step;                                   /* the device is lost then; 0: never */
    uint32_t end_permille;                                /* of tokens: the model ends its answer */
    uint64_t slow_preempt_us, slow_cancel_us, swap_bytes; /* of struct dispatch_config */
    uint32_t new_permille; /* of requests: several answers, windows, conversations, WAIT, each */
    uint32_t n_users, n_clients;
    struct sim_user users[SIM_USERS_MAX];
    struct sim_client_plan clients[SIM_CLIENTS_MAX];
};

void scenario_draw(uint64_t seed, struct scenario *ret);

/* ---- a request and what must come of it ------------------------------------------------------ */

/* What a request was made for: what it is refused with when it is wrong. */
enum ask_kind {
    ASK_GENERATE,
    ASK_SCORE,
    ASK_TOKENIZE,
    ASK_DETOKENIZE,
    ASK_STATUS,
    ASK_MODELS,
    ASK_END,
    ASK_FORGET,
};

/* One of a request's answers. */
struct sim_answer {
    int32_t *expected, *got; /* expected NULL: not known */
    uint32_t n_expected, n_tokens;
    uint32_t finish;
    uint64_t text_hash, expected_text;
    bool over;
};

/* A conversation that a client keeps on the daemon: what stands in it. */
struct talk {
    uint64_t id; /* 0: none */
    int32_t *tokens;
    uint32_t n_tokens, model, window, sinks;
    bool busy;
};

struct ask {
    uint32_t request; /* 0: none */
    enum ask_kind kind;
    struct infer_abi_submit submit;
    uint8_t *payload;
    uint32_t payload_bytes;
    uint32_t model;
    int must_fail; /* with this code; 0: it is right */
    /* What comes out when nothing interferes. */
    int32_t *prompt;
    uint32_t n_past, n_prompt; /* the first n_past are the conversation's */
    struct sim_answer answers[SIM_ANSWERS_MAX];
    uint32_t n_answers;
    struct talk *talk; /* that it continues, or ends */
    int32_t banned;    /* by a bias; -1: none */
    /* The course of it. */
    uint64_t submitted_us; /* when its record was shown to the hub */
    uint64_t cancel_us;    /* when to cancel; 0: not */
    uint32_t cancel_after; /* or after so many tokens; UINT32_MAX: not */
    bool cancelled;        /* a CANCEL was shown to the hub */
    bool ended_by_id;      /* somebody who may sent END for it */
    uint64_t id;           /* of QUEUED */
    uint64_t target;       /* END: whose id */
    bool target_is_ours;   /* END: of the same uid */
    uint32_t n_queued, n_tokens, n_result_bytes;
    uint32_t n_failures; /* of the device, when it was submitted */
    uint8_t *result;
};

struct sim_client;

/* Draws a request. */
void ask_draw(struct ask *a, struct sim_client *c, uint32_t request);
void ask_done(struct ask *a);
/* Takes an event in; true when it was the last. Fails the simulation when it may not be. */
bool ask_take(struct ask *a, struct sim_client *c, const void *record, uint32_t bytes);

/* The token that the device draws after rows whose state hashes to h. */
uint64_t ask_state_start(uint32_t model);
uint64_t ask_state_add(uint64_t h, uint32_t row);
int32_t ask_token(uint64_t h, uint64_t seed, uint32_t n_vocab, uint32_t end_permille,
                  const struct infer_logit_bias *biases, uint32_t n_biases);
float ask_logprob(uint64_t h, int32_t target);

/* ---- a client -------------------------------------------------------------------------------- */

enum client_state {
    CLIENT_AWAY, /* not yet connected */
    CLIENT_THERE,
    CLIENT_CLOSED, /* the hub ended its session */
    CLIENT_GONE,   /* its process is dead, or it went home */
};

/* What server.c would know of it. */
struct connection {
    struct sim_client *client;
    struct session *session; /* NULL: freed */
    bool removed;            /* the hub was asked to let go of the session */
};

struct sim_client {
    uint32_t index;
    const struct sim_client_plan *plan;
    struct sim_user *user;
    struct sim_random random;
    enum client_state state;
    struct connection connection;
    bool broke; /* it broke the protocol: its session may be closed for that */
    bool must_close;
    /* its mappings */
    struct infer_abi_client_words *words;
    const struct infer_abi_daemon_words *theirs;
    uint8_t *requests;
    const uint8_t *tokens;
    uint32_t tail, head; /* of the request ring, of the token ring */
    uint8_t *outbox;     /* records that wait for room in the request ring */
    uint32_t outbox_bytes, outbox_room, outbox_sent;
    uint32_t next_request;
    uint32_t n_asked, n_open;
    uint64_t next_ask_us, next_read_us, last_read_us;
    struct ask asks[SIM_ASKS_MAX];
    struct talk talks[SIM_TALKS_MAX];
};

/* One turn of the client's. Returns when it wants to be called again at the latest; UINT64_MAX:
 * only when an event came. */
uint64_t client_turn(struct sim_client *c);
bool client_over(const struct sim_client *c);
/* When it will read what is there for it; UINT64_MAX: nothing is. */
uint64_t client_reads_at(const struct sim_client *c);
/* The process ends: its mappings go, its socket hangs up. */
void client_die(struct sim_client *c);
/* After a turn of the hub: what the client asked for and must have been heard. */
void client_check(struct sim_client *c);

/* ---- the world ------------------------------------------------------------------------------- */

struct post {
    void (*fn)(void *ctx);
    void *ctx;
};

/* What the simulator may be asked to do wrong, to see that it is found. */
enum sim_plant {
    PLANT_NONE,
    PLANT_TOKEN,  /* the device draws another token now and then */
    PLANT_PAGE,   /* pages are not zeroed */
    PLANT_SHARE,  /* the first user runs less than planned */
    PLANT_STARVE, /* the first user's requests are taken for batch work */
    PLANT_SILENT, /* an answer's last event is lost */
    PLANT_LEAK,   /* a block of memory is */
};

struct sim {
    struct scenario plan;
    struct sim_random random; /* of the world: failures, delays of posted calls */
    uint64_t now_ns;
    uint64_t trace;
    uint64_t n_turns, n_steps, n_failures, n_events, n_tokens, n_asks, n_done;
    uint64_t n_ahead;      /* steps that were submitted while one was under way */
    uint64_t step_most_ns; /* the longest step until now */
    uint64_t by_code[128]; /* answers by error - 1000; 0: none */
    bool verbose, failed;
    enum sim_plant plant;
    char verdict[512];
    struct loop *loop;
    struct status_page *page;
    struct engine_model models[SIM_MODELS_MAX];
    struct dispatch *dispatch;
    struct sim_client clients[SIM_CLIENTS_MAX];
    uint64_t *page_owner[SIM_MODELS_MAX]; /* whose rows a page holds: a domain */
    uint64_t seen[SIM_SEEN];              /* (uid, prefix) that clients sent, hashed */
    uint32_t seen_count[SIM_SEEN];
    struct post posts[SIM_CLIENTS_MAX * 4];
    uint32_t n_posts;
    bool lost; /* the device is */
};

extern struct sim sim;

static inline uint64_t sim_now_us(void)
{
    return sim.now_ns / 1000;
}

/* The first failure is the verdict; those after it follow from it. */
void sim_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Into the trace, and with -v to standard output. */
void sim_note(const char *what, uint64_t a, uint64_t b, uint64_t c);

/* Once per process: the model's file, the device. */
int world_load(void);
void world_unload(void);
/* One whole simulation of sim.plan. */
void world_run(void);

/* watch.c: at the beginning of a simulation, and after it; at each token that a client gets. */
void watch_begin(void);
void watch_end(void);
void watch_token(struct sim_client *c);
/* Blocks of memory that the daemon's rooms and the simulator hold. */
int64_t watch_blocks(void);

/* Notes that a user sent a prompt, of which the pages up to row `from` are noted already; how many
 * times a user has sent one that begins so. */
void seen_add(uint32_t uid, const int32_t *tokens, uint32_t from, uint32_t n);
uint32_t seen_times(uint32_t uid, const int32_t *tokens, uint32_t n);

#endif
