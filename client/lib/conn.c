/* conn.c: the life of a connection: made, lost, connected again, forked, closed.
 *
 * Owns struct infer_conn. See conn.h for roles, locks and fork. A link that is lost stays mapped
 * until the next conn_ensure(), so that a thread which still looks at it finds memory there. */
#include "conn.h"

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define SPIN_US_DEFAULT 20u
#define WELCOMES_MAX    64u /* looked at in one call that must not wait */

/* Of infer_connect(), which has no connection to keep it. */
static __thread char connect_detail[INFER_DETAIL_MAX];

char *conn_thread_detail(void)
{
    return connect_detail;
}

static uint64_t read_clock_us(clockid_t which)
{
    struct timespec t;
    clock_gettime(which, &t);
    return (uint64_t)t.tv_sec * 1000000u + (uint64_t)t.tv_nsec / 1000u;
}

uint64_t conn_now_us(void)
{
    return read_clock_us(CLOCK_MONOTONIC);
}

uint64_t conn_coarse_us(void)
{
    return read_clock_us(CLOCK_MONOTONIC_COARSE);
}

int conn_fail(struct infer_conn *c, int code, const char *format, ...)
{
    c->detail[0] = '\0';
    if (format != NULL) {
        va_list args;
        va_start(args, format);
        vsnprintf(c->detail, sizeof c->detail, format, args);
        va_end(args);
    }
    return -code;
}

/* ---- fork ------------------------------------------------------------------------------------ */

static int make_mark(struct infer_conn *c)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    void *map = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED)
        return -1;
    if (madvise(map, page, MADV_WIPEONFORK) < 0)
        c->pid = getpid();
    c->mark = map;
    __atomic_store_n(c->mark, 1u, __ATOMIC_RELEASE);
    return 0;
}

static void make_locks(struct infer_conn *c)
{
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_mutex_init(&c->write_mutex, NULL);
    pthread_mutex_init(&c->mutex, NULL);
    pthread_cond_init(&c->changed, &attributes);
    pthread_condattr_destroy(&attributes);
}

/* In a fresh child. A lock that is held belongs to a thread which does not exist here: what it was
 * changing is left as it is and forgotten. */
static void reset_child(struct infer_conn *c)
{
    bool clean = pthread_mutex_trylock(&c->mutex) == 0;
    make_locks(c);
    request_remove_all(c, !clean);
    if (c->linked)
        link_close(&c->link, false);
    c->linked = false;
    c->lost = INFER_E_DAEMON_LOST;
    c->welcome_until_us = 0;
    poll_done(c);
    c->followers = 0;
    c->leader = c->in_next = false;
}

void conn_check_fork(struct infer_conn *c)
{
    uint32_t mark = __atomic_load_n(c->mark, __ATOMIC_ACQUIRE);
    if (mark == 1 && (c->pid == 0 || c->pid == getpid()))
        return;
    uint32_t expected = c->pid == 0 ? 0 : 1;
    if (__atomic_compare_exchange_n(c->mark, &expected, 2u, false, __ATOMIC_ACQ_REL,
                                    __ATOMIC_ACQUIRE)) {
        reset_child(c);
        if (c->pid != 0)
            c->pid = getpid();
        __atomic_store_n(c->mark, 1u, __ATOMIC_RELEASE);
    } else {
        while (__atomic_load_n(c->mark, __ATOMIC_ACQUIRE) != 1)
            sched_yield();
    }
}

/* ---- losing and finding the daemon ----------------------------------------------------------- */

void conn_publish_head(struct infer_conn *c)
{
    if (c->token_head == c->token_head_published || c->lost != 0)
        return;
    infer_ring_store(&c->link.client->token_head, c->token_head); /* edge B */
    c->token_head_published = c->token_head;
}

void conn_lose(struct infer_conn *c, int code)
{
    if (c->lost != 0)
        return;
    c->lost = code;
    if (c->link.kept && (code == INFER_E_DAEMON_LOST || code == INFER_E_SHUTDOWN)) {
        c->welcome_until_us = conn_now_us() + CONN_WELCOME_US;
        poll_remove_bell(c);
    }
    for (size_t i = 0; i < CONN_TABLE; i++)
        for (struct request *r = c->table[i]; r != NULL; r = r->chain)
            request_end(c, r, code);
    pthread_cond_broadcast(&c->changed);
    poll_nudge(c);
}

void conn_bury(struct infer_conn *c)
{
    if (c->lost != 0)
        return;
    uint32_t closed = infer_ring_load(&c->link.daemon->closed);
    receive_drain(c);
    conn_lose(c, closed > 0 && closed < 10000 ? (int)closed : INFER_E_DAEMON_LOST);
}

/* Of a link that was just made. */
static int begin_link(struct infer_conn *c)
{
    c->linked = true;
    c->request_tail = c->request_head = 0;
    c->token_head = c->token_head_published = c->token_tail = 0;
    memcpy(c->version, c->link.version, sizeof c->version);
    c->heard_us = conn_coarse_us();
    c->lost = 0;
    c->welcome_until_us = 0;
    if (poll_add_link(c) < 0) {
        conn_lose(c, INFER_E_OUT_OF_MEMORY);
        return conn_fail(c, INFER_E_OUT_OF_MEMORY, "no descriptor for the epoll set");
    }
    return 0;
}

/* With write_mutex and mutex held, no leader. */
static int connect_again(struct infer_conn *c)
{
    c->welcome_until_us = 0;
    if (c->linked) {
        poll_remove_link(c);
        c->linked = false;
        link_close(&c->link, true);
    }
    int r = link_open(c->socket_path, c->client_name, c->request_ring_wanted, c->token_ring_wanted,
                      &c->link, c->detail);
    return r < 0 ? r : begin_link(c);
}

/* With write_mutex and mutex held, no leader: looks for the next daemon's welcome. While nobody
 * looked several may have come; all but the last one's daemons are dead. 1: linked. 0: not yet.
 * Negative: it will not come. */
static int renew(struct infer_conn *c)
{
    struct link next;
    int r = conn_now_us() < c->welcome_until_us
                ? link_renew(&c->link, c->socket_path, &next, c->detail)
                : -INFER_E_DAEMON_LOST;
    if (r <= 0) {
        if (r < 0) {
            c->welcome_until_us = 0;
            poll_remove_link(c); /* what cannot be used would stay readable */
        }
        return r;
    }
    poll_remove_link(c);
    link_drop(&c->link);
    c->link = next;
    r = begin_link(c);
    if (r == 0 && link_is_dead(&c->link))
        conn_bury(c);
    return r < 0 ? r : c->lost == 0;
}

bool conn_look_for_welcome(struct infer_conn *c)
{
    if (c->lost == 0)
        return true;
    if (c->welcome_until_us == 0 || c->leader || pthread_mutex_trylock(&c->write_mutex) != 0)
        return false; /* who has the lock looks for it */
    for (uint32_t n = 0; n < WELCOMES_MAX && c->lost != 0 && c->welcome_until_us != 0; n++) {
        struct pollfd p = {.fd = c->link.socket, .events = POLLIN};
        if (renew(c) != 0 || poll(&p, 1, 0) <= 0)
            break;
    }
    pthread_mutex_unlock(&c->write_mutex);
    return c->lost == 0;
}

/* The next daemon's welcome, or a new connection. With both locks held; the mutex is left and
 * taken again while there is nothing to do but wait. */
static int find_daemon(struct infer_conn *c)
{
    while (c->lost != 0) {
        c->followers++;
        while (c->leader) /* it leaves within a slice */
            pthread_cond_wait(&c->changed, &c->mutex);
        c->followers--;
        if (c->welcome_until_us == 0)
            return connect_again(c);
        if (renew(c) == 0 && c->welcome_until_us != 0) {
            pthread_mutex_unlock(&c->mutex);
            link_await(&c->link, CONN_SLICE_MS); /* write_mutex keeps the link */
            pthread_mutex_lock(&c->mutex);
        }
    }
    return 0;
}

int conn_ensure(struct infer_conn *c)
{
    pthread_mutex_lock(&c->mutex);
    uint64_t now = conn_coarse_us();
    if (c->lost == 0 && now - c->heard_us > CONN_QUIET_US) {
        c->heard_us = now;
        if (link_is_dead(&c->link))
            conn_bury(c);
    }
    int r = c->lost != 0 ? find_daemon(c) : 0;
    pthread_mutex_unlock(&c->mutex);
    return r;
}

/* ---- public ---------------------------------------------------------------------------------- */

static void take_options(struct infer_conn *c, const struct infer_connect_options *o)
{
    const char *name = o->client_name != NULL ? o->client_name : program_invocation_short_name;
    snprintf(c->client_name, sizeof c->client_name, "%s", name != NULL ? name : "");
    c->request_ring_wanted = o->request_ring_bytes;
    c->token_ring_wanted = o->token_ring_bytes;
    c->spin_us = o->spin_us == 0 ? SPIN_US_DEFAULT : o->spin_us;
    c->socket_path = link_choose_socket(o->socket);
}

static void free_conn(struct infer_conn *c)
{
    if (c->linked)
        link_close(&c->link, true);
    poll_done(c);
    request_remove_all(c, false);
    free(c->event_prompt);
    free(c->socket_path);
    if (c->mark != NULL)
        munmap(c->mark, (size_t)sysconf(_SC_PAGESIZE));
    free(c);
}

API int infer_connect(const struct infer_connect_options *options, struct infer_conn **ret_conn)
{
    static const struct infer_connect_options none;
    connect_detail[0] = '\0';
    if (ret_conn == NULL)
        return -INFER_E_INVALID;
    struct infer_conn *c = calloc(1, sizeof *c);
    if (c == NULL)
        return -INFER_E_OUT_OF_MEMORY;
    c->poll_fd = c->nudge_fd = -1;
    c->lost = INFER_E_DAEMON_LOST;
    take_options(c, options != NULL ? options : &none);
    if (c->socket_path == NULL || make_mark(c) < 0) {
        free_conn(c);
        return -INFER_E_OUT_OF_MEMORY;
    }
    make_locks(c);
    int r = connect_again(c);
    if (r < 0) {
        memcpy(connect_detail, c->detail, sizeof connect_detail);
        free_conn(c);
        return r;
    }
    *ret_conn = c;
    return 0;
}

API void infer_close(struct infer_conn *conn)
{
    if (conn == NULL)
        return;
    conn_check_fork(conn);
    free_conn(conn);
}

API const char *infer_daemon_version(struct infer_conn *conn)
{
    return conn != NULL ? conn->version : "";
}

API const char *infer_detail(struct infer_conn *conn)
{
    return conn != NULL ? conn->detail : connect_detail;
}

API void infer_free(void *memory)
{
    free(memory);
}
