/* engine.c: the step: from a list of sequences to one batch and back (see engine.h).
 *
 * The batch's arrays are sized once, from the model's state configuration, and used by every step.
 * Outputs are in ascending order of row because the sequences' rows are laid out in order. */
#include "engine/sequence.h"

#include "base/rng.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct engine_batch {
    int32_t *tokens;
    struct infer_batch_seq *seqs;
    struct infer_batch_output *outputs;
    struct infer_batch batch;
};

static int zero_page(void *ctx, uint32_t page)
{
    struct engine_model *m = ctx;
    int rc = m->api->page_zero(m->weights, page);
    if (rc < 0)
        m->page_error = rc;
    return rc;
}

static void copy_page(void *ctx, uint32_t to, uint32_t from)
{
    struct engine_model *m = ctx;
    int rc = m->api->page_copy(m->weights, to, from);
    if (rc < 0)
        m->page_error = rc;
}

int engine_model_init(struct engine_model *m)
{
    struct engine_batch *b = calloc(1, sizeof *b);
    struct kv_config config = {.n_pages = m->state.n_pages,
                               .page_tokens = m->state.page_tokens,
                               .ctx = m,
                               .zero = zero_page,
                               .copy = copy_page};
    memcpy(config.key, m->page_key, sizeof config.key);
    int rc = kv_pool_new(&config, &m->pool);

    m->batch = b;
    if (rc == 0 && b != NULL) {
        b->tokens = calloc(m->state.max_rows, sizeof *b->tokens);
        b->seqs = calloc(m->state.max_seqs, sizeof *b->seqs);
        b->outputs = calloc(m->state.max_outputs, sizeof *b->outputs);
    }
    if (rc == 0 && b != NULL && b->tokens != NULL && b->seqs != NULL && b->outputs != NULL)
        return 0;
    if (rc == 0)
        kv_pool_free(m->pool);
    if (b != NULL) {
        free(b->tokens);
        free(b->seqs);
        free(b->outputs);
        free(b);
    }
    m->pool = NULL;
    m->batch = NULL;
    return -ENOMEM;
}

void engine_model_done(struct engine_model *m)
{
    if (m->weights != NULL)
        m->api->model_close(m->weights);
    if (m->owns_backend)
        m->api->close(m->backend);
    if (m->batch != NULL) {
        free(m->batch->tokens);
        free(m->batch->seqs);
        free(m->batch->outputs);
        free(m->batch);
    }
    kv_pool_free(m->pool);
    chat_template_free(m->chat);
    tokenizer_free(m->tokenizer);
    plan_free(m->plan);
    memset(m, 0, sizeof *m);
}

static struct infer_batch_output *add_output(struct engine_batch *b, uint32_t row)
{
    struct infer_batch_output *o = &b->outputs[b->batch.n_outputs++];
    *o = (struct infer_batch_output){.row = row, .target = -1};
    return o;
}

static void want_token(struct engine_batch *b, const struct engine_sequence *s, uint32_t row)
{
    struct infer_batch_output *o = add_output(b, row);
    uint64_t window = s->sampling.penalty_window, held = s->n_tokens - s->n_forgotten;
    o->sample = 1;
    o->n_top = s->sampling.logprobs;
    o->sampling = &s->sampling;
    o->bias = s->biases;
    o->n_bias = s->n_biases;
    o->n_seen = (uint32_t)(window < held ? window : held);
    o->seen = sequence_token(s, s->n_tokens - o->n_seen);
    o->uniform = rng_uniform(s->sampling.seed, s->n_tokens);
}

/* A row that runs again after a drop has its score already. */
static void want_scores(struct engine_batch *b, const struct engine_sequence *s, uint32_t first,
                        uint32_t n_rows)
{
    for (uint32_t i = 0; i < n_rows; i++) {
        uint64_t next = s->n_cached + i + 1;
        if (next < s->n_scored)
            continue;
        struct infer_batch_output *o = add_output(b, first + i);
        o->target = *sequence_token(s, next);
        o->n_top = s->n_top;
    }
}

/* Lays the sequence's next rows out at the end of the batch. */
static void add_rows(struct engine_model *m, struct engine_sequence *s, uint32_t n_rows)
{
    struct engine_batch *b = m->batch;
    uint32_t first = b->batch.n_rows, position = sequence_position(s);
    int rc = kv_sequence_grow(m->pool, &s->state, position + n_rows);

    assert(rc == 0 && first + n_rows <= m->state.max_rows && b->batch.n_seqs < m->state.max_seqs);
    (void)rc;
    memcpy(b->tokens + first, sequence_token(s, s->n_cached), n_rows * sizeof *b->tokens);
    b->seqs[b->batch.n_seqs++] =
        (struct infer_batch_seq){first, n_rows, position, s->state.n_pages, s->state.pages};
    b->batch.n_rows += n_rows;
    if (s->kind == ENGINE_GENERATE && s->n_cached + n_rows == s->n_tokens)
        want_token(b, s, first + n_rows - 1);
    if (s->kind == ENGINE_SCORE)
        want_scores(b, s, first, n_rows);
    assert(b->batch.n_outputs <= m->state.max_outputs);
}

/* Makes the sequence ready for its rows and lays them out. */
static void enter(struct engine_model *m, const struct engine_work *work)
{
    struct engine_sequence *s = work->sequence;
    s->output.has_token = false;
    s->output.text_bytes = 0;
    assert(!s->saved && !s->failed && work->n_rows > 0);
    assert(work->n_rows <= engine_sequence_rows(s));
    assert(work->n_rows == engine_sequence_clamp(s, work->n_rows));
    int rc = window_slide(s);
    if (rc < 0)
        m->page_error = rc;
    add_rows(m, s, work->n_rows);
}

/* Gives the outputs of rows [first, first + n_rows) to their sequence. */
static uint32_t take_outputs(struct engine_batch *b, struct engine_sequence *s, uint32_t end_row,
                             uint32_t at)
{
    for (; at < b->batch.n_outputs && b->outputs[at].row < end_row; at++) {
        const struct infer_batch_output *o = &b->outputs[at];
        if (o->sample)
            sequence_drew(s, o);
        else
            sequence_scored(s, o->target_logprob, o->top);
    }
    return at;
}

/* Whole pages of an answer's state can be found by the next request that begins alike. Those of a
 * SCORE are not worth their place: texts are scored once. Those under a window will change. */
static void publish(struct engine_sequence *s)
{
    if (s->kind == ENGINE_GENERATE && s->window.rows == 0)
        kv_sequence_publish(s->model->pool, &s->state, s->tokens, (uint32_t)s->n_cached);
}

int engine_step(struct engine_model *m, const struct engine_work *work, uint32_t n)
{
    struct engine_batch *b = m->batch;
    b->batch = (struct infer_batch){.tokens = b->tokens,
                                    .seqs = b->seqs,
                                    .outputs = b->outputs,
                                    .meanwhile = m->meanwhile,
                                    .meanwhile_ctx = m->meanwhile_ctx};
    for (uint32_t i = 0; i < n; i++)
        enter(m, &work[i]);
    int rc = m->page_error < 0 ? m->page_error : m->api->run(m->weights, &b->batch);
    m->page_error = 0;
    if (rc < 0) {
        for (uint32_t i = 0; i < n; i++)
            work[i].sequence->failed = true;
        return rc;
    }
    uint32_t row = 0, at = 0;
    for (uint32_t i = 0; i < n; i++) {
        row += work[i].n_rows;
        work[i].sequence->n_cached += work[i].n_rows;
        publish(work[i].sequence);
        at = take_outputs(b, work[i].sequence, row, at);
    }
    assert(at == b->batch.n_outputs);
    return 0;
}
