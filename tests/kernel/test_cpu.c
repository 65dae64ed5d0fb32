/* test_cpu.c: the CPU backend against the reference, at every instruction level of this machine.
 *
 * Three rigs, all through the backend's own interface (INFERD_BUILD says where the shared objects
 * are): a head alone (rows of an F32 embedding times one matrix) for the products of each tensor
 * type, small two-layer models beside kernels/ref, and the same models run in different batches,
 * which must give the same bits. */
#include "kernel/cpu_rig.h"

#include "cpu/simd_plain.h"

#include "cpu/exp.h"

/* ---- products -------------------------------------------------------------------------------- */

/* logits = W rms(x): a plan of an embedding and a head. */
static void make_head(struct model *m, uint32_t type, uint32_t cols, uint32_t rows)
{
    memset(m, 0, sizeof *m);
    m->shape = (struct infer_shape){.n_layers = 1,
                                    .n_embd = cols,
                                    .n_ffn = 32,
                                    .n_vocab = rows,
                                    .n_heads = 1,
                                    .n_kv_heads = 1,
                                    .head_dim = 16,
                                    .head_dim_v = 16,
                                    .n_context = 1024,
                                    .norm_eps = 1e-5f};
    add_tensor(m, 0, INFER_TYPE_F32, cols, rows, 0);
    add_tensor(m, 1, INFER_TYPE_F32, cols, 1, 1);
    add_tensor(m, 2, type, cols, rows, 0);
    m->ops[0] = (struct infer_op){.kind = INFER_OP_EMBED, .as.embed = {.table = 0, .scale = 1}};
    m->ops[1] =
        (struct infer_op){.kind = INFER_OP_HEAD, .norm = 1, .as.head = {.w = 2, .scale = 1}};
    finish_plan(m, 2);
}

/* What one output may differ by, for x in 32-column blocks of 8-bit codes with step d = max / 127:
 * each x is off by at most d / 2, so the sum by at most sum |w| d / 2. Float formats, and the sums
 * themselves: cols roundings of partial sums, each under 2^-24 of sum |w x|, in two chains; 1e-5
 * covers 168 of them in one chain and, as they do not all point one way, many times more. Q2_K is
 * also rounded to 8 bits itself: at most 1/254 of the largest |w| of its block. */
static double allowed(uint32_t type, const float *w, const double *h, uint32_t cols)
{
    double bound = 0, products = 0;
    for (uint32_t b = 0; b < cols; b += 32) {
        double largest = 0, top_w = 0, sum_w = 0, sum_h = 0;
        for (uint32_t k = b; k < b + 32 && k < cols; k++) {
            largest = fmax(largest, fabs(h[k]));
            top_w = fmax(top_w, fabs((double)w[k]));
            sum_w += fabs((double)w[k]);
            sum_h += fabs(h[k]);
            products += fabs(w[k] * h[k]);
        }
        if (ref_block(type) > 1)
            bound += sum_w * largest / 254 * 1.0001;
        if (type == INFER_TYPE_Q2_K) /* and the two errors' product */
            bound += top_w / 254 * (sum_h + 32 * largest / 254) * 1.01;
    }
    return bound + 1e-5 * products;
}

/* rms(x) * norm of a token, in double. */
static void normed(const struct model *m, int32_t token, double *ret)
{
    const uint32_t cols = m->shape.n_embd;
    const float *x = (const float *)(const void *)m->data[0] + (size_t)cols * (size_t)token;
    const float *norm = (const float *)(const void *)m->data[1];
    double sum = 0;
    for (uint32_t k = 0; k < cols; k++)
        sum += (double)x[k] * x[k];
    for (uint32_t k = 0; k < cols; k++)
        ret[k] = x[k] / sqrt(sum / cols + 1e-5) * norm[k];
}

static void check_products(struct loaded *l, const struct model *m, uint32_t n)
{
    const uint32_t cols = m->shape.n_embd, rows = m->shape.n_vocab;
    const uint32_t type = m->tensors[2].type;
    static const uint32_t pages[PAGES_MAX];
    int32_t tokens[64];
    float *logits = malloc(sizeof *logits * n * rows), *w = malloc(sizeof *w * cols);
    double *h = malloc(sizeof *h * cols * n), error = 0, power = 0;
    assert_true(logits && w && h && n <= 64);
    for (uint32_t i = 0; i < n; i++) {
        tokens[i] = (int32_t)(draw() % rows);
        normed(m, tokens[i], h + (size_t)cols * i);
    }
    run_batch(l, &(struct part){0, n, tokens, pages, logits}, 1);

    for (uint32_t r = 0; r < rows; r++) {
        ref_decode_row(type, m->data[2] + m->tensors[2].row_bytes * r, w, cols);
        for (uint32_t i = 0; i < n; i++) {
            const double *x = h + (size_t)cols * i;
            double want = 0, got = logits[(size_t)rows * i + r], w2 = 0, h2 = 0;
            for (uint32_t k = 0; k < cols; k++) {
                want += w[k] * x[k];
                w2 += (double)w[k] * w[k];
                h2 += x[k] * x[k];
            }
            if (!(fabs(got - want) <= allowed(type, w, x, cols)))
                fail_msg("%s %u x %u, row %u of %u, output %u: %g, should be %g",
                         ref_type_name(type), rows, cols, i, n, r, got, want);
            error += (got - want) * (got - want);
            power += w2 * h2 / cols;
        }
    }
    /* Rounding to steps of d leaves d / sqrt(12) on average: with d = 2.2 deviations / 127, half a
     * percent of |w| |h| / sqrt(cols), which is what the sum of cols independent products comes to.
     * Four times that, for blocks whose largest number stands out, still shows a systematic error
     * that the bound of the worst case would not. */
    double limit = ref_block(type) == 1 ? 1e-5 : type == INFER_TYPE_Q2_K ? 3e-2 : 2e-2;
    if (rows * n >= 200 && !(sqrt(error / power) < limit))
        fail_msg("%s %u x %u: relative error %g", ref_type_name(type), rows, cols,
                 sqrt(error / power));
    free(logits);
    free(w);
    free(h);
}

/* Sizes around the tile of 16 rows and of 8 rows of x; columns of one and several blocks. */
static void products_of(const char *options, uint32_t type)
{
    static const uint32_t blocks[] = {1, 3, 8}, rows[] = {1, 37, 100};
    static const uint32_t batches[] = {1, 2, 3, 7, 8, 13, 40};
    for (size_t c = 0; c < 3; c++) {
        uint32_t block = ref_block(type);
        uint32_t cols = block == 1 ? 17 * blocks[c] + 4 : block * blocks[c];
        if (block == 256 && blocks[c] == 8)
            cols = 512;
        for (size_t r = 0; r < 3; r++) {
            struct loaded l;
            struct model m;
            if (open_backend(&l, "cpu", options) < 0)
                return;
            make_head(&m, type, cols, rows[r]);
            load(&l, &m);
            for (size_t i = 0; i < sizeof batches / sizeof batches[0]; i++)
                if (r == 1 || i % 2 == 0)
                    check_products(&l, &m, batches[i]);
            unload(&l);
            free_model(&m);
        }
    }
}

static void test_products(void **state)
{
    const char *options = *state;
    level_or_skip(options);
    for (size_t i = 0; i < N_TYPES; i++)
        products_of(options, all_types[i]);
}

/* ---- whole models ---------------------------------------------------------------------------- */

static void test_models(void **state)
{
    const char *options = *state;
    level_or_skip(options);
    for (size_t i = 0; i < N_RECIPES; i++) {
        struct loaded cpu;
        struct model m;
        uint32_t pages[PAGES_MAX];
        int32_t tokens[LENGTH];
        make_model(&m, &recipes[i]);
        size_t n = (size_t)LENGTH * m.shape.n_vocab;
        float *got = malloc(n * sizeof *got);
        assert_non_null(got);
        draw_tokens(tokens, LENGTH, m.shape.n_vocab);
        shuffled_pages(pages);
        const float *want = ref_logits((uint32_t)i, &m, tokens, pages);
        assert_int_equal(open_backend(&cpu, "cpu", options), 0);
        load(&cpu, &m);
        run_batch(&cpu, &(struct part){0, LENGTH, tokens, pages, got}, 1);
        double error = relative_error(got, want, n);
        print_message("%s, %s: relative error of the logits %.2g\n", options, recipes[i].name,
                      error);
        if (!(error < recipes[i].tolerance))
            fail_msg("%s: relative error %g", recipes[i].name, error);
        unload(&cpu);
        free_model(&m);
        free(got);
    }
}

/* ---- the same bits in every batch ------------------------------------------------------------ */

static void test_same_bits(void **state)
{
    const char *options = *state;
    static const uint32_t ones[] = {1, 0}, uneven[] = {7, 16, 33, 2, 3, 5, 0}, tens[] = {100, 0};
    level_or_skip(options);
    bool slow = strstr(options, "scalar"); /* two recipes show what is its own */
    for (size_t i = slow ? 2 : 0; i < N_RECIPES; i += slow ? 3 : 1) {
        struct loaded l;
        struct model m;
        uint32_t pages[PAGES_MAX];
        int32_t tokens[LENGTH];
        make_model(&m, &recipes[i]);
        size_t n = (size_t)LENGTH * m.shape.n_vocab, bytes = n * sizeof(float);
        float *want = malloc(bytes), *got = malloc(bytes);
        assert_true(want && got);
        draw_tokens(tokens, LENGTH, m.shape.n_vocab);
        shuffled_pages(pages);
        assert_int_equal(open_backend(&l, "cpu", options), 0);
        load(&l, &m);
        run_batch(&l, &(struct part){0, LENGTH, tokens, pages, want}, 1);
        assert_true(isfinite(want[n - 1]) && want[n - 1] != 0);
        run_pieces(&l, tokens, pages, ones, got);
        assert_memory_equal(got, want, bytes);
        run_pieces(&l, tokens, pages, uneven, got);
        assert_memory_equal(got, want, bytes);
        run_pieces(&l, tokens, pages, tens, got);
        assert_memory_equal(got, want, bytes);
        run_mixed(&l, tokens, pages, got);
        assert_memory_equal(got, want, bytes);
        unload(&l);

        /* Nor on the number of threads. */
        char one[64];
        snprintf(one, sizeof one, "%.*s,threads=1", (int)strcspn(options, ","), options);
        assert_int_equal(open_backend(&l, "cpu", one), 0);
        load(&l, &m);
        run_batch(&l, &(struct part){0, LENGTH, tokens, pages, got}, 1);
        assert_memory_equal(got, want, bytes);
        unload(&l);
        free_model(&m);
        free(want);
        free(got);
    }
}

/* ---- the rest -------------------------------------------------------------------------------- */

/* Greedy tokens and log-probabilities come from the logits that are asked for beside them. */
static void test_outputs(void **state)
{
    struct loaded l;
    struct model m;
    static const uint32_t pages[PAGES_MAX] = {3, 1, 2};
    struct infer_sampling sampling;
    int32_t tokens[20];
    make_model(&m, &recipes[0]);
    uint32_t n = m.shape.n_vocab;
    float *logits = malloc(n * sizeof *logits);
    assert_non_null(logits);
    draw_tokens(tokens, 20, n);
    assert_int_equal(open_backend(&l, "cpu", ""), 0);
    load(&l, &m);
    infer_sampling_default(&sampling);
    sampling.temperature = 0;
    struct infer_batch_seq seq = {.n_rows = 20, .n_pages = 2, .pages = pages};
    struct infer_batch_output outputs[3] = {
        {.row = 4, .target = 9},
        {.row = 19, .sample = 1, .target = -1, .sampling = &sampling, .logits = logits},
        {.row = 19, .sample = 1, .target = 5, .n_top = 2, .sampling = &sampling},
    };
    struct infer_batch batch = {.n_rows = 20,
                                .n_seqs = 1,
                                .n_outputs = 3,
                                .tokens = tokens,
                                .seqs = &seq,
                                .outputs = outputs};
    assert_int_equal(l.api->run(l.model, &batch), 0);
    int32_t best = 0;
    double sum = 0;
    for (uint32_t i = 0; i < n; i++) {
        best = logits[i] > logits[best] ? (int32_t)i : best;
        sum += exp((double)logits[i]);
    }
    assert_int_equal(outputs[1].token, best);
    assert_int_equal(outputs[2].token, best);
    assert_int_equal(outputs[2].top[0].token, best);
    assert_float_equal(outputs[2].target_logprob, (float)(logits[5] - log(sum)), 1e-4f);
    assert_true(outputs[0].target_logprob < 0 && isfinite(outputs[0].target_logprob));
    unload(&l);
    free_model(&m);
    free(logits);
}

/* Types with a layout of their own take at most 1.1 times their file, and what cannot run is
 * refused with a sentence. */
static void test_estimates(void **state)
{
    static const uint32_t native[] = {INFER_TYPE_Q4_0, INFER_TYPE_Q4_1,   INFER_TYPE_Q5_0,
                                      INFER_TYPE_Q5_1, INFER_TYPE_Q8_0,   INFER_TYPE_Q4_K,
                                      INFER_TYPE_Q5_K, INFER_TYPE_Q6_K,   INFER_TYPE_IQ4_NL,
                                      INFER_TYPE_F16,  INFER_TYPE_IQ4_XS, INFER_TYPE_MXFP4};
    struct loaded l;
    struct model m;
    struct infer_estimate e;
    assert_int_equal(open_backend(&l, "cpu", ""), 0);
    for (size_t i = 0; i < sizeof native / sizeof native[0]; i++) {
        make_head(&m, native[i], 512, 512);
        assert_int_equal(l.api->estimate(l.backend, &m.plan, &state_config, &e), 0);
        uint64_t file = 0;
        for (uint32_t t = 0; t < m.plan.n_tensors; t++)
            file += m.tensors[t].row_bytes * m.tensors[t].n_rows;
        assert_true(e.weights_bytes >= file && e.weights_bytes <= file + file / 10);
        free_model(&m);
    }
    make_head(&m, INFER_TYPE_Q8_0, 64, 32);
    struct infer_state_config other = state_config;
    other.k_type = INFER_TYPE_Q8_0;
    assert_int_equal(l.api->estimate(l.backend, &m.plan, &other, &e), -ENOTSUP);
    assert_true(strlen(l.api->last_error(l.backend)) > 10);
    m.ops[0].kind = 99;
    assert_int_equal(l.api->estimate(l.backend, &m.plan, &state_config, &e), -ENOTSUP);
    m.ops[0].kind = INFER_OP_EMBED;
    m.tensors[2].type = 4;
    assert_int_equal(l.api->estimate(l.backend, &m.plan, &state_config, &e), -ENOTSUP);
    m.tensors[2].type = INFER_TYPE_Q8_0;
    m.tensors[2].n_rows = 33;
    assert_int_equal(l.api->estimate(l.backend, &m.plan, &state_config, &e), -EINVAL);
    assert_int_equal(l.taken, 0);
    free_model(&m);
    l.api->close(l.backend);
    dlclose(l.so);
}

/* The kernels' e^x, in plain arithmetic. One rounding each for n * ln 2, the polynomial's last two
 * steps and the result, 6e-8 apiece, and the polynomial's own 1e-8. */
static void test_exp(void **state)
{
    double worst = 0;
    for (int i = -870000; i <= 880000; i++) {
        float x = (float)i * 1e-4f;
        double want = exp((double)x), got = vf_exp(vf_set(x))[0];
        if (x >= -87.0f)
            worst = fmax(worst, fabs(got - want) / want);
    }
    print_message("largest relative error of exp: %.2g\n", worst);
    assert_true(worst < 3e-7);
    assert_true(vf_exp(vf_set(0.0f))[0] == 1.0f);
    assert_true(vf_exp(vf_set(-INFINITY))[0] == 0.0f);
    assert_true(vf_exp(vf_set(-87.5f))[0] == 0.0f);
}

static void test_options(void **state)
{
    static const char *const bad[] = {"isa=",      "isa",        "threads=0",
                                      "threads=x", "colour=red", "threads=1000000"};
    struct loaded l;
    struct infer_device device;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        assert_int_equal(open_backend(&l, "cpu", bad[i]), -EINVAL);
    assert_int_equal(open_backend(&l, "cpu", "isa=avx9"), -ENOTSUP);
    assert_int_equal(open_backend(&l, "cpu", "threads=3,isa=scalar"), 0);
    l.api->describe(l.backend, &device);
    assert_string_equal(device.name, "CPU, plain C, 3 threads");
    l.api->close(l.backend);
    dlclose(l.so);
}

int main(void)
{
    struct CMUnitTest tests[3 * N_LEVELS + 4];
    size_t n = 0;
    static char names[3 * N_LEVELS][64];
    static const struct {
        const char *name;
        CMUnitTestFunction run;
    } levelled[3] = {
        {"products", test_products}, {"models", test_models}, {"same bits", test_same_bits}};
    for (size_t t = 0; t < 3; t++)
        for (size_t i = 0; i < N_LEVELS; i++, n++) {
            snprintf(names[n], sizeof names[n], "%s %s", levelled[t].name, levels[i]);
            tests[n] = (struct CMUnitTest){
                .name = names[n], .test_func = levelled[t].run, .initial_state = (void *)levels[i]};
        }
    tests[n++] = (struct CMUnitTest)cmocka_unit_test(test_outputs);
    tests[n++] = (struct CMUnitTest)cmocka_unit_test(test_estimates);
    tests[n++] = (struct CMUnitTest)cmocka_unit_test(test_exp);
    tests[n++] = (struct CMUnitTest)cmocka_unit_test(test_options);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
