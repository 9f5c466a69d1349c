// What a `.cu` file sees when it is compiled as C++ for the CPU: CUDA's keywords and built-in functions.
//
// A thread of a kernel is a fiber. Whatever orders threads on a GPU (barriers, shuffles, votes, ldmatrix, mma) is a
// collective here: fibers arrive, the last one does the work for all. Between two collectives a fiber runs alone, so only
// the schedule, the moment at which asynchronous copies land, and the sanitizers can show what a kernel fails to order.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#define __global__
#define __device__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __restrict__ __restrict
// Shared memory goes through SHARED and DYNAMIC_SHARED of device.cuh: it is poisoned and guarded for each block.
#define __shared__ use_SHARED_or_DYNAMIC_SHARED_for_shared_memory

struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x, y, z; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }

namespace emulator {

// A line of a kernel, for messages and to tell two calls of one collective apart.
struct Site {
    const char* file;
    int line;
    static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
};

// The part of a fiber that kernels read.
struct Thread {
    uint3 thread_index, block_index;
    dim3 block_size, grid_size;
    unsigned lane, warp;
};
extern thread_local Thread* current __attribute__((tls_model("initial-exec")));

// Ends the launch with an error that names the kernel, the block and the thread.
[[noreturn]] void fail(Site site, const char* format, ...) __attribute__((format(printf, 2, 3)));

enum class Vote { Any, All, Count };
enum class Shuffle { Index, Xor, Up, Down };
enum class Operand { Bf16, F16 };

void fence();
void sync_block(Site site);
int vote_block(int predicate, Vote vote, Site site);
void sync_warp(unsigned mask, Site site);
uint64_t shuffle(unsigned mask, uint64_t value, Shuffle kind, int argument, int width, Site site);
unsigned ballot(unsigned mask, int predicate, Site site);

// `tiles` of 8 × 8 16-bit elements; lane 8·i + r brings row r of tile i, the other lanes' rows do not count.
struct TileRow {
    uint32_t words[4];
};
void exchange_rows(uint32_t* out, int tiles, bool transposed, const TileRow& row, Site site);
// Fails unless `row` is 16 aligned bytes of the block's shared memory.
void check_row(const void* row, Site site);
// d += a · b, fragments laid out over the lanes as PTX says.
void mma_m16n8k16(float* d, const uint32_t* a, const uint32_t* b, Operand operand, Site site);
void mma_m16n8k8_tf32(float* d, const uint32_t* a, const uint32_t* b, Site site);

// An asynchronous copy of `bytes` to shared memory, of which the first `present` come from global memory.
struct Copy {
    void* shared;
    const void* global;
    uint32_t bytes, present;
};
// False where the copy is to be made at once, true where it was kept for a wait.
bool defer_copy(const Copy& copy, Site site);
void commit_copies();
// The next copy that a wait for all but the last `keep` groups has to make; false when there is none.
bool next_copy(int keep, Copy* copy);

// Written out in words, in the kernel's own translation unit, so that the sanitizers see the accesses as the thread's.
inline void make_copy(const Copy& copy) {
    auto to = static_cast<volatile uint32_t*>(copy.shared);
    auto from = static_cast<const volatile uint32_t*>(copy.global);
    for (uint32_t word = 0; word < copy.bytes / 4; word++) to[word] = 4 * word < copy.present ? from[word] : 0;
}

// The row is read in the kernel's own translation unit for the same reason.
inline void ldmatrix(uint32_t* out, int tiles, bool transposed, const void* address, Site site) {
    TileRow row = {};
    if (current->lane < 8 * unsigned(tiles)) {
        check_row(address, site);
        for (int word = 0; word < 4; word++) row.words[word] = static_cast<const volatile uint32_t*>(address)[word];
    }
    exchange_rows(out, tiles, transposed, row, site);
}

unsigned char* dynamic_shared();
// The block's variable that belongs to `key`, an address that stands for the place of its declaration.
void* static_shared(const void* key, size_t bytes);

// The kernels, registered by the file that xtask writes beside each `.cu`.
struct Kernel {
    Kernel(const char* name, void (*call)(const void*), size_t argument_bytes, unsigned most_threads);
    const char* name;
    void (*call)(const void* argument);
    size_t argument_bytes;
    unsigned most_threads;
    const Kernel* next;
};
template <auto function> struct Entry;
template <class Args, void (*function)(Args)> struct Entry<function> {
    static_assert(std::is_trivially_copyable_v<Args>, "a kernel's argument is a plain struct");
    static constexpr size_t bytes = sizeof(Args);
    static void call(const void* argument) { function(*static_cast<const Args*>(argument)); }
};

}  // namespace emulator

#define threadIdx (::emulator::current->thread_index)
#define blockIdx (::emulator::current->block_index)
#define blockDim (::emulator::current->block_size)
#define gridDim (::emulator::current->grid_size)

#define AT_CALLER ::emulator::Site site = ::emulator::Site::here()
inline void __syncthreads(AT_CALLER) { ::emulator::sync_block(site); }
inline int __syncthreads_or(int p, AT_CALLER) { return ::emulator::vote_block(p, ::emulator::Vote::Any, site); }
inline int __syncthreads_and(int p, AT_CALLER) { return ::emulator::vote_block(p, ::emulator::Vote::All, site); }
inline int __syncthreads_count(int p, AT_CALLER) { return ::emulator::vote_block(p, ::emulator::Vote::Count, site); }
inline void __syncwarp(unsigned mask = 0xffffffffu, AT_CALLER) { ::emulator::sync_warp(mask, site); }
inline unsigned __ballot_sync(unsigned mask, int p, AT_CALLER) { return ::emulator::ballot(mask, p, site); }
inline int __any_sync(unsigned mask, int p, AT_CALLER) { return ::emulator::ballot(mask, p, site) != 0; }
inline int __all_sync(unsigned mask, int p, AT_CALLER) { return ::emulator::ballot(mask, !p, site) == 0; }
inline void __threadfence() { ::emulator::fence(); }
inline void __threadfence_block() { ::emulator::fence(); }

namespace emulator {
template <class T> T shuffle_value(unsigned mask, T value, Shuffle kind, int argument, int width, Site site) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "a shuffle moves 4 or 8 bytes");
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof(T));
    bits = shuffle(mask, bits, kind, argument, width, site);
    std::memcpy(&value, &bits, sizeof(T));
    return value;
}
template <class To, class From> To bit_cast(From from) {
    static_assert(sizeof(To) == sizeof(From), "bit casts keep the size");
    To to;
    std::memcpy(&to, &from, sizeof(To));
    return to;
}
}  // namespace emulator

template <class T> T __shfl_sync(unsigned mask, T value, int lane, int width = 32, AT_CALLER) {
    return ::emulator::shuffle_value(mask, value, ::emulator::Shuffle::Index, lane, width, site);
}
template <class T> T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, AT_CALLER) {
    return ::emulator::shuffle_value(mask, value, ::emulator::Shuffle::Xor, lanes, width, site);
}
template <class T> T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32, AT_CALLER) {
    return ::emulator::shuffle_value(mask, value, ::emulator::Shuffle::Up, int(by), width, site);
}
template <class T> T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32, AT_CALLER) {
    return ::emulator::shuffle_value(mask, value, ::emulator::Shuffle::Down, int(by), width, site);
}

// Integers only: floating-point atomics would make a sum depend on the order of the threads. As on a GPU, they order nothing else.
template <class T> T atomicAdd(T* to, T value) {
    static_assert(std::is_integral_v<T>, "atomics are for integers");
    return __atomic_fetch_add(to, value, __ATOMIC_RELAXED);
}
template <class T> T atomicOr(T* to, T value) {
    static_assert(std::is_integral_v<T>, "atomics are for integers");
    return __atomic_fetch_or(to, value, __ATOMIC_RELAXED);
}
template <class T> T atomicExch(T* to, T value) { return __atomic_exchange_n(to, value, __ATOMIC_RELAXED); }
template <class T> T atomicCAS(T* to, T expected, T value) {
    __atomic_compare_exchange_n(to, &expected, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    return expected;
}
template <class T> T atomicMax(T* to, T value) {
    static_assert(std::is_integral_v<T>, "atomics are for integers");
    T seen = __atomic_load_n(to, __ATOMIC_RELAXED);
    while (seen < value && !__atomic_compare_exchange_n(to, &seen, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
    return seen;
}

template <class T> T __ldg(const T* from) { return *from; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __int_as_float(int bits) { return ::emulator::bit_cast<float>(bits); }
inline int __float_as_int(float value) { return ::emulator::bit_cast<int>(value); }
inline float __uint_as_float(unsigned bits) { return ::emulator::bit_cast<float>(bits); }
inline unsigned __float_as_uint(float value) { return ::emulator::bit_cast<unsigned>(value); }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __clz(int bits) { return bits ? __builtin_clz(unsigned(bits)) : 32; }
// CUDA mixes signed and unsigned, narrow and wide, as C's usual conversions do.
template <class A, class B> std::common_type_t<A, B> min(A a, B b) {
    using T = std::common_type_t<A, B>;
    return T(b) < T(a) ? T(b) : T(a);
}
template <class A, class B> std::common_type_t<A, B> max(A a, B b) {
    using T = std::common_type_t<A, B>;
    return T(a) < T(b) ? T(b) : T(a);
}
