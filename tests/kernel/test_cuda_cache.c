/* test_cuda_cache.c: what the kernels of kernels/cuda put into pages, beside the reference's
 * encoder, and pages copied and moved to other positions.
 *
 * Runs on the processor (tests/support/cuda) or, linked with CUDA's own runtime, on a GPU. */
#include "kernel/cuda_rig.h"

static double difference(const float *a, const float *b, uint32_t n, double *power)
{
    double error = 0;
    for (uint32_t i = 0; i < n; i++) {
        error += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        *power += (double)b[i] * (double)b[i];
    }
    return error;
}

/* What is in a page is what the reference's encoder would have put there, but where the last bit of
 * a rotation or of a sum tips a number over to its neighbour, which may happen to one in a
 * thousand: sqrt(1/1000) of a step, 2^-10 of a number, 2.5 / 127 of a deviation for Q8_0, 0.3 for
 * Q4_0. */
static double content_bound(uint32_t type)
{
    return type == INFER_TYPE_F16 ? 1e-4 : type == INFER_TYPE_Q8_0 ? 6e-4 : 1e-2;
}

static void check_content(const struct shape *shape, size_t type)
{
    static const uint32_t lengths[SEQS_MAX] = {40, 0, 0};
    struct rig r;
    make_rig(&r, shape, types[type].k, types[type].v, lengths);
    struct sequence *s = &r.seqs[0];
    const uint32_t n_k = 40 * shape->n_kv_heads * shape->dim_k;
    const uint32_t n_v = 40 * shape->n_kv_heads * shape->dim_v;
    float *keys = malloc(n_k * sizeof(float)), *values = malloc(n_v * sizeof(float));
    double power = 0, k_error, v_error;
    run_alone(&r, 0, 40, 132);
    read_pages(&r, s, 0);
    encode_rows(&r, s, keys, values);
    k_error = difference(s->key, keys, n_k, &power);
    k_error = sqrt(k_error / power);
    power = 0;
    v_error = difference(s->value, values, n_v, &power);
    v_error = sqrt(v_error / power);
    if (!(k_error < content_bound(types[type].k) && v_error < content_bound(types[type].v)))
        fail_msg("%s, types %u and %u: keys %g, values %g", shape->name, (unsigned)types[type].k,
                 (unsigned)types[type].v, k_error, v_error);
    free(keys);
    free(values);
    free_rig(&r);
}

static void test_content(void **state)
{
    for (size_t t = 0; t < N_TYPES; t++)
        for (size_t i = 0; i < N_SHAPES; i++)
            if (fits(&shapes[i], t))
                check_content(&shapes[i], t);
}

/* Of test_shift.c: what rounding once more may cost. */
static double shift_bound(uint32_t type)
{
    return type == INFER_TYPE_F16 ? 0x1p-11 : type == INFER_TYPE_Q8_0 ? 0.0085 : 0.13;
}

static void check_shift(const struct shape *shape, size_t type)
{
    static const uint32_t lengths[SEQS_MAX] = {16, 0, 0};
    static const int32_t deltas[] = {-16, 1, -1000, 131072, INT32_MIN};
    struct rig r;
    make_rig(&r, shape, types[type].k, types[type].v, lengths);
    run_alone(&r, 0, 16, 132);
    const uint32_t page = page_of(0, 0);
    const size_t head_bytes = r.cache.head_bytes, key_bytes = r.cache.key_bytes;
    uint8_t *before = page_bytes(&r, page);
    for (size_t i = 0; i < sizeof deltas / sizeof deltas[0]; i++) {
        float cosine[DIM_MAX / 2], sine[DIM_MAX / 2], want[DIM_MAX], got[DIM_MAX];
        double error = 0, power = 0;
        to_device(r.cache.pages + page * r.cache.page_bytes, before, r.cache.page_bytes);
        must(cuda_cache_shift(&r.cache, page, deltas[i], r.rope.style, r.rope.n_dims, r.d_inv_freq,
                              NULL));
        must(cudaStreamSynchronize(NULL));
        uint8_t *after = page_bytes(&r, page);
        ref_rope_delta(&r.rope, deltas[i], cosine, sine);
        for (uint32_t n = 0; n < shape->n_kv_heads * PAGE; n++) {
            read_cached(&r, before, LAYER, n / PAGE, n % PAGE, REF_KEY, want);
            ref_rope_turn(&r.rope, cosine, sine, want);
            read_cached(&r, after, LAYER, n / PAGE, n % PAGE, REF_KEY, got);
            error += difference(got, want, shape->dim_k, &power);
        }
        for (uint32_t n = 0; n < LAYERS * shape->n_kv_heads; n++)
            assert_memory_equal(before + n * head_bytes + key_bytes,
                                after + n * head_bytes + key_bytes, head_bytes - key_bytes);
        if (!(sqrt(error / power) < shift_bound(types[type].k)))
            fail_msg("%s, type %u by %d: %g", shape->name, (unsigned)types[type].k, (int)deltas[i],
                     sqrt(error / power));
        free(after);
    }
    free(before);
    free_rig(&r);
}

static void test_shift(void **state)
{
    for (size_t t = 0; t < 3; t++)
        for (size_t i = 0; i < N_SHAPES; i++)
            if (fits(&shapes[i], t))
                check_shift(&shapes[i], t);
}

static void test_copy(void **state)
{
    static const uint32_t lengths[SEQS_MAX] = {20, 0, 0};
    struct rig r;
    make_rig(&r, &shapes[0], INFER_TYPE_F16, INFER_TYPE_F16, lengths);
    run_alone(&r, 0, 20, 132);
    uint8_t *from = page_bytes(&r, page_of(0, 0)), *other = page_bytes(&r, page_of(0, 1));
    must(cuda_cache_copy(&r.cache, page_of(2, 3), page_of(0, 0), NULL));
    must(cudaStreamSynchronize(NULL));
    uint8_t *to = page_bytes(&r, page_of(2, 3)), *still = page_bytes(&r, page_of(0, 1));
    assert_memory_equal(from, to, r.cache.page_bytes);
    assert_memory_equal(other, still, r.cache.page_bytes);
    free(from), free(other), free(to), free(still);
    free_rig(&r);
}

static void test_refused(void **state)
{
    struct cuda_cache c;
    struct infer_shape model = model_of(&shapes[5]);
    struct infer_state_config s = state_of(INFER_TYPE_Q8_0, INFER_TYPE_F16);
    assert_int_equal(cuda_cache_init(&c, &model, &s), -ENOTSUP);
    s = state_of(INFER_TYPE_F16, INFER_TYPE_Q4_0);
    assert_int_equal(cuda_cache_init(&c, &model, &s), -ENOTSUP);
    s = state_of(INFER_TYPE_F32, INFER_TYPE_F32);
    model = model_of(&shapes[0]);
    assert_int_equal(cuda_cache_init(&c, &model, &s), -ENOTSUP);
    s = state_of(INFER_TYPE_F16, INFER_TYPE_F16);
    s.page_tokens = 32;
    assert_int_equal(cuda_cache_init(&c, &model, &s), -ENOTSUP);
    s.page_tokens = 16;
    model.head_dim = 257;
    assert_int_equal(cuda_cache_init(&c, &model, &s), -ENOTSUP);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_content),
        cmocka_unit_test(test_shift),
        cmocka_unit_test(test_copy),
        cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
