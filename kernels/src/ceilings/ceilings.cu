// What a GPU can do at most: a copy, and multiply-adds without memory in CUDA cores and in tensor cores (mma.sync).
//
// Threads walk over n words of 16 bytes, or do n rounds. Each thread has ACCUMULATORS sums, each warp TILES tiles, so that
// the latency of one instruction is hidden by the others; all are added up and written, so that nothing is left out.
#include "../../cuda/device.cuh"

constexpr int THREADS = 256, ACCUMULATORS = 16, TILES = 8;

struct CeilingsArgs {
    const void* a;
    void* out;
    i64 n;
};

extern "C" __global__ void __launch_bounds__(THREADS) ceilings_copy(const CeilingsArgs args) {
    auto from = static_cast<const uint4*>(args.a);
    auto to = static_cast<uint4*>(args.out);
    for (i64 i = grid_thread(); i < args.n; i += grid_threads()) to[i] = from[i];
}

// a[0], a[1]: factor and summand. One sum for each thread.
extern "C" __global__ void __launch_bounds__(THREADS) ceilings_multiply_add_f32(const CeilingsArgs args) {
    auto a = static_cast<const float*>(args.a);
    float sums[ACCUMULATORS], factor = a[0], summand = a[1];
#pragma unroll
    for (int i = 0; i < ACCUMULATORS; i++) sums[i] = i + threadIdx.x;
    for (i64 round = 0; round < args.n; round++)
#pragma unroll
        for (int i = 0; i < ACCUMULATORS; i++) sums[i] = fmaf(sums[i], factor, summand);
    float sum = 0;
#pragma unroll
    for (int i = 0; i < ACCUMULATORS; i++) sum += sums[i];
    static_cast<float*>(args.out)[grid_thread()] = sum;
}

// The halves of a[0] with random low bits, for the same digits again and again take less power than data would.
template <class Multiply> DEVICE void multiply_tiles(const CeilingsArgs& args, Multiply multiply) {
    u32 fragment[4], word = *static_cast<const u32*>(args.a), hash = (u32)grid_thread() * 2654435761u;
#pragma unroll
    for (int i = 0; i < 4; i++) fragment[i] = word | (hash >> i & 0x007f007fu);
    float sums[TILES][4] = {};
    for (i64 round = 0; round < args.n; round++)
#pragma unroll
        for (int i = 0; i < TILES; i++) multiply(sums[i], fragment, fragment[i % 4]);
    float sum = 0;
#pragma unroll
    for (int i = 0; i < TILES; i++) sum += sums[i][0] + sums[i][1] + sums[i][2] + sums[i][3];
    static_cast<float*>(args.out)[grid_thread()] = sum;
}
// mma in bf16, f16 and TF32.
extern "C" __global__ void __launch_bounds__(THREADS) ceilings_multiply_add_bf16(const CeilingsArgs args) {
    multiply_tiles(args, [](float (&d)[4], const u32 (&a)[4], u32 b) { mma_bf16(d, a, b, b); });
}
extern "C" __global__ void __launch_bounds__(THREADS) ceilings_multiply_add_f16(const CeilingsArgs args) {
    multiply_tiles(args, [](float (&d)[4], const u32 (&a)[4], u32 b) { mma_f16(d, a, b, b); });
}
extern "C" __global__ void __launch_bounds__(THREADS) ceilings_multiply_add_tf32(const CeilingsArgs args) {
    multiply_tiles(args, [](float (&d)[4], const u32 (&a)[4], u32 b) { mma_tf32(d, a, b, b); });
}
