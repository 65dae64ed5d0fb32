/* dispatch_pressure.c: who gives up his pages, where their contents go, and how they come back.
 *
 * Cached prefixes give way by themselves (kv/). When pages are lacking then, so that what runs can
 * go on or the next in order can start, those who hold some and do not run give them: idle
 * conversations are saved, or forgotten, the one that was used longest ago first; then what
 * continues one and waits has its state saved, the last in order first. Whoever waits so holds
 * nothing that the one before it needs, and nobody waits for ever (sched/pages.c has the argument).
 * Only then is the victim that the scheduler names preempted. Its state is saved when copying it to
 * the store and back is estimated to take less time than computing its rows again, from what both
 * took until now; else its pages are dropped and its rows are owed again. A window that has slid
 * can only be saved: if the store has no room, the request ends with NO_MEMORY.
 *
 * Nothing here waits for a disk. States go to the store's file and come back on the preparing
 * thread; while one is on its way back its job is parked in the scheduler. A state that the disk
 * lost is computed again. */
#include "dispatch_internal.h"

#include "base/clock.h"
#include "base/log.h"

#include <errno.h>

/* Before anything was measured: 4 GB/s, 10,000 rows a second. */
#define COPY_PS_GUESS    250u
#define PREFILL_NS_GUESS 100000u

/* ---- what it costs --------------------------------------------------------------------------- */

static void learn(uint64_t *mean, uint64_t sample)
{
    *mean = *mean == 0 ? sample : (7 * *mean + sample) / 8;
    if (*mean == 0)
        *mean = 1;
}

static void measured_copy(struct dispatch *d, size_t bytes, uint64_t from_ns)
{
    learn(&d->copy_ps, (clock_ns() - from_ns) * 1000 / bytes);
}

void dispatch_measured(struct dispatch *d, uint32_t model, uint64_t n_rows, uint64_t took_us)
{
    if (n_rows > 0)
        learn(&d->prefill_ns[model], took_us * 1000 / n_rows);
}

static bool worth_saving(const struct dispatch *d, const struct job *job, size_t bytes)
{
    const struct engine_sequence *s = job->sequence;
    if (bytes == 0 || !engine_sequence_can_drop(s))
        return bytes > 0;
    uint64_t per_byte = d->copy_ps != 0 ? d->copy_ps : COPY_PS_GUESS;
    uint64_t per_row = d->prefill_ns[job->model_index];
    if (per_row == 0)
        per_row = PREFILL_NS_GUESS;
    return 2 * bytes / 1000 * per_byte < s->n_cached * per_row;
}

/* ---- the store ------------------------------------------------------------------------------- */

static void transfer(struct dispatch *d, struct swap_state *saved)
{
    if (d->started &&
        dispatch_send(&d->prepare, (struct message){.kind = MESSAGE_SWAPPED, .saved = saved}) == 0)
        return;
    swap_transfer(saved);
    dispatch_swapped(d, saved);
}

void dispatch_swapped(struct dispatch *d, struct swap_state *saved)
{
    struct job *job = swap_owner(saved);
    bool going = swap_place(saved) == SWAP_GOING;
    size_t bytes = swap_bytes(saved);
    int error;
    bool lives = swap_end(d->swap, saved, &error);
    if (error == 0)
        *(going ? &d->metrics.written_bytes : &d->metrics.read_back_bytes) += bytes;
    if (!lives)
        return;
    if (error < 0)
        log_warning("the swap file: %s; %s", strerror(-error),
                    swap_place(saved) == SWAP_LOST ? "a sequence is computed again"
                                                   : "nothing more is written to it");
    if (job == NULL || !job->fetching)
        return;
    job->fetching = false;
    if (!job->stalled)
        sched_resume(d->sched, job->slot);
}

void dispatch_forget_saved(struct dispatch *d, struct job *job)
{
    if (job->saved != NULL)
        swap_give(d->swap, job->saved);
    job->saved = NULL;
    job->fetching = false;
}

/* Room in the store, if need be that of idle conversations. */
static struct swap_state *take_room(struct dispatch *d, size_t bytes)
{
    struct swap_state *room = swap_take(d->swap, bytes);
    while (room == NULL && swap_could_take(d->swap, bytes) && dispatch_forget_stored(d))
        room = swap_take(d->swap, bytes);
    return room;
}

struct swap_state *dispatch_save_past(struct dispatch *d, struct engine_past *past)
{
    struct engine_model *m = engine_past_model(past);
    size_t bytes = engine_past_saved_bytes(past);
    struct swap_state *saved = take_room(d, bytes);
    if (saved == NULL)
        return NULL;
    uint64_t from = clock_ns();
    if (engine_past_save(past, swap_memory(saved)) < 0) {
        log_error("%s: a page cannot be read: %s", m->name, m->api->last_error(m->backend));
        swap_give(d->swap, saved);
        return NULL;
    }
    measured_copy(d, bytes, from);
    if (swap_start(d->swap, saved))
        transfer(d, saved);
    return saved;
}

static bool save(struct dispatch *d, struct job *job)
{
    size_t bytes = engine_sequence_saved_bytes(job->sequence);
    if (!worth_saving(d, job, bytes))
        return false;
    job->saved = take_room(d, bytes);
    if (job->saved == NULL)
        return false;
    uint64_t from = clock_ns();
    if (engine_sequence_save(job->sequence, swap_memory(job->saved)) < 0) {
        log_error("%s: a page cannot be read: %s", job->model->name,
                  job->model->api->last_error(job->model->backend));
        dispatch_forget_saved(d, job);
        return false;
    }
    measured_copy(d, bytes, from);
    d->metrics.saved_bytes += bytes;
    swap_set_owner(job->saved, job);
    if (swap_start(d->swap, job->saved))
        transfer(d, job->saved);
    return true;
}

/* ---- preempting ------------------------------------------------------------------------------ */

/* Tells the scheduler: the rows that it owes, and the pages that it needs to run one of them. */
static void wait_again(struct dispatch *d, struct job *job)
{
    const struct engine_sequence *s = job->sequence;
    uint32_t most = engine_sequence_pages(s), rows = engine_sequence_rows(s);
    uint64_t state = s->n_cached - s->n_slid + (job->saved != NULL ? 1 : rows);
    uint32_t pages = kv_pool_pages_for(s->model->pool, state);
    sched_preempted(d->sched, job->slot, rows, pages < most ? pages : most);
}

static void no_room(struct dispatch *d, struct job *job)
{
    dispatch_finish(d, job, INFER_FINISH_ERROR, INFER_E_NO_MEMORY,
                    "its window has slid, others need its pages, and the store of saved "
                    "states is full; serve with a larger --swap-memory or --state-memory");
}

static void preempt(struct dispatch *d, struct job *job)
{
    struct engine_sequence *s = job->sequence;
    if (!job->preempted && s->state.n_pages > 0 && !save(d, job)) {
        if (!engine_sequence_can_drop(s)) {
            no_room(d, job);
            return;
        }
        engine_sequence_drop(s);
    }
    job->preempted = job->started_us != 0 || job->saved != NULL;
    dispatch_lend_pages(d, job, 0);
    wait_again(d, job);
}

/* ---- those who hold pages and do not run ----------------------------------------------------- */

/* The last in order of those that wait and hold pages, but never `next`; NULL: there is none. Those
 * that wait for a limit are behind all others; one that is being prepared is left alone. */
static struct job *last_holder(const struct dispatch *d, uint32_t model, uint32_t next)
{
    struct job *last = NULL;
    uint32_t furthest = 0;
    for (struct client *client = d->clients; client != NULL; client = client->next)
        for (struct job *job = client->jobs; job != NULL; job = job->next) {
            bool queued = job->slot != JOB_NO_SLOT;
            if (job->n_lent == 0 || job->model_index != model || job->sequence == NULL)
                continue;
            if (queued && (job->slot == next || !sched_waits(d->sched, job->slot)))
                continue;
            uint32_t at = queued ? sched_position(d->sched, job->slot) : UINT32_MAX;
            if (last == NULL || at > furthest) {
                last = job;
                furthest = at;
            }
        }
    return last;
}

/* It has rows that cannot be computed again: they are saved, or, if it must go, it is over. */
static bool send_away(struct dispatch *d, struct job *job, bool must)
{
    if (save(d, job)) {
        job->preempted = true;
        dispatch_lend_pages(d, job, 0);
        if (job->slot != JOB_NO_SLOT)
            sched_left_pages(d->sched, job->slot);
        return true;
    }
    if (must)
        no_room(d, job);
    return must;
}

/* One of those gives its pages. False: nobody has any, or it would not be enough. */
static bool give_way(struct dispatch *d, uint32_t model, const struct sched_lack *lack)
{
    uint32_t lent = d->lent_pages[model];
    if (lack->slot != UINT32_MAX) {
        lent -= d->by_slot[lack->slot]->n_lent;
        if (lack->n_pages > d->past_pages[model] + lent)
            return false;
    }
    if (dispatch_give_past_pages(d, model))
        return true;
    struct job *job = lent > 0 ? last_holder(d, model, lack->slot) : NULL;
    return job != NULL && send_away(d, job, lack->stuck);
}

static bool make_room(struct dispatch *d, uint32_t model)
{
    sched_set_available(d->sched, model, kv_pool_available(d->config.models[model].pool));
    struct sched_lack lack = sched_lacks(d->sched, model);
    return lack.n_pages > 0 && give_way(d, model, &lack);
}

void dispatch_relieve(struct dispatch *d, uint64_t now_us)
{
    for (uint32_t model = 0; model < d->config.n_models; model++)
        while (d->slots[model].live) {
            while (make_room(d, model))
                ;
            uint32_t slot = sched_victim(d->sched, model, now_us);
            if (slot == UINT32_MAX)
                break;
            preempt(d, d->by_slot[slot]);
        }
}

bool dispatch_make_room(struct dispatch *d)
{
    bool any = false;
    for (uint32_t model = 0; model < d->config.n_models; model++)
        while (d->slots[model].live && make_room(d, model))
            any = true;
    return any;
}

/* ---- coming back ----------------------------------------------------------------------------- */

/* Its saved state cannot be had: its rows are owed again, and it waits for their pages. */
static void compute_again(struct dispatch *d, struct job *job)
{
    dispatch_forget_saved(d, job);
    if (!engine_sequence_can_drop(job->sequence)) {
        dispatch_finish(d, job, INFER_FINISH_ERROR, INFER_E_INTERNAL,
                        "the state that it was saved with while others needed its pages is lost");
        return;
    }
    engine_sequence_drop(job->sequence);
    wait_again(d, job);
}

static bool restore(struct dispatch *d, struct job *job)
{
    size_t bytes = swap_bytes(job->saved);
    uint64_t from = clock_ns();
    int rc = engine_sequence_restore(job->sequence, swap_memory(job->saved));
    if (rc == -ENOSPC) {
        wait_again(d, job);
    } else if (rc < 0) {
        log_error("%s: a page cannot be written: %s", job->model->name,
                  job->model->api->last_error(job->model->backend));
        compute_again(d, job);
    } else {
        measured_copy(d, bytes, from);
        d->metrics.restored_bytes += bytes;
        dispatch_forget_saved(d, job);
        job->preempted = false;
    }
    return rc == 0;
}

/* Its state is in the file. */
static void fetch(struct dispatch *d, struct job *job)
{
    if (!swap_start(d->swap, job->saved)) {
        compute_again(d, job); /* too many are on their way */
        return;
    }
    job->fetching = true;
    sched_park(d->sched, job->slot);
    transfer(d, job->saved);
}

bool dispatch_come_back(struct dispatch *d, struct job *job)
{
    if (job->saved == NULL) {
        uint32_t found = engine_sequence_begin(job->sequence);
        if (found > 0)
            sched_found(d->sched, job->slot, found);
        job->preempted = false;
        return true;
    }
    switch (swap_place(job->saved)) {
    case SWAP_HERE:
    case SWAP_GOING:
        return restore(d, job);
    case SWAP_AWAY:
        fetch(d, job);
        return false;
    case SWAP_LOST:
        compute_again(d, job);
        return false;
    default:
        if (!job->fetching) { /* it was on its way when its conversation was continued */
            job->fetching = true;
            sched_park(d->sched, job->slot);
        }
        return false;
    }
}
