/* detokenizer.c: ids to text, see tokenizer.h.
 *
 * A token's bytes may end in the middle of a character, and a model may produce bytes that are no
 * UTF-8 at all. The stream holds back at most three bytes, those that begin a character and may
 * still be completed. Each maximal run that begins a character but cannot be completed, and each
 * byte that begins none, becomes one U+FFFD, as Unicode recommends.
 *
 * Threads: a detokenizer belongs to its sequence. */
#include "model/tokenizer_private.h"
#include "model/utf8.h"

#include <assert.h>
#include <string.h>

size_t tokenizer_piece(const struct tokenizer *t, int32_t id, unsigned flags, char *ret,
                       size_t room)
{
    if (id < 0 || (uint32_t)id >= t->vocab.n_tokens)
        return 0;
    size_t bytes;
    const char *text = vocab_text(&t->vocab, (uint32_t)id, &bytes);
    if (vocab_is_control(&t->vocab, (uint32_t)id) && !(flags & TOKENIZER_SHOW_SPECIAL))
        return 0;
    char byte;
    bool may_be_byte = t->vocab.types[id] == TOKEN_BYTE || !t->vocab.typed;
    if (t->kind == TOKENIZER_SPM && may_be_byte && spm_byte(text, bytes) >= 0) {
        byte = (char)spm_byte(text, bytes);
        text = &byte;
        bytes = 1;
    }
    if (bytes > 0 && bytes <= room)
        memcpy(ret, text, bytes);
    return bytes;
}

void detokenizer_init(struct detokenizer *d, const struct tokenizer *t, unsigned flags,
                      bool at_start)
{
    *d = (struct detokenizer){.tokenizer = t, .flags = flags};
    d->strip_space = at_start && t->kind == TOKENIZER_SPM && t->add_space_prefix;
}

static size_t put_replacement(char *to)
{
    memcpy(to, "\xef\xbf\xbd", 3);
    return 3;
}

/* Takes one byte; returns how many bytes it made certain, at most 6. */
static size_t push_byte(struct detokenizer *d, char byte, char *to)
{
    size_t n = 0, need;
    d->held[d->n_held++] = (uint8_t)byte;
    size_t have = utf8_prefix((const char *)d->held, d->n_held, &need);
    if (d->n_held > 1 && have < d->n_held) { /* it does not go on what was held */
        n = put_replacement(to);
        d->held[0] = (uint8_t)byte;
        d->n_held = 1;
        have = utf8_prefix(&byte, 1, &need);
    }
    if (need == 0) {
        n += put_replacement(to + n);
        d->n_held = 0;
    } else if (have == need) {
        memcpy(to + n, d->held, need);
        n += need;
        d->n_held = 0;
    }
    return n;
}

size_t detokenizer_push(struct detokenizer *d, int32_t id, char *ret, size_t room)
{
    char piece[TOKENIZER_TOKEN_BYTES_MAX];
    assert(room >= TOKENIZER_PUSH_ROOM);
    size_t bytes = tokenizer_piece(d->tokenizer, id, d->flags, piece, sizeof piece);
    assert(bytes <= sizeof piece);
    size_t from = 0, n = 0;
    if (d->strip_space && bytes > 0) {
        from = piece[0] == ' ';
        d->strip_space = false;
    }
    for (size_t i = from; i < bytes; i++)
        n += push_byte(d, piece[i], ret + n);
    assert(n <= room);
    return n;
}

size_t detokenizer_flush(struct detokenizer *d, char *ret, size_t room)
{
    if (d->n_held == 0)
        return 0;
    assert(room >= 3);
    d->n_held = 0;
    return put_replacement(ret);
}
