/* model.c: the reference backend's opening and closing, weights and pages.
 *
 * Owns the model's three blocks of host memory (weights, pages, scratch) and the struct itself,
 * all from host->memory_take. Weights stay in the file's encoding.
 *
 * A page holds page_tokens rows of every layer:
 *   [layer][keys: page_tokens x k_row | values: page_tokens x v_row]
 * A row of keys is the n_kv_heads heads side by side, encoded as k_type (cache.h).
 *
 * Threads: one caller at a time, as backend.h says; no workers. */
#include "ref/model.h"

#include "ref/cache.h"
#include "ref/rope.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* The sentence for an open() that failed, when there is no backend yet to hold it. */
/* Of the calling thread: one may load a model while another steps. */
static _Thread_local char last_error[256] = "the backend is not open";

int ref_fail(struct infer_backend *backend, int error, const char *format, ...)
{
    (void)backend;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(last_error, sizeof last_error, format, arguments);
    va_end(arguments);
    return error;
}

int ref_open(const struct infer_host *host, const char *options, struct infer_backend **ret)
{
    if (host->abi != INFER_BACKEND_ABI)
        return ref_fail(NULL, -EINVAL, "the daemon speaks backend version %u, this is %u",
                        host->abi, INFER_BACKEND_ABI);
    if (options != NULL && options[0] != '\0')
        return ref_fail(NULL, -EINVAL, "the ref backend has no option '%.100s'", options);
    struct infer_backend *backend = host->memory_take(host->ctx, sizeof *backend);
    if (backend == NULL)
        return ref_fail(NULL, -ENOMEM, "no memory for the backend");
    backend->host = host;
    *ret = backend;
    return 0;
}

void ref_close(struct infer_backend *backend)
{
    if (backend != NULL)
        backend->host->memory_give(backend->host->ctx, backend, sizeof *backend);
}

const char *ref_last_error(const struct infer_backend *backend)
{
    (void)backend;
    return last_error;
}

void ref_describe(const struct infer_backend *backend, struct infer_device *ret)
{
    (void)backend;
    memset(ret, 0, sizeof *ret);
    snprintf(ret->name, sizeof ret->name, "CPU, scalar reference, 1 thread");
}

/* ---- sizes ----------------------------------------------------------------------------------- */

/* Lays parts one behind another, each aligned to 64. */
struct layout {
    uint64_t at;
    bool overflow;
};

static uint64_t layout_add(struct layout *layout, uint64_t n, uint64_t size)
{
    uint64_t first = layout->at, bytes, end;
    if (__builtin_mul_overflow(n, size, &bytes) || __builtin_add_overflow(first, bytes, &end) ||
        __builtin_add_overflow(end, 63, &end))
        layout->overflow = true;
    else
        layout->at = end & ~(uint64_t)63;
    return first;
}

/* Places the scratch arrays; with a base of NULL only their sizes count. */
static void *place(struct layout *layout, uint8_t *base, uint64_t n, uint64_t size)
{
    uint64_t offset = layout_add(layout, n, size);
    return base != NULL && !layout->overflow ? base + offset : NULL;
}

static uint64_t longest_matrix_row(const struct infer_plan *plan)
{
    uint64_t longest = 1;
    for (uint32_t i = 0; i < plan->n_tensors; i++) {
        if (plan->tensors[i].ne[0] > longest)
            longest = plan->tensors[i].ne[0];
    }
    return longest;
}

static void scratch_place(struct layout *layout, uint8_t *base, const struct infer_plan *plan,
                          const struct infer_state_config *state, struct ref_scratch *ret)
{
    const struct infer_shape *s = &plan->shape;
    uint64_t rows = state->max_rows, group = s->n_heads / s->n_kv_heads;
    uint64_t n_q = (uint64_t)s->n_heads * s->head_dim;
    uint64_t n_k = (uint64_t)s->n_kv_heads * s->head_dim;
    uint64_t n_v = (uint64_t)s->n_kv_heads * s->head_dim_v;
    uint64_t n_o = (uint64_t)s->n_heads * s->head_dim_v;
    uint64_t head = s->head_dim > s->head_dim_v ? s->head_dim : s->head_dim_v;

    ret->n_scores = (uint64_t)state->n_pages * state->page_tokens;
    ret->x = place(layout, base, rows * s->n_embd, sizeof(float));
    ret->h = place(layout, base, rows * s->n_embd, sizeof(float));
    ret->q = place(layout, base, rows, n_q * sizeof(float));
    ret->k = place(layout, base, rows, n_k * sizeof(float));
    ret->v = place(layout, base, rows, n_v * sizeof(float));
    ret->o = place(layout, base, rows, n_o * sizeof(float));
    ret->t = place(layout, base, rows * s->n_ffn, sizeof(float));
    ret->u = place(layout, base, rows * s->n_ffn, sizeof(float));
    ret->cosine = place(layout, base, rows * (plan->rope.n_dims / 2), sizeof(float));
    ret->sine = place(layout, base, rows * (plan->rope.n_dims / 2), sizeof(float));
    ret->weight_row = place(layout, base, longest_matrix_row(plan), sizeof(float));
    ret->cached_row = place(layout, base, head, sizeof(float));
    ret->scores = place(layout, base, ret->n_scores, group * sizeof(float));
    ret->sums = place(layout, base, group * s->head_dim_v, sizeof(double));
    ret->logits = place(layout, base, REF_HEAD_ROWS * (uint64_t)s->n_vocab, sizeof(float));
    ret->sampler = place(layout, base, 1, ref_sample_scratch_bytes(s->n_vocab));
}

static int sizes_compute(struct infer_backend *backend, const struct infer_plan *plan,
                         const struct infer_state_config *state, struct ref_sizes *ret)
{
    const struct infer_shape *s = &plan->shape;
    struct layout model = {0}, weights = {0}, page = {0}, pages = {0}, scratch = {0};
    struct ref_scratch unused;
    struct ref_sizes sizes;

    layout_add(&model, 1, sizeof(struct infer_backend_model));
    layout_add(&model, plan->n_tensors, sizeof(struct ref_weights));
    for (uint32_t i = 0; i < plan->n_tensors; i++)
        layout_add(&weights, plan->tensors[i].n_rows, plan->tensors[i].row_bytes);
    sizes.k_row = ref_cache_bytes(state->k_type, REF_KEY, (uint64_t)s->n_kv_heads * s->head_dim);
    sizes.v_row =
        ref_cache_bytes(state->v_type, REF_VALUE, (uint64_t)s->n_kv_heads * s->head_dim_v);
    if (__builtin_add_overflow(sizes.k_row, sizes.v_row, &sizes.layer) ||
        __builtin_mul_overflow(sizes.layer, state->page_tokens, &sizes.layer))
        page.overflow = true;
    layout_add(&page, s->n_layers, sizes.layer);
    layout_add(&pages, state->n_pages, page.at);
    scratch_place(&scratch, NULL, plan, state, &unused);
    if (model.overflow || weights.overflow || page.overflow || pages.overflow || scratch.overflow)
        return ref_fail(backend, -EINVAL, "the model's size exceeds 64 bits");
    sizes.model = model.at;
    sizes.weights = weights.at;
    sizes.page = page.at;
    sizes.pages = pages.at;
    sizes.scratch = scratch.at;
    *ret = sizes;
    return 0;
}

int ref_estimate(struct infer_backend *backend, const struct infer_plan *plan,
                 const struct infer_state_config *state, struct infer_estimate *ret)
{
    struct ref_sizes sizes;
    int error = ref_plan_check(backend, plan, state);
    if (error == 0)
        error = sizes_compute(backend, plan, state, &sizes);
    if (error != 0)
        return error;
    *ret = (struct infer_estimate){
        .weights_bytes = sizes.weights,
        .page_bytes = sizes.page,
        .scratch_bytes = sizes.model + sizes.scratch,
    };
    return 0;
}

/* ---- a model's life -------------------------------------------------------------------------- */

static void *take(struct infer_backend *backend, uint64_t bytes)
{
    return backend->host->memory_take(backend->host->ctx, (size_t)bytes);
}

static void give(struct infer_backend *backend, void *memory, uint64_t bytes)
{
    if (memory != NULL)
        backend->host->memory_give(backend->host->ctx, memory, (size_t)bytes);
}

static void weights_place(struct infer_backend_model *model)
{
    struct layout layout = {0};
    for (uint32_t i = 0; i < model->plan->n_tensors; i++) {
        const struct infer_tensor *info = &model->plan->tensors[i];
        model->weights[i].info = info;
        model->weights[i].rows =
            model->weights_memory + layout_add(&layout, info->n_rows, info->row_bytes);
    }
}

int ref_model_open(struct infer_backend *backend, const struct infer_plan *plan,
                   const struct infer_state_config *state, struct infer_backend_model **ret)
{
    struct ref_sizes sizes;
    int error = ref_plan_check(backend, plan, state);
    if (error == 0)
        error = sizes_compute(backend, plan, state, &sizes);
    if (error != 0)
        return error;

    struct infer_backend_model *model = take(backend, sizes.model);
    if (model == NULL)
        return ref_fail(backend, -ENOMEM, "no memory for the model");
    model->backend = backend;
    model->plan = plan;
    model->state = *state;
    model->sizes = sizes;
    model->weights = (struct ref_weights *)((uint8_t *)model + ((sizeof *model + 63) & ~63ul));
    model->weights_memory = take(backend, sizes.weights);
    model->pages = take(backend, sizes.pages);
    model->scratch_memory = take(backend, sizes.scratch);
    if (model->weights_memory == NULL || model->pages == NULL || model->scratch_memory == NULL) {
        ref_model_close(model);
        return ref_fail(backend, -ENOMEM,
                        "no memory for %llu bytes of weights, %llu of pages and %llu of scratch",
                        (unsigned long long)sizes.weights, (unsigned long long)sizes.pages,
                        (unsigned long long)sizes.scratch);
    }
    struct layout layout = {0};
    scratch_place(&layout, model->scratch_memory, plan, state, &model->scratch);
    ref_sample_scratch_init(&model->sampler, plan->shape.n_vocab, model->scratch.sampler);
    weights_place(model);
    *ret = model;
    return 0;
}

int ref_tensor_write(struct infer_backend_model *model, uint32_t tensor, uint64_t first_row,
                     uint64_t n_rows, const void *rows)
{
    struct infer_backend *backend = model->backend;
    if (tensor >= model->plan->n_tensors)
        return ref_fail(backend, -EINVAL, "there is no tensor %u", tensor);
    struct ref_weights *weights = &model->weights[tensor];
    const struct infer_tensor *info = weights->info;
    if (first_row != weights->n_written || n_rows > info->n_rows - first_row)
        return ref_fail(backend, -EINVAL, "tensor %.64s: rows %llu + %llu after %llu of %llu",
                        info->name, (unsigned long long)first_row, (unsigned long long)n_rows,
                        (unsigned long long)weights->n_written, (unsigned long long)info->n_rows);
    memcpy(weights->rows + first_row * info->row_bytes, rows, n_rows * info->row_bytes);
    weights->n_written += n_rows;
    return 0;
}

int ref_model_ready(struct infer_backend_model *model)
{
    for (uint32_t i = 0; i < model->plan->n_tensors; i++) {
        const struct ref_weights *weights = &model->weights[i];
        if (weights->n_written != weights->info->n_rows)
            return ref_fail(model->backend, -EINVAL, "tensor %.64s: %llu of %llu rows came",
                            weights->info->name, (unsigned long long)weights->n_written,
                            (unsigned long long)weights->info->n_rows);
    }
    model->ready = true;
    return 0;
}

void ref_model_close(struct infer_backend_model *model)
{
    if (model == NULL)
        return;
    struct infer_backend *backend = model->backend;
    give(backend, model->weights_memory, model->sizes.weights);
    give(backend, model->pages, model->sizes.pages);
    give(backend, model->scratch_memory, model->sizes.scratch);
    give(backend, model, model->sizes.model);
}

/* ---- pages ----------------------------------------------------------------------------------- */

/* NULL, with last_error set, when there is no such page. */
static uint8_t *page_at(struct infer_backend_model *model, uint32_t page)
{
    if (page < model->state.n_pages)
        return model->pages + page * model->sizes.page;
    ref_fail(model->backend, -EINVAL, "there is no page %u of %u", page, model->state.n_pages);
    return NULL;
}

int ref_page_copy(struct infer_backend_model *model, uint32_t to, uint32_t from)
{
    uint8_t *target = page_at(model, to), *source = page_at(model, from);
    if (target == NULL || source == NULL)
        return -EINVAL;
    memmove(target, source, model->sizes.page);
    return 0;
}

int ref_page_zero(struct infer_backend_model *model, uint32_t page)
{
    uint8_t *target = page_at(model, page);
    if (target == NULL)
        return -EINVAL;
    memset(target, 0, model->sizes.page);
    return 0;
}

int ref_page_read(struct infer_backend_model *model, uint32_t page, void *ret_bytes)
{
    uint8_t *source = page_at(model, page);
    if (source == NULL)
        return -EINVAL;
    memcpy(ret_bytes, source, model->sizes.page);
    return 0;
}

int ref_page_write(struct infer_backend_model *model, uint32_t page, const void *bytes)
{
    uint8_t *target = page_at(model, page);
    if (target == NULL)
        return -EINVAL;
    memcpy(target, bytes, model->sizes.page);
    return 0;
}

/* One cached head of keys: decoded, turned by the angles in scratch, and encoded again. */
static void shift_head(struct infer_backend_model *model, uint8_t *bytes)
{
    const uint32_t type = model->state.k_type, dim = model->plan->shape.head_dim;
    float *key = model->scratch.cached_row;
    ref_cache_decode(type, REF_KEY, bytes, key, dim);
    if (ref_cache_rotates(type))
        ref_cache_rotate(key, dim);
    ref_rope_turn(&model->plan->rope, model->scratch.cosine, model->scratch.sine, key);
    if (ref_cache_rotates(type))
        ref_cache_rotate(key, dim);
    ref_cache_encode(type, REF_KEY, key, bytes, dim);
}

int ref_page_shift(struct infer_backend_model *model, uint32_t page, int32_t delta)
{
    const struct infer_shape *shape = &model->plan->shape;
    const uint64_t head = ref_cache_bytes(model->state.k_type, REF_KEY, shape->head_dim);
    uint8_t *target = page_at(model, page);
    if (target == NULL)
        return -EINVAL;
    if (delta == 0 || model->plan->rope.n_dims == 0)
        return 0;
    ref_rope_delta(&model->plan->rope, delta, model->scratch.cosine, model->scratch.sine);
    for (uint32_t l = 0; l < shape->n_layers; l++) {
        uint8_t *rows = target + l * model->sizes.layer;
        for (uint32_t i = 0; i < model->state.page_tokens * shape->n_kv_heads; i++)
            shift_head(model, rows + i * head);
    }
    return 0;
}
