/* status_page.c: see status_page.h.
 *
 * Owns: the memory file and its mapping.
 *
 * The sequence lock. `sequence` is odd while the page is being written; a reader copies the page
 * and keeps the copy when sequence was even before and the same after. The writer waits for
 * nobody, however many read. Its own count stands in private memory: the shared one is only stored.
 *
 *   W1  store of the odd sequence; release fence; stores of the page. A reader whose acquire fence
 *       (R2) follows a load of any new word sees the odd sequence, or a later one, after it.
 *   W2  stores of the page; release store of the even sequence. A reader that loaded this sequence
 *       (R1, acquire) sees the whole page.
 *
 * The page is stored word by word with relaxed atomics, since a reader may well look at the same
 * moment: that costs nothing and makes the race a defined one. R1 and R2 stand in
 * client/lib/page.c. No client can write the file, so nothing of it is ever read here. */
#include "proto/status_page.h"

#include "inferd/ring.h"
#include "proto/memfile.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define FILE_BYTES sizeof(struct infer_status_page)

typedef uint64_t __attribute__((may_alias)) page_word;
_Static_assert(sizeof(struct infer_page) % sizeof(page_word) == 0, "the page is whole words");
_Static_assert(offsetof(struct infer_status_page, page) % sizeof(page_word) == 0, "aligned");

struct status_page {
    int fd;
    uint32_t sequence;
    struct infer_status_page *map;
};

int status_page_new(struct status_page **ret)
{
    void *map;
    struct status_page *p = calloc(1, sizeof *p);
    if (p == NULL)
        return -ENOMEM;
    int r = p->fd = memfile_new("inferd-status", FILE_BYTES);
    if (r >= 0)
        r = memfile_map(p->fd, FILE_BYTES, PROT_READ | PROT_WRITE, MEMFILE_FUTURE_WRITE, &map);
    if (r < 0) {
        status_page_free(p);
        return r;
    }
    p->map = map;
    p->map->bytes = sizeof(struct infer_page);
    *ret = p;
    return 0;
}

void status_page_free(struct status_page *p)
{
    if (p == NULL)
        return;
    if (p->map != NULL)
        munmap(p->map, FILE_BYTES);
    if (p->fd >= 0)
        close(p->fd);
    free(p);
}

int status_page_fd(const struct status_page *p)
{
    return p->fd;
}

void status_page_write(struct status_page *p, const struct infer_page *page)
{
    page_word *to = (page_word *)&p->map->page;
    const page_word *from = (const page_word *)page;

    infer_ring_store(&p->map->sequence, p->sequence + 1);
    __atomic_thread_fence(__ATOMIC_RELEASE); /* W1 */
    for (size_t i = 0; i < sizeof *page / sizeof *to; i++)
        __atomic_store_n(&to[i], from[i], __ATOMIC_RELAXED);
    p->sequence += 2;
    infer_ring_store(&p->map->sequence, p->sequence); /* W2 */
}
