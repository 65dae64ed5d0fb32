/* test_pressure.c: sequences that are dropped, saved, restored and forked draw the tokens that they
 * draw alone. */
#include "fake_state.h"

static int32_t tokens[FAKE_TOKENS_MAX];
static _Alignas(64) uint8_t memory[FAKE_PAGES * sizeof fake.pages[0]];

enum way { DROP, SAVE, SAVE_AND_LOSE_THE_INDEX };

/* Somebody else's rows go through every page that nobody holds. */
static void use_all_pages(struct engine_model *m)
{
    static int32_t other[FAKE_CONTEXT];
    struct infer_sampling p = fake_sampling(1, 1);
    fake_prompt(other, FAKE_CONTEXT, 1234);
    for (int i = 0; i < 3; i++) {
        uint32_t n = kv_pool_available(m->pool) * FAKE_ROWS;
        struct engine_request r = fake_request(other, n < 500 ? n : 500, &p);
        r.domain = 100 + (uint64_t)i;
        struct engine_sequence *s = fake_new(m, &r);
        engine_sequence_begin(s);
        while (!fake_step(s, 512))
            ;
        engine_sequence_free(s);
    }
}

static void go_away_and_come_back(struct engine_sequence *s, enum way way)
{
    struct engine_model *m = s->model;
    uint32_t owed = engine_sequence_rows(s);
    uint64_t run = s->n_cached, found = s->n_found;
    if (way == DROP) {
        assert_true(engine_sequence_can_drop(s));
        engine_sequence_drop(s);
        assert_int_equal(s->state.n_pages, 0);
        assert_int_equal(engine_sequence_rows(s), run + owed);
        assert_true(engine_sequence_begin(s) <= run);
    } else {
        assert_true(engine_sequence_saved_bytes(s) <= sizeof memory);
        assert_int_equal(engine_sequence_save(s, memory), 0);
        assert_int_equal(s->state.n_pages, 0);
        if (way == SAVE_AND_LOSE_THE_INDEX)
            use_all_pages(m);
        assert_int_equal(engine_sequence_restore(s, memory), 0);
        assert_int_equal(engine_sequence_rows(s), owed);
    }
    assert_true(s->n_found == found); /* what the client is told */
}

/* At every point of prompt and answer. */
static void check_way(struct engine_model *m, enum way way, uint32_t window)
{
    const uint32_t n = 90, n_answer = 70;
    struct infer_sampling p = fake_sampling(77, n_answer);
    fake_prompt(tokens, n, 1);
    fake_expect(tokens, n, n + n_answer, &p, window, 0);
    struct engine_request r = fake_request(tokens, n, &p);
    r.window = window;
    for (uint32_t steps = 1; steps < n_answer + 8; steps += 3) {
        struct engine_sequence *s = fake_new(m, &r);
        uint32_t drawn = 0;
        r.domain++; /* nothing to be found but its own */
        engine_sequence_begin(s);
        for (uint32_t i = 0; i < steps && drawn < n_answer - 1; i++)
            if (fake_step(s, 13))
                assert_int_equal(s->output.token, tokens[n + drawn++]);
        if (way != DROP || engine_sequence_can_drop(s))
            go_away_and_come_back(s, way);
        fake_run_tokens(s, 31, tokens + n + drawn, n_answer - drawn);
        assert_int_equal(s->output.finish, INFER_FINISH_LENGTH);
        assert_true(s->n_generated == n_answer);
        engine_sequence_free(s);
        assert_int_equal(kv_pool_used(m->pool), 0);
    }
}

static void test_a_dropped_sequence_goes_on_with_the_same_tokens(void **state)
{
    check_way(*state, DROP, 0);
    check_way(*state, DROP, 128);
}

static void test_a_saved_sequence_goes_on_with_the_same_tokens(void **state)
{
    check_way(*state, SAVE, 0);
    assert_true(fake.n_writes < fake.n_reads / 2); /* the index had most of it */
    check_way(*state, SAVE, 64);
}

static void test_a_saved_sequence_needs_no_index(void **state)
{
    check_way(*state, SAVE_AND_LOSE_THE_INDEX, 0);
    assert_true(fake.n_writes == fake.n_reads);
    check_way(*state, SAVE_AND_LOSE_THE_INDEX, 64);
}

static void test_a_slid_window_cannot_be_dropped(void **state)
{
    struct infer_sampling p = fake_sampling(1, 0);
    fake_prompt(tokens, 64, 1);
    struct engine_request r = fake_request(tokens, 64, &p);
    r.window = 64;
    struct engine_sequence *s = fake_new(*state, &r);
    engine_sequence_begin(s);
    assert_true(fake_step(s, 64) && engine_sequence_can_drop(s));
    assert_true(fake_step(s, 1) && !engine_sequence_can_drop(s));
    engine_sequence_free(s);
}

static void test_a_failed_save_or_restore_changes_nothing(void **state)
{
    struct engine_model *m = *state;
    const uint32_t n = 70;
    struct infer_sampling p = fake_sampling(1, 20);
    fake_prompt(tokens, n, 1);
    fake_expect(tokens, n, n + 20, &p, 0, 0);
    struct engine_request r = fake_request(tokens, n, &p);
    struct engine_sequence *s = fake_new(m, &r);
    engine_sequence_begin(s);
    fake_run_tokens(s, 100, tokens + n, 5);
    fake.fail_read = 3;
    assert_int_equal(engine_sequence_save(s, memory), -EIO);
    fake_run_tokens(s, 100, tokens + n + 5, 5);
    assert_int_equal(engine_sequence_saved_bytes(s), 5 * sizeof fake.pages[0]);
    assert_int_equal(engine_sequence_save(s, memory), 0);
    use_all_pages(m);
    fake.fail_write = 3;
    assert_int_equal(engine_sequence_restore(s, memory), -EIO);
    assert_int_equal(kv_pool_used(m->pool), 0);
    use_all_pages(m);
    fake.fail_zero = 2;
    assert_int_equal(engine_sequence_restore(s, memory), -EIO);
    assert_int_equal(fake.fail_zero, 0);
    assert_int_equal(kv_pool_used(m->pool), 0);
    struct kv_sequence all; /* a neighbour with nearly everything */
    assert_int_equal(kv_sequence_init(m->pool, &all, FAKE_PAGES * FAKE_ROWS, 9), 0);
    assert_int_equal(kv_sequence_grow(m->pool, &all, (FAKE_PAGES - 4) * FAKE_ROWS), 0);
    assert_int_equal(engine_sequence_restore(s, memory), -ENOSPC);
    kv_sequence_done(m->pool, &all);
    assert_int_equal(engine_sequence_restore(s, memory), 0);
    fake_run_tokens(s, 100, tokens + n + 10, 10);
    engine_sequence_free(s);
}

static void test_a_saved_sequence_may_be_dropped_instead(void **state)
{
    struct engine_model *m = *state;
    struct infer_sampling p = fake_sampling(1, 20);
    fake_prompt(tokens, 40, 1);
    fake_expect(tokens, 40, 60, &p, 0, 0);
    struct engine_request r = fake_request(tokens, 40, &p);
    struct engine_sequence *s = fake_new(m, &r);
    engine_sequence_begin(s);
    fake_run_tokens(s, 100, tokens + 40, 5);
    assert_int_equal(engine_sequence_save(s, memory), 0);
    engine_sequence_drop(s);
    assert_int_equal(engine_sequence_rows(s), 45);
    assert_int_equal(engine_sequence_begin(s), 32);
    fake_run_tokens(s, 100, tokens + 45, 15);
    engine_sequence_free(s);
}

static void test_a_dropped_score_is_recorded_once(void **state)
{
    struct engine_model *m = *state;
    static float want[100];
    static struct infer_logprob top[200];
    fake_prompt(tokens, 100, 1);
    struct engine_request r = {
        .kind = ENGINE_SCORE, .domain = 7, .tokens = tokens, .n_tokens = 100, .n_top = 2};
    for (uint32_t at = 0; at <= 99; at++) {
        struct engine_sequence *s = fake_new(m, &r);
        assert_int_equal(engine_sequence_begin(s), 0);
        if (at > 0)
            fake_step(s, at);
        if (at % 2 == 0) {
            engine_sequence_drop(s);
            assert_int_equal(engine_sequence_begin(s), 0);
        } else {
            assert_int_equal(engine_sequence_save(s, memory), 0);
            assert_int_equal(engine_sequence_restore(s, memory), 0);
        }
        while (engine_sequence_rows(s) > 0)
            fake_step(s, 17);
        assert_int_equal(s->n_scored, 100);
        if (at == 0) {
            memcpy(want, s->logprobs, sizeof want);
            memcpy(top, s->top, sizeof top);
        }
        assert_memory_equal(s->logprobs + 1, want + 1, 99 * sizeof *want);
        assert_memory_equal(s->top + 2, top + 2, 198 * sizeof *top);
        engine_sequence_free(s);
    }
}

/* ---- forks ----------------------------------------------------------------------------------- */

/* Four answers of one prompt, the siblings when the first has run `rows` of it or more. */
static void check_fork(struct engine_model *m, uint32_t n, uint32_t rows, uint32_t window,
                       uint32_t want_run)
{
    enum { N = 4 };
    const uint32_t n_answer = 60;
    static int32_t want[N][FAKE_CONTEXT + 60];
    struct infer_sampling p[N];
    struct engine_sequence *s[N];
    const struct kv_sequence *all[N];
    for (uint32_t i = 0; i < N; i++) {
        p[i] = fake_sampling(1000 + i, n_answer);
        fake_prompt(want[i], n, n + rows + window);
        fake_expect(want[i], n, n + n_answer, &p[i], window, 0);
        struct engine_request r = fake_request(want[i], n, &p[i]);
        r.window = window;
        s[i] = fake_new(m, &r);
        all[i] = &s[i]->state;
    }
    engine_sequence_begin(s[0]);
    while (s[0]->n_cached < rows)
        fake_step(s[0], rows - (uint32_t)s[0]->n_cached);
    for (uint32_t i = 1; i < N; i++) {
        uint32_t owed = engine_sequence_rows(s[i]), found = engine_sequence_fork(s[i], s[0]);
        assert_int_equal(engine_sequence_rows(s[i]), owed - found);
        assert_int_equal(engine_sequence_rows(s[i]), want_run);
        assert_true(s[i]->n_found == found);
        kv_check(m->pool, all, N);
    }
    if (window == 0)
        assert_int_equal(kv_pool_count(m->pool).n_shared, (n - want_run) / FAKE_ROWS);
    uint32_t begun = rows == n ? 1 : 0;
    for (uint32_t i = 0; i < N; i++)
        fake_run_tokens(s[i], 23, want[i] + n + (i == 0 ? begun : 0),
                        n_answer - (i == 0 ? begun : 0));
    kv_check(m->pool, all, N);
    for (uint32_t i = 0; i < N; i++)
        engine_sequence_free(s[i]);
    assert_int_equal(kv_pool_used(m->pool), 0);
}

static void test_answers_share_the_rows_of_their_prompt(void **state)
{
    check_fork(*state, 100, 100, 0, 1);
    check_fork(*state, 97, 97, 0, 1);
    check_fork(*state, 96, 96, 0, 1);
    check_fork(*state, 100, 50, 0, 50); /* while it still runs */
}

static void test_answers_with_windows_share_them_too(void **state)
{
    check_fork(*state, 60, 60, 64, 1);
    check_fork(*state, 64, 64, 64, 1);
    check_fork(*state, 65, 65, 64, 1);
    check_fork(*state, 200, 200, 64, 1); /* which has slid in its prompt */
    check_fork(*state, 200, 117, 64, 83);
}

static void test_a_fork_without_a_source_begins(void **state)
{
    struct engine_model *m = *state;
    struct infer_sampling p = fake_sampling(1, 20);
    fake_prompt(tokens, 40, 1);
    fake_expect(tokens, 40, 60, &p, 0, 0);
    struct engine_request r = fake_request(tokens, 40, &p);
    struct engine_sequence *from = fake_new(m, &r), *s = fake_new(m, &r);
    assert_int_equal(engine_sequence_fork(s, from), 0); /* it has not begun */
    engine_sequence_free(s);
    engine_sequence_begin(from);
    while (!fake_step(from, 100))
        ;
    engine_sequence_end(from);
    s = fake_new(m, &r);
    assert_int_equal(engine_sequence_fork(s, from), 32); /* the index has it */
    fake_run_tokens(s, 100, tokens + 40, 20);
    engine_sequence_free(s);
    engine_sequence_free(from);
}

/* Between steps a page that cannot be copied is a longer prefill, and nobody else's failure. */
static void test_a_fork_whose_copy_fails_begins(void **state)
{
    for (uint32_t window = 0; window <= 64; window += 64) {
        struct engine_model *m = *state;
        struct infer_sampling p = fake_sampling(1, 20);
        fake_prompt(tokens, 60, 1 + window);
        fake_expect(tokens, 60, 80, &p, window, 0);
        struct engine_request r = fake_request(tokens, 60, &p);
        r.window = window;
        struct engine_sequence *from = fake_new(m, &r), *s = fake_new(m, &r);
        engine_sequence_begin(from);
        fake_run_tokens(from, 100, tokens + 60, 1);
        fake.fail_copy = 1;
        assert_int_equal(engine_sequence_fork(s, from), window > 0 ? 0 : 48);
        assert_int_equal(fake.fail_copy, 0);
        fake_run_tokens(from, 100, tokens + 61, 2);
        fake_run_tokens(s, 100, tokens + 60, 20);
        engine_sequence_free(s);
        engine_sequence_free(from);
    }
}

/* In a step it is the step's failure, and the pages are zeroed for who takes them next. */
static void test_a_step_fails_when_a_page_cannot_be_zeroed(void **state)
{
    struct engine_model *m = *state;
    struct infer_sampling p = fake_sampling(1, 20);
    fake_prompt(tokens, 40, 1);
    fake_expect(tokens, 40, 60, &p, 0, 0);
    struct engine_request r = fake_request(tokens, 40, &p);
    use_all_pages(m);
    struct engine_sequence *s = fake_new(m, &r);
    engine_sequence_begin(s);
    fake.fail_zero = 2;
    assert_int_equal(engine_step(m, &(struct engine_work){s, 40}, 1), -EIO);
    engine_sequence_free(s);
    s = fake_new(m, &r);
    uint64_t before = kv_pool_count(m->pool).zeroed;
    engine_sequence_begin(s);
    fake_run_tokens(s, 100, tokens + 40, 20);
    assert_true(kv_pool_count(m->pool).zeroed > before);
    engine_sequence_free(s);
}

/* The source's window slid after the rows that its sibling wants. */
static void test_a_fork_comes_too_late_for_a_window(void **state)
{
    struct engine_model *m = *state;
    struct infer_sampling p = fake_sampling(1, 200);
    fake_prompt(tokens, 40, 1);
    fake_expect(tokens, 40, 240, &p, 64, 0);
    struct engine_request r = fake_request(tokens, 40, &p);
    r.window = 64;
    struct engine_sequence *from = fake_new(m, &r), *s = fake_new(m, &r);
    engine_sequence_begin(from);
    fake_run_tokens(from, 100, tokens + 40, 30);
    assert_true(from->n_slid > 0);
    assert_int_equal(engine_sequence_fork(s, from), 0);
    fake_run_tokens(s, 100, tokens + 40, 200);
    engine_sequence_free(s);
    engine_sequence_free(from);
}

/* ---- all of it at random --------------------------------------------------------------------- */

enum { N_LIVES = 6, LIFE_TOKENS = 400 };

static struct life {
    struct engine_sequence *s;
    int32_t want[LIFE_TOKENS];
    uint32_t n_prompt, n_end, drawn;
    bool waits; /* dropped or not begun */
    uint8_t *saved;
} lives[N_LIVES];

static uint64_t draws;

static uint32_t draw(uint32_t n)
{
    return (uint32_t)(rng_at(4711, draws++) % n);
}

static void life_new(struct engine_model *m, struct life *l)
{
    static const uint32_t windows[] = {0, 0, 64, 96};
    uint32_t window = windows[draw(4)];
    l->n_prompt = 1 + draw(200);
    l->n_end = l->n_prompt + 1 + draw(LIFE_TOKENS - l->n_prompt);
    l->drawn = 0;
    l->waits = true;
    l->saved = NULL;
    struct infer_sampling p = fake_sampling(1 + draw(1000), l->n_end - l->n_prompt);
    fake_prompt(l->want, l->n_prompt, draw(2)); /* often a prefix of another's */
    fake_expect(l->want, l->n_prompt, l->n_end, &p, window, 0);
    struct engine_request r = fake_request(l->want, l->n_prompt, &p);
    r.window = window;
    l->s = fake_new(m, &r);
}

static void life_go_on(struct engine_model *m, struct life *l)
{
    uint32_t most = 1 + draw(60);
    if (l->saved != NULL) {
        int rc = engine_sequence_restore(l->s, l->saved);
        assert_true(rc == 0 || rc == -ENOSPC);
        if (rc == 0) {
            free(l->saved);
            l->saved = NULL;
        }
        return;
    }
    if (l->waits)
        engine_sequence_begin(l->s);
    l->waits = false;
    if (kv_pool_available(m->pool) * FAKE_ROWS < most + FAKE_ROWS)
        return;
    if (fake_step(l->s, most)) {
        assert_int_equal(l->s->output.token, l->want[l->n_prompt + l->drawn]);
        l->drawn++;
    }
}

static void life_leave(struct life *l)
{
    if (l->saved != NULL || l->waits)
        return;
    if (draw(2) == 0 && engine_sequence_can_drop(l->s)) {
        engine_sequence_drop(l->s);
        l->waits = true;
    } else {
        l->saved = aligned_alloc(64, engine_sequence_saved_bytes(l->s) + 64);
        assert_int_equal(engine_sequence_save(l->s, l->saved), 0);
    }
}

static void life_end(struct life *l)
{
    engine_sequence_free(l->s);
    free(l->saved);
    *l = (struct life){0};
}

static void test_a_random_life(void **state)
{
    (void)state;
    struct engine_model *m = fake_model(40);
    uint32_t completed = 0;
    for (uint32_t i = 0; i < 60000; i++) {
        struct life *l = &lives[draw(N_LIVES)];
        if (l->s == NULL)
            life_new(m, l);
        else if (draw(12) == 0)
            life_leave(l);
        else
            life_go_on(m, l);
        if (l->n_prompt + l->drawn == l->n_end || draw(3000) == 0) {
            completed += l->n_prompt + l->drawn == l->n_end;
            life_end(l);
        }
        const struct kv_sequence *all[N_LIVES];
        uint32_t n = 0;
        for (uint32_t j = 0; j < N_LIVES; j++)
            if (lives[j].s != NULL)
                all[n++] = &lives[j].s->state;
        kv_check(m->pool, all, n);
    }
    assert_true(completed > 100);
    assert_true(fake.n_shifts > 200 && fake.n_writes > 1000);
    for (uint32_t j = 0; j < N_LIVES; j++)
        if (lives[j].s != NULL)
            life_end(&lives[j]);
    assert_int_equal(kv_pool_used(m->pool), 0);
    void *model = m;
    teardown(&model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_a_dropped_sequence_goes_on_with_the_same_tokens),
        TEST(test_a_saved_sequence_goes_on_with_the_same_tokens),
        TEST(test_a_saved_sequence_needs_no_index),
        TEST(test_a_slid_window_cannot_be_dropped),
        TEST(test_a_failed_save_or_restore_changes_nothing),
        TEST(test_a_saved_sequence_may_be_dropped_instead),
        TEST(test_a_dropped_score_is_recorded_once),
        TEST(test_answers_share_the_rows_of_their_prompt),
        TEST(test_answers_with_windows_share_them_too),
        TEST(test_a_fork_without_a_source_begins),
        TEST(test_a_fork_whose_copy_fails_begins),
        TEST(test_a_step_fails_when_a_page_cannot_be_zeroed),
        TEST(test_a_fork_comes_too_late_for_a_window),
        cmocka_unit_test(test_a_random_life),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
