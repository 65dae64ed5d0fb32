/* world.c: the hub, its device and its time (see sim.h).
 *
 * The device is the null backend behind a table of functions that adds what a simulation needs:
 *
 *   time      a step takes step_us + rows * row_us of the simulated clock
 *   state     a token is a hash of all rows that its sequence's pages hold, so that one wrong,
 *             missing or foreign row changes every token after it
 *   privacy   a page that comes to another domain must be zero where it was not written anew
 *   faults    steps and page operations fail on schedule, the device is lost
 *   ahead     in two scenarios of three it works by itself (submit, collect): of what came out of a
 *             step nothing is to be seen before the step is collected, and what a step needs to
 *             know it must know when it is submitted
 *
 * Between turns the hub is looked at from outside: who could run, runs; when all is over nothing is
 * left. */
#include "sim.h"

#include "inferd/backend.h"
#include "kv/kv.h"
#include "support/gguf_write.h"
#include "topology.h"

#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#define OWNER_NOBODY UINT64_MAX
#define OWNER_WRITTEN                                                                              \
    (UINT64_MAX - 1) /* its bytes came back from a copy; its owner shows later                     \
                      */
/* More turns than any scenario takes: the hub runs in circles. */
#define TURNS_MAX 100000u
/* A simulated day is over after so long, whatever its clients planned. */
#define TIME_MAX_US (UINT64_C(3600) * 1000000)

struct sim sim;

/* ---- what stands in -------------------------------------------------------------------------- */

uint64_t clock_ns(void)
{
    return sim.now_ns;
}

/* Seeds that the daemon draws are the simulation's too. */
ssize_t getrandom(void *bytes, size_t n, unsigned flags)
{
    (void)flags;
    for (size_t i = 0; i < n; i++)
        ((uint8_t *)bytes)[i] = (uint8_t)random_next(&sim.random);
    return (ssize_t)n;
}

struct loop {
    int stopped_with; /* -1: it runs */
};

int loop_post(struct loop *l, void (*fn)(void *ctx), void *ctx)
{
    (void)l;
    if (sim.n_posts == sizeof sim.posts / sizeof sim.posts[0]) {
        sim_fail("the hub posts without end");
        return -ENOMEM;
    }
    sim.posts[sim.n_posts++] = (struct post){fn, ctx};
    return 0;
}

const char *loop_name(const struct loop *l)
{
    (void)l;
    return "simulated";
}

void loop_stop(struct loop *l, int code)
{
    l->stopped_with = code;
}

/* The machine has as much memory as it ever had. */
void topology_limits(const char *root, struct topology *topology)
{
    (void)root;
    topology->memory_total = topology->memory_available = UINT64_C(1) << 30;
}

static void run_posts(void)
{
    struct post posts[sizeof sim.posts / sizeof sim.posts[0]];
    uint32_t n = sim.n_posts;
    memcpy(posts, sim.posts, n * sizeof *posts);
    sim.n_posts = 0;
    for (uint32_t i = 0; i < n; i++)
        posts[i].fn(posts[i].ctx);
}

static void on_close(void *connection)
{
    struct connection *c = connection;
    if (!c->removed) {
        c->removed = true;
        dispatch_remove(sim.dispatch, c);
    }
}

static void on_free(void *connection)
{
    struct connection *c = connection;
    if (!c->removed || c->session == NULL) {
        sim_fail("client %u: its session is given back %s", c->client->index,
                 c->session == NULL ? "twice" : "though nobody asked for it");
        return;
    }
    session_free(c->session);
    c->session = NULL;
}

/* ---- verdict and trace ----------------------------------------------------------------------- */

void sim_fail(const char *format, ...)
{
    char text[sizeof sim.verdict];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (!sim.failed)
        snprintf(sim.verdict, sizeof sim.verdict, "at %.6f s, step %llu: %.400s",
                 (double)sim.now_ns / 1e9, (unsigned long long)sim.n_steps, text);
    if (sim.verbose)
        printf("%12.6f FAIL %s\n", (double)sim.now_ns / 1e9, text);
    sim.failed = true;
}

void sim_note(const char *what, uint64_t a, uint64_t b, uint64_t c)
{
    uint64_t words[] = {sim.now_ns, (uint64_t)(uint8_t)what[0], a, b, c};
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++)
        sim.trace = rng_mix(sim.trace ^ words[i]);
    if (sim.verbose)
        printf("%12.6f %-10s %llu %llu %llu\n", (double)sim.now_ns / 1e9, what,
               (unsigned long long)a, (unsigned long long)b, (unsigned long long)c);
}

/* ---- which prefixes a user has sent ---------------------------------------------------------- */

static uint32_t seen_place(uint64_t key)
{
    uint32_t at = (uint32_t)key % SIM_SEEN;
    while (sim.seen_count[at] > 0 && sim.seen[at] != key)
        at = (at + 1) % SIM_SEEN;
    return at;
}

static uint64_t seen_key(uint64_t uid, const int32_t *tokens, uint32_t n)
{
    uint64_t h = rng_mix(uid);
    for (uint32_t i = 0; i < n; i++)
        h = rng_mix(h ^ (uint32_t)tokens[i]);
    return h;
}

void seen_add(uint32_t uid, const int32_t *tokens, uint32_t from, uint32_t n)
{
    uint64_t h = rng_mix(uid);
    for (uint32_t i = 0; i < n; i++) {
        h = rng_mix(h ^ (uint32_t)tokens[i]);
        if ((i + 1) % SIM_PAGE_TOKENS == 0 && i >= from) {
            uint32_t at = seen_place(h);
            sim.seen[at] = h;
            sim.seen_count[at]++;
        }
    }
}

uint32_t seen_times(uint32_t uid, const int32_t *tokens, uint32_t n)
{
    return sim.seen_count[seen_place(seen_key(uid, tokens, n))];
}

/* ---- the device ------------------------------------------------------------------------------ */

static const struct infer_backend_api *null_api;
static struct infer_backend_api device_api, alone_api; /* alone: that works by itself */
static struct infer_backend *device;
static struct infer_host host;

static void *take(void *ctx, size_t bytes)
{
    (void)ctx;
    size_t room = (bytes + 63) & ~(size_t)63;
    void *memory = aligned_alloc(64, room);
    return memory != NULL ? memset(memory, 0, room) : NULL;
}

static void give(void *ctx, void *memory, size_t bytes)
{
    (void)ctx;
    (void)bytes;
    free(memory);
}

static void say(void *ctx, int level, const char *text)
{
    (void)ctx;
    (void)level;
    (void)text;
}

static uint32_t model_of(const struct infer_backend_model *weights)
{
    return sim.plan.n_models > 1 && sim.models[1].weights == weights ? 1 : 0;
}

/* Fills the outputs of one sequence from what its pages hold, and returns the place of the next
 * sequence's first output. */
static uint32_t read_state(uint32_t model, struct infer_backend_model *weights,
                           struct infer_batch *batch, const struct infer_batch_seq *seq,
                           uint32_t at)
{
    uint32_t page[2 * SIM_PAGE_TOKENS], end = seq->position + seq->n_rows;
    uint32_t n_vocab = sim.models[model].plan->backend.shape.n_vocab;
    uint64_t h = ask_state_start(model);
    for (uint32_t i = 0; i < end; i++) {
        if (i % SIM_PAGE_TOKENS == 0)
            null_api->page_read(weights, seq->pages[i / SIM_PAGE_TOKENS], page);
        if (page[i % SIM_PAGE_TOKENS] == 0)
            sim_fail("row %u of a sequence of %u was never written", i, end);
        if (page[SIM_PAGE_TOKENS + i % SIM_PAGE_TOKENS] != i)
            sim_fail("row %u of a sequence of %u was written for position %u", i, end,
                     page[SIM_PAGE_TOKENS + i % SIM_PAGE_TOKENS]);
        h = ask_state_add(h, page[i % SIM_PAGE_TOKENS]);
        for (; at < batch->n_outputs && i >= seq->position &&
               batch->outputs[at].row == seq->first_row + (i - seq->position);
             at++) {
            struct infer_batch_output *o = &batch->outputs[at];
            if (o->target >= 0)
                o->target_logprob = ask_logprob(h, o->target);
            if (o->sample)
                o->token = ask_token(h, o->sampling->seed, n_vocab, sim.plan.end_permille, o->bias,
                                     o->n_bias);
            if (o->sample && sim.plant == PLANT_TOKEN && sim.n_steps % 16 == 0)
                o->token = 3;
        }
    }
    return at;
}

/* Nobody reads another domain's rows, and rows that another domain left are gone. */
static void check_owners(uint32_t model, struct infer_backend_model *weights,
                         const struct infer_batch_seq *seq, uint64_t domain)
{
    uint32_t rows[2 * SIM_PAGE_TOKENS];
    for (uint32_t i = 0; i < seq->n_pages; i++) {
        uint64_t *owner = &sim.page_owner[model][seq->pages[i]];
        uint32_t first = i * SIM_PAGE_TOKENS;
        if (*owner != domain && *owner != OWNER_WRITTEN) {
            if (*owner != OWNER_NOBODY && first < seq->position)
                sim_fail("domain %llu reads a page of domain %llu", (unsigned long long)domain,
                         (unsigned long long)*owner);
            null_api->page_read(weights, seq->pages[i], rows);
            for (uint32_t r = 0; r < SIM_PAGE_TOKENS; r++)
                if (first + r >= seq->position && rows[r] != 0)
                    sim_fail("page %u came to domain %llu with rows of domain %llu", seq->pages[i],
                             (unsigned long long)domain, (unsigned long long)*owner);
        }
        *owner = domain;
    }
}

static const char *device_last_error(const struct infer_backend *backend)
{
    (void)backend;
    return "the simulated device fails on schedule";
}

static bool must_fail(uint32_t permille)
{
    bool fails = permille > 0 && random_chance(&sim.random, permille);
    sim.n_failures += fails;
    return fails;
}

/* A step that was submitted and not collected. */
struct device_step {
    uint64_t end_ns;
    int rc;
    uint32_t n_outputs;
    struct infer_batch_output outputs[INFER_STEP_ROWS_MAX];
};

/* Of a model. */
static struct device_model {
    struct device_step steps[2]; /* the oldest first */
    uint32_t n_steps;
    /* Of the last step that was submitted: */
    int32_t drawn[INFER_STEP_ROWS_MAX]; /* below 0: this output draws nothing */
    uint32_t n_drawn;
    bool failed;
} device_models[2];

static uint64_t device_free_ns; /* it is at work until then */

/* What the step before draws is filled in; false: that step failed, and nobody knows. */
static bool fill_in(const struct device_model *m, const struct infer_batch *batch, int32_t *tokens)
{
    for (uint32_t i = 0; i < batch->n_rows; i++) {
        tokens[i] = batch->tokens[i];
        if (tokens[i] >= 0)
            continue;
        uint32_t output = (uint32_t)(-1 - tokens[i]);
        if (m->failed)
            return false;
        if (output >= m->n_drawn || m->drawn[output] < 0)
            sim_fail("a row goes on from output %u of %u, which draws nothing", output, m->n_drawn);
        else
            tokens[i] = m->drawn[output];
    }
    return true;
}

static int device_compute(struct infer_backend_model *weights, struct infer_batch *batch)
{
    static int32_t tokens[INFER_STEP_ROWS_MAX];
    uint32_t model = model_of(weights), at = 0;
    const struct scenario *plan = &sim.plan;
    struct infer_batch known = *batch;
    if (plan->lose_step > 0 && sim.n_steps >= plan->lose_step) {
        sim.n_failures += !sim.lost;
        sim.lost = true;
        return -ENODEV;
    }
    if (!fill_in(&device_models[model], batch, tokens))
        return -EIO;
    known.tokens = tokens;
    for (uint32_t i = 0; i < batch->n_seqs; i++)
        check_owners(model, weights, &batch->seqs[i], sim.dispatch->work[i].sequence->state.domain);
    if (must_fail(plan->fail_permille))
        return -EIO;
    int rc = null_api->run(weights, &known);
    if (rc < 0)
        sim_fail("the device refuses a batch: %s", null_api->last_error(device));
    for (uint32_t i = 0; rc == 0 && i < batch->n_seqs; i++)
        at = read_state(model, weights, batch, &batch->seqs[i], at);
    if (rc == 0 && at != batch->n_outputs)
        sim_fail("%u outputs, %u of them at rows of the batch", batch->n_outputs, at);
    return rc;
}

static uint64_t device_time(const struct infer_backend_model *weights,
                            const struct infer_batch *batch)
{
    const struct scenario *plan = &sim.plan;
    uint64_t took = 1000ull * (plan->step_us + batch->n_rows * plan->row_us);
    sim.n_steps++;
    if (took > sim.step_most_ns)
        sim.step_most_ns = took;
    sim_note("step", batch->n_rows, batch->n_seqs, model_of(weights));
    if (batch->n_rows > 2 * plan->step_rows)
        sim_fail("a step of %u rows, %u are the most", batch->n_rows, 2 * plan->step_rows);
    return took;
}

static int device_run(struct infer_backend_model *weights, struct infer_batch *batch)
{
    sim.now_ns += device_time(weights, batch);
    return device_compute(weights, batch);
}

static int device_submit(struct infer_backend_model *weights, struct infer_batch *batch)
{
    struct device_model *m = &device_models[model_of(weights)];
    struct device_step *step = &m->steps[m->n_steps];
    if (m->n_steps == 2) {
        sim_fail("three steps are under way");
        return -EINVAL;
    }
    sim.n_ahead += m->n_steps > 0;
    uint64_t from = device_free_ns > sim.now_ns ? device_free_ns : sim.now_ns;
    device_free_ns = step->end_ns = from + device_time(weights, batch);
    step->rc = device_compute(weights, batch);
    step->n_outputs = batch->n_outputs;
    m->failed = step->rc < 0;
    m->n_drawn = batch->n_outputs;
    for (uint32_t i = 0; i < batch->n_outputs; i++) {
        m->drawn[i] = batch->outputs[i].sample ? batch->outputs[i].token : -1;
        step->outputs[i] = batch->outputs[i];
        batch->outputs[i].token = INT32_MAX; /* nobody knows it yet */
    }
    if (step->rc == -EIO && random_chance(&sim.random, 300))
        return -EIO; /* it does not even begin */
    m->n_steps++;
    return 0;
}

static int device_collect(struct infer_backend_model *weights, struct infer_batch *batch)
{
    struct device_model *m = &device_models[model_of(weights)];
    struct device_step *step = &m->steps[0];
    if (m->n_steps == 0 || step->n_outputs != batch->n_outputs) {
        sim_fail("a step is collected that is not the oldest under way");
        return -EINVAL;
    }
    if (step->end_ns > sim.now_ns)
        sim.now_ns = step->end_ns;
    memcpy(batch->outputs, step->outputs, step->n_outputs * sizeof *step->outputs);
    int rc = step->rc;
    m->steps[0] = m->steps[1];
    m->n_steps--;
    return rc;
}

static int device_page_copy(struct infer_backend_model *weights, uint32_t to, uint32_t from)
{
    uint64_t *owners = sim.page_owner[model_of(weights)];
    owners[to] = owners[from];
    return must_fail(sim.plan.page_fail_permille) ? -EIO : null_api->page_copy(weights, to, from);
}

static int device_page_zero(struct infer_backend_model *weights, uint32_t page)
{
    if (sim.plant == PLANT_PAGE)
        return 0;
    if (must_fail(sim.plan.page_fail_permille))
        return -EIO; /* it is as it was */
    sim.page_owner[model_of(weights)][page] = OWNER_NOBODY;
    return null_api->page_zero(weights, page);
}

static int device_page_read(struct infer_backend_model *weights, uint32_t page, void *ret_bytes)
{
    return must_fail(sim.plan.page_fail_permille) ? -EIO
                                                  : null_api->page_read(weights, page, ret_bytes);
}

static int device_page_write(struct infer_backend_model *weights, uint32_t page, const void *bytes)
{
    if (must_fail(sim.plan.page_fail_permille))
        return -EIO;
    sim.page_owner[model_of(weights)][page] = OWNER_WRITTEN;
    return null_api->page_write(weights, page, bytes);
}

/* ---- loading, once --------------------------------------------------------------------------- */

static struct plan *model_plan;
static struct tokenizer *tokenizer;
static struct loop loop;

static int read_model(const char *path)
{
    struct report report = {0};
    struct gguf *g;
    if (gguf_open(path, &g, &report) < 0) {
        fprintf(stderr, "sim: %s\n", report.text);
        return -1;
    }
    int rc = plan_new(g, &model_plan, &report);
    if (rc == 0)
        rc = tokenizer_new(g, &tokenizer, &report);
    gguf_free(g);
    if (rc < 0)
        fprintf(stderr, "sim: %s\n", report.text);
    return rc;
}

static int make_model(void)
{
    char path[] = "/tmp/inferd-sim-XXXXXX";
    struct gguf_write_shape shape = {
        .n_layers = 1, .n_embd = 32, .n_ffn = 32, .n_heads = 1, .n_kv_heads = 1};
    struct gguf_write w;
    int fd = mkstemp(path);
    if (fd < 0)
        return -1;
    close(fd);
    gguf_write_init(&w);
    gguf_write_llama(&w, &shape);
    int rc = gguf_write_file(&w, path);
    gguf_write_done(&w);
    if (rc == 0)
        rc = read_model(path);
    unlink(path);
    return rc;
}

int world_load(void)
{
    null_api = infer_backend_v1();
    device_api = *null_api;
    device_api.run = device_run;
    device_api.last_error = device_last_error;
    device_api.page_copy = device_page_copy;
    device_api.page_zero = device_page_zero;
    device_api.page_read = device_page_read;
    device_api.page_write = device_page_write;
    alone_api = device_api;
    device_api.submit = device_api.collect = NULL;
    device_api.max_under_way = 0;
    alone_api.submit = device_submit;
    alone_api.collect = device_collect;
    host = (struct infer_host){.abi = INFER_BACKEND_ABI,
                               .log = say,
                               .memory_take = take,
                               .memory_give = give,
                               .n_cpus = 1};
    if (null_api->open(&host, "", &device) < 0 || status_page_new(&sim.page) < 0)
        return -1;
    return make_model();
}

void world_unload(void)
{
    plan_free(model_plan);
    tokenizer_free(tokenizer);
    status_page_free(sim.page);
    null_api->close(device);
}

/* ---- one simulation -------------------------------------------------------------------------- */

static void open_model(uint32_t i)
{
    static const uint8_t rows[4096];
    struct engine_model *m = &sim.models[i];
    *m = (struct engine_model){.plan = model_plan,
                               .tokenizer = tokenizer,
                               .api = sim.plan.ahead ? &alone_api : &device_api,
                               .backend = device,
                               .n_context = sim.plan.n_context,
                               .state = {.page_tokens = SIM_PAGE_TOKENS,
                                         .n_pages = sim.plan.n_pages,
                                         .max_rows = 2 * sim.plan.step_rows,
                                         .max_seqs = INFER_STEP_SEQS_MAX,
                                         .max_outputs = INFER_STEP_ROWS_MAX}};
    device_models[i].n_steps = device_models[i].n_drawn = 0;
    snprintf(m->name, sizeof m->name, "model-%u", i);
    m->chat_report = (struct report){.code = INFER_E_NO_TEMPLATE};
    memset(m->page_key, (int)i + 1, sizeof m->page_key);
    sim.page_owner[i] = malloc(sim.plan.n_pages * sizeof *sim.page_owner[i]);
    if (sim.page_owner[i] == NULL ||
        null_api->estimate(device, &model_plan->backend, &m->state, &m->memory) < 0 ||
        null_api->model_open(device, &model_plan->backend, &m->state, &m->weights) < 0)
        abort();
    for (uint32_t p = 0; p < sim.plan.n_pages; p++)
        sim.page_owner[i][p] = OWNER_NOBODY;
    for (uint32_t t = 0; t < model_plan->backend.n_tensors; t++)
        null_api->tensor_write(m->weights, t, 0, model_plan->backend.tensors[t].n_rows, rows);
    if (null_api->model_ready(m->weights) < 0 || engine_model_init(m) < 0)
        abort();
}

static void close_model(uint32_t i)
{
    sim.models[i].plan = NULL; /* it is every simulation's */
    sim.models[i].tokenizer = NULL;
    engine_model_done(&sim.models[i]);
    free(sim.page_owner[i]);
    sim.page_owner[i] = NULL;
}

static void begin(void)
{
    const struct scenario *plan = &sim.plan;
    device_free_ns = 0;
    for (uint32_t i = 0; i < plan->n_models; i++)
        open_model(i);
    loop.stopped_with = -1;
    struct dispatch_config config = {.models = sim.models,
                                     .n_models = plan->n_models,
                                     .max_running = plan->max_running,
                                     .step_rows = plan->step_rows,
                                     .policy = plan->policy,
                                     .slow_preempt_us = plan->slow_preempt_us,
                                     .slow_cancel_us = plan->slow_cancel_us,
                                     .swap_bytes = plan->swap_bytes,
                                     .cpu = -1,
                                     .loop = &loop,
                                     .page = sim.page,
                                     .on_close = on_close,
                                     .on_free = on_free};
    if (dispatch_new(&config, &sim.dispatch) < 0)
        abort();
    static const struct sched_policy none;
    for (uint32_t i = 0; i < plan->n_users; i++)
        if (memcmp(&plan->users[i].policy, &none, sizeof none) != 0 &&
            dispatch_set_policy(sim.dispatch, plan->users[i].uid, &plan->users[i].policy) < 0)
            abort();
    for (uint32_t i = 0; i < plan->n_clients; i++) {
        struct sim_client *c = &sim.clients[i];
        c->index = i;
        c->plan = &sim.plan.clients[i];
        c->user = &sim.plan.users[c->plan->user];
        c->random.state = rng_mix(plan->seed ^ (uint64_t)(i + 1) << 32);
        c->connection.client = c;
    }
    watch_begin();
}

/* ---- looking at the hub ---------------------------------------------------------------------- */

/* The pages are where the running sequences say. */
static void check_pages(void)
{
    static const struct kv_sequence *all[INFER_SEQUENCES_MAX];
    for (uint32_t m = 0; m < sim.plan.n_models; m++) {
        uint32_t n = 0;
        for (const struct client *c = sim.dispatch->clients; c != NULL; c = c->next)
            for (const struct job *job = c->jobs; job != NULL; job = job->next)
                if (job->sequence != NULL && job->model_index == m && n < INFER_SEQUENCES_MAX)
                    all[n++] = &job->sequence->state;
        if (sim.dispatch->past_pages[m] == 0) /* else idle conversations hold some, too */
            kv_check(sim.models[m].pool, all, n);
    }
}

/* When the hub says that there is nothing to do, nobody may be able to run. */
static void check_idle(void)
{
    struct sched_counts counts = sched_count(sim.dispatch->sched);
    uint32_t n_waiting = 0, n_running = 0;
    for (const struct client *c = sim.dispatch->clients; c != NULL; c = c->next)
        for (const struct job *job = c->jobs; job != NULL; job = job->next) {
            bool ready = job->slot != JOB_NO_SLOT && !job->stalled;
            bool runs = job->started_us != 0 && !job->preempted;
            n_waiting += ready && !runs && !job->fetching;
            n_running += ready && runs;
        }
    if (n_running > 0)
        sim_fail("the hub rests though %u sequences run", n_running);
    else if (n_waiting > 0 && counts.n_running == 0)
        sim_fail("the hub rests though %u sequences wait and nothing runs", n_waiting);
}

/* With -v: what every job is at. */
static void show_jobs(void)
{
    for (uint32_t m = 0; m < sim.plan.n_models; m++)
        printf("model %u: %u of %u pages are held\n", m, kv_pool_used(sim.models[m].pool),
               sim.plan.n_pages);
    for (const struct client *c = sim.dispatch->clients; c != NULL; c = c->next)
        for (const struct job *job = c->jobs; job != NULL; job = job->next) {
            const struct engine_sequence *s = job->sequence;
            printf("client %u request %u answer %u: phase %d hold %d slot %d%s%s%s%s%s",
                   c->connection->client->index, job->request, job->answer, (int)job->phase,
                   (int)job->hold, (int)job->slot, job->started_us != 0 ? ", started" : "",
                   job->stalled ? ", stalled" : "", job->preempted ? ", preempted" : "",
                   job->fetching ? ", fetching" : "", job->saved != NULL ? ", saved" : "");
            if (s != NULL)
                printf(", %llu tokens, %llu cached, %u pages of %u",
                       (unsigned long long)s->n_tokens, (unsigned long long)s->n_cached,
                       s->state.n_pages, engine_sequence_pages(s));
            printf("\n");
        }
}

static void check_nothing_left(void)
{
    const struct dispatch *d = sim.dispatch;
    struct sched_counts counts = sched_count(d->sched);
    for (uint32_t m = 0; m < sim.plan.n_models; m++)
        if (d->lent_pages[m] != 0)
            sim_fail("%u pages are lent when all is over", d->lent_pages[m]);
    if (d->clients != NULL || d->n_sessions != 0)
        sim_fail("%u sessions are left", d->n_sessions);
    if (counts.n_waiting + counts.n_running + counts.n_parked > 0)
        sim_fail("%u wait, %u run, %u are parked when all is over", counts.n_waiting,
                 counts.n_running, counts.n_parked);
    if (d->stalled != NULL || d->held_bytes != 0)
        sim_fail("%llu bytes of requests are held when all is over",
                 (unsigned long long)d->held_bytes);
    for (uint32_t i = 0; i < INFER_SEQUENCES_MAX; i++)
        if (d->by_slot[i] != NULL)
            sim_fail("slot %u is not empty when all is over", i);
    for (uint32_t i = 0; i < sim.plan.n_clients; i++)
        if (sim.clients[i].connection.session != NULL)
            sim_fail("client %u: its session was never given back", i);
    sched_check(d->sched);
}

/* ---- the day --------------------------------------------------------------------------------- */

/* All clients, from another one each time. Returns when the first wants to be called again. */
static uint64_t turn_clients(bool *ret_over)
{
    uint64_t next = UINT64_MAX;
    uint32_t n = sim.plan.n_clients, first = random_below(&sim.random, n);
    bool over = true;
    for (uint32_t i = 0; i < n; i++) {
        struct sim_client *c = &sim.clients[(first + i) % n];
        uint64_t at = client_turn(c);
        next = at < next ? at : next;
        over &= client_over(c);
    }
    *ret_over = over;
    return next;
}

static void rest_until(uint64_t next_us)
{
    uint64_t now = sim_now_us();
    check_idle();
    if ((sim.dispatch->stalled != NULL || sim.dispatch->held != NULL) &&
        next_us > now + SIM_REST_MOST_US)
        next_us = now + SIM_REST_MOST_US; /* the hub looks again soon by itself */
    if (sim.n_posts > 0 || atomic_load(&sim.dispatch->inbox.any))
        next_us = now;
    for (uint32_t i = 0; i < sim.plan.n_clients; i++) {
        uint64_t at = client_reads_at(&sim.clients[i]);
        next_us = at < next_us ? at : next_us;
    }
    if (next_us == UINT64_MAX)
        sim_fail("everybody waits for somebody else");
    else if (next_us > now)
        sim.now_ns = next_us * 1000;
}

/* One turn of everybody. False when the day is over. */
static bool turn(void)
{
    bool over;
    if (sim.n_posts > 0 && random_chance(&sim.random, 700))
        run_posts();
    uint64_t next = turn_clients(&over);
    bool busy = dispatch_turn(sim.dispatch);
    sim.now_ns += 3000;
    for (uint32_t i = 0; i < sim.plan.n_clients; i++)
        client_check(&sim.clients[i]);
    if (sim.n_turns++ % 64 == 0) {
        check_pages();
        sched_check(sim.dispatch->sched);
    }
    if (sim.n_turns > TURNS_MAX || sim_now_us() > TIME_MAX_US)
        sim_fail("no end after %llu turns", (unsigned long long)sim.n_turns);
    if (!busy && !over)
        rest_until(next);
    return !over && !sim.failed;
}

static void end(void)
{
    if (sim.failed && sim.verbose)
        show_jobs();
    for (uint32_t i = 0; i < sim.plan.n_clients; i++)
        client_die(&sim.clients[i]);
    for (int i = 0; i < 4; i++) { /* removal, its answer, and once more for good measure */
        dispatch_turn(sim.dispatch);
        run_posts();
    }
    watch_end();
    if (!sim.failed)
        check_nothing_left();
    if (sim.failed)
        return;                  /* what is broken cannot be taken apart safely */
    dispatch_free(sim.dispatch); /* and with it the conversations */
    for (uint32_t i = 0; i < sim.plan.n_models; i++) {
        kv_check(sim.models[i].pool, NULL, 0);
        if (kv_pool_used(sim.models[i].pool) != 0)
            sim_fail("%u pages are held when all is over", kv_pool_used(sim.models[i].pool));
        close_model(i);
    }
}

void world_run(void)
{
    begin();
    while (turn())
        ;
    end();
}
