/* sim.h: clients in closed loops against the scheduler, with a clock that a cost model moves.
 *
 * A step of d decode rows and p prefill rows takes fixed + d * decode + p * prefill. A client
 * submits, waits for its answer, pauses for `pause` steps, and submits again. Pages are counted:
 * before a step the victims that the scheduler names give up theirs (saved, or to be computed again
 * if save_percent has it so), and no step ever holds more than there are. */
#ifndef INFERD_TESTS_SCHED_SIM_H
#define INFERD_TESTS_SCHED_SIM_H

#include "sched/sched.h"

#include <assert.h>
#include <string.h>

#define SIM_CLIENTS 512
#define SIM_ROOM    256

struct sim_client {
    uint32_t uid, prompt, answer, pause;
    enum sched_class class;
    bool live, saved, started;
    uint32_t slot, owed, left, done, peak; /* done: rows with pages; peak: rows ever done */
    uint64_t wake_step, added_us, last_us;
    uint32_t n_preempted; /* of this request */
    uint64_t n_tokens, n_done, n_refused;
    uint64_t wait_us_max, gap_us_max; /* to its start; between two tokens */
};

struct sim {
    struct sched *sched;
    uint32_t fixed_us, decode_us, prefill_us;
    uint32_t pages, page_tokens, save_percent; /* pages 0: plenty */
    uint32_t preempt_again_max;
    uint64_t now_us, n_steps, n_tokens, n_rows, n_again, n_preempted;
    uint64_t decode_step_us_max, mixed_step_us_max;
    uint32_t prefill_rows_beside_decode_max;
    uint32_t n_clients;
    struct sim_client clients[SIM_CLIENTS];
    uint32_t by_slot[4096];
};

static inline struct sim_client *sim_client(struct sim *sim, uint32_t n, uint32_t uid,
                                            uint32_t prompt, uint32_t answer)
{
    struct sim_client *first = &sim->clients[sim->n_clients];
    for (uint32_t i = 0; i < n; i++)
        sim->clients[sim->n_clients++] = (struct sim_client){.uid = uid,
                                                             .prompt = prompt,
                                                             .answer = answer,
                                                             .pause = 1,
                                                             .class = SCHED_CLASS_NORMAL,
                                                             .wake_step = sim->n_steps};
    assert(sim->n_clients <= SIM_CLIENTS);
    return first;
}

static inline uint32_t sim_pages_for(const struct sim *sim, uint32_t n_rows)
{
    return (n_rows + sim->page_tokens - 1) / sim->page_tokens;
}

static inline uint32_t sim_available(const struct sim *sim)
{
    uint32_t held = 0;
    for (uint32_t i = 0; i < sim->n_clients; i++)
        if (sim->clients[i].live && !sim->clients[i].saved)
            held += sim_pages_for(sim, sim->clients[i].done);
    assert(held <= sim->pages);
    return sim->pages - held;
}

static inline void sim_preempt(struct sim *sim, struct sim_client *c)
{
    uint32_t pages = sim_pages_for(sim, c->done + c->owed);
    sim->n_preempted++;
    c->saved = c->done > 0 && sim->n_preempted * 37 % 100 < sim->save_percent;
    if (!c->saved) {
        c->owed += c->done;
        c->done = 0;
    }
    c->n_preempted++;
    sched_preempted(sim->sched, c->slot, c->owed, pages);
}

static inline void sim_relieve(struct sim *sim)
{
    uint32_t victim;
    sched_set_available(sim->sched, 0, sim_available(sim));
    while ((victim = sched_victim(sim->sched, 0, sim->now_us)) != UINT32_MAX) {
        sim_preempt(sim, &sim->clients[sim->by_slot[victim]]);
        sched_set_available(sim->sched, 0, sim_available(sim));
    }
}

static inline void sim_submit(struct sim *sim)
{
    for (uint32_t i = 0; i < sim->n_clients; i++) {
        struct sim_client *c = &sim->clients[i];
        if (c->live || c->wake_step > sim->n_steps)
            continue;
        struct sched_request r = {.uid = c->uid,
                                  .n_rows = c->prompt,
                                  .n_pages = sim_pages_for(sim, c->prompt + c->answer),
                                  .class = c->class};
        if (sched_add(sim->sched, &r, sim->now_us, &c->slot, NULL) < 0) {
            c->n_refused++;
            continue;
        }
        c->live = true;
        c->owed = c->prompt;
        c->left = c->answer;
        c->done = c->peak = c->n_preempted = 0;
        c->started = false;
        c->added_us = sim->now_us;
        c->last_us = 0;
        sim->by_slot[c->slot] = i;
    }
}

static inline void sim_ran(struct sim *sim, const struct sched_work *w, uint64_t from_us)
{
    struct sim_client *c = &sim->clients[sim->by_slot[w->slot]];
    if (!c->started && from_us - c->added_us > c->wait_us_max)
        c->wait_us_max = from_us - c->added_us;
    c->started = true;
    c->saved = false;
    if (c->n_preempted > sim->preempt_again_max)
        sim->preempt_again_max = c->n_preempted;
    uint32_t again = c->peak > c->done ? c->peak - c->done : 0;
    sim->n_again += again < w->n_rows ? again : w->n_rows;
    c->done += w->n_rows;
    if (c->peak < c->done)
        c->peak = c->done;
    c->owed -= w->n_rows;
    if (c->owed > 0) {
        sched_ran(sim->sched, w->slot, w->n_rows, 0);
        return;
    }
    if (c->last_us > 0 && sim->now_us - c->last_us > c->gap_us_max)
        c->gap_us_max = sim->now_us - c->last_us;
    c->last_us = sim->now_us;
    c->n_tokens++;
    sim->n_tokens++;
    c->owed = --c->left > 0;
    sched_ran(sim->sched, w->slot, w->n_rows, c->owed);
    if (c->left == 0) {
        sched_remove(sim->sched, w->slot);
        c->live = false;
        c->n_done++;
        c->wake_step = sim->n_steps + 1 + c->pause;
    }
}

/* False when nobody could run. */
static inline bool sim_step(struct sim *sim)
{
    struct sched_work w[SIM_ROOM];
    uint32_t model = 0, decodes = 0, prefill = 0;
    sim_submit(sim);
    sim_relieve(sim);
    uint32_t n = sched_plan(sim->sched, sim->now_us, &model, w, SIM_ROOM);
    for (uint32_t i = 0; i < n; i++)
        *(w[i].n_rows > 1 ? &prefill : &decodes) += w[i].n_rows;
    uint64_t from = sim->now_us, took = sim->fixed_us + (uint64_t)decodes * sim->decode_us +
                                        (uint64_t)prefill * sim->prefill_us;
    sim->now_us += took;
    if (n > 0)
        sched_measured(sim->sched, model, prefill, decodes, took);
    for (uint32_t i = 0; i < n; i++)
        sim_ran(sim, &w[i], from);
    (void)sim_available(sim); /* asserts that there are as many */
    sim->n_steps++;
    sim->n_rows += decodes + prefill;
    if (prefill == 0 && took > sim->decode_step_us_max)
        sim->decode_step_us_max = took;
    if (prefill > 0 && decodes > 0 && took > sim->mixed_step_us_max)
        sim->mixed_step_us_max = took;
    if (decodes > 0 && prefill > sim->prefill_rows_beside_decode_max)
        sim->prefill_rows_beside_decode_max = prefill;
    return n > 0;
}

static inline uint64_t sim_tokens(const struct sim *sim, uint32_t uid)
{
    uint64_t n = 0;
    for (uint32_t i = 0; i < sim->n_clients; i++)
        n += sim->clients[i].uid == uid ? sim->clients[i].n_tokens : 0;
    return n;
}

#endif
