/* test_cut.c: a plan and its two parts: the same operations in order, with their own layers and
 * their own tensors. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "model/cut.h"
#include "model/plan.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *root(void)
{
    const char *root = getenv("INFERD_ROOT");
    return root != NULL ? root : ".";
}

static struct plan *plan_of(const char *path)
{
    struct gguf *g = NULL;
    struct plan *p = NULL;
    struct report report = {0};
    if (gguf_open(path, &g, &report) < 0 || plan_new(g, &p, &report) < 0)
        fail_msg("%s", report.text);
    gguf_free(g);
    return p;
}

/* The part's operation is the plan's, but for its layer and the numbers of its tensors. */
static void check_op(const struct infer_plan *plan, const struct infer_op *of_plan,
                     const struct plan_part *part, const struct infer_op *of_part, uint32_t first)
{
    struct infer_op a = *of_plan, b = *of_part;
    uint32_t *in_plan[PLAN_OP_TENSORS], *in_part[PLAN_OP_TENSORS];
    uint32_t n = plan_op_tensors(&a, in_plan);
    assert_int_equal(plan_op_tensors(&b, in_part), n);
    for (uint32_t i = 0; i < n; i++) {
        if (*in_plan[i] == INFER_TENSOR_NONE) {
            assert_int_equal(*in_part[i], INFER_TENSOR_NONE);
            continue;
        }
        assert_true(*in_part[i] < part->backend.n_tensors);
        assert_int_equal(part->tensor_of[*in_plan[i]], *in_part[i]);
        assert_memory_equal(&part->backend.tensors[*in_part[i]], &plan->tensors[*in_plan[i]],
                            sizeof *plan->tensors);
        *in_part[i] = *in_plan[i];
    }
    if (a.kind != INFER_OP_EMBED && a.kind != INFER_OP_HEAD)
        b.layer += first;
    assert_memory_equal(&a, &b, sizeof a);
}

/* Tensors in the plan's order, each of them used. */
static void check_tensors(const struct infer_plan *plan, const struct plan_part *part)
{
    uint32_t n = 0, *named[PLAN_OP_TENSORS];
    bool *used = calloc(part->backend.n_tensors, sizeof *used);
    assert_non_null(used);
    for (uint32_t i = 0; i < plan->n_tensors; i++)
        if (part->tensor_of[i] != INFER_TENSOR_NONE)
            assert_int_equal(part->tensor_of[i], n++);
    assert_int_equal(n, part->backend.n_tensors);
    for (uint32_t i = 0; i < part->backend.n_ops; i++) {
        struct infer_op op = part->backend.ops[i];
        for (uint32_t k = plan_op_tensors(&op, named); k > 0; k--)
            if (*named[k - 1] != INFER_TENSOR_NONE)
                used[*named[k - 1]] = true;
    }
    for (uint32_t i = 0; i < n; i++)
        assert_true(used[i]);
    free(used);
}

static void check_cut(const struct infer_plan *plan, uint32_t n_first)
{
    struct plan_part part[2];
    uint32_t at = 0, n_layers = plan->shape.n_layers;
    assert_int_equal(plan_cut(plan, n_first, part), 0);
    for (uint32_t p = 0; p < 2; p++) {
        const struct infer_plan *own = &part[p].backend;
        uint32_t first = p == 0 ? 0 : n_first;
        assert_int_equal(own->shape.n_layers, p == 0 ? n_first : n_layers - n_first);
        assert_int_equal(own->shape.n_embd, plan->shape.n_embd);
        assert_ptr_equal(own->rope.inv_freq, plan->rope.inv_freq);
        for (uint32_t i = 0; i < own->n_ops; i++, at++) {
            check_op(plan, &plan->ops[at], &part[p], &own->ops[i], first);
            if (own->ops[i].kind == INFER_OP_QKV)
                assert_true(own->ops[i].layer < own->shape.n_layers);
        }
        check_tensors(plan, &part[p]);
    }
    assert_int_equal(at, plan->n_ops);
    assert_int_equal(part[0].backend.ops[0].kind, INFER_OP_EMBED);
    assert_int_equal(part[1].backend.ops[0].kind, INFER_OP_QKV);
    assert_int_equal(part[0].backend.ops[part[0].backend.n_ops - 1].kind, INFER_OP_PROJECT);
    assert_int_equal(part[1].backend.ops[part[1].backend.n_ops - 1].kind, INFER_OP_HEAD);
    for (uint32_t i = 0; i < plan->n_tensors; i++)
        assert_true(part[0].tensor_of[i] != INFER_TENSOR_NONE ||
                    part[1].tensor_of[i] != INFER_TENSOR_NONE);
    plan_part_done(&part[0]);
    plan_part_done(&part[1]);
}

static void every_layer_of_every_model(void **state)
{
    (void)state;
    static const char *const names[] = {"llama", "llama3", "mistral", "qwen2", "qwen3"};
    char path[512];
    uint32_t n = 0;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        snprintf(path, sizeof path, "%s/tests/data/arch/%s/model.gguf", root(), names[i]);
        struct plan *p = plan_of(path);
        for (uint32_t k = 1; k < p->backend.shape.n_layers; k++, n++)
            check_cut(&p->backend, k);
        plan_free(p);
    }
    assert_true(n > 0);
}

/* The table that EMBED reads and HEAD multiplies with is needed at both ends. */
static void a_tied_table_is_in_both_parts(void **state)
{
    (void)state;
    char path[512];
    snprintf(path, sizeof path, "%s/models/unix-46m-Q6_K.gguf", root());
    struct plan *p = plan_of(path);
    const struct infer_plan *b = &p->backend;
    struct plan_part part[2];
    uint32_t table = b->ops[0].as.embed.table;
    bool tied = b->ops[b->n_ops - 1].as.head.w == table;
    assert_true(b->shape.n_layers > 2);
    for (uint32_t k = 1; k < b->shape.n_layers; k++)
        check_cut(b, k);
    assert_int_equal(plan_cut(b, 2, part), 0);
    assert_int_not_equal(part[0].tensor_of[table], INFER_TENSOR_NONE);
    assert_int_equal(part[1].tensor_of[table] != INFER_TENSOR_NONE, tied);
    plan_part_done(&part[0]);
    plan_part_done(&part[1]);
    plan_free(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_layer_of_every_model),
        cmocka_unit_test(a_tied_table_is_in_both_parts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
