/* siphash.c: SipHash-2-4 (see siphash.h).
 *
 * Four 64-bit words of state, set from the key and four constants (the ASCII of "somepseudorandomly
 * generatedbytes"). Each 8-byte little-endian word m of the message is taken in by
 * v3 ^= m, two rounds, v0 ^= m. The last word holds the bytes that are left and, in its top byte,
 * the message's length modulo 256. Then v2 ^= 0xff, four rounds, and the xor of the four words.
 *
 * No state, no allocation, no table: any thread, and a time that depends on the length alone. */
#include "base/siphash.h"

#include <endian.h>
#include <string.h>

struct sip {
    uint64_t v0, v1, v2, v3;
};

static inline uint64_t turn(uint64_t x, unsigned bits)
{
    return x << bits | x >> (64 - bits);
}

static inline void sip_round(struct sip *s)
{
    s->v0 += s->v1;
    s->v2 += s->v3;
    s->v1 = turn(s->v1, 13) ^ s->v0;
    s->v3 = turn(s->v3, 16) ^ s->v2;
    s->v0 = turn(s->v0, 32);
    s->v2 += s->v1;
    s->v0 += s->v3;
    s->v1 = turn(s->v1, 17) ^ s->v2;
    s->v3 = turn(s->v3, 21) ^ s->v0;
    s->v2 = turn(s->v2, 32);
}

static inline void sip_word(struct sip *s, uint64_t m)
{
    s->v3 ^= m;
    sip_round(s);
    sip_round(s);
    s->v0 ^= m;
}

static inline uint64_t load_word(const uint8_t *bytes)
{
    uint64_t m;
    memcpy(&m, bytes, sizeof m);
    return le64toh(m);
}

uint64_t siphash(const uint8_t key[SIPHASH_KEY_BYTES], const void *message, size_t bytes)
{
    const uint8_t *at = message;
    uint64_t k0 = load_word(key), k1 = load_word(key + 8);
    struct sip s = {k0 ^ UINT64_C(0x736f6d6570736575), k1 ^ UINT64_C(0x646f72616e646f6d),
                    k0 ^ UINT64_C(0x6c7967656e657261), k1 ^ UINT64_C(0x7465646279746573)};
    uint64_t last = (uint64_t)bytes << 56;
    size_t n_words = bytes / 8;

    for (size_t i = 0; i < n_words; i++)
        sip_word(&s, load_word(at + 8 * i));
    for (size_t i = 0; i < bytes % 8; i++)
        last |= (uint64_t)at[8 * n_words + i] << (8 * i);
    sip_word(&s, last);
    s.v2 ^= 0xff;
    for (int i = 0; i < 4; i++)
        sip_round(&s);
    return s.v0 ^ s.v1 ^ s.v2 ^ s.v3;
}
