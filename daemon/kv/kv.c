/* kv.c: see kv.h for the model. The free list is a stack of page ids, so that a page that was just
 * given back, and is warm in some processor's cache, is the next one taken. */
#include "kv/kv.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct kv_pool {
    uint32_t n_pages;
    uint32_t page_tokens;
    uint32_t n_free;
    uint32_t *free;    /* stack: free[0 .. n_free) */
    uint32_t *holders; /* by page */
};

int kv_pool_new(uint32_t n_pages, uint32_t page_tokens, struct kv_pool **ret)
{
    assert(page_tokens > 0);
    struct kv_pool *pool = calloc(1, sizeof *pool);
    uint32_t *free_pages = calloc(n_pages ? n_pages : 1, sizeof *free_pages);
    uint32_t *holders = calloc(n_pages ? n_pages : 1, sizeof *holders);

    if (pool == NULL || free_pages == NULL || holders == NULL) {
        free(pool);
        free(free_pages);
        free(holders);
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < n_pages; i++)
        free_pages[i] = n_pages - 1 - i; /* page 0 is taken first */
    *pool = (struct kv_pool){n_pages, page_tokens, n_pages, free_pages, holders};
    *ret = pool;
    return 0;
}

void kv_pool_free(struct kv_pool *pool)
{
    if (pool == NULL)
        return;
    assert(pool->n_free == pool->n_pages);
    free(pool->free);
    free(pool->holders);
    free(pool);
}

uint32_t kv_pool_pages(const struct kv_pool *pool)
{
    return pool->n_pages;
}

uint32_t kv_pool_used(const struct kv_pool *pool)
{
    return pool->n_pages - pool->n_free;
}

uint32_t kv_pool_pages_for(const struct kv_pool *pool, uint64_t n_tokens)
{
    uint64_t n = n_tokens / pool->page_tokens + (n_tokens % pool->page_tokens != 0);
    return n > UINT32_MAX ? UINT32_MAX : (uint32_t)n;
}

int kv_sequence_init(const struct kv_pool *pool, struct kv_sequence *s, uint32_t max_tokens)
{
    uint32_t room = kv_pool_pages_for(pool, max_tokens);
    uint32_t *pages = calloc(room ? room : 1, sizeof *pages);
    if (pages == NULL)
        return -ENOMEM;
    *s = (struct kv_sequence){pages, 0, room};
    return 0;
}

static uint32_t take_page(struct kv_pool *pool)
{
    assert(pool->n_free > 0);
    uint32_t page = pool->free[--pool->n_free];
    assert(pool->holders[page] == 0);
    pool->holders[page] = 1;
    return page;
}

static void drop_page(struct kv_pool *pool, uint32_t page)
{
    assert(page < pool->n_pages && pool->holders[page] > 0);
    if (--pool->holders[page] == 0)
        pool->free[pool->n_free++] = page;
}

int kv_sequence_grow(struct kv_pool *pool, struct kv_sequence *s, uint32_t n_tokens)
{
    uint32_t want = kv_pool_pages_for(pool, n_tokens);
    assert(want <= s->room);
    if (want <= s->n_pages)
        return 0;
    if (want - s->n_pages > pool->n_free)
        return -ENOSPC;
    while (s->n_pages < want)
        s->pages[s->n_pages++] = take_page(pool);
    return 0;
}

void kv_sequence_trim(struct kv_pool *pool, struct kv_sequence *s, uint32_t n_tokens)
{
    uint32_t keep = kv_pool_pages_for(pool, n_tokens);
    while (s->n_pages > keep)
        drop_page(pool, s->pages[--s->n_pages]);
}

uint32_t kv_sequence_share(struct kv_pool *pool, const struct kv_sequence *from,
                           struct kv_sequence *to, uint32_t n_tokens)
{
    assert(to->n_pages == 0);
    uint32_t n = n_tokens / pool->page_tokens;
    if (n > from->n_pages)
        n = from->n_pages;
    if (n > to->room)
        n = to->room;
    for (uint32_t i = 0; i < n; i++) {
        pool->holders[from->pages[i]]++;
        to->pages[i] = from->pages[i];
    }
    to->n_pages = n;
    return n * pool->page_tokens;
}

bool kv_sequence_writable(const struct kv_pool *pool, const struct kv_sequence *s, uint32_t token)
{
    uint32_t i = token / pool->page_tokens;
    return i < s->n_pages && pool->holders[s->pages[i]] == 1;
}

void kv_sequence_done(struct kv_pool *pool, struct kv_sequence *s)
{
    kv_sequence_trim(pool, s, 0);
    free(s->pages);
    *s = (struct kv_sequence){0};
}

void kv_check(const struct kv_pool *pool, const struct kv_sequence *const *sequences, uint32_t n)
{
    uint32_t *count = calloc(pool->n_pages ? pool->n_pages : 1, sizeof *count);
    assert(count != NULL);
    for (uint32_t s = 0; s < n; s++) {
        for (uint32_t i = 0; i < sequences[s]->n_pages; i++) {
            assert(sequences[s]->pages[i] < pool->n_pages);
            for (uint32_t j = 0; j < i; j++)
                assert(sequences[s]->pages[i] != sequences[s]->pages[j]);
            count[sequences[s]->pages[i]]++;
        }
    }
    uint32_t n_unheld = 0;
    for (uint32_t page = 0; page < pool->n_pages; page++) {
        assert(count[page] == pool->holders[page]);
        n_unheld += count[page] == 0;
    }
    assert(n_unheld == pool->n_free);
    for (uint32_t i = 0; i < pool->n_free; i++)
        assert(count[pool->free[i]] == 0);
    free(count);
}
