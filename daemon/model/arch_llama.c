/* arch_llama.c: Llama 1 to 3, TinyLlama, Mistral and what else uses their layout.
 *
 *   x += Wo attend(rope(q), rope(k), v)      q, k, v = W rms(x) (+ b)
 *   x += Wdown (silu(Wgate rms(x)) * Wup rms(x))
 *
 * Files pair neighbouring values in the rotary embedding (the converter permutes the rows of q and
 * k for it). Biases of the attention are rare but exist; those of the feed-forward do not fit the
 * gated operation and are refused by plan.c as unused tensors. Mistral's sliding window holds for
 * every layer. */
#include "model/architecture.h"

static int llama_build(struct plan_builder *b)
{
    int r = plan_embed(b);
    for (uint32_t layer = 0; r == 0 && layer < b->shape.n_layers; layer++) {
        r = plan_attention(b, layer, PLAN_BIAS_QKV_OPTIONAL | PLAN_BIAS_OUT_OPTIONAL);
        if (r == 0)
            r = plan_ffn_gated(b, layer, INFER_ACT_SILU);
    }
    return r < 0 ? r : plan_head(b);
}

const struct architecture architecture_llama = {
    .name = "llama",
    .rope_style = INFER_ROPE_PAIRS,
    .has_window = true,
    .build = llama_build,
};
