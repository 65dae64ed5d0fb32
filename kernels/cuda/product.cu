/* product.cu: y = W x for 1 to 16 rows of x, bound by the weights' bytes.
 *
 *   y[n][r] = sum over c of W[r][c] x[n][c]      W [rows][cols], x [n_rows][cols]
 *
 * The bytes to move: W once (4.5 bits a value in CUDA_W4, see format.cu), and per block x. A block
 * has a pair of tiles, 32 rows of W (or 16 of W and 16 of V), for all columns; each of its 16 warps
 * has one segment of the columns, and streams its share of both tiles through a ring of its own in
 * shared memory: asynchronous copies of 16 bytes a lane, 108 KiB in flight per block and two blocks
 * per processor, where 40 KiB are enough to hide the memory's latency (Little: 4.3 TB/s x 1 us /
 * 132 = 33 KB). The ring is filled before cuda_wait(): weights do not depend on earlier kernels,
 * and arrive while those still end.
 *
 * Two tiles share the fragments of x, which come straight from the second-level cache: no block
 * reads one twice. Of the 8 rows of a tile of x only those below n_rows are read: with one row x
 * costs 1/8, 2 bytes per column and block beside 18 of W.
 *
 * Instructions per warp and 32 columns of a pair of tiles (32 codes a lane) in CUDA_W4 with 8 rows:
 * 36 to make halves of codes, 4 tensor-core products, 12 to scale, with loads, copies and the loop
 * 80, or 2.5 per code and lane. A processor issues 128 lanes a cycle and at full bandwidth gets 32
 * codes of 4.5 bits: 62% of its issue slots.
 *
 * The partial sums meet in shared memory, each warp's where its ring was, and are added by one
 * thread per result in the order that product.cuh fixes.
 *
 * With more rows the second-level cache comes in, which gives x to every block, (18 + 2 n_rows)
 * bytes per column in all: why product_many.cu takes over after 16 rows.
 *
 * Measured on an H200 (1.78 GHz under the profiler, 4.6 TB/s of reads), one row: 28672 x 4096 in
 * CUDA_W4 takes 30 us, 47% of the bandwidth, where 15 were expected; 4096 x 14336 15 us; CUDA_F16
 * 63 us, 78%. Processors issue 0.54 instructions a cycle with 29 warps of 32 and are not waiting
 * for memory for the most part: a pair of tiles has only 4 units per warp at 4096 columns, so that
 * filling the ring and adding up (400 instructions) weigh as much as the loop (190 per unit, of
 * which 116 do arithmetic), and 896 blocks on 264 places are 3.4 waves. What would cure it: blocks
 * that stay for many pairs, with the next pair's first units on their way meanwhile. */
#include "cuda/product.cuh"

#define WARPS   CUDA_SEGMENTS
#define THREADS (32 * WARPS)
#define REST    (CUDA_TILE_ROWS * 2 + 4) /* stride of partial sums in shared memory, no bank twice */

/* Codes of 8 bits and more would take too many registers for two blocks. */
template <uint32_t FORMAT>
using share_of = cuda_share<FORMAT, cuda_format_is<FORMAT>::code_words == 4 ? 2 : 1>;

/* What a warp's ring holds at a time: a unit of both tiles, or of F16 half a unit. */
template <uint32_t FORMAT> struct stage_of {
    using is = cuda_format_is<FORMAT>;
    static constexpr uint32_t per_unit = is::halves ? 2 : 1;
    /* Blocks of 32 columns in it, and of a share. */
    static constexpr uint32_t blocks = is::halves ? 1 : 2;
    static constexpr uint32_t share_blocks = is::code_words == 4 ? 2 : 1;
    static constexpr uint32_t code_bytes = is::code_bytes / per_unit; /* of one tile */
    static constexpr uint32_t bytes = 2 * (code_bytes + is::high_bytes + is::scale_bytes);
    static constexpr uint32_t n = 6912 / bytes;
    static constexpr uint32_t high_at = 2 * code_bytes;
    static constexpr uint32_t scales_at = high_at + 2 * is::high_bytes;
};

/* Shared memory of one warp: its ring, later its partial sums. */
template <uint32_t FORMAT, int NT> struct warp_memory {
    static constexpr uint32_t ring = stage_of<FORMAT>::bytes * stage_of<FORMAT>::n;
    static constexpr uint32_t partial = 8 * NT * REST * 4;
    static constexpr uint32_t bytes = ring > partial ? ring : partial;
};

/* Where a lane's next 16 bytes come from, of each plane. */
struct source {
    const uint8_t *codes[2];
    const uint8_t *high, *scales; /* of the tile that this lane copies from */
};

/* The lane's 16 bytes of a plane with `bytes` bytes per tile's unit, of the first or second tile.
 */
static __device__ __forceinline__ const uint8_t *lane_source(const uint8_t *first,
                                                             const uint8_t *second,
                                                             size_t first_unit, size_t second_unit,
                                                             uint32_t bytes, uint32_t lane)
{
    uint32_t lanes = bytes / 16;
    const uint8_t *from =
        lane / lanes % 2 ? second + second_unit * bytes : first + first_unit * bytes;
    return from + lane % lanes * 16;
}

template <uint32_t FORMAT>
static __device__ __forceinline__ source source_of(const cuda_job &job, size_t first_unit,
                                                   size_t second_unit, uint32_t lane)
{
    using is = cuda_format_is<FORMAT>;
    source ret = {};
    ret.codes[0] = job.w[0].codes + first_unit * is::code_bytes + 16 * lane;
    ret.codes[1] = job.w[1].codes + second_unit * is::code_bytes + 16 * lane;
    if constexpr (is::high_bytes != 0)
        ret.high = lane_source(job.w[0].high, job.w[1].high, first_unit, second_unit,
                               is::high_bytes, lane);
    if constexpr (is::scale_bytes != 0)
        ret.scales = lane_source(job.w[0].scales, job.w[1].scales, first_unit, second_unit,
                                 is::scale_bytes, lane);
    return ret;
}

/* Starts the copies of the next stage. */
template <uint32_t FORMAT>
static __device__ __forceinline__ void stage_copy(uint8_t *stage, source *from, uint32_t lane)
{
    using is = cuda_format_is<FORMAT>;
    using of = stage_of<FORMAT>;
#pragma unroll
    for (uint32_t at = 0; at < of::code_bytes; at += 512) {
        cuda_copy16(stage + at + 16 * lane, from->codes[0] + at);
        cuda_copy16(stage + of::code_bytes + at + 16 * lane, from->codes[1] + at);
    }
    from->codes[0] += of::code_bytes;
    from->codes[1] += of::code_bytes;
    if constexpr (is::high_bytes != 0) {
        if (lane < 2 * is::high_bytes / 16)
            cuda_copy16(stage + of::high_at + 16 * lane, from->high);
        from->high += is::high_bytes;
    }
    if constexpr (is::scale_bytes != 0) {
        if (lane < 2 * is::scale_bytes / 16)
            cuda_copy16(stage + of::scales_at + 16 * lane, from->scales);
        from->scales += is::scale_bytes;
    }
}

template <uint32_t FORMAT>
static __device__ __forceinline__ void stage_load(share_of<FORMAT> ret[2], const uint8_t *stage,
                                                  uint32_t block, uint32_t lane)
{
    using is = cuda_format_is<FORMAT>;
    using of = stage_of<FORMAT>;
#pragma unroll
    for (uint32_t t = 0; t < 2; t++)
        cuda_share_load(ret + t, stage + t * of::code_bytes,
                        stage + of::high_at + t * is::high_bytes,
                        stage + of::scales_at + t * is::scale_bytes, block, lane);
}

/* x from a segment's first column on, as a lane reads it. Lanes of rows that do not exist read the
 * last one again: no more bytes, and nobody looks at their results. */
template <int NT> struct x_source {
    const uint8_t *values[NT];
    const float *sums[NT];

    __device__ __forceinline__ x_source(const cuda_work &work, uint32_t unit, uint32_t lane)
    {
#pragma unroll
        for (uint32_t t = 0; t < NT; t++) {
            uint32_t n = min(8 * t + lane / 4, work.n_rows - 1);
            size_t block = (size_t)(n / 8) * work.x.blocks + 2 * unit;
            values[t] = (const uint8_t *)work.x.values + (block * 32 + n % 8 * 4 + lane % 4) * 16;
            sums[t] = work.x.sums + block * 16 + lane % 4 * 2;
        }
    }
    template <uint32_t FORMAT, uint32_t BLOCKS> __device__ __forceinline__ void advance()
    {
#pragma unroll
        for (uint32_t t = 0; t < NT; t++) {
            values[t] += BLOCKS * 512;
            if constexpr (cuda_format_is<FORMAT>::minimum)
                sums[t] += BLOCKS * 16;
        }
    }
};

/* One warp's segment: acc = W x over its columns. `ring` is the warp's own. */
template <uint32_t FORMAT, int NT>
static __device__ __forceinline__ void segment_sum(float acc[2][NT][4], const cuda_work &work,
                                                   const cuda_job &job, uint32_t pair,
                                                   uint8_t *ring, uint32_t segment, uint32_t lane)
{
    using of = stage_of<FORMAT>;
    uint32_t first = segment_begin(segment, job.units);
    uint32_t n = (segment_begin(segment + 1, job.units) - first) * of::per_unit;
    source from =
        source_of<FORMAT>(job, (size_t)cuda_tile_of(work, job, pair, 0) * job.units + first,
                          (size_t)cuda_tile_of(work, job, pair, 1) * job.units + first, lane);

#pragma unroll
    for (uint32_t i = 0; i < of::n; i++) {
        if (i < n)
            stage_copy<FORMAT>(ring + i * of::bytes, &from, lane);
        cuda_copies_commit();
    }
    cuda_wait();

    x_source<NT> x(work, first, lane);
    uint32_t at = 0; /* of the stage in the ring */
    for (uint32_t i = 0; i < n; i++) {
        uint8_t *stage = ring + at;
        at = at + of::bytes == of::n * of::bytes ? 0 : at + of::bytes;
        cuda_copies_wait<of::n - 1>();
        __syncwarp();
#pragma unroll
        for (uint32_t s = 0; s < of::blocks; s += of::share_blocks) {
            share_of<FORMAT> share[2];
            stage_load<FORMAT>(share, stage, s, lane);
            if (s + of::share_blocks == of::blocks) {
                __syncwarp();
                if (i + of::n < n)
                    stage_copy<FORMAT>(stage, &from, lane);
                cuda_copies_commit();
            }
#pragma unroll
            for (uint32_t b = 0; b < of::share_blocks; b++)
                multiply_block<FORMAT, NT>(
                    acc, share, b,
                    [&](int t) { return __ldcg((const uint4 *)(x.values[t] + (s + b) * 512)); },
                    [&](int t, int half) {
                        return __ldcg((const float2 *)(x.sums[t] + (s + b) * 16 + half * 8));
                    });
        }
        x.template advance<FORMAT, of::blocks>();
    }
}

/* Row n of x and, per lane, one row of W of the pair: the sum of the partial sums. */
static __device__ __forceinline__ float total_of(const uint8_t *shared, uint32_t bytes, uint32_t n,
                                                 uint32_t lane)
{
    float total = 0;
#pragma unroll
    for (uint32_t k = 0; k < CUDA_SEGMENTS; k += CUDA_QUARTER) {
        float quarter = 0;
#pragma unroll
        for (uint32_t s = k; s < k + CUDA_QUARTER; s++)
            quarter = __fadd_rn(quarter, ((const float *)(shared + s * bytes))[n * REST + lane]);
        total = __fadd_rn(total, quarter);
    }
    return total;
}

/* CUDA_GATED of row n: lanes 0 .. 15 have the gate's columns, lanes 16 .. 31 the same of up. After
 * the last pair the columns that pad to a multiple of 64. */
static __device__ __forceinline__ void finish_gated(const cuda_work &work, const cuda_job &job,
                                                    uint32_t pair, uint32_t n, uint32_t lane,
                                                    float total)
{
    float up = __shfl_xor_sync(0xffffffff, total, 16);
    uint32_t bits = cuda_gate(work.activation, total, up);
    float value = __half2float(__ushort_as_half((unsigned short)bits)), sum = 0;
    for (int j = 0; j < 16; j++)
        sum = __fadd_rn(sum, __shfl_sync(0xffffffff, value, j));
    if (lane < 16)
        work.gated.values[cuda_packed_at(work.gated, n, 16 * pair + lane / 4 * 4) + lane % 4] =
            (uint16_t)bits;
    if (lane == 0)
        work.gated.sums[cuda_sum_at(work.gated, n, 16 * pair)] = sum;
    if (pair + 1 < job.pairs)
        return;
    for (uint32_t c = 16 * job.pairs; c < 32 * work.gated.blocks; c += 16) {
        if (lane < 16)
            work.gated.values[cuda_packed_at(work.gated, n, c + lane / 4 * 4) + lane % 4] = 0;
        if (lane == 0)
            work.gated.sums[cuda_sum_at(work.gated, n, c)] = 0;
    }
}

template <uint32_t FORMAT, int NT>
static __global__ void __launch_bounds__(THREADS, NT == 1 ? 2 : 1)
    multiply_few(const __grid_constant__ cuda_work work)
{
    CUDA_SHARED(uint8_t, shared);
    constexpr uint32_t bytes = warp_memory<FORMAT, NT>::bytes;
    uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const cuda_job &job = work.jobs[cuda_job_of(work, blockIdx.x)];
    uint32_t pair = blockIdx.x - job.first_block;
    uint8_t *own = shared + warp * bytes;
    float acc[2][NT][4] = {};

    cuda_let_next_start();
    segment_sum<FORMAT, NT>(acc, work, job, pair, own, warp, lane);

    __syncwarp();
#pragma unroll
    for (int t = 0; t < 2; t++) {
#pragma unroll
        for (int n = 0; n < NT; n++) {
            float *at = (float *)own + (8 * n + lane % 4 * 2) * REST + 16 * t + lane / 4;
            at[0] = acc[t][n][0];
            at[REST] = acc[t][n][1];
            at[8] = acc[t][n][2];
            at[REST + 8] = acc[t][n][3];
        }
    }
    __syncthreads();
    for (uint32_t n = warp; n < 8 * NT && n < work.n_rows; n += WARPS) {
        uint32_t row = 32 * pair + lane;
        if (work.finish == CUDA_GATED) {
            finish_gated(work, job, pair, n, lane, total_of(shared, bytes, n, lane));
        } else if (row < job.rows) {
            bool add = work.finish == CUDA_ADD;
            float *to = job.to + n * job.stride + row;
            float bias = job.bias ? job.bias[row] : 0.0f, before = add ? *to : 0.0f;
            *to = cuda_finished(add, job.scale, total_of(shared, bytes, n, lane), bias, before);
        }
    }
}

/* ---- launches -------------------------------------------------------------------------------- */

#define FEW_ROWS 16u

template <uint32_t FORMAT, int NT>
static cudaError_t launch_few(const cuda_work &work, cudaStream_t stream)
{
    constexpr uint32_t bytes = WARPS * warp_memory<FORMAT, NT>::bytes;
    cudaError_t error = cudaFuncSetAttribute(
        multiply_few<FORMAT, NT>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
    if (error != cudaSuccess)
        return error;
    return cuda_launch(multiply_few<FORMAT, NT>, dim3(work.n_blocks), dim3(THREADS), bytes, stream,
                       work);
}

static cudaError_t multiply_few_rows(const cuda_work &work, uint32_t format, cudaStream_t stream)
{
    if (work.n_rows <= 8) {
        CUDA_FOR_FORMAT(format, return (launch_few<FORMAT, 1>(work, stream)))
    } else if (work.n_rows <= FEW_ROWS) {
        CUDA_FOR_FORMAT(format, return (launch_few<FORMAT, 2>(work, stream)))
    }
    return cudaErrorInvalidValue;
}

static void work_add(cuda_work *work, const cuda_product *p)
{
    cuda_job *job = &work->jobs[work->n_jobs++];
    bool gated = p->finish == CUDA_GATED;
    const cuda_matrix *second = gated ? &p->v : &p->w;

    job->w[0] = {p->w.codes, p->w.high, p->w.scales};
    job->w[1] = {second->codes, second->high, second->scales};
    job->rows = p->w.rows;
    job->tiles = p->w.tiles;
    job->units = p->w.units;
    job->pairs = gated ? p->w.tiles : (p->w.tiles + 1) / 2;
    job->first_block = work->n_blocks;
    job->scale = p->scale;
    job->bias = p->bias;
    job->to = p->to;
    job->stride = p->stride;
    work->n_blocks += job->pairs;
}

extern "C" cudaError_t cuda_multiply_by(enum cuda_way way, const struct cuda_product *products,
                                        uint32_t n, cudaStream_t stream)
{
    bool done[3] = {};
    if (n > 3)
        return cudaErrorInvalidValue;
    for (uint32_t i = 0; i < n; i++) {
        const cuda_product *p = &products[i];
        if (done[i] || p->n_rows == 0)
            continue;
        cuda_work work = {};
        work.n_rows = p->n_rows;
        work.finish = p->finish;
        work.activation = p->activation;
        work.x = p->x;
        work.gated = p->gated;
        for (uint32_t j = i; j < n; j++) {
            if (products[j].w.format != p->w.format)
                continue;
            work_add(&work, &products[j]);
            done[j] = true;
        }
        bool few = way == CUDA_FEW || (way == CUDA_FASTEST && p->n_rows <= FEW_ROWS);
        cudaError_t error = few ? multiply_few_rows(work, p->w.format, stream)
                                : cuda_multiply_many(&work, p->w.format, way, stream);
        if (error != cudaSuccess)
            return error;
    }
    return cudaSuccess;
}

extern "C" cudaError_t cuda_multiply(const struct cuda_product *products, uint32_t n,
                                     cudaStream_t stream)
{
    return cuda_multiply_by(CUDA_FASTEST, products, n, stream);
}
