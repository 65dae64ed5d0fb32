/* group_mma.cuh: tensor-core products of a group of four warps, whose second factor lies in shared
 * memory; part of device.cuh.
 *
 *   cuda_group_mma<NT>:  d[t] (+)= a b[t], t < NT      a 64 x 16, b[t] 16 x 8, d[t] 64 x 8
 *
 * Warp w (of 0 .. 3, the group begins at a multiple of 4) has rows 16 w .. 16 w + 15 of a and d,
 * its lanes what cuda_mma() gives them. b[t] lies 512 t bytes after b[0]: 8 x 16 bytes with columns
 * 0 .. 7 of it, 8 of the 16 rows each, then 8 x 16 bytes with the other 8 rows; as packed x does
 * (cuda.h). Without `add` what d held is not read.
 *
 * On 9.0 these are wgmma, which run beside the threads: between cuda_group_begin() and
 * cuda_group_wait<0>() nobody touches d, and what a (registers) and b held must stay until a
 * cuda_group_wait<N>() that leaves no more than the N youngest commits under way. Elsewhere, and
 * where threads are emulated, they are products by each warp, done when they return. Both add up to
 * the same bits as cuda_mma() one after the other (measured on an H200: 0 of 40,000 sums of 256
 * products differ, with operands of one and of sixteen magnitudes).
 *
 * There a group may also go on with another number of registers a thread, a multiple of 8: fewer,
 * so that others can have more. The groups' ways part in one branch, whose first statement it is,
 * of a kernel whose launch bounds say one block a processor; all together have no more than at
 * first. */
#ifndef INFERD_KERNELS_CUDA_GROUP_MMA_CUH
#define INFERD_KERNELS_CUDA_GROUP_MMA_CUH

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

/* Where b is: a descriptor, no swizzle, 128 bytes from 8 rows to the next 8, 512 from b[t] to the
 * next (PTX ISA, "Matrix descriptor"). Its address is that within the block (in a cluster a shared
 * address has the block's number above), in units of 16 bytes; no carry leaves it. */
typedef uint64_t cuda_group_b;
static __device__ __forceinline__ cuda_group_b cuda_group_b_at(const uint8_t *shared)
{
    return (uint64_t)(512 >> 4) << 32 |
           ((cuda_shared_address(shared) & 0x3ffff) >> 4 | 128 >> 4 << 16);
}
static __device__ __forceinline__ cuda_group_b cuda_group_b_after(cuda_group_b b, uint32_t bytes)
{
    return (b & 0xffffffff00000000) | ((uint32_t)b + (bytes >> 4));
}
static __device__ __forceinline__ void cuda_group_begin(void)
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
static __device__ __forceinline__ void cuda_group_commit(void)
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int N> static __device__ __forceinline__ void cuda_group_wait(void)
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

template <int N> static __device__ __forceinline__ void cuda_group_fewer_registers(void)
{
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N> static __device__ __forceinline__ void cuda_group_more_registers(void)
{
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

template <int NT>
__device__ __forceinline__ void cuda_group_mma(float d[NT][4], const uint32_t a[4], cuda_group_b b,
                                               bool add);
template <>
__device__ __forceinline__ void cuda_group_mma<4>(float d[4][4], const uint32_t a[4],
                                                  cuda_group_b b, bool add)
{
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %21, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n32k16.f32.f16.f16 "
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "
                 "{%16, %17, %18, %19}, %20, p, 1, 1, 0; }"
                 : "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]), "+f"(d[1][0]),
                   "+f"(d[1][1]), "+f"(d[1][2]), "+f"(d[1][3]), "+f"(d[2][0]), "+f"(d[2][1]),
                   "+f"(d[2][2]), "+f"(d[2][3]), "+f"(d[3][0]), "+f"(d[3][1]), "+f"(d[3][2]),
                   "+f"(d[3][3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)add));
}

template <>
__device__ __forceinline__ void cuda_group_mma<8>(float d[8][4], const uint32_t a[4],
                                                  cuda_group_b b, bool add)
{
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %37, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 "
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
                 "{%32, %33, %34, %35}, %36, p, 1, 1, 0; }"
                 : "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]), "+f"(d[1][0]),
                   "+f"(d[1][1]), "+f"(d[1][2]), "+f"(d[1][3]), "+f"(d[2][0]), "+f"(d[2][1]),
                   "+f"(d[2][2]), "+f"(d[2][3]), "+f"(d[3][0]), "+f"(d[3][1]), "+f"(d[3][2]),
                   "+f"(d[3][3]), "+f"(d[4][0]), "+f"(d[4][1]), "+f"(d[4][2]), "+f"(d[4][3]),
                   "+f"(d[5][0]), "+f"(d[5][1]), "+f"(d[5][2]), "+f"(d[5][3]), "+f"(d[6][0]),
                   "+f"(d[6][1]), "+f"(d[6][2]), "+f"(d[6][3]), "+f"(d[7][0]), "+f"(d[7][1]),
                   "+f"(d[7][2]), "+f"(d[7][3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)add));
}

template <>
__device__ __forceinline__ void cuda_group_mma<16>(float d[16][4], const uint32_t a[4],
                                                   cuda_group_b b, bool add)
{
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %69, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 "
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
                 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
                 "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
                 "{%64, %65, %66, %67}, %68, p, 1, 1, 0; }"
                 : "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]), "+f"(d[1][0]),
                   "+f"(d[1][1]), "+f"(d[1][2]), "+f"(d[1][3]), "+f"(d[2][0]), "+f"(d[2][1]),
                   "+f"(d[2][2]), "+f"(d[2][3]), "+f"(d[3][0]), "+f"(d[3][1]), "+f"(d[3][2]),
                   "+f"(d[3][3]), "+f"(d[4][0]), "+f"(d[4][1]), "+f"(d[4][2]), "+f"(d[4][3]),
                   "+f"(d[5][0]), "+f"(d[5][1]), "+f"(d[5][2]), "+f"(d[5][3]), "+f"(d[6][0]),
                   "+f"(d[6][1]), "+f"(d[6][2]), "+f"(d[6][3]), "+f"(d[7][0]), "+f"(d[7][1]),
                   "+f"(d[7][2]), "+f"(d[7][3]), "+f"(d[8][0]), "+f"(d[8][1]), "+f"(d[8][2]),
                   "+f"(d[8][3]), "+f"(d[9][0]), "+f"(d[9][1]), "+f"(d[9][2]), "+f"(d[9][3]),
                   "+f"(d[10][0]), "+f"(d[10][1]), "+f"(d[10][2]), "+f"(d[10][3]), "+f"(d[11][0]),
                   "+f"(d[11][1]), "+f"(d[11][2]), "+f"(d[11][3]), "+f"(d[12][0]), "+f"(d[12][1]),
                   "+f"(d[12][2]), "+f"(d[12][3]), "+f"(d[13][0]), "+f"(d[13][1]), "+f"(d[13][2]),
                   "+f"(d[13][3]), "+f"(d[14][0]), "+f"(d[14][1]), "+f"(d[14][2]), "+f"(d[14][3]),
                   "+f"(d[15][0]), "+f"(d[15][1]), "+f"(d[15][2]), "+f"(d[15][3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)add));
}

#else

typedef const uint8_t *cuda_group_b;
static __device__ __forceinline__ cuda_group_b cuda_group_b_at(const uint8_t *shared)
{
    return shared;
}
static __device__ __forceinline__ cuda_group_b cuda_group_b_after(cuda_group_b b, uint32_t bytes)
{
    return b + bytes;
}
static __device__ __forceinline__ void cuda_group_begin(void)
{
}
static __device__ __forceinline__ void cuda_group_commit(void)
{
}
template <int N> static __device__ __forceinline__ void cuda_group_wait(void)
{
}
template <int N> static __device__ __forceinline__ void cuda_group_fewer_registers(void)
{
}
template <int N> static __device__ __forceinline__ void cuda_group_more_registers(void)
{
}
template <int NT>
static __device__ __forceinline__ void cuda_group_mma(float d[NT][4], const uint32_t a[4],
                                                      cuda_group_b b, bool add)
{
    const uint32_t *from = (const uint32_t *)b + threadIdx.x % 32;
#pragma unroll
    for (int t = 0; t < NT; t++) {
        const uint32_t words[2] = {from[128 * t], from[128 * t + 32]};
        if (!add)
            d[t][0] = d[t][1] = d[t][2] = d[t][3] = 0;
        cuda_mma(d[t], a, words);
    }
}

#endif
#endif
