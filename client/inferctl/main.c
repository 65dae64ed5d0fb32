/* main.c: inferctl's commands, in one table, and the way from argv to one of them.
 *
 * Owns: the command table, the help texts. Global options may stand before or after the command.
 * The exit status is the command's; see inferctl(1). */
#include "ctl.h"

#include <locale.h>
#include <signal.h>
#include <string.h>

static const struct ctl_command commands[] = {
    {"prompt", CTL_PROMPT, "[OPTION]... [TEXT...|-]", "answer one question, token by token",
     "Applies the model's chat template to TEXT and prints the answer as it comes. TEXT is the\n"
     "arguments joined by blanks, --file, or standard input ('-', or when it is piped; without\n"
     "--raw one newline at its end is dropped). Ctrl-C cancels the answer.\n"
     "With --json, one object is printed at the end. Several answers (--answers) are printed one\n"
     "after another, each when it and those before it are complete.\n",
     prompt_command},
    {"chat", CTL_CHAT, "[OPTION]...", "hold a conversation",
     "Reads a line, prints the answer, and remembers both. A line that ends in a backslash goes\n"
     "on in the next. /help lists what else can be typed. Ctrl-C cancels the answer, Ctrl-D "
     "quits.\n",
     chat_command},
    {"status", CTL_STATUS, "[OPTION]...", "show the daemon: models, memory, queue, speeds",
     "Prints the state of the daemon and the models it serves.\n", status_command},
    {"top", CTL_TOP, "[OPTION]...", "watch users and requests, live",
     "Shows the daemon's speeds and pages, its users, and its requests, and draws that again each\n"
     "--interval, without disturbing the daemon. 'q' or Ctrl-C quits. Without a terminal, and "
     "with\n"
     "--once, the table is printed once; --json with --once prints one object.\n",
     top_command},
    {"ps", CTL_PS, "[OPTION]...", "list the requests that run or wait",
     "Prints a line for each request of each user; those that run come first. The ids are those\n"
     "that 'inferctl cancel' takes.\n",
     ps_command},
    {"cancel", CTL_CANCEL, "[OPTION]... ID...", "end requests, also of other programs",
     "Ends the requests with these ids, as 'inferctl ps' lists them: your own, or anybody's for\n"
     "root and the user that the daemon runs as.\n",
     cancel_command},
    {"forget", CTL_FORGET, "[OPTION]... ID...", "end conversations that the daemon keeps",
     "Ends the conversations with these ids, which 'inferctl prompt --keep' told: the daemon\n"
     "forgets their tokens and state. One that nobody continues ends by itself after some hours.\n",
     forget_command},
    {"metrics", CTL_METRICS, "[OPTION]...", "print counters and histograms as OpenMetrics text",
     "Prints what the daemon counted since its start, for Prometheus and its kin. With --http one\n"
     "HTTP request for /metrics is read from standard input and answered on standard output, as a\n"
     "socket unit with Accept=yes wants it.\n",
     metrics_command},
    {"logs", CTL_LOGS, "[OPTION]...", "show the daemon's log, from the journal",
     "Runs journalctl for the unit that serves the socket: the system's or this user's own.\n",
     logs_command},
    {"models", CTL_MODELS, "[OPTION]...", "list the models that are served",
     "Prints a line for each model.\n", models_command},
    {"load", CTL_LOAD, "[OPTION]... FILE", "load a model from a file",
     "Opens FILE (of a split model the first part) and hands it to the daemon, which needs no\n"
     "permission on it. Without FILE, --name NAME loads a model that is listed. For root and the\n"
     "user that the daemon runs as. Ctrl-C cancels.\n",
     load_command},
    {"unload", CTL_UNLOAD, "[OPTION]... NAME...", "let models go",
     "Waits until the requests of each model have ended, unless --force, and its memory is given\n"
     "back. One that the configuration names is loaded again by its next request.\n",
     unload_command},
    {"reload", CTL_RELOAD, "[OPTION]...", "have the daemon read its configuration again",
     "Prints what has changed. A wrong file changes nothing, and the error says what is wrong.\n",
     reload_command},
    {"tokenize", CTL_TOKENIZE, "[OPTION]... [TEXT...|-]", "turn text into token ids",
     "Prints the ids of TEXT (arguments, --file, or standard input) on one line; with --json as\n"
     "a JSON array.\n",
     tokenize_command},
    {"detokenize", CTL_DETOKENIZE, "[OPTION]... [ID...|-]", "turn token ids into text",
     "Prints the text of the token ids, which are arguments, --ids, or standard input: numbers\n"
     "or a JSON array. Nothing is added at the end.\n",
     detokenize_command},
    {"score", CTL_SCORE, "[OPTION]... [TEXT...|-]", "log-probability of each token of a text",
     "Prints for each token of TEXT (or of --ids) its log-probability given those before it,\n"
     "their sum, and the perplexity.\n",
     score_command},
    {"perplexity", CTL_PERPLEXITY, "[OPTION]... FILE", "perplexity of a model on a text file",
     "Cuts FILE into windows of --ctx tokens, scores the second half of each, and prints\n"
     "exp(mean negative log-likelihood) with its standard error.\n",
     perplexity_command},
    {"bench", CTL_BENCH, "[OPTION]...", "measure prefill and decode speed through the daemon",
     "Prints tokens per second for reading a prompt (pp) and for generating (tg): the median\n"
     "of the repeats, the lowest and the highest.\n",
     bench_command},
};

#define N_COMMANDS (sizeof commands / sizeof commands[0])

static const struct ctl_command *find_command(const char *name)
{
    for (size_t i = 0; i < N_COMMANDS; i++)
        if (strcmp(commands[i].name, name) == 0)
            return &commands[i];
    return NULL;
}

static void print_help(FILE *to)
{
    fputs("Usage: inferctl [OPTION]... COMMAND [ARGUMENT]...\n"
          "Ask inferd, the local inference daemon.\n\nCommands:\n",
          to);
    for (size_t i = 0; i < N_COMMANDS; i++)
        fprintf(to, "  %-12s %s\n", commands[i].name, commands[i].summary);
    fputs("\nOptions, before or after the command:\n", to);
    options_help(to, 0);
    fputs("\n'inferctl COMMAND --help' tells more about a command; so does inferctl(1).\n", to);
}

static void print_command_help(FILE *to, const struct ctl_command *command)
{
    fprintf(to, "Usage: inferctl %s %s\n%s\nOptions (defaults in parentheses):\n", command->name,
            command->synopsis, command->details);
    options_help(to, command->bit);
}

static int unknown_command(const struct ctl *ctl, const char *name)
{
    const char *names[N_COMMANDS];
    const char *closest;

    for (size_t i = 0; i < N_COMMANDS; i++)
        names[i] = commands[i].name;
    closest = options_closest(name, names, N_COMMANDS);
    if (closest)
        return ctl_usage(ctl, "unknown command '%s'; did you mean '%s'?", name, closest);
    return ctl_usage(ctl, "unknown command '%s'", name);
}

/* The command with its own options; argv[0] is its name. */
static int run_command(struct ctl *ctl, const char *name, int argc, char **argv)
{
    int status;

    ctl->command = find_command(name);
    if (!ctl->command)
        return unknown_command(ctl, name);
    if (ctl->options.json && (ctl->command->bit & (CTL_UNLOAD | CTL_RELOAD)))
        return ctl_usage(ctl, "--json is not for this command");
    if (ctl->options.json && ctl->command->bit == CTL_CHAT)
        return ctl_usage(ctl, "--json is not for a conversation; use 'inferctl prompt --json'");
    if (ctl->options.json && ctl->command->bit == CTL_METRICS)
        return ctl_usage(ctl, "--json is not for OpenMetrics text; use 'inferctl status --json'");
    status = options_parse(ctl, argc, argv);
    if (status)
        return status;
    if (ctl->options.help) {
        print_command_help(stdout, ctl->command);
        return 0;
    }
    if (ctl->options.version) {
        printf("inferctl %s\n", infer_version());
        return 0;
    }
    term_init(ctl->options.no_color, ctl->options.quiet);
    return ctl->command->run(ctl);
}

static int run(struct ctl *ctl, int argc, char **argv)
{
    int status = options_parse(ctl, argc, argv);

    if (status)
        return status;
    if (ctl->n_operands == 0) {
        if (ctl->options.version) {
            printf("inferctl %s\n", infer_version());
            return 0;
        }
        if (ctl->options.help) {
            print_help(stdout);
            return 0;
        }
        print_help(stderr);
        return CTL_EXIT_USAGE;
    }
    if (strcmp(ctl->operands[0], "help") == 0) {
        if (ctl->n_operands == 1) {
            print_help(stdout);
            return 0;
        }
        ctl->options.help = 1;
        ctl->operands++;
        ctl->n_operands--;
    }
    return run_command(ctl, ctl->operands[0], (int)ctl->n_operands, ctl->operands);
}

int main(int argc, char **argv)
{
    static struct ctl ctl; /* the list of biases makes it large for a stack */
    int status;

    signal(SIGPIPE, SIG_DFL); /* a reader that went away ends us quietly */
    setlocale(LC_CTYPE, "");
    options_default(&ctl.options);
    term_init(false, false);
    status = run(&ctl, argc, argv);
    infer_close(ctl.conn);
    return ctl_finish_output(status);
}
