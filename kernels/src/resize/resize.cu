// Trilinear resize. Along an axis of I voxels, output o of O samples at s = numerator / denominator,
//   o · (I − 1) / (O − 1), or 0 for O = 1, with aligned corners;   max((2o + 1) · I − O, 0) / 2O without,
// between voxel i = ⌊s⌋ and the next, which at the end is i again, with weights 1 − (s − i) and s − i; the axes' weights
// multiply. Positions are computed in whole numbers, so that weights are rounded once. Backward is the transpose, for each voxel
// of dx the sum over the outputs that sampled it, which are neighbours.
//
// x, dx are [N, D, H, W, C], y, dy [N, O…, C], in f32, bf16 or f16, computed in f32 and rounded once. Threads walk over the
// voxels of the result in strides of the grid, a chunk of channels each (16 bytes; `any`: one element): any one-dimensional
// launch of up to THREADS threads a block will do, and none changes a bit. Forward reads up to eight voxels for each output,
// backward as many outputs as sampled the voxel, neighbours mostly out of the cache. Overwrites.
#include "../../cuda/elements.cuh"

constexpr int THREADS = 256;

struct ResizeArgs {
    const void* from;
    void* to;
    i64 n;                        // chunks of the result
    int depth, height, width;     // of x
    int depths, heights, widths;  // of y; (2 · out + 3) · (in + 1) is below 2³¹ on each axis, and the other way round
    int chunks;                   // of C
    int align;
};

struct Axis {
    int in, out;
    bool align;
};

// The first of the voxels between which an output lies, and the second one's weight.
struct Sample {
    int voxel;
    float part;
};

DEVICE Sample sample(const Axis& axis, int o) {
    int numerator = axis.align ? o * (axis.in - 1) : (2 * o + 1) * axis.in - axis.out;
    const int denominator = axis.align ? max(axis.out - 1, 1) : 2 * axis.out;
    numerator = max(numerator, 0);
    return {numerator / denominator, (float)(numerator % denominator) / (float)denominator};
}

// The second voxel.
DEVICE int next(const Axis& axis, const Sample& s) { return min(s.voxel + 1, axis.in - 1); }

// The share of voxel i in output o.
DEVICE float weight(const Axis& axis, int i, int o) {
    const Sample s = sample(axis, o);
    return (s.voxel == i ? 1 - s.part : 0.0f) + (next(axis, s) == i ? s.part : 0.0f);
}

// The first output at or past position i.
DEVICE int reaching(const Axis& axis, int i) {
    if (axis.align && (axis.in == 1 || axis.out == 1)) return i > 0 ? axis.out : 0;
    const int numerator = axis.align ? i * (axis.out - 1) : (2 * i + 1) * axis.out - axis.in;
    const int denominator = axis.align ? axis.in - 1 : 2 * axis.in;
    return i <= 0 || numerator <= 0 ? 0 : min((numerator + denominator - 1) / denominator, axis.out);
}

template <class T, int V> DEVICE void add_scaled(float (&sum)[V], const T* from, float weight) {
    if (weight == 0) return;  // exact samples and borders leave many without weight
    float v[V];
    load(v, from);
#pragma unroll
    for (int k = 0; k < V; k++) sum[k] += v[k] * weight;
}

template <class T, int V> DEVICE void forward(const ResizeArgs& args) {
    auto x = static_cast<const T*>(args.from);
    auto y = static_cast<T*>(args.to);
    const bool align = args.align;
    const Axis along_d = {args.depth, args.depths, align}, along_h = {args.height, args.heights, align};
    const Axis along_w = {args.width, args.widths, align};
#pragma unroll 1
    for (i64 i = grid_thread(); i < args.n; i += grid_threads()) {
        const i64 chunk = i % args.chunks;
        i64 rest = i / args.chunks;
        const Sample w = sample(along_w, (int)(rest % args.widths));
        rest /= args.widths;
        const Sample h = sample(along_h, (int)(rest % args.heights));
        rest /= args.heights;
        const Sample d = sample(along_d, (int)(rest % args.depths));
        const i64 n = rest / args.depths;
        float sum[V] = {};
#pragma unroll
        for (int corner = 0; corner < 8; corner++) {
            const bool up_d = corner & 4, up_h = corner & 2, up_w = corner & 1;
            const i64 row = (n * args.depth + (up_d ? next(along_d, d) : d.voxel)) * args.height;
            const i64 voxel = (row + (up_h ? next(along_h, h) : h.voxel)) * args.width + (up_w ? next(along_w, w) : w.voxel);
            const float plane = (up_d ? d.part : 1 - d.part) * (up_h ? h.part : 1 - h.part);
            add_scaled(sum, x + (voxel * args.chunks + chunk) * V, plane * (up_w ? w.part : 1 - w.part));
        }
        store(y + i * V, sum);
    }
}

template <class T, int V> DEVICE void backward(const ResizeArgs& args) {
    auto dy = static_cast<const T*>(args.from);
    auto dx = static_cast<T*>(args.to);
    const bool align = args.align;
    const Axis along_d = {args.depth, args.depths, align}, along_h = {args.height, args.heights, align};
    const Axis along_w = {args.width, args.widths, align};
#pragma unroll 1
    for (i64 i = grid_thread(); i < args.n; i += grid_threads()) {
        const i64 chunk = i % args.chunks;
        i64 rest = i / args.chunks;
        const int w = (int)(rest % args.width);
        rest /= args.width;
        const int h = (int)(rest % args.height);
        rest /= args.height;
        const int d = (int)(rest % args.depth);
        const i64 n = rest / args.depth;
        const int end_d = reaching(along_d, d + 1), end_h = reaching(along_h, h + 1), end_w = reaching(along_w, w + 1);
        float sum[V] = {};
        for (int od = reaching(along_d, d - 1); od < end_d; od++) {
            const float weight_d = weight(along_d, d, od);
            for (int oh = reaching(along_h, h - 1); oh < end_h; oh++) {
                const float plane = weight_d * weight(along_h, h, oh);
                const i64 row = ((n * args.depths + od) * args.heights + oh) * args.widths;
#pragma unroll 1
                for (int ow = reaching(along_w, w - 1); ow < end_w; ow++)
                    add_scaled(sum, dy + ((row + ow) * args.chunks + chunk) * V, plane * weight(along_w, w, ow));
            }
        }
        store(dx + i * V, sum);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) resize_forward_f32(const ResizeArgs args) {
    forward<float, WIDE<float>>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) resize_forward_any_f32(const ResizeArgs args) { forward<float, 1>(args); }
extern "C" __global__ void __launch_bounds__(THREADS) resize_forward_bf16(const ResizeArgs args) {
    forward<bf16, WIDE<bf16>>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) resize_forward_f16(const ResizeArgs args) {
    forward<f16, WIDE<f16>>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) resize_forward_any_bf16(const ResizeArgs args) { forward<bf16, 1>(args); }
extern "C" __global__ void __launch_bounds__(THREADS) resize_forward_any_f16(const ResizeArgs args) { forward<f16, 1>(args); }
extern "C" __global__ void __launch_bounds__(THREADS, 2) resize_backward_f32(const ResizeArgs args) {
    backward<float, WIDE<float>>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS, 2) resize_backward_any_f32(const ResizeArgs args) {
    backward<float, 1>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS, 2) resize_backward_bf16(const ResizeArgs args) {
    backward<bf16, WIDE<bf16>>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS, 2) resize_backward_f16(const ResizeArgs args) {
    backward<f16, WIDE<f16>>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS, 2) resize_backward_any_bf16(const ResizeArgs args) {
    backward<bf16, 1>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS, 2) resize_backward_any_f16(const ResizeArgs args) {
    backward<f16, 1>(args);
}
