/* product.cuh: what format.cu, product.cu and product_many.cu share: where a lane's codes lie, how
 * they become tensor-core fragments, where a partial sum ends, and how a product ends.
 *
 * That both product files give the same bits rests on this one: cuda_fragment() is the only place
 * where a weight becomes a number, segment_begin() the only one that says where a partial sum ends,
 * and tensor cores add up columns in ascending order, 16 at a time. Additions and multiplications
 * in float32 are written as instructions, so that no compiler fuses them here and not there.
 *
 * A weight is scale * code (+ minimum) rounded once to half-precision, at most 2^-12 of itself:
 * what x loses on its way to half-precision too. With the scale in the weight a product is nothing
 * but products of halves, and a column costs the tensor cores what it must; a sum per group, scaled
 * in float32, would cost as many instructions again.
 *
 * One lane's share of a unit (16 rows by 64 columns, four steps of 16 columns). Lane 4 g + q has in
 * step s rows g and g + 8, columns 16 s + 4 q + {0, 1, 2, 3}; fragment register i = 0 .. 3 holds
 * two neighbouring columns:
 *
 *   i   row     columns            i   row     columns
 *   0   g       4 q, 4 q + 1       2   g       4 q + 2, 4 q + 3
 *   1   g + 8   4 q, 4 q + 1       3   g + 8   4 q + 2, 4 q + 3
 *
 *   codes, 4 bits  one word a step: register i's codes are nibbles i and i + 4
 *   codes, 8 bits  two words a step: row g, row g + 8; byte j is column 4 q + j; code + 128
 *   F16            four words a step: the fragment itself
 *   high, 1 bit    one word a unit: of register i and step s bit s + {4, 8, 12, 0}[i] and, for the
 *                  second column, bit 16 more
 *   high, 2 bits   one word per two steps: bits 2 (s % 2) + {4, 8, 12, 0}[i] and one more, likewise
 *   scales         per block of 32 columns words of two halves (row g, row g + 8): one for each
 *                  group of columns, then the minima in the same way
 *
 * In memory a tile's unit is one piece: 32 lanes x 16 bytes of codes (twice, four times that: 32
 * columns, 16 columns after each other), 32 lanes x 4 or 8 bytes of high bits, 8 values of g x the
 * words of scales. A tile's pieces lie one behind another, so that some of them come by one copy;
 * where codes are of 8 bits or more, and a piece is large enough, those of a unit's four tiles do.
 *
 * A nibble becomes half-precision by two instructions per two values: (w & 0x000f000f) | 0x64006400
 * is 1024 + code, twice; a subtraction gives code - offset, exactly. Where the mask is 0x00f000f0
 * it is 1024 + 16 code, and a fused multiply-add by 1/16 does the same. Bits above the nibble are
 * or-ed in before that. A third instruction brings scale and minimum. */
#ifndef INFERD_KERNELS_CUDA_PRODUCT_CUH
#define INFERD_KERNELS_CUDA_PRODUCT_CUH

#include "cuda/cuda.h"
#include "cuda/device.cuh"

template <uint32_t FORMAT> struct cuda_format_is {
    static constexpr bool halves = FORMAT == CUDA_F16;
    static constexpr bool bytes = FORMAT == CUDA_W8 || FORMAT == CUDA_W8M;
    static constexpr bool minimum = FORMAT == CUDA_W4M || FORMAT == CUDA_W5M || FORMAT == CUDA_W8M;
    static constexpr bool by_16 = FORMAT == CUDA_W6 || FORMAT == CUDA_W8M; /* else groups of 32 */
    static constexpr uint32_t offset = FORMAT == CUDA_W4   ? 8
                                       : FORMAT == CUDA_W6 ? 32
                                       : bytes             ? 128
                                                           : 0;
    /* Words of a lane per unit. */
    static constexpr uint32_t code_words = halves ? 16 : bytes ? 8 : 4;
    static constexpr uint32_t high_bits = FORMAT == CUDA_W5M ? 1 : FORMAT == CUDA_W6 ? 2 : 0;
    static constexpr uint32_t high_words = high_bits;
    static constexpr uint32_t groups = halves ? 0 : by_16 ? 4 : 2;
    static constexpr uint32_t scale_words = groups * (minimum ? 2 : 1);
    /* Bytes of a tile's unit. */
    static constexpr uint32_t code_bytes = 128 * code_words;
    static constexpr uint32_t high_bytes = 128 * high_words;
    static constexpr uint32_t scale_bytes = 32 * scale_words;
    static constexpr uint32_t high_at = code_bytes, scales_at = high_at + high_bytes;
    static constexpr uint32_t piece_bytes = scales_at + scale_bytes;
    static constexpr bool by_units = code_words > 4; /* [bands][units][tiles of the band] */
    static_assert(piece_bytes % 16 == 0, "as bulk copies want it");
};

/* Runs `statement` with FORMAT a constant. */
#define CUDA_FOR_FORMAT(format, statement)                                                         \
    switch (format) {                                                                              \
    case CUDA_F16: {                                                                               \
        constexpr uint32_t FORMAT = CUDA_F16;                                                      \
        statement;                                                                                 \
    } break;                                                                                       \
    case CUDA_W4: {                                                                                \
        constexpr uint32_t FORMAT = CUDA_W4;                                                       \
        statement;                                                                                 \
    } break;                                                                                       \
    case CUDA_W4M: {                                                                               \
        constexpr uint32_t FORMAT = CUDA_W4M;                                                      \
        statement;                                                                                 \
    } break;                                                                                       \
    case CUDA_W5M: {                                                                               \
        constexpr uint32_t FORMAT = CUDA_W5M;                                                      \
        statement;                                                                                 \
    } break;                                                                                       \
    case CUDA_W6: {                                                                                \
        constexpr uint32_t FORMAT = CUDA_W6;                                                       \
        statement;                                                                                 \
    } break;                                                                                       \
    case CUDA_W8: {                                                                                \
        constexpr uint32_t FORMAT = CUDA_W8;                                                       \
        statement;                                                                                 \
    } break;                                                                                       \
    case CUDA_W8M: {                                                                               \
        constexpr uint32_t FORMAT = CUDA_W8M;                                                      \
        statement;                                                                                 \
    } break;                                                                                       \
    default:                                                                                       \
        break;                                                                                     \
    }

/* ---- where a value lies ---------------------------------------------------------------------- */

/* Of row r (0 .. 15) of a tile, column c (0 .. 63) of a unit. */
struct cuda_place {
    uint32_t lane, step;
    uint32_t below; /* 1: row g + 8 */
    uint32_t j;     /* column - 4 q of the step, 0 .. 3 */
};

static __device__ inline cuda_place cuda_place_of(uint32_t r, uint32_t c)
{
    return {4 * (r % 8) + c % 16 / 4, c / 16, r / 8, c % 4};
}
/* Bit of the word of a step: of a nibble, of the lowest high bit (in the word of its steps). */
static __device__ inline uint32_t cuda_nibble_bit(cuda_place p)
{
    return 4 * (p.below + 2 * (p.j / 2)) + 16 * (p.j % 2);
}
static __device__ inline uint32_t cuda_high_bit(cuda_place p, uint32_t bits)
{
    uint32_t i = p.below + 2 * (p.j / 2);
    return bits * (p.step % (4 / bits)) + (4 * i + 4) % 16 + 16 * (p.j % 2);
}

/* ---- fragments ------------------------------------------------------------------------------- */

/* Which piece a tile's unit is. */
template <uint32_t FORMAT>
static __host__ __device__ inline size_t cuda_piece(uint32_t tile, uint32_t unit, uint32_t units)
{
    if constexpr (cuda_format_is<FORMAT>::by_units)
        return ((size_t)(tile / CUDA_BAND) * units + unit) * CUDA_BAND + tile % CUDA_BAND;
    return (size_t)tile * units + unit;
}
/* And how many pieces further a tile's next unit is. */
template <uint32_t FORMAT>
static constexpr uint32_t cuda_next_piece = cuda_format_is<FORMAT>::by_units ? CUDA_BAND : 1;

/* What a lane holds of a tile's unit at a time: of both blocks of 32 columns, or of one. */
template <uint32_t FORMAT, uint32_t BLOCKS> struct cuda_share {
    using is = cuda_format_is<FORMAT>;
    static constexpr uint32_t code_words = is::code_words / 2 * BLOCKS;
    static constexpr uint32_t high_words =
        is::high_words / (is::high_words == 2 && BLOCKS == 1 ? 2 : 1);
    static constexpr uint32_t scale_words = is::scale_words / 2 * BLOCKS;
    uint32_t codes[code_words];
    uint32_t high[high_words ? high_words : 1];
    uint32_t scales[scale_words ? scale_words : 1];
};

/* N words from shared memory at a multiple of 4 N, at most 16, bytes. */
template <uint32_t N>
static __device__ __forceinline__ void cuda_words_load(uint32_t *ret, const uint8_t *from)
{
    static_assert(N <= 2 || N % 4 == 0, "what can be loaded at a time");
    if constexpr (N == 1) {
        ret[0] = *(const uint32_t *)from;
    } else if constexpr (N == 2) {
        uint2 w = *(const uint2 *)from;
        ret[0] = w.x;
        ret[1] = w.y;
    } else {
#pragma unroll
        for (uint32_t i = 0; i < N; i += 4) {
            uint4 w = *(const uint4 *)(from + 4 * i);
            ret[i] = w.x;
            ret[i + 1] = w.y;
            ret[i + 2] = w.z;
            ret[i + 3] = w.w;
        }
    }
}

/* The share that begins with block `block` (0 or 1) of a piece in shared memory. */
template <uint32_t FORMAT, uint32_t BLOCKS>
static __device__ __forceinline__ void cuda_share_load(cuda_share<FORMAT, BLOCKS> *ret,
                                                       const uint8_t *piece, uint32_t block,
                                                       uint32_t lane)
{
    using is = cuda_format_is<FORMAT>;
    using of = cuda_share<FORMAT, BLOCKS>;
    if constexpr (of::code_words == 2) {
        cuda_words_load<2>(ret->codes, piece + 16 * lane + 8 * block);
    } else {
#pragma unroll
        for (uint32_t v = 0; v < of::code_words; v += 4)
            cuda_words_load<4>(ret->codes + v,
                               piece + block * is::code_bytes / 2 + 128 * v + 16 * lane);
    }
    if constexpr (is::high_words != 0)
        cuda_words_load<of::high_words>(ret->high, piece + is::high_at + 4 * is::high_words * lane +
                                                       (is::high_words == 2 ? 4 * block : 0));
    if constexpr (is::high_words == 1)
        ret->high[0] >>= 2 * block;
    if constexpr (of::scale_words != 0)
        cuda_words_load<of::scale_words>(ret->scales, piece + is::scales_at +
                                                          4 * is::scale_words * (lane / 4) +
                                                          2 * is::scale_words * block);
}

/* 1024 + code in both halves of v, or 1024 + 16 code, to code - offset. */
static __device__ __forceinline__ uint32_t cuda_low_codes(uint32_t v, uint32_t offset)
{
    uint32_t bias = 0x6400 + offset; /* 1024 + offset as half-precision */
    return cuda_half2_bits(__hsub2(cuda_bits_half2(v), cuda_bits_half2(bias << 16 | bias)));
}
static __device__ __forceinline__ uint32_t cuda_high_codes(uint32_t v, uint32_t offset)
{
    uint32_t bias = 0xd400 + 16 * offset; /* -(64 + offset), offset < 64 */
    return cuda_half2_bits(__hfma2(cuda_bits_half2(v), cuda_bits_half2(0x2c002c00),
                                   cuda_bits_half2(bias << 16 | bias)));
}

/* Codes of one row times its scale, plus its minimum: the words of the group have that row's halves
 * below (row g) or above (row g + 8). */
template <uint32_t FORMAT>
static __device__ __forceinline__ uint32_t cuda_scaled(uint32_t codes, const uint32_t *scales,
                                                       bool above)
{
    using is = cuda_format_is<FORMAT>;
    __half2 scale = cuda_bits_half2(scales[0]);
    scale = above ? __high2half2(scale) : __low2half2(scale);
    if constexpr (is::minimum) {
        __half2 minimum = cuda_bits_half2(scales[is::groups / 2]);
        minimum = above ? __high2half2(minimum) : __low2half2(minimum);
        return cuda_half2_bits(__hfma2(cuda_bits_half2(codes), scale, minimum));
    } else {
        return cuda_half2_bits(__hmul2(cuda_bits_half2(codes), scale));
    }
}

/* The fragment of step `step` of the share, a constant after unrolling. */
template <uint32_t FORMAT, uint32_t BLOCKS>
static __device__ __forceinline__ void cuda_fragment(const cuda_share<FORMAT, BLOCKS> &share,
                                                     uint32_t step, uint32_t ret[4])
{
    using is = cuda_format_is<FORMAT>;
    if constexpr (is::halves) {
#pragma unroll
        for (uint32_t i = 0; i < 4; i++)
            ret[i] = share.codes[4 * step + i];
    } else {
        if constexpr (is::bytes) {
#pragma unroll
            for (uint32_t i = 0; i < 4; i++) {
                uint32_t w = share.codes[2 * step + i % 2];
                ret[i] = cuda_low_codes(__byte_perm(w, 0x64646464, i < 2 ? 0x4140 : 0x4342), 128);
            }
        } else {
            uint32_t w = share.codes[step], v = w >> 8;
            uint32_t a[4] = {
                cuda_and_or(w, 0x000f000f, 0x64006400), cuda_and_or(w, 0x00f000f0, 0x64006400),
                cuda_and_or(v, 0x000f000f, 0x64006400), cuda_and_or(v, 0x00f000f0, 0x64006400)};
            if constexpr (is::high_bits != 0) {
                constexpr uint32_t bits = is::high_bits, mask = bits == 1 ? 0x00100010 : 0x00300030;
                uint32_t h = share.high[step * bits / 4], at = bits * (step % (4 / bits));
                a[0] = cuda_and_or(h >> at, mask, a[0]);
                a[1] = cuda_and_or(h >> at, mask << 4, a[1]);
                a[2] = cuda_and_or(h >> (8 + at), mask, a[2]);
                a[3] = cuda_and_or(h << (8 - at), mask << 4, a[3]);
            }
            ret[0] = cuda_low_codes(a[0], is::offset);
            ret[1] = cuda_high_codes(a[1], is::offset);
            ret[2] = cuda_low_codes(a[2], is::offset);
            ret[3] = cuda_high_codes(a[3], is::offset);
        }
        const uint32_t *scales =
            share.scales + step / 2 * is::scale_words / 2 + (is::by_16 ? step % 2 : 0);
#pragma unroll
        for (uint32_t i = 0; i < 4; i++)
            ret[i] = cuda_scaled<FORMAT>(ret[i], scales, i % 2);
    }
}

/* ---- sums ------------------------------------------------------------------------------------ */

/* Segment s of the columns has units segment_end(s - 1) .. segment_end(s) - 1 (the first from 0).
 * Its partial sum is added to that of its quarter, which has CUDA_SEGMENTS / 4 of them, and the
 * four quarters are added, each time from zero in ascending order. */
static __device__ __forceinline__ uint32_t segment_begin(uint32_t segment, uint32_t units)
{
    return segment * units / CUDA_SEGMENTS;
}
#define CUDA_QUARTER (CUDA_SEGMENTS / 4)
/* Units of the longest of them. */
static __device__ __forceinline__ uint32_t longest_segment(uint32_t units)
{
    return (units + CUDA_SEGMENTS - 1) / CUDA_SEGMENTS;
}

/* ---- jobs ------------------------------------------------------------------------------------ */

/* A cuda_product as kernels want it. Of few rows a pair of tiles is what a warp works on at a time:
 * tiles 2 i and 2 i + 1 of W, or of CUDA_GATED tile i of W and of V; of more rows likewise a pair
 * of bands is a block's. */
struct cuda_job {
    const uint8_t *w[2]; /* pieces: where a pair's first and second come from */
    uint32_t rows, bands, units, pairs;
    uint32_t first_block; /* of all blocks of W */
    float scale;
    const float *bias;
    float *to;
    size_t stride;
};
/* Up to 3 of one format, one x and one finish. */
struct cuda_work {
    struct cuda_job jobs[3];
    uint32_t n_jobs, n_blocks; /* n_blocks: blocks of W of all jobs; of what size, each file says */
    uint32_t n_rows, finish, activation;
    struct cuda_packed x, gated;
    void *sums;
};

/* product_many.cu: launches it, in blocks of W of its own size. */
cudaError_t cuda_multiply_many(struct cuda_work *work, uint32_t format, enum cuda_way way,
                               cudaStream_t stream);

/* Which job a block works for. */
static __device__ __forceinline__ uint32_t cuda_job_of(const cuda_work &work, uint32_t block)
{
    uint32_t job = 0;
    while (job + 1 < work.n_jobs && block >= work.jobs[job + 1].first_block)
        job++;
    return job;
}
/* ---- finishes -------------------------------------------------------------------------------- */

/* What CUDA_STORE writes and CUDA_ADD adds. */
static __device__ __forceinline__ float cuda_result(bool add, float scale, float total, float bias)
{
    return add ? __fadd_rn(total, bias) : __fmaf_rn(scale, total, bias);
}
/* What is there then. */
static __device__ __forceinline__ float cuda_finished(bool add, float scale, float total,
                                                      float bias, float before)
{
    const float result = cuda_result(add, scale, total, bias);
    return add ? __fadd_rn(before, result) : result;
}

/* act(gate) * up. silu(x) = x / (1 + e^-x); gelu, by tanh, is x / (1 + e^(-2 sqrt(2 / pi) (x +
 * 0.044715 x^3))). */
static __device__ __forceinline__ float cuda_gate(uint32_t activation, float gate, float up)
{
    const float log2e = 1.4426950408889634f;
    float z = gate;
    if (activation == INFER_ACT_GELU_TANH)
        z = 1.5957691216057308f * gate * __fmaf_rn(0.044715f, gate * gate, 1.0f);
    return gate * cuda_reciprocal(1.0f + cuda_exp2(-log2e * z)) * up;
}

#endif
