// y[c] = Σ_r x[r, c]: the gradient of a bias.
//
// x is [rows, channels] in f32, bf16 or f16, y [blocks, channels] in f32: block b sums rows b · block_rows and on, so that a
// second launch over the first one's result, with one block, finishes. A thread adds every so many-th row for one chunk of
// neighbouring channels (16 bytes in the plain kernels, one element in the `any` ones, for rows that are no multiple of 16 bytes
// or not aligned), then the block's threads are added in order.
//
// Launch: 256 threads; x: blocks of rows, y: blocks of 256 chunks. Reads x once, writes 4 · blocks · channels bytes, one addition
// for each element. y is overwritten. The order of additions depends on the shapes alone.
#include "../../cuda/device.cuh"

struct SumRowsArgs {
    const void* x;
    float* y;
    i64 rows, block_rows;
    int channels, reserved;
};

constexpr int THREADS = 256;

// V neighbouring elements as f32.
template <class E, int V> struct Elements {
    static __device__ __forceinline__ void load(float (&v)[V], const E* from) {
#pragma unroll
        for (int i = 0; i < V; i++) v[i] = to_f32(from[i]);
    }
};
template <> struct Elements<float, 4> {
    static __device__ __forceinline__ void load(float (&v)[4], const float* from) {
        float4 four = *(const float4*)from;
        v[0] = four.x, v[1] = four.y, v[2] = four.z, v[3] = four.w;
    }
};
template <class E> struct Elements<E, 8> {
    static __device__ __forceinline__ void load(float (&v)[8], const E* from) {
        uint4 four = *(const uint4*)from;
        u32 pairs[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
        for (int i = 0; i < 4; i++) v[2 * i] = unpack_low<E>(pairs[i]), v[2 * i + 1] = unpack_high<E>(pairs[i]);
    }
};

template <class E, int V> DEVICE void sum_rows(const SumRowsArgs& args) {
    SHARED(float, sums, [THREADS * V]);
    const int first = blockIdx.y * THREADS, chunks = min(args.channels / V - first, THREADS), lines = THREADS / chunks;
    const int line = threadIdx.x / chunks, chunk = threadIdx.x % chunks;
    const i64 start = blockIdx.x * args.block_rows, left = args.rows - start;
    const i64 end = start + (left < args.block_rows ? left : args.block_rows);
    float sum[V] = {};
    if (line < lines) {
        const E* from = (const E*)args.x + (first + chunk) * V;
#pragma unroll 4
        for (i64 row = start + line; row < end; row += lines) {
            float v[V];
            Elements<E, V>::load(v, from + row * args.channels);
#pragma unroll
            for (int i = 0; i < V; i++) sum[i] += v[i];
        }
#pragma unroll
        for (int i = 0; i < V; i++) sums[threadIdx.x * V + i] = sum[i];
    }
    __syncthreads();
    for (int c = threadIdx.x; c < chunks * V; c += THREADS) {
        float total = 0;
        for (int l = 0; l < lines; l++) total += sums[l * chunks * V + c];
        args.y[blockIdx.x * (i64)args.channels + first * V + c] = total;
    }
}

extern "C" __global__ void __launch_bounds__(256) sum_rows_f32(const SumRowsArgs args) { sum_rows<float, 4>(args); }
extern "C" __global__ void __launch_bounds__(256) sum_rows_any_f32(const SumRowsArgs args) { sum_rows<float, 1>(args); }
extern "C" __global__ void __launch_bounds__(256) sum_rows_bf16(const SumRowsArgs args) { sum_rows<bf16, 8>(args); }
extern "C" __global__ void __launch_bounds__(256) sum_rows_f16(const SumRowsArgs args) { sum_rows<f16, 8>(args); }
extern "C" __global__ void __launch_bounds__(256) sum_rows_any_bf16(const SumRowsArgs args) { sum_rows<bf16, 1>(args); }
extern "C" __global__ void __launch_bounds__(256) sum_rows_any_f16(const SumRowsArgs args) { sum_rows<f16, 1>(args); }
