/* test_peer.c: the handshake, with clients of other versions and with strangers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "proto/peer.h"
#include "proto/status_page.h"

#include <fcntl.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

struct answer {
    int result; /* of peer_handshake() */
    struct session *session;
    ssize_t bytes; /* of the welcome; -1: none came */
    struct infer_abi_welcome welcome;
    int n_fds;
    ino_t status_inode; /* of the last descriptor */
};

static struct status_page *status; /* as the daemon has it: one for all */

static struct infer_abi_hello plain_hello(void)
{
    struct infer_abi_hello h;
    memset(&h, 0, sizeof h);
    h.magic = INFER_ABI_MAGIC;
    h.bytes = sizeof h;
    h.version_min = INFER_ABI_VERSION_MIN;
    h.version_max = INFER_ABI_VERSION;
    strcpy(h.client, "test");
    return h;
}

static struct answer shake(const void *hello, size_t bytes, int refuse)
{
    struct answer a;
    struct peer peer;
    int pair[2], fds[8];
    char control[CMSG_SPACE(sizeof fds)];
    memset(&a, 0, sizeof a);
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
    assert_int_equal(peer_identify(pair[0], &peer), 0);
    assert_int_equal(peer.uid, getuid());
    assert_int_equal(peer.pid, getpid());
    a.result = peer_handshake(pair[0], &peer, hello, bytes, 5, refuse,
                              refuse != 0 ? -1 : status_page_fd(status), &a.session);
    struct iovec part = {&a.welcome, sizeof a.welcome};
    struct msghdr m = {.msg_iov = &part,
                       .msg_iovlen = 1,
                       .msg_control = control,
                       .msg_controllen = sizeof control};
    a.bytes = recvmsg(pair[1], &m, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    struct cmsghdr *c = a.bytes >= 0 ? CMSG_FIRSTHDR(&m) : NULL;
    if (c != NULL) {
        a.n_fds = (int)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        memcpy(fds, CMSG_DATA(c), (size_t)a.n_fds * sizeof(int));
        struct stat about;
        assert_int_equal(fstat(fds[a.n_fds - 1], &about), 0);
        a.status_inode = about.st_ino;
        for (int i = 0; i < a.n_fds; i++)
            close(fds[i]);
    }
    close(pair[0]);
    close(pair[1]);
    return a;
}

static void test_welcome(void **state)
{
    struct infer_abi_hello h = plain_hello();
    uint32_t request, token;
    memcpy(h.client, "a\nb\x1b\xff", 5);
    h.client[5] = '\0';
    struct answer a = shake(&h, sizeof h, 0);
    assert_int_equal(a.result, 0);
    assert_int_equal(a.bytes, sizeof a.welcome);
    assert_int_equal(a.welcome.magic, INFER_ABI_MAGIC);
    assert_int_equal(a.welcome.error, 0);
    assert_int_equal(a.welcome.version, 1);
    assert_int_equal(a.welcome.session, 5);
    assert_string_equal(a.welcome.daemon, INFERD_VERSION);
    assert_int_equal(a.n_fds, INFER_ABI_FDS);
    session_ring_sizes(a.session, &request, &token);
    assert_int_equal(request, INFER_REQUEST_RING_DEFAULT);
    assert_int_equal(token, INFER_TOKEN_RING_DEFAULT);
    assert_string_equal(session_peer(a.session)->client, "a?b??");
    session_free(a.session);
}

/* All sessions get the one status file, and none closes it. */
static void test_status_file_is_shared(void **state)
{
    struct infer_abi_hello h = plain_hello();
    struct stat about;
    for (int i = 0; i < 3; i++) {
        struct answer a = shake(&h, sizeof h, 0);
        assert_int_equal(a.result, 0);
        assert_int_equal(session_descriptors(a.session).fd[4], status_page_fd(status));
        session_free(a.session);
        assert_int_equal(fstat(status_page_fd(status), &about), 0);
        assert_int_equal(about.st_ino, a.status_inode);
    }
}

static void test_name_without_end(void **state)
{
    struct infer_abi_hello h = plain_hello();
    memset(h.client, 'x', sizeof h.client);
    struct answer a = shake(&h, sizeof h, 0);
    assert_int_equal(a.result, 0);
    assert_int_equal(strlen(session_peer(a.session)->client), INFER_CLIENT_NAME_MAX - 1);
    session_free(a.session);
}

static void test_ring_sizes_are_granted(void **state)
{
    static const struct {
        uint32_t request, token, got_request, got_token;
    } rows[] = {{1, 1, INFER_REQUEST_RING_MIN, INFER_TOKEN_RING_MIN},
                {4097, 16385, 8192, 32768},
                {UINT32_MAX, UINT32_MAX, INFER_REQUEST_RING_MAX, INFER_TOKEN_RING_MAX},
                {1u << 31, 65536, INFER_REQUEST_RING_MAX, 65536}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct infer_abi_hello h = plain_hello();
        h.request_ring_bytes = rows[i].request;
        h.token_ring_bytes = rows[i].token;
        struct answer a = shake(&h, sizeof h, 0);
        assert_int_equal(a.result, 0);
        assert_int_equal(a.welcome.request_ring_bytes, rows[i].got_request);
        assert_int_equal(a.welcome.token_ring_bytes, rows[i].got_token);
        session_free(a.session);
    }
}

static void test_versions(void **state)
{
    static const struct {
        uint32_t min, max;
        int code;
    } rows[] = {{1, 1, 0},
                {0, 9, 0},
                {2, 3, INFER_E_VERSION},
                {0, 0, INFER_E_VERSION},
                {3, 1, INFER_E_VERSION},
                {UINT32_MAX, UINT32_MAX, INFER_E_VERSION}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct infer_abi_hello h = plain_hello();
        h.version_min = rows[i].min;
        h.version_max = rows[i].max;
        struct answer a = shake(&h, sizeof h, 0);
        assert_int_equal(a.result, -rows[i].code);
        assert_int_equal(a.welcome.error, rows[i].code);
        if (rows[i].code != 0) {
            assert_int_equal(a.n_fds, 0);
            assert_true(a.welcome.detail[0] != '\0');
        } else {
            session_free(a.session);
        }
    }
}

static void test_newer_hello(void **state)
{
    struct {
        struct infer_abi_hello h;
        char more[32];
    } newer = {.h = plain_hello()};
    newer.h.bytes = sizeof newer;
    struct answer a = shake(&newer, sizeof newer, 0);
    assert_int_equal(a.result, 0);
    session_free(a.session);
}

static void test_strangers(void **state)
{
    struct infer_abi_hello h = plain_hello();
    for (size_t n = 0; n < sizeof h; n++) {
        struct answer a = shake(&h, n, 0);
        assert_int_equal(a.result, -INFER_E_PROTOCOL);
        assert_int_equal(a.bytes, -1);
    }
    h.magic++;
    assert_int_equal(shake(&h, sizeof h, 0).bytes, -1);
    h = plain_hello();
    h.bytes = 63;
    struct answer a = shake(&h, sizeof h, 0);
    assert_int_equal(a.result, -INFER_E_PROTOCOL);
    assert_int_equal(a.welcome.error, INFER_E_PROTOCOL);
}

static void test_refusals(void **state)
{
    struct infer_abi_hello h = plain_hello();
    struct answer a = shake(&h, sizeof h, INFER_E_SESSIONS_FULL);
    assert_int_equal(a.result, -INFER_E_SESSIONS_FULL);
    assert_int_equal(a.welcome.error, INFER_E_SESSIONS_FULL);
    assert_int_equal(a.n_fds, 0);
    assert_non_null(strstr(a.welcome.detail, "as many connections as it may"));
}

static int count_fds(void)
{
    int n = 0;
    for (int fd = 0; fd < 256; fd++)
        n += fcntl(fd, F_GETFD) >= 0;
    return n;
}

/* Whatever descriptor is the one too many: a clean refusal, and nothing is left open. */
static void test_no_descriptors(void **state)
{
    struct infer_abi_hello h = plain_hello();
    struct rlimit old, low;
    int before = count_fds();
    getrlimit(RLIMIT_NOFILE, &old);
    for (int spare = 2; spare < 7; spare++) {
        int lowest = dup(0);
        close(lowest);
        low = old;
        low.rlim_cur = (rlim_t)(lowest + spare);
        setrlimit(RLIMIT_NOFILE, &low);
        struct answer a = shake(&h, sizeof h, 0);
        setrlimit(RLIMIT_NOFILE, &old);
        assert_int_equal(a.result, -INFER_E_SESSIONS_FULL);
        assert_int_equal(a.welcome.error, INFER_E_SESSIONS_FULL);
        assert_int_equal(count_fds(), before);
    }
}

static int make_status(void **state)
{
    return status_page_new(&status);
}

static int free_status(void **state)
{
    status_page_free(status);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_welcome),          cmocka_unit_test(test_status_file_is_shared),
        cmocka_unit_test(test_name_without_end), cmocka_unit_test(test_ring_sizes_are_granted),
        cmocka_unit_test(test_versions),         cmocka_unit_test(test_newer_hello),
        cmocka_unit_test(test_strangers),        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_no_descriptors),
    };
    return cmocka_run_group_tests(tests, make_status, free_status);
}
