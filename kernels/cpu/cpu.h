/* cpu.h: the words that the files of the CPU backend share.
 *
 *   format.c         how weights lie in memory: 16 rows interleaved, codes and scales apart
 *   matmul.h         y = W x on that layout, for 1 to 8 rows of x at a time
 *   cache.c          how keys and values lie in a page; queries packed for them
 *   ops.h attend.h   norms, packing of x, activation, rotation; attention
 *   step.c           one batch: the plan's operations as sections between barriers
 *   shift.c          a page's keys to other positions
 *   model.c          a plan checked and laid out in memory; tensors and pages written
 *   pool.c           the threads
 *   backend.c        the entry point and its options
 *
 * The files named *_avx512.c, *_avx2.c and *_plain.c include the same templates on top of one of
 * simd_avx512.h, simd_avx2.h and simd_plain.h; each offers one struct cpu_isa. */
#ifndef INFERD_KERNELS_CPU_H
#define INFERD_KERNELS_CPU_H

#include "inferd/backend.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CPU_GROUP       16u  /* weight rows that lie interleaved */
#define CPU_BLOCK       32u  /* columns of one integer block */
#define CPU_SUPER       256u /* columns of one super-block of the K formats */
#define CPU_TILE        8u   /* rows of x that one kernel call takes, at most */
#define CPU_RECORD      48u  /* bytes of one packed block of one row of x: 32 codes, 4 numbers */
#define CPU_PAGE_TOKENS 16u
#define CPU_FETCH_AHEAD 8192u /* bytes of weights that are asked for before they are needed */
#define CPU_PARTS       3u    /* matrices of one operation */

/* How a matrix lies in memory; format.c has the picture of each. */
enum cpu_format {
    CPU_Q4_0, /* 4 bits - 8, half scale per 32 */
    CPU_Q4_1, /* 4 bits, half scale and minimum per 32 */
    CPU_Q5_0, /* 5 bits - 16, half scale per 32 */
    CPU_Q5_1, /* 5 bits, half scale and minimum per 32 */
    CPU_Q8_0, /* 8 bits - 128, half scale per 32 */
    CPU_Q4_K, /* 4 bits, 6-bit scale and minimum per 32, half scales per 256 */
    CPU_Q5_K, /* 5 bits, the same */
    CPU_Q6_K, /* 6 bits - 32, 8-bit scale per 16, half scale per 256 */
    CPU_C4_0, /* 4-bit index into 16 values - 128, half scale per 32 */
    CPU_C4_B, /* the same with a bfloat16 scale */
    CPU_C4_K, /* the same with an 8-bit scale per 32 and a half scale per 256 */
    CPU_F16,
    CPU_BF16,
    CPU_F32,
    CPU_FORMATS
};

/* What x is packed into: 8-bit codes with minus `offset` times their sums, or float32. */
struct cpu_packing {
    bool is_float;
    uint32_t offset; /* of the weights' codes; 0: those that have none */
};

/* A matrix in this backend's layout. Group g holds rows 16 g .. 16 g + 15 in group_bytes from
 * data + g * group_bytes, in strips of 256 columns: the codes of up to 8 blocks, then their high
 * bits, their scales, and the super-block's scales. Rows that pad the last group are zero. */
struct cpu_matrix {
    uint32_t format;
    uint32_t rows, cols;
    uint32_t n_groups;
    uint32_t n_blocks; /* of 32 columns; float formats: pairs of columns */
    size_t group_bytes;
    uint8_t *data;
    uint8_t codebook[16]; /* value + 128 */
};

/* The bytes of one block (for float formats: of one pair of columns) of a group, and of its 256
 * columns' scales. */
struct cpu_layout {
    uint32_t codes, high, scales, supers;
    uint32_t offset; /* what is subtracted from a code */
};

static inline __attribute__((always_inline)) struct cpu_layout cpu_layout_of(uint32_t format)
{
    switch (format) {
    case CPU_Q4_0:
        return (struct cpu_layout){256, 0, 32, 0, 8};
    case CPU_Q4_1:
        return (struct cpu_layout){256, 0, 64, 0, 0};
    case CPU_Q5_0:
        return (struct cpu_layout){256, 64, 32, 0, 16};
    case CPU_Q5_1:
        return (struct cpu_layout){256, 64, 64, 0, 0};
    case CPU_Q8_0:
        return (struct cpu_layout){512, 0, 32, 0, 128};
    case CPU_Q4_K:
        return (struct cpu_layout){256, 0, 32, 64, 0};
    case CPU_Q5_K:
        return (struct cpu_layout){256, 64, 32, 64, 0};
    case CPU_Q6_K:
        return (struct cpu_layout){256, 128, 32, 32, 32};
    case CPU_C4_0:
    case CPU_C4_B:
        return (struct cpu_layout){256, 0, 32, 0, 128};
    case CPU_C4_K:
        return (struct cpu_layout){256, 0, 16, 32, 128};
    case CPU_F32:
        return (struct cpu_layout){128, 0, 0, 0, 0};
    default: /* F16, BF16 */
        return (struct cpu_layout){64, 0, 0, 0, 0};
    }
}

/* Bytes of one strip: a multiple of a cache line. */
static inline __attribute__((always_inline)) uint32_t cpu_strip_bytes(struct cpu_layout l)
{
    return (8 * (l.codes + l.high + l.scales) + l.supers + 63) / 64 * 64;
}

/* ---- format.c -------------------------------------------------------------------------------- */

/* Which format a tensor type gets; -1 when the type is not known. */
int cpu_format_of(uint32_t type);
struct cpu_packing cpu_format_packing(uint32_t format);
/* Fills all but data; the columns are a multiple of the type's block. */
void cpu_matrix_init(struct cpu_matrix *matrix, uint32_t type, uint32_t rows, uint32_t cols);
size_t cpu_matrix_bytes(const struct cpu_matrix *matrix);
/* One row in the file's encoding into its place. `scratch` holds cols floats. */
void cpu_matrix_write(const struct cpu_matrix *matrix, uint32_t type, uint32_t row,
                      const void *bytes, float *scratch);
/* One row back, as the numbers the kernels multiply with. */
void cpu_matrix_read(const struct cpu_matrix *matrix, uint32_t row, float *ret);

/* ---- cache.c --------------------------------------------------------------------------------- */

/* Keys, or values, of one layer and kv head of one page; dim is a multiple of 32 but for F16. */
size_t cpu_key_bytes(uint32_t type, uint32_t dim);
size_t cpu_value_bytes(uint32_t type, uint32_t dim);
/* One row into its slot, 0 .. 15, of a page; Q8_0 and Q4_0. */
void cpu_cache_key(uint8_t *keys, uint32_t type, uint32_t dim, uint32_t slot, const float *x);
/* The key in a slot, as it was given but for the rounding. */
void cpu_cache_key_read(const uint8_t *keys, uint32_t type, uint32_t dim, uint32_t slot,
                        float *ret);
void cpu_cache_value(uint8_t *values, uint32_t type, uint32_t dim, uint32_t slot, const float *x);

/* What a block of a packed query has beside its codes: a number is 128 high + low, times scale. */
struct cpu_query_block {
    float scale;
    int32_t high, low; /* the sums of the codes */
};
/* Query m of a tile of M, times scale, for keys in codes; takes less than dim floats of each. */
void cpu_query_pack(uint8_t *packed, uint32_t M, uint32_t m, const float *q, uint32_t dim,
                    float scale);

/* ---- one instruction set --------------------------------------------------------------------- */

/* out[t * stride + 16 (g - first) + r] = sum over k of w[16 g + r][k] x[t][k], for the groups
 * first .. last - 1 and the T rows of one packed tile. out is aligned to 64 bytes. Weights are
 * asked for ahead of their use up to the group `reach`: at least last, and last where others follow
 * that are not from memory. */
typedef void (*cpu_matmul)(const struct cpu_matrix *w, uint32_t first, uint32_t last,
                           uint32_t reach, const uint8_t *x, float *out, size_t stride);

/* A tile of M (query, head) pairs of one sequence and one kv head; see attend.h. */
struct cpu_attend {
    const uint8_t *pages_base; /* + page * page_bytes: this layer's and kv head's keys */
    size_t page_bytes;
    size_t key_bytes, value_bytes; /* the values follow the keys; see cache.c */
    uint32_t k_type, v_type;       /* F16, Q8_0, Q4_0 */
    const uint32_t *pages;
    uint32_t head_dim;
    uint32_t dim_v;    /* head_dim_v rounded up to 16 */
    uint32_t first[8]; /* pair m sees the cached rows first[m] .. limit[m] - 1 */
    uint32_t limit[8]; /* at least first[m] + 1 */
    bool streams;      /* the pages come from memory, once: ask for them ahead */
    const float *q;    /* F16: [head_dim][M], scaled; else as cpu_query_pack */
    float *scores;     /* [M][CPU_ATTEND_CHUNK] */
    float *out;        /* [M][dim_v] */
};
#define CPU_ATTEND_CHUNK 128u /* cached rows between two rescalings; part of the result's bits */

typedef void (*cpu_attend_tile)(struct cpu_attend *a);

struct cpu_isa {
    const char *name;
    uint32_t tile;                     /* widest tile: 8 or 4 */
    cpu_matmul matmul[CPU_FORMATS][4]; /* by log2 of the tile's width */
    cpu_attend_tile attend[4];
    /* h = x / rms(x) * norm over n numbers; buffers are padded with zeros to a multiple of 16. */
    void (*norm)(float *h, const float *x, const float *norm, uint32_t n, float eps);
    /* Row t of a tile of width T. */
    void (*pack)(uint8_t *tile, uint32_t T, uint32_t t, const float *x, uint32_t cols,
                 struct cpu_packing packing);
    /* gate = act(gate) * up */
    void (*gated)(float *gate, const float *up, uint32_t n, uint32_t activation);
    /* x turned in place; cosine and sine hold n_dims / 2 numbers each. */
    void (*rope)(float *x, const float *cosine, const float *sine, uint32_t n_dims, uint32_t style);
    /* 16 pairs of half numbers turned by one angle, in place; kept finite. */
    void (*turn_f16)(uint16_t *a, uint16_t *b, float cosine, float sine);
    /* Half-precision, nearest even, kept finite. */
    void (*to_f16)(uint16_t *ret, const float *x, uint32_t n);
};

extern const cpu_matmul cpu_matmul_avx512[CPU_FORMATS][4];
extern const cpu_matmul cpu_matmul_avx2[CPU_FORMATS][4];
extern const cpu_matmul cpu_matmul_plain[CPU_FORMATS][4];
void cpu_isa_avx512(struct cpu_isa *ret);
void cpu_isa_avx2(struct cpu_isa *ret);
void cpu_isa_plain(struct cpu_isa *ret);

/* Bytes of one row of x in a packing. */
size_t cpu_packed_bytes(struct cpu_packing packing, uint32_t cols);

#endif
