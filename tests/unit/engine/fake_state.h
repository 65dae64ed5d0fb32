/* fake_state.h: a backend whose pages hold rows that depend on everything a real one's do.
 *
 * The value of a row is a hash of its token, its position and all values before it, read through
 * the sequence's page table. Beside its value, which never changes, a row has its key's position,
 * which page_shift() moves: run() asserts that the row at place i was last turned to position i. A
 * token is drawn by a hash of the row's value, the uniform number and the tokens that the penalties
 * see. So a row that is missing, stale, misplaced, not turned or somebody else's changes every
 * token after it.
 *
 * fake_expect() computes the same over flat arrays, from the description of a window alone. */
#ifndef TESTS_UNIT_ENGINE_FAKE_STATE_H
#define TESTS_UNIT_ENGINE_FAKE_STATE_H

#include "base/rng.h"
#include "engine/engine.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define MODEL "models/unix-46m-Q6_K.gguf"

enum { FAKE_PAGES = 64, FAKE_ROWS = 16, FAKE_CONTEXT = 512, FAKE_TOKENS_MAX = 40000 };

struct fake_row {
    uint64_t value;
    int64_t position;
};

struct infer_backend_model {
    struct fake_row pages[FAKE_PAGES][FAKE_ROWS];
    uint64_t n_rows, n_shifts, n_reads, n_writes, n_copies;
    /* The n-th call from now fails. */
    uint32_t fail_shift, fail_read, fail_write, fail_run, fail_copy, fail_zero;
    uint32_t fail_submit; /* test_ahead.c */
    uint64_t log; /* a hash of what was run and shifted, in order, without the cuts into steps */
};

static struct infer_backend_model fake;

static inline uint64_t fake_value(int32_t token, uint32_t position, uint64_t before)
{
    return rng_at(before, (uint64_t)position << 32 | (uint32_t)token);
}

static inline uint64_t fake_fold(uint64_t fold, uint64_t value)
{
    return rng_mix(fold ^ value);
}

/* Ordinary tokens, none that ends an answer. */
static inline int32_t fake_draw(uint64_t value, double uniform, const int32_t *seen, uint32_t n)
{
    uint64_t x = value ^ (uint64_t)(uniform * 0x1p53);
    for (uint32_t i = 0; i < n; i++)
        x = rng_mix(x ^ (uint32_t)seen[i]);
    return (int32_t)(400 + rng_mix(x) % 4096);
}

static bool fake_fails(uint32_t *countdown)
{
    return *countdown > 0 && --*countdown == 0;
}

static int fake_run(struct infer_backend_model *m, struct infer_batch *b)
{
    uint64_t values[INFER_STEP_ROWS_MAX];
    if (fake_fails(&m->fail_run))
        return -EIO;
    for (uint32_t i = 0; i < b->n_seqs; i++) {
        const struct infer_batch_seq *s = &b->seqs[i];
        uint64_t fold = 0;
        assert_int_equal(s->n_pages, (s->position + s->n_rows + FAKE_ROWS - 1) / FAKE_ROWS);
        for (uint32_t p = 0; p < s->position + s->n_rows; p++) {
            struct fake_row *row = &m->pages[s->pages[p / FAKE_ROWS]][p % FAKE_ROWS];
            if (p >= s->position) {
                uint32_t at = s->first_row + p - s->position;
                *row = (struct fake_row){fake_value(b->tokens[at], p, fold), p};
                values[at] = row->value;
                m->log = rng_mix(m->log ^ row->value);
            }
            assert_int_equal(row->position, p);
            fold = fake_fold(fold, row->value);
        }
        m->n_rows += s->n_rows;
    }
    for (uint32_t i = 0; i < b->n_outputs; i++) {
        struct infer_batch_output *o = &b->outputs[i];
        if (o->sample)
            o->token = fake_draw(values[o->row], o->uniform, o->seen, o->n_seen);
        o->target_logprob = -(float)(values[o->row] % 1000);
        o->logprob = -1.0f;
        for (uint32_t t = 0; t < o->n_top; t++)
            o->top[t] = (struct infer_logprob){(int32_t)(values[o->row] % 999 + t), -0.5f};
    }
    return 0;
}

static int fake_copy(struct infer_backend_model *m, uint32_t to, uint32_t from)
{
    if (fake_fails(&m->fail_copy))
        return -EIO;
    memcpy(m->pages[to], m->pages[from], sizeof m->pages[to]);
    m->n_copies++;
    return 0;
}

static int fake_zero(struct infer_backend_model *m, uint32_t page)
{
    if (fake_fails(&m->fail_zero))
        return -EIO;
    memset(m->pages[page], 0, sizeof m->pages[page]);
    return 0;
}

static int fake_read(struct infer_backend_model *m, uint32_t page, void *to)
{
    assert_int_equal((uintptr_t)to % 64, 0);
    if (fake_fails(&m->fail_read))
        return -EIO;
    memcpy(to, m->pages[page], sizeof m->pages[page]);
    m->n_reads++;
    return 0;
}

static int fake_write(struct infer_backend_model *m, uint32_t page, const void *from)
{
    if (fake_fails(&m->fail_write))
        return -EIO;
    memcpy(m->pages[page], from, sizeof m->pages[page]);
    m->n_writes++;
    return 0;
}

static int fake_shift(struct infer_backend_model *m, uint32_t page, int32_t delta)
{
    if (fake_fails(&m->fail_shift))
        return -EIO;
    for (uint32_t i = 0; i < FAKE_ROWS; i++)
        m->pages[page][i].position += delta;
    m->n_shifts++;
    m->log = rng_mix(m->log ^ (uint64_t)(int64_t)delta);
    return 0;
}

static void fake_close(struct infer_backend_model *m)
{
    (void)m;
}

static const struct infer_backend_api fake_api = {.run = fake_run,
                                                  .model_close = fake_close,
                                                  .page_copy = fake_copy,
                                                  .page_zero = fake_zero,
                                                  .page_read = fake_read,
                                                  .page_write = fake_write,
                                                  .page_shift = fake_shift};

/* ---- the model ------------------------------------------------------------------------------- */

static const struct infer_backend_api *fake_model_api = &fake_api;

static struct engine_model *fake_model(uint32_t n_pages)
{
    struct engine_model *m = calloc(1, sizeof *m);
    struct gguf *g;
    struct report r = {0};
    assert_non_null(m);
    assert_int_equal(gguf_open(MODEL, &g, &r), 0);
    assert_int_equal(plan_new(g, &m->plan, &r), 0);
    assert_int_equal(tokenizer_new(g, &m->tokenizer, &r), 0);
    gguf_free(g);
    memset(&fake, 0, sizeof fake);
    strcpy(m->name, "fake");
    m->api = fake_model_api;
    m->weights = &fake;
    m->n_context = FAKE_CONTEXT;
    m->memory.page_bytes = sizeof fake.pages[0];
    m->state = (struct infer_state_config){.page_tokens = FAKE_ROWS,
                                           .n_pages = n_pages,
                                           .max_rows = INFER_STEP_ROWS_MAX,
                                           .max_seqs = 16,
                                           .max_outputs = INFER_STEP_ROWS_MAX};
    assert_int_equal(engine_model_init(m), 0);
    return m;
}

static int setup(void **state)
{
    *state = fake_model(FAKE_PAGES);
    return 0;
}

static int teardown(void **state)
{
    struct engine_model *m = *state;
    engine_model_done(m);
    free(m);
    return 0;
}

/* ---- what is to be expected ------------------------------------------------------------------ */

/* Appends to tokens[0 .. n) what is drawn, up to tokens[n_end). No window: window 0. */
static void fake_expect(int32_t *tokens, uint32_t n, uint32_t n_end, const struct infer_sampling *p,
                        uint32_t window, uint32_t sinks)
{
    static struct fake_row rows[FAKE_TOKENS_MAX];
    uint32_t n_rows = 0, most = window / FAKE_ROWS * FAKE_ROWS;
    uint32_t first =
        ((sinks ? sinks : INFER_SINKS_DEFAULT) + FAKE_ROWS - 1) / FAKE_ROWS * FAKE_ROWS;
    uint32_t leave = (window / 4 + FAKE_ROWS / 2) / FAKE_ROWS * FAKE_ROWS;
    assert_true(n_end <= FAKE_TOKENS_MAX);
    for (uint32_t i = 0; i < n_end - 1; i++) {
        uint64_t fold = 0;
        if (window > 0 && n_rows == most) {
            memmove(rows + first, rows + first + leave, (n_rows - first - leave) * sizeof *rows);
            n_rows -= leave;
        }
        for (uint32_t j = 0; j < n_rows; j++)
            fold = fake_fold(fold, rows[j].value);
        rows[n_rows] = (struct fake_row){fake_value(tokens[i], n_rows, fold), n_rows};
        if (i + 1 >= n) {
            uint32_t n_seen = p->penalty_window < i + 1 ? p->penalty_window : i + 1;
            tokens[i + 1] = fake_draw(rows[n_rows].value, rng_uniform(p->seed, i + 1),
                                      tokens + i + 1 - n_seen, n_seen);
        }
        n_rows++;
    }
}

/* ---- running --------------------------------------------------------------------------------- */

static void fake_prompt(int32_t *tokens, uint32_t n, uint64_t seed)
{
    for (uint32_t i = 0; i < n; i++)
        tokens[i] = (int32_t)(400 + rng_at(seed, i) % 4096);
}

static inline struct infer_sampling fake_sampling(uint64_t seed, uint32_t max_tokens)
{
    struct infer_sampling p;
    infer_sampling_default(&p);
    p.seed = seed;
    p.max_tokens = max_tokens;
    return p;
}

static inline struct engine_request fake_request(const int32_t *tokens, uint32_t n,
                                                 const struct infer_sampling *p)
{
    return (struct engine_request){
        .kind = ENGINE_GENERATE, .domain = 7, .tokens = tokens, .n_tokens = n, .sampling = p};
}

static inline struct engine_sequence *fake_new(struct engine_model *m,
                                               const struct engine_request *r)
{
    struct engine_sequence *s = NULL;
    struct report report = {0};
    if (engine_sequence_new(m, r, &s, &report) < 0)
        fail_msg("%s", report.text);
    return s;
}

/* A step of at most `most` rows. True when a token was drawn. */
static inline bool fake_step(struct engine_sequence *s, uint32_t most)
{
    uint32_t n = engine_sequence_rows(s);
    n = engine_sequence_clamp(s, n < most ? n : most);
    struct engine_work work = {s, n};
    assert_int_equal(engine_step(s->model, &work, 1), 0);
    const struct kv_sequence *all[] = {&s->state};
    struct kv_counts c = kv_pool_count(s->model->pool);
    if (c.n_held == s->state.n_pages && c.n_shared == 0) /* it is the only one that holds any */
        kv_check(s->model->pool, all, 1);
    return s->output.has_token;
}

/* Steps of at most `most` rows until it has n more tokens, which must be these. */
static inline void fake_run_tokens(struct engine_sequence *s, uint32_t most, const int32_t *want,
                                   uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        while (!fake_step(s, most))
            ;
        assert_int_equal(s->output.token, want[i]);
    }
}

static inline void fake_expect_refusal(struct engine_model *m, const struct engine_request *r,
                                       int code, const char *text)
{
    struct engine_sequence *s = NULL;
    struct report report = {0};
    assert_int_equal(engine_sequence_new(m, r, &s, &report), -code);
    assert_null(s);
    assert_string_equal(report.text, text);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

#endif
