/* chat.h: chat messages to the text that the model was trained on.
 *
 * The model's file carries its template as a program (tokenizer.chat_template, in Jinja). Here the
 * program is not run but recognised: a table of families, each with the marks that give it away,
 * the variations that are read out of its text, and a function that renders what the program would
 * print. An engine that runs the program can take the table's place behind the same functions.
 *
 * Threads: a chat_template is immutable. Text is bytes; roles and contents come from clients, so
 * the rendered text says which of its bytes are theirs: those must not name special tokens
 * (tokenizer_encode() takes the spans as they are). */
#ifndef INFERD_MODEL_CHAT_H
#define INFERD_MODEL_CHAT_H

#include "base/report.h"
#include "model/gguf.h"
#include "model/tokenizer.h"

#include <stdbool.h>
#include <stddef.h>

struct chat_template;

/* NO_TEMPLATE when the file has none or one of no known family; the sentence names --raw. */
int chat_template_new(const struct gguf *g, struct chat_template **ret, struct report *report);
void chat_template_free(struct chat_template *t);
/* Memory that it holds; of NULL none. */
size_t chat_template_bytes(const struct chat_template *t);
/* The family: "chatml". */
const char *chat_template_name(const struct chat_template *t);

struct chat_message {
    const char *role;
    size_t role_bytes;
    const char *content;
    size_t content_bytes;
};

struct chat_text {
    char *text;
    size_t bytes;
    struct text_span *plain; /* what the messages brought, ascending and disjoint */
    size_t n_plain;
    bool has_bos; /* the text itself begins with the beginning-of-text token */
};

/* BAD_REQUEST with the reason when the template refuses these messages. Free *ret with
 * chat_text_free(); it is untouched on failure. */
int chat_render(const struct chat_template *t, const struct chat_message *messages, size_t n,
                bool add_generation_prompt, struct chat_text *ret, struct report *report);
/* The new turns of a conversation as they follow an assistant's answer, beginning with what ends
 * that answer, with a prompt for the next one; has_bos is false. NO_TEMPLATE when the template
 * writes what came before another way once these messages follow it, so that they cannot be
 * appended. */
int chat_render_turn(const struct chat_template *t, const struct chat_message *messages, size_t n,
                     struct chat_text *ret, struct report *report);
void chat_text_free(struct chat_text *x);

#endif
