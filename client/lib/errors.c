/* errors.c: the table of errors.h as functions. No state. */
#include "conn.h"

#include <limits.h>
#include <stddef.h>
#include <string.h>

struct error_row {
    int code, exit_status;
    const char *name, *text;
};

static const struct error_row *find_row(int code)
{
    static const struct error_row rows[] = {
#define ERROR_ROW(name, code, exit_status, text) {code, exit_status, #name, text},
        INFER_ERROR_TABLE (ERROR_ROW)
#undef ERROR_ROW
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        if (rows[i].code == code)
            return &rows[i];
    return NULL;
}

static int positive(int code)
{
    return code == INT_MIN ? INT_MAX : code < 0 ? -code : code;
}

API const char *infer_strerror(int code)
{
    code = positive(code);
    if (code == 0)
        return "no error";
    const struct error_row *row = find_row(code);
    if (row != NULL)
        return row->text;
    const char *text = strerrordesc_np(code);
    return text != NULL ? text : "an unknown error; update the client library";
}

API const char *infer_error_name(int code)
{
    const struct error_row *row = find_row(positive(code));
    return row != NULL ? row->name : "";
}

API int infer_error_exit(int code)
{
    if (code == 0)
        return 0;
    const struct error_row *row = find_row(positive(code));
    return row != NULL ? row->exit_status : 1;
}

API const char *infer_finish_name(uint32_t finish)
{
    static const char *const names[] = {"", "stop", "string", "length", "cancel", "error"};
    return finish < sizeof names / sizeof names[0] ? names[finish] : "";
}

API const char *infer_version(void)
{
    return INFERD_VERSION;
}
