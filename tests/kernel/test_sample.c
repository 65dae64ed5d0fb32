/* The sampler: each parameter's effect, ties, NaN, its distribution, and random parameter sets
 * against an independent sampler that sorts everything and computes in double. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "ref/sample.h"

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define VOCAB_MAX 5000

/* Numbers in [0, 1) from a 64-bit linear congruence. */
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

static void random_logits(float *logits, uint32_t n, float spread)
{
    for (uint32_t i = 0; i < n; i++) {
        double sum = 0;
        for (int j = 0; j < 12; j++)
            sum += random_uniform();
        logits[i] = spread * (float)(sum - 6); /* nearly normal */
    }
}

/* ---- a sampler at hand ----------------------------------------------------------------------- */

struct bench {
    struct ref_sample_scratch scratch;
    void *memory;
    float logits[VOCAB_MAX];
    struct infer_sampling sampling;
    struct infer_batch_output output;
};

/* With everything off: plain softmax at temperature 1. */
static struct bench *bench_new(uint32_t n_vocab)
{
    struct bench *b = calloc(1, sizeof *b);
    assert_non_null(b);
    b->memory = calloc(1, ref_sample_scratch_bytes(n_vocab));
    assert_non_null(b->memory);
    ref_sample_scratch_init(&b->scratch, n_vocab, b->memory);
    infer_sampling_default(&b->sampling);
    b->sampling.temperature = 1;
    b->sampling.top_k = 0;
    b->sampling.top_p = 1;
    b->sampling.min_p = 0;
    b->output = (struct infer_batch_output){.sample = 1, .target = -1, .sampling = &b->sampling};
    return b;
}

static void bench_free(struct bench *b)
{
    free(b->memory);
    free(b);
}

/* One draw; afterwards the logits and the counts are as before. */
static int32_t bench_draw(struct bench *b, double uniform)
{
    static float before[VOCAB_MAX];
    memcpy(before, b->logits, sizeof before);
    b->output.uniform = uniform;
    ref_sample(&b->scratch, b->logits, &b->output);
    assert_memory_equal(before, b->logits, sizeof before);
    for (uint32_t i = 0; i < b->scratch.n_vocab; i++)
        assert_int_equal(b->scratch.counts[i], 0);
    return b->output.token;
}

static int32_t bench_greedy(struct bench *b)
{
    b->sampling.temperature = 0;
    return bench_draw(b, 0.5);
}

/* ---- the independent sampler ----------------------------------------------------------------- */

struct item {
    double logit, p, key;
    int32_t token;
};

static int by_key(const void *a, const void *b)
{
    const struct item *x = a, *y = b;
    if (x->key != y->key)
        return x->key > y->key ? -1 : 1;
    return x->token < y->token ? -1 : 1;
}

static void sort_by_logit(struct item *items, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        items[i].key = items[i].logit;
    qsort(items, n, sizeof *items, by_key);
}

static void set_p(struct item *items, uint32_t n, double temperature)
{
    double max = -INFINITY, sum = 0;
    for (uint32_t i = 0; i < n; i++)
        max = fmax(max, items[i].logit);
    for (uint32_t i = 0; i < n; i++)
        sum += items[i].p = exp((items[i].logit - max) / temperature);
    for (uint32_t i = 0; i < n; i++)
        items[i].p /= sum;
}

/* How near a decision was to going the other way; float arithmetic may differ within it. */
static void note(double *margin, double distance)
{
    *margin = fmin(*margin, fabs(distance));
}

static uint32_t plain_typical(struct item *items, uint32_t n, double typical_p, double *margin)
{
    double entropy = 0, sum = 0;
    uint32_t kept = 0;
    set_p(items, n, 1);
    for (uint32_t i = 0; i < n; i++)
        entropy -= items[i].p > 0 ? items[i].p * log(items[i].p) : 0;
    for (uint32_t i = 0; i < n; i++)
        items[i].key = -fabs(-log(items[i].p) - entropy);
    qsort(items, n, sizeof *items, by_key);
    while (kept < n && sum < typical_p) {
        sum += items[kept++].p;
        note(margin, sum - typical_p);
    }
    if (kept < n)
        note(margin, items[kept - 1].key - items[kept].key);
    sort_by_logit(items, kept);
    return kept;
}

static uint32_t plain_top_p(struct item *items, uint32_t n, double top_p, double *margin)
{
    double sum = 0;
    uint32_t kept = 0;
    set_p(items, n, 1);
    while (kept < n && sum < top_p) {
        sum += items[kept++].p;
        note(margin, sum - top_p);
    }
    return kept;
}

static uint32_t plain_min_p(struct item *items, uint32_t n, double min_p, double *margin)
{
    uint32_t kept = 0;
    set_p(items, n, 1);
    for (uint32_t i = 0; i < n; i++) {
        note(margin, items[i].logit - items[0].logit - log(min_p));
        if (items[i].p >= min_p * items[0].p)
            items[kept++] = items[i];
    }
    return kept;
}

static int by_token(const void *a, const void *b)
{
    const struct item *x = a, *y = b;
    return x->token < y->token ? -1 : x->token > y->token;
}

static int32_t plain_draw(const struct bench *b, double uniform, double *ret_margin)
{
    static struct item items[VOCAB_MAX];
    const struct infer_sampling *s = &b->sampling;
    uint32_t n = 0, n_vocab = b->scratch.n_vocab;
    double margin = 1, sum = 0;

    for (uint32_t i = 0; i < n_vocab; i++) {
        double logit = b->logits[i];
        uint32_t count = 0;
        for (uint32_t j = 0; j < b->output.n_bias; j++)
            logit += b->output.bias[j].token == (int32_t)i ? b->output.bias[j].bias : 0;
        for (uint32_t j = 0; j < b->output.n_seen; j++)
            count += b->output.seen[j] == (int32_t)i;
        if (count > 0 && s->penalty_window > 0) {
            logit = logit > 0 ? logit / s->repetition_penalty : logit * s->repetition_penalty;
            logit -= count * (double)s->frequency_penalty + s->presence_penalty;
        }
        if (logit > -INFINITY) /* false for NaN */
            items[n++] = (struct item){.logit = logit, .token = (int32_t)i};
    }
    sort_by_logit(items, n);
    if (s->top_k > 0 && s->top_k < n) {
        note(&margin, items[s->top_k - 1].logit - items[s->top_k].logit);
        n = s->top_k;
    }
    if (s->typical_p < 1)
        n = plain_typical(items, n, s->typical_p, &margin);
    if (s->top_p < 1)
        n = plain_top_p(items, n, s->top_p, &margin);
    if (s->min_p > 0)
        n = plain_min_p(items, n, s->min_p, &margin);
    bool sorted = (s->top_k > 0 && s->top_k < n_vocab) || s->typical_p < 1 || s->top_p < 1;
    if (!sorted)
        qsort(items, n, sizeof *items, by_token);
    for (uint32_t i = 0; sorted && i + 1 < n; i++) /* rounding may swap neighbours */
        note(&margin,
             items[i].logit - items[i + 1].logit > 0 ? items[i].logit - items[i + 1].logit : 1);
    set_p(items, n, s->temperature);
    for (uint32_t i = 0; i < n; i++) {
        sum += items[i].p;
        note(&margin, sum - uniform);
        if (sum > uniform || i + 1 == n) {
            *ret_margin = margin;
            return items[i].token;
        }
    }
    *ret_margin = 0;
    return 0;
}

/* ---- tests ----------------------------------------------------------------------------------- */

static void greedy_takes_the_first_best(void **state)
{
    (void)state;
    const uint32_t sizes[] = {1, 2, 15, 16, 31, 33, 64, 1000, 4099};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        struct bench *b = bench_new(sizes[i]);
        for (uint32_t best = 0; best < sizes[i]; best += 1 + sizes[i] / 37) {
            random_logits(b->logits, sizes[i], 1);
            b->logits[best] = 50;
            b->logits[best + random_below(sizes[i] - best)] = 50; /* a tie, or itself */
            assert_int_equal(bench_greedy(b), best);
        }
        bench_free(b);
    }
}

static void nan_is_never_drawn(void **state)
{
    (void)state;
    struct bench *b = bench_new(100);
    for (int i = 0; i < 100; i++)
        b->logits[i] = i % 3 == 0 ? NAN : (float)(i % 7);
    for (int k = 0; k < 4; k++) {
        b->sampling.temperature = 1;
        b->sampling.top_k = k == 1 ? 50 : 0;
        b->sampling.top_p = k == 2 ? 0.99f : 1;
        b->sampling.typical_p = k == 3 ? 0.99f : 1;
        for (double u = 0; u < 1; u += 0.001)
            assert_int_not_equal(bench_draw(b, u) % 3, 0);
        assert_int_not_equal(bench_draw(b, 1 - 0x1p-53) % 3, 0);
    }
    assert_int_equal(bench_greedy(b), 13); /* the first with 6 that is no multiple of 3 */

    for (int i = 0; i < 100; i++)
        b->logits[i] = i % 2 ? NAN : -INFINITY;
    assert_int_equal(bench_greedy(b), 0);
    b->sampling.temperature = 1;
    assert_int_equal(bench_draw(b, 0.7), 0);
    b->sampling.top_k = 5;
    assert_int_equal(bench_draw(b, 0.7), 0);

    b->logits[41] = INFINITY;
    assert_int_equal(bench_draw(b, 0.7), 41);
    assert_int_equal(bench_greedy(b), 41);
    bench_free(b);
}

static void bias_acts_first(void **state)
{
    (void)state;
    struct bench *b = bench_new(10);
    for (int i = 0; i < 10; i++)
        b->logits[i] = (float)i;
    struct infer_logit_bias bias[] = {
        {9, -INFINITY}, {3, 4}, {3, 4}, {-1, 100}, {10, 100}, /* outside: ignored */
    };
    b->output.bias = bias;
    b->output.n_bias = 1;
    assert_int_equal(bench_greedy(b), 8);
    b->output.n_bias = 2; /* 3 + 4 = 7 */
    assert_int_equal(bench_greedy(b), 8);
    b->output.n_bias = 5; /* 3 + 4 + 4 = 11: a token's biases add up */
    assert_int_equal(bench_greedy(b), 3);
    b->output.n_bias = 1;
    b->sampling.temperature = 1;
    for (double u = 0; u < 1; u += 0.001)
        assert_int_not_equal(bench_draw(b, u), 9);
    bench_free(b);
}

static void penalties_act_on_what_was_seen(void **state)
{
    (void)state;
    struct bench *b = bench_new(4);
    const int32_t seen[] = {0, 2, 2, 2, 1, -5, 4}; /* the last two lie outside */
    float logits[4] = {10, 9, 8, 7};
    memcpy(b->logits, logits, sizeof logits);
    b->output.seen = seen;
    b->output.n_seen = 1;
    assert_int_equal(bench_greedy(b), 0);
    b->sampling.repetition_penalty = 1.2f; /* 10 / 1.2 < 9 */
    assert_int_equal(bench_greedy(b), 1);
    b->sampling.penalty_window = 0; /* off */
    assert_int_equal(bench_greedy(b), 0);
    b->sampling.penalty_window = 64;

    b->sampling.repetition_penalty = 1;
    b->sampling.presence_penalty = 1.5f; /* 8.5 */
    assert_int_equal(bench_greedy(b), 1);
    b->sampling.presence_penalty = 0;

    b->output.n_seen = 7;
    b->sampling.frequency_penalty = -1; /* 11, 10, 11, 7: each time counts; the tie: lower */
    assert_int_equal(bench_greedy(b), 0);
    b->sampling.frequency_penalty = -1.5f; /* 11.5, 10.5, 12.5, 7 */
    assert_int_equal(bench_greedy(b), 2);
    b->sampling.penalty_window = 3; /* only 1 counts, once: 10, 10.5, 8, 7 */
    assert_int_equal(bench_greedy(b), 1);
    b->sampling.penalty_window = 64;
    b->sampling.frequency_penalty = 0;

    b->sampling.repetition_penalty = 2; /* a negative logit is multiplied */
    float negative[4] = {-1, -1.5f, -9, -1.9f};
    memcpy(b->logits, negative, sizeof negative); /* -2, -3, -18, -1.9 */
    assert_int_equal(bench_greedy(b), 3);
    bench_free(b);
}

/* Which tokens can be drawn at all, by a fine sweep of the uniform number. */
static uint32_t reachable(struct bench *b, bool *ret_set)
{
    uint32_t count = 0;
    memset(ret_set, 0, b->scratch.n_vocab * sizeof *ret_set);
    for (int i = 0; i < 4000; i++)
        ret_set[bench_draw(b, (i + 0.5) / 4000)] = true;
    for (uint32_t i = 0; i < b->scratch.n_vocab; i++)
        count += ret_set[i];
    return count;
}

static void top_k_keeps_the_k_best(void **state)
{
    (void)state;
    static bool set[300];
    struct bench *b = bench_new(300);
    for (int i = 0; i < 300; i++)
        b->logits[(i * 7) % 300] = (float)(i / 2) * 0.01f; /* a permutation, in pairs of ties */
    b->sampling.temperature = 100;
    for (uint32_t k = 1; k <= 310; k += 13) {
        b->sampling.top_k = k;
        uint32_t wanted = k < 300 ? k : 300;
        assert_int_equal(reachable(b, set), wanted);
        float lowest = INFINITY;
        for (int i = 0; i < 300; i++)
            lowest = set[i] ? fminf(lowest, b->logits[i]) : lowest;
        for (int i = 0; i < 300; i++) {
            assert_true(b->logits[i] > lowest ? set[i] : b->logits[i] == lowest || !set[i]);
            for (int j = 0; j < i && set[i]; j++) /* of two equal, the lower id */
                assert_true(set[j] || b->logits[j] != b->logits[i]);
        }
    }
    bench_free(b);
}

static void top_p_and_min_p_cut_by_probability(void **state)
{
    (void)state;
    static bool set[8];
    struct bench *b = bench_new(8);
    const float p[8] = {0.05f, 0.4f, 0.02f, 0.25f, 0.15f, 0.1f, 0.02f, 0.01f};
    for (int i = 0; i < 8; i++)
        b->logits[i] = logf(p[i]) + 3;
    for (int k = 0; k < 2; k++) { /* without top-k, and with one that cuts almost nothing */
        b->sampling.top_k = k ? 7 : 0;
        b->sampling.top_p = 0.3f;
        assert_int_equal(reachable(b, set), 1);
        b->sampling.top_p = 0.6f;
        assert_int_equal(reachable(b, set), 2);
        assert_true(set[1] && set[3]);
        b->sampling.top_p = 0.78f;
        assert_int_equal(reachable(b, set), 3);
        assert_true(set[4]);
        b->sampling.top_p = 1e-9f; /* at least one stays */
        assert_int_equal(reachable(b, set), 1);
        b->sampling.top_p = 1;
        b->sampling.min_p = 0.24f;
        assert_int_equal(reachable(b, set), 4);
        b->sampling.min_p = 0.26f;
        assert_int_equal(reachable(b, set), 3);
        b->sampling.min_p = 1;
        assert_int_equal(reachable(b, set), 1);
        b->sampling.min_p = 0;
    }
    bench_free(b);
}

/* Tokens too far from the best to matter one by one, but not all together: 4999 of e^-13 beside one
 * of 1 hold 1.1 % of the total, and top-p 0.999 needs 91 % of them. */
static void top_p_reaches_a_long_tail(void **state)
{
    (void)state;
    struct bench *b = bench_new(VOCAB_MAX);
    for (int i = 1; i < VOCAB_MAX; i++)
        b->logits[i] = -13;
    b->sampling.top_p = 0.999f;
    double tail = exp(-13), needed = (0.999 * (1 + 4999 * tail) - 1) / tail;
    assert_int_equal(bench_draw(b, 0.98), 0);
    assert_true(fabs(bench_draw(b, 1 - 1e-12) - needed) < 5);
    b->sampling.top_p = 0.98f;
    assert_int_equal(bench_draw(b, 1 - 1e-12), 0);
    bench_free(b);
}

/* Entropy near the surprise of the middle tokens: the most likely one is not typical. */
static void typical_may_drop_the_best(void **state)
{
    (void)state;
    static bool set[41];
    struct bench *b = bench_new(41);
    b->logits[7] = logf(0.2f);
    for (int i = 0; i < 41; i++)
        b->logits[i] = i == 7 ? logf(0.2f) : logf(0.02f);
    b->sampling.typical_p = 0.5f;
    reachable(b, set);
    assert_false(set[7]);
    b->sampling.typical_p = 1;
    reachable(b, set);
    assert_true(set[7]);
    bench_free(b);
}

static void temperature_sharpens_and_flattens(void **state)
{
    (void)state;
    struct bench *b = bench_new(2);
    b->logits[0] = 0;
    b->logits[1] = 1;
    const float temperatures[] = {0.5f, 1, 4, 100};
    for (int t = 0; t < 4; t++) {
        double p = 1 / (1 + exp(1 / (double)temperatures[t])); /* of token 0, the first by id */
        b->sampling.temperature = temperatures[t];
        assert_int_equal(bench_draw(b, p - 1e-5), 0);
        assert_int_equal(bench_draw(b, p + 1e-5), 1);
    }
    b->sampling.temperature = 1e-30f;
    for (double u = 0; u < 1; u += 0.01)
        assert_int_equal(bench_draw(b, u), 1);
    bench_free(b);
}

/* A regular grid of uniforms must give each token its share to within one grid step at each end of
 * its interval (the interval's ends are off by float rounding, far under a step); and
 * pseudo-random uniforms a chi-square statistic within five standard deviations of its mean. */
static void draws_follow_the_distribution(void **state)
{
    (void)state;
    enum { N = 60, GRID = 50000 };
    struct bench *b = bench_new(N);
    random_logits(b->logits, N, 1.5f);
    b->sampling.temperature = 0.7f;
    for (int k = 0; k < 2; k++) {
        double p[N], sum = 0, chi = 0;
        int grid[N] = {0}, drawn[N] = {0};
        b->sampling.top_k = k ? N - 1 : 0; /* the other way of drawing, by descending logit */
        int worst = 0;
        for (int i = 0; i < N; i++)
            worst = b->logits[i] < b->logits[worst] ? i : worst;
        for (int i = 0; i < N; i++)
            sum += p[i] = k && i == worst ? 0 : exp((double)b->logits[i] / (double)0.7f);
        for (int i = 0; i < GRID; i++) {
            grid[bench_draw(b, (i + 0.5) / GRID)]++;
            drawn[bench_draw(b, random_uniform())]++;
        }
        for (int i = 0; i < N; i++) {
            double expected = GRID * p[i] / sum;
            assert_true(fabs(grid[i] - expected) <= 1.1);
            if (expected > 0)
                chi += (drawn[i] - expected) * (drawn[i] - expected) / expected;
            else
                assert_int_equal(drawn[i], 0);
        }
        assert_true(chi < N + 5 * sqrt(2.0 * N));
    }
    bench_free(b);
}

static void random_parameters(struct bench *b)
{
    struct infer_sampling *s = &b->sampling;
    uint32_t n = b->scratch.n_vocab;
    static const float some_p[] = {1, 0.999f, 0.95f, 0.5f, 0.05f};
    s->temperature = 0.1f + 2 * (float)random_uniform();
    s->top_k = random_below(3) ? 0 : random_below(4) ? 1 + random_below(60) : 1 + random_below(n);
    s->top_p = some_p[random_below(5)];
    s->min_p = random_below(2) ? 0 : 0.2f * (float)random_uniform();
    s->typical_p = random_below(3) ? 1 : some_p[1 + random_below(4)];
    s->repetition_penalty = random_below(2) ? 1 : 1.3f;
    s->frequency_penalty = random_below(2) ? 0 : 0.3f;
    s->presence_penalty = random_below(2) ? 0 : -0.2f;
}

/* Rounding in float may decide otherwise only where a decision is nearer than 1e-6 (of logits,
 * about one unit in the last place at 8) or 2e-6 (of probabilities); most cases are not. */
static void agrees_with_the_plain_sampler(void **state)
{
    (void)state;
    static const uint32_t sizes[] = {5, 100, 1999, 4500};
    static const float spreads[] = {0.01f, 1, 3, 8};
    uint32_t compared = 0;
    for (int round = 0; round < 1200; round++) {
        struct bench *b = bench_new(sizes[random_below(4)]);
        int32_t seen[20];
        struct infer_logit_bias bias[3];
        random_logits(b->logits, b->scratch.n_vocab, spreads[random_below(4)]);
        random_parameters(b);
        for (int i = 0; i < 20; i++)
            seen[i] = (int32_t)random_below(b->scratch.n_vocab);
        for (int i = 0; i < 3; i++)
            bias[i] = (struct infer_logit_bias){(int32_t)random_below(b->scratch.n_vocab),
                                                i ? (float)random_uniform() : -INFINITY};
        b->output.seen = seen;
        b->output.n_seen = random_below(21);
        b->output.bias = bias;
        b->output.n_bias = random_below(4);
        for (int draw = 0; draw < 4; draw++) {
            double margin, uniform = random_uniform();
            int32_t wanted = plain_draw(b, uniform, &margin);
            if (margin < 2e-6)
                continue;
            compared++;
            if (bench_draw(b, uniform) != wanted)
                fail_msg("round %d: token %d, not %d (n %u, T %g, k %u, p %g, min %g, typ %g)",
                         round, b->output.token, wanted, b->scratch.n_vocab,
                         (double)b->sampling.temperature, b->sampling.top_k,
                         (double)b->sampling.top_p, (double)b->sampling.min_p,
                         (double)b->sampling.typical_p);
        }
        bench_free(b);
    }
    print_message("%u draws compared\n", compared);
    assert_true(compared > 2000);
}

/* float32 logits of up to 30 have an ulp of 2e-6; the sum's error is far less. */
static void logprobs_are_of_the_raw_logits(void **state)
{
    (void)state;
    static const uint32_t sizes[] = {3, 19, 20, 21, 777, 5000};
    static float copy[VOCAB_MAX];
    for (int k = 0; k < 6; k++) {
        uint32_t n = sizes[k];
        struct bench *b = bench_new(n);
        double sum = 0;
        random_logits(b->logits, n, 4);
        b->logits[n / 2] = b->logits[n - 1] = 18; /* a tie at the top */
        b->logits[0] = NAN;
        for (uint32_t i = 1; i < n; i++)
            sum += exp((double)b->logits[i]);
        struct infer_logit_bias bias = {(int32_t)(n / 2), -INFINITY};
        b->output.bias = &bias;
        b->output.n_bias = 1;
        b->output.n_top = INFER_TOP_MAX;
        b->output.target = 1;
        b->output.logits = copy;
        int32_t token = bench_greedy(b);
        assert_int_equal(token, n - 1);
        assert_true(fabs(b->output.logprob - (18 - log(sum))) < 1e-5);
        assert_true(fabs(b->output.target_logprob - ((double)b->logits[1] - log(sum))) < 1e-5);
        assert_memory_equal(copy, b->logits, n * sizeof copy[0]);
        assert_int_equal(b->output.top[0].token, n / 2 < n - 1 ? n / 2 : n - 1);
        assert_int_equal(b->output.top[1].token, n - 1);
        for (uint32_t i = 0; i < INFER_TOP_MAX; i++) {
            struct infer_logprob top = b->output.top[i];
            if (i >= n) {
                assert_int_equal(top.token, -1);
            } else if (top.token == 0) { /* NaN: last, no probability */
                assert_true(i == n - 1 && top.logprob == -INFINITY);
            } else {
                double wanted = (double)b->logits[top.token] - log(sum);
                assert_true(fabs(top.logprob - wanted) < 1e-5);
                assert_true(i == 0 || top.logprob <= b->output.top[i - 1].logprob);
            }
        }
        bench_free(b);
    }
}

static void nothing_is_drawn_unasked(void **state)
{
    (void)state;
    struct bench *b = bench_new(50);
    random_logits(b->logits, 50, 1);
    b->output.sample = 0;
    b->output.sampling = NULL;
    b->output.target = 7;
    b->output.token = 1234;
    ref_sample(&b->scratch, b->logits, &b->output);
    assert_int_equal(b->output.token, 1234);
    assert_true(b->output.target_logprob < 0);
    bench_free(b);
}

/* Sorting and selecting agree with each other for every k, and with the order's definition. */
static void top_is_a_sorted_prefix(void **state)
{
    (void)state;
    enum { N = 3000 };
    static float logits[N];
    static struct ref_candidate sorted[N], other[N], top[N];
    random_logits(logits, N, 2);
    for (int i = 0; i < N; i += 3)
        logits[i] = roundf(logits[i]); /* many ties, with zeros of both signs */
    assert_int_equal(ref_gather(logits, N, -INFINITY, sorted), N);
    ref_sort(sorted, N, other);
    for (int i = 1; i < N; i++)
        assert_true(
            sorted[i - 1].logit > sorted[i].logit ||
            (sorted[i - 1].logit == sorted[i].logit && sorted[i - 1].token < sorted[i].token));
    for (uint32_t k = 1; k <= N + 1; k = k * 2 + 1) {
        uint32_t n = ref_top(logits, N, k, top);
        assert_int_equal(n, k < N ? k : N);
        for (uint32_t i = 0; i < n; i++)
            assert_int_equal(top[i].token, sorted[i].token);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(greedy_takes_the_first_best),
        cmocka_unit_test(nan_is_never_drawn),
        cmocka_unit_test(bias_acts_first),
        cmocka_unit_test(penalties_act_on_what_was_seen),
        cmocka_unit_test(top_k_keeps_the_k_best),
        cmocka_unit_test(top_p_and_min_p_cut_by_probability),
        cmocka_unit_test(top_p_reaches_a_long_tail),
        cmocka_unit_test(typical_may_drop_the_best),
        cmocka_unit_test(temperature_sharpens_and_flattens),
        cmocka_unit_test(draws_follow_the_distribution),
        cmocka_unit_test(agrees_with_the_plain_sampler),
        cmocka_unit_test(logprobs_are_of_the_raw_logits),
        cmocka_unit_test(nothing_is_drawn_unasked),
        cmocka_unit_test(top_is_a_sorted_prefix),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
