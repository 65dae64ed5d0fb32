/* prompt.c: `inferctl prompt`: one question, one answer or several.
 *
 * Plain output is the answer's text as it comes and a newline where it has none at its end;
 * --json prints one object when the answer is complete, also when it failed on the way. */
#include "ctl.h"

#include <stdlib.h>
#include <string.h>

#define DEADLINE_MAX_S 4000000 /* a little less than 32 bits of milliseconds hold */

/* What the request points to. */
struct prompt_input {
    struct ctl_buffer text;
    struct ctl_ids ids;
    struct infer_message messages[2];
};

static int check_options(const struct ctl *ctl)
{
    const struct ctl_options *o = &ctl->options;

    if (o->ids && (o->file || ctl->n_operands > 0))
        return ctl_usage(ctl, "give either --ids or a text");
    if ((o->raw || o->ids) && o->system)
        return ctl_usage(ctl, "--system needs the chat template, which --raw and --ids leave out");
    if (o->answers > 1 && (o->keep || o->conversation))
        return ctl_usage(ctl, "a conversation goes on with one answer; leave out --answers");
    if (o->system && o->conversation)
        return ctl_usage(ctl, "--system goes with the first question of a conversation");
    if (o->sinks && !o->window)
        return ctl_usage(ctl, "--sinks goes with --window");
    if (o->special && !o->raw)
        return ctl_usage(ctl, "--special goes with --raw");
    if (!(o->deadline >= 0 && o->deadline <= DEADLINE_MAX_S))
        return ctl_usage(ctl, "--deadline takes seconds from 0 to %g", (double)DEADLINE_MAX_S);
    if (o->sampling.logprobs && !o->json)
        return ctl_usage(ctl, "--logprobs goes with --json");
    return 0;
}

/* From a file or pipe the last newline belongs to the line, not to the question. */
static void drop_newline(const struct ctl *ctl, struct ctl_buffer *text)
{
    bool typed = !ctl->options.file && ctl->n_operands > 0 && strcmp(ctl->operands[0], "-") != 0;

    if (typed || text->n == 0 || text->bytes[text->n - 1] != '\n')
        return;
    text->bytes[--text->n] = '\0';
    if (text->n > 0 && text->bytes[text->n - 1] == '\r')
        text->bytes[--text->n] = '\0';
}

static int build_request(const struct ctl *ctl, struct prompt_input *input,
                         struct infer_request *request)
{
    const struct ctl_options *o = &ctl->options;
    size_t n = 0;
    int status;

    answer_request(ctl, request);
    if (o->ids) {
        status = input_ids(ctl, "--ids", o->ids, strlen(o->ids), &input->ids);
        request->tokens = input->ids.ids;
        request->n_tokens = input->ids.n;
        if (!status && input->ids.n == 0)
            status = ctl_usage(ctl, "--ids names no token");
        return status;
    }
    status = input_text(ctl, &input->text);
    if (status)
        return status;
    if (o->raw) {
        if (input->text.n == 0)
            return ctl_usage(ctl, "the text is empty");
        request->text = input->text.bytes;
        request->text_bytes = input->text.n;
        return 0;
    }
    drop_newline(ctl, &input->text);
    if (strlen(input->text.bytes) != input->text.n)
        return ctl_usage(ctl, "the text holds a NUL byte; only --raw takes that");
    if (input->text.n == 0)
        return ctl_usage(ctl, "the text is empty");
    if (o->system) {
        input->messages[n].role = "system";
        input->messages[n++].content = o->system;
    }
    input->messages[n].role = "user";
    input->messages[n++].content = input->text.bytes;
    request->messages = input->messages;
    request->n_messages = n;
    return 0;
}

/* Is there something now that can be continued? The daemon keeps what a request said that failed
 * before its first token as little as that of one which never ran. */
static bool was_kept(const struct answer *answer)
{
    return answer->id != 0 && (answer->n_generated > 0 ||
                               (answer->error == 0 && answer->finish != INFER_FINISH_CANCEL));
}

static void tell_conversation(uint64_t id)
{
    fflush(stdout);
    fprintf(stderr, "conversation %llu: continue with --continue %llu\n", (unsigned long long)id,
            (unsigned long long)id);
}

static json_t *prompt_json(const struct ctl *ctl, const struct answer *answer, const char *model)
{
    const struct ctl_options *o = &ctl->options;
    json_t *root = answer_json(answer, model, o->sampling.seed);
    uint64_t id = o->conversation ? o->conversation : answer->id;

    if ((o->keep || o->conversation) && was_kept(answer))
        json_object_set_new(root, "conversation", json_integer((json_int_t)id));
    return root;
}

static void print_timings(const struct answer *answer)
{
    for (uint32_t i = 0; i < answer->n_each; i++)
        answer_print_timings(stderr, &answer->each[i]);
    if (answer->n_each == 0)
        answer_print_timings(stderr, answer);
}

/* The answer, to its exit status. */
static int ask(struct ctl *ctl, const struct infer_request *request)
{
    const struct ctl_options *o = &ctl->options;
    bool json = o->json != 0;
    bool unnamed = o->conversation && !o->model; /* the conversation's, which nobody told us */
    struct infer_model model;
    struct answer answer;
    int r, status = 0;

    if (json && !unnamed) {
        status = ctl_model(ctl, &model);
        if (status)
            return status;
    }
    r = answer_run(ctl, request, !json, &answer);
    if (!json && !answer.ends_line)
        putchar('\n');
    if (r < 0) {
        answer_done(&answer);
        return ctl_fail_conn(ctl, r);
    }
    if (json)
        status = output_json(prompt_json(ctl, &answer, unnamed ? NULL : model.name));
    else
        status = ctl_finish_output(0);
    if (!json && o->keep && !o->conversation && !o->quiet && was_kept(&answer))
        tell_conversation(answer.id);
    if (answer.interrupted)
        status = CTL_EXIT_INTERRUPTED;
    else if (answer.error)
        status = ctl_fail(answer.error, answer.detail);
    if (o->verbose)
        print_timings(&answer);
    answer_done(&answer);
    return status;
}

int prompt_command(struct ctl *ctl)
{
    struct infer_request request;
    struct prompt_input input;
    int status;

    memset(&input, 0, sizeof input);
    status = check_options(ctl);
    if (!status)
        status = build_request(ctl, &input, &request);
    if (!status)
        status = ctl_connect(ctl);
    if (!status) {
        term_interrupt_watch(true);
        status = ask(ctl, &request);
    }
    buffer_done(&input.text);
    free(input.ids.ids);
    return status;
}
