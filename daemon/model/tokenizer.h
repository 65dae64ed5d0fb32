/* tokenizer.h: text to token ids and back, as the model's file describes it.
 *
 * Two kinds: byte-level BPE (tokenizer.ggml.model "gpt2") and SentencePiece BPE ("llama"). Text is
 * bytes: what is not UTF-8 is encoded as bytes too, and decoding gives the same bytes back.
 *
 * Ownership: a tokenizer copies what it needs; the gguf may be closed after tokenizer_new().
 * Threads: immutable after tokenizer_new(), so any number may encode and decode at once. A
 * detokenizer belongs to one sequence. */
#ifndef INFERD_MODEL_TOKENIZER_H
#define INFERD_MODEL_TOKENIZER_H

#include "base/report.h"
#include "model/gguf.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Longest spelling of one token that is taken from a file: three times the longest in use. */
#define TOKENIZER_TOKEN_BYTES_MAX 1024
/* Room that tokenizer_piece() and detokenizer_push() never exceed: every byte of a token may turn
 * into a three-byte U+FFFD, after three bytes that were held back. */
#define TOKENIZER_PUSH_ROOM (3 * TOKENIZER_TOKEN_BYTES_MAX + 16)
/* Longest text of one encode: an int32_t position for each byte, with room for queue entries. */
#define TOKENIZER_TEXT_MAX (256u << 20)

struct tokenizer;

/* MODEL_UNSUPPORTED for a kind or pre-tokenizer that is not known, naming the known ones;
 * MODEL_FORMAT for a vocabulary that contradicts itself. */
int tokenizer_new(const struct gguf *g, struct tokenizer **ret, struct report *report);
void tokenizer_free(struct tokenizer *t);
/* Memory that it holds. */
size_t tokenizer_bytes(const struct tokenizer *t);

/* A growing list of ids; zeroed is empty. */
struct token_list {
    int32_t *ids;
    size_t n, room;
};

int token_list_push(struct token_list *l, int32_t id);
void token_list_free(struct token_list *l);

struct text_span {
    size_t offset, bytes;
};

enum tokenizer_encode_flags {
    TOKENIZER_ADD_BOS = 1,       /* the beginning-of-text token, if the file asks for it */
    TOKENIZER_PARSE_SPECIAL = 2, /* special tokens named in the text become their ids */
};

/* Appends the ids of the text. With PARSE_SPECIAL, control tokens are not recognised where they
 * touch one of the n_plain spans (ascending, disjoint, within the text), so that the content of a
 * chat message cannot smuggle markup. User-defined tokens, which are text, are always recognised;
 * of several that begin at one place the longest wins.
 * -ENOMEM, -E2BIG over TOKENIZER_TEXT_MAX; `out` keeps what it had, perhaps more after it. */
int tokenizer_encode(const struct tokenizer *t, const char *text, size_t bytes, unsigned flags,
                     const struct text_span *plain, size_t n_plain, struct token_list *out);

uint32_t tokenizer_n_tokens(const struct tokenizer *t);
/* -1: the file names none. */
int32_t tokenizer_bos(const struct tokenizer *t);
int32_t tokenizer_eos(const struct tokenizer *t);
bool tokenizer_add_bos(const struct tokenizer *t);
/* Does an answer end here? The file's eos, eot and eom, and the known end-of-turn tokens. */
bool tokenizer_is_end(const struct tokenizer *t, int32_t id);
const int32_t *tokenizer_end_tokens(const struct tokenizer *t, size_t *ret_n);
/* For a person: "gpt2 (qwen2)". */
const char *tokenizer_model_name(const struct tokenizer *t);

enum tokenizer_decode_flags {
    TOKENIZER_SHOW_SPECIAL = 1, /* control tokens appear by name; otherwise they are silent */
};

/* The raw bytes of one token, which may be a part of a character. Returns how many bytes it has;
 * nothing is written when that is more than `room`. 0 for an id outside of the vocabulary. */
size_t tokenizer_piece(const struct tokenizer *t, int32_t id, unsigned flags, char *ret,
                       size_t room);

/* Streaming: what comes out is always valid UTF-8, in whole characters. */
struct detokenizer {
    const struct tokenizer *tokenizer;
    unsigned flags;
    bool strip_space; /* the next text token loses SentencePiece's leading space */
    uint8_t n_held;   /* bytes of an unfinished character */
    uint8_t held[4];
};

/* at_start: this is the beginning of a text, whose first space SentencePiece added. */
void detokenizer_init(struct detokenizer *d, const struct tokenizer *t, unsigned flags,
                      bool at_start);
/* The text that became complete with this token. Bytes that are no UTF-8 come out as U+FFFD. room
 * is at least TOKENIZER_PUSH_ROOM. */
size_t detokenizer_push(struct detokenizer *d, int32_t id, char *ret, size_t room);
/* The end of the stream: an unfinished character comes out as U+FFFD. */
size_t detokenizer_flush(struct detokenizer *d, char *ret, size_t room);

#endif
