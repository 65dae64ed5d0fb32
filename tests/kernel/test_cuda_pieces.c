/* test_cuda_pieces.c: a step's attention cut into pieces, and merged again. Host code alone. */
#include "kernel/cuda_rig.h"

/* Every chunk that a row sees is some piece's, once; whole pieces have all of them; partial results
 * lie where the merge looks for them, and apart. */
static void check_cut(const struct cuda_cache *c, const struct cuda_seq *seqs, uint32_t n_seqs,
                      uint32_t window, uint32_t n_processors)
{
    enum { rows_most = 2048, partials_most = 4096 };
    static struct cuda_piece pieces[4096];
    static struct cuda_merge merges[4096];
    static uint8_t taken[partials_most];
    uint32_t most_pieces, most_merges, most_partials, n_rows = 0;
    uint64_t chunks[rows_most] = {0};
    struct cuda_cut cut;
    for (uint32_t s = 0; s < n_seqs; s++)
        n_rows += seqs[s].n_rows;
    cuda_cut(c, seqs, n_seqs, window, n_processors, pieces, merges, &cut);
    cuda_cut_most(c, n_rows, n_seqs, n_processors, &most_pieces, &most_merges, &most_partials);
    assert_true(cut.n_pieces <= most_pieces && cut.n_merges <= most_merges);
    assert_true(most_partials <= partials_most);
    memset(taken, 0, sizeof taken);
    for (uint32_t i = 0; i < cut.n_pieces; i++) {
        const struct cuda_piece *p = &pieces[i];
        const struct cuda_seq *s = &seqs[p->seq];
        assert_true(p->n_rows && p->n_chunks && p->first_row >= s->first_row &&
                    p->first_row + p->n_rows <= s->first_row + s->n_rows);
        bool wide = p->n_rows > cuda_piece_rows(c);
        assert_true(!wide || (n_rows > CUDA_NARROW_ROWS && p->n_rows <= cuda_wide_rows(c) &&
                              p->partial == CUDA_WHOLE));
        for (uint32_t r = p->first_row; r < p->first_row + p->n_rows; r++)
            chunks[r] += p->n_chunks;
        for (uint32_t j = 0; p->partial != CUDA_WHOLE && j < p->n_chunks * p->n_rows; j++) {
            assert_true(p->partial + j < most_partials);
            assert_int_equal(taken[p->partial + j]++, 0);
        }
        uint32_t m = 0;
        while (m < cut.n_merges && merges[m].first_row != p->first_row)
            m++;
        assert_int_equal(m < cut.n_merges, p->partial != CUDA_WHOLE);
        if (m < cut.n_merges) {
            assert_int_equal(merges[m].n_rows, p->n_rows);
            assert_int_equal(p->partial - merges[m].partial,
                             (p->first_chunk - merges[m].first_chunk) * p->n_rows);
            assert_true(p->first_chunk + p->n_chunks <= merges[m].first_chunk + merges[m].n_chunks);
        }
    }
    for (uint32_t s = 0; s < n_seqs; s++) {
        for (uint32_t r = 0; r < seqs[s].n_rows; r++) {
            uint32_t position = seqs[s].position + r;
            uint32_t first = window && position >= window ? position - window + 1 : 0;
            uint32_t sees = position / CUDA_CHUNK - first / CUDA_CHUNK + 1;
            assert_true(chunks[seqs[s].first_row + r] >= sees);
            /* Rows of one piece see different chunks; not more than it is long. */
            assert_true(chunks[seqs[s].first_row + r] <= sees + cuda_wide_rows(c) / 64 + 2);
        }
    }
}

static void test_cut(void **state)
{
    random_state = 9;
    for (uint32_t i = 0; i < 2000; i++) {
        const struct shape *shape = &shapes[draw() % N_SHAPES];
        struct infer_shape model = model_of(shape);
        struct infer_state_config s = state_of(INFER_TYPE_F16, INFER_TYPE_F16);
        struct cuda_cache c;
        struct cuda_seq seqs[64];
        uint32_t n = draw_between(1, i % 2 ? 64 : 3), row = 0;
        s.n_pages = draw_between(1, 20000);
        assert_int_equal(cuda_cache_init(&c, &model, &s), 0);
        c.narrow = i % 5 == 0;
        for (uint32_t j = 0; j < n; j++) {
            uint32_t rows = draw() % 3 ? 1 : draw_between(1, n > 3 ? 30 : 500);
            seqs[j] = (struct cuda_seq){row, rows, draw() % 2 ? draw() % 9000 : draw() % 200, 0};
            row += rows;
        }
        check_cut(&c, seqs, n, draw() % 2 ? 0 : draw_between(1, 5000), draw_between(1, 150));
    }
}

/* A sequence alone, deep in its context, gives every processor something to do. */
static void test_cut_fills(void **state)
{
    struct shape shape = {"32/8", 32, 8, 128, 128, 0, 0, false, 0};
    struct infer_shape model = model_of(&shape);
    struct infer_state_config s = state_of(INFER_TYPE_F16, INFER_TYPE_F16);
    struct cuda_cache c;
    struct cuda_seq seq = {0, 1, 2047, 0}, prompt = {0, 512, 4096, 0}, many[128];
    struct cuda_piece pieces[512];
    struct cuda_merge merges[512];
    struct cuda_cut cut;
    s.n_pages = 20000;
    assert_int_equal(cuda_cache_init(&c, &model, &s), 0);
    cuda_cut(&c, &seq, 1, 0, 132, pieces, merges, &cut);
    assert_int_equal(cut.n_pieces, 16);
    assert_int_equal(cut.n_merges, 1);
    assert_true(cut.turns);
    cuda_cut(&c, &prompt, 1, 0, 132, pieces, merges, &cut);
    assert_int_equal(cut.n_pieces, 32);
    assert_int_equal(cut.n_merges, 0);
    assert_false(cut.turns);
    for (uint32_t i = 0; i < 128; i++)
        many[i] = (struct cuda_seq){i, 1, 255, 0};
    cuda_cut(&c, many, 128, 0, 132, pieces, merges, &cut);
    assert_int_equal(cut.n_pieces, 128);
    assert_int_equal(cut.n_merges, 0);
    assert_true(!cut.turns && cut.streams);
    cuda_cut(&c, many, 32, 0, 132, pieces, merges, &cut);
    assert_true(!cut.turns && !cut.streams);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cut),
        cmocka_unit_test(test_cut_fills),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
