/* tokens.c: `inferctl tokenize` and `inferctl detokenize`, and the text of single tokens. */
#include "tokens.h"

#include <stdlib.h>
#include <string.h>

/* ---- pieces ---------------------------------------------------------------------------------- */

/* One request per token that differs from those asked for before: the table is open addressing by
 * token id, at most half full. */
struct tokens_piece {
    int32_t id; /* -1: free */
    char *text;
    size_t n;
};

struct tokens_pieces {
    struct tokens_piece *slots;
    size_t n_slots; /* a power of two */
};

struct tokens_pieces *tokens_pieces_new(size_t n_tokens)
{
    struct tokens_pieces *pieces = ctl_alloc(sizeof *pieces);

    pieces->n_slots = 16;
    while (pieces->n_slots < 2 * n_tokens)
        pieces->n_slots *= 2;
    pieces->slots = ctl_alloc(pieces->n_slots * sizeof *pieces->slots);
    for (size_t i = 0; i < pieces->n_slots; i++) {
        pieces->slots[i].id = -1;
        pieces->slots[i].text = NULL;
    }
    return pieces;
}

void tokens_pieces_free(struct tokens_pieces *pieces)
{
    if (!pieces)
        return;
    for (size_t i = 0; i < pieces->n_slots; i++)
        infer_free(pieces->slots[i].text);
    free(pieces->slots);
    free(pieces);
}

int tokens_piece(struct ctl *ctl, struct tokens_pieces *pieces, int32_t id, const char **ret_text,
                 size_t *ret_n)
{
    size_t mask = pieces->n_slots - 1;
    size_t at = ((size_t)(uint32_t)id * 2654435761u) & mask;
    struct tokens_piece *slot;

    while (pieces->slots[at].id != -1 && pieces->slots[at].id != id)
        at = (at + 1) & mask;
    slot = &pieces->slots[at];
    if (slot->id == -1) {
        int r = infer_detokenize(ctl->conn, ctl->options.model, &id, 1, 1, &slot->text, &slot->n);
        if (r < 0)
            return ctl_fail_conn(ctl, r);
        slot->id = id;
    }
    *ret_text = slot->text;
    *ret_n = slot->n;
    return 0;
}

/* ---- tokenize -------------------------------------------------------------------------------- */

static int print_pieces(struct ctl *ctl, const int32_t *tokens, size_t n)
{
    struct tokens_pieces *pieces = tokens_pieces_new(n);
    json_t *array = ctl->options.json ? json_array() : NULL;
    int status = 0;

    for (size_t i = 0; i < n && !status; i++) {
        const char *text;
        size_t length;

        status = tokens_piece(ctl, pieces, tokens[i], &text, &length);
        if (status)
            break;
        if (array) {
            json_array_append_new(array, json_pack("{s:i, s:o}", "id", (int)tokens[i], "text",
                                                   output_json_text(text, length)));
        } else {
            printf("%7d  ", (int)tokens[i]);
            term_write_quoted(stdout, text, length);
            putchar('\n');
        }
    }
    tokens_pieces_free(pieces);
    if (array && !status)
        return output_json(array);
    json_decref(array);
    return status;
}

static int print_ids(const struct ctl *ctl, const int32_t *tokens, size_t n)
{
    if (ctl->options.json) { /* always one line: long lists are for programs */
        putchar('[');
        for (size_t i = 0; i < n; i++)
            printf("%s%d", i ? "," : "", (int)tokens[i]);
        puts("]");
    } else {
        for (size_t i = 0; i < n; i++)
            printf("%s%d", i ? " " : "", (int)tokens[i]);
        if (n > 0)
            putchar('\n');
    }
    return ctl_finish_output(0);
}

int tokenize_command(struct ctl *ctl)
{
    const struct ctl_options *o = &ctl->options;
    struct ctl_buffer text = {NULL, 0, 0};
    int32_t *tokens;
    size_t n;
    int r, status;

    status = input_text(ctl, &text);
    if (!status)
        status = ctl_connect(ctl);
    if (status) {
        buffer_done(&text);
        return status;
    }
    r = infer_tokenize(ctl->conn, o->model, text.bytes, text.n, o->bos != 0, o->special != 0,
                       &tokens, &n);
    buffer_done(&text);
    if (r < 0)
        return ctl_fail_conn(ctl, r);
    status = o->text ? print_pieces(ctl, tokens, n) : print_ids(ctl, tokens, n);
    infer_free(tokens);
    return status;
}

/* ---- detokenize ------------------------------------------------------------------------------ */

static int read_ids(struct ctl *ctl, struct ctl_ids *ret_ids)
{
    struct ctl_buffer text = {NULL, 0, 0};
    int status;

    if (ctl->options.ids) {
        if (ctl->n_operands > 0)
            return ctl_usage(ctl, "give the ids once: as arguments or with --ids");
        return input_ids(ctl, "--ids", ctl->options.ids, strlen(ctl->options.ids), ret_ids);
    }
    status = input_text(ctl, &text);
    if (!status)
        status = input_ids(ctl, "the input", text.bytes, text.n, ret_ids);
    buffer_done(&text);
    return status;
}

int detokenize_command(struct ctl *ctl)
{
    const struct ctl_options *o = &ctl->options;
    struct ctl_ids ids = {NULL, 0};
    char *text;
    size_t n;
    int r, status;

    status = read_ids(ctl, &ids);
    if (!status)
        status = ctl_connect(ctl);
    if (status) {
        free(ids.ids);
        return status;
    }
    r = infer_detokenize(ctl->conn, o->model, ids.ids, ids.n, o->show_special != 0, &text, &n);
    free(ids.ids);
    if (r < 0)
        return ctl_fail_conn(ctl, r);
    if (o->json) {
        status = output_json(json_pack("{s:o}", "text", output_json_text(text, n)));
    } else {
        term_write(stdout, text, n);
        if (term_is_output() && n > 0 && text[n - 1] != '\n')
            putchar('\n');
        status = ctl_finish_output(0);
    }
    infer_free(text);
    return status;
}
