/* config_options.c: the table of settings, and the text of a value and back.
 *
 * A row says where its value goes, what it may be and what it is by default, the default as text,
 * so that it takes the same way as what a user writes. Every other part of the configuration, and
 * the shells' completions, follow from the rows; inferd.conf(5) is compared with them by a test.
 *
 * Limits: CONFIG_SETTINGS_MAX rows. */
#include "config_internal.h"

#include "base/log.h"
#include "memory.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* ---- the table ------------------------------------------------------------------------------- */

static const struct config_choice no_choice[] = {{NULL, 0}};
static const struct config_choice cache_types[] = {
    {"f16", INFER_TYPE_F16}, {"q8_0", INFER_TYPE_Q8_0}, {"q4_0", INFER_TYPE_Q4_0}, {NULL, 0}};
static const struct config_choice event_loops[] = {
    {"auto", LOOP_AUTO}, {"io_uring", LOOP_IO_URING}, {"epoll", LOOP_EPOLL}, {NULL, 0}};
static const struct config_choice log_levels[] = {{"error", LOG_LEVEL_ERROR},
                                                  {"warning", LOG_LEVEL_WARNING},
                                                  {"info", LOG_LEVEL_INFO},
                                                  {"debug", LOG_LEVEL_DEBUG},
                                                  {NULL, 0}};
static const struct config_choice huge_pages[] = {{"auto", MEMORY_HUGE_AUTO},
                                                  {"transparent", MEMORY_HUGE_TRANSPARENT},
                                                  {"explicit", MEMORY_HUGE_EXPLICIT},
                                                  {"off", MEMORY_HUGE_OFF},
                                                  {NULL, 0}};
static const struct config_choice newcomers[] = {
    {"none", CONFIG_NEWCOMERS_NONE}, {"default", 0}, {NULL, 0}};

static const struct config_choice layers[] = {
    {"auto", CONFIG_LAYERS_AUTO}, {"all", CONFIG_LAYERS_ALL}, {NULL, 0}};

#define BACKEND_LETTERS "abcdefghijklmnopqrstuvwxyz0123456789_-"
#define DEVICE_LETTERS  BACKEND_LETTERS "ABCDEFGHIJKLMNOPQRSTUVWXYZ:.,"
#define AT(field)       .offset = offsetof(struct config, field)
#define MODEL_AT(field) .model_offset = offsetof(struct config_model, field)
#define BOTH            (IN_COMMAND | IN_DAEMON)
#define EACH            (IN_COMMAND | IN_DAEMON | IN_MODEL)

/* clang-format off */
const struct config_rule config_rules[] = {
    {"model", "[NAME=]FILE", KIND_COMMAND, IN_COMMAND | ONLY_SERVES, .take = config_take_model,
     .help = "serve this GGUF file under this name; may be repeated"},
    {"model-directory", "DIR", KIND_FOLDERS, BOTH | RELOADS | ONLY_SERVES,
     .help = "where files of models lie; may be repeated"},
    {"path", "FILE", KIND_PATH, IN_MODEL | RELOADS, MODEL_AT(path),
     .remark = "NAME.gguf in a model directory", .help = "the GGUF file"},
    {"preload", "yes|no", KIND_YES, IN_MODEL | RELOADS, MODEL_AT(preload), .fallback = "no",
     .help = "load it before the daemon is ready, not on first use"},
    {"pin", "yes|no", KIND_YES, IN_MODEL | RELOADS, MODEL_AT(pin), .fallback = "no",
     .help = "it never leaves for another model's sake"},
    {"config", "FILE", KIND_COMMAND, IN_COMMAND, .take = config_take_command,
     .help = "read FILE and FILE.d/*.conf, or 'none' of the files that\ninferd.conf(5) tells of"},
    {"check-config", NULL, KIND_COMMAND, IN_COMMAND, .take = config_take_command,
     .help = "check all, print what is in force and where it comes from"},
    {"socket", "PATH", KIND_SOCKET, BOTH | ONLY_SERVES, AT(socket),
     .remark = "$INFERD_SOCKET, else\n$XDG_RUNTIME_DIR/inferd.sock, else for root\n/run/inferd/inferd.sock",
     .help = "where to listen"},
    {"metrics-socket", "PATH", KIND_SOCKET, BOTH | ONLY_SERVES, AT(metrics_socket), .remark = "none",
     .help = "where a scraper gets OpenMetrics"},
    {"state-directory", "DIR", KIND_PATH, BOTH | ONLY_SERVES, AT(state_directory),
     .remark = "$STATE_DIRECTORY, else none", .help = "where the daemon may keep files"},
    {"backend", "LIST", KIND_WORD, BOTH, AT(backend), .letters = BACKEND_LETTERS ",",
     .what = "auto or a list of backends, such as cpu or cuda,cpu", .fallback = "auto",
     .help = "what computes: auto, cpu, cuda, ref, null"},
    {"backend-options", "LIST", KIND_TEXT, BOTH, AT(backend_options), .fallback = "",
     .help = "KEY=VALUE,... for the backend"},
    {"device", "NAME", KIND_WORD, EACH, AT(model_device), MODEL_AT(device), .letters = DEVICE_LETTERS,
     .what = "a device's name, such as auto or cuda:0", .fallback = "auto", .help = "what holds a model: auto, cpu or cuda:0"},
    {"device-layers", "N", KIND_NUMBER, IN_DAEMON | IN_MODEL, AT(device_layers), MODEL_AT(device_layers), .min = 1, .max = 1024,
     .choices = layers, .fallback = "auto", .help = "first layers of a model on a device, the rest on the processors"},
    {"threads", "N", KIND_NUMBER, BOTH, AT(threads), .max = CONFIG_THREADS_MAX, .fallback = "0",
     .remark = "one per fast core", .help = "computing threads"},
    {"huge-pages", "KIND", KIND_CHOICE, BOTH | ONLY_SERVES, AT(huge_pages), .choices = huge_pages, .fallback = "auto",
     .help = "auto, transparent, explicit (those set aside) or off"},
    {"ctx", "N", KIND_NUMBER, EACH, AT(n_context), MODEL_AT(n_context), .max = CONFIG_CONTEXT_MAX,
     .fallback = "0", .remark = "the model's own", .help = "tokens of the longest sequence"},
    {"parallel", "N", KIND_NUMBER, EACH, AT(parallel), MODEL_AT(parallel), .min = 1, .max = CONFIG_PARALLEL_MAX,
     .fallback = "16", .help = "sequences that run at once"},
    {"state-memory", "SIZE", KIND_SIZE, EACH, AT(state_memory_bytes), MODEL_AT(state_memory_bytes),
     .fallback = "0", .remark = "as needed", .help = "memory for sequences, such as 4G"},
    {"memory-limit", "SIZE", KIND_SIZE, BOTH | RELOADS | ONLY_SERVES, AT(memory_limit_bytes), .fallback = "0",
     .remark = "what there is", .help = "memory for all models"},
    {"device-memory-limit", "SIZE", KIND_SIZE, IN_DAEMON | RELOADS | ONLY_SERVES, AT(device_memory_limit_bytes),
     .fallback = "0", .remark = "what there is", .help = "memory for all models on a device that has its own"},
    {"device-wait", "TIME", KIND_SECONDS, IN_DAEMON | ONLY_SERVES, AT(device_wait_s), .max = 60,
     .fallback = "10s", .help = "how long a start waits for a device that was lost"},
    {"read-timeout", "TIME", KIND_SECONDS, IN_DAEMON | ONLY_SERVES, AT(read_timeout_s), .min = 1, .max = 3600,
     .fallback = "30s", .help = "a model file that gives no byte for so long fails"},
    {"cache-type-k", "TYPE", KIND_CHOICE, EACH, AT(k_type), MODEL_AT(k_type), .choices = cache_types,
     .fallback = "f16", .help = "how keys are kept: f16, q8_0 or q4_0"},
    {"cache-type-v", "TYPE", KIND_CHOICE, EACH, AT(v_type), MODEL_AT(v_type), .choices = cache_types,
     .fallback = "f16", .help = "how values are kept: f16, q8_0 or q4_0"},
    {"keep-alive", "TIME", KIND_SECONDS, EACH | RELOADS | ONLY_SERVES, AT(keep_alive_s), MODEL_AT(keep_alive_s),
     .max = CONFIG_SECONDS_MAX, .fallback = "10m", .remark = "for --model 0",
     .help = "how long an unused model stays; 0: for ever"},
    {"swap-memory", "SIZE", KIND_SIZE, BOTH | ONLY_SERVES, AT(swap_memory_bytes), .fallback = "0",
     .remark = "a quarter of the state", .help = "memory for preempted sequences"},
    {"swap-file", "SIZE", KIND_SIZE, BOTH | ONLY_SERVES, AT(swap_file_bytes), .fallback = "0", .remark = "none",
     .help = "likewise, of a file in the state directory"},
    {"slow-reader-preempt", "TIME", KIND_SECONDS, BOTH | RELOADS | ONLY_SERVES, AT(slow_reader_preempt_s),
     .min = 1, .max = CONFIG_SECONDS_MAX, .fallback = "10s", .help = "unread so long: its memory may be taken"},
    {"slow-reader-timeout", "TIME", KIND_SECONDS, BOTH | RELOADS | ONLY_SERVES, AT(slow_reader_timeout_s),
     .min = 1, .max = CONFIG_SECONDS_MAX, .fallback = "20s", .help = "unread so long: the request is ended"},
    {"conversation-idle", "TIME", KIND_SECONDS, BOTH | RELOADS | ONLY_SERVES, AT(conversation_idle_s),
     .min = 1, .max = CONFIG_SECONDS_MAX, .fallback = "4h", .help = "how long an unused conversation is kept"},
    {"fair-skips", "N", KIND_NUMBER, BOTH | ONLY_SERVES, AT(skips_max), .min = 1, .max = 1000000, .fallback = "64",
     .help = "steps that a stream may be skipped for a user's fair share"},
    {"newcomer-slots", "N", KIND_NUMBER, BOTH | ONLY_SERVES, AT(newcomer_slots), .min = 1, .max = CONFIG_PARALLEL_MAX,
     .choices = newcomers, .fallback = "default", .remark = "an eighth of --parallel",
     .help = "sequences kept for users that run none, or 'none'"},
    {"policy", "WHO:LIST", KIND_COMMAND, IN_COMMAND, .take = config_take_policy,
     .help = "limits of a user (name, uid or default):\nweight, running, waiting, tokens-per-minute, pages, best,\ndomain; may be repeated"},
    {"drain-timeout", "TIME", KIND_SECONDS, BOTH | RELOADS | ONLY_SERVES, AT(drain_timeout_s), .max = 3600,
     .fallback = "10s", .help = "how long what runs may go on when asked to stop"},
    {"event-loop", "KIND", KIND_CHOICE, BOTH | ONLY_SERVES, AT(event_loop), .choices = event_loops, .fallback = "auto",
     .help = "auto, io_uring or epoll"},
    {"spin-us", "N", KIND_NUMBER, BOTH | ONLY_SERVES, AT(spin_us), .max = CONFIG_SPIN_US_MAX, .fallback = "50",
     .help = "microseconds the engine polls before it sleeps"},
    {"log-level", "LEVEL", KIND_CHOICE, BOTH | RELOADS, AT(log_level), .choices = log_levels, .fallback = "info",
     .help = "error, warning, info or debug"},
    {"inspect", "FILE", KIND_COMMAND, IN_COMMAND, .take = config_take_command,
     .help = "show what a model file holds and takes; serves nothing"},
    {"tokenize", NULL, KIND_COMMAND, IN_COMMAND, .take = config_take_command,
     .help = "with --inspect: standard input as a JSON array of\ntoken ids"},
    {"no-escape", NULL, KIND_COMMAND, IN_COMMAND, .take = config_take_command,
     .help = "with --tokenize: take \\n, \\t and the like as they stand"},
    {"completion", "SHELL", KIND_COMMAND, IN_COMMAND, .take = config_take_command,
     .help = "print the completion script for bash or zsh"},
    {"version", NULL, KIND_COMMAND, IN_COMMAND, .take = config_take_command, .help = "print the version"},
    {"help", NULL, KIND_COMMAND, IN_COMMAND, .take = config_take_command, .help = "print this help"},
};
/* clang-format on */

#define N_RULES (sizeof config_rules / sizeof config_rules[0])
_Static_assert(N_RULES <= CONFIG_SETTINGS_MAX, "origins[] has a place for each row");
const size_t config_n_rules = N_RULES;

const struct config_rule *config_find_rule(const char *name, unsigned flags)
{
    for (size_t i = 0; i < N_RULES; i++)
        if ((config_rules[i].flags & flags) != 0 && strcmp(config_rules[i].name, name) == 0)
            return &config_rules[i];
    return NULL;
}

/* ---- numbers --------------------------------------------------------------------------------- */

/* Digits alone, in [0, max]. */
static bool parse_number(const char *text, uint64_t max, uint64_t *ret)
{
    size_t n = strspn(text, "0123456789");
    if (n == 0 || text[n] != '\0')
        return false;
    errno = 0;
    unsigned long long value = strtoull(text, NULL, 10);
    if (errno != 0 || value > max)
        return false;
    *ret = value;
    return true;
}

/* Digits and at most one letter, which is *ret_unit; '\0' when there is none. */
static bool parse_unit(const char *text, uint64_t *ret, char *ret_unit)
{
    size_t n = strspn(text, "0123456789");
    char digits[24];
    if (n == 0 || n >= sizeof digits || (text[n] != '\0' && text[n + 1] != '\0'))
        return false;
    memcpy(digits, text, n);
    digits[n] = '\0';
    *ret_unit = text[n];
    return parse_number(digits, UINT64_MAX, ret);
}

static const char size_units[] = "KMGT";

bool config_size(const char *text, uint64_t *ret)
{
    uint64_t value;
    char unit;
    if (!parse_unit(text, &value, &unit))
        return false;
    unsigned shift = 0;
    if (unit != '\0') {
        const char *at = strchr(size_units, unit >= 'a' && unit <= 'z' ? unit - 32 : unit);
        if (at == NULL)
            return false;
        shift = 10 * (unsigned)(at - size_units + 1);
    }
    if (value > UINT64_MAX >> shift)
        return false;
    *ret = value << shift;
    return true;
}

static const struct {
    char unit;
    uint32_t seconds;
} time_units[] = {{'d', 86400}, {'h', 3600}, {'m', 60}, {'s', 1}};

bool config_seconds(const char *text, uint64_t *ret)
{
    uint64_t value;
    char unit;
    if (!parse_unit(text, &value, &unit))
        return false;
    for (size_t i = 0; i < sizeof time_units / sizeof time_units[0]; i++)
        if (unit == time_units[i].unit || (unit == '\0' && time_units[i].unit == 's')) {
            if (value > UINT64_MAX / time_units[i].seconds)
                return false;
            *ret = value * time_units[i].seconds;
            return true;
        }
    return false;
}

/* ---- from text ------------------------------------------------------------------------------- */

static bool parse_choice(const struct config_rule *rule, const char *value, uint32_t *ret)
{
    for (const struct config_choice *c = rule->choices ? rule->choices : no_choice; c->word; c++)
        if (strcmp(c->word, value) == 0) {
            *ret = c->value;
            return true;
        }
    return false;
}

static int invalid(struct parser *p, const struct config_rule *rule,
                   const struct config_origin *origin, const char *value, const char *what)
{
    return config_fail(p, origin, "%s: '%.100s' is not %s", rule->name, value, what);
}

/* "f16, q8_0 or q4_0", after `text`, which it may follow. */
static const char *list_choices(const struct config_choice *c, char *text, size_t bytes)
{
    size_t n = strlen(text);
    for (; c->word != NULL && n < bytes; c++) {
        const char *before = n == 0 ? "" : c[1].word == NULL ? " or " : ", ";
        n += (size_t)snprintf(text + n, bytes - n, "%s%s", before, c->word);
    }
    return text;
}

static int store_number(struct parser *p, const struct config_rule *rule, const char *value,
                        const struct config_origin *origin, uint32_t *ret)
{
    bool is_time = rule->kind == KIND_SECONDS;
    uint64_t n = 0;
    char what[160];
    if (parse_choice(rule, value, ret))
        return 0;
    bool ok = is_time ? config_seconds(value, &n) : parse_number(value, rule->max, &n);
    if (ok && n >= rule->min && n <= rule->max) {
        *ret = (uint32_t)n;
        return 0;
    }
    if (is_time)
        snprintf(what, sizeof what, "a time from %llus to %llus, such as 90s, 5m, 4h or 2d",
                 (unsigned long long)rule->min, (unsigned long long)rule->max);
    else
        snprintf(what, sizeof what, "a number from %llu to %llu", (unsigned long long)rule->min,
                 (unsigned long long)rule->max);
    if (rule->choices != NULL)
        list_choices(rule->choices, what, sizeof what);
    return invalid(p, rule, origin, value, what);
}

static int store_socket(struct parser *p, const struct config_rule *rule, const char *value,
                        const struct config_origin *origin, char *ret)
{
    size_t n = strlen(value);
    if (n == 0 || n >= CONFIG_SOCKET_MAX) {
        config_fail(p, origin, "%s: '%.120s' has %zu bytes; a socket's path has 1 to %u",
                    rule->name, value, n, CONFIG_SOCKET_MAX - 1);
        p->report->code = INFER_E_SOCKET_PATH;
        return -INFER_E_SOCKET_PATH;
    }
    if (origin->line != 0 && value[0] != '/')
        return invalid(p, rule, origin, value, "an absolute path");
    memcpy(ret, value, n + 1);
    return 0;
}

/* The first of a source stronger than the last one's begins the list anew. */
static int store_folder(struct parser *p, const struct config_rule *rule, const char *value,
                        const struct config_origin *origin)
{
    struct config *c = &p->config;
    struct config_origin *had = &c->origins[rule - config_rules];
    if (value[0] == '\0' || (origin->line != 0 && value[0] != '/'))
        return invalid(p, rule, origin, value, value[0] ? "an absolute path" : "a directory");
    if (had->where != origin->where)
        c->n_model_directories = 0;
    if (c->n_model_directories == CONFIG_FOLDERS_MAX)
        return config_fail(p, origin, "%s: at most %u can be given", rule->name,
                           CONFIG_FOLDERS_MAX);
    c->model_directories[c->n_model_directories++] = value;
    return 0;
}

static int store_string(struct parser *p, const struct config_rule *rule, const char *value,
                        const struct config_origin *origin, const char **ret)
{
    if (rule->kind == KIND_WORD) {
        size_t n = strspn(value, rule->letters);
        if (n == 0 || value[n] != '\0')
            return invalid(p, rule, origin, value, rule->what);
    }
    if (rule->kind == KIND_PATH && (value[0] == '\0' || (origin->line != 0 && value[0] != '/')))
        return invalid(p, rule, origin, value, value[0] ? "an absolute path" : "a path");
    *ret = value;
    return 0;
}

int config_store(struct parser *p, const struct config_rule *rule, void *to, bool of_model,
                 const char *value, const struct config_origin *origin)
{
    void *at = (char *)to + (of_model ? rule->model_offset : rule->offset);
    char what[160] = "";
    uint32_t word;
    bool yes;
    switch (rule->kind) {
    case KIND_COMMAND:
        return rule->take(p, rule, value);
    case KIND_NUMBER:
    case KIND_SECONDS:
        return store_number(p, rule, value, origin, at);
    case KIND_SIZE:
        if (!config_size(value, at))
            return invalid(p, rule, origin, value, "a size, such as 512M or 4G");
        return 0;
    case KIND_CHOICE:
        if (!parse_choice(rule, value, &word))
            return invalid(p, rule, origin, value, list_choices(rule->choices, what, sizeof what));
        memcpy(at, &word, sizeof word);
        return 0;
    case KIND_YES:
        yes = strcmp(value, "yes") == 0;
        if (!yes && strcmp(value, "no") != 0)
            return invalid(p, rule, origin, value, "yes or no");
        *(bool *)at = yes;
        return 0;
    case KIND_FOLDERS:
        return store_folder(p, rule, value, origin);
    case KIND_SOCKET:
        return store_socket(p, rule, value, origin, at);
    case KIND_WORD:
    case KIND_TEXT:
    case KIND_PATH:
        return store_string(p, rule, value, origin, at);
    }
    return 0;
}

/* ---- and back -------------------------------------------------------------------------------- */

size_t config_kind_size(enum config_kind kind)
{
    switch (kind) {
    case KIND_NUMBER:
    case KIND_SECONDS:
    case KIND_CHOICE:
        return sizeof(uint32_t);
    case KIND_SIZE:
        return sizeof(uint64_t);
    case KIND_YES:
        return sizeof(bool);
    case KIND_WORD:
    case KIND_TEXT:
    case KIND_PATH:
        return sizeof(const char *);
    case KIND_SOCKET:
        return CONFIG_SOCKET_MAX;
    case KIND_FOLDERS:
    case KIND_COMMAND:
        break;
    }
    return 0;
}

static const char *size_text(uint64_t n, char *room, size_t bytes)
{
    unsigned unit = 0;
    while (unit < 4 && n != 0 && n % 1024 == 0) {
        n /= 1024;
        unit++;
    }
    snprintf(room, bytes, "%llu%.1s", (unsigned long long)n, unit ? &size_units[unit - 1] : "");
    return room;
}

static const char *seconds_text(uint32_t n, char *room, size_t bytes)
{
    size_t i = 0;
    while (n % time_units[i].seconds != 0)
        i++;
    if (n == 0)
        snprintf(room, bytes, "0");
    else
        snprintf(room, bytes, "%u%c", n / time_units[i].seconds, time_units[i].unit);
    return room;
}

const char *config_value(const struct config_rule *rule, const void *from, bool of_model,
                         char *room, size_t bytes)
{
    const char *at = (const char *)from + (of_model ? rule->model_offset : rule->offset);
    uint32_t n = 0;
    uint64_t size;
    const char *text;
    switch (rule->kind) {
    case KIND_NUMBER:
    case KIND_SECONDS:
    case KIND_CHOICE:
        memcpy(&n, at, sizeof n);
        for (const struct config_choice *c = rule->choices ? rule->choices : no_choice; c->word;
             c++)
            if (c->value == n)
                return c->word;
        if (rule->kind == KIND_SECONDS)
            return seconds_text(n, room, bytes);
        snprintf(room, bytes, "%u", n);
        return room;
    case KIND_SIZE:
        memcpy(&size, at, sizeof size);
        return size_text(size, room, bytes);
    case KIND_YES:
        return *(const bool *)at ? "yes" : "no";
    case KIND_SOCKET:
        return at;
    case KIND_WORD:
    case KIND_TEXT:
    case KIND_PATH:
        memcpy(&text, at, sizeof text);
        return text != NULL ? text : "";
    case KIND_FOLDERS:
    case KIND_COMMAND:
        break;
    }
    return "";
}
