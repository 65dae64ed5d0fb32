/* product.cu: y = W x for 1 to 16 rows of x, bound by the weights' bytes.
 *
 *   y[n][r] = sum over c of W[r][c] x[n][c]      W [rows][cols], x [n_rows][cols]
 *
 * The bytes to move: W once (4.5 bits a value in CUDA_W4, see format.cu), and per block x. There
 * are no more blocks than processors; a block takes one pair of tiles after another, 32 rows of W
 * (or 16 of W and 16 of V) for all columns, and each of its 16 warps has one tile of the pair and
 * one segment of the columns, the same for every pair. What a warp reads of W comes by bulk copies
 * to a ring of its own in shared memory, some units ahead and across pairs: while the sums of one
 * pair are brought together, the weights of the next are on their way. The first copies come before
 * cuda_wait(): weights do not depend on earlier kernels, and arrive while those still end.
 *
 * Little's law wants 4.5 TB/s x 1 us / 132 = 34 KB under way per processor; the rings hold 74 KB in
 * CUDA_W4. More was slower (1.87 ms a step with three slots, 1.84 with two). Not loads into
 * registers: the compiler gives all loads of a loop one of a warp's six counters, and a warp that
 * wants the oldest waits for the youngest too. Not small copies by all lanes: they cost a lane as
 * many instructions as half the loop. A bulk copy is one instruction of one lane for some units.
 * One product a processor at a time: where two kernels' blocks shared one, steps took a quarter
 * longer (2.33 ms). Nor does it help to norm x here: while a kernel of its own does that, this
 * one's first weights arrive.
 *
 * x is copied to shared memory once per block; where many rows of many columns do not fit, it comes
 * from the second-level cache for every pair.
 *
 * Instructions per warp and unit of a tile (32 codes a lane) in CUDA_W4: 52 to make halves of
 * codes, 4 tensor-core products, 4 loads, 20 of the loop and the pair's end: 80. Half of them are
 * half-precision arithmetic, which a scheduler starts every second cycle, and a quarter of the
 * others likewise.
 *
 * Measured on an H200 (4.6 TB/s of reads), one row, between events: 28672 x 4096 in CUDA_W4 25 us
 * (66 MB), 4096 x 14336 15.8, 6144 x 4096 12.2, 4096 x 4096 9.4; 4.5 of each are the launch. Inside
 * some 2.5 us pass until x is there, which weights in the ring do not fill; of the rest (3.9 TB/s)
 * a counter says that warps wait for arithmetic and for each other more than for memory: with all
 * weights in the second-level cache 4096 x 14336 still takes 12.5. Of very few rows chain.cu runs
 * several products in one kernel, whose weights go on arriving while x goes round.
 *
 * The partial sums meet in shared memory, where further warps add them, one lane per result, in the
 * order that product.cuh fixes, while the others are at the next pair. With more rows
 * product_many.cu takes over, after 16.
 *
 * Where a block has 64 KiB of shared memory, in which two tiles of x leave room for a ring of
 * smaller slots and one does not for its larger ones, few rows have two as well; and 16 rows by
 * CUDA_F16 one place for partial sums. */
#include "cuda/product_few.cuh"

#define ENDS    2u /* warps at most that finish, each its share of the rows of x */
#define THREADS (32 * (FEW_WARPS + ENDS))

/* A warp's ring: `n` slots, each of some units of a tile. */
template <uint32_t FORMAT, int NT> struct ring_of {
    using is = cuda_format_is<FORMAT>;
    static constexpr uint32_t units = (is::code_words == 4 ? 2 : 1) * (NT == 1 ? 2 : 1);
    static constexpr uint32_t slot_bytes = units * is::piece_bytes;
    static constexpr uint32_t n_most = NT == 1 ? 2 : 4096 / slot_bytes;
    static_assert(n_most >= 2, "a slot under way while one is used");
};

/* ---- weights --------------------------------------------------------------------------------- */

/* Where a warp's next copy comes from: its tile of a block's pair, from `unit` to `end`, and then
 * the same of the grid's next. And its ring: which slot is next to be used, and then filled. */
template <uint32_t FORMAT, int NT> struct stream {
    using is = cuda_format_is<FORMAT>;
    using ring = ring_of<FORMAT, NT>;
    const cuda_work &work;
    uint8_t *slots;
    cuda_barrier *full; /* [n] */
    uint32_t n;         /* slots */
    uint32_t tile, first, end, lane;
    uint32_t block, unit = 0;
    const uint8_t *from = nullptr; /* of `unit` */
    uint32_t slot = 0, parity = 0;

    __device__ __forceinline__ stream(const cuda_work &w, uint8_t *s, cuda_barrier *b, uint32_t k,
                                      uint32_t t, uint32_t f, uint32_t e, uint32_t l)
        : work(w), slots(s), full(b), n(k), tile(t), first(f), end(e), lane(l), block(blockIdx.x)
    {
        if (first == end)
            block = work.n_blocks;
        begin();
    }
    __device__ __forceinline__ void begin()
    {
        unit = first;
        if (block >= work.n_blocks)
            return;
        const cuda_job &job = work.jobs[cuda_job_of(work, block)];
        const uint32_t pair = block - job.first_block;
        from = job.w[tile] + cuda_piece<FORMAT>(work.finish == CUDA_GATED ? pair : 2 * pair + tile,
                                                unit, job.units) *
                                 is::piece_bytes;
    }
    /* The next units to a slot that nobody uses, if there are any. */
    __device__ __forceinline__ void fill(uint32_t to)
    {
        if (block >= work.n_blocks)
            return;
        const uint32_t bytes = min(ring::units, end - unit) * is::piece_bytes;
        uint8_t *slot_at = slots + to * ring::slot_bytes;
        cuda_bulk_open(full + to, bytes, lane);
        if constexpr (is::by_units) {
#pragma unroll
            for (uint32_t u = 0; u < ring::units; u++)
                if (unit + u < end)
                    cuda_bulk_copy(slot_at + u * is::piece_bytes,
                                   from + u * CUDA_BAND * is::piece_bytes, is::piece_bytes,
                                   full + to, lane);
        } else {
            cuda_bulk_copy(slot_at, from, bytes, full + to, lane);
        }
        cuda_bulk_close(full + to, lane);
        unit += ring::units;
        from += ring::slot_bytes * cuda_next_piece<FORMAT>;
        if (unit >= end) {
            block += gridDim.x;
            begin();
        }
    }
    /* The next slot, once it has come. */
    __device__ __forceinline__ const uint8_t *take()
    {
        cuda_barrier_wait(full + slot, parity);
        return slots + slot * ring::slot_bytes;
    }
    /* All lanes are done with it. */
    __device__ __forceinline__ void give()
    {
        __syncwarp();
        fill(slot);
        parity ^= slot + 1 == n;
        slot = slot + 1 == n ? 0 : slot + 1;
    }
};

/* ---- x --------------------------------------------------------------------------------------- */

/* x in shared memory: for each segment and each row that exists the 64 bytes of each block of 32
 * columns in turn. An odd number of blocks from one row to the next keeps two rows out of each
 * other's banks. */
static __host__ __device__ inline uint32_t x_row_bytes(uint32_t units)
{
    return 64 * (2 * ((units + CUDA_SEGMENTS - 1) / CUDA_SEGMENTS) + 1);
}

static __device__ __forceinline__ const uint8_t *x_row(const cuda_work &work, uint32_t n,
                                                       uint32_t unit)
{
    size_t block = (size_t)(n / 8) * work.x.blocks + 2 * unit;
    return (const uint8_t *)work.x.values + block * 512 + n % 8 * 64;
}

/* A warp's part of it: of a segment every second row. */
static __device__ __forceinline__ void x_copy(uint8_t *to, const cuda_work &work, uint32_t first,
                                              uint32_t unit, uint32_t n_units, uint32_t row_bytes,
                                              uint32_t lane)
{
#pragma unroll 1
    for (uint32_t n = first; n < work.n_rows; n += 2) {
        const uint8_t *from = x_row(work, n, unit);
#pragma unroll 1
        for (uint32_t i = lane; i < 8 * n_units; i += 32)
            cuda_copy16(to + n * row_bytes + 16 * i, from + i / 4 * 512 + i % 4 * 16);
    }
    cuda_copies_commit();
}

/* Where a lane reads them: of the segment's first block. Lanes of rows that do not exist read the
 * last one again: no more bytes, and nobody looks at their results. */
template <int NT, bool COPIED>
static __device__ __forceinline__ x_source<NT, COPIED>
x_of(const uint8_t *copy, const cuda_work &work, uint32_t unit, uint32_t row_bytes, uint32_t lane)
{
    x_source<NT, COPIED> ret;
#pragma unroll
    for (uint32_t t = 0; t < NT; t++) {
        const uint32_t n = min(8 * t + lane / 4, work.n_rows - 1);
        ret.values[t] = (COPIED ? copy + n * row_bytes : x_row(work, n, unit)) + lane % 4 * 16;
    }
    return ret;
}

/* ---- a warp's segment ------------------------------------------------------------------------ */

/* acc = of the warp's tile of a pair its segment of n units, slot by slot as they come; what is
 * free is filled again. */
template <uint32_t FORMAT, int NT, bool COPIED>
static __device__ __forceinline__ void segment_sum(float acc[NT][4], stream<FORMAT, NT> *w,
                                                   uint32_t n, const x_source<NT, COPIED> &x,
                                                   uint32_t lane)
{
    using ring = ring_of<FORMAT, NT>;
    using is = typename ring::is;
#pragma unroll 1
    for (uint32_t i = 0; i < n; i += ring::units) {
        const uint8_t *slot = w->take();
        if (i + ring::units <= n) {
#pragma unroll
            for (uint32_t u = 0; u < ring::units; u++)
                multiply_unit<FORMAT, NT>(acc, slot + u * is::piece_bytes, x, 2 * (i + u), lane);
        } else {
#pragma unroll 1
            for (uint32_t u = 0; u < n - i; u++)
                multiply_unit<FORMAT, NT>(acc, slot + u * is::piece_bytes, x, 2 * (i + u), lane);
        }
        w->give();
    }
}

/* ---- ends ------------------------------------------------------------------------------------ */

/* What the end of a result needs from memory, read before the sums are done. */
struct before {
    float bias, to;
};

static __device__ __forceinline__ before before_of(const cuda_work &work, const cuda_job &job,
                                                   uint32_t pair, uint32_t n, uint32_t lane)
{
    uint32_t row = 32 * pair + lane;
    before ret = {};
    if (work.finish == CUDA_GATED || n >= work.n_rows || row >= job.rows)
        return ret;
    if (job.bias)
        ret.bias = job.bias[row];
    if (work.finish == CUDA_ADD)
        ret.to = job.to[n * job.stride + row];
    return ret;
}

static __device__ __forceinline__ void finish(const cuda_work &work, const cuda_job &job,
                                              uint32_t pair, uint32_t n, uint32_t lane, float total,
                                              before was)
{
    uint32_t row = 32 * pair + lane;
    if (work.finish == CUDA_GATED)
        finish_gated(work.gated, work.activation, job.pairs, pair, n, lane, total);
    else if (row < job.rows)
        job.to[n * job.stride + row] =
            cuda_finished(work.finish == CUDA_ADD, job.scale, total, was.bias, was.to);
}

/* ---- the kernel ------------------------------------------------------------------------------ */

/* The partial sums of a block's pairs, one after the other, by one of the warps that multiply. */
template <uint32_t FORMAT, int NT, bool COPIED>
static __device__ __forceinline__ void multiply_pairs(const cuda_work &work, stream<FORMAT, NT> *w,
                                                      uint32_t n_units,
                                                      const x_source<NT, COPIED> &x, float *partial,
                                                      uint32_t places, meeting *meet, uint32_t lane)
{
    place to = {places};
    for (uint32_t block = blockIdx.x, i = 0; block < work.n_blocks;
         block += gridDim.x, i++, to.next()) {
        float acc[NT][4] = {};
        segment_sum<FORMAT, NT, COPIED>(acc, w, n_units, x, lane);
        if (i >= places)
            cuda_barrier_wait(&meet->freed[to.at], to.parity ^ 1);
        partial_store<NT>(partial + to.at * work.n_rows * FEW_REST, acc, work.n_rows, lane);
        __syncwarp();
        if (lane == 0)
            cuda_barrier_arrive(&meet->summed[to.at]);
    }
}

/* How many warps finish: one for up to 4 NT rows. */
template <int NT> static __host__ __device__ inline uint32_t ends_of(uint32_t n_rows)
{
    return (n_rows + 4 * NT - 1) / (4 * NT);
}

/* The same pairs' ends, by one of these: rows first, first + step, ... of x. */
template <int NT>
static __device__ __forceinline__ void finish_pairs(const cuda_work &work, const float *partial,
                                                    uint32_t places, meeting *meet, uint32_t first,
                                                    uint32_t step, uint32_t lane)
{
    place from = {places};
    for (uint32_t block = blockIdx.x; block < work.n_blocks; block += gridDim.x, from.next()) {
        const cuda_job &job = work.jobs[cuda_job_of(work, block)];
        const uint32_t pair = block - job.first_block;
        const float *sums = partial + from.at * work.n_rows * FEW_REST;
        before was[4 * NT];
#pragma unroll
        for (uint32_t i = 0; i < 4 * NT; i++)
            was[i] = before_of(work, job, pair, first + i * step, lane);
        cuda_barrier_wait(&meet->summed[from.at], from.parity);
#pragma unroll
        for (uint32_t i = 0; i < 4 * NT; i++) {
            const uint32_t n = first + i * step;
            if (n < work.n_rows)
                finish(work, job, pair, n, lane, total_of(sums, n, lane), was[i]);
        }
        __syncwarp();
        if (lane == 0)
            cuda_barrier_arrive(&meet->freed[from.at]);
    }
}

/* A block's pairs are blockIdx.x, blockIdx.x + gridDim.x, ... of all that the jobs have. A ring has
 * `slots`, partial sums have `places`; a row of x takes `x_bytes` of a segment. */
template <uint32_t FORMAT, int NT, bool COPIED>
static __global__ void __launch_bounds__(THREADS, 1)
    multiply_few(const __grid_constant__ cuda_work work, uint32_t slots, uint32_t places,
                 uint32_t x_bytes)
{
    CUDA_SHARED(uint8_t, shared);
    using of = ring_of<FORMAT, NT>;
    /* By a shuffle, so that it is known to be the same for a whole warp. */
    const uint32_t lane = threadIdx.x % 32, warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0);
    const uint32_t tile = warp % 2, segment = warp / 2;
    const uint32_t unit = segment_begin(segment, work.jobs[0].units);
    const uint32_t n_units = segment_begin(segment + 1, work.jobs[0].units) - unit;
    cuda_barrier *full = (cuda_barrier *)(shared + FEW_WARPS * slots * of::slot_bytes);
    meeting *meet = (meeting *)(full + FEW_WARPS * slots);
    float *partial = (float *)(meet + 1);
    uint8_t *own_x =
        (uint8_t *)(partial + places * work.n_rows * FEW_REST) + segment * work.n_rows * x_bytes;

    const uint32_t ends = ends_of<NT>(work.n_rows);
    if (threadIdx.x == 32 * FEW_WARPS) {
        for (uint32_t i = 0; i < FEW_PLACES; i++) {
            cuda_barrier_make(&meet->summed[i], FEW_WARPS);
            cuda_barrier_make(&meet->freed[i], ends);
        }
        cuda_barriers_made();
    }
    if (warp >= FEW_WARPS) {
        cuda_let_next_start();
        cuda_wait();
        __syncthreads();
        finish_pairs<NT>(work, partial, places, meet, warp - FEW_WARPS, ends, lane);
        return;
    }
    full += warp * slots;
    if (lane == 0) {
        for (uint32_t i = 0; i < slots; i++)
            cuda_barrier_make(full + i, CUDA_BULK_COUNT);
        cuda_barriers_made();
    }
    __syncwarp();
    stream<FORMAT, NT> w(work, shared + warp * slots * of::slot_bytes, full, slots, tile, unit,
                         unit + n_units, lane);
    for (uint32_t i = 0; i < slots; i++)
        w.fill(i);
    cuda_let_next_start();
    cuda_wait();
    if constexpr (COPIED) {
        x_copy(own_x, work, tile, unit, n_units, x_bytes, lane);
        cuda_copies_wait<0>();
    }
    __syncthreads();
    if constexpr (NT > 1 || CUDA_SHARED_MOST > CUDA_SHARED_7_5) { /* else nobody launches it */
        const x_source<NT, COPIED> x = x_of<NT, COPIED>(own_x, work, unit, x_bytes, lane);
        multiply_pairs<FORMAT, NT, COPIED>(work, &w, n_units, x, partial + 32 * segment + 16 * tile,
                                           places, meet, lane);
    }
}

/* ---- launches -------------------------------------------------------------------------------- */

template <uint32_t FORMAT, int NT, bool COPIED>
static cudaError_t launch_few_as(const cuda_work &work, uint32_t shared_bytes, uint32_t slots,
                                 uint32_t places, uint32_t n_blocks, cudaStream_t stream)
{
    auto kernel = multiply_few<FORMAT, NT, COPIED>;
    cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                             (int)shared_bytes);
    if (error != cudaSuccess)
        return error;
    return cuda_launch(kernel, dim3(n_blocks), dim3(32 * (FEW_WARPS + ends_of<NT>(work.n_rows))),
                       shared_bytes, stream, work, slots, places, x_row_bytes(work.jobs[0].units));
}

template <uint32_t FORMAT, int NT>
static cudaError_t launch_few(const cuda_work &work, const cuda_limits &device, cudaStream_t stream)
{
    using ring = ring_of<FORMAT, NT>;
    const uint32_t n_blocks = min(work.n_blocks, device.processors);
    const uint32_t slot = FEW_WARPS * (ring::slot_bytes + (uint32_t)sizeof(cuda_barrier));
    const uint32_t place_bytes = work.n_rows * FEW_REST * (uint32_t)sizeof(float);
    uint32_t places = FEW_PLACES, other = (uint32_t)sizeof(meeting) + places * place_bytes;
    const size_t x_bytes = (size_t)CUDA_SEGMENTS * work.n_rows * x_row_bytes(work.jobs[0].units);
    /* More than half of a processor's memory, so that no second product's block comes beside. */
    const uint32_t least = device.shared_bytes / 2 + 1024;
    for (; places > 1 && other + slot > device.shared_bytes; places--)
        other -= place_bytes;
    if (other + slot > device.shared_bytes)
        return cudaErrorInvalidConfiguration;
    uint32_t slots = min((device.shared_bytes - other) / slot, ring::n_most);
    const size_t bytes = other + slots * slot + x_bytes;
    if (bytes <= device.shared_bytes)
        return launch_few_as<FORMAT, NT, true>(work, max((uint32_t)bytes, least), slots, places,
                                               n_blocks, stream);
    return launch_few_as<FORMAT, NT, false>(work, max(other + slots * slot, least), slots, places,
                                            n_blocks, stream);
}

static cudaError_t multiply_few_rows(const cuda_work &work, uint32_t format, cudaStream_t stream)
{
    cuda_limits device;
    cudaError_t error = cuda_limits_of(&device);
    if (error != cudaSuccess)
        return error;
    if (work.n_rows <= 8 && device.shared_bytes > CUDA_SHARED_7_5) {
        CUDA_FOR_FORMAT(format, return (launch_few<FORMAT, 1>(work, device, stream)))
    } else if (work.n_rows <= CUDA_FEW_ROWS) {
        CUDA_FOR_FORMAT(format, return (launch_few<FORMAT, 2>(work, device, stream)))
    }
    return cudaErrorInvalidValue;
}

static void work_add(cuda_work *work, const cuda_product *p)
{
    cuda_job *job = &work->jobs[work->n_jobs++];
    bool gated = p->finish == CUDA_GATED;
    const cuda_matrix *second = gated ? &p->v : &p->w;
    const uint32_t pair_rows = gated ? CUDA_TILE_ROWS : 2 * CUDA_TILE_ROWS;

    job->w[0] = p->w.pieces;
    job->w[1] = second->pieces;
    job->rows = p->w.rows;
    job->bands = p->w.bands;
    job->units = p->w.units;
    job->pairs = p->w.rows / pair_rows + (p->w.rows % pair_rows != 0);
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
        work.sums = p->sums;
        for (uint32_t j = i; j < n; j++) {
            if (products[j].w.format != p->w.format)
                continue;
            work_add(&work, &products[j]);
            done[j] = true;
        }
        cudaError_t error = p->x.tiles == 0 ? multiply_few_rows(work, p->w.format, stream)
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
