/* plan.h: from a checked GGUF file to the plan that a backend runs.
 *
 * plan_new() reads the hyperparameters, demands every tensor that the architecture needs with its
 * exact shape, refuses tensors that it does not use (the model would compute something unknown),
 * and writes the operations. Architectures stand in architecture.h's table.
 *
 * The plan lives on its own: after plan_new() the gguf is needed only to find the tensors' bytes
 * (gguf_tensor[]). Threads: immutable after plan_new(). */
#ifndef INFERD_MODEL_PLAN_H
#define INFERD_MODEL_PLAN_H

#include "base/report.h"
#include "inferd/backend.h"
#include "model/gguf.h"

struct plan {
    struct infer_plan backend;
    const uint32_t *gguf_tensor; /* backend tensor i -> index for gguf_tensor() */
    char architecture[32];       /* "llama" */
    char name[64];               /* general.name, or the file's name */
    char description[64];        /* "46.2M Q6_K" */
    uint64_t n_parameters;       /* values in the tensors used */
    uint64_t file_bytes;         /* of the tensors used */
    uint64_t step_bytes;         /* of these, what a step reads whole: not an embedding table that
                                  * is not the head, too */
    /* private: what the pointers above point to */
    struct infer_tensor *tensors;
    struct infer_op *ops;
    uint32_t *tensor_map;
    float *inv_freq;
};

/* On failure MODEL_UNSUPPORTED (something this version does not know, by name), MODEL_FORMAT (keys
 * and tensors contradict each other) or MODEL_UNREADABLE. */
int plan_new(const struct gguf *g, struct plan **ret, struct report *report);
void plan_free(struct plan *p);
/* Memory that it holds. */
size_t plan_bytes(const struct plan *p);

#endif
