/* line.c: lines from the user: edited and remembered on a terminal, plain from a pipe.
 *
 * Owns: the EditLine, its history and the history file ($XDG_STATE_HOME/inferd/history, or
 * ~/.local/state/inferd/history; mode 0600 in a folder of mode 0700, since it holds what was said).
 * A history that cannot be kept is no error. Ctrl-C at the prompt throws the line away: libedit
 * reads through read_character() here, which gives up when the signal's counter moves.
 *
 * Limits: LINE_HISTORY_MAX entries; one input is at most INFER_REQUEST_BYTES_MAX bytes. */
#include "ctl.h"

#include <errno.h>
#include <histedit.h>
#include <langinfo.h>
#include <limits.h>
#include <locale.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <wchar.h>

#define LINE_HISTORY_MAX 1000
#define LINE_ESCAPE      '\1' /* libedit: what stands between two of these has no width */

struct line_reader {
    EditLine *edit; /* NULL: plain lines */
    History *history;
    char history_path[PATH_MAX]; /* "": not kept */
    struct ctl_buffer text;
    char *plain; /* getline()'s */
    size_t plain_capacity;
    bool continuing, interrupted;
};

/* ---- history --------------------------------------------------------------------------------- */

/* Makes the folders above the file, as far as they are missing. */
static bool make_folders(char *path)
{
    for (char *at = path + 1; (at = strchr(at, '/')) != NULL; at++) {
        int r;
        *at = '\0';
        r = mkdir(path, 0700);
        *at = '/';
        if (r != 0 && errno != EEXIST)
            return false;
    }
    return true;
}

static void open_history(struct line_reader *reader)
{
    const char *state = getenv("XDG_STATE_HOME"), *home = getenv("HOME");
    size_t size = sizeof reader->history_path;
    HistEvent event;
    int n = 0;

    reader->history = history_init();
    if (!reader->history)
        return;
    history(reader->history, &event, H_SETSIZE, LINE_HISTORY_MAX);
    history(reader->history, &event, H_SETUNIQUE, 1);
    el_set(reader->edit, EL_HIST, history, reader->history);
    if (state && state[0] == '/')
        n = snprintf(reader->history_path, size, "%s/inferd/history", state);
    else if (home && home[0] == '/')
        n = snprintf(reader->history_path, size, "%s/.local/state/inferd/history", home);
    if (n <= 0 || (size_t)n >= size || !make_folders(reader->history_path)) {
        reader->history_path[0] = '\0';
        return;
    }
    history(reader->history, &event, H_LOAD, reader->history_path);
}

/* After every line: a terminal that is closed must not cost the conversation's lines. */
static void remember(struct line_reader *reader)
{
    HistEvent event;
    mode_t mask;

    if (!reader->history || reader->text.n == 0)
        return;
    history(reader->history, &event, H_ENTER, reader->text.bytes);
    if (!reader->history_path[0])
        return;
    mask = umask(077);
    history(reader->history, &event, H_SAVE, reader->history_path);
    umask(mask);
}

/* ---- libedit --------------------------------------------------------------------------------- */

static char *prompt_text(EditLine *edit)
{
    static char first[64], more[] = "  ";
    struct line_reader *reader = NULL;

    el_get(edit, EL_CLIENTDATA, &reader);
    if (reader->continuing)
        return more;
    if (term_style(stdout, TERM_GREEN)[0])
        snprintf(first, sizeof first, "%c%s%c> %c%s%c", LINE_ESCAPE, term_style(stdout, TERM_GREEN),
                 LINE_ESCAPE, LINE_ESCAPE, term_style(stdout, TERM_PLAIN), LINE_ESCAPE);
    else
        snprintf(first, sizeof first, "> ");
    return first;
}

static volatile sig_atomic_t resized, continued;

static void on_terminal_change(int signo)
{
    if (signo == SIGWINCH)
        resized = 1;
    else
        continued = 1;
}

/* libedit's own handlers would take SIGINT too, so these two signals are ours. */
static void watch_terminal(void)
{
    struct sigaction action;

    memset(&action, 0, sizeof action);
    action.sa_handler = on_terminal_change; /* no SA_RESTART: the read returns */
    sigemptyset(&action.sa_mask);
    sigaction(SIGWINCH, &action, NULL);
    sigaction(SIGCONT, &action, NULL);
}

/* After a signal: a window of another size; or the shell had the terminal and left its own mode,
 * in which case libedit must be made to set the mode that it thinks is set. */
static void follow_terminal(EditLine *edit)
{
    if (resized) { /* libedit forgets what it drew; so must the screen */
        fputs("\r\033[K", stdout);
        fflush(stdout);
        el_resize(edit);
    }
    if (continued) {
        el_set(edit, EL_PREP_TERM, 0);
        el_set(edit, EL_PREP_TERM, 1);
    }
    if (resized || continued)
        el_set(edit, EL_REFRESH);
    resized = continued = 0;
}

/* libedit's source of characters: 1 a character, 0 end, -1 to give the line up. */
static int read_character(EditLine *edit, wchar_t *ret)
{
    struct line_reader *reader = NULL;
    mbstate_t state;

    el_get(edit, EL_CLIENTDATA, &reader);
    memset(&state, 0, sizeof state);
    for (;;) {
        char byte;
        ssize_t n = read(STDIN_FILENO, &byte, 1);

        if (n < 0 && errno == EINTR) {
            if (term_interrupts() > 0) {
                reader->interrupted = true;
                return -1;
            }
            follow_terminal(edit);
            continue;
        }
        if (n <= 0)
            return (int)n;
        switch (mbrtowc(ret, &byte, 1, &state)) {
        case (size_t)-2: /* more bytes to come */
            continue;
        case (size_t)-1:
            memset(&state, 0, sizeof state);
            continue;
        default:
            return 1;
        }
    }
}

/* In a locale without UTF-8, libedit could not take the text that models speak. */
static void choose_locale(void)
{
    if (strcmp(nl_langinfo(CODESET), "UTF-8") != 0 && setlocale(LC_CTYPE, "C.UTF-8") == NULL)
        setlocale(LC_CTYPE, "");
}

struct line_reader *line_new(void)
{
    struct line_reader *reader = ctl_alloc(sizeof *reader);

    memset(reader, 0, sizeof *reader);
    if (!term_is_input() || !term_is_output())
        return reader;
    choose_locale();
    reader->edit = el_init("inferctl", stdin, stdout, stderr);
    if (!reader->edit)
        return reader;
    el_set(reader->edit, EL_CLIENTDATA, reader);
    el_set(reader->edit, EL_EDITOR, "emacs");
    el_set(reader->edit, EL_SIGNAL, 0);
    el_set(reader->edit, EL_PROMPT_ESC, prompt_text, LINE_ESCAPE);
    el_set(reader->edit, EL_GETCFN, read_character);
    el_set(reader->edit, EL_BIND, "^R", "em-inc-search-prev", NULL);
    el_source(reader->edit, NULL);
    watch_terminal();
    open_history(reader);
    return reader;
}

void line_free(struct line_reader *reader)
{
    if (!reader)
        return;
    if (reader->history)
        history_end(reader->history);
    if (reader->edit)
        el_end(reader->edit);
    buffer_done(&reader->text);
    free(reader->plain);
    free(reader);
}

bool line_is_interactive(const struct line_reader *reader)
{
    return reader->edit != NULL;
}

/* ---- reading --------------------------------------------------------------------------------- */

static enum line_result read_one(struct line_reader *reader, const char **ret_line, size_t *ret_n)
{
    if (reader->edit) {
        int n = 0;

        reader->interrupted = false;
        term_interrupts_forget();
        if (resized)
            el_resize(reader->edit);
        resized = continued = 0;
        *ret_line = el_gets(reader->edit, &n);
        if (reader->interrupted) {
            term_interrupts_forget();
            fputs("^C\n", stdout);
            fflush(stdout);
            return LINE_INTERRUPTED;
        }
        *ret_n = n > 0 ? (size_t)n : 0;
        return *ret_line && n > 0 ? LINE_READ : LINE_END;
    }
    for (;;) {
        ssize_t n = getline(&reader->plain, &reader->plain_capacity, stdin);
        if (n >= 0) {
            *ret_line = reader->plain;
            *ret_n = (size_t)n;
            return LINE_READ;
        }
        if (errno != EINTR || feof(stdin))
            return LINE_END;
        if (term_interrupts() > 0)
            return LINE_INTERRUPTED;
        clearerr(stdin);
    }
}

enum line_result line_read(struct line_reader *reader, const char **ret_text)
{
    const char *line = NULL;
    size_t n = 0;

    reader->text.n = 0;
    reader->continuing = false;
    for (;;) {
        enum line_result result = read_one(reader, &line, &n);

        if (result == LINE_INTERRUPTED || (result == LINE_END && !reader->continuing))
            return result;
        if (result == LINE_END)
            break;
        while (n > 0 && (line[n - 1] == '\n' || line[n - 1] == '\r'))
            n--;
        reader->continuing =
            n > 0 && line[n - 1] == '\\' && reader->text.n + n < INFER_REQUEST_BYTES_MAX;
        if (!reader->continuing) {
            buffer_append(&reader->text, line, n);
            break;
        }
        buffer_append(&reader->text, line, n - 1);
        buffer_append(&reader->text, "\n", 1);
    }
    for (size_t i = 0; i < reader->text.n; i++) /* messages are C strings */
        if (reader->text.bytes[i] == '\0')
            reader->text.bytes[i] = ' ';
    remember(reader);
    *ret_text = reader->text.bytes;
    return LINE_READ;
}
