/* brief.h: INFERD_TEST_BRIEF asks for few cases, enough to run each kernel and way, under tools
 * that make a program hundreds of times slower. Header only. */
#ifndef TESTS_KERNEL_BRIEF_H
#define TESTS_KERNEL_BRIEF_H

#include <stdbool.h>
#include <stdlib.h>

static inline bool brief(void)
{
    return getenv("INFERD_TEST_BRIEF") != NULL;
}

#endif
