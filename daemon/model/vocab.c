/* vocab.c: see vocab.h.
 *
 * Owns one block of text, its offsets, the types and an open-addressing table of 8-byte slots. The
 * table never holds more than two thirds of its slots. A hostile file could choose strings that
 * collide; a probe sequence longer than PROBES_MAX refuses the file instead of crawling.
 *
 * Limits: INFER_VOCAB_MAX tokens, TOKENIZER_TOKEN_BYTES_MAX bytes each, all text under 1 GiB. */
#include "model/vocab.h"

#include "model/tokenizer.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define PROBES_MAX     4096u
#define TEXT_BYTES_MAX (1u << 30)

/* ---- byte-level BPE's alphabet ---------------------------------------------------------------
 * Bytes that print in Latin-1 stand for themselves, the other 68 for U+0100 onwards in order. */

static bool stands_for_itself(unsigned byte)
{
    return (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
}

/* The byte a code point of the alphabet stands for, or -1. */
static int alphabet_byte(unsigned code)
{
    if (code < 256)
        return stands_for_itself(code) ? (int)code : -1;
    unsigned k = code - 256;
    if (k < 33)
        return (int)k; /* 0 .. 32 */
    if (k < 33 + 34)
        return (int)(k - 33 + 127); /* 127 .. 160 */
    return k == 67 ? 173 : -1;
}

size_t vocab_decode_bytes(const char *text, size_t bytes, char *ret)
{
    size_t n = 0;
    for (size_t i = 0; i < bytes; i++) {
        unsigned char c = (unsigned char)text[i];
        int byte = -1;
        if (c > 32 && c < 127) { /* most of them */
            byte = c;
        } else if (c < 0x80) {
            byte = alphabet_byte(c);
        } else if ((c & 0xe0) == 0xc0 && i + 1 < bytes &&
                   ((unsigned char)text[i + 1] & 0xc0) == 0x80) {
            byte = alphabet_byte((c & 0x1fu) << 6 | ((unsigned char)text[i + 1] & 0x3fu));
            i += byte >= 0;
        }
        ret[n++] = byte >= 0 ? (char)byte : (char)c; /* foreign characters stay as they are */
    }
    return n;
}

/* SentencePiece writes a space as U+2581. */
static size_t decode_spaces(const char *text, size_t bytes, char *ret)
{
    size_t n = 0;
    for (size_t i = 0; i < bytes; i++) {
        if (i + 2 < bytes && memcmp(text + i, "\xe2\x96\x81", 3) == 0) {
            ret[n++] = ' ';
            i += 2;
        } else {
            ret[n++] = text[i];
        }
    }
    return n;
}

/* ---- strings to ids -------------------------------------------------------------------------- */

uint64_t vocab_hash(const char *p, size_t n)
{
    uint64_t h = 0x9e3779b97f4a7c15u ^ n;
    uint64_t x;
    for (; n >= 8; p += 8, n -= 8) {
        memcpy(&x, p, 8);
        h = vocab_mix(h ^ x, 0xd6e8feb86659fd93u);
    }
    x = 0;
    for (size_t i = 0; i < n; i++)
        x |= (uint64_t)(unsigned char)p[i] << (8 * i);
    return vocab_mix(h ^ x, 0xa0761d6478bd642fu);
}

static bool same_text(const struct vocab *v, uint32_t id, const char *text, size_t bytes)
{
    size_t n;
    const char *own = vocab_text(v, id, &n);
    return n == bytes && memcmp(own, text, n) == 0;
}

uint32_t vocab_find(const struct vocab *v, const char *text, size_t bytes)
{
    return vocab_find_hashed(v, vocab_hash(text, bytes), text, bytes);
}

uint32_t vocab_find_hashed(const struct vocab *v, uint64_t h, const char *text, size_t bytes)
{
    uint32_t tag = (uint32_t)(h >> 32);
    for (uint32_t i = vocab_reduce((uint32_t)h, v->n_slots);; i = i + 1 == v->n_slots ? 0 : i + 1) {
        const struct vocab_slot *slot = &v->slots[i];
        if (slot->id == VOCAB_NONE)
            return VOCAB_NONE;
        if (slot->tag == tag && same_text(v, slot->id, text, bytes))
            return slot->id;
    }
}

/* Enters id under its text; a token that is there already gives way when `replace`. */
static int slots_enter(struct vocab *v, uint32_t id, bool replace)
{
    size_t bytes;
    const char *text = vocab_text(v, id, &bytes);
    uint64_t h = vocab_hash(text, bytes);
    uint32_t tag = (uint32_t)(h >> 32);
    uint32_t i = vocab_reduce((uint32_t)h, v->n_slots);
    for (uint32_t probes = 0; probes < PROBES_MAX; probes++) {
        struct vocab_slot *slot = &v->slots[i];
        if (slot->id == VOCAB_NONE) {
            *slot = (struct vocab_slot){tag, id};
            v->n_used++;
            return 0;
        }
        if (slot->tag == tag && same_text(v, slot->id, text, bytes)) {
            if (replace)
                slot->id = id;
            return 0;
        }
        i = i + 1 == v->n_slots ? 0 : i + 1;
    }
    return -E2BIG;
}

static int slots_resize(struct vocab *v, uint32_t n_slots)
{
    struct vocab_slot *slots = malloc((size_t)n_slots * sizeof *slots);
    if (slots == NULL)
        return -ENOMEM;
    memset(slots, 0xff, (size_t)n_slots * sizeof *slots);
    struct vocab_slot *old = v->slots;
    uint32_t n_old = v->n_slots;
    v->slots = slots;
    v->n_slots = n_slots;
    v->n_used = 0;
    int r = 0;
    for (uint32_t i = 0; i < n_old && r == 0; i++)
        if (old[i].id != VOCAB_NONE)
            r = slots_enter(v, old[i].id, false);
    free(old);
    return r;
}

int vocab_intern(struct vocab *v, const char *text, size_t bytes, uint32_t *ret_id)
{
    uint32_t id = vocab_find(v, text, bytes);
    if (id != VOCAB_NONE) {
        *ret_id = id;
        return 0;
    }
    if (v->n_symbols + 2 > v->symbols_room) {
        uint32_t room = v->symbols_room + v->symbols_room / 2 + 64;
        uint32_t *offsets = realloc(v->offsets, (size_t)room * sizeof *offsets);
        if (offsets == NULL)
            return -ENOMEM;
        v->offsets = offsets;
        v->symbols_room = room;
    }
    size_t used = v->offsets[v->n_symbols];
    if (used + bytes > TEXT_BYTES_MAX)
        return -E2BIG;
    if (used + bytes > v->bytes_room) {
        size_t room = used + bytes + v->bytes_room / 2;
        char *grown = realloc(v->bytes, room);
        if (grown == NULL)
            return -ENOMEM;
        v->bytes = grown;
        v->bytes_room = room;
    }
    memcpy(v->bytes + used, text, bytes);
    id = v->n_symbols++;
    v->offsets[id + 1] = (uint32_t)(used + bytes);
    int r = 0;
    if (v->n_used + 1 > v->n_slots / 3 * 2)
        r = slots_resize(v, v->n_slots + v->n_slots / 2 + 64);
    if (r == 0)
        r = slots_enter(v, id, false);
    if (r == 0)
        *ret_id = id;
    return r;
}

/* ---- reading --------------------------------------------------------------------------------- */

/* Names that are markup in every vocabulary that has them. Some files call them user-defined, which
 * would let plain text name them. */
static const char *const markup[] = {
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|end|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|START_OF_TURN_TOKEN|>",
    "<|END_OF_TURN_TOKEN|>",
};

static bool is_markup(const char *text, size_t bytes)
{
    for (size_t i = 0; i < sizeof markup / sizeof markup[0]; i++)
        if (strlen(markup[i]) == bytes && memcmp(markup[i], text, bytes) == 0)
            return true;
    return false;
}

static int read_types(struct vocab *v, const struct gguf *g, struct report *report)
{
    uint64_t n;
    memset(v->types, TOKEN_NORMAL, v->n_tokens);
    if (!gguf_get_array(g, "tokenizer.ggml.token_type", GGUF_INT32, &n) &&
        !gguf_get_array(g, "tokenizer.ggml.token_type", GGUF_UINT32, &n))
        return 0;
    if (n != v->n_tokens)
        return report_fail(report, INFER_E_MODEL_FORMAT,
                           "tokenizer.ggml.token_type has %llu entries for %u tokens",
                           (unsigned long long)n, v->n_tokens);
    const char *raw = gguf_array_data(g, "tokenizer.ggml.token_type");
    for (uint32_t i = 0; i < v->n_tokens; i++) {
        int32_t type;
        memcpy(&type, raw + 4 * (size_t)i, 4);
        if (type < 0 || type > TOKEN_BYTE)
            return report_fail(report, INFER_E_MODEL_FORMAT,
                               "tokenizer.ggml.token_type names type %d for token %u", type, i);
        v->types[i] = type == 0 ? TOKEN_NORMAL : (uint8_t)type;
    }
    v->typed = true;
    return 0;
}

static size_t read_text(struct vocab *v, uint32_t id, struct gguf_string s,
                        enum vocab_spelling spelling, char *to)
{
    bool markup_name = s.bytes > 0 && s.data[0] == '<' && is_markup(s.data, s.bytes);
    /* In SentencePiece's own place it is the end token; elsewhere it may be HTML. */
    if (spelling == VOCAB_SENTENCEPIECE && id < 3 && s.bytes == 4 && memcmp(s.data, "</s>", 4) == 0)
        markup_name = true;
    if (markup_name && (v->types[id] == TOKEN_USER_DEFINED || !v->typed))
        v->types[id] = TOKEN_CONTROL;
    uint8_t type = v->types[id];
    if (spelling == VOCAB_BYTE_LEVEL && (type == TOKEN_NORMAL || type == TOKEN_UNUSED))
        return vocab_decode_bytes(s.data, s.bytes, to);
    if (spelling == VOCAB_SENTENCEPIECE && type != TOKEN_CONTROL && type != TOKEN_UNKNOWN)
        return decode_spaces(s.data, s.bytes, to);
    memcpy(to, s.data, s.bytes);
    return s.bytes;
}

static int read_texts(struct vocab *v, const struct gguf *g, enum vocab_spelling spelling,
                      struct report *report)
{
    size_t used = 0;
    v->offsets[0] = 0;
    for (uint32_t i = 0; i < v->n_tokens; i++) {
        struct gguf_string s = gguf_array_string(g, "tokenizer.ggml.tokens", i);
        if (s.bytes > TOKENIZER_TOKEN_BYTES_MAX)
            return report_fail(
                report, INFER_E_MODEL_UNSUPPORTED,
                "tokenizer.ggml.tokens: token %u has %zu bytes; at most %d are taken", i, s.bytes,
                TOKENIZER_TOKEN_BYTES_MAX);
        if (used + s.bytes > v->bytes_room) {
            size_t room = v->bytes_room * 2 + s.bytes;
            char *grown = room <= TEXT_BYTES_MAX ? realloc(v->bytes, room) : NULL;
            if (grown == NULL)
                return report_fail(report, INFER_E_OUT_OF_MEMORY, "no memory for the vocabulary");
            v->bytes = grown;
            v->bytes_room = room;
        }
        size_t n = s.bytes > 0 ? read_text(v, i, s, spelling, v->bytes + used) : 0;
        used += n;
        v->offsets[i + 1] = (uint32_t)used;
        v->longest = n > v->longest ? (uint32_t)n : v->longest;
    }
    return 0;
}

/* Normal tokens win over user-defined ones of the same text, later ones over earlier. */
static int enter_all(struct vocab *v)
{
    for (int pass = 0; pass < 2; pass++) {
        for (uint32_t i = 0; i < v->n_tokens; i++) {
            bool normal = v->types[i] == TOKEN_NORMAL || v->types[i] == TOKEN_UNUSED;
            bool wanted = pass == 0 ? normal : v->types[i] == TOKEN_USER_DEFINED;
            if (!wanted || v->offsets[i + 1] == v->offsets[i])
                continue;
            int r = slots_enter(v, i, pass == 0);
            if (r < 0)
                return r;
        }
    }
    return 0;
}

int vocab_init(struct vocab *v, const struct gguf *g, enum vocab_spelling spelling,
               struct report *report)
{
    memset(v, 0, sizeof *v);
    uint64_t n;
    if (!gguf_get_array(g, "tokenizer.ggml.tokens", GGUF_STRING, &n) || n == 0)
        return report_fail(report, INFER_E_MODEL_FORMAT,
                           "the file has no vocabulary (tokenizer.ggml.tokens)");
    if (n > INFER_VOCAB_MAX)
        return report_fail(report, INFER_E_MODEL_UNSUPPORTED,
                           "the vocabulary has %llu tokens; at most %u are taken",
                           (unsigned long long)n, INFER_VOCAB_MAX);
    v->n_tokens = v->n_symbols = (uint32_t)n;
    v->symbols_room = v->n_tokens + 258;
    v->bytes_room = (size_t)n * 8;
    v->offsets = malloc((size_t)v->symbols_room * sizeof *v->offsets);
    v->bytes = malloc(v->bytes_room);
    v->types = malloc(v->n_tokens);
    int r = slots_resize(v, v->n_tokens / 2 * 3 + 512);
    if (r < 0 || v->offsets == NULL || v->bytes == NULL || v->types == NULL)
        r = report_fail(report, INFER_E_OUT_OF_MEMORY, "no memory for the vocabulary");
    else
        r = read_types(v, g, report);
    if (r == 0)
        r = read_texts(v, g, spelling, report);
    if (r == 0 && enter_all(v) < 0)
        r = report_fail(report, INFER_E_MODEL_FORMAT,
                        "tokenizer.ggml.tokens defeats the hash table");
    if (r < 0)
        vocab_done(v);
    return r;
}

void vocab_done(struct vocab *v)
{
    free(v->offsets);
    free(v->bytes);
    free(v->types);
    free(v->slots);
    memset(v, 0, sizeof *v);
}
