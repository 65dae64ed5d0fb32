/* score.c: `inferctl score`: log P(token | those before it) for each token of a text.
 *
 * The perplexity is exp(-total / scored), over the tokens that have a log-probability: all but the
 * first. A person sees each token's text; a program gets ids and asks for text with --text. */
#include "tokens.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct score_sum {
    double total;
    size_t n;
};

static struct score_sum sum_up(const struct infer_scores *scores)
{
    struct score_sum sum = {0.0, 0};

    for (size_t i = 0; i < scores->n; i++) {
        if (isnan(scores->logprobs[i]))
            continue;
        sum.total += (double)scores->logprobs[i];
        sum.n++;
    }
    return sum;
}

static double perplexity_of(struct score_sum sum)
{
    return sum.n ? exp(-sum.total / (double)sum.n) : (double)NAN;
}

/* The K best at position i; empty for the first, which nothing precedes. */
static json_t *top_json(const struct infer_scores *scores, size_t i)
{
    json_t *top = json_array();

    for (uint32_t k = 0; k < scores->n_top; k++) {
        const struct infer_logprob *entry = &scores->top[i * scores->n_top + k];
        if (!isnan(entry->logprob))
            json_array_append_new(top, output_json_logprob(entry));
    }
    return top;
}

static int print_json(struct ctl *ctl, const struct infer_scores *scores,
                      struct tokens_pieces *pieces)
{
    struct score_sum sum = sum_up(scores);
    json_t *tokens = json_array();

    for (size_t i = 0; i < scores->n; i++) {
        json_t *entry = json_object();

        json_array_append_new(tokens, entry);
        json_object_set_new(entry, "id", json_integer(scores->tokens[i]));
        if (ctl->options.text) {
            const char *text;
            size_t n;
            int status = tokens_piece(ctl, pieces, scores->tokens[i], &text, &n);
            if (status) {
                json_decref(tokens);
                return status;
            }
            json_object_set_new(entry, "text", output_json_text(text, n));
        }
        json_object_set_new(entry, "logprob", output_json_number((double)scores->logprobs[i]));
        if (scores->n_top)
            json_object_set_new(entry, "top", top_json(scores, i));
    }
    return output_json(json_pack("{s:o, s:o, s:o}", "tokens", tokens, "total_logprob",
                                 output_json_number(sum.total), "perplexity",
                                 output_json_number(perplexity_of(sum))));
}

static int print_token(struct ctl *ctl, struct tokens_pieces *pieces, int32_t id, float logprob)
{
    const char *text;
    size_t n;
    int status = tokens_piece(ctl, pieces, id, &text, &n);

    if (status)
        return status;
    printf("%7d  ", (int)id);
    if (isnan(logprob))
        printf("%10s  ", "-");
    else
        printf("%10.4f  ", (double)logprob);
    term_write_quoted(stdout, text, n);
    putchar('\n');
    return 0;
}

static int print_table(struct ctl *ctl, const struct infer_scores *scores,
                       struct tokens_pieces *pieces)
{
    struct score_sum sum = sum_up(scores);

    printf("%s%7s  %10s  text%s\n", term_style(stdout, TERM_BOLD), "id", "logprob",
           term_style(stdout, TERM_PLAIN));
    for (size_t i = 0; i < scores->n; i++) {
        int status = print_token(ctl, pieces, scores->tokens[i], scores->logprobs[i]);
        for (uint32_t k = 0; k < scores->n_top && !status; k++) {
            const struct infer_logprob *entry = &scores->top[i * scores->n_top + k];
            if (isnan(entry->logprob))
                continue;
            printf("    %2u.", k + 1);
            status = print_token(ctl, pieces, entry->token, entry->logprob);
        }
        if (status)
            return status;
    }
    printf("total %.4f over %zu tokens", sum.total, sum.n);
    if (sum.n)
        printf(", perplexity %.4f", perplexity_of(sum));
    putchar('\n');
    return ctl_finish_output(0);
}

static int build_request(struct ctl *ctl, struct ctl_buffer *text, struct ctl_ids *ids,
                         struct infer_request *request)
{
    const struct ctl_options *o = &ctl->options;
    int status;

    infer_request_default(request);
    request->model = o->model;
    request->parse_special = o->special != 0;
    request->no_bos = o->no_bos != 0;
    if (o->ids) {
        if (o->file || ctl->n_operands > 0)
            return ctl_usage(ctl, "give either --ids or a text");
        status = input_ids(ctl, "--ids", o->ids, strlen(o->ids), ids);
        request->tokens = ids->ids;
        request->n_tokens = ids->n;
        if (!status && ids->n == 0)
            status = ctl_usage(ctl, "--ids names no token");
        return status;
    }
    status = input_text(ctl, text);
    if (!status && text->n == 0)
        status = ctl_usage(ctl, "the text is empty");
    request->text = text->bytes;
    request->text_bytes = text->n;
    return status;
}

int score_command(struct ctl *ctl)
{
    struct ctl_buffer text = {NULL, 0, 0};
    struct ctl_ids ids = {NULL, 0};
    struct infer_request request;
    struct infer_scores scores;
    struct tokens_pieces *pieces;
    int r, status;

    if (ctl->options.top > INFER_TOP_MAX)
        return ctl_usage(ctl, "--top is %u; at most %u can be had", ctl->options.top,
                         INFER_TOP_MAX);
    status = build_request(ctl, &text, &ids, &request);
    if (!status)
        status = ctl_connect(ctl);
    r = status ? 0 : infer_score(ctl->conn, &request, ctl->options.top, &scores);
    buffer_done(&text);
    free(ids.ids);
    if (r < 0)
        return ctl_fail_conn(ctl, r);
    if (status)
        return status;
    pieces = tokens_pieces_new(scores.n * (1 + (size_t)scores.n_top));
    status =
        ctl->options.json ? print_json(ctl, &scores, pieces) : print_table(ctl, &scores, pieces);
    tokens_pieces_free(pieces);
    infer_scores_free(&scores);
    return status;
}
