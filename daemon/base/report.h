/* report.h: one failure, as a code of errors.h and a sentence for a person.
 *
 * Code in base/, model/, kv/ and proto/ never logs. A function that can fail for a reason which a
 * person must hear takes a struct report and fills it with report_fail(), which returns the code's
 * negative so that  return report_fail(r, INFER_E_MODEL_FORMAT, "...");  is the whole exit. */
#ifndef INFERD_BASE_REPORT_H
#define INFERD_BASE_REPORT_H

#include "inferd/errors.h"
#include "inferd/limits.h"

struct report {
    int code; /* INFER_E_ code, 0: nothing happened */
    char text[INFER_DETAIL_MAX];
};

/* Sets code and text (r may be NULL) and returns -code. Bytes of a file or client that go into the
 * text through %s are made printable. */
int report_fail(struct report *r, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#endif
