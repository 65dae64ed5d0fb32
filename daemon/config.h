/* config.h: the daemon's command line, checked, as data.
 *
 * Pure: reads its arguments and, for the socket's default, INFERD_SOCKET, XDG_RUNTIME_DIR and the
 * user id; opens
 * nothing and prints nothing. Strings point into argv, the environment or the struct itself. */
#ifndef INFERD_CONFIG_H
#define INFERD_CONFIG_H

#include "base/report.h"
#include "inferd/backend.h"
#include "io/loop.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define CONFIG_SOCKET_MAX   108u /* sun_path, with the NUL */
#define CONFIG_THREADS_MAX  1024u
#define CONFIG_CONTEXT_MAX  (1u << 24)
#define CONFIG_SPIN_US_MAX  1000000u
#define CONFIG_POLICIES_MAX 64u
#define CONFIG_PARALLEL_MAX INFER_STEP_SEQS_MAX

enum config_action {
    CONFIG_SERVE,
    CONFIG_INSPECT,  /* inspect_path */
    CONFIG_TOKENIZE, /* inspect_path: standard input to token ids */
    CONFIG_VERSION,
    CONFIG_HELP,
};

struct config_model {
    char name[INFER_MODEL_NAME_MAX]; /* unique, [A-Za-z0-9._-] */
    const char *path;
};

struct config {
    enum config_action action;
    struct config_model models[INFER_MODELS_MAX]; /* SERVE: at least one */
    uint32_t n_models;
    char socket[CONFIG_SOCKET_MAX]; /* SERVE: set */
    const char *backend;            /* "cpu" */
    const char *backend_options;    /* "" */
    uint32_t threads;               /* 0: as the machine has cores */
    uint32_t n_context;             /* 0: the model's own */
    uint32_t parallel;
    uint64_t state_memory_bytes;               /* 0: derived */
    uint32_t k_type, v_type;                   /* INFER_TYPE_F16, _Q8_0 or _Q4_0 */
    const char *policies[CONFIG_POLICIES_MAX]; /* for policy_parse(), in the order given */
    uint32_t n_policies;
    enum loop_kind event_loop;
    int log_level; /* enum log_level */
    uint32_t spin_us;
    const char *inspect_path;
    bool no_escape; /* TOKENIZE: backslash sequences stay */
};

/* 0, or -INFER_E_INVALID or -INFER_E_SOCKET_PATH with one sentence; *ret untouched then. Keeps to
 * the options as documented: no abbreviations, no operands. Not for several threads (getopt). */
int config_parse(int argc, char **argv, struct config *ret, struct report *report);

/* The text of --help, made from the same table that config_parse() reads. */
void config_help(FILE *out);

/* ---- parts, for the tests -------------------------------------------------------------------- */

/* Where a daemon listens that was not told: runtime_dir may be NULL. */
int config_default_socket(const char *runtime_dir, bool root, char ret[CONFIG_SOCKET_MAX],
                          struct report *report);
/* "512", "64K", "4G", "1.5" is refused; powers of 1024. */
bool config_size(const char *text, uint64_t *ret);

#endif
