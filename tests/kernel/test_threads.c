/* test_threads.c: backend.h's word on threads: one model is opened, filled and closed on a thread
 * of its own while another one steps, and both compute what they compute alone; each thread hears
 * of its own failures. */
#include "cpu_rig.h"

#include <pthread.h>

enum { N_ROWS = 24, N_LOADS = 6 };

static const uint32_t pages_of[PAGES_MAX] = {3, 1, 2};

/* Nothing in it asserts: it runs beside the test's thread. */
struct loader {
    struct loaded *l; /* its backend; the model is the other one */
    const struct model *m;
    struct infer_backend_model *loaded; /* the last one */
    int failed;
    _Atomic bool over;
};

static int fill(const struct loader *w, struct infer_backend_model *model)
{
    for (uint32_t i = 0; i < w->m->plan.n_tensors; i++) {
        const struct infer_tensor *t = &w->m->tensors[i];
        for (uint64_t row = 0, n; row < t->n_rows; row += n) {
            n = t->n_rows - row < 50 ? t->n_rows - row : 50;
            int rc = w->l->api->tensor_write(model, i, row, n, w->m->data[i] + t->row_bytes * row);
            if (rc < 0)
                return rc;
        }
    }
    return w->l->api->model_ready(model);
}

/* A plan that no backend takes; the reason must be this thread's. */
static int refuse(const struct loader *w)
{
    struct infer_plan wrong = w->m->plan;
    struct infer_estimate e;
    struct infer_op ops[24];
    memcpy(ops, wrong.ops, wrong.n_ops * sizeof ops[0]);
    ops[0].kind = 99;
    wrong.ops = ops;
    if (w->l->api->estimate(w->l->backend, &wrong, &state_config, &e) >= 0)
        return -1;
    return strstr(w->l->api->last_error(w->l->backend), "99") != NULL ? 0 : -1;
}

static void *load_again_and_again(void *arg)
{
    struct loader *w = arg;
    for (int i = 0; i < N_LOADS && w->failed == 0; i++) {
        if (w->loaded != NULL)
            w->l->api->model_close(w->loaded);
        w->loaded = NULL;
        w->failed = w->l->api->model_open(w->l->backend, &w->m->plan, &state_config, &w->loaded);
        if (w->failed == 0)
            w->failed = fill(w, w->loaded);
        if (w->failed == 0)
            w->failed = refuse(w);
    }
    w->over = true;
    return NULL;
}

static float *compute(struct loaded *l, const int32_t *tokens)
{
    float *logits = malloc(sizeof *logits * N_ROWS * l->of->shape.n_vocab);
    assert_non_null(logits);
    run_batch(l, &(struct part){0, N_ROWS, tokens, pages_of, logits}, 1);
    return logits;
}

static void assert_same(struct loaded *l, const int32_t *tokens, const float *want)
{
    float *got = compute(l, tokens);
    assert_memory_equal(got, want, sizeof *got * N_ROWS * l->of->shape.n_vocab);
    free(got);
}

static void one_loads_while_another_steps(void **state)
{
    const char *name = *state;
    struct loaded l, alone;
    struct model a, b;
    int32_t tokens[N_ROWS];
    make_model(&a, &recipes[0]);
    make_model(&b, &recipes[1]);
    draw_tokens(tokens, N_ROWS,
                a.shape.n_vocab < b.shape.n_vocab ? a.shape.n_vocab : b.shape.n_vocab);
    assert_int_equal(open_backend(&alone, name, ""), 0);
    load(&alone, &b);
    float *want_b = compute(&alone, tokens);
    unload(&alone);

    assert_int_equal(open_backend(&l, name, ""), 0);
    load(&l, &a);
    float *want_a = compute(&l, tokens);
    struct loader w = {.l = &l, .m = &b};
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, load_again_and_again, &w), 0);
    unsigned n_steps = 0;
    while (!w.over || n_steps == 0) {
        assert_same(&l, tokens, want_a);
        assert_int_equal(l.api->page_zero(l.model, state_config.n_pages), -EINVAL);
        assert_null(strstr(l.api->last_error(l.backend), "99"));
        n_steps++;
    }
    pthread_join(thread, NULL);
    print_message("%s: %u steps beside %u loads\n", name, n_steps, N_LOADS);
    assert_int_equal(w.failed, 0);
    struct infer_backend_model *first = l.model;
    l.model = w.loaded;
    l.of = &b;
    assert_same(&l, tokens, want_b);
    l.api->model_close(l.model);
    l.model = first;
    unload(&l);
    free(want_a);
    free(want_b);
    free_model(&a);
    free_model(&b);
}

int main(void)
{
    static char cpu[] = "cpu", ref[] = "ref";
    const struct CMUnitTest tests[] = {
        {"cpu", one_loads_while_another_steps, NULL, NULL, cpu},
        {"ref", one_loads_while_another_steps, NULL, NULL, ref},
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
