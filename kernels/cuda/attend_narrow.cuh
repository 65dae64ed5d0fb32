/* attend_narrow.cuh: attention of one tile, GROUPS chunks at a time, four warps on each.
 *
 * Warp w of a group multiplies the queries with the 16 keys of page w of its chunk; the maxima meet
 * in shared memory, then the weights do, and then the warp multiplies the weights of all 64 keys
 * with its share of the values' dimensions. So each product is the one that a warp alone would do,
 * and nothing is added up across warps. Chunks are joined in ascending order: where there is one
 * group by the lanes that have their sums, otherwise by threads that each have some numbers of the
 * result, to which the groups' sums come through shared memory.
 *
 * Several groups are for steps of few tiles, where each block has a processor for itself and what
 * counts is how long one takes. There the block also turns its rows' heads, which are all of their
 * sequence in this step (struct cuda_cut): queries to shared memory, keys and values to their
 * pages, for later steps, and to copies of these pages in shared memory, from which it reads them.
 * No two blocks have the same page: each piece has its own chunks.
 *
 * Bytes: keys and values of the chunk once, of a head of 128 in F16 32 KB, 16 loads of 16 bytes a
 * lane, all of which are under way before the first is used; those of the group's next chunk are
 * asked for as soon as registers are free. The first chunk's go out before the kernel before this
 * one has ended, unless that one writes them. */
#ifndef INFERD_KERNELS_CUDA_ATTEND_NARROW_CUH
#define INFERD_KERNELS_CUDA_ATTEND_NARROW_CUH

#include "cuda/attend.cuh"
#include "cuda/turn.cuh"

/* Shared memory, one behind another: */
template <uint32_t GROUPS> struct narrow_shared {
    float maxima[GROUPS][ATTEND_WARPS][CUDA_PAIRS];
    uint4 weights[GROUPS][ATTEND_WARPS][32];
    float2 of_chunk[GROUPS][CUDA_PAIRS]; /* maximum and sum of weights */
    /* Queries, [key units][2][lane] as fragments; then what warps turn heads in, or sums of chunks,
     * [GROUPS][CUDA_PAIRS][heads_stride()] floats, or heads on their way out, of these the first;
     * then the copies of two pages. */
    uint4 rest[1];
};

static __host__ __device__ inline uint32_t narrow_queries_bytes(uint32_t dim_k)
{
    return dim_k / 32 * 2 * 32 * sizeof(uint4);
}

static __host__ __device__ inline uint32_t narrow_sums_bytes(uint32_t groups, uint32_t dim_v)
{
    const uint32_t sums = groups * CUDA_PAIRS * (dim_v + 8) * sizeof(float);
    const uint32_t heads = groups * ATTEND_WARPS * HEAD_BYTES;
    return sums > heads ? sums : heads;
}

template <uint32_t GROUPS> static inline size_t narrow_shared_bytes(const struct cuda_cache *c)
{
    return sizeof(struct narrow_shared<GROUPS>) + narrow_queries_bytes(c->dim_k) +
           narrow_sums_bytes(GROUPS, c->dim_v) + (GROUPS > 1 ? 2 * c->head_bytes : 0);
}

/* Four numbers of a pair's result, from dimension `first` on, while chunks are joined. */
struct narrow_part {
    float m, l, o[4];

    __device__ inline void clear()
    {
        m = FEWEST;
        l = o[0] = o[1] = o[2] = o[3] = 0;
    }

    __device__ inline void add(float2 of_chunk, float4 sums)
    {
        float before, with;
        join(&m, of_chunk.x, &before, &with);
        l = joined(l, before, of_chunk.y, with);
        o[0] = joined(o[0], before, sums.x, with);
        o[1] = joined(o[1], before, sums.y, with);
        o[2] = joined(o[2], before, sums.z, with);
        o[3] = joined(o[3], before, sums.w, with);
    }
};

/* Heads of KU key units and 4 VU value units (EXACT), or of no more than that. */
template <uint32_t KT, uint32_t VT, uint32_t KU, uint32_t VU, bool EXACT, uint32_t GROUPS>
struct narrow {
    static constexpr bool TURNS = GROUPS > 1;
    static constexpr uint32_t THREADS = GROUPS * ATTEND_THREADS;
    static constexpr uint32_t DIM = 32 * KU;
    static constexpr uint32_t PARTS = 2 * VU > GROUPS ? 2 * VU / GROUPS : 1;

    cuda_cache c; /* with what the types say already, so that no code is made for the rest */
    const struct cuda_attend &a;
    const cuda_step &s;
    const cuda_piece &piece;
    narrow_shared<GROUPS> *shared;
    uint32_t group = threadIdx.x / ATTEND_THREADS;
    uint32_t warp = threadIdx.x / 32 % ATTEND_WARPS, lane = threadIdx.x % 32, kv = blockIdx.x;

    /* The tile. */
    pairs tile;
    const uint32_t *pages;
    uint32_t position, last_page; /* of the piece's first row; of its last */
    uint32_t old_rows, new_page;  /* of the sequence before this step; the first page that is not */
    bool early;                   /* the group's first chunk is on its way before cuda_wait() */
    uint32_t first_pair, n_pairs;
    uint32_t begin[2], last[2]; /* what the lane's rows see */
    uint32_t n_units;           /* value units of this warp at most, the first of them */
    uint32_t first_unit;
    uint32_t first_chunk, end_chunk; /* that the piece has to do with */

    cache_key_unit<KT> keys[KU];
    cache_value_unit<VT> values[VU][CHUNK_PAGES];
    uint32_t chunk_pages;          /* page lane % 4 of a chunk */
    float m[2], l[2], o[VU][2][4]; /* of one group, */
    narrow_part parts[PARTS];      /* or of several */

    __device__ inline narrow(const cuda_cache &cache, const struct cuda_attend &attend,
                             const cuda_step &step, const cuda_piece &p,
                             narrow_shared<GROUPS> *memory)
        : c(cache), a(attend), s(step), piece(p), shared(memory)
    {
        if (KT != CACHE_ANY)
            c.k_type = KT;
        if (VT != CACHE_ANY)
            c.v_type = VT;
        if (EXACT)
            c.dim_k = c.dim_v = DIM;
    }

    __device__ inline void meet_group()
    {
        if (GROUPS == 1)
            __syncthreads();
        else
            cuda_meet(1 + group, ATTEND_THREADS);
    }

    __device__ inline unsigned char *sums_memory()
    {
        return reinterpret_cast<unsigned char *>(shared->rest) + narrow_queries_bytes(c.dim_k);
    }

    __device__ inline float *sums_of(uint32_t of_group, uint32_t pair)
    {
        return reinterpret_cast<float *>(sums_memory()) +
               (of_group * CUDA_PAIRS + pair) * heads_stride(c);
    }

    __device__ inline uint8_t *copy_of(uint32_t index)
    {
        return sums_memory() + narrow_sums_bytes(GROUPS, c.dim_v) + index % 2 * c.head_bytes;
    }

    /* ---- pages ---- */

    __device__ inline uint32_t index_of(uint32_t chunk, uint32_t i) const
    {
        return min(chunk * CHUNK_PAGES + i, last_page);
    }

    /* A page of the chunk per lane, again and again: whom they are read from is not known before.
     */
    __device__ inline void load_pages(uint32_t chunk)
    {
        chunk_pages = pages[index_of(chunk, lane % CHUNK_PAGES)];
    }

    __device__ inline uint32_t page(uint32_t i) const
    {
        return __shfl_sync(0xffffffffu, chunk_pages, (int)i);
    }

    __device__ inline void load_keys()
    {
        const uint8_t *at = cache_keys(c, a.layer, kv, page(warp));
#pragma unroll
        for (uint32_t j = 0; j < KU; j++)
            keys[j].load(c, at, j, lane);
    }

    __device__ inline void load_values()
    {
#pragma unroll
        for (uint32_t p = 0; p < CHUNK_PAGES; p++) {
            const uint8_t *at = cache_values(c, a.layer, kv, page(p));
#pragma unroll
            for (uint32_t i = 0; i < VU; i++)
                values[i][p].load(c, at, first_unit + i, lane);
        }
    }

    /* What load_keys() and load_values() read of pages of the step's own rows gives way to what
     * their copies have: right before it is needed, so that loads have no branch between them. */
    __device__ inline void renew_keys(uint32_t chunk)
    {
        const uint32_t index = index_of(chunk, warp);
        if (index < new_page)
            return;
#pragma unroll
        for (uint32_t j = 0; j < KU; j++)
            keys[j].template load<cache_copy>(c, copy_of(index), j, lane);
    }

    __device__ inline void renew_values(uint32_t chunk)
    {
        if (index_of(chunk, CHUNK_PAGES - 1) < new_page)
            return;
#pragma unroll
        for (uint32_t p = 0; p < CHUNK_PAGES; p++) {
            const uint32_t index = index_of(chunk, p);
            if (index < new_page)
                continue;
#pragma unroll
            for (uint32_t i = 0; i < VU; i++)
                values[i][p].template load<cache_copy>(c, copy_of(index) + c.key_bytes,
                                                       first_unit + i, lane);
        }
    }

    __device__ inline void load_chunk(uint32_t chunk)
    {
        load_pages(chunk);
        if (EXACT) {
            load_keys();
            load_values();
        }
    }

    /* ---- the step's own rows ---- */

    /* The copies begin as what their pages are. */
    __device__ inline void copy_pages()
    {
        const uint32_t first = max(new_page, first_chunk * CHUNK_PAGES);
        const uint32_t end = min(last_page + 1, end_chunk * CHUNK_PAGES);
        for (uint32_t index = first; index < end; index++) {
            const uint8_t *from = cache_keys(c, a.layer, kv, pages[index]);
            for (uint32_t at = 16 * threadIdx.x; at < c.head_bytes; at += 16 * THREADS)
                cuda_copy16(copy_of(index) + at, from + at);
        }
        cuda_copies_commit();
    }

    /* Heads of a tile in the order in which warps take them: its queries, then, with the first
     * tile, keys and values of rows whose chunks are the piece's. Returns which head of its row. */
    __device__ inline uint32_t head_of(uint32_t item, uint32_t n_queries, uint32_t first_own,
                                       uint32_t *ret_row) const
    {
        if (item < n_queries) {
            *ret_row = (first_pair + item) / tile.per_kv;
            return pair_head(tile, first_pair + item);
        }
        *ret_row = first_own + (item - n_queries) / 2;
        return c.n_heads + (item - n_queries) % 2 * c.n_kv_heads + kv;
    }

    __device__ inline void write_head(uint32_t item, uint32_t n_queries, uint32_t head, uint32_t at,
                                      const head_memory &m)
    {
        const uint32_t index = at / CUDA_PAGE_TOKENS, slot = at % CUDA_PAGE_TOKENS;
        if (item < n_queries) {
            uint32_t *words = reinterpret_cast<uint32_t *>(shared->rest);
            for (uint32_t i = lane; i < c.dim_k / 2; i += 32)
                words[(((i / 16 * 2 + item / 8) * 8 + item % 8) * 4 + i % 16 / 4) * 4 + i % 4] =
                    query_word(a.turn, m.x, i);
        } else if (head < c.n_heads + c.n_kv_heads) {
            round_key(c, m, lane);
            write_key(c, copy_of(index), slot, m, lane);
            write_key(c, cache_keys(c, a.layer, kv, pages[index]), slot, m, lane);
        } else {
            round_value(c, m, lane);
            write_value(c, copy_of(index) + c.key_bytes, slot, m, lane);
            write_value(c, cache_values(c, a.layer, kv, pages[index]), slot, m, lane);
        }
    }

    /* Before it is known what q, k and v are, angles are all that can be ready. */
    __device__ inline void turn_tile()
    {
        const uint32_t n_queries = min(n_pairs - first_pair, CUDA_PAIRS);
        const uint32_t first_own = max(first_chunk * CUDA_CHUNK, position) - position;
        const uint32_t end_own =
            min(max(end_chunk * CUDA_CHUNK, position) - position, piece.n_rows);
        const uint32_t n_own = first_pair == 0 && end_own > first_own ? end_own - first_own : 0;
        const uint32_t n = n_queries + 2 * n_own;
        const head_memory m = head_memory_of(sums_memory(), threadIdx.x / 32);
#pragma unroll 1
        for (uint32_t first = 0; first < n; first += THREADS / 32) {
            const uint32_t item = first + threadIdx.x / 32;
            uint32_t row = 0;
            const uint32_t head = head_of(min(item, n - 1), n_queries, first_own, &row);
            const angles<DIM> turned = angles_of<DIM>(a.turn, position + row, lane);
            if (first == 0 && first_pair == 0) {
                cuda_wait();
                cuda_let_next_start();
            }
            const head_numbers<DIM> numbers =
                fetch_head<DIM>(c, a.turn, piece.first_row + row, head, lane);
            if (first == 0) {
                cuda_copies_wait<0>();
                __syncthreads();
            }
            if (item >= n)
                break;
            turn_fetched(c, a.turn, head, numbers, turned, m, lane);
            write_head(item, n_queries, head, position + row, m);
            __syncwarp();
        }
        __syncthreads();
    }

    /* Each warp some fragments. Of a tile before this one nobody reads any more. */
    __device__ inline void load_queries()
    {
        for (uint32_t i = threadIdx.x / 32; i < c.dim_k / 32 * 2; i += THREADS / 32) {
            uint32_t pair = first_pair + lane / 4 + i % 2 * 8;
            size_t row = pair_row(tile, pair), head = pair_head(tile, pair);
            const uint4 *at =
                reinterpret_cast<const uint4 *>(a.queries + (row * c.n_heads + head) * c.dim_k);
            shared->rest[i * 32 + lane] =
                pair < n_pairs ? at[i / 2 * 4 + lane % 4] : make_uint4(0, 0, 0, 0);
        }
        __syncthreads();
    }

    /* ---- a chunk ---- */

    /* Rows that are none see what the last one does: their results go nowhere. */
    __device__ inline void start_tile()
    {
#pragma unroll
        for (uint32_t r = 0; r < 2; r++) {
            uint32_t pair = min(first_pair + lane / 4 + 8 * r, n_pairs - 1);
            last[r] = position + pair / tile.per_kv;
            begin[r] = window_begin(a.window, last[r]);
            m[r] = FEWEST;
            l[r] = 0;
        }
#pragma unroll
        for (uint32_t i = 0; i < VU * 8; i++)
            o[i / 8][i / 4 % 2][i % 4] = 0;
#pragma unroll
        for (uint32_t k = 0; k < PARTS; k++)
            parts[k].clear();
    }

    /* Scores of the warp's 16 keys, those that are not seen at -infinity. */
    __device__ inline void score(uint32_t chunk, float d[2][4])
    {
#pragma unroll
        for (uint32_t i = 0; i < 8; i++)
            d[i / 4][i % 4] = 0;
        const uint8_t *at = EXACT ? nullptr : cache_keys(c, a.layer, kv, page(warp));
#pragma unroll
        for (uint32_t j = 0; j < KU; j++) {
            if (!EXACT && j >= c.dim_k / 32)
                break;
            if (!EXACT)
                keys[0].load(c, at, j, lane);
            uint4 low = shared->rest[j * 64 + lane], high = shared->rest[j * 64 + 32 + lane];
            add_scores(d[0], low, high, keys[EXACT ? j : 0].fragment(0));
            add_scores(d[1], low, high, keys[EXACT ? j : 0].fragment(1));
        }
        uint32_t key = chunk * CUDA_CHUNK + warp * CUDA_PAGE_TOKENS + 2 * (lane % 4);
        hide(d[0], key, begin, last);
        hide(d[1], key + 8, begin, last);
    }

    /* The chunk's weights, all of them, in w; its maxima and sums. */
    __device__ inline void weigh(const float d[2][4], uint32_t w[CHUNK_PAGES][4], float m_c[2],
                                 float l_c[2])
    {
        const uint32_t g = lane / 4;
        float(*maxima)[CUDA_PAIRS] = shared->maxima[group];
        uint4(*all)[32] = shared->weights[group];
#pragma unroll
        for (uint32_t r = 0; r < 2; r++) {
            m_c[r] = quad_max(
                fmaxf(fmaxf(d[0][2 * r], d[0][2 * r + 1]), fmaxf(d[1][2 * r], d[1][2 * r + 1])));
            if (lane % 4 == 0)
                maxima[warp][g + 8 * r] = m_c[r];
        }
        meet_group();
#pragma unroll
        for (uint32_t i = 0; i < 2 * ATTEND_WARPS; i++)
            m_c[i % 2] = fmaxf(m_c[i % 2], maxima[i / 2][g + 8 * (i % 2)]);
        float base[2] = {weights_base(m_c[0]), weights_base(m_c[1])};
        all[warp][lane] =
            make_uint4(weights(d[0][0], d[0][1], base[0]), weights(d[0][2], d[0][3], base[1]),
                       weights(d[1][0], d[1][1], base[0]), weights(d[1][2], d[1][3], base[1]));
        meet_group();
        float sums[4] = {0, 0, 0, 0};
#pragma unroll
        for (uint32_t p = 0; p < CHUNK_PAGES; p++) {
            uint4 v = all[p][lane];
            w[p][0] = v.x;
            w[p][1] = v.y;
            w[p][2] = v.z;
            w[p][3] = v.w;
            add_weights(sums, w[p]);
        }
        l_c[0] = sums[0];
        l_c[1] = sums[2];
    }

    /* o_c of the warp's unit i. */
    __device__ inline void multiply(uint32_t i, const uint32_t w[CHUNK_PAGES][4], float d[2][4])
    {
#pragma unroll
        for (uint32_t e = 0; e < 8; e++)
            d[e / 4][e % 4] = 0;
#pragma unroll
        for (uint32_t p = 0; p < CHUNK_PAGES; p++) {
            if (!EXACT)
                values[0][0].load(c, cache_values(c, a.layer, kv, page(p)), first_unit + i, lane);
            add_values(d[0], d[1], w[p], values[EXACT ? i : 0][EXACT ? p : 0].fragments());
        }
    }

    /* Where sums of the chunk and a pair go, and its maximum and sum of weights. */
    __device__ inline float *sums_to(uint32_t chunk, uint32_t pair, float2 **ret_of_chunk)
    {
        if (GROUPS > 1 && piece.partial == CUDA_WHOLE) {
            *ret_of_chunk = &shared->of_chunk[group][pair - first_pair];
            return sums_of(group, pair - first_pair);
        }
        const uint32_t row = pair / tile.per_kv, head = pair_head(tile, pair);
        float *to =
            partial_of(c, a, piece.partial + (chunk - piece.first_chunk) * piece.n_rows + row);
        *ret_of_chunk = reinterpret_cast<float2 *>(to + c.n_heads * c.dim_v) + head;
        return to + head * c.dim_v;
    }

    __device__ inline void store_sums(uint32_t chunk, uint32_t i, const float d[2][4],
                                      const float m_c[2], const float l_c[2])
    {
#pragma unroll
        for (uint32_t r = 0; r < 2; r++) {
            const uint32_t pair = first_pair + lane / 4 + 8 * r;
            float2 *of_chunk;
            if (pair >= n_pairs)
                continue;
            float *to = sums_to(chunk, pair, &of_chunk);
            float2 *sums = reinterpret_cast<float2 *>(to + 16 * (first_unit + i) + 2 * (lane % 4));
            sums[0] = make_float2(d[0][2 * r], d[0][2 * r + 1]);
            sums[4] = make_float2(d[1][2 * r], d[1][2 * r + 1]);
            if (warp == 0 && i == 0 && lane % 4 == 0)
                *of_chunk = make_float2(m_c[r], l_c[r]);
        }
    }

    __device__ inline void join_unit(uint32_t i, const float d[2][4], const float before[2],
                                     const float with[2])
    {
#pragma unroll
        for (uint32_t e = 0; e < 8; e++)
            o[i][e / 4][e % 4] =
                joined(o[i][e / 4][e % 4], before[e % 4 / 2], d[e / 4][e % 4], with[e % 4 / 2]);
    }

    __device__ inline void one_chunk(uint32_t chunk, bool more)
    {
        float d[2][4], m_c[2], l_c[2], before[2], with[2];
        uint32_t w[CHUNK_PAGES][4];
        if (EXACT && more)
            load_pages(chunk + GROUPS);
        if (TURNS)
            renew_keys(chunk);
        score(chunk, d);
        if (EXACT && more)
            load_keys();
        weigh(d, w, m_c, l_c);
        if (TURNS)
            renew_values(chunk);
        if (GROUPS == 1) {
#pragma unroll
            for (uint32_t r = 0; r < 2; r++) {
                join(&m[r], m_c[r], &before[r], &with[r]);
                l[r] = joined(l[r], before[r], l_c[r], with[r]);
            }
        }
#pragma unroll
        for (uint32_t i = 0; i < VU; i++) {
            if (!EXACT && i >= n_units)
                break;
            multiply(i, w, d);
            if (GROUPS > 1 || piece.partial != CUDA_WHOLE)
                store_sums(chunk, i, d, m_c, l_c);
            if (GROUPS == 1)
                join_unit(i, d, before, with);
        }
        if (EXACT && more)
            load_values();
        if (!EXACT && more)
            load_pages(chunk + GROUPS);
    }

    /* ---- chunks joined ---- */

    /* Part k of the thread: of which pair of the tile, and from which dimension on. */
    __device__ inline bool part_of(uint32_t k, uint32_t *ret_pair, uint32_t *ret_first) const
    {
        const uint32_t at = threadIdx.x + k * THREADS, per_pair = c.dim_v / 4;
        *ret_pair = at / per_pair;
        *ret_first = at % per_pair * 4;
        return first_pair + *ret_pair < n_pairs && *ret_pair < CUDA_PAIRS;
    }

    __device__ inline void join_groups(uint32_t n)
    {
#pragma unroll
        for (uint32_t k = 0; k < PARTS; k++) {
            uint32_t pair, first;
            if (!part_of(k, &pair, &first))
                break;
#pragma unroll 1
            for (uint32_t g = 0; g < n; g++)
                parts[k].add(shared->of_chunk[g][pair],
                             *reinterpret_cast<const float4 *>(sums_of(g, pair) + first));
        }
    }

    /* Sums over sums of weights, to where heads are on their way out. */
    __device__ inline void place_parts()
    {
        uint32_t pair, first;
#pragma unroll
        for (uint32_t k = 0; k < PARTS; k++) {
            if (!part_of(k, &pair, &first))
                break;
            const float inverse = __fdiv_rn(1, parts[k].l);
            float *to = sums_of(0, pair) + first;
#pragma unroll
            for (uint32_t i = 0; i < 4; i++)
                to[i] = __fmul_rn(parts[k].o[i], inverse);
        }
    }

    __device__ inline void finish_tile()
    {
        if (GROUPS > 1) {
            place_parts();
        } else {
            const float inverse[2] = {__fdiv_rn(1, l[0]), __fdiv_rn(1, l[1])};
#pragma unroll
            for (uint32_t i = 0; i < VU; i++)
                if (EXACT || i < n_units)
                    place_unit(sums_of(0, 0), heads_stride(c), first_unit + i, lane, o[i], inverse);
        }
        __syncthreads();
        store_heads(c, a, sums_of(0, 0), heads_stride(c), tile, first_pair,
                    min(n_pairs - first_pair, CUDA_PAIRS), threadIdx.x, THREADS,
                    [] { __syncthreads(); });
        __syncthreads();
    }

    /* ---- the whole ---- */

    __device__ inline void measure()
    {
        const cuda_seq seq = s.seqs[piece.seq];
        const uint32_t units = c.dim_v / 16;
        pages = s.pages + seq.first_page;
        position = seq.position + (piece.first_row - seq.first_row);
        last_page = (position + piece.n_rows - 1) / CUDA_PAGE_TOKENS;
        old_rows = seq.position;
        new_page = old_rows / CUDA_PAGE_TOKENS;
        tile = {piece.first_row, kv * (c.n_heads / c.n_kv_heads), c.n_heads / c.n_kv_heads};
        n_pairs = piece.n_rows * tile.per_kv;
        n_units = (units + ATTEND_WARPS - 1) / ATTEND_WARPS;
        first_unit = EXACT ? warp * VU : warp * n_units;
        n_units = first_unit < units ? min(n_units, units - first_unit) : 0;
        first_chunk = max(piece.first_chunk, window_begin(a.window, position) / CUDA_CHUNK);
        end_chunk =
            min(piece.first_chunk + piece.n_chunks, (position + piece.n_rows - 1) / CUDA_CHUNK + 1);
        first_pair = 0;
    }

    __device__ inline void one_tile()
    {
        const uint32_t own = first_chunk + group;
        if (TURNS)
            turn_tile();
        else
            load_queries();
        start_tile();
        if (own < end_chunk && !(early && first_pair == 0))
            load_chunk(own);
        for (uint32_t i = first_chunk; i < end_chunk; i += GROUPS) {
            if (i + group < end_chunk)
                one_chunk(i + group, i + group + GROUPS < end_chunk);
            if (GROUPS == 1 || piece.partial != CUDA_WHOLE)
                continue;
            __syncthreads();
            join_groups(min(GROUPS, end_chunk - i));
            __syncthreads();
        }
    }

    __device__ void run()
    {
        measure();
        const uint32_t own = first_chunk + group;
        early = EXACT && own < end_chunk && (TURNS || (own + 1) * CUDA_CHUNK <= old_rows);
        if (early)
            load_chunk(own);
        if (TURNS && first_chunk < end_chunk) {
            copy_pages();
        } else {
            cuda_wait();
            cuda_let_next_start();
        }
        if (first_chunk >= end_chunk)
            return;
        for (first_pair = 0; first_pair < n_pairs; first_pair += CUDA_PAIRS) {
            one_tile();
            if (piece.partial == CUDA_WHOLE)
                finish_tile();
            else
                __syncthreads();
        }
    }
};

#endif
