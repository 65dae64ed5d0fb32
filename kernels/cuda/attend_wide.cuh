/* attend_wide.cuh: attention of up to 8 tiles of a prompt's rows, which share every key.
 *
 * Keys and values of a chunk are brought to shared memory once per block, as fragments in F16
 * (codes are decoded on the way), the next chunk's while this one is worked on. Each warp has
 * TILES tiles and walks through all chunks with them: a fragment that it reads serves all of them.
 *
 * Work: 4 * 64 * dim operations per pair and chunk, 128 products (of 16 x 8 x 16) per tile for
 * heads of 128: 820 cycles of a quarter of a processor at the rate that this instruction reaches,
 * 0.62 of the tensor cores' peak. Beside them a warp issues, per tile and chunk, 32 exponentials a
 * lane, which take 256 cycles of their unit, and 128 float32 operations to join the chunk's sums to
 * those before: o_c is made 16 dimensions at a time, so that it needs few registers. Shared memory
 * is read for 288 / TILES cycles of the whole processor per tile, so with one tile per warp it is
 * the bound, at 0.7 of the products' rate; with two the registers are (255, of which some 15 are
 * kept in local memory over a chunk's 1,850 instructions). One is what steps of 512 rows take on
 * models with 8 key heads, as two would leave half of the warps without work.
 */
#ifndef INFERD_KERNELS_CUDA_ATTEND_WIDE_CUH
#define INFERD_KERNELS_CUDA_ATTEND_WIDE_CUH

#include "cuda/attend.cuh"

#define WIDE_TILES 8u /* at most; pieces.c */

/* Heads of KU key units and 2 KU value units. In units of 16 bytes: */
template <uint32_t KU> struct wide_shared {
    static constexpr uint32_t head = 128 * KU;            /* keys and values of one page */
    static constexpr uint32_t stage = CHUNK_PAGES * head; /* of a chunk */
    static constexpr uint32_t queries = WIDE_TILES * KU * 2 * 32;
    static constexpr size_t bytes = (queries + 2 * stage) * sizeof(uint4);
};

template <uint32_t KT, uint32_t VT, uint32_t KU, uint32_t TILES> struct wide {
    static constexpr uint32_t VU = 2 * KU;
    typedef wide_shared<KU> layout;

    const cuda_cache &c;
    const struct cuda_attend &a;
    const cuda_step &s;
    const cuda_piece &piece;
    uint4 *shared; /* queries, then two stages */
    uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, kv = blockIdx.x;

    pairs tile;
    const uint32_t *pages;
    uint32_t position, n_pairs, first_pair; /* of the warp */
    uint32_t all_to, any_to; /* where what all rows of the warp see ends, and what one does */
    float m[TILES][2], l[TILES][2], o[TILES][VU][2][4];

    __device__ inline wide(const cuda_cache &cache, const struct cuda_attend &attend,
                           const cuda_step &step, const cuda_piece &p, uint4 *memory)
        : c(cache), a(attend), s(step), piece(p), shared(memory)
    {
    }

    __device__ inline uint4 *stage_of(uint32_t chunk)
    {
        return shared + layout::queries + chunk % 2 * layout::stage;
    }

    __device__ inline uint4 *query_of(uint32_t t, uint32_t j, uint32_t r)
    {
        return shared + (((warp * TILES + t) * KU + j) * 2 + r) * 32;
    }

    /* Starts to bring a chunk to its stage. */
    __device__ inline void bring(uint32_t chunk, uint32_t last_page)
    {
        uint4 *to = stage_of(chunk);
#pragma unroll
        for (uint32_t p = 0; p < CHUNK_PAGES; p++) {
            uint32_t page = pages[min(chunk * CHUNK_PAGES + p, last_page)];
            const uint8_t *keys = cache_keys(c, a.layer, kv, page);
            if (KT == INFER_TYPE_F16 && VT == INFER_TYPE_F16) {
#pragma unroll
                for (uint32_t i = 0; i < layout::head / ATTEND_THREADS; i++) {
                    uint32_t at = i * ATTEND_THREADS + threadIdx.x;
                    cuda_copy16(to + p * layout::head + at, keys + at * sizeof(uint4));
                }
            } else {
                decode(to + p * layout::head, keys, cache_values(c, a.layer, kv, page));
            }
        }
        cuda_copies_commit();
    }

    /* Each warp the units of a quarter. */
    __device__ inline void decode(uint4 *to, const uint8_t *key_codes, const uint8_t *value_codes)
    {
#pragma unroll
        for (uint32_t j = warp; j < KU; j += ATTEND_WARPS) {
            cache_key_unit<KT> unit;
            unit.load(c, key_codes, j, lane);
            to[j * 64 + lane] = unit.fragment(0);
            to[j * 64 + 32 + lane] = unit.fragment(1);
        }
#pragma unroll
        for (uint32_t i = warp; i < VU; i += ATTEND_WARPS) {
            cache_value_unit<VT> unit;
            unit.load(c, value_codes, i, lane);
            to[KU * 64 + i * 32 + lane] = unit.fragments();
        }
    }

    __device__ inline void load_queries()
    {
#pragma unroll
        for (uint32_t t = 0; t < TILES; t++) {
#pragma unroll
            for (uint32_t r = 0; r < 2; r++) {
                uint32_t pair = first_pair + CUDA_PAIRS * t + lane / 4 + 8 * r;
                size_t row = pair_row(tile, pair), head = pair_head(tile, pair);
                const uint4 *at =
                    reinterpret_cast<const uint4 *>(a.queries + (row * c.n_heads + head) * c.dim_k);
#pragma unroll
                for (uint32_t j = 0; j < KU; j++)
                    query_of(t, j, r)[lane] =
                        pair < n_pairs ? at[4 * j + lane % 4] : make_uint4(0, 0, 0, 0);
            }
        }
        __syncwarp();
    }

    __device__ inline void start()
    {
#pragma unroll
        for (uint32_t t = 0; t < TILES; t++) {
#pragma unroll
            for (uint32_t r = 0; r < 2; r++) {
                m[t][r] = FEWEST;
                l[t][r] = 0;
            }
#pragma unroll
            for (uint32_t i = 0; i < VU * 8; i++)
                o[t][i / 8][i / 4 % 2][i % 4] = 0;
        }
        all_to = any_to = 0;
        if (first_pair < n_pairs) {
            uint32_t end = min(first_pair + CUDA_PAIRS * TILES, n_pairs);
            all_to = position + first_pair / tile.per_kv + 1;
            any_to = position + (end - 1) / tile.per_kv + 1;
        }
    }

    /* Whether a row sees something of the chunk; whether all rows see all of it. */
    __device__ inline bool any_see(uint32_t chunk) const
    {
        return chunk * CUDA_CHUNK < any_to &&
               (chunk + 1) * CUDA_CHUNK > window_begin(a.window, all_to - 1);
    }
    __device__ inline bool all_see(uint32_t chunk) const
    {
        return (chunk + 1) * CUDA_CHUNK <= all_to &&
               chunk * CUDA_CHUNK >= window_begin(a.window, any_to - 1);
    }

    __device__ inline void score(uint32_t chunk, float d[TILES][2 * CHUNK_PAGES][4])
    {
        const uint4 *stage = stage_of(chunk);
#pragma unroll
        for (uint32_t i = 0; i < TILES * 2 * CHUNK_PAGES * 4; i++)
            d[i / (8 * CHUNK_PAGES)][i / 4 % (2 * CHUNK_PAGES)][i % 4] = 0;
#pragma unroll
        for (uint32_t j = 0; j < KU; j++) {
            uint4 low[TILES], high[TILES];
#pragma unroll
            for (uint32_t t = 0; t < TILES; t++) {
                low[t] = query_of(t, j, 0)[lane];
                high[t] = query_of(t, j, 1)[lane];
            }
#pragma unroll
            for (uint32_t n = 0; n < 2 * CHUNK_PAGES; n++) {
                uint4 keys = stage[n / 2 * layout::head + (2 * j + n % 2) * 32 + lane];
#pragma unroll
                for (uint32_t t = 0; t < TILES; t++)
                    add_scores(d[t][n], low[t], high[t], keys);
            }
        }
        if (!all_see(chunk))
            hide_unseen(chunk, d);
    }

    /* Rows that are none see what the last one does: their results go nowhere. */
    __device__ inline void hide_unseen(uint32_t chunk, float d[TILES][2 * CHUNK_PAGES][4])
    {
#pragma unroll
        for (uint32_t t = 0; t < TILES; t++) {
            uint32_t begin[2], last[2];
#pragma unroll
            for (uint32_t r = 0; r < 2; r++) {
                uint32_t pair = min(first_pair + CUDA_PAIRS * t + lane / 4 + 8 * r, n_pairs - 1);
                last[r] = position + pair / tile.per_kv;
                begin[r] = window_begin(a.window, last[r]);
            }
#pragma unroll
            for (uint32_t n = 0; n < 2 * CHUNK_PAGES; n++)
                hide(d[t][n], chunk * CUDA_CHUNK + 8 * n + 2 * (lane % 4), begin, last);
        }
    }

    /* A tile's weights; what they do to o and l. */
    __device__ inline void weigh(uint32_t t, const float d[2 * CHUNK_PAGES][4],
                                 uint32_t w[CHUNK_PAGES][4], float before[2], float with[2])
    {
        float m_c[2], sums[4] = {0, 0, 0, 0};
#pragma unroll
        for (uint32_t r = 0; r < 2; r++) {
            m_c[r] = FEWEST;
#pragma unroll
            for (uint32_t n = 0; n < 2 * CHUNK_PAGES; n++)
                m_c[r] = fmaxf(m_c[r], fmaxf(d[n][2 * r], d[n][2 * r + 1]));
            m_c[r] = quad_max(m_c[r]);
            float base = weights_base(m_c[r]);
#pragma unroll
            for (uint32_t n = 0; n < 2 * CHUNK_PAGES; n++)
                w[n / 2][n % 2 * 2 + r] = weights(d[n][2 * r], d[n][2 * r + 1], base);
        }
#pragma unroll
        for (uint32_t p = 0; p < CHUNK_PAGES; p++)
            add_weights(sums, w[p]);
#pragma unroll
        for (uint32_t r = 0; r < 2; r++) {
            join(&m[t][r], m_c[r], &before[r], &with[r]);
            l[t][r] = joined(l[t][r], before[r], sums[2 * r], with[r]);
        }
    }

    __device__ inline void one_chunk(uint32_t chunk)
    {
        uint32_t w[TILES][CHUNK_PAGES][4];
        float before[TILES][2], with[TILES][2];
        {
            float d[TILES][2 * CHUNK_PAGES][4];
            score(chunk, d);
#pragma unroll
            for (uint32_t t = 0; t < TILES; t++)
                weigh(t, d[t], w[t], before[t], with[t]);
        }
        const uint4 *stage = stage_of(chunk) + 64 * KU + lane;
#pragma unroll
        for (uint32_t i = 0; i < VU; i++) {
            float d[TILES][2][4];
#pragma unroll
            for (uint32_t e = 0; e < TILES * 8; e++)
                d[e / 8][e / 4 % 2][e % 4] = 0;
#pragma unroll
            for (uint32_t p = 0; p < CHUNK_PAGES; p++) {
                uint4 unit = stage[p * layout::head + i * 32];
#pragma unroll
                for (uint32_t t = 0; t < TILES; t++)
                    add_values(d[t][0], d[t][1], w[t][p], unit);
            }
#pragma unroll
            for (uint32_t e = 0; e < TILES * 8; e++) {
                float *sum = &o[e / 8][i][e / 4 % 2][e % 4];
                *sum = joined(*sum, before[e / 8][e % 4 / 2], d[e / 8][e / 4 % 2][e % 4],
                              with[e / 8][e % 4 / 2]);
            }
        }
    }

    /* Through the stages, which nobody reads any more. */
    __device__ inline void finish()
    {
        const uint32_t stride = heads_stride(c);
        float *heads =
            reinterpret_cast<float *>(shared + layout::queries) + warp * CUDA_PAIRS * stride;
#pragma unroll
        for (uint32_t t = 0; t < TILES; t++) {
            uint32_t first = first_pair + CUDA_PAIRS * t;
            if (first >= n_pairs)
                return;
            const float inverse[2] = {__fdiv_rn(1, l[t][0]), __fdiv_rn(1, l[t][1])};
#pragma unroll
            for (uint32_t i = 0; i < VU; i++)
                place_unit(heads, stride, i, lane, o[t][i], inverse);
            __syncwarp();
            store_heads(c, a, heads, stride, tile, first, min(n_pairs - first, CUDA_PAIRS), lane,
                        32, [] { __syncwarp(); });
            __syncwarp();
        }
    }

    __device__ void run()
    {
        const cuda_seq seq = s.seqs[piece.seq];
        pages = s.pages + seq.first_page;
        position = seq.position + (piece.first_row - seq.first_row);
        tile = {piece.first_row, kv * (c.n_heads / c.n_kv_heads), c.n_heads / c.n_kv_heads};
        n_pairs = piece.n_rows * tile.per_kv;
        first_pair = warp * TILES * CUDA_PAIRS;
        uint32_t last_position = position + piece.n_rows - 1;
        uint32_t last_page = last_position / CUDA_PAGE_TOKENS;
        uint32_t chunk = max(piece.first_chunk, window_begin(a.window, position) / CUDA_CHUNK);
        uint32_t end = last_position / CUDA_CHUNK + 1;
        cuda_wait();
        cuda_let_next_start();
        bring(chunk, last_page);
        start();
        load_queries();
        for (; chunk < end; chunk++) {
            if (chunk + 1 < end) {
                bring(chunk + 1, last_page);
                cuda_copies_wait<1>();
            } else {
                cuda_copies_wait<0>();
            }
            __syncthreads();
            if (any_see(chunk))
                one_chunk(chunk);
            __syncthreads();
        }
        finish();
    }
};

#endif
