/* config.c: see config.h.
 *
 * One table holds every option: its name, argument, help text, and the function that takes it.
 * getopt_long() does the splitting; that it also takes abbreviations is undone here, since a script
 * that says --mod today would break when --modify appears.
 *
 * Limits: INFER_MODELS_MAX models. */
#include "config.h"

#include "base/log.h"

#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct parser {
    struct config config;
    struct report *report;
    bool socket_given;
    const char *serve_option; /* the first option that only serving has */
    bool tokenize;
};

struct option_rule {
    const char *name;
    const char *argument; /* NULL: none */
    int (*take)(struct parser *p, const char *name, const char *value);
    const char *help; /* '\n': next line, indented by config_help() */
};

static int invalid(struct parser *p, const char *name, const char *value, const char *wanted)
{
    return report_fail(p->report, INFER_E_INVALID, "--%s: '%.100s' is not %s", name, value, wanted);
}

/* ---- values ---------------------------------------------------------------------------------- */

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

bool config_size(const char *text, uint64_t *ret)
{
    static const char units[] = "KMGT";
    size_t n = strspn(text, "0123456789");
    char digits[24];
    uint64_t value;
    if (n == 0 || n >= sizeof digits)
        return false;
    memcpy(digits, text, n);
    digits[n] = '\0';
    if (!parse_number(digits, UINT64_MAX, &value))
        return false;
    unsigned shift = 0;
    if (text[n] != '\0') {
        char letter = text[n] >= 'a' && text[n] <= 'z' ? (char)(text[n] - 32) : text[n];
        const char *unit = strchr(units, letter);
        if (unit == NULL || text[n + 1] != '\0')
            return false;
        shift = 10 * (unsigned)(unit - units + 1);
    }
    if (value > UINT64_MAX >> shift)
        return false;
    *ret = value << shift;
    return true;
}

static int take_number(struct parser *p, const char *name, const char *value, uint32_t min,
                       uint32_t max, uint32_t *ret)
{
    uint64_t n;
    if (!parse_number(value, max, &n) || n < min)
        return report_fail(p->report, INFER_E_INVALID,
                           "--%s: '%.100s' is not a number from %u to %u", name, value, min, max);
    *ret = (uint32_t)n;
    return 0;
}

/* ---- models ---------------------------------------------------------------------------------- */

static const char name_letters[] =
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";

/* Length of "-00001-of-00005" at the end of a name, or 0. */
static size_t split_suffix(const char *name, size_t n)
{
    static const char pattern[] = "-ddddd-of-ddddd";
    const size_t length = sizeof pattern - 1;
    if (n <= length)
        return 0;
    for (size_t i = 0; i < length; i++) {
        char c = name[n - length + i];
        if (pattern[i] == 'd' ? c < '0' || c > '9' : c != pattern[i])
            return 0;
    }
    return length;
}

/* The file's name without folder, ".gguf" and part number. */
static size_t name_of_file(const char *path, const char **ret)
{
    const char *slash = strrchr(path, '/');
    const char *name = slash != NULL ? slash + 1 : path;
    size_t n = strlen(name);
    if (n > 5 && strcasecmp(name + n - 5, ".gguf") == 0)
        n -= 5;
    n -= split_suffix(name, n);
    *ret = name;
    return n;
}

static int add_model(struct parser *p, const char *name, size_t n, const char *path)
{
    struct config *c = &p->config;
    if (path[0] == '\0')
        return report_fail(p->report, INFER_E_INVALID, "--model: no file is given");
    if (n == 0 || strspn(name, name_letters) < n || n >= INFER_MODEL_NAME_MAX)
        return report_fail(p->report, INFER_E_INVALID,
                           "--model: '%.*s' cannot be a model's name (up to %u of A-Z a-z 0-9 . _ "
                           "-); give one: --model NAME=%.200s",
                           (int)(n < 100 ? n : 100), name, INFER_MODEL_NAME_MAX - 1, path);
    if (c->n_models == INFER_MODELS_MAX)
        return report_fail(p->report, INFER_E_INVALID, "--model: at most %u models can be served",
                           INFER_MODELS_MAX);
    struct config_model m = {.path = path};
    memcpy(m.name, name, n);
    for (uint32_t i = 0; i < c->n_models; i++)
        if (strcmp(c->models[i].name, m.name) == 0)
            return report_fail(p->report, INFER_E_INVALID,
                               "--model: two models are named '%s'; give one another name: --model "
                               "NAME=%.200s",
                               m.name, path);
    c->models[c->n_models++] = m;
    return 0;
}

/* NAME=FILE, unless what stands before '=' could not be a name: then it is all a path. */
static int take_model(struct parser *p, const char *option, const char *value)
{
    (void)option;
    size_t n = strspn(value, name_letters);
    if (value[n] == '=' && n > 0)
        return add_model(p, value, n, value + n + 1);
    const char *name;
    n = name_of_file(value, &name);
    return add_model(p, name, n, value);
}

/* ---- the other options ----------------------------------------------------------------------- */

static int set_socket(char *to, const char *path, struct report *report)
{
    size_t n = strlen(path);
    if (n == 0 || n >= CONFIG_SOCKET_MAX)
        return report_fail(report, INFER_E_SOCKET_PATH,
                           "--socket: '%.120s' has %zu bytes; a socket's path has 1 to %u", path, n,
                           CONFIG_SOCKET_MAX - 1);
    memcpy(to, path, n + 1);
    return 0;
}

static int take_socket(struct parser *p, const char *name, const char *value)
{
    (void)name;
    p->socket_given = true;
    return set_socket(p->config.socket, value, p->report);
}

static int take_backend(struct parser *p, const char *name, const char *value)
{
    size_t n = strspn(value, "abcdefghijklmnopqrstuvwxyz0123456789_-");
    if (n == 0 || value[n] != '\0')
        return invalid(p, name, value, "a backend's name, such as cpu or ref");
    p->config.backend = value;
    return 0;
}

static int take_backend_options(struct parser *p, const char *name, const char *value)
{
    (void)name;
    p->config.backend_options = value;
    return 0;
}

static int take_threads(struct parser *p, const char *name, const char *value)
{
    return take_number(p, name, value, 0, CONFIG_THREADS_MAX, &p->config.threads);
}

static int take_context(struct parser *p, const char *name, const char *value)
{
    return take_number(p, name, value, 0, CONFIG_CONTEXT_MAX, &p->config.n_context);
}

static int take_parallel(struct parser *p, const char *name, const char *value)
{
    return take_number(p, name, value, 1, CONFIG_PARALLEL_MAX, &p->config.parallel);
}

static int take_spin(struct parser *p, const char *name, const char *value)
{
    return take_number(p, name, value, 0, CONFIG_SPIN_US_MAX, &p->config.spin_us);
}

static int take_state_memory(struct parser *p, const char *name, const char *value)
{
    if (!config_size(value, &p->config.state_memory_bytes))
        return invalid(p, name, value, "a size, such as 512M or 4G");
    return 0;
}

static int take_cache_type(struct parser *p, const char *name, const char *value, uint32_t *ret)
{
    if (strcmp(value, "f16") == 0)
        *ret = INFER_TYPE_F16;
    else if (strcmp(value, "q8_0") == 0)
        *ret = INFER_TYPE_Q8_0;
    else if (strcmp(value, "q4_0") == 0)
        *ret = INFER_TYPE_Q4_0;
    else
        return invalid(p, name, value, "f16, q8_0 or q4_0");
    return 0;
}

static int take_k_type(struct parser *p, const char *name, const char *value)
{
    return take_cache_type(p, name, value, &p->config.k_type);
}

static int take_v_type(struct parser *p, const char *name, const char *value)
{
    return take_cache_type(p, name, value, &p->config.v_type);
}

static int take_policy(struct parser *p, const char *name, const char *value)
{
    struct config *c = &p->config;
    if (c->n_policies == CONFIG_POLICIES_MAX)
        return report_fail(p->report, INFER_E_INVALID, "--%s: at most %u can be given", name,
                           CONFIG_POLICIES_MAX);
    c->policies[c->n_policies++] = value;
    return 0;
}

static int take_event_loop(struct parser *p, const char *name, const char *value)
{
    if (strcmp(value, "auto") == 0)
        p->config.event_loop = LOOP_AUTO;
    else if (strcmp(value, "io_uring") == 0)
        p->config.event_loop = LOOP_IO_URING;
    else if (strcmp(value, "epoll") == 0)
        p->config.event_loop = LOOP_EPOLL;
    else
        return invalid(p, name, value, "auto, io_uring or epoll");
    return 0;
}

static int take_log_level(struct parser *p, const char *name, const char *value)
{
    static const struct {
        const char *name;
        int level;
    } levels[] = {{"error", LOG_LEVEL_ERROR},
                  {"warning", LOG_LEVEL_WARNING},
                  {"info", LOG_LEVEL_INFO},
                  {"debug", LOG_LEVEL_DEBUG}};
    for (size_t i = 0; i < sizeof levels / sizeof levels[0]; i++)
        if (strcmp(value, levels[i].name) == 0) {
            p->config.log_level = levels[i].level;
            return 0;
        }
    return invalid(p, name, value, "error, warning, info or debug");
}

static int take_inspect(struct parser *p, const char *name, const char *value)
{
    if (value[0] == '\0')
        return invalid(p, name, value, "a file");
    p->config.inspect_path = value;
    return 0;
}

static int take_tokenize(struct parser *p, const char *name, const char *value)
{
    (void)name;
    (void)value;
    p->tokenize = true;
    return 0;
}

static int take_no_escape(struct parser *p, const char *name, const char *value)
{
    (void)name;
    (void)value;
    p->config.no_escape = true;
    return 0;
}

static int take_version(struct parser *p, const char *name, const char *value)
{
    (void)name;
    (void)value;
    p->config.action = CONFIG_VERSION;
    return 0;
}

static int take_help(struct parser *p, const char *name, const char *value)
{
    (void)name;
    (void)value;
    p->config.action = CONFIG_HELP;
    return 0;
}

/* ---- the table ------------------------------------------------------------------------------- */

static const struct option_rule rules[] = {
    {"model", "[NAME=]FILE", take_model, "serve this GGUF file under this name; may be repeated"},
    {"socket", "PATH", take_socket,
     "where to listen (default: $INFERD_SOCKET, else\n$XDG_RUNTIME_DIR/inferd.sock, else for "
     "root\n/run/inferd/inferd.sock)"},
    {"backend", "NAME", take_backend, "what computes: cpu, ref or null (default: cpu)"},
    {"backend-options", "LIST", take_backend_options, "KEY=VALUE,... for the backend"},
    {"threads", "N", take_threads, "computing threads (default 0: one per core)"},
    {"ctx", "N", take_context, "tokens of the longest sequence (default 0: the model's own)"},
    {"parallel", "N", take_parallel, "sequences that run at once (default: 16)"},
    {"state-memory", "SIZE", take_state_memory,
     "memory for sequences, such as 4G (default 0: as needed)"},
    {"cache-type-k", "TYPE", take_k_type, "how keys are kept: f16, q8_0 or q4_0 (default: f16)"},
    {"cache-type-v", "TYPE", take_v_type, "how values are kept: f16, q8_0 or q4_0 (default: f16)"},
    {"policy", "WHO:LIST", take_policy,
     "limits of a user (name, uid or default):\nweight, running, waiting, tokens-per-minute, "
     "pages, best;\nmay be repeated"},
    {"event-loop", "KIND", take_event_loop, "auto, io_uring or epoll (default: auto)"},
    {"spin-us", "N", take_spin, "microseconds the engine polls before it sleeps (default: 50)"},
    {"log-level", "LEVEL", take_log_level, "error, warning, info or debug (default: info)"},
    {"inspect", "FILE", take_inspect, "show what a model file holds and takes; serves nothing"},
    {"tokenize", NULL, take_tokenize,
     "with --inspect: standard input as a JSON array of\ntoken ids"},
    {"no-escape", NULL, take_no_escape,
     "with --tokenize: take \\n, \\t and the like as they stand"},
    {"version", NULL, take_version, "print the version"},
    {"help", NULL, take_help, "print this help"},
};

#define N_RULES (sizeof rules / sizeof rules[0])

/* These make sense without serving, or beside --inspect. */
static bool is_serving_only(const struct option_rule *rule)
{
    return rule->take == take_model || rule->take == take_socket || rule->take == take_spin ||
           rule->take == take_event_loop;
}

void config_help(FILE *out)
{
    fputs("Usage: inferd --model [NAME=]FILE [OPTION...]\n"
          "       inferd --inspect FILE [--tokenize]\n"
          "Serves language models to local programs through shared memory.\n\n",
          out);
    for (size_t i = 0; i < N_RULES; i++) {
        char head[40];
        snprintf(head, sizeof head, "--%s%s%s", rules[i].name, rules[i].argument ? " " : "",
                 rules[i].argument ? rules[i].argument : "");
        fprintf(out, "  %-22s ", head);
        for (const char *c = rules[i].help; *c != '\0'; c++)
            if (*c == '\n')
                fprintf(out, "\n%25s", "");
            else
                fputc(*c, out);
        fputc('\n', out);
    }
    fputs("\nStop it with SIGTERM or Ctrl-C. See inferd(8) for more.\n", out);
}

/* ---- unknown options ------------------------------------------------------------------------- */

#define WORD_MAX 32

/* Levenshtein distance of two words below WORD_MAX. */
static unsigned edit_distance(const char *a, const char *b)
{
    unsigned row[WORD_MAX + 1];
    size_t n = strlen(b);
    for (size_t k = 0; k <= n; k++)
        row[k] = (unsigned)k;
    for (size_t i = 1; a[i - 1] != '\0'; i++) {
        unsigned diagonal = row[0];
        row[0] = (unsigned)i;
        for (size_t k = 1; k <= n; k++) {
            unsigned best = diagonal + (a[i - 1] != b[k - 1]);
            diagonal = row[k];
            if (row[k] + 1 < best)
                best = row[k] + 1;
            if (row[k - 1] + 1 < best)
                best = row[k - 1] + 1;
            row[k] = best;
        }
    }
    return row[n];
}

/* The option that was probably meant, or NULL. */
static const char *suggest(const char *word)
{
    const char *found = NULL;
    size_t n = strlen(word);
    unsigned best = n < 4 ? 2 : 4; /* closer than this */
    if (n == 0 || n >= WORD_MAX)
        return NULL;
    for (size_t i = 0; i < N_RULES; i++) {
        unsigned distance = edit_distance(word, rules[i].name);
        if (n >= 3 && strncmp(word, rules[i].name, n) == 0)
            distance = 0; /* an abbreviation */
        if (distance < best) {
            best = distance;
            found = rules[i].name;
        }
    }
    return found;
}

static int unknown_option(struct parser *p, const char *argument)
{
    char word[WORD_MAX] = "";
    size_t dashes = strspn(argument, "-"), n = strcspn(argument + dashes, "=");
    if (n < sizeof word) {
        memcpy(word, argument + dashes, n);
        word[n] = '\0';
    }
    const char *meant = suggest(word);
    if (meant != NULL)
        return report_fail(p->report, INFER_E_INVALID,
                           "unknown option '%.100s'; did you mean --%s?", argument, meant);
    return report_fail(p->report, INFER_E_INVALID,
                       "unknown option '%.100s'; 'inferd --help' lists all", argument);
}

static int unexpected_operand(struct parser *p, const char *argument)
{
    size_t n = strlen(argument);
    if (n > 5 && strcasecmp(argument + n - 5, ".gguf") == 0)
        return report_fail(p->report, INFER_E_INVALID,
                           "unexpected '%.200s'; did you mean --model %.200s?", argument, argument);
    return report_fail(p->report, INFER_E_INVALID,
                       "unexpected '%.200s'; 'inferd --help' lists the options", argument);
}

/* ---- parsing --------------------------------------------------------------------------------- */

/* Is argument --NAME or --NAME=VALUE, spelled out? */
static bool spelled_out(const char *argument, const char *name)
{
    size_t n = strlen(name);
    return strncmp(argument, "--", 2) == 0 && strncmp(argument + 2, name, n) == 0 &&
           (argument[2 + n] == '\0' || argument[2 + n] == '=');
}

static int take_option(struct parser *p, int c, int index, const char *argument)
{
    if (c == 'h')
        return take_help(p, "help", NULL);
    if (c == ':')
        return report_fail(p->report, INFER_E_INVALID, "%.100s needs a value", argument);
    if (c != 0) {
        for (size_t i = 0; i < N_RULES; i++) /* "--tokenize=yes" */
            if (rules[i].argument == NULL && spelled_out(argument, rules[i].name))
                return report_fail(p->report, INFER_E_INVALID, "--%s takes no value",
                                   rules[i].name);
        return unknown_option(p, argument);
    }
    const struct option_rule *rule = &rules[index];
    if (!spelled_out(argument, rule->name))
        return unknown_option(p, argument);
    if (p->serve_option == NULL && is_serving_only(rule))
        p->serve_option = rule->name;
    return rule->take(p, rule->name, optarg);
}

static int parse_options(struct parser *p, int argc, char **argv)
{
    struct option options[N_RULES + 1] = {0};
    for (size_t i = 0; i < N_RULES; i++)
        options[i] =
            (struct option){.name = rules[i].name,
                            .has_arg = rules[i].argument != NULL ? required_argument : no_argument};
    optind = 0; /* glibc: start over */
    opterr = 0;
    for (int at = 1, r = 0;; at = optind) {
        int index = 0;
        int c = getopt_long(argc, argv, "+:h", options, &index);
        if (c == -1)
            break;
        r = take_option(p, c, index, argv[at]);
        if (r < 0)
            return r;
    }
    return optind < argc ? unexpected_operand(p, argv[optind]) : 0;
}

int config_default_socket(const char *runtime_dir, bool root, char ret[CONFIG_SOCKET_MAX],
                          struct report *report)
{
    char path[CONFIG_SOCKET_MAX];
    int n;
    if (runtime_dir != NULL && runtime_dir[0] == '/')
        n = snprintf(path, sizeof path, "%s/inferd.sock", runtime_dir);
    else if (root)
        n = snprintf(path, sizeof path, "/run/inferd/inferd.sock");
    else
        return report_fail(report, INFER_E_SOCKET_PATH,
                           "XDG_RUNTIME_DIR is not set; say where to listen with --socket PATH");
    if (n < 0 || (size_t)n >= sizeof path)
        return report_fail(report, INFER_E_SOCKET_PATH,
                           "XDG_RUNTIME_DIR is too long for a socket; say where to listen with "
                           "--socket PATH");
    memcpy(ret, path, (size_t)n + 1);
    return 0;
}

/* What the options mean together. */
static int settle(struct parser *p)
{
    struct config *c = &p->config;
    if (c->action == CONFIG_HELP || c->action == CONFIG_VERSION)
        return 0;
    if (c->inspect_path != NULL) {
        c->action = p->tokenize ? CONFIG_TOKENIZE : CONFIG_INSPECT;
        if (p->serve_option != NULL)
            return report_fail(p->report, INFER_E_INVALID,
                               "--inspect serves nothing, so --%s has no place beside it",
                               p->serve_option);
        return 0;
    }
    if (p->tokenize)
        return report_fail(p->report, INFER_E_INVALID, "--tokenize needs --inspect FILE");
    if (c->no_escape)
        return report_fail(p->report, INFER_E_INVALID, "--no-escape needs --tokenize");
    if (c->n_models == 0)
        return report_fail(p->report, INFER_E_INVALID,
                           "no model is given; say which with --model FILE.gguf");
    const char *socket = getenv("INFERD_SOCKET");
    if (!p->socket_given && socket != NULL && socket[0] != '\0')
        return set_socket(c->socket, socket, p->report);
    if (!p->socket_given)
        return config_default_socket(getenv("XDG_RUNTIME_DIR"), geteuid() == 0, c->socket,
                                     p->report);
    return 0;
}

int config_parse(int argc, char **argv, struct config *ret, struct report *report)
{
    struct parser p = {.report = report,
                       .config = {.backend = "cpu",
                                  .backend_options = "",
                                  .parallel = 16,
                                  .k_type = INFER_TYPE_F16,
                                  .v_type = INFER_TYPE_F16,
                                  .log_level = LOG_LEVEL_INFO,
                                  .spin_us = 50}};
    int r = parse_options(&p, argc, argv);
    if (r == 0)
        r = settle(&p);
    if (r == 0)
        *ret = p.config;
    return r;
}
