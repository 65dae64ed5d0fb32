/* peer.c: see peer.h.
 *
 * Owns nothing: the socket is the caller's, the session goes to the caller.
 * A hello is a message of a stranger: every field is checked or clamped, the name is shown only
 * after unprintable bytes were replaced. */
#include "proto/peer.h"

#include "inferd/limits.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

int peer_identify(int socket_fd, struct peer *ret)
{
    struct ucred who;
    socklen_t bytes = sizeof who;
    if (getsockopt(socket_fd, SOL_SOCKET, SO_PEERCRED, &who, &bytes) < 0)
        return -errno;
    if (bytes != sizeof who)
        return -EPROTO;
    *ret = (struct peer){.uid = who.uid, .gid = who.gid, .pid = who.pid};
    return 0;
}

static const char *code_sentence(int code)
{
    switch (code) {
#define SENTENCE(name, number, exit_status, text)                                                  \
    case number:                                                                                   \
        return text;
        INFER_ERROR_TABLE (SENTENCE)
#undef SENTENCE
        default:
            return "the daemon refused the connection";
    }
}

/* 0, wanted in [min, max], as a power of two. */
static uint32_t grant_ring(uint32_t wanted, uint32_t preset, uint32_t min, uint32_t max)
{
    if (wanted == 0)
        return preset;
    if (wanted >= max)
        return max;
    uint32_t granted = min;
    while (granted < wanted)
        granted <<= 1;
    return granted;
}

static void take_name(char *to, const char *from)
{
    size_t n = 0;
    for (; n + 1 < INFER_CLIENT_NAME_MAX && from[n] != '\0'; n++)
        to[n] = from[n] >= 0x20 && from[n] < 0x7f ? from[n] : '?';
    to[n] = '\0';
}

/* One message: the welcome, and the descriptors when s is not NULL. */
static int send_welcome(int socket_fd, const struct infer_abi_welcome *welcome,
                        const struct session *s)
{
    union {
        char bytes[CMSG_SPACE(sizeof(int) * INFER_ABI_FDS)];
        struct cmsghdr align;
    } control;
    struct iovec part = {(void *)welcome, sizeof *welcome};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (s != NULL) {
        struct session_fds fds = session_descriptors(s);
        memset(&control, 0, sizeof control);
        message.msg_control = control.bytes;
        message.msg_controllen = sizeof control.bytes;
        struct cmsghdr *c = CMSG_FIRSTHDR(&message);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof fds.fd);
        memcpy(CMSG_DATA(c), fds.fd, sizeof fds.fd);
    }
    ssize_t n;
    do
        n = sendmsg(socket_fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : 0;
}

static struct infer_abi_welcome new_welcome(uint32_t version, uint32_t session_id)
{
    struct infer_abi_welcome welcome;
    memset(&welcome, 0, sizeof welcome);
    welcome.magic = INFER_ABI_MAGIC;
    welcome.bytes = sizeof welcome;
    welcome.version = version;
    welcome.session = session_id;
    snprintf(welcome.daemon, sizeof welcome.daemon, "%s", INFERD_VERSION);
    return welcome;
}

static int send_refusal(int socket_fd, int code, const char *detail)
{
    struct infer_abi_welcome welcome = new_welcome(INFER_ABI_VERSION, 0);
    welcome.error = code;
    snprintf(welcome.detail, sizeof welcome.detail, "%s", detail);
    (void)send_welcome(socket_fd, &welcome, NULL); /* the connection is closed anyway */
    return -code;
}

/* The version both speak, or 0. */
static uint32_t common_version(const struct infer_abi_hello *hello)
{
    uint32_t low =
        hello->version_min > INFER_ABI_VERSION_MIN ? hello->version_min : INFER_ABI_VERSION_MIN;
    uint32_t high = hello->version_max < INFER_ABI_VERSION ? hello->version_max : INFER_ABI_VERSION;
    return low <= high && hello->version_min <= hello->version_max ? high : 0;
}

static void grant_rings(struct infer_abi_welcome *welcome, uint32_t request, uint32_t token)
{
    welcome->request_ring_bytes = grant_ring(request, INFER_REQUEST_RING_DEFAULT,
                                             INFER_REQUEST_RING_MIN, INFER_REQUEST_RING_MAX);
    welcome->token_ring_bytes =
        grant_ring(token, INFER_TOKEN_RING_DEFAULT, INFER_TOKEN_RING_MIN, INFER_TOKEN_RING_MAX);
}

/* The session is the caller's when its welcome was sent, freed otherwise. */
static int welcome_session(int socket_fd, const struct infer_abi_welcome *welcome,
                           struct session *s, struct session **ret)
{
    int r = send_welcome(socket_fd, welcome, s);
    if (r < 0) {
        session_free(s);
        return r;
    }
    *ret = s;
    return 0;
}

int peer_handshake(int socket_fd, const struct peer *peer, const void *hello_message, size_t bytes,
                   uint32_t session_id, int refuse, int status_fd, struct session **ret)
{
    struct infer_abi_hello hello;
    char text[INFER_DETAIL_MAX];

    if (bytes < sizeof hello)
        return -INFER_E_PROTOCOL;
    memcpy(&hello, hello_message, sizeof hello);
    if (hello.magic != INFER_ABI_MAGIC)
        return -INFER_E_PROTOCOL;
    if (hello.bytes < INFER_ABI_HELLO_MIN) {
        snprintf(text, sizeof text, "the hello announces %u bytes; it must be at least %u",
                 hello.bytes, INFER_ABI_HELLO_MIN);
        return send_refusal(socket_fd, INFER_E_PROTOCOL, text);
    }
    uint32_t version = common_version(&hello);
    if (version == 0) {
        snprintf(text, sizeof text,
                 "the client speaks protocol versions %u to %u, the daemon %u to %u; update the %s",
                 hello.version_min, hello.version_max, INFER_ABI_VERSION_MIN, INFER_ABI_VERSION,
                 hello.version_min > INFER_ABI_VERSION ? "daemon" : "client library");
        return send_refusal(socket_fd, INFER_E_VERSION, text);
    }
    if (refuse != 0) {
        int code = refuse < 0 ? -refuse : refuse;
        return send_refusal(socket_fd, code, code_sentence(code));
    }

    struct peer named = *peer;
    take_name(named.client, hello.client);
    named.kept = peer->kept && (hello.flags & INFER_ABI_TAKES_WELCOMES) != 0;
    struct infer_abi_welcome welcome = new_welcome(version, session_id);
    grant_rings(&welcome, hello.request_ring_bytes, hello.token_ring_bytes);
    struct session *s;
    int r =
        session_new(&named, welcome.request_ring_bytes, welcome.token_ring_bytes, status_fd, &s);
    if (r < 0) {
        int code = r == -EMFILE || r == -ENFILE ? INFER_E_SESSIONS_FULL : INFER_E_OUT_OF_MEMORY;
        snprintf(text, sizeof text, "the daemon could not make the rings: %s", strerror(-r));
        return send_refusal(socket_fd, code, text);
    }
    welcome.features = named.kept ? INFER_ABI_KEEPS_SOCKET : 0;
    return welcome_session(socket_fd, &welcome, s, ret);
}

/* ---- the second welcome ---------------------------------------------------------------------- */

/* Both daemons and the client speak the one version there is. When there are more, the version is
 * a part of struct peer_memory. */
_Static_assert(INFER_ABI_VERSION_MIN == INFER_ABI_VERSION, "the version is remembered");

int peer_welcome_again(int socket_fd, const struct peer *peer, const struct peer_memory *memory,
                       uint32_t session_id, int status_fd, struct session **ret)
{
    struct peer named = *peer;
    struct session *s;
    take_name(named.client, memory->client);
    named.kept = true;
    struct infer_abi_welcome welcome = new_welcome(INFER_ABI_VERSION, session_id);
    grant_rings(&welcome, memory->request_ring_bytes, memory->token_ring_bytes);
    welcome.features = INFER_ABI_KEEPS_SOCKET;
    int r =
        session_new(&named, welcome.request_ring_bytes, welcome.token_ring_bytes, status_fd, &s);
    return r < 0 ? r : welcome_session(socket_fd, &welcome, s, ret);
}

static unsigned log2_of(uint32_t n)
{
    return n == 0 ? 0 : 31u - (unsigned)__builtin_clz(n);
}

void peer_memory_print(const struct session *s, char ret[PEER_MEMORY_TEXT])
{
    const struct peer *peer = session_peer(s);
    uint32_t request, token;
    session_ring_sizes(s, &request, &token);
    size_t n = (size_t)snprintf(ret, PEER_MEMORY_TEXT, "%02u-%02u-", log2_of(request) % 32,
                                log2_of(token) % 32);
    for (const char *c = peer->client; *c != '\0'; c++)
        n += (size_t)snprintf(ret + n, PEER_MEMORY_TEXT - n, "%02x", (unsigned char)*c);
}

/* n digits of the base, or -1. */
static int parse_digits(const char *text, size_t n, unsigned base)
{
    static const char digits[] = "0123456789abcdef";
    int value = 0;
    for (size_t i = 0; i < n; i++) {
        const char *at = text[i] != '\0' ? strchr(digits, text[i]) : NULL;
        if (at == NULL || at - digits >= (int)base)
            return -1;
        value = value * (int)base + (int)(at - digits);
    }
    return value;
}

bool peer_memory_parse(const char *text, struct peer_memory *ret)
{
    struct peer_memory memory = {0};
    size_t bytes = strnlen(text, PEER_MEMORY_TEXT), n = 0;
    if (bytes < 6 || bytes >= PEER_MEMORY_TEXT || bytes % 2 != 0 || text[2] != '-' ||
        text[5] != '-')
        return false;
    int request = parse_digits(text, 2, 10), token = parse_digits(text + 3, 2, 10);
    if (request < 0 || request > 31 || token < 0 || token > 31)
        return false;
    for (text += 6; *text != '\0'; text += 2, n++) {
        int byte = parse_digits(text, 2, 16);
        if (byte <= 0 || n + 1 >= sizeof memory.client)
            return false;
        memory.client[n] = (char)byte;
    }
    memory.request_ring_bytes = 1u << request;
    memory.token_ring_bytes = 1u << token;
    *ret = memory;
    return true;
}
