/* peer.h: the handshake on a new connection, and the welcome on one that a former daemon had.
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

/* What a successor must know of a connection beside what the socket tells. */
struct peer_memory {
    uint32_t request_ring_bytes, token_ring_bytes; /* as granted */
    char client[INFER_CLIENT_NAME_MAX];
};

/* The second welcome (abi.h), over a socket that a former daemon made its handshake on: a new
 * session. Sizes are granted anew, the name is made printable. peer: from peer_identify(). Negative
 * errno: nothing was sent that the client could use; close the socket. */
int peer_welcome_again(int socket_fd, const struct peer *peer, const struct peer_memory *memory,
                       uint32_t session_id, int status_fd, struct session **ret);

/* The memory as a word for the name of a stored descriptor, and back: letters, digits and '-', at
 * most PEER_MEMORY_TEXT bytes with the NUL. False: the text is not one of ours. */
#define PEER_MEMORY_TEXT (8u + 2u * INFER_CLIENT_NAME_MAX)
void peer_memory_print(const struct session *s, char ret[PEER_MEMORY_TEXT]);
bool peer_memory_parse(const char *text, struct peer_memory *ret);

#endif
