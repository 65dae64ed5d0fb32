/* select.h: maxima, sums of exponentials and partial sorts over one row of logits.
 *
 * The loops over the vocabulary that every CPU-side backend needs, written in lanes so that the
 * compiler vectorizes them. NaN counts as minus infinity, plus infinity as FLT_MAX. Ties go to the
 * lower token id. Nothing here allocates. */
#ifndef INFERD_KERNELS_REF_SELECT_H
#define INFERD_KERNELS_REF_SELECT_H

#include <stdint.h>

struct ref_candidate {
    float logit; /* never NaN nor plus infinity */
    int32_t token;
};

/* The largest of n logits; minus infinity when there is none above it. */
float ref_max(const float *logits, uint32_t n);

/* The token of the largest logit; 0 when all are minus infinity. */
int32_t ref_argmax(const float *logits, uint32_t n);

/* Sum of exp((logits[i] - max) / temperature) over the logits >= floor; max is their largest. */
double ref_exp_sum(const float *logits, uint32_t n, float max, float temperature, float floor);

/* ln of the sum of exp(logits); minus infinity when all are. */
double ref_logsumexp(const float *logits, uint32_t n);

/* exp((logit - max) / temperature) as ref_exp_sum computes it; logit <= max. */
float ref_exp_scaled(float logit, float max, float temperature);

/* The logits >= floor into list, by ascending token; returns how many. */
uint32_t ref_gather(const float *logits, uint32_t n, float floor, struct ref_candidate *list);

/* Sorts by descending logit; equal logits keep their order. `other` is as long as list. */
void ref_sort(struct ref_candidate *list, uint32_t n, struct ref_candidate *other);

/* The k largest into list, by descending logit; returns min(k, n). One pass over the logits with
 * a heap of k: meant for k up to REF_TOP_HEAP_MAX, right for any. */
#define REF_TOP_HEAP_MAX 1024u
uint32_t ref_top(const float *logits, uint32_t n, uint32_t k, struct ref_candidate *list);

#endif
