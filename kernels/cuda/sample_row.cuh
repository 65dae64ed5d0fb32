/* sample_row.cuh: one output's logits as sample.cu's kernels see them, and what a logit weighs.
 *
 * Bias and penalties change a few tokens of a row that other outputs may share, so they are kept
 * beside it: a list of (token, value) by ascending token, and one bit for each segment of the
 * vocabulary that has such a token. A reader looks into the list only where the bit is set.
 *
 * A value is "clean": NaN is minus infinity, plus infinity FLT_MAX, as in ref/select.c. A weight is
 * computed with the very operations of ref/select.c, none of them fused, so that both come to the
 * same bits and a draw differs from the reference's only where sums of doubles round otherwise. */
#ifndef INFERD_KERNELS_CUDA_SAMPLE_ROW_CUH
#define INFERD_KERNELS_CUDA_SAMPLE_ROW_CUH

#include "cuda/device.cuh"

#include <float.h>
#include <math.h>
#include <stdint.h>

#define SAMPLE_SEGMENT 64u  /* tokens of which the maximum is kept */
#define SAMPLE_CHUNK   256u /* tokens whose weights are added in float32, as ref/select.c does */

#define ALL_LANES 0xffffffffu

struct sample_change {
    int32_t token;
    float value;
};

struct sample_row {
    const float *logits;
    const struct sample_change *changes; /* by ascending token */
    const uint32_t *marks;               /* a bit per segment */
    uint32_t n_vocab, n_changes;
};

static __device__ inline float sample_clean(float logit)
{
    return logit > -INFINITY ? fminf(logit, FLT_MAX) : -INFINITY;
}

/* What bias and penalties have made of `logit`, the token's own. */
static __device__ inline float sample_changed(const struct sample_row &row, uint32_t token,
                                              float logit)
{
    uint32_t segment = token / SAMPLE_SEGMENT, first = 0, n = row.n_changes;
    if ((row.marks[segment / 32] >> segment % 32 & 1) == 0)
        return logit;
    while (n > 0) { /* the first entry that is not before the token is within first .. first + n */
        uint32_t middle = n / 2;
        bool before = (uint32_t)row.changes[first + middle].token < token;
        first += before ? middle + 1 : 0;
        n = before ? n - middle - 1 : middle;
    }
    if (first < row.n_changes && (uint32_t)row.changes[first].token == token)
        return row.changes[first].value;
    return logit;
}

static __device__ inline float sample_value(const struct sample_row &row, uint32_t token)
{
    float logit = row.logits[token];
    if (row.n_changes > 0)
        logit = sample_changed(row, token, logit);
    return sample_clean(logit);
}

/* exp(x) for x <= 0; see exp_nonpositive in ref/select.c. */
static __device__ inline float sample_exp(float x)
{
    const float round = 0x1.8p23f;
    x = x > -88.03f ? x : -88.03f;
    float whole = __fsub_rn(__fadd_rn(__fmul_rn(x, 0x1.715476p+0f), round), round);
    float r = __fsub_rn(x, __fmul_rn(whole, 0x1.62ep-1f));
    r = __fsub_rn(r, __fmul_rn(whole, 0x1.0bfbe8p-15f));
    float p = 1.0f / 5040;
    p = __fadd_rn(__fmul_rn(p, r), 1.0f / 720);
    p = __fadd_rn(__fmul_rn(p, r), 1.0f / 120);
    p = __fadd_rn(__fmul_rn(p, r), 1.0f / 24);
    p = __fadd_rn(__fmul_rn(p, r), 1.0f / 6);
    p = __fadd_rn(__fmul_rn(p, r), 0.5f);
    p = __fadd_rn(__fmul_rn(p, r), 1.0f);
    p = __fadd_rn(__fmul_rn(p, r), 1.0f);
    return __fmul_rn(p, __uint_as_float((uint32_t)((int32_t)whole + 127) << 23));
}

/* exp((logit - max) / temperature); logit clean and at most max, which is above minus infinity. */
static __device__ inline float sample_weight(float logit, float max, float temperature)
{
    float x = __fsub_rn(logit, max);
    if (temperature != 1.0f) /* the same for all: a division by 1 changes nothing */
        x = __fdiv_rn(x, temperature);
    return sample_exp(x);
}

/* The logit of a token that is min_p times as likely as the best. */
static __device__ inline float sample_min_p_floor(float max, float min_p)
{
    return min_p > 0 ? max + (float)log((double)fminf(min_p, 1)) : -INFINITY;
}

#endif
