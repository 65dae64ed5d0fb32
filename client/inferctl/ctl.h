/* ctl.h: what the files of inferctl share: one invocation, its options, and small services.
 *
 * inferctl is one process, one thread (perplexity uses a few more), one command. main.c finds the
 * command and hands it a struct ctl whose options are already parsed and checked for form; what a
 * value means is for the daemon to judge. A command returns the program's exit status.
 *
 * May be used by: client/inferctl. Uses: client.h, jansson, libedit. */
#ifndef INFERCTL_CTL_H
#define INFERCTL_CTL_H

#include "inferd/client.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

/* ---- exit statuses; the others come from infer_error_exit() ---------------------------------- */

#define CTL_EXIT_FAILURE     1 /* a local file or the output could not be used */
#define CTL_EXIT_USAGE       2
#define CTL_EXIT_INTERRUPTED 130

/* ---- one invocation -------------------------------------------------------------------------- */

/* Which commands take an option; struct ctl_command.bit and the option table use these. */
enum ctl_bit {
    CTL_PROMPT = 1u << 0,
    CTL_CHAT = 1u << 1,
    CTL_STATUS = 1u << 2,
    CTL_MODELS = 1u << 3,
    CTL_TOKENIZE = 1u << 4,
    CTL_DETOKENIZE = 1u << 5,
    CTL_SCORE = 1u << 6,
    CTL_PERPLEXITY = 1u << 7,
    CTL_BENCH = 1u << 8,
    CTL_TOP = 1u << 9,
    CTL_PS = 1u << 10,
    CTL_CANCEL = 1u << 11,
    CTL_FORGET = 1u << 12,
    CTL_METRICS = 1u << 13,
    CTL_LOGS = 1u << 14,
    CTL_LOAD = 1u << 15,
    CTL_UNLOAD = 1u << 16,
    CTL_RELOAD = 1u << 17,
    CTL_EVERY = (1u << 18) - 1u,
};

struct ctl_options {
    /* global */
    const char *socket, *model;
    uint32_t json, no_color, quiet, verbose, help, version;
    /* what to say */
    const char *file, *system, *ids;
    uint32_t raw, special, show_special, bos, no_bos, text;
    /* how to sample */
    struct infer_sampling sampling;
    const char *stops[INFER_STOPS_MAX];
    size_t n_stops;
    struct infer_logit_bias biases[INFER_LOGIT_BIASES_MAX];
    size_t n_biases;
    /* when to run */
    uint32_t priority; /* enum infer_priority */
    float deadline;    /* seconds; 0: none */
    uint32_t wait;     /* over a limit: wait in line */
    /* how many answers, how long, in which conversation */
    uint32_t answers, window, sinks, keep;
    uint64_t conversation; /* 0: none */
    /* load, unload */
    const char *name, *device, *cache_type_k, *cache_type_v;
    uint32_t context, parallel, keep_alive, pin, dry_run, force;
    /* top */
    float interval; /* seconds */
    uint32_t once;
    /* metrics */
    uint32_t http;
    /* logs */
    uint32_t follow, lines, has_lines;
    /* status */
    uint32_t topology;
    /* score, perplexity, bench */
    uint32_t top, ctx, max_windows, prompt_tokens, tokens, repeats;
};

struct ctl_command;

struct ctl {
    const struct ctl_command *command;
    struct ctl_options options;
    char **operands; /* what is left of argv after the options */
    size_t n_operands;
    struct infer_conn *conn; /* NULL before ctl_connect() */
};

struct ctl_command {
    const char *name;
    uint32_t bit;
    const char *synopsis; /* after the name */
    const char *summary;  /* one line, for the list of commands */
    const char *details;  /* for COMMAND --help; ends with a newline */
    int (*run)(struct ctl *ctl);
};

int prompt_command(struct ctl *ctl);
int chat_command(struct ctl *ctl);
int status_command(struct ctl *ctl);
int models_command(struct ctl *ctl);
int tokenize_command(struct ctl *ctl);
int detokenize_command(struct ctl *ctl);
int score_command(struct ctl *ctl);
int perplexity_command(struct ctl *ctl);
int bench_command(struct ctl *ctl);
int top_command(struct ctl *ctl);
int ps_command(struct ctl *ctl);
int cancel_command(struct ctl *ctl);
int forget_command(struct ctl *ctl);
int load_command(struct ctl *ctl);
int unload_command(struct ctl *ctl);
int reload_command(struct ctl *ctl);
int metrics_command(struct ctl *ctl);
int logs_command(struct ctl *ctl);

/* http.c: `inferctl metrics --http`: one request on standard input, its answer on output. */
int http_serve(struct ctl *ctl);

/* ---- options.c: the one option table --------------------------------------------------------- */

void options_default(struct ctl_options *options);

/* Parses argv[1..] with the options of ctl->command, or with the global ones alone up to the first
 * operand when there is no command yet. Sets operands. 0, or the exit status of a usage error that
 * has been printed. */
int options_parse(struct ctl *ctl, int argc, char **argv);

/* Prints the options that the command takes (bit 0: the global ones). */
void options_help(FILE *to, uint32_t bit);

/* "normal" and the like, as --priority takes it; "" for others. */
const char *options_priority_name(uint32_t priority);

/* The candidate closest to word, or NULL when none is close. */
const char *options_closest(const char *word, const char *const *candidates, size_t n);

/* ---- report.c: errors and connections -------------------------------------------------------- */

/* Prints `inferctl: COMMAND: message; 'inferctl COMMAND --help' tells more`; CTL_EXIT_USAGE. */
int ctl_usage(const struct ctl *ctl, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Prints `inferctl: message`; CTL_EXIT_FAILURE. */
int ctl_error(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Prints `inferctl: what the code means: detail` (detail may be NULL or ""); its exit status. */
int ctl_fail(int code, const char *detail);

/* ctl_fail() with the detail of the last failure on the connection. */
int ctl_fail_conn(const struct ctl *ctl, int code);

/* Memory for n bytes, or the program ends with an out-of-memory error. Free with free(). */
void *ctl_alloc(size_t n);
void *ctl_resize(void *memory, size_t n);

/* Connects when not connected yet. 0, or the exit status of a printed error. */
int ctl_connect(struct ctl *ctl);

/* The model that -m names, or the one the daemon takes without -m. 0 or an exit status. */
int ctl_model(struct ctl *ctl, struct infer_model *ret_model);
/* The same, loaded: a model that is only listed says nothing of itself. Waits for that. */
int ctl_loaded_model(struct ctl *ctl, struct infer_model *ret_model);

/* Flushes stdout; an exit status: the given one, or CTL_EXIT_FAILURE when writing failed. */
int ctl_finish_output(int status);

/* Seconds of a clock that never steps. */
double ctl_seconds(void);

/* ---- input.c: text and token ids from the user ----------------------------------------------- */

struct ctl_buffer {
    char *bytes; /* NUL-terminated once anything was appended */
    size_t n, capacity;
};

void buffer_append(struct ctl_buffer *buffer, const char *bytes, size_t n);
void buffer_done(struct ctl_buffer *buffer);

/* The text of the invocation: the operands joined by spaces, or --file, or standard input when the
 * only operand is `-` or there is none and it is not a terminal. 0 or an exit status. */
int input_text(const struct ctl *ctl, struct ctl_buffer *ret_text);

/* Reads a file ("-": standard input) of at most INFER_REQUEST_BYTES_MAX bytes. */
int input_file(const char *path, struct ctl_buffer *ret_text);

struct ctl_ids {
    int32_t *ids;
    size_t n;
};

/* Token ids separated by commas or blanks, or a JSON array of them, or a JSON object whose "ids"
 * is one. 0, or an exit status after an error that names `what`. Free ret_ids->ids. */
int input_ids(const struct ctl *ctl, const char *what, const char *text, size_t n,
              struct ctl_ids *ret_ids);

/* ---- output.c: JSON and tables --------------------------------------------------------------- */

/* A JSON string of any bytes; what is not UTF-8 becomes U+FFFD. */
json_t *output_json_text(const char *text, size_t n);
/* A JSON number, or null for what JSON cannot hold. */
json_t *output_json_number(double value);
json_t *output_json_logprob(const struct infer_logprob *entry);
/* Prints the object on one line (indented on a terminal) and gives its reference up. */
int output_json(json_t *object);
/* "38.2M"; in the caller's buffer of at least 16 bytes. */
const char *output_size(uint64_t bytes, char *buffer);
/* "2h 3min"; in the caller's buffer of at least 32 bytes. */
const char *output_duration(uint64_t us, char *buffer);

/* ---- status.c -------------------------------------------------------------------------------- */

json_t *status_json(const struct infer_status *status, const struct infer_model *models, size_t n);

/* ---- term.c: the terminal -------------------------------------------------------------------- */

/* Decides about colour and progress once; no_color and quiet switch them off. */
void term_init(bool no_color, bool quiet);
bool term_is_output(void); /* standard output is a terminal */
bool term_is_input(void);
bool term_is_screen(void); /* standard output is a terminal that understands sequences */

enum term_style { TERM_PLAIN, TERM_BOLD, TERM_DIM, TERM_GREEN, TERM_RED };
/* The sequence that starts a style on that stream, or "". */
const char *term_style(FILE *stream, enum term_style style);

/* Writes text that somebody else made: as it is to a file or pipe; on a terminal, control
 * characters other than newline and tab become U+FFFD, so that it cannot drive the terminal. */
void term_write(FILE *stream, const char *text, size_t n);
/* Writes 'text' with escapes for control characters, whatever the stream is. */
void term_write_quoted(FILE *stream, const char *text, size_t n);

/* One line on standard error that is drawn over; nothing when it is no terminal. */
void term_progress(double fraction, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* The same without a bar: something that is being waited for. */
void term_remark(const char *format, ...) __attribute__((format(printf, 1, 2)));
void term_progress_clear(void); /* of either */

/* From here on Ctrl-C counts instead of ending the program; with `hard` the second one ends it. */
void term_interrupt_watch(bool hard);
unsigned term_interrupts(void);
void term_interrupts_forget(void);

/* ---- answer.c: what a request generates ------------------------------------------------------ */

struct answer {
    struct ctl_buffer text;
    json_t *prompt_ids, *ids, *logprobs; /* arrays, when JSON is wanted; else NULL */
    bool ends_line;                      /* the text printed so far ends with a newline */
    bool interrupted;
    bool complete; /* DONE, or of one of several ANSWER, has come */
    uint64_t id;   /* daemon-wide, once it was queued */
    int error;     /* positive code of the event that completed it */
    char *detail;
    uint32_t finish;
    uint32_t n_prompt, n_generated, n_cached;
    uint64_t queue_us, prefill_us, decode_us;
    /* Of several answers: each of them. What stands above is the whole request's then, without
     * text. */
    struct answer *each;
    uint32_t n_each, n_printed;
};

/* Fills what the options say about sampling, stops and biases; input is the caller's. */
void answer_request(const struct ctl *ctl, struct infer_request *ret_request);

/* Submits and gathers until DONE; prints text as it comes when stream is set, several answers one
 * after another, each when it is complete. 0 when DONE came (ret_answer->error tells how it went),
 * or a negative code. answer_done() in either case. */
int answer_run(struct ctl *ctl, const struct infer_request *request, bool stream,
               struct answer *ret_answer);
void answer_done(struct answer *answer);
/* One line of timings on standard error. */
void answer_print_timings(FILE *to, const struct answer *answer);
/* model: NULL when it is not known; seed: as asked for, 0: none. */
json_t *answer_json(const struct answer *answer, const char *model, uint64_t seed);

/* ---- line.c: a line from the user ------------------------------------------------------------ */

struct line_reader;
enum line_result { LINE_READ = 1, LINE_END = 0, LINE_INTERRUPTED = -1 };

/* With editing and history when both ends are a terminal, otherwise plain lines. */
struct line_reader *line_new(void);
void line_free(struct line_reader *reader);
bool line_is_interactive(const struct line_reader *reader);
/* One input, lines that end in a backslash joined. *ret_text lives until the next call. */
enum line_result line_read(struct line_reader *reader, const char **ret_text);

#endif
