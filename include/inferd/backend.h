/* backend.h: the contract between the daemon and a kernel backend.
 *
 * A backend is a shared object that exports one function, infer_backend_v1(), and links nothing of
 * the daemon. The daemon hands it a *plan* once per model: the tensors of the file and a short
 * list of fused operations over them. Then it streams the tensors' rows in, and from then on hands
 * it a *batch* every step: token ids, positions, page tables, and what to sample. A backend may
 * interpret the plan, capture it in a graph or compile it into one kernel.
 *
 *   open -> model_open -> tensor_write* -> model_ready -> run* -> model_close -> close
 *
 * What a backend may assume: every handle, size, position, page and token id in a plan or batch
 * has been checked by the daemon. What it must keep:
 *   - it never exits, aborts on input, throws or writes to standard output or error;
 *   - run(), submit() and collect() allocate nothing;
 *   - the results of a row depend on its own sequence alone: the same tokens, alone or batched,
 *     whatever the batch's size (reductions have a fixed order);
 *   - it uses no memory but the host's memory_take(), and its device's own, for anything that grows
 *     with the model.
 *
 * Threads: estimate, model_open, tensor_write, model_ready and model_close of one model may run on
 * one thread while steps and the page functions of others run on another; not more than two at
 * once, and of one model one call at a time, not always from the same thread. describe() may be
 * called beside all of them. Loading should not hold up steps for long. A backend's own workers are
 * its own affair, placed on host->cpus. The thread that calls run() works as worker 0 and is not
 * pinned by the backend.
 *
 * Devices: an instance is one device. Of a backend whose device has a memory of its own the daemon
 * opens more, with the option "device=1", then 2 and so on, until open() answers -ENODEV (there is
 * no such device) or -EINVAL (there is no such option). Instances share nothing but the table.
 *
 * Errors: 0, or a negative errno; last_error() then holds one sentence, of the calling thread's
 * last failure (after open() failed, of NULL): the daemon tells it, the backend need not log it.
 * -EIO from a step means that this batch failed and the backend is sound; -ENODEV that the backend
 * is lost for good. */
#ifndef INFERD_BACKEND_H
#define INFERD_BACKEND_H

#include "limits.h"
#include "sampling.h"

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define INFER_BACKEND_ABI    4u
#define INFER_BACKEND_SYMBOL "infer_backend_v1"

/* Tensor types: the ids of the ggml type table, as GGUF files carry them. */
enum infer_type {
    INFER_TYPE_F32 = 0,
    INFER_TYPE_F16 = 1,
    INFER_TYPE_Q4_0 = 2,
    INFER_TYPE_Q4_1 = 3,
    INFER_TYPE_Q5_0 = 6,
    INFER_TYPE_Q5_1 = 7,
    INFER_TYPE_Q8_0 = 8,
    INFER_TYPE_Q2_K = 10,
    INFER_TYPE_Q3_K = 11,
    INFER_TYPE_Q4_K = 12,
    INFER_TYPE_Q5_K = 13,
    INFER_TYPE_Q6_K = 14,
    INFER_TYPE_IQ4_NL = 20,
    INFER_TYPE_IQ3_S = 21,
    INFER_TYPE_IQ4_XS = 23,
    INFER_TYPE_BF16 = 30,
    INFER_TYPE_TQ1_0 = 34,
    INFER_TYPE_TQ2_0 = 35,
    INFER_TYPE_MXFP4 = 39,
};

/* ---- the plan -------------------------------------------------------------------------------- */

/* A tensor of the file. ne[0] is the contiguous dimension: a matrix of R rows by C columns, which
 * maps C inputs to R outputs, has ne = {C, R, 1, 1}. Unused dimensions are 1. */
struct infer_tensor {
    char name[64];
    uint32_t type; /* enum infer_type */
    uint32_t n_dims;
    uint64_t ne[4];
    uint64_t row_bytes; /* ne[0] values in the file's encoding */
    uint64_t n_rows;    /* ne[1] * ne[2] * ne[3] */
};

/* Index into infer_plan.tensors, or this. */
#define INFER_TENSOR_NONE UINT32_MAX

/* The values that flow between operations, per row: the residual stream x[n_embd], the queries
 * q[n_heads * head_dim], the attention's output o[n_heads * head_dim_v], the gated hidden layer
 * t[n_ffn]. */
enum infer_value { INFER_VALUE_X, INFER_VALUE_Q, INFER_VALUE_O, INFER_VALUE_T };

enum infer_op_kind {
    INFER_OP_EMBED = 1,  /* x = scale * table[token] */
    INFER_OP_QKV,        /* h = rms(x) * norm; q,k,v = W h + b; head norms; rope; k,v -> cache */
    INFER_OP_ATTEND,     /* o = softmax(scale * q K^T, causal) V over the sequence's cached rows */
    INFER_OP_PROJECT,    /* x += W from + b, from = o or t */
    INFER_OP_FFN_GATED,  /* h = rms(x) * norm; t = act(Wgate h) * (Wup h) */
    INFER_OP_HEAD,       /* logits = scale * W (rms(x) * norm), for the rows that outputs name */
    INFER_OP_ALL_REDUCE, /* x summed over the parts of a plan that is cut by heads and rows */
};

enum infer_activation { INFER_ACT_SILU = 0, INFER_ACT_GELU_TANH = 1 };

struct infer_op {
    uint32_t kind;  /* enum infer_op_kind */
    uint32_t layer; /* which layer's cache QKV writes and ATTEND reads */
    uint32_t norm;  /* float32 [n_embd]; QKV, FFN_GATED, HEAD */
    union {
        struct {
            uint32_t table; /* [n_vocab][n_embd] */
            float scale;
        } embed;
        struct {
            uint32_t wq, wk, wv;     /* [heads * head_dim][n_embd] */
            uint32_t bq, bk, bv;     /* float32 or NONE */
            uint32_t q_norm, k_norm; /* float32 [head_dim], per-head RMSNorm, or NONE */
        } qkv;
        struct {
            float scale;     /* usually 1 / sqrt(head_dim) */
            uint32_t window; /* sliding window in tokens; 0: all */
        } attend;
        struct {
            uint32_t from; /* INFER_VALUE_O or INFER_VALUE_T */
            uint32_t w;    /* [n_embd][inputs] */
            uint32_t b;    /* float32 or NONE */
        } project;
        struct {
            uint32_t gate, up; /* [n_ffn][n_embd] */
            uint32_t activation;
        } ffn;
        struct {
            uint32_t w; /* [n_vocab][n_embd]; the embedding table where the head is tied */
            float scale;
        } head;
    } as; /* by kind */
};

/* Rotary embedding, all scaling methods folded in: dimension pair i of position p turns by
 * p * inv_freq[i]; cos and sin are multiplied by magnitude (1 but for YaRN). */
enum infer_rope_style {
    INFER_ROPE_PAIRS = 0,  /* pairs (2i, 2i+1): llama's files */
    INFER_ROPE_HALVES = 1, /* pairs (i, i + n_dims/2): qwen's files ("neox") */
};

struct infer_rope {
    uint32_t style;
    uint32_t n_dims;       /* the first n_dims of each head turn, even; the rest pass */
    const float *inv_freq; /* [n_dims / 2] */
    float magnitude;
};

struct infer_shape {
    uint32_t n_layers, n_embd, n_ffn, n_vocab;
    uint32_t n_heads, n_kv_heads; /* n_heads is a multiple of n_kv_heads */
    uint32_t head_dim;            /* of queries and keys */
    uint32_t head_dim_v;          /* of values */
    uint32_t n_context;           /* the longest sequence the model was made for */
    float norm_eps;
};

/* A whole model, or a part of one: the operations of one or more consecutive layers, with EMBED
 * before the model's first and HEAD after its last. Parts run one after the other on backends of
 * their own and hand the residual stream on: a plan that does not begin with EMBED takes x from the
 * batch, one that does not end with HEAD leaves it there and has no outputs. A part counts its own
 * layers, in shape.n_layers and from 0 in its operations, and its pages hold these alone; page ids,
 * positions and everything else are the model's. EMBED stands nowhere but first and HEAD nowhere
 * but last.
 *
 * Owned by the daemon, unchanged and alive until model_close(). */
struct infer_plan {
    struct infer_shape shape;
    struct infer_rope rope;
    const struct infer_tensor *tensors;
    uint32_t n_tensors;
    const struct infer_op *ops;
    uint32_t n_ops;
};

/* Sequence state: a pool of pages of page_tokens cached rows, all layers of a row in one page.
 * Page ids are 0 .. n_pages - 1; which sequence holds which page is the daemon's book-keeping. */
struct infer_state_config {
    uint32_t page_tokens; /* 16 */
    uint32_t n_pages;
    /* How keys and values are kept: INFER_TYPE_F16, INFER_TYPE_F32 (ref only), INFER_TYPE_Q8_0
     * (8.5 bits a number) or INFER_TYPE_Q4_0, which here stands for "codes of about 4 bits, heads
     * rotated before they are rounded": the blocks are the backend's own (on cpu and ref 4.5 bits a
     * number for keys and 5.5 for values).
     * The last two need heads of a multiple of 32, else -ENOTSUP. Queries and attention's output
     * are the same values for every type, but for the rounding. */
    uint32_t k_type, v_type;
    uint32_t max_rows;    /* rows of the largest batch, at most INFER_STEP_ROWS_MAX */
    uint32_t max_seqs;    /* sequences of the largest batch */
    uint32_t max_outputs; /* outputs of the largest batch */
};

/* Of the memory that the model's state is in: the device's own, or else the host's. */
struct infer_estimate {
    uint64_t weights_bytes; /* in the backend's own layout */
    uint64_t page_bytes;    /* one page */
    uint64_t scratch_bytes; /* everything else, for max_rows */
};

/* ---- the batch ------------------------------------------------------------------------------- */

/* The rows [first_row, first_row + n_rows) of one sequence in this step. Row i is the token at
 * position `position + i`; it sees cached rows 0 .. position + i. Its key and value go to page
 * pages[(position + i) / page_tokens]. A sequence stands in a batch at most once. */
struct infer_batch_seq {
    uint32_t first_row, n_rows;
    uint32_t position;
    uint32_t n_pages;
    const uint32_t *pages;
};

/* What is wanted at one row. Inputs are set by the daemon, results by the backend.
 * Outputs stand in ascending order of row; several may name the same row (n answers that start
 * from one prompt). */
struct infer_batch_output {
    uint32_t row;
    uint32_t sample; /* 1: draw a token */
    int32_t target;  /* >= 0: give this token's log-probability */
    uint32_t n_top;  /* how many of the most likely tokens to give, at most INFER_TOP_MAX */
    const struct infer_sampling *sampling; /* when sample */
    const struct infer_logit_bias *bias;
    uint32_t n_bias;
    uint32_t n_seen;
    const int32_t *seen; /* the penalty window's tokens, oldest first */
    double uniform;      /* the draw, in [0, 1): inverse of the cumulative distribution */
    float *logits;       /* when not NULL: the raw logits, n_vocab floats, go here (diagnosis) */
    /* results */
    int32_t token;        /* the drawn token */
    float logprob;        /* its log-probability, when n_top or target asked; see infer_logprob */
    float target_logprob; /* when target >= 0 */
    struct infer_logprob top[INFER_TOP_MAX]; /* n_top entries, most likely first; ties: lower id */
};

/* As a row's token: what output i of the step that was submitted before this one draws, so that a
 * step can be submitted before the host knows the tokens that it goes on from. That step did not
 * fail, and the output is one that samples. Only where max_under_way is 2 or more, and not of a
 * part of a model. */
#define INFER_TOKEN_DRAWN(i) (-1 - (int32_t)(i))

struct infer_batch {
    uint32_t n_rows, n_seqs, n_outputs;
    const int32_t *tokens; /* n_rows; also of a part that does not embed them */
    const struct infer_batch_seq *seqs;
    struct infer_batch_output *outputs;
    /* Of a part of a model: the residual stream, [n_rows][n_embd] row by row without gaps, in the
     * host's memory, float32 as it is between operations, so that a model in parts computes what
     * the whole one would. The caller's; what a part takes it may write over, also when it fails.
     * NULL where the plan is whole. */
    float *x;
};

/* ---- what the daemon offers ------------------------------------------------------------------ */

enum infer_log_level {
    INFER_LOG_ERROR = 3,
    INFER_LOG_WARNING = 4,
    INFER_LOG_INFO = 6,
    INFER_LOG_DEBUG = 7
};

struct infer_host {
    uint32_t abi; /* INFER_BACKEND_ABI of the daemon */
    void *ctx;    /* first argument of the functions below */
    void (*log)(void *ctx, int level, const char *text);
    /* Zeroed memory, aligned to at least 64 bytes; NULL when there is none. */
    void *(*memory_take)(void *ctx, size_t bytes);
    void (*memory_give)(void *ctx, void *memory, size_t bytes);
    const uint32_t *cpus; /* logical processor ids, one per physical core, best first */
    uint32_t n_cpus;      /* how many threads to use, the caller of run() included; at least 1 */
    /* The NUMA node of each of cpus, as numbers from 0 to n_nodes - 1 in the order in which they
     * first appear there. NULL and 0: one node. */
    const uint32_t *nodes;
    uint32_t n_nodes;
    /* Where the whole pages within [memory, memory + bytes), a part of a block that was taken and
     * not written to yet, shall lie: on one of those nodes, or in turn on all (INFER_NODE_ALL). A
     * preference, so 0 or a negative errno, which changes nothing but speed. NULL: the machine has
     * a single node. Otherwise blocks of INFER_PLACE_BYTES and more start at a multiple of it, and
     * parts that are cut at such multiples may lie on huge pages. */
    int (*memory_place)(void *ctx, void *memory, size_t bytes, uint32_t node);
};

#define INFER_NODE_ALL    UINT32_MAX
#define INFER_PLACE_BYTES ((size_t)2 << 20)

/* ---- what a backend implements --------------------------------------------------------------- */

struct infer_backend; /* the backend's own */
struct infer_backend_model;

struct infer_device {
    char name[64];   /* "CPU, AVX-512 VNNI, 2 threads" */
    uint64_t memory; /* bytes of its own memory; 0 when it uses the host's */
    /* Of these, what can be taken now, as far as is known: all of it until the first model_open().
     * 0 when it uses the host's. */
    uint64_t memory_free;
    /* Bytes a second at which its own memory can be read, measured with the first model_open(); 0:
     * not known. What one sequence's decoding can be at most follows from it. */
    uint64_t read_bytes_per_s;
};

struct infer_backend_api {
    uint32_t abi;   /* INFER_BACKEND_ABI it was built for; the daemon refuses another */
    uint32_t bytes; /* sizeof(struct infer_backend_api) there */
    const char *name;
    const char *version;

    /* options: "key=value,key=value" or "" (from the command line; unknown keys: -EINVAL). -ENODEV:
     * there is no device for it. -ENOTSUP: there is one, of a kind that it does not run on. The
     * host stays alive until close(). */
    int (*open)(const struct infer_host *host, const char *options, struct infer_backend **ret);
    void (*close)(struct infer_backend *backend);
    const char *(*last_error)(const struct infer_backend *backend);
    void (*describe)(const struct infer_backend *backend, struct infer_device *ret);

    /* What model_open would take; keeps nothing. -ENOTSUP when the plan holds an operation or
     * tensor type that this backend does not run. */
    int (*estimate)(struct infer_backend *backend, const struct infer_plan *plan,
                    const struct infer_state_config *state, struct infer_estimate *ret);

    /* Takes the memory for weights, pages and scratch. */
    int (*model_open)(struct infer_backend *backend, const struct infer_plan *plan,
                      const struct infer_state_config *state, struct infer_backend_model **ret);
    /* n_rows whole rows of a tensor, in the file's encoding, from first_row on. Every row comes
     * exactly once, rows of one tensor in ascending order. */
    int (*tensor_write)(struct infer_backend_model *model, uint32_t tensor, uint64_t first_row,
                        uint64_t n_rows, const void *rows);
    int (*model_ready)(struct infer_backend_model *model);
    void (*model_close)(struct infer_backend_model *model);

    /* A whole step: submit() and collect() where there are these, with nothing else under way. */
    int (*run)(struct infer_backend_model *model, struct infer_batch *batch);

    /* Pages outside of a step: copy on write, privacy, and swap or snapshot (page_bytes each, in
     * the backend's own layout, only for the same model on the same backend). What is submitted
     * comes first: they act as if the steps under way had been collected. */
    int (*page_copy)(struct infer_backend_model *model, uint32_t to, uint32_t from);
    int (*page_zero)(struct infer_backend_model *model, uint32_t page);
    int (*page_read)(struct infer_backend_model *model, uint32_t page, void *ret_bytes);
    int (*page_write)(struct infer_backend_model *model, uint32_t page, const void *bytes);
    /* The page's rows have moved from position p to p + delta: its keys, in every layer, turn on by
     * delta * inv_freq (magnitude is in them already); values stay. delta is negative when older
     * rows have left the sequence. The page is no other sequence's. */
    int (*page_shift)(struct infer_backend_model *model, uint32_t page, int32_t delta);

    /* Optional, all three or NULL: of a device that reads the host's memory by itself. After
     * rows_pin, tensor_write may return before it has read rows that lie in [memory, memory +
     * bytes), one range per model at a time. rows_wait returns once those of the first n calls of
     * tensor_write have been read, rows_unpin once all have. When rows_pin fails, or for rows that
     * lie elsewhere, they have been read when tensor_write returns, as they are without it. */
    int (*rows_pin)(struct infer_backend_model *model, void *memory, size_t bytes);
    int (*rows_wait)(struct infer_backend_model *model, uint64_t n);
    void (*rows_unpin)(struct infer_backend_model *model);

    /* Optional, both or NULL: of a device that works by itself. submit() begins a step; collect()
     * of the same batch waits for it and fills in the results. Steps are done and collected in the
     * order in which they were submitted. When submit() fails, the step has not begun; when
     * collect() does, it is over, and what goes on from its tokens is worth nothing, but is
     * collected all the same. model_close() may find steps under way.
     * max_under_way: how many of one model may have been submitted and not collected; 0 where the
     * two are NULL, and of a part of a model never more than 1. Until collect() the batch stays as
     * it is, with its outputs and x; where max_under_way is 2 or more, the rest of what it points
     * to has been read when submit() returns. */
    int (*submit)(struct infer_backend_model *model, struct infer_batch *batch);
    int (*collect)(struct infer_backend_model *model, struct infer_batch *batch);
    uint32_t max_under_way;
};

/* The one exported function; the table is static and constant. */
__attribute__((visibility("default"))) const struct infer_backend_api *infer_backend_v1(void);
typedef const struct infer_backend_api *(*infer_backend_entry)(void);

#ifdef __cplusplus
}
#endif

#endif
