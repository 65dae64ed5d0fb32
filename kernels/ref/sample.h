/* sample.h: from one row of logits to what a batch's output asks for. The sampler of every
 * backend that has its logits in host memory. */
#ifndef INFERD_KERNELS_REF_SAMPLE_H
#define INFERD_KERNELS_REF_SAMPLE_H

#include "inferd/backend.h"
#include "ref/select.h"

#include <stddef.h>
#include <stdint.h>

/* A logit that bias or penalties changed, and its value before. */
struct ref_sample_change {
    int32_t token;
    float before;
};

/* Working memory of one sampling thread, sized by the vocabulary. */
struct ref_sample_scratch {
    uint32_t n_vocab;
    struct ref_candidate *list;        /* n_vocab */
    struct ref_candidate *other;       /* n_vocab; the sort's second half */
    struct ref_candidate *surprise;    /* n_vocab; the order of typical sampling */
    struct ref_sample_change *changes; /* as many as biases and penalty window may make */
    uint32_t *counts;                  /* n_vocab; all zero between calls */
};

/* How much memory init lays its arrays into. */
size_t ref_sample_scratch_bytes(uint32_t n_vocab);
/* `memory` is zeroed, aligned to 8 and stays the caller's. */
void ref_sample_scratch_init(struct ref_sample_scratch *scratch, uint32_t n_vocab, void *memory);

/* Fills the results of `output` from its row's logits, n_vocab of them. The logits are changed
 * while it runs and as before when it returns. */
void ref_sample(struct ref_sample_scratch *scratch, float *logits,
                struct infer_batch_output *output);

#endif
