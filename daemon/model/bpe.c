/* bpe.c: see bpe.h.
 *
 * A merge joins two neighbouring symbols; the list's order is their rank, and the lowest rank goes
 * first, the leftmost among equals. The pairs are in one hash table of 16-byte slots, at most two
 * thirds full, so that a look-up touches one line. Short words (most of any text) are merged by
 * scanning two small arrays for the lowest rank; long ones through a queue of pairs over symbols
 * that are linked in place: the symbol at position i is that whose first byte is byte i of the
 * word.
 *
 * A queue entry is (rank, position). It is stale when the symbol at that position was swallowed or
 * its pair has another rank by now; ranks name pairs uniquely, so this is the whole check.
 *
 * Limits: MERGES_MAX merges; PROBES_MAX slots are probed for a pair before a file is refused. */
#include "model/bpe.h"

#include "base/checked.h"

#include <stdlib.h>
#include <string.h>

#define MERGES_MAX (4u * INFER_VOCAB_MAX)
#define PROBES_MAX 1024u
#define SHORT_WORD 40u
#define BATCH      24u

struct bpe_symbol {
    uint32_t id;     /* VOCAB_NONE: swallowed */
    uint32_t rank;   /* of the pair with the next symbol */
    uint32_t merged; /* what that pair becomes */
    uint32_t next;   /* positions; the word's length ends the list */
    uint32_t previous;
};

static uint32_t pair_slot(const struct bpe *b, uint32_t left, uint32_t right)
{
    uint64_t h =
        vocab_mix(((uint64_t)left << 32 | right) ^ 0x9e3779b97f4a7c15u, 0xd6e8feb86659fd93u);
    return vocab_reduce((uint32_t)h, b->n_slots);
}

/* The merge of a pair, or NULL. Terminates: the table always has a free slot. */
static const struct bpe_merge *find_pair(const struct bpe *b, uint32_t left, uint32_t right)
{
    uint32_t i = pair_slot(b, left, right);
    for (;;) {
        const struct bpe_merge *m = &b->merges[i];
        if (m->rank == VOCAB_NONE)
            return NULL;
        if (m->left == left && m->right == right)
            return m;
        i = i + 1 == b->n_slots ? 0 : i + 1;
    }
}

/* ---- reading --------------------------------------------------------------------------------- */

/* The first of two equal pairs counts. */
static int enter_pair(struct bpe *b, struct bpe_merge merge)
{
    uint32_t i = pair_slot(b, merge.left, merge.right);
    for (uint32_t probes = 0; probes < PROBES_MAX; probes++) {
        struct bpe_merge *m = &b->merges[i];
        if (m->rank == VOCAB_NONE) {
            *m = merge;
            return 0;
        }
        if (m->left == merge.left && m->right == merge.right)
            return 0;
        i = i + 1 == b->n_slots ? 0 : i + 1;
    }
    return -E2BIG;
}

/* One entry of the list on its way into the table: left, right and both together. */
struct merge_entry {
    size_t n_left, n;
    uint64_t hashes[3];
    uint32_t ids[3];
    char text[TOKENIZER_TOKEN_BYTES_MAX];
};

static const char *entry_text(const struct merge_entry *e, int part, size_t *ret_bytes)
{
    *ret_bytes = part == 0 ? e->n_left : part == 1 ? e->n - e->n_left : e->n;
    return part == 1 ? e->text + e->n_left : e->text;
}

/* "LEFT RIGHT", both in the alphabet of bytes, in which a space cannot occur. */
static int parse_entry(struct gguf_string s, struct merge_entry *e)
{
    const char *space = s.bytes > 2 ? memchr(s.data + 1, ' ', s.bytes - 1) : NULL;
    if (space == NULL || s.bytes > sizeof e->text)
        return -EINVAL;
    size_t left_bytes = (size_t)(space - s.data);
    e->n_left = vocab_decode_bytes(s.data, left_bytes, e->text);
    size_t n_right = vocab_decode_bytes(space + 1, s.bytes - left_bytes - 1, e->text + e->n_left);
    e->n = e->n_left + n_right;
    return n_right == 0 ? -EINVAL : 0;
}

/* Looks a batch up. Nearly all of the time goes by waiting for memory, so each step first asks for
 * what the next one reads, for the whole batch. */
static void find_entries(const struct bpe *b, const struct vocab *v, struct merge_entry *entries,
                         uint32_t n)
{
    size_t bytes;
    for (uint32_t i = 0; i < n; i++)
        for (int part = 0; part < 3; part++) {
            const char *text = entry_text(&entries[i], part, &bytes);
            entries[i].hashes[part] = vocab_hash(text, bytes);
            __builtin_prefetch(vocab_home(v, entries[i].hashes[part]));
        }
    for (uint32_t i = 0; i < n; i++)
        for (int part = 0; part < 3; part++) {
            uint32_t id = vocab_home(v, entries[i].hashes[part])->id;
            entries[i].ids[part] = id == VOCAB_NONE ? 0 : id;
            __builtin_prefetch(&v->offsets[entries[i].ids[part]]);
        }
    for (uint32_t i = 0; i < n; i++)
        for (int part = 0; part < 3; part++)
            __builtin_prefetch(v->bytes + v->offsets[entries[i].ids[part]]);
    for (uint32_t i = 0; i < n; i++) {
        for (int part = 0; part < 3; part++) {
            const char *text = entry_text(&entries[i], part, &bytes);
            entries[i].ids[part] = vocab_find_hashed(v, entries[i].hashes[part], text, bytes);
        }
        __builtin_prefetch(&b->merges[pair_slot(b, entries[i].ids[0], entries[i].ids[1])], 1);
    }
}

static int enter_entry(struct bpe *b, struct vocab *v, struct merge_entry *e, uint32_t rank)
{
    for (int part = 0; part < 3; part++) {
        size_t bytes;
        const char *text = entry_text(e, part, &bytes);
        int r = e->ids[part] == VOCAB_NONE ? vocab_intern(v, text, bytes, &e->ids[part]) : 0;
        if (r < 0)
            return r;
    }
    return enter_pair(b, (struct bpe_merge){e->ids[0], e->ids[1], rank, e->ids[2]});
}

static int read_merges(struct bpe *b, struct vocab *v, const struct gguf *g, uint32_t n,
                       struct report *report)
{
    struct merge_entry entries[BATCH];
    for (uint32_t from = 0; from < n; from += BATCH) {
        uint32_t count = n - from < BATCH ? n - from : BATCH;
        uint32_t i;
        int r = 0;
        for (i = 0; i < count && r == 0; i++)
            r = parse_entry(gguf_array_string(g, "tokenizer.ggml.merges", from + i), &entries[i]);
        if (r == 0) {
            find_entries(b, v, entries, count);
            for (i = 0; i < count && r == 0; i++)
                r = enter_entry(b, v, &entries[i], from + i);
        }
        if (r == -ENOMEM)
            return report_fail(report, INFER_E_OUT_OF_MEMORY, "no memory for the merges");
        if (r < 0)
            return report_fail(report, INFER_E_MODEL_FORMAT,
                               "tokenizer.ggml.merges: entry %u is no pair of symbols",
                               from + i - 1);
    }
    return 0;
}

int bpe_init(struct bpe *b, struct vocab *v, const struct gguf *g, struct report *report)
{
    memset(b, 0, sizeof *b);
    b->unknown = VOCAB_NONE;
    uint64_t n;
    if (!gguf_get_array(g, "tokenizer.ggml.merges", GGUF_STRING, &n))
        return report_fail(report, INFER_E_MODEL_FORMAT,
                           "the vocabulary has no list of merges (tokenizer.ggml.merges)");
    if (n > MERGES_MAX)
        return report_fail(report, INFER_E_MODEL_UNSUPPORTED,
                           "tokenizer.ggml.merges has %llu entries; at most %u are taken",
                           (unsigned long long)n, MERGES_MAX);
    b->n_slots = (uint32_t)n / 2 * 3 + 64;
    b->merges = malloc((size_t)b->n_slots * sizeof *b->merges);
    if (b->merges == NULL)
        return report_fail(report, INFER_E_OUT_OF_MEMORY, "no memory for the merges");
    memset(b->merges, 0xff, (size_t)b->n_slots * sizeof *b->merges);
    for (unsigned i = 0; i < 256; i++) {
        char byte = (char)i;
        if (vocab_intern(v, &byte, 1, &b->byte_ids[i]) < 0) {
            bpe_done(b);
            return report_fail(report, INFER_E_OUT_OF_MEMORY, "no memory for the vocabulary");
        }
    }
    int r = read_merges(b, v, g, (uint32_t)n, report);
    if (r < 0)
        bpe_done(b);
    return r;
}

void bpe_done(struct bpe *b)
{
    free(b->merges);
    memset(b, 0, sizeof *b);
}

void bpe_scratch_done(struct bpe_scratch *s)
{
    free(s->queue.keys);
    free(s->symbols);
    memset(s, 0, sizeof *s);
}

/* ---- encoding -------------------------------------------------------------------------------- */

/* A symbol that is no token falls back to its bytes. */
static int emit(const struct bpe *b, const struct vocab *v, uint32_t id, struct token_list *out)
{
    if (id < v->n_tokens)
        return token_list_push(out, (int32_t)id);
    size_t bytes;
    const char *text = vocab_text(v, id, &bytes);
    int r = 0;
    for (size_t i = 0; i < bytes && r == 0; i++) {
        uint32_t byte_id = b->byte_ids[(unsigned char)text[i]];
        if (byte_id >= v->n_tokens)
            byte_id = b->unknown;
        if (byte_id != VOCAB_NONE)
            r = token_list_push(out, (int32_t)byte_id);
    }
    return r;
}

static int encode_short(const struct bpe *b, const struct vocab *v, const char *word, size_t bytes,
                        struct token_list *out)
{
    uint32_t ids[SHORT_WORD], ranks[SHORT_WORD], merged[SHORT_WORD];
    size_t n = bytes;
    for (size_t i = 0; i < n; i++)
        ids[i] = b->byte_ids[(unsigned char)word[i]];
    for (size_t i = 0; i + 1 < n; i++) {
        const struct bpe_merge *m = find_pair(b, ids[i], ids[i + 1]);
        ranks[i] = m != NULL ? m->rank : VOCAB_NONE;
        merged[i] = m != NULL ? m->id : VOCAB_NONE;
    }
    while (n > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < n; i++)
            best = ranks[i] < ranks[best] ? i : best;
        if (ranks[best] == VOCAB_NONE)
            break;
        ids[best] = merged[best];
        n--;
        for (size_t i = best + 1; i < n; i++) {
            ids[i] = ids[i + 1];
            ranks[i - 1] = ranks[i];
            merged[i - 1] = merged[i];
        }
        for (size_t i = best > 0 ? best - 1 : 0; i <= best && i + 1 < n; i++) {
            const struct bpe_merge *m = find_pair(b, ids[i], ids[i + 1]);
            ranks[i] = m != NULL ? m->rank : VOCAB_NONE;
            merged[i] = m != NULL ? m->id : VOCAB_NONE;
        }
    }
    int r = 0;
    for (size_t i = 0; i < n && r == 0; i++)
        r = emit(b, v, ids[i], out);
    return r;
}

/* Looks the pair at `at` up; returns whether there is one. */
static bool renew_pair(const struct bpe *b, struct bpe_symbol *symbols, uint32_t at, uint32_t end)
{
    struct bpe_symbol *s = &symbols[at];
    const struct bpe_merge *m = s->next < end ? find_pair(b, s->id, symbols[s->next].id) : NULL;
    s->rank = m != NULL ? m->rank : VOCAB_NONE;
    s->merged = m != NULL ? m->id : VOCAB_NONE;
    return m != NULL;
}

static int merge_all(const struct bpe *b, struct bpe_symbol *symbols, uint32_t end,
                     struct merge_queue *q)
{
    while (q->n > 0) {
        uint64_t key = merge_queue_pop(q);
        uint32_t at = (uint32_t)key;
        struct bpe_symbol *s = &symbols[at];
        if (s->id == VOCAB_NONE || s->rank != (uint32_t)(key >> 32))
            continue;
        struct bpe_symbol *swallowed = &symbols[s->next];
        s->id = s->merged;
        s->next = swallowed->next;
        swallowed->id = VOCAB_NONE;
        if (s->next < end)
            symbols[s->next].previous = at;
        if (renew_pair(b, symbols, at, end) && merge_queue_push(q, merge_key(s->rank, at)) < 0)
            return -ENOMEM;
        uint32_t before = s->previous;
        if (before != VOCAB_NONE && renew_pair(b, symbols, before, end) &&
            merge_queue_push(q, merge_key(symbols[before].rank, before)) < 0)
            return -ENOMEM;
    }
    return 0;
}

static int encode_long(const struct bpe *b, const struct vocab *v, struct bpe_scratch *scratch,
                       const char *word, uint32_t bytes, struct token_list *out)
{
    if (bytes > scratch->room) {
        free(scratch->symbols);
        scratch->room = 0;
        scratch->symbols = malloc((size_t)bytes * sizeof *scratch->symbols);
        if (scratch->symbols == NULL)
            return -ENOMEM;
        scratch->room = bytes;
    }
    struct bpe_symbol *symbols = scratch->symbols;
    struct merge_queue *q = &scratch->queue;
    if (merge_queue_reserve(q, bytes) < 0)
        return -ENOMEM;
    q->n = 0;
    for (uint32_t i = 0; i < bytes; i++)
        symbols[i] = (struct bpe_symbol){.id = b->byte_ids[(unsigned char)word[i]],
                                         .next = i + 1,
                                         .previous = i == 0 ? VOCAB_NONE : i - 1};
    for (uint32_t i = 0; i < bytes; i++)
        if (renew_pair(b, symbols, i, bytes))
            q->keys[q->n++] = merge_key(symbols[i].rank, i);
    merge_queue_heapify(q);
    int r = merge_all(b, symbols, bytes, q);
    for (uint32_t i = 0; i < bytes && r == 0; i = symbols[i].next)
        r = emit(b, v, symbols[i].id, out);
    return r;
}

int bpe_encode_word(const struct bpe *b, const struct vocab *v, struct bpe_scratch *s,
                    const char *word, size_t bytes, struct token_list *out)
{
    if (bytes == 1)
        return emit(b, v, b->byte_ids[(unsigned char)word[0]], out);
    if (bytes <= SHORT_WORD)
        return encode_short(b, v, word, bytes, out);
    return bytes <= TOKENIZER_TEXT_MAX ? encode_long(b, v, s, word, (uint32_t)bytes, out) : -E2BIG;
}
