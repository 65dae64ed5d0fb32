/* journal.c: see journal.h. Threads: no state but what journal_begin() sets. */
#include "journal.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <systemd/sd-journal.h>
#include <unistd.h>

bool journal_is_stream(const char *stream, int fd)
{
    unsigned long long device, inode;
    struct stat st;
    int end = 0;
    return stream != NULL && sscanf(stream, "%llu:%llu%n", &device, &inode, &end) == 2 &&
           stream[end] == '\0' && fstat(fd, &st) == 0 && st.st_dev == device && st.st_ino == inode;
}

static void add_field(struct journal_entry *e, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static void add_field(struct journal_entry *e, const char *format, ...)
{
    char *to = e->fields[e->n];
    va_list args;
    va_start(args, format);
    vsnprintf(to, JOURNAL_FIELD_MAX, format, args);
    va_end(args);
    e->parts[e->n++] = (struct iovec){to, strlen(to)};
}

void journal_fill(struct journal_entry *e, int level, const struct log_fields *fields,
                  const char *text)
{
    e->n = 0;
    snprintf(e->message, sizeof e->message, "MESSAGE=%s", text);
    e->parts[e->n++] = (struct iovec){e->message, strlen(e->message)};
    add_field(e, "PRIORITY=%d", level);
    add_field(e, "SYSLOG_IDENTIFIER=inferd");
    if (fields->message_id != NULL)
        add_field(e, "MESSAGE_ID=%s", fields->message_id);
    if (fields->model != NULL)
        add_field(e, "INFERD_MODEL=%s", fields->model);
    if (fields->has_uid)
        add_field(e, "INFERD_UID=%u", fields->uid);
}

static bool send_entry(int level, const struct log_fields *fields, const char *text)
{
    struct journal_entry e;
    journal_fill(&e, level, fields, text);
    return sd_journal_sendv(e.parts, e.n) == 0;
}

bool journal_begin(void)
{
    if (!journal_is_stream(getenv("JOURNAL_STREAM"), STDERR_FILENO))
        return false;
    log_set_sink(send_entry);
    return true;
}
