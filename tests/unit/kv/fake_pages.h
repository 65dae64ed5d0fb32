/* fake_pages.h: a backend's pages, as far as the ledger can harm them. Each row holds a fingerprint
 * of what a real one would depend on: the domain and all tokens up to it. Rows are written and read
 * through sequences, so a page that was shared, copied, zeroed or given away wrongly is noticed. */
#ifndef TESTS_UNIT_KV_FAKE_PAGES_H
#define TESTS_UNIT_KV_FAKE_PAGES_H

#include "base/rng.h"
#include "kv/kv.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

enum { FAKE_PAGES = 64, FAKE_TOKENS = 4 };

struct fake_pages {
    uint64_t rows[FAKE_PAGES][FAKE_TOKENS];
    uint64_t domain[FAKE_PAGES];      /* whose rows are in it; 0: it is zero */
    uint64_t zeroed_from[FAKE_PAGES]; /* not written since it was zeroed of this domain's rows */
    uint32_t n_zeroed, n_copied;
    uint32_t fail_zero; /* so many calls from now on fail */
    uint32_t last_to, last_from;
};

static int fake_zero(void *ctx, uint32_t page)
{
    struct fake_pages *f = ctx;
    assert_int_not_equal(f->domain[page], 0); /* there was something to zero */
    if (f->fail_zero > 0) {
        f->fail_zero--;
        return -1;
    }
    memset(f->rows[page], 0, sizeof f->rows[page]);
    f->zeroed_from[page] = f->domain[page];
    f->domain[page] = 0;
    f->n_zeroed++;
    return 0;
}

/* A page that is written holds zeros or the writer's own domain's rows, and it was not zeroed for
 * the domain whose rows it held. */
static inline void fake_take(struct fake_pages *f, uint32_t page, uint64_t domain)
{
    if (f->domain[page] != 0)
        assert_int_equal(f->domain[page], domain);
    else
        assert_int_not_equal(f->zeroed_from[page], domain);
    f->domain[page] = domain;
    f->zeroed_from[page] = 0;
}

static void fake_copy(void *ctx, uint32_t to, uint32_t from)
{
    struct fake_pages *f = ctx;
    assert_int_not_equal(to, from);
    fake_take(f, to, f->domain[from]);
    memcpy(f->rows[to], f->rows[from], sizeof f->rows[to]);
    f->n_copied++;
    f->last_to = to;
    f->last_from = from;
}

static inline struct kv_pool *fake_pool(struct fake_pages *f, uint32_t n_pages)
{
    struct kv_pool *pool;
    struct kv_config c = {.n_pages = n_pages,
                          .page_tokens = FAKE_TOKENS,
                          .key = "not yet random",
                          .ctx = f,
                          .zero = fake_zero,
                          .copy = fake_copy};
    memset(f, 0, sizeof *f);
    assert_int_equal(kv_pool_new(&c, &pool), 0);
    return pool;
}

static inline uint64_t fake_row(uint64_t before, uint64_t domain, int32_t token)
{
    return rng_at(before ^ domain, (uint64_t)(uint32_t)token) | 1;
}

/* Runs rows [from, s->n_tokens). */
static inline void fake_write(struct fake_pages *f, const struct kv_pool *pool,
                              const struct kv_sequence *s, const int32_t *tokens, uint32_t from)
{
    uint64_t row = 0;
    for (uint32_t i = 0; i < s->n_tokens; i++) {
        uint32_t page = s->pages[i / FAKE_TOKENS];
        row = fake_row(row, s->domain, tokens[i]);
        if (i < from)
            continue;
        assert_true(kv_sequence_writable(pool, s, i));
        fake_take(f, page, s->domain);
        f->rows[page][i % FAKE_TOKENS] = row;
    }
}

/* Are the sequence's rows the rows of these tokens? */
static inline void fake_check(const struct fake_pages *f, const struct kv_sequence *s,
                              const int32_t *tokens)
{
    uint64_t row = 0;
    for (uint32_t i = 0; i < s->n_tokens; i++) {
        row = fake_row(row, s->domain, tokens[i]);
        assert_true(f->rows[s->pages[i / FAKE_TOKENS]][i % FAKE_TOKENS] == row);
    }
}

/* What the engine does with a prompt: match, grow, run, publish. Returns the rows that match found;
 * the sequence was made and holds nothing. */
static inline uint32_t fake_prefill(struct fake_pages *f, struct kv_pool *pool,
                                    struct kv_sequence *s, const int32_t *tokens, uint32_t n)
{
    uint32_t found = kv_sequence_match(pool, s, tokens, n);
    fake_check(f, s, tokens);
    assert_int_equal(kv_sequence_grow(pool, s, n), 0);
    fake_write(f, pool, s, tokens, found);
    kv_sequence_publish(pool, s, tokens, n);
    fake_check(f, s, tokens);
    return found;
}

#endif
