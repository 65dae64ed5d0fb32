/* loader.h: from a file to a model that is ready to run.
 *
 *   loader_open   reads and checks the head, makes the plan, tokenizer and template
 *   loader_size   decides how much sequence state to set aside on a backend, and how many layers
 *                 go to the first where there are two, and refuses before anything large is taken
 *                 when it does not fit in memory; may be asked again, of another backend or when
 *                 there is more
 *   loader_fill   opens the model on the backend and streams the weights in
 *
 * Threads: one at a time, while another one steps models that are ready. */
#ifndef INFERD_LOADER_H
#define INFERD_LOADER_H

#include "backend_load.h"
#include "engine/engine.h"
#include "io/stream.h"

struct metrics_loads;
/* A path, or descriptors (n_files > 0) of the parts of a model, part 1 first; path then only names
 * it. Both stay the caller's. */
struct loader_source {
    const char *path;
    const int *files;
    uint32_t n_files;
};

/* Where to: a backend, or two that share the model (engine/split.h). */
struct loader_target {
    const struct backend *backend;
    uint64_t available;         /* bytes of its memory */
    const struct backend *rest; /* of what follows the first layers; NULL: all is backend's */
    uint64_t rest_available;
    uint32_t n_first; /* layers that backend has; 0: as many as fit */
};

struct loader_options {
    uint32_t n_context;           /* longest sequence; 0: the model's own, or what memory holds */
    uint32_t parallel;            /* sequences that should run at once */
    uint64_t state_memory;        /* bytes for sequence state; 0: derived */
    uint32_t k_type, v_type;      /* enum infer_type */
    uint32_t owner;               /* memory_set_owner() */
    struct stream_options stream; /* how the file is read; zeros: the defaults */
    void (*progress)(void *ctx, uint64_t done_bytes, uint64_t total_bytes); /* may be NULL */
    void *progress_ctx;
    struct metrics_loads *loads;  /* what it reads is counted there; may be NULL */
    bool (*cancelled)(void *ctx); /* may be NULL; asked with progress_ctx between reads */
};

/* Bytes that a model takes, by purpose. state: the pages and the ledger of them; vocabulary: the
 * tokenizer, template and plan. */
struct loader_need {
    uint64_t weights, state, scratch, vocabulary;
    uint64_t on_backend; /* weights, pages and scratch: what the (first) backend takes */
    uint64_t on_rest;    /* and the second */
    uint64_t missing;    /* of the state that was asked for in bytes: it got less */
    uint64_t least;      /* what must be there for it to be loaded at all, with the least state */
    uint64_t least_rest; /* of the second backend's memory */
    uint64_t file_bytes;
    uint32_t n_context, n_pages, page_tokens;
    uint32_t n_layers, n_first; /* n_first: on the first of two backends; 0: there is one */
};

static inline uint64_t loader_need_bytes(const struct loader_need *n)
{
    return n->weights + n->state + n->scratch + n->vocabulary;
}

struct load;

/* MODEL_*, OUT_OF_MEMORY. *options is copied; the source stays alive until loader_free(). */
int loader_open(const char *name, const struct loader_source *source,
                const struct loader_options *options, struct load **ret, struct report *report);
/* There, from now on. MODEL_TOO_LARGE: *ret says what it would take with the least state; of two
 * backends, with a single layer on the first where the number was left open. */
int loader_size(struct load *load, const struct loader_target *target, struct loader_need *ret,
                struct report *report);
/* After loader_size() said 0, in the same place. Fills *ret, which may not move afterwards; the
 * caller ends it with loader_close(). On failure it is zeroed; CANCELLED when cancelled() said so.
 */
int loader_fill(struct load *load, struct engine_model *ret, struct report *report);
void loader_free(struct load *load);
/* Of NULL none. */
uint64_t loader_vocabulary_bytes(const struct load *load);
/* Which file it is, by device, number, size and time of its parts: the tokens of
 * one such model are the tokens of the next with the same. */
uint64_t loader_identity(const struct load *load);

/* Ends a model; its memory goes back to the system. */
void loader_close(struct engine_model *model, uint32_t owner);

/* What loading would take if memory had no end, for --inspect. */
int loader_estimate(const struct plan *plan, const struct backend *backend,
                    const struct loader_options *options, struct infer_state_config *ret_state,
                    struct infer_estimate *ret_estimate, struct report *report);

#endif
