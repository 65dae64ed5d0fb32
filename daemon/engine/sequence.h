/* sequence.h: what the files of engine/ share. Internal to it. */
#ifndef INFERD_ENGINE_SEQUENCE_H
#define INFERD_ENGINE_SEQUENCE_H

#include "engine/engine.h"

#include <assert.h>

/* Token number i, counted from the sequence's first; it is one of those that are kept. */
static inline int32_t *sequence_token(const struct engine_sequence *s, uint64_t i)
{
    assert(i >= s->n_forgotten && i - s->n_forgotten <= s->n_room);
    return s->tokens + (i - s->n_forgotten);
}

/* The rows in the state that have run, and so the position of the next one. */
static inline uint32_t sequence_position(const struct engine_sequence *s)
{
    return (uint32_t)(s->n_cached - s->n_slid);
}

/* Between steps: a page that the sequence took could not be zeroed or copied. It gives up all. */
static inline bool sequence_took_badly(struct engine_sequence *s)
{
    bool bad = s->model->page_error < 0;
    s->model->page_error = 0;
    if (bad)
        kv_sequence_trim(s->model->pool, &s->state, 0);
    return bad;
}

/* A GENERATE sequence's token was drawn: append it, make its text, decide whether it ends. */
void sequence_drew(struct engine_sequence *s, const struct infer_batch_output *drawn);

/* A SCORE sequence's next token was scored; top has s->n_top entries. */
void sequence_scored(struct engine_sequence *s, float logprob, const struct infer_logprob *top);

/* ---- window.c -------------------------------------------------------------------------------- */

/* BAD_PARAMETER for a window that the model cannot have. */
int window_check(const struct engine_model *m, const struct engine_request *r,
                 struct report *report);
/* Of a request that has been checked. */
struct engine_window window_of(const struct engine_model *m, const struct engine_request *r);
/* Tokens that the sequence keeps room for, when its prompt brings n_kept. */
uint64_t window_token_room(const struct engine_window *w, uint64_t n_kept);
/* The tokens array is full: forgets the oldest. The window has slid. */
void window_forget(struct engine_sequence *s);
/* Its pages were taken from others: makes those that will move its own, or gives them up. */
void window_own(struct engine_sequence *s);
/* Would a sequence whose next row is n have slid as `s` has? */
bool window_matches(const struct engine_sequence *s, uint64_t n);
/* Slides when the window is full; *ret_gave pages have left then. 0, or what the backend said. */
int window_slide(struct engine_sequence *s, uint32_t *ret_gave);

/* ---- pressure.c ------------------------------------------------------------------------------ */

/* Of saved pages, in the caller's memory. */
size_t pages_bytes(const struct engine_model *m, const struct kv_sequence *state);
/* Writes all pages there and gives them up. -EIO: nothing has changed. */
int pages_save(struct engine_model *m, struct kv_sequence *state, void *memory);

/* ---- past.c ---------------------------------------------------------------------------------- */

uint64_t past_tokens_all(const struct engine_past *past);
/* BAD_PARAMETER: a past that the request cannot continue. */
int past_check(const struct engine_past *past, const struct engine_model *m,
               const struct engine_request *r, struct report *report);
/* Frees the past; its state, if it has one, and its counts are the sequence's, its tokens are at
 * the beginning of the tokens array, which has room for them. */
void past_take_over(struct engine_past *past, struct engine_sequence *s);
bool past_has_state(const struct engine_past *past);

#endif
