// Euclidean norm: √(Σ x²) with all squares and sums in f64.
//
// x is n elements in f32, bf16 or f16. Block b sums the squares of elements b · piece and on into partial[b]; the total, by one
// block, is norm = √(Σ partial). n, the number of pieces and THREADS decide the order of additions. Reads x once; overwrites
// partial and norm.
#include "../../cuda/elements.cuh"

constexpr int THREADS = 256;

struct SquaresArgs {
    const void* x;
    double* partial;
    i64 n, piece;  // piece: a multiple of 16 bytes
};

struct TotalArgs {
    const double* partial;
    double* norm;
    i64 pieces;
};

template <class T> DEVICE void squares(const SquaresArgs& args) {
    constexpr int V = WIDE<T>;
    auto x = static_cast<const T*>(args.x);
    const i64 start = blockIdx.x * args.piece, end = min(start + args.piece, args.n);
    double sum = 0;
    for (i64 i = start + threadIdx.x * V; i < end; i += THREADS * V) {
        float v[V] = {};
        if (aligned(x) && i + V <= end) {
            load(v, x + i);
        } else {
            for (int k = 0; k < V; k++) v[k] = i + k < end ? to_f32(x[i + k]) : 0.0f;
        }
#pragma unroll
        for (int k = 0; k < V; k++) sum += (double)v[k] * v[k];
    }
    sum = block_sum<THREADS>(sum);
    if (threadIdx.x == 0) args.partial[blockIdx.x] = sum;
}

extern "C" __global__ void __launch_bounds__(THREADS) l2_norm_total(const TotalArgs args) {
    double sum = 0;
    for (i64 piece = threadIdx.x; piece < args.pieces; piece += THREADS) sum += args.partial[piece];
    sum = block_sum<THREADS>(sum);
    if (threadIdx.x == 0) *args.norm = sqrt(sum);
}

extern "C" __global__ void __launch_bounds__(THREADS) l2_norm_squares_f32(const SquaresArgs args) { squares<float>(args); }
extern "C" __global__ void __launch_bounds__(THREADS) l2_norm_squares_bf16(const SquaresArgs args) { squares<bf16>(args); }
extern "C" __global__ void __launch_bounds__(THREADS) l2_norm_squares_f16(const SquaresArgs args) { squares<f16>(args); }
