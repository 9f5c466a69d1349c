// Work by channel on matrices [groups, rows, channels], such as the voxels of samples: sums, moments and maps whose factors
// belong to a channel.
//
// Each group's rows are cut into pieces of equal length (the last may be shorter), whose number depends on the shape alone. A
// block of 256 threads has one piece (blockIdx.x: group · pieces + piece) and up to 256 chunks of V neighbouring channels
// (blockIdx.y). Thread t has chunk t % chunks for good, and of the rows every lines-th from t / chunks on, lines = 256 / chunks
// of them at a time: neighbouring threads have neighbouring addresses, and what belongs to a channel stays in registers.
// A reduction gives a block's result for each of its channels, `partial` [groups, pieces, 2 or 1 values, channels] in f32, from
// which a warp for each channel makes the total in f64. The order of all additions depends on the shape alone.
#pragma once
#include "elements.cuh"

constexpr int COLUMN_THREADS = 256;

struct Columns {
    i64 groups, rows, piece;  // piece: rows of a piece
    int channels, pieces;     // pieces: of a group
};

// A thread's part.
struct Walk {
    i64 group, first, start, end;  // rows first .. end of the group are the block's; the thread's begin with `start`
    int lines, width;              // width: channels of the block
    int base, channel;             // the first of the block's channels, and of the thread's
    bool idle;
};

template <int V> DEVICE Walk walk(const Columns& m) {
    Walk w;
    w.group = blockIdx.x / m.pieces;
    w.first = (blockIdx.x % m.pieces) * m.piece;
    w.end = min(w.first + m.piece, m.rows);
    w.base = blockIdx.y * COLUMN_THREADS * V;
    const int chunks = min((m.channels - w.base) / V, COLUMN_THREADS);
    w.width = chunks * V;
    w.lines = COLUMN_THREADS / chunks;
    const int line = threadIdx.x / chunks;
    w.channel = w.base + (int)threadIdx.x % chunks * V;
    w.idle = line >= w.lines;
    w.start = w.idle ? w.end : w.first + line;
    return w;
}

// Of the first of a thread's elements in a row, or with no row, in [groups, channels].
DEVICE i64 element(const Columns& m, const Walk& w, i64 row) { return (w.group * m.rows + row) * m.channels + w.channel; }
DEVICE i64 vector(const Columns& m, const Walk& w) { return w.group * m.channels + w.channel; }

// Calls f(offset of the thread's V elements) for each of its rows. Two at a time keep memory busy where 16 bytes are moved.
template <int V, class F> DEVICE void for_rows(const Columns& m, const Walk& w, F f) {
    constexpr int AT_ONCE = V == 1 ? 1 : 2;
#pragma unroll AT_ONCE
    for (i64 row = w.start; row < w.end; row += w.lines) f(element(m, w, row));
}

// Where the block's results for its channels are to be written.
DEVICE float* results(const Columns& m, const Walk& w, float* partial, int values) {
    return partial + (i64)blockIdx.x * values * m.channels + w.base;
}

// Sums over the block's rows of the VALUES × V numbers that f(offset, numbers) gives, in the order of the thread's rows and then
// of the lines.
template <int V, int VALUES, class F> DEVICE void column_sums(const Columns& m, float* partial, F f) {
    SHARED(float, sums, [VALUES][COLUMN_THREADS * V]);
    const Walk w = walk<V>(m);
    float sum[VALUES][V] = {};
    for_rows<V>(m, w, [&](i64 at) {
        float v[VALUES][V];
        f(w, at, v);
#pragma unroll
        for (int k = 0; k < VALUES; k++)
#pragma unroll
            for (int i = 0; i < V; i++) sum[k][i] += v[k][i];
    });
#pragma unroll
    for (int k = 0; k < VALUES; k++)
#pragma unroll
        for (int i = 0; i < V; i++) sums[k][threadIdx.x * V + i] = sum[k][i];
    __syncthreads();
    float* out = results(m, w, partial, VALUES);
#pragma unroll 1
    for (int c = threadIdx.x; c < w.width; c += COLUMN_THREADS) {
#pragma unroll
        for (int k = 0; k < VALUES; k++) {
            float total = 0;
#pragma unroll 1
            for (int line = 0; line < w.lines; line++) total += sums[k][line * w.width + c];
            out[k * m.channels + c] = total;
        }
    }
}

// What is known of some values: how many, their mean, and Σ (value − mean)².
template <int V> struct Moments {
    float count, mean[V], squares[V];
};

// Adds N rows: their own moments first, so that nothing cancels, then both together (Chan, Golub and LeVeque 1979).
template <int N, int V> DEVICE void absorb(Moments<V>& all, const float (&rows)[N][V]) {
    const float total = all.count + N, share = N / total, weight = all.count * share;
#pragma unroll
    for (int i = 0; i < V; i++) {
        float mean = 0, squares = 0;
#pragma unroll
        for (int n = 0; n < N; n++) mean += rows[n][i];
        mean /= N;
#pragma unroll
        for (int n = 0; n < N; n++) squares += (rows[n][i] - mean) * (rows[n][i] - mean);
        const float apart = mean - all.mean[i];
        all.mean[i] += apart * share;
        all.squares[i] += squares + apart * apart * weight;
    }
    all.count = total;
}

// N rows from `row` on, `lines` apart, less the shift.
template <int N, class T, int V>
DEVICE void shifted_rows(float (&rows)[N][V], const Columns& m, const Walk& w, const T* x, i64 row, const float (&shift)[V]) {
#pragma unroll
    for (int n = 0; n < N; n++) {
        load(rows[n], x + element(m, w, row + n * w.lines));
#pragma unroll
        for (int i = 0; i < V; i++) rows[n][i] -= shift[i];
    }
}

// Mean and Σ (value − mean)² of the block's rows. All values are taken less the first row's, so that a mean far from zero costs
// one rounding of the mean.
template <class T, int V> DEVICE void column_moments(const Columns& m, const T* x, float* partial) {
    constexpr int BATCH = V == 8 ? 2 : 4;  // as registers allow
    SHARED(float, means, [COLUMN_THREADS * V]);
    SHARED(float, squares, [COLUMN_THREADS * V]);
    const Walk w = walk<V>(m);
    float shift[V];
    load(shift, x + element(m, w, w.first));
    Moments<V> own = {};
    i64 row = w.start;
#pragma unroll 1
    for (; row + (BATCH - 1) * w.lines < w.end; row += BATCH * w.lines) {
        float rows[BATCH][V];
        shifted_rows(rows, m, w, x, row, shift);
        absorb(own, rows);
    }
#pragma unroll 1
    for (; row < w.end; row += w.lines) {
        float rows[1][V];
        shifted_rows(rows, m, w, x, row, shift);
        absorb(own, rows);
    }
#pragma unroll
    for (int i = 0; i < V; i++) {
        means[threadIdx.x * V + i] = own.mean[i];
        squares[threadIdx.x * V + i] = own.squares[i];
    }
    __syncthreads();
    const float count = w.end - w.first;
    auto rows_of = [&](int line) { return (float)max((w.end - w.first - line + w.lines - 1) / w.lines, 0ll); };
    float* out = results(m, w, partial, 2);
#pragma unroll 1
    for (int c = threadIdx.x; c < w.width; c += COLUMN_THREADS) {
        float mean = 0, total = 0;
#pragma unroll 1
        for (int line = 0; line < w.lines; line++) mean += rows_of(line) * means[line * w.width + c];
        mean /= count;
#pragma unroll 1
        for (int line = 0; line < w.lines; line++) {
            const float apart = means[line * w.width + c] - mean;
            total += squares[line * w.width + c] + rows_of(line) * apart * apart;
        }
        out[c] = to_f32(x[(w.group * m.rows + w.first) * m.channels + w.base + c]) + mean;
        out[m.channels + c] = total;
    }
}

// ---- totals: each warp of a one-dimensional grid has a group and a channel at a time, and every lane gets the total

// Calls f(group, channel).
template <class F> DEVICE void for_columns(const Columns& m, F f) {
    for (i64 i = grid_thread() / 32; i < m.groups * m.channels; i += grid_threads() / 32)
        f(i / m.channels, (int)(i % m.channels));
}

DEVICE float partial_at(const Columns& m, const float* partial, i64 group, int piece, int value, int values, int channel) {
    return partial[((group * m.pieces + piece) * values + value) * m.channels + channel];
}

// The sum over the pieces of a value.
DEVICE double column_total(const Columns& m, const float* partial, i64 group, int channel, int value, int values) {
    double sum = 0;
    for (int piece = lane_index(); piece < m.pieces; piece += 32)
        sum += partial_at(m, partial, group, piece, value, values, channel);
    return warp_sum(sum);
}

// Mean and Σ (value − mean)² of all of a group's rows.
DEVICE void column_statistics(const Columns& m, const float* partial, i64 group, int channel, double& mean, double& squares) {
    auto rows_of = [&](int piece) { return (double)min(m.piece, m.rows - piece * m.piece); };
    double sum = 0;
    for (int piece = lane_index(); piece < m.pieces; piece += 32)
        sum += rows_of(piece) * partial_at(m, partial, group, piece, 0, 2, channel);
    mean = warp_sum(sum) / m.rows;
    sum = 0;
    for (int piece = lane_index(); piece < m.pieces; piece += 32) {
        const double apart = partial_at(m, partial, group, piece, 0, 2, channel) - mean;
        sum += partial_at(m, partial, group, piece, 1, 2, channel) + rows_of(piece) * apart * apart;
    }
    squares = warp_sum(sum);
}
