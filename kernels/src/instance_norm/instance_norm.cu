// Instance norm without affine, fused with a residual add and LeakyReLU: for every sample and channel, over its S voxels,
// mean = Σ x / S, rstd = 1 / √(Σ (x − mean)² / S + eps), y = act((x − mean) · rstd + residual), act(z) = z > 0 ? z : slope · z.
// Backward: dz = dy · act'(z), dx = rstd · (dz − Σ dz / S − x̂ · Σ (dz · x̂) / S), by way of u, which is x̂ up to a factor:
//   from y (no residual, a slope that can be divided by): u = y on the positive side and y / slope on the other, factor 1, and
//   dz · u = dy · y on either side;
//   from x: u = x − mean, factor rstd; dz, the gradient of the residual, is written first, and then takes dy's place.
//
// x, residual, y, dy, dz, dx are [N, D, H, W, C] in f32, bf16 or f16, which columns.cuh sees as [N, D·H·W, C]; mean, rstd, offset
// and factor [N, C] and the partial results are f32. Arithmetic is f32, totals over the pieces f64; results are rounded once.
//
// Forward: moments (pieces: reads x), statistics (a warp a channel), forward (pieces: reads x, residual, writes y).
// Backward: sums (pieces: reads dy, h; from x also y, and writes dz), rules (a warp a channel), backward (pieces: reads dy or
// dz, h, writes dx). h is y or x. All outputs are overwritten. The `any` kernels move one element at a time, for channels that
// are no multiple of 16 bytes or arrays that are not aligned to them; the plain ones 16 bytes.
#include "../../cuda/columns.cuh"

constexpr int THREADS = COLUMN_THREADS;

struct MomentsArgs {
    const void* x;
    float* partial;  // [N, pieces, 2, C]: mean and Σ (x − mean)²
    Columns matrix;
};

struct StatisticsArgs {
    const float* partial;
    float* mean;
    float* rstd;
    Columns matrix;
    float eps;
    int reserved;
};

struct ForwardArgs {
    const void* x;
    const void* residual;  // or null
    const float* mean;
    const float* rstd;
    void* y;
    Columns matrix;
    float slope;
    int reserved;
};

struct SumsArgs {
    const void* dy;
    const void* h;
    const float* shift;  // what makes u of h; null: zero
    const void* y;       // the sides of the activation where dz is wanted; else u's sign is the side
    void* dz;            // or null
    float* partial;      // [N, pieces, 2, C]: Σ dz and Σ dz · u
    Columns matrix;
    float slope;
    int reserved;
};

struct RulesArgs {
    const float* partial;
    const float* rstd;
    const float* gain;  // the factor that makes x̂ of u; null: one
    float* offset;
    float* factor;  // dx = rstd · dz − offset − factor · u
    Columns matrix;
};

struct BackwardArgs {
    const void* g;  // dy, or dz with a slope of one
    const void* h;
    const float* shift;
    const float* rstd;
    const float* offset;
    const float* factor;
    void* dx;
    Columns matrix;
    float slope;
    int reserved;
};

template <class T, int V> DEVICE void moments(const MomentsArgs& args) {
    column_moments<T, V>(args.matrix, static_cast<const T*>(args.x), args.partial);
}

template <class T, int V> DEVICE void forward(const ForwardArgs& args) {
    auto x = static_cast<const T*>(args.x);
    auto residual = static_cast<const T*>(args.residual);
    auto y = static_cast<T*>(args.y);
    const Columns m = args.matrix;
    const Walk w = walk<V>(m);
    float mean[V], rstd[V];
    load(mean, args.mean + vector(m, w));
    load(rstd, args.rstd + vector(m, w));
    for_rows<V>(m, w, [&](i64 at) {
        float v[V], r[V] = {};
        load(v, x + at);
        if (residual) load(r, residual + at);
#pragma unroll
        for (int i = 0; i < V; i++) {
            const float z = (v[i] - mean[i]) * rstd[i] + r[i];
            v[i] = z > 0 ? z : z * args.slope;
        }
        store(y + at, v);
    });
}

template <class T, int V> DEVICE void sums(const SumsArgs& args) {
    auto dy = static_cast<const T*>(args.dy);
    auto h = static_cast<const T*>(args.h);
    auto y = static_cast<const T*>(args.y);
    auto dz = static_cast<T*>(args.dz);
    const Columns m = args.matrix;
    column_sums<V, 2>(m, args.partial, [&](const Walk& w, i64 at, float (&sum)[2][V]) {
        float g[V], u[V], side[V];
        load(g, dy + at);
        load(u, h + at);
        if (args.shift) {
            const float* shift = args.shift + vector(m, w);
#pragma unroll
            for (int i = 0; i < V; i++) u[i] -= shift[i];
        }
        if (dz) load(side, y + at);
#pragma unroll
        for (int i = 0; i < V; i++) {
            const float z = (dz ? side[i] : u[i]) > 0 ? g[i] : g[i] * args.slope;
            // as it will be read again
            sum[0][i] = dz ? to_f32(from_f32<T>(z)) : z;
            sum[1][i] = (dz ? sum[0][i] : g[i]) * u[i];
        }
        if (dz) store(dz + at, sum[0]);
    });
}

template <class T, int V> DEVICE void backward(const BackwardArgs& args) {
    auto g = static_cast<const T*>(args.g);
    auto h = static_cast<const T*>(args.h);
    auto dx = static_cast<T*>(args.dx);
    const Columns m = args.matrix;
    const Walk w = walk<V>(m);
    const float inverse = 1.0f / args.slope;
    float shift[V] = {}, rstd[V], offset[V], factor[V];
    if (args.shift) load(shift, args.shift + vector(m, w));
    load(rstd, args.rstd + vector(m, w));
    load(offset, args.offset + vector(m, w));
    load(factor, args.factor + vector(m, w));
    for_rows<V>(m, w, [&](i64 at) {
        float v[V], u[V];
        load(v, g + at);
        load(u, h + at);
#pragma unroll
        for (int i = 0; i < V; i++) {
            const float side = u[i] - shift[i];
            const float dz = side > 0 ? v[i] : v[i] * args.slope, x = side > 0 ? side : side * inverse;
            v[i] = rstd[i] * dz - offset[i] - factor[i] * x;
        }
        store(dx + at, v);
    });
}

extern "C" __global__ void __launch_bounds__(THREADS, 2) instance_norm_statistics(const StatisticsArgs args) {
    for_columns(args.matrix, [&](i64 group, int channel) {
        double mean, squares;
        column_statistics(args.matrix, args.partial, group, channel, mean, squares);
        if (lane_index() != 0) return;
        const i64 at = group * args.matrix.channels + channel;
        args.mean[at] = (float)mean;
        args.rstd[at] = (float)(1.0 / sqrt(squares / args.matrix.rows + args.eps));
    });
}

extern "C" __global__ void __launch_bounds__(THREADS, 2) instance_norm_rules(const RulesArgs args) {
    for_columns(args.matrix, [&](i64 group, int channel) {
        const double dz = column_total(args.matrix, args.partial, group, channel, 0, 2);
        const double dzu = column_total(args.matrix, args.partial, group, channel, 1, 2);
        if (lane_index() != 0) return;
        const i64 at = group * args.matrix.channels + channel;
        const double rstd = args.rstd[at], gain = args.gain ? args.gain[at] : 1.0;
        args.offset[at] = (float)(rstd * dz / args.matrix.rows);
        args.factor[at] = (float)(rstd * gain * gain * dzu / args.matrix.rows);
    });
}

extern "C" __global__ void __launch_bounds__(THREADS) instance_norm_moments_f32(const MomentsArgs args) {
    moments<float, WIDE<float>>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) instance_norm_moments_any_f32(const MomentsArgs args) {
    moments<float, 1>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) instance_norm_moments_bf16(const MomentsArgs args) {
    moments<bf16, WIDE<bf16>>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) instance_norm_moments_f16(const MomentsArgs args) {
    moments<f16, WIDE<f16>>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) instance_norm_moments_any_bf16(const MomentsArgs args) {
    moments<bf16, 1>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) instance_norm_moments_any_f16(const MomentsArgs args) {
    moments<f16, 1>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) instance_norm_forward_f32(const ForwardArgs args) {
    forward<float, WIDE<float>>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) instance_norm_forward_any_f32(const ForwardArgs args) {
    forward<float, 1>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) instance_norm_forward_bf16(const ForwardArgs args) {
    forward<bf16, WIDE<bf16>>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) instance_norm_forward_f16(const ForwardArgs args) {
    forward<f16, WIDE<f16>>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) instance_norm_forward_any_bf16(const ForwardArgs args) {
    forward<bf16, 1>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) instance_norm_forward_any_f16(const ForwardArgs args) {
    forward<f16, 1>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) instance_norm_sums_f32(const SumsArgs args) {
    sums<float, WIDE<float>>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) instance_norm_sums_any_f32(const SumsArgs args) { sums<float, 1>(args); }
extern "C" __global__ void __launch_bounds__(THREADS) instance_norm_sums_bf16(const SumsArgs args) {
    sums<bf16, WIDE<bf16>>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) instance_norm_sums_f16(const SumsArgs args) {
    sums<f16, WIDE<f16>>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) instance_norm_sums_any_bf16(const SumsArgs args) { sums<bf16, 1>(args); }
extern "C" __global__ void __launch_bounds__(THREADS) instance_norm_sums_any_f16(const SumsArgs args) { sums<f16, 1>(args); }
extern "C" __global__ void __launch_bounds__(THREADS) instance_norm_backward_f32(const BackwardArgs args) {
    backward<float, WIDE<float>>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) instance_norm_backward_any_f32(const BackwardArgs args) {
    backward<float, 1>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) instance_norm_backward_bf16(const BackwardArgs args) {
    backward<bf16, WIDE<bf16>>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) instance_norm_backward_f16(const BackwardArgs args) {
    backward<f16, WIDE<f16>>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) instance_norm_backward_any_bf16(const BackwardArgs args) {
    backward<bf16, 1>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) instance_norm_backward_any_f16(const BackwardArgs args) {
    backward<f16, 1>(args);
}
