/* lost.h: the devices that were lost lately, as one daemon tells the next.
 *
 * A daemon whose device is lost ends, and the one that follows must know why it was started: the
 * device may need a while before it can be opened again (a driver that resets it, a machine that
 * wakes up), and one that is lost again and again would end every daemon until the service manager
 * starts no more of them. So each loss is a line of the file "lost" in the state directory, a
 * step that did not end until the watchdog saw it likewise, though one that ends after all is taken
 * back: the device's name and the time in seconds since 1970. Lines older than LOST_MEMORY_S count
 * no more and leave the file at the next start.
 *
 * Threads: the one that starts and ends the daemon. */
#ifndef INFERD_LOST_H
#define INFERD_LOST_H

#include "inferd/limits.h"

#include <stdint.h>

#define LOST_MEMORY_S 600
/* So many losses within that time, and the device is left alone. */
#define LOST_TIMES_MAX 3u
/* Lines that are read; the oldest are the ones too many. */
#define LOST_LINES_MAX 64u

struct lost {
    int fd;           /* of the file; -1: what is lost is not kept */
    int64_t added_at; /* where in it the last line begins that was added; -1: none was */
    uint32_t n;
    struct lost_line {
        char device[INFER_DEVICE_NAME_MAX];
        int64_t at_s;
    } lines[LOST_LINES_MAX];
};

/* Reads the file and keeps it open, as what may be opened later is limited. state_directory NULL:
 * there is none. Negative errno: nothing is known, and losses are not kept. */
int lost_open(struct lost *ret, const char *state_directory, int64_t now_s);
void lost_close(struct lost *l);
/* How often this device was lost lately. l may be NULL: never. */
uint32_t lost_times(const struct lost *l, const char *device);
/* It is lost, now. Negative errno: the next daemon will not know. */
int lost_add(struct lost *l, const char *device, int64_t now_s);
/* What was added last was no loss. Once for each lost_add(), or nothing happens. Negative errno: it
 * stays noted. */
int lost_take_back(struct lost *l);

#endif
