/* engine.c: the step: from a list of sequences to one batch and back (see engine.h).
 *
 * A step's arrays are sized once, from the model's state configuration; there are two sets of them,
 * used in turn, where the backend lets two steps be under way. Outputs are in ascending order of
 * row because the sequences' rows are laid out in order. */
#include "engine/sequence.h"

#include "base/rng.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define STEPS_MAX 2u

/* What a sequence has in a step. */
struct part {
    struct engine_sequence *sequence; /* NULL: it has left */
    uint32_t n_rows, n_outputs;
    uint32_t n_gave; /* pages that its window gave up before */
};

struct step {
    int32_t *tokens;
    struct infer_batch_seq *seqs;
    struct infer_batch_output *outputs;
    struct part *parts;
    struct infer_batch batch;
    int ran; /* what run() said, of a backend without submit() */
};

struct engine_steps {
    struct step each[STEPS_MAX];
    uint32_t room;     /* steps that may be under way */
    uint32_t first, n; /* those that are: each[(first + i) % room] */
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

static void free_steps(struct engine_steps *steps)
{
    for (uint32_t i = 0; steps != NULL && i < STEPS_MAX; i++) {
        free(steps->each[i].tokens);
        free(steps->each[i].seqs);
        free(steps->each[i].outputs);
        free(steps->each[i].parts);
    }
    free(steps);
}

/* NULL: no memory. */
static struct engine_steps *new_steps(const struct engine_model *m)
{
    struct engine_steps *steps = calloc(1, sizeof *steps);
    if (steps == NULL)
        return NULL;
    steps->room = m->api->max_under_way > 1 ? STEPS_MAX : 1;
    for (uint32_t i = 0; i < steps->room; i++) {
        struct step *step = &steps->each[i];
        step->tokens = calloc(m->state.max_rows, sizeof *step->tokens);
        step->seqs = calloc(m->state.max_seqs, sizeof *step->seqs);
        step->outputs = calloc(m->state.max_outputs, sizeof *step->outputs);
        step->parts = calloc(m->state.max_seqs, sizeof *step->parts);
        if (step->tokens == NULL || step->seqs == NULL || step->outputs == NULL ||
            step->parts == NULL) {
            free_steps(steps);
            return NULL;
        }
    }
    return steps;
}

int engine_model_init(struct engine_model *m)
{
    struct kv_config config = {.n_pages = m->state.n_pages,
                               .page_tokens = m->state.page_tokens,
                               .ctx = m,
                               .zero = zero_page,
                               .copy = copy_page};
    memcpy(config.key, m->page_key, sizeof config.key);
    m->steps = new_steps(m);
    if (m->steps != NULL && kv_pool_new(&config, &m->pool) == 0)
        return 0;
    free_steps(m->steps);
    m->pool = NULL;
    m->steps = NULL;
    return -ENOMEM;
}

void engine_model_done(struct engine_model *m)
{
    if (m->weights != NULL)
        m->api->model_close(m->weights);
    if (m->owns_backend)
        m->api->close(m->backend);
    free_steps(m->steps);
    kv_pool_free(m->pool);
    chat_template_free(m->chat);
    tokenizer_free(m->tokenizer);
    plan_free(m->plan);
    memset(m, 0, sizeof *m);
}

/* ---- laying it out --------------------------------------------------------------------------- */

static struct infer_batch_output *add_output(struct step *step, uint32_t row)
{
    struct infer_batch_output *o = &step->outputs[step->batch.n_outputs++];
    *o = (struct infer_batch_output){.row = row, .target = -1};
    return o;
}

/* Whether the tokens before this one change what is drawn otherwise than through the state. */
static bool looks_back(const struct infer_sampling *p)
{
    return p->penalty_window > 0 && (p->repetition_penalty != 1.0f ||
                                     p->frequency_penalty != 0.0f || p->presence_penalty != 0.0f);
}

/* n_unknown: tokens that it goes on from and a step under way draws, 0 or 1. */
static void want_token(struct step *step, struct engine_sequence *s, uint32_t row,
                       uint32_t n_unknown)
{
    struct infer_batch_output *o = add_output(step, row);
    uint64_t window = s->sampling.penalty_window, held = s->n_tokens - s->n_forgotten;
    s->drawn_by = step->batch.n_outputs - 1;
    o->sample = 1;
    o->n_top = s->sampling.logprobs;
    o->sampling = &s->sampling;
    o->bias = s->biases;
    o->n_bias = s->n_biases;
    o->uniform = rng_uniform(s->sampling.seed, s->n_tokens + n_unknown);
    if (n_unknown > 0)
        return; /* it does not look back */
    o->n_seen = (uint32_t)(window < held ? window : held);
    o->seen = sequence_token(s, s->n_tokens - o->n_seen);
}

/* A row that runs again after a drop has its score already. */
static void want_scores(struct step *step, const struct engine_sequence *s, uint32_t first,
                        uint32_t n_rows)
{
    for (uint32_t i = 0; i < n_rows; i++) {
        uint64_t next = s->n_cached + i + 1;
        if (next < s->n_scored)
            continue;
        struct infer_batch_output *o = add_output(step, first + i);
        o->target = *sequence_token(s, next);
        o->n_top = s->n_top;
    }
}

/* Gives the sequence's next rows their place at the end of the batch. */
static uint32_t add_rows(struct engine_model *m, struct step *step, struct engine_sequence *s,
                         uint32_t n_rows)
{
    struct infer_batch *b = &step->batch;
    uint32_t first = b->n_rows, position = sequence_position(s) + s->n_rows_ahead;
    int rc = kv_sequence_grow(m->pool, &s->state, position + n_rows);

    assert(rc == 0 && first + n_rows <= m->state.max_rows && b->n_seqs < m->state.max_seqs);
    (void)rc;
    step->seqs[b->n_seqs++] =
        (struct infer_batch_seq){first, n_rows, position, s->state.n_pages, s->state.pages};
    b->n_rows += n_rows;
    return first;
}

/* Rows whose tokens are known. */
static void enter(struct engine_model *m, struct step *step, struct part *part)
{
    struct engine_sequence *s = part->sequence;
    uint32_t n_rows = part->n_rows;
    assert(!s->saved && !s->failed && n_rows > 0 && n_rows <= engine_sequence_rows(s));
    assert(n_rows == engine_sequence_clamp(s, n_rows));
    int rc = window_slide(s, &part->n_gave);
    if (rc < 0)
        m->page_error = rc;
    uint32_t first = add_rows(m, step, s, n_rows);
    memcpy(step->tokens + first, sequence_token(s, s->n_cached), n_rows * sizeof *step->tokens);
    if (s->kind == ENGINE_GENERATE && s->n_cached + n_rows == s->n_tokens)
        want_token(step, s, first + n_rows - 1, 0);
    if (s->kind == ENGINE_SCORE)
        want_scores(step, s, first, n_rows);
}

/* The row of a token that the step under way draws. */
static void follow(struct engine_model *m, struct step *step, struct part *part)
{
    struct engine_sequence *s = part->sequence;
    assert(part->n_rows == 1 && engine_sequence_follows(s));
    int32_t token = INFER_TOKEN_DRAWN(s->drawn_by);
    uint32_t row = add_rows(m, step, s, 1);
    step->tokens[row] = token;
    want_token(step, s, row, 1);
}

bool engine_sequence_follows(const struct engine_sequence *s)
{
    const struct engine_window *w = &s->window;
    return s->kind == ENGINE_GENERATE && s->n_steps == 1 && !s->failed &&
           s->n_cached + s->n_rows_ahead == s->n_tokens && s->n_tokens + 1 < s->max_tokens &&
           (w->rows == 0 || sequence_position(s) + s->n_rows_ahead < w->rows) &&
           !looks_back(&s->sampling);
}

static void lay_out(struct engine_model *m, struct step *step, const struct engine_work *work,
                    uint32_t n)
{
    step->batch =
        (struct infer_batch){.tokens = step->tokens, .seqs = step->seqs, .outputs = step->outputs};
    for (uint32_t i = 0; i < n; i++) {
        struct engine_sequence *s = work[i].sequence;
        struct part *part = &step->parts[i];
        uint32_t before = step->batch.n_outputs;
        *part = (struct part){.sequence = s, .n_rows = work[i].n_rows};
        if (s->n_steps > 0)
            follow(m, step, part);
        else
            enter(m, step, part);
        part->n_outputs = step->batch.n_outputs - before;
        s->n_steps++;
        s->n_rows_ahead += part->n_rows;
    }
    assert(step->batch.n_outputs <= m->state.max_outputs);
}

/* ---- what came out --------------------------------------------------------------------------- */

static void take_outputs(struct engine_sequence *s, const struct infer_batch_output *outputs,
                         uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        if (outputs[i].sample)
            sequence_drew(s, &outputs[i]);
        else
            sequence_scored(s, outputs[i].target_logprob, outputs[i].top);
}

/* Whole pages of an answer's state can be found by the next request that begins alike. Those of a
 * SCORE are not worth their place: texts are scored once. Those under a window will change. */
static void publish(struct engine_sequence *s)
{
    if (s->kind == ENGINE_GENERATE && s->window.rows == 0)
        kv_sequence_publish(s->model->pool, &s->state, s->tokens, (uint32_t)s->n_cached);
}

/* The step is over for the part's sequence: it is in one less. */
static struct engine_sequence *part_over(struct part *part)
{
    struct engine_sequence *s = part->sequence;
    if (s == NULL)
        return NULL;
    s->n_steps--;
    s->n_rows_ahead -= part->n_rows;
    s->output.has_token = false;
    s->output.text_bytes = 0;
    s->output.n_gave = part->n_gave;
    return s;
}

void engine_sequence_leave(struct engine_sequence *s)
{
    struct engine_steps *steps = s->model->steps;
    if (s->n_steps == 0)
        return;
    for (uint32_t i = 0; i < steps->n; i++) {
        struct step *step = &steps->each[(steps->first + i) % steps->room];
        for (uint32_t j = 0; j < step->batch.n_seqs; j++)
            if (step->parts[j].sequence == s)
                step->parts[j].sequence = NULL;
    }
    s->n_steps = s->n_rows_ahead = 0;
    kv_sequence_trim(s->model->pool, &s->state, sequence_position(s));
}

/* ---- the step -------------------------------------------------------------------------------- */

static int submit(struct engine_model *m, struct step *step)
{
    int rc = m->page_error;
    m->page_error = 0;
    if (rc < 0)
        return rc;
    if (engine_model_works_alone(m))
        return m->api->submit(m->weights, &step->batch);
    step->ran = m->api->run(m->weights, &step->batch);
    return 0;
}

int engine_submit(struct engine_model *m, const struct engine_work *work, uint32_t n)
{
    struct engine_steps *steps = m->steps;
    assert(steps->n < steps->room);
    struct step *step = &steps->each[(steps->first + steps->n) % steps->room];
    lay_out(m, step, work, n);
    int rc = submit(m, step);
    if (rc == 0) {
        steps->n++;
        return 0;
    }
    for (uint32_t i = 0; i < n; i++) {
        struct engine_sequence *s = part_over(&step->parts[i]);
        if (s->n_steps > 0)
            kv_sequence_trim(m->pool, &s->state, sequence_position(s) + s->n_rows_ahead);
        else
            s->failed = true;
    }
    return rc;
}

int engine_collect(struct engine_model *m)
{
    struct engine_steps *steps = m->steps;
    assert(steps->n > 0);
    struct step *step = &steps->each[steps->first];
    int rc = engine_model_works_alone(m) ? m->api->collect(m->weights, &step->batch) : step->ran;
    steps->first = (steps->first + 1) % steps->room;
    steps->n--;
    const struct infer_batch_output *outputs = step->outputs;
    for (uint32_t i = 0; i < step->batch.n_seqs; i++) {
        struct part *part = &step->parts[i];
        struct engine_sequence *s = part_over(part);
        if (s != NULL && rc == 0) {
            s->n_cached += part->n_rows;
            publish(s);
            take_outputs(s, outputs, part->n_outputs);
        } else if (s != NULL) {
            s->failed = true;
        }
        outputs += part->n_outputs;
    }
    return rc;
}

int engine_step(struct engine_model *m, const struct engine_work *work, uint32_t n)
{
    int rc = engine_submit(m, work, n);
    return rc < 0 ? rc : engine_collect(m);
}
