/* dispatch_status.c: what the daemon tells about itself. */
#include "dispatch_internal.h"

#include "base/clock.h"
#include "topology.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void describe_loaded(const struct engine_model *m, struct infer_model *ret)
{
    const struct infer_shape *shape = &m->plan->backend.shape;
    struct infer_device device = {0};

    m->api->describe(m->backend, &device);
    ret->device_memory = device.memory;
    ret->device_free = device.memory_free;
    ret->device_read_per_s = device.read_bytes_per_s;
    ret->file_bytes = m->plan->file_bytes;
    snprintf(ret->name, sizeof ret->name, "%s", m->name);
    snprintf(ret->architecture, sizeof ret->architecture, "%s", m->plan->architecture);
    snprintf(ret->description, sizeof ret->description, "%s", m->plan->description);
    snprintf(ret->backend, sizeof ret->backend, "%s", m->backend_name);
    if (m->chat != NULL)
        snprintf(ret->chat_template, sizeof ret->chat_template, "%s", chat_template_name(m->chat));
    ret->n_vocab = shape->n_vocab;
    ret->n_context = m->n_context;
    ret->n_embd = shape->n_embd;
    ret->n_layers = shape->n_layers;
    ret->n_parameters = m->plan->n_parameters;
    ret->weights_bytes = m->memory.weights_bytes;
    struct kv_config pages = {.n_pages = m->state.n_pages, .page_tokens = m->state.page_tokens};
    ret->state_bytes = m->memory.page_bytes * m->state.n_pages + kv_pool_bytes(&pages);
    ret->scratch_bytes = m->memory.scratch_bytes;
    ret->device_layers = m->n_first;
    ret->rest_weights_bytes = m->rest.weights_bytes;
    ret->rest_state_bytes = m->rest.page_bytes * m->state.n_pages;
    ret->rest_scratch_bytes = m->rest.scratch_bytes;
    ret->bos = tokenizer_bos(m->tokenizer);
    ret->eos = tokenizer_eos(m->tokenizer);
    ret->add_bos = tokenizer_add_bos(m->tokenizer);
}

static void add_second(struct second *to, const struct second *x)
{
    to->prompt_tokens += x->prompt_tokens;
    to->prompt_us += x->prompt_us;
    to->tokens += x->tokens;
    to->tokens_us += x->tokens_us;
    to->decode_steps += x->decode_steps;
    to->decode_us += x->decode_us;
}

static void count_second(struct seconds *s, const struct second *did)
{
    struct second *x = &s->of[did->at % DISPATCH_SECONDS];
    if (x->at != did->at)
        *x = (struct second){.at = did->at};
    add_second(x, did);
}

static struct second sum_of_seconds(const struct seconds *s)
{
    uint64_t now = clock_us() / 1000000u;
    struct second sum = {0};
    for (int i = 0; i < DISPATCH_SECONDS; i++)
        if (s->of[i].at + DISPATCH_SECONDS > now)
            add_second(&sum, &s->of[i]);
    return sum;
}

/* Bytes a second; a model on two devices waits for the slower one. */
static uint64_t weights_read_per_s(const struct model_slot *slot, const struct engine_model *m)
{
    const struct second sum = sum_of_seconds(&slot->seconds);
    if (sum.decode_us == 0 || m->n_first != 0)
        return 0;
    return (uint64_t)(1e6 * (double)m->plan->step_bytes * (double)sum.decode_steps /
                      (double)sum.decode_us);
}

static uint32_t shown_state(enum dispatch_model_state state)
{
    static const uint8_t shown[] = {[DISPATCH_MODEL_LISTED] = INFER_MODEL_LISTED,
                                    [DISPATCH_MODEL_LOADING] = INFER_MODEL_LOADING,
                                    [DISPATCH_MODEL_READY] = INFER_MODEL_READY,
                                    [DISPATCH_MODEL_LEAVING] = INFER_MODEL_LEAVING,
                                    [DISPATCH_MODEL_FAILED] = INFER_MODEL_FAILED};
    return shown[state];
}

bool dispatch_describe_model(const struct dispatch *d, uint32_t index, struct infer_model *ret)
{
    const struct model_slot *slot = &d->slots[index];
    uint64_t idle = atomic_load_explicit(&slot->idle_since_us, memory_order_relaxed);
    uint64_t now = clock_us();
    if (slot->is.state == DISPATCH_MODEL_NONE)
        return false;
    *ret = slot->is.about;
    if (slot->live) {
        describe_loaded(&d->config.models[index], ret);
        ret->weights_read_per_s = weights_read_per_s(slot, &d->config.models[index]);
    }
    ret->bytes = sizeof *ret;
    ret->index = index;
    ret->state = shown_state(slot->is.state);
    ret->n_requests = slot->n_uses + slot->n_waiting;
    ret->idle_us = idle != 0 && now > idle ? now - idle : 0;
    ret->error = slot->is.report.code;
    return true;
}

int dispatch_models(const struct dispatch *d, struct job *job)
{
    struct infer_model *models = calloc(d->config.n_models, sizeof *models);
    uint32_t n = 0;
    if (models == NULL)
        return -INFER_E_OUT_OF_MEMORY;
    for (uint32_t i = 0; i < d->config.n_models; i++)
        n += dispatch_describe_model(d, i, &models[n]);
    job->result_what = INFER_ABI_MODEL_RECORD;
    job->result = (uint8_t *)models;
    job->result_bytes = n * sizeof *models;
    return 0;
}

/* Reads files of /proc: for answers to a person and for an engine that goes to sleep, not for the
 * page of a busy one. */
void dispatch_read_memory(struct dispatch *d)
{
    struct topology limits = {0};
    topology_limits("", &limits);
    d->memory_available = limits.memory_available;
    d->memory_bytes = metrics_resident_bytes();
}

static void fill_speeds(const struct dispatch *d, struct infer_status *s)
{
    const struct second sum = sum_of_seconds(&d->seconds);

    if (sum.prompt_us > 0)
        s->prompt_tokens_per_s = 1e6 * (double)sum.prompt_tokens / (double)sum.prompt_us;
    if (sum.tokens_us > 0)
        s->tokens_per_s = 1e6 * (double)sum.tokens / (double)sum.tokens_us;
}

void dispatch_fill_status(const struct dispatch *d, struct infer_status *s)
{
    memset(s, 0, sizeof *s);
    struct sched_counts counts = sched_count(d->sched);
    s->bytes = sizeof *s;
    s->pid = (uint32_t)getpid();
    snprintf(s->version, sizeof s->version, "%s", INFERD_VERSION);
    snprintf(s->event_loop, sizeof s->event_loop, "%s", loop_name(d->config.loop));
    s->uptime_us = clock_us() - d->start_us;
    s->memory_bytes = d->memory_bytes;
    s->memory_available = d->memory_available;
    s->session_bytes = d->session_bytes;
    s->n_sessions = d->n_sessions;
    s->n_running = counts.n_running;
    s->n_waiting = counts.n_waiting + d->n_held;
    s->n_parked = counts.n_parked;
    for (uint32_t i = 0; i < d->config.n_models; i++) {
        s->n_models += d->slots[i].is.state != DISPATCH_MODEL_NONE;
        if (!d->slots[i].live)
            continue;
        s->n_pages += kv_pool_pages(d->config.models[i].pool);
        s->n_pages_used += kv_pool_used(d->config.models[i].pool);
        s->page_tokens = d->config.models[i].state.page_tokens;
    }
    s->n_requests = d->n_requests;
    s->n_failed = d->n_failed;
    s->n_prompt_tokens = d->n_prompt_tokens;
    s->n_tokens = d->n_tokens;
    s->n_steps = d->n_steps;
    s->n_preemptions = counts.n_preemptions;
    s->n_conversations = conversations_count(d->conversations);
    s->n_preempted = counts.n_preempted;
    s->request_bytes = d->held_bytes;
    s->conversation_bytes = conversations_bytes(d->conversations);
    s->swap_memory_bytes = swap_memory_bytes(d->swap);
    s->swap_file_bytes = swap_file_bytes(d->swap);
    fill_speeds(d, s);
}

int dispatch_status(struct dispatch *d, struct job *job)
{
    struct infer_status *s = malloc(sizeof *s);
    if (s == NULL)
        return -INFER_E_OUT_OF_MEMORY;
    dispatch_read_memory(d);
    dispatch_fill_status(d, s);
    job->result_what = INFER_ABI_STATUS_RECORD;
    job->result = (uint8_t *)s;
    job->result_bytes = sizeof *s;
    return 0;
}

void dispatch_draw_topology(struct dispatch *d, struct job *job)
{
    if (d->config.draw_topology == NULL) {
        report_fail(&job->report, INFER_E_UNSUPPORTED, "this daemon draws no topology");
        return;
    }
    char *text = d->config.draw_topology(d->config.draw_ctx);
    if (text == NULL) {
        report_fail(&job->report, INFER_E_OUT_OF_MEMORY, "no memory for the drawing");
        return;
    }
    job->result_what = INFER_ABI_BYTES;
    job->result = (uint8_t *)text;
    job->result_bytes = strlen(text);
}

static uint32_t state_of(const struct job *job)
{
    if (job->started_us == 0)
        return INFER_SEQUENCE_WAITING;
    if (job->preempted)
        return INFER_SEQUENCE_PREEMPTED;
    if (job->stalled)
        return INFER_SEQUENCE_PARKED;
    return engine_sequence_rows(job->sequence) > 1 ? INFER_SEQUENCE_PREFILL : INFER_SEQUENCE_DECODE;
}

static void fill_sequence(const struct dispatch *d, const struct job *job, uint64_t now_us,
                          struct infer_page_sequence *ret)
{
    const struct peer *peer = session_peer(job->client->session);
    const struct engine_sequence *s = job->sequence;

    *ret = (struct infer_page_sequence){.id = job->id,
                                        .uid = peer->uid,
                                        .pid = (uint32_t)peer->pid,
                                        .model = job->model_index,
                                        .state = state_of(job),
                                        .priority = job->priority,
                                        .n_prompt = (uint32_t)s->n_prompt,
                                        .n_cached = (uint32_t)(s->n_cached - s->n_slid),
                                        .n_tokens = (uint32_t)s->n_generated,
                                        .n_pages = s->state.n_pages,
                                        .age_us = now_us - job->admitted_us};
    if (ret->state == INFER_SEQUENCE_WAITING || ret->state == INFER_SEQUENCE_PREEMPTED)
        ret->position = sched_position(d->sched, job->slot);
    memcpy(ret->client, peer->client, sizeof ret->client);
}

static uint32_t fill_users(const struct dispatch *d, struct infer_page_user *ret)
{
    struct sched_user_counts users[INFER_PAGE_USERS];
    uint32_t n = sched_users(d->sched, users, INFER_PAGE_USERS);
    if (n > INFER_PAGE_USERS)
        n = INFER_PAGE_USERS;
    for (uint32_t i = 0; i < n; i++)
        ret[i] = (struct infer_page_user){.uid = users[i].uid,
                                          .weight = users[i].weight,
                                          .n_running = users[i].n_running,
                                          .n_waiting = users[i].n_waiting,
                                          .n_pages = users[i].n_pages,
                                          .n_prompt_tokens = users[i].n_prefill_rows,
                                          .n_tokens = users[i].n_decode_rows};
    return n;
}

static void tell_counts(struct dispatch *d)
{
    uint64_t counts = (uint64_t)d->page.status.n_running << 32 | d->page.status.n_waiting;
    if (d->config.on_counts == NULL ||
        atomic_load_explicit(&d->counts, memory_order_relaxed) == counts)
        return;
    atomic_store_explicit(&d->counts, counts, memory_order_seq_cst);
    if (!atomic_exchange_explicit(&d->counts_told, true, memory_order_seq_cst))
        loop_post(d->config.loop, d->config.on_counts, d->config.on_counts_ctx);
}

void dispatch_write_page(struct dispatch *d, uint64_t now_us)
{
    struct infer_page *page = &d->page;
    dispatch_fill_status(d, &page->status);
    page->written_us = now_us;
    page->n_sequences = 0;
    for (uint32_t slot = 0; slot < INFER_SEQUENCES_MAX; slot++)
        if (d->by_slot[slot] != NULL && page->n_sequences < INFER_PAGE_SEQUENCES)
            fill_sequence(d, d->by_slot[slot], now_us, &page->sequences[page->n_sequences++]);
    page->n_users = fill_users(d, page->users);
    d->page_stale = page->n_sequences > 0;
    status_page_write(d->config.page, page);
    tell_counts(d);
}

/* A step that mixes prompt rows and decode rows is charged to both by their number. */
void dispatch_count_step(struct dispatch *d, uint32_t model, uint32_t n, uint64_t from_us,
                         uint64_t to_us)
{
    uint64_t prompt = 0, drawn = 0;
    for (uint32_t i = 0; i < n; i++) {
        const struct sched_work *work = &d->plan[i];
        const struct engine_sequence *s = d->by_slot[work->slot]->sequence;
        bool decode = work->n_rows == 1 && s->n_cached > s->n_prompt;
        prompt += decode ? 0 : work->n_rows;
        drawn += decode;
        d->n_tokens += s->output.has_token;
    }
    if (n == 0) /* all that were in it have left */
        return;
    uint64_t took = to_us - from_us;
    const struct second did = {.at = to_us / 1000000u,
                               .prompt_tokens = prompt,
                               .prompt_us = took * prompt / (prompt + drawn),
                               .tokens = drawn,
                               .tokens_us = took * drawn / (prompt + drawn),
                               .decode_steps = prompt == 0,
                               .decode_us = prompt == 0 ? took : 0};
    count_second(&d->seconds, &did);
    count_second(&d->slots[model].seconds, &did);
    dispatch_measured(d, model, prompt, did.prompt_us);
    d->n_prompt_tokens += prompt;
    d->n_steps++;
    d->metrics.prompt_rows += prompt;
    d->metrics.decode_rows += drawn;
    metrics_add(&d->metrics.steps[drawn == 0    ? METRICS_PREFILL
                                  : prompt == 0 ? METRICS_DECODE
                                                : METRICS_MIXED],
                took);
    d->page_stale = true;
    sched_measured(d->sched, model, (uint32_t)prompt, (uint32_t)drawn, took);
}
