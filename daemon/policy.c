/* policy.c: see policy.h.
 *
 * SECURITY. A domain's number stands for cached prefixes, which may outlive the configuration that
 * named it. So a name keeps its number as long as the process lives, and no other name gets it.
 *
 * Limits: one policy's text is POLICY_TEXT_MAX bytes long at the most. */
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

int policy_find_user(const char *who, struct policy *p, struct report *report)
{
    if (strcmp(who, "default") == 0 || strcmp(who, "*") == 0) {
        p->is_default = true;
        return 0;
    }
    if (parse_u32(who, &p->uid) && p->uid != UINT32_MAX)
        return 0;
    const struct passwd *user = getpwnam(who);
    if (user == NULL)
        return report_fail(report, INFER_E_INVALID,
                           "there is no user '%.64s'; give a name, a uid or 'default'", who);
    p->uid = user->pw_uid;
    return 0;
}

/* ---- domains --------------------------------------------------------------------------------- */

/* domain_names[i] has the number i + 1. */
static char domain_names[POLICY_DOMAINS_MAX][POLICY_DOMAIN_MAX];
static uint32_t n_domains;

static int find_domain(const char *name, uint32_t *ret, struct report *report)
{
    size_t n = strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-");
    if (n == 0 || name[n] != '\0' || n >= POLICY_DOMAIN_MAX)
        return report_fail(report, INFER_E_INVALID,
                           "domain is '%.64s'; a domain's name has 1 to %u of A-Z a-z 0-9 . _ -",
                           name, POLICY_DOMAIN_MAX - 1);
    if (strcmp(name, "none") == 0) {
        *ret = 0;
        return 0;
    }
    uint32_t i = 0;
    while (i < n_domains && strcmp(domain_names[i], name) != 0)
        i++;
    if (i == POLICY_DOMAINS_MAX)
        return report_fail(report, INFER_E_INVALID,
                           "domain '%.64s' is one too many: the daemon has known %u since its "
                           "start; restart it",
                           name, POLICY_DOMAINS_MAX);
    if (i == n_domains)
        memcpy(domain_names[n_domains++], name, n + 1);
    *ret = i + 1;
    return 0;
}

/* ---- keys ------------------------------------------------------------------------------------ */

/* In the order of the manual. */
static const struct {
    const char *key, *argument;
} keys[POLICY_KEYS] = {
    {"weight", "N"}, {"running", "N"},  {"waiting", "N"},  {"tokens-per-minute", "N"},
    {"pages", "N"},  {"best", "CLASS"}, {"domain", "NAME"}};

const char *policy_key(unsigned i)
{
    return i < POLICY_KEYS ? keys[i].key : NULL;
}

const char *policy_key_argument(unsigned i)
{
    return i < POLICY_KEYS ? keys[i].argument : NULL;
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

int policy_set(const char *key, const char *value, struct policy *p, struct report *report)
{
    struct sched_policy *s = &p->sched;
    const struct {
        const char *key;
        uint32_t *to;
        uint32_t min, max;
    } numbers[] = {{"weight", &s->weight, 1, SCHED_WEIGHT_MAX},
                   {"running", &s->max_running, 0, UINT32_MAX},
                   {"waiting", &s->max_waiting, 0, UINT32_MAX},
                   {"tokens-per-minute", &s->tokens_per_minute, 0, UINT32_MAX},
                   {"pages", &s->max_pages, 0, UINT32_MAX}};
    if (strcmp(key, "domain") == 0)
        return find_domain(value, &p->domain, report);
    if (strcmp(key, "best") == 0) {
        if (parse_class(value, &s->best_class))
            return 0;
        return report_fail(report, INFER_E_INVALID,
                           "best is '%.64s'; it must be interactive, normal or batch", value);
    }
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
        uint32_t n;
        if (strcmp(key, numbers[i].key) != 0)
            continue;
        if (!parse_u32(value, &n) || n < numbers[i].min || n > numbers[i].max)
            return report_fail(report, INFER_E_INVALID,
                               "%s is '%.64s'; it must be a number from %u to %u", key, value,
                               numbers[i].min, numbers[i].max);
        *numbers[i].to = n;
        return 0;
    }
    return report_fail(report, INFER_E_INVALID,
                       "'%.64s' is none of weight, running, waiting, tokens-per-minute, pages, "
                       "best, domain",
                       key);
}

/* ---- the text of --policy -------------------------------------------------------------------- */

static int parse_text(char *text, struct policy *p, struct report *report)
{
    char *rest = strchr(text, ':');
    if (rest == NULL)
        return report_fail(report, INFER_E_INVALID, "'%.64s' has no ':'; write WHO:KEY=VALUE,...",
                           text);
    *rest++ = '\0';
    int rc = policy_find_user(text, p, report);
    for (char *pair; rc == 0 && (pair = strsep(&rest, ",")) != NULL;) {
        char *value = strchr(pair, '=');
        if (value == NULL)
            return report_fail(report, INFER_E_INVALID, "'%.64s' has no '='; write KEY=VALUE",
                               pair);
        *value++ = '\0';
        rc = policy_set(pair, value, p, report);
    }
    return rc;
}

int policy_parse(const char *text, struct policy *ret, struct report *report)
{
    char copy[POLICY_TEXT_MAX];
    struct policy p = {0};
    struct report why = {0};
    if (strlen(text) >= sizeof copy)
        return report_fail(report, INFER_E_INVALID, "--policy: the text is too long");
    strcpy(copy, text);
    if (parse_text(copy, &p, &why) < 0)
        return report_fail(report, INFER_E_INVALID, "--policy: %s", why.text);
    *ret = p;
    return 0;
}
