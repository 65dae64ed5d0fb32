/* test_lifecycle.c: models that come and go: on demand, by descriptor, by keep-alive, for room, and
 * what managers and the configuration do while others are served. */
#include "inferd/abi.h"
#include "integration/life.h"
#include "support/gguf_write.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

static uint64_t resident_bytes(void)
{
    char path[64];
    unsigned long long pages = 0, shared = 0;
    snprintf(path, sizeof path, "/proc/%d/statm", (int)d.pid);
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    assert_int_equal(fscanf(f, "%*s %llu %llu", &pages, &shared), 2);
    fclose(f);
    return pages * 4096;
}

/* ---- managers -------------------------------------------------------------------------------- */

static int manage_socket(void)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    snprintf(a.sun_path, sizeof a.sun_path, "%s/inferd-manage.sock", d.folder);
    assert_true(fd >= 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof a), 0);
    return fd;
}

static void manage_send(int fd, const void *request, size_t bytes, const int *files, size_t n)
{
    union {
        char bytes[CMSG_SPACE(sizeof(int) * 253)];
        struct cmsghdr align;
    } control = {0};
    struct iovec part = {(void *)(uintptr_t)request, bytes};
    struct msghdr m = {.msg_iov = &part, .msg_iovlen = 1};
    if (n > 0) {
        m.msg_control = control.bytes;
        m.msg_controllen = CMSG_SPACE(n * sizeof(int));
        struct cmsghdr *c = CMSG_FIRSTHDR(&m);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(n * sizeof(int));
        memcpy(CMSG_DATA(c), files, n * sizeof(int));
    }
    assert_int_equal(sendmsg(fd, &m, MSG_NOSIGNAL), bytes);
}

/* The next event; false: none within the time, or (*ret_gone) the daemon hung up. */
static bool manage_next(int fd, int timeout_ms, struct infer_manage_event *ret, bool *ret_gone)
{
    struct pollfd p = {fd, POLLIN, 0};
    *ret_gone = false;
    if (poll(&p, 1, timeout_ms * program_slowness()) <= 0)
        return false;
    ssize_t n = recv(fd, ret, sizeof *ret, 0);
    *ret_gone = n <= 0;
    if (n > 0)
        assert_int_equal(n, sizeof *ret);
    return n > 0;
}

static int manage_done(int fd)
{
    struct infer_manage_event e;
    bool gone;
    do
        if (!manage_next(fd, 1000 * WAIT_S, &e, &gone))
            fail_msg("%s", gone ? "the daemon hung up" : "the daemon is silent");
    while (e.kind != INFER_MANAGE_DONE);
    assert_true(memchr(e.detail, '\0', sizeof e.detail) != NULL);
    return e.error;
}

static struct infer_manage_request request_of(uint32_t op, const char *name, uint32_t n_files)
{
    struct infer_manage_request r = {.magic = INFER_MANAGE_MAGIC,
                                     .bytes = sizeof r,
                                     .op = op,
                                     .keep_alive_s = INFER_MANAGE_DEFAULT,
                                     .n_files = n_files};
    snprintf(r.name, sizeof r.name, "%s", name);
    return r;
}

static int load_file(int fd, const char *name, uint32_t flags)
{
    struct infer_manage_request r = request_of(INFER_MANAGE_LOAD, name, 1);
    int s = manage_socket();
    r.flags = flags;
    manage_send(s, &r, sizeof r, &fd, 1);
    int error = manage_done(s);
    close(s);
    return error;
}

static int open_model(void)
{
    int fd = open(DAEMON_MODEL, O_RDONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    return fd;
}

/* ---- on demand, keep-alive --------------------------------------------------------------------
 */

static void the_first_request_loads_a_model(void **state)
{
    (void)state;
    start("null", PAGES, "", "[model a]\n@[model b]\n@[model c]\n@preload = yes\n");
    struct infer_conn *c = open_conn();
    assert_int_equal(state_of(c, "a"), INFER_MODEL_LISTED);
    assert_int_equal(state_of(c, "c"), INFER_MODEL_READY);
    assert_int_equal(find(c, "a").n_context, 0);
    /* Three at once, of which two wait for the loading thread; and all that a model can do. */
    uint32_t ids[] = {submit(c, "a", 30), submit(c, "b", 30), submit(c, "c", 30)};
    for (size_t i = 0; i < 3; i++)
        assert_int_equal(take(c, ids[i], UINT32_MAX), 0);
    assert_int_equal(state_of(c, "a"), INFER_MODEL_READY);
    assert_int_equal(state_of(c, "b"), INFER_MODEL_READY);
    assert_true(find(c, "b").n_context > 0 && find(c, "b").vocabulary_bytes > 0);
    assert_int_equal(ask(c, NULL), 0);
    assert_int_equal(ask(c, "d"), INFER_E_UNKNOWN_MODEL);
    infer_close(c);
}

static void tokens_of_a_listed_model(void **state)
{
    (void)state;
    int32_t *ids;
    size_t n;
    start("null", PAGES, "", "[model a]\n@");
    struct infer_conn *c = open_conn();
    assert_int_equal(infer_tokenize(c, "a", "The kernel", 10, 0, 0, &ids, &n), 0);
    assert_true(n > 0);
    infer_free(ids);
    infer_close(c);
}

static void an_unused_model_leaves(void **state)
{
    (void)state;
    start("cpu", "", "keep-alive = 1s\n", "[model a]\n@[model b]\n@keep-alive = 0\n");
    struct infer_conn *c = open_conn();
    uint64_t before = resident_bytes();
    assert_int_equal(ask(c, "a"), 0);
    assert_true(resident_bytes() > before + find(c, "a").weights_bytes * 9 / 10);
    wait_state(c, "a", INFER_MODEL_LISTED);
    if (program_slowness() == 1)
        assert_true(resident_bytes() < 20u << 20);
    assert_int_equal(ask(c, "b"), 0);
    assert_int_equal(ask(c, "a"), 0); /* comes again */
    wait_state(c, "a", INFER_MODEL_LISTED);
    assert_int_equal(state_of(c, "b"), INFER_MODEL_READY);
    infer_close(c);
}

/* Its timer runs from the end of its last request, however long that takes. */
static void a_model_in_use_stays(void **state)
{
    (void)state;
    start("null", SLOW, "keep-alive = 1s\n", "[model a]\n@");
    struct infer_conn *c = open_conn();
    uint32_t id = submit(c, "a", 150); /* 3 s */
    assert_int_equal(take(c, id, UINT32_MAX), 0);
    assert_int_equal(state_of(c, "a"), INFER_MODEL_READY);
    wait_state(c, "a", INFER_MODEL_LISTED);
    infer_close(c);
}

static void a_conversation_outlives_its_model(void **state)
{
    (void)state;
    struct infer_request r;
    struct infer_event e;
    uint32_t id;
    uint64_t conversation = 0;
    start("null", PAGES, "keep-alive = 1s\n", "[model a]\n@");
    struct infer_conn *c = open_conn();
    for (int turn = 0; turn < 2; turn++) {
        infer_request_default(&r);
        r.text = "more";
        r.keep = 1;
        r.conversation = conversation;
        r.sampling.max_tokens = 4;
        assert_int_equal(infer_submit(c, &r, &id), 0);
        do {
            assert_int_equal(infer_next(c, id, 1000 * WAIT_S * program_slowness(), &e), 1);
            if (e.kind == INFER_EVENT_QUEUED)
                conversation = e.id;
        } while (e.kind != INFER_EVENT_DONE);
        assert_int_equal(e.error, 0);
        wait_state(c, "a", INFER_MODEL_LISTED);
    }
    infer_close(c);
}

static void a_file_that_is_wrong_fails_its_model_alone(void **state)
{
    (void)state;
    char section[128];
    snprintf(section, sizeof section, "[model bad]\npath = %s\n[model a]\n@", config_path);
    start("null", PAGES, "", section);
    struct infer_conn *c = open_conn();
    assert_int_equal(ask(c, "bad"), INFER_E_MODEL_FORMAT);
    assert_int_equal(state_of(c, "bad"), INFER_MODEL_FAILED);
    assert_int_equal(find(c, "bad").error, INFER_E_MODEL_FORMAT);
    assert_int_equal(ask(c, "bad"), INFER_E_MODEL_FORMAT);
    assert_int_equal(ask(c, "a"), 0);
    infer_close(c);
}

/* ---- room ------------------------------------------------------------------------------------ */

#define THREE                                                                                      \
    "[model a]\n@state-memory = 32M\n[model b]\n@state-memory = 32M\n[model c]\n@state-memory = "  \
    "32M\n"

static void idle_models_leave_for_others(void **state)
{
    (void)state;
    start("null", PAGES, "memory-limit = 72M\n", THREE);
    struct infer_conn *c = open_conn();
    assert_int_equal(ask(c, "a"), 0);
    assert_int_equal(ask(c, "b"), 0);
    assert_int_equal(ask(c, "a"), 0);
    assert_int_equal(ask(c, "c"), 0); /* b was used longest ago */
    assert_int_equal(state_of(c, "a"), INFER_MODEL_READY);
    assert_int_equal(state_of(c, "b"), INFER_MODEL_LISTED);
    assert_int_equal(state_of(c, "c"), INFER_MODEL_READY);
    assert_true(find(c, "c").state_bytes >= 32u << 20);
    /* One that is in use does not leave. */
    uint32_t id = submit(c, "a", 2000);
    assert_int_equal(take(c, id, 1), 0);
    assert_int_equal(ask(c, "b"), 0);
    assert_int_equal(state_of(c, "a"), INFER_MODEL_READY);
    assert_int_equal(state_of(c, "c"), INFER_MODEL_LISTED);
    assert_int_equal(infer_cancel(c, id), 0);
    take(c, id, UINT32_MAX);
    infer_close(c);
}

static void a_pinned_model_stays(void **state)
{
    (void)state;
    start("null", PAGES, "memory-limit = 36M\nctx = 2048\n",
          "[model a]\n@state-memory = 32M\npin = yes\n[model b]\n@state-memory = 32M\n");
    struct infer_conn *c = open_conn();
    assert_int_equal(ask(c, "a"), 0);
    assert_int_equal(find(c, "a").pinned, 1);
    assert_int_equal(ask(c, "b"), INFER_E_MODEL_NO_ROOM);
    assert_int_equal(state_of(c, "a"), INFER_MODEL_READY);
    infer_close(c);
}

static void a_model_that_never_fits(void **state)
{
    (void)state;
    start("null", PAGES, "memory-limit = 4M\nctx = 2048\n", "[model a]\n@");
    struct infer_conn *c = open_conn();
    assert_int_equal(ask(c, "a"), INFER_E_MODEL_TOO_LARGE);
    infer_close(c);
}

static void an_estimate_is_what_loading_takes(void **state)
{
    (void)state;
    struct infer_loaded dry = {.bytes = sizeof dry}, wet = {.bytes = sizeof wet};
    struct infer_load load;
    start("cpu", "", "", "[model x]\n@");
    struct infer_conn *c = open_conn();
    infer_load_default(&load);
    load.socket = d.socket;
    load.path = DAEMON_MODEL;
    load.name = "a";
    load.n_context = 512;
    load.parallel = 2;
    load.dry_run = 1;
    assert_int_equal(infer_load(&load, &dry), 0);
    assert_int_equal(find(c, "a").state, 0);
    uint64_t before = resident_bytes();
    load.dry_run = 0;
    assert_int_equal(infer_load(&load, &wet), 0);
    uint64_t grew = resident_bytes() - before;
    struct infer_model m = find(c, "a");
    double estimate =
        (double)(dry.weights_bytes + dry.state_bytes + dry.scratch_bytes + dry.vocabulary_bytes);
    double ledger =
        (double)(m.weights_bytes + m.state_bytes + m.scratch_bytes + m.vocabulary_bytes);
    assert_true(ledger > 0.98 * estimate && ledger < 1.02 * estimate);
    assert_int_equal(m.n_context, dry.n_context);
    assert_int_equal(m.n_context, 512);
    /* State is address space until it is used; what is not may be a few pages more or less. */
    if (program_slowness() == 1) {
        assert_true(grew > dry.weights_bytes);
        assert_true((double)grew < 1.02 * estimate + (4 << 20));
    }
    infer_close(c);
}

/* ---- by descriptor --------------------------------------------------------------------------- */

static void copy_file(const char *to, int mode)
{
    int from = open_model(), fd = open(to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);
    assert_true(fd >= 0);
    while (copy_file_range(from, NULL, fd, NULL, 1u << 24, 0) > 0) {
    }
    close(from);
    close(fd);
}

/* Nobody but the client can find the file: it has no name any more. */
static void a_file_that_only_the_client_can_open(void **state)
{
    (void)state;
    char own[96], path[128];
    start("cpu", "", "keep-alive = 1s\n", "[model x]\n@");
    struct infer_conn *c = open_conn();
    snprintf(own, sizeof own, "%s/own", folder);
    snprintf(path, sizeof path, "%s/mine.gguf", own);
    assert_int_equal(mkdir(own, 0700), 0);
    copy_file(path, 0600);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    unlink(path);
    rmdir(own);
    assert_int_equal(load_file(fd, "mine", 0), 0);
    assert_int_equal(ask(c, "mine"), 0);
    /* A name that is taken. */
    assert_int_equal(load_file(fd, "mine", 0), INFER_E_INVALID);
    close(fd);
    /* It leaves like any other, and comes again from the descriptor that the daemon has. */
    wait_state(c, "mine", INFER_MODEL_LISTED);
    assert_int_equal(ask(c, "mine"), 0);
    assert_int_equal(infer_unload(d.socket, "mine", 0), 0);
    assert_int_equal(state_of(c, "mine"), 0);
    assert_int_equal(ask(c, "mine"), INFER_E_UNKNOWN_MODEL);
    assert_int_equal(infer_unload(d.socket, "mine", 0), -INFER_E_UNKNOWN_MODEL);
    infer_close(c);
}

static void descriptors_that_are_refused(void **state)
{
    (void)state;
    int pair[2], pipes[2];
    start("null", PAGES, "", "[model x]\n@");
    int before = daemon_descriptors(&d);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    assert_int_equal(pipe(pipes), 0);
    int damaged = open(config_path, O_RDONLY | O_CLOEXEC);
    int wrong[] = {
        pair[0],
        pipes[0],
        open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC),
        open(config_path, O_WRONLY | O_CLOEXEC),
        open(DAEMON_MODEL, O_PATH | O_CLOEXEC),
        open("/dev/zero", O_RDONLY | O_CLOEXEC),
    };
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        assert_true(wrong[i] >= 0);
        assert_int_equal(load_file(wrong[i], "wrong", 0), INFER_E_MODEL_UNREADABLE);
        assert_int_equal(load_file(wrong[i], "wrong", INFER_MANAGE_DRY_RUN),
                         INFER_E_MODEL_UNREADABLE);
        close(wrong[i]);
    }
    assert_int_equal(load_file(damaged, "wrong", 0), INFER_E_MODEL_FORMAT);
    assert_int_equal(load_file(damaged, "a/b", 0), INFER_E_INVALID);
    close(damaged);
    close(pair[1]);
    close(pipes[1]);
    struct infer_conn *c = open_conn();
    assert_int_equal(state_of(c, "wrong"), 0);
    assert_int_equal(ask(c, "x"), 0);
    infer_close(c);
    assert_int_equal(daemon_descriptors(&d), before);
}

static void requests_that_are_none(void **state)
{
    (void)state;
    struct infer_manage_request r = request_of(INFER_MANAGE_LOAD, "a", 1), good = r;
    struct infer_manage_event e;
    bool gone;
    int fds[200], fd = open_model(), s = manage_socket();
    for (size_t i = 0; i < 200; i++)
        fds[i] = fd;
    manage_send(s, "hello", 5, NULL, 0); /* too short */
    assert_int_equal(manage_done(s), INFER_E_BAD_REQUEST);
    r.magic++;
    manage_send(s, &r, sizeof r, &fd, 1);
    assert_int_equal(manage_done(s), INFER_E_BAD_REQUEST);
    r = good;
    manage_send(s, &r, sizeof r, NULL, 0); /* none came */
    assert_int_equal(manage_done(s), INFER_E_BAD_REQUEST);
    manage_send(s, &r, sizeof r, fds, 200); /* too many */
    assert_int_equal(manage_done(s), INFER_E_BAD_REQUEST);
    memset(r.name, 'a', sizeof r.name);
    manage_send(s, &r, sizeof r, &fd, 1);
    assert_int_equal(manage_done(s), INFER_E_BAD_REQUEST);
    r = good;
    r.flags = INFER_MANAGE_DEVICE;
    memset(r.device, 'a', sizeof r.device);
    manage_send(s, &r, sizeof r, &fd, 1);
    assert_int_equal(manage_done(s), INFER_E_BAD_REQUEST);
    r = good;
    r.op = INFER_MANAGE_UNLOAD;
    manage_send(s, &r, sizeof r, &fd, 1); /* descriptors with something else */
    assert_int_equal(manage_done(s), INFER_E_BAD_REQUEST);
    r = request_of(99, "a", 0);
    manage_send(s, &r, sizeof r, NULL, 0);
    assert_int_equal(manage_done(s), INFER_E_UNSUPPORTED);
    r = good;
    r.flags = 1u << 31;
    manage_send(s, &r, sizeof r, &fd, 1);
    assert_int_equal(manage_done(s), INFER_E_UNSUPPORTED);
    r = good;
    r.n_context = UINT32_MAX;
    manage_send(s, &r, sizeof r, &fd, 1);
    assert_int_equal(manage_done(s), INFER_E_BAD_PARAMETER);
    r = good;
    r.k_type = 12345;
    manage_send(s, &r, sizeof r, &fd, 1);
    assert_int_equal(manage_done(s), INFER_E_BAD_PARAMETER);
    /* The connection still serves; and a second request before the first is done ends it. */
    r = request_of(INFER_MANAGE_UNLOAD, "nobody", 0);
    manage_send(s, &r, sizeof r, NULL, 0);
    assert_int_equal(manage_done(s), INFER_E_UNKNOWN_MODEL);
    close(fd);
    close(s);
    (void)e;
    (void)gone;
}

static int setup_plain(void **state)
{
    (void)state;
    start("null", PAGES, "", "[model x]\n@");
    return 0;
}

/* Only root and the daemon's own user manage. */
static void others_do_not_manage(void **state)
{
    (void)state;
    if (geteuid() != 0)
        skip();
    char path[128];
    snprintf(path, sizeof path, "%s/inferd-manage.sock", d.folder);
    assert_int_equal(chmod(d.folder, 0755), 0);
    assert_int_equal(chmod(path, 0666), 0); /* even if somebody opened it */
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        if (setgid(MANY_ALICE) != 0 || setuid(MANY_ALICE) != 0)
            _exit(2);
        _exit(infer_unload(d.socket, "x", 1) == -INFER_E_DAEMON_LOST ? 0 : 1);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
}

/* ---- while others are served ------------------------------------------------------------------
 */

static void unloading_waits_for_requests(void **state)
{
    (void)state;
    start("null", SLOW, "", "[model a]\n@");
    struct infer_conn *c = open_conn();
    uint32_t id = submit(c, "a", 50);
    assert_int_equal(take(c, id, 2), 0);
    struct infer_manage_request r = request_of(INFER_MANAGE_UNLOAD, "a", 0);
    int s = manage_socket();
    manage_send(s, &r, sizeof r, NULL, 0);
    wait_state(c, "a", INFER_MODEL_LEAVING);
    struct infer_manage_event e;
    bool gone;
    assert_false(manage_next(s, 100, &e, &gone));
    uint32_t late = submit(c, "a", 2); /* waits until it has left, and has it loaded again */
    assert_int_equal(take(c, id, UINT32_MAX), 0);
    assert_int_equal(manage_done(s), 0);
    assert_int_equal(take(c, late, UINT32_MAX), 0);
    assert_int_equal(state_of(c, "a"), INFER_MODEL_READY);
    close(s);
    infer_close(c);
}

static void unloading_by_force_ends_requests(void **state)
{
    (void)state;
    start("null", SLOW, "", "[model a]\n@[model b]\n@");
    struct infer_conn *c = open_conn();
    uint32_t id = submit(c, "a", 1000), other = submit(c, "b", 30);
    assert_int_equal(take(c, id, 2), 0);
    assert_int_equal(infer_unload(d.socket, "a", 1), 0);
    assert_int_equal(take(c, id, UINT32_MAX), INFER_E_UNLOADED);
    assert_int_equal(state_of(c, "a"), INFER_MODEL_LISTED);
    assert_int_equal(take(c, other, UINT32_MAX), 0);
    infer_close(c);
}

/* A gigabyte of zeros, of which only the head is on the disk, in the test's folder. */
static void write_large(char ret_path[128])
{
    struct gguf_write w;
    snprintf(ret_path, 128, "%s/large.gguf", folder);
    gguf_write_init(&w);
    gguf_write_llama(
        &w, &(struct gguf_write_shape){
                .n_layers = 8, .n_embd = 2048, .n_ffn = 4096, .n_heads = 16, .n_kv_heads = 16});
    assert_int_equal(gguf_write_file(&w, ret_path), 0);
    gguf_write_done(&w);
}

static void a_load_is_cancelled_by_hanging_up(void **state)
{
    (void)state;
    char path[128];
    struct infer_manage_event e;
    bool gone;
    start("null", PAGES, "", "[model a]\n@");
    struct infer_conn *c = open_conn();
    write_large(path);
    int fd = open(path, O_RDONLY | O_CLOEXEC), s = manage_socket();
    unlink(path);
    struct infer_manage_request r = request_of(INFER_MANAGE_LOAD, "large", 1);
    manage_send(s, &r, sizeof r, &fd, 1);
    assert_true(manage_next(s, 1000 * WAIT_S, &e, &gone));
    assert_int_equal(e.kind, INFER_MANAGE_PROGRESS);
    uint32_t waits = submit(c, "large", 4);
    /* Of one ring, so the request has been seen once this is answered. */
    assert_int_equal(state_of(c, "large"), INFER_MODEL_LOADING);
    close(s);
    assert_int_equal(take(c, waits, UINT32_MAX), INFER_E_CANCELLED);
    assert_int_equal(state_of(c, "large"), 0);
    assert_log("large: loading was cancelled");
    /* Others go on, and the same file can be loaded then. */
    assert_int_equal(ask(c, "a"), 0);
    assert_int_equal(load_file(fd, "large", 0), 0);
    assert_int_equal(ask(c, "large"), 0);
    close(fd);
    infer_close(c);
}

static void clients_are_answered_while_it_starts(void **state)
{
    (void)state;
    char path[128], section[256];
    write_large(path);
    snprintf(section, sizeof section, "[model large]\npath = %s\npreload = yes\n[model a]\n@",
             path);
    write_config("", section);
    start_configured(daemon_start_only, "null", PAGES);
    struct infer_conn *c = open_conn();
    assert_int_equal(state_of(c, "large"), INFER_MODEL_LOADING);
    int s = manage_socket();
    struct infer_manage_request r = request_of(INFER_MANAGE_RELOAD, "", 0);
    manage_send(s, &r, sizeof r, NULL, 0);
    assert_int_equal(manage_done(s), INFER_E_BUSY);
    assert_log_lacks("ready at ");
    uint32_t ids[] = {submit(c, NULL, 4), submit(c, "a", 4)};
    for (size_t i = 0; i < 2; i++)
        assert_int_equal(take(c, ids[i], UINT32_MAX), 0);
    assert_log("ready at ");
    close(s);
    unlink(path);
    infer_close(c);
}

/* What the configuration names may fail, what the command line does may not. */
static void a_start_without_its_model(void **state)
{
    (void)state;
    char path[128], section[256], argument[160];
    snprintf(path, sizeof path, "%s/absent.gguf", folder);
    snprintf(section, sizeof section, "[model absent]\npath = %s\npreload = yes\n[model a]\n@",
             path);
    start("null", PAGES, "", section);
    struct infer_conn *c = open_conn();
    assert_int_equal(state_of(c, "absent"), INFER_MODEL_FAILED);
    assert_int_equal(ask(c, "a"), 0);
    infer_close(c);
    daemon_stop(&d);
    snprintf(argument, sizeof argument, "absent=%s", path);
    write_config("", "[model a]\n@");
    daemon_start_only(&d, (const char *[]){"--config", config_path, "--backend", "null", "--model",
                                           argument, NULL});
    assert_int_equal(daemon_wait(&d, 10), 6);
    assert_log("absent.gguf");
}

static void it_is_stopped_while_it_starts(void **state)
{
    (void)state;
    char path[128], argument[160];
    write_large(path);
    snprintf(argument, sizeof argument, "large=%s", path);
    daemon_start_only(
        &d, (const char *[]){"--config", "none", "--backend", "null", "--model", argument, NULL});
    struct infer_conn *c = open_conn();
    assert_int_equal(state_of(c, "large"), INFER_MODEL_LOADING);
    daemon_stop(&d);
    assert_log_lacks("ready at ");
    unlink(path);
    infer_close(c);
}

/* A request whose client or deadline goes while its model loads. */
static void waiting_for_a_model_ends(void **state)
{
    (void)state;
    char path[128], section[256];
    struct infer_request r;
    uint32_t id;
    write_large(path);
    snprintf(section, sizeof section, "[model large]\npath = %s\n[model a]\n@", path);
    start("null", PAGES, "", section);
    struct infer_conn *c = open_conn(), *other = open_conn();
    infer_request_default(&r);
    r.model = "large";
    r.text = "x";
    r.deadline_ms = 1;
    assert_int_equal(infer_submit(c, &r, &id), 0);
    uint32_t cancelled = submit(c, "large", 4);
    submit(other, "large", 4);
    infer_close(other);
    assert_int_equal(infer_cancel(c, cancelled), 0);
    assert_int_equal(take(c, cancelled, UINT32_MAX), 0); /* finish CANCEL */
    assert_int_equal(take(c, id, UINT32_MAX), INFER_E_DEADLINE);
    assert_int_equal(ask(c, "a"), 0);
    assert_int_equal(ask(c, "large"), 0);
    unlink(path);
    infer_close(c);
}

static void the_daemon_stops_while_a_model_loads(void **state)
{
    (void)state;
    char path[128], section[256];
    write_large(path);
    snprintf(section, sizeof section, "[model large]\npath = %s\n", path);
    start("null", PAGES, "drain-timeout = 0s\n", section);
    struct infer_conn *c = open_conn();
    uint32_t id = submit(c, NULL, 4);
    wait_state(c, "large", INFER_MODEL_LOADING);
    daemon_stop(&d);
    assert_int_equal(take(c, id, UINT32_MAX), INFER_E_SHUTDOWN);
    unlink(path);
    infer_close(c);
}

/* ---- reload ---------------------------------------------------------------------------------- */

static void hang_up_signal(void)
{
    char *log = daemon_read_log(&d);
    size_t n = strlen(log);
    free(log);
    assert_int_equal(kill(d.pid, SIGHUP), 0);
    for (int i = 0; i < 500; i++) {
        log = daemon_read_log(&d);
        bool heard = strstr(log + n, "reading the configuration again") != NULL;
        free(log);
        if (heard)
            return;
        usleep(10000);
    }
    fail_msg("SIGHUP is not heard");
}

static void a_reload_drops_no_stream(void **state)
{
    (void)state;
    start("null", SLOW, "", "[model a]\n@[model b]\n@[model c]\n@");
    struct infer_conn *c = open_conn();
    uint32_t id = submit(c, "a", 60), leaves = submit(c, "b", 60);
    assert_int_equal(take(c, id, 2), 0);
    assert_int_equal(take(c, leaves, 2), 0); /* it is loaded */
    write_config("log-level = debug\nkeep-alive = 1s\nslow-reader-timeout = 30s\n",
                 "[model a]\n@[model d]\n@[user 4711]\nweight = 7\n");
    hang_up_signal();
    wait_state(c, "d", INFER_MODEL_LISTED);
    assert_int_equal(state_of(c, "c"), 0);
    assert_int_equal(state_of(c, "b"), INFER_MODEL_LEAVING);
    assert_int_equal(take(c, leaves, UINT32_MAX), 0);
    assert_int_equal(take(c, id, UINT32_MAX), 0);
    assert_int_equal(find(c, "a").keep_alive_s, 1);
    assert_int_equal(ask(c, "d"), 0);
    assert_int_equal(ask(c, "b"), INFER_E_UNKNOWN_MODEL);
    wait_state(c, "a", INFER_MODEL_LISTED); /* the new keep-alive */
    assert_log("model c: gone has changed");
    infer_close(c);
}

static void a_wrong_file_changes_nothing(void **state)
{
    (void)state;
    start("null", SLOW, "", "[model a]\n@");
    struct infer_conn *c = open_conn();
    uint32_t id = submit(c, "a", 30);
    assert_int_equal(take(c, id, 2), 0);
    write_config("keep-alive = 1s\n", "[model b]\n@flavour = sour\n");
    assert_int_equal(infer_reload(d.socket), -INFER_E_INVALID);
    assert_non_null(strstr(infer_detail(NULL), "inferd.conf:6: 'flavour'"));
    hang_up_signal();
    assert_log("the configuration stays as it was: ");
    assert_int_equal(state_of(c, "a"), INFER_MODEL_READY);
    assert_int_equal(find(c, "a").keep_alive_s, 600);
    assert_int_equal(state_of(c, "b"), 0);
    assert_int_equal(take(c, id, UINT32_MAX), 0);
    write_config("", "[model a]\n@");
    assert_int_equal(infer_reload(d.socket), 0);
    assert_string_equal(infer_detail(NULL), "nothing has changed");
    infer_close(c);
}

static void models_of_a_directory(void **state)
{
    (void)state;
    char keys[128], path[128], other[128];
    snprintf(path, sizeof path, "%s/found.gguf", folder);
    snprintf(other, sizeof other, "%s/later.gguf", folder);
    assert_int_equal(symlink(model_path, path), 0);
    snprintf(keys, sizeof keys, "model-directory = %s\n", folder);
    start("null", PAGES, keys, "");
    struct infer_conn *c = open_conn();
    assert_int_equal(state_of(c, "found"), INFER_MODEL_LISTED);
    assert_int_equal(ask(c, "found"), 0);
    assert_int_equal(rename(path, other), 0);
    assert_int_equal(infer_reload(d.socket), 0);
    assert_int_equal(state_of(c, "later"), INFER_MODEL_LISTED);
    wait_state(c, "found", 0);
    assert_int_equal(ask(c, "later"), 0);
    unlink(other);
    infer_close(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(the_first_request_loads_a_model),
        TEST(tokens_of_a_listed_model),
        TEST(an_unused_model_leaves),
        TEST(a_model_in_use_stays),
        TEST(a_conversation_outlives_its_model),
        TEST(a_file_that_is_wrong_fails_its_model_alone),
        TEST(idle_models_leave_for_others),
        TEST(a_pinned_model_stays),
        TEST(a_model_that_never_fits),
        TEST(an_estimate_is_what_loading_takes),
        TEST(a_file_that_only_the_client_can_open),
        TEST(descriptors_that_are_refused),
        cmocka_unit_test_setup_teardown(requests_that_are_none, setup_plain, teardown),
        cmocka_unit_test_setup_teardown(others_do_not_manage, setup_plain, teardown),
        TEST(unloading_waits_for_requests),
        TEST(unloading_by_force_ends_requests),
        TEST(a_load_is_cancelled_by_hanging_up),
        TEST(clients_are_answered_while_it_starts),
        TEST(a_start_without_its_model),
        TEST(it_is_stopped_while_it_starts),
        TEST(waiting_for_a_model_ends),
        TEST(the_daemon_stops_while_a_model_loads),
        TEST(a_reload_drops_no_stream),
        TEST(a_wrong_file_changes_nothing),
        TEST(models_of_a_directory),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
