/* submit.c: infer_submit() and infer_cancel(): from a caller's request to records.
 *
 * Owns nothing: pieces point into the caller's memory until the call returns. Here only what would
 * break the record is refused (lengths, missing parts); whether a parameter makes sense is the
 * daemon's to say, in one place for all clients. */
#include "conn.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

/* sizeof(struct infer_request) before there were priorities. */
#define REQUEST_MIN offsetof(struct infer_request, priority)

/* The payload as pieces, in the order of abi.h: input, stop strings, biases. */
struct parcel {
    struct send_piece small[1 + 2 * INFER_STOPS_MAX + 1]; /* enough but for messages */
    struct send_piece *pieces;
    size_t n;
    uint64_t bytes;
    uint32_t stop_bytes[INFER_STOPS_MAX];
    struct infer_abi_message *heads; /* MESSAGES; one block with their pieces */
};

/* false: longer than a record can say. */
static bool add_piece(struct parcel *p, const void *data, size_t bytes)
{
    if (bytes > INFER_REQUEST_BYTES_MAX || p->bytes + bytes > INFER_REQUEST_BYTES_MAX)
        return false;
    if (bytes > 0)
        p->pieces[p->n++] = (struct send_piece){data, (uint32_t)bytes};
    p->bytes += bytes;
    return true;
}

static int too_large(struct infer_conn *c)
{
    return conn_fail(c, INFER_E_REQUEST_TOO_LARGE, "a request may carry %u bytes",
                     INFER_REQUEST_BYTES_MAX);
}

static int add_messages(struct infer_conn *c, const struct infer_request *request, struct parcel *p)
{
    size_t n = request->n_messages;
    if (n > INFER_MESSAGES_MAX)
        return conn_fail(c, INFER_E_INVALID, "there are %zu messages; there may be %u", n,
                         INFER_MESSAGES_MAX);
    size_t n_pieces = 3 * n + sizeof p->small / sizeof p->small[0];
    p->pieces = malloc(n_pieces * sizeof *p->pieces + n * sizeof *p->heads);
    if (p->pieces == NULL)
        return conn_fail(c, INFER_E_OUT_OF_MEMORY, NULL);
    p->heads = (struct infer_abi_message *)(void *)(p->pieces + n_pieces);
    for (size_t i = 0; i < n; i++) {
        const struct infer_message *m = &request->messages[i];
        if (m->role == NULL || m->content == NULL)
            return conn_fail(c, INFER_E_INVALID, "message %zu lacks its role or content", i);
        size_t role = strlen(m->role), content = strlen(m->content);
        p->heads[i] = (struct infer_abi_message){(uint32_t)role, (uint32_t)content};
        if (!add_piece(p, &p->heads[i], sizeof p->heads[i]) || !add_piece(p, m->role, role) ||
            !add_piece(p, m->content, content))
            return too_large(c);
    }
    return 0;
}

static int add_input(struct infer_conn *c, const struct infer_request *request,
                     struct infer_abi_submit *submit, struct parcel *p)
{
    int given = (request->text != NULL) + (request->messages != NULL) + (request->tokens != NULL);
    int r = 0;
    if (submit->op == INFER_ABI_STATUS || submit->op == INFER_ABI_MODELS ||
        submit->op == INFER_ABI_END || submit->op == INFER_ABI_FORGET ||
        submit->op == INFER_ABI_METRICS || submit->op == INFER_ABI_TOPOLOGY) {
        if (given != 0)
            return conn_fail(c, INFER_E_INVALID, "this operation takes no input");
        return 0;
    }
    if (given != 1)
        return conn_fail(c, INFER_E_INVALID, "give exactly one of text, messages and tokens");
    if (request->text != NULL) {
        size_t bytes = request->text_bytes != 0 ? request->text_bytes : strlen(request->text);
        submit->input = INFER_ABI_TEXT;
        if (!add_piece(p, request->text, bytes))
            r = too_large(c);
    } else if (request->messages != NULL) {
        submit->input = INFER_ABI_MESSAGES;
        r = add_messages(c, request, p);
    } else {
        submit->input = INFER_ABI_TOKENS;
        if (request->n_tokens > INFER_REQUEST_BYTES_MAX ||
            !add_piece(p, request->tokens, request->n_tokens * sizeof(int32_t)))
            r = too_large(c);
    }
    submit->input_bytes = (uint32_t)p->bytes;
    return r;
}

static int add_lists(struct infer_conn *c, const struct infer_request *request,
                     struct infer_abi_submit *submit, struct parcel *p)
{
    uint64_t before = p->bytes;
    if (request->n_stops > INFER_STOPS_MAX)
        return conn_fail(c, INFER_E_INVALID, "there are %zu stop strings; there may be %u",
                         request->n_stops, INFER_STOPS_MAX);
    if ((request->n_stops > 0 && request->stops == NULL) ||
        (request->n_biases > 0 && request->biases == NULL))
        return conn_fail(c, INFER_E_INVALID, "a list is NULL but its count is not 0");
    for (size_t i = 0; i < request->n_stops; i++) {
        if (request->stops[i] == NULL)
            return conn_fail(c, INFER_E_INVALID, "stop string %zu is NULL", i);
        size_t bytes = strlen(request->stops[i]);
        p->stop_bytes[i] = (uint32_t)bytes;
        if (!add_piece(p, &p->stop_bytes[i], sizeof p->stop_bytes[i]) ||
            !add_piece(p, request->stops[i], bytes))
            return too_large(c);
    }
    submit->stops_bytes = (uint32_t)(p->bytes - before);
    before = p->bytes;
    if (request->n_biases > INFER_REQUEST_BYTES_MAX ||
        !add_piece(p, request->biases, request->n_biases * sizeof *request->biases))
        return too_large(c);
    submit->biases_bytes = (uint32_t)(p->bytes - before);
    return 0;
}

static int make_submit(struct infer_conn *c, const struct infer_request *request,
                       struct infer_abi_submit *submit, struct parcel *p)
{
    memset(submit, 0, sizeof *submit);
    submit->op = request->op != 0 ? request->op : (uint32_t)INFER_ABI_GENERATE;
    submit->flags = (request->parse_special ? INFER_ABI_PARSE_SPECIAL : 0u) |
                    (request->no_bos ? 0u : INFER_ABI_ADD_BOS) |
                    (request->want_prompt ? INFER_ABI_WANT_PROMPT : 0u) |
                    (request->show_special ? INFER_ABI_SHOW_SPECIAL : 0u) |
                    (request->keep || request->conversation != 0 ? INFER_ABI_KEEP : 0u) |
                    (request->wait ? INFER_ABI_WAIT : 0u);
    if (request->model != NULL) {
        size_t bytes = strnlen(request->model, sizeof submit->model);
        if (bytes == sizeof submit->model)
            return conn_fail(c, INFER_E_INVALID, "the model's name takes more than %zu bytes",
                             sizeof submit->model - 1);
        memcpy(submit->model, request->model, bytes);
    }
    uint32_t known = request->sampling.bytes;
    if (known < sizeof submit->sampling)
        return conn_fail(c, INFER_E_INVALID,
                         "sampling.bytes is %u; infer_request_default() sets it", known);
    submit->sampling = request->sampling;
    submit->sampling.bytes = sizeof submit->sampling;
    submit->priority = request->priority;
    submit->deadline_ms = request->deadline_ms;
    submit->n_answers = request->n_answers;
    submit->window = request->window;
    submit->sinks = request->sinks;
    submit->conversation = request->conversation;
    int r = add_input(c, request, submit, p);
    return r < 0 ? r : add_lists(c, request, submit, p);
}

/* With write_mutex held. */
static int send_parcel(struct infer_conn *c, struct infer_abi_submit *submit,
                       const struct parcel *p, bool private_call)
{
    int r = conn_ensure(c);
    if (r < 0)
        return r;
    pthread_mutex_lock(&c->mutex);
    struct request *request = NULL;
    if (c->lost != 0)
        r = conn_fail(c, c->lost, NULL);
    else if ((request = request_add(c, submit, private_call)) == NULL)
        r = conn_fail(c, INFER_E_OUT_OF_MEMORY, NULL);
    else
        submit->head.request = request->id;
    pthread_mutex_unlock(&c->mutex);
    if (r < 0)
        return r;
    r = send_submit(c, submit, p->pieces, p->n);
    if (r == 0 && c->poll_fd < 0)
        return 0;
    pthread_mutex_lock(&c->mutex);
    if (r < 0) {
        request = request_find(c, submit->head.request);
        if (request != NULL)
            request_remove(c, request);
        conn_fail(c, -r, NULL);
    }
    poll_arm(c);
    pthread_mutex_unlock(&c->mutex);
    return r;
}

bool submit_known(const struct infer_request *request, struct infer_request *ret)
{
    uint32_t bytes = request->bytes;
    if (bytes < REQUEST_MIN)
        return false;
    memset(ret, 0, sizeof *ret);
    memcpy(ret, request, bytes < sizeof *ret ? bytes : sizeof *ret);
    return true;
}

int submit_request(struct infer_conn *c, const struct ask *ask, bool private_call, uint32_t *ret_id)
{
    struct infer_request known;
    struct infer_abi_submit submit;
    struct parcel p;

    p.pieces = p.small;
    p.n = 0;
    p.bytes = 0;
    p.heads = NULL;
    pthread_mutex_lock(&c->write_mutex);
    pthread_mutex_lock(&c->mutex); /* for the detail */
    int r =
        submit_known(ask->request, &known)
            ? make_submit(c, &known, &submit, &p)
            : conn_fail(c, INFER_E_INVALID, "request.bytes is %u; infer_request_default() sets it",
                        ask->request->bytes);
    pthread_mutex_unlock(&c->mutex);
    if (r == 0) {
        submit.n_top = ask->n_top;
        submit.target = ask->target;
        r = send_parcel(c, &submit, &p, private_call);
    }
    pthread_mutex_unlock(&c->write_mutex);
    if (p.pieces != p.small)
        free(p.pieces);
    if (r == 0)
        *ret_id = submit.head.request;
    return r;
}

API uint64_t infer_answer_seed(uint64_t seed, uint32_t answer)
{
    return infer_answer_seed_of(seed, answer);
}

API void infer_request_default(struct infer_request *request)
{
    memset(request, 0, sizeof *request);
    request->bytes = sizeof *request;
    infer_sampling_default(&request->sampling);
}

API int infer_submit(struct infer_conn *conn, const struct infer_request *request, uint32_t *ret_id)
{
    if (conn == NULL || request == NULL || ret_id == NULL)
        return -INFER_E_INVALID;
    conn_check_fork(conn);
    struct ask ask = {.request = request};
    return submit_request(conn, &ask, false, ret_id);
}

API int infer_cancel(struct infer_conn *conn, uint32_t id)
{
    int r = 0;
    bool running = false;
    if (conn == NULL)
        return -INFER_E_INVALID;
    conn_check_fork(conn);
    pthread_mutex_lock(&conn->write_mutex);
    pthread_mutex_lock(&conn->mutex);
    struct request *request = request_find(conn, id);
    if (request == NULL || request->private_call)
        r = conn_fail(conn, INFER_E_NOT_FOUND, NULL);
    else
        running = !request->done_stashed && request->ended == 0 && conn->lost == 0;
    pthread_mutex_unlock(&conn->mutex);
    if (running)
        (void)send_cancel(conn, id); /* a lost daemon ends the request as well */
    pthread_mutex_unlock(&conn->write_mutex);
    return r;
}
