/* format.cu: how weights lie in device memory, the way there from a file's rows, and back.
 *
 * Pieces of tiles and units, which product.cuh draws. Bits per value:
 *
 *             codes  high  scales     of the file's types
 *   CUDA_F16     16                   F16; BF16 and F32 rounded to half, beyond +-65504 cut to that
 *   CUDA_W4       4        0.5        Q4_0; TQ1_0, TQ2_0 (their scale eight times)
 *   CUDA_W4M      4        1          Q4_1, Q4_K
 *   CUDA_W5M      4     1  1          Q5_0 (minimum -16 d), Q5_1, Q5_K
 *   CUDA_W6       4     2  1          Q6_K, Q3_K
 *   CUDA_W8       8        0.5        Q8_0; IQ4_NL, IQ4_XS, IQ3_S, MXFP4 (points of their
 * codebooks) CUDA_W8M      8        2          Q2_K
 *
 * Exact but for: scales and minima that are products of the file's (K types, IQ4_XS, IQ3_S) are
 * rounded to half-precision, at most 2^-11 of themselves (or 2^-25), and MXFP4's powers of two
 * outside 2^-24 .. 2^15 are cut to zero or 65504.
 *
 * Writing is made for loading at the speed of the bus: one thread per row and four columns, which
 * decodes byte by byte, 4 to 8 bytes of traffic a word. A word of nibbles holds two rows, whose
 * threads (or whose writes) meet there by atomic or: that is why the memory is zero before. Reading
 * is for the rows of an embedding table: a thread per value. */
#include "cuda/product.cuh"

#define _Static_assert static_assert /* C's word in blocks.h, C++'s here */
#include "ref/blocks.h"

#include <string.h>

/* ---- sizes ----------------------------------------------------------------------------------- */

extern "C" uint32_t cuda_format_of(uint32_t type)
{
    switch (type) {
    case INFER_TYPE_F32:
    case INFER_TYPE_F16:
    case INFER_TYPE_BF16:
        return CUDA_F16;
    case INFER_TYPE_Q4_0:
    case INFER_TYPE_TQ1_0:
    case INFER_TYPE_TQ2_0:
        return CUDA_W4;
    case INFER_TYPE_Q4_1:
    case INFER_TYPE_Q4_K:
        return CUDA_W4M;
    case INFER_TYPE_Q5_0:
    case INFER_TYPE_Q5_1:
    case INFER_TYPE_Q5_K:
        return CUDA_W5M;
    case INFER_TYPE_Q3_K:
    case INFER_TYPE_Q6_K:
        return CUDA_W6;
    case INFER_TYPE_Q8_0:
    case INFER_TYPE_IQ4_NL:
    case INFER_TYPE_IQ4_XS:
    case INFER_TYPE_IQ3_S:
    case INFER_TYPE_MXFP4:
        return CUDA_W8;
    case INFER_TYPE_Q2_K:
        return CUDA_W8M;
    default:
        return CUDA_FORMATS;
    }
}

static size_t piece_bytes(uint32_t format)
{
    CUDA_FOR_FORMAT(format, return cuda_format_is<FORMAT>::piece_bytes)
    return 0;
}

extern "C" size_t cuda_matrix_bytes(uint32_t type, uint32_t rows, uint32_t cols)
{
    const size_t band_rows = CUDA_TILE_ROWS * CUDA_BAND;
    size_t tiles = ((size_t)rows + band_rows - 1) / band_rows * CUDA_BAND;
    size_t units = ((size_t)cols + CUDA_UNIT - 1) / CUDA_UNIT;
    size_t pieces = tiles * units; /* each under 2^29 */
    size_t all;
    if (__builtin_mul_overflow(pieces, piece_bytes(cuda_format_of(type)), &all) ||
        all > SIZE_MAX - 255)
        return 0;
    return (all + 255) / 256 * 256;
}

extern "C" void cuda_matrix_init(struct cuda_matrix *ret, uint32_t type, uint32_t rows,
                                 uint32_t cols, void *memory)
{
    memset(ret, 0, sizeof *ret);
    ret->format = cuda_format_of(type);
    ret->type = type;
    ret->rows = rows;
    ret->cols = cols;
    ret->bands = rows / (CUDA_TILE_ROWS * CUDA_BAND) + (rows % (CUDA_TILE_ROWS * CUDA_BAND) != 0);
    ret->units = cols / CUDA_UNIT + (cols % CUDA_UNIT != 0);
    ret->pieces = (uint8_t *)memory;
}

/* ---- the file's blocks ----------------------------------------------------------------------- */

/* As in ref/quant_tables.c, which a device cannot see. */
static __device__ const int8_t iq4_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                                 1,    13,   25,  38,  53,  69,  89,  113};
static __device__ const int8_t mxfp4_values[16] = {0, 1,  2,  3,  4,  6,  8,  12,
                                                   0, -1, -2, -3, -4, -6, -8, -12};
static __device__ const uint32_t iq3s_grid[512] = {
#include "ref/iq3s_grid.h"
};

static __device__ inline float half_bits(uint16_t bits)
{
    return __half2float(__ushort_as_half(bits));
}
static __device__ inline uint16_t to_half_bits(float v)
{
    return (uint16_t)(cuda_half2_cut(v, 0.0f) & 0xffff);
}

/* Nibble i of 32 (values i and i + 16 share a byte). */
static __device__ inline int nibble_of(const uint8_t *qs, uint32_t i)
{
    return qs[i % 16] >> i / 16 * 4 & 15;
}

/* What `from` holds at a column: a code as its format means it (offset taken away). */
static __device__ int q3_code(const ref_q3_k *b, uint32_t i)
{
    uint32_t l = i % 32, shift = i % 128 / 32 * 2;
    int low = b->qs[i / 128 * 32 + l] >> shift & 3;
    return (low | (b->hmask[l] >> i / 32 & 1) << 2) - 4;
}
static __device__ int q6_code(const ref_q6_k *b, uint32_t i)
{
    uint32_t half = i / 128, r = i % 128 / 32, l = i % 32;
    int low = b->ql[64 * half + 32 * (r % 2) + l] >> r / 2 * 4 & 15;
    return (low | (b->qh[32 * half + l] >> 2 * r & 3) << 4) - 32;
}
static __device__ int iq3_code(const ref_iq3_s *b, uint32_t i)
{
    uint32_t k = i / 4;
    uint32_t point = iq3s_grid[b->qs[k] | (b->qh[k / 8] >> k % 8 & 1) << 8];
    int value = (int)(point >> i % 4 * 8 & 255);
    return b->signs[i / 8] >> i % 8 & 1 ? -value : value;
}
static __device__ int tq1_code(const ref_tq1_0 *b, uint32_t i)
{
    uint32_t n, packed, power = 1;
    if (i < 160) {
        n = i / 32;
        packed = b->qs[i % 32];
    } else if (i < 240) {
        n = (i - 160) / 16;
        packed = b->qs[32 + i % 16];
    } else {
        n = (i - 240) / 4;
        packed = b->qh[i % 4];
    }
    for (uint32_t k = 0; k < n; k++)
        power *= 3;
    return (int)((packed * power & 255) * 3 >> 8) - 1;
}

template <uint32_t TYPE> static __device__ inline int code_of(const uint8_t *row, uint32_t c)
{
    if constexpr (TYPE == INFER_TYPE_Q4_0) {
        return nibble_of(((const ref_q4_0 *)row)[c / 32].qs, c % 32) - 8;
    } else if constexpr (TYPE == INFER_TYPE_Q4_1) {
        return nibble_of(((const ref_q4_1 *)row)[c / 32].qs, c % 32);
    } else if constexpr (TYPE == INFER_TYPE_Q5_0 || TYPE == INFER_TYPE_Q5_1) {
        constexpr uint32_t bytes = TYPE == INFER_TYPE_Q5_0 ? 22 : 24;
        const uint8_t *qh = row + c / 32 * bytes + (bytes - 20);
        return nibble_of(qh + 4, c % 32) | (qh[c % 32 / 8] >> c % 8 & 1) << 4;
    } else if constexpr (TYPE == INFER_TYPE_Q8_0) {
        return ((const ref_q8_0 *)row)[c / 32].qs[c % 32];
    } else if constexpr (TYPE == INFER_TYPE_IQ4_NL) {
        return iq4_values[nibble_of(((const ref_iq4_nl *)row)[c / 32].qs, c % 32)];
    } else if constexpr (TYPE == INFER_TYPE_MXFP4) {
        return mxfp4_values[nibble_of(((const ref_mxfp4 *)row)[c / 32].qs, c % 32)];
    } else if constexpr (TYPE == INFER_TYPE_Q2_K) {
        const ref_q2_k *b = (const ref_q2_k *)row + c / 256;
        return b->qs[c % 256 / 128 * 32 + c % 32] >> c % 128 / 32 * 2 & 3;
    } else if constexpr (TYPE == INFER_TYPE_Q3_K) {
        return q3_code((const ref_q3_k *)row + c / 256, c % 256);
    } else if constexpr (TYPE == INFER_TYPE_Q4_K) {
        const ref_q4_k *b = (const ref_q4_k *)row + c / 256;
        return b->qs[c % 256 / 64 * 32 + c % 32] >> c % 64 / 32 * 4 & 15;
    } else if constexpr (TYPE == INFER_TYPE_Q5_K) {
        const ref_q5_k *b = (const ref_q5_k *)row + c / 256;
        int low = b->qs[c % 256 / 64 * 32 + c % 32] >> c % 64 / 32 * 4 & 15;
        return low | (b->qh[c % 32] >> c % 256 / 32 & 1) << 4;
    } else if constexpr (TYPE == INFER_TYPE_Q6_K) {
        return q6_code((const ref_q6_k *)row + c / 256, c % 256);
    } else if constexpr (TYPE == INFER_TYPE_IQ4_XS) {
        const ref_iq4_xs *b = (const ref_iq4_xs *)row + c / 256;
        return iq4_values[nibble_of(b->qs + c % 256 / 32 * 16, c % 32)];
    } else if constexpr (TYPE == INFER_TYPE_IQ3_S) {
        return iq3_code((const ref_iq3_s *)row + c / 256, c % 256);
    } else if constexpr (TYPE == INFER_TYPE_TQ1_0) {
        return tq1_code((const ref_tq1_0 *)row + c / 256, c % 256);
    } else {
        static_assert(TYPE == INFER_TYPE_TQ2_0, "every type has its codes");
        const ref_tq2_0 *b = (const ref_tq2_0 *)row + c / 256;
        return (b->qs[c % 256 / 128 * 32 + c % 32] >> c % 128 / 32 * 2 & 3) - 1;
    }
}

/* Scale and minimum (0 where there is none) of the group at column c. */
struct scale_minimum {
    float scale, minimum;
};

static __device__ inline scale_minimum k4_scale(const uint8_t scales[12], uint32_t j, float d,
                                                float dmin)
{
    uint32_t s, m;
    if (j < 4) {
        s = scales[j] & 63;
        m = scales[j + 4] & 63;
    } else {
        s = (scales[j + 4] & 15) | scales[j - 4] >> 6 << 4;
        m = scales[j + 4] >> 4 | scales[j] >> 6 << 4;
    }
    return {d * (float)s, -(dmin * (float)m)};
}
static __device__ inline float q3_scale(const ref_q3_k *b, uint32_t g)
{
    int low = g < 8 ? b->scales[g] & 15 : b->scales[g - 8] >> 4;
    int high = b->scales[8 + g % 4] >> 2 * (g / 4) & 3;
    return half_bits(b->d) * (float)((low | high << 4) - 32);
}
/* 2^(e - 128), from powers that half-precision has: beyond them zero or infinity. */
static __device__ inline float mxfp4_scale(uint8_t e)
{
    return e >= 2 ? __uint_as_float((uint32_t)(e - 1) << 23) : 0.0f;
}

template <uint32_t TYPE>
static __device__ inline scale_minimum scale_of(const uint8_t *row, uint32_t c)
{
    if constexpr (TYPE == INFER_TYPE_Q4_0) {
        return {half_bits(((const ref_q4_0 *)row)[c / 32].d), 0};
    } else if constexpr (TYPE == INFER_TYPE_Q4_1) {
        const ref_q4_1 *b = (const ref_q4_1 *)row + c / 32;
        return {half_bits(b->d), half_bits(b->m)};
    } else if constexpr (TYPE == INFER_TYPE_Q5_0) {
        float d = half_bits(((const ref_q5_0 *)row)[c / 32].d);
        return {d, -16 * d};
    } else if constexpr (TYPE == INFER_TYPE_Q5_1) {
        const ref_q5_1 *b = (const ref_q5_1 *)row + c / 32;
        return {half_bits(b->d), half_bits(b->m)};
    } else if constexpr (TYPE == INFER_TYPE_Q8_0) {
        return {half_bits(((const ref_q8_0 *)row)[c / 32].d), 0};
    } else if constexpr (TYPE == INFER_TYPE_IQ4_NL) {
        return {half_bits(((const ref_iq4_nl *)row)[c / 32].d), 0};
    } else if constexpr (TYPE == INFER_TYPE_MXFP4) {
        return {mxfp4_scale(((const ref_mxfp4 *)row)[c / 32].e), 0};
    } else if constexpr (TYPE == INFER_TYPE_Q2_K) {
        const ref_q2_k *b = (const ref_q2_k *)row + c / 256;
        uint32_t s = b->scales[c % 256 / 16];
        return {half_bits(b->d) * (float)(s & 15), -(half_bits(b->dmin) * (float)(s >> 4))};
    } else if constexpr (TYPE == INFER_TYPE_Q3_K) {
        return {q3_scale((const ref_q3_k *)row + c / 256, c % 256 / 16), 0};
    } else if constexpr (TYPE == INFER_TYPE_Q4_K) {
        const ref_q4_k *b = (const ref_q4_k *)row + c / 256;
        return k4_scale(b->scales, c % 256 / 32, half_bits(b->d), half_bits(b->dmin));
    } else if constexpr (TYPE == INFER_TYPE_Q5_K) {
        const ref_q5_k *b = (const ref_q5_k *)row + c / 256;
        return k4_scale(b->scales, c % 256 / 32, half_bits(b->d), half_bits(b->dmin));
    } else if constexpr (TYPE == INFER_TYPE_Q6_K) {
        const ref_q6_k *b = (const ref_q6_k *)row + c / 256;
        return {half_bits(b->d) * (float)b->scales[c % 256 / 16], 0};
    } else if constexpr (TYPE == INFER_TYPE_IQ4_XS) {
        const ref_iq4_xs *b = (const ref_iq4_xs *)row + c / 256;
        uint32_t g = c % 256 / 32;
        int low = b->scales_l[g / 2] >> 4 * (g % 2) & 15, high = b->scales_h >> 2 * g & 3;
        return {half_bits(b->d) * (float)((low | high << 4) - 32), 0};
    } else if constexpr (TYPE == INFER_TYPE_IQ3_S) {
        const ref_iq3_s *b = (const ref_iq3_s *)row + c / 256;
        uint32_t g = c % 256 / 32, s = b->scales[g / 2] >> 4 * (g % 2) & 15;
        return {half_bits(b->d) * (float)(1 + 2 * s), 0};
    } else if constexpr (TYPE == INFER_TYPE_TQ1_0) {
        return {half_bits(((const ref_tq1_0 *)row)[c / 256].d), 0};
    } else {
        static_assert(TYPE == INFER_TYPE_TQ2_0, "every type has its scales");
        return {half_bits(((const ref_tq2_0 *)row)[c / 256].d), 0};
    }
}

/* Column c of a row of F32, F16, BF16, as half-precision bits; at any alignment. */
template <uint32_t TYPE> static __device__ inline uint32_t half_of(const uint8_t *row, uint32_t c)
{
    if constexpr (TYPE == INFER_TYPE_F16) {
        return row[2 * (size_t)c] | (uint32_t)row[2 * (size_t)c + 1] << 8;
    } else if constexpr (TYPE == INFER_TYPE_BF16) {
        uint32_t bits = row[2 * (size_t)c] | (uint32_t)row[2 * (size_t)c + 1] << 8;
        return to_half_bits(__uint_as_float(bits << 16));
    } else {
        const uint8_t *p = row + 4 * (size_t)c;
        uint32_t bits = p[0] | p[1] << 8 | p[2] << 16 | (uint32_t)p[3] << 24;
        return to_half_bits(__uint_as_float(bits));
    }
}

/* ---- writing --------------------------------------------------------------------------------- */

/* The piece of a tile's unit that has row `row`, column `col`. */
template <uint32_t FORMAT>
static __device__ inline uint8_t *piece_of(const cuda_matrix &m, uint32_t row, uint32_t col)
{
    size_t at = cuda_piece<FORMAT>(row / CUDA_TILE_ROWS, col / CUDA_UNIT, m.units);
    return m.pieces + at * cuda_format_is<FORMAT>::piece_bytes;
}

/* Where the scale of row r and column c (0 .. 63) lies among the halves of a tile's unit; its
 * minimum `groups` halves after it. */
template <uint32_t FORMAT> static __device__ inline uint32_t scale_at(uint32_t r, uint32_t c)
{
    using is = cuda_format_is<FORMAT>;
    uint32_t group = is::by_16 ? c % 32 / 16 : 0;
    return r % 8 * 2 * is::scale_words + c / 32 * is::scale_words + 2 * group + r / 8;
}

/* The scales of the group at column c, 0 .. 63 of the unit. */
template <uint32_t FORMAT>
static __device__ inline void write_scales(uint8_t *piece, uint32_t r, uint32_t c, scale_minimum of)
{
    using is = cuda_format_is<FORMAT>;
    uint16_t *scale = (uint16_t *)(piece + is::scales_at) + scale_at<FORMAT>(r, c);
    scale[0] = to_half_bits(of.scale);
    if constexpr (is::minimum)
        scale[is::groups] = to_half_bits(of.minimum);
}

/* Columns c .. c + 3 of unit u; c a multiple of 4. */
template <uint32_t FORMAT>
static __device__ inline void write_codes(uint8_t *piece, uint32_t r, uint32_t c, const int code[4])
{
    using is = cuda_format_is<FORMAT>;
    cuda_place p = cuda_place_of(r, c);
    uint32_t *codes = (uint32_t *)piece;
    uint32_t low = 0, high = 0;

    for (uint32_t j = 0; j < 4; j++) {
        uint32_t v = (uint32_t)(code[j] + (int)is::offset);
        p.j = j;
        if constexpr (is::bytes) {
            low |= v << 8 * j;
        } else {
            low |= (v & 15) << cuda_nibble_bit(p);
            if constexpr (is::high_bits != 0)
                high |= v >> 4 << cuda_high_bit(p, is::high_bits);
        }
    }
    if constexpr (is::bytes) {
        codes[p.step / 2 * 128 + p.lane * 4 + p.step % 2 * 2 + p.below] = low;
    } else {
        atomicOr(codes + p.lane * 4 + p.step, low);
        if constexpr (is::high_bits != 0)
            atomicOr((uint32_t *)(piece + is::high_at) + p.lane * is::high_words +
                         p.step * is::high_bits / 4,
                     high);
    }
}

/* A thread per row and four columns: x over the quads of columns, y over rows. */
template <uint32_t TYPE, uint32_t FORMAT>
static __global__ void write_rows(cuda_matrix m, uint32_t first_row, uint32_t n_rows,
                                  const uint8_t *from, size_t row_bytes)
{
    cuda_wait();
    uint32_t c = (blockIdx.x * blockDim.x + threadIdx.x) * 4;
    if (c >= m.cols)
        return;
    for (uint32_t i = blockIdx.y; i < n_rows; i += gridDim.y) {
        const uint8_t *row = from + i * row_bytes;
        uint32_t r = (first_row + i) % 16;
        uint8_t *piece = piece_of<FORMAT>(m, first_row + i, c);
        if constexpr (FORMAT == CUDA_F16) {
            cuda_place p = cuda_place_of(r, c % 64);
            uint32_t *codes = (uint32_t *)piece;
            uint32_t v[4] = {};
            for (uint32_t j = 0; j < 4 && c + j < m.cols; j++)
                v[j] = half_of<TYPE>(row, c + j);
            codes += p.step * 128 + p.lane * 4 + p.below;
            codes[0] = v[0] | v[1] << 16;
            codes[2] = v[2] | v[3] << 16;
        } else {
            int code[4];
            for (uint32_t j = 0; j < 4; j++)
                code[j] = code_of<TYPE>(row, c + j);
            write_codes<FORMAT>(piece, r, c % 64, code);
            if (c % (cuda_format_is<FORMAT>::by_16 ? 16 : 32) == 0)
                write_scales<FORMAT>(piece, r, c % 64, scale_of<TYPE>(row, c));
        }
    }
}

#define WRITE_AS(TYPE, FORMAT)                                                                     \
    case INFER_TYPE_##TYPE:                                                                        \
        return cuda_launch(write_rows<INFER_TYPE_##TYPE, FORMAT>, grid, dim3(128), 0, stream, *m,  \
                           first_row, n_rows, bytes, row_bytes)

extern "C" cudaError_t cuda_matrix_write(const struct cuda_matrix *m, uint32_t first_row,
                                         uint32_t n_rows, const void *from, size_t row_bytes,
                                         cudaStream_t stream)
{
    const uint8_t *bytes = (const uint8_t *)from;
    dim3 grid((m->cols + 511) / 512, n_rows < 32768 ? n_rows : 32768);
    if (n_rows == 0 || m->cols == 0)
        return cudaSuccess;

    switch (m->type) {
        WRITE_AS(F32, CUDA_F16);
        WRITE_AS(F16, CUDA_F16);
        WRITE_AS(BF16, CUDA_F16);
        WRITE_AS(Q4_0, CUDA_W4);
        WRITE_AS(TQ1_0, CUDA_W4);
        WRITE_AS(TQ2_0, CUDA_W4);
        WRITE_AS(Q4_1, CUDA_W4M);
        WRITE_AS(Q4_K, CUDA_W4M);
        WRITE_AS(Q5_0, CUDA_W5M);
        WRITE_AS(Q5_1, CUDA_W5M);
        WRITE_AS(Q5_K, CUDA_W5M);
        WRITE_AS(Q3_K, CUDA_W6);
        WRITE_AS(Q6_K, CUDA_W6);
        WRITE_AS(Q8_0, CUDA_W8);
        WRITE_AS(IQ4_NL, CUDA_W8);
        WRITE_AS(IQ4_XS, CUDA_W8);
        WRITE_AS(IQ3_S, CUDA_W8);
        WRITE_AS(MXFP4, CUDA_W8);
        WRITE_AS(Q2_K, CUDA_W8M);
    default:
        return cudaErrorInvalidValue;
    }
}

/* ---- reading --------------------------------------------------------------------------------- */

template <uint32_t FORMAT>
static __device__ inline float read_value(const cuda_matrix &m, uint32_t row, uint32_t col)
{
    using is = cuda_format_is<FORMAT>;
    uint32_t r = row % 16, c = col % 64;
    cuda_place p = cuda_place_of(r, c);
    const uint8_t *codes = piece_of<FORMAT>(m, row, col);

    if constexpr (is::halves) {
        uint32_t i = p.step * 256 + p.lane * 8 + p.below * 2 + p.j / 2 * 4 + p.j % 2;
        return half_bits(((const uint16_t *)codes)[i]);
    } else {
        int code;
        if constexpr (is::bytes) {
            code = codes[p.step / 2 * 512 + p.lane * 16 + p.step % 2 * 8 + p.below * 4 + p.j];
        } else {
            uint32_t w = ((const uint32_t *)codes)[p.lane * 4 + p.step];
            code = (int)(w >> cuda_nibble_bit(p) & 15);
            if constexpr (is::high_bits != 0) {
                const uint32_t *high = (const uint32_t *)(codes + is::high_at);
                w = high[p.lane * is::high_words + p.step * is::high_bits / 4];
                code |= (int)(w >> cuda_high_bit(p, is::high_bits) & ((1u << is::high_bits) - 1))
                        << 4;
            }
        }
        const uint16_t *scale = (const uint16_t *)(codes + is::scales_at) + scale_at<FORMAT>(r, c);
        float minimum = is::minimum ? half_bits(scale[is::groups]) : 0.0f;
        return __fmaf_rn(half_bits(scale[0]), (float)(code - (int)is::offset), minimum);
    }
}

template <uint32_t FORMAT>
static __global__ void read_rows(cuda_matrix m, const int32_t *ids, float scale,
                                 const cuda_drawn *drawn, float *to, size_t stride)
{
    cuda_wait();
    uint32_t col = blockIdx.x * blockDim.x + threadIdx.x;
    if (col >= m.cols)
        return;
    int32_t id = ids[blockIdx.y];
    uint32_t row = (uint32_t)(id < 0 ? drawn[-1 - id].token : id);
    if (row >= m.rows) /* of logits that are no numbers nothing need have been drawn */
        row = 0;
    to[blockIdx.y * stride + col] = __fmul_rn(scale, read_value<FORMAT>(m, row, col));
}

extern "C" cudaError_t cuda_matrix_read(const struct cuda_matrix *m, const int32_t *ids, uint32_t n,
                                        float scale, const struct cuda_drawn *drawn, float *to,
                                        size_t stride, cudaStream_t stream)
{
    if (n == 0 || m->cols == 0)
        return cudaSuccess;
    dim3 grid((m->cols + 127) / 128, n);
    CUDA_FOR_FORMAT(m->format, return cuda_launch(read_rows<FORMAT>, grid, dim3(128), 0, stream, *m,
                                                  ids, scale, drawn, to, stride))
    return cudaErrorInvalidValue;
}
