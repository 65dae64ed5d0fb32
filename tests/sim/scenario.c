/* scenario.c: from a seed to a day: users, clients, limits, and what goes wrong.
 *
 * Everything is drawn from the seed alone. Each kind of trouble is absent from most days, so that
 * the strict checks (nobody is refused, nothing fails) hold there. */
#include "sim.h"

#include <string.h>

/* Not root's, nor that of whoever runs the simulator: they may end others' requests. */
#define FIRST_UID 70001u

static uint32_t pick(struct sim_random *r, const uint32_t *values, uint32_t n)
{
    return values[random_below(r, n)];
}

#define PICK(r, ...)                                                                               \
    pick(r, (const uint32_t[]){__VA_ARGS__}, sizeof((uint32_t[]){__VA_ARGS__}) / sizeof(uint32_t))

static void draw_policy(struct sim_random *r, struct sched_policy *p)
{
    p->weight = PICK(r, 0, 50, 100, 200, 1000);
    if (random_chance(r, 300))
        p->max_running = random_between(r, 1, 6);
    if (random_chance(r, 200))
        p->max_waiting = random_between(r, 1, 8);
    if (random_chance(r, 150))
        p->tokens_per_minute = random_between(r, 100, 2000);
    if (random_chance(r, 150))
        p->max_pages = random_between(r, 4, 40);
    p->best_class = (enum sched_class)PICK(r, 0, 0, 0, 1, 2);
}

static void draw_users(struct sim_random *r, struct scenario *s)
{
    s->n_users = random_between(r, 1, SIM_USERS_MAX);
    if (random_chance(r, 100))
        draw_policy(r, &s->policy);
    for (uint32_t i = 0; i < s->n_users; i++) {
        s->users[i].uid = FIRST_UID + i;
        if (random_chance(r, 300))
            draw_policy(r, &s->users[i].policy);
    }
}

/* scale: about how long the day's work takes, in microseconds. */
static void draw_client(struct sim_random *r, const struct scenario *s, uint64_t scale,
                        struct sim_client_plan *c)
{
    uint32_t habit = random_below(r, 20);
    c->user = random_below(r, s->n_users);
    c->habit = habit == 0 ? HABIT_NEVER : habit <= 2 ? HABIT_SLOW : HABIT_PROMPT;
    c->request_ring_bytes = INFER_REQUEST_RING_MIN;
    c->token_ring_bytes = INFER_TOKEN_RING_MIN;
    c->n_asks = random_between(r, 1, 12);
    c->n_at_once = PICK(r, 1, 1, 2, 4, 8);
    c->think_us = random_chance(r, 500) ? 0 : (uint32_t)scale / 20;
    c->start_us = random_chance(r, 500) ? 0 : random_below(r, (uint32_t)scale / 2);
    c->prompt_max = PICK(r, 8, 20, 60, 200);
    if (random_chance(r, 50))
        c->prompt_max = s->n_context + 20;
    c->answer_max = PICK(r, 4, 20, 60);
    c->odd_permille = random_chance(r, 300) ? 300 : 20;
    c->cancel_permille = PICK(r, 0, 0, 100, 500);
    c->deadline_permille = PICK(r, 0, 0, 0, 300);
    c->read_us = random_between(r, 100, (uint32_t)scale / 16 + 200);
    if (c->habit != HABIT_PROMPT) {
        c->logprobs = INFER_TOP_MAX; /* so that few tokens fill the ring */
        c->n_at_once = PICK(r, 2, 8, 12);
        c->answer_max = 100;
    }
    if (c->habit == HABIT_NEVER)
        c->read_us = PICK(r, 1000000, 12000000, 25000000, 25000000);
    if (random_chance(r, 120))
        c->kill_us = 1 + random_below(r, (uint32_t)scale);
    if (random_chance(r, 60))
        c->break_us = 1 + random_below(r, (uint32_t)scale);
}

/* A mixed day. */
static void draw_mixed(struct sim_random *r, struct scenario *s)
{
    bool scarce = random_chance(r, 400);
    s->n_models = random_chance(r, 250) ? 2 : 1;
    s->n_pages = scarce ? random_between(r, 6, 30) : random_between(r, 60, 240);
    s->n_context = PICK(r, 64, 128, 256, SIM_CONTEXT_MAX);
    if (s->n_context > s->n_pages * SIM_PAGE_TOKENS)
        s->n_context = s->n_pages * SIM_PAGE_TOKENS;
    s->max_running = PICK(r, 1, 2, 3, 4, 8, 16, 32);
    s->step_rows = PICK(r, 16, 32, 64, 256, 512);
    s->step_us = PICK(r, 100, 1000, 10000, 100000);
    s->row_us = s->step_us / PICK(r, 4, 16, 64);
    s->end_permille = PICK(r, 0, 5, 30, 100);
    if (random_chance(r, 80))
        s->fail_permille = PICK(r, 2, 20);
    if (random_chance(r, 40))
        s->page_fail_permille = 20;
    if (random_chance(r, 15))
        s->lose_step = 1 + random_below(r, 300);
    s->new_permille = PICK(r, 0, 50, 200);
    s->slow_preempt_us = PICK(r, 1000000, 5000000, 10000000);
    s->slow_cancel_us = PICK(r, 6000000, 20000000);
    s->swap_bytes = PICK(r, 0, 1, 1024, 16384);
    draw_users(r, s);
    s->n_clients = PICK(r, 1, 2, 3, 4, 6, 8, 12);
    uint64_t scale = 200ull * s->step_us;
    for (uint32_t i = 0; i < s->n_clients; i++)
        draw_client(r, s, scale, &s->clients[i]);
}

/* Two or three users who always want more than there is, with nothing that goes wrong. */
static void draw_saturated(struct sim_random *r, struct scenario *s)
{
    s->saturated = true;
    s->n_models = 1;
    s->n_pages = 400;
    s->n_context = 256;
    s->max_running = SIM_CLIENTS_MAX + 8;
    s->step_rows = PICK(r, 32, 128, 512);
    s->step_us = PICK(r, 1000, 10000);
    s->row_us = s->step_us / PICK(r, 16, 64);
    s->slow_cancel_us = 20000000;
    s->n_users = random_between(r, 2, 3);
    for (uint32_t i = 0; i < s->n_users; i++) {
        s->users[i].uid = FIRST_UID + i;
        s->users[i].policy.weight = random_chance(r, 500) ? 0 : PICK(r, 100, 150, 200);
    }
    s->n_clients = random_between(r, s->n_users, SIM_CLIENTS_MAX);
    for (uint32_t i = 0; i < s->n_clients; i++)
        s->clients[i] = (struct sim_client_plan){
            .user = i < s->n_users ? i : random_below(r, s->n_users),
            .request_ring_bytes = INFER_REQUEST_RING_MIN,
            .token_ring_bytes = INFER_TOKEN_RING_MIN,
            .n_asks = UINT32_MAX,
            .n_at_once = 1,
            .prompt_max = 24,
            .answer_max = 64,
        };
}

void scenario_draw(uint64_t seed, struct scenario *ret)
{
    struct sim_random r = {rng_mix(seed)};
    memset(ret, 0, sizeof *ret);
    ret->seed = seed;
    if (random_chance(&r, 20))
        draw_saturated(&r, ret);
    else
        draw_mixed(&r, ret);
    ret->ahead = random_chance(&r, 667);
}
