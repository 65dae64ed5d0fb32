/* job.c: see job.h. */
#include "job.h"

#include "inferd/client.h"
#include "metrics.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

struct job *job_new(struct admit_request *ask)
{
    struct job *job = calloc(1, sizeof *job);
    if (job == NULL)
        return NULL;
    job->ask = *ask;
    memset(ask, 0, sizeof *ask);
    job->request = job->ask.request;
    job->slot = JOB_NO_SLOT;
    return job;
}

void job_free(struct job *job)
{
    if (job->answers != NULL && --job->answers->n_jobs == 0)
        free(job->answers);
    engine_sequence_free(job->sequence);
    token_list_free(&job->tokens);
    admit_done(&job->ask);
    free(job->snapshot);
    free(job->result);
    free(job);
}

/* ---- preparing ------------------------------------------------------------------------------- */

static unsigned encode_flags(const struct job *job)
{
    bool bos = (job->ask.flags & INFER_ABI_ADD_BOS) && job->past == NULL;
    return (bos ? TOKENIZER_ADD_BOS : 0u) |
           (job->ask.flags & INFER_ABI_PARSE_SPECIAL ? TOKENIZER_PARSE_SPECIAL : 0u);
}

static bool is_blank(const struct tokenizer *t, int32_t id)
{
    char text[16];
    size_t n = tokenizer_piece(t, id, TOKENIZER_SHOW_SPECIAL, text, sizeof text);
    if (n > sizeof text)
        return false;
    for (size_t i = 0; i < n; i++)
        if (text[i] != ' ' && text[i] != '\n')
            return false;
    return true;
}

/* A turn begins by ending the answer. When the model ended it itself, that end is not said again,
 * nor is white space that the template puts before it. */
static void skip_end(struct job *job)
{
    const int32_t *kept;
    const struct tokenizer *t = job->model->tokenizer;
    struct token_list *l = &job->tokens;
    uint32_t n = engine_past_tokens(job->past, &kept);
    size_t at = 0;
    if (n == 0 || !tokenizer_is_end(t, kept[n - 1]))
        return;
    while (at < l->n && l->ids[at] != kept[n - 1] && is_blank(t, l->ids[at]))
        at++;
    if (at == l->n || l->ids[at] != kept[n - 1])
        return;
    l->n -= at + 1;
    memmove(l->ids, l->ids + at + 1, l->n * sizeof *l->ids);
}

static int prepare_text(struct job *job)
{
    return tokenizer_encode(job->model->tokenizer, job->ask.text.data, job->ask.text.bytes,
                            encode_flags(job), NULL, 0, &job->tokens);
}

static int prepare_messages(struct job *job)
{
    const struct engine_model *m = job->model;
    if (m->chat == NULL) {
        job->report = m->chat_report;
        return -job->report.code;
    }
    struct chat_message *messages = calloc(job->ask.n_messages + 1, sizeof *messages);
    if (messages == NULL)
        return -ENOMEM;
    for (uint32_t i = 0; i < job->ask.n_messages; i++) {
        const struct admit_message *from = &job->ask.messages[i];
        messages[i] = (struct chat_message){from->role.data, from->role.bytes, from->content.data,
                                            from->content.bytes};
    }
    struct chat_text text = {0};
    uint32_t n = job->ask.n_messages;
    int rc = job->past != NULL ? chat_render_turn(m->chat, messages, n, &text, &job->report)
                               : chat_render(m->chat, messages, n, true, &text, &job->report);
    free(messages);
    if (rc < 0)
        return rc;
    /* The markup names special tokens, the messages' own words may not (text.plain). */
    bool bos = job->past == NULL && !text.has_bos;
    unsigned flags = TOKENIZER_PARSE_SPECIAL | (bos ? TOKENIZER_ADD_BOS : 0u);
    rc = tokenizer_encode(m->tokenizer, text.text, text.bytes, flags, text.plain, text.n_plain,
                          &job->tokens);
    chat_text_free(&text);
    if (rc == 0 && job->past != NULL)
        skip_end(job);
    return rc;
}

static int prepare_tokens(struct job *job)
{
    for (uint32_t i = 0; i < job->ask.n_tokens; i++)
        if (token_list_push(&job->tokens, job->ask.tokens[i]) < 0)
            return -ENOMEM;
    return 0;
}

static int prepare_input(struct job *job)
{
    switch (job->ask.input) {
    case INFER_ABI_TEXT:
        return prepare_text(job);
    case INFER_ABI_MESSAGES:
        return prepare_messages(job);
    default:
        return prepare_tokens(job);
    }
}

static void give_tokens(struct job *job)
{
    job->result_what = INFER_ABI_IDS;
    job->result = (uint8_t *)job->tokens.ids;
    job->result_bytes = job->tokens.n * sizeof *job->tokens.ids;
    job->tokens = (struct token_list){0};
}

static int detokenize(struct job *job)
{
    const struct tokenizer *t = job->model->tokenizer;
    size_t room = 0, n = 0;
    struct detokenizer d;

    detokenizer_init(&d, t, job->ask.flags & INFER_ABI_SHOW_SPECIAL ? TOKENIZER_SHOW_SPECIAL : 0,
                     true);
    for (uint32_t i = 0; i <= job->ask.n_tokens; i++) {
        if (room - n < TOKENIZER_PUSH_ROOM) {
            uint8_t *grown = realloc(job->result, room = 2 * room + TOKENIZER_PUSH_ROOM);
            if (grown == NULL)
                return -ENOMEM;
            job->result = grown;
        }
        char *at = (char *)job->result + n;
        if (i == job->ask.n_tokens)
            n += detokenizer_flush(&d, at, room - n);
        else if (job->ask.tokens[i] >= 0 && (uint32_t)job->ask.tokens[i] < tokenizer_n_tokens(t))
            n += detokenizer_push(&d, job->ask.tokens[i], at, room - n);
        else
            return report_fail(&job->report, INFER_E_BAD_TOKEN,
                               "token id %d at position %u is outside of 0 .. %u",
                               job->ask.tokens[i], i, tokenizer_n_tokens(t) - 1);
    }
    job->result_what = INFER_ABI_BYTES;
    job->result_bytes = n;
    return 0;
}

static int tell_metrics(struct job *job)
{
    job->result = (uint8_t *)metrics_render(job->snapshot, &job->result_bytes);
    free(job->snapshot);
    job->snapshot = NULL;
    if (job->result == NULL)
        return report_fail(&job->report, INFER_E_OUT_OF_MEMORY, "no memory for the metrics");
    job->result_what = INFER_ABI_BYTES;
    return 0;
}

static int prepare_op(struct job *job)
{
    switch (job->ask.op) {
    case INFER_ABI_DETOKENIZE:
        return detokenize(job);
    case INFER_ABI_METRICS:
        return tell_metrics(job);
    default:
        return prepare_input(job);
    }
}

void job_prepare(struct job *job)
{
    int rc = prepare_op(job);
    if (rc < 0 && job->report.code == 0) {
        if (rc == -ENOMEM)
            report_fail(&job->report, INFER_E_OUT_OF_MEMORY, "no memory for the request's tokens");
        else
            report_fail(&job->report, rc <= -1000 ? -rc : INFER_E_INTERNAL,
                        "the prompt could not be turned into tokens (%d)", rc);
    } else if (rc == 0 && job->ask.op == INFER_ABI_TOKENIZE) {
        give_tokens(job);
    }
}

/* ---- running --------------------------------------------------------------------------------- */

static int new_sequence(const struct job *from, uint64_t domain, uint32_t answer,
                        struct engine_sequence **ret, struct report *report)
{
    struct stop_string stops[INFER_STOPS_MAX];
    struct infer_sampling sampling = from->ask.sampling;
    for (uint32_t i = 0; i < from->ask.n_stops; i++)
        stops[i] = (struct stop_string){from->ask.stops[i].data, from->ask.stops[i].bytes};
    sampling.seed = infer_answer_seed_of(sampling.seed, answer);
    struct engine_request r = {
        .kind = from->ask.op == INFER_ABI_SCORE ? ENGINE_SCORE : ENGINE_GENERATE,
        .domain = domain,
        .tokens = from->tokens.ids,
        .n_tokens = (uint32_t)from->tokens.n,
        .sampling = &sampling,
        .biases = from->ask.biases,
        .n_biases = from->ask.n_biases,
        .stops = stops,
        .n_stops = from->ask.n_stops,
        .n_top = from->ask.n_top,
        .show_special = from->ask.flags & INFER_ABI_SHOW_SPECIAL,
        .window = from->ask.window,
        .sinks = from->ask.sinks,
        .past = (struct engine_past *)from->past,
    };
    return engine_sequence_new(from->model, &r, ret, report);
}

/* The prompt as the sequence has it: with the past that it continues, as far as that is kept. */
static int give_prompt(struct job *job)
{
    const struct engine_sequence *s = job->sequence;
    size_t n = (size_t)(s->n_prompt - s->n_forgotten);
    int32_t *ids = malloc((n + 1) * sizeof *ids);
    if (ids == NULL)
        return report_fail(&job->report, INFER_E_OUT_OF_MEMORY, "no memory for the prompt's ids");
    memcpy(ids, s->tokens, n * sizeof *ids);
    job->result_what = INFER_ABI_IDS;
    job->result = (uint8_t *)ids;
    job->result_bytes = n * sizeof *ids;
    return 0;
}

int job_start(struct job *job, uint64_t domain)
{
    /* Several answers are functions of one seed, so it is drawn before the first of them. */
    while (job->ask.op == INFER_ABI_GENERATE && job->ask.sampling.seed == 0)
        if (getrandom(&job->ask.sampling.seed, sizeof job->ask.sampling.seed, 0) < 0)
            job->ask.sampling.seed = 1;
    int rc = new_sequence(job, domain, 0, &job->sequence, &job->report);
    if (rc < 0)
        return rc;
    job->past = NULL;
    if (job->ask.op == INFER_ABI_GENERATE && (job->ask.flags & INFER_ABI_WANT_PROMPT))
        rc = give_prompt(job);
    return rc;
}

int job_start_others(struct job *job, uint64_t domain, struct job **ret)
{
    uint32_t n = job->ask.n_answers, i;
    struct answers *answers = calloc(1, sizeof *answers);
    int rc = answers != NULL ? 0 : -ENOMEM;
    for (i = 1; i < n && rc == 0; i++) {
        struct admit_request none = {.request = job->request, .op = job->ask.op};
        struct job *other = job_new(&none);
        ret[i - 1] = other;
        rc = other == NULL ? -ENOMEM : new_sequence(job, domain, i, &other->sequence, &job->report);
        if (other == NULL)
            break;
        other->answer = i;
        other->id = job->id;
        other->model = job->model;
        other->model_index = job->model_index;
        other->priority = job->priority;
        other->admitted_us = job->admitted_us;
        other->phase = JOB_HELD;
        other->hold = JOB_HOLD_PROMPT;
    }
    if (rc < 0) {
        while (i-- > 1)
            if (ret[i - 1] != NULL)
                job_free(ret[i - 1]);
        free(answers);
        return job->report.code != 0 ? -job->report.code
                                     : report_fail(&job->report, INFER_E_OUT_OF_MEMORY,
                                                   "no memory for %u answers", n);
    }
    *answers = (struct answers){.n = n, .n_jobs = n, .n_left = n};
    job->answers = answers;
    for (i = 1; i < n; i++)
        ret[i - 1]->answers = answers;
    return 0;
}

void job_started(struct job *job)
{
    token_list_free(&job->tokens);
    job->tokens = (struct token_list){0};
    uint32_t op = job->ask.op, flags = job->ask.flags;
    admit_done(&job->ask);
    job->ask = (struct admit_request){.op = op, .flags = flags};
}

static int give_scores(struct job *job)
{
    const struct engine_sequence *s = job->sequence;
    size_t each = sizeof(struct infer_abi_score) + s->n_top * sizeof(struct infer_logprob);
    uint8_t *at = malloc(s->n_scored * each);
    if (at == NULL)
        return -ENOMEM;
    job->result_what = INFER_ABI_SCORES;
    job->result = at;
    job->result_bytes = s->n_scored * each;
    for (uint32_t i = 0; i < s->n_scored; i++, at += each) {
        struct infer_abi_score score = {s->tokens[i], s->logprobs[i], s->n_top};
        memcpy(at, &score, sizeof score);
        memcpy(at + sizeof score, s->top + (size_t)i * s->n_top, each - sizeof score);
    }
    return 0;
}

void job_finish(struct job *job, uint32_t finish, int code, const char *text)
{
    if (code != 0 && (text != NULL || job->report.code != code))
        report_fail(&job->report, code, "%s", text != NULL ? text : "");
    if (code == 0)
        job->report = (struct report){0};
    if (job->sequence != NULL && job->sequence->kind == ENGINE_SCORE && code == 0 &&
        finish != INFER_FINISH_CANCEL && give_scores(job) < 0)
        report_fail(&job->report, INFER_E_OUT_OF_MEMORY, "no memory for the scores");
    job->phase = JOB_DRAINING;
    job->finish = finish;
    job->answer_due = job->answers != NULL;
    job->done_due = job->answers == NULL;
}

/* ---- what is due ----------------------------------------------------------------------------- */

static int flush_result(struct job *job, struct session *session)
{
    /* Each model has a record of its own, so that a client that knows a shorter struct can skip. */
    size_t most = job->result_what == INFER_ABI_MODEL_RECORD ? sizeof(struct infer_model)
                                                             : SESSION_RESULT_MAX;
    while (job->result_sent < job->result_bytes) {
        size_t left = job->result_bytes - job->result_sent;
        uint32_t n = (uint32_t)(left < most ? left : most);
        int rc = session_put_result(session, job->request, job->result_what,
                                    (uint32_t)job->result_sent, job->result + job->result_sent, n);
        if (rc < 0)
            return rc;
        job->result_sent += n;
    }
    return 0;
}

/* The longest part of text that one event takes without cutting a UTF-8 sequence. */
static uint32_t text_slice(const char *text, size_t bytes)
{
    if (bytes <= INFER_TOKEN_TEXT_MAX)
        return (uint32_t)bytes;
    uint32_t n = INFER_TOKEN_TEXT_MAX;
    while (n > INFER_TOKEN_TEXT_MAX - 4 && ((unsigned char)text[n] & 0xc0) == 0x80)
        n--;
    return n;
}

static int flush_token(struct job *job, struct session *session)
{
    const struct engine_output *o = &job->sequence->output;
    const char *text = job->sequence->text;

    while (job->token_due || job->text_sent < o->text_bytes) {
        uint32_t n = text_slice(text + job->text_sent, o->text_bytes - job->text_sent);
        int rc = session_put_token(session, job->request, job->answer, o->token, o->logprob,
                                   o->index, !job->token_due, text + job->text_sent, n, o->top,
                                   job->token_due ? o->n_top : 0);
        if (rc < 0)
            return rc;
        job->token_due = false;
        job->text_sent += n;
    }
    return 0;
}

static struct infer_abi_done done_of(const struct job *job)
{
    const struct engine_sequence *s = job->sequence;
    struct infer_abi_done done = {.error = job->report.code, .finish = job->finish};

    if (s != NULL) {
        done.n_prompt = (uint32_t)s->n_prompt;
        done.n_tokens = (uint32_t)s->n_generated;
        done.n_prompt_cached = job->n_found;
    }
    if (job->started_us != 0)
        done.queue_us = job->started_us - job->admitted_us;
    if (job->first_token_us != 0) {
        done.prefill_us = job->first_token_us - job->started_us;
        done.decode_us = job->last_token_us - job->first_token_us;
    }
    return done;
}

/* The prompt is that of all answers and counts once, as the first answer found it; the first error
 * is the request's, and so is its finish; otherwise it finished as the first answer did. */
static void add_up(struct answers *a, const struct job *job, const struct infer_abi_done *done)
{
    struct infer_abi_done *sum = &a->sum;
    sum->n_tokens += done->n_tokens;
    sum->n_prompt = done->n_prompt;
    if (job->answer == 0) {
        sum->n_prompt_cached = done->n_prompt_cached;
        sum->queue_us = done->queue_us;
        sum->prefill_us = done->prefill_us;
    }
    if (done->decode_us > sum->decode_us)
        sum->decode_us = done->decode_us;
    if (a->report.code == 0 && (job->answer == 0 || done->error != 0))
        sum->finish = done->finish;
    if (a->report.code == 0 && done->error != 0) {
        a->report = job->report;
        a->failed = job->answer;
        sum->error = done->error;
    }
}

static int flush_answer(struct job *job, struct session *session)
{
    struct answers *a = job->answers;
    struct infer_abi_done done = done_of(job);
    int rc = session_put_answer(session, job->request, job->answer, &done,
                                done.error ? job->report.text : NULL);
    if (rc < 0)
        return rc;
    add_up(a, job, &done);
    job->answer_due = false;
    job->done_due = --a->n_left == 0;
    return 0;
}

static int flush_done(struct job *job, struct session *session)
{
    const struct answers *a = job->answers;
    struct infer_abi_done done = a != NULL ? a->sum : done_of(job);
    const struct report *report = a != NULL ? &a->report : &job->report;
    return session_put_done(session, job->request, a != NULL ? a->failed : 0, &done,
                            report->code != 0 ? report->text : NULL);
}

int job_flush(struct job *job, struct session *session)
{
    bool ends = job->answer_due || job->done_due;
    int rc = 0;
    if (job->queued_due) {
        uint64_t n_prompt = job->sequence != NULL ? job->sequence->n_prompt : 0;
        rc = session_put_queued(session, job->request, job->id, (uint32_t)n_prompt, job->position,
                                job->start_us);
        if (rc < 0)
            return rc;
        job->queued_due = false;
    }
    if (job->result_what != 0)
        rc = flush_result(job, session);
    if (rc == 0 && job->sequence != NULL && job->sequence->kind == ENGINE_GENERATE)
        rc = flush_token(job, session);
    if (rc == 0 && job->answer_due)
        rc = flush_answer(job, session);
    if (rc == 0 && job->done_due)
        rc = flush_done(job, session);
    return rc < 0 ? rc : ends;
}
