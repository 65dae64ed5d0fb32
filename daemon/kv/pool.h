/* pool.h: what the files of this room share: the pool, its pages, the prefix index.
 *
 * Invariants, beyond kv.h's (kv_check() asserts them all):
 *
 *   1. free stack, holders > 0 and the cached list partition the pages; an indexed page is held or
 *      cached, a free page is not indexed.
 *   2. Of a sequence, pages[0 .. n_published) are indexed, pages[0] with no parent and pages[i]
 *      with parent pages[i - 1]. So who holds an indexed page holds all of its ancestors, and
 *      everything that stands on a cached page is cached, too.
 *   3. Sequences let go from the last page to the first, so on the cached list a page comes after
 *      all that stand on it: its head is always a leaf, and giving it up is O(1).
 *   4. No two indexed pages have the same domain, parent and tokens.
 *
 * From 2 and 3: every page that nobody holds can be had, one by one, without a search. That is what
 * kv_pool_available() promises and what the scheduler counts on. */
#ifndef INFERD_KV_POOL_H
#define INFERD_KV_POOL_H

#include "kv/kv.h"

#define KV_PAGE_NONE UINT32_MAX

struct kv_page {
    uint32_t holders;
    uint64_t domain; /* whose rows it last held; KV_DOMAIN_NONE: nobody's, it is zero */
    bool foreign;    /* zeroing it for that domain failed: it may hold rows of others, too */
    /* In the index: */
    bool indexed;
    uint32_t parent;         /* KV_PAGE_NONE: it holds rows from 0 on */
    uint32_t n_children;     /* indexed pages whose parent it is */
    uint32_t next_in_bucket; /* KV_PAGE_NONE ends */
    uint64_t hash;
    /* Cached: neighbours on the list, KV_PAGE_NONE at its ends. */
    uint32_t older, newer;
};

struct kv_pool {
    struct kv_config config;
    struct kv_page *pages;
    uint32_t *free;    /* stack: free[0 .. n_free) */
    int32_t *tokens;   /* page_tokens for each page, valid while it is indexed */
    uint8_t *message;  /* what is hashed: kv_index_hash()'s own */
    uint32_t *buckets; /* by hash: the first page */
    uint32_t bucket_mask;
    uint64_t hash_mask;      /* all ones but in tests */
    uint32_t oldest, newest; /* ends of the cached list */
    uint32_t n_free, n_cached, n_shared;
    uint64_t lookups, hits_tokens, merged, copied, evictions, zeroed;
};

/* ---- index.c --------------------------------------------------------------------------------- */

/* -ENOMEM; kv_index_done() then, too. */
int kv_index_init(struct kv_pool *pool);
void kv_index_done(struct kv_pool *pool);

/* The hash of the page that holds page_tokens tokens and follows `parent` in the domain. */
uint64_t kv_index_hash(const struct kv_pool *pool, uint64_t domain, uint32_t parent,
                       const int32_t *tokens);
/* KV_PAGE_NONE when there is none. */
uint32_t kv_index_find(const struct kv_pool *pool, uint64_t hash, uint64_t domain, uint32_t parent,
                       const int32_t *tokens);
/* Such a page is not there yet; the page's domain is set. */
void kv_index_enter(struct kv_pool *pool, uint32_t page, uint64_t hash, uint32_t parent,
                    const int32_t *tokens);
/* A page without children. */
void kv_index_remove(struct kv_pool *pool, uint32_t page);
bool kv_index_holds_tokens(const struct kv_pool *pool, uint32_t page, const int32_t *tokens);

#endif
