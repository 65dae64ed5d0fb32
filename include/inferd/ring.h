/* ring.h: a single-producer, single-consumer byte ring over memory shared with someone untrusted.
 *
 * The data area holds `bytes` bytes, a power of two. The producer's and the consumer's words are
 * free-running 32-bit counts of bytes, masked only on use, so that full and empty differ without
 * a spare byte: used = tail - head, and a tail or head that makes used > bytes is impossible and
 * means that the peer is broken or hostile. Records start 8-byte aligned and may wrap around the
 * end of the area; put and get copy in two parts then.
 *
 * Each word has one writer, and the two words live in files of different writers (see abi.h), so
 * neither side reads back what the other could have changed: it keeps its own word in private
 * memory and only ever stores the shared copy.
 *
 * Ordering. Four edges, each named where it is used:
 *   A  producer's tail store (release)  -> consumer's tail load (acquire): the record's bytes.
 *   B  consumer's head store (release)  -> producer's head load (acquire): the bytes are free.
 *   C  sleeper: store waiting, fence, load tail/head.  waker: store tail/head, fence, load waiting.
 *      The two full fences make it impossible that both miss the other (Dekker).
 *
 * The only atomics that cross the trust boundary are in this file, but for the sequence lock of the
 * status page (client.h), which a client can only read. */
#ifndef INFERD_RING_H
#define INFERD_RING_H

#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

/* One load of a shared word into private memory; the compiler may not repeat it. */
static inline uint32_t infer_ring_load(const uint32_t *shared)
{
    return __atomic_load_n(shared, __ATOMIC_ACQUIRE); /* edges A, B */
}

static inline void infer_ring_store(uint32_t *shared, uint32_t value)
{
    __atomic_store_n(shared, value, __ATOMIC_RELEASE); /* edges A, B */
}

static inline void infer_ring_fence(void)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST); /* edge C */
}

static inline void infer_ring_pause(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Bytes in the ring, or UINT32_MAX when the two words are impossible together. */
static inline uint32_t infer_ring_used(uint32_t bytes, uint32_t head, uint32_t tail)
{
    uint32_t used = tail - head;
    return used <= bytes ? used : UINT32_MAX;
}

/* What a record of n bytes takes in the ring. */
static inline uint32_t infer_ring_padded(uint32_t n)
{
    return (n + 7u) & ~7u;
}

/* Copy n bytes (n <= bytes) to or from the ring at count `at`. The caller has checked the room. */
static inline void infer_ring_put(uint8_t *data, uint32_t bytes, uint32_t at, const void *from,
                                  uint32_t n)
{
    uint32_t offset = at & (bytes - 1u);
    uint32_t first = bytes - offset < n ? bytes - offset : n;
    memcpy(data + offset, from, first);
    if (n > first)
        memcpy(data, (const uint8_t *)from + first, n - first);
}

static inline void infer_ring_get(const uint8_t *data, uint32_t bytes, uint32_t at, void *to,
                                  uint32_t n)
{
    uint32_t offset = at & (bytes - 1u);
    uint32_t first = bytes - offset < n ? bytes - offset : n;
    memcpy(to, data + offset, first);
    if (n > first)
        memcpy((uint8_t *)to + first, data, n - first);
}

#ifdef __cplusplus
}
#endif

#endif
