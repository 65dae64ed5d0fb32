/* check.c: kv_check(): every invariant of kv.h and pool.h, asserted the slow way. For tests and the
 * simulator; it allocates, and its time grows with the pool. */
#include "kv/pool.h"

#include <assert.h>
#include <stdlib.h>

/* What the sequences say about a page. */
struct seen {
    uint32_t holders;
    bool free;
    uint32_t children;
    uint32_t age; /* place on the cached list, from 1; 0: not on it */
};

static void check_sequence(const struct kv_pool *pool, const struct kv_sequence *s,
                           struct seen *seen)
{
    uint32_t n = pool->config.page_tokens;
    assert(s->domain != KV_DOMAIN_NONE && s->n_pages <= s->room);
    assert(s->n_pages == kv_pool_pages_for(pool, s->n_tokens));
    assert(s->n_published <= s->n_tokens / n);
    for (uint32_t i = 0; i < s->n_pages; i++) {
        uint32_t page = s->pages[i];
        assert(page < pool->config.n_pages);
        const struct kv_page *p = &pool->pages[page];
        for (uint32_t j = 0; j < i; j++)
            assert(s->pages[j] != page);
        assert(p->domain == s->domain);
        assert(i >= s->n_published || p->indexed);
        if (p->indexed) { /* published, or partly used after a roll-back */
            assert(i < s->n_published || (i == s->n_published && i == s->n_tokens / n));
            assert(p->parent == (i > 0 ? s->pages[i - 1] : KV_PAGE_NONE));
        }
        seen[page].holders++;
    }
}

static void check_free(const struct kv_pool *pool, struct seen *seen)
{
    for (uint32_t i = 0; i < pool->n_free; i++) {
        uint32_t page = pool->free[i];
        assert(page < pool->config.n_pages && !seen[page].free);
        seen[page].free = true;
    }
}

static void check_cached_list(const struct kv_pool *pool, struct seen *seen)
{
    uint32_t n = 0, before = KV_PAGE_NONE;
    for (uint32_t page = pool->oldest; page != KV_PAGE_NONE; page = pool->pages[page].newer) {
        assert(page < pool->config.n_pages && seen[page].age == 0);
        assert(pool->pages[page].older == before);
        seen[page].age = ++n;
        before = page;
    }
    assert(pool->newest == before && n == pool->n_cached);
}

/* Every indexed page is in the bucket of its hash, its hash is right, and it is found by what it
 * holds: so no other one holds the same. */
static void check_index(const struct kv_pool *pool, struct seen *seen)
{
    uint32_t n_entries = 0, n_indexed = 0;
    for (uint64_t b = 0; b <= pool->bucket_mask; b++)
        for (uint32_t page = pool->buckets[b]; page != KV_PAGE_NONE;
             page = pool->pages[page].next_in_bucket) {
            const struct kv_page *p = &pool->pages[page];
            assert(p->indexed && (p->hash & pool->bucket_mask) == b);
            n_entries++;
            assert(n_entries <= pool->config.n_pages); /* no chain goes round */
        }
    for (uint32_t page = 0; page < pool->config.n_pages; page++) {
        const struct kv_page *p = &pool->pages[page];
        const int32_t *tokens = pool->tokens + (size_t)page * pool->config.page_tokens;
        if (!p->indexed)
            continue;
        n_indexed++;
        assert(kv_index_hash(pool, p->domain, p->parent, tokens) == p->hash);
        assert(kv_index_find(pool, p->hash, p->domain, p->parent, tokens) == page);
        if (p->parent == KV_PAGE_NONE)
            continue;
        const struct kv_page *above = &pool->pages[p->parent];
        assert(above->indexed && above->domain == p->domain);
        assert(above->holders >= p->holders);
        assert(above->holders > 0 || seen[p->parent].age > seen[page].age);
        seen[p->parent].children++;
    }
    assert(n_entries == n_indexed);
}

void kv_check(const struct kv_pool *pool, const struct kv_sequence *const *sequences, uint32_t n)
{
    struct seen *seen = calloc(pool->config.n_pages + 1, sizeof *seen);
    uint32_t n_held = 0, n_shared = 0;
    assert(seen != NULL);
    for (uint32_t i = 0; i < n; i++)
        check_sequence(pool, sequences[i], seen);
    check_free(pool, seen);
    check_cached_list(pool, seen);
    check_index(pool, seen);
    for (uint32_t page = 0; page < pool->config.n_pages; page++) {
        const struct kv_page *p = &pool->pages[page];
        const struct seen *s = &seen[page];
        assert(s->holders == p->holders);
        assert((p->holders > 0) + s->free + (s->age > 0) == 1);
        assert((s->age > 0) == (p->holders == 0 && p->indexed));
        assert(s->children == (p->indexed ? p->n_children : 0));
        assert(p->indexed || p->n_children == 0);
        n_held += p->holders > 0;
        n_shared += p->holders > 1;
    }
    struct kv_counts c = kv_pool_count(pool);
    assert(c.n_held == n_held && c.n_shared == n_shared);
    assert(c.n_free + c.n_cached + c.n_held == c.n_pages);
    free(seen);
}
