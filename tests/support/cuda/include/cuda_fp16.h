/* cuda_fp16.h: half-precision numbers as CUDA spells them, for the emulation. Every operation
 * rounds once, to nearest, ties to even. */
#ifndef INFERD_TESTS_CUDA_FP16_H
#define INFERD_TESTS_CUDA_FP16_H

#include "cuda_runtime.h"

#ifdef __cplusplus

static inline float emulated_half_to_float(uint16_t h)
{
    /* The exponent moves from bias 15 to 127: times 2^112, which is right for subnormals too. */
    uint32_t magnitude = (uint32_t)(h & 0x7fff) << 13, sign = (uint32_t)(h & 0x8000) << 16;
    float scaled;
    memcpy(&scaled, &magnitude, 4);
    scaled *= 0x1p112f;
    memcpy(&magnitude, &scaled, 4);
    magnitude = (h & 0x7c00) == 0x7c00 ? 0x7f800000u | (uint32_t)(h & 0x3ff) << 13 : magnitude;
    magnitude |= sign;
    memcpy(&scaled, &magnitude, 4);
    return scaled;
}

/* From double, so that one function serves float (exact in double) and the fused operations. */
static inline uint16_t emulated_half_from_double(double value)
{
    uint64_t bits, mantissa, rest, half_way;
    memcpy(&bits, &value, 8);
    uint16_t sign = (uint16_t)(bits >> 48 & 0x8000);
    int exponent = (int)(bits >> 52 & 0x7ff) - 1023, drop = 42;
    mantissa = bits & 0xfffffffffffffull;
    if (exponent == 1024)
        return (uint16_t)(mantissa ? 0x7fff : sign | 0x7c00);
    if (exponent < -25)
        return sign;
    if (exponent > 15)
        return (uint16_t)(sign | 0x7c00);
    mantissa |= 1ull << 52;
    uint32_t biased = 0;
    if (exponent >= -14)
        biased = (uint32_t)(exponent + 14) << 10; /* the hidden one adds the last */
    else
        drop += -14 - exponent;
    uint32_t kept = (uint32_t)(mantissa >> drop);
    rest = mantissa & ((1ull << drop) - 1);
    half_way = 1ull << (drop - 1);
    kept += rest > half_way || (rest == half_way && (kept & 1));
    return (uint16_t)(sign | (biased + kept)); /* a carry out of 65504 gives infinity */
}

struct __half {
    uint16_t bits;
    __half() = default;
    __half(float v) : bits(emulated_half_from_double(v))
    {
    }
    operator float() const
    {
        return emulated_half_to_float(bits);
    }
};
struct __attribute__((aligned(4))) __half2 {
    __half x, y;
    __half2() = default;
    __half2(__half low, __half high) : x(low), y(high)
    {
    }
};
struct __half_raw {
    unsigned short x;
};
struct __half2_raw {
    unsigned short x, y;
};
typedef __half half;
typedef __half2 half2;

static inline __half __ushort_as_half(unsigned short v)
{
    __half h;
    h.bits = v;
    return h;
}
static inline __half __short_as_half(short v)
{
    return __ushort_as_half((unsigned short)v);
}
static inline unsigned short __half_as_ushort(__half h)
{
    return h.bits;
}
static inline short __half_as_short(__half h)
{
    return (short)h.bits;
}
static inline __half __float2half_rn(float v)
{
    return __half(v);
}
static inline __half __float2half(float v)
{
    return __half(v);
}
static inline float __half2float(__half h)
{
    return emulated_half_to_float(h.bits);
}
static inline __half __int2half_rn(int v)
{
    return __ushort_as_half(emulated_half_from_double(v));
}
static inline __half __uint2half_rn(unsigned v)
{
    return __ushort_as_half(emulated_half_from_double(v));
}
static inline __half __ushort2half_rn(unsigned short v)
{
    return __ushort_as_half(emulated_half_from_double(v));
}
static inline __half __short2half_rn(short v)
{
    return __ushort_as_half(emulated_half_from_double(v));
}
static inline __half __double2half(double v)
{
    return __ushort_as_half(emulated_half_from_double(v));
}
static inline __half2 __floats2half2_rn(float low, float high)
{
    return __half2(__half(low), __half(high));
}
static inline __half2 __float22half2_rn(float2 v)
{
    return __floats2half2_rn(v.x, v.y);
}
static inline __half2 __float2half2_rn(float v)
{
    return __floats2half2_rn(v, v);
}
static inline __half2 __halves2half2(__half low, __half high)
{
    return __half2(low, high);
}
static inline __half2 __half2half2(__half v)
{
    return __half2(v, v);
}
static inline __half2 make_half2(__half low, __half high)
{
    return __half2(low, high);
}
static inline float2 __half22float2(__half2 v)
{
    return make_float2(v.x, v.y);
}
static inline float __low2float(__half2 v)
{
    return v.x;
}
static inline float __high2float(__half2 v)
{
    return v.y;
}
static inline __half __low2half(__half2 v)
{
    return v.x;
}
static inline __half __high2half(__half2 v)
{
    return v.y;
}
static inline __half2 __low2half2(__half2 v)
{
    return __half2(v.x, v.x);
}
static inline __half2 __high2half2(__half2 v)
{
    return __half2(v.y, v.y);
}
static inline __half2 __lows2half2(__half2 a, __half2 b)
{
    return __half2(a.x, b.x);
}
static inline __half2 __highs2half2(__half2 a, __half2 b)
{
    return __half2(a.y, b.y);
}
static inline __half2 __lowhigh2highlow(__half2 v)
{
    return __half2(v.y, v.x);
}

/* Sums, products and quotients of 11-bit numbers: rounded to 24 bits first, then to 11, is the same
 * as rounded once. */
static inline __half __hadd(__half a, __half b)
{
    return __half((float)a + (float)b);
}
static inline __half __hsub(__half a, __half b)
{
    return __half((float)a - (float)b);
}
static inline __half __hmul(__half a, __half b)
{
    return __half((float)a * (float)b);
}
static inline __half __hdiv(__half a, __half b)
{
    return __half((float)a / (float)b);
}
/* The product is exact in double; of the sum what is lost decides the last bit (round to odd), and
 * then one rounding is left. */
static inline __half __hfma(__half a, __half b, __half c)
{
    double product = (double)(float)a * (double)(float)b, addend = (double)(float)c;
    volatile double sum = product + addend;
    volatile double back = sum - product;
    volatile double lost = (product - (sum - back)) + (addend - back);
    double value = sum, error = lost;
    if (isfinite(value) && error != 0) {
        uint64_t bits;
        memcpy(&bits, &value, 8);
        if (!(bits & 1)) {
            bits += ((error > 0) == (value > 0)) ? 1 : -1;
            memcpy(&value, &bits, 8);
        }
    }
    return __ushort_as_half(emulated_half_from_double(value));
}
static inline __half __hneg(__half a)
{
    return __ushort_as_half(a.bits ^ 0x8000);
}
static inline __half __habs(__half a)
{
    return __ushort_as_half(a.bits & 0x7fff);
}
static inline __half __hmax(__half a, __half b)
{
    return __half(fmaxf(a, b));
}
static inline __half __hmin(__half a, __half b)
{
    return __half(fminf(a, b));
}
static inline bool __hisnan(__half a)
{
    return (a.bits & 0x7fff) > 0x7c00;
}
#define EMULATED_PAIRWISE(name)                                                                    \
    static inline __half2 name##2(__half2 a, __half2 b)                                            \
    {                                                                                              \
        return __half2(name(a.x, b.x), name(a.y, b.y));                                            \
    }
EMULATED_PAIRWISE(__hadd)
EMULATED_PAIRWISE(__hsub)
EMULATED_PAIRWISE(__hmul)
EMULATED_PAIRWISE(__hmax)
EMULATED_PAIRWISE(__hmin)
#undef EMULATED_PAIRWISE
static inline __half2 __h2div(__half2 a, __half2 b)
{
    return __half2(__hdiv(a.x, b.x), __hdiv(a.y, b.y));
}
static inline __half2 __hfma2(__half2 a, __half2 b, __half2 c)
{
    return __half2(__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y));
}
static inline __half2 __hneg2(__half2 a)
{
    return __half2(__hneg(a.x), __hneg(a.y));
}
static inline __half2 __habs2(__half2 a)
{
    return __half2(__habs(a.x), __habs(a.y));
}
static inline __half2 operator+(__half2 a, __half2 b)
{
    return __hadd2(a, b);
}
static inline __half2 operator-(__half2 a, __half2 b)
{
    return __hsub2(a, b);
}
static inline __half2 operator*(__half2 a, __half2 b)
{
    return __hmul2(a, b);
}

#endif
#endif
