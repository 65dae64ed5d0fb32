/* product_many.cu: y = W x for more than 16 rows of x, bound by the tensor cores or by W's bytes.
 *
 * The same sums as product.cu in the same order (product.cuh), so that a row's bits do not depend
 * on how many rows it comes with. A block's tile is 128 rows of W (a pair of bands) by 8 NT rows of
 * x, NT 4, 8 or 16 as x is packed. Groups of four warps have a band each; every lane makes halves
 * of its own codes, in registers, where the tensor cores take them from; x they read from shared
 * memory themselves (group_mma.cuh). Further warps copy: W as it lies in memory and x as it is
 * packed, in few and large pieces, into a ring of stages, ahead across tiles, so that the next
 * tile's first columns arrive while this one's results are written, and weights before cuda_wait().
 * And those warps of their group that do not copy finish tiles, all but a block's last one, while
 * the others sum the next: these write a tile's results once, when all its quarters are summed.
 *
 * A run is what is added up in registers from zero: a segment of the columns. With NT 16 one group
 * has a band's segments one after the other, a quarter's second without a stop after its first; the
 * sums of both and of all quarters are 192 of a thread's 232 registers (168 where groups cannot
 * hand them over: there some fifty sums lie in local memory from one quarter to the next). With
 * fewer rows two groups share a band, each one of a quarter's two segments: four warps a scheduler
 * instead of two, because a warp makes one instruction in four to five cycles and the tensor cores
 * have less to do.
 *
 * Blocks take tiles in turn, one block a processor; those of the same rows of W follow each other,
 * so that memory gives W once and the second-level cache the rest. Where the last turn would leave
 * processors without work, its tiles' runs are shared out evenly. A block then writes its sums to
 * device memory, quarters, or segments where a quarter is cut, and when it has all of them it
 * finishes some rows of each of its tiles, adding up what all of the tile's blocks wrote in the
 * usual order. That memory is all ones where nothing was put yet, and whoever takes something makes
 * it so again: a wait is a look at what is waited for. Blocks wait after all their sums, so that no
 * wait hangs on another, and all run at once. (A fence and a counter for each tile were 1.5 us
 * slower with 32 rows; the last of a tile's blocks finishing it alone 1 to 4 us. Clusters of four
 * blocks, each a quarter, which read each other's shared memory, were slower: only 30 of them fit
 * on 132 processors, so that 32 tiles took two turns.)
 *
 * Work per tile of 128 x 128 and 64 columns: the tensor cores need 512 cycles (2,048 products
 * each); a scheduler's two warps issue about 2 x 125 instructions in CUDA_W4, half of them to make
 * halves. Shared memory gives 128 bytes a cycle: in CUDA_F16 both groups' products read x (32 KiB),
 * lanes W (16) and copies write both (32), 640 cycles of it; in CUDA_W4 58 KiB, 464. Copies: in
 * CUDA_W4 5 KiB of W and 16 of x, 42 bytes a cycle and processor, in CUDA_F16 64; the second-level
 * cache gives 36 on average when all read at once (7.7 to 9.5 TB/s measured). With 32 rows: 5 KiB
 * and 4, where memory gives 17 a cycle: W's bytes are the bound.
 *
 * Bulk copies cost their issuer about 65 cycles each, whatever their size (512 bytes to 2 KiB
 * measured): hence two units a stage where pieces are small, and four tiles a copy where they are
 * large (with nine copies a unit CUDA_F16 lost a tenth).
 *
 * Measured on an H200, 1,024 rows, again and again for 0.3 s, us and TFLOP/s: 28672 x 4096 CUDA_W4
 * 459, 523, CUDA_F16 477, 504; 4096 x 14336 220, 546 and 224, 536; 4096 x 4096 67, 514 and 69, 498.
 * Before: 498, 519, 220, 238, 75 and 81 us. Of that, instructions of the warps that finish (a
 * division less for each number and for each address) 4 % and 2 % of 28672 x 4096; sums that memory
 * adds, so that no warp waits for what was there, 9 % of 4096 x 4096; no stop within a quarter 4 %
 * and 6 %.
 *
 * Why not more: power. At 700 W the clock falls from 1.98 GHz to 1.28 to 1.36 in CUDA_F16 and 1.4
 * to 1.5 in CUDA_W4, where the tensor cores have work in 0.68 to 0.77 and 0.66 to 0.72 of the
 * cycles. (With zeros, which take less, 1.7 to 1.83 GHz and 640 TFLOP/s; the vendor's library, with
 * 16 bits, keeps up 613 to 644 at 1.5 GHz, with work in 0.79; for its first milliseconds 723.) In
 * CUDA_F16, 4096 x 14336, at 506 TFLOP/s then: without copies of x 560, of W 551, of both 608, and
 * without loads of W by lanes either 615. x sent to both blocks of a cluster of two at once, each
 * of which copies half of it, saves what the second-level cache reads, but not the way: 1 to 3 %
 * faster here, and slower with 128 rows and less. Products whose factors come from registers take
 * 76 cycles where 64 would be the tensor cores' rate; nothing else done, they have work in 0.71.
 * Tiles of 128 x 256, which would copy three quarters as much, need a third set of sums that fits
 * nowhere (128 KiB each).
 *
 * Making a factor while the one before is under way was 1 % slower; one group of warps half a
 * microsecond behind the other was no faster. To finish tiles from registers (CUDA_STORE,
 * CUDA_ADD), where eight neighbours in memory are all that a warp has of a row, cost 3 us a tile
 * more. With 64 rows two warps need longer to finish a tile than the other blocks' tiles take:
 * there all finish (1.5 % faster).
 *
 * With few rows a kernel's beginning and end are most of it. CUDA_W4, 32 and 128 rows, us, of which
 * an empty kernel between events has 5: 4096 x 4096 14 and 23, of which the bytes need 2, 4096 x
 * 14336 23 and 37, 6144 x 4096 17 and 32, 28672 x 4096 38 and 63. Of 6.3 ms that 128 sequences take
 * in a step, products are 4.3, attention 1.1, norms 0.4, the turn 0.3, the head 0.3. At 500 TFLOP/s
 * products would take 3.6: what they lack are x's way at the beginning, 1 us, and the sums' way
 * round at the end, 2. 6144 x 4096 shares in threes, so that a block has parts of two tiles to
 * bring, one after the other: 3 us more than when one block did it alone. The compiler must see
 * that all lanes of a warp take the same way, or it keeps addresses of shared memory in each lane's
 * registers, and the loop over columns takes a tenth longer. */
#include "cuda/product_finish.cuh"

#define STAGES_MAX 8u

/* A block's threads and its shared memory: the ring, the results, barriers. */
template <uint32_t FORMAT, int NT, uint32_t HALVES> struct shape_of {
    using is = cuda_format_is<FORMAT>;
    static constexpr uint32_t halves = HALVES;            /* segments at a time */
    static constexpr uint32_t warps = 4 * BANDS * halves; /* that multiply */
    /* A group beside them: a warp per half copies, the others finish. */
    static constexpr uint32_t threads = 32 * (warps + 4);
    static constexpr uint32_t finishing = 4 - halves;
    /* Whether they have the time for it: two warps need longer for 64 rows than other sums take. */
    static constexpr bool hands_over = NT != 8;
    /* Registers: a thread's at first, as many as a processor has for all; what copying and
     * finishing need; the rest for those that multiply. */
    static constexpr int registers = 65536 / threads / 8 * 8;
    static constexpr int copying_registers = halves == 2 ? 32 : 40;
    static constexpr int multiplying_registers =
        (registers * (int)threads / 128 - copying_registers) / (int)(warps / 4) / 8 * 8;
    /* Units of a stage and half. */
    static constexpr uint32_t units = is::code_words == 4 ? 2 : 1;
    static constexpr uint32_t tiles = BANDS * CUDA_BAND;
    static constexpr uint32_t x = 2 * NT * 512; /* of a unit */
    /* In a half of a stage: of each band the pieces as they lie in memory, then of x. */
    static constexpr uint32_t band_bytes = CUDA_BAND * units * is::piece_bytes;
    static constexpr uint32_t x_at = BANDS * band_bytes;
    static constexpr uint32_t tile_step = is::by_units ? 1 : units; /* in pieces */
    static constexpr uint32_t unit_step = is::by_units ? CUDA_BAND : 1;
    static constexpr uint32_t half_bytes = x_at + units * x;
    static constexpr uint32_t stage_bytes = halves * half_bytes;
    /* Results: [x_rows][row_floats]; fragments of a warp in no bank twice. With halves behind them
     * the second one's, likewise. */
    static constexpr uint32_t x_rows = 8 * NT, row_floats = BANDS * BAND_ROWS + 4;
    static constexpr uint32_t result_floats = x_rows * row_floats;
    static constexpr uint32_t result_bytes = halves * result_floats * 4;
    /* A lane's sums of a tile, for other blocks: [NT][tiles][lane]. */
    static constexpr uint32_t sums_fours = NT * tiles * 32;
    static constexpr uint32_t barrier_bytes = (2 * STAGES_MAX + 4) * sizeof(cuda_barrier);
    static constexpr uint32_t other_bytes = result_bytes + barrier_bytes;
    static constexpr uint32_t least_bytes = other_bytes + 2 * stage_bytes;
    static_assert(half_bytes % 128 == 0 && result_bytes % 128 == 0, "where bulk copies go");
};

struct barriers {
    cuda_barrier full[STAGES_MAX], empty[STAGES_MAX]; /* of the ring's stages */
    cuda_barrier summed, read; /* results for others to finish: all there, all read */
    cuda_barrier half, taken;  /* the second half's sums: put there, taken from there */
};

/* ---- copies ---------------------------------------------------------------------------------- */

/* Where the next stage of a ring of n is. */
struct turn {
    uint32_t n, slot = 0, round = 0;

    __device__ __forceinline__ explicit turn(uint32_t stages) : n(stages)
    {
    }
    __device__ __forceinline__ void next()
    {
        slot = slot + 1 == n ? 0 : slot + 1;
        round += slot == 0;
    }
};

/* A copying warp's next stage, of its half: of a run of a tile of its course the units from `unit`
 * on, up to `end`, and where they lie. */
template <uint32_t FORMAT, int NT, uint32_t HALVES> struct copies {
    using shape = shape_of<FORMAT, NT, HALVES>;
    using is = typename shape::is;
    const cuda_work &work;
    course at;
    uint32_t half, run;
    uint32_t stages = 0; /* of the run, this one and later */
    uint32_t unit = 0, end = 0;
    const uint8_t *w[BANDS] = {}, *x = nullptr; /* of unit 0 */
    size_t tile_bytes = 0;                      /* from one tile's pieces to the next */

    __device__ __forceinline__ copies(const cuda_work &w, division by, uint32_t h)
        : work(w), at(w, by, shape::x_rows, shape::halves), half(h), run(at.first)
    {
        if (some()) {
            begin_tile();
            begin_run();
        }
        skip();
    }
    __device__ __forceinline__ bool some() const
    {
        return at.some();
    }
    __device__ __forceinline__ void begin_tile()
    {
        const cuda_job &job = work.jobs[cuda_job_of(work, at.block())];
        const uint32_t pair = at.block() - job.first_block;
        tile_bytes = (size_t)job.units * is::piece_bytes;
#pragma unroll
        for (uint32_t b = 0; b < BANDS; b++) {
            const uint32_t band = work.finish == CUDA_GATED ? pair : 2 * pair + b;
            w[b] = job.w[b] + min(band, job.bands - 1) * CUDA_BAND * tile_bytes;
        }
        x = (const uint8_t *)work.x.values + (size_t)at.set() * work.x.blocks * NT * 512;
    }
    __device__ __forceinline__ void begin_run()
    {
        unit = at.begin(run, half);
        end = at.end(run, half);
        stages = at.stages(run, shape::units);
    }
    /* To the next run that has stages. */
    __device__ __forceinline__ void skip()
    {
        while (some() && stages == 0) {
            if (++run == at.last) {
                at.next();
                run = at.first;
                if (!some())
                    return;
                begin_tile();
            }
            begin_run();
        }
    }
    __device__ __forceinline__ void next()
    {
        unit += shape::units;
        stages--;
        skip();
    }
    __device__ __forceinline__ uint32_t n_units() const
    {
        return min(shape::units, end - min(unit, end));
    }

    __device__ __forceinline__ void copy_weights(uint8_t *to, cuda_barrier *full,
                                                 uint32_t lane) const
    {
        const uint32_t n = n_units();
        cuda_bulk_open(full, n * (shape::x + shape::tiles * is::piece_bytes), lane);
        if (n == 0)
            return;
#pragma unroll
        for (uint32_t b = 0; b < BANDS; b++) {
            uint8_t *band = to + b * shape::band_bytes;
            if constexpr (is::by_units) {
                cuda_bulk_copy(band, w[b] + (size_t)unit * CUDA_BAND * is::piece_bytes,
                               n * CUDA_BAND * is::piece_bytes, full, lane);
            } else {
#pragma unroll
                for (uint32_t t = 0; t < CUDA_BAND; t++)
                    cuda_bulk_copy(band + t * shape::units * is::piece_bytes,
                                   w[b] + t * tile_bytes + (size_t)unit * is::piece_bytes,
                                   n * is::piece_bytes, full, lane);
            }
        }
    }
    __device__ __forceinline__ void copy_x(uint8_t *to, cuda_barrier *full, uint32_t lane) const
    {
        if (n_units() > 0)
            cuda_bulk_copy(to + shape::x_at, x + (size_t)unit * shape::x, n_units() * shape::x,
                           full, lane);
        cuda_bulk_close(full, lane);
    }
};

/* The first stages' weights come before what earlier kernels write: x. */
template <uint32_t FORMAT, int NT, uint32_t HALVES>
static __device__ __forceinline__ void copy_all(const cuda_work &work, division by, uint8_t *ring,
                                                barriers *all, uint32_t stages, uint32_t half,
                                                uint32_t lane)
{
    using shape = shape_of<FORMAT, NT, HALVES>;
    copies<FORMAT, NT, HALVES> from(work, by, half), behind(work, by, half);
    turn to(stages);
    uint32_t ahead = 0;
    ring += half * shape::half_bytes;
    for (; ahead < stages && from.some(); ahead++, from.next())
        from.copy_weights(ring + ahead * shape::stage_bytes, &all->full[ahead], lane);
    cuda_wait();
    for (uint32_t i = 0; i < ahead; i++, behind.next(), to.next())
        behind.copy_x(ring + i * shape::stage_bytes, &all->full[i], lane);
    for (; from.some(); from.next(), to.next()) {
        uint8_t *stage = ring + to.slot * shape::stage_bytes;
        cuda_barrier_wait(&all->empty[to.slot], (to.round - 1) & 1);
        from.copy_weights(stage, &all->full[to.slot], lane);
        from.copy_x(stage, &all->full[to.slot], lane);
    }
}

/* ---- sums ------------------------------------------------------------------------------------ */

template <int NT> static __device__ __forceinline__ void clear(float sums[NT][4])
{
#pragma unroll
    for (int n = 0; n < NT; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++)
            sums[n][i] = 0;
    }
}

template <int NT> static __device__ __forceinline__ void add(float to[NT][4], const float v[NT][4])
{
#pragma unroll
    for (int n = 0; n < NT; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++)
            to[n][i] = __fadd_rn(to[n][i], v[n][i]);
    }
}

/* A lane's own number of the results, of row n of its row tile pair and place i of its fragment. */
template <class SHAPE> static __device__ __forceinline__ uint32_t place_of(int n, int i)
{
    return (uint32_t)(8 * n + i % 2) * SHAPE::row_floats + (uint32_t)(i / 2 * 8);
}

/* One lane of the warps that multiply: where it is in the ring. What it holds of W is a share of a
 * unit, or of half of one where codes are large; the next one is fetched while the tensor cores
 * work on this. */
template <uint32_t FORMAT, int NT, uint32_t HALVES> struct consumer {
    using shape = shape_of<FORMAT, NT, HALVES>;
    using is = typename shape::is;
    static constexpr uint32_t blocks = is::code_words == 4 ? 2 : 1; /* of a share */
    static constexpr uint32_t shares = 2 / blocks;                  /* of a unit */
    static constexpr uint32_t none = UINT32_MAX;
    using share = cuda_share<FORMAT, blocks>;

    const uint8_t *ring; /* the lane's half of it */
    barriers *all;
    uint32_t tile, lane;
    uint32_t nothing;     /* 0, which the compiler does not know */
    turn at;              /* the stage under way */
    uint32_t done = none; /* whose products may still be under way */
    uint32_t handed = 0;  /* tiles that others finish, or have */
    share next = {};

    /* Share k of the stage at `stage`. */
    __device__ __forceinline__ void fetch(const uint8_t *stage, uint32_t k)
    {
        const uint32_t piece = tile % CUDA_BAND * shape::tile_step + k / shares * shape::unit_step;
        cuda_share_load(&next,
                        stage + tile / CUDA_BAND * shape::band_bytes + piece * is::piece_bytes,
                        k % shares, lane);
    }
    __device__ __forceinline__ void release()
    {
        __syncwarp();
        if (done != none && lane == 0)
            cuda_barrier_arrive(&all->empty[done]);
        done = none;
    }

    /* One stage, n units of it, whose first share has been fetched; then the first of the next,
     * where there is one. Products of its last step are under way on return. */
    __device__ __forceinline__ void stage_sum(float acc[NT][4], uint32_t n, bool first, bool more)
    {
        const uint8_t *stage = ring + at.slot * shape::stage_bytes;
        const cuda_group_b x = cuda_group_b_at(stage + shape::x_at);
        const uint32_t slot = at.slot;
        uint32_t a[2][4];
        at.next();
#pragma unroll
        for (uint32_t k = 0; k < shape::units * shares; k++) {
            if (k / shares >= n)
                break;
            const share now = next;
#pragma unroll
            for (uint32_t s = 0; s < 2 * blocks; s++) {
                const uint32_t step = k % shares * 2 + s;
                cuda_fragment(now, s, a[s % 2]);
                /* What a load has brought cannot be a factor's register while products are under
                 * way (the compiler would wait for all of them); what an instruction makes of it
                 * can. */
                if constexpr (is::halves) {
#pragma unroll
                    for (uint32_t i = 0; i < 4; i++)
                        a[s % 2][i] |= nothing;
                }
                cuda_group_begin();
                cuda_group_mma<NT>(acc, a[s % 2],
                                   cuda_group_b_after(x, k / shares * shape::x +
                                                             step / 2 * NT * 512 + step % 2 * 256),
                                   k > 0 || s > 0 || !first);
                cuda_group_commit();
                if (s == 2 * blocks - 2) {
                    if (k + 1 < shape::units * shares && (k + 1) / shares < n) {
                        fetch(stage, k + 1);
                    } else if (more) {
                        cuda_barrier_wait(&all->full[at.slot], at.round & 1);
                        fetch(ring + at.slot * shape::stage_bytes, 0);
                    }
                }
                cuda_group_wait<1>();
                if (k == 0 && s == 0)
                    release();
            }
        }
        if (n == 0) {
            cuda_group_wait<0>();
            release();
        }
        done = slot;
    }

    /* acc = the sum of units `unit` .. end - 1, which come in that many stages; the first one's
     * share was fetched where the run before this one said that `more` follows. Products of its
     * last steps are under way on return. */
    __device__ __forceinline__ void run_sum(float acc[NT][4], uint32_t unit, uint32_t end,
                                            uint32_t stages, bool fetched, bool more)
    {
        if (stages > 0 && !fetched) {
            cuda_barrier_wait(&all->full[at.slot], at.round & 1);
            fetch(ring + at.slot * shape::stage_bytes, 0);
        }
#pragma unroll 1
        for (uint32_t i = 0; i < stages; i++, unit += shape::units)
            stage_sum(acc, min(shape::units, end - min(unit, end)), i == 0, more || i + 1 < stages);
    }
    /* Until no products are under way. */
    __device__ __forceinline__ void drain()
    {
        cuda_group_wait<0>();
        release();
    }

    /* Before results are written over: until all have read them. */
    __device__ __forceinline__ void await_read() const
    {
        if (handed > 0)
            cuda_barrier_wait(&all->read, (handed - 1) & 1);
    }

    /* A tile's sums to the lane's own results. */
    __device__ __forceinline__ void put(const float total[NT][4], float *own) const
    {
        await_read();
#pragma unroll
        for (int n = 0; n < NT; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++)
                own[place_of<shape>(n, i)] = total[n][i];
        }
    }
    /* A quarter's, or a segment's, to where other blocks find them. */
    __device__ __forceinline__ void share_out(const float sums[NT][4], uint4 *slot) const
    {
#pragma unroll
        for (int n = 0; n < NT; n++)
            slot[(n * shape::tiles + tile) * 32 + lane] =
                make_uint4(__float_as_uint(sums[n][0]), __float_as_uint(sums[n][1]),
                           __float_as_uint(sums[n][2]), __float_as_uint(sums[n][3]));
    }

    /* The tile's quarters, one after the other, to the lane's own results; or of some columns, for
     * other blocks: as quarters, and where one begins or ends within a quarter as a segment. A
     * quarter's two segments are summed without a stop between them. */
    __device__ __forceinline__ void tile_sum(const course &c, float *own, const shared_sums &sums)
    {
        float first[NT][4], second[NT][4], total[NT][4];
        clear<NT>(total);
#pragma unroll 1
        for (uint32_t run = c.first / 2 * 2; run < c.last; run += 2) {
            const bool one = run >= c.first, two = run + 1 < c.last;
            const uint32_t middle = c.end(run, 0);
            const uint32_t begin = one ? c.begin(run, 0) : middle;
            const uint32_t end = two ? c.end(run + 1, 0) : middle;
            const uint32_t stages = one ? c.stages(run, shape::units) : 0;
            const uint32_t more = two ? c.stages(run + 1, shape::units) : 0;
            if (begin == middle)
                clear<NT>(first);
            if (middle == end)
                clear<NT>(second);
            run_sum(first, begin, middle, stages, false, more > 0);
            run_sum(second, middle, end, more, stages > 0, false);
            drain();
            add<NT>(first, second);
            if (c.all_columns())
                add<NT>(total, first);
            else
                share_out(first, sums.of_run(c, two ? run + 1 : run));
        }
        if (c.all_columns())
            put(total, own);
    }

    /* The same by two: the second half's sums come to the first by way of shared memory. `puts`
     * counts how often they did. */
    __device__ __forceinline__ void tile_sum_by_two(const course &c, uint32_t half, float *own,
                                                    const shared_sums &sums, uint32_t *puts)
    {
        float acc[NT][4], total[NT][4], *other = own + shape::result_floats;
        clear<NT>(total);
        for (uint32_t run = c.first; run < c.last; run++, ++*puts) {
            if (c.begin(run, half) == c.end(run, half))
                clear<NT>(acc);
            run_sum(acc, c.begin(run, half), c.end(run, half), c.stages(run, shape::units), false,
                    false);
            drain();
            if (half == 1) {
                if (*puts > 0)
                    cuda_barrier_wait(&all->taken, (*puts - 1) & 1);
#pragma unroll
                for (int i = 0; i < 4 * NT; i++)
                    other[place_of<shape>(i / 4, i % 4)] = acc[i / 4][i % 4];
            } else {
                cuda_barrier_wait(&all->half, *puts & 1);
#pragma unroll
                for (int i = 0; i < 4 * NT; i++)
                    acc[i / 4][i % 4] = __fadd_rn(__fadd_rn(0.0f, acc[i / 4][i % 4]),
                                                  other[place_of<shape>(i / 4, i % 4)]);
                if (c.all_columns())
                    add<NT>(total, acc);
                else
                    share_out(acc, sums.of_run(c, run));
            }
            __syncwarp();
            if (lane == 0)
                cuda_barrier_arrive(half == 1 ? &all->half : &all->taken);
        }
        if (half == 0 && c.all_columns())
            put(total, own);
    }

    /* All quarters' sums of row tiles first .. end - 1 of x, whoever makes them, to the lane's own
     * results. A warp's last row tile is put there last: where that one is, the others most often
     * are, too, and one look at all of them is enough. */
    __device__ __forceinline__ void bring(const course &c, float *own, const shared_sums &sums,
                                          uint32_t first, uint32_t end)
    {
        constexpr uint32_t at_once = NT == 16 ? 2 : 1;
        constexpr uint32_t step = shape::tiles * 32;
        const shared_quarters from = shared_quarters(sums, c, tile * 32 + lane);
        uint4 seen[at_once][2 * QUARTERS];
        await_read();
        if (at_once > 1 && first < end)
            while (!from.look(seen[0], (end - 1) * step))
                cuda_look_again();
#pragma unroll 1
        for (uint32_t n = first; n < end; n += at_once) {
            for (bool there = false; !there;) {
                there = true;
#pragma unroll
                for (uint32_t k = 0; k < at_once; k++)
                    there &= from.look(seen[k], min(n + k, end - 1) * step);
                if (!there)
                    cuda_look_again();
            }
#pragma unroll
            for (uint32_t k = 0; k < at_once; k++) {
                float total[4];
                if (n + k >= end)
                    break;
                from.take(seen[k], (n + k) * step, total);
#pragma unroll
                for (int i = 0; i < 4; i++)
                    own[place_of<shape>((int)(n + k), i)] = total[i];
            }
        }
    }
};

/* ---- finishes -------------------------------------------------------------------------------- */

/* By all warps that multiply, once their sums of some row tiles are among the results. */
template <class SHAPE>
static __device__ __forceinline__ void finish_here(const cuda_work &work, const course &c,
                                                   const float *results, uint32_t first,
                                                   uint32_t end, uint32_t warp, uint32_t lane)
{
    constexpr uint32_t fair = 4 * SHAPE::x_rows / SHAPE::warps;
    cuda_meet(1, 32 * SHAPE::warps);
    finish<SHAPE, (fair < 16 ? fair : 16)>(work, c, results, first, end, warp, SHAPE::warps, lane);
    cuda_meet(1, 32 * SHAPE::warps);
}

/* By warps of their own: tiles that the others have summed, while these go on. */
template <class SHAPE>
static __device__ __forceinline__ void finish_all(const cuda_work &work, division by,
                                                  const float *results, barriers *all,
                                                  uint32_t warp, uint32_t lane)
{
    uint32_t n = 0;
    cuda_wait();
    for (course c(work, by, SHAPE::x_rows, SHAPE::halves); SHAPE::hands_over && c.more_follows();
         c.next()) {
        cuda_barrier_wait(&all->summed, n++ & 1);
        finish<SHAPE, 4>(work, c, results, 0, SHAPE::x_rows / 8, warp, SHAPE::finishing, lane);
        __syncwarp();
        if (lane == 0)
            cuda_barrier_arrive(&all->read);
    }
}

/* ---- the kernel ------------------------------------------------------------------------------ */

/* Tile by tile: its sums to the results, for others to finish, but for the last one, which is
 * finished here, as nothing else is left to do. Then some rows of each tile that other blocks have
 * columns of. */
template <uint32_t FORMAT, int NT, uint32_t HALVES>
static __device__ __forceinline__ void
multiply_all(const cuda_work &work, division by, const uint8_t *ring, float *results, barriers *all,
             uint32_t stages, uint32_t warp, uint32_t lane)
{
    using shape = shape_of<FORMAT, NT, HALVES>;
    const uint32_t half = warp / (4 * BANDS), tile = warp % (4 * BANDS);
    consumer<FORMAT, NT, HALVES> self = {
        ring + half * shape::half_bytes, all, tile, lane, work.n_rows >> 31, turn(stages)};
    float *own = results + lane % 4 * 2 * shape::row_floats + tile * CUDA_TILE_ROWS + lane / 4;
    const shared_sums sums = {(uint4 *)work.sums, shape::sums_fours, by.deep};
    course c(work, by, shape::x_rows, shape::halves);
    uint32_t puts = 0;
    cuda_wait();
    for (; c.some(); c.next()) {
        if constexpr (shape::halves == 1)
            self.tile_sum(c, own, sums);
        else
            self.tile_sum_by_two(c, half, own, sums, &puts);
        if (shape::hands_over && c.more_follows()) {
            __syncwarp();
            if (lane == 0 && half == 0)
                cuda_barrier_arrive(&all->summed);
            self.handed++;
        } else if (c.all_columns()) {
            finish_here<shape>(work, c, results, 0, NT, warp, lane);
        }
    }
    for (c.back_to_rest(); c.some(); c.next()) {
        const uint32_t n = sums.n_blocks(c), nth = sums.nth_block(c);
        const uint32_t first = nth * NT / n, end = (nth + 1) * NT / n;
        if (half == 0)
            self.bring(c, own, sums, first, end);
        finish_here<shape>(work, c, results, first, end, warp, lane);
    }
}

template <uint32_t FORMAT, int NT, uint32_t HALVES>
static __global__ void __launch_bounds__(shape_of<FORMAT, NT, HALVES>::threads, 1)
    multiply_many(const __grid_constant__ cuda_work work, division by, uint32_t stages)
{
    using shape = shape_of<FORMAT, NT, HALVES>;
    CUDA_SHARED(uint8_t, shared);
    float *results = (float *)shared;
    uint8_t *ring = shared + shape::result_bytes;
    barriers *all = (barriers *)(ring + stages * shape::stage_bytes);
    const uint32_t lane = threadIdx.x % 32, warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0);
    const uint32_t summing = shape::warps / shape::halves;
    static_assert(sizeof(barriers) == shape::barrier_bytes, "as counted");

    if (threadIdx.x == 0) {
        for (uint32_t i = 0; i < stages; i++) {
            cuda_barrier_make(&all->full[i], CUDA_BULK_COUNT * shape::halves);
            cuda_barrier_make(&all->empty[i], shape::warps);
        }
        cuda_barrier_make(&all->summed, summing);
        cuda_barrier_make(&all->read, shape::finishing);
        cuda_barrier_make(&all->half, summing);
        cuda_barrier_make(&all->taken, summing);
        cuda_barriers_made();
    }
    cuda_let_next_start();
    __syncthreads();
    if constexpr (shape::least_bytes > CUDA_SHARED_MOST) {
        return; /* nobody launches it */
    } else if (warp >= shape::warps) {
        cuda_group_fewer_registers<shape::copying_registers>();
        if (warp - shape::warps < HALVES)
            copy_all<FORMAT, NT, HALVES>(work, by, ring, all, stages, warp - shape::warps, lane);
        else
            finish_all<shape>(work, by, results, all, warp - shape::warps - HALVES, lane);
    } else {
        cuda_group_more_registers<shape::multiplying_registers>();
        multiply_all<FORMAT, NT, HALVES>(work, by, ring, results, all, stages, warp, lane);
    }
}

/* ---- launches -------------------------------------------------------------------------------- */

/* A block's stages where it has so much shared memory; with fewer than 2 it cannot be. */
template <class SHAPE> static uint32_t stages_in(uint32_t shared_bytes)
{
    const uint32_t n = (shared_bytes - min(shared_bytes, SHAPE::other_bytes)) / SHAPE::stage_bytes;
    return min(n, STAGES_MAX);
}

/* Cycles of a run of a tile, roughly: those of the tensor cores at three quarters of their rate, or
 * of memory at 17 bytes a cycle and processor. */
template <class SHAPE> static uint32_t run_cycles(uint32_t units)
{
    const uint32_t tensor = SHAPE::x_rows * 4 * 4 / 3;
    const uint32_t memory = SHAPE::tiles * SHAPE::is::piece_bytes / 17;
    return max(units * SHAPE::halves / CUDA_SEGMENTS, 1u) * max(tensor, memory);
}

/* Tiles that would keep only some processors busy are shared out over all, if that takes less, with
 * what blocks then write and read of each other: two microseconds and two cycles for 16 bytes of
 * a slot, which is where it was found to pay. */
template <class SHAPE>
static division divide(uint32_t tiles, uint32_t units, uint32_t processors, enum cuda_way way)
{
    constexpr uint32_t runs = CUDA_SEGMENTS / SHAPE::halves;
    const uint32_t rest = tiles % processors;
    const uint32_t deep = (rest * runs + processors - 1) / processors;
    const uint64_t shared =
        (uint64_t)deep * run_cycles<SHAPE>(units) + 3500 + 2 * SHAPE::sums_fours;
    if (rest == 0 || deep == runs || way == CUDA_WIDE ||
        (way != CUDA_DEEP && shared >= (uint64_t)runs * run_cycles<SHAPE>(units)))
        return {tiles, 0};
    return {tiles - rest, deep};
}

template <uint32_t FORMAT, int NT, uint32_t HALVES>
static cudaError_t launch_many(cuda_work *work, enum cuda_way way, const cuda_limits &device,
                               cudaStream_t stream)
{
    using shape = shape_of<FORMAT, NT, HALVES>;
    auto kernel = multiply_many<FORMAT, NT, HALVES>;
    const uint32_t stages = stages_in<shape>(device.shared_bytes);
    const uint32_t bytes = shape::other_bytes + stages * shape::stage_bytes;
    cudaError_t error =
        stages < 2
            ? cudaErrorInvalidConfiguration
            : cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
    if (error != cudaSuccess)
        return error;

    work->n_blocks = 0;
    for (uint32_t i = 0; i < work->n_jobs; i++) {
        cuda_job *job = &work->jobs[i];
        job->first_block = work->n_blocks;
        work->n_blocks += work->finish == CUDA_GATED ? job->bands : (job->bands + 1) / 2;
    }
    const uint32_t tiles = work->n_blocks * ((work->n_rows + shape::x_rows - 1) / shape::x_rows);
    const uint32_t most = min(device.processors, CUDA_TOGETHER_MAX);
    const division by =
        divide<shape>(tiles, work->jobs[0].units, most, work->sums ? way : CUDA_WIDE);
    const uint32_t rest = by.deep ? (tiles - by.whole) * (CUDA_SEGMENTS / shape::halves) : 0;
    const uint32_t blocks = by.whole ? min(by.whole, most) : (rest + by.deep - 1) / by.deep;
    /* Those that share tiles wait for each other: no more than there are processors. */
    if (by.deep)
        return cuda_launch_together(kernel, dim3(blocks), dim3(shape::threads), bytes, stream,
                                    *work, by, stages);
    return cuda_launch(kernel, dim3(blocks), dim3(shape::threads), bytes, stream, *work, by,
                       stages);
}

size_t cuda_sums_bytes(uint32_t n_rows, uint32_t n_processors)
{
    const uint32_t x_rows = n_rows <= 32 ? 32 : n_rows <= 64 ? 64 : 128;
    const size_t slot = (size_t)x_rows * BANDS * BAND_ROWS * sizeof(float);
    return n_rows <= CUDA_FEW_ROWS ? 0 : SLOTS * slot * n_processors;
}

cudaError_t cuda_multiply_many(struct cuda_work *work, uint32_t format, enum cuda_way way,
                               cudaStream_t stream)
{
    cuda_limits device;
    cudaError_t error = cuda_limits_of(&device);
    if (error != cudaSuccess)
        return error;
    switch (work->x.tiles) {
    case 4:
        if (way == CUDA_LEAN || device.shared_bytes < CUDA_SHARED_8_0) {
            CUDA_FOR_FORMAT(format, return (launch_many<FORMAT, 4, 1>(work, way, device, stream)))
        } else {
            CUDA_FOR_FORMAT(format, return (launch_many<FORMAT, 4, 2>(work, way, device, stream)))
        }
        break;
    case 8:
        CUDA_FOR_FORMAT(format, return (launch_many<FORMAT, 8, 2>(work, way, device, stream)))
        break;
    case 16:
        CUDA_FOR_FORMAT(format, return (launch_many<FORMAT, 16, 1>(work, way, device, stream)))
        break;
    default:
        break;
    }
    return cudaErrorInvalidValue;
}
