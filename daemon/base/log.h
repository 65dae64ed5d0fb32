/* log.h: lines for a person, on standard error, in the form that both a terminal and the journal
 * show well. Under systemd the line starts with <N>, its level, and has no time of its own.
 *
 * May be used by: daemon's own files, io, proto, engine. May not: base, model, kv, sched. */
#ifndef INFERD_BASE_LOG_H
#define INFERD_BASE_LOG_H

#include <stdbool.h>

enum log_level {
    LOG_LEVEL_ERROR = 3,
    LOG_LEVEL_WARNING = 4,
    LOG_LEVEL_INFO = 6,
    LOG_LEVEL_DEBUG = 7
};

/* Lines above the level are dropped. Default: INFO. */
void log_set_level(int level);
int log_level(void);

/* Any thread. One write(2) a line. */
void log_line(int level, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* What a program that reads the journal wants to know beside the text; what is not known is NULL
 * or false. */
struct log_fields {
    const char *message_id; /* of messages.h */
    const char *model;
    bool has_uid;
    unsigned uid;
};

/* A line with its fields; without a sink the fields are dropped. */
void log_event(int level, const struct log_fields *fields, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Takes lines (without their end) instead of standard error; false: it could not. Any thread calls
 * it. To be set before there are threads. */
void log_set_sink(bool (*sink)(int level, const struct log_fields *fields, const char *text));

#define log_error(...)   log_line(LOG_LEVEL_ERROR, __VA_ARGS__)
#define log_warning(...) log_line(LOG_LEVEL_WARNING, __VA_ARGS__)
#define log_info(...)    log_line(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_debug(...)   log_line(LOG_LEVEL_DEBUG, __VA_ARGS__)

#endif
