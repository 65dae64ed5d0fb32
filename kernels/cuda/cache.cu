/* cache.cu: keys and values into pages, queries into the form that meets them, pages moved.
 *
 * After the products of QKV, for every row at position p and every head of it:
 *   q, k   y = x / sqrt(mean(x^2) + eps) * norm, where the model has such norms; then pair i of the
 *          first rope_dims turns by p * inv_freq[i], cos and sin times magnitude
 *   q      times scale * log2(e), rounded to half-precision: attend.cu works with powers of 2
 *   k, v   into the row's slot of its page (cache.cuh has the picture)
 * With a Q4_0 cache of keys, q and k are rotated by ref_cache_rotate's matrix after that, with one
 * of values v is. Codes are chosen as ref/cache.c does, but for the order of its sums. turn.cuh has
 * all this; in steps of few tiles attention does it (attend_narrow.cuh), in others the kernel here.
 *
 * One warp has one head of one row, in shared memory. It reads 4 bytes a number and writes 2 or
 * less: for a model of 8B parameters 24 KB in and 12 KB out per row, nothing beside the weights;
 * what counts is that it is one launch, and that attention's first loads are under way meanwhile.
 * Values are scattered by 2 bytes (a page has 16 keys of a dimension side by side), into L2.
 *
 * Page functions move page_bytes, or turn the keys of all layers, a block per layer and head. */
#include "cuda/turn.cuh"

#include <errno.h>
#include <math.h>

#define WARPS 4u

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

/* ---- queries, keys and values of a step ------------------------------------------------------ */

/* One head of a row. What depends on the position alone is ready before the products are. */
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
    const angles<CACHE_DIM_MAX> a = angles_of<CACHE_DIM_MAX>(turn, position, lane);
    cuda_wait();
    cuda_let_next_start();
    turn_fetched(c, turn, head, fetch_head<CACHE_DIM_MAX>(c, turn, row, head, lane), a, m, lane);
    if (head < c.n_heads) {
        uint32_t *to =
            reinterpret_cast<uint32_t *>(turn.queries + ((size_t)row * c.n_heads + head) * c.dim_k);
        for (uint32_t i = lane; i < c.dim_k / 2; i += 32)
            to[i] = query_word(turn, m.x, i);
    } else if (head < c.n_heads + c.n_kv_heads) {
        round_key(c, m, lane);
        write_key(c, cache_keys(c, turn.layer, head - c.n_heads, page), slot, m, lane);
    } else {
        const uint32_t kv = head - c.n_heads - c.n_kv_heads;
        round_value(c, m, lane);
        write_value(c, cache_values(c, turn.layer, kv, page), slot, m, lane);
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
    round_key(c, m, lane);
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
