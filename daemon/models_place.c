/* models_place.c: where a model goes: the device, and what leaves for it (see models.h).
 *
 * Devices come in question in two groups, one after the other: those with a memory of their own,
 * then those that use the host's, which share one. Within a group, in the order in which they
 * opened, a model goes whole
 *
 *   1. where it fits with all the state that was asked for;
 *   2. where it fits with the least, after idle models have left for the rest, if there are any;
 *   3. where it fits once idle models have left.
 *
 * Between the groups, where no device holds it whole, its first layers go to the device that takes
 * the most of them, and the rest to the first that uses the host's memory (engine/split.h). The
 * configuration may forbid that, or say how many layers, which are then all that go to a device.
 *
 * So an idle model leaves a GPU before one that is wanted, or some of its layers, go to the
 * processors; one that is in use or pinned does not.
 *
 * The loading thread asks the backends (models_size), the event thread decides (models_choose),
 * since who is idle is its knowledge. */
#include "models_internal.h"

#include "base/log.h"
#include "topology.h"

#include <errno.h>
#include <stdio.h>

/* What a split leaves free of a device's memory, one part in so many: it would fill it to the last
 * layer, and a driver takes more later on, for kernels when they first run and for captured steps.
 */
#define RESERVE_SHARE 32u

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

/* Where what follows the first layers goes: NONE when there is no such device. */
static uint32_t rest_device(const struct devices *devices)
{
    for (uint32_t i = 0; i < devices->n; i++)
        if (devices->device[i].memory == 0)
            return i;
    return DEVICE_NONE;
}

static void size_on(struct models *m, struct entry *e, uint32_t device,
                    const struct loader_target *target, struct models_fit *fit)
{
    const struct device *d = &m->config.devices->device[device];
    fit->target = *target;
    fit->rc = loader_size(e->load, target, &fit->need, &fit->report);
    if (fit->rc < 0 && d->memory != 0)
        name_device(d, &fit->report);
}

/* Whole, and, if that is too much or not to be, in a split. */
static void size_device(struct models *m, struct entry *e, uint32_t device)
{
    const struct devices *devices = m->config.devices;
    const struct device *d = &devices->device[device];
    const uint32_t rest = rest_device(devices);
    struct models_fit *whole = &m->fits[device], *split = &m->splits[device];
    struct loader_target target = {.backend = &d->backend, .available = available(m, d, e->load)};
    size_on(m, e, device, &target, whole);
    if (d->memory == 0 || rest == DEVICE_NONE || e->wanted_layers >= whole->need.n_layers)
        return; /* all of them, also by name */
    target.n_first = e->wanted_layers;
    if (target.n_first == CONFIG_LAYERS_AUTO &&
        (whole->rc != -INFER_E_MODEL_TOO_LARGE || whole->need.n_layers < 2))
        return;
    target.available -= target.available / RESERVE_SHARE;
    target.rest = &devices->device[rest].backend;
    target.rest_available = host_available(m, e->load);
    size_on(m, e, device, &target, split);
    if (target.n_first != CONFIG_LAYERS_AUTO)
        whole->rc = -ENODEV;
}

/* Whether it computes; the first time that it does not is told of. */
static bool is_sound(struct device *d, struct report *report)
{
    bool known = d->tested;
    if (device_test(d, report) == 0)
        return true;
    if (report->code == INFER_E_BACKEND_LOST)
        atomic_store(&d->is_lost, true);
    else if (!known)
        log_warning("%s is not used: %s", d->name, report->text);
    return false;
}

bool models_devices_are_tested(const struct models *m, const struct entry *e)
{
    for (uint32_t i = 0; i < m->config.devices->n; i++)
        if (comes_in_question(m, e, i) && !m->config.devices->device[i].tested)
            return false;
    return true;
}

void models_test_devices(struct models *m, const struct entry *e)
{
    struct report unsound;
    for (uint32_t i = 0; i < m->config.devices->n; i++)
        if (comes_in_question(m, e, i))
            is_sound(&m->config.devices->device[i], &unsound);
}

int models_size(struct models *m, struct entry *e, struct report *report)
{
    uint32_t n = 0;
    struct report unsound = {0};
    for (uint32_t i = 0; i < m->config.devices->n; i++) {
        m->fits[i] = m->splits[i] = (struct models_fit){.rc = -ENODEV};
        if (!comes_in_question(m, e, i) || !is_sound(&m->config.devices->device[i], &unsound))
            continue;
        n++;
        size_device(m, e, i);
    }
    /* A lost one ends the daemon, and the next start knows. */
    if (unsound.code == INFER_E_BACKEND_LOST || (n == 0 && unsound.code != 0))
        return report_fail(report, unsound.code, "%s: %s", e->name, unsound.text);
    return n > 0 ? 0 : no_device(m, e, report);
}

const struct models_fit *models_fit_of(const struct models *m, const struct models_place *place)
{
    return place->split ? &m->splits[place->device] : &m->fits[place->device];
}

uint64_t models_available(const struct entry *e)
{
    return e->target.available + e->target.rest_available;
}

const char *models_where(const struct models *m, const struct entry *e, char text[MODELS_WHERE_MAX])
{
    const struct device *d = m->config.devices->device;
    if (e->rest == DEVICE_NONE)
        snprintf(text, MODELS_WHERE_MAX, "%s", d[e->device].name);
    else
        snprintf(text, MODELS_WHERE_MAX, "%s (layers 0 to %u of %u) and %s", d[e->device].name,
                 e->need.n_first - 1, e->need.n_layers, d[e->rest].name);
    return text;
}

bool models_pass_over(const struct models *m, struct entry *e, const struct report *why)
{
    const struct device *d = &m->config.devices->device[e->device];
    e->refused |= 1u << e->device;
    for (uint32_t i = 0; i < m->config.devices->n; i++)
        if (comes_in_question(m, e, i)) {
            log_warning("%s: %s has refused it, though %.0f MiB seemed to be there: %s", e->name,
                        d->name, MIB(models_available(e)), why->text);
            return true;
        }
    return false;
}

/* ---- who is there ---------------------------------------------------------------------------- */

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

/* What a loaded model holds of the memory that the device uses. */
static uint64_t bytes_on(const struct models *m, uint32_t index, uint32_t device)
{
    const struct entry *e = &m->entries[index];
    const struct device *d = m->config.devices->device;
    if (d[device].memory != 0)
        return e->device == device ? e->need.on_backend : 0;
    if (d[e->device].memory != 0 && e->rest == DEVICE_NONE)
        return 0;
    return memory_owner_bytes(m->config.memory, index) + e->need.vocabulary;
}

static void held_on(const struct models *m, uint32_t device, uint64_t *ret_idle, uint64_t *ret_busy)
{
    *ret_idle = *ret_busy = 0;
    for (uint32_t i = 0; i < INFER_MODELS_MAX; i++)
        if (is_loaded(&m->entries[i]))
            *(is_idle(m, i) ? ret_idle : ret_busy) += bytes_on(m, i, device);
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
        if (is_idle(m, i) && bytes_on(m, i, device) > 0 &&
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
    const uint64_t have = fit->target.available;
    uint64_t idle, busy, missing = need->least > have ? need->least - have : 1;
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

/* Whether a split that has no room, on the device or else on the host, gets it once idle models
 * have left there. */
static bool can_split_later(const struct models *m, uint32_t device, struct models_place *ret)
{
    const struct models_fit *fit = &m->splits[device];
    const struct loader_need *need = &fit->need;
    const struct loader_target *t = &fit->target;
    const bool on_device = need->least > t->available;
    const uint32_t where = on_device ? device : rest_device(m->config.devices);
    uint64_t idle, busy;
    held_on(m, where, &idle, &busy);
    ret->device = device;
    ret->how = PLACE_EVICT;
    ret->victim = longest_idle(m, where);
    return fit->rc == -INFER_E_MODEL_TOO_LARGE && ret->victim != MODELS_NONE &&
           (on_device ? need->least <= t->available + idle
                      : need->least_rest <= t->rest_available + idle);
}

/* On the device that takes the most layers. What is idle there leaves first, for more of them. */
static bool choose_split(const struct models *m, uint32_t index, struct models_place *ret)
{
    const uint32_t n = m->config.devices->n;
    uint32_t most = 0;
    *ret = (struct models_place){.how = PLACE_FILL, .split = true, .victim = MODELS_NONE};
    for (uint32_t i = 0; i < n; i++)
        if (m->splits[i].rc == 0 && m->splits[i].need.n_first > most) {
            most = m->splits[i].need.n_first;
            ret->device = i;
        }
    if (most == 0) {
        for (uint32_t i = 0; i < n && index != MODELS_DRY; i++)
            if (can_split_later(m, i, ret))
                return true;
        return false;
    }
    if (index != MODELS_DRY && m->splits[ret->device].target.n_first == CONFIG_LAYERS_AUTO)
        ret->victim = longest_idle(m, ret->device);
    if (ret->victim != MODELS_NONE)
        ret->how = PLACE_EVICT;
    return true;
}

/* The one to name when there is none: the last that was asked. */
static struct models_place last_asked(const struct models *m)
{
    const struct devices *d = m->config.devices;
    struct models_place found = {.how = PLACE_NOWHERE, .victim = MODELS_NONE};
    for (int own_memory = 1; own_memory >= 0; own_memory--)
        for (uint32_t i = 0; i < d->n; i++)
            if ((d->device[i].memory != 0) == own_memory &&
                (m->fits[i].rc != -ENODEV || m->splits[i].rc != -ENODEV)) {
                found.device = i;
                found.split = m->fits[i].rc == -ENODEV;
            }
    return found;
}

/* Why it is not on a device that comes before the one that it goes to. */
static void tell_others(const struct models *m, const struct entry *e)
{
    const struct devices *d = m->config.devices;
    const bool split = e->rest != DEVICE_NONE;
    char where[MODELS_WHERE_MAX];
    for (uint32_t i = 0; i < d->n && (split || d->device[e->device].memory == 0); i++) {
        const struct models_fit *fit =
            m->fits[i].rc == -ENODEV && !split ? &m->splits[i] : &m->fits[i];
        if (d->device[i].memory == 0 || fit->rc >= 0 || fit->rc == -ENODEV)
            continue;
        log_info("%s: goes to %s, not to %s%s: %s", e->name, models_where(m, e, where),
                 d->device[i].name, split ? " alone" : "", fit->report.text);
        if (!split && fit != &m->splits[i] && m->splits[i].rc < 0 && m->splits[i].rc != -ENODEV)
            log_info("%s: nor do some of its layers: %s", e->name, m->splits[i].report.text);
    }
}

struct models_place models_choose(struct models *m, uint32_t index)
{
    struct entry *e = &m->entries[index];
    struct models_place place;
    if (!choose_of(m, index, true, &place) && !choose_split(m, index, &place) &&
        !choose_of(m, index, false, &place))
        place = last_asked(m);
    const struct models_fit *fit = models_fit_of(m, &place);
    e->device = place.device;
    e->rest = place.split ? rest_device(m->config.devices) : DEVICE_NONE;
    e->need = fit->need;
    e->target = fit->target;
    e->target.n_first = fit->need.n_first;
    if (place.how == PLACE_FILL && index != MODELS_DRY)
        tell_others(m, e);
    return place;
}
