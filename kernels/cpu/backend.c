/* backend.c: the entry point of inferd-backend-cpu.so: its options and the choice of instructions.
 *
 * Options: "isa=avx512|avx2|plain" forces a level that the processor has ("scalar" is another word
 * for plain); "threads=N" overrides the host's number of processors. */
#include "cpu/model.h"

#include <cpuid.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Of the calling thread: one may load a model while another steps. */
static _Thread_local char last_error[256];

int cpu_fail(struct infer_backend *backend, int error, const char *format, ...)
{
    (void)backend;
    va_list args;
    va_start(args, format);
    vsnprintf(last_error, sizeof last_error, format, args);
    va_end(args);
    return error;
}

static bool has_f16c(void)
{
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

/* Exactly what the Makefile lets the compiler use in the files of that level. */
static bool has_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c() &&
           __builtin_cpu_supports("bmi2");
}

static bool has_avx512(void)
{
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16") &&
           __builtin_cpu_supports("avx512vbmi");
}

static bool choose_isa(struct cpu_isa *isa, const char *name)
{
    bool any = !name[0];
    __builtin_cpu_init();
    if ((any || !strcmp(name, "avx512")) && has_avx512()) {
        cpu_isa_avx512(isa);
        isa->name = "AVX-512 VNNI";
        return true;
    }
    if ((any || !strcmp(name, "avx2")) && has_avx2()) {
        cpu_isa_avx2(isa);
        isa->name = "AVX2";
        return true;
    }
    if (any || !strcmp(name, "plain") || !strcmp(name, "scalar")) {
        cpu_isa_plain(isa);
        isa->name = "plain C";
        return true;
    }
    return false;
}

struct options {
    char isa[16];
    uint32_t threads;
};

/* One "key=value" of n bytes. */
static int option(struct options *o, const char *text, size_t n)
{
    char buffer[64], *end;
    if (n >= sizeof buffer)
        return -EINVAL;
    memcpy(buffer, text, n);
    buffer[n] = 0;
    char *value = strchr(buffer, '=');
    if (!value)
        return -EINVAL;
    *value++ = 0;
    if (!strcmp(buffer, "isa")) {
        if (!value[0] || strlen(value) >= sizeof o->isa)
            return -EINVAL;
        snprintf(o->isa, sizeof o->isa, "%s", value);
        return 0;
    }
    if (!strcmp(buffer, "threads")) {
        unsigned long threads = strtoul(value, &end, 10);
        if (value[0] < '0' || value[0] > '9' || *end || !threads || threads > CPU_THREADS_MAX)
            return -EINVAL;
        o->threads = (uint32_t)threads;
        return 0;
    }
    return -EINVAL;
}

static int parse(struct options *o, const char *text)
{
    for (const char *at = text ? text : ""; *at;) {
        size_t n = strcspn(at, ",");
        int r = option(o, at, n);
        if (r < 0)
            return r;
        at += n + (at[n] == ',');
    }
    return 0;
}

static void cpu_close(struct infer_backend *backend)
{
    if (!backend)
        return;
    if (backend->pool)
        cpu_pool_done(backend->pool);
    free(backend->pool);
    free(backend);
}

static int cpu_open(const struct infer_host *host, const char *text, struct infer_backend **ret)
{
    struct options o = {.threads = host->n_cpus};
    int r = parse(&o, text);
    if (r < 0)
        return cpu_fail(NULL, r, "the options are isa=avx512|avx2|plain and threads=1..256");
    if (o.threads < 1)
        o.threads = 1;
    if (o.threads > CPU_THREADS_MAX)
        o.threads = CPU_THREADS_MAX;

    struct infer_backend *backend = calloc(1, sizeof *backend);
    if (!backend)
        return cpu_fail(NULL, -ENOMEM, "no memory for the backend");
    backend->host = host;
    if (!choose_isa(&backend->isa, o.isa)) {
        cpu_close(backend);
        return cpu_fail(NULL, -ENOTSUP, "this processor lacks the instructions of isa=%s", o.isa);
    }
    void *pool = NULL;
    if (posix_memalign(&pool, 128, sizeof(struct cpu_pool)) != 0) {
        cpu_close(backend);
        return cpu_fail(NULL, -ENOMEM, "no memory for the threads");
    }
    r = cpu_pool_init(pool, o.threads, host->cpus, host->n_cpus, host->nodes, host->n_nodes);
    if (r < 0) {
        free(pool);
        cpu_close(backend);
        return cpu_fail(NULL, r, "%u threads cannot be started", o.threads);
    }
    backend->pool = pool;
    *ret = backend;
    return 0;
}

static const char *cpu_last_error(const struct infer_backend *backend)
{
    (void)backend;
    return last_error;
}

static void cpu_describe(const struct infer_backend *backend, struct infer_device *ret)
{
    memset(ret, 0, sizeof *ret);
    uint32_t n = backend->pool->n_workers;
    snprintf(ret->name, sizeof ret->name, "CPU, %s, %u thread%s", backend->isa.name, n,
             n == 1 ? "" : "s");
}

static const struct infer_backend_api api = {
    .abi = INFER_BACKEND_ABI,
    .bytes = sizeof(struct infer_backend_api),
    .name = "cpu",
    .version = INFERD_VERSION,
    .open = cpu_open,
    .close = cpu_close,
    .last_error = cpu_last_error,
    .describe = cpu_describe,
    .estimate = cpu_model_estimate,
    .model_open = cpu_model_open,
    .tensor_write = cpu_model_write,
    .model_ready = cpu_model_ready,
    .model_close = cpu_model_close,
    .run = cpu_run,
    .page_copy = cpu_page_copy,
    .page_zero = cpu_page_zero,
    .page_read = cpu_page_read,
    .page_write = cpu_page_write,
    .page_shift = cpu_page_shift,
};

__attribute__((visibility("default"))) const struct infer_backend_api *infer_backend_v1(void)
{
    return &api;
}
