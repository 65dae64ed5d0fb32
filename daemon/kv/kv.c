/* kv.c: the ledger: taking, holding, letting go and giving up pages, and the calls of kv.h on them.
 * The model is in kv.h, the invariants are in pool.h, the index is index.c's.
 *
 * Taking. A page comes off the free stack, so that one that was just given back, and is warm in
 * some processor's cache, is the next one taken; when the stack is empty, the oldest cached page is
 * given up for it. Whatever its way, a page that last held rows of another domain is zeroed before
 * the taker sees it, also when a copy is about to overwrite it: one rule without exceptions. When
 * zeroing fails the taker has the page none the less, for a count that was promised is kept; it is
 * marked, the caller's operation fails, and whoever takes the page next, that domain included, has
 * it zeroed first.
 *
 * Age. A page becomes the newest on the cached list at the moment its last holder lets go. Holders
 * let go from the last page to the first, so of one conversation the end goes first and the start,
 * which others may share, goes last.
 *
 * Computed twice. Two sequences that start with the same tokens at the same time both compute them;
 * the first to complete a page publishes it. When the second completes its copy, it changes over to
 * the published page and gives its own back. This is sound, for a row's state is a function of the
 * tokens before it alone: both copies are the same bytes. And it is what keeps "everything that
 * stands on a cached page is cached": had the second kept its copy and published what follows below
 * the first's page, then that page, let go by the first, would carry children that are held: nobody
 * would hold it and yet it could not be given up, and a scheduler that set pages aside by count
 * would be promised pages that cannot be had. It also means that a burst of equal prompts ends up
 * with one copy of them. The price: page lists change in publish, so never during a step.
 *
 * A page that was never published may still be shared (fork of a sequence that was not published).
 * It is not published while it has several holders, because then the others would hold an indexed
 * page without having its ancestors.
 *
 * Writing again. After a roll-back into the middle of a page, that page may be shared or published;
 * grow() then gives the sequence a copy, so that what others see, and what is cached, stays. When
 * there is no page for the copy and nobody else holds the original, it is taken out of the index
 * and written in place: then nothing can stand on it, for that would be cached and available.
 *
 * Sliding. Rows that move are turned in place by the backend, so every page that moves becomes the
 * sequence's own first, from the last to the first: what stands on a page and is held by this
 * sequence alone has then been taken out of the index, or copied, before the page itself. So again
 * only a page that others hold needs a new one for sure, and the count of those is what -ENOSPC is
 * decided by, before anything changes. */
#include "kv/pool.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* ---- the pool -------------------------------------------------------------------------------- */

int kv_pool_new(const struct kv_config *config, struct kv_pool **ret)
{
    assert(config->page_tokens > 0 && config->n_pages < KV_PAGE_NONE);
    uint32_t n = config->n_pages ? config->n_pages : 1;
    struct kv_pool *pool = calloc(1, sizeof *pool);
    if (pool == NULL)
        return -ENOMEM;
    pool->config = *config;
    pool->pages = calloc(n, sizeof *pool->pages);
    pool->free = calloc(n, sizeof *pool->free);
    pool->n_free = config->n_pages;
    pool->oldest = pool->newest = KV_PAGE_NONE;
    if (pool->pages == NULL || pool->free == NULL || kv_index_init(pool) < 0) {
        kv_pool_free(pool);
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < config->n_pages; i++) {
        pool->pages[i].domain = KV_DOMAIN_NONE;
        pool->free[i] = config->n_pages - 1 - i; /* page 0 is taken first */
    }
    *ret = pool;
    return 0;
}

void kv_pool_free(struct kv_pool *pool)
{
    if (pool == NULL)
        return;
    assert(kv_pool_used(pool) == 0);
    kv_index_done(pool);
    free(pool->pages);
    free(pool->free);
    free(pool);
}

uint64_t kv_pool_bytes(const struct kv_config *config)
{
    uint64_t n_buckets = 1, page = sizeof(struct kv_page) + sizeof(uint32_t) +
                                   config->page_tokens * (uint64_t)sizeof(int32_t);
    while (n_buckets < config->n_pages)
        n_buckets *= 2;
    return config->n_pages * page + n_buckets * sizeof(uint32_t);
}

uint32_t kv_pool_pages(const struct kv_pool *pool)
{
    return pool->config.n_pages;
}

uint32_t kv_pool_used(const struct kv_pool *pool)
{
    return pool->config.n_pages - kv_pool_available(pool);
}

uint32_t kv_pool_available(const struct kv_pool *pool)
{
    return pool->n_free + pool->n_cached;
}

uint32_t kv_pool_pages_for(const struct kv_pool *pool, uint64_t n_tokens)
{
    uint64_t n = n_tokens / pool->config.page_tokens + (n_tokens % pool->config.page_tokens != 0);
    return n > UINT32_MAX ? UINT32_MAX : (uint32_t)n;
}

struct kv_counts kv_pool_count(const struct kv_pool *pool)
{
    return (struct kv_counts){
        .n_pages = pool->config.n_pages,
        .n_free = pool->n_free,
        .n_cached = pool->n_cached,
        .n_held = kv_pool_used(pool),
        .n_shared = pool->n_shared,
        .lookups = pool->lookups,
        .hits_tokens = pool->hits_tokens,
        .merged = pool->merged,
        .copied = pool->copied,
        .evictions = pool->evictions,
        .zeroed = pool->zeroed,
    };
}

/* ---- the cached list ------------------------------------------------------------------------- */

static void cache_add(struct kv_pool *pool, uint32_t page)
{
    struct kv_page *p = &pool->pages[page];
    p->older = pool->newest;
    p->newer = KV_PAGE_NONE;
    if (pool->newest == KV_PAGE_NONE)
        pool->oldest = page;
    else
        pool->pages[pool->newest].newer = page;
    pool->newest = page;
    pool->n_cached++;
}

static void cache_remove(struct kv_pool *pool, uint32_t page)
{
    const struct kv_page *p = &pool->pages[page];
    if (p->older == KV_PAGE_NONE)
        pool->oldest = p->newer;
    else
        pool->pages[p->older].newer = p->newer;
    if (p->newer == KV_PAGE_NONE)
        pool->newest = p->older;
    else
        pool->pages[p->newer].older = p->older;
    pool->n_cached--;
}

/* ---- one page -------------------------------------------------------------------------------- */

static uint32_t evict_page(struct kv_pool *pool)
{
    uint32_t page = pool->oldest;
    assert(page != KV_PAGE_NONE && pool->pages[page].n_children == 0);
    cache_remove(pool, page);
    kv_index_remove(pool, page);
    pool->evictions++;
    return page;
}

static uint32_t take_page(struct kv_pool *pool, uint64_t domain)
{
    assert(kv_pool_available(pool) > 0);
    uint32_t page = pool->n_free > 0 ? pool->free[--pool->n_free] : evict_page(pool);
    struct kv_page *p = &pool->pages[page];
    assert(p->holders == 0 && !p->indexed);
    if (p->foreign || (p->domain != domain && p->domain != KV_DOMAIN_NONE)) {
        p->foreign = pool->config.zero != NULL && pool->config.zero(pool->config.ctx, page) < 0;
        pool->zeroed += !p->foreign;
    }
    p->domain = domain;
    p->holders = 1;
    return page;
}

static void hold_page(struct kv_pool *pool, uint32_t page)
{
    struct kv_page *p = &pool->pages[page];
    assert(p->holders > 0 || p->indexed);
    if (p->holders == 0)
        cache_remove(pool, page);
    if (++p->holders == 2)
        pool->n_shared++;
}

static void drop_page(struct kv_pool *pool, uint32_t page)
{
    struct kv_page *p = &pool->pages[page];
    assert(page < pool->config.n_pages && p->holders > 0);
    p->holders--;
    if (p->holders == 1)
        pool->n_shared--;
    else if (p->holders == 0 && p->indexed)
        cache_add(pool, page);
    else if (p->holders == 0)
        pool->free[pool->n_free++] = page;
}

static bool is_own(const struct kv_pool *pool, uint32_t page)
{
    return pool->pages[page].holders == 1 && !pool->pages[page].indexed;
}

static uint32_t copy_page(struct kv_pool *pool, uint32_t from)
{
    uint32_t to = take_page(pool, pool->pages[from].domain);
    if (pool->config.copy != NULL)
        pool->config.copy(pool->config.ctx, to, from);
    pool->copied++;
    return to;
}

/* ---- sequences ------------------------------------------------------------------------------- */

int kv_sequence_init(const struct kv_pool *pool, struct kv_sequence *s, uint32_t max_tokens,
                     uint64_t domain)
{
    assert(domain != KV_DOMAIN_NONE);
    uint32_t room = kv_pool_pages_for(pool, max_tokens);
    uint32_t *pages = calloc(room ? room : 1, sizeof *pages);
    if (pages == NULL)
        return -ENOMEM;
    *s = (struct kv_sequence){.pages = pages, .room = room, .domain = domain};
    return 0;
}

uint32_t kv_sequence_match(struct kv_pool *pool, struct kv_sequence *s, const int32_t *tokens,
                           uint32_t n_tokens)
{
    assert(s->n_pages == 0 && s->n_published == 0);
    uint32_t n = pool->config.page_tokens, most = n_tokens / n;
    uint32_t parent = KV_PAGE_NONE;

    pool->lookups++;
    if (most > s->room)
        most = s->room;
    while (s->n_pages < most) {
        const int32_t *at = tokens + (size_t)s->n_pages * n;
        uint64_t hash = kv_index_hash(pool, s->domain, parent, at);
        uint32_t page = kv_index_find(pool, hash, s->domain, parent, at);
        if (page == KV_PAGE_NONE)
            break;
        hold_page(pool, page);
        s->pages[s->n_pages++] = parent = page;
    }
    s->n_published = s->n_pages;
    s->n_tokens = s->n_pages * n;
    pool->hits_tokens += s->n_tokens;
    return s->n_tokens;
}

/* Page i of the sequence is about to be written. */
static void make_own(struct kv_pool *pool, struct kv_sequence *s, uint32_t i)
{
    uint32_t page = s->pages[i];
    assert(s->n_published <= i);
    if (is_own(pool, page))
        return;
    if (kv_pool_available(pool) == 0) {
        assert(pool->pages[page].holders == 1);
        kv_index_remove(pool, page);
        return;
    }
    s->pages[i] = copy_page(pool, page);
    drop_page(pool, page);
}

int kv_sequence_grow(struct kv_pool *pool, struct kv_sequence *s, uint32_t n_tokens)
{
    if (n_tokens <= s->n_tokens)
        return 0;
    uint32_t want = kv_pool_pages_for(pool, n_tokens);
    uint32_t first = s->n_tokens / pool->config.page_tokens; /* to be written; maybe not there */
    uint32_t need = want - s->n_pages;
    assert(want <= s->room && want >= s->n_pages);
    if (first < s->n_pages && pool->pages[s->pages[first]].holders > 1)
        need++; /* its copy cannot be done without */
    if (need > kv_pool_available(pool))
        return -ENOSPC;
    uint32_t n_before = s->n_pages;
    while (s->n_pages < want)
        s->pages[s->n_pages++] = take_page(pool, s->domain);
    if (first < n_before)
        make_own(pool, s, first);
    s->n_tokens = n_tokens;
    return 0;
}

void kv_sequence_publish(struct kv_pool *pool, struct kv_sequence *s, const int32_t *tokens,
                         uint32_t n_tokens)
{
    assert(n_tokens <= s->n_tokens);
    uint32_t n = pool->config.page_tokens, whole = n_tokens / n;
    if (s->n_published >= whole)
        return;
    uint32_t parent = s->n_published > 0 ? s->pages[s->n_published - 1] : KV_PAGE_NONE;
    assert(parent == KV_PAGE_NONE ||
           kv_index_holds_tokens(pool, parent, tokens + (size_t)(s->n_published - 1) * n));
    while (s->n_published < whole) {
        uint32_t *page = &s->pages[s->n_published];
        const int32_t *at = tokens + (size_t)s->n_published * n;
        uint64_t hash = kv_index_hash(pool, s->domain, parent, at);
        uint32_t same = kv_index_find(pool, hash, s->domain, parent, at);
        if (same != KV_PAGE_NONE) {
            assert(same != *page && !pool->pages[*page].indexed);
            hold_page(pool, same);
            drop_page(pool, *page);
            *page = same;
            pool->merged++;
        } else if (is_own(pool, *page)) {
            kv_index_enter(pool, *page, hash, parent, at);
        } else {
            return;
        }
        parent = *page;
        s->n_published++;
    }
}

void kv_sequence_trim(struct kv_pool *pool, struct kv_sequence *s, uint32_t n_tokens)
{
    if (n_tokens >= s->n_tokens)
        return;
    uint32_t keep = kv_pool_pages_for(pool, n_tokens), whole = n_tokens / pool->config.page_tokens;
    while (s->n_pages > keep)
        drop_page(pool, s->pages[--s->n_pages]);
    s->n_tokens = n_tokens;
    if (s->n_published > whole)
        s->n_published = whole;
}

int kv_sequence_fork(struct kv_pool *pool, const struct kv_sequence *from, struct kv_sequence *to,
                     uint32_t n_tokens)
{
    uint32_t whole = n_tokens / pool->config.page_tokens;
    bool partly = n_tokens % pool->config.page_tokens != 0;
    assert(to->n_pages == 0 && to->domain == from->domain);
    assert(n_tokens <= from->n_tokens && kv_pool_pages_for(pool, n_tokens) <= to->room);
    if (partly && kv_pool_available(pool) == 0)
        return -ENOSPC;
    for (uint32_t i = 0; i < whole; i++) {
        hold_page(pool, from->pages[i]);
        to->pages[i] = from->pages[i];
    }
    if (partly)
        to->pages[whole] = copy_page(pool, from->pages[whole]);
    to->n_pages = whole + partly;
    to->n_tokens = n_tokens;
    to->n_published = from->n_published < whole ? from->n_published : whole;
    return 0;
}

int kv_sequence_slide(struct kv_pool *pool, struct kv_sequence *s, uint32_t first, uint32_t n)
{
    uint32_t page = pool->config.page_tokens, from = first / page, leave = n / page, need = 0;
    assert(first % page == 0 && n % page == 0);
    assert(first <= s->n_tokens && n <= s->n_tokens - first);
    for (uint32_t i = from + leave; i < s->n_pages; i++)
        need += pool->pages[s->pages[i]].holders > 1;
    if (need > kv_pool_available(pool))
        return -ENOSPC;
    if (s->n_published > from)
        s->n_published = from;
    for (uint32_t i = s->n_pages; i > from + leave; i--)
        make_own(pool, s, i - 1);
    for (uint32_t i = from + leave; i > from; i--)
        drop_page(pool, s->pages[i - 1]);
    s->n_pages -= leave;
    s->n_tokens -= n;
    memmove(s->pages + from, s->pages + from + leave, (s->n_pages - from) * sizeof *s->pages);
    return 0;
}

bool kv_sequence_writable(const struct kv_pool *pool, const struct kv_sequence *s, uint32_t token)
{
    uint32_t i = token / pool->config.page_tokens;
    return i < s->n_pages && is_own(pool, s->pages[i]);
}

void kv_sequence_done(struct kv_pool *pool, struct kv_sequence *s)
{
    kv_sequence_trim(pool, s, 0);
    free(s->pages);
    *s = (struct kv_sequence){0};
}
