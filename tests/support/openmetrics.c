/* openmetrics.c: see openmetrics.h. Limits: the sizes below; more is an error of the test's. */
#include "support/openmetrics.h"

#include <ctype.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NAME_MAX_BYTES = 128, VALUE_MAX_BYTES = 512, LABELS = 8, FAMILIES = 256, SETS = 512 };

struct label {
    char name[NAME_MAX_BYTES], value[VALUE_MAX_BYTES];
};

struct sample {
    char name[NAME_MAX_BYTES];
    struct label labels[LABELS];
    int n_labels;
    double value;
};

struct reader {
    const char *at, *end;
    int line;
    char family[NAME_MAX_BYTES], type[16], unit[NAME_MAX_BYTES]; /* the open one */
    bool has_unit, has_help, has_sample;
    char families[FAMILIES][NAME_MAX_BYTES];
    int n_families;
    char sets[SETS][2 * VALUE_MAX_BYTES]; /* of the open family: its label sets until now */
    int n_sets;
    double bucket_bound, bucket_count, infinite; /* of the open histogram */
    int buckets, counts, sums;
};

static char wrong[1024];

static bool fail(const struct reader *r, const char *format, ...)
{
    va_list args;
    int n = snprintf(wrong, sizeof wrong, "line %d: ", r->line);
    va_start(args, format);
    vsnprintf(wrong + n, sizeof wrong - (size_t)n, format, args);
    va_end(args);
    return false;
}

/* ---- words ----------------------------------------------------------------------------------- */

static bool take_name(struct reader *r, char *to, bool colons)
{
    size_t n = 0;
    while (r->at < r->end &&
           (isalnum((unsigned char)*r->at) || *r->at == '_' || (colons && *r->at == ':'))) {
        if ((n == 0 && isdigit((unsigned char)*r->at)) || n + 1 >= NAME_MAX_BYTES)
            return fail(r, "a name begins with a digit or is too long");
        to[n++] = *r->at++;
    }
    to[n] = '\0';
    return n > 0 || fail(r, "a name is missing at '%.20s'", r->at);
}

static bool take(struct reader *r, const char *word)
{
    size_t n = strlen(word);
    if ((size_t)(r->end - r->at) < n || memcmp(r->at, word, n) != 0)
        return fail(r, "'%s' is missing at '%.30s'", word, r->at);
    r->at += n;
    return true;
}

static bool utf8_is_valid(const char *text)
{
    const unsigned char *s = (const unsigned char *)text;
    while (*s != '\0') {
        int n = *s < 0x80             ? 0
                : (*s & 0xe0) == 0xc0 ? 1
                : (*s & 0xf0) == 0xe0 ? 2
                : (*s & 0xf8) == 0xf0 ? 3
                                      : -1;
        unsigned c = n == 0 ? *s : n > 0 ? *s & (0x3fu >> n) : 0;
        for (s++; n > 0 && (*s & 0xc0) == 0x80; n--)
            c = c << 6 | (*s++ & 0x3f);
        if (n != 0 || c > 0x10ffff || (c >= 0xd800 && c < 0xe000))
            return false;
    }
    return true;
}

static bool take_label_value(struct reader *r, char *to)
{
    size_t n = 0;
    if (!take(r, "\""))
        return false;
    while (r->at < r->end && *r->at != '"') {
        char c = *r->at++;
        if (c == '\n' || c == '\0' || n + 1 >= VALUE_MAX_BYTES)
            return fail(r, "a label's value has a newline or is too long");
        if (c == '\\') {
            c = r->at < r->end ? *r->at++ : '\0';
            if (c != '\\' && c != '"' && c != 'n')
                return fail(r, "'\\%c' is no escape", c);
            c = c == 'n' ? '\n' : c;
        }
        to[n++] = c;
    }
    to[n] = '\0';
    if (!utf8_is_valid(to))
        return fail(r, "a label's value is not UTF-8");
    return take(r, "\"");
}

/* Only what the grammar has: strtod() would also take hexadecimal digits and blanks. */
static bool take_number(struct reader *r, double *ret)
{
    char text[64], *end;
    size_t n = 0;
    while (r->at < r->end && *r->at != '\n' && *r->at != ' ' && n + 1 < sizeof text)
        text[n++] = *r->at++;
    text[n] = '\0';
    bool plain = n > 0 && strspn(text, "0123456789+-.eE") == n;
    if (!plain && strcmp(text, "+Inf") != 0 && strcmp(text, "-Inf") != 0 &&
        strcmp(text, "NaN") != 0)
        return fail(r, "'%s' is no number", text);
    *ret = strtod(text, &end);
    return *end == '\0' || fail(r, "'%s' is no number", text);
}

static bool take_sample(struct reader *r, struct sample *s)
{
    memset(s, 0, sizeof *s);
    if (!take_name(r, s->name, true))
        return false;
    if (*r->at == '{') {
        r->at++;
        do {
            struct label *l = &s->labels[s->n_labels];
            if (s->n_labels == LABELS)
                return fail(r, "too many labels");
            if (!take_name(r, l->name, false) || !take(r, "=") || !take_label_value(r, l->value))
                return false;
            for (int i = 0; i < s->n_labels; i++)
                if (strcmp(s->labels[i].name, l->name) == 0)
                    return fail(r, "label %s stands there twice", l->name);
            s->n_labels++;
        } while (*r->at == ',' && r->at++);
        if (!take(r, "}"))
            return false;
    }
    return take(r, " ") && take_number(r, &s->value) && take(r, "\n");
}

/* ---- families -------------------------------------------------------------------------------- */

static bool close_set(struct reader *r)
{
    if (strcmp(r->type, "histogram") != 0 || r->n_sets == 0)
        return true;
    if (r->buckets == 0 || isnan(r->infinite))
        return fail(r, "a histogram of %s before this line has no +Inf bucket", r->family);
    if (r->counts != r->sums || r->counts > 1)
        return fail(r, "a histogram of %s needs one _count and one _sum, or neither", r->family);
    return true;
}

static bool open_family(struct reader *r, const char *name)
{
    static const char *const suffixes[] = {"_total", "_created", "_bucket",
                                           "_count", "_sum",     "_info"};
    if (!close_set(r))
        return false;
    if (r->family[0] != '\0' && !r->has_help)
        return fail(r, "%s before this line has no HELP", r->family);
    for (int i = 0; i < r->n_families; i++) {
        if (strcmp(r->families[i], name) == 0)
            return fail(r, "the family %s is there twice or in pieces", name);
        for (size_t k = 0; k < sizeof suffixes / sizeof suffixes[0]; k++) {
            char clash[2 * NAME_MAX_BYTES];
            snprintf(clash, sizeof clash, "%s%s", r->families[i], suffixes[k]);
            if (strcmp(clash, name) == 0)
                return fail(r, "the name %s is a sample of %s", name, r->families[i]);
        }
    }
    if (r->n_families == FAMILIES)
        return fail(r, "too many families");
    strcpy(r->families[r->n_families++], name);
    strcpy(r->family, name);
    r->type[0] = r->unit[0] = '\0';
    r->has_unit = r->has_help = r->has_sample = false;
    r->n_sets = 0;
    return true;
}

static bool ends_with(const char *name, const char *end)
{
    size_t n = strlen(name), m = strlen(end);
    return n > m && strcmp(name + n - m, end) == 0 && name[n - m - 1] == '_';
}

static bool take_type(struct reader *r, const char *name)
{
    static const char *const types[] = {"counter", "gauge", "histogram", "info"};
    char type[NAME_MAX_BYTES];
    if (!take_name(r, type, false) || !open_family(r, name))
        return false;
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++)
        if (strcmp(types[i], type) == 0)
            strcpy(r->type, type);
    if (r->type[0] == '\0')
        return fail(r, "type %s is not one that is expected here", type);
    if (strcmp(type, "counter") == 0 && ends_with(name, "total"))
        return fail(r, "the family of a counter does not end in _total");
    return take(r, "\n");
}

static bool take_metadata(struct reader *r)
{
    char what[NAME_MAX_BYTES], name[NAME_MAX_BYTES];
    if (!take(r, "# ") || !take_name(r, what, false) || !take(r, " ") ||
        !take_name(r, name, true) || !take(r, " "))
        return false;
    if (strcmp(what, "TYPE") == 0)
        return take_type(r, name);
    if (strcmp(name, r->family) != 0 || r->has_sample)
        return fail(r, "%s of %s is outside of its family", what, name);
    if (strcmp(what, "UNIT") == 0) {
        if (r->has_unit || !take_name(r, r->unit, false) || !ends_with(name, r->unit) ||
            strcmp(r->type, "info") == 0)
            return fail(r, "the unit of %s is said twice, or not the end of its name", name);
        r->has_unit = true;
        return take(r, "\n");
    }
    if (strcmp(what, "HELP") != 0 || r->has_help)
        return fail(r, "%s is said twice or unknown", what);
    while (r->at < r->end && *r->at != '\n')
        r->at++;
    r->has_help = true;
    return take(r, "\n");
}

/* ---- samples --------------------------------------------------------------------------------- */

/* Opens the sample's label set, or goes on with it; `le` is no part of it. True: it is new. */
static bool enter_set(struct reader *r, const struct sample *s, bool *ret_new)
{
    char set[2 * VALUE_MAX_BYTES] = "";
    size_t n = 0;
    for (int i = 0; i < s->n_labels && n < sizeof set; i++)
        if (strcmp(s->labels[i].name, "le") != 0)
            n += (size_t)snprintf(set + n, sizeof set - n, "%s=\"%s\",", s->labels[i].name,
                                  s->labels[i].value);
    *ret_new = r->n_sets == 0 || strcmp(r->sets[r->n_sets - 1], set) != 0;
    if (!*ret_new)
        return true;
    for (int i = 0; i < r->n_sets; i++)
        if (strcmp(r->sets[i], set) == 0)
            return fail(r, "%s{%s} is there twice or in pieces", r->family, set);
    if (r->n_sets == SETS || !close_set(r))
        return r->n_sets != SETS ? false : fail(r, "too many label sets");
    strcpy(r->sets[r->n_sets++], set);
    r->buckets = r->counts = r->sums = 0;
    r->infinite = NAN;
    return true;
}

static bool take_bucket(struct reader *r, const struct sample *s)
{
    const struct label *le = &s->labels[s->n_labels - 1];
    if (s->n_labels == 0 || strcmp(le->name, "le") != 0 || r->counts + r->sums > 0)
        return fail(r, "a bucket of %s has no le as its last label, or comes late", r->family);
    double bound = strtod(le->value, NULL);
    bool written = strcmp(le->value, "+Inf") == 0 || strchr(le->value, '.') != NULL;
    if (!written || !isnan(r->infinite) ||
        (r->buckets > 0 && !(bound > r->bucket_bound && s->value >= r->bucket_count)))
        return fail(r, "buckets of %s do not ascend at le=\"%s\"", r->family, le->value);
    if (s->value != floor(s->value) || s->value < 0)
        return fail(r, "a bucket of %s counts %g", r->family, s->value);
    r->bucket_bound = bound;
    r->bucket_count = s->value;
    r->buckets++;
    if (isinf(bound))
        r->infinite = s->value;
    return true;
}

static bool take_of_histogram(struct reader *r, const struct sample *s, const char *suffix)
{
    if (strcmp(suffix, "_bucket") == 0)
        return take_bucket(r, s);
    if (strcmp(suffix, "_sum") == 0)
        return (++r->sums == 1 && s->value >= 0) || fail(r, "%s has another _sum", r->family);
    if (strcmp(suffix, "_count") != 0)
        return fail(r, "%s%s is no sample of a histogram", r->family, suffix);
    return (++r->counts == 1 && s->value == r->infinite) ||
           fail(r, "the _count of %s is not its +Inf bucket", r->family);
}

static bool take_value(struct reader *r)
{
    struct sample s;
    bool is_new;
    if (!take_sample(r, &s))
        return false;
    size_t n = strlen(r->family);
    if (n == 0 || strncmp(s.name, r->family, n) != 0)
        return fail(r, "%s belongs to no family, or not to %s", s.name, r->family);
    const char *suffix = s.name + n;
    r->has_sample = true;
    if (!enter_set(r, &s, &is_new))
        return false;
    if (strcmp(r->type, "histogram") == 0)
        return take_of_histogram(r, &s, suffix);
    if (!is_new)
        return fail(r, "%s is there twice", s.name);
    if (strcmp(r->type, "counter") == 0)
        return (strcmp(suffix, "_total") == 0 && s.value >= 0 && isfinite(s.value)) ||
               fail(r, "%s is no counter's sample", s.name);
    if (strcmp(r->type, "info") == 0)
        return (strcmp(suffix, "_info") == 0 && s.value == 1) ||
               fail(r, "%s is no info's sample", s.name);
    return suffix[0] == '\0' || fail(r, "%s is no gauge's sample", s.name);
}

/* ---- the whole ------------------------------------------------------------------------------- */

const char *openmetrics_check(const char *text, size_t bytes)
{
    static struct reader r;
    memset(&r, 0, sizeof r);
    r.at = text;
    r.end = text + bytes;
    if (memchr(text, '\0', bytes) != NULL)
        return "there is a NUL";
    for (r.line = 1; r.at < r.end; r.line++) {
        if (strncmp(r.at, "# EOF\n", 6) == 0) {
            if (!close_set(&r) || (r.family[0] != '\0' && !r.has_help))
                return wrong;
            return r.at + 6 == r.end ? NULL : "there is text after EOF";
        }
        if (!(*r.at == '#' ? take_metadata(&r) : take_value(&r)))
            return wrong;
    }
    return "there is no EOF";
}

double openmetrics_value(const char *text, const char *sample)
{
    size_t n = strlen(sample);
    for (const char *at = text; at != NULL && *at != '\0'; at = strchr(at, '\n')) {
        at += *at == '\n';
        if (strncmp(at, sample, n) == 0 && at[n] == ' ')
            return strtod(at + n, NULL);
    }
    return -1;
}

double openmetrics_sum(const char *text, const char *name)
{
    size_t n = strlen(name);
    double sum = 0;
    for (const char *at = text; at != NULL && *at != '\0'; at = strchr(at, '\n')) {
        at += *at == '\n';
        if (strncmp(at, name, n) != 0 || (at[n] != ' ' && at[n] != '{'))
            continue;
        const char *blank = at + n;
        if (*blank == '{') /* a label's value may hold blanks */
            blank = strstr(blank, "\"} ");
        if (blank != NULL)
            sum += strtod(blank + (*blank == '"' ? 2 : 0), NULL);
    }
    return sum;
}
