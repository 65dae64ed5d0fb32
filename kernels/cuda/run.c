/* run.c: steps submitted and collected.
 *
 *   submit    the batch written to numbers in pinned memory | numbers copied to the device | x |
 *             the step (step.c) | x | tokens and log-probabilities copied to pinned memory | event
 *   collect   waits for the event; results from pinned memory to the batch
 *
 * Everything between the bars goes on one stream and is done in order, so what is on the device is
 * there once: the copy of a step's numbers waits until all of the step before has read its own.
 * Only what the host writes and reads is there twice (struct cuda_run), so that it can write a step
 * while the one before it is under way and its results are not read yet. A token that the step
 * before draws stands in the numbers as the output that draws it, and EMBED finds it where that
 * output's result lies on the device. With that the device goes from step to step without the host,
 * which takes from one step's end to the next one's launches 5 us for one sequence and 60 to 80 us
 * for 56 (through the daemon, on an H200: tokens taken, handed out, planned and written).
 *
 * A profile has one set of events, so with one a step is waited for before the next is submitted.
 * Nothing is allocated here. One thread at a time per model. */
#include "cuda/model.h"

#include "ref/walk.h"

#include <errno.h>
#include <string.h>

/* x has one place, and is the caller's before and after the step. */
static uint32_t max_under_way(const struct infer_backend_model *m)
{
    return ref_plan_takes_x(m->plan) || ref_plan_gives_x(m->plan) ? 1 : CUDA_RUNS;
}

/* Everything of a step that its batch was written for. */
static cudaError_t launch(struct infer_backend_model *m, struct cuda_run *run,
                          const struct infer_batch *batch, size_t bytes)
{
    cudaError_t error =
        cudaMemcpyAsync(m->scratch.numbers, m->numbers, bytes, cudaMemcpyHostToDevice, m->stream);
    if (error == cudaSuccess)
        error = cuda_stream_up(m, &run->bucket, batch);
    if (error == cudaSuccess)
        error = cuda_chain_after(m);
    if (error == cudaSuccess)
        error = cuda_step_start(m, &run->bucket, batch);
    if (error == cudaSuccess)
        error = cuda_chain_done(m);
    else
        cuda_chain_clean(m);
    if (error == cudaSuccess)
        error = cuda_stream_down(m, batch->n_rows);
    if (error == cudaSuccess && batch->n_outputs)
        error = cudaMemcpyAsync(run->drawn, m->scratch.drawn, batch->n_outputs * sizeof *run->drawn,
                                cudaMemcpyDeviceToHost, m->stream);
    return error;
}

/* The times of a step that is done, once. */
static void take_profile(struct infer_backend_model *m, struct cuda_run *run)
{
    if (run->n_rows && !run->profiled)
        cuda_profile_end(m, run->n_rows);
    run->profiled = true;
}

/* Before the events of a profile are set anew. */
static int wait_for_profile(struct infer_backend_model *m)
{
    if (!m->profile || !m->n_under_way)
        return 0;
    int r = cuda_check(m->backend, cudaStreamSynchronize(m->stream), "profiling a step");
    if (r >= 0)
        take_profile(m, m->last);
    return r;
}

int cuda_submit(struct infer_backend_model *m, struct infer_batch *batch)
{
    struct cuda_run *run = &m->runs[(m->first_run + m->n_under_way) % CUDA_RUNS];
    int r = cuda_enter(m->backend);
    if (r >= 0 && m->n_under_way == max_under_way(m))
        r = cuda_fail(-EINVAL, "%u steps of the model are under way already", m->n_under_way);
    if (r >= 0)
        r = cuda_batch_check(m, batch);
    if (r >= 0)
        r = wait_for_profile(m);
    if (r < 0)
        return r;
    cudaError_t error = cudaSuccess;
    m->numbers = run->numbers;
    run->n_rows = batch->n_rows;
    run->n_outputs = batch->n_outputs;
    run->profiled = false;
    if (batch->n_rows) {
        size_t bytes;
        m->n_runs++;
        cuda_batch_write(m, batch, &run->bucket, &bytes);
        error = launch(m, run, batch, bytes);
    }
    if (error == cudaSuccess)
        error = cudaEventRecord(run->done, m->stream);
    m->last = error == cudaSuccess ? run : NULL;
    if (error == cudaSuccess) {
        m->n_under_way++;
        return 0;
    }
    cudaStreamSynchronize(m->stream); /* what was launched is done before the numbers change */
    return cuda_check(m->backend, error, "starting a step");
}

static void read_results(const struct cuda_run *run, struct infer_batch *batch)
{
    for (uint32_t i = 0; i < batch->n_outputs; i++) {
        struct infer_batch_output *o = &batch->outputs[i];
        const struct cuda_drawn *from = &run->drawn[i];
        uint32_t n_top = o->n_top < INFER_TOP_MAX ? o->n_top : INFER_TOP_MAX;
        if (o->sample)
            o->token = from->token;
        if (o->sample && (n_top || o->target >= 0))
            o->logprob = from->logprob;
        if (o->target >= 0)
            o->target_logprob = from->target_logprob;
        memcpy(o->top, from->top, n_top * sizeof *o->top);
    }
}

int cuda_collect(struct infer_backend_model *m, struct infer_batch *batch)
{
    struct cuda_run *run = &m->runs[m->first_run];
    if (!m->n_under_way)
        return cuda_fail(-EINVAL, "no step of the model is under way");
    m->first_run = (m->first_run + 1) % CUDA_RUNS;
    m->n_under_way--;
    int r = cuda_enter(m->backend);
    if (r >= 0)
        r = cuda_check(m->backend, cudaEventSynchronize(run->done), "running a step");
    if (r < 0) {
        m->last = NULL;
        return r;
    }
    if (!run->n_rows)
        return 0;
    take_profile(m, run);
    read_results(run, batch);
    cuda_stream_read(m, batch);
    return 0;
}

int cuda_run(struct infer_backend_model *m, struct infer_batch *batch)
{
    int r = cuda_submit(m, batch);
    return r < 0 ? r : cuda_collect(m, batch);
}
