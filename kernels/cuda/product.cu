/* product.cu: y = W x for 1 to 16 rows of x, bound by the weights' bytes.
 *
 *   y[n][r] = sum over c of W[r][c] x[n][c]      W [rows][cols], x [n_rows][cols]
 *
 * The bytes to move: W once (4.5 bits a value in CUDA_W4, see format.cu), and per block x. There
 * are no more blocks than processors; a block takes one pair of tiles after another, 32 rows of W
 * (or 16 of W and 16 of V) for all columns, and each of its 16 warps has one segment of the
 * columns, the same for every pair. A lane loads its weights straight into registers, 3 or 4 units
 * ahead, and does so across pairs: while the sums of one are brought together, the weights of the
 * next are on their way. In CUDA_W4 that are 4 x 2 tiles x 576 bytes for each of 16 warps, 72 KiB
 * per processor, where 40 KiB are enough to hide the memory's latency (Little: 4.3 TB/s x 1 us /
 * 132 = 33 KB). The first loads come before cuda_wait(): weights do not depend on earlier kernels,
 * and arrive while those still end.
 *
 * Two tiles share the fragments of x. Each warp copies its segment of the rows that exist (n_rows
 * of 8, or of 16) to shared memory once; where many rows of many columns do not fit, x comes from
 * the second-level cache for every pair.
 *
 * Instructions per warp and unit of a pair of tiles (64 codes a lane) in CUDA_W4 with 8 rows: 72 to
 * make halves of codes, 8 tensor-core products, 24 to scale, 6 loads, and 4 to 6 of the loop: 116,
 * or 1.8 per code and lane; beside them about 140 per pair for its addresses, sums and barrier,
 * with 4 units in a segment of 4096 columns 35 a unit. A processor issues 128 lanes a cycle and at
 * full bandwidth gets 35 codes of 4.5 bits: half of its issue slots in all, and most of what is
 * left waits for nothing but memory.
 *
 * The partial sums meet in shared memory and are added by one thread per result in the order that
 * product.cuh fixes.
 *
 * Measured on an H200 (4.6 TB/s of reads), one row, launch included: 28672 x 4096 in CUDA_W4 23.3
 * us (66 MB: 2.8 TB/s), 4096 x 14336 14.7, 6144 x 4096 11.1, 4096 x 4096 8.4; a ring in shared
 * memory, filled anew for each pair by blocks that had one pair each, took 30.2, 18.8, 11.3
 * and 9.1. What is left: the last round leaves processors idle (6144 x 4096: 192 pairs, 2 rounds),
 * and what comes before and after a kernel's own time, some 2 us, is not small beside it. With more
 * rows product_many.cu takes over, after 16. */
#include "cuda/product.cuh"

#define WARPS   CUDA_SEGMENTS
#define THREADS (32 * WARPS)
/* Floats between the partial sums of two rows of x in shared memory: a pair's 32 rows of W for each
 * segment, and 4 that keep what a warp writes at a time out of each other's banks. */
#define REST (32 * WARPS + 4)

/* Where a warp's next weights wait for it: slots in registers. One holds a unit of both tiles of a
 * pair, or half of one where codes are of 8 bits or more. */
template <uint32_t FORMAT, int NT, bool COPIED> struct slots_of {
    using is = cuda_format_is<FORMAT>;
    static constexpr uint32_t blocks = is::code_words == 4 ? 2 : 1; /* of 32 columns in a slot */
    static constexpr uint32_t per_unit = 2 / blocks;
    using share = cuda_share<FORMAT, blocks>;
    /* As many as leave all that the loop needs in registers. */
    static constexpr uint32_t of_8_rows = is::high_words ? 3 : 4;
    static constexpr uint32_t of_16_rows = FORMAT == CUDA_W4 || FORMAT == CUDA_W4M
                                               ? (COPIED ? 3 : 2)
                                           : FORMAT == CUDA_F16 || FORMAT == CUDA_W8 ? 4
                                                                                     : 2;
    static constexpr uint32_t n = NT == 1 ? of_8_rows : of_16_rows;
    static_assert(n % per_unit == 0, "a slot is always the same half of a unit");
};

/* A lane's place in the planes of a pair's tiles: of the next slot to load. */
template <uint32_t FORMAT> struct weights_at {
    const uint8_t *codes[2], *high[2], *scales[2];
};

template <uint32_t FORMAT>
static __device__ __forceinline__ weights_at<FORMAT>
weights_of(const cuda_work &work, uint32_t block, uint32_t unit, uint32_t lane)
{
    using is = cuda_format_is<FORMAT>;
    const cuda_job &job = work.jobs[cuda_job_of(work, block)];
    weights_at<FORMAT> ret = {};
#pragma unroll
    for (uint32_t t = 0; t < 2; t++) {
        uint32_t tile = cuda_tile_of(work, job, block - job.first_block, t);
        uint32_t at = tile * job.units + unit; /* no memory has room for more of them */
        ret.codes[t] = job.w[t].codes + (size_t)at * is::code_bytes + 16 * lane;
        if constexpr (is::high_bytes != 0)
            ret.high[t] = job.w[t].high + (size_t)at * is::high_bytes + 4 * is::high_words * lane;
        if constexpr (is::scale_bytes != 0)
            ret.scales[t] =
                job.w[t].scales + (size_t)at * is::scale_bytes + lane / 4 * 4 * is::scale_words;
    }
    return ret;
}

template <uint32_t N>
static __device__ __forceinline__ void stream_words(uint32_t *ret, const uint8_t *from)
{
    static_assert(N == 1 || N == 2 || N % 4 == 0, "what a lane can load at a time");
    if constexpr (N == 1) {
        ret[0] = cuda_stream4(from);
    } else if constexpr (N == 2) {
        uint2 w = cuda_stream8(from);
        ret[0] = w.x;
        ret[1] = w.y;
    } else {
#pragma unroll
        for (uint32_t i = 0; i < N; i += 4) {
            uint4 w = cuda_stream16(from + 128 * i);
            ret[i] = w.x;
            ret[i + 1] = w.y;
            ret[i + 2] = w.z;
            ret[i + 3] = w.w;
        }
    }
}

/* The slot `ahead` slots after the next one; a constant, so that it is part of the instruction. */
template <uint32_t FORMAT, int NT, bool COPIED>
static __device__ __forceinline__ void
slot_load(typename slots_of<FORMAT, NT, COPIED>::share slot[2], const weights_at<FORMAT> &from,
          uint32_t ahead)
{
    using is = cuda_format_is<FORMAT>;
    using of = slots_of<FORMAT, NT, COPIED>;
    using share = typename of::share;
    uint32_t unit = ahead / of::per_unit, half = ahead % of::per_unit;
#pragma unroll
    for (uint32_t t = 0; t < 2; t++) {
        stream_words<share::code_words>(slot[t].codes,
                                        from.codes[t] + ahead * is::code_bytes / of::per_unit);
        if constexpr (is::high_words != 0)
            stream_words<share::high_words>(slot[t].high, from.high[t] + unit * is::high_bytes);
        if constexpr (is::scale_words != 0)
            stream_words<share::scale_words>(slot[t].scales, from.scales[t] +
                                                                 unit * is::scale_bytes +
                                                                 half * 4 * share::scale_words);
    }
}

template <uint32_t FORMAT, int NT, bool COPIED>
static __device__ __forceinline__ void weights_advance(weights_at<FORMAT> *at, uint32_t slots)
{
    using is = cuda_format_is<FORMAT>;
    uint32_t units = slots / slots_of<FORMAT, NT, COPIED>::per_unit;
#pragma unroll
    for (uint32_t t = 0; t < 2; t++) {
        at->codes[t] += units * is::code_bytes;
        if constexpr (is::high_words != 0)
            at->high[t] += units * is::high_bytes;
        if constexpr (is::scale_words != 0)
            at->scales[t] += units * is::scale_bytes;
    }
}

/* ---- x --------------------------------------------------------------------------------------- */

/* A warp's copy of its segment of x in shared memory: for each row that exists the 64 bytes of each
 * block of 32 columns in turn, then for each row tile its sums, also 64 bytes a block. An odd
 * number of blocks from one row to the next keeps two rows out of each other's banks. */
static __host__ __device__ inline uint32_t x_row_bytes(uint32_t units)
{
    return 64 * (2 * ((units + CUDA_SEGMENTS - 1) / CUDA_SEGMENTS) + 1);
}

/* Where a lane reads x: of the segment's first block. Lanes of rows that do not exist read the last
 * one again: no more bytes, and nobody looks at their results. */
template <int NT, bool COPIED> struct x_source {
    const uint8_t *values[NT], *sums;
    uint32_t sums_stride; /* of a row tile */

    static constexpr uint32_t block_bytes = COPIED ? 64 : 512; /* of values; 64 of sums */

    __device__ __forceinline__ uint4 value(int t, uint32_t block) const
    {
        const uint4 *from = (const uint4 *)(values[t] + block * block_bytes);
        return COPIED ? *from : __ldcg(from);
    }
    __device__ __forceinline__ float2 sum(int t, uint32_t block, int half) const
    {
        const float2 *from = (const float2 *)(sums + t * sums_stride + block * 64 + half * 32);
        return COPIED ? *from : __ldcg(from);
    }
    __device__ __forceinline__ void advance(int32_t blocks)
    {
#pragma unroll
        for (int t = 0; t < NT; t++)
            values[t] += blocks * (int32_t)block_bytes;
        sums += blocks * 64;
    }
};

static __device__ __forceinline__ const uint8_t *x_row(const cuda_work &work, uint32_t n,
                                                       uint32_t unit)
{
    size_t block = (size_t)(n / 8) * work.x.blocks + 2 * unit;
    return (const uint8_t *)work.x.values + block * 512 + n % 8 * 64;
}
static __device__ __forceinline__ const uint8_t *x_sums(const cuda_work &work, uint32_t tile,
                                                        uint32_t unit)
{
    return (const uint8_t *)work.x.sums + ((size_t)tile * work.x.blocks + 2 * unit) * 64;
}

/* 64 bytes for each of n blocks that are block_bytes apart. */
static __device__ __forceinline__ void x_row_copy(uint8_t *to, const uint8_t *from,
                                                  uint32_t block_bytes, uint32_t n, uint32_t lane)
{
#pragma unroll 1
    for (uint32_t i = lane; i < 4 * n; i += 32)
        cuda_copy16(to + 16 * i, from + i / 4 * block_bytes + i % 4 * 16);
}

template <uint32_t FORMAT, int NT>
static __device__ __forceinline__ x_source<NT, true> x_copy(uint8_t *own, const cuda_work &work,
                                                            uint32_t unit, uint32_t n_units,
                                                            uint32_t row_bytes, uint32_t lane)
{
    x_source<NT, true> ret = {};
    uint8_t *sums = own + work.n_rows * row_bytes;
#pragma unroll 1
    for (uint32_t n = 0; n < work.n_rows; n++)
        x_row_copy(own + n * row_bytes, x_row(work, n, unit), 512, 2 * n_units, lane);
    for (uint32_t t = 0; t < NT; t++) {
        if (cuda_format_is<FORMAT>::minimum)
            x_row_copy(sums + t * row_bytes, x_sums(work, t, unit), 64, 2 * n_units, lane);
        ret.values[t] = own + min(8 * t + lane / 4, work.n_rows - 1) * row_bytes + lane % 4 * 16;
    }
    ret.sums = sums + lane % 4 * 8;
    ret.sums_stride = row_bytes;
    cuda_copies_commit();
    cuda_copies_wait<0>();
    __syncwarp();
    return ret;
}

template <int NT>
static __device__ __forceinline__ x_source<NT, false> x_in_place(const cuda_work &work,
                                                                 uint32_t unit, uint32_t lane)
{
    x_source<NT, false> ret = {};
    for (uint32_t t = 0; t < NT; t++) {
        ret.values[t] = x_row(work, min(8 * t + lane / 4, work.n_rows - 1), unit) + lane % 4 * 16;
    }
    ret.sums = x_sums(work, 0, unit) + lane % 4 * 8;
    ret.sums_stride = work.x.blocks * 64;
    return ret;
}

/* ---- a warp's segment ------------------------------------------------------------------------ */

template <uint32_t FORMAT, int NT, bool COPIED>
static __device__ __forceinline__ void
slot_multiply(float acc[2][NT][4], const typename slots_of<FORMAT, NT, COPIED>::share slot[2],
              const x_source<NT, COPIED> &x, uint32_t ahead)
{
    constexpr uint32_t blocks = slots_of<FORMAT, NT, COPIED>::blocks;
#pragma unroll
    for (uint32_t b = 0; b < blocks; b++)
        multiply_block<FORMAT, NT>(
            acc, slot, b, [&](int t) { return x.value(t, ahead * blocks + b); },
            [&](int t, int half) { return x.sum(t, ahead * blocks + b, half); });
}

/* What a warp streams: slot i of a segment lies in slots[i % N]. */
template <uint32_t FORMAT, int NT, bool COPIED> struct stream {
    using of = slots_of<FORMAT, NT, COPIED>;
    typename of::share slots[of::n][2];
    weights_at<FORMAT> at; /* slot 0 of the segment, then N slots before the next to load */
    uint32_t n;            /* slots of a segment */
};

template <uint32_t FORMAT, int NT, bool COPIED>
static __device__ __forceinline__ void stream_fill(stream<FORMAT, NT, COPIED> *s)
{
#pragma unroll
    for (uint32_t i = 0; i < slots_of<FORMAT, NT, COPIED>::n; i++) {
        if (i < s->n)
            slot_load<FORMAT, NT, COPIED>(s->slots[i], s->at, i);
    }
}

/* acc = W x over the segment's columns of the pair whose slots are under way; behind them those of
 * the next pair, at `next` of the grid, if there is one. */
template <uint32_t FORMAT, int NT, bool COPIED>
static __device__ __forceinline__ void
segment_sum(float acc[2][NT][4], stream<FORMAT, NT, COPIED> *s, x_source<NT, COPIED> *x,
            const cuda_work &work, uint32_t next, uint32_t unit, uint32_t lane)
{
    using of = slots_of<FORMAT, NT, COPIED>;
    uint32_t left = s->n;
    for (; left > of::n; left -= of::n) {
        weights_advance<FORMAT, NT, COPIED>(&s->at, of::n);
#pragma unroll
        for (uint32_t i = 0; i < of::n; i++) {
            slot_multiply<FORMAT, NT, COPIED>(acc, s->slots[i], *x, i);
            if (of::n + i < left)
                slot_load<FORMAT, NT, COPIED>(s->slots[i], s->at, i);
        }
        x->advance(of::n * of::blocks);
    }
    bool more = next < work.n_blocks;
    if (more)
        s->at = weights_of<FORMAT>(work, next, unit, lane);
    if (left == of::n) {
#pragma unroll
        for (uint32_t i = 0; i < of::n; i++) {
            slot_multiply<FORMAT, NT, COPIED>(acc, s->slots[i], *x, i);
            if (more)
                slot_load<FORMAT, NT, COPIED>(s->slots[i], s->at, i);
        }
    } else {
#pragma unroll
        for (uint32_t i = 0; i + 1 < of::n; i++) {
            if (i < left)
                slot_multiply<FORMAT, NT, COPIED>(acc, s->slots[i], *x, i);
        }
        if (more)
            stream_fill<FORMAT, NT, COPIED>(s);
    }
    x->advance((int32_t)((left - s->n) * of::blocks));
}

/* ---- ends ------------------------------------------------------------------------------------ */

/* The warp's partial sums, of the rows of x that exist. */
template <int NT>
static __device__ __forceinline__ void partial_store(float *partial, const float acc[2][NT][4],
                                                     uint32_t n_rows, uint32_t warp, uint32_t lane)
{
#pragma unroll
    for (int n = 0; n < NT; n++) {
        uint32_t row = 8 * n + lane % 4 * 2;
        float *at = partial + row * REST + 32 * warp + lane / 4;
#pragma unroll
        for (uint32_t i = 0; i < 2; i++) {
            if (n == NT - 1 && row + i >= n_rows)
                continue;
            at[i * REST] = acc[0][n][i];
            at[i * REST + 8] = acc[0][n][i + 2];
            at[i * REST + 16] = acc[1][n][i];
            at[i * REST + 24] = acc[1][n][i + 2];
        }
    }
}

/* Row n of x and, per lane, one row of W of the pair: the sum of the partial sums. */
static __device__ __forceinline__ float total_of(const float *partial, uint32_t n, uint32_t lane)
{
    const float *from = partial + n * REST + lane;
    float total = 0;
#pragma unroll
    for (uint32_t k = 0; k < CUDA_SEGMENTS; k += CUDA_QUARTER) {
        float quarter = 0;
#pragma unroll
        for (uint32_t s = k; s < k + CUDA_QUARTER; s++)
            quarter = __fadd_rn(quarter, from[32 * s]);
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
#pragma unroll 1
    for (uint32_t c = 16 * job.pairs; c < 32 * work.gated.blocks; c += 16) {
        if (lane < 16)
            work.gated.values[cuda_packed_at(work.gated, n, c + lane / 4 * 4) + lane % 4] = 0;
        if (lane == 0)
            work.gated.sums[cuda_sum_at(work.gated, n, c)] = 0;
    }
}

/* What the end of a result needs from memory, read before the sums are done. */
struct before {
    float bias, to;
};

static __device__ __forceinline__ before before_of(const cuda_work &work, uint32_t block,
                                                   uint32_t n, uint32_t lane)
{
    const cuda_job &job = work.jobs[cuda_job_of(work, block)];
    uint32_t row = 32 * (block - job.first_block) + lane;
    before ret = {};
    if (work.finish == CUDA_GATED || n >= work.n_rows || row >= job.rows)
        return ret;
    if (job.bias)
        ret.bias = job.bias[row];
    if (work.finish == CUDA_ADD)
        ret.to = job.to[n * job.stride + row];
    return ret;
}

static __device__ __forceinline__ void finish(const cuda_work &work, uint32_t block, uint32_t n,
                                              uint32_t lane, float total, before was)
{
    const cuda_job &job = work.jobs[cuda_job_of(work, block)];
    uint32_t pair = block - job.first_block, row = 32 * pair + lane;
    if (work.finish == CUDA_GATED)
        finish_gated(work, job, pair, n, lane, total);
    else if (row < job.rows)
        job.to[n * job.stride + row] =
            cuda_finished(work.finish == CUDA_ADD, job.scale, total, was.bias, was.to);
}

/* A block's pairs are blockIdx.x, blockIdx.x + gridDim.x, ... of all that the jobs have. `x_bytes`:
 * what a row of x takes in a warp's copy. */
template <uint32_t FORMAT, int NT, bool COPIED>
static __global__ void __launch_bounds__(THREADS, 1)
    multiply_few(const __grid_constant__ cuda_work work, uint32_t x_bytes)
{
    CUDA_SHARED(float, partial);
    using of = slots_of<FORMAT, NT, COPIED>;
    /* By a shuffle, so that it is known to be the same for a whole warp. */
    const uint32_t lane = threadIdx.x % 32, warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0);
    const uint32_t unit = segment_begin(warp, work.jobs[0].units);
    const uint32_t n_units = segment_begin(warp + 1, work.jobs[0].units) - unit;
    stream<FORMAT, NT, COPIED> s = {};

    s.n = n_units * of::per_unit;
    s.at = weights_of<FORMAT>(work, blockIdx.x, unit, lane);
    stream_fill<FORMAT, NT, COPIED>(&s);
    cuda_let_next_start();
    cuda_wait();

    x_source<NT, COPIED> x;
    if constexpr (COPIED) {
        uint32_t n_rows = work.n_rows + (of::is::minimum ? NT : 0);
        uint8_t *own = (uint8_t *)(partial + 2 * work.n_rows * REST) + warp * n_rows * x_bytes;
        x = x_copy<FORMAT, NT>(own, work, unit, n_units, x_bytes, lane);
    } else {
        x = x_in_place<NT>(work, unit, lane);
    }

    /* Partial sums in two places by turns: when a warp writes to one again, all have passed the
     * barrier after the other, and so are done with what it held. */
    uint32_t turn = 0;
    for (uint32_t block = blockIdx.x; block < work.n_blocks; block += gridDim.x) {
        float acc[2][NT][4] = {}, *rest = partial + turn * work.n_rows * REST;
        before was = {};
        if (NT == 1 && COPIED)
            was = before_of(work, block, warp, lane);
        segment_sum<FORMAT, NT, COPIED>(acc, &s, &x, work, block + gridDim.x, unit, lane);
        if (NT > 1 || !COPIED) /* where there are no registers to keep it */
            was = before_of(work, block, warp, lane);
        partial_store<NT>(rest, acc, work.n_rows, warp, lane);
        __syncthreads();
        if (warp < work.n_rows)
            finish(work, block, warp, lane, total_of(rest, warp, lane), was);
        turn ^= 1;
    }
}

/* ---- launches -------------------------------------------------------------------------------- */

#define FEW_ROWS 16u
static_assert(FEW_ROWS <= WARPS, "a warp finishes one row");

template <uint32_t FORMAT, int NT, bool COPIED>
static cudaError_t launch_few_as(const cuda_work &work, uint32_t shared_bytes, uint32_t n_blocks,
                                 cudaStream_t stream)
{
    cudaError_t error =
        cudaFuncSetAttribute(multiply_few<FORMAT, NT, COPIED>,
                             cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared_bytes);
    if (error != cudaSuccess)
        return error;
    return cuda_launch(multiply_few<FORMAT, NT, COPIED>, dim3(n_blocks), dim3(THREADS),
                       shared_bytes, stream, work, x_row_bytes(work.jobs[0].units));
}

/* What the current device has. */
struct device_has {
    uint32_t processors, shared_bytes;
};
static cudaError_t device_look(device_has *ret)
{
    int device = 0, processors = 0, shared_bytes = 0;
    cudaError_t error = cudaGetDevice(&device);
    if (error == cudaSuccess)
        error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
    if (error == cudaSuccess)
        error =
            cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    *ret = {(uint32_t)processors, (uint32_t)shared_bytes};
    return error;
}

template <uint32_t FORMAT, int NT>
static cudaError_t launch_few(const cuda_work &work, cudaStream_t stream)
{
    device_has device;
    cudaError_t error = device_look(&device);
    if (error != cudaSuccess)
        return error;
    uint32_t n_blocks = min(work.n_blocks, device.processors);
    uint32_t partial_bytes = 2 * work.n_rows * REST * (uint32_t)sizeof(float);
    uint32_t x_rows = work.n_rows + (cuda_format_is<FORMAT>::minimum ? NT : 0);
    size_t bytes = partial_bytes + (size_t)WARPS * x_rows * x_row_bytes(work.jobs[0].units);
    if (bytes <= device.shared_bytes)
        return launch_few_as<FORMAT, NT, true>(work, (uint32_t)bytes, n_blocks, stream);
    return launch_few_as<FORMAT, NT, false>(work, partial_bytes, n_blocks, stream);
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
