/* models_place.c: where a model goes: the device, and what leaves for it (see models.h).
 *
 * Devices come in question in two groups, one after the other: those with a memory of their own,
 * then those that use the host's, which share one. Within a group, in the order in which they
 * opened, a model goes
 *
 *   1. where it fits with all the state that was asked for;
 *   2. where it fits with the least, after idle models have left for the rest, if there are any;
 *   3. where it fits once idle models have left.
 *
 * So an idle model leaves a GPU before one that is wanted goes to the processors; one that is in
 * use or pinned does not.
 *
 * The loading thread asks the backends (models_size), the event thread decides (models_choose),
 * since who is idle is its knowledge. */
#include "models_internal.h"

#include "base/log.h"
#include "topology.h"

#include <errno.h>

#define MIB(bytes) ((double)(bytes) / 1048576.0)

/* ---- what there is --------------------------------------------------------------------------- */

/* Of the host. load: one that is on its way and counted by nobody yet. */
static uint64_t host_available(const struct models *m, const struct load *load)
{
    struct topology limits = {0};
    topology_limits("", &limits);
    uint64_t have = memory_left(m->config.memory, limits.memory_available);
    uint64_t limit = atomic_load(&m->limit_bytes);
    uint64_t taken = memory_total_bytes(m->config.memory) + atomic_load(&m->vocabulary_bytes) +
                     loader_vocabulary_bytes(load);
    if (limit == 0)
        return have;
    limit = limit > taken ? limit - taken : 0;
    return limit < have ? limit : have;
}

static uint64_t available(const struct models *m, const struct device *d, const struct load *load)
{
    return d->memory != 0 ? device_available(d, atomic_load(&m->device_limit_bytes))
                          : host_available(m, load);
}

/* May it go there? */
static bool comes_in_question(const struct models *m, const struct entry *e, uint32_t device)
{
    return device_is(&m->config.devices->device[device], e->wanted) &&
           (e->refused & 1u << device) == 0;
}

static int no_device(const struct models *m, const struct entry *e, struct report *report)
{
    char open[160];
    devices_list(m->config.devices, open, sizeof open);
    return report_fail(report, INFER_E_BACKEND_LOAD,
                       "%s is for the device '%s', which is not open (%s); give it another device, "
                       "or have its backend opened: backend = auto, or a list that names it",
                       e->name, e->wanted, open);
}

static void name_device(const struct device *d, struct report *report)
{
    struct report copy = *report;
    report_fail(report, copy.code, "%.400s (on %s)", copy.text, d->name);
}

int models_size(struct models *m, struct entry *e, struct report *report)
{
    const struct devices *devices = m->config.devices;
    uint32_t n = 0;
    for (uint32_t i = 0; i < devices->n; i++) {
        const struct device *d = &devices->device[i];
        struct models_fit *fit = &m->fits[i];
        *fit = (struct models_fit){.rc = -ENODEV};
        if (!comes_in_question(m, e, i))
            continue;
        n++;
        fit->available = available(m, d, e->load);
        fit->rc = loader_size(e->load, &d->backend, fit->available, &fit->need, &fit->report);
        if (fit->rc < 0 && d->memory != 0)
            name_device(d, &fit->report);
    }
    return n > 0 ? 0 : no_device(m, e, report);
}

bool models_pass_over(const struct models *m, struct entry *e, const struct report *why)
{
    const struct device *d = &m->config.devices->device[e->device];
    e->refused |= 1u << e->device;
    for (uint32_t i = 0; i < m->config.devices->n; i++)
        if (comes_in_question(m, e, i)) {
            log_warning("%s: %s has refused it, though %.0f MiB seemed to be there: %s", e->name,
                        d->name, MIB(e->available), why->text);
            return true;
        }
    return false;
}

/* ---- who is there ---------------------------------------------------------------------------- */

static bool share_memory(const struct models *m, uint32_t a, uint32_t b)
{
    const struct device *d = m->config.devices->device;
    return a == b || (d[a].memory == 0 && d[b].memory == 0);
}

static bool is_loaded(const struct entry *e)
{
    return e->state == STATE_READY || e->state == STATE_LEAVING;
}

static bool is_idle(const struct models *m, uint32_t index)
{
    const struct entry *e = &m->entries[index];
    return m->dispatch != NULL && e->state == STATE_READY && !e->options.pin && !e->stayed &&
           dispatch_model_idle_since(m->dispatch, index) != 0;
}

/* Of the memory that its device uses. */
static uint64_t bytes_of(const struct models *m, uint32_t index)
{
    const struct entry *e = &m->entries[index];
    if (m->config.devices->device[e->device].memory != 0)
        return e->need.on_backend;
    return memory_owner_bytes(m->config.memory, index) + e->need.vocabulary;
}

static void held_on(const struct models *m, uint32_t device, uint64_t *ret_idle, uint64_t *ret_busy)
{
    *ret_idle = *ret_busy = 0;
    for (uint32_t i = 0; i < INFER_MODELS_MAX; i++)
        if (is_loaded(&m->entries[i]) && share_memory(m, m->entries[i].device, device))
            *(is_idle(m, i) ? ret_idle : ret_busy) += bytes_of(m, i);
}

void models_held(const struct models *m, uint32_t index, uint64_t *ret_idle, uint64_t *ret_busy)
{
    held_on(m, m->entries[index].device, ret_idle, ret_busy);
}

/* The one that was used longest ago; NONE: there is none. */
static uint32_t longest_idle(const struct models *m, uint32_t device)
{
    uint32_t found = MODELS_NONE;
    uint64_t since = UINT64_MAX;
    for (uint32_t i = 0; i < INFER_MODELS_MAX; i++)
        if (is_idle(m, i) && share_memory(m, m->entries[i].device, device) &&
            dispatch_model_idle_since(m->dispatch, i) < since) {
            found = i;
            since = dispatch_model_idle_since(m->dispatch, i);
        }
    return found;
}

/* ---- the choice ------------------------------------------------------------------------------ */

/* Whether, and how, it can go to the device in the way of this rule (1 to 3, above). */
static bool can_go(const struct models *m, uint32_t device, int rule, struct models_place *ret)
{
    const struct models_fit *fit = &m->fits[device];
    const struct loader_need *need = &fit->need;
    uint64_t idle, busy, missing = need->least > fit->available ? need->least - fit->available : 1;
    *ret = (struct models_place){.how = PLACE_FILL, .device = device, .victim = MODELS_NONE};
    if (rule == 1)
        return fit->rc == 0 && need->missing == 0;
    if (rule == 2 && fit->rc < 0)
        return false;
    if (rule == 3 && fit->rc != -INFER_E_MODEL_TOO_LARGE)
        return false;
    ret->victim = longest_idle(m, device);
    if (ret->victim != MODELS_NONE)
        ret->how = PLACE_EVICT;
    held_on(m, device, &idle, &busy);
    return rule == 2 || (ret->victim != MODELS_NONE && missing <= idle);
}

/* Of one of the two groups. An estimate is of what is there now: nobody leaves for it. */
static bool choose_of(const struct models *m, uint32_t index, bool own_memory,
                      struct models_place *ret)
{
    const struct devices *d = m->config.devices;
    for (int rule = 1; rule <= (index == MODELS_DRY ? 2 : 3); rule++)
        for (uint32_t i = 0; i < d->n; i++)
            if ((d->device[i].memory != 0) == own_memory && can_go(m, i, rule, ret))
                return true;
    return false;
}

/* The one to name when there is none: the last that was asked. */
static uint32_t last_asked(const struct models *m)
{
    const struct devices *d = m->config.devices;
    uint32_t found = 0;
    for (int own_memory = 1; own_memory >= 0; own_memory--)
        for (uint32_t i = 0; i < d->n; i++)
            if ((d->device[i].memory != 0) == own_memory && m->fits[i].rc != -ENODEV)
                found = i;
    return found;
}

/* Why it is not on a device that comes before the one that it goes to. */
static void tell_others(const struct models *m, const struct entry *e)
{
    const struct devices *d = m->config.devices;
    for (uint32_t i = 0; i < d->n && d->device[e->device].memory == 0; i++)
        if (d->device[i].memory != 0 && m->fits[i].rc < 0 && m->fits[i].rc != -ENODEV)
            log_info("%s: goes to %s, not to %s: %s", e->name, d->device[e->device].name,
                     d->device[i].name, m->fits[i].report.text);
}

struct models_place models_choose(struct models *m, uint32_t index)
{
    struct entry *e = &m->entries[index];
    struct models_place place;
    if (!choose_of(m, index, true, &place) && !choose_of(m, index, false, &place))
        place = (struct models_place){PLACE_NOWHERE, last_asked(m), MODELS_NONE};
    e->device = place.device;
    e->need = m->fits[place.device].need;
    e->available = m->fits[place.device].available;
    if (place.how == PLACE_FILL && index != MODELS_DRY)
        tell_others(m, e);
    return place;
}
