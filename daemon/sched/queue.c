/* queue.c: who waits, and in which order.
 *
 * The order between uids changes with every row that is run, that within a uid does not. So the
 * waiting sequences of one uid and one model form a lane, and a lane has a heap for each class,
 * ordered by who ran before, deadline, arrival; only the heads of lanes are compared between uids,
 * and that when somebody can start.
 *
 * The heaps are leftist ones, linked through the sequences: the right spine of n nodes has at most
 * log2(n + 1) of them, so insertion, removal of any node and merging are O(log n) whatever clients
 * choose as deadlines. Recursion follows right spines and is as shallow.
 *
 * Ageing needs no search either: all sequences of a rung stay there for the same time, so each rung
 * is a list in order of when they came there, and those due are at its front. (A rung is left at a
 * step, so climbing it takes up to one step longer.) Who is parked when it is due does not climb
 * and begins the rung anew; who was parked in between, as a client that reads in bursts is many
 * times a second, keeps its place and loses nothing.
 *
 * Invariants: a waiting sequence is in one rung's list; one that is not parked is in the heap of
 * its lane at its level, too, one that is parked in none; a lane is in `active` and in its user's
 * list exactly while it holds a sequence, so there are never more lanes than sequences.
 */
#include "sched/internal.h"

#include <assert.h>

/* ---- lists ----------------------------------------------------------------------------------- */

void list_append(struct sched *s, struct list *list, uint32_t slot)
{
    struct sequence *seq = &s->sequences[slot];
    seq->next = NONE;
    seq->previous = list->last;
    if (list->last != NONE)
        s->sequences[list->last].next = slot;
    else
        list->first = slot;
    list->last = slot;
    list->n++;
}

void list_take(struct sched *s, struct list *list, uint32_t slot)
{
    struct sequence *seq = &s->sequences[slot];
    if (seq->previous != NONE)
        s->sequences[seq->previous].next = seq->next;
    else
        list->first = seq->next;
    if (seq->next != NONE)
        s->sequences[seq->next].previous = seq->previous;
    else
        list->last = seq->previous;
    list->n--;
}

/* ---- the heap of a class --------------------------------------------------------------------- */

static bool goes_before(const struct sequence *a, const struct sequence *b)
{
    if (a->preempted != b->preempted)
        return a->preempted;
    if (a->deadline_us != b->deadline_us)
        return a->deadline_us < b->deadline_us;
    return a->arrival < b->arrival;
}

static uint32_t rank_of(const struct sequence *q, uint32_t slot)
{
    return slot == NONE ? 0 : q[slot].rank;
}

/* Puts the child with the longer right spine to the left; true when the rank changed. */
static bool lean(struct sequence *q, uint32_t slot)
{
    struct sequence *seq = &q[slot];
    uint32_t before = seq->rank;
    if (rank_of(q, seq->left) < rank_of(q, seq->right)) {
        uint32_t left = seq->left;
        seq->left = seq->right;
        seq->right = left;
    }
    seq->rank = rank_of(q, seq->right) + 1;
    return seq->rank != before;
}

static uint32_t merge(struct sequence *q, uint32_t a, uint32_t b)
{
    if (a == NONE || b == NONE)
        return a == NONE ? b : a;
    if (goes_before(&q[b], &q[a])) {
        uint32_t c = a;
        a = b;
        b = c;
    }
    q[a].right = merge(q, q[a].right, b);
    q[q[a].right].parent = a;
    lean(q, a);
    return a;
}

static void heap_add(struct sequence *q, uint32_t *root, uint32_t slot)
{
    q[slot].left = q[slot].right = NONE;
    q[slot].rank = 1;
    *root = merge(q, *root, slot);
    q[*root].parent = NONE;
}

static void heap_take(struct sequence *q, uint32_t *root, uint32_t slot)
{
    uint32_t parent = q[slot].parent, child = merge(q, q[slot].left, q[slot].right);
    if (child != NONE)
        q[child].parent = parent;
    if (parent == NONE)
        *root = child;
    else if (q[parent].left == slot)
        q[parent].left = child;
    else
        q[parent].right = child;
    while (parent != NONE && lean(q, parent))
        parent = q[parent].parent;
}

/* How many nodes go before `than`: a subtree whose root does not holds none. */
static uint32_t count_before(const struct sequence *q, uint32_t at, const struct sequence *than)
{
    uint32_t n = 0;
    for (; at != NONE && goes_before(&q[at], than); at = q[at].left)
        n += 1 + count_before(q, q[at].right, than);
    return n;
}

/* ---- lanes ----------------------------------------------------------------------------------- */

static uint32_t lane_get(struct sched *s, uint32_t user, uint32_t model)
{
    for (uint32_t i = s->users[user].lanes; i != NONE; i = s->lanes[i].next)
        if (s->lanes[i].model == model)
            return i;
    uint32_t i = s->free_lane;
    assert(i != NONE);
    s->free_lane = s->lanes[i].next;
    s->lanes[i] = (struct lane){.user = user,
                                .model = model,
                                .root = {NONE, NONE, NONE},
                                .next = s->users[user].lanes,
                                .index = s->n_active};
    s->users[user].lanes = i;
    s->active[s->n_active++] = i;
    return i;
}

static void lane_put(struct sched *s, uint32_t i)
{
    struct lane *lane = &s->lanes[i];
    uint32_t *at = &s->users[lane->user].lanes;
    while (*at != i)
        at = &s->lanes[*at].next;
    *at = lane->next;
    s->active[lane->index] = s->active[--s->n_active];
    s->lanes[s->active[lane->index]].index = lane->index;
    lane->next = s->free_lane;
    s->free_lane = i;
}

static void heap_enter(struct sched *s, uint32_t slot)
{
    struct sequence *seq = &s->sequences[slot];
    uint32_t level = level_of(seq);
    heap_add(s->sequences, &s->lanes[seq->lane].root[level], slot);
    s->users[seq->user].n_level[level]++;
}

static void heap_leave(struct sched *s, uint32_t slot)
{
    struct sequence *seq = &s->sequences[slot];
    uint32_t level = level_of(seq);
    heap_take(s->sequences, &s->lanes[seq->lane].root[level], slot);
    s->users[seq->user].n_level[level]--;
}

void queue_release(struct sched *s, uint32_t slot)
{
    struct sequence *seq = &s->sequences[slot];
    seq->lane = lane_get(s, seq->user, seq->model);
    s->lanes[seq->lane].n++;
    s->models[seq->model].n_waiting++;
    heap_enter(s, slot);
}

void queue_hold(struct sched *s, uint32_t slot)
{
    struct sequence *seq = &s->sequences[slot];
    heap_leave(s, slot);
    s->models[seq->model].n_waiting--;
    if (--s->lanes[seq->lane].n == 0)
        lane_put(s, seq->lane);
    seq->lane = NONE;
}

void queue_add(struct sched *s, uint32_t slot)
{
    struct sequence *seq = &s->sequences[slot];
    s->n_waiting++;
    s->users[seq->user].n_waiting++;
    s->n_preempted += seq->preempted;
    s->users[seq->user].n_preempted += seq->preempted;
    seq->lane = NONE;
    seq->since_us = s->now_us;
    list_append(s, &s->rungs[seq->rung], slot);
    if (!seq->parked)
        queue_release(s, slot);
}

void queue_take(struct sched *s, uint32_t slot)
{
    struct sequence *seq = &s->sequences[slot];
    s->n_waiting--;
    s->users[seq->user].n_waiting--;
    s->n_preempted -= seq->preempted;
    s->users[seq->user].n_preempted -= seq->preempted;
    list_take(s, &s->rungs[seq->rung], slot);
    if (seq->lane != NONE)
        queue_hold(s, slot);
}

uint32_t queue_head(const struct sched *s, const struct lane *lane)
{
    for (uint32_t level = 0; level < SCHED_CLASSES; level++)
        if (lane->root[level] != NONE)
            return lane->root[level];
    assert(!"a lane holds a sequence");
    return NONE;
}

uint32_t queue_rank(const struct sched *s, uint32_t slot)
{
    const struct sequence *seq = &s->sequences[slot];
    uint32_t n = 0;
    for (uint32_t i = s->users[seq->user].lanes; i != NONE; i = s->lanes[i].next)
        n += count_before(s->sequences, s->lanes[i].root[level_of(seq)], seq);
    return n;
}

/* It has been on its rung for age_us. */
static void climb(struct sched *s, uint32_t slot)
{
    struct sequence *seq = &s->sequences[slot];
    list_take(s, &s->rungs[seq->rung], slot);
    seq->since_us = s->now_us;
    if (seq->lane != NONE) {
        heap_leave(s, slot);
        seq->rung--;
        if (seq->rung == 0)
            seq->deadline_us = 0;
        heap_enter(s, slot);
    }
    list_append(s, &s->rungs[seq->rung], slot);
}

/* One rung at most per sequence and step, the oldest of a rung first. */
void queue_age(struct sched *s)
{
    uint32_t left = SCHED_AGE_PER_STEP;
    for (uint32_t rung = 1; rung < RUNGS; rung++) {
        for (uint32_t slot; left > 0 && (slot = s->rungs[rung].first) != NONE; left--) {
            if (s->now_us - s->sequences[slot].since_us < s->config.age_us)
                break;
            climb(s, slot);
        }
    }
}

/* ---- rivals ---------------------------------------------------------------------------------- */

bool rival_before(const struct rival *a, const struct rival *b)
{
    if (a->level != b->level)
        return a->level < b->level;
    if (a->key != b->key)
        return a->key < b->key;
    if (a->deadline_us != b->deadline_us)
        return a->deadline_us < b->deadline_us;
    return a->arrival < b->arrival;
}

void rivals_sink(struct rival *heap, uint32_t n, uint32_t at)
{
    struct rival moving = heap[at];
    for (uint32_t child = 2 * at + 1; child < n; child = 2 * at + 1) {
        if (child + 1 < n && rival_before(&heap[child + 1], &heap[child]))
            child++;
        if (!rival_before(&heap[child], &moving))
            break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = moving;
}

void rivals_order(struct rival *heap, uint32_t n)
{
    for (uint32_t at = n / 2; at-- > 0;)
        rivals_sink(heap, n, at);
}

void rivals_pop(struct rival *heap, uint32_t *n)
{
    heap[0] = heap[--*n];
    if (*n > 0)
        rivals_sink(heap, *n, 0);
}

/* ---- invariants ------------------------------------------------------------------------------ */

static uint32_t check_heap(const struct sched *s, uint32_t lane, uint32_t level, uint32_t at,
                           uint32_t parent)
{
    uint32_t n = 0;
    for (; at != NONE; parent = at, at = s->sequences[at].left) {
        const struct sequence *seq = &s->sequences[at];
        assert(seq->state == STATE_WAITING && seq->lane == lane && level_of(seq) == level);
        assert(!seq->parked);
        assert(seq->parent == parent);
        assert(parent == NONE || !goes_before(seq, &s->sequences[parent]));
        assert(seq->rank == rank_of(s->sequences, seq->right) + 1);
        assert(rank_of(s->sequences, seq->left) >= rank_of(s->sequences, seq->right));
        n += 1 + check_heap(s, lane, level, seq->right, at);
    }
    return n;
}

void queue_check(const struct sched *s)
{
    uint32_t n_waiting = 0, n_listed = 0, n_parked = 0;
    for (uint32_t i = 0; i < s->n_active; i++) {
        const struct lane *lane = &s->lanes[s->active[i]];
        uint32_t n = 0;
        for (uint32_t level = 0; level < SCHED_CLASSES; level++)
            n += check_heap(s, s->active[i], level, lane->root[level], NONE);
        assert(lane->index == i && n == lane->n && n > 0);
        n_waiting += n;
    }
    for (uint32_t rung = 0; rung < RUNGS; rung++)
        for (uint32_t slot = s->rungs[rung].first; slot != NONE; slot = s->sequences[slot].next) {
            uint32_t next = s->sequences[slot].next;
            assert(s->sequences[slot].rung == rung);
            assert(next == NONE || s->sequences[slot].since_us <= s->sequences[next].since_us);
            n_listed++;
        }
    for (uint32_t slot = 0; slot < s->config.max_sequences; slot++)
        n_parked += s->sequences[slot].state == STATE_WAITING && s->sequences[slot].lane == NONE;
    assert(n_waiting + n_parked == s->n_waiting && n_listed == s->n_waiting);
}
