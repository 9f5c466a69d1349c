// Mean over space: y[n, c] = Σ x[n, v, c] / S over the S voxels v; backward dx[n, v, c] = dy[n, c] / S.
//
// x, dx are [N, D, H, W, C], y, dy [N, C], in f32, bf16 or f16; columns.cuh sees x as [N, S, C]. Forward: sums (pieces: reads x)
// in f32, then mean (a warp a channel) in f64, rounded once. Backward: spread (pieces: reads dy, writes dx). Outputs are
// overwritten. The `any` kernels move one element at a time, the plain ones 16 bytes.
#include "../../cuda/columns.cuh"

constexpr int THREADS = COLUMN_THREADS;

struct SumsArgs {
    const void* x;
    float* partial;  // [N, pieces, 1, C]
    Columns matrix;
};

struct MeanArgs {
    const float* partial;
    void* y;
    Columns matrix;
};

struct SpreadArgs {
    const void* dy;
    void* dx;
    Columns matrix;
};

template <class T, int V> DEVICE void sums(const SumsArgs& args) {
    auto x = static_cast<const T*>(args.x);
    column_sums<V, 1>(args.matrix, args.partial, [&](const Walk&, i64 at, float (&sum)[1][V]) { load(sum[0], x + at); });
}

template <class T> DEVICE void mean(const MeanArgs& args) {
    auto y = static_cast<T*>(args.y);
    for_columns(args.matrix, [&](i64 group, int channel) {
        const double total = column_total(args.matrix, args.partial, group, channel, 0, 1);
        if (lane_index() == 0) y[group * args.matrix.channels + channel] = from_f32<T>((float)(total / args.matrix.rows));
    });
}

template <class T, int V> DEVICE void spread(const SpreadArgs& args) {
    auto dy = static_cast<const T*>(args.dy);
    auto dx = static_cast<T*>(args.dx);
    const Columns m = args.matrix;
    const Walk w = walk<V>(m);
    const float rows = m.rows;
    float share[V];
    load(share, dy + vector(m, w));
#pragma unroll
    for (int i = 0; i < V; i++) share[i] /= rows;
    for_rows<V>(m, w, [&](i64 at) { store(dx + at, share); });
}

extern "C" __global__ void __launch_bounds__(THREADS) global_avg_pool_sums_f32(const SumsArgs args) {
    sums<float, WIDE<float>>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) global_avg_pool_sums_any_f32(const SumsArgs args) {
    sums<float, 1>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) global_avg_pool_sums_bf16(const SumsArgs args) {
    sums<bf16, WIDE<bf16>>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) global_avg_pool_sums_f16(const SumsArgs args) {
    sums<f16, WIDE<f16>>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) global_avg_pool_sums_any_bf16(const SumsArgs args) {
    sums<bf16, 1>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) global_avg_pool_sums_any_f16(const SumsArgs args) {
    sums<f16, 1>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) global_avg_pool_mean_f32(const MeanArgs args) { mean<float>(args); }
extern "C" __global__ void __launch_bounds__(THREADS) global_avg_pool_mean_bf16(const MeanArgs args) { mean<bf16>(args); }
extern "C" __global__ void __launch_bounds__(THREADS) global_avg_pool_mean_f16(const MeanArgs args) { mean<f16>(args); }
extern "C" __global__ void __launch_bounds__(THREADS) global_avg_pool_spread_f32(const SpreadArgs args) {
    spread<float, WIDE<float>>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) global_avg_pool_spread_any_f32(const SpreadArgs args) {
    spread<float, 1>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) global_avg_pool_spread_bf16(const SpreadArgs args) {
    spread<bf16, WIDE<bf16>>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) global_avg_pool_spread_f16(const SpreadArgs args) {
    spread<f16, WIDE<f16>>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) global_avg_pool_spread_any_bf16(const SpreadArgs args) {
    spread<bf16, 1>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) global_avg_pool_spread_any_f16(const SpreadArgs args) {
    spread<f16, 1>(args);
}
