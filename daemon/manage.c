/* manage.c: see manage.h.
 *
 * SECURITY. A manager is root or the daemon's own user, and still every byte is checked, for a
 * program can be wrong where its user may do all this. A request is one message that is copied
 * before it is looked at. Descriptors are taken only with LOAD and only as many as it announces;
 * each must be of a regular file that is open for reading, else all are closed. Nothing is ever
 * opened by a name that came from here.
 *
 * A connection has one request at a time; another one before DONE ends it, as does anything that
 * is no request. Whoever hangs up while his model loads has cancelled that.
 *
 * Limits: CONNECTIONS_MAX connections, INFER_MANAGE_FILES_MAX descriptors. */
#include "manage.h"

#include "base/log.h"
#include "inferd/abi.h"
#include "sandbox.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define CONNECTIONS_MAX 16u

struct manager {
    struct manager *next;
    struct manage *manage;
    int fd;
    struct loop_watch *loop_watch;
    bool busy; /* its request is under way, and models.c has watch */
    bool lost; /* to be closed when no callback of it runs */
    struct models_watch watch;
};

struct manage {
    struct manage_config config;
    struct manager *managers;
    uint32_t n_managers;
};

/* ---- connections ----------------------------------------------------------------------------- */

int manage_new(const struct manage_config *config, struct manage **ret)
{
    struct manage *m = calloc(1, sizeof *m);
    if (m == NULL)
        return -ENOMEM;
    m->config = *config;
    *ret = m;
    return 0;
}

static void hang_up(struct manager *c)
{
    struct manage *m = c->manage;
    struct manager **at = &m->managers;
    while (*at != c)
        at = &(*at)->next;
    *at = c->next;
    m->n_managers--;
    if (c->busy)
        models_unwatch(m->config.models, &c->watch);
    loop_unwatch(m->config.loop, c->loop_watch);
    close(c->fd);
    free(c);
}

void manage_free(struct manage *m)
{
    while (m != NULL && m->managers != NULL)
        hang_up(m->managers);
    free(m);
}

/* ---- what the manager hears ------------------------------------------------------------------ */

/* PROGRESS may be lost when the manager does not read, DONE may not: he is hung up on. */
static void send_event(struct manager *c, struct infer_manage_event *e)
{
    e->magic = INFER_MANAGE_MAGIC;
    e->bytes = sizeof *e;
    ssize_t n = send(c->fd, e, sizeof *e, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n != (ssize_t)sizeof *e && e->kind == INFER_MANAGE_DONE) {
        c->lost = true;
        shutdown(c->fd, SHUT_RDWR); /* on_readable() hears of it */
    }
}

static void send_done(struct manager *c, const struct report *report)
{
    struct infer_manage_event e = {.kind = INFER_MANAGE_DONE, .error = report->code};
    snprintf(e.detail, sizeof e.detail, "%s", report->text);
    send_event(c, &e);
}

static struct manager *manager_of(struct models_watch *w)
{
    return (struct manager *)(void *)((char *)w - offsetof(struct manager, watch));
}

static void on_progress(struct models_watch *w, uint64_t done, uint64_t total)
{
    struct infer_manage_event e = {
        .kind = INFER_MANAGE_PROGRESS, .done_bytes = done, .total_bytes = total};
    send_event(manager_of(w), &e);
}

static void on_done(struct models_watch *w, const struct report *report,
                    const struct loader_need *need, uint64_t available)
{
    struct manager *c = manager_of(w);
    struct infer_manage_event e = {.kind = INFER_MANAGE_DONE,
                                   .error = report->code,
                                   .weights_bytes = need->weights,
                                   .state_bytes = need->state,
                                   .scratch_bytes = need->scratch,
                                   .vocabulary_bytes = need->vocabulary,
                                   .available_bytes = available,
                                   .n_context = need->n_context,
                                   .n_pages = need->n_pages,
                                   .page_tokens = need->page_tokens};
    snprintf(e.detail, sizeof e.detail, "%s", report->text);
    c->busy = false;
    send_event(c, &e);
}

/* ---- what the manager asks ------------------------------------------------------------------- */

struct asked {
    struct infer_manage_request r; /* missing tail zero */
    size_t bytes;
    int files[INFER_MANAGE_FILES_MAX];
    uint32_t n_files;
    bool too_many;
};

static void close_files(struct asked *a)
{
    for (uint32_t i = 0; i < a->n_files; i++)
        close(a->files[i]);
    a->n_files = 0;
}

static void take_descriptors(struct asked *a, struct msghdr *message)
{
    for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c != NULL; c = CMSG_NXTHDR(message, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        size_t n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < n; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
            if (a->n_files < INFER_MANAGE_FILES_MAX) {
                a->files[a->n_files++] = fd;
            } else {
                close(fd);
                a->too_many = true;
            }
        }
    }
    a->too_many |= (message->msg_flags & MSG_CTRUNC) != 0;
}

/* Bytes of a message, 0 when the manager has gone, or a negative errno. */
static ssize_t receive(int fd, struct asked *a)
{
    union {
        char bytes[CMSG_SPACE(sizeof(int) * (INFER_MANAGE_FILES_MAX + 1))];
        struct cmsghdr align;
    } control;
    struct iovec part = {&a->r, sizeof a->r};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = control.bytes,
                             .msg_controllen = sizeof control.bytes};
    ssize_t n;
    do
        n = recvmsg(fd, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return -errno;
    take_descriptors(a, &message);
    a->bytes = (size_t)n;
    return n;
}

static int refuse(struct report *report, const char *text)
{
    return report_fail(report, INFER_E_BAD_REQUEST, "%s", text);
}

static bool known_type(uint32_t type)
{
    return type == 0 || type == INFER_TYPE_F16 || type == INFER_TYPE_Q8_0 ||
           type == INFER_TYPE_Q4_0;
}

static int check_numbers(const struct infer_manage_request *r, struct report *report)
{
    if (r->n_context > CONFIG_CONTEXT_MAX)
        return report_fail(report, INFER_E_BAD_PARAMETER, "a context of %u tokens; %u is the most",
                           r->n_context, CONFIG_CONTEXT_MAX);
    if (r->parallel > CONFIG_PARALLEL_MAX)
        return report_fail(report, INFER_E_BAD_PARAMETER, "%u sequences at once; %u is the most",
                           r->parallel, CONFIG_PARALLEL_MAX);
    if (!known_type(r->k_type) || !known_type(r->v_type))
        return report_fail(report, INFER_E_BAD_PARAMETER,
                           "keys and values are kept as f16, q8_0 or q4_0");
    if (r->keep_alive_s != INFER_MANAGE_DEFAULT && r->keep_alive_s > CONFIG_SECONDS_MAX)
        return report_fail(report, INFER_E_BAD_PARAMETER, "a keep-alive of %u s; %u s is the most",
                           r->keep_alive_s, CONFIG_SECONDS_MAX);
    return 0;
}

/* A regular file that is open for reading, and nothing else. */
static int check_file(int fd, uint32_t number, struct report *report)
{
    int rc = sandbox_check_file(fd);
    if (rc == -EACCES || rc == -EBADF)
        return report_fail(report, INFER_E_MODEL_UNREADABLE,
                           "file %u is not open for reading; open it with O_RDONLY", number + 1);
    if (rc < 0)
        return report_fail(report, INFER_E_MODEL_UNREADABLE,
                           "file %u is not a regular file; give a GGUF file", number + 1);
    return 0;
}

static int check(const struct asked *a, struct report *report)
{
    const struct infer_manage_request *r = &a->r;
    const uint32_t flags =
        INFER_MANAGE_DRY_RUN | INFER_MANAGE_PIN | INFER_MANAGE_FORCE | INFER_MANAGE_DEVICE;
    if (a->bytes < INFER_MANAGE_REQUEST_MIN || r->magic != INFER_MANAGE_MAGIC ||
        r->bytes < INFER_MANAGE_REQUEST_MIN)
        return refuse(report, "this is no request of a manager");
    if (memchr(r->name, '\0', sizeof r->name) == NULL ||
        memchr(r->file, '\0', sizeof r->file) == NULL ||
        memchr(r->device, '\0', sizeof r->device) == NULL)
        return refuse(report, "a name is not terminated");
    if ((r->flags & ~flags) != 0)
        return report_fail(report, INFER_E_UNSUPPORTED, "flags %#x are not known",
                           r->flags & ~flags);
    if (a->too_many || a->n_files != r->n_files || (a->n_files > 0 && r->op != INFER_MANAGE_LOAD))
        return report_fail(report, INFER_E_BAD_REQUEST,
                           "%u files were announced and %s%u came; %u is the most, with LOAD alone",
                           r->n_files, a->too_many ? "more than " : "", a->n_files,
                           INFER_MANAGE_FILES_MAX);
    if ((r->flags & INFER_MANAGE_DEVICE) != 0 && a->n_files == 0)
        return report_fail(
            report, INFER_E_INVALID,
            "a device goes with a file; that of a model which the daemon lists is in "
            "its configuration");
    int rc = check_numbers(r, report);
    for (uint32_t i = 0; i < a->n_files && rc == 0; i++)
        rc = check_file(a->files[i], i, report);
    return rc;
}

static int load(struct manager *c, struct asked *a, struct report *report)
{
    const struct infer_manage_request *r = &a->r;
    struct models_options options = {.n_context = r->n_context,
                                     .parallel = r->parallel,
                                     .state_bytes = r->state_bytes,
                                     .k_type = r->k_type,
                                     .v_type = r->v_type,
                                     .keep_alive_s = r->keep_alive_s,
                                     .pin = (r->flags & INFER_MANAGE_PIN) != 0};
    const char *label = r->file[0] != '\0' ? r->file : r->name;
    struct models *models = c->manage->config.models;
    uint32_t n = a->n_files;
    if ((r->flags & INFER_MANAGE_DEVICE) != 0)
        snprintf(options.device, sizeof options.device, "%s", r->device);
    a->n_files = 0; /* taken over */
    if ((r->flags & INFER_MANAGE_DRY_RUN) != 0)
        return models_estimate(models, label, a->files, n, &options, &c->watch, report);
    return models_load(models, r->name, label, a->files, n, &options, &c->watch, report);
}

static void serve(struct manager *c, struct asked *a)
{
    struct manage *m = c->manage;
    struct report report = {0};
    int rc = check(a, &report);
    c->busy = true;
    c->watch = (struct models_watch){.progress = on_progress, .done = on_done};
    if (rc == 0 && a->r.op == INFER_MANAGE_LOAD) {
        rc = load(c, a, &report);
    } else if (rc == 0 && a->r.op == INFER_MANAGE_UNLOAD) {
        rc = models_unload(m->config.models, a->r.name, (a->r.flags & INFER_MANAGE_FORCE) != 0,
                           &c->watch, &report);
    } else if (rc == 0 && a->r.op == INFER_MANAGE_RELOAD) {
        if (m->config.reload(m->config.ctx, &report) == 0)
            report.code = 0;
        c->busy = false;
        send_done(c, &report);
    } else if (rc == 0) {
        rc = report_fail(&report, INFER_E_UNSUPPORTED, "operation %u is not known", a->r.op);
    }
    if (rc < 0) {
        c->busy = false;
        send_done(c, &report);
    }
}

static void on_readable(void *ctx, uint32_t poll_events)
{
    struct manager *c = ctx;
    (void)poll_events;
    struct asked *a = calloc(1, sizeof *a);
    if (a == NULL) {
        hang_up(c);
        return;
    }
    ssize_t n = receive(c->fd, a);
    if (n == -EAGAIN || n == -EWOULDBLOCK) {
        free(a);
        return;
    }
    bool ends = n <= 0 || c->busy || c->lost;
    if (!ends)
        serve(c, a);
    close_files(a);
    free(a);
    if (ends)
        hang_up(c);
}

void manage_accept(struct manage *m, int fd)
{
    struct manager *c = m->n_managers < CONNECTIONS_MAX ? calloc(1, sizeof *c) : NULL;
    if (c == NULL) {
        log_warning("a manager is turned away: %u are connected", m->n_managers);
        close(fd);
        return;
    }
    *c = (struct manager){.next = m->managers, .manage = m, .fd = fd};
    if (loop_readable(m->config.loop, fd, on_readable, c, &c->loop_watch) < 0) {
        close(fd);
        free(c);
        return;
    }
    m->managers = c;
    m->n_managers++;
}
