/* policy.c: see policy.h. Limits: one policy's text is POLICY_TEXT_MAX bytes long at the most. */
#include "policy.h"

#include <errno.h>
#include <pwd.h>
#include <stdlib.h>
#include <string.h>

#define POLICY_TEXT_MAX 256u

static bool parse_u32(const char *text, uint32_t *ret)
{
    char *end;
    errno = 0;
    unsigned long long n = strtoull(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end != '\0' || errno != 0 || n > UINT32_MAX)
        return false;
    *ret = (uint32_t)n;
    return true;
}

static int parse_who(const char *who, struct policy *p, struct report *report)
{
    if (strcmp(who, "default") == 0) {
        p->is_default = true;
        return 0;
    }
    if (parse_u32(who, &p->uid) && p->uid != UINT32_MAX)
        return 0;
    const struct passwd *user = getpwnam(who);
    if (user == NULL)
        return report_fail(report, INFER_E_INVALID,
                           "--policy: there is no user '%.64s'; give a name, a uid or 'default'",
                           who);
    p->uid = user->pw_uid;
    return 0;
}

static bool parse_class(const char *text, enum sched_class *ret)
{
    static const char *const names[SCHED_CLASSES] = {"interactive", "normal", "batch"};
    for (unsigned i = 0; i < SCHED_CLASSES; i++)
        if (strcmp(text, names[i]) == 0) {
            *ret = (enum sched_class)i;
            return true;
        }
    return false;
}

static int parse_pair(const char *key, const char *value, struct sched_policy *p,
                      struct report *report)
{
    const struct {
        const char *key;
        uint32_t *to;
        uint32_t min, max;
    } numbers[] = {{"weight", &p->weight, 1, SCHED_WEIGHT_MAX},
                   {"running", &p->max_running, 0, UINT32_MAX},
                   {"waiting", &p->max_waiting, 0, UINT32_MAX},
                   {"tokens-per-minute", &p->tokens_per_minute, 0, UINT32_MAX},
                   {"pages", &p->max_pages, 0, UINT32_MAX}};
    if (strcmp(key, "best") == 0) {
        if (parse_class(value, &p->best_class))
            return 0;
        return report_fail(report, INFER_E_INVALID,
                           "--policy: best is '%.64s'; it must be interactive, normal or batch",
                           value);
    }
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
        uint32_t n;
        if (strcmp(key, numbers[i].key) != 0)
            continue;
        if (!parse_u32(value, &n) || n < numbers[i].min || n > numbers[i].max)
            return report_fail(report, INFER_E_INVALID,
                               "--policy: %s is '%.64s'; it must be a number from %u to %u", key,
                               value, numbers[i].min, numbers[i].max);
        *numbers[i].to = n;
        return 0;
    }
    return report_fail(report, INFER_E_INVALID,
                       "--policy: '%.64s' is none of weight, running, waiting, tokens-per-minute, "
                       "pages, best",
                       key);
}

int policy_parse(const char *text, struct policy *ret, struct report *report)
{
    char copy[POLICY_TEXT_MAX];
    struct policy p = {0};
    if (strlen(text) >= sizeof copy)
        return report_fail(report, INFER_E_INVALID, "--policy: the text is too long");
    strcpy(copy, text);
    char *rest = strchr(copy, ':');
    if (rest == NULL)
        return report_fail(report, INFER_E_INVALID,
                           "--policy: '%.64s' has no ':'; write WHO:KEY=VALUE,...", text);
    *rest++ = '\0';
    int rc = parse_who(copy, &p, report);
    for (char *pair; rc == 0 && (pair = strsep(&rest, ",")) != NULL;) {
        char *value = strchr(pair, '=');
        if (value == NULL)
            return report_fail(report, INFER_E_INVALID,
                               "--policy: '%.64s' has no '='; write KEY=VALUE", pair);
        *value++ = '\0';
        rc = parse_pair(pair, value, &p.sched, report);
    }
    if (rc == 0)
        *ret = p;
    return rc;
}
