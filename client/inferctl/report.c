/* report.c: how inferctl tells of a failure, and the connection whose failures those mostly are.
 *
 * Every error is one line on standard error, `inferctl: what happened: detail`, and an exit
 * status. Text that came from the daemon passes through term_write(). */
#include "ctl.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define REPORT_LINE_MAX 2048

static void print_line(const char *text)
{
    term_progress_clear();
    fflush(stdout);
    fprintf(stderr, "%sinferctl:%s ", term_style(stderr, TERM_RED), term_style(stderr, TERM_PLAIN));
    term_write(stderr, text, strlen(text));
    fputc('\n', stderr);
}

int ctl_usage(const struct ctl *ctl, const char *format, ...)
{
    char message[REPORT_LINE_MAX / 2], line[REPORT_LINE_MAX];
    const char *name = ctl->command ? ctl->command->name : NULL;
    const char *before = name ? " " : "";
    va_list args;

    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    snprintf(line, sizeof line, "%s%s%s%s 'inferctl%s%s --help' tells more", name ? name : "",
             name ? ": " : "", message,
             message[0] && message[strlen(message) - 1] == '?' ? "" : ";", before,
             name ? name : "");
    print_line(line);
    return CTL_EXIT_USAGE;
}

int ctl_error(const char *format, ...)
{
    char line[REPORT_LINE_MAX];
    va_list args;

    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    print_line(line);
    return CTL_EXIT_FAILURE;
}

int ctl_fail(int code, const char *detail)
{
    char line[REPORT_LINE_MAX];
    int status = infer_error_exit(code);

    snprintf(line, sizeof line, "%s%s%s", infer_strerror(code), detail && detail[0] ? ": " : "",
             detail ? detail : "");
    print_line(line);
    return status ? status : CTL_EXIT_FAILURE;
}

int ctl_fail_conn(const struct ctl *ctl, int code)
{
    return ctl_fail(code, infer_detail(ctl->conn));
}

void *ctl_resize(void *memory, size_t n)
{
    void *fresh = realloc(memory, n ? n : 1);

    if (!fresh)
        exit(ctl_fail(INFER_E_OUT_OF_MEMORY, NULL));
    return fresh;
}

void *ctl_alloc(size_t n)
{
    return ctl_resize(NULL, n);
}

int ctl_connect(struct ctl *ctl)
{
    struct infer_connect_options options;
    int r;

    if (ctl->conn)
        return 0;
    memset(&options, 0, sizeof options);
    options.socket = ctl->options.socket;
    options.client_name = "inferctl";
    r = infer_connect(&options, &ctl->conn);
    if (r < 0)
        return ctl_fail(r, infer_detail(NULL));
    return 0;
}

/* The names that are served, for the error that a wrong one gets. */
static int unknown_model(const char *wanted, const struct infer_model *models, size_t n)
{
    char detail[INFER_DETAIL_MAX];
    size_t used;

    snprintf(detail, sizeof detail, "'%s'; served:", wanted);
    for (size_t i = 0; i < n; i++) {
        used = strlen(detail);
        snprintf(detail + used, sizeof detail - used, "%s%s", i ? ", " : " ", models[i].name);
    }
    return ctl_fail(INFER_E_UNKNOWN_MODEL, detail);
}

int ctl_model(struct ctl *ctl, struct infer_model *ret_model)
{
    const char *wanted = ctl->options.model ? ctl->options.model : "";
    struct infer_model *models;
    size_t n;
    int r;

    r = infer_models(ctl->conn, &models, &n);
    if (r < 0)
        return ctl_fail_conn(ctl, r);
    for (size_t i = 0; i < n; i++)
        models[i].name[sizeof models[i].name - 1] = '\0';
    for (size_t i = 0; i < n; i++) {
        if (!wanted[0] || strcmp(models[i].name, wanted) == 0) {
            *ret_model = models[i];
            infer_free(models);
            return 0;
        }
    }
    r = unknown_model(wanted, models, n);
    infer_free(models);
    return r;
}

int ctl_loaded_model(struct ctl *ctl, struct infer_model *ret_model)
{
    int32_t *ids;
    size_t n;
    int r, status = ctl_model(ctl, ret_model);

    if (status || ret_model->state == 0 || ret_model->state == INFER_MODEL_READY)
        return status;
    term_remark("%s is being loaded", ret_model->name);
    r = infer_tokenize(ctl->conn, ret_model->name, " ", 1, 0, 0, &ids, &n); /* any request does */
    term_progress_clear();
    if (r < 0)
        return ctl_fail_conn(ctl, r);
    infer_free(ids);
    return ctl_model(ctl, ret_model);
}

int ctl_finish_output(int status)
{
    static bool told;
    bool tell;

    if (fflush(stdout) == 0 && !ferror(stdout))
        return status;
    tell = !told && errno != EPIPE;
    told = true;
    if (tell)
        ctl_error("cannot write the output: %s", strerror(errno));
    return status ? status : CTL_EXIT_FAILURE;
}

double ctl_seconds(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}
