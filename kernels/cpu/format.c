/* format.c: how weights lie in memory, and the way there from a file's rows and back.
 *
 * Sixteen rows are interleaved, because sixteen 32-bit lanes are one 512-bit vector: lane r of a
 * vector belongs to row 16 g + r, and holds the codes of four neighbouring columns, which is what
 * one lane of the byte dot product takes. A vector of codes is therefore 64 bytes, and one block
 * of 32 columns is eight "quads" of columns, j = 0 .. 7. Per block and group of rows:
 *
 *   codes, 4 bits   4 vectors: vector j has quad j in the low nibbles, quad j + 4 in the high
 *   codes, 8 bits   8 vectors: vector j has quad j
 *   high, 1 bit     1 vector: bit j of a byte belongs to quad j
 *   high, 2 bits    2 vectors: bits 2i, 2i + 1 of a byte of vector h belong to quad 4 h + i
 *   scales          16 half or bfloat16 numbers; or 16 bytes; twice that with minima or for the
 *                   two halves of Q6_K's block
 *   supers          per 256 columns 16 half scales; twice that with (negated) minima
 *
 * Eight blocks make a strip of 256 columns: their codes, their high bits, their scales, the supers,
 * padded to a cache line. A group is its strips in order, so that a product reads one stream.
 *
 * F16 and F32 hold 16 numbers per column, BF16 the pair of columns 2p, 2p + 1 in each lane.
 *
 * All of it together is as large as the file but for 1% (Q6_K), 3% (Q4_K, IQ4_XS), 2% (Q5_K) and
 * 6% (MXFP4), where the columns are a multiple of 256.
 * Types without a layout of their own are written in one that holds their values exactly:
 *   Q3_K -> Q6_K (6.6 bits a value); TQ1_0, TQ2_0 -> Q4_0 (4.5); IQ3_S -> CPU_C4_K (4.3);
 * except Q2_K, which is rounded to Q8_0 (8.5): at most 1/254 of a block's largest value.
 *
 * Pure functions on the caller's memory. */
#include "cpu/cpu.h"

#include "ref/blocks.h"
#include "ref/quant.h"

#include <assert.h>
#include <math.h>
#include <string.h>

int cpu_format_of(uint32_t type)
{
    switch (type) {
    case INFER_TYPE_F32:
        return CPU_F32;
    case INFER_TYPE_F16:
        return CPU_F16;
    case INFER_TYPE_BF16:
        return CPU_BF16;
    case INFER_TYPE_Q4_0:
    case INFER_TYPE_TQ1_0:
    case INFER_TYPE_TQ2_0:
        return CPU_Q4_0;
    case INFER_TYPE_Q4_1:
        return CPU_Q4_1;
    case INFER_TYPE_Q5_0:
        return CPU_Q5_0;
    case INFER_TYPE_Q5_1:
        return CPU_Q5_1;
    case INFER_TYPE_Q8_0:
    case INFER_TYPE_Q2_K:
        return CPU_Q8_0;
    case INFER_TYPE_Q4_K:
        return CPU_Q4_K;
    case INFER_TYPE_Q5_K:
        return CPU_Q5_K;
    case INFER_TYPE_Q6_K:
    case INFER_TYPE_Q3_K:
        return CPU_Q6_K;
    case INFER_TYPE_IQ4_NL:
        return CPU_C4_0;
    case INFER_TYPE_MXFP4:
        return CPU_C4_B;
    case INFER_TYPE_IQ4_XS:
    case INFER_TYPE_IQ3_S:
        return CPU_C4_K;
    default:
        return -1;
    }
}

static bool is_float(uint32_t format)
{
    return format >= CPU_F16;
}

struct cpu_packing cpu_format_packing(uint32_t format)
{
    return (struct cpu_packing){.is_float = is_float(format),
                                .offset = cpu_layout_of(format).offset};
}

size_t cpu_packed_bytes(struct cpu_packing packing, uint32_t cols)
{
    if (packing.is_float)
        return ((size_t)cols + 1) / 2 * 2 * sizeof(float);
    return (size_t)cols / CPU_BLOCK * CPU_RECORD;
}

static void codebook_of(uint32_t type, uint8_t ret[16])
{
    for (int i = 0; i < 16; i++) {
        int value = 0;
        if (type == INFER_TYPE_MXFP4)
            value = ref_mxfp4_values[i];
        else if (type == INFER_TYPE_IQ3_S)
            value = 2 * i - 15; /* its points are odd, of either sign */
        else
            value = ref_iq4_values[i];
        ret[i] = (uint8_t)(value + 128);
    }
}

void cpu_matrix_init(struct cpu_matrix *matrix, uint32_t type, uint32_t rows, uint32_t cols)
{
    uint32_t format = (uint32_t)cpu_format_of(type);
    struct cpu_layout l = cpu_layout_of(format);
    uint32_t n_blocks = is_float(format) ? (cols + 1) / 2 : cols / CPU_BLOCK;

    *matrix = (struct cpu_matrix){
        .format = format,
        .rows = rows,
        .cols = cols,
        .n_groups = rows / CPU_GROUP + (rows % CPU_GROUP != 0),
        .n_blocks = n_blocks,
    };
    if (is_float(format))
        matrix->group_bytes = (size_t)n_blocks * l.codes;
    else
        matrix->group_bytes = ((size_t)n_blocks + 7) / 8 * cpu_strip_bytes(l);
    codebook_of(type, matrix->codebook);
}

size_t cpu_matrix_bytes(const struct cpu_matrix *matrix)
{
    return matrix->group_bytes * matrix->n_groups;
}

/* ---- one block of one row -------------------------------------------------------------------- */

/* Where one row's block lies. */
struct place {
    uint8_t *codes, *high, *scales, *super; /* of the group; the row's lane is added on use */
    uint32_t lane;
};

static struct place place_of(const struct cpu_matrix *m, uint32_t row, uint32_t block)
{
    struct cpu_layout l = cpu_layout_of(m->format);
    uint8_t *strip = m->data + (size_t)(row / CPU_GROUP) * m->group_bytes +
                     (size_t)(block / 8) * cpu_strip_bytes(l);
    block %= 8;
    return (struct place){
        .codes = strip + block * l.codes,
        .high = strip + 8 * l.codes + block * l.high,
        .scales = strip + 8 * (l.codes + l.high) + block * l.scales,
        .super = strip + 8 * (l.codes + l.high + l.scales),
        .lane = row % CPU_GROUP,
    };
}

static void put16(uint8_t *base, uint32_t lane, uint16_t value)
{
    memcpy(base + 2 * (size_t)lane, &value, sizeof value);
}

static uint16_t get16(const uint8_t *base, uint32_t lane)
{
    uint16_t value;
    memcpy(&value, base + 2 * (size_t)lane, sizeof value);
    return value;
}

static uint32_t get32(const void *at)
{
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static void put32(uint8_t *base, uint32_t lane, uint32_t value)
{
    memcpy(base + 4 * (size_t)lane, &value, sizeof value);
}

/* 32 codes of up to 4 + high bits; four at a time, a quad to a word. */
static void put_codes(const struct place *p, const uint8_t code[32], uint32_t high_bits)
{
    const uint32_t low = 0x0f0f0f0f;
    for (uint32_t j = 0; j < 4; j++)
        put32(p->codes + 64 * j, p->lane,
              (get32(code + 4 * j) & low) | (get32(code + 4 * j + 16) & low) << 4);
    if (high_bits == 1) {
        uint32_t bits = 0;
        for (uint32_t j = 0; j < 8; j++)
            bits |= (get32(code + 4 * j) >> 4 & 0x01010101) << j;
        put32(p->high, p->lane, bits);
    } else if (high_bits == 2) {
        for (uint32_t h = 0; h < 2; h++) {
            uint32_t bits = 0;
            for (uint32_t i = 0; i < 4; i++)
                bits |= (get32(code + 16 * h + 4 * i) >> 4 & 0x03030303) << 2 * i;
            put32(p->high + 64 * h, p->lane, bits);
        }
    }
}

static void get_codes(const struct place *p, uint32_t high_bits, uint8_t ret[32])
{
    for (int i = 0; i < 32; i++) {
        int j = i / 4, c = i % 4, at = 4 * (int)p->lane + c;
        unsigned code = p->codes[64 * (j % 4) + at] >> 4 * (j / 4) & 15;
        if (high_bits == 1)
            code |= (unsigned)(p->high[at] >> j & 1) << 4;
        else if (high_bits == 2)
            code |= (unsigned)(p->high[64 * (j / 4) + at] >> 2 * (j % 4) & 3) << 4;
        ret[i] = (uint8_t)code;
    }
}

/* The nibbles as a file's 32-value blocks carry them: value i low, i + 16 high; the same pairs
 * that put_codes makes, so that they are copied. */
static void put_nibbles(const struct place *p, const uint8_t qs[16])
{
    for (int j = 0; j < 4; j++)
        memcpy(p->codes + 64 * j + 4 * p->lane, qs + 4 * j, 4);
}

static void put_bytes(const struct place *p, const int8_t qs[32])
{
    for (uint32_t j = 0; j < 8; j++) /* plus 128 */
        put32(p->codes + 64 * j, p->lane, get32(qs + 4 * j) ^ 0x80808080);
}

static void fifth_bits(const uint8_t qh[4], const uint8_t qs[16], uint8_t ret[32])
{
    for (int i = 0; i < 32; i++)
        ret[i] = (uint8_t)((qs[i % 16] >> 4 * (i / 16) & 15) | (qh[i / 8] >> i % 8 & 1) << 4);
}

/* ---- the types of 32 values ------------------------------------------------------------------ */

static void write_q5(const struct place *p, uint32_t type, const uint8_t *bytes)
{
    uint8_t code[32];
    if (type == INFER_TYPE_Q5_0) {
        const struct ref_q5_0 *b = (const void *)bytes;
        fifth_bits(b->qh, b->qs, code);
        put16(p->scales, p->lane, b->d);
    } else {
        const struct ref_q5_1 *b = (const void *)bytes;
        fifth_bits(b->qh, b->qs, code);
        put16(p->scales, p->lane, b->d);
        put16(p->scales + 32, p->lane, b->m);
    }
    put_codes(p, code, 1);
}

static void write_small(const struct place *p, uint32_t type, const uint8_t *bytes)
{
    switch (type) {
    case INFER_TYPE_Q4_0:
    case INFER_TYPE_IQ4_NL: {
        const struct ref_q4_0 *b = (const void *)bytes;
        put_nibbles(p, b->qs);
        put16(p->scales, p->lane, b->d);
        break;
    }
    case INFER_TYPE_Q4_1: {
        const struct ref_q4_1 *b = (const void *)bytes;
        put_nibbles(p, b->qs);
        put16(p->scales, p->lane, b->d);
        put16(p->scales + 32, p->lane, b->m);
        break;
    }
    case INFER_TYPE_Q5_0:
    case INFER_TYPE_Q5_1:
        write_q5(p, type, bytes);
        break;
    case INFER_TYPE_Q8_0: {
        const struct ref_q8_0 *b = (const void *)bytes;
        put_bytes(p, b->qs);
        put16(p->scales, p->lane, b->d);
        break;
    }
    default: { /* MXFP4; a power of two is exact in bfloat16, the subnormal ones too */
        const struct ref_mxfp4 *b = (const void *)bytes;
        put_nibbles(p, b->qs);
        put16(p->scales, p->lane, ref_f32_to_bf16(ref_mxfp4_scale(b->e)));
        break;
    }
    }
}

/* ---- the types of 256 values: block g = 0 .. 7 of 32 values ---------------------------------- */

static void write_q45_k(const struct place *p, uint32_t type, const uint8_t *bytes, int g)
{
    const struct ref_q4_k *b4 = (const void *)bytes;
    const struct ref_q5_k *b5 = (const void *)bytes;
    bool five = type == INFER_TYPE_Q5_K;
    const uint8_t *qs = (five ? b5->qs : b4->qs) + 32 * (g / 2);
    uint8_t code[32], scale, minimum;

    ref_k4_scale_min(five ? b5->scales : b4->scales, g, &scale, &minimum);
    for (int l = 0; l < 32; l++)
        code[l] = (uint8_t)((qs[l] >> 4 * (g % 2) & 15) | (five ? b5->qh[l] >> g & 1 : 0) << 4);
    put_codes(p, code, five ? 1 : 0);
    p->scales[p->lane] = scale;
    p->scales[16 + p->lane] = minimum;
    if (g == 0) {
        put16(p->super, p->lane, b4->d);
        put16(p->super + 32, p->lane, b4->dmin ^ 0x8000); /* minus the minimum is added */
    }
}

static void write_q6_k(const struct place *p, const struct ref_q6_k *b, int g)
{
    const uint8_t *ql = b->ql + 64 * (g / 4) + 32 * (g % 2);
    const uint8_t *qh = b->qh + 32 * (g / 4);
    int low = g % 4 < 2 ? 0 : 4, high = 2 * (g % 4);
    uint8_t code[32];
    for (int l = 0; l < 32; l++)
        code[l] = (uint8_t)((ql[l] >> low & 15) | (qh[l] >> high & 3) << 4);
    put_codes(p, code, 2);
    p->scales[p->lane] = (uint8_t)b->scales[2 * g];
    p->scales[16 + p->lane] = (uint8_t)b->scales[2 * g + 1];
    if (g == 0)
        put16(p->super, p->lane, b->d);
}

static void write_q3_k(const struct place *p, const struct ref_q3_k *b, int g)
{
    const uint8_t *qs = b->qs + 32 * (g / 4);
    int shift = 2 * (g % 4);
    int8_t scales[16];
    uint8_t code[32];
    ref_q3_k_scales(b->scales, scales);
    for (int l = 0; l < 32; l++) {
        int q = (qs[l] >> shift & 3) | (b->hmask[l] >> g & 1) << 2;
        code[l] = (uint8_t)(q - 4 + 32);
    }
    put_codes(p, code, 2);
    p->scales[p->lane] = (uint8_t)scales[2 * g];
    p->scales[16 + p->lane] = (uint8_t)scales[2 * g + 1];
    if (g == 0)
        put16(p->super, p->lane, b->d);
}

static void write_iq4_xs(const struct place *p, const struct ref_iq4_xs *b, int g)
{
    int low = b->scales_l[g / 2] >> 4 * (g % 2) & 15, high = b->scales_h >> 2 * g & 3;
    put_nibbles(p, b->qs + 16 * g);
    p->scales[p->lane] = (uint8_t)((low | high << 4) - 32);
    if (g == 0)
        put16(p->super, p->lane, b->d);
}

static void write_iq3_s(const struct place *p, const struct ref_iq3_s *b, int g)
{
    uint8_t code[32];
    for (int l = 0; l < 32; l++) {
        int k = l / 4;
        uint32_t point = ref_iq3s_grid[b->qs[8 * g + k] | (b->qh[g] >> k & 1) << 8];
        int value = (int)(point >> 8 * (l % 4) & 255);
        if (b->signs[4 * g + l / 8] >> l % 8 & 1)
            value = -value;
        code[l] = (uint8_t)((value + 15) / 2);
    }
    put_codes(p, code, 0);
    p->scales[p->lane] = (uint8_t)(1 + 2 * (b->scales[g / 2] >> 4 * (g % 2) & 15));
    if (g == 0)
        put16(p->super, p->lane, b->d);
}

/* ---- by way of float32 ----------------------------------------------------------------------- */

/* TQ1_0, TQ2_0: values -d, 0, d; a code that no encoder writes stands for 2 d. */
static void write_ternary(const struct place *p, uint16_t d, const float *values)
{
    uint8_t code[32];
    float scale = ref_f16_to_f32(d);
    for (int l = 0; l < 32; l++)
        code[l] = (uint8_t)(values[l] == scale * 2 ? 8 + 2
                            : values[l] == scale   ? 8 + 1
                            : values[l] == -scale  ? 8 - 1
                                                   : 8);
    put_codes(p, code, 0);
    put16(p->scales, p->lane, d);
}

static void write_rounded(const struct place *p, const float *values)
{
    struct ref_q8_0 block;
    ref_encode_row(INFER_TYPE_Q8_0, values, &block, 32);
    put_bytes(p, block.qs);
    put16(p->scales, p->lane, block.d);
}

static void write_large(const struct cpu_matrix *m, uint32_t type, uint32_t row,
                        const uint8_t *block, uint32_t index, const float *values)
{
    for (uint32_t g = 0; g < 8; g++) {
        struct place p = place_of(m, row, 8 * index + g);
        switch (type) {
        case INFER_TYPE_Q4_K:
        case INFER_TYPE_Q5_K:
            write_q45_k(&p, type, block, (int)g);
            break;
        case INFER_TYPE_Q6_K:
            write_q6_k(&p, (const void *)block, (int)g);
            break;
        case INFER_TYPE_Q3_K:
            write_q3_k(&p, (const void *)block, (int)g);
            break;
        case INFER_TYPE_IQ4_XS:
            write_iq4_xs(&p, (const void *)block, (int)g);
            break;
        case INFER_TYPE_IQ3_S:
            write_iq3_s(&p, (const void *)block, (int)g);
            break;
        case INFER_TYPE_TQ1_0:
            write_ternary(&p, ((const struct ref_tq1_0 *)(const void *)block)->d,
                          values + 32 * (8 * index + g));
            break;
        case INFER_TYPE_TQ2_0:
            write_ternary(&p, ((const struct ref_tq2_0 *)(const void *)block)->d,
                          values + 32 * (8 * index + g));
            break;
        default:
            write_rounded(&p, values + 32 * (8 * index + g));
            break;
        }
    }
}

static void write_floats(const struct cpu_matrix *m, uint32_t row, const uint8_t *bytes)
{
    uint8_t *at = m->data + (size_t)(row / CPU_GROUP) * m->group_bytes;
    uint32_t lane = row % CPU_GROUP, k = 0;
    if (m->format == CPU_F32) {
        for (; k < m->cols; k++, at += 64, bytes += 4)
            put32(at, lane, get32(bytes));
    } else if (m->format == CPU_F16) {
        for (; k < m->cols; k++, at += 32, bytes += 2)
            memcpy(at + 2 * lane, bytes, 2);
    } else {
        for (; k + 1 < m->cols; k += 2, at += 64, bytes += 4)
            put32(at, lane, get32(bytes));
        if (k < m->cols)
            memcpy(at + 4 * lane, bytes, 2);
    }
}

void cpu_matrix_write(const struct cpu_matrix *m, uint32_t type, uint32_t row, const void *bytes,
                      float *scratch)
{
    assert(row < m->rows);
    const uint8_t *at = bytes;
    uint32_t block = ref_block(type), size = ref_block_bytes(type);

    if (is_float(m->format)) {
        write_floats(m, row, at);
        return;
    }
    if (type == INFER_TYPE_TQ1_0 || type == INFER_TYPE_TQ2_0 || type == INFER_TYPE_Q2_K)
        ref_decode_row(type, bytes, scratch, m->cols);
    for (uint32_t i = 0; i < m->cols / block; i++, at += size) {
        if (block == CPU_SUPER) {
            write_large(m, type, row, at, i, scratch);
        } else {
            struct place p = place_of(m, row, i);
            write_small(&p, type, at);
        }
    }
}

/* ---- back ------------------------------------------------------------------------------------ */

static void read_floats(const struct cpu_matrix *m, uint32_t row, float *ret)
{
    const uint8_t *group = m->data + (size_t)(row / CPU_GROUP) * m->group_bytes;
    uint32_t lane = row % CPU_GROUP;
    for (uint32_t k = 0; k < m->cols; k++) {
        if (m->format == CPU_F32)
            memcpy(&ret[k], group + 64 * (size_t)k + 4 * lane, 4);
        else if (m->format == CPU_F16)
            ret[k] = ref_f16_to_f32(get16(group + 32 * (size_t)k, lane));
        else
            ret[k] = ref_bf16_to_f32(get16(group + 64 * (size_t)(k / 2) + 4 * lane, k % 2));
    }
}

/* Scale and minimum of half `half` of a block. */
static void scale_of(uint32_t format, const struct place *p, int half, float *ret_scale,
                     float *ret_min)
{
    float first = ref_f16_to_f32(get16(p->scales, p->lane));
    *ret_min = 0;
    switch (format) {
    case CPU_Q4_1:
    case CPU_Q5_1:
        *ret_min = ref_f16_to_f32(get16(p->scales + 32, p->lane));
        *ret_scale = first;
        break;
    case CPU_C4_B:
        *ret_scale = ref_bf16_to_f32(get16(p->scales, p->lane));
        break;
    case CPU_Q4_K:
    case CPU_Q5_K:
        *ret_scale = ref_f16_to_f32(get16(p->super, p->lane)) * (float)p->scales[p->lane];
        *ret_min = ref_f16_to_f32(get16(p->super + 32, p->lane)) * (float)p->scales[16 + p->lane];
        break;
    case CPU_Q6_K:
    case CPU_C4_K:
        *ret_scale = ref_f16_to_f32(get16(p->super, p->lane)) *
                     (float)(int8_t)p->scales[(format == CPU_Q6_K ? 16 * half : 0) + (int)p->lane];
        break;
    default:
        *ret_scale = first;
        break;
    }
}

void cpu_matrix_read(const struct cpu_matrix *m, uint32_t row, float *ret)
{
    assert(row < m->rows);
    if (is_float(m->format)) {
        read_floats(m, row, ret);
        return;
    }
    struct cpu_layout l = cpu_layout_of(m->format);
    bool book = m->format == CPU_C4_0 || m->format == CPU_C4_B || m->format == CPU_C4_K;
    for (uint32_t b = 0; b < m->n_blocks; b++) {
        struct place p = place_of(m, row, b);
        uint8_t code[32];
        if (m->format == CPU_Q8_0)
            for (int i = 0; i < 32; i++)
                code[i] = p.codes[64 * (i / 4) + 4 * (int)p.lane + i % 4];
        else
            get_codes(&p, l.high / 64, code);
        float scale = 0, minimum = 0;
        for (int i = 0; i < 32; i++) {
            if (i % 16 == 0)
                scale_of(m->format, &p, i / 16, &scale, &minimum);
            int value = (int)(book ? m->codebook[code[i]] : code[i]) - (int)l.offset;
            ret[(size_t)CPU_BLOCK * b + (size_t)i] = scale * (float)value + minimum;
        }
    }
}
