/* arch_qwen3.c: Qwen 3, dense: llama's layer with an RMS norm over each head of q and k before
 * the rotary embedding (halves), and a head size that need not be n_embd / n_heads. */
#include "model/architecture.h"

static int qwen3_build(struct plan_builder *b)
{
    int r = plan_embed(b);
    for (uint32_t layer = 0; r == 0 && layer < b->shape.n_layers; layer++) {
        r = plan_attention(b, layer, PLAN_HEAD_NORMS);
        if (r == 0)
            r = plan_ffn_gated(b, layer, INFER_ACT_SILU);
    }
    return r < 0 ? r : plan_head(b);
}

const struct architecture architecture_qwen3 = {
    .name = "qwen3",
    .rope_style = INFER_ROPE_HALVES,
    .has_window = false,
    .build = qwen3_build,
};
