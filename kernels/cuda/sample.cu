/* sample.cu: from rows of logits to tokens and their log-probabilities. Semantics, order of the
 * filters and of the draw: ref/sample.c. How a row and its changes are kept: sample_row.cuh.
 *
 * Four kernels, for n outputs of V tokens. Which work an output needs is read on the device, what
 * it does not ask for costs an empty block. sample_changes.cuh has the arithmetic of the first
 * kernel, sample_block.cuh the searches and sorts of the last.
 *
 *   sample_changes  a block per output: bias and penalties to a list of changed tokens
 *   sample_maxima   blocks per slice of 2048 tokens: the maximum of each segment of 64
 *   sample_sums     blocks per 4096 tokens: the weights' sum of each chunk of 256, for
 *                   log-probabilities, top-p without top-k and draws from all tokens
 *   sample_finish   a block per output: everything else
 *
 * What makes the last one cheap: where the k-th largest of the segments' maxima is T, at least k
 * tokens reach T, and all that do lie in the (about k) segments whose maxima do. So the k best of V
 * tokens are found in 64 k of them. If more reach T than shared memory takes (large k, many equal
 * logits, a vocabulary whose likely tokens are neighbours), they go to a slot in device memory and
 * through the same functions. Top-p without top-k tries with the 256 best first, then with what is
 * within e^-12 of the best, then with all. Slots are few; a block that needs one takes a ticket.
 *
 * Bytes: 4 V per output for the maxima, as many again where weights of all tokens are summed. At
 * V = 128256 that is 0.12 us of an H200's bandwidth for one output, so the time should be that of
 * four launches and of the chain of loads in the last, about 10 us; for 128 outputs it is 15 us.
 * Measured on an H200, greedy: 11.7 us for one output, 35 us for 128.
 * Sorting all of V in the one block of its output (typical sampling without top-k) takes some
 * hundreds of microseconds.
 *
 * An output's results do not depend on the others: slices, chunks and the order of every sum follow
 * from V and the output's own numbers. Sums over the vocabulary are float32 within a chunk, in the
 * reference's order, and double beyond. */
#include "cuda/cuda.h"

#include "cuda/sample_block.cuh"
#include "cuda/sample_changes.cuh"

#define CHANGE_THREADS 256u
#define MAXIMA_THREADS 256u
#define SUMS_THREADS   128u
#define FINISH_THREADS 512u

#define SLICE       2048u /* tokens of a block of sample_maxima */
#define SUMS_TOKENS (SUMS_THREADS / 8 * SAMPLE_CHUNK)
#define BATCH       16u /* logits that a thread of sample_sums loads at a time */

#define POOL       1536u /* candidates of each of the three lists in shared memory */
#define SLOTS_MAX  16u
#define SLOTS_SIZE ((size_t)64 << 20) /* more slots than two only within so many bytes */

#define FIRST_TRY 256u  /* of top-p without top-k: so many of the best */
#define NEAR_BEST 12.0f /* ... then those within e^-12 of the best */

/* What a call is about, and its scratch: arrays with a row per output. */
struct sample_work {
    const float *logits;
    size_t stride;
    const struct cuda_output *outputs;
    const struct infer_logit_bias *bias;
    const int32_t *seen;
    struct cuda_drawn *drawn;
    uint32_t n_vocab, n_segments, n_marks, n_chunks, n_slots;
    uint32_t *tickets; /* [0] taken so far; [1 + slot] returned so far */
    uint32_t *n_changes;
    struct sample_change *changes;  /* [SAMPLE_CHANGES_MAX] */
    uint32_t *marks;                /* [n_marks]; valid when there are changes */
    float *raw_maxima, *maxima;     /* [n_segments]; the latter valid when there are changes */
    double *raw_sums, *sums;        /* [n_chunks]; valid when wanted */
    struct sample_candidate *slots; /* [3 * n_vocab] per slot */
};

/* ---- what an output asks for ----------------------------------------------------------------- */

/* Which weights of all tokens, with bias and penalties, its draw wants summed. */
enum sample_sums_kind {
    SUMS_NONE,
    SUMS_TOTAL, /* at temperature 1, for top-p without top-k */
    SUMS_DRAW,  /* at its temperature, of those min-p leaves: to draw by ascending id */
};

static __device__ bool takes_all(const struct infer_sampling &s, uint32_t n_vocab)
{
    return s.top_k == 0 || s.top_k >= n_vocab;
}

static __device__ enum sample_sums_kind sums_kind(const struct cuda_output &output,
                                                  uint32_t n_vocab)
{
    const struct infer_sampling &s = output.sampling;
    if (output.sample == 0 || !(s.temperature > 0) || !takes_all(s, n_vocab) || s.typical_p < 1)
        return SUMS_NONE;
    return s.top_p >= 1 ? SUMS_DRAW : SUMS_TOTAL;
}

static __device__ bool wants_logprobs(const struct cuda_output &output)
{
    return output.n_top > 0 || output.target >= 0;
}

/* The row of output i as the model gave it, or with bias and penalties. */
static __device__ struct sample_row row_of(const struct sample_work &work, uint32_t i, bool raw)
{
    struct sample_row row;
    row.logits = work.logits + work.outputs[i].row * work.stride;
    row.changes = work.changes + (size_t)i * SAMPLE_CHANGES_MAX;
    row.marks = work.marks + (size_t)i * work.n_marks;
    row.n_vocab = work.n_vocab;
    row.n_changes = raw ? 0 : work.n_changes[i];
    return row;
}

static __device__ const float *maxima_of(const struct sample_work &work, uint32_t i,
                                         const struct sample_row &row)
{
    return (row.n_changes > 0 ? work.maxima : work.raw_maxima) + (size_t)i * work.n_segments;
}

/* ---- sample_changes -------------------------------------------------------------------------- */

static __global__ void __launch_bounds__(CHANGE_THREADS) sample_changes(struct sample_work work)
{
    __shared__ uint32_t keys[SAMPLE_KEYS_MAX];
    const uint32_t i = blockIdx.x;
    const struct cuda_output &output = work.outputs[i];
    struct sample_change *changes = work.changes + (size_t)i * SAMPLE_CHANGES_MAX;
    uint32_t *marks = work.marks + (size_t)i * work.n_marks, n = 0;

    cuda_wait();
    cuda_let_next_start();
    if (i == 0 && threadIdx.x <= work.n_slots)
        work.tickets[threadIdx.x] = 0;
    uint32_t size = change_keys(output, work.bias, work.seen, work.n_vocab, keys);
    if (size > 0) {
        const float *logits = work.logits + output.row * work.stride;
        for (uint32_t j = threadIdx.x; j < work.n_marks; j += blockDim.x)
            marks[j] = 0;
        sort_keys(keys, size);
        __syncthreads(); /* the marks are zero for all, whatever the sort took */
        for (uint32_t first = 0; first < size; first += blockDim.x) {
            uint32_t at = first + threadIdx.x, total;
            uint32_t token = at < size ? keys[at] >> KEY_BITS : 0;
            bool begins =
                at < size && keys[at] != KEY_NONE && (at == 0 || keys[at - 1] >> KEY_BITS != token);
            uint32_t to = n + sample_block::sum_before(begins ? 1u : 0u, &total);
            if (begins) {
                float value = changed_value(output, work.bias, keys, size, at, logits[token]);
                changes[to] = sample_change{(int32_t)token, value};
                uint32_t segment = token / SAMPLE_SEGMENT;
                atomicOr(&marks[segment / 32], 1u << segment % 32);
            }
            n += total;
        }
    }
    if (threadIdx.x == 0)
        work.n_changes[i] = n;
}

/* ---- sample_maxima --------------------------------------------------------------------------- */

/* Four logits from `first`, a multiple of four; minus infinity beyond the end. */
static __device__ void load_four(const struct sample_row &row, uint32_t first, bool aligned,
                                 float ret[4])
{
    if (aligned && first + 4 <= row.n_vocab) {
        float4 v = *reinterpret_cast<const float4 *>(row.logits + first);
        ret[0] = v.x;
        ret[1] = v.y;
        ret[2] = v.z;
        ret[3] = v.w;
        return;
    }
    for (uint32_t j = 0; j < 4; j++)
        ret[j] = first + j < row.n_vocab ? row.logits[first + j] : -INFINITY;
}

/* The maximum of a segment, of which each of 16 lanes has four logits, to maxima[segment]. */
static __device__ void store_maximum(const float value[4], uint32_t first, uint32_t n_segments,
                                     float *maxima)
{
    float best = -INFINITY;
    for (uint32_t j = 0; j < 4; j++)
        best = fmaxf(best, sample_clean(value[j]));
    for (int by = 8; by > 0; by /= 2)
        best = fmaxf(best, __shfl_xor_sync(ALL_LANES, best, by));
    if (first % SAMPLE_SEGMENT == 0 && first / SAMPLE_SEGMENT < n_segments)
        maxima[first / SAMPLE_SEGMENT] = best;
}

static __global__ void __launch_bounds__(MAXIMA_THREADS) sample_maxima(struct sample_work work)
{
    const uint32_t i = blockIdx.y, rounds = SLICE / (4 * MAXIMA_THREADS);
    cuda_wait();
    cuda_let_next_start();
    if (work.outputs[i].sample == 0 && !wants_logprobs(work.outputs[i]))
        return;
    struct sample_row row = row_of(work, i, false);
    const bool aligned = reinterpret_cast<uintptr_t>(row.logits) % 16 == 0;
    const uint32_t first = blockIdx.x * SLICE + threadIdx.x * 4;
    float value[rounds][4];

#pragma unroll
    for (uint32_t r = 0; r < rounds; r++)
        load_four(row, first + r * 4 * MAXIMA_THREADS, aligned, value[r]);
#pragma unroll
    for (uint32_t r = 0; r < rounds; r++)
        store_maximum(value[r], first + r * 4 * MAXIMA_THREADS, work.n_segments,
                      work.raw_maxima + (size_t)i * work.n_segments);
    if (row.n_changes == 0)
        return;
#pragma unroll
    for (uint32_t r = 0; r < rounds; r++) {
        for (uint32_t j = 0; j < 4; j++) {
            uint32_t token = first + r * 4 * MAXIMA_THREADS + j;
            if (token < row.n_vocab)
                value[r][j] = sample_changed(row, token, value[r][j]);
        }
        store_maximum(value[r], first + r * 4 * MAXIMA_THREADS, work.n_segments,
                      work.maxima + (size_t)i * work.n_segments);
    }
}

/* ---- sample_sums ----------------------------------------------------------------------------- */

/* The sum of the weights of a chunk's tokens with a logit from `floor` up, in the order of
 * ref/select.c: lane l of eight adds the tokens l, l + 8, ... in float32; what is left over from a
 * multiple of eight, and then the lanes, are added in double. */
static __device__ void store_chunk_sum(const struct sample_row &row, float max, float temperature,
                                       float floor, uint32_t n_chunks, double *sums)
{
    const uint32_t lane = threadIdx.x % 8;
    const uint32_t chunk = (blockIdx.x * SUMS_THREADS + threadIdx.x) / 8;
    const uint32_t first = chunk * SAMPLE_CHUNK;
    const uint32_t n = chunk < n_chunks ? min(row.n_vocab - first, SAMPLE_CHUNK) : 0;
    float sum = 0, left_over = 0;
    double total = 0;

    for (uint32_t start = lane; start < SAMPLE_CHUNK; start += 8 * BATCH) {
        float logit[BATCH];
#pragma unroll
        for (uint32_t j = 0; j < BATCH; j++)
            logit[j] = start + 8 * j < n ? row.logits[first + start + 8 * j] : -INFINITY;
#pragma unroll
        for (uint32_t j = 0; j < BATCH; j++) {
            uint32_t i = start + 8 * j;
            if (row.n_changes > 0 && i < n)
                logit[j] = sample_changed(row, first + i, logit[j]);
            logit[j] = sample_clean(logit[j]);
            float weight = logit[j] >= floor ? sample_weight(logit[j], max, temperature) : 0.0f;
            if (i < n / 8 * 8)
                sum = __fadd_rn(sum, weight);
            else if (i < n)
                left_over = weight;
        }
    }
    for (int l = 0; l < 8; l++)
        total += (double)__shfl_sync(ALL_LANES, left_over, l, 8);
    for (int l = 0; l < 4; l++) {
        double even = (double)__shfl_sync(ALL_LANES, sum, l, 8);
        total += even + (double)__shfl_sync(ALL_LANES, sum, l + 4, 8);
    }
    if (lane == 0 && chunk < n_chunks)
        sums[chunk] = total;
}

static __global__ void __launch_bounds__(SUMS_THREADS) sample_sums(struct sample_work work)
{
    const uint32_t i = blockIdx.y;
    const struct cuda_output &output = work.outputs[i];
    cuda_wait();
    cuda_let_next_start();
    enum sample_sums_kind kind = sums_kind(output, work.n_vocab);

    if (wants_logprobs(output)) {
        struct sample_row row = row_of(work, i, true);
        float max = block_max(maxima_of(work, i, row), work.n_segments);
        if (max > -INFINITY)
            store_chunk_sum(row, max, 1.0f, -INFINITY, work.n_chunks,
                            work.raw_sums + (size_t)i * work.n_chunks);
    }
    if (kind != SUMS_NONE) {
        const struct infer_sampling &s = output.sampling;
        struct sample_row row = row_of(work, i, false);
        float max = block_max(maxima_of(work, i, row), work.n_segments);
        bool draw = kind == SUMS_DRAW;
        if (max > -INFINITY)
            store_chunk_sum(row, max, draw ? s.temperature : 1.0f,
                            draw ? sample_min_p_floor(max, s.min_p) : -INFINITY, work.n_chunks,
                            work.sums + (size_t)i * work.n_chunks);
    }
}

/* ---- sample_finish: candidates in order ------------------------------------------------------ */

/* One block's memory. The slot is taken when shared memory is too small, and kept to the end. */
struct finish_memory {
    struct sample_candidate *pool; /* [3 * POOL] */
    uint32_t *counters;            /* of a sort; a threshold's bins */
    uint16_t *segments;            /* [n_segments] */
    struct sample_candidate *slot; /* [3 * n_vocab] or NULL */
    uint32_t ticket;
};

static size_t finish_shared_bytes(uint32_t n_segments)
{
    return 3 * POOL * sizeof(struct sample_candidate) +
           FINISH_THREADS / 32 * SAMPLE_DIGITS * sizeof(uint32_t) + n_segments * sizeof(uint16_t);
}

static __device__ struct finish_memory finish_memory_of(unsigned char *shared)
{
    struct finish_memory ret = {};
    ret.pool = reinterpret_cast<struct sample_candidate *>(shared);
    ret.counters = reinterpret_cast<uint32_t *>(ret.pool + 3 * POOL);
    ret.segments = reinterpret_cast<uint16_t *>(ret.counters + FINISH_THREADS / 32 * SAMPLE_DIGITS);
    return ret;
}

/* Tickets t, t + n_slots, ... have the same slot, one after the other. Whoever holds an earlier one
 * is running, so every wait ends. */
static __device__ void slot_take(const struct sample_work &work, struct finish_memory &memory)
{
    __shared__ uint32_t ticket;
    if (memory.slot != NULL)
        return;
    if (threadIdx.x == 0) {
        ticket = atomicAdd(&work.tickets[0], 1u);
        while (atomicAdd(&work.tickets[1 + ticket % work.n_slots], 0u) < ticket / work.n_slots)
            __nanosleep(1000);
        __threadfence();
    }
    __syncthreads();
    memory.ticket = ticket;
    memory.slot = work.slots + (size_t)(ticket % work.n_slots) * 3 * work.n_vocab;
}

static __device__ void slot_return(const struct sample_work &work, struct finish_memory &memory)
{
    if (memory.slot == NULL)
        return;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0)
        atomicAdd(&work.tickets[1 + memory.ticket % work.n_slots], 1u);
}

/* The tokens with a value from `floor` up, by descending value (ties: lower id). */
static __device__ struct sample_list list_from(const struct sample_work &work,
                                               struct finish_memory &memory,
                                               const struct sample_row &row, const float *maxima,
                                               float floor)
{
    struct sample_list list;
    uint32_t n_segments = block_segments(maxima, work.n_segments, floor, memory.segments);
    uint32_t own = warp_gather(row, memory.segments, n_segments, floor, 0, NULL);
    uint32_t at = sample_block::sum_before(threadIdx.x % 32 == 0 ? own : 0, &list.n);
    at = __shfl_sync(ALL_LANES, at, 0);

    list.items = memory.pool;
    size_t room = POOL;
    if (list.n > POOL) {
        slot_take(work, memory);
        list.items = memory.slot;
        room = work.n_vocab;
    }
    list.other = list.items + room;
    list.third = list.other + room;
    warp_gather(row, memory.segments, n_segments, floor, at, list.items);
    __syncthreads();
    block_sort(list, memory.counters);
    return list;
}

/* The k best, or all when there are fewer. */
static __device__ struct sample_list list_best(const struct sample_work &work,
                                               struct finish_memory &memory,
                                               const struct sample_row &row, const float *maxima,
                                               float max, uint32_t k)
{
    float floor = block_threshold(maxima, work.n_segments, k, max, memory.counters);
    struct sample_list list = list_from(work, memory, row, maxima, floor);
    list.n = min(list.n, k);
    return list;
}

/* ---- sample_finish: the filters, on lists by descending value -------------------------------- */

/* How likely candidates are, against the first of their list. */
struct weight_in_list {
    const struct sample_candidate *items;
    float max, temperature;
    __device__ float operator()(uint32_t i) const
    {
        return sample_weight(items[i].logit, max, temperature);
    }
};

static __device__ struct weight_in_list list_weights(const struct sample_list &list,
                                                     float temperature)
{
    return weight_in_list{list.items, list.items[0].logit, temperature};
}

/* -ln p of the candidates. */
struct surprise_in_list {
    const struct sample_candidate *items;
    double max, log_total;
    __device__ double operator()(uint32_t i) const
    {
        return log_total - ((double)items[i].logit - max);
    }
};

/* Those whose surprise lies nearest to the entropy, until their probabilities reach typical_p; they
 * stay in order. `third` takes the order of nearness, `other` a flag for each that stays. */
static __device__ void filter_typical(struct sample_list &list, float typical_p, uint32_t *counters)
{
    const struct sample_candidate *items = list.items;
    double log_total = log(team_sum<sample_block>(list.n, list_weights(list, 1.0f)));
    const struct surprise_in_list surprise = {items, (double)items[0].logit, log_total};
    /* Beyond these there is no probability, and no surprise that could be compared. */
    const uint32_t n =
        team_count<sample_block>(list.n, [=](uint32_t i) { return items[i].logit > -INFINITY; });
    const double entropy = team_sum<sample_block>(n, [=](uint32_t i) {
        double s = surprise(i);
        return exp(-s) * s;
    });
    for (uint32_t i = threadIdx.x; i < n; i += blockDim.x)
        list.third[i] = sample_candidate{(float)-fabs(surprise(i) - entropy), (int32_t)i};
    __syncthreads();
    struct sample_list order = {list.third, list.other, NULL, n};
    block_sort(order, counters);

    const struct sample_candidate *nearest = order.items;
    struct sample_candidate *flags = order.other;
    const struct sample_crossing end =
        team_cross<sample_block>(n, 0.0, (double)typical_p, false, [=](uint32_t i) {
            return exp(-surprise((uint32_t)nearest[i].token));
        });
    for (uint32_t i = threadIdx.x; i < n; i += blockDim.x)
        flags[i].token = 0;
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < n && i <= end.at; i += blockDim.x)
        flags[nearest[i].token].token = 1;
    __syncthreads();
    uint32_t kept = 0;
    for (uint32_t start = 0; start < n; start += blockDim.x) {
        uint32_t i = start + threadIdx.x, total;
        bool stays = i < n && flags[i].token != 0;
        uint32_t to = kept + sample_block::sum_before(stays ? 1u : 0u, &total);
        if (stays)
            order.items[to] = items[i];
        kept += total;
    }
    __syncthreads();
    list = sample_list{order.items, order.other, list.items, kept};
}

/* What follows is every warp's own business on a short list, and the block's on a long one. */

static __device__ double list_total(const struct sample_list &list, float temperature)
{
    const struct weight_in_list weights = list_weights(list, temperature);
    return list.n <= SAMPLE_FEW ? team_sum<sample_warp>(list.n, weights)
                                : team_sum<sample_block>(list.n, weights);
}

static __device__ struct sample_crossing list_cross(const struct sample_list &list,
                                                    float temperature, double target, bool beyond)
{
    const struct weight_in_list weights = list_weights(list, temperature);
    return list.n <= SAMPLE_FEW ? team_cross<sample_warp>(list.n, 0.0, target, beyond, weights)
                                : team_cross<sample_block>(list.n, 0.0, target, beyond, weights);
}

/* The shortest prefix with at least top_p of `total`. Returns whether there is one. */
static __device__ bool filter_top_p(struct sample_list &list, float top_p, double total)
{
    struct sample_crossing end = list_cross(list, 1.0f, (double)top_p * total, false);
    if (end.at == list.n)
        return false;
    list.n = end.at + 1;
    return true;
}

static __device__ void filter_min_p(struct sample_list &list, float min_p)
{
    const struct sample_candidate *items = list.items;
    const float floor = sample_min_p_floor(items[0].logit, min_p);
    auto stays = [=](uint32_t i) { return items[i].logit >= floor; };
    uint32_t n = list.n <= SAMPLE_FEW ? team_count<sample_warp>(list.n, stays)
                                      : team_count<sample_block>(list.n, stays);
    list.n = max(n, 1u);
}

/* ---- sample_finish: the draw ----------------------------------------------------------------- */

/* By descending value. */
static __device__ int32_t draw_sorted(const struct sample_list &list, float temperature,
                                      double uniform)
{
    double target = uniform * list_total(list, temperature);
    struct sample_crossing found = list_cross(list, temperature, target, true);
    return list.items[found.at < list.n ? found.at : found.last].token;
}

/* From all tokens with a value >= floor, by ascending id: first the chunk, then the token in it.
 * Where rounding lets none go beyond the target, the last that has a weight. */
static __device__ int32_t draw_unsorted(const struct sample_row &row, const double *sums,
                                        uint32_t n_chunks, float max,
                                        const struct infer_sampling &s, double uniform)
{
    const float floor = sample_min_p_floor(max, s.min_p), temperature = s.temperature;
    auto chunk_sum = [=](uint32_t i) { return sums[i]; };
    double target = uniform * team_sum<sample_block>(n_chunks, chunk_sum);
    struct sample_crossing found = team_cross<sample_block>(n_chunks, 0.0, target, true, chunk_sum);
    if (found.at == n_chunks) {
        found.at = found.last;
        found.before = -INFINITY;
    }
    uint32_t first = found.at * SAMPLE_CHUNK, n = min(row.n_vocab - first, SAMPLE_CHUNK);
    struct sample_crossing token =
        team_cross<sample_block>(n, found.before, target, true, [=](uint32_t i) {
            float value = sample_value(row, first + i);
            return value >= floor ? sample_weight(value, max, temperature) : 0.0f;
        });
    return (int32_t)(first + (token.at < n ? token.at : token.last));
}

/* Neither top-k nor typical, but top-p. A list is long enough when it holds top_p of the total, or
 * all that min-p would leave. */
static __device__ struct sample_list list_top_p(const struct sample_work &work,
                                                struct finish_memory &memory,
                                                const struct sample_row &row, const float *maxima,
                                                float max, const double *sums,
                                                const struct infer_sampling &s)
{
    const float lowest = sample_min_p_floor(max, s.min_p);
    double total = team_sum<sample_block>(work.n_chunks, [=](uint32_t i) { return sums[i]; });
    float floor = block_threshold(maxima, work.n_segments, FIRST_TRY, max, memory.counters);
    floor = fmaxf(floor, lowest);
    for (;;) {
        struct sample_list list = list_from(work, memory, row, maxima, floor);
        if (filter_top_p(list, s.top_p, total) || floor == lowest)
            return list;
        floor = lowest == -INFINITY && floor > max - NEAR_BEST ? max - NEAR_BEST : lowest;
    }
}

/* The token of the largest value, the first of several. */
static __device__ int32_t best_token(const struct sample_row &row, const float *maxima,
                                     uint32_t n_segments, float max)
{
    uint32_t first = UINT32_MAX, token = UINT32_MAX;
    for (uint32_t i = threadIdx.x; i < n_segments && first == UINT32_MAX; i += blockDim.x) {
        if (maxima[i] >= max)
            first = i;
    }
    first = sample_block::join(first, sample_smaller()) * SAMPLE_SEGMENT;
    if (threadIdx.x < SAMPLE_SEGMENT && first + threadIdx.x < row.n_vocab &&
        sample_value(row, first + threadIdx.x) >= max)
        token = first + threadIdx.x;
    return (int32_t)sample_block::join(token, sample_smaller());
}

static __device__ int32_t pick(const struct sample_work &work, struct finish_memory &memory,
                               uint32_t i)
{
    const struct cuda_output &output = work.outputs[i];
    const struct infer_sampling &s = output.sampling;
    const struct sample_row row = row_of(work, i, false);
    const float *maxima = maxima_of(work, i, row);
    const double *sums = work.sums + (size_t)i * work.n_chunks;
    float max = block_max(maxima, work.n_segments);
    struct sample_list list;

    if (max == -INFINITY)
        return 0;
    if (!(s.temperature > 0))
        return best_token(row, maxima, work.n_segments, max);
    switch (sums_kind(output, work.n_vocab)) {
    case SUMS_DRAW:
        return draw_unsorted(row, sums, work.n_chunks, max, s, output.uniform);
    case SUMS_TOTAL:
        list = list_top_p(work, memory, row, maxima, max, sums, s);
        break;
    case SUMS_NONE:
        list = list_best(work, memory, row, maxima, max,
                         takes_all(s, work.n_vocab) ? work.n_vocab : s.top_k);
        if (s.typical_p < 1)
            filter_typical(list, s.typical_p, memory.counters);
        if (s.top_p < 1)
            filter_top_p(list, s.top_p, list_total(list, 1.0f));
        break;
    }
    filter_min_p(list, s.min_p);
    return draw_sorted(list, s.temperature, output.uniform);
}

/* ---- sample_finish: log-probabilities and the whole ------------------------------------------ */

static __device__ float logprob_of(const struct sample_row &row, int32_t token, double log_total)
{
    if (token < 0 || (uint32_t)token >= row.n_vocab || !(row.logits[token] > -INFINITY))
        return -INFINITY;
    return (float)((double)fminf(row.logits[token], FLT_MAX) - log_total);
}

/* ln of the sum of exp(logits); `max` is their largest. */
static __device__ double log_total_of(const double *sums, uint32_t n_chunks, float max)
{
    if (max == -INFINITY)
        return -INFINITY;
    return (double)max + log(team_sum<sample_block>(n_chunks, [=](uint32_t i) { return sums[i]; }));
}

static __device__ void fill_top(const struct sample_work &work, struct finish_memory &memory,
                                const struct sample_row &row, const float *maxima, float max,
                                uint32_t n_top, double log_total, struct cuda_drawn *ret)
{
    uint32_t wanted = min(n_top, INFER_TOP_MAX), i = threadIdx.x;
    struct sample_list list = list_best(work, memory, row, maxima, max, wanted);
    if (i < wanted) {
        int32_t token = i < list.n ? list.items[i].token : -1; /* a vocabulary smaller than that */
        ret->top[i].token = token;
        ret->top[i].logprob = logprob_of(row, token, log_total);
    }
    __syncthreads();
}

static __global__ void __launch_bounds__(FINISH_THREADS, 1) sample_finish(struct sample_work work)
{
    CUDA_SHARED(unsigned char, shared);
    const uint32_t i = blockIdx.x;
    const struct cuda_output &output = work.outputs[i];
    struct cuda_drawn *ret = &work.drawn[i];
    struct finish_memory memory = finish_memory_of(shared);
    double log_total = 0;

    cuda_wait();
    cuda_let_next_start();
    const bool logprobs = wants_logprobs(output);
    const struct sample_row raw = row_of(work, i, true);
    if (logprobs) {
        const float *maxima = maxima_of(work, i, raw);
        float max = block_max(maxima, work.n_segments);
        log_total = log_total_of(work.raw_sums + (size_t)i * work.n_chunks, work.n_chunks, max);
        if (output.n_top > 0)
            fill_top(work, memory, raw, maxima, max, output.n_top, log_total, ret);
        if (output.target >= 0 && threadIdx.x == 0)
            ret->target_logprob = logprob_of(raw, output.target, log_total);
    }
    if (output.sample != 0) {
        int32_t token = pick(work, memory, i);
        if (threadIdx.x == 0) {
            ret->token = token;
            if (logprobs)
                ret->logprob = logprob_of(raw, token, log_total);
        }
    }
    slot_return(work, memory);
}

/* ---- host ------------------------------------------------------------------------------------ */

static uint32_t divided_up(uint32_t a, uint32_t b)
{
    return (a + b - 1) / b;
}

/* The next array of n items of `bytes` in scratch at `at`, which moves on. */
static size_t carve(size_t *at, size_t n, size_t bytes)
{
    size_t here = *at;
    *at = (here + n * bytes + 255) / 256 * 256;
    return here;
}

/* Lays the arrays of n_outputs outputs into `scratch` (NULL: only their size counts), which no
 * smaller number of outputs exceeds. Returns their bytes. */
static size_t work_layout(struct sample_work *work, uint32_t n_vocab, uint32_t n_outputs,
                          void *scratch)
{
    unsigned char *base = static_cast<unsigned char *>(scratch);
    size_t at = 0, n = n_outputs, slot = 3 * (size_t)n_vocab * sizeof(struct sample_candidate);
    size_t slots = SLOTS_SIZE / slot;
    slots = slots < 2 ? 2 : slots < SLOTS_MAX ? slots : SLOTS_MAX;

    work->n_vocab = n_vocab;
    work->n_segments = divided_up(n_vocab, SAMPLE_SEGMENT);
    work->n_marks = divided_up(work->n_segments, 32);
    work->n_chunks = divided_up(n_vocab, SAMPLE_CHUNK);
    work->n_slots = slots < n ? (uint32_t)slots : n_outputs;

#define ARRAY(name, type, length)                                                                  \
    do {                                                                                           \
        size_t offset = carve(&at, (length), sizeof(type));                                        \
        work->name = base != NULL ? reinterpret_cast<type *>(base + offset) : NULL;                \
    } while (0)
    ARRAY(tickets, uint32_t, 1 + SLOTS_MAX);
    ARRAY(slots, struct sample_candidate, work->n_slots * 3 * (size_t)n_vocab);
    ARRAY(raw_sums, double, n * work->n_chunks);
    ARRAY(sums, double, n * work->n_chunks);
    ARRAY(changes, struct sample_change, n * SAMPLE_CHANGES_MAX);
    ARRAY(n_changes, uint32_t, n);
    ARRAY(marks, uint32_t, n * work->n_marks);
    ARRAY(raw_maxima, float, n * work->n_segments);
    ARRAY(maxima, float, n * work->n_segments);
#undef ARRAY
    return at;
}

extern "C" size_t cuda_sample_scratch_bytes(uint32_t n_vocab, uint32_t max_outputs)
{
    struct sample_work work = {};
    return work_layout(&work, n_vocab, max_outputs, NULL);
}

/* With what sample_finish has besides. */
extern "C" size_t cuda_sample_shared_bytes(uint32_t n_vocab)
{
    return finish_shared_bytes(divided_up(n_vocab, SAMPLE_SEGMENT)) + 2048;
}

extern "C" cudaError_t cuda_sample(const float *logits, size_t stride, uint32_t n_vocab,
                                   const struct cuda_output *outputs, uint32_t n_outputs,
                                   const struct infer_logit_bias *bias, const int32_t *seen,
                                   void *scratch, struct cuda_drawn *ret, cudaStream_t stream)
{
    struct sample_work work = {};
    if (n_outputs == 0)
        return cudaSuccess;
    work_layout(&work, n_vocab, n_outputs, scratch);
    work.logits = logits;
    work.stride = stride;
    work.outputs = outputs;
    work.bias = bias;
    work.seen = seen;
    work.drawn = ret;

    const size_t shared = finish_shared_bytes(work.n_segments);
    cudaError_t error = cudaFuncSetAttribute(
        sample_finish, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared);
    if (error == cudaSuccess)
        error = cuda_launch(sample_changes, dim3(n_outputs), dim3(CHANGE_THREADS), 0, stream, work);
    if (error == cudaSuccess)
        error = cuda_launch(sample_maxima, dim3(divided_up(n_vocab, SLICE), n_outputs),
                            dim3(MAXIMA_THREADS), 0, stream, work);
    if (error == cudaSuccess)
        error = cuda_launch(sample_sums, dim3(divided_up(n_vocab, SUMS_TOKENS), n_outputs),
                            dim3(SUMS_THREADS), 0, stream, work);
    if (error == cudaSuccess)
        error =
            cuda_launch(sample_finish, dim3(n_outputs), dim3(FINISH_THREADS), shared, stream, work);
    return error;
}
