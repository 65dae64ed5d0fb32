/* architecture.h: what an architecture's file may use, and the table that lists them.
 *
 * An architecture is one file, arch_NAME.c, with one function that writes operations through the
 * functions below, and one row in plan.c's table. They refuse by themselves, naming the key or
 * tensor; a builder only passes their negative results on. */
#ifndef INFERD_MODEL_ARCHITECTURE_H
#define INFERD_MODEL_ARCHITECTURE_H

#include "model/plan.h"

struct plan_builder {
    const struct gguf *g;
    struct report *report;
    struct plan *plan;
    const char *file;         /* its name, for messages */
    char architecture[32];    /* prefix of its keys */
    struct infer_shape shape; /* complete before build() is called */
    uint32_t window;          /* attention.sliding_window of the file; 0: none */
    uint32_t n_tensors, n_ops, ops_max;
    uint32_t *plan_index; /* gguf tensor -> backend tensor, or INFER_TENSOR_NONE */
};

struct architecture {
    const char *name;    /* general.architecture */
    uint32_t rope_style; /* enum infer_rope_style of its files */
    bool has_window;     /* attention.sliding_window holds for every layer */
    int (*build)(struct plan_builder *b);
};

extern const struct architecture architecture_llama, architecture_qwen2, architecture_qwen3;

/* Sets the report: "FILE: SENTENCE". Returns -code. */
int plan_fail(struct plan_builder *b, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Hyperparameters: ARCHITECTURE.name. Absent: *ret untouched, 0. Present and not such a number in
 * [min, max]: refused. */
int plan_key_u32(struct plan_builder *b, const char *name, uint32_t min, uint32_t max,
                 uint32_t *ret);
int plan_key_f32(struct plan_builder *b, const char *name, float min, float max, float *ret);

/* The backend tensor of this name with exactly rows x columns values, of any readable type.
 * layer < 0: "name", otherwise "blk.LAYER.name". */
int plan_matrix(struct plan_builder *b, int layer, const char *name, uint64_t rows,
                uint64_t columns, uint32_t *ret);
/* A float32 vector of n values. Optional: INFER_TENSOR_NONE when absent. */
int plan_vector(struct plan_builder *b, int layer, const char *name, uint64_t n, uint32_t *ret);
int plan_vector_optional(struct plan_builder *b, int layer, const char *name, uint64_t n,
                         uint32_t *ret);

/* The operations of a dense decoder. */
enum plan_attention_flag {
    PLAN_BIAS_QKV = 1,          /* attn_{q,k,v}.bias must be there */
    PLAN_BIAS_QKV_OPTIONAL = 2, /* ... may be */
    PLAN_BIAS_OUT_OPTIONAL = 4, /* attn_output.bias may be */
    PLAN_HEAD_NORMS = 8,        /* attn_{q,k}_norm.weight must be there */
};

int plan_embed(struct plan_builder *b);
int plan_attention(struct plan_builder *b, uint32_t layer, uint32_t flags);
int plan_ffn_gated(struct plan_builder *b, uint32_t layer, enum infer_activation activation);
/* The head: output.weight, or the embedding table where that is absent. */
int plan_head(struct plan_builder *b);

/* rope.c: fills plan->backend.rope for n_dims = rope.dimension_count or head_dim. */
int plan_rope(struct plan_builder *b, uint32_t style);

#endif
