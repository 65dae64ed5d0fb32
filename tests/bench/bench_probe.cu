/* bench_probe.cu: how fast pinned memory of the host is copied to this GPU, which is the most that
 * loading can reach. */
#include <cuda_runtime.h>
#include <stdint.h>
#include <string.h>

/* From the host: the best of some repeats; 0 where it cannot be measured. */
extern "C" double bench_probe_copy(size_t bytes, int repeats)
{
    void *from = NULL, *to = NULL;
    cudaEvent_t before, after;
    double best = 0;
    if (cudaMalloc(&to, bytes) != cudaSuccess || cudaMallocHost(&from, bytes) != cudaSuccess) {
        cudaFree(to);
        return 0;
    }
    memset(from, 0x5a, bytes);
    cudaEventCreate(&before);
    cudaEventCreate(&after);
    for (int i = 0; i < repeats + 1; i++) {
        float ms = 0;
        cudaEventRecord(before);
        cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice);
        cudaEventRecord(after);
        if (cudaEventSynchronize(after) != cudaSuccess)
            break;
        cudaEventElapsedTime(&ms, before, after);
        if (i > 0 && ms > 0 && (double)bytes / (1e-3 * ms) > best)
            best = (double)bytes / (1e-3 * ms);
    }
    cudaEventDestroy(before);
    cudaEventDestroy(after);
    cudaFreeHost(from);
    cudaFree(to);
    return best;
}
