/* kv.h: who holds which page of sequence state, and which finished pages can be used again.
 *
 * The data model. A backend owns a pool of n_pages pages; each holds page_tokens rows of state for
 * all layers. This module owns the book-keeping only. A sequence (struct kv_sequence) is the list
 * of pages that hold its rows 0 .. n_tokens - 1 in order; the last page may be partly used. A page
 * is in one of three states:
 *
 *   free    nobody holds it and nothing in it can be found
 *   held    in the lists of `holders` sequences; with more than one it is shared
 *   cached  nobody holds it, but it is in the prefix index and stays there until it is given up
 *
 * A whole page whose rows are complete is published: it enters the prefix index under its domain,
 * its parent (the published page before it) and its tokens, so that a later sequence that starts
 * with the same tokens takes it instead of computing it. A page that is shared or published is
 * read-only; kv_sequence_grow() gives a sequence its own copy before a row of it is written again.
 * When pages run out, cached ones are given up, the least recently used first and never one that a
 * published page still stands on.
 *
 * Privacy. A domain is whose pages these are: a uid, or the id of a domain that the administrator
 * declared shared (the caller keeps the two kinds of numbers apart). Nothing is found across
 * domains, and a page that last held another domain's rows is zeroed before it is handed out. One
 * that could not be zeroed is handed out as it is, for the caller must fail whatever was to run
 * with it, and is zeroed when it is taken next, whosever it is then.
 *
 * "State" rather than "cache", because models with recurrent layers keep more here than keys and
 * values; snapshots, sharing and roll-back go through the same calls.
 *
 * What the caller promises about rows: row i's state is a function of the tokens 0 .. i alone (the
 * backend's contract, whatever the batch), and a sequence whose rows are something else, such as
 * one whose old rows were dropped and the rest re-rotated, is never published.
 *
 * Threads: one, the engine's, between steps: a page list may change in grow, trim and publish.
 * Memory: everything is allocated by kv_pool_new() and kv_sequence_init(); no other call allocates
 * or can fail otherwise than by a lack of pages. */
#ifndef INFERD_KV_KV_H
#define INFERD_KV_KV_H

#include <stdbool.h>
#include <stdint.h>

/* Uids are domains below 2^32, shared domains are above. */
#define KV_DOMAIN_NONE UINT64_MAX

struct kv_pool;

struct kv_sequence {
    uint32_t *pages;
    uint32_t n_pages;     /* held now */
    uint32_t room;        /* of the pages array */
    uint32_t n_tokens;    /* rows that it has pages for: of match, fork, grow, trim */
    uint32_t n_published; /* pages[0 .. n_published) are in the index, each the next one's parent */
    uint64_t domain;
};

struct kv_config {
    uint32_t n_pages, page_tokens;
    uint8_t key[16]; /* random, drawn at start; salts the index */
    /* Calls into the backend, done when they return; both touch the whole page. NULL: no-op. The
     * pool starts zeroed. zero: negative when it failed; the caller sees to it that nobody reads
     * the page until it is taken again. */
    void *ctx;
    int (*zero)(void *ctx, uint32_t page);
    void (*copy)(void *ctx, uint32_t to, uint32_t from);
};

/* ---- the pool -------------------------------------------------------------------------------- */

int kv_pool_new(const struct kv_config *config, struct kv_pool **ret);
/* Memory that such a pool takes for itself, beside the pages that the backend has. */
uint64_t kv_pool_bytes(const struct kv_config *config);
/* Every sequence has been done; cached pages need no farewell. */
void kv_pool_free(struct kv_pool *pool);

uint32_t kv_pool_pages(const struct kv_pool *pool);
/* Pages that sequences hold; a shared one counts once. */
uint32_t kv_pool_used(const struct kv_pool *pool);
/* The others: free or cached. A grow that needs no more than these does not fail. */
uint32_t kv_pool_available(const struct kv_pool *pool);
/* Pages that n_tokens rows take. */
uint32_t kv_pool_pages_for(const struct kv_pool *pool, uint64_t n_tokens);

struct kv_counts {
    uint32_t n_pages;
    uint32_t n_free, n_cached, n_held; /* together n_pages */
    uint32_t n_shared;                 /* of n_held: those with several holders */
    uint64_t lookups;                  /* calls of match */
    uint64_t hits_tokens;              /* rows that match found */
    uint64_t merged;                   /* pages computed twice, of which one was given back */
    uint64_t copied;                   /* for fork and for writing after a roll-back */
    uint64_t evictions;                /* cached pages that were given up */
    uint64_t zeroed;                   /* because they held another domain's rows */
};
struct kv_counts kv_pool_count(const struct kv_pool *pool);

/* ---- sequences ------------------------------------------------------------------------------- */

/* Room for max_tokens rows at the most; holds no page yet. -ENOMEM. */
int kv_sequence_init(const struct kv_pool *pool, struct kv_sequence *s, uint32_t max_tokens,
                     uint64_t domain);

/* Lets a sequence that holds nothing take the longest published prefix of tokens[0 .. n_tokens) in
 * its domain, as far as its list has room. Returns the rows it has now: a multiple of page_tokens,
 * at most n_tokens. To draw a token from the last row of a prompt that row must be run, so pass one
 * less than the prompt's. */
uint32_t kv_sequence_match(struct kv_pool *pool, struct kv_sequence *s, const int32_t *tokens,
                           uint32_t n_tokens);

/* Makes the sequence hold pages for n_tokens rows (at most the max_tokens of init); the rows from
 * its present n_tokens on may be written then. -ENOSPC when the pool has too few pages; nothing is
 * taken then. Fewer rows than it has: does nothing. */
int kv_sequence_grow(struct kv_pool *pool, struct kv_sequence *s, uint32_t n_tokens);

/* The state of rows 0 .. n_tokens - 1 is complete, and these are their tokens: publishes the whole
 * pages among them. Cheap to call after every step: it looks at new whole pages only. Where the
 * index has the same page already, the sequence changes over to that one and gives its own back.
 * Pages that are shared though never published wait until they have one holder; so publish before
 * forking. */
void kv_sequence_publish(struct kv_pool *pool, struct kv_sequence *s, const int32_t *tokens,
                         uint32_t n_tokens);

/* Gives up the rows from n_tokens on: roll-back, and with 0 the end. Published pages stay cached
 * when nobody else holds them. */
void kv_sequence_trim(struct kv_pool *pool, struct kv_sequence *s, uint32_t n_tokens);

/* Gives `to`, which holds nothing and is of the same domain, the first n_tokens rows of `from`
 * (which has them): whole pages are shared, a partly used one is copied. -ENOSPC when there is no
 * page for the copy; nothing is taken then. */
int kv_sequence_fork(struct kv_pool *pool, const struct kv_sequence *from, struct kv_sequence *to,
                     uint32_t n_tokens);

/* The rows [first, first + n), which are whole pages, leave and later rows move up by n. Pages from
 * `first` on are the sequence's own afterwards (copied where they are shared or published) and it
 * may not be published any more beyond `first`. n may be 0: then the pages only become its own, and
 * a slide from there on takes no page. -ENOSPC when there is no page for a copy; nothing has
 * changed then. The caller has the backend turn the keys of the pages that moved. */
int kv_sequence_slide(struct kv_pool *pool, struct kv_sequence *s, uint32_t first, uint32_t n);

/* May row `token` of this sequence be written in place? */
bool kv_sequence_writable(const struct kv_pool *pool, const struct kv_sequence *s, uint32_t token);

/* Gives every page back and frees the array. */
void kv_sequence_done(struct kv_pool *pool, struct kv_sequence *s);

/* ---- for tests ------------------------------------------------------------------------------- */

/* Asserts the pool's invariants; the sequences are all that there are. */
void kv_check(const struct kv_pool *pool, const struct kv_sequence *const *sequences, uint32_t n);

/* Before the first publish: keeps only the lowest n_bits of every hash, so that many collide. */
void kv_pool_truncate_hashes(struct kv_pool *pool, unsigned n_bits);

#endif
