/* cost.c: what was measured, and what follows from it.
 *
 * Two figures per model. The time of a step with decodes alone depends on how many there are, with
 * a bend where a backend goes from reading weights to computing, so it is kept by size class (1, 2,
 * 3-4, 5-8 ... rows) instead of being fitted. What a row of prefill adds is one number: of a mixed
 * step, the time beyond that of its decodes; of a prefill-only step, its time per row, if there
 * were enough rows for the fixed part not to matter. Under load every step may be mixed; then the
 * first one of a size class gives the time of its decodes, as what is left beside its prefill. That
 * guess may be far off, and as the rate of prefill would then be taken from the difference, and few
 * rows of prefill from that rate, it could stay so: so a step after a guess, and one of
 * SCHED_MIXED_MAX mixed ones, has its decodes alone, and their time is measured. Both figures are
 * moving means, 1/8 new each time; a sample counts as at most 3/2 of the mean, so that one hiccup
 * of the machine does not shrink the steps that follow it, or make room in them that is not there.
 *
 * Position and estimated start are for people who wait: cheap and roughly right. */
#include "sched/internal.h"

#include <assert.h>

#define ROWS_FOR_A_RATE 64u
#define GUESSED         UINT32_C(0x80000000) /* as n_mixed */

static uint32_t size_class(uint32_t n)
{
    uint32_t c = n <= 1 ? 0 : 32 - (uint32_t)__builtin_clz(n - 1);
    return c < SCHED_SIZES ? c : SCHED_SIZES - 1;
}

static void learn(uint64_t *mean, uint64_t sample)
{
    if (*mean == 0) {
        *mean = sample > 0 ? sample : 1;
        return;
    }
    sample = min_u64(sample, *mean + *mean / 2 + 1);
    *mean = (7 * *mean + sample + 4) / 8;
    if (*mean == 0)
        *mean = 1;
}

/* A guess counts for nothing once it is known better. */
static void measured_alone(struct sched_model *m, uint32_t c, uint64_t took_ns)
{
    if (m->n_mixed[c] >= GUESSED)
        m->decode_ns[c] = 0;
    learn(&m->decode_ns[c], took_ns);
    m->n_mixed[c] = 0;
}

/* Of the nearest size that was measured, smaller ones first: they err on the short side. */
static uint64_t decode_ns(const struct sched_model *m, uint32_t n)
{
    uint32_t c = size_class(n);
    for (uint32_t i = c + 1; i-- > 0;)
        if (m->decode_ns[i] > 0)
            return m->decode_ns[i];
    for (uint32_t i = c + 1; i < SCHED_SIZES; i++)
        if (m->decode_ns[i] > 0)
            return m->decode_ns[i];
    return 0;
}

void sched_measured(struct sched *s, uint32_t model, uint32_t n_prefill_rows,
                    uint32_t n_decode_rows, uint64_t took_us)
{
    assert(model < s->config.n_models);
    struct sched_model *m = &s->models[model];
    uint64_t took_ns = min_u64(took_us, UINT64_C(1) << 40) * 1000;
    if (n_prefill_rows == 0) {
        if (n_decode_rows > 0)
            measured_alone(m, size_class(n_decode_rows), took_ns);
    } else if (n_decode_rows == 0) {
        if (n_prefill_rows >= ROWS_FOR_A_RATE || m->prefill_ns == 0)
            learn(&m->prefill_ns, took_ns / n_prefill_rows);
    } else if (m->decode_ns[size_class(n_decode_rows)] > 0) {
        uint64_t decodes = m->decode_ns[size_class(n_decode_rows)];
        learn(&m->prefill_ns, minus_or_0(took_ns, decodes) / n_prefill_rows);
        m->n_mixed[size_class(n_decode_rows)]++;
    } else {
        uint64_t share = took_ns * n_decode_rows / (n_decode_rows + n_prefill_rows);
        uint64_t rest = minus_or_0(took_ns, m->prefill_ns * n_prefill_rows);
        learn(&m->decode_ns[size_class(n_decode_rows)], rest > share ? rest : share);
        m->n_mixed[size_class(n_decode_rows)] = GUESSED;
    }
}

bool cost_wants_decodes_alone(const struct sched_model *m, uint32_t n_decode_rows)
{
    return m->n_mixed[size_class(n_decode_rows)] >= SCHED_MIXED_MAX;
}

uint32_t sched_prefill_budget(const struct sched *s, uint32_t model, uint32_t n_decode_rows)
{
    const struct sched_model *m = &s->models[model];
    uint64_t decodes = decode_ns(m, n_decode_rows);
    if (n_decode_rows == 0) {
        bool soon = m->prefill_ns > 0 && m->prefill_ns * m->rows <= SCHED_LONG_STEP_US * 1000ull;
        return soon && m->rows > s->config.step_rows ? m->rows : s->config.step_rows;
    }
    uint64_t rows = 0;
    if (decodes > 0 && m->prefill_ns > 0)
        rows = decodes / 100 * s->config.decode_growth_percent / m->prefill_ns;
    if (rows < SCHED_PREFILL_MIN)
        rows = SCHED_PREFILL_MIN;
    return (uint32_t)min_u64(rows, s->config.step_rows);
}

/* ---- those who wait -------------------------------------------------------------------------- */

void cost_ended(struct sched *s, const struct sequence *seq)
{
    if (seq->cost == 0)
        return;
    learn(&s->models[seq->model].mean_answer, minus_or_0(seq->n_done, seq->n_prompt));
    learn(&s->mean_life_us, seq->ran_us + (s->now_us - seq->started_us));
    learn(&s->mean_cost, seq->cost);
}

/* Starts of `u` before that of a rival which is `rank` starts of its own uid away, when each start
 * moves its uid's key by the mean cost. */
static uint32_t starts_before(const struct sched *s, const struct user *u, uint32_t n,
                              const struct user *self, uint32_t rank)
{
    uint64_t cost = s->mean_cost > 0 ? s->mean_cost : 256;
    uint64_t mine = users_start_key(self) + rank * weighted(cost, self->policy.weight);
    uint64_t theirs = users_start_key(u), each = weighted(cost, u->policy.weight);
    if (mine <= theirs)
        return 0;
    return (uint32_t)min_u64(n, (mine - theirs - 1) / each + 1);
}

uint32_t sched_position(const struct sched *s, uint32_t slot)
{
    const struct sequence *seq = &s->sequences[slot];
    assert(slot < s->config.max_sequences && seq->state != STATE_FREE);
    if (seq->state == STATE_RUNNING)
        return 0;
    const struct user *self = &s->users[seq->user];
    uint32_t level = level_of(seq), rank = queue_rank(s, slot), n = rank;
    for (uint32_t i = 0; i < s->config.n_users_max; i++) {
        const struct user *u = &s->users[i];
        if (u->n_waiting == 0)
            continue;
        for (uint32_t above = 0; above < level; above++)
            n += u->n_level[above];
        if (u != self && u->n_level[level] > 0)
            n += starts_before(s, u, u->n_level[level], self, rank);
    }
    return n;
}

uint64_t sched_estimate_us(const struct sched *s, uint32_t slot, uint64_t now_us)
{
    const struct sequence *seq = &s->sequences[slot];
    uint32_t position = sched_position(s, slot);
    if (seq->state == STATE_RUNNING)
        return 0;
    const struct sched_model *m = &s->models[seq->model];
    if (s->n_running == 0 ||
        (s->n_running < s->config.max_running && position == 0 && pages_let_start(s, seq)))
        return now_us;
    uint64_t life = s->mean_life_us;
    if (life == 0 && m->running.first != NONE)
        life = minus_or_0(now_us, s->sequences[m->running.first].started_us);
    return now_us + life / s->n_running * (position + 1);
}
