/* backend_host.h: what a test of a backend needs: a host that counts its memory, and the backend's
 * table out of the build folder. Header only; include after cmocka.h. */
#ifndef INFERD_TESTS_KERNEL_BACKEND_HOST_H
#define INFERD_TESTS_KERNEL_BACKEND_HOST_H

#include "inferd/backend.h"

#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

struct host_memory {
    uint64_t held;  /* bytes that the backend has now */
    uint64_t takes; /* calls so far */
    uint64_t limit; /* memory_take gives NULL beyond it; 0: none */
};

static inline void *host_take(void *ctx, size_t bytes)
{
    struct host_memory *memory = ctx;
    void *taken = NULL;
    if (memory->limit != 0 && memory->held + bytes > memory->limit)
        return NULL;
    if (posix_memalign(&taken, 64, bytes != 0 ? bytes : 64) != 0)
        return NULL;
    for (size_t i = 0; i < bytes; i++)
        ((uint8_t *)taken)[i] = 0;
    memory->held += bytes;
    memory->takes++;
    return taken;
}

static inline void host_give(void *ctx, void *taken, size_t bytes)
{
    struct host_memory *memory = ctx;
    memory->held -= bytes;
    free(taken);
}

static inline void host_log(void *ctx, int level, const char *text)
{
    (void)ctx;
    (void)level;
    (void)text;
}

static inline struct infer_host host_make(struct host_memory *memory)
{
    static const uint32_t cpus[1] = {0};
    return (struct infer_host){
        .abi = INFER_BACKEND_ABI,
        .ctx = memory,
        .log = host_log,
        .memory_take = host_take,
        .memory_give = host_give,
        .cpus = cpus,
        .n_cpus = 1,
    };
}

/* The table of build/inferd-backend-NAME.so, as the daemon would load it. */
static inline const struct infer_backend_api *host_load(const char *name)
{
    const char *folder = getenv("INFERD_BUILD");
    char path[512];
    snprintf(path, sizeof path, "%s/inferd-backend-%s.so", folder ? folder : "build", name);
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL)
        fail_msg("%s", dlerror());
    infer_backend_entry entry;
    *(void **)&entry = dlsym(library, INFER_BACKEND_SYMBOL);
    assert_non_null(entry);
    const struct infer_backend_api *api = entry();
    assert_int_equal(api->abi, INFER_BACKEND_ABI);
    assert_int_equal(api->bytes, sizeof *api);
    return api;
}

#endif
