/* threads.h: between the emulated kernels (emulated.h), the threads that run them (threads.c) and
 * the runtime interface that queues them (runtime.c). */
#ifndef INFERD_TESTS_CUDA_THREADS_H
#define INFERD_TESTS_CUDA_THREADS_H

#include <cuda_runtime_api.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define EMULATED_WARP  32u
#define EMULATED_WORDS 12u /* what a lane may hand over at once */

#define EMULATED_SHARED_MAX ((size_t)227 << 10) /* bytes of dynamic shared memory */

struct emulated_index {
    unsigned int x, y, z;
};

/* One launch: a function, a copy of its arguments, and where in the sources it was asked for. */
struct emulated_launch {
    void (*call)(const void *arguments);
    const void *kernel; /* its address, for attributes */
    const void *arguments;
    size_t arguments_bytes;
    struct emulated_index grid, block;
    uint32_t together; /* blocks, neighbours in x, that run at the same time */
    size_t shared_bytes;
    const char *text, *file; /* "kernel<8>, grid, ..." */
    int line;
};

/* What the running thread may ask: threadIdx, blockIdx, ... */
struct emulated_thread {
    struct emulated_index index, block;
    unsigned int lane, warp, rank; /* rank: of its block among these */
    unsigned char *shared;
};
extern struct emulated_thread *emulated_self;
extern struct emulated_index emulated_block_dim, emulated_grid_dim;

/* Runs every block of a launch to its end. One at a time: the caller holds a lock. */
void emulated_run(const struct emulated_launch *launch);

/* Every thread of the block that has not ended. Returns the number of them whose predicate is not
 * 0; *ret_threads how many there are. */
unsigned int emulated_barrier(int predicate, unsigned int *ret_threads);

/* n threads of the block, at its barrier `id`. */
void emulated_meet(unsigned int id, unsigned int n);

/* Lets other threads run; a kernel in which all threads do nothing else hangs. */
void emulated_yield(void);

/* All lanes of the warp hand over `words` and see what all handed over: slots[lane][word], valid
 * until the lane's next exchange. `combine`, when not NULL, runs once, when the last has come, on
 * those slots. `what` names the operation; all lanes must mean the same. */
typedef uint32_t emulated_slots[EMULATED_WARP][EMULATED_WORDS];
typedef void (*emulated_combine)(emulated_slots *slots);
emulated_slots *emulated_exchange(const char *what, uint32_t mask, const void *words,
                                  unsigned int n_words, emulated_combine combine);

/* Asynchronous copies to shared memory: made when they are waited for; commit ends a group, of
 * which wait leaves the youngest `n_left` under way. */
void emulated_copy(void *to, const void *from, unsigned int bytes);
void emulated_copies_commit(void);
void emulated_copies_wait(unsigned int n_left);

/* cuda_wait() was called by this thread. */
void emulated_waited(void);
/* Says what is wrong with the running kernel, and where, and aborts. */
void emulated_fail(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));

/* runtime.c: puts a launch into a stream. */
cudaError_t emulated_enqueue(const struct emulated_launch *launch, cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
