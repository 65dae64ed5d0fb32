/* backend_load.c: see backend_load.h.
 *
 * SECURITY. A backend is code that runs with all that the daemon may. So its name cannot lead out
 * of the folder, and file and folder must belong to root or the daemon's own user and be writable
 * by nobody else; with such a folder nobody can swap the file between the check and the loading. */
#include "backend_load.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#ifndef INFERD_LIBDIR
#define INFERD_LIBDIR "/usr/local/lib/inferd"
#endif

static int fail(struct report *report, const char *path, const char *why)
{
    return report_fail(report, INFER_E_BACKEND_LOAD, "backend %s: %s", path, why);
}

static int check_name(const char *name, struct report *report)
{
    size_t n = strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789_-");
    if (n == 0 || name[n] != '\0' || n >= BACKEND_NAME_MAX)
        return report_fail(
            report, INFER_E_BACKEND_LOAD,
            "backend '%.40s': a name has 1 to %u of the characters a-z, 0-9, _ and -", name,
            BACKEND_NAME_MAX - 1);
    return 0;
}

static int check_owner(const char *path, const struct stat *st, struct report *report)
{
    if (st->st_uid != 0 && st->st_uid != geteuid())
        return report_fail(report, INFER_E_BACKEND_LOAD,
                           "backend: %s belongs to user %u; only root's or the daemon's own is "
                           "loaded",
                           path, (unsigned)st->st_uid);
    if ((st->st_mode & (S_IWGRP | S_IWOTH)) != 0)
        return report_fail(report, INFER_E_BACKEND_LOAD,
                           "backend: %s can be written by others; run: chmod go-w %s", path, path);
    return 0;
}

static int check_files(const char *folder, const char *path, struct report *report)
{
    struct stat st;
    if (stat(path, &st) < 0)
        return errno == ENOENT || errno == ENOTDIR ? -ENOENT : fail(report, path, strerror(errno));
    if (!S_ISREG(st.st_mode))
        return fail(report, path, "not a regular file");
    int r = check_owner(path, &st, report);
    if (r < 0)
        return r;
    if (stat(folder, &st) < 0)
        return fail(report, folder, strerror(errno));
    return check_owner(folder, &st, report);
}

/* Every function of the table, by its place. */
static int find_missing(const struct infer_backend_api *api)
{
    const void *functions[] = {
        (const void *)(uintptr_t)api->open,         (const void *)(uintptr_t)api->close,
        (const void *)(uintptr_t)api->last_error,   (const void *)(uintptr_t)api->describe,
        (const void *)(uintptr_t)api->estimate,     (const void *)(uintptr_t)api->model_open,
        (const void *)(uintptr_t)api->tensor_write, (const void *)(uintptr_t)api->model_ready,
        (const void *)(uintptr_t)api->model_close,  (const void *)(uintptr_t)api->run,
        (const void *)(uintptr_t)api->page_copy,    (const void *)(uintptr_t)api->page_zero,
        (const void *)(uintptr_t)api->page_read,    (const void *)(uintptr_t)api->page_write,
        (const void *)(uintptr_t)api->page_shift,
    };
    for (size_t i = 0; i < sizeof functions / sizeof functions[0]; i++)
        if (functions[i] == NULL)
            return (int)i;
    return -1;
}

int backend_check_api(const char *path, const struct infer_backend_api *api, struct report *report)
{
    if (api == NULL)
        return fail(report, path, "it gave no table of functions");
    if (api->abi != INFER_BACKEND_ABI)
        return report_fail(report, INFER_E_BACKEND_LOAD,
                           "backend %s: made for version %u of the backend interface, this daemon "
                           "has version %u; install both from one release",
                           path, api->abi, INFER_BACKEND_ABI);
    if (api->bytes < sizeof *api)
        return report_fail(
            report, INFER_E_BACKEND_LOAD,
            "backend %s: its table of functions has %u bytes, this daemon needs %zu; "
            "install both from one release",
            path, api->bytes, sizeof *api);
    if (api->name == NULL || api->version == NULL)
        return fail(report, path, "its table lacks its name or version");
    if (!api->rows_pin != !api->rows_wait || !api->rows_pin != !api->rows_unpin)
        return fail(report, path, "its table has some of rows_pin, rows_wait and rows_unpin only");
    if (!api->submit != !api->collect || !api->submit != !api->max_under_way)
        return fail(report, path, "its table has some of submit, collect and max_under_way only");
    int missing = find_missing(api);
    if (missing >= 0)
        return report_fail(report, INFER_E_BACKEND_LOAD,
                           "backend %s: function %d of its table is missing", path, missing + 1);
    return 0;
}

/* The table of a shared object that was opened. */
static int find_api(const char *path, void *handle, const struct infer_backend_api **ret,
                    struct report *report)
{
    infer_backend_entry entry;
    void *symbol = dlsym(handle, INFER_BACKEND_SYMBOL);
    if (symbol == NULL)
        return fail(report, path, "not a backend of inferd: it lacks " INFER_BACKEND_SYMBOL);
    memcpy(&entry, &symbol, sizeof entry); /* ISO C has no cast for it */
    const struct infer_backend_api *api = entry();
    int r = backend_check_api(path, api, report);
    if (r == 0)
        *ret = api;
    return r;
}

static int open_backend(struct backend *b, const char *options, const struct infer_host *host,
                        struct report *report)
{
    int r = find_api(b->path, b->handle, &b->api, report);
    if (r < 0)
        return r;
    options = options != NULL ? options : "";
    r = b->api->open(host, options, &b->instance);
    const char *why = r < 0 ? b->api->last_error(NULL) : "";
    if (r == -EINVAL) {
        report_fail(report, INFER_E_BACKEND_LOAD,
                    "backend %s does not take the options '%.100s': %.200s", b->api->name, options,
                    why);
        return r;
    }
    if (r == -ENODEV) {
        report_fail(report, INFER_E_BACKEND_LOAD, "backend %s finds no device%s%.100s: %.200s",
                    b->api->name, options[0] != '\0' ? " for the options " : "", options, why);
        return r;
    }
    if (r == -ENOTSUP) {
        report_fail(report, INFER_E_BACKEND_LOAD, "backend %s does not run on this device: %.200s",
                    b->api->name, why);
        return r;
    }
    if (r < 0)
        return report_fail(report, INFER_E_BACKEND_LOAD, "backend %s cannot start: %s: %.200s",
                           b->api->name, strerror(-r), why);
    if (b->instance == NULL)
        return fail(report, b->path, "it started without an instance");
    return 0;
}

int backend_load_from(const char *folder, const char *name, const char *options,
                      const struct infer_host *host, struct backend *ret, struct report *report)
{
    struct backend b = {.host = host};
    int r = check_name(name, report);
    if (r < 0)
        return r;
    int n = snprintf(b.path, sizeof b.path, "%s/inferd-backend-%s.so", folder, name);
    if (n < 0 || (size_t)n >= sizeof b.path)
        return fail(report, name, "the path of its folder is too long");
    r = check_files(folder, b.path, report);
    if (r < 0)
        return r;
    b.handle = dlopen(b.path, RTLD_NOW | RTLD_LOCAL);
    if (b.handle == NULL) {
        report_fail(report, INFER_E_BACKEND_LOAD, "backend: %s", dlerror()); /* names it */
        return -ELIBACC;
    }
    r = open_backend(&b, options, host, report);
    if (r < 0) {
        dlclose(b.handle);
        return r;
    }
    *ret = b;
    return 0;
}

/* The folder of the running program; false when it cannot be told. */
static bool own_folder(char *folder, size_t size)
{
    ssize_t n = readlink("/proc/self/exe", folder, size - 1);
    if (n <= 0 || (size_t)n >= size - 1)
        return false;
    folder[n] = '\0';
    char *slash = strrchr(folder, '/');
    if (slash == NULL)
        return false;
    *slash = '\0';
    return true;
}

/* Beside the program, as it is built; in the library folder beside the program's, as it is
 * installed or bundled; in the library folder that the build was told of. */
int backend_load(const char *name, const char *options, const struct infer_host *host,
                 struct backend *ret, struct report *report)
{
    char own[PATH_MAX] = "", near[PATH_MAX + 16] = "";
    const char *folders[] = {own, near, INFERD_LIBDIR};
    int r = -ENOENT;
    if (own_folder(own, sizeof own))
        snprintf(near, sizeof near, "%s/../lib/inferd", own);
    for (size_t i = 0; i < sizeof folders / sizeof folders[0] && r == -ENOENT; i++)
        if (folders[i][0] != '\0')
            r = backend_load_from(folders[i], name, options, host, ret, report);
    if (r == -ENOENT)
        report_fail(report, INFER_E_BACKEND_LOAD,
                    "backend '%s': there is no inferd-backend-%s.so in %.150s, in ../lib/inferd "
                    "from there, or in %s",
                    name, name, own, INFERD_LIBDIR);
    return r;
}

void backend_unload(struct backend *backend)
{
    if (backend->handle == NULL)
        return;
    backend->api->close(backend->instance);
    dlclose(backend->handle);
    *backend = (struct backend){0};
}
