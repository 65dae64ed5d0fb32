/* swap.h: the store of saved states, of sequences that gave their pages to others.
 *
 * A state is taken into host memory first, up to memory_bytes in all. Where that is full and there
 * is a file, it passes through memory on its way there: the caller fills it, has it written by a
 * thread that may wait for a disk, and gets it back the same way.
 *
 *     swap_take --> HERE --swap_start--> GOING --swap_end--> AWAY --swap_start--> COMING --swap_end
 *                                                                                           |
 *                     HERE, where swap_memory() is what was saved  <------------------------+
 *
 * While GOING a state is still in memory and can be used; a write that fails leaves it HERE, and
 * the file is not written any more. A read that fails leaves it LOST: its sequence is computed
 * again.
 *
 * The file has no name (O_TMPFILE), so it is gone when the daemon is. It is as long as it ever had
 * to be, at most file_bytes.
 *
 * Threads: one, the engine's, but for swap_transfer(), which one other thread may run for one state
 * that is GOING or COMING. */
#ifndef INFERD_SWAP_H
#define INFERD_SWAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* In memory beyond memory_bytes, on the way to the file or back. */
#define SWAP_STAGING_BYTES (256ull << 20)

struct swap;
struct swap_state;

enum swap_place { SWAP_HERE, SWAP_GOING, SWAP_AWAY, SWAP_COMING, SWAP_LOST };

/* directory: NULL or file_bytes 0: no file. 0 with *ret_file_error = 0, or the negative errno why
 * there is no file (the store works without); -ENOMEM. */
int swap_new(uint64_t memory_bytes, uint64_t file_bytes, const char *directory, struct swap **ret,
             int *ret_file_error);
/* Every state was given back and no transfer is under way. NULL is allowed. */
void swap_free(struct swap *s);
/* Another bound; what is in memory stays there. */
void swap_set_memory(struct swap *s, uint64_t memory_bytes);

/* Room for a state of so many bytes (more than 0), HERE; NULL: there is none. */
struct swap_state *swap_take(struct swap *s, size_t bytes);
/* Could it take a state of so many bytes if it held no other? */
bool swap_could_take(const struct swap *s, size_t bytes);
/* It is no longer needed. One that is being transferred goes when that has ended. */
void swap_give(struct swap *s, struct swap_state *state);

enum swap_place swap_place(const struct swap_state *state);
size_t swap_bytes(const struct swap_state *state);
/* 64-byte aligned; of one that is HERE or GOING. */
void *swap_memory(const struct swap_state *state);

/* A state HERE was filled: must it go to the file? An AWAY one is wanted: can it come? True: it is
 * GOING or COMING, and swap_transfer() and then swap_end() must follow. False: it stays HERE, or
 * AWAY because there is no memory for it at the moment. */
bool swap_start(struct swap *s, struct swap_state *state);
/* The transfer itself; waits for the disk. */
void swap_transfer(struct swap_state *state);
/* It has ended. False: the state was given back meanwhile and is gone. *ret_error (may be NULL): 0
 * or the negative errno of the disk. */
bool swap_end(struct swap *s, struct swap_state *state, int *ret_error);

/* What the caller wants to know who has this state; NULL from swap_give() on. */
void swap_set_owner(struct swap_state *state, void *owner);
void *swap_owner(const struct swap_state *state);

uint64_t swap_memory_bytes(const struct swap *s);
uint64_t swap_file_bytes(const struct swap *s);

#endif
