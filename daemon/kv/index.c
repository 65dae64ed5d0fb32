/* index.c: the prefix index: from (domain, page before, tokens) to the page that holds that state.
 *
 * A hash table with chains through the pages themselves, sized once, at least one bucket a page.
 * The hash of a page is SipHash-2-4, keyed by the boot key, of
 *
 *   domain | its parent's hash, 0 for none | its tokens
 *
 * and so covers everything from row 0 on at the cost of one page. It only says where to look: an
 * entry is a hit when its hash, its domain, its parent (the very page, not its hash) and its tokens
 * are equal. By induction over the parents a hit is the same whole prefix of the same domain, even
 * if SipHash were broken.
 *
 * What a lookup's time tells. The domain stands in the hashed message, so what is looked up for a
 * domain lands in a bucket that has nothing to do with where the same tokens of another domain
 * stand: the key is secret, so bucket numbers are as good as drawn by lot. Entries of others that
 * happen to share the bucket are passed over on their hash before any of their tokens is compared.
 * So the work depends on the domain's own prefixes and on how full the table is, never on which
 * prefixes the others have; how full it is, status tells anybody anyway. Within a domain a hit is
 * faster than a miss: that is what the index is for.
 *
 * Limits: no allocation after kv_index_init(); chains are as long as the lot has it, and nobody
 * without the key can make one long. */
#include "kv/pool.h"

#include "base/checked.h"
#include "base/siphash.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define MESSAGE_HEAD 16 /* domain, parent's hash */

static size_t tokens_bytes(const struct kv_pool *pool)
{
    return (size_t)pool->config.page_tokens * sizeof(int32_t);
}

static int32_t *page_tokens(const struct kv_pool *pool, uint32_t page)
{
    return pool->tokens + (size_t)page * pool->config.page_tokens;
}

int kv_index_init(struct kv_pool *pool)
{
    uint64_t n_tokens, n_buckets = 1;
    if (checked_mul(pool->config.n_pages, pool->config.page_tokens, &n_tokens))
        return -ENOMEM;
    while (n_buckets < pool->config.n_pages)
        n_buckets *= 2;
    pool->tokens = calloc(n_tokens ? n_tokens : 1, sizeof *pool->tokens);
    pool->message = calloc(1, MESSAGE_HEAD + tokens_bytes(pool));
    pool->buckets = malloc(n_buckets * sizeof *pool->buckets);
    if (pool->tokens == NULL || pool->message == NULL || pool->buckets == NULL)
        return -ENOMEM;
    for (uint64_t i = 0; i < n_buckets; i++)
        pool->buckets[i] = KV_PAGE_NONE;
    pool->bucket_mask = (uint32_t)(n_buckets - 1);
    pool->hash_mask = UINT64_MAX;
    return 0;
}

void kv_index_done(struct kv_pool *pool)
{
    free(pool->tokens);
    free(pool->message);
    free(pool->buckets);
}

void kv_pool_truncate_hashes(struct kv_pool *pool, unsigned n_bits)
{
    pool->hash_mask = n_bits < 64 ? (UINT64_C(1) << n_bits) - 1 : UINT64_MAX;
}

uint64_t kv_index_hash(const struct kv_pool *pool, uint64_t domain, uint32_t parent,
                       const int32_t *tokens)
{
    uint64_t head = htole64(domain);
    uint64_t above = htole64(parent == KV_PAGE_NONE ? 0 : pool->pages[parent].hash);
    memcpy(pool->message, &head, sizeof head);
    memcpy(pool->message + sizeof head, &above, sizeof above);
    /* The tokens' byte order is the machine's: no hash leaves it. */
    memcpy(pool->message + MESSAGE_HEAD, tokens, tokens_bytes(pool));
    return siphash(pool->config.key, pool->message, MESSAGE_HEAD + tokens_bytes(pool)) &
           pool->hash_mask;
}

bool kv_index_holds_tokens(const struct kv_pool *pool, uint32_t page, const int32_t *tokens)
{
    assert(pool->pages[page].indexed);
    return memcmp(page_tokens(pool, page), tokens, tokens_bytes(pool)) == 0;
}

uint32_t kv_index_find(const struct kv_pool *pool, uint64_t hash, uint64_t domain, uint32_t parent,
                       const int32_t *tokens)
{
    uint32_t at = pool->buckets[hash & pool->bucket_mask];
    while (at != KV_PAGE_NONE) {
        const struct kv_page *p = &pool->pages[at];
        if (p->hash == hash && p->domain == domain && p->parent == parent &&
            kv_index_holds_tokens(pool, at, tokens))
            break;
        at = p->next_in_bucket;
    }
    return at;
}

void kv_index_enter(struct kv_pool *pool, uint32_t page, uint64_t hash, uint32_t parent,
                    const int32_t *tokens)
{
    struct kv_page *p = &pool->pages[page];
    uint32_t *bucket = &pool->buckets[hash & pool->bucket_mask];
    assert(!p->indexed && p->n_children == 0 && p->holders > 0);
    p->indexed = true;
    p->hash = hash;
    p->parent = parent;
    p->next_in_bucket = *bucket;
    *bucket = page;
    memcpy(page_tokens(pool, page), tokens, tokens_bytes(pool));
    if (parent != KV_PAGE_NONE) {
        assert(pool->pages[parent].indexed && pool->pages[parent].domain == p->domain);
        pool->pages[parent].n_children++;
    }
}

void kv_index_remove(struct kv_pool *pool, uint32_t page)
{
    struct kv_page *p = &pool->pages[page];
    uint32_t *at = &pool->buckets[p->hash & pool->bucket_mask];
    assert(p->indexed && p->n_children == 0);
    while (*at != page) {
        assert(*at != KV_PAGE_NONE);
        at = &pool->pages[*at].next_in_bucket;
    }
    *at = p->next_in_bucket;
    p->indexed = false;
    if (p->parent != KV_PAGE_NONE) {
        assert(pool->pages[p->parent].n_children > 0);
        pool->pages[p->parent].n_children--;
    }
}
