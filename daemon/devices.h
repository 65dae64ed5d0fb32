/* devices.h: what models run on: the backends that are open, an instance for each device, and the
 * ledger of a device's own memory.
 *
 * "auto" is the processors (cpu), which must open, and the GPUs if there are any: where cuda's
 * shared object is missing or finds no device nothing is amiss. A list of names is these backends
 * alone, and each must open. What opens computes a tiny model before it is used (selftest.h). Those
 * that must open do so at once; a GPU that need not be there does when a model is to go there for
 * the first time, since a process that computes on a GPU takes time and memory for that alone. One
 * that computes wrongly is not used.
 *
 * A device that the daemon before lost (lost.h) is waited for and computes at once; one that was
 * lost again and again is left alone.
 *
 * A device whose backend uses the host's memory has its backend's name, "cpu"; one with a memory of
 * its own that and a number, "cuda:0".
 *
 * The ledger counts what models take of a device's own memory, as their backend estimated it; what
 * is free there the backend says. The host's memory has another one (memory.h).
 *
 * Threads: opening and closing at start and end; the rest from any thread. */
#ifndef INFERD_DEVICES_H
#define INFERD_DEVICES_H

#include "backend_load.h"
#include "lost.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>

#define DEVICES_MAX     16u
#define DEVICE_NAME_MAX INFER_DEVICE_NAME_MAX
#define DEVICE_NONE     UINT32_MAX

struct device {
    struct backend backend;
    char name[DEVICE_NAME_MAX];
    char about[64];               /* as its backend describes it */
    uint64_t memory;              /* its own; 0: it uses the host's */
    _Atomic uint64_t taken_bytes; /* of it, by models */
    _Atomic bool is_lost;         /* while it computed: nothing will run on it in this process */
    bool tested; /* it has computed, with this result: code 0, or why it is not used */
    struct report verdict;
};

struct devices {
    struct device device[DEVICES_MAX];
    uint32_t n;
};

struct devices_config {
    const char *backends;              /* "auto", or names with commas between them */
    const char *options;               /* KEY=VALUE,... of the first, NAME.KEY=VALUE of that one */
    const struct infer_host *host;     /* of those that compute with the processors */
    const struct infer_host *gpu_host; /* of those that do not; may be host */
    const struct lost *lost;           /* may be NULL: nothing is known to be lost */
    uint64_t wait_us;                  /* for the devices that were lost */
    /* The first kind is open, with its workers; the second comes. May be NULL. */
    void (*between)(void *ctx);
    void *ctx;
};

/* 0, or -INFER_E_BACKEND_LOAD, -INFER_E_INVALID, or -INFER_E_BACKEND_LOST of one that was lost and
 * is not back, with a sentence; nothing is open then. */
int devices_open(const struct devices_config *config, struct devices *ret, struct report *report);
/* All their models are closed. */
void devices_close(struct devices *d);

/* Does the backend of this name drive a GPU, and not compute with the processors? */
bool devices_is_gpu(const char *backend);
bool devices_have_gpu(const struct devices *d);
/* The backend that "auto" or a list begins with; false: it has no name of a backend's length. */
bool devices_first(const char *backends, char ret[BACKEND_NAME_MAX]);
/* "auto" means every device, "cuda" each of that backend's, "cuda:1" the one. */
bool device_is(const struct device *d, const char *wanted);
/* "cpu, cuda:0" */
void devices_list(const struct devices *d, char *text, size_t bytes);

/* Before a model goes there: does it compute? 0, or -INFER_E_BACKEND_LOAD or, when it could not
 * even be begun with, -INFER_E_BACKEND_LOST with a sentence, always the same. One thread at a time.
 */
int device_test(struct device *d, struct report *report);

/* The device of that name is lost. d may be NULL. */
static inline void devices_set_lost(struct devices *d, const char *name)
{
    for (uint32_t i = 0; d != NULL && i < d->n; i++)
        if (strcmp(d->device[i].name, name) == 0)
            atomic_store(&d->device[i].is_lost, true);
}

/* Of a device with a memory of its own: what a model may take there now; limit: of all models,
 * 0: none. */
uint64_t device_available(const struct device *d, uint64_t limit);
void device_take(struct device *d, uint64_t bytes);
void device_give(struct device *d, uint64_t bytes);

#endif
