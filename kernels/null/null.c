/* null.c: a backend without a model behind it: deterministic tokens, scripted delays and faults.
 *
 * Everything around a backend is tested and measured with it: the rings, the scheduler, fairness,
 * what a user sees when a device fails. It keeps no weights, but checks that each row of each
 * tensor comes exactly once and in order. It keeps pages, so that sharing, copying and zeroing of
 * sequence state can be seen: a page has page_tokens words of 32 bits, row by row the token id that
 * was computed there plus one (zero is a row never written), then as many, row by row the position
 * it was computed for; page_shift() moves those.
 *
 * The token drawn at a row is a hash of the sampling seed, the row's token and its position, mapped
 * to the ids 3 and up (0 .. 2 are control tokens by custom), past tokens banned by a bias of minus
 * infinity. The distribution it pretends to has that token first and those with the next ids after
 * it: the log-probability of the token d ids further on (around the vocabulary's end) is
 * -0.5 - 0.25 * min(d, 100).
 *
 * A part of a model makes nothing of x: what it leaves there is zeros. So of a model in parts the
 * part with HEAD draws the same tokens as the whole would.
 *
 * Steps are done when they are submitted; what can take time, or fail on schedule, is collect().
 *
 * Options, all whole numbers (memory and devices are for the daemon's dealing with devices):
 *   delay_us=N       each step takes at least N microseconds, as if a device did it ...
 *   row_delay_us=N   ... and N more per row; up to SPIN_US in all by spinning, else by sleeping
 *   fail_step=N      the N-th step fails with -EIO, those after it do not
 *   lose_step=N      the N-th step and all after it fail with -ENODEV
 *   eos_after=N,eos=ID   the token drawn for position N or a later one is ID
 *   lose_hangs=1     ... and model_close() does not come back then
 *   refuse=1         model_open() fails with -ENOMEM
 *   page_bytes=N     pages are at least so large
 *   check_rows=1     a step fails with -EINVAL where a cached row of a sequence was never computed,
 *                    or for another position: a page too few, too many, stale or not shifted
 *   memory=BYTES     it claims a memory of its own of so many bytes, in which models take what
 *                    their weights, pages and the rest would; only the pages are really there
 *   reads=BYTES      it claims that this memory can be read so fast, in a second
 *   devices=N        it has so many devices, each with such a memory (1)
 *   device=I         this instance is the one with this number, from 0; -ENODEV from N on
 *
 * Threads: as backend.h has it. A single-row step without delay takes well under a microsecond: it
 * allocates nothing, and reads no clock unless a delay is asked for. */
#include "inferd/backend.h"
#include "ref/options.h"
#include "ref/walk.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* A delay up to this is spun away: the kernel's timer slack alone is 50 us. */
#define SPIN_US 200u

/* Bounds of the options: a minute's delay, a page of a large model. */
#define DELAY_US_MAX   60000000u
#define PAGE_BYTES_MAX (1u << 30)

#define DEVICES_MAX 64u
#define MEMORY_MAX  (UINT64_C(1) << 50)

#define FIRST_TOKEN 3u

#define STEPS_MAX 2u /* under way */

struct null_options {
    uint64_t delay_us, row_delay_us;
    uint64_t fail_step, lose_step, lose_hangs;
    uint64_t eos_after, eos;
    uint64_t refuse, page_bytes, check_rows;
    uint64_t memory, reads, devices, device;
};

struct infer_backend {
    const struct infer_host *host;
    struct null_options options;
    uint64_t n_steps;             /* of all models */
    _Atomic uint64_t taken_bytes; /* of options.memory */
};

/* A step under way. */
struct null_step {
    uint64_t number;
    uint64_t end_ns; /* 0: it takes no time */
    int error;       /* that collect() will give */
};

struct infer_backend_model {
    struct infer_backend *backend;
    const struct infer_plan *plan;
    struct infer_state_config state;
    uint64_t *n_written; /* rows of each tensor */
    int32_t *drawn;      /* by the outputs of the last step that was submitted; below 0: by none */
    uint32_t n_drawn;
    struct null_step steps[STEPS_MAX]; /* the oldest first */
    uint32_t n_steps;
    uint8_t *pages;
    uint64_t page_bytes, pages_bytes, model_bytes;
    uint64_t taken_bytes; /* of the backend's own memory */
    bool ready;
};

/* Of the calling thread: one may load a model while another steps. */
static _Thread_local char last_error[256] = "the backend is not open";

static int fail(struct infer_backend *backend, int error, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static int fail(struct infer_backend *backend, int error, const char *format, ...)
{
    (void)backend;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(last_error, sizeof last_error, format, arguments);
    va_end(arguments);
    return error;
}

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void delay_until(uint64_t end)
{
    if (end < now_ns() + SPIN_US * 1000) {
        while (now_ns() < end)
            ;
        return;
    }
    struct timespec until = {.tv_sec = (time_t)(end / 1000000000u),
                             .tv_nsec = (long)(end % 1000000000u)};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR)
        ;
}

static bool is_lost(const struct infer_backend *backend)
{
    return backend->options.lose_step > 0 && backend->n_steps >= backend->options.lose_step;
}

/* ---- opening --------------------------------------------------------------------------------- */

static int option_set(struct null_options *options, const struct ref_option *option)
{
    const struct {
        const char *key;
        uint64_t *field;
        uint64_t max;
    } known[] = {
        {"delay_us", &options->delay_us, DELAY_US_MAX},
        {"row_delay_us", &options->row_delay_us, DELAY_US_MAX},
        {"fail_step", &options->fail_step, UINT64_MAX},
        {"lose_step", &options->lose_step, UINT64_MAX},
        {"lose_hangs", &options->lose_hangs, 1},
        {"eos_after", &options->eos_after, UINT32_MAX},
        {"eos", &options->eos, INFER_VOCAB_MAX - 1},
        {"refuse", &options->refuse, 1},
        {"page_bytes", &options->page_bytes, PAGE_BYTES_MAX},
        {"check_rows", &options->check_rows, 1},
        {"memory", &options->memory, MEMORY_MAX},
        {"reads", &options->reads, MEMORY_MAX},
        {"devices", &options->devices, DEVICES_MAX},
        {"device", &options->device, DEVICES_MAX},
    };
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        if (strcmp(option->key, known[i].key) != 0)
            continue;
        if (option->value > known[i].max)
            return fail(NULL, -EINVAL, "the null backend's option %s is at most %llu", option->key,
                        (unsigned long long)known[i].max);
        *known[i].field = option->value;
        return 0;
    }
    return fail(NULL, -EINVAL, "the null backend has no option '%s'", option->key);
}

static int null_open(const struct infer_host *host, const char *text, struct infer_backend **ret)
{
    struct null_options options = {.devices = 1};
    struct ref_option option;
    const char *cursor = text != NULL ? text : "";
    int got;

    if (host->abi != INFER_BACKEND_ABI)
        return fail(NULL, -EINVAL, "the daemon speaks backend version %u, this is %u", host->abi,
                    INFER_BACKEND_ABI);
    while ((got = ref_option_next(&cursor, &option)) > 0) {
        int error = option_set(&options, &option);
        if (error != 0)
            return error;
    }
    if (got < 0)
        return fail(NULL, -EINVAL, "options are key=number,key=number, not '%.100s'", cursor);
    if (options.device >= options.devices)
        return fail(NULL, -ENODEV, "there is no device %llu", (unsigned long long)options.device);
    struct infer_backend *backend = host->memory_take(host->ctx, sizeof *backend);
    if (backend == NULL)
        return fail(NULL, -ENOMEM, "no memory for the backend");
    backend->host = host;
    backend->options = options;
    *ret = backend;
    return 0;
}

static void null_close(struct infer_backend *backend)
{
    if (backend != NULL)
        backend->host->memory_give(backend->host->ctx, backend, sizeof *backend);
}

static const char *null_last_error(const struct infer_backend *backend)
{
    (void)backend;
    return last_error;
}

static void null_describe(const struct infer_backend *backend, struct infer_device *ret)
{
    uint64_t taken = atomic_load_explicit(&backend->taken_bytes, memory_order_relaxed);
    memset(ret, 0, sizeof *ret);
    snprintf(ret->name, sizeof ret->name, "no device, made-up tokens");
    ret->memory = backend->options.memory;
    ret->read_bytes_per_s = backend->options.reads;
    ret->memory_free = ret->memory > taken ? ret->memory - taken : 0;
}

/* ---- memory ---------------------------------------------------------------------------------- */

/* The pages lie in memory that no ledger of the daemon's counts, when they pretend to be on a
 * device; -ENOMEM. */
static int take_pages(struct infer_backend_model *model, uint64_t bytes)
{
    struct infer_backend *backend = model->backend;
    const struct infer_host *host = backend->host;
    if (backend->options.memory == 0) {
        model->pages = host->memory_take(host->ctx, model->pages_bytes);
        return model->pages != NULL ? 0 : -ENOMEM;
    }
    uint64_t taken = atomic_load_explicit(&backend->taken_bytes, memory_order_relaxed);
    do {
        if (bytes > backend->options.memory - taken)
            return -ENOMEM;
    } while (!atomic_compare_exchange_weak_explicit(&backend->taken_bytes, &taken, taken + bytes,
                                                    memory_order_relaxed, memory_order_relaxed));
    model->taken_bytes = bytes;
    model->pages = calloc(1, model->pages_bytes);
    return model->pages != NULL ? 0 : -ENOMEM;
}

static void give_pages(struct infer_backend_model *model)
{
    struct infer_backend *backend = model->backend;
    const struct infer_host *host = backend->host;
    atomic_fetch_sub_explicit(&backend->taken_bytes, model->taken_bytes, memory_order_relaxed);
    if (backend->options.memory != 0)
        free(model->pages);
    else if (model->pages != NULL)
        host->memory_give(host->ctx, model->pages, model->pages_bytes);
}

/* ---- models ---------------------------------------------------------------------------------- */

static int null_estimate(struct infer_backend *backend, const struct infer_plan *plan,
                         const struct infer_state_config *state, struct infer_estimate *ret)
{
    struct infer_estimate estimate = {0};
    if (plan->shape.n_vocab == 0 || plan->shape.n_vocab > INFER_VOCAB_MAX)
        return fail(backend, -EINVAL, "a vocabulary of %u tokens", plan->shape.n_vocab);
    if (state->page_tokens == 0 || state->n_pages == 0)
        return fail(backend, -EINVAL, "%u pages of %u tokens", state->n_pages, state->page_tokens);
    estimate.page_bytes = (uint64_t)state->page_tokens * 2 * sizeof(uint32_t);
    if (estimate.page_bytes < backend->options.page_bytes)
        estimate.page_bytes = backend->options.page_bytes;
    estimate.page_bytes = (estimate.page_bytes + 63) & ~(uint64_t)63;
    estimate.scratch_bytes = sizeof(struct infer_backend_model) +
                             (uint64_t)plan->n_tensors * sizeof(uint64_t) +
                             (uint64_t)state->max_outputs * sizeof(int32_t);
    for (uint32_t i = 0; i < plan->n_tensors && backend->options.memory != 0; i++)
        estimate.weights_bytes += plan->tensors[i].n_rows * plan->tensors[i].row_bytes;
    *ret = estimate;
    return 0;
}

static void null_model_close(struct infer_backend_model *model)
{
    if (model == NULL)
        return;
    const struct infer_host *host = model->backend->host;
    if (model->backend->options.lose_hangs && is_lost(model->backend))
        delay_until(now_ns() + DELAY_US_MAX * UINT64_C(1000));
    give_pages(model);
    host->memory_give(host->ctx, model, model->model_bytes);
}

static int null_model_open(struct infer_backend *backend, const struct infer_plan *plan,
                           const struct infer_state_config *state, struct infer_backend_model **ret)
{
    const struct infer_host *host = backend->host;
    struct infer_estimate estimate = {0};
    int error = null_estimate(backend, plan, state, &estimate);
    if (error != 0)
        return error;
    if (backend->options.refuse)
        return fail(backend, -ENOMEM, "no memory for the model: refuse=1 asks for this");

    struct infer_backend_model *model = host->memory_take(host->ctx, estimate.scratch_bytes);
    if (model == NULL)
        return fail(backend, -ENOMEM, "no memory for the model");
    model->backend = backend;
    model->plan = plan;
    model->state = *state;
    model->n_written = (uint64_t *)(model + 1);
    model->drawn = (int32_t *)(model->n_written + plan->n_tensors);
    model->model_bytes = estimate.scratch_bytes;
    model->page_bytes = estimate.page_bytes;
    /* 32 bits times at most 36: no overflow. */
    model->pages_bytes = estimate.page_bytes * state->n_pages;
    if (take_pages(model, estimate.weights_bytes + model->pages_bytes + estimate.scratch_bytes) <
        0) {
        null_model_close(model);
        return fail(backend, -ENOMEM, "no memory for %u pages", state->n_pages);
    }
    *ret = model;
    return 0;
}

static int null_tensor_write(struct infer_backend_model *model, uint32_t tensor, uint64_t first_row,
                             uint64_t n_rows, const void *rows)
{
    struct infer_backend *backend = model->backend;
    if (tensor >= model->plan->n_tensors || rows == NULL)
        return fail(backend, -EINVAL, "there is no tensor %u, or no rows", tensor);
    const struct infer_tensor *info = &model->plan->tensors[tensor];
    uint64_t *n_written = &model->n_written[tensor];
    if (first_row != *n_written || n_rows > info->n_rows - first_row)
        return fail(backend, -EINVAL, "tensor %.64s: rows %llu + %llu after %llu of %llu",
                    info->name, (unsigned long long)first_row, (unsigned long long)n_rows,
                    (unsigned long long)*n_written, (unsigned long long)info->n_rows);
    *n_written += n_rows;
    return 0;
}

static int null_model_ready(struct infer_backend_model *model)
{
    for (uint32_t i = 0; i < model->plan->n_tensors; i++) {
        if (model->n_written[i] != model->plan->tensors[i].n_rows)
            return fail(model->backend, -EINVAL, "tensor %.64s: %llu of %llu rows came",
                        model->plan->tensors[i].name, (unsigned long long)model->n_written[i],
                        (unsigned long long)model->plan->tensors[i].n_rows);
    }
    model->ready = true;
    return 0;
}

/* ---- a step ---------------------------------------------------------------------------------- */

/* The finalizer of splitmix64: every bit of the result depends on every bit of the argument. */
static uint64_t mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

static bool banned(const struct infer_batch_output *output, int32_t token)
{
    for (uint32_t i = 0; i < output->n_bias; i++) {
        if (output->bias[i].token == token && output->bias[i].bias == -INFINITY)
            return true;
    }
    return false;
}

static int32_t choose(const struct infer_backend_model *model,
                      const struct infer_batch_output *output, int32_t previous, uint32_t position)
{
    const struct null_options *options = &model->backend->options;
    uint32_t n_vocab = model->plan->shape.n_vocab;
    uint32_t first = n_vocab > FIRST_TOKEN ? FIRST_TOKEN : 0;
    uint64_t seed = output->sample && output->sampling != NULL ? output->sampling->seed : 0;
    uint64_t hash = mix(mix(seed) ^ ((uint64_t)(uint32_t)previous << 32 | position));
    /* The high half times the range: a share of the range without a division. */
    uint32_t token = first + (uint32_t)((hash >> 32) * (n_vocab - first) >> 32);

    if (options->eos_after > 0 && (uint64_t)position + 1 >= options->eos_after &&
        options->eos < n_vocab && !banned(output, (int32_t)options->eos))
        return (int32_t)options->eos;
    for (uint32_t tries = 0; tries < output->n_bias && banned(output, (int32_t)token); tries++)
        token = token + 1 < n_vocab ? token + 1 : first;
    return (int32_t)token;
}

static float made_up_logprob(uint32_t n_vocab, int32_t chosen, int32_t token)
{
    uint32_t distance =
        token >= chosen ? (uint32_t)(token - chosen) : n_vocab - (uint32_t)(chosen - token);
    return -0.5f - 0.25f * (float)(distance < 100 ? distance : 100);
}

static void fill(const struct infer_backend_model *model, struct infer_batch_output *output,
                 int32_t chosen)
{
    uint32_t n_vocab = model->plan->shape.n_vocab;
    uint32_t n_top = output->n_top < INFER_TOP_MAX ? output->n_top : INFER_TOP_MAX;

    if (output->sample)
        output->token = chosen;
    if (output->n_top > 0 || output->target >= 0)
        output->logprob = made_up_logprob(n_vocab, chosen, chosen);
    if (output->target >= 0)
        output->target_logprob = made_up_logprob(n_vocab, chosen, output->target);
    for (uint32_t i = 0; i < n_top; i++) {
        int32_t token = (int32_t)(((uint32_t)chosen + i) % n_vocab);
        output->top[i].token = i < n_vocab ? token : -1;
        output->top[i].logprob = i < n_vocab ? made_up_logprob(n_vocab, chosen, token) : -INFINITY;
    }
    for (uint32_t i = 0; output->logits != NULL && i < n_vocab; i++)
        output->logits[i] = made_up_logprob(n_vocab, chosen, (int32_t)i);
}

/* A row of a page: its token, plus one, and its position. */
static uint32_t *row_at(struct infer_backend_model *model, uint32_t page, uint32_t row)
{
    return (uint32_t *)(void *)(model->pages + page * model->page_bytes) + row;
}

/* Whether the rows before the batch's were computed, and for their positions. */
static bool rows_are_right(struct infer_backend_model *model, const struct infer_batch_seq *seq)
{
    uint32_t page_tokens = model->state.page_tokens;
    if (seq->position > (uint64_t)seq->n_pages * page_tokens)
        return false;
    for (uint32_t i = 0; i < seq->position; i++) {
        uint32_t page = seq->pages[i / page_tokens];
        if (page >= model->state.n_pages)
            return false;
        const uint32_t *row = row_at(model, page, i % page_tokens);
        if (row[0] == 0 || row[page_tokens] != i)
            return false;
    }
    return true;
}

/* The token of a row, which the step before may have drawn; below 0: it has not. */
static int32_t token_of(const struct infer_backend_model *model, const struct infer_batch *batch,
                        uint32_t row)
{
    int32_t token = batch->tokens[row];
    if (token >= 0)
        return token;
    uint32_t output = (uint32_t)(-1 - token);
    return output < model->n_drawn ? model->drawn[output] : -1;
}

/* Writes the rows' tokens into the sequence's pages. */
static bool store_rows(struct infer_backend_model *model, const struct infer_batch *batch,
                       const struct infer_batch_seq *seq)
{
    uint32_t page_tokens = model->state.page_tokens;
    if (seq->first_row > batch->n_rows || seq->n_rows > batch->n_rows - seq->first_row)
        return false;
    for (uint32_t i = 0; i < seq->n_rows; i++) {
        uint32_t position = seq->position + i, index = position / page_tokens;
        int32_t token = token_of(model, batch, seq->first_row + i);
        if (index >= seq->n_pages || seq->pages[index] >= model->state.n_pages || token < 0)
            return false;
        uint32_t *row = row_at(model, seq->pages[index], position % page_tokens);
        row[0] = (uint32_t)token + 1;
        row[page_tokens] = position;
    }
    return true;
}

/* The sequence a row belongs to, searched from the one of the output before. */
static const struct infer_batch_seq *seq_of(const struct infer_batch *batch, uint32_t row,
                                            uint32_t *hint)
{
    for (uint32_t tries = 0; tries < batch->n_seqs; tries++) {
        const struct infer_batch_seq *seq = &batch->seqs[*hint];
        if (row >= seq->first_row && row - seq->first_row < seq->n_rows)
            return seq;
        *hint = *hint + 1 < batch->n_seqs ? *hint + 1 : 0;
    }
    return NULL;
}

/* Fills the outputs, and then what the next step may go on from. */
static int draw(struct infer_backend_model *model, struct infer_batch *batch)
{
    uint32_t hint = 0;
    for (uint32_t i = 0; i < batch->n_outputs; i++) {
        struct infer_batch_output *output = &batch->outputs[i];
        const struct infer_batch_seq *seq = seq_of(batch, output->row, &hint);
        if (seq == NULL)
            return fail(model->backend, -EINVAL, "output %u names row %u of no sequence", i,
                        output->row);
        uint32_t position = seq->position + (output->row - seq->first_row);
        int32_t previous = token_of(model, batch, output->row);
        fill(model, output, choose(model, output, previous, position));
    }
    for (uint32_t i = 0; i < batch->n_outputs; i++)
        model->drawn[i] = batch->outputs[i].sample ? batch->outputs[i].token : -1;
    model->n_drawn = batch->n_outputs;
    return 0;
}

static int compute(struct infer_backend_model *model, struct infer_batch *batch)
{
    struct infer_backend *backend = model->backend;
    if (!model->ready)
        return fail(backend, -EINVAL, "the model is not ready");
    if (batch->n_outputs > model->state.max_outputs)
        return fail(backend, -EINVAL, "a batch of %u outputs, %u are the most", batch->n_outputs,
                    model->state.max_outputs);
    for (uint32_t i = 0; i < batch->n_seqs; i++) {
        if (backend->options.check_rows && !rows_are_right(model, &batch->seqs[i]))
            return fail(backend, -EINVAL, "sequence %u of the batch lacks rows before %u", i,
                        batch->seqs[i].position);
        if (!store_rows(model, batch, &batch->seqs[i]))
            return fail(backend, -EINVAL, "sequence %u of the batch does not fit", i);
    }
    if (!ref_batch_fits(model->plan, batch))
        return fail(backend, -EINVAL, "a part of a model without x, or with outputs");
    if (ref_plan_gives_x(model->plan) && batch->n_rows > 0)
        memset(batch->x, 0, (size_t)batch->n_rows * model->plan->shape.n_embd * sizeof(float));
    return draw(model, batch);
}

/* When a step that is submitted now will be done: the device does one after the other. */
static uint64_t end_of(const struct infer_backend_model *model, uint32_t n_rows)
{
    const struct null_options *options = &model->backend->options;
    uint64_t us = options->delay_us + options->row_delay_us * n_rows;
    if (us == 0)
        return 0;
    uint64_t from = now_ns();
    if (model->n_steps > 0 && model->steps[model->n_steps - 1].end_ns > from)
        from = model->steps[model->n_steps - 1].end_ns;
    return from + us * 1000;
}

static int null_submit(struct infer_backend_model *model, struct infer_batch *batch)
{
    struct infer_backend *backend = model->backend;
    struct null_step step = {.number = backend->n_steps + 1,
                             .end_ns = end_of(model, batch->n_rows)};
    if (model->n_steps == STEPS_MAX)
        return fail(backend, -EINVAL, "%u steps are under way already", STEPS_MAX);
    backend->n_steps++;
    if (is_lost(backend))
        step.error = -ENODEV;
    else if (step.number == backend->options.fail_step)
        step.error = -EIO;
    int error = step.error == 0 ? compute(model, batch) : 0;
    if (error < 0)
        return error;
    model->steps[model->n_steps++] = step;
    return 0;
}

static int null_collect(struct infer_backend_model *model, struct infer_batch *batch)
{
    struct infer_backend *backend = model->backend;
    (void)batch;
    if (model->n_steps == 0)
        return fail(backend, -EINVAL, "no step is under way");
    struct null_step step = model->steps[0];
    memmove(model->steps, model->steps + 1, --model->n_steps * sizeof step);
    if (step.end_ns != 0)
        delay_until(step.end_ns);
    if (step.error == -ENODEV)
        return fail(backend, -ENODEV, "the device is lost: lose_step=%llu asks for this",
                    (unsigned long long)backend->options.lose_step);
    if (step.error < 0)
        return fail(backend, step.error, "step %llu failed: fail_step asks for this",
                    (unsigned long long)step.number);
    return 0;
}

static int null_run(struct infer_backend_model *model, struct infer_batch *batch)
{
    int error = null_submit(model, batch);
    return error < 0 ? error : null_collect(model, batch);
}

/* ---- pages ----------------------------------------------------------------------------------- */

static uint8_t *page_at(struct infer_backend_model *model, uint32_t page)
{
    if (page < model->state.n_pages)
        return model->pages + page * model->page_bytes;
    fail(model->backend, -EINVAL, "there is no page %u of %u", page, model->state.n_pages);
    return NULL;
}

static int null_page_copy(struct infer_backend_model *model, uint32_t to, uint32_t from)
{
    uint8_t *target = page_at(model, to), *source = page_at(model, from);
    if (target == NULL || source == NULL)
        return -EINVAL;
    memmove(target, source, model->page_bytes);
    return 0;
}

static int null_page_zero(struct infer_backend_model *model, uint32_t page)
{
    uint8_t *target = page_at(model, page);
    if (target == NULL)
        return -EINVAL;
    memset(target, 0, model->page_bytes);
    return 0;
}

static int null_page_read(struct infer_backend_model *model, uint32_t page, void *ret_bytes)
{
    uint8_t *source = page_at(model, page);
    if (source == NULL)
        return -EINVAL;
    memcpy(ret_bytes, source, model->page_bytes);
    return 0;
}

static int null_page_write(struct infer_backend_model *model, uint32_t page, const void *bytes)
{
    uint8_t *target = page_at(model, page);
    if (target == NULL)
        return -EINVAL;
    memcpy(target, bytes, model->page_bytes);
    return 0;
}

/* Keys would turn by delta; here the positions move, modulo 2^32 as their arithmetic goes. */
static int null_page_shift(struct infer_backend_model *model, uint32_t page, int32_t delta)
{
    uint32_t page_tokens = model->state.page_tokens;
    if (page_at(model, page) == NULL)
        return -EINVAL;
    for (uint32_t i = 0; i < page_tokens; i++) {
        uint32_t *row = row_at(model, page, i);
        if (row[0] != 0)
            row[page_tokens] += (uint32_t)delta;
    }
    return 0;
}

static const struct infer_backend_api api = {
    .abi = INFER_BACKEND_ABI,
    .bytes = sizeof(struct infer_backend_api),
    .name = "null",
    .version = INFERD_VERSION,
    .open = null_open,
    .close = null_close,
    .last_error = null_last_error,
    .describe = null_describe,
    .estimate = null_estimate,
    .model_open = null_model_open,
    .tensor_write = null_tensor_write,
    .model_ready = null_model_ready,
    .model_close = null_model_close,
    .run = null_run,
    .page_copy = null_page_copy,
    .page_zero = null_page_zero,
    .page_read = null_page_read,
    .page_write = null_page_write,
    .page_shift = null_page_shift,
    .submit = null_submit,
    .collect = null_collect,
    .max_under_way = STEPS_MAX,
};

const struct infer_backend_api *infer_backend_v1(void)
{
    return &api;
}
