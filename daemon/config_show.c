/* config_show.c: what is printed of the configuration: the help, what is in force, and the
 * completions of the shells. All of it follows from the table of settings. */
#include "config_internal.h"

#include "policy.h"

#include <string.h>

#define HELP_COLUMN 29
#define HELP_WIDTH  88

/* ---- help ------------------------------------------------------------------------------------ */

static void put_indented(FILE *out, const char *text)
{
    for (const char *c = text; *c != '\0'; c++)
        if (*c == '\n')
            fprintf(out, "\n%*s", HELP_COLUMN, "");
        else
            fputc(*c, out);
}

/* After the help's last line, or below it when that would become longer than a terminal is wide. */
static void put_default(FILE *out, const struct config_rule *rule)
{
    const char *value = rule->fallback != NULL ? rule->fallback : "";
    const char *remark = rule->remark != NULL ? rule->remark : "";
    const char *last = strrchr(rule->help, '\n');
    char text[200];
    if (value[0] == '\0' && remark[0] == '\0')
        return;
    snprintf(text, sizeof text, "(default: %s%s%s)", value, value[0] && remark[0] ? ", " : "",
             remark);
    size_t used = strlen(last != NULL ? last + 1 : rule->help);
    bool fits = HELP_COLUMN + used + 1 + strcspn(text, "\n") <= HELP_WIDTH;
    put_indented(out, fits ? " " : "\n");
    put_indented(out, text);
}

void config_help(FILE *out)
{
    fputs("Usage: inferd --model [NAME=]FILE [OPTION...]\n"
          "       inferd --check-config [OPTION...]\n"
          "       inferd --inspect FILE [--tokenize]\n"
          "Serves language models to local programs through shared memory.\n\n",
          out);
    for (size_t i = 0; i < config_n_rules; i++) {
        const struct config_rule *rule = &config_rules[i];
        char head[64];
        if ((rule->flags & IN_COMMAND) == 0)
            continue;
        snprintf(head, sizeof head, "--%s%s%s", rule->name, rule->argument ? " " : "",
                 rule->argument ? rule->argument : "");
        fprintf(out, "  %-26s ", head);
        put_indented(out, rule->help);
        put_default(out, rule);
        fputc('\n', out);
    }
    fputs("TIME: 90s, 5m, 4h, 2d. SIZE: 512M, 4G. Options but the commands are keys of\n"
          "inferd.conf(5). Stop it with SIGTERM or Ctrl-C. See inferd(8) for more.\n",
          out);
}

/* ---- what is in force ------------------------------------------------------------------------ */

static void put_pair(FILE *out, const char *key, const char *value,
                     const struct config_origin *origin, bool reloads)
{
    int n = fprintf(out, "%s = %s", key, value);
    fprintf(out, "%*s # ", n < 40 ? 40 - n : 0, "");
    if (origin->where == NULL)
        fputs("default", out);
    else if (origin->line != 0)
        fprintf(out, "%s:%u", origin->where, origin->line);
    else
        fputs(origin->where, out);
    fputs(reloads ? ", reloads\n" : "\n", out);
}

static void show_daemon(const struct config *c, FILE *out)
{
    char room[64];
    fputs("[daemon]\n", out);
    for (size_t i = 0; i < config_n_rules; i++) {
        const struct config_rule *rule = &config_rules[i];
        if ((rule->flags & IN_DAEMON) == 0)
            continue;
        bool reloads = (rule->flags & RELOADS) != 0;
        if (rule->kind == KIND_FOLDERS) {
            for (uint32_t k = 0; k < c->n_model_directories; k++)
                put_pair(out, rule->name, c->model_directories[k], &c->origins[i], reloads);
            continue;
        }
        const char *value = config_value(rule, c, false, room, sizeof room);
        if (value[0] != '\0')
            put_pair(out, rule->name, value, &c->origins[i], reloads);
    }
}

static void show_model(const struct config *c, const struct config_model *m, FILE *out)
{
    char room[64];
    fprintf(out, "\n[model %s]\n", m->name);
    for (size_t i = 0; i < config_n_rules; i++) {
        const struct config_rule *rule = &config_rules[i];
        if ((rule->flags & IN_MODEL) == 0)
            continue;
        const struct config_origin *origin = &m->origins[i];
        if (origin->where == NULL && (rule->flags & IN_DAEMON) != 0)
            origin = &c->origins[i];
        put_pair(out, rule->name, config_value(rule, m, true, room, sizeof room), origin, true);
    }
}

void config_show(const struct config *c, FILE *out)
{
    show_daemon(c, out);
    for (uint32_t i = 0; i < c->n_models; i++)
        show_model(c, &c->models[i], out);
    for (uint32_t i = 0; i < c->n_users; i++) {
        const struct config_user *u = &c->users[i];
        fprintf(out, "\n[user %s]\n", u->who);
        for (unsigned k = 0; k < POLICY_KEYS; k++)
            if (u->values[k] != NULL)
                put_pair(out, policy_key(k), u->values[k], &u->origins[k], true);
    }
}

/* ---- what differs ---------------------------------------------------------------------------- */

struct comparison {
    void (*differs)(void *ctx, const char *name, bool reloads);
    void *ctx;
    uint32_t n;
};

static void differ(struct comparison *d, const char *name, bool reloads)
{
    d->n++;
    d->differs(d->ctx, name, reloads);
}

static bool same_folders(const struct config *a, const struct config *b)
{
    if (a->n_model_directories != b->n_model_directories)
        return false;
    for (uint32_t i = 0; i < a->n_model_directories; i++)
        if (strcmp(a->model_directories[i], b->model_directories[i]) != 0)
            return false;
    return true;
}

static bool same_value(const struct config_rule *rule, const void *a, const void *b, bool of_model)
{
    char room_a[64], room_b[64];
    if (rule->kind == KIND_FOLDERS)
        return same_folders(a, b);
    return strcmp(config_value(rule, a, of_model, room_a, sizeof room_a),
                  config_value(rule, b, of_model, room_b, sizeof room_b)) == 0;
}

static const struct config_model *named(const struct config *c, const char *name)
{
    for (uint32_t i = 0; i < c->n_models; i++)
        if (strcmp(c->models[i].name, name) == 0)
            return &c->models[i];
    return NULL;
}

/* What a model has of its own takes effect when it is loaded next, which needs no new start. */
static void compare_models(struct comparison *d, const struct config *now,
                           const struct config *next)
{
    char name[INFER_MODEL_NAME_MAX + 64];
    for (uint32_t i = 0; i < now->n_models; i++) {
        const struct config_model *a = &now->models[i], *b = named(next, a->name);
        for (size_t k = 0; b != NULL && k < config_n_rules; k++)
            if ((config_rules[k].flags & IN_MODEL) != 0 &&
                !same_value(&config_rules[k], a, b, true)) {
                snprintf(name, sizeof name, "model %s: %s", a->name, config_rules[k].name);
                differ(d, name, true);
            }
        snprintf(name, sizeof name, "model %s: gone", a->name);
        if (b == NULL)
            differ(d, name, true);
    }
    for (uint32_t i = 0; i < next->n_models; i++) {
        snprintf(name, sizeof name, "model %s: new", next->models[i].name);
        if (named(now, next->models[i].name) == NULL)
            differ(d, name, true);
    }
}

uint32_t config_compare(const struct config *now, const struct config *next,
                        void (*differs)(void *ctx, const char *name, bool reloads), void *ctx)
{
    struct comparison d = {.differs = differs, .ctx = ctx};
    bool policies = now->n_policies == next->n_policies;
    for (size_t i = 0; i < config_n_rules; i++)
        if ((config_rules[i].flags & IN_DAEMON) != 0 &&
            !same_value(&config_rules[i], now, next, false))
            differ(&d, config_rules[i].name, (config_rules[i].flags & RELOADS) != 0);
    compare_models(&d, now, next);
    for (uint32_t i = 0; policies && i < now->n_policies; i++)
        policies = strcmp(now->policies[i], next->policies[i]) == 0;
    if (!policies)
        differ(&d, "policy", true);
    return d.n;
}

/* ---- completions ----------------------------------------------------------------------------- */

/* The words that can follow an option, "FILE" or "DIR" for the shell to find them, NULL: none. */
static const char *words_of(const struct config_rule *rule, char *room, size_t bytes)
{
    size_t n = 0;
    room[0] = '\0';
    if (rule->choices != NULL)
        for (const struct config_choice *c = rule->choices; c->word != NULL && n < bytes; c++)
            n += (size_t)snprintf(room + n, bytes - n, "%s%s", n ? " " : "", c->word);
    else if (strcmp(rule->name, "completion") == 0)
        return "bash zsh";
    else if (strcmp(rule->name, "backend") == 0)
        return "cpu ref null";
    else if (rule->kind == KIND_FOLDERS || (rule->argument && strcmp(rule->argument, "DIR") == 0))
        return "DIR";
    else if (rule->argument != NULL &&
             (strstr(rule->argument, "FILE") != NULL || strcmp(rule->argument, "PATH") == 0))
        return "FILE";
    return room[0] != '\0' ? room : NULL;
}

static void complete_bash(FILE *out)
{
    char room[256];
    fputs("# Completion of inferd(8) for bash, made by inferd --completion bash.\n"
          "_inferd() {\n"
          "    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]}\n"
          "    COMPREPLY=()\n"
          "    case $before in\n",
          out);
    for (size_t i = 0; i < config_n_rules; i++) {
        const struct config_rule *rule = &config_rules[i];
        const char *words = words_of(rule, room, sizeof room);
        if ((rule->flags & IN_COMMAND) == 0 || rule->argument == NULL)
            continue;
        fprintf(out, "    --%s)\n", rule->name);
        if (words != NULL && strcmp(words, "FILE") == 0)
            fputs("        mapfile -t COMPREPLY < <(compgen -f -- \"$word\")\n", out);
        else if (words != NULL && strcmp(words, "DIR") == 0)
            fputs("        mapfile -t COMPREPLY < <(compgen -d -- \"$word\")\n", out);
        else if (words != NULL)
            fprintf(out, "        mapfile -t COMPREPLY < <(compgen -W '%s' -- \"$word\")\n", words);
        fputs("        return\n        ;;\n", out);
    }
    fputs("    esac\n    mapfile -t COMPREPLY < <(compgen -W '", out);
    for (size_t i = 0; i < config_n_rules; i++)
        if ((config_rules[i].flags & IN_COMMAND) != 0)
            fprintf(out, "%s--%s", i ? " " : "", config_rules[i].name);
    fputs("' -- \"$word\")\n}\ncomplete -o filenames -F _inferd inferd\n", out);
}

/* A text inside of a zsh _arguments specification in single quotes. */
static void put_zsh(FILE *out, const char *text)
{
    for (const char *c = text; *c != '\0'; c++)
        if (*c == '\'')
            fputs("'\\''", out);
        else if (*c == '\n')
            fputc(' ', out);
        else {
            if (strchr("[]:\\", *c) != NULL)
                fputc('\\', out);
            fputc(*c, out);
        }
}

static void complete_zsh(FILE *out)
{
    char room[256];
    fputs("#compdef inferd\n# Completion of inferd(8) for zsh, made by inferd --completion zsh.\n"
          "_arguments",
          out);
    for (size_t i = 0; i < config_n_rules; i++) {
        const struct config_rule *rule = &config_rules[i];
        const char *words = words_of(rule, room, sizeof room);
        if ((rule->flags & IN_COMMAND) == 0)
            continue;
        bool repeats = strstr(rule->help, "repeated") != NULL;
        fprintf(out, " \\\n    '%s--%s[", repeats ? "*" : "", rule->name);
        put_zsh(out, rule->help);
        fputc(']', out);
        if (rule->argument != NULL) {
            fputc(':', out);
            put_zsh(out, rule->argument);
            fputc(':', out);
            if (words != NULL && strcmp(words, "FILE") == 0)
                fputs("_files", out);
            else if (words != NULL && strcmp(words, "DIR") == 0)
                fputs("_files -/", out);
            else if (words != NULL)
                fprintf(out, "(%s)", words);
        }
        fputc('\'', out);
    }
    fputc('\n', out);
}

void config_complete(const char *shell, FILE *out)
{
    if (strcmp(shell, "zsh") == 0)
        complete_zsh(out);
    else
        complete_bash(out);
}
