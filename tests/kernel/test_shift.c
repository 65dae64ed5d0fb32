/* test_shift.c: pages whose rows move to other positions: the keys themselves beside a rotation in
 * double precision, and what a sequence that slides computes, on the reference and the CPU backend.
 */
#include "kernel/cpu_rig.h"

#include "ref/cache.h"

#define PAGE 16u

static uint64_t page_bytes_of(const struct loaded *l)
{
    struct infer_estimate e;
    assert_int_equal(l->api->estimate(l->backend, &l->of->plan, &state_config, &e), 0);
    return e.page_bytes;
}

/* ---- the keys themselves --------------------------------------------------------------------- */

/* Number d of a key that has turned by delta positions, in double. */
static double turned(const struct model *m, const float *key, uint32_t d, int32_t delta)
{
    const struct infer_rope *rope = &m->plan.rope;
    const uint32_t half = rope->n_dims / 2;
    if (d >= rope->n_dims)
        return (double)key[d];
    bool pairs = rope->style == INFER_ROPE_PAIRS;
    uint32_t p = pairs ? d / 2 : d % half;
    double angle = (double)delta * (double)rope->inv_freq[p];
    double a = (double)key[pairs ? 2 * p : p], b = (double)key[pairs ? 2 * p + 1 : p + half];
    bool first = pairs ? d % 2 == 0 : d < half;
    return first ? a * cos(angle) - b * sin(angle) : a * sin(angle) + b * cos(angle);
}

/* A head's cached key, its rotation undone. */
static void read_key(const uint8_t *bytes, uint32_t dim, float *ret)
{
    ref_cache_decode(state_config.k_type, REF_KEY, bytes, ret, dim);
    if (ref_cache_rotates(state_config.k_type))
        ref_cache_rotate(ret, dim);
}

/* Relative error of a page's keys after a shift, beside the ones before, turned. The reference's
 * page is [layer][16 rows of keys | 16 rows of values]; the values must be the same bytes. */
static double keys_error(const struct model *m, const uint8_t *before, const uint8_t *after,
                         int32_t delta)
{
    const struct infer_shape *s = &m->shape;
    const size_t head = ref_cache_bytes(state_config.k_type, REF_KEY, s->head_dim);
    const size_t keys = PAGE * s->n_kv_heads * head;
    const size_t values =
        PAGE * s->n_kv_heads * ref_cache_bytes(state_config.v_type, REF_VALUE, s->head_dim_v);
    double error = 0, power = 0;
    for (uint32_t l = 0; l < s->n_layers; l++) {
        const uint8_t *b = before + l * (keys + values), *a = after + l * (keys + values);
        assert_memory_equal(b + keys, a + keys, values);
        for (uint32_t i = 0; i < PAGE * s->n_kv_heads; i++) {
            float old[96], new[96];
            read_key(b + i * head, s->head_dim, old);
            read_key(a + i * head, s->head_dim, new);
            for (uint32_t d = 0; d < s->head_dim; d++) {
                double want = turned(m, old, d, delta);
                error += ((double)new[d] - want) * ((double)new[d] - want);
                power += want * want;
            }
        }
    }
    return sqrt(error / power);
}

/* What rounding a key once more may cost, relative to it: F32 three roundings of 2^-24; F16 at most
 * 2^-11, each number to its own; Q8_0 steps of max / 127 with max about 2.5 deviations, 2.5 / 127 /
 * sqrt(12) = 0.0057; Q4_0 sqrt(0.0055) = 0.074 (ref/cache.c). Random keys are not all normal: half
 * as much again and more. */
static const struct {
    uint32_t type;
    double bound;
} kinds[] = {
    {INFER_TYPE_F32, 3e-7},
    {INFER_TYPE_F16, 0x1p-11},
    {INFER_TYPE_Q8_0, 0.0085},
    {INFER_TYPE_Q4_0, 0.13},
};

static void check_keys(const struct recipe *recipe, uint32_t kind)
{
    static const int32_t deltas[] = {-16, 1, -1000, 131072};
    static const uint32_t pages[] = {3};
    const uint32_t type = kinds[kind].type;
    struct loaded l;
    struct model m;
    int32_t tokens[PAGE];
    keep(type, INFER_TYPE_F16);
    const struct recipe in_f32 = recipe_in(recipe, INFER_TYPE_F32);
    make_model(&m, &in_f32);
    assert_int_equal(open_backend(&l, "ref", ""), 0);
    load(&l, &m);
    size_t bytes = page_bytes_of(&l);
    uint8_t *before = malloc(bytes), *after = malloc(bytes);
    assert_true(before && after);
    draw_tokens(tokens, PAGE, m.shape.n_vocab);
    run_batch(&l, &(struct part){0, PAGE, tokens, pages, NULL}, 1);
    assert_int_equal(l.api->page_read(l.model, 3, before), 0);
    assert_int_equal(l.api->page_shift(l.model, 3, 0), 0);
    assert_int_equal(l.api->page_read(l.model, 3, after), 0);
    assert_memory_equal(before, after, bytes);
    for (size_t i = 0; i < sizeof deltas / sizeof deltas[0]; i++) {
        assert_int_equal(l.api->page_write(l.model, 3, before), 0);
        assert_int_equal(l.api->page_shift(l.model, 3, deltas[i]), 0);
        assert_int_equal(l.api->page_read(l.model, 3, after), 0);
        double error = keys_error(&m, before, after, deltas[i]);
        if (error >= kinds[kind].bound)
            fail_msg("%s, %s by %d: %g", recipe->name, ref_type_name(type), (int)deltas[i], error);
        assert_true(keys_error(&m, before, after, deltas[i] + 1) > 2 * kinds[kind].bound);
        /* And back: two roundings. */
        assert_int_equal(l.api->page_shift(l.model, 3, -deltas[i]), 0);
        assert_int_equal(l.api->page_read(l.model, 3, after), 0);
        assert_true(keys_error(&m, before, after, 0) < 1.5 * kinds[kind].bound);
    }
    assert_int_equal(l.api->page_shift(l.model, PAGES_MAX, 1), -EINVAL);
    unload(&l);
    free_model(&m);
    free(before);
    free(after);
}

static void test_keys(void **state)
{
    for (uint32_t kind = 0; kind < sizeof kinds / sizeof kinds[0]; kind++)
        for (size_t r = 0; r < N_MOVED; r++)
            check_keys(&moved_recipes[r], kind);
    keep(INFER_TYPE_F16, INFER_TYPE_F16);
}

/* ---- sequences ------------------------------------------------------------------------------- */

/* Attention sees differences of positions alone. So 48 rows whose pages are moved by 16 give the
 * row after them the logits that it had without the move, once a window hides what lies before. */
static double moved_error(struct loaded *l, const int32_t *tokens, float *want, float *got)
{
    static const uint32_t pages[] = {5, 6, 7, 8}, moved[] = {20, 5, 6, 7, 9};
    const size_t n = l->of->shape.n_vocab;
    run_batch(l, &(struct part){0, 48, tokens, pages, NULL}, 1);
    run_batch(l, &(struct part){48, 1, tokens + 48, pages, want}, 1);
    for (uint32_t p = 5; p < 8; p++)
        assert_int_equal(l->api->page_shift(l->model, p, 16), 0);
    run_batch(l, &(struct part){64, 1, tokens + 48, moved, got}, 1);
    return relative_error(got, want, n);
}

/* Bounds: one more rounding of the keys does to the logits what the first does (test_cpu_cache.c):
 * half numbers far under 2e-3, 8-bit codes 2e-2, 4-bit codes 0.2. Beside the reference, which turns
 * and rounds the same numbers: a code that falls to the other side here and there. */
static void check_sequences(const char *options, const struct recipe *recipe, uint32_t type)
{
    struct loaded ref, cpu;
    struct model m;
    int32_t tokens[80];
    const double moved = type == INFER_TYPE_Q4_0 ? 0.2 : type == INFER_TYPE_Q8_0 ? 2e-2 : 2e-3;
    const double beside = type == INFER_TYPE_F16 ? 1e-3 : type == INFER_TYPE_Q8_0 ? 2e-3 : 5e-3;
    const struct recipe in_f32 = recipe_in(recipe, INFER_TYPE_F32);
    make_model(&m, &in_f32);
    const size_t n = 16 * (size_t)m.shape.n_vocab;
    float *want = malloc(n * sizeof *want), *got = malloc(n * sizeof *got);
    assert_true(want && got);
    draw_tokens(tokens, 80, m.shape.n_vocab);
    keep(type, INFER_TYPE_F16);
    assert_int_equal(open_backend(&ref, "ref", ""), 0);
    assert_int_equal(open_backend(&cpu, "cpu", options), 0);
    load(&ref, &m);
    load(&cpu, &m);
    uint64_t taken = cpu.taken;
    assert_true(moved_error(&ref, tokens, want, got) < moved);
    double error = moved_error(&cpu, tokens, want, got);
    slide(&ref, tokens, true, want);
    slide(&cpu, tokens, true, got);
    double apart = relative_error(got, want, n);
    slide(&cpu, tokens, false, got);
    double unmoved = relative_error(got, want, n);
    print_message("%s, %s, %s: moved %.2g, slid %.2g from ref, %.2g unless shifted\n", options,
                  recipe->name, ref_type_name(type), error, apart, unmoved);
    assert_true(error < moved && apart < beside && unmoved > 5 * beside);
    assert_int_equal(cpu.taken, taken);
    assert_int_equal(cpu.api->page_shift(cpu.model, PAGES_MAX, 1), -EINVAL);
    unload(&ref);
    unload(&cpu);
    free_model(&m);
    free(want);
    free(got);
}

static void test_sequences(void **state)
{
    const char *options = *state;
    level_or_skip(options);
    for (uint32_t kind = 1; kind < sizeof kinds / sizeof kinds[0]; kind++)
        for (size_t r = 0; r < N_MOVED; r++)
            check_sequences(options, &moved_recipes[r], kinds[kind].type);
    keep(INFER_TYPE_F16, INFER_TYPE_F16);
}

/* delta = 0 leaves the page as it is, bit by bit, also one that is half full. */
static void test_same_page(void **state)
{
    static const uint32_t pages[] = {2};
    for (uint32_t kind = 1; kind < sizeof kinds / sizeof kinds[0]; kind++) {
        struct loaded l;
        struct model m;
        int32_t tokens[PAGE];
        keep(kinds[kind].type, INFER_TYPE_Q8_0);
        const struct recipe in_f32 = recipe_in(&moved_recipes[1], INFER_TYPE_F32);
        make_model(&m, &in_f32);
        assert_int_equal(open_backend(&l, "cpu", ""), 0);
        load(&l, &m);
        size_t bytes = page_bytes_of(&l);
        uint8_t *before = malloc(bytes), *after = malloc(bytes);
        assert_true(before && after);
        draw_tokens(tokens, PAGE, m.shape.n_vocab);
        run_batch(&l, &(struct part){0, 9, tokens, pages, NULL}, 1);
        assert_int_equal(l.api->page_read(l.model, 2, before), 0);
        assert_int_equal(l.api->page_shift(l.model, 2, 0), 0);
        assert_int_equal(l.api->page_read(l.model, 2, after), 0);
        assert_memory_equal(before, after, bytes);
        assert_int_equal(l.api->page_shift(l.model, 2, 5), 0);
        assert_int_equal(l.api->page_read(l.model, 2, after), 0);
        assert_memory_not_equal(before, after, bytes);
        unload(&l);
        free_model(&m);
        free(before);
        free(after);
    }
    keep(INFER_TYPE_F16, INFER_TYPE_F16);
}

int main(void)
{
    struct CMUnitTest tests[N_LEVELS + 2];
    static char names[N_LEVELS][64];
    size_t n = 0;
    for (; n < N_LEVELS; n++) {
        snprintf(names[n], sizeof names[n], "sequences %s", levels[n]);
        tests[n] = (struct CMUnitTest){
            .name = names[n], .test_func = test_sequences, .initial_state = (void *)levels[n]};
    }
    tests[n++] = (struct CMUnitTest)cmocka_unit_test(test_keys);
    tests[n++] = (struct CMUnitTest)cmocka_unit_test(test_same_page);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
