/* device.cuh: the instructions that C does not have, and how kernels are launched.
 *
 * Everything that is not plain C++ stands here, once: the kernels of this folder include this file
 * and use no inline assembly of their own. Where no nvcc compiles it (tests/support/cuda), the
 * same words come from an emulation that runs kernels on the processor, thread by thread, so that
 * their arithmetic is tested on machines without a GPU.
 *
 * Everything here means the same on every GPU from 7.5 on. What a GPU lacks is made of what it has:
 * below 8.0 tensor-core products are of half the depth and copies to shared memory go through
 * registers, below 9.0 a kernel starts when the one before it has ended. */
#ifndef INFERD_KERNELS_CUDA_DEVICE_CUH
#define INFERD_KERNELS_CUDA_DEVICE_CUH

#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <stdint.h>

#ifdef __CUDACC__

/* Whether kernels on the current device know how to wait for each other; one that is started early
 * and does not would read what is not yet there. */
static inline bool cuda_overlaps(void)
{
    int device = 0, major = 0;
    return cudaGetDevice(&device) == cudaSuccess &&
           cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) ==
               cudaSuccess &&
           major >= 9;
}

/* kernel<<<grid, block, shared_bytes, stream>>>(arguments...), which may start while the kernel
 * before it in the stream still runs: it must call cuda_wait() before it reads what that one wrote,
 * and before it writes anything. */
template <typename... Parameters, typename... Arguments>
static inline cudaError_t cuda_launch(void (*kernel)(Parameters...), dim3 grid, dim3 block,
                                      size_t shared_bytes, cudaStream_t stream,
                                      Arguments &&...arguments)
{
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = cuda_overlaps() ? 1 : 0;
    return cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
}

/* Until the kernels before this one are done and their writes are seen. */
static __device__ inline void cuda_wait(void)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
/* The next kernel may start to fill the processors that become free. */
static __device__ inline void cuda_let_next_start(void)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/* Dynamic shared memory, at a multiple of 16. */
#define CUDA_SHARED(type, name)                                                                    \
    extern __shared__ __align__(16) unsigned char cuda_shared[];                                   \
    type *name = reinterpret_cast<type *>(cuda_shared)

/* d += a b: a 16 x 16 (row), b 16 x 8 (column), d 16 x 8. Lane 4 g + q has of a {row g, columns
 * 2 q, 2 q + 1}, {row g + 8, the same}, {row g, columns 2 q + 8, 2 q + 9}, {row g + 8, the same};
 * of b {rows 2 q, 2 q + 1 of column g}, {rows 2 q + 8, 2 q + 9}; of d {row g, columns 2 q, 2 q +
 * 1}, {row g + 8, the same}. */
static __device__ inline void cuda_mma(float d[4], const uint32_t a[4], const uint32_t b[2])
{
#if __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
                 "{%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    for (int half = 0; half < 2; half++)
        asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, "
                     "{%6}, {%0,%1,%2,%3};"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "r"(a[2 * half]), "r"(a[2 * half + 1]), "r"(b[half]));
#endif
}

/* 16, 8, 4 bytes that are read once and that no kernel before this one wrote: weights. They may be
 * read before cuda_wait(). */
static __device__ inline uint4 cuda_stream16(const void *p)
{
    uint4 v;
#if __CUDA_ARCH__ >= 800
    asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p));
#else
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p));
#endif
    return v;
}
static __device__ inline uint2 cuda_stream8(const void *p)
{
    uint2 v;
    asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0,%1}, [%2];"
                 : "=r"(v.x), "=r"(v.y)
                 : "l"(p));
    return v;
}
static __device__ inline uint32_t cuda_stream4(const void *p)
{
    uint32_t v;
    asm volatile("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(v) : "l"(p));
    return v;
}

/* (a & mask) | with. */
static __device__ inline uint32_t cuda_and_or(uint32_t a, uint32_t mask, uint32_t with)
{
    uint32_t d;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(d) : "r"(a), "r"(mask), "r"(with));
    return d;
}

/* 16 bytes from global to shared memory, without a register in between; done when
 * cuda_copies_wait() says so, N groups younger than which may still be under way. */
static __device__ inline void cuda_copy16(void *shared, const void *global)
{
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                     (uint32_t)__cvta_generic_to_shared(shared)),
                 "l"(global)
                 : "memory");
#else
    *static_cast<uint4 *>(shared) = *static_cast<const uint4 *>(global);
#endif
}
static __device__ inline void cuda_copies_commit(void)
{
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int N> static __device__ inline void cuda_copies_wait(void)
{
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}

static __device__ inline float cuda_exp2(float x) /* 2 ulp; exactly 1 at 0, 0 at -infinity */
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

#else
#include "cuda/emulated.h"
#endif

/* Two half-precision numbers in a register. */
static __device__ inline uint32_t cuda_half2_bits(__half2 v)
{
    union {
        __half2 h;
        uint32_t u;
    } x;
    x.h = v;
    return x.u;
}
static __device__ inline __half2 cuda_bits_half2(uint32_t v)
{
    union {
        uint32_t u;
        __half2 h;
    } x;
    x.u = v;
    return x.h;
}
/* Rounded to nearest; beyond +-65504 cut to that. */
static __device__ inline uint32_t cuda_half2_cut(float low, float high)
{
    low = fminf(fmaxf(low, -65504.0f), 65504.0f);
    high = fminf(fmaxf(high, -65504.0f), 65504.0f);
    return cuda_half2_bits(__floats2half2_rn(low, high));
}

#endif
