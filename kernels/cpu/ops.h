/* ops.h: the operations between the matrix products; a template over the simd words.
 *
 *   norm    h = x * norm / sqrt(mean(x^2) + eps)
 *   pack    x as float32, or as 8-bit codes with a scale per 32 columns: d = max|x| / 127,
 *           a = round(x / d), so |x - d a| <= d / 2
 *   gated   silu(g) u = g u / (1 + e^-g), or gelu_tanh(g) u
 *   rope    pairs of dimensions turned by the row's angles
 *   turn    one pair of dimensions of 16 cached keys, turned on by one angle
 *
 * All touch each number once or twice and are bound by the first-level cache; together they stay
 * under 3% of a step. Each handles one row, so that a row's bits cannot depend on its neighbours.
 * Buffers of norm and gated are padded to 16 numbers with zeros.
 */
#include "cpu/cpu.h"
#include "cpu/exp.h"

#include <math.h>

#define JOIN2(a, b) a##_##b
#define JOIN(a, b)  JOIN2(a, b)

static void norm_row(float *h, const float *x, const float *norm, uint32_t n, float eps)
{
    vf sum = vf_zero();
    for (uint32_t i = 0; i < n; i += SIMD_LANES) {
        vf v = vf_load(x + i);
        sum = vf_fma(v, v, sum);
    }
    vf scale = vf_set(1.0f / sqrtf(vf_sum(sum) / (float)n + eps));
    for (uint32_t i = 0; i < n; i += SIMD_LANES)
        vf_store(h + i, vf_mul(vf_mul(vf_load(x + i), scale), vf_load(norm + i)));
}

static void pack_codes(uint8_t *record, uint32_t T, uint32_t t, const float *x, uint32_t offset)
{
    vf largest = vf_zero();
    int32_t sums[2] = {0, 0};
    for (uint32_t i = 0; i < CPU_BLOCK; i += SIMD_LANES)
        largest = vf_max(largest, vf_abs(vf_load(x + i)));
    float top = vf_largest(largest);
    float d = top / 127.0f;
    vf inverse = vf_set(top > 0 ? 127.0f / top : 0.0f);
    for (uint32_t half = 0; half < 2; half++) {
        vi sum = v_zero();
        for (uint32_t i = 16 * half; i < 16 * half + 16; i += SIMD_LANES) {
            vi code = vf_round(vf_mul(vf_load(x + i), inverse));
            v_store_i8(record + 32 * t + i, code);
            sum = v_add32(sum, code);
        }
        sums[half] = v_sum(sum);
    }
    /* The numbers: scale, starts of the integer sums (Q6_K's offset 32 has one per 16), sum. */
    uint32_t all = (uint32_t)sums[0] + (uint32_t)sums[1];
    bool halves = offset == 32;
    uint32_t start = 0u - offset * (halves ? (uint32_t)sums[0] : all);
    uint32_t second = halves ? 0u - offset * (uint32_t)sums[1] : 0;
    float sum = d * (float)(int32_t)all;
    uint8_t *numbers = record + 32 * T + 4 * t;
    memcpy(numbers, &d, 4);
    memcpy(numbers + 4 * T, &start, 4);
    memcpy(numbers + 8 * T, &second, 4);
    memcpy(numbers + 12 * T, &sum, 4);
}

static void pack_row(uint8_t *tile, uint32_t T, uint32_t t, const float *x, uint32_t cols,
                     struct cpu_packing packing)
{
    if (packing.is_float) {
        float *numbers = (float *)(void *)tile;
        for (uint32_t k = 0; k < cols; k++)
            numbers[(size_t)k * T + t] = x[k];
        if (cols % 2)
            numbers[(size_t)cols * T + t] = 0;
        return;
    }
    for (uint32_t b = 0; b < cols / CPU_BLOCK; b++)
        pack_codes(tile + (size_t)CPU_RECORD * T * b, T, t, x + (size_t)CPU_BLOCK * b,
                   packing.offset);
}

static void gated_row(float *gate, const float *up, uint32_t n, uint32_t activation)
{
    const vf one = vf_set(1.0f);
    for (uint32_t i = 0; i < n; i += SIMD_LANES) {
        vf g = vf_load(gate + i), z = g;
        if (activation == INFER_ACT_GELU_TANH) {
            /* gelu(g) = g / (1 + e^(-2 y)), y = sqrt(2/pi) (g + 0.044715 g^3) */
            vf cube = vf_mul(vf_mul(g, g), g);
            z = vf_mul(vf_fma(cube, vf_set(0.044715f), g), vf_set(1.5957691216f));
        }
        vf e = vf_exp(vf_sub(vf_zero(), z));
        vf_store(gate + i, vf_mul(vf_div(g, vf_add(one, e)), vf_load(up + i)));
    }
}

static void rope_row(float *x, const float *cosine, const float *sine, uint32_t n_dims,
                     uint32_t style)
{
    uint32_t half = n_dims / 2;
    if (style == INFER_ROPE_PAIRS) {
        for (uint32_t i = 0; i < half; i++) {
            float a = x[2 * i], b = x[2 * i + 1];
            x[2 * i] = a * cosine[i] - b * sine[i];
            x[2 * i + 1] = a * sine[i] + b * cosine[i];
        }
    } else {
        for (uint32_t i = 0; i < half; i++) {
            float a = x[i], b = x[half + i];
            x[i] = a * cosine[i] - b * sine[i];
            x[half + i] = a * sine[i] + b * cosine[i];
        }
    }
}

/* A cached number is never infinite: a masked row's weight of zero must give zero. */
static void f16_row(uint16_t *ret, const float *x, uint32_t n)
{
    float buffer[16];
    uint16_t halves[16];
    for (uint32_t i = 0; i < n; i += SIMD_LANES) {
        uint32_t here = n - i < SIMD_LANES ? n - i : SIMD_LANES;
        vf v;
        if (here == SIMD_LANES) {
            v = vf_load(x + i);
        } else {
            memset(buffer, 0, sizeof buffer);
            memcpy(buffer, x + i, here * sizeof(float));
            v = vf_load(buffer);
        }
        v = vf_min(vf_max(v, vf_set(-65504.0f)), vf_set(65504.0f));
        vf_store_f16(halves, v);
        memcpy(ret + i, halves, here * sizeof(uint16_t));
    }
}

static void turn_halves(uint16_t *a, uint16_t *b, float cosine, float sine)
{
    const vf c = vf_set(cosine), s = vf_set(sine), low = vf_set(-65504.0f), high = vf_set(65504.0f);
    for (uint32_t i = 0; i < CPU_PAGE_TOKENS; i += SIMD_LANES) {
        vf x = vf_load_f16(a + i), y = vf_load_f16(b + i);
        vf first = vf_sub(vf_mul(x, c), vf_mul(y, s));
        vf second = vf_add(vf_mul(x, s), vf_mul(y, c));
        vf_store_f16(a + i, vf_min(vf_max(first, low), high));
        vf_store_f16(b + i, vf_min(vf_max(second, low), high));
    }
}
