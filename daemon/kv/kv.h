/* kv.h: who holds which page of sequence state.
 *
 * The data model in ten lines. A backend owns a pool of n_pages pages; each holds page_tokens rows
 * of state for all layers. This module owns the book-keeping only: a page is free or has a count
 * of holders. A sequence's state (struct kv_sequence) is the list of pages that hold its rows
 * 0 .. n_tokens - 1 in order; the last page may be partly used. A page with one holder may be
 * written, one with more is shared and read-only (its holders share a prefix of whole pages).
 * "State" rather than "cache", because models with recurrent layers keep more here than keys and
 * values; snapshots, sharing and roll-back go through the same four calls.
 *
 * Invariants (kv_check() asserts them all): the free list and the holders partition the pages; the
 * sum over sequences of pages equals the sum of holder counts; no page stands twice in a sequence.
 *
 * Threads: one, the engine's. Memory: everything is allocated by kv_pool_new() and
 * kv_sequence_init(); growing, trimming and releasing allocate nothing and cannot fail otherwise
 * than by a lack of pages. */
#ifndef INFERD_KV_KV_H
#define INFERD_KV_KV_H

#include <stdbool.h>
#include <stdint.h>

struct kv_pool;

struct kv_sequence {
    uint32_t *pages;
    uint32_t n_pages; /* held now */
    uint32_t room;    /* of the pages array */
};

int kv_pool_new(uint32_t n_pages, uint32_t page_tokens, struct kv_pool **ret);
void kv_pool_free(struct kv_pool *pool);

uint32_t kv_pool_pages(const struct kv_pool *pool);
uint32_t kv_pool_used(const struct kv_pool *pool);
/* Pages that n_tokens rows take. */
uint32_t kv_pool_pages_for(const struct kv_pool *pool, uint64_t n_tokens);

/* Room for max_tokens rows at the most; holds no page yet. -ENOMEM. */
int kv_sequence_init(const struct kv_pool *pool, struct kv_sequence *s, uint32_t max_tokens);

/* Makes the sequence hold pages for n_tokens rows. -ENOSPC when the pool has too few (nothing is
 * taken then). n_tokens is at most the max_tokens of init. */
int kv_sequence_grow(struct kv_pool *pool, struct kv_sequence *s, uint32_t n_tokens);

/* Gives up the pages behind row n_tokens: roll-back. */
void kv_sequence_trim(struct kv_pool *pool, struct kv_sequence *s, uint32_t n_tokens);

/* Makes `to`, which holds nothing, share the whole pages of the first n_tokens rows of `from`.
 * Returns how many rows are shared: n_tokens rounded down to whole pages. */
uint32_t kv_sequence_share(struct kv_pool *pool, const struct kv_sequence *from,
                           struct kv_sequence *to, uint32_t n_tokens);

/* May row `token` of this sequence be written in place? */
bool kv_sequence_writable(const struct kv_pool *pool, const struct kv_sequence *s, uint32_t token);

/* Gives every page back and frees the array. */
void kv_sequence_done(struct kv_pool *pool, struct kv_sequence *s);

/* Asserts the pool's invariants over all its sequences; for tests. */
void kv_check(const struct kv_pool *pool, const struct kv_sequence *const *sequences, uint32_t n);

#endif
