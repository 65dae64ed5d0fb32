/* sample_block.cuh: what the threads of one block of sample.cu do together: sums, the place where a
 * running sum crosses a target, the candidates above a threshold, their order.
 *
 * All threads of the team that a function is for call it, with the same arguments but for the value
 * that each adds; all get the same result. What is not for a warp ends with a barrier, so that the
 * next may use its shared memory again. Orders of sums depend on counts and the team's size alone.
 * A block has a power of two of whole warps. */
#ifndef INFERD_KERNELS_CUDA_SAMPLE_BLOCK_CUH
#define INFERD_KERNELS_CUDA_SAMPLE_BLOCK_CUH

#include "cuda/sample_row.cuh"

#define SAMPLE_BINS   1024u /* of a search for a threshold */
#define SAMPLE_DIGITS 256u  /* of a sort's pass */

struct sample_candidate {
    float logit; /* clean */
    int32_t token;
};

/* ---- teams ----------------------------------------------------------------------------------- */

struct sample_add {
    template <typename T> __device__ T operator()(T a, T b) const
    {
        return a + b;
    }
};
struct sample_larger {
    template <typename T> __device__ T operator()(T a, T b) const
    {
        return a < b ? b : a;
    }
};
struct sample_smaller {
    template <typename T> __device__ T operator()(T a, T b) const
    {
        return b < a ? b : a;
    }
};

/* One warp. A short list is every warp's: each comes to the same result, without a barrier. */
struct sample_warp {
    static __device__ uint32_t size()
    {
        return 32;
    }
    static __device__ uint32_t rank()
    {
        return threadIdx.x % 32;
    }
    /* All values joined. */
    template <typename T, typename Join> static __device__ T join(T value, Join joined)
    {
        for (int by = 16; by > 0; by /= 2)
            value = joined(value, __shfl_xor_sync(ALL_LANES, value, by));
        return value;
    }
    /* The sum up to this thread. */
    template <typename T> static __device__ T sum_to_here(T value, uint32_t n = 32)
    {
        for (uint32_t by = 1; by < n; by *= 2) {
            T other = __shfl_up_sync(ALL_LANES, value, by);
            if (rank() >= by)
                value += other;
        }
        return value;
    }
    /* The sum of those before this thread; *ret_total of all. */
    template <typename T> static __device__ T sum_before(T value, T *ret_total)
    {
        T here = sum_to_here(value), before = __shfl_up_sync(ALL_LANES, here, 1);
        *ret_total = __shfl_sync(ALL_LANES, here, 31);
        return rank() > 0 ? before : (T)0;
    }
    /* The first of whom `hit` is true; size(): none. */
    static __device__ uint32_t first(bool hit)
    {
        uint32_t hits = __ballot_sync(ALL_LANES, hit);
        return hits != 0 ? (uint32_t)__ffs((int)hits) - 1 : size();
    }
    /* The value of one. */
    template <typename T> static __device__ T of(T value, uint32_t whose)
    {
        return __shfl_sync(ALL_LANES, value, (int)whose);
    }
};

/* The whole block. */
struct sample_block {
    static __device__ uint32_t size()
    {
        return blockDim.x;
    }
    static __device__ uint32_t rank()
    {
        return threadIdx.x;
    }
    template <typename T, typename Join> static __device__ T join(T value, Join joined)
    {
        __shared__ T partial[32];
        uint32_t lane = threadIdx.x % 32, n_warps = blockDim.x / 32;
        value = sample_warp::join(value, joined);
        if (lane == 0)
            partial[threadIdx.x / 32] = value;
        __syncthreads();
        value = partial[lane % n_warps];
        for (uint32_t by = n_warps / 2; by > 0; by /= 2)
            value = joined(value, __shfl_xor_sync(ALL_LANES, value, (int)by));
        __syncthreads();
        return value;
    }
    template <typename T> static __device__ T sum_before(T value, T *ret_total)
    {
        __shared__ T sums[32];
        uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, n_warps = blockDim.x / 32;
        T before = sample_warp::sum_before(value, ret_total);
        if (lane == 0)
            sums[warp] = *ret_total;
        __syncthreads();
        T warps = sample_warp::sum_to_here(lane < n_warps ? sums[lane] : (T)0, n_warps);
        T warps_before = __shfl_sync(ALL_LANES, warps, warp > 0 ? (int)warp - 1 : 0);
        *ret_total = __shfl_sync(ALL_LANES, warps, (int)n_warps - 1);
        __syncthreads();
        return (warp > 0 ? warps_before : (T)0) + before;
    }
    static __device__ uint32_t first(bool hit)
    {
        __shared__ uint32_t found;
        uint32_t lane = sample_warp::first(hit);
        if (threadIdx.x == 0)
            found = blockDim.x;
        __syncthreads();
        if (threadIdx.x % 32 == lane)
            atomicMin(&found, threadIdx.x);
        __syncthreads();
        uint32_t ret = found;
        __syncthreads();
        return ret;
    }
    template <typename T> static __device__ T of(T value, uint32_t whose)
    {
        __shared__ T shown;
        if (threadIdx.x == whose)
            shown = value;
        __syncthreads();
        value = shown;
        __syncthreads();
        return value;
    }
};

/* ---- sums ------------------------------------------------------------------------------------ */

/* The sum of weight(i) over i < n, in double. */
template <typename Team, typename Weight>
static __device__ inline double team_sum(uint32_t n, Weight weight)
{
    double sum = 0;
    for (uint32_t i = Team::rank(); i < n; i += Team::size())
        sum += (double)weight(i);
    return Team::join(sum, sample_add());
}

/* How many i < n are such that which(i). */
template <typename Team, typename Which>
static __device__ inline uint32_t team_count(uint32_t n, Which which)
{
    uint32_t count = 0;
    for (uint32_t i = Team::rank(); i < n; i += Team::size())
        count += which(i);
    return Team::join(count, sample_add());
}

struct sample_crossing {
    uint32_t at;   /* n: none */
    uint32_t last; /* where there is none: the last i with a weight; 0 when nothing has one */
    double before; /* the sum before `at` */
};

/* The first i < n that has a weight and with which the running sum, from `sum` on, reaches the
 * target, or goes beyond it. */
template <typename Team, typename Weight>
static __device__ inline struct sample_crossing team_cross(uint32_t n, double sum, double target,
                                                           bool beyond, Weight weight)
{
    struct sample_crossing ret = {n, 0, 0};
    for (uint32_t start = 0; start < n; start += Team::size()) {
        uint32_t i = start + Team::rank();
        double own = i < n ? (double)weight(i) : 0.0, total;
        double before = sum + Team::sum_before(own, &total);
        bool hit = own > 0 && (beyond ? before + own > target : before + own >= target);
        uint32_t first = Team::first(hit);
        if (first < Team::size()) {
            ret.at = start + first;
            ret.before = Team::of(before, first);
            return ret;
        }
        ret.last = max(ret.last, Team::join(own > 0 ? i : 0u, sample_larger()));
        sum += total;
    }
    return ret;
}

/* Eight of n numbers a thread, block-wide stripes from `start` on, loaded together to have their
 * latency once; minus infinity beyond the end. */
#define SAMPLE_BATCH 8u

static __device__ inline void load_batch(const float *values, uint32_t n, uint32_t start,
                                         float ret[SAMPLE_BATCH])
{
#pragma unroll
    for (uint32_t j = 0; j < SAMPLE_BATCH; j++) {
        uint32_t i = start + j * blockDim.x + threadIdx.x;
        ret[j] = i < n ? values[i] : -INFINITY;
    }
}

/* The largest of n numbers, none of them NaN; zero when it is minus zero, so that all threads have
 * the same bits. */
static __device__ inline float block_max(const float *values, uint32_t n)
{
    float best = -INFINITY, batch[SAMPLE_BATCH];
    for (uint32_t start = 0; start < n; start += SAMPLE_BATCH * blockDim.x) {
        load_batch(values, n, start, batch);
#pragma unroll
        for (uint32_t j = 0; j < SAMPLE_BATCH; j++)
            best = fmaxf(best, batch[j]);
    }
    return __fadd_rn(sample_block::join(best, sample_larger()), 0.0f);
}

/* ---- candidates ------------------------------------------------------------------------------ */

/* Numbers that ascend with the value; for all but NaN. */
static __device__ inline uint32_t sample_key(float value)
{
    uint32_t bits = __float_as_uint(value);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}
static __device__ inline float sample_value_of_key(uint32_t key)
{
    return __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key);
}

/* How many of the values whose keys lie within low .. high fall into each bin of 2^shift keys. */
static __device__ inline void block_bins(const float *values, uint32_t n, uint32_t low,
                                         uint32_t high, uint32_t shift, uint32_t *bins)
{
    for (uint32_t i = threadIdx.x; i < SAMPLE_BINS; i += blockDim.x)
        bins[i] = 0;
    __syncthreads();
    for (uint32_t start = 0; start < n; start += SAMPLE_BATCH * blockDim.x) {
        float batch[SAMPLE_BATCH];
        load_batch(values, n, start, batch);
#pragma unroll
        for (uint32_t j = 0; j < SAMPLE_BATCH; j++) {
            uint32_t key = sample_key(batch[j]), i = start + j * blockDim.x + threadIdx.x;
            if (i < n && key >= low && key <= high)
                atomicAdd(&bins[(key - low) >> shift], 1u);
        }
    }
    __syncthreads();
}

/* A number that at least k of the n values reach, and not many more unless they are equal; minus
 * infinity when there are no more than k. `best` is the largest value. Each round of the search
 * counts the keys within a range in SAMPLE_BINS bins and goes on in the bin where, from the top,
 * the k-th is. */
static __device__ inline float block_threshold(const float *values, uint32_t n, uint32_t k,
                                               float best, uint32_t *bins)
{
    __shared__ uint32_t found[3]; /* the bin, values above it, and with it */
    uint32_t low = UINT32_MAX, high = sample_key(best), above = 0;
    const uint32_t per_thread = SAMPLE_BINS / blockDim.x, slack = k / 4 + 16;
    const uint32_t top = SAMPLE_BINS - 1 - threadIdx.x * per_thread;

    if (n <= k)
        return -INFINITY;
    for (uint32_t start = 0; start < n; start += SAMPLE_BATCH * blockDim.x) {
        float batch[SAMPLE_BATCH];
        load_batch(values, n, start, batch);
        for (uint32_t j = 0; j < SAMPLE_BATCH; j++) {
            uint32_t i = start + j * blockDim.x + threadIdx.x;
            low = min(low, i < n ? sample_key(batch[j]) : UINT32_MAX);
        }
    }
    low = sample_block::join(low, sample_smaller());
    for (;;) {
        uint32_t shift = (uint32_t)max(0, 32 - __clz((int)(high - low)) - 10), own = 0, total;
        block_bins(values, n, low, high, shift, bins);
        for (uint32_t j = 0; j < per_thread; j++)
            own += bins[top - j];
        uint32_t count = above + sample_block::sum_before(own, &total);
        for (uint32_t j = 0; j < per_thread; j++) {
            uint32_t with = count + bins[top - j];
            if (count < k && with >= k) {
                found[0] = top - j;
                found[1] = count;
                found[2] = with;
            }
            count = with;
        }
        __syncthreads();
        low += found[0] << shift;
        high = min(high, low + ((1u << shift) - 1));
        above = found[1];
        bool done = shift == 0 || found[2] <= k + slack;
        __syncthreads();
        if (done)
            return sample_value_of_key(low);
    }
}

/* The segments with a maximum from `floor` up, ascending; returns how many. */
static __device__ inline uint32_t block_segments(const float *maxima, uint32_t n, float floor,
                                                 uint16_t *segments)
{
    const uint32_t share = (n + blockDim.x - 1) / blockDim.x;
    uint32_t first = min(threadIdx.x * share, n), last = min(first + share, n), own = 0, total;
    for (uint32_t i = first; i < last; i++)
        own += maxima[i] >= floor;
    uint32_t at = sample_block::sum_before(own, &total);
    for (uint32_t i = first; i < last; i++) {
        if (maxima[i] >= floor)
            segments[at++] = (uint16_t)i;
    }
    __syncthreads();
    return total;
}

/* The tokens with a value from `floor` up in this warp's share of the segments, ascending, to
 * to[at] and on; `to` NULL: they are only counted. Returns at + how many. Four segments are loaded
 * at a time, to have their latency once. */
static __device__ inline uint32_t warp_gather(const struct sample_row &row,
                                              const uint16_t *segments, uint32_t n_segments,
                                              float floor, uint32_t at, struct sample_candidate *to)
{
    const uint32_t n_warps = blockDim.x / 32, lane = threadIdx.x % 32;
    const uint32_t share = (n_segments + n_warps - 1) / n_warps;
    uint32_t first = min(threadIdx.x / 32 * share, n_segments);
    uint32_t last = min(first + share, n_segments);

    for (uint32_t s = first; s < last; s += 4) {
        uint32_t token[8];
        float value[8];
#pragma unroll
        for (uint32_t j = 0; j < 8; j++) {
            uint32_t segment = s + j / 2 < last ? segments[s + j / 2] : UINT32_MAX / SAMPLE_SEGMENT;
            token[j] = segment * SAMPLE_SEGMENT + j % 2 * 32 + lane;
            value[j] = token[j] < row.n_vocab ? row.logits[token[j]] : 0.0f;
        }
#pragma unroll
        for (uint32_t j = 0; j < 8; j++) {
            bool there = token[j] < row.n_vocab;
            if (row.n_changes > 0 && there)
                value[j] = sample_changed(row, token[j], value[j]);
            value[j] = sample_clean(value[j]);
            bool hit = there && value[j] >= floor;
            uint32_t hits = __ballot_sync(ALL_LANES, hit);
            if (hit && to != NULL)
                to[at + (uint32_t)__popc(hits & ((1u << lane) - 1))] =
                    sample_candidate{value[j], (int32_t)token[j]};
            at += (uint32_t)__popc(hits);
        }
    }
    return at;
}

/* ---- order ----------------------------------------------------------------------------------- */

/* A number that ascends as the logit descends; minus zero and zero are equal. */
static __device__ inline uint32_t sample_sort_key(float logit)
{
    return ~sample_key(__fadd_rn(logit, 0.0f));
}

/* Few candidates: each counts those that stand before it. n is at most the block's size. */
static __device__ inline void block_sort_few(const struct sample_candidate *from, uint32_t n,
                                             struct sample_candidate *to)
{
    uint32_t i = threadIdx.x, rank = 0;
    if (i < n) {
        uint32_t key = sample_sort_key(from[i].logit);
        for (uint32_t j = 0; j < n; j++) {
            uint32_t other = sample_sort_key(from[j].logit);
            rank += other < key || (other == key && j < i);
        }
        to[rank] = from[i];
    }
    __syncthreads();
}

/* One pass of a radix sort, stable: by the digit at `shift` of the sort key. Each warp has a share
 * of consecutive candidates, counts its digits, learns where each of them begins for it, and puts
 * its candidates there, 32 at a time. counters: [warps][SAMPLE_DIGITS]. */
static __device__ inline void block_sort_pass(const struct sample_candidate *from, uint32_t n,
                                              uint32_t shift, struct sample_candidate *to,
                                              uint32_t *counters)
{
    const uint32_t n_warps = blockDim.x / 32, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const uint32_t share = ((n + n_warps - 1) / n_warps + 31) / 32 * 32;
    uint32_t *own = counters + warp * SAMPLE_DIGITS;
    uint32_t first = min(warp * share, n), last = min(first + share, n), total;

    for (uint32_t i = threadIdx.x; i < n_warps * SAMPLE_DIGITS; i += blockDim.x)
        counters[i] = 0;
    __syncthreads();
    for (uint32_t i = first + lane; i < last; i += 32)
        atomicAdd(&own[sample_sort_key(from[i].logit) >> shift & 255], 1u);
    __syncthreads();
    uint32_t digit_total = 0;
    for (uint32_t w = 0; w < n_warps && threadIdx.x < SAMPLE_DIGITS; w++)
        digit_total += counters[w * SAMPLE_DIGITS + threadIdx.x];
    uint32_t start = sample_block::sum_before(digit_total, &total);
    for (uint32_t w = 0; w < n_warps && threadIdx.x < SAMPLE_DIGITS; w++) {
        uint32_t count = counters[w * SAMPLE_DIGITS + threadIdx.x];
        counters[w * SAMPLE_DIGITS + threadIdx.x] = start;
        start += count;
    }
    __syncthreads();
    for (uint32_t i = first; i < last; i += 32) {
        bool there = i + lane < last;
        struct sample_candidate item = from[there ? i + lane : i];
        uint32_t digit = there ? sample_sort_key(item.logit) >> shift & 255 : SAMPLE_DIGITS;
        uint32_t peers = __match_any_sync(ALL_LANES, digit);
        uint32_t before = (uint32_t)__popc(peers & ((1u << lane) - 1));
        if (there)
            to[own[digit] + before] = item;
        __syncwarp();
        if (there && before == 0)
            own[digit] += (uint32_t)__popc(peers);
        __syncwarp();
    }
    __syncthreads();
}

struct sample_list {
    struct sample_candidate *items; /* the list; the two others are working memory as long */
    struct sample_candidate *other, *third;
    uint32_t n;
};

static __device__ inline void sample_list_swap(struct sample_list &list)
{
    struct sample_candidate *items = list.items;
    list.items = list.other;
    list.other = items;
}

#define SAMPLE_FEW 128u

/* By descending logit; equal ones keep their order. */
static __device__ inline void block_sort(struct sample_list &list, uint32_t *counters)
{
    if (list.n <= SAMPLE_FEW) {
        block_sort_few(list.items, list.n, list.other);
        sample_list_swap(list);
        return;
    }
    uint32_t key = sample_sort_key(list.items[0].logit), differ = 0;
    for (uint32_t i = threadIdx.x; i < list.n; i += blockDim.x)
        differ |= key ^ sample_sort_key(list.items[i].logit);
    for (uint32_t shift = 0; shift < 32; shift += 8) {
        /* a digit that all have in common moves nothing */
        if (!__syncthreads_or((differ >> shift & 255) != 0))
            continue;
        block_sort_pass(list.items, list.n, shift, list.other, counters);
        sample_list_swap(list);
    }
}

#endif
