/* batch.c: a batch checked, and written down as the numbers that kernels read.
 *
 * The batch's numbers were checked by the daemon; they are checked here once more, because a wrong
 * page or token would be an access outside of memory from which the device does not come back.
 * Nothing is changed by a batch that fails.
 *
 * The numbers of a step are one block, so that one copy brings them. Its arrays are as long as the
 * step's bucket says, hence at the same place in every step of that bucket, as a captured step
 * needs it; what has another length every time (page tables, biases, seen tokens) stands last, as
 * words counted from one beginning. For a single sequence the block has some 600 bytes, for 128 of
 * them with 2,048 rows each 100 KB. Nothing is allocated. */
#include "cuda/model.h"

#include "ref/walk.h"

#include <errno.h>
#include <string.h>

/* ---- buckets --------------------------------------------------------------------------------- */

/* Rows of captured steps. Products read the rows of x that there are: one alone costs an eighth. */
static const uint32_t captured_rows[] = {1, 2, 4, 8, 16, 24, 32, 48, 64, 96, CUDA_GRAPH_ROWS};

uint32_t cuda_bucket_rows(uint32_t n)
{
    for (size_t i = 0; i < sizeof captured_rows / sizeof captured_rows[0]; i++)
        if (n <= captured_rows[i])
            return captured_rows[i];
    return (n + CUDA_ROWS_PAD - 1) / CUDA_ROWS_PAD * CUDA_ROWS_PAD;
}

uint32_t cuda_bucket_outputs(uint32_t n)
{
    if (n <= 1)
        return n;
    if (n <= CUDA_HEAD_OUTPUTS)
        return cuda_bucket_rows(n);
    return (n + CUDA_HEAD_OUTPUTS - 1) / CUDA_HEAD_OUTPUTS * CUDA_HEAD_OUTPUTS;
}

/* Pieces that are none cost next to nothing; a step without merges saves a kernel per layer. */
uint32_t cuda_bucket_pieces(uint32_t n)
{
    uint32_t bucket = 8;
    while (bucket < n)
        bucket *= 2;
    return bucket;
}

uint32_t cuda_bucket_merges(uint32_t n)
{
    uint32_t bucket = n ? 4 : 0;
    while (bucket < n)
        bucket *= 4;
    return bucket;
}

/* ---- places ---------------------------------------------------------------------------------- */

static size_t aligned(size_t bytes)
{
    return (bytes + CUDA_ALIGN - 1) / CUDA_ALIGN * CUDA_ALIGN;
}

static void *next(uint8_t **at, size_t count, size_t size)
{
    void *here = *at;
    *at += (count * size + 15) / 16 * 16;
    return here;
}

void cuda_numbers_place(struct cuda_numbers *ret, const struct cuda_bucket *bucket, uint8_t *base)
{
    uint8_t *at = base;
    ret->tokens = next(&at, bucket->rows, sizeof *ret->tokens);
    ret->row_seq = next(&at, bucket->rows, sizeof *ret->row_seq);
    ret->row_position = next(&at, bucket->rows, sizeof *ret->row_position);
    ret->seqs = next(&at, bucket->rows, sizeof *ret->seqs);
    ret->output_rows =
        next(&at, (size_t)cuda_head_rows(bucket) * cuda_head_blocks(bucket), sizeof(int32_t));
    ret->pieces = next(&at, bucket->pieces, sizeof *ret->pieces);
    ret->merges = next(&at, bucket->merges, sizeof *ret->merges);
    ret->outputs = next(&at, bucket->outputs, sizeof *ret->outputs);
    ret->words = (uint32_t *)(void *)(base + aligned((size_t)(at - base)));
    ret->bytes = aligned((size_t)(at - base));
}

size_t cuda_numbers_max(const struct infer_backend_model *m)
{
    static uint8_t nowhere[1];
    const struct cuda_bucket largest = {.rows = m->max_rows,
                                        .pieces = m->max_pieces,
                                        .merges = m->max_merges,
                                        .outputs = cuda_bucket_outputs(m->state.max_outputs)};
    const size_t output_words =
        1 + 2 * (size_t)INFER_LOGIT_BIASES_MAX + (size_t)INFER_PENALTY_WINDOW_MAX;
    struct cuda_numbers numbers;
    size_t words, outputs, bytes;
    cuda_numbers_place(&numbers, &largest, nowhere);
    if (__builtin_mul_overflow((size_t)m->state.max_seqs, (size_t)m->max_pages, &words) ||
        __builtin_mul_overflow((size_t)m->state.max_outputs, output_words, &outputs) ||
        __builtin_add_overflow(words, outputs, &words) ||
        __builtin_mul_overflow(words, sizeof(uint32_t), &words) ||
        __builtin_add_overflow(words, numbers.bytes, &bytes))
        return 0;
    return bytes;
}

/* ---- the check ------------------------------------------------------------------------------- */

/* The pages that a sequence uses in this step. */
static uint32_t pages_of(const struct infer_batch_seq *seq)
{
    return (uint32_t)(((uint64_t)seq->position + seq->n_rows + CUDA_PAGE_TOKENS - 1) /
                      CUDA_PAGE_TOKENS);
}

static bool seq_fits(const struct infer_backend_model *m, const struct infer_batch *batch,
                     const struct infer_batch_seq *seq)
{
    uint64_t end = (uint64_t)seq->position + seq->n_rows;
    if (seq->first_row > batch->n_rows || seq->n_rows > batch->n_rows - seq->first_row)
        return false;
    if (end > (uint64_t)seq->n_pages * CUDA_PAGE_TOKENS ||
        end > (uint64_t)m->max_pages * CUDA_PAGE_TOKENS)
        return false;
    for (uint32_t i = 0; i < pages_of(seq); i++)
        if (seq->pages[i] >= m->state.n_pages)
            return false;
    return true;
}

static bool output_fits(const struct infer_batch *batch, uint32_t i)
{
    const struct infer_batch_output *o = &batch->outputs[i];
    return o->row < batch->n_rows && (i == 0 || o->row >= batch->outputs[i - 1].row) &&
           (!o->sample || o->sampling);
}

/* An id, or an output of the last step that draws one; what draws is in the numbers of that step.
 */
static bool token_fits(const struct infer_backend_model *m, int32_t token)
{
    struct cuda_numbers numbers;
    if (token >= 0)
        return (uint32_t)token < m->plan->shape.n_vocab;
    uint32_t output = (uint32_t)(-1 - token);
    if (!m->last || output >= m->last->n_outputs || ref_plan_takes_x(m->plan))
        return false;
    cuda_numbers_place(&numbers, &m->last->bucket, m->last->numbers);
    return numbers.outputs[output].sample;
}

int cuda_batch_check(const struct infer_backend_model *m, const struct infer_batch *batch)
{
    uint32_t n_rows = 0;
    if (!m->ready)
        return cuda_fail(-EINVAL, "the model is not ready");
    if (batch->n_rows > m->state.max_rows || batch->n_seqs > m->state.max_seqs ||
        batch->n_outputs > m->state.max_outputs)
        return cuda_fail(-EINVAL,
                         "a batch of %u rows, %u sequences and %u outputs, but %u, %u and %u at "
                         "most",
                         batch->n_rows, batch->n_seqs, batch->n_outputs, m->state.max_rows,
                         m->state.max_seqs, m->state.max_outputs);
    for (uint32_t s = 0; s < batch->n_seqs; s++) {
        if (!seq_fits(m, batch, &batch->seqs[s]))
            return cuda_fail(-EINVAL, "sequence %u of the batch does not fit", s);
        n_rows += batch->seqs[s].n_rows; /* each is at most max_rows */
    }
    if (n_rows != batch->n_rows)
        return cuda_fail(-EINVAL, "sequences of %u rows in a batch of %u", n_rows, batch->n_rows);
    for (uint32_t r = 0; r < batch->n_rows; r++)
        if (!token_fits(m, batch->tokens[r]))
            return cuda_fail(-EINVAL, "row %u has token %d", r, (int)batch->tokens[r]);
    for (uint32_t i = 0; i < batch->n_outputs; i++)
        if (!output_fits(batch, i))
            return cuda_fail(-EINVAL, "output %u is not in order", i);
    if (!ref_batch_fits(m->plan, batch))
        return cuda_fail(-EINVAL, "a part of a model without x, or with outputs");
    return 0;
}

/* ---- the numbers ----------------------------------------------------------------------------- */

/* Rows of no sequence. */
static void blank_rows(const struct cuda_bucket *bucket, struct cuda_numbers *to)
{
    for (uint32_t r = 0; r < bucket->rows; r++) {
        to->tokens[r] = 0;
        to->row_seq[r] = UINT32_MAX;
        to->row_position[r] = 0;
    }
    memset(to->seqs, 0, bucket->rows * sizeof *to->seqs);
}

/* Sequences without rows are left out; returns how many there are. */
static uint32_t write_seqs(const struct infer_batch *batch, struct cuda_numbers *to)
{
    uint32_t n = 0, word = 0;
    memcpy(to->tokens, batch->tokens, batch->n_rows * sizeof *to->tokens);
    for (uint32_t i = 0; i < batch->n_seqs; i++) {
        const struct infer_batch_seq *seq = &batch->seqs[i];
        if (!seq->n_rows)
            continue;
        to->seqs[n] = (struct cuda_seq){.first_row = seq->first_row,
                                        .n_rows = seq->n_rows,
                                        .position = seq->position,
                                        .first_page = word};
        word += pages_of(seq);
        for (uint32_t r = 0; r < seq->n_rows; r++) {
            to->row_seq[seq->first_row + r] = n;
            to->row_position[seq->first_row + r] = seq->position + r;
        }
        n++;
    }
    return n;
}

/* The pages where write_seqs() said that they would be; returns the next free word. */
static uint32_t write_pages(const struct infer_batch *batch, uint32_t *words)
{
    uint32_t word = 0;
    for (uint32_t i = 0; i < batch->n_seqs; i++) {
        const struct infer_batch_seq *seq = &batch->seqs[i];
        if (!seq->n_rows)
            continue;
        memcpy(words + word, seq->pages, pages_of(seq) * sizeof(uint32_t));
        word += pages_of(seq);
    }
    return word;
}

static uint32_t write_bias(const struct infer_batch_output *from, struct cuda_output *to,
                           uint32_t *words, uint32_t word)
{
    uint32_t n = from->n_bias < INFER_LOGIT_BIASES_MAX ? from->n_bias : INFER_LOGIT_BIASES_MAX;
    word += word % 2; /* a bias is two words */
    to->first_bias = word / 2;
    to->n_bias = n;
    if (n)
        memcpy(words + word, from->bias, n * sizeof *from->bias);
    return word + 2 * n;
}

/* The last tokens of the window, where a penalty asks for them. */
static uint32_t write_seen(const struct infer_batch_output *from, struct cuda_output *to,
                           uint32_t *words, uint32_t word)
{
    const struct infer_sampling *s = from->sampling;
    uint32_t n = from->n_seen < s->penalty_window ? from->n_seen : s->penalty_window;
    if (n > INFER_PENALTY_WINDOW_MAX)
        n = INFER_PENALTY_WINDOW_MAX;
    if (s->repetition_penalty == 1.0f && s->frequency_penalty == 0.0f &&
        s->presence_penalty == 0.0f)
        n = 0;
    to->first_seen = word;
    to->n_seen = n;
    if (n)
        memcpy(words + word, from->seen + (from->n_seen - n), n * sizeof *from->seen);
    return word + n;
}

/* Outputs in blocks of CUDA_HEAD_OUTPUTS, each with the distinct rows that its logits are for. */
static uint32_t write_outputs(const struct infer_batch *batch, const struct cuda_bucket *bucket,
                              struct cuda_numbers *to, uint32_t word)
{
    const uint32_t head_rows = cuda_head_rows(bucket);
    uint32_t n_rows = 0;
    memset(to->output_rows, 0, (size_t)head_rows * cuda_head_blocks(bucket) * sizeof(int32_t));
    for (uint32_t i = 0; i < bucket->outputs; i++) {
        int32_t *rows = to->output_rows + (size_t)head_rows * (i / CUDA_HEAD_OUTPUTS);
        struct cuda_output *o = &to->outputs[i];
        memset(o, 0, sizeof *o);
        o->target = -1;
        if (i >= batch->n_outputs)
            continue;
        const struct infer_batch_output *from = &batch->outputs[i];
        if (i % CUDA_HEAD_OUTPUTS == 0)
            n_rows = 0;
        if (n_rows == 0 || rows[n_rows - 1] != (int32_t)from->row)
            rows[n_rows++] = (int32_t)from->row;
        o->row = n_rows - 1;
        o->target = from->target;
        o->n_top = from->n_top < INFER_TOP_MAX ? from->n_top : INFER_TOP_MAX;
        o->sample = from->sample != 0;
        if (!from->sample)
            continue;
        o->sampling = *from->sampling;
        o->uniform = from->uniform;
        word = write_bias(from, o, to->words, word);
        word = write_seen(from, o, to->words, word);
    }
    return word;
}

void cuda_batch_write(struct infer_backend_model *m, const struct infer_batch *batch,
                      struct cuda_bucket *ret_bucket, size_t *ret_bytes)
{
    struct cuda_bucket bucket = {.rows = cuda_bucket_rows(batch->n_rows),
                                 .chained = cuda_chain_takes(m, batch)};
    struct cuda_numbers numbers;
    struct cuda_cut cut;
    /* Rows and sequences stand first: where they are depends on the rows alone. */
    cuda_numbers_place(&numbers, &bucket, m->numbers);
    blank_rows(&bucket, &numbers);
    uint32_t n_seqs = write_seqs(batch, &numbers);
    cuda_cut(&m->cache, numbers.seqs, n_seqs, m->window, m->backend->n_processors, m->pieces,
             m->merges, &cut);
    bucket.pieces = cuda_bucket_pieces(cut.n_pieces);
    bucket.merges = cuda_bucket_merges(cut.n_merges);
    bucket.turns = cut.turns;
    bucket.streams = cut.streams;
    bucket.outputs = cuda_bucket_outputs(batch->n_outputs);
    cuda_numbers_place(&numbers, &bucket, m->numbers);
    memset(numbers.pieces, 0, bucket.pieces * sizeof *numbers.pieces);
    memset(numbers.merges, 0, bucket.merges * sizeof *numbers.merges);
    memcpy(numbers.pieces, m->pieces, cut.n_pieces * sizeof *numbers.pieces);
    memcpy(numbers.merges, m->merges, cut.n_merges * sizeof *numbers.merges);
    uint32_t word = write_pages(batch, numbers.words);
    word = write_outputs(batch, &bucket, &numbers, word);
    *ret_bucket = bucket;
    *ret_bytes = numbers.bytes + word * sizeof(uint32_t);
}

size_t cuda_batch_blank(struct infer_backend_model *m, const struct cuda_bucket *bucket)
{
    const struct infer_batch none = {0};
    struct cuda_numbers numbers;
    cuda_numbers_place(&numbers, bucket, m->numbers);
    blank_rows(bucket, &numbers);
    memset(numbers.pieces, 0, bucket->pieces * sizeof *numbers.pieces);
    memset(numbers.merges, 0, bucket->merges * sizeof *numbers.merges);
    write_outputs(&none, bucket, &numbers, 0);
    return numbers.bytes;
}
