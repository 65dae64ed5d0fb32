/* test_arch.c: every architecture, from file to logits, against a reference implementation.
 *
 * tests/data/arch/NAME holds a small model of random bf16 weights, 96 tokens, the logits that the
 * Python library of the architecture's authors computes for them in float32, and the 32 tokens that
 * it adds greedily to the first 16. Each model goes through gguf, plan and a backend's own
 * interface here; no daemon.
 *
 * Tolerance. The error of a position is ||got - want|| / ||want||. A float32 sum of n = 512 terms
 * in another order differs by about sqrt(n) * 2^-24 of its terms' size, 1e-6, and so does the
 * scalar reference here (7e-7 to 1e-6 measured): 1e-5. A cache of float16 (2^-11 a value) costs it
 * 2e-4 to 3e-4: 1e-3. Backends that compute with activations of fewer bits get 5e-3. A wrong model
 * is far away: one frequency of 32 off by a twentieth 4e-2, one missing bias 1e-1, pairs instead of
 * halves 4e-1; only a wrong epsilon (1e-3 for 1e-5) is as small as 1e-3. The largest logit must be
 * the reference's wherever its lead exceeds the tolerance times the largest logit.
 *
 * INFERD_BUILD: where the backends are ("build"). A backend that is not built is skipped. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "inferd/backend.h"
#include "model/gguf.h"
#include "model/plan.h"

#include <dlfcn.h>
#include <math.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define N_TOKENS    96
#define N_VOCAB     512
#define N_PROMPT    16 /* of the greedy tokens */
#define N_GREEDY    32
#define PAGE_TOKENS 16
#define N_PAGES     12

struct reference {
    int32_t tokens[N_TOKENS], greedy[N_GREEDY];
    float logits[N_TOKENS][N_VOCAB];
};

struct runner {
    const char *name;
    double tolerance;
    void *library;
    const struct infer_backend_api *api;
    struct infer_backend *backend;
    struct infer_backend_model *model;
    struct infer_host host;
    uint32_t cpus[2];
    struct gguf *g;
    struct plan *plan;
    struct infer_state_config config;
    struct reference want;
    float got[N_TOKENS][N_VOCAB];
};

/* ---- the backend's host ---------------------------------------------------------------------- */

static void host_log(void *ctx, int level, const char *text)
{
    (void)ctx;
    (void)level;
    (void)text;
}

static void *host_take(void *ctx, size_t bytes)
{
    (void)ctx;
    size_t rounded = (bytes + 63) & ~(size_t)63;
    void *memory = aligned_alloc(64, rounded > 0 ? rounded : 64);
    if (memory != NULL)
        memset(memory, 0, rounded);
    return memory;
}

static void host_give(void *ctx, void *memory, size_t bytes)
{
    (void)ctx;
    (void)bytes;
    free(memory);
}

static void host_init(struct runner *r)
{
    cpu_set_t set;
    uint32_t n = 0;
    CPU_ZERO(&set);
    assert_int_equal(sched_getaffinity(0, sizeof set, &set), 0);
    for (uint32_t i = 0; i < CPU_SETSIZE && n < 2; i++)
        if (CPU_ISSET(i, &set))
            r->cpus[n++] = i;
    r->host = (struct infer_host){.abi = INFER_BACKEND_ABI,
                                  .log = host_log,
                                  .memory_take = host_take,
                                  .memory_give = host_give,
                                  .cpus = r->cpus,
                                  .n_cpus = n};
}

/* ---- loading --------------------------------------------------------------------------------- */

static void read_file(const char *folder, const char *name, void *to, size_t bytes)
{
    char path[256];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "rb");
    if (f == NULL || fread(to, 1, bytes, f) != bytes || fgetc(f) != EOF)
        fail_msg("%s is not a file of %zu bytes", path, bytes);
    fclose(f);
}

static void check(struct runner *r, const char *what, int result)
{
    if (result < 0)
        fail_msg("%s: %s failed with %d: %s", r->name, what, result,
                 r->backend != NULL ? r->api->last_error(r->backend) : "");
}

/* Streams the tensors in, some rows at a time. */
static void load_tensors(struct runner *r)
{
    for (uint32_t i = 0; i < r->plan->backend.n_tensors; i++) {
        const struct gguf_tensor *t = gguf_tensor(r->g, r->plan->gguf_tensor[i]);
        uint8_t *rows = malloc(t->bytes);
        assert_non_null(rows);
        assert_int_equal(pread(gguf_part_fd(r->g, t->part), rows, t->bytes, (off_t)t->offset),
                         t->bytes);
        for (uint64_t row = 0, n; row < t->tensor.n_rows; row += n) {
            n = t->tensor.n_rows - row < 100 ? t->tensor.n_rows - row : 100;
            check(r, "tensor_write",
                  r->api->tensor_write(r->model, i, row, n, rows + row * t->tensor.row_bytes));
        }
        free(rows);
    }
    check(r, "model_ready", r->api->model_ready(r->model));
}

static void runner_open(struct runner *r, const char *folder, uint32_t cache_type)
{
    char path[256];
    struct report report = {0};
    struct infer_estimate estimate;
    read_file(folder, "tokens.i32", r->want.tokens, sizeof r->want.tokens);
    read_file(folder, "greedy.i32", r->want.greedy, sizeof r->want.greedy);
    read_file(folder, "logits.f32", r->want.logits, sizeof r->want.logits);
    snprintf(path, sizeof path, "%s/model.gguf", folder);
    if (gguf_open(path, &r->g, &report) < 0 || plan_new(r->g, &r->plan, &report) < 0)
        fail_msg("%s", report.text);
    assert_int_equal(r->plan->backend.shape.n_vocab, N_VOCAB);
    host_init(r);
    r->config = (struct infer_state_config){.page_tokens = PAGE_TOKENS,
                                            .n_pages = N_PAGES,
                                            .k_type = cache_type,
                                            .v_type = cache_type,
                                            .max_rows = N_TOKENS,
                                            .max_seqs = 4,
                                            .max_outputs = N_TOKENS};
    check(r, "open", r->api->open(&r->host, "", &r->backend));
    check(r, "estimate", r->api->estimate(r->backend, &r->plan->backend, &r->config, &estimate));
    assert_true(estimate.weights_bytes > 0 && estimate.page_bytes > 0);
    check(r, "model_open",
          r->api->model_open(r->backend, &r->plan->backend, &r->config, &r->model));
    load_tensors(r);
}

static void runner_close(struct runner *r)
{
    r->api->model_close(r->model);
    r->api->close(r->backend);
    plan_free(r->plan);
    gguf_free(r->g);
    r->model = NULL;
    r->backend = NULL;
}

/* ---- running --------------------------------------------------------------------------------- */

/* n tokens of the sequence from position on; their logits go to logits[0 .. n). */
static void run_rows(struct runner *r, const int32_t *tokens, uint32_t position, uint32_t n,
                     float (*logits)[N_VOCAB])
{
    static struct infer_batch_output outputs[N_TOKENS];
    uint32_t pages[N_PAGES];
    for (uint32_t i = 0; i < N_PAGES; i++)
        pages[i] = (i * 5 + 3) % N_PAGES; /* anywhere in the pool */
    memset(outputs, 0, sizeof outputs);
    for (uint32_t i = 0; i < n; i++) {
        outputs[i].row = i;
        outputs[i].target = -1;
        outputs[i].logits = logits[i];
    }
    struct infer_batch_seq seq = {.n_rows = n,
                                  .position = position,
                                  .n_pages = (position + n + PAGE_TOKENS - 1) / PAGE_TOKENS,
                                  .pages = pages};
    struct infer_batch batch = {.n_rows = n,
                                .n_seqs = 1,
                                .n_outputs = n,
                                .tokens = tokens,
                                .seqs = &seq,
                                .outputs = outputs};
    check(r, "run", r->api->run(r->model, &batch));
}

/* Index of the largest logit, and its lead over the next. */
static int32_t best_of(const float *logits, double *ret_lead, double *ret_largest)
{
    int32_t best = 0;
    double next = -INFINITY, largest = 0;
    for (int32_t i = 0; i < N_VOCAB; i++) {
        if (logits[i] > logits[best])
            best = i;
        if (fabs((double)logits[i]) > largest)
            largest = fabs((double)logits[i]);
    }
    for (int32_t i = 0; i < N_VOCAB; i++)
        if (i != best && (double)logits[i] > next)
            next = (double)logits[i];
    *ret_lead = (double)logits[best] - next;
    *ret_largest = largest;
    return best;
}

/* Compares all positions in r->got with the reference; the largest relative error. */
static double compare_logits(struct runner *r, unsigned *ret_decided)
{
    double worst = 0;
    unsigned decided = 0;
    for (uint32_t p = 0; p < N_TOKENS; p++) {
        double difference = 0, norm = 0, lead, largest, unused;
        for (uint32_t i = 0; i < N_VOCAB; i++) {
            double want = (double)r->want.logits[p][i], d = (double)r->got[p][i] - want;
            difference += d * d;
            norm += want * want;
        }
        double error = sqrt(difference / norm);
        if (!(error <= worst)) /* also NaN */
            worst = error;
        int32_t want = best_of(r->want.logits[p], &lead, &largest);
        if (lead > r->tolerance * largest) {
            decided++;
            int32_t got = best_of(r->got[p], &unused, &unused);
            if (got != want)
                fail_msg("position %u: token %d leads, not %d, which leads by %g in the reference",
                         p, got, want, lead);
        }
    }
    *ret_decided = decided;
    return worst;
}

/* Goes back to the first tokens and decodes one by one, over the rows that were cached behind them;
 * how many tokens were compared before a lead was too small to decide. */
static unsigned compare_greedy(struct runner *r)
{
    double lead, largest;
    float logits[1][N_VOCAB];
    int32_t token = best_of(r->got[N_PROMPT - 1], &lead, &largest);
    for (unsigned i = 0; i < N_GREEDY; i++) {
        if (lead <= r->tolerance * largest)
            return i;
        if (token != r->want.greedy[i])
            fail_msg("greedy token %u is %d, not %d (lead %g)", i, token, r->want.greedy[i], lead);
        run_rows(r, &token, N_PROMPT + i, 1, logits);
        token = best_of(logits[0], &lead, &largest);
    }
    return N_GREEDY;
}

/* Whether the error is within the tolerance; what decides the rest fails by itself. */
static bool check_architecture(struct runner *r, const char *name, uint32_t cache_type)
{
    char folder[128];
    unsigned decided = 0;
    snprintf(folder, sizeof folder, "tests/data/arch/%s", name);
    runner_open(r, folder, cache_type);
    run_rows(r, r->want.tokens, 0, N_TOKENS, r->got);
    double whole = compare_logits(r, &decided);
    /* The same in pieces that do not meet the pages' borders. */
    static const uint32_t ends[] = {1, 8, 39, 40, 95, 96};
    memset(r->got, 0, sizeof r->got);
    for (uint32_t i = 0, at = 0; i < sizeof ends / sizeof ends[0]; at = ends[i++])
        run_rows(r, r->want.tokens + at, at, ends[i] - at, r->got + at);
    double pieces = compare_logits(r, &decided);
    unsigned greedy = compare_greedy(r);
    print_message("%s %-8s relative error %.2e, in pieces %.2e; top-1 equal at %u of %u, "
                  "greedy tokens equal: %u\n",
                  r->name, name, whole, pieces, decided, N_TOKENS, greedy);
    assert_true(decided > N_TOKENS / 2 && greedy > 0);
    runner_close(r);
    return whole < r->tolerance && pieces < r->tolerance;
}

static const char *const architectures[] = {"qwen3", "llama", "llama3", "mistral", "qwen2"};
enum { N_ARCHITECTURES = sizeof architectures / sizeof architectures[0] };

/* The first n of them. */
static void check_some(const char *name, double tolerance, uint32_t cache_type, unsigned n)
{
    static struct runner r;
    const char *build = getenv("INFERD_BUILD");
    char path[256];
    snprintf(path, sizeof path, "%s/inferd-backend-%s.so", build != NULL ? build : "build", name);
    if (access(path, R_OK) != 0) {
        print_message("skipped: %s is not built\n", path);
        skip();
    }
    memset(&r, 0, sizeof r);
    r.name = name;
    r.tolerance = tolerance;
    r.library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (r.library == NULL)
        fail_msg("%s", dlerror());
    infer_backend_entry entry;
    *(void **)&entry = dlsym(r.library, INFER_BACKEND_SYMBOL);
    assert_non_null(entry);
    r.api = entry();
    assert_int_equal(r.api->abi, INFER_BACKEND_ABI);
    unsigned wrong = 0;
    for (unsigned i = 0; i < n; i++)
        wrong += !check_architecture(&r, architectures[i], cache_type);
    dlclose(r.library);
    if (wrong > 0)
        fail_msg("%u architectures have errors not below %g", wrong, tolerance);
}

static void check_backend(const char *name, double tolerance, uint32_t cache_type)
{
    check_some(name, tolerance, cache_type, N_ARCHITECTURES);
}

static void ref_float32_cache(void **state)
{
    (void)state;
    check_backend("ref", 1e-5, INFER_TYPE_F32);
}

static void ref_float16_cache(void **state)
{
    (void)state;
    check_backend("ref", 1e-3, INFER_TYPE_F16);
}

static void cpu_float16_cache(void **state)
{
    (void)state;
    check_backend("cpu", 5e-3, INFER_TYPE_F16);
}

/* On this machine's GPU; else emulated, which sanitizers slow down tenfold. */
static void cuda_float16_cache(void **state)
{
    (void)state;
    const char *real = getenv("INFERD_TEST_CUDA");
#ifdef __SANITIZE_ADDRESS__
    const unsigned n = 1;
#else
    const unsigned n = N_ARCHITECTURES;
#endif
    if (real != NULL && strcmp(real, "1") == 0)
        check_backend("cuda", 5e-3, INFER_TYPE_F16);
    else
        check_some("cuda-emulated", 5e-3, INFER_TYPE_F16, n);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ref_float32_cache),
        cmocka_unit_test(ref_float16_cache),
        cmocka_unit_test(cpu_float16_cache),
        cmocka_unit_test(cuda_float16_cache),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
