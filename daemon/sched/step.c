/* step.c: who starts, and who runs in this step (sentences 3 to 9 of the policy in sched.h).
 *
 * A plan is made in four passes over one model's running sequences, who ran longest ago first:
 *
 *   survey()         which uids have what to run; their smallest counters
 *   share_decodes()  how many decode rows each uid gets, its quota
 *   take_decodes()   the quotas, given to each uid's sequences in order
 *   take_prefill()   what is left of the budget, to the best first
 *
 * How decodes are shared. A uid's demand is n * c, its sequences in this step times decode cost /
 * weight: what it asks for in each step. If uid u ran all its decodes it would stand at decoded_u +
 * n_u * c_u. The smallest of these, F, is how far the one who is behind can come in this step,
 * however large the step is made. Everybody who demands more than that uid may come as far as
 * F + lag. So the uid that sets F runs all it has, two uids with 200 decodes each run all of them,
 * and of one and 31 sequences the larger uid comes to F + lag and from then on gets one row for
 * each of the smaller's. Who does not demand more is not held back, wherever its counter stands:
 * that is why a lone stream does not stutter when another user comes and goes.
 *
 * Nobody is held back for a uid that waits for more slots or pages: it is served by those that come
 * free, and they come the sooner the faster the others run. Without this rule a uid that is held
 * back keeps its slots, the other one starts nothing, and both crawl.
 *
 * A uid that has prefill alone has no place in this order yet. For it, who demands more and was
 * served more, prefill included, runs one decode a step. A long prompt soon is the one who was
 * served more.
 *
 * Cost: O(running + uids) and a heap operation for each start, each prefill chunk and, if the step
 * has not enough room for all quotas, each decode. Nothing is allocated. */
#include "sched/internal.h"

#include <assert.h>

struct step {
    uint32_t model;
    struct sched_work *work;
    uint32_t n, room, rows; /* entries used, entries in all, rows left */
    uint32_t pages;         /* left */
    uint32_t n_users;
    uint32_t n_prefill;               /* sequences that owe more than a row */
    uint32_t n_decodes;               /* planned */
    bool bystanders;                  /* uids that decode and have no prompt due themselves */
    uint64_t reach, reach_demand;     /* decoded: of the uid that is behind, after this step */
    uint64_t prefill, prefill_demand; /* served: likewise, of those with prefill alone */
};

/* ---- from waiting to running ----------------------------------------------------------------- */

static struct rival lane_rival(const struct sched *s, uint32_t i)
{
    const struct lane *lane = &s->lanes[i];
    const struct sequence *head = &s->sequences[queue_head(s, lane)];
    return (struct rival){.level = level_of(head),
                          .id = i,
                          .key = users_start_key(&s->users[lane->user]),
                          .deadline_us = head->deadline_us,
                          .arrival = head->arrival};
}

static bool may_start(const struct sched *s, const struct user *u, bool newcomer)
{
    uint32_t kept = newcomer ? 0 : s->config.newcomer_slots;
    return u->n_running < u->policy.max_running && s->n_running < s->config.max_running - kept;
}

/* Batch work takes no slot that is kept for newcomers before it has aged. */
static bool is_newcomer(const struct user *u, const struct sequence *seq)
{
    return u->n_running == 0 && (seq->class != SCHED_CLASS_BATCH || level_of(seq) == 0);
}

/* The lanes whose uid may start something, as a heap. */
static uint32_t gather_lanes(struct sched *s)
{
    uint64_t smallest = NEVER, lead = weighted(SCHED_SERVED_LEAD, SCHED_WEIGHT_DEFAULT);
    uint32_t n = 0;
    for (uint32_t i = 0; i < s->n_active; i++) {
        struct user *u = &s->users[s->lanes[s->active[i]].user];
        u->blocked = !may_start(s, u, u->n_running == 0);
        if (!u->blocked)
            smallest = min_u64(smallest, u->served);
    }
    for (uint32_t i = 0; i < s->n_active; i++) {
        struct user *u = &s->users[s->lanes[s->active[i]].user];
        if (u->blocked)
            continue;
        users_bound_lead(&u->served, smallest, lead);
        s->heap[n++] = lane_rival(s, s->active[i]);
    }
    rivals_order(s->heap, n);
    return n;
}

static void start(struct sched *s, uint32_t slot)
{
    struct sequence *seq = &s->sequences[slot];
    struct user *u = &s->users[seq->user];
    queue_take(s, slot);
    seq->state = STATE_RUNNING;
    seq->preempted = seq->begun = false;
    seq->since_us = seq->started_us = s->now_us;
    list_append(s, &s->models[seq->model].running, slot);
    s->n_running++;
    u->n_running++;
    u->n_pages += seq->n_pages;
    u->committed += owed_cost(s, seq);
    pages_claim(s, seq);
    pages_forecast_more(s, seq);
}

/* Starts the head of a lane if there is room for it; false: the lane is out of this plan. */
static bool start_head(struct sched *s, uint32_t lane, uint32_t *n_open)
{
    uint32_t slot = queue_head(s, &s->lanes[lane]);
    const struct sequence *seq = &s->sequences[slot];
    struct user *u = &s->users[seq->user];
    struct sched_model *m = &s->models[seq->model];
    if (u->blocked)
        return false;
    if (m->blocked == s->epoch && !far_behind(s, u, &s->users[s->sequences[m->wanting].user]))
        return false;
    if (!may_start(s, u, is_newcomer(u, seq)) || u->n_pages > u->policy.max_pages ||
        seq->n_pages > u->policy.max_pages - u->n_pages) {
        u->blocked = true;
        return false;
    }
    if (seq->n_pages > m->pages)
        return false;
    if (!pages_let_start(s, seq)) {
        if (m->blocked != s->epoch) {
            m->blocked = s->epoch;
            m->wanting = slot;
        }
        return false;
    }
    bool more = s->lanes[lane].n > 1;
    start(s, slot);
    if (m->n_waiting == 0)
        (*n_open)--;
    return more;
}

static void start_waiting(struct sched *s)
{
    uint32_t n_open = 0; /* models that somebody waits for */
    for (uint32_t m = 0; m < s->config.n_models; m++) {
        n_open += s->models[m].n_waiting > 0;
        s->models[m].wanting = NONE;
        if (s->models[m].n_waiting > 0)
            pages_forecast(s, &s->models[m]);
    }
    if (n_open == 0 || s->n_running >= s->config.max_running)
        return;
    uint32_t n = gather_lanes(s);
    while (n > 0 && n_open > 0 && s->n_running < s->config.max_running) {
        struct rival *top = &s->heap[0];
        uint64_t key = users_start_key(&s->users[s->lanes[top->id].user]);
        if (key != top->key) { /* its uid started another meanwhile: keys only grow */
            top->key = key;
            rivals_sink(s->heap, n, 0);
        } else if (start_head(s, top->id, &n_open)) {
            *top = lane_rival(s, top->id);
            rivals_sink(s->heap, n, 0);
        } else {
            rivals_pop(s->heap, &n);
        }
    }
}

/* ---- whose step ------------------------------------------------------------------------------ */

static bool has_work(const struct sched *s, const struct sched_model *m)
{
    for (uint32_t slot = m->running.first; slot != NONE; slot = s->sequences[slot].next)
        if (can_run(&s->sequences[slot]))
            return true;
    return false;
}

/* The next model after last_model that has a runnable sequence, or NONE. */
static uint32_t choose_model(const struct sched *s)
{
    for (uint32_t i = 1; i <= s->config.n_models; i++) {
        uint32_t model = (s->last_model + i) % s->config.n_models;
        if (has_work(s, &s->models[model]))
            return model;
    }
    return NONE;
}

/* ---- decodes --------------------------------------------------------------------------------- */

static void survey(struct sched *s, struct step *step)
{
    struct sched_model *m = &s->models[step->model];
    uint64_t served = NEVER, decoded = NEVER;
    for (uint32_t slot = m->running.first; slot != NONE; slot = s->sequences[slot].next) {
        const struct sequence *seq = &s->sequences[slot];
        struct user *u = &s->users[seq->user];
        if (!can_run(seq))
            continue;
        if (u->epoch != s->epoch) {
            u->epoch = s->epoch;
            u->n_decodes = u->n_forced = u->quota = u->n_prefill = 0;
            u->picked = 0;
            s->step_users[step->n_users++] = seq->user;
            served = min_u64(served, u->served);
        }
        if (seq->owed > 1) {
            step->n_prefill++;
            u->n_prefill++;
            continue;
        }
        u->n_decodes++;
        u->n_forced += seq->n_skipped >= s->config.skips_max;
        decoded = min_u64(decoded, u->decoded);
    }
    m->served = served;
    if (decoded == NEVER)
        return;
    m->decoded = decoded;
    for (uint32_t i = 0; i < step->n_users; i++) {
        struct user *u = &s->users[s->step_users[i]];
        if (u->n_decodes == 0)
            continue;
        step->bystanders |= u->n_prefill == 0;
        users_bound_lead(&u->decoded, decoded, distance(s, s->config.credit_rows));
    }
}

static uint64_t decode_step(const struct sched *s, const struct user *u)
{
    return weighted(s->config.decode_cost, u->policy.weight);
}

/* Not enough room for all: row by row to the smallest counter. `n` rivals with u->n_decodes as what
 * they may have at most. */
static void fill_quotas(struct sched *s, uint32_t n, uint32_t limit)
{
    rivals_order(s->heap, n);
    for (; limit > 0 && n > 0; limit--) {
        struct rival *top = &s->heap[0];
        struct user *u = &s->users[top->id];
        if (++u->quota == u->n_decodes) {
            rivals_pop(s->heap, &n);
        } else {
            top->key += decode_step(s, u);
            rivals_sink(s->heap, n, 0);
        }
    }
}

static uint64_t demand(const struct sched *s, const struct user *u)
{
    return (uint64_t)(u->n_decodes + u->n_prefill) * decode_step(s, u);
}

/* Who is behind, of those who cannot use more slots than they have. */
static void find_last(const struct sched *s, struct step *step)
{
    step->reach = step->prefill = NEVER;
    for (uint32_t i = 0; i < step->n_users; i++) {
        const struct user *u = &s->users[s->step_users[i]];
        if (u->lanes != NONE && u->n_running < u->policy.max_running)
            continue;
        uint64_t reach = u->decoded + u->n_decodes * decode_step(s, u);
        if (u->n_decodes > 0 && reach < step->reach) {
            step->reach = reach;
            step->reach_demand = demand(s, u);
        } else if (u->n_decodes == 0 && u->served < step->prefill) {
            step->prefill = u->served;
            step->prefill_demand = demand(s, u);
        }
    }
}

/* How many decodes a uid may run for the others' sake. */
static uint32_t fair_decodes(const struct sched *s, const struct step *step, const struct user *u)
{
    uint64_t lag = distance(s, s->config.lag_rows), mine = demand(s, u), n = u->n_decodes;
    if (step->prefill != NEVER && mine > step->prefill_demand && u->served > step->prefill + lag)
        n = min_u64(n, 1);
    else if (step->reach != NEVER && mine > step->reach_demand)
        n = min_u64(n, minus_or_0(step->reach + lag, u->decoded) / decode_step(s, u));
    return (uint32_t)(n > u->n_forced ? n : u->n_forced);
}

static void share_decodes(struct sched *s, struct step *step, uint32_t limit)
{
    uint32_t n = 0, total = 0;
    find_last(s, step);
    for (uint32_t i = 0; i < step->n_users; i++) {
        struct user *u = &s->users[s->step_users[i]];
        if (u->n_decodes > 0)
            u->n_decodes = fair_decodes(s, step, u);
        if (u->n_decodes == 0)
            continue;
        total += u->n_decodes;
        s->heap[n++] = (struct rival){.id = s->step_users[i], .key = u->decoded};
    }
    if (total > limit) {
        fill_quotas(s, n, limit);
        return;
    }
    for (uint32_t i = 0; i < n; i++)
        s->users[s->heap[i].id].quota = s->users[s->heap[i].id].n_decodes;
}

static void emit(const struct sched *s, struct step *step, uint32_t slot, uint32_t n_rows)
{
    uint32_t pages = pages_for_next(s, &s->sequences[slot], n_rows);
    assert(step->n < step->room && n_rows > 0 && n_rows <= step->rows && pages <= step->pages);
    step->work[step->n++] = (struct sched_work){slot, n_rows};
    step->rows -= n_rows;
    step->pages -= pages;
}

static void take_decodes(struct sched *s, struct step *step)
{
    for (uint32_t slot = s->models[step->model].running.first; slot != NONE;
         slot = s->sequences[slot].next) {
        struct sequence *seq = &s->sequences[slot];
        struct user *u = &s->users[seq->user];
        if (!can_run(seq) || seq->owed > 1 || pages_hold_rows(s, seq, step->pages) == 0)
            continue;
        if (u->quota == 0) {
            seq->n_skipped++;
            continue;
        }
        u->quota--;
        emit(s, step, slot, 1);
    }
    step->n_decodes = step->n;
}

/* ---- prefill --------------------------------------------------------------------------------- */

static uint64_t prefill_key(const struct user *u)
{
    return u->served + weighted(u->picked, u->policy.weight);
}

static uint32_t gather_prefill(struct sched *s, const struct step *step)
{
    uint32_t n = 0;
    for (uint32_t slot = s->models[step->model].running.first; slot != NONE;
         slot = s->sequences[slot].next) {
        const struct sequence *seq = &s->sequences[slot];
        if (!can_run(seq) || seq->owed == 1)
            continue;
        uint64_t aged = (s->now_us - seq->since_us) / s->config.age_us;
        s->heap[n++] = (struct rival){.level = (uint32_t)minus_or_0(seq->class, aged),
                                      .id = slot,
                                      .key = prefill_key(&s->users[seq->user]),
                                      .deadline_us = seq->deadline_us,
                                      .arrival = seq->arrival};
    }
    rivals_order(s->heap, n);
    return n;
}

/* When more prompts are due than decodes run, and nobody decodes who has no prompt due himself, the
 * step may grow by that much more: few decodes make short steps, these leave little for prefill,
 * and so it would stay with few decodes in a crowd of prompts. */
static uint32_t prefill_budget(const struct sched *s, const struct step *step)
{
    uint64_t rows = sched_prefill_budget(s, step->model, step->n_decodes);
    if (step->n_decodes > 0 && cost_wants_decodes_alone(&s->models[step->model], step->n_decodes))
        return 0;
    if (!step->bystanders && step->n_prefill > step->n_decodes && step->n_decodes > 0)
        rows *= min_u32(step->n_prefill / step->n_decodes, SCHED_CROWD_MAX);
    return (uint32_t)min_u64(rows, step->rows);
}

static void take_prefill(struct sched *s, struct step *step)
{
    uint32_t n = gather_prefill(s, step);
    if (step->n_decodes == 0)
        step->rows = sched_prefill_budget(s, step->model, 0);
    uint32_t budget = prefill_budget(s, step);
    while (n > 0 && budget > 0 && step->n < step->room) {
        struct rival *top = &s->heap[0];
        const struct sequence *seq = &s->sequences[top->id];
        struct user *u = &s->users[seq->user];
        if (top->key != prefill_key(u)) {
            top->key = prefill_key(u);
            rivals_sink(s->heap, n, 0);
            continue;
        }
        uint32_t rows = min_u32(pages_hold_rows(s, seq, step->pages), budget);
        if (rows > 0) {
            emit(s, step, top->id, rows);
            budget -= rows;
            u->picked += rows_cost(s, seq->owed, minus_or_0(rows, seq->n_again));
        }
        rivals_pop(s->heap, &n);
    }
}

uint32_t sched_plan(struct sched *s, uint64_t now_us, uint32_t *ret_model, struct sched_work *ret,
                    uint32_t room)
{
    if (now_us > s->now_us)
        s->now_us = now_us;
    s->epoch++;
    queue_age(s);
    start_waiting(s);
    struct step step = {
        .model = choose_model(s), .work = ret, .room = room, .rows = s->config.step_rows};
    if (step.model == NONE || room == 0)
        return 0;
    s->last_model = step.model;
    step.pages = s->models[step.model].available;
    survey(s, &step);
    uint32_t limit = min_u32(room, step.rows);
    if (step.n_prefill > 0) {
        uint32_t reserve = min_u32(SCHED_PREFILL_RESERVE, s->config.step_rows / 4);
        limit = min_u32(room > 1 ? room - 1 : room, step.rows - reserve);
    }
    share_decodes(s, &step, limit);
    take_decodes(s, &step);
    if (step.n_prefill > 0)
        take_prefill(s, &step);
    *ret_model = step.model;
    return step.n;
}

/* ---- the step after a step under way --------------------------------------------------------- */

static bool others_have_work(const struct sched *s, uint32_t model)
{
    for (uint32_t i = 0; i < s->config.n_models; i++)
        if (i != model && has_work(s, &s->models[i]))
            return true;
    return false;
}

/* Does anybody wait for more than a slot that others have, or that is kept for others? */
static bool some_could_start(const struct sched *s)
{
    for (uint32_t i = 0; i < s->n_active; i++) {
        const struct lane *lane = &s->lanes[s->active[i]];
        const struct user *u = &s->users[lane->user];
        if (may_start(s, u, is_newcomer(u, &s->sequences[queue_head(s, lane)])))
            return true;
    }
    return false;
}

/* Is the step all that can run of its model, and only decodes? */
static bool has_all(const struct sched *s, uint32_t model, const struct sched_work *work,
                    uint32_t n)
{
    uint32_t n_can = 0;
    for (uint32_t i = 0; i < n; i++)
        if (work[i].n_rows != 1 || !can_run(&s->sequences[work[i].slot]))
            return false;
    for (uint32_t slot = s->models[model].running.first; slot != NONE;
         slot = s->sequences[slot].next) {
        if (!can_run(&s->sequences[slot]))
            continue;
        if (s->sequences[slot].owed > 1)
            return false;
        n_can++;
    }
    return n_can == n;
}

/* Once the step is charged for, may every uid still run all it has? */
static bool stays_fair(struct sched *s, uint32_t model)
{
    struct step step = {.model = model};
    bool fair = true;
    s->epoch++;
    survey(s, &step);
    for (uint32_t i = 0; i < step.n_users; i++) {
        struct user *u = &s->users[s->step_users[i]];
        u->decoded += u->n_decodes * decode_step(s, u);
    }
    find_last(s, &step);
    for (uint32_t i = 0; i < step.n_users && fair; i++) {
        const struct user *u = &s->users[s->step_users[i]];
        fair = fair_decodes(s, &step, u) == u->n_decodes;
    }
    for (uint32_t i = 0; i < step.n_users; i++) {
        struct user *u = &s->users[s->step_users[i]];
        u->decoded -= u->n_decodes * decode_step(s, u);
    }
    return fair;
}

bool sched_goes_on(struct sched *s, uint64_t now_us, uint32_t model, const struct sched_work *work,
                   uint32_t n)
{
    assert(model < s->config.n_models);
    if (now_us > s->now_us)
        s->now_us = now_us;
    queue_age(s);
    return n > 0 && !some_could_start(s) && !others_have_work(s, model) &&
           has_all(s, model, work, n) && stays_fair(s, model);
}
