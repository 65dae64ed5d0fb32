/* spm.c: see spm.h.
 *
 * Symbols are slices of the text, at first its characters. Two neighbours may merge when their
 * bytes together are a token; the best score goes first, the leftmost among equals. Scores are
 * turned into unsigned ranks of the same order once, so that a queue entry is one 64-bit number,
 * as for byte-level BPE (see merge_queue.h). What ends as no token falls back to its bytes.
 *
 * SentencePiece knows no words: a whole text is one run of symbols. But in most vocabularies a
 * space occurs only where a token begins (or in tokens of spaces alone). Then no merge crosses the
 * border before a space that follows another character, and the text is cut there, which keeps
 * the queue short. Whether that holds is looked up in the vocabulary, once.
 *
 * A queue entry is stale when the symbol at its position is gone, or when its pair has another rank
 * by now. A pair that changed and kept its rank (equal scores) is merged as the new pair that it
 * is, which is what its own entry would do.
 *
 * The vocabulary spells a space as a space (vocab.h), so U+2581 in the text becomes one too. */
#include "model/spm.h"

#include "model/utf8.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

struct spm_symbol {
    uint32_t start, bytes; /* bytes 0: swallowed */
    uint32_t id;           /* VOCAB_NONE: no token */
    uint32_t next, previous;
    uint32_t rank, merged; /* of the pair with the next; merged VOCAB_NONE: there is none */
};

/* ---- reading --------------------------------------------------------------------------------- */

int spm_byte(const char *text, size_t bytes)
{
    static const char digits[] = "0123456789ABCDEF";
    if (bytes != 6 || memcmp(text, "<0x", 3) != 0 || text[5] != '>' || text[3] == 0 || text[4] == 0)
        return -1;
    const char *high = strchr(digits, text[3]);
    const char *low = strchr(digits, text[4]);
    return high != NULL && low != NULL ? (int)((high - digits) * 16 + (low - digits)) : -1;
}

/* Larger scores get smaller ranks; equal scores equal ones. */
static uint32_t score_rank(float score)
{
    uint32_t bits;
    score += 0.0f; /* -0 is 0 */
    memcpy(&bits, &score, sizeof bits);
    return bits & 0x80000000u ? bits : 0x7fffffffu - bits;
}

static int read_scores(struct spm *s, const struct vocab *v, const struct gguf *g,
                       struct report *report)
{
    uint64_t n;
    if (!gguf_get_array(g, "tokenizer.ggml.scores", GGUF_FLOAT32, &n) || n != v->n_tokens)
        return report_fail(report, INFER_E_MODEL_FORMAT,
                           "tokenizer.ggml.scores has no score for each of %u tokens", v->n_tokens);
    s->ranks = malloc((size_t)v->n_tokens * sizeof *s->ranks);
    if (s->ranks == NULL)
        return report_fail(report, INFER_E_OUT_OF_MEMORY, "no memory for the vocabulary");
    const char *raw = gguf_array_data(g, "tokenizer.ggml.scores");
    for (uint32_t i = 0; i < v->n_tokens; i++) {
        float score;
        memcpy(&score, raw + 4 * (size_t)i, 4);
        if (isnan(score))
            return report_fail(report, INFER_E_MODEL_FORMAT,
                               "tokenizer.ggml.scores: the score of token %u is no number", i);
        s->ranks[i] = score_rank(score);
    }
    return 0;
}

static bool space_after_character(const char *text, size_t bytes)
{
    for (size_t i = 1; i < bytes; i++)
        if (text[i] == ' ' && text[i - 1] != ' ')
            return true;
    return false;
}

static int find_bytes(struct spm *s, const struct vocab *v, struct report *report)
{
    for (unsigned i = 0; i < 256; i++) {
        char byte = (char)i;
        uint32_t id = vocab_find(v, &byte, 1);
        s->byte_ids[i] = id != VOCAB_NONE ? id : s->unknown;
    }
    s->cut_at_spaces = true;
    for (uint32_t i = 0; i < v->n_tokens; i++) {
        size_t bytes;
        const char *text = vocab_text(v, i, &bytes);
        int byte = spm_byte(text, bytes);
        if (byte >= 0 && (v->types[i] == TOKEN_BYTE || !v->typed))
            s->byte_ids[byte] = i;
        if (!vocab_is_control(v, i) && space_after_character(text, bytes))
            s->cut_at_spaces = false;
    }
    for (unsigned i = 0; i < 256; i++)
        if (s->byte_ids[i] == VOCAB_NONE)
            return report_fail(report, INFER_E_MODEL_FORMAT,
                               "the vocabulary has neither a token <0x%02X> nor an unknown token",
                               i);
    return 0;
}

int spm_init(struct spm *s, const struct vocab *v, const struct gguf *g, uint32_t unknown,
             struct report *report)
{
    memset(s, 0, sizeof *s);
    s->unknown = unknown;
    int r = read_scores(s, v, g, report);
    if (r == 0)
        r = find_bytes(s, v, report);
    if (r < 0)
        spm_done(s);
    return r;
}

void spm_done(struct spm *s)
{
    free(s->ranks);
    memset(s, 0, sizeof *s);
}

void spm_scratch_done(struct spm_scratch *s)
{
    free(s->queue.keys);
    free(s->symbols);
    free(s->text);
    memset(s, 0, sizeof *s);
}

/* ---- encoding -------------------------------------------------------------------------------- */

static bool renew_pair(const struct spm *s, const struct vocab *v, const char *text,
                       struct spm_symbol *symbols, uint32_t at)
{
    struct spm_symbol *left = &symbols[at];
    left->merged = VOCAB_NONE;
    if (left->next == VOCAB_NONE)
        return false;
    size_t bytes = (size_t)left->bytes + symbols[left->next].bytes;
    if (bytes > v->longest)
        return false;
    uint32_t id = vocab_find(v, text + left->start, bytes);
    if (id == VOCAB_NONE)
        return false;
    left->merged = id;
    left->rank = s->ranks[id];
    return true;
}

static int merge_all(const struct spm *s, const struct vocab *v, const char *text,
                     struct spm_symbol *symbols, struct merge_queue *q)
{
    while (q->n > 0) {
        uint64_t key = merge_queue_pop(q);
        uint32_t at = (uint32_t)key;
        struct spm_symbol *left = &symbols[at];
        if (left->bytes == 0 || left->merged == VOCAB_NONE || left->rank != (uint32_t)(key >> 32))
            continue;
        struct spm_symbol *right = &symbols[left->next];
        left->bytes += right->bytes;
        left->id = left->merged;
        left->next = right->next;
        right->bytes = 0;
        if (left->next != VOCAB_NONE)
            symbols[left->next].previous = at;
        if (renew_pair(s, v, text, symbols, at) &&
            merge_queue_push(q, merge_key(left->rank, at)) < 0)
            return -ENOMEM;
        uint32_t before = left->previous;
        if (before != VOCAB_NONE && renew_pair(s, v, text, symbols, before) &&
            merge_queue_push(q, merge_key(symbols[before].rank, before)) < 0)
            return -ENOMEM;
    }
    return 0;
}

static int emit(const struct spm *s, const char *text, const struct spm_symbol *symbol,
                struct token_list *out)
{
    if (symbol->id != VOCAB_NONE)
        return token_list_push(out, (int32_t)symbol->id);
    int r = 0;
    for (uint32_t i = 0; i < symbol->bytes && r == 0; i++)
        r = token_list_push(out, (int32_t)s->byte_ids[(unsigned char)text[symbol->start + i]]);
    return r;
}

/* Symbols for the characters of a run; returns how many. There is room for `bytes`. */
static uint32_t cut_characters(const struct vocab *v, const char *text, size_t bytes,
                               struct spm_symbol *symbols)
{
    uint32_t n = 0;
    for (size_t at = 0; at < bytes; n++) {
        size_t length = utf8_character(text + at, bytes - at);
        length = length > 0 ? length : 1;
        symbols[n] = (struct spm_symbol){.start = (uint32_t)at,
                                         .bytes = (uint32_t)length,
                                         .id = vocab_find(v, text + at, length),
                                         .next = n + 1,
                                         .previous = n == 0 ? VOCAB_NONE : n - 1};
        at += length;
    }
    symbols[n - 1].next = VOCAB_NONE;
    return n;
}

static int encode_run(const struct spm *s, const struct vocab *v, struct spm_scratch *scratch,
                      const char *text, size_t bytes, struct token_list *out)
{
    if (bytes > scratch->symbols_room) {
        free(scratch->symbols);
        scratch->symbols_room = 0;
        scratch->symbols = malloc(bytes * sizeof *scratch->symbols);
        if (scratch->symbols == NULL)
            return -ENOMEM;
        scratch->symbols_room = bytes;
    }
    struct spm_symbol *symbols = scratch->symbols;
    struct merge_queue *q = &scratch->queue;
    uint32_t n = cut_characters(v, text, bytes, symbols);
    if (merge_queue_reserve(q, n) < 0)
        return -ENOMEM;
    q->n = 0;
    for (uint32_t i = 0; i < n; i++)
        if (renew_pair(s, v, text, symbols, i))
            q->keys[q->n++] = merge_key(symbols[i].rank, i);
    merge_queue_heapify(q);
    int r = merge_all(s, v, text, symbols, q);
    for (uint32_t i = 0; i != VOCAB_NONE && r == 0; i = symbols[i].next)
        r = emit(s, text, &symbols[i], out);
    return r;
}

/* The text as the vocabulary spells it, in scratch memory. */
static int spell(struct spm_scratch *scratch, const char *text, size_t bytes, bool prefix,
                 size_t *ret_bytes)
{
    if (bytes + 1 > scratch->text_room) {
        free(scratch->text);
        scratch->text_room = 0;
        scratch->text = malloc(bytes + 1);
        if (scratch->text == NULL)
            return -ENOMEM;
        scratch->text_room = bytes + 1;
    }
    char *to = scratch->text;
    if (prefix)
        *to++ = ' ';
    for (size_t i = 0; i < bytes; i++) {
        if (text[i] == '\xe2' && bytes - i >= 3 && memcmp(text + i, "\xe2\x96\x81", 3) == 0) {
            *to++ = ' ';
            i += 2;
        } else {
            *to++ = text[i];
        }
    }
    *ret_bytes = (size_t)(to - scratch->text);
    return 0;
}

int spm_encode(const struct spm *s, const struct vocab *v, struct spm_scratch *scratch,
               const char *text, size_t bytes, bool prefix, struct token_list *out)
{
    size_t n;
    if (bytes == 0)
        return 0;
    if (bytes > TOKENIZER_TEXT_MAX)
        return -E2BIG;
    int r = spell(scratch, text, bytes, prefix, &n);
    for (size_t at = 0; at < n && r == 0;) {
        size_t end = n;
        if (s->cut_at_spaces) {
            end = at + 1;
            while (end < n && !(scratch->text[end] == ' ' && scratch->text[end - 1] != ' '))
                end++;
        }
        r = encode_run(s, v, scratch, scratch->text + at, end - at, out);
        at = end;
    }
    return r;
}
