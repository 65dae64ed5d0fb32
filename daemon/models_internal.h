/* models_internal.h: what the files of the models' table share:
 *
 *   models.c       the table, its configuration, who is told what, keep-alive, unloading
 *   models_load.c  the loading thread, a load from its beginning to its end
 *   models_place.c where it goes: the device, and what leaves for it */
#ifndef INFERD_MODELS_INTERNAL_H
#define INFERD_MODELS_INTERNAL_H

#include "models.h"

#include <pthread.h>
#include <stdatomic.h>

/* Entry of models_estimate(), which is no model. */
#define MODELS_DRY    INFER_MODELS_MAX
#define MODELS_NONE   UINT32_MAX
#define MODELS_PLACES (INFER_MODELS_MAX + 1)

/* Until a model that failed is tried again when a request wants it. */
#define MODELS_PAUSE_US 5000000u
/* Before anything was read. */
#define MODELS_BYTES_PER_S_GUESS 1000000000u

enum models_work { WORK_NONE, WORK_OPEN, WORK_SIZE, WORK_FILL, WORK_CLOSE, WORK_STOP };

enum models_state {
    STATE_NONE,
    STATE_LISTED,
    STATE_LOADING,
    STATE_READY,
    STATE_LEAVING,
    STATE_FAILED
};

struct entry {
    enum models_state state;
    char name[INFER_MODEL_NAME_MAX];
    char *path; /* of the configuration or a directory; NULL: only descriptors */
    int *files; /* of a manager; they win over path until the model has left */
    uint32_t n_files;
    char label[INFER_MODEL_NAME_MAX + 64]; /* what messages call the descriptors */
    struct models_options options;         /* complete */
    bool configured, given, preload;
    bool seen;       /* by models_configure() */
    bool gone_after; /* when it has left, or its load has ended, it is no longer known */
    bool fresh;      /* given by a manager and never READY: a failure forgets it */
    bool must_leave; /* the hub was told so, whatever its requests */
    bool stayed;     /* it had a request when it was asked to leave for others */
    bool queued;     /* to be loaded after others */
    bool preloads;   /* the daemon is not ready before this load has ended */
    bool closing;    /* its engine is at the loading thread */
    uint64_t order;  /* of the queue */
    struct report report;
    uint64_t retry_us;
    uint64_t file_bytes; /* as far as known */
    uint64_t identity;
    struct loader_need need;
    struct loader_target target; /* when it was sized */
    uint32_t device;             /* that it is on or is to be filled into; else DEVICE_NONE */
    uint32_t rest;               /* the same of what follows its first layers, in a split */
    uint64_t began_us, told_us, logged_us;

    /* With the loading thread while work is not NONE. */
    enum models_work work;
    char *opening; /* the path, and the options, of the load under way */
    char wanted[DEVICE_NAME_MAX];
    uint32_t wanted_layers;
    uint32_t refused; /* devices, a bit each, that did not take it although there was room */
    struct loader_options load_options;
    struct entry *next_work;
    struct load *load;
    struct report work_report;
    int work_rc;
    atomic_bool cancelled;
    _Atomic uint64_t done_bytes, total_bytes;
    uint64_t posted_us; /* the loading thread's */
    struct models *models;
};

/* What a load would take on a device. rc: of loader_size(); -ENODEV: it does not come in question.
 */
struct models_fit {
    int rc;
    struct report report;
    struct loader_need need;
    struct loader_target target;
};

struct models {
    struct models_config config;
    struct dispatch *dispatch; /* NULL before models_start() */
    struct entry entries[MODELS_PLACES];
    struct engine_model engines[INFER_MODELS_MAX];
    struct models_options defaults;
    _Atomic uint64_t limit_bytes; /* 0: none */
    _Atomic uint64_t device_limit_bytes;
    _Atomic uint64_t vocabulary_bytes; /* of the models that are loaded */
    uint64_t bytes_per_s;
    struct models_watch *watches;
    struct loop_watch *timer;
    uint64_t timer_us;
    uint32_t current; /* index that loads, or NONE */
    /* Of the current one, by device: all of it there, and in a split; the loading thread's, as its
     * load. */
    struct models_fit fits[DEVICES_MAX], splits[DEVICES_MAX];
    uint32_t leaving_for; /* of those that make room for it: the one asked, or NONE */
    void (*preloaded)(void *ctx, const struct report *report); /* NULL: told, or none are */
    void *preloaded_ctx;
    uint64_t next_order;
    bool stopping;

    pthread_t thread;
    bool started;
    pthread_mutex_t lock;
    pthread_cond_t filled;
    struct entry *first_work, **last_work; /* to the thread */
    struct entry *first_done, **last_done; /* and back */
    struct entry stop;                     /* the message that ends it */
};

/* models.c */
void models_tell(struct models *m, uint32_t index);
void models_changed(struct models *m);
/* Asks the hub to let go of a READY one; its news say what came of it. */
void models_leave(struct models *m, uint32_t index, enum dispatch_leave how);
void models_forget(struct models *m, uint32_t index);
void models_drop_files(struct entry *e);
void models_finish_watches(struct models *m, uint32_t index, bool unloads,
                           const struct report *report);
void models_show_progress(struct models *m, uint32_t index);
void models_arm(struct models *m);

/* models_place.c */
/* Loading thread: what the entry's load would take on each device that it may go to. Negative:
 * there is none. */
int models_size(struct models *m, struct entry *e, struct report *report);
/* Has the devices that the entry may go to tested, those that are not yet, which models_size() does
 * otherwise. Not at the same time as that. */
void models_test_devices(struct models *m, const struct entry *e);
bool models_devices_are_tested(const struct models *m, const struct entry *e);
enum models_place_how { PLACE_FILL, PLACE_EVICT, PLACE_NOWHERE };
struct models_place {
    enum models_place_how how;
    uint32_t device; /* also of NOWHERE: whose fit says why */
    bool split;
    uint32_t victim; /* EVICT */
};
/* Event thread, after models_size(): where the entry goes; its need, target and device are set. */
struct models_place models_choose(struct models *m, uint32_t index);
const struct models_fit *models_fit_of(const struct models *m, const struct models_place *place);
/* "cuda:0", or "cuda:0 (layers 0 to 21 of 32) and cpu". */
#define MODELS_WHERE_MAX 128u
const char *models_where(const struct models *m, const struct entry *e,
                         char text[MODELS_WHERE_MAX]);
/* Bytes there for it on all its devices, when it was sized. */
uint64_t models_available(const struct entry *e);
/* What the models that share the memory of the entry's device hold there, but for itself. */
void models_held(const struct models *m, uint32_t index, uint64_t *ret_idle, uint64_t *ret_busy);
/* The device that it was to go to has refused it; true: there are others to be asked. */
bool models_pass_over(const struct models *m, struct entry *e, const struct report *why);

/* models_load.c */
/* Takes away what a load filled in. */
void models_empty(struct models *m, uint32_t index);
void models_enqueue(struct models *m, uint32_t index);
/* Begins the next load if none is under way. */
void models_pump(struct models *m);
/* Asks the loading thread to close a model that the hub has left. */
void models_close(struct models *m, uint32_t index);
/* Tells whoever waits for what is loaded first, if none of it is left. */
void models_preload_goes_on(struct models *m);
void models_victim_stayed(struct models *m, uint32_t index);
int models_thread_start(struct models *m);
void models_thread_stop(struct models *m);

static inline uint32_t models_index(const struct entry *e)
{
    return (uint32_t)(e - e->models->entries);
}

#endif
