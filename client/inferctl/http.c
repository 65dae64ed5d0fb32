/* http.c: `inferctl metrics --http`: one HTTP request, its answer, the end.
 *
 * For a socket unit with Accept=yes, which starts a process for each connection and gives it the
 * socket as standard input and output; so the daemon itself knows no HTTP.
 *
 * SECURITY. Whoever can reach the socket writes what is read here. At most HEAD_MAX bytes are read,
 * within HEAD_MS; the request line and the fields are checked before anything is asked of the
 * daemon; a body is never read for its contents; the answer depends on method and path alone, and
 * is given up when it is not taken within ANSWER_MS.
 *
 *   200 GET and HEAD of /metrics, with or without a query       404 another path
 *   400 a malformed or too long head                            405 another method
 *   408 a head that is not complete in time                     503 the daemon does not answer */
#include "ctl.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define HEAD_MAX  8192u
#define HEAD_MS   5000
#define ANSWER_MS 5000
#define LINGER_MS                                                                                  \
    1000 /* for what the other side still sends: closing at once could lose the answer */
#define LINGER_MAX 65536u
#define FIELDS_MAX 100u
#define METHOD_MAX 32u
#define NOT_UNTIL  (-2)

static int left_ms(double until)
{
    double left = (until - ctl_seconds()) * 1000;

    return left > 0 ? (int)left + 1 : 0;
}

/* Bytes read; 0: the end; -1: an error; NOT_UNTIL: nothing until then. */
static ssize_t read_until(void *to, size_t room, double until)
{
    for (;;) {
        struct pollfd p = {STDIN_FILENO, POLLIN, 0};
        ssize_t n = read(STDIN_FILENO, to, room);

        if (n >= 0 || (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR))
            return n;
        if (left_ms(until) == 0)
            return NOT_UNTIL;
        poll(&p, 1, left_ms(until));
    }
}

static bool write_until(const char *bytes, size_t n, double until)
{
    while (n > 0) {
        struct pollfd p = {STDOUT_FILENO, POLLOUT, 0};
        ssize_t done = write(STDOUT_FILENO, bytes, n);

        if (done > 0) {
            bytes += done;
            n -= (size_t)done;
            continue;
        }
        if (done < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)
            return false;
        if (left_ms(until) == 0)
            return false;
        poll(&p, 1, left_ms(until));
    }
    return true;
}

/* ---- the head -------------------------------------------------------------------------------- */

/* A line ends in CR LF, or LF alone as RFC 9112 allows it. Where the empty line that ends the head
 * begins, or NULL. */
static const char *end_of_head(const char *head, size_t n)
{
    for (const char *at = head; (at = memchr(at, '\n', n - (size_t)(at - head))) != NULL; at++) {
        const char *next = at + 1;

        if (next < head + n && *next == '\r')
            next++;
        if (next < head + n && *next == '\n')
            return at + 1;
        if (at + 1 == head + n)
            break;
    }
    return NULL;
}

/* Status: 200 when the head is complete; 0: the other side left. */
static int read_head(char *head, size_t *ret_bytes)
{
    double until = ctl_seconds() + HEAD_MS / 1000.0;
    size_t n = 0;

    for (;;) {
        ssize_t got = read_until(head + n, HEAD_MAX - n, until);
        const char *end;

        if (got == NOT_UNTIL)
            return 408;
        if (got <= 0)
            return n > 0 && got == 0 ? 400 : 0;
        n += (size_t)got;
        end = end_of_head(head, n);
        if (end) {
            *ret_bytes = (size_t)(end - head);
            return 200;
        }
        if (n == HEAD_MAX)
            return 400;
    }
}

static bool is_token(const char *text, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!isalnum((unsigned char)text[i]) && !strchr("!#$%&'*+-.^_`|~", text[i]))
            return false;
    return n > 0 && !memchr(text, '\0', n);
}

/* One field line without its end; counts Host. */
static bool check_field(const char *line, size_t n, unsigned *n_hosts)
{
    const char *colon = memchr(line, ':', n);
    size_t name = colon ? (size_t)(colon - line) : 0;

    if (!colon || !is_token(line, name)) /* also: a line that goes on from the one before */
        return false;
    for (size_t i = name; i < n; i++)
        if ((unsigned char)line[i] < ' ' && line[i] != '\t')
            return false;
    *n_hosts += name == 4 && strncasecmp(line, "host", 4) == 0;
    return true;
}

static bool check_fields(const char *at, const char *end, bool wants_host)
{
    unsigned n_hosts = 0, n = 0;

    while (at < end) {
        const char *stop = memchr(at, '\n', (size_t)(end - at));
        size_t length = (size_t)(stop - at);

        if (length > 0 && at[length - 1] == '\r')
            length--;
        if (++n > FIELDS_MAX || !check_field(at, length, &n_hosts))
            return false;
        at = stop + 1;
    }
    return n_hosts == 1 || (n_hosts == 0 && !wants_host);
}

/* "/metrics", "/metrics?...", and both after "http://host". */
static bool is_metrics(const char *target, size_t n)
{
    static const char path[] = "/metrics";
    size_t k = sizeof path - 1;

    if (n > 7 && strncasecmp(target, "http://", 7) == 0) {
        const char *slash = memchr(target + 7, '/', n - 7);

        if (!slash)
            return false;
        n -= (size_t)(slash - target);
        target = slash;
    }
    return n >= k && memcmp(target, path, k) == 0 && (n == k || target[k] == '?');
}

struct line {
    const char *method, *target;
    size_t method_bytes, target_bytes;
    bool is_1_1;
};

/* METHOD SP TARGET SP HTTP/1.x; one blank each, no control character. */
static bool cut_line(const char *text, size_t n, struct line *ret)
{
    const char *first = memchr(text, ' ', n);
    const char *second = first ? memchr(first + 1, ' ', n - (size_t)(first + 1 - text)) : NULL;
    const char *version = second ? second + 1 : NULL;

    if (!version || n - (size_t)(version - text) != 8 || memcmp(version, "HTTP/1.", 7) != 0 ||
        !isdigit((unsigned char)version[7]))
        return false;
    ret->method = text;
    ret->method_bytes = (size_t)(first - text);
    ret->target = first + 1;
    ret->target_bytes = (size_t)(second - first) - 1;
    ret->is_1_1 = version[7] != '0';
    if (ret->method_bytes > METHOD_MAX || !is_token(ret->method, ret->method_bytes) ||
        ret->target_bytes == 0)
        return false;
    for (size_t i = 0; i < ret->target_bytes; i++)
        if ((unsigned char)ret->target[i] <= ' ' || ret->target[i] == 0x7f)
            return false;
    return true;
}

/* From a complete head to a status. */
static int judge(const char *head, size_t n, bool *ret_is_head)
{
    struct line line;
    const char *stop = memchr(head, '\n', n);
    size_t length = (size_t)(stop - head);

    if (length > 0 && head[length - 1] == '\r')
        length--;
    if (!cut_line(head, length, &line) || !check_fields(stop + 1, head + n, line.is_1_1))
        return 400;
    *ret_is_head = line.method_bytes == 4 && memcmp(line.method, "HEAD", 4) == 0;
    if (!is_metrics(line.target, line.target_bytes))
        return 404;
    if (!*ret_is_head && !(line.method_bytes == 3 && memcmp(line.method, "GET", 3) == 0))
        return 405;
    return 200;
}

/* ---- the answer ------------------------------------------------------------------------------ */

static const char *reason(int status)
{
    switch (status) {
    case 200:
        return "OK";
    case 404:
        return "Not Found";
    case 405:
        return "Method Not Allowed";
    case 408:
        return "Request Timeout";
    case 503:
        return "Service Unavailable";
    default:
        return "Bad Request";
    }
}

static bool answer(int status, bool without_body, const char *body, size_t bytes)
{
    static const char openmetrics[] = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    double until = ctl_seconds() + ANSWER_MS / 1000.0;
    char head[512];
    int n;

    n = snprintf(head, sizeof head,
                 "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\n%s"
                 "Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n"
                 "Connection: close\r\n\r\n",
                 status, reason(status), status == 200 ? openmetrics : "text/plain; charset=utf-8",
                 bytes, status == 405 ? "Allow: GET, HEAD\r\n" : "");
    return write_until(head, (size_t)n, until) && (without_body || write_until(body, bytes, until));
}

/* The daemon's text; 503 and a sentence when there is none. */
static int fetch(struct ctl *ctl, char **ret_text, size_t *ret_bytes)
{
    struct infer_connect_options options;
    int r = 0;

    memset(&options, 0, sizeof options);
    options.socket = ctl->options.socket;
    options.client_name = "inferctl";
    if (!ctl->conn)
        r = infer_connect(&options, &ctl->conn);
    if (r == 0)
        r = infer_metrics(ctl->conn, ret_text, ret_bytes);
    if (r == 0)
        return 200;
    ctl_fail(r, infer_detail(ctl->conn)); /* the journal's; the other side gets no path */
    return 503;
}

static void linger(void)
{
    double until = ctl_seconds() + LINGER_MS / 1000.0;
    char rest[4096];
    size_t n = 0;
    ssize_t got;

    if (shutdown(STDOUT_FILENO, SHUT_WR) < 0)
        return; /* no socket: nothing can be lost */
    while (n < LINGER_MAX && (got = read_until(rest, sizeof rest, until)) > 0)
        n += (size_t)got;
}

static int serve(struct ctl *ctl)
{
    char head[HEAD_MAX], plain[64];
    char *text = NULL;
    size_t bytes = 0;
    bool is_head = false, done;
    int status = read_head(head, &bytes);

    if (status == 0)
        return 0; /* it left without a word */
    if (status == 200)
        status = judge(head, bytes, &is_head);
    if (status == 200)
        status = fetch(ctl, &text, &bytes);
    if (status != 200)
        bytes = (size_t)snprintf(plain, sizeof plain, "%d %s\n", status, reason(status));
    done = answer(status, is_head, status == 200 ? text : plain, bytes);
    if (done)
        linger();
    infer_free(text);
    return status == 503 || !done ? CTL_EXIT_FAILURE : 0;
}

int http_serve(struct ctl *ctl)
{
    int in = fcntl(STDIN_FILENO, F_GETFL), out = fcntl(STDOUT_FILENO, F_GETFL);
    int status;

    signal(SIGPIPE, SIG_IGN);
    if (in < 0 || out < 0 || fcntl(STDIN_FILENO, F_SETFL, in | O_NONBLOCK) < 0 ||
        fcntl(STDOUT_FILENO, F_SETFL, out | O_NONBLOCK) < 0)
        return ctl_error("standard input and output cannot be used: %s", strerror(errno));
    status = serve(ctl);
    fcntl(STDIN_FILENO, F_SETFL, in); /* a terminal is shared with others */
    fcntl(STDOUT_FILENO, F_SETFL, out);
    return status;
}
