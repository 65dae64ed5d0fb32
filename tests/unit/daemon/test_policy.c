/* test_policy.c: what --policy takes, and what it says of what it does not take. */
#include "policy.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

static struct policy policy;
static struct report report;

static void everything_in_one(void **state)
{
    (void)state;
    assert_int_equal(policy_parse("1000:weight=300,running=4,waiting=9,tokens-per-minute=60000,"
                                  "pages=77,best=batch",
                                  &policy, &report),
                     0);
    assert_false(policy.is_default);
    assert_int_equal(policy.uid, 1000);
    assert_int_equal(policy.sched.weight, 300);
    assert_int_equal(policy.sched.max_running, 4);
    assert_int_equal(policy.sched.max_waiting, 9);
    assert_int_equal(policy.sched.tokens_per_minute, 60000);
    assert_int_equal(policy.sched.max_pages, 77);
    assert_int_equal(policy.sched.best_class, SCHED_CLASS_BATCH);
}

static void default_and_names(void **state)
{
    (void)state;
    assert_int_equal(policy_parse("default:running=2", &policy, &report), 0);
    assert_true(policy.is_default);
    assert_int_equal(policy.sched.weight, 0); /* the scheduler's own default */
    assert_int_equal(policy_parse("root:weight=1", &policy, &report), 0);
    assert_int_equal(policy.uid, 0);
}

/* A name has one number as long as the process lives, and no other name gets it. */
static void domains_have_numbers(void **state)
{
    (void)state;
    assert_int_equal(policy_parse("1:domain=red", &policy, &report), 0);
    uint32_t red = policy.domain;
    assert_int_not_equal(red, 0);
    assert_int_equal(policy_parse("2:domain=blue", &policy, &report), 0);
    uint32_t blue = policy.domain;
    assert_int_not_equal(blue, 0);
    assert_int_not_equal(blue, red);
    assert_int_equal(policy_parse("3:weight=2,domain=red", &policy, &report), 0);
    assert_int_equal(policy.domain, red);
    assert_int_equal(policy_parse("3:domain=none", &policy, &report), 0);
    assert_int_equal(policy.domain, 0);
    assert_int_equal(policy_parse("3:weight=2", &policy, &report), 0);
    assert_int_equal(policy.domain, 0);
    char text[32];
    for (unsigned i = 2; i < POLICY_DOMAINS_MAX; i++) {
        snprintf(text, sizeof text, "4:domain=d%u", i);
        assert_int_equal(policy_parse(text, &policy, &report), 0);
        assert_int_not_equal(policy.domain, red);
        assert_int_not_equal(policy.domain, blue);
    }
    assert_int_equal(policy_parse("4:domain=one-more", &policy, &report), -INFER_E_INVALID);
    assert_int_equal(policy_parse("4:domain=blue", &policy, &report), 0);
    assert_int_equal(policy.domain, blue);
}

static void refused(const char *text, const char *word)
{
    memset(&policy, 0x55, sizeof policy);
    struct policy before = policy;
    assert_int_equal(policy_parse(text, &policy, &report), -INFER_E_INVALID);
    assert_memory_equal(&policy, &before, sizeof policy);
    if (strstr(report.text, word) == NULL)
        fail_msg("'%s' says '%s', without '%s'", text, report.text, word);
}

static void wrong_parts_are_named(void **state)
{
    (void)state;
    refused("1000", "no ':'");
    refused("nobody-of-that-name:weight=1", "nobody-of-that-name");
    refused("4294967295:weight=1", "4294967295");
    refused("1:weight", "no '='");
    refused("1:weight=0", "from 1 to 10000");
    refused("1:weight=10001", "10001");
    refused("1:running=-1", "'-1'");
    refused("1:running=4294967296", "4294967296");
    refused("1:best=fast", "'fast'");
    refused("1:wieght=5", "'wieght'");
    refused("1:", "no '='");
    refused("1:domain=", "1 to 63");
    refused("1:domain=a/b", "'a/b'");
    char text[400];
    memset(text, 'x', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    refused(text, "too long");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(everything_in_one),
        cmocka_unit_test(default_and_names),
        cmocka_unit_test(domains_have_numbers),
        cmocka_unit_test(wrong_parts_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
