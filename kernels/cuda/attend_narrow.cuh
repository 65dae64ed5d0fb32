/* attend_narrow.cuh: attention of one tile, four warps on the same chunk.
 *
 * Warp w multiplies the queries with the 16 keys of page w of the chunk; the maxima meet in shared
 * memory, then the weights do, and then the warp multiplies the weights of all 64 keys with its
 * share of the values' dimensions. So each product is the one that a warp alone would do, and
 * nothing is added up across warps.
 *
 * Bytes: keys and values of the chunk once, of a head of 128 in F16 32 KB, 16 loads of 16 bytes a
 * lane, all of which are under way before the first is used; those of the next chunk are asked for
 * as soon as registers are free. The first chunk's go out before the kernel before this one has
 * ended, unless that one writes them. */
#ifndef INFERD_KERNELS_CUDA_ATTEND_NARROW_CUH
#define INFERD_KERNELS_CUDA_ATTEND_NARROW_CUH

#include "cuda/attend.cuh"

/* Shared memory: maxima and weights; then queries, [key units][2][lane] as fragments, or heads on
 * their way out, [CUDA_PAIRS][heads_stride()] floats. */
struct narrow_shared {
    float maxima[ATTEND_WARPS][CUDA_PAIRS];
    uint4 weights[ATTEND_WARPS][32];
    uint4 rest[1];
};

static inline size_t narrow_shared_bytes(uint32_t dim_k, uint32_t dim_v)
{
    size_t queries = dim_k / 32 * 2 * 32 * sizeof(uint4);
    size_t heads = CUDA_PAIRS * (dim_v + 8) * sizeof(float);
    return sizeof(struct narrow_shared) + (queries > heads ? queries : heads);
}

/* Heads of KU key units and 4 VU value units (EXACT), or of no more than that. */
template <uint32_t KT, uint32_t VT, uint32_t KU, uint32_t VU, bool EXACT> struct narrow {
    const cuda_cache &c;
    const struct cuda_attend &a;
    const cuda_step &s;
    const cuda_piece &piece;
    narrow_shared *shared;
    uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, kv = blockIdx.x;

    /* The tile. */
    pairs tile;
    const uint32_t *pages;
    uint32_t position, last_page; /* of the piece's first row; of its last */
    uint32_t first_pair, n_pairs;
    uint32_t begin[2], last[2]; /* what the lane's rows see */
    uint32_t n_units;           /* value units of this warp at most, the first of them */
    uint32_t first_unit;

    cache_key_unit<KT> keys[KU];
    cache_value_unit<VT> values[VU][CHUNK_PAGES];
    uint32_t chunk_pages; /* page lane % 4 of a chunk */
    float m[2], l[2], o[VU][2][4];

    __device__ inline narrow(const cuda_cache &cache, const struct cuda_attend &attend,
                             const cuda_step &step, const cuda_piece &p, narrow_shared *memory)
        : c(cache), a(attend), s(step), piece(p), shared(memory)
    {
    }

    /* A page of the chunk per lane, again and again: whom they are read from is not known before.
     */
    __device__ inline void load_pages(uint32_t chunk)
    {
        chunk_pages = pages[min(chunk * CHUNK_PAGES + lane % CHUNK_PAGES, last_page)];
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

    /* Each warp some fragments. Of a tile before this one nobody reads any more. */
    __device__ inline void load_queries()
    {
        for (uint32_t i = warp; i < c.dim_k / 32 * 2; i += ATTEND_WARPS) {
            uint32_t pair = first_pair + lane / 4 + i % 2 * 8;
            size_t row = pair_row(tile, pair), head = pair_head(tile, pair);
            const uint4 *at =
                reinterpret_cast<const uint4 *>(a.queries + (row * c.n_heads + head) * c.dim_k);
            shared->rest[i * 32 + lane] =
                pair < n_pairs ? at[i / 2 * 4 + lane % 4] : make_uint4(0, 0, 0, 0);
        }
        __syncthreads();
    }

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
#pragma unroll
        for (uint32_t r = 0; r < 2; r++) {
            m_c[r] = quad_max(
                fmaxf(fmaxf(d[0][2 * r], d[0][2 * r + 1]), fmaxf(d[1][2 * r], d[1][2 * r + 1])));
            if (lane % 4 == 0)
                shared->maxima[warp][g + 8 * r] = m_c[r];
        }
        __syncthreads();
#pragma unroll
        for (uint32_t i = 0; i < 2 * ATTEND_WARPS; i++)
            m_c[i % 2] = fmaxf(m_c[i % 2], shared->maxima[i / 2][g + 8 * (i % 2)]);
        float base[2] = {weights_base(m_c[0]), weights_base(m_c[1])};
        shared->weights[warp][lane] =
            make_uint4(weights(d[0][0], d[0][1], base[0]), weights(d[0][2], d[0][3], base[1]),
                       weights(d[1][0], d[1][1], base[0]), weights(d[1][2], d[1][3], base[1]));
        __syncthreads();
        float sums[4] = {0, 0, 0, 0};
#pragma unroll
        for (uint32_t p = 0; p < CHUNK_PAGES; p++) {
            uint4 v = shared->weights[p][lane];
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

    __device__ inline void store_partial(uint32_t chunk, uint32_t i, const float d[2][4],
                                         const float m_c[2], const float l_c[2])
    {
#pragma unroll
        for (uint32_t r = 0; r < 2; r++) {
            uint32_t pair = first_pair + lane / 4 + 8 * r;
            if (pair >= n_pairs)
                continue;
            uint32_t row = pair / tile.per_kv, head = pair_head(tile, pair);
            float *to =
                partial_of(c, a, piece.partial + (chunk - piece.first_chunk) * piece.n_rows + row);
            float2 *sums = reinterpret_cast<float2 *>(to + head * c.dim_v + 16 * (first_unit + i) +
                                                      2 * (lane % 4));
            sums[0] = make_float2(d[0][2 * r], d[0][2 * r + 1]);
            sums[4] = make_float2(d[1][2 * r], d[1][2 * r + 1]);
            if (warp == 0 && i == 0 && lane % 4 == 0)
                reinterpret_cast<float2 *>(to + c.n_heads * c.dim_v)[head] =
                    make_float2(m_c[r], l_c[r]);
        }
    }

    __device__ inline void one_chunk(uint32_t chunk, bool more)
    {
        float d[2][4], m_c[2], l_c[2], before[2], with[2];
        uint32_t w[CHUNK_PAGES][4];
        if (EXACT && more)
            load_pages(chunk + 1);
        score(chunk, d);
        if (EXACT && more)
            load_keys();
        weigh(d, w, m_c, l_c);
#pragma unroll
        for (uint32_t r = 0; r < 2; r++) {
            join(&m[r], m_c[r], &before[r], &with[r]);
            l[r] = joined(l[r], before[r], l_c[r], with[r]);
        }
#pragma unroll
        for (uint32_t i = 0; i < VU; i++) {
            if (!EXACT && i >= n_units)
                break;
            multiply(i, w, d);
            if (piece.partial != CUDA_WHOLE)
                store_partial(chunk, i, d, m_c, l_c);
#pragma unroll
            for (uint32_t e = 0; e < 8; e++)
                o[i][e / 4][e % 4] =
                    joined(o[i][e / 4][e % 4], before[e % 4 / 2], d[e / 4][e % 4], with[e % 4 / 2]);
        }
        if (EXACT && more)
            load_values();
        if (!EXACT && more)
            load_pages(chunk + 1);
    }

    __device__ inline void finish_tile()
    {
        const uint32_t stride = heads_stride(c), n = min(n_pairs - first_pair, CUDA_PAIRS);
        const float inverse[2] = {__fdiv_rn(1, l[0]), __fdiv_rn(1, l[1])};
        float *heads = reinterpret_cast<float *>(shared->rest);
#pragma unroll
        for (uint32_t i = 0; i < VU; i++)
            if (EXACT || i < n_units)
                place_unit(heads, stride, first_unit + i, lane, o[i], inverse);
        __syncthreads();
        store_heads(c, a, heads, stride, tile, first_pair, n, threadIdx.x, ATTEND_THREADS,
                    [] { __syncthreads(); });
        __syncthreads();
    }

    __device__ void run()
    {
        const cuda_seq seq = s.seqs[piece.seq];
        const uint32_t units = c.dim_v / 16;
        pages = s.pages + seq.first_page;
        position = seq.position + (piece.first_row - seq.first_row);
        last_page = (position + piece.n_rows - 1) / CUDA_PAGE_TOKENS;
        tile = {piece.first_row, kv * (c.n_heads / c.n_kv_heads), c.n_heads / c.n_kv_heads};
        n_pairs = piece.n_rows * tile.per_kv;
        n_units = (units + ATTEND_WARPS - 1) / ATTEND_WARPS;
        first_unit = EXACT ? warp * VU : warp * n_units;
        n_units = first_unit < units ? min(n_units, units - first_unit) : 0;

        uint32_t chunk = max(piece.first_chunk, window_begin(a.window, position) / CUDA_CHUNK);
        uint32_t end =
            min(piece.first_chunk + piece.n_chunks, (position + piece.n_rows - 1) / CUDA_CHUNK + 1);
        bool early = EXACT && chunk < end && (chunk + 1) * CUDA_CHUNK <= seq.position;
        if (early) {
            load_pages(chunk);
            load_keys();
            load_values();
        }
        cuda_wait();
        cuda_let_next_start();
        for (first_pair = 0; first_pair < n_pairs; first_pair += CUDA_PAIRS) {
            start_tile();
            load_queries();
            if (chunk < end && !(early && first_pair == 0)) {
                load_pages(chunk);
                if (EXACT) {
                    load_keys();
                    load_values();
                }
            }
            for (uint32_t i = chunk; i < end; i++)
                one_chunk(i, i + 1 < end);
            if (piece.partial == CUDA_WHOLE)
                finish_tile();
        }
    }
};

#endif
