/* chat.c: see chat.h. Owns recognition, the output buffer and the public functions; what each
 * family prints is in chat_families.c.
 *
 * Limits: a template of TEMPLATE_BYTES_MAX bytes, INFER_MESSAGES_MAX messages, roles of
 * INFER_ROLE_MAX bytes; the text's size is bounded by the messages' and a constant for each. */
#include "model/chat_private.h"

#include <errno.h>
#include <malloc.h>
#include <stdint.h>
#include <stdlib.h>

#define TEMPLATE_BYTES_MAX (1u << 20)

/* ---- recognition ----------------------------------------------------------------------------- */

/* Authors quote with ' or ", and write line breaks as \n or as they are: one spelling for all. */
static char *normalise(const char *text, size_t bytes)
{
    char *to = malloc(bytes + 1);
    if (to == NULL)
        return NULL;
    size_t n = 0;
    for (size_t i = 0; i < bytes; i++) {
        char c = text[i];
        if (c == '\\' && i + 1 < bytes && text[i + 1] == 'n') {
            c = '\n';
            i++;
        }
        to[n++] = c == '"' ? '\'' : c == '\0' ? ' ' : c;
    }
    to[n] = '\0';
    return to;
}

/* The spelling of the token that a key names, "" when there is none. */
static char *token_text(const struct gguf *g, const char *key, uint32_t otherwise)
{
    uint32_t id = otherwise;
    uint64_t n = 0;
    gguf_get_u32(g, key, &id);
    gguf_get_array(g, "tokenizer.ggml.tokens", GGUF_STRING, &n);
    struct gguf_string s = {"", 0};
    if (id < n)
        s = gguf_array_string(g, "tokenizer.ggml.tokens", id);
    return strndup(s.data, s.bytes);
}

static bool fits(const struct chat_template *t, const struct chat_family *family)
{
    for (int i = 0; i < 3 && family->marks[i] != NULL; i++)
        if (!chat_has(t, family->marks[i]))
            return false;
    return true;
}

static int recognise(struct chat_template *t, struct report *report)
{
    for (size_t i = 0; i < chat_n_families; i++) {
        if (!fits(t, &chat_families[i]))
            continue;
        t->family = &chat_families[i];
        if (t->family->read != NULL)
            t->family->read(t);
        return 0;
    }
    return report_fail(report, INFER_E_NO_TEMPLATE,
                       "the model's chat template is of no family that inferd knows; use --raw and "
                       "write the prompt's markup");
}

int chat_template_new(const struct gguf *g, struct chat_template **ret, struct report *report)
{
    struct gguf_string source, model = {"", 0};
    if (!gguf_get_string(g, "tokenizer.chat_template", &source) || source.bytes == 0)
        return report_fail(report, INFER_E_NO_TEMPLATE,
                           "the model's file has no chat template; use --raw and write the prompt "
                           "as the model was trained on it");
    if (source.bytes > TEMPLATE_BYTES_MAX)
        return report_fail(
            report, INFER_E_NO_TEMPLATE,
            "the model's chat template has %zu bytes, too many to be one that inferd "
            "knows; use --raw",
            source.bytes);
    struct chat_template *t = calloc(1, sizeof *t);
    if (t == NULL)
        return report_fail(report, INFER_E_OUT_OF_MEMORY, "no memory for the chat template");
    gguf_get_string(g, "tokenizer.ggml.model", &model);
    bool spm = model.bytes == 5 && memcmp(model.data, "llama", 5) == 0;
    t->source = normalise(source.data, source.bytes);
    t->bos = token_text(g, "tokenizer.ggml.bos_token_id", spm ? 1 : UINT32_MAX);
    t->eos = token_text(g, "tokenizer.ggml.eos_token_id", spm ? 2 : UINT32_MAX);
    int r;
    if (t->source == NULL || t->bos == NULL || t->eos == NULL)
        r = report_fail(report, INFER_E_OUT_OF_MEMORY, "no memory for the chat template");
    else
        r = recognise(t, report);
    if (r == 0 && !chat_has(t, "bos_token") && !chat_has(t, t->bos))
        t->bos[0] = '\0'; /* the template does not print it */
    if (r < 0) {
        chat_template_free(t);
        return r;
    }
    *ret = t;
    return 0;
}

size_t chat_template_bytes(const struct chat_template *t)
{
    if (t == NULL)
        return 0;
    return malloc_usable_size((void *)(uintptr_t)t) + malloc_usable_size(t->source) +
           malloc_usable_size(t->bos) + malloc_usable_size(t->eos) +
           malloc_usable_size(t->default_system);
}

void chat_template_free(struct chat_template *t)
{
    if (t == NULL)
        return;
    free(t->source);
    free(t->bos);
    free(t->eos);
    free(t->default_system);
    free(t);
}

const char *chat_template_name(const struct chat_template *t)
{
    return t->family->name;
}

/* ---- the text -------------------------------------------------------------------------------- */

static void put(struct chat_output *o, const char *text, size_t bytes)
{
    struct chat_text *x = &o->text;
    if (o->failed < 0 || bytes == 0)
        return;
    if (bytes > o->text_room - x->bytes) {
        size_t room = x->bytes + bytes + x->bytes / 2 + 256;
        char *grown = realloc(x->text, room);
        if (grown == NULL) {
            o->failed = -ENOMEM;
            return;
        }
        x->text = grown;
        o->text_room = room;
    }
    memcpy(x->text + x->bytes, text, bytes);
    x->bytes += bytes;
}

void chat_put(struct chat_output *o, const char *text)
{
    put(o, text, strlen(text));
}

void chat_put_plain(struct chat_output *o, struct chat_slice s)
{
    struct chat_text *x = &o->text;
    if (o->failed < 0 || s.bytes == 0)
        return;
    if (x->n_plain == o->plain_room) {
        size_t room = o->plain_room * 2 + 8;
        struct text_span *grown = realloc(x->plain, room * sizeof *grown);
        if (grown == NULL) {
            o->failed = -ENOMEM;
            return;
        }
        x->plain = grown;
        o->plain_room = room;
    }
    x->plain[x->n_plain++] = (struct text_span){x->bytes, s.bytes};
    put(o, s.data, s.bytes);
}

int chat_refuse(struct chat_output *o, const char *why)
{
    if (o->failed == 0)
        o->failed = report_fail(o->report, INFER_E_BAD_REQUEST,
                                "the model's chat template does not take these messages: %s", why);
    return o->failed;
}

static int check_messages(const struct chat_message *m, size_t n, struct report *report)
{
    if (n == 0)
        return report_fail(report, INFER_E_BAD_REQUEST, "the request holds no message");
    if (n > INFER_MESSAGES_MAX)
        return report_fail(report, INFER_E_BAD_REQUEST,
                           "the request holds %zu messages; at most %u are taken", n,
                           INFER_MESSAGES_MAX);
    for (size_t i = 0; i < n; i++)
        if (m[i].role_bytes == 0 || m[i].role_bytes > INFER_ROLE_MAX)
            return report_fail(report, INFER_E_BAD_REQUEST,
                               "message %zu has a role of %zu bytes; 1 to %u are taken", i + 1,
                               m[i].role_bytes, INFER_ROLE_MAX);
    return 0;
}

static int render(const struct chat_template *t, const struct chat_message *messages, size_t n,
                  bool add_generation_prompt, struct chat_text *ret, struct report *report)
{
    struct chat_output o = {.report = report};
    t->family->render(t, messages, n, add_generation_prompt, &o);
    if (o.failed < 0) {
        chat_text_free(&o.text);
        return o.failed == -ENOMEM
                   ? report_fail(report, INFER_E_OUT_OF_MEMORY, "no memory for the chat's text")
                   : o.failed;
    }
    size_t bos = strlen(t->bos);
    bool spoken = o.text.n_plain > 0 && o.text.plain[0].offset < bos; /* a message's own bytes */
    o.text.has_bos =
        bos > 0 && !spoken && o.text.bytes >= bos && memcmp(o.text.text, t->bos, bos) == 0;
    *ret = o.text;
    return 0;
}

int chat_render(const struct chat_template *t, const struct chat_message *messages, size_t n,
                bool add_generation_prompt, struct chat_text *ret, struct report *report)
{
    int r = check_messages(messages, n, report);
    return r < 0 ? r : render(t, messages, n, add_generation_prompt, ret, report);
}

/* ---- a turn ---------------------------------------------------------------------------------- */

/* What stands for a question and its answer: words that no template strips or splits. */
static const struct chat_message question = {"user", 4, "question", 8};
static const struct chat_message answer = {"assistant", 9, "answer", 6};

/* Where the answer ends in the text of question, answer and what follows; 0: it is not there as one
 * piece, the second of all. */
static size_t end_of_answer(const struct chat_text *x)
{
    if (x->n_plain < 2 || x->plain[1].bytes != answer.content_bytes ||
        memcmp(x->text + x->plain[1].offset, answer.content, answer.content_bytes) != 0)
        return 0;
    return x->plain[1].offset + x->plain[1].bytes;
}

/* Does the text up to the answer begin as the prompt that the answer was drawn after? One may be
 * longer: some templates put a space before an answer that they do not prompt with, others prompt
 * for thoughts that earlier answers are shown without. */
static bool same_start(const struct chat_text *prompt, const char *text, size_t bytes)
{
    return memcmp(prompt->text, text, bytes < prompt->bytes ? bytes : prompt->bytes) == 0;
}

/* Leaves what follows the first `skip` bytes, of which whole spans are a part. */
static void cut_start(struct chat_text *x, size_t skip)
{
    size_t n = 0;
    for (size_t i = 0; i < x->n_plain; i++)
        if (x->plain[i].offset >= skip)
            x->plain[n++] = (struct text_span){x->plain[i].offset - skip, x->plain[i].bytes};
    x->n_plain = n;
    x->bytes -= skip;
    memmove(x->text, x->text + skip, x->bytes);
    x->has_bos = false;
}

int chat_render_turn(const struct chat_template *t, const struct chat_message *messages, size_t n,
                     struct chat_text *ret, struct report *report)
{
    struct chat_text prompt = {0}, all = {0};
    int r = check_messages(messages, n, report);
    if (r < 0)
        return r;
    struct chat_message *m = calloc(n + 2, sizeof *m);
    if (m == NULL)
        return report_fail(report, INFER_E_OUT_OF_MEMORY, "no memory for the chat's messages");
    m[0] = question;
    m[1] = answer;
    memcpy(m + 2, messages, n * sizeof *m);
    r = render(t, m, 1, true, &prompt, report);
    if (r == 0)
        r = render(t, m, n + 2, true, &all, report);
    free(m);
    if (r == 0) {
        size_t end = end_of_answer(&all);
        if (end == 0 || !same_start(&prompt, all.text, end - answer.content_bytes))
            r = report_fail(report, INFER_E_NO_TEMPLATE,
                            "the model's chat template does not let these messages follow an "
                            "answer; submit the whole conversation again without the id");
        else
            cut_start(&all, end);
    }
    chat_text_free(&prompt);
    if (r < 0) {
        chat_text_free(&all);
        return r;
    }
    *ret = all;
    return 0;
}

void chat_text_free(struct chat_text *x)
{
    free(x->text);
    free(x->plain);
    memset(x, 0, sizeof *x);
}
