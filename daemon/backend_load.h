/* backend_load.h: finds, checks and opens a kernel backend.
 *
 * Threads: start-up and shut-down, one at a time. */
#ifndef INFERD_BACKEND_LOAD_H
#define INFERD_BACKEND_LOAD_H

#include "base/report.h"
#include "inferd/backend.h"

#include <limits.h>

#define BACKEND_NAME_MAX 32u /* with the NUL */

struct backend {
    const struct infer_backend_api *api;
    struct infer_backend *instance;
    const struct infer_host *host; /* that it was opened with */
    void *handle;
    char path[PATH_MAX];
};

/* Loads inferd-backend-NAME.so from the folder of the daemon's own program, else from the one that
 * was compiled in; nothing in the environment changes that. name: [a-z0-9_-]. options: see
 * infer_backend_api.open. host stays alive until backend_unload().
 * Negative with a sentence, whose code is BACKEND_LOAD; *ret untouched: -ENOENT, there is no such
 * file; -ELIBACC, the linker does not load it (a library that it needs is missing, say its
 * device's driver); -ENODEV, it has no device, or not this one; -ENOTSUP, it does not run on this
 * one; -EINVAL, it does not know one of the options; else -INFER_E_BACKEND_LOAD. */
int backend_load(const char *name, const char *options, const struct infer_host *host,
                 struct backend *ret, struct report *report);

/* Closes and unloads; all its models are closed. */
void backend_unload(struct backend *backend);

/* ---- parts, for the tests -------------------------------------------------------------------- */

/* The same from a folder of the caller's choice. -ENOENT comes without a sentence. */
int backend_load_from(const char *folder, const char *name, const char *options,
                      const struct infer_host *host, struct backend *ret, struct report *report);

/* Is this table one that the daemon can use? */
int backend_check_api(const char *path, const struct infer_backend_api *api, struct report *report);

#endif
