/* stop.h: ends an answer before any of its stop strings, also when a string is spread over several
 * tokens.
 *
 * Text is fed as it becomes final; what could still be the beginning of a stop string is held back
 * (at most INFER_STOP_BYTES_MAX - 1 bytes) and comes out later or never. Threads: one. */
#ifndef INFERD_ENGINE_STOP_H
#define INFERD_ENGINE_STOP_H

#include "inferd/limits.h"

#include <stdbool.h>
#include <stddef.h>

struct stop_string {
    const char *data;
    size_t bytes; /* 1 .. INFER_STOP_BYTES_MAX */
};

struct stop_matcher {
    const struct stop_string *strings; /* the caller's, alive as long as the matcher */
    size_t n_strings;
    size_t n_held;
    char held[INFER_STOP_BYTES_MAX];
};

void stop_init(struct stop_matcher *m, const struct stop_string *strings, size_t n);

/* Feeds bytes; writes what is safe to ret (room: bytes + INFER_STOP_BYTES_MAX) and its size to
 * *ret_bytes. True: a stop string was found; ret ends just before it, the rest is dropped. */
bool stop_feed(struct stop_matcher *m, const char *text, size_t bytes, char *ret,
               size_t *ret_bytes);

/* The answer is over: what is held back comes out. Returns its size. */
size_t stop_flush(struct stop_matcher *m, char *ret);

#endif
