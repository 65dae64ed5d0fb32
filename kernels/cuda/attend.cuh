/* attend.cuh: what narrow and wide pieces of attention and the merge of partial results have in
 * common: which keys a row sees, how a chunk joins the chunks before it, how heads are stored. One
 * equation in one place, because every way must give the same bits. */
#ifndef INFERD_KERNELS_CUDA_ATTEND_CUH
#define INFERD_KERNELS_CUDA_ATTEND_CUH

#include "cuda/cache.cuh"
#include "cuda/packed.cuh"

#define ATTEND_WARPS   4u
#define ATTEND_THREADS (32u * ATTEND_WARPS)
#define CHUNK_PAGES    (CUDA_CHUNK / CUDA_PAGE_TOKENS)
#define FEWEST         (-__builtin_inff())

/* Pairs are numbered row by row, the query heads of one key head in each. */
struct pairs {
    uint32_t first_row, first_head, per_kv;
};

static __device__ inline uint32_t pair_row(const pairs &p, uint32_t i)
{
    return p.first_row + i / p.per_kv;
}

static __device__ inline uint32_t pair_head(const pairs &p, uint32_t i)
{
    return p.first_head + i % p.per_kv;
}

/* The first position that a row at `position` sees. */
static __device__ inline uint32_t window_begin(uint32_t window, uint32_t position)
{
    return window != 0 && position >= window ? position - window + 1 : 0;
}

/* ---- chunks ---------------------------------------------------------------------------------- */

/* What a chunk with the largest score m_c does to what is there, with the largest score *m:
 *   l = l_c b + l a,   o = o_c b + o a,   a = 2^(m - M), b = 2^(m_c - M), M = max(m, m_c).
 * A chunk that a row sees nothing of must leave its bits alone, the sign of a zero too: its sums
 * are +0, and with b = -0 the product is -0, which added changes nothing. */
static __device__ inline void join(float *m, float m_c, float *ret_a, float *ret_b)
{
    float most = fmaxf(*m, m_c);
    *ret_a = *m == most ? 1.0f : cuda_exp2(__fsub_rn(*m, most));
    *ret_b = m_c == FEWEST ? -0.0f : cuda_exp2(__fsub_rn(m_c, most));
    *m = most;
}

static __device__ inline float joined(float old, float a, float of_chunk, float b)
{
    return __fmaf_rn(of_chunk, b, __fmul_rn(old, a));
}

/* 2^(s - m), 0 where nothing is seen, of two scores of a row. */
static __device__ inline uint32_t weights(float s0, float s1, float base)
{
    return cuda_half2_bits(
        __floats2half2_rn(cuda_exp2(__fsub_rn(s0, base)), cuda_exp2(__fsub_rn(s1, base))));
}

static __device__ inline float weights_base(float m_c)
{
    return m_c == FEWEST ? 0.0f : m_c;
}

/* Scores of 16 pairs and 8 keys from position `key` + 2 q on; rows g and g + 8 see positions
 * [begin, last]. */
static __device__ inline void hide(float s[4], uint32_t key, const uint32_t begin[2],
                                   const uint32_t last[2])
{
#pragma unroll
    for (int e = 0; e < 4; e++) {
        uint32_t at = key + e % 2;
        s[e] = at >= begin[e / 2] && at <= last[e / 2] ? s[e] : FEWEST;
    }
}

static __device__ inline float quad_max(float x)
{
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

/* d += the sums of the rows of a, in every column: a product with ones, so that they are sums of
 * what the values are multiplied with, in its order. */
static __device__ inline void add_weights(float d[4], const uint32_t a[4])
{
    const uint32_t ones[2] = {0x3c003c00u, 0x3c003c00u};
    cuda_mma(d, a, ones);
}

/* d0, d1 += a times a value unit's halves. */
static __device__ inline void add_values(float d0[4], float d1[4], const uint32_t a[4], uint4 unit)
{
    const uint32_t b0[2] = {unit.x, unit.y}, b1[2] = {unit.z, unit.w};
    cuda_mma(d0, a, b0);
    cuda_mma(d1, a, b1);
}

/* d += queries (rows g and g + 8) times keys: 32 dimensions. */
static __device__ inline void add_scores(float d[4], uint4 low, uint4 high, uint4 keys)
{
    const uint32_t a0[4] = {low.x, high.x, low.y, high.y}, b0[2] = {keys.x, keys.y};
    const uint32_t a1[4] = {low.z, high.z, low.w, high.w}, b1[2] = {keys.z, keys.w};
    cuda_mma(d, a0, b0);
    cuda_mma(d, a1, b1);
}

/* ---- results --------------------------------------------------------------------------------- */

/* Where partial results of a row's chunk begin: [n_heads][dim_v] sums, then [n_heads] of maximum
 * and sum of weights. */
static __device__ inline float *partial_of(const cuda_cache &c, const struct cuda_attend &a,
                                           size_t i)
{
    return a.partials + i * c.n_heads * (c.dim_v + 2);
}

/* 16 columns, the first at a multiple of 16, of a packed row. */
static __device__ inline void pack_group(const cuda_packed &to, size_t row, uint32_t column,
                                         const float *x)
{
#pragma unroll
    for (uint32_t q = 0; q < 4; q++)
        cuda_packed_at(to, row, column + 4 * q)
            .store(cuda_half2_cut(x[4 * q], x[4 * q + 1]),
                   cuda_half2_cut(x[4 * q + 2], x[4 * q + 3]));
}

/* Heads whose size is no multiple of 16 share groups of columns: numbers one by one. */
static __device__ inline void store_scattered(const cuda_cache &c, const cuda_packed &to,
                                              size_t row, uint32_t head, uint32_t first,
                                              const float *x)
{
    for (uint32_t d = first; d < first + 16 && d < c.head_dim_v; d++)
        *cuda_packed_number(to, row, head * c.head_dim_v + d) =
            (uint16_t)cuda_half2_cut(x[d - first], 0);
}

/* n heads, one per row of x, `stride` apart, to their places, by n_threads threads that have all
 * seen them written. */
template <typename Together>
static __device__ void store_heads(const cuda_cache &c, const struct cuda_attend &a, float *x,
                                   uint32_t stride, const pairs &p, uint32_t first, uint32_t n,
                                   uint32_t thread, uint32_t n_threads, Together together)
{
    const uint32_t groups = (c.head_dim_v + 15) / 16;
    if (c.v_type == INFER_TYPE_Q4_0) {
        for (uint32_t i = thread / 32; i < n; i += n_threads / 32)
            cache_rotate(x + i * stride, c.head_dim_v, thread % 32, 32, [] { __syncwarp(); });
        together();
    }
    for (uint32_t item = thread; item < n * groups; item += n_threads) {
        uint32_t i = item / groups, d = item % groups * 16;
        uint32_t row = pair_row(p, first + i), head = pair_head(p, first + i);
        if (c.head_dim_v % 16 == 0)
            pack_group(a.to, row, head * c.head_dim_v + d, x + i * stride + d);
        else
            store_scattered(c, a.to, row, head, d, x + i * stride + d);
    }
}

/* Numbers between rows of heads in shared memory: 8 more, so that lanes of different rows use
 * different banks. */
static __host__ __device__ inline uint32_t heads_stride(const cuda_cache &c)
{
    return c.dim_v + 8;
}

/* One tile's values over its sums, to x: unit i's halves of rows g and g + 8. */
static __device__ inline void place_unit(float *x, uint32_t stride, uint32_t unit, uint32_t lane,
                                         const float d[2][4], const float inverse[2])
{
    const uint32_t g = lane / 4, q = lane % 4;
#pragma unroll
    for (uint32_t e = 0; e < 8; e++) {
        uint32_t half = e / 4, r = e / 2 % 2, column = 16 * unit + 8 * half + 2 * q + e % 2;
        x[(g + 8 * r) * stride + column] = __fmul_rn(d[half][e % 4], inverse[r]);
    }
}

#endif
