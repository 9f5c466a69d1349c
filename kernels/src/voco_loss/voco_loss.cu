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

// The sums of the labels and of the absent ones, with EPS, for the two position losses, and the three losses of a volume.
struct Volume {
    double intra_weight, intra_absent, inter_weight, inter_absent, intra, inter, reg;
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

// What `intra` predicts for a pair, of which `near` is the cosine of the student's crop with the teacher's base.
DEVICE double logit(const VocoLossArgs& args, double near, double far) {
    return args.form == CVPR3 ? 0.5 * (relu(near) + relu(far)) : relu(near);
}
DEVICE double near(const VocoLossArgs& args, i64 volume, i64 s, i64 k) {
    return meet(crop(args, args.student, volume, s), base(args, args.teacher, volume, k), args.dim).cosine;
}
DEVICE double far(const VocoLossArgs& args, i64 volume, i64 s, i64 k) {
    return meet(crop(args, args.teacher, volume, s), base(args, args.student, volume, k), args.dim).cosine;
}
// What `inter` compares with: the teacher's view of a crop and a base of the partner.
DEVICE double target(const VocoLossArgs& args, i64 volume, i64 s, i64 k) {
    const float* across = base(args, args.teacher, partner(args, volume), k);
    return relu(meet(crop(args, args.teacher, volume, s), across, args.dim).cosine);
}

// One copy per warp, summed over the block.
DEVICE double over_warps(double value) { return block_sum<THREADS>(lane_index() == 0 ? value : 0.0); }
DEVICE Position over_warps(const Position& sum) {
    return {over_warps(sum.weight) + EPS, over_warps(sum.absent) + EPS, over_warps(sum.positive), over_warps(sum.negative)};
}
DEVICE double loss_of(const Position& sum) { return sum.positive / sum.weight + sum.negative / sum.absent; }

DEVICE Position intra(const VocoLossArgs& args, i64 volume) {
    Position sum = {};
    for (i64 p = warp_index(); p < args.crops * args.bases; p += WARPS) {
        const i64 s = p / args.bases, k = p % args.bases, at = volume * args.crops * args.bases + p;
        const double l = logit(args, near(args, volume, s, k), args.form == CVPR3 ? far(args, volume, s, k) : 0);
        if (args.logits && lane_index() == 0) args.logits[at] = (float)l;
        add(sum, args.form, args.labels[at], l);
    }
    return over_warps(sum);
}

DEVICE Position inter(const VocoLossArgs& args, i64 volume) {
    Position sum = {};
    for (i64 p = warp_index(); p < args.crops * args.bases; p += WARPS) {
        const i64 s = p / args.bases, k = p % args.bases;
        const float* across = base(args, args.student, partner(args, volume), k);
        const double l = relu(meet(crop(args, args.student, volume, s), across, args.dim).cosine);
        add(sum, VOCO, target(args, volume, s, k), l);
    }
    return over_warps(sum);
}

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
        const Position within = intra(args, volume);
        const Position across = args.form == VOCO ? inter(args, volume) : Position{1, 1, 0, 0};
        const double reg = regularise(args, volume);
        if (threadIdx.x == 0)
            args.volumes[volume] = {within.weight, within.absent, across.weight, across.absent, loss_of(within), loss_of(across), reg};
    }
}

extern "C" __global__ void __launch_bounds__(32) voco_loss_terms_f32(const VocoLossArgs args) {
    double intra = 0, inter = 0, reg = 0;
    for (i64 volume = threadIdx.x; volume < args.volumes_count; volume += 32) {
        intra += args.volumes[volume].intra;
        inter += args.volumes[volume].inter;
        reg += args.volumes[volume].reg;
    }
    const double count = (double)args.volumes_count;
    const double means[3] = {warp_sum(intra) / count, warp_sum(inter) / count, warp_sum(reg) / count};
    if (threadIdx.x == 0)
        for (int term = 0; term < 3; term++) args.terms[term] = (float)means[term];
}

// A term's derivative by a cosine, given that by the logit of which the cosine, where it is above 0, is a share.
DEVICE double through_relu(double cosine, double by_logit) { return cosine <= 0 ? 0 : by_logit; }

DEVICE double scale(const VocoLossArgs& args, int term) { return args.dterms[term] / (double)args.volumes_count; }

// Of intra, by one of the two cosines of crop s and base k.
DEVICE double intra_weight(const VocoLossArgs& args, i64 volume, i64 s, i64 k, double cosine, double other) {
    const Volume& sums = args.volumes[volume];
    const double y = args.labels[(volume * args.crops + s) * args.bases + k];
    const double by_logit = slope(args.form, y, logit(args, cosine, other), sums.intra_weight, sums.intra_absent);
    return scale(args, 0) * through_relu(cosine, (args.form == CVPR3 ? 0.5 : 1) * by_logit);
}

// Of inter, by the student's cosine of crop s of the volume and base k of its partner.
DEVICE double inter_weight(const VocoLossArgs& args, i64 volume, i64 s, i64 k, double cosine) {
    const Volume& sums = args.volumes[volume];
    const double y = target(args, volume, s, k);
    return scale(args, 1) * through_relu(cosine, slope(VOCO, y, relu(cosine), sums.inter_weight, sums.inter_absent));
}

// Crop s meets the teacher's bases of its volume, and the student's of the partner.
DEVICE void crop_gradient(const VocoLossArgs& args, i64 volume, i64 s, i64 slab, float* dx) {
    const float* x = crop(args, args.student, volume, s);
    const i64 count = args.form == VOCO ? 2 * args.bases : args.bases;
    gradient<THREADS>(x, dx, args.dim, slab, count, [&](i64 p) {
        const bool across = p >= args.bases;
        const i64 k = across ? p - args.bases : p;
        const float* other = across ? base(args, args.student, partner(args, volume), k) : base(args, args.teacher, volume, k);
        const Meeting met = meet(x, other, args.dim);
        if (across) return Pull{other, met, inter_weight(args, volume, s, k, met.cosine)};
        const double mirror = args.form == CVPR3 ? far(args, volume, s, k) : 0;
        return Pull{other, met, intra_weight(args, volume, s, k, met.cosine, mirror)};
    });
}

// Base k meets the teacher's crops of its volume where the prediction is symmetric, the student's of the volume before where
// there is inter, and the later bases of its own.
DEVICE void base_gradient(const VocoLossArgs& args, i64 volume, i64 k, i64 slab, float* dx) {
    const float* x = base(args, args.student, volume, k);
    const i64 before = (volume + args.volumes_count - 1) % args.volumes_count;
    const i64 crops = args.form == CVPR1 ? 0 : args.crops;
    gradient<THREADS>(x, dx, args.dim, slab, crops + args.bases - 1 - k, [&](i64 p) {
        const float* other = p >= crops              ? base(args, args.student, volume, k + 1 + p - crops)
                             : args.form == CVPR3 ? crop(args, args.teacher, volume, p)
                                                  : crop(args, args.student, before, p);
        const Meeting met = meet(x, other, args.dim);
        if (p >= crops) return Pull{other, met, scale(args, 2) * 2 * relu(met.cosine) / base_pairs(args)};
        if (args.form == VOCO) return Pull{other, met, inter_weight(args, before, p, k, met.cosine)};
        return Pull{other, met, intra_weight(args, volume, p, k, met.cosine, near(args, volume, p, k))};
    });
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) voco_loss_backward_f32(const VocoLossArgs args) {
    const i64 all_crops = args.volumes_count * args.crops, rows = all_crops + args.volumes_count * args.bases;
    const i64 slabs_each = slabs<THREADS>(args.dim);
    for (i64 block = blockIdx.x; block < rows * slabs_each; block += gridDim.x) {
        const i64 row = block / slabs_each, slab = block % slabs_each;
        float* dx = args.dstudent + row * args.dim;
        if (row < all_crops)
            crop_gradient(args, row / args.crops, row % args.crops, slab, dx);
        else
            base_gradient(args, (row - all_crops) / args.bases, (row - all_crops) % args.bases, slab, dx);
    }
}
