/* sched.c: a sequence's life from sched_add() to sched_remove(); see sched.h for the policy.
 *
 * Invariants, all of them in sched_check(): a slot is free, waiting or running, and in exactly one
 * list; reserved[m] is the sum of n_pages over the running sequences of model m, n_pages of a user
 * that over his own; `committed` of a user is the cost of what his running sequences owe; nobody
 * runs above max_running, his own or that of all.
 *
 * Costs: adding is O(uids + running), for finding the uid and the smallest counters; removing,
 * parking and charging are O(1), or O(log waiting) for one that waits. */
#include "sched/internal.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

/* ---- making ---------------------------------------------------------------------------------- */

static void or_default(uint32_t *field, uint32_t value)
{
    if (*field == 0)
        *field = value;
}

static void fill_defaults(struct sched_config *c)
{
    or_default(&c->n_users_max, 256);
    or_default(&c->decode_growth_percent, 50);
    or_default(&c->prefill_cost, 1);
    or_default(&c->decode_cost, 2);
    or_default(&c->age_us, 10000000);
    or_default(&c->lag_rows, 32);
    or_default(&c->credit_rows, 256);
    or_default(&c->skips_max, 64);
    or_default(&c->idle_grace_us, 250000);
    or_default(&c->newcomer_slots, c->max_running < 4 ? 0 : (c->max_running + 7) / 8);
    c->newcomer_slots = min_u32(c->newcomer_slots, c->max_running);
}

static void link_free(struct sched *s)
{
    uint32_t n = s->config.max_sequences;
    for (uint32_t i = 0; i < n; i++) {
        s->sequences[i].next = i + 1 < n ? i + 1 : NONE;
        s->lanes[i].next = i + 1 < n ? i + 1 : NONE;
    }
    for (uint32_t rung = 0; rung < RUNGS; rung++)
        s->rungs[rung] = (struct list){NONE, NONE, 0};
    for (uint32_t m = 0; m < s->config.n_models; m++)
        s->models[m].running = (struct list){NONE, NONE, 0};
}

int sched_new(const struct sched_config *config, struct sched **ret)
{
    assert(config->max_sequences > 0 && config->step_rows > 0 && config->n_models > 0);
    assert(config->policy.weight <= SCHED_WEIGHT_MAX);
    struct sched *s = calloc(1, sizeof *s);
    if (s == NULL)
        return -ENOMEM;
    s->config = *config;
    fill_defaults(&s->config);
    uint32_t n = s->config.max_sequences;
    s->sequences = calloc(n, sizeof *s->sequences);
    s->models = calloc(s->config.n_models, sizeof *s->models);
    s->users = calloc(s->config.n_users_max, sizeof *s->users);
    s->lanes = calloc(n, sizeof *s->lanes);
    s->active = calloc(n, sizeof *s->active);
    s->heap = calloc(n > s->config.n_users_max ? n : s->config.n_users_max, sizeof *s->heap);
    s->step_users = calloc(s->config.n_users_max, sizeof *s->step_users);
    if (s->sequences == NULL || s->models == NULL || s->users == NULL || s->lanes == NULL ||
        s->active == NULL || s->heap == NULL || s->step_users == NULL) {
        sched_free(s);
        return -ENOMEM;
    }
    link_free(s);
    *ret = s;
    return 0;
}

void sched_free(struct sched *s)
{
    if (s == NULL)
        return;
    free(s->sequences);
    free(s->models);
    free(s->users);
    free(s->lanes);
    free(s->active);
    free(s->heap);
    free(s->step_users);
    free(s);
}

void sched_set_pages(struct sched *s, uint32_t model, uint32_t n_pages)
{
    assert(model < s->config.n_models);
    s->models[model].pages = n_pages;
}

/* ---- a sequence ------------------------------------------------------------------------------ */

static enum sched_limit limit_reached(struct user *u, uint32_t n_rows, uint64_t now_us)
{
    if (u->n_waiting >= u->policy.max_waiting)
        return SCHED_LIMIT_WAITING;
    if (!users_pay_prompt(u, n_rows, now_us))
        return SCHED_LIMIT_TOKENS;
    return SCHED_LIMIT_NONE;
}

static int refuse(struct sched *s, const struct sched_request *request, uint32_t user,
                  enum sched_limit *ret_limit)
{
    enum sched_limit limit = SCHED_LIMIT_USERS;
    if (user != NONE) {
        if (request->n_pages > s->users[user].policy.max_pages)
            return -E2BIG;
        limit = limit_reached(&s->users[user], request->n_rows, s->now_us);
    }
    if (limit == SCHED_LIMIT_NONE)
        return 0;
    if (ret_limit != NULL)
        *ret_limit = limit;
    return -EDQUOT;
}

int sched_add(struct sched *s, const struct sched_request *request, uint64_t now_us,
              uint32_t *ret_slot, enum sched_limit *ret_limit)
{
    assert(request->model < s->config.n_models && request->n_rows > 0);
    assert((unsigned)request->class < SCHED_CLASSES);
    if (now_us > s->now_us)
        s->now_us = now_us;
    if (request->n_pages > s->models[request->model].pages)
        return -E2BIG;
    if (s->free == NONE)
        return -ENOSPC;
    uint32_t user = users_get(s, request->uid);
    int rc = refuse(s, request, user, ret_limit);
    if (rc < 0)
        return rc;
    struct user *u = &s->users[user];
    if (users_idle(u))
        users_lift(s, u, request->model);
    uint32_t slot = s->free;
    struct sequence *seq = &s->sequences[slot];
    enum sched_class best = u->policy.best_class;
    s->free = seq->next;
    *seq = (struct sequence){
        .state = STATE_WAITING,
        .class = request->class < best ? best : request->class,
        .model = request->model,
        .user = user,
        .owed = request->n_rows,
        .n_pages = request->n_pages,
        .n_prepaid = u->policy.tokens_per_minute > 0 ? request->n_rows : 0,
        .deadline_us = request->deadline_us > 0 ? request->deadline_us : NEVER,
        .arrival = s->n_arrived++,
        .since_us = s->now_us,
    };
    seq->rung = seq->class + 1;
    queue_add(s, slot);
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
    struct user *u = &s->users[seq->user];
    users_refund(u, seq->n_prepaid);
    if (seq->state == STATE_RUNNING) {
        struct sched_model *m = &s->models[seq->model];
        cost_ended(s, seq);
        u->committed -= rows_cost(s, seq->owed, seq->owed);
        u->n_pages -= seq->n_pages;
        u->n_running--;
        m->reserved -= seq->n_pages;
        s->n_running--;
        list_take(s, &m->running, slot);
    } else {
        queue_take(s, slot);
    }
    if (users_idle(u))
        u->left_us = s->now_us > 0 ? s->now_us : 1;
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

static void set_owed(struct sched *s, struct sequence *seq, uint32_t owed)
{
    struct user *u = &s->users[seq->user];
    u->committed -= rows_cost(s, seq->owed, seq->owed);
    seq->owed = owed;
    u->committed += rows_cost(s, seq->owed, seq->owed);
}

void sched_found(struct sched *s, uint32_t slot, uint32_t n_rows)
{
    struct sequence *seq = known(s, slot);
    assert(seq->state == STATE_RUNNING && n_rows < seq->owed);
    uint32_t prepaid = min_u32(n_rows, seq->n_prepaid);
    seq->n_prepaid -= prepaid;
    users_refund(&s->users[seq->user], prepaid);
    set_owed(s, seq, seq->owed - n_rows);
}

void sched_ran(struct sched *s, uint32_t slot, uint32_t n_rows, uint32_t n_new)
{
    struct sequence *seq = known(s, slot);
    struct user *u = &s->users[seq->user];
    assert(seq->state == STATE_RUNNING && n_rows > 0 && n_rows <= seq->owed);
    bool decode = seq->owed == 1;
    uint64_t cost = rows_cost(s, seq->owed, n_rows);
    u->served += weighted(cost, u->policy.weight);
    if (decode)
        u->decoded += weighted(cost, u->policy.weight);
    *(decode ? &u->n_decode_rows : &u->n_prefill_rows) += n_rows;
    uint32_t prepaid = min_u32(n_rows, seq->n_prepaid);
    seq->n_prepaid -= prepaid;
    users_pay(u, n_rows - prepaid);
    set_owed(s, seq, seq->owed - n_rows + n_new);
    seq->cost += cost;
    seq->n_skipped = 0;
    seq->since_us = s->now_us;
    list_take(s, &s->models[seq->model].running, slot);
    list_append(s, &s->models[seq->model].running, slot);
}

/* ---- what is asked --------------------------------------------------------------------------- */

struct sched_counts sched_count(const struct sched *s)
{
    return (struct sched_counts){s->n_waiting, s->n_running, s->n_parked};
}

static void check_users(const struct sched *s)
{
    uint32_t n_running = 0, n_waiting = 0;
    for (uint32_t i = 0; i < s->config.n_users_max; i++) {
        const struct user *u = &s->users[i];
        uint32_t running = 0, waiting = 0, pages = 0;
        uint64_t committed = 0;
        if (!u->known)
            continue;
        for (uint32_t j = 0; j < s->config.max_sequences; j++) {
            const struct sequence *seq = &s->sequences[j];
            if (seq->state == STATE_FREE || seq->user != i)
                continue;
            waiting += seq->state == STATE_WAITING;
            if (seq->state != STATE_RUNNING)
                continue;
            running++;
            pages += seq->n_pages;
            committed += rows_cost(s, seq->owed, seq->owed);
        }
        assert(running == u->n_running && waiting == u->n_waiting && pages == u->n_pages);
        assert(committed == u->committed);
        assert(u->n_level[0] + u->n_level[1] + u->n_level[2] == u->n_waiting);
        assert(waiting > 0 || u->lanes == NONE);
        n_running += running;
        n_waiting += waiting;
    }
    assert(n_running == s->n_running && n_waiting == s->n_waiting);
}

void sched_check(const struct sched *s)
{
    uint32_t n_running = 0, n_waiting = 0, n_parked = 0, n_free = 0, n_listed = 0;
    for (uint32_t m = 0; m < s->config.n_models; m++) {
        uint64_t reserved = 0;
        const struct list *list = &s->models[m].running;
        for (uint32_t slot = list->first; slot != NONE; slot = s->sequences[slot].next) {
            assert(s->sequences[slot].state == STATE_RUNNING && s->sequences[slot].model == m);
            reserved += s->sequences[slot].n_pages;
            n_listed++;
        }
        assert(reserved == s->models[m].reserved);
    }
    for (uint32_t i = 0; i < s->config.max_sequences; i++) {
        n_running += s->sequences[i].state == STATE_RUNNING;
        n_waiting += s->sequences[i].state == STATE_WAITING;
        n_parked += s->sequences[i].parked;
    }
    for (uint32_t slot = s->free; slot != NONE; slot = s->sequences[slot].next)
        n_free++;
    assert(n_running == s->n_running && n_running == n_listed && n_parked == s->n_parked);
    assert(n_running + n_waiting + n_free == s->config.max_sequences);
    assert(n_running <= s->config.max_running);
    check_users(s);
    queue_check(s);
}
