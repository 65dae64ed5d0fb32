/* report.c: see report.h. */
#include "base/report.h"

#include <stdarg.h>
#include <stdio.h>

/* A sentence goes to terminals and logs: control bytes that a file or client put in must not. */
static void make_printable(char *text)
{
    for (; *text != '\0'; text++)
        if ((unsigned char)*text < 0x20 || *text == 0x7f)
            *text = '?';
}

int report_fail(struct report *r, int code, const char *format, ...)
{
    if (r != NULL) {
        va_list args;
        va_start(args, format);
        r->code = code;
        vsnprintf(r->text, sizeof r->text, format, args);
        va_end(args);
        make_printable(r->text);
    }
    return -code;
}
