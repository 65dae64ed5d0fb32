/* test_cuda.c: the CUDA backend as a whole beside the reference: small models, the same bits in
 * every batch, outputs, and what happens when something is wrong. See cuda_whole.h for what it runs
 * on, test_pages.c for what sequences keep. */
#include "kernel/cuda_whole.h"

#include "ref/sample.h"

#include <pthread.h>

/* ---- models ---------------------------------------------------------------------------------- */

/* Every type of tensor; sizes that are no multiple of a tile or a unit are in the recipes of the
 * rig. */
static const struct recipe type_recipes[] = {
    {"q4_0", INFER_TYPE_Q4_0, INFER_TYPE_Q4_0, INFER_TYPE_Q6_K, 4, 2, 64, 64, INFER_ROPE_PAIRS, 64,
     0, false, false, false, 0},
    {"q4_1, q5_0", INFER_TYPE_Q4_1, INFER_TYPE_Q5_0, INFER_TYPE_Q4_0, 4, 2, 64, 64,
     INFER_ROPE_PAIRS, 64, 0, false, false, false, 0},
    {"q5_1, q2_k", INFER_TYPE_Q5_1, INFER_TYPE_Q2_K, INFER_TYPE_Q5_K, 4, 2, 64, 64,
     INFER_ROPE_PAIRS, 64, 0, false, false, false, 0},
    {"q3_k, q5_k", INFER_TYPE_Q3_K, INFER_TYPE_Q5_K, INFER_TYPE_Q8_0, 4, 2, 64, 64,
     INFER_ROPE_PAIRS, 64, 0, false, false, false, 0},
    {"iq4_nl, iq4_xs", INFER_TYPE_IQ4_NL, INFER_TYPE_IQ4_XS, INFER_TYPE_Q4_1, 4, 2, 64, 64,
     INFER_ROPE_PAIRS, 64, 0, false, false, false, 0},
    {"iq3_s, mxfp4", INFER_TYPE_Q8_0, INFER_TYPE_IQ3_S, INFER_TYPE_MXFP4, 4, 2, 64, 64,
     INFER_ROPE_PAIRS, 64, 0, false, false, false, 0},
    {"tq1_0, tq2_0", INFER_TYPE_TQ1_0, INFER_TYPE_TQ2_0, INFER_TYPE_BF16, 4, 2, 64, 64,
     INFER_ROPE_PAIRS, 64, 0, false, false, false, 0},
};
#define N_TYPE_RECIPES (sizeof type_recipes / sizeof type_recipes[0])

/* Beside others: one that decodes, and one that prefills in pieces of 5. */
static void beside_others(struct loaded *l, struct sample_run *s, float *ret)
{
    const uint32_t n_vocab = s->m.shape.n_vocab;
    uint32_t other = 0;
    for (uint32_t at = 0, n; at < length; at += n) {
        n = at < 4 ? 1 : 11;
        if (n > length - at)
            n = length - at;
        struct part parts[3] = {
            {other, 1, s->tokens + other, s->pages + 20, NULL},
            {at, n, s->tokens + at, s->pages, ret + (size_t)at * n_vocab},
            {5 * other, 5, s->tokens + other, s->pages + 30, NULL},
        };
        run_batch(l, parts, 3);
        other = (other + 1) % 50;
    }
}

/* Whether the backend has no kernel for this: refused by name, then. */
static bool is_refused(struct loaded *l, const struct model *m)
{
    struct infer_estimate e;
    char number[16];
    int r = l->api->estimate(l->backend, &m->plan, &state_config, &e);
    if (r == 0)
        return false;
    snprintf(number, sizeof number, "%u", m->shape.head_dim);
    assert_int_equal(r, -ENOTSUP);
    assert_non_null(strstr(l->api->last_error(l->backend), number));
    print_message("refused: %s\n", l->api->last_error(l->backend));
    return true;
}

static void check_model(const struct recipe *recipe)
{
    struct sample_run s;
    struct loaded l;
    begin_run(&s, recipe);
    run_ref(&s, s.want);
    must_open(&l, "");
    if (is_refused(&l, &s.m)) {
        l.api->close(l.backend);
        dlclose(l.so);
        end_run(&s);
        return;
    }
    load(&l, &s.m);
    run_batch(&l, &(struct part){0, length, s.tokens, s.pages, s.got}, 1);
    double error = relative_error(s.got, s.want, s.n);
    print_message("%s: relative error of the logits %.2g\n", recipe->name, error);
    if (!(error < TOLERANCE))
        fail_msg("%s: relative error %g", recipe->name, error);
    unload(&l);
    end_run(&s);
}

static void test_models(void **state)
{
    for (size_t i = 0; i < N_RECIPES; i++)
        check_model(&recipes[i]);
}

static void test_types(void **state)
{
    uint32_t before = length;
    length = real ? LENGTH : 9;
    for (size_t i = 0; i < N_TYPE_RECIPES; i++)
        check_model(&type_recipes[i]);
    length = before;
}

/* ---- the same bits in every batch ------------------------------------------------------------ */

/* Twice, so that captured steps are replayed with other numbers; with products that are chained for
 * short sequences alone, and never. */
static void check_bits(const struct recipe *recipe, const char *options, float *first)
{
    static const uint32_t ones[] = {1, 0}, uneven[] = {7, 16, 33, 2, 3, 5, 0}, all[] = {LENGTH, 0};
    static const uint32_t forties[] = {40, 0};
    struct sample_run s;
    struct loaded l;
    begin_run(&s, recipe);
    must_open(&l, options);
    load(&l, &s.m);
    in_pieces(&l, &s, all, s.want);
    assert_true(isfinite(s.want[s.n - 1]) && s.want[s.n - 1] != 0);
    in_pieces(&l, &s, uneven, s.got);
    assert_memory_equal(s.got, s.want, s.bytes);
    in_pieces(&l, &s, ones, s.got);
    assert_memory_equal(s.got, s.want, s.bytes);
    in_pieces(&l, &s, forties, s.got);
    assert_memory_equal(s.got, s.want, s.bytes);
    beside_others(&l, &s, s.got);
    assert_memory_equal(s.got, s.want, s.bytes);
    memcpy(first, s.want, s.bytes);
    unload(&l);
    end_run(&s);
}

static void test_same_bits(void **state)
{
    static const size_t chosen[] = {3, 6, 0, 1, 4, 5};
    static float with[LENGTH * 75], without[LENGTH * 75];
    uint32_t before = length;
    length = real ? LENGTH : 70; /* more than a chunk of the attention */
    for (size_t i = 0; i < (real ? 6 : SANITIZED ? 1 : 2); i++) {
        check_bits(&recipes[chosen[i]], "graphs=1", with);
        if (!real && (i > 0 || SANITIZED))
            continue;
        check_bits(&recipes[chosen[i]], "graphs=0,chains=40", without);
        assert_memory_equal(with, without, (size_t)length * 75 * sizeof(float));
        check_bits(&recipes[chosen[i]], "chains=0", without);
        assert_memory_equal(with, without, (size_t)length * 75 * sizeof(float));
    }
    length = before;
}

/* Where a block has 64 KiB of shared memory: half-precision matrices, which take most of it, and
 * heads of 128. */
static void test_little_memory(void **state)
{
    const struct recipe recipe = recipe_in(&kept_recipes[2], INFER_TYPE_F16);
    static float bits[LENGTH * 75];
    const uint32_t before = length;
    if (real) {
        print_message("skip - what the GPU has is what all tests have\n");
        skip();
    }
    setenv("INFERD_CUDA_EMULATED", "capability=75", 1);
    length = SANITIZED ? 20 : 40;
    check_model(&recipe);
    check_bits(&recipe, "", bits);
    length = before;

    struct loaded l;
    struct model m;
    struct infer_estimate e;
    make_model(&m, &recipe);
    must_open(&l, "");
    m.plan.shape.n_vocab = m.tensors[0].n_rows = INFER_VOCAB_MAX;
    assert_int_equal(l.api->estimate(l.backend, &m.plan, &state_config, &e), -ENOTSUP);
    assert_non_null(strstr(l.api->last_error(l.backend), "64; use device = cpu"));
    m.plan.shape.n_vocab = m.tensors[0].n_rows = 262208; /* the most of known models */
    assert_int_equal(l.api->estimate(l.backend, &m.plan, &state_config, &e), 0);
    l.api->close(l.backend);
    dlclose(l.so);
    free_model(&m);
    unsetenv("INFERD_CUDA_EMULATED");
}

/* ---- outputs --------------------------------------------------------------------------------- */

#define N_WANTED 200u /* more than one block of them */

struct wanted {
    struct infer_sampling sampling[N_WANTED];
    struct infer_logit_bias bias[N_WANTED][3];
    int32_t seen[N_WANTED][40];
    struct infer_batch_output outputs[N_WANTED];
    float *logits;
};

/* Greedy, everything at once, filters one by one, and none; biases and penalties on some. */
static void draw_output(struct wanted *w, uint32_t i, uint32_t row, uint32_t n_vocab)
{
    struct infer_sampling *s = &w->sampling[i];
    infer_sampling_default(s);
    if (i % 5 == 0)
        s->temperature = 0;
    if (i % 5 == 2) {
        s->top_k = 0;
        s->top_p = 1;
        s->min_p = 0;
    }
    if (i % 5 == 3) {
        s->top_k = 0;
        s->min_p = 0;
        s->top_p = 0.7f;
        s->typical_p = i % 2 ? 0.8f : 1;
    }
    if (i % 3 == 1) {
        s->repetition_penalty = 1.3f;
        s->frequency_penalty = 0.2f;
        s->penalty_window = i % 2 ? 17 : 64;
    }
    for (uint32_t k = 0; k < 40; k++)
        w->seen[i][k] = (int32_t)(draw() % n_vocab);
    for (uint32_t k = 0; k < 3; k++)
        w->bias[i][k] = (struct infer_logit_bias){(int32_t)(draw() % n_vocab), draw_normal()};
    w->outputs[i] = (struct infer_batch_output){
        .row = row,
        .sample = i % 7 != 6,
        .target = i % 4 == 0 ? (int32_t)(draw() % n_vocab) : -1,
        .n_top = i % 6,
        .sampling = s,
        .bias = w->bias[i],
        .n_bias = i % 4,
        .n_seen = 40 - i % 40,
        .seen = w->seen[i],
        .uniform = (draw() + 0.5) * 0x1p-31,
        .logits = w->logits ? w->logits + (size_t)i * n_vocab : NULL,
        .token = -7,
    };
}

/* A log-probability is a float32 logit less the logarithm of a sum: some roundings of numbers
 * around ten. */
static void check_output(const struct infer_batch_output *got,
                         const struct infer_batch_output *want)
{
    const float bound = 2e-5f;
    assert_int_equal(got->token, want->token);
    if (want->sample && (want->n_top || want->target >= 0))
        assert_float_equal(got->logprob, want->logprob, bound);
    if (want->target >= 0)
        assert_float_equal(got->target_logprob, want->target_logprob, bound);
    for (uint32_t i = 0; i < want->n_top; i++) {
        assert_int_equal(got->top[i].token, want->top[i].token);
        assert_float_equal(got->top[i].logprob, want->top[i].logprob, bound);
    }
}

/* Rows ascend, some named twice and more. */
static void run_outputs(struct loaded *l, const struct sample_run *s, struct wanted *w, uint32_t n,
                        uint32_t n_rows)
{
    struct infer_batch_seq seq = {.n_rows = n_rows, .n_pages = PAGES_MAX, .pages = s->pages};
    struct infer_batch batch = {.n_rows = n_rows,
                                .n_seqs = 1,
                                .n_outputs = n,
                                .tokens = s->tokens,
                                .seqs = &seq,
                                .outputs = w->outputs};
    if (l->api->run(l->model, &batch) < 0)
        fail_msg("run: %s", l->api->last_error(l->backend));
}

/* Everything that is drawn is what the reference's sampler draws from the logits that are given
 * beside it, and the same whether they are asked for or not, in one block of outputs or more. */
static void check_outputs(uint32_t n, uint32_t n_rows, const char *options)
{
    struct sample_run s;
    struct loaded l;
    struct ref_sample_scratch scratch;
    struct wanted *w = calloc(1, sizeof *w);
    begin_run(&s, &recipes[0]);
    const uint32_t n_vocab = s.m.shape.n_vocab;
    struct infer_state_config before = state_config;
    state_config.max_outputs = N_WANTED;
    must_open(&l, options);
    load(&l, &s.m);
    state_config = before;
    void *memory = calloc(1, ref_sample_scratch_bytes(n_vocab));
    assert_true(w && memory);
    ref_sample_scratch_init(&scratch, n_vocab, memory);
    w->logits = malloc((size_t)N_WANTED * n_vocab * sizeof(float));
    float *logits = w->logits;
    assert_non_null(logits);
    for (uint32_t i = 0; i < n; i++)
        draw_output(w, i, i * n_rows / n, n_vocab);
    run_outputs(&l, &s, w, n, n_rows);
    struct infer_batch_output *want = calloc(n, sizeof *want);
    assert_non_null(want);
    memcpy(want, w->outputs, n * sizeof *want);
    for (uint32_t i = 0; i < n; i++) {
        struct infer_batch_output o = want[i];
        o.logits = NULL;
        o.token = -7;
        ref_sample(&scratch, logits + (size_t)i * n_vocab, &o);
        check_output(&w->outputs[i], &o);
        w->outputs[i].logits = NULL;
        w->outputs[i].token = -7;
    }
    run_outputs(&l, &s, w, n, n_rows);
    for (uint32_t i = 0; i < n; i++)
        check_output(&w->outputs[i], &want[i]);
    unload(&l);
    free(want);
    free(logits);
    free(memory);
    free(w);
    end_run(&s);
}

static void test_outputs(void **state)
{
    check_outputs(7, 3, "profile=1");
    check_outputs(33, 20, "graphs=0");
    check_outputs(N_WANTED, real ? LENGTH : 30, "");
}

/* ---- what is wrong --------------------------------------------------------------------------- */

static void test_options(void **state)
{
    static const char *const bad[] = {"device=", "device", "graphs=2", "colour=1", "device=0;"};
    struct loaded l;
    struct infer_device device;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        assert_int_equal(open_cuda(&l, bad[i]), -EINVAL);
    assert_int_equal(open_cuda(&l, "device=1000"), -ENODEV);
    must_open(&l, "device=0,graphs=1");
    l.api->describe(l.backend, &device);
    print_message("%s, %.1f GB, %.1f GB free\n", device.name, 1e-9 * (double)device.memory,
                  1e-9 * (double)device.memory_free);
    assert_non_null(strstr(device.name, " SMs, driver "));
    assert_true(device.memory > 0 && device.memory_free > 0 && device.memory_free <= device.memory);
    l.api->close(l.backend);
    dlclose(l.so);
}

/* The estimate is what is taken, and what cannot run is refused with a sentence. */
static void test_estimates(void **state)
{
    struct loaded l;
    struct model m;
    struct infer_estimate e;
    struct infer_device before, after;
    make_model(&m, &recipes[0]);
    must_open(&l, "");
    l.api->describe(l.backend, &before);
    assert_int_equal(before.memory_free, before.memory); /* nothing has touched the device */
    assert_int_equal(l.api->estimate(l.backend, &m.plan, &state_config, &e), 0);
    load(&l, &m);
    l.api->model_close(l.model);
    l.api->describe(l.backend, &before);
    assert_true(!real || before.read_bytes_per_s > 10000000000u); /* measured with the first */
    load(&l, &m);
    l.api->describe(l.backend, &after);
    uint64_t device = before.memory_free - after.memory_free;
    uint64_t all = e.weights_bytes + e.page_bytes * state_config.n_pages + e.scratch_bytes;
    /* A device gives memory in pieces of 2 MiB, and captured steps take some. */
    assert_true(device >= all && device <= all + (real ? 64u << 20 : 0));
    l.api->model_close(l.model);

    struct infer_state_config other = state_config;
    other.k_type = INFER_TYPE_F32;
    assert_int_equal(l.api->estimate(l.backend, &m.plan, &other, &e), -ENOTSUP);
    other.k_type = INFER_TYPE_F16;
    other.page_tokens = 32;
    assert_int_equal(l.api->estimate(l.backend, &m.plan, &other, &e), -ENOTSUP);
    m.ops[0].kind = 99;
    assert_int_equal(l.api->estimate(l.backend, &m.plan, &state_config, &e), -ENOTSUP);
    assert_true(strlen(l.api->last_error(l.backend)) > 10);
    m.ops[0].kind = INFER_OP_EMBED;
    m.tensors[3].type = 4;
    assert_int_equal(l.api->estimate(l.backend, &m.plan, &state_config, &e), -ENOTSUP);
    m.tensors[3].type = INFER_TYPE_F32;
    m.tensors[3].n_rows++;
    assert_int_equal(l.api->estimate(l.backend, &m.plan, &state_config, &e), -EINVAL);
    m.tensors[3].n_rows--;
    m.ops[1].kind = INFER_OP_ALL_REDUCE;
    assert_int_equal(l.api->estimate(l.backend, &m.plan, &state_config, &e), -ENOTSUP);
    l.api->close(l.backend);
    assert_int_equal(l.taken, 0);
    dlclose(l.so);
    free_model(&m);
}

/* A batch that does not fit changes nothing. */
static void test_wrong_batches(void **state)
{
    struct loaded l;
    struct model m;
    static uint32_t pages[PAGES_MAX] = {3, 1, 2};
    int32_t tokens[20];
    struct infer_batch_seq seq = {.n_rows = 20, .n_pages = 2, .pages = pages};
    struct infer_batch_output outputs[2] = {{.row = 4, .target = 1}, {.row = 9, .target = 1}};
    struct infer_batch batch = {.n_rows = 20,
                                .n_seqs = 1,
                                .n_outputs = 2,
                                .tokens = tokens,
                                .seqs = &seq,
                                .outputs = outputs};
    make_model(&m, &recipes[0]);
    draw_tokens(tokens, 20, m.shape.n_vocab);
    must_open(&l, "");
    load(&l, &m);
    assert_int_equal(l.api->run(l.model, &batch), 0);
    float before = outputs[0].target_logprob;
    assert_true(before < 0 && isfinite(before));
#define REFUSED(change, back)                                                                      \
    do {                                                                                           \
        change;                                                                                    \
        assert_int_equal(l.api->run(l.model, &batch), -EINVAL);                                    \
        back;                                                                                      \
    } while (0)
    REFUSED(tokens[19] = 75, tokens[19] = 0);
    REFUSED(tokens[0] = -1, tokens[0] = 0);
    REFUSED(pages[1] = PAGES_MAX, pages[1] = 1);
    REFUSED(seq.n_pages = 1, seq.n_pages = 2);
    REFUSED(seq.position = UINT32_MAX, seq.position = 0);
    REFUSED(seq.n_rows = 19, seq.n_rows = 20);
    REFUSED(seq.first_row = 1, seq.first_row = 0);
    REFUSED(outputs[1].row = 3, outputs[1].row = 9);
    REFUSED(outputs[1].row = 20, outputs[1].row = 9);
    REFUSED(outputs[1].sample = 1, outputs[1].sample = 0);
    REFUSED(batch.n_rows = ROWS_MAX + 1, batch.n_rows = 20);
#undef REFUSED
    draw_tokens(tokens, 20, m.shape.n_vocab);
    assert_int_equal(l.api->run(l.model, &batch), 0);
    batch = (struct infer_batch){.tokens = tokens, .seqs = &seq, .outputs = outputs};
    assert_int_equal(l.api->run(l.model, &batch), 0);
    unload(&l);
    free_model(&m);
}

/* Rows out of order, rows that are missing. */
static void test_wrong_loads(void **state)
{
    struct loaded l;
    struct model m;
    make_model(&m, &recipes[0]);
    must_open(&l, "");
    assert_int_equal(l.api->model_open(l.backend, &m.plan, &state_config, &l.model), 0);
    assert_int_equal(l.api->tensor_write(l.model, 0, 1, 1, m.data[0]), -EINVAL);
    assert_int_equal(l.api->tensor_write(l.model, 0, 0, 76, m.data[0]), -EINVAL);
    assert_int_equal(l.api->tensor_write(l.model, m.plan.n_tensors, 0, 1, m.data[0]), -EINVAL);
    assert_int_equal(l.api->tensor_write(l.model, 0, 0, 75, m.data[0]), 0);
    assert_int_equal(l.api->model_ready(l.model), -EINVAL);
    assert_non_null(strstr(l.api->last_error(l.backend), "t1"));
    struct infer_batch batch = {0};
    assert_int_equal(l.api->run(l.model, &batch), -EINVAL);
    unload(&l);
    free_model(&m);
}

/* The emulated machine lacks a device, or memory, or loses its device in the middle of a step. */
static void test_faults(void **state)
{
    struct loaded l;
    struct model m;
    static uint32_t pages[PAGES_MAX];
    struct infer_device device;
    if (real) {
        print_message("skip - a GPU is not to be broken\n");
        skip();
    }
    make_model(&m, &recipes[0]);
    setenv("INFERD_CUDA_EMULATED", "devices=0", 1);
    assert_int_equal(open_cuda(&l, ""), -ENODEV);
    setenv("INFERD_CUDA_EMULATED", "capability=70", 1);
    assert_int_equal(open_cuda(&l, ""), -ENOTSUP);
    setenv("INFERD_CUDA_EMULATED", "memory=1000000", 1);
    must_open(&l, "");
    uint64_t held = l.taken;
    assert_int_equal(l.api->model_open(l.backend, &m.plan, &state_config, &l.model), -ENOMEM);
    assert_non_null(strstr(l.api->last_error(l.backend), "memory"));
    assert_int_equal(l.taken, held);
    unsetenv("INFERD_CUDA_EMULATED");
    load(&l, &m);
    unload(&l);

    must_open(&l, "");
    load(&l, &m);
    int32_t tokens[4] = {1, 2, 3, 4};
    struct infer_batch_seq seq = {.n_rows = 4, .n_pages = 1, .pages = pages};
    struct infer_batch batch = {.n_rows = 4, .n_seqs = 1, .tokens = tokens, .seqs = &seq};
    int r = 0;
    assert_int_equal(l.api->run(l.model, &batch), 0);
    setenv("INFERD_CUDA_EMULATED", "fail=200", 1);
    for (int i = 0; i < 200 && r == 0; i++)
        r = l.api->run(l.model, &batch);
    unsetenv("INFERD_CUDA_EMULATED");
    assert_int_equal(r, -ENODEV);
    assert_non_null(strstr(l.api->last_error(l.backend), "illegal"));
    assert_int_equal(l.api->run(l.model, &batch), -ENODEV);
    assert_int_equal(l.api->page_zero(l.model, 0), -ENODEV);
    l.api->describe(l.backend, &device);
    assert_true(device.memory > 0 && device.memory_free == 0);
    unload(&l);
    free_model(&m);
}

/* ---- beside each other ----------------------------------------------------------------------- */

struct loader {
    struct loaded *l;
    const struct model *m;
    struct infer_backend_model *model;
    int error;
};

static void *load_beside(void *arg)
{
    struct loader *a = arg;
    const struct infer_backend_api *api = a->l->api;
    for (int round = 0; round < 3 && a->error == 0; round++) {
        if (round > 0)
            api->model_close(a->model);
        a->error = api->model_open(a->l->backend, &a->m->plan, &state_config, &a->model);
        for (uint32_t i = 0; i < a->m->plan.n_tensors && a->error == 0; i++)
            a->error = api->tensor_write(a->model, i, 0, a->m->tensors[i].n_rows, a->m->data[i]);
        if (a->error == 0)
            a->error = api->model_ready(a->model);
    }
    return NULL;
}

/* A model that is loaded while another steps, with captures: both give what they give alone. */
static void test_beside(void **state)
{
    struct sample_run s;
    struct loaded l;
    pthread_t thread;
    uint32_t before = length;
    length = 24;
    begin_run(&s, &recipes[0]);
    const uint32_t n_vocab = s.m.shape.n_vocab;
    must_open(&l, "");
    load(&l, &s.m);
    run_batch(&l, &(struct part){0, length, s.tokens, s.pages, s.want}, 1);
    struct loader a = {.l = &l, .m = &s.m};
    assert_int_equal(pthread_create(&thread, NULL, load_beside, &a), 0);
    for (uint32_t at = 0; at < length; at++)
        run_batch(&l, &(struct part){at, 1, s.tokens + at, s.pages, s.got + (size_t)at * n_vocab},
                  1);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_int_equal(a.error, 0);
    assert_memory_equal(s.got, s.want, s.bytes);
    struct loaded second = l;
    second.model = a.model;
    run_batch(&second, &(struct part){0, length, s.tokens, s.pages, s.got}, 1);
    assert_memory_equal(s.got, s.want, s.bytes);
    l.api->model_close(a.model);
    unload(&l);
    end_run(&s);
    length = before;
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_models),      cmocka_unit_test(test_types),
        cmocka_unit_test(test_same_bits),   cmocka_unit_test(test_little_memory),
        cmocka_unit_test(test_outputs),     cmocka_unit_test(test_options),
        cmocka_unit_test(test_estimates),   cmocka_unit_test(test_wrong_batches),
        cmocka_unit_test(test_wrong_loads), cmocka_unit_test(test_beside),
        cmocka_unit_test(test_faults), /* the last: a device that is lost stays so */
    };
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    find_device();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
