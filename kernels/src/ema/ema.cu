// Exponential moving average, in place: teacher = keep · teacher + take · student.
//
// Arrays of n elements, f32, bf16 or f16, computed in f32 and rounded once. Threads walk in strides of the grid, 16 bytes at a
// time where both arrays are aligned: any one-dimensional launch of up to THREADS threads a block will do, and none changes a
// bit. Moves three elements per element; overwrites the teacher.
#include "../../cuda/elements.cuh"

constexpr int THREADS = 256;

struct EmaArgs {
    void* teacher;
    const void* student;
    i64 n;
    float keep, take;
};

template <class T> DEVICE void update(const EmaArgs& args) {
    const float keep = args.keep, take = args.take;
    auto teacher = static_cast<T*>(args.teacher);
    zip(teacher, teacher, static_cast<const T*>(args.student), args.n,
        [=](float teacher, float student) { return keep * teacher + take * student; });
}

extern "C" __global__ void __launch_bounds__(THREADS) ema_update_f32(const EmaArgs args) { update<float>(args); }
extern "C" __global__ void __launch_bounds__(THREADS) ema_update_bf16(const EmaArgs args) { update<bf16>(args); }
extern "C" __global__ void __launch_bounds__(THREADS) ema_update_f16(const EmaArgs args) { update<f16>(args); }
