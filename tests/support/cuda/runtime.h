/* runtime.h: between the two halves of the emulated runtime interface: runtime.c, which has the
 * queues, and device.c, which has the device, its memory and what is copied. */
#ifndef INFERD_TESTS_CUDA_QUEUES_H
#define INFERD_TESTS_CUDA_QUEUES_H

#include "threads.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

#define EMULATED_SHARED_DEFAULT ((size_t)48 << 10)

/* One piece of work. */
enum op_kind { OP_LAUNCH, OP_COPY, OP_FILL, OP_RECORD, OP_WAIT, OP_CALL, OP_GRAPH };

struct op {
    enum op_kind kind;
    unsigned int refs;
    struct emulated_launch launch;
    void *to;
    const void *from;
    void *staged; /* a copy of pageable memory, made when it was asked for */
    size_t to_pitch, from_pitch, width, height;
    int value;
    struct CUevent_st *event;
    struct queue *queue; /* OP_WAIT: until this queue has come to seq */
    uint64_t seq;
    struct CUgraph_st *graph;
    cudaHostFn_t function;
    void *data;
};

struct queued {
    struct queued *next;
    struct op *op;
    uint64_t seq;
};

struct queue {
    struct queue *next; /* all queues, in use or not */
    struct queued *first, **last;
    uint64_t asked, done; /* sequence numbers */
    bool used, running;
};

struct CUstream_st {
    struct queue *queue;
    struct CUgraph_st *capture;
    enum cudaStreamCaptureMode mode;
    bool origin; /* the stream whose capture it is; others joined by an event */
    pthread_t capturer;
    struct CUstream_st *next;
};

struct CUevent_st {
    struct queue *queue; /* NULL: never recorded */
    uint64_t seq;
    struct CUgraph_st *capture;
    double time_ms;
    bool timed;
};

struct CUgraph_st {
    struct op **ops;
    size_t n_ops, room;
    unsigned int refs;
};

struct CUgraphExec_st {
    struct CUgraph_st *graph;
};

extern cudaError_t emulated_lost; /* after which nothing works */

/* A number of INFERD_CUDA_EMULATED. */
uint64_t emulated_setting(const char *name, uint64_t otherwise);
/* Bytes of shared memory that a block can have. */
size_t emulated_shared(void);

/* What every call does: takes the lock, false when the device is lost; gives the lock back and
 * keeps the error for cudaGetLastError(). emulated_result(): the latter alone. */
bool emulated_enter(void);
cudaError_t emulated_leave(cudaError_t error);
cudaError_t emulated_result(cudaError_t error);
cudaError_t emulated_check_device(int device);

/* Everything from here on with the lock held. */
struct CUstream_st *emulated_stream_of(cudaStream_t stream);
struct op *emulated_op_new(enum op_kind kind);
void emulated_op_unref(struct op *op);
void emulated_put(struct CUstream_st *stream, struct op *op); /* takes the op */
/* Does what the queue holds up to and with seq. */
void emulated_drain(struct queue *queue, uint64_t seq);
void emulated_drain_all(void);
/* Whether a stream is being captured in a way that forbids this thread to wait or to allocate. */
bool emulated_capture_forbids(void);

static inline void *emulated_must(void *memory)
{
    if (!memory) {
        fprintf(stderr, "emulated runtime: out of memory\n");
        abort();
    }
    return memory;
}

#endif
