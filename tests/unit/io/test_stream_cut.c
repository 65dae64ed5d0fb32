/* test_stream_cut.c: io/stream_cut.c: extents to aligned reads and back to rows, without a file. */
#include "unit/io/stream_fixture.h"

#define PARTS 40

struct made {
    struct stream_part parts[PARTS];
    struct stream_extent extents[PARTS];
    struct stream_plan plan;
    uint64_t total, end;
};

static uint64_t draw(uint64_t *state, uint64_t n)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (*state >> 33) % n;
}

/* Parts of any size at any place, now behind each other, now not, in one of two files. */
static void make(struct made *m, uint64_t seed)
{
    uint64_t state = seed, offset = 0;
    static const uint64_t gaps[] = {0, 0, 0, 3, 32, 5000, 70000, 300000};
    *m = (struct made){.plan = {m->parts, PARTS, (uint64_t)4096 << draw(&state, 6)}};
    for (uint32_t i = 0; i < PARTS; i++) {
        uint64_t row = 1 + draw(&state, draw(&state, 4) == 0 ? 40000 : 300);
        uint64_t rows = draw(&state, 8) == 0 ? 0 : draw(&state, 40);
        if (draw(&state, 10) == 0)
            offset = draw(&state, 1000000);
        else
            offset += gaps[draw(&state, sizeof gaps / sizeof gaps[0])];
        m->parts[i] = (struct stream_part){.offset = offset,
                                           .bytes = row * rows,
                                           .row_bytes = row,
                                           .tensor = i,
                                           .file = (uint32_t)(draw(&state, 12) == 0)};
        m->extents[i] = (struct stream_extent){
            .offset = offset, .bytes = row * rows, .row_bytes = row, .tensor = i};
        offset += row * rows;
        m->total += row * rows;
        m->end = offset > m->end ? offset : m->end;
    }
}

static void check(struct made *m)
{
    struct stream_cursor at = {0};
    struct stream_chunk c;
    struct taker t = {.extents = m->extents};
    struct stream_sink sink = {.ctx = &t, .rows = take};
    uint8_t *join = aligned_alloc(64, 40128), *data = aligned_alloc(4096, m->plan.read_bytes);
    uint64_t done = 0, before = 0, n_reads = 0;
    while (stream_cut(&m->plan, &at, &c)) {
        n_reads++;
        assert_true(c.bytes > 0 && c.bytes <= m->plan.read_bytes);
        assert_true(c.offset % STREAM_PAGE == 0 && c.bytes % STREAM_PAGE == 0);
        assert_true(c.needed <= c.bytes && c.needed + STREAM_PAGE > c.bytes);
        for (size_t i = c.from.part; i <= c.to.part && i < PARTS; i++)
            if (m->parts[i].bytes > 0 && (i < c.to.part || c.to.at > 0))
                assert_int_equal(m->parts[i].file, c.file);
        for (uint64_t i = 0; i < c.bytes; i++)
            data[i] = i < c.needed ? byte_at(c.offset + i) : 0xee;
        assert_int_equal(stream_rows(&m->plan, join, &c, data, &sink, &done), 0);
        assert_true(done > before);
        before = done;
    }
    assert_int_equal(done, m->total);
    assert_all_taken(&t, PARTS);
    /* no more reads than parts and full reads call for */
    assert_true(n_reads <= PARTS + m->total / (m->plan.read_bytes - STREAM_PAGE + 1) + 1);
    free(join);
    free(data);
}

static void every_byte_once_in_aligned_reads(void **state)
{
    (void)state;
    struct made m;
    for (uint64_t seed = 1; seed <= 300; seed++) {
        make(&m, seed);
        if (m.plan.read_bytes > STREAM_PAGE)
            check(&m);
    }
}

static void neighbours_share_a_read(void **state)
{
    (void)state;
    struct stream_part parts[] = {
        {100, 1000, 10, 0, 0, NULL},     {1128, 0, 7, 1, 0, NULL},
        {1128, 4000, 40, 2, 0, NULL},    {60000, 100, 100, 3, 0, NULL},
        {300000, 1000, 100, 4, 0, NULL}, {200000, 1000, 100, 5, 0, NULL},
    };
    struct stream_plan p = {parts, 6, 1 << 20};
    struct stream_cursor at = {0};
    struct stream_chunk c;
    assert_true(stream_cut(&p, &at, &c)); /* over small gaps */
    assert_int_equal(c.offset, 0);
    assert_int_equal(c.needed, 60100);
    assert_int_equal(c.bytes, 61440);
    assert_true(stream_cut(&p, &at, &c)); /* not over a large one */
    assert_int_equal(c.offset, 299008);
    assert_true(stream_cut(&p, &at, &c)); /* not backwards */
    assert_int_equal(c.offset, 196608);
    assert_false(stream_cut(&p, &at, &c));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_byte_once_in_aligned_reads),
        cmocka_unit_test(neighbours_share_a_read),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
