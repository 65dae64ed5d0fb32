/* checked.h: arithmetic on numbers that a file or a client chose.
 *
 * Every function returns true when the result does not fit and leaves *ret untouched then, so that
 * a caller writes  if (checked_mul(n, size, &bytes)) return -EOVERFLOW; */
#ifndef INFERD_BASE_CHECKED_H
#define INFERD_BASE_CHECKED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

static inline bool checked_add(uint64_t a, uint64_t b, uint64_t *ret)
{
    uint64_t r;
    if (__builtin_add_overflow(a, b, &r))
        return true;
    *ret = r;
    return false;
}

static inline bool checked_mul(uint64_t a, uint64_t b, uint64_t *ret)
{
    uint64_t r;
    if (__builtin_mul_overflow(a, b, &r))
        return true;
    *ret = r;
    return false;
}

/* a rounded up to a multiple of align, a power of two. */
static inline bool checked_align(uint64_t a, uint64_t align, uint64_t *ret)
{
    uint64_t r;
    if (__builtin_add_overflow(a, align - 1, &r))
        return true;
    *ret = r & ~(align - 1);
    return false;
}

/* Does [offset, offset + n) lie within [0, size)? */
static inline bool checked_within(uint64_t offset, uint64_t n, uint64_t size)
{
    return offset <= size && n <= size - offset;
}

#endif
