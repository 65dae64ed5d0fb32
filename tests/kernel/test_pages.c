/* test_pages.c: what sequences keep on the CUDA backend, beside the reference: keys and values of
 * every type, pages copied, read, written, zeroed, and turned to other positions. See cuda_whole.h
 * for what it runs on. */
#include "kernel/cuda_whole.h"

/* ---- caches ---------------------------------------------------------------------------------- */

static const struct {
    uint32_t k, v;
} caches[] = {
    {INFER_TYPE_Q8_0, INFER_TYPE_Q8_0}, {INFER_TYPE_Q4_0, INFER_TYPE_Q4_0},
    {INFER_TYPE_F16, INFER_TYPE_Q4_0},  {INFER_TYPE_Q8_0, INFER_TYPE_F16},
    {INFER_TYPE_Q4_0, INFER_TYPE_Q8_0}, {INFER_TYPE_Q4_0, INFER_TYPE_F16},
};
#define N_CACHES (sizeof caches / sizeof caches[0])

/* What rounding to few bits does to the logits, `rounding`, is measured beside the reference with
 * F16. Keys and values differ from the reference's by float32 noise and x's halves, so codes fall
 * to the other side here and there; that may be a part of the rounding, but no more: half of it,
 * and under the bounds that test_cpu_cache.c has for it. Values of the rounding itself: 8 bits
 * about 5e-3, 4 bits about 5e-2. */
static void check_cache(const struct recipe *recipe, uint32_t k, uint32_t v)
{
    static const uint32_t uneven[] = {7, 16, 33, 2, 3, 5, 0};
    const struct recipe in_f16 = recipe_in(recipe, INFER_TYPE_F16);
    struct sample_run s;
    struct loaded l;
    keep(INFER_TYPE_F16, INFER_TYPE_F16);
    begin_run(&s, &in_f16);
    run_ref(&s, s.other);
    keep(k, v);
    run_ref(&s, s.want);
    must_open(&l, "");
    load(&l, &s.m);
    run_batch(&l, &(struct part){0, length, s.tokens, s.pages, s.got}, 1);
    double error = relative_error(s.got, s.want, s.n);
    double rounding = relative_error(s.other, s.want, s.n);
    bool narrow = k == INFER_TYPE_Q4_0 || v == INFER_TYPE_Q4_0;
    print_message("heads of %s, %s %s: %.2g from ref, which is %.2g from f16\n", recipe->name,
                  ref_type_name(k), ref_type_name(v), error, rounding);
    assert_true(rounding > 1e-3 && rounding < (narrow ? 0.2 : 2e-2));
    assert_true(error < TOLERANCE + rounding / 2);
    in_pieces(&l, &s, uneven, s.other);
    assert_memory_equal(s.other, s.got, s.bytes);
    unload(&l);
    keep(INFER_TYPE_F16, INFER_TYPE_F16);
    end_run(&s);
}

static void test_caches(void **state)
{
    uint32_t before = length;
    length = real ? LENGTH : 70;
    for (size_t r = 0; r < N_KEPT; r++)
        for (size_t i = 0; i < (real ? N_CACHES : r ? 1 : 2); i++)
            check_cache(&kept_recipes[r], caches[i].k, caches[i].v);
    length = before;
}

/* ---- pages ----------------------------------------------------------------------------------- */

/* A page copied, read and written back carries the sequence; a zeroed one does not. */
static void check_pages(uint32_t type)
{
    const struct recipe in_f16 = recipe_in(&kept_recipes[0], INFER_TYPE_F16);
    struct sample_run s;
    struct loaded l;
    static const uint32_t moved[3] = {40, 41, 42};
    struct infer_estimate e;
    keep(type, type);
    begin_run(&s, &in_f16);
    const size_t row = s.m.shape.n_vocab, bytes = row * sizeof(float);
    must_open(&l, "");
    load(&l, &s.m);
    assert_int_equal(l.api->estimate(l.backend, &s.m.plan, &state_config, &e), 0);
    uint8_t *page = malloc(e.page_bytes);
    assert_non_null(page);
    run_batch(&l, &(struct part){0, 47, s.tokens, s.pages, NULL}, 1);
    assert_int_equal(l.api->page_copy(l.model, 40, s.pages[0]), 0);
    assert_int_equal(l.api->page_read(l.model, s.pages[1], page), 0);
    assert_int_equal(l.api->page_write(l.model, 41, page), 0);
    assert_int_equal(l.api->page_copy(l.model, 42, s.pages[2]), 0);
    run_batch(&l, &(struct part){47, 1, s.tokens + 47, s.pages, s.want}, 1);
    run_batch(&l, &(struct part){47, 1, s.tokens + 47, moved, s.got}, 1);
    assert_memory_equal(s.got, s.want, bytes);
    assert_int_equal(l.api->page_zero(l.model, 41), 0);
    run_batch(&l, &(struct part){47, 1, s.tokens + 47, moved, s.got}, 1);
    assert_true(isfinite(s.got[0]));
    assert_memory_not_equal(s.got, s.want, bytes);
    assert_int_equal(l.api->page_zero(l.model, PAGES_MAX), -EINVAL);
    assert_int_equal(l.api->page_copy(l.model, 0, PAGES_MAX), -EINVAL);
    assert_int_equal(l.api->page_read(l.model, PAGES_MAX, page), -EINVAL);
    assert_int_equal(l.api->page_shift(l.model, PAGES_MAX, 1), -EINVAL);
    unload(&l);
    keep(INFER_TYPE_F16, INFER_TYPE_F16);
    end_run(&s);
    free(page);
}

static void test_pages(void **state)
{
    check_pages(INFER_TYPE_F16);
    check_pages(INFER_TYPE_Q8_0);
    check_pages(INFER_TYPE_Q4_0);
}

/* Beside the reference, which turns and rounds the same numbers: one more rounding of keys that
 * differ by x's halves. Without the shift, far from it. */
static void check_shift(const struct recipe *recipe, uint32_t type)
{
    const struct recipe in_f16 = recipe_in(recipe, INFER_TYPE_F16);
    struct sample_run s;
    struct loaded ref, l;
    const double beside = type == INFER_TYPE_F16    ? TOLERANCE
                          : type == INFER_TYPE_Q8_0 ? 6e-3
                                                    : 5e-2;
    keep(type, INFER_TYPE_F16);
    begin_run(&s, &in_f16);
    const size_t n = 16 * (size_t)s.m.shape.n_vocab;
    assert_int_equal(open_backend(&ref, "ref", ""), 0);
    must_open(&l, "");
    load(&ref, &s.m);
    load(&l, &s.m);
    slide(&ref, s.tokens, true, s.want);
    slide(&l, s.tokens, true, s.got);
    slide(&l, s.tokens, false, s.other);
    double error = relative_error(s.got, s.want, n), unmoved = relative_error(s.other, s.want, n);
    print_message("%s, %s: slid %.2g from ref, %.2g unless shifted\n", recipe->name,
                  ref_type_name(type), error, unmoved);
    assert_true(error < beside && unmoved > 3 * beside);
    unload(&ref);
    unload(&l);
    keep(INFER_TYPE_F16, INFER_TYPE_F16);
    end_run(&s);
}

static void test_shift(void **state)
{
    static const uint32_t types[] = {INFER_TYPE_F16, INFER_TYPE_Q8_0, INFER_TYPE_Q4_0};
    for (size_t i = 0; i < 3; i++)
        for (size_t r = 0; r < (real || i == 0 ? 2 : 1); r++)
            check_shift(&moved_recipes[r], types[i]);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_caches),
        cmocka_unit_test(test_pages),
        cmocka_unit_test(test_shift),
    };
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    find_device();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
