/* job.c: see job.h. */
#include "job.h"

#include "inferd/client.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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
    engine_sequence_free(job->sequence);
    token_list_free(&job->tokens);
    admit_done(&job->ask);
    free(job->result);
    free(job);
}

/* ---- preparing ------------------------------------------------------------------------------- */

static unsigned encode_flags(const struct job *job)
{
    return (job->ask.flags & INFER_ABI_ADD_BOS ? TOKENIZER_ADD_BOS : 0u) |
           (job->ask.flags & INFER_ABI_PARSE_SPECIAL ? TOKENIZER_PARSE_SPECIAL : 0u);
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
    int rc = chat_render(m->chat, messages, job->ask.n_messages, true, &text, &job->report);
    free(messages);
    if (rc < 0)
        return rc;
    /* The markup names special tokens, the messages' own words may not (text.plain). */
    unsigned flags = TOKENIZER_PARSE_SPECIAL | (text.has_bos ? 0u : TOKENIZER_ADD_BOS);
    rc = tokenizer_encode(m->tokenizer, text.text, text.bytes, flags, text.plain, text.n_plain,
                          &job->tokens);
    chat_text_free(&text);
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

void job_prepare(struct job *job)
{
    int rc = job->ask.op == INFER_ABI_DETOKENIZE ? detokenize(job) : prepare_input(job);
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

int job_start(struct job *job, const struct session *session)
{
    struct stop_string stops[INFER_STOPS_MAX];
    for (uint32_t i = 0; i < job->ask.n_stops; i++)
        stops[i] = (struct stop_string){job->ask.stops[i].data, job->ask.stops[i].bytes};
    struct engine_request r = {
        .kind = job->ask.op == INFER_ABI_SCORE ? ENGINE_SCORE : ENGINE_GENERATE,
        .domain = session_peer(session)->uid,
        .tokens = job->tokens.ids,
        .n_tokens = (uint32_t)job->tokens.n,
        .sampling = &job->ask.sampling,
        .biases = job->ask.biases,
        .n_biases = job->ask.n_biases,
        .stops = stops,
        .n_stops = job->ask.n_stops,
        .n_top = job->ask.n_top,
        .show_special = job->ask.flags & INFER_ABI_SHOW_SPECIAL,
    };
    int rc = engine_sequence_new(job->model, &r, &job->sequence, &job->report);
    if (rc < 0)
        return rc;
    if (r.kind == ENGINE_GENERATE && (job->ask.flags & INFER_ABI_WANT_PROMPT))
        give_tokens(job);
    token_list_free(&job->tokens);
    job->tokens = (struct token_list){0};
    uint32_t op = job->ask.op;
    admit_done(&job->ask);
    job->ask = (struct admit_request){.op = op};
    return 0;
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
    job->done_due = true;
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
        int rc = session_put_token(session, job->request, 0, o->token, o->logprob, o->index,
                                   !job->token_due, text + job->text_sent, n, o->top,
                                   job->token_due ? o->n_top : 0);
        if (rc < 0)
            return rc;
        job->token_due = false;
        job->text_sent += n;
    }
    return 0;
}

static int flush_done(struct job *job, struct session *session)
{
    const struct engine_sequence *s = job->sequence;
    struct infer_abi_done done = {.error = job->report.code, .finish = job->finish};

    if (s != NULL) {
        done.n_prompt = s->n_prompt;
        done.n_tokens = s->n_generated;
        done.n_prompt_cached = s->n_found;
    }
    if (job->started_us != 0)
        done.queue_us = job->started_us - job->admitted_us;
    if (job->first_token_us != 0) {
        done.prefill_us = job->first_token_us - job->started_us;
        done.decode_us = job->last_token_us - job->first_token_us;
    }
    return session_put_done(session, job->request, 0, &done,
                            job->report.code ? job->report.text : NULL);
}

int job_flush(struct job *job, struct session *session)
{
    int rc = 0;
    if (job->queued_due) {
        rc = session_put_queued(session, job->request, job->id, job->sequence->n_prompt,
                                job->position, job->start_us);
        if (rc < 0)
            return rc;
        job->queued_due = false;
    }
    if (job->result_what != 0)
        rc = flush_result(job, session);
    if (rc == 0 && job->sequence != NULL && job->sequence->kind == ENGINE_GENERATE)
        rc = flush_token(job, session);
    if (rc == 0 && job->done_due) {
        rc = flush_done(job, session);
        return rc < 0 ? rc : 1;
    }
    return rc;
}
