/* openmetrics.h: a strict reader of OpenMetrics text 1.0.0, for tests.
 *
 * Takes what the specification says an exposition must be, and nothing else: every family with TYPE
 * first, its UNIT at the end of its name, no family and no metric twice or in pieces, suffixes and
 * labels that fit the type, buckets that grow and end in +Inf, counters that are not negative, one
 * EOF at the end. Also held: every family has its HELP. */
#ifndef INFERD_TESTS_OPENMETRICS_H
#define INFERD_TESTS_OPENMETRICS_H

#include <stdbool.h>
#include <stddef.h>

/* NULL: it is valid. Otherwise what is wrong, in static memory, with the number of the line. */
const char *openmetrics_check(const char *text, size_t bytes);

/* The value of the sample that is written `name{labels}` (as in the text), or -1: there is none. */
double openmetrics_value(const char *text, const char *sample);
/* The sum over all samples of that name, whatever their labels. */
double openmetrics_sum(const char *text, const char *name);

#endif
