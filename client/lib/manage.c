/* manage.c: load, unload, reload: what a manager says to the daemon, over a socket of its own.
 *
 * A call is a connection: the request, with the open files of LOAD; events until DONE. Owns nothing
 * beyond a call. What the daemon sends is checked for form, since a wrong answer must not crash the
 * program. Threads: any; the detail is the thread's. */
#include "conn.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

/* How often the caller's progress() is asked whether to go on. */
#define SLICE_MS 200
/* "-00001-of-00003.gguf" */
#define SUFFIX_BYTES 20

static int fail(int code, const char *what, const char *why)
{
    snprintf(conn_thread_detail(), INFER_DETAIL_MAX, "%s: %s", what, why);
    return -code;
}

/* ---- the socket ------------------------------------------------------------------------------ */

static int open_socket(const char *socket, int *ret)
{
    static const char end[] = ".sock";
    char *use = link_choose_socket(socket);
    size_t n = use != NULL ? strlen(use) : 0, stem = n;
    char *path = use != NULL ? malloc(n + sizeof "-manage") : NULL;
    int r = -INFER_E_OUT_OF_MEMORY;
    if (path != NULL) {
        if (n >= sizeof end && strcmp(use + n - strlen(end), end) == 0)
            stem -= strlen(end);
        if (strcmp(use, INFER_SYSTEM_SOCKET) == 0)
            strcpy(path, INFER_SYSTEM_MANAGE_SOCKET); /* one byte shorter */
        else
            sprintf(path, "%.*s-manage%s", (int)stem, use, use + stem);
        r = link_connect(path, ret, conn_thread_detail());
    }
    free(path);
    free(use);
    return r;
}

static int send_request(int fd, const struct infer_manage_request *request, const int *files)
{
    union {
        char bytes[CMSG_SPACE(sizeof(int) * INFER_MANAGE_FILES_MAX)];
        struct cmsghdr align;
    } control;
    struct iovec part = {(void *)(uintptr_t)request, sizeof *request};
    struct msghdr message;
    ssize_t n;
    memset(&message, 0, sizeof message);
    memset(&control, 0, sizeof control);
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    if (request->n_files > 0) {
        size_t bytes = request->n_files * sizeof *files;
        message.msg_control = control.bytes;
        message.msg_controllen = CMSG_SPACE(bytes);
        struct cmsghdr *c = CMSG_FIRSTHDR(&message);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(bytes);
        memcpy(CMSG_DATA(c), files, bytes);
    }
    do
        n = sendmsg(fd, &message, MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    if (n == (ssize_t)sizeof *request)
        return 0;
    return fail(INFER_E_DAEMON_LOST, "the request cannot be sent", strerror(errno));
}

/* 1: *ret is an event; 0: nothing within a slice. */
static int receive_event_of(int fd, struct infer_manage_event *ret)
{
    struct pollfd p = {fd, POLLIN, 0};
    int ready = poll(&p, 1, SLICE_MS);
    if (ready <= 0)
        return 0; /* or a signal */
    memset(ret, 0, sizeof *ret);
    ssize_t n = recv(fd, ret, sizeof *ret, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return 0;
    if (n <= 0)
        return fail(INFER_E_DAEMON_LOST, "no answer",
                    n == 0 ? "the daemon hung up" : strerror(errno));
    if (n < (ssize_t)INFER_MANAGE_EVENT_MIN || ret->magic != INFER_MANAGE_MAGIC)
        return fail(INFER_E_PROTOCOL, "no answer", "whatever listens there is not inferd");
    ret->detail[sizeof ret->detail - 1] = '\0';
    return 1;
}

/* Until DONE, whose error is returned. */
static int wait_done(int fd, const struct infer_load *load, struct infer_manage_event *ret)
{
    uint64_t done = 0, total = 0;
    for (;;) {
        int r = receive_event_of(fd, ret);
        if (r < 0)
            return r;
        if (r == 1 && ret->kind == INFER_MANAGE_DONE) {
            memcpy(conn_thread_detail(), ret->detail, INFER_DETAIL_MAX);
            return ret->error > 0 ? -ret->error : ret->error < 0 ? -INFER_E_PROTOCOL : 0;
        }
        if (r == 1) {
            done = ret->done_bytes;
            total = ret->total_bytes;
        }
        if (load != NULL && load->progress != NULL &&
            load->progress(load->progress_ctx, done, total) != 0)
            return fail(INFER_E_CANCELLED, "loading", "it was stopped"); /* hanging up does it */
    }
}

static int ask(const char *socket, struct infer_manage_request *request, const int *files,
               const struct infer_load *load, struct infer_manage_event *ret)
{
    int fd;
    int r = open_socket(socket, &fd);
    if (r < 0)
        return r;
    request->magic = INFER_MANAGE_MAGIC;
    request->bytes = sizeof *request;
    r = send_request(fd, request, files);
    if (r == 0)
        r = wait_done(fd, load, ret);
    close(fd);
    return r;
}

/* ---- the files ------------------------------------------------------------------------------- */

struct parts {
    int fds[INFER_MANAGE_FILES_MAX];
    unsigned n;
};

static void close_parts(struct parts *parts)
{
    for (unsigned i = 0; i < parts->n; i++)
        close(parts->fds[i]);
}

static int open_part(struct parts *parts, const char *path, int code)
{
    /* Not blocked by a FIFO that has that name. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (fd < 0)
        return fail(code, path, strerror(errno));
    (void)fcntl(fd, F_SETFL, 0);
    parts->fds[parts->n++] = fd;
    return 0;
}

/* How many parts the name tells of: 1 for a whole file; of a part that is not the first, 0. */
static unsigned count_parts(const char *path)
{
    size_t n = strlen(path);
    unsigned no, count;
    int end = 0;
    if (n <= SUFFIX_BYTES || strcasecmp(path + n - 5, ".gguf") != 0 ||
        sscanf(path + n - SUFFIX_BYTES, "-%5u-of-%5u.%n", &no, &count, &end) != 2 ||
        end != SUFFIX_BYTES - 4)
        return 1;
    return no == 1 && count > 0 ? count : 0;
}

static int open_parts(const char *path, struct parts *ret)
{
    unsigned count = count_parts(path);
    size_t n = strlen(path);
    ret->n = 0;
    if (count == 0)
        return fail(INFER_E_MODEL_PARTS, path, "give the first part of the model");
    if (count > INFER_MANAGE_FILES_MAX)
        return fail(INFER_E_MODEL_PARTS, path, "more parts than can be handed over");
    int r = open_part(ret, path, INFER_E_MODEL_UNREADABLE);
    char *other = count > 1 && r == 0 ? malloc(n + 1) : NULL;
    for (unsigned i = 2; r == 0 && i <= count; i++) {
        if (other == NULL)
            r = -INFER_E_OUT_OF_MEMORY;
        else {
            snprintf(other, n + 1, "%.*s-%05u-of-%05u.gguf", (int)(n - SUFFIX_BYTES), path, i,
                     count);
            r = open_part(ret, other, INFER_E_MODEL_PARTS);
        }
    }
    free(other);
    if (r < 0)
        close_parts(ret);
    return r;
}

/* The file's name without folder, ".gguf" and part number; false: it is too long. */
static bool name_of(const char *path, char *ret, size_t bytes)
{
    const char *slash = strrchr(path, '/');
    const char *name = slash != NULL ? slash + 1 : path;
    size_t n = strlen(name);
    if (n > SUFFIX_BYTES && count_parts(name) != 1)
        n -= SUFFIX_BYTES;
    else if (n > 5 && strcasecmp(name + n - 5, ".gguf") == 0)
        n -= 5;
    if (n >= bytes)
        return false;
    memcpy(ret, name, n);
    ret[n] = '\0';
    return true;
}

/* ---- the calls ------------------------------------------------------------------------------- */

API void infer_load_default(struct infer_load *load)
{
    memset(load, 0, sizeof *load);
    load->bytes = sizeof *load;
    load->keep_alive_s = UINT32_MAX;
}

/* The numbers of enum infer_type. */
static int type_of(const char *name, uint32_t *ret)
{
    static const struct {
        const char *name;
        uint32_t type;
    } types[] = {{"f16", 1}, {"q8_0", 8}, {"q4_0", 2}};
    *ret = 0;
    if (name == NULL)
        return 0;
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++)
        if (strcmp(types[i].name, name) == 0)
            *ret = types[i].type;
    return *ret != 0 ? 0 : fail(INFER_E_INVALID, name, "no type of f16, q8_0, q4_0");
}

static int device_of(const char *device, struct infer_manage_request *r)
{
    if (device == NULL)
        return 0;
    if (device[0] == '\0' || strlen(device) >= sizeof r->device)
        return fail(INFER_E_INVALID, device,
                    "no device: it is auto, cpu, cuda or one such as cuda:0");
    r->flags |= INFER_MANAGE_DEVICE;
    snprintf(r->device, sizeof r->device, "%s", device);
    return 0;
}

static int fill_request(const struct infer_load *load, struct infer_manage_request *r)
{
    memset(r, 0, sizeof *r);
    r->op = INFER_MANAGE_LOAD;
    r->flags = (load->pin ? INFER_MANAGE_PIN : 0) | (load->dry_run ? INFER_MANAGE_DRY_RUN : 0);
    r->n_context = load->n_context;
    r->parallel = load->parallel;
    r->state_bytes = load->state_bytes;
    r->keep_alive_s = load->keep_alive_s;
    if (load->name != NULL && strlen(load->name) >= sizeof r->name)
        return fail(INFER_E_INVALID, load->name, "a model's name has at most 63 characters");
    if (load->name != NULL)
        snprintf(r->name, sizeof r->name, "%s", load->name);
    else if (!name_of(load->path, r->name, sizeof r->name))
        return fail(INFER_E_INVALID, load->path, "too long to be a model's name; give another");
    if (load->path != NULL && !name_of(load->path, r->file, sizeof r->file))
        snprintf(r->file, sizeof r->file, "%s", r->name);
    int e = device_of(load->device, r);
    if (e == 0)
        e = type_of(load->cache_type_k, &r->k_type);
    return e < 0 ? e : type_of(load->cache_type_v, &r->v_type);
}

API int infer_load(const struct infer_load *load, struct infer_loaded *ret)
{
    struct infer_manage_request request;
    struct infer_manage_event event;
    struct parts parts = {{0}, 0};
    struct infer_load whole;
    conn_thread_detail()[0] = '\0';
    if (load == NULL || load->bytes < LOAD_OLDER_BYTES ||
        (load->path == NULL && load->name == NULL) || (ret != NULL && ret->bytes < sizeof *ret))
        return -INFER_E_INVALID;
    if (load->bytes < sizeof whole) { /* an older program's */
        memset(&whole, 0, sizeof whole);
        memcpy(&whole, load, LOAD_OLDER_BYTES);
        load = &whole;
    }
    int r = fill_request(load, &request);
    if (r == 0 && load->path != NULL)
        r = open_parts(load->path, &parts);
    if (r < 0)
        return r;
    memset(&event, 0, sizeof event);
    request.n_files = parts.n;
    r = ask(load->socket, &request, parts.fds, load, &event);
    close_parts(&parts);
    if (r == -INFER_E_UNSUPPORTED && load->device != NULL)
        r = fail(INFER_E_UNSUPPORTED, "device",
                 "the daemon is older than that; leave the device out, or update it");
    if (ret != NULL && event.kind == INFER_MANAGE_DONE) {
        ret->n_context = event.n_context;
        ret->weights_bytes = event.weights_bytes;
        ret->state_bytes = event.state_bytes;
        ret->scratch_bytes = event.scratch_bytes;
        ret->vocabulary_bytes = event.vocabulary_bytes;
        ret->available_bytes = event.available_bytes;
        ret->n_pages = event.n_pages;
        ret->page_tokens = event.page_tokens;
    }
    return r;
}

API int infer_unload(const char *socket, const char *name, int force)
{
    struct infer_manage_request request;
    struct infer_manage_event event;
    conn_thread_detail()[0] = '\0';
    if (name == NULL || strlen(name) >= sizeof request.name)
        return -INFER_E_INVALID;
    memset(&request, 0, sizeof request);
    request.op = INFER_MANAGE_UNLOAD;
    request.flags = force ? INFER_MANAGE_FORCE : 0;
    snprintf(request.name, sizeof request.name, "%s", name);
    return ask(socket, &request, NULL, NULL, &event);
}

API int infer_reload(const char *socket)
{
    struct infer_manage_request request;
    struct infer_manage_event event;
    conn_thread_detail()[0] = '\0';
    memset(&request, 0, sizeof request);
    request.op = INFER_MANAGE_RELOAD;
    return ask(socket, &request, NULL, NULL, &event);
}
