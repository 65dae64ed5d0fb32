/* models.h: the models that the daemon knows: which, from where, loaded or not, and what each
 * takes.
 *
 *             configured, found in a directory, or given by a manager
 *                                   |
 *        +------------------->   LISTED   <---------------------------+
 *        |                          | a request wants it, or preload  |
 *   after a pause                LOADING                              |
 *        |                     |         |                            |
 *        +------ FAILED <------+       READY --- keep-alive, room  LEAVING
 *                                          for another, unload ------>+
 *
 * A model keeps its number, 0 .. INFER_MODELS_MAX - 1, as long as it is known. One is loaded at a
 * time, by a thread of its own, while others serve. Before anything large is taken, what it needs
 * must be there: within the limit that the administrator set, and within what control group and
 * machine, or the device, have left. If it is not, models of the same memory that have no request
 * and are not pinned leave, the one that was used longest ago first, if what they hold is enough;
 * else loading fails.
 *
 * Which device: each time that it is loaded, of those that its configuration allows the first with
 * a memory of its own that holds it, at once or after idle ones have left; else the one that holds
 * the most of its layers, while the rest is in the host's memory; else one that uses the host's
 * alone. A device that then refuses it after all is passed over.
 *
 * The ledger: a model's weights and scratch as its backend took them, its pages and their ledger,
 * its vocabulary. What was taken goes back to the system when the model leaves.
 *
 * Threads: the event thread's, but for the loading thread that is its own. */
#ifndef INFERD_MODELS_H
#define INFERD_MODELS_H

#include "config.h"
#include "devices.h"
#include "dispatch.h"
#include "io/loop.h"
#include "loader.h"
#include "memory.h"
#include "metrics.h"

struct models;

struct models_config {
    struct loop *loop;
    struct memory *memory;
    struct devices *devices;
    struct stream_options stream; /* how files are read */
    struct metrics_loads *loads;  /* what is counted of it; may be NULL */
    /* May be NULL: what models_loading() or models_ready() says has changed; while a model loads,
     * at most ten times a second. */
    void (*on_change)(void *ctx);
    void *ctx;
};

/* What a manager says of a model; 0, "", and for keep_alive_s UINT32_MAX, is the configuration's.
 */
struct models_options {
    char device[DEVICE_NAME_MAX]; /* that device_is() */
    uint32_t device_layers;       /* CONFIG_LAYERS_AUTO, _ALL or how many of its first */
    uint32_t n_context, parallel;
    uint64_t state_bytes;
    uint32_t k_type, v_type;
    uint32_t keep_alive_s;
    bool pin;
};

/* Who follows what happens to a model: the caller's memory, from models_load() or models_unload()
 * until done() or models_unwatch(), whichever is first. */
struct models_watch {
    void (*progress)(struct models_watch *w, uint64_t done_bytes, uint64_t total_bytes);
    /* report->code 0: it is so. need: of a load that was sized, else zero. */
    void (*done)(struct models_watch *w, const struct report *report,
                 const struct loader_need *need, uint64_t available_bytes);
    /* private */
    struct models_watch *next;
    uint32_t index;
    bool owns;    /* without it the load has no reason */
    bool unloads; /* waits for the end, not for the beginning */
};

/* -ENOMEM. */
int models_new(const struct models_config *config, struct models **ret);
/* After dispatch_free(): closes what is loaded. NULL is allowed. */
void models_free(struct models *m);

/* Places for dispatch_config.models. */
struct engine_model *models_engines(struct models *m);

/* Makes the models those of the configuration and its directories: new ones are listed, others
 * leave, and of those that stay keep-alive and pin change at once, the rest when they are loaded
 * next. Those that a manager gave stay. The configuration's strings are copied. */
void models_configure(struct models *m, const struct config *config);
/* Tells the hub and starts the loading thread. -ENOMEM, -EAGAIN. */
int models_start(struct models *m, struct dispatch *d);
/* Begins to load those marked so, one after the other; none makes another leave. After
 * models_start(), once. done() is called once, perhaps at once: with code 0 when all of them have
 * been tried, or with the first failure of one that the command line names, which is the caller's
 * to tell; those of the configuration are logged and FAILED. */
void models_preload(struct models *m, void (*done)(void *ctx, const struct report *report),
                    void *ctx);
/* Cancels what loads and joins the thread; before dispatch_stop(). */
void models_stop(struct models *m);

/* dispatch_config.on_models. */
void models_on_news(void *models);

/* Makes a model known, from descriptors that are taken over (closed also on failure), and loads it;
 * n_files 0: loads the one that is LISTED by that name. Negative: watch is not used, the report
 * says why: INVALID name, a name that is in use, too many models. */
int models_load(struct models *m, const char *name, const char *label, const int *files,
                uint32_t n_files, const struct models_options *options, struct models_watch *watch,
                struct report *report);
/* What that would take: done() gets it; nothing is loaded or listed. */
int models_estimate(struct models *m, const char *label, const int *files, uint32_t n_files,
                    const struct models_options *options, struct models_watch *watch,
                    struct report *report);
/* Its requests end first (now: with UNLOADED). Then it is LISTED again if the configuration names
 * it, else it is gone. */
int models_unload(struct models *m, const char *name, bool now, struct models_watch *watch,
                  struct report *report);
/* The watcher goes away; a load that it owns is cancelled. */
void models_unwatch(struct models *m, struct models_watch *watch);

/* "loading foo: 43 %", and how much of it is read; false: nothing loads. */
bool models_loading(const struct models *m, char *text, size_t bytes, uint64_t *ret_done_bytes);
/* The device of a model that is loaded, of a split the first; NULL: it is not. */
const struct device *models_device(const struct models *m, uint32_t index);
/* How many are loaded. */
uint32_t models_ready(const struct models *m);

#endif
