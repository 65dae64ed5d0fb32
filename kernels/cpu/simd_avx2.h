/* simd_avx2.h: the templates' vector words on 256 bits: AVX2, FMA, F16C. */
#ifndef INFERD_KERNELS_CPU_SIMD_H
#define INFERD_KERNELS_CPU_SIMD_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define SIMD         avx2
#define SIMD_LANES   8u
#define SIMD_TILE    4u
#define SIMD_OFFSETS 0 /* 8-bit codes are multiplied signed: 255 * 127 * 2 leaves 16 bits */
#define SIMD_INLINE  static inline __attribute__((always_inline))

typedef __m256 vf;
typedef __m256i vi;

SIMD_INLINE vi v_load(const void *p)
{
    return _mm256_loadu_si256((const __m256i *)p);
}
SIMD_INLINE vi v_zero(void)
{
    return _mm256_setzero_si256();
}
SIMD_INLINE vi v_set32(int32_t x)
{
    return _mm256_set1_epi32(x);
}
SIMD_INLINE vi v_set8(uint8_t x)
{
    return _mm256_set1_epi8((char)x);
}
SIMD_INLINE vi v_and(vi a, vi b)
{
    return _mm256_and_si256(a, b);
}
SIMD_INLINE vi v_or(vi a, vi b)
{
    return _mm256_or_si256(a, b);
}
SIMD_INLINE vi v_add32(vi a, vi b)
{
    return _mm256_add_epi32(a, b);
}
#define v_sll16(v, n) _mm256_slli_epi16(v, n)
#define v_srl16(v, n) _mm256_srli_epi16(v, n)
SIMD_INLINE vi v_lookup(const uint8_t table[16], vi i)
{
    __m128i t = _mm_loadu_si128((const __m128i *)table);
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(t), i);
}
SIMD_INLINE vi v_spread(const uint8_t *x)
{
    int32_t four;
    memcpy(&four, x, sizeof four);
    return _mm256_set1_epi32(four);
}
/* w up to 63: a pair of products stays under 63 * 127 * 2 = 16002. */
SIMD_INLINE vi v_dot6(vi acc, vi w, vi x)
{
    __m256i pairs = _mm256_maddubs_epi16(w, x);
    return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
/* w - 128 times x, as |w| times x with w's sign: at most 128 * 127 * 2 = 32512. */
SIMD_INLINE vi v_dot8(vi acc, vi w, vi x)
{
    __m256i s = _mm256_xor_si256(w, _mm256_set1_epi8((char)0x80));
    __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(s), _mm256_sign_epi8(x, s));
    return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

SIMD_INLINE vf vf_zero(void)
{
    return _mm256_setzero_ps();
}
SIMD_INLINE vf vf_set(float x)
{
    return _mm256_set1_ps(x);
}
SIMD_INLINE vf vf_load(const float *p)
{
    return _mm256_loadu_ps(p);
}
SIMD_INLINE void vf_store(float *p, vf v)
{
    _mm256_storeu_ps(p, v);
}
SIMD_INLINE vf vf_add(vf a, vf b)
{
    return _mm256_add_ps(a, b);
}
SIMD_INLINE vf vf_sub(vf a, vf b)
{
    return _mm256_sub_ps(a, b);
}
SIMD_INLINE vf vf_mul(vf a, vf b)
{
    return _mm256_mul_ps(a, b);
}
SIMD_INLINE vf vf_div(vf a, vf b)
{
    return _mm256_div_ps(a, b);
}
SIMD_INLINE vf vf_max(vf a, vf b)
{
    return _mm256_max_ps(a, b);
}
SIMD_INLINE vf vf_min(vf a, vf b)
{
    return _mm256_min_ps(a, b);
}
SIMD_INLINE vf vf_fma(vf a, vf b, vf c)
{
    return _mm256_fmadd_ps(a, b, c);
}
SIMD_INLINE vf vf_abs(vf a)
{
    return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a);
}
SIMD_INLINE vf vf_from_i32(vi v)
{
    return _mm256_cvtepi32_ps(v);
}
SIMD_INLINE vf vf_load_f16(const void *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}
SIMD_INLINE vf vf_load_bf16(const void *p)
{
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
SIMD_INLINE vf vf_bf16_low(vi v)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(v, 16));
}
SIMD_INLINE vf vf_bf16_high(vi v)
{
    return _mm256_castsi256_ps(_mm256_and_si256(v, _mm256_set1_epi32((int)0xffff0000u)));
}
SIMD_INLINE vf vf_load_i8(const void *p)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}
SIMD_INLINE vf vf_load_u8(const void *p)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}
SIMD_INLINE void vf_load_fives(const void *p, const uint8_t *fifth, uint32_t first, vf *low,
                               vf *high)
{
    __m256i b = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p));
    __m256i l = _mm256_and_si256(b, _mm256_set1_epi32(15)), h = _mm256_srli_epi32(b, 4);
    __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), sixteen = _mm256_set1_epi32(16);
    __m256i shift = _mm256_add_epi32(lane, _mm256_set1_epi32((int)first));
    uint16_t bits[2];
    memcpy(bits, fifth, sizeof bits);
    __m256i x = _mm256_srlv_epi32(_mm256_set1_epi32(bits[0] << 4), shift);
    __m256i y = _mm256_srlv_epi32(_mm256_set1_epi32(bits[1] << 4), shift);
    *low = _mm256_cvtepi32_ps(_mm256_or_si256(l, _mm256_and_si256(x, sixteen)));
    *high = _mm256_cvtepi32_ps(_mm256_or_si256(h, _mm256_and_si256(y, sixteen)));
}
SIMD_INLINE vf vf_load_bits3(const void *p)
{
    __m256i w = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_cvtepi32_ps(_mm256_and_si256(w, _mm256_set1_epi32(7)));
}
SIMD_INLINE void vf_store_f16(uint16_t *p, vf v)
{
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
SIMD_INLINE vi vf_round(vf v)
{
    return _mm256_cvtps_epi32(v);
}
SIMD_INLINE void v_store_i8(uint8_t *p, vi v)
{
    __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    _mm_storel_epi64((__m128i *)p, _mm_packs_epi16(words, words));
}
SIMD_INLINE int32_t v_sum(vi v)
{
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1));
    return _mm_cvtsi128_si32(s);
}
SIMD_INLINE float vf_sum(vf v)
{
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    s = _mm_add_ss(s, _mm_movehdup_ps(s));
    return _mm_cvtss_f32(s);
}
SIMD_INLINE float vf_largest(vf v)
{
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    s = _mm_max_ss(s, _mm_movehdup_ps(s));
    return _mm_cvtss_f32(s);
}
SIMD_INLINE vf vf_within(vf v, uint32_t base, uint32_t first, uint32_t limit, float other)
{
    __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    __m256i at = _mm256_add_epi32(lane, _mm256_set1_epi32((int)base));
    /* Positions are far under 2^31, so the signed comparison serves. */
    __m256i below = _mm256_cmpgt_epi32(_mm256_set1_epi32((int)first), at);
    __m256i inside = _mm256_cmpgt_epi32(_mm256_set1_epi32((int)limit), at);
    __m256i keep = _mm256_andnot_si256(below, inside);
    return _mm256_blendv_ps(_mm256_set1_ps(other), v, _mm256_castsi256_ps(keep));
}
SIMD_INLINE vf vf_scale2(vf v, vf n)
{
    __m256i bits = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
    __m256i one = _mm256_set1_epi32(127 << 23);
    return _mm256_mul_ps(v, _mm256_castsi256_ps(_mm256_add_epi32(bits, one)));
}
SIMD_INLINE vf vf_nearest(vf v)
{
    return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
SIMD_INLINE vf vf_keep_ge(vf v, vf a, vf b)
{
    return _mm256_and_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ), v);
}

#endif
