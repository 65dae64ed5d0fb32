/* bench.c: `inferctl bench`: how fast prompts are read and answers generated, as a program on this
 * machine sees it: from the call that submits to the event that arrives.
 *
 *   ppN   N prompt tokens over the time from submit to the first token of the answer
 *   tgN   N - 1 tokens over the time from the first to the last of an answer of N tokens
 *
 * Prompts are random token ids, others each time, so that no cached prefix helps. One run of each
 * comes first and is not counted; then the two alternate, so that a machine that slows down slows
 * both. The figure is the median; lowest and highest stand beside it. */
#include "ctl.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#define BENCH_REPEATS_MAX 1000
#define BENCH_TOKENS_MAX  (INFER_REQUEST_BYTES_MAX / 4u)

struct bench {
    struct ctl *ctl;
    struct infer_model model;
    uint64_t random;
    int32_t *prompt; /* max(prompt_tokens, 1) */
};

struct series {
    const char *kind; /* "pp" or "tg" */
    uint32_t tokens;  /* 0: not measured */
    double *samples;  /* tokens per second, one per repeat */
    double median, lowest, highest;
};

/* Marsaglia's xorshift64. */
static uint64_t draw(struct bench *bench)
{
    bench->random ^= bench->random << 13;
    bench->random ^= bench->random >> 7;
    bench->random ^= bench->random << 17;
    return bench->random;
}

/* One request; times of its submission, first and last token. */
struct run {
    double submitted, first, last;
    uint32_t n;
};

static int run_request(struct bench *bench, uint32_t n_prompt, uint32_t n_tokens,
                       struct run *ret_run)
{
    struct ctl *ctl = bench->ctl;
    struct infer_request request;
    struct infer_event event;
    uint32_t id;
    int r;

    infer_request_default(&request);
    for (uint32_t i = 0; i < n_prompt; i++)
        bench->prompt[i] =
            (int32_t)(draw(bench) % (bench->model.n_vocab ? bench->model.n_vocab : 1));
    request.model = ctl->options.model;
    request.tokens = bench->prompt;
    request.n_tokens = n_prompt;
    request.sampling.temperature = 0;
    request.sampling.max_tokens = n_tokens;
    request.sampling.ignore_eos = 1;
    memset(ret_run, 0, sizeof *ret_run);
    ret_run->submitted = ctl_seconds();
    r = infer_submit(ctl->conn, &request, &id);
    while (r >= 0) {
        r = infer_next(ctl->conn, id, -1, &event);
        if (r < 0)
            break;
        if (r == 1 && event.kind == INFER_EVENT_TOKEN && event.has_token) {
            ret_run->last = ctl_seconds();
            if (ret_run->n++ == 0)
                ret_run->first = ret_run->last;
        }
        if (r == 1 && event.kind == INFER_EVENT_DONE) {
            if (event.error)
                return ctl_fail(event.error, event.text);
            if (ret_run->n == n_tokens)
                return 0;
            return ctl_error("the answer ended after %u of %u tokens; serve a larger context",
                             ret_run->n, n_tokens);
        }
    }
    return ctl_fail_conn(ctl, r);
}

static int measure(struct bench *bench, struct series *series, uint32_t repeat, bool warm_up)
{
    bool prefill = series->kind[0] == 'p';
    struct run run;
    double seconds;
    int status;

    if (series->tokens == 0)
        return 0;
    status = run_request(bench, prefill ? series->tokens : 1, prefill ? 1 : series->tokens, &run);
    if (status || warm_up)
        return status;
    seconds = prefill ? run.first - run.submitted : run.last - run.first;
    if (seconds < 1e-9)
        seconds = 1e-9;
    series->samples[repeat] = (double)(prefill ? series->tokens : series->tokens - 1) / seconds;
    return 0;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static void sum_up(struct series *series, uint32_t n)
{
    double *sorted = ctl_alloc(n * sizeof *sorted);

    memcpy(sorted, series->samples, n * sizeof *sorted);
    qsort(sorted, n, sizeof *sorted, compare);
    series->lowest = sorted[0];
    series->highest = sorted[n - 1];
    series->median = n % 2 ? sorted[n / 2] : (sorted[n / 2 - 1] + sorted[n / 2]) / 2;
    free(sorted);
}

static json_t *series_json(const struct series *series, uint32_t n)
{
    json_t *samples = json_array();
    char name[32];

    for (uint32_t i = 0; i < n; i++)
        json_array_append_new(samples, output_json_number(series->samples[i]));
    snprintf(name, sizeof name, "%s%u", series->kind, series->tokens);
    return json_pack("{s:s, s:I, s:o, s:o, s:o, s:o}", "test", name, "tokens",
                     (json_int_t)series->tokens, "median", output_json_number(series->median),
                     "lowest", output_json_number(series->lowest), "highest",
                     output_json_number(series->highest), "samples", samples);
}

static int print_json(const struct bench *bench, const struct series *series, size_t n_series)
{
    const struct infer_model *m = &bench->model;
    uint32_t repeats = bench->ctl->options.repeats;
    json_t *results = json_array();

    for (size_t i = 0; i < n_series; i++)
        if (series[i].tokens)
            json_array_append_new(results, series_json(&series[i], repeats));
    return output_json(json_pack(
        "{s:o, s:o, s:o, s:I, s:s, s:o}", "model", output_json_text(m->name, strlen(m->name)),
        "description", output_json_text(m->description, strnlen(m->description, 64)), "backend",
        output_json_text(m->backend, strnlen(m->backend, 64)), "repeats", (json_int_t)repeats,
        "unit", "tokens/s", "results", results));
}

static int print_table(const struct bench *bench, const struct series *series, size_t n_series)
{
    const struct infer_model *m = &bench->model;

    term_write(stdout, m->name, strlen(m->name));
    fputs(" (", stdout);
    term_write(stdout, m->description, strnlen(m->description, sizeof m->description));
    fputs("), ", stdout);
    term_write(stdout, m->backend, strnlen(m->backend, sizeof m->backend));
    printf(", %u repeats, tokens/s\n", bench->ctl->options.repeats);
    printf("%s%-10s %10s %10s %10s%s\n", term_style(stdout, TERM_BOLD), "test", "median", "lowest",
           "highest", term_style(stdout, TERM_PLAIN));
    for (size_t i = 0; i < n_series; i++) {
        char name[32];
        if (series[i].tokens == 0)
            continue;
        snprintf(name, sizeof name, "%s%u", series[i].kind, series[i].tokens);
        printf("%-10s %10.1f %10.1f %10.1f\n", name, series[i].median, series[i].lowest,
               series[i].highest);
    }
    return ctl_finish_output(0);
}

static int run_all(struct bench *bench, struct series *series, size_t n_series)
{
    uint32_t repeats = bench->ctl->options.repeats;
    int status = 0;

    for (size_t i = 0; i < n_series && !status; i++)
        status = measure(bench, &series[i], 0, true);
    for (uint32_t repeat = 0; repeat < repeats && !status; repeat++) {
        term_progress((double)repeat / repeats, "repeat %u of %u", repeat + 1, repeats);
        for (size_t i = 0; i < n_series && !status; i++)
            status = measure(bench, &series[i], repeat, false);
    }
    term_progress_clear();
    for (size_t i = 0; i < n_series && !status; i++)
        if (series[i].tokens)
            sum_up(&series[i], repeats);
    return status;
}

static int check_options(const struct ctl *ctl)
{
    const struct ctl_options *o = &ctl->options;

    if (ctl->n_operands > 0)
        return ctl_usage(ctl, "unexpected argument '%s'", ctl->operands[0]);
    if (o->repeats == 0 || o->repeats > BENCH_REPEATS_MAX)
        return ctl_usage(ctl, "--repeats is %u; it must be 1 to %d", o->repeats, BENCH_REPEATS_MAX);
    if (o->tokens == 1)
        return ctl_usage(ctl, "--tokens is 1; the time between tokens needs at least 2");
    if (o->prompt_tokens == 0 && o->tokens == 0)
        return ctl_usage(ctl, "--prompt-tokens and --tokens are both 0; nothing to measure");
    if (o->prompt_tokens > BENCH_TOKENS_MAX)
        return ctl_usage(ctl, "--prompt-tokens is %u; at most %u fit a request", o->prompt_tokens,
                         BENCH_TOKENS_MAX);
    return 0;
}

int bench_command(struct ctl *ctl)
{
    const struct ctl_options *o = &ctl->options;
    struct series series[2];
    struct bench bench;
    int status = check_options(ctl);

    if (!status)
        status = ctl_connect(ctl);
    memset(&bench, 0, sizeof bench);
    if (!status)
        status = ctl_loaded_model(ctl, &bench.model);
    if (status)
        return status;
    memset(series, 0, sizeof series);
    series[0].kind = "pp";
    series[0].tokens = o->prompt_tokens;
    series[1].kind = "tg";
    series[1].tokens = o->tokens;
    bench.ctl = ctl;
    bench.random = (((uint64_t)time(NULL) << 20) ^ (uint64_t)(ctl_seconds() * 1e9)) | 1u;
    bench.prompt = ctl_alloc((o->prompt_tokens + 1) * sizeof *bench.prompt);
    for (size_t i = 0; i < 2; i++)
        series[i].samples = ctl_alloc(o->repeats * sizeof *series[i].samples);
    status = run_all(&bench, series, 2);
    if (!status)
        status = o->json ? print_json(&bench, series, 2) : print_table(&bench, series, 2);
    for (size_t i = 0; i < 2; i++)
        free(series[i].samples);
    free(bench.prompt);
    return status;
}
