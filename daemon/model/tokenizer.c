/* tokenizer.c: see tokenizer.h. Puts the parts together: vocab.c holds the strings, specials.c
 * finds the tokens that text may name, pretokenizer.c and bpe.c or spm.c encode what lies between
 * them.
 *
 * Invariants: every id in end_tokens, bos and eos is below n_tokens; struct tokenizer is never
 * written after tokenizer_new(). Threads: any, see the header. Limits: vocab.c, bpe.c. */
#include "model/tokenizer.h"

#include "model/bpe.h"
#include "model/pretokenizer.h"
#include "model/specials.h"
#include "model/spm.h"
#include "model/tokenizer_private.h"
#include "model/vocab.h"

#include <ctype.h>
#include <errno.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int token_list_push(struct token_list *l, int32_t id)
{
    if (l->n == l->room) {
        size_t room = l->room > 0 ? l->room + l->room / 2 : 64;
        int32_t *ids = realloc(l->ids, room * sizeof *ids);
        if (ids == NULL)
            return -ENOMEM;
        l->ids = ids;
        l->room = room;
    }
    l->ids[l->n++] = id;
    return 0;
}

void token_list_free(struct token_list *l)
{
    free(l->ids);
    memset(l, 0, sizeof *l);
}

/* ---- reading --------------------------------------------------------------------------------- */

/* Control tokens with these names end an answer, whatever else the file says. */
static const char *const end_names[] = {
    "<|endoftext|>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|end|>",
    "<end_of_turn>",
    "</s>",
    "<|return|>",
    "<|END_OF_TURN_TOKEN|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|EOT|>",
    "<|call|>",
    "<turn|>",
    "<end_of_utterance>",
    "<｜end▁of▁sentence｜>",
};

static bool names_end(const char *text, size_t bytes)
{
    for (size_t i = 0; i < sizeof end_names / sizeof end_names[0]; i++)
        if (strlen(end_names[i]) == bytes && memcmp(end_names[i], text, bytes) == 0)
            return true;
    return false;
}

static bool string_is(struct gguf_string s, const char *text)
{
    return s.bytes == strlen(text) && memcmp(s.data, text, s.bytes) == 0;
}

/* A key that names a token; `otherwise` when it is absent or out of the vocabulary. Files write
 * 2^32-1 for "none". */
static uint32_t token_key(const struct tokenizer *t, const struct gguf *g, const char *key,
                          uint32_t otherwise)
{
    uint32_t id = otherwise;
    gguf_get_u32(g, key, &id);
    return id < t->vocab.n_tokens ? id : VOCAB_NONE;
}

static int add_end(struct tokenizer *t, uint32_t id)
{
    for (size_t i = 0; i < t->ends.n; i++)
        if (t->ends.ids[i] == (int32_t)id)
            return 0;
    return id == VOCAB_NONE ? 0 : token_list_push(&t->ends, (int32_t)id);
}

static int read_ends(struct tokenizer *t, const struct gguf *g)
{
    int r = add_end(t, t->eos);
    if (r == 0)
        r = add_end(t, token_key(t, g, "tokenizer.ggml.eot_token_id", VOCAB_NONE));
    if (r == 0)
        r = add_end(t, token_key(t, g, "tokenizer.ggml.eom_token_id", VOCAB_NONE));
    for (uint32_t i = 0; i < t->vocab.n_tokens && r == 0; i++) {
        size_t bytes;
        const char *text = vocab_text(&t->vocab, i, &bytes);
        bool may = t->vocab.types[i] == TOKEN_CONTROL || !t->vocab.typed;
        if (may && bytes > 0 && (text[0] == '<' || text[0] == '[' || text[0] == '_') &&
            names_end(text, bytes))
            r = add_end(t, i);
    }
    return r;
}

static bool contains_ignoring_case(struct gguf_string s, const char *part)
{
    size_t n = strlen(part);
    for (size_t i = 0; i + n <= s.bytes; i++)
        if (strncasecmp(s.data + i, part, n) == 0)
            return true;
    return false;
}

/* Phi-3's tokens swallow the white space behind them; the file format has no place to say so. */
static bool swallows_space(const struct gguf *g)
{
    struct gguf_string name;
    return gguf_get_string(g, "general.name", &name) &&
           (contains_ignoring_case(name, "phi-3") || contains_ignoring_case(name, "phi3"));
}

static bool is_special(const void *context, uint32_t id)
{
    const struct tokenizer *t = context;
    size_t bytes;
    const char *text = vocab_text(&t->vocab, id, &bytes);
    if (bytes == 0)
        return false;
    if (vocab_is_control(&t->vocab, id))
        return true;
    /* A user-defined token of spaces is spelt with U+2581, which no text is; merging finds it. */
    return t->vocab.types[id] == TOKEN_USER_DEFINED &&
           (t->kind == TOKENIZER_BPE || memchr(text, ' ', bytes) == NULL);
}

static int init_bpe(struct tokenizer *t, const struct gguf *g, struct report *report)
{
    struct gguf_string pre = {"default", 7};
    gguf_get_string(g, "tokenizer.ggml.pre", &pre);
    t->kind = TOKENIZER_BPE;
    int r = pretokenizer_new(pre.data, pre.bytes, &t->pretokenizer, report);
    if (r == 0)
        r = vocab_init(&t->vocab, g, VOCAB_BYTE_LEVEL, report);
    if (r == 0)
        r = bpe_init(&t->bpe, &t->vocab, g, report);
    if (r < 0)
        return r;
    t->bos = token_key(t, g, "tokenizer.ggml.bos_token_id", VOCAB_NONE);
    t->eos = token_key(t, g, "tokenizer.ggml.eos_token_id", VOCAB_NONE);
    t->bpe.unknown = token_key(t, g, "tokenizer.ggml.unknown_token_id", VOCAB_NONE);
    t->add_bos = pretokenizer_add_bos(t->pretokenizer);
    snprintf(t->name, sizeof t->name, "gpt2 (%s)", pretokenizer_name(t->pretokenizer));
    return 0;
}

static int init_spm(struct tokenizer *t, const struct gguf *g, struct report *report)
{
    t->kind = TOKENIZER_SPM;
    int r = vocab_init(&t->vocab, g, VOCAB_SENTENCEPIECE, report);
    if (r < 0)
        return r;
    t->bos = token_key(t, g, "tokenizer.ggml.bos_token_id", 1);
    t->eos = token_key(t, g, "tokenizer.ggml.eos_token_id", 2);
    t->add_bos = true;
    t->add_space_prefix = true;
    gguf_get_bool(g, "tokenizer.ggml.add_space_prefix", &t->add_space_prefix);
    snprintf(t->name, sizeof t->name, "llama");
    return spm_init(&t->spm, &t->vocab, g, token_key(t, g, "tokenizer.ggml.unknown_token_id", 0),
                    report);
}

static int init(struct tokenizer *t, const struct gguf *g, struct report *report)
{
    struct gguf_string model;
    if (!gguf_get_string(g, "tokenizer.ggml.model", &model))
        return report_fail(report, INFER_E_MODEL_FORMAT,
                           "the file has no tokenizer (tokenizer.ggml.model)");
    int r;
    if (string_is(model, "gpt2"))
        r = init_bpe(t, g, report);
    else if (string_is(model, "llama"))
        r = init_spm(t, g, report);
    else
        r = report_fail(report, INFER_E_MODEL_UNSUPPORTED,
                        "the tokenizer '%.*s' (tokenizer.ggml.model) is not known; known are: "
                        "gpt2 llama",
                        model.bytes < 40 ? (int)model.bytes : 40, model.data);
    if (r < 0)
        return r;
    gguf_get_bool(g, "tokenizer.ggml.add_bos_token", &t->add_bos);
    t->swallow_space = swallows_space(g);
    if (read_ends(t, g) < 0 || specials_init(&t->specials, &t->vocab, is_special, t) < 0)
        return report_fail(report, INFER_E_OUT_OF_MEMORY, "no memory for the vocabulary");
    return 0;
}

int tokenizer_new(const struct gguf *g, struct tokenizer **ret, struct report *report)
{
    struct tokenizer *t = calloc(1, sizeof *t);
    if (t == NULL)
        return report_fail(report, INFER_E_OUT_OF_MEMORY, "no memory for the tokenizer");
    int r = init(t, g, report);
    if (r < 0) {
        tokenizer_free(t);
        return r;
    }
    *ret = t;
    return 0;
}

size_t tokenizer_bytes(const struct tokenizer *t)
{
    const struct vocab *v = &t->vocab;
    return malloc_usable_size((void *)(uintptr_t)t) + malloc_usable_size(v->offsets) +
           malloc_usable_size(v->bytes) + malloc_usable_size(v->types) +
           malloc_usable_size(v->slots) + malloc_usable_size(t->specials.ids) +
           malloc_usable_size(t->bpe.merges) + malloc_usable_size(t->spm.ranks) +
           malloc_usable_size(t->ends.ids) + pretokenizer_bytes(t->pretokenizer);
}

void tokenizer_free(struct tokenizer *t)
{
    if (t == NULL)
        return;
    specials_done(&t->specials);
    spm_done(&t->spm);
    bpe_done(&t->bpe);
    vocab_done(&t->vocab);
    pretokenizer_free(t->pretokenizer);
    token_list_free(&t->ends);
    free(t);
}

/* ---- encoding -------------------------------------------------------------------------------- */

struct encoding {
    const struct tokenizer *tokenizer;
    struct token_list *out;
    struct bpe_scratch bpe;
    struct spm_scratch spm;
    bool after_special; /* SentencePiece puts a space before the next text */
};

static int encode_word(void *context, const char *word, size_t bytes)
{
    struct encoding *e = context;
    const struct tokenizer *t = e->tokenizer;
    if (pretokenizer_whole_words(t->pretokenizer)) {
        uint32_t id = vocab_find(&t->vocab, word, bytes);
        if (id < t->vocab.n_tokens)
            return token_list_push(e->out, (int32_t)id);
    }
    return bpe_encode_word(&t->bpe, &t->vocab, &e->bpe, word, bytes, e->out);
}

/* Text without special tokens. */
static int encode_text(struct encoding *e, const char *text, size_t bytes)
{
    const struct tokenizer *t = e->tokenizer;
    if (bytes == 0)
        return 0;
    if (t->kind == TOKENIZER_BPE)
        return pretokenizer_split(t->pretokenizer, text, bytes, encode_word, e);
    bool prefix = t->add_space_prefix && e->after_special;
    e->after_special = false;
    return spm_encode(&t->spm, &t->vocab, &e->spm, text, bytes, prefix, e->out);
}

/* Where the text goes on behind a special token. */
static size_t skip_swallowed(const struct tokenizer *t, uint32_t id, const char *text, size_t bytes,
                             size_t at)
{
    static const char *const exempt[] = {"<unk>", "<s>", "<|endoftext|>"};
    size_t n;
    const char *name = vocab_text(&t->vocab, id, &n);
    for (size_t i = 0; i < 3; i++)
        if (strlen(exempt[i]) == n && memcmp(exempt[i], name, n) == 0)
            return at;
    while (at < bytes && (text[at] == ' ' || (text[at] >= '\t' && text[at] <= '\r')))
        at++;
    return at;
}

static int encode_all(struct encoding *e, const char *text, size_t bytes, unsigned flags,
                      const struct text_span *plain, size_t n_plain)
{
    const struct tokenizer *t = e->tokenizer;
    bool control = (flags & TOKENIZER_PARSE_SPECIAL) != 0;
    size_t at = 0, next_plain = 0;
    int r = 0;
    if ((flags & TOKENIZER_ADD_BOS) && t->add_bos && t->bos != VOCAB_NONE)
        r = token_list_push(e->out, (int32_t)t->bos);
    while (at < bytes && r == 0) {
        struct special_match m = {.offset = bytes};
        bool found = specials_find(&t->specials, &t->vocab, text, bytes, at, control, plain,
                                   n_plain, &next_plain, &m);
        r = encode_text(e, text + at, m.offset - at);
        if (!found || r < 0)
            break;
        r = token_list_push(e->out, (int32_t)m.id);
        e->after_special = true;
        at = m.offset + m.bytes;
        if (t->swallow_space)
            at = skip_swallowed(t, m.id, text, bytes, at);
    }
    return r;
}

int tokenizer_encode(const struct tokenizer *t, const char *text, size_t bytes, unsigned flags,
                     const struct text_span *plain, size_t n_plain, struct token_list *out)
{
    if (bytes > TOKENIZER_TEXT_MAX)
        return -E2BIG;
    struct encoding e = {.tokenizer = t, .out = out, .after_special = true};
    int r = encode_all(&e, text, bytes, flags, plain, n_plain);
    bpe_scratch_done(&e.bpe);
    spm_scratch_done(&e.spm);
    return r;
}

/* ---- questions ------------------------------------------------------------------------------- */

uint32_t tokenizer_n_tokens(const struct tokenizer *t)
{
    return t->vocab.n_tokens;
}

int32_t tokenizer_bos(const struct tokenizer *t)
{
    return t->bos == VOCAB_NONE ? -1 : (int32_t)t->bos;
}

int32_t tokenizer_eos(const struct tokenizer *t)
{
    return t->eos == VOCAB_NONE ? -1 : (int32_t)t->eos;
}

bool tokenizer_add_bos(const struct tokenizer *t)
{
    return t->add_bos && t->bos != VOCAB_NONE;
}

bool tokenizer_is_end(const struct tokenizer *t, int32_t id)
{
    for (size_t i = 0; i < t->ends.n; i++)
        if (t->ends.ids[i] == id)
            return true;
    return false;
}

const int32_t *tokenizer_end_tokens(const struct tokenizer *t, size_t *ret_n)
{
    *ret_n = t->ends.n;
    return t->ends.ids;
}

const char *tokenizer_model_name(const struct tokenizer *t)
{
    return t->name;
}
