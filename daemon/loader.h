/* loader.h: from a file name to a model that is ready to run.
 *
 * Reads and checks the file, makes the plan, tokenizer and template, decides how much sequence
 * state to set aside, refuses before it allocates when that does not fit in memory, and streams the
 * weights into the backend. Threads: one at a time. */
#ifndef INFERD_LOADER_H
#define INFERD_LOADER_H

#include "backend_load.h"
#include "engine/engine.h"
#include "io/stream.h"

struct metrics_loads;

struct loader_options {
    uint32_t n_context;      /* longest sequence; 0: the model's own, or what memory holds */
    uint32_t parallel;       /* sequences that should run at once */
    uint64_t state_memory;   /* bytes for sequence state; 0: derived */
    uint32_t k_type, v_type; /* enum infer_type */
    uint64_t memory_available;
    struct stream_options stream; /* how the file is read; zeros: the defaults */
    void (*progress)(void *ctx, uint64_t done_bytes, uint64_t total_bytes); /* may be NULL */
    void *progress_ctx;
    struct metrics_loads *loads; /* what it reads is counted there; may be NULL */
};

/* Fills *ret, which may not move afterwards; the caller ends it with engine_model_done(). On
 * failure it is zeroed. Codes MODEL_*, OUT_OF_MEMORY. */
int loader_load(const char *name, const char *path, const struct backend *backend,
                const struct loader_options *options, struct engine_model *ret,
                struct report *report);

/* What loading would take, for --inspect; reads the head of the file alone. */
int loader_estimate(const struct plan *plan, const struct backend *backend,
                    const struct loader_options *options, struct infer_state_config *ret_state,
                    struct infer_estimate *ret_estimate, struct report *report);

#endif
