/* Sampling on the device against ref_sample: rows of every shape, parameters at random, outputs
 * alone and together.
 *
 * Weights are the reference's to the bit and sums differ in the order of double additions only, so
 * tokens must be equal. Where they are not, a running sum has come to lie on the other side of its
 * target, and the reference must say the same as the device once uniform moves by 1e-12 or one
 * parameter by one unit in its last place (6e-8): decisions nearer than that are rounding's. At
 * most one draw in 1000 may need the excuse. Uniforms nearer to 1 than 1e-9 are left out: there,
 * many tokens of next to no weight share one rounding.
 *
 * INFERD_LONG=1: ten times as many random cases; INFERD_TEST_BRIEF=1: few. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "cuda/cuda.h"
#include "kernel/brief.h"
#include "ref/sample.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define OUTPUTS_MAX 48u
#define ROWS_MAX    4u
#define BIAS_MAX    8192u
#define SEEN_MAX    65536u

static uint64_t random_state = 1;

static double random_uniform(void)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (double)(random_state >> 11) * 0x1p-53;
}

static uint32_t random_below(uint32_t n)
{
    return (uint32_t)(random_uniform() * n);
}

static int rounds(int n)
{
    return brief() ? 1 : getenv("INFERD_LONG") ? 10 * n : n;
}

static bool one_in(uint32_t n)
{
    return random_below(n) == 0;
}

/* ---- rows ------------------------------------------------------------------------------------ */

enum shape {
    SHAPE_FLAT,
    SHAPE_NORMAL,
    SHAPE_WIDE,
    SHAPE_PEAKED,
    SHAPE_TIES,
    SHAPE_DESCENDING, /* likely tokens are neighbours, as in vocabularies by frequency */
    SHAPE_HOLES,      /* NaN, infinities, zeros of both signs */
    SHAPE_EQUAL,
    SHAPE_LONELY, /* all but one minus infinity */
    SHAPE_NOTHING,
    SHAPE_NAN,
    SHAPES
};

static float normal(void)
{
    double sum = 0;
    for (int j = 0; j < 12; j++)
        sum += random_uniform();
    return (float)(sum - 6);
}

static void fill_row(float *logits, uint32_t n, enum shape shape)
{
    static const float spread[SHAPES] = {0.01f, 1, 6, 2, 1, 2, 2, 0, 0, 0, 0};
    static const float holes[] = {NAN, -INFINITY, 0.0f, -0.0f, FLT_MAX, -FLT_MAX, INFINITY};
    float base = one_in(2) ? 0 : 20 * normal();
    uint32_t n_holes = one_in(2) ? 4 : 7;
    for (uint32_t i = 0; i < n; i++) {
        logits[i] = base + (spread[shape] > 0 ? spread[shape] * normal() : 0);
        if (shape == SHAPE_TIES)
            logits[i] = roundf(4 * logits[i]) / 4;
        else if (shape == SHAPE_DESCENDING)
            logits[i] -= 10 * sqrtf((float)i / (float)n);
        else if (shape == SHAPE_HOLES && one_in(3))
            logits[i] = holes[random_below(n_holes)];
        else if (shape == SHAPE_LONELY || shape == SHAPE_NOTHING)
            logits[i] = -INFINITY;
        else if (shape == SHAPE_NAN)
            logits[i] = NAN;
    }
    if (shape == SHAPE_PEAKED || shape == SHAPE_LONELY)
        logits[random_below(n)] = base + 15;
}

/* ---- a device at hand ------------------------------------------------------------------------ */

struct rig {
    uint32_t n_vocab, n_rows, n_outputs, n_bias, n_seen;
    size_t stride, scratch_bytes;
    float *logits, *d_logits, *logits_after;
    struct cuda_output outputs[OUTPUTS_MAX], *d_outputs;
    struct infer_logit_bias bias[BIAS_MAX], *d_bias;
    int32_t seen[SEEN_MAX], *d_seen;
    struct cuda_drawn drawn[OUTPUTS_MAX], *d_drawn;
    void *d_scratch, *ref_memory;
    struct ref_sample_scratch ref;
    cudaStream_t stream;
};

#define cuda_ok(call) assert_int_equal((call), cudaSuccess)

static void *device_new(size_t bytes)
{
    void *ret = NULL;
    cuda_ok(cudaMalloc(&ret, bytes));
    cuda_ok(cudaMemset(ret, 0xff, bytes));
    return ret;
}

static struct rig *rig_new(uint32_t n_vocab, uint32_t n_rows)
{
    struct rig *rig = calloc(1, sizeof *rig);
    assert_non_null(rig);
    rig->n_vocab = n_vocab;
    rig->n_rows = n_rows;
    rig->stride = one_in(2) ? n_vocab : (n_vocab + 64) / 64 * 64; /* aligned or not */
    rig->scratch_bytes = cuda_sample_scratch_bytes(n_vocab, OUTPUTS_MAX);
    rig->logits = calloc(n_rows * rig->stride, sizeof(float));
    rig->logits_after = calloc(n_rows * rig->stride, sizeof(float));
    rig->ref_memory = calloc(1, ref_sample_scratch_bytes(n_vocab));
    assert_true(rig->logits && rig->logits_after && rig->ref_memory);
    ref_sample_scratch_init(&rig->ref, n_vocab, rig->ref_memory);
    cuda_ok(cudaStreamCreateWithFlags(&rig->stream, cudaStreamNonBlocking));
    rig->d_logits = device_new(n_rows * rig->stride * sizeof(float));
    rig->d_outputs = device_new(sizeof rig->outputs);
    rig->d_bias = device_new(sizeof rig->bias);
    rig->d_seen = device_new(sizeof rig->seen);
    rig->d_drawn = device_new(sizeof rig->drawn);
    rig->d_scratch = device_new(rig->scratch_bytes);
    return rig;
}

static void rig_free(struct rig *rig)
{
    cuda_ok(cudaFree(rig->d_logits));
    cuda_ok(cudaFree(rig->d_outputs));
    cuda_ok(cudaFree(rig->d_bias));
    cuda_ok(cudaFree(rig->d_seen));
    cuda_ok(cudaFree(rig->d_drawn));
    cuda_ok(cudaFree(rig->d_scratch));
    cuda_ok(cudaStreamDestroy(rig->stream));
    free(rig->logits);
    free(rig->logits_after);
    free(rig->ref_memory);
    free(rig);
}

static void rig_put(void *to, const void *from, size_t bytes)
{
    cuda_ok(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice));
}

static void rig_fill(struct rig *rig, enum shape shape)
{
    for (uint32_t i = 0; i < rig->n_rows; i++)
        fill_row(rig->logits + i * rig->stride, rig->n_vocab,
                 i == 0 ? shape : (enum shape)random_below(SHAPES));
    rig_put(rig->d_logits, rig->logits, rig->n_rows * rig->stride * sizeof(float));
}

static cudaError_t rig_launch(struct rig *rig, uint32_t first, uint32_t n)
{
    return cuda_sample(rig->d_logits, rig->stride, rig->n_vocab, rig->d_outputs + first, n,
                       rig->d_bias, rig->d_seen, rig->d_scratch, rig->d_drawn + first, rig->stream);
}

/* The outputs first .. first + n - 1 in one call; the others' results are not touched. */
static void rig_run(struct rig *rig, uint32_t first, uint32_t n)
{
    rig_put(rig->d_outputs, rig->outputs, sizeof rig->outputs);
    rig_put(rig->d_bias, rig->bias, sizeof rig->bias);
    rig_put(rig->d_seen, rig->seen, sizeof rig->seen);
    cuda_ok(cudaMemset(rig->d_drawn, 0xee, sizeof rig->drawn));
    cuda_ok(cudaDeviceSynchronize());
    cuda_ok(rig_launch(rig, first, n));
    cuda_ok(cudaStreamSynchronize(rig->stream));
    cuda_ok(cudaMemcpy(rig->drawn, rig->d_drawn, sizeof rig->drawn, cudaMemcpyDeviceToHost));
}

/* ---- outputs --------------------------------------------------------------------------------- */

/* Everything off: plain softmax at temperature 1, bias and seen none. */
static struct cuda_output *rig_output(struct rig *rig, uint32_t row)
{
    assert_true(rig->n_outputs < OUTPUTS_MAX);
    struct cuda_output *output = &rig->outputs[rig->n_outputs++];
    *output = (struct cuda_output){.row = row, .sample = 1, .target = -1};
    output->first_bias = rig->n_bias;
    output->first_seen = rig->n_seen;
    infer_sampling_default(&output->sampling);
    output->sampling.temperature = 1;
    output->sampling.top_k = 0;
    output->sampling.top_p = 1;
    output->sampling.min_p = 0;
    return output;
}

static void rig_clear(struct rig *rig)
{
    rig->n_outputs = rig->n_bias = rig->n_seen = 0;
}

static void add_bias(struct rig *rig, struct cuda_output *output, int32_t token, float bias)
{
    assert_true(rig->n_bias < BIAS_MAX);
    rig->bias[rig->n_bias++] = (struct infer_logit_bias){token, bias};
    output->n_bias++;
}

static void add_seen(struct rig *rig, struct cuda_output *output, int32_t token)
{
    assert_true(rig->n_seen < SEEN_MAX);
    rig->seen[rig->n_seen++] = token;
    output->n_seen++;
}

static void random_changes(struct rig *rig, struct cuda_output *output)
{
    struct infer_sampling *s = &output->sampling;
    uint32_t n_bias = one_in(2) ? 0 : random_below(one_in(8) ? 200 : 6);
    uint32_t n_seen = one_in(2) ? 0 : random_below(one_in(8) ? 1500 : 90);
    uint32_t within = one_in(2) ? rig->n_vocab : 1 + random_below(rig->n_vocab); /* repeats */
    for (uint32_t i = 0; i < n_bias; i++)
        add_bias(rig, output, (int32_t)random_below(within) - one_in(20),
                 one_in(3) ? -INFINITY : 2 * normal());
    for (uint32_t i = 0; i < n_seen; i++)
        add_seen(rig, output,
                 one_in(20) ? (int32_t)rig->n_vocab - 3 + (int32_t)random_below(6)
                            : (int32_t)random_below(within) - one_in(20));
    s->penalty_window = one_in(5) ? 0 : one_in(3) ? 1 + random_below(40) : 4096;
    s->repetition_penalty = one_in(2) ? 1 : one_in(2) ? 1.3f : 0.7f;
    s->frequency_penalty = one_in(2) ? 0 : 0.3f;
    s->presence_penalty = one_in(2) ? 0 : -0.2f;
}

static void random_output(struct rig *rig)
{
    static const float some_p[] = {1, 0.999f, 0.95f, 0.55f, 0.05f};
    uint32_t n = rig->n_vocab;
    struct cuda_output *output = rig_output(rig, random_below(rig->n_rows));
    struct infer_sampling *s = &output->sampling;
    output->sample = !one_in(8);
    output->target = one_in(3) ? (int32_t)random_below(n) : -1;
    output->n_top = one_in(3) ? 1 + random_below(INFER_TOP_MAX) : 0;
    output->uniform = one_in(20) ? 0 : one_in(20) ? 1 - 1e-9 : random_uniform();
    s->temperature = one_in(8) ? 0 : one_in(8) ? 1 : 0.05f + 2 * (float)random_uniform();
    s->top_k = one_in(2)   ? 0
               : one_in(4) ? 1 + random_below(n + 3)
               : one_in(4) ? 1 + random_below(1024)
                           : 1 + random_below(60);
    s->top_p = some_p[random_below(5)];
    s->min_p = one_in(2) ? 0 : 0.2f * (float)random_uniform();
    s->typical_p = one_in(3) ? some_p[1 + random_below(4)] : 1;
    random_changes(rig, output);
}

/* ---- against the reference ------------------------------------------------------------------- */

static uint32_t n_compared, n_excused;

static void reference(struct rig *rig, uint32_t i, struct infer_batch_output *ret)
{
    const struct cuda_output *output = &rig->outputs[i];
    *ret = (struct infer_batch_output){.sample = output->sample,
                                       .target = output->target,
                                       .n_top = output->n_top,
                                       .sampling = &output->sampling,
                                       .bias = rig->bias + output->first_bias,
                                       .n_bias = output->n_bias,
                                       .n_seen = output->n_seen,
                                       .seen = rig->seen + output->first_seen,
                                       .uniform = output->uniform};
    ref_sample(&rig->ref, rig->logits + output->row * rig->stride, ret);
}

/* Whether the reference draws `token` when one decision goes the other way. */
static bool within_rounding(struct rig *rig, uint32_t i, int32_t token)
{
    struct cuda_output *output = &rig->outputs[i], saved = *output;
    float *moved[] = {&output->sampling.top_p, &output->sampling.typical_p,
                      &output->sampling.min_p};
    bool found = false;
    for (int way = 0; way < 8 && !found; way++) {
        struct infer_batch_output wanted;
        if (way < 2)
            output->uniform += way ? 1e-12 : -1e-12;
        else
            *moved[way / 2 - 1] = nextafterf(*moved[way / 2 - 1], way % 2 ? 2 : -1);
        reference(rig, i, &wanted);
        found = wanted.token == token;
        *output = saved;
    }
    return found;
}

static void close_or_equal(float a, float b)
{
    if (!(a == b) && !(fabsf(a - b) <= 1e-5f * fmaxf(1, fabsf(b) / 16)))
        fail_msg("log-probability %.9g, not %.9g", (double)a, (double)b);
}

static void compare(struct rig *rig, uint32_t i)
{
    const struct cuda_output *output = &rig->outputs[i];
    const struct infer_sampling *s = &output->sampling;
    const struct cuda_drawn *drawn = &rig->drawn[i];
    struct infer_batch_output wanted;
    reference(rig, i, &wanted);
    bool same = true;

    if (output->sample) {
        n_compared++;
        same = drawn->token == wanted.token;
        if (!same && !within_rounding(rig, i, drawn->token))
            fail_msg("token %d, not %d (n %u, T %g, k %u, p %g, min %g, typ %g, u %.17g)",
                     drawn->token, wanted.token, rig->n_vocab, (double)s->temperature, s->top_k,
                     (double)s->top_p, (double)s->min_p, (double)s->typical_p, output->uniform);
        n_excused += !same;
        if (same && (output->n_top > 0 || output->target >= 0))
            close_or_equal(drawn->logprob, wanted.logprob);
    }
    if (output->target >= 0)
        close_or_equal(drawn->target_logprob, wanted.target_logprob);
    for (uint32_t j = 0; j < output->n_top; j++) {
        assert_int_equal(drawn->top[j].token, wanted.top[j].token);
        close_or_equal(drawn->top[j].logprob, wanted.top[j].logprob);
    }
}

static void compare_all(struct rig *rig)
{
    size_t bytes = rig->n_rows * rig->stride * sizeof(float);
    rig_run(rig, 0, rig->n_outputs);
    cuda_ok(cudaMemcpy(rig->logits_after, rig->d_logits, bytes, cudaMemcpyDeviceToHost));
    assert_memory_equal(rig->logits, rig->logits_after, bytes);
    for (uint32_t i = 0; i < rig->n_outputs; i++)
        compare(rig, i);
}

static void excuses_are_rare(void)
{
    print_message("%u draws compared, %u within rounding\n", n_compared, n_excused);
    assert_true(n_excused * 1000 <= n_compared || (brief() && n_excused == 1));
    n_compared = n_excused = 0;
}

/* ---- tests ----------------------------------------------------------------------------------- */

static void random_cases_agree(void **state)
{
    (void)state;
    static const uint32_t sizes[] = {1, 2, 63, 64, 65, 75, 255, 257, 1000, 2049, 4100, 9000};
    const int n_sizes = sizeof sizes / sizeof sizes[0];
    for (int round = 0; round < rounds(3 * n_sizes); round++) {
        struct rig *rig =
            rig_new(brief() ? 4100 : sizes[round % n_sizes], 1 + random_below(ROWS_MAX));
        for (int shape = 0; shape < SHAPES; shape++) {
            rig_clear(rig);
            rig_fill(rig, (enum shape)shape);
            for (uint32_t i = 1 + random_below(12); i > 0; i--)
                random_output(rig);
            compare_all(rig);
        }
        rig_free(rig);
    }
    excuses_are_rare();
}

/* A whole vocabulary, every way through the sampler by name. */
static void large_vocabularies_agree(void **state)
{
    (void)state;
    static const enum shape shapes[] = {SHAPE_NORMAL, SHAPE_DESCENDING, SHAPE_TIES, SHAPE_WIDE};
    static const struct {
        float temperature, top_p, min_p, typical_p;
        uint32_t top_k;
    } ways[] = {
        {0, 1, 0, 1, 0},         {0.8f, 0.95f, 0.05f, 1, 40},  {1, 1, 0, 1, 0},
        {0.7f, 1, 0.01f, 1, 0},  {0.9f, 0.9f, 0, 1, 0},        {0.9f, 0.9f, 0.02f, 1, 0},
        {1.1f, 0.999f, 0, 1, 0}, {1, 0.95f, 0, 1, 1000},       {1, 0.99f, 0, 1, 5000},
        {1, 1, 0, 0.9f, 0},      {1, 0.9f, 0.001f, 0.5f, 300}, {1, 1, 0, 1, 1024},
        {1.5f, 0.98f, 0, 1, 1},
    };
    for (int round = 0; round < rounds(3); round++) {
        struct rig *rig = rig_new(round % 4 || brief() ? 128256 : 262144, 1);
        rig_fill(rig, shapes[round % 4]);
        for (size_t i = 0; i < sizeof ways / sizeof ways[0]; i++) {
            struct cuda_output *output = rig_output(rig, 0);
            output->sampling.temperature = ways[i].temperature;
            output->sampling.top_p = ways[i].top_p;
            output->sampling.min_p = ways[i].min_p;
            output->sampling.typical_p = ways[i].typical_p;
            output->sampling.top_k = ways[i].top_k;
            output->uniform = random_uniform();
            output->n_top = i % 3 == 0 ? 20 : 0;
            if (i % 4 == 1)
                random_changes(rig, output);
        }
        for (int i = 0; i < 8; i++)
            random_output(rig);
        compare_all(rig);
        rig_free(rig);
    }
    excuses_are_rare();
}

/* Every result an output asked for, and nothing else, is written; to the same bits when the output
 * is alone. More outputs than slots want lists longer than shared memory. */
static void results_are_the_same_alone(void **state)
{
    (void)state;
    struct rig *rig = rig_new(5000, ROWS_MAX);
    static struct cuda_drawn together[OUTPUTS_MAX];
    rig_fill(rig, SHAPE_NORMAL);
    for (uint32_t i = 0; i < OUTPUTS_MAX; i++) {
        if (i % 2) {
            random_output(rig);
        } else {
            struct cuda_output *output = rig_output(rig, i % ROWS_MAX);
            output->uniform = random_uniform();
            output->sampling.typical_p = 0.9f; /* sorts everything */
        }
    }
    compare_all(rig);
    memcpy(together, rig->drawn, sizeof together);
    for (uint32_t i = 0; i < (brief() ? 4 : OUTPUTS_MAX); i++) {
        rig_run(rig, i, 1);
        assert_memory_equal(&together[i], &rig->drawn[i], sizeof together[i]);
        const struct cuda_output *output = &rig->outputs[i];
        uint8_t untouched[sizeof(struct infer_logprob)];
        memset(untouched, 0xee, sizeof untouched);
        bool logprobs = output->n_top > 0 || output->target >= 0;
        for (uint32_t j = output->n_top; j < INFER_TOP_MAX; j++)
            assert_memory_equal(&rig->drawn[i].top[j], untouched, sizeof untouched);
        if (!output->sample)
            assert_memory_equal(&rig->drawn[i].token, untouched, sizeof(int32_t));
        if (!output->sample || !logprobs)
            assert_memory_equal(&rig->drawn[i].logprob, untouched, sizeof(float));
    }
    rig_free(rig);
    excuses_are_rare();
}

/* The longest lists: 1024 biases, four to a token, and a penalty window of 4096 within more. */
static void the_longest_lists_of_changes(void **state)
{
    (void)state;
    struct rig *rig = rig_new(3000, 1);
    for (int round = 0; round < (brief() ? 2 : 12); round++) {
        rig_clear(rig);
        rig_fill(rig, round % 2 ? SHAPE_TIES : SHAPE_NORMAL);
        struct cuda_output *output = rig_output(rig, 0);
        for (uint32_t i = 0; i < INFER_LOGIT_BIASES_MAX; i++)
            add_bias(rig, output, (int32_t)(i * 7 % 256 * 11), normal());
        uint32_t tokens = round < 3 ? 1 : 3000;
        for (uint32_t i = 0; i < INFER_PENALTY_WINDOW_MAX + 500; i++)
            add_seen(rig, output, (int32_t)random_below(tokens));
        output->sampling.penalty_window = INFER_PENALTY_WINDOW_MAX;
        output->sampling.repetition_penalty = 1.1f;
        output->sampling.frequency_penalty = 0.01f;
        output->sampling.presence_penalty = 0.5f;
        output->sampling.temperature = round % 3 ? 1.0f : 0.0f;
        output->sampling.top_k = round % 3 == 1 ? 50 : 0;
        output->uniform = random_uniform();
        compare_all(rig);
    }
    rig_free(rig);
    excuses_are_rare();
}

/* A regular grid of uniforms gives each token its share to within one grid step at each end of its
 * interval. */
static void draws_follow_the_distribution(void **state)
{
    (void)state;
    enum { N = 75, GRID = 960 };
    struct rig *rig = rig_new(N, 1);
    rig_fill(rig, SHAPE_NORMAL);
    for (int k = 0; k < 2; k++) {
        double p[N], sum = 0;
        int drawn[N] = {0}, worst = 0;
        for (int i = 0; i < N; i++)
            worst = rig->logits[i] < rig->logits[worst] ? i : worst;
        for (int i = 0; i < N; i++)
            sum += p[i] = k && i == worst ? 0 : exp((double)rig->logits[i] / (double)0.7f);
        for (int first = 0; first < GRID; first += OUTPUTS_MAX) {
            rig_clear(rig);
            for (uint32_t i = 0; i < OUTPUTS_MAX; i++) {
                struct cuda_output *output = rig_output(rig, 0);
                output->sampling.temperature = 0.7f;
                output->sampling.top_k = k ? N - 1 : 0; /* by descending logit, or by id */
                output->uniform = (first + (int)i + 0.5) / GRID;
            }
            rig_run(rig, 0, OUTPUTS_MAX);
            for (uint32_t i = 0; i < OUTPUTS_MAX; i++)
                drawn[rig->drawn[i].token]++;
        }
        for (int i = 0; i < N; i++)
            assert_true(fabs(drawn[i] - GRID * p[i] / sum) <= 1.1);
    }
    rig_free(rig);
}

/* Weights of 1 make sums exact: a running sum that equals the target has not gone beyond it. With a
 * uniform of 1, which rounding may come to, none does; then it is the last token with a weight. */
static void a_draw_goes_beyond_its_target(void **state)
{
    (void)state;
    enum { N = 1024, KEPT = 512 };
    struct rig *rig = rig_new(N, 2);
    for (uint32_t i = 0; i < N; i++) {
        rig->logits[i] = i < KEPT ? 3 : -INFINITY;
        rig->logits[rig->stride + i] = 3;
    }
    rig_put(rig->d_logits, rig->logits, 2 * rig->stride * sizeof(float));
    for (uint32_t k = 0; k < 3; k++) { /* by id, and by descending logit: a long and a short list */
        static const uint32_t top_k[] = {0, KEPT, 64};
        uint32_t kept = k < 2 ? KEPT : 64;
        rig_clear(rig);
        for (uint32_t i = 0; i < OUTPUTS_MAX; i++) {
            struct cuda_output *output = rig_output(rig, k == 0 ? 0 : 1);
            output->sampling.top_k = top_k[k];
            output->uniform = i == 0 ? 1.0 : (double)(i * 11 % kept) / kept;
        }
        rig_run(rig, 0, OUTPUTS_MAX);
        for (uint32_t i = 0; i < OUTPUTS_MAX; i++)
            assert_int_equal(rig->drawn[i].token, i == 0 ? kept - 1 : i * 11 % kept);
    }
    rig_free(rig);
}

/* What outputs want is read when a captured graph runs, not when it was captured. */
static void a_graph_reads_its_outputs_anew(void **state)
{
    (void)state;
    struct rig *rig = rig_new(3000, 2);
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cuda_ok(cudaStreamBeginCapture(rig->stream, cudaStreamCaptureModeThreadLocal));
    cuda_ok(rig_launch(rig, 0, 8));
    cuda_ok(cudaStreamEndCapture(rig->stream, &graph));
    cuda_ok(cudaGraphInstantiate(&exec, graph, 0));
    for (int round = 0; round < (brief() ? 2 : 20); round++) {
        rig_clear(rig);
        rig_fill(rig, (enum shape)(round % SHAPES));
        for (int i = 0; i < 8; i++)
            random_output(rig);
        rig_put(rig->d_outputs, rig->outputs, sizeof rig->outputs);
        rig_put(rig->d_bias, rig->bias, sizeof rig->bias);
        rig_put(rig->d_seen, rig->seen, sizeof rig->seen);
        cuda_ok(cudaDeviceSynchronize());
        cuda_ok(cudaGraphLaunch(exec, rig->stream));
        cuda_ok(cudaStreamSynchronize(rig->stream));
        cuda_ok(cudaMemcpy(rig->drawn, rig->d_drawn, sizeof rig->drawn, cudaMemcpyDeviceToHost));
        for (uint32_t i = 0; i < 8; i++)
            compare(rig, i);
    }
    cuda_ok(cudaGraphExecDestroy(exec));
    cuda_ok(cudaGraphDestroy(graph));
    rig_free(rig);
    excuses_are_rare();
}

/* Scratch never shrinks as outputs are added, and a batch fits into what its largest would take. */
static void scratch_grows_with_outputs(void **state)
{
    (void)state;
    static const uint32_t sizes[] = {1, 75, 32000, 128256, 262144, INFER_VOCAB_MAX};
    for (int i = 0; i < 6; i++) {
        size_t before = 0;
        for (uint32_t n = 1; n <= 256; n++) {
            size_t bytes = cuda_sample_scratch_bytes(sizes[i], n);
            assert_true(bytes > before);
            before = bytes;
        }
    }
    assert_true(cuda_sample_scratch_bytes(128256, 256) < (size_t)80 << 20);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_cases_agree),
        cmocka_unit_test(large_vocabularies_agree),
        cmocka_unit_test(results_are_the_same_alone),
        cmocka_unit_test(the_longest_lists_of_changes),
        cmocka_unit_test(draws_follow_the_distribution),
        cmocka_unit_test(a_draw_goes_beyond_its_target),
        cmocka_unit_test(a_graph_reads_its_outputs_anew),
        cmocka_unit_test(scratch_grows_with_outputs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
