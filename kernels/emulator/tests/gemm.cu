// A small pipelined product on tensor cores: out (64 n × 32, f32) = a (64 n × K) · b (K × 32), K = 64, for n blocks, right
// and with one planted bug of each kind that a schedule or a late copy has to bring out.
#include "../../cuda/device.cuh"

struct TestArgs {
    const void* a;
    const void* b;
    void* out;
    i64 n;
};

constexpr int THREADS = 128, ROWS = 64, COLUMNS = 32, K = 64, STEP = 16, STEPS = K / STEP;
constexpr int A_BYTES = ROWS * STEP * 2, B_BYTES = STEP * COLUMNS * 2, STAGE_BYTES = A_BYTES + B_BYTES;

enum Bug { NONE, NO_BARRIER, NO_WAIT, WAIT_TOO_SHORT, EARLY_REUSE };

template <class T> DEVICE void load_stage(unsigned char* stage, const T* a, const T* b, int step) {
    int row = threadIdx.x / 2, chunk = threadIdx.x % 2 * 8;
    cp_async<16>(stage + (row * STEP + chunk) * 2, a + row * K + step * STEP + chunk, true);
    if (threadIdx.x >= 64) return;
    row = threadIdx.x / 4, chunk = threadIdx.x % 4 * 8;
    cp_async<16>(stage + A_BYTES + (row * COLUMNS + chunk) * 2, b + (step * STEP + row) * COLUMNS + chunk, true);
}

template <class T> DEVICE void multiply_stage(const unsigned char* stage, float (&sums)[4][4]) {
    int row = lane_index() % 16, chunk = lane_index() / 16 * 8;
    u32 a[4];
    ldmatrix_x4(a, stage + ((warp_index() * 16 + row) * STEP + chunk) * 2);
#pragma unroll
    for (int pair = 0; pair < 2; pair++) {
        u32 b[4];
        ldmatrix_x4_trans(b, stage + A_BYTES + (row * COLUMNS + pair * 16 + chunk) * 2);
        mma<T>(sums[2 * pair], a, b[0], b[1]);
        mma<T>(sums[2 * pair + 1], a, b[2], b[3]);
    }
}

template <class T, Bug bug> DEVICE void product(const TestArgs& args) {
    DYNAMIC_SHARED(shared);
    auto a = static_cast<const T*>(args.a) + (i64)blockIdx.x * ROWS * K;
    auto b = static_cast<const T*>(args.b);
    auto out = static_cast<float*>(args.out) + (i64)blockIdx.x * ROWS * COLUMNS;
    float sums[4][4] = {};
    load_stage(shared, a, b, 0);
    cp_async_commit();
    for (int step = 0; step < STEPS; step++) {
        if (step + 1 < STEPS) load_stage(shared + (step + 1) % 2 * STAGE_BYTES, a, b, step + 1);
        cp_async_commit();
        if (bug != NO_WAIT) cp_async_wait<bug == WAIT_TOO_SHORT ? 2 : 1>();
        if (bug != NO_BARRIER) __syncthreads();
        multiply_stage<T>(shared + step % 2 * STAGE_BYTES, sums);
        if (bug != EARLY_REUSE) __syncthreads();
    }
    int g = lane_index() / 4, t = lane_index() % 4 * 2;
#pragma unroll
    for (int tile = 0; tile < 4; tile++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            out[(warp_index() * 16 + g + i / 2 * 8) * COLUMNS + tile * 8 + t + i % 2] = sums[tile][i];
}

extern "C" __global__ void __launch_bounds__(THREADS) test_gemm_bf16(const TestArgs args) { product<bf16, NONE>(args); }
extern "C" __global__ void __launch_bounds__(THREADS) test_gemm_f16(const TestArgs args) { product<f16, NONE>(args); }
extern "C" __global__ void __launch_bounds__(THREADS) bug_no_barrier(const TestArgs args) {
    product<bf16, NO_BARRIER>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) bug_no_wait(const TestArgs args) { product<bf16, NO_WAIT>(args); }
extern "C" __global__ void __launch_bounds__(THREADS) bug_wait_too_short(const TestArgs args) {
    product<bf16, WAIT_TOO_SHORT>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) bug_early_reuse(const TestArgs args) {
    product<bf16, EARLY_REUSE>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) test_start(const TestArgs) {}
