/* cache.cu: keys and values into pages, queries into the form that meets them, pages moved.
 *
 * After the products of QKV, for every row at position p and every head of it:
 *   q, k   y = x / sqrt(mean(x^2) + eps) * norm, where the model has such norms; then pair i of the
 *          first rope_dims turns by p * inv_freq[i], cos and sin times magnitude
 *   q      times scale * log2(e), rounded to half-precision: attend.cu works with powers of 2
 *   k, v   into the row's slot of its page (cache.cuh has the picture)
 * With a Q4_0 cache of keys, q and k are rotated by ref_cache_rotate's matrix after that, with one
 * of values v is. Codes are chosen as ref/cache.c does, but for the order of its sums.
 *
 * One warp has one head of one row, in shared memory. It reads 4 bytes a number and writes 2 or
 * less: for a model of 8B parameters 24 KB in and 12 KB out per row, nothing beside the weights;
 * what counts is that it is one launch, and that attention's first loads are under way meanwhile.
 * Values are scattered by 2 bytes (a page has 16 keys of a dimension side by side), into L2.
 *
 * Page functions move page_bytes, or turn the keys of all layers, a block per layer and head. */
#include "cuda/cache.cuh"

#include <errno.h>
#include <math.h>

#define WARPS    4u
#define LOG2_E   1.4426950408889634f
#define HALF_MAX 65504.0f
#define TINY     1e-20f /* as in ref/cache.c */

/* ---- sizes ----------------------------------------------------------------------------------- */

static size_t part_bytes(uint32_t type, uint32_t dim, bool value)
{
    const size_t n = (size_t)CUDA_PAGE_TOKENS * dim, scales = n / 32 * 2;
    size_t bytes = type == INFER_TYPE_F16    ? 2 * n
                   : type == INFER_TYPE_Q8_0 ? n + scales
                                             : n / 2 + scales;
    if (type == INFER_TYPE_Q4_0 && value)
        bytes += (dim + 63) / 64 * 128;
    return (bytes + 63) / 64 * 64;
}

static bool type_is_known(uint32_t type, uint32_t dim)
{
    return type == INFER_TYPE_F16 ||
           ((type == INFER_TYPE_Q8_0 || type == INFER_TYPE_Q4_0) && dim % 32 == 0);
}

int cuda_cache_init(struct cuda_cache *ret, const struct infer_shape *shape,
                    const struct infer_state_config *state)
{
    struct cuda_cache c = {};
    if (state->page_tokens != CUDA_PAGE_TOKENS || shape->head_dim == 0 || shape->head_dim_v == 0 ||
        shape->head_dim > CACHE_DIM_MAX || shape->head_dim_v > CACHE_DIM_MAX ||
        shape->n_kv_heads == 0 || shape->n_heads % shape->n_kv_heads != 0)
        return -ENOTSUP;
    if (!type_is_known(state->k_type, shape->head_dim) ||
        !type_is_known(state->v_type, shape->head_dim_v))
        return -ENOTSUP;
    c.n_pages = state->n_pages;
    c.n_layers = shape->n_layers;
    c.n_heads = shape->n_heads;
    c.n_kv_heads = shape->n_kv_heads;
    c.head_dim = shape->head_dim;
    c.head_dim_v = shape->head_dim_v;
    c.dim_k = (shape->head_dim + 31) / 32 * 32;
    c.dim_v = (shape->head_dim_v + 31) / 32 * 32;
    c.k_type = state->k_type;
    c.v_type = state->v_type;
    c.key_bytes = part_bytes(c.k_type, c.dim_k, false);
    c.value_bytes = part_bytes(c.v_type, c.dim_v, true);
    c.head_bytes = c.key_bytes + c.value_bytes;
    c.layer_bytes = c.head_bytes * c.n_kv_heads;
    c.page_bytes = c.layer_bytes * c.n_layers;
    *ret = c;
    return 0;
}

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

/* ---- a head into its slot -------------------------------------------------------------------- */

/* The key in m.x, padded with zeros to dim_k, into slot t of `keys`. */
static __device__ void write_key(const cuda_cache &c, uint8_t *keys, uint32_t t,
                                 const struct head_memory &m, uint32_t lane)
{
    if (c.k_type != INFER_TYPE_F16)
        round_head(c.k_type, false, c.dim_k, m, lane);
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

/* The value in m.x, padded with zeros to dim_v, into slot t of `values`. */
static __device__ void write_value(const cuda_cache &c, uint8_t *values, uint32_t t,
                                   const struct head_memory &m, uint32_t lane)
{
    if (c.v_type == INFER_TYPE_F16) {
        for (uint32_t d = lane; d < c.dim_v; d += 32)
            reinterpret_cast<__half *>(values)[cache_value_number(t, d)] =
                __float2half_rn(cut(m.x[d]));
        return;
    }
    round_head(c.v_type, true, c.dim_v, m, lane);
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

/* The other way: the key in slot t to m.x. */
static __device__ void read_key(const cuda_cache &c, const uint8_t *keys, uint32_t t,
                                const struct head_memory &m, uint32_t lane)
{
    const __half *scales =
        reinterpret_cast<const __half *>(keys + cache_codes_bytes(c.k_type, c.dim_k));
    for (uint32_t d = lane; d < c.dim_k; d += 32) {
        uint32_t group = cache_key_group(c.k_type, t, d / 8 * 8), i = d % 8;
        if (c.k_type == INFER_TYPE_F16) {
            m.x[d] = __half2float(reinterpret_cast<const __half *>(keys)[group * 8 + i]);
            continue;
        }
        __half scale = scales[cache_key_scale(t, d / 32)];
        float code;
        if (c.k_type == INFER_TYPE_Q8_0) {
            code = (float)((int)keys[group * 8 + i] - 128);
        } else {
            uint32_t packed = reinterpret_cast<const uint32_t *>(keys)[group];
            code = (float)(packed >> (i / 2 * 4 + i % 2 * 16) & 15) - 7.5f -
                   (float)(__half_as_ushort(scale) & 7) * 0.5f;
        }
        m.x[d] = __half2float(scale) * code;
    }
    __syncwarp();
}

/* ---- queries, keys and values of a step ------------------------------------------------------ */

static __device__ void load_head(float *x, const float *from, uint32_t n, uint32_t padded,
                                 uint32_t lane)
{
    for (uint32_t d = lane; d < padded; d += 32)
        x[d] = d < n ? from[d] : 0;
    __syncwarp();
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
#define LANE_PAIRS (CACHE_DIM_MAX / 64)
struct angles {
    float cosine[LANE_PAIRS], sine[LANE_PAIRS];
};

/* Angles are the float32 products of position and frequency, as the models were trained with. */
static __device__ inline angles angles_of(const cuda_turn &turn, uint32_t position, uint32_t lane)
{
    angles a = {};
#pragma unroll
    for (uint32_t i = 0; i < LANE_PAIRS; i++) {
        uint32_t p = lane + 32 * i;
        if (p >= turn.rope_dims / 2)
            break;
        sincosf(__fmul_rn((float)position, turn.inv_freq[p]), &a.sine[i], &a.cosine[i]);
        a.sine[i] *= turn.magnitude;
        a.cosine[i] *= turn.magnitude;
    }
    return a;
}

static __device__ inline void turn_head(const cuda_turn &turn, const angles &a, float *x,
                                        uint32_t lane)
{
#pragma unroll
    for (uint32_t i = 0; i < LANE_PAIRS; i++) {
        if (lane + 32 * i < turn.rope_dims / 2)
            turn_pair(x, turn.rope_style, turn.rope_dims, lane + 32 * i, a.cosine[i], a.sine[i]);
    }
    __syncwarp();
}

static __device__ inline void rotate_head(float *x, uint32_t n, uint32_t lane)
{
    cache_rotate(x, n, lane, 32, [] { __syncwarp(); });
}

static __device__ void finish_value(const cuda_cache &c, const cuda_turn &turn, uint32_t row,
                                    uint32_t kv, uint8_t *values, uint32_t slot,
                                    const struct head_memory &m, uint32_t lane)
{
    const float *from = turn.v + row * turn.v_stride + kv * c.head_dim_v;
    load_head(m.x, from, c.head_dim_v, c.dim_v, lane);
    if (c.v_type == INFER_TYPE_Q4_0)
        rotate_head(m.x, c.head_dim_v, lane);
    write_value(c, values, slot, m, lane);
}

/* A query or key to m.x: normed and turned. */
static __device__ void finish_head(const cuda_cache &c, const cuda_turn &turn, const float *from,
                                   const float *norm, const angles &a, const struct head_memory &m,
                                   uint32_t lane)
{
    load_head(m.x, from, c.head_dim, c.dim_k, lane);
    if (norm != NULL)
        norm_head(m.x, norm, turn.eps, c.head_dim, lane);
    turn_head(turn, a, m.x, lane);
    if (c.k_type == INFER_TYPE_Q4_0)
        rotate_head(m.x, c.head_dim, lane);
}

static __device__ void write_query(const cuda_cache &c, const cuda_turn &turn, size_t row,
                                   uint32_t head, const float *x, uint32_t lane)
{
    const float scale = turn.scale * LOG2_E;
    uint32_t *to = reinterpret_cast<uint32_t *>(turn.queries + (row * c.n_heads + head) * c.dim_k);
    for (uint32_t i = lane; i < c.dim_k / 2; i += 32)
        to[i] = cuda_half2_cut(x[2 * i] * scale, x[2 * i + 1] * scale);
}

/* One head of a row: of the queries, keys or values, in this order. What depends on the position
 * alone is ready before the products are. */
static __global__ void __launch_bounds__(WARPS * 32)
    turn_and_cache(const cuda_cache c, const cuda_turn turn, const cuda_step step)
{
    CUDA_SHARED(unsigned char, shared);
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, row = blockIdx.y;
    const uint32_t head = blockIdx.x * WARPS + warp, seq = step.row_seq[row];
    const uint32_t position = step.row_position[row], slot = position % CUDA_PAGE_TOKENS;
    const struct head_memory m = head_memory_of(shared, warp);
    if (seq == UINT32_MAX || head >= c.n_heads + 2 * c.n_kv_heads) {
        cuda_wait();
        return;
    }
    const uint32_t page = step.pages[step.seqs[seq].first_page + position / CUDA_PAGE_TOKENS];
    const angles a = angles_of(turn, position, lane);
    cuda_wait();
    cuda_let_next_start();
    if (head < c.n_heads) {
        finish_head(c, turn, turn.q + row * turn.q_stride + head * c.head_dim, turn.q_norm, a, m,
                    lane);
        write_query(c, turn, row, head, m.x, lane);
    } else if (head < c.n_heads + c.n_kv_heads) {
        uint32_t kv = head - c.n_heads;
        finish_head(c, turn, turn.k + row * turn.k_stride + kv * c.head_dim, turn.k_norm, a, m,
                    lane);
        write_key(c, cache_keys(c, turn.layer, kv, page), slot, m, lane);
    } else {
        uint32_t kv = head - c.n_heads - c.n_kv_heads;
        finish_value(c, turn, row, kv, cache_values(c, turn.layer, kv, page), slot, m, lane);
    }
}

cudaError_t cuda_turn_and_cache(const struct cuda_cache *cache, const struct cuda_turn *turn,
                                const struct cuda_step *step, cudaStream_t stream)
{
    const uint32_t heads = cache->n_heads + 2 * cache->n_kv_heads;
    if (step->n_rows == 0)
        return cudaSuccess;
    return cuda_launch(turn_and_cache, dim3((heads + WARPS - 1) / WARPS, step->n_rows),
                       dim3(WARPS * 32), WARPS * HEAD_BYTES, stream, *cache, *turn, *step);
}

/* ---- pages ----------------------------------------------------------------------------------- */

cudaError_t cuda_cache_copy(const struct cuda_cache *cache, uint32_t to, uint32_t from,
                            cudaStream_t stream)
{
    return cudaMemcpyAsync(cache->pages + to * cache->page_bytes,
                           cache->pages + from * cache->page_bytes, cache->page_bytes,
                           cudaMemcpyDeviceToDevice, stream);
}

/* Where a key's rotation is undone, the key turned, and rotated again. */
struct shift {
    uint32_t page;
    int32_t delta;
    uint32_t rope_style, rope_dims;
    const float *inv_freq;
};

/* A warp per slot; the angles, in double as in ref/rope.c, once per block. */
static __global__ void __launch_bounds__(CUDA_PAGE_TOKENS * 32)
    shift_keys(const cuda_cache c, const shift s)
{
    CUDA_SHARED(unsigned char, shared);
    float *cosine = reinterpret_cast<float *>(shared), *sine = cosine + CACHE_DIM_MAX / 2;
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const struct head_memory m = head_memory_of(shared + 4 * CACHE_DIM_MAX, warp);
    cuda_wait();
    for (uint32_t p = threadIdx.x; p < s.rope_dims / 2; p += CUDA_PAGE_TOKENS * 32) {
        double angle = (double)s.delta * (double)s.inv_freq[p], sin_angle, cos_angle;
        sincos(angle, &sin_angle, &cos_angle);
        cosine[p] = (float)cos_angle;
        sine[p] = (float)sin_angle;
    }
    __syncthreads();
    uint8_t *keys = cache_keys(c, blockIdx.y, blockIdx.x, s.page);
    read_key(c, keys, warp, m, lane);
    if (c.k_type == INFER_TYPE_Q4_0)
        rotate_head(m.x, c.head_dim, lane);
    for (uint32_t p = lane; p < s.rope_dims / 2; p += 32)
        turn_pair(m.x, s.rope_style, s.rope_dims, p, cosine[p], sine[p]);
    __syncwarp();
    if (c.k_type == INFER_TYPE_Q4_0)
        rotate_head(m.x, c.head_dim, lane);
    write_key(c, keys, warp, m, lane);
}

cudaError_t cuda_cache_shift(const struct cuda_cache *cache, uint32_t page, int32_t delta,
                             uint32_t rope_style, uint32_t rope_dims, const float *inv_freq,
                             cudaStream_t stream)
{
    const size_t shared = 4 * CACHE_DIM_MAX + CUDA_PAGE_TOKENS * HEAD_BYTES;
    if (delta == 0 || rope_dims == 0)
        return cudaSuccess;
    return cuda_launch(shift_keys, dim3(cache->n_kv_heads, cache->n_layers),
                       dim3(CUDA_PAGE_TOKENS * 32), shared, stream, *cache,
                       shift{page, delta, rope_style, rope_dims, inv_freq});
}
