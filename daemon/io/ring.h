/* ring.h: io_uring that can do what its owner needs and no more, so that who gets hold of a ring's
 * memory or descriptor gets hold of little. Used by the two that have rings, loop_uring.c and
 * stream_uring.c. */
#ifndef INFERD_IO_RING_H
#define INFERD_IO_RING_H

#include <liburing.h>
#include <stddef.h>
#include <stdint.h>

/* Of a ring that was set up with IORING_SETUP_R_DISABLED and is not enabled yet: once it is, it
 * takes these opcodes alone, with no flags, and registers nothing. At most 16. Negative errno. */
int ring_restrict(struct io_uring *ring, const uint8_t *opcodes, size_t n);

/* From now on it works; by the thread that will submit to it. Negative errno. */
int ring_enable(struct io_uring *ring);

#endif
