/* split.c: see split.h.
 *
 * An instance owns the two plans; a model owns the two backends' models and x, [max_rows][n_embd].
 * The first side computes no outputs, so it sets nothing aside for any. Threads: what backend.h has
 * of the two sides; the sentence of a failure is the calling thread's. A step allocates nothing. */
#include "engine/split.h"

#include "model/cut.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct infer_backend {
    const struct infer_host *host;
    const struct infer_plan *plan;
    struct split_side sides[2];
    struct plan_part parts[2];
};

struct infer_backend_model {
    struct infer_backend *backend;
    struct infer_backend_model *models[2];
    uint64_t page_bytes; /* of the first side */
    float *x;
    size_t x_bytes;
    struct infer_batch first; /* the first side's, of the step under way */
};

static _Thread_local char last_error[256];

/* The failure of a side, with its name before its sentence. */
static int failed(const struct infer_backend *b, uint32_t i, int rc)
{
    const struct split_side *side = &b->sides[i];
    snprintf(last_error, sizeof last_error, "%.32s: %.200s", side->api->name,
             side->api->last_error(side->instance));
    return rc;
}

int split_new(const struct infer_plan *plan, uint32_t n_first, const struct split_side sides[2],
              const struct infer_host *host, struct infer_backend **ret)
{
    struct infer_backend *b = calloc(1, sizeof *b);
    int rc = b != NULL ? plan_cut(plan, n_first, b->parts) : -ENOMEM;
    if (rc < 0) {
        free(b);
        return rc;
    }
    b->host = host;
    b->plan = plan;
    memcpy(b->sides, sides, sizeof b->sides);
    *ret = b;
    return 0;
}

static int split_open(const struct infer_host *host, const char *options,
                      struct infer_backend **ret)
{
    (void)host;
    (void)options;
    (void)ret;
    return -ENOTSUP; /* split_new() does */
}

static void split_close(struct infer_backend *b)
{
    plan_part_done(&b->parts[0]);
    plan_part_done(&b->parts[1]);
    free(b);
}

static const char *split_last_error(const struct infer_backend *b)
{
    (void)b;
    return last_error;
}

/* The device is the first side's. */
static void split_describe(const struct infer_backend *b, struct infer_device *ret)
{
    b->sides[0].api->describe(b->sides[0].instance, ret);
}

/* ---- sizes ----------------------------------------------------------------------------------- */

static size_t x_bytes(const struct infer_backend *b, const struct infer_state_config *state)
{
    return (size_t)state->max_rows * b->plan->shape.n_embd * sizeof(float);
}

static struct infer_state_config state_of(uint32_t side, const struct infer_state_config *state)
{
    struct infer_state_config ret = *state;
    if (side == 0)
        ret.max_outputs = 0;
    return ret;
}

int split_estimate(struct infer_backend *b, const struct infer_state_config *state,
                   struct infer_estimate ret[2])
{
    struct infer_estimate e[2];
    for (uint32_t i = 0; i < 2; i++) {
        const struct split_side *side = &b->sides[i];
        struct infer_state_config own = state_of(i, state);
        int rc = side->api->estimate(side->instance, &b->parts[i].backend, &own, &e[i]);
        if (rc < 0)
            return failed(b, i, rc);
    }
    e[1].scratch_bytes += x_bytes(b, state);
    memcpy(ret, e, sizeof e);
    return 0;
}

struct infer_estimate split_sum(const struct infer_estimate sides[2])
{
    return (struct infer_estimate){
        .weights_bytes = sides[0].weights_bytes + sides[1].weights_bytes,
        .page_bytes = sides[0].page_bytes + sides[1].page_bytes,
        .scratch_bytes = sides[0].scratch_bytes + sides[1].scratch_bytes,
    };
}

static int split_estimate_sum(struct infer_backend *b, const struct infer_plan *plan,
                              const struct infer_state_config *state, struct infer_estimate *ret)
{
    struct infer_estimate e[2];
    assert(plan == b->plan);
    int rc = split_estimate(b, state, e);
    if (rc == 0)
        *ret = split_sum(e);
    return rc;
}

/* ---- a model's life -------------------------------------------------------------------------- */

static void split_model_close(struct infer_backend_model *m)
{
    if (m == NULL)
        return;
    const struct infer_backend *b = m->backend;
    for (uint32_t i = 0; i < 2; i++)
        if (m->models[i] != NULL)
            b->sides[i].api->model_close(m->models[i]);
    if (m->x != NULL)
        b->host->memory_give(b->host->ctx, m->x, m->x_bytes);
    free(m);
}

static int open_sides(struct infer_backend_model *m, const struct infer_state_config *state)
{
    const struct infer_backend *b = m->backend;
    struct infer_estimate e[2];
    int rc = split_estimate(m->backend, state, e);
    for (uint32_t i = 0; i < 2 && rc == 0; i++) {
        const struct split_side *side = &b->sides[i];
        struct infer_state_config own = state_of(i, state);
        rc = side->api->model_open(side->instance, &b->parts[i].backend, &own, &m->models[i]);
        if (rc < 0)
            return failed(b, i, rc);
    }
    m->page_bytes = rc == 0 ? e[0].page_bytes : 0;
    return rc;
}

static int split_model_open(struct infer_backend *b, const struct infer_plan *plan,
                            const struct infer_state_config *state,
                            struct infer_backend_model **ret)
{
    struct infer_backend_model *m = calloc(1, sizeof *m);
    assert(plan == b->plan);
    if (m != NULL) {
        m->backend = b;
        m->x_bytes = x_bytes(b, state);
        m->x = b->host->memory_take(b->host->ctx, m->x_bytes);
    }
    if (m == NULL || m->x == NULL) {
        free(m);
        snprintf(last_error, sizeof last_error, "no memory for what goes from one to the other");
        return -ENOMEM;
    }
    int rc = open_sides(m, state);
    if (rc < 0)
        split_model_close(m);
    else
        *ret = m;
    return rc;
}

static int split_tensor_write(struct infer_backend_model *m, uint32_t tensor, uint64_t first_row,
                              uint64_t n_rows, const void *rows)
{
    const struct infer_backend *b = m->backend;
    for (uint32_t i = 0; i < 2; i++) {
        uint32_t own = b->parts[i].tensor_of[tensor];
        if (own == INFER_TENSOR_NONE)
            continue;
        int rc = b->sides[i].api->tensor_write(m->models[i], own, first_row, n_rows, rows);
        if (rc < 0)
            return failed(b, i, rc);
    }
    return 0;
}

static int split_model_ready(struct infer_backend_model *m)
{
    const struct infer_backend *b = m->backend;
    for (uint32_t i = 0; i < 2; i++) {
        int rc = b->sides[i].api->model_ready(m->models[i]);
        if (rc < 0)
            return failed(b, i, rc);
    }
    return 0;
}

/* ---- steps and pages ------------------------------------------------------------------------- */

/* The first side's part of a step; what works by itself is waited for in split_collect(). */
static int split_submit(struct infer_backend_model *m, struct infer_batch *batch)
{
    const struct split_side *side = &m->backend->sides[0];
    m->first = *batch;
    m->first.n_outputs = 0;
    m->first.x = m->x;
    int rc = side->api->submit != NULL ? side->api->submit(m->models[0], &m->first)
                                       : side->api->run(m->models[0], &m->first);
    return rc < 0 ? failed(m->backend, 0, rc) : 0;
}

static int split_collect(struct infer_backend_model *m, struct infer_batch *batch)
{
    const struct infer_backend *b = m->backend;
    struct infer_batch second = *batch; /* the outputs are the caller's */
    second.x = m->x;
    int rc =
        b->sides[0].api->submit != NULL ? b->sides[0].api->collect(m->models[0], &m->first) : 0;
    if (rc < 0)
        return failed(b, 0, rc);
    rc = b->sides[1].api->run(m->models[1], &second);
    return rc < 0 ? failed(b, 1, rc) : rc;
}

static int split_run(struct infer_backend_model *m, struct infer_batch *batch)
{
    int rc = split_submit(m, batch);
    return rc < 0 ? rc : split_collect(m, batch);
}

static int split_page_copy(struct infer_backend_model *m, uint32_t to, uint32_t from)
{
    const struct infer_backend *b = m->backend;
    for (uint32_t i = 0; i < 2; i++) {
        int rc = b->sides[i].api->page_copy(m->models[i], to, from);
        if (rc < 0)
            return failed(b, i, rc);
    }
    return 0;
}

static int split_page_zero(struct infer_backend_model *m, uint32_t page)
{
    const struct infer_backend *b = m->backend;
    for (uint32_t i = 0; i < 2; i++) {
        int rc = b->sides[i].api->page_zero(m->models[i], page);
        if (rc < 0)
            return failed(b, i, rc);
    }
    return 0;
}

static int split_page_read(struct infer_backend_model *m, uint32_t page, void *ret_bytes)
{
    const struct infer_backend *b = m->backend;
    for (uint32_t i = 0; i < 2; i++) {
        uint8_t *to = (uint8_t *)ret_bytes + (i == 0 ? 0 : m->page_bytes);
        int rc = b->sides[i].api->page_read(m->models[i], page, to);
        if (rc < 0)
            return failed(b, i, rc);
    }
    return 0;
}

static int split_page_write(struct infer_backend_model *m, uint32_t page, const void *bytes)
{
    const struct infer_backend *b = m->backend;
    for (uint32_t i = 0; i < 2; i++) {
        const uint8_t *from = (const uint8_t *)bytes + (i == 0 ? 0 : m->page_bytes);
        int rc = b->sides[i].api->page_write(m->models[i], page, from);
        if (rc < 0)
            return failed(b, i, rc);
    }
    return 0;
}

static int split_page_shift(struct infer_backend_model *m, uint32_t page, int32_t delta)
{
    const struct infer_backend *b = m->backend;
    for (uint32_t i = 0; i < 2; i++) {
        int rc = b->sides[i].api->page_shift(m->models[i], page, delta);
        if (rc < 0)
            return failed(b, i, rc);
    }
    return 0;
}

const struct infer_backend_api split_api = {
    .abi = INFER_BACKEND_ABI,
    .bytes = sizeof(struct infer_backend_api),
    .name = "split",
    .version = "",
    .open = split_open,
    .close = split_close,
    .last_error = split_last_error,
    .describe = split_describe,
    .estimate = split_estimate_sum,
    .model_open = split_model_open,
    .tensor_write = split_tensor_write,
    .model_ready = split_model_ready,
    .model_close = split_model_close,
    .run = split_run,
    .page_copy = split_page_copy,
    .page_zero = split_page_zero,
    .page_read = split_page_read,
    .page_write = split_page_write,
    .page_shift = split_page_shift,
    .submit = split_submit,
    .collect = split_collect,
    .max_under_way = 1,
};
