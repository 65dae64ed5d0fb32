/* program.h: runs a program to its end and keeps what it wrote. For tests. */
#ifndef INFERD_TESTS_PROGRAM_H
#define INFERD_TESTS_PROGRAM_H

#include <stddef.h>

struct program_result {
    int status;      /* exit status; 128 + signal; 124 when it had to be killed for time */
    char *out, *err; /* NUL-terminated */
    size_t out_bytes, err_bytes;
};

/* argv[0] without a slash is taken from the build folder (INFERD_BUILD, or build). input may be
 * NULL: /dev/null. The program dies with the test. Fails the test when it cannot be started. */
void program_run(const char *const *argv, const char *input, size_t input_bytes, int timeout_s,
                 struct program_result *ret);
void program_result_done(struct program_result *r);

/* Path of a built program, in static memory that the next call overwrites. */
const char *program_path(const char *name);

/* 1, or larger where programs run slower: under sanitizers. Multiply time bounds by it. */
int program_slowness(void);

#endif
