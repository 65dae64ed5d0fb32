/* peer.h: the handshake on a new connection.
 *
 * Threads: the event thread. The socket is non-blocking and SOCK_SEQPACKET, so a hello is one
 * message and a welcome is one message. */
#ifndef INFERD_PROTO_PEER_H
#define INFERD_PROTO_PEER_H

#include "proto/session.h"

/* The kernel's word on who connected. Negative errno. */
int peer_identify(int socket_fd, struct peer *ret);

/* Checks a hello, makes the session and sends the welcome with the descriptors.
 * 0: *ret is the session, owned by the caller. Negative: the connection is to be closed; a welcome
 * that carries the code and a sentence has been sent where the hello was readable.
 * refuse: 0, or an INFER_E_ code to refuse with (SESSIONS_FULL, SHUTDOWN).
 * status_fd: the status file's, borrowed, for all sessions the same; not looked at on a refusal. */
int peer_handshake(int socket_fd, const struct peer *peer, const void *hello, size_t bytes,
                   uint32_t session_id, int refuse, int status_fd, struct session **ret);

#endif
