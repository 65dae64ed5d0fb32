/* loader.c: see loader.h.
 *
 * The rule for sequence state. What is wanted is `parallel` sequences of the full context. Unless
 * --state-memory says otherwise it may take a quarter of the memory that is left beside weights and
 * scratch: state is address space until it is used, but a promise of pages that are not there would
 * end in the kernel's out-of-memory killer. One sequence of STATE_TOKENS_MIN tokens must fit. */
#include "loader.h"

#include "base/log.h"
#include "base/siphash.h"
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

static int backend_failed(const struct backend *b, int rc, const char *what, struct report *report)
{
    int code = rc == -ENOTSUP  ? INFER_E_MODEL_UNSUPPORTED
               : rc == -ENOMEM ? INFER_E_MODEL_TOO_LARGE
                               : INFER_E_BACKEND;
    return report_fail(report, code, "the %s backend cannot %s: %s", b->api->name, what,
                       b->api->last_error(b->instance));
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

/* When it does not fit, MODEL_TOO_LARGE and the least state. */
static int size_state(const struct plan *plan, const struct backend *backend,
                      const struct loader_options *o, struct infer_state_config *ret_state,
                      struct infer_estimate *ret_estimate, struct report *report)
{
    uint32_t least = least_pages(plan, o);
    struct infer_state_config state = {.page_tokens = PAGE_TOKENS,
                                       .n_pages = 1,
                                       .k_type = o->k_type,
                                       .v_type = o->v_type,
                                       .max_rows = INFER_STEP_ROWS_MAX,
                                       .max_seqs = INFER_STEP_SEQS_MAX,
                                       .max_outputs = INFER_STEP_ROWS_MAX};
    struct infer_estimate e;
    int rc = backend->api->estimate(backend->instance, &plan->backend, &state, &e);
    if (rc < 0)
        return backend_failed(backend, rc, "run this model", report);

    uint64_t fixed = e.weights_bytes + e.scratch_bytes, have = o->memory_available;
    uint64_t pages = least;
    rc = fixed + least * e.page_bytes > have ? too_large(&e, least, have, report) : 0;
    if (rc == 0) {
        uint64_t room = o->state_memory != 0 ? o->state_memory : (have - fixed) / STATE_SHARE;
        if (room > have - fixed)
            room = have - fixed;
        pages = room / (e.page_bytes ? e.page_bytes : 1);
        uint64_t most = (uint64_t)pages_of(plan, o) * o->parallel;
        if (o->state_memory == 0 && pages > most)
            pages = most;
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
    return size_state(plan, backend, options, ret_state, ret_estimate, report);
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
              "%s%s, %llu reads, %llu again), %.0f ms waiting for them, %.0f ms in the backend",
              name, MIB(s->bytes), MIB(s->bytes_per_s), MIB(s->direct_bytes),
              MIB(s->buffered_bytes), s->uring ? "io_uring" : "pread",
              s->registered ? " into registered buffers" : "", (unsigned long long)s->n_reads,
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
                          const struct backend *backend, const struct loader_options *options,
                          struct report *report)
{
    uint32_t n = m->plan->backend.n_tensors;
    struct stream_extent *extents = calloc(n + 1u, sizeof *extents);
    struct place *places = calloc(n + 1u, sizeof *places);
    struct filling filling = {m, options};
    struct stream_sink sink = {&filling, sink_rows, sink_progress};
    struct stream_stats stats = {0};
    struct report read_report = {0};
    int rc = -ENOMEM;
    if (extents == NULL || places == NULL) {
        report_fail(&read_report, INFER_E_OUT_OF_MEMORY, "no memory for the list of tensors");
    } else {
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
    return rc < 0 ? backend_failed(backend, rc, "take the weights", report) : 0;
}

/* ---- the whole ------------------------------------------------------------------------------- */

struct load {
    const struct backend *backend; /* that it was sized for last */
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

static void place_on(struct load *load, const struct backend *b)
{
    struct engine_model *m = &load->model;
    struct infer_device device = {0};
    load->backend = b;
    m->api = b->api;
    m->backend = b->instance;
    b->api->describe(b->instance, &device);
    snprintf(m->backend_name, sizeof m->backend_name, "%s: %.50s", b->api->name, device.name);
}

int loader_size(struct load *load, const struct backend *backend, uint64_t memory_available,
                struct loader_need *ret, struct report *report)
{
    struct engine_model *m = &load->model;
    struct loader_need need = {.vocabulary = vocabulary_bytes(m),
                               .file_bytes = m->plan->file_bytes,
                               .page_tokens = PAGE_TOKENS};
    load->options.memory_available = memory_available;
    place_on(load, backend);
    int rc = size_state(m->plan, backend, &load->options, &m->state, &m->memory, report);
    if (rc < 0 && rc != -INFER_E_MODEL_TOO_LARGE)
        return fail(load, rc, report);
    need.weights = m->memory.weights_bytes;
    need.scratch = m->memory.scratch_bytes;
    need.n_pages = m->state.n_pages;
    need.on_backend = need.weights + need.scratch + m->memory.page_bytes * m->state.n_pages;
    need.state = m->memory.page_bytes * m->state.n_pages + ledger_bytes(m->state.n_pages);
    need.least =
        need.weights + need.scratch + m->memory.page_bytes * least_pages(m->plan, &load->options);
    m->n_context = min_u32((uint64_t)m->state.n_pages * m->state.page_tokens,
                           wanted_context(m->plan, &load->options));
    need.n_context = m->n_context;
    uint64_t fixed = need.weights + need.scratch;
    uint64_t room = memory_available > fixed ? memory_available - fixed : 0;
    if (load->options.state_memory > room)
        need.missing = load->options.state_memory - room;
    *ret = need;
    return rc < 0 ? fail(load, rc, report) : 0;
}

static int open_on_backend(const struct gguf *g, struct engine_model *m,
                           const struct backend *backend, const struct loader_options *options,
                           struct report *report)
{
    int rc = backend->api->model_open(backend->instance, &m->plan->backend, &m->state, &m->weights);
    if (rc < 0)
        return backend_failed(backend, rc, "open the model", report);
    rc = stream_weights(g, m, backend, options, report);
    if (rc < 0)
        return rc;
    rc = backend->api->model_ready(m->weights);
    if (rc < 0)
        return backend_failed(backend, rc, "make the model ready", report);
    if (engine_model_init(m) < 0)
        return report_fail(report, INFER_E_OUT_OF_MEMORY, "no memory for the page ledger");
    return 0;
}

int loader_fill(struct load *load, struct engine_model *ret, struct report *report)
{
    *ret = load->model; /* the page ledger keeps its address */
    load->model = (struct engine_model){0};
    memory_set_owner(load->options.owner);
    int rc = open_on_backend(load->gguf, ret, load->backend, &load->options, report);
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
