/* turn.cuh: a head of a row between the products of QKV and the cache, by a warp: its norm, its
 * rotation, its rounding, its slot in a page. In one place, because cache.cu does it for a step's
 * rows in a kernel of its own and attend_narrow.cuh where the row is attended to, and both must
 * give the same bits.
 *
 * A row's heads are numbered: its queries, then its keys, then its values. */
#ifndef INFERD_KERNELS_CUDA_TURN_CUH
#define INFERD_KERNELS_CUDA_TURN_CUH

#include "cuda/cache.cuh"

#define LOG2_E   1.4426950408889634f
#define HALF_MAX 65504.0f
#define TINY     1e-20f /* as in ref/cache.c */

/* ---- rounding: eight lanes have a block of 32, four numbers each ----------------------------- */

/* What a warp works in. */
struct head_memory {
    float *x;       /* [CACHE_DIM_MAX] */
    uint8_t *codes; /* [CACHE_DIM_MAX] */
    __half *scales; /* [CACHE_DIM_MAX / 32] */
};
#define HEAD_BYTES (CACHE_DIM_MAX * 5 + CACHE_DIM_MAX / 32 * 2)

static __device__ inline struct head_memory head_memory_of(unsigned char *shared, uint32_t warp)
{
    unsigned char *base = shared + warp * HEAD_BYTES;
    return {reinterpret_cast<float *>(base), base + 4 * CACHE_DIM_MAX,
            reinterpret_cast<__half *>(base + 5 * CACHE_DIM_MAX)};
}

static __device__ inline float cut(float x)
{
    return fminf(fmaxf(x, -HALF_MAX), HALF_MAX);
}

static __device__ inline float block_max(float x)
{
    for (int with = 1; with < 8; with *= 2)
        x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, with));
    return x;
}

static __device__ inline float block_sum(float x)
{
    for (int with = 1; with < 8; with *= 2)
        x = __fadd_rn(x, __shfl_xor_sync(0xffffffffu, x, with));
    return x;
}

static __device__ __half round_q8_0(const float x[4], uint8_t codes[4])
{
    float largest = 0;
    for (int i = 0; i < 4; i++)
        largest = fmaxf(largest, fabsf(x[i]));
    largest = block_max(largest);
    __half scale = __float2half_rn(__fdiv_rn(largest, 127));
    float d = __half2float(scale), inverse = d != 0 ? __fdiv_rn(1, d) : 0;
    for (int i = 0; i < 4; i++)
        codes[i] = (uint8_t)((int)fminf(fmaxf(rintf(x[i] * inverse), -127), 127) + 128);
    return scale;
}

/* See ref/cache.c: top, middle and step of the offset, for keys and for values; a trial. */
struct codes_kind {
    float top, middle, step;
};
struct trial {
    float inverse, offset;
    uint32_t s;
    float xy, yy;
};

static __device__ inline float trial_code(float x, const codes_kind &c, const trial &t)
{
    return fminf(fmaxf(rintf(__fadd_rn(__fmul_rn(x, t.inverse), t.offset)), 0), c.top);
}

static __device__ inline trial trial_of(const codes_kind &c, float low, float high)
{
    float inverse = __fdiv_rn(c.top, high - low), middle = (high + low) / 2;
    float s = __fadd_rn(__fdiv_rn(__fmul_rn(fabsf(middle), inverse), c.step), 0.5f);
    if (s >= 8) {
        s = 7;
        inverse = __fdiv_rn(c.middle + 7 * c.step, middle > 0 ? high : -low);
    }
    uint32_t whole = (uint32_t)s;
    return {middle > 0 ? -inverse : inverse, c.middle + (float)whole * c.step, whole, 0, 0};
}

static __device__ inline void trial_sums(const float x[4], const codes_kind &c, trial *t)
{
    for (int i = 0; i < 4; i++) {
        float y = trial_code(x[i], c, *t) - t->offset;
        t->xy = __fadd_rn(t->xy, __fmul_rn(x[i], y));
        t->yy = __fadd_rn(t->yy, __fmul_rn(y, y));
    }
    t->xy = block_sum(t->xy);
    t->yy = block_sum(t->yy);
}

/* The half number next to d that ends in the three bits of s. */
static __device__ inline uint32_t word_of(float d, uint32_t s)
{
    uint32_t best = s, bits = __half_as_ushort(__float2half_rn(d));
    float error = fabsf(d - __half2float(__ushort_as_half((unsigned short)best)));
    for (int step = -8; step <= 8; step += 8) {
        uint32_t word = ((bits & ~7u) | s) + (uint32_t)step;
        float miss = fabsf(d - __half2float(__ushort_as_half((unsigned short)word)));
        if ((word & 0x7c00) != 0x7c00 && word <= 0xffff && miss < error) {
            error = miss;
            best = word;
        }
    }
    return best;
}

static __device__ __half round_q4_0(const float x[4], const codes_kind &c, uint8_t codes[4])
{
    const float keep_low[] = {1, 0.97f, 0.9f, 0.85f}, keep_high[] = {1, 0.9f, 0.97f, 0.85f};
    float low = 0, high = 0, gain = 0;
    for (int i = 0; i < 4; i++) {
        low = fmaxf(low, -x[i]);
        high = fmaxf(high, x[i]);
    }
    low = -block_max(low);
    high = block_max(high);
    trial best = {0, c.middle, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        /* All lanes come to the shuffles; an empty range gains nothing below. */
        bool empty = !(high - low > TINY);
        trial t = trial_of(c, empty ? -1 : low * keep_low[i], empty ? 1 : high * keep_high[i]);
        trial_sums(x, c, &t);
        if (!empty && t.xy * t.xy > gain * t.yy) {
            gain = __fdiv_rn(t.xy * t.xy, t.yy);
            best = t;
        }
    }
    uint32_t word = word_of(gain > 0 ? __fdiv_rn(best.xy, best.yy) : 0, best.s);
    __half scale = __ushort_as_half((unsigned short)word);
    float d = __half2float(scale);
    best.inverse = d != 0 ? __fdiv_rn(1, d) : 0;
    for (int i = 0; i < 4; i++)
        codes[i] = (uint8_t)trial_code(x[i], c, best);
    return scale;
}

/* Codes and scales of a head of `dim` numbers, a multiple of 32. */
static __device__ void round_head(uint32_t type, bool value, uint32_t dim,
                                  const struct head_memory &m, uint32_t lane)
{
    const codes_kind kind = value ? codes_kind{31, 15.5f, 1} : codes_kind{15, 7.5f, 0.5f};
    for (uint32_t first = 0; first < dim; first += 128) {
        uint32_t d = first + 4 * lane;
        float x[4];
        uint8_t codes[4];
        for (uint32_t i = 0; i < 4; i++)
            x[i] = d < dim ? cut(m.x[d + i]) : 0;
        __half scale = type == INFER_TYPE_Q8_0 ? round_q8_0(x, codes) : round_q4_0(x, kind, codes);
        for (uint32_t i = 0; i < 4 && d < dim; i++)
            m.codes[d + i] = codes[i];
        if (d < dim && lane % 8 == 0)
            m.scales[d / 32] = scale;
    }
    __syncwarp();
}

static __device__ inline void round_key(const cuda_cache &c, const struct head_memory &m,
                                        uint32_t lane)
{
    if (c.k_type != INFER_TYPE_F16)
        round_head(c.k_type, false, c.dim_k, m, lane);
}

static __device__ inline void round_value(const cuda_cache &c, const struct head_memory &m,
                                          uint32_t lane)
{
    if (c.v_type != INFER_TYPE_F16)
        round_head(c.v_type, true, c.dim_v, m, lane);
}

/* ---- a head into its slot -------------------------------------------------------------------- */

/* The key that round_key() has seen, padded with zeros to dim_k, into slot t of `keys`. */
static __device__ void write_key(const cuda_cache &c, uint8_t *keys, uint32_t t,
                                 const struct head_memory &m, uint32_t lane)
{
    for (uint32_t d = 8 * lane; d < c.dim_k; d += 256) {
        uint32_t group = cache_key_group(c.k_type, t, d);
        const float *x = m.x + d;
        const uint8_t *codes = m.codes + d;
        if (c.k_type == INFER_TYPE_F16) {
            reinterpret_cast<uint4 *>(keys)[group] =
                make_uint4(cuda_half2_cut(x[0], x[1]), cuda_half2_cut(x[2], x[3]),
                           cuda_half2_cut(x[4], x[5]), cuda_half2_cut(x[6], x[7]));
        } else if (c.k_type == INFER_TYPE_Q8_0) {
            reinterpret_cast<uint2 *>(keys)[group] = *reinterpret_cast<const uint2 *>(codes);
        } else {
            uint32_t packed = 0;
            for (uint32_t i = 0; i < 8; i++)
                packed |= (uint32_t)codes[i] << (i / 2 * 4 + i % 2 * 16);
            reinterpret_cast<uint32_t *>(keys)[group] = packed;
        }
    }
    __half *scales = reinterpret_cast<__half *>(keys + cache_codes_bytes(c.k_type, c.dim_k));
    if (c.k_type != INFER_TYPE_F16 && lane < c.dim_k / 32)
        scales[cache_key_scale(t, lane)] = m.scales[lane];
}

static __device__ void write_value_q4_0(const cuda_cache &c, uint8_t *values, uint32_t t,
                                        const struct head_memory &m, uint32_t lane)
{
    uint8_t *fifths = values + cache_codes_bytes(INFER_TYPE_Q4_0, c.dim_v);
    const uint32_t byte = t % 2 * 2 + t / 8, q = t % 8 / 2;
    for (uint32_t p = lane; p < c.dim_v / 2; p += 32) {
        uint32_t i = p / 8, g = p % 8;
        const uint8_t *codes = m.codes + 16 * i + g;
        values[(i * 32 + 4 * g + q) * 4 + byte] = (uint8_t)((codes[0] & 15) | (codes[8] & 15) << 4);
    }
    for (uint32_t p = lane; p < (c.dim_v + 63) / 64 * 8; p += 32) {
        uint32_t i = p / 8, g = p % 8, bits = 0;
        for (uint32_t k = 0; k < 8 && 64 * i + 8 * k < c.dim_v; k++)
            bits |= (uint32_t)(m.codes[64 * i + 8 * k + g] >> 4) << k;
        fifths[(i * 32 + 4 * g + q) * 4 + byte] = (uint8_t)bits;
    }
}

/* The value that round_value() has seen, padded with zeros to dim_v, into slot t of `values`. */
static __device__ void write_value(const cuda_cache &c, uint8_t *values, uint32_t t,
                                   const struct head_memory &m, uint32_t lane)
{
    if (c.v_type == INFER_TYPE_F16) {
        for (uint32_t d = lane; d < c.dim_v; d += 32)
            reinterpret_cast<__half *>(values)[cache_value_number(t, d)] =
                __float2half_rn(cut(m.x[d]));
        return;
    }
    uint32_t before = cache_codes_bytes(c.v_type, c.dim_v);
    if (c.v_type == INFER_TYPE_Q8_0) {
        for (uint32_t d = lane; d < c.dim_v; d += 32)
            values[cache_value_number(t, d)] = m.codes[d];
    } else {
        write_value_q4_0(c, values, t, m, lane);
        before += cache_high_bytes(c.dim_v);
    }
    if (lane < c.dim_v / 32)
        reinterpret_cast<__half *>(values + before)[cache_value_scale(t, lane)] = m.scales[lane];
}

/* ---- a head of queries, keys or values ------------------------------------------------------- */

/* Numbers lane, lane + 32, ... of a head of DIM at most. */
template <uint32_t DIM> struct head_numbers {
    float x[DIM / 32];
};

/* Of head `head` of a row; on their way until they are put down. */
template <uint32_t DIM>
static __device__ inline head_numbers<DIM> fetch_head(const cuda_cache &c, const cuda_turn &turn,
                                                      size_t row, uint32_t head, uint32_t lane)
{
    const uint32_t key = head - c.n_heads, value = key - c.n_kv_heads;
    const bool is_query = head < c.n_heads, is_value = head >= c.n_heads + c.n_kv_heads;
    const uint32_t n = is_value ? c.head_dim_v : c.head_dim;
    const float *from = is_query   ? turn.q + row * turn.q_stride + head * n
                        : is_value ? turn.v + row * turn.v_stride + value * n
                                   : turn.k + row * turn.k_stride + key * n;
    head_numbers<DIM> h;
#pragma unroll
    for (uint32_t i = 0; i < DIM / 32; i++)
        h.x[i] = lane + 32 * i < n ? from[lane + 32 * i] : 0;
    return h;
}

static __device__ void norm_head(float *x, const float *weight, float eps, uint32_t n,
                                 uint32_t lane)
{
    float squares = 0;
    for (uint32_t d = lane; d < n; d += 32)
        squares = __fmaf_rn(x[d], x[d], squares);
    for (int with = 16; with > 0; with /= 2)
        squares = __fadd_rn(squares, __shfl_xor_sync(0xffffffffu, squares, with));
    float scale = __fdiv_rn(1, __fsqrt_rn(__fdiv_rn(squares, (float)n) + eps));
    for (uint32_t d = lane; d < n; d += 32)
        x[d] = x[d] * scale * weight[d];
    __syncwarp();
}

/* (a, b) -> (a cos - b sin, a sin + b cos) */
static __device__ inline void turn_pair(float *x, uint32_t style, uint32_t dims, uint32_t p,
                                        float cosine, float sine)
{
    uint32_t first = style == INFER_ROPE_PAIRS ? 2 * p : p;
    uint32_t second = style == INFER_ROPE_PAIRS ? first + 1 : first + dims / 2;
    float a = x[first], b = x[second];
    x[first] = __fsub_rn(__fmul_rn(a, cosine), __fmul_rn(b, sine));
    x[second] = __fadd_rn(__fmul_rn(a, sine), __fmul_rn(b, cosine));
}

/* Of a position: a lane has those of pairs lane, lane + 32, ... */
template <uint32_t DIM> struct angles {
    float cosine[DIM / 64], sine[DIM / 64];
};

/* Angles are the float32 products of position and frequency, as the models were trained with. */
template <uint32_t DIM>
static __device__ inline angles<DIM> angles_of(const cuda_turn &turn, uint32_t position,
                                               uint32_t lane)
{
    angles<DIM> a = {};
#pragma unroll
    for (uint32_t i = 0; i < DIM / 64; i++) {
        uint32_t p = lane + 32 * i;
        if (p >= turn.rope_dims / 2)
            break;
        sincosf(__fmul_rn((float)position, turn.inv_freq[p]), &a.sine[i], &a.cosine[i]);
        a.sine[i] *= turn.magnitude;
        a.cosine[i] *= turn.magnitude;
    }
    return a;
}

template <uint32_t DIM>
static __device__ inline void turn_head(const cuda_turn &turn, const angles<DIM> &a, float *x,
                                        uint32_t lane)
{
#pragma unroll
    for (uint32_t i = 0; i < DIM / 64; i++) {
        if (lane + 32 * i < turn.rope_dims / 2)
            turn_pair(x, turn.rope_style, turn.rope_dims, lane + 32 * i, a.cosine[i], a.sine[i]);
    }
    __syncwarp();
}

static __device__ inline void rotate_head(float *x, uint32_t n, uint32_t lane)
{
    cache_rotate(x, n, lane, 32, [] { __syncwarp(); });
}

/* The head that was fetched to m.x, padded with zeros: normed and turned, or, of values, as it is;
 * rotated where the cache is. */
template <uint32_t DIM>
static __device__ inline void
turn_fetched(const cuda_cache &c, const cuda_turn &turn, uint32_t head, const head_numbers<DIM> &h,
             const angles<DIM> &a, const struct head_memory &m, uint32_t lane)
{
    const bool is_query = head < c.n_heads, is_value = head >= c.n_heads + c.n_kv_heads;
    const uint32_t padded = is_value ? c.dim_v : c.dim_k;
    const float *norm = is_query ? turn.q_norm : turn.k_norm;
#pragma unroll
    for (uint32_t i = 0; i < DIM / 32; i++)
        if (lane + 32 * i < padded)
            m.x[lane + 32 * i] = h.x[i];
    __syncwarp();
    if (!is_value) {
        if (norm != NULL)
            norm_head(m.x, norm, turn.eps, c.head_dim, lane);
        turn_head(turn, a, m.x, lane);
    }
    if ((is_value ? c.v_type : c.k_type) == INFER_TYPE_Q4_0)
        rotate_head(m.x, is_value ? c.head_dim_v : c.head_dim, lane);
}

/* Numbers 2 i and 2 i + 1 of a query as they meet keys. */
static __device__ inline uint32_t query_word(const cuda_turn &turn, const float *x, uint32_t i)
{
    const float scale = turn.scale * LOG2_E;
    return cuda_half2_cut(x[2 * i] * scale, x[2 * i + 1] * scale);
}

#endif
