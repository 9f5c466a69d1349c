// What every kernel is written with: number types, reductions, shared memory, and the tensor cores' instructions.
//
// The only file with inline PTX and the only one that a `.cu` file includes. nvcc and NVRTC compile it without any CUDA
// header; any other compiler gets the same functions from the CPU emulator. A wrapper is one instruction and nothing more,
// so that the two versions can be compared one by one.
#pragma once

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define ON_DEVICE 1
#else
#define ON_DEVICE 0
#include "../emulator/emulator.h"
#endif

// Not static: shared memory inside a static function is named after the folder in which it is compiled, and the image with it.
#define DEVICE __device__ __forceinline__

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

// Storage only: arithmetic is done in f32.
struct bf16 {
    u16 bits;
};
struct f16 {
    u16 bits;
};

// ---- shared memory
//
// SHARED(float, tile, [32][33]) declares a block's own array, DYNAMIC_SHARED(bytes) names what the launch asked for. Both
// are aligned to 128 bytes and hold nothing in particular at first.

#if ON_DEVICE
#define SHARED(type, name, shape) __shared__ __align__(128) type name shape
#define DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]
#else
#define SHARED(type, name, shape)       \
    static char name##_key;             \
    using name##_type = type shape;     \
    name##_type& name = *static_cast<name##_type*>(::emulator::static_shared(&name##_key, sizeof(name##_type)))
#define DYNAMIC_SHARED(name) unsigned char* const name = ::emulator::dynamic_shared()
#endif

// ---- indices

// a / b rounded up, for a ≥ 0 and b > 0.
DEVICE i64 ceil_div(i64 a, i64 b) { return (a + b - 1) / b; }
// This thread among all of a one-dimensional grid, and how many there are: for loops over more than 2³¹ elements.
DEVICE i64 grid_thread() { return (i64)blockIdx.x * blockDim.x + threadIdx.x; }
DEVICE i64 grid_threads() { return (i64)gridDim.x * blockDim.x; }
DEVICE int lane_index() { return threadIdx.x & 31; }
DEVICE int warp_index() { return threadIdx.x >> 5; }

// ---- conversions, all to nearest even

DEVICE float to_f32(float value) { return value; }
DEVICE float to_f32(bf16 value) { return __uint_as_float((u32)value.bits << 16); }
#if ON_DEVICE
DEVICE float to_f32(f16 value) {
    float result;
    asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
    return result;
}
DEVICE bf16 to_bf16(float value) {
    bf16 result;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
    return result;
}
DEVICE f16 to_f16(float value) {
    f16 result;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
    return result;
}
// Two values in one register, `low` in the lower half.
DEVICE u32 pack_bf16(float low, float high) {
    u32 result;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
    return result;
}
DEVICE u32 pack_f16(float low, float high) {
    u32 result;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
    return result;
}
// f32 with 10 bits of mantissa, ties away from zero, as mma_tf32 wants it.
DEVICE u32 to_tf32(float value) {
    u32 result;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(result) : "f"(value));
    return result;
}
// 2^x to about 2 units in the last place; subnormal numbers count as zero.
DEVICE float ex2(float x) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}
#else
DEVICE float to_f32(f16 value) { return ::emulator::bit_cast<_Float16>(value.bits); }
DEVICE bf16 to_bf16(float value) {
    u32 bits = __float_as_uint(value);
    bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    return {u16(nan ? 0x7fffu : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}
DEVICE f16 to_f16(float value) {
    return {u16(std::isnan(value) ? 0x7fffu : ::emulator::bit_cast<u16>(_Float16(value)))};
}
DEVICE u32 pack_bf16(float low, float high) { return to_bf16(low).bits | (u32)to_bf16(high).bits << 16; }
DEVICE u32 pack_f16(float low, float high) { return to_f16(low).bits | (u32)to_f16(high).bits << 16; }
DEVICE u32 to_tf32(float value) {
    u32 bits = __float_as_uint(value);
    if ((bits & 0x7f800000u) == 0x7f800000u) return (bits & 0x007fffffu) ? 0x7fffffffu : bits;
    return (bits + 0x1000u) & 0xffffe000u;
}
DEVICE float ex2(float x) {
    const float least = 1.17549435e-38f;
    float result = std::exp2(std::fabs(x) < least ? 0.0f : x);
    return result < least ? 0.0f : result;
}
#endif

// The same by type, for kernels that are templates over what they store.
template <class T> DEVICE T from_f32(float value);
template <> __device__ __forceinline__ float from_f32<float>(float value) { return value; }
template <> __device__ __forceinline__ bf16 from_f32<bf16>(float value) { return to_bf16(value); }
template <> __device__ __forceinline__ f16 from_f32<f16>(float value) { return to_f16(value); }
template <class T> DEVICE u32 pack(float low, float high);
template <> __device__ __forceinline__ u32 pack<bf16>(float low, float high) { return pack_bf16(low, high); }
template <> __device__ __forceinline__ u32 pack<f16>(float low, float high) { return pack_f16(low, high); }
// The lower and the upper half of a register of two values.
template <class T> DEVICE float unpack_low(u32 pair) { return to_f32(T{(u16)pair}); }
template <class T> DEVICE float unpack_high(u32 pair) { return to_f32(T{(u16)(pair >> 16)}); }

// ---- asynchronous copies from global to shared memory
//
// Copies are made by the thread that issues them, in groups; a wait concerns the thread's own groups only, so that a barrier
// must follow before other threads read what arrived.

// BYTES (4, 8 or 16, both addresses aligned to as many) to shared memory; zeros where not `present`, and then nothing is
// read from `global`.
#if ON_DEVICE
template <int BYTES> DEVICE void cp_async(void* shared, const void* global, bool present) {
    u32 to = (u32)__cvta_generic_to_shared(shared);
    int from = present ? BYTES : 0;
    if (BYTES == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(from) : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(global), "n"(BYTES), "r"(from)
                     : "memory");
}
// 16 bytes that also go into the first-level cache, which the copy above passes by: for what the block soon copies again.
DEVICE void cp_async_cached(void* shared, const void* global, bool present) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;" ::"r"((u32)__cvta_generic_to_shared(shared)), "l"(global),
                 "r"(present ? 16 : 0)
                 : "memory");
}
DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until all but the last KEEP committed groups have arrived.
template <int KEEP> DEVICE void cp_async_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(KEEP) : "memory"); }
#else
template <int BYTES> DEVICE void cp_async(void* shared, const void* global, bool present, AT_CALLER) {
    static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "cp.async copies 4, 8 or 16 bytes");
    ::emulator::Copy copy = {shared, global, BYTES, present ? BYTES : 0u};
    if (!::emulator::defer_copy(copy, site)) ::emulator::make_copy(copy);
}
DEVICE void cp_async_cached(void* shared, const void* global, bool present, AT_CALLER) {
    cp_async<16>(shared, global, present, site);
}
DEVICE void cp_async_commit() { ::emulator::commit_copies(); }
template <int KEEP> DEVICE void cp_async_wait() {
    ::emulator::Copy copy;
    while (::emulator::next_copy(KEEP, &copy)) ::emulator::make_copy(copy);
}
#endif

// ---- tensor cores
//
// ldmatrix reads 8 × 8 tiles of 16-bit elements: lane 8·i + r brings the address of row r (16 bytes, aligned) of tile i.
// Register i of lane l gets elements (l / 4, 2·(l % 4)) and the next of tile i; transposed, (2·(l % 4), l / 4) and the one
// below. Fragments of m16n8k16, with g = l / 4 and t = 2·(l % 4), pairs along k:
//   a (16 × 16): (g, t), (g + 8, t), (g, t + 8), (g + 8, t + 8);  b (16 × 8): (t, g), (t + 8, g);
//   d (16 × 8): (g, t), (g, t + 1), (g + 8, t), (g + 8, t + 1).
// m16n8k8 in TF32, with t = l % 4:
//   a (16 × 8): (g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4);  b (8 × 8): (t, g), (t + 4, g);  d as above.

#if ON_DEVICE
DEVICE void ldmatrix_x1(u32& r, const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
                 : "=r"(r)
                 : "r"((u32)__cvta_generic_to_shared(row))
                 : "memory");
}
DEVICE void ldmatrix_x1_trans(u32& r, const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
                 : "=r"(r)
                 : "r"((u32)__cvta_generic_to_shared(row))
                 : "memory");
}
DEVICE void ldmatrix_x2(u32 (&r)[2], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"((u32)__cvta_generic_to_shared(row))
                 : "memory");
}
DEVICE void ldmatrix_x2_trans(u32 (&r)[2], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"((u32)__cvta_generic_to_shared(row))
                 : "memory");
}
DEVICE void ldmatrix_x4(u32 (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"((u32)__cvta_generic_to_shared(row))
                 : "memory");
}
DEVICE void ldmatrix_x4_trans(u32 (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"((u32)__cvta_generic_to_shared(row))
                 : "memory");
}
// d += a · b for one 16 × 8 tile, products exact, sums in f32.
DEVICE void mma_bf16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
DEVICE void mma_f16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
DEVICE void mma_tf32(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#else
DEVICE void ldmatrix_x1(u32& r, const void* row, AT_CALLER) { ::emulator::ldmatrix(&r, 1, false, row, site); }
DEVICE void ldmatrix_x1_trans(u32& r, const void* row, AT_CALLER) { ::emulator::ldmatrix(&r, 1, true, row, site); }
DEVICE void ldmatrix_x2(u32 (&r)[2], const void* row, AT_CALLER) { ::emulator::ldmatrix(r, 2, false, row, site); }
DEVICE void ldmatrix_x2_trans(u32 (&r)[2], const void* row, AT_CALLER) { ::emulator::ldmatrix(r, 2, true, row, site); }
DEVICE void ldmatrix_x4(u32 (&r)[4], const void* row, AT_CALLER) { ::emulator::ldmatrix(r, 4, false, row, site); }
DEVICE void ldmatrix_x4_trans(u32 (&r)[4], const void* row, AT_CALLER) { ::emulator::ldmatrix(r, 4, true, row, site); }
DEVICE void mma_bf16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, AT_CALLER) {
    u32 b[2] = {b0, b1};
    ::emulator::mma_m16n8k16(d, a, b, ::emulator::Operand::Bf16, site);
}
DEVICE void mma_f16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, AT_CALLER) {
    u32 b[2] = {b0, b1};
    ::emulator::mma_m16n8k16(d, a, b, ::emulator::Operand::F16, site);
}
DEVICE void mma_tf32(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, AT_CALLER) {
    u32 b[2] = {b0, b1};
    ::emulator::mma_m16n8k8_tf32(d, a, b, site);
}
#endif

template <class T> DEVICE void mma(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1);
template <> __device__ __forceinline__ void mma<bf16>(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    mma_bf16(d, a, b0, b1);
}
template <> __device__ __forceinline__ void mma<f16>(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    mma_f16(d, a, b0, b1);
}

// ---- reductions, in an order that only the number of threads decides; every thread gets the result

// Over groups of WIDTH (a power of two up to 32) neighbouring lanes of a full warp.
template <int WIDTH = 32, class T> DEVICE T warp_sum(T value) {
#pragma unroll
    for (int lanes = WIDTH / 2; lanes; lanes /= 2) value += __shfl_xor_sync(0xffffffffu, value, lanes);
    return value;
}
template <int WIDTH = 32> DEVICE float warp_max(float value) {
#pragma unroll
    for (int lanes = WIDTH / 2; lanes; lanes /= 2) value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, lanes));
    return value;
}

// Over a one-dimensional block of THREADS (a multiple of 32), which all have to call it. Barriers stand before the first
// read and after the last, so that two calls may follow each other.
template <int THREADS, class T> DEVICE T block_sum(T value) {
    static_assert(THREADS % 32 == 0, "whole warps");
    SHARED(T, partial, [THREADS / 32]);
    value = warp_sum(value);
    if (lane_index() == 0) partial[warp_index()] = value;
    __syncthreads();
    T sum = partial[0];
#pragma unroll
    for (int warp = 1; warp < THREADS / 32; warp++) sum += partial[warp];
    __syncthreads();
    return sum;
}
template <int THREADS> DEVICE float block_max(float value) {
    static_assert(THREADS % 32 == 0, "whole warps");
    SHARED(float, partial, [THREADS / 32]);
    value = warp_max(value);
    if (lane_index() == 0) partial[warp_index()] = value;
    __syncthreads();
    float most = partial[0];
#pragma unroll
    for (int warp = 1; warp < THREADS / 32; warp++) most = fmaxf(most, partial[warp]);
    __syncthreads();
    return most;
}
