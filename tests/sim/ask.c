/* ask.c: one request of a simulated client: what is asked, what must come out of it, and whether
 * the events that come are those.
 *
 * The oracle. The device's token is a function of the rows of the sequence and the seed
 * (ask_token()), so the whole answer is known before the request is sent, whatever runs beside it,
 * is cached, preempted or shared. The text is that of the tokens, cut at the stop string. */
#include "sim.h"

#include "proto/admit.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- the device's answer --------------------------------------------------------------------- */

uint64_t ask_state_start(uint32_t model)
{
    return rng_mix(UINT64_C(0x73696d) + model);
}

uint64_t ask_state_add(uint64_t h, uint32_t row)
{
    return rng_mix(h ^ row);
}

static bool banned(int32_t token, const struct infer_logit_bias *biases, uint32_t n_biases)
{
    for (uint32_t i = 0; i < n_biases; i++)
        if (biases[i].token == token && isinf(biases[i].bias) && biases[i].bias < 0)
            return true;
    return false;
}

/* Token 0 ends an answer; 1 and 2 are control tokens, too. */
int32_t ask_token(uint64_t h, uint64_t seed, uint32_t n_vocab, uint32_t end_permille,
                  const struct infer_logit_bias *biases, uint32_t n_biases)
{
    uint64_t x = rng_mix(h ^ rng_mix(seed));
    if ((x & 0xffff) * 1000 >> 16 < end_permille && !banned(0, biases, n_biases))
        return 0;
    uint32_t token = 3 + (uint32_t)((x >> 32) * (n_vocab - 3) >> 32);
    while (banned((int32_t)token, biases, n_biases))
        token = token + 1 < n_vocab ? token + 1 : 3;
    return (int32_t)token;
}

float ask_logprob(uint64_t h, int32_t target)
{
    return -(float)(rng_mix(h ^ (uint32_t)target) >> 44) / 65536.0f;
}

/* ---- what must come out ---------------------------------------------------------------------- */

static const struct infer_shape *shape(void)
{
    return &sim.models[0].plan->backend.shape;
}

static uint64_t hash_bytes(uint64_t h, const void *bytes, size_t n)
{
    const uint8_t *b = bytes;
    for (size_t i = 0; i < n; i++)
        h = (h ^ b[i]) * UINT64_C(0x100000001b3);
    return h;
}

#define TEXT_HASH UINT64_C(0xcbf29ce484222325)

/* Where `stop` begins in text, or n. */
static size_t find_stop(const char *text, size_t n, char stop)
{
    const char *at = stop != 0 ? memchr(text, stop, n) : NULL;
    return at != NULL ? (size_t)(at - text) : n;
}

/* What a sequence's pages hold, in order: all rows, or under a window (window.c of engine/ says how
 * it slides) its sinks and the latest. */
struct rows {
    uint32_t row[2 * SIM_CONTEXT_MAX];
    uint32_t n, window, sinks, leave; /* in rows; window 0: none */
    uint64_t start, h;
};

static void rows_init(struct rows *r, const struct ask *a)
{
    uint32_t page = SIM_PAGE_TOKENS, asked = a->submit.window;
    uint32_t sinks = a->submit.sinks != 0 ? a->submit.sinks : INFER_SINKS_DEFAULT;
    uint32_t leave = (asked / 4 + page / 2) / page;
    r->n = 0;
    r->window = asked / page * page;
    r->sinks = (sinks + page - 1) / page * page;
    r->leave = (leave > 0 ? leave : 1) * page;
    r->start = r->h = ask_state_start(a->model);
}

static void rows_add(struct rows *r, int32_t token)
{
    if (r->window > 0 && r->n == r->window) {
        r->n -= r->leave;
        memmove(r->row + r->sinks, r->row + r->sinks + r->leave,
                (r->n - r->sinks) * sizeof *r->row);
        r->h = r->start;
        for (uint32_t i = 0; i < r->n; i++)
            r->h = ask_state_add(r->h, r->row[i]);
    }
    r->row[r->n++] = (uint32_t)token + 1;
    r->h = ask_state_add(r->h, (uint32_t)token + 1);
}

/* The whole answer, its text (hashed) and why it ends. stop: a byte that ends it; 0: none. */
static void expect_answer(const struct ask *a, uint32_t number, uint32_t most, char stop,
                          struct sim_answer *ret)
{
    struct infer_logit_bias biases[2] = {{a->banned, -INFINITY}, {0, -INFINITY}};
    uint32_t first = a->banned < 0, n_biases = 1 - first + a->submit.sampling.ignore_eos;
    uint64_t seed = infer_answer_seed_of(a->submit.sampling.seed, number);
    static char text[SIM_CONTEXT_MAX * 4 + 2 * TOKENIZER_PUSH_ROOM];
    static struct rows rows;
    struct detokenizer d;
    size_t n = 0, end = 0;
    detokenizer_init(&d, sim.models[0].tokenizer, 0, false);
    ret->expected = malloc(most * sizeof *ret->expected);
    rows_init(&rows, a);
    for (uint32_t i = 0; i < a->n_prompt; i++)
        rows_add(&rows, a->prompt[i]);
    while (ret->finish == INFER_FINISH_NONE) {
        int32_t token = ask_token(rows.h, seed, shape()->n_vocab, sim.plan.end_permille,
                                  biases + first, n_biases);
        ret->expected[ret->n_expected++] = token;
        ret->finish = token == 0                ? INFER_FINISH_STOP
                      : ret->n_expected == most ? INFER_FINISH_LENGTH
                                                : INFER_FINISH_NONE;
        n += detokenizer_push(&d, token, text + n, TOKENIZER_PUSH_ROOM);
        if (ret->finish != INFER_FINISH_NONE)
            n += detokenizer_flush(&d, text + n, TOKENIZER_PUSH_ROOM);
        end = find_stop(text, n, stop);
        if (end < n)
            ret->finish = INFER_FINISH_STRING;
        if (ret->finish == INFER_FINISH_NONE)
            rows_add(&rows, token);
    }
    ret->expected_text = hash_bytes(TEXT_HASH, text, end);
}

static const struct sched_policy *policy_of(const struct sim_client *c)
{
    static const struct sched_policy none;
    return memcmp(&c->user->policy, &none, sizeof none) != 0 ? &c->user->policy : &sim.plan.policy;
}

/* Can so many rows never be held? */
static bool never_fits(const struct sim_client *c, const struct ask *a, uint32_t n_rows)
{
    uint32_t window = a->submit.window / SIM_PAGE_TOKENS * SIM_PAGE_TOKENS;
    n_rows = window > 0 && window < n_rows ? window : n_rows;
    uint32_t pages = (n_rows + SIM_PAGE_TOKENS - 1) / SIM_PAGE_TOKENS;
    uint32_t most = policy_of(c)->max_pages;
    return pages > sim.plan.n_pages || (most > 0 && pages > most);
}

/* ---- drawing it ------------------------------------------------------------------------------ */

/* Often begins as others do, so that the cache has something to find. */
static void draw_prompt(struct ask *a, struct sim_client *c, uint32_t n)
{
    struct sim_random family = {rng_mix(sim.plan.seed) + random_below(&c->random, SIM_PREFIXES)};
    uint32_t n_common = random_chance(&c->random, 600) ? random_below(&c->random, n + 1) : 0;
    a->n_prompt = n;
    a->prompt = malloc((n + 1) * sizeof *a->prompt);
    family.state *= 1000003;
    for (uint32_t i = 0; i < n; i++)
        a->prompt[i] =
            (int32_t)random_between(i < n_common ? &family : &c->random, 3, shape()->n_vocab - 1);
}

static void take_payload(struct ask *a, const void *bytes, uint32_t n)
{
    a->payload = realloc(a->payload, a->payload_bytes + n + 1);
    if (n > 0)
        memcpy(a->payload + a->payload_bytes, bytes, n);
    a->payload_bytes += n;
}

/* The prompt as ids, or as text: without 'a', which begins a merge, a byte is a token. */
static void put_input(struct ask *a, struct sim_client *c, bool as_text)
{
    if (!as_text) {
        a->submit.input = INFER_ABI_TOKENS;
        take_payload(a, a->prompt + a->n_past,
                     (a->n_prompt - a->n_past) * (uint32_t)sizeof *a->prompt);
    } else {
        a->submit.input = INFER_ABI_TEXT;
        for (uint32_t i = a->n_past; i < a->n_prompt; i++) {
            uint8_t byte = (uint8_t)random_between(&c->random, 'b', 'z');
            a->prompt[i] = 3 + byte;
            take_payload(a, &byte, 1);
        }
    }
    a->submit.input_bytes = a->payload_bytes;
}

static void draw_sampling(struct ask *a, struct sim_client *c)
{
    struct infer_sampling *s = &a->submit.sampling;
    infer_sampling_default(s);
    s->seed = random_chance(&c->random, 30) ? 0 : 1 + random_next(&c->random) % 1000;
    s->max_tokens =
        random_chance(&c->random, 20) ? 0 : random_between(&c->random, 1, c->plan->answer_max);
    s->ignore_eos = random_chance(&c->random, 500);
    s->logprobs = c->plan->logprobs;
    if (sim.plan.saturated) {
        s->ignore_eos = 1;
        s->max_tokens = c->plan->answer_max;
    }
}

/* Puts what stands in the conversation before the prompt. */
static void continue_talk(struct ask *a, struct talk *t)
{
    int32_t *all = malloc((t->n_tokens + a->n_prompt + 1) * sizeof *all);
    memcpy(all, t->tokens, t->n_tokens * sizeof *all);
    memcpy(all + t->n_tokens, a->prompt, a->n_prompt * sizeof *all);
    free(a->prompt);
    a->prompt = all;
    a->n_past = t->n_tokens;
    a->n_prompt += t->n_tokens;
    a->model = t->model;
    a->talk = t;
    a->submit.model[0] = '\0'; /* the one that it is with */
    a->submit.conversation = t->id;
    a->submit.window = t->window;
    a->submit.sinks = t->sinks;
    t->busy = true;
}

static struct talk *idle_talk(struct sim_client *c)
{
    struct talk *t = &c->talks[random_below(&c->random, SIM_TALKS_MAX)];
    return t->id != 0 && !t->busy ? t : NULL;
}

/* What requests could not ask for at first. */
static void draw_new(struct ask *a, struct sim_client *c)
{
    uint32_t permille = sim.plan.new_permille;
    struct talk *t = idle_talk(c);
    if (permille == 0)
        return;
    if (random_chance(&c->random, permille))
        a->submit.flags |= INFER_ABI_WAIT;
    if (random_chance(&c->random, permille) && sim.plan.n_context >= INFER_WINDOW_MIN) {
        a->submit.window = random_between(&c->random, INFER_WINDOW_MIN, sim.plan.n_context);
        a->submit.sinks = random_below(&c->random, a->submit.window / 4 + 1);
    }
    if (t != NULL && random_chance(&c->random, 500)) {
        a->submit.flags |= INFER_ABI_KEEP;
        continue_talk(a, t);
    } else if (random_chance(&c->random, permille)) {
        a->submit.flags |= INFER_ABI_KEEP;
    } else if (random_chance(&c->random, permille)) {
        a->n_answers = random_between(&c->random, 2, SIM_ANSWERS_MAX);
        a->submit.n_answers = a->n_answers;
    }
}

static char draw_stop_and_bias(struct ask *a, struct sim_client *c)
{
    struct infer_logit_bias bias = {.bias = -INFINITY};
    char stop = 0;
    if (random_chance(&c->random, 80) && !sim.plan.saturated) {
        uint32_t length = 1;
        stop = (char)random_between(&c->random, 'A', 'Z');
        take_payload(a, &length, sizeof length);
        take_payload(a, &stop, 1);
        a->submit.stops_bytes = sizeof length + 1;
    }
    if (random_chance(&c->random, 100)) {
        bias.token = a->banned = (int32_t)random_between(&c->random, 3, shape()->n_vocab - 1);
        take_payload(a, &bias, sizeof bias);
        a->submit.biases_bytes = sizeof bias;
    }
    return stop;
}

/* Or why there is none. */
static void expect(struct ask *a, struct sim_client *c, char stop, uint32_t *ret_most)
{
    uint32_t context = sim.plan.n_context, most = a->submit.sampling.max_tokens;
    uint32_t room = a->n_prompt < context ? context - a->n_prompt : 0;
    if (a->submit.window > 0 && a->n_prompt - a->n_past < context)
        room = UINT32_MAX;
    most = most == 0 || most > room ? room : most;
    if (room == 0)
        a->must_fail = INFER_E_PROMPT_TOO_LONG;
    else if (never_fits(c, a, a->n_prompt + most))
        a->must_fail = INFER_E_NO_MEMORY;
    for (uint32_t i = 0; i < a->n_answers; i++) {
        a->answers[i].text_hash = TEXT_HASH;
        a->answers[i].got = malloc((most + 1) * sizeof(int32_t));
        if (a->must_fail == 0 && a->submit.sampling.seed != 0)
            expect_answer(a, i, most, stop, &a->answers[i]);
    }
    *ret_most = most;
}

static void draw_generate(struct ask *a, struct sim_client *c)
{
    uint32_t most;
    draw_prompt(a, c, random_between(&c->random, 1, c->plan->prompt_max));
    draw_new(a, c);
    put_input(a, c, random_chance(&c->random, 100));
    draw_sampling(a, c);
    if (a->submit.window > 0) /* an answer without end is for another time */
        a->submit.sampling.max_tokens = random_between(&c->random, 1, 3 * c->plan->answer_max);
    char stop = draw_stop_and_bias(a, c);
    if (random_chance(&c->random, 100) && a->talk == NULL)
        a->submit.flags |= INFER_ABI_WANT_PROMPT;
    a->submit.priority = random_below(&c->random, 3);
    if (random_chance(&c->random, c->plan->deadline_permille))
        a->submit.deadline_ms = 1u << random_below(&c->random, 16);
    expect(a, c, stop, &most);
    if (random_chance(&c->random, c->plan->cancel_permille)) {
        if (random_chance(&c->random, 500))
            a->cancel_us = 1 + sim_now_us() + (1u << random_below(&c->random, 24));
        else
            a->cancel_after = random_below(&c->random, most + 1);
    }
}

/* A conversation of another user, or one that never was. */
static uint64_t foreign_talk(struct sim_client *c)
{
    const struct sim_client *other = &sim.clients[random_below(&c->random, sim.plan.n_clients)];
    const struct talk *t = &other->talks[random_below(&c->random, SIM_TALKS_MAX)];
    return other->state == CLIENT_THERE && other->user != c->user && t->id != 0 ? t->id
                                                                                : UINT64_C(1) << 41;
}

static void draw_wrong(struct ask *a, struct sim_client *c)
{
    int32_t bad = (int32_t)shape()->n_vocab;
    draw_prompt(a, c, random_between(&c->random, 1, 20));
    infer_sampling_default(&a->submit.sampling);
    a->submit.sampling.seed = 1;
    a->submit.sampling.max_tokens = 1;
    switch (random_below(&c->random, 8)) {
    case 0:
        a->n_prompt = 0;
        a->must_fail = INFER_E_PROMPT_EMPTY;
        break;
    case 1:
        a->prompt[a->n_prompt - 1] = bad;
        a->must_fail = INFER_E_BAD_TOKEN;
        break;
    case 2:
        strcpy(a->submit.model, "no-such-model");
        a->must_fail = INFER_E_UNKNOWN_MODEL;
        break;
    case 3:
        a->submit.sampling.temperature = -1;
        a->must_fail = INFER_E_BAD_PARAMETER;
        break;
    case 4:
        a->submit.head.kind = 77;
        a->must_fail = INFER_E_UNSUPPORTED;
        return; /* no payload can follow what is not known */
    case 5:
        a->submit.flags |= INFER_ABI_KEEP;
        a->submit.conversation = foreign_talk(c);
        a->must_fail = INFER_E_NOT_FOUND;
        break;
    case 6: /* nothing keeps several answers */
        a->submit.flags |= INFER_ABI_KEEP;
        a->submit.n_answers = 2;
        a->must_fail = INFER_E_BAD_PARAMETER;
        break;
    default:
        a->submit.op = 99;
        a->must_fail = INFER_E_UNSUPPORTED;
    }
    put_input(a, c, false);
}

/* Somebody's request, if there is one: ours, that of another user, or one that never was. */
static void draw_target(struct ask *a, struct sim_client *c)
{
    struct sim_client *other = &sim.clients[random_below(&c->random, sim.plan.n_clients)];
    a->target = UINT64_C(1) << 40;
    for (uint32_t i = 0; i < SIM_ASKS_MAX && other->state == CLIENT_THERE; i++)
        if (other->asks[i].request != 0 && other->asks[i].id != 0 &&
            other->asks[i].kind == ASK_GENERATE) {
            a->target = other->asks[i].id;
            a->target_is_ours = other->user == c->user;
            other->asks[i].ended_by_id |= a->target_is_ours;
            break;
        }
    a->submit.target = a->target;
}

static void draw_odd(struct ask *a, struct sim_client *c)
{
    static const uint32_t ops[] = {INFER_ABI_GENERATE,   INFER_ABI_SCORE,  INFER_ABI_TOKENIZE,
                                   INFER_ABI_DETOKENIZE, INFER_ABI_STATUS, INFER_ABI_MODELS,
                                   INFER_ABI_END,        INFER_ABI_FORGET};
    a->kind = (enum ask_kind)random_below(&c->random, ASK_FORGET + 1);
    a->submit.op = ops[a->kind];
    infer_sampling_default(&a->submit.sampling);
    switch (a->kind) {
    case ASK_GENERATE:
        draw_wrong(a, c);
        break;
    case ASK_SCORE:
        draw_prompt(a, c, random_between(&c->random, 1, c->plan->prompt_max));
        put_input(a, c, false);
        a->submit.n_top = random_below(&c->random, 3);
        if (a->n_prompt > sim.plan.n_context)
            a->must_fail = INFER_E_PROMPT_TOO_LONG;
        else if (a->n_prompt > 1 && never_fits(c, a, a->n_prompt))
            a->must_fail = INFER_E_NO_MEMORY;
        break;
    case ASK_TOKENIZE:
    case ASK_DETOKENIZE:
        draw_prompt(a, c, random_between(&c->random, 1, 400));
        put_input(a, c, a->kind == ASK_TOKENIZE);
        break;
    case ASK_END:
        draw_target(a, c);
        break;
    case ASK_FORGET:
        a->talk = idle_talk(c);
        if (a->talk != NULL)
            a->talk->busy = true;
        else
            a->must_fail = INFER_E_NOT_FOUND;
        a->submit.target = a->talk != NULL ? a->talk->id : foreign_talk(c);
        break;
    default:
        break;
    }
}

/* A prompt that is drawn may begin as a shorter one and its answer do. */
static void add_seen(const struct ask *a, const struct sim_client *c)
{
    uint32_t most = 0;
    seen_add(c->user->uid, a->prompt, 0, a->n_prompt);
    for (uint32_t i = 0; i < sim.plan.n_clients; i++)
        if (sim.plan.clients[i].prompt_max > most)
            most = sim.plan.clients[i].prompt_max;
    for (uint32_t i = 0; i < a->n_answers && a->n_prompt < most; i++) {
        const struct sim_answer *s = &a->answers[i];
        uint32_t n = s->n_expected < most - a->n_prompt ? s->n_expected : most - a->n_prompt;
        int32_t *all = malloc(most * sizeof *all);
        memcpy(all, a->prompt, a->n_prompt * sizeof *all);
        if (s->expected != NULL)
            memcpy(all + a->n_prompt, s->expected, n * sizeof *all);
        seen_add(c->user->uid, all, a->n_prompt, a->n_prompt + (s->expected != NULL ? n : 0));
        free(all);
    }
}

void ask_draw(struct ask *a, struct sim_client *c, uint32_t request)
{
    *a = (struct ask){.request = request, .banned = -1, .n_answers = 1, .cancel_after = UINT32_MAX};
    a->submit.head = (struct infer_abi_record){.kind = INFER_ABI_SUBMIT, .request = request};
    a->submit.fixed_bytes = sizeof a->submit;
    a->submit.op = INFER_ABI_GENERATE;
    a->submitted_us = sim_now_us();
    a->n_failures = (uint32_t)sim.n_failures;
    a->model = random_below(&c->random, sim.plan.n_models);
    if (a->model > 0 || random_chance(&c->random, 300))
        strcpy(a->submit.model, sim.models[a->model].name);
    if (random_chance(&c->random, c->plan->odd_permille))
        draw_odd(a, c);
    else
        draw_generate(a, c);
    if (a->kind == ASK_GENERATE && a->must_fail == 0)
        add_seen(a, c);
    sim.n_asks++;
    sim_note("ask", c->index, request, a->n_prompt);
}

void ask_done(struct ask *a)
{
    free(a->payload);
    free(a->prompt);
    for (uint32_t i = 0; i < SIM_ANSWERS_MAX; i++) {
        free(a->answers[i].expected);
        free(a->answers[i].got);
    }
    free(a->result);
    memset(a, 0, sizeof *a);
}

/* ---- what comes ------------------------------------------------------------------------------ */

#define WRONG(format, ...)                                                                         \
    sim_fail("client %u request %u: " format, c->index, a->request, __VA_ARGS__)

static void take_queued(struct ask *a, struct sim_client *c, const struct infer_abi_queued *e)
{
    if (a->kind != ASK_GENERATE || a->n_tokens > 0)
        WRONG("QUEUED after %u tokens of a request of kind %d", a->n_tokens, (int)a->kind);
    if (e->n_prompt != a->n_prompt || e->id == 0 || (a->id != 0 && e->id != a->id))
        WRONG("QUEUED with id %llu, a prompt of %u tokens; it has %u", (unsigned long long)e->id,
              e->n_prompt, a->n_prompt);
    a->id = e->id;
    a->n_queued++;
    sim_note("queued", c->index, a->request, e->position);
}

static void take_token(struct ask *a, struct sim_client *c, const struct infer_abi_token *e,
                       uint32_t bytes)
{
    uint64_t need =
        sizeof *e + ((e->text_bytes + 3u) & ~3u) + e->n_top * sizeof(struct infer_logprob);
    if (a->kind != ASK_GENERATE || a->n_queued == 0 || need != bytes)
        WRONG("a token of %u bytes, after %u QUEUED, of a request of kind %d", bytes, a->n_queued,
              (int)a->kind);
    if (e->head.answer >= a->n_answers || a->answers[e->head.answer].over) {
        WRONG("a token of answer %u of %u, or it is over", e->head.answer, a->n_answers);
        return;
    }
    struct sim_answer *s = &a->answers[e->head.answer];
    s->text_hash = hash_bytes(s->text_hash, e + 1, e->text_bytes);
    if (e->head.flags & INFER_ABI_TEXT_ONLY)
        return;
    if (e->index != s->n_tokens || s->got == NULL)
        WRONG("token %u where %u comes next", e->index, s->n_tokens);
    else if (s->expected != NULL && s->n_tokens >= s->n_expected)
        WRONG("more than %u tokens", s->n_expected);
    else if (s->expected != NULL && e->token != s->expected[s->n_tokens])
        WRONG("token %u is %d, alone it is %d", s->n_tokens, e->token, s->expected[s->n_tokens]);
    else
        s->got[s->n_tokens] = e->token;
    if (e->n_top != a->submit.sampling.logprobs)
        WRONG("%u log-probabilities where %u were asked for", e->n_top,
              a->submit.sampling.logprobs);
    s->n_tokens++;
    a->n_tokens++;
    sim.n_tokens++;
    if (a->n_tokens >= a->cancel_after && a->cancel_us == 0)
        a->cancel_us = sim_now_us();
    sim_note("token", c->index, a->request, (uint64_t)(uint32_t)e->token);
}

static void take_result(struct ask *a, struct sim_client *c, const struct infer_abi_result_head *e,
                        uint32_t bytes)
{
    uint32_t n = bytes - (uint32_t)sizeof *e;
    if (e->offset != a->n_result_bytes || (a->n_tokens > 0 && a->n_answers == 1))
        WRONG("a result's part at %u where %u comes next, after %u tokens", e->offset,
              a->n_result_bytes, a->n_tokens);
    a->result = realloc(a->result, a->n_result_bytes + n + 1);
    memcpy(a->result + a->n_result_bytes, e + 1, n);
    a->n_result_bytes += n;
    sim_note("result", c->index, a->request, a->n_result_bytes);
}

static void check_ids(struct ask *a, struct sim_client *c)
{
    if (a->n_result_bytes != a->n_prompt * sizeof *a->prompt ||
        memcmp(a->result, a->prompt, a->n_result_bytes) != 0)
        WRONG("the prompt's %u tokens came back as %u bytes of others", a->n_prompt,
              a->n_result_bytes);
}

static void check_scores(struct ask *a, struct sim_client *c)
{
    uint64_t h = ask_state_start(a->model);
    size_t each = sizeof(struct infer_abi_score) + a->submit.n_top * sizeof(struct infer_logprob);
    if (a->n_result_bytes != a->n_prompt * each) {
        WRONG("%u bytes of scores for %u tokens", a->n_result_bytes, a->n_prompt);
        return;
    }
    for (uint32_t i = 0; i < a->n_prompt; i++) {
        struct infer_abi_score score;
        memcpy(&score, a->result + i * each, sizeof score);
        bool right = i == 0 ? isnan(score.logprob) : score.logprob == ask_logprob(h, a->prompt[i]);
        if (score.token != a->prompt[i] || !right)
            WRONG("the score of token %u is %g", i, (double)score.logprob);
        h = ask_state_add(h, (uint32_t)a->prompt[i] + 1);
    }
}

/* Is this how it may end? */
static bool may_fail(const struct ask *a, const struct sim_client *c, int code)
{
    const struct sched_policy *policy = policy_of(c);
    uint64_t waited = sim_now_us() - a->submitted_us;
    switch (code) {
    case INFER_E_QUOTA:
        if (a->submit.flags & INFER_ABI_WAIT && a->n_answers <= policy->max_waiting)
            return false;
        return a->kind <= ASK_SCORE && (policy->max_waiting > 0 || policy->tokens_per_minute > 0);
    case INFER_E_DEADLINE:
        return a->submit.deadline_ms > 0 && waited >= 1000ull * a->submit.deadline_ms;
    case INFER_E_SLOW_READER:
        return c->plan->habit != HABIT_PROMPT && waited >= sim.plan.slow_cancel_us;
    case INFER_E_CANCELLED:
        return a->ended_by_id;
    case INFER_E_BACKEND:
        return sim.n_failures > a->n_failures;
    case INFER_E_BACKEND_LOST:
    case INFER_E_SHUTDOWN:
        return sim.lost;
    case INFER_E_NOT_FOUND:
        /* Pages that an idle conversation holds go to who runs. */
        return a->kind == ASK_END || (a->talk != NULL && a->talk->window > 0);
    case INFER_E_NO_MEMORY: /* a window that slid can only be saved */
        return a->submit.window > 0;
    case INFER_E_INTERNAL: /* ... and what was saved was lost */
        return a->submit.window > 0 && sim.n_failures > a->n_failures;
    default:
        return false;
    }
}

static void check_cached(struct ask *a, struct sim_client *c, const struct infer_abi_done *e)
{
    if (a->talk != NULL && a->submit.window > 0)
        return; /* its state was kept, not cached */
    if (e->n_prompt_cached % SIM_PAGE_TOKENS != 0 || e->n_prompt_cached >= a->n_prompt)
        WRONG("%u of %u prompt tokens were cached", e->n_prompt_cached, a->n_prompt);
    /* Once is this request itself. */
    else if (e->n_prompt_cached > 0 && seen_times(c->user->uid, a->prompt, e->n_prompt_cached) < 2)
        WRONG("%u tokens were cached that its user never sent before", e->n_prompt_cached);
}

/* One answer that ended without an error. */
static void check_answer(struct ask *a, struct sim_client *c, const struct sim_answer *s,
                         const struct infer_abi_done *e)
{
    if (e->n_tokens != s->n_tokens || e->n_prompt != a->n_prompt)
        WRONG("DONE counts %u and %u tokens; %u and %u came", e->n_prompt, e->n_tokens, a->n_prompt,
              s->n_tokens);
    if (e->finish == INFER_FINISH_CANCEL) {
        if (!a->cancelled)
            WRONG("it ended after %u tokens as cancelled, which nobody did", s->n_tokens);
    } else if (s->expected != NULL && (e->finish != s->finish || s->n_tokens != s->n_expected ||
                                       s->text_hash != s->expected_text)) {
        WRONG("%u tokens, finish %u, text %llx; alone %u, %u, %llx", s->n_tokens, e->finish,
              (unsigned long long)s->text_hash, s->n_expected, s->finish,
              (unsigned long long)s->expected_text);
    }
}

static void check_generate(struct ask *a, struct sim_client *c, const struct infer_abi_done *e)
{
    check_cached(a, c, e);
    if (a->submit.flags & INFER_ABI_WANT_PROMPT)
        check_ids(a, c);
    if (a->n_answers == 1)
        check_answer(a, c, &a->answers[0], e);
    else if (e->n_tokens != a->n_tokens)
        WRONG("DONE counts %u tokens of all answers, %u came", e->n_tokens, a->n_tokens);
    /* A step and a look at the queue late is in time. */
    uint64_t late = 2 * DISPATCH_TICK_US + 3 * sim.step_most_ns / 1000;
    if (a->submit.deadline_ms > 0 && e->finish != INFER_FINISH_CANCEL &&
        e->queue_us > 1000ull * a->submit.deadline_ms + late)
        WRONG("it started after %llu us, its deadline was %u ms", (unsigned long long)e->queue_us,
              a->submit.deadline_ms);
}

static void check_error(struct ask *a, struct sim_client *c, const struct infer_abi_done *e)
{
    uint32_t finish = e->error == INFER_E_CANCELLED ? INFER_FINISH_CANCEL : INFER_FINISH_ERROR;
    /* A request that is wrong may wait or look for its conversation before that is found. */
    bool before = a->must_fail == 0 || a->must_fail == INFER_E_NO_MEMORY ||
                  (e->error == INFER_E_NOT_FOUND && a->kind == ASK_GENERATE);
    if (e->error != a->must_fail && !(before && may_fail(a, c, e->error)) &&
        !(sim.lost && e->error == INFER_E_SHUTDOWN))
        WRONG("error %d (%.*s), not for a reason that was given", e->error, (int)e->detail_bytes,
              (const char *)(e + 1));
    if (e->finish != finish || e->detail_bytes == 0)
        WRONG("error %d with finish %u and %u bytes of detail", e->error, e->finish,
              e->detail_bytes);
}

static void take_answer(struct ask *a, struct sim_client *c, const struct infer_abi_done *e)
{
    uint32_t i = e->head.answer;
    sim_note("answer", c->index, a->request, (uint64_t)e->error << 8 | e->finish);
    if (a->n_answers == 1 || i >= a->n_answers || a->answers[i].over) {
        WRONG("ANSWER %u of %u", i, a->n_answers);
        return;
    }
    a->answers[i].over = true;
    if (e->error != 0)
        check_error(a, c, e);
    else
        check_answer(a, c, &a->answers[i], e);
}

/* What the request leaves in its conversation: with one token drawn its prompt and answer, before
 * that what stood there. */
static void keep_talk(struct ask *a, struct sim_client *c, const struct infer_abi_done *e)
{
    struct talk *t = a->talk;
    const struct sim_answer *s = &a->answers[0];
    if (t != NULL)
        t->busy = false;
    if (t != NULL && (a->kind == ASK_FORGET || e->error == INFER_E_NOT_FOUND ||
                      (e->error != 0 && a->submit.window > 0))) { /* it may have lost its state */
        free(t->tokens);
        *t = (struct talk){0};
        return;
    }
    if (!(a->submit.flags & INFER_ABI_KEEP) || a->kind != ASK_GENERATE || s->n_tokens == 0 ||
        (e->error != 0 && a->submit.window > 0))
        return;
    for (uint32_t i = 0; i < SIM_TALKS_MAX && t == NULL; i++)
        if (c->talks[i].id == 0)
            t = &c->talks[i];
    if (t == NULL)
        return; /* one more than it remembers */
    uint32_t n = a->n_prompt + s->n_tokens;
    int32_t *tokens = realloc(t->tokens, n * sizeof *tokens);
    memcpy(tokens, a->prompt, a->n_prompt * sizeof *tokens);
    memcpy(tokens + a->n_prompt, s->got, s->n_tokens * sizeof *tokens);
    seen_add(c->user->uid, tokens, 0, n);
    *t = (struct talk){a->id, tokens, n, a->model, a->submit.window, a->submit.sinks, false};
}

/* One that waits for a limit is looked at when its turn comes, which it did not live to see. */
static bool gave_up_waiting(const struct ask *a, const struct infer_abi_done *e)
{
    return a->must_fail == INFER_E_NO_MEMORY && (a->submit.flags & INFER_ABI_WAIT) &&
           a->cancelled && e->finish == INFER_FINISH_CANCEL;
}

static void take_done(struct ask *a, struct sim_client *c, const struct infer_abi_done *e)
{
    sim_note("done", c->index, a->request, (uint64_t)e->error << 8 | e->finish);
    sim.n_done++;
    sim.by_code[e->error == 0 ? 0 : (uint32_t)(e->error - 1000) % 128]++;
    for (uint32_t i = 0; i < a->n_answers && a->n_answers > 1; i++)
        if (!a->answers[i].over && a->n_queued > 0)
            WRONG("DONE before ANSWER %u of %u", i, a->n_answers);
    if (e->error != 0)
        check_error(a, c, e);
    else if (a->must_fail != 0 && !gave_up_waiting(a, e))
        WRONG("it went well, error %d was due", a->must_fail);
    else if (a->kind == ASK_GENERATE)
        check_generate(a, c, e);
    else if (e->finish != INFER_FINISH_NONE && !a->cancelled)
        WRONG("finish %u", e->finish);
    else if (e->finish == INFER_FINISH_NONE && a->kind == ASK_SCORE)
        check_scores(a, c);
    else if (e->finish == INFER_FINISH_NONE && a->kind == ASK_TOKENIZE)
        check_ids(a, c);
    else if (a->kind == ASK_END && !a->target_is_ours)
        WRONG("it ended request %llu of another user", (unsigned long long)a->target);
    keep_talk(a, c, e);
}

bool ask_take(struct ask *a, struct sim_client *c, const void *record, uint32_t bytes)
{
    const struct infer_abi_record *head = record;
    sim.n_events++;
    switch (head->kind) {
    case INFER_ABI_EV_QUEUED:
        take_queued(a, c, record);
        return false;
    case INFER_ABI_EV_TOKEN:
        take_token(a, c, record, bytes);
        return false;
    case INFER_ABI_EV_RESULT:
        take_result(a, c, record, bytes);
        return false;
    case INFER_ABI_EV_ANSWER:
        take_answer(a, c, record);
        return false;
    case INFER_ABI_EV_DONE:
        take_done(a, c, record);
        return true;
    default:
        WRONG("an event of kind %u", head->kind);
        return false;
    }
}
