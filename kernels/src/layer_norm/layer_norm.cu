// Layer norm over rows of C values: mean = Σ x / C, rstd = 1 / √(Σ (x − mean)² / C + eps), x̂ = (x − mean) · rstd,
// y = x̂ · weight + bias, or x̂ without weight. Backward, with g = dy · weight: dx = rstd · (g − Σ g / C − x̂ · Σ (g · x̂) / C),
// dweight = Σ dy · x̂ and dbias = Σ dy over the rows.
//
// x, y, dy, dx are [rows, C] in f32, bf16 or f16; weight, bias, dweight, dbias [C] and mean, rstd [rows] in f32. Arithmetic is
// f32, results are rounded once. `forward` and `backward` give a row to `lanes` neighbouring lanes (a power of two up to 32),
// which read it again for each pass, out of the cache: any one-dimensional launch of whole warps, up to THREADS threads, will do.
// `shares` sums dy · x̂ and dy over pieces of the rows (columns.cuh), and `total` the pieces in f64, a warp a channel. The order
// of additions depends on the shape alone. Forward moves two elements per element, backward three, shares two; outputs are
// overwritten. The `any` kernels move one element at a time, for C that is no multiple of 16 bytes or arrays that are not aligned
// to them; the plain ones 16 bytes.
#include "../../cuda/columns.cuh"

constexpr int THREADS = COLUMN_THREADS;

struct ForwardArgs {
    const void* x;
    const float* weight;  // or null
    const float* bias;    // with the weight
    void* y;
    float* mean;
    float* rstd;
    i64 rows;
    int channels, lanes;
    float eps;
    int reserved;
};

struct BackwardArgs {
    const void* dy;
    const void* x;
    const float* weight;  // or null
    const float* mean;
    const float* rstd;
    void* dx;
    i64 rows;
    int channels, lanes;
};

struct SharesArgs {
    const void* dy;
    const void* x;
    const float* mean;
    const float* rstd;
    float* partial;  // [1, pieces, 2, C]: Σ dy · x̂ and Σ dy
    Columns matrix;
};

struct TotalArgs {
    const float* partial;
    float* dweight;
    float* dbias;
    Columns matrix;
};

// Over groups of `lanes` neighbouring lanes of a full warp.
DEVICE float lanes_sum(float value, int lanes) {
    for (int apart = lanes / 2; apart; apart /= 2) value += __shfl_xor_sync(0xffffffffu, value, apart);
    return value;
}

// Calls f(row, first channel of the lane, channels from one chunk to the next, whether there is a row). All lanes of a warp make
// the same calls, so that f may sum over them.
template <int V, class F> DEVICE void for_rows_of_lanes(i64 rows, int lanes, F f) {
    const i64 at_once = grid_threads() / lanes;
    for (i64 first = (grid_thread() - lane_index()) / lanes; first < rows; first += at_once) {
        const i64 row = first + lane_index() / lanes;
        f(row < rows ? row : rows - 1, lane_index() % lanes * V, lanes * V, row < rows);
    }
}

// Ones where there is no weight.
template <int V> DEVICE void load_weight(float (&w)[V], const float* weight, int channel) {
    if (weight) return load(w, weight + channel);
#pragma unroll
    for (int i = 0; i < V; i++) w[i] = 1;
}

template <class T, int V> DEVICE void forward(const ForwardArgs& args) {
    const int lanes = args.lanes, channels = args.channels;
    for_rows_of_lanes<V>(args.rows, lanes, [&](i64 row, int first, int step, bool present) {
        auto x = static_cast<const T*>(args.x) + row * channels;
        auto y = static_cast<T*>(args.y) + row * channels;
        float sum = 0;
#pragma unroll 1
        for (int c = first; c < channels; c += step) {
            float v[V];
            load(v, x + c);
#pragma unroll
            for (int i = 0; i < V; i++) sum += v[i];
        }
        // The sums of the second pass repair the rounding of the first one's mean.
        const float near = lanes_sum(sum, lanes) / channels;
        float off = 0, squares = 0;
#pragma unroll 1
        for (int c = first; c < channels; c += step) {
            float v[V];
            load(v, x + c);
#pragma unroll
            for (int i = 0; i < V; i++) {
                off += v[i] - near;
                squares += (v[i] - near) * (v[i] - near);
            }
        }
        off = lanes_sum(off, lanes), squares = lanes_sum(squares, lanes);
        const float mean = near + off / channels, variance = (squares - off * off / channels) / channels;
        // No fmaxf, which would make 0 of the NaN that squares beyond f32 leave.
        const float rstd = 1.0f / sqrtf((variance < 0 ? 0 : variance) + args.eps);
        if (!present) return;
#pragma unroll 1
        for (int c = first; c < channels; c += step) {
            float v[V], w[V], b[V] = {};
            load(v, x + c);
            load_weight(w, args.weight, c);
            if (args.weight) load(b, args.bias + c);
#pragma unroll
            for (int i = 0; i < V; i++) v[i] = (v[i] - mean) * rstd * w[i] + b[i];
            store(y + c, v);
        }
        if (first == 0) args.mean[row] = mean, args.rstd[row] = rstd;
    });
}

template <class T, int V> DEVICE void backward(const BackwardArgs& args) {
    const int lanes = args.lanes, channels = args.channels;
    for_rows_of_lanes<V>(args.rows, lanes, [&](i64 row, int first, int step, bool present) {
        auto dy = static_cast<const T*>(args.dy) + row * channels;
        auto x = static_cast<const T*>(args.x) + row * channels;
        auto dx = static_cast<T*>(args.dx) + row * channels;
        const float mean = args.mean[row], rstd = args.rstd[row];
        // g and x̂ of a chunk
        auto load_both = [&](float (&g)[V], float (&xhat)[V], int c) {
            float w[V];
            load(g, dy + c);
            load(xhat, x + c);
            load_weight(w, args.weight, c);
#pragma unroll
            for (int i = 0; i < V; i++) g[i] *= w[i], xhat[i] = (xhat[i] - mean) * rstd;
        };
        float sum = 0, product = 0;
#pragma unroll 1
        for (int c = first; c < channels; c += step) {
            float g[V], xhat[V];
            load_both(g, xhat, c);
#pragma unroll
            for (int i = 0; i < V; i++) sum += g[i], product += g[i] * xhat[i];
        }
        sum = lanes_sum(sum, lanes) / channels, product = lanes_sum(product, lanes) / channels;
        if (!present) return;
#pragma unroll 1
        for (int c = first; c < channels; c += step) {
            float g[V], xhat[V];
            load_both(g, xhat, c);
#pragma unroll
            for (int i = 0; i < V; i++) g[i] = rstd * (g[i] - sum - xhat[i] * product);
            store(dx + c, g);
        }
    });
}

template <class T, int V> DEVICE void shares(const SharesArgs& args) {
    auto dy = static_cast<const T*>(args.dy);
    auto x = static_cast<const T*>(args.x);
    column_sums<V, 2>(args.matrix, args.partial, [&](const Walk&, i64 at, float (&sum)[2][V]) {
        const i64 row = at / args.matrix.channels;
        const float mean = args.mean[row], rstd = args.rstd[row];
        load(sum[0], x + at);
        load(sum[1], dy + at);
#pragma unroll
        for (int i = 0; i < V; i++) sum[0][i] = (sum[0][i] - mean) * rstd * sum[1][i];
    });
}

extern "C" __global__ void __launch_bounds__(THREADS) layer_norm_total(const TotalArgs args) {
    for_columns(args.matrix, [&](i64 group, int channel) {
        const double weight = column_total(args.matrix, args.partial, group, channel, 0, 2);
        const double bias = column_total(args.matrix, args.partial, group, channel, 1, 2);
        if (lane_index() == 0) args.dweight[channel] = (float)weight, args.dbias[channel] = (float)bias;
    });
}

extern "C" __global__ void __launch_bounds__(THREADS) layer_norm_forward_f32(const ForwardArgs args) {
    forward<float, WIDE<float>>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) layer_norm_forward_any_f32(const ForwardArgs args) {
    forward<float, 1>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) layer_norm_forward_bf16(const ForwardArgs args) {
    forward<bf16, WIDE<bf16>>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) layer_norm_forward_f16(const ForwardArgs args) {
    forward<f16, WIDE<f16>>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) layer_norm_forward_any_bf16(const ForwardArgs args) {
    forward<bf16, 1>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) layer_norm_forward_any_f16(const ForwardArgs args) {
    forward<f16, 1>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) layer_norm_backward_f32(const BackwardArgs args) {
    backward<float, WIDE<float>>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) layer_norm_backward_any_f32(const BackwardArgs args) {
    backward<float, 1>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) layer_norm_backward_bf16(const BackwardArgs args) {
    backward<bf16, WIDE<bf16>>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) layer_norm_backward_f16(const BackwardArgs args) {
    backward<f16, WIDE<f16>>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) layer_norm_backward_any_bf16(const BackwardArgs args) {
    backward<bf16, 1>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) layer_norm_backward_any_f16(const BackwardArgs args) {
    backward<f16, 1>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) layer_norm_shares_f32(const SharesArgs args) {
    shares<float, WIDE<float>>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) layer_norm_shares_any_f32(const SharesArgs args) {
    shares<float, 1>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) layer_norm_shares_bf16(const SharesArgs args) {
    shares<bf16, WIDE<bf16>>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) layer_norm_shares_f16(const SharesArgs args) {
    shares<f16, WIDE<f16>>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) layer_norm_shares_any_bf16(const SharesArgs args) {
    shares<bf16, 1>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) layer_norm_shares_any_f16(const SharesArgs args) {
    shares<f16, 1>(args);
}
