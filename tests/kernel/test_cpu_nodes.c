/* test_cpu_nodes.c: the CPU backend on machines of several NUMA nodes, which need not be there: the
 * backend believes its host. What a node gets is bound to it, once, and nothing of it changes a
 * result by a bit. */
#include "kernel/cpu_rig.h"

#define N_TOKENS   40u
#define PLACES_MAX 64u

struct place {
    const uint8_t *memory;
    size_t bytes;
    uint32_t node;
};

static struct place places[PLACES_MAX];
static uint32_t n_places;

static int on_place(void *ctx, void *memory, size_t bytes, uint32_t node)
{
    (void)ctx;
    assert_true(n_places < PLACES_MAX);
    places[n_places++] = (struct place){memory, bytes, node};
    return n_places % 2 ? 0 : -EPERM; /* a preference: what comes of it changes nothing */
}

static void on_machine(const uint32_t *nodes, uint32_t n_cpus, uint32_t n_nodes)
{
    machine.n_cpus = n_cpus;
    machine.nodes = nodes;
    machine.n_nodes = n_nodes;
    machine.memory_place = nodes != NULL ? on_place : NULL;
    n_places = 0;
}

static int restore(void **state)
{
    (void)state;
    on_machine(NULL, 2, 0);
    return 0;
}

/* All rows at once, then the last eight one by one: the many-rows and the few-rows way. */
static void logits_of(const struct model *m, const int32_t *tokens, float *ret)
{
    static const uint32_t pages[PAGES_MAX] = {4, 1, 3};
    const uint32_t n = m->shape.n_vocab, first = N_TOKENS - 8;
    struct loaded l;
    assert_int_equal(open_backend(&l, "cpu", ""), 0);
    load(&l, m);
    run_batch(&l, &(struct part){0, first, tokens, pages, ret}, 1);
    for (uint32_t i = first; i < N_TOKENS; i++)
        run_batch(&l, &(struct part){i, 1, tokens + i, pages, ret + (size_t)i * n}, 1);
    unload(&l);
}

/* ---- results --------------------------------------------------------------------------------- */

static const uint32_t one_each[] = {0, 1}, turns[] = {0, 1, 0, 1}, uneven[] = {0, 0, 0, 1, 2},
                      lonely[] = {0, 0, 2, 2}, eight[] = {0, 1, 2, 3, 4, 5, 6, 7};

static const struct {
    const uint32_t *nodes;
    uint32_t n_cpus, n_nodes;
} machines[] = {
    {one_each, 2, 2}, {turns, 4, 2}, {uneven, 5, 3}, {lonely, 4, 3}, /* node 1 has no worker */
    {eight, 8, 8},
};

static void same_bits_on_every_machine(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_RECIPES; i++) {
        struct model m;
        int32_t tokens[N_TOKENS];
        make_model(&m, &recipes[i]);
        draw_tokens(tokens, N_TOKENS, m.shape.n_vocab);
        size_t n = (size_t)N_TOKENS * m.shape.n_vocab;
        float *want = malloc(n * sizeof *want), *got = malloc(n * sizeof *got);
        assert_true(want && got);
        on_machine(NULL, 2, 0);
        logits_of(&m, tokens, want);
        assert_true(isfinite(want[n - 1]) && want[n - 1] != 0);
        for (size_t k = 0; k < sizeof machines / sizeof machines[0]; k++) {
            on_machine(machines[k].nodes, machines[k].n_cpus, machines[k].n_nodes);
            memset(got, 0, n * sizeof *got);
            logits_of(&m, tokens, got);
            assert_memory_equal(got, want, n * sizeof *got);
        }
        free_model(&m);
        free(want);
        free(got);
    }
}

/* More nodes than are told apart count as one. */
static void very_many_nodes_are_one(void **state)
{
    (void)state;
    struct model m;
    int32_t tokens[N_TOKENS];
    make_model(&m, &recipes[0]);
    draw_tokens(tokens, N_TOKENS, m.shape.n_vocab);
    size_t n = (size_t)N_TOKENS * m.shape.n_vocab;
    float *want = malloc(n * sizeof *want), *got = malloc(n * sizeof *got);
    assert_true(want && got);
    on_machine(NULL, 2, 0);
    logits_of(&m, tokens, want);
    on_machine(turns, 4, 1000);
    logits_of(&m, tokens, got);
    assert_memory_equal(got, want, n * sizeof *got);
    for (uint32_t i = 0; i < n_places; i++)
        assert_int_equal(places[i].node, INFER_NODE_ALL);
    free_model(&m);
    free(want);
    free(got);
}

/* ---- places ---------------------------------------------------------------------------------- */

static uint64_t bytes_on(uint32_t node)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < n_places; i++)
        sum += places[i].node == node ? places[i].bytes : 0;
    return sum;
}

static void check_apart(void)
{
    for (uint32_t i = 0; i < n_places; i++)
        for (uint32_t k = 0; k < i; k++)
            if (places[i].memory < places[k].memory + places[k].bytes &&
                places[k].memory < places[i].memory + places[i].bytes)
                fail_msg("places %u and %u overlap", i, k);
}

/* A matrix of 8 MiB in float32: nodes with three workers and one get six and two of them. */
static void nodes_get_their_workers_share(void **state)
{
    (void)state;
    static const uint32_t nodes[] = {0, 0, 0, 1};
    const uint32_t cols = 1024, rows = 2048;
    static struct model m;
    struct loaded l;
    m.shape = (struct infer_shape){.n_embd = cols,
                                   .n_vocab = rows,
                                   .n_heads = 1,
                                   .n_kv_heads = 1,
                                   .head_dim = 32,
                                   .head_dim_v = 32,
                                   .n_context = 64,
                                   .norm_eps = 1e-5f};
    add_tensor(&m, 0, INFER_TYPE_F32, cols, 1, 1);
    add_tensor(&m, 1, INFER_TYPE_F32, cols, rows, 0);
    m.ops[0] = (struct infer_op){.kind = INFER_OP_EMBED, .as.embed = {1, 1.0f}};
    m.ops[1] = (struct infer_op){.kind = INFER_OP_HEAD, .norm = 0, .as.head = {1, 1.0f}};
    finish_plan(&m, 2);
    on_machine(nodes, 4, 2);
    assert_int_equal(open_backend(&l, "cpu", ""), 0);
    load(&l, &m);
    check_apart();
    const uint64_t matrix = 4ull * cols * rows;
    assert_in_range(bytes_on(0), matrix * 3 / 4, matrix * 3 / 4 + INFER_PLACE_BYTES);
    assert_in_range(bytes_on(1), matrix / 4, matrix / 4 + INFER_PLACE_BYTES);
    for (uint32_t i = 0; i < n_places; i++)
        if (places[i].node != INFER_NODE_ALL) {
            assert_int_equal((uintptr_t)places[i].memory % INFER_PLACE_BYTES, 0);
            assert_int_equal(places[i].bytes % INFER_PLACE_BYTES, 0);
        }
    unload(&l);
    free_model(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(same_bits_on_every_machine, restore),
        cmocka_unit_test_teardown(very_many_nodes_are_one, restore),
        cmocka_unit_test_teardown(nodes_get_their_workers_share, restore),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
