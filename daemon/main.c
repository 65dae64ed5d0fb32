/* main.c: the daemon's life: command line, machine, backend, models, threads, and the way back.
 *
 * The main thread becomes the event thread. Signals are blocked before any thread starts, so that
 * they arrive in the event loop alone. Everything is taken in the order of serve() and given back
 * in the opposite one, also when a start fails half-way, so that a sanitizer can prove it. */
#include "backend_load.h"
#include "base/clock.h"
#include "base/log.h"
#include "config.h"
#include "dispatch.h"
#include "inspect.h"
#include "loader.h"
#include "memory.h"
#include "policy.h"
#include "server.h"
#include "topology.h"

#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

struct daemon {
    const struct config *config;
    struct topology topology;
    struct memory memory;
    struct infer_host host;
    struct loop *loop;
    struct server *server;
    struct backend backend;
    struct engine_model models[INFER_MODELS_MAX];
    uint32_t n_models;
    struct dispatch *dispatch;
    struct status_page *page;
    struct policy policies[CONFIG_POLICIES_MAX];
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

static void on_signal(void *ctx, int signo)
{
    struct daemon *d = ctx;
    log_info("%s: stopping", signo == SIGINT ? "interrupted" : "asked to stop");
    loop_stop(d->loop, EXIT_SUCCESS);
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

static int load_backend(struct daemon *d, struct report *report)
{
    uint32_t threads = d->config->threads != 0 ? d->config->threads : d->topology.default_threads;
    if (threads > d->topology.n_cpus) {
        log_warning("--threads %u: there are %u cores; using %u", threads, d->topology.n_cpus,
                    d->topology.n_cpus);
        threads = d->topology.n_cpus;
    }
    memory_init(&d->memory, 0);
    memory_host_init(&d->memory, d->topology.cpus, threads, &d->host);
    return backend_load(d->config->backend, d->config->backend_options, &d->host, &d->backend,
                        report);
}

static struct loader_options loader_options(const struct config *c, const struct topology *t)
{
    return (struct loader_options){.n_context = c->n_context,
                                   .parallel = c->parallel,
                                   .state_memory = c->state_memory_bytes,
                                   .k_type = c->k_type,
                                   .v_type = c->v_type,
                                   .memory_available = t->memory_available};
}

static int load_model(struct daemon *d, const struct config_model *from, struct report *report)
{
    struct loader_options options = loader_options(d->config, &d->topology);
    struct engine_model *m = &d->models[d->n_models];
    uint64_t start = clock_us(), taken = memory_total_bytes(&d->memory);

    /* What earlier models took may not be touched yet, so the system still calls it available. */
    options.memory_available -= taken < options.memory_available ? taken : options.memory_available;
    int rc = loader_load(from->name, from->path, &d->backend, &options, m, report);
    if (rc < 0)
        return rc;
    d->n_models++;
    log_info("%s: %s, weights %.1f MiB, context %u, state %u pages of %.1f KiB, loaded in %.0f ms",
             m->name, m->plan->description, (double)m->memory.weights_bytes / 1048576.0,
             m->n_context, m->state.n_pages, (double)m->memory.page_bytes / 1024.0,
             (double)(clock_us() - start) / 1000.0);
    return 0;
}

/* Before anything is loaded, so that a mistyped policy is heard of at once. */
static int parse_policies(struct daemon *d, struct report *report)
{
    int rc = 0;
    for (uint32_t i = 0; i < d->config->n_policies && rc == 0; i++)
        rc = policy_parse(d->config->policies[i], &d->policies[i], report);
    return rc;
}

/* The last policy of "default", if there is one. */
static struct policy default_policy(const struct daemon *d)
{
    struct policy everybody = {0};
    for (uint32_t i = 0; i < d->config->n_policies; i++)
        if (d->policies[i].is_default)
            everybody = d->policies[i];
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

static int start_serving(struct daemon *d, struct report *report)
{
    const struct config *c = d->config;
    struct policy everybody = default_policy(d);
    struct dispatch_config config = {.models = d->models,
                                     .n_models = d->n_models,
                                     .max_running = c->parallel,
                                     .step_rows = INFER_STEP_ROWS_MAX,
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
                                     .loop = d->loop,
                                     .on_close = server_on_close,
                                     .on_free = server_on_free};
    if (status_page_new(&d->page) < 0)
        return report_fail(report, INFER_E_OUT_OF_MEMORY, "the status page cannot be made");
    config.page = d->page;
    if (dispatch_new(&config, &d->dispatch) < 0)
        return report_fail(report, INFER_E_OUT_OF_MEMORY, "no memory for the queues");
    if (set_policies(d, report) < 0)
        return -report->code;
    if (dispatch_start(d->dispatch) < 0 || server_start(d->server, d->dispatch, d->page) < 0)
        return report_fail(report, INFER_E_OUT_OF_MEMORY, "the daemon's threads cannot start");
    return 0;
}

static int start(struct daemon *d, struct report *report)
{
    int rc = parse_policies(d, report);
    if (rc == 0)
        rc = start_loop(d, report);
    if (rc == 0 && topology_discover(&d->topology, NULL) < 0)
        rc = report_fail(report, INFER_E_INTERNAL, "hwloc cannot read this machine's topology");
    if (rc == 0)
        rc = server_new(d->loop, d->config->socket, &d->server, report);
    if (rc == 0)
        rc = load_backend(d, report);
    if (rc < 0)
        return rc;
    for (uint32_t i = 0; i < d->config->n_models && rc == 0; i++)
        rc = load_model(d, &d->config->models[i], report);
    if (rc < 0)
        return rc; /* one line that says why, and no other */
    struct infer_device device;
    d->backend.api->describe(d->backend.instance, &device);
    log_info("inferd " INFERD_VERSION ", %s, backend %s: %s, event loop %s", d->topology.text,
             d->backend.api->name, device.name, loop_name(d->loop));
    return start_serving(d, report);
}

static void stop(struct daemon *d)
{
    if (d->server != NULL)
        server_stop(d->server);
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
    for (uint32_t i = 0; i < d->n_models; i++)
        engine_model_done(&d->models[i]);
    if (d->backend.api != NULL)
        backend_unload(&d->backend);
    if (d->loop != NULL)
        loop_free(d->loop);
}

static int serve(const struct config *config)
{
    static struct daemon d; /* large: the models' table */
    struct report report = {0};
    uint64_t began = clock_us();
    int status;

    d.config = config;
    mallopt(M_ARENA_MAX, 2); /* few threads allocate; an arena each would only spread the heap */
    if (start(&d, &report) < 0) {
        status = fail(&report);
    } else {
        log_info("ready at %s after %.0f ms", config->socket, (double)(clock_us() - began) / 1e3);
        status = loop_run(d.loop);
    }
    stop(&d);
    return status < 0 ? EXIT_FAILURE : status;
}

int main(int argc, char **argv)
{
    static struct config config;
    struct report report = {0};

    if (config_parse(argc, argv, &config, &report) < 0)
        return fail(&report);
    log_set_level(config.log_level);
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
        return serve(&config);
    }
}
