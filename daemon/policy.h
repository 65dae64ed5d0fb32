/* policy.h: what a user may do, from the command line and the files to the scheduler's terms.
 *
 *   WHO:KEY=VALUE,...     WHO is "default", a user's name or a uid
 *
 *   weight=1..10000         share of the machine beside other users (default 100)
 *   running=N waiting=N     requests at once; more of the one wait, more of the other are refused
 *   tokens-per-minute=N     prompt and answer tokens
 *   pages=N                 pages of sequence state at once
 *   best=CLASS              interactive, normal or batch: requests above it are treated as this
 *   domain=NAME             shares cached prefixes with all users of that domain; none: with nobody
 *
 * 0 means no limit. Threads: one (it asks the user database and keeps the names of domains). */
#ifndef INFERD_POLICY_H
#define INFERD_POLICY_H

#include "base/report.h"
#include "sched/sched.h"

#include <stdbool.h>

#define POLICY_KEYS        7u
#define POLICY_DOMAIN_MAX  64u  /* bytes of a domain's name, with the NUL */
#define POLICY_DOMAINS_MAX 256u /* names that one run of the daemon may come to know */
#define POLICY_VALUE_MAX   64u  /* bytes of a value, with the NUL */

struct policy {
    bool is_default; /* of everybody who has none of his own */
    uint32_t uid;
    struct sched_policy sched;
    uint32_t domain; /* 0: none; equal for equal names and never another name's in this process */
};

/* INVALID with a sentence that names the part that is wrong. */
int policy_parse(const char *text, struct policy *ret, struct report *report);

/* ---- parts ----------------------------------------------------------------------------------- */

/* The name of key 0 .. POLICY_KEYS - 1, and what its value is in the manual's terms. */
const char *policy_key(unsigned i);
const char *policy_key_argument(unsigned i);
/* "default" or "*", a uid, a user's name; sets is_default and uid. */
int policy_find_user(const char *who, struct policy *p, struct report *report);
/* One key of it; the sentence begins with the key. */
int policy_set(const char *key, const char *value, struct policy *p, struct report *report);

#endif
