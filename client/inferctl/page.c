/* page.c: see page.h.
 *
 * Owns: a small table of user names, so that a screen drawn each second does not ask the name
 * service for each of its lines. Names of clients, models and users are cut to plain ASCII: they
 * come from others, and columns are counted in bytes. The readings are untouched by that; JSON has
 * the names as they are. */
#include "page.h"

#include <math.h>
#include <pwd.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <time.h>

#define USER_SLOTS 64u
#define USER_BYTES 33
#define IDLE_US    2000000u /* a page so old: nothing has run since */
#define BAR_CELLS  20
/* Rates. */
#define RATE_US     400000u
#define RATE_OLD_US 3000000u

/* ---- names ----------------------------------------------------------------------------------- */

static const char *user_name(uint32_t uid)
{
    static struct {
        bool known;
        uint32_t uid;
        char name[USER_BYTES];
    } slots[USER_SLOTS];
    const size_t at = uid % USER_SLOTS;

    if (!slots[at].known || slots[at].uid != uid) {
        const struct passwd *entry = getpwuid((uid_t)uid);
        if (entry)
            snprintf(slots[at].name, sizeof slots[at].name, "%s", entry->pw_name);
        else
            snprintf(slots[at].name, sizeof slots[at].name, "%u", uid);
        slots[at].known = true;
        slots[at].uid = uid;
    }
    return slots[at].name;
}

static const char *state_name(uint32_t state)
{
    static const char *const names[] = {"", "waiting", "prefill", "decode", "parked", "preempted"};

    return state < sizeof names / sizeof names[0] ? names[state] : "";
}

static const char *model_name(const struct page_view *view, uint32_t model)
{
    for (size_t i = 0; i < view->n_models; i++)
        if (view->models[i].state != 0 && view->models[i].index == model)
            return view->models[i].name;
    bool older = view->n_models > 0 && view->models[0].state == 0; /* a daemon without numbers */
    return older && model < view->n_models ? view->models[model].name : "";
}

static void append(struct ctl_buffer *to, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static void append(struct ctl_buffer *to, const char *format, ...)
{
    char text[512];
    va_list args;
    int n;

    va_start(args, format);
    n = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (n > 0)
        buffer_append(to, text, (size_t)n < sizeof text ? (size_t)n : sizeof text - 1);
}

/* At most `columns` bytes of plain ASCII, filled up with blanks where pad is set. */
static void append_name(struct ctl_buffer *to, const char *name, int columns, bool pad)
{
    char text[128] = "";
    int n = 0;

    for (; n < columns && n < (int)sizeof text && name[n]; n++)
        text[n] = name[n] >= 0x20 && name[n] < 0x7f ? name[n] : '?';
    buffer_append(to, text, (size_t)n);
    if (pad && n < columns)
        append(to, "%*s", columns - n, "");
}

/* ---- reading --------------------------------------------------------------------------------- */

int page_open(struct ctl *ctl, struct page_view *ret_view)
{
    struct infer_model one;
    int r, status = ctl_connect(ctl);

    memset(ret_view, 0, sizeof *ret_view);
    if (!status && ctl->options.model)
        status = ctl_model(ctl, &one);
    if (status)
        return status;
    r = infer_models(ctl->conn, &ret_view->models, &ret_view->n_models);
    if (r < 0)
        return ctl_fail_conn(ctl, r);
    for (size_t i = 0; i < ret_view->n_models; i++)
        ret_view->models[i].name[INFER_MODEL_NAME_MAX - 1] = '\0';
    return 0;
}

void page_done(struct page_view *view)
{
    infer_free(view->models);
}

/* Decodes, prefills, parked, preempted, waiting. */
static int rank(const struct infer_page_sequence *s)
{
    static const int ranks[] = {5, 4, 1, 0, 2, 3};

    return s->state < sizeof ranks / sizeof ranks[0] ? ranks[s->state] : 6;
}

static int compare_sequences(const void *a, const void *b)
{
    const struct infer_page_sequence *x = a, *y = b;

    if (rank(x) != rank(y))
        return rank(x) < rank(y) ? -1 : 1;
    if (x->state == INFER_SEQUENCE_WAITING && x->position != y->position)
        return x->position < y->position ? -1 : 1;
    return (x->id > y->id) - (x->id < y->id);
}

static int compare_users(const void *a, const void *b)
{
    const struct infer_page_user *x = a, *y = b;

    return (x->uid > y->uid) - (x->uid < y->uid);
}

/* A rate is told over at least RATE_US where pages come that far apart, and over what is not long
 * past: the older reading gives way to the newer one in time. */
static void shift_readings(struct page_view *view, uint64_t written_us)
{
    bool apart = written_us - view->now.written_us >= RATE_US;
    bool long_past = written_us - view->before.written_us >= RATE_OLD_US;

    if (view->n_readings == 1 ||
        (view->n_readings > 1 && (apart || long_past) && written_us > view->now.written_us))
        view->before = view->now;
}

int page_read(struct ctl *ctl, struct page_view *view)
{
    static struct infer_page page;
    const char *wanted = ctl->options.model;
    struct timespec now;
    uint32_t n = 0;
    int r = infer_read_page(ctl->conn, &page);

    if (r < 0)
        return r;
    clock_gettime(CLOCK_MONOTONIC, &now);
    view->read_us = (uint64_t)now.tv_sec * 1000000u + (uint64_t)now.tv_nsec / 1000u;
    for (uint32_t i = 0; i < page.n_sequences; i++)
        if (!wanted || strcmp(model_name(view, page.sequences[i].model), wanted) == 0)
            page.sequences[n++] = page.sequences[i];
    page.n_sequences = n;
    qsort(page.sequences, n, sizeof page.sequences[0], compare_sequences);
    qsort(page.users, page.n_users, sizeof page.users[0], compare_users);
    shift_readings(view, page.written_us);
    view->now = page;
    view->n_readings++;
    return 0;
}

/* Since the page was written. */
static uint64_t page_age(const struct page_view *view)
{
    uint64_t written = view->now.written_us;

    return written > 0 && view->read_us > written ? view->read_us - written : 0;
}

/* Per second between the two readings; NaN when there is nothing to compare with. */
static double rate(const struct page_view *view, uint64_t before, uint64_t now)
{
    uint64_t from = view->before.written_us, to = view->now.written_us;

    if (view->n_readings < 2 || now < before || view->before.status.pid != view->now.status.pid)
        return (double)NAN;
    if (page_age(view) > IDLE_US)
        return 0;
    if (to <= from)
        return (double)NAN;
    return (double)(now - before) * 1e6 / (double)(to - from);
}

static const struct infer_page_sequence *sequence_before(const struct page_view *view, uint64_t id)
{
    for (uint32_t i = 0; i < view->before.n_sequences; i++)
        if (view->before.sequences[i].id == id)
            return &view->before.sequences[i];
    return NULL;
}

static const struct infer_page_user *user_before(const struct page_view *view, uint32_t uid)
{
    for (uint32_t i = 0; i < view->before.n_users; i++)
        if (view->before.users[i].uid == uid)
            return &view->before.users[i];
    return NULL;
}

/* ---- lines ----------------------------------------------------------------------------------- */

static void append_rate(struct ctl_buffer *to, double value)
{
    if (isfinite(value))
        append(to, " %8.1f", value);
    else
        append(to, " %8s", "-");
}

static const char *short_duration(uint64_t us, char *buffer)
{
    unsigned long long s = us / 1000000u;

    if (s < 60)
        snprintf(buffer, 32, "%.1fs", (double)us * 1e-6);
    else if (s < 3600)
        snprintf(buffer, 32, "%llum%02llus", s / 60, s % 60);
    else
        snprintf(buffer, 32, "%lluh%02llum", s / 3600, s / 60 % 60);
    return buffer;
}

void page_sequence_head(struct ctl_buffer *to, unsigned columns)
{
    bool narrow = (columns & PAGE_NARROW) != 0;

    append(to, "%8s %-10s", "ID", "USER");
    if (!narrow)
        append(to, " %8s", "PID");
    append(to, " %-9s", "STATE");
    if (!narrow)
        append(to, " %-11s", "PRIORITY");
    append(to, " %7s", "PROMPT");
    if (!narrow)
        append(to, " %7s", "CACHED");
    append(to, " %7s%s %6s %7s  %-16s %s\n", "TOKENS", columns & PAGE_RATES ? " TOKENS/S" : "",
           "PAGES", "AGE", "CLIENT", "MODEL");
}

void page_sequence_line(struct ctl_buffer *to, const struct page_view *view, size_t i,
                        unsigned columns)
{
    const struct infer_page_sequence *s = &view->now.sequences[i];
    const struct infer_page_sequence *before = sequence_before(view, s->id);
    bool narrow = (columns & PAGE_NARROW) != 0;
    char age[32], state[32];

    append(to, "%8llu ", (unsigned long long)s->id);
    append_name(to, user_name(s->uid), 10, true);
    if (!narrow)
        append(to, " %8u", s->pid);
    snprintf(state, sizeof state, "%s", state_name(s->state));
    if (s->state == INFER_SEQUENCE_WAITING)
        snprintf(state, sizeof state, "wait %u", s->position);
    append(to, " %-9s", state);
    if (!narrow)
        append(to, " %-11s", options_priority_name(s->priority));
    append(to, " %7u", s->n_prompt);
    if (!narrow)
        append(to, " %7u", s->n_cached);
    append(to, " %7u", s->n_tokens);
    if (columns & PAGE_RATES)
        append_rate(to, before ? rate(view, before->n_tokens, s->n_tokens) : (double)NAN);
    append(to, " %6u %7s  ", s->n_pages, short_duration(s->age_us + page_age(view), age));
    append_name(to, s->client, 16, true);
    append(to, " ");
    append_name(to, model_name(view, s->model), INFER_MODEL_NAME_MAX, false);
    append(to, "\n");
}

void page_user_head(struct ctl_buffer *to)
{
    append(to, "%-16s %7s %8s %8s %6s %14s %12s %8s\n", "USER", "WEIGHT", "RUNNING", "WAITING",
           "PAGES", "PROMPT TOKENS", "TOKENS", "TOKENS/S");
}

void page_user_line(struct ctl_buffer *to, const struct page_view *view, size_t i)
{
    const struct infer_page_user *u = &view->now.users[i];
    const struct infer_page_user *before = user_before(view, u->uid);

    append_name(to, user_name(u->uid), 16, true);
    append(to, " %7u %8u %8u %6u %14llu %12llu", u->weight, u->n_running, u->n_waiting, u->n_pages,
           (unsigned long long)u->n_prompt_tokens, (unsigned long long)u->n_tokens);
    append_rate(to, before ? rate(view, before->n_tokens, u->n_tokens) : (double)NAN);
    append(to, "\n");
}

static void append_models(struct ctl_buffer *to, const struct page_view *view)
{
    append(to, "Models:");
    for (size_t i = 0; i < view->n_models; i++) {
        const struct infer_model *m = &view->models[i];
        char description[sizeof m->description + 1] = "";
        memcpy(description, m->description, sizeof m->description);
        append(to, "%s ", i ? "," : "");
        append_name(to, m->name, INFER_MODEL_NAME_MAX, false);
        append(to, " (");
        append_name(to, description, (int)sizeof m->description, false);
        append(to, ")");
    }
    append(to, "\n");
}

static void append_pages(struct ctl_buffer *to, const struct infer_status *s)
{
    char bar[BAR_CELLS + 1], resident[16];
    uint32_t used = s->n_pages_used < s->n_pages ? s->n_pages_used : s->n_pages;
    size_t filled =
        s->n_pages ? (size_t)((uint64_t)used * BAR_CELLS + s->n_pages - 1) / s->n_pages : 0;

    memset(bar, '.', BAR_CELLS);
    memset(bar, '#', filled < BAR_CELLS ? filled : BAR_CELLS);
    bar[BAR_CELLS] = '\0';
    append(to, "Pages: [%s] %u of %u, %u tokens each; memory %s\n", bar, s->n_pages_used,
           s->n_pages, s->page_tokens, output_size(s->memory_bytes, resident));
}

void page_summary(struct ctl_buffer *to, const struct page_view *view)
{
    const struct infer_status *s = &view->now.status;
    bool idle = page_age(view) > IDLE_US && s->n_running == 0 && s->n_waiting == 0;
    char up[32], since[32];

    append(to, "inferd ");
    append_name(to, s->version, 31, false);
    append(to, "  pid %u, up %s; %u running, %u waiting, %u parked; %u connections\n", s->pid,
           output_duration(s->uptime_us + page_age(view), up), s->n_running, s->n_waiting,
           s->n_parked, s->n_sessions);
    append_models(to, view);
    if (idle)
        append(to, "Speed: idle for %s\n", output_duration(page_age(view), since));
    else
        append(to, "Speed: %.1f prompt tokens/s, %.1f tokens/s\n", s->prompt_tokens_per_s,
               s->tokens_per_s);
    append_pages(to, s);
}

/* ---- JSON ------------------------------------------------------------------------------------ */

static json_t *text_json(const char *text)
{
    return output_json_text(text, strlen(text));
}

json_t *page_sequences_json(const struct page_view *view)
{
    json_t *array = json_array();

    for (uint32_t i = 0; i < view->now.n_sequences; i++) {
        const struct infer_page_sequence *s = &view->now.sequences[i];
        json_array_append_new(
            array,
            json_pack("{s:I, s:I, s:o, s:I, s:o, s:o, s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:f}",
                      "id", (json_int_t)s->id, "uid", (json_int_t)s->uid, "user",
                      text_json(user_name(s->uid)), "pid", (json_int_t)s->pid, "client",
                      text_json(s->client), "model", text_json(model_name(view, s->model)), "state",
                      state_name(s->state), "priority", options_priority_name(s->priority),
                      "position", (json_int_t)s->position, "prompt_tokens", (json_int_t)s->n_prompt,
                      "cached", (json_int_t)s->n_cached, "tokens", (json_int_t)s->n_tokens, "pages",
                      (json_int_t)s->n_pages, "age_s",
                      (double)(s->age_us + page_age(view)) * 1e-6));
    }
    return array;
}

static json_t *users_json(const struct page_view *view)
{
    json_t *array = json_array();

    for (uint32_t i = 0; i < view->now.n_users; i++) {
        const struct infer_page_user *u = &view->now.users[i];
        json_array_append_new(
            array,
            json_pack("{s:I, s:o, s:I, s:I, s:I, s:I, s:I, s:I}", "uid", (json_int_t)u->uid, "user",
                      text_json(user_name(u->uid)), "weight", (json_int_t)u->weight, "n_running",
                      (json_int_t)u->n_running, "n_waiting", (json_int_t)u->n_waiting, "n_pages",
                      (json_int_t)u->n_pages, "n_prompt_tokens", (json_int_t)u->n_prompt_tokens,
                      "n_tokens", (json_int_t)u->n_tokens));
    }
    return array;
}

json_t *page_json(const struct page_view *view)
{
    return json_pack("{s:o, s:f, s:o, s:o}", "status",
                     status_json(&view->now.status, view->models, view->n_models), "page_age_s",
                     (double)page_age(view) * 1e-6, "users", users_json(view), "sequences",
                     page_sequences_json(view));
}
