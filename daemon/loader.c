/* loader.c: see loader.h.
 *
 * The rule for sequence state. What is wanted is `parallel` sequences of the full context. Unless
 * --state-memory says otherwise it may take a quarter of the memory that is left beside weights and
 * scratch: state is address space until it is used, but a promise of pages that are not there would
 * end in the kernel's out-of-memory killer. One sequence of STATE_TOKENS_MIN tokens must fit. */
#include "loader.h"

#include "base/log.h"
#include "metrics.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#define PAGE_TOKENS      16u
#define STATE_TOKENS_MIN 512u
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

int loader_estimate(const struct plan *plan, const struct backend *backend,
                    const struct loader_options *o, struct infer_state_config *ret_state,
                    struct infer_estimate *ret_estimate, struct report *report)
{
    uint32_t wanted = wanted_context(plan, o);
    uint32_t per_sequence = (wanted + PAGE_TOKENS - 1) / PAGE_TOKENS;
    uint32_t least =
        o->n_context != 0 ? per_sequence : min_u32(per_sequence, STATE_TOKENS_MIN / PAGE_TOKENS);
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

    uint64_t fixed = e.weights_bytes + e.scratch_bytes;
    uint64_t need = fixed + least * e.page_bytes;
    uint64_t have = o->memory_available;
    if (need > have)
        return report_fail(
            report, INFER_E_MODEL_TOO_LARGE,
            "it needs %.0f MiB (weights %.0f, scratch %.0f, state of %u tokens %.0f) "
            "and %.0f MiB of memory are available: %.0f MiB are missing",
            MIB(need), MIB(e.weights_bytes), MIB(e.scratch_bytes), least * PAGE_TOKENS,
            MIB(least * e.page_bytes), MIB(have), MIB(need - have));
    uint64_t room = o->state_memory != 0 ? o->state_memory : (have - fixed) / STATE_SHARE;
    if (room > have - fixed)
        room = have - fixed;
    uint64_t pages = room / (e.page_bytes ? e.page_bytes : 1);
    uint64_t most = (uint64_t)per_sequence * o->parallel;
    if (o->state_memory == 0 && pages > most)
        pages = most;
    if (pages < least)
        pages = least;
    state.n_pages = min_u32(pages, UINT32_MAX / PAGE_TOKENS);
    *ret_state = state;
    *ret_estimate = e;
    return 0;
}

/* ---- weights --------------------------------------------------------------------------------- */

struct load {
    struct engine_model *model;
    const struct loader_options *options;
};

static int sink_rows(void *ctx, uint32_t tensor, uint64_t first_row, uint64_t n_rows,
                     const void *data)
{
    const struct engine_model *m = ((struct load *)ctx)->model;
    return m->api->tensor_write(m->weights, tensor, first_row, n_rows, data);
}

static void sink_progress(void *ctx, uint64_t done_bytes, uint64_t total_bytes)
{
    struct load *load = ctx;
    if (load->options->progress != NULL)
        load->options->progress(load->options->progress_ctx, done_bytes, total_bytes);
}

/* The tensors in the order in which layers run, so that the first are there first; those of one
 * layer in the file's order, so that a read takes many. A tensor belongs to the first operation
 * that uses it; a layer begins with its QKV. */
struct place {
    struct stream_extent extent;
    uint32_t part, layer;
};

static void use(struct place *places, uint32_t tensor, uint32_t layer)
{
    if (tensor != INFER_TENSOR_NONE && places[tensor].layer == UINT32_MAX)
        places[tensor].layer = layer;
}

static void use_tensors(struct place *places, const struct infer_op *op, uint32_t layer)
{
    switch (op->kind) {
    case INFER_OP_EMBED:
        use(places, op->as.embed.table, layer);
        break;
    case INFER_OP_QKV:
        use(places, op->norm, layer);
        use(places, op->as.qkv.wq, layer);
        use(places, op->as.qkv.wk, layer);
        use(places, op->as.qkv.wv, layer);
        use(places, op->as.qkv.bq, layer);
        use(places, op->as.qkv.bk, layer);
        use(places, op->as.qkv.bv, layer);
        use(places, op->as.qkv.q_norm, layer);
        use(places, op->as.qkv.k_norm, layer);
        break;
    case INFER_OP_PROJECT:
        use(places, op->as.project.w, layer);
        use(places, op->as.project.b, layer);
        break;
    case INFER_OP_FFN_GATED:
        use(places, op->norm, layer);
        use(places, op->as.ffn.gate, layer);
        use(places, op->as.ffn.up, layer);
        break;
    case INFER_OP_HEAD:
        use(places, op->norm, layer);
        use(places, op->as.head.w, layer);
        break;
    default:
        break;
    }
}

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
        const struct infer_op *op = &plan->backend.ops[i];
        layer += op->kind == INFER_OP_QKV || op->kind == INFER_OP_HEAD;
        use_tensors(places, op, layer);
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
    struct load load = {m, options};
    struct stream_sink sink = {&load, sink_rows, sink_progress};
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
    return rc < 0 ? backend_failed(backend, rc, "take the weights", report) : 0;
}

/* ---- the whole ------------------------------------------------------------------------------- */

static int open_on_backend(const struct gguf *g, struct engine_model *m,
                           const struct backend *backend, const struct loader_options *options,
                           struct report *report)
{
    int rc = loader_estimate(m->plan, backend, options, &m->state, &m->memory, report);
    if (rc < 0)
        return rc;
    m->n_context = min_u32((uint64_t)m->state.n_pages * m->state.page_tokens,
                           wanted_context(m->plan, options));
    rc = backend->api->model_open(backend->instance, &m->plan->backend, &m->state, &m->weights);
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

/* A sentence that comes from a room which does not know the file gets its name. */
static void name_file(const char *path, struct report *report)
{
    const char *slash = strrchr(path, '/');
    const char *base = slash != NULL ? slash + 1 : path;
    struct report copy = *report;
    if (strncmp(copy.text, path, strlen(path)) != 0 && strncmp(copy.text, base, strlen(base)) != 0)
        report_fail(report, copy.code, "%.200s: %.300s", path, copy.text);
}

int loader_load(const char *name, const char *path, const struct backend *backend,
                const struct loader_options *options, struct engine_model *ret,
                struct report *report)
{
    struct gguf *g;
    int rc = gguf_open(path, &g, report);
    if (rc < 0)
        return rc;
    struct engine_model *m = ret; /* the page ledger keeps its address */
    *m = (struct engine_model){.api = backend->api, .backend = backend->instance};
    struct infer_device device;
    backend->api->describe(backend->instance, &device);
    if (getrandom(m->page_key, sizeof m->page_key, 0) != sizeof m->page_key)
        rc = report_fail(report, INFER_E_INTERNAL, "the system gives no random numbers");
    snprintf(m->name, sizeof m->name, "%s", name);
    snprintf(m->backend_name, sizeof m->backend_name, "%s: %.50s", backend->api->name, device.name);

    if (rc == 0)
        rc = plan_new(g, &m->plan, report);
    if (rc == 0)
        rc = tokenizer_new(g, &m->tokenizer, report);
    if (rc == 0 && chat_template_new(g, &m->chat, &m->chat_report) < 0)
        m->chat = NULL; /* only requests with messages need it; they get the report */
    if (rc == 0)
        rc = open_on_backend(g, m, backend, options, report);
    gguf_free(g);
    if (rc < 0) {
        engine_model_done(m);
        name_file(path, report);
        return rc;
    }
    return 0;
}
