/* pretokenizer.c: see pretokenizer.h.
 *
 * The expressions are facts of the published tokenizers, written here once by their shape. Two
 * things differ from how their authors spell them, without changing what they match:
 *   - \s is spelt out as the characters with the property White_Space, for PCRE2's own \s also
 *     takes U+180E;
 *   - what would make a search quadratic is anchored: \s+$ becomes (?<!\s)\s++\z, because a search
 *     for it would otherwise begin again at each space of a long run.
 * Letters that Unicode assigned after version 14, which PCRE2 10.42 knows, are named beside \p{L}.
 *
 * Text that is no UTF-8 is kept from PCRE2: the text is cut at invalid bytes first, so matching
 * never checks again what it was given (a check at each call would be quadratic). Then every byte
 * is looked at a bounded number of times per expression.
 *
 * Machine code is used where the kernel permits it (a W^X policy does not), the interpreter
 * otherwise. The expressions have no repeated groups, so neither needs a stack that grows with the
 * text. Limits: STAGES_MAX expressions, recursion as deep. */
#include "model/pretokenizer.h"

#include "model/utf8.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <errno.h>
#include <pcre2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define STAGES_MAX 6

/* Parts of character classes. */
#define WS  "\\p{Z}\\x09-\\x0d\\x{85}"
#define NEW "\\x{2EBF0}-\\x{2EE5D}\\x{31350}-\\x{323AF}" /* CJK extensions I and H */
#define L   "\\p{L}" NEW

#define S    "[" WS "]"
#define NOT  "[^" WS "]"
#define TAIL S "*[\\r\\n]+|" S "+(?!" NOT ")|" S "+"

/* The families. */
#define GPT2         "'s|'t|'re|'ve|'m|'ll|'d| ?[" L "]+| ?\\p{N}+| ?[^" WS L "\\p{N}]+|" S "+(?!" NOT ")"
#define CONTRACTIONS "'(?:[sStTmMdD]|[rR][eE]|[vV][eE]|[lL][lL])"
#define GPT4(digits)                                                                               \
    CONTRACTIONS "|[^\\r\\n" L "\\p{N}]?[" L "]+|" digits "| ?[^" WS L "\\p{N}]+[\\r\\n]*|" TAIL
#define LINES "[\\r\\n]"
#define HAN   "[\\x{4e00}-\\x{9fa5}\\x{800}-\\x{4e00}\\x{ac00}-\\x{d7ff}]+"

/* DeepSeek's list of cased letters. */
#define CASED                                                                                      \
    "A-Za-z\\x{b5}\\x{c0}-\\x{d6}\\x{d8}-\\x{f6}\\x{f8}-\\x{1ba}\\x{1bc}-\\x{1bf}"                 \
    "\\x{1c4}-\\x{293}\\x{295}-\\x{2af}\\x{370}-\\x{373}\\x{376}\\x{377}\\x{37b}-\\x{37d}"         \
    "\\x{37f}\\x{386}\\x{388}-\\x{38a}\\x{38c}\\x{38e}-\\x{3a1}\\x{3a3}-\\x{3f5}"                  \
    "\\x{3f7}-\\x{481}\\x{48a}-\\x{52f}\\x{531}-\\x{556}\\x{10a0}-\\x{10c5}"                       \
    "\\x{13a0}-\\x{13f5}\\x{13f8}-\\x{13fd}\\x{1c90}-\\x{1cba}\\x{1cbd}-\\x{1cbf}"                 \
    "\\x{1d00}-\\x{1d2b}\\x{1d6b}-\\x{1d77}\\x{1d79}-\\x{1d9a}\\x{1e00}-\\x{1f15}"                 \
    "\\x{1f18}-\\x{1f1d}\\x{1f20}-\\x{1f45}\\x{1f48}-\\x{1f4d}\\x{1f50}-\\x{1f57}\\x{1f59}"        \
    "\\x{1f5b}\\x{1f5d}\\x{1f5f}-\\x{1f7d}\\x{1f80}-\\x{1fb4}\\x{1fb6}-\\x{1fbc}\\x{1fbe}"         \
    "\\x{1fc2}-\\x{1fc4}\\x{1fc6}-\\x{1fcc}\\x{1fd0}-\\x{1fd3}\\x{1fd6}-\\x{1fdb}"                 \
    "\\x{1fe0}-\\x{1fec}\\x{1ff2}-\\x{1ff4}\\x{1ff6}-\\x{1ffc}\\x{2102}\\x{2107}"                  \
    "\\x{210a}-\\x{2113}\\x{2115}\\x{2119}-\\x{211d}\\x{2124}\\x{2126}\\x{2128}"                   \
    "\\x{212a}-\\x{212d}\\x{212f}-\\x{2134}\\x{2139}\\x{213c}-\\x{213f}\\x{2145}-\\x{2149}"        \
    "\\x{214e}\\x{2183}\\x{2184}\\x{2c00}-\\x{2c7b}\\x{2c7e}-\\x{2ce4}\\x{2ceb}-\\x{2cee}"         \
    "\\x{2cf2}\\x{2cf3}\\x{a640}-\\x{a66d}\\x{a680}-\\x{a69b}\\x{a722}-\\x{a76f}"                  \
    "\\x{a771}-\\x{a787}\\x{a78b}-\\x{a78e}\\x{ab70}-\\x{abbf}\\x{fb00}-\\x{fb06}"                 \
    "\\x{fb13}-\\x{fb17}\\x{ff21}-\\x{ff3a}\\x{ff41}-\\x{ff5a}\\x{10400}-\\x{1044f}"               \
    "\\x{104b0}-\\x{104d3}\\x{104d8}-\\x{104fb}\\x{10c80}-\\x{10cb2}\\x{10cc0}-\\x{10cf2}"         \
    "\\x{118a0}-\\x{118df}\\x{1e900}-\\x{1e943}"

#define UPPER "\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}" NEW
#define LOWER "\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}" NEW
#define CASES(suffix)                                                                              \
    "[^\\r\\n" L "\\p{N}]?[" UPPER "]*[" LOWER "]+" suffix "|[^\\r\\n" L "\\p{N}]?[" UPPER         \
    "]+[" LOWER "]*" suffix

struct family {
    const char *names; /* separated by spaces, with a space at both ends */
    bool whole_words;  /* see pretokenizer_whole_words() */
    bool add_bos;      /* see pretokenizer_add_bos() */
    const char *stages[STAGES_MAX];
};

static const struct family families[] = {
    {" gpt-2 phi-2 mpt olmo jais trillion granite-docling roberta-bpe modern-bert gigachat ",
     false,
     false,
     {GPT2}},
    {" llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 ",
     true,
     true,
     {GPT4("\\p{N}{1,3}")}},
    {" dbrx smaug-bpe chatglm-bpe glm4 ", false, false, {GPT4("\\p{N}{1,3}")}},
    {" qwen2 deepseek-r1-qwen stablelm2 hunyuan megrez ", false, false, {GPT4("\\p{N}")}},
    {" deepseek-llm ",
     false,
     false,
     {LINES, S "?[" CASED "]+",
      S "?[!-/:-~\\x{ff01}-\\x{ff0f}\\x{ff1a}-\\x{ff5e}\\x{2018}-\\x{201f}\\x{3000}-\\x{3002}]+",
      "(?<!" S ")" S "++\\z", HAN, "\\p{N}+"}},
    {" deepseek-coder ", false, false, {LINES, S "?[" L "]+", S "?\\p{P}+", HAN, "\\p{N}"}},
    {" deepseek-v3 hunyuan-dense ",
     false,
     false,
     {"\\p{N}{1,3}", "[\\x{4e00}-\\x{9fa5}\\x{3040}-\\x{309f}\\x{30a0}-\\x{30ff}]+",
      "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n" L "\\p{P}\\p{S}]?[" L
      "\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*|" TAIL}},
    {" starcoder refact command-r smollm codeshell exaone minerva-7b ",
     false,
     false,
     {"\\p{N}", GPT2}},
    {" falcon ", false, false, {"[\\p{P}$+<=>^~|`]+", GPT2, "[0-9][0-9][0-9]"}},
    {" tekken ", true, true, {CASES("") "|\\p{N}| ?[^" WS L "\\p{N}]+[\\r\\n/]*|" TAIL}},
    {" gpt-4o llama4 ",
     false,
     false,
     {CASES("(?:" CONTRACTIONS ")?") "|\\p{N}{1,3}| ?[^" WS L "\\p{N}]+[\\r\\n/]*|" TAIL}},
    {" default ", false, false, {"[\\p{P}$+<=>^~|]+", GPT2, "\\p{N}+", "[0-9][0-9][0-9]"}},
};

#define N_FAMILIES (sizeof families / sizeof families[0])

struct pretokenizer {
    const struct family *family;
    char name[64];
    unsigned n_stages;
    bool jit;
    pcre2_code *stages[STAGES_MAX];
};

struct split {
    const struct pretokenizer *pretokenizer;
    pcre2_match_data *match;
    pretokenizer_word word;
    void *context;
};

static const struct family *find_family(const char *name, size_t bytes)
{
    char padded[66];
    if (bytes == 0 || bytes > 63 || memchr(name, ' ', bytes) != NULL ||
        memchr(name, '\0', bytes) != NULL)
        return NULL;
    snprintf(padded, sizeof padded, " %.*s ", (int)bytes, name);
    for (size_t i = 0; i < N_FAMILIES; i++)
        if (strstr(families[i].names, padded) != NULL)
            return &families[i];
    return NULL;
}

static int unknown_family(const char *name, size_t bytes, struct report *report)
{
    char known[INFER_DETAIL_MAX] = "";
    size_t n = 0;
    for (size_t i = 0; i < N_FAMILIES && n < sizeof known - 1; i++)
        n += (size_t)snprintf(known + n, sizeof known - n, "%.*s",
                              (int)strlen(families[i].names) - 1, families[i].names);
    return report_fail(
        report, INFER_E_MODEL_UNSUPPORTED,
        "the pre-tokenizer '%.*s' (tokenizer.ggml.pre) is not known; known are:%.400s",
        bytes < 40 ? (int)bytes : 40, name, known);
}

static int compile(struct pretokenizer *p, unsigned stage, struct report *report)
{
    int error;
    PCRE2_SIZE offset;
    PCRE2_SPTR pattern = (PCRE2_SPTR)p->family->stages[stage];
    pcre2_code *code =
        pcre2_compile(pattern, PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_UCP, &error, &offset, NULL);
    if (code == NULL) {
        char text[96];
        pcre2_get_error_message(error, (PCRE2_UCHAR *)text, sizeof text);
        return report_fail(report, INFER_E_INTERNAL, "pre-tokenizer '%s', expression %u at %zu: %s",
                           p->name, stage + 1, (size_t)offset, text);
    }
    p->stages[stage] = code;
    if (pcre2_jit_compile(code, PCRE2_JIT_COMPLETE) != 0)
        p->jit = false;
    return 0;
}

int pretokenizer_new(const char *name, size_t name_bytes, struct pretokenizer **ret,
                     struct report *report)
{
    const struct family *family = find_family(name, name_bytes);
    if (family == NULL)
        return unknown_family(name, name_bytes, report);
    struct pretokenizer *p = calloc(1, sizeof *p);
    if (p == NULL)
        return report_fail(report, INFER_E_OUT_OF_MEMORY, "no memory for the pre-tokenizer");
    p->family = family;
    p->jit = true;
    memcpy(p->name, name, name_bytes);
    int r = 0;
    for (unsigned i = 0; r == 0 && i < STAGES_MAX && family->stages[i] != NULL; i++) {
        r = compile(p, i, report);
        p->n_stages++;
    }
    if (r < 0) {
        pretokenizer_free(p);
        return r;
    }
    *ret = p;
    return 0;
}

size_t pretokenizer_bytes(const struct pretokenizer *p)
{
    size_t sum = p != NULL ? sizeof *p : 0;
    for (unsigned i = 0; p != NULL && i < p->n_stages; i++) {
        size_t code = 0, jit = 0;
        pcre2_pattern_info(p->stages[i], PCRE2_INFO_SIZE, &code);
        pcre2_pattern_info(p->stages[i], PCRE2_INFO_JITSIZE, &jit);
        sum += code + jit;
    }
    return sum;
}

void pretokenizer_free(struct pretokenizer *p)
{
    if (p == NULL)
        return;
    for (unsigned i = 0; i < STAGES_MAX; i++)
        pcre2_code_free(p->stages[i]);
    free(p);
}

const char *pretokenizer_name(const struct pretokenizer *p)
{
    return p->name;
}

bool pretokenizer_whole_words(const struct pretokenizer *p)
{
    return p->family->whole_words;
}

bool pretokenizer_add_bos(const struct pretokenizer *p)
{
    return p->family->add_bos;
}

bool pretokenizer_has_jit(const struct pretokenizer *p)
{
    return p->jit;
}

/* The next match at or after `from`: 1 with its ends, 0 when there is none. */
static int next_match(const struct split *s, unsigned stage, const char *text, size_t bytes,
                      size_t from, size_t *ret_begin, size_t *ret_end)
{
    const struct pretokenizer *p = s->pretokenizer;
    PCRE2_SPTR subject = (PCRE2_SPTR)text;
    int n = p->jit ? pcre2_jit_match(p->stages[stage], subject, bytes, from, 0, s->match, NULL)
                   : pcre2_match(p->stages[stage], subject, bytes, from, PCRE2_NO_UTF_CHECK,
                                 s->match, NULL);
    if (n == PCRE2_ERROR_NOMATCH)
        return 0;
    if (n < 0)
        return n == PCRE2_ERROR_NOMEMORY || n == PCRE2_ERROR_HEAPLIMIT ? -ENOMEM : -EIO;
    const PCRE2_SIZE *ends = pcre2_get_ovector_pointer(s->match);
    if (ends[1] <= ends[0])
        return 0; /* no expression matches nothing; do not loop if one did */
    *ret_begin = ends[0];
    *ret_end = ends[1];
    return 1;
}

/* Cuts a piece by expression `stage` and what is left of them. */
static int split_piece(const struct split *s, unsigned stage, const char *text, size_t bytes)
{
    if (stage == s->pretokenizer->n_stages)
        return s->word(s->context, text, bytes);
    size_t at = 0;
    while (at < bytes) {
        size_t begin, end;
        int r = next_match(s, stage, text, bytes, at, &begin, &end);
        if (r < 0)
            return r;
        if (r == 0)
            begin = end = bytes;
        if (begin > at)
            r = split_piece(s, stage + 1, text + at, begin - at);
        if (r >= 0 && end > begin)
            r = split_piece(s, stage + 1, text + begin, end - begin);
        if (r < 0)
            return r;
        at = end;
    }
    return 0;
}

/* Bytes of the longest prefix that is all UTF-8 (valid), or all not. */
static size_t uniform_prefix(const char *text, size_t bytes, bool *ret_valid)
{
    *ret_valid = utf8_character(text, bytes) > 0;
    size_t at = 0;
    while (at < bytes) {
        uint64_t word;
        if (*ret_valid && at + 8 <= bytes) {
            memcpy(&word, text + at, 8);
            if ((word & 0x8080808080808080u) == 0) {
                at += 8;
                continue;
            }
        }
        size_t n = utf8_character(text + at, bytes - at);
        if ((n > 0) != *ret_valid)
            break;
        at += n > 0 ? n : 1;
    }
    return at;
}

int pretokenizer_split(const struct pretokenizer *p, const char *text, size_t bytes,
                       pretokenizer_word word, void *context)
{
    struct split s = {p, pcre2_match_data_create(1, NULL), word, context};
    if (s.match == NULL)
        return -ENOMEM;
    int r = 0;
    for (size_t at = 0; at < bytes && r >= 0;) {
        bool valid;
        size_t n = uniform_prefix(text + at, bytes - at, &valid);
        r = split_piece(&s, valid ? 0 : p->n_stages, text + at, n);
        at += n;
    }
    pcre2_match_data_free(s.match);
    return r < 0 ? r : 0;
}
