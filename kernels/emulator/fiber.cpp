#include "fiber.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>

#if !defined(__x86_64__)
#error "the switch between fibers is written for x86-64"
#endif

asm(R"(
.text
.hidden emulator_swap
.globl emulator_swap
.type emulator_swap, @function
emulator_swap:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emulator_swap, .-emulator_swap
)");

namespace emulator {

Stack new_stack() {
    const size_t page = 4096, size = sanitizer::threads || sanitizer::addresses ? 256 << 10 : 64 << 10;
    void* mapped = mmap(nullptr, page + size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) {
        perror("emulator: no memory for a stack");
        abort();
    }
    mprotect(mapped, page, PROT_NONE);
    return {static_cast<char*>(mapped) + page, size};
}

void prepare(Context& context, void (*entry)()) {
    sanitizer::allow(context.stack.bottom, context.stack.size);
    void** top = reinterpret_cast<void**>(context.stack.bottom + context.stack.size);
    const int saved_registers = 6;
    *--top = nullptr;  // where a return address would be: keeps the stack aligned as at a call
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < saved_registers; i++) *--top = nullptr;
    context.stack_pointer = top;
    context.fake_stack = nullptr;
}

void arrived(Context& from) {
    const void* bottom = nullptr;
    size_t size = 0;
    sanitizer::arrive_on_stack(nullptr, &bottom, &size);
    // The host's own stack is known only now, to ASan.
    if (!from.stack.bottom) from.stack = {static_cast<char*>(const_cast<void*>(bottom)), size};
}

}  // namespace emulator
