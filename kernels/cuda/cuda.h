/* cuda.h: the words that the files of the CUDA backend share.
 *
 *   backend.c       the entry point, its options, the device
 *   code.c          which of the kernels' codes a device runs, and what it has for them
 *   plan.c          which plans are run; operations with their tensors found
 *   model.c         a plan laid out in device memory
 *   upload.c        rows of the file on their way there
 *   batch.c         a batch checked, and the numbers of a step that kernels read
 *   stream.c        the residual stream of a part of a model, from and to the host
 *   run.c           steps submitted and collected, two under way at a time
 *   step.c          the plan's operations as kernels
 *   graph.c         steps captured and replayed
 *   profile.c       where a step's time goes
 *   pages.c         pages copied, zeroed, read, written, shifted between steps
 *   format.cu       how weights lie in memory: file rows to fragment order
 *   product.cu      y = W x for 1 to 16 rows of x, bound by the weights' bytes
 *   product_many.cu the same for more rows, bound by the tensor cores; product_share.cuh: which
 *                   block does what; product_finish.cuh: what becomes of a tile's results
 *   rows.cu         embedding, norms, activation: what is done to a row of x at a time
 *   cache.cu        keys and values into pages, rotation; pages copied, zeroed, shifted
 *   attend.cu       attention over the pages
 *   probe.cu        how fast the device's memory can be read
 *   chain.c         which products between two attentions run as one kernel, for few rows
 *   chain.cu        that kernel
 *   pieces.c        attention cut into pieces, a block's work each
 *   sample.cu       logits to tokens
 *   turn.cuh        a head of a row between QKV and the cache: norm, rotation, rounding, its slot
 *   packed.cuh      where a number of x lies in the orders that products want
 *   device.cuh      the instructions that C does not have, and how kernels are launched
 *   group_mma.cuh   of these, the tensor cores' that four warps share
 *
 * Host code is C over the runtime API; a .cu file holds kernels and, as extern "C", the functions
 * declared here that launch them. A launch function takes device pointers, never waits, allocates
 * nothing, and returns a cudaError_t.
 *
 * The same tokens alone or in any batch. A row's numbers depend on its own sequence alone, bit for
 * bit, because every kernel adds up in an order that is fixed by the shape of the weights and by
 * positions, never by how many rows there are or who else is there:
 *   - products are sums of CUDA_SEGMENTS partial sums, each over a fixed share of the columns in
 *     ascending order with the same tensor-core instruction; those of each quarter of the columns
 *     are added in ascending order, and then the quarters;
 *   - attention handles keys in chunks of CUDA_CHUNK positions (a multiple of it is where a chunk
 *     begins), each with its own maximum, and merges chunks in ascending order, whether one warp
 *     walks through all of them or each is another block's.
 *
 * Rows of a step are padded to a size of which there are few (a "bucket", batch.c), so that a
 * captured graph serves many steps. Kernels over rows compute the padding too; nothing reads it.
 *
 * Threads: of one model one call at a time; model loading has a stream of its own. */
#ifndef INFERD_KERNELS_CUDA_H
#define INFERD_KERNELS_CUDA_H

#include "inferd/backend.h"

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define CUDA_PAGE_TOKENS 16u
#define CUDA_SEGMENTS    8u  /* partial sums of a product */
#define CUDA_CHUNK       64u /* positions of one partial attention */
#define CUDA_TILE_ROWS   16u /* weight rows of one tensor-core tile */
#define CUDA_BAND        4u  /* tiles of a band: the rows of four warps */
#define CUDA_UNIT        64u /* columns of one unit of a tile; rows of W are padded to it */
#define CUDA_ROWS_PAD    8u  /* rows of x of one tensor-core tile */
#define CUDA_FEW_ROWS    16u /* rows of x up to which products are product.cu's */
/* Shared memory that a block can have on devices of 7.5, 8.0 and 9.0; those of 8.6 and 8.9, for
 * one, have 99 KiB. */
#define CUDA_SHARED_7_5 (64u << 10)
#define CUDA_SHARED_8_0 (163u << 10)
#define CUDA_SHARED_9_0 (227u << 10)

/* ---- the device: code.c, probe.cu ------------------------------------------------------------ */

/* Compute capabilities are 10 times the number. */
struct cuda_limits {
    uint32_t capability; /* of the device */
    uint32_t code;       /* of the code that it runs; 0: there is none that it can */
    uint32_t processors;
    uint32_t shared_bytes; /* of a block, at most */
};
cudaError_t cuda_limits_of_device(int device, struct cuda_limits *ret);
cudaError_t cuda_limits_of(struct cuda_limits *ret); /* of the current one */
/* What this backend was built with, and which of such codes a device runs. */
const char *cuda_codes(void);
uint32_t cuda_code_for(const char *codes, uint32_t capability);

/* Bytes a second at which the current device's memory can be read; 0: it cannot be measured. Waits
 * for the device. */
uint64_t cuda_probe_read(void);

/* ---- weights: format.cu ---------------------------------------------------------------------- */

/* value = scale * code, or scale * code + minimum, which products round to half-precision; scales
 * and minima are that already, one per group of columns. Codes are whole numbers. */
enum cuda_format {
    CUDA_F16, /* half-precision values: F16, BF16, F32 */
    CUDA_W4,  /* 4 bits - 8, per 32: Q4_0, TQ1_0, TQ2_0 */
    CUDA_W4M, /* 4 bits and minimum, per 32: Q4_1, Q4_K */
    CUDA_W5M, /* 5 bits and minimum, per 32: Q5_0, Q5_1, Q5_K */
    CUDA_W6,  /* 6 bits - 32, per 16: Q6_K, Q3_K */
    CUDA_W8,  /* 8 bits, signed, per 32: Q8_0, IQ4_NL, IQ4_XS, IQ3_S, MXFP4 */
    CUDA_W8M, /* 8 bits, signed, and minimum, per 16: Q2_K */
    CUDA_FORMATS
};

/* A matrix of `rows` outputs and `cols` inputs in device memory. Row tile i holds rows
 * 16 i .. 16 i + 15, unit u of it columns 64 u .. 64 u + 63; tiles come in fours, padded with
 * zeros. product.cuh has the picture of a tile's unit. */
struct cuda_matrix {
    uint32_t format; /* enum cuda_format */
    uint32_t type;   /* enum infer_type: the file's */
    uint32_t rows, cols;
    uint32_t bands, units; /* rows / 64 and cols / 64, rounded up */
    uint8_t *pieces;       /* of each tile's units; product.cuh */
};

/* CUDA_FORMATS when the tensor type is not known. */
uint32_t cuda_format_of(uint32_t type);
/* Device bytes, a multiple of 256; 0 when that overflows. */
size_t cuda_matrix_bytes(uint32_t type, uint32_t rows, uint32_t cols);
/* Fills *ret for memory of that size, at a multiple of 256, which must be all zero before the first
 * write. */
void cuda_matrix_init(struct cuda_matrix *ret, uint32_t type, uint32_t rows, uint32_t cols,
                      void *memory);
/* n_rows rows in the file's encoding, row_bytes each, that lie in device memory at `from`, to
 * rows first_row ... of the matrix. */
cudaError_t cuda_matrix_write(const struct cuda_matrix *m, uint32_t first_row, uint32_t n_rows,
                              const void *from, size_t row_bytes, cudaStream_t stream);
struct cuda_drawn;
/* to[i][cols] = scale * row ids[i] of the matrix, as float32; ids in device memory, to[i] at
 * to + i * stride. An id below 0 (INFER_TOKEN_DRAWN) is the token of that output in `drawn`, also
 * in device memory; NULL where there is no such id. What EMBED does, and how tests look into a
 * matrix. */
cudaError_t cuda_matrix_read(const struct cuda_matrix *m, const int32_t *ids, uint32_t n,
                             float scale, const struct cuda_drawn *drawn, float *to, size_t stride,
                             cudaStream_t stream);

/* ---- rows of activations: rows.cu ------------------------------------------------------------ */

/* Rows of x as products want them: half-precision, in the order of tensor-core fragments. Columns
 * are padded with zeros to a multiple of 64, rows (with anything) to a multiple of 8, a row tile.
 * Row tile t (8 rows) and block b (32 columns) are 512 bytes, in one of two orders:
 *
 *   tiles 0       for products of few rows, a fragment per lane: at (t * blocks + b) * 512 there
 * are 32 lanes x 16 bytes: lane 4 g + q has row 8 t + g, columns 32 b + 4 q + {0, 1, 2, 3} and 32 b
 * + 16 + 4 q + {0, 1, 2, 3} tiles 4, 8,   for more, as groups of warps read them from shared
 * memory: row tiles in sets of 16            `tiles`, whose blocks stand together: at ((t / tiles *
 * blocks + b) * tiles + t % tiles) * 512 there are 4 x 8 x 16 bytes: of k = 0 .. 3, of each row g,
 * columns 32 b + 16 (k / 2) + 2 (k % 2) + {0, 1, 4, 5, 8, 9, 12, 13}
 *
 * Either way four columns from a multiple of 4 on are two words of two columns each. */
struct cuda_packed {
    uint16_t *values;
    uint32_t tiles;
    uint32_t cols;   /* before padding */
    uint32_t blocks; /* of 32 columns: 2 * units of a matrix with as many columns */
};

/* The order that products of so many rows want, on a device that gives a block so much shared
 * memory. */
static inline uint32_t cuda_packed_tiles(uint32_t rows, uint32_t shared_bytes)
{
    if (rows <= CUDA_FEW_ROWS)
        return 0;
    if (rows <= 32 || shared_bytes < CUDA_SHARED_8_0)
        return 4;
    return rows <= 64 && shared_bytes >= CUDA_SHARED_9_0 ? 8 : 16;
}
/* Bytes of so many rows or fewer, in any order that they may have. */
static inline size_t cuda_packed_bytes(uint32_t rows, uint32_t cols)
{
    uint32_t set = rows <= CUDA_FEW_ROWS ? CUDA_FEW_ROWS : rows <= 32 ? 32 : 128;
    return ((size_t)rows + set - 1) / set * set * (((size_t)cols + 63) / 64 * 64) * 2;
}

/* RMSNorm and packing: for i < n the row x[index ? index[i] : i], of to->cols values, divided by
 * sqrt(mean of squares + eps), times weight. weight NULL: packed as it is, without norm. index in
 * device memory. Values beyond +-65504 are cut to that. */
cudaError_t cuda_pack(const float *x, size_t stride, const int32_t *index, uint32_t n,
                      const float *weight, float eps, const struct cuda_packed *to,
                      cudaStream_t stream);
/* t = act(gate) * up, packed. For gate and up that do not have the same format. */
cudaError_t cuda_pack_gated(const float *gate, const float *up, size_t stride, uint32_t n,
                            uint32_t activation, const struct cuda_packed *to, cudaStream_t stream);

/* ---- products: product.cu, product_many.cu --------------------------------------------------- */

enum cuda_finish {
    CUDA_STORE, /* to[row][r] = scale * (W x)[r] + bias[r] */
    CUDA_ADD,   /* to[row][r] += (W x)[r] + bias[r] */
    CUDA_GATED, /* packed[row][r] = act((W x)[r]) * (V x)[r], W and V of the same format */
};

/* One matrix, or W and V of CUDA_GATED. n_rows rows of x; only they have results. The order of x
 * says which kernel does it (tiles 0: at most CUDA_FEW_ROWS rows); every one gives a row the same
 * bits. */
struct cuda_product {
    struct cuda_matrix w, v;
    struct cuda_packed x;
    uint32_t n_rows;
    uint32_t finish;     /* enum cuda_finish */
    uint32_t activation; /* of CUDA_GATED */
    float scale;
    const float *bias; /* NULL: none */
    float *to;
    size_t stride; /* of `to`, in numbers */
    struct cuda_packed gated;
    /* cuda_sums_bytes() bytes, all ones before the first use and after each; of products that do
     * not run at the same time. NULL: more than few rows may take longer. */
    void *sums;
};

/* Up to 3 products of the same x that do not depend on each other: q, k and v. Those of one format
 * run in one launch. */
cudaError_t cuda_multiply(const struct cuda_product *products, uint32_t n, cudaStream_t stream);

/* For products of up to so many rows; 0: few. */
size_t cuda_sums_bytes(uint32_t n_rows, uint32_t n_processors);

/* For tests and measurements: how x of more than few rows meets W. */
enum cuda_way {
    CUDA_FASTEST, /* what cuda_multiply() takes, by rows and sizes */
    CUDA_DEEP,    /* tiles' columns shared out over blocks, wherever that can be */
    CUDA_WIDE,    /* a block all columns */
    CUDA_LEAN,    /* x of sets of 4 tiles: as where there is little shared memory */
};
cudaError_t cuda_multiply_by(enum cuda_way way, const struct cuda_product *products, uint32_t n,
                             cudaStream_t stream);

/* ---- products between two attentions: chain.cu ------------------------------------------------
 */

/* Rows of a step up to which they are one kernel, where x of so many fits. */
#define CUDA_CHAIN_ROWS 4u
/* Tokens of a sequence up to which it pays (chain.cu). */
#define CUDA_CHAIN_TOKENS 4096u

/* In their order; the first three are lines too. */
enum cuda_part { CUDA_PART_O, CUDA_PART_GATED, CUDA_PART_DOWN, CUDA_PART_QKV };
enum { CUDA_LINE_Q = CUDA_PART_QKV, CUDA_LINE_K, CUDA_LINE_V, CUDA_LINES };

/* A matrix, of CUDA_PART_GATED two: there a pair of tiles is one of each, else two neighbours. */
struct cuda_line {
    const uint8_t *w[2]; /* pieces: where a pair's first and second tile come from */
    const float *bias;   /* NULL: none */
    float *to;           /* q, k, v: where results go, row by row */
    size_t stride;
    uint32_t format, rows, units, pairs;
};

/* Parts first .. last of a layer and, as CUDA_PART_QKV, of the next. Pointers are to device memory.
 */
struct cuda_chain {
    struct cuda_line lines[CUDA_LINES];
    uint32_t first, last;           /* enum cuda_part */
    uint32_t n_rows;                /* at most CUDA_CHAIN_ROWS */
    uint32_t n_embd, n_ffn, o_cols; /* o_cols: n_heads * head_dim_v */
    float *x;                       /* [n_rows][x_stride] */
    uint32_t x_stride;
    struct cuda_packed o;         /* in the order for few rows */
    const float *ffn_norm, *norm; /* of CUDA_PART_GATED, of CUDA_PART_QKV */
    float eps;
    uint32_t activation;
    /* Two exchanges; which of them is used, and which made clean: all ones, as the one that is used
     * must be before. */
    void *exchange;
    uint32_t own, before;
    uint32_t slot_bytes, n_slots, between, shared_bytes; /* cuda_chain_fit(), for chain.cu */
    uint32_t n_blocks;
};

/* Whether shapes and formats are such that it can be run with so much shared memory a block; how
 * that is divided. Without a device. */
bool cuda_chain_fit(struct cuda_chain *chain, uint32_t shared_bytes);
/* As many blocks as the current device runs at once, one a processor; 0: it does not. */
uint32_t cuda_chain_blocks(void);
size_t cuda_chain_exchange_bytes(const struct cuda_chain *chain); /* of one */
/* Nothing that waits may run on the device at the same time. */
cudaError_t cuda_chain_run(const struct cuda_chain *chain, uint32_t shared_bytes,
                           cudaStream_t stream);

/* ---- a step's numbers on the device: batch.c ------------------------------------------------- */

struct cuda_seq {
    uint32_t first_row, n_rows;
    uint32_t position;
    uint32_t first_page; /* index into cuda_step.pages */
};

/* One piece of attention, a block's work per key head: rows first_row .. first_row + n_rows - 1 of
 * the step, all of sequence `seq`; for them chunks first_chunk .. first_chunk + n_chunks - 1 (those
 * outside of a layer's window are left out). A piece of n_rows 0 is none. pieces.c makes them. */
struct cuda_piece {
    uint32_t seq;
    uint32_t first_row, n_rows;
    uint32_t first_chunk, n_chunks;
    uint32_t
        partial; /* where its partial results go; CUDA_WHOLE: it has all chunks, and finishes */
};
#define CUDA_WHOLE UINT32_MAX

/* Device pointers; the arrays are as long as the bucket says, padded with rows of no sequence
 * (row_seq UINT32_MAX, token 0, position 0), with pieces and merges of n_rows 0. */
struct cuda_step {
    const int32_t *tokens;        /* per row */
    const uint32_t *row_seq;      /* per row */
    const uint32_t *row_position; /* per row */
    const struct cuda_seq *seqs;
    const uint32_t *pages;
    const struct cuda_piece *pieces;
    const int32_t *output_rows; /* the rows that HEAD is for */
    uint32_t n_rows;            /* of the bucket */
    uint32_t n_pieces;          /* of the bucket */
};

/* ---- the cache: cache.cu --------------------------------------------------------------------- */

/* A page holds, for each layer and each key head in turn, 16 keys and then 16 values; cache.cu has
 * the picture of both. Everything is for one part of a plan: its n_kv_heads. */
struct cuda_cache {
    uint8_t *pages; /* device memory, zero at first; page p at pages + p * page_bytes */
    uint32_t n_pages;
    uint32_t n_layers, n_heads, n_kv_heads;
    uint32_t head_dim, head_dim_v;
    uint32_t dim_k, dim_v; /* the same, padded with zeros to a multiple of 32 */
    uint32_t k_type, v_type;
    size_t key_bytes, value_bytes; /* of 16 keys, values of one head */
    size_t head_bytes, layer_bytes, page_bytes;
    /* No piece is wide: the device has less shared memory than cuda_wide_bytes(). */
    bool narrow;
};

/* Whether there are kernels for heads of just this size; else one for any takes them. */
static inline bool cuda_heads_known(const struct cuda_cache *cache)
{
    return cache->dim_k == cache->dim_v && (cache->dim_k == 64 || cache->dim_k == 128);
}

/* Fills all but pages. -ENOTSUP: types or sizes that this backend does not keep. */
int cuda_cache_init(struct cuda_cache *ret, const struct infer_shape *shape,
                    const struct infer_state_config *state);

/* What QKV does after its products: q, k, v are float32 [row][heads * head_dim(_v)]. Head norms
 * (NULL: none), rotation by the row's position, k and v into the pages, q (times scale and
 * log2(e)) into `queries` as half-precision [row][n_heads][dim_k]. inv_freq in device memory, [rope
 * n_dims / 2]. */
struct cuda_turn {
    const float *q, *k, *v;
    size_t q_stride, k_stride, v_stride;
    const float *q_norm, *k_norm;
    float eps;
    uint32_t rope_style, rope_dims;
    const float *inv_freq;
    float magnitude;
    float scale; /* of ATTEND */
    uint16_t *queries;
    uint32_t layer;
};
cudaError_t cuda_turn_and_cache(const struct cuda_cache *cache, const struct cuda_turn *turn,
                                const struct cuda_step *step, cudaStream_t stream);

cudaError_t cuda_cache_copy(const struct cuda_cache *cache, uint32_t to, uint32_t from,
                            cudaStream_t stream);
/* See page_shift of backend.h; the angle is the exact product delta * inv_freq, as in ref/rope.h.
 */
cudaError_t cuda_cache_shift(const struct cuda_cache *cache, uint32_t page, int32_t delta,
                             uint32_t rope_style, uint32_t rope_dims, const float *inv_freq,
                             cudaStream_t stream);

/* ---- attention: attend.cu -------------------------------------------------------------------- */

#define CUDA_PAIRS 16u /* (row, query head) pairs of a tile: rows of one tensor-core product */
/* Pieces of steps with more rows may be wide: several tiles that walk through the keys together. */
#define CUDA_NARROW_ROWS 128u

/* Rows of a narrow piece: as many as make one tile, at least 1 (then a piece has several tiles). */
static inline uint32_t cuda_piece_rows(const struct cuda_cache *cache)
{
    uint32_t per_kv = cache->n_heads / cache->n_kv_heads;
    return per_kv >= CUDA_PAIRS ? 1 : CUDA_PAIRS / per_kv;
}

/* Most rows of a wide piece; 0 where there are none. */
uint32_t cuda_wide_rows(const struct cuda_cache *cache);
/* Shared memory of a block with one. */
size_t cuda_wide_bytes(const struct cuda_cache *cache);

/* Bytes of partial results for so many partials: per partial and query head a maximum, a sum and
 * dim_v values, float32. A partial is one chunk of one row: a piece whose `partial` is P writes row
 * r of its chunk c to P + c * n_rows + r.  */
size_t cuda_partial_bytes(const struct cuda_cache *cache, uint32_t n_partials);

/* For rows whose chunks are several pieces', one behind another: the first of these pieces in all
 * but n_chunks, which is that of all of them together. n_rows 0: none. */
struct cuda_merge {
    uint32_t first_row, n_rows;
    uint32_t first_chunk, n_chunks;
    uint32_t partial;
};

/* How a step is cut. Where it has so few tiles, each of them all rows of its sequence, that a block
 * has a processor for itself, attention turns the rows too, and a block works on CUDA_CUT_GROUPS
 * chunks at once. Where it has so many that blocks would not all run at once, a warp has a tile, to
 * which keys and values stream. */
struct cuda_cut {
    uint32_t n_pieces, n_merges;
    bool turns, streams;
};
#define CUDA_CUT_GROUPS 2u

/* The pieces and merges of a step, cut so that every processor has something to do; what is cut
 * does not change what comes out. `window` is the largest of all layers, 0: all. */
void cuda_cut(const struct cuda_cache *cache, const struct cuda_seq *seqs, uint32_t n_seqs,
              uint32_t window, uint32_t n_processors, struct cuda_piece *pieces,
              struct cuda_merge *merges, struct cuda_cut *ret);
/* The most of each that there can be in a step of so many rows and sequences. */
void cuda_cut_most(const struct cuda_cache *cache, uint32_t max_rows, uint32_t max_seqs,
                   uint32_t n_processors, uint32_t *ret_pieces, uint32_t *ret_merges,
                   uint32_t *ret_partials);

struct cuda_attend {
    const uint16_t *queries;
    struct cuda_turn turn; /* of a cut that turns; q NULL: cuda_turn_and_cache() has done it */
    bool streams;          /* of the cut */
    uint32_t layer;
    uint32_t window; /* 0: all */
    float *partials;
    const struct cuda_merge *merges; /* device memory */
    uint32_t n_merges;               /* of the bucket; 0: no piece writes partials */
    struct cuda_packed to;           /* o, [n_heads * head_dim_v] per row */
};
cudaError_t cuda_attend(const struct cuda_cache *cache, const struct cuda_attend *attend,
                        const struct cuda_step *step, cudaStream_t stream);

/* ---- sampling: sample.cu --------------------------------------------------------------------- */

/* infer_batch_output as the device sees it; indices into arrays beside it. */
struct cuda_output {
    uint32_t row; /* of the logits */
    uint32_t sample;
    int32_t target;
    uint32_t n_top;
    struct infer_sampling sampling;
    uint32_t first_bias, n_bias;
    uint32_t first_seen, n_seen;
    double uniform;
};
struct cuda_drawn {
    int32_t token;
    float logprob, target_logprob;
    struct infer_logprob top[INFER_TOP_MAX];
};

/* Shared memory of a block, at most. */
size_t cuda_sample_shared_bytes(uint32_t n_vocab);
/* Working memory for max_outputs outputs. */
size_t cuda_sample_scratch_bytes(uint32_t n_vocab, uint32_t max_outputs);
/* Everything in device memory. Same results as ref/sample.h, but for the rounding of sums. The
 * logits are left as they are. */
cudaError_t cuda_sample(const float *logits, size_t stride, uint32_t n_vocab,
                        const struct cuda_output *outputs, uint32_t n_outputs,
                        const struct infer_logit_bias *bias, const int32_t *seen, void *scratch,
                        struct cuda_drawn *ret, cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
