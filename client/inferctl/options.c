/* options.c: the one table of options, its parser and its help.
 *
 * A row names an option, where its value goes in struct ctl_options, and the commands that take
 * it; the parser's tables and the help texts are made from the same rows, so that neither can
 * differ from the other. Values are checked for form here (a number is a number and fits its
 * field); their ranges are the daemon's to judge.
 *
 * Limits: OPTIONS_MAX rows per command; the table below is far smaller and an assertion holds it.
 */
#include "ctl.h"

#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#define OPTIONS_MAX  80
#define OPTIONS_BASE 256 /* getopt's value of row i is OPTIONS_BASE + i */
#define OPTIONS_WORD 64  /* longest word that a suggestion is sought for */

enum option_kind {
    OPTION_FLAG,       /* uint32_t */
    OPTION_STRING,     /* const char * */
    OPTION_U32,        /* uint32_t */
    OPTION_U32_OR_ALL, /* the same; -1 means 0, as llama.cpp's users write it */
    OPTION_U64_OR_ANY, /* uint64_t; the same */
    OPTION_FLOAT,      /* float */
    OPTION_STOP,       /* appended to stops */
    OPTION_BIAS,       /* appended to biases */
    OPTION_PRIORITY,   /* uint32_t, by name */
    OPTION_ID,         /* uint64_t, not 0 */
    OPTION_LINES,      /* uint32_t lines; sets has_lines */
};

struct option_row {
    const char *name;
    char letter; /* 0: none */
    enum option_kind kind;
    size_t offset;
    uint32_t commands;
    const char *argument; /* NULL for a flag */
    const char *help;
};

#define AT(field)     offsetof(struct ctl_options, field)
#define ANSWER        (CTL_PROMPT | CTL_CHAT)
#define GIVES_JSON    (CTL_EVERY & ~(uint32_t)(CTL_CHAT | CTL_METRICS | CTL_UNLOAD | CTL_RELOAD))
#define TEXT_OPTIONS  (CTL_PROMPT | CTL_TOKENIZE | CTL_SCORE)
#define SAMPLE(field) AT(sampling.field)

/* clang-format off */
static const struct option_row option_rows[] = {
    {"system", 0, OPTION_STRING, AT(system), ANSWER, "TEXT", "system message that comes first"},
    {"file", 'f', OPTION_STRING, AT(file), TEXT_OPTIONS, "FILE", "take the text from FILE ('-': standard input)"},
    {"raw", 0, OPTION_FLAG, AT(raw), CTL_PROMPT, NULL, "no chat template: continue the text as it is"},
    {"ids", 0, OPTION_STRING, AT(ids), CTL_PROMPT | CTL_SCORE | CTL_DETOKENIZE, "1,2,3", "take token ids instead of text"},
    {"special", 0, OPTION_FLAG, AT(special), CTL_PROMPT, NULL, "with --raw: text may name special tokens"},
    {"special", 0, OPTION_FLAG, AT(special), CTL_TOKENIZE | CTL_SCORE, NULL, "text may name special tokens such as <|im_start|>"},
    {"special", 0, OPTION_FLAG, AT(show_special), CTL_DETOKENIZE, NULL, "show the text of special tokens"},
    {"bos", 0, OPTION_FLAG, AT(bos), CTL_TOKENIZE, NULL, "begin with BOS where the model's file asks for it"},
    {"no-bos", 0, OPTION_FLAG, AT(no_bos), CTL_PROMPT | CTL_SCORE, NULL, "do not begin with BOS even where the file asks for it"},
    {"text", 0, OPTION_FLAG, AT(text), CTL_TOKENIZE, NULL, "show each token's text beside its id"},
    {"text", 0, OPTION_FLAG, AT(text), CTL_SCORE, NULL, "with --json: add each token's text"},
    {"max-tokens", 'n', OPTION_U32_OR_ALL, SAMPLE(max_tokens), ANSWER, "N", "end after N tokens; 0: at the end of the context (512)"},
    {"temp", 0, OPTION_FLOAT, SAMPLE(temperature), ANSWER, "T", "temperature; 0 takes the most likely token (0.8)"},
    {"top-k", 0, OPTION_U32, SAMPLE(top_k), ANSWER, "K", "keep the K most likely tokens; 0: all (40)"},
    {"top-p", 0, OPTION_FLOAT, SAMPLE(top_p), ANSWER, "P", "keep the smallest set of probability P; 1: off (0.95)"},
    {"min-p", 0, OPTION_FLOAT, SAMPLE(min_p), ANSWER, "P", "keep tokens at least P times as likely as the best (0.05)"},
    {"typical", 0, OPTION_FLOAT, SAMPLE(typical_p), ANSWER, "P", "locally typical sampling; 1: off (1)"},
    {"repeat-penalty", 0, OPTION_FLOAT, SAMPLE(repetition_penalty), ANSWER, "X", "penalty on tokens seen before; 1: off (1)"},
    {"repeat-last-n", 0, OPTION_U32, SAMPLE(penalty_window), ANSWER, "N", "how many last tokens the penalties see (64)"},
    {"frequency-penalty", 0, OPTION_FLOAT, SAMPLE(frequency_penalty), ANSWER, "X", "penalty per occurrence (0)"},
    {"presence-penalty", 0, OPTION_FLOAT, SAMPLE(presence_penalty), ANSWER, "X", "penalty on presence (0)"},
    {"logit-bias", 0, OPTION_BIAS, 0, ANSWER, "ID=VALUE", "add VALUE to a token's logit; -inf bans it; repeatable"},
    {"seed", 's', OPTION_U64_OR_ANY, SAMPLE(seed), ANSWER, "N", "same seed, same answer; 0: another each time (0)"},
    {"stop", 0, OPTION_STOP, 0, ANSWER, "TEXT", "end before TEXT; repeatable"},
    {"ignore-eos", 0, OPTION_FLAG, SAMPLE(ignore_eos), ANSWER, NULL, "go on after the model's end token"},
    {"show-special", 0, OPTION_FLAG, AT(show_special), ANSWER, NULL, "show special tokens in the answer"},
    {"logprobs", 0, OPTION_U32, SAMPLE(logprobs), CTL_PROMPT, "N", "with --json: log-probabilities of the N best per token"},
    {"top", 0, OPTION_U32, AT(top), CTL_SCORE, "K", "also the K most likely tokens at each position (0)"},
    {"ctx", 'c', OPTION_U32, AT(ctx), CTL_PERPLEXITY, "N", "tokens per window (512)"},
    {"max-windows", 0, OPTION_U32, AT(max_windows), CTL_PERPLEXITY, "N", "end after N windows; 0: the whole file (0)"},
    {"prompt-tokens", 'p', OPTION_U32, AT(prompt_tokens), CTL_BENCH, "N", "length of the prompt that is read; 0: skip (512)"},
    {"tokens", 'n', OPTION_U32, AT(tokens), CTL_BENCH, "N", "length of the answer that is generated; 0: skip (128)"},
    {"repeats", 'r', OPTION_U32, AT(repeats), CTL_BENCH, "N", "how often each is measured (5)"},
    {"priority", 0, OPTION_PRIORITY, AT(priority), CTL_PROMPT, "CLASS", "interactive, normal or batch: whose turn is first (normal)"},
    {"deadline", 0, OPTION_FLOAT, AT(deadline), CTL_PROMPT, "SECONDS", "give up unless the answer starts within SECONDS; 0: wait (0)"},
    {"wait", 0, OPTION_FLAG, AT(wait), ANSWER, NULL, "over a limit of yours: wait in line instead of failing"},
    {"answers", 0, OPTION_U32, AT(answers), CTL_PROMPT, "N", "give N answers to the one prompt (1)"},
    {"window", 0, OPTION_U32, AT(window), ANSWER, "N", "endless: beyond N tokens the oldest leave; 0: off (0)"},
    {"sinks", 0, OPTION_U32, AT(sinks), ANSWER, "N", "with --window: the first N tokens stay (4)"},
    {"keep", 0, OPTION_FLAG, AT(keep), CTL_PROMPT, NULL, "the daemon keeps prompt and answer, to be continued"},
    {"continue", 0, OPTION_ID, AT(conversation), CTL_PROMPT, "ID", "go on with the conversation that --keep told"},
    {"name", 0, OPTION_STRING, AT(name), CTL_LOAD, "NAME", "the model's name (the file's)"},
    {"device", 0, OPTION_STRING, AT(device), CTL_LOAD, "NAME", "what holds it: auto, cpu or cuda:0 (as configured)"},
    {"context", 0, OPTION_U32, AT(context), CTL_LOAD, "N", "tokens of the longest sequence (as configured)"},
    {"parallel", 0, OPTION_U32, AT(parallel), CTL_LOAD, "N", "sequences that run at once (as configured)"},
    {"cache-type-k", 0, OPTION_STRING, AT(cache_type_k), CTL_LOAD, "TYPE", "f16, q8_0 or q4_0 (as configured)"},
    {"cache-type-v", 0, OPTION_STRING, AT(cache_type_v), CTL_LOAD, "TYPE", "f16, q8_0 or q4_0 (as configured)"},
    {"keep-alive", 0, OPTION_U32, AT(keep_alive), CTL_LOAD, "SECONDS", "it leaves when unused so long; 0: it stays (as configured)"},
    {"pin", 0, OPTION_FLAG, AT(pin), CTL_LOAD, NULL, "it never leaves for another model's sake"},
    {"dry-run", 0, OPTION_FLAG, AT(dry_run), CTL_LOAD, NULL, "only say what it would take"},
    {"force", 0, OPTION_FLAG, AT(force), CTL_UNLOAD, NULL, "end its requests at once"},
    {"interval", 0, OPTION_FLOAT, AT(interval), CTL_TOP, "SECONDS", "time between two looks (1)"},
    {"once", 0, OPTION_FLAG, AT(once), CTL_TOP, NULL, "print the table once"},
    {"http", 0, OPTION_FLAG, AT(http), CTL_METRICS, NULL, "answer one HTTP request on standard input and output"},
    {"follow", 'f', OPTION_FLAG, AT(follow), CTL_LOGS, NULL, "go on with what comes"},
    {"lines", 'n', OPTION_LINES, AT(lines), CTL_LOGS, "N", "the last N lines"},
    {"topology", 0, OPTION_FLAG, AT(topology), CTL_STATUS, NULL, "draw the machine: cores, threads, memory by node"},
    {"verbose", 'v', OPTION_FLAG, AT(verbose), ANSWER, NULL, "print timings on standard error at the end"},
    {"model", 'm', OPTION_STRING, AT(model), CTL_EVERY, "NAME", "model to use (the first that is served)"},
    {"socket", 0, OPTION_STRING, AT(socket), CTL_EVERY, "PATH", "the daemon's socket ($INFERD_SOCKET, ...)"},
    {"json", 0, OPTION_FLAG, AT(json), GIVES_JSON, NULL, "print JSON"},
    {"no-color", 0, OPTION_FLAG, AT(no_color), CTL_EVERY, NULL, "no colour"},
    {"quiet", 'q', OPTION_FLAG, AT(quiet), CTL_EVERY, NULL, "no progress and no remarks"},
    {"help", 'h', OPTION_FLAG, AT(help), CTL_EVERY, NULL, "print this help"},
    {"version", 'V', OPTION_FLAG, AT(version), CTL_EVERY, NULL, "print the version"},
};
/* clang-format on */

#define N_ROWS (sizeof option_rows / sizeof option_rows[0])
typedef char option_rows_fit[N_ROWS <= OPTIONS_MAX ? 1 : -1];

/* Before the command, whatever is global; --json too, for `inferctl --json status`. */
static bool row_applies(const struct option_row *row, uint32_t bit)
{
    if (bit)
        return (row->commands & bit) != 0;
    return row->commands == CTL_EVERY || row->commands == GIVES_JSON;
}

void options_default(struct ctl_options *options)
{
    memset(options, 0, sizeof *options);
    infer_sampling_default(&options->sampling);
    options->ctx = 512;
    options->prompt_tokens = 512;
    options->tokens = 128;
    options->repeats = 5;
    options->interval = 1;
    options->keep_alive = UINT32_MAX;
}

static const char *const priority_names[] = {"normal", "interactive", "batch"};
#define N_PRIORITIES (sizeof priority_names / sizeof priority_names[0])

const char *options_priority_name(uint32_t priority)
{
    return priority < N_PRIORITIES ? priority_names[priority] : "";
}

/* ---- values ---------------------------------------------------------------------------------- */

static bool parse_unsigned(const char *text, uint64_t max, uint64_t *ret)
{
    char *end;
    unsigned long long value;

    if (!isdigit((unsigned char)text[0]))
        return false;
    errno = 0;
    value = strtoull(text, &end, 10);
    if (errno || *end || value > max)
        return false;
    *ret = value;
    return true;
}

static bool parse_float(const char *text, float *ret)
{
    char *end;
    float value;

    if (!text[0] || isspace((unsigned char)text[0]))
        return false;
    value = strtof(text, &end);
    if (*end)
        return false;
    *ret = value;
    return true;
}

/* ID=VALUE; ID+VALUE and ID-VALUE as llama.cpp has them. */
static bool parse_bias(const char *text, struct infer_logit_bias *ret)
{
    size_t digits = strspn(text, "0123456789");
    char id[16];
    uint64_t token;
    float bias;

    if (digits == 0 || digits >= sizeof id)
        return false;
    memcpy(id, text, digits);
    id[digits] = '\0';
    text += digits;
    if (*text == '=')
        text++;
    else if (*text != '+' && *text != '-')
        return false;
    if (!parse_unsigned(id, INT32_MAX, &token) || !parse_float(text, &bias))
        return false;
    ret->token = (int32_t)token;
    ret->bias = bias;
    return true;
}

static int store_number(struct ctl *ctl, const struct option_row *row, const char *value)
{
    char *field = (char *)&ctl->options + row->offset;
    bool wide = row->kind == OPTION_U64_OR_ANY;
    bool minus_one = row->kind != OPTION_U32 && row->kind != OPTION_LINES;
    uint64_t max = wide ? UINT64_MAX : UINT32_MAX;
    uint64_t number = 0;
    uint32_t narrow;

    if (!(minus_one && strcmp(value, "-1") == 0) && !parse_unsigned(value, max, &number))
        return ctl_usage(ctl, "--%s takes a whole number from 0 to %llu, not '%s'", row->name,
                         (unsigned long long)max, value);
    narrow = (uint32_t)number;
    if (wide)
        memcpy(field, &number, sizeof number);
    else
        memcpy(field, &narrow, sizeof narrow);
    return 0;
}

static int store_priority(struct ctl *ctl, const char *value)
{
    for (uint32_t i = 0; i < N_PRIORITIES; i++) {
        if (strcmp(priority_names[i], value) == 0) {
            ctl->options.priority = i;
            return 0;
        }
    }
    return ctl_usage(ctl, "--priority takes interactive, normal or batch, not '%s'", value);
}

static int store_id(struct ctl *ctl, const struct option_row *row, const char *value)
{
    uint64_t id;

    if (!parse_unsigned(value, UINT64_MAX, &id) || id == 0)
        return ctl_usage(ctl, "--%s takes the number that --keep told, not '%s'", row->name, value);
    memcpy((char *)&ctl->options + row->offset, &id, sizeof id);
    return 0;
}

static int store(struct ctl *ctl, const struct option_row *row, const char *value)
{
    struct ctl_options *o = &ctl->options;
    char *field = (char *)o + row->offset;
    const uint32_t one = 1;

    switch (row->kind) {
    case OPTION_FLAG:
        memcpy(field, &one, sizeof one);
        return 0;
    case OPTION_STRING:
        memcpy(field, &value, sizeof value);
        return 0;
    case OPTION_U32:
    case OPTION_U32_OR_ALL:
    case OPTION_U64_OR_ANY:
        return store_number(ctl, row, value);
    case OPTION_FLOAT:
        if (!parse_float(value, (float *)(void *)field))
            return ctl_usage(ctl, "--%s takes a number, not '%s'", row->name, value);
        return 0;
    case OPTION_STOP:
        if (o->n_stops == INFER_STOPS_MAX)
            return ctl_usage(ctl, "at most %u times --stop", INFER_STOPS_MAX);
        o->stops[o->n_stops++] = value;
        return 0;
    case OPTION_BIAS:
        if (o->n_biases == INFER_LOGIT_BIASES_MAX)
            return ctl_usage(ctl, "at most %u times --logit-bias", INFER_LOGIT_BIASES_MAX);
        if (!parse_bias(value, &o->biases[o->n_biases]))
            return ctl_usage(ctl, "--logit-bias takes ID=VALUE, such as 15043=-1.5, not '%s'",
                             value);
        o->n_biases++;
        return 0;
    case OPTION_PRIORITY:
        return store_priority(ctl, value);
    case OPTION_ID:
        return store_id(ctl, row, value);
    case OPTION_LINES:
        o->has_lines = 1;
        return store_number(ctl, row, value);
    }
    return 0;
}

/* ---- parsing --------------------------------------------------------------------------------- */

static int bad_option(struct ctl *ctl, const char *argument, uint32_t bit)
{
    const char *names[OPTIONS_MAX];
    const char *closest;
    char word[OPTIONS_WORD];
    size_t n = 0, length;

    if (strncmp(argument, "--", 2) != 0)
        return ctl_usage(ctl, "unknown option '%s'", argument);
    length = strcspn(argument + 2, "=");
    for (size_t i = 0; i < N_ROWS; i++)
        if (row_applies(&option_rows[i], bit))
            names[n++] = option_rows[i].name;
    if (length < sizeof word) {
        memcpy(word, argument + 2, length);
        word[length] = '\0';
        closest = options_closest(word, names, n);
        if (closest)
            return ctl_usage(ctl, "unknown option '--%s'; did you mean '--%s'?", word, closest);
    }
    return ctl_usage(ctl, "unknown option '%.*s'", (int)length + 2, argument);
}

/* getopt's tables for one command. */
struct option_tables {
    struct option longs[OPTIONS_MAX + 1];
    char shorts[3 * OPTIONS_MAX + 4];
    const struct option_row *by_letter[128];
};

static void build_tables(struct option_tables *t, uint32_t bit)
{
    size_t n = 0;
    char *s = t->shorts;

    memset(t, 0, sizeof *t);
    if (bit == 0)
        *s++ = '+'; /* stop at the command */
    *s++ = ':';     /* tell a missing argument from an unknown option */
    for (size_t i = 0; i < N_ROWS; i++) {
        const struct option_row *row = &option_rows[i];
        if (!row_applies(row, bit))
            continue;
        t->longs[n].name = row->name;
        t->longs[n].has_arg = row->argument ? required_argument : no_argument;
        t->longs[n].val = OPTIONS_BASE + (int)i;
        n++;
        if (row->letter) {
            t->by_letter[(unsigned char)row->letter & 127] = row;
            *s++ = row->letter;
            if (row->argument)
                *s++ = ':';
        }
    }
}

static const struct option_row *row_of(const struct option_tables *t, int value)
{
    if (value >= OPTIONS_BASE && value < OPTIONS_BASE + (int)N_ROWS)
        return &option_rows[value - OPTIONS_BASE];
    return value > 0 && value < 128 ? t->by_letter[value] : NULL;
}

/* What getopt did not take. A long option (unknown, ambiguous, or with a value that it does not
 * take) has been stepped over; of a cluster of letters, optopt is the bad one. */
static int bad_argument(struct ctl *ctl, char **argv, uint32_t bit)
{
    const char letter[] = {'-', (char)optopt, '\0'};

    if (optopt >= OPTIONS_BASE && optopt < OPTIONS_BASE + (int)N_ROWS)
        return ctl_usage(ctl, "--%s takes no value", option_rows[optopt - OPTIONS_BASE].name);
    if (optopt == 0 && optind > 1)
        return bad_option(ctl, argv[optind - 1], bit);
    return bad_option(ctl, letter, bit);
}

int options_parse(struct ctl *ctl, int argc, char **argv)
{
    struct option_tables tables;
    uint32_t bit = ctl->command ? ctl->command->bit : 0;
    int value, status;

    build_tables(&tables, bit);
    opterr = 0;
    optind = 0; /* glibc: start over */
    for (;;) {
        const struct option_row *row;

        value = getopt_long(argc, argv, tables.shorts, tables.longs, NULL);
        if (value == -1)
            break;
        row = row_of(&tables, value == ':' ? optopt : value);
        if (value == ':' && row)
            return ctl_usage(ctl, "--%s needs %s", row->name, row->argument);
        if (value == '?' || !row)
            return bad_argument(ctl, argv, bit);
        status = store(ctl, row, optarg);
        if (status)
            return status;
    }
    ctl->operands = argv + optind;
    ctl->n_operands = (size_t)(argc - optind);
    return 0;
}

void options_help(FILE *to, uint32_t bit)
{
    for (size_t i = 0; i < N_ROWS; i++) {
        const struct option_row *row = &option_rows[i];
        char left[48];

        if (!row_applies(row, bit))
            continue;
        snprintf(left, sizeof left, "%s%c%c--%s%s%s", row->letter ? "-" : " ",
                 row->letter ? row->letter : ' ', row->letter ? ' ' : ' ', row->name,
                 row->argument ? " " : "", row->argument ? row->argument : "");
        fprintf(to, "  %-28s %s\n", left, row->help);
    }
}

/* ---- suggestions ----------------------------------------------------------------------------- */

/* Edit distance (insert, delete, replace, swap of neighbours), each costing 1. */
static unsigned distance(const char *a, const char *b)
{
    unsigned rows[3][OPTIONS_WORD + 1];
    size_t na = strlen(a), nb = strlen(b);

    if (na > OPTIONS_WORD || nb > OPTIONS_WORD)
        return OPTIONS_WORD;
    for (size_t j = 0; j <= nb; j++)
        rows[0][j] = (unsigned)j;
    for (size_t i = 1; i <= na; i++) {
        unsigned *now = rows[i % 3], *last = rows[(i + 2) % 3], *before = rows[(i + 1) % 3];
        now[0] = (unsigned)i;
        for (size_t j = 1; j <= nb; j++) {
            unsigned best = last[j - 1] + (a[i - 1] != b[j - 1]);
            if (last[j] + 1 < best)
                best = last[j] + 1;
            if (now[j - 1] + 1 < best)
                best = now[j - 1] + 1;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] &&
                before[j - 2] + 1 < best)
                best = before[j - 2] + 1;
            now[j] = best;
        }
    }
    return rows[na % 3][nb];
}

const char *options_closest(const char *word, const char *const *candidates, size_t n)
{
    const char *closest = NULL;
    unsigned best = OPTIONS_WORD;
    size_t length = strlen(word);

    for (size_t i = 0; i < n; i++) {
        unsigned d = distance(word, candidates[i]);
        /* A beginning of the candidate counts as one slip. */
        if (length >= 3 && strncmp(word, candidates[i], length) == 0 && d > 1)
            d = 1;
        if (d < best) {
            best = d;
            closest = candidates[i];
        }
    }
    return best <= 1 + length / 4 ? closest : NULL;
}
