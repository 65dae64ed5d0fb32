/* code.c: what of a device kernels may count on: its size, and what the code that it runs of them
 * was made for.
 *
 * A backend has its kernels more than once, as the Makefile's CUDA_CODE says: machine code ("sm_80"
 * for 8.0 and what followed until 9.0, "sm_90a" for 9.0 alone), and PTX ("compute_80"), which the
 * driver compiles for that and every newer device. A device runs the newest of them that it can,
 * and knows of nothing newer than that: what runs as code for 7.5 has its 64 KiB of shared memory
 * and no kernel that starts early, however new the device is.
 *
 * None of this makes a device's context. Threads: any. */
#include "cuda/cuda.h"

#include <stdlib.h>
#include <string.h>

/* Emulated (tests/support/cuda): for every device. */
#ifndef CUDA_CODE
#define CUDA_CODE ""
#endif

const char *cuda_codes(void)
{
    return CUDA_CODE;
}

/* What the code that `name` begins with was made for, 10 times; 0 where the device does not run it.
 */
static uint32_t code_of(const char *name, uint32_t capability)
{
    const bool ptx = strncmp(name, "compute_", 8) == 0;
    const char *number = strchr(name, '_');
    char *after;
    if (!number)
        return 0;
    const uint32_t code = (uint32_t)strtoul(number + 1, &after, 10);
    if (*after == 'a' ? code == capability
                      : code <= capability && (ptx || code / 10 == capability / 10))
        return code;
    return 0;
}

uint32_t cuda_code_for(const char *codes, uint32_t capability)
{
    uint32_t newest = 0;
    if (!*codes)
        return capability;
    while (*codes) {
        const uint32_t code = code_of(codes, capability);
        newest = code > newest ? code : newest;
        codes += strcspn(codes, " ");
        codes += strspn(codes, " ");
    }
    return newest;
}

cudaError_t cuda_limits_of_device(int device, struct cuda_limits *ret)
{
    static const enum cudaDeviceAttr attributes[] = {
        cudaDevAttrComputeCapabilityMajor, cudaDevAttrComputeCapabilityMinor,
        cudaDevAttrMultiProcessorCount, cudaDevAttrMaxSharedMemoryPerBlockOptin};
    int values[4] = {0};
    for (size_t i = 0; i < 4; i++) {
        cudaError_t error = cudaDeviceGetAttribute(&values[i], attributes[i], device);
        if (error != cudaSuccess)
            return error;
    }
    struct cuda_limits l = {.capability = (uint32_t)(10 * values[0] + values[1]),
                            .processors = (uint32_t)values[2],
                            .shared_bytes = (uint32_t)values[3]};
    l.code = cuda_code_for(CUDA_CODE, l.capability);
    if (l.code < 80 && l.shared_bytes > CUDA_SHARED_7_5)
        l.shared_bytes = CUDA_SHARED_7_5;
    *ret = l;
    return cudaSuccess;
}

cudaError_t cuda_limits_of(struct cuda_limits *ret)
{
    int device = 0;
    cudaError_t error = cudaGetDevice(&device);
    return error == cudaSuccess ? cuda_limits_of_device(device, ret) : error;
}
