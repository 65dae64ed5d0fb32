/* loader.c: see loader.h.
 *
 * The rule for sequence state. What is wanted is `parallel` sequences of the full context. Unless
 * --state-memory says otherwise it may take a quarter of the memory that is left beside weights and
 * scratch: state is address space until it is used, but a promise of pages that are not there would
 * end in the kernel's out-of-memory killer. One sequence of STATE_TOKENS_MIN tokens must fit.
 *
 * Of a model on two backends the first, a device, gets as many first layers as leave room there for
 * what is wanted, or, where no option asked for so much, for a share of its memory; if not even one
 * layer does, as many as fit with one short sequence. What is free then takes more state. */
#include "loader.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/siphash.h"
#include "engine/split.h"
#include "memory.h"
#include "metrics.h"
#include "model/cut.h"

#include <errno.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>

#define PAGE_TOKENS      16u
#define STATE_TOKENS_MIN 512u
#define HEAD_READ_BYTES  (1u << 20)
#define HEAD_READ_DEPTH  4u
#define STATE_SHARE      4u /* of what is left: one part in so many */

#define MIB(bytes) ((double)(bytes) / 1048576.0)

static double ms_since(uint64_t us)
{
    return (double)(clock_us() - us) / 1e3;
}

static int backend_failed(const struct infer_backend_api *api, struct infer_backend *backend,
                          int rc, const char *what, struct report *report)
{
    int code = rc == -ENOTSUP  ? INFER_E_MODEL_UNSUPPORTED
               : rc == -ENOMEM ? INFER_E_MODEL_TOO_LARGE
               : rc == -ENODEV ? INFER_E_BACKEND_LOST
                               : INFER_E_BACKEND;
    return report_fail(report, code, "the %s backend cannot %s: %s", api->name, what,
                       api->last_error(backend));
}

static uint32_t min_u32(uint64_t a, uint64_t b)
{
    return (uint32_t)(a < b ? a : b);
}

/* The longest sequence that is asked for: never longer than what the model was made for. */
static uint32_t wanted_context(const struct plan *plan, const struct loader_options *o)
{
    uint32_t trained = plan->backend.shape.n_context;
    return o->n_context != 0 ? min_u32(o->n_context, trained) : trained;
}

static uint32_t pages_of(const struct plan *plan, const struct loader_options *o)
{
    return (wanted_context(plan, o) + PAGE_TOKENS - 1) / PAGE_TOKENS;
}

/* Of one sequence, without which it is not worth loading. */
static uint32_t least_pages(const struct plan *plan, const struct loader_options *o)
{
    uint32_t per_sequence = pages_of(plan, o);
    return o->n_context != 0 ? per_sequence : min_u32(per_sequence, STATE_TOKENS_MIN / PAGE_TOKENS);
}

static int too_large(const struct infer_estimate *e, uint32_t least, uint64_t have,
                     struct report *report)
{
    uint64_t need = e->weights_bytes + e->scratch_bytes + least * e->page_bytes;
    return report_fail(report, INFER_E_MODEL_TOO_LARGE,
                       "it needs %.0f MiB (weights %.0f, scratch %.0f, state of %u tokens %.0f) "
                       "and %.0f MiB of memory are available: %.0f MiB are missing",
                       MIB(need), MIB(e->weights_bytes), MIB(e->scratch_bytes), least * PAGE_TOKENS,
                       MIB(least * e->page_bytes), MIB(have), MIB(need - have));
}

/* Long steps are for devices with a memory of their own: on the others they would take so long that
 * nobody has them. */
static uint32_t step_rows(const struct backend *backend)
{
    struct infer_device device = {0};
    backend->api->describe(backend->instance, &device);
    return device.memory > 0 ? INFER_STEP_ROWS_MAX : INFER_STEP_ROWS;
}

static struct infer_state_config state_config(const struct loader_options *o, uint32_t rows)
{
    return (struct infer_state_config){.page_tokens = PAGE_TOKENS,
                                       .n_pages = 1,
                                       .k_type = o->k_type,
                                       .v_type = o->v_type,
                                       .max_rows = rows,
                                       .max_seqs = INFER_STEP_SEQS_MAX,
                                       .max_outputs = rows};
}

static uint64_t most_pages(const struct plan *plan, const struct loader_options *o)
{
    return (uint64_t)pages_of(plan, o) * o->parallel;
}

static uint64_t divide(uint64_t bytes, uint64_t page_bytes)
{
    return bytes / (page_bytes != 0 ? page_bytes : 1);
}

static uint64_t fixed_bytes(const struct infer_estimate *e)
{
    return e->weights_bytes + e->scratch_bytes;
}

/* When it does not fit, MODEL_TOO_LARGE and the least state. */
static int size_state(const struct plan *plan, const struct backend *backend, uint64_t have,
                      const struct loader_options *o, struct infer_state_config *ret_state,
                      struct infer_estimate *ret_estimate, struct report *report)
{
    uint32_t least = least_pages(plan, o);
    struct infer_state_config state = state_config(o, step_rows(backend));
    struct infer_estimate e;
    int rc = backend->api->estimate(backend->instance, &plan->backend, &state, &e);
    if (rc < 0)
        return backend_failed(backend->api, backend->instance, rc, "run this model", report);

    uint64_t fixed = fixed_bytes(&e), pages = least;
    rc = fixed + least * e.page_bytes > have ? too_large(&e, least, have, report) : 0;
    if (rc == 0) {
        uint64_t room = o->state_memory != 0 ? o->state_memory : (have - fixed) / STATE_SHARE;
        if (room > have - fixed)
            room = have - fixed;
        pages = divide(room, e.page_bytes);
        if (o->state_memory == 0 && pages > most_pages(plan, o))
            pages = most_pages(plan, o);
        if (pages < least)
            pages = least;
    }
    state.n_pages = min_u32(pages, UINT32_MAX / PAGE_TOKENS);
    *ret_state = state;
    *ret_estimate = e;
    return rc;
}

int loader_estimate(const struct plan *plan, const struct backend *backend,
                    const struct loader_options *options, struct infer_state_config *ret_state,
                    struct infer_estimate *ret_estimate, struct report *report)
{
    return size_state(plan, backend, UINT64_MAX, options, ret_state, ret_estimate, report);
}

/* ---- two backends ---------------------------------------------------------------------------- */

/* The model cut after n_first layers. */
struct cut {
    uint32_t n_first;
    struct infer_backend *split;
    struct infer_estimate e[2]; /* by side */
};

static void uncut(struct cut *cut)
{
    if (cut->split != NULL)
        split_api.close(cut->split);
    cut->split = NULL;
}

static int make_cut(const struct plan *plan, const struct loader_target *t,
                    const struct loader_options *o, uint32_t n_first, struct cut *ret,
                    struct report *report)
{
    const struct split_side sides[2] = {{t->backend->api, t->backend->instance},
                                        {t->rest->api, t->rest->instance}};
    const struct infer_state_config state = state_config(o, INFER_STEP_ROWS);
    uncut(ret);
    ret->n_first = n_first;
    int rc = split_new(&plan->backend, n_first, sides, t->rest->host, &ret->split);
    if (rc < 0)
        return report_fail(report, INFER_E_OUT_OF_MEMORY, "no memory for its two plans");
    rc = split_estimate(ret->split, &state, ret->e);
    return rc < 0 ? backend_failed(&split_api, ret->split, rc, "run this model", report) : 0;
}

/* Pages that are worth fewer layers in a device's memory: what was asked for, or what `parallel`
 * sequences take, but of that no more than a share of the memory. */
static uint64_t wanted_pages(const struct plan *plan, const struct loader_target *t,
                             const struct loader_options *o, const struct cut *cut)
{
    uint64_t least = least_pages(plan, o), pages = most_pages(plan, o);
    uint64_t share = divide(t->available / STATE_SHARE, cut->e[0].page_bytes);
    if (o->state_memory != 0)
        pages = divide(o->state_memory, cut->e[0].page_bytes + cut->e[1].page_bytes);
    else if (pages > share)
        pages = share;
    return pages > least ? pages : least;
}

/* Whether the first layers have room on their device with so many pages. */
static bool fits_first(const struct loader_target *t, const struct cut *cut, uint64_t pages)
{
    uint64_t bytes;
    return !__builtin_mul_overflow(pages, cut->e[0].page_bytes, &bytes) &&
           !__builtin_add_overflow(bytes, fixed_bytes(&cut->e[0]), &bytes) && bytes <= t->available;
}

/* The largest number of first layers that have room: with the pages that are wanted, else with the
 * least. More layers take more, so it is searched by halves. The cut that *ret ends with is that
 * one, or, when there is none, that of a single layer. */
static int choose_cut(const struct plan *plan, const struct loader_target *t,
                      const struct loader_options *o, struct cut *ret, struct report *report)
{
    uint32_t found = 0;
    for (int wanted = 1; wanted >= 0 && found == 0; wanted--) {
        uint32_t beyond = plan->backend.shape.n_layers; /* does not fit, or is all of it */
        while (beyond - found > 1) {
            uint32_t middle = found + (beyond - found) / 2;
            int rc = make_cut(plan, t, o, middle, ret, report);
            if (rc < 0)
                return rc;
            uint64_t pages = wanted ? wanted_pages(plan, t, o, ret) : least_pages(plan, o);
            if (fits_first(t, ret, pages))
                found = middle;
            else
                beyond = middle;
        }
    }
    return make_cut(plan, t, o, found > 0 ? found : 1, ret, report);
}

/* Of the pages that are asked for as many as there is room for on both sides: on the device in all
 * that its layers leave, on the host in a share of what is left, as ever. */
static uint64_t pages_of_cut(const struct plan *plan, const struct loader_target *t,
                             const struct loader_options *o, const struct cut *cut)
{
    uint64_t room = t->rest_available - fixed_bytes(&cut->e[1]);
    uint64_t pages = most_pages(plan, o), least = least_pages(plan, o);
    if (o->state_memory != 0)
        pages = divide(o->state_memory, cut->e[0].page_bytes + cut->e[1].page_bytes);
    else
        room /= STATE_SHARE;
    uint64_t first = divide(t->available - fixed_bytes(&cut->e[0]), cut->e[0].page_bytes);
    uint64_t rest = divide(room, cut->e[1].page_bytes);
    pages = pages < first ? pages : first;
    pages = pages < rest ? pages : rest;
    return pages > least ? pages : least;
}

static int side_too_large(const struct plan *plan, const struct loader_target *t,
                          const struct cut *cut, uint32_t side, uint64_t need,
                          struct report *report)
{
    const uint32_t n_layers = plan->backend.shape.n_layers;
    if (side == 0)
        return report_fail(report, INFER_E_MODEL_TOO_LARGE,
                           "%u of its %u layers need %.0f MiB and %.0f MiB of memory are available",
                           cut->n_first, n_layers, MIB(need), MIB(t->available));
    return report_fail(report, INFER_E_MODEL_TOO_LARGE,
                       "beside %u of its %u layers on a device the rest needs %.0f MiB of the "
                       "host's memory and %.0f MiB are available",
                       cut->n_first, n_layers, MIB(need), MIB(t->rest_available));
}

static int size_split(const struct plan *plan, const struct loader_target *t,
                      const struct loader_options *o, struct cut *cut, uint32_t *ret_pages,
                      struct report *report)
{
    const uint32_t least = least_pages(plan, o);
    int rc = t->n_first != 0 ? make_cut(plan, t, o, t->n_first, cut, report)
                             : choose_cut(plan, t, o, cut, report);
    for (uint32_t i = 0; i < 2 && rc == 0; i++) {
        uint64_t need = fixed_bytes(&cut->e[i]) + least * cut->e[i].page_bytes;
        if (need > (i == 0 ? t->available : t->rest_available))
            rc = side_too_large(plan, t, cut, i, need, report);
    }
    *ret_pages = rc == 0 ? min_u32(pages_of_cut(plan, t, o, cut), UINT32_MAX / PAGE_TOKENS) : least;
    return rc;
}

/* ---- weights --------------------------------------------------------------------------------- */

struct filling {
    struct engine_model *model;
    const struct loader_options *options;
};

static int sink_rows(void *ctx, uint32_t tensor, uint64_t first_row, uint64_t n_rows,
                     const void *data)
{
    const struct filling *f = ctx;
    const struct engine_model *m = f->model;
    if (f->options->cancelled != NULL && f->options->cancelled(f->options->progress_ctx))
        return -ECANCELED;
    return m->api->tensor_write(m->weights, tensor, first_row, n_rows, data);
}

static int sink_hold(void *ctx, void *memory, size_t bytes)
{
    const struct engine_model *m = ((const struct filling *)ctx)->model;
    return m->api->rows_pin(m->weights, memory, bytes);
}

static int sink_wait(void *ctx, uint64_t n)
{
    const struct engine_model *m = ((const struct filling *)ctx)->model;
    return m->api->rows_wait(m->weights, n);
}

static void sink_let_go(void *ctx)
{
    const struct engine_model *m = ((const struct filling *)ctx)->model;
    m->api->rows_unpin(m->weights);
}

static void sink_progress(void *ctx, uint64_t done_bytes, uint64_t total_bytes)
{
    const struct filling *f = ctx;
    if (f->options->progress != NULL)
        f->options->progress(f->options->progress_ctx, done_bytes, total_bytes);
}

/* The tensors in the order in which layers run, so that the first are there first; those of one
 * layer in the file's order, so that a read takes many. A tensor belongs to the first operation
 * that uses it; a layer begins with its QKV. */
struct place {
    struct stream_extent extent;
    uint32_t part, layer;
};

static int compare_places(const void *a, const void *b)
{
    const struct place *x = a, *y = b;
    if (x->layer != y->layer)
        return x->layer < y->layer ? -1 : 1;
    if (x->part != y->part)
        return x->part < y->part ? -1 : 1;
    return (x->extent.offset > y->extent.offset) - (x->extent.offset < y->extent.offset);
}

static void list_extents(const struct gguf *g, const struct plan *plan, struct place *places,
                         struct stream_extent *extents)
{
    uint32_t n = plan->backend.n_tensors, layer = 0;
    for (uint32_t i = 0; i < n; i++) {
        const struct gguf_tensor *t = gguf_tensor(g, plan->gguf_tensor[i]);
        places[i] = (struct place){.extent = {.fd = gguf_part_fd(g, t->part),
                                              .path = gguf_part_path(g, t->part),
                                              .name = plan->backend.tensors[i].name,
                                              .offset = t->offset,
                                              .bytes = t->bytes,
                                              .row_bytes = t->tensor.row_bytes,
                                              .tensor = i},
                                   .part = t->part,
                                   .layer = UINT32_MAX};
    }
    for (uint32_t i = 0; i < plan->backend.n_ops; i++) {
        struct infer_op op = plan->backend.ops[i];
        uint32_t *named[PLAN_OP_TENSORS];
        layer += op.kind == INFER_OP_QKV || op.kind == INFER_OP_HEAD;
        for (uint32_t k = plan_op_tensors(&op, named); k > 0; k--)
            if (*named[k - 1] != INFER_TENSOR_NONE && places[*named[k - 1]].layer == UINT32_MAX)
                places[*named[k - 1]].layer = layer;
    }
    qsort(places, n, sizeof *places, compare_places);
    for (uint32_t i = 0; i < n; i++)
        extents[i] = places[i].extent;
}

static void log_stats(const char *name, const struct stream_stats *s)
{
    if (s->note[0] != '\0')
        log_info("%s: %s", name, s->note);
    log_debug("%s: read %.1f MiB at %.0f MiB/s (%.0f MiB direct, %.0f MiB through the page cache, "
              "%s%s%s, %llu reads, %llu again), %.0f ms waiting for them, %.0f ms in the backend",
              name, MIB(s->bytes), MIB(s->bytes_per_s), MIB(s->direct_bytes),
              MIB(s->buffered_bytes), s->uring ? "io_uring" : "pread",
              s->registered ? " into registered buffers" : "",
              s->held ? " that the device reads" : "", (unsigned long long)s->n_reads,
              (unsigned long long)s->n_retries, (double)s->wait_us / 1e3, (double)s->sink_us / 1e3);
}

static void count_stats(struct metrics_loads *to, const struct stream_stats *s)
{
    if (to == NULL)
        return;
    atomic_fetch_add_explicit(&to->direct_bytes, s->direct_bytes, memory_order_relaxed);
    atomic_fetch_add_explicit(&to->buffered_bytes, s->buffered_bytes, memory_order_relaxed);
    atomic_fetch_add_explicit(&to->n_reads, s->n_reads, memory_order_relaxed);
    atomic_fetch_add_explicit(&to->n_retries, s->n_retries, memory_order_relaxed);
    atomic_fetch_add_explicit(&to->took_us, s->took_us, memory_order_relaxed);
}

static int stream_weights(const struct gguf *g, struct engine_model *m,
                          const struct loader_options *options, struct report *report)
{
    uint32_t n = m->plan->backend.n_tensors;
    struct stream_extent *extents = calloc(n + 1u, sizeof *extents);
    struct place *places = calloc(n + 1u, sizeof *places);
    struct filling filling = {m, options};
    struct stream_sink sink = {.ctx = &filling, .rows = sink_rows, .progress = sink_progress};
    struct stream_stats stats = {0};
    struct report read_report = {0};
    int rc = -ENOMEM;
    if (extents == NULL || places == NULL) {
        report_fail(&read_report, INFER_E_OUT_OF_MEMORY, "no memory for the list of tensors");
    } else {
        if (m->api->rows_pin != NULL) { /* its device copies from the read buffers by itself */
            sink.hold = sink_hold;
            sink.wait = sink_wait;
            sink.let_go = sink_let_go;
        }
        list_extents(g, m->plan, places, extents);
        rc = stream_read(extents, n, &sink, &options->stream, &stats, &read_report);
        log_stats(m->name, &stats);
        count_stats(options->loads, &stats);
    }
    free(extents);
    free(places);
    if (rc < 0 && read_report.code != 0) {
        *report = read_report;
        return -read_report.code;
    }
    if (rc == -ECANCELED)
        return report_fail(report, INFER_E_CANCELLED, "loading it was cancelled");
    return rc < 0 ? backend_failed(m->api, m->backend, rc, "take the weights", report) : 0;
}

/* ---- the whole ------------------------------------------------------------------------------- */

struct load {
    struct loader_options options;
    char *path;
    struct gguf *gguf;
    struct engine_model model; /* plan, tokenizer, template; moves to its place in loader_fill() */
};

/* A sentence that comes from a room which does not know the file gets its name. */
static void name_file(const char *path, struct report *report)
{
    const char *slash = strrchr(path, '/');
    const char *base = slash != NULL ? slash + 1 : path;
    struct report copy = *report;
    if (strncmp(copy.text, path, strlen(path)) != 0 && strncmp(copy.text, base, strlen(base)) != 0)
        report_fail(report, copy.code, "%.200s: %.300s", path, copy.text);
}

static int fail(const struct load *load, int rc, struct report *report)
{
    name_file(load->path, report);
    return rc;
}

static int make_parts(struct load *load, const char *name, struct report *report)
{
    struct engine_model *m = &load->model;
    if (getrandom(m->page_key, sizeof m->page_key, 0) != sizeof m->page_key)
        return report_fail(report, INFER_E_INTERNAL, "the system gives no random numbers");
    snprintf(m->name, sizeof m->name, "%s", name);
    int rc = plan_new(load->gguf, &m->plan, report);
    if (rc == 0)
        rc = tokenizer_new(load->gguf, &m->tokenizer, report);
    if (rc == 0 && chat_template_new(load->gguf, &m->chat, &m->chat_report) < 0)
        m->chat = NULL; /* only requests with messages need it; they get the report */
    return rc;
}

/* The head of a file that somebody else has opened may be on a disk that never answers: it is read
 * as the weights are, with the same patience. */
struct copying {
    uint8_t *to;
    size_t done;
};

static int copy_rows(void *ctx, uint32_t tensor, uint64_t first_row, uint64_t n_rows,
                     const void *data)
{
    struct copying *c = ctx;
    (void)tensor;
    (void)first_row;
    memcpy(c->to + c->done, data, n_rows);
    c->done += n_rows;
    return 0;
}

static ssize_t read_head(void *ctx, int fd, void *to, size_t bytes, uint64_t offset)
{
    const struct load *load = ctx;
    struct stream_options options = load->options.stream;
    struct copying copying = {.to = to};
    struct stream_sink sink = {.ctx = &copying, .rows = copy_rows};
    struct stream_extent extent = {
        .fd = fd, .path = load->path, .offset = offset, .bytes = bytes, .row_bytes = 1};
    options.read_bytes = HEAD_READ_BYTES;
    options.depth = HEAD_READ_DEPTH;
    int rc = stream_read(&extent, 1, &sink, &options, NULL, NULL);
    return rc < 0 ? -EIO : (ssize_t)copying.done;
}

int loader_open(const char *name, const struct loader_source *source,
                const struct loader_options *options, struct load **ret, struct report *report)
{
    struct load *load = calloc(1, sizeof *load);
    char *path = strdup(source->path);
    if (load == NULL || path == NULL) {
        free(load);
        free(path);
        return report_fail(report, INFER_E_OUT_OF_MEMORY, "no memory to load a model");
    }
    uint64_t from = clock_us();
    *load = (struct load){.options = *options, .path = path};
    struct gguf_reader reader = {read_head, load};
    int rc = source->n_files > 0 ? gguf_open_files(path, source->files, source->n_files, &reader,
                                                   &load->gguf, report)
                                 : gguf_open(path, &load->gguf, report);
    if (rc == 0)
        rc = make_parts(load, name, report);
    if (rc < 0) {
        rc = fail(load, rc, report);
        loader_free(load);
        return rc;
    }
    log_debug("%s: %.0f ms for the file's head, plan and vocabulary", name, ms_since(from));
    *ret = load;
    return 0;
}

void loader_free(struct load *load)
{
    if (load == NULL)
        return;
    gguf_free(load->gguf);
    engine_model_done(&load->model);
    free(load->path);
    free(load);
}

uint64_t loader_identity(const struct load *load)
{
    static const uint8_t key[16];
    uint64_t words[4], sum = 1;
    for (uint32_t i = 0; i < gguf_n_parts(load->gguf); i++) {
        struct stat st;
        if (fstat(gguf_part_fd(load->gguf, i), &st) < 0)
            return 0;
        words[0] = (uint64_t)st.st_dev;
        words[1] = (uint64_t)st.st_ino;
        words[2] = (uint64_t)st.st_size ^ (uint64_t)st.st_mtim.tv_nsec << 32;
        words[3] = sum ^ (uint64_t)st.st_mtim.tv_sec;
        sum = siphash(key, words, sizeof words);
    }
    return sum;
}

static uint64_t vocabulary_bytes(const struct engine_model *m)
{
    return plan_bytes(m->plan) + tokenizer_bytes(m->tokenizer) + chat_template_bytes(m->chat);
}

uint64_t loader_vocabulary_bytes(const struct load *load)
{
    return load != NULL ? vocabulary_bytes(&load->model) : 0;
}

static uint64_t ledger_bytes(uint32_t n_pages)
{
    struct kv_config pages = {.n_pages = n_pages, .page_tokens = PAGE_TOKENS};
    return kv_pool_bytes(&pages);
}

/* The model is that backend's from now on. */
static void place_on(struct engine_model *m, const struct backend *b)
{
    struct infer_device device = {0};
    if (m->owns_backend)
        m->api->close(m->backend);
    m->owns_backend = false;
    m->n_first = 0;
    m->rest = (struct infer_estimate){0};
    m->api = b->api;
    m->backend = b->instance;
    b->api->describe(b->instance, &device);
    snprintf(m->backend_name, sizeof m->backend_name, "%s: %.50s", b->api->name, device.name);
}

/* Or the cut's. */
static void place_on_both(struct engine_model *m, const struct backend *first, struct cut *cut)
{
    const struct infer_estimate *e = cut->e;
    place_on(m, first);
    m->api = &split_api;
    m->backend = cut->split;
    m->owns_backend = true;
    m->n_first = cut->n_first;
    m->rest = e[1];
    m->memory = split_sum(e);
    cut->split = NULL;
}

static int place(struct load *load, const struct loader_target *t, struct report *report)
{
    struct engine_model *m = &load->model;
    struct cut cut = {0};
    uint32_t n_pages;
    if (t->rest == NULL) {
        place_on(m, t->backend);
        return size_state(m->plan, t->backend, t->available, &load->options, &m->state, &m->memory,
                          report);
    }
    int rc = size_split(m->plan, t, &load->options, &cut, &n_pages, report);
    if (rc == 0 || rc == -INFER_E_MODEL_TOO_LARGE) {
        place_on_both(m, t->backend, &cut);
        m->state = state_config(&load->options, INFER_STEP_ROWS);
        m->state.n_pages = n_pages;
    }
    uncut(&cut);
    return rc;
}

/* Bytes with so many pages on the first backend, or on the only one; and on the second. */
static uint64_t first_bytes(const struct engine_model *m, uint64_t n_pages)
{
    return fixed_bytes(&m->memory) - fixed_bytes(&m->rest) +
           (m->memory.page_bytes - m->rest.page_bytes) * n_pages;
}

static uint64_t rest_bytes(const struct engine_model *m, uint64_t n_pages)
{
    return fixed_bytes(&m->rest) + m->rest.page_bytes * n_pages;
}

int loader_size(struct load *load, const struct loader_target *target, struct loader_need *ret,
                struct report *report)
{
    struct engine_model *m = &load->model;
    const struct loader_options *o = &load->options;
    struct loader_need need = {.vocabulary = vocabulary_bytes(m),
                               .file_bytes = m->plan->file_bytes,
                               .page_tokens = PAGE_TOKENS,
                               .n_layers = m->plan->backend.shape.n_layers};
    int rc = place(load, target, report);
    if (rc < 0 && rc != -INFER_E_MODEL_TOO_LARGE)
        return fail(load, rc, report);
    const uint32_t n_pages = m->state.n_pages, least = least_pages(m->plan, o);
    need.weights = m->memory.weights_bytes;
    need.scratch = m->memory.scratch_bytes;
    need.n_pages = n_pages;
    need.n_first = m->n_first;
    need.on_backend = first_bytes(m, n_pages);
    need.on_rest = rest_bytes(m, n_pages);
    need.state = m->memory.page_bytes * n_pages + ledger_bytes(n_pages);
    need.least = first_bytes(m, least);
    need.least_rest = rest_bytes(m, least);
    m->n_context = min_u32((uint64_t)n_pages * PAGE_TOKENS, wanted_context(m->plan, o));
    need.n_context = m->n_context;
    if (o->state_memory > m->memory.page_bytes * (n_pages + UINT64_C(1)))
        need.missing = o->state_memory - m->memory.page_bytes * n_pages;
    *ret = need;
    return rc < 0 ? fail(load, rc, report) : 0;
}

static int open_on_backend(const struct gguf *g, struct engine_model *m,
                           const struct loader_options *options, struct report *report)
{
    uint64_t from = clock_us();
    int rc = m->api->model_open(m->backend, &m->plan->backend, &m->state, &m->weights);
    if (rc < 0)
        return backend_failed(m->api, m->backend, rc, "open the model", report);
    double open_ms = ms_since(from);
    rc = stream_weights(g, m, options, report);
    if (rc < 0)
        return rc;
    from = clock_us();
    rc = m->api->model_ready(m->weights);
    if (rc < 0)
        return backend_failed(m->api, m->backend, rc, "make the model ready", report);
    if (engine_model_init(m) < 0)
        return report_fail(report, INFER_E_OUT_OF_MEMORY, "no memory for the page ledger");
    log_debug("%s: %.0f ms to take memory before the weights, %.0f ms to make it ready after them",
              m->name, open_ms, ms_since(from));
    return 0;
}

int loader_fill(struct load *load, struct engine_model *ret, struct report *report)
{
    *ret = load->model; /* the page ledger keeps its address */
    load->model = (struct engine_model){0};
    memory_set_owner(load->options.owner);
    int rc = open_on_backend(load->gguf, ret, &load->options, report);
    if (rc < 0) {
        loader_close(ret, load->options.owner);
        rc = fail(load, rc, report);
    }
    memory_set_owner(MEMORY_NO_OWNER);
    return rc;
}

void loader_close(struct engine_model *model, uint32_t owner)
{
    memory_set_owner(owner);
    engine_model_done(model);
    memory_set_owner(MEMORY_NO_OWNER);
    malloc_trim(0);
}
