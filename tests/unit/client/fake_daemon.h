/* fake_daemon.h: a daemon in a thread, made of daemon/proto, that answers by fixed rules, so that
 * libinferclient can be tested against the real rings without a model.
 *
 * GENERATE by its text: "count:N" gives N tokens, "hang" nothing until it is cancelled, "queue:N"
 * moves from place N to 0 in the queue before it is answered, "fields" and "third" tell what the
 * request said beside its text, "turns" which turn of which conversation it is, "bad" an error,
 * anything else comes back in tokens of 7 bytes. Of several answers, which come in turns and the
 * last one ends first, "aA:I " is token I of answer A. TOKENIZE gives each byte as an id, and so
 * on. A sequence whose ring is full waits for its turn, as in the real daemon. The status page
 * lists every GENERATE ("hang here" as preempted); END takes their ids, which count from 77. A
 * conversation is known by its id and the number of its turns; it ends after "lose", and has no
 * turn for "untold".
 *
 * A daemon that `keeps` leaves its clients' sockets behind when it is killed, as a service manager
 * would have them; fake_start() then welcomes those clients again.
 *
 * Threads: its own; the knobs are atomics that the test sets. */
#ifndef TESTS_UNIT_CLIENT_FAKE_DAEMON_H
#define TESTS_UNIT_CLIENT_FAKE_DAEMON_H

#include "base/clock.h"
#include "inferd/client.h"
#include "proto/admit.h"
#include "proto/peer.h"
#include "proto/status_page.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define FAKE_JOBS     64
#define FAKE_SESSIONS 8
#define FAKE_MOVE_US  250000 /* between two places in the queue */
#define FAKE_TALKS    8      /* conversations */

struct fake_talk {
    uint64_t id; /* 0: free */
    uint32_t turns;
    bool busy;
};

struct fake_job {
    bool used, cancelled;
    int error; /* answer DONE with it */
    struct admit_request request;
    uint32_t sent, total; /* units of the answer */
    bool queued;
    uint64_t id, moved_us;
    uint32_t position;
    struct fake_talk *talk; /* NULL: not kept */
    /* of several answers */
    uint32_t turn, n_complete;
    uint32_t answer_sent[INFER_ANSWERS_MAX];
    bool answer_complete[INFER_ANSWERS_MAX];
};

struct fake_session {
    struct session *session; /* NULL: free slot */
    int socket;
    int n_jobs; /* highest slot in use, and one */
    struct fake_job jobs[FAKE_JOBS];
};

struct fake_kept {
    int socket;
    char memory[PEER_MEMORY_TEXT];
};

struct fake_daemon {
    char folder[32], path[64];
    int listener;
    pthread_t thread;
    atomic_bool stop, stalled, spinning;
    atomic_int close_code; /* not 0: close all sessions with it, once */
    atomic_int n_requests, n_payload_bytes, n_sleeps;
    struct fake_session sessions[FAKE_SESSIONS];
    uint64_t next_id;
    struct status_page *status;
    atomic_bool no_pages; /* leave the status page as it is */
    struct fake_talk talks[FAKE_TALKS];
    atomic_bool older; /* know no conversations */
    bool keeps;        /* set before a client connects */
    int n_kept;        /* sockets left behind */
    struct fake_kept kept[FAKE_SESSIONS];
    uint64_t started_us; /* 0, but for who asks the status page when the daemon began */
};

static inline bool fake_says(const struct fake_job *job, const char *text)
{
    struct admit_bytes said = job->request.text;
    return said.bytes >= strlen(text) && memcmp(said.data, text, strlen(text)) == 0;
}

static inline bool fake_done(struct session *s, struct fake_job *job, int error, uint32_t finish,
                             const char *detail)
{
    struct infer_abi_done done = {.error = error,
                                  .finish = finish,
                                  .n_prompt = job->request.text.bytes,
                                  .n_tokens = job->sent,
                                  .queue_us = 1,
                                  .prefill_us = 2,
                                  .decode_us = 3};
    if (session_put_done(s, job->request.request, 0, &done, detail) < 0)
        return false;
    if (job->talk != NULL) {
        job->talk->busy = false;
        job->talk->turns++;
        if (fake_says(job, "lose"))
            job->talk->id = 0;
    }
    admit_done(&job->request);
    job->used = false;
    return true;
}

/* QUEUED, once or as often as it moves; false: not yet through. */
static inline bool fake_queue(struct session *s, struct fake_job *job)
{
    struct admit_bytes text = job->request.text;
    char piece[32];
    if (job->queued && job->position == 0)
        return true;
    if (job->queued && clock_us() - job->moved_us < FAKE_MOVE_US)
        return false;
    if (!job->queued) {
        snprintf(piece, sizeof piece, "%.*s", text.bytes > 6 ? (int)text.bytes - 6 : 0,
                 text.bytes > 6 ? text.data + 6 : "");
        job->total =
            fake_says(job, "count:") ? (uint32_t)strtoul(piece, NULL, 10) : (text.bytes + 6) / 7;
        job->position = fake_says(job, "queue:") ? (uint32_t)strtoul(piece, NULL, 10) + 1 : 1;
    }
    if (session_put_queued(s, job->request.request, job->id, text.bytes, job->position - 1,
                           (job->position - 1) * 1500000ull) < 0)
        return false;
    job->queued = true;
    job->position--;
    job->moved_us = clock_us();
    return job->position == 0;
}

static inline uint32_t fake_answer_total(const struct fake_job *job, uint32_t answer)
{
    return job->total + job->request.n_answers - 1 - answer;
}

/* Of several answers, the next one's next token or its end; or the end of all. */
static inline bool fake_several(struct session *s, struct fake_job *job)
{
    uint32_t n = job->request.n_answers, number = job->request.request, a = job->turn;
    char piece[32];
    if (job->n_complete == n)
        return fake_done(s, job, 0, INFER_FINISH_STOP, NULL);
    while (job->answer_complete[a])
        a = (a + 1) % n;
    uint32_t i = job->answer_sent[a];
    if (i == fake_answer_total(job, a)) {
        struct infer_abi_done done = {.finish = INFER_FINISH_STOP,
                                      .n_prompt = job->request.text.bytes,
                                      .n_tokens = i,
                                      .decode_us = 100 + a};
        if (session_put_answer(s, number, a, &done, NULL) < 0)
            return false;
        job->answer_complete[a] = true;
        job->n_complete++;
    } else {
        struct infer_logprob top[2] = {{1, -0.5f}, {2, -1.5f}};
        uint32_t bytes = (uint32_t)snprintf(piece, sizeof piece, "a%u:%u ", a, i);
        if (session_put_token(s, number, a, (int32_t)i, -0.5f, i, false, piece, bytes, top,
                              job->request.sampling.logprobs > 0 ? 2 : 0) < 0)
            return false;
        job->answer_sent[a]++;
        job->sent++;
    }
    job->turn = (a + 1) % n;
    return true;
}

/* What some texts are answered with, in one token; 0: not by this. */
static inline uint32_t fake_tell(const struct fake_job *job, char *ret, size_t size)
{
    const struct admit_request *r = &job->request;
    int n = 0;
    if (fake_says(job, "count:"))
        n = snprintf(ret, size, "t%u ", job->sent);
    else if (fake_says(job, "fields"))
        n = snprintf(ret, size, "priority %u deadline %u", r->priority, r->deadline_ms);
    else if (fake_says(job, "third"))
        n = snprintf(ret, size, "answers %u window %u sinks %u conversation %llu%s%s", r->n_answers,
                     r->window, r->sinks, (unsigned long long)r->conversation,
                     (r->flags & INFER_ABI_KEEP) != 0 ? " keep" : "",
                     (r->flags & INFER_ABI_WAIT) != 0 ? " wait" : "");
    else if (fake_says(job, "turns"))
        n = snprintf(ret, size, "conversation %llu turn %u of %u messages",
                     job->talk != NULL ? (unsigned long long)job->talk->id : 0,
                     job->talk != NULL ? job->talk->turns : 0, r->n_messages);
    return (uint32_t)n;
}

/* One token, or the end; false: no room. */
static inline bool fake_generate(struct session *s, struct fake_job *job)
{
    struct admit_bytes text = job->request.text;
    uint32_t number = job->request.request;
    char piece[128];
    if (job->cancelled)
        return fake_done(s, job, 0, INFER_FINISH_CANCEL, NULL);
    if (!fake_queue(s, job))
        return false;
    if ((job->request.flags & INFER_ABI_WANT_PROMPT) != 0) {
        static uint32_t sent; /* one such request at a time */
        while (sent < text.bytes) {
            int32_t ids[100];
            uint32_t n = 0;
            for (; n < 100 && sent + n < text.bytes; n++)
                ids[n] = (uint8_t)text.data[sent + n];
            if (session_put_result(s, number, INFER_ABI_IDS, sent * 4, ids, n * 4) < 0)
                return false;
            sent += n;
        }
        sent = 0;
        job->request.flags &= ~INFER_ABI_WANT_PROMPT;
    }
    if (fake_says(job, "hang"))
        return false;
    if (job->request.n_answers > 1)
        return fake_several(s, job);
    if (job->sent == job->total)
        return fake_done(s, job, 0, INFER_FINISH_STOP, NULL);
    uint32_t n = 7;
    const char *from = text.data + job->sent * 7;
    uint32_t told = fake_tell(job, piece, sizeof piece);
    if (told > 0) {
        n = told;
        from = piece;
    } else if (text.bytes - job->sent * 7 < 7) {
        n = text.bytes - job->sent * 7;
    }
    struct infer_logprob top[2] = {{1, -0.5f}, {2, -1.5f}};
    if (session_put_token(s, number, 0, (int32_t)job->sent, -0.5f, job->sent, false, from, n, top,
                          job->request.sampling.logprobs > 0 ? 2 : 0) < 0)
        return false;
    job->sent++;
    return true;
}

static inline bool fake_scores(struct session *s, struct fake_job *job)
{
    uint32_t n =
        job->request.input == INFER_ABI_TOKENS ? job->request.n_tokens : job->request.text.bytes;
    for (; job->sent < n; job->sent++) {
        struct {
            struct infer_abi_score score;
            struct infer_logprob top[INFER_TOP_MAX];
        } one = {.score = {(int32_t)job->sent, -1.0f, job->request.n_top}};
        for (uint32_t k = 0; k < job->request.n_top; k++)
            one.top[k] = (struct infer_logprob){(int32_t)k, -(float)k};
        uint32_t bytes = 12 + job->request.n_top * 8;
        if (session_put_result(s, job->request.request, INFER_ABI_SCORES, job->sent * bytes, &one,
                               bytes) < 0)
            return false;
    }
    return fake_done(s, job, 0, INFER_FINISH_STOP, NULL);
}

static inline bool fake_bytes(struct session *s, struct fake_job *job)
{
    bool ids = job->request.op == INFER_ABI_TOKENIZE;
    uint32_t n = ids ? job->request.text.bytes : job->request.n_tokens;
    for (; job->sent < n; job->sent++) {
        int32_t id = ids ? (uint8_t)job->request.text.data[job->sent] : 0;
        char byte = ids ? 0 : (char)job->request.tokens[job->sent];
        int r =
            ids ? session_put_result(s, job->request.request, INFER_ABI_IDS, job->sent * 4, &id, 4)
                : session_put_result(s, job->request.request, INFER_ABI_BYTES, job->sent, &byte, 1);
        if (r < 0)
            return false;
    }
    return fake_done(s, job, 0, INFER_FINISH_STOP, NULL);
}

static inline bool fake_tables(struct session *s, struct fake_job *job)
{
    if (job->request.op == INFER_ABI_STATUS) {
        struct infer_status status = {.bytes = sizeof status, .pid = 42, .event_loop = "fake"};
        if (session_put_result(s, job->request.request, INFER_ABI_STATUS_RECORD, 0, &status,
                               sizeof status) < 0)
            return false;
    } else {
        struct infer_model models[2] = {{.bytes = sizeof models[0], .name = "one", .n_vocab = 10},
                                        {.bytes = sizeof models[0], .name = "two", .n_vocab = 20}};
        for (; job->sent < 2; job->sent++) /* as an older daemon that knows fewer fields */
            if (session_put_result(s, job->request.request, INFER_ABI_MODEL_RECORD, 0,
                                   &models[job->sent], sizeof models[0] - 8) < 0)
                return false;
    }
    return fake_done(s, job, 0, INFER_FINISH_STOP, NULL);
}

static inline bool fake_step(struct session *s, struct fake_job *job)
{
    if (job->error != 0)
        return fake_done(s, job, job->error, INFER_FINISH_ERROR,
                         job->error == INFER_E_NOT_FOUND      ? "no such id"
                         : job->error == INFER_E_CONVERSATION ? ""
                                                              : "no such thing as \"bad\"");
    switch (job->request.op) {
    case INFER_ABI_GENERATE:
        return fake_generate(s, job);
    case INFER_ABI_SCORE:
        return fake_scores(s, job);
    case INFER_ABI_TOKENIZE:
    case INFER_ABI_DETOKENIZE:
        return fake_bytes(s, job);
    case INFER_ABI_END:
    case INFER_ABI_FORGET:
        return fake_done(s, job, 0, INFER_FINISH_NONE, NULL);
    default:
        return fake_tables(s, job);
    }
}

/* Ends the GENERATE with that id, whoever's it is. */
static inline int fake_end(struct fake_daemon *d, uint64_t id)
{
    for (int i = 0; i < FAKE_SESSIONS; i++) {
        struct fake_session *f = &d->sessions[i];
        for (int k = 0; f->session != NULL && k < f->n_jobs; k++) {
            struct fake_job *job = &f->jobs[k];
            if (!job->used || job->request.op != INFER_ABI_GENERATE || job->id != id)
                continue;
            job->cancelled = true;
            return 0;
        }
    }
    return INFER_E_NOT_FOUND;
}

/* What runs, for the status page. */
static inline void fake_show(struct fake_daemon *d)
{
    static struct infer_page page;
    uint64_t now = clock_us();
    memset(&page, 0, sizeof page);
    page.status = (struct infer_status){
        .bytes = sizeof page.status, .pid = 42, .version = "0.1", .event_loop = "fake"};
    page.status.uptime_us = now - d->started_us;
    page.status.n_tokens = now / 1000; /* a thousand a second */
    page.status.tokens_per_s = 1000;
    page.status.n_pages = 100;
    page.status.n_pages_used = 37;
    page.status.page_tokens = 16;
    page.written_us = now;
    for (int i = 0; i < FAKE_SESSIONS; i++) {
        struct fake_session *f = &d->sessions[i];
        for (int k = 0; f->session != NULL && k < f->n_jobs; k++) {
            struct fake_job *job = &f->jobs[k];
            if (!job->used || job->request.op != INFER_ABI_GENERATE ||
                page.n_sequences == INFER_PAGE_SEQUENCES)
                continue;
            struct infer_page_sequence *row = &page.sequences[page.n_sequences++];
            const struct peer *peer = session_peer(f->session);
            *row = (struct infer_page_sequence){
                .id = job->id,
                .uid = peer->uid,
                .pid = (uint32_t)peer->pid,
                .model = 1,
                .state = fake_says(job, "queue:")      ? INFER_SEQUENCE_WAITING
                         : fake_says(job, "hang here") ? INFER_SEQUENCE_PREEMPTED
                                                       : INFER_SEQUENCE_DECODE,
                .priority = job->request.priority,
                .n_prompt = job->request.text.bytes,
                .n_tokens = job->sent,
                .position = job->position,
                .n_pages = 3};
            memcpy(row->client, peer->client, sizeof row->client);
        }
    }
    page.status.n_running = page.n_sequences;
    if (page.n_sequences > 0) {
        page.n_users = 1;
        page.users[0] = (struct infer_page_user){
            .uid = page.sequences[0].uid, .weight = 100, .n_running = page.n_sequences};
    }
    status_page_write(d->status, &page);
}

static inline struct fake_talk *fake_find_talk(struct fake_daemon *d, uint64_t id)
{
    for (int i = 0; i < FAKE_TALKS; i++)
        if (d->talks[i].id == id)
            return &d->talks[i];
    return NULL;
}

static inline int fake_forget(struct fake_daemon *d, uint64_t id)
{
    struct fake_talk *talk = id != 0 ? fake_find_talk(d, id) : NULL;
    if (talk == NULL)
        return INFER_E_NOT_FOUND;
    if (talk->busy)
        return INFER_E_CONVERSATION;
    talk->id = 0;
    return 0;
}

/* Continues or begins the conversation of a GENERATE. */
static inline int fake_talk(struct fake_daemon *d, struct fake_job *job)
{
    uint64_t id = job->request.conversation;
    struct fake_talk *talk = fake_find_talk(d, id); /* 0: a free one */
    if ((job->request.flags & INFER_ABI_KEEP) == 0)
        return 0;
    if (talk == NULL && id == 0)
        abort(); /* a test with too many conversations */
    if (talk == NULL)
        return INFER_E_NOT_FOUND;
    if (id != 0 && fake_says(job, "untold"))
        return INFER_E_NO_TEMPLATE;
    if (talk->busy && id != 0)
        return INFER_E_CONVERSATION;
    if (id == 0)
        *talk = (struct fake_talk){.id = job->id};
    talk->busy = true;
    job->talk = talk;
    return 0;
}

/* A record of a client. */
static inline void fake_take(struct fake_daemon *d, struct fake_session *f,
                             struct session_request *r)
{
    struct report report;
    int slot = 0;
    for (int i = 0; r->kind == INFER_ABI_CANCEL && i < f->n_jobs; i++)
        if (f->jobs[i].used && f->jobs[i].request.request == r->request)
            f->jobs[i].cancelled = true;
    if (r->kind != INFER_ABI_SUBMIT)
        return;
    while (f->jobs[slot].used)
        if (++slot == FAKE_JOBS)
            abort(); /* a test with too many requests */
    if (f->n_jobs <= slot)
        f->n_jobs = slot + 1;
    struct fake_job *job = &f->jobs[slot];
    memset(job, 0, sizeof *job);
    job->used = true;
    d->n_payload_bytes += (int)r->payload_bytes;
    uint32_t number = r->request;
    job->error = -admit_parse(r, &job->request, &report);
    job->request.request = number;
    if (job->request.n_messages > 0) /* a conversation is answered by its last message */
        job->request.text = job->request.messages[job->request.n_messages - 1].content;
    if (job->error == 0 && job->request.text.bytes == 3 &&
        memcmp(job->request.text.data, "bad", 3) == 0)
        job->error = INFER_E_UNKNOWN_MODEL;
    if (job->error == 0 && d->older && (job->request.flags & INFER_ABI_KEEP) != 0)
        job->error = INFER_E_UNSUPPORTED;
    if (job->error == 0 && job->request.op == INFER_ABI_GENERATE) {
        job->id = d->next_id++;
        job->error = fake_talk(d, job);
    }
    if (job->error == 0 && job->request.op == INFER_ABI_FORGET)
        job->error = fake_forget(d, job->request.target);
    if (job->error == 0 && job->request.op == INFER_ABI_END)
        job->error = fake_end(d, job->request.target);
    d->n_requests++;
}

static inline void fake_drop(struct fake_session *f)
{
    for (int i = 0; i < FAKE_JOBS; i++)
        if (f->jobs[i].used) {
            if (f->jobs[i].talk != NULL)
                f->jobs[i].talk->busy = false;
            admit_done(&f->jobs[i].request);
        }
    session_free(f->session);
    close(f->socket);
    memset(f, 0, sizeof *f);
}

/* true: something was done. */
static inline bool fake_serve(struct fake_daemon *d, struct fake_session *f)
{
    struct session_request r;
    bool busy = false;
    int e;
    if (d->stalled)
        return false;
    while ((e = session_poll(f->session, &r)) == 1) {
        fake_take(d, f, &r);
        busy = true;
    }
    if (e < 0) {
        session_close(f->session, -e);
        fake_drop(f);
        return true;
    }
    for (int i = 0; i < f->n_jobs; i++)
        if (f->jobs[i].used && fake_step(f->session, &f->jobs[i]))
            busy = true;
    while (f->n_jobs > 0 && !f->jobs[f->n_jobs - 1].used)
        f->n_jobs--;
    session_publish(f->session);
    return busy;
}

static inline void fake_accept(struct fake_daemon *d)
{
    char hello[256];
    struct peer peer;
    struct session *session;
    int fd = accept4(d->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0)
        return;
    struct pollfd p = {.fd = fd, .events = POLLIN};
    poll(&p, 1, 1000);
    ssize_t n = recv(fd, hello, sizeof hello, 0);
    struct fake_session *slot = NULL;
    for (int i = 0; i < FAKE_SESSIONS; i++)
        if (d->sessions[i].session == NULL)
            slot = &d->sessions[i];
    if (n <= 0 || peer_identify(fd, &peer) < 0) {
        close(fd);
        return;
    }
    peer.kept = d->keeps;
    if (peer_handshake(fd, &peer, hello, (size_t)n, 1, slot == NULL ? INFER_E_SESSIONS_FULL : 0,
                       status_page_fd(d->status), &session) < 0) {
        close(fd);
        return;
    }
    slot->session = session;
    slot->socket = fd;
}

/* What the daemon before this one left behind. */
static inline void fake_adopt(struct fake_daemon *d)
{
    for (int i = 0; i < d->n_kept; i++) {
        struct peer peer;
        struct peer_memory memory;
        struct fake_session *f = &d->sessions[i];
        if (!peer_memory_parse(d->kept[i].memory, &memory))
            abort();
        if (peer_identify(d->kept[i].socket, &peer) < 0 ||
            peer_welcome_again(d->kept[i].socket, &peer, &memory, 100 + (uint32_t)i,
                               status_page_fd(d->status), &f->session) < 0) {
            close(d->kept[i].socket); /* the client is gone */
            continue;
        }
        f->socket = d->kept[i].socket;
    }
    d->n_kept = 0;
}

/* Leaves its socket behind where that was agreed on. */
static inline void fake_leave(struct fake_daemon *d, struct fake_session *f)
{
    if (session_peer(f->session)->kept) {
        struct fake_kept *kept = &d->kept[d->n_kept++];
        peer_memory_print(f->session, kept->memory);
        kept->socket = fcntl(f->socket, F_DUPFD_CLOEXEC, 0);
    }
    fake_drop(f);
}

/* Sockets, and sleep when nothing is to be done. */
static inline void fake_wait(struct fake_daemon *d, bool idle)
{
    struct pollfd p[1 + 2 * FAKE_SESSIONS];
    struct fake_session *of[1 + 2 * FAKE_SESSIONS] = {NULL};
    nfds_t n = 1;
    p[0] = (struct pollfd){.fd = d->listener, .events = POLLIN};
    for (int i = 0; i < FAKE_SESSIONS; i++) {
        struct fake_session *f = &d->sessions[i];
        if (f->session == NULL)
            continue;
        if (idle && session_sleep(f->session) && !d->stalled)
            idle = false;
        of[n] = f;
        p[n++] = (struct pollfd){.fd = f->socket, .events = POLLIN};
        p[n++] = (struct pollfd){.fd = session_doorbell(f->session), .events = POLLIN};
    }
    if (!d->no_pages)
        fake_show(d);
    if (idle)
        d->n_sleeps++;
    poll(p, n, idle ? 5 : 0);
    for (nfds_t i = 1; i < n; i += 2) {
        session_awake(of[i]->session);
        if (p[i + 1].revents != 0)
            session_drain_doorbell(of[i]->session);
        if (p[i].revents != 0)
            fake_drop(of[i]);
    }
    if (p[0].revents != 0)
        fake_accept(d);
}

static inline void *fake_main(void *arg)
{
    struct fake_daemon *d = arg;
    for (unsigned turn = 0; !d->stop; turn++) {
        bool busy = false;
        int code = d->close_code;
        for (int i = 0; i < FAKE_SESSIONS; i++) {
            if (d->sessions[i].session == NULL)
                continue;
            if (code != 0)
                session_close(d->sessions[i].session, code);
            if (code == 0 && fake_serve(d, &d->sessions[i]))
                busy = true;
        }
        if (code != 0)
            d->close_code = 0;
        if (d->spinning ? turn % 100000 == 0 : !busy || turn % 64 == 0)
            fake_wait(d, !busy && !d->spinning);
    }
    close(d->listener); /* as a killed daemon: no session_close() */
    for (int i = 0; i < FAKE_SESSIONS; i++)
        if (d->sessions[i].session != NULL)
            fake_leave(d, &d->sessions[i]);
    status_page_free(d->status);
    return NULL;
}

/* Listens at d->path, which fake_new() chose; may be called again after fake_kill(). */
static inline void fake_start(struct fake_daemon *d)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    memcpy(address.sun_path, d->path, sizeof d->path);
    unlink(d->path);
    d->listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (d->listener < 0 || bind(d->listener, (struct sockaddr *)&address, sizeof address) < 0 ||
        listen(d->listener, 16) < 0)
        abort();
    if (status_page_new(&d->status) < 0)
        abort();
    d->stop = false;
    fake_adopt(d);
    if (pthread_create(&d->thread, NULL, fake_main, d) != 0)
        abort();
}

static inline struct fake_daemon *fake_new(void)
{
    struct fake_daemon *d = calloc(1, sizeof *d);
    if (d == NULL)
        abort();
    snprintf(d->folder, sizeof d->folder, "/tmp/inferd-test-XXXXXX");
    d->next_id = 77;
    if (mkdtemp(d->folder) == NULL)
        abort();
    snprintf(d->path, sizeof d->path, "%s/s", d->folder);
    fake_start(d);
    return d;
}

static inline void fake_kill(struct fake_daemon *d)
{
    d->stop = true;
    pthread_join(d->thread, NULL);
}

static inline void fake_free(struct fake_daemon *d)
{
    fake_kill(d);
    for (int i = 0; i < d->n_kept; i++)
        close(d->kept[i].socket);
    unlink(d->path);
    rmdir(d->folder);
    free(d);
}

#endif
