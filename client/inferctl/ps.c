/* ps.c: `inferctl ps` and `inferctl cancel`: the requests of the daemon, and the end of some. */
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

/* ---- cancel ---------------------------------------------------------------------------------- */

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
static int cancel_one(struct ctl *ctl, const char *word, json_t *outcomes)
{
    char detail[INFER_DETAIL_MAX];
    const char *more;
    uint64_t id = 0;
    int r;

    parse_id(word, &id);
    r = infer_end(ctl->conn, id);
    if (outcomes) {
        json_t *outcome = json_pack("{s:I, s:b}", "id", (json_int_t)id, "ended", r == 0);
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

int cancel_command(struct ctl *ctl)
{
    json_t *outcomes;
    uint64_t id;
    int status = 0;

    if (ctl->n_operands == 0)
        return ctl_usage(ctl, "give the ids of requests, as 'inferctl ps' lists them");
    for (size_t i = 0; i < ctl->n_operands; i++)
        if (!parse_id(ctl->operands[i], &id))
            return ctl_usage(ctl, "'%s' is not the id of a request", ctl->operands[i]);
    status = ctl_connect(ctl);
    if (status)
        return status;
    outcomes = ctl->options.json ? json_array() : NULL;
    for (size_t i = 0; i < ctl->n_operands; i++) {
        int one = cancel_one(ctl, ctl->operands[i], outcomes);
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
