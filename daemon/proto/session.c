/* session.c: see session.h for the trust boundary that this file guards.
 *
 * Owns: both memory files and their mappings, the doorbell, the bell, and the payload that is being
 * assembled. The request file is mapped read-only here: each file has one writer. The status file
 * is only passed on: it belongs to all sessions (status_page.h).
 *
 * Invariants:
 *   request_head, token_tail, token_published are private; their shared copies are only stored.
 *   published - token_head <= token_tail - token_head <= token_bytes, all counts multiples of 8.
 *   assembling is true from a SUBMIT whose payload is not complete until its last DATA; only DATA
 *   of the same request may come in between.
 *   broken, once set, never clears: the session does nothing more but be closed.
 *
 * The doorbell is an eventfd. The bell is a pipe of which the client has the reading end: both ends
 * of an eventfd are one file, so that a client could clear O_NONBLOCK on it, fill it, and so stop
 * the engine thread in write(2). Of a pipe the daemon's end is its own. The daemon keeps a reading
 * end too, so that a dead client never raises SIGPIPE. One byte count of 8 per ring lets a client
 * read it as it would read an eventfd.
 *
 * Wake-ups. A client that is woken while its head is short of the tail moves its head before it
 * sleeps again. Until the head moves, a second wake-up would find it awake or about to be; it is
 * left out. A client whose head has reached the tail is not woken at all: it would find nothing,
 * sleep again with the same head, and the next wake-up would be left out wrongly. Edge C covers the
 * head as it covers `waiting`: the client stores both before its fence. */
#include "proto/session.h"

#include "inferd/ring.h"
#include "proto/memfile.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/* The last descriptor of abi.h is the status file's, which no session owns. */
#define OWN_FDS (INFER_ABI_FDS - 1)
_Static_assert(OWN_FDS == 4, "make_parts() makes four");

struct session {
    struct peer peer;
    struct session_fds fds;
    int bell_write;
    uint32_t request_bytes, token_bytes;
    void *request_map, *token_map;
    const struct infer_abi_client_words *client;
    struct infer_abi_daemon_words *words;
    const uint8_t *request_data;
    uint8_t *token_data;

    uint32_t request_head;
    uint32_t token_tail, token_published;
    uint32_t token_head; /* the client's, as last seen and found possible */
    uint32_t woken_head; /* the head at the last wake-up */
    bool woken;
    bool closed;
    int broken; /* negative INFER_E_ code */

    bool assembling;
    struct session_request part; /* being assembled */
    uint64_t part_left;          /* bytes of payload still to come */
    uint8_t record[INFER_RECORD_MAX];
};

/* ---- making and freeing ---------------------------------------------------------------------- */

static int make_bell(struct session *s)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) < 0)
        return -errno;
    s->fds.fd[3] = ends[0];
    s->bell_write = ends[1];
    (void)fcntl(ends[1], F_SETPIPE_SZ, 4096); /* a page will do; the default works as well */
    return 0;
}

static int make_parts(struct session *s)
{
    size_t request_size = INFER_ABI_DATA_OFFSET + (size_t)s->request_bytes;
    size_t token_size = INFER_ABI_DATA_OFFSET + (size_t)s->token_bytes;
    int r;

    if ((r = s->fds.fd[0] = memfile_new("inferd-requests", request_size)) < 0)
        return r;
    if ((r = memfile_map(s->fds.fd[0], request_size, PROT_READ, 0, &s->request_map)) < 0)
        return r;
    if ((r = s->fds.fd[1] = memfile_new("inferd-tokens", token_size)) < 0)
        return r;
    if ((r = memfile_map(s->fds.fd[1], token_size, PROT_READ | PROT_WRITE, MEMFILE_FUTURE_WRITE,
                         &s->token_map)) < 0)
        return r;
    s->fds.fd[2] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (s->fds.fd[2] < 0)
        return -errno;
    return make_bell(s);
}

static bool ring_size_ok(uint32_t n, uint32_t min, uint32_t max)
{
    return n >= min && n <= max && (n & (n - 1)) == 0;
}

int session_new(const struct peer *peer, uint32_t request_ring_bytes, uint32_t token_ring_bytes,
                int status_fd, struct session **ret)
{
    if (!ring_size_ok(request_ring_bytes, INFER_REQUEST_RING_MIN, INFER_REQUEST_RING_MAX) ||
        !ring_size_ok(token_ring_bytes, INFER_TOKEN_RING_MIN, INFER_TOKEN_RING_MAX))
        return -EINVAL;
    struct session *s = calloc(1, sizeof *s);
    if (s == NULL)
        return -ENOMEM;
    s->peer = *peer;
    s->request_bytes = request_ring_bytes;
    s->token_bytes = token_ring_bytes;
    s->bell_write = -1;
    for (int i = 0; i < OWN_FDS; i++)
        s->fds.fd[i] = -1;
    s->fds.fd[OWN_FDS] = status_fd;
    int r = make_parts(s);
    if (r < 0) {
        session_free(s);
        return r;
    }
    s->client = s->request_map;
    s->request_data = (const uint8_t *)s->request_map + INFER_ABI_DATA_OFFSET;
    s->words = s->token_map;
    s->token_data = (uint8_t *)s->token_map + INFER_ABI_DATA_OFFSET;
    *ret = s;
    return 0;
}

void session_free(struct session *s)
{
    if (s == NULL)
        return;
    free(s->part.payload);
    if (s->request_map != NULL)
        munmap(s->request_map, INFER_ABI_DATA_OFFSET + (size_t)s->request_bytes);
    if (s->token_map != NULL)
        munmap(s->token_map, INFER_ABI_DATA_OFFSET + (size_t)s->token_bytes);
    for (int i = 0; i < OWN_FDS; i++)
        if (s->fds.fd[i] >= 0)
            close(s->fds.fd[i]);
    if (s->bell_write >= 0)
        close(s->bell_write);
    free(s);
}

const struct peer *session_peer(const struct session *s)
{
    return &s->peer;
}

struct session_fds session_descriptors(const struct session *s)
{
    return s->fds;
}

void session_ring_sizes(const struct session *s, uint32_t *ret_request, uint32_t *ret_token)
{
    *ret_request = s->request_bytes;
    *ret_token = s->token_bytes;
}

int session_doorbell(const struct session *s)
{
    return s->fds.fd[2];
}

void session_drain_doorbell(const struct session *s)
{
    uint64_t count;
    struct iovec part = {&count, sizeof count};
    /* NOWAIT by the call: the flag of the file is the client's to clear. */
    if (preadv2(s->fds.fd[2], &part, 1, -1, RWF_NOWAIT) < 0 && errno == EOPNOTSUPP)
        (void)!read(s->fds.fd[2], &count,
                    sizeof count); /* before Linux 5.8 there is no such call */
}

/* ---- requests -------------------------------------------------------------------------------- */

static int break_session(struct session *s)
{
    s->broken = -INFER_E_PROTOCOL;
    return s->broken;
}

static int take_payload(struct session *s, const uint8_t *from, uint32_t n)
{
    if (n > s->part_left)
        return break_session(s);
    if (s->part.payload != NULL && n > 0)
        memcpy(s->part.payload + (s->part.payload_bytes - s->part_left), from, n);
    s->part_left -= n;
    return 0;
}

/* s->record holds the SUBMIT, head is its head. */
static int begin_submit(struct session *s, const struct infer_abi_record *head)
{
    struct infer_abi_submit *submit = &s->part.submit;
    if (head->bytes < INFER_ABI_SUBMIT_MIN)
        return break_session(s);
    memset(&s->part, 0, sizeof s->part);
    memcpy(submit, s->record, INFER_ABI_SUBMIT_MIN);
    uint32_t fixed = submit->fixed_bytes;
    if (fixed < INFER_ABI_SUBMIT_MIN || fixed > head->bytes)
        return break_session(s);
    memcpy(submit, s->record, fixed < sizeof *submit ? fixed : sizeof *submit);

    uint64_t total =
        (uint64_t)submit->input_bytes + (uint64_t)submit->stops_bytes + submit->biases_bytes;
    s->part.kind = head->kind;
    s->part.request = head->request;
    s->part_left = total;
    s->assembling = true;
    if (total > INFER_REQUEST_BYTES_MAX) {
        s->part.error = INFER_E_REQUEST_TOO_LARGE;
    } else if (total > 0) {
        s->part.payload = malloc(total);
        s->part.payload_bytes = s->part.payload != NULL ? (uint32_t)total : 0;
        if (s->part.payload == NULL)
            s->part.error = INFER_E_OUT_OF_MEMORY;
    }
    return take_payload(s, s->record + fixed, head->bytes - fixed);
}

/* One record, complete in s->record. 1: *ret is a request. */
static int take_record(struct session *s, const struct infer_abi_record *head,
                       struct session_request *ret)
{
    int r;
    if (head->kind == INFER_ABI_SUBMIT && !s->assembling) {
        r = begin_submit(s, head);
    } else if (head->kind == INFER_ABI_DATA) {
        if (!s->assembling || head->request != s->part.request || head->bytes == sizeof *head)
            return break_session(s);
        r = take_payload(s, s->record + sizeof *head, head->bytes - (uint32_t)sizeof *head);
    } else {
        if (s->assembling)
            return break_session(s);
        memset(ret, 0, sizeof *ret);
        ret->kind = head->kind;
        ret->request = head->request;
        return 1;
    }
    if (r < 0 || s->part_left > 0)
        return r;
    *ret = s->part;
    memset(&s->part, 0, sizeof s->part);
    s->assembling = false;
    return 1;
}

int session_poll(struct session *s, struct session_request *ret)
{
    if (s->broken < 0)
        return s->broken;
    uint32_t tail = infer_ring_load(&s->client->request_tail); /* edge A */
    if (tail == s->request_head)
        return 0;
    uint32_t left = infer_ring_used(s->request_bytes, s->request_head, tail);
    if (left == UINT32_MAX || (tail & 7) != 0)
        return break_session(s);

    int r = 0;
    while (r == 0 && left > 0) {
        struct infer_abi_record head;
        if (left < sizeof head)
            return break_session(s);
        infer_ring_get(s->request_data, s->request_bytes, s->request_head, &head, sizeof head);
        if (head.bytes < sizeof head || head.bytes > INFER_RECORD_MAX || head.request == 0 ||
            infer_ring_padded(head.bytes) > left)
            return break_session(s);
        infer_ring_get(s->request_data, s->request_bytes, s->request_head, s->record, head.bytes);
        memcpy(s->record, &head, sizeof head); /* the client may have changed it in between */
        r = take_record(s, &head, ret);
        s->request_head += infer_ring_padded(head.bytes);
        left -= infer_ring_padded(head.bytes);
    }
    infer_ring_store(&s->words->request_head, s->request_head); /* edge B */
    return r;
}

bool session_pending(const struct session *s)
{
    return s->broken < 0 || infer_ring_load(&s->client->request_tail) != s->request_head;
}

/* ---- events ---------------------------------------------------------------------------------- */

/* Takes the client's head anew. It may only go forward, and not beyond what was published. */
static int refresh_head(struct session *s)
{
    uint32_t head = infer_ring_load(&s->client->token_head); /* edge B */
    if (s->token_published - head > s->token_published - s->token_head || (head & 7) != 0)
        return break_session(s);
    s->token_head = head;
    return 0;
}

static int find_room(struct session *s, uint32_t bytes)
{
    uint32_t want = infer_ring_padded(bytes);
    if (s->broken < 0)
        return s->broken;
    if (s->token_bytes - (s->token_tail - s->token_head) >= want)
        return 0;
    if (refresh_head(s) < 0)
        return s->broken;
    return s->token_bytes - (s->token_tail - s->token_head) >= want ? 0 : -EAGAIN;
}

bool session_has_room(struct session *s, uint32_t bytes)
{
    return bytes <= INFER_RECORD_MAX && find_room(s, bytes) != -EAGAIN;
}

static void put_part(struct session *s, uint32_t *at, const void *from, uint32_t n)
{
    if (n > 0)
        infer_ring_put(s->token_data, s->token_bytes, *at, from, n);
    *at += n;
}

int session_put_queued(struct session *s, uint32_t request, uint64_t id, uint32_t n_prompt,
                       uint32_t position, uint64_t start_us)
{
    struct infer_abi_queued event = {
        .head = {.bytes = sizeof event, .kind = INFER_ABI_EV_QUEUED, .request = request},
        .id = id,
        .n_prompt = n_prompt,
        .position = position,
        .start_us = start_us};
    int r = find_room(s, sizeof event);
    if (r < 0)
        return r;
    put_part(s, &s->token_tail, &event, sizeof event);
    return 0;
}

int session_put_token(struct session *s, uint32_t request, uint32_t answer, int32_t token,
                      float logprob, uint32_t index, bool text_only, const char *text,
                      uint32_t text_bytes, const struct infer_logprob *top, uint32_t n_top)
{
    static const char zeros[4];
    if (text_bytes > INFER_TOKEN_TEXT_MAX || n_top > INFER_TOP_MAX)
        return -EINVAL;
    uint32_t pad = -text_bytes & 3u;
    uint32_t top_bytes = n_top * (uint32_t)sizeof *top;
    uint32_t bytes = (uint32_t)sizeof(struct infer_abi_token) + text_bytes + pad + top_bytes;
    struct infer_abi_token event = {.head = {.bytes = bytes,
                                             .kind = INFER_ABI_EV_TOKEN,
                                             .flags = text_only ? INFER_ABI_TEXT_ONLY : 0,
                                             .request = request,
                                             .answer = answer},
                                    .token = token,
                                    .logprob = logprob,
                                    .index = index,
                                    .text_bytes = (uint16_t)text_bytes,
                                    .n_top = (uint16_t)n_top};
    int r = find_room(s, bytes);
    if (r < 0)
        return r;
    uint32_t at = s->token_tail;
    put_part(s, &at, &event, sizeof event);
    put_part(s, &at, text, text_bytes);
    put_part(s, &at, zeros, pad);
    put_part(s, &at, top, top_bytes);
    s->token_tail += infer_ring_padded(bytes);
    return 0;
}

int session_put_result(struct session *s, uint32_t request, uint32_t what, uint32_t offset,
                       const void *data, uint32_t bytes)
{
    if (bytes > SESSION_RESULT_MAX)
        return -EINVAL;
    uint32_t total = (uint32_t)sizeof(struct infer_abi_result_head) + bytes;
    struct infer_abi_result_head event = {
        .head = {.bytes = total, .kind = INFER_ABI_EV_RESULT, .request = request},
        .what = what,
        .offset = offset};
    int r = find_room(s, total);
    if (r < 0)
        return r;
    uint32_t at = s->token_tail;
    put_part(s, &at, &event, sizeof event);
    put_part(s, &at, data, bytes);
    s->token_tail += infer_ring_padded(total);
    return 0;
}

/* head: kind, request and answer; its bytes are counted here. */
static int put_end(struct session *s, struct infer_abi_record head,
                   const struct infer_abi_done *done, const char *detail)
{
    uint32_t detail_bytes = detail != NULL ? (uint32_t)strnlen(detail, INFER_DETAIL_MAX - 1) : 0;
    uint32_t total = (uint32_t)sizeof(struct infer_abi_done) + detail_bytes;
    struct infer_abi_done event = *done;
    event.head = head;
    event.head.bytes = total;
    event.detail_bytes = detail_bytes;
    int r = find_room(s, total);
    if (r < 0)
        return r;
    uint32_t at = s->token_tail;
    put_part(s, &at, &event, sizeof event);
    put_part(s, &at, detail, detail_bytes);
    s->token_tail += infer_ring_padded(total);
    return 0;
}

int session_put_answer(struct session *s, uint32_t request, uint32_t answer,
                       const struct infer_abi_done *done, const char *detail)
{
    struct infer_abi_record head = {
        .kind = INFER_ABI_EV_ANSWER, .request = request, .answer = answer};
    return put_end(s, head, done, detail);
}

int session_put_done(struct session *s, uint32_t request, uint32_t answer,
                     const struct infer_abi_done *done, const char *detail)
{
    struct infer_abi_record head = {
        .kind = INFER_ABI_EV_DONE, .request = request, .answer = answer};
    return put_end(s, head, done, detail);
}

/* Edge C, the waker's half; the caller has stored what the client is to see. */
static void wake_client(struct session *s, bool always)
{
    static const uint64_t one = 1;
    infer_ring_fence(); /* edge C */
    uint32_t waiting = infer_ring_load(&s->client->waiting);
    if (waiting == INFER_ABI_AWAKE) {
        s->woken = false;
        return;
    }
    uint32_t head = infer_ring_load(&s->client->token_head);
    if ((head == s->token_published || (s->woken && head == s->woken_head)) && !always)
        return;
    s->woken = true;
    s->woken_head = head;
    if (waiting == INFER_ABI_FUTEX)
        syscall(SYS_futex, &s->words->token_tail, FUTEX_WAKE, 1, NULL, NULL, 0);
    else
        (void)!write(s->bell_write, &one, sizeof one); /* full: it is readable already */
}

void session_publish(struct session *s)
{
    if (s->token_tail == s->token_published)
        return;
    infer_ring_store(&s->words->token_tail, s->token_tail); /* edge A */
    s->token_published = s->token_tail;
    wake_client(s, false);
}

void session_close(struct session *s, int code)
{
    if (s->closed)
        return;
    s->closed = true;
    infer_ring_store(&s->words->token_tail, s->token_tail);
    s->token_published = s->token_tail;
    infer_ring_store(&s->words->closed, (uint32_t)(code < 0 ? -code : code));
    wake_client(s, true);
}

/* ---- sleeping -------------------------------------------------------------------------------- */

bool session_sleep(struct session *s)
{
    infer_ring_store(&s->words->waiting, INFER_ABI_EVENTFD);
    infer_ring_fence(); /* edge C */
    return session_pending(s);
}

void session_awake(struct session *s)
{
    infer_ring_store(&s->words->waiting, INFER_ABI_AWAKE);
}
