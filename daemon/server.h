/* server.h: the handshakes, the end of connections, and their way over a restart: everything that
 * the event thread does for clients. Tokens never pass here. */
#ifndef INFERD_SERVER_H
#define INFERD_SERVER_H

#include "base/report.h"
#include "dispatch.h"
#include "io/loop.h"
#include "listener.h"
#include "notify.h"
#include "proto/peer.h"

struct server;

/* Listens (listener.h), and takes what *a has: sockets, and clients of a former daemon. notify is
 * borrowed; it may be NULL. SOCKET_BUSY, SOCKET_PATH. */
int server_new(struct loop *loop, const char *socket_path, struct activation *a,
               struct notify *notify, struct server **ret, struct report *report);
/* Who connects to the managing socket, as root or as the daemon's own user, is given away: fd,
 * non-blocking, is the callee's. Before server_start(); without it managers are turned away. */
void server_on_manage(struct server *s,
                      void (*accepted)(void *ctx, int fd, const struct peer *peer), void *ctx);
/* Welcomes the clients of a former daemon, and begins to accept. */
int server_start(struct server *s, struct dispatch *d, const struct status_page *page);
/* From now on who connects is told SHUTDOWN, or, at a socket that outlives us, waits for the next
 * daemon. */
void server_drain(struct server *s);
/* Stops accepting; connections go on. */
void server_stop(struct server *s);
/* After dispatch_stop(): closes what is left and removes the sockets that are ours. Clients whose
 * sockets are kept stay connected to whoever keeps them. */
void server_free(struct server *s);

/* Where it listens, for a person. */
const char *server_place(const struct server *s);

/* dispatch_config's callbacks. */
void server_on_close(void *connection);
void server_on_free(void *connection);

#endif
