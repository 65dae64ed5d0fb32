/* emulated.h: what kernels/cuda/device.cuh stands on where no nvcc compiles it: the words of CUDA's
 * C++ and those of device.cuh itself, over threads that take turns on the processor (threads.c).
 *
 * What it is true to: indices, barriers, shuffles, shared memory, atomics, integers, half-precision
 * with one rounding, float32 additions and multiplications. What it is not: time, the order of
 * threads (it varies on purpose, deterministically), the last bits of approximate functions and of
 * the tensor cores' sums, blocks that wait for each other (they run one after the other) unless
 * they are launched together.
 *
 * What it refuses, with a sentence and an abort: lanes of a warp that do not all come to a shuffle,
 * barriers that cannot open, more shared memory than was asked for by cudaFuncSetAttribute, kernels
 * that end without cuda_wait(). Device and shared memory start as 0xff bytes, which are NaN. */
#ifndef INFERD_TESTS_CUDA_EMULATED_H
#define INFERD_TESTS_CUDA_EMULATED_H

#include "threads.h"
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define threadIdx emulated_self->index
#define blockIdx  emulated_self->block
#define blockDim  emulated_block_dim
#define gridDim   emulated_grid_dim
#define warpSize  32

#define CUDA_SHARED(type, name) type *name = reinterpret_cast<type *>(emulated_self->shared)

/* ---- launches -------------------------------------------------------------------------------- */

struct emulated_place {
    const char *text, *file;
    int line;
};

template <typename... Parameters, typename... Arguments>
static inline cudaError_t
emulated_start(emulated_place place, uint32_t together, void (*kernel)(Parameters...), dim3 grid,
               dim3 block, size_t shared_bytes, cudaStream_t stream, Arguments &&...arguments)
{
    using closure = std::tuple<void (*)(Parameters...), Parameters...>;
    closure all(kernel, static_cast<Parameters>(arguments)...);
    struct emulated_launch launch = {};
    launch.call = [](const void *memory) {
        std::apply(
            [](void (*function)(Parameters...), const Parameters &...given) { function(given...); },
            *static_cast<const closure *>(memory));
    };
    launch.kernel = reinterpret_cast<const void *>(kernel);
    launch.arguments = &all;
    launch.arguments_bytes = sizeof all;
    launch.grid = {grid.x, grid.y, grid.z};
    launch.block = {block.x, block.y, block.z};
    launch.together = together;
    launch.shared_bytes = shared_bytes;
    launch.text = place.text;
    launch.file = place.file;
    launch.line = place.line;
    return emulated_enqueue(&launch, stream);
}
#define cuda_launch(...)                                                                           \
    emulated_start(emulated_place{#__VA_ARGS__, __FILE__, __LINE__}, 1, __VA_ARGS__)
/* Blocks that wait for each other run at the same time. */
#define cuda_launch_together(kernel, grid, ...)                                                    \
    emulated_start(emulated_place{#kernel ", " #__VA_ARGS__, __FILE__, __LINE__}, (grid).x,        \
                   kernel, grid, __VA_ARGS__)
#define CUDA_TOGETHER_MAX 4u
template <class Kernel>
static inline uint32_t cuda_blocks_at_once(Kernel kernel, uint32_t threads, size_t shared_bytes)
{
    int processors = 0;
    cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, 0);
    return shared_bytes > EMULATED_SHARED_MAX ? 0
                                              : std::min((uint32_t)processors, CUDA_TOGETHER_MAX);
}

static inline void cuda_wait(void)
{
    emulated_waited();
}
static inline void cuda_let_next_start(void)
{
}

/* ---- bits ------------------------------------------------------------------------------------ */

template <class To, class From> static inline To emulated_bits(From from)
{
    static_assert(sizeof(To) == sizeof(From), "as many bits");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
static inline float __uint_as_float(unsigned int v)
{
    return emulated_bits<float>(v);
}
static inline unsigned int __float_as_uint(float v)
{
    return emulated_bits<unsigned int>(v);
}
static inline float __int_as_float(int v)
{
    return emulated_bits<float>(v);
}
static inline int __float_as_int(float v)
{
    return emulated_bits<int>(v);
}
static inline double __longlong_as_double(long long v)
{
    return emulated_bits<double>(v);
}
static inline long long __double_as_longlong(double v)
{
    return emulated_bits<long long>(v);
}
static inline int __popc(unsigned int v)
{
    return __builtin_popcount(v);
}
static inline int __popcll(unsigned long long v)
{
    return __builtin_popcountll(v);
}
static inline int __clz(int v)
{
    return v ? __builtin_clz((unsigned int)v) : 32;
}
static inline int __clzll(long long v)
{
    return v ? __builtin_clzll((unsigned long long)v) : 64;
}
static inline int __ffs(int v)
{
    return __builtin_ffs(v);
}
static inline int __ffsll(long long v)
{
    return __builtin_ffsll(v);
}
static inline unsigned int __brev(unsigned int v)
{
    unsigned int r = 0;
    for (int i = 0; i < 32; i++)
        r |= (v >> i & 1) << (31 - i);
    return r;
}
static inline int __mulhi(int a, int b)
{
    return (int)((long long)a * b >> 32);
}
static inline unsigned int __umulhi(unsigned int a, unsigned int b)
{
    return (unsigned int)((unsigned long long)a * b >> 32);
}
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b)
{
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}
static inline unsigned int __byte_perm(unsigned int a, unsigned int b, unsigned int pick)
{
    unsigned long long both = (unsigned long long)b << 32 | a;
    unsigned int r = 0;
    for (int i = 0; i < 4; i++)
        r |= (unsigned int)(both >> (pick >> 4 * i & 7) * 8 & 0xff) << 8 * i;
    return r;
}
static inline unsigned int __funnelshift_l(unsigned int low, unsigned int high, unsigned int n)
{
    return (unsigned int)(((unsigned long long)high << 32 | low) << (n & 31) >> 32);
}
static inline unsigned int __funnelshift_r(unsigned int low, unsigned int high, unsigned int n)
{
    return (unsigned int)(((unsigned long long)high << 32 | low) >> (n & 31));
}
static inline int __dp4a(int a, int b, int c)
{
    unsigned int sum = (unsigned int)c;
    for (int i = 0; i < 4; i++)
        sum +=
            (unsigned int)((int8_t)((unsigned int)a >> 8 * i) * (int8_t)((unsigned int)b >> 8 * i));
    return (int)sum;
}
static inline unsigned int __dp4a(unsigned int a, unsigned int b, unsigned int c)
{
    for (int i = 0; i < 4; i++)
        c += (a >> 8 * i & 0xff) * (b >> 8 * i & 0xff);
    return c;
}
static inline uint32_t cuda_and_or(uint32_t a, uint32_t mask, uint32_t with)
{
    return (a & mask) | with;
}

/* ---- arithmetic ------------------------------------------------------------------------------ */

#define EMULATED_MIN_MAX(a_type, b_type, type)                                                     \
    static inline type min(a_type a, b_type b)                                                     \
    {                                                                                              \
        return (type)a < (type)b ? (type)a : (type)b;                                              \
    }                                                                                              \
    static inline type max(a_type a, b_type b)                                                     \
    {                                                                                              \
        return (type)a > (type)b ? (type)a : (type)b;                                              \
    }
EMULATED_MIN_MAX(int, int, int)
EMULATED_MIN_MAX(unsigned int, unsigned int, unsigned int)
EMULATED_MIN_MAX(int, unsigned int, unsigned int)
EMULATED_MIN_MAX(unsigned int, int, unsigned int)
EMULATED_MIN_MAX(long, long, long)
EMULATED_MIN_MAX(unsigned long, unsigned long, unsigned long)
EMULATED_MIN_MAX(long long, long long, long long)
EMULATED_MIN_MAX(unsigned long long, unsigned long long, unsigned long long)
#undef EMULATED_MIN_MAX
static inline float min(float a, float b)
{
    return fminf(a, b);
}
static inline float max(float a, float b)
{
    return fmaxf(a, b);
}
static inline double min(double a, double b)
{
    return fmin(a, b);
}
static inline double max(double a, double b)
{
    return fmax(a, b);
}

/* Results in a variable of their own: these are not contracted to a fused operation. */
static inline float __fadd_rn(float a, float b)
{
    volatile float r = a + b;
    return r;
}
static inline float __fsub_rn(float a, float b)
{
    volatile float r = a - b;
    return r;
}
static inline float __fmul_rn(float a, float b)
{
    volatile float r = a * b;
    return r;
}
static inline float __fmaf_rn(float a, float b, float c)
{
    return fmaf(a, b, c);
}
static inline float __fdiv_rn(float a, float b)
{
    return a / b;
}
static inline float __frcp_rn(float a)
{
    return 1.0f / a;
}
static inline float __fsqrt_rn(float a)
{
    return sqrtf(a);
}
static inline float __frsqrt_rn(float a)
{
    return (float)(1.0 / sqrt((double)a));
}
static inline double __dadd_rn(double a, double b)
{
    volatile double r = a + b;
    return r;
}
static inline double __dmul_rn(double a, double b)
{
    volatile double r = a * b;
    return r;
}
static inline float rsqrtf(float a)
{
    return (float)(1.0 / sqrt((double)a));
}
static inline float __fdividef(float a, float b)
{
    return a / b;
}
static inline float __saturatef(float a)
{
    return fminf(fmaxf(a, 0.0f), 1.0f);
}
static inline float cuda_exp2(float x)
{
    float y = exp2f(x);
    return fabsf(y) < 0x1p-126f ? 0.0f : y;
}
static inline float cuda_reciprocal(float x)
{
    return 1.0f / x;
}
/* The C library declares these names as its own. */
#define __expf(x)          expf(x)
#define __exp10f(x)        exp10f(x)
#define __logf(x)          logf(x)
#define __log2f(x)         log2f(x)
#define __log10f(x)        log10f(x)
#define __sinf(x)          sinf(x)
#define __cosf(x)          cosf(x)
#define __tanf(x)          tanf(x)
#define __powf(x, y)       powf(x, y)
#define __sincosf(x, s, c) sincosf(x, s, c)
#define __tanhf(x)         tanhf(x)
#define CUDART_INF_F       __builtin_inff()

static inline int __float2int_rn(float v)
{
    return (int)lrintf(v);
}
static inline int __float2int_rz(float v)
{
    return (int)v;
}
static inline int __float2int_rd(float v)
{
    return (int)floorf(v);
}
static inline int __float2int_ru(float v)
{
    return (int)ceilf(v);
}
static inline unsigned int __float2uint_rn(float v)
{
    return v > 0 ? (unsigned int)llrintf(v) : 0;
}
static inline unsigned int __float2uint_rz(float v)
{
    return v > 0 ? (unsigned int)v : 0;
}
static inline float __int2float_rn(int v)
{
    return (float)v;
}
static inline float __uint2float_rn(unsigned int v)
{
    return (float)v;
}

/* ---- memory ---------------------------------------------------------------------------------- */

template <class T> static inline T __ldg(const T *p)
{
    return *p;
}
template <class T> static inline T __ldcg(const T *p)
{
    return *p;
}
template <class T> static inline T __ldcs(const T *p)
{
    return *p;
}
template <class T> static inline T __ldca(const T *p)
{
    return *p;
}
template <class T> static inline void __stcs(T *p, T v)
{
    *p = v;
}
template <class T> static inline void __stcg(T *p, T v)
{
    *p = v;
}
static inline uint4 cuda_stream16(const void *p)
{
    return *static_cast<const uint4 *>(p);
}
static inline uint2 cuda_stream8(const void *p)
{
    return *static_cast<const uint2 *>(p);
}
static inline uint32_t cuda_stream4(const void *p)
{
    return *static_cast<const uint32_t *>(p);
}
static inline void __threadfence(void)
{
}
static inline void __threadfence_block(void)
{
}
static inline void __threadfence_system(void)
{
}
static inline void __nanosleep(unsigned int)
{
}
static inline void __trap(void)
{
    emulated_fail("__trap()");
}

static inline void cuda_add_to(float *to, float v)
{
    *to += v;
}
static inline uint4 cuda_now16(const void *p)
{
    return *static_cast<const uint4 *>(p);
}
static inline void cuda_look_again(void)
{
    emulated_yield();
}

/* Copies are under way until they are waited for: until then, what was there before is seen. */
static inline void cuda_copy16(void *shared, const void *global)
{
    emulated_copy(shared, global, 16);
}
static inline void cuda_copies_commit(void)
{
    emulated_copies_commit();
}
template <int N> static inline void cuda_copies_wait(void)
{
    emulated_copies_wait(N);
}

template <class T> struct emulated_same {
    typedef T type;
};
#define EMULATED_ATOMIC(name, expression)                                                          \
    template <class T> static inline T name(T *p, typename emulated_same<T>::type v)               \
    {                                                                                              \
        T old = *p;                                                                                \
        *p = (expression);                                                                         \
        return old;                                                                                \
    }
EMULATED_ATOMIC(atomicAdd, old + v)
EMULATED_ATOMIC(atomicSub, old - v)
EMULATED_ATOMIC(atomicMax, old > v ? old : v)
EMULATED_ATOMIC(atomicMin, old < v ? old : v)
EMULATED_ATOMIC(atomicExch, v)
EMULATED_ATOMIC(atomicAnd, old &v)
EMULATED_ATOMIC(atomicOr, old | v)
EMULATED_ATOMIC(atomicXor, old ^ v)
EMULATED_ATOMIC(atomicInc, old >= v ? 0 : old + 1)
EMULATED_ATOMIC(atomicDec, old == 0 || old > v ? v : old - 1)
#undef EMULATED_ATOMIC
template <class T>
static inline T atomicCAS(T *p, typename emulated_same<T>::type expected,
                          typename emulated_same<T>::type v)
{
    T old = *p;
    if (old == expected)
        *p = v;
    return old;
}

/* ---- barriers and warps ---------------------------------------------------------------------- */

static inline void __syncthreads(void)
{
    emulated_barrier(0, nullptr);
}
static inline int __syncthreads_count(int predicate)
{
    return (int)emulated_barrier(predicate, nullptr);
}
static inline int __syncthreads_or(int predicate)
{
    return emulated_barrier(predicate, nullptr) != 0;
}
static inline int __syncthreads_and(int predicate)
{
    unsigned int threads;
    unsigned int yes = emulated_barrier(predicate, &threads);
    return yes == threads;
}
static inline void cuda_meet(uint32_t id, uint32_t n)
{
    emulated_meet(id, n);
}
static inline void __syncwarp(unsigned int mask = 0xffffffffu)
{
    emulated_exchange("__syncwarp", mask, nullptr, 0, nullptr);
}

template <class T>
static inline emulated_slots *emulated_hand_over(const char *what, unsigned int mask, T value)
{
    static_assert(sizeof(T) <= 4 * EMULATED_WORDS, "too much at once");
    uint32_t words[(sizeof(T) + 3) / 4] = {};
    memcpy(words, &value, sizeof value);
    return emulated_exchange(what, mask, words, sizeof words / 4, nullptr);
}
template <class T> static inline T emulated_slot(emulated_slots *slots, unsigned int lane)
{
    T value;
    memcpy(&value, (*slots)[lane], sizeof value);
    return value;
}
template <class T>
static inline T __shfl_sync(unsigned int mask, T value, int lane, int width = warpSize)
{
    emulated_slots *slots = emulated_hand_over("__shfl_sync", mask, value);
    unsigned int w = (unsigned int)width;
    return emulated_slot<T>(slots,
                            ((unsigned int)lane & (w - 1)) | (emulated_self->lane & ~(w - 1)));
}
template <class T>
static inline T __shfl_xor_sync(unsigned int mask, T value, int with, int width = warpSize)
{
    emulated_slots *slots = emulated_hand_over("__shfl_xor_sync", mask, value);
    unsigned int own = emulated_self->lane, lane = own ^ (unsigned int)with;
    unsigned int end = (own & ~((unsigned int)width - 1)) + (unsigned int)width;
    return emulated_slot<T>(slots, lane < end ? lane : own);
}
template <class T>
static inline T __shfl_up_sync(unsigned int mask, T value, unsigned int by, int width = warpSize)
{
    emulated_slots *slots = emulated_hand_over("__shfl_up_sync", mask, value);
    unsigned int own = emulated_self->lane, first = own & ~((unsigned int)width - 1);
    return emulated_slot<T>(slots, own >= first + by ? own - by : own);
}
template <class T>
static inline T __shfl_down_sync(unsigned int mask, T value, unsigned int by, int width = warpSize)
{
    emulated_slots *slots = emulated_hand_over("__shfl_down_sync", mask, value);
    unsigned int own = emulated_self->lane;
    unsigned int end = (own & ~((unsigned int)width - 1)) + (unsigned int)width;
    return emulated_slot<T>(slots, own + by < end ? own + by : own);
}
static inline unsigned int __ballot_sync(unsigned int mask, int predicate)
{
    emulated_slots *slots = emulated_hand_over("__ballot_sync", mask, (int)(predicate != 0));
    unsigned int bits = 0;
    for (unsigned int i = 0; i < EMULATED_WARP; i++)
        bits |= (unsigned int)((*slots)[i][0] == 1) << i;
    return bits;
}
static inline int __any_sync(unsigned int mask, int predicate)
{
    return __ballot_sync(mask, predicate) != 0;
}
static inline int __all_sync(unsigned int mask, int predicate)
{
    return __ballot_sync(mask, !predicate) == 0;
}
template <class T> static inline unsigned int __match_any_sync(unsigned int mask, T value)
{
    emulated_slots *slots = emulated_hand_over("__match_any_sync", mask, value);
    unsigned int bits = 0;
    for (unsigned int i = 0; i < EMULATED_WARP; i++)
        bits |= (unsigned int)(emulated_slot<T>(slots, i) == value) << i;
    return bits;
}
#define EMULATED_REDUCE(name, expression)                                                          \
    template <class T> static inline T name(unsigned int mask, T value)                            \
    {                                                                                              \
        emulated_slots *slots = emulated_hand_over(#name, mask, value);                            \
        T all = emulated_slot<T>(slots, 0);                                                        \
        for (unsigned int i = 1; i < EMULATED_WARP; i++) {                                         \
            T one = emulated_slot<T>(slots, i);                                                    \
            all = (expression);                                                                    \
        }                                                                                          \
        return all;                                                                                \
    }
EMULATED_REDUCE(__reduce_add_sync, (T)((unsigned int)all + (unsigned int)one))
EMULATED_REDUCE(__reduce_max_sync, all > one ? all : one)
EMULATED_REDUCE(__reduce_min_sync, all < one ? all : one)
EMULATED_REDUCE(__reduce_and_sync, all &one)
EMULATED_REDUCE(__reduce_or_sync, all | one)
EMULATED_REDUCE(__reduce_xor_sync, all ^ one)
#undef EMULATED_REDUCE

/* ---- barriers in shared memory --------------------------------------------------------------- */

struct cuda_barrier {
    uint16_t count, missing; /* of the phase */
    uint32_t phase;
};

static inline void cuda_barrier_make(cuda_barrier *b, uint32_t count)
{
    *b = {(uint16_t)count, (uint16_t)count, 0};
}
static inline void cuda_barriers_made(void)
{
}
static inline void cuda_barrier_arrive(cuda_barrier *b)
{
    if (b->missing == 0 || b->missing > b->count)
        emulated_fail("a cuda_barrier that was not made");
    if (--b->missing == 0) {
        b->missing = b->count;
        b->phase++;
    }
}
static inline void cuda_barrier_wait(cuda_barrier *b, uint32_t parity)
{
    while ((b->phase & 1) == parity)
        emulated_yield();
}
#define CUDA_BULK_COUNT 1u
static inline void cuda_bulk_open(cuda_barrier *b, uint32_t bytes, uint32_t lane)
{
}
static inline void cuda_bulk_copy(void *shared, const void *global, uint32_t bytes, cuda_barrier *b,
                                  uint32_t lane)
{
    if (((uintptr_t)shared | (uintptr_t)global | bytes) % 16)
        emulated_fail("a bulk copy of %u bytes from %p to %p: not aligned", bytes, global, shared);
    if (lane == 0)
        memcpy(shared, global, bytes);
}
/* Those who wait see nothing of the copies before this. */
static inline void cuda_bulk_close(cuda_barrier *b, uint32_t lane)
{
    __syncwarp();
    if (lane == 0)
        cuda_barrier_arrive(b);
}

static inline void cuda_bulk_after_stores(void)
{
}
static inline void cuda_bulk_expect(cuda_barrier *b, uint32_t bytes)
{
}
static inline void cuda_bulk_one(void *shared, const void *global, uint32_t bytes, cuda_barrier *b)
{
    cuda_bulk_copy(shared, global, bytes, b, 0);
}
static inline void cuda_bulk_expected(cuda_barrier *b)
{
    cuda_barrier_arrive(b);
}

/* ---- tensor cores ---------------------------------------------------------------------------- */

/* Of each lane: d[4], a[4], b[2], as device.cuh says which element is where; leaves d. */
static inline void emulated_mma_all(emulated_slots *slots)
{
    float a[16][16], b[16][8];
    for (unsigned int lane = 0; lane < EMULATED_WARP; lane++) {
        const uint32_t *w = (*slots)[lane] + 4;
        unsigned int g = lane / 4, q = lane % 4;
        for (unsigned int i = 0; i < 2; i++) {
            unsigned int shift = 16 * i;
            a[g][2 * q + i] = emulated_half_to_float((uint16_t)(w[0] >> shift));
            a[g + 8][2 * q + i] = emulated_half_to_float((uint16_t)(w[1] >> shift));
            a[g][2 * q + 8 + i] = emulated_half_to_float((uint16_t)(w[2] >> shift));
            a[g + 8][2 * q + 8 + i] = emulated_half_to_float((uint16_t)(w[3] >> shift));
            b[2 * q + i][g] = emulated_half_to_float((uint16_t)(w[4] >> shift));
            b[2 * q + 8 + i][g] = emulated_half_to_float((uint16_t)(w[5] >> shift));
        }
    }
    for (unsigned int r = 0; r < 16; r++) {
        float sum[8] = {};
        for (unsigned int k = 0; k < 16; k++) {
            for (unsigned int c = 0; c < 8; c++)
                sum[c] += a[r][k] * b[k][c];
        }
        for (unsigned int c = 0; c < 8; c++) {
            uint32_t *d = &(*slots)[r % 8 * 4 + c / 2][r / 8 * 2 + c % 2];
            *d = __float_as_uint(__uint_as_float(*d) + sum[c]);
        }
    }
}
static inline void cuda_mma(float d[4], const uint32_t a[4], const uint32_t b[2])
{
    uint32_t words[10];
    memcpy(words, d, 16);
    memcpy(words + 4, a, 16);
    memcpy(words + 8, b, 8);
    emulated_slots *slots = emulated_exchange("cuda_mma", 0xffffffffu, words, 10, emulated_mma_all);
    memcpy(d, (*slots)[emulated_self->lane], 16);
}

#endif
