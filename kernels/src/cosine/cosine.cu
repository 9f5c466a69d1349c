// Pairwise cosines, y[n, m] = a_n · b_m / (max(‖a_n‖, 1e-8) max(‖b_m‖, 1e-8)), and their backward by one side,
// da_n = Σ_m dy[n, m] (b_m / (n'_a n'_b) - y[n, m] a_n / (n_a n'_a)), n' the clamped norm, the second part 0 where n_a = 0.
//
// a [N, D], b [M, D], y and dy [N, M], row-major f32; sums in f64 by an order that does not depend on the launch. Forward: a
// warp per pair, which reads both rows. Backward: a block per row and slab of THREADS · COLUMNS columns, which reads the row
// and twice all rows of the other side; launched once for da and, with the steps of dy exchanged, once for db. Any
// one-dimensional grid of blocks of THREADS will do. Both overwrite.
#include "../../cuda/cosine.cuh"

constexpr int THREADS = 256;

struct CosineArgs {
    const float* x;       // [rows, dim]
    const float* others;  // [count, dim]
    const float* dy;      // backward only: that of row r and other o is dy[r · row_step + o · other_step]
    float* out;           // y [rows, count], or dx
    i64 rows;
    i64 count;
    i64 dim;
    i64 row_step;
    i64 other_step;
};

extern "C" __global__ void __launch_bounds__(THREADS, 1) cosine_forward_f32(const CosineArgs args) {
    const i64 warps = grid_threads() / 32;
    for (i64 pair = grid_thread() / 32; pair < args.rows * args.count; pair += warps) {
        const i64 row = pair / args.count, other = pair % args.count;
        Meeting met = meet(args.x + row * args.dim, args.others + other * args.dim, args.dim);
        if (lane_index() == 0) args.out[pair] = (float)met.cosine;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) cosine_backward_f32(const CosineArgs args) {
    const i64 slabs_each = slabs<THREADS>(args.dim);
    for (i64 block = blockIdx.x; block < args.rows * slabs_each; block += gridDim.x) {
        const i64 row = block / slabs_each;
        const float* x = args.x + row * args.dim;
        gradient<THREADS>(x, args.out + row * args.dim, args.dim, block % slabs_each, args.count, [&](i64 o) {
            const float* other = args.others + o * args.dim;
            return Pull{other, meet(x, other, args.dim), args.dy[row * args.row_step + o * args.other_step]};
        });
    }
}
