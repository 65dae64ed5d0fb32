/* test_privacy.c: does the time that a request takes tell what another user asked before?
 *
 * Alice sends a long prompt, so that its state is cached. Then Bob sends that same prompt and one
 * that nobody ever sent, in an order drawn by a coin, and takes the time to his first token. After
 * many such rounds: if Alice's prompt were quicker for him than the other, he would know what she
 * asked. Alice herself sends it once more, and must be quicker: otherwise the test sees nothing.
 *
 * The statistic is the sign test: in how many of N rounds was the primed prompt the quicker one?
 * If its being primed makes no difference, the coin alone decides which of the two measurements is
 * called primed, so that the count is binomial (N, 1/2) exactly, whatever the distribution of the
 * times, their drift or what else the machine does (equal times are decided by another coin). The
 * bound is the smallest k for which the probability of a count outside of N/2 - k .. N/2 + k is at
 * most 10^-6; three quantities are tested, so a good daemon fails in 3 of a million runs. For
 * N = 300 it is k = 42: a leak that makes the primed prompt the quicker one in two rounds of three
 * is found with probability 0.83, one that saves the prefill (all rounds) always.
 *
 * The null backend takes 2 us a row, a millisecond for a prompt; the real ones take longer. */
#include "integration/many.h"

#include <math.h>

enum { ROUNDS = 300, PROMPT = 512 };

static struct daemon d;

/* ---- a user in a process of his own ---------------------------------------------------------- */

struct order {
    uint64_t prompt; /* which; 0: go home */
};

struct timing {
    int error;
    uint32_t n_cached;
    uint64_t first_us;   /* from before submit to the first token, on the user's own clock */
    uint64_t prefill_us; /* as the daemon says */
    uint64_t total_us;
};

struct user {
    pid_t pid;
    int ask[2], answer[2]; /* pipes */
};

static void measure(struct infer_conn *c, uint64_t prompt, struct timing *ret)
{
    struct infer_request r;
    struct infer_event e;
    int32_t ids[PROMPT];
    uint32_t id;
    memset(ret, 0, sizeof *ret);
    many_ids(ids, PROMPT, prompt);
    many_request(&r, ids, PROMPT, 2);
    uint64_t start = test_clock_us();
    ret->error = infer_submit(c, &r, &id);
    while (ret->error == 0) {
        int code = infer_next(c, id, 30000 * program_slowness(), &e);
        if (code != 1) {
            ret->error = code < 0 ? code : -1;
            return;
        }
        if (e.kind == INFER_EVENT_TOKEN && ret->first_us == 0)
            ret->first_us = test_clock_us() - start;
        if (e.kind == INFER_EVENT_DONE)
            break;
    }
    ret->total_us = test_clock_us() - start;
    ret->error = ret->error ? ret->error : e.error;
    ret->n_cached = e.n_prompt_cached;
    ret->prefill_us = e.prefill_us;
}

static int be_user(void *arg)
{
    struct user *u = arg;
    struct order order;
    struct timing timing;
    struct infer_conn *c = many_connect(&d);
    if (!c)
        return 1;
    while (read(u->ask[0], &order, sizeof order) == sizeof order && order.prompt != 0) {
        measure(c, order.prompt, &timing);
        if (write(u->answer[1], &timing, sizeof timing) != sizeof timing)
            return 2;
    }
    infer_close(c);
    return 0;
}

static void user_start(struct user *u, uid_t uid)
{
    assert_int_equal(pipe(u->ask), 0);
    assert_int_equal(pipe(u->answer), 0);
    u->pid = many_start(uid, be_user, u);
    close(u->ask[0]);
    close(u->answer[1]);
}

static void user_asks(struct user *u, uint64_t prompt, struct timing *ret)
{
    struct order order = {prompt};
    assert_int_equal(write(u->ask[1], &order, sizeof order), sizeof order);
    assert_int_equal(read(u->answer[0], ret, sizeof *ret), sizeof *ret);
    if (ret->error)
        fail_msg("a request ended with %d %s", ret->error, infer_error_name(ret->error));
    assert_true(ret->first_us > 0);
}

static void user_leaves(struct user *u)
{
    struct order order = {0};
    assert_int_equal(write(u->ask[1], &order, sizeof order), sizeof order);
    many_join(u->pid);
    close(u->ask[1]);
    close(u->answer[0]);
}

/* ---- the statistic --------------------------------------------------------------------------- */

/* The smallest k with P(|count - N/2| > k) <= 10^-6 for a fair coin. */
static int sign_bound(int n)
{
    double tail = 0;
    int k = n / 2;
    for (; k > 0; k--) {
        int count = n / 2 + k;
        tail += 2 * exp(lgamma(n + 1) - lgamma(count + 1) - lgamma(n - count + 1) - n * log(2));
        if (tail > 1e-6)
            break;
    }
    return k;
}

struct count {
    const char *what;
    int quicker;
};

static void tally(struct count *c, uint64_t primed, uint64_t fresh, uint64_t coin)
{
    c->quicker += primed < fresh || (primed == fresh && (coin & 1));
}

static void assert_fair(const struct count *c)
{
    int k = sign_bound(ROUNDS);
    print_message("%s: another user's prompt was quicker in %d of %d rounds (%d .. %d is chance)\n",
                  c->what, c->quicker, ROUNDS, ROUNDS / 2 - k, ROUNDS / 2 + k);
    assert_in_range(c->quicker, ROUNDS / 2 - k, ROUNDS / 2 + k);
}

/* ---- tests ----------------------------------------------------------------------------------- */

static void test_bound(void **state)
{
    assert_int_equal(sign_bound(300), 42);
    assert_in_range(sign_bound(1000), 76, 79); /* 4.89 standard deviations of sqrt(1000) / 2 */
}

static void test_another_users_prompt_takes_as_long_as_any(void **state)
{
    const char *argv[] = {"--model",           "unix=" DAEMON_MODEL, "--backend", "null",
                          "--backend-options", "row_delay_us=2",     NULL};
    struct count first = {"time to the first token", 0}, prefill = {"prefill", 0},
                 total = {"time to the end", 0};
    struct user alice, bob;
    struct timing once, again, fresh, primed;
    uint64_t number = 1, seed = test_clock_us();
    int own_quicker = 0, k = sign_bound(ROUNDS);
    MANY_NEEDS_ROOT();
    daemon_start(&d, argv);
    many_let_in(&d);
    user_start(&alice, MANY_ALICE);
    user_start(&bob, MANY_BOB);
    for (int i = 0; i < ROUNDS; i++) {
        uint64_t coin = many_mix(seed + (uint64_t)i), hers = number++, nobodys = number++;
        user_asks(&alice, hers, &once);
        for (int turn = 0; turn < 2; turn++) {
            bool is_primed = turn == (int)(coin >> 7 & 1);
            user_asks(&bob, is_primed ? hers : nobodys, is_primed ? &primed : &fresh);
        }
        user_asks(&alice, hers, &again);
        assert_int_equal(once.n_cached + primed.n_cached + fresh.n_cached, 0);
        assert_int_equal(again.n_cached, (PROMPT - 1) / 16 * 16);
        tally(&first, primed.first_us, fresh.first_us, coin >> 8);
        tally(&prefill, primed.prefill_us, fresh.prefill_us, coin >> 9);
        tally(&total, primed.total_us, fresh.total_us, coin >> 10);
        own_quicker += again.first_us < once.first_us;
    }
    user_leaves(&alice);
    user_leaves(&bob);
    print_message("her own prompt was quicker in %d of %d rounds\n", own_quicker, ROUNDS);
    assert_true(own_quicker > ROUNDS / 2 + k); /* the test has eyes */
    assert_fair(&first);
    assert_fair(&prefill);
    assert_fair(&total);
    daemon_stop(&d);
    daemon_done(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bound),
        cmocka_unit_test(test_another_users_prompt_takes_as_long_as_any),
    };
    return cmocka_run_group_tests_name("privacy", tests, NULL, NULL);
}
