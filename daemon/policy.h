/* policy.h: what a user may do, from the command line to the scheduler's terms.
 *
 *   WHO:KEY=VALUE,...     WHO is "default", a user's name or a uid
 *
 *   weight=1..10000         share of the machine beside other users (default 100)
 *   running=N waiting=N     requests at once; more of the one wait, more of the other are refused
 *   tokens-per-minute=N     prompt and answer tokens
 *   pages=N                 pages of sequence state at once
 *   best=CLASS              interactive, normal or batch: requests above it are treated as this
 *
 * 0 means no limit. Threads: start-up (it asks the user database). */
#ifndef INFERD_POLICY_H
#define INFERD_POLICY_H

#include "base/report.h"
#include "sched/sched.h"

#include <stdbool.h>

struct policy {
    bool is_default; /* of everybody who has none of his own */
    uint32_t uid;
    struct sched_policy sched;
};

/* INVALID with a sentence that names the part that is wrong. */
int policy_parse(const char *text, struct policy *ret, struct report *report);

#endif
