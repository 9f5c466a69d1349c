// InfoNCE on cosines with soft targets, as mod.rs beside this file writes it down: the loss, and the gradients of q and k.
//
// q [G S, D], k [G K, D], targets [G S, K], lse [G S] (τ times the log-sum-exp), loss and dloss []; f32. Cosines exist as
// tiles of 64 × 64 in registers only. Unit rows are made where they are read, x / norm with the norm in f64; products and
// exponentials are in f32, what is summed over a whole row in f64. In five kernels:
//   info_nce_norms     a warp per row; norms [rows] of q or of k, not clamped
//   info_nce_forward   a block per 64 rows of q; walks over the tiles of its group; lse, and the block's summed loss
//   info_nce_loss      one block; the mean of the sums
//   info_nce_gains     a warp per row of q; dloss Σ t / (G S τ), what the softmax is multiplied by
//   info_nce_backward  a block per 64 rows of q (dq), or of k (dk); walks over the tiles of its group; sums [rows, D] is its
//                      scratch, to which each tile adds its product with the other side's unit rows
// Blocks of THREADS, in one dimension and as many as there are tiles of rows. Every output is overwritten. A tile reads 128 rows
// forward; backward reads the other side's twice, and sums are read and written once a tile.
#include "../../cuda/device.cuh"

constexpr int THREADS = 256;
constexpr int TILE = 64;
// Depth of the products' steps.
constexpr int STEP = 16;
// A row of shared memory: room for TILE, whole float4s, and another bank for the next row.
constexpr int PITCH = TILE + 4;
constexpr double LEAST_NORM = 1e-12;

struct NormsArgs {
    const float* x;
    double* norms;
    i64 rows;
    i64 dim;
};

struct InfoNceArgs {
    const float* q;
    const float* k;
    const float* targets;
    const double* q_norms;
    const double* k_norms;
    const float* dloss;  // backward only
    float* lse;
    double* losses;  // of the blocks of forward
    float* loss;
    float* gains;
    float* sums;
    float* dx;
    i64 groups;
    i64 q_rows;  // of a group
    i64 k_rows;  // of a group
    i64 dim;
    double temperature;
};

DEVICE float infinity() { return __uint_as_float(0x7f800000u); }
DEVICE double clamped(double norm) { return norm < LEAST_NORM ? LEAST_NORM : norm; }

extern "C" __global__ void __launch_bounds__(THREADS) info_nce_norms_f32(const NormsArgs args) {
    for (i64 row = grid_thread() / 32; row < args.rows; row += grid_threads() / 32) {
        double square = 0;
        for (i64 d = lane_index(); d < args.dim; d += 32) {
            const double v = args.x[row * args.dim + d];
            square += v * v;
        }
        square = warp_sum(square);
        if (lane_index() == 0) args.norms[row] = sqrt(square);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) info_nce_gains_f32(const InfoNceArgs args) {
    const i64 rows = args.groups * args.q_rows;
    const double scale = *args.dloss / ((double)rows * args.temperature);
    for (i64 row = grid_thread() / 32; row < rows; row += grid_threads() / 32) {
        double total = 0;
        for (i64 j = lane_index(); j < args.k_rows; j += 32) total += args.targets[row * args.k_rows + j];
        total = warp_sum(total);
        if (lane_index() == 0) args.gains[row] = (float)(scale * total);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) info_nce_loss_f32(const InfoNceArgs args) {
    const i64 blocks = args.groups * ceil_div(args.q_rows, TILE);
    double sum = 0;
    for (i64 block = threadIdx.x; block < blocks; block += THREADS) sum += args.losses[block];
    sum = block_sum<THREADS>(sum);
    if (threadIdx.x == 0) *args.loss = (float)(sum / (double)(args.groups * args.q_rows));
}

// Up to TILE neighbouring rows of one side.
struct Rows {
    const float* x;
    const double* norms;
    int count;
};

// Tile `index` of the rows of a group.
DEVICE Rows tile(const float* x, const double* norms, i64 dim, i64 group, i64 rows, i64 index) {
    const i64 first = group * rows + index * TILE;
    return {x + first * dim, norms + first, (int)min((i64)TILE, rows - index * TILE)};
}

// 1 / norm of a tile's rows as the sum of two floats, so that x / norm is rounded once only.
struct Scales {
    float high[TILE], low[TILE];
};

DEVICE void load_scales(Scales& scales, const Rows& rows) {
    if (threadIdx.x < rows.count) {
        const double scale = 1.0 / clamped(rows.norms[threadIdx.x]);
        const float high = (float)scale;
        scales.high[threadIdx.x] = high;
        scales.low[threadIdx.x] = (float)(scale - high);
    }
}

DEVICE float unit(const Scales& scales, int row, float x) { return fmaf(x, scales.low[row], x * scales.high[row]); }

// Columns start .. start + STEP of a tile's unit rows, transposed; zeros beyond the tile.
DEVICE void load_columns(float (&to)[STEP][PITCH], const Rows& rows, const Scales& scales, i64 start, i64 dim) {
    for (int i = threadIdx.x; i < TILE * STEP; i += THREADS) {
        const int row = i / STEP, d = i % STEP;
        const bool inside = row < rows.count && start + d < dim;
        to[d][row] = inside ? unit(scales, row, rows.x[row * dim + start + d]) : 0.0f;
    }
}

// Rows start .. start + STEP of a tile's unit rows, TILE columns of them; zeros beyond the tile.
DEVICE void load_rows(float (&to)[STEP][PITCH], const Rows& rows, const Scales& scales, int start, i64 column, i64 dim) {
    for (int i = threadIdx.x; i < STEP * TILE; i += THREADS) {
        const int row = i / TILE, d = i % TILE;
        const bool inside = start + row < rows.count && column + d < dim;
        to[row][d] = inside ? unit(scales, start + row, rows.x[(start + row) * dim + column + d]) : 0.0f;
    }
}

// This thread's 4 × 4 of a tile: rows 4 · down .., columns 4 · across ...
DEVICE int down() { return threadIdx.x / 16 * 4; }
DEVICE int across() { return threadIdx.x % 16 * 4; }

// c += aᵀ b over `depth` rows of a and b.
DEVICE void multiply(float (&c)[4][4], const float (*a)[PITCH], const float (*b)[PITCH]) {
#pragma unroll
    for (int d = 0; d < STEP; d++) {
        const float4 left = *reinterpret_cast<const float4*>(&a[d][down()]);
        const float4 right = *reinterpret_cast<const float4*>(&b[d][across()]);
        const float l[4] = {left.x, left.y, left.z, left.w}, r[4] = {right.x, right.y, right.z, right.w};
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) c[i][j] = fmaf(l[i], r[j], c[i][j]);
    }
}

struct Steps {
    float a[STEP][PITCH], b[STEP][PITCH];
};

// The cosines of two tiles.
DEVICE void cosines(float (&c)[4][4], const Rows& a, const Scales& a_scales, const Rows& b, const Scales& b_scales, i64 dim,
                    Steps& steps) {
#pragma unroll
    for (int i = 0; i < 16; i++) c[i / 4][i % 4] = 0;
    for (i64 start = 0; start < dim; start += STEP) {
        load_columns(steps.a, a, a_scales, start, dim);
        load_columns(steps.b, b, b_scales, start, dim);
        __syncthreads();
        multiply(c, steps.a, steps.b);
        __syncthreads();
    }
}

// One row's sums over the columns so far, in cosines c: `sum` of exp((c - top) / τ), `wanted` Σ t c, `total` Σ t. The same in
// all 16 threads of the row.
struct Running {
    double top, sum, wanted, total;
};

DEVICE void add(Running& row, const float (&c)[4], const float (&t)[4], int count, float inverse) {
    float top = -infinity(), sum = 0, wanted = 0, total = 0;
#pragma unroll
    for (int j = 0; j < 4; j++)
        if (j < count) {
            top = fmaxf(top, c[j]);
            wanted = fmaf(t[j], c[j], wanted);
            total += t[j];
        }
    top = warp_max<16>(top);
#pragma unroll
    for (int j = 0; j < 4; j++)
        if (j < count) sum += expf((c[j] - top) * inverse);
    const double higher = row.top >= top ? row.top : top;
    row.sum = row.sum * exp((row.top - higher) * inverse) + warp_sum<16>(sum) * exp((top - higher) * inverse);
    row.wanted += warp_sum<16>(wanted);
    row.total += warp_sum<16>(total);
    row.top = higher;
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) info_nce_forward_f32(const InfoNceArgs args) {
    SHARED(Steps, steps, [1]);
    SHARED(Scales, scales, [2]);
    const i64 q_tiles = ceil_div(args.q_rows, TILE), group = blockIdx.x / q_tiles, index = blockIdx.x % q_tiles;
    const Rows q = tile(args.q, args.q_norms, args.dim, group, args.q_rows, index);
    const float* targets = args.targets + (group * args.q_rows + index * TILE + down()) * args.k_rows;
    const float inverse = (float)(1.0 / args.temperature);
    load_scales(scales[0], q);
    Running rows[4];
#pragma unroll
    for (int i = 0; i < 4; i++) rows[i] = {-infinity(), 0, 0, 0};
    for (i64 start = 0; start < args.k_rows; start += TILE) {
        const Rows k = tile(args.k, args.k_norms, args.dim, group, args.k_rows, start / TILE);
        load_scales(scales[1], k);
        __syncthreads();
        float c[4][4];
        cosines(c, q, scales[0], k, scales[1], args.dim, steps[0]);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float t[4];
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const bool inside = down() + i < q.count && across() + j < k.count;
                t[j] = inside ? targets[i * args.k_rows + start + across() + j] : 0.0f;
            }
            add(rows[i], c[i], t, k.count - across(), inverse);
        }
    }
    double loss = 0;
#pragma unroll
    for (int i = 0; i < 4; i++)
        if (across() == 0 && down() + i < q.count) {
            const double lse = rows[i].top + log(rows[i].sum) / inverse;
            args.lse[group * args.q_rows + index * TILE + down() + i] = (float)lse;
            loss += (rows[i].total * lse - rows[i].wanted) * inverse;
        }
    loss = block_sum<THREADS>(loss);
    if (threadIdx.x == 0) args.losses[blockIdx.x] = loss;
}

// The loss's derivatives by the cosines of a tile, in place of them; zeros beyond it. KEYS: the tile's rows are of k.
template <bool KEYS>
DEVICE void slopes(float (&c)[4][4], const InfoNceArgs& args, i64 group, i64 row, i64 column, int rows, int columns) {
    const float inverse = (float)(1.0 / args.temperature);
    const float scale = (float)(*args.dloss / ((double)(args.groups * args.q_rows) * args.temperature));
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const bool inside = down() + i < rows && across() + j < columns;
            const i64 own = row + down() + i, other = column + across() + j;
            const i64 q = group * args.q_rows + (KEYS ? other : own), k = KEYS ? own : other;
            c[i][j] = inside ? args.gains[q] * expf((c[i][j] - args.lse[q]) * inverse) - args.targets[q * args.k_rows + k] * scale
                             : 0.0f;
        }
}

// sums += slopesᵀ · the other side's unit rows, or = for the first tile.
DEVICE void add_product(float* sums, const Rows& own, const float (*by_other)[PITCH], const Rows& other, const Scales& scales,
                        i64 dim, bool first, Steps& steps) {
    for (i64 column = 0; column < dim; column += TILE) {
        float c[4][4] = {};
        for (int start = 0; start < other.count; start += STEP) {
            load_rows(steps.b, other, scales, start, column, dim);
            __syncthreads();
            multiply(c, by_other + start, steps.b);
            __syncthreads();
        }
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++)
                if (down() + i < own.count && column + across() + j < dim) {
                    float* sum = sums + (down() + i) * dim + column + across() + j;
                    *sum = first ? c[i][j] : *sum + c[i][j];
                }
    }
}

// The gradient of a tile's rows, given that of its unit rows, which a warp per row turns into it.
DEVICE void through_norm(float* dx, const float* sums, const Rows& rows, const Scales& scales, i64 dim) {
    for (int row = warp_index(); row < rows.count; row += THREADS / 32) {
        const double norm = rows.norms[row];
        double along = 0;
        for (i64 d = lane_index(); d < dim; d += 32)
            along += (double)unit(scales, row, rows.x[row * dim + d]) * sums[row * dim + d];
        along = norm < LEAST_NORM ? 0.0 : warp_sum(along);
        for (i64 d = lane_index(); d < dim; d += 32) {
            const double across = along * unit(scales, row, rows.x[row * dim + d]);
            dx[row * dim + d] = (float)((sums[row * dim + d] - across) / clamped(norm));
        }
    }
}

template <bool KEYS> DEVICE void backward(const InfoNceArgs& args) {
    SHARED(Steps, steps, [1]);
    SHARED(Scales, scales, [2]);
    SHARED(float, by_other, [TILE][PITCH]);
    const i64 own_rows = KEYS ? args.k_rows : args.q_rows, other_rows = KEYS ? args.q_rows : args.k_rows, dim = args.dim;
    const i64 tiles = ceil_div(own_rows, TILE), group = blockIdx.x / tiles, index = blockIdx.x % tiles;
    const Rows own = tile(KEYS ? args.k : args.q, KEYS ? args.k_norms : args.q_norms, dim, group, own_rows, index);
    const i64 first = (group * own_rows + index * TILE) * dim;
    load_scales(scales[0], own);
    for (i64 start = 0; start < other_rows; start += TILE) {
        const Rows other =
            tile(KEYS ? args.q : args.k, KEYS ? args.q_norms : args.k_norms, dim, group, other_rows, start / TILE);
        load_scales(scales[1], other);
        __syncthreads();
        float c[4][4];
        cosines(c, own, scales[0], other, scales[1], dim, steps[0]);
        slopes<KEYS>(c, args, group, index * TILE, start, own.count, other.count);
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) by_other[across() + j][down() + i] = c[i][j];
        __syncthreads();
        add_product(args.sums + first, own, by_other, other, scales[1], dim, start == 0, steps[0]);
    }
    __syncthreads();
    through_norm(args.dx + first, args.sums + first, own, scales[0], dim);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) info_nce_backward_q_f32(const InfoNceArgs args) {
    backward<false>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS, 1) info_nce_backward_k_f32(const InfoNceArgs args) {
    backward<true>(args);
}
