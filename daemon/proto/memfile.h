/* memfile.h: memory files that are handed to clients: sealed, so that no client can make one of
 * them shrink under a mapping (SIGBUS) or, where it is not to write, write it.
 *
 * Threads: any; no state. */
#ifndef INFERD_PROTO_MEMFILE_H
#define INFERD_PROTO_MEMFILE_H

#include <stddef.h>

/* A seal of memfile_map(): nobody but the present mapping can write. A read-only descriptor alone
 * would protect nothing, it could be reopened through /proc. */
#define MEMFILE_FUTURE_WRITE 0x0010

/* A descriptor of an unsealed file of so many zeroes, closed on exec; or a negative errno. */
int memfile_new(const char *name, size_t bytes);

/* Maps all of it, populated, then seals it against shrinking, growing, further seals, and what
 * `seals` says. Negative errno: nothing is mapped, *ret is untouched. */
int memfile_map(int fd, size_t bytes, int protection, int seals, void **ret);

#endif
