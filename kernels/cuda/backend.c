/* backend.c: the entry point of inferd-backend-cuda.so: its options, the device, what errors mean.
 *
 * Options: "device=N", which of the visible devices (0); and for diagnosis "graphs=0", every launch
 * by itself, "chains=N", products chained where sequences have up to N tokens (4096; chain.c), and
 * "profile=N", where the time of each N steps went, to the log.
 *
 * Errors of the CUDA runtime are of three kinds. Some say that a call was not possible, and the
 * device is as before (-ENOMEM, -EIO). All others may mean that the device's context is gone, so
 * that nothing in this process will run on it again (-ENODEV): the backend remembers that, and from
 * then on every call answers so at once. Threads: any; errors are the calling thread's. */
#include "cuda/model.h"

#include "ref/options.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* The oldest that is used, 10 times the number: tensor cores with half-precision factors and
 * float32 sums of 16 x 8 numbers begin here. */
#define CAPABILITY_MIN 75

/* Of the calling thread: one may load a model while another steps. */
static _Thread_local char last_error[256] = "the backend is not open";

int cuda_fail(int error, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(last_error, sizeof last_error, format, args);
    va_end(args);
    return error;
}

void cuda_log(const struct infer_backend *backend, int level, const char *format, ...)
{
    char text[256];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    backend->host->log(backend->host->ctx, level, text);
}

/* What refuses a call and leaves the device sound. */
static bool is_harmless(cudaError_t error)
{
    switch (error) {
    case cudaErrorInvalidValue:
    case cudaErrorInvalidConfiguration:
    case cudaErrorInvalidDeviceFunction:
    case cudaErrorInvalidResourceHandle:
    case cudaErrorLaunchOutOfResources:
    case cudaErrorNotSupported:
    case cudaErrorHostMemoryAlreadyRegistered:
    case cudaErrorStreamCaptureUnsupported:
    case cudaErrorStreamCaptureInvalidated:
    case cudaErrorStreamCaptureUnjoined:
        return true;
    default:
        return false;
    }
}

int cuda_check(struct infer_backend *backend, cudaError_t error, const char *what)
{
    if (error == cudaSuccess)
        return 0;
    cudaGetLastError(); /* or the next call would be blamed */
    if (error == cudaErrorMemoryAllocation)
        return cuda_fail(-ENOMEM, "device %d has no memory left: %s", backend->device, what);
    if (is_harmless(error))
        return cuda_fail(-EIO, "%s: %s", what, cudaGetErrorString(error));
    atomic_store(&backend->lost, true);
    return cuda_fail(-ENODEV, "device %d is lost: %s: %s", backend->device, what,
                     cudaGetErrorString(error));
}

int cuda_enter(struct infer_backend *backend)
{
    if (atomic_load(&backend->lost))
        return cuda_fail(-ENODEV, "device %d was lost by an earlier error", backend->device);
    return cuda_check(backend, cudaSetDevice(backend->device), "choosing the device");
}

/* ---- the device ------------------------------------------------------------------------------ */

/* Why there is no device, in a sentence. */
static int no_device(cudaError_t error)
{
    int driver = 0, runtime = 0;
    cudaGetLastError();
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    if (driver == 0)
        return cuda_fail(-ENODEV, "there is no NVIDIA driver on this machine (libcuda.so.1)");
    if (error == cudaErrorInsufficientDriver)
        return cuda_fail(-ENODEV,
                         "the NVIDIA driver is for CUDA %d.%d, older than the %d.%d that this "
                         "backend was built with",
                         driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
    if (error == cudaSuccess || error == cudaErrorNoDevice)
        return cuda_fail(-ENODEV, "there is a driver but no NVIDIA GPU is visible to this process");
    return cuda_fail(-ENODEV, "no NVIDIA GPU can be used: %s", cudaGetErrorString(error));
}

/* Whether the device runs the backend's kernels. */
static int check_limits(const struct infer_backend *b, const struct cuda_limits *device)
{
    const uint32_t c = device->capability;
    if (c < CAPABILITY_MIN)
        return cuda_fail(-ENOTSUP,
                         "GPU %d has compute capability %u.%u and %d.%d or newer is needed; "
                         "use device = cpu for models that name it",
                         b->device, c / 10, c % 10, CAPABILITY_MIN / 10, CAPABILITY_MIN % 10);
    if (device->code == 0)
        return cuda_fail(-ENOTSUP,
                         "GPU %d has compute capability %u.%u and this backend was built for %s; "
                         "build it with make CUDA_CODE=compute_%u",
                         b->device, c / 10, c % 10, cuda_codes(), c);
    return 0;
}

/* Chooses the device and asks what it is. None of this makes the device's context, which takes some
 * hundred megabytes there and a quarter of a second: that comes with the first model. */
static int find_device(struct infer_backend *b)
{
    int n = 0, driver = 0;
    struct cudaDeviceProp properties;
    struct cuda_limits limits;
    cudaError_t error = cudaGetDeviceCount(&n);
    if (error != cudaSuccess || n < 1)
        return no_device(error);
    if (b->device >= n)
        return cuda_fail(-ENODEV, "there is no GPU %d: %d %s visible, counted from 0", b->device, n,
                         n == 1 ? "is" : "are");
    error = cuda_limits_of_device(b->device, &limits);
    if (error == cudaSuccess) {
        const int r = check_limits(b, &limits);
        if (r < 0)
            return r;
        error = cudaGetDeviceProperties(&properties, b->device);
    }
    if (error != cudaSuccess) {
        cudaGetLastError();
        return cuda_fail(-ENODEV, "GPU %d cannot be used: %s", b->device,
                         cudaGetErrorString(error));
    }
    cudaDriverGetVersion(&driver);
    b->memory = properties.totalGlobalMem;
    b->n_processors = limits.processors;
    b->shared_bytes = limits.shared_bytes;
    snprintf(b->name, sizeof b->name, "%.32s, %u SMs, driver %d.%d", properties.name,
             limits.processors, driver / 1000, driver % 1000 / 10);
    return 0;
}

/* ---- the interface --------------------------------------------------------------------------- */

static int take_option(struct infer_backend *b, const struct ref_option *option)
{
    if (!strcmp(option->key, "device") && option->value < 1024)
        b->device = (int)option->value;
    else if (!strcmp(option->key, "graphs") && option->value <= 1)
        b->graphs = option->value == 1;
    else if (!strcmp(option->key, "chains") && option->value <= UINT32_MAX)
        b->chains = (uint32_t)option->value;
    else if (!strcmp(option->key, "profile") && option->value <= 1u << 20)
        b->profile = (uint32_t)option->value;
    else
        return cuda_fail(-EINVAL, "the options are device=N, graphs=0|1, chains=N and profile=N");
    return 0;
}

static int cuda_open(const struct infer_host *host, const char *text, struct infer_backend **ret)
{
    struct infer_backend b = {.host = host, .graphs = true, .chains = CUDA_CHAIN_TOKENS};
    struct ref_option option;
    const char *cursor = text ? text : "";
    int got, r = 0;
    if (host->abi != INFER_BACKEND_ABI)
        return cuda_fail(-EINVAL, "the daemon speaks backend version %u, this is %u", host->abi,
                         INFER_BACKEND_ABI);
    while ((got = ref_option_next(&cursor, &option)) > 0 && r == 0)
        r = take_option(&b, &option);
    if (got < 0)
        r = cuda_fail(-EINVAL, "options are key=number,key=number, not '%.100s'", cursor);
    if (r == 0)
        r = find_device(&b);
    struct infer_backend *backend = NULL;
    if (r == 0) {
        backend = host->memory_take(host->ctx, sizeof *backend);
        if (!backend)
            r = cuda_fail(-ENOMEM, "no memory for the backend");
    }
    if (r < 0) /* why is told by the daemon, once, if whoever asked is to hear of it at all */
        return r;
    *backend = b;
    *ret = backend;
    return 0;
}

static void cuda_close(struct infer_backend *backend)
{
    if (!backend)
        return;
    cuda_chain_close(backend);
    backend->host->memory_give(backend->host->ctx, backend, sizeof *backend);
}

static const char *cuda_last_error(const struct infer_backend *backend)
{
    (void)backend;
    return last_error;
}

static void cuda_describe(const struct infer_backend *backend, struct infer_device *ret)
{
    size_t memory_free = 0, memory;
    memset(ret, 0, sizeof *ret);
    snprintf(ret->name, sizeof ret->name, "%s", backend->name);
    ret->memory = backend->memory;
    ret->read_bytes_per_s = atomic_load(&backend->read_bytes_per_s);
    if (atomic_load(&backend->lost))
        return;
    if (!atomic_load(&backend->begun)) {
        ret->memory_free = backend->memory; /* without a context nobody can say more */
        return;
    }
    if (cudaSetDevice(backend->device) == cudaSuccess &&
        cudaMemGetInfo(&memory_free, &memory) == cudaSuccess)
        ret->memory_free = memory_free;
    cudaGetLastError();
}

static const struct infer_backend_api api = {
    .abi = INFER_BACKEND_ABI,
    .bytes = sizeof(struct infer_backend_api),
    .name = "cuda",
    .version = INFERD_VERSION,
    .open = cuda_open,
    .close = cuda_close,
    .last_error = cuda_last_error,
    .describe = cuda_describe,
    .estimate = cuda_model_estimate,
    .model_open = cuda_model_open,
    .tensor_write = cuda_model_write,
    .model_ready = cuda_model_ready,
    .model_close = cuda_model_close,
    .run = cuda_run,
    .page_copy = cuda_page_copy,
    .page_zero = cuda_page_zero,
    .page_read = cuda_page_read,
    .page_write = cuda_page_write,
    .page_shift = cuda_page_shift,
    .rows_pin = cuda_rows_pin,
    .rows_wait = cuda_rows_wait,
    .rows_unpin = cuda_rows_unpin,
    .submit = cuda_submit,
    .collect = cuda_collect,
    .max_under_way = CUDA_RUNS,
};

__attribute__((visibility("default"))) const struct infer_backend_api *infer_backend_v1(void)
{
    return &api;
}
