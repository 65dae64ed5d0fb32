/* sched.h: who runs in this step.
 *
 * A pure function of its state, the calls since the last step and the time handed to it: no clock,
 * no tensor, no lock, no allocation after sched_new(). It knows sequences by number, tokens by
 * count and pages by count, so a whole day of traffic can be simulated in a second.
 *
 * The data model. A sequence belongs to a uid and a model. It is added with the tokens it must run
 * through first (its prompt) and the most pages that it can come to hold. It WAITs until a running
 * slot and the pages of its prompt are free, then it RUNs: each step gives it rows, and while it
 * owes more rows than one, these are prefill. Pages are taken as rows need them, so running
 * sequences can come to need more than there are: then one is PREEMPTED, gives up slot and pages
 * and waits again. A PARKED sequence, whose client does not read, gets no rows and does not start;
 * if it runs it keeps slot and pages, but is the first to be preempted.
 *
 * The policy, sentence by sentence; names in it are fields of struct sched_config.
 *
 * 1. Service is counted per uid. A row run adds cost / weight to its uid's counter, a prefill row
 *    costs 1, a decode row 2. There are two counters: `served` counts every row, `decoded` counts
 *    decode rows alone, so that a long prompt does not make its own answer stutter. Rows that run
 *    again after a preemption are not counted: they were the first time. But they are if its client
 *    did not read then, for work must not be had for nothing by reading slowly.
 * 2. A uid that becomes active is lifted to the smallest counters of those active on its model:
 *    idleness is no credit. One that was away for less than idle_grace_us (a client between two
 *    requests) may stay credit_rows below.
 * 3. Who starts next goes by class, then served (and what its running sequences still owe), then
 *    deadline (earliest first, none last), then arrival; within a uid and class those that were
 *    preempted come first. A class above the uid's best is clamped.
 * 4. Ageing: each age_us of waiting moves a request one class up, until it is interactive, and
 *    then ahead of its own uid's others. So after (class + 1) * age_us nobody is before it but uids
 *    that were served less, and of its own uid older requests and preempted ones. What it climbed
 *    it keeps, also when it is preempted. One that is parked when it should climb waits for another
 *    age_us first; to have been parked before that costs nothing.
 * 5. The next in order is not overtaken by smaller requests of the same model, so that a large one
 *    cannot starve; another model's requests may pass, and those of a uid that is far behind, which
 *    was served less by 1024 rows or runs less than half as many. A uid at its max_running or
 *    max_pages waits and holds up nobody else.
 *    The last newcomer_slots are for uids that run nothing (batch only once it aged): they start at
 *    once, and a client that pauses between two requests does not lose its place to a queue.
 * 6. A step is one model's; models with work take turns. It has decodes first, then prefill.
 * 7. Decodes are shared between uids. Of two uids the one that has more to run in this step
 *    (sequences / weight) does not run a row that would take it further ahead than lag_rows of
 *    where the other, being behind, comes by running all it has. So a uid with one sequence is
 *    served in each step, and the 31 sequences of another take turns: equal shares, at the price
 *    of smaller batches. For a uid that is still in its prompt, another one that has more to run
 *    and was served more runs one decode a step. No decode skips more than skips_max steps in a
 *    row (but for want of room), which bounds the price and the gap between its tokens. Nobody is
 *    skipped for a uid that has nothing to run, has as much to run, or waits for slots that others
 *    would hold the longer. No uid counts as further behind than credit_rows.
 * 8. When more decodes may run than a step has room for, rows go one by one to the uid with the
 *    smallest counter. Within a uid the sequence that ran longest ago is first.
 * 9. Prefill rows go by class (ageing since its last row), served, deadline, arrival. Beside
 *    decodes they may lengthen the step by decode_growth_percent of what the decodes alone take,
 *    as measured, but one row runs in any case; with no decode in the step it has step_rows, or as
 *    many as its model may have if they are known to be over in 50 ms. (One
 *    of 64 mixed steps has decodes alone, so that their time is known.) When p prompts are due and
 *    d < p decodes run, all of uids with prompts due, it may be p / d times that, at most 8.
 *    Decodes leave a quarter of step_rows, at most 16, to prefill that is due.
 * 10. Limits per uid: max_waiting and tokens_per_minute refuse, max_running and max_pages let wait.
 *    Tokens a minute are a bucket of that size: a prompt is paid for at sched_add(), answers as
 *    they run, maybe into debt; a request is admitted when the bucket holds its prompt or is full.
 *    max_waiting does not count preempted ones, max_pages bounds the sum of n_pages of what runs.
 * 11. No page is set aside for a sequence's life. One that starts has a claim to the pages of the
 *    rows it owes until these ran; answers grow into what is left. A step never needs more pages
 *    than are available: decodes come first, prefill is cut to what fits.
 * 12. A waiting sequence starts when the pages of all rows it owes are there beside the claims of
 *    others and a reserve for what runs of its model: a third of what that is expected to grow by,
 *    as answers that ended did; before one ended, a page for each, at most 1/16 of the pool. There
 *    is none if nothing runs, nor for what should give way to it: the parked, those of a worse
 *    class, those of uids that its own is far behind. A preempted one thus returns when its pages
 *    are free.
 * 13. When the next rows and claims of what can run come to more than is available, the lowest in
 *    rank is preempted. Rank goes by parked (longest first), then class (worst first; age helps to
 *    start, not to stay), then served (most first), then arrival (latest first). The highest of
 *    those that can run is never the victim; so whatever is overcommitted, everything ends (argued
 *    in pages.c). One parked for park_us is also preempted for the next that waits, if that can
 *    start then.
 *
 * Threads: one, the engine's. */
#ifndef INFERD_SCHED_SCHED_H
#define INFERD_SCHED_SCHED_H

#include <stdbool.h>
#include <stdint.h>

struct sched;

/* (Not SCHED_BATCH: the system's <sched.h> has that name.) */
enum sched_class { SCHED_CLASS_INTERACTIVE, SCHED_CLASS_NORMAL, SCHED_CLASS_BATCH };
#define SCHED_CLASSES 3u

/* Why sched_add() said -EDQUOT. */
enum sched_limit {
    SCHED_LIMIT_NONE,
    SCHED_LIMIT_WAITING, /* max_waiting */
    SCHED_LIMIT_TOKENS,  /* tokens_per_minute; sched_quota_us() says when */
    SCHED_LIMIT_USERS,   /* n_users_max uids are active or have a policy of their own */
};

#define SCHED_WEIGHT_DEFAULT 100u
#define SCHED_WEIGHT_MAX     10000u

/* As newcomer_slots: none at all. */
#define SCHED_NO_NEWCOMER_SLOTS UINT32_MAX

/* What a uid may do. 0 means no limit, and the default weight. */
struct sched_policy {
    uint32_t weight; /* 1 .. SCHED_WEIGHT_MAX */
    uint32_t max_running, max_waiting;
    uint32_t tokens_per_minute;
    uint32_t max_pages;
    enum sched_class best_class; /* requests above are clamped */
};

/* Where 0 has a meaning below, it is the default. */
struct sched_config {
    uint32_t max_sequences; /* waiting ones included */
    uint32_t max_running;   /* at once, all models together */
    uint32_t step_rows;     /* the budget of one step; sched_set_rows() */
    uint32_t n_models;
    uint32_t page_tokens;               /* rows of a page; 0: 16 */
    uint32_t park_us;                   /* 0: 10 s */
    struct sched_policy policy;         /* of every uid that has none of its own */
    uint32_t n_users_max;               /* uids known at once; 0: 256. Idle ones are recycled. */
    uint32_t decode_growth_percent;     /* 0: 50 */
    uint32_t prefill_cost, decode_cost; /* of a row; 0: 1 and 2 */
    uint32_t age_us;                    /* waiting time per class; 0: 10 s */
    uint32_t lag_rows;                  /* decode rows at weight 100; 0: 32 */
    uint32_t credit_rows;               /* likewise; 0: 256 */
    uint32_t skips_max;                 /* 0: 64; 1: at least every other step */
    /* Of max_running, which keeps one at least for everybody; 0: an eighth, but none if max_running
     * is below 4; SCHED_NO_NEWCOMER_SLOTS: none. */
    uint32_t newcomer_slots;
    uint32_t idle_grace_us; /* 0: 250 ms */
};

struct sched_request {
    uint32_t model;
    uint32_t uid;
    uint32_t n_rows;  /* rows that it owes from the start: the prompt's tokens, at least 1 */
    uint32_t n_pages; /* most pages that it can come to hold */
    uint32_t n_held;  /* rows before those: it goes on from a kept state, */
    bool away;        /* which was saved; else it brings their pages */
    enum sched_class class;
    uint64_t deadline_us; /* absolute; 0: none */
};

/* Rows for a sequence in this step. */
struct sched_work {
    uint32_t slot;
    uint32_t n_rows;
};

int sched_new(const struct sched_config *config, struct sched **ret);
void sched_free(struct sched *s);

/* How many pages of a model there are in all, at any time. A request that needs more is refused;
 * one that waits already stays and waits. */
void sched_set_pages(struct sched *s, uint32_t model, uint32_t n_pages);
/* How many rows a step of a model may have in which nobody decodes. At first, and at least,
 * step_rows. */
void sched_set_rows(struct sched *s, uint32_t model, uint32_t n_rows);
/* Before each sched_victim() and sched_plan(): pages of the model that nobody holds, that is free
 * or cached. (What is given to a sequence but not yet taken is the scheduler's business: a claim.)
 */
void sched_set_available(struct sched *s, uint32_t model, uint32_t n_pages);

/* Whom to preempt so that what runs of this model can go on, an answer by a row and a prompt to its
 * end, or so that a sequence that waits for the pages of one parked for park_us can start: sentence
 * 13; NONE (UINT32_MAX) when nobody need be. It may be one that has started but not run yet. Call
 * sched_preempted() or sched_remove() on it, sched_set_available(), and ask again. */
uint32_t sched_victim(const struct sched *s, uint32_t model, uint64_t now_us);
/* A running sequence gave up its pages: it waits again, ahead of its uid's others of its class, and
 * owes n_rows from now on: all its rows when they are to be computed again, or what it owed before
 * when its pages were saved. To start again it needs n_pages, at least those of all its rows (so
 * 0 will do unless it is more). Rows that run a second time: see sentence 1. */
void sched_preempted(struct sched *s, uint32_t slot, uint32_t n_rows, uint32_t n_pages);
/* A waiting sequence gave up the pages that it brought: to start it needs them, too. */
void sched_left_pages(struct sched *s, uint32_t slot);
bool sched_waits(const struct sched *s, uint32_t slot);

/* What is missing of a model's pages. */
struct sched_lack {
    uint32_t n_pages; /* 0: nothing is */
    uint32_t slot; /* so that this one, which waits and was the next in order in the last plan, can
                    * start; NONE (UINT32_MAX): so that what runs can go on */
    bool stuck;    /* and nothing that runs can end meanwhile */
};
/* Pages are also held by what does not run: by what waits and brought them, and by kept states that
 * nobody goes on from. While something lacks these should give them, before sched_victim() is
 * asked; when it is stuck they must, all of them if need be. Why nothing is stuck then: pages.c. */
struct sched_lack sched_lacks(const struct sched *s, uint32_t model);

/* A window slid: the rows of n_pages left a running sequence, and it holds so many fewer. */
void sched_gave(struct sched *s, uint32_t slot, uint32_t n_pages);

/* Gives a uid its own policy from now on (its entry is kept); NULL: the default again. -EINVAL: a
 * weight or class out of range; -ENOSPC: n_users_max uids are active or have one already. */
int sched_set_policy(struct sched *s, uint32_t uid, const struct sched_policy *policy);

/* Another policy for every uid that has none of its own, and another park_us (0: the default).
 * -EINVAL as above. */
int sched_set_default(struct sched *s, const struct sched_policy *policy, uint32_t park_us);

/* Queues a sequence. 0 and *ret_slot, its number until sched_remove(). -E2BIG: it can never fit, it
 * needs more pages than the model has or the uid may have; -ENOSPC: max_sequences are known
 * already; -EDQUOT: a limit of its uid, named in *ret_limit (which may be NULL). */
int sched_add(struct sched *s, const struct sched_request *request, uint64_t now_us,
              uint32_t *ret_slot, enum sched_limit *ret_limit);
/* Forgets it, whatever its state. What it claimed is free from now on; sched_set_available() tells
 * of the pages that it held. */
void sched_remove(struct sched *s, uint32_t slot);

void sched_park(struct sched *s, uint32_t slot);
void sched_resume(struct sched *s, uint32_t slot);

/* The next step's work: *ret_model and up to `room` entries; returns their number, 0 when nobody
 * can run. Moves waiting sequences into free slots first. Time that runs backwards stands still. */
uint32_t sched_plan(struct sched *s, uint64_t now_us, uint32_t *ret_model, struct sched_work *ret,
                    uint32_t room);
/* While a step is under way of which nothing was told yet: would the next plan have the same
 * sequences in it, a decode each, less those that end with this step, if nobody came meanwhile? So
 * it is when all that can run is in the step and nobody could start; then the next step may begin
 * without a plan. It is told to sched_ran() as any other. */
bool sched_goes_on(struct sched *s, uint64_t now_us, uint32_t model, const struct sched_work *work,
                   uint32_t n);
/* Between plan and step: the first n_rows of what a running sequence owes need not be run, it holds
 * them now, from a cache. It owes at least one after that; they are not charged, and paid back to
 * its uid's bucket.
 */
void sched_found(struct sched *s, uint32_t slot, uint32_t n_rows);
/* After a step: the sequence ran n_rows of what it owed and owes n_new more (1 for the token that
 * was drawn, 0 when it is finished and about to be removed). */
void sched_ran(struct sched *s, uint32_t slot, uint32_t n_rows, uint32_t n_new);

/* After a step: how long it took, with how many rows of which kind (a work item of one row is a
 * decode). The next steps' budgets come from this; until then one row runs beside decodes. */
void sched_measured(struct sched *s, uint32_t model, uint32_t n_prefill_rows,
                    uint32_t n_decode_rows, uint64_t took_us);
/* Prefill rows that a step with so many decodes may have, as measured until now. */
uint32_t sched_prefill_budget(const struct sched *s, uint32_t model, uint32_t n_decode_rows);

/* How many sequences will start before this one if nobody comes and all cost the same: 0 when it
 * runs or is next. */
uint32_t sched_position(const struct sched *s, uint32_t slot);
/* When it will start, on now's clock, from how long sequences ran until now: 0 when it runs. */
uint64_t sched_estimate_us(const struct sched *s, uint32_t slot, uint64_t now_us);
/* From when on a request of so many rows would pass the uid's tokens a minute: now_us if at once.
 */
uint64_t sched_quota_us(const struct sched *s, uint32_t uid, uint32_t n_rows, uint64_t now_us);

struct sched_counts {
    uint32_t n_waiting, n_running, n_parked; /* parked ones are among the others, too */
    uint32_t n_preempted;                    /* of those waiting: they ran before */
    uint64_t n_preemptions;                  /* since sched_new() */
};
struct sched_counts sched_count(const struct sched *s);

struct sched_user_counts {
    uint32_t uid, weight;
    uint32_t n_running, n_waiting, n_pages;
    uint64_t n_prefill_rows, n_decode_rows; /* served since the uid was last unknown */
};
/* Fills up to `room` entries, in no order; returns how many uids are known. */
uint32_t sched_users(const struct sched *s, struct sched_user_counts *ret, uint32_t room);

/* Asserts every invariant; for tests and the simulator. */
void sched_check(const struct sched *s);

#endif
