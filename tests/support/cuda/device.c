/* device.c: the emulated device: what it says it is, its memory, and what is copied to and from it.
 *
 * Device memory is malloc's, so that AddressSanitizer knows its bounds, filled with 0xff. Copies
 * are checked against what was allocated: host memory is not device memory. */
#include "runtime.h"

#include <string.h>
#include <unistd.h>

enum memory_kind { MEMORY_DEVICE, MEMORY_PINNED, MEMORY_REGISTERED };
struct memory {
    struct memory *next;
    char *start;
    size_t bytes;
    enum memory_kind kind;
};

static struct memory *memories;
static size_t device_bytes;

/* ---- errors ---------------------------------------------------------------------------------- */

static const struct {
    cudaError_t error;
    const char *name, *text;
} errors[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration",
     "invalid configuration argument"},
    {cudaErrorInsufficientDriver, "cudaErrorInsufficientDriver",
     "CUDA driver version is insufficient for CUDA runtime version"},
    {cudaErrorNoDevice, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
    {cudaErrorIllegalAddress, "cudaErrorIllegalAddress",
     "an illegal memory access was encountered"},
    {cudaErrorHostMemoryAlreadyRegistered, "cudaErrorHostMemoryAlreadyRegistered",
     "part or all of the requested memory range is already mapped"},
    {cudaErrorHostMemoryNotRegistered, "cudaErrorHostMemoryNotRegistered",
     "pointer does not correspond to a registered memory region"},
    {cudaErrorStreamCaptureUnsupported, "cudaErrorStreamCaptureUnsupported",
     "operation not permitted when stream is capturing"},
    {cudaErrorStreamCaptureUnjoined, "cudaErrorStreamCaptureUnjoined",
     "capturing stream has unjoined work"},
};

const char *cudaGetErrorString(cudaError_t error)
{
    size_t i;
    for (i = 0; i < sizeof errors / sizeof *errors; i++) {
        if (errors[i].error == error)
            return errors[i].text;
    }
    return "unrecognized error code";
}
const char *cudaGetErrorName(cudaError_t error)
{
    size_t i;
    for (i = 0; i < sizeof errors / sizeof *errors; i++) {
        if (errors[i].error == error)
            return errors[i].name;
    }
    return "unrecognized error code";
}
/* ---- the device ------------------------------------------------------------------------------ */

size_t emulated_shared(void)
{
    return emulated_setting("capability", 90) < 80 ? (size_t)64 << 10 : EMULATED_SHARED_MAX;
}

static size_t memory_total(void)
{
    return emulated_setting("memory", (uint64_t)4 << 30);
}

/* None, as long as there is a file of the name in INFERD_CUDA_EMULATED_GONE. */
static uint64_t n_devices(void)
{
    const char *gone = getenv("INFERD_CUDA_EMULATED_GONE");
    return gone && access(gone, F_OK) == 0 ? 0 : emulated_setting("devices", 1);
}

cudaError_t cudaGetDeviceCount(int *count)
{
    *count = (int)n_devices();
    return emulated_result(*count ? cudaSuccess : cudaErrorNoDevice);
}
cudaError_t emulated_check_device(int device)
{
    const uint64_t n = n_devices();
    if (!n)
        return cudaErrorNoDevice;
    return device < 0 || (uint64_t)device >= n ? cudaErrorInvalidDevice : cudaSuccess;
}
cudaError_t cudaSetDevice(int device)
{
    return emulated_result(emulated_check_device(device));
}
cudaError_t cudaInitDevice(int device, unsigned int device_flags, unsigned int flags)
{
    return emulated_result(emulated_check_device(device));
}
cudaError_t cudaGetDevice(int *device)
{
    *device = 0;
    return emulated_result(emulated_check_device(0));
}
cudaError_t cudaSetDeviceFlags(unsigned int flags)
{
    return emulated_result(cudaSuccess);
}
cudaError_t cudaDeviceReset(void)
{
    if (emulated_enter())
        emulated_drain_all();
    return emulated_leave(cudaSuccess);
}
cudaError_t cudaDeviceSynchronize(void)
{
    cudaError_t error = cudaSuccess;
    if (emulated_enter()) {
        if (emulated_capture_forbids())
            error = cudaErrorStreamCaptureUnsupported;
        else
            emulated_drain_all();
    }
    return emulated_leave(error);
}
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *prop, int device)
{
    cudaError_t error = emulated_check_device(device);
    if (error)
        return emulated_result(error);
    memset(prop, 0, sizeof *prop);
    snprintf(prop->name, sizeof prop->name, "emulated");
    prop->totalGlobalMem = memory_total();
    prop->sharedMemPerBlock = EMULATED_SHARED_DEFAULT;
    prop->sharedMemPerBlockOptin = emulated_shared();
    prop->sharedMemPerMultiprocessor = prop->sharedMemPerBlockOptin + 1024;
    prop->regsPerBlock = 65536;
    prop->warpSize = 32;
    prop->maxThreadsPerBlock = 1024;
    prop->maxThreadsPerMultiProcessor = 2048;
    prop->major = (int)emulated_setting("capability", 90) / 10;
    prop->minor = (int)emulated_setting("capability", 90) % 10;
    prop->multiProcessorCount = (int)emulated_setting("sms", 132);
    prop->l2CacheSize = 50 << 20;
    prop->persistingL2CacheMaxSize = 32 << 20;
    prop->memoryBusWidth = 6144;
    prop->canMapHostMemory = prop->unifiedAddressing = 1;
    prop->asyncEngineCount = 3;
    return emulated_result(cudaSuccess);
}
cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attr, int device)
{
    struct cudaDeviceProp p;
    cudaError_t error = cudaGetDeviceProperties(&p, device);
    size_t i;
    if (error)
        return error;
    const struct {
        enum cudaDeviceAttr attr;
        int value;
    } table[] = {
        {cudaDevAttrMaxThreadsPerBlock, p.maxThreadsPerBlock},
        {cudaDevAttrMaxSharedMemoryPerBlock, (int)p.sharedMemPerBlock},
        {cudaDevAttrWarpSize, p.warpSize},
        {cudaDevAttrClockRate, 1980000},
        {cudaDevAttrMultiProcessorCount, p.multiProcessorCount},
        {cudaDevAttrIntegrated, 0},
        {cudaDevAttrCanMapHostMemory, 1},
        {cudaDevAttrPciBusId, 0},
        {cudaDevAttrMemoryClockRate, 3201000},
        {cudaDevAttrGlobalMemoryBusWidth, p.memoryBusWidth},
        {cudaDevAttrL2CacheSize, p.l2CacheSize},
        {cudaDevAttrMaxThreadsPerMultiProcessor, p.maxThreadsPerMultiProcessor},
        {cudaDevAttrComputeCapabilityMajor, p.major},
        {cudaDevAttrComputeCapabilityMinor, p.minor},
        {cudaDevAttrMaxSharedMemoryPerMultiprocessor, (int)p.sharedMemPerMultiprocessor},
        {cudaDevAttrMaxRegistersPerMultiprocessor, p.regsPerBlock},
        {cudaDevAttrHostRegisterSupported, 1},
        {cudaDevAttrCooperativeLaunch, 0},
        {cudaDevAttrMaxSharedMemoryPerBlockOptin, (int)p.sharedMemPerBlockOptin},
        {cudaDevAttrMaxPersistingL2CacheSize, p.persistingL2CacheMaxSize},
        {cudaDevAttrMemoryPoolsSupported, 0},
    };
    for (i = 0; i < sizeof table / sizeof *table; i++) {
        if (table[i].attr == attr) {
            *value = table[i].value;
            return cudaSuccess;
        }
    }
    return emulated_result(cudaErrorInvalidValue);
}
cudaError_t cudaDeviceGetPCIBusId(char *text, int bytes, int device)
{
    snprintf(text, (size_t)bytes, "0000:00:%02x.0", device);
    return emulated_result(emulated_check_device(device));
}
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest)
{
    *least = 0;
    *greatest = -5;
    return emulated_result(cudaSuccess);
}
cudaError_t cudaDriverGetVersion(int *version)
{
    *version = n_devices() ? CUDART_VERSION : 0;
    return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int *version)
{
    *version = CUDART_VERSION;
    return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes)
{
    emulated_enter();
    *total_bytes = memory_total();
    *free_bytes = device_bytes < *total_bytes ? *total_bytes - device_bytes : 0;
    return emulated_leave(emulated_check_device(0));
}

/* ---- memory ---------------------------------------------------------------------------------- */

static struct memory *memory_of(const void *pointer, size_t bytes)
{
    const char *p = pointer;
    struct memory *m;
    for (m = memories; m; m = m->next) {
        if (p >= m->start && p < m->start + m->bytes)
            return bytes <= m->bytes - (size_t)(p - m->start) ? m : NULL;
    }
    return NULL;
}

static void memory_add(void *start, size_t bytes, enum memory_kind kind)
{
    struct memory *m = emulated_must(calloc(1, sizeof *m));
    *m = (struct memory){memories, start, bytes, kind};
    memories = m;
}

/* Takes the block off the list; false when there is none that starts there. */
static bool memory_drop(void *start, enum memory_kind kind, size_t *ret_bytes)
{
    struct memory **link, *m;
    for (link = &memories; (m = *link); link = &m->next) {
        if (m->start == start && m->kind == kind) {
            *ret_bytes = m->bytes;
            *link = m->next;
            free(m);
            return true;
        }
    }
    return false;
}

cudaError_t cudaMalloc(void **pointer, size_t bytes)
{
    cudaError_t error = emulated_check_device(0);
    void *memory = NULL;
    *pointer = NULL;
    if (!emulated_enter() || error || !bytes)
        return emulated_leave(error);
    if (emulated_capture_forbids())
        return emulated_leave(cudaErrorStreamCaptureUnsupported);
    if (bytes > memory_total() || device_bytes > memory_total() - bytes ||
        posix_memalign(&memory, 256, bytes) != 0)
        return emulated_leave(cudaErrorMemoryAllocation);
    memset(memory, 0xff, bytes);
    memory_add(memory, bytes, MEMORY_DEVICE);
    device_bytes += bytes;
    *pointer = memory;
    return emulated_leave(cudaSuccess);
}
cudaError_t cudaFree(void *pointer)
{
    cudaError_t error = cudaSuccess;
    size_t bytes;
    emulated_enter();
    if (pointer) {
        if (emulated_capture_forbids())
            return emulated_leave(cudaErrorStreamCaptureUnsupported);
        emulated_drain_all();
        if (memory_drop(pointer, MEMORY_DEVICE, &bytes)) {
            device_bytes -= bytes;
            free(pointer);
        } else {
            error = cudaErrorInvalidValue;
        }
    }
    return emulated_leave(error);
}
cudaError_t cudaHostAlloc(void **pointer, size_t bytes, unsigned int flags)
{
    cudaError_t error = emulated_check_device(0);
    *pointer = NULL;
    if (!emulated_enter() || error || !bytes)
        return emulated_leave(error);
    if (emulated_capture_forbids())
        return emulated_leave(cudaErrorStreamCaptureUnsupported);
    if (posix_memalign(pointer, 4096, bytes) != 0)
        return emulated_leave(cudaErrorMemoryAllocation);
    memset(*pointer, 0xff, bytes);
    memory_add(*pointer, bytes, MEMORY_PINNED);
    return emulated_leave(cudaSuccess);
}
cudaError_t cudaMallocHost(void **pointer, size_t bytes)
{
    return cudaHostAlloc(pointer, bytes, 0);
}
cudaError_t cudaFreeHost(void *pointer)
{
    cudaError_t error = cudaSuccess;
    size_t bytes;
    emulated_enter();
    if (pointer) {
        emulated_drain_all();
        if (memory_drop(pointer, MEMORY_PINNED, &bytes))
            free(pointer);
        else
            error = cudaErrorInvalidValue;
    }
    return emulated_leave(error);
}
cudaError_t cudaHostRegister(void *pointer, size_t bytes, unsigned int flags)
{
    struct memory *m;
    char *start = pointer;
    if (!emulated_enter() || !pointer || !bytes)
        return emulated_leave(cudaErrorInvalidValue);
    for (m = memories; m; m = m->next) {
        if (start < m->start + m->bytes && m->start < start + bytes)
            return emulated_leave(m->kind == MEMORY_DEVICE ? cudaErrorInvalidValue
                                                           : cudaErrorHostMemoryAlreadyRegistered);
    }
    memory_add(pointer, bytes, MEMORY_REGISTERED);
    return emulated_leave(cudaSuccess);
}
cudaError_t cudaHostUnregister(void *pointer)
{
    size_t bytes;
    emulated_enter();
    emulated_drain_all();
    return emulated_leave(memory_drop(pointer, MEMORY_REGISTERED, &bytes)
                              ? cudaSuccess
                              : cudaErrorHostMemoryNotRegistered);
}
cudaError_t cudaHostGetDevicePointer(void **device, void *host, unsigned int flags)
{
    struct memory *m;
    emulated_enter();
    m = memory_of(host, 1);
    *device = m ? host : NULL;
    return emulated_leave(m && m->kind != MEMORY_DEVICE ? cudaSuccess : cudaErrorInvalidValue);
}

/* ---- copies ---------------------------------------------------------------------------------- */

static size_t extent(size_t pitch, size_t width, size_t height)
{
    return height ? pitch * (height - 1) + width : 0;
}

/* Both ends must be where `kind` says. */
static cudaError_t check_ends(const struct op *op, enum cudaMemcpyKind kind)
{
    const struct memory *to = memory_of(op->to, extent(op->to_pitch, op->width, op->height));
    const struct memory *from = memory_of(op->from, extent(op->from_pitch, op->width, op->height));
    bool to_device = to && to->kind == MEMORY_DEVICE;
    bool from_device = from && from->kind == MEMORY_DEVICE;
    if (kind == cudaMemcpyDefault)
        return cudaSuccess;
    if (to_device != (kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice) ||
        from_device != (kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice))
        return cudaErrorInvalidValue;
    return cudaSuccess;
}

/* Pageable memory on the host is read before an asynchronous copy returns, and written before. */
static cudaError_t copy(struct op *op, enum cudaMemcpyKind kind, struct CUstream_st *stream,
                        bool wait)
{
    cudaError_t error = check_ends(op, kind);
    size_t bytes = extent(op->from_pitch, op->width, op->height);
    bool pageable_from = !memory_of(op->from, 1), pageable_to = !memory_of(op->to, 1);
    if (!error && wait && emulated_capture_forbids())
        error = cudaErrorStreamCaptureImplicit;
    if (error) {
        emulated_op_unref(op);
        return error;
    }
    if (!op->width || !op->height) {
        emulated_op_unref(op);
        return cudaSuccess;
    }
    if (pageable_from && !stream->capture) {
        op->staged = emulated_must(malloc(bytes));
        memcpy(op->staged, op->from, bytes);
        op->from = op->staged;
    }
    emulated_put(stream, op);
    if (wait || (pageable_to && !stream->capture))
        emulated_drain(stream->queue, stream->queue->asked);
    return cudaSuccess;
}

static cudaError_t copy_call(void *to, size_t to_pitch, const void *from, size_t from_pitch,
                             size_t width, size_t height, enum cudaMemcpyKind kind,
                             cudaStream_t stream, bool wait)
{
    struct op *op;
    if (width > to_pitch || width > from_pitch)
        return emulated_result(cudaErrorInvalidValue);
    if (!emulated_enter())
        return emulated_leave(emulated_lost);
    op = emulated_op_new(OP_COPY);
    op->to = to;
    op->from = from;
    op->to_pitch = to_pitch;
    op->from_pitch = from_pitch;
    op->width = width;
    op->height = height;
    return emulated_leave(copy(op, kind, emulated_stream_of(stream), wait));
}
cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind)
{
    return copy_call(to, bytes, from, bytes, bytes, 1, kind, NULL, true);
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind,
                            cudaStream_t stream)
{
    return copy_call(to, bytes, from, bytes, bytes, 1, kind, stream, false);
}
cudaError_t cudaMemcpy2D(void *to, size_t to_pitch, const void *from, size_t from_pitch,
                         size_t width, size_t height, enum cudaMemcpyKind kind)
{
    return copy_call(to, to_pitch, from, from_pitch, width, height, kind, NULL, true);
}
cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch,
                              size_t width, size_t height, enum cudaMemcpyKind kind,
                              cudaStream_t stream)
{
    return copy_call(to, to_pitch, from, from_pitch, width, height, kind, stream, false);
}
cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream)
{
    struct memory *m;
    struct op *op;
    if (!emulated_enter())
        return emulated_leave(emulated_lost);
    m = memory_of(to, bytes);
    if (!m && bytes)
        return emulated_leave(cudaErrorInvalidValue);
    op = emulated_op_new(OP_FILL);
    op->to = to;
    op->value = value;
    op->width = bytes;
    emulated_put(emulated_stream_of(stream), op);
    return emulated_leave(cudaSuccess);
}
cudaError_t cudaMemset(void *to, int value, size_t bytes)
{
    return cudaMemsetAsync(to, value, bytes, NULL);
}
