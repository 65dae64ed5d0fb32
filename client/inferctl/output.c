/* output.c: JSON values and figures as inferctl prints them.
 *
 * JSON is one line to a pipe and indented on a terminal. Reals carry nine digits, which is all
 * that the daemon's floats hold. */
#include "ctl.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define OUTPUT_REAL_DIGITS 9

/* json_stringn() refuses what is not UTF-8, and that is also how bad bytes are found: the largest
 * good beginning is taken, one byte replaced, and so on. A good text costs one call. */
json_t *output_json_text(const char *text, size_t n)
{
    json_t *string = json_stringn(text ? text : "", text ? n : 0);
    struct ctl_buffer repaired = {NULL, 0, 0};

    if (string || !text)
        return string;
    for (size_t at = 0; at < n;) {
        size_t length = 1;
        unsigned char c = (unsigned char)text[at];
        json_t *probe;

        if (c >= 0xc2)
            length = c < 0xe0 ? 2 : c < 0xf0 ? 3 : 4;
        if (length > n - at)
            length = n - at;
        probe = json_stringn(text + at, length);
        if (probe) {
            buffer_append(&repaired, text + at, length);
            json_decref(probe);
            at += length;
        } else {
            buffer_append(&repaired, "\xef\xbf\xbd", 3);
            at++;
        }
    }
    string = json_stringn(repaired.bytes, repaired.n);
    buffer_done(&repaired);
    return string;
}

json_t *output_json_number(double value)
{
    return isfinite(value) ? json_real(value) : json_null();
}

json_t *output_json_logprob(const struct infer_logprob *entry)
{
    return json_pack("{s:i, s:o}", "id", (int)entry->token, "logprob",
                     output_json_number((double)entry->logprob));
}

int output_json(json_t *object)
{
    size_t flags = JSON_REAL_PRECISION(OUTPUT_REAL_DIGITS) | JSON_ENCODE_ANY;
    char *text =
        object ? json_dumps(object, term_is_output() ? flags | JSON_INDENT(2) : flags) : NULL;

    json_decref(object);
    if (!text)
        return ctl_fail(INFER_E_OUT_OF_MEMORY, NULL);
    term_write(stdout, text, strlen(text));
    putchar('\n');
    free(text);
    return ctl_finish_output(0);
}

const char *output_size(uint64_t bytes, char *buffer)
{
    static const char units[] = "BKMGTPE";
    double value = (double)bytes;
    size_t unit = 0;

    while (value >= 1023.95 && unit + 2 < sizeof units) {
        value /= 1024.0;
        unit++;
    }
    snprintf(buffer, 16, unit ? "%.1f%c" : "%.0f%c", value, units[unit]);
    return buffer;
}

const char *output_duration(uint64_t us, char *buffer)
{
    unsigned long long s = us / 1000000u;

    if (s < 60)
        snprintf(buffer, 32, "%.1fs", (double)us * 1e-6);
    else if (s < 3600)
        snprintf(buffer, 32, "%llumin %llus", s / 60, s % 60);
    else if (s < 86400)
        snprintf(buffer, 32, "%lluh %llumin", s / 3600, s / 60 % 60);
    else
        snprintf(buffer, 32, "%llud %lluh", s / 86400, s / 3600 % 24);
    return buffer;
}
