/* test_ahead.c: steps that are submitted before the one before is collected draw the tokens that
 * each sequence draws when it runs alone, a step at a time.
 *
 * Sequences with prompts, lengths and sampling of their own run alone first. Then all together: the
 * prompts in one step, and from then on each step goes on from what the one before draws, in an
 * order of its own, while that one is under way, and without those that have all their tokens.
 * Pages are copied and zeroed between a step's submission and its end, which must not change it.
 *
 * On the CUDA backend, by default emulated (tests/support/cuda); INFERD_TEST_CUDA=1 takes the GPU
 * of this machine. */
#include "kernel/cuda_whole.h"

#define SEQS       4u
#define PROMPT_MAX 20u
#define ANSWER_MAX 8u
#define PAGES_EACH ((PROMPT_MAX + ANSWER_MAX + 15) / 16)
#define SPARE      (SEQS * PAGES_EACH) /* the first page that is nobody's */

struct answer {
    uint32_t n_prompt, n_tokens;
    struct infer_sampling sampling;
    int32_t tokens[PROMPT_MAX + ANSWER_MAX]; /* as they came alone */
    float logprobs[PROMPT_MAX + ANSWER_MAX];
    uint32_t pages[PAGES_EACH];
    uint32_t output; /* of the step that was submitted last */
};

/* A step's arrays, which stay until it is collected. */
struct step {
    int32_t rows[ROWS_MAX];
    struct infer_batch_seq seqs[SEQS];
    struct infer_batch_output outputs[SEQS];
    uint32_t answers[SEQS], at[SEQS]; /* whose token an output draws, and which one */
    struct infer_batch batch;
};

static struct answer answers[SEQS];
static struct step steps[2];

static void draw_answer(struct answer *a, uint32_t i, uint32_t n_vocab)
{
    memset(a, 0, sizeof *a);
    a->n_prompt = 1 + draw() % PROMPT_MAX;
    a->n_tokens = a->n_prompt + 2 + draw() % (ANSWER_MAX - 1);
    draw_tokens(a->tokens, a->n_prompt, n_vocab);
    infer_sampling_default(&a->sampling);
    a->sampling.seed = i + 1;
    a->sampling.temperature = i % 2 == 0 ? 0.0f : 0.9f;
    a->sampling.top_k = i == 1 ? 20 : 0;
    for (uint32_t p = 0; p < PAGES_EACH; p++) /* 7 has no factor in common with the pool */
        a->pages[p] = (i * PAGES_EACH + p) * 7 % SPARE;
}

static void clear(struct step *step)
{
    step->batch =
        (struct infer_batch){.tokens = step->rows, .seqs = step->seqs, .outputs = step->outputs};
}

/* n rows from position on, with the output that draws token position + n. */
static void add(struct step *step, uint32_t i, const int32_t *tokens, uint32_t position, uint32_t n)
{
    struct infer_batch *b = &step->batch;
    struct answer *a = &answers[i];
    memcpy(step->rows + b->n_rows, tokens, n * sizeof *tokens);
    step->seqs[b->n_seqs++] = (struct infer_batch_seq){.first_row = b->n_rows,
                                                       .n_rows = n,
                                                       .position = position,
                                                       .n_pages = (position + n + 15) / 16,
                                                       .pages = a->pages};
    b->n_rows += n;
    step->answers[b->n_outputs] = i;
    step->at[b->n_outputs] = position + n;
    a->output = b->n_outputs;
    step->outputs[b->n_outputs++] =
        (struct infer_batch_output){.row = b->n_rows - 1,
                                    .sample = 1,
                                    .target = -1,
                                    .n_top = i % 3,
                                    .sampling = &a->sampling,
                                    .uniform = uniform_at(a->sampling.seed, position + n)};
}

static void must(const struct loaded *l, int r)
{
    if (r < 0)
        fail_msg("%s", l->api->last_error(l->backend));
}

static void run_alone(struct loaded *l, uint32_t i)
{
    struct answer *a = &answers[i];
    for (uint32_t known = a->n_prompt, at = 0; known < a->n_tokens; at = known++) {
        clear(&steps[0]);
        add(&steps[0], i, a->tokens + at, at, known - at);
        must(l, l->api->run(l->model, &steps[0].batch));
        a->tokens[known] = steps[0].outputs[0].token;
        a->logprobs[known] = steps[0].outputs[0].logprob;
    }
}

/* The step after `last`, in another order; false: nobody is left. */
static bool write_next(struct step *step, const struct step *last)
{
    uint32_t n = last->batch.n_outputs, turn = n > 0 ? 1 + draw() % n : 0;
    clear(step);
    for (uint32_t j = 0; j < n; j++) {
        uint32_t from = (j + turn) % n, i = last->answers[from], at = last->at[from];
        int32_t token = INFER_TOKEN_DRAWN(from);
        if (at + 1 < answers[i].n_tokens)
            add(step, i, &token, at, 1);
    }
    return step->batch.n_rows > 0;
}

/* Pages of nobody's, and a page of the sequences that is copied away. */
static void use_pages(struct loaded *l)
{
    must(l, l->api->page_copy(l->model, SPARE + 1, draw() % SPARE));
    must(l, l->api->page_zero(l->model, SPARE));
}

static void check(const struct step *step)
{
    for (uint32_t j = 0; j < step->batch.n_outputs; j++) {
        const struct infer_batch_output *o = &step->outputs[j];
        uint32_t i = step->answers[j], at = step->at[j];
        if (o->token != answers[i].tokens[at])
            fail_msg("token %u of sequence %u is %d, and %d alone", at, i, o->token,
                     answers[i].tokens[at]);
        if (o->n_top > 0)
            assert_true(o->logprob == answers[i].logprobs[at]);
    }
}

/* What its rows were is read once it is submitted, and gone. */
static void submit(struct loaded *l, struct step *step)
{
    must(l, l->api->submit(l->model, &step->batch));
    memset(step->rows, 0xff, sizeof step->rows);
    memset(step->seqs, 0xff, sizeof step->seqs);
}

static uint32_t run_ahead(struct loaded *l)
{
    struct step *now = &steps[0], *next = &steps[1];
    uint32_t n = 0;
    clear(now);
    for (uint32_t i = 0; i < SEQS; i++)
        add(now, i, answers[i].tokens, 0, answers[i].n_prompt);
    submit(l, now);
    for (bool more = true; more; n++) {
        use_pages(l);
        more = write_next(next, now);
        if (more)
            submit(l, next);
        must(l, l->api->collect(l->model, &now->batch));
        check(now);
        struct step *free = now;
        now = next;
        next = free;
    }
    return n;
}

static void begin(struct loaded *l, struct model *m, const struct recipe *recipe,
                  const char *options)
{
    state_config.n_pages = SPARE + 2;
    make_model(m, recipe);
    must_open(l, options);
    load(l, m);
}

static void check_recipe(const struct recipe *recipe, const char *options)
{
    struct loaded l;
    struct model m;
    begin(&l, &m, recipe, options);
    for (uint32_t i = 0; i < SEQS; i++) {
        draw_answer(&answers[i], i, m.shape.n_vocab);
        run_alone(&l, i);
    }
    uint32_t n = run_ahead(&l);
    print_message("%s, \"%s\": %u steps\n", recipe->name, options, n);
    assert_true(n > 2);
    unload(&l);
    free_model(&m);
}

static void test_tokens(void **state)
{
    check_recipe(&recipes[6], "");
    check_recipe(&recipes[3], "graphs=0");
}

static void test_profile(void **state)
{
    check_recipe(&recipes[6], "profile=2");
}

/* ---- what is refused ------------------------------------------------------------------------- */

static void test_refusals(void **state)
{
    struct loaded l;
    struct model m;
    int32_t token = INFER_TOKEN_DRAWN(0);
    begin(&l, &m, &recipes[6], "");
    draw_answer(&answers[0], 0, m.shape.n_vocab);
    struct infer_batch *first = &steps[0].batch, *second = &steps[1].batch;
    clear(&steps[1]);
    add(&steps[1], 0, &token, 1, 1);
    assert_int_equal(l.api->collect(l.model, second), -EINVAL); /* nothing was submitted */
    assert_int_equal(l.api->submit(l.model, second), -EINVAL);  /* and nothing drawn */

    clear(&steps[0]);
    add(&steps[0], 0, answers[0].tokens, 0, 1);
    steps[0].outputs[0].sample = 0;
    must(&l, l.api->submit(l.model, first));
    assert_int_equal(l.api->submit(l.model, second), -EINVAL); /* an output that draws nothing */
    assert_int_equal(l.api->run(l.model, second), -EINVAL);
    must(&l, l.api->collect(l.model, first));

    steps[0].outputs[0].sample = 1;
    must(&l, l.api->submit(l.model, first));
    steps[1].rows[0] = INFER_TOKEN_DRAWN(1); /* there is no such output */
    assert_int_equal(l.api->submit(l.model, second), -EINVAL);
    steps[1].rows[0] = INT32_MIN;
    assert_int_equal(l.api->submit(l.model, second), -EINVAL);
    steps[1].rows[0] = INFER_TOKEN_DRAWN(0);
    must(&l, l.api->submit(l.model, second));
    assert_int_equal(l.api->submit(l.model, second), -EINVAL); /* two are under way */
    must(&l, l.api->collect(l.model, first));
    must(&l, l.api->collect(l.model, second));
    must(&l, l.api->submit(l.model, second)); /* and the model goes with a step under way */
    unload(&l);
    free_model(&m);
}

/* Steps without rows take their turn like others. */
static void test_empty(void **state)
{
    struct loaded l;
    struct model m;
    begin(&l, &m, &recipes[6], "");
    draw_answer(&answers[0], 0, m.shape.n_vocab);
    run_alone(&l, 0);
    clear(&steps[0]);
    clear(&steps[1]);
    add(&steps[1], 0, answers[0].tokens, 0, answers[0].n_prompt);
    must(&l, l.api->submit(l.model, &steps[0].batch));
    must(&l, l.api->submit(l.model, &steps[1].batch));
    must(&l, l.api->collect(l.model, &steps[0].batch));
    must(&l, l.api->collect(l.model, &steps[1].batch));
    check(&steps[1]);
    unload(&l);
    free_model(&m);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tokens), cmocka_unit_test(test_profile),
        cmocka_unit_test(test_refusals), cmocka_unit_test(test_empty)};
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    find_device();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
