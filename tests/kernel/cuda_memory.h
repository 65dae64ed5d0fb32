/* cuda_memory.h: device memory for tests of single kernels that run on the emulation and, by make
 * check-gpu, on the GPU, so everything goes through CUDA's own interface. Header only; include
 * after cmocka.h. */
#ifndef TESTS_KERNEL_CUDA_MEMORY_H
#define TESTS_KERNEL_CUDA_MEMORY_H

#include <cuda_runtime_api.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static inline void must_at(cudaError_t error, const char *what, int line)
{
    if (error != cudaSuccess)
        fail_msg("line %d: %s: %s", line, what, cudaGetErrorString(error));
}
#define must(call) must_at(call, #call, __LINE__)

/* Device memory with a copy of `bytes` bytes, or full of 0xff, which are NaN, when from is NULL. */
static inline void *to_device(const void *from, size_t bytes)
{
    void *memory = NULL;
    must(cudaMalloc(&memory, bytes));
    must(cudaMemset(memory, 0xff, bytes));
    if (from)
        must(cudaMemcpy(memory, from, bytes, cudaMemcpyHostToDevice));
    return memory;
}

/* A copy in host memory, to be freed, of what the device has when all is done. */
static inline void *from_device(const void *memory, size_t bytes)
{
    void *copy = malloc(bytes);
    assert_non_null(copy);
    must(cudaDeviceSynchronize());
    must(cudaMemcpy(copy, memory, bytes, cudaMemcpyDeviceToHost));
    return copy;
}

static uint64_t rig_seed = 1;

static inline uint32_t rig_draw(void)
{
    rig_seed = rig_seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(rig_seed >> 33);
}

/* About normal, deviation 1. */
static inline float rig_normal(void)
{
    float sum = 0;
    for (int i = 0; i < 12; i++)
        sum += (float)(rig_draw() >> 7) * 0x1p-24f;
    return sum - 6.0f;
}

static inline float *rig_normals(size_t n, float scale)
{
    float *values = malloc(n * sizeof *values);
    assert_non_null(values);
    for (size_t i = 0; i < n; i++)
        values[i] = scale * rig_normal();
    return values;
}

#endif
