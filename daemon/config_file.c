/* config_file.c: inferd.conf and its drop-ins.
 *
 * The form, line by line: blank; a remark after '#' or ';'; "[section]"; "KEY = VALUE", where
 * blanks around both do not count and a '#' after a blank begins a remark. There is no quoting, no
 * line goes on in the next, and nothing is cut: what is too long, doubled or unknown is an error
 * with file and line, because a service that starts with half of what it was told is worse than one
 * that does not start. (libinih was looked at: it cuts names of sections at 49
 * bytes and lines at 199, takes an indented key for more of the value before it, does not tell of a
 * section without keys, and its callback knows no line.)
 *
 * Which files. The folder is CONFIGURATION_DIRECTORY, for root /etc/inferd, for others
 * $XDG_CONFIG_HOME/inferd or ~/.config/inferd. inferd.conf is read there, then
 * inferd.conf.d/NAME.conf in the order of the names. For /etc/inferd also /run/inferd/inferd.conf.d
 * and /usr/lib/inferd/inferd.conf.d are looked at; of files of one name the first in the order
 * /etc, /run, /usr/lib is read, and a link to /dev/null hides those after it.
 *
 * SECURITY. Who writes these files decides what the daemon opens and who may use it. So a file must
 * belong to root or to the daemon's user and be writable by nobody else. It is opened once and what
 * was opened is looked at.
 *
 * Limits: CONFIG_FILE_BYTES_MAX a file, LINE_BYTES_MAX a line, DROPINS_MAX drop-ins. */
#include "config_internal.h"

#include "policy.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define CONFIG_FILE_BYTES_MAX (1u << 20)
#define LINE_BYTES_MAX        4096u
#define DROPINS_MAX           256u
#define BLANKS                " \t\r\v\f"

enum section { SECTION_NONE, SECTION_DAEMON, SECTION_MODEL, SECTION_USER };

/* One file while it is read. */
struct reading {
    struct parser *p;
    struct config_origin at;
    enum section section;
    struct config_model *model;
    struct config_user *user;
    /* Lines of this file where a section began, and of the present section where a key stands. */
    uint32_t daemon_line, model_lines[INFER_MODELS_MAX], user_lines[CONFIG_POLICIES_MAX];
    uint32_t key_lines[CONFIG_SETTINGS_MAX];
};

/* ---- sections -------------------------------------------------------------------------------- */

static int begin_section(struct reading *r, enum section kind, uint32_t *first_line,
                         const char *text)
{
    if (*first_line != 0)
        return config_fail(r->p, &r->at, "[%.80s] began in line %u already; write both into one",
                           text, *first_line);
    *first_line = r->at.line;
    r->section = kind;
    memset(r->key_lines, 0, sizeof r->key_lines);
    return 0;
}

static int begin_model(struct reading *r, const char *name, const char *text)
{
    struct config *c = &r->p->config;
    size_t n = strlen(name);
    if (!config_is_model_name(name, n))
        return config_fail(r->p, &r->at, "[%.80s]: a model's name has 1 to %u of A-Z a-z 0-9 . _ -",
                           text, INFER_MODEL_NAME_MAX - 1);
    r->model = config_model_named(c, name, n);
    if (r->model == NULL) {
        int rc = config_insert_model(r->p, c->n_models, name, n, &r->at, &r->model);
        if (rc < 0)
            return rc;
    }
    return begin_section(r, SECTION_MODEL, &r->model_lines[r->model - c->models], text);
}

static int begin_user(struct reading *r, const char *name, const char *text)
{
    struct config *c = &r->p->config;
    int rc = config_user_at(r->p, name, &r->at, &r->user);
    if (rc < 0)
        return rc;
    return begin_section(r, SECTION_USER, &r->user_lines[r->user - c->users], text);
}

/* The text between the brackets. */
static int take_section(struct reading *r, char *text)
{
    size_t n = strcspn(text, BLANKS);
    char *name = text + n + strspn(text + n, BLANKS);
    if (strcmp(text, "daemon") == 0)
        return begin_section(r, SECTION_DAEMON, &r->daemon_line, text);
    if (n == 5 && memcmp(text, "model", 5) == 0 && name[0] != '\0')
        return begin_model(r, name, text);
    if (n == 4 && memcmp(text, "user", 4) == 0 && name[0] != '\0')
        return begin_user(r, name, text);
    return config_fail(r->p, &r->at,
                       "[%.80s] is none of [daemon], [model NAME], [user NAME], [user UID], "
                       "[user *]",
                       text);
}

/* ---- keys ------------------------------------------------------------------------------------ */

static int doubled(struct reading *r, const char *key, uint32_t line)
{
    return config_fail(r->p, &r->at, "%s: it is set in line %u already", key, line);
}

/* "'spinus' is no key of [daemon]; it has a, b, c". */
static int unknown_key(struct reading *r, const char *key)
{
    static const char *const names[] = {"", "[daemon]", "[model]", "[user]"};
    char list[INFER_DETAIL_MAX] = "";
    size_t n = 0;
    unsigned flag = r->section == SECTION_DAEMON ? IN_DAEMON : IN_MODEL;
    if (r->section == SECTION_USER) {
        for (unsigned i = 0; i < POLICY_KEYS; i++)
            n += (size_t)snprintf(list + n, sizeof list - n, "%s%s", n ? ", " : "", policy_key(i));
    } else {
        for (size_t i = 0; i < config_n_rules; i++)
            if ((config_rules[i].flags & flag) != 0 && n < sizeof list)
                n += (size_t)snprintf(list + n, sizeof list - n, "%s%s", n ? ", " : "",
                                      config_rules[i].name);
    }
    const struct config_rule *other = config_find_rule(key, IN_DAEMON | IN_MODEL);
    if (other != NULL)
        return config_fail(r->p, &r->at, "'%.64s' belongs into [%s], not into %s", key,
                           (other->flags & IN_DAEMON) != 0 ? "daemon" : "model NAME",
                           names[r->section]);
    return config_fail(r->p, &r->at, "'%.64s' is no key of %s; it has %s", key, names[r->section],
                       list);
}

static int take_user_key(struct reading *r, const char *key, const char *value)
{
    struct policy scratch = {0};
    struct report why = {0};
    unsigned i = 0;
    while (i < POLICY_KEYS && strcmp(policy_key(i), key) != 0)
        i++;
    if (i == POLICY_KEYS)
        return unknown_key(r, key);
    if (r->key_lines[i] != 0)
        return doubled(r, key, r->key_lines[i]);
    if (strlen(value) >= POLICY_VALUE_MAX)
        return config_fail(r->p, &r->at, "%s: the value is too long", key);
    if (policy_set(key, value, &scratch, &why) < 0)
        return config_fail(r->p, &r->at, "%s", why.text);
    r->key_lines[i] = r->at.line;
    r->user->values[i] = config_keep(r->p, value, strlen(value));
    r->user->origins[i] = r->at;
    return r->user->values[i] != NULL ? 0 : -INFER_E_OUT_OF_MEMORY;
}

static int take_rule_key(struct reading *r, const char *key, const char *value)
{
    bool of_model = r->section == SECTION_MODEL;
    const struct config_rule *rule = config_find_rule(key, of_model ? IN_MODEL : IN_DAEMON);
    if (rule == NULL)
        return unknown_key(r, key);
    size_t i = (size_t)(rule - config_rules);
    if (r->key_lines[i] != 0 && rule->kind != KIND_FOLDERS)
        return doubled(r, key, r->key_lines[i]);
    const char *kept = config_keep(r->p, value, strlen(value));
    if (kept == NULL)
        return -INFER_E_OUT_OF_MEMORY;
    void *to = of_model ? (void *)r->model : (void *)&r->p->config;
    int rc = config_store(r->p, rule, to, of_model, kept, &r->at);
    if (rc < 0)
        return rc;
    r->key_lines[i] = r->at.line;
    *(of_model ? &r->model->origins[i] : &r->p->config.origins[i]) = r->at;
    return 0;
}

/* ---- lines ----------------------------------------------------------------------------------- */

static char *trim(char *text)
{
    text += strspn(text, BLANKS);
    size_t n = strlen(text);
    while (n > 0 && strchr(BLANKS, text[n - 1]) != NULL)
        text[--n] = '\0';
    return text;
}

/* Ends the text where a remark begins. */
static void cut_remark(char *text)
{
    for (char *at = text; (at = strchr(at, '#')) != NULL; at++)
        if (at > text && strchr(BLANKS, at[-1]) != NULL) {
            *at = '\0';
            return;
        }
}

static int take_line(struct reading *r, char *line)
{
    char *text = trim(line);
    if (text[0] == '\0' || text[0] == '#' || text[0] == ';')
        return 0;
    cut_remark(text);
    text = trim(text);
    size_t n = strlen(text);
    if (text[0] == '[') {
        if (text[n - 1] != ']')
            return config_fail(r->p, &r->at, "'%.80s' lacks its ']'", text);
        text[n - 1] = '\0';
        return take_section(r, trim(text + 1));
    }
    char *value = strchr(text, '=');
    if (value == NULL)
        return config_fail(r->p, &r->at, "'%.80s' is neither [SECTION] nor KEY = VALUE", text);
    *value++ = '\0';
    char *key = trim(text);
    if (r->section == SECTION_NONE)
        return config_fail(r->p, &r->at, "'%.64s' stands before any section; begin with [daemon]",
                           key);
    return r->section == SECTION_USER ? take_user_key(r, key, trim(value))
                                      : take_rule_key(r, key, trim(value));
}

static int take_text(struct reading *r, char *text, size_t bytes)
{
    for (size_t from = 0; from < bytes;) {
        char *end = memchr(text + from, '\n', bytes - from);
        size_t n = end != NULL ? (size_t)(end - text) - from : bytes - from;
        r->at.line++;
        if (n >= LINE_BYTES_MAX)
            return config_fail(r->p, &r->at, "the line is longer than %u bytes",
                               LINE_BYTES_MAX - 1);
        if (memchr(text + from, '\0', n) != NULL)
            return config_fail(r->p, &r->at, "the line holds a zero byte; this is no text");
        text[from + n] = '\0'; /* the newline, or the byte after the end */
        int rc = take_line(r, text + from);
        if (rc < 0)
            return rc;
        from += n + 1;
    }
    return 0;
}

/* ---- files ----------------------------------------------------------------------------------- */

static int fail_file(struct parser *p, const char *path, const char *why)
{
    return report_fail(p->report, INFER_E_INVALID, "%.200s: %s", path, why);
}

/* 1: nothing to read in it, a link to /dev/null. */
static int check_file(struct parser *p, const char *path, int fd, size_t *ret_bytes)
{
    struct stat st;
    if (fstat(fd, &st) < 0)
        return fail_file(p, path, strerror(errno));
    if (S_ISCHR(st.st_mode) && st.st_rdev == makedev(1, 3))
        return 1;
    if (!S_ISREG(st.st_mode))
        return fail_file(p, path, "not a regular file");
    if (st.st_uid != 0 && st.st_uid != geteuid())
        return report_fail(p->report, INFER_E_INVALID,
                           "%.200s: it belongs to user %u; only root's or the daemon's own is read",
                           path, (unsigned)st.st_uid);
    if ((st.st_mode & (S_IWGRP | S_IWOTH)) != 0)
        return report_fail(p->report, INFER_E_INVALID,
                           "%.200s: it can be written by others; run: chmod go-w %.200s", path,
                           path);
    if (st.st_size > CONFIG_FILE_BYTES_MAX)
        return fail_file(p, path, "it is larger than 1 MiB");
    *ret_bytes = (size_t)st.st_size;
    return 0;
}

/* Up to `bytes`; a file that shrank gives less. */
static ssize_t read_all(int fd, char *to, size_t bytes)
{
    size_t n = 0;
    while (n < bytes) {
        ssize_t got = read(fd, to + n, bytes - n);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return -errno;
        if (got == 0)
            break;
        n += (size_t)got;
    }
    return (ssize_t)n;
}

static int read_opened(struct parser *p, const char *path, int fd)
{
    size_t bytes = 0;
    int rc = check_file(p, path, fd, &bytes);
    if (rc != 0)
        return rc < 0 ? rc : 0;
    struct reading *r = calloc(1, sizeof *r);
    char *text = malloc(bytes + 1);
    const char *name = config_keep(p, path, strlen(path));
    rc = -INFER_E_OUT_OF_MEMORY;
    if (r == NULL || text == NULL || name == NULL) {
        report_fail(p->report, INFER_E_OUT_OF_MEMORY, "no memory for %.200s", path);
    } else {
        ssize_t got = read_all(fd, text, bytes);
        r->p = p;
        r->at.where = name;
        if (p->n_files < sizeof p->files / sizeof p->files[0])
            p->files[p->n_files++] = name;
        rc = got < 0 ? fail_file(p, path, strerror((int)-got)) : take_text(r, text, (size_t)got);
    }
    free(text);
    free(r);
    return rc;
}

static int read_file(struct parser *p, const char *path, bool required)
{
    /* Not blocked by a FIFO that somebody put there. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (fd < 0 && !required && (errno == ENOENT || errno == ENOTDIR))
        return 0;
    if (fd < 0)
        return fail_file(p, path, strerror(errno));
    int rc = read_opened(p, path, fd);
    close(fd);
    return rc;
}

/* ---- drop-ins -------------------------------------------------------------------------------- */

struct dropin {
    char name[NAME_MAX + 1];
    const char *folder;
};

struct dropins {
    struct dropin *list;
    uint32_t n;
};

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct dropin *)a)->name, ((const struct dropin *)b)->name);
}

static int add_dropin(struct parser *p, struct dropins *all, const char *folder, const char *name)
{
    size_t n = strlen(name);
    if (name[0] == '.' || n < 6 || strcmp(name + n - 5, ".conf") != 0)
        return 0;
    for (uint32_t i = 0; i < all->n; i++)
        if (strcmp(all->list[i].name, name) == 0)
            return 0; /* a stronger folder has it */
    if (all->n == DROPINS_MAX)
        return report_fail(p->report, INFER_E_INVALID, "%.200s: more than %u drop-ins", folder,
                           DROPINS_MAX);
    strcpy(all->list[all->n].name, name);
    all->list[all->n++].folder = folder;
    return 0;
}

static int list_folder(struct parser *p, struct dropins *all, const char *folder)
{
    DIR *dir = opendir(folder);
    int rc = 0;
    if (dir == NULL)
        return errno == ENOENT || errno == ENOTDIR ? 0 : fail_file(p, folder, strerror(errno));
    for (const struct dirent *e; rc == 0 && (errno = 0, e = readdir(dir)) != NULL;)
        rc = add_dropin(p, all, folder, e->d_name);
    if (rc == 0 && errno != 0)
        rc = fail_file(p, folder, strerror(errno));
    closedir(dir);
    return rc;
}

/* The strongest folder first. */
static int read_dropins(struct parser *p, const char *const *folders, size_t n_folders)
{
    struct dropins all = {.list = calloc(DROPINS_MAX, sizeof *all.list)};
    char path[PATH_MAX];
    int rc = 0;
    if (all.list == NULL)
        return report_fail(p->report, INFER_E_OUT_OF_MEMORY, "no memory for the configuration");
    for (size_t i = 0; i < n_folders && rc == 0; i++)
        rc = list_folder(p, &all, folders[i]);
    qsort(all.list, all.n, sizeof *all.list, by_name);
    for (uint32_t i = 0; i < all.n && rc == 0; i++) {
        int n = snprintf(path, sizeof path, "%s/%s", all.list[i].folder, all.list[i].name);
        rc = n < 0 || (size_t)n >= sizeof path ? fail_file(p, path, "the path is too long")
                                               : read_file(p, path, false);
    }
    free(all.list);
    return rc;
}

static bool join(char ret[PATH_MAX], const char *folder, const char *name)
{
    int n = snprintf(ret, PATH_MAX, "%s%s", folder, name);
    return n > 0 && n < PATH_MAX;
}

/* The folder of inferd.conf; false: there is none (a user without a home). */
static bool own_folder(char ret[PATH_MAX])
{
    const char *given = getenv("CONFIGURATION_DIRECTORY"), *home = getenv("HOME");
    const char *config_home = getenv("XDG_CONFIG_HOME");
    if (given != NULL && given[0] == '/') {
        int n = snprintf(ret, PATH_MAX, "%.*s", (int)strcspn(given, ":"), given);
        return n < PATH_MAX;
    }
    if (geteuid() == 0)
        return join(ret, "/etc", "/inferd");
    if (config_home != NULL && config_home[0] == '/')
        return join(ret, config_home, "/inferd");
    return home != NULL && home[0] == '/' && join(ret, home, "/.config/inferd");
}

int config_read_files(struct parser *p)
{
    char folder[PATH_MAX], path[PATH_MAX], own[PATH_MAX];
    const char *folders[] = {own, "/run/inferd/inferd.conf.d", "/usr/lib/inferd/inferd.conf.d"};
    bool given = p->config_path != NULL;
    if (given && strcmp(p->config_path, "none") == 0)
        return 0;
    if (!given && !own_folder(folder))
        return 0;
    if (given ? !join(path, p->config_path, "") : !join(path, folder, "/inferd.conf"))
        return fail_file(p, path, "the path is too long");
    if (!join(own, path, ".d"))
        return fail_file(p, path, "the path is too long");
    int rc = read_file(p, path, given);
    bool whole_system = !given && strcmp(folder, "/etc/inferd") == 0;
    return rc < 0 ? rc : read_dropins(p, folders, whole_system ? 3 : 1);
}
