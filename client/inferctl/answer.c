/* answer.c: what a request generates: from the options to a request, from its events to text on the
 * screen and figures for JSON. prompt and chat are built on it.
 *
 * One answer is printed as it comes. Of several, which come at the same time, each is gathered and
 * printed when it and those before it are complete; what an interrupt or an error cut short comes
 * at the end.
 * Text is flushed whenever no further event is waiting, so that tokens appear as they come but a
 * fast stream costs one write for many. Ctrl-C is looked at between events and every WAIT_MS. */
#include "ctl.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define ANSWER_WAIT_MS 50
#define WAIT_REDRAW_S  0.5

/* The place in the queue, as the last QUEUED told it. */
struct waiting {
    bool queued, drawn;
    uint32_t position;
    double starts; /* clock of ctl_seconds(); 0: not known */
    double drawn_at;
};

void answer_request(const struct ctl *ctl, struct infer_request *ret_request)
{
    const struct ctl_options *o = &ctl->options;

    infer_request_default(ret_request);
    ret_request->model = o->model;
    ret_request->parse_special = o->special != 0;
    ret_request->show_special = o->show_special != 0;
    ret_request->no_bos = o->no_bos != 0;
    ret_request->want_prompt = o->json != 0;
    ret_request->stops = o->stops;
    ret_request->n_stops = o->n_stops;
    ret_request->biases = o->biases;
    ret_request->n_biases = o->n_biases;
    ret_request->sampling = o->sampling;
    ret_request->priority = o->priority;
    ret_request->deadline_ms = (uint32_t)ceil((double)o->deadline * 1e3);
    ret_request->n_answers = o->answers;
    ret_request->window = o->window;
    ret_request->sinks = o->sinks;
    ret_request->keep = o->keep != 0;
    ret_request->conversation = o->conversation;
    ret_request->wait = o->wait != 0;
}

void answer_done(struct answer *answer)
{
    buffer_done(&answer->text);
    json_decref(answer->prompt_ids);
    json_decref(answer->ids);
    json_decref(answer->logprobs);
    free(answer->detail);
    for (uint32_t i = 0; i < answer->n_each; i++)
        answer_done(&answer->each[i]);
    free(answer->each);
    memset(answer, 0, sizeof *answer);
}

static void add_text(struct answer *answer, const struct infer_event *event, bool stream)
{
    if (event->text_bytes == 0)
        return;
    buffer_append(&answer->text, event->text, event->text_bytes);
    if (stream) {
        term_write(stdout, event->text, event->text_bytes);
        answer->ends_line = event->text[event->text_bytes - 1] == '\n';
    }
}

static void add_token(struct answer *answer, const struct infer_event *event)
{
    struct infer_logprob own = {event->token, event->logprob};
    json_t *entry, *top;

    if (!event->has_token || !answer->ids)
        return;
    json_array_append_new(answer->ids, json_integer(event->token));
    if (!answer->logprobs)
        return;
    entry = output_json_logprob(&own);
    top = json_array();
    for (size_t i = 0; i < event->n_top; i++)
        json_array_append_new(top, output_json_logprob(&event->top[i]));
    json_object_set_new(entry, "top", top);
    json_array_append_new(answer->logprobs, entry);
}

static void take_done(struct answer *answer, const struct infer_event *event)
{
    answer->complete = true;
    answer->error = event->error;
    answer->finish = event->finish;
    answer->n_prompt = event->n_prompt;
    answer->n_generated = event->n_generated;
    answer->n_cached = event->n_prompt_cached;
    answer->queue_us = event->queue_us;
    answer->prefill_us = event->prefill_us;
    answer->decode_us = event->decode_us;
    if (event->error && event->text_bytes > 0) {
        answer->detail = ctl_alloc(event->text_bytes + 1);
        memcpy(answer->detail, event->text, event->text_bytes);
        answer->detail[event->text_bytes] = '\0';
    }
}

/* ---- the wait in the queue ------------------------------------------------------------------- */

static void forget_waiting(struct waiting *waiting)
{
    if (waiting->drawn)
        term_progress_clear();
    memset(waiting, 0, sizeof *waiting);
}

static void note_waiting(struct waiting *waiting, const struct infer_event *event)
{
    if (event->position == 0 && event->start_us == 0) { /* it runs */
        forget_waiting(waiting);
        return;
    }
    waiting->queued = true;
    waiting->position = event->position;
    waiting->starts = event->start_us ? ctl_seconds() + (double)event->start_us * 1e-6 : 0;
    waiting->drawn_at = 0;
}

/* Called when nothing has come for a while, so that a short wait shows nothing. */
static void show_waiting(struct waiting *waiting)
{
    double now = ctl_seconds();
    double left = waiting->starts - now;
    char start[32] = "", place[48];

    if (!waiting->queued || now - waiting->drawn_at < WAIT_REDRAW_S)
        return;
    if (waiting->position == 0)
        snprintf(place, sizeof place, "next");
    else
        snprintf(place, sizeof place, "%u before this one", waiting->position);
    if (left < 60)
        snprintf(start, sizeof start, "%.0fs", left > 0 ? left : 0);
    else
        output_duration((uint64_t)left * 1000000u, start);
    if (waiting->starts > 0 && left >= 0.5)
        term_remark("waiting: %s, starts in about %s", place, start);
    else
        term_remark("waiting: %s%s", place, waiting->starts > 0 ? ", starts soon" : "");
    waiting->drawn = true;
    waiting->drawn_at = now;
}

/* ---- several answers ------------------------------------------------------------------------- */

static void print_one(const struct answer *one, uint32_t number, uint32_t n)
{
    printf("%s%sanswer %u of %u%s\n", number > 1 ? "\n" : "", term_style(stdout, TERM_BOLD), number,
           n, term_style(stdout, TERM_PLAIN));
    term_write(stdout, one->text.n ? one->text.bytes : "", one->text.n);
    if (one->text.n == 0 || one->text.bytes[one->text.n - 1] != '\n')
        putchar('\n');
}

/* Prints those that are complete and whose turn it is; with `rest` all that there is. */
static void print_each(struct answer *answer, bool rest)
{
    for (; answer->n_printed < answer->n_each; answer->n_printed++) {
        const struct answer *one = &answer->each[answer->n_printed];
        if (!one->complete && !rest)
            break;
        if (one->complete || one->text.n > 0)
            print_one(one, answer->n_printed + 1, answer->n_each);
    }
}

/* ---- events ---------------------------------------------------------------------------------- */

static void take_event(struct answer *answer, const struct infer_event *event, bool stream)
{
    /* The library gives no event of an answer that was not asked for. */
    struct answer *one = answer->each ? &answer->each[event->answer] : answer;

    switch (event->kind) {
    case INFER_EVENT_QUEUED:
        answer->id = event->id;
        break;
    case INFER_EVENT_PROMPT:
        for (size_t i = 0; answer->prompt_ids && i < event->n_tokens; i++)
            json_array_append_new(answer->prompt_ids, json_integer(event->tokens[i]));
        break;
    case INFER_EVENT_TOKEN:
        add_text(one, event, stream && !answer->each);
        add_token(one, event);
        break;
    case INFER_EVENT_ANSWER:
        take_done(one, event);
        if (stream)
            print_each(answer, false);
        break;
    case INFER_EVENT_DONE:
        take_done(answer, event);
        break;
    default: /* whatever a newer library may tell */
        break;
    }
}

/* Cancels at the first Ctrl-C; at the second gives up waiting for the end. */
static bool interrupted_enough(struct ctl *ctl, uint32_t id, struct answer *answer)
{
    unsigned n = term_interrupts();

    if (n > 0 && !answer->interrupted) {
        answer->interrupted = true;
        infer_cancel(ctl->conn, id); /* NOT_FOUND: it has just ended, and DONE is on its way */
    }
    return n > 1;
}

static int gather(struct ctl *ctl, uint32_t id, bool stream, struct answer *answer,
                  struct waiting *waiting)
{
    struct infer_event event;
    int timeout_ms = 0;

    for (;;) {
        int r;

        if (interrupted_enough(ctl, id, answer)) {
            answer->finish = INFER_FINISH_CANCEL;
            return 0;
        }
        r = infer_next(ctl->conn, id, timeout_ms, &event);
        if (r < 0)
            return r;
        if (r == 0) {
            if (stream)
                fflush(stdout);
            if (timeout_ms > 0)
                show_waiting(waiting);
            timeout_ms = ANSWER_WAIT_MS;
            continue;
        }
        timeout_ms = 0;
        if (event.kind == INFER_EVENT_QUEUED)
            note_waiting(waiting, &event);
        else if (waiting->queued && event.kind != INFER_EVENT_PROMPT)
            forget_waiting(waiting);
        take_event(answer, &event, stream);
        if (event.kind == INFER_EVENT_DONE)
            return 0;
        if (stream && ferror(stdout)) { /* nobody reads: let the daemon do something else */
            infer_cancel(ctl->conn, id);
            stream = false;
        }
    }
}

static void begin(const struct ctl *ctl, const struct infer_request *request, struct answer *answer)
{
    answer->ends_line = true;
    if (!ctl->options.json)
        return;
    answer->ids = json_array();
    if (request->sampling.logprobs)
        answer->logprobs = json_array();
}

int answer_run(struct ctl *ctl, const struct infer_request *request, bool stream,
               struct answer *ret_answer)
{
    struct waiting waiting = {false, false, 0, 0, 0};
    uint32_t id;
    int r;

    memset(ret_answer, 0, sizeof *ret_answer);
    begin(ctl, request, ret_answer);
    if (ctl->options.json)
        ret_answer->prompt_ids = json_array();
    if (request->n_answers > 1) {
        /* More than that the daemon refuses. */
        ret_answer->n_each =
            request->n_answers < INFER_ANSWERS_MAX ? request->n_answers : INFER_ANSWERS_MAX;
        ret_answer->each = ctl_alloc(ret_answer->n_each * sizeof *ret_answer->each);
        memset(ret_answer->each, 0, ret_answer->n_each * sizeof *ret_answer->each);
        for (uint32_t i = 0; i < ret_answer->n_each; i++)
            begin(ctl, request, &ret_answer->each[i]);
    }
    r = infer_submit(ctl->conn, request, &id);
    if (r < 0)
        return r;
    r = gather(ctl, id, stream, ret_answer, &waiting);
    forget_waiting(&waiting);
    for (uint32_t i = 0; i < ret_answer->n_each; i++) { /* cut short by what ended all */
        struct answer *one = &ret_answer->each[i];
        one->finish = one->complete ? one->finish : ret_answer->finish;
        one->error = one->complete ? one->error : ret_answer->error;
    }
    if (stream)
        print_each(ret_answer, true);
    return r;
}

/* Tokens per second, or NaN when nothing was measured. */
static double rate(uint32_t n, uint64_t us)
{
    return n > 0 && us > 0 ? (double)n * 1e6 / (double)us : (double)NAN;
}

/* The first token comes with the prefill; decoding is the steps after it. */
static uint32_t decode_steps(const struct answer *answer)
{
    return answer->n_generated > 0 ? answer->n_generated - 1 : 0;
}

static uint32_t prefill_tokens(const struct answer *answer)
{
    return answer->n_prompt > answer->n_cached ? answer->n_prompt - answer->n_cached : 0;
}

void answer_print_timings(FILE *to, const struct answer *answer)
{
    double prompt = rate(prefill_tokens(answer), answer->prefill_us);
    double decode = rate(decode_steps(answer), answer->decode_us);

    fprintf(to, "%sprompt %u tokens (%u cached), %.1f ms", term_style(to, TERM_DIM),
            answer->n_prompt, answer->n_cached, (double)answer->prefill_us * 1e-3);
    if (isfinite(prompt))
        fprintf(to, ", %.1f tokens/s", prompt);
    fprintf(to, "; answer %u tokens, %.1f ms", answer->n_generated,
            (double)answer->decode_us * 1e-3);
    if (isfinite(decode))
        fprintf(to, ", %.1f tokens/s", decode);
    fprintf(to, "; queued %.1f ms; end: %s%s\n", (double)answer->queue_us * 1e-3,
            infer_finish_name(answer->finish), term_style(to, TERM_PLAIN));
}

/* How it ended, and its figures. */
static void add_end(json_t *root, const struct answer *answer)
{
    bool failed = answer->error && answer->finish != INFER_FINISH_CANCEL;
    uint32_t finish = failed ? (uint32_t)INFER_FINISH_ERROR : answer->finish;

    json_object_set_new(root, "finish", json_string(infer_finish_name(finish)));
    if (failed) {
        const char *detail = answer->detail ? answer->detail : "";
        json_object_set_new(root, "error",
                            json_pack("{s:i, s:s, s:s, s:o}", "code", answer->error, "name",
                                      infer_error_name(answer->error), "message",
                                      infer_strerror(answer->error), "detail",
                                      output_json_text(detail, strlen(detail))));
    }
    json_object_set_new(root, "usage",
                        json_pack("{s:I, s:I, s:I}", "prompt_tokens", (json_int_t)answer->n_prompt,
                                  "completion_tokens", (json_int_t)answer->n_generated, "cached",
                                  (json_int_t)answer->n_cached));
    json_object_set_new(
        root, "timings",
        json_pack("{s:f, s:f, s:f, s:o, s:o}", "queue_ms", (double)answer->queue_us * 1e-3,
                  "prefill_ms", (double)answer->prefill_us * 1e-3, "decode_ms",
                  (double)answer->decode_us * 1e-3, "prompt_per_second",
                  output_json_number(rate(prefill_tokens(answer), answer->prefill_us)),
                  "tokens_per_second",
                  output_json_number(rate(decode_steps(answer), answer->decode_us))));
}

static void add_said(json_t *root, const struct answer *answer)
{
    json_object_set_new(root, "text", output_json_text(answer->text.bytes, answer->text.n));
    json_object_set(root, "ids", answer->ids);
    if (answer->logprobs)
        json_object_set(root, "logprobs", answer->logprobs);
}

/* Each with the seed that gives it alone, as a string: JSON's numbers do not hold 64 bits. */
static json_t *each_json(const struct answer *answer, uint64_t seed)
{
    json_t *array = json_array();

    for (uint32_t i = 0; i < answer->n_each; i++) {
        json_t *one = json_object();
        char digits[24];
        add_said(one, &answer->each[i]);
        if (seed) {
            snprintf(digits, sizeof digits, "%llu", (unsigned long long)infer_answer_seed(seed, i));
            json_object_set_new(one, "seed", json_string(digits));
        }
        add_end(one, &answer->each[i]);
        json_array_append_new(array, one);
    }
    return array;
}

json_t *answer_json(const struct answer *answer, const char *model, uint64_t seed)
{
    json_t *root = json_object();

    if (answer->each)
        json_object_set_new(root, "answers", each_json(answer, seed));
    else
        add_said(root, answer);
    json_object_set(root, "prompt_ids", answer->prompt_ids);
    json_object_set_new(root, "model",
                        model ? output_json_text(model, strlen(model)) : json_null());
    add_end(root, answer);
    return root;
}
