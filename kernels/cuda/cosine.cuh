// Rows against rows: cosines and the gradient of a row that takes part in several, in f64. Projections are small matrices and
// the losses on them differences of nearly equal cosines, so exact sums cost little and are worth it.
#pragma once
#include "device.cuh"

// The smallest norm that is divided by.
constexpr double LEAST_NORM = 1e-8;
// NaN stays NaN.
DEVICE double clamped(double norm) { return norm < LEAST_NORM ? LEAST_NORM : norm; }

// Two rows: their cosine and the second one's clamped norm.
struct Meeting {
    double cosine, other_norm;
};

// By a whole warp, of which every thread gets the answer.
DEVICE Meeting meet(const float* x, const float* other, i64 dim) {
    double product = 0, own = 0, others = 0;
    for (i64 d = lane_index(); d < dim; d += 32) {
        double a = x[d], b = other[d];
        product += a * b;
        own += a * a;
        others += b * b;
    }
    double other_norm = clamped(sqrt(warp_sum(others)));
    return {warp_sum(product) / (clamped(sqrt(warp_sum(own))) * other_norm), other_norm};
}

// What one cosine contributes to the gradient of a row: `weight` is the loss's derivative by it.
struct Pull {
    const float* other;
    Meeting met;
    double weight;
};

// Pulls whose weights are held at a time.
constexpr int PULLS = 64;
// Columns that a thread sums up.
constexpr int COLUMNS = 8;

// How many blocks of THREADS the gradient of one row takes.
template <int THREADS> DEVICE i64 slabs(i64 dim) { return ceil_div(dim, THREADS * COLUMNS); }

// Columns of one slab of dx for a row x of length `dim`, by a block:
//   dx = Σ weight other / (n'_x n'_other) - (Σ weight cosine) x / (n'_x n_x), n' the clamped norm, the last part 0 where n_x is.
// A whole warp computes pull(p), p < count; pulls are summed in their order. Overwrites.
template <int THREADS, class Pulls>
DEVICE void gradient(const float* x, float* dx, i64 dim, i64 slab, i64 count, Pulls pull) {
    SHARED(const float*, others, [PULLS]);
    SHARED(double, scales, [PULLS]);
    SHARED(double, owns, [PULLS]);
    double square = 0;
    for (i64 d = threadIdx.x; d < dim; d += THREADS) square += (double)x[d] * x[d];
    const double norm = sqrt(block_sum<THREADS>(square));
    const i64 first = slab * THREADS * COLUMNS + threadIdx.x;
    double sums[COLUMNS] = {}, own = 0;
    for (i64 start = 0; start < count; start += PULLS) {
        const int some = (int)min((i64)PULLS, count - start);
        for (int p = warp_index(); p < some; p += THREADS / 32) {
            Pull one = pull(start + p);
            if (lane_index() == 0) {
                others[p] = one.other;
                scales[p] = one.weight / (clamped(norm) * one.met.other_norm);
                owns[p] = one.weight * one.met.cosine;
            }
        }
        __syncthreads();
        for (int p = 0; p < some; p++) {
            own -= owns[p];
#pragma unroll
            for (int c = 0; c < COLUMNS; c++) {
                const i64 d = first + c * THREADS;
                if (d < dim) sums[c] += scales[p] * others[p][d];
            }
        }
        __syncthreads();
    }
    const double along = norm == 0 ? 0 : own / (clamped(norm) * norm);
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) {
        const i64 d = first + c * THREADS;
        if (d < dim) dx[d] = (float)(sums[c] + along * x[d]);
    }
}
