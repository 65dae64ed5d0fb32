/* log.h: lines for a person, on standard error, in the form that both a terminal and the journal
 * show well. Under systemd the line starts with <N>, its level, and has no time of its own.
 *
 * May be used by: daemon's own files, io, proto, engine. May not: base, model, kv, sched. */
#ifndef INFERD_BASE_LOG_H
#define INFERD_BASE_LOG_H

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

#define log_error(...)   log_line(LOG_LEVEL_ERROR, __VA_ARGS__)
#define log_warning(...) log_line(LOG_LEVEL_WARNING, __VA_ARGS__)
#define log_info(...)    log_line(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_debug(...)   log_line(LOG_LEVEL_DEBUG, __VA_ARGS__)

#endif
