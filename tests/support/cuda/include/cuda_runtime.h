/* cuda_runtime.h: CUDA's words of the language, its vector types and the C++ face of the runtime
 * interface, for the emulation (tests/support/cuda/emulated.h). */
#ifndef INFERD_TESTS_CUDA_RUNTIME_H
#define INFERD_TESTS_CUDA_RUNTIME_H

#include "cuda_runtime_api.h"

#ifdef __cplusplus

/* Before the words below: the system's headers use some of them as attributes. */
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <tuple>
#include <utility>

#define __host__
#define __device__
#define __global__
#define __constant__
#define __grid_constant__
#define __shared__ static
#define __managed__
#define __launch_bounds__(...)
/* The compiler knows better: where it obeyed, it took four times as long for the same speed. */
#define __forceinline__ inline
#define __align__(n)    __attribute__((aligned(n)))

#define CUDA_VECTOR(type, name, align2, align4)                                                    \
    struct name##1                                                                                 \
    {                                                                                              \
        type x;                                                                                    \
    };                                                                                             \
    struct __attribute__((aligned(align2))) name##2                                                \
    {                                                                                              \
        type x, y;                                                                                 \
    };                                                                                             \
    struct name##3                                                                                 \
    {                                                                                              \
        type x, y, z;                                                                              \
    };                                                                                             \
    struct __attribute__((aligned(align4))) name##4                                                \
    {                                                                                              \
        type x, y, z, w;                                                                           \
    };                                                                                             \
    static inline name##2 make_##name##2(type x, type y)                                           \
    {                                                                                              \
        return {x, y};                                                                             \
    }                                                                                              \
    static inline name##3 make_##name##3(type x, type y, type z)                                   \
    {                                                                                              \
        return {x, y, z};                                                                          \
    }                                                                                              \
    static inline name##4 make_##name##4(type x, type y, type z, type w)                           \
    {                                                                                              \
        return {x, y, z, w};                                                                       \
    }
CUDA_VECTOR(signed char, char, 2, 4)
CUDA_VECTOR(unsigned char, uchar, 2, 4)
CUDA_VECTOR(short, short, 4, 8)
CUDA_VECTOR(unsigned short, ushort, 4, 8)
CUDA_VECTOR(int, int, 8, 16)
CUDA_VECTOR(unsigned int, uint, 8, 16)
CUDA_VECTOR(long long, longlong, 16, 16)
CUDA_VECTOR(unsigned long long, ulonglong, 16, 16)
CUDA_VECTOR(float, float, 8, 16)
CUDA_VECTOR(double, double, 16, 16)
#undef CUDA_VECTOR

struct dim3 {
    unsigned int x, y, z;
    constexpr dim3(unsigned int x_ = 1, unsigned int y_ = 1, unsigned int z_ = 1)
        : x(x_), y(y_), z(z_)
    {
    }
};

template <class T> static inline cudaError_t cudaMalloc(T **pointer, size_t bytes)
{
    return cudaMalloc((void **)(void *)pointer, bytes);
}
template <class T> static inline cudaError_t cudaMallocHost(T **pointer, size_t bytes)
{
    return cudaMallocHost((void **)(void *)pointer, bytes);
}
template <class T>
static inline cudaError_t cudaFuncSetAttribute(T *function, enum cudaFuncAttribute attr, int value)
{
    return cudaFuncSetAttribute((const void *)function, attr, value);
}
template <class T>
static inline cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *ret, T *function)
{
    return cudaFuncGetAttributes(ret, (const void *)function);
}
template <class T>
static inline cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *ret, T *function,
                                                                        int block_threads,
                                                                        size_t shared_bytes)
{
    return cudaOccupancyMaxActiveBlocksPerMultiprocessor(ret, (const void *)function, block_threads,
                                                         shared_bytes);
}

#endif
#endif
