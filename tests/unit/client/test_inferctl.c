/* test_inferctl.c: the built inferctl against a daemon in a thread (fake_daemon.h): what it shows
 * of the status page and of the queue, through pipes and on a terminal of a given size.
 *
 * INFERD_BUILD names the folder of the program ("build"). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "fake_daemon.h"

#include "base/clock.h"

#include <fcntl.h>
#include <pwd.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/wait.h>

#define OUTPUT_MAX (1u << 20)
#define PATIENCE_S 20

/* One run: of a terminal out has everything; through pipes err is apart. */
struct run {
    pid_t pid;
    int out_fd, err_fd; /* out_fd: the terminal's master, or a pipe */
    int status;
    char out[OUTPUT_MAX], err[4096];
    size_t n_out;
};

static struct run run;
static struct fake_daemon *fake;

static void child(const char *const *arguments)
{
    const char *folder = getenv("INFERD_BUILD");
    char program[4096], *argv[32];
    int n = 0;
    snprintf(program, sizeof program, "%s/inferctl", folder != NULL ? folder : "build");
    argv[n++] = program;
    while (*arguments != NULL)
        argv[n++] = (char *)(uintptr_t)*arguments++;
    argv[n] = NULL;
    setenv("INFERD_SOCKET", fake->path, 1);
    setenv("TERM", "xterm", 1);
    unsetenv("NO_COLOR");
    execv(program, argv);
    _exit(127);
}

/* On a terminal of that size. */
static void start_on_terminal(unsigned short rows, unsigned short columns,
                              const char *const *arguments)
{
    struct winsize size = {.ws_row = rows, .ws_col = columns};
    int master = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
    assert_true(master >= 0 && grantpt(master) == 0 && unlockpt(master) == 0);
    const char *name = ptsname(master);
    int slave = open(name, O_RDWR | O_NOCTTY | O_CLOEXEC);
    assert_true(slave >= 0 && ioctl(slave, TIOCSWINSZ, &size) == 0);
    memset(&run, 0, sizeof run);
    run.pid = fork();
    if (run.pid == 0) {
        setsid();
        ioctl(slave, TIOCSCTTY, 0);
        for (int fd = 0; fd < 3; fd++)
            dup2(slave, fd);
        child(arguments);
    }
    close(slave);
    run.out_fd = master;
    run.err_fd = -1;
}

static bool read_some(int timeout_ms)
{
    struct pollfd p = {.fd = run.out_fd, .events = POLLIN};
    if (poll(&p, 1, timeout_ms) <= 0)
        return false;
    ssize_t n = read(run.out_fd, run.out + run.n_out, OUTPUT_MAX - 1 - run.n_out);
    if (n <= 0) /* EIO: the other end of the terminal is closed */
        return false;
    run.n_out += (size_t)n;
    run.out[run.n_out] = '\0';
    return true;
}

/* Until the text was seen beyond `from`. */
static void wait_for(const char *text, size_t from)
{
    uint64_t until = clock_us() + PATIENCE_S * 1000000u;
    while (strstr(run.out + from, text) == NULL) {
        if (clock_us() > until)
            fail_msg("'%s' does not come; there is: %s", text, run.out);
        if (!read_some(1000) && waitpid(run.pid, NULL, WNOHANG | WNOWAIT) > 0)
            fail_msg("'%s' did not come; there was: %s", text, run.out);
    }
}

static void end(void)
{
    while (read_some(PATIENCE_S * 1000))
        ;
    assert_int_equal(waitpid(run.pid, &run.status, 0), run.pid);
    close(run.out_fd);
    run.status = WIFEXITED(run.status) ? WEXITSTATUS(run.status) : 1000 + WTERMSIG(run.status);
}

/* Through pipes, with that standard input; to its end. */
static int run_piped(const char *input, const char *const *arguments)
{
    int in[2], out[2], err[2];
    assert_true(pipe2(in, O_CLOEXEC) == 0 && pipe2(out, O_CLOEXEC) == 0 &&
                pipe2(err, O_CLOEXEC) == 0);
    memset(&run, 0, sizeof run);
    run.pid = fork();
    if (run.pid == 0) {
        dup2(in[0], 0);
        dup2(out[1], 1);
        dup2(err[1], 2);
        child(arguments);
    }
    close(in[0]);
    close(out[1]);
    close(err[1]);
    assert_int_equal(write(in[1], input, strlen(input)), (ssize_t)strlen(input));
    close(in[1]);
    run.out_fd = out[0];
    end();
    assert_true(read(err[0], run.err, sizeof run.err - 1) >= 0);
    close(err[0]);
    return run.status;
}

#define ARGUMENTS(...)                                                                             \
    (const char *const[])                                                                          \
    {                                                                                              \
        __VA_ARGS__, NULL                                                                          \
    }
#define INFERCTL(...) run_piped("", ARGUMENTS(__VA_ARGS__))

static void out_has(const char *text)
{
    if (strstr(run.out, text) == NULL)
        fail_msg("'%s' is missing in: %s", text, run.out);
}

static void err_has(const char *text)
{
    if (strstr(run.err, text) == NULL)
        fail_msg("'%s' is missing in: %s", text, run.err);
}

/* A request that never ends, shown by the status page; its daemon-wide id. */
struct guest {
    struct infer_conn *conn;
    uint32_t request;
    char id[24];
};

static struct guest invite(void)
{
    static struct infer_page page;
    struct infer_connect_options o = {.socket = fake->path, .client_name = "guest\033[2J"};
    struct infer_request r;
    struct infer_event e;
    struct guest g;
    assert_int_equal(infer_connect(&o, &g.conn), 0);
    infer_request_default(&r);
    r.text = "hang";
    r.priority = INFER_PRIORITY_BATCH;
    assert_int_equal(infer_submit(g.conn, &r, &g.request), 0);
    assert_int_equal(infer_next(g.conn, g.request, 10000, &e), 1);
    snprintf(g.id, sizeof g.id, "%llu", (unsigned long long)e.id);
    do
        assert_int_equal(infer_read_page(g.conn, &page), 0);
    while (page.n_sequences == 0);
    return g;
}

static bool was_ended(struct guest *g)
{
    struct infer_event e;
    return infer_next(g->conn, g->request, 10000, &e) == 1 && e.kind == INFER_EVENT_DONE &&
           e.finish == INFER_FINISH_CANCEL;
}

/* ---- ps and cancel --------------------------------------------------------------------------- */

static void test_ps(void **state)
{
    assert_int_equal(INFERCTL("ps"), 0);
    out_has("      ID USER       ");
    assert_int_equal(strcspn(run.out, "\n") + 1, run.n_out); /* the heading alone */
    assert_int_equal(INFERCTL("ps", "--json"), 0);
    assert_string_equal(run.out, "[]\n");

    struct guest g = invite();
    struct passwd *me = getpwuid(getuid());
    assert_int_equal(INFERCTL("ps"), 0);
    out_has("\n      77 ");
    if (me != NULL)
        out_has(me->pw_name);
    out_has(" decode    batch ");
    out_has(" two\n");
    assert_null(strchr(run.out, '\033'));
    assert_int_equal(INFERCTL("ps", "--json"), 0);
    out_has("[{\"id\": 77, \"uid\": ");
    out_has("\"client\": \"guest?[2J\", \"model\": \"two\", \"state\": \"decode\", "
            "\"priority\": \"batch\"");
    assert_int_equal(INFERCTL("ps", "-m", "one", "--json"), 0);
    assert_string_equal(run.out, "[]\n");
    assert_int_equal(INFERCTL("ps", "-m", "other"), 4);
    assert_int_equal(INFERCTL("ps", "77"), 2);
    infer_close(g.conn);
}

static void test_cancel(void **state)
{
    struct guest g = invite();
    assert_int_equal(INFERCTL("cancel", "999999"), 4);
    err_has("inferctl: no such request or conversation; it may be over: 999999\n");
    assert_int_equal(INFERCTL("cancel", "0"), 4);
    assert_int_equal(INFERCTL("cancel", "5", g.id, "6"), 4); /* the others do not hinder it */
    assert_true(was_ended(&g));
    err_has("it may be over: 5\n");
    err_has("it may be over: 6\n");
    infer_close(g.conn);

    g = invite();
    assert_int_equal(INFERCTL("cancel", g.id), 0);
    assert_true(run.n_out == 0 && run.err[0] == '\0');
    assert_true(was_ended(&g));
    infer_close(g.conn);

    assert_int_equal(INFERCTL("cancel", "--json", "1"), 4);
    assert_string_equal(run.out, "[{\"id\": 1, \"ended\": false, \"error\": \"NOT_FOUND\"}]\n");
    assert_int_equal(INFERCTL("cancel"), 2);
    err_has("'inferctl ps' lists them");
    assert_int_equal(INFERCTL("cancel", "1", "x"), 2);
    assert_int_equal(INFERCTL("cancel", "99999999999999999999"), 2);
    assert_int_equal(INFERCTL("cancel", "-1"), 2);
}

/* ---- several answers, windows, conversations ------------------------------------------------- */

static void test_several_answers(void **state)
{
    assert_int_equal(INFERCTL("prompt", "--answers", "3", "count:1"), 0);
    assert_string_equal(run.out, "answer 1 of 3\na0:0 a0:1 a0:2 \n\n"
                                 "answer 2 of 3\na1:0 a1:1 \n\n"
                                 "answer 3 of 3\na2:0 \n");
    assert_string_equal(run.err, "");
    assert_int_equal(INFERCTL("prompt", "--answers", "1", "--raw", "count:2"), 0);
    assert_string_equal(run.out, "t0 t1 \n");
    assert_int_equal(INFERCTL("prompt", "--answers=2", "-v", "count:1"), 0);
    err_has("answer 2 tokens, 0.1 ms");
    err_has("answer 1 tokens, 0.1 ms");
    assert_int_equal(INFERCTL("prompt", "--answers", "65", "count:1"), 4);
    assert_string_equal(run.out, "");
    err_has("inferctl: a parameter is out of range");

    assert_int_equal(
        INFERCTL("prompt", "--json", "--answers", "2", "--seed", "7", "--logprobs", "2", "count:1"),
        0);
    out_has("{\"answers\": [{\"text\": \"a0:0 a0:1 \", \"ids\": [0, 1], \"logprobs\": [{\"id\": 0");
    out_has("\"seed\": \"7\", \"finish\": \"stop\", \"usage\": {\"prompt_tokens\": 7, "
            "\"completion_tokens\": 2,");
    char seed[64];
    snprintf(seed, sizeof seed, "\"seed\": \"%llu\"", (unsigned long long)infer_answer_seed(7, 1));
    out_has(seed);
    out_has("}], \"prompt_ids\": [99, 111");
    out_has("\"completion_tokens\": 3,"); /* of both */
    assert_null(strstr(run.out, "conversation"));
    assert_int_equal(INFERCTL("prompt", "--json", "--answers", "2", "count:1"), 0);
    assert_null(strstr(run.out, "seed"));
}

/* What an interrupt cuts short is printed as far as it came. */
static void test_several_answers_interrupted(void **state)
{
    start_on_terminal(24, 80, ARGUMENTS("prompt", "--no-color", "--answers", "2", "queue:100"));
    wait_for("waiting: ", 0);
    assert_int_equal(write(run.out_fd, "\003", 1), 1);
    end();
    assert_int_equal(run.status, 130);
    assert_null(strstr(run.out, "answer 1"));
}

static void test_window_and_wait(void **state)
{
    assert_int_equal(INFERCTL("prompt", "--window", "256", "--wait", "third"), 0);
    assert_string_equal(run.out, "answers 1 window 256 sinks 4 conversation 0 wait\n");
    assert_int_equal(INFERCTL("prompt", "--window", "64", "--sinks", "16", "third"), 0);
    assert_string_equal(run.out, "answers 1 window 64 sinks 16 conversation 0\n");
    assert_int_equal(run_piped("third\n", ARGUMENTS("chat", "--window", "80", "--wait")), 0);
    assert_string_equal(run.out, "answers 1 window 80 sinks 4 conversation 0 keep wait\n");
    assert_int_equal(INFERCTL("prompt", "--window", "63", "third"), 4);
    err_has("out of range");
    assert_int_equal(INFERCTL("prompt", "--sinks", "4", "third"), 2);
    err_has("--sinks goes with --window");
    assert_int_equal(run_piped("third\n", ARGUMENTS("chat", "--sinks", "4")), 2);
}

static void test_keep_and_continue(void **state)
{
    assert_int_equal(INFERCTL("prompt", "--keep", "turns"), 0);
    assert_string_equal(run.out, "conversation 77 turn 0 of 1 messages\n");
    assert_string_equal(run.err, "conversation 77: continue with --continue 77\n");
    assert_int_equal(INFERCTL("prompt", "--continue", "77", "turns"), 0);
    assert_string_equal(run.out, "conversation 77 turn 1 of 1 messages\n");
    assert_string_equal(run.err, "");
    assert_int_equal(INFERCTL("prompt", "--continue", "77", "--json", "turns"), 0);
    out_has("\"conversation\": 77");
    out_has("\"model\": null");
    assert_int_equal(INFERCTL("prompt", "--keep", "--json", "-m", "two", "turns"), 0);
    out_has("\"conversation\": 80");
    out_has("\"model\": \"two\"");
    assert_string_equal(run.err, "");
    assert_int_equal(INFERCTL("prompt", "--keep", "-q", "turns"), 0);
    assert_string_equal(run.err, "");

    assert_int_equal(INFERCTL("prompt", "--continue", "5", "turns"), 4);
    err_has("inferctl: no such request or conversation; it may be over");
    assert_string_equal(run.out, "");
    assert_int_equal(INFERCTL("prompt", "--keep", "bad"), 4); /* nothing to be continued */
    assert_null(strstr(run.err, "--continue"));
    assert_int_equal(INFERCTL("prompt", "--continue", "0", "x"), 2);
    err_has("--continue takes the number that --keep told, not '0'");
    assert_int_equal(INFERCTL("prompt", "--continue", "18446744073709551616", "x"), 2);
    assert_int_equal(INFERCTL("prompt", "--continue", "77", "--answers", "2", "x"), 2);
    assert_int_equal(INFERCTL("prompt", "--keep", "--answers", "2", "x"), 2);
    err_has("a conversation goes on with one answer; leave out --answers");
    assert_int_equal(INFERCTL("prompt", "--continue", "77", "--system", "s", "x"), 2);
    err_has("--system goes with the first question");
}

static void test_forget(void **state)
{
    assert_int_equal(INFERCTL("prompt", "--keep", "turns"), 0);
    assert_int_equal(INFERCTL("forget", "5", "77", "6"), 4); /* the others do not hinder it */
    err_has("it may be over: 5\n");
    err_has("it may be over: 6\n");
    assert_int_equal(INFERCTL("prompt", "--continue", "77", "turns"), 4);
    assert_int_equal(INFERCTL("prompt", "--keep", "turns"), 0);
    err_has("conversation 79:");
    assert_int_equal(INFERCTL("forget", "--json", "79"), 0);
    assert_string_equal(run.out, "[{\"id\": 79, \"forgotten\": true}]\n");
    assert_int_equal(INFERCTL("forget"), 2);
    err_has("give the ids of conversations, as 'inferctl prompt --keep' tells them");
    assert_int_equal(INFERCTL("forget", "x"), 2);
    err_has("'x' is not the id of a conversation");
}

/* ---- chat ------------------------------------------------------------------------------------ */

static void test_chat_keeps_its_conversation(void **state)
{
    assert_int_equal(run_piped("turns\nturns\n/stats\nturns\n", ARGUMENTS("chat", "--system", "s")),
                     0);
    assert_string_equal(
        run.out, "conversation 77 turn 0 of 2 messages\n"
                 "conversation 77 turn 1 of 1 messages\n"
                 "2 answers, 10 prompt tokens, 2 answer tokens, 5 messages, "
                 "conversation 77\nlast: prompt 5 tokens (0 cached), 0.0 ms, 2500000.0 tokens/s; "
                 "answer 1 tokens, 0.0 ms; queued 0.0 ms; end: stop\n"
                 "conversation 77 turn 2 of 1 messages\n");
    assert_int_equal(INFERCTL("forget", "77"), 4); /* it went with the chat */
}

/* What changes the messages before the new one needs another conversation. */
static void test_chat_begins_anew(void **state)
{
    char saved[64], script[256];
    snprintf(saved, sizeof saved, "%s/saved", fake->folder);
    snprintf(script, sizeof script,
             "turns\n/reset\nturns\nturns\n/save %s\n/system s\nturns\nturns\n/load %s\nturns\n",
             saved, saved);
    assert_int_equal(run_piped(script, ARGUMENTS("chat")), 0);
    assert_string_equal(run.out, "conversation 77 turn 0 of 1 messages\n"
                                 "conversation 78 turn 0 of 1 messages\n"
                                 "conversation 78 turn 1 of 1 messages\n"
                                 "conversation 80 turn 0 of 6 messages\n"
                                 "conversation 80 turn 1 of 1 messages\n"
                                 "conversation 82 turn 0 of 5 messages\n");
    unlink(saved);
    for (int i = 0; i < FAKE_TALKS; i++)
        assert_true(fake->talks[i].id == 0); /* all of them were ended */
}

static void test_chat_says_it_anew_when_it_was_forgotten(void **state)
{
    assert_int_equal(run_piped("turns\nlose\nturns\nturns\n", ARGUMENTS("chat")), 0);
    assert_string_equal(run.out, "conversation 77 turn 0 of 1 messages\nlose\n"
                                 "conversation 80 turn 0 of 5 messages\n"
                                 "conversation 80 turn 1 of 1 messages\n");
    assert_string_equal(run.err, "");

    fake->older = true; /* a daemon that keeps none is asked once */
    int before = fake->n_requests;
    assert_int_equal(run_piped("turns\nturns\n", ARGUMENTS("chat")), 0);
    assert_string_equal(run.out, "conversation 0 turn 0 of 1 messages\n"
                                 "conversation 0 turn 0 of 3 messages\n");
    assert_int_equal(fake->n_requests - before, 1 + 1 + 2); /* models, refused, two */
    fake->older = false;

    assert_int_equal(run_piped("turns\nuntold\nturns\n", ARGUMENTS("chat")), 0);
    out_has("untold\nconversation 0 turn 0 of 5 messages\n");
}

static void test_chat_after_an_error(void **state)
{
    start_on_terminal(24, 200, ARGUMENTS("chat", "--no-color"));
    wait_for("/help lists commands", 0);
    assert_int_equal(write(run.out_fd, "turns\r", 6), 6);
    wait_for("conversation 77 turn 0 of 1 messages", 0);
    assert_int_equal(write(run.out_fd, "bad\r", 4), 4);
    wait_for("no such model is served", 0);
    assert_int_equal(write(run.out_fd, "turns\r", 6), 6);
    wait_for("of 3 messages", 0); /* the question that failed is taken back */
    assert_int_equal(write(run.out_fd, "/quit\r", 6), 6); /* a Ctrl-D typed ahead could be lost */
    end();
    assert_int_equal(run.status, 0);
}

/* Another daemon may give the same id to a conversation of somebody else. */
static void test_chat_notices_another_daemon(void **state)
{
    start_on_terminal(24, 200, ARGUMENTS("chat", "--no-color"));
    wait_for("/help lists commands", 0);
    assert_int_equal(write(run.out_fd, "turns\r", 6), 6);
    wait_for("conversation 77 turn 0 of 1 messages", 0);
    wait_for("\n> ", (size_t)(strstr(run.out, "1 messages") - run.out)); /* the answer has ended */
    fake_kill(fake);
    fake->started_us += 3000000;
    fake_start(fake); /* which knows a conversation 77 */
    size_t from = run.n_out;
    assert_int_equal(write(run.out_fd, "turns\r", 6), 6);
    wait_for("turn 0 of 3 messages", from);
    assert_int_equal(write(run.out_fd, "/quit\r", 6), 6); /* a Ctrl-D typed ahead could be lost */
    end();
    assert_int_equal(run.status, 0);
    assert_int_equal(fake->talks[0].turns, 1);
}

/* ---- the queue ------------------------------------------------------------------------------- */

static void test_priority_and_deadline(void **state)
{
    assert_int_equal(INFERCTL("prompt", "fields"), 0);
    assert_string_equal(run.out, "priority 0 deadline 0\n");
    assert_int_equal(
        INFERCTL("prompt", "--priority", "batch", "--deadline", "1.5", "--raw", "fields"), 0);
    assert_string_equal(run.out, "priority 2 deadline 1500\n");
    assert_int_equal(INFERCTL("prompt", "--priority=interactive", "--deadline", "0.0001", "fields"),
                     0);
    assert_string_equal(run.out, "priority 1 deadline 1\n");
    assert_int_equal(run_piped("fields\n", ARGUMENTS("chat")), 0);
    assert_string_equal(run.out, "priority 1 deadline 0\n");
    assert_int_equal(INFERCTL("prompt", "--priority", "urgent", "x"), 2);
    err_has("--priority takes interactive, normal or batch, not 'urgent'");
    assert_int_equal(INFERCTL("prompt", "--deadline", "-1", "x"), 2);
    assert_int_equal(INFERCTL("prompt", "--deadline", "nan", "x"), 2);
    assert_int_equal(INFERCTL("prompt", "--deadline", "1e9", "x"), 2);
    err_has("--deadline takes seconds from 0 to 4e+06");
}

static void test_waiting_line(void **state)
{
    start_on_terminal(24, 80, ARGUMENTS("prompt", "--raw", "queue:4"));
    end();
    assert_int_equal(run.status, 0);
    out_has("waiting: 4 before this one, starts in about ");
    out_has("waiting: 1 before this one, starts in about 1s");
    const char *last = strstr(run.out, "waiting: 1 ");
    last = strstr(last, "\033[K\r\033[K"); /* drawn, then gone */
    assert_non_null(last);
    assert_null(strstr(last, "waiting"));
    assert_string_equal(last + 7, "queue:4\r\n");

    start_on_terminal(24, 80, ARGUMENTS("prompt", "--raw", "count:3"));
    end();
    assert_string_equal(run.out, "t0 t1 t2 \r\n"); /* no wait, no line */
    start_on_terminal(24, 80, ARGUMENTS("prompt", "--raw", "--quiet", "queue:2"));
    end();
    assert_string_equal(run.out, "queue:2\r\n");
    assert_int_equal(INFERCTL("prompt", "--raw", "queue:2"), 0);
    assert_string_equal(run.out, "queue:2\n");
    assert_string_equal(run.err, "");
}

static void test_waiting_line_goes_at_an_interrupt(void **state)
{
    start_on_terminal(24, 80, ARGUMENTS("prompt", "--raw", "queue:100"));
    wait_for("waiting: ", 0);
    assert_int_equal(write(run.out_fd, "\003", 1), 1);
    end();
    assert_int_equal(run.status, 130);
    const char *last = run.out;
    for (const char *at = run.out; (at = strstr(at, "waiting: ")) != NULL; at++)
        last = at;
    assert_non_null(strstr(last, "\r\033[K"));
}

/* ---- top ------------------------------------------------------------------------------------- */

static void test_top_once(void **state)
{
    struct guest g = invite();
    assert_int_equal(INFERCTL("top", "--once"), 0);
    out_has("inferd 0.1  pid 42, up ");
    out_has("; 1 running, 0 waiting");
    out_has("\nModels: one (), two ()\nSpeed: 0.0 prompt tokens/s, 1000.0 tokens/s\n");
    out_has("Pages: [########............] 37 of 100, 16 tokens each");
    out_has("\nUSER ");
    out_has("\n      77 ");
    out_has("guest?[2J");
    assert_null(strchr(run.out, '\033'));
    assert_int_equal(INFERCTL("top"), 0); /* nobody could type q */
    out_has("\n      77 ");
    assert_int_equal(INFERCTL("top", "--once", "--json"), 0);
    out_has("{\"status\": {\"version\": \"0.1\", \"pid\": 42, ");
    out_has("\"users\": [{\"uid\": ");
    out_has("\"sequences\": [{\"id\": 77, ");
    assert_int_equal(INFERCTL("top", "--json"), 2);
    err_has("--json goes with --once");
    assert_int_equal(INFERCTL("top", "--interval", "0"), 2);
    assert_int_equal(INFERCTL("top", "--interval", "nan"), 2);
    assert_int_equal(INFERCTL("top", "77"), 2);
    infer_close(g.conn);
}

/* Every row of every frame fits the screen. */
static void frames_fit(unsigned rows, unsigned columns)
{
    unsigned row = 0, column = 0;
    for (const char *at = run.out; *at != '\0'; at++) {
        if (*at == '\033') {
            bool home = at[2] == 'H';
            at += 2 + strspn(at + 2, "?0123456789;");
            if (home)
                row = column = 0;
        } else if (*at == '\r') {
            column = 0;
        } else if (*at == '\n') {
            row++;
        } else {
            column++;
        }
        if (row >= rows || column > columns)
            fail_msg("row %u, column %u of a screen of %u, %u: %s", row, column, rows, columns,
                     run.out);
    }
}

static void test_top_on_a_terminal(void **state)
{
    struct guest g[4];
    for (int i = 0; i < 4; i++)
        g[i] = invite();
    start_on_terminal(24, 200, ARGUMENTS("top", "--interval", "0.1"));
    wait_for("\033[?1049h", 0);
    wait_for("      80 ", 0);
    size_t seen = run.n_out;
    wait_for("\033[H", seen); /* and again */
    wait_for("      80 ", seen);
    struct winsize size = {.ws_row = 12, .ws_col = 40};
    assert_int_equal(ioctl(run.out_fd, TIOCSWINSZ, &size), 0);
    wait_for("... and ", seen);
    assert_int_equal(write(run.out_fd, "q", 1), 1);
    end();
    assert_int_equal(run.status, 0);
    out_has("\033[?25h\033[?1049l");
    frames_fit(24, 200);

    static const unsigned short sizes[][2] = {{10, 60}, {5, 20}, {1, 1}, {60, 150}};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        start_on_terminal(sizes[i][0], sizes[i][1], ARGUMENTS("top", "--interval", "0.1"));
        wait_for("\033[J", 0);
        wait_for("\033[J", run.n_out);
        assert_int_equal(write(run.out_fd, "\003", 1), 1); /* Ctrl-C */
        end();
        assert_int_equal(run.status, 0);
        out_has("\033[?1049l");
        frames_fit(sizes[i][0], sizes[i][1]);
    }
    for (int i = 0; i < 4; i++)
        infer_close(g[i].conn);
}

static void test_top_gives_the_terminal_back(void **state)
{
    start_on_terminal(24, 80, ARGUMENTS("top"));
    wait_for("\033[J", 0);
    kill(run.pid, SIGTERM);
    end();
    assert_int_equal(run.status, 128 + SIGTERM);
    out_has("\033[?25h\033[?1049l");

    start_on_terminal(24, 80, ARGUMENTS("top", "--interval", "0.2"));
    wait_for("\033[J", 0);
    kill(run.pid, SIGTSTP);
    wait_for("\033[?1049l", 0);
    /* An orphan is not stopped by SIGTSTP; who is stopped may be so only after our SIGCONT came. */
    for (int i = 0; i < 100 && strstr(run.out + 10, "\033[?1049h") == NULL; i++) {
        kill(run.pid, SIGCONT);
        read_some(100);
    }
    size_t seen = run.n_out;
    wait_for("\033[?1049h", 10);
    wait_for("\033[J", seen);
    kill(run.pid, SIGINT);
    end();
    assert_int_equal(run.status, 0);
}

static void test_top_when_the_daemon_goes(void **state)
{
    start_on_terminal(24, 80, ARGUMENTS("top", "--interval", "0.1"));
    wait_for("\033[J", 0);
    fake_kill(fake);
    end();
    fake_start(fake);
    assert_int_equal(run.status, 3);
    const char *left = strstr(run.out, "\033[?1049l"); /* first the screen, then the error */
    assert_non_null(left);
    assert_non_null(strstr(left, "inferctl:"));
}

static int set_up(void **state)
{
    fake = fake_new();
    return 0;
}

static int tear_down(void **state)
{
    fake_free(fake);
    return 0;
}

#define WITH_DAEMON(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_DAEMON(test_ps),
        WITH_DAEMON(test_cancel),
        WITH_DAEMON(test_several_answers),
        WITH_DAEMON(test_several_answers_interrupted),
        WITH_DAEMON(test_window_and_wait),
        WITH_DAEMON(test_keep_and_continue),
        WITH_DAEMON(test_forget),
        WITH_DAEMON(test_chat_keeps_its_conversation),
        WITH_DAEMON(test_chat_begins_anew),
        WITH_DAEMON(test_chat_says_it_anew_when_it_was_forgotten),
        WITH_DAEMON(test_chat_after_an_error),
        WITH_DAEMON(test_chat_notices_another_daemon),
        WITH_DAEMON(test_priority_and_deadline),
        WITH_DAEMON(test_waiting_line),
        WITH_DAEMON(test_waiting_line_goes_at_an_interrupt),
        WITH_DAEMON(test_top_once),
        WITH_DAEMON(test_top_on_a_terminal),
        WITH_DAEMON(test_top_gives_the_terminal_back),
        WITH_DAEMON(test_top_when_the_daemon_goes),
    };
    signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
