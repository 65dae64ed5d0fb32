/* link.c: the socket, the handshake and the mappings of one connection to a daemon, and the second
 * welcome of the daemon that came after it (abi.h).
 *
 * Owns what struct link holds. The daemon is trusted more than a client is, but what it sends is
 * still checked where a mistake would crash the program that uses this library: the number of
 * descriptors, the sizes of the rings, the sizes and seals of the files (a file that could shrink
 * would end in SIGBUS).
 *
 * Threads: no state of its own. Limits: the handshake takes at most HANDSHAKE_S seconds. */
#include "conn.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

/* A daemon that starts may wait for a device that was lost (10 s unless configured otherwise). */
#define HANDSHAKE_S 30
#define FDS_SEEN    16 /* descriptors that one message could bring; unknown ones are closed */
#define FDS_MIN     4  /* of the first daemons, which had no status page */

char *link_choose_socket(const char *wanted)
{
    if (wanted != NULL)
        return strdup(wanted);
    const char *chosen = secure_getenv("INFERD_SOCKET");
    if (chosen != NULL && chosen[0] != '\0')
        return strdup(chosen);
    const char *folder = secure_getenv("XDG_RUNTIME_DIR");
    if (folder != NULL && folder[0] != '\0') {
        size_t bytes = strlen(folder) + sizeof "/inferd.sock";
        char *path = malloc(bytes);
        if (path == NULL)
            return NULL;
        snprintf(path, bytes, "%s/inferd.sock", folder);
        if (access(path, F_OK) == 0)
            return path;
        free(path);
    }
    return strdup(INFER_SYSTEM_SOCKET);
}

static int refuse(char *detail, int code, const char *path, const char *what)
{
    snprintf(detail, INFER_DETAIL_MAX, "%s: %s", path, what);
    return -code;
}

static int code_of_connect(int error)
{
    switch (error) {
    case EACCES:
    case EPERM:
        return INFER_E_DENIED;
    case EPROTOTYPE:
    case ENOTSOCK:
    case ELOOP:
    case ENAMETOOLONG:
        return INFER_E_SOCKET_PATH;
    default:
        return INFER_E_DAEMON_ABSENT;
    }
}

int link_connect(const char *path, int *ret, char *detail)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct timeval patience = {.tv_sec = HANDSHAKE_S};
    size_t bytes = strlen(path);
    if (bytes == 0 || bytes >= sizeof address.sun_path) {
        snprintf(detail, INFER_DETAIL_MAX, "the path takes %zu bytes; it may take 1 to %zu", bytes,
                 sizeof address.sun_path - 1);
        return -INFER_E_SOCKET_PATH;
    }
    memcpy(address.sun_path, path, bytes + 1);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return refuse(detail, INFER_E_DAEMON_ABSENT, path, strerrordesc_np(errno));
    (void)setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    (void)setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    int r;
    do
        r = connect(fd, (struct sockaddr *)&address, sizeof address);
    while (r < 0 && errno == EINTR);
    if (r < 0) {
        int error = errno;
        close(fd);
        return refuse(detail, code_of_connect(error), path, strerrordesc_np(error));
    }
    *ret = fd;
    return 0;
}

static int send_hello(int fd, const char *client_name, uint32_t request_ring_bytes,
                      uint32_t token_ring_bytes)
{
    struct infer_abi_hello hello;
    memset(&hello, 0, sizeof hello);
    hello.magic = INFER_ABI_MAGIC;
    hello.bytes = sizeof hello;
    hello.version_min = INFER_ABI_VERSION_MIN;
    hello.version_max = INFER_ABI_VERSION;
    hello.request_ring_bytes = request_ring_bytes;
    hello.token_ring_bytes = token_ring_bytes;
    hello.flags = INFER_ABI_TAKES_WELCOMES;
    snprintf(hello.client, sizeof hello.client, "%s", client_name);
    ssize_t n;
    do
        n = send(fd, &hello, sizeof hello, MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    return n == (ssize_t)sizeof hello ? 0 : -1;
}

/* The welcome and its descriptors; surplus ones are closed. Number of bytes, or -1. */
static ssize_t receive_welcome(int fd, int flags, struct infer_abi_welcome *ret, int *fds,
                               int *ret_n_fds)
{
    union {
        char bytes[CMSG_SPACE(sizeof(int) * FDS_SEEN)];
        struct cmsghdr align;
    } control;
    struct iovec part = {ret, sizeof *ret};
    struct msghdr message;
    ssize_t n;
    int n_fds = 0, reset = 0; /* an error is told once, then what came before it */
    memset(&message, 0, sizeof message);
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control.bytes;
    message.msg_controllen = sizeof control.bytes;
    do
        n = recvmsg(fd, &message, MSG_CMSG_CLOEXEC | flags);
    while (n < 0 && (errno == EINTR || (errno == ECONNRESET && !reset++)));
    if (n < 0)
        return n;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c != NULL; c = CMSG_NXTHDR(&message, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < count; i++) {
            int got;
            memcpy(&got, CMSG_DATA(c) + i * sizeof got, sizeof got);
            if (n_fds < INFER_ABI_FDS)
                fds[n_fds++] = got;
            else
                close(got);
        }
    }
    *ret_n_fds = n_fds;
    return n;
}

/* At least `bytes` of the file, at most `bytes_max`; the number of bytes mapped, or 0. */
static size_t map_file(int fd, size_t bytes, size_t bytes_max, int protection, void **ret)
{
    struct stat about;
    int seals = fcntl(fd, F_GET_SEALS);
    if (fstat(fd, &about) < 0 || about.st_size < (off_t)bytes || seals < 0 ||
        (seals & F_SEAL_SHRINK) == 0)
        return 0;
    if (about.st_size < (off_t)bytes_max)
        bytes_max = (size_t)about.st_size;
    void *map = mmap(NULL, bytes_max, protection, MAP_SHARED | MAP_POPULATE, fd, 0);
    if (map == MAP_FAILED)
        return 0;
    *ret = map;
    return bytes_max;
}

static bool map_ring(int fd, uint32_t ring_bytes, int protection, void **ret)
{
    size_t bytes = INFER_ABI_DATA_OFFSET + (size_t)ring_bytes;
    return map_file(fd, bytes, bytes, protection, ret) > 0;
}

/* A newer daemon's page is longer, an older one's shorter: what both know is used. */
static bool map_status(struct link *link)
{
    void *map;
    if (link->fd[4] < 0)
        return true;
    link->status_bytes = map_file(link->fd[4], offsetof(struct infer_status_page, page),
                                  sizeof(struct infer_status_page), PROT_READ, &map);
    if (link->status_bytes == 0)
        return false;
    link->status = map;
    return true;
}

static bool ring_size_ok(uint32_t n, uint32_t min, uint32_t max)
{
    return n >= min && n <= max && (n & (n - 1)) == 0;
}

static int map_link(struct link *link, const struct infer_abi_welcome *welcome)
{
    if (!ring_size_ok(welcome->request_ring_bytes, INFER_REQUEST_RING_MIN,
                      INFER_REQUEST_RING_MAX) ||
        !ring_size_ok(welcome->token_ring_bytes, INFER_TOKEN_RING_MIN, INFER_TOKEN_RING_MAX))
        return -1;
    link->request_bytes = welcome->request_ring_bytes;
    link->token_bytes = welcome->token_ring_bytes;
    if (!map_ring(link->fd[0], link->request_bytes, PROT_READ | PROT_WRITE, &link->request_map) ||
        !map_ring(link->fd[1], link->token_bytes, PROT_READ, &link->token_map) || !map_status(link))
        return -1;
    for (int i = 0; i < INFER_ABI_FDS; i++) {
        if (i == 2 || i == 3) { /* doorbell and bell */
            if (fcntl(link->fd[i], F_SETFL, O_NONBLOCK) < 0)
                return -1;
        } else if (link->fd[i] >= 0) {
            close(link->fd[i]);
            link->fd[i] = -1;
        }
    }
    link->client = link->request_map;
    link->request_data = (uint8_t *)link->request_map + INFER_ABI_DATA_OFFSET;
    link->daemon = link->token_map;
    link->token_data = (const uint8_t *)link->token_map + INFER_ABI_DATA_OFFSET;
    return 0;
}

/* The welcome has come, n bytes of it. */
static int take_welcome(struct link *link, struct infer_abi_welcome *welcome, ssize_t n, int n_fds,
                        const char *path, char *detail)
{
    if (n < (ssize_t)INFER_ABI_WELCOME_MIN || welcome->magic != INFER_ABI_MAGIC)
        return refuse(detail, INFER_E_PROTOCOL, path, "whatever listens there is not inferd");
    welcome->detail[sizeof welcome->detail - 1] = '\0';
    welcome->daemon[sizeof welcome->daemon - 1] = '\0';
    if (welcome->error != 0) {
        snprintf(detail, INFER_DETAIL_MAX, "%s", welcome->detail);
        return welcome->error > 0 ? -welcome->error : -INFER_E_PROTOCOL;
    }
    if (welcome->version < INFER_ABI_VERSION_MIN || welcome->version > INFER_ABI_VERSION)
        return refuse(detail, INFER_E_VERSION, path, "the daemon chose a version we do not speak");
    if (n_fds < FDS_MIN || map_link(link, welcome) < 0)
        return refuse(detail, INFER_E_PROTOCOL, path, "the daemon's rings cannot be mapped");
    link->session = welcome->session;
    link->kept = (welcome->features & INFER_ABI_KEEPS_SOCKET) != 0;
    memcpy(link->version, welcome->daemon, sizeof link->version);
    return 0;
}

static struct link empty_link(int socket)
{
    struct link link;
    memset(&link, 0, sizeof link);
    link.socket = socket;
    for (int i = 0; i < INFER_ABI_FDS; i++)
        link.fd[i] = -1;
    return link;
}

int link_open(const char *path, const char *client_name, uint32_t request_ring_bytes,
              uint32_t token_ring_bytes, struct link *ret, char *detail)
{
    struct link link = empty_link(-1);
    struct infer_abi_welcome welcome;
    int n_fds = 0;

    memset(&welcome, 0, sizeof welcome);
    int r = link_connect(path, &link.socket, detail);
    if (r < 0)
        return r;
    /* A daemon that is full refuses before it was asked: its welcome is there although the hello
     * found nobody any more. */
    (void)send_hello(link.socket, client_name, request_ring_bytes, token_ring_bytes);
    ssize_t n = receive_welcome(link.socket, 0, &welcome, link.fd, &n_fds);
    if (n <= 0)
        r = refuse(detail, INFER_E_DAEMON_ABSENT, path,
                   n == 0 ? "the daemon closed the connection" : "the daemon does not answer");
    else
        r = take_welcome(&link, &welcome, n, n_fds, path, detail);
    if (r < 0) {
        link_close(&link, false);
        return r;
    }
    *ret = link;
    return 0;
}

int link_renew(const struct link *old, const char *path, struct link *ret, char *detail)
{
    struct link link = empty_link(old->socket);
    struct infer_abi_welcome welcome;
    int n_fds = 0;

    memset(&welcome, 0, sizeof welcome);
    ssize_t n = receive_welcome(old->socket, MSG_DONTWAIT, &welcome, link.fd, &n_fds);
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
        return 0;
    int r = n <= 0 ? refuse(detail, INFER_E_DAEMON_LOST, path, "the daemon did not come back")
                   : take_welcome(&link, &welcome, n, n_fds, path, detail);
    if (r < 0) {
        link_drop(&link);
        return r;
    }
    *ret = link;
    return 1;
}

void link_drop(struct link *link)
{
    if (link->request_map != NULL)
        munmap(link->request_map, INFER_ABI_DATA_OFFSET + (size_t)link->request_bytes);
    if (link->token_map != NULL)
        munmap(link->token_map, INFER_ABI_DATA_OFFSET + (size_t)link->token_bytes);
    if (link->status != NULL)
        munmap((void *)(uintptr_t)link->status, link->status_bytes);
    for (int i = 0; i < INFER_ABI_FDS; i++)
        if (link->fd[i] >= 0)
            close(link->fd[i]);
    *link = empty_link(link->socket);
}

void link_close(struct link *link, bool parting)
{
    if (parting)
        shutdown(link->socket, SHUT_RDWR);
    link_drop(link);
    close(link->socket);
    memset(link, 0, sizeof *link);
}

/* The daemon alone holds the writing end of the bell, so it hangs up when the daemon dies, also
 * where somebody keeps the daemon's end of the socket. */
bool link_is_dead(const struct link *link)
{
    struct pollfd p[2] = {{.fd = link->socket, .events = POLLIN}, {.fd = link->fd[3]}};
    int r;
    if (infer_ring_load(&link->daemon->closed) != 0)
        return true;
    do
        r = poll(p, 2, 0);
    while (r < 0 && errno == EINTR);
    return r > 0 && (p[0].revents != 0 || (p[1].revents & (POLLHUP | POLLERR)) != 0);
}

void link_await(const struct link *link, int timeout_ms)
{
    struct pollfd p = {.fd = link->socket, .events = POLLIN};
    (void)poll(&p, 1, timeout_ms);
}

void link_ring_doorbell(const struct link *link)
{
    static const uint64_t one = 1;
    (void)!write(link->fd[2], &one, sizeof one); /* full: it is readable already */
}
