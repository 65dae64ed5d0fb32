/* chat.c: `inferctl chat`: a conversation, which is a list of messages sent anew with each turn.
 *
 * Owns: the messages. The daemon keeps nothing between turns but its prefix cache, so /reset and
 * /load are matters of this list alone. Invariant: after the optional system message, user and
 * assistant take turns; a question whose answer failed is taken back. On a terminal, errors are
 * printed and the conversation goes on; from a pipe, the first error ends it with its status. */
#include "ctl.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define CHAT_FILE_MAX INFER_REQUEST_BYTES_MAX

struct chat {
    struct ctl *ctl;
    struct infer_message *messages; /* role is static, content is ours */
    size_t n, capacity;
    bool interactive, quit;
    struct answer last; /* figures of the last answer */
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

/* ---- what is typed with a slash -------------------------------------------------------------- */

static void remark(const struct chat *chat, const char *text)
{
    if (chat->interactive && !chat->ctl->options.quiet)
        printf("%s%s%s\n", term_style(stdout, TERM_DIM), text, term_style(stdout, TERM_PLAIN));
}

static int do_reset(struct chat *chat, const char *argument)
{
    drop_messages(chat, system_messages(chat));
    remark(chat, "the conversation starts over");
    return 0;
}

static int do_system(struct chat *chat, const char *argument)
{
    set_system(chat, argument);
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
    printf("%u answers, %llu prompt tokens, %llu answer tokens, %zu messages\n", chat->n_turns,
           (unsigned long long)chat->n_prompt, (unsigned long long)chat->n_generated, chat->n);
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

/* Says the line and prints the answer; both are remembered unless the answer failed. */
static int take_turn(struct chat *chat, const char *text)
{
    struct infer_request request;
    struct answer answer;
    int r, status = 0;

    if (chat->n + 2 > INFER_MESSAGES_MAX)
        return ctl_error("the conversation has %zu messages, which is the most; /reset", chat->n);
    add_message(chat, "user", text, strlen(text));
    answer_request(chat->ctl, &request);
    request.messages = chat->messages;
    request.n_messages = chat->n;
    request.priority = INFER_PRIORITY_INTERACTIVE; /* somebody sits there */
    term_interrupts_forget();
    r = answer_run(chat->ctl, &request, true, &answer);
    if (!answer.ends_line)
        putchar('\n');
    if (r < 0) {
        drop_messages(chat, chat->n - 1);
        answer_done(&answer);
        return ctl_fail_conn(chat->ctl, r);
    }
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
    int status = ctl_model(chat->ctl, &model);

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
    drop_messages(&chat, 0);
    free(chat.messages);
    answer_done(&chat.last);
    line_free(reader);
    return status;
}
