/* admit.c: see admit.h.
 *
 * Owns, until admit_done(): the payload, and the arrays of messages and biases made from it.
 * The three sections of the payload are cut first, so that each parser sees only its own bytes; a
 * parser ends exactly at the end of its section or refuses. Token ids stand at the start of the
 * payload, which malloc aligned; biases may stand anywhere and are copied.
 *
 * Limits: one pass over each section, at most INFER_REQUEST_BYTES_MAX bytes in all. */
#include "proto/admit.h"

#include "inferd/limits.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define FLAGS_KNOWN                                                                                \
    (INFER_ABI_PARSE_SPECIAL | INFER_ABI_ADD_BOS | INFER_ABI_WANT_PROMPT |                         \
     INFER_ABI_SHOW_SPECIAL | INFER_ABI_KEEP | INFER_ABI_WAIT)

/* ---- sampling parameters --------------------------------------------------------------------- */

struct float_range {
    const char *name;
    size_t offset;
    float low, high;
    bool above_low; /* low itself is out */
};

static int check_floats(const struct infer_sampling *s, struct report *report)
{
    static const struct float_range ranges[] = {
        {"temperature", offsetof(struct infer_sampling, temperature), 0, 100, false},
        {"top_p", offsetof(struct infer_sampling, top_p), 0, 1, true},
        {"min_p", offsetof(struct infer_sampling, min_p), 0, 1, false},
        {"typical_p", offsetof(struct infer_sampling, typical_p), 0, 1, true},
        {"repetition_penalty", offsetof(struct infer_sampling, repetition_penalty), 0, 10, true},
        {"frequency_penalty", offsetof(struct infer_sampling, frequency_penalty), -10, 10, false},
        {"presence_penalty", offsetof(struct infer_sampling, presence_penalty), -10, 10, false},
    };
    for (size_t i = 0; i < sizeof ranges / sizeof ranges[0]; i++) {
        const struct float_range *range = &ranges[i];
        float value;
        memcpy(&value, (const char *)s + range->offset, sizeof value);
        bool inside = value <= range->high && /* false for NaN */
                      (range->above_low ? value > range->low : value >= range->low);
        if (!inside)
            return report_fail(report, INFER_E_BAD_PARAMETER,
                               "%s is %g; it must be %s %g and at most %g", range->name,
                               (double)value, range->above_low ? "above" : "at least",
                               (double)range->low, (double)range->high);
    }
    return 0;
}

int admit_check_sampling(const struct infer_sampling *s, struct report *report)
{
    const struct {
        const char *name;
        uint32_t value, max;
    } counts[] = {
        {"top_k", s->top_k, INFER_TOP_K_MAX},
        {"penalty_window", s->penalty_window, INFER_PENALTY_WINDOW_MAX},
        {"logprobs", s->logprobs, INFER_TOP_MAX},
        {"ignore_eos", s->ignore_eos, 1},
    };
    int r = check_floats(s, report);
    if (r < 0)
        return r;
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++)
        if (counts[i].value > counts[i].max)
            return report_fail(report, INFER_E_BAD_PARAMETER, "%s is %u; it must be at most %u",
                               counts[i].name, counts[i].value, counts[i].max);
    for (size_t i = 0; i < sizeof s->reserved / sizeof s->reserved[0]; i++)
        if (s->reserved[i] != 0)
            return report_fail(
                report, INFER_E_UNSUPPORTED,
                "the client set a sampling parameter that this daemon does not know; "
                "update the daemon");
    return 0;
}

/* They stand in the middle of the record, so their size is fixed for this version of the wire. */
static int take_sampling(const struct infer_abi_submit *submit, struct infer_sampling *ret,
                         struct report *report)
{
    uint32_t known = submit->sampling.bytes;
    if (known != sizeof *ret)
        return report_fail(report, INFER_E_BAD_REQUEST,
                           "the sampling parameters take %u bytes; they must take %zu", known,
                           sizeof *ret);
    *ret = submit->sampling;
    return admit_check_sampling(ret, report);
}

/* ---- sections of the payload ----------------------------------------------------------------- */

static int parse_tokens(struct admit_request *a, struct admit_bytes section, struct report *report)
{
    if (section.bytes % sizeof(int32_t) != 0)
        return report_fail(report, INFER_E_BAD_REQUEST,
                           "the token ids take %u bytes; it must be a multiple of 4",
                           section.bytes);
    a->tokens = (const int32_t *)(const void *)section.data;
    a->n_tokens = section.bytes / (uint32_t)sizeof(int32_t);
    for (uint32_t i = 0; i < a->n_tokens; i++)
        if (a->tokens[i] < 0)
            return report_fail(report, INFER_E_BAD_TOKEN, "token %u is %d; ids are 0 or more", i,
                               (int)a->tokens[i]);
    return 0;
}

/* Takes the message at *at. */
static int next_message(struct admit_bytes section, uint32_t *at, struct admit_message *ret,
                        uint32_t index, struct report *report)
{
    struct infer_abi_message head;
    uint32_t left = section.bytes - *at;
    if (left < sizeof head)
        return report_fail(report, INFER_E_BAD_REQUEST,
                           "message %u is cut: %u bytes are left, its head takes %zu", index, left,
                           sizeof head);
    memcpy(&head, section.data + *at, sizeof head);
    left -= (uint32_t)sizeof head;
    if (head.role_bytes == 0 || head.role_bytes > INFER_ROLE_MAX)
        return report_fail(report, INFER_E_BAD_REQUEST,
                           "the role of message %u takes %u bytes; it must take 1 to %u", index,
                           head.role_bytes, INFER_ROLE_MAX);
    if (head.role_bytes > left || head.content_bytes > left - head.role_bytes)
        return report_fail(report, INFER_E_BAD_REQUEST,
                           "message %u is cut: it announces %u and %u bytes, %u are left", index,
                           head.role_bytes, head.content_bytes, left);
    const char *role = section.data + *at + sizeof head;
    ret->role = (struct admit_bytes){role, head.role_bytes};
    ret->content = (struct admit_bytes){role + head.role_bytes, head.content_bytes};
    *at += (uint32_t)sizeof head + head.role_bytes + head.content_bytes;
    return 0;
}

static int parse_messages(struct admit_request *a, struct admit_bytes section,
                          struct report *report)
{
    struct admit_message message;
    uint32_t n = 0;
    for (uint32_t at = 0; at < section.bytes; n++) {
        if (n == INFER_MESSAGES_MAX)
            return report_fail(report, INFER_E_BAD_REQUEST,
                               "the conversation has more than %u messages; shorten it",
                               INFER_MESSAGES_MAX);
        int r = next_message(section, &at, &message, n, report);
        if (r < 0)
            return r;
    }
    if (n == 0)
        return 0;
    a->messages = calloc(n, sizeof *a->messages);
    if (a->messages == NULL)
        return report_fail(report, INFER_E_OUT_OF_MEMORY, "no memory for %u messages", n);
    a->n_messages = n;
    uint32_t at = 0;
    for (uint32_t i = 0; i < n; i++) {
        int r = next_message(section, &at, &a->messages[i], i, report);
        if (r < 0)
            return r;
    }
    return 0;
}

static int parse_stops(struct admit_request *a, struct admit_bytes section, struct report *report)
{
    for (uint32_t at = 0; at < section.bytes; a->n_stops++) {
        uint32_t bytes;
        uint32_t left = section.bytes - at;
        if (a->n_stops == INFER_STOPS_MAX)
            return report_fail(report, INFER_E_BAD_PARAMETER, "there are more than %u stop strings",
                               INFER_STOPS_MAX);
        if (left < sizeof bytes)
            return report_fail(report, INFER_E_BAD_REQUEST,
                               "stop string %u is cut: %u bytes are left, its length takes 4",
                               a->n_stops, left);
        memcpy(&bytes, section.data + at, sizeof bytes);
        left -= (uint32_t)sizeof bytes;
        if (bytes == 0 || bytes > INFER_STOP_BYTES_MAX)
            return report_fail(report, INFER_E_BAD_PARAMETER,
                               "stop string %u takes %u bytes; it must take 1 to %u", a->n_stops,
                               bytes, INFER_STOP_BYTES_MAX);
        if (bytes > left)
            return report_fail(report, INFER_E_BAD_REQUEST,
                               "stop string %u is cut: it announces %u bytes, %u are left",
                               a->n_stops, bytes, left);
        a->stops[a->n_stops] = (struct admit_bytes){section.data + at + sizeof bytes, bytes};
        at += (uint32_t)sizeof bytes + bytes;
    }
    return 0;
}

static int parse_biases(struct admit_request *a, struct admit_bytes section, struct report *report)
{
    uint32_t n = section.bytes / (uint32_t)sizeof *a->biases;
    if (section.bytes % sizeof *a->biases != 0)
        return report_fail(report, INFER_E_BAD_REQUEST,
                           "the logit biases take %u bytes; it must be a multiple of %zu",
                           section.bytes, sizeof *a->biases);
    if (n > INFER_LOGIT_BIASES_MAX)
        return report_fail(report, INFER_E_BAD_PARAMETER,
                           "there are %u logit biases; there may be at most %u", n,
                           INFER_LOGIT_BIASES_MAX);
    if (n == 0)
        return 0;
    a->biases = malloc(section.bytes);
    if (a->biases == NULL)
        return report_fail(report, INFER_E_OUT_OF_MEMORY, "no memory for %u logit biases", n);
    memcpy(a->biases, section.data, section.bytes);
    a->n_biases = n;
    for (uint32_t i = 0; i < n; i++) {
        if (a->biases[i].token < 0)
            return report_fail(report, INFER_E_BAD_TOKEN,
                               "the token of logit bias %u is %d; ids are 0 or more", i,
                               (int)a->biases[i].token);
        if (isnan(a->biases[i].bias) || (isinf(a->biases[i].bias) && a->biases[i].bias > 0))
            return report_fail(report, INFER_E_BAD_PARAMETER,
                               "logit bias %u is %g; it must be a number or -inf", i,
                               (double)a->biases[i].bias);
    }
    return 0;
}

/* ---- the whole request ----------------------------------------------------------------------- */

/* Inputs that each operation takes, as bits 1 << enum infer_abi_input; 0: no such operation. */
static uint32_t inputs_of(uint32_t op)
{
    static const uint32_t text = 1u << INFER_ABI_TEXT, messages = 1u << INFER_ABI_MESSAGES,
                          tokens = 1u << INFER_ABI_TOKENS;
    switch (op) {
    case INFER_ABI_GENERATE:
        return text | messages | tokens;
    case INFER_ABI_SCORE:
        return text | tokens;
    case INFER_ABI_TOKENIZE:
        return text;
    case INFER_ABI_DETOKENIZE:
        return tokens;
    case INFER_ABI_STATUS:
    case INFER_ABI_MODELS:
    case INFER_ABI_END:
    case INFER_ABI_FORGET:
    case INFER_ABI_METRICS:
    case INFER_ABI_TOPOLOGY:
        return 1u; /* none */
    default:
        return 0;
    }
}

/* The fields of the second form; zero when the client knew the first alone. */
static int parse_queueing(const struct infer_abi_submit *submit, struct admit_request *a,
                          struct report *report)
{
    if (submit->priority > INFER_PRIORITY_BATCH)
        return report_fail(report, INFER_E_BAD_PARAMETER, "priority is %u; it must be at most %u",
                           submit->priority, (unsigned)INFER_PRIORITY_BATCH);
    if (submit->target != 0 && submit->op != INFER_ABI_END && submit->op != INFER_ABI_FORGET)
        return report_fail(report, INFER_E_BAD_REQUEST, "operation %u takes no target", submit->op);
    a->priority = submit->priority;
    a->deadline_ms = submit->deadline_ms;
    a->target = submit->target;
    return 0;
}

static int parse_window(const struct infer_abi_submit *submit, struct admit_request *a,
                        struct report *report)
{
    if (submit->window != 0 && submit->window < INFER_WINDOW_MIN)
        return report_fail(report, INFER_E_BAD_PARAMETER,
                           "window is %u; it must be 0 (none) or at least %u", submit->window,
                           INFER_WINDOW_MIN);
    if (submit->window == 0 && submit->sinks != 0)
        return report_fail(report, INFER_E_BAD_PARAMETER,
                           "sinks is %u; it must be 0 without a window", submit->sinks);
    if (submit->sinks > submit->window / 4)
        return report_fail(report, INFER_E_BAD_PARAMETER,
                           "sinks is %u; it must be at most %u, a quarter of the window",
                           submit->sinks, submit->window / 4);
    a->window = submit->window;
    a->sinks = submit->window != 0 && submit->sinks == 0 ? INFER_SINKS_DEFAULT : submit->sinks;
    return 0;
}

/* The fields and flags of the third form; zero when the client knew an earlier one. */
static int parse_answers(const struct infer_abi_submit *submit, struct admit_request *a,
                         struct report *report)
{
    bool runs = submit->op == INFER_ABI_GENERATE || submit->op == INFER_ABI_SCORE;
    bool keeps = (submit->flags & INFER_ABI_KEEP) != 0 || submit->conversation != 0;

    a->n_answers = 1;
    if (submit->reserved != 0)
        return report_fail(report, INFER_E_UNSUPPORTED,
                           "the client set a field that this daemon does not know; update the "
                           "daemon");
    if ((submit->flags & INFER_ABI_WAIT) != 0 && !runs)
        return report_fail(report, INFER_E_BAD_REQUEST, "operation %u takes no flag WAIT",
                           submit->op);
    if (submit->op != INFER_ABI_GENERATE) {
        if (keeps || submit->n_answers != 0 || submit->window != 0 || submit->sinks != 0)
            return report_fail(report, INFER_E_BAD_REQUEST,
                               "operation %u takes no flag KEEP, n_answers, window, sinks or "
                               "conversation",
                               submit->op);
        return 0;
    }
    if (submit->n_answers > INFER_ANSWERS_MAX)
        return report_fail(report, INFER_E_BAD_PARAMETER, "n_answers is %u; it must be at most %u",
                           submit->n_answers, INFER_ANSWERS_MAX);
    if (submit->n_answers > 1 && keeps)
        return report_fail(report, INFER_E_BAD_PARAMETER,
                           "n_answers is %u; it must be 1 in a conversation", submit->n_answers);
    if (submit->n_answers > 1)
        a->n_answers = submit->n_answers;
    a->conversation = submit->conversation;
    if (keeps)
        a->flags |= INFER_ABI_KEEP;
    return parse_window(submit, a, report);
}

static int parse_head(const struct session_request *r, struct admit_request *a,
                      struct report *report)
{
    const struct infer_abi_submit *submit = &r->submit;
    uint32_t inputs = inputs_of(submit->op);

    if (r->kind != INFER_ABI_SUBMIT)
        return report_fail(report, INFER_E_UNSUPPORTED, "records of kind %u are not known",
                           r->kind);
    if (inputs == 0)
        return report_fail(report, INFER_E_UNSUPPORTED, "operation %u is not known", submit->op);
    if ((submit->flags & ~FLAGS_KNOWN) != 0)
        return report_fail(report, INFER_E_UNSUPPORTED, "the flags 0x%x are not known",
                           submit->flags & ~FLAGS_KNOWN);
    if (memchr(submit->model, '\0', sizeof submit->model) == NULL)
        return report_fail(report, INFER_E_BAD_REQUEST,
                           "the model's name is too long; it may take %zu bytes",
                           sizeof submit->model - 1);
    a->request = r->request;
    a->op = submit->op;
    a->flags = submit->flags;
    a->n_top = submit->n_top;
    memcpy(a->model, submit->model, sizeof a->model);
    a->input = submit->input;
    if (inputs == 1u) {
        a->input = 0;
        if (r->payload_bytes != 0)
            return report_fail(report, INFER_E_BAD_REQUEST,
                               "the request carries %u bytes; it takes none", r->payload_bytes);
        return 0;
    }
    if (a->input == 0 || a->input > INFER_ABI_TOKENS || (inputs & 1u << a->input) == 0)
        return report_fail(report, INFER_E_BAD_REQUEST,
                           "operation %u does not take input of kind %u", a->op, a->input);
    if (a->op == INFER_ABI_SCORE && a->n_top > INFER_TOP_MAX)
        return report_fail(report, INFER_E_BAD_PARAMETER, "n_top is %u; it must be at most %u",
                           a->n_top, INFER_TOP_MAX);
    if (a->op != INFER_ABI_GENERATE && (submit->stops_bytes != 0 || submit->biases_bytes != 0))
        return report_fail(report, INFER_E_BAD_REQUEST,
                           "operation %u takes no stop strings or logit biases", a->op);
    return 0;
}

/* An empty text may still become a prompt: the model may put BOS before it, but for one that
 * continues a conversation. */
static bool surely_empty(const struct admit_request *a)
{
    switch (a->input) {
    case INFER_ABI_TEXT:
        return a->text.bytes == 0 && ((a->flags & INFER_ABI_ADD_BOS) == 0 || a->conversation != 0);
    case INFER_ABI_MESSAGES:
        return a->n_messages == 0;
    default:
        return a->n_tokens == 0;
    }
}

static int parse_payload(const struct session_request *r, struct admit_request *a,
                         struct report *report)
{
    const struct infer_abi_submit *submit = &r->submit;
    const char *data = (const char *)a->payload;
    uint64_t total =
        (uint64_t)submit->input_bytes + (uint64_t)submit->stops_bytes + submit->biases_bytes;
    int e;

    if (total != r->payload_bytes)
        return report_fail(report, INFER_E_BAD_REQUEST,
                           "the request announces %llu bytes and carries %u",
                           (unsigned long long)total, r->payload_bytes);
    struct admit_bytes input = {data, submit->input_bytes};
    struct admit_bytes stops = {total != 0 ? data + input.bytes : data, submit->stops_bytes};
    struct admit_bytes biases = {total != 0 ? stops.data + stops.bytes : data,
                                 submit->biases_bytes};
    if (a->input == INFER_ABI_TEXT) {
        a->text = input;
        e = 0;
    } else if (a->input == INFER_ABI_MESSAGES) {
        e = parse_messages(a, input, report);
    } else {
        e = parse_tokens(a, input, report);
    }
    if (e < 0)
        return e;
    if ((a->op == INFER_ABI_GENERATE || a->op == INFER_ABI_SCORE) && surely_empty(a))
        return report_fail(report, INFER_E_PROMPT_EMPTY,
                           "the prompt holds no token; give a text, messages or token ids");
    if ((e = parse_stops(a, stops, report)) < 0)
        return e;
    return parse_biases(a, biases, report);
}

static int parse_all(const struct session_request *r, struct admit_request *a,
                     struct report *report)
{
    int e = parse_head(r, a, report);
    if (e < 0 || (e = parse_queueing(&r->submit, a, report)) < 0 ||
        (e = parse_answers(&r->submit, a, report)) < 0)
        return e;
    infer_sampling_default(&a->sampling);
    if (a->op == INFER_ABI_GENERATE && (e = take_sampling(&r->submit, &a->sampling, report)) < 0)
        return e;
    if (a->input == 0)
        return 0;
    return parse_payload(r, a, report);
}

int admit_parse(struct session_request *r, struct admit_request *ret, struct report *report)
{
    struct admit_request a;
    int e;
    memset(&a, 0, sizeof a);
    a.payload = r->payload;
    r->payload = NULL;
    if (r->error == INFER_E_REQUEST_TOO_LARGE)
        e = report_fail(report, r->error,
                        "the request carries more than %u bytes, which is all the daemon takes",
                        INFER_REQUEST_BYTES_MAX);
    else if (r->error != 0)
        e = report_fail(report, r->error, "no memory for the request's payload");
    else
        e = parse_all(r, &a, report);
    if (e < 0) {
        admit_done(&a);
        return e;
    }
    *ret = a;
    return 0;
}

void admit_done(struct admit_request *a)
{
    free(a->messages);
    free(a->biases);
    free(a->payload);
    memset(a, 0, sizeof *a);
}
