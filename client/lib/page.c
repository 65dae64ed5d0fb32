/* page.c: infer_read_page(): what the daemon runs, read from the memory that all its clients share.
 *
 * Owns nothing: the mapping is the link's. The page is guarded by a sequence lock whose writer is
 * daemon/proto/status_page.c, where W1 and W2 stand:
 *
 *   R1  acquire load of an even sequence, then loads of the page. All that the writer stored before
 *       it stored this sequence (W2) is seen.
 *   R2  loads of the page, acquire fence, load of the sequence. Had one of the loads met a word of
 *       the next page, the sequence would be seen to have moved (W1).
 *
 * The writer is busy for a microsecond, ten times a second at most; so a turn is lost now and then,
 * and many in a row only while the daemon's thread does not run. Tries are bounded: a burst without
 * a pause, then one per millisecond, READ_NAPS of them.
 *
 * Threads: the mutex is held while the page is copied, so that the link stays; not while napping.
 */
#include "conn.h"

#include <stddef.h>
#include <string.h>
#include <time.h>

#define READ_BURST 100
#define READ_NAPS  100

typedef uint64_t __attribute__((may_alias)) page_word;

/* One try: 1 when *ret is whole. */
static int try_read(const struct infer_status_page *from, size_t mapped, struct infer_page *ret)
{
    uint32_t sequence = infer_ring_load(&from->sequence); /* R1 */
    if ((sequence & 1) != 0)
        return 0;
    size_t bytes = __atomic_load_n(&from->bytes, __ATOMIC_RELAXED);
    size_t room = mapped - offsetof(struct infer_status_page, page);
    if (bytes > room)
        bytes = room;
    if (bytes > sizeof *ret)
        bytes = sizeof *ret;
    const page_word *words = (const page_word *)(const void *)&from->page;
    page_word *to = (page_word *)(void *)ret;
    size_t n = bytes / sizeof *words;
    for (size_t i = 0; i < n; i++)
        to[i] = __atomic_load_n(&words[i], __ATOMIC_RELAXED);
    memset(to + n, 0, sizeof *ret - n * sizeof *words);
    __atomic_thread_fence(__ATOMIC_ACQUIRE); /* R2 */
    return __atomic_load_n(&from->sequence, __ATOMIC_RELAXED) == sequence;
}

/* What a program would index or print with is made safe for that. */
static void tidy(struct infer_page *page)
{
    if (page->n_sequences > INFER_PAGE_SEQUENCES)
        page->n_sequences = INFER_PAGE_SEQUENCES;
    if (page->n_users > INFER_PAGE_USERS)
        page->n_users = INFER_PAGE_USERS;
    for (uint32_t i = 0; i < page->n_sequences; i++)
        page->sequences[i].client[INFER_CLIENT_NAME_MAX - 1] = '\0';
    page->status.version[sizeof page->status.version - 1] = '\0';
    page->status.event_loop[sizeof page->status.event_loop - 1] = '\0';
}

/* With mutex held. 1: *ret is a page; 0: the daemon is writing all the time. */
static int read_burst(struct infer_conn *c, struct infer_page *ret)
{
    if (c->lost == 0 && link_is_dead(&c->link))
        conn_bury(c);
    if (c->lost != 0)
        return conn_fail(c, c->lost, NULL);
    if (c->link.status == NULL)
        return conn_fail(c, INFER_E_UNSUPPORTED, "the daemon has no status page");
    for (int i = 0; i < READ_BURST; i++) {
        if (try_read(c->link.status, c->link.status_bytes, ret))
            return 1;
        infer_ring_pause();
    }
    return 0;
}

static int read_locked(struct infer_conn *c, struct infer_page *ret)
{
    pthread_mutex_lock(&c->mutex);
    int r = read_burst(c, ret);
    bool lost = c->lost != 0;
    pthread_mutex_unlock(&c->mutex);
    if (!lost)
        return r;
    pthread_mutex_lock(&c->write_mutex); /* as every call does that may connect again */
    r = conn_ensure(c);
    if (r == 0) {
        pthread_mutex_lock(&c->mutex);
        r = read_burst(c, ret);
        pthread_mutex_unlock(&c->mutex);
    }
    pthread_mutex_unlock(&c->write_mutex);
    return r;
}

API int infer_read_page(struct infer_conn *conn, struct infer_page *ret_page)
{
    static const struct timespec nap = {.tv_nsec = 1000000};
    struct infer_page page; /* ret_page is untouched on failure */
    int r;
    if (conn == NULL || ret_page == NULL)
        return -INFER_E_INVALID;
    conn_check_fork(conn);
    for (int i = 0; (r = read_locked(conn, &page)) == 0 && i < READ_NAPS; i++)
        nanosleep(&nap, NULL);
    if (r == 0) {
        pthread_mutex_lock(&conn->mutex);
        r = conn_fail(conn, INFER_E_DAEMON_LOST, "the daemon does not finish its status page");
        pthread_mutex_unlock(&conn->mutex);
    }
    if (r < 0)
        return r;
    tidy(&page);
    *ret_page = page;
    return 0;
}
