/* test_mixed.c: requests that run in mixed batches draw the tokens that each draws alone.
 *
 * Some requests with prompts, lengths and sampling of their own run alone first: a prefill in one
 * piece, then token by token. Then many batches: each has some of those that are under way, in any
 * order, prompts in pieces of any size, on pages from anywhere in the pool, and whoever has its
 * last token begins again from its prompt. Every token that comes is the one that came alone.
 *
 * The tokens, not logits: what is drawn may depend on the last bit. On the CPU backend; and on
 * the CUDA one, by default emulated (tests/support/cuda) and hence in fewer batches;
 * INFERD_TEST_CUDA=1 takes the GPU of this machine. */
#include "kernel/cpu_rig.h"

/* Sanitizers slow all of it down, emulated kernels tenfold. */
#ifdef __SANITIZE_ADDRESS__
#define CPU_BATCHES      200u
#define EMULATED_BATCHES 8u
#else
#define CPU_BATCHES      1000u
#define EMULATED_BATCHES 40u
#endif

#define REQUESTS_MAX 24u
#define PROMPT_MAX   90u
#define ANSWER_MAX   30u
#define PAGES_EACH   ((PROMPT_MAX + ANSWER_MAX + 15) / 16)
#define PENALTY      16u

struct request {
    uint32_t n_prompt, n_tokens; /* with the answer */
    struct infer_sampling sampling;
    int32_t tokens[PROMPT_MAX + ANSWER_MAX]; /* as they came alone */
    /* in the batches */
    uint32_t at; /* rows that have run */
    int32_t came[PROMPT_MAX + ANSWER_MAX];
    uint32_t pages[PAGES_EACH];
};

static struct request requests[REQUESTS_MAX];
static uint32_t n_requests, n_compared;

static void draw_request(struct request *r, uint32_t i, uint32_t n_vocab)
{
    memset(r, 0, sizeof *r);
    r->n_prompt = 1 + draw() % PROMPT_MAX;
    r->n_tokens = r->n_prompt + 1 + draw() % ANSWER_MAX;
    draw_tokens(r->tokens, r->n_prompt, n_vocab);
    infer_sampling_default(&r->sampling);
    r->sampling.seed = i + 1;
    r->sampling.temperature = i % 3 == 0 ? 0.0f : 0.5f + (float)(draw() % 100) / 100.0f;
    r->sampling.top_k = draw() % 2 ? 0 : 1 + draw() % 40;
    r->sampling.top_p = draw() % 2 ? 1.0f : 0.7f;
    r->sampling.min_p = draw() % 2 ? 0.0f : 0.1f;
    r->sampling.repetition_penalty = draw() % 3 ? 1.0f : 1.3f;
    r->sampling.penalty_window = PENALTY;
}

/* Rows [at, at + n) of a request to the end of the batch; a token is drawn where its last known row
 * is among them. */
static void add_rows(struct infer_batch *b, struct infer_batch_seq *seqs, int32_t *rows,
                     const struct request *r, const int32_t *tokens, uint32_t known, uint32_t at,
                     uint32_t n)
{
    memcpy(rows + b->n_rows, tokens + at, n * sizeof *rows);
    seqs[b->n_seqs++] = (struct infer_batch_seq){.first_row = b->n_rows,
                                                 .n_rows = n,
                                                 .position = at,
                                                 .n_pages = (at + n + 15) / 16,
                                                 .pages = r->pages};
    b->n_rows += n;
    if (at + n < known)
        return;
    uint32_t seen = known < PENALTY ? known : PENALTY;
    b->outputs[b->n_outputs++] =
        (struct infer_batch_output){.row = b->n_rows - 1,
                                    .sample = 1,
                                    .target = -1,
                                    .sampling = &r->sampling,
                                    .n_seen = seen,
                                    .seen = tokens + known - seen,
                                    .uniform = uniform_at(r->sampling.seed, known)};
}

static int32_t rows[ROWS_MAX];
static struct infer_batch_seq seqs[REQUESTS_MAX];
static struct infer_batch_output outputs[REQUESTS_MAX];

static void must_run(struct loaded *l, struct infer_batch *b)
{
    int r = l->api->run(l->model, b);
    if (r < 0)
        fail_msg("run: %s", l->api->last_error(l->backend));
}

static void run_alone(struct loaded *l, struct request *r)
{
    for (uint32_t known = r->n_prompt, at = 0; known < r->n_tokens; at = known++) {
        struct infer_batch b = {.tokens = rows, .seqs = seqs, .outputs = outputs};
        add_rows(&b, seqs, rows, r, r->tokens, known, at, known - at);
        must_run(l, &b);
        r->tokens[known] = outputs[0].token;
    }
}

/* ---- mixed ----------------------------------------------------------------------------------- */

/* Rows that are known: the prompt, and what has come of the answer. */
static uint32_t known_of(const struct request *r)
{
    return r->at < r->n_prompt ? r->n_prompt : r->at + 1;
}

static void begin_again(struct request *r)
{
    memcpy(r->came, r->tokens, r->n_prompt * sizeof *r->came);
    memset(r->came + r->n_prompt, 0xff, (PROMPT_MAX + ANSWER_MAX - r->n_prompt) * sizeof *r->came);
    r->at = 0;
}

static void take(struct request *r, uint32_t rows_run, const struct infer_batch_output *output)
{
    r->at += rows_run;
    if (!output)
        return;
    if (output->token != r->tokens[r->at])
        fail_msg("token %u of request %td is %d, and %d alone", r->at, r - requests, output->token,
                 r->tokens[r->at]);
    n_compared++;
    r->came[r->at] = output->token;
    if (r->at + 1 == r->n_tokens)
        begin_again(r);
}

/* A random choice of them in a random order; one that prefills brings up to what is left, or little
 * of it. */
static void run_some(struct loaded *l)
{
    struct infer_batch b = {.tokens = rows, .seqs = seqs, .outputs = outputs};
    uint32_t order[REQUESTS_MAX], ran[REQUESTS_MAX], n = 1 + draw() % n_requests;
    for (uint32_t i = 0; i < n_requests; i++) {
        uint32_t j = draw() % (i + 1);
        order[i] = order[j];
        order[j] = i;
    }
    for (uint32_t i = 0; i < n; i++) {
        struct request *r = &requests[order[i]];
        uint32_t known = known_of(r), owed = known - r->at, room = ROWS_MAX - b.n_rows;
        uint32_t some = owed > 1 && draw() % 2 ? 1 + draw() % owed : owed;
        ran[i] = some < room ? some : room;
        if (ran[i] > 0)
            add_rows(&b, seqs, rows, r, r->came, known, r->at, ran[i]);
    }
    must_run(l, &b);
    for (uint32_t i = 0, at = 0; i < n; i++) {
        struct request *r = &requests[order[i]];
        bool drew = ran[i] > 0 && r->at + ran[i] == known_of(r);
        take(r, ran[i], drew ? &outputs[at] : NULL);
        at += drew;
    }
}

static void check_recipe(const struct recipe *recipe, const char *backend, uint32_t n,
                         uint32_t n_batches)
{
    struct loaded l;
    struct model m;
    n_requests = n;
    n_compared = 0;
    state_config.max_seqs = REQUESTS_MAX;
    state_config.n_pages = REQUESTS_MAX * PAGES_EACH;
    make_model(&m, recipe);
    if (open_backend(&l, backend, "") < 0)
        fail_msg("%s does not open", backend);
    load(&l, &m);
    for (uint32_t i = 0; i < n; i++) {
        struct request *r = &requests[i];
        draw_request(r, i, m.shape.n_vocab);
        for (uint32_t p = 0; p < PAGES_EACH; p++) /* 7 has no factor in common with the pool */
            r->pages[p] = (i * PAGES_EACH + p) * 7 % state_config.n_pages;
        run_alone(&l, r);
        begin_again(r);
    }
    for (uint32_t i = 0; i < n_batches; i++)
        run_some(&l);
    print_message("%s, %s: %u batches, %u tokens\n", backend, recipe->name, n_batches, n_compared);
    assert_true(n_compared >= n_batches);
    unload(&l);
    free_model(&m);
}

/* Quantized; and with a window, in half precision. */
static const size_t chosen[] = {6, 3};

static void test_cpu(void **state)
{
    for (size_t i = 0; i < 2; i++)
        check_recipe(&recipes[chosen[i]], "cpu", REQUESTS_MAX, CPU_BATCHES);
}

static bool is_real(void)
{
    const char *cuda = getenv("INFERD_TEST_CUDA");
    return cuda && strcmp(cuda, "1") == 0;
}

static void test_cuda(void **state)
{
    const bool real = is_real();
    for (size_t i = 0; i < 2; i++)
        check_recipe(&recipes[chosen[i]], real ? "cuda" : "cuda-emulated", real ? REQUESTS_MAX : 5,
                     real ? 1000 : EMULATED_BATCHES);
}

/* Where a block has 64 KiB of shared memory. */
static void test_little_memory(void **state)
{
    if (is_real()) {
        print_message("skip - what the GPU has is what all tests have\n");
        skip();
    }
    setenv("INFERD_CUDA_EMULATED", "capability=75", 1);
    check_recipe(&recipes[chosen[0]], "cuda-emulated", 2, EMULATED_BATCHES / 4);
    unsetenv("INFERD_CUDA_EMULATED");
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_cpu), cmocka_unit_test(test_cuda),
                                       cmocka_unit_test(test_little_memory)};
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
