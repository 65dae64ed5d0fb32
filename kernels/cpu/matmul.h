/* matmul.h: out = W x for one to eight rows of x; a template over struct simd words.
 *
 * Integer formats, per weight row, row of x and block b of 32 columns:
 *
 *   out = sum over b of  s_b d_b (sum over k of (w_k - offset) a_k)  +  m_b (d_b sum over k of a_k)
 *
 * where a are x's 8-bit codes, d their scale, s and m the weights' scale and minimum. The inner sum
 * is exact in 32 bits; its accumulator starts at -offset * sum(a), which the packing of x carries,
 * so that unsigned codes need no subtraction. Q6_K does it twice per block, for its two scales.
 *
 * Bytes: the weights once per tile of T rows of x (4.5 to 8.5 bits a weight), and 1.5 bytes of x
 * per column, row and group of weights. Bound: at T = 1 the weights' stream from memory; at T = 8
 * the multiply ports: a 512-bit dot product every cycle on Zen 4, 472 G operations/s at 3.7 GHz, of
 * which Q4_0 leaves 8 of 10 for products (2 for scales), Q6_K 8 of 11.
 * Reached by one core of an EPYC of that kind: T = 8, weights cached: Q4_0 350, Q8_0 357, Q4_K 303,
 * Q5_K 295, Q6_K 299 G operations/s (63 to 76% of the ports), BF16 and F16 118 of 118; T = 1,
 * weights cached: 43 (Q5_K) to 110 (Q8_0) GB/s; T = 1 from memory: 20 to 35 GB/s, where a loop that
 * only reads gets 25 to 38 and two cores together 31 to 34. Models: tests/bench/bench_kernels.c.
 *
 * Order: blocks in ascending order into one float accumulator per output, with the same operations
 * for every T, so that an output's bits do not depend on T. Float formats: even and odd columns
 * in two accumulators, added at the end. */
#include "cpu/cpu.h"

#define JOIN2(a, b) a##_##b
#define JOIN(a, b)  JOIN2(a, b)

/* Left to the processor's own prefetching, a single row reads 10 to 18 GB/s where a plain loop
 * reads 30: the strips' areas are short streams. So narrow tiles ask line by line for what they
 * will need a few strips later, up to the group `reach`, where the worker's run of groups ends;
 * beyond it is another's. */
#define PREFETCH_FAR  CPU_FETCH_AHEAD /* to the second-level cache */
#define PREFETCH_NEAR 1024u           /* from there to the first */

SIMD_INLINE void unpack(uint32_t format, const struct cpu_matrix *w, const uint8_t *codes,
                        const uint8_t *high, vi q[8])
{
    const vi nibble = v_set8(15);
    if (format == CPU_Q8_0) {
        for (int j = 0; j < 8; j++)
            q[j] = v_load(codes + 64 * j);
        return;
    }
    for (int j = 0; j < 4; j++) {
        vi v = v_load(codes + 64 * j);
        q[j] = v_and(v, nibble);
        q[j + 4] = v_and(v_srl16(v, 4), nibble);
    }
    if (format == CPU_Q5_0 || format == CPU_Q5_1 || format == CPU_Q5_K) {
        const vi bit = v_set8(16);
        vi h = v_load(high);
        q[0] = v_or(q[0], v_and(v_sll16(h, 4), bit));
        q[1] = v_or(q[1], v_and(v_sll16(h, 3), bit));
        q[2] = v_or(q[2], v_and(v_sll16(h, 2), bit));
        q[3] = v_or(q[3], v_and(v_sll16(h, 1), bit));
        q[4] = v_or(q[4], v_and(h, bit));
        q[5] = v_or(q[5], v_and(v_srl16(h, 1), bit));
        q[6] = v_or(q[6], v_and(v_srl16(h, 2), bit));
        q[7] = v_or(q[7], v_and(v_srl16(h, 3), bit));
    } else if (format == CPU_Q6_K) {
        const vi bits = v_set8(48);
        for (int i = 0; i < 2; i++) {
            vi h = v_load(high + 64 * i);
            q[4 * i] = v_or(q[4 * i], v_and(v_sll16(h, 4), bits));
            q[4 * i + 1] = v_or(q[4 * i + 1], v_and(v_sll16(h, 2), bits));
            q[4 * i + 2] = v_or(q[4 * i + 2], v_and(h, bits));
            q[4 * i + 3] = v_or(q[4 * i + 3], v_and(v_srl16(h, 2), bits));
        }
    } else if (format == CPU_C4_0 || format == CPU_C4_B || format == CPU_C4_K) {
        for (int j = 0; j < 8; j++)
            q[j] = v_lookup(w->codebook, q[j]);
    }
}

/* The scales of one block: s[0], for Q6_K also s[1], and m where the format has minima. */
SIMD_INLINE void load_scales(uint32_t format, const uint8_t *scales, vf d, vf dmin, vf s[2], vf *m)
{
    const uint32_t half = 2;
    switch (format) {
    case CPU_Q4_1:
    case CPU_Q5_1:
        s[0] = vf_load_f16(scales);
        *m = vf_load_f16(scales + CPU_GROUP * half);
        break;
    case CPU_Q4_K:
    case CPU_Q5_K:
        s[0] = vf_mul(vf_load_u8(scales), d);
        *m = vf_mul(vf_load_u8(scales + CPU_GROUP), dmin);
        break;
    case CPU_Q6_K:
        s[0] = vf_mul(vf_load_i8(scales), d);
        s[1] = vf_mul(vf_load_i8(scales + CPU_GROUP), d);
        break;
    case CPU_C4_K:
        s[0] = vf_mul(vf_load_i8(scales), d);
        break;
    case CPU_C4_B:
        s[0] = vf_load_bf16(scales);
        break;
    default:
        s[0] = vf_load_f16(scales);
        break;
    }
}

SIMD_INLINE vi start_at(const uint8_t *numbers, uint32_t t)
{
    int32_t start;
    memcpy(&start, numbers + 4 * t, sizeof start);
    return v_set32(start);
}

SIMD_INLINE vf number_at(const uint8_t *numbers, uint32_t t)
{
    float number;
    memcpy(&number, numbers + 4 * t, sizeof number);
    return vf_set(number);
}

/* One block of one row of x: acc + its share. */
SIMD_INLINE vf add_block(uint32_t format, uint32_t T, uint32_t t, const vi q[8], const vf s[2],
                         vf m, const uint8_t *record, vf acc)
{
    const bool wide =
        format == CPU_Q8_0 || format == CPU_C4_0 || format == CPU_C4_B || format == CPU_C4_K;
    const bool minima =
        format == CPU_Q4_1 || format == CPU_Q5_1 || format == CPU_Q4_K || format == CPU_Q5_K;
    const bool start = !minima && (!wide || SIMD_OFFSETS);
    const uint8_t *codes = record + 32 * t, *numbers = record + 32 * T;
    vf d = number_at(numbers, t);
    vi even = start ? start_at(numbers + 4 * T, t) : v_zero();
    vi odd = format == CPU_Q6_K ? start_at(numbers + 8 * T, t) : v_zero();

    if (format == CPU_Q6_K) {
        for (int j = 0; j < 4; j++) {
            even = v_dot6(even, q[j], v_spread(codes + 4 * j));
            odd = v_dot6(odd, q[j + 4], v_spread(codes + 4 * j + 16));
        }
        vf p = vf_mul(vf_from_i32(even), s[0]);
        p = vf_fma(vf_from_i32(odd), s[1], p);
        return vf_fma(p, d, acc);
    }
    for (int j = 0; j < 8; j++) {
        vi x = v_spread(codes + 4 * j);
        if (T > 2 || j % 2 == 0) /* two chains where there are few rows to overlap */
            even = wide ? v_dot8(even, q[j], x) : v_dot6(even, q[j], x);
        else
            odd = wide ? v_dot8(odd, q[j], x) : v_dot6(odd, q[j], x);
    }
    if (T <= 2)
        even = v_add32(even, odd);
    acc = vf_fma(vf_mul(vf_from_i32(even), s[0]), d, acc);
    return minima ? vf_fma(m, number_at(numbers + 12 * T, t), acc) : acc;
}

/* Asks for the lines from `at` on, up to `end`. */
SIMD_INLINE void fetch(const uint8_t *at, size_t bytes, const uint8_t *end)
{
    if (at + bytes <= end)
        for (size_t i = 0; i < bytes; i += 64)
            __builtin_prefetch(at + i, 0, 2);
}

/* One strip of up to 8 blocks for T rows of x. */
SIMD_INLINE void add_strip(uint32_t format, uint32_t T, const struct cpu_matrix *w,
                           const uint8_t *strip, uint32_t lane, uint32_t n_blocks,
                           const uint8_t *record, const uint8_t *end, vf acc[CPU_TILE])
{
    const struct cpu_layout l = cpu_layout_of(format);
    const uint32_t ahead = cpu_strip_bytes(l) / 8 / 64 * 64 + 64;
    const uint8_t *codes = strip + 4 * lane, *high = codes + 8 * l.codes;
    const uint8_t *scales = strip + 8 * (l.codes + l.high) + (l.supers ? lane : 2 * lane);
    const uint8_t *supers = strip + 8 * (l.codes + l.high + l.scales) + 2 * lane;
    const uint8_t *next = strip + PREFETCH_FAR;
    vf d = l.supers ? vf_load_f16(supers) : vf_zero();
    vf dmin = l.supers == 64 ? vf_load_f16(supers + 32) : vf_zero();

    for (uint32_t b = 0; b < n_blocks; b++) {
        vi q[8];
        vf s[2], m = vf_zero();
        if (lane == 0) {
            fetch(next, ahead, end);
            for (uint32_t i = 0; i < ahead; i += 64)
                __builtin_prefetch(next + i - (PREFETCH_FAR - PREFETCH_NEAR), 0, 3);
            next += ahead;
        }
        unpack(format, w, codes, high, q);
        load_scales(format, scales, d, dmin, s, &m);
        for (uint32_t t = 0; t < T; t++)
            acc[t] = add_block(format, T, t, q, s, m, record, acc[t]);
        codes += l.codes;
        high += l.high;
        scales += l.scales;
        record += (size_t)CPU_RECORD * T;
    }
}

SIMD_INLINE void product(uint32_t format, uint32_t T, const struct cpu_matrix *w, uint32_t first,
                         uint32_t last, uint32_t reach, const uint8_t *x, float *out, size_t stride)
{
    const uint32_t strip_bytes = cpu_strip_bytes(cpu_layout_of(format));
    const uint32_t n_strips = (w->n_blocks + 7) / 8;
    const uint8_t *end = w->data + (size_t)reach * w->group_bytes;

    for (uint32_t g = first; g < last; g++) {
        const uint8_t *group = w->data + (size_t)g * w->group_bytes;
        for (uint32_t lane = 0; lane < CPU_GROUP; lane += SIMD_LANES) {
            vf acc[CPU_TILE];
            for (uint32_t t = 0; t < T; t++)
                acc[t] = vf_zero();
            for (uint32_t i = 0; i < n_strips; i++) {
                uint32_t n = w->n_blocks - 8 * i < 8 ? w->n_blocks - 8 * i : 8;
                add_strip(format, T, w, group + (size_t)strip_bytes * i, lane, n,
                          x + (size_t)8 * CPU_RECORD * T * i, end, acc);
            }
            for (uint32_t t = 0; t < T; t++)
                vf_store(out + t * stride + (size_t)CPU_GROUP * (g - first) + lane, acc[t]);
        }
    }
}

/* The weights of one pair of columns. */
SIMD_INLINE void load_pair(uint32_t format, const uint8_t *pair, uint32_t lane, vf *even, vf *odd)
{
    if (format == CPU_BF16) {
        vi both = v_load(pair + 4 * lane);
        *even = vf_bf16_low(both);
        *odd = vf_bf16_high(both);
    } else if (format == CPU_F16) {
        *even = vf_load_f16(pair + 2 * lane);
        *odd = vf_load_f16(pair + 32 + 2 * lane);
    } else {
        *even = vf_load((const float *)(const void *)(pair + 4 * lane));
        *odd = vf_load((const float *)(const void *)(pair + 64 + 4 * lane));
    }
}

SIMD_INLINE void product_float(uint32_t format, uint32_t T, const struct cpu_matrix *w,
                               uint32_t first, uint32_t last, const uint8_t *x, float *out,
                               size_t stride)
{
    const uint32_t pair_bytes = format == CPU_F32 ? 128 : 64;
    for (uint32_t g = first; g < last; g++) {
        const uint8_t *group = w->data + (size_t)g * w->group_bytes;
        for (uint32_t lane = 0; lane < CPU_GROUP; lane += SIMD_LANES) {
            vf even[CPU_TILE], odd[CPU_TILE];
            for (uint32_t t = 0; t < T; t++)
                even[t] = odd[t] = vf_zero();
            for (uint32_t p = 0; p < w->n_blocks; p++) {
                const uint8_t *numbers = x + (size_t)8 * T * p;
                vf a, b;
                load_pair(format, group + (size_t)pair_bytes * p, lane, &a, &b);
                for (uint32_t t = 0; t < T; t++) {
                    even[t] = vf_fma(a, number_at(numbers, t), even[t]);
                    odd[t] = vf_fma(b, number_at(numbers + 4 * T, t), odd[t]);
                }
            }
            for (uint32_t t = 0; t < T; t++)
                vf_store(out + t * stride + (size_t)CPU_GROUP * (g - first) + lane,
                         vf_add(even[t], odd[t]));
        }
    }
}

#define ONE(format, T)                                                                             \
    static void format##_by_##T(const struct cpu_matrix *w, uint32_t first, uint32_t last,         \
                                uint32_t reach, const uint8_t *x, float *out, size_t stride)       \
    {                                                                                              \
        if (format >= CPU_F16)                                                                     \
            product_float(format, T, w, first, last, x, out, stride);                              \
        else                                                                                       \
            product(format, T, w, first, last, reach, x, out, stride);                             \
    }
#if SIMD_TILE == 8
#define FORMAT(format) ONE(format, 1) ONE(format, 2) ONE(format, 4) ONE(format, 8)
#define ROW(format)    [format] = {format##_by_1, format##_by_2, format##_by_4, format##_by_8}
#else
#define FORMAT(format) ONE(format, 1) ONE(format, 2) ONE(format, 4)
#define ROW(format)    [format] = {format##_by_1, format##_by_2, format##_by_4}
#endif

FORMAT(CPU_Q4_0)
FORMAT(CPU_Q4_1)
FORMAT(CPU_Q5_0)
FORMAT(CPU_Q5_1)
FORMAT(CPU_Q8_0)
FORMAT(CPU_Q4_K)
FORMAT(CPU_Q5_K)
FORMAT(CPU_Q6_K)
FORMAT(CPU_C4_0)
FORMAT(CPU_C4_B)
FORMAT(CPU_C4_K)
FORMAT(CPU_F16)
FORMAT(CPU_BF16)
FORMAT(CPU_F32)

const cpu_matmul JOIN(cpu_matmul, SIMD)[CPU_FORMATS][4] = {
    ROW(CPU_Q4_0), ROW(CPU_Q4_1), ROW(CPU_Q5_0), ROW(CPU_Q5_1), ROW(CPU_Q8_0),
    ROW(CPU_Q4_K), ROW(CPU_Q5_K), ROW(CPU_Q6_K), ROW(CPU_C4_0), ROW(CPU_C4_B),
    ROW(CPU_C4_K), ROW(CPU_F16),  ROW(CPU_BF16), ROW(CPU_F32),
};
