// Stacks and the switch between them.
#pragma once
#include <cstddef>

#include "sanitizer.h"

// Saves the registers that a called function has to keep and the stack pointer, goes on from `load`.
extern "C" void emulator_swap(void** save, void* load);

namespace emulator {

struct Stack {
    char* bottom;
    size_t size;
};
// A fresh stack with a guard page below it.
Stack new_stack();

// What has to be kept of a fiber, or of the host's thread that runs the fibers, while another one runs.
struct Context {
    void* stack_pointer = nullptr;
    Stack stack = {nullptr, 0};
    void* fake_stack = nullptr;  // ASan's
    void* tsan_fiber = nullptr;
};

// Makes `context` start `entry` on its stack when it is first switched to. `entry` begins with `arrived`, never returns.
void prepare(Context& context, void (*entry)());
// `last`: `from` will not be switched to again before it is prepared anew.
inline void switch_context(Context& from, Context& to, bool last) {
    sanitizer::enter(to.tsan_fiber);
    sanitizer::leave_stack(last ? nullptr : &from.fake_stack, to.stack.bottom, to.stack.size);
    emulator_swap(&from.stack_pointer, to.stack_pointer);
    sanitizer::arrive_on_stack(from.fake_stack, nullptr, nullptr);
}
// To be called first on a fresh fiber: `from` is the context that it was switched to from.
void arrived(Context& from);

}  // namespace emulator
