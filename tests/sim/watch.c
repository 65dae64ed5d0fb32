/* watch.c: between the hub and its scheduler (the linker's --wrap puts it there): is each step's
 * plan one that the policy of sched.h allows?
 *
 * Checked at every step:
 *   - rows within the budget, each sequence once, of one model, no more than it owes;
 *   - sentence 4: a sequence that waited for (class + 1) * age_us is on the highest rung, and then
 *     nobody of its model starts before it but older ones of its own uid, uids that were served
 *     less, uids that ran nothing while newcomers' slots are free, and, by sentence 5, while the
 *     next in order wants for pages, uids that are far behind that one's.
 * At the end of a saturated scenario: each uid's share of the decode rows is its weight's.
 *
 * Allocations are counted here too, for the same reason: --wrap sees those of the daemon's rooms
 * and of the simulator, and not the C library's own. */
#include "sim.h"

#include "sched/internal.h"

#include <stdlib.h>
#include <string.h>

/* A share may differ from its weight's by so many thousandths of the whole. */
#define SHARE_OFF_PERMILLE 60
/* Ageing goes a rung at each step, and at a step. */
#define STEPS_LATE 8

struct known {
    bool there, waits, parked; /* parked: it was once, which stops its ageing */
    uint32_t uid, model;
    enum sched_class class;
    uint64_t added_us, number;
};

static struct known known[INFER_SEQUENCES_MAX];
static uint32_t n_known; /* highest slot that was ever used, plus one */
static uint64_t n_added;

/* ---- memory ---------------------------------------------------------------------------------- */

static int64_t n_blocks;

void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t each);
void *__real_realloc(void *p, size_t n);
void *__real_aligned_alloc(size_t alignment, size_t n);
void __real_free(void *p);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t each);
void *__wrap_realloc(void *p, size_t n);
void *__wrap_aligned_alloc(size_t alignment, size_t n);
void __wrap_free(void *p);

void *__wrap_malloc(size_t n)
{
    void *p = __real_malloc(n);
    n_blocks += p != NULL;
    return p;
}

void *__wrap_calloc(size_t n, size_t each)
{
    void *p = __real_calloc(n, each);
    n_blocks += p != NULL;
    return p;
}

void *__wrap_realloc(void *p, size_t n)
{
    bool fresh = p == NULL;
    void *q = __real_realloc(p, n);
    n_blocks += fresh && q != NULL;
    return q;
}

void *__wrap_aligned_alloc(size_t alignment, size_t n)
{
    void *p = __real_aligned_alloc(alignment, n);
    n_blocks += p != NULL;
    return p;
}

void __wrap_free(void *p)
{
    n_blocks -= p != NULL;
    __real_free(p);
}

int64_t watch_blocks(void)
{
    return n_blocks;
}

/* ---- who is known ---------------------------------------------------------------------------- */

int __real_sched_add(struct sched *s, const struct sched_request *request, uint64_t now_us,
                     uint32_t *ret_slot, enum sched_limit *ret_limit);
int __wrap_sched_add(struct sched *s, const struct sched_request *request, uint64_t now_us,
                     uint32_t *ret_slot, enum sched_limit *ret_limit);
void __real_sched_remove(struct sched *s, uint32_t slot);
void __wrap_sched_remove(struct sched *s, uint32_t slot);
uint32_t __real_sched_plan(struct sched *s, uint64_t now_us, uint32_t *ret_model,
                           struct sched_work *ret, uint32_t room);
uint32_t __wrap_sched_plan(struct sched *s, uint64_t now_us, uint32_t *ret_model,
                           struct sched_work *ret, uint32_t room);
int __real_session_put_done(struct session *s, uint32_t request, uint32_t answer,
                            const struct infer_abi_done *done, const char *detail);
int __wrap_session_put_done(struct session *s, uint32_t request, uint32_t answer,
                            const struct infer_abi_done *done, const char *detail);

int __wrap_sched_add(struct sched *s, const struct sched_request *request, uint64_t now_us,
                     uint32_t *ret_slot, enum sched_limit *ret_limit)
{
    struct sched_request r = *request;
    if (sim.plant == PLANT_STARVE && r.uid == sim.plan.users[0].uid)
        r.class = SCHED_CLASS_BATCH;
    int rc = __real_sched_add(s, &r, now_us, ret_slot, ret_limit);
    if (rc < 0)
        return rc;
    uint32_t slot = *ret_slot;
    if (known[slot].there)
        sim_fail("slot %u is given twice", slot);
    enum sched_class best = s->users[s->sequences[slot].user].policy.best_class;
    known[slot] = (struct known){.there = true,
                                 .waits = true,
                                 .uid = request->uid,
                                 .model = request->model,
                                 .class = request->class > best ? request->class : best,
                                 .added_us = now_us,
                                 .number = ++n_added};
    n_known = slot < n_known ? n_known : slot + 1;
    return rc;
}

void __wrap_sched_remove(struct sched *s, uint32_t slot)
{
    known[slot].there = false;
    __real_sched_remove(s, slot);
}

int __wrap_session_put_done(struct session *s, uint32_t request, uint32_t answer,
                            const struct infer_abi_done *done, const char *detail)
{
    if (sim.plant == PLANT_SILENT && request == 3)
        return 0;
    return __real_session_put_done(s, request, answer, done, detail);
}

/* ---- a plan ---------------------------------------------------------------------------------- */

/* What the order of starts goes by, before the plan. */
struct before {
    uint64_t key[SIM_USERS_MAX];
    uint32_t n_running[SIM_USERS_MAX];
    uint64_t served[SIM_USERS_MAX];
    bool full[SIM_USERS_MAX];    /* its limit of running sequences is reached */
    bool started[SIM_USERS_MAX]; /* by the plan; preempted ones that came back, too */
};

static uint32_t index_of(uint32_t uid)
{
    return uid - sim.plan.users[0].uid;
}

static void look_before(const struct sched *s, struct before *ret)
{
    memset(ret, 0, sizeof *ret);
    for (uint32_t i = 0; i < sim.plan.n_users; i++) {
        uint32_t u = users_find(s, sim.plan.users[i].uid);
        if (u == NONE)
            continue;
        ret->key[i] = users_start_key(&s->users[u]);
        ret->n_running[i] = s->users[u].n_running;
        ret->served[i] = s->users[u].served;
        ret->full[i] = s->users[u].n_running >= s->users[u].policy.max_running;
    }
}

static void look_after(const struct sched *s, struct before *b)
{
    for (uint32_t i = 0; i < sim.plan.n_users; i++) {
        uint32_t u = users_find(s, sim.plan.users[i].uid);
        b->started[i] = u != NONE && s->users[u].n_running > b->n_running[i];
    }
}

/* Does somebody of its uid wait for the uid's own limit of pages? Then all of them do. */
static bool pages_full(const struct sched *s, const struct known *k)
{
    for (uint32_t slot = 0; slot < n_known; slot++) {
        const struct sequence *seq = &s->sequences[slot];
        if (!known[slot].there || known[slot].uid != k->uid || seq->state != STATE_WAITING)
            continue;
        const struct user *u = &s->users[seq->user];
        if (seq->n_pages > u->policy.max_pages - min_u32(u->n_pages, u->policy.max_pages))
            return true;
    }
    return false;
}

/* Is it the next of its uid? Older ones on the highest rung and preempted ones are before it. */
static bool is_first(const struct sched *s, uint32_t slot)
{
    return queue_head(s, &s->lanes[s->sequences[slot].lane]) == slot;
}

/* May `slot` have started while `aged` waits? */
static bool may_pass(const struct before *b, const struct known *started, const struct known *aged)
{
    uint32_t mine = index_of(aged->uid), its = index_of(started->uid);
    if (started->uid == aged->uid)
        return started->number < aged->number;
    return b->key[its] <= b->key[mine] || b->n_running[its] == 0 || b->started[mine];
}

/* Could it start because the next in order wants for pages that it does not? */
static bool may_pass_for_pages(const struct sched *s, const struct before *b,
                               const struct known *started)
{
    uint32_t wanting = s->models[started->model].wanting, its = index_of(started->uid);
    if (wanting == NONE || known[wanting].uid == started->uid)
        return false;
    const struct user *of = &s->users[s->sequences[wanting].user];
    struct user u = s->users[users_find(s, started->uid)];
    u.n_running = b->n_running[its]; /* at the most so many when it was allowed */
    u.served = b->served[its];
    return far_behind(s, &u, of);
}

static void check_starts(const struct sched *s, uint64_t now_us, struct before *b)
{
    static uint32_t starts[INFER_SEQUENCES_MAX];
    uint32_t n = 0;
    uint64_t late = STEPS_LATE * (sim.step_most_ns / 1000 + 1000) + 5 * SIM_REST_MOST_US;
    look_after(s, b);
    for (uint32_t slot = 0; slot < n_known; slot++)
        if (known[slot].there && known[slot].waits && s->sequences[slot].state == STATE_RUNNING) {
            known[slot].waits = false;
            starts[n++] = slot;
            sim_note("start", slot, known[slot].uid, now_us - known[slot].added_us);
        }
    for (uint32_t slot = 0; slot < n_known; slot++) {
        const struct known *k = &known[slot];
        const struct sequence *seq = &s->sequences[slot];
        if (!k->there || !k->waits || seq->state != STATE_WAITING)
            continue; /* one that was preempted has started before */
        known[slot].parked |= seq->parked;
        uint64_t bound = (uint64_t)(k->class + 1) * s->config.age_us;
        if (now_us > k->added_us + bound + late && seq->rung != 0 && !k->parked &&
            s->n_waiting <= SCHED_AGE_PER_STEP)
            sim_fail("slot %u of class %d waits for %llu us and is on rung %u", slot, (int)k->class,
                     (unsigned long long)(now_us - k->added_us), seq->rung);
        if (n == 0 || seq->rung != 0 || seq->parked || b->full[index_of(k->uid)] ||
            !is_first(s, slot) || pages_full(s, k))
            continue;
        for (uint32_t i = 0; i < n; i++)
            if (known[starts[i]].model == k->model && !may_pass(b, &known[starts[i]], k) &&
                !may_pass_for_pages(s, b, &known[starts[i]]))
                sim_fail("slot %u of uid %u started before slot %u of uid %u, which waited for "
                         "%llu us",
                         starts[i], known[starts[i]].uid, slot, k->uid,
                         (unsigned long long)(now_us - k->added_us));
    }
}

static void check_work(const struct sched *s, uint32_t model, const struct sched_work *work,
                       uint32_t n)
{
    uint32_t n_rows = 0;
    bool decodes = false;
    for (uint32_t i = 0; i < n; i++) {
        const struct known *k = &known[work[i].slot];
        const struct job *job = sim.dispatch->by_slot[work[i].slot];
        n_rows += work[i].n_rows;
        if (!k->there || k->model != model || job == NULL || job->sequence == NULL)
            sim_fail("the plan names slot %u, which is not of model %u", work[i].slot, model);
        else if (job->stalled)
            sim_fail("the plan names slot %u, which is parked", work[i].slot);
        else if (work[i].n_rows == 0 || work[i].n_rows > engine_sequence_rows(job->sequence))
            sim_fail("the plan gives slot %u %u rows, it owes %u", work[i].slot, work[i].n_rows,
                     engine_sequence_rows(job->sequence));
        else
            decodes |= engine_sequence_rows(job->sequence) == 1;
        for (uint32_t j = 0; j < i; j++)
            if (work[j].slot == work[i].slot)
                sim_fail("the plan names slot %u twice", work[i].slot);
    }
    const uint32_t most = decodes ? s->config.step_rows : sim.models[model].state.max_rows;
    if (n_rows > most)
        sim_fail("a plan of %u rows, %u are the most", n_rows, most);
}

/* Takes the first user's work out of three steps of four. */
static uint32_t rob(struct sched_work *work, uint32_t n)
{
    uint32_t left = 0;
    for (uint32_t i = 0; i < n; i++)
        if (known[work[i].slot].uid != sim.plan.users[0].uid || sim.n_steps % 4 == 0)
            work[left++] = work[i];
    return left > 0 ? left : n;
}

uint32_t __wrap_sched_plan(struct sched *s, uint64_t now_us, uint32_t *ret_model,
                           struct sched_work *ret, uint32_t room)
{
    struct before before;
    look_before(s, &before);
    uint32_t n = __real_sched_plan(s, now_us, ret_model, ret, room);
    check_starts(s, now_us, &before);
    check_work(s, n > 0 ? *ret_model : 0, ret, n);
    return sim.plant == PLANT_SHARE && sim.plan.saturated ? rob(ret, n) : n;
}

bool __real_sched_goes_on(struct sched *s, uint64_t now_us, uint32_t model,
                          const struct sched_work *work, uint32_t n);
bool __wrap_sched_goes_on(struct sched *s, uint64_t now_us, uint32_t model,
                          const struct sched_work *work, uint32_t n);

/* Has it a slot to start in, if it is the next of its uid? */
static bool has_slot(const struct sched *s, uint32_t slot)
{
    const struct sequence *seq = &s->sequences[slot];
    const struct user *u = &s->users[seq->user];
    uint32_t kept = s->config.newcomer_slots;
    if (u->n_running == 0 && (seq->class != SCHED_CLASS_BATCH || seq->rung <= 1))
        kept = 0;
    return u->n_running < u->policy.max_running && s->n_running + kept < s->config.max_running;
}

/* A step without a plan: nobody waits who could start, and the rest is as it was planned. */
bool __wrap_sched_goes_on(struct sched *s, uint64_t now_us, uint32_t model,
                          const struct sched_work *work, uint32_t n)
{
    bool goes_on = __real_sched_goes_on(s, now_us, model, work, n);
    for (uint32_t slot = 0; slot < n_known; slot++)
        known[slot].parked |= known[slot].there && s->sequences[slot].parked;
    if (!goes_on)
        return false;
    check_work(s, model, work, n);
    for (uint32_t slot = 0; slot < n_known; slot++) {
        const struct sequence *seq = &s->sequences[slot];
        if (known[slot].there && seq->state == STATE_WAITING && !seq->parked && is_first(s, slot) &&
            has_slot(s, slot))
            sim_fail("a step goes on without a plan, and slot %u could start", slot);
    }
    for (uint32_t i = 0; i < n; i++)
        if (work[i].n_rows != 1)
            sim_fail("a step goes on without a plan, and slot %u is in its prompt", work[i].slot);
    return true;
}

/* ---- shares ---------------------------------------------------------------------------------- */

void watch_token(struct sim_client *c)
{
    c->user->n_decoded += sim.n_steps >= SIM_SATURATED_FROM;
}

static void check_shares(void)
{
    uint64_t total = 0, weights = 0;
    for (uint32_t i = 0; i < sim.plan.n_users; i++) {
        const struct sim_user *u = &sim.plan.users[i];
        total += u->n_decoded;
        weights += u->policy.weight > 0 ? u->policy.weight : SCHED_WEIGHT_DEFAULT;
    }
    for (uint32_t i = 0; i < sim.plan.n_users; i++) {
        const struct sim_user *u = &sim.plan.users[i];
        uint32_t weight = u->policy.weight > 0 ? u->policy.weight : SCHED_WEIGHT_DEFAULT;
        int64_t due = (int64_t)(1000 * weight / weights);
        int64_t got = (int64_t)(1000ull * u->n_decoded / (total + 1));
        sim_note("share", i, (uint64_t)due, (uint64_t)got);
        if (got < due - SHARE_OFF_PERMILLE || got > due + SHARE_OFF_PERMILLE)
            sim_fail("user %u of weight %u got %lld of 1000 tokens, %lld are its share", i, weight,
                     (long long)got, (long long)due);
    }
}

void watch_begin(void)
{
    memset(known, 0, n_known * sizeof *known);
    n_known = 0;
    n_added = 0;
}

void watch_end(void)
{
    if (sim.plan.saturated && !sim.failed)
        check_shares();
    if (sim.plant == PLANT_LEAK)
        n_blocks++;
}
