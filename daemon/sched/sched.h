/* sched.h: who runs in this step.
 *
 * A pure function of its state, the calls since the last step and the time handed to it: no clock,
 * no tensor, no lock, no allocation after sched_new(). It knows sequences by number, tokens by
 * count and pages by count, so a whole day of traffic can be simulated in a second.
 *
 * The data model. A sequence is added with the tokens it must run through first (its prompt) and
 * the pages it may come to need. It WAITs in order of arrival until a running slot and its pages
 * are free (pages are set aside for its whole life, so that it never has to stop for want of them),
 * then it RUNs: each step gives it rows, and while it owes more rows than one, these are prefill.
 * A PARKED sequence keeps slot and pages but gets no rows: its client does not read.
 *
 * The policy of a step: one model per batch, the models with work taking turns; of that model all
 * sequences that owe one row first (decodes), then chunks of prefill in order of arrival until the
 * step's budget is spent.
 *
 * Threads: one, the engine's. */
#ifndef INFERD_SCHED_SCHED_H
#define INFERD_SCHED_SCHED_H

#include <stdbool.h>
#include <stdint.h>

struct sched;

struct sched_config {
    uint32_t max_sequences; /* waiting ones included */
    uint32_t max_running;   /* at once, all models together */
    uint32_t step_rows;     /* the budget of one step */
    uint32_t n_models;
};

struct sched_request {
    uint32_t model;
    uint32_t uid;
    uint32_t n_rows;  /* rows that it owes from the start: the prompt's tokens, at least 1 */
    uint32_t n_pages; /* most pages that it can come to hold */
};

/* Rows for a sequence in this step. */
struct sched_work {
    uint32_t slot;
    uint32_t n_rows;
};

int sched_new(const struct sched_config *config, struct sched **ret);
void sched_free(struct sched *s);

/* How many pages of a model there are in all; set once, before its first sequence. */
void sched_set_pages(struct sched *s, uint32_t model, uint32_t n_pages);

/* Queues a sequence. 0 and *ret_slot, its number until sched_remove(); -ENOSPC when max_sequences
 * are known already; -E2BIG when it needs more pages than the model has. */
int sched_add(struct sched *s, const struct sched_request *request, uint64_t now_us,
              uint32_t *ret_slot);
/* Forgets it, whatever its state. Its pages count as free from now on. */
void sched_remove(struct sched *s, uint32_t slot);

void sched_park(struct sched *s, uint32_t slot);
void sched_resume(struct sched *s, uint32_t slot);

/* The next step's work: *ret_model and up to `room` entries; returns their number, 0 when nobody
 * can run. Moves waiting sequences into free slots first. */
uint32_t sched_plan(struct sched *s, uint64_t now_us, uint32_t *ret_model, struct sched_work *ret,
                    uint32_t room);
/* After a step: the sequence ran n_rows of what it owed and owes n_new more (1 for the token that
 * was drawn, 0 when it is finished and about to be removed). */
void sched_ran(struct sched *s, uint32_t slot, uint32_t n_rows, uint32_t n_new);

/* How many sequences wait before this one: 0 when it runs or is next. */
uint32_t sched_position(const struct sched *s, uint32_t slot);

struct sched_counts {
    uint32_t n_waiting, n_running, n_parked; /* parked ones are running ones, too */
};
struct sched_counts sched_count(const struct sched *s);

/* Asserts every invariant; for tests and the simulator. */
void sched_check(const struct sched *s);

#endif
