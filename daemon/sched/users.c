/* users.c: uids, what they may and what they had.
 *
 * A table of n_users_max entries that is searched from the front: only sched_add(), status and
 * policies look a uid up, a step goes by index. An entry is taken when its uid is first heard of;
 * when all are taken, that of the uid that has been idle longest is recycled, together with what it
 * was served and what its bucket of tokens holds, but never one that has a sequence or a policy of
 * its own.
 *
 * Counters only grow, but for users_bound_lead(). Why that one: a uid can run far ahead where
 * nobody competes (alone on another model, or while others waited for pages), and without a bound
 * it would pay for this as long as it has competitors. */
#include "sched/internal.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

static struct sched_policy normal(const struct sched_policy *policy)
{
    struct sched_policy p = *policy;
    if (p.weight == 0)
        p.weight = SCHED_WEIGHT_DEFAULT;
    if (p.max_running == 0)
        p.max_running = UINT32_MAX;
    if (p.max_waiting == 0)
        p.max_waiting = UINT32_MAX;
    if (p.max_pages == 0)
        p.max_pages = UINT32_MAX;
    return p;
}

static int64_t bucket_size(const struct user *u)
{
    return (int64_t)u->policy.tokens_per_minute * SCHED_MINUTE_US;
}

/* ---- the table ------------------------------------------------------------------------------- */

uint32_t users_find(const struct sched *s, uint32_t uid)
{
    for (uint32_t i = 0; i < s->config.n_users_max; i++)
        if (s->users[i].known && s->users[i].uid == uid)
            return i;
    return NONE;
}

bool users_idle(const struct user *u)
{
    return u->n_running + u->n_waiting == 0;
}

uint32_t users_get(struct sched *s, uint32_t uid)
{
    uint32_t found = users_find(s, uid);
    if (found != NONE)
        return found;
    for (uint32_t i = 0; i < s->config.n_users_max; i++) {
        const struct user *u = &s->users[i];
        if (!u->known) {
            found = i;
            break;
        }
        if (!u->pinned && users_idle(u) && (found == NONE || u->left_us < s->users[found].left_us))
            found = i;
    }
    if (found == NONE)
        return NONE;
    struct user *u = &s->users[found];
    *u = (struct user){.known = true,
                       .uid = uid,
                       .policy = normal(&s->config.policy),
                       .lanes = NONE,
                       .bucket_us = s->now_us};
    u->bucket = bucket_size(u);
    return found;
}

uint32_t sched_users(const struct sched *s, struct sched_user_counts *ret, uint32_t room)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < s->config.n_users_max; i++) {
        const struct user *u = &s->users[i];
        if (!u->known)
            continue;
        if (n < room)
            ret[n] = (struct sched_user_counts){.uid = u->uid,
                                                .weight = u->policy.weight,
                                                .n_running = u->n_running,
                                                .n_waiting = u->n_waiting,
                                                .n_pages = u->n_pages,
                                                .n_prefill_rows = u->n_prefill_rows,
                                                .n_decode_rows = u->n_decode_rows};
        n++;
    }
    return n;
}

/* ---- counters -------------------------------------------------------------------------------- */

static void see(const struct user *u, const struct user *self, uint64_t *served, uint64_t *decoded)
{
    if (u == self)
        return;
    *served = min_u64(*served, u->served);
    *decoded = min_u64(*decoded, u->decoded);
}

void users_lift(struct sched *s, struct user *u, uint32_t model)
{
    const struct sched_model *m = &s->models[model];
    uint64_t served = NEVER, decoded = NEVER;
    for (uint32_t i = m->running.first; i != NONE; i = s->sequences[i].next)
        if (can_run(&s->sequences[i]))
            see(&s->users[s->sequences[i].user], u, &served, &decoded);
    for (uint32_t i = 0; i < s->n_active; i++)
        if (s->lanes[s->active[i]].model == model)
            see(&s->users[s->lanes[s->active[i]].user], u, &served, &decoded);
    if (served == NEVER) {
        served = m->served;
        decoded = m->decoded;
    }
    if (u->left_us > 0 && s->now_us - u->left_us < s->config.idle_grace_us) {
        served = minus_or_0(served, distance(s, s->config.credit_rows));
        decoded = minus_or_0(decoded, distance(s, s->config.credit_rows));
    }
    if (u->served < served)
        u->served = served;
    if (u->decoded < decoded)
        u->decoded = decoded;
}

void users_bound_lead(uint64_t *counter, uint64_t smallest, uint64_t lead)
{
    assert(*counter >= smallest);
    if (*counter - smallest > lead)
        *counter = smallest + lead;
}

uint64_t users_start_key(const struct user *u)
{
    return u->served + weighted(u->committed, u->policy.weight);
}

/* ---- tokens a minute ------------------------------------------------------------------------- */

/* Full after a minute from empty; a bucket in debt needs longer, and the product stays in range
 * because more than the missing part is never added. */
static int64_t bucket_at(const struct user *u, uint64_t now_us)
{
    int64_t missing = bucket_size(u) - u->bucket;
    uint64_t per_us = u->policy.tokens_per_minute;
    uint64_t elapsed = minus_or_0(now_us, u->bucket_us);
    if (missing <= 0 || elapsed >= (uint64_t)missing / per_us + 1)
        return bucket_size(u);
    return u->bucket + (int64_t)(elapsed * per_us);
}

static int64_t needed(const struct user *u, uint32_t n_rows)
{
    int64_t rows = (int64_t)n_rows * SCHED_MINUTE_US;
    return rows < bucket_size(u) ? rows : bucket_size(u);
}

bool users_pay_prompt(struct user *u, uint32_t n_rows, uint64_t now_us)
{
    if (u->policy.tokens_per_minute == 0)
        return true;
    u->bucket = bucket_at(u, now_us);
    u->bucket_us = now_us;
    if (u->bucket < needed(u, n_rows))
        return false;
    users_pay(u, n_rows);
    return true;
}

void users_pay(struct user *u, uint32_t n_rows)
{
    if (u->policy.tokens_per_minute > 0)
        u->bucket -= (int64_t)n_rows * SCHED_MINUTE_US;
}

void users_refund(struct user *u, uint32_t n_rows)
{
    if (u->policy.tokens_per_minute == 0)
        return;
    u->bucket += (int64_t)n_rows * SCHED_MINUTE_US;
    if (u->bucket > bucket_size(u))
        u->bucket = bucket_size(u);
}

uint64_t sched_quota_us(const struct sched *s, uint32_t uid, uint32_t n_rows, uint64_t now_us)
{
    uint32_t i = users_find(s, uid);
    if (i == NONE || s->users[i].policy.tokens_per_minute == 0)
        return now_us;
    const struct user *u = &s->users[i];
    int64_t missing = needed(u, n_rows) - bucket_at(u, now_us);
    uint64_t per_us = u->policy.tokens_per_minute;
    return missing <= 0 ? now_us : now_us + ((uint64_t)missing + per_us - 1) / per_us;
}

/* ---- policies -------------------------------------------------------------------------------- */

static bool valid(const struct sched_policy *policy)
{
    return policy->weight <= SCHED_WEIGHT_MAX && (unsigned)policy->best_class < SCHED_CLASSES;
}

/* NULL: everybody's. */
static void give_policy(struct sched *s, struct user *u, const struct sched_policy *policy)
{
    bool unlimited = u->policy.tokens_per_minute == 0;
    if (!unlimited)
        u->bucket = bucket_at(u, s->now_us); /* at the old rate until now */
    u->bucket_us = s->now_us;
    u->pinned = policy != NULL;
    u->policy = normal(policy != NULL ? policy : &s->config.policy);
    if (unlimited || u->bucket > bucket_size(u))
        u->bucket = bucket_size(u);
}

int sched_set_policy(struct sched *s, uint32_t uid, const struct sched_policy *policy)
{
    if (policy != NULL && !valid(policy))
        return -EINVAL;
    uint32_t i = users_get(s, uid);
    if (i == NONE)
        return -ENOSPC;
    give_policy(s, &s->users[i], policy);
    return 0;
}

int sched_set_default(struct sched *s, const struct sched_policy *policy, uint32_t park_us)
{
    if (!valid(policy))
        return -EINVAL;
    s->config.policy = *policy;
    s->config.park_us = park_us != 0 ? park_us : SCHED_PARK_US;
    for (uint32_t i = 0; i < s->config.n_users_max; i++)
        if (s->users[i].known && !s->users[i].pinned)
            give_policy(s, &s->users[i], NULL);
    return 0;
}
