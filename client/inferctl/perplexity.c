/* perplexity.c: `inferctl perplexity FILE`: how well a model predicts a text.
 *
 * The figure is that of llama.cpp's tool without a stride, so that the two can be compared. The
 * text is tokenized whole (with BOS where the model's file asks for it) and cut into windows of
 * `ctx` tokens; what is left over is not used. Each window is scored by itself, its first token
 * replaced by BOS where the file asks for one, and only the tokens after the first half count,
 * which all have at least ctx/2 tokens before them: window positions ctx/2 + 1 .. ctx - 1.
 *
 *     PPL = exp(mean nll)      error = PPL * sqrt((mean(nll^2) - mean(nll)^2) / (count - 1))
 *
 * Threads: two workers, each with a connection of its own, so that the daemon always has the next
 * window at hand. They share struct job under its lock. Sums are taken per window and added in the
 * windows' order, so that the result does not depend on who was faster. */
#include "ctl.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define PERPLEXITY_WORKERS 2
#define PERPLEXITY_CTX_MIN 8

struct window_sum {
    double nll, nll2;
    bool scored;
};

struct job {
    struct ctl *ctl;
    const int32_t *tokens;
    uint32_t ctx;
    int32_t bos; /* -1: leave the window's first token */
    size_t n_windows;
    double start;
    pthread_mutex_t lock;
    /* under lock */
    size_t next, n_done;
    struct window_sum *sums;
    int error; /* first failure, negative */
    char detail[INFER_DETAIL_MAX];
};

struct worker {
    struct job *job;
    struct infer_conn *conn;
    pthread_t thread;
};

struct estimate {
    double perplexity, error;
    size_t count;
};

static struct estimate estimate(const struct job *job)
{
    struct estimate e = {(double)NAN, (double)NAN, 0};
    double nll = 0, nll2 = 0, variance;
    size_t per_window = job->ctx - job->ctx / 2 - 1;

    for (size_t i = 0; i < job->n_windows; i++) {
        if (!job->sums[i].scored)
            continue;
        nll += job->sums[i].nll;
        nll2 += job->sums[i].nll2;
        e.count += per_window;
    }
    if (e.count == 0)
        return e;
    nll /= (double)e.count;
    nll2 /= (double)e.count;
    variance = nll2 - nll * nll;
    e.perplexity = exp(nll);
    if (e.count > 1)
        e.error = e.perplexity * sqrt((variance > 0 ? variance : 0) / (double)(e.count - 1));
    return e;
}

static int score_window(struct worker *worker, int32_t *window, size_t index,
                        struct window_sum *ret_sum)
{
    const struct job *job = worker->job;
    struct window_sum sum = {0, 0, true};
    struct infer_request request;
    struct infer_scores scores;
    int r;

    memcpy(window, job->tokens + index * job->ctx, job->ctx * sizeof *window);
    if (job->bos >= 0)
        window[0] = job->bos;
    infer_request_default(&request);
    request.model = job->ctl->options.model;
    request.tokens = window;
    request.n_tokens = job->ctx;
    r = infer_score(worker->conn, &request, 0, &scores);
    if (r < 0)
        return r;
    if (scores.n != job->ctx) {
        infer_scores_free(&scores);
        return -INFER_E_PROTOCOL;
    }
    for (uint32_t i = job->ctx / 2 + 1; i < job->ctx; i++) {
        double nll = -(double)scores.logprobs[i];
        sum.nll += nll;
        sum.nll2 += nll * nll;
    }
    infer_scores_free(&scores);
    *ret_sum = sum;
    return 0;
}

/* With the lock held. */
static void show_progress(const struct job *job)
{
    double elapsed = ctl_seconds() - job->start;
    double left = elapsed / (double)job->n_done * (double)(job->n_windows - job->n_done);

    term_progress((double)job->n_done / (double)job->n_windows,
                  "%zu/%zu windows, PPL %.4f, %.0f s left", job->n_done, job->n_windows,
                  estimate(job).perplexity, left);
}

static void *work(void *arg)
{
    struct worker *worker = arg;
    struct job *job = worker->job;
    int32_t *window = ctl_alloc(job->ctx * sizeof *window);

    pthread_mutex_lock(&job->lock);
    while (job->next < job->n_windows && job->error == 0) {
        size_t index = job->next++;
        struct window_sum sum;
        int r;

        pthread_mutex_unlock(&job->lock);
        r = score_window(worker, window, index, &sum);
        pthread_mutex_lock(&job->lock);
        if (r < 0) {
            if (job->error == 0) {
                job->error = r;
                snprintf(job->detail, sizeof job->detail, "%s", infer_detail(worker->conn));
            }
            break;
        }
        job->sums[index] = sum;
        job->n_done++;
        show_progress(job);
    }
    pthread_mutex_unlock(&job->lock);
    free(window);
    return NULL;
}

/* The first worker uses the command's connection, the others their own; one is enough. */
static int run_workers(struct ctl *ctl, struct job *job)
{
    struct worker workers[PERPLEXITY_WORKERS];
    struct infer_connect_options options;
    size_t n = 0;

    memset(&options, 0, sizeof options);
    options.socket = ctl->options.socket;
    options.client_name = "inferctl";
    for (size_t i = 0; i < PERPLEXITY_WORKERS && i < job->n_windows; i++) {
        struct worker *worker = &workers[n];
        worker->job = job;
        worker->conn = ctl->conn;
        if (i > 0 && infer_connect(&options, &worker->conn) < 0)
            break;
        if (pthread_create(&worker->thread, NULL, work, worker) == 0)
            n++;
        else if (i > 0)
            infer_close(worker->conn);
    }
    for (size_t i = 0; i < n; i++) {
        pthread_join(workers[i].thread, NULL);
        if (workers[i].conn != ctl->conn)
            infer_close(workers[i].conn);
    }
    term_progress_clear();
    if (n == 0)
        return ctl_fail(INFER_E_OUT_OF_MEMORY, "no thread could be started");
    return job->error ? ctl_fail(job->error, job->detail) : 0;
}

static int print_result(struct ctl *ctl, const struct job *job, const char *model, size_t n_tokens)
{
    struct estimate e = estimate(job);
    double seconds = ctl_seconds() - job->start;
    double rate = seconds > 0 ? (double)job->n_windows * job->ctx / seconds : (double)NAN;

    if (ctl->options.json)
        return output_json(
            json_pack("{s:o, s:o, s:o, s:I, s:I, s:I, s:I, s:o, s:o}", "perplexity",
                      output_json_number(e.perplexity), "error", output_json_number(e.error),
                      "model", output_json_text(model, strlen(model)), "ctx", (json_int_t)job->ctx,
                      "windows", (json_int_t)job->n_windows, "tokens", (json_int_t)n_tokens,
                      "scored", (json_int_t)e.count, "seconds", output_json_number(seconds),
                      "tokens_per_second", output_json_number(rate)));
    printf("PPL = %.4f +/- %.4f\n", e.perplexity, e.error);
    if (!ctl->options.quiet)
        printf("%zu windows of %u tokens, %zu tokens scored, %.1f s, %.1f tokens/s\n",
               job->n_windows, job->ctx, e.count, seconds, rate);
    return ctl_finish_output(0);
}

static int measure(struct ctl *ctl, const struct infer_model *model, const int32_t *tokens,
                   size_t n_tokens)
{
    struct job job;
    int status;

    memset(&job, 0, sizeof job);
    job.ctl = ctl;
    job.tokens = tokens;
    job.ctx = ctl->options.ctx;
    job.bos = model->add_bos ? model->bos : -1;
    job.n_windows = n_tokens / job.ctx;
    if (ctl->options.max_windows && job.n_windows > ctl->options.max_windows)
        job.n_windows = ctl->options.max_windows;
    if (job.n_windows == 0)
        return ctl_error("the text has %zu tokens, fewer than one window of %u; take a longer "
                         "text or a smaller --ctx",
                         n_tokens, job.ctx);
    job.sums = ctl_alloc(job.n_windows * sizeof *job.sums);
    memset(job.sums, 0, job.n_windows * sizeof *job.sums);
    pthread_mutex_init(&job.lock, NULL);
    job.start = ctl_seconds();
    term_progress(0.0, "0/%zu windows", job.n_windows);
    status = run_workers(ctl, &job);
    if (!status)
        status = print_result(ctl, &job, model->name, n_tokens);
    pthread_mutex_destroy(&job.lock);
    free(job.sums);
    return status;
}

int perplexity_command(struct ctl *ctl)
{
    struct ctl_buffer text = {NULL, 0, 0};
    struct infer_model model;
    int32_t *tokens;
    size_t n_tokens;
    int r, status;

    if (ctl->n_operands != 1)
        return ctl_usage(ctl, "give one FILE ('-': standard input)");
    if (ctl->options.ctx < PERPLEXITY_CTX_MIN)
        return ctl_usage(ctl, "--ctx is %u; it must be at least %d", ctl->options.ctx,
                         PERPLEXITY_CTX_MIN);
    status = input_file(ctl->operands[0], &text);
    if (!status)
        status = ctl_connect(ctl);
    if (!status)
        status = ctl_loaded_model(ctl, &model);
    if (!status && text.n == 0)
        status = ctl_error("'%s' is empty", ctl->operands[0]);
    if (status) {
        buffer_done(&text);
        return status;
    }
    r = infer_tokenize(ctl->conn, ctl->options.model, text.bytes, text.n, model.add_bos != 0, 0,
                       &tokens, &n_tokens);
    buffer_done(&text);
    if (r < 0)
        return ctl_fail_conn(ctl, r);
    status = measure(ctl, &model, tokens, n_tokens);
    infer_free(tokens);
    return status;
}
