/* simd_plain.h: the templates' vector words as loops over four lanes, for any processor.
 *
 * Numbers are decoded by the reference's functions. There is no fused multiply-add: products and
 * sums are rounded one by one. */
#ifndef INFERD_KERNELS_CPU_SIMD_H
#define INFERD_KERNELS_CPU_SIMD_H

#include "ref/quant.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

#define SIMD         plain
#define SIMD_LANES   4u
#define SIMD_TILE    4u
#define SIMD_OFFSETS 0
#define SIMD_INLINE  static inline __attribute__((always_inline))

typedef float vf __attribute__((vector_size(16)));
typedef int32_t vi __attribute__((vector_size(16)));
typedef uint16_t v16 __attribute__((vector_size(16)));

SIMD_INLINE vi v_load(const void *p)
{
    vi v;
    memcpy(&v, p, sizeof v);
    return v;
}
SIMD_INLINE vi v_zero(void)
{
    return (vi){0};
}
SIMD_INLINE vi v_set32(int32_t x)
{
    return (vi){x, x, x, x};
}
SIMD_INLINE vi v_set8(uint8_t x)
{
    return v_set32((int32_t)(x * 0x01010101u));
}
SIMD_INLINE vi v_and(vi a, vi b)
{
    return a & b;
}
SIMD_INLINE vi v_or(vi a, vi b)
{
    return a | b;
}
SIMD_INLINE vi v_add32(vi a, vi b)
{
    return a + b;
}
#define v_sll16(v, n) ((vi)((v16)(v) << (n)))
#define v_srl16(v, n) ((vi)((v16)(v) >> (n)))
SIMD_INLINE vi v_lookup(const uint8_t table[16], vi i)
{
    uint8_t bytes[16];
    memcpy(bytes, &i, sizeof bytes);
    for (int k = 0; k < 16; k++)
        bytes[k] = table[bytes[k] & 15];
    return v_load(bytes);
}
SIMD_INLINE vi v_spread(const uint8_t *x)
{
    int32_t four;
    memcpy(&four, x, sizeof four);
    return v_set32(four);
}
/* w unsigned less `bias`, x signed. */
SIMD_INLINE vi v_dot(vi acc, vi w, vi x, int bias)
{
    uint8_t wb[16];
    int8_t xb[16];
    memcpy(wb, &w, sizeof wb);
    memcpy(xb, &x, sizeof xb);
    for (int lane = 0; lane < 4; lane++) {
        int sum = 0;
        for (int c = 4 * lane; c < 4 * lane + 4; c++)
            sum += (wb[c] - bias) * xb[c];
        acc[lane] += sum;
    }
    return acc;
}
SIMD_INLINE vi v_dot6(vi acc, vi w, vi x)
{
    return v_dot(acc, w, x, 0);
}
SIMD_INLINE vi v_dot8(vi acc, vi w, vi x)
{
    return v_dot(acc, w, x, 128);
}

SIMD_INLINE vf vf_set(float x)
{
    return (vf){x, x, x, x};
}
SIMD_INLINE vf vf_zero(void)
{
    return vf_set(0);
}
SIMD_INLINE vf vf_load(const float *p)
{
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}
SIMD_INLINE void vf_store(float *p, vf v)
{
    memcpy(p, &v, sizeof v);
}
SIMD_INLINE vf vf_add(vf a, vf b)
{
    return a + b;
}
SIMD_INLINE vf vf_sub(vf a, vf b)
{
    return a - b;
}
SIMD_INLINE vf vf_mul(vf a, vf b)
{
    return a * b;
}
SIMD_INLINE vf vf_div(vf a, vf b)
{
    return a / b;
}
SIMD_INLINE vf vf_fma(vf a, vf b, vf c)
{
    return a * b + c;
}
SIMD_INLINE vf vf_max(vf a, vf b)
{
    vi more = a > b;
    return (vf)(((vi)a & more) | ((vi)b & ~more));
}
SIMD_INLINE vf vf_min(vf a, vf b)
{
    vi less = a < b;
    return (vf)(((vi)a & less) | ((vi)b & ~less));
}
SIMD_INLINE vf vf_abs(vf a)
{
    return (vf)((vi)a & v_set32(0x7fffffff));
}
SIMD_INLINE vf vf_from_i32(vi v)
{
    return (vf){(float)v[0], (float)v[1], (float)v[2], (float)v[3]};
}
SIMD_INLINE vf vf_load_f16(const void *p)
{
    uint16_t h[4];
    memcpy(h, p, sizeof h);
    return (vf){ref_f16_to_f32(h[0]), ref_f16_to_f32(h[1]), ref_f16_to_f32(h[2]),
                ref_f16_to_f32(h[3])};
}
SIMD_INLINE vf vf_load_bf16(const void *p)
{
    uint16_t h[4];
    memcpy(h, p, sizeof h);
    return (vf){ref_bf16_to_f32(h[0]), ref_bf16_to_f32(h[1]), ref_bf16_to_f32(h[2]),
                ref_bf16_to_f32(h[3])};
}
SIMD_INLINE vf vf_bf16_low(vi v)
{
    return (vf)(v << 16);
}
SIMD_INLINE vf vf_bf16_high(vi v)
{
    return (vf)(v & v_set32((int32_t)0xffff0000u));
}
SIMD_INLINE vf vf_load_i8(const void *p)
{
    const int8_t *b = p;
    return (vf){b[0], b[1], b[2], b[3]};
}
SIMD_INLINE vf vf_load_u8(const void *p)
{
    const uint8_t *b = p;
    return (vf){b[0], b[1], b[2], b[3]};
}
SIMD_INLINE void vf_load_fives(const void *p, const uint8_t *fifth, uint32_t first, vf *low,
                               vf *high)
{
    const uint8_t *b = p;
    uint16_t bits[2];
    memcpy(bits, fifth, sizeof bits);
    for (uint32_t i = 0; i < SIMD_LANES; i++) {
        (*low)[i] = (float)((b[i] & 15) | (bits[0] >> (first + i) & 1) << 4);
        (*high)[i] = (float)(b[i] >> 4 | (bits[1] >> (first + i) & 1) << 4);
    }
}
SIMD_INLINE vf vf_load_bits3(const void *p)
{
    uint16_t h[4];
    memcpy(h, p, sizeof h);
    return (vf){h[0] & 7, h[1] & 7, h[2] & 7, h[3] & 7};
}
SIMD_INLINE void vf_store_f16(uint16_t *p, vf v)
{
    for (int i = 0; i < 4; i++)
        p[i] = ref_f32_to_f16(v[i]);
}
SIMD_INLINE vf vf_nearest(vf v)
{
    return (vf){rintf(v[0]), rintf(v[1]), rintf(v[2]), rintf(v[3])};
}
/* Numbers that do not fit, NaN too, become the smallest: as the processors' own instruction. */
SIMD_INLINE vi vf_round(vf v)
{
    vi r;
    for (int i = 0; i < 4; i++)
        r[i] = fabsf(v[i]) < 0x1p30f ? (int32_t)rintf(v[i]) : INT32_MIN;
    return r;
}
SIMD_INLINE void v_store_i8(uint8_t *p, vi v)
{
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)v[i];
}
SIMD_INLINE int32_t v_sum(vi v)
{
    return (int32_t)((uint32_t)v[0] + (uint32_t)v[1] + (uint32_t)v[2] + (uint32_t)v[3]);
}
SIMD_INLINE float vf_sum(vf v)
{
    return (v[0] + v[2]) + (v[1] + v[3]);
}
SIMD_INLINE float vf_largest(vf v)
{
    float a = v[0] > v[1] ? v[0] : v[1];
    float b = v[2] > v[3] ? v[2] : v[3];
    return a > b ? a : b;
}
SIMD_INLINE vf vf_within(vf v, uint32_t base, uint32_t first, uint32_t limit, float other)
{
    for (uint32_t i = 0; i < 4; i++)
        if (base + i < first || base + i >= limit)
            v[i] = other;
    return v;
}
SIMD_INLINE vf vf_scale2(vf v, vf n)
{
    vi bits = vf_round(n) * (1 << 23) + v_set32(127 << 23);
    return v * (vf)bits;
}
SIMD_INLINE vf vf_keep_ge(vf v, vf a, vf b)
{
    return (vf)((vi)v & (a >= b));
}

#endif
