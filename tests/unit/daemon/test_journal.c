/* test_journal.c: which stream is the journal's, and what goes into an entry. */
#include "journal.h"

#include "messages.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static void test_stream(void **state)
{
    char text[64];
    int ends[2];
    struct stat st;
    assert_int_equal(pipe(ends), 0);
    assert_int_equal(fstat(ends[1], &st), 0);
    snprintf(text, sizeof text, "%llu:%llu", (unsigned long long)st.st_dev,
             (unsigned long long)st.st_ino);
    assert_true(journal_is_stream(text, ends[1]));
    assert_false(journal_is_stream(text, -1));
    strcat(text, "0");
    assert_false(journal_is_stream(text, ends[1]));
    strcat(text, "x");
    assert_false(journal_is_stream(text, ends[1]));
    assert_false(journal_is_stream("", ends[1]));
    assert_false(journal_is_stream("8", ends[1]));
    assert_false(journal_is_stream(NULL, ends[1]));
    close(ends[0]);
    close(ends[1]);
    setenv("JOURNAL_STREAM", "1:1", 1);
    assert_false(journal_begin());
}

static void expect(const struct journal_entry *e, int i, const char *text)
{
    assert_true(i < e->n);
    assert_int_equal(e->parts[i].iov_len, strlen(text));
    assert_memory_equal(e->parts[i].iov_base, text, strlen(text));
}

static void test_entry(void **state)
{
    struct journal_entry e;
    char field[64], longest[4096];
    journal_fill(&e, LOG_LEVEL_INFO, &(struct log_fields){0}, "hello");
    assert_int_equal(e.n, 3);
    expect(&e, 0, "MESSAGE=hello");
    expect(&e, 1, "PRIORITY=6");
    expect(&e, 2, "SYSLOG_IDENTIFIER=inferd");
    struct log_fields all = {MESSAGE_MODEL_LOADED, "foo", true, 0};
    memset(longest, 'x', sizeof longest - 1);
    longest[sizeof longest - 1] = '\0';
    journal_fill(&e, LOG_LEVEL_ERROR, &all, longest);
    assert_int_equal(e.n, JOURNAL_FIELDS_MAX);
    assert_int_equal(e.parts[0].iov_len, sizeof e.message - 1);
    snprintf(field, sizeof field, "MESSAGE_ID=%s", MESSAGE_MODEL_LOADED);
    expect(&e, 3, field);
    expect(&e, 4, "INFERD_MODEL=foo");
    expect(&e, 5, "INFERD_UID=0");
}

/* 128 bits each, no two alike. */
static void test_ids(void **state)
{
#define ID(name, id, text) id,
    static const char *const ids[] = {MESSAGE_TABLE(ID)};
    size_t n = sizeof ids / sizeof ids[0];
    for (size_t i = 0; i < n; i++) {
        assert_int_equal(strlen(ids[i]), 32);
        assert_int_equal(strspn(ids[i], "0123456789abcdef"), 32);
        for (size_t k = 0; k < i; k++)
            assert_string_not_equal(ids[i], ids[k]);
    }
}

static int n_sunk;

static bool sink(int level, const struct log_fields *fields, const char *text)
{
    n_sunk++;
    assert_string_equal(text, "to 7 sinks");
    assert_int_equal(level, LOG_LEVEL_WARNING);
    assert_string_equal(fields->model, "foo");
    return true;
}

static void test_sink(void **state)
{
    struct log_fields fields = {.model = "foo"};
    log_set_sink(sink);
    log_event(LOG_LEVEL_WARNING, &fields, "to %d sinks", 7);
    log_event(LOG_LEVEL_DEBUG, &fields, "not at this level");
    log_set_sink(NULL);
    assert_int_equal(n_sunk, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_stream), cmocka_unit_test(test_entry),
                                       cmocka_unit_test(test_ids), cmocka_unit_test(test_sink)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
