/* device.cuh: the instructions that C does not have, and how kernels are launched.
 *
 * Everything that is not plain C++ stands here, once: the kernels of this folder include this file
 * and use no inline assembly of their own. Where no nvcc compiles it (tests/support/cuda), the
 * same words come from an emulation that runs kernels on the processor, thread by thread, so that
 * their arithmetic is tested on machines without a GPU.
 *
 * Everything here means the same on every GPU from 7.5 on. What a GPU lacks is made of what it has:
 * below 9.0 a kernel starts when the one before it has ended, and bulk copies are many small ones;
 * everywhere but on 9.0 products of four warps are products of each; and below 8.0 a tensor-core
 * product is two of half as many columns, a barrier in shared memory a counter, and a copy that
 * should be under way is done at once. */
#ifndef INFERD_KERNELS_CUDA_DEVICE_CUH
#define INFERD_KERNELS_CUDA_DEVICE_CUH

#include "cuda/cuda.h"

#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <stdint.h>

/* What a block has of shared memory at most where this code runs: a kernel that takes more need not
 * be compiled. */
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#define CUDA_SHARED_MOST CUDA_SHARED_7_5
#else
#define CUDA_SHARED_MOST CUDA_SHARED_9_0
#endif

#ifdef __CUDACC__

/* Whether kernels on the current device know how to wait for each other; one that is started early
 * and does not would read what is not yet there. */
static inline bool cuda_overlaps(void)
{
    struct cuda_limits device;
    return cuda_limits_of(&device) == cudaSuccess && device.code >= 90;
}

/* kernel<<<grid, block, shared_bytes, stream>>>(arguments...), which may start while the kernel
 * before it in the stream still runs: it must call cuda_wait() before it reads what that one wrote,
 * and before it writes anything. Every kernel wants all of a processor's memory to be shared
 * memory, as products do: to divide it anew between two kernels, a processor would have to run
 * empty. */
template <typename... Parameters, typename... Arguments>
static inline cudaError_t cuda_launch(void (*kernel)(Parameters...), dim3 grid, dim3 block,
                                      size_t shared_bytes, cudaStream_t stream,
                                      Arguments &&...arguments)
{
    cudaLaunchAttribute attributes[2] = {};
    attributes[0].id = cudaLaunchAttributePreferredSharedMemoryCarveout;
    attributes[0].val.sharedMemCarveout = cudaSharedmemCarveoutMaxShared;
    attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[1].val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    config.attrs = attributes;
    config.numAttrs = 1 + (cuda_overlaps() ? 1 : 0);
    return cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
}

/* The same for blocks that wait for each other, and therefore must all run at the same time: there
 * may be as many of them as cuda_blocks_at_once() says, and no other kernel that waits beside them.
 */
template <typename... Parameters, typename... Arguments>
static inline cudaError_t cuda_launch_together(void (*kernel)(Parameters...), dim3 grid, dim3 block,
                                               size_t shared_bytes, cudaStream_t stream,
                                               Arguments &&...arguments)
{
    return cuda_launch(kernel, grid, block, shared_bytes, stream,
                       static_cast<Arguments &&>(arguments)...);
}
/* Whatever the device has; where threads are emulated, fewer. */
#define CUDA_TOGETHER_MAX UINT32_MAX
/* One a processor; 0: there is no room, or a kernel does not start before the one before it ends.
 */
template <class Kernel>
static inline uint32_t cuda_blocks_at_once(Kernel kernel, uint32_t threads, size_t shared_bytes)
{
    int device = 0, processors = 0, per_processor = 0;
    if (!cuda_overlaps() || cudaGetDevice(&device) != cudaSuccess ||
        cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device) !=
            cudaSuccess ||
        cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_processor, kernel, (int)threads,
                                                      shared_bytes) != cudaSuccess)
        return 0;
    return per_processor ? (uint32_t)processors : 0;
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

/* Dynamic shared memory, at a multiple of 128. */
#define CUDA_SHARED(type, name)                                                                    \
    extern __shared__ __align__(128) unsigned char cuda_shared[];                                  \
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
#pragma unroll
    for (uint32_t k = 0; k < 2; k++) /* columns 0 .. 7 of a, then 8 .. 15 */
        asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, "
                     "{%6}, {%0,%1,%2,%3};"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "r"(a[2 * k]), "r"(a[2 * k + 1]), "r"(b[k]));
#endif
}

/* 16, 8, 4 bytes that are read once and that no kernel before this one wrote. They may be read
 * before cuda_wait(). */
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

/* *to += v, of which nobody waits for the end and no other thread writes; what is subnormal is 0.
 */
static __device__ inline void cuda_add_to(float *to, float v)
{
    asm volatile("red.relaxed.gpu.global.add.f32 [%0], %1;" ::"l"(to), "f"(v) : "memory");
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
    *(uint4 *)shared = __ldcg((const uint4 *)global);
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

/* ---- between blocks that run at the same time --------------------------------------------------
 */

/* 16 bytes as they are now, past the first-level cache; what else their writer wrote may not be
 * there yet. */
static __device__ inline uint4 cuda_now16(const void *p)
{
    uint4 v;
    asm volatile("ld.relaxed.gpu.global.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p)
                 : "memory");
    return v;
}
/* Between two looks. */
static __device__ inline void cuda_look_again(void)
{
}

/* n threads of a block, a multiple of 32, meet at its barrier `id` (1 .. 15). */
static __device__ inline void cuda_meet(uint32_t id, uint32_t n)
{
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(n) : "memory");
}

/* ---- barriers in shared memory ----------------------------------------------------------------
 */

/* A barrier that opens when `count` have come, again and again: its phase n (from 0) is over when
 * they have come n + 1 times. To be made by one thread before anybody else uses it; after it comes
 * cuda_barriers_made() by that thread, and __syncthreads(). */
struct cuda_barrier {
    uint64_t state;
};

static __device__ inline uint32_t cuda_shared_address(const void *shared)
{
    return (uint32_t)__cvta_generic_to_shared(shared);
}
#if __CUDA_ARCH__ >= 800
static __device__ inline void cuda_barrier_make(cuda_barrier *b, uint32_t count)
{
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(cuda_shared_address(b)), "r"(count)
                 : "memory");
}
static __device__ inline void cuda_barrier_arrive(cuda_barrier *b)
{
    asm volatile(
        "{ .reg .b64 token; mbarrier.arrive.shared.b64 token, [%0]; }" ::"r"(cuda_shared_address(b))
        : "memory");
}
/* Whether the phase of that parity is over. */
static __device__ inline bool cuda_barrier_test(const cuda_barrier *b, uint32_t parity)
{
    uint32_t over;
#if __CUDA_ARCH__ >= 900
    asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2;\n"
                 "selp.u32 %0, 1, 0, p; }"
                 : "=r"(over)
                 : "r"(cuda_shared_address(b)), "r"(parity)
                 : "memory");
#else
    asm volatile("{ .reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2;\n"
                 "selp.u32 %0, 1, 0, p; }"
                 : "=r"(over)
                 : "r"(cuda_shared_address(b)), "r"(parity)
                 : "memory");
#endif
    return over;
}
#else
/* In state, low and high: how many have come since it was made, less than 2^32 in a kernel; count.
 */
static __device__ inline void cuda_barrier_make(cuda_barrier *b, uint32_t count)
{
    b->state = (uint64_t)count << 32;
}
static __device__ inline void cuda_barrier_arrive(cuda_barrier *b)
{
    asm volatile("red.release.cta.shared.add.u32 [%0], 1;" ::"r"(cuda_shared_address(b))
                 : "memory");
}
static __device__ inline bool cuda_barrier_test(const cuda_barrier *b, uint32_t parity)
{
    uint32_t come;
    asm volatile("ld.acquire.cta.shared.u32 %0, [%1];"
                 : "=r"(come)
                 : "r"(cuda_shared_address(b))
                 : "memory");
    return (come / (uint32_t)(b->state >> 32) & 1) != parity;
}
#endif
static __device__ inline void cuda_barriers_made(void)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}
/* Until the phase of that parity is over; what those who came had written is then seen. */
static __device__ inline void cuda_barrier_wait(cuda_barrier *b, uint32_t parity)
{
    while (!cuda_barrier_test(b, parity))
        ;
}

/* Copies of many bytes to shared memory that a barrier waits for, by all lanes of one warp: open
 * with the sum of their bytes, the copies (of multiples of 16 bytes), close. The barrier counts
 * CUDA_BULK_COUNT for it. */
#if __CUDA_ARCH__ >= 900 || __CUDA_ARCH__ < 800
#define CUDA_BULK_COUNT 1u
#else
#define CUDA_BULK_COUNT 32u
#endif
static __device__ inline void cuda_bulk_open(cuda_barrier *b, uint32_t bytes, uint32_t lane)
{
#if __CUDA_ARCH__ >= 900
    if (lane == 0)
        asm volatile(
            "mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(cuda_shared_address(b)),
            "r"(bytes)
            : "memory");
#endif
}
static __device__ inline void cuda_bulk_copy(void *shared, const void *global, uint32_t bytes,
                                             cuda_barrier *b, uint32_t lane)
{
#if __CUDA_ARCH__ >= 900
    if (lane == 0)
        asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], "
                     "[%1], %2, [%3];" ::"r"(cuda_shared_address(shared)),
                     "l"(global), "r"(bytes), "r"(cuda_shared_address(b))
                     : "memory");
#else
    for (uint32_t at = 16 * lane; at < bytes; at += 512)
        cuda_copy16((uint8_t *)shared + at, (const uint8_t *)global + at);
#endif
}
static __device__ inline void cuda_bulk_close(cuda_barrier *b, uint32_t lane)
{
#if __CUDA_ARCH__ < 800
    __syncwarp();
    if (lane == 0)
        cuda_barrier_arrive(b);
#elif __CUDA_ARCH__ < 900
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(cuda_shared_address(b))
                 : "memory");
#endif
}

/* The same by one lane alone, on 9.0 and newer, of what nobody reads again: it is the first that
 * the second-level cache forgets. Expect the sum of their bytes, the copies, expected; the barrier
 * counts 1. */
static __device__ inline void cuda_bulk_expect(cuda_barrier *b, uint32_t bytes)
{
    cuda_bulk_open(b, bytes, 0);
}
static __device__ inline void cuda_bulk_one(void *shared, const void *global, uint32_t bytes,
                                            cuda_barrier *b)
{
#if __CUDA_ARCH__ >= 900
    const uint64_t evict_first = 0x12f0000000000000; /* as createpolicy makes it */
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
                 "[%0], [%1], %2, [%3], %4;" ::"r"(cuda_shared_address(shared)),
                 "l"(global), "r"(bytes), "r"(cuda_shared_address(b)), "l"(evict_first)
                 : "memory");
#else
    __trap();
#endif
}
static __device__ inline void cuda_bulk_expected(cuda_barrier *b)
{
}

/* After a warp has written to shared memory, and met: it may be where bulk copies go. */
static __device__ inline void cuda_bulk_after_stores(void)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

static __device__ inline float cuda_exp2(float x) /* 2 ulp; exactly 1 at 0, 0 at -infinity */
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
static __device__ inline float cuda_reciprocal(float x) /* 1 ulp; of infinity 0 */
{
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

#else
#include "cuda/emulated.h"
#endif

#include "cuda/group_mma.cuh"

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
