/* models_load.c: the loading thread, and a load from its beginning to its end.
 *
 *   OPEN   head, plan, vocabulary; then sized against what each device has left
 *          too large: others leave, one after the other (each CLOSE comes between), SIZE again
 *   FILL   memory is taken, weights are streamed in; when the device has it not after all, OPEN
 *          again for the others
 *   CLOSE  of one that has left
 *
 * The event thread decides, the loading thread does one of these at a time and hands the entry
 * back. While an entry has work its load, and the engine of FILL and CLOSE, are the loading
 * thread's; what both touch is atomic. A load ends at the next read once it is cancelled. */
#include "models_internal.h"

#include "base/clock.h"
#include "base/log.h"
#include "messages.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MIB(bytes) ((double)(bytes) / 1048576.0)
/* How often progress is told, and written to the log. */
#define TELL_US 100000u
#define LOG_US  5000000u

/* ---- progress that is told --------------------------------------------------------------------
 */

static bool is_cancelled(void *ctx)
{
    return atomic_load_explicit(&((struct entry *)ctx)->cancelled, memory_order_relaxed);
}

static void on_progress(void *ctx);

static void post_progress(void *ctx, uint64_t done, uint64_t total)
{
    struct entry *e = ctx;
    uint64_t now = clock_us();
    atomic_store_explicit(&e->total_bytes, total, memory_order_relaxed);
    atomic_store_explicit(&e->done_bytes, done, memory_order_relaxed);
    if (now - e->posted_us < TELL_US)
        return;
    e->posted_us = now;
    loop_post(e->models->config.loop, on_progress, e);
}

static int begin_load(struct models *m, uint32_t index)
{
    struct entry *e = &m->entries[index];
    e->opening = strdup(e->n_files > 0 ? e->label : e->path);
    memcpy(e->wanted, e->options.device, sizeof e->wanted);
    e->refused = 0;
    e->wanted_layers = e->options.device_layers;
    e->device = e->rest = DEVICE_NONE;
    e->load_options = (struct loader_options){.n_context = e->options.n_context,
                                              .parallel = e->options.parallel,
                                              .state_memory = e->options.state_bytes,
                                              .k_type = e->options.k_type,
                                              .v_type = e->options.v_type,
                                              .owner = index,
                                              .stream = m->config.stream,
                                              .loads = m->config.loads,
                                              .progress = post_progress,
                                              .progress_ctx = e,
                                              .cancelled = is_cancelled};
    return e->opening != NULL ? 0 : -ENOMEM;
}

/* ---- the thread ------------------------------------------------------------------------------ */

static void *test_main(void *arg)
{
    struct entry *e = arg;
    pthread_setname_np(pthread_self(), "inferd-test");
    models_test_devices(e->models, e);
    return NULL;
}

/* A GPU that nobody has used yet takes as long to begin with as a file's vocabulary to read. */
static int open_and_size(struct models *m, struct entry *e, struct report *report)
{
    struct loader_source source = {.path = e->opening, .files = e->files, .n_files = e->n_files};
    pthread_t thread;
    bool tests =
        !models_devices_are_tested(m, e) && pthread_create(&thread, NULL, test_main, e) == 0;
    int rc = loader_open(e->name, &source, &e->load_options, &e->load, report);
    if (tests)
        pthread_join(thread, NULL);
    return rc < 0 ? rc : models_size(m, e, report);
}

/* As it was sized: the same need, whatever has been taken or given meanwhile. What a split takes of
 * the host's memory is in that ledger by itself. */
static int fill(struct models *m, struct entry *e, struct report *report)
{
    uint32_t index = models_index(e);
    struct device *d = &m->config.devices->device[e->device];
    int rc = loader_size(e->load, &e->target, &e->need, report);
    if (rc < 0)
        return rc;
    if (d->memory != 0)
        device_take(d, e->need.on_backend);
    rc = loader_fill(e->load, &m->engines[index], report);
    if (rc < 0 && d->memory != 0)
        device_give(d, e->need.on_backend);
    if (rc == -INFER_E_BACKEND_LOST)
        atomic_store(&d->is_lost, true);
    return rc;
}

void models_empty(struct models *m, uint32_t index)
{
    struct entry *e = &m->entries[index];
    struct device *d = &m->config.devices->device[e->device];
    loader_close(&m->engines[index], index);
    if (d->memory != 0)
        device_give(d, e->need.on_backend);
}

static void work(struct models *m, struct entry *e)
{
    uint32_t index = models_index(e);
    e->work_report = (struct report){0};
    switch (e->work) {
    case WORK_OPEN:
        e->work_rc = open_and_size(m, e, &e->work_report);
        break;
    case WORK_SIZE:
        e->work_rc = models_size(m, e, &e->work_report);
        break;
    case WORK_FILL:
        e->work_rc = fill(m, e, &e->work_report);
        break;
    case WORK_CLOSE:
        models_empty(m, index);
        e->work_rc = 0;
        break;
    default:
        break;
    }
}

static void on_done(void *ctx);

static void *thread_main(void *arg)
{
    struct models *m = arg;
    pthread_setname_np(pthread_self(), "inferd-loader");
    for (;;) {
        pthread_mutex_lock(&m->lock);
        while (m->first_work == NULL)
            pthread_cond_wait(&m->filled, &m->lock);
        struct entry *e = m->first_work;
        m->first_work = e->next_work;
        if (m->first_work == NULL)
            m->last_work = &m->first_work;
        pthread_mutex_unlock(&m->lock);
        if (e->work == WORK_STOP)
            return NULL;
        work(m, e);
        pthread_mutex_lock(&m->lock);
        e->next_work = NULL;
        *m->last_done = e;
        m->last_done = &e->next_work;
        pthread_mutex_unlock(&m->lock);
        loop_post(m->config.loop, on_done, m);
    }
}

static void start_work(struct models *m, struct entry *e, enum models_work kind)
{
    e->work = kind;
    pthread_mutex_lock(&m->lock);
    e->next_work = NULL;
    *m->last_work = e;
    m->last_work = &e->next_work;
    pthread_cond_signal(&m->filled);
    pthread_mutex_unlock(&m->lock);
}

int models_thread_start(struct models *m)
{
    int rc = pthread_create(&m->thread, NULL, thread_main, m);
    m->started = rc == 0;
    return -rc;
}

/* What it did last is looked at no more; models_free() closes it. */
void models_thread_stop(struct models *m)
{
    m->stopping = true;
    for (uint32_t i = 0; i < MODELS_PLACES; i++)
        atomic_store(&m->entries[i].cancelled, true);
    if (!m->started)
        return;
    start_work(m, &m->stop, WORK_STOP);
    pthread_join(m->thread, NULL);
    m->started = false;
}

/* ---- a load's end ---------------------------------------------------------------------------- */

static void end_load(struct models *m, uint32_t index)
{
    struct entry *e = &m->entries[index];
    loader_free(e->load);
    free(e->opening);
    e->load = NULL;
    e->opening = NULL;
    if (m->current == index)
        m->current = MODELS_NONE;
    if (m->current == MODELS_NONE)
        for (uint32_t i = 0; i < INFER_MODELS_MAX; i++)
            m->entries[i].stayed = false;
}

static void count_load(const struct models *m, bool done)
{
    if (m->config.loads != NULL)
        atomic_fetch_add(done ? &m->config.loads->n_done : &m->config.loads->n_failed, 1);
}

static void loaded(struct models *m, uint32_t index, uint64_t took_us)
{
    struct entry *e = &m->entries[index];
    const struct engine_model *engine = &m->engines[index];
    e->state = STATE_READY;
    e->fresh = false;
    e->report = (struct report){0};
    char where[MODELS_WHERE_MAX];
    e->identity = loader_identity(e->load);
    e->file_bytes = e->need.file_bytes;
    atomic_fetch_add(&m->vocabulary_bytes, e->need.vocabulary);
    if (took_us > 10000)
        m->bytes_per_s = e->need.file_bytes * 1000000u / took_us + 1;
    count_load(m, true);
    struct log_fields fields = {.message_id = MESSAGE_MODEL_LOADED, .model = e->name};
    log_event(LOG_LEVEL_INFO, &fields,
              "%s: %s, weights %.1f MiB, context %u, state %u pages of %.1f KiB, scratch %.1f MiB, "
              "loaded on %s in %.0f ms",
              engine->name, engine->plan->description, MIB(engine->memory.weights_bytes),
              engine->n_context, engine->state.n_pages, (double)engine->memory.page_bytes / 1024.0,
              MIB(engine->memory.scratch_bytes), models_where(m, e, where),
              (double)took_us / 1000.0);
}

/* ---- before the daemon is ready ----------------------------------------------------------------
 */

static void end_preload(struct models *m, const struct report *report)
{
    void (*done)(void *ctx, const struct report *report) = m->preloaded;
    m->preloaded = NULL;
    if (done != NULL)
        done(m->preloaded_ctx, report);
}

void models_preload_goes_on(struct models *m)
{
    for (uint32_t i = 0; i < INFER_MODELS_MAX; i++)
        if (m->entries[i].preloads)
            return;
    end_preload(m, &(struct report){0});
}

/* Whether the start ends with its failure: whoever began it tells of it, as of nothing else. */
static bool ends_start(const struct models *m, const struct entry *e)
{
    return e->preloads && e->given && m->preloaded != NULL;
}

/* ---- a load that fails ------------------------------------------------------------------------
 */

static void log_failure(const struct entry *e, const struct report *report, bool told)
{
    if (report->code == INFER_E_CANCELLED)
        log_info("%s: loading was cancelled", e->name);
    else if (!told)
        log_error("%s: not loaded: %s", e->name, report->text);
}

static void load_failed(struct models *m, uint32_t index, const struct report *report)
{
    struct entry *e = &m->entries[index];
    bool cancelled = report->code == INFER_E_CANCELLED;
    const struct report failure = *report; /* it may be the entry's */
    const bool ends = !cancelled && ends_start(m, e);
    e->report = failure;
    e->preloads = false;
    end_load(m, index);
    if (index == MODELS_DRY) {
        models_finish_watches(m, index, false, report);
        models_forget(m, index);
        return;
    }
    if (!cancelled)
        count_load(m, false);
    log_failure(e, report, ends);
    bool gone = e->fresh || e->gone_after;
    e->state = cancelled ? STATE_LISTED : STATE_FAILED;
    if (cancelled)
        e->report = (struct report){0};
    e->retry_us = clock_us() + MODELS_PAUSE_US;
    models_finish_watches(m, index, false, report);
    models_finish_watches(m, index, true, &(struct report){0});
    if (gone) {
        e->report = *report;
        models_forget(m, index);
    } else {
        models_tell(m, index);
    }
    models_changed(m);
    if (ends)
        end_preload(m, &failure);
    else
        models_preload_goes_on(m);
}

/* ---- a load that is done ----------------------------------------------------------------------
 */

static void load_ended(struct models *m, uint32_t index)
{
    struct entry *e = &m->entries[index];
    loaded(m, index, clock_us() - e->began_us);
    end_load(m, index);
    models_tell(m, index);
    models_finish_watches(m, index, false, &(struct report){0});
    if (e->gone_after) { /* the configuration changed meanwhile */
        models_leave(m, index, DISPATCH_LEAVE_DRAIN);
    }
    models_arm(m);
    models_changed(m);
    e->preloads = false;
    models_preload_goes_on(m);
}

static const struct report was_cancelled = {INFER_E_CANCELLED, "loading it was cancelled"};

/* ---- room ------------------------------------------------------------------------------------ */

/* It goes nowhere. */
static void no_room(struct models *m, uint32_t index, const struct models_fit *fit)
{
    struct entry *e = &m->entries[index];
    struct report report = fit->report; /* it is too large whoever leaves, or something else */
    uint64_t idle, busy, have = fit->target.available;
    uint64_t missing = e->need.least > have ? e->need.least - have : 1;
    models_held(m, index, &idle, &busy);
    if (fit->rc == -INFER_E_MODEL_TOO_LARGE && fit->target.rest == NULL && missing <= idle + busy)
        report_fail(&report, INFER_E_MODEL_NO_ROOM,
                    "%s needs %.0f MiB and %.0f MiB are available on %s; models without requests "
                    "hold %.0f MiB more, others that are in use or pinned %.0f MiB",
                    e->name, MIB(e->need.least), MIB(have),
                    m->config.devices->device[e->device].name, MIB(idle), MIB(busy));
    load_failed(m, index, &report);
}

static void evict(struct models *m, uint32_t index, uint32_t victim)
{
    log_info("%s: leaves %s, %s needs its memory", m->entries[victim].name,
             m->config.devices->device[m->entries[victim].device].name, m->entries[index].name);
    m->leaving_for = victim;
    models_leave(m, victim, DISPATCH_LEAVE_IDLE);
}

static void sized(struct models *m, struct entry *e);

void models_victim_stayed(struct models *m, uint32_t index)
{
    if (m->leaving_for != index)
        return;
    m->leaving_for = MODELS_NONE;
    m->entries[index].stayed = true;
    sized(m, &m->entries[m->current]);
}

/* ---- a load's way ---------------------------------------------------------------------------- */

void models_enqueue(struct models *m, uint32_t index)
{
    struct entry *e = &m->entries[index];
    e->queued = true;
    e->order = ++m->next_order;
    if (index != MODELS_DRY)
        e->state = STATE_LOADING;
    e->began_us = e->logged_us = clock_us();
    e->told_us = 0;
    atomic_store(&e->cancelled, false);
    atomic_store(&e->done_bytes, 0);
    atomic_store(&e->total_bytes, e->file_bytes);
    if (index != MODELS_DRY)
        models_tell(m, index);
    models_pump(m);
}

void models_pump(struct models *m)
{
    struct entry *next = NULL;
    if (m->current != MODELS_NONE || m->stopping || !m->started)
        return;
    for (uint32_t i = 0; i < MODELS_PLACES; i++) {
        struct entry *e = &m->entries[i];
        if (e->queued && !e->closing && (next == NULL || e->order < next->order))
            next = e;
    }
    if (next == NULL)
        return;
    next->queued = false;
    m->current = models_index(next);
    if (atomic_load(&next->cancelled)) {
        load_failed(m, m->current, &was_cancelled);
        models_pump(m);
        return;
    }
    next->began_us = clock_us();
    if (begin_load(m, m->current) == 0) {
        start_work(m, next, WORK_OPEN);
        return;
    }
    load_failed(m, m->current, &(struct report){INFER_E_OUT_OF_MEMORY, "no memory to load it"});
    models_pump(m);
}

/* A device that is lost ends the daemon, as when a step finds it so. */
static void work_failed(struct models *m, struct entry *e)
{
    load_failed(m, models_index(e), &e->work_report);
    if (e->work_rc == -INFER_E_BACKEND_LOST)
        loop_stop(m->config.loop, DISPATCH_EXIT_LOST);
}

static void place_load(struct models *m, uint32_t index)
{
    struct entry *e = &m->entries[index];
    struct models_place place = models_choose(m, index);
    if (index == MODELS_DRY) /* also when it fits: code 0 */
        load_failed(m, index, &models_fit_of(m, &place)->report);
    else if (place.how == PLACE_FILL)
        start_work(m, e, WORK_FILL);
    else if (place.how == PLACE_EVICT && e->preloads)
        load_failed(m, index, &models_fit_of(m, &place)->report);
    else if (place.how == PLACE_EVICT)
        evict(m, index, place.victim); /* what was asked for comes before what is idle */
    else
        no_room(m, index, models_fit_of(m, &place));
}

static void sized(struct models *m, struct entry *e)
{
    uint32_t index = models_index(e);
    if (atomic_load(&e->cancelled))
        load_failed(m, index, &was_cancelled);
    else if (e->work_rc < 0)
        work_failed(m, e);
    else
        place_load(m, index);
}

static void filled(struct models *m, struct entry *e)
{
    uint32_t index = models_index(e);
    if (e->work_rc == 0) {
        load_ended(m, index);
    } else if (e->work_rc == -INFER_E_MODEL_TOO_LARGE && models_pass_over(m, e, &e->work_report)) {
        loader_free(e->load);
        e->load = NULL;
        start_work(m, e, WORK_OPEN);
    } else {
        work_failed(m, e);
    }
}

void models_close(struct models *m, uint32_t index)
{
    struct entry *e = &m->entries[index];
    e->closing = true;
    atomic_fetch_sub(&m->vocabulary_bytes, e->need.vocabulary);
    start_work(m, e, WORK_CLOSE);
}

static void closed(struct models *m, struct entry *e)
{
    uint32_t index = models_index(e);
    e->closing = e->must_leave = false;
    log_info("%s: unloaded", e->name);
    if (e->configured && e->n_files > 0) /* the configuration's file from now on */
        models_drop_files(e);
    if (e->gone_after) {
        models_forget(m, index);
    } else {
        e->state = STATE_LISTED;
        models_tell(m, index);
    }
    models_finish_watches(m, index, true, &(struct report){0}); /* the hub knows before they do */
    models_changed(m);
    if (m->leaving_for == index) {
        m->leaving_for = MODELS_NONE;
        start_work(m, &m->entries[m->current], WORK_SIZE);
    }
}

static void on_done(void *ctx)
{
    struct models *m = ctx;
    for (;;) {
        pthread_mutex_lock(&m->lock);
        struct entry *e = m->first_done;
        if (e != NULL)
            m->first_done = e->next_work;
        if (m->first_done == NULL)
            m->last_done = &m->first_done;
        pthread_mutex_unlock(&m->lock);
        if (e == NULL || m->stopping)
            break;
        enum models_work did = e->work;
        e->work = WORK_NONE;
        if (did == WORK_CLOSE)
            closed(m, e);
        else if (did == WORK_FILL)
            filled(m, e);
        else
            sized(m, e);
        models_pump(m);
    }
}

/* ---- progress -------------------------------------------------------------------------------- */

static void on_progress(void *ctx)
{
    struct entry *e = ctx;
    struct models *m = e->models;
    uint64_t now = clock_us(), done = atomic_load(&e->done_bytes), total = e->total_bytes;
    if (m->stopping || m->current != models_index(e) || e->work != WORK_FILL)
        return; /* it is over */
    models_show_progress(m, models_index(e));
    if (now - e->logged_us < LOG_US)
        return;
    e->logged_us = now;
    log_info("%s: loading, %.0f of %.0f MiB", e->name, MIB(done), MIB(total));
}
