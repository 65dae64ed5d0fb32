/* quant.c: decoding of every tensor type to float32, and the encoders that this project needs.
 *
 * Owns nothing; pure functions, any thread. Each decoder takes one block and states its formula.
 * The order of the float32 operations is part of the format (d * scale first, then times the
 * value, then minus the minimum), and no step may be fused into another: this file is compiled
 * for a machine without fused multiply-add.
 *
 * A stored value of w bits is called q below; "group g" is a run of values with a common scale. */
#include "ref/quant.h"

#include "inferd/backend.h"
#include "ref/blocks.h"

#include <math.h>
#include <string.h>

/* ---- single numbers -------------------------------------------------------------------------- */

static float bits_to_f32(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static uint32_t f32_to_bits(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* Without a branch, so that a loop over it is vectorized. The exponent's bias grows by 112 from
 * half to single. A subnormal is written as 2^-14 * 1.fraction, from which 2^-14 is taken. */
static inline float f16_to_f32(uint16_t bits)
{
    uint32_t sign = (uint32_t)(bits & 0x8000) << 16;
    uint32_t magnitude = (uint32_t)(bits & 0x7fff) << 13;
    uint32_t normal = magnitude + (112u << 23);
    uint32_t subnormal = f32_to_bits(bits_to_f32(magnitude + (113u << 23)) - 0x1p-14f);
    uint32_t special = magnitude + (224u << 23); /* infinity, NaN */
    uint32_t is_subnormal = -(uint32_t)(magnitude < 0x400u << 13);
    uint32_t is_special = -(uint32_t)(magnitude >= 0x7c00u << 13);
    return bits_to_f32(sign | (subnormal & is_subnormal) | (special & is_special) |
                       (normal & ~is_subnormal & ~is_special));
}

float ref_f16_to_f32(uint16_t bits)
{
    return f16_to_f32(bits);
}

/* value >> shift, rounded to nearest, ties to even; shift 1 .. 31. */
static uint32_t shift_round(uint32_t value, uint32_t shift)
{
    uint32_t kept = value >> shift;
    uint32_t rest = value & ((1u << shift) - 1);
    uint32_t half = 1u << (shift - 1);
    return kept + (rest > half || (rest == half && (kept & 1)));
}

uint16_t ref_f32_to_f16(float value)
{
    uint32_t bits = f32_to_bits(value);
    uint32_t sign = bits >> 16 & 0x8000;
    uint32_t magnitude = bits & 0x7fffffff;

    if (magnitude > 0x7f800000) /* NaN: quiet, the high payload bits stay */
        return (uint16_t)(sign | 0x7e00 | (magnitude >> 13 & 0x1ff));
    if (magnitude >= 0x477ff000) /* 65520 and more round to infinity */
        return (uint16_t)(sign | 0x7c00);
    if (magnitude >= 0x38800000) /* normal: 2^-14 and more; a carry moves into the exponent */
        return (uint16_t)(sign | shift_round(magnitude - 0x38000000, 13));
    if (magnitude < 0x33000000) /* under 2^-25: zero */
        return (uint16_t)sign;
    /* Subnormal: the mantissa with its leading one, in units of 2^-24. */
    uint32_t mantissa = (magnitude & 0x7fffff) | 0x800000;
    return (uint16_t)(sign | shift_round(mantissa, 126 - (magnitude >> 23)));
}

float ref_bf16_to_f32(uint16_t bits)
{
    return bits_to_f32((uint32_t)bits << 16);
}

uint16_t ref_f32_to_bf16(float value)
{
    uint32_t bits = f32_to_bits(value);
    if ((bits & 0x7fffffff) > 0x7f800000)
        return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)shift_round(bits, 16);
}

float ref_mxfp4_scale(uint8_t e)
{
    /* 2^(e - 128); the two smallest are subnormal. */
    return bits_to_f32(e < 2 ? 0x00200000u << e : (uint32_t)(e - 1) << 23);
}

/* ---- blocks of 32 ---------------------------------------------------------------------------- */

/* y = d * (q - 8) */
static void decode_q4_0(const void *block, float *y)
{
    const struct ref_q4_0 *b = block;
    float d = ref_f16_to_f32(b->d);
    for (int i = 0; i < 16; i++) {
        y[i] = (float)((b->qs[i] & 15) - 8) * d;
        y[i + 16] = (float)((b->qs[i] >> 4) - 8) * d;
    }
}

/* y = d * q + m */
static void decode_q4_1(const void *block, float *y)
{
    const struct ref_q4_1 *b = block;
    float d = ref_f16_to_f32(b->d), m = ref_f16_to_f32(b->m);
    for (int i = 0; i < 16; i++) {
        y[i] = (float)(b->qs[i] & 15) * d + m;
        y[i + 16] = (float)(b->qs[i] >> 4) * d + m;
    }
}

/* The five bits of values i and i + 16: four from qs, the fifth from the bit field qh. */
static void q5_pair(const uint8_t qh[4], const uint8_t qs[16], int i, int *ret_low, int *ret_high)
{
    *ret_low = (qs[i] & 15) | (qh[i / 8] >> i % 8 & 1) << 4;
    *ret_high = qs[i] >> 4 | (qh[2 + i / 8] >> i % 8 & 1) << 4;
}

/* y = d * (q - 16) */
static void decode_q5_0(const void *block, float *y)
{
    const struct ref_q5_0 *b = block;
    float d = ref_f16_to_f32(b->d);
    for (int i = 0; i < 16; i++) {
        int low, high;
        q5_pair(b->qh, b->qs, i, &low, &high);
        y[i] = (float)(low - 16) * d;
        y[i + 16] = (float)(high - 16) * d;
    }
}

/* y = d * q + m */
static void decode_q5_1(const void *block, float *y)
{
    const struct ref_q5_1 *b = block;
    float d = ref_f16_to_f32(b->d), m = ref_f16_to_f32(b->m);
    for (int i = 0; i < 16; i++) {
        int low, high;
        q5_pair(b->qh, b->qs, i, &low, &high);
        y[i] = (float)low * d + m;
        y[i + 16] = (float)high * d + m;
    }
}

/* y = d * q */
static void decode_q8_0(const void *block, float *y)
{
    const struct ref_q8_0 *b = block;
    float d = ref_f16_to_f32(b->d);
    for (int i = 0; i < 32; i++)
        y[i] = (float)b->qs[i] * d;
}

/* y = d * codebook[q] */
static void decode_iq4_nl(const void *block, float *y)
{
    const struct ref_iq4_nl *b = block;
    float d = ref_f16_to_f32(b->d);
    for (int i = 0; i < 16; i++) {
        y[i] = d * (float)ref_iq4_values[b->qs[i] & 15];
        y[i + 16] = d * (float)ref_iq4_values[b->qs[i] >> 4];
    }
}

/* y = 2^(e - 127) * E2M1[q], written as half the scale times twice the number. */
static void decode_mxfp4(const void *block, float *y)
{
    const struct ref_mxfp4 *b = block;
    float d = ref_mxfp4_scale(b->e);
    for (int i = 0; i < 16; i++) {
        y[i] = (float)ref_mxfp4_values[b->qs[i] & 15] * d;
        y[i + 16] = (float)ref_mxfp4_values[b->qs[i] >> 4] * d;
    }
}

/* ---- blocks of 256 --------------------------------------------------------------------------- */

/* 16 groups of 16. y = (d * scale) * q - (dmin * minimum). Each 32 bytes of qs carry 128 values:
 * bits 2s, 2s+1 of byte l are value 32 s + l of that half. */
static void decode_q2_k(const void *block, float *y)
{
    const struct ref_q2_k *b = block;
    float d = ref_f16_to_f32(b->d), dmin = ref_f16_to_f32(b->dmin);
    for (int g = 0; g < 16; g++) {
        float scale = d * (float)(b->scales[g] & 15);
        float minimum = dmin * (float)(b->scales[g] >> 4);
        int half = g / 8, shift = g % 8 / 2 * 2;
        const uint8_t *qs = b->qs + 32 * half + 16 * (g % 2);
        for (int l = 0; l < 16; l++)
            y[16 * g + l] = scale * (float)(qs[l] >> shift & 3) - minimum;
    }
}

/* Scale g: the low four bits are a nibble of bytes 0 .. 7, the high two lie in bytes 8 .. 11. */
void ref_q3_k_scales(const uint8_t scales[12], int8_t ret[16])
{
    for (int g = 0; g < 16; g++) {
        int low = g < 8 ? scales[g] & 15 : scales[g - 8] >> 4;
        int high = scales[8 + g % 4] >> 2 * (g / 4) & 3;
        ret[g] = (int8_t)((low | high << 4) - 32);
    }
}

/* 16 groups of 16. y = (d * scale) * (q - 4), where the third bit of q is in hmask: bit g / 2 of
 * byte l. The low two bits lie as in q2_k. */
static void decode_q3_k(const void *block, float *y)
{
    const struct ref_q3_k *b = block;
    float d = ref_f16_to_f32(b->d);
    int8_t scales[16];
    ref_q3_k_scales(b->scales, scales);
    for (int g = 0; g < 16; g++) {
        float scale = d * (float)scales[g];
        int half = g / 8, shift = g % 8 / 2 * 2;
        const uint8_t *qs = b->qs + 32 * half + 16 * (g % 2);
        const uint8_t *hmask = b->hmask + 16 * (g % 2);
        for (int l = 0; l < 16; l++) {
            int q = (qs[l] >> shift & 3) | (hmask[l] >> g / 2 & 1) << 2;
            y[16 * g + l] = scale * (float)(q - 4);
        }
    }
}

/* The first four pairs are the low six bits of bytes j and j + 4. The last four have their low
 * four bits in bytes j + 4 and their high two in the spare top bits of the first eight bytes. */
void ref_k4_scale_min(const uint8_t scales[12], int j, uint8_t *ret_scale, uint8_t *ret_min)
{
    if (j < 4) {
        *ret_scale = scales[j] & 63;
        *ret_min = scales[j + 4] & 63;
    } else {
        *ret_scale = (uint8_t)((scales[j + 4] & 15) | scales[j - 4] >> 6 << 4);
        *ret_min = (uint8_t)(scales[j + 4] >> 4 | scales[j] >> 6 << 4);
    }
}

/* 8 groups of 32. y = (d * scale) * q - (dmin * minimum). 32 bytes carry two groups: the even one
 * in the low nibbles, the odd one in the high. */
static void decode_q4_k(const void *block, float *y)
{
    const struct ref_q4_k *b = block;
    float d = ref_f16_to_f32(b->d), dmin = ref_f16_to_f32(b->dmin);
    for (int g = 0; g < 8; g++) {
        uint8_t s, m;
        ref_k4_scale_min(b->scales, g, &s, &m);
        float scale = d * (float)s, minimum = dmin * (float)m;
        const uint8_t *qs = b->qs + 32 * (g / 2);
        int shift = 4 * (g % 2);
        for (int l = 0; l < 32; l++)
            y[32 * g + l] = scale * (float)(qs[l] >> shift & 15) - minimum;
    }
}

/* As q4_k; the fifth bit of group g is bit g of qh[l]. */
static void decode_q5_k(const void *block, float *y)
{
    const struct ref_q5_k *b = block;
    float d = ref_f16_to_f32(b->d), dmin = ref_f16_to_f32(b->dmin);
    for (int g = 0; g < 8; g++) {
        uint8_t s, m;
        ref_k4_scale_min(b->scales, g, &s, &m);
        float scale = d * (float)s, minimum = dmin * (float)m;
        const uint8_t *qs = b->qs + 32 * (g / 2);
        int shift = 4 * (g % 2);
        for (int l = 0; l < 32; l++) {
            int q = (qs[l] >> shift & 15) | (b->qh[l] >> g & 1) << 4;
            y[32 * g + l] = scale * (float)q - minimum;
        }
    }
}

/* 16 groups of 16. y = (d * scale) * (q - 32). Each half of 128 values has 64 bytes ql and 32
 * bytes qh; its quarter r = 0 .. 3 (32 values) takes ql[32 (r % 2) + l], low nibbles for r < 2,
 * and bits 2r, 2r+1 of qh[l]. */
static void decode_q6_k(const void *block, float *y)
{
    const struct ref_q6_k *b = block;
    float d = ref_f16_to_f32(b->d);
    for (int g = 0; g < 16; g++) {
        float scale = d * (float)b->scales[g];
        int half = g / 8, r = g % 8 / 2, first = 16 * (g % 2);
        const uint8_t *ql = b->ql + 64 * half + 32 * (r % 2) + first;
        const uint8_t *qh = b->qh + 32 * half + first;
        int shift_low = r < 2 ? 0 : 4, shift_high = 2 * r;
        for (int l = 0; l < 16; l++) {
            int q = (ql[l] >> shift_low & 15) | (qh[l] >> shift_high & 3) << 4;
            y[16 * g + l] = scale * (float)(q - 32);
        }
    }
}

/* 8 groups of 32, each as iq4_nl. y = (d * (scale - 32)) * codebook[q]. */
static void decode_iq4_xs(const void *block, float *y)
{
    const struct ref_iq4_xs *b = block;
    float d = ref_f16_to_f32(b->d);
    for (int g = 0; g < 8; g++) {
        int low = b->scales_l[g / 2] >> 4 * (g % 2) & 15;
        int high = b->scales_h >> 2 * g & 3;
        float scale = d * (float)((low | high << 4) - 32);
        for (int i = 0; i < 16; i++) {
            uint8_t q = b->qs[16 * g + i];
            y[32 * g + i] = scale * (float)ref_iq4_values[q & 15];
            y[32 * g + 16 + i] = scale * (float)ref_iq4_values[q >> 4];
        }
    }
}

/* 8 groups of 32, each of 8 codebook points. y = +- (d * (1 + 2 scale)) * point. */
static void decode_iq3_s(const void *block, float *y)
{
    const struct ref_iq3_s *b = block;
    float d = ref_f16_to_f32(b->d);
    for (int g = 0; g < 8; g++) {
        int s = b->scales[g / 2] >> 4 * (g % 2) & 15;
        float scale = d * (float)(1 + 2 * s);
        for (int k = 0; k < 8; k++) {
            uint32_t point = ref_iq3s_grid[b->qs[8 * g + k] | (b->qh[g] >> k & 1) << 8];
            for (int l = 0; l < 4; l++) {
                int i = 32 * g + 4 * k + l;
                float value = scale * (float)(point >> 8 * l & 255);
                y[i] = b->signs[i / 8] >> i % 8 & 1 ? -value : value;
            }
        }
    }
}

/* Digit n (0: the most significant) of a byte that holds ternary digits as a fraction of 256:
 * multiplied by 3^n, modulo 256, the digit is the integer part of three times the rest. */
static int ternary_digit(uint8_t packed, int n)
{
    static const uint8_t power[5] = {1, 3, 9, 27, 81};
    uint8_t rest = (uint8_t)(packed * power[n]);
    return rest * 3 >> 8;
}

/* y = d * (digit - 1). Values 0 .. 159: digit i / 32 of qs[i % 32]; 160 .. 239: five digits of
 * qs[32 .. 47]; 240 .. 255: four digits of qh. */
static void decode_tq1_0(const void *block, float *y)
{
    const struct ref_tq1_0 *b = block;
    float d = ref_f16_to_f32(b->d);
    for (int n = 0; n < 5; n++) {
        for (int l = 0; l < 32; l++)
            y[32 * n + l] = (float)(ternary_digit(b->qs[l], n) - 1) * d;
        for (int l = 0; l < 16; l++)
            y[160 + 16 * n + l] = (float)(ternary_digit(b->qs[32 + l], n) - 1) * d;
    }
    for (int n = 0; n < 4; n++) {
        for (int l = 0; l < 4; l++)
            y[240 + 4 * n + l] = (float)(ternary_digit(b->qh[l], n) - 1) * d;
    }
}

/* y = d * (q - 1), two bits each, placed as in q2_k. */
static void decode_tq2_0(const void *block, float *y)
{
    const struct ref_tq2_0 *b = block;
    float d = ref_f16_to_f32(b->d);
    for (int i = 0; i < 256; i++) {
        int half = i / 128, shift = i % 128 / 32 * 2;
        y[i] = (float)((b->qs[32 * half + i % 32] >> shift & 3) - 1) * d;
    }
}

/* ---- the float types, and the table of all --------------------------------------------------- */

/* Sixteen bits at any address. */
struct half {
    uint16_t bits;
} REF_PACKED;

static void decode_f32(const void *row, float *y, uint64_t n)
{
    memcpy(y, row, n * sizeof *y);
}

static void decode_f16(const void *row, float *y, uint64_t n)
{
    const struct half *halves = row;
    for (uint64_t i = 0; i < n; i++)
        y[i] = f16_to_f32(halves[i].bits);
}

static void decode_bf16(const void *row, float *y, uint64_t n)
{
    const struct half *halves = row;
    for (uint64_t i = 0; i < n; i++)
        y[i] = bits_to_f32((uint32_t)halves[i].bits << 16);
}

struct type_info {
    const char *name;
    uint32_t block;
    uint32_t bytes;
    void (*decode)(const void *block, float *y); /* NULL: the float types */
};

static const struct type_info types[] = {
    [INFER_TYPE_F32] = {"F32", 1, 4, NULL},
    [INFER_TYPE_F16] = {"F16", 1, 2, NULL},
    [INFER_TYPE_BF16] = {"BF16", 1, 2, NULL},
    [INFER_TYPE_Q4_0] = {"Q4_0", REF_QK, sizeof(struct ref_q4_0), decode_q4_0},
    [INFER_TYPE_Q4_1] = {"Q4_1", REF_QK, sizeof(struct ref_q4_1), decode_q4_1},
    [INFER_TYPE_Q5_0] = {"Q5_0", REF_QK, sizeof(struct ref_q5_0), decode_q5_0},
    [INFER_TYPE_Q5_1] = {"Q5_1", REF_QK, sizeof(struct ref_q5_1), decode_q5_1},
    [INFER_TYPE_Q8_0] = {"Q8_0", REF_QK, sizeof(struct ref_q8_0), decode_q8_0},
    [INFER_TYPE_IQ4_NL] = {"IQ4_NL", REF_QK, sizeof(struct ref_iq4_nl), decode_iq4_nl},
    [INFER_TYPE_MXFP4] = {"MXFP4", REF_QK, sizeof(struct ref_mxfp4), decode_mxfp4},
    [INFER_TYPE_Q2_K] = {"Q2_K", REF_QK_K, sizeof(struct ref_q2_k), decode_q2_k},
    [INFER_TYPE_Q3_K] = {"Q3_K", REF_QK_K, sizeof(struct ref_q3_k), decode_q3_k},
    [INFER_TYPE_Q4_K] = {"Q4_K", REF_QK_K, sizeof(struct ref_q4_k), decode_q4_k},
    [INFER_TYPE_Q5_K] = {"Q5_K", REF_QK_K, sizeof(struct ref_q5_k), decode_q5_k},
    [INFER_TYPE_Q6_K] = {"Q6_K", REF_QK_K, sizeof(struct ref_q6_k), decode_q6_k},
    [INFER_TYPE_IQ4_XS] = {"IQ4_XS", REF_QK_K, sizeof(struct ref_iq4_xs), decode_iq4_xs},
    [INFER_TYPE_IQ3_S] = {"IQ3_S", REF_QK_K, sizeof(struct ref_iq3_s), decode_iq3_s},
    [INFER_TYPE_TQ1_0] = {"TQ1_0", REF_QK_K, sizeof(struct ref_tq1_0), decode_tq1_0},
    [INFER_TYPE_TQ2_0] = {"TQ2_0", REF_QK_K, sizeof(struct ref_tq2_0), decode_tq2_0},
};

bool ref_type_known(uint32_t type)
{
    return type < sizeof types / sizeof types[0] && types[type].block != 0;
}

const char *ref_type_name(uint32_t type)
{
    return ref_type_known(type) ? types[type].name : "?";
}

uint32_t ref_block(uint32_t type)
{
    return ref_type_known(type) ? types[type].block : 0;
}

uint32_t ref_block_bytes(uint32_t type)
{
    return ref_type_known(type) ? types[type].bytes : 0;
}

uint64_t ref_row_bytes(uint32_t type, uint64_t n)
{
    uint64_t bytes;
    if (!ref_type_known(type) || n % types[type].block != 0 ||
        __builtin_mul_overflow(n / types[type].block, types[type].bytes, &bytes))
        return 0;
    return bytes;
}

void ref_decode_row(uint32_t type, const void *row, float *ret, uint64_t n)
{
    const struct type_info *info = &types[type];
    const uint8_t *block = row;

    switch (type) {
    case INFER_TYPE_F32:
        decode_f32(row, ret, n);
        break;
    case INFER_TYPE_F16:
        decode_f16(row, ret, n);
        break;
    case INFER_TYPE_BF16:
        decode_bf16(row, ret, n);
        break;
    default:
        for (uint64_t i = 0; i < n; i += info->block, block += info->bytes)
            info->decode(block, ret + i);
    }
}

/* ---- encoding -------------------------------------------------------------------------------- */

/* d = max |x| / 127; q = x / d, rounded to nearest, halves away from zero. */
static void encode_q8_0(const float *x, struct ref_q8_0 *b)
{
    float largest = 0;
    for (int i = 0; i < 32; i++)
        largest = fmaxf(largest, fabsf(x[i]));
    float d = largest / 127;
    float inverse = d > 0 ? 1 / d : 0;
    b->d = ref_f32_to_f16(d);
    for (int i = 0; i < 32; i++)
        b->qs[i] = (int8_t)roundf(fmaxf(-127, fminf(127, x[i] * inverse)));
}

static uint8_t q4_0_value(float scaled)
{
    return (uint8_t)fmaxf(0, fminf(15, scaled + 8.5f));
}

/* d = (the value of largest magnitude) / -8, so that this value is met exactly. */
static void encode_q4_0(const float *x, struct ref_q4_0 *b)
{
    float extreme = 0;
    for (int i = 0; i < 32; i++) {
        if (fabsf(x[i]) > fabsf(extreme))
            extreme = x[i];
    }
    float d = extreme / -8;
    float inverse = d != 0 ? 1 / d : 0;
    b->d = ref_f32_to_f16(d);
    for (int i = 0; i < 16; i++)
        b->qs[i] = (uint8_t)(q4_0_value(x[i] * inverse) | q4_0_value(x[i + 16] * inverse) << 4);
}

bool ref_encode_row(uint32_t type, const float *values, void *ret, uint64_t n)
{
    uint8_t *out = ret;
    switch (type) {
    case INFER_TYPE_F32:
        memcpy(out, values, n * sizeof *values);
        return true;
    case INFER_TYPE_F16:
    case INFER_TYPE_BF16:
        for (uint64_t i = 0; i < n; i++) {
            uint16_t bits =
                type == INFER_TYPE_F16 ? ref_f32_to_f16(values[i]) : ref_f32_to_bf16(values[i]);
            memcpy(out + 2 * i, &bits, sizeof bits);
        }
        return true;
    case INFER_TYPE_Q8_0:
        for (uint64_t i = 0; i < n; i += REF_QK)
            encode_q8_0(values + i, (struct ref_q8_0 *)out + i / REF_QK);
        return true;
    case INFER_TYPE_Q4_0:
        for (uint64_t i = 0; i < n; i += REF_QK)
            encode_q4_0(values + i, (struct ref_q4_0 *)out + i / REF_QK);
        return true;
    default:
        return false;
    }
}
