/* ps.c: `inferctl ps`, `cancel` and `forget`: the requests of the daemon, the end of some, and the
 * end of conversations. */
#include "page.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

int ps_command(struct ctl *ctl)
{
    static struct page_view view; /* too large for a stack that others also use */
    struct ctl_buffer text = {NULL, 0, 0};
    int r, status;

    if (ctl->n_operands > 0)
        return ctl_usage(ctl, "unexpected argument '%s'", ctl->operands[0]);
    status = page_open(ctl, &view);
    if (status)
        return status;
    r = page_read(ctl, &view);
    if (r < 0) {
        status = ctl_fail_conn(ctl, r);
    } else if (ctl->options.json) {
        status = output_json(page_sequences_json(&view));
    } else {
        page_sequence_head(&text, 0);
        fputs(term_style(stdout, TERM_BOLD), stdout);
        fwrite(text.bytes, 1, text.n - 1, stdout);
        printf("%s\n", term_style(stdout, TERM_PLAIN));
        text.n = 0;
        for (uint32_t i = 0; i < view.now.n_sequences; i++)
            page_sequence_line(&text, &view, i, 0);
        fwrite(text.n ? text.bytes : "", 1, text.n, stdout);
        status = ctl_finish_output(0);
    }
    buffer_done(&text);
    page_done(&view);
    return status;
}

/* ---- cancel and forget: something ends, by its id -------------------------------------------- */

struct by_id {
    int (*end)(struct infer_conn *conn, uint64_t id);
    const char *thing;   /* that the ids are of */
    const char *outcome; /* JSON's name of success */
    const char *source;  /* who tells the ids */
};

static bool parse_id(const char *text, uint64_t *ret)
{
    char *end;

    if (!isdigit((unsigned char)text[0]))
        return false;
    errno = 0;
    *ret = strtoull(text, &end, 10);
    return errno == 0 && *end == '\0';
}

/* One id, to its exit status; with JSON the outcome goes into the array. */
static int end_one(struct ctl *ctl, const struct by_id *by, const char *word, json_t *outcomes)
{
    char detail[INFER_DETAIL_MAX];
    const char *more;
    uint64_t id = 0;
    int r;

    parse_id(word, &id);
    r = by->end(ctl->conn, id);
    if (outcomes) {
        json_t *outcome = json_pack("{s:I, s:b}", "id", (json_int_t)id, by->outcome, r == 0);
        if (r < 0)
            json_object_set_new(outcome, "error", json_string(infer_error_name(r)));
        json_array_append_new(outcomes, outcome);
    }
    if (r == 0)
        return 0;
    more = r == -INFER_E_NOT_FOUND ? "" : infer_detail(ctl->conn); /* the number says it all */
    snprintf(detail, sizeof detail, "%s%s%.400s", word, more[0] ? ": " : "", more);
    return ctl_fail(r, detail);
}

static int end_each(struct ctl *ctl, const struct by_id *by)
{
    json_t *outcomes;
    uint64_t id;
    int status = 0;

    if (ctl->n_operands == 0)
        return ctl_usage(ctl, "give the ids of %ss, as %s them", by->thing, by->source);
    for (size_t i = 0; i < ctl->n_operands; i++)
        if (!parse_id(ctl->operands[i], &id))
            return ctl_usage(ctl, "'%s' is not the id of a %s", ctl->operands[i], by->thing);
    status = ctl_connect(ctl);
    if (status)
        return status;
    outcomes = ctl->options.json ? json_array() : NULL;
    for (size_t i = 0; i < ctl->n_operands; i++) {
        int one = end_one(ctl, by, ctl->operands[i], outcomes);
        if (!status)
            status = one;
    }
    if (outcomes) {
        int printed = output_json(outcomes);
        if (!status)
            status = printed;
    }
    return status;
}

int cancel_command(struct ctl *ctl)
{
    static const struct by_id by = {infer_end, "request", "ended", "'inferctl ps' lists"};

    return end_each(ctl, &by);
}

int forget_command(struct ctl *ctl)
{
    static const struct by_id by = {infer_forget, "conversation", "forgotten",
                                    "'inferctl prompt --keep' tells"};

    return end_each(ctl, &by);
}
