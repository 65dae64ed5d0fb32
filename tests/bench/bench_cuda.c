/* bench_cuda.c: how fast the CUDA backend runs, without a daemon: models of a known shape with
 * normally distributed weights, beside the bandwidth at which the device can be read.
 *
 *   bench_cuda [--backend build/inferd-backend-cuda.so] [--shape 8b|1b|tiny] [--type q4_0|q4_k|f16]
 *              [--head-type q6_k] [--cases decode,deep,batch,prefill] [--options profile=32]
 *              [--cache f16|q8_0|q4_0] [--steps N] [--repeats N] [--sequences N]
 *   bench_cuda --copy yes     how fast pinned memory is copied to the device: bytes per second
 *
 *   decode   one sequence at 128 rows
 *   deep     one sequence at 2,048 and 8,192
 *   batch    8, 32, 64 and 128 sequences at 128 to 256
 *   prefill  512 and 4,096 rows, as many a step as a step takes
 *
 * Prints a row per measure: tokens per second as median, tenth and ninth decile of the steps, and
 * for decoding the share R of the read bandwidth that the weights' bytes alone make: those of the
 * file, each matrix once but for the embedding table. --sequences: of batch that number alone. Not
 * a test: test_cuda.c is. */
#include "bench/bench.h"
#include "bench/synthetic.h"

#include "inferd/backend.h"
#include "ref/quant.h"

#include <dlfcn.h>
#include <string.h>

#define SEQUENCES_MAX 128u

/* bench_probe.cu, where there is nvcc: bytes per second of copying so many. */
double bench_probe_copy(size_t bytes, int repeats) __attribute__((weak));

struct bench {
    const char *path, *options, *cases, *shape_name;
    uint32_t type, head_type, cache_type, steps, repeats;
    uint32_t sequences; /* of batch; 0: several numbers, one after the other */
    struct infer_shape shape;
    struct synthetic_plan made;
    const struct infer_backend_api *api;
    struct infer_backend *backend;
    struct infer_backend_model *model;
    struct infer_state_config state;
    uint32_t *pages;
    double bandwidth; /* 0: not known */
    uint64_t weight_bytes;
    struct synthetic random;
};

static void on_log(void *ctx, int level, const char *text)
{
    printf("# %s\n", text);
    fflush(stdout);
}

static void fail(const char *what, int r)
{
    fprintf(stderr, "bench_cuda: %s (%d)\n", what, r);
    exit(1);
}

static void must(struct bench *b, int r, const char *what)
{
    if (r < 0) {
        fprintf(stderr, "bench_cuda: %s: %s\n", what, b->api->last_error(b->backend));
        exit(1);
    }
}

/* ---- weights --------------------------------------------------------------------------------- */

static void write_tensor(struct bench *b, uint32_t i, const uint8_t *pool)
{
    const struct infer_tensor *t = &b->made.tensors[i];
    uint64_t most = SYNTHETIC_POOL_BYTES / 2 / t->row_bytes;
    for (uint64_t row = 0, n; row < t->n_rows; row += n) {
        n = t->n_rows - row < most ? t->n_rows - row : most;
        const uint8_t *rows = synthetic_rows(&b->random, pool, t->type, n, t->row_bytes);
        must(b, b->api->tensor_write(b->model, i, row, n, rows), "load");
    }
}

static void load(struct bench *b)
{
    uint8_t *pools[64] = {0};
    float *ones = calloc(b->shape.n_embd, sizeof *ones);
    if (!ones)
        fail("out of memory", 0);
    for (uint32_t i = 0; i < b->shape.n_embd; i++)
        ones[i] = 1;
    double start = bench_now(), drawing = 0;
    for (uint32_t i = 0; i < b->made.plan.n_tensors; i++) {
        uint32_t type = b->made.tensors[i].type;
        if (type == INFER_TYPE_F32) {
            must(b, b->api->tensor_write(b->model, i, 0, 1, ones), "load");
            continue;
        }
        double before = bench_now();
        if (!pools[type] && !synthetic_can(type))
            fail("types are f16, q8_0, q4_0, q4_k and q6_k", 0);
        if (!pools[type])
            pools[type] = synthetic_pool(&b->random, type);
        drawing += bench_now() - before;
        write_tensor(b, i, pools[type]);
    }
    must(b, b->api->model_ready(b->model), "ready");
    double bytes =
        (double)(b->weight_bytes + b->made.tensors[0].row_bytes * b->made.tensors[0].n_rows);
    printf("# %.2f GB of weights loaded at %.1f GB/s\n", 1e-9 * bytes,
           1e-9 * bytes / (bench_now() - start - drawing));
    for (int i = 0; i < 64; i++)
        free(pools[i]);
    free(ones);
}

/* ---- steps ----------------------------------------------------------------------------------- */

static uint32_t pages_each(const struct bench *b, uint32_t n_seqs)
{
    return b->state.n_pages / n_seqs;
}

/* Rows [position, position + n) of each of n_seqs sequences, and a greedy token at the last of
 * each, which is the next step's. Returns seconds. */
static double step(struct bench *b, uint32_t n_seqs, uint32_t position, uint32_t n)
{
    static int32_t tokens[INFER_STEP_ROWS_MAX];
    static struct infer_batch_seq seqs[SEQUENCES_MAX];
    static struct infer_batch_output outputs[SEQUENCES_MAX];
    struct infer_sampling sampling;
    infer_sampling_default(&sampling);
    sampling.temperature = 0;
    for (uint32_t i = 0; i < n_seqs * n; i++)
        tokens[i] = (int32_t)(synthetic_next(&b->random) % b->shape.n_vocab);
    for (uint32_t i = 0; i < n_seqs; i++) {
        if (n == 1 && outputs[i].sample)
            tokens[i] = outputs[i].token;
        seqs[i] = (struct infer_batch_seq){.first_row = i * n,
                                           .n_rows = n,
                                           .position = position,
                                           .n_pages = pages_each(b, n_seqs),
                                           .pages = b->pages + (size_t)pages_each(b, n_seqs) * i};
        outputs[i] = (struct infer_batch_output){
            .row = i * n + n - 1, .sample = 1, .target = -1, .sampling = &sampling};
    }
    struct infer_batch batch = {.n_rows = n_seqs * n,
                                .n_seqs = n_seqs,
                                .n_outputs = n_seqs,
                                .tokens = tokens,
                                .seqs = seqs,
                                .outputs = outputs};
    double start = bench_now();
    must(b, b->api->run(b->model, &batch), "run");
    double seconds = bench_now() - start;
    for (uint32_t i = 0; i < n_seqs; i++)
        if (outputs[i].token < 0 || (uint32_t)outputs[i].token >= b->shape.n_vocab)
            fail("a token that is none", outputs[i].token);
    return seconds;
}

/* Fills n_seqs sequences up to `depth`, as many rows a step as there may be. */
static void fill(struct bench *b, uint32_t n_seqs, uint32_t depth)
{
    uint32_t most = INFER_STEP_ROWS_MAX / n_seqs;
    for (uint32_t at = 0; at < depth; at += most)
        step(b, n_seqs, at, depth - at < most ? depth - at : most);
}

/* Seconds of n steps of `tokens` tokens each. */
static void report(const struct bench *b, const char *what, double *seconds, uint32_t n,
                   uint32_t tokens, double bytes)
{
    double median = bench_quantile(seconds, n, 0.5);
    printf("%s %s, %-22s %9.1f tok/s  (%.1f .. %.1f)  %8.3f ms a step", b->shape_name,
           ref_type_name(b->type), what, tokens / median, tokens / bench_quantile(seconds, n, 0.9),
           tokens / bench_quantile(seconds, n, 0.1), 1e3 * median);
    if (b->bandwidth > 0 && bytes > 0)
        printf("  %.2f R", bytes / median / b->bandwidth);
    printf("\n");
    fflush(stdout);
}

static void decode(struct bench *b, uint32_t n_seqs, uint32_t depth, uint32_t n)
{
    double *seconds = calloc(n, sizeof *seconds);
    char what[48];
    if (!seconds || (depth + n + 15) / 16 + 1 > pages_each(b, n_seqs))
        fail("too few pages", 0);
    fill(b, n_seqs, depth);
    for (uint32_t i = 0; i < 4 && i < n; i++) /* captures */
        step(b, n_seqs, depth + i, 1);
    for (uint32_t i = 0; i < n; i++)
        seconds[i] = step(b, n_seqs, depth + i, 1);
    snprintf(what, sizeof what, "decode %u at %u", n_seqs, depth);
    report(b, what, seconds, n, n_seqs, (double)b->weight_bytes);
    free(seconds);
}

static void prefill(struct bench *b, uint32_t n)
{
    double *seconds = calloc(b->repeats, sizeof *seconds);
    char what[48];
    if (!seconds || n / 16 > b->state.n_pages)
        fail("too few pages", 0);
    fill(b, 1, n);
    for (uint32_t i = 0; i < b->repeats; i++)
        for (uint32_t at = 0; at < n; at += INFER_STEP_ROWS_MAX)
            seconds[i] +=
                step(b, 1, at, n - at < INFER_STEP_ROWS_MAX ? n - at : INFER_STEP_ROWS_MAX);
    snprintf(what, sizeof what, "prefill %u", n);
    report(b, what, seconds, b->repeats, n, 0);
    free(seconds);
}

static void measure(struct bench *b)
{
    const uint32_t context = b->shape.n_context;
    if (strstr(b->cases, "decode"))
        decode(b, 1, 128, b->steps);
    if (strstr(b->cases, "deep"))
        for (uint32_t depth = 2048; depth <= 8192 && depth + b->steps <= context; depth *= 4)
            decode(b, 1, depth, b->steps);
    if (strstr(b->cases, "batch") && b->sequences)
        decode(b, b->sequences, 128, 128);
    else if (strstr(b->cases, "batch"))
        for (uint32_t n = 8; n <= SEQUENCES_MAX; n *= n == 8 ? 4 : 2)
            decode(b, n, 128, 128);
    if (strstr(b->cases, "prefill"))
        for (uint32_t n = 512; n <= 4096 && n <= context; n *= 8)
            prefill(b, n);
}

/* ---- arguments ------------------------------------------------------------------------------- */

static uint32_t type_named(const char *name)
{
    uint32_t type = synthetic_type(name);
    if (type == UINT32_MAX)
        fail(name, 0);
    return type;
}

static void take_shape(struct bench *b, const char *name)
{
    b->shape_name = name;
    if (!synthetic_shape(name, &b->shape))
        fail("shapes are 8b, 1b and tiny", 0);
}

static void print_copy(void)
{
    double rate = bench_probe_copy ? bench_probe_copy((size_t)256 << 20, 10) : 0;
    if (rate <= 0)
        fail("built without CUDA, or no GPU", 0);
    printf("%.0f\n", rate);
    exit(0);
}

static void take_arguments(struct bench *b, int argc, char **argv)
{
    bool head = false;
    for (int i = 1; i + 1 < argc; i += 2) {
        const char *key = argv[i], *value = argv[i + 1];
        if (!strcmp(key, "--backend"))
            b->path = value;
        else if (!strcmp(key, "--shape"))
            take_shape(b, value);
        else if (!strcmp(key, "--type"))
            b->type = type_named(value);
        else if (!strcmp(key, "--head-type"))
            b->head_type = type_named(value), head = true;
        else if (!strcmp(key, "--cases"))
            b->cases = value;
        else if (!strcmp(key, "--options"))
            b->options = value;
        else if (!strcmp(key, "--cache"))
            b->cache_type = type_named(value);
        else if (!strcmp(key, "--steps"))
            b->steps = (uint32_t)atoi(value);
        else if (!strcmp(key, "--sequences"))
            b->sequences = (uint32_t)atoi(value);
        else if (!strcmp(key, "--copy"))
            print_copy();
        else if (!strcmp(key, "--repeats"))
            b->repeats = (uint32_t)atoi(value);
        else
            fail(key, 0);
    }
    if (!head)
        b->head_type = b->type == INFER_TYPE_F16 ? INFER_TYPE_F16 : INFER_TYPE_Q6_K;
    if (!b->steps || !b->repeats || b->sequences > SEQUENCES_MAX)
        fail("nothing to measure", 0);
}

static void open_backend(struct bench *b, const struct infer_host *host)
{
    void *so = dlopen(b->path, RTLD_NOW | RTLD_LOCAL);
    if (!so)
        fail(dlerror(), 0);
    infer_backend_entry entry = NULL;
    *(void **)&entry = dlsym(so, INFER_BACKEND_SYMBOL);
    if (!entry)
        fail("no backend", 0);
    b->api = entry();
    must(b, b->api->open(host, b->options, &b->backend), "open");
}

/* It has measured with the first model what it can read. */
static void print_device(struct bench *b)
{
    struct infer_device device;
    b->api->describe(b->backend, &device);
    b->bandwidth = (double)device.read_bytes_per_s;
    printf("# %s, %.1f GB; reads %.2f TB/s\n", device.name, 1e-9 * (double)device.memory,
           1e-12 * b->bandwidth);
}

int main(int argc, char **argv)
{
    static struct bench b = {.path = "build/inferd-backend-cuda.so",
                             .options = "",
                             .cases = "decode,deep,batch,prefill",
                             .steps = 128,
                             .repeats = 8,
                             .type = INFER_TYPE_Q4_0,
                             .cache_type = INFER_TYPE_F16};
    static const uint32_t cpus[1] = {0};
    take_shape(&b, "8b");
    take_arguments(&b, argc, argv);
    synthetic_init(&b.random);
    if (!synthetic_plan_init(&b.made, &b.shape, b.type, b.head_type, false))
        fail("rows of that type do not fit the shape", 0);
    for (uint32_t i = 1; i < b.made.plan.n_tensors; i++)
        b.weight_bytes += b.made.tensors[i].row_bytes * b.made.tensors[i].n_rows;
    const struct infer_host host = {.abi = INFER_BACKEND_ABI,
                                    .log = on_log,
                                    .memory_take = synthetic_take,
                                    .memory_give = synthetic_give,
                                    .cpus = cpus,
                                    .n_cpus = 1};
    open_backend(&b, &host);
    b.state = (struct infer_state_config){.page_tokens = 16,
                                          .n_pages = SEQUENCES_MAX * (256 / 16 + 2),
                                          .k_type = b.cache_type,
                                          .v_type = b.cache_type,
                                          .max_rows = INFER_STEP_ROWS_MAX,
                                          .max_seqs = INFER_STEP_SEQS_MAX,
                                          .max_outputs = INFER_STEP_ROWS_MAX};
    b.pages = calloc(b.state.n_pages, sizeof *b.pages);
    for (uint32_t i = 0; b.pages && i < b.state.n_pages; i++)
        b.pages[i] = b.state.n_pages - 1 - i;
    if (!b.pages)
        fail("out of memory", 0);
    must(&b, b.api->model_open(b.backend, &b.made.plan, &b.state, &b.model), "model_open");
    print_device(&b);
    load(&b);
    measure(&b);
    b.api->model_close(b.model);
    b.api->close(b.backend);
    return 0;
}
