// Concatenation and its transpose: copies `rows` runs of `length` units that lie `from_stride` units apart to where they lie
// `to_stride` apart. A unit has 16 bytes where lengths, strides and addresses are multiples of that, else it is one element.
//
// Threads walk in strides of the grid: any one-dimensional launch of up to THREADS threads a block will do. Reads and writes
// each unit once; overwrites.
#include "../../cuda/device.cuh"

constexpr int THREADS = 256;

struct ConcatArgs {
    const void* from;
    void* to;
    i64 rows, length, from_stride, to_stride;
};

template <class Unit> DEVICE void copy(const ConcatArgs& args) {
    auto from = static_cast<const Unit*>(args.from);
    auto to = static_cast<Unit*>(args.to);
    for (i64 i = grid_thread(); i < args.rows * args.length; i += grid_threads()) {
        const i64 row = i / args.length, at = i % args.length;
        to[row * args.to_stride + at] = from[row * args.from_stride + at];
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) concat_copy_b128(const ConcatArgs args) { copy<uint4>(args); }
extern "C" __global__ void __launch_bounds__(THREADS) concat_copy_b32(const ConcatArgs args) { copy<u32>(args); }
extern "C" __global__ void __launch_bounds__(THREADS) concat_copy_b16(const ConcatArgs args) { copy<u16>(args); }
