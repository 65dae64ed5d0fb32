/* stop.c: see stop.h. The text that matters at any time is what is held plus what is new, a few
 * hundred bytes; a direct search over at most INFER_STOPS_MAX strings is enough. */
#include "engine/stop.h"

#include <assert.h>
#include <string.h>

void stop_init(struct stop_matcher *m, const struct stop_string *strings, size_t n)
{
    for (size_t i = 0; i < n; i++)
        assert(strings[i].bytes > 0 && strings[i].bytes <= INFER_STOP_BYTES_MAX);
    m->strings = strings;
    m->n_strings = n;
    m->n_held = 0;
}

/* Offset of the first stop string in text, or bytes. */
static size_t find_first(const struct stop_matcher *m, const char *text, size_t bytes)
{
    size_t first = bytes;
    for (size_t i = 0; i < m->n_strings; i++) {
        const char *at = memmem(text, bytes, m->strings[i].data, m->strings[i].bytes);
        if (at != NULL && (size_t)(at - text) < first)
            first = (size_t)(at - text);
    }
    return first;
}

/* How many last bytes of text begin some stop string. */
static size_t could_begin(const struct stop_matcher *m, const char *text, size_t bytes)
{
    size_t longest = 0;
    for (size_t i = 0; i < m->n_strings; i++) {
        size_t n = m->strings[i].bytes - 1 < bytes ? m->strings[i].bytes - 1 : bytes;
        while (n > longest && memcmp(text + bytes - n, m->strings[i].data, n) != 0)
            n--;
        if (n > longest)
            longest = n;
    }
    return longest;
}

bool stop_feed(struct stop_matcher *m, const char *text, size_t bytes, char *ret, size_t *ret_bytes)
{
    memcpy(ret, m->held, m->n_held);
    memcpy(ret + m->n_held, text, bytes);
    size_t total = m->n_held + bytes;
    size_t first = find_first(m, ret, total);
    if (first < total) {
        m->n_held = 0;
        *ret_bytes = first;
        return true;
    }
    m->n_held = could_begin(m, ret, total);
    memcpy(m->held, ret + total - m->n_held, m->n_held);
    *ret_bytes = total - m->n_held;
    return false;
}

size_t stop_flush(struct stop_matcher *m, char *ret)
{
    size_t n = m->n_held;
    memcpy(ret, m->held, n);
    m->n_held = 0;
    return n;
}
