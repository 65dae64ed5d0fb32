/* spm.h: SentencePiece's BPE: neighbours merge into the token with the best score.
 *
 * May be used by tokenizer.c only. Threads: struct spm is immutable, struct spm_scratch belongs to
 * one call. */
#ifndef INFERD_MODEL_SPM_H
#define INFERD_MODEL_SPM_H

#include "model/merge_queue.h"
#include "model/tokenizer.h"
#include "model/vocab.h"

struct spm {
    uint32_t *ranks; /* n_tokens: scores turned into ranks, the best is the lowest */
    uint32_t unknown;
    uint32_t byte_ids[256]; /* the token <0xNN>, or what stands for it */
    bool cut_at_spaces;     /* no token has a space after another character */
};

struct spm_symbol;

struct spm_scratch {
    struct merge_queue queue;
    struct spm_symbol *symbols;
    size_t symbols_room;
    char *text;
    size_t text_room;
};

/* Reads tokenizer.ggml.scores. */
int spm_init(struct spm *s, const struct vocab *v, const struct gguf *g, uint32_t unknown,
             struct report *report);
void spm_done(struct spm *s);
void spm_scratch_done(struct spm_scratch *s);

/* Appends the tokens of a text, behind a space when `prefix`, in O(n log n). */
int spm_encode(const struct spm *s, const struct vocab *v, struct spm_scratch *scratch,
               const char *text, size_t bytes, bool prefix, struct token_list *out);

/* The byte that a token <0xNN> stands for, or -1. */
int spm_byte(const char *text, size_t bytes);

#endif
