/* client.c: the simulated clients: raw rings in the memory that a session hands out, a script from
 * the seed, and the ways in which real ones misbehave.
 *
 * A client only ever sees what a real one would: its two mappings. Whatever it does in one turn,
 * the hub sees in the next. */
#include "sim.h"

#include "inferd/ring.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* ---- its session ----------------------------------------------------------------------------- */

static void connect_client(struct sim_client *c)
{
    const struct sim_client_plan *plan = c->plan;
    struct peer peer = {.uid = c->user->uid, .pid = (pid_t)c->index + 1, .client = "sim"};
    struct session *s;
    if (session_new(&peer, plan->request_ring_bytes, plan->token_ring_bytes,
                    status_page_fd(sim.page), &s) < 0)
        abort();
    struct session_fds fds = session_descriptors(s);
    uint8_t *ours = mmap(NULL, INFER_ABI_DATA_OFFSET + plan->request_ring_bytes,
                         PROT_READ | PROT_WRITE, MAP_SHARED, fds.fd[0], 0);
    uint8_t *theirs = mmap(NULL, INFER_ABI_DATA_OFFSET + plan->token_ring_bytes, PROT_READ,
                           MAP_SHARED, fds.fd[1], 0);
    if (ours == MAP_FAILED || theirs == MAP_FAILED)
        abort();
    c->words = (void *)ours;
    c->requests = ours + INFER_ABI_DATA_OFFSET;
    c->theirs = (void *)theirs;
    c->tokens = theirs + INFER_ABI_DATA_OFFSET;
    c->next_request = 1;
    c->next_read_us = sim_now_us() + (plan->habit == HABIT_PROMPT ? 0 : plan->read_us);
    c->last_read_us = sim_now_us();
    c->state = CLIENT_THERE;
    c->connection.session = s;
    /* Some say that they sleep, and how, and never mean it. */
    infer_ring_store(&c->words->waiting, c->index % 3);
    if (dispatch_add(sim.dispatch, &c->connection, s) < 0)
        abort();
    sim_note("connect", c->index, c->user->uid, 0);
}

static void forget(struct sim_client *c)
{
    for (uint32_t i = 0; i < SIM_ASKS_MAX; i++)
        ask_done(&c->asks[i]);
    for (uint32_t i = 0; i < SIM_TALKS_MAX; i++)
        free(c->talks[i].tokens);
    memset(c->talks, 0, sizeof c->talks);
    munmap(c->words, INFER_ABI_DATA_OFFSET + c->plan->request_ring_bytes);
    munmap((void *)(uintptr_t)c->theirs, INFER_ABI_DATA_OFFSET + c->plan->token_ring_bytes);
    free(c->outbox);
    c->words = NULL;
    c->theirs = NULL;
    c->outbox = NULL;
    c->n_open = 0;
}

void client_die(struct sim_client *c)
{
    if (c->state == CLIENT_THERE || c->state == CLIENT_CLOSED) {
        sim_note("die", c->index, c->n_open, 0);
        forget(c);
        if (!c->connection.removed) {
            c->connection.removed = true;
            dispatch_remove(sim.dispatch, &c->connection);
        }
    }
    c->state = CLIENT_GONE;
}

/* ---- writing --------------------------------------------------------------------------------- */

static void put(struct sim_client *c, const void *record, uint32_t bytes)
{
    uint32_t padded = infer_ring_padded(bytes);
    if (c->outbox_room - c->outbox_bytes < padded) {
        c->outbox_room = 2 * c->outbox_room + padded + 4096;
        c->outbox = realloc(c->outbox, c->outbox_room);
    }
    memset(c->outbox + c->outbox_bytes, 0, padded);
    memcpy(c->outbox + c->outbox_bytes, record, bytes);
    c->outbox_bytes += padded;
}

static void put_simple(struct sim_client *c, uint16_t kind, uint32_t request)
{
    struct infer_abi_record head = {.bytes = sizeof head, .kind = kind, .request = request};
    put(c, &head, sizeof head);
}

/* A SUBMIT with a part of its payload, and the rest in pieces. */
static void put_ask(struct sim_client *c, struct ask *a)
{
    uint8_t record[INFER_RECORD_MAX];
    uint32_t fixed = sizeof a->submit, left = a->payload_bytes, at = 0;
    if (a->submit.head.kind != INFER_ABI_SUBMIT) { /* not known: a head alone */
        put_simple(c, a->submit.head.kind, a->request);
        return;
    }
    uint32_t n = left < INFER_RECORD_MAX - fixed ? left : INFER_RECORD_MAX - fixed;
    if (random_chance(&c->random, 200))
        n = random_below(&c->random, n + 1);
    a->submit.head.bytes = fixed + n;
    memcpy(record, &a->submit, fixed);
    if (n > 0)
        memcpy(record + fixed, a->payload, n);
    put(c, record, fixed + n);
    for (at = n, left -= n; left > 0; at += n, left -= n) {
        struct infer_abi_record head = {.kind = INFER_ABI_DATA, .request = a->request};
        n = random_between(&c->random, 1, INFER_RECORD_MAX - sizeof head);
        n = n < left ? n : left;
        head.bytes = (uint32_t)sizeof head + n;
        memcpy(record, &head, sizeof head);
        memcpy(record + sizeof head, a->payload + at, n);
        put(c, record, head.bytes);
    }
}

/* Whole records as far as there is room. Sometimes some less, so that a payload comes in pieces. */
static void flush(struct sim_client *c)
{
    uint32_t size = c->plan->request_ring_bytes, before = c->tail;
    uint32_t room = size - (c->tail - infer_ring_load(&c->theirs->request_head));
    while (c->outbox_sent < c->outbox_bytes) {
        uint32_t n;
        memcpy(&n, c->outbox + c->outbox_sent, sizeof n);
        n = infer_ring_padded(n);
        if (n > room || (c->tail != before && random_chance(&c->random, 50)))
            break;
        infer_ring_put(c->requests, size, c->tail, c->outbox + c->outbox_sent, n);
        c->tail += n;
        room -= n;
        c->outbox_sent += n;
    }
    if (c->outbox_sent == c->outbox_bytes)
        c->outbox_sent = c->outbox_bytes = 0;
    if (c->tail != before)
        infer_ring_store(&c->words->request_tail, c->tail);
}

/* ---- breaking the protocol ------------------------------------------------------------------- */

static struct ask *open_ask(struct sim_client *c)
{
    for (uint32_t i = 0; i < SIM_ASKS_MAX; i++)
        if (c->asks[i].request != 0)
            return &c->asks[i];
    return NULL;
}

/* What is wrong with one record or two. True when the hub must notice. */
static bool break_records(struct sim_client *c, uint32_t how)
{
    struct infer_abi_submit s = {.head = {sizeof s, INFER_ABI_SUBMIT, 0, 900001, 0},
                                 .fixed_bytes = sizeof s,
                                 .op = INFER_ABI_GENERATE,
                                 .input = INFER_ABI_TOKENS,
                                 .input_bytes = 64};
    struct infer_abi_record *head = &s.head;
    const struct ask *open = open_ask(c);
    uint8_t wrong[INFER_RECORD_MAX + 64] = {0};
    uint32_t bytes = sizeof *head;
    switch (how) {
    case 0:
        head->bytes = 8;
        break;
    case 1:
        head->request = 0;
        break;
    case 2:
        head->kind = INFER_ABI_DATA;
        head->bytes = bytes = 64;
        break;
    case 3:
        head->bytes = INFER_RECORD_MAX + 8;
        bytes = sizeof wrong;
        break;
    case 4: /* another SUBMIT before the payload of this one is complete */
        put(c, &s, sizeof s);
        bytes = sizeof s;
        break;
    case 5: /* more payload than announced */
        head->bytes = bytes = sizeof s + 128;
        break;
    case 6: /* a number that is in use */
        head->kind = INFER_ABI_SUBMIT;
        head->request = open != NULL ? open->request : 0;
        s.input_bytes = 0;
        bytes = sizeof s;
        break;
    default: /* a fixed part that is longer than the record */
        s.fixed_bytes = sizeof s + 8;
        bytes = sizeof s;
    }
    memcpy(wrong, &s, sizeof s);
    put(c, wrong, bytes);
    /* put() goes by bytes, the hub by what the head says: show all of it at once. */
    uint32_t size = c->plan->request_ring_bytes;
    infer_ring_put(c->requests, size, c->tail, c->outbox, c->outbox_bytes);
    c->tail += c->outbox_bytes;
    c->outbox_bytes = 0;
    infer_ring_store(&c->words->request_tail, c->tail);
    /* A number is free again once DONE was put, which who has not read everything cannot know. */
    return how != 6 || infer_ring_load(&c->theirs->token_tail) == c->head;
}

static void break_protocol(struct sim_client *c)
{
    uint32_t how = random_below(&c->random, 12), size = c->plan->request_ring_bytes;
    uint8_t noise[64];
    /* A record of its own needs an empty ring, or it would be one in the middle of another. */
    if (c->outbox_bytes > 0 || infer_ring_load(&c->theirs->request_head) != c->tail)
        return;
    c->broke = true;
    sim_note("break", c->index, how, 0);
    switch (how) {
    case 8:
        infer_ring_store(&c->words->request_tail, c->tail + size + 8);
        c->must_close = true;
        break;
    case 9:
        infer_ring_store(&c->words->request_tail, c->tail + 20);
        c->must_close = true;
        break;
    case 10: /* a head beyond the tail is noticed when the daemon needs room */
        infer_ring_store(&c->words->token_head, c->head + 4096);
        infer_ring_store(&c->words->waiting, 77);
        break;
    case 11: /* noise may be anything */
        for (size_t i = 0; i < sizeof noise; i++)
            noise[i] = (uint8_t)random_next(&c->random);
        infer_ring_put(c->requests, size, c->tail, noise, sizeof noise);
        infer_ring_store(&c->words->request_tail, c->tail + (uint32_t)sizeof noise);
        break;
    default:
        c->must_close = break_records(c, how);
    }
}

/* ---- reading --------------------------------------------------------------------------------- */

static struct ask *ask_of(struct sim_client *c, uint32_t request)
{
    for (uint32_t i = 0; i < SIM_ASKS_MAX; i++)
        if (c->asks[i].request == request && request != 0)
            return &c->asks[i];
    return NULL;
}

static void take(struct sim_client *c, const void *record, uint32_t bytes)
{
    const struct infer_abi_record *head = record;
    struct ask *a = ask_of(c, head->request);
    if (a == NULL) {
        if (!c->broke)
            sim_fail("client %u: an event of request %u, which is over or never was", c->index,
                     head->request);
        return;
    }
    if (ask_take(a, c, record, bytes)) {
        ask_done(a);
        c->n_open--;
        c->next_ask_us = sim_now_us() + random_below(&c->random, c->plan->think_us + 1);
    } else if (head->kind == INFER_ABI_EV_TOKEN) {
        watch_token(c);
    }
}

/* At most so many events. */
static void read_events(struct sim_client *c, uint32_t most)
{
    union {
        struct infer_abi_record head;
        uint64_t align;
        uint8_t bytes[INFER_RECORD_MAX];
    } record;
    uint32_t size = c->plan->token_ring_bytes, tail = infer_ring_load(&c->theirs->token_tail);
    while (c->head != tail && most-- > 0 && !sim.failed) {
        infer_ring_get(c->tokens, size, c->head, &record.head, sizeof record.head);
        uint32_t n = record.head.bytes;
        if (n < sizeof record.head || n > INFER_RECORD_MAX ||
            infer_ring_padded(n) > tail - c->head) {
            sim_fail("client %u: a record of %u bytes, %u are there", c->index, n, tail - c->head);
            return;
        }
        infer_ring_get(c->tokens, size, c->head, record.bytes, n);
        c->head += infer_ring_padded(n);
        take(c, &record, n);
    }
    if (!c->broke)
        infer_ring_store(&c->words->token_head, c->head);
    c->last_read_us = sim_now_us();
}

static void read_as_usual(struct sim_client *c)
{
    if (sim_now_us() < c->next_read_us)
        return;
    if (c->plan->habit == HABIT_SLOW) {
        read_events(c, random_between(&c->random, 1, 16));
        c->next_read_us = sim_now_us() + random_below(&c->random, (uint32_t)c->plan->read_us + 1);
    } else {
        read_events(c, UINT32_MAX);
    }
}

/* The hub ended the session: for a reason, or wrongly. */
static void hear_close(struct sim_client *c)
{
    uint32_t code = infer_ring_load(&c->theirs->closed);
    if (!c->broke)
        read_events(c, UINT32_MAX);
    sim_note("closed", c->index, code, 0);
    if (!c->broke)
        sim_fail("client %u: its session was closed with %u", c->index, code);
    else if (code != INFER_E_PROTOCOL)
        sim_fail("client %u broke the protocol: its session was closed with %u", c->index, code);
    c->must_close = false;
    c->state = CLIENT_CLOSED;
    if (random_chance(&c->random, 500))
        client_die(c); /* before the hub hangs up; otherwise at the end of the day */
}

/* ---- a turn ---------------------------------------------------------------------------------- */

static void ask_more(struct sim_client *c)
{
    uint64_t now = sim_now_us();
    while (c->n_asked < c->plan->n_asks && c->n_open < c->plan->n_at_once &&
           now >= c->next_ask_us) {
        uint32_t i = 0;
        while (c->asks[i].request != 0)
            i++;
        /* Numbers come again, only not while they are in use. */
        do
            c->next_request = c->next_request % 60 + 1;
        while (ask_of(c, c->next_request) != NULL);
        ask_draw(&c->asks[i], c, c->next_request);
        put_ask(c, &c->asks[i]);
        c->n_asked++;
        c->n_open++;
        if (random_chance(&c->random, 500))
            c->next_ask_us = now + random_below(&c->random, c->plan->think_us + 1);
    }
}

static uint64_t cancel_some(struct sim_client *c)
{
    uint64_t next = UINT64_MAX;
    for (uint32_t i = 0; i < SIM_ASKS_MAX; i++) {
        struct ask *a = &c->asks[i];
        if (a->request == 0 || a->cancelled || a->cancel_us == 0)
            continue;
        if (sim_now_us() >= a->cancel_us) {
            put_simple(c, INFER_ABI_CANCEL, a->request);
            a->cancelled = true;
            sim_note("cancel", c->index, a->request, a->n_tokens);
        } else if (a->cancel_us < next) {
            next = a->cancel_us;
        }
    }
    return next;
}

static uint64_t earlier(uint64_t a, uint64_t b, bool counts)
{
    return counts && b < a ? b : a;
}

static uint64_t live(struct sim_client *c)
{
    const struct sim_client_plan *plan = c->plan;
    uint64_t now = sim_now_us(), next = UINT64_MAX;
    bool closed = infer_ring_load(&c->theirs->closed) != 0;
    if (plan->kill_us > 0 && now >= plan->kill_us) {
        client_die(c);
        return UINT64_MAX;
    }
    if (closed) {
        hear_close(c);
        return UINT64_MAX;
    }
    if (plan->break_us > 0 && now >= plan->break_us && !c->broke)
        break_protocol(c);
    read_as_usual(c);
    if (!c->broke) {
        ask_more(c);
        next = cancel_some(c);
        flush(c);
    } else if (!c->must_close) {
        client_die(c); /* the hub need not see it; its death it must */
        return UINT64_MAX;
    }
    next = earlier(next, plan->kill_us, plan->kill_us > 0);
    next = earlier(next, plan->break_us, plan->break_us > now);
    next = earlier(next, c->next_ask_us, c->n_asked < plan->n_asks && c->n_open < plan->n_at_once);
    if (c->outbox_bytes > 0)
        next = now;
    return next;
}

uint64_t client_turn(struct sim_client *c)
{
    if (c->state == CLIENT_AWAY) {
        if (sim_now_us() < c->plan->start_us)
            return c->plan->start_us;
        connect_client(c);
    }
    uint64_t next = c->state == CLIENT_THERE ? live(c) : UINT64_MAX;
    if (c->state == CLIENT_THERE && client_over(c) && !sim.plan.saturated &&
        random_chance(&c->random, 500))
        client_die(c); /* it goes home, or stays to the end */
    return next;
}

bool client_over(const struct sim_client *c)
{
    if (sim.plan.saturated)
        return sim.n_steps >= SIM_SATURATED_STEPS;
    switch (c->state) {
    case CLIENT_AWAY:
        return false;
    case CLIENT_THERE:
        return !c->must_close && c->n_asked == c->plan->n_asks && c->n_open == 0;
    default:
        return true;
    }
}

uint64_t client_reads_at(const struct sim_client *c)
{
    if (c->state != CLIENT_THERE)
        return UINT64_MAX;
    if (infer_ring_load(&c->theirs->closed) != 0)
        return sim_now_us();
    return infer_ring_load(&c->theirs->token_tail) != c->head ? c->next_read_us : UINT64_MAX;
}

/* ---- what the hub must have heard ------------------------------------------------------------ */

static const struct client *in_hub(const struct sim_client *c)
{
    const struct client *client = sim.dispatch->clients;
    while (client != NULL && client->connection != &c->connection)
        client = client->next;
    return client;
}

/* What was cancelled does not run any more after the turn in which the hub read of it. */
void client_check(struct sim_client *c)
{
    if (c->state != CLIENT_THERE || c->broke ||
        infer_ring_load(&c->theirs->request_head) != c->tail)
        return;
    const struct client *client = NULL;
    for (uint32_t i = 0; i < SIM_ASKS_MAX; i++) {
        const struct ask *a = &c->asks[i];
        if (a->request == 0 || !a->cancelled || c->outbox_bytes > 0)
            continue;
        if (client == NULL && (client = in_hub(c)) == NULL)
            return;
        for (const struct job *job = client->jobs; job != NULL; job = job->next)
            if (job->request == a->request && job->phase != JOB_DRAINING)
                sim_fail("client %u request %u was cancelled and runs on", c->index, a->request);
    }
}
