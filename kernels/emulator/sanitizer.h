// What the sanitizers have to be told about fibers and memory. Each function does nothing in the builds without them.
//
// The emulator's own files are never compiled with -fsanitize=thread: their accesses are not the kernel's.
#pragma once
#include <cstddef>

#if defined(EMULATOR_TSAN)
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
}
#endif
#if defined(EMULATOR_ASAN)
extern "C" {
void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t size);
void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, size_t* size);
void __asan_poison_memory_region(const volatile void* address, size_t size);
void __asan_unpoison_memory_region(const volatile void* address, size_t size);
}
#endif

namespace emulator::sanitizer {

#if defined(EMULATOR_TSAN)
constexpr bool threads = true, addresses = false;
inline void* this_fiber() { return __tsan_get_current_fiber(); }
inline void* new_fiber() { return __tsan_create_fiber(0); }
// Without an order between the two: only barriers order the threads of a kernel.
inline void enter(void* fiber) { __tsan_switch_to_fiber(fiber, 1); }
inline void acquire(void* address) { __tsan_acquire(address); }
inline void release(void* address) { __tsan_release(address); }
#else
inline void* this_fiber() { return nullptr; }
inline void* new_fiber() { return nullptr; }
inline void enter(void*) {}
inline void acquire(void*) {}
inline void release(void*) {}
#endif

#if defined(EMULATOR_ASAN)
constexpr bool threads = false, addresses = true;
inline void leave_stack(void** fake, const void* bottom, size_t size) { __sanitizer_start_switch_fiber(fake, bottom, size); }
inline void arrive_on_stack(void* fake, const void** bottom, size_t* size) { __sanitizer_finish_switch_fiber(fake, bottom, size); }
inline void forbid(const void* address, size_t size) { __asan_poison_memory_region(address, size); }
inline void allow(const void* address, size_t size) { __asan_unpoison_memory_region(address, size); }
#else
inline void leave_stack(void**, const void*, size_t) {}
inline void arrive_on_stack(void*, const void**, size_t*) {}
inline void forbid(const void*, size_t) {}
inline void allow(const void*, size_t) {}
#endif
#if !defined(EMULATOR_TSAN) && !defined(EMULATOR_ASAN)
constexpr bool threads = false, addresses = false;
#endif

// Races between blocks show only where one thread of the host runs them all.
constexpr bool one_worker = threads;

}  // namespace emulator::sanitizer
