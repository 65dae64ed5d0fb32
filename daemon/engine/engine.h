/* engine.h: loaded models, their sequences, and the step that moves sequences on.
 *
 * A struct engine_model is a model that is ready to run: plan, tokenizer, template, the backend's
 * model and the page pool. A struct engine_sequence is one answer (or one scoring) in progress: its
 * tokens, how many of them are in the sequence state, its sampler's parameters, and the way from
 * tokens to text (detokenizer, then stop strings). A step turns a list of (sequence, rows) into one
 * batch, runs it, and leaves in each sequence what came out: engine_submit() begins it,
 * engine_collect() waits for its end.
 *
 * The uniform rule: a sequence has n_tokens tokens, of which the first n_cached have run: their
 * rows are in its state. The rows it owes are the rest. When a step runs the last owed row, a token
 * is drawn and appended, so prefill and decode differ by nothing but the number of rows.
 *
 * One step ahead. Where the backend lets two steps be under way, the second may go on from what the
 * first one draws, before the host knows it (engine_sequence_follows() says for whom). When the
 * sequence turns out to end, or anything else becomes of it, its row of the second step was for
 * nothing: it leaves that step (engine_sequence_leave()) and is as if it had never been in it. This
 * is sound because a row is a function of the tokens before it, so running it again gives the same;
 * because only whole pages of known tokens are published; and because the backend does steps and
 * page functions in order, so that who takes the pages that were left writes them afterwards.
 *
 * A window (window.c) bounds the state: n_slid of the rows that have run have left it, so that the
 * next row's position is n_cached - n_slid. Counts of tokens are 64 bits wide, for an endless
 * answer outlives 32; its tokens array forgets the oldest ones, and its memory is constant.
 *
 * Threads: one, the engine's; but a model's tokenizer and template are immutable and may be used by
 * any thread. Memory: a sequence takes all it ever needs when it is made; a step allocates nothing.
 * Does not know: clients, rings, queues, clocks. */
#ifndef INFERD_ENGINE_ENGINE_H
#define INFERD_ENGINE_ENGINE_H

#include "base/report.h"
#include "engine/stop.h"
#include "inferd/backend.h"
#include "kv/kv.h"
#include "model/chat.h"
#include "model/plan.h"
#include "model/tokenizer.h"

#include <stdbool.h>

struct engine_model {
    char name[INFER_MODEL_NAME_MAX];
    char backend_name[64]; /* "cpu: AVX-512 VNNI, 2 threads" */
    struct plan *plan;
    struct tokenizer *tokenizer;
    struct chat_template *chat; /* NULL: none that we know; chat_report says why */
    struct report chat_report;
    const struct infer_backend_api *api;
    struct infer_backend *backend; /* shared between models, unless it is a split (split.h) */
    bool owns_backend;             /* then the model's own, closed with it */
    struct infer_backend_model *weights;
    struct infer_state_config state;
    struct infer_estimate memory;
    /* Of a split: how many layers the first backend has, and what of `memory` the second takes. */
    uint32_t n_first;
    struct infer_estimate rest;
    struct kv_pool *pool;
    uint32_t n_context;   /* longest sequence served: at most the model's own */
    uint8_t page_key[16]; /* random; salts the index of cached prefixes */
    int page_error; /* of a page that could not be zeroed, copied or shifted: the step fails; what
                     * happens between steps goes without such a page instead */
    struct engine_steps *steps; /* those under way, and their room */
};

/* Takes what the caller has filled in (all but pool and steps), makes pool and steps' room. On
 * failure nothing is taken. */
int engine_model_init(struct engine_model *m);
/* Frees everything that the model owns. No sequence may be left. */
void engine_model_done(struct engine_model *m);
/* Does the backend work by itself between engine_submit() and engine_collect()? */
static inline bool engine_model_works_alone(const struct engine_model *m)
{
    return m->api->submit != NULL;
}

/* ---- sequences ------------------------------------------------------------------------------- */

enum engine_kind { ENGINE_GENERATE, ENGINE_SCORE };

struct engine_request {
    enum engine_kind kind;
    uint64_t domain;       /* whose state this is: only the same domain's cached pages are used */
    const int32_t *tokens; /* copied */
    uint32_t n_tokens;
    const struct infer_sampling *sampling; /* GENERATE */
    const struct infer_logit_bias *biases;
    uint32_t n_biases;
    const struct stop_string *stops; /* copied */
    uint32_t n_stops;
    uint32_t n_top; /* SCORE */
    bool show_special;
    uint32_t window, sinks;   /* GENERATE; 0: none, the default */
    struct engine_past *past; /* what the tokens continue; not NULL: taken over on success */
};

/* In rows, all whole pages; all zero: there is no window. When `rows` are in the state and another
 * one is owed, `leave` of them leave after the first `sinks`. */
struct engine_window {
    uint32_t rows, sinks, leave;
    uint32_t asked, asked_sinks; /* in tokens, as the request has them */
};

/* What the last step left, for the caller to pass on before the next step. */
struct engine_output {
    bool has_token;
    int32_t token;
    float logprob;
    uint32_t index;
    uint32_t n_top;
    struct infer_logprob top[INFER_TOP_MAX];
    size_t text_bytes;
    uint32_t finish; /* enum infer_finish; NONE: it goes on */
    uint32_t n_gave; /* pages that its window gave up when it slid, before this step's rows */
};

struct engine_sequence {
    struct engine_model *model;
    enum engine_kind kind;
    int32_t *tokens;      /* the latest, from number n_forgotten on */
    uint32_t n_room;      /* of the tokens array */
    uint64_t n_forgotten; /* 0 unless a window has slid */
    uint64_t n_tokens, n_prompt, n_cached;
    uint64_t n_found; /* rows of the prompt that need not run: from the cache, the past, a fork */
    uint64_t max_tokens; /* of the whole sequence; UINT64_MAX: endless */
    uint64_t n_generated;
    struct engine_window window;
    uint64_t n_slid;                              /* rows that have left the state */
    uint64_t past_tokens, past_cached, past_slid; /* these counts of what it continues */
    bool begun;                                   /* n_found is known */
    bool saved;  /* its rows are in save()'s memory, its pages are given up */
    bool failed; /* its last step was not completed: its state holds anything */
    /* Of the steps under way: how many it is in, with how many rows, and which output of the last
     * of them draws its next token. The state has pages for these rows. */
    uint32_t n_steps, n_rows_ahead, drawn_by;
    struct kv_sequence state;
    struct infer_sampling sampling;
    struct infer_logit_bias *biases;
    uint32_t n_biases;
    struct stop_string *stops;
    struct stop_matcher matcher;
    struct detokenizer detokenizer;
    char *text;    /* output.text_bytes of it are valid */
    char *scratch; /* detokenizer's output before the stop strings see it */
    /* SCORE: of tokens[0 .. n_scored); that of the first token is NaN. top: n_top per token. */
    float *logprobs;
    struct infer_logprob *top;
    uint32_t n_scored, n_top;
    struct engine_output output;
};

/* Checks the request against the model (PROMPT_EMPTY, PROMPT_TOO_LONG, BAD_TOKEN, BAD_PARAMETER,
 * OUT_OF_MEMORY) and takes all memory but pages. Without a window the prompt and the past fit the
 * context; with one the new tokens do. On success r->past belongs to the sequence. */
int engine_sequence_new(struct engine_model *m, const struct engine_request *r,
                        struct engine_sequence **ret, struct report *report);
void engine_sequence_free(struct engine_sequence *s);

/* Rows owed now; a SCORE of a single token owes none. */
uint32_t engine_sequence_rows(const struct engine_sequence *s);
/* Before its first row runs, and again after a drop: takes what the cache has of its tokens;
 * returns how many of the rows it owed need not run. A SCORE wants every row's logits and takes
 * nothing; what continues a slid window has its rows already and owes them no more. */
uint32_t engine_sequence_begin(struct engine_sequence *s);
/* Instead of begin, for a sequence with the same prompt as `from`, which runs: shares the rows of
 * the prompt that `from` has. Returns how many need not run; falls back to begin. */
uint32_t engine_sequence_fork(struct engine_sequence *s, const struct engine_sequence *from);
/* At most so many of the next n_rows may run in one step: a window slides only between steps. Ask
 * after begin or fork. */
uint32_t engine_sequence_clamp(const struct engine_sequence *s, uint32_t n_rows);
/* Its state is no longer needed; what can be of use to others stays cached. */
void engine_sequence_end(struct engine_sequence *s);
/* Pages it can come to hold. */
uint32_t engine_sequence_pages(const struct engine_sequence *s);

/* ---- pressure: a sequence gives its pages to others and goes on later with the same tokens ------
 */

/* Can its rows be computed again? Not once a window has slid: they are no function of the tokens
 * that are left. */
bool engine_sequence_can_drop(const struct engine_sequence *s);
/* Gives up its pages; it owes all its rows again, and engine_sequence_begin() is called once more.
 */
void engine_sequence_drop(struct engine_sequence *s);
/* Bytes that save() writes: all its pages, for those that others could find in the index may be
 * gone from there when it comes back. */
size_t engine_sequence_saved_bytes(const struct engine_sequence *s);
/* Writes its pages to `memory` (64-byte aligned) and gives them up. -EIO: the backend could not,
 * and the sequence is as before. */
int engine_sequence_save(struct engine_sequence *s, void *memory);
/* The way back, into new pages, and into those that the index still has. -ENOSPC: too few are free,
 * -EIO; it stays saved then. A saved sequence that can be dropped may be dropped instead. */
int engine_sequence_restore(struct engine_sequence *s, const void *memory);

/* ---- conversations: what an answer leaves behind, to be continued -------------------------------
 */

struct engine_past;

/* Ends a GENERATE sequence and keeps its tokens (and, once a window has slid, its state; if that
 * was saved, so is the past, and the memory is the past's). -ENOMEM; -ENODATA: its window has slid
 * and its state is not sound (a step failed). The sequence is over in any case; what is left of it
 * may be read and freed, its tokens are gone. */
int engine_sequence_keep(struct engine_sequence *s, struct engine_past **ret);
/* The same for a sequence that continues a past, but keeps that past as it was before. -ENODATA
 * also when its window has slid since. */
int engine_sequence_revert(struct engine_sequence *s, struct engine_past **ret);
void engine_past_free(struct engine_past *past);
struct engine_model *engine_past_model(const struct engine_past *past);
/* Its tokens; once a window has slid, the latest of them. */
uint32_t engine_past_tokens(const struct engine_past *past, const int32_t **ret);
size_t engine_past_bytes(const struct engine_past *past);   /* of host memory */
uint32_t engine_past_pages(const struct engine_past *past); /* that it holds: 0 but for a window */
/* The same as of sequences, of a past that holds pages: it gives them up. What continues one that
 * was saved is itself saved, and is restored before its first step. */
size_t engine_past_saved_bytes(const struct engine_past *past);
int engine_past_save(struct engine_past *past, void *memory);
bool engine_past_is_saved(const struct engine_past *past);

/* ---- the step -------------------------------------------------------------------------------- */

struct engine_work {
    struct engine_sequence *sequence;
    uint32_t n_rows; /* 1 .. engine_sequence_rows(), and at most engine_sequence_clamp() */
};

/* Begins a step: windows that are full slide, the batch is submitted, or run where the backend has
 * no submit(). The rows together are at most the model's state.max_rows, the sequences at most
 * state.max_seqs, and their pages are free (the scheduler set them aside). While a step is under
 * way another one may be submitted, of sequences that are in it and follow it by one row. 0; -EIO:
 * it failed, and -ENODEV: the backend is lost; then no step was begun, and of the sequences those
 * that were in no other step cannot go on. */
int engine_submit(struct engine_model *m, const struct engine_work *work, uint32_t n);
/* Waits for the oldest step under way and leaves in its sequences what came out. -EIO: it failed
 * and none of its sequences can go on; -ENODEV. */
int engine_collect(struct engine_model *m);
/* Both. */
int engine_step(struct engine_model *m, const struct engine_work *work, uint32_t n);

/* Can its next row be submitted while the step that draws its next token is under way? Not where
 * that token decides about more than itself: a penalty looks at it, the window slides, the answer
 * is full. */
bool engine_sequence_follows(const struct engine_sequence *s);
/* Is it in a step under way? */
static inline bool engine_sequence_under_way(const struct engine_sequence *s)
{
    return s->n_steps > 0;
}
/* Leaves the steps under way, which have no result for it then. What gives up its state does so by
 * itself: end, free, keep, revert, drop, save. */
void engine_sequence_leave(struct engine_sequence *s);

#endif
