// Row dropout: row r of x, of C elements, becomes zero when its random number is below p, and x / (1 − p) otherwise. The number
// is the splitmix64 hash of (seed, r) in its upper 53 bits; it is compared as a whole number, to ⌈p · 2⁵³⌉, which is exact.
//
// x and y are [rows, C] in f32, bf16 or f16, n = rows · C. Threads walk in strides of the grid: any one-dimensional launch of up
// to THREADS threads a block will do, and none changes a bit. Moves two elements per element; overwrites.
#include "../../cuda/elements.cuh"

constexpr int THREADS = 256;

struct RowDropoutArgs {
    const void* x;
    void* y;
    i64 n, channels;
    u64 seed, dropped;  // dropped: the numbers below it drop the row
    float keep;         // 1 / (1 − p)
    int reserved;
};

DEVICE u64 random_bits(u64 seed, u64 index) {
    u64 z = (index + 1) * 0x9E3779B97F4A7C15ull + seed;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}

template <class T> DEVICE void forward(const RowDropoutArgs& args) {
    auto x = static_cast<const T*>(args.x);
    auto y = static_cast<T*>(args.y);
    for (i64 i = grid_thread(); i < args.n; i += grid_threads()) {
        const bool drop = random_bits(args.seed, i / args.channels) >> 11 < args.dropped;
        y[i] = from_f32<T>(drop ? 0.0f : to_f32(x[i]) * args.keep);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) row_dropout_forward_f32(const RowDropoutArgs args) {
    forward<float>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) row_dropout_forward_bf16(const RowDropoutArgs args) {
    forward<bf16>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) row_dropout_forward_f16(const RowDropoutArgs args) {
    forward<f16>(args);
}
