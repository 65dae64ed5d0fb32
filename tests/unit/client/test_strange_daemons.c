/* test_strange_daemons.c: libinferclient against daemons that are not inferd, or have gone mad: an
 * error each time, never a crash, nothing left open. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "inferd/abi.h"
#include "inferd/client.h"
#include "inferd/ring.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

struct stranger {
    char path[64];
    int listener, peer; /* peer: stays open until the test ends it */
    struct infer_abi_welcome welcome;
    ssize_t bytes; /* of the welcome; 0: close at once */
    int n_fds;
    off_t file_bytes;   /* of both rings' files */
    off_t status_bytes; /* of the status file */
    struct infer_abi_daemon_words *words;
    struct infer_status_page *status;
    pthread_t thread;
};

static void *stranger_main(void *arg)
{
    struct stranger *s = arg;
    char hello[256];
    int fds[INFER_ABI_FDS];
    char control[CMSG_SPACE(sizeof fds)] = {0};
    s->peer = accept4(s->listener, NULL, NULL, SOCK_CLOEXEC);
    (void)!recv(s->peer, hello, sizeof hello, 0);
    for (int i = 0; i < INFER_ABI_FDS; i++) {
        fds[i] = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
        if (fds[i] < 0 || ftruncate(fds[i], i < 4 ? s->file_bytes : s->status_bytes) < 0 ||
            fcntl(fds[i], F_ADD_SEALS, F_SEAL_SHRINK) < 0)
            abort();
    }
    s->words = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED, fds[1], 0);
    s->status = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED, fds[4], 0);
    if (s->status_bytes > 4096)
        s->status->bytes = sizeof(struct infer_page);
    struct iovec part = {&s->welcome, (size_t)s->bytes};
    struct msghdr m = {.msg_iov = &part, .msg_iovlen = 1};
    if (s->n_fds > 0) {
        m.msg_control = control;
        m.msg_controllen = CMSG_SPACE((size_t)s->n_fds * sizeof(int));
        struct cmsghdr *c = CMSG_FIRSTHDR(&m);
        *c = (struct cmsghdr){.cmsg_level = SOL_SOCKET,
                              .cmsg_type = SCM_RIGHTS,
                              .cmsg_len = CMSG_LEN((size_t)s->n_fds * sizeof(int))};
        memcpy(CMSG_DATA(c), fds, (size_t)s->n_fds * sizeof(int));
    }
    if (s->bytes > 0)
        (void)!sendmsg(s->peer, &m, MSG_NOSIGNAL);
    else
        close(s->peer);
    for (int i = 0; i < INFER_ABI_FDS; i++)
        close(fds[i]);
    return NULL;
}

static void stranger_start(struct stranger *s)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    memset(s, 0, sizeof *s);
    snprintf(s->path, sizeof s->path, "/tmp/inferd-stranger-%d", (int)getpid());
    memcpy(address.sun_path, s->path, sizeof s->path);
    unlink(s->path);
    s->listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(s->listener, (struct sockaddr *)&address, sizeof address), 0);
    assert_int_equal(listen(s->listener, 1), 0);
    s->welcome.magic = INFER_ABI_MAGIC;
    s->welcome.bytes = s->bytes = sizeof s->welcome;
    s->welcome.version = INFER_ABI_VERSION;
    s->welcome.request_ring_bytes = INFER_REQUEST_RING_DEFAULT;
    s->welcome.token_ring_bytes = INFER_TOKEN_RING_DEFAULT;
    s->n_fds = INFER_ABI_FDS;
    s->file_bytes = INFER_ABI_DATA_OFFSET + INFER_TOKEN_RING_DEFAULT;
    s->status_bytes = sizeof(struct infer_status_page);
}

static void stranger_end(struct stranger *s)
{
    munmap(s->words, 1 << 20);
    munmap(s->status, 1 << 20);
    close(s->listener);
    unlink(s->path);
}

static void test_strange_daemons(void **state)
{
    for (int i = 0; i < 10; i++) {
        struct stranger s;
        struct infer_conn *c;
        int code = INFER_E_PROTOCOL;
        stranger_start(&s);
        if (i == 0) {
            s.bytes = 0;
            code = INFER_E_DAEMON_ABSENT;
        } else if (i == 1) {
            s.bytes = 100;
        } else if (i == 2) {
            s.welcome.magic++;
        } else if (i == 3) {
            s.n_fds = 3;
        } else if (i == 4) {
            s.welcome.token_ring_bytes = 12345;
        } else if (i == 5) {
            s.file_bytes = 4096; /* would be SIGBUS */
        } else if (i == 9) {
            s.status_bytes = 7;
        } else if (i == 6) {
            s.welcome.version = 9;
            code = INFER_E_VERSION;
        } else if (i == 7) {
            s.welcome.error = code = INFER_E_SESSIONS_FULL;
            memset(s.welcome.detail, 'd', sizeof s.welcome.detail); /* no NUL */
        } else {
            s.welcome.request_ring_bytes = UINT32_MAX;
        }
        struct infer_connect_options o = {.socket = s.path};
        pthread_create(&s.thread, NULL, stranger_main, &s);
        assert_int_equal(infer_connect(&o, &c), -code);
        assert_true(infer_detail(NULL)[0] != '\0');
        pthread_join(s.thread, NULL);
        if (i != 0)
            close(s.peer);
        stranger_end(&s);
    }
}

/* Rings that no daemon would write end the requests with PROTOCOL; nothing crashes. */
static void test_nonsense_in_the_token_ring(void **state)
{
    struct infer_abi_token token = {.head = {.kind = INFER_ABI_EV_TOKEN}};
    for (int i = 0; i < 9; i++) {
        struct stranger s;
        struct infer_conn *c;
        struct infer_event e;
        uint32_t tail = 2048;
        stranger_start(&s);
        struct infer_connect_options o = {.socket = s.path};
        pthread_create(&s.thread, NULL, stranger_main, &s);
        assert_int_equal(infer_connect(&o, &c), 0);
        pthread_join(s.thread, NULL);
        struct infer_request request;
        uint32_t id;
        infer_request_default(&request);
        request.text = "hello";
        assert_int_equal(infer_submit(c, &request, &id), 0);
        token.head.request = id;
        token.head.bytes = sizeof token;
        token.text_bytes = token.n_top = 0;
        if (i == 0)
            tail = INFER_TOKEN_RING_DEFAULT + 8;
        else if (i == 1)
            tail = 8;
        else if (i == 2)
            token.head.bytes = 15;
        else if (i == 3)
            token.head.bytes = INFER_RECORD_MAX + 1;
        else if (i == 4)
            token.head.bytes = 31;
        else if (i == 5)
            token.text_bytes = 1;
        else if (i == 6)
            token.text_bytes = UINT16_MAX;
        else if (i == 7)
            token.n_top = UINT16_MAX;
        else
            tail = 24; /* the record is longer than what was published */
        memcpy((uint8_t *)s.words + INFER_ABI_DATA_OFFSET, &token, sizeof token);
        infer_ring_store(&s.words->token_tail, tail);
        assert_int_equal(infer_next(c, id, 5000, &e), 1);
        assert_int_equal(e.kind, INFER_EVENT_DONE);
        assert_int_equal(e.error, INFER_E_PROTOCOL);
        close(s.peer);
        infer_close(c);
        stranger_end(&s);
    }
}

static struct infer_conn *meet(struct stranger *s)
{
    struct infer_connect_options o = {.socket = s->path};
    struct infer_conn *c;
    pthread_create(&s->thread, NULL, stranger_main, s);
    assert_int_equal(infer_connect(&o, &c), 0);
    pthread_join(s->thread, NULL);
    return c;
}

static void part(struct stranger *s, struct infer_conn *c)
{
    close(s->peer);
    infer_close(c);
    stranger_end(s);
}

/* A record of the daemon: TOKEN, or ANSWER or DONE with an error or not. */
struct said {
    uint16_t kind;
    uint32_t answer;
    int error;
};

static uint32_t put_said(const struct stranger *s, uint32_t at, uint32_t request,
                         const struct said *said)
{
    struct infer_abi_record head = {.kind = said->kind, .request = request, .answer = said->answer};
    struct infer_abi_token token = {.head = head};
    struct infer_abi_done done = {.head = head,
                                  .error = said->error,
                                  .finish = said->error ? INFER_FINISH_ERROR : INFER_FINISH_STOP};
    bool is_token = said->kind == INFER_ABI_EV_TOKEN;
    uint8_t *to = (uint8_t *)s->words + INFER_ABI_DATA_OFFSET + at;
    token.head.bytes = sizeof token;
    done.head.bytes = sizeof done;
    memcpy(to, is_token ? (void *)&token : (void *)&done, is_token ? sizeof token : sizeof done);
    return at + (uint32_t)(is_token ? sizeof token : sizeof done);
}

/* Answers that were not asked for, that end twice or never; and a daemon that knows but one. */
static void test_strange_answers(void **state)
{
    enum { TOKEN = INFER_ABI_EV_TOKEN, ANSWER = INFER_ABI_EV_ANSWER, DONE = INFER_ABI_EV_DONE };
    static const struct {
        uint32_t n_answers;
        int error;         /* of the DONE that the caller gets */
        uint32_t n_events; /* with it */
        struct said said[6];
    } rows[] = {
        {3, 0, 5, {{TOKEN, 2, 0}, {ANSWER, 1, 0}, {ANSWER, 2, 0}, {ANSWER, 0, 0}, {DONE, 0, 0}}},
        {2, INFER_E_PROTOCOL, 1, {{TOKEN, 2, 0}}},
        {2, INFER_E_PROTOCOL, 2, {{TOKEN, 1, 0}, {TOKEN, UINT32_MAX, 0}}},
        {0, INFER_E_PROTOCOL, 1, {{TOKEN, 1, 0}}},
        {1, INFER_E_PROTOCOL, 2, {{TOKEN, 0, 0}, {ANSWER, 0, 0}, {DONE, 0, 0}}},
        {0, INFER_E_PROTOCOL, 1, {{ANSWER, 0, 0}}},
        {2, INFER_E_PROTOCOL, 1, {{ANSWER, 2, 0}}},
        {64, INFER_E_PROTOCOL, 2, {{ANSWER, 63, 0}, {ANSWER, 64, 0}}},
        {2, INFER_E_PROTOCOL, 2, {{ANSWER, 1, 0}, {ANSWER, 1, 0}}},
        {2, INFER_E_PROTOCOL, 2, {{ANSWER, 1, 0}, {TOKEN, 1, 0}}},
        {2, INFER_E_PROTOCOL, 2, {{ANSWER, 1, 0}, {DONE, 0, 0}}},
        {UINT32_MAX, INFER_E_PROTOCOL, 2, {{ANSWER, 63, 0}, {ANSWER, 64, 0}}},
        {2, INFER_E_PROTOCOL, 1, {{DONE, 2, INFER_E_QUOTA}}},
        {1, INFER_E_PROTOCOL, 1, {{DONE, 1, 0}}},
        {2, INFER_E_QUOTA, 1, {{DONE, 0, INFER_E_QUOTA}}}, /* refused, before there was one */
        {2, INFER_E_BACKEND, 2, {{ANSWER, 1, INFER_E_BACKEND}, {DONE, 1, INFER_E_BACKEND}}},
        {2, INFER_E_UNSUPPORTED, 2, {{TOKEN, 0, 0}, {DONE, 0, 0}}}, /* an older daemon */
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct stranger s;
        struct infer_request request;
        struct infer_event e = {0};
        uint32_t id, tail = 0, n = 0;
        stranger_start(&s);
        struct infer_conn *c = meet(&s);
        infer_request_default(&request);
        request.text = "hello";
        request.n_answers = rows[i].n_answers;
        assert_int_equal(infer_submit(c, &request, &id), 0);
        for (const struct said *said = rows[i].said; said->kind != 0; said++)
            tail = put_said(&s, tail, id, said);
        infer_ring_store(&s.words->token_tail, tail);
        for (; e.kind != INFER_EVENT_DONE; n++)
            assert_int_equal(infer_next(c, id, 5000, &e), 1);
        if (e.error != rows[i].error || n != rows[i].n_events)
            fail_msg("row %zu: %s after %u events", i, infer_error_name(e.error), n);
        assert_int_equal(infer_next(c, id, 0, &e), -INFER_E_NOT_FOUND);
        part(&s, c);
    }
}

/* The first daemons had four descriptors and no status page; a later one may have more. */
static void test_daemons_of_other_ages(void **state)
{
    static struct infer_page page;
    struct stranger s;
    stranger_start(&s);
    s.n_fds = 4;
    struct infer_conn *c = meet(&s);
    assert_int_equal(infer_read_page(c, &page), -INFER_E_UNSUPPORTED);
    assert_non_null(strstr(infer_detail(c), "status page"));
    part(&s, c);
}

/* Shorter and longer pages, impossible counts, names without an end, a page never finished. */
static void test_strange_status_pages(void **state)
{
    static struct infer_page page;
    struct stranger s;
    stranger_start(&s);
    s.status_bytes = 1 << 20;
    struct infer_conn *c = meet(&s);
    memset(&s.status->page, 0xff, sizeof s.status->page);
    s.status->bytes = UINT32_MAX;
    assert_int_equal(infer_read_page(c, &page), 0);
    assert_int_equal(page.n_sequences, INFER_PAGE_SEQUENCES);
    assert_int_equal(page.n_users, INFER_PAGE_USERS);
    assert_int_equal(page.sequences[255].client[INFER_CLIENT_NAME_MAX - 1], '\0');
    assert_int_equal(page.users[63].weight, UINT32_MAX);
    s.status->bytes = offsetof(struct infer_page, n_sequences) + 3; /* an older daemon knew less */
    assert_int_equal(infer_read_page(c, &page), 0);
    assert_true(page.written_us == UINT64_MAX && page.n_sequences == 0 && page.users[63].uid == 0);
    s.status->bytes = 0;
    assert_int_equal(infer_read_page(c, &page), 0);
    assert_true(page.status.pid == 0 && page.written_us == 0);
    infer_ring_store(&s.status->sequence, 7);
    page.n_users = 12345;
    assert_int_equal(infer_read_page(c, &page), -INFER_E_DAEMON_LOST);
    assert_non_null(strstr(infer_detail(c), "does not finish"));
    assert_int_equal(page.n_users, 12345);
    part(&s, c);

    stranger_start(&s); /* the file ends within the page */
    s.status_bytes = 4096;
    c = meet(&s);
    s.status->bytes = sizeof(struct infer_page);
    s.status->page.n_sequences = 3;
    assert_int_equal(infer_read_page(c, &page), 0);
    assert_int_equal(page.n_sequences, 3);
    assert_int_equal(page.users[0].uid, 0);
    part(&s, c);
}

static int count_fds(void)
{
    int n = 0;
    for (int fd = 0; fd < 256; fd++)
        n += fcntl(fd, F_GETFD) >= 0;
    return n;
}

static int remember_fds(void **state)
{
    static int n;
    n = count_fds();
    *state = &n;
    return 0;
}

static int compare_fds(void **state)
{
    return count_fds() == *(int *)*state ? 0 : -1;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_strange_daemons, remember_fds, compare_fds),
        cmocka_unit_test_setup_teardown(test_nonsense_in_the_token_ring, remember_fds, compare_fds),
        cmocka_unit_test_setup_teardown(test_strange_answers, remember_fds, compare_fds),
        cmocka_unit_test_setup_teardown(test_daemons_of_other_ages, remember_fds, compare_fds),
        cmocka_unit_test_setup_teardown(test_strange_status_pages, remember_fds, compare_fds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
