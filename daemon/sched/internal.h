/* internal.h: the scheduler's state, shared by its files alone.
 *
 *   sched.c   making it, adding, removing, parking, charging; the invariants
 *   users.c   uids: table, policies, counters, the bucket of tokens a minute
 *   queue.c   who waits: a lane per (uid, model), a heap per class in it, ageing; lists
 *   step.c    who starts, who runs
 *   pages.c   pages: what a row needs, what is claimed, who gives up his
 *   cost.c    measured times: prefill budget, position, estimated start
 *
 * Everything is an index into arrays of fixed size; NONE is no index. */
#ifndef INFERD_SCHED_INTERNAL_H
#define INFERD_SCHED_INTERNAL_H

#include "sched/sched.h"

#define NONE  UINT32_MAX
#define NEVER UINT64_MAX

/* One unit of cost at weight 1, in units of a counter. 64 bits last for 10^12 rows at weight 1. */
#define SCHED_UNIT (UINT64_C(1) << 20)
/* How far `served` may be ahead of who competes, in cost at weight 100; see users_bound_lead(). */
#define SCHED_SERVED_LEAD 16384u
/* Decode rows at weight 100 that a uid was served less to be far behind; see far_behind(). */
#define SCHED_FAR_ROWS 1024u
/* Rows of prefill that run beside decodes whatever was measured. */
#define SCHED_PREFILL_MIN 1u
/* How long a step without decodes may take that has more than step_rows. */
#define SCHED_LONG_STEP_US 50000u
/* Steps of a size class in a row that may have prefill beside the decodes; see cost.c. */
#define SCHED_MIXED_MAX 64u
/* Rows of a full step that decodes leave to prefill that is due. */
#define SCHED_PREFILL_RESERVE 16u
/* How many times that may become when prompts outnumber decodes; see prefill_budget(). */
#define SCHED_CROWD_MAX 8u
/* Sequences that age in one step: bounds its cost; the rest age in the next. */
#define SCHED_AGE_PER_STEP 32u
/* Time classes of decode-only steps: 1, 2, 3-4, 5-8 ... rows. */
#define SCHED_SIZES 16u

enum state { STATE_FREE, STATE_WAITING, STATE_RUNNING };

/* Rungs of the ladder that a waiting sequence climbs: class + 1 when it comes, 1 is interactive, 0
 * is interactive and ahead of its uid's others. */
#define RUNGS (SCHED_CLASSES + 1)

struct sequence {
    enum state state;
    bool parked;
    bool begun;     /* it ran a row since it started: what it holds is no longer to be claimed */
    bool preempted; /* waiting: it ran before */
    enum sched_class class;
    uint32_t rung;
    uint32_t next, previous; /* waiting: of its rung; running: of its model; free: next */
    uint32_t left, right, parent, rank; /* waiting: in its lane's heap */
    uint32_t model, user, lane;
    uint32_t owed;        /* rows */
    uint32_t n_prompt;    /* rows that it owed when it came */
    uint32_t n_done;      /* rows that it has pages for; waiting: those that were saved */
    uint32_t n_again;     /* of those owed, the first so many ran before: they are not charged */
    uint32_t n_pages;     /* most that it can come to hold */
    uint32_t n_brought;   /* not begun: pages that it brought */
    uint32_t n_back;      /* preempted: pages that it needs to start again, as it was told */
    uint32_t n_held;      /* running, begun: pages */
    uint32_t claim;       /* running: pages that it has yet to take for the rows it owes */
    uint32_t n_prepaid;   /* rows that the uid's bucket was charged for, not yet run */
    uint32_t n_skipped;   /* steps in a row that it could have decoded in */
    uint64_t deadline_us; /* NEVER: none; 0: overtakes its uid's others */
    uint64_t arrival;     /* a number */
    uint64_t since_us;    /* waiting: on this rung; running: last row */
    uint64_t started_us;
    uint64_t parked_us;
    uint64_t ran_us; /* before it was preempted */
    uint64_t cost;   /* of all rows charged */
};

struct list {
    uint32_t first, last, n;
};

/* The waiting sequences of one uid for one model. Exists while there are any. */
struct lane {
    uint32_t user, model;
    uint32_t root[SCHED_CLASSES];
    uint32_t n;
    uint32_t next;  /* of the same user; in the free list */
    uint32_t index; /* in sched.active */
};

struct user {
    bool known, pinned; /* pinned: has a policy of its own */
    uint32_t uid;
    struct sched_policy policy; /* limits that are 0 have become UINT32_MAX, but for tokens */
    uint32_t n_running, n_waiting, n_preempted;
    uint32_t n_level[SCHED_CLASSES]; /* waiting ones in lanes, by class as aged */
    uint32_t n_pages;                /* most that its running sequences can come to hold */
    uint32_t lanes;
    uint64_t committed; /* cost of what its running sequences owe */
    uint64_t served, decoded;
    uint64_t left_us;   /* when its last sequence went; 0: never yet */
    int64_t bucket;     /* one token is SCHED_MINUTE_US, so that refilling is exact */
    uint64_t bucket_us; /* as of */
    uint64_t n_prefill_rows, n_decode_rows;

    /* of the step being planned */
    uint64_t epoch;
    uint32_t n_decodes, n_forced, n_prefill, quota;
    uint64_t picked; /* cost of prefill rows given */
    bool blocked;
};

#define SCHED_MINUTE_US INT64_C(60000000)
#define SCHED_PARK_US   10000000u

struct sched_model {
    uint32_t pages, available; /* as told */
    uint32_t rows;             /* likewise: of a step without decodes, at most */
    uint32_t claimed;          /* by its running sequences */
    uint32_t n_waiting;        /* in lanes */
    uint64_t growth;           /* pages that those who run are expected to come to hold yet */
    uint32_t wanting;          /* who did not start in the last plan for want of pages; or NONE */
    struct list running;       /* who ran longest ago is first */
    uint64_t served, decoded;  /* smallest counters of the last step, for who comes when all left */
    uint64_t blocked;          /* the epoch in which its next sequence did not fit */
    uint64_t decode_ns[SCHED_SIZES]; /* of a decode-only step; 0: not measured */
    uint32_t n_mixed[SCHED_SIZES];   /* steps with prefill since it was measured without */
    uint64_t prefill_ns;             /* per row; 0: not measured */
    uint64_t mean_answer;            /* rows that answers grew by, when they ended; 0: none yet */
};

/* What competes, in order of: level, key, deadline, arrival. */
struct rival {
    uint32_t level, id;
    uint64_t key, deadline_us, arrival;
};

struct sched {
    struct sched_config config; /* with the defaults filled in */
    struct sequence *sequences;
    struct sched_model *models;
    struct user *users;
    struct lane *lanes;
    uint32_t *active; /* lanes in use, n_active of them */
    uint32_t n_active;
    struct rival *heap;   /* scratch */
    uint32_t *step_users; /* scratch */
    uint32_t free, free_lane;
    struct list rungs[RUNGS]; /* everybody who waits, by when they came there */
    uint32_t n_running, n_waiting, n_parked, n_preempted;
    uint64_t n_preemptions;
    uint32_t last_model; /* whose turn it was */
    uint64_t now_us, epoch, n_arrived;
    uint64_t mean_life_us, mean_cost; /* of sequences that ran; 0: none yet */
};

static inline uint32_t min_u32(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static inline uint64_t min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static inline uint64_t minus_or_0(uint64_t a, uint64_t b)
{
    return a > b ? a - b : 0;
}

static inline bool can_run(const struct sequence *seq)
{
    return !seq->parked && seq->owed > 0;
}

static inline uint32_t level_of(const struct sequence *seq)
{
    return seq->rung > 0 ? seq->rung - 1 : 0;
}

static inline uint64_t rows_cost(const struct sched *s, uint32_t owed, uint32_t n_rows)
{
    return (uint64_t)n_rows * (owed > 1 ? s->config.prefill_cost : s->config.decode_cost);
}

/* What is still to be charged for the rows that it owes. */
static inline uint64_t owed_cost(const struct sched *s, const struct sequence *seq)
{
    return rows_cost(s, seq->owed - seq->n_again, seq->owed - seq->n_again);
}

static inline uint64_t weighted(uint64_t cost, uint32_t weight)
{
    return cost * SCHED_UNIT / weight;
}

/* A number of decode rows at the default weight, as a distance between counters. */
static inline uint64_t distance(const struct sched *s, uint32_t n_rows)
{
    return weighted((uint64_t)n_rows * s->config.decode_cost, SCHED_WEIGHT_DEFAULT);
}

/* Is `u` with another sequence still far behind, in service or in how many run? Then it may pass
 * one of the other uid that waits for pages, and leaves no reserve for what of it runs. */
static inline bool far_behind(const struct sched *s, const struct user *u, const struct user *of)
{
    uint64_t mine = (uint64_t)(u->n_running + 1) * of->policy.weight;
    return minus_or_0(of->served, u->served) > distance(s, SCHED_FAR_ROWS) ||
           (uint64_t)of->n_running * u->policy.weight > 2 * mine;
}

/* ---- queue.c --------------------------------------------------------------------------------- */

void list_append(struct sched *s, struct list *list, uint32_t slot);
void list_take(struct sched *s, struct list *list, uint32_t slot);

void queue_add(struct sched *s, uint32_t slot); /* a sequence whose fields are set */
void queue_take(struct sched *s, uint32_t slot);
/* A waiting sequence that is parked stands in no lane: it neither starts nor holds up others. */
void queue_hold(struct sched *s, uint32_t slot);
void queue_release(struct sched *s, uint32_t slot);
void queue_age(struct sched *s);
/* The best of a lane. */
uint32_t queue_head(const struct sched *s, const struct lane *lane);
/* How many of its own uid and level are before it. */
uint32_t queue_rank(const struct sched *s, uint32_t slot);
void queue_check(const struct sched *s);

/* A binary heap of rivals in s->heap[0 .. n). */
bool rival_before(const struct rival *a, const struct rival *b);
void rivals_order(struct rival *heap, uint32_t n);
void rivals_sink(struct rival *heap, uint32_t n, uint32_t at);
void rivals_pop(struct rival *heap, uint32_t *n);

/* ---- users.c --------------------------------------------------------------------------------- */

uint32_t users_find(const struct sched *s, uint32_t uid);
uint32_t users_get(struct sched *s, uint32_t uid); /* NONE: no room */
/* Called before its first sequence of a model counts: sentence 2 of the policy. */
void users_lift(struct sched *s, struct user *u, uint32_t model);
bool users_idle(const struct user *u);
/* Bounds how far `*counter` is ahead of the smallest of those who compete. */
void users_bound_lead(uint64_t *counter, uint64_t smallest, uint64_t lead);
/* The key that starts go by. */
uint64_t users_start_key(const struct user *u);

bool users_pay_prompt(struct user *u, uint32_t n_rows, uint64_t now_us); /* false: cannot */
void users_pay(struct user *u, uint32_t n_rows);
void users_refund(struct user *u, uint32_t n_rows);

/* ---- pages.c --------------------------------------------------------------------------------- */

/* Pages that so many of its rows take. */
uint32_t pages_of(const struct sched *s, const struct sequence *seq, uint64_t n_rows);
/* Further pages that its next n_rows take; all that it needs to begin when it has not yet. */
uint32_t pages_for_next(const struct sched *s, const struct sequence *seq, uint32_t n_rows);
/* How many of the rows that it owes run with n_pages further ones. */
uint32_t pages_hold_rows(const struct sched *s, const struct sequence *seq, uint32_t n_pages);
/* Sets what a running sequence holds and claims from what it did and owes. */
void pages_claim(struct sched *s, struct sequence *seq);
void pages_unclaim(struct sched *s, struct sequence *seq);
/* Sets a model's `growth`, which pages_let_start() looks at; each start adds to it. */
void pages_forecast(struct sched *s, struct sched_model *m);
void pages_forecast_more(struct sched *s, const struct sequence *seq);
/* Are there pages for a waiting sequence to start with, and the reserve? */
bool pages_let_start(const struct sched *s, const struct sequence *seq);

/* ---- cost.c ---------------------------------------------------------------------------------- */

/* Must the next step with so many decodes do without prefill, so that these can be measured? */
bool cost_wants_decodes_alone(const struct sched_model *m, uint32_t n_decode_rows);
void cost_ended(struct sched *s, const struct sequence *seq);

#endif
