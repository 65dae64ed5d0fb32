/* conversations.h: the table of what answers left behind, to be continued.
 *
 * A conversation has the id of the request that made it and belongs to a uid. It is busy while a
 * request has it, else idle. Nobody but its uid learns that it exists: every search looks at every
 * entry, and says the same of an unknown id, of another uid's and of one that was idle too long.
 *
 * Bounds. When a uid has user_max of them, a new one takes the place of the one he used longest
 * ago; when the table is full, that of the uid with the most. Busy ones never go.
 *
 * What is kept (`past`, and what was `saved` of it) is the caller's; the table gives it back
 * through release().
 *
 * Threads: one, the engine's. Memory: everything is allocated by conversations_new(). */
#ifndef INFERD_CONVERSATIONS_H
#define INFERD_CONVERSATIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct conversations;

struct conversation {
    uint64_t id; /* 0: the entry is free */
    uint32_t uid;
    uint32_t model; /* the caller's */
    bool busy;
    void *past; /* NULL: its first answer is not there yet */
    void
        *saved; /* the caller's, set beside the past; taken from a busy one by setting it to NULL */
    size_t bytes;
    uint64_t used_us; /* when it became idle */
};

struct conversations_config {
    uint32_t max, user_max;
    uint64_t idle_us;
    void *ctx;
    void (*release)(void *ctx, void *past, void *saved);
};

/* -ENOMEM. */
int conversations_new(const struct conversations_config *config, struct conversations **ret);
/* Releases all that is kept. NULL is allowed. */
void conversations_free(struct conversations *c);
void conversations_set_idle(struct conversations *c, uint64_t idle_us);

/* A new one, busy and without a past. -EBUSY: it had to take another's place and all that could go
 * are busy. */
int conversations_add(struct conversations *c, uint64_t id, uint32_t uid, uint64_t now_us,
                      struct conversation **ret);
/* Makes an idle one busy. -ENOENT; -EBUSY: it is already. */
int conversations_take(struct conversations *c, uint64_t id, uint32_t uid, uint64_t now_us,
                       struct conversation **ret);
/* A busy one gets a new past, which may be the one it has; without any it goes. */
void conversations_put(struct conversations *c, struct conversation *one, void *past, size_t bytes,
                       uint64_t now_us);
/* -ENOENT, -EBUSY as above. */
int conversations_forget(struct conversations *c, uint64_t id, uint32_t uid, uint64_t now_us);

/* Those that were idle for too long go. */
void conversations_expire(struct conversations *c, uint64_t now_us);
typedef bool conversations_match(const void *ctx, const struct conversation *one);
/* Of the idle ones that match (NULL: all), the one that was used longest ago; NULL: there is none.
 * It stays idle; what is saved of it may be set. */
struct conversation *conversations_oldest(struct conversations *c, conversations_match *matches,
                                          const void *ctx);
/* It goes. False: there is none. */
bool conversations_forget_oldest(struct conversations *c, conversations_match *matches,
                                 const void *ctx);

uint64_t conversations_bytes(const struct conversations *c);
uint32_t conversations_count(const struct conversations *c);

#endif
