/* pieces.c: a step's attention cut into pieces.
 *
 * A piece is a block's work per key head. Two kinds:
 *
 *   narrow   One tile of rows. The keys of a single sequence at depth 2,048 are 32 chunks, with 8
 *            key heads 256 that go round 132 processors. So the chunks of all tiles are shared out
 *            over about as many blocks as run at once, and where a tile's chunks became several
 *            pieces', a merge brings them together. With many sequences there are enough tiles, and
 *            nothing is cut. With so few that a block has a processor for itself (and a tile all
 *            rows of its sequence), blocks are twice as large and turn the rows too. With more
 *            than run at once, a piece is a warp's.
 *   wide     Up to 8 tiles, of a prompt's rows, that read each key once for all. Bound by the
 *            tensor cores. Half as large where that gives no more blocks than processors.
 *
 * Cuts may depend on the batch: chunks are at the same places for every cut, and are merged in the
 * same order. Pure functions. */
#include "cuda/cuda.h"

#define WIDE_TILES     8u
#define WIDE_TILES_MIN 4u
/* A tile that a block is done with in so many rounds is not cut: a merge takes about as long. */
#define UNCUT_ROUNDS 3u
/* Blocks that a processor runs at once, of narrow pieces. */
#define NARROW_BLOCKS 3u
/* Row chunks that partial results are kept of, at most: 68 MB for 32 heads of 128. */
#define PARTIALS_MAX 4096u

static uint32_t per_kv(const struct cuda_cache *cache)
{
    return cache->n_heads / cache->n_kv_heads;
}

static uint32_t divide_up(uint32_t n, uint32_t by)
{
    return (n + by - 1) / by;
}

uint32_t cuda_wide_rows(const struct cuda_cache *cache)
{
    const bool some = cuda_heads_known(cache) && !cache->narrow;
    return some ? WIDE_TILES * CUDA_PAIRS / per_kv(cache) : 0;
}

/* Pieces per key head that give every processor two blocks, or, where they turn, one. */
static uint32_t pieces_wanted(const struct cuda_cache *cache, bool turns, uint32_t n_processors)
{
    return turns ? n_processors / cache->n_kv_heads
                 : divide_up(2 * n_processors, cache->n_kv_heads);
}

static uint32_t partials_most(const struct cuda_cache *cache)
{
    uint64_t chunks = cache->n_pages / (CUDA_CHUNK / CUDA_PAGE_TOKENS) + 1u;
    chunks *= cuda_piece_rows(cache);
    return chunks < PARTIALS_MAX ? (uint32_t)chunks : PARTIALS_MAX;
}

void cuda_cut_most(const struct cuda_cache *cache, uint32_t max_rows, uint32_t max_seqs,
                   uint32_t n_processors, uint32_t *ret_pieces, uint32_t *ret_merges,
                   uint32_t *ret_partials)
{
    uint32_t tiles = max_rows / cuda_piece_rows(cache) + max_seqs;
    uint32_t wanted = pieces_wanted(cache, false, n_processors);
    tiles = tiles < max_rows ? tiles : max_rows;
    *ret_pieces = tiles + wanted;
    *ret_merges = tiles < wanted ? tiles : wanted;
    *ret_partials = partials_most(cache);
}

/* A step that is being cut. */
struct cutting {
    const struct cuda_cache *cache;
    uint32_t window;
    uint32_t wide_rows;  /* of a wide piece; 0: none are made */
    uint32_t most;       /* chunks of a narrow piece */
    bool turns;          /* of struct cuda_cut */
    uint32_t n_partials; /* that are given away */
    struct cuda_piece *pieces;
    struct cuda_merge *merges;
    uint32_t n_pieces, n_merges;
};

static bool is_wide(const struct cutting *c, const struct cuda_seq *seq)
{
    return c->wide_rows && seq->n_rows * per_kv(c->cache) >= WIDE_TILES_MIN * CUDA_PAIRS;
}

/* n_rows rows from the sequence's row `row` on, with all chunks that one of them sees. */
static struct cuda_piece piece_of(const struct cutting *c, const struct cuda_seq *seq, uint32_t s,
                                  uint32_t row, uint32_t n_rows)
{
    uint32_t first = seq->position + row, last = first + n_rows - 1;
    uint32_t oldest = c->window && first >= c->window ? first - c->window + 1 : 0;
    return (struct cuda_piece){
        .seq = s,
        .first_row = seq->first_row + row,
        .n_rows = n_rows,
        .first_chunk = oldest / CUDA_CHUNK,
        .n_chunks = last / CUDA_CHUNK - oldest / CUDA_CHUNK + 1,
        .partial = CUDA_WHOLE,
    };
}

/* A tile: whole, or its chunks shared out evenly. */
static void add_tile(struct cutting *c, struct cuda_piece tile)
{
    uint32_t at_once = c->turns ? CUDA_CUT_GROUPS : 1;
    uint32_t n = tile.n_chunks > UNCUT_ROUNDS * at_once ? divide_up(tile.n_chunks, c->most) : 1;
    if (n == 1 || tile.n_chunks > (partials_most(c->cache) - c->n_partials) / tile.n_rows) {
        c->pieces[c->n_pieces++] = tile;
        return;
    }
    tile.partial = c->n_partials;
    c->n_partials += tile.n_chunks * tile.n_rows;
    c->merges[c->n_merges++] = (struct cuda_merge){.first_row = tile.first_row,
                                                   .n_rows = tile.n_rows,
                                                   .first_chunk = tile.first_chunk,
                                                   .n_chunks = tile.n_chunks,
                                                   .partial = tile.partial};
    for (uint32_t i = 0; i < n; i++) {
        struct cuda_piece piece = tile;
        piece.n_chunks = tile.n_chunks / n + (i < tile.n_chunks % n);
        c->pieces[c->n_pieces++] = piece;
        tile.first_chunk += piece.n_chunks;
        tile.partial += piece.n_chunks * tile.n_rows;
    }
}

/* The last rows have most keys, and go first. */
static void add_wide(struct cutting *c, const struct cuda_seq *seq, uint32_t s)
{
    for (uint32_t row = (seq->n_rows - 1) / c->wide_rows * c->wide_rows;; row -= c->wide_rows) {
        uint32_t rest = seq->n_rows - row;
        c->pieces[c->n_pieces++] =
            piece_of(c, seq, s, row, rest < c->wide_rows ? rest : c->wide_rows);
        if (row == 0)
            return;
    }
}

static void add_narrow(struct cutting *c, const struct cuda_seq *seq, uint32_t s)
{
    const uint32_t rows = cuda_piece_rows(c->cache);
    for (uint32_t row = 0; row < seq->n_rows; row += rows) {
        uint32_t rest = seq->n_rows - row;
        add_tile(c, piece_of(c, seq, s, row, rest < rows ? rest : rows));
    }
}

/* How large wide pieces are, and how many chunks a narrow one has. */
static void measure(struct cutting *c, const struct cuda_seq *seqs, uint32_t n_seqs,
                    uint32_t n_processors)
{
    const uint32_t rows = cuda_piece_rows(c->cache);
    const uint32_t kv = c->cache->n_kv_heads;
    uint32_t n_rows = 0, n_wide = 0, n_tiles = 0;
    uint64_t chunks = 0;
    bool whole = true; /* each sequence is one narrow tile */
    for (uint32_t s = 0; s < n_seqs; s++)
        n_rows += seqs[s].n_rows;
    c->wide_rows = n_rows > CUDA_NARROW_ROWS ? cuda_wide_rows(c->cache) : 0;
    for (uint32_t s = 0; s < n_seqs; s++) {
        const struct cuda_seq *seq = &seqs[s];
        if (is_wide(c, seq)) {
            n_wide += divide_up(seq->n_rows, c->wide_rows);
            whole = false;
            continue;
        }
        whole = whole && seq->n_rows <= rows;
        for (uint32_t row = 0; row < seq->n_rows; row += rows) {
            uint32_t rest = seq->n_rows - row;
            chunks += piece_of(c, seq, s, row, rest < rows ? rest : rows).n_chunks;
            n_tiles++;
        }
    }
    if (c->wide_rows > 1 && n_wide * c->cache->n_kv_heads <= n_processors)
        c->wide_rows /= 2;
    c->turns = whole && cuda_wide_rows(c->cache) && n_tiles * kv <= n_processors;
    uint32_t wanted = pieces_wanted(c->cache, c->turns, n_processors);
    if (c->turns && n_tiles)
        wanted -= n_tiles - 1; /* what is left over of each tile counts too */
    c->most = chunks > wanted ? (uint32_t)((chunks + wanted - 1) / wanted) : 1;
}

static bool streams(const struct cutting *c, uint32_t n_processors)
{
    return cuda_heads_known(c->cache) && !c->turns && !c->wide_rows &&
           c->n_pieces * c->cache->n_kv_heads > NARROW_BLOCKS * n_processors;
}

void cuda_cut(const struct cuda_cache *cache, const struct cuda_seq *seqs, uint32_t n_seqs,
              uint32_t window, uint32_t n_processors, struct cuda_piece *pieces,
              struct cuda_merge *merges, struct cuda_cut *ret)
{
    struct cutting c = {.cache = cache, .window = window, .pieces = pieces, .merges = merges};
    measure(&c, seqs, n_seqs, n_processors);
    for (uint32_t s = 0; s < n_seqs; s++)
        if (seqs[s].n_rows && is_wide(&c, &seqs[s]))
            add_wide(&c, &seqs[s], s);
    for (uint32_t s = 0; s < n_seqs; s++)
        if (!is_wide(&c, &seqs[s]))
            add_narrow(&c, &seqs[s], s);
    *ret = (struct cuda_cut){.n_pieces = c.n_pieces,
                             .n_merges = c.n_merges,
                             .turns = c.turns,
                             .streams = streams(&c, n_processors)};
}
