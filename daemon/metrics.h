/* metrics.h: what the hub counts, and how it is told: OpenMetrics text.
 *
 * Three parts. struct metrics has the counters and histograms that the engine thread alone writes
 * and reads: plain numbers, no lock, nothing allocated. struct metrics_loads has those of the
 * threads that load models: atomic. struct metrics_snapshot is a copy of all of them with the state
 * of the moment, from which any thread makes the text; so that telling costs the engine thread a
 * copy of some 34 KiB and an idle daemon nothing.
 *
 * Series are bounded: models by INFER_MODELS_MAX, users by METRICS_USERS_MAX (whoever comes later
 * is counted under uid="other"), errors, limits and kinds by their tables.
 *
 * Privacy. A uid's own series stand in a snapshot only when its reader may see them
 * (metrics_show_users); everybody sees the sums. */
#ifndef INFERD_METRICS_H
#define INFERD_METRICS_H

#include "inferd/client.h"
#include "kv/kv.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ---- histograms ------------------------------------------------------------------------------ */

#define METRICS_BUCKETS 19u

/* Upper bounds, in microseconds, ascending; what is equal is inside. */
extern const uint32_t metrics_bounds_us[METRICS_BUCKETS];

struct metrics_histogram {
    uint64_t counts[METRICS_BUCKETS + 1]; /* of each bucket alone; the last: beyond all bounds */
    uint64_t sum_us;
};

static inline void metrics_add(struct metrics_histogram *h, uint64_t us)
{
    unsigned i = 0;
    while (i < METRICS_BUCKETS && us > metrics_bounds_us[i])
        i++;
    h->counts[i]++;
    h->sum_us += us;
}

/* ---- what the engine thread counts ----------------------------------------------------------- */

#define METRICS_USERS_MAX 64u
#define METRICS_USER_NONE UINT32_MAX
#define METRICS_CLASSES   3u /* enum infer_priority */
/* enum infer_finish, then: its client was gone before it ended. */
#define METRICS_FINISH_ABANDONED 6u
#define METRICS_FINISHES         7u

/* By enum infer_abi_op; OTHER: a request that was not understood. */
enum metrics_op {
    METRICS_OP_OTHER,
    METRICS_OP_GENERATE,
    METRICS_OP_SCORE,
    METRICS_OP_TOKENIZE,
    METRICS_OP_DETOKENIZE,
    METRICS_OP_STATUS,
    METRICS_OP_MODELS,
    METRICS_OP_END,
    METRICS_OP_FORGET,
    METRICS_OP_TOPOLOGY,
    METRICS_OP_METRICS,
    METRICS_OPS
};
extern const char *const metrics_op_names[METRICS_OPS];

enum metrics_step { METRICS_PREFILL, METRICS_DECODE, METRICS_MIXED, METRICS_STEPS };

/* Why a request was refused. */
enum metrics_limit {
    METRICS_LIMIT_WAITING,    /* of its user: waiting requests */
    METRICS_LIMIT_TOKENS,     /* of its user: tokens a minute */
    METRICS_LIMIT_USERS,      /* users at once */
    METRICS_LIMIT_SEQUENCES,  /* sequences that the daemon knows */
    METRICS_LIMIT_PAGES,      /* more sequence state than there is, or than its user may have */
    METRICS_LIMIT_CONNECTION, /* unfinished requests of one connection */
    METRICS_LIMIT_MEMORY,     /* bytes that requests take in all */
    METRICS_LIMITS
};

enum {
#define METRICS_ERROR_INDEX(name, code, exit_status, text) METRICS_ERROR_##name,
    INFER_ERROR_TABLE (METRICS_ERROR_INDEX)
#undef METRICS_ERROR_INDEX
        METRICS_ERRORS
};

struct metrics_user {
    uint32_t uid;
    uint64_t requests, prompt_tokens, tokens;
    uint64_t refused[METRICS_LIMITS];
};

struct metrics_model {
    char name[INFER_MODEL_NAME_MAX]; /* "": nothing was counted yet */
    uint64_t prompt_tokens, cached_tokens, tokens;
    struct metrics_histogram first_token, between_tokens;
};

struct metrics {
    struct metrics_model models[INFER_MODELS_MAX];
    struct metrics_user users[METRICS_USERS_MAX + 1]; /* [METRICS_USERS_MAX]: all others */
    uint32_t n_users;
    struct metrics_histogram steps[METRICS_STEPS], queue_wait[METRICS_CLASSES];
    uint64_t prompt_rows, decode_rows;
    uint64_t steps_ahead; /* submitted while the one before was under way */
    uint64_t finished[METRICS_OPS][METRICS_FINISHES], errors[METRICS_ERRORS];
    uint64_t refused[METRICS_LIMITS];
    uint64_t connections, conversations_begun, conversations_continued;
    uint64_t saved_bytes, restored_bytes;    /* of preempted sequences, to the store and back */
    uint64_t written_bytes, read_back_bytes; /* of those, to the store's file and back */
    double start_s;                          /* of the daemon, on the wall clock */
    uint64_t n_starts;                       /* of metrics_count_start() */
};

/* The entry of a uid, from its first call on: an index into users. */
uint32_t metrics_user(struct metrics *m, uint32_t uid);
/* The entry of the model that has this index now; one that had it before is forgotten. */
struct metrics_model *metrics_model(struct metrics *m, uint32_t index, const char *name);
/* A request of this user (METRICS_USER_NONE: of nobody who is counted) was refused. */
void metrics_refused(struct metrics *m, uint32_t user, enum metrics_limit limit);
/* A request ended. op: enum infer_abi_op; code: 0 or an INFER_E_ code. */
void metrics_finished(struct metrics *m, uint32_t op, uint32_t finish, int code);

/* Counts this start of the daemon in a file of its state directory; the number of starts until now,
 * or a negative errno. */
int64_t metrics_count_start(const char *state_directory);

/* ---- what loading threads count -------------------------------------------------------------- */

struct metrics_loads {
    _Atomic uint64_t n_done, n_failed;
    _Atomic uint64_t direct_bytes, buffered_bytes; /* read, past the page cache and through it */
    _Atomic uint64_t n_reads, n_retries, took_us;
};

/* from may be NULL: nothing was loaded. */
void metrics_copy_loads(struct metrics_loads *to, struct metrics_loads *from);

/* ---- telling --------------------------------------------------------------------------------- */

struct metrics_model_now {
    struct infer_model info;
    struct kv_counts pages;
};

#define METRICS_DEVICES_MAX 16u

struct metrics_device {
    char name[40], description[64];
    uint64_t memory_bytes;             /* of its own; 0: it uses the host's */
    uint64_t free_bytes, models_bytes; /* of these: free, taken by models */
};

/* A copy of everything, and the state of the moment. */
struct metrics_snapshot {
    struct metrics counters;
    struct metrics_loads loads;
    struct metrics_model_now models[INFER_MODELS_MAX];
    uint32_t n_models;
    struct metrics_device devices[METRICS_DEVICES_MAX];
    uint32_t n_devices;
    struct infer_status status;
    uint32_t n_waiting[METRICS_CLASSES];
};

/* Removes from the copy the users that a reader may not see: all but his own uid. */
void metrics_show_users(struct metrics_snapshot *s, bool all, uint32_t uid);

/* The text, allocated, with a NUL behind it; NULL: no memory. Reads /proc. Any thread. */
char *metrics_render(const struct metrics_snapshot *s, size_t *ret_bytes);

/* Resident memory of this process; 0 when it cannot be read. */
uint64_t metrics_resident_bytes(void);

#endif
