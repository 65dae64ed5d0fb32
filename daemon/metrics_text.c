/* metrics_text.c: a snapshot as OpenMetrics text 1.0.0 (see metrics.h).
 *
 * A family is its TYPE, UNIT and HELP lines and then all its samples; families do not interleave,
 * and neither do the samples of one label set. Names end in their unit, counters in _total. Label
 * values are made valid UTF-8 without control characters: a backend and a model file had a say in
 * them. Numbers are written digit by digit, so that no locale can change them.
 *
 * Memory: one text that grows; without memory the rest is skipped and the result is NULL. */
#include "metrics.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

struct text {
    char *bytes; /* NUL-terminated */
    size_t n, room;
    bool failed;
};

struct label {
    const char *name, *value;
};

#define SECONDS_SIZE 32u
#define NUMBER_SIZE  24u

/* A list of labels as two arguments. */
#define LABELED(...)                                                                               \
    (const struct label[]){__VA_ARGS__},                                                           \
        sizeof((struct label[]){__VA_ARGS__}) / sizeof(struct label)
#define UNLABELED NULL, 0

/* ---- text ------------------------------------------------------------------------------------ */

static bool reserve(struct text *t, size_t more)
{
    if (t->failed || t->room - t->n > more)
        return !t->failed;
    size_t room = t->room != 0 ? t->room : 16384;
    while (room - t->n <= more)
        room *= 2;
    char *bytes = realloc(t->bytes, room);
    if (bytes == NULL) {
        t->failed = true;
        return false;
    }
    t->bytes = bytes;
    t->room = room;
    return true;
}

static void put_bytes(struct text *t, const char *bytes, size_t n)
{
    if (!reserve(t, n))
        return;
    memcpy(t->bytes + t->n, bytes, n);
    t->n += n;
    t->bytes[t->n] = '\0';
}

static void put(struct text *t, const char *text)
{
    put_bytes(t, text, strlen(text));
}

/* Bytes of the UTF-8 sequence at s; 0: it is none, or names no character. */
static size_t utf8_bytes(const unsigned char *s)
{
    size_t n = s[0] < 0x80                   ? 1
               : s[0] >= 0xc2 && s[0] < 0xe0 ? 2
               : s[0] >= 0xe0 && s[0] < 0xf0 ? 3
               : s[0] >= 0xf0 && s[0] < 0xf5 ? 4
                                             : 0;
    for (size_t i = 1; i < n; i++)
        if ((s[i] & 0xc0) != 0x80)
            return 0;
    if ((s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xed && s[1] >= 0xa0) ||
        (s[0] == 0xf0 && s[1] < 0x90) || (s[0] == 0xf4 && s[1] >= 0x90))
        return 0;
    return n;
}

static void put_value(struct text *t, const char *value)
{
    const unsigned char *s = (const unsigned char *)value;
    while (*s != '\0') {
        size_t n = utf8_bytes(s);
        if (*s == '\\' || *s == '"')
            put_bytes(t, "\\", 1);
        if (n == 0 || *s < 0x20 || *s == 0x7f)
            put(t, "\xef\xbf\xbd"); /* U+FFFD */
        else
            put_bytes(t, (const char *)s, n);
        s += n != 0 ? n : 1;
    }
}

/* Microseconds as seconds: "0.0", "1.5", "120.0", "0.00025". */
static const char *seconds(uint64_t us, char to[SECONDS_SIZE])
{
    int n =
        snprintf(to, SECONDS_SIZE, "%" PRIu64 ".%06u", us / 1000000u, (unsigned)(us % 1000000u));
    while (to[n - 1] == '0' && to[n - 2] != '.')
        to[--n] = '\0';
    return to;
}

static const char *decimal(uint64_t value, char to[NUMBER_SIZE])
{
    snprintf(to, NUMBER_SIZE, "%" PRIu64, value);
    return to;
}

/* ---- families and samples -------------------------------------------------------------------- */

/* unit: "" for none. */
static void family(struct text *t, const char *name, const char *type, const char *unit,
                   const char *help)
{
    const char *const parts[] = {"# TYPE ", name, " ", type, "\n"};
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++)
        put(t, parts[i]);
    if (unit[0] != '\0') {
        put(t, "# UNIT ");
        put(t, name);
        put(t, " ");
        put(t, unit);
        put(t, "\n");
    }
    put(t, "# HELP ");
    put(t, name);
    put(t, " ");
    put(t, help);
    put(t, "\n");
}

static void sample(struct text *t, const char *name, const char *suffix, const struct label *labels,
                   size_t n, const char *value)
{
    put(t, name);
    put(t, suffix);
    for (size_t i = 0; i < n; i++) {
        put(t, i == 0 ? "{" : ",");
        put(t, labels[i].name);
        put(t, "=\"");
        put_value(t, labels[i].value);
        put(t, "\"");
    }
    put(t, n > 0 ? "} " : " ");
    put(t, value);
    put(t, "\n");
}

static void number(struct text *t, const char *name, const char *suffix, const struct label *labels,
                   size_t n, uint64_t value)
{
    char digits[NUMBER_SIZE];
    sample(t, name, suffix, labels, n, decimal(value, digits));
}

static void counter(struct text *t, const char *name, const char *unit, const char *help,
                    uint64_t value)
{
    family(t, name, "counter", unit, help);
    number(t, name, "_total", UNLABELED, value);
}

static void gauge(struct text *t, const char *name, const char *unit, const char *help,
                  uint64_t value)
{
    family(t, name, "gauge", unit, help);
    number(t, name, "", UNLABELED, value);
}

static void histogram(struct text *t, const char *name, struct label label,
                      const struct metrics_histogram *h)
{
    char bound[SECONDS_SIZE], sum[SECONDS_SIZE];
    uint64_t n = 0;
    for (unsigned i = 0; i <= METRICS_BUCKETS; i++) {
        n += h->counts[i];
        const char *le = i < METRICS_BUCKETS ? seconds(metrics_bounds_us[i], bound) : "+Inf";
        number(t, name, "_bucket", LABELED(label, {"le", le}), n);
    }
    number(t, name, "_count", LABELED(label), n);
    sample(t, name, "_sum", LABELED(label), seconds(h->sum_us, sum));
}

/* ---- the daemon ------------------------------------------------------------------------------ */

static void put_process(struct text *t, const struct metrics_snapshot *s)
{
    char value[SECONDS_SIZE];
    struct rusage used = {0};
    uint64_t start_us = (uint64_t)(s->counters.start_s * 1e6);

    family(t, "inferd_build", "info", "", "The daemon's version and event loop.");
    sample(t, "inferd_build", "_info",
           LABELED({"version", s->status.version}, {"event_loop", s->status.event_loop}), "1");
    family(t, "process_start_time_seconds", "gauge", "seconds", "When the daemon started.");
    sample(t, "process_start_time_seconds", "", UNLABELED, seconds(start_us, value));
    getrusage(RUSAGE_SELF, &used);
    uint64_t cpu_us = (uint64_t)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) * 1000000u +
                      (uint64_t)(used.ru_utime.tv_usec + used.ru_stime.tv_usec);
    family(t, "process_cpu_seconds", "counter", "seconds", "CPU time of all its threads.");
    sample(t, "process_cpu_seconds", "_total", UNLABELED, seconds(cpu_us, value));
    gauge(t, "process_resident_memory_bytes", "bytes", "Resident memory.",
          metrics_resident_bytes());
    if (s->counters.n_starts > 0)
        counter(t, "inferd_starts", "", "Starts that the state directory remembers.",
                s->counters.n_starts);
    gauge(t, "inferd_connections", "", "Connections now.", s->status.n_sessions);
    counter(t, "inferd_connections_opened", "", "Connections since the start.",
            s->counters.connections);
}

static void put_memory(struct text *t, const struct metrics_snapshot *s)
{
    static const char name[] = "inferd_memory_bytes";
    const struct infer_status *now = &s->status;
    const struct metrics *m = &s->counters;
    family(t, name, "gauge", "bytes", "Host memory beside the models, by purpose.");
    number(t, name, "", LABELED({"purpose", "requests"}), now->request_bytes);
    number(t, name, "", LABELED({"purpose", "conversations"}), now->conversation_bytes);
    number(t, name, "", LABELED({"purpose", "swap"}), now->swap_memory_bytes);
    number(t, name, "", LABELED({"purpose", "sessions"}), now->session_bytes);
    gauge(t, "inferd_swap_file_bytes", "bytes", "Saved states of sequences that are in the file.",
          now->swap_file_bytes);
    counter(t, "inferd_swap_saved_bytes", "bytes", "State that preempted sequences saved.",
            m->saved_bytes);
    counter(t, "inferd_swap_restored_bytes", "bytes", "State that came back from there.",
            m->restored_bytes);
    counter(t, "inferd_swap_written_bytes", "bytes", "Saved state written to the file.",
            m->written_bytes);
    counter(t, "inferd_swap_read_bytes", "bytes", "Saved state read from the file.",
            m->read_back_bytes);
    gauge(t, "inferd_conversations", "", "Conversations that are kept now.", now->n_conversations);
    counter(t, "inferd_conversations_begun", "", "Conversations that requests began.",
            m->conversations_begun);
    counter(t, "inferd_conversations_continued", "", "Requests that continued one.",
            m->conversations_continued);
}

static void put_loads(struct text *t, struct metrics_loads *l)
{
    char value[SECONDS_SIZE];
    family(t, "inferd_loads", "counter", "", "Models loaded, by outcome.");
    number(t, "inferd_loads", "_total", LABELED({"result", "done"}), atomic_load(&l->n_done));
    number(t, "inferd_loads", "_total", LABELED({"result", "failed"}), atomic_load(&l->n_failed));
    family(t, "inferd_load_read_bytes", "counter", "bytes",
           "Bytes of model files read, past the page cache (direct) or through it.");
    number(t, "inferd_load_read_bytes", "_total", LABELED({"way", "direct"}),
           atomic_load(&l->direct_bytes));
    number(t, "inferd_load_read_bytes", "_total", LABELED({"way", "buffered"}),
           atomic_load(&l->buffered_bytes));
    counter(t, "inferd_load_reads", "", "Reads of model files.", atomic_load(&l->n_reads));
    counter(t, "inferd_load_retries", "", "Of these, reads that were made again.",
            atomic_load(&l->n_retries));
    family(t, "inferd_load_seconds", "counter", "seconds", "Time that weights streamed.");
    sample(t, "inferd_load_seconds", "_total", UNLABELED, seconds(atomic_load(&l->took_us), value));
}

/* ---- requests -------------------------------------------------------------------------------- */

/* By enum infer_priority. */
static const char *const class_names[METRICS_CLASSES] = {"normal", "interactive", "batch"};

static void put_queue(struct text *t, const struct metrics_snapshot *s)
{
    const struct infer_status *now = &s->status;
    gauge(t, "inferd_running", "", "Sequences that run.", now->n_running);
    family(t, "inferd_waiting", "gauge", "", "Sequences that have not started, by class.");
    for (unsigned i = 0; i < METRICS_CLASSES; i++)
        number(t, "inferd_waiting", "", LABELED({"class", class_names[i]}), s->n_waiting[i]);
    gauge(t, "inferd_queue_length", "", "Sequences that wait, those preempted among them.",
          now->n_waiting);
    gauge(t, "inferd_preempted", "", "Sequences that gave their pages to others and wait to go on.",
          now->n_preempted);
    gauge(t, "inferd_parked", "", "Sequences whose client does not read.", now->n_parked);
    counter(t, "inferd_preemptions", "", "Times that a sequence gave its pages to others.",
            now->n_preemptions);
    family(t, "inferd_queue_wait_seconds", "histogram", "seconds",
           "From admission of a request to its first step, by class.");
    for (unsigned i = 0; i < METRICS_CLASSES; i++)
        histogram(t, "inferd_queue_wait_seconds", (struct label){"class", class_names[i]},
                  &s->counters.queue_wait[i]);
}

static void put_finished(struct text *t, const struct metrics *m)
{
    static const char *const finishes[METRICS_FINISHES] = {"none",   "stop",  "string",   "length",
                                                           "cancel", "error", "abandoned"};
    family(t, "inferd_requests", "counter", "", "Requests that ended, by operation and outcome.");
    for (unsigned op = 0; op < METRICS_OPS; op++)
        for (unsigned i = 0; i < METRICS_FINISHES; i++)
            if (m->finished[op][i] > 0 || (op == METRICS_OP_GENERATE && i > 0))
                number(t, "inferd_requests", "_total",
                       LABELED({"op", metrics_op_names[op]}, {"finish", finishes[i]}),
                       m->finished[op][i]);
}

#define ERROR_NAME(name, code, exit_status, text) #name,
static const char *const error_names[METRICS_ERRORS] = {INFER_ERROR_TABLE (ERROR_NAME)};
#undef ERROR_NAME

static const char *const limit_names[METRICS_LIMITS] = {
    "waiting", "tokens_per_minute", "users", "sequences", "pages", "connection", "memory"};

static void put_refusals(struct text *t, const struct metrics *m)
{
    family(t, "inferd_errors", "counter", "", "Requests that ended with an error, by its name.");
    for (unsigned i = 0; i < METRICS_ERRORS; i++)
        if (m->errors[i] > 0)
            number(t, "inferd_errors", "_total", LABELED({"error", error_names[i]}), m->errors[i]);
    family(t, "inferd_refusals", "counter", "", "Requests that a limit refused, by limit.");
    for (unsigned i = 0; i < METRICS_LIMITS; i++)
        number(t, "inferd_refusals", "_total", LABELED({"limit", limit_names[i]}), m->refused[i]);
}

static void put_steps(struct text *t, const struct metrics *m)
{
    static const char *const kinds[METRICS_STEPS] = {"prefill", "decode", "mixed"};
    family(t, "inferd_step_seconds", "histogram", "seconds", "Time of a step, by what it ran.");
    for (unsigned i = 0; i < METRICS_STEPS; i++)
        histogram(t, "inferd_step_seconds", (struct label){"kind", kinds[i]}, &m->steps[i]);
    counter(t, "inferd_steps_ahead", "", "Steps that were given to the device one step ahead.",
            m->steps_ahead);
    family(t, "inferd_rows", "counter", "", "Rows (tokens) that steps ran, by kind.");
    number(t, "inferd_rows", "_total", LABELED({"kind", "prompt"}), m->prompt_rows);
    number(t, "inferd_rows", "_total", LABELED({"kind", "decode"}), m->decode_rows);
}

/* ---- models ---------------------------------------------------------------------------------- */

static const struct metrics_model no_model;

/* What was counted of model i under the name that it has now. */
static const struct metrics_model *counted(const struct metrics_snapshot *s, uint32_t i)
{
    uint32_t index = s->models[i].info.index;
    const struct metrics_model *m = &s->counters.models[index];
    return strcmp(m->name, s->models[i].info.name) == 0 ? m : &no_model;
}

/* Its file was read: it has an architecture, memory and pages. */
static bool is_loaded(const struct infer_model *m)
{
    return m->state == INFER_MODEL_READY || m->state == INFER_MODEL_LEAVING;
}

static void put_model_states(struct text *t, const struct metrics_snapshot *s)
{
    static const struct {
        uint32_t state;
        const char *name;
    } states[] = {{INFER_MODEL_LISTED, "listed"},
                  {INFER_MODEL_LOADING, "loading"},
                  {INFER_MODEL_READY, "ready"},
                  {INFER_MODEL_LEAVING, "leaving"},
                  {INFER_MODEL_FAILED, "failed"}};
    family(t, "inferd_model_state", "gauge", "", "1 for what a model is now, 0 for the rest.");
    for (uint32_t i = 0; i < s->n_models; i++)
        for (size_t k = 0; k < sizeof states / sizeof states[0]; k++)
            number(t, "inferd_model_state", "",
                   LABELED({"model", s->models[i].info.name}, {"state", states[k].name}),
                   s->models[i].info.state == states[k].state);
    family(t, "inferd_model_requests", "gauge", "",
           "Unfinished requests, those that wait for the model to be loaded among them.");
    for (uint32_t i = 0; i < s->n_models; i++)
        number(t, "inferd_model_requests", "", LABELED({"model", s->models[i].info.name}),
               s->models[i].info.n_requests);
}

static void put_model_memory(struct text *t, const struct metrics_snapshot *s)
{
    static const char name[] = "inferd_model_memory_bytes";
    family(t, "inferd_model", "info", "", "The models that are loaded.");
    for (uint32_t i = 0; i < s->n_models; i++) {
        const struct infer_model *m = &s->models[i].info;
        if (!is_loaded(m))
            continue;
        sample(t, "inferd_model", "_info",
               LABELED({"model", m->name}, {"architecture", m->architecture},
                       {"description", m->description}, {"backend", m->backend},
                       {"device", m->device}, {"rest_device", m->rest_device}),
               "1");
    }
    family(t, name, "gauge", "bytes", "Memory of a model, by purpose, on all its devices.");
    for (uint32_t i = 0; i < s->n_models; i++) {
        const struct infer_model *m = &s->models[i].info;
        if (!is_loaded(m))
            continue;
        number(t, name, "", LABELED({"model", m->name}, {"purpose", "weights"}), m->weights_bytes);
        number(t, name, "", LABELED({"model", m->name}, {"purpose", "state"}), m->state_bytes);
        number(t, name, "", LABELED({"model", m->name}, {"purpose", "scratch"}), m->scratch_bytes);
        number(t, name, "", LABELED({"model", m->name}, {"purpose", "vocabulary"}),
               m->vocabulary_bytes);
    }
}

static void put_model_times(struct text *t, const struct metrics_snapshot *s)
{
    family(t, "inferd_first_token_seconds", "histogram", "seconds",
           "From admission of a request to its first token.");
    for (uint32_t i = 0; i < s->n_models; i++)
        histogram(t, "inferd_first_token_seconds", (struct label){"model", s->models[i].info.name},
                  &counted(s, i)->first_token);
    family(t, "inferd_between_tokens_seconds", "histogram", "seconds",
           "From one token of an answer to the next.");
    for (uint32_t i = 0; i < s->n_models; i++)
        histogram(t, "inferd_between_tokens_seconds",
                  (struct label){"model", s->models[i].info.name}, &counted(s, i)->between_tokens);
}

static void put_model_tokens(struct text *t, const struct metrics_snapshot *s)
{
    static const struct {
        const char *name, *help;
        size_t offset;
    } counters[] = {
        {"inferd_prompt_tokens", "Tokens of prompts that started.",
         offsetof(struct metrics_model, prompt_tokens)},
        {"inferd_prompt_cached_tokens", "Of these, tokens whose state was there.",
         offsetof(struct metrics_model, cached_tokens)},
        {"inferd_tokens", "Tokens of answers.", offsetof(struct metrics_model, tokens)}};
    for (size_t c = 0; c < sizeof counters / sizeof counters[0]; c++) {
        family(t, counters[c].name, "counter", "", counters[c].help);
        for (uint32_t i = 0; i < s->n_models; i++) {
            uint64_t value;
            memcpy(&value, (const char *)counted(s, i) + counters[c].offset, sizeof value);
            number(t, counters[c].name, "_total", LABELED({"model", s->models[i].info.name}),
                   value);
        }
    }
}

static void put_pages(struct text *t, const struct metrics_snapshot *s)
{
    static const struct {
        const char *name, *help;
        size_t offset;
    } counters[] = {
        {"inferd_prefix_lookups", "Prompts that were looked for in the cache.",
         offsetof(struct kv_counts, lookups)},
        {"inferd_prefix_hit_tokens", "Tokens whose state was found there.",
         offsetof(struct kv_counts, hits_tokens)},
        {"inferd_pages_merged", "Pages computed twice, of which one was given back.",
         offsetof(struct kv_counts, merged)},
        {"inferd_pages_copied", "Pages copied before they were written.",
         offsetof(struct kv_counts, copied)},
        {"inferd_pages_evicted", "Cached pages that were given up for others.",
         offsetof(struct kv_counts, evictions)},
        {"inferd_pages_zeroed", "Pages zeroed because they changed hands.",
         offsetof(struct kv_counts, zeroed)},
    };
    family(t, "inferd_pages", "gauge", "", "Pages of sequence state: free, cached or held.");
    for (uint32_t i = 0; i < s->n_models; i++) {
        const struct kv_counts *p = &s->models[i].pages;
        const char *model = s->models[i].info.name;
        if (!is_loaded(&s->models[i].info))
            continue;
        number(t, "inferd_pages", "", LABELED({"model", model}, {"state", "free"}), p->n_free);
        number(t, "inferd_pages", "", LABELED({"model", model}, {"state", "cached"}), p->n_cached);
        number(t, "inferd_pages", "", LABELED({"model", model}, {"state", "held"}), p->n_held);
    }
    family(t, "inferd_pages_shared", "gauge", "", "Of those held, pages with several holders.");
    for (uint32_t i = 0; i < s->n_models; i++)
        if (is_loaded(&s->models[i].info))
            number(t, "inferd_pages_shared", "", LABELED({"model", s->models[i].info.name}),
                   s->models[i].pages.n_shared);
    for (size_t c = 0; c < sizeof counters / sizeof counters[0]; c++) {
        family(t, counters[c].name, "counter", "", counters[c].help);
        for (uint32_t i = 0; i < s->n_models; i++) {
            uint64_t value;
            if (!is_loaded(&s->models[i].info))
                continue;
            memcpy(&value, (const char *)&s->models[i].pages + counters[c].offset, sizeof value);
            number(t, counters[c].name, "_total", LABELED({"model", s->models[i].info.name}),
                   value);
        }
    }
}

/* ---- devices --------------------------------------------------------------------------------- */

static void put_devices(struct text *t, const struct metrics_snapshot *s)
{
    static const char name[] = "inferd_device_memory_bytes";
    family(t, "inferd_device", "info", "", "What models run on.");
    for (uint32_t i = 0; i < s->n_devices; i++)
        sample(t, "inferd_device", "_info",
               LABELED({"device", s->devices[i].name}, {"description", s->devices[i].description}),
               "1");
    family(t, name, "gauge", "bytes",
           "Memory of a device that has its own: in all, taken by models, and free.");
    for (uint32_t i = 0; i < s->n_devices; i++) {
        const struct metrics_device *d = &s->devices[i];
        if (d->memory_bytes == 0)
            continue;
        number(t, name, "", LABELED({"device", d->name}, {"kind", "all"}), d->memory_bytes);
        number(t, name, "", LABELED({"device", d->name}, {"kind", "models"}), d->models_bytes);
        number(t, name, "", LABELED({"device", d->name}, {"kind", "free"}), d->free_bytes);
    }
}

/* ---- users ----------------------------------------------------------------------------------- */

/* Entry i of n_users, and after them all others if there was one. */
static const struct metrics_user *user_at(const struct metrics *m, uint32_t i,
                                          char name[NUMBER_SIZE])
{
    const struct metrics_user *others = &m->users[METRICS_USERS_MAX];
    if (i < m->n_users) {
        decimal(m->users[i].uid, name);
        return &m->users[i];
    }
    bool any = others->requests > 0;
    for (unsigned limit = 0; limit < METRICS_LIMITS; limit++)
        any |= others->refused[limit] > 0;
    if (i > m->n_users || !any)
        return NULL;
    snprintf(name, NUMBER_SIZE, "other");
    return others;
}

static void put_users(struct text *t, const struct metrics *m)
{
    static const struct {
        const char *name, *help;
        size_t offset;
    } counters[] = {{"inferd_user_requests", "Requests for tokens, by user.",
                     offsetof(struct metrics_user, requests)},
                    {"inferd_user_prompt_tokens", "Tokens of prompts that started, by user.",
                     offsetof(struct metrics_user, prompt_tokens)},
                    {"inferd_user_tokens", "Tokens of answers, by user.",
                     offsetof(struct metrics_user, tokens)}};
    const struct metrics_user *user;
    char uid[NUMBER_SIZE];
    if (user_at(m, 0, uid) == NULL)
        return;
    for (size_t c = 0; c < sizeof counters / sizeof counters[0]; c++) {
        family(t, counters[c].name, "counter", "", counters[c].help);
        for (uint32_t i = 0; (user = user_at(m, i, uid)) != NULL; i++) {
            uint64_t value;
            memcpy(&value, (const char *)user + counters[c].offset, sizeof value);
            number(t, counters[c].name, "_total", LABELED({"uid", uid}), value);
        }
    }
    family(t, "inferd_user_refusals", "counter", "", "Requests that a limit refused, by user.");
    for (uint32_t i = 0; (user = user_at(m, i, uid)) != NULL; i++)
        for (unsigned limit = 0; limit < METRICS_LIMITS; limit++)
            if (user->refused[limit] > 0)
                number(t, "inferd_user_refusals", "_total",
                       LABELED({"uid", uid}, {"limit", limit_names[limit]}), user->refused[limit]);
}

/* ---- the whole ------------------------------------------------------------------------------- */

char *metrics_render(const struct metrics_snapshot *s, size_t *ret_bytes)
{
    struct text t = {0};
    put_process(&t, s);
    put_queue(&t, s);
    put_finished(&t, &s->counters);
    put_refusals(&t, &s->counters);
    put_model_times(&t, s);
    put_steps(&t, &s->counters);
    put_model_tokens(&t, s);
    put_model_states(&t, s);
    put_model_memory(&t, s);
    put_pages(&t, s);
    put_devices(&t, s);
    put_memory(&t, s);
    put_loads(&t, (struct metrics_loads *)&s->loads);
    put_users(&t, &s->counters);
    put(&t, "# EOF\n");
    if (t.failed) {
        free(t.bytes);
        return NULL;
    }
    *ret_bytes = t.n;
    return t.bytes;
}
