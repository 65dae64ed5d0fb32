/* chat.c: `inferctl chat`: a conversation, which the daemon keeps, so that a turn sends no more
 * than the new message.
 *
 * Owns: the messages, all of them: they are what /save writes, and what is sent anew whenever the
 * daemon has no conversation of ours: at first, after /reset, /system and /load, when it has
 * forgotten it (NOT_FOUND) or was started again, or never keeps any. Invariants: after the optional
 * system message, user and assistant take turns; a question whose answer failed is taken back.
 * When `conversation` is not 0, it holds what all messages say but for a question that has not been
 * answered yet; whenever that may not be so, it is dropped.
 *
 * On a terminal, errors are printed and the conversation goes on; from a pipe, the first error ends
 * it with its status. */
#include "ctl.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define CHAT_FILE_MAX INFER_REQUEST_BYTES_MAX
#define CHAT_START_US 1000000u /* two starts of daemons lie further apart */

struct chat {
    struct ctl *ctl;
    struct infer_message *messages; /* role is static, content is ours */
    size_t n, capacity;
    bool interactive, quit;
    bool resends;             /* this daemon or model keeps no conversation: do not ask again */
    uint64_t conversation;    /* 0: the daemon has none of ours */
    uint32_t daemon_pid;      /* of the daemon that has it, and its start by CLOCK_MONOTONIC: */
    uint64_t daemon_start_us; /* another one may have given the same id to something else */
    struct answer last;       /* figures of the last answer */
    uint32_t n_turns;
    uint64_t n_prompt, n_generated;
};

/* ---- messages -------------------------------------------------------------------------------- */

static void add_message(struct chat *chat, const char *role, const char *content, size_t n)
{
    char *copy = ctl_alloc(n + 1);

    memcpy(copy, content, n);
    copy[n] = '\0';
    if (chat->n == chat->capacity) {
        chat->capacity = chat->capacity ? 2 * chat->capacity : 16;
        chat->messages = ctl_resize(chat->messages, chat->capacity * sizeof *chat->messages);
    }
    chat->messages[chat->n].role = role;
    chat->messages[chat->n].content = copy;
    chat->n++;
}

static void drop_messages(struct chat *chat, size_t keep)
{
    while (chat->n > keep)
        free((char *)chat->messages[--chat->n].content);
}

static size_t system_messages(const struct chat *chat)
{
    return chat->n > 0 && strcmp(chat->messages[0].role, "system") == 0;
}

/* Sets, replaces or (for "") removes the system message, and keeps the rest. */
static void set_system(struct chat *chat, const char *text)
{
    struct infer_message own = {"system", NULL};
    size_t length = strlen(text);

    if (system_messages(chat)) {
        free((char *)chat->messages[0].content);
        chat->n--;
        memmove(chat->messages, chat->messages + 1, chat->n * sizeof *chat->messages);
    }
    if (length == 0)
        return;
    add_message(chat, own.role, text, length);
    own = chat->messages[chat->n - 1];
    memmove(chat->messages + 1, chat->messages, (chat->n - 1) * sizeof *chat->messages);
    chat->messages[0] = own;
}

/* ---- the daemon's copy ----------------------------------------------------------------------- */

/* Who is the daemon? false: it does not tell. */
static bool daemon_identity(const struct chat *chat, uint32_t *ret_pid, uint64_t *ret_start_us)
{
    static struct infer_page page; /* too large for a stack that others also use */

    if (infer_read_page(chat->ctl->conn, &page) < 0)
        return false;
    *ret_pid = page.status.pid;
    *ret_start_us = page.written_us - page.status.uptime_us;
    return true;
}

/* The daemon is to forget it, or has; if it cannot be told, it will after some hours. */
static void drop_conversation(struct chat *chat)
{
    if (chat->conversation)
        (void)infer_forget(chat->ctl->conn, chat->conversation);
    chat->conversation = 0;
}

/* Drops it when it was another daemon that had it. */
static void check_daemon(struct chat *chat)
{
    uint32_t pid;
    uint64_t start_us, apart;

    if (!chat->conversation)
        return;
    if (!daemon_identity(chat, &pid, &start_us)) {
        chat->conversation = 0;
        return;
    }
    apart = start_us > chat->daemon_start_us ? start_us - chat->daemon_start_us
                                             : chat->daemon_start_us - start_us;
    if (pid != chat->daemon_pid || apart > CHAT_START_US)
        chat->conversation = 0;
}

/* After an answer: does the daemon have what our messages say? What an error or an interrupt cut
 * short before a token, or an end that was not waited for, it may have or not. */
static void note_conversation(struct chat *chat, const struct answer *answer)
{
    bool whole = answer->complete && !answer->error &&
                 (answer->finish != INFER_FINISH_CANCEL || answer->n_generated > 0);

    if (chat->resends)
        return;
    if (!chat->conversation && answer->id != 0 &&
        daemon_identity(chat, &chat->daemon_pid, &chat->daemon_start_us))
        chat->conversation = answer->id;
    if (!whole)
        drop_conversation(chat);
}

/* The daemon refused because of the conversation: is there another way to say it? */
static bool say_it_anew(struct chat *chat, const struct answer *answer)
{
    bool gone = answer->error == INFER_E_NOT_FOUND || answer->error == INFER_E_CONVERSATION;
    /* A template may not tell where a turn ends; an older daemon keeps nothing. */
    bool never = answer->error == INFER_E_UNSUPPORTED ||
                 (answer->error == INFER_E_NO_TEMPLATE && chat->conversation);

    if (chat->resends || answer->interrupted || answer->n_generated > 0 ||
        !(never || (gone && chat->conversation)))
        return false;
    if (!gone)
        drop_conversation(chat);
    chat->conversation = 0;
    chat->resends = never;
    return true;
}

/* ---- what is typed with a slash -------------------------------------------------------------- */

static void remark(const struct chat *chat, const char *text)
{
    if (chat->interactive && !chat->ctl->options.quiet)
        printf("%s%s%s\n", term_style(stdout, TERM_DIM), text, term_style(stdout, TERM_PLAIN));
}

static int do_reset(struct chat *chat, const char *argument)
{
    drop_messages(chat, system_messages(chat));
    drop_conversation(chat);
    remark(chat, "the conversation starts over");
    return 0;
}

static int do_system(struct chat *chat, const char *argument)
{
    set_system(chat, argument);
    drop_conversation(chat);
    remark(chat, argument[0] ? "system message set" : "no system message");
    return 0;
}

static int do_save(struct chat *chat, const char *argument)
{
    json_t *messages = json_array();
    json_t *root;
    int r;

    for (size_t i = 0; i < chat->n; i++) {
        const char *content = chat->messages[i].content;
        json_array_append_new(messages,
                              json_pack("{s:s, s:o}", "role", chat->messages[i].role, "content",
                                        output_json_text(content, strlen(content))));
    }
    root = json_pack("{s:o}", "messages", messages);
    errno = 0;
    r = json_dump_file(root, argument, JSON_INDENT(2));
    json_decref(root);
    if (r != 0)
        return ctl_error("cannot write '%s': %s", argument, errno ? strerror(errno) : "failed");
    remark(chat, "saved");
    return 0;
}

/* A role as one of our static names, or NULL. */
static const char *role_name(const char *role)
{
    static const char *const names[] = {"system", "user", "assistant"};

    for (size_t i = 0; role && i < sizeof names / sizeof names[0]; i++)
        if (strcmp(role, names[i]) == 0)
            return names[i];
    return NULL;
}

static bool messages_are_good(const json_t *messages)
{
    if (!json_is_array(messages) || json_array_size(messages) > INFER_MESSAGES_MAX)
        return false;
    for (size_t i = 0; i < json_array_size(messages); i++) {
        json_t *message = json_array_get(messages, i);
        const char *role = role_name(json_string_value(json_object_get(message, "role")));
        if (!role || !json_is_string(json_object_get(message, "content")))
            return false;
        if (i > 0 && strcmp(role, "system") == 0)
            return false;
    }
    return true;
}

static int do_load(struct chat *chat, const char *argument)
{
    struct ctl_buffer text;
    json_error_t error;
    json_t *root, *messages;
    int status = input_file(argument, &text);

    if (status)
        return status;
    root = json_loadb(text.bytes, text.n, 0, &error);
    buffer_done(&text);
    messages = json_object_get(root, "messages");
    if (!messages_are_good(messages)) {
        json_decref(root);
        return ctl_error("'%s' holds no conversation that /save wrote", argument);
    }
    drop_messages(chat, 0);
    drop_conversation(chat);
    for (size_t i = 0; i < json_array_size(messages); i++) {
        json_t *message = json_array_get(messages, i);
        const char *content = json_string_value(json_object_get(message, "content"));
        add_message(chat, role_name(json_string_value(json_object_get(message, "role"))), content,
                    strlen(content));
    }
    json_decref(root);
    remark(chat, "loaded");
    return 0;
}

static int do_stats(struct chat *chat, const char *argument)
{
    printf("%u answers, %llu prompt tokens, %llu answer tokens, %zu messages", chat->n_turns,
           (unsigned long long)chat->n_prompt, (unsigned long long)chat->n_generated, chat->n);
    if (chat->conversation)
        printf(", conversation %llu", (unsigned long long)chat->conversation);
    putchar('\n');
    if (chat->n_turns > 0) {
        fputs("last: ", stdout);
        answer_print_timings(stdout, &chat->last);
    }
    return 0;
}

static int do_quit(struct chat *chat, const char *argument)
{
    chat->quit = true;
    return 0;
}

static int do_help(struct chat *chat, const char *argument);

struct chat_verb {
    const char *name;
    const char *argument; /* NULL: takes none; in brackets: may be left out */
    const char *help;
    int (*run)(struct chat *chat, const char *argument);
};

static const struct chat_verb verbs[] = {
    {"reset", NULL, "forget the conversation, keep the system message", do_reset},
    {"system", "[TEXT]", "set the system message; without TEXT, remove it", do_system},
    {"save", "FILE", "write the conversation to FILE as JSON", do_save},
    {"load", "FILE", "go on with a conversation that /save wrote", do_load},
    {"stats", NULL, "figures of this conversation and its last answer", do_stats},
    {"help", NULL, "this list", do_help},
    {"quit", NULL, "leave (as does Ctrl-D)", do_quit},
    {"exit", NULL, "the same", do_quit},
};

#define N_VERBS (sizeof verbs / sizeof verbs[0])

static int do_help(struct chat *chat, const char *argument)
{
    for (size_t i = 0; i < N_VERBS; i++) {
        char left[32];
        snprintf(left, sizeof left, "/%s %s", verbs[i].name,
                 verbs[i].argument ? verbs[i].argument : "");
        printf("  %-16s %s\n", left, verbs[i].help);
    }
    puts("  //TEXT           say TEXT with one slash before it\n"
         "  a line ending in \\ goes on in the next; Ctrl-C cancels the answer");
    return 0;
}

static int run_verb(struct chat *chat, const char *line)
{
    size_t length = strcspn(line, " \t\n");
    const char *argument = line + length + strspn(line + length, " \t\n");
    const char *names[N_VERBS], *closest;
    char word[32];

    for (size_t i = 0; i < N_VERBS; i++) {
        names[i] = verbs[i].name;
        if (strlen(names[i]) != length || strncmp(names[i], line, length) != 0)
            continue;
        if (!verbs[i].argument && argument[0]) {
            ctl_error("/%s takes no argument", names[i]);
            return CTL_EXIT_USAGE;
        }
        if (verbs[i].argument && verbs[i].argument[0] != '[' && !argument[0]) {
            ctl_error("/%s needs %s", names[i], verbs[i].argument);
            return CTL_EXIT_USAGE;
        }
        return verbs[i].run(chat, argument);
    }
    snprintf(word, sizeof word, "%.*s", (int)(length < 31 ? length : 31), line);
    closest = options_closest(word, names, N_VERBS);
    if (closest)
        ctl_error("unknown command '/%s'; did you mean '/%s'?", word, closest);
    else
        ctl_error("unknown command '/%s'; /help lists those there are", word);
    return CTL_EXIT_USAGE;
}

/* ---- turns ----------------------------------------------------------------------------------- */

static void count_answer(struct chat *chat, struct answer *answer)
{
    answer_done(&chat->last);
    chat->last = *answer;
    chat->n_turns++;
    chat->n_prompt += answer->n_prompt;
    chat->n_generated += answer->n_generated;
}

/* Sends the last message, with those before it unless the daemon has them, and prints the answer;
 * as answer_run(). */
static int run_turn(struct chat *chat, struct answer *ret_answer)
{
    struct infer_request request;
    size_t known;
    int r;

    check_daemon(chat);
    for (;;) {
        known = chat->conversation ? chat->n - 1 : 0;
        answer_request(chat->ctl, &request);
        request.messages = chat->messages + known;
        request.n_messages = chat->n - known;
        request.keep = !chat->resends;
        request.conversation = chat->conversation;
        request.priority = INFER_PRIORITY_INTERACTIVE; /* somebody sits there */
        r = answer_run(chat->ctl, &request, true, ret_answer);
        if (r < 0 || !say_it_anew(chat, ret_answer))
            return r;
        answer_done(ret_answer);
    }
}

/* Says the line and prints the answer; both are remembered unless the answer failed. */
static int take_turn(struct chat *chat, const char *text)
{
    struct answer answer;
    int r, status = 0;

    if (chat->n + 2 > INFER_MESSAGES_MAX)
        return ctl_error("the conversation has %zu messages, which is the most; /reset", chat->n);
    add_message(chat, "user", text, strlen(text));
    term_interrupts_forget();
    r = run_turn(chat, &answer);
    if (!answer.ends_line)
        putchar('\n');
    if (r < 0) {
        drop_messages(chat, chat->n - 1);
        chat->conversation = 0;
        answer_done(&answer);
        return ctl_fail_conn(chat->ctl, r);
    }
    note_conversation(chat, &answer);
    status = ctl_finish_output(0);
    if (answer.error && !answer.interrupted) {
        drop_messages(chat, chat->n - 1);
        status = ctl_fail(answer.error, answer.detail);
        if (answer.error == INFER_E_PROMPT_TOO_LONG)
            remark(chat, "/reset starts over");
    } else {
        const char *said = answer.text.bytes ? answer.text.bytes : "";
        add_message(chat, "assistant", said, strlen(said));
        if (answer.interrupted) {
            remark(chat, "(cancelled)");
            status = CTL_EXIT_INTERRUPTED;
        }
    }
    if (chat->ctl->options.verbose)
        answer_print_timings(stderr, &answer);
    count_answer(chat, &answer);
    return status;
}

static int take_line(struct chat *chat, const char *text)
{
    size_t blank = strspn(text, " \t\n");

    if (!text[blank])
        return 0;
    if (text[0] == '/' && text[1] != '/')
        return run_verb(chat, text + 1);
    return take_turn(chat, text[0] == '/' ? text + 1 : text);
}

static int converse(struct chat *chat, struct line_reader *reader)
{
    const char *text;
    int status = 0;

    while (!chat->quit) {
        enum line_result result = line_read(reader, &text);

        if (result == LINE_INTERRUPTED && !chat->interactive)
            return CTL_EXIT_INTERRUPTED;
        if (result == LINE_INTERRUPTED)
            continue;
        if (result == LINE_END)
            break;
        status = take_line(chat, text);
        if (status && !chat->interactive)
            return status;
    }
    if (chat->interactive && !chat->quit)
        putchar('\n');
    return 0;
}

static int greet(struct chat *chat)
{
    struct infer_model model;
    int status = ctl_loaded_model(chat->ctl, &model);

    if (status || !chat->interactive || chat->ctl->options.quiet)
        return status;
    fputs(term_style(stdout, TERM_DIM), stdout);
    term_write(stdout, model.name, strlen(model.name));
    fputs(" (", stdout);
    term_write(stdout, model.description, strnlen(model.description, sizeof model.description));
    printf("), context %u tokens; /help lists commands, Ctrl-D quits%s\n", model.n_context,
           term_style(stdout, TERM_PLAIN));
    return 0;
}

int chat_command(struct ctl *ctl)
{
    struct chat chat;
    struct line_reader *reader;
    int status;

    if (ctl->n_operands > 0)
        return ctl_usage(ctl, "unexpected argument '%s'", ctl->operands[0]);
    if (ctl->options.sinks && !ctl->options.window)
        return ctl_usage(ctl, "--sinks goes with --window");
    status = ctl_connect(ctl);
    if (status)
        return status;
    memset(&chat, 0, sizeof chat);
    chat.ctl = ctl;
    reader = line_new();
    chat.interactive = line_is_interactive(reader);
    term_interrupt_watch(false);
    if (ctl->options.system)
        set_system(&chat, ctl->options.system);
    status = greet(&chat);
    if (!status)
        status = converse(&chat, reader);
    drop_conversation(&chat);
    drop_messages(&chat, 0);
    free(chat.messages);
    answer_done(&chat.last);
    line_free(reader);
    return status;
}
