/* test_kv_life.c: thousands of random operations on the ledger beside a slow model of it.
 *
 * The model knows no pages, hashes or lists. It has objects, each with the whole prefix that it
 * stands for written out; it finds by comparing whole prefixes, and gives up the object that was
 * let go longest ago, by a stamp. After every operation the counts, what was found, who shares with
 * whom and every row's contents must be the same in both. */
#include "fake_pages.h"

#include <errno.h>

enum {
    N_SEQUENCES = 10,
    N_PAGES = 40,
    N_TOKENS = 48,
    N_LIST = N_TOKENS / FAKE_TOKENS,
    STEPS = 30000
};

struct object {
    bool alive, published;
    uint32_t holders, n_tokens;
    uint64_t domain;
    uint64_t let_go;
    int32_t tokens[N_TOKENS]; /* from row 0 on; valid when published */
};

struct model_sequence {
    uint64_t domain;
    uint32_t n_tokens, n_published, n_objects;
    uint32_t objects[N_LIST];
};

static struct life {
    struct fake_pages fake;
    struct kv_pool *pool;
    uint64_t seed, draws;
    struct kv_sequence real[N_SEQUENCES];
    const struct kv_sequence *all[N_SEQUENCES];
    int32_t tokens[N_SEQUENCES][N_TOKENS];
    uint64_t rows[N_SEQUENCES][N_TOKENS]; /* what they hold; after a slide no function of tokens */
    uint32_t plain[N_SEQUENCES];          /* rows before the first that moved: may be published */
    /* the model */
    struct object objects[N_PAGES];
    struct model_sequence slow[N_SEQUENCES];
    uint64_t clock;
    uint32_t n_alive;
    uint64_t lookups, hits, merged, copied, evictions, slides, full;
} l;

static uint32_t draw(uint32_t n)
{
    return (uint32_t)(rng_at(l.seed, l.draws++) % n);
}

/* ---- the model ------------------------------------------------------------------------------- */

static uint32_t model_unheld(void)
{
    uint32_t n = N_PAGES;
    for (uint32_t i = 0; i < N_PAGES; i++)
        n -= l.objects[i].alive && l.objects[i].holders > 0;
    return n;
}

static uint32_t model_take(uint64_t domain)
{
    uint32_t i, oldest = N_PAGES;
    if (l.n_alive == N_PAGES) {
        for (i = 0; i < N_PAGES; i++)
            if (l.objects[i].holders == 0 &&
                (oldest == N_PAGES || l.objects[i].let_go < l.objects[oldest].let_go))
                oldest = i;
        assert_true(oldest < N_PAGES);
        l.objects[oldest].alive = false;
        l.n_alive--;
        l.evictions++;
    }
    for (i = 0; l.objects[i].alive; i++)
        ;
    l.objects[i] = (struct object){.alive = true, .holders = 1, .domain = domain};
    l.n_alive++;
    return i;
}

static void model_drop(uint32_t i)
{
    struct object *o = &l.objects[i];
    if (--o->holders > 0)
        return;
    o->let_go = ++l.clock;
    if (!o->published) {
        o->alive = false;
        l.n_alive--;
    }
}

static uint32_t model_find(uint64_t domain, const int32_t *tokens, uint32_t n_tokens)
{
    uint32_t found = N_PAGES;
    for (uint32_t i = 0; i < N_PAGES; i++) {
        const struct object *o = &l.objects[i];
        if (!o->alive || !o->published || o->domain != domain || o->n_tokens != n_tokens ||
            memcmp(o->tokens, tokens, n_tokens * sizeof *tokens) != 0)
            continue;
        assert_int_equal(found, N_PAGES);
        found = i;
    }
    return found;
}

static void model_match(struct model_sequence *s, const int32_t *tokens, uint32_t n)
{
    uint32_t i;
    l.lookups++;
    while (s->n_objects < n / FAKE_TOKENS &&
           (i = model_find(s->domain, tokens, (s->n_objects + 1) * FAKE_TOKENS)) != N_PAGES) {
        l.objects[i].holders++;
        s->objects[s->n_objects++] = i;
    }
    s->n_published = s->n_objects;
    s->n_tokens = s->n_objects * FAKE_TOKENS;
    l.hits += s->n_tokens;
}

static void model_make_own(struct model_sequence *s, uint32_t i)
{
    uint32_t old = s->objects[i];
    if (l.objects[old].holders == 1 && !l.objects[old].published)
        return;
    if (model_unheld() > 0) {
        s->objects[i] = model_take(s->domain);
        model_drop(old);
        l.copied++;
    } else {
        l.objects[old].published = false;
    }
}

static int model_grow(struct model_sequence *s, uint32_t n)
{
    if (n <= s->n_tokens)
        return 0;
    uint32_t want = (n + FAKE_TOKENS - 1) / FAKE_TOKENS, first = s->n_tokens / FAKE_TOKENS;
    bool again = first < s->n_objects;
    bool shared = again && l.objects[s->objects[first]].holders > 1;
    if (want - s->n_objects + shared > model_unheld())
        return -ENOSPC;
    while (s->n_objects < want)
        s->objects[s->n_objects++] = model_take(s->domain);
    if (again)
        model_make_own(s, first);
    s->n_tokens = n;
    return 0;
}

static void model_publish(struct model_sequence *s, const int32_t *tokens, uint32_t n)
{
    while (s->n_published < n / FAKE_TOKENS) {
        uint32_t n_prefix = (s->n_published + 1) * FAKE_TOKENS;
        uint32_t own = s->objects[s->n_published], same = model_find(s->domain, tokens, n_prefix);
        struct object *o = &l.objects[own];
        if (same != N_PAGES) {
            l.objects[same].holders++;
            model_drop(own);
            s->objects[s->n_published] = same;
            l.merged++;
        } else if (o->holders == 1) {
            o->published = true;
            o->n_tokens = n_prefix;
            memcpy(o->tokens, tokens, n_prefix * sizeof *tokens);
        } else {
            return;
        }
        s->n_published++;
    }
}

static void model_trim(struct model_sequence *s, uint32_t n)
{
    if (n >= s->n_tokens)
        return;
    while (s->n_objects > (n + FAKE_TOKENS - 1) / FAKE_TOKENS)
        model_drop(s->objects[--s->n_objects]);
    s->n_tokens = n;
    if (s->n_published > n / FAKE_TOKENS)
        s->n_published = n / FAKE_TOKENS;
}

static int model_fork(const struct model_sequence *from, struct model_sequence *to, uint32_t n)
{
    uint32_t whole = n / FAKE_TOKENS;
    if (n % FAKE_TOKENS != 0 && model_unheld() == 0)
        return -ENOSPC;
    while (to->n_objects < whole) {
        l.objects[from->objects[to->n_objects]].holders++;
        to->objects[to->n_objects] = from->objects[to->n_objects];
        to->n_objects++;
    }
    if (n % FAKE_TOKENS != 0) {
        to->objects[to->n_objects++] = model_take(to->domain);
        l.copied++;
    }
    to->n_tokens = n;
    to->n_published = from->n_published < whole ? from->n_published : whole;
    return 0;
}

static int model_slide(struct model_sequence *s, uint32_t first, uint32_t n)
{
    uint32_t from = first / FAKE_TOKENS, leave = n / FAKE_TOKENS, need = 0;
    for (uint32_t i = from + leave; i < s->n_objects; i++)
        need += l.objects[s->objects[i]].holders > 1;
    if (need > model_unheld())
        return -ENOSPC;
    for (uint32_t i = s->n_objects; i-- > from + leave;)
        model_make_own(s, i);
    for (uint32_t i = from + leave; i-- > from;)
        model_drop(s->objects[i]);
    for (uint32_t i = from; i + leave < s->n_objects; i++)
        s->objects[i] = s->objects[i + leave];
    s->n_objects -= leave;
    s->n_tokens -= n;
    if (s->n_published > from)
        s->n_published = from;
    return 0;
}

/* ---- both ------------------------------------------------------------------------------------ */

static void compare(void)
{
    uint32_t page_of[N_PAGES], n_held = 0, n_shared = 0;
    bool taken[N_PAGES] = {false};
    memset(page_of, 0xff, sizeof page_of);
    kv_check(l.pool, l.all, N_SEQUENCES);
    for (uint32_t i = 0; i < N_SEQUENCES; i++) {
        const struct model_sequence *s = &l.slow[i];
        assert_int_equal(l.real[i].n_tokens, s->n_tokens);
        assert_int_equal(l.real[i].n_pages, s->n_objects);
        assert_int_equal(l.real[i].n_published, s->n_published);
        for (uint32_t j = 0; j < s->n_tokens; j++)
            assert_true(l.fake.rows[l.real[i].pages[j / FAKE_TOKENS]][j % FAKE_TOKENS] ==
                        l.rows[i][j]);
        for (uint32_t j = 0; j < s->n_objects; j++) {
            uint32_t page = l.real[i].pages[j], *known = &page_of[s->objects[j]];
            if (*known == UINT32_MAX) { /* one page an object, one object a page */
                assert_false(taken[page]);
                taken[page] = true;
                *known = page;
            }
            assert_int_equal(*known, page);
        }
    }
    for (uint32_t i = 0; i < N_PAGES; i++) {
        n_held += l.objects[i].alive && l.objects[i].holders > 0;
        n_shared += l.objects[i].alive && l.objects[i].holders > 1;
    }
    struct kv_counts c = kv_pool_count(l.pool);
    assert_int_equal(c.n_pages, N_PAGES);
    assert_int_equal(c.n_free, N_PAGES - l.n_alive);
    assert_int_equal(c.n_held, n_held);
    assert_int_equal(c.n_cached, l.n_alive - n_held);
    assert_int_equal(c.n_shared, n_shared);
    assert_int_equal(c.lookups, l.lookups);
    assert_int_equal(c.hits_tokens, l.hits);
    assert_int_equal(c.merged, l.merged);
    assert_int_equal(c.copied, l.copied);
    assert_int_equal(c.copied, l.fake.n_copied);
    assert_int_equal(c.evictions, l.evictions);
    assert_int_equal(c.zeroed, l.fake.n_zeroed);
}

/* Few different tokens, the first pages most often the same: prompts that share prefixes. */
static void draw_tokens(uint32_t i, uint32_t from)
{
    for (uint32_t j = from; j < N_TOKENS; j++)
        l.tokens[i][j] = j % 3 == 0 && draw(4) == 0 ? (int32_t)draw(2) : 7;
}

static void grow(uint32_t i, uint32_t n)
{
    uint32_t before = l.real[i].n_tokens;
    int rc = kv_sequence_grow(l.pool, &l.real[i], n);
    assert_int_equal(rc, model_grow(&l.slow[i], n));
    for (uint32_t j = before; rc == 0 && j < n; j++) {
        uint32_t page = l.real[i].pages[j / FAKE_TOKENS];
        assert_true(kv_sequence_writable(l.pool, &l.real[i], j));
        fake_take(&l.fake, page, l.slow[i].domain);
        l.rows[i][j] = fake_row(j > 0 ? l.rows[i][j - 1] : 0, l.slow[i].domain, l.tokens[i][j]);
        l.fake.rows[page][j % FAKE_TOKENS] = l.rows[i][j];
    }
}

static void trim(uint32_t i, uint32_t n)
{
    kv_sequence_trim(l.pool, &l.real[i], n);
    model_trim(&l.slow[i], n);
    if (l.real[i].n_tokens <= l.plain[i])
        l.plain[i] = N_TOKENS;
    draw_tokens(i, l.real[i].n_tokens);
}

static void publish(uint32_t i)
{
    uint32_t n = l.real[i].n_tokens - (l.real[i].n_tokens > 0 ? draw(2) : 0);
    n = n < l.plain[i] ? n : l.plain[i];
    kv_sequence_publish(l.pool, &l.real[i], l.tokens[i], n);
    model_publish(&l.slow[i], l.tokens[i], n);
}

static void fork_from(uint32_t i, uint32_t from, uint32_t n)
{
    if (n > l.real[from].n_tokens)
        n = l.real[from].n_tokens;
    if (i == from || l.slow[i].domain != l.slow[from].domain)
        return;
    trim(i, 0);
    int rc = kv_sequence_fork(l.pool, &l.real[from], &l.real[i], n);
    assert_int_equal(rc, model_fork(&l.slow[from], &l.slow[i], n));
    if (rc < 0)
        return;
    memcpy(l.tokens[i], l.tokens[from], n * sizeof *l.tokens[i]);
    memcpy(l.rows[i], l.rows[from], n * sizeof *l.rows[i]);
    l.plain[i] = n > l.plain[from] ? l.plain[from] : N_TOKENS;
}

/* Rows leave, the rest move up as they are: only a backend would turn them. */
static void slide(uint32_t i)
{
    uint32_t whole = l.real[i].n_tokens / FAKE_TOKENS, first = draw(whole + 1);
    uint32_t leave = draw(whole - first + 1), n = leave * FAKE_TOKENS;
    first *= FAKE_TOKENS;
    int rc = kv_sequence_slide(l.pool, &l.real[i], first, n);
    assert_int_equal(rc, model_slide(&l.slow[i], first, n));
    if (rc < 0) {
        l.full++;
        return;
    }
    for (uint32_t j = first; j < l.real[i].n_tokens; j++)
        assert_true(kv_sequence_writable(l.pool, &l.real[i], j));
    memmove(l.rows[i] + first, l.rows[i] + first + n, (N_TOKENS - first - n) * sizeof *l.rows[i]);
    memmove(l.tokens[i] + first, l.tokens[i] + first + n,
            (N_TOKENS - first - n) * sizeof *l.tokens[i]);
    if (n > 0 && first < l.plain[i] && first < l.real[i].n_tokens)
        l.plain[i] = first;
    draw_tokens(i, l.real[i].n_tokens);
    l.slides++;
}

static void ask(uint32_t i, uint32_t n)
{
    trim(i, 0);
    draw_tokens(i, 0);
    uint32_t found = kv_sequence_match(l.pool, &l.real[i], l.tokens[i], n);
    model_match(&l.slow[i], l.tokens[i], n);
    assert_int_equal(found, l.slow[i].n_tokens);
    fake_check(&l.fake, &l.real[i], l.tokens[i]);
    for (uint32_t j = 0; j < found; j++)
        l.rows[i][j] = fake_row(j > 0 ? l.rows[i][j - 1] : 0, l.slow[i].domain, l.tokens[i][j]);
    grow(i, n);
}

static void live(uint64_t seed, unsigned hash_bits)
{
    static const uint64_t domains[] = {1, 2, UINT64_C(1) << 32 | 1};
    memset(&l, 0, sizeof l);
    l.seed = seed;
    l.pool = fake_pool(&l.fake, N_PAGES);
    kv_pool_truncate_hashes(l.pool, hash_bits);
    for (uint32_t i = 0; i < N_SEQUENCES; i++) {
        l.slow[i].domain = domains[i % 3];
        l.plain[i] = N_TOKENS;
        l.all[i] = &l.real[i];
        assert_int_equal(kv_sequence_init(l.pool, &l.real[i], N_TOKENS, l.slow[i].domain), 0);
        draw_tokens(i, 0);
    }
    for (int step = 0; step < STEPS; step++) {
        uint32_t i = draw(N_SEQUENCES), n = draw(N_TOKENS + 1);
        switch (draw(9)) {
        case 0:
        case 1:
            ask(i, n);
            break;
        case 2:
            grow(i, l.real[i].n_tokens < N_TOKENS ? l.real[i].n_tokens + 1 : N_TOKENS);
            break;
        case 3:
            grow(i, n);
            break;
        case 4:
            trim(i, n);
            break;
        case 5:
            fork_from(i, draw(N_SEQUENCES), n);
            break;
        case 6:
            if (draw(3) == 0)
                slide(i);
            break;
        default:
            publish(i);
            break;
        }
        compare();
    }
    for (uint32_t i = 0; i < N_SEQUENCES; i++)
        kv_sequence_done(l.pool, &l.real[i]);
    struct kv_counts c = kv_pool_count(l.pool);
    assert_int_equal(c.n_held, 0);
    /* It was a full life. */
    assert_true(c.hits_tokens > 10000 && c.evictions > 5000 && c.zeroed > 5000);
    assert_true(c.copied > 300 && c.merged > 150 && l.slides > 500 && l.full > 5);
    kv_pool_free(l.pool);
}

static void test_random_life(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 4; seed++)
        live(seed, 64);
}

static void test_random_life_with_colliding_hashes(void **state)
{
    (void)state;
    live(11, 0);
    live(12, 1);
    live(13, 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_life),
        cmocka_unit_test(test_random_life_with_colliding_hashes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
