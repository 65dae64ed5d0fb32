/* config_internal.h: what the files of the configuration share: the table of settings
 * (config_options.c), the reader of files (config_file.c), the command line and what all of it
 * means together (config.c), and what is printed (config_show.c). */
#ifndef INFERD_CONFIG_INTERNAL_H
#define INFERD_CONFIG_INTERNAL_H

#include "config.h"

struct parser {
    struct config config;
    struct report *report;
    bool tokenize, check;
    const char *serve_option; /* the first option that only serving has */
    const char *config_path;  /* --config; NULL: where they are by default */
    uint32_t n_given;         /* models of --model: the first of config.models */
    uint32_t n_files;         /* that were read */
    const char *files[64];    /* their names, for remarks; further ones are not named */
};

enum config_kind {
    KIND_COMMAND, /* take() does it */
    KIND_NUMBER,  /* uint32_t, min .. max */
    KIND_SECONDS, /* the same, with a unit */
    KIND_SIZE,    /* uint64_t */
    KIND_CHOICE,  /* 32 bits, a word of `choices` */
    KIND_YES,     /* bool, yes or no */
    KIND_WORD,    /* const char *, letters of `letters`, not empty */
    KIND_TEXT,    /* const char * */
    KIND_PATH,    /* const char *, not empty; absolute in a file */
    KIND_FOLDERS, /* config.model_directories */
    KIND_SOCKET,  /* char[CONFIG_SOCKET_MAX] */
};

enum config_flags {
    IN_COMMAND = 1,  /* an option of the command line */
    IN_DAEMON = 2,   /* a key of [daemon] */
    IN_MODEL = 4,    /* a key of [model ...] */
    RELOADS = 8,     /* SIGHUP makes it take effect while streams run */
    ONLY_SERVES = 16 /* has no place beside --inspect */
};

struct config_choice {
    const char *word;
    uint32_t value;
};

struct config_rule {
    const char *name;
    const char *argument; /* NULL: none */
    enum config_kind kind;
    unsigned flags;
    size_t offset, model_offset; /* in struct config, in struct config_model */
    uint64_t min, max;
    const struct config_choice *choices; /* ends with NULL; of a number: words beside it */
    const char *what;                    /* WORD: "... is not WHAT" */
    const char *letters;
    const char *fallback; /* the default as text; NULL: none, settle() sees to it */
    const char *remark;   /* what the default means, or is, where the text does not tell */
    const char *help;     /* '\n': next line, indented by config_help() */
    int (*take)(struct parser *p, const struct config_rule *rule, const char *value);
};

extern const struct config_rule config_rules[];
extern const size_t config_n_rules;

/* By name among those with one of the flags; NULL. */
const struct config_rule *config_find_rule(const char *name, unsigned flags);

/* Sets what the rule says at `to` (a struct config, or a struct config_model when of_model). Fails
 * with a sentence that begins with "NAME: " after the origin. Keeps the string. */
int config_store(struct parser *p, const struct config_rule *rule, void *to, bool of_model,
                 const char *value, const struct config_origin *origin);
size_t config_kind_size(enum config_kind kind);
/* The value as config_store() would take it; `from` as there. */
const char *config_value(const struct config_rule *rule, const void *from, bool of_model,
                         char *room, size_t bytes);

/* -INVALID. "FILE:LINE: " or, of the command line, "--" comes first. */
int config_fail(struct parser *p, const struct config_origin *origin, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
extern const char config_command_line[]; /* an origin's where */

/* A copy that lives as long as the configuration; NULL: no memory, reported. */
const char *config_keep(struct parser *p, const char *text, size_t n);

/* Reads inferd.conf and its drop-ins, or what --config names. */
int config_read_files(struct parser *p);

/* Finds a user's entry or makes one. */
int config_user_at(struct parser *p, const char *who, const struct config_origin *origin,
                   struct config_user **ret);
/* A model's entry of this name (n bytes), or NULL. */
struct config_model *config_model_named(struct config *c, const char *name, size_t n);
/* A new entry before config.models[at]. */
int config_insert_model(struct parser *p, uint32_t at, const char *name, size_t n,
                        const struct config_origin *origin, struct config_model **ret);

/* The commands (config.c). */
int config_take_model(struct parser *p, const struct config_rule *rule, const char *value);
int config_take_policy(struct parser *p, const struct config_rule *rule, const char *value);
int config_take_command(struct parser *p, const struct config_rule *rule, const char *value);

#endif
