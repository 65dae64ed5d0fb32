/* attend_stream.cuh: attention of one tile by one warp, to which keys and values stream.
 *
 * For steps of many sequences, a row of each: there are enough tiles for every warp, and what
 * counts is that memory is never waited for. A warp asks for pages of keys and values by bulk
 * copies to slots in shared memory, as many ahead as it has slots, in the order in which it works
 * on them: the keys of a chunk's pages, then their values. Nothing is waited for but these, and no
 * other warp. The first pages are asked for before the kernel before this one has ended, as far as
 * that one does not write them.
 *
 * Bytes: those of the pages that there are, once. In flight, heads of 128 in F16: 28 KB a warp, 8
 * warps a processor; where there are fewer, more of each. Work of a chunk: 128 products, whose
 * chains are as many as can be, for a warp has others beside it on its scheduler only where there
 * are very many tiles: scores of four pages side by side, values of all dimensions. attend.cu has
 * the figures. */
#ifndef INFERD_KERNELS_CUDA_ATTEND_STREAM_CUH
#define INFERD_KERNELS_CUDA_ATTEND_STREAM_CUH

#include "cuda/attend.cuh"

#define STREAM_SLOTS_MIN 7u /* of a warp */
#define STREAM_SLOTS_MAX 32u
#define STREAM_WARPS     4u /* of a block, at most */

/* Shared memory of a warp: its slots, a page's keys or values each; at the end heads on their way
 * out. Its barriers lie behind what all warps have. */
static __host__ __device__ inline uint32_t stream_slot_bytes(const cuda_cache &c)
{
    const size_t bytes = c.key_bytes > c.value_bytes ? c.key_bytes : c.value_bytes;
    return ((uint32_t)bytes + 127) / 128 * 128;
}
static __host__ __device__ inline uint32_t stream_warp_bytes(const cuda_cache &c, uint32_t slots)
{
    const uint32_t heads = CUDA_PAIRS * heads_stride(c) * (uint32_t)sizeof(float);
    return max(slots * stream_slot_bytes(c), heads);
}
static inline uint32_t stream_shared_bytes(const cuda_cache &c, uint32_t warps, uint32_t slots)
{
    return warps * (stream_warp_bytes(c, slots) + slots * (uint32_t)sizeof(cuda_barrier));
}

/* Heads of KU key units and 2 KU value units. */
template <uint32_t KT, uint32_t VT, uint32_t KU> struct stream {
    static constexpr uint32_t VU = 2 * KU;

    cuda_cache c; /* with what the types say already, so that no code is made for the rest */
    const struct cuda_attend &a;
    const cuda_step &s;
    const cuda_piece &piece;
    uint8_t *memory;
    cuda_barrier *full; /* of each slot */
    uint32_t n_slots;
    uint32_t kv, lane = threadIdx.x % 32;

    /* The tile. */
    pairs tile;
    const uint32_t *pages;
    const uint8_t *heads;         /* of page 0 */
    uint32_t position, last_page; /* of the piece's first row; of its last */
    uint32_t new_page;            /* the first that is not all of rows before this step */
    uint32_t first_chunk, end_chunk;
    uint32_t first_pair = 0, n_pairs;
    uint32_t begin[2], last[2]; /* what the lane's rows see */

    /* What is asked for next: of a chunk's `n` pages the keys of item 0 .. n - 1, the values of
     * n .. 2 n - 1. A lane has page lane % 4 of the chunk, and of the one after it. */
    struct {
        uint32_t chunk, item, n, pages, next_pages, slot;
    } ask;
    uint32_t slot = 0, round = 0; /* what is worked on next */

    uint4 low[KU], high[KU]; /* queries, as fragments */
    float m[2], l[2], o[VU][2][4];

    __device__ inline stream(const cuda_cache &cache, const struct cuda_attend &attend,
                             const cuda_step &step, const cuda_piece &p, uint32_t kv_head,
                             uint8_t *warp_memory, cuda_barrier *barriers, uint32_t slots)
        : c(cache), a(attend), s(step), piece(p), memory(warp_memory), full(barriers),
          n_slots(slots), kv(kv_head)
    {
        if (KT != CACHE_ANY)
            c.k_type = KT;
        if (VT != CACHE_ANY)
            c.v_type = VT;
        c.dim_k = c.dim_v = 32 * KU;
    }

    /* ---- pages ---- */

    __device__ inline uint32_t pages_of(uint32_t chunk) const
    {
        return min(last_page + 1 - chunk * CHUNK_PAGES, CHUNK_PAGES);
    }
    __device__ inline uint32_t load_pages(uint32_t chunk) const
    {
        return pages[min(chunk * CHUNK_PAGES + lane % CHUNK_PAGES, last_page)];
    }
    __device__ inline void ask_from(uint32_t chunk)
    {
        ask = {chunk, 0, pages_of(chunk), load_pages(chunk), load_pages(chunk + 1), slot};
    }
    __device__ inline bool ask_more() const
    {
        return ask.chunk < end_chunk;
    }
    /* The page of the chunk. */
    __device__ inline uint32_t ask_page() const
    {
        return ask.item < ask.n ? ask.item : ask.item - ask.n;
    }
    /* Whether the kernel before this one leaves it as it is. */
    __device__ inline bool ask_old() const
    {
        return ask.chunk * CHUNK_PAGES + ask_page() < new_page;
    }
    __device__ inline void ask_next()
    {
        const bool keys = ask.item < ask.n;
        const uint32_t page = __shfl_sync(0xffffffffu, ask.pages, (int)ask_page());
        const uint32_t bytes = (uint32_t)(keys ? c.key_bytes : c.value_bytes);
        cuda_bulk_open(&full[ask.slot], bytes, lane);
        cuda_bulk_copy(memory + ask.slot * stream_slot_bytes(c),
                       heads + page * c.page_bytes + (keys ? 0 : c.key_bytes), bytes,
                       &full[ask.slot], lane);
        cuda_bulk_close(&full[ask.slot], lane);
        ask.slot = ask.slot + 1 == n_slots ? 0 : ask.slot + 1;
        if (++ask.item == 2 * ask.n) {
            ask.item = 0;
            ask.chunk++;
            ask.n = pages_of(ask.chunk);
            ask.pages = ask.next_pages;
            ask.next_pages = load_pages(ask.chunk + 1);
        }
    }

    /* What was asked for i-th after what was done. */
    __device__ inline const uint8_t *arrived(uint32_t i)
    {
        const uint32_t again = slot + i >= n_slots, at = slot + i - again * n_slots;
        cuda_barrier_wait(&full[at], (round + again) & 1);
        return memory + at * stream_slot_bytes(c);
    }
    /* All lanes are done with the next n: their slots are free. */
    __device__ inline void done(uint32_t n)
    {
        __syncwarp();
        slot += n;
        if (slot >= n_slots) {
            slot -= n_slots;
            round++;
        }
        for (uint32_t i = 0; i < n && ask_more(); i++)
            ask_next();
    }

    /* ---- a chunk ---- */

    /* Scores of the chunk's keys, those that are not seen at -infinity; the keys of pages side by
     * side, so that no product waits for the one before. Pages that are not there are the first
     * one again: nobody sees them. */
    __device__ inline void score(uint32_t chunk, uint32_t n, float d[CHUNK_PAGES][2][4])
    {
        const uint8_t *at[CHUNK_PAGES];
#pragma unroll
        for (uint32_t p = 0; p < CHUNK_PAGES; p++)
            at[p] = p < n ? arrived(p) : at[0];
#pragma unroll
        for (uint32_t i = 0; i < CHUNK_PAGES * 8; i++)
            d[i / 8][i / 4 % 2][i % 4] = 0;
#pragma unroll
        for (uint32_t j = 0; j < KU; j++) {
#pragma unroll
            for (uint32_t p = 0; p < CHUNK_PAGES; p++) {
                cache_key_unit<KT> keys;
                keys.template load<cache_copy>(c, at[p], j, lane);
                add_scores(d[p][0], low[j], high[j], keys.fragment(0));
                add_scores(d[p][1], low[j], high[j], keys.fragment(1));
            }
        }
        done(n);
#pragma unroll
        for (uint32_t p = 0; p < CHUNK_PAGES; p++) {
            const uint32_t key = chunk * CUDA_CHUNK + p * CUDA_PAGE_TOKENS + 2 * (lane % 4);
            hide(d[p][0], key, begin, last);
            hide(d[p][1], key + 8, begin, last);
        }
    }

    /* The chunk's weights of its n pages; its maxima and sums. */
    __device__ inline void weigh(uint32_t n, const float d[CHUNK_PAGES][2][4],
                                 uint32_t w[CHUNK_PAGES][4], float m_c[2], float l_c[2])
    {
        float base[2], sums[4] = {0, 0, 0, 0};
#pragma unroll
        for (uint32_t r = 0; r < 2; r++) {
            float most = FEWEST;
#pragma unroll
            for (uint32_t i = 0; i < 4 * CHUNK_PAGES; i++)
                most = fmaxf(most, d[i / 4][i / 2 % 2][2 * r + i % 2]);
            m_c[r] = quad_max(most);
            base[r] = weights_base(m_c[r]);
        }
#pragma unroll
        for (uint32_t p = 0; p < CHUNK_PAGES; p++) {
#pragma unroll
            for (uint32_t i = 0; i < 4; i++)
                w[p][i] =
                    weights(d[p][i / 2][2 * (i % 2)], d[p][i / 2][2 * (i % 2) + 1], base[i % 2]);
            if (p < n)
                add_weights(sums, w[p]);
        }
        l_c[0] = sums[0];
        l_c[1] = sums[2];
    }

    /* The chunk's sums of its n pages. */
    __device__ inline void multiply(uint32_t n, const uint32_t w[CHUNK_PAGES][4],
                                    float sums[VU][2][4])
    {
#pragma unroll
        for (uint32_t i = 0; i < VU * 8; i++)
            sums[i / 8][i / 4 % 2][i % 4] = 0;
#pragma unroll
        for (uint32_t p = 0; p < CHUNK_PAGES; p++) {
            if (p >= n)
                break;
            const uint8_t *at = arrived(0);
#pragma unroll
            for (uint32_t i = 0; i < VU; i++) {
                cache_value_unit<VT> values;
                values.template load<cache_copy>(c, at, i, lane);
                add_values(sums[i][0], sums[i][1], w[p], values.fragments());
            }
            done(1);
        }
    }

    __device__ inline void join_chunk(const float m_c[2], const float l_c[2],
                                      const float sums[VU][2][4])
    {
        float before[2], with[2];
#pragma unroll
        for (uint32_t r = 0; r < 2; r++) {
            join(&m[r], m_c[r], &before[r], &with[r]);
            l[r] = joined(l[r], before[r], l_c[r], with[r]);
        }
#pragma unroll
        for (uint32_t i = 0; i < VU * 8; i++) {
            float *to = &o[i / 8][i / 4 % 2][i % 4];
            *to = joined(*to, before[i % 4 / 2], sums[i / 8][i / 4 % 2][i % 4], with[i % 4 / 2]);
        }
    }

    /* For the merge. */
    __device__ inline void store_chunk(uint32_t chunk, const float m_c[2], const float l_c[2],
                                       const float sums[VU][2][4])
    {
#pragma unroll
        for (uint32_t r = 0; r < 2; r++) {
            const uint32_t pair = first_pair + lane / 4 + 8 * r;
            if (pair >= n_pairs)
                continue;
            const uint32_t row = pair / tile.per_kv, head = pair_head(tile, pair);
            float *to =
                partial_of(c, a, piece.partial + (chunk - piece.first_chunk) * piece.n_rows + row);
            if (lane % 4 == 0)
                reinterpret_cast<float2 *>(to + c.n_heads * c.dim_v)[head] =
                    make_float2(m_c[r], l_c[r]);
            float2 *at = reinterpret_cast<float2 *>(to + head * c.dim_v + 2 * (lane % 4));
#pragma unroll
            for (uint32_t i = 0; i < VU; i++) {
                at[8 * i] = make_float2(sums[i][0][2 * r], sums[i][0][2 * r + 1]);
                at[8 * i + 4] = make_float2(sums[i][1][2 * r], sums[i][1][2 * r + 1]);
            }
        }
    }

    __device__ inline void one_chunk(uint32_t chunk)
    {
        const uint32_t n = pages_of(chunk);
        float d[CHUNK_PAGES][2][4], m_c[2], l_c[2], sums[VU][2][4];
        uint32_t w[CHUNK_PAGES][4];
        score(chunk, n, d);
        weigh(n, d, w, m_c, l_c);
        multiply(n, w, sums);
        if (piece.partial == CUDA_WHOLE)
            join_chunk(m_c, l_c, sums);
        else
            store_chunk(chunk, m_c, l_c, sums);
    }

    /* ---- a tile ---- */

    __device__ inline void measure()
    {
        const cuda_seq seq = s.seqs[piece.seq];
        pages = s.pages + seq.first_page;
        heads = cache_keys(c, a.layer, kv, 0);
        position = seq.position + (piece.first_row - seq.first_row);
        last_page = (position + piece.n_rows - 1) / CUDA_PAGE_TOKENS;
        new_page = seq.position / CUDA_PAGE_TOKENS;
        tile = {piece.first_row, kv * (c.n_heads / c.n_kv_heads), c.n_heads / c.n_kv_heads};
        n_pairs = piece.n_rows * tile.per_kv;
        first_chunk = max(piece.first_chunk, window_begin(a.window, position) / CUDA_CHUNK);
        end_chunk =
            min(piece.first_chunk + piece.n_chunks, (position + piece.n_rows - 1) / CUDA_CHUNK + 1);
    }

    /* Rows that are none see what the last one does: their results go nowhere. */
    __device__ inline void start_tile()
    {
#pragma unroll
        for (uint32_t r = 0; r < 2; r++) {
            const uint32_t pair = first_pair + lane / 4 + 8 * r, is = min(pair, n_pairs - 1);
            const size_t row = pair_row(tile, is), head = pair_head(tile, is);
            const uint4 *at =
                reinterpret_cast<const uint4 *>(a.queries + (row * c.n_heads + head) * c.dim_k);
#pragma unroll
            for (uint32_t j = 0; j < KU; j++)
                (r ? high : low)[j] = at[4 * j + lane % 4];
            last[r] = position + is / tile.per_kv;
            begin[r] = window_begin(a.window, last[r]);
            m[r] = FEWEST;
            l[r] = 0;
        }
#pragma unroll
        for (uint32_t i = 0; i < VU * 8; i++)
            o[i / 8][i / 4 % 2][i % 4] = 0;
    }

    /* By way of shared memory, where heads are rotated back, or end in the middle of a unit. */
    __device__ inline void place_tile(const float inverse[2])
    {
        float *x = reinterpret_cast<float *>(memory);
#pragma unroll
        for (uint32_t i = 0; i < VU; i++)
            place_unit(x, heads_stride(c), i, lane, o[i], inverse);
        __syncwarp();
        store_heads(c, a, x, heads_stride(c), tile, first_pair,
                    min(n_pairs - first_pair, CUDA_PAIRS), lane, 32, [] { __syncwarp(); });
    }

    template <bool FEW> __device__ inline void store_tile(const float inverse[2]) const
    {
        typedef cuda_packed_row<FEW> packed_row;
#pragma unroll
        for (uint32_t r = 0; r < 2; r++) {
            const uint32_t pair = first_pair + lane / 4 + 8 * r;
            if (pair >= n_pairs)
                continue;
            const packed_row to(a.to, pair_row(tile, pair));
            uint32_t *at = to.at(pair_head(tile, pair) * 32 * KU + 2 * (lane % 4));
#pragma unroll
            for (uint32_t i = 0; i < VU * 2; i++)
                at[i / 4 * to.blocks + i / 2 % 2 * packed_row::halves +
                   i % 2 * 2 * packed_row::fours] =
                    cuda_half2_cut(__fmul_rn(o[i / 2][i % 2][2 * r], inverse[r]),
                                   __fmul_rn(o[i / 2][i % 2][2 * r + 1], inverse[r]));
        }
    }

    __device__ inline void finish_tile()
    {
        const float inverse[2] = {__fdiv_rn(1, l[0]), __fdiv_rn(1, l[1])};
        if (c.v_type == INFER_TYPE_Q4_0 || c.head_dim_v != c.dim_v)
            place_tile(inverse);
        else if (a.to.tiles == 0)
            store_tile<true>(inverse);
        else
            store_tile<false>(inverse);
    }

    /* ---- the whole ---- */

    __device__ void run()
    {
        uint32_t asked = 0;
        measure();
        if (first_chunk < end_chunk) {
            ask_from(first_chunk);
            for (; asked < n_slots && ask_more() && ask_old(); asked++)
                ask_next();
        }
        cuda_wait();
        cuda_let_next_start();
        if (first_chunk >= end_chunk)
            return;
        for (; first_pair < n_pairs; first_pair += CUDA_PAIRS) {
            start_tile();
            for (; asked < n_slots && ask_more(); asked++)
                ask_next();
            for (uint32_t chunk = first_chunk; chunk < end_chunk; chunk++)
                one_chunk(chunk);
            if (piece.partial == CUDA_WHOLE)
                finish_tile();
            if (first_pair + CUDA_PAIRS >= n_pairs)
                break;
            __syncwarp();
            cuda_bulk_after_stores();
            ask_from(first_chunk);
            asked = 0;
        }
    }
};

#endif
