/* stream_cut.c: from extents to aligned reads, and from the reads' bytes back to whole rows.
 *
 * Extents are not aligned, reads are: a read is the enclosing range of as many extents as lie
 * behind each other in one file, with gaps of at most GAP_BYTES_MAX, up to read_bytes. An extent
 * that does not fit is cut at an aligned place, where the next read begins. So no byte of an extent
 * is read twice but those of a page that two reads share.
 *
 * Rows are handed on from where they lie. One that a cut goes through is put together in the join
 * buffer; that copies at most a row per read. Pure functions on their arguments. */
#include "io/stream_impl.h"

#include <string.h>

/* Reading so much is cheaper than another read: 64 KiB at 1.5 GB/s take 40 us. */
#define GAP_BYTES_MAX ((uint64_t)64 << 10)

static uint64_t min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* Moves over parts of which nothing is left. */
static bool at_a_byte(const struct stream_plan *p, struct stream_cursor *at)
{
    while (at->part < p->n_parts && at->at == p->parts[at->part].bytes)
        *at = (struct stream_cursor){.part = at->part + 1};
    return at->part < p->n_parts;
}

bool stream_cut(const struct stream_plan *p, struct stream_cursor *at, struct stream_chunk *ret)
{
    if (!at_a_byte(p, at))
        return false;
    const struct stream_part *e = &p->parts[at->part];
    uint64_t end = e->offset + at->at; /* of what is in the read */
    uint64_t low = end & ~(uint64_t)(STREAM_PAGE - 1), limit = low + p->read_bytes;
    struct stream_chunk chunk = {.file = e->file, .offset = low, .from = *at};
    do {
        e = &p->parts[at->part];
        uint64_t start = e->offset + at->at;
        if (e->file != chunk.file || start < end || start - end > GAP_BYTES_MAX || start >= limit)
            break;
        uint64_t taken = min_u64(e->bytes - at->at, limit - start);
        at->at += taken;
        end = start + taken;
    } while (end < limit && at_a_byte(p, at));
    chunk.to = *at;
    chunk.needed = end - low;
    chunk.bytes = (chunk.needed + STREAM_PAGE - 1) & ~(uint64_t)(STREAM_PAGE - 1);
    *ret = chunk;
    return true;
}

/* Bytes [at, at + n) of a part. */
static int part_rows(const struct stream_part *e, uint8_t *join, uint64_t at, uint64_t n,
                     const uint8_t *data, const struct stream_sink *sink)
{
    uint64_t row = at / e->row_bytes, behind = at % e->row_bytes;
    int r = 0;
    if (behind > 0) {
        uint8_t *joined = join + (e->offset + row * e->row_bytes) % 64;
        uint64_t taken = min_u64(n, e->row_bytes - behind);
        memcpy(joined + behind, data, taken);
        if (behind + taken < e->row_bytes)
            return 0;
        r = sink->rows(sink->ctx, e->tensor, row++, 1, joined);
        data += taken;
        n -= taken;
    }
    uint64_t whole = n / e->row_bytes, rest = n % e->row_bytes;
    if (r >= 0 && whole > 0)
        r = sink->rows(sink->ctx, e->tensor, row, whole, data);
    if (r >= 0 && rest > 0)
        memcpy(join + (e->offset + (row + whole) * e->row_bytes) % 64, data + whole * e->row_bytes,
               rest);
    return r < 0 ? r : 0;
}

int stream_rows(const struct stream_plan *p, uint8_t *join, const struct stream_chunk *chunk,
                const uint8_t *data, const struct stream_sink *sink, uint64_t *done)
{
    struct stream_cursor at = chunk->from;
    int r = 0;
    while (r >= 0 && at.part <= chunk->to.part && at_a_byte(p, &at)) {
        const struct stream_part *e = &p->parts[at.part];
        uint64_t end = at.part == chunk->to.part ? chunk->to.at : e->bytes;
        if (at.part > chunk->to.part || end == at.at)
            break;
        r = part_rows(e, join, at.at, end - at.at, data + (e->offset + at.at - chunk->offset),
                      sink);
        *done += end - at.at;
        at.at = end;
    }
    return r;
}
