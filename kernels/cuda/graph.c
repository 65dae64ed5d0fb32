/* graph.c: steps captured and replayed.
 *
 * A step of one sequence is some nine launches a layer, each of a few microseconds; launched one by
 * one, the processor would be slower than the device. So the launches of a step are captured once
 * per bucket and replayed with one call. Everything that differs between steps of a bucket stands
 * in the step's numbers, at places that do not move (batch.c).
 *
 * The first step of a bucket pays for its capture, one to two milliseconds and some memory of the
 * runtime's own: the one thing that a step allocates, bounded by CUDA_GRAPHS, and not for long, as
 * there are few buckets. The least recently used leaves when the table is full. Capture is of this
 * thread's calls alone: loading goes on beside it. A step that the runtime does not capture (it may
 * load a kernel's code only when it is first launched) is launched, and captured the next time. */
#include "cuda/model.h"

static bool is_key(const struct cuda_graph *g, const struct cuda_bucket *key)
{
    return g->exec && g->key.rows == key->rows && g->key.pieces == key->pieces &&
           g->key.merges == key->merges && g->key.outputs == key->outputs &&
           g->key.chained == key->chained && g->key.turns == key->turns &&
           g->key.streams == key->streams;
}

/* The step's place in the table, or one that it may take. */
static struct cuda_graph *find(struct infer_backend_model *m, const struct cuda_bucket *key)
{
    struct cuda_graph *oldest = &m->graphs[0];
    for (uint32_t i = 0; i < CUDA_GRAPHS; i++) {
        struct cuda_graph *g = &m->graphs[i];
        if (is_key(g, key))
            return g;
        if (oldest->exec && (!g->exec || g->used < oldest->used))
            oldest = g;
    }
    return oldest;
}

static void forget(struct cuda_graph *g)
{
    if (g->exec)
        cudaGraphExecDestroy(g->exec);
    *g = (struct cuda_graph){0};
}

static cudaError_t capture(struct infer_backend_model *m, const struct cuda_bucket *key,
                           struct cuda_graph *ret)
{
    cudaGraph_t graph = NULL;
    cudaGraphExec_t exec = NULL;
    cudaError_t error = cudaStreamBeginCapture(m->stream, cudaStreamCaptureModeThreadLocal);
    if (error != cudaSuccess)
        return error;
    cuda_profile_begin(m, true);
    error = cuda_step_launch(m, key, NULL);
    cudaError_t ended = cudaStreamEndCapture(m->stream, &graph); /* also after a failure */
    if (error == cudaSuccess)
        error = ended;
    if (error == cudaSuccess)
        error = cudaGraphInstantiate(&exec, graph, 0);
    if (graph)
        cudaGraphDestroy(graph);
    if (error == cudaSuccess)
        *ret = (struct cuda_graph){.key = *key, .exec = exec, .n_marks = cuda_profile_marks(m, 0)};
    return error;
}

cudaError_t cuda_graph_launch(struct infer_backend_model *m, const struct cuda_bucket *bucket)
{
    struct cuda_graph *g = find(m, bucket);
    if (!is_key(g, bucket)) {
        forget(g);
        cudaError_t error = capture(m, bucket, g);
        if (error != cudaSuccess)
            return error;
    }
    g->used = m->n_runs;
    cuda_profile_marks(m, g->n_marks);
    return cudaGraphLaunch(g->exec, m->stream);
}

bool cuda_graph_refused(struct infer_backend_model *m, cudaError_t error)
{
    switch (error) {
    case cudaErrorNotSupported:
    case cudaErrorStreamCaptureUnsupported:
    case cudaErrorStreamCaptureInvalidated:
    case cudaErrorStreamCaptureUnjoined:
    case cudaErrorStreamCaptureImplicit:
        cudaGetLastError();
        cuda_log(m->backend, INFER_LOG_WARNING, "cuda: a step was not captured, but launched: %s",
                 cudaGetErrorString(error));
        return true;
    default:
        return false;
    }
}

void cuda_graphs_free(struct infer_backend_model *m)
{
    for (uint32_t i = 0; m->graphs && i < CUDA_GRAPHS; i++)
        forget(&m->graphs[i]);
}
