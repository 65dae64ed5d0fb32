/* siphash.h: SipHash-2-4, a keyed 64-bit hash of short messages (Aumasson, Bernstein: SipHash: a
 * fast short-input PRF, 2012). Whoever lacks the key can neither predict a value nor build two
 * messages of the same value, so a table that is keyed by it cannot be filled with collisions and
 * a value tells nothing about its message. Not for what outlives the key. Any thread. */
#ifndef INFERD_BASE_SIPHASH_H
#define INFERD_BASE_SIPHASH_H

#include <stddef.h>
#include <stdint.h>

#define SIPHASH_KEY_BYTES 16

/* The same value on machines of either byte order, as long as the message's bytes are the same. */
uint64_t siphash(const uint8_t key[SIPHASH_KEY_BYTES], const void *message, size_t bytes);

#endif
