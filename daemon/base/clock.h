/* clock.h: the monotonic clock. sched/ never reads it: time is passed in. A program that defines
 * clock_ns() itself, as the simulator does, has its own time throughout. */
#ifndef INFERD_BASE_CLOCK_H
#define INFERD_BASE_CLOCK_H

#include <stdint.h>

uint64_t clock_ns(void);

static inline uint64_t clock_us(void)
{
    return clock_ns() / 1000u;
}

#endif
