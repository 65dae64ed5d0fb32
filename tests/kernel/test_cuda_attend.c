/* test_cuda_attend.c: attention by the kernels of kernels/cuda, beside plain attention in double
 * precision, and bit against bit between the ways in which the same rows can be cut into steps and
 * pieces.
 *
 * Runs on the processor (tests/support/cuda) or, linked with CUDA's own runtime, on a GPU. */
#include "kernel/brief.h"
#include "kernel/cuda_rig.h"

/* ---- checks ---------------------------------------------------------------------------------- */

/* Relative error of everything that came out, root of the mean square: queries, weights, results,
 * and numbers decoded from codes are rounded to halves, each off by at most 2^-11 of itself and by
 * about 2^-12 on average; a sum of independent terms is off by as much as each of them; so
 * sqrt(5) * 2^-12 = 5.5e-4, and less than twice that. */
#define BOUND 0x1p-10

static void check_want(const struct rig *r, const char *how)
{
    for (uint32_t i = 0; i < SEQS_MAX; i++) {
        const struct sequence *s = &r->seqs[i];
        double error = 0, power = 0;
        for (size_t j = 0; j < (size_t)s->n * o_size(r); j++) {
            double d = (double)ref_f16_to_f32(s->got[j]) - s->want[j];
            error += d * d;
            power += s->want[j] * s->want[j];
        }
        if (s->n && !(sqrt(error / power) < BOUND))
            fail_msg("%s, types %u and %u, %s: %g", r->shape->name, (unsigned)r->cache.k_type,
                     (unsigned)r->cache.v_type, how, sqrt(error / power));
    }
}

struct kept {
    uint16_t *got[SEQS_MAX];
    uint8_t *pages;
};

static struct kept keep_results(struct rig *r)
{
    struct kept k = {.pages = malloc(r->cache.page_bytes * PAGES)};
    must(cudaMemcpy(k.pages, r->cache.pages, r->cache.page_bytes * PAGES, cudaMemcpyDeviceToHost));
    for (uint32_t i = 0; i < SEQS_MAX; i++) {
        size_t n = (size_t)r->seqs[i].n * o_size(r);
        k.got[i] = NULL;
        if (n == 0)
            continue;
        k.got[i] = malloc(n * sizeof(uint16_t));
        memcpy(k.got[i], r->seqs[i].got, n * sizeof(uint16_t));
        memset(r->seqs[i].got, 0xff, n * sizeof(uint16_t));
    }
    clear_pages(r);
    return k;
}

static void free_kept(struct kept *k)
{
    for (uint32_t i = 0; i < SEQS_MAX; i++)
        free(k->got[i]);
    free(k->pages);
}

/* The same bits as before, in results and pages. */
static void check_same(struct rig *r, const struct kept *first, const char *how)
{
    struct kept now = keep_results(r);
    for (uint32_t i = 0; i < SEQS_MAX; i++) {
        size_t n = (size_t)r->seqs[i].n * o_size(r);
        for (size_t j = 0; j < n; j++)
            if (now.got[i][j] != first->got[i][j])
                fail_msg("%s, types %u and %u, %s: sequence %u, row %zu, number %zu: %g was %g",
                         r->shape->name, (unsigned)r->cache.k_type, (unsigned)r->cache.v_type, how,
                         (unsigned)i, j / o_size(r), j % o_size(r),
                         (double)ref_f16_to_f32(now.got[i][j]),
                         (double)ref_f16_to_f32(first->got[i][j]));
    }
    assert_memory_equal(now.pages, first->pages, r->cache.page_bytes * PAGES);
    free_kept(&now);
}

/* Rows of a sequence as a step that verifies some has them. */
#define ROWS_FEW 4u

/* ---- attention ------------------------------------------------------------------------------- */

/* The same however a step's rows are turned, worked on and cut: one to a few rows of each sequence
 * after the others, in steps beside each other. */
static void check_ways(struct rig *r, const struct kept *first)
{
    for (uint32_t i = 0; i < (cuda_heads_known(&r->cache) ? 3 : 2); i++) {
        r->ways = (struct ways){.apart = i > 0, .streams = i == 2, .chunks = 1 + i};
        run_mixed(r, 132, ROWS_FEW);
        check_same(r, first, "by ways");
    }
    r->ways = (struct ways){0};
}

/* As few steps as there can be; one row at a time (in brief, 30), cut as far as it goes; beside
 * others. */
static void check_shape(const struct shape *shape, size_t type)
{
    static const uint32_t lengths[SEQS_MAX] = {205, 67, 9};
    struct rig r;
    make_rig(&r, shape, types[type].k, types[type].v, lengths);
    for (uint32_t s = 0; s < SEQS_MAX; s++)
        run_alone(&r, s, ROWS_MAX - 16, 132);
    for (uint32_t s = 0; s < SEQS_MAX; s++) {
        read_pages(&r, &r.seqs[s], s);
        attend_rows(&r, &r.seqs[s]);
    }
    check_want(&r, "in few steps");
    struct kept first = keep_results(&r);
    for (uint32_t s = 0; s < SEQS_MAX; s++)
        run_alone(&r, s, brief() ? 30 : 1, 132);
    check_want(&r, "row by row");
    check_same(&r, &first, "row by row");
    run_mixed(&r, 1, 60);
    check_same(&r, &first, "mixed, 1 processor");
    run_mixed(&r, 132, 17);
    check_same(&r, &first, "mixed, 132 processors");
    /* More than CUDA_NARROW_ROWS, wide and narrow pieces in one step, half as wide ones. */
    run_step(&r, (struct part[]){{1, 0, 67}}, 1, 1);
    run_step(&r, (struct part[]){{0, 0, 72}, {2, 0, 8}}, 2, 1);
    run_step(&r, (struct part[]){{0, 72, 133}, {2, 8, 1}}, 2, 1);
    check_same(&r, &first, "wide beside narrow");
    check_ways(&r, &first);
    assert_true(r.n_merges && (r.n_turned || !cuda_wide_rows(&r.cache)));
    assert_true(r.n_wide || !cuda_wide_rows(&r.cache));
    assert_true(r.n_streamed || !cuda_heads_known(&r.cache));
    free_kept(&first);
    free_rig(&r);
}

/* Shapes for the kernels of heads of 64, of 128 and of other sizes. */
static const size_t some[] = {0, 3, 4};
#define N_SOME (sizeof some / sizeof some[0])

static void test_f16(void **state)
{
    for (size_t i = 0; i < (brief() ? N_SOME : N_SHAPES); i++)
        check_shape(&shapes[brief() ? some[i] : i], 0);
}

static void test_codes(void **state)
{
    for (size_t t = 1; t < N_TYPES; t++)
        for (size_t i = 0; i < (brief() ? 1 : N_SOME); i++)
            check_shape(&shapes[some[i]], t);
}

/* Heads of 64 and 128 where a block has 64 KiB of shared memory: wide pieces of the former alone.
 */
static void test_little_memory(void **state)
{
#ifndef CUDA_EMULATED
    skip(); /* what the GPU has is what all tests have */
#endif
    setenv("INFERD_CUDA_EMULATED", "capability=75", 1);
    for (size_t i = 2; i < 4; i++)
        check_shape(&shapes[i], i - 2);
    unsetenv("INFERD_CUDA_EMULATED");
}

/* Cuts that cuda_cut would not make: pieces of one and of several chunks in one merge. */
static void test_uneven_pieces(void **state)
{
    static const uint32_t lengths[SEQS_MAX] = {300, 0, 0};
    for (size_t i = 0; i < (brief() ? 1 : 4); i++) {
        static struct step_host h;
        struct rig r;
        make_rig(&r, &shapes[i], INFER_TYPE_F16, INFER_TYPE_F16, lengths);
        const uint32_t rows = cuda_piece_rows(&r.cache), at = 300 - rows;
        run_step(&r, (struct part[]){{0, 0, 200}}, 1, 132);
        run_step(&r, (struct part[]){{0, 200, at - 200}}, 1, 132);
        run_step(&r, (struct part[]){{0, at, rows}}, 1, 1);
        struct kept first = keep_results(&r);
        run_step(&r, (struct part[]){{0, 0, 200}}, 1, 132);
        run_step(&r, (struct part[]){{0, 200, at - 200}}, 1, 132);
        memset(&h, 0, sizeof h);
        h.cut = (struct cuda_cut){.turns = i % 2};
        write_rows(&r, &h, &(struct part){0, at, rows}, 1);
        for (uint32_t chunk = 0, n = 1; chunk < 5; chunk += n, n = 3 - n) {
            n = n < 5 - chunk ? n : 5 - chunk;
            h.pieces[h.cut.n_pieces++] = (struct cuda_piece){.first_row = 0,
                                                             .n_rows = rows,
                                                             .first_chunk = chunk,
                                                             .n_chunks = n,
                                                             .partial = 7 + chunk * rows};
        }
        h.merges[h.cut.n_merges++] =
            (struct cuda_merge){.n_rows = rows, .n_chunks = 5, .partial = 7};
        run_kernels(&r, &h);
        check_same(&r, &first, "uneven pieces");
        free_kept(&first);
        free_rig(&r);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_f16),
        cmocka_unit_test(test_codes),
        cmocka_unit_test(test_little_memory),
        cmocka_unit_test(test_uneven_pieces),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
