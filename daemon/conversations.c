/* conversations.c: see conversations.h.
 *
 * An array that is searched from end to end: a thousand entries take about a microsecond, once per
 * request that names a conversation, and the time says nothing about what stands in it.
 *
 * Invariants: no two entries in use have the same id; an idle entry has a past; `bytes` is the sum
 * over all entries. */
#include "conversations.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

struct conversations {
    struct conversations_config config;
    struct conversation *table;
    uint64_t bytes;
    uint32_t n;
};

int conversations_new(const struct conversations_config *config, struct conversations **ret)
{
    assert(config->max > 0 && config->user_max > 0);
    struct conversations *c = calloc(1, sizeof *c);
    if (c == NULL)
        return -ENOMEM;
    c->config = *config;
    c->table = calloc(config->max, sizeof *c->table);
    if (c->table == NULL) {
        free(c);
        return -ENOMEM;
    }
    *ret = c;
    return 0;
}

static void set_past(struct conversations *c, struct conversation *one, void *past, size_t bytes)
{
    void *old = one->past, *saved = one->saved;
    c->bytes += bytes - one->bytes;
    one->past = past;
    one->bytes = bytes;
    if (old == NULL || old == past)
        return;
    one->saved = NULL;
    c->config.release(c->config.ctx, old, saved);
}

static void clear(struct conversations *c, struct conversation *one)
{
    set_past(c, one, NULL, 0);
    *one = (struct conversation){0};
    c->n--;
}

void conversations_free(struct conversations *c)
{
    if (c == NULL)
        return;
    for (uint32_t i = 0; i < c->config.max; i++)
        if (c->table[i].id != 0)
            clear(c, &c->table[i]);
    assert(c->bytes == 0 && c->n == 0);
    free(c->table);
    free(c);
}

void conversations_set_idle(struct conversations *c, uint64_t idle_us)
{
    c->config.idle_us = idle_us;
}

static bool is_over(const struct conversations *c, const struct conversation *one, uint64_t now_us)
{
    return !one->busy && now_us > one->used_us && now_us - one->used_us > c->config.idle_us;
}

/* Looks at all entries, whatever it finds. */
static int find(const struct conversations *c, uint64_t id, uint32_t uid, uint64_t now_us,
                struct conversation **ret)
{
    struct conversation *found = NULL;
    for (uint32_t i = 0; i < c->config.max; i++) {
        struct conversation *one = &c->table[i];
        if ((one->id == id) & (one->uid == uid) & (id != 0))
            found = one;
    }
    if (found == NULL || is_over(c, found, now_us))
        return -ENOENT;
    if (found->busy)
        return -EBUSY;
    *ret = found;
    return 0;
}

/* ---- room ------------------------------------------------------------------------------------ */

static uint32_t count_of(const struct conversations *c, uint32_t uid)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < c->config.max; i++)
        n += c->table[i].id != 0 && c->table[i].uid == uid;
    return n;
}

/* The uid with the most conversations of which one at least could go. */
static bool find_richest(const struct conversations *c, uint32_t *ret)
{
    uint32_t most = 0;
    for (uint32_t i = 0; i < c->config.max; i++) {
        const struct conversation *one = &c->table[i];
        if (one->id == 0 || one->busy)
            continue;
        uint32_t n = count_of(c, one->uid);
        if (n > most) {
            most = n;
            *ret = one->uid;
        }
    }
    return most > 0;
}

static bool forget_oldest_of(struct conversations *c, uint32_t uid)
{
    struct conversation *oldest = NULL;
    for (uint32_t i = 0; i < c->config.max; i++) {
        struct conversation *one = &c->table[i];
        if (one->id == 0 || one->busy || one->uid != uid)
            continue;
        if (oldest == NULL || one->used_us < oldest->used_us)
            oldest = one;
    }
    if (oldest != NULL)
        clear(c, oldest);
    return oldest != NULL;
}

static int make_room(struct conversations *c, uint32_t uid, uint64_t now_us)
{
    uint32_t richest;
    conversations_expire(c, now_us);
    if (count_of(c, uid) >= c->config.user_max && !forget_oldest_of(c, uid))
        return -EBUSY;
    if (c->n < c->config.max)
        return 0;
    return find_richest(c, &richest) && forget_oldest_of(c, richest) ? 0 : -EBUSY;
}

/* ---- the calls ------------------------------------------------------------------------------- */

int conversations_add(struct conversations *c, uint64_t id, uint32_t uid, uint64_t now_us,
                      struct conversation **ret)
{
    assert(id != 0);
    int rc = make_room(c, uid, now_us);
    if (rc < 0)
        return rc;
    uint32_t i = 0;
    while (c->table[i].id != 0)
        i++;
    assert(i < c->config.max);
    c->table[i] = (struct conversation){.id = id, .uid = uid, .busy = true};
    c->n++;
    *ret = &c->table[i];
    return 0;
}

int conversations_take(struct conversations *c, uint64_t id, uint32_t uid, uint64_t now_us,
                       struct conversation **ret)
{
    struct conversation *one;
    int rc = find(c, id, uid, now_us, &one);
    if (rc < 0)
        return rc;
    one->busy = true;
    *ret = one;
    return 0;
}

void conversations_put(struct conversations *c, struct conversation *one, void *past, size_t bytes,
                       uint64_t now_us)
{
    assert(one->id != 0 && one->busy);
    if (past == NULL) {
        clear(c, one);
        return;
    }
    set_past(c, one, past, bytes);
    one->busy = false;
    one->used_us = now_us;
}

int conversations_forget(struct conversations *c, uint64_t id, uint32_t uid, uint64_t now_us)
{
    struct conversation *one;
    int rc = find(c, id, uid, now_us, &one);
    if (rc == 0)
        clear(c, one);
    return rc;
}

void conversations_expire(struct conversations *c, uint64_t now_us)
{
    for (uint32_t i = 0; i < c->config.max; i++)
        if (c->table[i].id != 0 && is_over(c, &c->table[i], now_us))
            clear(c, &c->table[i]);
}

struct conversation *conversations_oldest(struct conversations *c, conversations_match *matches,
                                          const void *ctx)
{
    struct conversation *oldest = NULL;
    for (uint32_t i = 0; i < c->config.max; i++) {
        struct conversation *one = &c->table[i];
        if (one->id == 0 || one->busy || (matches != NULL && !matches(ctx, one)))
            continue;
        if (oldest == NULL || one->used_us < oldest->used_us)
            oldest = one;
    }
    return oldest;
}

bool conversations_forget_oldest(struct conversations *c, conversations_match *matches,
                                 const void *ctx)
{
    struct conversation *oldest = conversations_oldest(c, matches, ctx);
    if (oldest != NULL)
        clear(c, oldest);
    return oldest != NULL;
}

uint64_t conversations_bytes(const struct conversations *c)
{
    return c->bytes;
}

uint32_t conversations_count(const struct conversations *c)
{
    return c->n;
}
