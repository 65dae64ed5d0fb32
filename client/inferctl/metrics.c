/* metrics.c: `inferctl metrics` and `inferctl logs`: what a machine reads of the daemon, and what
 * it wrote down itself. */
#include "ctl.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int metrics_command(struct ctl *ctl)
{
    char *text;
    size_t bytes;
    int r, status;

    if (ctl->n_operands > 0)
        return ctl_usage(ctl, "unexpected argument '%s'", ctl->operands[0]);
    if (ctl->options.http)
        return http_serve(ctl);
    status = ctl_connect(ctl);
    if (status)
        return status;
    r = infer_metrics(ctl->conn, &text, &bytes);
    if (r < 0)
        return ctl_fail_conn(ctl, r);
    term_write(stdout, text, bytes);
    infer_free(text);
    return ctl_finish_output(0);
}

/* ---- logs ------------------------------------------------------------------------------------ */

#define UNIT "inferd.service"

static bool is_below(const char *path, const char *folder)
{
    size_t n = folder ? strlen(folder) : 0;

    while (n > 1 && folder[n - 1] == '/')
        n--;
    return n > 0 && strncmp(path, folder, n) == 0 && path[n] == '/';
}

/* The socket in use, by the rule of client.h; in the caller's buffer when it is made up. */
static const char *socket_in_use(const struct ctl *ctl, char *buffer, size_t size)
{
    const char *named = ctl->options.socket ? ctl->options.socket : getenv("INFERD_SOCKET");
    const char *runtime = getenv("XDG_RUNTIME_DIR");

    if (named && named[0])
        return named;
    if (runtime && runtime[0] && (size_t)snprintf(buffer, size, "%s/inferd.sock", runtime) < size &&
        access(buffer, F_OK) == 0)
        return buffer;
    return "/run/inferd/inferd.sock";
}

int logs_command(struct ctl *ctl)
{
    char path[512], lines[32];
    const char *arguments[8], *socket;
    size_t n = 0;

    if (ctl->n_operands > 0)
        return ctl_usage(ctl, "unexpected argument '%s'", ctl->operands[0]);
    socket = socket_in_use(ctl, path, sizeof path);
    arguments[n++] = "journalctl";
    if (is_below(socket, "/run/inferd") || is_below(socket, "/var/run/inferd"))
        arguments[n++] = "--unit=" UNIT;
    else if (is_below(socket, getenv("XDG_RUNTIME_DIR")))
        arguments[n++] = "--user-unit=" UNIT;
    else
        return ctl_error("the daemon at %s was not started by systemd's socket; its log is where "
                         "its standard error goes",
                         socket);
    if (ctl->options.follow)
        arguments[n++] = "--follow";
    if (ctl->options.has_lines) {
        snprintf(lines, sizeof lines, "--lines=%u", ctl->options.lines);
        arguments[n++] = lines;
    }
    if (ctl->options.json)
        arguments[n++] = "--output=json";
    if (ctl->options.quiet)
        arguments[n++] = "--quiet";
    arguments[n] = NULL;
    fflush(stdout);
    execvp(arguments[0], (char *const *)(void *)arguments);
    if (errno == ENOENT)
        return ctl_error("journalctl is not installed; the log of " UNIT
                         " is in systemd's journal, which it reads");
    return ctl_error("journalctl cannot be run: %s", strerror(errno));
}
