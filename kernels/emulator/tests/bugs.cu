// Planted bugs that end a launch, or that only a sanitizer sees.
#include "../../cuda/device.cuh"

struct TestArgs {
    const void* a;
    const void* b;
    void* out;
    i64 n;
};

extern "C" __global__ void __launch_bounds__(64) bug_read_past_end(const TestArgs args) {
    auto a = static_cast<const float*>(args.a);
    static_cast<float*>(args.out)[threadIdx.x] = threadIdx.x == 63 ? a[args.n] : 0.0f;
}
extern "C" __global__ void __launch_bounds__(64) bug_write_past_end(const TestArgs args) {
    static_cast<float*>(args.out)[threadIdx.x + args.n - 63] = 1.0f;
}
// Between the end of the allocation and the page's: no access is illegal, but the guard bytes change.
extern "C" __global__ void __launch_bounds__(64) bug_write_before_start(const TestArgs args) {
    if (threadIdx.x == 0) static_cast<float*>(args.out)[-1] = 1.0f;
}
extern "C" __global__ void __launch_bounds__(64) bug_shared_past_end(const TestArgs args) {
    DYNAMIC_SHARED(shared);
    reinterpret_cast<float*>(shared)[threadIdx.x + args.n] = 1.0f;
    static_cast<float*>(args.out)[threadIdx.x] = 0.0f;
}
extern "C" __global__ void __launch_bounds__(64) bug_array_past_end(const TestArgs args) {
    SHARED(float, values, [64]);
    values[threadIdx.x + (args.n >= 64)] = 1.0f;
    static_cast<float*>(args.out)[threadIdx.x] = 0.0f;
}
extern "C" __global__ void __launch_bounds__(64) bug_unwritten_shared(const TestArgs args) {
    SHARED(float, values, [64]);
    if (threadIdx.x != 5) values[threadIdx.x] = 0.0f;
    __syncthreads();
    static_cast<float*>(args.out)[threadIdx.x] = values[threadIdx.x];
}
// The launch takes 48 KB besides, and has not asked for more.
extern "C" __global__ void __launch_bounds__(64) bug_too_much_shared(const TestArgs args) {
    SHARED(float, values, [64]);
    values[threadIdx.x] = 0.0f;
    static_cast<float*>(args.out)[threadIdx.x] = values[threadIdx.x];
}
extern "C" __global__ void __launch_bounds__(64) bug_divergent_barrier(const TestArgs args) {
    if (threadIdx.x % 2)
        __syncthreads();
    else
        __syncthreads();
    static_cast<float*>(args.out)[threadIdx.x] = 0.0f;
}
extern "C" __global__ void __launch_bounds__(64) bug_deadlock(const TestArgs args) {
    if (threadIdx.x < 16)
        __syncthreads();
    else
        __syncwarp();
    static_cast<float*>(args.out)[threadIdx.x] = 0.0f;
}
extern "C" __global__ void __launch_bounds__(64) bug_lane_left(const TestArgs args) {
    if (threadIdx.x == 3) return;
    static_cast<float*>(args.out)[threadIdx.x] = warp_sum(0.0f);
}
extern "C" __global__ void __launch_bounds__(64) bug_misaligned_copy(const TestArgs args) {
    DYNAMIC_SHARED(shared);
    cp_async<8>(shared + 4, args.a, true);
    cp_async_commit();
    cp_async_wait<0>();
    static_cast<float*>(args.out)[threadIdx.x] = 0.0f;
}
// Every schedule gives the same result, so that only TSan can see these.
extern "C" __global__ void __launch_bounds__(64) bug_race_in_block(const TestArgs args) {
    static_cast<volatile float*>(args.out)[0] = 0.0f;
}
extern "C" __global__ void __launch_bounds__(64) bug_race_between_blocks(const TestArgs args) {
    if (threadIdx.x == 0) static_cast<volatile float*>(args.out)[0] = 0.0f;
}
// The last block reads what another wrote before it was counted, and no fence stands between.
extern "C" __global__ void __launch_bounds__(64) bug_no_fence(const TestArgs args) {
    auto out = static_cast<volatile float*>(args.out);
    auto counter = static_cast<u32*>(args.out) + 63;
    if (threadIdx.x != 0) return;
    out[blockIdx.x] = 0.0f;
    if (atomicAdd(counter, 1u) == 0) return;
    out[2] = out[0] + out[1];
    atomicExch(counter, 0u);
}
