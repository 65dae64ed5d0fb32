/* devices.c: see devices.h.
 *
 * Backends that compute with the processors open first, because their workers are placed on cores
 * that the threads of others, a GPU's driver among them, are kept off afterwards. */
#include "devices.h"

#include "base/clock.h"
#include "base/log.h"
#include "selftest.h"

#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NAMES_MAX   8u
#define OPTIONS_MAX 4096u
#define AUTO        "auto"
#define RETRY_US    250000u

struct opening {
    const struct devices_config *config;
    char names[NAMES_MAX][BACKEND_NAME_MAX];
    uint32_t n_names;
    bool is_auto;
    uint64_t until; /* devices that were lost are waited for, all together */
    struct devices *devices;
    struct report *report;
};

/* Which of a backend's devices. */
struct which {
    const char *backend;
    char options[OPTIONS_MAX];
    uint32_t number; /* of the device; the first is opened without naming it */
    bool named;      /* by the user: there is no other */
};

bool devices_is_gpu(const char *backend)
{
    return strcmp(backend, "cuda") == 0;
}

bool devices_have_gpu(const struct devices *d)
{
    for (uint32_t i = 0; i < d->n; i++)
        if (devices_is_gpu(d->device[i].backend.api->name))
            return true;
    return false;
}

/* ---- names ----------------------------------------------------------------------------------- */

static int add_name(struct opening *o, const char *name, size_t n)
{
    char copy[BACKEND_NAME_MAX] = "";
    if (n == 0 || n >= sizeof copy || o->n_names == NAMES_MAX)
        return report_fail(o->report, INFER_E_INVALID,
                           "--backend: '%.100s' is not a list of up to %u names with commas "
                           "between them",
                           o->config->backends, NAMES_MAX);
    memcpy(copy, name, n);
    if (strcmp(copy, AUTO) == 0)
        return report_fail(o->report, INFER_E_INVALID,
                           "--backend: auto stands alone; '%.100s' names others, too",
                           o->config->backends);
    for (uint32_t i = 0; i < o->n_names; i++)
        if (strcmp(o->names[i], copy) == 0)
            return report_fail(o->report, INFER_E_INVALID, "--backend: '%s' stands there twice",
                               copy);
    memcpy(o->names[o->n_names++], copy, sizeof copy);
    return 0;
}

static int list_names(struct opening *o)
{
    const char *list = o->config->backends;
    int rc = 0;
    o->is_auto = strcmp(list, AUTO) == 0;
    if (o->is_auto)
        list = "cpu,cuda";
    for (const char *at = list; rc == 0; at++) {
        size_t n = strcspn(at, ",");
        rc = add_name(o, at, n);
        at += n;
        if (*at == '\0')
            break;
    }
    return rc;
}

bool devices_first(const char *backends, char ret[BACKEND_NAME_MAX])
{
    const char *first = strcmp(backends, AUTO) == 0 ? "cpu" : backends;
    size_t n = strcspn(first, ",");
    if (n == 0 || n >= BACKEND_NAME_MAX)
        return false;
    memcpy(ret, first, n);
    ret[n] = '\0';
    return true;
}

bool device_is(const struct device *d, const char *wanted)
{
    return strcmp(wanted, AUTO) == 0 || strcmp(wanted, d->name) == 0 ||
           strcmp(wanted, d->backend.api->name) == 0;
}

void devices_list(const struct devices *d, char *text, size_t bytes)
{
    size_t n = 0;
    text[0] = '\0';
    for (uint32_t i = 0; i < d->n && n < bytes; i++)
        n += (size_t)snprintf(text + n, bytes - n, "%s%s", i == 0 ? "" : ", ", d->device[i].name);
}

/* ---- options --------------------------------------------------------------------------------- */

/* The name of the backend that a piece of the list is for, the first's when it says none; its bytes
 * are *ret_n, and what follows is *ret_rest. */
static const char *owner_of(const struct opening *o, const char *piece, size_t *ret_n,
                            const char **ret_rest)
{
    size_t n = strcspn(piece, ".=,");
    if (piece[n] == '.') {
        *ret_n = n;
        *ret_rest = piece + n + 1;
        return piece;
    }
    *ret_n = strlen(o->names[0]);
    *ret_rest = piece;
    return o->names[0];
}

static int unknown_owner(struct opening *o, const char *piece)
{
    return report_fail(o->report, INFER_E_INVALID,
                       "--backend-options: '%.100s' is for a backend that --backend %.100s does "
                       "not name",
                       piece, o->config->backends);
}

/* The pieces of the user's list that are for this backend, without its name. */
static int take_options(struct opening *o, const char *backend, struct which *ret)
{
    const char *list = o->config->options;
    size_t room = sizeof ret->options - 32, at = 0; /* device=N may follow */
    *ret = (struct which){.backend = backend};
    if (strlen(list) >= room)
        return report_fail(o->report, INFER_E_INVALID, "--backend-options: it is too long");
    for (const char *piece = list, *rest; *piece != '\0'; piece += *piece == ',') {
        size_t n;
        bool known = false;
        const char *owner = owner_of(o, piece, &n, &rest);
        for (uint32_t i = 0; i < o->n_names; i++)
            known |= strncmp(o->names[i], owner, n) == 0 && o->names[i][n] == '\0';
        if (!known)
            return unknown_owner(o, piece);
        piece += strcspn(piece, ",");
        if (strncmp(backend, owner, n) != 0 || backend[n] != '\0')
            continue;
        if (strncmp(rest, "device=", 7) == 0) {
            ret->named = true;
            ret->number = (uint32_t)strtoul(rest + 7, NULL, 10);
        }
        at += (size_t)snprintf(ret->options + at, sizeof ret->options - at, "%s%.*s",
                               at == 0 ? "" : ",", (int)(piece - rest), rest);
    }
    return 0;
}

/* ---- opening --------------------------------------------------------------------------------- */

int device_test(struct device *d, struct report *report)
{
    if (!d->tested) {
        d->verdict = (struct report){0};
        selftest_run(d->backend.api, d->backend.instance, &d->verdict);
        d->tested = true;
    }
    if (d->verdict.code == 0)
        return 0;
    *report = d->verdict;
    return -report->code;
}

/* The next one; negative: it is not open, the report says why. later: it computes when a model is
 * to go there. *ret_more: its backend may have another. */
static int open_device(struct opening *o, const struct which *w, bool later, bool *ret_more,
                       struct report *report)
{
    struct device *d = &o->devices->device[o->devices->n];
    const struct devices_config *c = o->config;
    char options[OPTIONS_MAX];
    struct infer_device about = {0};
    snprintf(options, sizeof options, "%s", w->options);
    if (w->number > 0 && !w->named) {
        size_t n = strlen(options);
        snprintf(options + n, sizeof options - n, "%sdevice=%u", n > 0 ? "," : "", w->number);
    }
    *d = (struct device){0};
    int rc = backend_load(w->backend, options, devices_is_gpu(w->backend) ? c->gpu_host : c->host,
                          &d->backend, report);
    if (rc < 0)
        return rc;
    d->backend.api->describe(d->backend.instance, &about);
    d->memory = about.memory;
    *ret_more = about.memory > 0 && !w->named;
    snprintf(d->about, sizeof d->about, "%.63s", about.name);
    if (about.memory == 0)
        snprintf(d->name, sizeof d->name, "%s", w->backend);
    else
        snprintf(d->name, sizeof d->name, "%s:%u", w->backend, w->number);
    if (later || device_test(d, report) == 0) {
        o->devices->n++;
        return 0;
    }
    backend_unload(&d->backend);
    report->code = INFER_E_BACKEND_LOAD; /* nothing was lost with it */
    return -report->code;
}

/* A signal that ends the daemon, which the event loop will take once it runs. */
static bool is_asked_to_stop(void)
{
    sigset_t set;
    return sigpending(&set) == 0 && (sigismember(&set, SIGTERM) || sigismember(&set, SIGINT));
}

/* One that was lost comes back in its own time, if at all. */
static int open_lost(struct opening *o, const struct which *w, const char *name, bool *ret_more,
                     struct report *report)
{
    int rc = open_device(o, w, false, ret_more, report);
    if (rc < 0)
        log_warning("%s was lost lately and is waited for, %.0f s at most: %s", name,
                    (double)o->config->wait_us / 1e6, report->text);
    while (rc < 0 && clock_us() < o->until && !is_asked_to_stop()) {
        usleep(RETRY_US);
        rc = open_device(o, w, false, ret_more, report);
    }
    if (rc >= 0)
        return rc;
    struct report last = *report;
    return report_fail(report, INFER_E_BACKEND_LOST, "%s was lost and is not back: %.400s", name,
                       last.text);
}

/* As its past has it. */
static int open_known(struct opening *o, const struct which *w, bool must, bool *ret_more,
                      struct report *report)
{
    char name[DEVICE_NAME_MAX];
    snprintf(name, sizeof name, "%.16s:%u", w->backend, w->number);
    uint32_t times = lost_times(o->config->lost, name);
    *ret_more = times > 0 && !w->named;
    if (times >= LOST_TIMES_MAX)
        return report_fail(report, INFER_E_BACKEND_LOAD,
                           "%s was lost %u times within %u minutes and is left alone; a start "
                           "after that time tries it again, or one after the file 'lost' in the "
                           "state directory was removed",
                           name, times, LOST_MEMORY_S / 60u);
    if (times > 0)
        return open_lost(o, w, name, ret_more, report);
    return open_device(o, w, !must && devices_is_gpu(w->backend), ret_more, report);
}

/* Why a device that need not be there is not used. */
static void tell(const struct which *w, int rc, const struct report *report)
{
    bool first = w->number == 0;
    if (rc == -INFER_E_BACKEND_LOST) {
        log_warning("%s; going on without it: models whose device is 'auto' go elsewhere; the next "
                    "start looks for it again",
                    report->text);
        return;
    }
    if (rc == -ENOENT || (!first && (rc == -ENODEV || rc == -EINVAL)))
        log_debug("%s", report->text);
    else if (rc == -ENODEV || rc == -ELIBACC)
        log_info("no GPU is used: %s", report->text);
    else if (rc == -ENOTSUP)
        log_info("%s:%u is not used: %s", w->backend, w->number, report->text);
    else
        log_warning("%s:%u is not used: %s", w->backend, w->number, report->text);
}

/* All devices of a backend. must: the first has to open. */
static int open_backend(struct opening *o, const char *name, bool must)
{
    struct which w;
    int rc = take_options(o, name, &w);
    bool more = rc == 0;
    while (more && o->devices->n < DEVICES_MAX) {
        struct report report = {0};
        int r = open_known(o, &w, must, &more, &report);
        if (r < 0 && must && (w.number == 0 || w.named)) {
            *o->report = report;
            return r <= -1000 ? r : -report.code;
        }
        if (r < 0)
            tell(&w, r, &report);
        if (r == -ENOTSUP)
            more = !w.named && w.number < DEVICES_MAX;
        w.number += !w.named;
    }
    return rc;
}

int devices_open(const struct devices_config *config, struct devices *ret, struct report *report)
{
    struct opening o = {
        .config = config, .until = clock_us() + config->wait_us, .devices = ret, .report = report};
    ret->n = 0;
    int rc = list_names(&o);
    for (uint32_t gpu = 0; gpu <= 1 && rc == 0; gpu++) {
        for (uint32_t i = 0; i < o.n_names && rc == 0; i++)
            if (devices_is_gpu(o.names[i]) == (gpu == 1))
                rc = open_backend(&o, o.names[i], !o.is_auto || i == 0);
        if (gpu == 0 && rc == 0 && config->between != NULL)
            config->between(config->ctx);
    }
    if (rc < 0)
        devices_close(ret);
    return rc;
}

void devices_close(struct devices *d)
{
    while (d->n > 0) {
        struct device *last = &d->device[--d->n];
        assert(atomic_load(&last->taken_bytes) == 0);
        backend_unload(&last->backend);
    }
}

/* ---- memory ---------------------------------------------------------------------------------- */

uint64_t device_available(const struct device *d, uint64_t limit)
{
    struct infer_device now = {0};
    uint64_t taken = atomic_load_explicit(&d->taken_bytes, memory_order_relaxed);
    d->backend.api->describe(d->backend.instance, &now);
    if (limit == 0)
        return now.memory_free;
    limit = limit > taken ? limit - taken : 0;
    return limit < now.memory_free ? limit : now.memory_free;
}

void device_take(struct device *d, uint64_t bytes)
{
    atomic_fetch_add_explicit(&d->taken_bytes, bytes, memory_order_relaxed);
}

void device_give(struct device *d, uint64_t bytes)
{
    uint64_t was = atomic_fetch_sub_explicit(&d->taken_bytes, bytes, memory_order_relaxed);
    assert(was >= bytes);
}
