/* test_stop.c: an answer ends before its stop strings however the text is cut into tokens. */
#include "engine/stop.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

/* Feeds text in pieces of `step` bytes; returns whether it stopped, and all that came out. */
static bool run(const struct stop_string *stops, size_t n, const char *text, size_t step, char *all)
{
    struct stop_matcher m;
    char out[512];
    size_t total = 0, bytes = strlen(text);
    stop_init(&m, stops, n);
    for (size_t at = 0; at < bytes; at += step) {
        size_t got, take = bytes - at < step ? bytes - at : step;
        bool stopped = stop_feed(&m, text + at, take, out, &got);
        memcpy(all + total, out, got);
        total += got;
        if (stopped) {
            all[total] = '\0';
            return true;
        }
    }
    total += stop_flush(&m, all + total);
    all[total] = '\0';
    return false;
}

static void check(const struct stop_string *stops, size_t n, const char *text, const char *expected,
                  bool stopped)
{
    char all[1024];
    for (size_t step = 1; step <= strlen(text); step++) {
        assert_int_equal(run(stops, n, text, step, all), stopped);
        assert_string_equal(all, expected);
    }
}

#define S(text)                                                                                    \
    {                                                                                              \
        text, sizeof(text) - 1                                                                     \
    }

static void test_ends_before_the_string(void **state)
{
    (void)state;
    const struct stop_string stops[] = {S("\n\n"), S("END")};
    check(stops, 2, "one\ntwo\n\nthree", "one\ntwo", true);
    check(stops, 2, "all is well, EN D", "all is well, EN D", false);
    check(stops, 2, "xEND\n\n", "x", true);
    check(stops, 2, "END", "", true);
}

static void test_a_prefix_at_the_end_comes_out(void **state)
{
    (void)state;
    const struct stop_string stops[] = {S("abcabd")};
    check(stops, 1, "xxabcab", "xxabcab", false);
    check(stops, 1, "abcabcabd", "abc", true); /* the match overlaps a failed one */
}

static void test_the_earliest_of_several_wins(void **state)
{
    (void)state;
    const struct stop_string stops[] = {S("cd"), S("bcde")};
    char all[64];
    assert_true(run(stops, 2, "abcde", 5, all));
    assert_string_equal(all, "a");
}

static void test_no_stop_strings_hold_nothing_back(void **state)
{
    (void)state;
    struct stop_matcher m;
    char out[256];
    size_t got;
    stop_init(&m, NULL, 0);
    assert_false(stop_feed(&m, "text", 4, out, &got));
    assert_int_equal(got, 4);
    assert_int_equal(stop_flush(&m, out), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ends_before_the_string),
        cmocka_unit_test(test_a_prefix_at_the_end_comes_out),
        cmocka_unit_test(test_the_earliest_of_several_wins),
        cmocka_unit_test(test_no_stop_strings_hold_nothing_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
