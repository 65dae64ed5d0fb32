/* event.c: from a record of the token ring, in private memory, to an event for the caller.
 *
 * Owns nothing. Every length in a record is checked against the record before it is used; unknown
 * kinds are skipped, so that a newer daemon may say more than this library knows. An event never
 * names an answer that its request does not have, or that was complete before: callers may use the
 * number as an index.
 *
 * Threads: mutex is held. The event points into the record, into conn->event_prompt, or to static
 * memory. */
#include "conn.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#define PROMPT_BYTES_MAX                                                                           \
    (64u << 20) /* four times what one request can hold, one byte per token                        \
                 */

static void begin_event(struct infer_event *ret, uint32_t kind, uint32_t request)
{
    memset(ret, 0, sizeof *ret);
    ret->kind = kind;
    ret->request = request;
    ret->text = "";
}

static int decode_queued(struct request *r, const struct record *record, struct infer_event *ret)
{
    struct infer_abi_queued queued;
    uint32_t bytes = record->u.head.bytes;
    if (bytes < offsetof(struct infer_abi_queued, start_us)) /* its first form */
        return -INFER_E_PROTOCOL;
    memset(&queued, 0, sizeof queued);
    memcpy(&queued, record->u.bytes, bytes < sizeof queued ? bytes : sizeof queued);
    /* It comes again when the request moves; the prompt that is being gathered keeps its size. */
    if (r->prompt == NULL && queued.n_prompt <= PROMPT_BYTES_MAX / sizeof(int32_t))
        r->prompt_bytes = queued.n_prompt * (uint32_t)sizeof(int32_t);
    begin_event(ret, INFER_EVENT_QUEUED, r->id);
    ret->id = queued.id;
    ret->position = queued.position;
    ret->start_us = queued.start_us;
    ret->n_prompt = queued.n_prompt;
    return 1;
}

/* Is there such an answer, and is it not complete yet? */
static bool is_open(const struct request *r, uint32_t answer)
{
    return answer < r->n_answers && (r->answers_complete >> answer & 1) == 0;
}

static int decode_token(struct request *r, struct record *record, struct infer_event *ret)
{
    struct infer_abi_token token;
    if (record->u.head.bytes < sizeof token)
        return -INFER_E_PROTOCOL;
    memcpy(&token, record->u.bytes, sizeof token);
    uint32_t padded = (token.text_bytes + 3u) & ~3u;
    uint32_t top_bytes = token.n_top * (uint32_t)sizeof(struct infer_logprob);
    if (token.text_bytes > INFER_TOKEN_TEXT_MAX || token.n_top > INFER_TOP_MAX ||
        record->u.head.bytes - sizeof token < padded + top_bytes || !is_open(r, token.head.answer))
        return -INFER_E_PROTOCOL;
    uint8_t *text = record->u.bytes + sizeof token;
    begin_event(ret, INFER_EVENT_TOKEN, r->id);
    if (token.n_top > 0) {
        if (padded == token.text_bytes) { /* no room for the NUL: the rest gives way */
            memmove(text + padded + 4, text + padded, top_bytes);
            padded += 4;
        }
        ret->top = (const struct infer_logprob *)(const void *)(text + padded);
        ret->n_top = token.n_top;
    }
    text[token.text_bytes] = '\0';
    ret->has_token = (token.head.flags & INFER_ABI_TEXT_ONLY) == 0;
    ret->token = token.token;
    ret->index = token.index;
    ret->answer = token.head.answer;
    ret->logprob = token.logprob;
    ret->text = (const char *)text;
    ret->text_bytes = token.text_bytes;
    return 1;
}

/* A part of the prompt's ids. The event comes when all are there; parts that do not fit what
 * QUEUED announced are given as they come. */
static int decode_prompt(struct infer_conn *c, struct request *r, const uint8_t *data,
                         uint32_t bytes, uint32_t offset, struct infer_event *ret)
{
    begin_event(ret, INFER_EVENT_PROMPT, r->id);
    ret->tokens = (const int32_t *)(const void *)data;
    ret->n_tokens = bytes / sizeof(int32_t);
    if (bytes >= r->prompt_bytes || offset != r->prompt_got || bytes > r->prompt_bytes - offset)
        return 1;
    if (r->prompt == NULL && (r->prompt = malloc(r->prompt_bytes)) == NULL) {
        r->prompt_bytes = 0;
        return 1;
    }
    memcpy(r->prompt + offset, data, bytes);
    r->prompt_got += bytes;
    if (r->prompt_got < r->prompt_bytes)
        return 0;
    free(c->event_prompt);
    c->event_prompt = r->prompt;
    r->prompt = NULL;
    ret->tokens = (const int32_t *)(const void *)c->event_prompt;
    ret->n_tokens = r->prompt_bytes / sizeof(int32_t);
    return 1;
}

static int decode_result(struct infer_conn *c, struct request *r, struct record *record,
                         struct infer_event *ret)
{
    struct infer_abi_result_head result;
    if (record->u.head.bytes < sizeof result)
        return -INFER_E_PROTOCOL;
    memcpy(&result, record->u.bytes, sizeof result);
    uint8_t *data = record->u.bytes + sizeof result;
    uint32_t bytes = result.head.bytes - (uint32_t)sizeof result;
    if (r->op == INFER_ABI_GENERATE && result.what == INFER_ABI_IDS)
        return decode_prompt(c, r, data, bytes, result.offset, ret);
    begin_event(ret, INFER_EVENT_RESULT, r->id);
    data[bytes] = '\0';
    ret->result = result.what;
    ret->text = (const char *)data;
    ret->text_bytes = bytes;
    return 1;
}

/* What ANSWER and DONE have in common. */
static int decode_end(const struct request *r, struct record *record, uint32_t kind,
                      struct infer_event *ret)
{
    struct infer_abi_done done;
    if (record->u.head.bytes < sizeof done)
        return -INFER_E_PROTOCOL;
    memcpy(&done, record->u.bytes, sizeof done);
    if (done.detail_bytes > done.head.bytes - sizeof done)
        return -INFER_E_PROTOCOL;
    uint8_t *detail = record->u.bytes + sizeof done;
    detail[done.detail_bytes] = '\0';
    begin_event(ret, kind, r->id);
    ret->text = (const char *)detail;
    ret->text_bytes = done.detail_bytes;
    ret->answer = done.head.answer;
    ret->error = done.error;
    ret->finish = done.finish;
    ret->n_prompt = done.n_prompt;
    ret->n_generated = done.n_tokens;
    ret->n_prompt_cached = done.n_prompt_cached;
    ret->queue_us = done.queue_us;
    ret->prefill_us = done.prefill_us;
    ret->decode_us = done.decode_us;
    return 1;
}

static int decode_answer(struct request *r, struct record *record, struct infer_event *ret)
{
    uint32_t answer = record->u.head.answer;
    if (r->n_answers == 1 || !is_open(r, answer))
        return -INFER_E_PROTOCOL;
    int e = decode_end(r, record, INFER_EVENT_ANSWER, ret);
    if (e == 1)
        r->answers_complete |= UINT64_C(1) << answer;
    return e;
}

/* An error or a cancel may end a request before its answers began, success may not. */
static int decode_done(struct infer_conn *c, struct request *r, struct record *record,
                       struct infer_event *ret)
{
    static const char older[] = "the daemon gives one answer to a request; update it";
    uint64_t all = UINT64_MAX >> (64 - r->n_answers);
    int e = decode_end(r, record, INFER_EVENT_DONE, ret);
    if (e < 0)
        return e;
    if (ret->answer >= r->n_answers)
        return -INFER_E_PROTOCOL;
    if (r->n_answers > 1 && r->answers_complete != all && ret->error == 0 &&
        ret->finish != INFER_FINISH_CANCEL) {
        if (r->answers_complete != 0)
            return -INFER_E_PROTOCOL;
        ret->error = INFER_E_UNSUPPORTED;
        ret->finish = INFER_FINISH_ERROR;
        ret->text = older;
        ret->text_bytes = sizeof older - 1;
    }
    request_remove(c, r);
    return 1;
}

int event_decode(struct infer_conn *c, struct request *r, struct record *record,
                 struct infer_event *ret)
{
    switch (record->u.head.kind) {
    case INFER_ABI_EV_QUEUED:
        return decode_queued(r, record, ret);
    case INFER_ABI_EV_TOKEN:
        return decode_token(r, record, ret);
    case INFER_ABI_EV_RESULT:
        return decode_result(c, r, record, ret);
    case INFER_ABI_EV_ANSWER:
        return decode_answer(r, record, ret);
    case INFER_ABI_EV_DONE:
        return decode_done(c, r, record, ret);
    default:
        return 0;
    }
}

void event_ended(struct infer_conn *c, struct request *r, struct infer_event *ret)
{
    begin_event(ret, INFER_EVENT_DONE, r->id);
    ret->error = r->ended;
    ret->finish = INFER_FINISH_ERROR;
    request_remove(c, r);
}
