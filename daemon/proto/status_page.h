/* status_page.h: the file that every client may read without asking: what runs, and for whom.
 *
 * One file for all sessions, written by the daemon alone; clients get a descriptor at the handshake
 * and can only map it for reading (the seals of the token file). It holds struct infer_status_page
 * of client.h, guarded by its sequence lock.
 *
 * What stands in the page is seen by everybody who may connect: no text of a request belongs there.
 *
 * Threads: status_page_write() by one thread, the engine's; the rest when no other call runs. */
#ifndef INFERD_PROTO_STATUS_PAGE_H
#define INFERD_PROTO_STATUS_PAGE_H

#include "inferd/client.h"

struct status_page;

/* Makes, maps and seals it; the page is all zero. Negative errno. */
int status_page_new(struct status_page **ret);
/* Unmaps and closes; the clients' own mappings stay valid for them. NULL is allowed. */
void status_page_free(struct status_page *p);

/* Borrowed; peer_handshake() passes it on. */
int status_page_fd(const struct status_page *p);

/* Shows a new page to all readers. Copies sizeof(struct infer_page) bytes, allocates nothing, waits
 * for nobody. */
void status_page_write(struct status_page *p, const struct infer_page *page);

#endif
