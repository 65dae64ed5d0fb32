/* sched.c: a sequence's life from sched_add() to sched_remove(); see sched.h for the policy.
 *
 * Invariants, all of them in sched_check(): a slot is free, waiting or running, and in exactly one
 * list; claimed of a model is the sum of the claims of its running sequences, n_pages of a user the
 * most that his can come to hold; `committed` of a user is what his running sequences have yet to
 * be charged for; nobody runs above max_running, his own or that of all.
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
    or_default(&c->page_tokens, 16);
    or_default(&c->park_us, SCHED_PARK_US);
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
    if (c->newcomer_slots == SCHED_NO_NEWCOMER_SLOTS)
        c->newcomer_slots = 0;
    c->newcomer_slots = min_u32(c->newcomer_slots, c->max_running - 1);
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
    for (uint32_t m = 0; m < s->config.n_models; m++) {
        s->models[m].running = (struct list){NONE, NONE, 0};
        s->models[m].wanting = NONE;
    }
}

int sched_new(const struct sched_config *config, struct sched **ret)
{
    assert(config->max_sequences > 0 && config->step_rows > 0 && config->n_models > 0);
    assert(config->max_running > 0);
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

void sched_set_rows(struct sched *s, uint32_t model, uint32_t n_rows)
{
    assert(model < s->config.n_models);
    s->models[model].rows = n_rows;
}

void sched_set_available(struct sched *s, uint32_t model, uint32_t n_pages)
{
    assert(model < s->config.n_models);
    s->models[model].available = n_pages;
}

/* ---- a sequence ------------------------------------------------------------------------------ */

static enum sched_limit limit_reached(struct user *u, uint32_t n_rows, uint64_t now_us)
{
    if (u->n_waiting - u->n_preempted >= u->policy.max_waiting)
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
        .n_done = request->n_held,
        .n_prompt = request->n_rows,
        .n_pages = request->n_pages,
        .n_prepaid = u->policy.tokens_per_minute > 0 ? request->n_rows : 0,
        .deadline_us = request->deadline_us > 0 ? request->deadline_us : NEVER,
        .arrival = s->n_arrived++,
        .since_us = s->now_us,
    };
    seq->rung = seq->class + 1;
    seq->n_brought = request->away ? 0 : pages_of(s, seq, request->n_held);
    queue_add(s, slot);
    *ret_slot = slot;
    return 0;
}

static struct sequence *known(const struct sched *s, uint32_t slot)
{
    assert(slot < s->config.max_sequences && s->sequences[slot].state != STATE_FREE);
    return &s->sequences[slot];
}

/* Gives up its running slot and what it claims. */
static void stop(struct sched *s, uint32_t slot)
{
    struct sequence *seq = &s->sequences[slot];
    struct user *u = &s->users[seq->user];
    u->committed -= owed_cost(s, seq);
    u->n_pages -= seq->n_pages;
    u->n_running--;
    s->n_running--;
    pages_unclaim(s, seq);
    list_take(s, &s->models[seq->model].running, slot);
}

void sched_remove(struct sched *s, uint32_t slot)
{
    struct sequence *seq = known(s, slot);
    struct user *u = &s->users[seq->user];
    users_refund(u, seq->n_prepaid);
    if (seq->state == STATE_RUNNING) {
        cost_ended(s, seq);
        stop(s, slot);
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
    if (seq->parked)
        return;
    s->n_parked++;
    seq->parked = true;
    seq->parked_us = s->now_us;
    if (seq->state == STATE_WAITING)
        queue_hold(s, slot);
}

void sched_resume(struct sched *s, uint32_t slot)
{
    struct sequence *seq = known(s, slot);
    if (!seq->parked)
        return;
    s->n_parked--;
    seq->parked = false;
    if (seq->state == STATE_WAITING)
        queue_release(s, slot);
}

void sched_preempted(struct sched *s, uint32_t slot, uint32_t n_rows, uint32_t n_pages)
{
    struct sequence *seq = known(s, slot);
    uint32_t n_new = seq->owed - seq->n_again;
    assert(seq->state == STATE_RUNNING && n_rows >= n_new);
    assert(n_rows <= (uint64_t)seq->n_done + seq->owed);
    stop(s, slot);
    seq->state = STATE_WAITING;
    seq->preempted = true;
    seq->n_done += seq->owed - n_rows; /* what was saved */
    seq->owed = n_rows;
    seq->n_again = seq->parked ? 0 : n_rows - n_new;
    seq->n_back = n_pages;
    seq->n_brought = 0;
    seq->n_skipped = 0;
    seq->ran_us += s->now_us - seq->started_us;
    s->n_preemptions++;
    queue_add(s, slot);
}

void sched_left_pages(struct sched *s, uint32_t slot)
{
    struct sequence *seq = known(s, slot);
    assert(seq->state == STATE_WAITING);
    seq->n_brought = 0;
}

bool sched_waits(const struct sched *s, uint32_t slot)
{
    assert(slot < s->config.max_sequences);
    return s->sequences[slot].state == STATE_WAITING;
}

void sched_gave(struct sched *s, uint32_t slot, uint32_t n_pages)
{
    struct sequence *seq = known(s, slot);
    uint64_t n_rows = (uint64_t)n_pages * s->config.page_tokens;
    assert(seq->state == STATE_RUNNING && n_rows <= seq->n_done);
    seq->n_done -= (uint32_t)n_rows;
    pages_claim(s, seq);
}

/* The first n_rows of those owed are done, and n_new more are owed. */
static void move_rows(struct sched *s, struct sequence *seq, uint32_t n_rows, uint32_t n_new)
{
    struct user *u = &s->users[seq->user];
    u->committed -= owed_cost(s, seq);
    seq->n_done += n_rows;
    seq->owed = seq->owed - n_rows + n_new;
    seq->n_again -= min_u32(seq->n_again, n_rows);
    u->committed += owed_cost(s, seq);
    pages_claim(s, seq);
}

void sched_found(struct sched *s, uint32_t slot, uint32_t n_rows)
{
    struct sequence *seq = known(s, slot);
    assert(seq->state == STATE_RUNNING && n_rows < seq->owed);
    uint32_t prepaid = min_u32(n_rows - min_u32(n_rows, seq->n_again), seq->n_prepaid);
    seq->n_prepaid -= prepaid;
    users_refund(&s->users[seq->user], prepaid);
    move_rows(s, seq, n_rows, 0);
}

/* Rows that ran before are free. */
static void charge(struct sched *s, struct sequence *seq, uint32_t n_rows)
{
    struct user *u = &s->users[seq->user];
    uint32_t again = min_u32(n_rows, seq->n_again);
    bool decode = seq->owed - again == 1;
    uint32_t n_new = n_rows - again, prepaid = min_u32(n_new, seq->n_prepaid);
    uint64_t cost = rows_cost(s, seq->owed - again, n_new);
    u->served += weighted(cost, u->policy.weight);
    if (decode)
        u->decoded += weighted(cost, u->policy.weight);
    *(decode ? &u->n_decode_rows : &u->n_prefill_rows) += n_new;
    seq->n_prepaid -= prepaid;
    users_pay(u, n_new - prepaid);
    seq->cost += cost;
}

void sched_ran(struct sched *s, uint32_t slot, uint32_t n_rows, uint32_t n_new)
{
    struct sequence *seq = known(s, slot);
    assert(seq->state == STATE_RUNNING && n_rows > 0 && n_rows <= seq->owed);
    charge(s, seq, n_rows);
    seq->begun = true;
    move_rows(s, seq, n_rows, n_new);
    seq->n_skipped = 0;
    seq->since_us = s->now_us;
    list_take(s, &s->models[seq->model].running, slot);
    list_append(s, &s->models[seq->model].running, slot);
}

/* ---- what is asked --------------------------------------------------------------------------- */

struct sched_counts sched_count(const struct sched *s)
{
    return (struct sched_counts){.n_waiting = s->n_waiting,
                                 .n_running = s->n_running,
                                 .n_parked = s->n_parked,
                                 .n_preempted = s->n_preempted,
                                 .n_preemptions = s->n_preemptions};
}

static void check_users(const struct sched *s)
{
    uint32_t n_running = 0, n_waiting = 0;
    for (uint32_t i = 0; i < s->config.n_users_max; i++) {
        const struct user *u = &s->users[i];
        uint32_t running = 0, waiting = 0, pages = 0, queued = 0, preempted = 0;
        uint64_t committed = 0;
        if (!u->known)
            continue;
        for (uint32_t j = 0; j < s->config.max_sequences; j++) {
            const struct sequence *seq = &s->sequences[j];
            if (seq->state == STATE_FREE || seq->user != i)
                continue;
            waiting += seq->state == STATE_WAITING;
            queued += seq->state == STATE_WAITING && !seq->parked;
            preempted += seq->preempted;
            if (seq->state != STATE_RUNNING)
                continue;
            running++;
            pages += seq->n_pages;
            committed += owed_cost(s, seq);
        }
        assert(running == u->n_running && waiting == u->n_waiting && pages == u->n_pages);
        assert(committed == u->committed && preempted == u->n_preempted);
        assert(u->n_level[0] + u->n_level[1] + u->n_level[2] == queued);
        assert((queued == 0) == (u->lanes == NONE));
        n_running += running;
        n_waiting += waiting;
    }
    assert(n_running == s->n_running && n_waiting == s->n_waiting);
}

void sched_check(const struct sched *s)
{
    uint32_t n_running = 0, n_waiting = 0, n_parked = 0, n_free = 0, n_listed = 0;
    uint32_t n_preempted = 0;
    for (uint32_t m = 0; m < s->config.n_models; m++) {
        uint64_t claimed = 0;
        const struct list *list = &s->models[m].running;
        for (uint32_t slot = list->first; slot != NONE; slot = s->sequences[slot].next) {
            const struct sequence *seq = &s->sequences[slot];
            assert(seq->state == STATE_RUNNING && seq->model == m && !seq->preempted);
            assert(seq->n_held <= seq->n_pages && seq->claim <= seq->n_pages);
            assert(seq->n_held == pages_of(s, seq, seq->n_done));
            assert(seq->claim == 0 || !seq->begun || seq->owed > 1);
            claimed += seq->claim;
            n_listed++;
        }
        assert(claimed == s->models[m].claimed);
    }
    for (uint32_t i = 0; i < s->config.max_sequences; i++) {
        n_running += s->sequences[i].state == STATE_RUNNING;
        n_waiting += s->sequences[i].state == STATE_WAITING;
        n_parked += s->sequences[i].parked;
        n_preempted += s->sequences[i].preempted;
        assert(s->sequences[i].owed == 0 || s->sequences[i].n_again < s->sequences[i].owed);
    }
    assert(n_preempted == s->n_preempted);
    for (uint32_t slot = s->free; slot != NONE; slot = s->sequences[slot].next)
        n_free++;
    assert(n_running == s->n_running && n_running == n_listed && n_parked == s->n_parked);
    assert(n_running + n_waiting + n_free == s->config.max_sequences);
    assert(n_running <= s->config.max_running);
    check_users(s);
    queue_check(s);
}
