/* utf8.h: what a well-formed UTF-8 sequence is (Unicode 15, table 3-7), in one function. */
#ifndef INFERD_MODEL_UTF8_H
#define INFERD_MODEL_UTF8_H

#include <stddef.h>
#include <stdint.h>

/* How the bytes at p (n > 0 of them) begin: *ret_need is the length of the sequence that the first
 * byte announces (0: it announces none), and the return value how many bytes of it are here and
 * well-formed. Equal: a whole character. Fewer, with n used up: it may still be completed. */
static inline size_t utf8_prefix(const char *text, size_t n, size_t *ret_need)
{
    const uint8_t *p = (const uint8_t *)text;
    uint8_t low = 0x80, high = 0xbf;
    size_t need;
    if (p[0] < 0x80) {
        *ret_need = 1;
        return 1;
    }
    if (p[0] >= 0xc2 && p[0] <= 0xdf) {
        need = 2;
    } else if (p[0] >= 0xe0 && p[0] <= 0xef) {
        need = 3;
        low = p[0] == 0xe0 ? 0xa0 : 0x80;  /* no overlong forms */
        high = p[0] == 0xed ? 0x9f : 0xbf; /* no surrogates */
    } else if (p[0] >= 0xf0 && p[0] <= 0xf4) {
        need = 4;
        low = p[0] == 0xf0 ? 0x90 : 0x80;
        high = p[0] == 0xf4 ? 0x8f : 0xbf; /* nothing above U+10FFFF */
    } else {
        *ret_need = 0;
        return 0;
    }
    *ret_need = need;
    size_t have = 1;
    while (have < need && have < n && p[have] >= low && p[have] <= high) {
        low = 0x80;
        high = 0xbf;
        have++;
    }
    return have;
}

/* Bytes of the whole character at p, or 0 when there is none. */
static inline size_t utf8_character(const char *p, size_t n)
{
    size_t need;
    size_t have = utf8_prefix(p, n, &need);
    return have == need ? need : 0;
}

#endif
