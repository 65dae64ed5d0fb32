/* swap.c: see swap.h.
 *
 * Owns: the memory of every state, the file and the list of its extents, in order of offset; a new
 * extent goes into the first gap that holds it. There are at most as many states as sequences.
 *
 * Invariants: `memory` is the sum over the states whose memory is there and which are counted as
 * residents, `staging` over the others that have memory; neither passes its bound. An extent is
 * held from the decision that a state goes to the file until the state is gone or back for good. */
#include "swap.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#define ALIGNMENT 64u

struct swap_state {
    struct swap *store;
    enum swap_place place;
    void *memory;
    size_t bytes, room; /* room: bytes rounded up to the alignment */
    void *owner;
    bool resident; /* counted in `memory`, not in `staging` */
    bool given;    /* while it was transferred */
    bool in_file;  /* it has an extent */
    int error;     /* of the transfer */
    uint64_t offset;
    struct swap_state *next, *previous; /* of the extents */
};

struct swap {
    uint64_t memory_max, file_max;
    uint64_t memory, staging, file;
    int fd; /* -1: no file */
    struct swap_state *extents;
    uint32_t n_states;
};

int swap_new(uint64_t memory_bytes, uint64_t file_bytes, const char *directory, struct swap **ret,
             int *ret_file_error)
{
    struct swap *s = calloc(1, sizeof *s);
    if (s == NULL)
        return -ENOMEM;
    int error = 0;
    s->memory_max = memory_bytes;
    s->file_max = file_bytes;
    s->fd = -1;
    if (directory != NULL && file_bytes > 0) {
        s->fd = open(directory, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
        error = s->fd < 0 ? -errno : 0;
    }
    *ret = s;
    *ret_file_error = error;
    return 0;
}

void swap_free(struct swap *s)
{
    if (s == NULL)
        return;
    assert(s->n_states == 0 && s->memory == 0 && s->staging == 0 && s->extents == NULL);
    if (s->fd >= 0)
        close(s->fd);
    free(s);
}

/* ---- memory ---------------------------------------------------------------------------------- */

static bool fits(uint64_t used, uint64_t more, uint64_t max)
{
    return used <= max && more <= max - used;
}

static bool take_memory(struct swap *s, struct swap_state *state, bool resident)
{
    uint64_t *used = resident ? &s->memory : &s->staging;
    if (!fits(*used, state->room, resident ? s->memory_max : SWAP_STAGING_BYTES))
        return false;
    state->memory = aligned_alloc(ALIGNMENT, state->room);
    if (state->memory == NULL)
        return false;
    *used += state->room;
    state->resident = resident;
    return true;
}

static void give_memory(struct swap *s, struct swap_state *state)
{
    if (state->memory == NULL)
        return;
    *(state->resident ? &s->memory : &s->staging) -= state->room;
    free(state->memory);
    state->memory = NULL;
}

/* ---- the file -------------------------------------------------------------------------------- */

static bool take_extent(struct swap *s, struct swap_state *state)
{
    struct swap_state *before = NULL, *after = s->extents;
    uint64_t at = 0;
    while (after != NULL && after->offset - at < state->room) {
        at = after->offset + after->room;
        before = after;
        after = after->next;
    }
    if (s->fd < 0 || !fits(at, state->room, s->file_max))
        return false;
    state->offset = at;
    state->next = after;
    state->previous = before;
    if (before != NULL)
        before->next = state;
    else
        s->extents = state;
    if (after != NULL)
        after->previous = state;
    state->in_file = true;
    s->file += state->room;
    return true;
}

static void give_extent(struct swap *s, struct swap_state *state)
{
    if (!state->in_file)
        return;
    if (state->previous != NULL)
        state->previous->next = state->next;
    else
        s->extents = state->next;
    if (state->next != NULL)
        state->next->previous = state->previous;
    state->next = state->previous = NULL;
    state->in_file = false;
    s->file -= state->room;
}

/* ---- a state's life -------------------------------------------------------------------------- */

struct swap_state *swap_take(struct swap *s, size_t bytes)
{
    assert(bytes > 0);
    if (bytes > SIZE_MAX / 2)
        return NULL;
    struct swap_state *state = calloc(1, sizeof *state);
    if (state == NULL)
        return NULL;
    state->store = s;
    state->bytes = bytes;
    state->room = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    state->place = SWAP_HERE;
    if (!take_memory(s, state, true) && !(take_extent(s, state) && take_memory(s, state, false))) {
        give_extent(s, state);
        free(state);
        return NULL;
    }
    s->n_states++;
    return state;
}

bool swap_could_take(const struct swap *s, size_t bytes)
{
    uint64_t most = s->fd < 0                     ? s->memory_max
                    : s->file_max > s->memory_max ? s->file_max
                                                  : s->memory_max;
    return bytes <= SIZE_MAX / 2 && (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT <= most;
}

static void free_state(struct swap *s, struct swap_state *state)
{
    give_memory(s, state);
    give_extent(s, state);
    free(state);
    s->n_states--;
}

void swap_give(struct swap *s, struct swap_state *state)
{
    state->owner = NULL;
    state->given = true;
    if (state->place != SWAP_GOING && state->place != SWAP_COMING)
        free_state(s, state);
}

enum swap_place swap_place(const struct swap_state *state)
{
    return state->place;
}

size_t swap_bytes(const struct swap_state *state)
{
    return state->bytes;
}

void *swap_memory(const struct swap_state *state)
{
    assert(state->place == SWAP_HERE || state->place == SWAP_GOING);
    return state->memory;
}

bool swap_start(struct swap *s, struct swap_state *state)
{
    if (state->place == SWAP_HERE && state->in_file && s->fd >= 0) {
        state->place = SWAP_GOING;
        return true;
    }
    if (state->place != SWAP_AWAY)
        return false;
    if (!take_memory(s, state, true) && !take_memory(s, state, false))
        return false;
    state->place = SWAP_COMING;
    return true;
}

static int write_all(int fd, const char *from, size_t bytes, uint64_t offset)
{
    while (bytes > 0) {
        ssize_t n = pwrite(fd, from, bytes, (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -EIO;
        from += n;
        bytes -= (size_t)n;
        offset += (uint64_t)n;
    }
    return 0;
}

static int read_all(int fd, char *to, size_t bytes, uint64_t offset)
{
    while (bytes > 0) {
        ssize_t n = pread(fd, to, bytes, (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -EIO; /* the file ends: it was written by us, so it is broken */
        to += n;
        bytes -= (size_t)n;
        offset += (uint64_t)n;
    }
    return 0;
}

void swap_transfer(struct swap_state *state)
{
    assert(state->place == SWAP_GOING || state->place == SWAP_COMING);
    if (state->place == SWAP_GOING)
        state->error = write_all(state->store->fd, state->memory, state->bytes, state->offset);
    else
        state->error = read_all(state->store->fd, state->memory, state->bytes, state->offset);
}

bool swap_end(struct swap *s, struct swap_state *state, int *ret_error)
{
    bool going = state->place == SWAP_GOING;
    assert(going || state->place == SWAP_COMING);
    if (ret_error != NULL)
        *ret_error = state->error;
    if (state->given) {
        free_state(s, state);
        return false;
    }
    if (going && state->error == 0) {
        give_memory(s, state);
        state->place = SWAP_AWAY;
    } else if (going || state->error == 0) {
        give_extent(s, state); /* it stays in memory, whatever the file is worth */
        state->place = SWAP_HERE;
    } else {
        give_memory(s, state);
        give_extent(s, state);
        state->place = SWAP_LOST;
    }
    if (going && state->error < 0)
        s->file_max = 0; /* nothing new goes there */
    return true;
}

void swap_set_owner(struct swap_state *state, void *owner)
{
    state->owner = owner;
}

void *swap_owner(const struct swap_state *state)
{
    return state->owner;
}

void swap_set_memory(struct swap *s, uint64_t memory_bytes)
{
    s->memory_max = memory_bytes;
}

uint64_t swap_memory_bytes(const struct swap *s)
{
    return s->memory + s->staging;
}

uint64_t swap_file_bytes(const struct swap *s)
{
    return s->file;
}
