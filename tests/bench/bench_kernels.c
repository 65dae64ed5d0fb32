/* bench_kernels.c: how fast a backend runs, without a daemon: random weights in the shape of a
 * model, 512 rows of prefill and single rows of decode.
 *
 *   bench_kernels [--backend build/inferd-backend-cpu.so] [--shape unix|1b|7m] [--type q4_0|...]
 *                 [--threads N] [--options isa=avx2] [--depth N] [--tokens N] [--repeats N]
 *                 [--cache f16|q8_0|q4_0] [--sequences N]
 *
 * With --sequences, steps of one row for each of N sequences, every one with an output, from
 * position --depth on (64 if not given), as a daemon with N answers under way makes them.
 * Prints medians and the best tenth of the steps, and the bytes of weights that each decoded token
 * reads. Not a test: it asserts nothing. */
#include "bench/bench.h"
#include "bench/synthetic.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SEQUENCES_MAX 256u

struct bench {
    const char *path, *options;
    uint32_t threads, depth, tokens, repeats, type, head_type, cache_type, sequences;
    struct infer_shape shape;
    struct synthetic_plan made;
    const struct infer_backend_api *api;
    struct infer_backend_model *model;
    uint32_t *pages;
    uint64_t decode_bytes;
    struct synthetic random;
};

static void on_log(void *ctx, int level, const char *text)
{
    fprintf(stderr, "backend: %s\n", text);
}

static void fail(const char *what, int r)
{
    fprintf(stderr, "bench_kernels: %s (%d)\n", what, r);
    exit(1);
}

/* One random row: random codes, and a sane number wherever a half-precision scale may stand. */
static void random_row(struct bench *b, const struct infer_tensor *t, uint8_t *row)
{
    if (t->type == INFER_TYPE_F32) {
        for (uint64_t k = 0; k < t->ne[0]; k++)
            ((float *)(void *)row)[k] = 1;
        return;
    }
    for (uint64_t i = 0; i < t->row_bytes; i++)
        row[i] = (uint8_t)(synthetic_next(&b->random) >> 32);
    if (t->type == INFER_TYPE_F16 || t->type == INFER_TYPE_BF16) {
        for (uint64_t k = 0; k < t->ne[0]; k++) {
            float value = (float)(synthetic_next(&b->random) % 2001) / 1000.0f * 0.03f - 0.03f;
            ref_encode_row(t->type, &value, row + 2 * k, 1);
        }
        return;
    }
    uint32_t size = ref_block_bytes(t->type);
    uint16_t d = ref_f32_to_f16(1e-3f);
    for (uint64_t at = 0; at < t->row_bytes; at += size) {
        memcpy(row + at, &d, 2);
        memcpy(row + at + 2, &d, 2);
        memcpy(row + at + size - 2, &d, 2);
    }
}

static void load(struct bench *b, const struct infer_state_config *state)
{
    for (uint32_t i = 0; i < b->made.plan.n_tensors; i++) {
        const struct infer_tensor *t = &b->made.tensors[i];
        uint8_t *rows = malloc(t->row_bytes * 64);
        if (!rows)
            fail("out of memory", 0);
        for (uint64_t r = 0; r < 64 && r < t->n_rows; r++)
            random_row(b, t, rows + r * t->row_bytes);
        for (uint64_t r = 0; r < t->n_rows; r += 64)
            b->api->tensor_write(b->model, i, r, t->n_rows - r < 64 ? t->n_rows - r : 64, rows);
        free(rows);
        b->decode_bytes += t->row_bytes * t->n_rows;
    }
    b->api->model_ready(b->model);
}

/* n rows from position on; one greedy output at the last. */
static double step(struct bench *b, uint32_t position, uint32_t n)
{
    static int32_t tokens[INFER_STEP_ROWS_MAX];
    struct infer_sampling sampling;
    infer_sampling_default(&sampling);
    sampling.temperature = 0;
    for (uint32_t i = 0; i < n; i++)
        tokens[i] = (int32_t)(synthetic_next(&b->random) % b->shape.n_vocab);
    struct infer_batch_seq seq = {
        .n_rows = n, .position = position, .n_pages = (position + n + 15) / 16, .pages = b->pages};
    struct infer_batch_output output = {
        .row = n - 1, .sample = 1, .target = -1, .sampling = &sampling};
    struct infer_batch batch = {.n_rows = n,
                                .n_seqs = 1,
                                .n_outputs = 1,
                                .tokens = tokens,
                                .seqs = &seq,
                                .outputs = &output};
    double start = bench_now();
    int r = b->api->run(b->model, &batch);
    if (r < 0)
        fail("run", r);
    return bench_now() - start;
}

/* Pages of one of many sequences. */
static uint32_t pages_each(const struct bench *b)
{
    return (b->depth + b->tokens) / 16 + 1;
}

/* A row at `position` for each of many sequences; a greedy output at every one. */
static double step_many(struct bench *b, uint32_t position)
{
    static int32_t tokens[SEQUENCES_MAX];
    static struct infer_batch_seq seqs[SEQUENCES_MAX];
    static struct infer_batch_output outputs[SEQUENCES_MAX];
    struct infer_sampling sampling;
    infer_sampling_default(&sampling);
    sampling.temperature = 0;
    for (uint32_t i = 0; i < b->sequences; i++) {
        tokens[i] = (int32_t)(synthetic_next(&b->random) % b->shape.n_vocab);
        seqs[i] = (struct infer_batch_seq){.first_row = i,
                                           .n_rows = 1,
                                           .position = position,
                                           .n_pages = position / 16 + 1,
                                           .pages = b->pages + (size_t)pages_each(b) * i};
        outputs[i] =
            (struct infer_batch_output){.row = i, .sample = 1, .target = -1, .sampling = &sampling};
    }
    struct infer_batch batch = {.n_rows = b->sequences,
                                .n_seqs = b->sequences,
                                .n_outputs = b->sequences,
                                .tokens = tokens,
                                .seqs = seqs,
                                .outputs = outputs};
    double start = bench_now();
    int r = b->api->run(b->model, &batch);
    if (r < 0)
        fail("run", r);
    return bench_now() - start;
}

static void report(const char *what, double *seconds, uint32_t n, uint32_t rows, double bytes)
{
    double median = rows / bench_quantile(seconds, n, 0.5);
    double best = rows / bench_quantile(seconds, n, 0.1);
    printf("%-12s %8.1f tok/s, best tenth %8.1f", what, median, best);
    if (bytes > 0)
        printf("   %.1f, %.1f GB/s of weights", bytes * median * 1e-9, bytes * best * 1e-9);
    printf("\n");
}

static void measure(struct bench *b)
{
    double *prefill = calloc(b->repeats, sizeof *prefill);
    double *decode = calloc((size_t)b->repeats * b->tokens, sizeof *decode);
    uint32_t n = 0;
    if (!prefill || !decode || !b->repeats || !b->tokens)
        fail("nothing to measure", 0);
    for (uint32_t i = 0; i < b->repeats; i++) {
        prefill[i] = step(b, 0, 512);
        for (uint32_t at = 512; at < b->depth; at += 512)
            step(b, at, 512);
        uint32_t start = b->depth < 512 ? 0 : b->depth;
        for (uint32_t t = 0; t < b->tokens; t++)
            decode[n++] = step(b, start + t, 1);
    }
    report("prefill 512", prefill, b->repeats, 512, 0);
    report("decode", decode, n, 1, (double)b->decode_bytes);
    free(prefill);
    free(decode);
}

static void measure_many(struct bench *b)
{
    double *seconds = calloc((size_t)b->repeats * b->tokens, sizeof *seconds);
    char what[32];
    uint32_t n = 0;
    if (!seconds || !b->repeats || !b->tokens)
        fail("nothing to measure", 0);
    for (uint32_t i = 0; i < b->repeats; i++)
        for (uint32_t t = 0; t < b->tokens; t++)
            seconds[n++] = step_many(b, b->depth + t);
    snprintf(what, sizeof what, "decode %u", b->sequences);
    report(what, seconds, n, b->sequences, 0);
    free(seconds);
}

static uint32_t type_named(const char *name)
{
    uint32_t type = synthetic_type(name);
    if (type == UINT32_MAX)
        fail("unknown type", 0);
    return type;
}

static void take_shape(struct bench *b, const char *name)
{
    static const struct infer_shape unix46 = {12, 512, 1536, 16384, 8, 4, 64, 64, 4096, 1e-5f};
    static const struct infer_shape unix7 = {6, 256, 768, 8192, 4, 2, 64, 64, 4096, 1e-5f};
    static const struct infer_shape llama1 = {16, 2048, 8192, 128256, 32, 8, 64, 64, 4096, 1e-5f};
    if (!strcmp(name, "1b")) {
        b->shape = llama1;
        b->type = INFER_TYPE_Q4_0;
        b->head_type = INFER_TYPE_Q8_0;
    } else if (!strcmp(name, "7m")) {
        b->shape = unix7;
        b->type = b->head_type = INFER_TYPE_BF16;
    } else {
        b->shape = unix46;
        b->type = b->head_type = INFER_TYPE_Q6_K;
    }
}

/* The keys of a sequence's first 16 pages to other positions and back, one page at a time. */
static void measure_shift(struct bench *b)
{
    double start = bench_now();
    for (uint32_t i = 0; i < 64; i++)
        b->api->page_shift(b->model, b->pages[i % 16], i < 32 ? -16 : 16);
    printf("a page's keys moved in %.0f us\n", 1e6 * (bench_now() - start) / 64);
}

static void take_arguments(struct bench *b, int argc, char **argv)
{
    for (int i = 1; i + 1 < argc; i += 2) {
        const char *key = argv[i], *value = argv[i + 1];
        if (!strcmp(key, "--backend"))
            b->path = value;
        else if (!strcmp(key, "--shape"))
            take_shape(b, value);
        else if (!strcmp(key, "--type"))
            b->type = b->head_type = type_named(value);
        else if (!strcmp(key, "--head-type"))
            b->head_type = type_named(value);
        else if (!strcmp(key, "--cache"))
            b->cache_type = type_named(value);
        else if (!strcmp(key, "--threads"))
            b->threads = (uint32_t)atoi(value);
        else if (!strcmp(key, "--options"))
            b->options = value;
        else if (!strcmp(key, "--depth"))
            b->depth = (uint32_t)atoi(value);
        else if (!strcmp(key, "--tokens"))
            b->tokens = (uint32_t)atoi(value);
        else if (!strcmp(key, "--sequences"))
            b->sequences = (uint32_t)atoi(value);
        else if (!strcmp(key, "--repeats"))
            b->repeats = (uint32_t)atoi(value);
        else
            fail(key, 0);
    }
    if (b->sequences > SEQUENCES_MAX)
        fail("--sequences is too large", 0);
    if (b->sequences && !b->depth)
        b->depth = 64;
}

int main(int argc, char **argv)
{
    static struct bench b = {.path = "build/inferd-backend-cpu.so",
                             .options = "",
                             .threads = 2,
                             .tokens = 64,
                             .repeats = 5,
                             .cache_type = INFER_TYPE_F16};
    synthetic_init(&b.random);
    take_shape(&b, "unix");
    take_arguments(&b, argc, argv);
    void *so = dlopen(b.path, RTLD_NOW | RTLD_LOCAL);
    if (!so)
        fail(dlerror(), 0);
    infer_backend_entry entry = NULL;
    *(void **)&entry = dlsym(so, INFER_BACKEND_SYMBOL);
    if (!entry)
        fail("no backend", 0);
    b.api = entry();
    if (!synthetic_plan_init(&b.made, &b.shape, b.type, b.head_type, true))
        fail("rows of that type do not fit the shape", 0);

    uint32_t cpus[256];
    for (uint32_t i = 0; i < 256; i++)
        cpus[i] = i;
    struct infer_host host = {.abi = INFER_BACKEND_ABI,
                              .log = on_log,
                              .memory_take = synthetic_take,
                              .memory_give = synthetic_give,
                              .cpus = cpus,
                              .n_cpus = b.threads};
    struct infer_state_config state = {.page_tokens = 16,
                                       .n_pages = (b.depth + 512 + b.tokens) / 16 + 34,
                                       .k_type = b.cache_type,
                                       .v_type = b.cache_type,
                                       .max_rows = 512,
                                       .max_seqs = SEQUENCES_MAX,
                                       .max_outputs = SEQUENCES_MAX};
    if (b.sequences)
        state.n_pages = pages_each(&b) * b.sequences;
    b.pages = calloc(state.n_pages, sizeof *b.pages);
    for (uint32_t i = 0; b.pages && i < state.n_pages; i++)
        b.pages[i] = state.n_pages - 1 - i;
    struct infer_backend *backend;
    struct infer_device device;
    int r = b.api->open(&host, b.options, &backend);
    if (r < 0 || !b.pages)
        fail("open", r);
    r = b.api->model_open(backend, &b.made.plan, &state, &b.model);
    if (r < 0)
        fail(b.api->last_error(backend), r);
    b.api->describe(backend, &device);
    double start = bench_now();
    load(&b, &state);
    printf("%s; %s, head %s: %.1f MB, laid out at %.2f GB/s\n", device.name, ref_type_name(b.type),
           ref_type_name(b.head_type), 1e-6 * (double)b.decode_bytes,
           1e-9 * (double)b.decode_bytes / (bench_now() - start));
    if (b.sequences) {
        measure_many(&b);
    } else {
        measure(&b);
        measure_shift(&b);
    }
    b.api->model_close(b.model);
    b.api->close(backend);
    return 0;
}
