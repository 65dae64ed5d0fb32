/* simd_avx512.h: the templates' vector words on 512 bits: AVX-512 F, BW, DQ, VL, VNNI. */
#ifndef INFERD_KERNELS_CPU_SIMD_H
#define INFERD_KERNELS_CPU_SIMD_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define SIMD         avx512
#define SIMD_LANES   16u
#define SIMD_TILE    8u
#define SIMD_OFFSETS 1 /* 8-bit codes are multiplied unsigned and corrected by their offset */
#define SIMD_INLINE  static inline __attribute__((always_inline))

typedef __m512 vf;
typedef __m512i vi;

SIMD_INLINE vi v_load(const void *p)
{
    return _mm512_loadu_si512(p);
}
SIMD_INLINE vi v_zero(void)
{
    return _mm512_setzero_si512();
}
SIMD_INLINE vi v_set32(int32_t x)
{
    return _mm512_set1_epi32(x);
}
SIMD_INLINE vi v_set8(uint8_t x)
{
    return _mm512_set1_epi8((char)x);
}
SIMD_INLINE vi v_and(vi a, vi b)
{
    return _mm512_and_si512(a, b);
}
SIMD_INLINE vi v_or(vi a, vi b)
{
    return _mm512_or_si512(a, b);
}
SIMD_INLINE vi v_add32(vi a, vi b)
{
    return _mm512_add_epi32(a, b);
}
#define v_sll16(v, n) _mm512_slli_epi16(v, n)
#define v_srl16(v, n) _mm512_srli_epi16(v, n)
/* table[i] for each byte i of 0 .. 15 */
SIMD_INLINE vi v_lookup(const uint8_t table[16], vi i)
{
    __m128i t = _mm_loadu_si128((const __m128i *)table);
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(t), i);
}
/* Four codes of x, to every lane. */
SIMD_INLINE vi v_spread(const uint8_t *x)
{
    int32_t four;
    memcpy(&four, x, sizeof four);
    return _mm512_set1_epi32(four);
}
/* acc + sum of four products, w unsigned up to 63 (dot6) or 255 - 128 (dot8, corrected). */
SIMD_INLINE vi v_dot6(vi acc, vi w, vi x)
{
    return _mm512_dpbusd_epi32(acc, w, x);
}
SIMD_INLINE vi v_dot8(vi acc, vi w, vi x)
{
    return _mm512_dpbusd_epi32(acc, w, x);
}

SIMD_INLINE vf vf_zero(void)
{
    return _mm512_setzero_ps();
}
SIMD_INLINE vf vf_set(float x)
{
    return _mm512_set1_ps(x);
}
SIMD_INLINE vf vf_load(const float *p)
{
    return _mm512_loadu_ps(p);
}
SIMD_INLINE void vf_store(float *p, vf v)
{
    _mm512_storeu_ps(p, v);
}
SIMD_INLINE vf vf_add(vf a, vf b)
{
    return _mm512_add_ps(a, b);
}
SIMD_INLINE vf vf_sub(vf a, vf b)
{
    return _mm512_sub_ps(a, b);
}
SIMD_INLINE vf vf_mul(vf a, vf b)
{
    return _mm512_mul_ps(a, b);
}
SIMD_INLINE vf vf_div(vf a, vf b)
{
    return _mm512_div_ps(a, b);
}
SIMD_INLINE vf vf_max(vf a, vf b)
{
    return _mm512_max_ps(a, b);
}
SIMD_INLINE vf vf_min(vf a, vf b)
{
    return _mm512_min_ps(a, b);
}
SIMD_INLINE vf vf_fma(vf a, vf b, vf c)
{
    return _mm512_fmadd_ps(a, b, c);
}
SIMD_INLINE vf vf_abs(vf a)
{
    return _mm512_abs_ps(a);
}
SIMD_INLINE vf vf_from_i32(vi v)
{
    return _mm512_cvtepi32_ps(v);
}
SIMD_INLINE vf vf_load_f16(const void *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
SIMD_INLINE vf vf_load_bf16(const void *p)
{
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
/* The low and the high bfloat16 of each lane. */
SIMD_INLINE vf vf_bf16_low(vi v)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(v, 16));
}
SIMD_INLINE vf vf_bf16_high(vi v)
{
    return _mm512_castsi512_ps(_mm512_and_si512(v, _mm512_set1_epi32((int)0xffff0000u)));
}
SIMD_INLINE vf vf_load_i8(const void *p)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
SIMD_INLINE vf vf_load_u8(const void *p)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
/* Each byte's low nibble and high nibble, with a fifth bit: for lane l bit first + l of the first
 * and of the second 16 of `fifth`. */
SIMD_INLINE void vf_load_fives(const void *p, const uint8_t *fifth, uint32_t first, vf *low,
                               vf *high)
{
    __m512i b = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p));
    __m512i sixteen = _mm512_set1_epi32(16);
    __m512i l = _mm512_and_si512(b, _mm512_set1_epi32(15)), h = _mm512_srli_epi32(b, 4);
    uint16_t bits[2];
    memcpy(bits, fifth, sizeof bits);
    *low = _mm512_cvtepi32_ps(_mm512_mask_or_epi32(l, bits[0], l, sixteen));
    *high = _mm512_cvtepi32_ps(_mm512_mask_or_epi32(h, bits[1], h, sixteen));
}
/* The lowest three bits of each 16-bit word. */
SIMD_INLINE vf vf_load_bits3(const void *p)
{
    __m512i w = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_cvtepi32_ps(_mm512_and_si512(w, _mm512_set1_epi32(7)));
}
SIMD_INLINE void vf_store_f16(uint16_t *p, vf v)
{
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
SIMD_INLINE vi vf_round(vf v)
{
    return _mm512_cvtps_epi32(v);
}
SIMD_INLINE void v_store_i8(uint8_t *p, vi v)
{
    _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(v));
}
SIMD_INLINE int32_t v_sum(vi v)
{
    return _mm512_reduce_add_epi32(v);
}
SIMD_INLINE float vf_sum(vf v)
{
    return _mm512_reduce_add_ps(v);
}
SIMD_INLINE float vf_largest(vf v)
{
    return _mm512_reduce_max_ps(v);
}
/* Lane i keeps v where first <= base + i < limit, and is `other` elsewhere. */
SIMD_INLINE vf vf_within(vf v, uint32_t base, uint32_t first, uint32_t limit, float other)
{
    __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512i at = _mm512_add_epi32(lane, _mm512_set1_epi32((int)base));
    __mmask16 keep = _mm512_cmp_epu32_mask(at, _mm512_set1_epi32((int)first), _MM_CMPINT_NLT) &
                     _mm512_cmp_epu32_mask(at, _mm512_set1_epi32((int)limit), _MM_CMPINT_LT);
    return _mm512_mask_blend_ps(keep, _mm512_set1_ps(other), v);
}
/* v * 2^n, n as rounded numbers of -126 .. 127 */
SIMD_INLINE vf vf_scale2(vf v, vf n)
{
    return _mm512_scalef_ps(v, n);
}
SIMD_INLINE vf vf_nearest(vf v)
{
    return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
/* v where a >= b, else 0 */
SIMD_INLINE vf vf_keep_ge(vf v, vf a, vf b)
{
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, b, _CMP_GE_OQ), v);
}

#endif
