/* vocab.h: the strings of a vocabulary and the way from a string back to its id.
 *
 *   id      0 .. n_tokens-1 as the file numbers them; n_tokens .. n_symbols-1 are strings that only
 *           occur between two merges (some files merge through strings that are no tokens)
 *   text    raw bytes: byte-level BPE's printable alphabet is decoded, SentencePiece's U+2581 is a
 *           space; control and user-defined tokens as the file spells them
 *   find    from raw bytes to an id, for the tokens that ordinary text may become: control, unknown
 *           and byte tokens are never found, so that no text turns into one by merging
 *
 * May be used by daemon/model only. Threads: immutable once the tokenizer is built. */
#ifndef INFERD_MODEL_VOCAB_H
#define INFERD_MODEL_VOCAB_H

#include "base/report.h"
#include "model/gguf.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define VOCAB_NONE UINT32_MAX

enum token_type {
    TOKEN_NORMAL = 1,
    TOKEN_UNKNOWN = 2,
    TOKEN_CONTROL = 3,
    TOKEN_USER_DEFINED = 4,
    TOKEN_UNUSED = 5,
    TOKEN_BYTE = 6,
};

/* How the file spells ordinary tokens. */
enum vocab_spelling { VOCAB_BYTE_LEVEL, VOCAB_SENTENCEPIECE };

struct vocab_slot {
    uint32_t tag; /* upper half of the string's hash */
    uint32_t id;  /* VOCAB_NONE: free */
};

struct vocab {
    uint32_t n_tokens, n_symbols;
    uint32_t longest;  /* bytes of the longest token */
    bool typed;        /* the file has token types */
    uint32_t *offsets; /* n_symbols + 1, into bytes */
    char *bytes;
    uint8_t *types; /* n_tokens, enum token_type */
    struct vocab_slot *slots;
    uint32_t n_slots, n_used;
    uint32_t symbols_room;
    size_t bytes_room;
};

/* Reads tokenizer.ggml.tokens and token_type. */
int vocab_init(struct vocab *v, const struct gguf *g, enum vocab_spelling spelling,
               struct report *report);
void vocab_done(struct vocab *v);
/* The id of these bytes, or VOCAB_NONE. */
uint32_t vocab_find(const struct vocab *v, const char *text, size_t bytes);
/* The same in steps, for a caller with many look-ups at hand: hash, fetch the slot, then its text,
 * each while the others are on their way; then find. */
uint64_t vocab_hash(const char *text, size_t bytes);
uint32_t vocab_find_hashed(const struct vocab *v, uint64_t hash, const char *text, size_t bytes);
/* The same, adding a symbol that is no token when there is none. -ENOMEM, or -E2BIG when the file's
 * strings defeat the table. */
int vocab_intern(struct vocab *v, const char *text, size_t bytes, uint32_t *ret_id);
/* Decodes byte-level BPE's alphabet; room for `bytes` bytes at ret; returns how many. */
size_t vocab_decode_bytes(const char *text, size_t bytes, char *ret);

static inline const char *vocab_text(const struct vocab *v, uint32_t id, size_t *ret_bytes)
{
    *ret_bytes = v->offsets[id + 1] - v->offsets[id];
    return v->bytes + v->offsets[id];
}

/* Is this token one that only the caller's markup may name? */
static inline bool vocab_is_control(const struct vocab *v, uint32_t id)
{
    return v->types[id] == TOKEN_CONTROL || v->types[id] == TOKEN_UNKNOWN;
}

static inline uint64_t vocab_mix(uint64_t a, uint64_t b)
{
    unsigned __int128 product = (unsigned __int128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

/* A slot for a hash, without a division: tables need not be powers of two. */
static inline uint32_t vocab_reduce(uint32_t hash, uint32_t n)
{
    return (uint32_t)(((uint64_t)hash * n) >> 32);
}

static inline const struct vocab_slot *vocab_home(const struct vocab *v, uint64_t hash)
{
    return &v->slots[vocab_reduce((uint32_t)hash, v->n_slots)];
}

#endif
