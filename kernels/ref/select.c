/* select.c: maxima, sums of exponentials and partial sorts over one row of logits.
 *
 * Pure functions, any thread. The loops over the vocabulary work on vectors of four, the width
 * that every 64-bit machine has, in the compiler's generic vector types: the same sums in the same
 * order everywhere. Single numbers take the same path, as one lane of four, so that a token's
 * weight is the same bits wherever it is computed.
 *
 * NaN needs no special case where a comparison decides: `x > best` is false for it. */
#include "ref/select.h"

#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

typedef float vec __attribute__((vector_size(16)));
typedef int32_t mask __attribute__((vector_size(16)));

#define LANES 4u
#define BLOCK 32u /* logits per step of a search; a multiple of LANES */

static inline vec load(const float *from)
{
    vec v;
    memcpy(&v, from, sizeof v);
    return v;
}

static inline vec splat(float value)
{
    return (vec){value, value, value, value};
}

static inline vec choose(mask which, vec yes, vec no)
{
    return (vec)((which & (mask)yes) | (~which & (mask)no));
}

static inline bool any(mask hits)
{
    return (hits[0] | hits[1] | hits[2] | hits[3]) != 0;
}

static float clean(float logit)
{
    return logit > -INFINITY ? fminf(logit, FLT_MAX) : -INFINITY;
}

float ref_max(const float *logits, uint32_t n)
{
    vec lanes[4] = {splat(-INFINITY), splat(-INFINITY), splat(-INFINITY), splat(-INFINITY)};
    float best = -INFINITY;
    uint32_t i = 0;

    for (; i + 4 * LANES <= n; i += 4 * LANES) {
        for (uint32_t v = 0; v < 4; v++) {
            vec x = load(logits + i + LANES * v);
            lanes[v] = choose(x > lanes[v], x, lanes[v]);
        }
    }
    for (; i < n; i++)
        best = logits[i] > best ? logits[i] : best;
    for (uint32_t l = 0; l < 4 * LANES; l++)
        best = lanes[l / LANES][l % LANES] > best ? lanes[l / LANES][l % LANES] : best;
    return clean(best);
}

/* Whether one of BLOCK logits is above the threshold. */
static bool any_above(const float *logits, float threshold)
{
    mask hits = {0};
    for (uint32_t l = 0; l < BLOCK; l += LANES)
        hits |= load(logits + l) > splat(threshold);
    return any(hits);
}

static bool any_from(const float *logits, float threshold)
{
    mask hits = {0};
    for (uint32_t l = 0; l < BLOCK; l += LANES)
        hits |= load(logits + l) >= splat(threshold);
    return any(hits);
}

int32_t ref_argmax(const float *logits, uint32_t n)
{
    float best = ref_max(logits, n);
    uint32_t i = 0;
    if (best == -INFINITY)
        return 0;
    while (i + BLOCK <= n && !any_from(logits + i, best))
        i += BLOCK;
    for (; i < n; i++) {
        if (logits[i] >= best)
            return (int32_t)i;
    }
    return 0;
}

/* exp(x) for x <= 0, to about one unit in the last place: x = n ln 2 + r with |r| <= ln 2 / 2,
 * then the Taylor series to r^7 (the rest is under 6e-9) times 2^n. From n = -127 down, where the
 * result would be subnormal, it is zero: the power's exponent bits then are. */
static inline vec exp_nonpositive(vec x)
{
    const vec round = splat(0x1.8p23f); /* adding and subtracting it rounds to a whole number */
    x = choose(x > splat(-88.03f), x, splat(-88.03f));
    vec whole = (x * splat(0x1.715476p+0f) + round) - round;
    vec r = (x - whole * splat(0x1.62ep-1f)) - whole * splat(0x1.0bfbe8p-15f); /* ln 2, split */
    vec p = splat(1.0f / 5040);
    p = p * r + splat(1.0f / 720);
    p = p * r + splat(1.0f / 120);
    p = p * r + splat(1.0f / 24);
    p = p * r + splat(1.0f / 6);
    p = p * r + splat(0.5f);
    p = p * r + splat(1.0f);
    p = p * r + splat(1.0f);
    mask exponent = __builtin_convertvector(whole, mask) + 127;
    return p * (vec)(exponent << 23);
}

/* The weight of each logit that is at least `floor`, else zero. */
static inline vec weights(vec logits, float max, float temperature, float floor)
{
    vec bounded = choose(logits < splat(FLT_MAX), logits, splat(FLT_MAX));
    vec weight = exp_nonpositive((bounded - splat(max)) / splat(temperature));
    return (vec)((mask)weight & (logits >= splat(floor)));
}

float ref_exp_scaled(float logit, float max, float temperature)
{
    return weights(splat(logit), max, temperature, -INFINITY)[0];
}

/* At most CHUNK logits in float lanes, whose sum has at most CHUNK / LANES / 2 roundings of half
 * a unit each; chunks add up in double. */
#define CHUNK 256u

static double exp_sum_chunk(const float *logits, uint32_t n, float max, float temperature,
                            float floor)
{
    vec even = {0}, odd = {0};
    double sum = 0;
    uint32_t i = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES) {
        even += weights(load(logits + i), max, temperature, floor);
        odd += weights(load(logits + i + LANES), max, temperature, floor);
    }
    for (; i < n; i++)
        sum += (double)weights(splat(logits[i]), max, temperature, floor)[0];
    for (uint32_t l = 0; l < LANES; l++)
        sum += (double)even[l] + (double)odd[l];
    return sum;
}

double ref_exp_sum(const float *logits, uint32_t n, float max, float temperature, float floor)
{
    double sum = 0;
    if (max == -INFINITY)
        return 0;
    for (uint32_t i = 0; i < n; i += CHUNK)
        sum += exp_sum_chunk(logits + i, n - i < CHUNK ? n - i : CHUNK, max, temperature, floor);
    return sum;
}

double ref_logsumexp(const float *logits, uint32_t n)
{
    float max = ref_max(logits, n);
    if (max == -INFINITY)
        return -INFINITY;
    return (double)max + log(ref_exp_sum(logits, n, max, 1.0f, -INFINITY));
}

uint32_t ref_gather(const float *logits, uint32_t n, float floor, struct ref_candidate *list)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < n; i++) {
        list[count] = (struct ref_candidate){clean(logits[i]), (int32_t)i};
        count += logits[i] >= floor;
    }
    return count;
}

/* ---- sorting --------------------------------------------------------------------------------- */

/* An unsigned number that ascends as the logit descends. */
static uint32_t sort_key(float logit)
{
    uint32_t bits;
    logit += 0.0f; /* minus zero and zero are equal */
    memcpy(&bits, &logit, sizeof bits);
    return bits >> 31 ? bits : ~bits & 0x7fffffff;
}

/* Least-significant-digit radix sort: four passes of eight bits, those that would move nothing
 * left out. */
void ref_sort(struct ref_candidate *list, uint32_t n, struct ref_candidate *other)
{
    uint32_t count[4][256];
    struct ref_candidate *from = list, *to = other;

    memset(count, 0, sizeof count);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t key = sort_key(list[i].logit);
        for (uint32_t pass = 0; pass < 4; pass++)
            count[pass][key >> 8 * pass & 255]++;
    }
    for (uint32_t pass = 0; pass < 4; pass++) {
        uint32_t at = 0;
        if (n == 0 || count[pass][sort_key(from[0].logit) >> 8 * pass & 255] == n)
            continue;
        for (uint32_t digit = 0; digit < 256; digit++) {
            uint32_t here = count[pass][digit];
            count[pass][digit] = at;
            at += here;
        }
        for (uint32_t i = 0; i < n; i++)
            to[count[pass][sort_key(from[i].logit) >> 8 * pass & 255]++] = from[i];
        struct ref_candidate *swap = from;
        from = to;
        to = swap;
    }
    if (from != list)
        memcpy(list, from, n * sizeof *list);
}

/* Whether a stands behind b in descending order. */
static bool behind(struct ref_candidate a, struct ref_candidate b)
{
    return a.logit < b.logit || (a.logit == b.logit && a.token > b.token);
}

/* In a heap of n whose root is the hindmost: puts `item` into the hole at `at` or below it. */
static void heap_sift(struct ref_candidate *heap, uint32_t n, uint32_t at,
                      struct ref_candidate item)
{
    for (;;) {
        uint32_t child = 2 * at + 1;
        if (child >= n)
            break;
        if (child + 1 < n && behind(heap[child + 1], heap[child]))
            child++;
        if (!behind(heap[child], item))
            break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = item;
}

static struct ref_candidate candidate(const float *logits, uint32_t i)
{
    return (struct ref_candidate){clean(logits[i]), (int32_t)i};
}

uint32_t ref_top(const float *logits, uint32_t n, uint32_t k, struct ref_candidate *list)
{
    if (k > n)
        k = n;
    if (k == 0)
        return 0;
    for (uint32_t i = 0; i < k; i++)
        list[i] = candidate(logits, i);
    for (uint32_t i = k / 2; i-- > 0;)
        heap_sift(list, k, i, list[i]);

    /* A later token enters only if it is above the hindmost: an equal one has the higher id. */
    for (uint32_t i = k; i < n;) {
        if (i + BLOCK <= n && !any_above(logits + i, list[0].logit)) {
            i += BLOCK;
            continue;
        }
        uint32_t end = i + BLOCK < n ? i + BLOCK : n;
        for (; i < end; i++) {
            struct ref_candidate next = candidate(logits, i);
            if (next.logit > list[0].logit)
                heap_sift(list, k, 0, next);
        }
    }
    /* Move the hindmost to the end, again and again. */
    for (uint32_t left = k; left > 1; left--) {
        struct ref_candidate hindmost = list[0];
        heap_sift(list, left - 1, 0, list[left - 1]);
        list[left - 1] = hindmost;
    }
    return k;
}
