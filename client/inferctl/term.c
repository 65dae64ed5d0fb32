/* term.c: what depends on a terminal being there: colour, progress, Ctrl-C, and the filter that
 * keeps other people's text from driving it.
 *
 * Owns: the SIGINT handler and its counter. Invariant: nothing but plain text goes to a stream
 * that is no terminal. A model's text is data from outside: an escape sequence in it could set a
 * title, move the cursor over what was printed, or answer for the user. */
#include "ctl.h"

#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define TERM_WIDTH_MAX 512
#define TERM_BAR       24
#define REPLACEMENT    "\xef\xbf\xbd" /* U+FFFD */

static bool out_is_terminal, err_is_terminal;
static bool colour, progress, dumb;
static bool progress_drawn;

void term_init(bool no_color, bool quiet)
{
    const char *no = getenv("NO_COLOR"), *term = getenv("TERM");

    dumb = !term || !term[0] || strcmp(term, "dumb") == 0;
    out_is_terminal = isatty(STDOUT_FILENO);
    err_is_terminal = isatty(STDERR_FILENO);
    colour = !no_color && !(no && no[0]) && !dumb;
    progress = err_is_terminal && !quiet && !dumb;
}

bool term_is_output(void)
{
    return out_is_terminal;
}

bool term_is_input(void)
{
    return isatty(STDIN_FILENO);
}

bool term_is_screen(void)
{
    return out_is_terminal && !dumb;
}

static bool is_terminal(FILE *stream)
{
    return stream == stdout ? out_is_terminal : stream == stderr && err_is_terminal;
}

const char *term_style(FILE *stream, enum term_style style)
{
    static const char *const sequences[] = {"\033[0m", "\033[1m", "\033[2m", "\033[32m",
                                            "\033[31m"};

    return colour && is_terminal(stream) ? sequences[style] : "";
}

/* ---- text from outside ----------------------------------------------------------------------- */

/* Bytes of the UTF-8 sequence at text, or 0 when it is none (overlong, surrogate, cut off). */
static size_t sequence_at(const unsigned char *text, size_t n)
{
    unsigned char c = text[0];
    size_t length = c < 0x80 ? 1 : c < 0xc2 ? 0 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : c < 0xf5 ? 4 : 0;

    if (length == 0 || length > n)
        return 0;
    for (size_t i = 1; i < length; i++)
        if ((text[i] & 0xc0) != 0x80)
            return 0;
    if ((c == 0xe0 && text[1] < 0xa0) || (c == 0xed && text[1] >= 0xa0) ||
        (c == 0xf0 && text[1] < 0x90) || (c == 0xf4 && text[1] >= 0x90))
        return 0;
    return length;
}

/* C0, DEL or C1: what a terminal takes for a command. */
static bool is_control(const unsigned char *text, size_t length)
{
    return length == 1 ? text[0] < 0x20 || text[0] == 0x7f
                       : length == 2 && text[0] == 0xc2 && text[1] < 0xa0;
}

void term_write(FILE *stream, const char *text, size_t n)
{
    const unsigned char *at = (const unsigned char *)text;

    if (!is_terminal(stream)) {
        fwrite(text, 1, n, stream);
        return;
    }
    while (n > 0) {
        size_t length = sequence_at(at, n);
        bool harmless = length > 0 && (!is_control(at, length) || at[0] == '\n' || at[0] == '\t');
        if (length == 0)
            length = 1;
        if (harmless)
            fwrite(at, 1, length, stream);
        else
            fputs(REPLACEMENT, stream);
        at += length;
        n -= length;
    }
}

void term_write_quoted(FILE *stream, const char *text, size_t n)
{
    const unsigned char *at = (const unsigned char *)text;

    fputc('\'', stream);
    while (n > 0) {
        size_t length = sequence_at(at, n);
        if (at[0] == '\n' || at[0] == '\t' || at[0] == '\r')
            fputs(at[0] == '\n' ? "\\n" : at[0] == '\t' ? "\\t" : "\\r", stream);
        else if (at[0] == '\'' || at[0] == '\\')
            fprintf(stream, "\\%c", at[0]);
        else if (length == 0 || is_control(at, length))
            for (size_t i = 0; i < (length ? length : 1); i++)
                fprintf(stream, "\\x%02x", at[i]);
        else
            fwrite(at, 1, length, stream);
        length = length ? length : 1;
        at += length;
        n -= length;
    }
    fputc('\'', stream);
}

/* ---- progress -------------------------------------------------------------------------------- */

static size_t width(void)
{
    struct winsize size;

    if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0)
        return 80;
    return size.ws_col < TERM_WIDTH_MAX ? size.ws_col : TERM_WIDTH_MAX;
}

void term_progress(double fraction, const char *format, ...)
{
    char text[TERM_WIDTH_MAX], bar[TERM_BAR + 1];
    size_t columns, filled;
    va_list args;

    if (!progress)
        return;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    fraction = fraction < 0 ? 0 : fraction > 1 ? 1 : fraction;
    filled = (size_t)(fraction * TERM_BAR + 0.5);
    memset(bar, '.', TERM_BAR);
    memset(bar, '#', filled);
    bar[TERM_BAR] = '\0';
    columns = width();
    if (columns <= TERM_BAR + 4)
        fprintf(stderr, "\r%.*s\033[K", (int)columns - 1, text);
    else
        fprintf(stderr, "\r[%s] %.*s\033[K", bar, (int)(columns - TERM_BAR - 4), text);
    fflush(stderr);
    progress_drawn = true;
}

void term_remark(const char *format, ...)
{
    char text[TERM_WIDTH_MAX];
    va_list args;

    if (!progress)
        return;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    fprintf(stderr, "\r%s%.*s%s\033[K", term_style(stderr, TERM_DIM), (int)width() - 1, text,
            term_style(stderr, TERM_PLAIN));
    fflush(stderr);
    progress_drawn = true;
}

void term_progress_clear(void)
{
    if (!progress_drawn)
        return;
    fputs("\r\033[K", stderr);
    fflush(stderr);
    progress_drawn = false;
}

/* ---- Ctrl-C ---------------------------------------------------------------------------------- */

static volatile sig_atomic_t interrupts;
static volatile sig_atomic_t interrupt_is_hard;

static void on_interrupt(int signo)
{
    (void)signo;
    if (interrupts < 100)
        interrupts++;
    if (interrupt_is_hard && interrupts > 1)
        _exit(CTL_EXIT_INTERRUPTED);
}

void term_interrupt_watch(bool hard)
{
    struct sigaction action;

    interrupt_is_hard = hard;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_interrupt; /* no SA_RESTART: a read at the prompt must return */
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
}

unsigned term_interrupts(void)
{
    return (unsigned)interrupts;
}

void term_interrupts_forget(void)
{
    interrupts = 0;
}
