/* pressure.c: a sequence gives its pages to others and goes on later with the same tokens.
 *
 * Two ways. Dropped, its rows are computed again: they are a function of its tokens, however they
 * are cut into steps, so that what is drawn next is the same; a SCORE that has recorded a row's
 * score does not ask for it again. Saved, its pages are read from the backend into the caller's
 * memory and written into other pages later: the same bytes.
 *
 * All pages are saved, also those that the index has: others take the freed pages, and when memory
 * is short these are the cached ones. Those that the index still has at the return are taken from
 * there, so that a common prefix is not in memory twice.
 *
 * In the caller's memory page i is at i * saved_page_bytes(). */
#include "engine/sequence.h"

#include <errno.h>

static size_t saved_page_bytes(const struct engine_model *m)
{
    return (m->memory.page_bytes + 63) & ~(size_t)63;
}

bool engine_sequence_can_drop(const struct engine_sequence *s)
{
    return s->n_slid == 0;
}

void engine_sequence_drop(struct engine_sequence *s)
{
    assert(engine_sequence_can_drop(s));
    engine_sequence_leave(s);
    kv_sequence_trim(s->model->pool, &s->state, 0);
    s->n_cached = 0;
    s->saved = false;
}

size_t pages_bytes(const struct engine_model *m, const struct kv_sequence *state)
{
    return state->n_pages * saved_page_bytes(m);
}

int pages_save(struct engine_model *m, struct kv_sequence *state, void *memory)
{
    for (uint32_t i = 0; i < state->n_pages; i++) {
        uint8_t *to = (uint8_t *)memory + i * saved_page_bytes(m);
        if (m->api->page_read(m->weights, state->pages[i], to) < 0)
            return -EIO;
    }
    kv_sequence_trim(m->pool, state, 0);
    return 0;
}

size_t engine_sequence_saved_bytes(const struct engine_sequence *s)
{
    return pages_bytes(s->model, &s->state);
}

int engine_sequence_save(struct engine_sequence *s, void *memory)
{
    engine_sequence_leave(s);
    assert(!s->saved && !s->failed && s->state.n_tokens == sequence_position(s));
    int rc = pages_save(s->model, &s->state, memory);
    s->saved = rc == 0;
    return rc;
}

int engine_sequence_restore(struct engine_sequence *s, const void *memory)
{
    struct engine_model *m = s->model;
    uint32_t n_rows = sequence_position(s), found = 0;
    assert(s->saved && s->state.n_pages == 0);
    if (s->kind == ENGINE_GENERATE && s->window.rows == 0)
        found = kv_sequence_match(m->pool, &s->state, s->tokens, n_rows);
    int rc = kv_sequence_grow(m->pool, &s->state, n_rows);
    if (sequence_took_badly(s))
        rc = -EIO;
    for (uint32_t i = found / m->state.page_tokens; i < s->state.n_pages && rc == 0; i++) {
        const uint8_t *from = (const uint8_t *)memory + i * saved_page_bytes(m);
        if (m->api->page_write(m->weights, s->state.pages[i], from) < 0)
            rc = -EIO;
    }
    if (rc < 0) {
        kv_sequence_trim(m->pool, &s->state, 0);
        return rc;
    }
    s->saved = false;
    return 0;
}
