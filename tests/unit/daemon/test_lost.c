/* test_lost.c: what one daemon notes of lost devices and the next one reads. */
#include "lost.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define NOW 1700000000

static char folder[64], path[96];
static struct lost lost;

static void write_file(const char *text)
{
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    assert_int_equal(fclose(f), 0);
}

static void expect_file(const char *text)
{
    char have[16384];
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    have[fread(have, 1, sizeof have - 1, f)] = '\0';
    fclose(f);
    assert_string_equal(have, text);
}

static void noted_and_read(void **state)
{
    (void)state;
    assert_int_equal(lost_open(&lost, folder, NOW), 0);
    assert_int_equal(lost_times(&lost, "cuda:0"), 0);
    assert_int_equal(lost_add(&lost, "cuda:0", NOW), 0);
    assert_int_equal(lost_times(&lost, "cuda:0"), 0); /* it is the next daemon's to know */
    lost_close(&lost);
    for (int n = 1; n <= 3; n++) {
        assert_int_equal(lost_open(&lost, folder, NOW + n), 0);
        assert_int_equal(lost_times(&lost, "cuda:0"), n);
        assert_int_equal(lost_times(&lost, "cuda:1"), 0);
        assert_int_equal(lost_add(&lost, "cuda:0", NOW + n), 0);
        lost_close(&lost);
    }
}

static void taken_back(void **state)
{
    (void)state;
    write_file("cuda:0 1700000000\n");
    assert_int_equal(lost_open(&lost, folder, NOW), 0);
    assert_int_equal(lost_take_back(&lost), 0); /* it added none */
    expect_file("cuda:0 1700000000\n");
    assert_int_equal(lost_add(&lost, "cuda:0", NOW + 1), 0);
    assert_int_equal(lost_add(&lost, "cuda:1", NOW + 2), 0);
    assert_int_equal(lost_take_back(&lost), 0);
    assert_int_equal(lost_take_back(&lost), 0);
    expect_file("cuda:0 1700000000\ncuda:0 1700000001\n");
    assert_int_equal(lost_add(&lost, "cuda:1", NOW + 3), 0);
    expect_file("cuda:0 1700000000\ncuda:0 1700000001\ncuda:1 1700000003\n");
}

static void forgotten(void **state)
{
    (void)state;
    char text[128];
    snprintf(text, sizeof text, "cuda:0 %d\ncuda:0 %d\ncuda:1 %d\n", NOW - LOST_MEMORY_S - 1,
             NOW - LOST_MEMORY_S, NOW);
    write_file(text);
    assert_int_equal(lost_open(&lost, folder, NOW), 0);
    assert_int_equal(lost_times(&lost, "cuda:0"), 1);
    assert_int_equal(lost_times(&lost, "cuda:1"), 1);
    lost_close(&lost);
    expect_file(strchr(text, '\n') + 1);
}

static void lines_that_are_none(void **state)
{
    (void)state;
    char long_name[512] = "";
    memset(long_name, 'x', 300);
    static const char *const bad[] = {"\n",
                                      "cuda:0\n",
                                      "cuda:0 \n",
                                      "1700000000\n",
                                      "cuda:0 1700000000 more\n",
                                      "cuda:0 x\n",
                                      "cuda:0 1700000001\n" /* of the future */,
                                      "cuda:0 1700000000" /* cut short */};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        write_file(bad[i]);
        assert_int_equal(lost_open(&lost, folder, NOW), 0);
        assert_int_equal(lost.n, 0);
        lost_close(&lost);
        expect_file("");
    }
    strcat(long_name, " 1700000000\n");
    write_file(long_name);
    assert_int_equal(lost_open(&lost, folder, NOW), 0);
    assert_int_equal(lost.n, 0);
}

/* More than is read. */
static void a_long_file(void **state)
{
    (void)state;
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    for (int i = 0; i < 2000; i++)
        fprintf(f, "cuda:0 %d\n", NOW);
    assert_int_equal(fclose(f), 0);
    assert_int_equal(lost_open(&lost, folder, NOW), 0);
    assert_int_equal(lost_times(&lost, "cuda:0"), LOST_LINES_MAX);
    lost_close(&lost);
    assert_int_equal(lost_open(&lost, folder, NOW), 0);
    assert_int_equal(lost_times(&lost, "cuda:0"), LOST_LINES_MAX);
}

static void no_folder(void **state)
{
    (void)state;
    assert_int_equal(lost_open(&lost, NULL, NOW), 0);
    assert_int_equal(lost_add(&lost, "cuda:0", NOW), 0);
    assert_int_equal(lost_take_back(&lost), 0);
    assert_int_equal(lost_times(&lost, "cuda:0"), 0);
    assert_int_equal(lost_times(NULL, "cuda:0"), 0);
    assert_int_equal(lost_open(&lost, "/nowhere/at/all", NOW), -ENOENT);
    assert_int_equal(lost_add(&lost, "cuda:0", NOW), 0);
    assert_int_equal(symlink("elsewhere", path), 0); /* nobody leads it astray */
    assert_int_equal(lost_open(&lost, folder, NOW), -ELOOP);
}

static int begin(void **state)
{
    (void)state;
    snprintf(folder, sizeof folder, "/tmp/inferd-lost.XXXXXX");
    if (mkdtemp(folder) == NULL)
        return -1;
    snprintf(path, sizeof path, "%s/lost", folder);
    lost.fd = -1;
    return 0;
}

static int end(void **state)
{
    (void)state;
    lost_close(&lost);
    unlink(path);
    return rmdir(folder);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, begin, end)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(noted_and_read),      TEST(taken_back),  TEST(forgotten),
        TEST(lines_that_are_none), TEST(a_long_file), TEST(no_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
