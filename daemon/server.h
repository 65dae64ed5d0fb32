/* server.h: the listening socket, the handshakes, and the end of connections: everything that the
 * event thread does for clients. Tokens never pass here. */
#ifndef INFERD_SERVER_H
#define INFERD_SERVER_H

#include "base/report.h"
#include "dispatch.h"
#include "io/loop.h"

struct server;

/* Binds and listens, mode 0600; a socket that nobody answers on is replaced. SOCKET_BUSY,
 * SOCKET_PATH. */
int server_new(struct loop *loop, const char *socket_path, struct server **ret,
               struct report *report);
/* Begins to accept. */
int server_start(struct server *s, struct dispatch *d, const struct status_page *page);
/* Stops accepting; connections go on. */
void server_stop(struct server *s);
/* After dispatch_stop(): closes what is left and removes the socket. */
void server_free(struct server *s);

/* dispatch_config's callbacks. */
void server_on_close(void *connection);
void server_on_free(void *connection);

#endif
