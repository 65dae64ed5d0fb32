/* past.c: what an answer leaves behind, so that a later request goes on from there.
 *
 * Of most sequences the tokens are enough: their pages stay in the prefix index while there is
 * room, and are computed again when they are gone. Once a window has slid, the rows are no function
 * of the tokens that are left, and the past holds the pages themselves, or what was saved of them.
 *
 * Counts go on: the continuing sequence is what one request with all the tokens would be, with the
 * same draws, penalties and points at which its window slides. */
#include "engine/sequence.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct engine_past {
    struct engine_model *model;
    int32_t *tokens; /* the latest n_kept of n_tokens */
    uint32_t n_kept;
    uint64_t n_tokens;
    /* Once a window has slid: */
    struct kv_sequence state; /* of n_cached - n_slid rows */
    struct engine_window window;
    uint64_t n_cached, n_slid;
    bool saved; /* its rows are in the caller's memory, not in pages */
};

/* The penalties may look so far back, and what has not run must be there. */
static uint32_t tail_of(const struct engine_sequence *s)
{
    uint64_t held = s->n_tokens - s->n_forgotten, owed = s->n_tokens - s->n_cached;
    uint64_t want = owed > INFER_PENALTY_WINDOW_MAX ? owed : INFER_PENALTY_WINDOW_MAX;
    return (uint32_t)(s->n_slid == 0 || held < want ? held : want);
}

int engine_sequence_keep(struct engine_sequence *s, struct engine_past **ret)
{
    assert(s->kind == ENGINE_GENERATE && s->tokens != NULL);
    engine_sequence_leave(s);
    bool slid = s->n_slid > 0, lost = slid && s->failed;
    struct engine_past *past = lost ? NULL : calloc(1, sizeof *past);
    if (past == NULL) {
        engine_sequence_end(s);
        return lost ? -ENODATA : -ENOMEM;
    }
    past->model = s->model;
    past->n_tokens = s->n_tokens;
    past->n_kept = tail_of(s);
    memmove(s->tokens, sequence_token(s, s->n_tokens - past->n_kept),
            past->n_kept * sizeof *s->tokens);
    past->tokens = realloc(s->tokens, (past->n_kept + 1) * sizeof *s->tokens);
    if (past->tokens == NULL)
        past->tokens = s->tokens; /* it stays as large as it was */
    s->tokens = NULL;
    if (slid) {
        past->state = s->state;
        past->window = s->window;
        past->n_cached = s->n_cached;
        past->n_slid = s->n_slid;
        past->saved = s->saved;
        s->state = (struct kv_sequence){0};
    } else {
        engine_sequence_end(s);
    }
    *ret = past;
    return 0;
}

int engine_sequence_revert(struct engine_sequence *s, struct engine_past **ret)
{
    engine_sequence_leave(s);
    bool forgot = s->past_slid > 0 ? s->n_slid != s->past_slid : s->n_forgotten > 0;
    if (forgot || (s->past_slid > 0 && s->failed)) {
        engine_sequence_end(s);
        return -ENODATA;
    }
    s->n_tokens = s->past_tokens;
    s->n_cached = s->past_cached;
    s->n_slid = s->past_slid;
    kv_sequence_trim(s->model->pool, &s->state, sequence_position(s)); /* none are there if saved */
    return engine_sequence_keep(s, ret);
}

void engine_past_free(struct engine_past *past)
{
    if (past == NULL)
        return;
    if (past->state.pages != NULL)
        kv_sequence_done(past->model->pool, &past->state);
    free(past->tokens);
    free(past);
}

struct engine_model *engine_past_model(const struct engine_past *past)
{
    return past->model;
}

uint32_t engine_past_tokens(const struct engine_past *past, const int32_t **ret)
{
    *ret = past->tokens;
    return past->n_kept;
}

size_t engine_past_bytes(const struct engine_past *past)
{
    return sizeof *past + past->n_kept * sizeof *past->tokens +
           past->state.room * sizeof *past->state.pages;
}

uint32_t engine_past_pages(const struct engine_past *past)
{
    return past->state.n_pages;
}

size_t engine_past_saved_bytes(const struct engine_past *past)
{
    return pages_bytes(past->model, &past->state);
}

int engine_past_save(struct engine_past *past, void *memory)
{
    assert(past->n_slid > 0 && !past->saved);
    int rc = pages_save(past->model, &past->state, memory);
    past->saved = rc == 0;
    return rc;
}

bool engine_past_is_saved(const struct engine_past *past)
{
    return past->saved;
}

/* ---- continuing it --------------------------------------------------------------------------- */

uint64_t past_tokens_all(const struct engine_past *past)
{
    return past->n_tokens;
}

bool past_has_state(const struct engine_past *past)
{
    return past->n_slid > 0;
}

int past_check(const struct engine_past *past, const struct engine_model *m,
               const struct engine_request *r, struct report *report)
{
    if (past->model != m)
        return report_fail(report, INFER_E_BAD_PARAMETER, "the conversation is one with %s",
                           past->model->name);
    if (r->kind != ENGINE_GENERATE)
        return report_fail(report, INFER_E_BAD_PARAMETER, "scores continue no conversation");
    struct engine_window w = window_of(m, r);
    if (past->n_slid > 0 &&
        (w.asked != past->window.asked || w.asked_sinks != past->window.asked_sinks))
        return report_fail(report, INFER_E_BAD_PARAMETER,
                           "the conversation's window of %u tokens with %u sinks has slid; ask for "
                           "that one again, not for %u with %u",
                           past->window.asked, past->window.asked_sinks, w.asked, w.asked_sinks);
    return 0;
}

void past_take_over(struct engine_past *past, struct engine_sequence *s)
{
    assert(past->n_kept <= s->n_room && s->n_tokens == 0);
    memcpy(s->tokens, past->tokens, past->n_kept * sizeof *s->tokens);
    s->n_tokens = s->past_tokens = past->n_tokens;
    s->n_forgotten = past->n_tokens - past->n_kept;
    s->n_cached = s->n_found = s->past_cached = past->n_cached;
    s->n_slid = s->past_slid = past->n_slid;
    s->begun = past->n_slid > 0;
    if (past->n_slid > 0) {
        s->state = past->state;
        s->saved = past->saved;
        past->state = (struct kv_sequence){0};
    }
    engine_past_free(past);
}
