/* specials.c: see specials.h. Owns the sorted list of ids; the spellings stay in the vocabulary. */
#include "model/specials.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static int compare_texts(const void *a, const void *b, void *context)
{
    const struct vocab *v = context;
    size_t n_left, n_right;
    const char *left = vocab_text(v, *(const uint32_t *)a, &n_left);
    const char *right = vocab_text(v, *(const uint32_t *)b, &n_right);
    int order = memcmp(left, right, n_left < n_right ? n_left : n_right);
    return order != 0 ? order : (n_left > n_right) - (n_left < n_right);
}

int specials_init(struct specials *s, const struct vocab *v, bool (*wanted)(const void *, uint32_t),
                  const void *context)
{
    memset(s, 0, sizeof *s);
    uint32_t n = 0;
    for (uint32_t i = 0; i < v->n_tokens; i++)
        n += wanted(context, i);
    s->ids = malloc((n > 0 ? n : 1) * sizeof *s->ids);
    if (s->ids == NULL)
        return -ENOMEM;
    for (uint32_t i = 0; i < v->n_tokens; i++)
        if (wanted(context, i))
            s->ids[s->n++] = i;
    qsort_r(s->ids, s->n, sizeof *s->ids, compare_texts, (void *)v);
    uint32_t at = 0;
    for (unsigned c = 0; c < 256; c++) {
        s->first[c] = at;
        while (at < s->n && (unsigned char)v->bytes[v->offsets[s->ids[at]]] == c)
            at++;
    }
    s->first[256] = at;
    return 0;
}

void specials_done(struct specials *s)
{
    free(s->ids);
    memset(s, 0, sizeof *s);
}

/* The byte at `depth` of the i-th spelling, -1 behind its end. */
static int spelling_byte(const struct specials *s, const struct vocab *v, uint32_t i, size_t depth)
{
    size_t bytes;
    const char *text = vocab_text(v, s->ids[i], &bytes);
    return depth < bytes ? (unsigned char)text[depth] : -1;
}

/* The first index of [low, high) whose byte at `depth` is at least c. */
static uint32_t lower_bound(const struct specials *s, const struct vocab *v, uint32_t low,
                            uint32_t high, size_t depth, int c)
{
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (spelling_byte(s, v, middle, depth) < c)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* The longest allowed spelling that text[0, bytes) begins with; control tokens up to control_max
 * bytes. */
static bool match_here(const struct specials *s, const struct vocab *v, const char *text,
                       size_t bytes, size_t control_max, struct special_match *ret)
{
    uint32_t low = s->first[(unsigned char)text[0]];
    uint32_t high = s->first[(unsigned char)text[0] + 1];
    bool found = false;
    for (size_t depth = 1; low < high; depth++) {
        for (; low < high && spelling_byte(s, v, low, depth) < 0; low++) {
            if (vocab_is_control(v, s->ids[low]) && depth > control_max)
                continue;
            ret->bytes = depth;
            ret->id = s->ids[low];
            found = true;
        }
        if (depth == bytes)
            break;
        int c = (unsigned char)text[depth];
        low = lower_bound(s, v, low, high, depth, c);
        high = lower_bound(s, v, low, high, depth, c + 1);
    }
    return found;
}

/* Bytes from `at` to the next plain span: 0 inside of one. */
static size_t distance_to_plain(size_t at, size_t bytes, const struct text_span *plain,
                                size_t n_plain, size_t *next_plain)
{
    while (*next_plain < n_plain && plain[*next_plain].offset + plain[*next_plain].bytes <= at)
        (*next_plain)++;
    if (*next_plain == n_plain)
        return bytes - at;
    size_t offset = plain[*next_plain].offset;
    return offset > at ? offset - at : 0;
}

bool specials_find(const struct specials *s, const struct vocab *v, const char *text, size_t bytes,
                   size_t from, bool control, const struct text_span *plain, size_t n_plain,
                   size_t *next_plain, struct special_match *ret)
{
    if (s->n == 0)
        return false;
    for (size_t at = from; at < bytes; at++) {
        unsigned char c = (unsigned char)text[at];
        if (s->first[c] == s->first[c + 1])
            continue;
        size_t control_max = control ? distance_to_plain(at, bytes, plain, n_plain, next_plain) : 0;
        struct special_match match = {.offset = at};
        if (match_here(s, v, text + at, bytes - at, control_max, &match)) {
            *ret = match;
            return true;
        }
    }
    return false;
}
