/* merge_queue.h: which pair of neighbours merges next: the lowest rank, the leftmost among equals.
 *
 * A four-way heap of 64-bit keys, rank above position, so that one comparison orders both. Entries
 * are never removed when their pair goes stale; who pops them checks. Private to bpe.c and spm.c.
 */
#ifndef INFERD_MODEL_MERGE_QUEUE_H
#define INFERD_MODEL_MERGE_QUEUE_H

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

struct merge_queue {
    uint64_t *keys;
    size_t n, room;
};

static inline uint64_t merge_key(uint32_t rank, uint32_t position)
{
    return (uint64_t)rank << 32 | position;
}

static inline int merge_queue_reserve(struct merge_queue *q, size_t room)
{
    if (room <= q->room)
        return 0;
    room = room < q->room * 2 ? q->room * 2 : room;
    uint64_t *keys = realloc(q->keys, room * sizeof *keys);
    if (keys == NULL)
        return -ENOMEM;
    q->keys = keys;
    q->room = room;
    return 0;
}

static inline void merge_queue_sink(struct merge_queue *q, size_t i, uint64_t key)
{
    for (;;) {
        size_t child = 4 * i + 1;
        if (child >= q->n)
            break;
        size_t last = child + 4 < q->n ? child + 4 : q->n;
        size_t best = child;
        for (size_t k = child + 1; k < last; k++)
            best = q->keys[k] < q->keys[best] ? k : best;
        if (q->keys[best] >= key)
            break;
        q->keys[i] = q->keys[best];
        i = best;
    }
    q->keys[i] = key;
}

/* Orders keys that were put in without order. */
static inline void merge_queue_heapify(struct merge_queue *q)
{
    if (q->n < 2)
        return;
    for (size_t i = (q->n - 2) / 4 + 1; i-- > 0;)
        merge_queue_sink(q, i, q->keys[i]);
}

static inline int merge_queue_push(struct merge_queue *q, uint64_t key)
{
    if (q->n == q->room && merge_queue_reserve(q, q->n + 64) < 0)
        return -ENOMEM;
    size_t i = q->n++;
    while (i > 0 && q->keys[(i - 1) / 4] > key) {
        q->keys[i] = q->keys[(i - 1) / 4];
        i = (i - 1) / 4;
    }
    q->keys[i] = key;
    return 0;
}

/* The queue is not empty. */
static inline uint64_t merge_queue_pop(struct merge_queue *q)
{
    uint64_t top = q->keys[0];
    uint64_t last = q->keys[--q->n];
    if (q->n > 0)
        merge_queue_sink(q, 0, last);
    return top;
}

#endif
