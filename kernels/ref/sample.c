/* sample.c: from one row of logits to a token and its log-probabilities.
 *
 * The order of inferd/sampling.h: logit bias, penalties, top-k, typical, top-p, min-p,
 * temperature, draw. Each of typical, top-p and min-p looks at the softmax, at temperature 1, of
 * the candidates that are left; what is cut is gone for the next.
 *
 * The draw is the inverse of the cumulative distribution: the first candidate at which the running
 * sum of weights exceeds uniform * total. The candidates stand by descending logit (ties: lower
 * id) wherever one of top-k, typical and top-p asks for an order, and by ascending id otherwise,
 * so that the whole vocabulary need not be sorted for nothing.
 *
 * Which path a set of parameters takes, with V the vocabulary:
 *   temperature 0             one maximum                                     O(V), vectorized
 *   top-k to REF_TOP_HEAP_MAX a heap in one pass                              O(V), vectorized
 *   nothing or min-p alone    sums of exponentials                            O(V), vectorized
 *   top-p without top-k       gathers what can matter, sorts that             O(V) + sort
 *   typical, larger top-k     sorts everything                                O(V) radix sort
 *
 * NaN counts as minus infinity and is never drawn; where nothing can be drawn, token 0 is.
 * Threads: one scratch per thread. Allocates nothing. */
#include "ref/sample.h"

#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

#define CHANGES_MAX (INFER_LOGIT_BIASES_MAX + INFER_PENALTY_WINDOW_MAX)

/* Without min-p, top-p first tries with the candidates within e^-12 of the best. */
#define NEAR_BEST 12.0f

/* Tokens whose weights the unsorted draw sums before it looks for the one. */
#define DRAW_BLOCK 256u

size_t ref_sample_scratch_bytes(uint32_t n_vocab)
{
    return 3 * (size_t)n_vocab * sizeof(struct ref_candidate) +
           CHANGES_MAX * sizeof(struct ref_sample_change) + (size_t)n_vocab * sizeof(uint32_t);
}

void ref_sample_scratch_init(struct ref_sample_scratch *scratch, uint32_t n_vocab, void *memory)
{
    scratch->n_vocab = n_vocab;
    scratch->list = memory;
    scratch->other = scratch->list + n_vocab;
    scratch->surprise = scratch->other + n_vocab;
    scratch->changes = (struct ref_sample_change *)(scratch->surprise + n_vocab);
    scratch->counts = (uint32_t *)(scratch->changes + CHANGES_MAX);
}

/* ---- bias and penalties ---------------------------------------------------------------------- */

struct changes {
    struct ref_sample_change *items;
    uint32_t n;
};

static void change(struct changes *changes, float *logits, int32_t token, float value)
{
    changes->items[changes->n++] = (struct ref_sample_change){token, logits[token]};
    logits[token] = value;
}

static void changes_undo(struct changes *changes, float *logits)
{
    while (changes->n > 0) {
        struct ref_sample_change *last = &changes->items[--changes->n];
        logits[last->token] = last->before;
    }
}

static void apply_bias(struct changes *changes, float *logits, uint32_t n_vocab,
                       const struct infer_batch_output *output)
{
    for (uint32_t i = 0; i < output->n_bias && i < INFER_LOGIT_BIASES_MAX; i++) {
        const struct infer_logit_bias *bias = &output->bias[i];
        if (bias->token >= 0 && (uint32_t)bias->token < n_vocab)
            change(changes, logits, bias->token, logits[bias->token] + bias->bias);
    }
}

static bool penalties_on(const struct infer_sampling *s)
{
    return s->penalty_window > 0 && (s->repetition_penalty != 1.0f ||
                                     s->frequency_penalty != 0.0f || s->presence_penalty != 0.0f);
}

static float penalized(const struct infer_sampling *s, float logit, uint32_t count)
{
    logit = logit > 0 ? logit / s->repetition_penalty : logit * s->repetition_penalty;
    return logit - (float)count * s->frequency_penalty - s->presence_penalty;
}

/* Counts the last penalty_window tokens of `seen`, then changes each of them once; a count that
 * was used is zero again, as the scratch wants it. */
static void apply_penalties(struct ref_sample_scratch *scratch, struct changes *changes,
                            float *logits, const struct infer_batch_output *output)
{
    const struct infer_sampling *s = output->sampling;
    uint32_t window = s->penalty_window;
    if (window > INFER_PENALTY_WINDOW_MAX)
        window = INFER_PENALTY_WINDOW_MAX;
    uint32_t first = output->n_seen > window ? output->n_seen - window : 0;

    for (uint32_t i = first; i < output->n_seen; i++) {
        int32_t token = output->seen[i];
        if (token >= 0 && (uint32_t)token < scratch->n_vocab)
            scratch->counts[token]++;
    }
    for (uint32_t i = first; i < output->n_seen; i++) {
        int32_t token = output->seen[i];
        if (token < 0 || (uint32_t)token >= scratch->n_vocab || scratch->counts[token] == 0)
            continue;
        change(changes, logits, token, penalized(s, logits[token], scratch->counts[token]));
        scratch->counts[token] = 0;
    }
}

/* ---- the filters, on candidates by descending logit ------------------------------------------ */

static double weight_sum(const struct ref_candidate *list, uint32_t n)
{
    double sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += (double)ref_exp_scaled(list[i].logit, list[0].logit, 1.0f);
    return sum;
}

/* Locally typical: takes the candidates whose surprise -ln p lies nearest to the entropy of the
 * distribution, until their probabilities reach typical_p. They stay in descending order. */
static uint32_t filter_typical(struct ref_sample_scratch *scratch, uint32_t n, float typical_p)
{
    struct ref_candidate *list = scratch->list, *order = scratch->surprise;
    double max = list[0].logit, log_total = log(weight_sum(list, n));
    double entropy = 0, sum = 0;
    uint32_t kept = 0;

    while (n > 1 && list[n - 1].logit == -INFINITY)
        n--; /* no probability, and no surprise that could be compared */
    for (uint32_t i = 0; i < n; i++) {
        double surprise = log_total - (list[i].logit - max);
        entropy += exp(-surprise) * surprise;
    }
    for (uint32_t i = 0; i < n; i++) {
        double surprise = log_total - (list[i].logit - max);
        order[i] = (struct ref_candidate){(float)-fabs(surprise - entropy), (int32_t)i};
    }
    ref_sort(order, n, scratch->other);
    for (uint32_t i = 0; i < n && sum < typical_p; i++) {
        scratch->counts[order[i].token] = 1;
        sum += exp(list[order[i].token].logit - max - log_total);
    }
    for (uint32_t i = 0; i < n; i++) {
        list[kept] = list[i];
        kept += scratch->counts[i];
        scratch->counts[i] = 0;
    }
    return kept;
}

/* The shortest prefix with at least top_p of `total`. */
static uint32_t filter_top_p(const struct ref_candidate *list, uint32_t n, float top_p,
                             double total)
{
    double sum = 0;
    for (uint32_t i = 0; i < n; i++) {
        sum += (double)ref_exp_scaled(list[i].logit, list[0].logit, 1.0f);
        if (sum >= top_p * total)
            return i + 1;
    }
    return n;
}

/* The logit of a token that is min_p times as likely as the best. */
static float min_p_floor(float max, float min_p)
{
    return min_p > 0 ? max + logf(fminf(min_p, 1)) : -INFINITY;
}

static uint32_t filter_min_p(const struct ref_candidate *list, uint32_t n, float min_p)
{
    float floor = min_p_floor(list[0].logit, min_p);
    while (n > 1 && list[n - 1].logit < floor)
        n--;
    return n;
}

/* ---- the draw -------------------------------------------------------------------------------- */

static int32_t draw_sorted(const struct ref_candidate *list, uint32_t n, float temperature,
                           double uniform)
{
    double total = 0, sum = 0;
    int32_t token = list[0].token;
    for (uint32_t i = 0; i < n; i++)
        total += (double)ref_exp_scaled(list[i].logit, list[0].logit, temperature);
    for (uint32_t i = 0; i < n; i++) {
        double weight = ref_exp_scaled(list[i].logit, list[0].logit, temperature);
        if (weight > 0)
            token = list[i].token;
        sum += weight;
        if (sum > uniform * total)
            break;
    }
    return token;
}

/* From all tokens with a logit >= floor, by ascending id: first the block in which the running sum
 * crosses, then the token in it. The sums of a block's weights and of its tokens' weights may
 * differ by a rounding; then the block's last possible token is the answer. */
static int32_t draw_unsorted(struct ref_sample_scratch *scratch, const float *logits, float max,
                             float floor, float temperature, double uniform)
{
    uint32_t n = scratch->n_vocab, block = 0, last = 0;
    double *sums = (double *)scratch->other; /* at most one for DRAW_BLOCK candidates */
    double total = 0, sum = 0;
    int32_t token = 0;

    for (uint32_t i = 0; i < n; i += DRAW_BLOCK) {
        uint32_t length = n - i < DRAW_BLOCK ? n - i : DRAW_BLOCK;
        sums[i / DRAW_BLOCK] = ref_exp_sum(logits + i, length, max, temperature, floor);
        total += sums[i / DRAW_BLOCK];
        if (sums[i / DRAW_BLOCK] > 0)
            last = i / DRAW_BLOCK;
    }
    while (block < last && sum + sums[block] <= uniform * total)
        sum += sums[block++];
    for (uint32_t i = block * DRAW_BLOCK; i < n && i < (block + 1) * DRAW_BLOCK; i++) {
        if (!(logits[i] >= floor))
            continue;
        double weight = ref_exp_scaled(logits[i], max, temperature);
        if (weight > 0)
            token = (int32_t)i;
        sum += weight;
        if (sum > uniform * total)
            break;
    }
    return token;
}

/* Neither top-k nor typical, but top-p: candidates that min-p would cut, or that are far from the
 * best, are left out as long as the rest holds the probability asked for. Returns how many of the
 * list, in descending order, are left after top-p. */
static uint32_t gather_top_p(struct ref_sample_scratch *scratch, const float *logits, float max,
                             const struct infer_sampling *s)
{
    uint32_t n_vocab = scratch->n_vocab;
    double total = ref_exp_sum(logits, n_vocab, max, 1.0f, -INFINITY);
    float floor = s->min_p > 0 ? min_p_floor(max, s->min_p) : max - NEAR_BEST;

    if (s->min_p <= 0 && ref_exp_sum(logits, n_vocab, max, 1.0f, floor) < s->top_p * total)
        floor = -INFINITY;
    uint32_t n = ref_gather(logits, n_vocab, floor, scratch->list);
    ref_sort(scratch->list, n, scratch->other);
    return filter_top_p(scratch->list, n, s->top_p, total);
}

static int32_t draw(struct ref_sample_scratch *scratch, const float *logits,
                    const struct infer_sampling *s, double uniform)
{
    uint32_t n_vocab = scratch->n_vocab, n;
    float max = ref_max(logits, n_vocab);
    bool all = s->top_k == 0 || s->top_k >= n_vocab;
    bool typical = s->typical_p < 1;

    if (max == -INFINITY)
        return 0;
    if (all && !typical && s->top_p >= 1)
        return draw_unsorted(scratch, logits, max, min_p_floor(max, s->min_p), s->temperature,
                             uniform);
    if (all && !typical) {
        n = gather_top_p(scratch, logits, max, s);
    } else {
        if (!all && s->top_k <= REF_TOP_HEAP_MAX) {
            n = ref_top(logits, n_vocab, s->top_k, scratch->list);
        } else {
            n = ref_gather(logits, n_vocab, -INFINITY, scratch->list);
            ref_sort(scratch->list, n, scratch->other);
            n = all || s->top_k > n ? n : s->top_k;
        }
        if (typical)
            n = filter_typical(scratch, n, s->typical_p);
        if (s->top_p < 1)
            n = filter_top_p(scratch->list, n, s->top_p, weight_sum(scratch->list, n));
    }
    n = filter_min_p(scratch->list, n, s->min_p);
    return draw_sorted(scratch->list, n, s->temperature, uniform);
}

/* ---- log-probabilities and the whole --------------------------------------------------------- */

static float logprob_of(const float *logits, uint32_t n_vocab, int32_t token, double log_total)
{
    if (token < 0 || (uint32_t)token >= n_vocab || !(logits[token] > -INFINITY))
        return -INFINITY;
    return (float)((double)fminf(logits[token], FLT_MAX) - log_total);
}

static void fill_top(struct ref_sample_scratch *scratch, const float *logits, double log_total,
                     struct infer_batch_output *output)
{
    uint32_t wanted = output->n_top < INFER_TOP_MAX ? output->n_top : INFER_TOP_MAX;
    uint32_t n = ref_top(logits, scratch->n_vocab, wanted, scratch->list);

    for (uint32_t i = 0; i < n; i++) {
        int32_t token = scratch->list[i].token;
        output->top[i].token = token;
        output->top[i].logprob = logprob_of(logits, scratch->n_vocab, token, log_total);
    }
    for (uint32_t i = n; i < wanted; i++) /* a vocabulary smaller than n_top */
        output->top[i] = (struct infer_logprob){-1, -INFINITY};
}

static int32_t pick(struct ref_sample_scratch *scratch, float *logits,
                    const struct infer_batch_output *output)
{
    const struct infer_sampling *s = output->sampling;
    struct changes changes = {scratch->changes, 0};
    int32_t token;

    apply_bias(&changes, logits, scratch->n_vocab, output);
    if (penalties_on(s))
        apply_penalties(scratch, &changes, logits, output);
    if (s->temperature > 0)
        token = draw(scratch, logits, s, output->uniform);
    else
        token = ref_argmax(logits, scratch->n_vocab);
    changes_undo(&changes, logits);
    return token;
}

void ref_sample(struct ref_sample_scratch *scratch, float *logits,
                struct infer_batch_output *output)
{
    uint32_t n_vocab = scratch->n_vocab;
    bool logprobs = output->n_top > 0 || output->target >= 0;
    double log_total = logprobs ? ref_logsumexp(logits, n_vocab) : 0;

    if (output->logits != NULL)
        memcpy(output->logits, logits, (size_t)n_vocab * sizeof *logits);
    if (output->n_top > 0)
        fill_top(scratch, logits, log_total, output);
    if (output->target >= 0)
        output->target_logprob = logprob_of(logits, n_vocab, output->target, log_total);
    if (output->sample) {
        output->token = pick(scratch, logits, output);
        if (logprobs)
            output->logprob = logprob_of(logits, n_vocab, output->token, log_total);
    }
}
