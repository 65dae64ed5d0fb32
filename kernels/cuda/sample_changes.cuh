/* sample_changes.cuh: what an output's bias and penalties make of its tokens' logits.
 *
 * Each bias and each token seen is a number: the token, then its place in the list of biases, or a
 * mark that stands behind all of those. Sorted, the numbers of a token are neighbours, its biases
 * in the order in which they are added, then its sightings, which only count. One thread goes
 * through a token's numbers. The operations are those of ref/sample.c, none of them fused. */
#ifndef INFERD_KERNELS_CUDA_SAMPLE_CHANGES_CUH
#define INFERD_KERNELS_CUDA_SAMPLE_CHANGES_CUH

#include "cuda/cuda.h"
#include "cuda/device.cuh"

#define SAMPLE_CHANGES_MAX (INFER_LOGIT_BIASES_MAX + INFER_PENALTY_WINDOW_MAX)
#define SAMPLE_KEYS_MAX    8192u /* the power of two above */

#define KEY_BITS 11u
#define KEY_SEEN INFER_LOGIT_BIASES_MAX /* above every index of a bias */
#define KEY_NONE UINT32_MAX

static __device__ inline uint32_t change_key(int32_t token, uint32_t n_vocab, uint32_t order)
{
    bool there = token >= 0 && (uint32_t)token < n_vocab;
    return there ? (uint32_t)token << KEY_BITS | order : KEY_NONE;
}

static __device__ inline bool penalties_on(const struct infer_sampling &s)
{
    return s.penalty_window > 0 && (s.repetition_penalty != 1.0f || s.frequency_penalty != 0.0f ||
                                    s.presence_penalty != 0.0f);
}

/* Returns how many keys there are, to the power of two that a sort wants. */
static __device__ inline uint32_t change_keys(const struct cuda_output &output,
                                              const struct infer_logit_bias *bias,
                                              const int32_t *all_seen, uint32_t n_vocab,
                                              uint32_t *keys)
{
    const struct infer_sampling &s = output.sampling;
    uint32_t n_bias = min(output.n_bias, INFER_LOGIT_BIASES_MAX), n_seen = 0, size = 1;
    if (output.sample == 0)
        return 0;
    if (penalties_on(s))
        n_seen = min(output.n_seen, min(s.penalty_window, INFER_PENALTY_WINDOW_MAX));
    if (n_bias + n_seen == 0)
        return 0;
    while (size < n_bias + n_seen)
        size *= 2;

    const int32_t *seen = all_seen + output.first_seen + (output.n_seen - n_seen);
    for (uint32_t i = threadIdx.x; i < size; i += blockDim.x) {
        if (i < n_bias)
            keys[i] = change_key(bias[output.first_bias + i].token, n_vocab, i);
        else if (i < n_bias + n_seen)
            keys[i] = change_key(seen[i - n_bias], n_vocab, KEY_SEEN);
        else
            keys[i] = KEY_NONE;
    }
    __syncthreads();
    return size;
}

/* Bitonic: size is a power of two. */
static __device__ inline void sort_keys(uint32_t *keys, uint32_t size)
{
    for (uint32_t run = 2; run <= size; run *= 2) {
        for (uint32_t by = run / 2; by > 0; by /= 2) {
            for (uint32_t i = threadIdx.x; i < size / 2; i += blockDim.x) {
                uint32_t low = (i & ~(by - 1)) * 2 + (i & (by - 1)), high = low + by;
                uint32_t a = keys[low], b = keys[high];
                if ((a > b) == ((low & run) == 0)) {
                    keys[low] = b;
                    keys[high] = a;
                }
            }
            __syncthreads();
        }
    }
}

/* What the token whose keys begin at `at` comes to. */
static __device__ inline float changed_value(const struct cuda_output &output,
                                             const struct infer_logit_bias *bias,
                                             const uint32_t *keys, uint32_t size, uint32_t at,
                                             float logit)
{
    const struct infer_sampling &s = output.sampling;
    uint32_t seen = (keys[at] >> KEY_BITS) << KEY_BITS | KEY_SEEN;
    for (; at < size && keys[at] < seen; at++)
        logit += bias[output.first_bias + (keys[at] & ((1u << KEY_BITS) - 1))].bias;
    if (at == size || keys[at] != seen)
        return logit;
    uint32_t first = at, n = size - at;
    while (n > 0) { /* the end of its sightings */
        uint32_t middle = n / 2;
        bool within = keys[first + middle] == seen;
        first += within ? middle + 1 : 0;
        n = within ? n - middle - 1 : middle;
    }
    logit =
        logit > 0 ? __fdiv_rn(logit, s.repetition_penalty) : __fmul_rn(logit, s.repetition_penalty);
    logit = __fsub_rn(logit, __fmul_rn((float)(first - at), s.frequency_penalty));
    return __fsub_rn(logit, s.presence_penalty);
}

#endif
