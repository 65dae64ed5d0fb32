/* main.c: the daemon's life: command line, machine, devices, models, threads, and the way back.
 *
 * The main thread becomes the event thread. Signals are blocked before any thread starts, so that
 * they arrive in the event loop alone. Everything is taken in the order of serve() and given back
 * in the opposite one, also when a start fails half-way, so that a sanitizer can prove it.
 *
 * SIGHUP, or a manager's word, has the configuration read again: first all of it is parsed and
 * checked, then what can change while streams run does; a wrong file changes nothing. */
#include "base/clock.h"
#include "base/log.h"
#include "config.h"
#include "devices.h"
#include "dispatch.h"
#include "inspect.h"
#include "journal.h"
#include "lost.h"
#include "manage.h"
#include "memory.h"
#include "messages.h"
#include "metrics.h"
#include "models.h"
#include "notify.h"
#include "policy.h"
#include "sandbox.h"
#include "server.h"
#include "topology.h"

#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define GIB(bytes) ((double)(bytes) / 1073741824.0)
/* To end the rest after the drain: buffers, models, threads. */
#define STOP_US 20000000u
/* The same after a device was lost. */
#define LOST_STOP_US 700000u

struct daemon {
    const struct config *config; /* one of configs */
    struct config configs[2];
    int argc;
    char **argv;
    struct topology topology;
    struct topology_places places;
    struct memory memory;
    struct infer_host host, gpu_host;
    struct loop *loop;
    struct notify *notify;
    struct server *server;
    struct devices devices;
    struct lost lost;
    struct models *models;
    struct manage *manage;
    struct dispatch *dispatch;
    struct status_page *page;
    struct policy policies[CONFIG_POLICIES_MAX];
    uint64_t engine_turns; /* as the watchdog saw them last */
    bool hangs;            /* they were the same */
    bool hung_noted;       /* among what is lost */
    uint64_t began_us;
    bool ready, stopping;
    struct report failure; /* of a model without which it does not start */
    struct metrics_loads loads;
};

static int exit_status(int code)
{
    switch (code) {
#define EXIT_OF(name, number, status, text)                                                        \
    case number:                                                                                   \
        return status;
        INFER_ERROR_TABLE (EXIT_OF)
#undef EXIT_OF
        default:
            return EXIT_FAILURE;
    }
}

static int fail(const struct report *report)
{
    fprintf(stderr, "inferd: %s\n", report->text);
    return exit_status(report->code);
}

/* ---- start ----------------------------------------------------------------------------------- */

/* What the service manager shows of a daemon that serves. */
static void print_serving(struct daemon *d, char ret[NOTIFY_STATUS_MAX])
{
    struct dispatch_counts counts = dispatch_take_counts(d->dispatch);
    uint32_t n_models = models_ready(d->models);
    char waiting[32] = "";
    if (counts.n_waiting > 0)
        snprintf(waiting, sizeof waiting, ", %u waiting", counts.n_waiting);
    snprintf(ret, NOTIFY_STATUS_MAX, "%s %u model%s, %.1f of %.0f GiB, %u request%s running%s",
             d->stopping ? "stopping;" : "serving", n_models, n_models == 1 ? "" : "s",
             GIB(memory_total_bytes(&d->memory)), GIB(d->topology.memory_available),
             counts.n_running, counts.n_running == 1 ? "" : "s", waiting);
}

static void show_serving(void *ctx)
{
    struct daemon *d = ctx;
    char text[NOTIFY_STATUS_MAX];
    uint64_t done_bytes;
    if (models_loading(d->models, text, sizeof text, &done_bytes)) {
        notify_progress(d->notify, text, done_bytes);
    } else if (d->dispatch != NULL) {
        print_serving(d, text);
        notify_status(d->notify, text);
    }
}

static void tell_ready(struct daemon *d)
{
    char text[NOTIFY_STATUS_MAX];
    print_serving(d, text);
    notify_ready(d->notify, text);
}

static void note_lost(struct daemon *d, const struct device *device)
{
    int rc = lost_add(&d->lost, device->name, (int64_t)time(NULL));
    if (rc < 0)
        log_warning("%s: the next start will not know that it was lost: %s", device->name,
                    strerror(-rc));
}

/* A step that does not end is a loss, too: the manager ends the daemon before it could say so. */
static void note_hung(struct daemon *d)
{
    uint32_t model = dispatch_stepping(d->dispatch);
    const struct device *device =
        model != DISPATCH_NO_MODEL ? models_device(d->models, model) : NULL;
    d->hung_noted = device != NULL && device->memory != 0;
    if (d->hung_noted)
        note_lost(d, device);
}

/* It was slow, and ended; or it ended with an error, which is noted as such. */
static void take_back_hung(struct daemon *d)
{
    int rc = d->hung_noted ? lost_take_back(&d->lost) : 0;
    d->hung_noted = false;
    if (rc < 0)
        log_warning("the next start will take a device that was slow for a lost one: %s",
                    strerror(-rc));
}

static bool engine_moves(void *ctx)
{
    struct daemon *d = ctx;
    bool moves = dispatch_moves(d->dispatch, &d->engine_turns);
    if (moves)
        take_back_hung(d);
    else if (!d->hangs)
        note_hung(d);
    d->hangs = !moves;
    return moves;
}

static void stop_now(void *ctx)
{
    struct daemon *d = ctx;
    loop_stop(d->loop, EXIT_SUCCESS);
}

/* What runs may finish, for a while; a second signal ends it at once. */
static void begin_stop(struct daemon *d)
{
    uint64_t drain_us = 1000000ull * d->config->drain_timeout_s;
    d->stopping = true;
    notify_stopping(d->notify, drain_us + STOP_US);
    server_drain(d->server);
    if (drain_us == 0 || loop_timer(d->loop, drain_us, 0, stop_now, d, NULL) < 0 ||
        dispatch_drain(d->dispatch, stop_now, d) < 0)
        stop_now(d);
}

static int reload(void *ctx, struct report *report);

static void on_signal(void *ctx, int signo)
{
    struct daemon *d = ctx;
    if (signo == SIGHUP) {
        reload(d, &(struct report){0}); /* the log has it */
        return;
    }
    log_event(LOG_LEVEL_INFO, &(struct log_fields){.message_id = MESSAGE_STOPPING},
              "%s: stopping%s", signo == SIGINT ? "interrupted" : "asked to stop",
              d->stopping ? " at once" : "");
    if (d->stopping)
        stop_now(d);
    else
        begin_stop(d);
}

/* A session takes six descriptors. */
static void raise_descriptor_limit(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

static int start_loop(struct daemon *d, struct report *report)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGHUP);
    signal(SIGPIPE, SIG_IGN);
    raise_descriptor_limit();
    int rc = loop_new(d->config->event_loop, &d->loop);
    if (rc == 0)
        rc = loop_signal(d->loop, &set, on_signal, d, NULL);
    if (rc < 0)
        return report_fail(report, INFER_E_INTERNAL,
                           "the event loop cannot start: %s; try --event-loop epoll",
                           strerror(-rc));
    return 0;
}

/* After the workers, which have their cores; what else starts follows this thread. */
static void keep_off_workers(void *ctx)
{
    const struct daemon *d = ctx;
    int rc = topology_keep_off(&d->places);
    if (rc < 0)
        log_warning("the event thread cannot be kept off the workers' cores: %s", strerror(-rc));
}

static bool note_all_lost(struct daemon *d)
{
    bool any = false;
    for (uint32_t i = 0; i < d->devices.n; i++) {
        if (!atomic_load(&d->devices.device[i].is_lost))
            continue;
        take_back_hung(d);
        note_lost(d, &d->devices.device[i]);
        any = true;
    }
    return any;
}

static int open_devices(struct daemon *d, struct report *report)
{
    uint32_t threads = d->config->threads != 0 ? d->config->threads : d->topology.default_threads;
    if (threads > d->topology.n_cpus) {
        log_warning("--threads %u: there are %u cores; using %u", threads, d->topology.n_cpus,
                    d->topology.n_cpus);
        threads = d->topology.n_cpus;
    }
    topology_place(&d->topology, threads, &d->places);
    memory_init(&d->memory, 0);
    memory_set_huge(&d->memory, d->config->huge_pages);
    memory_host_init(&d->memory, d->topology.cpus, threads, &d->host);
    if (d->topology.n_memory_nodes > 1) {
        memory_set_nodes(&d->memory, d->places.nodes, d->places.n_nodes);
        memory_host_nodes(&d->memory, d->places.worker_nodes, &d->host);
    }
    int rc = lost_open(&d->lost, d->config->state_directory, (int64_t)time(NULL));
    if (rc < 0)
        log_warning("%s: devices that are lost cannot be noted there: %s",
                    d->config->state_directory, strerror(-rc));
    /* A GPU's backend computes with the thread that calls it alone. */
    memory_host_init(&d->memory, d->topology.cpus, 1, &d->gpu_host);
    struct devices_config config = {.backends = d->config->backend,
                                    .options = d->config->backend_options,
                                    .host = &d->host,
                                    .gpu_host = &d->gpu_host,
                                    .lost = &d->lost,
                                    .wait_us = 1000000ull * d->config->device_wait_s,
                                    .between = keep_off_workers,
                                    .ctx = d};
    return devices_open(&config, &d->devices, report);
}

static char *draw_topology(void *daemon)
{
    const struct daemon *d = daemon;
    return topology_draw(&d->topology, d->host.n_cpus);
}

static struct stream_options stream_options(struct daemon *d)
{
    const struct config *c = d->config;
    struct stream_options stream = {.method =
                                        c->event_loop == LOOP_EPOLL ? STREAM_PREAD : STREAM_AUTO,
                                    .stall_ms = 1000u * c->read_timeout_s,
                                    .huge_pages = c->huge_pages == MEMORY_HUGE_EXPLICIT};
    if (d->topology.n_memory_nodes > 1) { /* all workers read the buffers */
        stream.bind = memory_bind;
        stream.bind_ctx = &d->memory;
        stream.node = MEMORY_NODE_ALL;
    }
    return stream;
}

static int new_models(struct daemon *d, struct report *report)
{
    struct models_config config = {.loop = d->loop,
                                   .memory = &d->memory,
                                   .devices = &d->devices,
                                   .stream = stream_options(d),
                                   .loads = &d->loads,
                                   .on_change = notify_is_on(d->notify) ? show_serving : NULL,
                                   .ctx = d};
    if (models_new(&config, &d->models) < 0)
        return report_fail(report, INFER_E_OUT_OF_MEMORY, "no memory for the models' table");
    models_configure(d->models, d->config);
    return 0;
}

/* Before anything is loaded, so that a mistyped policy is heard of at once. */
static int parse_policies(const struct config *c, struct policy *ret, struct report *report)
{
    int rc = 0;
    for (uint32_t i = 0; i < c->n_policies && rc == 0; i++)
        rc = policy_parse(c->policies[i], &ret[i], report);
    return rc;
}

/* The last policy of "default", if there is one. */
static struct policy default_policy(const struct policy *policies, uint32_t n)
{
    struct policy everybody = {0};
    for (uint32_t i = 0; i < n; i++)
        if (policies[i].is_default)
            everybody = policies[i];
    return everybody;
}

static int set_policies(struct daemon *d, struct report *report)
{
    for (uint32_t i = 0; i < d->config->n_policies; i++) {
        const struct policy *p = &d->policies[i];
        if (!p->is_default && (dispatch_set_policy(d->dispatch, p->uid, &p->sched) < 0 ||
                               dispatch_set_domain(d->dispatch, p->uid, p->domain) < 0))
            return report_fail(report, INFER_E_INVALID, "--policy: too many users");
    }
    return 0;
}

/* 0: there is no state directory, or it does not take the number. */
static uint64_t count_start(const struct config *c)
{
    if (c->state_directory == NULL)
        return 0;
    int64_t n = metrics_count_start(c->state_directory);
    if (n < 0)
        log_warning("%s: this start cannot be counted there: %s", c->state_directory,
                    strerror((int)-n));
    return n > 0 ? (uint64_t)n : 0;
}

static void on_manager(void *ctx, int fd, const struct peer *peer)
{
    const struct daemon *d = ctx;
    (void)peer; /* the server has looked */
    manage_accept(d->manage, fd);
}

static int new_manage(struct daemon *d)
{
    struct manage_config config = {
        .loop = d->loop, .models = d->models, .reload = reload, .ctx = d};
    server_on_manage(d->server, on_manager, d);
    return manage_new(&config, &d->manage);
}

static int start_threads(struct daemon *d, struct report *report)
{
    if (new_manage(d) < 0)
        return report_fail(report, INFER_E_OUT_OF_MEMORY, "no memory for managers");
    if (dispatch_start(d->dispatch) < 0 || models_start(d->models, d->dispatch) < 0 ||
        server_start(d->server, d->dispatch, d->page) < 0)
        return report_fail(report, INFER_E_OUT_OF_MEMORY, "the daemon's threads cannot start");
    if (notify_watch(d->notify, engine_moves, d) < 0)
        return report_fail(report, INFER_E_OUT_OF_MEMORY, "no timer for the watchdog");
    return 0;
}

static int start_serving(struct daemon *d, struct report *report)
{
    const struct config *c = d->config;
    struct policy everybody = default_policy(d->policies, c->n_policies);
    struct dispatch_config config = {.models = models_engines(d->models),
                                     .n_models = INFER_MODELS_MAX,
                                     .on_models = models_on_news,
                                     .models_ctx = d->models,
                                     .max_running = c->parallel,
                                     .step_rows = INFER_STEP_ROWS,
                                     .policy = everybody.sched,
                                     .shared_domain = everybody.domain,
                                     .skips_max = c->skips_max,
                                     .newcomer_slots = c->newcomer_slots,
                                     .slow_preempt_us = 1000000ull * c->slow_reader_preempt_s,
                                     .slow_cancel_us = 1000000ull * c->slow_reader_timeout_s,
                                     .conversation_idle_us = 1000000ull * c->conversation_idle_s,
                                     .swap_bytes = c->swap_memory_bytes,
                                     .swap_file_bytes = c->swap_file_bytes,
                                     .state_directory = c->state_directory,
                                     .spin_us = c->spin_us,
                                     .cpu = d->host.n_cpus > 1 ? (int)d->host.cpus[0] : -1,
                                     .draw_topology = draw_topology,
                                     .draw_ctx = d,
                                     .loop = d->loop,
                                     .devices = &d->devices,
                                     .loads = &d->loads,
                                     .n_starts = count_start(c),
                                     .on_close = server_on_close,
                                     .on_free = server_on_free,
                                     .on_counts = notify_is_on(d->notify) ? show_serving : NULL,
                                     .on_counts_ctx = d};
    if (status_page_new(&d->page) < 0)
        return report_fail(report, INFER_E_OUT_OF_MEMORY, "the status page cannot be made");
    config.page = d->page;
    if (dispatch_new(&config, &d->dispatch) < 0)
        return report_fail(report, INFER_E_OUT_OF_MEMORY, "no memory for the queues");
    if (set_policies(d, report) < 0)
        return -report->code;
    return start_threads(d, report);
}

static int start_listening(struct daemon *d, struct report *report)
{
    struct activation activation;
    int rc = activation_take(&activation, report);
    if (rc < 0)
        return rc;
    rc = server_new(d->loop, d->config->socket, &activation, d->notify, &d->server, report);
    activation_done(&activation);
    return rc;
}

static void tell_devices(const struct daemon *d)
{
    const struct device *first = &d->devices.device[0];
    log_info("inferd " INFERD_VERSION ", %s, backend %s: %s, event loop %s", d->topology.text,
             first->backend.api->name, first->about, loop_name(d->loop));
    for (uint32_t i = 0; i < d->devices.n; i++) {
        const struct device *device = &d->devices.device[i];
        if (device->memory != 0)
            log_info("device %s: %s, %.1f GiB of memory", device->name, device->about,
                     GIB(device->memory));
        else if (i > 0)
            log_info("device %s: %s", device->name, device->about);
    }
}

/* What was to be loaded first is, or has failed. */
static void on_preloaded(void *ctx, const struct report *report)
{
    struct daemon *d = ctx;
    if (d->stopping)
        return;
    if (report->code != 0) {
        d->failure = *report;
        loop_stop(d->loop, exit_status(report->code));
        return;
    }
    d->ready = true;
    tell_devices(d);
    log_event(LOG_LEVEL_INFO, &(struct log_fields){.message_id = MESSAGE_READY},
              "ready at %s after %.0f ms", server_place(d->server),
              (double)(clock_us() - d->began_us) / 1e3);
    tell_ready(d);
}

static int start(struct daemon *d, struct report *report)
{
    int rc = parse_policies(d->config, d->policies, report);
    if (rc == 0)
        rc = start_loop(d, report);
    if (rc == 0 && (rc = notify_new(d->loop, &d->notify)) < 0)
        rc = report_fail(report, INFER_E_SOCKET_PATH, "NOTIFY_SOCKET cannot be used: %s",
                         strerror(-rc));
    if (rc == 0 && topology_discover(&d->topology, NULL) < 0)
        rc = report_fail(report, INFER_E_INTERNAL, "hwloc cannot read this machine's topology");
    if (rc == 0)
        rc = start_listening(d, report);
    if (rc == 0)
        rc = open_devices(d, report);
    if (rc == 0)
        rc = new_models(d, report);
    if (rc < 0)
        return rc; /* one line that says why, and no other */
    rc = start_serving(d, report);
    char note[SANDBOX_NOTE_MAX];
    if (rc == 0 && sandbox_enter(devices_have_gpu(&d->devices), note) < 0)
        log_warning("%s", note);
    if (rc == 0) /* clients are answered meanwhile, what they want waits for its model */
        models_preload(d->models, on_preloaded, d);
    return rc;
}

/* ---- reload ---------------------------------------------------------------------------------- */

struct changes {
    char text[INFER_DETAIL_MAX];
    size_t n;
};

static void add_change(void *ctx, const char *name, bool reloads)
{
    struct changes *c = ctx;
    const char *when = reloads ? "" : " (at the next start)";
    log_info("configuration: %s has changed%s", name, when);
    if (c->n < sizeof c->text)
        c->n += (size_t)snprintf(c->text + c->n, sizeof c->text - c->n, "%s%s%s", c->n ? ", " : "",
                                 name, when);
}

static struct dispatch_limits *new_limits(const struct config *c, const struct policy *policies)
{
    struct policy everybody = default_policy(policies, c->n_policies);
    struct dispatch_limits *l = calloc(1, sizeof *l + c->n_policies * sizeof l->users[0]);
    if (l == NULL)
        return NULL;
    l->slow_preempt_us = 1000000ull * c->slow_reader_preempt_s;
    l->slow_cancel_us = 1000000ull * c->slow_reader_timeout_s;
    l->conversation_idle_us = 1000000ull * c->conversation_idle_s;
    l->policy = everybody.sched;
    l->shared_domain = everybody.domain;
    for (uint32_t i = 0; i < c->n_policies; i++)
        if (!policies[i].is_default)
            l->users[l->n_users++] =
                (struct dispatch_user){policies[i].uid, policies[i].sched, policies[i].domain};
    return l;
}

static int read_again(struct daemon *d, struct config *next, struct report *report)
{
    struct policy policies[CONFIG_POLICIES_MAX];
    int rc = config_parse(d->argc, d->argv, next, report);
    if (rc < 0)
        return rc;
    struct dispatch_limits *limits = NULL;
    rc = parse_policies(next, policies, report);
    if (rc == 0) {
        limits = new_limits(next, policies);
        if (limits == NULL || dispatch_set_limits(d->dispatch, limits) < 0)
            rc = report_fail(report, INFER_E_OUT_OF_MEMORY, "no memory for a new configuration");
    }
    free(limits);
    if (rc < 0)
        config_done(next);
    return rc;
}

static int take_again(struct daemon *d, struct report *report)
{
    struct config *old = (struct config *)d->config;
    struct config *next = old == &d->configs[0] ? &d->configs[1] : &d->configs[0];
    struct changes changes = {0};
    int rc = read_again(d, next, report);
    if (rc < 0)
        return rc;
    config_compare(old, next, add_change, &changes);
    d->config = next;
    log_set_level(next->log_level);
    models_configure(d->models, next);
    config_done(old);
    report_fail(report, INFER_OK, "%s", changes.n ? changes.text : "nothing has changed");
    return 0;
}

/* 0: the report's text says what changed. The service manager waits for READY after each. */
static int reload(void *ctx, struct report *report)
{
    struct daemon *d = ctx;
    if (d->stopping)
        return report_fail(report, INFER_E_SHUTDOWN, "the daemon is stopping");
    if (!d->ready)
        return report_fail(report, INFER_E_BUSY, "the daemon is starting; reload when it is ready");
    notify_reloading(d->notify);
    log_info("reading the configuration again");
    int rc = take_again(d, report);
    if (rc < 0)
        log_error("the configuration stays as it was: %s", report->text);
    tell_ready(d);
    return rc;
}

/* ---- the end --------------------------------------------------------------------------------- */

static void *end_anyway(void *arg)
{
    (void)arg;
    usleep(LOST_STOP_US);
    _exit(DISPATCH_EXIT_LOST);
}

/* The driver of a lost device may not come back from closing what is on it, or from a load. */
static void limit_stop(void)
{
    pthread_t thread;
    if (pthread_create(&thread, NULL, end_anyway, NULL) == 0)
        pthread_detach(thread);
}

static void stop(struct daemon *d)
{
    if (d->server != NULL)
        server_stop(d->server);
    manage_free(d->manage);
    if (d->models != NULL)
        models_stop(d->models);
    if (d->dispatch != NULL) {
        dispatch_stop(d->dispatch);
        loop_stop(d->loop, 0);
        loop_run(d->loop); /* what the engine thread posted last */
    }
    if (d->server != NULL)
        server_free(d->server);
    if (d->dispatch != NULL)
        dispatch_free(d->dispatch);
    status_page_free(d->page);
    models_free(d->models);
    devices_close(&d->devices);
    lost_close(&d->lost);
    notify_free(d->notify);
    if (d->loop != NULL)
        loop_free(d->loop);
}

/* Takes *config. */
static int serve(struct config *config, int argc, char **argv)
{
    static struct daemon d; /* large: configurations */
    struct report report = {0};
    int status;

    d.configs[0] = *config;
    d.config = &d.configs[0];
    d.argc = argc;
    d.argv = argv;
    mallopt(M_ARENA_MAX, 2); /* few threads allocate; an arena each would only spread the heap */
    d.lost.fd = -1;
    d.began_us = clock_us();
    if (start(&d, &report) < 0) {
        status = fail(&report);
        if (note_all_lost(&d) || report.code == INFER_E_BACKEND_LOST)
            status = DISPATCH_EXIT_LOST;
    } else {
        status = loop_run(d.loop);
        if (d.failure.code != 0)
            fail(&d.failure);
        if (status == DISPATCH_EXIT_LOST) {
            limit_stop();
            note_all_lost(&d);
        }
    }
    stop(&d);
    config_done((struct config *)d.config);
    return status < 0 ? EXIT_FAILURE : status;
}

int main(int argc, char **argv)
{
    static struct config config;
    struct report report = {0};

    if (config_parse(argc, argv, &config, &report) < 0)
        return fail(&report);
    log_set_level(config.log_level);
    journal_begin();
    switch (config.action) {
    case CONFIG_VERSION:
        puts("inferd " INFERD_VERSION);
        return EXIT_SUCCESS;
    case CONFIG_HELP:
        config_help(stdout);
        return EXIT_SUCCESS;
    case CONFIG_CHECK:
        config_show(&config, stdout);
        return EXIT_SUCCESS;
    case CONFIG_COMPLETE:
        config_complete(config.complete_shell, stdout);
        return EXIT_SUCCESS;
    case CONFIG_INSPECT:
        return inspect_file(&config, &report) < 0 ? fail(&report) : EXIT_SUCCESS;
    case CONFIG_TOKENIZE:
        return inspect_tokenize(&config, &report) < 0 ? fail(&report) : EXIT_SUCCESS;
    default:
        return serve(&config, argc, argv);
    }
}
