/* rope.h: rotary embedding of one head: the reference's own, and every backend's that turns keys
 * again after they were cached. Pure functions, any thread. */
#ifndef INFERD_KERNELS_REF_ROPE_H
#define INFERD_KERNELS_REF_ROPE_H

#include "inferd/backend.h"

/* (a, b) -> (a cos - b sin, a sin + b cos) for each pair of one head, in place; n_dims / 2 cosines
 * and sines. */
void ref_rope_turn(const struct infer_rope *rope, const float *cosine, const float *sine,
                   float *head);

/* Cosines and sines that move a key by `delta` positions: those of delta * inv_freq, without the
 * magnitude, which a cached key has in it. The angles are exact products, so that what is left
 * after a turn forth and back is rounding alone. */
void ref_rope_delta(const struct infer_rope *rope, int32_t delta, float *ret_cosine,
                    float *ret_sine);

#endif
