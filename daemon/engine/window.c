/* window.c: attention sinks and a sliding window (arXiv:2309.17453) over pages of sequence state.
 *
 * A window of `asked` tokens is floor(asked / page) pages of state. Its first pages, as many as the
 * sinks touch, never leave. When the window is full and another row is owed, a quarter of it leaves
 * behind the sinks, in whole pages and at least one; the rows that stay move up, and the backend
 * turns their keys back by the positions they moved. The values stay as they are, though they were
 * computed when the rows that left were still there: that is what makes it cheap, and why a row's
 * state is no longer a function of the tokens in the window.
 *
 * When it slides is decided by the count of rows that have run and nothing else:
 *
 *   rows that left before row i runs = 0                                         for i < rows
 *                                      leave * (1 + floor((i - rows) / leave))   otherwise
 *
 * and engine_sequence_clamp() lets no step run over such a row. So which rows a row has seen, and
 * at which positions, does not depend on how the rows were cut into steps or on what ran beside
 * them.
 *
 * Pages. A windowed sequence may begin with pages that others hold; those behind the sinks become
 * its own at once (window_own), when a lack of pages is only a longer prefill, so that a slide
 * takes no page and cannot fail for want of one. It publishes nothing: its pages will be changed in
 * place.
 *
 * Tokens. Until the first slide all are kept, for its rows may have to be computed again. From then
 * on the latest INFER_PENALTY_WINDOW_MAX are enough: every row but the last drawn has run, and the
 * penalties look back no further. The array has room for a window more, so that moving them costs
 * less than a token's share of a step. */
#include "engine/sequence.h"

#include <string.h>

#define WINDOW_PAGES_MIN 4u

static uint32_t sinks_of(const struct engine_request *r)
{
    return r->sinks != 0 ? r->sinks : INFER_SINKS_DEFAULT;
}

int window_check(const struct engine_model *m, const struct engine_request *r,
                 struct report *report)
{
    uint32_t page = m->state.page_tokens, least = WINDOW_PAGES_MIN * page;
    if (least < INFER_WINDOW_MIN)
        least = INFER_WINDOW_MIN;
    if (r->window == 0 && r->sinks == 0)
        return 0;
    if (r->kind != ENGINE_GENERATE)
        return report_fail(report, INFER_E_BAD_PARAMETER,
                           "scores take no window; they want every token's whole context");
    if (r->window == 0)
        return report_fail(report, INFER_E_BAD_PARAMETER,
                           "%u sinks without a window; set the window, too", r->sinks);
    if (r->window < least || r->window > m->n_context)
        return report_fail(report, INFER_E_BAD_PARAMETER,
                           "a window of %u tokens; with %s it may have %u to %u", r->window,
                           m->name, least, m->n_context);
    if (sinks_of(r) > r->window / 4)
        return report_fail(report, INFER_E_BAD_PARAMETER,
                           "%u sinks; in a window of %u tokens there may be %u", r->sinks,
                           r->window, r->window / 4);
    return 0;
}

struct engine_window window_of(const struct engine_model *m, const struct engine_request *r)
{
    uint32_t page = m->state.page_tokens;
    if (r->window == 0)
        return (struct engine_window){0};
    uint32_t sinks = (sinks_of(r) + page - 1) / page, leave = (r->window / 4 + page / 2) / page;
    struct engine_window w = {.rows = r->window / page * page,
                              .sinks = sinks * page,
                              .leave = (leave > 0 ? leave : 1) * page,
                              .asked = r->window,
                              .asked_sinks = sinks_of(r)};
    assert(w.sinks + w.leave <= w.rows);
    return w;
}

uint64_t window_token_room(const struct engine_window *w, uint64_t n_kept)
{
    return (n_kept > w->rows ? n_kept : w->rows) + INFER_PENALTY_WINDOW_MAX + 1;
}

void window_forget(struct engine_sequence *s)
{
    uint64_t n = s->n_tokens - s->n_forgotten, keep = INFER_PENALTY_WINDOW_MAX;
    assert(s->n_slid > 0 && s->n_cached == s->n_tokens && n > keep);
    memmove(s->tokens, s->tokens + (n - keep), keep * sizeof *s->tokens);
    s->n_forgotten += n - keep;
}

void window_own(struct engine_sequence *s)
{
    uint32_t sinks = s->window.sinks;
    if (s->window.rows == 0 || s->state.n_tokens <= sinks)
        return;
    if (kv_sequence_slide(s->model->pool, &s->state, sinks, 0) < 0)
        kv_sequence_trim(s->model->pool, &s->state, sinks);
}

bool window_matches(const struct engine_sequence *s, uint64_t n)
{
    const struct engine_window *w = &s->window;
    if (w->rows == 0)
        return true;
    if (n < s->n_slid || n - s->n_slid > w->rows)
        return false;
    return s->n_slid == 0 || n - s->n_slid >= w->rows - w->leave;
}

int window_slide(struct engine_sequence *s, uint32_t *ret_gave)
{
    struct engine_model *m = s->model;
    const struct engine_window *w = &s->window;
    *ret_gave = 0;
    if (w->rows == 0 || sequence_position(s) < w->rows)
        return 0;
    uint32_t before = s->state.n_pages;
    int rc = kv_sequence_slide(m->pool, &s->state, w->sinks, w->leave);
    assert(rc == 0); /* its pages are its own */
    s->n_slid += w->leave;
    *ret_gave = before - s->state.n_pages;
    for (uint32_t i = w->sinks / m->state.page_tokens; i < s->state.n_pages && rc == 0; i++)
        rc = m->api->page_shift(m->weights, s->state.pages[i], -(int32_t)w->leave);
    return rc;
}

uint32_t engine_sequence_clamp(const struct engine_sequence *s, uint32_t n_rows)
{
    const struct engine_window *w = &s->window;
    if (w->rows == 0)
        return n_rows;
    uint32_t at = sequence_position(s), room = at < w->rows ? w->rows - at : w->leave;
    return n_rows < room ? n_rows : room;
}
