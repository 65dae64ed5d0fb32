/* chain.cu: what lies between two attentions, for a few rows, in one kernel: a chain of products.
 *
 *   o      x += W o
 *   x      normed | t = act(gate) up
 *   t      x += W t
 *   x      normed | q, k, v of the next layer
 *
 * With a kernel for each, seven kernels that depend on each other, the memory, whose speed is the
 * bound, idles at each of their borders: until x has gone round, what it gives is bounded by what
 * the next kernel's shared memory holds. Here a processor has one block for all of it, and the
 * weights that it needs come to rings in shared memory in one stream that no border stops: while
 * results go round, the rings fill, and what fills them is the next product's. The first products'
 * weights come while attention before this kernel still runs.
 *
 * The sums are those of product.cu and rows.cu (product_few.cuh, norm.cuh), in the same order: a
 * row has the same bits either way.
 *
 * How results go round (struct exchange). Their memory is all ones before they come, which no
 * result is (as float32 or as half-precision that would be a NaN of another kind than arithmetic
 * makes): who needs a number looks until it is there. So a number takes one way to the second-level
 * cache and one from it; counts, and a fence before them, would take twice that. A kernel makes the
 * exchange of the kernel before it all ones again.
 *
 * Warps. FEW_WARPS multiply, as in product.cu: each its tile of a pair and its segment of the
 * columns; before a product they bring its x to shared memory together. One more adds partial sums
 * and writes results; meanwhile the others are at the next pair. It also clears an exchange. The
 * others copy weights, a lane for each warp that multiplies, to a ring of slots, which all warps'
 * shares of a slot fill and leave together: a ring for each warp would be waited for by each lane
 * alone, and such a warp takes half as many instructions as the products beside it. Not more copies
 * are under way than hide the memory's latency, for everything else waits behind them; and fewer
 * still while x goes round.
 *
 * Measured on an H200 (4.68 TB/s of reads), 8B shape, one sequence, tokens per second with a kernel
 * for each operation / chained: Q4_0 at 128 tokens 536 / 583, at 2,048 502 / 533, at 8,192 420 /
 * 404 (hence CUDA_CHAIN_TOKENS); Q4_K 521 / 568; F16 254 / 263 (0.87 of the reads); 1B shape in F16
 * 1,140 / 1,188. Of a layer in Q4_0, in thousands of cycles of 1.87 GHz: from one chain to the
 * next, with attention between, 21; o 2.4 until x is there and 4.4; the way to gate and up 5.9,
 * these 25; the way to t 3.6, t 14; the way to q, k, v 6.8, these 6.4, 8.5 where a block has two
 * pairs. Memory would give all weights in 49.
 *
 * Multiplying is the bound: with nothing copied a step of 1.74 ms takes 1.68, with nothing
 * multiplied 1.46, with neither, and no block waiting for another, 0.87. A unit in CUDA_W4 takes a
 * scheduler 100 cycles where the ring is always full (in a kernel of that alone), here 110, where
 * memory wants 113: so what arrived while x went round is hardly used up faster than it comes. Of
 * the 100, 64 are 32 instructions of half-precision arithmetic, one every second cycle (beside
 * tensor-core products the compiler does not use the other pipe that has it; without it they go
 * twice as fast), and 20 what four tensor-core products hold up; loads, scales, barriers cost
 * nothing, 24 and 28 warps, and wgmma, are no faster. In the kernel a warp's ends of pairs and
 * slots come on top, which its three neighbours do not hide.
 *
 * Tried, in tokens per second beside 577 to 583: a unit's loads under way while the one before is
 * multiplied, across slots and pairs (566: a warp then waits for the next slot before it has used
 * the last); slots of half the size (542; 517 with that: a copying warp's instructions for a slot
 * come to some 750 cycles); copies always two slots at a time (571) or always one (566); a last
 * turn of q, k, v, whose 192 pairs are 1.45 turns of 132 blocks, shared out tile by tile (576; 1B
 * in F16 1,197 where it was 1,190); fewer looks at what goes round (571 to 577). Whole layers in
 * one kernel, with attention in four warps of its own, were no better either (533 of 554 at 128,
 * 307 at 8,192: 17 us a layer, three chunks after each other). Attention's blocks find no room
 * beside these, so it starts when they end, and deep caches, which it reads ahead of time, cost
 * more than a chain saves.
 *
 * Blocks wait for each other and must all run at the same time, one a processor: there are no more
 * of them than processors, and of all kernels beside them none waits for anything (chain.c). They
 * wait for what is earlier in the order above only. */
#include "cuda/norm.cuh"
#include "cuda/product_few.cuh"

#define WORKERS      (32 * FEW_WARPS)
#define OTHERS       128u
#define COPIERS      (OTHERS / 32 - 1) /* warps of these; the first finishes */
#define THREADS      (WORKERS + OTHERS)
#define NORM_UNITS   2u /* of a thread: up to 8,192 columns */
#define SLOTS_MIN    3u
#define SLOTS_MAX    16u
#define UNDER_WAY    2u     /* slots that are being filled at a time */
#define BETWEEN      36000u /* bytes of a slot from which it is one at a part's beginning */
#define COPY_BATCH   4u     /* loads of 16 bytes that a thread has under way */
#define ROW_PADDING  64u    /* keeps two rows of x out of each other's banks */
#define MEET_WORKERS 1      /* their barrier */
#define NONE         UINT32_MAX

/* Units of a worker's share of a slot. */
template <uint32_t FORMAT>
static constexpr uint32_t slot_units =
    FORMAT == CUDA_F16                                              ? 1
    : FORMAT == CUDA_W4 || FORMAT == CUDA_W4M || FORMAT == CUDA_W5M ? 4
                                                                    : 2;

/* ---- what goes round ------------------------------------------------------------------------- */

/* Numbers between a kernel's products, for CUDA_CHAIN_ROWS rows: x after o, x after t, t itself. */
struct exchange {
    float *between, *after; /* [rows][pad64(n_embd)] */
    cuda_packed t;
};

static __host__ __device__ inline uint32_t pad64(uint32_t n)
{
    return (n + 63) / 64 * 64;
}
/* In 16 bytes: of one x, of one exchange. */
static __host__ __device__ inline uint32_t x_units(const cuda_chain &w)
{
    return CUDA_CHAIN_ROWS * pad64(w.n_embd) / 4;
}
static __host__ __device__ inline uint32_t exchange_units(const cuda_chain &w)
{
    return 2 * x_units(w) + pad64(w.n_ffn); /* t: a tile of 8 rows, 2 bytes each */
}

static __device__ __forceinline__ exchange exchange_of(const cuda_chain &w)
{
    uint4 *at = reinterpret_cast<uint4 *>(w.exchange) + w.own * exchange_units(w);
    exchange ret;
    ret.between = reinterpret_cast<float *>(at);
    ret.after = reinterpret_cast<float *>(at + x_units(w));
    ret.t.values = reinterpret_cast<uint16_t *>(at + 2 * x_units(w));
    ret.t.tiles = 0;
    ret.t.cols = w.n_ffn;
    ret.t.blocks = pad64(w.n_ffn) / 32;
    return ret;
}

static __device__ __forceinline__ bool is_there(uint32_t v)
{
    return v != NONE;
}
static __device__ __forceinline__ bool are_there(uint4 v)
{
    return is_there(v.x) && is_there(v.y) && is_there(v.z) && is_there(v.w);
}
/* Both halves of each word. */
static __device__ __forceinline__ bool two_there(uint32_t v)
{
    return (v & 0xffff) != 0xffff && v >> 16 != 0xffff;
}
static __device__ __forceinline__ bool eight_there(uint4 v)
{
    return two_there(v.x) && two_there(v.y) && two_there(v.z) && two_there(v.w);
}

/* A result as it goes round: never all ones. */
static __device__ __forceinline__ float for_exchange(float v)
{
    return __float_as_uint(v) == NONE ? __uint_as_float(0x7fffffffu) : v;
}

/* ---- pairs ----------------------------------------------------------------------------------- */

/* Lines w.first .. last_line() are one behind another; those of CUDA_PART_QKV share their pairs out
 * as if they were one. */
static __device__ __forceinline__ uint32_t last_line(const cuda_chain &w)
{
    return w.last == CUDA_PART_QKV ? (uint32_t)CUDA_LINE_V : w.last;
}
static __device__ __forceinline__ uint32_t part_of(uint32_t line)
{
    return min(line, (uint32_t)CUDA_PART_QKV);
}
/* Those of a part's pairs that a block has: first, first + gridDim.x, ... Blocks that have one more
 * in CUDA_PART_QKV are not those that have one more elsewhere. */
static __device__ __forceinline__ uint32_t first_pair_of(uint32_t part)
{
    return part == CUDA_PART_QKV ? gridDim.x - 1 - blockIdx.x : blockIdx.x;
}
static __device__ __forceinline__ bool has_pairs(const cuda_chain &w, uint32_t part)
{
    uint32_t n = w.lines[part].pairs;
    if (part == CUDA_PART_QKV)
        n += w.lines[CUDA_LINE_K].pairs + w.lines[CUDA_LINE_V].pairs;
    return first_pair_of(part) < n;
}

/* ---- a block --------------------------------------------------------------------------------- */

/* Shared memory, one behind another: rings, barriers, partial sums, sums of norms, and x of a
 * product, [rows][row bytes]. */
struct block_memory {
    uint8_t *slots;
    cuda_barrier *full, *empty; /* of each slot: filled, and free again */
    meeting *meet;
    float *partial; /* [FEW_PLACES][rows][FEW_REST] */
    float *sums;    /* [2][FEW_WARPS] */
    uint8_t *x;

    __device__ __forceinline__ block_memory(const cuda_chain &w, uint8_t *shared)
        : slots(shared), full((cuda_barrier *)(shared + FEW_WARPS * w.n_slots * w.slot_bytes)),
          empty(full + w.n_slots), meet((meeting *)(empty + w.n_slots)),
          partial((float *)(meet + 1)), sums(partial + FEW_PLACES * w.n_rows * FEW_REST),
          x((uint8_t *)(sums + 2 * FEW_WARPS))
    {
    }
};

static __host__ __device__ inline uint32_t x_row_bytes(const cuda_chain &w)
{
    return 2 * pad64(max(max(w.n_embd, w.o_cols), w.n_ffn)) + ROW_PADDING;
}

/* ---- weights, by the warps that copy --------------------------------------------------------- */

/* What a lane copies for: a worker's tile of each pair and its segment. All lanes that copy are at
 * the same slot, so that their warp has one barrier to wait for. */
struct copier {
    uint8_t *slots; /* the worker's share of the first */
    cuda_barrier *full, *empty;
    uint32_t segment;
    uint32_t slot = 0, parity = 1; /* parity: of the slot's last use; the first is free at once */
    uint32_t n_filled = 0, n_of_part = 0; /* slots */

    __device__ __forceinline__ copier(const cuda_chain &w, const block_memory &m, uint32_t tile,
                                      uint32_t s)
        : slots(m.slots + (2 * s + tile) * w.slot_bytes), full(m.full), empty(m.empty), segment(s)
    {
    }
    /* Until the next slot is free, and of those before it few enough are being filled: at a part's
     * beginning, while x for it comes behind the copies that are under way, fewer. */
    __device__ __forceinline__ void wait(const cuda_chain &w)
    {
        cuda_barrier_wait(empty + slot, parity);
        const uint32_t most = n_of_part++ < w.n_slots ? w.between : UNDER_WAY;
        if (n_filled++ >= most) {
            const bool before = slot < most; /* the slot was another round's */
            const uint32_t was = before ? slot + w.n_slots - most : slot - most;
            cuda_barrier_wait(full + was, parity ^ 1 ^ before);
        }
    }
    /* n pieces, maybe none, `apart` pieces from one to the next, to the next slot. */
    __device__ __forceinline__ void fill(const cuda_chain &w, const uint8_t *from, uint32_t n,
                                         uint32_t piece, uint32_t apart)
    {
        uint8_t *to = slots + slot * FEW_WARPS * w.slot_bytes;
        wait(w);
        cuda_bulk_expect(full + slot, n * piece);
        if (apart != 1) {
            for (uint32_t u = 0; u < n; u++)
                cuda_bulk_one(to + u * piece, from + u * apart * piece, piece, full + slot);
        } else if (n != 0) {
            cuda_bulk_one(to, from, n * piece, full + slot);
        }
        cuda_bulk_expected(full + slot);
        parity ^= slot + 1 == w.n_slots;
        slot = slot + 1 == w.n_slots ? 0 : slot + 1;
    }
    /* A line's tiles of the block's pairs, from `pair` on, its segment; the pair after the last. */
    template <uint32_t FORMAT>
    __device__ __forceinline__ uint32_t line(const cuda_chain &w, const cuda_line &line,
                                             uint32_t tile, uint32_t pair, bool gated)
    {
        constexpr uint32_t piece = cuda_format_is<FORMAT>::piece_bytes, some = slot_units<FORMAT>;
        constexpr uint32_t apart = cuda_next_piece<FORMAT>;
        const uint32_t first = segment_begin(segment, line.units);
        const uint32_t n = segment_begin(segment + 1, line.units) - first;
        const uint32_t most = longest_segment(line.units);
#pragma unroll 1
        for (; pair < line.pairs; pair += gridDim.x) {
            const uint32_t number = gated ? pair : 2 * pair + tile;
            const uint8_t *from =
                line.w[tile] + cuda_piece<FORMAT>(number, first, line.units) * piece;
#pragma unroll 1
            for (uint32_t i = 0; i < most; i += some, from += some * apart * piece)
                fill(w, from, i < n ? min(some, n - i) : 0, piece, apart);
        }
        return pair;
    }
};

/* All weights of the block that one worker needs, in the order in which they are used. */
static __device__ __forceinline__ void copy_weights(const cuda_chain &w, const block_memory &m,
                                                    uint32_t tile, uint32_t segment)
{
    copier c(w, m, tile, segment);
    uint32_t part = NONE, pair = 0;
#pragma unroll 1
    for (uint32_t l = w.first; l <= last_line(w); l++) {
        const cuda_line &line = w.lines[l];
        if (part != part_of(l)) {
            part = part_of(l);
            pair = first_pair_of(part);
            c.n_of_part = 0;
        }
        CUDA_FOR_FORMAT(line.format,
                        pair = c.line<FORMAT>(w, line, tile, pair, l == CUDA_PART_GATED))
        pair -= line.pairs;
    }
}

/* For which workers one of the warps that copy does so: from this on, up to the next one's. */
static __device__ __forceinline__ uint32_t first_worker_of(uint32_t copier)
{
    return (copier * FEW_WARPS + COPIERS - 1) / COPIERS;
}

/* ---- x for a product ------------------------------------------------------------------------- */

/* Unit n of a row, once it is there. */
static __device__ __forceinline__ unit wait_unit(const float *row, uint32_t n, uint32_t cols,
                                                 bool there)
{
    const uint32_t c = unit_column(n);
    uint4 low = make_uint4(0, 0, 0, 0), high = low;
    while (true) {
        if (c < cols)
            low = cuda_now16(row + c);
        if (c + 16 < cols)
            high = cuda_now16(row + c + 16);
        if (there || (are_there(low) && are_there(high)))
            break;
        cuda_look_again();
    }
    const uint32_t bits[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
    unit u;
#pragma unroll
    for (uint32_t k = 0; k < 8; k++)
        u.v[k] = __uint_as_float(bits[k]);
    return u;
}

/* Rows of x, normed, to shared memory, by all workers; `there`: no number is to be waited for. */
static __device__ __forceinline__ void take_normed(const cuda_chain &w, const block_memory &m,
                                                   const float *x, size_t stride, bool there,
                                                   const float *norm)
{
    const uint32_t cols = w.n_embd, units = pad64(cols) / 8, thread = threadIdx.x;
    const uint32_t row_bytes = x_row_bytes(w);
    unit weight[NORM_UNITS] = {};
#pragma unroll
    for (uint32_t i = 0; i < NORM_UNITS; i++)
        if (i * WORKERS < units)
            weight[i] = load_unit<true>(norm, thread + i * WORKERS, cols);
#pragma unroll 1
    for (uint32_t r = 0; r < w.n_rows; r++) {
        unit u[NORM_UNITS] = {};
        float sum = 0;
#pragma unroll
        for (uint32_t i = 0; i < NORM_UNITS; i++) {
            if (i * WORKERS >= units)
                break;
            u[i] = wait_unit(x + r * stride, thread + i * WORKERS, cols, there);
            sum = square(sum, u[i]);
        }
        sum = norm_warp_sum(sum);
        float *sums = m.sums + r % 2 * FEW_WARPS;
        if (thread % 32 == 0)
            sums[thread / 32] = sum;
        cuda_meet(MEET_WORKERS, WORKERS);
        const float scale = norm_scale(
            norm_warp_sum(thread % 32 < FEW_WARPS ? sums[thread % 32] : 0.0f), cols, w.eps);
#pragma unroll
        for (uint32_t i = 0; i < NORM_UNITS; i++) {
            const uint32_t n = thread + i * WORKERS;
            if (n < units)
                *(uint4 *)(m.x + r * row_bytes + 16 * n) =
                    unit_halves(normed(u[i], scale, weight[i]));
        }
    }
    cuda_meet(MEET_WORKERS, WORKERS);
}

/* Rows that come in half-precision, likewise. */
static __device__ __forceinline__ void take_packed(const cuda_chain &w, const block_memory &m,
                                                   const uint16_t *x, uint32_t blocks, bool there)
{
    const uint32_t of_row = 4 * blocks, row_bytes = x_row_bytes(w);
    const uint4 *from = (const uint4 *)x;
    uint32_t r = 0, c = threadIdx.x;  /* 16 bytes of a row */
    cuda_meet(MEET_WORKERS, WORKERS); /* nobody multiplies with what was there */
#pragma unroll 1
    while (true) {
        const uint4 *at[COPY_BATCH];
        uint8_t *to[COPY_BATCH];
        uint4 v[COPY_BATCH] = {};
        uint32_t n = 0;
#pragma unroll
        for (uint32_t i = 0; i < COPY_BATCH; i++, c += WORKERS) {
            for (; c >= of_row && r < w.n_rows; c -= of_row)
                r++;
            n += r < w.n_rows;
            at[i] = from + c / 4 * 32 + r * 4 + c % 4;
            to[i] = m.x + r * row_bytes + c * 16;
        }
        if (n == 0)
            break;
        bool all = false;
        while (!all) {
#pragma unroll
            for (uint32_t i = 0; i < COPY_BATCH; i++)
                if (i < n)
                    v[i] = cuda_now16(at[i]);
            all = true;
#pragma unroll
            for (uint32_t i = 0; i < COPY_BATCH; i++)
                if (i < n)
                    all = all && eight_there(v[i]);
            all = all || there;
            if (!all)
                cuda_look_again();
        }
#pragma unroll
        for (uint32_t i = 0; i < COPY_BATCH; i++)
            if (i < n)
                *(uint4 *)to[i] = v[i];
    }
    cuda_meet(MEET_WORKERS, WORKERS);
}

/* The x of a part's product to shared memory. */
static __device__ __forceinline__ void take_x(const cuda_chain &w, const block_memory &m,
                                              uint32_t part, const exchange &e)
{
    if (part == CUDA_PART_O || part == CUDA_PART_DOWN) {
        const bool there = part == CUDA_PART_O;
        take_packed(w, m, there ? w.o.values : e.t.values, there ? w.o.blocks : e.t.blocks, there);
    } else {
        const bool there = w.first == CUDA_PART_QKV;
        const float *x = there ? w.x : part == CUDA_PART_GATED ? e.between : e.after;
        take_normed(w, m, x, there ? w.x_stride : pad64(w.n_embd), there,
                    part == CUDA_PART_GATED ? w.ffn_norm : w.norm);
    }
}

/* ---- products -------------------------------------------------------------------------------- */

/* The ring as a worker sees it: its share of each slot, and which is next. */
struct ring {
    const uint8_t *slots;
    cuda_barrier *full, *empty;
    uint32_t n, bytes; /* bytes: of a slot */
    uint32_t slot = 0, parity = 0;

    __device__ __forceinline__ ring(const cuda_chain &w, const block_memory &m, uint32_t warp)
        : slots(m.slots + warp * w.slot_bytes), full(m.full), empty(m.empty), n(w.n_slots),
          bytes(FEW_WARPS * w.slot_bytes)
    {
    }
    /* The next slot, once it has come. */
    __device__ __forceinline__ const uint8_t *take() const
    {
        cuda_barrier_wait(full + slot, parity);
        return slots + slot * bytes;
    }
    /* All lanes are done with it. */
    __device__ __forceinline__ void give(uint32_t lane)
    {
        __syncwarp();
        if (lane == 0)
            cuda_barrier_arrive(empty + slot);
        parity ^= slot + 1 == n;
        slot = slot + 1 == n ? 0 : slot + 1;
    }
};

/* acc = of the warp's tile its segment of n units; the longest segment has `most`. */
template <uint32_t FORMAT>
static __device__ __forceinline__ void segment_sum(float acc[1][4], ring *r, uint32_t n,
                                                   uint32_t most, const x_source<1, true> &x,
                                                   uint32_t lane)
{
    constexpr uint32_t units = slot_units<FORMAT>, bytes = cuda_format_is<FORMAT>::piece_bytes;
#pragma unroll 1
    for (uint32_t i = 0; i < most; i += units) {
        const uint8_t *slot = r->take();
        if (i + units <= n) {
#pragma unroll
            for (uint32_t u = 0; u < units; u++)
                multiply_unit<FORMAT, 1>(acc, slot + u * bytes, x, 2 * (i + u), lane);
        } else {
#pragma unroll 1
            for (uint32_t u = i; u < n; u++)
                multiply_unit<FORMAT, 1>(acc, slot + (u - i) * bytes, x, 2 * u, lane);
        }
        r->give(lane);
    }
}

/* A block's place for partial sums: which is next, after how many pairs. */
struct places {
    place at;
    uint32_t n = 0;
};

/* The block's pairs of a line from `pair` on, by one of the warps that multiply; the pair after the
 * last. */
template <uint32_t FORMAT>
static __device__ __forceinline__ uint32_t multiply_line(const cuda_chain &w, const cuda_line &line,
                                                         uint32_t pair, ring *r, places *p,
                                                         const block_memory &m)
{
    const uint32_t lane = threadIdx.x % 32, tile = threadIdx.x / 32 % 2, segment = threadIdx.x / 64;
    const uint32_t unit = segment_begin(segment, line.units), n_pairs = line.pairs;
    const uint32_t n = segment_begin(segment + 1, line.units) - unit;
    const uint32_t most = longest_segment(line.units);
    x_source<1, true> x;
    x.values[0] = m.x + min(lane / 4, w.n_rows - 1) * x_row_bytes(w) + lane % 4 * 16 + 128 * unit;
    float *partial = m.partial + 32 * segment + 16 * tile;
#pragma unroll 1
    for (; pair < n_pairs; pair += gridDim.x) {
        float acc[1][4] = {};
        segment_sum<FORMAT>(acc, r, n, most, x, lane);
        if (p->n >= FEW_PLACES)
            cuda_barrier_wait(&m.meet->freed[p->at.at], p->at.parity ^ 1);
        partial_store<1>(partial + p->at.at * w.n_rows * FEW_REST, acc, w.n_rows, lane);
        __syncwarp();
        if (lane == 0)
            cuda_barrier_arrive(&m.meet->summed[p->at.at]);
        p->at.next();
        p->n++;
    }
    return pair;
}

static __device__ __forceinline__ void multiply_all(const cuda_chain &w, const block_memory &m,
                                                    uint32_t warp)
{
    const exchange e = exchange_of(w);
    places p;
    ring r(w, m, warp);
    uint32_t part = NONE, pair = 0;
#pragma unroll 1
    for (uint32_t l = w.first; l <= last_line(w); l++) {
        const cuda_line &line = w.lines[l];
        if (part != part_of(l)) {
            part = part_of(l);
            pair = first_pair_of(part);
            if (has_pairs(w, part))
                take_x(w, m, part, e);
        }
        CUDA_FOR_FORMAT(line.format, pair = multiply_line<FORMAT>(w, line, pair, &r, &p, m))
        pair -= line.pairs;
    }
}

/* ---- ends, by the warp that finishes --------------------------------------------------------- */

/* Where results of a line go: to `to`, and where they are added to x, to x too. */
struct target {
    float *to, *x;
    size_t stride;
};

static __device__ __forceinline__ target target_of(const cuda_chain &w, const exchange &e,
                                                   uint32_t part, const cuda_line &line)
{
    if (part == CUDA_PART_O)
        return {e.between, w.x, pad64(w.n_embd)};
    if (part == CUDA_PART_DOWN)
        return {e.after, w.x, pad64(w.n_embd)};
    return {line.to, nullptr, line.stride};
}

/* The block's pairs of a line from `pair` on; the pair after the last. */
static __device__ __forceinline__ uint32_t finish_line(const cuda_chain &w, uint32_t part,
                                                       const cuda_line &line, uint32_t pair,
                                                       const exchange &e, place *from,
                                                       const block_memory &m, uint32_t lane)
{
    const target to = target_of(w, e, part, line);
#pragma unroll 1
    for (; pair < line.pairs; pair += gridDim.x) {
        const uint32_t row = 32 * pair + lane;
        const bool is = part != CUDA_PART_GATED && row < line.rows;
        const float bias = is && line.bias ? line.bias[row] : 0.0f;
        float before[CUDA_CHAIN_ROWS];
#pragma unroll
        for (uint32_t n = 0; n < CUDA_CHAIN_ROWS; n++)
            before[n] = is && to.x && n < w.n_rows ? to.x[n * w.x_stride + row] : 0.0f;
        cuda_barrier_wait(&m.meet->summed[from->at], from->parity);
#pragma unroll
        for (uint32_t n = 0; n < CUDA_CHAIN_ROWS; n++) {
            if (n >= w.n_rows)
                break;
            const float total = total_of(m.partial + from->at * w.n_rows * FEW_REST, n, lane);
            if (part == CUDA_PART_GATED) {
                finish_gated(e.t, w.activation, line.pairs, pair, n, lane, total);
            } else if (is) {
                const float y = cuda_finished(to.x != nullptr, 1, total, bias, before[n]);
                to.to[n * to.stride + row] = for_exchange(y);
                if (to.x)
                    to.x[n * w.x_stride + row] = y;
            }
        }
        __syncwarp();
        if (lane == 0)
            cuda_barrier_arrive(&m.meet->freed[from->at]);
        from->next();
    }
    return pair;
}

static __device__ __forceinline__ void finish_all(const cuda_chain &w, const block_memory &m,
                                                  uint32_t lane)
{
    const exchange e = exchange_of(w);
    place from;
    uint32_t part = NONE, pair = 0;
#pragma unroll 1
    for (uint32_t l = w.first; l <= last_line(w); l++) {
        if (part != part_of(l)) {
            part = part_of(l);
            pair = first_pair_of(part);
        }
        pair = finish_line(w, part, w.lines[l], pair, e, &from, m, lane);
        pair -= w.lines[l].pairs;
    }
}

/* The block's share of the exchange of the kernel before this one. */
static __device__ __forceinline__ void clear_exchange(const cuda_chain &w, uint32_t lane)
{
    const uint32_t n = exchange_units(w);
    uint4 *at = reinterpret_cast<uint4 *>(w.exchange) + w.before * n;
    for (uint32_t i = blockIdx.x * 32 + lane; i < n; i += gridDim.x * 32)
        at[i] = make_uint4(NONE, NONE, NONE, NONE);
}

/* ---- the kernel ------------------------------------------------------------------------------ */

static __device__ __forceinline__ void make_barriers(const cuda_chain &w, const block_memory &m)
{
    for (uint32_t i = 0; i < FEW_PLACES; i++) {
        cuda_barrier_make(&m.meet->summed[i], FEW_WARPS);
        cuda_barrier_make(&m.meet->freed[i], 1);
    }
    for (uint32_t i = 0; i < w.n_slots; i++) {
        cuda_barrier_make(m.full + i, FEW_WARPS);
        cuda_barrier_make(m.empty + i, FEW_WARPS);
    }
    cuda_barriers_made();
}

static __global__ void __launch_bounds__(THREADS, 1) run_chain(const __grid_constant__ cuda_chain w)
{
    CUDA_SHARED(uint8_t, shared);
    const uint32_t lane = threadIdx.x % 32, warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0);
    const block_memory m(w, shared);
    if (threadIdx.x == WORKERS)
        make_barriers(w, m);
    cuda_let_next_start();
    __syncthreads();
    if (warp < FEW_WARPS) {
        cuda_group_more_registers<104>();
        cuda_wait();
        multiply_all(w, m, warp);
        return;
    }
    cuda_group_fewer_registers<64>();
    if (warp == FEW_WARPS) {
        cuda_wait();
        clear_exchange(w, lane);
        finish_all(w, m, lane);
    } else { /* weights are nobody's results */
        const uint32_t worker = first_worker_of(warp - FEW_WARPS - 1) + lane;
        if (worker < first_worker_of(warp - FEW_WARPS))
            copy_weights(w, m, worker % 2, worker / 2);
    }
}

/* ---- launches -------------------------------------------------------------------------------- */

static uint32_t slot_bytes_of(uint32_t format)
{
    CUDA_FOR_FORMAT(format, return slot_units<FORMAT> * cuda_format_is<FORMAT>::piece_bytes)
    return 0;
}

extern "C" bool cuda_chain_fit(struct cuda_chain *chain, uint32_t shared_bytes)
{
    const uint32_t other =
        (uint32_t)sizeof(meeting) + chain->n_rows * x_row_bytes(*chain) +
        (FEW_PLACES * chain->n_rows * FEW_REST + 2 * FEW_WARPS) * (uint32_t)sizeof(float);
    if (chain->n_embd % 32 != 0 || chain->n_embd > NORM_UNITS * WORKERS * 8 ||
        chain->o_cols % CUDA_UNIT != 0 || shared_bytes < CUDA_SHARED_9_0)
        return false;
    chain->slot_bytes = 0;
    for (uint32_t i = 0; i < CUDA_LINES; i++)
        if (chain->lines[i].pairs != 0)
            chain->slot_bytes = max(chain->slot_bytes, slot_bytes_of(chain->lines[i].format));
    const uint32_t slot = FEW_WARPS * chain->slot_bytes + 2 * (uint32_t)sizeof(cuda_barrier);
    if (chain->slot_bytes == 0 || other + SLOTS_MIN * slot > shared_bytes)
        return false;
    chain->n_slots = min((shared_bytes - other) / slot, SLOTS_MAX);
    chain->between = slot < BETWEEN ? UNDER_WAY : 1;
    chain->shared_bytes = other + chain->n_slots * slot;
    return true;
}

extern "C" size_t cuda_chain_exchange_bytes(const struct cuda_chain *chain)
{
    return (size_t)16 * exchange_units(*chain);
}

/* With as much shared memory as there is. */
extern "C" uint32_t cuda_chain_blocks(void)
{
    cuda_limits device;
    if (cuda_limits_of(&device) != cudaSuccess ||
        cudaFuncSetAttribute((const void *)run_chain, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             (int)device.shared_bytes) != cudaSuccess)
        return 0;
    return cuda_blocks_at_once(run_chain, THREADS, device.shared_bytes);
}

extern "C" cudaError_t cuda_chain_run(const struct cuda_chain *chain, uint32_t shared_bytes,
                                      cudaStream_t stream)
{
    cuda_chain w = *chain;
    if (!cuda_chain_fit(&w, shared_bytes))
        return cudaErrorInvalidConfiguration;
    return cuda_launch_together(run_chain, dim3(w.n_blocks), dim3(THREADS), w.shared_bytes, stream,
                                w);
}
