/* pretokenizer.h: cuts a text into the words within which byte-level BPE merges.
 *
 * What a word is stands in the file as a name (tokenizer.ggml.pre) for one or more regular
 * expressions. They act one after the other: the first cuts the text into its matches and what
 * lies between them, the next cuts each of these pieces further, as if each were a text of its own.
 *
 * May be used by tokenizer.c only. Threads: immutable; matching memory is the caller's. */
#ifndef INFERD_MODEL_PRETOKENIZER_H
#define INFERD_MODEL_PRETOKENIZER_H

#include "base/report.h"

#include <stdbool.h>
#include <stddef.h>

struct pretokenizer;

int pretokenizer_new(const char *name, size_t name_bytes, struct pretokenizer **ret,
                     struct report *report);
void pretokenizer_free(struct pretokenizer *p);
/* Memory that it holds; of NULL none. */
size_t pretokenizer_bytes(const struct pretokenizer *p);
const char *pretokenizer_name(const struct pretokenizer *p);
/* A word that is a token is that token, whatever its merges would make of it. */
bool pretokenizer_whole_words(const struct pretokenizer *p);
/* What the file means when it does not say whether the text begins with BOS. */
bool pretokenizer_add_bos(const struct pretokenizer *p);
/* Are the expressions compiled to machine code? */
bool pretokenizer_has_jit(const struct pretokenizer *p);

/* Called for each word in order; a negative result ends the split. */
typedef int (*pretokenizer_word)(void *context, const char *word, size_t bytes);

/* Every byte of the text is in exactly one word. Bytes that are no UTF-8 are words of their own. */
int pretokenizer_split(const struct pretokenizer *p, const char *text, size_t bytes,
                       pretokenizer_word word, void *context);

#endif
