/* job.h: one answer from its admission to its last event.
 *
 * A request is a job; one of several answers is as many jobs, which share a struct answers. A job
 * goes through these phases, and what it owes its client is always in it, never lost:
 *
 *   PREPARING  text becomes tokens (chat template, tokenizer); on the engine thread when it is
 *              short, on the preparing thread when it is long
 *   HELD       the scheduler does not know it: it waits for its model to be loaded, and is not
 *              prepared yet; or it has its sequence and waits for the prompt that it shares with
 *              the first answer, or for a limit of its user (WAIT)
 *   RUNNING    a sequence in scheduler and engine; each step leaves at most one token
 *   DRAINING   everything is known; results, ANSWER and DONE are put as the token ring has room
 *
 * Events that are due stand as flags and offsets in the job and are put by job_flush(), so that a
 * full ring stops the job and nobody else.
 *
 * Threads: the engine's, but for job_prepare(), which one other thread may run while the job is
 * PREPARING. */
#ifndef INFERD_JOB_H
#define INFERD_JOB_H

#include "engine/engine.h"
#include "proto/admit.h"

enum job_phase { JOB_PREPARING, JOB_HELD, JOB_RUNNING, JOB_DRAINING };

/* Why a job is HELD. */
enum job_hold { JOB_HOLD_NONE, JOB_HOLD_PROMPT, JOB_HOLD_LIMIT, JOB_HOLD_MODEL };

#define JOB_NO_SLOT UINT32_MAX

struct client; /* dispatch.c's */
struct conversation;
struct metrics_snapshot;
struct swap_state;

/* What the answers of one request share; freed with the last of their jobs. */
struct answers {
    uint32_t n, n_jobs; /* answers in all; jobs that are there */
    uint32_t n_left;    /* whose ANSWER was not put yet */
    bool prompt_ran;    /* the others may join */
    bool held;          /* the first waits for a limit: none of them counts as waiting */
    struct infer_abi_done sum;
    uint32_t failed; /* whose error DONE carries */
    struct report report;
};

struct job {
    struct job *next, *previous; /* in its client's list */
    struct job *next_stalled, *next_held;
    struct client *client; /* NULL: it is gone; the job only waits to be freed */
    enum job_phase phase;
    enum job_hold hold;
    uint32_t request, answer;
    struct answers *answers; /* NULL: the request has one answer */
    uint64_t id;
    uint64_t payload_bytes; /* as the client sent it */
    uint64_t held_bytes;    /* of payload and result, for the daemon's account */
    struct admit_request ask;
    struct engine_model *model; /* NULL for STATUS, MODELS, METRICS */
    uint32_t model_index;
    uint32_t priority;
    uint64_t deadline_us; /* absolute; 0: none */
    bool uses_model;      /* it counts among the requests of its model */
    bool cancelled;       /* while it was being prepared */
    int cancel_code;      /* that it ends with then; 0: as its client asked */
    bool stalled;
    uint64_t stalled_since_us;

    struct conversation *conversation; /* that it has; NULL: none */
    const struct engine_past *past;    /* of it, until the sequence takes it over */
    bool continues;                    /* it had a past */
    uint32_t n_lent;                   /* pages of that past, until it runs or gives them away */

    struct metrics_snapshot *snapshot; /* METRICS, until it has become the result */

    struct token_list tokens; /* of the prompt, or of what is new in it, once prepared */
    struct report report;     /* why it failed; code 0: it did not */

    struct engine_sequence *sequence;
    uint32_t slot;
    bool preempted;           /* it gave its pages away and has not started again */
    bool fetching;            /* its saved state is on its way back; the scheduler has it parked */
    struct swap_state *saved; /* NULL: its rows are computed again */

    /* due to the client */
    bool queued_due, token_due, answer_due, done_due;
    uint32_t position; /* as last told */
    uint64_t start_us; /* estimate that goes with it */
    bool wants_queue;  /* GENERATE: QUEUED events while it waits */
    size_t text_sent;
    uint32_t result_what; /* enum infer_abi_result; 0: none */
    uint8_t *result;
    size_t result_bytes, result_sent;
    uint32_t finish;
    uint32_t n_found; /* rows of the prompt that need not run, at the first start */

    uint64_t told_us; /* HELD for its model: when the client last heard */
    uint64_t admitted_us, started_us, first_token_us, last_token_us;
};

/* Takes over *ask (zeroes it). NULL when there is no memory. */
struct job *job_new(struct admit_request *ask);
void job_free(struct job *job);

/* Turns the input into tokens, or for TOKENIZE, DETOKENIZE and METRICS into the result. Frees the
 * payload.
 * A failure stands in job->report. Touches nothing but the job, its past and immutable parts of its
 * model. */
void job_prepare(struct job *job);

/* Makes the sequence of a prepared GENERATE or SCORE. Negative: job->report says why. */
int job_start(struct job *job, uint64_t domain);
/* The jobs of the request's other answers, n - 1 of them, in order: each has a sequence of its own
 * from the prompt of `job`. Negative: there are none, job->report says why. */
int job_start_others(struct job *job, uint64_t domain, struct job **ret);
/* What only the start needs goes: input, stop strings, tokens. */
void job_started(struct job *job);

/* Everything is known: what follows is ANSWER or DONE. code 0: it went well. text may be NULL: the
 * report's own, if it holds that code. */
void job_finish(struct job *job, uint32_t finish, int code, const char *text);

/* Puts what is due into the client's ring. 0: nothing is due any more; 1: the job is over, its
 * ANSWER was put, or DONE if it was the last; -EAGAIN: no room; -INFER_E_PROTOCOL: the client is
 * broken. */
int job_flush(struct job *job, struct session *session);

#endif
