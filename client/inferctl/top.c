/* top.c: `inferctl top`: what the daemon does, drawn again and again from its status page.
 *
 * The page is shared memory: however often it is read, the daemon neither wakes up nor works. A
 * frame is put together in memory, cut to the screen, and written at once, so that nothing
 * flickers.
 *
 * Owns: the terminal while it runs: the other screen, no echo, no cursor. Invariant: whatever ends
 * or stops us, the terminal is as it was: Ctrl-C, SIGTERM, SIGHUP and Ctrl-Z set flags that the
 * loop looks at between frames. */
#include "page.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#define SUMMARY_LINES 4
#define INTERVAL_MIN  0.1
#define INTERVAL_MAX  3600.0

static volatile sig_atomic_t asked_to_end, asked_to_stop;

struct screen {
    struct termios before;
    bool keys; /* standard input is a terminal and in our mode */
    unsigned rows, columns;
};

/* ---- the terminal ---------------------------------------------------------------------------- */

static void on_signal(int signo)
{
    if (signo == SIGTSTP)
        asked_to_stop = 1;
    else if (signo != SIGWINCH && signo != SIGCONT)
        asked_to_end = signo;
}

static void watch_signals(void)
{
    static const int signals[] = {SIGINT, SIGTERM, SIGHUP, SIGTSTP, SIGWINCH, SIGCONT};
    struct sigaction action;

    memset(&action, 0, sizeof action);
    action.sa_handler = on_signal; /* no SA_RESTART: poll returns and the screen is drawn */
    sigemptyset(&action.sa_mask);
    for (size_t i = 0; i < sizeof signals / sizeof signals[0]; i++)
        sigaction(signals[i], &action, NULL);
}

/* Past the stream's buffer, which loses what a signal interrupts: -1, or 0 when all is written. */
static int put_bytes(const char *bytes, size_t n)
{
    while (n > 0) {
        ssize_t some = write(STDOUT_FILENO, bytes, n);
        if (some < 0 && errno != EINTR)
            return -1;
        bytes += some > 0 ? some : 0;
        n -= some > 0 ? (size_t)some : 0;
    }
    return 0;
}

static void put(const char *sequence)
{
    put_bytes(sequence, strlen(sequence));
}

static void screen_enter(struct screen *screen)
{
    struct termios mode;

    screen->keys = tcgetattr(STDIN_FILENO, &screen->before) == 0;
    if (screen->keys) {
        mode = screen->before;
        mode.c_lflag &= ~(tcflag_t)(ICANON | ECHO);
        mode.c_cc[VMIN] = 0;
        mode.c_cc[VTIME] = 0;
        tcsetattr(STDIN_FILENO, TCSANOW, &mode);
    }
    put("\033[?1049h\033[?25l\033[H\033[2J");
}

static void screen_leave(const struct screen *screen)
{
    put("\033[?25h\033[?1049l");
    if (screen->keys)
        tcsetattr(STDIN_FILENO, TCSANOW, &screen->before);
}

static void screen_measure(struct screen *screen)
{
    struct winsize size;
    bool known = ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 && size.ws_row > 0;

    screen->rows = known ? size.ws_row : 24;
    screen->columns = known ? size.ws_col : 80;
}

/* Ctrl-Z: gives the terminal back, stops, and takes it again when we go on. */
static void pause_here(struct screen *screen)
{
    asked_to_stop = 0;
    screen_leave(screen);
    signal(SIGTSTP, SIG_DFL);
    raise(SIGTSTP);
    watch_signals();
    screen_enter(screen);
}

/* ---- a frame --------------------------------------------------------------------------------- */

struct frame {
    struct ctl_buffer out;
    unsigned lines, rows, columns; /* rows 0: no screen, everything is shown */
};

/* One line, cut to the screen's width; text ends with a newline or is of n bytes. */
static void frame_line(struct frame *frame, const char *text, size_t n, enum term_style style)
{
    const char *styled = term_style(stdout, style), *plain = term_style(stdout, TERM_PLAIN);

    if (frame->rows > 0 && frame->lines == frame->rows)
        return;
    if (n > 0 && text[n - 1] == '\n')
        n--;
    if (frame->rows > 0 && n > frame->columns)
        n = frame->columns;
    if (frame->rows > 0 && frame->lines > 0)
        buffer_append(&frame->out, "\r\n", 2);
    if (style != TERM_PLAIN)
        buffer_append(&frame->out, styled, strlen(styled));
    buffer_append(&frame->out, text, n);
    if (style != TERM_PLAIN)
        buffer_append(&frame->out, plain, strlen(plain));
    if (frame->rows > 0)
        buffer_append(&frame->out, "\033[K", 3);
    else
        buffer_append(&frame->out, "\n", 1);
    frame->lines++;
}

/* The lines of the buffer, which is empty then. */
static void frame_lines(struct frame *frame, struct ctl_buffer *lines, enum term_style style)
{
    for (size_t at = 0; at < lines->n;) {
        const char *end = memchr(lines->bytes + at, '\n', lines->n - at);
        size_t n = end ? (size_t)(end - lines->bytes) + 1 - at : lines->n - at;
        frame_line(frame, lines->bytes + at, n, style);
        at += n;
    }
    lines->n = 0;
}

/* How many of n entries fit into `room` lines, when the last tells how many do not. */
static uint32_t fitting(uint32_t n, unsigned room)
{
    return n <= room ? n : room > 0 ? room - 1 : 0;
}

static void frame_more(struct frame *frame, uint32_t hidden)
{
    char text[64];

    if (hidden == 0)
        return;
    snprintf(text, sizeof text, "... and %u more", hidden);
    frame_line(frame, text, strlen(text), TERM_DIM);
}

static void draw(struct frame *frame, const struct page_view *view)
{
    const struct infer_page *page = &view->now;
    struct ctl_buffer lines = {NULL, 0, 0};
    bool bounded = frame->rows > 0;
    unsigned room = frame->rows > SUMMARY_LINES + 4 ? frame->rows - SUMMARY_LINES - 4 : 0;
    uint32_t users = bounded ? fitting(page->n_users, room / 3) : page->n_users;
    uint32_t sequences = page->n_sequences;
    bool narrow = bounded && frame->columns < PAGE_WIDE_SCREEN;
    unsigned columns = PAGE_RATES | (narrow ? PAGE_NARROW : 0);

    page_summary(&lines, view);
    frame_lines(frame, &lines, TERM_PLAIN);
    frame_line(frame, "", 0, TERM_PLAIN);
    page_user_head(&lines);
    frame_lines(frame, &lines, TERM_BOLD);
    for (uint32_t i = 0; i < users; i++)
        page_user_line(&lines, view, i);
    frame_lines(frame, &lines, TERM_PLAIN);
    frame_more(frame, page->n_users - users);
    frame_line(frame, "", 0, TERM_PLAIN);
    page_sequence_head(&lines, columns);
    frame_lines(frame, &lines, TERM_BOLD);
    if (bounded)
        sequences = fitting(sequences, frame->rows > frame->lines ? frame->rows - frame->lines : 0);
    for (uint32_t i = 0; i < sequences; i++)
        page_sequence_line(&lines, view, i, columns);
    frame_lines(frame, &lines, TERM_PLAIN);
    frame_more(frame, page->n_sequences - sequences);
    buffer_done(&lines);
}

/* ---- the command ----------------------------------------------------------------------------- */

static int print_once(struct ctl *ctl, struct page_view *view)
{
    struct frame frame = {{NULL, 0, 0}, 0, 0, 0};
    int r = page_read(ctl, view);

    if (r < 0)
        return ctl_fail_conn(ctl, r);
    if (ctl->options.json)
        return output_json(page_json(view));
    draw(&frame, view);
    fwrite(frame.out.bytes, 1, frame.out.n, stdout);
    buffer_done(&frame.out);
    return ctl_finish_output(0);
}

/* Waits for the next frame; true: a key said to end. */
static bool wait_for_key(const struct screen *screen, double seconds)
{
    double until = ctl_seconds() + seconds;
    struct pollfd input = {.fd = screen->keys ? STDIN_FILENO : -1, .events = POLLIN};

    for (;;) {
        double left = until - ctl_seconds();
        char key;

        if (left <= 0 || asked_to_end || asked_to_stop)
            return false;
        if (poll(&input, 1, (int)(left * 1e3) + 1) < 0)
            return false; /* a signal: look at the flags, draw anew */
        if ((input.revents & (POLLHUP | POLLERR)) && !(input.revents & POLLIN))
            return true;
        if ((input.revents & POLLIN) == 0)
            continue;
        if (read(STDIN_FILENO, &key, 1) != 1)
            input.fd = -1; /* its end: only signals end us */
        else if (key == 'q' || key == 'Q')
            return true;
        else
            return false;
    }
}

/* Ends with 0 or a negative code of the library. */
static int watch(struct ctl *ctl, struct page_view *view)
{
    struct screen screen;
    struct frame frame = {{NULL, 0, 0}, 0, 0, 0};
    int r = page_read(ctl, view);

    if (r < 0)
        return r;
    memset(&screen, 0, sizeof screen);
    watch_signals();
    screen_enter(&screen);
    while (r >= 0) {
        screen_measure(&screen);
        frame.lines = 0;
        frame.out.n = 0;
        frame.rows = screen.rows;
        frame.columns = screen.columns;
        buffer_append(&frame.out, "\033[H", 3);
        draw(&frame, view);
        buffer_append(&frame.out, "\033[J", 3);
        if (put_bytes(frame.out.bytes, frame.out.n) < 0)
            break;
        if (wait_for_key(&screen, (double)ctl->options.interval) || asked_to_end)
            break;
        if (asked_to_stop)
            pause_here(&screen);
        r = page_read(ctl, view);
    }
    screen_leave(&screen);
    buffer_done(&frame.out);
    return r;
}

int top_command(struct ctl *ctl)
{
    static struct page_view view; /* too large for a stack that others also use */
    const struct ctl_options *o = &ctl->options;
    int r, status;

    if (ctl->n_operands > 0)
        return ctl_usage(ctl, "unexpected argument '%s'", ctl->operands[0]);
    if (o->json && !o->once)
        return ctl_usage(ctl, "--json goes with --once");
    if (!((double)o->interval >= INTERVAL_MIN && (double)o->interval <= INTERVAL_MAX))
        return ctl_usage(ctl, "--interval takes seconds from %g to %g", INTERVAL_MIN, INTERVAL_MAX);
    status = page_open(ctl, &view);
    if (!status && (o->once || !term_is_screen())) {
        status = print_once(ctl, &view);
    } else if (!status) {
        r = watch(ctl, &view);
        status = r < 0 ? ctl_fail_conn(ctl, r) : ctl_finish_output(0);
        if (!status && asked_to_end && asked_to_end != SIGINT)
            status = 128 + asked_to_end;
    }
    page_done(&view);
    return status;
}
