/* test_sandbox.c: the daemon that serves is in its sandbox, every thread of it, whichever event
 * loop and backend it has, and does its work there. */
#include "support/daemon.h"

#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static bool has_line(const char *path, const char *line)
{
    char text[256];
    bool found = false;
    FILE *f = fopen(path, "re");
    while (f != NULL && !found && fgets(text, sizeof text, f) != NULL)
        found = strcmp(text, line) == 0;
    if (f != NULL)
        fclose(f);
    return found;
}

/* How many threads; all are filtered and can gain nothing. */
static int check_threads(const struct daemon *d)
{
    char path[400];
    int n = 0;
    snprintf(path, sizeof path, "/proc/%d/task", (int)d->pid);
    DIR *folder = opendir(path);
    assert_non_null(folder);
    for (struct dirent *e; (e = readdir(folder)) != NULL;) {
        if (e->d_name[0] == '.')
            continue;
        snprintf(path, sizeof path, "/proc/%d/task/%s/status", (int)d->pid, e->d_name);
        if (access(path, F_OK) < 0)
            continue; /* it ended */
        if (!has_line(path, "NoNewPrivs:\t1\n") || !has_line(path, "Seccomp:\t2\n"))
            fail_msg("thread %s is not in the sandbox", e->d_name);
        n++;
    }
    closedir(folder);
    return n;
}

/* A system where filters are forbidden is told of, and is no failure of the daemon. */
static bool is_allowed(const struct daemon *d)
{
    char *log = daemon_read_log(d);
    bool allowed = strstr(log, "going on without") == NULL;
    free(log);
    if (!allowed)
        print_message("skip - this system allows no filter\n");
    return allowed;
}

static void every_thread_is_in_it(void **state)
{
    (void)state;
    static const char *const loops[] = {"io_uring", "epoll"}, *const backends[] = {"null", "cpu"};
    for (size_t i = 0; i < 2; i++)
        for (size_t k = 0; k < 2; k++) {
            struct daemon d = {0};
            const char *arguments[] = {"--model",   "unix=" DAEMON_MODEL, "--backend",
                                       backends[k], "--event-loop",       loops[i],
                                       NULL};
            daemon_start(&d, arguments);
            daemon_assert_serves(&d);
            if (is_allowed(&d))
                assert_true(check_threads(&d) >= 3); /* event, engine, preparing */
            daemon_assert_serves(&d);
            daemon_stop(&d);
            daemon_done(&d);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_thread_is_in_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
