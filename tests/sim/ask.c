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

/* The whole answer, its text (hashed) and why it ends. stop: a byte that ends it; 0: none. */
static void expect_answer(struct ask *a, uint32_t most, char stop)
{
    const struct tokenizer *t = sim.models[0].tokenizer;
    struct infer_logit_bias biases[2] = {{a->banned, -INFINITY}, {0, -INFINITY}};
    uint32_t first = a->banned < 0, n_biases = 1 - first + a->submit.sampling.ignore_eos;
    static char text[SIM_CONTEXT_MAX * 4 + 2 * TOKENIZER_PUSH_ROOM];
    struct detokenizer d;
    size_t n = 0, end = 0;
    uint64_t h = ask_state_start(a->model);
    detokenizer_init(&d, t, 0, false);
    a->expected = malloc(most * sizeof *a->expected);
    for (uint32_t i = 0; i < a->n_prompt; i++)
        h = ask_state_add(h, (uint32_t)a->prompt[i] + 1);
    a->finish = INFER_FINISH_NONE;
    while (a->finish == INFER_FINISH_NONE) {
        int32_t token = ask_token(h, a->submit.sampling.seed, shape()->n_vocab,
                                  sim.plan.end_permille, biases + first, n_biases);
        h = ask_state_add(h, (uint32_t)token + 1);
        a->expected[a->n_expected++] = token;
        a->finish = token == 0              ? INFER_FINISH_STOP
                    : a->n_expected == most ? INFER_FINISH_LENGTH
                                            : INFER_FINISH_NONE;
        n += detokenizer_push(&d, token, text + n, TOKENIZER_PUSH_ROOM);
        if (a->finish != INFER_FINISH_NONE)
            n += detokenizer_flush(&d, text + n, TOKENIZER_PUSH_ROOM);
        end = find_stop(text, n, stop);
        if (end < n)
            a->finish = INFER_FINISH_STRING;
    }
    a->expected_text = hash_bytes(TEXT_HASH, text, end);
}

static const struct sched_policy *policy_of(const struct sim_client *c)
{
    static const struct sched_policy none;
    return memcmp(&c->user->policy, &none, sizeof none) != 0 ? &c->user->policy : &sim.plan.policy;
}

/* Can so many rows never be held? */
static bool never_fits(const struct sim_client *c, uint32_t n_rows)
{
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
        take_payload(a, a->prompt, a->n_prompt * (uint32_t)sizeof *a->prompt);
    } else {
        a->submit.input = INFER_ABI_TEXT;
        for (uint32_t i = 0; i < a->n_prompt; i++) {
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

static void draw_generate(struct ask *a, struct sim_client *c)
{
    struct infer_logit_bias bias = {.bias = -INFINITY};
    uint32_t context = sim.plan.n_context;
    char stop = 0;
    draw_prompt(a, c, random_between(&c->random, 1, c->plan->prompt_max));
    put_input(a, c, random_chance(&c->random, 100));
    draw_sampling(a, c);
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
    if (random_chance(&c->random, 100))
        a->submit.flags |= INFER_ABI_WANT_PROMPT;
    a->submit.priority = random_below(&c->random, 3);
    if (random_chance(&c->random, c->plan->deadline_permille))
        a->submit.deadline_ms = 1u << random_below(&c->random, 16);
    uint32_t room = a->n_prompt < context ? context - a->n_prompt : 0;
    uint32_t most = a->submit.sampling.max_tokens;
    most = most == 0 || most > room ? room : most;
    if (room == 0)
        a->must_fail = INFER_E_PROMPT_TOO_LONG;
    else if (never_fits(c, a->n_prompt + most))
        a->must_fail = INFER_E_NO_MEMORY;
    else if (a->submit.sampling.seed != 0)
        expect_answer(a, most, stop);
    if (random_chance(&c->random, c->plan->cancel_permille)) {
        if (random_chance(&c->random, 500))
            a->cancel_us = 1 + sim_now_us() + (1u << random_below(&c->random, 24));
        else
            a->cancel_after = random_below(&c->random, most + 1);
    }
}

static void draw_wrong(struct ask *a, struct sim_client *c)
{
    int32_t bad = (int32_t)shape()->n_vocab;
    draw_prompt(a, c, random_between(&c->random, 1, 20));
    infer_sampling_default(&a->submit.sampling);
    a->submit.sampling.seed = 1;
    a->submit.sampling.max_tokens = 1;
    switch (random_below(&c->random, 6)) {
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
                                   INFER_ABI_END};
    a->kind = (enum ask_kind)random_below(&c->random, ASK_END + 1);
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
        else if (a->n_prompt > 1 && never_fits(c, a->n_prompt))
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
    default:
        break;
    }
}

void ask_draw(struct ask *a, struct sim_client *c, uint32_t request)
{
    *a = (struct ask){.request = request, .banned = -1, .cancel_after = UINT32_MAX};
    a->submit.head = (struct infer_abi_record){.kind = INFER_ABI_SUBMIT, .request = request};
    a->submit.fixed_bytes = sizeof a->submit;
    a->submit.op = INFER_ABI_GENERATE;
    a->submitted_us = sim_now_us();
    a->n_failures = (uint32_t)sim.n_failures;
    a->text_hash = TEXT_HASH;
    a->model = random_below(&c->random, sim.plan.n_models);
    if (a->model > 0 || random_chance(&c->random, 300))
        strcpy(a->submit.model, sim.models[a->model].name);
    if (random_chance(&c->random, c->plan->odd_permille))
        draw_odd(a, c);
    else
        draw_generate(a, c);
    if (a->kind == ASK_GENERATE && a->must_fail == 0)
        seen_add(c->user->uid, a->prompt, a->n_prompt);
    sim.n_asks++;
    sim_note("ask", c->index, request, a->n_prompt);
}

void ask_done(struct ask *a)
{
    free(a->payload);
    free(a->prompt);
    free(a->expected);
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
    a->text_hash = hash_bytes(a->text_hash, e + 1, e->text_bytes);
    if (e->head.flags & INFER_ABI_TEXT_ONLY)
        return;
    if (e->index != a->n_tokens)
        WRONG("token %u where %u comes next", e->index, a->n_tokens);
    else if (a->expected != NULL && a->n_tokens >= a->n_expected)
        WRONG("more than %u tokens", a->n_expected);
    else if (a->expected != NULL && e->token != a->expected[a->n_tokens])
        WRONG("token %u is %d, alone it is %d", a->n_tokens, e->token, a->expected[a->n_tokens]);
    if (e->n_top != a->submit.sampling.logprobs)
        WRONG("%u log-probabilities where %u were asked for", e->n_top,
              a->submit.sampling.logprobs);
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
    if (e->offset != a->n_result_bytes || a->n_tokens > 0)
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
        return a->kind <= ASK_SCORE && (policy->max_waiting > 0 || policy->tokens_per_minute > 0);
    case INFER_E_DEADLINE:
        return a->submit.deadline_ms > 0 && waited >= 1000ull * a->submit.deadline_ms;
    case INFER_E_SLOW_READER:
        return c->plan->habit != HABIT_PROMPT && waited >= DISPATCH_SLOW_READER_US;
    case INFER_E_CANCELLED:
        return a->ended_by_id;
    case INFER_E_BACKEND:
        return sim.n_failures > a->n_failures;
    case INFER_E_BACKEND_LOST:
    case INFER_E_SHUTDOWN:
        return sim.lost;
    case INFER_E_NOT_FOUND:
        return a->kind == ASK_END;
    default:
        return false;
    }
}

static void check_cached(struct ask *a, struct sim_client *c, const struct infer_abi_done *e)
{
    if (e->n_prompt_cached % SIM_PAGE_TOKENS != 0 || e->n_prompt_cached >= a->n_prompt)
        WRONG("%u of %u prompt tokens were cached", e->n_prompt_cached, a->n_prompt);
    /* Once is this request itself. */
    else if (e->n_prompt_cached > 0 && seen_times(c->user->uid, a->prompt, e->n_prompt_cached) < 2)
        WRONG("%u tokens were cached that its user never sent before", e->n_prompt_cached);
}

static void check_answer(struct ask *a, struct sim_client *c, const struct infer_abi_done *e)
{
    if (e->n_tokens != a->n_tokens || e->n_prompt != a->n_prompt)
        WRONG("DONE counts %u and %u tokens; %u and %u came", e->n_prompt, e->n_tokens, a->n_prompt,
              a->n_tokens);
    check_cached(a, c, e);
    if (a->submit.flags & INFER_ABI_WANT_PROMPT)
        check_ids(a, c);
    if (e->finish == INFER_FINISH_CANCEL) {
        if (!a->cancelled)
            WRONG("it ended after %u tokens as cancelled, which nobody did", a->n_tokens);
    } else if (a->expected != NULL && (e->finish != a->finish || a->n_tokens != a->n_expected ||
                                       a->text_hash != a->expected_text)) {
        WRONG("%u tokens, finish %u, text %llx; alone %u, %u, %llx", a->n_tokens, e->finish,
              (unsigned long long)a->text_hash, a->n_expected, a->finish,
              (unsigned long long)a->expected_text);
    }
    /* A step and a look at the queue late is in time. */
    uint64_t late = 2 * DISPATCH_TICK_US + 3 * sim.step_most_ns / 1000;
    if (a->submit.deadline_ms > 0 && e->finish != INFER_FINISH_CANCEL &&
        e->queue_us > 1000ull * a->submit.deadline_ms + late)
        WRONG("it started after %llu us, its deadline was %u ms", (unsigned long long)e->queue_us,
              a->submit.deadline_ms);
}

static void take_done(struct ask *a, struct sim_client *c, const struct infer_abi_done *e)
{
    sim_note("done", c->index, a->request, (uint64_t)e->error << 8 | e->finish);
    sim.n_done++;
    sim.by_code[e->error == 0 ? 0 : (uint32_t)(e->error - 1000) % 128]++;
    if (e->error != 0) {
        uint32_t finish = e->error == INFER_E_CANCELLED ? INFER_FINISH_CANCEL : INFER_FINISH_ERROR;
        if (e->error != a->must_fail && (a->must_fail != 0 || !may_fail(a, c, e->error)) &&
            !(sim.lost && e->error == INFER_E_SHUTDOWN))
            WRONG("error %d (%.*s), not for a reason that was given", e->error,
                  (int)e->detail_bytes, (const char *)(e + 1));
        if (e->finish != finish || e->detail_bytes == 0)
            WRONG("error %d with finish %u and %u bytes of detail", e->error, e->finish,
                  e->detail_bytes);
    } else if (a->must_fail != 0) {
        WRONG("it went well, error %d was due", a->must_fail);
    } else if (a->kind == ASK_GENERATE) {
        check_answer(a, c, e);
    } else if (e->finish == INFER_FINISH_NONE) {
        if (a->kind == ASK_SCORE)
            check_scores(a, c);
        else if (a->kind == ASK_TOKENIZE)
            check_ids(a, c);
        else if (a->kind == ASK_END && !a->target_is_ours)
            WRONG("it ended request %llu of another user", (unsigned long long)a->target);
    } else if (!a->cancelled) {
        WRONG("finish %u", e->finish);
    }
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
    case INFER_ABI_EV_DONE:
        take_done(a, c, record);
        return true;
    default:
        WRONG("an event of kind %u", head->kind);
        return false;
    }
}
