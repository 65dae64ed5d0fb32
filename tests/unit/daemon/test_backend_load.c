/* test_backend_load.c: which shared objects are loaded as backends, and which are not and why.
 *
 * The built backends are looked for in INFERD_BUILD; files that are no backends are made up in a
 * folder of its own. */
#include "backend_load.h"

#include "memory.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
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

static char folder[64];
static struct memory memory;
static struct infer_host host;
static const uint32_t cpus[] = {0};
static struct backend backend;
static struct report report;

static int make_folder(void **state)
{
    (void)state;
    strcpy(folder, "/tmp/inferd-backend-XXXXXX");
    memory_init(&memory, 0);
    memory_host_init(&memory, cpus, 1, &host);
    report = (struct report){0};
    memset(&backend, 0xa5, sizeof backend);
    return mkdtemp(folder) == NULL ? -1 : 0;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st;
    (void)type;
    (void)ftw;
    return remove(path);
}

static int remove_folder(void **state)
{
    (void)state;
    return nftw(folder, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

static const char *file_path(const char *name)
{
    static char path[256];
    snprintf(path, sizeof path, "%s/inferd-backend-%s.so", folder, name);
    return path;
}

/* Copies a file into the folder under a backend's name. */
static void copy_as(const char *from, const char *name, mode_t mode)
{
    int in = open(from, O_RDONLY | O_CLOEXEC);
    int out = open(file_path(name), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    char bytes[65536];
    ssize_t n;
    assert_true(in >= 0 && out >= 0);
    while ((n = read(in, bytes, sizeof bytes)) > 0)
        assert_int_equal(write(out, bytes, (size_t)n), n);
    assert_int_equal(fchmod(out, mode), 0);
    close(in);
    close(out);
}

static void put_text(const char *name, const char *text, mode_t mode)
{
    FILE *f = fopen(file_path(name), "w");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    fclose(f);
    assert_int_equal(chmod(file_path(name), mode), 0);
}

static int load(const char *name, const char *options)
{
    return backend_load_from(folder, name, options, &host, &backend, &report);
}

static void refused(const char *name, const char *why)
{
    int r = load(name, "");
    assert_true(r == -INFER_E_BACKEND_LOAD || r == -ELIBACC);
    assert_int_equal(report.code, INFER_E_BACKEND_LOAD);
    if (strstr(report.text, why) == NULL)
        print_error("'%s' lacks '%s'\n", report.text, why);
    assert_non_null(strstr(report.text, why));
    assert_int_equal(((unsigned char *)&backend)[0], 0xa5); /* untouched */
}

static void names_stay_in_the_folder(void **state)
{
    (void)state;
    static const char *const bad[] = {"",     "../x",     "a/b",
                                      ".",    "CPU",      "a b",
                                      "a.so", "\xc3\xbc", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        refused(bad[i], "a name has 1 to 31 of the characters");
    assert_int_equal(load("absent", ""), -ENOENT);
    report = (struct report){0};
    assert_int_equal(backend_load("surely-absent", "", &host, &backend, &report), -ENOENT);
    assert_int_equal(report.code, INFER_E_BACKEND_LOAD);
    assert_non_null(strstr(report.text, "there is no inferd-backend-surely-absent.so in /"));
}

static void files_that_are_no_backends(void **state)
{
    (void)state;
    put_text("text", "not a shared object\n", 0644);
    refused("text", "inferd-backend-text.so");
    put_text("empty", "", 0644);
    refused("empty", "inferd-backend-empty.so");
    assert_int_equal(mkdir(file_path("folder"), 0755), 0);
    refused("folder", "not a regular file");
    assert_int_equal(mkfifo(file_path("fifo"), 0600), 0);
    refused("fifo", "not a regular file"); /* and does not wait for a writer */
    Dl_info cmocka;
    assert_true(dladdr((void *)(uintptr_t)_cmocka_run_group_tests, &cmocka) != 0);
    copy_as(cmocka.dli_fname, "other", 0644);
    refused("other", "it lacks infer_backend_v1");
}

static void files_that_others_can_write(void **state)
{
    (void)state;
    put_text("group", "x", 0664);
    refused("group", "can be written by others; run: chmod go-w");
    put_text("world", "x", 0646);
    refused("world", "can be written by others; run: chmod go-w");
    put_text("safe", "x", 0644);
    assert_int_equal(chmod(folder, 0777), 0);
    refused("safe", "can be written by others");
    assert_int_equal(chmod(folder, 0755), 0);
    refused("safe", "inferd-backend-safe.so: file too short");
}

static void files_of_another_user(void **state)
{
    (void)state;
    put_text("theirs", "x", 0644);
    if (chown(file_path("theirs"), 12345, (gid_t)-1) != 0)
        skip(); /* only root can give files away */
    refused("theirs", "belongs to user 12345; only root's or the daemon's own is loaded");
}

static int never(void)
{
    return -1;
}

/* A complete table whose functions are never called. */
static struct infer_backend_api complete_table(void)
{
    void (*f)(void) = (void (*)(void))(uintptr_t)never;
    struct infer_backend_api api = {
        .abi = INFER_BACKEND_ABI, .bytes = sizeof api, .name = "test", .version = "1"};
    char *first = (char *)&api + offsetof(struct infer_backend_api, open);
    for (size_t at = 0; at < sizeof api - offsetof(struct infer_backend_api, open); at += sizeof f)
        memcpy(first + at, &f, sizeof f);
    return api;
}

static void tables_are_checked(void **state)
{
    (void)state;
    struct infer_backend_api api = complete_table();
    assert_int_equal(backend_check_api("p", &api, &report), 0);
    api.bytes += 64; /* a newer one of the same version only grew */
    assert_int_equal(backend_check_api("p", &api, &report), 0);
    api.bytes = sizeof api - 8;
    assert_int_equal(backend_check_api("p", &api, &report), -INFER_E_BACKEND_LOAD);
    assert_non_null(strstr(report.text, "bytes, this daemon needs"));
    api = complete_table();
    api.abi = INFER_BACKEND_ABI + 1;
    assert_int_equal(backend_check_api("p", &api, &report), -INFER_E_BACKEND_LOAD);
    assert_string_equal(report.text, "backend p: made for version 5 of the backend interface, this "
                                     "daemon has version 4; install both from one release");
    assert_int_equal(backend_check_api("p", NULL, &report), -INFER_E_BACKEND_LOAD);
    const size_t first = offsetof(struct infer_backend_api, open);
    for (size_t at = first; at < sizeof api; at += sizeof(void *)) {
        api = complete_table();
        memset((char *)&api + at, 0, sizeof(void *));
        assert_int_equal(backend_check_api("p", &api, &report), -INFER_E_BACKEND_LOAD);
    }
    api = complete_table(); /* these it may lack, but only together */
    api.rows_pin = NULL;
    api.rows_wait = NULL;
    api.rows_unpin = NULL;
    assert_int_equal(backend_check_api("p", &api, &report), 0);
    api = complete_table();
    api.submit = NULL;
    api.collect = NULL;
    api.max_under_way = 0;
    assert_int_equal(backend_check_api("p", &api, &report), 0);
    api = complete_table();
    api.name = NULL;
    assert_int_equal(backend_check_api("p", &api, &report), -INFER_E_BACKEND_LOAD);
}

/* The real ones, copied so that the folder's mode is known. */
static void built_backends_load(void **state)
{
    (void)state;
    static const char *const names[] = {"ref", "null", "cpu"};
    const char *build = getenv("INFERD_BUILD");
    int found = 0;
    for (size_t i = 0; build != NULL && i < 3; i++) {
        char from[512];
        snprintf(from, sizeof from, "%s/inferd-backend-%s.so", build, names[i]);
        if (access(from, R_OK) != 0)
            continue;
        found++;
        copy_as(from, names[i], 0755);
        int r = load(names[i], "");
        if (r < 0)
            print_error("%s\n", report.text);
        assert_int_equal(r, 0);
        assert_string_equal(backend.api->name, names[i]);
        assert_string_equal(backend.path, file_path(names[i]));
        struct infer_device device;
        backend.api->describe(backend.instance, &device);
        assert_true(device.name[0] != '\0');
        backend_unload(&backend);
        assert_null(backend.handle);
        backend_unload(&backend); /* nothing twice */
        memset(&backend, 0xa5, sizeof backend);
        assert_int_equal(load(names[i], "no-such-option=1"), -EINVAL);
        assert_non_null(strstr(report.text, "does not take the options 'no-such-option=1'"));
        assert_int_equal(((unsigned char *)&backend)[0], 0xa5);
        if (strcmp(names[i], "null") != 0)
            continue;
        assert_int_equal(load(names[i], "device=1"), -ENODEV);
        assert_non_null(strstr(report.text, "finds no device for the options device=1"));
    }
    if (found == 0)
        skip();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(names_stay_in_the_folder, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(files_that_are_no_backends, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(files_that_others_can_write, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(files_of_another_user, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(tables_are_checked, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(built_backends_load, make_folder, remove_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
