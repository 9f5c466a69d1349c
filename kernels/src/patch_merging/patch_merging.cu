// The data movement of patch merging. Slot s of eight holds the neighbour of parity (pd, ph, pw):
//   gather: y[b, d, h, w, s, c] = x[b, 2d + pd, 2h + ph, 2w + pw, c], zero past the end of an odd axis;
//   scatter, its transpose: dx[b, d, h, w, c] = Σ dy[b, d / 2, h / 2, w / 2, s, c] over the slots s of the voxel's parity, in the
//   order of the slots; zero where there is none.
//
// x, dx are [B, D, H, W, C], y, dy [B, ⌈D/2⌉, ⌈H/2⌉, ⌈W/2⌉, 8, C]. A gather copies units, of 16 bytes where C elements and the
// addresses are multiples of that, else of one element; a scatter adds up to two f32, bf16 or f16 in f32, in chunks of as many
// bytes (`any`: one element). Threads walk over the output in strides of the grid: any one-dimensional launch of up to THREADS
// threads a block will do, and none changes a bit. Writes each output once and reads as much or less; overwrites.
#include "../../cuda/elements.cuh"

constexpr int THREADS = 256;

struct PatchMergingArgs {
    const void* from;
    void* to;
    i64 n;                             // units or chunks of the output
    i64 depth, height, width, chunks;  // of x; chunks (or units) of C
    u32 parities;                      // three bits a slot, slot 0 lowest: pd, ph, pw from the highest
    int reserved;
};

DEVICE int parity_of(const PatchMergingArgs& args, int slot) { return args.parities >> (3 * slot) & 7; }

template <class Unit> DEVICE void gather(const PatchMergingArgs& args) {
    auto x = static_cast<const Unit*>(args.from);
    auto y = static_cast<Unit*>(args.to);
#pragma unroll 1
    for (i64 i = grid_thread(); i < args.n; i += grid_threads()) {
        i64 rest = i / args.chunks;
        const i64 chunk = i % args.chunks;
        const int parity = parity_of(args, rest % 8);
        rest /= 8;
        const i64 half_width = ceil_div(args.width, 2), half_height = ceil_div(args.height, 2), half_depth = ceil_div(args.depth, 2);
        const i64 w = 2 * (rest % half_width) + (parity & 1);
        rest /= half_width;
        const i64 h = 2 * (rest % half_height) + (parity >> 1 & 1);
        rest /= half_height;
        const i64 d = 2 * (rest % half_depth) + (parity >> 2);
        const i64 b = rest / half_depth;
        const bool inside = d < args.depth && h < args.height && w < args.width;
        y[i] = inside ? x[(((b * args.depth + d) * args.height + h) * args.width + w) * args.chunks + chunk] : Unit{};
    }
}

template <class T, int V> DEVICE void scatter(const PatchMergingArgs& args) {
    auto dy = static_cast<const T*>(args.from);
    auto dx = static_cast<T*>(args.to);
#pragma unroll 1
    for (i64 i = grid_thread(); i < args.n; i += grid_threads()) {
        i64 rest = i / args.chunks;
        const i64 chunk = i % args.chunks;
        const i64 w = rest % args.width;
        rest /= args.width;
        const i64 h = rest % args.height;
        rest /= args.height;
        const i64 d = rest % args.depth, b = rest / args.depth;
        const i64 half_width = ceil_div(args.width, 2), half_height = ceil_div(args.height, 2), half_depth = ceil_div(args.depth, 2);
        const i64 voxel = ((b * half_depth + d / 2) * half_height + h / 2) * half_width + w / 2;
        const int parity = (int)(d % 2 * 4 + h % 2 * 2 + w % 2);
        float sum[V] = {};
#pragma unroll
        for (int slot = 0; slot < 8; slot++) {
            if (parity_of(args, slot) != parity) continue;
            float v[V];
            load(v, dy + ((voxel * 8 + slot) * args.chunks + chunk) * V);
#pragma unroll
            for (int k = 0; k < V; k++) sum[k] += v[k];
        }
        store(dx + i * V, sum);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) patch_merging_gather_b128(const PatchMergingArgs args) {
    gather<uint4>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) patch_merging_gather_b32(const PatchMergingArgs args) { gather<u32>(args); }
extern "C" __global__ void __launch_bounds__(THREADS) patch_merging_gather_b16(const PatchMergingArgs args) { gather<u16>(args); }
extern "C" __global__ void __launch_bounds__(THREADS) patch_merging_scatter_f32(const PatchMergingArgs args) {
    scatter<float, WIDE<float>>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) patch_merging_scatter_any_f32(const PatchMergingArgs args) {
    scatter<float, 1>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) patch_merging_scatter_bf16(const PatchMergingArgs args) {
    scatter<bf16, WIDE<bf16>>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) patch_merging_scatter_f16(const PatchMergingArgs args) {
    scatter<f16, WIDE<f16>>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) patch_merging_scatter_any_bf16(const PatchMergingArgs args) {
    scatter<bf16, 1>(args);
}
extern "C" __global__ void __launch_bounds__(THREADS) patch_merging_scatter_any_f16(const PatchMergingArgs args) {
    scatter<f16, 1>(args);
}
