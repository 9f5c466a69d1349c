// Soft Dice without the background plus cross-entropy, and the gradient of the logits, as mod.rs beside this file writes it down.
//
// logits and dlogits [N, voxels, C], labels i32 [N, voxels], sums [N, C, 3] (intersection, truth, prediction), loss and dloss
// []; f32. Probabilities are in f32, sums over a block's voxels and all beyond in f64. In three kernels:
//   dice_ce_sums      grid (parts of a sample, slabs of THREADS classes, N); a block walks over tiles of its part and of every
//                     part-count-th after; partials [N, parts, C, 3], entropies and bad labels [N, parts]
//   dice_ce_loss      one block; sums, loss, and in `bad` the place of the first label that is no class, or infinity
//   dice_ce_backward  blocks walk over tiles of all samples
// A tile is as many voxels as fit into TILE probabilities of shared memory, at most THREADS. Each pass reads the logits once;
// backward writes as much. Every output is overwritten.
#include "../../cuda/device.cuh"

constexpr int THREADS = 256;
constexpr double SMOOTH = 1e-5;

DEVICE float infinity() { return __uint_as_float(0x7f800000u); }

struct DiceCeArgs {
    const float* logits;
    const int* labels;
    const float* dloss;  // backward only
    float* sums;
    float* loss;
    float* dlogits;
    double* partials;
    double* entropies;
    double* bad_labels;
    double* bad;
    i64 samples;
    i64 voxels;  // of a sample
    i64 parts;   // of a sample
    int classes;
    int tile;  // voxels
};

// Probabilities of a tile in shared memory: `pitch` floats a voxel, an odd number, so that voxels lie in different banks.
struct Tile {
    float* p;
    const int* labels;
    int count, classes, pitch;
};

DEVICE Tile tile(const DiceCeArgs& args, unsigned char* shared, i64 sample, i64 first) {
    const int count = (int)min((i64)args.tile, args.voxels - first);
    return {reinterpret_cast<float*>(shared), args.labels + sample * args.voxels + first, count, args.classes,
            args.classes | 1};
}

DEVICE void load(const Tile& t, const float* logits) {
    for (int i = threadIdx.x; i < t.count * t.classes; i += THREADS) t.p[i / t.classes * t.pitch + i % t.classes] = logits[i];
    __syncthreads();
}

// The largest value, or NaN where there is one.
DEVICE float largest(const float* x, int n) {
    float top = x[0];
    for (int c = 1; c < n; c++) top = top >= x[c] || top != top ? top : x[c];
    return top;
}

// Logits of one voxel into probabilities; returns the log-sum-exp.
DEVICE double softmax(float* x, int classes) {
    const float top = largest(x, classes);
    float sum = 0;
    for (int c = 0; c < classes; c++) sum += x[c] = expf(x[c] - top);
    for (int c = 0; c < classes; c++) x[c] /= sum;
    return top + log((double)sum);
}

// (2 I + s) / (G + P + s)
DEVICE double overlap(double intersection, double truth, double predicted) {
    return (2 * intersection + SMOOTH) / (truth + predicted + SMOOTH);
}

// The sums of the classes of one slab: thread c + j · width adds up class c over every width-th voxel.
struct Sums {
    double intersection, truth, predicted;
};

DEVICE void add(Sums& sums, const Tile& t, int c, int first, int step) {
    for (int v = first; v < t.count; v += step) {
        const float p = t.p[v * t.pitch + c];
        sums.predicted += p;
        if (t.labels[v] == c) {
            sums.intersection += p;
            sums.truth += 1;
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) dice_ce_sums_f32(const DiceCeArgs args) {
    DYNAMIC_SHARED(shared);
    SHARED(Sums, gathered, [THREADS]);
    SHARED(double, bad_of, [THREADS]);
    const i64 sample = blockIdx.z, part = blockIdx.x, at = sample * args.parts + part;
    const int slab = blockIdx.y * THREADS, width = min(THREADS, args.classes - slab), step = THREADS / width;
    const int c = slab + threadIdx.x % width, own = threadIdx.x / width;
    Sums sums = {};
    double entropy = 0;
    double bad = infinity();
    for (i64 first = part * args.tile; first < args.voxels; first += args.parts * args.tile) {
        const Tile t = tile(args, shared, sample, first);
        load(t, args.logits + (sample * args.voxels + first) * args.classes);
        if (threadIdx.x < t.count) {
            float* x = t.p + threadIdx.x * t.pitch;
            const int label = t.labels[threadIdx.x];
            const bool known = label >= 0 && label < args.classes;
            if (!known) bad = fmin(bad, (double)(sample * args.voxels + first + threadIdx.x));
            const double wanted = known ? x[label] : 0;
            entropy += softmax(x, args.classes) - wanted;
        }
        __syncthreads();
        if (own < step) add(sums, t, c, own, step);
        __syncthreads();
    }
    gathered[threadIdx.x] = sums;
    bad_of[threadIdx.x] = bad;
    entropy = block_sum<THREADS>(entropy);
    if (threadIdx.x < width) {
        Sums total = {};
        for (int j = 0; j < step; j++) {
            const Sums& one = gathered[threadIdx.x + j * width];
            total.intersection += one.intersection;
            total.truth += one.truth;
            total.predicted += one.predicted;
        }
        double* out = args.partials + (at * args.classes + c) * 3;
        out[0] = total.intersection;
        out[1] = total.truth;
        out[2] = total.predicted;
    }
    if (threadIdx.x == 0 && slab == 0) {
        for (int j = 1; j < THREADS; j++) bad = fmin(bad, bad_of[j]);
        args.bad_labels[at] = bad;
        args.entropies[at] = entropy;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) dice_ce_loss_f32(const DiceCeArgs args) {
    const i64 pairs = args.samples * args.classes, blocks = args.samples * args.parts;
    double dice = 0, entropy = 0;
    for (i64 pair = warp_index(); pair < pairs; pair += THREADS / 32) {
        const i64 sample = pair / args.classes, c = pair % args.classes;
        double sums[3] = {};
        for (i64 part = lane_index(); part < args.parts; part += 32)
            for (int i = 0; i < 3; i++) sums[i] += args.partials[((sample * args.parts + part) * args.classes + c) * 3 + i];
        for (int i = 0; i < 3; i++) sums[i] = warp_sum(sums[i]);
        if (lane_index() != 0) continue;
        for (int i = 0; i < 3; i++) args.sums[pair * 3 + i] = (float)sums[i];
        if (c > 0) dice += 1 - overlap(sums[0], sums[1], sums[2]);
    }
    for (i64 block = threadIdx.x; block < blocks; block += THREADS) entropy += args.entropies[block];
    dice = block_sum<THREADS>(dice);
    entropy = block_sum<THREADS>(entropy);
    if (threadIdx.x != 0) return;
    const double foreground = (double)(args.samples * (args.classes - 1)), voxels = (double)(args.samples * args.voxels);
    *args.loss = (float)(dice / foreground + entropy / voxels);
    double bad = infinity();
    for (i64 block = 0; block < blocks; block++) bad = fmin(bad, args.bad_labels[block]);
    *args.bad = bad;
}

// The loss's derivative by the probability of one class: `every` for each voxel, less `own` where the class is the label.
struct Slope {
    float every, own;
};

DEVICE Slope slope(const DiceCeArgs& args, i64 sample, int c) {
    if (c == 0) return {0, 0};
    const float* sums = args.sums + (sample * args.classes + c) * 3;
    const double weight = *args.dloss / (double)(args.samples * (args.classes - 1));
    const double scale = weight / (sums[1] + (double)sums[2] + SMOOTH);
    return {(float)(scale * overlap(sums[0], sums[1], sums[2])), (float)(2 * scale)};
}

// Probabilities of one voxel into its gradient.
DEVICE void differentiate(float* p, const Slope* slopes, int classes, int label, float entropy) {
    const bool known = label >= 0 && label < classes;
    const float own = known ? p[label] * slopes[label].own : 0;
    float mean = -own;
    for (int c = 0; c < classes; c++) mean += p[c] * slopes[c].every;
    for (int c = 0; c < classes; c++) p[c] *= slopes[c].every - mean + entropy;
    if (known) p[label] -= own + entropy;
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) dice_ce_backward_f32(const DiceCeArgs args) {
    DYNAMIC_SHARED(shared);
    Slope* slopes = reinterpret_cast<Slope*>(shared);
    const float entropy = (float)(*args.dloss / (double)(args.samples * args.voxels));
    const i64 sample = blockIdx.z;
    for (int c = threadIdx.x; c < args.classes; c += THREADS) slopes[c] = slope(args, sample, c);
    for (i64 first = blockIdx.x * (i64)args.tile; first < args.voxels; first += gridDim.x * (i64)args.tile) {
        const Tile t = tile(args, shared + args.classes * sizeof(Slope), sample, first);
        const i64 start = (sample * args.voxels + first) * args.classes;
        load(t, args.logits + start);
        if (threadIdx.x < t.count) {
            float* x = t.p + threadIdx.x * t.pitch;
            softmax(x, args.classes);
            differentiate(x, slopes, args.classes, t.labels[threadIdx.x], entropy);
        }
        __syncthreads();
        for (int i = threadIdx.x; i < t.count * t.classes; i += THREADS)
            args.dlogits[start + i] = t.p[i / t.classes * t.pitch + i % t.classes];
        __syncthreads();
    }
}
