// One AdamW-amsgrad update of n elements, as mod.rs beside this file writes it down:
//   m = β1 m + (1 - β1) g,  v = β2 v + (1 - β2) g²,  vmax = max(vmax, v),  x = keep x - step_size m / (√vmax / root + ε).
//
// x, m, v and vmax f32, updated in place; g f32, bf16 or f16, and multiplied by `unscale` first. The kernels with two dtypes in
// their names, the gradient's and another, also overwrite `copy` with x in the latter, rounded to nearest even. The factors are
// the same for all elements and come rounded once from f64. Threads walk in strides of the grid: any one-dimensional launch will
// do. Moves 36 bytes an element, 2 less for a gradient in 16 bits and 2 more for a copy.
#include "../../cuda/device.cuh"

constexpr int THREADS = 256;

struct AdamwArgs {
    float* x;
    float* m;
    float* v;
    float* vmax;
    const void* g;
    void* copy;  // not where the kernel's name has one dtype
    i64 n;
    float keep;
    float beta1;
    float one_minus_beta1;
    float beta2;
    float one_minus_beta2;
    float step_size;
    float root_correction;
    float eps;
    float unscale;
    int reserved;
};

template <class C> DEVICE void write(C* copy, i64 i, float x) { copy[i] = from_f32<C>(x); }
DEVICE void write(void*, i64, float) {}

// C: what the copy is in; void without one.
template <class T, class C = void> DEVICE void update(const AdamwArgs& args) {
    auto gradient = static_cast<const T*>(args.g);
    auto copy = static_cast<C*>(args.copy);
    for (i64 i = grid_thread(); i < args.n; i += grid_threads()) {
        const float g = to_f32(gradient[i]) * args.unscale;
        const float m = args.beta1 * args.m[i] + args.one_minus_beta1 * g;
        const float v = args.beta2 * args.v[i] + args.one_minus_beta2 * g * g;
        const float vmax = args.vmax[i] >= v ? args.vmax[i] : v;  // v is NaN from its first on, and so is this
        const float denominator = sqrtf(vmax) / args.root_correction + args.eps;
        args.m[i] = m;
        args.v[i] = v;
        args.vmax[i] = vmax;
        const float x = args.keep * args.x[i] - args.step_size * (m / denominator);
        args.x[i] = x;
        write(copy, i, x);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) adamw_update_f32(const AdamwArgs args) { update<float>(args); }
extern "C" __global__ void __launch_bounds__(THREADS) adamw_update_bf16(const AdamwArgs args) { update<bf16>(args); }
extern "C" __global__ void __launch_bounds__(THREADS) adamw_update_f16(const AdamwArgs args) { update<f16>(args); }
extern "C" __global__ void __launch_bounds__(THREADS) adamw_update_f32_bf16(const AdamwArgs args) {
    update<float, bf16>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) adamw_update_f32_f16(const AdamwArgs args) {
    update<float, f16>(args);
}
