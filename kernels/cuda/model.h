/* model.h: a model as the CUDA backend's host code holds it, between
 *
 *   backend.c   options, the device, what an error of the runtime means
 *   plan.c      what of a plan this backend runs; operations with their tensors found
 *   model.c     memory: one block of the device for weights, one for pages, one for scratch
 *   upload.c    rows of the file on their way to the device
 *   batch.c     a batch checked and written down as the numbers that kernels read
 *   run.c       steps submitted and collected
 *   step.c      the plan's operations as launches
 *   stream.c    the residual stream of a part of a model, from and to the host
 *   chain.c     products between two attentions as one kernel
 *   graph.c     steps captured and replayed
 *   profile.c   where a step's time goes
 *   pages.c     pages outside of a step */
#ifndef INFERD_KERNELS_CUDA_MODEL_H
#define INFERD_KERNELS_CUDA_MODEL_H

#include "cuda/cuda.h"

#include <stdatomic.h>

/* Outputs whose logits are held at a time. */
#define CUDA_HEAD_OUTPUTS 128u
/* Rows up to which a step is captured. */
#define CUDA_GRAPH_ROWS 128u
/* Steps of one model under way at once. */
#define CUDA_RUNS 2u
/* Captured steps of one model. */
#define CUDA_GRAPHS 64u
/* Pieces of file rows that are under way to the device, and how large they are at most (or one
 * row): as large as the daemon's reads, and as much in all as keeps the bus busy. */
#define CUDA_STAGES      8u
#define CUDA_STAGE_BYTES ((size_t)2 << 20)
/* Where arrays begin, in device memory and in a step's numbers. */
#define CUDA_ALIGN 256u

struct infer_backend {
    const struct infer_host *host;
    int device;
    bool graphs;                         /* option graphs: steps are captured and replayed */
    uint32_t chains;                     /* option chains: tokens; 0: none are */
    uint32_t profile;                    /* option profile: steps of one report; 0: none */
    uint32_t n_processors, shared_bytes; /* shared_bytes: of a block, at most */
    char name[64];                       /* for describe() */
    uint64_t memory;                     /* of the device */
    _Atomic uint64_t read_bytes_per_s;   /* of it; 0: not measured, or it could not be */
    _Atomic bool begun;                  /* a model was opened: the context is there */
    _Atomic uint32_t n_models;           /* that are open */
    _Atomic(cudaEvent_t) step_done;      /* the last step of any model */
    _Atomic bool lost; /* an error after which this process can use the device no more */
};

enum cuda_role { CUDA_UNUSED, CUDA_VECTOR, CUDA_MATRIX };

struct cuda_tensor {
    uint32_t role;
    struct cuda_matrix matrix; /* CUDA_MATRIX */
    float *vector;             /* CUDA_VECTOR: device memory */
    uint64_t n_written;        /* rows that have come */
};

/* An operation with its tensors found: q, k and v; or gate and up; or the one matrix. */
struct cuda_op {
    const struct infer_op *op;
    const struct cuda_matrix *w[3];
    const float *bias[3];
    const float *norm, *q_norm, *k_norm;
    float attend_scale; /* QKV: of the ATTEND that follows, for its queries */
};

/* How much a step has of everything, rounded up so that few different ones exist: the key of a
 * captured step, and what the places of its numbers follow from. */
struct cuda_bucket {
    uint32_t rows, pieces, merges, outputs;
    bool turns, streams; /* of struct cuda_cut */
    bool chained;        /* products between two attentions are one kernel: chain.c */
};

/* A step's numbers: arrays one behind another in one block, the same on host and device, `words`
 * last, which is as long as the step needs: page tables, biases and seen tokens, each addressed
 * from its beginning. */
struct cuda_numbers {
    int32_t *tokens;
    uint32_t *row_seq, *row_position;
    struct cuda_seq *seqs; /* as many as rows */
    int32_t *output_rows;  /* per block of outputs, cuda_head_rows() */
    struct cuda_piece *pieces;
    struct cuda_merge *merges;
    struct cuda_output *outputs;
    uint32_t *words;
    size_t bytes; /* up to words */
};

/* One piece of file rows between host and device; see upload.c. */
struct cuda_stage {
    uint8_t *host, *device;
    uint64_t call;      /* the call of tensor_write whose rows it has, counted from 1 */
    cudaEvent_t copied; /* what it was copied from may be written again */
    cudaEvent_t laid;   /* and so may the device's */
};

struct cuda_graph {
    struct cuda_bucket key;
    cudaGraphExec_t exec; /* NULL: free */
    uint64_t used;        /* when last */
    uint32_t n_marks;     /* profile.c */
};

struct cuda_taken {
    void *memory;
    size_t bytes;
    bool pinned;
};

struct cuda_profile; /* profile.c */

/* What of a step the host writes and reads; see run.c. */
struct cuda_run {
    uint8_t *numbers; /* pinned, like drawn */
    struct cuda_drawn *drawn;
    struct cuda_bucket bucket; /* where the numbers are */
    uint32_t n_rows, n_outputs;
    cudaEvent_t done;
    bool profiled;
};

/* Device scratch. Rows of floats are `stride` numbers apart. */
struct cuda_scratch {
    float *x, *q, *k, *v;
    float *gate, *up; /* NULL where no layer needs them */
    uint16_t *queries;
    struct cuda_packed packed_x, packed_o, packed_t;
    float *logits; /* [head_rows][logits_stride] */
    float *partials;
    void *sums; /* of products; NULL: none has more than few rows */
    size_t sums_bytes;
    void *sample;
    struct cuda_drawn *drawn;
    uint8_t *numbers;
    uint8_t *stages;
    void *exchange; /* chain.c */
};

struct infer_backend_model {
    struct infer_backend *backend;
    const struct infer_plan *plan;
    struct infer_state_config state;
    struct cuda_taken tables, pinned; /* host memory */
    void *weights, *scratch_memory;   /* device memory; the pages' is cache.pages */
    size_t weights_bytes, pages_bytes, scratch_bytes;
    struct cuda_tensor *tensors;
    struct cuda_op *ops;
    float *inv_freq; /* device memory */
    struct cuda_cache cache;
    struct cuda_chain *chains;     /* [cuda_chains_most()] host memory */
    uint32_t n_chains, chain_rows; /* 0: every operation is a kernel of its own */
    bool splits_gated;             /* some gate and up differ in format */
    bool ready;

    uint32_t max_rows;  /* state.max_rows as the largest bucket has it */
    uint32_t head_rows; /* rows of logits */
    uint32_t max_pieces, max_merges, max_partials;
    uint32_t max_pages; /* of one sequence */
    uint32_t window;    /* the largest of all layers; 0: one of them sees everything */
    size_t numbers_bytes, stage_bytes;
    size_t x_stride, q_stride, k_stride, v_stride, t_stride, logits_stride;
    struct cuda_scratch scratch;

    /* Pinned host memory. */
    uint8_t *numbers; /* of the step that is being written, or was last */
    float *x;         /* [max_rows][x_stride] where the plan takes or gives it, else NULL */

    /* The attention of the step that is being written; host memory. */
    struct cuda_piece *pieces; /* [max_pieces] */
    struct cuda_merge *merges; /* [max_merges] */

    cudaStream_t stream;           /* of steps */
    cudaStream_t copying, loading; /* upload.c: copies of file rows; kernels that lay them out */
    struct cuda_stage stages[CUDA_STAGES];
    uint32_t next_stage;
    uint64_t n_writes; /* calls of tensor_write */
    uint8_t *rows;     /* rows_pin()'s range; NULL: none */
    size_t rows_bytes;
    struct cuda_graph *graphs; /* [CUDA_GRAPHS] */
    uint64_t n_runs;
    struct cuda_run runs[CUDA_RUNS];
    uint32_t first_run, n_under_way;
    struct cuda_run *last; /* the last that was submitted; NULL: none, or it failed */
    struct cuda_profile *profile;
};

/* ---- backend.c ------------------------------------------------------------------------------- */

/* Writes last_error of the calling thread and returns `error`. */
__attribute__((format(printf, 2, 3))) int cuda_fail(int error, const char *format, ...);
/* 0, or what the error means: -ENOMEM, -EIO or -ENODEV, after which the backend is lost. */
int cuda_check(struct infer_backend *backend, cudaError_t error, const char *what);
/* Makes the device the calling thread's; -ENODEV when it is lost. */
int cuda_enter(struct infer_backend *backend);
void cuda_log(const struct infer_backend *backend, int level, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* ---- plan.c ---------------------------------------------------------------------------------- */

/* Roles and shapes of all tensors into tensors[plan->n_tensors], which is zeroed. -EINVAL or
 * -ENOTSUP with the reason in last_error. */
int cuda_plan_check(const struct infer_plan *plan, const struct infer_state_config *state,
                    struct cuda_tensor *tensors);
/* The model's operations, once its tensors have their places. */
void cuda_plan_resolve(struct infer_backend_model *m);
/* Of a norm or a bias; NULL where there is none. */
const float *cuda_plan_vector(const struct infer_backend_model *m, uint32_t index);

/* ---- model.c --------------------------------------------------------------------------------- */

int cuda_model_estimate(struct infer_backend *backend, const struct infer_plan *plan,
                        const struct infer_state_config *state, struct infer_estimate *ret);
int cuda_model_open(struct infer_backend *backend, const struct infer_plan *plan,
                    const struct infer_state_config *state, struct infer_backend_model **ret);
int cuda_model_ready(struct infer_backend_model *m);
void cuda_model_close(struct infer_backend_model *m);

/* ---- upload.c -------------------------------------------------------------------------------- */

int cuda_model_write(struct infer_backend_model *m, uint32_t tensor, uint64_t first_row,
                     uint64_t n_rows, const void *rows);
int cuda_rows_pin(struct infer_backend_model *m, void *memory, size_t bytes);
int cuda_rows_wait(struct infer_backend_model *m, uint64_t n);
void cuda_rows_unpin(struct infer_backend_model *m);

/* ---- batch.c --------------------------------------------------------------------------------- */

/* Rows of a step as kernels see them: a multiple of 8, few different ones where graphs are. */
uint32_t cuda_bucket_rows(uint32_t n);
/* The others likewise. */
uint32_t cuda_bucket_outputs(uint32_t n);
uint32_t cuda_bucket_pieces(uint32_t n);
uint32_t cuda_bucket_merges(uint32_t n);
/* Rows of logits of one block of outputs. */
static inline uint32_t cuda_head_rows(const struct cuda_bucket *bucket)
{
    uint32_t n = bucket->outputs < CUDA_HEAD_OUTPUTS ? bucket->outputs : CUDA_HEAD_OUTPUTS;
    return (n + CUDA_ROWS_PAD - 1) / CUDA_ROWS_PAD * CUDA_ROWS_PAD;
}
static inline uint32_t cuda_head_blocks(const struct cuda_bucket *bucket)
{
    return (bucket->outputs + CUDA_HEAD_OUTPUTS - 1) / CUDA_HEAD_OUTPUTS;
}
/* Where the numbers of such a step lie from `base` on. */
void cuda_numbers_place(struct cuda_numbers *ret, const struct cuda_bucket *bucket, uint8_t *base);
/* Bytes of the largest step's numbers; 0 when that overflows. */
size_t cuda_numbers_max(const struct infer_backend_model *m);
int cuda_batch_check(const struct infer_backend_model *m, const struct infer_batch *batch);
/* Writes a checked batch to m->numbers; its bucket, and how many bytes of it there are. */
void cuda_batch_write(struct infer_backend_model *m, const struct infer_batch *batch,
                      struct cuda_bucket *ret_bucket, size_t *ret_bytes);
/* A step of no sequence; returns how many bytes of m->numbers there are. */
size_t cuda_batch_blank(struct infer_backend_model *m, const struct cuda_bucket *bucket);

/* ---- run.c ----------------------------------------------------------------------------------- */

int cuda_submit(struct infer_backend_model *m, struct infer_batch *batch);
int cuda_collect(struct infer_backend_model *m, struct infer_batch *batch);
int cuda_run(struct infer_backend_model *m, struct infer_batch *batch);

/* ---- step.c ---------------------------------------------------------------------------------- */

/* Launches all of a step whose numbers are on the device (in order with them). `batch` where raw
 * logits are wanted of it, else NULL. */
cudaError_t cuda_step_launch(struct infer_backend_model *m, const struct cuda_bucket *bucket,
                             const struct infer_batch *batch);
/* Replayed or launched, by size; `batch` says which raw logits are wanted. */
cudaError_t cuda_step_start(struct infer_backend_model *m, const struct cuda_bucket *bucket,
                            const struct infer_batch *batch);
/* Runs a step of no sequence, so that the kernels are on the device before the first batch. */
int cuda_step_warm(struct infer_backend_model *m);

/* ---- stream.c -------------------------------------------------------------------------------- */

/* Bytes of x for n rows as they cross; 0: the plan is a whole model. */
size_t cuda_stream_bytes(const struct infer_backend_model *m, uint32_t n_rows);
/* Before a step's launches and after them, on the model's stream; nothing where the plan does not
 * take x, or give it. */
cudaError_t cuda_stream_up(struct infer_backend_model *m, const struct cuda_bucket *bucket,
                           const struct infer_batch *batch);
cudaError_t cuda_stream_down(struct infer_backend_model *m, uint32_t n_rows);
/* What has come down, once the stream has been waited for. */
void cuda_stream_read(const struct infer_backend_model *m, struct infer_batch *batch);

/* ---- chain.c --------------------------------------------------------------------------------- */

/* A model comes, and goes; the first makes the backend's event. */
cudaError_t cuda_chain_model(struct infer_backend *b);
void cuda_chain_model_gone(struct infer_backend *b);
void cuda_chain_close(struct infer_backend *b);
/* Chains that a plan has at most. */
uint32_t cuda_chains_most(const struct infer_plan *plan);
/* n_chains and chain_rows. */
void cuda_chain_measure(struct infer_backend_model *m);
/* Whether a step's products are chained. */
bool cuda_chain_takes(const struct infer_backend_model *m, const struct infer_batch *batch);
/* Bytes of m->scratch.exchange. */
size_t cuda_chain_bytes(const struct infer_backend_model *m);
/* Once the matrices have their addresses. */
cudaError_t cuda_chain_ready(struct infer_backend_model *m);
/* After a step that was not launched to its end. */
cudaError_t cuda_chain_clean(struct infer_backend_model *m);
/* Chain i of a step. */
cudaError_t cuda_chain_launch(struct infer_backend_model *m, const struct cuda_bucket *bucket,
                              uint32_t i);
/* Around a step's launches. */
cudaError_t cuda_chain_after(struct infer_backend_model *m);
cudaError_t cuda_chain_done(struct infer_backend_model *m);

/* ---- graph.c --------------------------------------------------------------------------------- */

/* Replays the step of that bucket, which is captured when it comes for the first time. */
cudaError_t cuda_graph_launch(struct infer_backend_model *m, const struct cuda_bucket *bucket);
/* Whether nothing is wrong but that the step could not be captured. */
bool cuda_graph_refused(struct infer_backend_model *m, cudaError_t error);
void cuda_graphs_free(struct infer_backend_model *m);

/* ---- profile.c ------------------------------------------------------------------------------- */

enum cuda_phase {
    CUDA_PHASE_EMBED,
    CUDA_PHASE_PACK, /* norms */
    CUDA_PHASE_QKV,
    CUDA_PHASE_TURN,
    CUDA_PHASE_ATTEND,
    CUDA_PHASE_PROJECT_O,
    CUDA_PHASE_GATED,
    CUDA_PHASE_PROJECT_T,
    CUDA_PHASE_CHAIN,
    CUDA_PHASE_HEAD,
    CUDA_PHASE_SAMPLE,
    CUDA_PHASES
};

/* Nothing where the model has no profile. */
int cuda_profile_new(struct infer_backend_model *m);
void cuda_profile_free(struct infer_backend_model *m);
/* A step's launches begin; those since the last mark were this phase; all of the step are done. */
void cuda_profile_begin(struct infer_backend_model *m, bool captured);
void cuda_profile_mark(struct infer_backend_model *m, enum cuda_phase phase);
/* How many marks the step has: those of its capture, or, where n is not 0, those that its replay
 * will set. */
uint32_t cuda_profile_marks(struct infer_backend_model *m, uint32_t n);
void cuda_profile_end(struct infer_backend_model *m, uint32_t n_rows);

/* ---- pages.c --------------------------------------------------------------------------------- */

int cuda_page_copy(struct infer_backend_model *m, uint32_t to, uint32_t from);
int cuda_page_zero(struct infer_backend_model *m, uint32_t page);
int cuda_page_read(struct infer_backend_model *m, uint32_t page, void *ret_bytes);
int cuda_page_write(struct infer_backend_model *m, uint32_t page, const void *bytes);
int cuda_page_shift(struct infer_backend_model *m, uint32_t page, int32_t delta);

#endif
