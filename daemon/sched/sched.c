/* sched.c: see sched.h for the model and the policy.
 *
 * Two queues of slots linked by index: `waiting` in order of arrival, `running` in order of start.
 * Both are walked from the front; a step costs O(running + waiting heads). Invariants: a slot is in
 * exactly one of free list, waiting, running; reserved[m] is the sum of n_pages over the running
 * sequences of model m and never above pages[m]; n_running <= max_running. */
#include "sched/sched.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#define NONE UINT32_MAX

enum state { STATE_FREE, STATE_WAITING, STATE_RUNNING };

struct sequence {
    enum state state;
    bool parked;
    uint32_t next, previous; /* in its queue; next in the free list */
    uint32_t model, uid;
    uint32_t owed; /* rows */
    uint32_t n_pages;
    uint64_t added_us;
};

struct queue {
    uint32_t first, last, n;
};

struct sched_model {
    uint32_t pages, reserved;
};

struct sched {
    struct sched_config config;
    struct sequence *sequences;
    struct sched_model *models;
    uint32_t free;
    struct queue waiting, running;
    uint32_t n_parked;
    uint32_t last_model; /* whose turn it was */
};

int sched_new(const struct sched_config *config, struct sched **ret)
{
    assert(config->max_sequences > 0 && config->step_rows > 0 && config->n_models > 0);
    struct sched *s = calloc(1, sizeof *s);
    if (s == NULL)
        return -ENOMEM;
    s->config = *config;
    s->sequences = calloc(config->max_sequences, sizeof *s->sequences);
    s->models = calloc(config->n_models, sizeof *s->models);
    if (s->sequences == NULL || s->models == NULL) {
        sched_free(s);
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < config->max_sequences; i++)
        s->sequences[i].next = i + 1 < config->max_sequences ? i + 1 : NONE;
    s->waiting = s->running = (struct queue){NONE, NONE, 0};
    *ret = s;
    return 0;
}

void sched_free(struct sched *s)
{
    if (s == NULL)
        return;
    free(s->sequences);
    free(s->models);
    free(s);
}

void sched_set_pages(struct sched *s, uint32_t model, uint32_t n_pages)
{
    assert(model < s->config.n_models);
    s->models[model].pages = n_pages;
}

static void queue_append(struct sched *s, struct queue *q, uint32_t slot)
{
    struct sequence *seq = &s->sequences[slot];
    seq->next = NONE;
    seq->previous = q->last;
    if (q->last != NONE)
        s->sequences[q->last].next = slot;
    else
        q->first = slot;
    q->last = slot;
    q->n++;
}

static void queue_take(struct sched *s, struct queue *q, uint32_t slot)
{
    struct sequence *seq = &s->sequences[slot];
    if (seq->previous != NONE)
        s->sequences[seq->previous].next = seq->next;
    else
        q->first = seq->next;
    if (seq->next != NONE)
        s->sequences[seq->next].previous = seq->previous;
    else
        q->last = seq->previous;
    q->n--;
}

int sched_add(struct sched *s, const struct sched_request *request, uint64_t now_us,
              uint32_t *ret_slot)
{
    assert(request->model < s->config.n_models && request->n_rows > 0);
    if (request->n_pages > s->models[request->model].pages)
        return -E2BIG;
    if (s->free == NONE)
        return -ENOSPC;
    uint32_t slot = s->free;
    struct sequence *seq = &s->sequences[slot];
    s->free = seq->next;
    *seq = (struct sequence){.state = STATE_WAITING,
                             .model = request->model,
                             .uid = request->uid,
                             .owed = request->n_rows,
                             .n_pages = request->n_pages,
                             .added_us = now_us};
    queue_append(s, &s->waiting, slot);
    *ret_slot = slot;
    return 0;
}

static struct sequence *known(const struct sched *s, uint32_t slot)
{
    assert(slot < s->config.max_sequences && s->sequences[slot].state != STATE_FREE);
    return &s->sequences[slot];
}

void sched_remove(struct sched *s, uint32_t slot)
{
    struct sequence *seq = known(s, slot);
    if (seq->state == STATE_RUNNING) {
        s->models[seq->model].reserved -= seq->n_pages;
        queue_take(s, &s->running, slot);
    } else {
        queue_take(s, &s->waiting, slot);
    }
    s->n_parked -= seq->parked;
    *seq = (struct sequence){.state = STATE_FREE, .next = s->free};
    s->free = slot;
}

void sched_park(struct sched *s, uint32_t slot)
{
    struct sequence *seq = known(s, slot);
    s->n_parked += !seq->parked;
    seq->parked = true;
}

void sched_resume(struct sched *s, uint32_t slot)
{
    struct sequence *seq = known(s, slot);
    s->n_parked -= seq->parked;
    seq->parked = false;
}

/* First come, first served: the head of the queue is not overtaken by smaller requests of the same
 * model, so that a large one cannot starve; another model's requests may pass. */
static void start_waiting(struct sched *s)
{
    uint64_t blocked = 0; /* models whose head did not fit, by bit; the rest share bit 63 */
    for (uint32_t slot = s->waiting.first, next; slot != NONE; slot = next) {
        struct sequence *seq = &s->sequences[slot];
        struct sched_model *m = &s->models[seq->model];
        uint64_t bit = UINT64_C(1) << (seq->model < 63 ? seq->model : 63);
        next = seq->next;
        if (s->running.n >= s->config.max_running)
            return;
        if (blocked & bit)
            continue;
        if (m->pages - m->reserved < seq->n_pages) {
            blocked |= bit;
            continue;
        }
        m->reserved += seq->n_pages;
        queue_take(s, &s->waiting, slot);
        seq->state = STATE_RUNNING;
        queue_append(s, &s->running, slot);
    }
}

static bool can_run(const struct sequence *seq)
{
    return !seq->parked && seq->owed > 0;
}

/* The next model after last_model that has a runnable sequence, or NONE. */
static uint32_t choose_model(const struct sched *s)
{
    uint32_t best = NONE, best_distance = NONE;
    for (uint32_t slot = s->running.first; slot != NONE; slot = s->sequences[slot].next) {
        const struct sequence *seq = &s->sequences[slot];
        if (!can_run(seq))
            continue;
        uint32_t n = s->config.n_models;
        uint32_t distance = (seq->model + n - s->last_model - 1) % n;
        if (distance < best_distance) {
            best = seq->model;
            best_distance = distance;
        }
    }
    return best;
}

uint32_t sched_plan(struct sched *s, uint64_t now_us, uint32_t *ret_model, struct sched_work *ret,
                    uint32_t room)
{
    (void)now_us;
    start_waiting(s);
    uint32_t model = choose_model(s);
    if (model == NONE || room == 0)
        return 0;
    s->last_model = model;
    uint32_t n = 0, budget = s->config.step_rows;
    for (int prefill = 0; prefill < 2; prefill++) {
        for (uint32_t slot = s->running.first; slot != NONE && n < room && budget > 0;
             slot = s->sequences[slot].next) {
            const struct sequence *seq = &s->sequences[slot];
            if (seq->model != model || !can_run(seq) || (seq->owed > 1) != prefill)
                continue;
            uint32_t rows = seq->owed < budget ? seq->owed : budget;
            ret[n++] = (struct sched_work){slot, rows};
            budget -= rows;
        }
    }
    *ret_model = model;
    return n;
}

void sched_ran(struct sched *s, uint32_t slot, uint32_t n_rows, uint32_t n_new)
{
    struct sequence *seq = known(s, slot);
    assert(seq->state == STATE_RUNNING && n_rows <= seq->owed);
    seq->owed = seq->owed - n_rows + n_new;
}

uint32_t sched_position(const struct sched *s, uint32_t slot)
{
    if (known(s, slot)->state == STATE_RUNNING)
        return 0;
    uint32_t n = 0;
    for (uint32_t at = s->waiting.first; at != slot; at = s->sequences[at].next)
        n++;
    return n;
}

struct sched_counts sched_count(const struct sched *s)
{
    return (struct sched_counts){s->waiting.n, s->running.n, s->n_parked};
}

void sched_check(const struct sched *s)
{
    uint32_t n_running = 0, n_waiting = 0, n_parked = 0, n_free = 0;
    for (uint32_t m = 0; m < s->config.n_models; m++) {
        uint64_t reserved = 0;
        for (uint32_t slot = s->running.first; slot != NONE; slot = s->sequences[slot].next)
            reserved += s->sequences[slot].model == m ? s->sequences[slot].n_pages : 0;
        assert(reserved == s->models[m].reserved && reserved <= s->models[m].pages);
    }
    for (uint32_t i = 0; i < s->config.max_sequences; i++) {
        n_running += s->sequences[i].state == STATE_RUNNING;
        n_waiting += s->sequences[i].state == STATE_WAITING;
        n_parked += s->sequences[i].parked;
    }
    for (uint32_t slot = s->free; slot != NONE; slot = s->sequences[slot].next)
        n_free++;
    assert(n_running == s->running.n && n_waiting == s->waiting.n && n_parked == s->n_parked);
    assert(n_running + n_waiting + n_free == s->config.max_sequences);
    assert(n_running <= s->config.max_running);
}
