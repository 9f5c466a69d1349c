// What every wrapper of device.cuh does with given inputs, for the host to compare: one kernel for each family.
//
// All take arrays a and b, write 32-bit words, and have no floor to speak of. `checks.rs` says what must come out, and launches
// them with the block sizes below.
#include "../../cuda/device.cuh"

struct ConformanceArgs {
    const void* a;
    const void* b;
    void* out;
    i64 n;
};

// out[5 i ..]: a[i] as bf16, f16 and TF32, and a[i] beside b[i] as pairs of bf16 and of f16.
extern "C" __global__ void __launch_bounds__(64) conformance_round(const ConformanceArgs args) {
    auto a = static_cast<const float*>(args.a), b = static_cast<const float*>(args.b);
    auto out = static_cast<u32*>(args.out);
    for (i64 i = grid_thread(); i < args.n; i += grid_threads()) {
        out[5 * i] = from_f32<bf16>(a[i]).bits;
        out[5 * i + 1] = from_f32<f16>(a[i]).bits;
        out[5 * i + 2] = to_tf32(a[i]);
        out[5 * i + 3] = pack<bf16>(a[i], b[i]);
        out[5 * i + 4] = pack<f16>(a[i], b[i]);
    }
}

// out[4 i ..]: the halves of word a[i] as f32, read as bf16 and as f16.
extern "C" __global__ void __launch_bounds__(64) conformance_widen(const ConformanceArgs args) {
    auto a = static_cast<const u32*>(args.a);
    auto out = static_cast<float*>(args.out);
    for (i64 i = grid_thread(); i < args.n; i += grid_threads()) {
        out[4 * i] = unpack_low<bf16>(a[i]);
        out[4 * i + 1] = unpack_high<bf16>(a[i]);
        out[4 * i + 2] = unpack_low<f16>(a[i]);
        out[4 * i + 3] = unpack_high<f16>(a[i]);
    }
}

// out[7 i ..]: ex2, expf, logf, rsqrtf, sqrtf of a[i]; a[i] / b[i]; a[i] · b[i] + a[i] rounded once.
extern "C" __global__ void __launch_bounds__(64) conformance_math(const ConformanceArgs args) {
    auto a = static_cast<const float*>(args.a), b = static_cast<const float*>(args.b);
    auto out = static_cast<float*>(args.out);
    for (i64 i = grid_thread(); i < args.n; i += grid_threads()) {
        out[7 * i] = ex2(a[i]);
        out[7 * i + 1] = expf(a[i]);
        out[7 * i + 2] = logf(a[i]);
        out[7 * i + 3] = rsqrtf(a[i]);
        out[7 * i + 4] = sqrtf(a[i]);
        out[7 * i + 5] = a[i] / b[i];
        out[7 * i + 6] = fmaf(a[i], b[i], a[i]);
    }
}

// Blocks of 64; out[8 i ..]: four shuffles of a, a ballot, any and all of the warp, the count of the block, by bits of a.
extern "C" __global__ void __launch_bounds__(64) conformance_warp(const ConformanceArgs args) {
    const u32 everyone = 0xffffffffu;
    i64 i = grid_thread();
    u32 value = static_cast<const u32*>(args.a)[i];
    u32* out = static_cast<u32*>(args.out) + 8 * i;
    out[0] = __shfl_sync(everyone, value, 5, 8);
    out[1] = __shfl_xor_sync(everyone, value, 21);
    out[2] = __shfl_up_sync(everyone, value, 3);
    out[3] = __shfl_down_sync(everyone, value, 3, 16);
    out[4] = __ballot_sync(everyone, value & 1);
    out[5] = __any_sync(everyone, (value & 31) == 0);
    out[6] = __all_sync(everyone, (value & 31) != 0);
    out[7] = __syncthreads_count(value & 2);
}

// Blocks of 96; out[4 i ..]: sum and maximum of the block's a, then of 8 neighbouring lanes.
extern "C" __global__ void __launch_bounds__(96) conformance_reduce(const ConformanceArgs args) {
    i64 i = grid_thread();
    float value = static_cast<const float*>(args.a)[i];
    float* out = static_cast<float*>(args.out) + 4 * i;
    out[0] = block_sum<96>(value);
    out[1] = block_max<96>(value);
    out[2] = warp_sum<8>(value);
    out[3] = warp_max<8>(value);
}

// One warp a block; a holds 32 rows of 8 16-bit elements for each; out[14 lane ..] are the registers of the six forms.
extern "C" __global__ void __launch_bounds__(32) conformance_ldmatrix(const ConformanceArgs args) {
    SHARED(uint4, tile, [32]);
    int lane = lane_index();
    tile[lane] = static_cast<const uint4*>(args.a)[grid_thread()];
    __syncwarp();
    u32 x1, x1t, x2[2], x2t[2], x4[4], x4t[4];
    ldmatrix_x1(x1, &tile[lane % 8]);
    ldmatrix_x1_trans(x1t, &tile[lane % 8]);
    ldmatrix_x2(x2, &tile[lane % 16]);
    ldmatrix_x2_trans(x2t, &tile[lane % 16]);
    ldmatrix_x4(x4, &tile[lane]);
    ldmatrix_x4_trans(x4t, &tile[lane]);
    u32* out = static_cast<u32*>(args.out) + 14 * grid_thread();
    out[0] = x1, out[1] = x1t;
    for (int i = 0; i < 2; i++) out[2 + i] = x2[i], out[4 + i] = x2t[i];
    for (int i = 0; i < 4; i++) out[6 + i] = x4[i], out[10 + i] = x4t[i];
}

// One warp a block: out (16 × 8) += a (16 × 16) · b (16 × 8), row-major. a and b are f32 and rounded here.
template <class T> DEVICE void multiply(const ConformanceArgs& args) {
    auto a = static_cast<const float*>(args.a) + blockIdx.x * 256, b = static_cast<const float*>(args.b) + blockIdx.x * 128;
    int g = lane_index() / 4, t = lane_index() % 4 * 2;
    float* out = static_cast<float*>(args.out) + blockIdx.x * 128 + g * 8 + t;
    u32 fragment[4];
    for (int i = 0; i < 4; i++) {
        const float* from = a + (g + i % 2 * 8) * 16 + t + i / 2 * 8;
        fragment[i] = pack<T>(from[0], from[1]);
    }
    float d[4] = {out[0], out[1], out[64], out[65]};
    mma<T>(d, fragment, pack<T>(b[t * 8 + g], b[t * 8 + 8 + g]), pack<T>(b[(t + 8) * 8 + g], b[(t + 9) * 8 + g]));
    out[0] = d[0], out[1] = d[1], out[64] = d[2], out[65] = d[3];
}
extern "C" __global__ void __launch_bounds__(32) conformance_mma_bf16(const ConformanceArgs args) { multiply<bf16>(args); }
extern "C" __global__ void __launch_bounds__(32) conformance_mma_f16(const ConformanceArgs args) { multiply<f16>(args); }

// The same for a (16 × 8) and b (8 × 8) in TF32.
extern "C" __global__ void __launch_bounds__(32) conformance_mma_tf32(const ConformanceArgs args) {
    auto a = static_cast<const float*>(args.a) + blockIdx.x * 128, b = static_cast<const float*>(args.b) + blockIdx.x * 64;
    int g = lane_index() / 4, t = lane_index() % 4;
    float* out = static_cast<float*>(args.out) + blockIdx.x * 128 + g * 8 + 2 * t;
    u32 fragment[4] = {to_tf32(a[g * 8 + t]), to_tf32(a[(g + 8) * 8 + t]), to_tf32(a[g * 8 + t + 4]),
                       to_tf32(a[(g + 8) * 8 + t + 4])};
    float d[4] = {out[0], out[1], out[64], out[65]};
    mma_tf32(d, fragment, to_tf32(b[t * 8 + g]), to_tf32(b[(t + 4) * 8 + g]));
    out[0] = d[0], out[1] = d[1], out[64] = d[2], out[65] = d[3];
}

// Blocks of 64 with 48 bytes of shared memory a thread; each copies 16 bytes of a three times: whole, in parts of 4, 4 and 8, and
// in parts of 8 and 8. Bits of b say which of the six copies are present. Waits leave two groups, then one, then none behind.
extern "C" __global__ void __launch_bounds__(64) conformance_copy(const ConformanceArgs args) {
    DYNAMIC_SHARED(bytes);
    i64 i = grid_thread();
    auto from = static_cast<const unsigned char*>(args.a) + 16 * i;
    u32 present = static_cast<const u32*>(args.b)[i];
    uint4* mine = reinterpret_cast<uint4*>(bytes) + 3 * threadIdx.x;
    auto whole = reinterpret_cast<unsigned char*>(mine), parts = whole + 16, halves = whole + 32;
    auto source = [&](int bit, int offset) { return present >> bit & 1 ? from + offset : nullptr; };
    cp_async<16>(whole, source(0, 0), present & 1);
    cp_async_commit();
    cp_async<4>(parts, source(1, 0), present & 2);
    cp_async<4>(parts + 4, source(2, 4), present & 4);
    cp_async<8>(parts + 8, source(3, 8), present & 8);
    cp_async_commit();
    cp_async<8>(halves, source(4, 0), present & 16);
    cp_async<8>(halves + 8, source(5, 8), present & 32);
    cp_async_commit();
    uint4* out = static_cast<uint4*>(args.out) + 3 * i;
    cp_async_wait<2>();
    out[0] = mine[0];
    cp_async_wait<1>();
    out[1] = mine[1];
    cp_async_wait<0>();
    out[2] = mine[2];
}

// Blocks count themselves in out[0]; the last one puts into out[1] the sum of what all have written behind, in order.
extern "C" __global__ void __launch_bounds__(32) conformance_last_block(const ConformanceArgs args) {
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
    __threadfence();
    float sum = 0;
    for (u32 i = 0; i < gridDim.x; i++) sum += sums[i];
    counter[1] = __float_as_uint(sum);
}
