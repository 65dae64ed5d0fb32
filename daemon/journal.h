/* journal.h: lines of the log with their fields, to the journal of systemd. */
#ifndef INFERD_JOURNAL_H
#define INFERD_JOURNAL_H

#include "base/log.h"

#include <sys/uio.h>

/* If standard error is the journal (JOURNAL_STREAM names it), the log goes there by the journal's
 * own protocol from now on. True: it does. */
bool journal_begin(void);

/* ---- parts, for the tests -------------------------------------------------------------------- */

#define JOURNAL_FIELDS_MAX 6
#define JOURNAL_FIELD_MAX  96u /* bytes of each field but the message */

struct journal_entry {
    char message[2048], fields[JOURNAL_FIELDS_MAX][JOURNAL_FIELD_MAX];
    struct iovec parts[JOURNAL_FIELDS_MAX];
    int n;
};

/* Is this JOURNAL_STREAM ("device:inode") the descriptor? NULL is none. */
bool journal_is_stream(const char *stream, int fd);
void journal_fill(struct journal_entry *e, int level, const struct log_fields *fields,
                  const char *text);

#endif
