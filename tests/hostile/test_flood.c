/* test_flood.c: a client that asks as fast as it can, and one that asks and never reads.
 *
 * Both only ever cost themselves: each of their requests ends with an answer or a typed error, the
 * daemon's memory stays what it was after the first fifth, and the requests of somebody else on
 * another connection all finish with the right tokens meanwhile.
 *
 * INFERD_LONG=1 sends a million. */
#include "integration/many.h"
#include "support/raw.h"

#include "inferd/ring.h"

#include <stdatomic.h>
#include <sys/mman.h>

enum { FLOOD = 200000, FLOOD_SLOW = 20000, FLOOD_LONG = 1000000 };
enum { FLIGHT = 400 }; /* more than a connection may have unfinished */
enum { GROWTH_MAX = 4 << 20 };
enum { OTHERS_TOKENS = 20 };

static struct daemon d;

static uint32_t flood_size(void)
{
    const char *is_long = getenv("INFERD_LONG");
    return is_long && is_long[0] == '1' ? FLOOD_LONG : program_slowness() > 1 ? FLOOD_SLOW : FLOOD;
}

static int setup(void **state)
{
    daemon_start_backend(&d, "null", NULL);
    return 0;
}

static int teardown(void **state)
{
    daemon_assert_serves(&d);
    daemon_stop(&d);
    daemon_done(&d);
    return 0;
}

static uint64_t resident(void)
{
    unsigned long long pages = 0;
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/statm", (int)d.pid);
    FILE *f = fopen(path, "re");
    assert_non_null(f);
    assert_int_equal(fscanf(f, "%*s %llu", &pages), 1);
    fclose(f);
    return pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

/* AddressSanitizer keeps freed memory back; LeakSanitizer counts there, when the daemon ends. */
static void assert_constant(uint64_t before, uint64_t after)
{
    print_message("resident: %llu KiB, then %llu KiB\n", (unsigned long long)before >> 10,
                  (unsigned long long)after >> 10);
    if (program_slowness() == 1)
        assert_true(after < before + GROWTH_MAX);
}

/* ---- somebody else --------------------------------------------------------------------------- */

/* Lives in memory that the test and the other's process share. */
struct other {
    atomic_bool ready, stop;
    uint32_t n_good;
    char error[128]; /* what was wrong first */
};

static pid_t other_pid;

static bool ask_one(struct infer_conn *c, int32_t *expected, bool first)
{
    static struct many_answer a;
    struct infer_request r;
    int32_t ids[40];
    many_ids(ids, 40, 77);
    many_request(&r, ids, 40, OTHERS_TOKENS);
    many_get(c, &r, &a);
    if (first)
        memcpy(expected, a.ids, OTHERS_TOKENS * sizeof *expected);
    return a.error == 0 && a.n == OTHERS_TOKENS && !a.gap &&
           memcmp(expected, a.ids, OTHERS_TOKENS * sizeof *expected) == 0;
}

static int be_other(void *arg)
{
    struct other *o = arg;
    struct infer_conn *c = many_connect(&d);
    int32_t expected[OTHERS_TOKENS];
    if (!c || !ask_one(c, expected, true))
        snprintf(o->error, sizeof o->error, "no first answer");
    atomic_store(&o->ready, true);
    while (!o->error[0] && !atomic_load(&o->stop)) {
        if (!ask_one(c, expected, false))
            snprintf(o->error, sizeof o->error, "answer %u is not the first one", o->n_good);
        o->n_good++;
    }
    infer_close(c);
    return 0;
}

static struct other *other_starts(uid_t uid)
{
    struct other *o =
        mmap(NULL, sizeof *o, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(o != MAP_FAILED);
    many_let_in(&d);
    other_pid = many_start(uid, be_other, o);
    while (!atomic_load(&o->ready))
        usleep(1000);
    return o;
}

static void other_ends(struct other *o)
{
    atomic_store(&o->stop, true);
    many_join(other_pid);
    if (o->error[0])
        fail_msg("the other client: %s", o->error);
    print_message("the other client got %u answers meanwhile\n", o->n_good);
    assert_true(o->n_good > 0);
    munmap(o, sizeof *o);
}

static void assert_all_given_back(void)
{
    struct infer_status s;
    struct infer_conn *c = many_connect(&d);
    assert_non_null(c);
    uint64_t end = test_clock_us() + 20000000u * (unsigned)program_slowness();
    do {
        usleep(2000);
        assert_int_equal(infer_status(c, &s), 0);
    } while ((s.n_sessions > 1 || s.n_pages_used > 0) && test_clock_us() < end);
    assert_int_equal(s.n_sessions, 1);
    assert_int_equal(s.n_running + s.n_waiting + s.n_parked, 0);
    assert_int_equal(s.n_pages_used, 0);
    infer_close(c);
}

/* ---- it reads -------------------------------------------------------------------------------- */

struct flood {
    uint32_t n_sent, n_open, n_good, n_full;
};

static void send_tiny(struct infer_conn *c, struct flood *f)
{
    struct infer_request r;
    int32_t id_of_prompt = 300 + (int32_t)(f->n_sent % 1000);
    uint32_t id;
    many_request(&r, &id_of_prompt, 1, 1);
    assert_int_equal(infer_submit(c, &r, &id), 0);
    f->n_sent++;
    f->n_open++;
}

/* Reads until no more than so many are open. */
static void read_until(struct infer_conn *c, struct flood *f, uint32_t n_open)
{
    struct infer_event e;
    while (f->n_open > n_open) {
        assert_int_equal(infer_next(c, 0, 60000 * program_slowness(), &e), 1);
        if (e.kind != INFER_EVENT_DONE)
            continue;
        if (e.error != 0 && e.error != INFER_E_QUEUE_FULL)
            fail_msg("a tiny request ended with %s", infer_error_name(e.error));
        f->n_good += e.error == 0;
        f->n_full += e.error != 0;
        f->n_open--;
    }
}

static void test_tiny_requests_as_fast_as_it_can(void **state)
{
    struct flood f = {0};
    uint32_t n = flood_size();
    uint64_t before = 0;
    struct infer_conn *c = many_connect(&d);
    assert_non_null(c);
    struct other *other = other_starts(getuid());
    while (f.n_sent < n) {
        /* In waves, so that the limit of a connection is passed again and again. */
        while (f.n_open < FLIGHT && f.n_sent < n)
            send_tiny(c, &f);
        read_until(c, &f, f.n_sent % 3 == 0 ? 0 : FLIGHT / 2);
        if (before == 0 && f.n_sent > n / 5)
            before = resident();
    }
    read_until(c, &f, 0);
    assert_constant(before, resident());
    other_ends(other);
    print_message("%u tiny requests: %u answered, %u refused\n", f.n_sent, f.n_good, f.n_full);
    assert_int_equal(f.n_good + f.n_full, n);
    assert_true(f.n_good > n / 4);
    infer_close(c);
    assert_all_given_back();
}

/* ---- it never reads -------------------------------------------------------------------------- */

/* Puts as many as its ring takes; returns how many. */
static uint32_t put_some(struct raw *r, uint32_t *next)
{
    struct infer_abi_submit s;
    uint32_t n = 0;
    while (raw_room(r) >= sizeof s + 8) {
        raw_submit_default(&s, (*next)++, 1500);
        s.head.bytes += 2;
        s.input_bytes = 2;
        raw_put_submit(r, &s, "Hi", 2);
        n++;
    }
    if (n > 0)
        raw_publish(r);
    return n;
}

/* What the daemon put for it: every end has a reason. */
static void read_all(struct raw *r)
{
    union {
        struct infer_abi_record head;
        struct infer_abi_done done;
        uint8_t bytes[INFER_RECORD_MAX];
    } e;
    uint32_t n_done = 0, n_full = 0;
    while (raw_next(r, 200, &e) == 1 && n_done < 1000) {
        if (e.head.kind != INFER_ABI_EV_DONE)
            continue;
        if (e.done.error != 0 && e.done.error != INFER_E_QUEUE_FULL &&
            e.done.error != INFER_E_SLOW_READER)
            fail_msg("a request that nobody read ended with %s", infer_error_name(e.done.error));
        n_done++;
        n_full += e.done.error == INFER_E_QUEUE_FULL;
    }
    print_message("then %u ends were there for it, %u of them refusals\n", n_done, n_full);
    assert_true(n_full > 0);
}

static void test_it_never_reads(void **state)
{
    struct raw r;
    uint32_t next = 1, n = 0;
    MANY_NEEDS_ROOT(); /* what it parks are its own user's slots: the other is another user */
    raw_open(&r, &d);
    struct other *other = other_starts(MANY_ALICE);
    uint64_t start = test_clock_us(), before = 0;
    uint64_t time = 2000000u * (unsigned)program_slowness();
    while (test_clock_us() < start + time) {
        n += put_some(&r, &next);
        if (before == 0 && test_clock_us() > start + time / 5)
            before = resident();
        usleep(500);
    }
    assert_constant(before, resident());
    other_ends(other);
    print_message("%u requests were taken from who never read\n", n);
    /* Twice the limit are taken, refusals as far as the token ring has room for them, and what the
     * request ring holds; then its submit waits. */
    assert_in_range(n, INFER_SESSION_REQUESTS_MAX,
                    2 * INFER_SESSION_REQUESTS_MAX + r.token_bytes / sizeof(struct infer_abi_done) +
                        r.request_bytes / sizeof(struct infer_abi_submit));
    assert_true(raw_room(&r) < sizeof(struct infer_abi_submit) + 8);
    read_all(&r);
    raw_close(&r);
    assert_all_given_back();
}

/* Many that come, ask for much and go without a word. */
static void test_they_come_and_go(void **state)
{
    uint32_t rounds = 300 / (uint32_t)program_slowness();
    uint64_t before = 0;
    struct other *other = other_starts(getuid());
    for (uint32_t i = 0; i < rounds; i++) {
        struct raw r;
        uint32_t next = 1;
        raw_open(&r, &d);
        put_some(&r, &next);
        raw_close(&r);
        if (i == rounds / 5)
            before = resident();
    }
    assert_constant(before, resident());
    other_ends(other);
    assert_all_given_back();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_tiny_requests_as_fast_as_it_can, setup, teardown),
        cmocka_unit_test_setup_teardown(test_it_never_reads, setup, teardown),
        cmocka_unit_test_setup_teardown(test_they_come_and_go, setup, teardown),
    };
    return cmocka_run_group_tests_name("flood", tests, NULL, NULL);
}
