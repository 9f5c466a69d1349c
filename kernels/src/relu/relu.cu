// ReLU: y = max(x, 0), NaN staying NaN; backward dx = dy where y > 0, else 0.
//
// Arrays of n elements of any shape, f32, bf16 or f16. Threads walk in strides of the grid, 16 bytes at a time where all arrays
// are aligned: any one-dimensional launch of up to THREADS threads a block will do, and none changes a bit. Moves two elements
// per element forward, three backward; overwrites.
#include "../../cuda/elements.cuh"

constexpr int THREADS = 256;

struct ReluArgs {
    const void* x;   // forward only
    const void* dy;  // backward only, and y
    const void* y;
    void* out;  // y, or dx
    i64 n;
};

template <class T> DEVICE void forward(const ReluArgs& args) {
    map(static_cast<T*>(args.out), static_cast<const T*>(args.x), args.n, [](float x) { return x < 0 ? 0.0f : x; });
}

template <class T> DEVICE void backward(const ReluArgs& args) {
    zip(static_cast<T*>(args.out), static_cast<const T*>(args.dy), static_cast<const T*>(args.y), args.n,
        [](float dy, float y) { return y > 0 ? dy : 0.0f; });
}

extern "C" __global__ void __launch_bounds__(THREADS) relu_forward_f32(const ReluArgs args) { forward<float>(args); }
extern "C" __global__ void __launch_bounds__(THREADS) relu_forward_bf16(const ReluArgs args) { forward<bf16>(args); }
extern "C" __global__ void __launch_bounds__(THREADS) relu_forward_f16(const ReluArgs args) { forward<f16>(args); }
extern "C" __global__ void __launch_bounds__(THREADS) relu_backward_f32(const ReluArgs args) { backward<float>(args); }
extern "C" __global__ void __launch_bounds__(THREADS) relu_backward_bf16(const ReluArgs args) { backward<bf16>(args); }
extern "C" __global__ void __launch_bounds__(THREADS) relu_backward_f16(const ReluArgs args) { backward<f16>(args); }
