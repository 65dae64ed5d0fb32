/* rows.cu: rows of activations made ready for products: RMSNorm, activation, packing.
 *
 *   cuda_pack:        y = x / sqrt(mean(x^2) + eps) * weight, or y = x
 *   cuda_pack_gated:  y = act(gate) * up
 *
 * y goes to half-precision in the order that the product behind it wants (struct cuda_packed).
 *
 * Everything is made of units of 8 columns: what one lane of a fragment holds, 4 columns and the 4
 * that lie 16 further on.
 *
 * Bytes: 4 in and 2 out per number (8 in where there are two inputs), 4 of the weight. Of a step
 * with one row this is 16 KiB each way through one processor, whose time is that of the dependent
 * steps: a load from L2, a reduction over the block, a store; 4,096 columns are expected to take
 * 2 us, most of it under way while the weights of the product behind it arrive, because the kernel
 * lets that one start at once and has its own weights in registers before it waits. With hundreds
 * of rows it is bound by L2, where x and y stay. Measured on an H200, launch included: 5.0 us for
 * one row of 4,096, 8.5 us for 512.
 *
 * The mean of squares is added up in an order that the number of columns fixes: each thread's units
 * in ascending order, lanes of a warp in a tree, warps in a tree. A block has one row, so no row
 * knows of another. */
#include "cuda/norm.cuh"

#define BLOCK_THREADS 512u /* most threads for one row: 4,096 columns in one go */
#define GATED_THREADS 256u
#define WARPS_MAX     (BLOCK_THREADS / 32)

/* ---- RMSNorm --------------------------------------------------------------------------------- */

/* The same sum in every thread of the block. */
static __device__ __forceinline__ float block_sum(float sum)
{
    __shared__ float warps[WARPS_MAX];
    const uint32_t lane = threadIdx.x % 32, n_warps = blockDim.x / 32;
    sum = norm_warp_sum(sum);
    if (lane == 0)
        warps[threadIdx.x / 32] = sum;
    __syncthreads();
    return norm_warp_sum(lane < n_warps ? warps[lane] : 0.0f);
}

struct pack_work {
    const float *x, *weight;
    size_t stride;
    const int32_t *index;
    float eps;
    cuda_packed to;
};

/* UNITS units per thread stay in registers: thread t has units t, t + threads, ... UNITS 0: as many
 * as there are, which are read twice. */
template <bool ALIGNED, uint32_t UNITS>
static __global__ void __launch_bounds__(BLOCK_THREADS) norm_kernel(const pack_work work)
{
    constexpr uint32_t KEPT = UNITS ? UNITS : 1;
    const uint32_t cols = work.to.cols, step = blockDim.x, units = work.to.blocks * 4;
    const uint32_t rounds = UNITS ? UNITS : (units + step - 1) / step;
    unit x[KEPT], weight[KEPT];
    cuda_let_next_start();
    if (UNITS) {
#pragma unroll
        for (uint32_t i = 0; i < KEPT; i++)
            weight[i] = load_unit<ALIGNED>(work.weight, threadIdx.x + i * step, cols);
    }
    cuda_wait();
    const uint32_t from = work.index ? (uint32_t)work.index[blockIdx.x] : blockIdx.x;
    const float *row = work.x + from * work.stride;

    float sum = 0.0f;
#pragma unroll
    for (uint32_t i = 0; i < rounds; i++) {
        unit u = load_unit<ALIGNED>(row, threadIdx.x + i * step, cols);
        sum = square(sum, u);
        if (UNITS)
            x[i % KEPT] = u;
    }
    const float scale = norm_scale(block_sum(sum), cols, work.eps);

#pragma unroll
    for (uint32_t i = 0; i < rounds; i++) {
        uint32_t n = threadIdx.x + i * step;
        if (!UNITS) {
            x[0] = load_unit<ALIGNED>(row, n, cols);
            weight[0] = load_unit<ALIGNED>(work.weight, n, cols);
        }
        store_unit(work.to, blockIdx.x, n, normed(x[i % KEPT], scale, weight[i % KEPT]));
    }
}

/* ---- one unit a thread, without norm --------------------------------------------------------- */

template <bool ALIGNED>
static __global__ void __launch_bounds__(GATED_THREADS) plain_kernel(const pack_work work)
{
    uint32_t n = blockIdx.x * GATED_THREADS + threadIdx.x, row = blockIdx.y;
    cuda_let_next_start();
    cuda_wait();
    uint32_t from = work.index ? (uint32_t)work.index[row] : row;
    store_unit(work.to, row, n, load_unit<ALIGNED>(work.x + from * work.stride, n, work.to.cols));
}

/* silu(x) = x / (1 + e^-x); gelu by tanh, x (1 + tanh z) / 2, is x / (1 + e^-2z), which loses no
 * digits where tanh is near -1. */
static __device__ __forceinline__ float activate(uint32_t activation, float x)
{
    float z = x;
    if (activation == INFER_ACT_GELU_TANH)
        z = 1.5957691216057308f * x * fmaf(0.044715f * x, x, 1.0f); /* 2 sqrt(2 / pi) */
    return x / (1.0f + expf(-z));
}

template <bool ALIGNED>
static __global__ void __launch_bounds__(GATED_THREADS)
    gated_kernel(const float *gate, const float *up, size_t stride, uint32_t activation,
                 const cuda_packed to)
{
    uint32_t n = blockIdx.x * GATED_THREADS + threadIdx.x, row = blockIdx.y;
    cuda_let_next_start();
    cuda_wait();
    unit g = load_unit<ALIGNED>(gate + row * stride, n, to.cols);
    unit u = load_unit<ALIGNED>(up + row * stride, n, to.cols);
#pragma unroll
    for (uint32_t i = 0; i < 8; i++)
        u.v[i] *= activate(activation, g.v[i]);
    store_unit(to, row, n, u);
}

/* ---- launches -------------------------------------------------------------------------------- */

/* Whether 16 bytes at a time may be read from rows at p. */
static bool aligned(const float *p, size_t stride)
{
    return (uintptr_t)p % 16 == 0 && stride % 4 == 0;
}

template <bool ALIGNED>
static cudaError_t launch_norm(const pack_work &work, uint32_t n, cudaStream_t stream)
{
    const uint32_t units = work.to.blocks * 4;
    const uint32_t threads = units >= BLOCK_THREADS ? BLOCK_THREADS : (units + 31) / 32 * 32;
    switch ((units + threads - 1) / threads) {
    case 1:
        return cuda_launch(norm_kernel<ALIGNED, 1>, dim3(n), dim3(threads), 0, stream, work);
    case 2:
        return cuda_launch(norm_kernel<ALIGNED, 2>, dim3(n), dim3(threads), 0, stream, work);
    case 3:
    case 4:
        return cuda_launch(norm_kernel<ALIGNED, 4>, dim3(n), dim3(threads), 0, stream, work);
    default:
        return cuda_launch(norm_kernel<ALIGNED, 0>, dim3(n), dim3(threads), 0, stream, work);
    }
}

extern "C" cudaError_t cuda_pack(const float *x, size_t stride, const int32_t *index, uint32_t n,
                                 const float *weight, float eps, const struct cuda_packed *to,
                                 cudaStream_t stream)
{
    const pack_work work = {x, weight, stride, index, eps, *to};
    bool vectors = aligned(x, stride) && to->cols % 4 == 0 && aligned(weight, 0);
    if (weight)
        return vectors ? launch_norm<true>(work, n, stream) : launch_norm<false>(work, n, stream);
    dim3 grid((to->blocks * 4 + GATED_THREADS - 1) / GATED_THREADS, n);
    return vectors ? cuda_launch(plain_kernel<true>, grid, dim3(GATED_THREADS), 0, stream, work)
                   : cuda_launch(plain_kernel<false>, grid, dim3(GATED_THREADS), 0, stream, work);
}

extern "C" cudaError_t cuda_pack_gated(const float *gate, const float *up, size_t stride,
                                       uint32_t n, uint32_t activation,
                                       const struct cuda_packed *to, cudaStream_t stream)
{
    dim3 grid((to->blocks * 4 + GATED_THREADS - 1) / GATED_THREADS, n);
    bool vectors = aligned(gate, stride) && aligned(up, stride) && to->cols % 4 == 0;
    return vectors ? cuda_launch(gated_kernel<true>, grid, dim3(GATED_THREADS), 0, stream, gate, up,
                                 stride, activation, *to)
                   : cuda_launch(gated_kernel<false>, grid, dim3(GATED_THREADS), 0, stream, gate,
                                 up, stride, activation, *to);
}
