// The VoCo losses and the student's gradient, in f64, as mod.rs beside this file writes them down.
//
// student, teacher and dstudent [V S + V K, dim], all crops, then all bases, volume-major; labels and logits [V, S, K]; terms
// and dterms [3]; f32. Cosines are never kept: forward adds each to its volume's sums, backward computes them anew, each for
// both of its rows. In three kernels:
//   voco_loss_volumes   a block per volume, a warp per pair; reads 2 rows per cosine; overwrites volumes [V], logits if wanted
//   voco_loss_terms     one warp; overwrites terms
//   voco_loss_backward  a block per row of the student and slab of THREADS · COLUMNS columns; needs volumes; reads the rows
//                       that meet its own twice; overwrites dstudent
// Blocks walk in strides of the grid, and sums run in an order that it does not change.
#include "../../cuda/cosine.cuh"

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / 32;
constexpr double EPS = 1e-6;

// `Form` of mod.rs.
constexpr i64 VOCO = 0, CVPR1 = 1, CVPR3 = 2;

// Of a volume: the weights of intra and inter and their absent pairs, with EPS, and the losses intra, inter, reg.
struct Volume {
    double weight[2], absent[2], loss[3];
};

struct VocoLossArgs {
    const float* student;
    const float* teacher;
    const float* labels;
    const float* dterms;  // backward only
    Volume* volumes;
    float* logits;  // null where not wanted
    float* terms;
    float* dstudent;
    i64 volumes_count;
    i64 crops;
    i64 bases;
    i64 dim;
    i64 form;
};

// NaN stays NaN.
DEVICE double relu(double v) { return v <= 0 ? 0 : v; }
DEVICE double weight_of(i64 form, double y) { return form == CVPR1 && y != 0 ? 1 : y; }

// The sums of one position loss.
struct Position {
    double weight, absent, positive, negative;
};

DEVICE void add(Position& sum, i64 form, double y, double l) {
    sum.weight += weight_of(form, y);
    if (y != 0) {
        sum.positive -= weight_of(form, y) * log(1 - fabs(y - l) + EPS);
    } else {
        sum.absent += 1;
        sum.negative += form == VOCO ? -log(1 - l + EPS) : l * l;
    }
}

// The derivative by the logit l.
DEVICE double slope(i64 form, double y, double l, double weight, double absent) {
    if (y != 0) {
        const double sign = l > y ? 1 : l < y ? -1 : l - y;  // 0, or NaN
        return weight_of(form, y) * sign / ((1 - fabs(y - l) + EPS) * weight);
    }
    return form == VOCO ? 1 / ((1 - l + EPS) * absent) : 2 * l / absent;
}

DEVICE const float* crop(const VocoLossArgs& args, const float* rows, i64 volume, i64 s) {
    return rows + (volume * args.crops + s) * args.dim;
}
DEVICE const float* base(const VocoLossArgs& args, const float* rows, i64 volume, i64 k) {
    return rows + (args.volumes_count * args.crops + volume * args.bases + k) * args.dim;
}
DEVICE i64 partner(const VocoLossArgs& args, i64 volume) { return (volume + 1) % args.volumes_count; }

// A pair that a term scores by its cosine, and the pair whose cosine the term takes beside it, or null: what INTER compares
// with, or the other half of a symmetric INTRA.
constexpr int INTRA = 0, INTER = 1, REG = 2;
struct Pair {
    int term;
    i64 volume;
    i64 label;  // of INTRA: which one
    const float* x;
    const float* other;
    const float* left;
    const float* right;
};

// The student's crop s with base k.
DEVICE Pair pair_of(const VocoLossArgs& args, int term, i64 volume, i64 s, i64 k) {
    const i64 label = (volume * args.crops + s) * args.bases + k, there = partner(args, volume);
    const float *own = crop(args, args.student, volume, s), *taught = crop(args, args.teacher, volume, s);
    if (term == INTER)
        return {term, volume, label, own, base(args, args.student, there, k), taught, base(args, args.teacher, there, k)};
    const bool symmetric = args.form == CVPR3;
    return {term, volume, label, own, base(args, args.teacher, volume, k), symmetric ? taught : nullptr,
            symmetric ? base(args, args.student, volume, k) : nullptr};
}

DEVICE double beside(const VocoLossArgs& args, const Pair& pair) {
    return pair.left ? meet(pair.left, pair.right, args.dim).cosine : 0;
}

// What a term other than REG predicts, and compares it with.
struct Scored {
    i64 form;
    double y, l;
};

DEVICE Scored score(const VocoLossArgs& args, const Pair& pair, double cosine, double beside) {
    if (pair.term == INTER) return {VOCO, relu(beside), relu(cosine)};
    const double l = args.form == CVPR3 ? 0.5 * (relu(cosine) + relu(beside)) : relu(cosine);
    return {args.form, args.labels[pair.label], l};
}

// One copy per warp, summed over the block.
DEVICE double over_warps(double value) { return block_sum<THREADS>(lane_index() == 0 ? value : 0.0); }

DEVICE double base_pairs(const VocoLossArgs& args) { return (double)(args.bases * (args.bases - 1) / 2); }

DEVICE double regularise(const VocoLossArgs& args, i64 volume) {
    double sum = 0;
    for (i64 p = warp_index(); p < args.bases * args.bases; p += WARPS) {
        const i64 a = p / args.bases, b = p % args.bases;
        if (a >= b) continue;
        const float* x = base(args, args.student, volume, a);
        const double l = relu(meet(x, base(args, args.student, volume, b), args.dim).cosine);
        sum += l * l / base_pairs(args);
    }
    return over_warps(sum);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) voco_loss_volumes_f32(const VocoLossArgs args) {
    for (i64 volume = blockIdx.x; volume < args.volumes_count; volume += gridDim.x) {
        Volume& out = args.volumes[volume];
#pragma unroll 1
        for (int term = INTRA; term <= INTER; term++) {
            Position sum = {};
            for (i64 p = warp_index(); p < args.crops * args.bases && (term == INTRA || args.form == VOCO); p += WARPS) {
                const Pair pair = pair_of(args, term, volume, p / args.bases, p % args.bases);
                const double cosine = meet(pair.x, pair.other, args.dim).cosine;
                const Scored scored = score(args, pair, cosine, beside(args, pair));
                if (term == INTRA && args.logits && lane_index() == 0) args.logits[pair.label] = (float)scored.l;
                add(sum, scored.form, scored.y, scored.l);
            }
            const double weight = over_warps(sum.weight) + EPS, absent = over_warps(sum.absent) + EPS;
            const double positive = over_warps(sum.positive), negative = over_warps(sum.negative);
            if (threadIdx.x == 0) {
                out.weight[term] = weight;
                out.absent[term] = absent;
                out.loss[term] = positive / weight + negative / absent;
            }
        }
        const double reg = regularise(args, volume);
        if (threadIdx.x == 0) out.loss[REG] = reg;
    }
}

extern "C" __global__ void __launch_bounds__(32) voco_loss_terms_f32(const VocoLossArgs args) {
    for (int term = INTRA; term <= REG; term++) {
        double sum = 0;
        for (i64 volume = threadIdx.x; volume < args.volumes_count; volume += 32) sum += args.volumes[volume].loss[term];
        sum = warp_sum(sum);
        if (threadIdx.x == 0) args.terms[term] = (float)(sum / (double)args.volumes_count);
    }
}

// The loss's derivative by the pair's cosine, to which the terms come through a ReLU.
DEVICE double weight(const VocoLossArgs& args, const Pair& pair, double cosine, double beside) {
    const double scale = args.dterms[pair.term] / (double)args.volumes_count;
    if (pair.term == REG) return scale * 2 * relu(cosine) / base_pairs(args);
    if (cosine <= 0) return 0;
    const Volume& sums = args.volumes[pair.volume];
    const Scored scored = score(args, pair, cosine, beside);
    const double by_logit = slope(scored.form, scored.y, scored.l, sums.weight[pair.term], sums.absent[pair.term]);
    return scale * (scored.form == CVPR3 ? 0.5 : 1) * by_logit;
}

// Pull p on crop s: from the teacher's bases of its volume, then from the student's of the partner.
DEVICE Pair on_crop(const VocoLossArgs& args, i64 volume, i64 s, i64 p) {
    return pair_of(args, p < args.bases ? INTRA : INTER, volume, s, p % args.bases);
}

// Pull p on base k: from the teacher's crops of its volume where the prediction is symmetric, or the student's of the volume
// before where there is inter; then from the later bases of its own.
DEVICE Pair on_base(const VocoLossArgs& args, i64 volume, i64 k, i64 p, i64 crops) {
    const float* x = base(args, args.student, volume, k);
    if (p >= crops) return {REG, volume, 0, x, base(args, args.student, volume, k + 1 + p - crops), nullptr, nullptr};
    const bool mirror = args.form == CVPR3;
    const i64 there = mirror ? volume : (volume + args.volumes_count - 1) % args.volumes_count;
    const Pair pair = pair_of(args, mirror ? INTRA : INTER, there, p, k);
    if (mirror) return {INTRA, volume, pair.label, x, pair.left, pair.x, pair.other};
    return {INTER, there, pair.label, x, pair.x, pair.left, pair.right};
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) voco_loss_backward_f32(const VocoLossArgs args) {
    const i64 all_crops = args.volumes_count * args.crops, rows = all_crops + args.volumes_count * args.bases;
    const i64 slabs_each = slabs<THREADS>(args.dim);
    for (i64 block = blockIdx.x; block < rows * slabs_each; block += gridDim.x) {
        const i64 row = block / slabs_each, slab = block % slabs_each;
        const bool of_crop = row < all_crops;
        const i64 among = of_crop ? row : row - all_crops, each = of_crop ? args.crops : args.bases;
        const i64 volume = among / each, index = among % each, crops = args.form == CVPR1 ? 0 : args.crops;
        const i64 count = !of_crop            ? crops + args.bases - 1 - index
                          : args.form == VOCO ? 2 * args.bases
                                              : args.bases;
        const float* x = args.student + row * args.dim;
        gradient<THREADS>(x, args.dstudent + row * args.dim, args.dim, slab, count, [&](i64 p) {
            const Pair pair = of_crop ? on_crop(args, volume, index, p) : on_base(args, volume, index, p, crops);
            const Meeting met = meet(x, pair.other, args.dim);
            return Pull{pair.other, met, weight(args, pair, met.cosine, beside(args, pair))};
        });
    }
}
