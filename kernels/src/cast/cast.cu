// The same n numbers in another dtype: narrow takes f32 to bf16 or f16, to nearest even, and widen takes them to f32.
//
// Threads walk in strides of the grid, 16 bytes of the narrower array at a time where both arrays are aligned: any
// one-dimensional launch of up to THREADS threads a block will do, and none changes a bit. Moves 6 bytes an element; overwrites y.
#include "../../cuda/elements.cuh"

constexpr int THREADS = 256;

struct CastArgs {
    const void* x;
    void* y;
    i64 n;
};

// f32 is moved in two halves, of 16 bytes each.
template <class T> DEVICE void narrow(const CastArgs& args) {
    constexpr int V = WIDE<T>, HALF = WIDE<float>;
    auto x = static_cast<const float*>(args.x);
    auto y = static_cast<T*>(args.y);
    const i64 whole = aligned(x) && aligned(y) ? args.n / V : 0;
    for (i64 i = grid_thread(); i < whole; i += grid_threads()) {
        float low[HALF], high[HALF], v[V];
        load(low, x + i * V);
        load(high, x + i * V + HALF);
#pragma unroll
        for (int k = 0; k < V; k++) v[k] = k < HALF ? low[k % HALF] : high[k % HALF];
        store(y + i * V, v);
    }
    for (i64 i = whole * V + grid_thread(); i < args.n; i += grid_threads()) y[i] = from_f32<T>(x[i]);
}

template <class T> DEVICE void widen(const CastArgs& args) {
    constexpr int V = WIDE<T>, HALF = WIDE<float>;
    auto x = static_cast<const T*>(args.x);
    auto y = static_cast<float*>(args.y);
    const i64 whole = aligned(x) && aligned(y) ? args.n / V : 0;
    for (i64 i = grid_thread(); i < whole; i += grid_threads()) {
        float low[HALF], high[HALF], v[V];
        load(v, x + i * V);
#pragma unroll
        for (int k = 0; k < HALF; k++) low[k] = v[k], high[k] = v[k + HALF];
        store(y + i * V, low);
        store(y + i * V + HALF, high);
    }
    for (i64 i = whole * V + grid_thread(); i < args.n; i += grid_threads()) y[i] = to_f32(x[i]);
}

extern "C" __global__ void __launch_bounds__(THREADS) cast_narrow_bf16(const CastArgs args) { narrow<bf16>(args); }
extern "C" __global__ void __launch_bounds__(THREADS) cast_narrow_f16(const CastArgs args) { narrow<f16>(args); }
extern "C" __global__ void __launch_bounds__(THREADS) cast_widen_bf16(const CastArgs args) { widen<bf16>(args); }
extern "C" __global__ void __launch_bounds__(THREADS) cast_widen_f16(const CastArgs args) { widen<f16>(args); }
