/* config.c: the command line, and what files and options mean together (see config.h).
 *
 * getopt_long() does the splitting; that it also takes abbreviations is undone here, since a script
 * that says --mod today would break when --modify appears. Options are collected first, because
 * --config says which files to read before the others win over them.
 *
 * Limits: INFER_MODELS_MAX models, CONFIG_POLICIES_MAX users. */
#include "config_internal.h"

#include "inferd/abi.h"
#include "policy.h"

#include <errno.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

const char config_command_line[] = "the command line";
static const struct config_origin from_command_line = {config_command_line, 0};

struct config_text {
    struct config_text *next;
    char bytes[];
};

const char *config_keep(struct parser *p, const char *text, size_t n)
{
    struct config_text *t = malloc(sizeof *t + n + 1);
    if (t == NULL) {
        report_fail(p->report, INFER_E_OUT_OF_MEMORY, "no memory for the configuration");
        return NULL;
    }
    memcpy(t->bytes, text, n);
    t->bytes[n] = '\0';
    t->next = p->config.texts;
    p->config.texts = t;
    return t->bytes;
}

void config_done(struct config *config)
{
    while (config->texts != NULL) {
        struct config_text *t = config->texts;
        config->texts = t->next;
        free(t);
    }
}

int config_fail(struct parser *p, const struct config_origin *origin, const char *format, ...)
{
    char text[INFER_DETAIL_MAX];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (origin->line != 0)
        return report_fail(p->report, INFER_E_INVALID, "%.200s:%u: %s", origin->where, origin->line,
                           text);
    if (origin->where != NULL && origin->where != config_command_line)
        return report_fail(p->report, INFER_E_INVALID, "%s: %s", origin->where, text);
    return report_fail(p->report, INFER_E_INVALID, "--%s", text);
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

size_t config_name_of_file(const char *path, const char **ret)
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

bool config_is_model_name(const char *name, size_t n)
{
    return n > 0 && strspn(name, name_letters) >= n && n < INFER_MODEL_NAME_MAX;
}

struct config_model *config_model_named(struct config *c, const char *name, size_t n)
{
    for (uint32_t i = 0; i < c->n_models; i++)
        if (strlen(c->models[i].name) == n && memcmp(c->models[i].name, name, n) == 0)
            return &c->models[i];
    return NULL;
}

int config_insert_model(struct parser *p, uint32_t at, const char *name, size_t n,
                        const struct config_origin *origin, struct config_model **ret)
{
    struct config *c = &p->config;
    if (c->n_models == INFER_MODELS_MAX)
        return config_fail(p, origin, "model: at most %u models can be served", INFER_MODELS_MAX);
    struct config_model *m = &c->models[at];
    memmove(m + 1, m, (c->n_models - at) * sizeof *m);
    c->n_models++;
    *m = (struct config_model){.origin = *origin};
    memcpy(m->name, name, n);
    *ret = m;
    return 0;
}

/* Those of the command line come first, in its order; a file may have said more of one. */
static int give_model(struct parser *p, const char *name, size_t n, const char *path)
{
    struct config *c = &p->config;
    struct config_model *m, copy;
    if (path[0] == '\0')
        return report_fail(p->report, INFER_E_INVALID, "--model: no file is given");
    if (!config_is_model_name(name, n))
        return report_fail(p->report, INFER_E_INVALID,
                           "--model: '%.*s' cannot be a model's name (up to %u of A-Z a-z 0-9 . _ "
                           "-); give one: --model NAME=%.200s",
                           (int)(n < 100 ? n : 100), name, INFER_MODEL_NAME_MAX - 1, path);
    m = config_model_named(c, name, n);
    if (m != NULL && m->given)
        return report_fail(p->report, INFER_E_INVALID,
                           "--model: two models are named '%s'; give one another name: --model "
                           "NAME=%.200s",
                           m->name, path);
    if (m != NULL) {
        copy = *m;
        struct config_model *first = &c->models[p->n_given];
        memmove(first + 1, first, (size_t)(m - first) * sizeof *m);
        *first = copy;
        m = first;
    } else {
        int r = config_insert_model(p, p->n_given, name, n, &from_command_line, &m);
        if (r < 0)
            return r;
    }
    p->n_given++;
    m->given = true;
    m->path = path;
    m->origins[config_find_rule("path", IN_MODEL) - config_rules] = from_command_line;
    struct config_origin *preload =
        &m->origins[config_find_rule("preload", IN_MODEL) - config_rules];
    if (preload->where == NULL) {
        *preload = from_command_line;
        m->preload = true;
    }
    return 0;
}

/* NAME=FILE, unless what stands before '=' could not be a name: then it is all a path. */
int config_take_model(struct parser *p, const struct config_rule *rule, const char *value)
{
    (void)rule;
    size_t n = strspn(value, name_letters);
    if (value[n] == '=' && n > 0)
        return give_model(p, value, n, value + n + 1);
    const char *name;
    n = config_name_of_file(value, &name);
    return give_model(p, name, n, value);
}

/* The file of a model that only has a name: NAME.gguf in a model directory. */
static int find_model(struct parser *p, struct config_model *m)
{
    struct config *c = &p->config;
    char path[4096];
    for (uint32_t i = 0; i < c->n_model_directories && m->path == NULL; i++) {
        int n = snprintf(path, sizeof path, "%s/%s.gguf", c->model_directories[i], m->name);
        if (n > 0 && (size_t)n < sizeof path && access(path, F_OK) == 0 &&
            (m->path = config_keep(p, path, (size_t)n)) == NULL)
            return -p->report->code;
    }
    if (m->path == NULL)
        return config_fail(
            p, &m->origin, "[model %s] has no path, and there is no %s.gguf in %s; add path = FILE",
            m->name, m->name, c->n_model_directories ? "a model directory" : "any model directory");
    return 0;
}

/* What a model has not of its own it has from the daemon. */
static int settle_model(struct parser *p, struct config_model *m)
{
    struct config *c = &p->config;
    for (size_t i = 0; i < config_n_rules; i++) {
        const struct config_rule *rule = &config_rules[i];
        if ((rule->flags & (IN_DAEMON | IN_MODEL)) != (IN_DAEMON | IN_MODEL) ||
            m->origins[i].where != NULL)
            continue;
        memcpy((char *)m + rule->model_offset, (const char *)c + rule->offset,
               config_kind_size(rule->kind));
        if (strcmp(rule->name, "keep-alive") == 0 && m->given && c->origins[i].where == NULL)
            m->keep_alive_s = 0;
    }
    return m->path == NULL ? find_model(p, m) : 0;
}

/* For --check-config, which opens no model. */
static int check_model_file(struct parser *p, const struct config_model *m)
{
    const struct config_origin *origin =
        &m->origins[config_find_rule("path", IN_MODEL) - config_rules];
    if (access(m->path, R_OK) < 0)
        return config_fail(p, origin->where != NULL ? origin : &m->origin, "model %s: %.200s: %s",
                           m->name, m->path, strerror(errno));
    return 0;
}

/* ---- policies -------------------------------------------------------------------------------- */

int config_user_at(struct parser *p, const char *who, const struct config_origin *origin,
                   struct config_user **ret)
{
    struct config *c = &p->config;
    struct policy policy = {0};
    struct report why = {0};
    if (strlen(who) >= sizeof c->users[0].who || policy_find_user(who, &policy, &why) < 0)
        return config_fail(p, origin, "%s", why.code ? why.text : "a user's name is too long");
    for (uint32_t i = 0; i < c->n_users; i++)
        if (c->users[i].is_default == policy.is_default && c->users[i].uid == policy.uid) {
            *ret = &c->users[i];
            return 0;
        }
    if (c->n_users == CONFIG_POLICIES_MAX)
        return config_fail(p, origin, "policy: at most %u can be given", CONFIG_POLICIES_MAX);
    struct config_user *u = &c->users[c->n_users++];
    *u =
        (struct config_user){.is_default = policy.is_default, .uid = policy.uid, .origin = *origin};
    strcpy(u->who, policy.is_default ? "*" : who);
    *ret = u;
    return 0;
}

/* Replaces whatever else was said of this user. */
int config_take_policy(struct parser *p, const struct config_rule *rule, const char *value)
{
    struct policy policy;
    struct config_user *u;
    char text[512];
    int r = policy_parse(value, &policy, p->report);
    if (r < 0)
        return r;
    snprintf(text, sizeof text, "%s", value); /* policy_parse() takes shorter ones */
    char *rest = text, *who = strsep(&rest, ":");
    r = config_user_at(p, who, &from_command_line, &u);
    if (r < 0)
        return r;
    memset(u->values, 0, sizeof u->values);
    u->origin = from_command_line;
    for (char *pair; (pair = strsep(&rest, ",")) != NULL;) {
        char *of = strchr(pair, '=');
        *of++ = '\0';
        for (unsigned i = 0; i < POLICY_KEYS; i++)
            if (strcmp(policy_key(i), pair) == 0) {
                u->origins[i] = from_command_line;
                u->values[i] = config_keep(p, of, strlen(of));
                if (u->values[i] == NULL)
                    return -INFER_E_OUT_OF_MEMORY;
            }
    }
    return 0;
}

/* users[] as texts for policy_parse(). */
static int settle_policies(struct parser *p)
{
    struct config *c = &p->config;
    for (uint32_t i = 0; i < c->n_users; i++) {
        const struct config_user *u = &c->users[i];
        char text[POLICY_KEYS * (2 * POLICY_VALUE_MAX) + sizeof u->who];
        size_t n = (size_t)snprintf(text, sizeof text, "%s", u->is_default ? "default" : u->who);
        char between = ':';
        for (unsigned k = 0; k < POLICY_KEYS; k++)
            if (u->values[k] != NULL) {
                n += (size_t)snprintf(text + n, sizeof text - n, "%c%s=%s", between, policy_key(k),
                                      u->values[k]);
                between = ',';
            }
        if (between == ':')
            continue; /* an empty section says nothing */
        struct policy policy;
        struct report why = {0};
        if (policy_parse(text, &policy, &why) < 0)
            return config_fail(p, &u->origin, "policy: %s", why.text);
        if ((c->policies[c->n_policies++] = config_keep(p, text, n)) == NULL)
            return -INFER_E_OUT_OF_MEMORY;
    }
    return 0;
}

/* ---- commands -------------------------------------------------------------------------------- */

int config_take_command(struct parser *p, const struct config_rule *rule, const char *value)
{
    struct config *c = &p->config;
    const char *name = rule->name;
    bool empty = value != NULL && value[0] == '\0';
    if (strcmp(name, "help") == 0) {
        c->action = CONFIG_HELP;
    } else if (strcmp(name, "version") == 0) {
        c->action = CONFIG_VERSION;
    } else if (strcmp(name, "tokenize") == 0) {
        p->tokenize = true;
    } else if (strcmp(name, "no-escape") == 0) {
        c->no_escape = true;
    } else if (strcmp(name, "check-config") == 0) {
        p->check = true;
    } else if (strcmp(name, "completion") == 0) {
        if (strcmp(value, "bash") != 0 && strcmp(value, "zsh") != 0)
            return config_fail(p, &from_command_line, "%s: '%.100s' is not bash or zsh", name,
                               value);
        c->action = CONFIG_COMPLETE;
        c->complete_shell = value;
    } else if (empty) {
        return config_fail(p, &from_command_line, "%s: '' is not a file", name);
    } else if (strcmp(name, "config") == 0) {
        p->config_path = value;
    } else {
        c->inspect_path = value;
    }
    return 0;
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
    for (size_t i = 0; i < config_n_rules; i++) {
        const struct config_rule *rule = &config_rules[i];
        if ((rule->flags & IN_COMMAND) == 0)
            continue;
        unsigned distance = edit_distance(word, rule->name);
        if (n >= 3 && strncmp(word, rule->name, n) == 0)
            distance = 0; /* an abbreviation */
        if (distance < best) {
            best = distance;
            found = rule->name;
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

/* ---- the command line ------------------------------------------------------------------------ */

struct given {
    const struct config_rule *rule;
    const char *value;
};

/* Is argument --NAME or --NAME=VALUE, spelled out? */
static bool spelled_out(const char *argument, const char *name)
{
    size_t n = strlen(name);
    return strncmp(argument, "--", 2) == 0 && strncmp(argument + 2, name, n) == 0 &&
           (argument[2 + n] == '\0' || argument[2 + n] == '=');
}

static int collect_option(struct parser *p, int c, int index, const char *argument,
                          struct given *list, size_t *n)
{
    const struct config_rule *rule = NULL;
    if (c == 'h')
        rule = config_find_rule("help", IN_COMMAND);
    else if (c == ':')
        return report_fail(p->report, INFER_E_INVALID, "%.100s needs a value", argument);
    else if (c == 0)
        rule = &config_rules[index];
    if (c != 0 && c != 'h')
        for (size_t i = 0; i < config_n_rules; i++) /* "--tokenize=yes" */
            if ((config_rules[i].flags & IN_COMMAND) != 0 && config_rules[i].argument == NULL &&
                spelled_out(argument, config_rules[i].name))
                return report_fail(p->report, INFER_E_INVALID, "--%s takes no value",
                                   config_rules[i].name);
    if (rule == NULL || (c == 0 && !spelled_out(argument, rule->name)))
        return unknown_option(p, argument);
    if (p->serve_option == NULL && (rule->flags & ONLY_SERVES) != 0)
        p->serve_option = rule->name;
    if (rule->take == config_take_command)
        return rule->take(p, rule, optarg);
    list[(*n)++] = (struct given){rule, optarg};
    return 0;
}

/* Commands take effect at once, the others are listed; the list has room for argc. */
static int collect_options(struct parser *p, int argc, char **argv, struct given *list, size_t *n)
{
    struct option options[CONFIG_SETTINGS_MAX + 1] = {0};
    int indices[CONFIG_SETTINGS_MAX], n_options = 0;
    for (size_t i = 0; i < config_n_rules; i++)
        if ((config_rules[i].flags & IN_COMMAND) != 0) {
            bool takes = config_rules[i].argument != NULL;
            indices[n_options] = (int)i;
            options[n_options++] = (struct option){
                .name = config_rules[i].name, .has_arg = takes ? required_argument : no_argument};
        }
    optind = 0; /* glibc: start over */
    opterr = 0;
    for (int at = 1, r = 0;; at = optind) {
        int index = 0;
        int c = getopt_long(argc, argv, "+:h", options, &index);
        if (c == -1)
            break;
        r = collect_option(p, c, indices[index], argv[at], list, n);
        if (r < 0)
            return r;
    }
    return optind < argc ? unexpected_operand(p, argv[optind]) : 0;
}

static int apply(struct parser *p, const struct given *list, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        const struct config_rule *rule = list[i].rule;
        int r = config_store(p, rule, &p->config, false, list[i].value, &from_command_line);
        if (r < 0)
            return r;
        p->config.origins[rule - config_rules] = from_command_line;
    }
    return 0;
}

/* ---- the whole ------------------------------------------------------------------------------- */

int config_default_socket(const char *runtime_dir, bool root, char ret[CONFIG_SOCKET_MAX],
                          struct report *report)
{
    char path[CONFIG_SOCKET_MAX];
    int n;
    if (runtime_dir != NULL && runtime_dir[0] == '/')
        n = snprintf(path, sizeof path, "%s/inferd.sock", runtime_dir);
    else if (root)
        n = snprintf(path, sizeof path, INFER_SYSTEM_SOCKET);
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

static const char *variable(const char *name)
{
    const char *value = getenv(name);
    return value != NULL && value[0] != '\0' ? value : NULL;
}

/* Before the options, which win over it, and after the files, over which it wins. */
static int take_environment(struct parser *p)
{
    struct config *c = &p->config;
    const struct config_rule *rule = config_find_rule("socket", IN_DAEMON);
    const char *socket = variable("INFERD_SOCKET"), *state = variable("STATE_DIRECTORY");
    if (socket != NULL && c->action == CONFIG_SERVE && c->inspect_path == NULL) {
        struct config_origin origin = {"INFERD_SOCKET", 0};
        int r = config_store(p, rule, c, false, socket, &origin);
        if (r < 0)
            return r;
        c->origins[rule - config_rules] = origin;
    }
    rule = config_find_rule("state-directory", IN_DAEMON);
    if (state != NULL && c->state_directory == NULL) { /* systemd may name several */
        c->state_directory = config_keep(p, state, strcspn(state, ":"));
        c->origins[rule - config_rules] = (struct config_origin){"STATE_DIRECTORY", 0};
        return c->state_directory != NULL ? 0 : -INFER_E_OUT_OF_MEMORY;
    }
    return 0;
}

static const struct config_origin *origin_of(const struct config *c, const char *name)
{
    return &c->origins[config_find_rule(name, IN_DAEMON) - config_rules];
}

/* What only makes sense together. */
static int check_together(struct parser *p)
{
    const struct config *c = &p->config;
    if (c->slow_reader_timeout_s < c->slow_reader_preempt_s) {
        const struct config_origin *origin = origin_of(c, "slow-reader-timeout");
        if (origin->where == NULL)
            origin = origin_of(c, "slow-reader-preempt");
        return config_fail(p, origin,
                           "slow-reader-timeout: %us is less than slow-reader-preempt, %us",
                           c->slow_reader_timeout_s, c->slow_reader_preempt_s);
    }
    if (c->swap_file_bytes != 0 && c->state_directory == NULL)
        return config_fail(p, origin_of(c, "swap-file"),
                           "swap-file: there is no state directory; give a state-directory, too");
    if (c->metrics_socket[0] != '\0' && strcmp(c->metrics_socket, c->socket) == 0)
        return config_fail(p, origin_of(c, "metrics-socket"),
                           "metrics-socket: it is the same path as socket");
    if (c->newcomer_slots != CONFIG_NEWCOMERS_NONE && c->newcomer_slots > c->parallel)
        return config_fail(p, origin_of(c, "newcomer-slots"),
                           "newcomer-slots: %u is more than parallel, %u", c->newcomer_slots,
                           c->parallel);
    return 0;
}

static int settle_inspection(struct parser *p)
{
    struct config *c = &p->config;
    c->action = p->tokenize ? CONFIG_TOKENIZE : CONFIG_INSPECT;
    if (p->serve_option != NULL)
        return report_fail(p->report, INFER_E_INVALID,
                           "--inspect serves nothing, so --%s has no place beside it",
                           p->serve_option);
    if (p->check)
        return report_fail(p->report, INFER_E_INVALID,
                           "--inspect serves nothing, so --check-config has no place beside it");
    return 0;
}

static int settle(struct parser *p)
{
    struct config *c = &p->config;
    int r = 0;
    if (c->inspect_path != NULL)
        return settle_inspection(p);
    if (p->tokenize)
        return report_fail(p->report, INFER_E_INVALID, "--tokenize needs --inspect FILE");
    if (c->no_escape)
        return report_fail(p->report, INFER_E_INVALID, "--no-escape needs --tokenize");
    for (uint32_t i = 0; i < c->n_models && r == 0; i++)
        r = settle_model(p, &c->models[i]);
    if (r == 0)
        r = settle_policies(p);
    if (r < 0)
        return r;
    if (c->n_models == 0 && c->n_model_directories == 0)
        return report_fail(p->report, INFER_E_INVALID,
                           "no model is given; say which with --model FILE.gguf");
    if (c->socket[0] == '\0')
        r = config_default_socket(getenv("XDG_RUNTIME_DIR"), geteuid() == 0, c->socket, p->report);
    if (r == 0)
        r = check_together(p);
    if (p->check)
        c->action = CONFIG_CHECK;
    for (uint32_t i = 0; p->check && i < c->n_models && r == 0; i++)
        r = check_model_file(p, &c->models[i]);
    return r;
}

static int set_defaults(struct parser *p)
{
    static const struct config_origin origin = {NULL, 0};
    for (size_t i = 0; i < config_n_rules; i++) {
        const struct config_rule *rule = &config_rules[i];
        if (rule->fallback == NULL || (rule->flags & IN_DAEMON) == 0)
            continue;
        int r = config_store(p, rule, &p->config, false, rule->fallback, &origin);
        if (r < 0)
            return r;
    }
    return 0;
}

static int parse_all(struct parser *p, int argc, char **argv, struct given *list)
{
    size_t n = 0;
    int r = set_defaults(p);
    if (r == 0)
        r = collect_options(p, argc, argv, list, &n);
    if (r < 0 || p->config.action != CONFIG_SERVE)
        return r;
    if (p->config.inspect_path == NULL || p->config_path != NULL)
        r = config_read_files(p);
    if (r == 0)
        r = take_environment(p);
    if (r == 0)
        r = apply(p, list, n);
    return r < 0 ? r : settle(p);
}

int config_parse(int argc, char **argv, struct config *ret, struct report *report)
{
    struct given *list = calloc((size_t)argc + 1, sizeof *list);
    struct parser *p = calloc(1, sizeof *p); /* large: the models' table */
    int r = -INFER_E_OUT_OF_MEMORY;
    if (list == NULL || p == NULL) {
        report_fail(report, INFER_E_OUT_OF_MEMORY, "no memory for the configuration");
    } else {
        p->report = report;
        r = parse_all(p, argc, argv, list);
        if (r == 0)
            *ret = p->config;
        else
            config_done(&p->config);
    }
    free(list);
    free(p);
    return r;
}
