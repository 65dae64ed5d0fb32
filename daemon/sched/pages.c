/* pages.c: pages of sequence state: what rows need, what is claimed, and who gives up his.
 *
 * The caller owns the pages and tells before each step how many nobody holds. What a sequence holds
 * follows from the rows that it has done, so what its next rows need is known here, and no page is
 * set aside for a sequence's life: a running one has a claim to what the rows it owes take, and an
 * answer grows by a row at a time into what is left.
 *
 *   claim   not begun: all that it starts with, for the cache or the store it comes back from may
 *           give it that much at once; in its prompt: what the rest of it takes; in its answer: 0
 *   free    available less all claims: what answers grow into and newcomers start from
 *
 * The pages of a sequence never exceed its n_pages: a window slides instead.
 *
 * Why a third of the growth is kept when another one starts. What runs grows until it ends, but
 * not all at once: when the oldest ends, the youngest has hardly begun. With all of the expected
 * growth kept, a third of the pool or more lies idle; with none, four rows of ten run twice, and in
 * the worst mix eight. With a third, in loads of three times the pool, about a fifth runs
 * twice, at 95% of the tokens a second that can be had, where rows of prefill are cheap.
 * (test_simulated prints it.) Nothing is kept for those who should give way to who starts: else a
 * uid with one request waits again and again for one with many.
 *
 * Why everything ends. Let some sequences run and wait, none come, and clients read. Rank (see
 * ranks_lower()) depends on class, service and arrival, and only service changes: it grows by rows
 * that run for the first time, of which there are finitely many, whatever is preempted, because
 * rows that run again are not charged. So if no such row ran any more, rank would stand still from
 * some time on. Then look at the highest in rank of those that can run: it is never the victim, all
 * others are before its own need goes unmet, and alone it has room, because what never fits was
 * refused. It owes finitely many rows that ran before, and then runs one that did not: a
 * contradiction. So new rows run until none is left. And somebody always runs: with nobody running
 * no reserve is asked for, and who is next in order has the whole pool.
 *
 * "Alone" and "the whole pool" need the caller's help, for pages are also held by those that do not
 * run: a sequence that goes on from a kept state brings its pages and holds them while it waits,
 * and so do kept states that nobody goes on from. Such a holder waits for its turn while the one
 * before it waits for its pages. So sched_lacks() says what is missing, and the caller has holders
 * give: first states that nobody goes on from, then those that wait, the last in order first, and
 * then, when what lacks is `stuck`, even those that cannot come back. A holder gives at most once,
 * and holds pages again by starting only, so after finitely many gave, all pages that are not
 * available are held by what runs, or by the next in order itself. What it lacks is then
 *
 *   need - brought <= n_pages - brought <= pages - brought = available    (nobody runs)
 *   need - held    <= n_pages - held    <= pages - held    = available    (it runs alone)
 *
 * which is nothing. What waits but is not the next never makes anybody give, so there is no circle
 * of holders that wait for each other.
 *
 * Cost: O(running) for a victim and for a start that pages are scarce for, O(1) for the rest. */
#include "sched/internal.h"

#include <assert.h>

/* The reserve is this part of the growth that is expected of who runs; until an answer ended, a
 * page for each, but at most this part of the pool. */
#define GROWTH_SHARE 3u
#define POOL_SHARE   16u

uint32_t pages_of(const struct sched *s, const struct sequence *seq, uint64_t n_rows)
{
    uint64_t pages = (n_rows + s->config.page_tokens - 1) / s->config.page_tokens;
    return (uint32_t)min_u64(pages, seq->n_pages);
}

static uint32_t owed_pages(const struct sched *s, const struct sequence *seq)
{
    return pages_of(s, seq, (uint64_t)seq->n_done + seq->owed);
}

static uint32_t to_begin(const struct sched *s, const struct sequence *seq)
{
    uint32_t back = min_u32(seq->n_back, seq->n_pages), owed = owed_pages(s, seq);
    return minus_or_0(back > owed ? back : owed, seq->n_brought);
}

uint32_t pages_for_next(const struct sched *s, const struct sequence *seq, uint32_t n_rows)
{
    uint64_t rows = (uint64_t)seq->n_done + n_rows;
    if (!seq->begun)
        return to_begin(s, seq);
    if (rows <= (uint64_t)seq->n_held * s->config.page_tokens) /* dear divisions are spared */
        return 0;
    return pages_of(s, seq, rows) - seq->n_held;
}

uint32_t pages_hold_rows(const struct sched *s, const struct sequence *seq, uint32_t n_pages)
{
    if (!seq->begun)
        return to_begin(s, seq) <= n_pages ? seq->owed : 0;
    uint64_t pages = (uint64_t)seq->n_held + n_pages, room = pages * s->config.page_tokens;
    if (pages >= seq->n_pages || room >= (uint64_t)seq->n_done + seq->owed)
        return seq->owed;
    return (uint32_t)(room - seq->n_done);
}

/* ---- claims ---------------------------------------------------------------------------------- */

void pages_unclaim(struct sched *s, struct sequence *seq)
{
    s->models[seq->model].claimed -= seq->claim;
    seq->claim = 0;
}

void pages_claim(struct sched *s, struct sequence *seq)
{
    pages_unclaim(s, seq);
    seq->n_held = pages_of(s, seq, seq->n_done);
    if (!seq->begun || seq->owed > 1)
        seq->claim = pages_for_next(s, seq, seq->owed);
    s->models[seq->model].claimed += seq->claim;
}

/* ---- starts ---------------------------------------------------------------------------------- */

/* Pages that it is expected to come to hold beyond what its owed rows take, at least one. */
static uint32_t growth(const struct sched *s, const struct sequence *seq)
{
    uint64_t answer = s->models[seq->model].mean_answer;
    uint32_t end = pages_of(s, seq, seq->n_prompt + answer), now = owed_pages(s, seq);
    return end > now ? end - now : 1;
}

void pages_forecast(struct sched *s, struct sched_model *m)
{
    m->growth = 0;
    for (uint32_t slot = m->running.first; slot != NONE; slot = s->sequences[slot].next)
        m->growth += growth(s, &s->sequences[slot]);
}

void pages_forecast_more(struct sched *s, const struct sequence *seq)
{
    s->models[seq->model].growth += growth(s, seq);
}

/* Should it give way to `seq` when pages run out, whatever the two uids run in the next moments? */
static bool yields(const struct sched *s, const struct sequence *running,
                   const struct sequence *seq)
{
    if (running->parked || running->class != seq->class)
        return running->parked || running->class > seq->class;
    return far_behind(s, &s->users[seq->user], &s->users[running->user]);
}

/* The growth without that of those who yield to `seq`. */
static uint64_t growth_above(const struct sched *s, const struct sequence *seq)
{
    uint64_t sum = 0;
    for (uint32_t slot = s->models[seq->model].running.first; slot != NONE;
         slot = s->sequences[slot].next)
        if (!yields(s, &s->sequences[slot], seq))
            sum += growth(s, &s->sequences[slot]);
    return sum;
}

static uint64_t reserve(const struct sched_model *m, uint64_t growth)
{
    if (m->running.n == 0)
        return 0;
    if (m->mean_answer == 0)
        return min_u32(m->running.n, m->pages / POOL_SHARE);
    return growth / GROWTH_SHARE;
}

static uint64_t unclaimed(const struct sched_model *m)
{
    return minus_or_0(m->available, m->claimed);
}

bool pages_let_start(const struct sched *s, const struct sequence *seq)
{
    const struct sched_model *m = &s->models[seq->model];
    uint64_t pages = unclaimed(m), need = to_begin(s, seq);
    if (need > pages)
        return false;
    return need + reserve(m, m->growth) <= pages || /* mostly, and soon told */
           need + reserve(m, growth_above(s, seq)) <= pages;
}

/* ---- the victim ------------------------------------------------------------------------------ */

static bool ranks_lower(const struct sched *s, const struct sequence *a, const struct sequence *b)
{
    if (a->parked != b->parked)
        return a->parked;
    if (a->parked && a->parked_us != b->parked_us)
        return a->parked_us < b->parked_us;
    if (a->class != b->class)
        return a->class > b->class;
    uint64_t served_a = s->users[a->user].served, served_b = s->users[b->user].served;
    if (served_a != served_b)
        return served_a > served_b;
    return a->arrival > b->arrival;
}

/* The lowest in rank, but not the highest of those that can run. */
static uint32_t lowest(const struct sched *s, const struct sched_model *m)
{
    const struct sequence *q = s->sequences;
    uint32_t low = NONE, high = NONE;
    for (uint32_t slot = m->running.first; slot != NONE; slot = q[slot].next) {
        if (q[slot].owed == 0)
            continue;
        if (low == NONE || ranks_lower(s, &q[slot], &q[low]))
            low = slot;
        if (can_run(&q[slot]) && (high == NONE || ranks_lower(s, &q[high], &q[slot])))
            high = slot;
    }
    return low != high ? low : NONE;
}

/* Of those parked for park_us or more, the one parked longest, if they hold what `slot` wants. */
static uint32_t longest_parked(const struct sched *s, const struct sched_model *m, uint32_t slot,
                               uint64_t now_us)
{
    const struct sequence *q = s->sequences;
    uint64_t pages = unclaimed(m);
    uint32_t longest = NONE;
    for (uint32_t i = m->running.first; i != NONE; i = q[i].next) {
        if (!q[i].parked || minus_or_0(now_us, q[i].parked_us) < s->config.park_us)
            continue;
        pages += q[i].begun ? q[i].n_held + q[i].claim : q[i].claim;
        if (longest == NONE || ranks_lower(s, &q[i], &q[longest]))
            longest = i;
    }
    uint64_t need = to_begin(s, &q[slot]) + reserve(m, growth_above(s, &q[slot]));
    return pages >= need ? longest : NONE;
}

/* Pages that what can run lacks for its next rows and claims. */
static uint64_t lacks_to_run(const struct sched *s, const struct sched_model *m)
{
    const struct sequence *q = s->sequences;
    uint64_t needed = m->claimed;
    bool some = false;
    for (uint32_t slot = m->running.first; slot != NONE; slot = q[slot].next) {
        if (!can_run(&q[slot]))
            continue;
        some = true;
        if (q[slot].claim == 0)
            needed += pages_for_next(s, &q[slot], 1);
    }
    return some ? minus_or_0(needed, m->available) : 0;
}

/* Who was next in the last plan and still cannot start for want of pages; NONE: nobody. */
static uint32_t wants_pages(const struct sched *s, uint32_t model)
{
    uint32_t slot = s->models[model].wanting;
    if (slot == NONE)
        return NONE;
    const struct sequence *seq = &s->sequences[slot];
    bool waits = seq->state == STATE_WAITING && seq->model == model && !seq->parked;
    return waits && !pages_let_start(s, seq) ? slot : NONE;
}

uint32_t sched_victim(const struct sched *s, uint32_t model, uint64_t now_us)
{
    assert(model < s->config.n_models);
    const struct sched_model *m = &s->models[model];
    if (lacks_to_run(s, m) > 0)
        return lowest(s, m);
    uint32_t slot = wants_pages(s, model);
    return slot != NONE ? longest_parked(s, m, slot, now_us) : NONE;
}

struct sched_lack sched_lacks(const struct sched *s, uint32_t model)
{
    assert(model < s->config.n_models);
    const struct sched_model *m = &s->models[model];
    uint64_t n = lacks_to_run(s, m);
    if (n > 0)
        return (struct sched_lack){(uint32_t)n, NONE, lowest(s, m) == NONE};
    uint32_t slot = wants_pages(s, model);
    if (slot == NONE)
        return (struct sched_lack){0, NONE, false};
    uint64_t need = to_begin(s, &s->sequences[slot]);
    need += reserve(m, growth_above(s, &s->sequences[slot]));
    n = minus_or_0(need, unclaimed(m));
    return (struct sched_lack){(uint32_t)min_u64(n, UINT32_MAX), slot, m->running.n == 0};
}
