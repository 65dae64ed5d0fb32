/* test_cpu_cache.c: sequence state on the CPU backend: keys and values in 16, 8 and 4 bits beside
 * the reference's, and pages outside of a step. */
#include "kernel/cpu_rig.h"

/* ---- smaller caches -------------------------------------------------------------------------- */

static const struct {
    uint32_t k, v;
} caches[] = {
    {INFER_TYPE_Q8_0, INFER_TYPE_Q8_0}, {INFER_TYPE_Q4_0, INFER_TYPE_Q4_0},
    {INFER_TYPE_Q4_0, INFER_TYPE_F16},  {INFER_TYPE_F16, INFER_TYPE_Q4_0},
    {INFER_TYPE_Q8_0, INFER_TYPE_Q4_0}, {INFER_TYPE_F16, INFER_TYPE_Q8_0},
};
#define N_CACHES (sizeof caches / sizeof caches[0])

/* Heads of 64 and 32, many queries to a key with a window, and heads of 96 (rotated by 32s) with
 * values of another size. */
static const struct recipe small_recipes[] = {
    {"64", INFER_TYPE_F32, INFER_TYPE_F32, INFER_TYPE_F32, 4, 2, 64, 64, INFER_ROPE_PAIRS, 64, 0,
     false, false, false, 0},
    {"32, window", INFER_TYPE_F32, INFER_TYPE_F32, INFER_TYPE_F16, 14, 2, 32, 32, INFER_ROPE_PAIRS,
     32, 37, false, true, false, 0},
    {"96 and 160", INFER_TYPE_BF16, INFER_TYPE_F32, INFER_TYPE_F32, 3, 1, 96, 160,
     INFER_ROPE_HALVES, 64, 0, true, false, false, 0},
};

static int by_size(const void *a, const void *b)
{
    const double *x = a, *y = b;
    return (*x > *y) - (*x < *y);
}

/* The relative error under which an eighth of the rows stay. */
static double best_error(const float *a, const float *b, uint32_t n_vocab)
{
    double errors[LENGTH];
    for (uint32_t r = 0; r < LENGTH; r++)
        errors[r] = relative_error(a + (size_t)r * n_vocab, b + (size_t)r * n_vocab, n_vocab);
    qsort(errors, LENGTH, sizeof errors[0], by_size);
    return errors[LENGTH / 8];
}

/* Both sides round the same numbers with the same code (ref/cache.c), so a cached number differs
 * only where float32 noise, 1e-6 of it, crosses the middle between two codes: with steps of 1/127
 * (1/15) of the range that is one number in some thousands (some ten thousands), by one step. A
 * query is off by 2^-15 of its largest number. Both stay under 2e-3 of the logits, far below
 * what the rounding itself does to them, which is checked to be there: 1e-3 and more.
 *
 * Noise can also turn the choice between two scales of a Q4_0 block that are equally good: then
 * all its 32 numbers have another error of the same size. One such block in the first layer (row 9
 * of the model with a window has it) moves all rows that see it, and their own codes of the second
 * layer with them, by a part of what the rounding itself does: at most a third. The rows that do
 * not see it stay under 2e-3, and an eighth of all must. */
static void check_cache(const char *options, size_t r, size_t i)
{
    const struct recipe *recipe = &small_recipes[r];
    const uint32_t k = caches[i].k, v = caches[i].v;
    static const uint32_t ones[] = {1, 0}, uneven[] = {7, 16, 33, 2, 3, 5, 0};
    struct loaded cpu;
    struct model m;
    uint32_t pages[PAGES_MAX];
    int32_t tokens[LENGTH];
    make_model(&m, recipe);
    size_t n = (size_t)LENGTH * m.shape.n_vocab, bytes = n * sizeof(float);
    float *got = malloc(bytes), *other = malloc(bytes);
    assert_true(got && other);
    draw_tokens(tokens, LENGTH, m.shape.n_vocab);
    shuffled_pages(pages);
    keep(INFER_TYPE_F16, INFER_TYPE_F16);
    assert_int_equal(open_backend(&cpu, "cpu", options), 0);
    load(&cpu, &m);
    run_batch(&cpu, &(struct part){0, LENGTH, tokens, pages, other}, 1);
    unload(&cpu);

    keep(k, v);
    const float *want = ref_logits((uint32_t)(r * N_CACHES + i), &m, tokens, pages);
    assert_int_equal(open_backend(&cpu, "cpu", options), 0);
    load(&cpu, &m);
    run_batch(&cpu, &(struct part){0, LENGTH, tokens, pages, got}, 1);
    double error = relative_error(got, want, n), rounding = relative_error(other, want, n);
    double best = best_error(got, want, m.shape.n_vocab);
    bool narrow = k == INFER_TYPE_Q4_0 || v == INFER_TYPE_Q4_0;
    print_message("%s, heads of %s, %s %s: %.2g from ref (best rows %.2g), %.2g from f16\n",
                  options, recipe->name, ref_type_name(k), ref_type_name(v), error, best, rounding);
    assert_true(best < 2e-3 && error < (narrow ? rounding / 3 : 2e-3));
    assert_true(rounding > (narrow ? 1e-2 : 1e-3) && rounding < (narrow ? 0.2 : 2e-2));

    run_pieces(&cpu, tokens, pages, ones, other);
    assert_memory_equal(other, got, bytes);
    run_pieces(&cpu, tokens, pages, uneven, other);
    assert_memory_equal(other, got, bytes);
    run_mixed(&cpu, tokens, pages, other);
    assert_memory_equal(other, got, bytes);
    unload(&cpu);
    keep(INFER_TYPE_F16, INFER_TYPE_F16);
    free_model(&m);
    free(got);
    free(other);
}

static void test_caches(void **state)
{
    const char *options = *state;
    level_or_skip(options);
    bool slow = strstr(options, "scalar");
    for (size_t r = 0; r < sizeof small_recipes / sizeof small_recipes[0]; r++)
        for (size_t i = 0; i < (slow || r ? 2 : N_CACHES); i++)
            check_cache(options, r, i);
}

/* A page copied, read and written back carries the sequence; a zeroed one does not. */
static void check_pages(uint32_t type)
{
    struct loaded l;
    struct model m;
    uint32_t pages[PAGES_MAX], moved[3] = {40, 41, 42};
    int32_t tokens[48];
    struct infer_estimate e;
    keep(type, type);
    make_model(&m, &recipes[0]);
    size_t row = m.shape.n_vocab;
    float *want = malloc(row * sizeof *want), *got = malloc(row * sizeof *got);
    draw_tokens(tokens, 48, m.shape.n_vocab);
    for (uint32_t i = 0; i < PAGES_MAX; i++)
        pages[i] = i;
    assert_int_equal(open_backend(&l, "cpu", ""), 0);
    load(&l, &m);
    assert_int_equal(l.api->estimate(l.backend, &m.plan, &state_config, &e), 0);
    uint8_t *bytes = malloc(e.page_bytes);
    assert_true(want && got && bytes);
    run_batch(&l, &(struct part){0, 47, tokens, pages, NULL}, 1);
    assert_int_equal(l.api->page_copy(l.model, 40, 0), 0);
    assert_int_equal(l.api->page_read(l.model, 1, bytes), 0);
    assert_int_equal(l.api->page_write(l.model, 41, bytes), 0);
    assert_int_equal(l.api->page_copy(l.model, 42, 2), 0);
    run_batch(&l, &(struct part){47, 1, tokens + 47, pages, want}, 1);
    run_batch(&l, &(struct part){47, 1, tokens + 47, moved, got}, 1);
    assert_memory_equal(got, want, row * sizeof *want);
    assert_int_equal(l.api->page_zero(l.model, 41), 0);
    run_batch(&l, &(struct part){47, 1, tokens + 47, moved, got}, 1);
    assert_memory_not_equal(got, want, row * sizeof *want);
    assert_int_equal(l.api->page_zero(l.model, PAGES_MAX), -EINVAL);
    unload(&l);
    keep(INFER_TYPE_F16, INFER_TYPE_F16);
    free_model(&m);
    free(want);
    free(got);
    free(bytes);
}

static void test_pages(void **state)
{
    check_pages(INFER_TYPE_F16);
    check_pages(INFER_TYPE_Q8_0);
    check_pages(INFER_TYPE_Q4_0);
}

/* 16, 8.5 and 5 bits a number (Q4_0: 4.5 for keys, 5.5 for values); a head's keys, and its values,
 * are padded to 64 bytes. */
static void test_page_sizes(void **state)
{
    static const struct {
        uint32_t type, k_bits, v_bits; /* of two numbers */
    } kinds[] = {{INFER_TYPE_F16, 32, 32}, {INFER_TYPE_Q8_0, 17, 17}, {INFER_TYPE_Q4_0, 9, 11}};
    struct loaded l;
    struct model m;
    make_model(&m, &recipes[0]);
    assert_int_equal(open_backend(&l, "cpu", ""), 0);
    for (size_t i = 0; i < 3; i++) {
        struct infer_estimate e;
        keep(kinds[i].type, kinds[i].type);
        assert_int_equal(l.api->estimate(l.backend, &m.plan, &state_config, &e), 0);
        uint64_t keys = 16 * 64 * kinds[i].k_bits / 2 / 8, values = keys * kinds[i].v_bits;
        values /= kinds[i].k_bits; /* bytes */
        assert_int_equal(e.page_bytes, 2 * 2 * ((keys + 63) / 64 * 64 + (values + 63) / 64 * 64));
    }
    m.plan.shape.head_dim = 40;
    struct infer_estimate e;
    assert_true(l.api->estimate(l.backend, &m.plan, &state_config, &e) < 0);
    keep(INFER_TYPE_F16, INFER_TYPE_F16);
    free_model(&m);
    l.api->close(l.backend);
    dlclose(l.so);
}

int main(void)
{
    struct CMUnitTest tests[N_LEVELS + 2];
    static char names[N_LEVELS][64];
    size_t n = 0;
    for (; n < N_LEVELS; n++) {
        snprintf(names[n], sizeof names[n], "caches %s", levels[n]);
        tests[n] = (struct CMUnitTest){
            .name = names[n], .test_func = test_caches, .initial_state = (void *)levels[n]};
    }
    tests[n++] = (struct CMUnitTest)cmocka_unit_test(test_pages);
    tests[n++] = (struct CMUnitTest)cmocka_unit_test(test_page_sizes);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
