// Sums and scaled copies: out = a + b, and out = factor · a.
//
// Arrays of n elements of any shape, f32, bf16 or f16, computed in f32 and rounded once. Threads walk in strides of the grid, 16
// bytes at a time where all arrays are aligned: any one-dimensional launch of up to THREADS threads a block will do, and none
// changes a bit. Moves three elements per element, two to scale. out is overwritten; with out = a, b is accumulated.
#include "../../cuda/elements.cuh"

constexpr int THREADS = 256;

struct AddArgs {
    const void* a;
    const void* b;  // not to scale
    void* out;
    i64 n;
    float factor;  // only to scale
    int reserved;
};

template <class T> DEVICE void forward(const AddArgs& args) {
    zip(static_cast<T*>(args.out), static_cast<const T*>(args.a), static_cast<const T*>(args.b), args.n,
        [](float a, float b) { return a + b; });
}

template <class T> DEVICE void scale(const AddArgs& args) {
    const float factor = args.factor;
    map(static_cast<T*>(args.out), static_cast<const T*>(args.a), args.n, [=](float a) { return a * factor; });
}

extern "C" __global__ void __launch_bounds__(THREADS) add_forward_f32(const AddArgs args) { forward<float>(args); }
extern "C" __global__ void __launch_bounds__(THREADS) add_forward_bf16(const AddArgs args) { forward<bf16>(args); }
extern "C" __global__ void __launch_bounds__(THREADS) add_forward_f16(const AddArgs args) { forward<f16>(args); }
extern "C" __global__ void __launch_bounds__(THREADS) add_scale_f32(const AddArgs args) { scale<float>(args); }
extern "C" __global__ void __launch_bounds__(THREADS) add_scale_bf16(const AddArgs args) { scale<bf16>(args); }
extern "C" __global__ void __launch_bounds__(THREADS) add_scale_f16(const AddArgs args) { scale<f16>(args); }
