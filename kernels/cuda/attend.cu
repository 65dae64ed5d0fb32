/* attend.cu: attention over the pages.
 *
 *   o = sum over j of 2^(s_j - m) v_j / sum over j of 2^(s_j - m),   s_j = q . k_j,  m = max s_j
 *
 * for every row and query head, over the positions j that the row sees; q comes times scale and
 * log2(e) (cache.cu). The query heads of one key head, of one or a few rows, make a tile of 16
 * pairs, so that one tensor-core product serves all of them.
 *
 * The same bits, however the work is cut. A chunk is 64 positions at a multiple of 64. Of each
 *   s     float32 sums of half-precision products over the dimensions, ascending by 16
 *   m_c   the largest that the row sees
 *   p     2^(s - m_c), rounded to half-precision; 0 where nothing is seen
 *   l_c   the sum of p, o_c the sum of p v, from zero, by pages, ascending
 * depend on the row, the chunk's keys and nothing else; chunks are joined in ascending order by the
 * equations of attend.cuh, and the sums rounded once at the end. attend_narrow.cuh (a tile, the
 * warps of a block together on a chunk), attend_stream.cuh (a tile per warp), attend_wide.cuh (a
 * prompt's rows, a tile or two per warp) and the merge below (chunks of several blocks) do exactly
 * this.
 *
 * Bounds. Decode moves the keys and values: 4 KB per position and layer for 8 key heads of 128 in
 * F16, at the memory's speed; partial results add 6% where a tile has 4 pairs. Prefill is bound by
 * the tensor cores' older instruction, about 0.62 of their peak.
 *
 * In steps of few tiles the kernel also turns the rows (attend_narrow.cuh): for one sequence at 128
 * rows of a model of 8B parameters in Q4_0 that is 589 tokens a second in place of 553 with a
 * kernel of its own before it, for eight 3,757 in place of 3,534; at 2,048 rows 523 and 517, at
 * 8,192 426 and 425. What counts there is that a block is short and keeps nothing in local memory:
 * four groups, with 128 registers, were slower than two (567 and 583), and a branch around each
 * load that may be a copy's makes loads wait for each other. Tried and slower: a merge by the last
 * block of a tile to be done, which reads as many partial results as four blocks share now (at
 * 8,192 rows 402); rows turned by attention in steps of 64 and 128 sequences, groups' sums joined
 * in shared memory there too (3%).
 *
 * Measured on an H200, 32 heads over 8 of 128: a step of one row at 128 rows, turned before, 2.5 us
 * and 2.6 for the merge; what 8,064 rows more cost a step of 32 layers is 0.54 ms, or 2.0 TB/s of
 * keys and values; 512 rows of prompt after 3,584 take 136 us, 118 TFLOP/s.
 *
 * Many sequences, us a layer, launches one after the other, narrow / streams / what the bytes need:
 * 128 at 128 to 256 rows 35.6 / 27 / 22, 64 of them 22 / 17 / 11, 32 12.6 / 16 / 5; 128 at 1,000 to
 * 2,000 209 / 200 / 170, 64 at 6,000 to 8,000 528 / 454 / 392. In a step of 128 sequences that are
 * 2 % more tokens, of 64 1 %. What narrow pieces of that kind lack is not the memory: loads alone
 * take 19 us, and work alone, from pages that are there, 25. A warp issues some 600 instructions a
 * chunk and 1,200 more per tile, most of them waiting for the one before. For them none of these
 * helped: the chunks after next asked for from the second-level cache, a layer's pages side by side
 * in memory, four blocks a processor with 128 registers, pages after the last row's left out, no
 * division by numbers that the compiler does not know. */
#include "cuda/attend_narrow.cuh"
#include "cuda/attend_stream.cuh"
#include "cuda/attend_wide.cuh"

/* ---- kernels --------------------------------------------------------------------------------- */

template <uint32_t KT, uint32_t VT, uint32_t KU, uint32_t VU, bool EXACT, uint32_t GROUPS>
static __device__ inline void run_narrow(const cuda_cache &c, const struct cuda_attend &a,
                                         const cuda_step &s, const cuda_piece &piece)
{
    CUDA_SHARED(narrow_shared<GROUPS>, shared);
    narrow<KT, VT, KU, VU, EXACT, GROUPS>(c, a, s, piece, shared).run();
}

template <uint32_t KT, uint32_t VT, uint32_t KU, uint32_t TILES>
static __device__ inline void run_wide(const cuda_cache &c, const struct cuda_attend &a,
                                       const cuda_step &s, const cuda_piece &piece)
{
    CUDA_SHARED(uint4, shared);
    wide<KT, VT, KU, TILES>(c, a, s, piece, shared).run();
}

template <uint32_t KT, uint32_t VT, uint32_t KU, uint32_t VU, bool EXACT, uint32_t GROUPS,
          int BLOCKS>
static __global__ void __launch_bounds__(GROUPS *ATTEND_THREADS, BLOCKS)
    attend_narrow(const cuda_cache c, const struct cuda_attend a, const cuda_step s)
{
    const cuda_piece &piece = s.pieces[blockIdx.y];
    if (piece.n_rows == 0)
        cuda_wait();
    else
        run_narrow<KT, VT, KU, VU, EXACT, GROUPS>(c, a, s, piece);
}

/* A piece and key head a warp. */
template <uint32_t KT, uint32_t VT, uint32_t KU>
static __global__ void __launch_bounds__(32 * STREAM_WARPS, 2)
    attend_stream(const cuda_cache c, const struct cuda_attend a, const cuda_step s, uint32_t slots)
{
    CUDA_SHARED(uint8_t, shared);
    const uint32_t warps = blockDim.x / 32, warp = threadIdx.x / 32;
    const uint32_t i = blockIdx.x * warps + warp, bytes = stream_warp_bytes(c, slots);
    cuda_barrier *full = reinterpret_cast<cuda_barrier *>(shared + warps * bytes) + warp * slots;
    if (i >= s.n_pieces * c.n_kv_heads || s.pieces[i / c.n_kv_heads].n_rows == 0) {
        cuda_wait();
        return;
    }
    if (threadIdx.x % 32 == 0) {
        for (uint32_t k = 0; k < slots; k++)
            cuda_barrier_make(&full[k], CUDA_BULK_COUNT);
        cuda_barriers_made();
    }
    __syncwarp();
    stream<KT, VT, KU>(c, a, s, s.pieces[i / c.n_kv_heads], i % c.n_kv_heads, shared + warp * bytes,
                       full, slots)
        .run();
}

/* Steps with a prompt's rows: wide pieces and, beside them, narrow ones. */
template <uint32_t KT, uint32_t VT, uint32_t KU>
static __global__ void __launch_bounds__(ATTEND_THREADS, 2)
    attend_wide(const cuda_cache c, const struct cuda_attend a, const cuda_step s,
                uint32_t narrow_rows)
{
    const cuda_piece &piece = s.pieces[blockIdx.y];
    const uint32_t n_pairs = piece.n_rows * (c.n_heads / c.n_kv_heads);
    if constexpr (wide_shared<KU>::bytes <= CUDA_SHARED_MOST) {
        if (piece.n_rows == 0)
            cuda_wait();
        else if (piece.n_rows <= narrow_rows)
            run_narrow<KT, VT, KU, KU / 2, true, 1>(c, a, s, piece);
        else if (n_pairs <= ATTEND_WARPS * CUDA_PAIRS)
            run_wide<KT, VT, KU, 1>(c, a, s, piece);
        else
            run_wide<KT, VT, KU, 2>(c, a, s, piece);
    }
}

/* ---- merge ----------------------------------------------------------------------------------- */

/* The factors of 32 chunks, a lane each, after chunks whose largest score is *m. */
static __device__ inline void join_many(float *m, float m_c, bool is, uint32_t lane, float *ret_a,
                                        float *ret_b)
{
    float most = is ? m_c : FEWEST;
    for (uint32_t by = 1; by < 32; by *= 2) {
        float other = __shfl_up_sync(0xffffffffu, most, by);
        most = lane >= by ? fmaxf(most, other) : most;
    }
    float before = __shfl_up_sync(0xffffffffu, most, 1);
    before = fmaxf(*m, lane == 0 ? FEWEST : before);
    *m = fmaxf(*m, __shfl_sync(0xffffffffu, most, 31));
    join(&before, m_c, ret_a, ret_b);
}

/* o of dimension d of one row and head over n partials, `step` numbers apart; a warp together. */
static __device__ float merge_sums(const float *sums, const float2 *of_chunk, size_t step,
                                   uint32_t n, bool is, uint32_t lane)
{
    float m = FEWEST, l = 0, o = 0;
    for (uint32_t first = 0; first < n; first += 32) {
        const uint32_t some = min(n - first, 32u);
        float2 mine = make_float2(FEWEST, 0);
        float o_c[32], a, b;
        if (lane < some)
            mine = of_chunk[(first + lane) * (step / 2)];
#pragma unroll
        for (uint32_t i = 0; i < 32; i++)
            o_c[i] = is && i < some ? sums[(first + i) * step] : 0;
        join_many(&m, mine.x, lane < some, lane, &a, &b);
#pragma unroll
        for (uint32_t i = 0; i < 32; i++) {
            float old = __shfl_sync(0xffffffffu, a, i), with = __shfl_sync(0xffffffffu, b, i);
            float l_c = __shfl_sync(0xffffffffu, mine.y, i);
            if (i < some) {
                o = joined(o, old, o_c[i], with);
                l = joined(l, old, l_c, with);
            }
        }
    }
    return __fmul_rn(o, __fdiv_rn(1, l));
}

/* A block per query head and merge. */
static __global__ void __launch_bounds__(ATTEND_THREADS)
    attend_merge(const cuda_cache c, const struct cuda_attend a, const cuda_step s)
{
    CUDA_SHARED(float, x);
    const cuda_merge merge = a.merges[blockIdx.y];
    const uint32_t head = blockIdx.x, lane = threadIdx.x % 32;
    const size_t slot = (size_t)c.n_heads * (c.dim_v + 2), step = slot * merge.n_rows;
    cuda_wait();
    cuda_let_next_start();
    for (uint32_t r = 0; r < merge.n_rows; r++) {
        const uint32_t position = s.row_position[merge.first_row + r];
        const uint32_t first =
            max(merge.first_chunk, window_begin(a.window, position) / CUDA_CHUNK);
        const uint32_t end = min(merge.first_chunk + merge.n_chunks, position / CUDA_CHUNK + 1);
        const float *from = partial_of(
            c, a, merge.partial + (size_t)(first - merge.first_chunk) * merge.n_rows + r);
        const float2 *of_chunk =
            reinterpret_cast<const float2 *>(from + c.n_heads * c.dim_v) + head;
        for (uint32_t d = threadIdx.x; d - lane < c.dim_v; d += ATTEND_THREADS) {
            float o = merge_sums(from + head * c.dim_v + d, of_chunk, step, end - first,
                                 d < c.dim_v, lane);
            if (d < c.dim_v)
                x[d] = o;
        }
        __syncthreads();
        store_heads(c, a, x, 0, pairs{merge.first_row + r, head, 1}, 0, 1, threadIdx.x,
                    ATTEND_THREADS, [] { __syncthreads(); });
        __syncthreads();
    }
}

/* ---- what store_heads leaves ----------------------------------------------------------------- */

/* Zeros after the last column. */
static __global__ void finish_rows(const cuda_packed to)
{
    cuda_wait();
    cuda_let_next_start();
    for (uint32_t c = to.cols + threadIdx.x; c < 32 * to.blocks; c += blockDim.x)
        *cuda_packed_number(to, blockIdx.x, c) = 0;
}

/* ---- launches -------------------------------------------------------------------------------- */

size_t cuda_wide_bytes(const struct cuda_cache *cache)
{
    return cache->dim_k == 64 ? wide_shared<2>::bytes : wide_shared<4>::bytes;
}

size_t cuda_partial_bytes(const struct cuda_cache *cache, uint32_t n_partials)
{
    return (size_t)n_partials * cache->n_heads * (cache->dim_v + 2) * sizeof(float);
}

template <typename Kernel, typename... More>
static cudaError_t start(Kernel kernel, uint32_t groups, size_t shared, const cuda_cache *cache,
                         const struct cuda_attend *attend, const cuda_step *step,
                         cudaStream_t stream, More... more)
{
    if (shared > 48u << 10) {
        cudaError_t error = cudaFuncSetAttribute(
            (const void *)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared);
        if (error != cudaSuccess)
            return error;
    }
    return cuda_launch(kernel, dim3(cache->n_kv_heads, step->n_pieces),
                       dim3(groups * ATTEND_THREADS), shared, stream, *cache, *attend, *step,
                       more...);
}

template <uint32_t KT, uint32_t VT, uint32_t KU, uint32_t VU, bool EXACT, uint32_t GROUPS,
          int BLOCKS>
static cudaError_t start_narrow(const cuda_cache *cache, const struct cuda_attend *attend,
                                const cuda_step *step, cudaStream_t stream)
{
    return start(attend_narrow<KT, VT, KU, VU, EXACT, GROUPS, BLOCKS>, GROUPS,
                 narrow_shared_bytes<GROUPS>(cache), cache, attend, step, stream);
}

/* Blocks as large as leave none of the processors without one, and as many slots as all of a
 * processor's warps find room for, beside the last blocks of the kernel before. */
template <uint32_t T, uint32_t KU>
static cudaError_t start_stream(const cuda_cache *cache, const struct cuda_attend *attend,
                                const cuda_step *step, cudaStream_t stream)
{
    auto kernel = attend_stream<T, T, KU>;
    const uint32_t tiles = step->n_pieces * cache->n_kv_heads;
    cuda_limits device;
    cudaError_t error = cuda_limits_of(&device);
    uint32_t warps = STREAM_WARPS, slots = STREAM_SLOTS_MIN;
    if (error != cudaSuccess)
        return error;
    while (warps > 1 && (tiles < warps * device.processors ||
                         stream_shared_bytes(*cache, warps, slots) > device.shared_bytes))
        warps /= 2;
    const uint32_t blocks = (tiles + warps - 1) / warps;
    const uint32_t beside = (blocks + device.processors - 1) / device.processors;
    while (slots < STREAM_SLOTS_MAX &&
           beside * (stream_shared_bytes(*cache, warps, slots + 1) + 1024) <=
               device.shared_bytes / 8 * 7)
        slots++;
    const uint32_t bytes = stream_shared_bytes(*cache, warps, slots);
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
    if (error != cudaSuccess)
        return error;
    return cuda_launch(kernel, dim3(blocks), dim3(32 * warps), bytes, stream, *cache, *attend,
                       *step, slots);
}

/* The kernel for heads of 64 or 128 of keys and values of one type. */
template <uint32_t T, uint32_t KU>
static cudaError_t start_exact(const cuda_cache *cache, const struct cuda_attend *attend,
                               const cuda_step *step, cudaStream_t stream)
{
    constexpr int blocks = KU == 4 ? 3 : 4;
    if (step->n_rows > CUDA_NARROW_ROWS && !cache->narrow)
        return start(attend_wide<T, T, KU>, 1,
                     max(narrow_shared_bytes<1>(cache), wide_shared<KU>::bytes), cache, attend,
                     step, stream, cuda_piece_rows(cache));
    if (attend->turn.q != NULL)
        return start_narrow<T, T, KU, KU / 2, true, CUDA_CUT_GROUPS, 1>(cache, attend, step,
                                                                        stream);
    if (attend->streams)
        return start_stream<T, KU>(cache, attend, step, stream);
    return start_narrow<T, T, KU, KU / 2, true, 1, blocks>(cache, attend, step, stream);
}

template <uint32_t T>
static cudaError_t start_type(const cuda_cache *cache, const struct cuda_attend *attend,
                              const cuda_step *step, cudaStream_t stream)
{
    return cache->dim_k == 64 ? start_exact<T, 2>(cache, attend, step, stream)
                              : start_exact<T, 4>(cache, attend, step, stream);
}

static cudaError_t start_pieces(const cuda_cache *cache, const struct cuda_attend *attend,
                                const cuda_step *step, cudaStream_t stream)
{
    if (!cuda_heads_known(cache))
        return start_narrow<CACHE_ANY, CACHE_ANY, CACHE_DIM_MAX / 32, CACHE_DIM_MAX / 64, false, 1,
                            1>(cache, attend, step, stream);
    if (cache->k_type != cache->v_type)
        return start_type<CACHE_ANY>(cache, attend, step, stream);
    if (cache->k_type == INFER_TYPE_F16)
        return start_type<INFER_TYPE_F16>(cache, attend, step, stream);
    if (cache->k_type == INFER_TYPE_Q8_0)
        return start_type<INFER_TYPE_Q8_0>(cache, attend, step, stream);
    return start_type<INFER_TYPE_Q4_0>(cache, attend, step, stream);
}

cudaError_t cuda_attend(const struct cuda_cache *cache, const struct cuda_attend *attend,
                        const struct cuda_step *step, cudaStream_t stream)
{
    const uint32_t columns = cache->n_heads * cache->head_dim_v;
    cudaError_t error = cudaSuccess;
    if (step->n_pieces == 0)
        return cudaSuccess;
    error = start_pieces(cache, attend, step, stream);
    if (error == cudaSuccess && attend->n_merges != 0)
        error =
            cuda_launch(attend_merge, dim3(cache->n_heads, attend->n_merges), dim3(ATTEND_THREADS),
                        cache->dim_v * sizeof(float), stream, *cache, *attend, *step);
    if (error == cudaSuccess && columns % CUDA_UNIT != 0)
        error = cuda_launch(finish_rows, dim3(step->n_rows), dim3(ATTEND_THREADS), 0, stream,
                            attend->to);
    return error;
}
