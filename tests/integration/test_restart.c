/* test_restart.c: the daemon under a service manager: sockets that are passed to it, what it tells,
 * how it stops, and clients that live through its restarts. The manager is this program: it
 * listens, hears the notifications, and keeps the descriptors that the daemon wants kept. */
#include "support/daemon.h"
#include "support/program.h"
#include "support/raw.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#define KEPT_MAX 128
#define CLIENTS  24

struct kept {
    int fd;
    char name[256];
};

struct manager {
    struct daemon daemon;
    int use, manage, notify;
    char notify_path[108];
    const char *watchdog; /* WATCHDOG_USEC, or NULL */
    pthread_t thread;
    atomic_bool over;
    pthread_mutex_t lock; /* what follows */
    struct kept kept[KEPT_MAX];
    int n_kept;
    char status[512];
    bool ready, stopping;
    int n_stored, n_fed, n_extended, n_statuses;
    uint64_t fed_us;
};

/* ---- the manager ----------------------------------------------------------------------------- */

static void drop_kept(struct manager *m, int i)
{
    close(m->kept[i].fd);
    m->kept[i] = m->kept[--m->n_kept];
}

static void take_line(struct manager *m, const char *line, char *name)
{
    if (strcmp(line, "STOPPING=1") == 0)
        m->stopping = true;
    else if (strcmp(line, "WATCHDOG=1") == 0) {
        m->n_fed++;
        m->fed_us = test_clock_us();
    } else if (strncmp(line, "STATUS=", 7) == 0) {
        snprintf(m->status, sizeof m->status, "%s", line + 7);
        m->n_statuses++;
    } else if (strncmp(line, "EXTEND_TIMEOUT_USEC=", 20) == 0)
        m->n_extended++;
    else if (strncmp(line, "FDNAME=", 7) == 0)
        snprintf(name, 256, "%s", line + 7);
}

static void take_message(struct manager *m)
{
    char text[4096], name[256] = "";
    char control[CMSG_SPACE(sizeof(int))];
    struct iovec part = {text, sizeof text - 1};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = control,
                             .msg_controllen = sizeof control};
    int fd = -1;
    ssize_t n = recvmsg(m->notify, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (n <= 0)
        return;
    text[n] = '\0';
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c))
        memcpy(&fd, CMSG_DATA(c), sizeof fd);
    pthread_mutex_lock(&m->lock);
    bool ready = strstr(text, "READY=1") != NULL, store = strstr(text, "FDSTORE=1") != NULL,
         forget = strstr(text, "FDSTOREREMOVE=1") != NULL;
    for (char *rest = text, *line; (line = strsep(&rest, "\n")) != NULL;)
        take_line(m, line, name);
    m->ready |= ready; /* with its status */
    if (store && fd >= 0 && m->n_kept < KEPT_MAX) {
        m->kept[m->n_kept].fd = fd;
        memcpy(m->kept[m->n_kept++].name, name, sizeof name);
        m->n_stored++;
        fd = -1;
    }
    for (int i = m->n_kept - 1; forget && i >= 0; i--)
        if (strcmp(m->kept[i].name, name) == 0)
            drop_kept(m, i);
    pthread_mutex_unlock(&m->lock);
    if (fd >= 0)
        close(fd);
}

/* As systemd does with FDPOLL: what hangs up leaves the store. */
static void drop_hung_up(struct manager *m)
{
    pthread_mutex_lock(&m->lock);
    for (int i = m->n_kept - 1; i >= 0; i--) {
        struct pollfd p = {.fd = m->kept[i].fd};
        if (poll(&p, 1, 0) > 0 && (p.revents & (POLLHUP | POLLERR)) != 0)
            drop_kept(m, i);
    }
    pthread_mutex_unlock(&m->lock);
}

static void *manager_main(void *arg)
{
    struct manager *m = arg;
    while (!m->over) {
        struct pollfd p = {.fd = m->notify, .events = POLLIN};
        if (poll(&p, 1, 20) > 0)
            take_message(m);
        drop_hung_up(m);
    }
    return NULL;
}

static int listen_at(const char *path, int type)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    snprintf(a.sun_path, sizeof a.sun_path, "%s", path);
    int fd = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof a), 0);
    if (type == SOCK_SEQPACKET)
        assert_int_equal(listen(fd, 128), 0);
    return fd;
}

static int set_up(void **state)
{
    struct manager *m = calloc(1, sizeof *m);
    struct daemon *d = &m->daemon;
    char path[128];
    snprintf(d->folder, sizeof d->folder, "/tmp/inferd-test.XXXXXX");
    assert_non_null(mkdtemp(d->folder));
    snprintf(d->socket, sizeof d->socket, "%s/inferd.sock", d->folder);
    snprintf(d->log, sizeof d->log, "%s/log", d->folder);
    snprintf(path, sizeof path, "%s/manage.sock", d->folder);
    snprintf(m->notify_path, sizeof m->notify_path, "%s/notify", d->folder);
    m->use = listen_at(d->socket, SOCK_SEQPACKET);
    m->manage = listen_at(path, SOCK_SEQPACKET);
    m->notify = listen_at(m->notify_path, SOCK_DGRAM);
    pthread_mutex_init(&m->lock, NULL);
    pthread_create(&m->thread, NULL, manager_main, m);
    *state = m;
    return 0;
}

static int tear_down(void **state)
{
    struct manager *m = *state;
    if (m->daemon.pid > 0)
        daemon_stop(&m->daemon);
    m->over = true;
    pthread_join(m->thread, NULL);
    for (int i = 0; i < m->n_kept; i++)
        close(m->kept[i].fd);
    close(m->use);
    close(m->manage);
    close(m->notify);
    daemon_done(&m->daemon);
    free(m);
    return 0;
}

/* In the child: the descriptors from 3 on, and the environment that tells of them. */
static void pass(struct manager *m, const char *const *argv, const char *path)
{
    char names[8192] = "use:manage", number[16];
    int log = open(m->daemon.log, O_WRONLY | O_CREAT | O_APPEND, 0600), in = open("/dev/null", 0);
    int n = 2 + m->n_kept, from[2 + KEPT_MAX];
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    from[0] = m->use;
    from[1] = m->manage;
    for (int i = 0; i < m->n_kept; i++) {
        from[2 + i] = m->kept[i].fd;
        strcat(strcat(names, ":"), m->kept[i].name);
    }
    dup2(in, 0);
    dup2(log, 1);
    dup2(log, 2);
    for (int i = 0; i < n; i++) /* out of the way of 3 .. */
        from[i] = fcntl(from[i], F_DUPFD_CLOEXEC, 1000);
    for (int i = 0; i < n; i++)
        dup2(from[i], 3 + i);
    snprintf(number, sizeof number, "%d", n);
    setenv("LISTEN_FDS", number, 1);
    setenv("LISTEN_FDNAMES", names, 1);
    snprintf(number, sizeof number, "%d", (int)getpid());
    setenv("LISTEN_PID", number, 1);
    setenv("NOTIFY_SOCKET", m->notify_path, 1);
    if (m->watchdog) {
        setenv("WATCHDOG_USEC", m->watchdog, 1);
        setenv("WATCHDOG_PID", number, 1);
    }
    execv(path, (char *const *)(uintptr_t)argv);
    _exit(127);
}

static bool wait_for(struct manager *m, const bool *flag)
{
    uint64_t end = test_clock_us() + 20000000u * (unsigned)program_slowness();
    for (bool is = false; test_clock_us() < end; usleep(2000)) {
        pthread_mutex_lock(&m->lock);
        is = *flag;
        pthread_mutex_unlock(&m->lock);
        if (is)
            return true;
        if (!daemon_alive(&m->daemon))
            return false;
    }
    return false;
}

static void spawn(struct manager *m, const char *options, const char *drain)
{
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s", program_path("inferd"));
    const char *argv[] = {path,
                          "--config",
                          "none",
                          "--model",
                          "unix=" DAEMON_MODEL,
                          "--ctx",
                          "2048",
                          "--backend",
                          "null",
                          "--backend-options",
                          options,
                          "--drain-timeout",
                          drain,
                          "--parallel",
                          "32",
                          NULL};
    fflush(NULL);
    pthread_mutex_lock(&m->lock);
    m->ready = m->stopping = false;
    pid_t pid = fork();
    if (pid == 0)
        pass(m, argv, path);
    pthread_mutex_unlock(&m->lock);
    assert_true(pid > 0);
    m->daemon.pid = pid;
}

static void start(struct manager *m, const char *options, const char *drain)
{
    spawn(m, options, drain);
    if (!wait_for(m, &m->ready))
        fail_msg("no READY: %s", daemon_read_log(&m->daemon));
}

static struct infer_conn *join(struct manager *m)
{
    struct infer_connect_options o = {.socket = m->daemon.socket};
    struct infer_conn *c;
    assert_int_equal(infer_connect(&o, &c), 0);
    return c;
}

static uint32_t ask(struct infer_conn *c, uint32_t max_tokens)
{
    struct infer_request r;
    uint32_t id;
    infer_request_default(&r);
    r.text = "The kernel";
    r.sampling.max_tokens = max_tokens;
    r.sampling.ignore_eos = 1;
    int code = infer_submit(c, &r, &id);
    if (code != 0)
        fail_msg("submit: %s: %s", infer_strerror(code), infer_detail(c));
    return id;
}

/* Reads to DONE; its error. */
static int finish(struct infer_conn *c, uint32_t id, uint32_t *ret_tokens)
{
    struct infer_event e;
    uint32_t n = 0;
    do {
        assert_int_equal(infer_next(c, id, 30000 * program_slowness(), &e), 1);
        n += e.kind == INFER_EVENT_TOKEN && e.has_token;
    } while (e.kind != INFER_EVENT_DONE);
    if (ret_tokens)
        *ret_tokens = n;
    return e.error;
}

static void first_token(struct infer_conn *c, uint32_t id)
{
    struct infer_event e;
    do
        assert_int_equal(infer_next(c, id, 30000 * program_slowness(), &e), 1);
    while (e.kind == INFER_EVENT_QUEUED);
    assert_int_equal(e.kind, INFER_EVENT_TOKEN);
}

/* ---- tests ----------------------------------------------------------------------------------- */

/* It serves at the passed socket, makes none of its own, and leaves the passed one where it is. */
static void test_activation(void **state)
{
    struct manager *m = *state;
    char lock[128], status[512];
    /* Who comes before the daemon waits in the socket's queue. */
    spawn(m, "", "1s");
    struct infer_conn *c = join(m);
    assert_int_equal(finish(c, ask(c, 5), NULL), 0);
    assert_true(wait_for(m, &m->ready));
    snprintf(lock, sizeof lock, "%s.lock", m->daemon.socket);
    assert_int_equal(access(lock, F_OK), -1);
    pthread_mutex_lock(&m->lock);
    memcpy(status, m->status, sizeof status);
    pthread_mutex_unlock(&m->lock);
    assert_non_null(strstr(status, "serving 1 model,"));
    daemon_stop(&m->daemon);
    assert_true(m->stopping);
    assert_int_equal(access(m->daemon.socket, F_OK), 0);
    start(m, "", "1s");
    assert_int_equal(finish(c, ask(c, 5), NULL), 0);
    infer_close(c);
}

struct user {
    struct manager *manager;
    pthread_t thread;
    atomic_bool *over;
    atomic_int n_good;
    int n_lost, n_shutdown, n_other, n_quiet;
};

static void *user_main(void *arg)
{
    struct user *u = arg;
    struct infer_conn *c = join(u->manager);
    while (!*u->over) {
        struct infer_request r;
        struct infer_event e = {0};
        uint32_t id;
        infer_request_default(&r);
        r.text = "The kernel";
        r.sampling.max_tokens = 100;
        r.sampling.ignore_eos = 1;
        int code = infer_submit(c, &r, &id);
        while (code == 0 && e.kind != INFER_EVENT_DONE)
            if (infer_next(c, id, 30000 * program_slowness(), &e) != 1)
                code = 1;
        if (code == 0)
            code = -e.error;
        u->n_quiet += code == 1;
        u->n_good += code == 0;
        u->n_lost += code == -INFER_E_DAEMON_LOST;
        u->n_shutdown += code == -INFER_E_SHUTDOWN;
        u->n_other += code < 0 && code != -INFER_E_DAEMON_LOST && code != -INFER_E_SHUTDOWN;
        if (code == -INFER_E_SHUTDOWN)
            usleep(20000); /* it drains: others are to end */
    }
    infer_close(c);
    return NULL;
}

/* Under load, in order and by kill: each client gets errors of the one kind, hangs nowhere, and
 * goes on over the connection that it made at first. */
static void test_under_load(void **state)
{
    enum { ROUNDS = 6 };
    struct manager *m = *state;
    struct user users[CLIENTS];
    atomic_bool over = false;
    start(m, "delay_us=300", "1s");
    for (int i = 0; i < CLIENTS; i++) {
        users[i] = (struct user){.manager = m, .over = &over};
        pthread_create(&users[i].thread, NULL, user_main, &users[i]);
    }
    for (int round = 0; round < ROUNDS; round++) {
        usleep(300000);
        if (round % 2 == 0)
            daemon_kill(&m->daemon);
        else
            daemon_stop(&m->daemon);
        start(m, "delay_us=300", "1s");
        int before[CLIENTS];
        for (int i = 0; i < CLIENTS; i++)
            before[i] = users[i].n_good;
        uint64_t end = test_clock_us() + 30000000u * (unsigned)program_slowness();
        for (int i = 0; i < CLIENTS; i++)
            while (users[i].n_good <= before[i] + 1 && test_clock_us() < end)
                usleep(5000);
        for (int i = 0; i < CLIENTS; i++)
            if (users[i].n_good <= before[i] + 1)
                fail_msg("client %d does not go on after restart %d", i, round);
    }
    over = true;
    for (int i = 0; i < CLIENTS; i++) {
        pthread_join(users[i].thread, NULL);
        assert_int_equal(users[i].n_quiet, 0);
        assert_int_equal(users[i].n_other, 0);
        assert_true(users[i].n_lost <= ROUNDS / 2);
    }
    assert_int_equal(m->n_stored, CLIENTS); /* nobody connected twice */
    /* Who closes his connection leaves the store by himself. */
    for (int i = 0; i < 100 && m->n_kept > 0; i++)
        usleep(20000);
    assert_int_equal(m->n_kept, 0);
}

/* What runs may end, nothing new begins. */
static void test_drain(void **state)
{
    struct manager *m = *state;
    uint32_t n = 0;
    start(m, "delay_us=5000", "20s");
    struct infer_conn *c = join(m), *other = join(m);
    uint32_t id = ask(c, 200);
    first_token(c, id);
    kill(m->daemon.pid, SIGTERM);
    assert_true(wait_for(m, &m->stopping));
    usleep(50000);
    assert_int_equal(finish(other, ask(other, 5), NULL), INFER_E_SHUTDOWN);
    struct infer_status status;
    assert_int_equal(infer_status(other, &status), 0); /* who looks may */
    assert_int_equal(status.n_running, 1);
    assert_int_equal(finish(c, id, &n), 0);
    assert_int_equal(n, 199); /* and the one before */
    assert_int_equal(daemon_wait(&m->daemon, 10), 0);
    start(m, "", "1s");
    assert_int_equal(finish(c, ask(c, 5), NULL), 0);
    assert_int_equal(finish(other, ask(other, 5), NULL), 0);
    infer_close(c);
    infer_close(other);
}

static void test_drain_is_bounded(void **state)
{
    struct manager *m = *state;
    start(m, "delay_us=5000", "1s");
    struct infer_conn *c = join(m);
    uint32_t id = ask(c, 2000);
    first_token(c, id);
    daemon_stop(&m->daemon);
    assert_int_equal(finish(c, id, NULL), INFER_E_SHUTDOWN);

    start(m, "delay_us=5000", "1h"); /* a second signal ends it at once */
    id = ask(c, 2000);
    first_token(c, id);
    kill(m->daemon.pid, SIGTERM);
    assert_true(wait_for(m, &m->stopping));
    usleep(50000);
    assert_true(daemon_alive(&m->daemon));
    daemon_stop(&m->daemon);
    assert_int_equal(finish(c, id, NULL), INFER_E_SHUTDOWN);
    infer_close(c);
}

static int fed(struct manager *m)
{
    pthread_mutex_lock(&m->lock);
    int n = m->n_fed;
    pthread_mutex_unlock(&m->lock);
    return n;
}

/* Idle it is fed, at work it is fed, in a step that does not end it is not. */
static void test_watchdog(void **state)
{
    struct manager *m = *state;
    m->watchdog = "400000";
    start(m, "delay_us=2500000", "0");
    int before = fed(m);
    usleep(1500000);
    assert_true(fed(m) >= before + 3);
    struct infer_conn *c = join(m);
    ask(c, 1000);
    usleep(600000); /* the step has begun; one more feeding may have been due */
    before = fed(m);
    usleep(1200000);
    assert_true(fed(m) <= before + 1);
    daemon_kill(&m->daemon);
    start(m, "delay_us=20000", "0");
    uint32_t id = ask(c, 60);
    before = fed(m);
    assert_int_equal(finish(c, id, NULL), 0);
    assert_true(fed(m) >= before + 3);
    infer_close(c);
}

/* Idle, it says nothing and does not wake up. */
static void test_silence(void **state)
{
    struct manager *m = *state;
    start(m, "", "0");
    struct infer_conn *c = join(m);
    assert_int_equal(finish(c, ask(c, 20), NULL), 0);
    usleep(1500000); /* the last status line */
    pthread_mutex_lock(&m->lock);
    int n = m->n_statuses;
    pthread_mutex_unlock(&m->lock);
    uint64_t cpu = daemon_cpu_ns(&m->daemon);
    usleep(2000000);
    pthread_mutex_lock(&m->lock);
    assert_int_equal(m->n_statuses, n);
    assert_non_null(strstr(m->status, " 0 requests running"));
    pthread_mutex_unlock(&m->lock);
    assert_true(daemon_cpu_ns(&m->daemon) - cpu < 1000000);
    infer_close(c);
}

static void add_kept(struct manager *m, int fd, const char *name)
{
    pthread_mutex_lock(&m->lock);
    m->kept[m->n_kept].fd = fd;
    snprintf(m->kept[m->n_kept++].name, 256, "%s", name);
    pthread_mutex_unlock(&m->lock);
}

/* A store full of nonsense: the daemon starts, serves, and keeps none of it. */
static void test_strange_store(void **state)
{
    struct manager *m = *state;
    char path[128];
    int ends[2];
    snprintf(path, sizeof path, "%s/x", m->daemon.folder);
    add_kept(m, open("/dev/null", O_RDWR | O_CLOEXEC), "client-1-16-18-");
    add_kept(m, listen_at(path, SOCK_SEQPACKET), "client-2-16-18-");
    assert_int_equal(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, ends), 0);
    add_kept(m, ends[0], "client-3-16-18-");
    close(ends[1]);
    static const char *const names[] = {"client-",         "client-x-16-18-",
                                        "client-5-99-99-", "client-99999999999999999999-16-18-",
                                        "stranger",        "client-6-16-18-zz"};
    int left[16], n_left = 0;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
        add_kept(m, ends[0], names[i]);
        left[n_left++] = ends[1];
    }
    /* One that is as it must be, and whose client then talks nonsense. */
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
    add_kept(m, ends[0], "client-7-16-18-6869");
    start(m, "", "0");
    struct infer_abi_welcome w;
    assert_int_equal(recv(ends[1], &w, sizeof w, 0), sizeof w);
    assert_true(w.error == 0 && (w.features & INFER_ABI_KEEPS_SOCKET) != 0);
    assert_int_equal(send(ends[1], "nonsense", 8, MSG_NOSIGNAL), 8);
    assert_int_equal(recv(ends[1], &w, sizeof w, 0), 0); /* shut down, though it is kept */
    close(ends[1]);
    while (n_left > 0)
        close(left[--n_left]);
    struct infer_conn *c = join(m);
    assert_int_equal(finish(c, ask(c, 5), NULL), 0);
    infer_close(c);
}

/* Programs that know no second welcome are not kept: they see the daemon's end as ever. */
static void test_older_clients(void **state)
{
    struct manager *m = *state;
    struct raw r;
    start(m, "", "0");
    raw_open(&r, &m->daemon); /* flags are zero */
    assert_int_equal(r.welcome.features, 0);
    struct infer_conn *c = join(m);
    assert_int_equal(finish(c, ask(c, 5), NULL), 0);
    for (int i = 0; i < 100 && m->n_kept == 0; i++)
        usleep(20000);
    assert_int_equal(m->n_stored, 1);
    daemon_kill(&m->daemon);
    char byte;
    assert_int_equal(recv(r.socket, &byte, 1, 0), 0);
    raw_close(&r);
    start(m, "", "0");
    infer_close(c);
}

/* SIGHUP: the manager waits for READY. */
static void test_reload(void **state)
{
    struct manager *m = *state;
    start(m, "delay_us=2000", "0");
    struct infer_conn *c = join(m);
    uint32_t id = ask(c, 100);
    pthread_mutex_lock(&m->lock);
    m->ready = false;
    pthread_mutex_unlock(&m->lock);
    kill(m->daemon.pid, SIGHUP);
    assert_true(wait_for(m, &m->ready));
    assert_int_equal(finish(c, id, NULL), 0);
    infer_close(c);
}

#define MANAGED(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        MANAGED(test_activation),       MANAGED(test_under_load),    MANAGED(test_drain),
        MANAGED(test_drain_is_bounded), MANAGED(test_watchdog),      MANAGED(test_silence),
        MANAGED(test_strange_store),    MANAGED(test_older_clients), MANAGED(test_reload),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
