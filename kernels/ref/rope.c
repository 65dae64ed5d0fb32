/* rope.c: see rope.h. */
#include "ref/rope.h"

#include <math.h>
#include <stdbool.h>

void ref_rope_turn(const struct infer_rope *rope, const float *cosine, const float *sine,
                   float *head)
{
    uint32_t n_pairs = rope->n_dims / 2;
    bool pairs = rope->style == INFER_ROPE_PAIRS;
    for (uint32_t p = 0; p < n_pairs; p++) {
        float *first = head + (pairs ? 2 * p : p);
        float *second = pairs ? first + 1 : first + n_pairs;
        float a = *first, b = *second;
        *first = a * cosine[p] - b * sine[p];
        *second = a * sine[p] + b * cosine[p];
    }
}

void ref_rope_delta(const struct infer_rope *rope, int32_t delta, float *ret_cosine,
                    float *ret_sine)
{
    for (uint32_t p = 0; p < rope->n_dims / 2; p++) {
        double angle = (double)delta * (double)rope->inv_freq[p];
        ret_cosine[p] = (float)cos(angle);
        ret_sine[p] = (float)sin(angle);
    }
}
