/* log.c: see log.h. Threads: the level is one atomic word, a line is one write. */
#include "base/log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static atomic_int level_max = LOG_LEVEL_INFO;
static bool (*line_sink)(int level, const struct log_fields *fields, const char *text);

void log_set_sink(bool (*sink)(int level, const struct log_fields *fields, const char *text))
{
    line_sink = sink;
}

void log_set_level(int level)
{
    atomic_store_explicit(&level_max, level, memory_order_relaxed);
}

int log_level(void)
{
    return atomic_load_explicit(&level_max, memory_order_relaxed);
}

static int put_prefix(char *line, size_t size, int level)
{
    static const char *const names[] = {"", "", "", "error", "warning", "", "info", "debug"};

    if (getenv("JOURNAL_STREAM") != NULL)
        return snprintf(line, size, "<%d>", level);
    struct timespec now;
    struct tm tm;
    clock_gettime(CLOCK_REALTIME, &now);
    localtime_r(&now.tv_sec, &tm);
    return snprintf(line, size, "%02d:%02d:%02d.%03ld inferd %s: ", tm.tm_hour, tm.tm_min,
                    tm.tm_sec, now.tv_nsec / 1000000, names[level & 7]);
}

static void put_line(int level, const struct log_fields *fields, const char *format, va_list args)
{
    static const struct log_fields none;
    char text[1900], line[2048];
    if (level > log_level() || vsnprintf(text, sizeof text, format, args) < 0)
        return;
    if (line_sink != NULL && line_sink(level, fields != NULL ? fields : &none, text))
        return;
    int n = put_prefix(line, sizeof line, level);
    n += snprintf(line + n, sizeof line - (size_t)n, "%s\n", text);
    ssize_t written = write(STDERR_FILENO, line, (size_t)n);
    (void)written; /* nowhere to say that the log is gone */
}

void log_line(int level, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    put_line(level, NULL, format, args);
    va_end(args);
}

void log_event(int level, const struct log_fields *fields, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    put_line(level, fields, format, args);
    va_end(args);
}
