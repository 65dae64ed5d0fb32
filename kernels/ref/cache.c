/* cache.c: rotation and rounding of cached keys and values.
 *
 * Rotation. Keys have a few dimensions that stand far out of the others, the same ones in every
 * token: with 4 bits they take the whole scale of their block and leave the rest as zeros. A
 * normalized Hadamard matrix H spreads each of them over all dimensions. H is orthogonal, so
 * (H q) . (H k) = q . k: queries and keys are both turned, and no score changes but by rounding.
 * The sum of p_j H v_j is H times the sum of p_j v_j, and H H = 1: values are turned too, and
 * turned back once per head of the result.
 *
 * Rounding. Q8_0: d = max |x| / 127, and codes of x over d as it is stored. Q4_0: a scale and an
 * offset per 32 numbers. Numbers after the rotation are about normal, and 32 of them seldom reach
 * equally far to both sides: with the offset the codes cover what is there. The offset is one of 8,
 * in the lowest bits of the half number that is the scale, and the scale may be negative, which
 * mirrors it: so it costs no space. Several ranges, each end cut by a little, are tried, and the
 * one that leaves the least squared error is taken: for y = q - middle the best d is sum(x y) /
 * sum(y y), and it takes sum(x y)^2 / sum(y y) off the error. A row is written once and read by
 * every later token, so the search is cheap.
 *
 * How many bits. An error in a key changes a weight a little, and the softmax forgives; an error in
 * a value goes into the result as it is. So of 10 bits for a key's number and a value's, 4.5 go to
 * the key and 5.5 to the value. On normal numbers the mean squared errors are 0.0055 and 0.0015 of
 * the variance; with 5 bits for each (a scale per 16 numbers) both are 0.0041. Perplexity of a
 * model of 46M parameters rises by 0.51% instead of 0.92% on 260 kB of prose, by 0.64% instead of
 * 1.23% on the first 60 kB of it.
 *
 * The order of operations is fixed, nothing is fused: the same bits on every machine. */
#include "ref/cache.h"

#include "inferd/backend.h"
#include "ref/blocks.h"
#include "ref/quant.h"

#include <math.h>
#include <string.h>

#define HALF 65504.0f
/* Ranges under this are zero: their scales are no half numbers, and 1 / d may overflow. */
#define TINY 1e-20f
/* Added and taken away again: rounds |x| < 2^22 to the nearest integer, halves to even. */
#define NEAREST 12582912.0f

bool ref_cache_fits(uint32_t type, uint32_t dim)
{
    switch (type) {
    case INFER_TYPE_F32:
    case INFER_TYPE_F16:
        return true;
    case INFER_TYPE_Q8_0:
    case INFER_TYPE_Q4_0:
        return dim % REF_QK == 0;
    default:
        return false;
    }
}

bool ref_cache_rotates(uint32_t type)
{
    return type == INFER_TYPE_Q4_0;
}

/* ---- fours of numbers ------------------------------------------------------------------------ */

/* Four lanes, which every compiler has an instruction for; each operation is one rounding. */
typedef float f4 __attribute__((vector_size(16)));
typedef int32_t i4 __attribute__((vector_size(16)));

static inline f4 f4_load(const float *x)
{
    f4 v;
    memcpy(&v, x, sizeof v);
    return v;
}

static inline void f4_store(float *x, f4 v)
{
    memcpy(x, &v, sizeof v);
}

static inline f4 f4_set(float x)
{
    return (f4){x, x, x, x};
}

/* a where a < b, else b */
static inline f4 f4_min(f4 a, f4 b)
{
    i4 less = a < b;
    return (f4)(((i4)a & less) | ((i4)b & ~less));
}

static inline f4 f4_max(f4 a, f4 b)
{
    i4 more = a > b;
    return (f4)(((i4)a & more) | ((i4)b & ~more));
}

static inline float f4_sum(f4 v)
{
    return (v[0] + v[2]) + (v[1] + v[3]);
}

/* ---- rotation -------------------------------------------------------------------------------- */

/* Sums and differences of numbers 1 and 2 apart, within each four. */
static f4 rotate_four(f4 x)
{
    const f4 odd = {1, -1, 1, -1}, second = {1, 1, -1, -1};
    x = x * odd + __builtin_shufflevector(x, x, 1, 0, 3, 2);
    return x * second + __builtin_shufflevector(x, x, 2, 3, 0, 1);
}

static void rotate_block(float *x, uint32_t n)
{
    for (uint32_t i = 0; i < n && n >= 4; i += 4)
        f4_store(x + i, rotate_four(f4_load(x + i)));
    for (uint32_t half = 4; half < n; half *= 2) {
        for (uint32_t i = 0; i < n; i += 2 * half) {
            for (uint32_t j = i; j < i + half; j += 4) {
                f4 a = f4_load(x + j), b = f4_load(x + j + half);
                f4_store(x + j, a + b);
                f4_store(x + j + half, a - b);
            }
        }
    }
    float scale = 1.0f / sqrtf((float)n);
    for (uint32_t i = 0; i < n; i++)
        x[i] *= scale;
}

void ref_cache_rotate(float *x, uint32_t n)
{
    uint32_t block = n & (0u - n);
    for (uint32_t i = 0; i < n; i += block)
        rotate_block(x + i, block);
}

/* ---- rounding -------------------------------------------------------------------------------- */

/* Finite: NaN compares false and becomes the lower bound. */
static void cut(const float *x, float *ret, int n)
{
    for (int i = 0; i < n; i++) {
        float low = x[i] > -HALF ? x[i] : -HALF;
        ret[i] = low < HALF ? low : HALF;
    }
}

static void encode_q8_0(const float *values, struct ref_q8_0 *b)
{
    float x[REF_QK], largest = 0;
    cut(values, x, REF_QK);
    for (int i = 0; i < REF_QK; i++)
        largest = fabsf(x[i]) > largest ? fabsf(x[i]) : largest;
    b->d = ref_f32_to_f16(largest / 127);
    float d = ref_f16_to_f32(b->d), inverse = d != 0 ? 1 / d : 0;
    for (int i = 0; i < REF_QK; i++) {
        float q = (x[i] * inverse + NEAREST) - NEAREST;
        q = q > -127 ? q : -127;
        b->qs[i] = (int8_t)(int32_t)(q < 127 ? q : 127);
    }
}

/* The codes 0 .. top of a block of a Q4_0 cache. */
struct codes {
    float top, middle; /* 15 and 7.5, 31 and 15.5 */
    float step;        /* of the offset: 0.5, 1 */
};
static const struct codes codes_of[] = {[REF_KEY] = {15, 7.5f, 0.5f}, [REF_VALUE] = {31, 15.5f, 1}};

/* A scale and an offset, on trial. */
struct trial {
    float inverse; /* 1 / d */
    float offset;  /* middle + s * step */
    uint32_t s;
    float xy, yy; /* sums over the block */
};

/* Codes of four numbers with the trial's scale and offset. */
static inline f4 trial_codes(f4 x, const struct codes *c, const struct trial *t)
{
    f4 q = (x * f4_set(t->inverse) + f4_set(t->offset) + f4_set(NEAREST)) - f4_set(NEAREST);
    return f4_min(f4_max(q, f4_set(0)), f4_set(c->top));
}

static inline void trial_sums(const float *x, const struct codes *c, struct trial *t)
{
    f4 xy = f4_set(0), yy = f4_set(0);
    for (int i = 0; i < REF_QK; i += 4) {
        f4 v = f4_load(x + i), y = trial_codes(v, c, t) - f4_set(t->offset);
        xy += v * y;
        yy += y * y;
    }
    t->xy = f4_sum(xy);
    t->yy = f4_sum(yy);
}

/* All codes from low to high, of which one side may be the longer by 7 steps of the offset (11 to 4
 * of 15 codes): beyond that the longer side decides. */
static inline struct trial trial_of(const struct codes *c, float low, float high)
{
    float inverse = c->top / (high - low), middle = (high + low) / 2;
    float s = fabsf(middle) * inverse / c->step + 0.5f;
    if (s >= 8) {
        s = 7;
        inverse = (c->middle + 7 * c->step) / (middle > 0 ? high : -low);
    }
    uint32_t whole = (uint32_t)(int32_t)s;
    return (struct trial){.inverse = middle > 0 ? -inverse : inverse,
                          .offset = c->middle + (float)whole * c->step,
                          .s = whole};
}

/* The half number next to d that ends in the three bits of s. */
static uint16_t word_of(float d, uint32_t s)
{
    uint16_t best = (uint16_t)s;
    uint32_t bits = ref_f32_to_f16(d);
    float error = fabsf(d - ref_f16_to_f32(best));
    for (int step = -8; step <= 8; step += 8) {
        uint32_t word = ((bits & ~7u) | s) + (uint32_t)step;
        float miss = fabsf(d - ref_f16_to_f32((uint16_t)word));
        if ((word & 0x7c00) != 0x7c00 && word <= 0xffff && miss < error) {
            error = miss;
            best = (uint16_t)word;
        }
    }
    return best;
}

/* The block's word; its codes, as numbers. */
static inline uint16_t encode_codes(const float *x, const struct codes *c, float ret[REF_QK])
{
    /* How much of the lower and of the upper end is kept. */
    static const float keep[][2] = {{1, 1}, {0.97f, 0.9f}, {0.9f, 0.97f}, {0.85f, 0.85f}};
    const int n_keep = sizeof keep / sizeof keep[0];
    struct trial best = {.offset = c->middle};
    float low = x[0], high = x[0], gain = 0;
    for (int i = 1; i < REF_QK; i++) {
        low = x[i] < low ? x[i] : low;
        high = x[i] > high ? x[i] : high;
    }
    /* All alike: the range must not be empty, and 0 is as good an end as any. */
    low = low < 0 ? low : 0;
    high = high > 0 ? high : 0;
    for (int i = 0; i < n_keep && high - low > TINY; i++) {
        struct trial t = trial_of(c, low * keep[i][0], high * keep[i][1]);
        trial_sums(x, c, &t);
        if (t.xy * t.xy > gain * t.yy) {
            gain = t.xy * t.xy / t.yy;
            best = t;
        }
    }
    uint16_t word = word_of(gain > 0 ? best.xy / best.yy : 0, best.s);
    float d = ref_f16_to_f32(word);
    best.inverse = d != 0 ? 1 / d : 0;
    for (int i = 0; i < REF_QK; i += 4)
        f4_store(ret + i, trial_codes(f4_load(x + i), c, &best));
    return word;
}

static void encode_key(const float *values, struct ref_cache_key *b)
{
    float x[REF_QK], codes[REF_QK];
    cut(values, x, REF_QK);
    b->word = encode_codes(x, &codes_of[REF_KEY], codes);
    for (int i = 0; i < 16; i++)
        b->qs[i] = (uint8_t)((uint32_t)(int32_t)codes[i] | (uint32_t)(int32_t)codes[i + 16] << 4);
}

static void encode_value(const float *values, struct ref_cache_value *b)
{
    float x[REF_QK], codes[REF_QK];
    uint32_t high = 0;
    cut(values, x, REF_QK);
    b->word = encode_codes(x, &codes_of[REF_VALUE], codes);
    for (int i = 0; i < 16; i++) {
        uint32_t first = (uint32_t)(int32_t)codes[i], second = (uint32_t)(int32_t)codes[i + 16];
        b->qs[i] = (uint8_t)((first & 15) | (second & 15) << 4);
        high |= first >> 4 << i | second >> 4 << (i + 16);
    }
    for (int i = 0; i < 4; i++)
        b->high[i] = (uint8_t)(high >> 8 * i);
}

static void decode_key(const struct ref_cache_key *b, float *ret)
{
    float d = ref_f16_to_f32(b->word), offset = 7.5f + (float)(b->word & 7) * 0.5f;
    for (int i = 0; i < 16; i++) {
        ret[i] = d * ((float)(b->qs[i] & 15) - offset);
        ret[i + 16] = d * ((float)(b->qs[i] >> 4) - offset);
    }
}

static void decode_value(const struct ref_cache_value *b, float *ret)
{
    float d = ref_f16_to_f32(b->word), offset = 15.5f + (float)(b->word & 7);
    for (int i = 0; i < REF_QK; i++) {
        uint32_t low = i < 16 ? b->qs[i] & 15u : b->qs[i - 16] >> 4;
        uint32_t high = (uint32_t)b->high[i / 8] >> i % 8 & 1;
        ret[i] = d * ((float)(low | high << 4) - offset);
    }
}

/* ---- rows ------------------------------------------------------------------------------------ */

uint64_t ref_cache_bytes(uint32_t type, enum ref_cached what, uint64_t n)
{
    size_t block = what == REF_KEY ? sizeof(struct ref_cache_key) : sizeof(struct ref_cache_value);
    uint64_t bytes;
    if (type != INFER_TYPE_Q4_0)
        return ref_row_bytes(type, n);
    return __builtin_mul_overflow(n / REF_QK, block, &bytes) ? 0 : bytes;
}

void ref_cache_encode(uint32_t type, enum ref_cached what, const float *x, void *ret, uint64_t n)
{
    switch (type) {
    case INFER_TYPE_Q8_0:
        for (uint64_t i = 0; i < n; i += REF_QK)
            encode_q8_0(x + i, (struct ref_q8_0 *)ret + i / REF_QK);
        break;
    case INFER_TYPE_Q4_0:
        for (uint64_t i = 0; i < n; i += REF_QK) {
            if (what == REF_KEY)
                encode_key(x + i, (struct ref_cache_key *)ret + i / REF_QK);
            else
                encode_value(x + i, (struct ref_cache_value *)ret + i / REF_QK);
        }
        break;
    default:
        ref_encode_row(type, x, ret, n);
    }
}

void ref_cache_decode(uint32_t type, enum ref_cached what, const void *bytes, float *ret,
                      uint64_t n)
{
    if (type != INFER_TYPE_Q4_0) {
        ref_decode_row(type, bytes, ret, n);
        return;
    }
    for (uint64_t i = 0; i < n; i += REF_QK) {
        if (what == REF_KEY)
            decode_key((const struct ref_cache_key *)bytes + i / REF_QK, ret + i);
        else
            decode_value((const struct ref_cache_value *)bytes + i / REF_QK, ret + i);
    }
}
