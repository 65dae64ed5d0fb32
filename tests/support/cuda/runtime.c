/* runtime.c: CUDA's runtime interface on the processor: streams, events, graphs, launches.
 *
 * Owns queues of work. What is asynchronous there is late here: a copy, fill or kernel is put into
 * its stream's queue and happens when somebody waits for it, so that host code which forgot to wait
 * finds what was there before. A stream made with cudaStreamNonBlocking has a queue of its own; all
 * others share the default stream's. Events and captures name a place in a queue. A captured graph
 * is the list of what was put into it, in that order.
 *
 * What a real device refuses is refused: grids of nothing, more shared memory than allowed,
 * synchronous calls while a stream is being captured.
 *
 * INFERD_CUDA_EMULATED="devices=0,memory=268435456,sms=4,fail=100" changes the machine: how many
 * devices, bytes of memory, multiprocessors; capability=75: 7.5, with 64 KiB of shared memory a
 * block; fail=N: the Nth kernel from now on hits an illegal address, after which every call fails,
 * as on a lost device; hang=N: it does not end. Where INFERD_CUDA_EMULATED_ARMED names a file,
 * kernels count for these two once it is there.
 *
 * Threads: any; one lock around everything, kernels included. */
#include "runtime.h"

#include <string.h>
#include <time.h>
#include <unistd.h>

struct attribute {
    struct attribute *next;
    const void *kernel;
    size_t shared_bytes;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct queue default_queue = {.last = &default_queue.first, .used = true};
static struct queue *queues = &default_queue;
static struct CUstream_st default_stream = {.queue = &default_queue};
static struct CUstream_st *streams;
static struct attribute *attributes;
static uint64_t n_launched; /* since there was a "fail" or "hang" */
cudaError_t emulated_lost;
static __thread cudaError_t last_error;

/* ---- helpers --------------------------------------------------------------------------------- */

uint64_t emulated_setting(const char *name, uint64_t otherwise)
{
    const char *text = getenv("INFERD_CUDA_EMULATED"), *found;
    size_t length = strlen(name);
    for (found = text; found && (found = strstr(found, name)); found += length) {
        if ((found == text || found[-1] == ',') && found[length] == '=')
            return strtoull(found + length + 1, NULL, 10);
    }
    return otherwise;
}

cudaError_t emulated_result(cudaError_t error)
{
    if (!error && emulated_lost)
        error = emulated_lost;
    if (error && error != cudaErrorNotReady)
        last_error = error;
    return error;
}

bool emulated_enter(void)
{
    pthread_mutex_lock(&lock);
    return emulated_lost == cudaSuccess;
}
cudaError_t emulated_leave(cudaError_t error)
{
    error = emulated_result(error);
    pthread_mutex_unlock(&lock);
    return error;
}

struct CUstream_st *emulated_stream_of(cudaStream_t stream)
{
    return stream == NULL || stream == cudaStreamLegacy || stream == cudaStreamPerThread
               ? &default_stream
               : stream;
}

static double now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

cudaError_t cudaPeekAtLastError(void)
{
    return last_error;
}
cudaError_t cudaGetLastError(void)
{
    cudaError_t error = last_error;
    last_error = emulated_lost;
    return error;
}

/* ---- work ------------------------------------------------------------------------------------ */

static void graph_unref(struct CUgraph_st *graph);

void emulated_op_unref(struct op *op)
{
    if (--op->refs)
        return;
    if (op->kind == OP_GRAPH)
        graph_unref(op->graph);
    free((void *)(uintptr_t)op->launch.arguments);
    free(op->staged);
    free(op);
}

static void graph_unref(struct CUgraph_st *graph)
{
    size_t i;
    if (--graph->refs)
        return;
    for (i = 0; i < graph->n_ops; i++)
        emulated_op_unref(graph->ops[i]);
    free(graph->ops);
    free(graph);
}

static bool is_armed(void)
{
    const char *file = getenv("INFERD_CUDA_EMULATED_ARMED");
    return !file || access(file, F_OK) == 0;
}

/* Whether it is to run. */
static bool may_launch(void)
{
    uint64_t fail = emulated_setting("fail", 0), hang = emulated_setting("hang", 0);
    n_launched = (fail || hang) && is_armed() ? n_launched + 1 : 0;
    if (hang && n_launched == hang) {
        pthread_mutex_unlock(&lock); /* others see a device that is at work */
        for (;;)
            pause();
    }
    if (fail && n_launched == fail)
        emulated_lost = cudaErrorIllegalAddress;
    return !emulated_lost;
}

static void op_run(struct op *op)
{
    size_t i;
    if (emulated_lost)
        return;
    switch (op->kind) {
    case OP_LAUNCH:
        if (may_launch())
            emulated_run(&op->launch);
        break;
    case OP_COPY:
        for (i = 0; i < op->height; i++)
            memmove((char *)op->to + i * op->to_pitch, (const char *)op->from + i * op->from_pitch,
                    op->width);
        break;
    case OP_FILL:
        memset(op->to, op->value, op->width);
        break;
    case OP_RECORD:
        op->event->time_ms = now_ms();
        break;
    case OP_WAIT:
        emulated_drain(op->queue, op->seq);
        break;
    case OP_CALL:
        op->function(op->data);
        break;
    case OP_GRAPH:
        for (i = 0; i < op->graph->n_ops; i++)
            op_run(op->graph->ops[i]);
        break;
    }
}

void emulated_drain(struct queue *queue, uint64_t seq)
{
    if (seq <= queue->done)
        return;
    if (queue->running) {
        fprintf(stderr, "emulated runtime: streams wait for each other in a circle\n");
        abort();
    }
    queue->running = true;
    while (queue->first && queue->first->seq <= seq) {
        struct queued *q = queue->first;
        op_run(q->op);
        queue->first = q->next;
        if (!queue->first)
            queue->last = &queue->first;
        queue->done = q->seq;
        emulated_op_unref(q->op);
        free(q);
    }
    queue->running = false;
}

void emulated_drain_all(void)
{
    struct queue *q;
    for (q = queues; q; q = q->next)
        emulated_drain(q, UINT64_MAX);
}

struct op *emulated_op_new(enum op_kind kind)
{
    struct op *op = emulated_must(calloc(1, sizeof *op));
    op->kind = kind;
    op->refs = 1;
    return op;
}

static void graph_add(struct CUgraph_st *graph, struct op *op)
{
    if (graph->n_ops == graph->room) {
        graph->room = graph->room ? 2 * graph->room : 64;
        graph->ops = emulated_must(realloc(graph->ops, graph->room * sizeof(struct op *)));
    }
    graph->ops[graph->n_ops++] = op;
}

void emulated_put(struct CUstream_st *stream, struct op *op)
{
    struct queue *queue = stream->queue;
    struct queued *q;
    if (stream->capture) {
        graph_add(stream->capture, op);
        return;
    }
    q = emulated_must(calloc(1, sizeof *q));
    q->op = op;
    q->seq = ++queue->asked;
    *queue->last = q;
    queue->last = &q->next;
}

bool emulated_capture_forbids(void)
{
    struct CUstream_st *s;
    for (s = streams; s; s = s->next) {
        if (s->capture && s->origin &&
            (s->mode == cudaStreamCaptureModeGlobal ||
             (s->mode == cudaStreamCaptureModeThreadLocal &&
              pthread_equal(s->capturer, pthread_self()))))
            return true;
    }
    return false;
}

/* ---- kernels --------------------------------------------------------------------------------- */

static size_t shared_allowed(const void *kernel)
{
    const struct attribute *a;
    for (a = attributes; a; a = a->next) {
        if (a->kernel == kernel)
            return a->shared_bytes;
    }
    return EMULATED_SHARED_DEFAULT;
}

cudaError_t emulated_enqueue(const struct emulated_launch *launch, cudaStream_t stream)
{
    const struct emulated_index *g = &launch->grid, *b = &launch->block;
    struct op *op;
    void *arguments;
    if (!emulated_enter())
        return emulated_leave(emulated_lost);
    if (!g->x || !g->y || !g->z || g->x > 0x7fffffff || g->y > 65535 || g->z > 65535 || !b->x ||
        !b->y || !b->z || b->x > 1024 || b->y > 1024 || b->z > 64 ||
        (uint64_t)b->x * b->y * b->z > 1024 || !launch->together || launch->together > 8 ||
        g->x % launch->together || (uint64_t)b->x * b->y * b->z * launch->together > 4096)
        return emulated_leave(cudaErrorInvalidConfiguration);
    if (launch->shared_bytes > shared_allowed(launch->kernel) ||
        launch->shared_bytes > emulated_shared())
        return emulated_leave(cudaErrorInvalidValue);
    op = emulated_op_new(OP_LAUNCH);
    arguments = emulated_must(malloc(launch->arguments_bytes));
    memcpy(arguments, launch->arguments, launch->arguments_bytes);
    op->launch = *launch;
    op->launch.arguments = arguments;
    emulated_put(emulated_stream_of(stream), op);
    return emulated_leave(cudaSuccess);
}
cudaError_t cudaFuncSetAttribute(const void *function, enum cudaFuncAttribute attr, int value)
{
    struct attribute *a;
    if (attr != cudaFuncAttributeMaxDynamicSharedMemorySize)
        return emulated_result(cudaSuccess);
    if (value < 0 || (size_t)value > emulated_shared())
        return emulated_result(cudaErrorInvalidValue);
    emulated_enter();
    for (a = attributes; a && a->kernel != function; a = a->next)
        ;
    if (!a) {
        a = emulated_must(calloc(1, sizeof *a));
        *a = (struct attribute){.next = attributes, .kernel = function};
        attributes = a;
    }
    a->shared_bytes = (size_t)value;
    return emulated_leave(cudaSuccess);
}
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *ret, const void *function)
{
    memset(ret, 0, sizeof *ret);
    ret->maxThreadsPerBlock = 1024;
    ret->numRegs = 64;
    ret->ptxVersion = ret->binaryVersion = 90;
    return emulated_result(cudaSuccess);
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *ret, const void *function,
                                                          int block_threads, size_t shared_bytes)
{
    int by_threads = 2048 / (block_threads > 0 ? block_threads : 1);
    int by_shared = (int)((EMULATED_SHARED_MAX + 1024) / (shared_bytes + 1024));
    *ret = by_threads < by_shared ? by_threads : by_shared;
    *ret = *ret > 32 ? 32 : *ret;
    return emulated_result(cudaSuccess);
}
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *data)
{
    struct op *op;
    if (!emulated_enter())
        return emulated_leave(emulated_lost);
    op = emulated_op_new(OP_CALL);
    op->function = function;
    op->data = data;
    emulated_put(emulated_stream_of(stream), op);
    return emulated_leave(cudaSuccess);
}

/* ---- streams --------------------------------------------------------------------------------- */

static struct queue *take_queue(void)
{
    struct queue *q;
    for (q = queues; q; q = q->next) {
        if (!q->used)
            break;
    }
    if (!q) {
        q = emulated_must(calloc(1, sizeof *q));
        q->last = &q->first;
        q->next = queues;
        queues = q;
    }
    q->used = true;
    return q;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *ret, unsigned int flags)
{
    struct CUstream_st *s;
    cudaError_t error = emulated_check_device(0);
    if (!emulated_enter() || error)
        return emulated_leave(error);
    s = emulated_must(calloc(1, sizeof *s));
    s->queue = flags & cudaStreamNonBlocking ? take_queue() : &default_queue;
    s->next = streams;
    streams = s;
    *ret = s;
    return emulated_leave(cudaSuccess);
}
cudaError_t cudaStreamCreate(cudaStream_t *ret)
{
    return cudaStreamCreateWithFlags(ret, 0);
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *ret, unsigned int flags, int priority)
{
    return cudaStreamCreateWithFlags(ret, flags);
}
cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    struct CUstream_st **link;
    emulated_enter();
    for (link = &streams; *link && *link != stream; link = &(*link)->next)
        ;
    if (!*link)
        return emulated_leave(cudaErrorInvalidResourceHandle);
    emulated_drain(stream->queue, UINT64_MAX);
    *link = stream->next;
    if (stream->queue != &default_queue)
        stream->queue->used = false;
    free(stream);
    return emulated_leave(cudaSuccess);
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    struct CUstream_st *s = emulated_stream_of(stream);
    if (!emulated_enter())
        return emulated_leave(emulated_lost);
    if (s->capture || (s == &default_stream && emulated_capture_forbids()))
        return emulated_leave(cudaErrorStreamCaptureUnsupported);
    emulated_drain(s->queue, s->queue->asked);
    return emulated_leave(cudaSuccess);
}
/* Not ready the first time, so that callers' patience is tried; but it will be. */
cudaError_t cudaStreamQuery(cudaStream_t stream)
{
    struct CUstream_st *s = emulated_stream_of(stream);
    bool ready;
    if (!emulated_enter())
        return emulated_leave(emulated_lost);
    if (s->capture)
        return emulated_leave(cudaErrorStreamCaptureUnsupported);
    ready = s->queue->done == s->queue->asked;
    emulated_drain(s->queue, s->queue->asked);
    return emulated_leave(ready ? cudaSuccess : cudaErrorNotReady);
}

/* ---- events ---------------------------------------------------------------------------------- */

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *ret, unsigned int flags)
{
    cudaError_t error = emulated_check_device(0);
    if (!emulated_enter() || error)
        return emulated_leave(error);
    *ret = emulated_must(calloc(1, sizeof **ret));
    (*ret)->timed = !(flags & cudaEventDisableTiming);
    return emulated_leave(cudaSuccess);
}
cudaError_t cudaEventCreate(cudaEvent_t *ret)
{
    return cudaEventCreateWithFlags(ret, 0);
}
cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    emulated_enter();
    if (event->queue)
        emulated_drain(event->queue, event->seq);
    free(event);
    return emulated_leave(cudaSuccess);
}
/* In a capture it marks a place in the graph, for other streams to join, or, when external, is a
 * node: the event is recorded whenever the graph runs. */
cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned int flags)
{
    struct CUstream_st *s = emulated_stream_of(stream);
    bool external = flags & cudaEventRecordExternal;
    struct op *op;
    if (!emulated_enter())
        return emulated_leave(emulated_lost);
    if (external && !s->capture)
        return emulated_leave(cudaErrorInvalidValue);
    event->capture = external ? NULL : s->capture;
    if (!s->capture || external) {
        op = emulated_op_new(OP_RECORD);
        op->event = event;
        emulated_put(s, op);
    }
    if (!s->capture) {
        event->queue = s->queue;
        event->seq = s->queue->asked;
    }
    return emulated_leave(cudaSuccess);
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    return cudaEventRecordWithFlags(event, stream, 0);
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned int flags)
{
    struct CUstream_st *s = emulated_stream_of(stream);
    struct op *op;
    if (!emulated_enter())
        return emulated_leave(emulated_lost);
    if (event->capture) { /* the stream joins the capture; the order of calls is the graph's */
        if (s->capture && s->capture != event->capture)
            return emulated_leave(cudaErrorInvalidValue);
        s->capture = event->capture;
    } else if (s->capture) {
        return emulated_leave(cudaErrorStreamCaptureUnsupported);
    } else if (event->queue && event->queue != s->queue) {
        op = emulated_op_new(OP_WAIT);
        op->queue = event->queue;
        op->seq = event->seq;
        emulated_put(s, op);
    }
    return emulated_leave(cudaSuccess);
}
cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    if (!emulated_enter())
        return emulated_leave(emulated_lost);
    if (event->capture)
        return emulated_leave(cudaErrorCapturedEvent);
    if (event->queue)
        emulated_drain(event->queue, event->seq);
    return emulated_leave(cudaSuccess);
}
cudaError_t cudaEventQuery(cudaEvent_t event)
{
    bool ready;
    if (!emulated_enter())
        return emulated_leave(emulated_lost);
    if (event->capture)
        return emulated_leave(cudaErrorCapturedEvent);
    ready = !event->queue || event->queue->done >= event->seq;
    if (!ready)
        emulated_drain(event->queue, event->seq);
    return emulated_leave(ready ? cudaSuccess : cudaErrorNotReady);
}
cudaError_t cudaEventElapsedTime(float *ret_ms, cudaEvent_t from, cudaEvent_t to)
{
    if (!emulated_enter())
        return emulated_leave(emulated_lost);
    if (!from->timed || !to->timed || !from->queue || !to->queue)
        return emulated_leave(cudaErrorInvalidResourceHandle);
    if (from->queue->done < from->seq || to->queue->done < to->seq)
        return emulated_leave(cudaErrorNotReady);
    *ret_ms = (float)(to->time_ms - from->time_ms);
    return emulated_leave(cudaSuccess);
}

/* ---- graphs ---------------------------------------------------------------------------------- */

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode)
{
    if (!emulated_enter())
        return emulated_leave(emulated_lost);
    if (emulated_stream_of(stream) == &default_stream)
        return emulated_leave(cudaErrorStreamCaptureUnsupported);
    if (stream->capture)
        return emulated_leave(cudaErrorInvalidValue);
    stream->capture = emulated_must(calloc(1, sizeof *stream->capture));
    stream->capture->refs = 1;
    stream->mode = mode;
    stream->origin = true;
    stream->capturer = pthread_self();
    return emulated_leave(cudaSuccess);
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *ret)
{
    struct CUgraph_st *graph;
    struct CUstream_st *s;
    *ret = NULL;
    if (!emulated_enter())
        return emulated_leave(emulated_lost);
    graph = emulated_stream_of(stream)->capture;
    if (!graph || !stream->origin)
        return emulated_leave(cudaErrorInvalidValue);
    if (stream->mode != cudaStreamCaptureModeRelaxed &&
        !pthread_equal(stream->capturer, pthread_self()))
        return emulated_leave(cudaErrorStreamCaptureWrongThread);
    for (s = streams; s; s = s->next) {
        if (s->capture == graph)
            s->capture = NULL;
    }
    stream->origin = false;
    *ret = graph;
    return emulated_leave(cudaSuccess);
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *ret)
{
    emulated_enter();
    *ret = emulated_stream_of(stream)->capture ? cudaStreamCaptureStatusActive
                                               : cudaStreamCaptureStatusNone;
    return emulated_leave(cudaSuccess);
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *ret, cudaGraph_t graph, unsigned long long flags)
{
    if (!emulated_enter())
        return emulated_leave(emulated_lost);
    *ret = emulated_must(calloc(1, sizeof **ret));
    (*ret)->graph = graph;
    graph->refs++;
    return emulated_leave(cudaSuccess);
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *ret, cudaGraph_t graph,
                                          unsigned long long flags)
{
    return cudaGraphInstantiate(ret, graph, flags);
}
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *n_nodes)
{
    if (nodes)
        return emulated_result(cudaErrorNotSupported);
    *n_nodes = graph->n_ops;
    return emulated_result(cudaSuccess);
}
cudaError_t cudaGraphUpload(cudaGraphExec_t exec, cudaStream_t stream)
{
    return emulated_result(cudaSuccess);
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream)
{
    struct CUstream_st *s = emulated_stream_of(stream);
    struct op *op;
    size_t i;
    if (!emulated_enter())
        return emulated_leave(emulated_lost);
    if (s->capture) /* a graph within a graph: nobody needs it */
        return emulated_leave(cudaErrorNotSupported);
    op = emulated_op_new(OP_GRAPH);
    op->graph = exec->graph;
    exec->graph->refs++;
    emulated_put(s, op);
    for (i = 0; i < exec->graph->n_ops; i++) {
        if (exec->graph->ops[i]->kind == OP_RECORD) {
            exec->graph->ops[i]->event->queue = s->queue;
            exec->graph->ops[i]->event->seq = s->queue->asked;
        }
    }
    return emulated_leave(cudaSuccess);
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec)
{
    emulated_enter();
    graph_unref(exec->graph);
    free(exec);
    return emulated_leave(cudaSuccess);
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    emulated_enter();
    graph_unref(graph);
    return emulated_leave(cudaSuccess);
}

/* When the program ends, or the backend that this is linked to is unloaded. What was allocated
 * through this interface is the caller's to free. */
static __attribute__((destructor)) void clean_up(void)
{
    struct attribute *a;
    struct queue *q, **link = &queues;
    while ((a = attributes)) {
        attributes = a->next;
        free(a);
    }
    while ((q = *link)) {
        if (q == &default_queue || q->first) {
            link = &q->next;
        } else {
            *link = q->next;
            free(q);
        }
    }
}
