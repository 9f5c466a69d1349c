// C[m, n] = Σ_k A(m, k) · B(n, k) in blocks: a pipeline of copies into shared memory, and what multiplies there.
//
// A block of THREADS computes a tile of C. Its operands arrive in steps of 64 bytes along k (BK = 32 elements of 16 bits, 16
// of 32 bits), in a ring of STAGES steps filled by cp.async ahead of the arithmetic. Everything moves in chunks of 16 bytes:
// an operand that is contiguous along k lies as [rows][4 chunks], one that is contiguous along its rows as [BK][rows / chunk].
// Chunks are permuted within a line so that the 8 lanes that read or write together meet different banks.
//
// An operand is a struct with `start`, which learns the thread's part, and `load`, which copies the next step. A core is a
// struct with the tile's sizes, `multiply` for one step, and `store`, which leaves the sums in shared memory in f32.
#pragma once
#include "device.cuh"

// n / divisor for 0 ≤ n < 2³¹ by one multiplication: shift = 31 + ⌈log2 divisor⌉, multiplier = ⌈2^shift / divisor⌉.
struct Divider {
    u32 divisor, multiplier, shift;
};
DEVICE int quotient(Divider by, int n) { return (int)((u64)(u32)n * by.multiplier >> by.shift); }

template <class E> constexpr int CHUNK = 16 / sizeof(E);
template <class E> constexpr int BK = 64 / sizeof(E);

// ---- where chunks lie

// Bytes from the tile's start to chunk `chunk` of row `row`, of an operand that is contiguous along k.
DEVICE int along_k(int row, int chunk) { return row * 64 + ((chunk ^ (row >> 1 & 3)) << 4); }
// The same for an operand that is contiguous along its rows, with LINE chunks for each k. Lines of any length put 8 neighbouring
// k on 8 different banks of 16 bytes; where LINE is a multiple of 8, two neighbouring k also put 4 chunks each on different ones.
template <int LINE> DEVICE int along_rows(int k, int chunk) {
    static_assert(LINE % 2 == 0, "an odd line needs no permutation, and no tile has one");
    int flip = LINE % 8 == 0 ? (k & 1) << 2 | (k >> 1 & 3) : LINE % 4 == 0 ? k >> 1 & 3 : k >> 2 & 1;
    return (k * LINE + (chunk ^ flip)) << 4;
}

// ---- copies of one chunk

// Elements of one chunk, put in one by one.
template <class E> struct Chunk {
    u32 words[4] = {0, 0, 0, 0};
    __device__ __forceinline__ void put(int i, const E* from) {
        if (sizeof(E) == 4)
            words[i] = *(const u32*)from;
        else
            words[i / 2] |= (u32) * (const u16*)from << 16 * (i % 2);
    }
    __device__ __forceinline__ void store(void* to) const { *(uint4*)to = make_uint4(words[0], words[1], words[2], words[3]); }
};

// The first `present` elements (at most a chunk; zeros follow). WIDE copies chunks whole or not at all, from aligned addresses.
template <bool WIDE, class E> DEVICE void copy_chunk(unsigned char* to, const E* from, int present) {
    if (WIDE) {
        cp_async<16>(to, from, present > 0);
        return;
    }
    Chunk<E> chunk;
#pragma unroll
    for (int i = 0; i < CHUNK<E>; i++)
        if (i < present) chunk.put(i, from + i);
    chunk.store(to);
}

// ---- cores

// Tensor cores: WM × WN warps, each with 16·MI × 48 of the tile. A_ROWS, B_ROWS: the operand is contiguous along its rows.
template <class T, int MI, int WM, int WN, bool A_ROWS, bool B_ROWS> struct TensorCore {
    using E = T;
    static constexpr int THREADS = 32 * WM * WN, BM = 16 * MI * WM, BN = 48 * WN;
    static constexpr int A_LINE = BM / 8, B_LINE = BN / 8;
    float sums[MI][6][4] = {};

    __device__ __forceinline__ void multiply(const unsigned char* a, const unsigned char* b) {
#pragma unroll
        for (int k = 0; k < 2; k++) {
            u32 columns[3][4];
#pragma unroll
            for (int j = 0; j < 3; j++) load_columns(columns[j], b, k, j);
#pragma unroll
            for (int i = 0; i < MI; i++) {
                u32 rows[4];
                load_rows(rows, a, k, i);
#pragma unroll
                for (int j = 0; j < 6; j++) mma<E>(sums[i][j], rows, columns[j / 2][j % 2 * 2], columns[j / 2][j % 2 * 2 + 1]);
            }
        }
    }

    // 16 rows × 16 k of A.
    __device__ __forceinline__ void load_rows(u32 (&r)[4], const unsigned char* a, int k, int i) const {
        int lane = lane_index(), row = (warp_index() / WN * MI + i) * 16;
        if (A_ROWS)
            ldmatrix_x4_trans(r, a + along_rows<A_LINE>(k * 16 + (lane & 7) + (lane >> 4) * 8, row / 8 + (lane >> 3 & 1)));
        else
            ldmatrix_x4(r, a + along_k(row + (lane & 15), k * 2 + (lane >> 4)));
    }

    // 16 columns × 16 k of B.
    __device__ __forceinline__ void load_columns(u32 (&r)[4], const unsigned char* b, int k, int j) const {
        int lane = lane_index(), column = (warp_index() % WN * 3 + j) * 16;
        if (B_ROWS)
            ldmatrix_x4_trans(r, b + along_rows<B_LINE>(k * 16 + (lane & 15), column / 8 + (lane >> 4)));
        else
            ldmatrix_x4(r, b + along_k(column + (lane & 7) + (lane >> 4) * 8, k * 2 + (lane >> 3 & 1)));
    }

    __device__ __forceinline__ void store(float* tile, int pitch) const {
        int row = warp_index() / WN * MI * 16 + lane_index() / 4, column = warp_index() % WN * 48 + lane_index() % 4 * 2;
#pragma unroll
        for (int i = 0; i < MI; i++)
#pragma unroll
            for (int j = 0; j < 6; j++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    float* to = tile + (row + i * 16 + half * 8) * pitch + column + j * 8;
                    *(float2*)to = make_float2(sums[i][j][2 * half], sums[i][j][2 * half + 1]);
                }
    }
};

// CUDA cores in f32: ROWS × COLUMNS threads, each with TM rows and TN columns of the tile that lie ROWS and COLUMNS apart.
template <int TM, int TN, int ROWS, int COLUMNS, bool A_ROWS, bool B_ROWS> struct CudaCore {
    using E = float;
    static constexpr int THREADS = ROWS * COLUMNS, BM = TM * ROWS, BN = TN * COLUMNS;
    float sums[TM][TN] = {};

    __device__ __forceinline__ void multiply(const unsigned char* a, const unsigned char* b) {
        int row = threadIdx.x / COLUMNS, column = threadIdx.x % COLUMNS;
#pragma unroll 1
        for (int k = 0; k < 4; k++) {
            float rows[TM][4];
#pragma unroll
            for (int i = 0; i < TM; i++) load<A_ROWS, BM / 4>(rows[i], a, row + i * ROWS, k);
#pragma unroll
            for (int j = 0; j < TN; j++) {
                float other[4];
                load<B_ROWS, BN / 4>(other, b, column + j * COLUMNS, k);
#pragma unroll
                for (int i = 0; i < TM; i++)
#pragma unroll
                    for (int e = 0; e < 4; e++) sums[i][j] = fmaf(rows[i][e], other[e], sums[i][j]);
            }
        }
    }

    // Four k of one row.
    template <bool BY_ROWS, int LINE>
    static __device__ __forceinline__ void load(float (&v)[4], const unsigned char* tile, int row, int chunk) {
        if (BY_ROWS) {
#pragma unroll
            for (int e = 0; e < 4; e++) v[e] = *(const float*)(tile + along_rows<LINE>(chunk * 4 + e, row / 4) + row % 4 * 4);
        } else {
            float4 four = *(const float4*)(tile + along_k(row, chunk));
            v[0] = four.x, v[1] = four.y, v[2] = four.z, v[3] = four.w;
        }
    }

    __device__ __forceinline__ void store(float* tile, int pitch) const {
        int row = threadIdx.x / COLUMNS, column = threadIdx.x % COLUMNS;
#pragma unroll
        for (int i = 0; i < TM; i++)
#pragma unroll
            for (int j = 0; j < TN; j++) tile[(row + i * ROWS) * pitch + column + j * COLUMNS] = sums[i][j];
    }
};

// ---- the pipeline

// Bytes of a step of both operands, and floats from row to row of the finished tile: 8 more than a row, against bank conflicts.
template <class Core> constexpr int STEP_BYTES = 64 * (Core::BM + Core::BN);
template <class Core> constexpr int PITCH = Core::BN + 8;

// Adds up `steps` steps of a and b. Uses STAGES · STEP_BYTES of shared memory, which is free again afterwards.
template <int STAGES, class Core, class A, class B>
DEVICE void accumulate(Core& core, A& a, B& b, int steps, unsigned char* shared) {
    auto load = [&](int step) {
        if (step < steps) {
            unsigned char* stage = shared + step % STAGES * STEP_BYTES<Core>;
            a.load(stage);
            b.load(stage + 64 * Core::BM);
        }
        cp_async_commit();
    };
    for (int step = 0; step < STAGES - 1; step++) load(step);
    for (int step = 0; step < steps; step++) {
        cp_async_wait<STAGES - 2>();
        __syncthreads();
        load(step + STAGES - 1);
        const unsigned char* stage = shared + step % STAGES * STEP_BYTES<Core>;
        core.multiply(stage, stage + 64 * Core::BM);
    }
    cp_async_wait<0>();
    __syncthreads();
}

// ---- loads and stores of four neighbouring values, of which the first `present` exist; `wide` when all do and the address is aligned

DEVICE void load_four(float (&v)[4], const float* from, int present, bool wide) {
    if (wide) {
        float4 four = *(const float4*)from;
        v[0] = four.x, v[1] = four.y, v[2] = four.z, v[3] = four.w;
        return;
    }
#pragma unroll
    for (int i = 0; i < 4; i++) v[i] = i < present ? from[i] : 0;
}
template <class E> DEVICE void load_four(float (&v)[4], const E* from, int present, bool wide) {
    if (wide) {
        uint2 four = *(const uint2*)from;
        v[0] = unpack_low<E>(four.x), v[1] = unpack_high<E>(four.x), v[2] = unpack_low<E>(four.y), v[3] = unpack_high<E>(four.y);
        return;
    }
#pragma unroll
    for (int i = 0; i < 4; i++) v[i] = i < present ? to_f32(from[i]) : 0;
}
DEVICE void store_four(float* to, const float (&v)[4], int present, bool wide) {
    if (wide) {
        *(float4*)to = make_float4(v[0], v[1], v[2], v[3]);
        return;
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
        if (i < present) to[i] = v[i];
}
template <class E> DEVICE void store_four(E* to, const float (&v)[4], int present, bool wide) {
    if (wide) {
        *(uint2*)to = make_uint2(pack<E>(v[0], v[1]), pack<E>(v[2], v[3]));
        return;
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
        if (i < present) to[i] = from_f32<E>(v[i]);
}
