// The three products under convolutions, transposed convolutions and linear layers, channels last.
//
//   fprop  y[n, o, co]    = bias[co] + Σ_{t, ci} x[n, o·s + t − p, ci] · w[co, t, ci]
//   dgrad  dx[n, q, ci]   = bias[ci] + Σ_{t, co, o: o·s + t − p = q} dy[n, o, co] · w[co, t, ci]
//   wgrad  dw[co, t, ci]  = Σ_{n, o} dy[n, o, co] · x[n, o·s + t − p, ci]
//
// (s stride, p padding, t position in the kernel, each along D, H, W). A linear layer has one tap and rows for positions; a
// transposed convolution is dgrad with x for dy. As products C[m, n] = Σ_k A(m, k) · B(n, k):
//
//          m            n         k                 A                         B
//   fprop  positions o  co        tap, ci           x, gathered; along k      w, a row; along k
//   dgrad  positions q  ci        tap, co           dy, gathered; along k     w; along n
//   wgrad  co           tap, ci   positions o       dy; along m               x, gathered; along n
//
// dgrad runs once for each residue of q + p by the stride (a "class"): inside one, neighbouring q meet neighbouring o under the
// same taps, as in a convolution of stride 1 with the kernel's taps of that residue, so that no tap is multiplied in vain. A
// position of a class beyond the volume is computed and not stored.
//
// Launch: one dimension of blocks for tiles of C (n fastest, so that blocks that gather the same rows run together; then
// classes, then m), the second for splits of k. THREADS and the tile come from the core; k goes in steps of 64 bytes through a
// ring in dynamic shared memory, in which the finished tile then lies in f32.
//
//   suffix     cores              tile     threads   shared memory           when
//   bf16       mma m16n8k16       256 × 48    128    3 steps, 58 368 bytes   channels in multiples of 8
//   square_bf16                   128 × 96    128    4 steps, 57 344
//   brick_bf16                    256 × 48    128    brick and 3 steps, 71 424   3³ of stride 1, channels in multiples of 48
//   any_bf16                      128 × 48    128    4 steps, 45 056         any channels, kernels, alignment
//   f32        CUDA cores         256 × 48    256    3 steps, 58 368         channels in multiples of 4
//   any_f32                       256 × 48    256    3 steps, 58 368         any
//   wgrad: 48 × 192 in place of 256 × 48 and of 128 × 48, 3 steps, 46 080; 96 × 96 in place of 128 × 96, 4 steps, 49 152
//
// f32 is f32 throughout (fused multiply-add, no TF32). f16 has the kernels of bf16, with f16 for bf16 in their names.
//
// Arithmetic: 2 · positions · taps · ci · co operations each. Bytes from beyond the block: a tile reads 64 · (BM + BN) a step;
// neighbouring taps read nearly the same positions again, out of L1 and L2. A brick reads 600 positions for 256 once for all 27
// taps, and w anew. To memory: C once; with splits > 1 each split writes its own f32 partial of C, and gemm_sum reads them all.
//
// What follows a linear layer is done to its finished values (Epilogue): the residual is added, GELU taken, or a gradient taken
// through GELU. Each value is rounded as if it had been stored in between, so that the bits are those of kernels of their own. Of
// a layer's hidden values GELU so moves one tensor less forward, and three less backward; a residual, two less.
//
// Everything is overwritten, nothing is added to. Sums are f32 in an order that only the shapes decide.
#include "../../cuda/gelu.cuh"
#include "../../cuda/gemm.cuh"

// What is done to c = A · B. Of the pointers, each but the last two may be null.
struct Epilogue {
    const float* bias;     // [n]: c += bias
    const void* residual;  // [c_rows, n]: c += residual
    const void* before;    // [c_rows, n], values that GELU was taken of: c *= gelu'(before)
    void* after;           // [c_rows, n]: gelu(before), or else gelu(c)
    void* c;               // [c_rows, n]; null where only `after` is wanted
};

// One axis of a convolution: sizes of the gathered tensor and of what a class scatters to.
struct Axis {
    int source, target, taps, stride, padding;
};

struct GemmArgs {
    const void* image;    // gathered: x, or dy in dgrad; [samples, source.., channels]
    const void* other;    // w [.., taps, ..], or dy in wgrad [positions, outputs]
    Epilogue epilogue;
    float* partial;       // [splits, c_rows, n], or null where there is one split
    i64 c_rows;
    int positions;        // of one class
    int channels;         // of image
    int outputs;          // channels of c in fprop and dgrad, of dy in wgrad
    int m_tiles, n_tiles;
    int steps;            // along k, of one split
    Divider sizes[3];     // positions along D, H, W
    Axis axes[3];         // D, H, W
};

// ---- where positions and taps meet

// The taps of a class, and where its first position is.
struct Window {
    int taps[3];
    int first[3];    // source index under tap 0; may be outside
    int residue[3];  // the kernel's tap that is tap 0
    int start[3];    // target index
    __device__ __forceinline__ int all() const { return taps[0] * taps[1] * taps[2]; }
};

// TRANSPOSED: dgrad, where a later tap meets an earlier source index, and neighbouring positions are a stride apart in the target.
template <bool TRANSPOSED> DEVICE Window window(const GemmArgs& args, int which) {
    Window w;
#pragma unroll
    for (int a = 2; a >= 0; a--) {
        const Axis& axis = args.axes[a];
        if (TRANSPOSED) {
            int s = axis.stride, residue = which % s, start = (residue - axis.padding) % s;
            which /= s;
            w.residue[a] = residue;
            w.start[a] = start < 0 ? start + s : start;
            w.first[a] = (w.start[a] + axis.padding) / s;
            w.taps[a] = residue < axis.taps ? (axis.taps - residue + s - 1) / s : 0;
        } else {
            w.residue[a] = w.start[a] = 0;
            w.first[a] = -axis.padding;
            w.taps[a] = axis.taps;
        }
    }
    return w;
}

// Sample and position along D, H, W.
struct Position {
    int sample, at[3];
};
DEVICE Position position(const GemmArgs& args, int index) {
    Position p;
#pragma unroll
    for (int a = 2; a >= 0; a--) {
        int rest = quotient(args.sizes[a], index);
        p.at[a] = index - rest * (int)args.sizes[a].divisor;
        index = rest;
    }
    p.sample = index;
    return p;
}

// A place along (tap, channel), the channel fastest.
struct Cursor {
    int channel, at[3];
    __device__ __forceinline__ void start(const Window& w, int channels, int k) {
        int tap = k / channels;
        channel = k - tap * channels;
        int width = max(w.taps[2], 1), height = max(w.taps[1], 1);
        at[2] = tap % width;
        at[1] = tap / width % height;
        at[0] = tap / width / height;
    }
    __device__ __forceinline__ void advance(const Window& w, int channels, int by) {
        channel += by;
        while (channel >= channels) {
            channel -= channels;
            if (++at[2] < w.taps[2]) continue;
            at[2] = 0;
            if (++at[1] < w.taps[1]) continue;
            at[1] = 0;
            at[0]++;
        }
    }
    __device__ __forceinline__ bool ended(const Window& w) const { return at[0] >= w.taps[0]; }
};

// A position's source as one number, modulo 2³², and one bit for each tap along each axis that meets the source. A tap moves the
// number by `offset`, and meets the source where all three of its `bits` are set. Together the axes have at most 31 taps.
struct Meeting {
    u32 place, bits;
};
constexpr u32 NEVER = 1u << 31;

DEVICE u32 bits_between(int low, int high) { return high > low ? (1u << high) - (1u << low) : 0; }

template <bool TRANSPOSED> DEVICE Meeting meeting(const GemmArgs& args, const Window& w, int index) {
    Position p = position(args, index);
    Meeting m = {(u32)p.sample, 0};
    constexpr int STEP = TRANSPOSED ? 1 : 0;
#pragma unroll
    for (int a = 2; a >= 0; a--) {
        int source = args.axes[a].source, at = p.at[a] * (STEP ? 1 : args.axes[a].stride) + w.first[a];
        int low = TRANSPOSED ? at - source + 1 : -at, high = TRANSPOSED ? at + 1 : source - at;
        m.bits = m.bits << w.taps[a] | bits_between(min(max(low, 0), w.taps[a]), min(max(high, 0), w.taps[a]));
        p.at[a] = at;
    }
#pragma unroll
    for (int a = 0; a < 3; a++) m.place = m.place * args.axes[a].source + p.at[a];
    return m;
}

template <bool TRANSPOSED> DEVICE u32 offset(const GemmArgs& args, const Cursor& tap) {
    u32 by = ((u32)tap.at[0] * args.axes[1].source + tap.at[1]) * args.axes[2].source + tap.at[2];
    return TRANSPOSED ? 0 - by : by;
}
DEVICE u32 bits(const Window& w, const Cursor& tap) {
    return 1u << tap.at[0] | 1u << (w.taps[0] + tap.at[1]) | 1u << (w.taps[0] + w.taps[1] + tap.at[2]);
}

// A position's source along each axis, for kernels of any size.
struct Anchor {
    Position p;
    bool exists;
};
template <bool TRANSPOSED> DEVICE Anchor anchor(const GemmArgs& args, const Window& w, int index) {
    Anchor s = {position(args, index), index < args.positions};
#pragma unroll
    for (int a = 0; a < 3; a++) s.p.at[a] = s.p.at[a] * (TRANSPOSED ? 1 : args.axes[a].stride) + w.first[a];
    return s;
}
// The element that an anchored position meets under a tap, or null.
template <bool TRANSPOSED, class E>
DEVICE const E* met(const GemmArgs& args, const Window& w, const Anchor& s, const Cursor& tap) {
    u32 place = s.p.sample;
    bool inside = s.exists && !tap.ended(w);
#pragma unroll
    for (int a = 0; a < 3; a++) {
        int at = TRANSPOSED ? s.p.at[a] - tap.at[a] : s.p.at[a] + tap.at[a];
        inside = inside && (u32)at < (u32)args.axes[a].source;
        place = place * args.axes[a].source + at;
    }
    return inside ? (const E*)args.image + (i64)place * args.channels + tap.channel : nullptr;
}

// ---- operands

// Positions × (tap, channel), contiguous along k: A of fprop and dgrad. WIDE copies 16 bytes at a time.
template <class E, int THREADS, int ROWS, bool TRANSPOSED, bool WIDE> struct GatheredRows;

// Four threads a row.
template <class E, int THREADS, int ROWS, bool TRANSPOSED> struct GatheredRows<E, THREADS, ROWS, TRANSPOSED, true> {
    static constexpr int ITEMS = ROWS * 4 / THREADS;
    const GemmArgs& args;
    const Window& w;
    Cursor tap;
    Meeting rows[ITEMS];
    int to;

    __device__ __forceinline__ void start(int row, int k) {
        int first = threadIdx.x / 4, chunk = threadIdx.x % 4;
        to = along_k(first, chunk);
        tap.start(w, args.channels, k + chunk * CHUNK<E>);
#pragma unroll
        for (int i = 0; i < ITEMS; i++) {
            int index = row + first + i * (THREADS / 4);
            rows[i] = index < args.positions ? meeting<TRANSPOSED>(args, w, index) : Meeting{0, 0};
        }
    }
    __device__ __forceinline__ void load(unsigned char* tile) {
        u32 need = tap.ended(w) ? NEVER : bits(w, tap), move = offset<TRANSPOSED>(args, tap);
        const E* from = (const E*)args.image + tap.channel;
#pragma unroll
        for (int i = 0; i < ITEMS; i++)
            cp_async_cached(tile + to + i * (THREADS / 4) * 64, from + (i64)(rows[i].place + move) * args.channels,
                         (rows[i].bits & need) == need);
        tap.advance(w, args.channels, BK<E>);
    }
};

// One thread a row.
template <class E, int THREADS, int ROWS, bool TRANSPOSED> struct GatheredRows<E, THREADS, ROWS, TRANSPOSED, false> {
    static_assert(ROWS == THREADS, "a thread for each row");
    const GemmArgs& args;
    const Window& w;
    Cursor tap;
    Anchor row;

    __device__ __forceinline__ void start(int first, int k) {
        tap.start(w, args.channels, k);
        row = anchor<TRANSPOSED>(args, w, first + threadIdx.x);
    }
    __device__ __forceinline__ void load(unsigned char* tile) {
#pragma unroll 1
        for (int c = 0; c < 4; c++) {
            Chunk<E> chunk;
#pragma unroll
            for (int i = 0; i < CHUNK<E>; i++) {
                if (const E* from = met<TRANSPOSED, E>(args, w, row, tap)) chunk.put(i, from);
                tap.advance(w, args.channels, 1);
            }
            chunk.store(tile + along_k(threadIdx.x, c));
        }
    }
};

// Rows of w × (tap, channel), contiguous along k: B of fprop.
template <class E, int THREADS, int ROWS, bool WIDE> struct WeightRows {
    static constexpr int ITEMS = (ROWS * 4 + THREADS - 1) / THREADS;
    const GemmArgs& args;
    const Window& w;
    int row, k, length;

    __device__ __forceinline__ void start(int first, int from) {
        row = first + threadIdx.x / 4;
        k = from + threadIdx.x % 4 * CHUNK<E>;
        length = w.all() * args.channels;
    }
    __device__ __forceinline__ void load(unsigned char* tile) {
        int first = threadIdx.x / 4;
#pragma unroll
        for (int i = 0; i < ITEMS; i++) {
            int at = i * (THREADS / 4);
            if (ROWS % (THREADS / 4) && first + at >= ROWS) break;
            const E* from = (const E*)args.other + (i64)(row + at) * length + k;
            copy_chunk<WIDE>(tile + along_k(first + at, threadIdx.x % 4), from, row + at < args.outputs ? length - k : 0);
        }
        k += BK<E>;
    }
};

// What the operands that are contiguous along their rows share: threads THREADS / BK to a k, each with every so many-th chunk.
template <class E, int THREADS, int ROWS> struct Lines {
    static constexpr int LINE = ROWS / CHUNK<E>, LANES = THREADS / BK<E>, ITEMS = (LINE + LANES - 1) / LANES;
    static __device__ __forceinline__ int k() { return threadIdx.x / LANES; }
    static __device__ __forceinline__ int chunk(int i) { return threadIdx.x % LANES + i * LANES; }
    static __device__ __forceinline__ bool exists(int i) { return LINE % LANES == 0 || chunk(i) < LINE; }
    static __device__ __forceinline__ int place(int i) { return along_rows<LINE>(k(), chunk(i)); }
};

// Columns of w × (tap, channel), contiguous along the columns: B of dgrad. Channels are those of dy, w's first axis.
template <class E, int THREADS, int ROWS, bool WIDE> struct WeightColumns {
    using L = Lines<E, THREADS, ROWS>;
    const GemmArgs& args;
    const Window& w;
    Cursor tap;
    int column;

    __device__ __forceinline__ void start(int first, int k) {
        column = first;
        tap.start(w, args.channels, k + L::k());
    }
    __device__ __forceinline__ void load(unsigned char* tile) {
        i64 at = tap.channel;
#pragma unroll
        for (int a = 0; a < 3; a++) at = at * args.axes[a].taps + w.residue[a] + tap.at[a] * args.axes[a].stride;
        int columns = tap.ended(w) ? 0 : args.outputs;
#pragma unroll
        for (int i = 0; i < L::ITEMS; i++) {
            if (!L::exists(i)) break;
            int n = column + L::chunk(i) * CHUNK<E>;
            copy_chunk<WIDE>(tile + L::place(i), (const E*)args.other + at * args.outputs + n, columns - n);
        }
        tap.advance(w, args.channels, BK<E>);
    }
};

// dy's channels × positions, contiguous along the channels: A of wgrad.
template <class E, int THREADS, int ROWS, bool WIDE> struct DenseColumns {
    using L = Lines<E, THREADS, ROWS>;
    const GemmArgs& args;
    int row, k;

    __device__ __forceinline__ void start(int first, int from) {
        row = first;
        k = from + L::k();
    }
    __device__ __forceinline__ void load(unsigned char* tile) {
        int rows = k < args.positions ? args.outputs : 0;
#pragma unroll
        for (int i = 0; i < L::ITEMS; i++) {
            if (!L::exists(i)) break;
            int m = row + L::chunk(i) * CHUNK<E>;
            copy_chunk<WIDE>(tile + L::place(i), (const E*)args.other + (i64)k * args.outputs + m, rows - m);
        }
        k += BK<E>;
    }
};

// (tap, channel) × positions, contiguous along the channels: B of wgrad.
template <class E, int THREADS, int ROWS, bool WIDE> struct GatheredColumns;

template <class E, int THREADS, int ROWS> struct GatheredColumns<E, THREADS, ROWS, true> {
    using L = Lines<E, THREADS, ROWS>;
    const GemmArgs& args;
    const Window& w;
    const E* from[L::ITEMS];
    u32 need[L::ITEMS];
    int k;

    __device__ __forceinline__ void start(int column, int first) {
        k = first + L::k();
#pragma unroll
        for (int i = 0; i < L::ITEMS; i++) {
            Cursor tap;
            tap.start(w, args.channels, column + L::chunk(i) * CHUNK<E>);
            need[i] = tap.ended(w) ? NEVER : bits(w, tap);
            from[i] = (const E*)args.image + (i64)offset<false>(args, tap) * args.channels + tap.channel;
        }
    }
    __device__ __forceinline__ void load(unsigned char* tile) {
        Meeting m = k < args.positions ? meeting<false>(args, w, k) : Meeting{0, 0};
        i64 at = (i64)(int)m.place * args.channels;
#pragma unroll
        for (int i = 0; i < L::ITEMS; i++) {
            if (!L::exists(i)) break;
            cp_async_cached(tile + L::place(i), from[i] + at, (m.bits & need[i]) == need[i]);
        }
        k += BK<E>;
    }
};

// Neighbouring threads take neighbouring positions, under the same taps.
template <class E, int THREADS, int ROWS> struct GatheredColumns<E, THREADS, ROWS, false> {
    using L = Lines<E, THREADS, ROWS>;
    const GemmArgs& args;
    const Window& w;
    int column, k;

    __device__ __forceinline__ void start(int first, int from) {
        column = first;
        k = from + threadIdx.x % BK<E>;
    }
    __device__ __forceinline__ void load(unsigned char* tile) {
        Anchor at = anchor<false>(args, w, k);
#pragma unroll 1
        for (int c = threadIdx.x / BK<E>; c < L::LINE; c += L::LANES) {
            Cursor tap;
            tap.start(w, args.channels, column + c * CHUNK<E>);
            Chunk<E> chunk;
#pragma unroll
            for (int i = 0; i < CHUNK<E>; i++) {
                if (const E* from = met<false, E>(args, w, at, tap)) chunk.put(i, from);
                tap.advance(w, args.channels, 1);
            }
            chunk.store(tile + along_rows<L::LINE>(threadIdx.x % BK<E>, c));
        }
        k += BK<E>;
    }
};

// ---- products

struct Tile {
    int m, n, which;  // first row and column, class
};
template <class Core> DEVICE Tile tile_of(const GemmArgs& args, int classes) {
    u32 n = blockIdx.x % args.n_tiles, rest = blockIdx.x / args.n_tiles;
    return {(int)(rest / classes) * Core::BM, (int)n * Core::BN, (int)(rest % classes)};
}

// Sums this split's share of k.
template <int STAGES, class Core, class A, class B>
DEVICE void accumulate_split(const GemmArgs& args, Core& core, A& a, B& b, Tile tile, int k, unsigned char* shared) {
    int steps = (k + BK<typename Core::E> - 1) / BK<typename Core::E>, first = blockIdx.y * args.steps;
    int count = min(steps - first, args.steps);
    if (count > 0) {
        a.start(tile.m, first * BK<typename Core::E>);
        b.start(tile.n, first * BK<typename Core::E>);
    }
    accumulate<STAGES>(core, a, b, max(count, 0), shared);
}

// Where row m of a class lies in c, or −1.
template <bool TRANSPOSED> DEVICE i64 target(const GemmArgs& args, const Window& w, int m) {
    if (!TRANSPOSED) return m;
    Position p = position(args, m);
    i64 row = p.sample;
#pragma unroll
    for (int a = 0; a < 3; a++) {
        i64 at = w.start[a] + (i64)p.at[a] * args.axes[a].stride;
        if (at >= args.axes[a].target) return -1;
        row = row * args.axes[a].target + at;
    }
    return row;
}

// Whether four neighbouring values can be loaded at once; what is written always is where it can.
DEVICE bool is_aligned(const Epilogue& epilogue) { return (((u64)epilogue.residual | (u64)epilogue.before) & 15) == 0; }

// As what is stored in between is rounded.
template <class E> DEVICE void round_four(float (&v)[4]) {
#pragma unroll
    for (int i = 0; i < 4; i++) v[i] = to_f32(from_f32<E>(v[i]));
}

template <> __device__ __forceinline__ void round_four<float>(float (&)[4]) {}

// Gradients through GELU, and the values after it, of what was before it.
DEVICE void through_gelu(float (&gradient)[4], float (&before)[4]) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float below = distribution(before[i]);
        gradient[i] *= slope(before[i], below);
        before[i] *= below;
    }
}

// Stores four neighbouring sums, of which the first `present` exist, at element `at` of c and in column `column`; where that is the
// last column but some, the rest are the next row's first. ALL: a linear layer's, which other things than a bias may follow.
template <class Out, bool ALL>
DEVICE void complete(const Epilogue& epilogue, float (&v)[4], i64 at, int column, int columns, int present, bool wide) {
    if (epilogue.bias)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (i < present) v[i] += epilogue.bias[column];
            column = column + 1 < columns ? column + 1 : 0;
        }
    if (ALL && epilogue.residual) {
        float other[4];
        round_four<Out>(v);
        load_four(other, (const Out*)epilogue.residual + at, present, wide);
#pragma unroll
        for (int i = 0; i < 4; i++) v[i] += other[i];
    }
    if (ALL && epilogue.after) {
        float gelu[4];
        round_four<Out>(v);
        if (epilogue.before) {
            load_four(gelu, (const Out*)epilogue.before + at, present, wide);
            through_gelu(v, gelu);
        } else {
#pragma unroll
            for (int i = 0; i < 4; i++) gelu[i] = v[i] * distribution(v[i]);
        }
        store_four((Out*)epilogue.after + at, gelu, present, wide);
        if (!epilogue.c) return;
    }
    store_four((Out*)epilogue.c + at, v, present, wide);
}

// Writes the tile: to the split's partial, or to c.
template <class Core, class Out, bool ALL, class Target>
DEVICE void finish(const GemmArgs& args, const Core& core, Tile tile, int rows, int columns, Target target, unsigned char* shared) {
    float* sums = (float*)shared;
    core.store(sums, PITCH<Core>);
    __syncthreads();
    const bool wide = columns % 4 == 0 && is_aligned(args.epilogue);
    float* partial = args.partial ? args.partial + blockIdx.y * args.c_rows * columns : nullptr;
    for (int item = threadIdx.x; item < Core::BM * Core::BN / 4; item += Core::THREADS) {
        int m = item / (Core::BN / 4), n = item % (Core::BN / 4) * 4, present = columns - tile.n - n;
        if (tile.m + m >= rows || present <= 0) continue;
        i64 row = target(tile.m + m);
        if (row < 0) continue;
        float4 sum = *(const float4*)(sums + m * PITCH<Core> + n);
        float v[4] = {sum.x, sum.y, sum.z, sum.w};
        i64 at = row * columns + tile.n + n;
        if (partial) {
            store_four(partial + at, v, present, wide);
            continue;
        }
        complete<Out, ALL>(args.epilogue, v, at, tile.n + n, columns, min(present, 4), wide);
    }
}

template <class Core, int STAGES, bool WIDE> DEVICE void fprop(const GemmArgs& args) {
    using E = typename Core::E;
    DYNAMIC_SHARED(shared);
    const Window w = window<false>(args, 0);
    const Tile tile = tile_of<Core>(args, 1);
    Core core;
    GatheredRows<E, Core::THREADS, Core::BM, false, WIDE> a{args, w};
    WeightRows<E, Core::THREADS, Core::BN, WIDE> b{args, w};
    accumulate_split<STAGES>(args, core, a, b, tile, w.all() * args.channels, shared);
    auto row = [](int m) { return (i64)m; };
    finish<Core, E, true>(args, core, tile, args.positions, args.outputs, row, shared);
}

template <class Core, int STAGES, bool WIDE> DEVICE void dgrad(const GemmArgs& args) {
    using E = typename Core::E;
    DYNAMIC_SHARED(shared);
    const Tile tile = tile_of<Core>(args, args.axes[0].stride * args.axes[1].stride * args.axes[2].stride);
    const Window w = window<true>(args, tile.which);
    Core core;
    GatheredRows<E, Core::THREADS, Core::BM, true, WIDE> a{args, w};
    WeightColumns<E, Core::THREADS, Core::BN, WIDE> b{args, w};
    accumulate_split<STAGES>(args, core, a, b, tile, w.all() * args.channels, shared);
    auto row = [&](int m) { return target<true>(args, w, m); };
    finish<Core, E, true>(args, core, tile, args.positions, args.outputs, row, shared);
}

template <class Core, int STAGES, bool WIDE> DEVICE void wgrad(const GemmArgs& args) {
    using E = typename Core::E;
    DYNAMIC_SHARED(shared);
    const Window w = window<false>(args, 0);
    const Tile tile = tile_of<Core>(args, 1);
    Core core;
    DenseColumns<E, Core::THREADS, Core::BM, WIDE> a{args};
    GatheredColumns<E, Core::THREADS, Core::BN, WIDE> b{args, w};
    accumulate_split<STAGES>(args, core, a, b, tile, args.positions, shared);
    auto row = [](int m) { return (i64)m; };
    finish<Core, float, false>(args, core, tile, args.outputs, w.all() * args.channels, row, shared);
}

// ---- 3 × 3 × 3 convolutions of stride 1 over volumes, from a brick of the source that stays in shared memory

// A block takes 4 × 8 × 8 positions and 48 columns. The brick holds what the 27 taps meet of them, for SLAB channels, and is read
// from beyond the block once instead of once a tap; only w goes through a ring of steps, one tap and SLAB channels each. A warp
// has one index along D, and each 8 rows of its fragments are a line along W, which any tap moves as one: no two lanes of an
// ldmatrix meet in a bank.
constexpr int SLAB = 48, SLAB_LINE = SLAB / 8, BRICK = 6 * 10 * 10;
constexpr int BRICK_BYTES = BRICK * SLAB * 2, WEIGHT_BYTES = 48 * SLAB * 2, WEIGHT_STAGES = 3;

// Where a block is: its first position along each axis, and its first column.
struct Brick {
    int sample, at[3], column;
};
DEVICE Brick brick_of(const GemmArgs& args) {
    constexpr int SIZES[3] = {4, 8, 8};
    Brick brick;
    int rest = blockIdx.x / args.n_tiles;
    brick.column = blockIdx.x % args.n_tiles * 48;
#pragma unroll
    for (int a = 2; a >= 0; a--) {
        int count = ((int)args.sizes[a].divisor + SIZES[a] - 1) / SIZES[a];
        brick.at[a] = rest % count * SIZES[a];
        rest /= count;
    }
    brick.sample = rest;
    return brick;
}

template <class E, bool TRANSPOSED> struct BrickCore : TensorCore<E, 4, 4, 1, false, TRANSPOSED> {
    static constexpr int ALL = TensorCore<E, 4, 4, 1, false, TRANSPOSED>::THREADS;

    // The brick starts at the source of the first position under the tap that meets the earliest.
    __device__ __forceinline__ void load_brick(const GemmArgs& args, const Brick& brick, int channel, unsigned char* to) const {
        for (int item = threadIdx.x; item < BRICK * SLAB_LINE; item += ALL) {
            int place = item / SLAB_LINE, chunk = item % SLAB_LINE;
            int moves[3] = {place / 100, place / 10 % 10, place % 10};
            u32 source = brick.sample;
            bool inside = true;
#pragma unroll
            for (int a = 0; a < 3; a++) {
                const Axis& axis = args.axes[a];
                int at = brick.at[a] + moves[a] + (TRANSPOSED ? axis.padding - 2 : -axis.padding);
                inside = inside && (u32)at < (u32)axis.source;
                source = source * axis.source + at;
            }
            const E* from = (const E*)args.image + (i64)source * args.channels + channel + chunk * 8;
            cp_async<16>(to + along_rows<SLAB_LINE>(place, chunk), from, inside);
        }
    }

    // w for 48 columns under one tap of the brick: [48 columns][SLAB], in dgrad, where the taps run backwards, [SLAB][48 columns].
    __device__ __forceinline__ void load_weights(const GemmArgs& args, int column, int channel, int tap, unsigned char* to) const {
        for (int item = threadIdx.x; item < 48 * SLAB_LINE; item += ALL) {
            int row = item / SLAB_LINE, chunk = item % SLAB_LINE, n = column + (TRANSPOSED ? chunk * 8 : row);
            i64 at = TRANSPOSED ? ((i64)(channel + row) * 27 + 26 - tap) * args.outputs + n
                                : ((i64)n * 27 + tap) * args.channels + channel + chunk * 8;
            cp_async<16>(to + along_rows<SLAB_LINE>(row, chunk), (const E*)args.other + at, n < args.outputs);
        }
    }

    __device__ __forceinline__ void multiply_tap(const unsigned char* brick, const unsigned char* weights, int tap) {
        const int lane = lane_index();
        const int place = ((warp_index() + tap / 9) * 10 + (lane >> 3 & 1) + tap / 3 % 3) * 10 + (lane & 7) + tap % 3;
#pragma unroll
        for (int k = 0; k < SLAB / 16; k++) {
            u32 columns[3][4];
#pragma unroll
            for (int j = 0; j < 3; j++) {
                if (TRANSPOSED)
                    ldmatrix_x4_trans(columns[j], weights + along_rows<SLAB_LINE>(k * 16 + (lane & 15), j * 2 + (lane >> 4)));
                else
                    ldmatrix_x4(columns[j], weights + along_rows<SLAB_LINE>(j * 16 + (lane & 7) + (lane >> 4) * 8,
                                                                             k * 2 + (lane >> 3 & 1)));
            }
#pragma unroll
            for (int i = 0; i < 4; i++) {
                u32 rows[4];
                ldmatrix_x4(rows, brick + along_rows<SLAB_LINE>(place + i * 20, k * 2 + (lane >> 4)));
#pragma unroll
                for (int j = 0; j < 6; j++)
                    mma<E>(this->sums[i][j], rows, columns[j / 2][j % 2 * 2], columns[j / 2][j % 2 * 2 + 1]);
            }
        }
    }
};

template <class E, bool TRANSPOSED> DEVICE void brick_product(const GemmArgs& args) {
    DYNAMIC_SHARED(shared);
    const Brick brick = brick_of(args);
    unsigned char* ring = shared + BRICK_BYTES;
    const int steps = args.channels / SLAB * 27;
    BrickCore<E, TRANSPOSED> core;
    auto load = [&](int step) {
        if (step < steps)
            core.load_weights(args, brick.column, step / 27 * SLAB, step % 27, ring + step % WEIGHT_STAGES * WEIGHT_BYTES);
        cp_async_commit();
    };
    for (int step = 0; step < WEIGHT_STAGES - 1; step++) load(step);
    for (int step = 0; step < steps; step++) {
        const int tap = step % 27;
        if (tap == 0) {
            __syncthreads();
            core.load_brick(args, brick, step / 27 * SLAB, shared);
            cp_async_commit();
            cp_async_wait<0>();
        } else {
            cp_async_wait<WEIGHT_STAGES - 2>();
        }
        __syncthreads();
        load(step + WEIGHT_STAGES - 1);
        core.multiply_tap(shared, ring + step % WEIGHT_STAGES * WEIGHT_BYTES, tap);
    }
    cp_async_wait<0>();
    __syncthreads();
    auto row = [&](int m) {
        int moves[3] = {m / 64, m / 8 % 8, m % 8};
        i64 row = brick.sample;
#pragma unroll
        for (int a = 0; a < 3; a++) {
            int at = brick.at[a] + moves[a], size = args.sizes[a].divisor;
            if (at >= size) return (i64)-1;
            row = row * size + at;
        }
        return row;
    };
    finish<BrickCore<E, TRANSPOSED>, E, false>(args, core, Tile{0, brick.column, 0}, 256, args.outputs, row, shared);
}

extern "C" __global__ void __launch_bounds__(128) gemm_fprop_bf16(const GemmArgs args) {
    fprop<TensorCore<bf16, 4, 4, 1, false, false>, 3, true>(args);
}
extern "C" __global__ void __launch_bounds__(128) gemm_fprop_f16(const GemmArgs args) {
    fprop<TensorCore<f16, 4, 4, 1, false, false>, 3, true>(args);
}
extern "C" __global__ void __launch_bounds__(128) gemm_fprop_square_bf16(const GemmArgs args) {
    fprop<TensorCore<bf16, 4, 2, 2, false, false>, 4, true>(args);
}
extern "C" __global__ void __launch_bounds__(128) gemm_fprop_square_f16(const GemmArgs args) {
    fprop<TensorCore<f16, 4, 2, 2, false, false>, 4, true>(args);
}
extern "C" __global__ void __launch_bounds__(128) gemm_fprop_any_bf16(const GemmArgs args) {
    fprop<TensorCore<bf16, 2, 4, 1, false, false>, 4, false>(args);
}
extern "C" __global__ void __launch_bounds__(128) gemm_fprop_any_f16(const GemmArgs args) {
    fprop<TensorCore<f16, 2, 4, 1, false, false>, 4, false>(args);
}
extern "C" __global__ void __launch_bounds__(128) gemm_dgrad_bf16(const GemmArgs args) {
    dgrad<TensorCore<bf16, 4, 4, 1, false, true>, 3, true>(args);
}
extern "C" __global__ void __launch_bounds__(128) gemm_dgrad_f16(const GemmArgs args) {
    dgrad<TensorCore<f16, 4, 4, 1, false, true>, 3, true>(args);
}
extern "C" __global__ void __launch_bounds__(128) gemm_dgrad_square_bf16(const GemmArgs args) {
    dgrad<TensorCore<bf16, 4, 2, 2, false, true>, 4, true>(args);
}
extern "C" __global__ void __launch_bounds__(128) gemm_dgrad_square_f16(const GemmArgs args) {
    dgrad<TensorCore<f16, 4, 2, 2, false, true>, 4, true>(args);
}
extern "C" __global__ void __launch_bounds__(128) gemm_dgrad_any_bf16(const GemmArgs args) {
    dgrad<TensorCore<bf16, 2, 4, 1, false, true>, 4, false>(args);
}
extern "C" __global__ void __launch_bounds__(128) gemm_dgrad_any_f16(const GemmArgs args) {
    dgrad<TensorCore<f16, 2, 4, 1, false, true>, 4, false>(args);
}
extern "C" __global__ void __launch_bounds__(128) gemm_fprop_brick_bf16(const GemmArgs args) {
    brick_product<bf16, false>(args);
}
extern "C" __global__ void __launch_bounds__(128) gemm_fprop_brick_f16(const GemmArgs args) {
    brick_product<f16, false>(args);
}
extern "C" __global__ void __launch_bounds__(128) gemm_dgrad_brick_bf16(const GemmArgs args) {
    brick_product<bf16, true>(args);
}
extern "C" __global__ void __launch_bounds__(128) gemm_dgrad_brick_f16(const GemmArgs args) {
    brick_product<f16, true>(args);
}
extern "C" __global__ void __launch_bounds__(128) gemm_wgrad_bf16(const GemmArgs args) {
    wgrad<TensorCore<bf16, 3, 1, 4, true, true>, 3, true>(args);
}
extern "C" __global__ void __launch_bounds__(128) gemm_wgrad_f16(const GemmArgs args) {
    wgrad<TensorCore<f16, 3, 1, 4, true, true>, 3, true>(args);
}
extern "C" __global__ void __launch_bounds__(128) gemm_wgrad_square_bf16(const GemmArgs args) {
    wgrad<TensorCore<bf16, 3, 2, 2, true, true>, 4, true>(args);
}
extern "C" __global__ void __launch_bounds__(128) gemm_wgrad_square_f16(const GemmArgs args) {
    wgrad<TensorCore<f16, 3, 2, 2, true, true>, 4, true>(args);
}
extern "C" __global__ void __launch_bounds__(128) gemm_wgrad_any_bf16(const GemmArgs args) {
    wgrad<TensorCore<bf16, 3, 1, 4, true, true>, 3, false>(args);
}
extern "C" __global__ void __launch_bounds__(128) gemm_wgrad_any_f16(const GemmArgs args) {
    wgrad<TensorCore<f16, 3, 1, 4, true, true>, 3, false>(args);
}
extern "C" __global__ void __launch_bounds__(256) gemm_fprop_f32(const GemmArgs args) {
    fprop<CudaCore<8, 6, 32, 8, false, false>, 3, true>(args);
}
extern "C" __global__ void __launch_bounds__(256) gemm_fprop_any_f32(const GemmArgs args) {
    fprop<CudaCore<8, 6, 32, 8, false, false>, 3, false>(args);
}
extern "C" __global__ void __launch_bounds__(256, 1) gemm_dgrad_f32(const GemmArgs args) {
    dgrad<CudaCore<8, 6, 32, 8, false, true>, 3, true>(args);
}
extern "C" __global__ void __launch_bounds__(256) gemm_dgrad_any_f32(const GemmArgs args) {
    dgrad<CudaCore<8, 6, 32, 8, false, true>, 3, false>(args);
}
extern "C" __global__ void __launch_bounds__(256) gemm_wgrad_f32(const GemmArgs args) {
    wgrad<CudaCore<6, 6, 8, 32, true, true>, 3, true>(args);
}
extern "C" __global__ void __launch_bounds__(256) gemm_wgrad_any_f32(const GemmArgs args) {
    wgrad<CudaCore<6, 6, 8, 32, true, true>, 3, false>(args);
}

// ---- the sum of the splits

struct GemmSumArgs {
    const float* partial;  // [splits, rows, columns]
    Epilogue epilogue;
    i64 size;              // rows · columns
    int splits, columns;
};

// c = Σ partial, in the order of the splits; four neighbouring elements a thread.
template <class Out> DEVICE void sum_splits(const GemmSumArgs& args) {
    const bool wide = args.size % 4 == 0 && is_aligned(args.epilogue);
    for (i64 at = grid_thread() * 4; at < args.size; at += grid_threads() * 4) {
        float v[4] = {0, 0, 0, 0};
        int present = args.size - at < 4 ? (int)(args.size - at) : 4;
        for (int split = 0; split < args.splits; split++) {
            const float* from = args.partial + split * args.size + at;
            if (wide) {
                float4 four = *(const float4*)from;
                v[0] += four.x, v[1] += four.y, v[2] += four.z, v[3] += four.w;
            } else
#pragma unroll
                for (int i = 0; i < 4; i++)
                    if (i < present) v[i] += from[i];
        }
        complete<Out, true>(args.epilogue, v, at, (int)(at % args.columns), args.columns, present, wide);
    }
}

extern "C" __global__ void __launch_bounds__(256) gemm_sum_f32(const GemmSumArgs args) { sum_splits<float>(args); }
extern "C" __global__ void __launch_bounds__(256) gemm_sum_bf16(const GemmSumArgs args) { sum_splits<bf16>(args); }
extern "C" __global__ void __launch_bounds__(256) gemm_sum_f16(const GemmSumArgs args) { sum_splits<f16>(args); }
