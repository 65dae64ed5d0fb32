/* sequence.c: making and ending sequences, and what happens to one when a token was drawn for it
 * (the functions that engine.h and sequence.h declare). */
#include "engine/sequence.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

/* A token's text and, at the end, what the detokenizer held back. */
#define SEQUENCE_TEXT_ROOM (TOKENIZER_PUSH_ROOM + 16)

/* ---- making one ------------------------------------------------------------------------------ */

/* A window bounds what is in the state at once, the context what a request brings. */
static int check_length(const struct engine_model *m, const struct engine_request *r,
                        struct report *report)
{
    uint32_t limit = m->n_context - (r->kind == ENGINE_GENERATE);
    uint64_t past = r->past != NULL ? past_tokens_all(r->past) : 0;
    if (past + r->n_tokens == 0)
        return report_fail(report, INFER_E_PROMPT_EMPTY, "the prompt holds no token");
    if (r->n_tokens > limit)
        return report_fail(report, INFER_E_PROMPT_TOO_LONG,
                           "the prompt has %u tokens, the context of %s holds %u%s", r->n_tokens,
                           m->name, m->n_context,
                           r->kind == ENGINE_GENERATE ? " with the answer" : "");
    if (r->window == 0 && past + r->n_tokens > limit)
        return report_fail(report, INFER_E_PROMPT_TOO_LONG,
                           "the conversation has %llu tokens and %u are new, the context of %s "
                           "holds %u with the answer; a window lets old ones leave",
                           (unsigned long long)past, r->n_tokens, m->name, m->n_context);
    return 0;
}

static int check_tokens(const struct engine_model *m, const struct engine_request *r,
                        struct report *report)
{
    uint32_t n_vocab = m->plan->backend.shape.n_vocab;
    for (uint32_t i = 0; i < r->n_tokens; i++)
        if (r->tokens[i] < 0 || (uint32_t)r->tokens[i] >= n_vocab)
            return report_fail(report, INFER_E_BAD_TOKEN,
                               "token id %d at position %u is outside of 0 .. %u", r->tokens[i], i,
                               n_vocab - 1);
    for (uint32_t i = 0; i < r->n_biases; i++)
        if (r->biases[i].token < 0 || (uint32_t)r->biases[i].token >= n_vocab)
            return report_fail(report, INFER_E_BAD_TOKEN,
                               "a logit bias names token id %d, outside of 0 .. %u",
                               r->biases[i].token, n_vocab - 1);
    return 0;
}

/* The request's biases, and a ban of every end token when the answer is to go on past them. */
static int copy_biases(struct engine_sequence *s, const struct engine_request *r)
{
    size_t n_end = 0;
    const int32_t *end = tokenizer_end_tokens(s->model->tokenizer, &n_end);
    if (!s->sampling.ignore_eos)
        n_end = 0;
    s->biases = calloc(r->n_biases + n_end + 1, sizeof *s->biases);
    if (s->biases == NULL)
        return -INFER_E_OUT_OF_MEMORY;
    if (r->n_biases > 0)
        memcpy(s->biases, r->biases, r->n_biases * sizeof *s->biases);
    for (size_t i = 0; i < n_end; i++)
        s->biases[r->n_biases + i] = (struct infer_logit_bias){end[i], -INFINITY};
    s->n_biases = r->n_biases + (uint32_t)n_end;
    return 0;
}

static int copy_stops(struct engine_sequence *s, const struct engine_request *r)
{
    size_t bytes = 0;
    for (uint32_t i = 0; i < r->n_stops; i++)
        bytes += r->stops[i].bytes;
    s->stops = calloc(1, (r->n_stops + 1) * sizeof *s->stops + bytes);
    if (s->stops == NULL)
        return -INFER_E_OUT_OF_MEMORY;
    char *at = (char *)(s->stops + r->n_stops + 1);
    for (uint32_t i = 0; i < r->n_stops; i++) {
        memcpy(at, r->stops[i].data, r->stops[i].bytes);
        s->stops[i] = (struct stop_string){at, r->stops[i].bytes};
        at += r->stops[i].bytes;
    }
    stop_init(&s->matcher, s->stops, r->n_stops);
    return 0;
}

static int init_generate(struct engine_sequence *s, const struct engine_request *r)
{
    s->sampling = *r->sampling;
    while (s->sampling.seed == 0)
        if (getrandom(&s->sampling.seed, sizeof s->sampling.seed, 0) < 0)
            s->sampling.seed = 1;
    uint64_t n_prompt = r->n_tokens + (r->past != NULL ? past_tokens_all(r->past) : 0);
    uint64_t room = s->window.rows > 0 ? UINT64_MAX - n_prompt : s->model->n_context - n_prompt;
    uint32_t wanted = s->sampling.max_tokens;
    s->max_tokens = n_prompt + (wanted == 0 || wanted > room ? room : wanted);

    s->scratch = malloc(SEQUENCE_TEXT_ROOM);
    s->text = malloc(SEQUENCE_TEXT_ROOM + 2 * INFER_STOP_BYTES_MAX);
    if (s->scratch == NULL || s->text == NULL)
        return -INFER_E_OUT_OF_MEMORY;
    detokenizer_init(&s->detokenizer, s->model->tokenizer,
                     r->show_special ? TOKENIZER_SHOW_SPECIAL : 0, false);
    int rc = copy_biases(s, r);
    return rc < 0 ? rc : copy_stops(s, r);
}

static int init_score(struct engine_sequence *s, const struct engine_request *r)
{
    s->max_tokens = r->n_tokens;
    s->n_top = r->n_top;
    s->logprobs = malloc(r->n_tokens * sizeof *s->logprobs);
    s->top = malloc((size_t)r->n_tokens * r->n_top * sizeof *s->top + 1);
    if (s->logprobs == NULL || s->top == NULL)
        return -INFER_E_OUT_OF_MEMORY;
    struct infer_logprob none[INFER_TOP_MAX];
    for (uint32_t i = 0; i < INFER_TOP_MAX; i++)
        none[i] = (struct infer_logprob){-1, NAN};
    sequence_scored(s, NAN, none);
    return 0;
}

/* Room for the tokens and for the list of pages, which a past may bring along. */
static int take_room(struct engine_sequence *s, const struct engine_request *r)
{
    const int32_t *kept;
    uint64_t n_past = r->past != NULL ? past_tokens_all(r->past) : 0;
    uint64_t n_kept = r->n_tokens + (r->past != NULL ? engine_past_tokens(r->past, &kept) : 0);
    uint64_t room = s->max_tokens - (n_past + r->n_tokens - n_kept);
    uint64_t rows = s->max_tokens;
    if (s->window.rows > 0) {
        uint64_t most = window_token_room(&s->window, n_kept);
        room = room < most ? room : most;
        rows = rows < s->window.rows ? rows : s->window.rows;
    }
    s->n_room = (uint32_t)room;
    s->tokens = malloc(room * sizeof *s->tokens);
    if (s->tokens == NULL)
        return -INFER_E_OUT_OF_MEMORY;
    if (r->past != NULL && past_has_state(r->past))
        return 0;
    if (kv_sequence_init(s->model->pool, &s->state, (uint32_t)rows, r->domain) < 0)
        return -INFER_E_OUT_OF_MEMORY;
    return 0;
}

static int check(const struct engine_model *m, const struct engine_request *r,
                 struct report *report)
{
    int rc = window_check(m, r, report);
    if (rc == 0 && r->past != NULL)
        rc = past_check(r->past, m, r, report);
    if (rc == 0)
        rc = check_length(m, r, report);
    return rc < 0 ? rc : check_tokens(m, r, report);
}

int engine_sequence_new(struct engine_model *m, const struct engine_request *r,
                        struct engine_sequence **ret, struct report *report)
{
    int rc = check(m, r, report);
    if (rc < 0)
        return rc;
    struct engine_sequence *s = calloc(1, sizeof *s);
    if (s == NULL)
        return report_fail(report, INFER_E_OUT_OF_MEMORY, "no memory for another request");
    s->model = m;
    s->kind = r->kind;
    s->window = window_of(m, r);
    rc = r->kind == ENGINE_GENERATE ? init_generate(s, r) : init_score(s, r);
    if (rc == 0)
        rc = take_room(s, r);
    if (rc < 0) {
        engine_sequence_free(s);
        return report_fail(report, -rc, "no memory for a request of %u tokens", r->n_tokens);
    }
    if (r->past != NULL)
        past_take_over(r->past, s);
    if (r->n_tokens > 0)
        memcpy(sequence_token(s, s->n_tokens), r->tokens, r->n_tokens * sizeof *s->tokens);
    s->n_tokens += r->n_tokens;
    s->n_prompt = s->n_tokens;
    *ret = s;
    return 0;
}

void engine_sequence_free(struct engine_sequence *s)
{
    if (s == NULL)
        return;
    engine_sequence_leave(s);
    if (s->state.pages != NULL)
        kv_sequence_done(s->model->pool, &s->state);
    free(s->tokens);
    free(s->biases);
    free(s->stops);
    free(s->text);
    free(s->scratch);
    free(s->logprobs);
    free(s->top);
    free(s);
}

uint32_t engine_sequence_rows(const struct engine_sequence *s)
{
    return (uint32_t)(s->n_tokens - s->n_cached - (s->kind == ENGINE_SCORE));
}

/* Rows that were found, by whatever way; the first time they are told to the client. */
static uint32_t begun_with(struct engine_sequence *s, uint32_t n_rows)
{
    s->n_cached = s->n_slid + n_rows;
    if (!s->begun)
        s->n_found = s->n_cached;
    s->begun = true;
    return n_rows;
}

uint32_t engine_sequence_begin(struct engine_sequence *s)
{
    assert(!s->saved);
    if (s->n_slid > 0) /* a past's rows: they were never owed */
        return 0;
    assert(s->n_cached == 0 && s->state.n_tokens == 0);
    if (s->kind == ENGINE_GENERATE) {
        /* The last row must run: it draws the next token. A window's list of pages holds no more
         * than the rows before its first slide. */
        kv_sequence_match(s->model->pool, &s->state, s->tokens, (uint32_t)(s->n_tokens - 1));
        window_own(s);
        sequence_took_badly(s); /* then all of it runs */
    }
    return begun_with(s, s->state.n_tokens);
}

uint32_t engine_sequence_fork(struct engine_sequence *s, const struct engine_sequence *from)
{
    struct kv_pool *pool = s->model->pool;
    uint64_t n = s->n_prompt - 1 < from->n_cached ? s->n_prompt - 1 : from->n_cached;
    assert(!s->saved && s->n_cached == 0 && s->model == from->model);
    bool usable = s->kind == ENGINE_GENERATE && !from->saved && !from->failed &&
                  from->state.n_tokens == sequence_position(from) &&
                  s->state.domain == from->state.domain && s->n_prompt == from->n_prompt &&
                  memcmp(&s->window, &from->window, sizeof s->window) == 0 &&
                  window_matches(from, n);
    uint32_t rows = (uint32_t)(n - from->n_slid);
    if (!usable || n <= from->n_slid || kv_sequence_fork(pool, &from->state, &s->state, rows) < 0)
        return engine_sequence_begin(s);
    window_own(s);
    if (sequence_took_badly(s))
        return engine_sequence_begin(s);
    if (from->n_slid > 0 && s->state.n_tokens < rows) { /* nothing less is of use then */
        kv_sequence_trim(pool, &s->state, 0);
        return engine_sequence_begin(s);
    }
    s->n_slid = from->n_slid;
    return begun_with(s, s->state.n_tokens) + (uint32_t)s->n_slid;
}

void engine_sequence_end(struct engine_sequence *s)
{
    engine_sequence_leave(s);
    kv_sequence_trim(s->model->pool, &s->state, 0);
}

uint32_t engine_sequence_pages(const struct engine_sequence *s)
{
    bool bound = s->window.rows > 0 && s->window.rows < s->max_tokens;
    return kv_pool_pages_for(s->model->pool, bound ? s->window.rows : s->max_tokens);
}

/* ---- what a step left ------------------------------------------------------------------------ */

void sequence_scored(struct engine_sequence *s, float logprob, const struct infer_logprob *top)
{
    assert(s->n_scored < s->max_tokens);
    memcpy(s->top + (size_t)s->n_scored * s->n_top, top, s->n_top * sizeof *top);
    s->logprobs[s->n_scored++] = logprob;
}

static uint32_t finish_of(const struct engine_sequence *s, int32_t token)
{
    if (!s->sampling.ignore_eos && tokenizer_is_end(s->model->tokenizer, token))
        return INFER_FINISH_STOP;
    return s->n_tokens >= s->max_tokens ? INFER_FINISH_LENGTH : INFER_FINISH_NONE;
}

/* The token's text through detokenizer and stop strings into s->text. */
static void append_text(struct engine_sequence *s, int32_t token)
{
    struct engine_output *o = &s->output;
    size_t n = detokenizer_push(&s->detokenizer, token, s->scratch, SEQUENCE_TEXT_ROOM);
    if (o->finish != INFER_FINISH_NONE)
        n += detokenizer_flush(&s->detokenizer, s->scratch + n, SEQUENCE_TEXT_ROOM - n);
    if (stop_feed(&s->matcher, s->scratch, n, s->text, &o->text_bytes))
        o->finish = INFER_FINISH_STRING;
    else if (o->finish != INFER_FINISH_NONE)
        o->text_bytes += stop_flush(&s->matcher, s->text + o->text_bytes);
}

void sequence_drew(struct engine_sequence *s, const struct infer_batch_output *drawn)
{
    struct engine_output *o = &s->output;
    assert(s->n_tokens < s->max_tokens);
    if (s->n_tokens - s->n_forgotten == s->n_room)
        window_forget(s);
    *sequence_token(s, s->n_tokens++) = drawn->token;
    o->has_token = true;
    o->token = drawn->token;
    o->logprob = drawn->n_top > 0 ? drawn->logprob : 0.0f;
    o->index = (uint32_t)s->n_generated++; /* of an endless answer it wraps */
    o->n_top = drawn->n_top;
    memcpy(o->top, drawn->top, drawn->n_top * sizeof *o->top);
    o->finish = finish_of(s, drawn->token);
    append_text(s, drawn->token);
}
