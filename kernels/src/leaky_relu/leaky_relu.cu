// LeakyReLU: y = x where x > 0, else slope · x; backward dx = dy where x > 0, else slope · dy.
//
// Arrays of n elements of any shape, f32, bf16 or f16, computed in f32 and rounded once. Threads walk in strides of the grid, 16
// bytes at a time where all arrays are aligned: any one-dimensional launch of up to THREADS threads a block will do, and none
// changes a bit. Moves two elements per element forward, three backward; overwrites.
#include "../../cuda/elements.cuh"

constexpr int THREADS = 256;

struct LeakyReluArgs {
    const void* x;
    const void* dy;  // backward only
    void* out;       // y, or dx
    i64 n;
    float slope;
    int reserved;
};

template <class T> DEVICE void forward(const LeakyReluArgs& args) {
    const float slope = args.slope;
    map(static_cast<T*>(args.out), static_cast<const T*>(args.x), args.n,
        [=](float x) { return x > 0 ? x : x * slope; });
}

template <class T> DEVICE void backward(const LeakyReluArgs& args) {
    const float slope = args.slope;
    zip(static_cast<T*>(args.out), static_cast<const T*>(args.dy), static_cast<const T*>(args.x), args.n,
        [=](float dy, float x) { return x > 0 ? dy : dy * slope; });
}

extern "C" __global__ void __launch_bounds__(THREADS) leaky_relu_forward_f32(const LeakyReluArgs args) { forward<float>(args); }
extern "C" __global__ void __launch_bounds__(THREADS) leaky_relu_forward_bf16(const LeakyReluArgs args) { forward<bf16>(args); }
extern "C" __global__ void __launch_bounds__(THREADS) leaky_relu_forward_f16(const LeakyReluArgs args) { forward<f16>(args); }
extern "C" __global__ void __launch_bounds__(THREADS) leaky_relu_backward_f32(const LeakyReluArgs args) {
    backward<float>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) leaky_relu_backward_bf16(const LeakyReluArgs args) {
    backward<bf16>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) leaky_relu_backward_f16(const LeakyReluArgs args) {
    backward<f16>(args);
}
