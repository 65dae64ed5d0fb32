/* models.c: the table of models: what is known, who is told, what leaves when (see models.h).
 *
 * Invariants. An entry's engine exists from the moment its state becomes READY until the loading
 * thread has closed it. The hub hears of every change in order; from the moment it is asked to let
 * a model leave until its news come, nothing else is told of that model. One load is under way at
 * the most (`current`); others are `queued`.
 *
 * Keep-alive. One timer, at the next time at which a model may have been unused for long enough;
 * none when no model that is READY has a keep-alive. */
#include "models_internal.h"

#include "base/clock.h"
#include "base/log.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- who is told ----------------------------------------------------------------------------- */

void models_changed(struct models *m)
{
    if (m->config.on_change != NULL && !m->stopping)
        m->config.on_change(m->config.ctx);
}

static uint64_t time_to_load(const struct models *m, const struct entry *e, uint64_t now_us)
{
    uint64_t done = atomic_load(&e->done_bytes), total = atomic_load(&e->total_bytes);
    if (e->state == STATE_LOADING && done > 0 && total > done)
        return (uint64_t)((double)(now_us - e->began_us) * (double)(total - done) / (double)done);
    return (uint64_t)(1e6 * (double)e->file_bytes / (double)m->bytes_per_s);
}

void models_tell(struct models *m, uint32_t index)
{
    static const enum dispatch_model_state states[] = {
        [STATE_NONE] = DISPATCH_MODEL_NONE,       [STATE_LISTED] = DISPATCH_MODEL_LISTED,
        [STATE_LOADING] = DISPATCH_MODEL_LOADING, [STATE_READY] = DISPATCH_MODEL_READY,
        [STATE_FAILED] = DISPATCH_MODEL_FAILED,
    };
    const struct entry *e = &m->entries[index];
    if (m->dispatch == NULL || e->state == STATE_LEAVING || index == MODELS_DRY)
        return;
    struct dispatch_model told = {.state = states[e->state],
                                  .identity = e->identity,
                                  .load_us = time_to_load(m, e, clock_us()),
                                  .retry_us = e->retry_us,
                                  .report = e->report};
    struct infer_model *about = &told.about;
    snprintf(about->name, sizeof about->name, "%s", e->name);
    about->pinned = e->options.pin;
    about->keep_alive_s = e->options.keep_alive_s;
    if (e->state == STATE_READY) {
        const struct device *d = m->config.devices->device;
        about->vocabulary_bytes = e->need.vocabulary;
        snprintf(about->device, sizeof about->device, "%s", d[e->device].name);
        if (e->rest != DEVICE_NONE)
            snprintf(about->rest_device, sizeof about->rest_device, "%s", d[e->rest].name);
    }
    if (e->state == STATE_LOADING) {
        about->done_bytes = atomic_load(&e->done_bytes);
        about->total_bytes = atomic_load(&e->total_bytes);
    }
    if (dispatch_set_model(m->dispatch, index, &told) < 0)
        log_error("%s: no memory to tell of it", e->name);
}

void models_finish_watches(struct models *m, uint32_t index, bool unloads,
                           const struct report *report)
{
    const struct entry *e = &m->entries[index];
    for (struct models_watch **at = &m->watches, *w; (w = *at) != NULL;) {
        if (w->index != index || w->unloads != unloads) {
            at = &w->next;
            continue;
        }
        *at = w->next;
        w->done(w, report, &e->need, models_available(e));
        at = &m->watches; /* done() may have changed the list */
    }
}

void models_show_progress(struct models *m, uint32_t index)
{
    const struct entry *e = &m->entries[index];
    uint64_t done = atomic_load(&e->done_bytes), total = atomic_load(&e->total_bytes);
    for (struct models_watch *w = m->watches, *next; w != NULL; w = next) {
        next = w->next;
        if (w->index == index && !w->unloads)
            w->progress(w, done, total);
    }
    models_tell(m, index);
    models_changed(m);
}

static void add_watch(struct models *m, struct models_watch *w, uint32_t index, bool unloads,
                      bool owns)
{
    w->index = index;
    w->unloads = unloads;
    w->owns = owns;
    w->next = m->watches;
    m->watches = w;
}

void models_unwatch(struct models *m, struct models_watch *watch)
{
    struct models_watch **at = &m->watches;
    while (*at != NULL && *at != watch)
        at = &(*at)->next;
    if (*at == NULL)
        return;
    *at = watch->next;
    if (watch->owns)
        atomic_store(&m->entries[watch->index].cancelled, true);
}

/* ---- entries --------------------------------------------------------------------------------- */

static uint32_t find(const struct models *m, const char *name)
{
    for (uint32_t i = 0; i < INFER_MODELS_MAX; i++)
        if (m->entries[i].state != STATE_NONE && strcmp(m->entries[i].name, name) == 0)
            return i;
    return MODELS_NONE;
}

void models_drop_files(struct entry *e)
{
    for (uint32_t i = 0; i < e->n_files; i++)
        close(e->files[i]);
    free(e->files);
    e->files = NULL;
    e->n_files = 0;
}

/* What the hub is told is why: the entry's report. */
void models_forget(struct models *m, uint32_t index)
{
    struct entry *e = &m->entries[index];
    assert(e->work == WORK_NONE && e->load == NULL);
    bool known = index != MODELS_DRY && e->state != STATE_NONE;
    e->state = STATE_NONE;
    if (known)
        models_tell(m, index);
    models_drop_files(e);
    free(e->path);
    *e = (struct entry){.models = m};
}

/* A free place, or NONE. */
static uint32_t new_entry(struct models *m, const char *name, size_t n)
{
    for (uint32_t i = 0; i < INFER_MODELS_MAX; i++) {
        struct entry *e = &m->entries[i];
        if (e->state != STATE_NONE)
            continue;
        *e = (struct entry){.models = m, .state = STATE_LISTED};
        memcpy(e->name, name, n);
        return i;
    }
    return MODELS_NONE;
}

int models_new(const struct models_config *config, struct models **ret)
{
    struct models *m = calloc(1, sizeof *m);
    if (m == NULL)
        return -ENOMEM;
    m->config = *config;
    m->current = m->leaving_for = MODELS_NONE;
    m->bytes_per_s = MODELS_BYTES_PER_S_GUESS;
    m->last_work = &m->first_work;
    m->last_done = &m->first_done;
    pthread_mutex_init(&m->lock, NULL);
    pthread_cond_init(&m->filled, NULL);
    for (uint32_t i = 0; i < MODELS_PLACES; i++)
        m->entries[i].models = m;
    *ret = m;
    return 0;
}

void models_free(struct models *m)
{
    if (m == NULL)
        return;
    for (uint32_t i = 0; i < MODELS_PLACES; i++) {
        struct entry *e = &m->entries[i];
        loader_free(e->load);
        free(e->opening);
        free(e->path);
        models_drop_files(e);
        if (i < INFER_MODELS_MAX && m->engines[i].weights != NULL)
            models_empty(m, i);
    }
    pthread_cond_destroy(&m->filled);
    pthread_mutex_destroy(&m->lock);
    free(m);
}

struct engine_model *models_engines(struct models *m)
{
    return m->engines;
}

void models_leave(struct models *m, uint32_t index, enum dispatch_leave how)
{
    struct entry *e = &m->entries[index];
    e->state = STATE_LEAVING;
    e->must_leave |= how != DISPATCH_LEAVE_IDLE;
    if (dispatch_leave_model(m->dispatch, index, how) < 0)
        log_error("%s: no memory to let it leave", e->name);
}

/* ---- keep-alive ------------------------------------------------------------------------------ */

static uint64_t expiry(const struct models *m, uint32_t index, uint64_t now_us)
{
    const struct entry *e = &m->entries[index];
    uint64_t keep_us = 1000000ull * e->options.keep_alive_s;
    uint64_t since = dispatch_model_idle_since(m->dispatch, index);
    if (e->state != STATE_READY || keep_us == 0)
        return UINT64_MAX;
    return (since != 0 ? since : now_us) + keep_us;
}

static void on_timer(void *ctx)
{
    struct models *m = ctx;
    uint64_t now = clock_us();
    m->timer = NULL;
    for (uint32_t i = 0; i < INFER_MODELS_MAX && !m->stopping; i++) {
        struct entry *e = &m->entries[i];
        if (expiry(m, i, now) > now)
            continue;
        log_info("%s: unused for %u s", e->name, e->options.keep_alive_s);
        models_leave(m, i, DISPATCH_LEAVE_IDLE);
    }
    models_arm(m);
}

void models_arm(struct models *m)
{
    uint64_t now = clock_us(), next = UINT64_MAX;
    if (m->dispatch == NULL || m->stopping)
        return;
    for (uint32_t i = 0; i < INFER_MODELS_MAX; i++)
        if (expiry(m, i, now) < next)
            next = expiry(m, i, now);
    if (m->timer != NULL && m->timer_us <= next && next != UINT64_MAX)
        return; /* it looks again then */
    if (m->timer != NULL)
        loop_unwatch(m->config.loop, m->timer);
    m->timer = NULL;
    if (next == UINT64_MAX)
        return;
    m->timer_us = next;
    if (loop_timer(m->config.loop, next > now ? next - now : 1, 0, on_timer, m, &m->timer) < 0)
        log_error("no timer for models that are not used");
}

/* ---- the hub's news -------------------------------------------------------------------------- */

static void wanted(struct models *m, uint32_t index)
{
    struct entry *e = &m->entries[index];
    if (e->state == STATE_LISTED || e->state == STATE_FAILED)
        models_enqueue(m, index);
}

static void stayed(struct models *m, uint32_t index)
{
    struct entry *e = &m->entries[index];
    if (e->state != STATE_LEAVING || e->closing || e->must_leave)
        return;
    e->state = STATE_READY;
    models_tell(m, index);
    models_victim_stayed(m, index);
    models_arm(m);
}

void models_on_news(void *models)
{
    struct models *m = models;
    struct dispatch_news news = dispatch_take_news(m->dispatch);
    for (uint32_t i = 0; i < INFER_MODELS_MAX && !m->stopping; i++) {
        uint32_t bit = 1u << i;
        if ((news.left & bit) != 0)
            models_close(m, i);
        if ((news.stayed & bit) != 0)
            stayed(m, i);
        if ((news.wanted & bit) != 0)
            wanted(m, i);
    }
}

/* ---- the configuration ----------------------------------------------------------------------- */

static uint64_t size_of_file(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISREG(st.st_mode) ? (uint64_t)st.st_size : 0;
}

/* One that the configuration names, new or known; NULL: there is no place or no memory. */
static struct entry *configure(struct models *m, const char *name, size_t n, const char *path)
{
    char text[INFER_MODEL_NAME_MAX] = "";
    memcpy(text, name, n);
    uint32_t index = find(m, text);
    char *copy = strdup(path);
    if (index == MODELS_NONE && copy != NULL)
        index = new_entry(m, name, n);
    if (index == MODELS_NONE || copy == NULL) {
        log_warning("%s: not listed: %s", text,
                    copy != NULL ? "there are 32 models already" : "no memory");
        free(copy);
        return NULL;
    }
    struct entry *e = &m->entries[index];
    free(e->path);
    e->path = copy;
    e->configured = e->seen = true;
    e->gone_after = e->fresh = false;
    if (e->state == STATE_LISTED || e->state == STATE_FAILED)
        e->file_bytes = size_of_file(path);
    e->retry_us = 0; /* it may be another file */
    return e;
}

static void set_device(struct models_options *o, const char *device)
{
    snprintf(o->device, sizeof o->device, "%s", device);
}

static void configure_model(struct models *m, const struct config_model *from)
{
    struct entry *e = configure(m, from->name, strlen(from->name), from->path);
    if (e == NULL)
        return;
    e->options = (struct models_options){.n_context = from->n_context,
                                         .parallel = from->parallel,
                                         .state_bytes = from->state_memory_bytes,
                                         .k_type = from->k_type,
                                         .v_type = from->v_type,
                                         .keep_alive_s = from->keep_alive_s,
                                         .device_layers = from->device_layers,
                                         .pin = from->pin};
    set_device(&e->options, from->device);
    e->given = from->given;
    e->preload = from->preload;
}

/* Of a split model the first part stands for all. */
static bool is_model_file(const char *name)
{
    size_t n = strlen(name);
    if (name[0] == '.' || n < 6 || strcasecmp(name + n - 5, ".gguf") != 0)
        return false;
    const char *of = strstr(name, "-of-");
    size_t split = strlen("-00001-of-00001.gguf");
    return n <= split || of != name + n - split + 6 || strncmp(name + n - split, "-00001-", 7) == 0;
}

static void configure_folder(struct models *m, const char *folder)
{
    DIR *dir = opendir(folder);
    if (dir == NULL) {
        log_warning("model-directory %s: %s", folder, strerror(errno));
        return;
    }
    for (const struct dirent *e; (e = readdir(dir)) != NULL;) {
        char path[PATH_MAX], text[INFER_MODEL_NAME_MAX] = "";
        const char *name;
        int n = snprintf(path, sizeof path, "%s/%s", folder, e->d_name);
        if (!is_model_file(e->d_name) || n < 0 || (size_t)n >= sizeof path)
            continue;
        size_t bytes = config_name_of_file(path, &name);
        if (!config_is_model_name(name, bytes)) {
            log_warning("%s: its name cannot be a model's", path);
            continue;
        }
        memcpy(text, name, bytes);
        uint32_t index = find(m, text);
        if (index != MODELS_NONE && m->entries[index].seen)
            continue; /* a section, or a folder before this one, has that name */
        struct entry *entry = configure(m, name, bytes, path);
        if (entry != NULL)
            entry->options = m->defaults;
    }
    closedir(dir);
}

/* What the configuration does not name any more. */
static void drop(struct models *m, uint32_t index)
{
    struct entry *e = &m->entries[index];
    e->configured = false;
    if (e->n_files > 0)
        return; /* a manager's own */
    report_fail(&e->report, INFER_E_UNLOADED, "the configuration does not name %s any more",
                e->name);
    e->gone_after = true;
    if (e->state == STATE_READY) {
        models_leave(m, index, DISPATCH_LEAVE_DRAIN);
    } else if (e->state == STATE_LOADING) {
        atomic_store(&e->cancelled, true);
    } else if (e->state != STATE_LEAVING) {
        models_forget(m, index);
    }
}

void models_configure(struct models *m, const struct config *c)
{
    m->defaults = (struct models_options){.n_context = c->n_context,
                                          .parallel = c->parallel,
                                          .state_bytes = c->state_memory_bytes,
                                          .k_type = c->k_type,
                                          .v_type = c->v_type,
                                          .device_layers = c->device_layers,
                                          .keep_alive_s = c->keep_alive_s};
    set_device(&m->defaults, c->model_device);
    atomic_store(&m->limit_bytes, c->memory_limit_bytes);
    atomic_store(&m->device_limit_bytes, c->device_memory_limit_bytes);
    for (uint32_t i = 0; i < INFER_MODELS_MAX; i++)
        m->entries[i].seen = false;
    for (uint32_t i = 0; i < c->n_models; i++)
        configure_model(m, &c->models[i]);
    for (uint32_t i = 0; i < c->n_model_directories; i++)
        configure_folder(m, c->model_directories[i]);
    for (uint32_t i = 0; i < INFER_MODELS_MAX; i++) {
        struct entry *e = &m->entries[i];
        if (e->state != STATE_NONE && e->configured && !e->seen)
            drop(m, i);
        else if (e->state != STATE_NONE)
            models_tell(m, i);
        if (m->dispatch != NULL && e->preload && e->state == STATE_LISTED)
            models_enqueue(m, i);
    }
    models_arm(m);
    models_changed(m);
}

/* ---- start and end --------------------------------------------------------------------------- */

int models_start(struct models *m, struct dispatch *d)
{
    int rc = models_thread_start(m);
    if (rc < 0)
        return rc;
    m->dispatch = d;
    for (uint32_t i = 0; i < INFER_MODELS_MAX; i++)
        if (m->entries[i].state != STATE_NONE)
            models_tell(m, i);
    models_arm(m);
    return 0;
}

void models_preload(struct models *m, void (*done)(void *ctx, const struct report *report),
                    void *ctx)
{
    m->preloaded = done;
    m->preloaded_ctx = ctx;
    for (uint32_t i = 0; i < INFER_MODELS_MAX; i++) {
        struct entry *e = &m->entries[i];
        e->preloads = e->preload && e->state == STATE_LISTED;
    }
    for (uint32_t i = 0; i < INFER_MODELS_MAX; i++)
        if (m->entries[i].preloads)
            models_enqueue(m, i);
    models_preload_goes_on(m);
}

void models_stop(struct models *m)
{
    models_thread_stop(m);
    if (m->timer != NULL)
        loop_unwatch(m->config.loop, m->timer);
    m->timer = NULL;
}

/* ---- what managers ask for ------------------------------------------------------------------- */

static void complete_options(const struct models *m, const struct models_options *asked,
                             struct models_options *ret)
{
    const struct models_options *d = &m->defaults;
    *ret = *asked;
    if (asked->device[0] == '\0')
        set_device(ret, d->device);
    ret->device_layers = d->device_layers;
    if (asked->n_context == 0)
        ret->n_context = d->n_context;
    if (asked->parallel == 0)
        ret->parallel = d->parallel;
    if (asked->state_bytes == 0)
        ret->state_bytes = d->state_bytes;
    if (asked->k_type == 0)
        ret->k_type = d->k_type;
    if (asked->v_type == 0)
        ret->v_type = d->v_type;
    if (asked->keep_alive_s == UINT32_MAX)
        ret->keep_alive_s = d->keep_alive_s;
}

static int take_files(struct entry *e, const char *label, const int *files, uint32_t n)
{
    e->files = malloc(n * sizeof *files);
    if (e->files == NULL)
        return -ENOMEM;
    memcpy(e->files, files, n * sizeof *files);
    e->n_files = n;
    snprintf(e->label, sizeof e->label, "%s", label);
    return 0;
}

static int no_files(const int *files, uint32_t n, struct report *report, int code, const char *text,
                    const char *name)
{
    for (uint32_t i = 0; i < n; i++)
        close(files[i]);
    return report_fail(report, code, text, name);
}

static int load_listed(struct models *m, const char *name, struct models_watch *watch,
                       struct report *report)
{
    uint32_t index = find(m, name);
    if (index == MODELS_NONE)
        return report_fail(report, INFER_E_UNKNOWN_MODEL, "no model is named '%s'", name);
    struct entry *e = &m->entries[index];
    if (e->state == STATE_LEAVING)
        return report_fail(report, INFER_E_INVALID, "%s is leaving; try again when it has left",
                           name);
    add_watch(m, watch, index, false, false);
    if (e->state == STATE_READY)
        models_finish_watches(m, index, false, &(struct report){0});
    else if (e->state != STATE_LOADING)
        models_enqueue(m, index);
    return 0;
}

int models_load(struct models *m, const char *name, const char *label, const int *files,
                uint32_t n_files, const struct models_options *options, struct models_watch *watch,
                struct report *report)
{
    if (n_files == 0)
        return load_listed(m, name, watch, report);
    if (!config_is_model_name(name, strlen(name)))
        return no_files(files, n_files, report, INFER_E_INVALID,
                        "'%s' cannot be a model's name: it has 1 to 63 of A-Z a-z 0-9 . _ -", name);
    if (find(m, name) != MODELS_NONE)
        return no_files(files, n_files, report, INFER_E_INVALID,
                        "a model is named '%s' already; unload it, or give this one another name",
                        name);
    uint32_t index = new_entry(m, name, strlen(name));
    if (index == MODELS_NONE)
        return no_files(files, n_files, report, INFER_E_INVALID,
                        "%s: 32 models are known already; unload one", name);
    struct entry *e = &m->entries[index];
    if (take_files(e, label, files, n_files) < 0) {
        e->state = STATE_NONE;
        return no_files(files, n_files, report, INFER_E_OUT_OF_MEMORY, "no memory for %s", name);
    }
    complete_options(m, options, &e->options);
    e->fresh = true;
    add_watch(m, watch, index, false, true);
    models_enqueue(m, index);
    return 0;
}

int models_estimate(struct models *m, const char *label, const int *files, uint32_t n_files,
                    const struct models_options *options, struct models_watch *watch,
                    struct report *report)
{
    struct entry *e = &m->entries[MODELS_DRY];
    if (n_files == 0)
        return report_fail(report, INFER_E_INVALID, "an estimate needs the model's file");
    if (e->n_files != 0)
        return no_files(files, n_files, report, INFER_E_BUSY,
                        "%s: another estimate is being made; try again", label);
    if (take_files(e, label, files, n_files) < 0)
        return no_files(files, n_files, report, INFER_E_OUT_OF_MEMORY, "no memory for %s", label);
    complete_options(m, options, &e->options);
    add_watch(m, watch, MODELS_DRY, false, true);
    models_enqueue(m, MODELS_DRY);
    return 0;
}

int models_unload(struct models *m, const char *name, bool now, struct models_watch *watch,
                  struct report *report)
{
    uint32_t index = find(m, name);
    if (index == MODELS_NONE)
        return report_fail(report, INFER_E_UNKNOWN_MODEL, "no model is named '%s'", name);
    struct entry *e = &m->entries[index];
    add_watch(m, watch, index, true, false);
    e->gone_after = !e->configured;
    if (e->state == STATE_READY || (e->state == STATE_LEAVING && !e->closing)) {
        models_leave(m, index, now ? DISPATCH_LEAVE_NOW : DISPATCH_LEAVE_DRAIN);
    } else if (e->state == STATE_LOADING) {
        atomic_store(&e->cancelled, true);
    } else if (e->state != STATE_LEAVING) {
        models_finish_watches(m, index, true, &(struct report){0});
        if (e->gone_after)
            models_forget(m, index);
    }
    return 0;
}

/* ---- for a person ---------------------------------------------------------------------------- */

bool models_loading(const struct models *m, char *text, size_t bytes, uint64_t *ret_done_bytes)
{
    if (m->current >= INFER_MODELS_MAX)
        return false;
    const struct entry *e = &m->entries[m->current];
    uint64_t done = atomic_load(&e->done_bytes), total = atomic_load(&e->total_bytes);
    unsigned percent =
        total > 0 && done <= total ? (unsigned)(100.0 * (double)done / (double)total) : 0;
    snprintf(text, bytes, "loading %s: %u %%", e->name, percent);
    *ret_done_bytes = done;
    return true;
}

const struct device *models_device(const struct models *m, uint32_t index)
{
    const struct entry *e = &m->entries[index];
    bool loaded = e->state == STATE_READY || e->state == STATE_LEAVING;
    return loaded ? &m->config.devices->device[e->device] : NULL;
}

uint32_t models_ready(const struct models *m)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < INFER_MODELS_MAX; i++)
        n += m->entries[i].state == STATE_READY || m->entries[i].state == STATE_LEAVING;
    return n;
}
