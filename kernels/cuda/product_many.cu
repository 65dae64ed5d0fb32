/* product_many.cu: y = W x for more rows of x, bound by the tensor cores.
 *
 * The same sums as product.cu in the same order (product.cuh), so that a row's bits do not depend
 * on how many rows it comes with; here several warps share what is read. Eight warps share a
 * block's tile, each 32 rows of W (a pair of tiles) by 8 NT rows of x, in one of two ways:
 *
 *   wide    128 rows of W x 128 of x: 4 pairs x 2 halves of x; every warp walks through all columns
 *   deep    64 rows of W x 32 or 64 of x: 2 pairs x 4 quarters of the columns; twice as many blocks
 *           for each row of W, for matrices and batches that would leave processors without work
 *
 * Both stage units of 64 columns, W as it lies in memory and x as it is packed, in a ring in shared
 * memory, filled by asynchronous copies; fragment order makes a lane's reads 16 bytes, a warp's
 * 512 bytes without a bank conflict. W becomes halves in registers.
 *
 * Work per warp and 32 columns (wide, CUDA_W4): 32 tensor-core products (16 x 8 x 16), 64 to scale
 * groups, 40 to make halves, 50 for loads, copies and the loop. mma.sync reaches about 62% of the
 * chip's figure (which needs wgmma): 32 take 205 cycles of a quarter of a processor, and the 186
 * instructions of each of its two warps 90% of its issue slots. By 16 columns (CUDA_W6, CUDA_W8M)
 * scaling doubles, minima cost the same again: there the issue slots are the bound. CUDA_F16 needs
 * 75 instructions.
 *
 * Bytes from the second-level cache per block and column, CUDA_W4: W's 72 and x's 256 for 128 x 128
 * products (wide), 100 operations a byte; 36 and 128 for 64 x 64 (deep), 50 a byte; of CUDA_F16 64
 * and 32. At 5.5 TB/s, which that cache gives, 550 and 275, 350 and 175 TFLOP/s: for CUDA_F16 and
 * for all that is deep the cache is the bound, and the cure are blocks that share what they read.
 *
 * Measured on an H200, 512 rows, 28672 x 4096: CUDA_F16 434 us, 277 TFLOP/s; CUDA_W4 535 us, 225,
 * where 350 and 400 were expected. Two warps a scheduler issue 0.30 and 0.45 instructions a cycle;
 * sixteen warps of half the width were 10% slower, so it is not latency alone: reads of shared
 * memory are 380 cycles of the 416 that the tensor cores need for 32 columns, and copies into it
 * another 128. What would cure it: wgmma, which reads both operands from shared memory itself. */
#include "cuda/product.cuh"

#define WARPS   8
#define THREADS (32 * WARPS)

/* How a block is cut: PAIRS of tiles of W, WIDE parts of x of 8 NT rows each, DEEP parts of the
 * columns (1 or 4). */
template <uint32_t FORMAT, int PAIRS, int WIDE, int DEEP, int NT> struct shape_of {
    using is = cuda_format_is<FORMAT>;
    static_assert(PAIRS * WIDE * DEEP == WARPS && (DEEP == 1 || DEEP == 4), "one warp each");
    static constexpr uint32_t warps = WARPS / DEEP; /* of one part of the columns */
    static constexpr uint32_t tiles = 2 * PAIRS, x_tiles = WIDE * NT, x_rows = 8 * x_tiles;
    /* A stage: of each part of the columns a unit. */
    static constexpr uint32_t high_at = tiles * is::code_bytes;
    static constexpr uint32_t scales_at = high_at + tiles * is::high_bytes;
    static constexpr uint32_t x_at = scales_at + tiles * is::scale_bytes;
    static constexpr uint32_t sums_at = x_at + x_tiles * 1024;
    static constexpr uint32_t part_bytes = sums_at + (is::minimum ? x_tiles * 128 : 0);
    static constexpr uint32_t stage_bytes = DEEP * part_bytes;
    /* Results: [DEEP][x_rows][row_floats]; no bank twice for fragments, nor for 16 bytes of 8 rows.
     */
    static constexpr uint32_t row_floats = 16 * tiles + 4;
    static constexpr uint32_t part_floats = x_rows * row_floats;
    static constexpr uint32_t result_bytes = DEEP * part_floats * 4;
    /* Wide: results beside the ring; deep: where it was. */
    static constexpr uint32_t room = 220 * 1024 - (DEEP == 1 ? result_bytes : 0);
    static constexpr uint32_t n = room / stage_bytes < 4 ? room / stage_bytes : 4;
    static constexpr uint32_t ring_bytes = n * stage_bytes;
    static constexpr uint32_t bytes = DEEP == 1                   ? ring_bytes + result_bytes
                                      : ring_bytes > result_bytes ? ring_bytes
                                                                  : result_bytes;
    static_assert(n >= 2, "a stage under way while one is used");
};

/* ---- staging --------------------------------------------------------------------------------- */

/* What one warp copies of a part: whole tiles of W and of x, and where its lanes' next 16 bytes of
 * them come from. */
template <class SHAPE> struct part_source {
    using is = typename SHAPE::is;
    static constexpr uint32_t n_w = SHAPE::tiles / SHAPE::warps,
                              n_x = SHAPE::x_tiles / SHAPE::warps;
    static_assert(n_w * SHAPE::warps == SHAPE::tiles && n_x * SHAPE::warps == SHAPE::x_tiles &&
                      n_x <= 4,
                  "whole tiles, and their sums by one warp");
    const uint8_t *codes[n_w], *high[n_w], *scales[n_w];
    const uint8_t *x[n_x], *sums; /* sums: of tile lane / 8 of the warp's */

    __device__ __forceinline__ part_source(const cuda_work &work, const cuda_job &job,
                                           uint32_t first_pair, uint32_t first_x, uint32_t unit,
                                           uint32_t warp, uint32_t lane)
    {
#pragma unroll
        for (uint32_t k = 0; k < n_w; k++) {
            uint32_t i = warp + k * SHAPE::warps;
            const cuda_planes &w = job.w[i % 2];
            size_t at =
                (size_t)cuda_tile_of(work, job, first_pair + i / 2, i % 2) * job.units + unit;
            codes[k] = w.codes + at * is::code_bytes + 16 * lane;
            if constexpr (is::high_bytes != 0)
                high[k] = w.high + at * is::high_bytes + 16 * lane;
            if constexpr (is::scale_bytes != 0)
                scales[k] = w.scales + at * is::scale_bytes + 16 * lane;
        }
        auto x_block = [&](uint32_t k) {
            uint32_t tile = min(first_x + warp + k * SHAPE::warps, (work.n_rows - 1) / 8);
            return (size_t)tile * work.x.blocks + 2 * unit;
        };
#pragma unroll
        for (uint32_t k = 0; k < n_x; k++)
            x[k] = (const uint8_t *)work.x.values + x_block(k) * 512 + 16 * lane;
        if constexpr (is::minimum)
            sums = (const uint8_t *)work.x.sums + x_block(lane / 8) * 64 + lane % 8 * 16;
    }

    /* Starts the copies of the next unit to a stage's part. */
    __device__ __forceinline__ void copy(uint8_t *to, uint32_t warp, uint32_t lane)
    {
#pragma unroll
        for (uint32_t k = 0; k < n_w; k++) {
            uint32_t i = warp + k * SHAPE::warps;
#pragma unroll
            for (uint32_t at = 0; at < is::code_bytes; at += 512)
                cuda_copy16(to + i * is::code_bytes + at + 16 * lane, codes[k] + at);
            codes[k] += is::code_bytes;
            if constexpr (is::high_bytes != 0) {
                if (lane < is::high_bytes / 16)
                    cuda_copy16(to + SHAPE::high_at + i * is::high_bytes + 16 * lane, high[k]);
                high[k] += is::high_bytes;
            }
            if constexpr (is::scale_bytes != 0) {
                if (lane < is::scale_bytes / 16)
                    cuda_copy16(to + SHAPE::scales_at + i * is::scale_bytes + 16 * lane, scales[k]);
                scales[k] += is::scale_bytes;
            }
        }
#pragma unroll
        for (uint32_t k = 0; k < n_x; k++) {
            uint8_t *at = to + SHAPE::x_at + (warp + k * SHAPE::warps) * 1024 + 16 * lane;
            cuda_copy16(at, x[k]);
            cuda_copy16(at + 512, x[k] + 512);
            x[k] += 1024;
        }
        if constexpr (is::minimum) {
            uint32_t tile = warp + lane / 8 * SHAPE::warps;
            if (lane < 8 * n_x)
                cuda_copy16(to + SHAPE::sums_at + tile * 128 + lane % 8 * 16, sums);
            sums += 128;
        }
    }
};

/* ---- sums ------------------------------------------------------------------------------------ */

/* acc += one unit: of the warp's pair of tiles and its NT tiles of x. A block of 32 columns at a
 * time: more would not fit into registers. */
template <uint32_t FORMAT, class SHAPE, int NT>
static __device__ __forceinline__ void unit_sum(float acc[2][NT][4], const uint8_t *part,
                                                uint32_t pair, uint32_t first_x, uint32_t lane)
{
    using is = cuda_format_is<FORMAT>;
    const uint8_t *w = part + 2 * pair * is::code_bytes;
    const uint8_t *high = part + SHAPE::high_at + 2 * pair * is::high_bytes;
    const uint8_t *scales = part + SHAPE::scales_at + 2 * pair * is::scale_bytes;
    const uint8_t *x = part + SHAPE::x_at + first_x * 1024 + 16 * lane;
    const uint8_t *sums = part + SHAPE::sums_at + first_x * 128 + lane % 4 * 8;
#pragma unroll 1
    for (uint32_t b = 0; b < 2; b++) {
        cuda_share<FORMAT, 1> share[2];
#pragma unroll
        for (uint32_t t = 0; t < 2; t++)
            cuda_share_load(share + t, w + t * is::code_bytes, high + t * is::high_bytes,
                            scales + t * is::scale_bytes, b, lane);
        multiply_block<FORMAT, NT>(
            acc, share, 0, [&](int t) { return *(const uint4 *)(x + t * 1024 + b * 512); },
            [&](int t, int half) {
                return *(const float2 *)(sums + t * 128 + b * 64 + half * 32);
            });
    }
}

/* A warp's sums on their way: of the segment, of the quarter, and (in shared memory) of all. */
template <class SHAPE, int NT> struct sums_of {
    float acc[2][NT][4];
    float quarter[2][NT][4];
    uint32_t segment;
    float *result; /* the lane's own: row 2 q of x, row g of W of its part */

    __device__ __forceinline__ void each(bool first, bool add) const
    {
#pragma unroll
        for (int t = 0; t < 2; t++) {
#pragma unroll
            for (int n = 0; n < NT; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    float *at = result + (8 * n + i % 2) * SHAPE::row_floats + 16 * t + i / 2 * 8;
                    *at = add ? __fadd_rn(first ? 0.0f : *at, quarter[t][n][i]) : quarter[t][n][i];
                }
            }
        }
    }
    /* Ends the segments before the one that has unit `unit`, or all up to `last`. */
    __device__ __forceinline__ void end_before(uint32_t unit, uint32_t units, uint32_t last,
                                               bool add)
    {
        while (segment < last && unit >= segment_begin(segment + 1, units)) {
#pragma unroll
            for (int t = 0; t < 2; t++) {
#pragma unroll
                for (int n = 0; n < NT; n++) {
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        quarter[t][n][i] = __fadd_rn(quarter[t][n][i], acc[t][n][i]);
                        acc[t][n][i] = 0;
                    }
                }
            }
            segment++;
            if (!add || segment % CUDA_QUARTER != 0)
                continue;
            each(segment == CUDA_QUARTER, true);
#pragma unroll
            for (int t = 0; t < 2; t++) {
#pragma unroll
                for (int n = 0; n < NT; n++) {
#pragma unroll
                    for (int i = 0; i < 4; i++)
                        quarter[t][n][i] = 0;
                }
            }
        }
    }
};

/* ---- finishes -------------------------------------------------------------------------------- */

/* Row n of x and row r of W, both of the block: the quarters' sum. */
template <class SHAPE, int DEEP>
static __device__ __forceinline__ float result_of(const float *results, uint32_t n, uint32_t r)
{
    const float *at = results + n * SHAPE::row_floats + r;
    if constexpr (DEEP == 1)
        return *at;
    float total = 0;
#pragma unroll
    for (uint32_t k = 0; k < DEEP; k++)
        total = __fadd_rn(total, at[k * SHAPE::part_floats]);
    return total;
}

/* CUDA_GATED of one row of x and one pair: 16 columns and their sum. */
template <class SHAPE, int DEEP>
static __device__ __forceinline__ void finish_gated(const cuda_work &work, const float *results,
                                                    uint32_t pair, uint32_t n, uint32_t block_pair,
                                                    uint32_t block_n)
{
    float sum = 0;
#pragma unroll
    for (uint32_t c = 0; c < 16; c += 4) {
        uint32_t bits[4];
#pragma unroll
        for (uint32_t j = 0; j < 4; j++) {
            uint32_t r = 32 * block_pair + c + j;
            bits[j] = cuda_gate(work.activation, result_of<SHAPE, DEEP>(results, block_n, r),
                                result_of<SHAPE, DEEP>(results, block_n, r + 16));
            sum = __fadd_rn(sum, __half2float(__ushort_as_half((unsigned short)bits[j])));
        }
        uint2 *to = (uint2 *)(work.gated.values + cuda_packed_at(work.gated, n, 16 * pair + c));
        *to = {bits[0] | bits[1] << 16, bits[2] | bits[3] << 16};
    }
    work.gated.sums[cuda_sum_at(work.gated, n, 16 * pair)] = sum;
}

/* Columns that pad to a multiple of 64, after the last pair. */
static __device__ __forceinline__ void finish_padding(const cuda_work &work, uint32_t pairs,
                                                      uint32_t n)
{
    for (uint32_t c = 16 * pairs; c < 32 * work.gated.blocks; c += 4) {
        *(uint2 *)(work.gated.values + cuda_packed_at(work.gated, n, c)) = {0, 0};
        work.gated.sums[cuda_sum_at(work.gated, n, c)] = 0;
    }
}

/* CUDA_STORE and CUDA_ADD: a warp has 32 rows of W at a time, and loads what it adds to for many
 * rows of x at once. */
template <class SHAPE, int DEEP>
static __device__ __forceinline__ void finish_rows(const cuda_work &work, const cuda_job &job,
                                                   const float *results, uint32_t first_pair,
                                                   uint32_t first_n)
{
    constexpr uint32_t all = SHAPE::tiles / 2 * SHAPE::x_rows;
    constexpr uint32_t at_once = all / WARPS < 16 ? all / WARPS : 16;
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const bool add = work.finish == CUDA_ADD;
    static_assert(all % (WARPS * at_once) == 0 && SHAPE::x_rows % at_once == 0, "as many each");

    for (uint32_t first = warp * at_once; first < all; first += WARPS * at_once) {
        uint32_t n = first % SHAPE::x_rows, r = first / SHAPE::x_rows * 32 + lane;
        uint32_t row = 32 * first_pair + r;
        if (row >= job.rows)
            continue;
        float *to = job.to + (first_n + n) * job.stride + row;
        float bias = job.bias ? job.bias[row] : 0.0f;
        uint32_t rows = min(work.n_rows - min(first_n + n, work.n_rows), at_once);
        float before[at_once];
#pragma unroll
        for (uint32_t k = 0; k < at_once; k++)
            before[k] = add && k < rows ? to[k * job.stride] : 0.0f;
#pragma unroll
        for (uint32_t k = 0; k < at_once; k++) {
            float total = result_of<SHAPE, DEEP>(results, n + k, r);
            if (k < rows)
                to[k * job.stride] = cuda_finished(add, job.scale, total, bias, before[k]);
        }
    }
}

template <class SHAPE, int DEEP>
static __device__ __forceinline__ void finish(const cuda_work &work, const cuda_job &job,
                                              const float *results, uint32_t first_pair,
                                              uint32_t first_n)
{
    if (work.finish != CUDA_GATED) {
        finish_rows<SHAPE, DEEP>(work, job, results, first_pair, first_n);
        return;
    }
    for (uint32_t i = threadIdx.x; i < SHAPE::tiles / 2 * SHAPE::x_rows; i += THREADS) {
        uint32_t n = first_n + i % SHAPE::x_rows, pair = first_pair + i / SHAPE::x_rows;
        if (n >= work.n_rows || pair >= job.pairs)
            continue;
        finish_gated<SHAPE, DEEP>(work, results, pair, n, i / SHAPE::x_rows, i % SHAPE::x_rows);
        if (pair + 1 == job.pairs)
            finish_padding(work, job.pairs, n);
    }
}

/* ---- the kernel ------------------------------------------------------------------------------ */

template <uint32_t FORMAT, int PAIRS, int WIDE, int DEEP, int NT>
static __global__ void __launch_bounds__(THREADS, 1)
    multiply_many(const __grid_constant__ cuda_work work)
{
    using shape = shape_of<FORMAT, PAIRS, WIDE, DEEP, NT>;
    CUDA_SHARED(uint8_t, shared);
    const cuda_job &job = work.jobs[cuda_job_of(work, blockIdx.y)];
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const uint32_t deep = warp / shape::warps, inner = warp % shape::warps;
    const uint32_t wide = inner / PAIRS, pair = inner % PAIRS;
    const uint32_t first_pair = (blockIdx.y - job.first_block) * PAIRS;
    const uint32_t first_x = blockIdx.x * shape::x_tiles; /* in tiles of 8 rows */
    const uint32_t segments = CUDA_SEGMENTS / DEEP;
    const uint32_t first = segment_begin(deep * segments, job.units);
    const uint32_t last = segment_begin((deep + 1) * segments, job.units);
    const uint32_t steps =
        (job.units + DEEP - 1) / DEEP; /* no part of the columns has more units */
    float *results = (float *)(shared + (DEEP == 1 ? shape::ring_bytes : 0));

    sums_of<shape, NT> sums = {};
    sums.segment = deep * segments;
    sums.result = results + deep * shape::part_floats +
                  (8 * NT * wide + lane % 4 * 2) * shape::row_floats + 32 * pair + lane / 4;

    cuda_let_next_start();
    cuda_wait();
    part_source<shape> from(work, job, first_pair, first_x, first, inner, lane);
    uint8_t *ring = shared + deep * shape::part_bytes;
#pragma unroll
    for (uint32_t i = 0; i + 1 < shape::n; i++) {
        if (first + i < last)
            from.copy(ring + i * shape::stage_bytes, inner, lane);
        cuda_copies_commit();
    }
    uint32_t at = 0, free = (shape::n - 1) * shape::stage_bytes; /* of the ring's stages */
    for (uint32_t i = 0; i < steps; i++) {
        cuda_copies_wait<shape::n - 2>();
        __syncthreads();
        if (first + i + shape::n - 1 < last)
            from.copy(ring + free, inner, lane);
        cuda_copies_commit();
        if (first + i < last) {
            sums.end_before(first + i, job.units, (deep + 1) * segments, DEEP == 1);
            unit_sum<FORMAT, shape, NT>(sums.acc, ring + at, pair, wide * NT, lane);
        }
        free = at;
        at = at + shape::stage_bytes == shape::ring_bytes ? 0 : at + shape::stage_bytes;
    }
    sums.end_before(job.units, job.units, (deep + 1) * segments, DEEP == 1);
    if constexpr (DEEP != 1) {
        __syncthreads();
        sums.each(true, false);
    }
    __syncthreads();
    finish<shape, DEEP>(work, job, results, first_pair, 8 * first_x);
}

/* ---- launches -------------------------------------------------------------------------------- */

template <uint32_t FORMAT, int PAIRS, int WIDE, int DEEP, int NT>
static cudaError_t launch_many(cuda_work *work, cudaStream_t stream)
{
    using shape = shape_of<FORMAT, PAIRS, WIDE, DEEP, NT>;
    auto kernel = multiply_many<FORMAT, PAIRS, WIDE, DEEP, NT>;
    uint32_t n_blocks = 0;
    for (uint32_t i = 0; i < work->n_jobs; i++) {
        work->jobs[i].first_block = n_blocks;
        n_blocks += (work->jobs[i].pairs + PAIRS - 1) / PAIRS;
    }
    cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                             (int)shape::bytes);
    if (error != cudaSuccess)
        return error;
    dim3 grid((work->n_rows + shape::x_rows - 1) / shape::x_rows, n_blocks);
    return cuda_launch(kernel, grid, dim3(THREADS), shape::bytes, stream, *work);
}

/* Tiles of x of a warp: what fits into its registers. */
template <uint32_t FORMAT> static constexpr int tiles_of = FORMAT == CUDA_W8M ? 4 : 8;

/* Wide where that gives enough blocks for the processors of a large GPU. */
#define WIDE_BLOCKS 96u

cudaError_t cuda_multiply_many(struct cuda_work *work, uint32_t format, enum cuda_way way,
                               cudaStream_t stream)
{
    uint32_t pairs = 0;
    for (uint32_t i = 0; i < work->n_jobs; i++)
        pairs += work->jobs[i].pairs;
    if (way == CUDA_FASTEST && work->n_rows > 64 &&
        pairs / 4 * ((work->n_rows + 127) / 128) >= WIDE_BLOCKS)
        way = CUDA_WIDE;
    if (way == CUDA_WIDE) {
        CUDA_FOR_FORMAT(format,
                        return (launch_many<FORMAT, 4, 2, 1, tiles_of<FORMAT>>(work, stream)))
    } else if (work->n_rows <= 32) {
        CUDA_FOR_FORMAT(format, return (launch_many<FORMAT, 2, 1, 4, 4>(work, stream)))
    } else {
        CUDA_FOR_FORMAT(format,
                        return (launch_many<FORMAT, 2, 1, 4, tiles_of<FORMAT>>(work, stream)))
    }
    return cudaErrorInvalidValue;
}
