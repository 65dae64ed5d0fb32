/* specials.h: finds the tokens that are recognised in a text before anything else is.
 *
 * A sorted list of spellings; a search narrows the range of those that still match byte by byte,
 * so it costs at most the length of the longest per position, and one table look-up at most
 * positions. May be used by tokenizer.c only. Threads: immutable. */
#ifndef INFERD_MODEL_SPECIALS_H
#define INFERD_MODEL_SPECIALS_H

#include "model/tokenizer.h"
#include "model/vocab.h"

struct specials {
    uint32_t *ids; /* sorted by spelling */
    uint32_t n;
    uint32_t first[257]; /* spellings that begin with byte c: first[c] .. first[c + 1] */
};

struct special_match {
    size_t offset, bytes;
    uint32_t id;
};

/* -ENOMEM. wanted: which tokens take part. */
int specials_init(struct specials *s, const struct vocab *v, bool (*wanted)(const void *, uint32_t),
                  const void *context);
void specials_done(struct specials *s);

/* The first and there the longest match in text[from, bytes). Control tokens only with `control`,
 * and not where they touch one of the plain spans; *next_plain is the first span that may matter
 * and moves forward from call to call. */
bool specials_find(const struct specials *s, const struct vocab *v, const char *text, size_t bytes,
                   size_t from, bool control, const struct text_span *plain, size_t n_plain,
                   size_t *next_plain, struct special_match *ret);

#endif
