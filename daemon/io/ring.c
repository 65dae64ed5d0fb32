/* ring.c: see ring.h. */
#include "io/ring.h"

#include <errno.h>

#define OPCODES_MAX 16u

int ring_restrict(struct io_uring *ring, const uint8_t *opcodes, size_t n)
{
    struct io_uring_restriction rows[OPCODES_MAX] = {0};
    if (n == 0 || n > OPCODES_MAX)
        return -EINVAL;
    for (size_t i = 0; i < n; i++) {
        rows[i].opcode = IORING_RESTRICTION_SQE_OP;
        rows[i].sqe_op = opcodes[i];
    }
    return io_uring_register((unsigned)ring->ring_fd, IORING_REGISTER_RESTRICTIONS, rows,
                             (unsigned)n);
}

/* liburing 2.3 declares io_uring_enable_rings() but does not export it. */
int ring_enable(struct io_uring *ring)
{
    return io_uring_register((unsigned)ring->ring_fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0);
}
