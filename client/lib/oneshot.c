/* oneshot.c: the calls that ask, wait and return the whole answer.
 *
 * Each is a request that infer_next() does not see. Its events are gathered through a record on
 * the stack, so that what the last infer_next() gave stays valid.
 *
 * Limits: 60 s without an event end the call; an answer holds at most GATHER_BYTES_MAX. */
#include "conn.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define SILENCE_MS       60000
#define GATHER_BYTES_MAX ((size_t)512 << 20)

struct gathered {
    uint8_t *data;
    size_t bytes, size;
};

static int gather_bytes(struct gathered *g, const void *data, size_t bytes)
{
    if (bytes > GATHER_BYTES_MAX - g->bytes)
        return -INFER_E_OUT_OF_MEMORY;
    if (g->size - g->bytes < bytes + 1) {
        size_t size = g->size == 0 ? 4096 : g->size;
        while (size - g->bytes < bytes + 1)
            size *= 2;
        uint8_t *bigger = realloc(g->data, size);
        if (bigger == NULL)
            return -INFER_E_OUT_OF_MEMORY;
        g->data = bigger;
        g->size = size;
    }
    memcpy(g->data + g->bytes, data, bytes);
    g->bytes += bytes;
    g->data[g->bytes] = '\0';
    return 0;
}

/* A record of a struct that starts with its own size: as many bytes as both sides know, the rest
 * zero. */
static int gather_struct(struct gathered *g, const struct infer_event *event, size_t our_bytes)
{
    static const uint8_t zeros[1024];
    size_t known = event->text_bytes < our_bytes ? event->text_bytes : our_bytes;
    if (event->text_bytes < sizeof(uint32_t))
        return -INFER_E_PROTOCOL;
    int r = gather_bytes(g, event->text, known);
    for (size_t left = our_bytes - known; r == 0 && left > 0;) {
        size_t part = left < sizeof zeros ? left : sizeof zeros;
        r = gather_bytes(g, zeros, part);
        left -= part;
    }
    return r;
}

/* With mutex held. what: the only kind of result expected; struct_bytes: 0 for a byte stream.
 * 1: DONE. */
static int gather_event(struct infer_conn *c, const struct infer_event *event, uint32_t what,
                        size_t struct_bytes, struct gathered *g)
{
    int r = 0;
    if (event->kind == INFER_EVENT_RESULT && event->result == what) {
        r = struct_bytes != 0 ? gather_struct(g, event, struct_bytes)
                              : gather_bytes(g, event->text, event->text_bytes);
        if (r < 0)
            conn_fail(c, -r, "the answer cannot be taken");
    } else if (event->kind == INFER_EVENT_DONE) {
        if (event->error != 0)
            return conn_fail(c, event->error, "%.*s", (int)event->text_bytes, event->text);
        r = 1;
    }
    return r;
}

/* Submits and gathers. On failure *g holds nothing. */
static int call(struct infer_conn *c, const struct ask *ask, uint32_t what, size_t struct_bytes,
                struct gathered *g)
{
    struct record record;
    struct infer_event event;
    uint32_t id;
    memset(g, 0, sizeof *g);
    int r = gather_bytes(g, "", 0); /* so that an empty answer is memory, too */
    if (r == 0)
        r = submit_request(c, ask, true, &id);
    if (r < 0) {
        free(g->data);
        return r;
    }
    pthread_mutex_lock(&c->mutex);
    do {
        r = receive_event(c, id, SILENCE_MS, &record, &event);
        if (r == 1)
            r = gather_event(c, &event, what, struct_bytes, g);
        else if (r == 0)
            r = conn_fail(c, INFER_E_DAEMON_LOST, "the daemon was silent for %d s",
                          SILENCE_MS / 1000);
    } while (r == 0);
    struct request *unfinished = request_find(c, id);
    if (unfinished != NULL)
        request_remove(c, unfinished);
    poll_arm(c);
    pthread_mutex_unlock(&c->mutex);
    if (unfinished != NULL) { /* what still comes of it is skipped */
        pthread_mutex_lock(&c->write_mutex);
        (void)send_cancel(c, id);
        pthread_mutex_unlock(&c->write_mutex);
    }
    if (r < 0)
        free(g->data);
    return r < 0 ? r : 0;
}

API int infer_models(struct infer_conn *conn, struct infer_model **ret_models, size_t *ret_n)
{
    struct infer_request request;
    struct ask ask = {.request = &request};
    struct gathered g;
    if (conn == NULL || ret_models == NULL || ret_n == NULL)
        return -INFER_E_INVALID;
    conn_check_fork(conn);
    infer_request_default(&request);
    request.op = INFER_ABI_MODELS;
    int r = call(conn, &ask, INFER_ABI_MODEL_RECORD, sizeof(struct infer_model), &g);
    if (r < 0)
        return r;
    *ret_models = (struct infer_model *)(void *)g.data;
    *ret_n = g.bytes / sizeof(struct infer_model);
    return 0;
}

API int infer_status(struct infer_conn *conn, struct infer_status *ret_status)
{
    struct infer_request request;
    struct ask ask = {.request = &request};
    struct gathered g;
    if (conn == NULL || ret_status == NULL)
        return -INFER_E_INVALID;
    conn_check_fork(conn);
    infer_request_default(&request);
    request.op = INFER_ABI_STATUS;
    int r = call(conn, &ask, INFER_ABI_STATUS_RECORD, sizeof *ret_status, &g);
    if (r < 0)
        return r;
    if (g.bytes >= sizeof *ret_status)
        memcpy(ret_status, g.data, sizeof *ret_status);
    else
        r = -INFER_E_PROTOCOL;
    free(g.data);
    return r;
}

/* A text that the daemon makes of itself. */
static int call_text(struct infer_conn *conn, uint32_t op, char **ret_text, size_t *ret_bytes)
{
    struct infer_request request;
    struct ask ask = {.request = &request};
    struct gathered g;
    if (conn == NULL || ret_text == NULL || ret_bytes == NULL)
        return -INFER_E_INVALID;
    conn_check_fork(conn);
    infer_request_default(&request);
    request.op = op;
    int r = call(conn, &ask, INFER_ABI_BYTES, 0, &g);
    if (r < 0)
        return r;
    *ret_text = (char *)g.data;
    *ret_bytes = g.bytes;
    return 0;
}

API int infer_metrics(struct infer_conn *conn, char **ret_text, size_t *ret_bytes)
{
    return call_text(conn, INFER_ABI_METRICS, ret_text, ret_bytes);
}

API int infer_topology(struct infer_conn *conn, char **ret_text, size_t *ret_bytes)
{
    return call_text(conn, INFER_ABI_TOPOLOGY, ret_text, ret_bytes);
}

/* END and FORGET: an id goes there, nothing but success or an error comes back. */
static int call_on(struct infer_conn *conn, uint32_t op, uint64_t target)
{
    struct infer_request request;
    struct ask ask = {.request = &request, .target = target};
    struct gathered g;
    if (conn == NULL)
        return -INFER_E_INVALID;
    conn_check_fork(conn);
    infer_request_default(&request);
    request.op = op;
    int r = call(conn, &ask, 0, 0, &g); /* 0: no result is expected */
    if (r == 0)
        free(g.data);
    return r;
}

API int infer_end(struct infer_conn *conn, uint64_t id)
{
    return call_on(conn, INFER_ABI_END, id);
}

API int infer_forget(struct infer_conn *conn, uint64_t conversation)
{
    return call_on(conn, INFER_ABI_FORGET, conversation);
}

API int infer_tokenize(struct infer_conn *conn, const char *model, const char *text,
                       size_t text_bytes, int add_bos, int parse_special, int32_t **ret_tokens,
                       size_t *ret_n)
{
    struct infer_request request;
    struct ask ask = {.request = &request};
    struct gathered g;
    if (conn == NULL || text == NULL || ret_tokens == NULL || ret_n == NULL)
        return -INFER_E_INVALID;
    conn_check_fork(conn);
    infer_request_default(&request);
    request.op = INFER_ABI_TOKENIZE;
    request.model = model;
    request.text = text_bytes > 0 ? text : "";
    request.text_bytes = text_bytes;
    request.no_bos = !add_bos;
    request.parse_special = parse_special;
    int r = call(conn, &ask, INFER_ABI_IDS, 0, &g);
    if (r < 0)
        return r;
    *ret_tokens = (int32_t *)(void *)g.data;
    *ret_n = g.bytes / sizeof(int32_t);
    return 0;
}

API int infer_detokenize(struct infer_conn *conn, const char *model, const int32_t *tokens,
                         size_t n, int show_special, char **ret_text, size_t *ret_bytes)
{
    static const int32_t none[1];
    struct infer_request request;
    struct ask ask = {.request = &request};
    struct gathered g;
    if (conn == NULL || (tokens == NULL && n > 0) || ret_text == NULL || ret_bytes == NULL)
        return -INFER_E_INVALID;
    conn_check_fork(conn);
    infer_request_default(&request);
    request.op = INFER_ABI_DETOKENIZE;
    request.model = model;
    request.tokens = n > 0 ? tokens : none;
    request.n_tokens = n;
    request.show_special = show_special;
    int r = call(conn, &ask, INFER_ABI_BYTES, 0, &g);
    if (r < 0)
        return r;
    *ret_text = (char *)g.data;
    *ret_bytes = g.bytes;
    return 0;
}

/* ---- scores ---------------------------------------------------------------------------------- */

/* Walks the records; with arrays set, fills them. Number of scores, or a negative code. */
static long walk_scores(const struct gathered *g, struct infer_scores *s)
{
    size_t at = 0;
    long n = 0;
    while (at < g->bytes) {
        struct infer_abi_score score;
        if (g->bytes - at < sizeof score)
            return -INFER_E_PROTOCOL;
        memcpy(&score, g->data + at, sizeof score);
        at += sizeof score;
        size_t top_bytes = score.n_top * sizeof(struct infer_logprob);
        if (score.n_top > INFER_TOP_MAX || g->bytes - at < top_bytes)
            return -INFER_E_PROTOCOL;
        if (s->tokens != NULL) {
            s->tokens[n] = score.token;
            s->logprobs[n] = score.logprob;
            for (uint32_t k = 0; k < s->n_top; k++) {
                struct infer_logprob *to = &s->top[(size_t)n * s->n_top + k];
                *to = (struct infer_logprob){-1, NAN};
                if (k < score.n_top)
                    memcpy(to, g->data + at + k * sizeof *to, sizeof *to);
            }
        }
        at += top_bytes;
        n++;
    }
    return n;
}

API int infer_score(struct infer_conn *conn, const struct infer_request *request, uint32_t n_top,
                    struct infer_scores *ret_scores)
{
    struct infer_scores s;
    struct gathered g;
    struct infer_request scoring;
    struct ask ask = {.request = &scoring, .n_top = n_top};
    if (conn == NULL || request == NULL || ret_scores == NULL || n_top > INFER_TOP_MAX ||
        !submit_known(request, &scoring))
        return -INFER_E_INVALID;
    conn_check_fork(conn);
    scoring.bytes = sizeof scoring;
    scoring.op = INFER_ABI_SCORE;
    scoring.n_stops = scoring.n_biases = 0;
    scoring.n_answers = scoring.window = scoring.sinks = 0;
    scoring.keep = 0;
    scoring.conversation = 0;
    int r = call(conn, &ask, INFER_ABI_SCORES, 0, &g);
    if (r < 0)
        return r;
    memset(&s, 0, sizeof s);
    s.n_top = n_top;
    long n = walk_scores(&g, &s);
    if (n >= 0) {
        s.n = (size_t)n;
        s.tokens = malloc((s.n + 1) * sizeof *s.tokens);
        s.logprobs = malloc((s.n + 1) * sizeof *s.logprobs);
        s.top = n_top > 0 ? malloc((s.n * n_top + 1) * sizeof *s.top) : NULL;
        if (s.tokens == NULL || s.logprobs == NULL || (n_top > 0 && s.top == NULL)) {
            n = -INFER_E_OUT_OF_MEMORY;
            infer_scores_free(&s);
        } else {
            walk_scores(&g, &s);
        }
    }
    free(g.data);
    if (n < 0)
        return (int)n;
    *ret_scores = s;
    return 0;
}

API void infer_scores_free(struct infer_scores *scores)
{
    if (scores == NULL)
        return;
    free(scores->tokens);
    free(scores->logprobs);
    free(scores->top);
    memset(scores, 0, sizeof *scores);
}
