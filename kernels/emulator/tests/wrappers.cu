// Kernels that use every wrapper of device.cuh once, for results that plain code can compute.
#include "../../cuda/device.cuh"

struct TestArgs {
    const void* a;
    const void* b;
    void* out;
    i64 n;
};

// out[5 i ..]: bits of f32 a[i] as bf16, f16, TF32, as a pair of bf16 and as a pair of f16 with −a[i].
extern "C" __global__ void __launch_bounds__(64) test_convert(const TestArgs args) {
    auto a = static_cast<const float*>(args.a);
    auto out = static_cast<u32*>(args.out);
    for (i64 i = grid_thread(); i < args.n; i += grid_threads()) {
        out[5 * i] = from_f32<bf16>(a[i]).bits;
        out[5 * i + 1] = from_f32<f16>(a[i]).bits;
        out[5 * i + 2] = to_tf32(a[i]);
        out[5 * i + 3] = pack<bf16>(a[i], -a[i]);
        out[5 * i + 4] = pack<f16>(a[i], -a[i]);
    }
}

// out[4 i ..] of a block of 96: sum and maximum of the block's a, sum of 8 neighbouring lanes, ex2(a[i]).
extern "C" __global__ void __launch_bounds__(96) test_reduce(const TestArgs args) {
    i64 i = grid_thread();
    float value = static_cast<const float*>(args.a)[i];
    float* out = static_cast<float*>(args.out) + 4 * i;
    out[0] = block_sum<96>(value);
    out[1] = block_max<96>(value);
    out[2] = warp_sum<8>(value);
    out[3] = ex2(value);
}

// out[8 i ..] of one block of 64: four shuffles of the thread's number, three votes of the warp, one of the block.
extern "C" __global__ void __launch_bounds__(64) test_warp(const TestArgs args) {
    const u32 all = 0xffffffffu;
    u32 me = threadIdx.x;
    u32* out = static_cast<u32*>(args.out) + 8 * me;
    out[0] = __shfl_sync(all, me, 1, 8);
    out[1] = __shfl_xor_sync(all, me, 5);
    out[2] = __shfl_up_sync(all, me, 3);
    out[3] = __shfl_down_sync(all, me, 3, 16);
    out[4] = __ballot_sync(all, me % 3 == 0);
    out[5] = __any_sync(all, me == 40);
    out[6] = __all_sync(all, me < 32);
    out[7] = __syncthreads_count(me % 5 == 0);
}

// One warp; shared rows of 8 elements hold 0, 1, 2, …; out[14 lane ..] are the registers of the six forms.
extern "C" __global__ void __launch_bounds__(32) test_ldmatrix(const TestArgs args) {
    SHARED(u16, tile, [32][8]);
    int lane = lane_index();
    for (int column = 0; column < 8; column++) tile[lane][column] = u16(8 * lane + column);
    __syncwarp();
    u32 x1, x1t, x2[2], x2t[2], x4[4], x4t[4];
    ldmatrix_x1(x1, tile[lane % 8]);
    ldmatrix_x1_trans(x1t, tile[lane % 8]);
    ldmatrix_x2(x2, tile[lane % 16]);
    ldmatrix_x2_trans(x2t, tile[lane % 16]);
    ldmatrix_x4(x4, tile[lane]);
    ldmatrix_x4_trans(x4t, tile[lane]);
    u32* out = static_cast<u32*>(args.out) + 14 * lane;
    out[0] = x1, out[1] = x1t;
    for (int i = 0; i < 2; i++) out[2 + i] = x2[i], out[4 + i] = x2t[i];
    for (int i = 0; i < 4; i++) out[6 + i] = x4[i], out[10 + i] = x4t[i];
}

// One warp: out (16 × 8) = a (16 × 8) · b (8 × 8), all f32, row-major.
extern "C" __global__ void __launch_bounds__(32) test_tf32(const TestArgs args) {
    auto a = static_cast<const float*>(args.a), b = static_cast<const float*>(args.b);
    auto out = static_cast<float*>(args.out);
    int g = lane_index() / 4, t = lane_index() % 4;
    u32 fragment[4] = {to_tf32(a[g * 8 + t]), to_tf32(a[(g + 8) * 8 + t]), to_tf32(a[g * 8 + t + 4]),
                       to_tf32(a[(g + 8) * 8 + t + 4])};
    float d[4] = {};
    mma_tf32(d, fragment, to_tf32(b[t * 8 + g]), to_tf32(b[(t + 4) * 8 + g]));
    out[g * 8 + 2 * t] = d[0], out[g * 8 + 2 * t + 1] = d[1];
    out[(g + 8) * 8 + 2 * t] = d[2], out[(g + 8) * 8 + 2 * t + 1] = d[3];
}

// One thread for each of n bytes / 16: copies of 4, 8 and 16 bytes through shared memory, the last chunk absent.
extern "C" __global__ void __launch_bounds__(64) test_copy(const TestArgs args) {
    DYNAMIC_SHARED(bytes);
    i64 i = grid_thread();
    auto from = static_cast<const unsigned char*>(args.a) + 16 * i;
    unsigned char* mine = bytes + 16 * threadIdx.x;
    bool present = i + 1 < args.n;
    if (threadIdx.x % 2) {
        cp_async<16>(mine, from, present);
    } else {
        cp_async<4>(mine, from, present);
        cp_async<4>(mine + 4, from + 4, present);
        cp_async<8>(mine + 8, from + 8, present);
    }
    cp_async_commit();
    cp_async_wait<0>();
    static_cast<uint4*>(args.out)[i] = *reinterpret_cast<uint4*>(mine);
}

// Blocks count themselves; the last one adds up what all have written, in order.
extern "C" __global__ void __launch_bounds__(32) test_last_block(const TestArgs args) {
    auto counter = static_cast<u32*>(args.out);
    auto sums = reinterpret_cast<float*>(counter + 2);
    SHARED(u32, arrived, [1]);
    if (threadIdx.x == 0) {
        sums[blockIdx.x] = static_cast<const float*>(args.a)[blockIdx.x];
        __threadfence();
        arrived[0] = atomicAdd(counter, 1u);
    }
    __syncthreads();
    if (arrived[0] + 1 != gridDim.x || threadIdx.x) return;
    float sum = 0;
    for (u32 i = 0; i < gridDim.x; i++) sum += sums[i];
    counter[1] = __float_as_uint(sum);
}
