/* test_parts.c: a model that is cut between its layers computes what the whole one does, bit for
 * bit, on every backend: x crosses as the float32 numbers that it is.
 *
 * Each part is a model of its own, on an instance of its own; they share page ids. The CUDA
 * backend's kernels run on the processor as in test_cuda.c; INFERD_TEST_CUDA=1 takes the GPU. */
#include "kernel/cpu_rig.h"

#define LAYERS    3u
#define PARTS_MAX 3u

static bool real; /* a GPU */

/* Enough rows for more than one page, and, of CUDA, a chunk of the attention. */
static uint32_t length = 70;

static const struct recipe part_recipes[] = {
    {"f32 window", INFER_TYPE_F32, INFER_TYPE_F32, INFER_TYPE_F16, 6, 2, 32, 32, INFER_ROPE_PAIRS,
     32, 37, false, false, false, 0},
    {"q4_k, biases", INFER_TYPE_Q4_K, INFER_TYPE_Q6_K, INFER_TYPE_Q8_0, 4, 2, 64, 64,
     INFER_ROPE_HALVES, 64, 0, true, false, false, 0},
    {"q8_0, head norms", INFER_TYPE_Q8_0, INFER_TYPE_F16, INFER_TYPE_Q8_0, 4, 1, 64, 64,
     INFER_ROPE_HALVES, 40, 0, false, true, true, 0},
};

static const struct {
    const char *name;
    uint32_t n;
    uint32_t layers[PARTS_MAX];
} cuts[] = {{"1 and 2", 2, {1, 2}}, {"2 and 1", 2, {2, 1}}, {"1, 1 and 1", 3, {1, 1, 1}}};
#define N_CUTS (sizeof cuts / sizeof cuts[0])

/* The layers from first on; the tensors are all there, as far as the part uses them or not. */
static void part_of(const struct model *m, uint32_t first, uint32_t n_layers, struct model *ret)
{
    const bool begins = first == 0, ends = first + n_layers == m->shape.n_layers;
    uint32_t from = begins ? 0 : 1 + 5 * first;
    *ret = *m;
    ret->shape.n_layers = n_layers;
    uint32_t n_ops = 5 * n_layers + begins + ends;
    memcpy(ret->ops, m->ops + from, n_ops * sizeof *ret->ops);
    for (uint32_t i = 0; i < n_ops; i++)
        if (ret->ops[i].kind != INFER_OP_EMBED && ret->ops[i].kind != INFER_OP_HEAD)
            ret->ops[i].layer -= first;
    ret->plan.rope.inv_freq = ret->inv_freq;
    finish_plan(ret, n_ops);
}

struct chain {
    struct model m, part[PARTS_MAX];
    struct loaded loaded[PARTS_MAX], *each[PARTS_MAX];
    uint32_t n;
    uint32_t pages[PAGES_MAX];
    int32_t tokens[LENGTH];
    float *x;
};

static void must_open(struct loaded *l, const char *backend, const char *options)
{
    int r = open_backend(l, backend, options);
    if (r < 0)
        fail_msg("open %s \"%s\": %d", backend, options, r);
}

static void load_chain(struct chain *c, size_t cut, const char *backend, const char *options)
{
    c->n = cuts[cut].n;
    for (uint32_t i = 0, first = 0; i < c->n; first += cuts[cut].layers[i++]) {
        part_of(&c->m, first, cuts[cut].layers[i], &c->part[i]);
        must_open(&c->loaded[i], backend, options);
        state_config.max_outputs = i + 1 < c->n ? 0 : ROWS_MAX;
        load(&c->loaded[i], &c->part[i]);
        c->each[i] = &c->loaded[i];
    }
    state_config.max_outputs = ROWS_MAX;
}

static void unload_chain(struct chain *c)
{
    for (uint32_t i = 0; i < c->n; i++)
        unload(&c->loaded[i]);
}

/* In steps of several sizes, once alone and once beside a sequence that decodes. */
static void run_steps(struct chain *c, bool beside, float *ret)
{
    static const uint32_t steps[] = {1, 7, 16, 33, 2, 1};
    const uint32_t n_vocab = c->m.shape.n_vocab;
    for (uint32_t at = 0, i = 0, n; at < length; at += n, i++) {
        n = steps[i % 6] < length - at ? steps[i % 6] : length - at;
        struct part parts[2] = {{at, n, c->tokens + at, c->pages, ret + (size_t)at * n_vocab},
                                {i, 1, c->tokens + i, c->pages + 30, NULL}};
        run_chain(c->each, c->n, c->x, parts, beside ? 2 : 1);
    }
}

static void check_cuts(const struct recipe *recipe, const char *backend, const char *options)
{
    static struct chain c;
    memset(&c, 0, sizeof c);
    make_model_of(&c.m, recipe, LAYERS);
    const size_t n = (size_t)length * c.m.shape.n_vocab, bytes = n * sizeof(float);
    float *want = malloc(bytes), *got = malloc(bytes);
    c.x = malloc(ROWS_MAX * c.m.shape.n_embd * sizeof(float));
    assert_true(want && got && c.x);
    draw_tokens(c.tokens, LENGTH, c.m.shape.n_vocab);
    shuffled_pages(c.pages);
    struct loaded whole;
    struct infer_estimate all;
    must_open(&whole, backend, options);
    load(&whole, &c.m);
    whole.api->estimate(whole.backend, &c.m.plan, &state_config, &all);
    run_batch(&whole, &(struct part){0, length, c.tokens, c.pages, want}, 1);
    assert_true(isfinite(want[n - 1]) && want[n - 1] != 0);
    unload(&whole);
    for (size_t cut = 0; cut < N_CUTS; cut++) {
        load_chain(&c, cut, backend, options);
        uint64_t page_bytes = 0;
        for (uint32_t i = 0; i < c.n; i++) {
            struct infer_estimate one;
            struct loaded *l = &c.loaded[i];
            l->api->estimate(l->backend, &c.part[i].plan, &state_config, &one);
            page_bytes += one.page_bytes;
        }
        if (strcmp(backend, "null") != 0) /* whose pages have no layers */
            assert_int_equal(page_bytes, all.page_bytes);
        run_steps(&c, false, got);
        if (memcmp(got, want, bytes) != 0)
            fail_msg("%s, %s, layers %s: not what the whole computes", recipe->name, options,
                     cuts[cut].name);
        run_steps(&c, true, got);
        assert_memory_equal(got, want, bytes);
        unload_chain(&c);
    }
    free_model(&c.m);
    free(want);
    free(got);
    free(c.x);
}

static void test_ref(void **state)
{
    (void)state;
    for (size_t i = 0; i < 3; i++)
        check_cuts(&part_recipes[i], "ref", "");
}

/* Computes nothing, and hands on x as something that is defined. */
static void test_null(void **state)
{
    (void)state;
    check_cuts(&part_recipes[0], "null", "check_rows=1");
}

static void test_cpu(void **state)
{
    const char *options = *state;
    level_or_skip(options);
    for (size_t i = 0; i < 3; i++)
        check_cuts(&part_recipes[i], "cpu", options);
}

static void test_cuda(void **state)
{
    (void)state;
    const char *backend = real ? "cuda" : "cuda-emulated";
    uint32_t before = length;
    length = real ? before : 34;
    check_cuts(&part_recipes[1], backend, "graphs=1");
    check_cuts(&part_recipes[real ? 0 : 2], backend, "graphs=0");
    length = before;
}

/* ---- what is wrong --------------------------------------------------------------------------- */

/* x lies in a place that the caller gives, of a part alone, and nothing beyond its rows is written.
 */
static void check_x(const char *backend, const char *options)
{
    static struct chain c;
    uint32_t page = 0;
    int32_t tokens[2] = {5, 6};
    memset(&c, 0, sizeof c);
    make_model_of(&c.m, &part_recipes[0], LAYERS);
    load_chain(&c, 2, backend, options);
    const uint32_t n_embd = c.m.shape.n_embd;
    struct infer_batch_seq seq = {0, 2, 0, 1, &page};
    struct infer_batch_output output = {.row = 1, .target = 3};
    struct infer_batch batch = {
        .n_rows = 2, .n_seqs = 1, .tokens = tokens, .seqs = &seq, .outputs = &output};
    for (uint32_t i = 0; i < 3; i++)
        assert_int_equal(c.loaded[i].api->run(c.loaded[i].model, &batch), -EINVAL);
    float *x = malloc((2 * n_embd + 1) * sizeof *x);
    assert_non_null(x);
    for (uint32_t i = 0; i <= 2 * n_embd; i++)
        x[i] = -1e30f;
    batch.x = x;
    batch.n_outputs = 1; /* of parts that have no head */
    for (uint32_t i = 0; i < 2; i++)
        assert_true(c.loaded[i].api->run(c.loaded[i].model, &batch) < 0);
    batch.n_outputs = 0;
    for (uint32_t i = 0; i < 2; i++)
        assert_int_equal(c.loaded[i].api->run(c.loaded[i].model, &batch), 0);
    for (uint32_t i = 0; i < 2 * n_embd; i++)
        assert_true(fabsf(x[i]) < 1e6f);
    assert_true(x[2 * n_embd] == -1e30f);
    batch.n_outputs = 1;
    assert_int_equal(c.loaded[2].api->run(c.loaded[2].model, &batch), 0);
    assert_true(output.target_logprob < 0);

    /* The embedding stands first and the head last, if at all. */
    struct infer_estimate e;
    struct model *m = &c.part[1];
    m->ops[1] = c.m.ops[0];
    assert_int_equal(c.loaded[0].api->estimate(c.loaded[0].backend, &m->plan, &state_config, &e),
                     -EINVAL);
    m->ops[1] = c.m.ops[1 + 5 * LAYERS];
    assert_int_equal(c.loaded[0].api->estimate(c.loaded[0].backend, &m->plan, &state_config, &e),
                     -EINVAL);
    unload_chain(&c);
    free_model(&c.m);
    free(x);
}

static void test_x(void **state)
{
    (void)state;
    check_x("ref", "");
    check_x("cpu", "threads=2");
    check_x(real ? "cuda" : "cuda-emulated", "");
}

int main(int argc, char **argv)
{
    const char *cuda = getenv("INFERD_TEST_CUDA");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ref),
        cmocka_unit_test(test_null),
        {"test_cpu avx512", test_cpu, NULL, NULL, (void *)(uintptr_t)levels[0]},
        {"test_cpu avx2", test_cpu, NULL, NULL, (void *)(uintptr_t)levels[1]},
        {"test_cpu scalar", test_cpu, NULL, NULL, (void *)(uintptr_t)levels[2]},
        cmocka_unit_test(test_cuda),
        cmocka_unit_test(test_x),
    };
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    real = cuda && strcmp(cuda, "1") == 0;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
