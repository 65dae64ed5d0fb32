/* bpe.h: merging the bytes of a word by a ranked list of pairs.
 *
 * May be used by tokenizer.c only. Threads: struct bpe is immutable, struct bpe_scratch belongs to
 * one call. */
#ifndef INFERD_MODEL_BPE_H
#define INFERD_MODEL_BPE_H

#include "model/merge_queue.h"
#include "model/tokenizer.h"
#include "model/vocab.h"

/* Two neighbours and what they become. */
struct bpe_merge {
    uint32_t left, right;
    uint32_t rank; /* place in the file's list; VOCAB_NONE: the slot is free */
    uint32_t id;
};

struct bpe {
    struct bpe_merge *merges; /* open addressing */
    uint32_t n_slots;
    uint32_t unknown; /* stands for a byte that has no token; VOCAB_NONE: it is dropped */
    uint32_t byte_ids[256];
};

struct bpe_symbol;

struct bpe_scratch {
    struct merge_queue queue;
    struct bpe_symbol *symbols;
    size_t room;
};

/* Reads tokenizer.ggml.merges; may add symbols to the vocabulary. */
int bpe_init(struct bpe *b, struct vocab *v, const struct gguf *g, struct report *report);
void bpe_done(struct bpe *b);
void bpe_scratch_done(struct bpe_scratch *s);

/* Appends the tokens of a word of 1 or more bytes, in O(n log n). */
int bpe_encode_word(const struct bpe *b, const struct vocab *v, struct bpe_scratch *s,
                    const char *word, size_t bytes, struct token_list *out);

#endif
