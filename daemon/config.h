/* config.h: what the daemon was told, by its configuration files and its command line, as data.
 *
 * A setting has one name: --NAME on the command line, NAME in the section [daemon] of a file, and
 * those that a model may have of its own also in a section [model ...]. One table holds them all;
 * the parser, --help, --check-config and the shells' completions are made from it.
 *
 * What wins, from the weakest to the strongest: the default; inferd.conf; its drop-ins in the order
 * of their names; INFERD_SOCKET, for the socket alone; the command line. See inferd.conf(5).
 *
 * Reads, besides the files, INFERD_SOCKET, XDG_RUNTIME_DIR, STATE_DIRECTORY, and for where the
 * files are CONFIGURATION_DIRECTORY, XDG_CONFIG_HOME and HOME; asks the user database. Prints
 * nothing but through the FILEs it is given. Threads: one at a time (getopt). */
#ifndef INFERD_CONFIG_H
#define INFERD_CONFIG_H

#include "base/report.h"
#include "inferd/backend.h"
#include "io/loop.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define CONFIG_SOCKET_MAX     108u /* sun_path, with the NUL */
#define CONFIG_THREADS_MAX    1024u
#define CONFIG_CONTEXT_MAX    (1u << 24)
#define CONFIG_SPIN_US_MAX    1000000u
#define CONFIG_POLICIES_MAX   64u
#define CONFIG_PARALLEL_MAX   INFER_STEP_SEQS_MAX
#define CONFIG_FOLDERS_MAX    16u /* model directories */
#define CONFIG_SETTINGS_MAX   64u /* rows of the table */
#define CONFIG_USER_KEYS_MAX  8u  /* of a section [user ...] */
#define CONFIG_NEWCOMERS_NONE UINT32_MAX
#define CONFIG_LAYERS_AUTO    0u
#define CONFIG_LAYERS_ALL     UINT32_MAX
#define CONFIG_SECONDS_MAX    (30u * 86400u)

enum config_action {
    CONFIG_SERVE,
    CONFIG_INSPECT,  /* inspect_path */
    CONFIG_TOKENIZE, /* inspect_path: standard input to token ids */
    CONFIG_CHECK,    /* everything is right: config_show() */
    CONFIG_COMPLETE, /* config_complete() for complete_shell */
    CONFIG_VERSION,
    CONFIG_HELP,
};

/* Where a value comes from. */
struct config_origin {
    const char *where; /* a file, "the command line", a variable's name; NULL: the default */
    uint32_t line;     /* of the file; 0 otherwise */
};

/* What is not set for a model is the daemon's. */
struct config_model {
    char name[INFER_MODEL_NAME_MAX]; /* unique, [A-Za-z0-9._-] */
    const char *path;
    const char *device;
    uint32_t device_layers;
    uint32_t n_context, parallel;
    uint64_t state_memory_bytes;
    uint32_t k_type, v_type;
    uint32_t keep_alive_s;       /* it leaves when unused for so long; 0: it stays */
    bool preload;                /* loaded before the daemon is ready, not on first use */
    bool pin;                    /* never made to leave for another model's sake */
    bool given;                  /* by --model; the files may add to it */
    struct config_origin origin; /* its section, or --model */
    struct config_origin origins[CONFIG_SETTINGS_MAX];
};

/* A section [user ...] or a --policy, key by key, as text for policy_parse(). */
struct config_user {
    char who[64]; /* as given: a name or a uid; "*": everybody else */
    bool is_default;
    uint32_t uid;
    struct config_origin origin;
    const char *values[CONFIG_USER_KEYS_MAX]; /* by policy_key(); NULL: not set */
    struct config_origin origins[CONFIG_USER_KEYS_MAX];
};

struct config_text; /* a string that a file gave */

struct config {
    enum config_action action;
    struct config_model models[INFER_MODELS_MAX]; /* those of --model come first, in its order */
    uint32_t n_models;
    const char *model_directories[CONFIG_FOLDERS_MAX];
    uint32_t n_model_directories;
    char socket[CONFIG_SOCKET_MAX];         /* SERVE: set */
    char metrics_socket[CONFIG_SOCKET_MAX]; /* "": none */
    const char *state_directory;            /* NULL: none */
    const char *backend;                    /* "auto" */
    const char *backend_options;            /* "" */
    const char *model_device;               /* "auto" */
    uint32_t device_layers;                 /* CONFIG_LAYERS_AUTO, _ALL or a number */
    uint32_t threads;                       /* 0: as the machine has cores */
    uint32_t n_context;                     /* 0: the model's own */
    uint32_t parallel;
    uint64_t state_memory_bytes;        /* 0: derived */
    uint64_t memory_limit_bytes;        /* of all models; 0: what the machine has */
    uint64_t device_memory_limit_bytes; /* of all models on one device with its own; 0: likewise */
    uint32_t device_wait_s;             /* for a device that was lost */
    uint32_t read_timeout_s;            /* of a model file that gives no byte */
    uint32_t k_type, v_type;            /* INFER_TYPE_F16, _Q8_0 or _Q4_0 */
    uint32_t keep_alive_s;              /* of models that have none of their own; 0: they stay */
    uint64_t swap_memory_bytes;         /* 0: a quarter of the state memory */
    uint64_t swap_file_bytes;           /* in state_directory; 0: no file */
    uint32_t slow_reader_preempt_s, slow_reader_timeout_s;
    uint32_t conversation_idle_s;
    uint32_t skips_max;
    uint32_t newcomer_slots; /* 0: derived; CONFIG_NEWCOMERS_NONE */
    uint32_t drain_timeout_s;
    const char *policies[CONFIG_POLICIES_MAX]; /* for policy_parse(); one for a user at the most */
    uint32_t n_policies;
    uint32_t huge_pages; /* enum memory_huge */
    enum loop_kind event_loop;
    int log_level; /* enum log_level */
    uint32_t spin_us;
    const char *inspect_path;
    const char *complete_shell;
    bool no_escape; /* TOKENIZE: backslash sequences stay */

    struct config_user users[CONFIG_POLICIES_MAX]; /* what policies[] is made of */
    uint32_t n_users;
    struct config_origin origins[CONFIG_SETTINGS_MAX];
    struct config_text *texts; /* owned */
};

/* 0, or -INFER_E_INVALID or -INFER_E_SOCKET_PATH with one sentence that names file and line, or the
 * option; *ret untouched then. Keeps to the options as documented: no abbreviations, no operands.
 * Strings in *ret point into argv, the environment and memory that config_done() frees. */
int config_parse(int argc, char **argv, struct config *ret, struct report *report);
void config_done(struct config *config);

/* The text of --help, made from the same table that config_parse() reads. */
void config_help(FILE *out);

/* The effective configuration, as a file that config_parse() would take, each value with a remark
 * that says where it comes from and, where that is so, that it takes effect on SIGHUP. */
void config_show(const struct config *config, FILE *out);

/* The completion script of a shell, "bash" or "zsh". */
void config_complete(const char *shell, FILE *out);

/* Which settings differ, once for each name ("parallel", "model unix: path"); `reloads` when the
 * new value may take effect while streams run. Returns how many differ. */
uint32_t config_compare(const struct config *now, const struct config *next,
                        void (*differs)(void *ctx, const char *name, bool reloads), void *ctx);

/* ---- parts, for the tests -------------------------------------------------------------------- */

/* Where a daemon listens that was not told: runtime_dir may be NULL. */
int config_default_socket(const char *runtime_dir, bool root, char ret[CONFIG_SOCKET_MAX],
                          struct report *report);
/* The model's name that a path gives: the file's without folder, ".gguf" and part number; its
 * bytes. It need not be one that config_is_model_name() takes. */
size_t config_name_of_file(const char *path, const char **ret);
bool config_is_model_name(const char *name, size_t n);
/* "512", "64K", "4G", "1.5" is refused; powers of 1024. */
bool config_size(const char *text, uint64_t *ret);
/* "90", "90s", "5m", "4h", "7d". */
bool config_seconds(const char *text, uint64_t *ret);

#endif
