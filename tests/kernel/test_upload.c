/* test_upload.c: rows on their way to a device that copies them by itself, from memory of the
 * caller's that is written again as soon as it may be: the model is the one that was loaded with
 * every row read before the call returned.
 *
 * By default on inferd-backend-cuda-emulated.so, where a copy happens as late as it can
 * (tests/support/cuda); INFERD_TEST_CUDA=1 takes inferd-backend-cuda.so and this machine's GPU. */
#include "kernel/cpu_rig.h"

#define ROWS 24u

static void must_open(struct loaded *l)
{
    const char *real = getenv("INFERD_TEST_CUDA");
    int r = open_backend(l, real && strcmp(real, "1") == 0 ? "cuda" : "cuda-emulated", "");
    if (r < 0)
        fail_msg("the backend does not open: %d", r);
}

/* Logits of some rows. */
static void run_rows(struct loaded *l, float *ret)
{
    static uint32_t pages[PAGES_MAX];
    int32_t tokens[ROWS];
    for (uint32_t i = 0; i < PAGES_MAX; i++)
        pages[i] = i;
    for (uint32_t i = 0; i < ROWS; i++)
        tokens[i] = (int32_t)(7 * i % l->of->shape.n_vocab);
    run_batch(l, &(struct part){0, ROWS, tokens, pages, ret}, 1);
}

/* Rows that the device copies by itself from a pinned range, which is written again as soon as it
 * may be: piece i lies in its half i % 2. Every third lies elsewhere, as rows that two reads share
 * do, and is gone when the call returns. */
static void load_from_pinned(struct loaded *l, const struct model *m, uint8_t *range, size_t half)
{
    const struct infer_backend_api *api = l->api;
    uint64_t calls = 0, last[2] = {0, 0};
    l->of = m;
    assert_int_equal(api->model_open(l->backend, &m->plan, &state_config, &l->model), 0);
    assert_int_equal(api->rows_pin(l->model, range, 2 * half), 0);
    assert_int_equal(api->rows_pin(l->model, range, half), -EBUSY);
    for (uint32_t i = 0; i < m->plan.n_tensors; i++) {
        const struct infer_tensor *t = &m->tensors[i];
        for (uint64_t row = 0, n; row < t->n_rows; row += n) {
            uint8_t *at = range + half * (calls % 2), elsewhere[4096];
            n = half / t->row_bytes < t->n_rows - row ? half / t->row_bytes : t->n_rows - row;
            assert_int_equal(api->rows_wait(l->model, last[calls % 2]), 0);
            memset(at, 0xff, half);
            if (calls % 3 == 2 && t->row_bytes <= sizeof elsewhere) {
                n = 1;
                at = elsewhere;
            }
            memcpy(at, m->data[i] + t->row_bytes * row, n * t->row_bytes);
            assert_int_equal(api->tensor_write(l->model, i, row, n, at), 0);
            memset(elsewhere, 0xff, sizeof elsewhere);
            calls++;
            last[(calls - 1) % 2] = calls;
        }
    }
    api->rows_unpin(l->model);
    memset(range, 0xff, 2 * half);
    api->rows_unpin(l->model); /* of nothing */
    assert_int_equal(api->model_ready(l->model), 0);
}

/* Of a half-precision type, and of one that is laid out anew. */
static void test_pinned_rows(void **state)
{
    static const size_t chosen[] = {0, 6};
    const size_t half = 16384;
    uint8_t *range = aligned_alloc(4096, 2 * half);
    assert_non_null(range);
    for (size_t i = 0; i < 2; i++) {
        struct model m;
        struct loaded l;
        make_model(&m, &recipes[chosen[i]]);
        size_t bytes = (size_t)ROWS * m.shape.n_vocab * sizeof(float);
        float *want = malloc(bytes), *got = malloc(bytes);
        must_open(&l);
        load(&l, &m);
        run_rows(&l, want);
        l.api->model_close(l.model);
        load_from_pinned(&l, &m, range, half);
        run_rows(&l, got);
        assert_memory_equal(got, want, bytes);
        unload(&l);
        free_model(&m);
        free(want);
        free(got);
    }
    free(range);
}

/* What has not been unpinned is when the model is closed. */
static void test_a_load_that_is_given_up(void **state)
{
    struct model m;
    struct loaded l;
    uint8_t *range = aligned_alloc(4096, 8192);
    make_model(&m, &recipes[0]);
    must_open(&l);
    for (int i = 0; i < 2; i++) { /* the range can be pinned again */
        assert_int_equal(l.api->model_open(l.backend, &m.plan, &state_config, &l.model), 0);
        assert_int_equal(l.api->rows_pin(l.model, range, 8192), 0);
        memcpy(range, m.data[0], m.tensors[0].row_bytes);
        assert_int_equal(l.api->tensor_write(l.model, 0, 0, 1, range), 0);
        if (i == 0)
            l.api->model_close(l.model);
    }
    unload(&l);
    free_model(&m);
    free(range);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pinned_rows),
        cmocka_unit_test(test_a_load_that_is_given_up),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
