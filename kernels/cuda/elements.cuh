// Neighbouring elements moved together, and loops over whole arrays of f32, bf16 or f16 that are computed in f32.
#pragma once
#include "device.cuh"

// Elements of 16 bytes, the most that a thread moves at once.
template <class T> constexpr int WIDE = 16 / sizeof(T);

// V neighbouring elements: WIDE of them, which must be aligned to 16 bytes, in one access; any other number one by one.
template <class T, int V> DEVICE void load(float (&v)[V], const T* from) {
    if constexpr (V == WIDE<T>) {
        const uint4 four = *reinterpret_cast<const uint4*>(from);
        const u32 words[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if constexpr (V == 4) {
                v[i] = __uint_as_float(words[i]);
            } else {
                v[2 * i] = unpack_low<T>(words[i]);
                v[2 * i + 1] = unpack_high<T>(words[i]);
            }
        }
    } else {
#pragma unroll
        for (int i = 0; i < V; i++) v[i] = to_f32(from[i]);
    }
}

template <class T, int V> DEVICE void store(T* to, const float (&v)[V]) {
    if constexpr (V == WIDE<T>) {
        u32 words[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if constexpr (V == 4)
                words[i] = __float_as_uint(v[i]);
            else
                words[i] = pack<T>(v[2 * i], v[2 * i + 1]);
        }
        *reinterpret_cast<uint4*>(to) = make_uint4(words[0], words[1], words[2], words[3]);
    } else {
#pragma unroll
        for (int i = 0; i < V; i++) to[i] = from_f32<T>(v[i]);
    }
}

DEVICE bool aligned(const void* address) { return (reinterpret_cast<u64>(address) & 15) == 0; }

// out[i] = f(a[i]) for i < n, by the threads of a one-dimensional grid; out may be a. Whole 16 bytes where all is aligned.
template <class T, class F> DEVICE void map(T* out, const T* a, i64 n, F f) {
    constexpr int V = WIDE<T>;
    const i64 whole = aligned(out) && aligned(a) ? n / V : 0;
    for (i64 i = grid_thread(); i < whole; i += grid_threads()) {
        float v[V];
        load(v, a + i * V);
#pragma unroll
        for (int k = 0; k < V; k++) v[k] = f(v[k]);
        store(out + i * V, v);
    }
    for (i64 i = whole * V + grid_thread(); i < n; i += grid_threads()) out[i] = from_f32<T>(f(to_f32(a[i])));
}

// out[i] = f(a[i], b[i]), as `map`; out may be a or b.
template <class T, class F> DEVICE void zip(T* out, const T* a, const T* b, i64 n, F f) {
    constexpr int V = WIDE<T>;
    const i64 whole = aligned(out) && aligned(a) && aligned(b) ? n / V : 0;
    for (i64 i = grid_thread(); i < whole; i += grid_threads()) {
        float v[V], w[V];
        load(v, a + i * V);
        load(w, b + i * V);
#pragma unroll
        for (int k = 0; k < V; k++) v[k] = f(v[k], w[k]);
        store(out + i * V, v);
    }
    for (i64 i = whole * V + grid_thread(); i < n; i += grid_threads())
        out[i] = from_f32<T>(f(to_f32(a[i]), to_f32(b[i])));
}
