// GELU, y = x · Φ(x), and its backward, dx = dy · (Φ(x) + x · φ(x)).
//
// Arrays of n elements of any shape, f32, bf16 or f16, computed in f32 and rounded once. Threads walk in strides of the grid: any
// one-dimensional launch of up to THREADS threads a block will do, and none changes a bit. Moves two elements per element
// forward, three backward; overwrites.
#include "../../cuda/gelu.cuh"

constexpr int THREADS = 256;

struct GeluArgs {
    const void* x;
    const void* dy;  // backward only
    void* out;       // y, or dx
    i64 n;
};

template <class T> DEVICE void forward(const GeluArgs& args) {
    auto x = static_cast<const T*>(args.x);
    auto y = static_cast<T*>(args.out);
    for (i64 i = grid_thread(); i < args.n; i += grid_threads()) {
        float v = to_f32(x[i]);
        y[i] = from_f32<T>(v * distribution(v));
    }
}

template <class T> DEVICE void backward(const GeluArgs& args) {
    auto x = static_cast<const T*>(args.x);
    auto dy = static_cast<const T*>(args.dy);
    auto dx = static_cast<T*>(args.out);
    for (i64 i = grid_thread(); i < args.n; i += grid_threads()) {
        float v = to_f32(x[i]);
        dx[i] = from_f32<T>(to_f32(dy[i]) * slope(v, distribution(v)));
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) gelu_forward_f32(const GeluArgs args) { forward<float>(args); }
extern "C" __global__ void __launch_bounds__(THREADS) gelu_forward_bf16(const GeluArgs args) { forward<bf16>(args); }
extern "C" __global__ void __launch_bounds__(THREADS) gelu_forward_f16(const GeluArgs args) { forward<f16>(args); }
extern "C" __global__ void __launch_bounds__(THREADS) gelu_backward_f32(const GeluArgs args) { backward<float>(args); }
extern "C" __global__ void __launch_bounds__(THREADS) gelu_backward_bf16(const GeluArgs args) { backward<bf16>(args); }
extern "C" __global__ void __launch_bounds__(THREADS) gelu_backward_f16(const GeluArgs args) { backward<f16>(args); }
