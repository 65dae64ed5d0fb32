/* answer.c: submits a request and gathers the whole answer. */
#include "support/answer.h"
#include "support/program.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>

#include <cmocka.h>

struct infer_conn *answer_connect_ring(const struct daemon *d, uint32_t token_ring_bytes)
{
    struct infer_connect_options options = {.socket = d->socket,
                                            .token_ring_bytes = token_ring_bytes};
    struct infer_conn *c = NULL;
    int code = infer_connect(&options, &c);
    if (code < 0)
        fail_msg("connect: %s: %s", infer_strerror(code), infer_detail(NULL));
    return c;
}

struct infer_conn *answer_connect(const struct daemon *d)
{
    return answer_connect_ring(d, 0);
}

static void *grown(void *memory, size_t bytes)
{
    void *p = realloc(memory, bytes ? bytes : 1);
    assert_non_null(p);
    return p;
}

/* Whole, valid or not, but never cut: the last sequence has all the bytes its head promises. */
static void assert_whole_utf8(const char *text, size_t bytes)
{
    size_t i = bytes, back = 0;
    while (i > 0 && back < 4 && ((unsigned char)text[i - 1] & 0xc0) == 0x80) {
        i--;
        back++;
    }
    if (i == 0)
        return;
    unsigned char head = (unsigned char)text[i - 1];
    size_t wanted = head >= 0xf0 ? 3 : head >= 0xe0 ? 2 : head >= 0xc0 ? 1 : 0;
    if (head >= 0xc0 && back < wanted)
        fail_msg("an event's text ends within a UTF-8 sequence");
}

static void take_token(struct answer *a, const struct infer_event *e)
{
    assert_whole_utf8(e->text, e->text_bytes);
    a->text = grown(a->text, a->text_bytes + e->text_bytes + 1);
    if (e->text_bytes)
        memcpy(a->text + a->text_bytes, e->text, e->text_bytes);
    a->text_bytes += e->text_bytes;
    a->text[a->text_bytes] = '\0';
    if (!e->has_token)
        return;
    assert_int_equal(e->index, a->n);
    if (a->n == 0)
        a->n_top = e->n_top;
    assert_int_equal(e->n_top, a->n_top);
    a->ids = grown(a->ids, (a->n + 1) * sizeof *a->ids);
    a->logprobs = grown(a->logprobs, (a->n + 1) * sizeof *a->logprobs);
    a->ends = grown(a->ends, (a->n + 1) * sizeof *a->ends);
    a->top = grown(a->top, (a->n + 1) * a->n_top * sizeof *a->top);
    a->ids[a->n] = e->token;
    a->logprobs[a->n] = e->logprob;
    a->ends[a->n] = a->text_bytes;
    if (a->n_top)
        memcpy(a->top + a->n * a->n_top, e->top, a->n_top * sizeof *a->top);
    a->n++;
}

static void take_prompt(struct answer *a, const struct infer_event *e)
{
    a->prompt = grown(a->prompt, (a->n_prompt + e->n_tokens) * sizeof *a->prompt);
    memcpy(a->prompt + a->n_prompt, e->tokens, e->n_tokens * sizeof *a->prompt);
    a->n_prompt += e->n_tokens;
}

void answer_gather(struct infer_conn *c, uint32_t id, struct answer *ret)
{
    struct infer_event e;
    bool queued = false;
    memset(ret, 0, sizeof *ret);
    ret->text = grown(NULL, 1);
    ret->text[0] = '\0';
    for (;;) {
        int code = infer_next(c, id, 30000 * program_slowness(), &e);
        if (code != 1)
            fail_msg("infer_next: %d (%s)", code, infer_strerror(code));
        assert_int_equal(e.request, id);
        switch (e.kind) {
        case INFER_EVENT_QUEUED:
            assert_int_equal(ret->n, 0); /* again, as it moves in the queue */
            queued = true;
            break;
        case INFER_EVENT_PROMPT:
            assert_int_equal(ret->n, 0);
            take_prompt(ret, &e);
            break;
        case INFER_EVENT_TOKEN:
            assert_true(queued);
            take_token(ret, &e);
            break;
        case INFER_EVENT_DONE:
            ret->error = e.error;
            ret->finish = e.finish;
            ret->n_generated = e.n_generated;
            snprintf(ret->detail, sizeof ret->detail, "%.*s", (int)e.text_bytes,
                     e.text ? e.text : "");
            return;
        default:
            fail_msg("unexpected event %u", e.kind);
        }
    }
}

void answer_get(struct infer_conn *c, const struct infer_request *r, struct answer *ret)
{
    uint32_t id;
    int code = infer_submit(c, r, &id);
    if (code < 0)
        fail_msg("infer_submit: %s", infer_strerror(code));
    assert_int_not_equal(id, 0);
    answer_gather(c, id, ret);
}

void answer_done(struct answer *a)
{
    free(a->ids);
    free(a->logprobs);
    free(a->ends);
    free(a->top);
    free(a->text);
    free(a->prompt);
    memset(a, 0, sizeof *a);
}

static bool is_idle(const struct infer_status *s, uint32_t n)
{
    return s->n_running == 0 && s->n_waiting == 0 && s->n_parked == 0;
}

static bool has_sessions(const struct infer_status *s, uint32_t n)
{
    return s->n_sessions == n;
}

static void wait_status(struct infer_conn *c,
                        bool (*reached)(const struct infer_status *, uint32_t), uint32_t n)
{
    struct infer_status s;
    uint64_t end = test_clock_us() + 10000000u * (unsigned)program_slowness();
    for (;;) {
        int code = infer_status(c, &s);
        if (code < 0)
            fail_msg("infer_status: %s", infer_strerror(code));
        if (reached(&s, n))
            return;
        if (test_clock_us() > end)
            fail_msg("still %u running, %u waiting, %u parked, %u sessions", s.n_running,
                     s.n_waiting, s.n_parked, s.n_sessions);
        usleep(2000);
    }
}

void answer_wait_idle(struct infer_conn *c)
{
    wait_status(c, is_idle, 0);
}

void answer_wait_sessions(struct infer_conn *c, uint32_t n)
{
    wait_status(c, has_sessions, n);
}
