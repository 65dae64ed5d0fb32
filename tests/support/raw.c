/* raw.c: a client that speaks the protocol by hand. */
#include "support/raw.h"
#include "support/program.h"

#include "inferd/ring.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>

#include <cmocka.h>

int raw_socket(const struct daemon *d)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    snprintf(a.sun_path, sizeof a.sun_path, "%s", d->socket);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    if (connect(fd, (struct sockaddr *)&a, sizeof a) < 0) {
        int error = -errno;
        close(fd);
        return error;
    }
    return fd;
}

void raw_hello_default(struct infer_abi_hello *ret)
{
    memset(ret, 0, sizeof *ret);
    ret->magic = INFER_ABI_MAGIC;
    ret->bytes = sizeof *ret;
    ret->version_min = INFER_ABI_VERSION_MIN;
    ret->version_max = INFER_ABI_VERSION;
    strcpy(ret->client, "raw");
}

static void map_files(struct raw *r)
{
    size_t n = INFER_ABI_DATA_OFFSET + r->welcome.request_ring_bytes;
    r->request_bytes = r->welcome.request_ring_bytes;
    r->token_bytes = r->welcome.token_ring_bytes;
    uint8_t *p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd[0], 0);
    assert_true(p != MAP_FAILED);
    r->ours = (void *)p;
    r->requests = p + INFER_ABI_DATA_OFFSET;
    n = INFER_ABI_DATA_OFFSET + r->token_bytes;
    p = mmap(NULL, n, PROT_READ, MAP_SHARED, r->fd[1], 0);
    assert_true(p != MAP_FAILED);
    r->theirs = (void *)p;
    r->tokens = p + INFER_ABI_DATA_OFFSET;
}

int raw_handshake(struct raw *r, const struct daemon *d, const void *hello, size_t bytes)
{
    union {
        char room[CMSG_SPACE(sizeof(int) * INFER_ABI_FDS)];
        struct cmsghdr align;
    } control;
    struct iovec iov = {.iov_base = &r->welcome, .iov_len = sizeof r->welcome};
    struct msghdr m = {.msg_iov = &iov,
                       .msg_iovlen = 1,
                       .msg_control = &control,
                       .msg_controllen = sizeof control};
    memset(r, 0, sizeof *r);
    for (int i = 0; i < INFER_ABI_FDS; i++)
        r->fd[i] = -1;
    r->socket = raw_socket(d);
    if (r->socket < 0)
        fail_msg("connect: %s", strerror(-r->socket));
    if (send(r->socket, hello, bytes, MSG_NOSIGNAL) < 0)
        return 0; /* refused before a word was said: full */
    struct pollfd p = {.fd = r->socket, .events = POLLIN};
    if (poll(&p, 1, 10000 * program_slowness()) != 1)
        fail_msg("no answer to a hello of %zu bytes", bytes);
    ssize_t n = recvmsg(r->socket, &m, MSG_CMSG_CLOEXEC);
    if (n <= 0)
        return 0;
    assert_true((size_t)n >= INFER_ABI_WELCOME_MIN);
    assert_int_equal(r->welcome.magic, INFER_ABI_MAGIC);
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    if (r->welcome.error) {
        assert_null(c); /* no descriptors for the refused */
        return 1;
    }
    assert_non_null(c);
    assert_int_equal(c->cmsg_len, CMSG_LEN(sizeof r->fd));
    memcpy(r->fd, CMSG_DATA(c), sizeof r->fd);
    map_files(r);
    return 1;
}

void raw_open(struct raw *r, const struct daemon *d)
{
    struct infer_abi_hello hello;
    raw_hello_default(&hello);
    if (raw_handshake(r, d, &hello, sizeof hello) != 1 || r->welcome.error)
        fail_msg("handshake refused: %d %s", r->welcome.error, r->welcome.detail);
}

void raw_close(struct raw *r)
{
    if (r->ours)
        munmap(r->ours, INFER_ABI_DATA_OFFSET + r->request_bytes);
    if (r->theirs)
        munmap((void *)(uintptr_t)r->theirs, INFER_ABI_DATA_OFFSET + r->token_bytes);
    for (int i = 0; i < INFER_ABI_FDS; i++)
        if (r->fd[i] >= 0)
            close(r->fd[i]);
    if (r->socket >= 0)
        close(r->socket);
    memset(r, 0, sizeof *r);
    r->socket = -1;
}

uint32_t raw_room(const struct raw *r)
{
    return r->request_bytes - (r->tail - infer_ring_load(&r->theirs->request_head));
}

void raw_put(struct raw *r, const void *bytes, uint32_t n)
{
    infer_ring_put(r->requests, r->request_bytes, r->tail, bytes, n);
    r->tail += infer_ring_padded(n);
}

void raw_publish(struct raw *r)
{
    uint64_t one = 1;
    infer_ring_store(&r->ours->request_tail, r->tail);
    infer_ring_fence();
    if (write(r->fd[2], &one, sizeof one) < 0 && errno != EAGAIN)
        fail_msg("doorbell: %s", strerror(errno));
}

void raw_submit_default(struct infer_abi_submit *ret, uint32_t request, uint32_t max_tokens)
{
    memset(ret, 0, sizeof *ret);
    ret->head.bytes = sizeof *ret;
    ret->head.kind = INFER_ABI_SUBMIT;
    ret->head.request = request;
    ret->fixed_bytes = sizeof *ret;
    ret->op = INFER_ABI_GENERATE;
    ret->input = INFER_ABI_TEXT;
    infer_sampling_default(&ret->sampling);
    ret->sampling.max_tokens = max_tokens;
    ret->sampling.ignore_eos = 1;
    ret->sampling.seed = 7;
}

void raw_put_submit(struct raw *r, const struct infer_abi_submit *submit, const void *payload,
                    uint32_t payload_bytes)
{
    uint8_t record[INFER_RECORD_MAX] = {0};
    assert_true(sizeof *submit + payload_bytes <= sizeof record);
    memcpy(record, submit, sizeof *submit);
    if (payload_bytes)
        memcpy(record + sizeof *submit, payload, payload_bytes);
    raw_put(r, record, (uint32_t)sizeof *submit + payload_bytes);
}

static bool hung_up(const struct raw *r)
{
    struct pollfd p = {.fd = r->socket, .events = POLLIN};
    return poll(&p, 1, 0) == 1 && (p.revents & (POLLHUP | POLLERR | POLLIN));
}

int raw_next(struct raw *r, int timeout_ms, void *buffer)
{
    uint64_t end = test_clock_us() + 1000u * (uint64_t)timeout_ms * (unsigned)program_slowness();
    struct infer_abi_record head;
    for (;;) {
        bool gone = infer_ring_load(&r->theirs->closed) != 0 || hung_up(r);
        uint32_t used = infer_ring_load(&r->theirs->token_tail) - r->head;
        if (used >= sizeof head)
            break;
        if (gone)
            return -1;
        if (test_clock_us() > end)
            return 0;
        usleep(100);
    }
    infer_ring_get(r->tokens, r->token_bytes, r->head, &head, sizeof head);
    assert_in_range(head.bytes, sizeof head, INFER_RECORD_MAX);
    infer_ring_get(r->tokens, r->token_bytes, r->head, buffer, head.bytes);
    r->head += infer_ring_padded(head.bytes);
    infer_ring_store(&r->ours->token_head, r->head);
    return 1;
}

int raw_wait_done(struct raw *r, uint32_t request, int timeout_ms)
{
    union {
        struct infer_abi_record head;
        struct infer_abi_done done;
        uint8_t bytes[INFER_RECORD_MAX];
    } e;
    for (;;) {
        int code = raw_next(r, timeout_ms, &e);
        if (code <= 0)
            return code < 0 ? -1 : -2;
        if (e.head.kind == INFER_ABI_EV_DONE && e.head.request == request)
            return e.done.error;
    }
}

bool raw_wait_closed(struct raw *r, int timeout_ms)
{
    uint64_t end = test_clock_us() + 1000u * (uint64_t)timeout_ms * (unsigned)program_slowness();
    while (test_clock_us() < end) {
        if (infer_ring_load(&r->theirs->closed) != 0 || hung_up(r))
            return true;
        usleep(200);
    }
    return false;
}
