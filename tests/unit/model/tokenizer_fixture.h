/* tokenizer_fixture.h: what the tokenizer's tests share. */
#ifndef INFERD_TESTS_TOKENIZER_FIXTURE_H
#define INFERD_TESTS_TOKENIZER_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "gguf_writer.h"
#include "model/tokenizer.h"

static inline struct token_list encode(const struct tokenizer *t, const char *text, size_t bytes,
                                       unsigned flags)
{
    struct token_list l = {0};
    assert_int_equal(tokenizer_encode(t, text, bytes, flags, NULL, 0, &l), 0);
    return l;
}

/* The raw bytes of all tokens; the caller frees. */
static inline char *decode(const struct tokenizer *t, const struct token_list *l, unsigned flags,
                           size_t *ret_bytes)
{
    char *text = malloc(l->n * TOKENIZER_TOKEN_BYTES_MAX + 1);
    size_t n = 0;
    assert_non_null(text);
    for (size_t i = 0; i < l->n; i++)
        n += tokenizer_piece(t, l->ids[i], flags, text + n, TOKENIZER_TOKEN_BYTES_MAX);
    *ret_bytes = n;
    return text;
}

static inline void check_ids(const struct tokenizer *t, const char *text, unsigned flags,
                             const struct text_span *plain, size_t n_plain, const int32_t *ids,
                             size_t n)
{
    struct token_list l = {0};
    assert_int_equal(tokenizer_encode(t, text, strlen(text), flags, plain, n_plain, &l), 0);
    if (l.n != n || memcmp(l.ids, ids, n * sizeof *ids) != 0)
        fail_msg("'%s' became other tokens than expected", text);
    token_list_free(&l);
}

#define IDS(t, text, flags, plain, n_plain, ...)                                                   \
    check_ids(t, text, flags, plain, n_plain, (const int32_t[]){__VA_ARGS__},                      \
              sizeof((const int32_t[]){__VA_ARGS__}) / sizeof(int32_t))

#endif
