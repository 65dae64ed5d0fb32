/* arch_qwen2.c: Qwen 2 and 2.5, dense: llama's layer with biases on q, k and v, and rotary halves.
 *
 * Its sliding window, where a file names one, holds for the upper layers only and GGUF does not say
 * which: plan.c refuses a window shorter than the context. */
#include "model/architecture.h"

static int qwen2_build(struct plan_builder *b)
{
    int r = plan_embed(b);
    for (uint32_t layer = 0; r == 0 && layer < b->shape.n_layers; layer++) {
        r = plan_attention(b, layer, PLAN_BIAS_QKV);
        if (r == 0)
            r = plan_ffn_gated(b, layer, INFER_ACT_SILU);
    }
    return r < 0 ? r : plan_head(b);
}

const struct architecture architecture_qwen2 = {
    .name = "qwen2",
    .rope_style = INFER_ROPE_HALVES,
    .has_window = false,
    .build = qwen2_build,
};
