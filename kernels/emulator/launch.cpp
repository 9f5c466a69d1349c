#include "launch.h"

#include <signal.h>
#include <ucontext.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <numeric>
#include <thread>
#include <vector>

#include "memory.h"
#include "sanitizer.h"

namespace emulator {
namespace {

const Kernel* all_kernels;

// The order of the blocks: as they come, backwards, or scattered (a step that shares no factor with their number).
struct BlockOrder {
    BlockOrder(uint64_t blocks, uint64_t launch) : blocks(blocks), step(1), start(0) {
        if (settings().schedule == Schedule::Fifo) return;
        if (settings().schedule == Schedule::Reverse) {
            step = blocks - 1;
            start = blocks - 1;
            return;
        }
        Random random{settings().seed + launch};
        start = random.next() % blocks;
        do step = random.next() % blocks;
        while (std::gcd(step, blocks) != 1);
    }
    uint64_t operator[](uint64_t turn) const { return uint64_t((unsigned __int128)(turn)*step % blocks + start) % blocks; }
    uint64_t blocks, step, start;
};

// ---- accesses to unmapped pages

struct sigaction previous_action;
thread_local void* bad_address;

void report_bad_access() {
    std::string where = memory::describe(bad_address);
    fail(Site(), "illegal access to %p, %s", bad_address, where.c_str());
}

// Makes the fiber that did it go on in report_bad_access, with its stack emptied: nobody returns to what it was doing.
void on_bad_access(int, siginfo_t* info, void* raw) {
    if (!current) {
        sigaction(SIGSEGV, &previous_action, nullptr);
        return;
    }
    bad_address = info->si_addr;
    auto& registers = static_cast<ucontext_t*>(raw)->uc_mcontext.gregs;
    const Stack stack = block->running().context.stack;
    uintptr_t top = reinterpret_cast<uintptr_t>(stack.bottom + stack.size);
    registers[REG_RSP] = greg_t(top - 16 - sizeof(void*));
    registers[REG_RIP] = greg_t(reinterpret_cast<uintptr_t>(&report_bad_access));
}

// The signal needs a stack of its own: the fiber's may be what overflowed.
void catch_bad_accesses() {
    static thread_local std::unique_ptr<char[]> stack;
    if (sanitizer::addresses || sanitizer::threads || stack) return;
    const size_t bytes = 64 << 10;
    stack = std::make_unique<char[]>(bytes);
    stack_t alternate = {};
    alternate.ss_sp = stack.get();
    alternate.ss_size = bytes;
    sigaltstack(&alternate, nullptr);
    static std::once_flag once;
    std::call_once(once, [] {
        struct sigaction action = {};
        action.sa_sigaction = on_bad_access;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK;
        sigaction(SIGSEGV, &action, &previous_action);
    });
}

// ---- the blocks of a grid, shared out

// Threads of the host that share the blocks of one launch after the other. They live as long as the process.
class Workers {
  public:
    std::string run(const Launch& launch);

  private:
    void help(unsigned worker);
    void work(Block& block);

    std::mutex access;
    std::condition_variable changed;
    std::vector<std::unique_ptr<Block>> blocks;
    std::vector<std::thread> helpers;
    unsigned generation = 0, busy = 0;

    const Launch* launch = nullptr;
    const BlockOrder* order = nullptr;
    std::atomic<uint64_t> next_turn{0};
    std::atomic<bool> failed{false};
    std::string error;
};

std::string Workers::run(const Launch& which) {
    BlockOrder which_order(which.blocks(), which.number);
    const uint64_t worth_sharing = 512;  // threads, below which waking a helper costs more than it saves
    bool shared = settings().workers > 1 && which.blocks() > 1 && which.blocks() * which.threads() >= worth_sharing;
    launch = &which;
    order = &which_order;
    next_turn = 0;
    failed = false;
    error.clear();
    if (blocks.empty())
        for (unsigned worker = 0; worker < settings().workers; worker++) blocks.push_back(std::make_unique<Block>());
    if (shared) {
        std::lock_guard lock(access);
        while (helpers.size() + 1 < settings().workers) {
            unsigned worker = unsigned(helpers.size()) + 1;
            helpers.emplace_back([this, worker] { help(worker); });
        }
        generation++;
        busy = unsigned(helpers.size());
        changed.notify_all();
    }
    work(*blocks[0]);
    if (shared) {
        std::unique_lock lock(access);
        changed.wait(lock, [this] { return busy == 0; });
    }
    return error;
}

void Workers::help(unsigned worker) {
    unsigned seen = 0;
    for (;;) {
        {
            std::unique_lock lock(access);
            changed.wait(lock, [&] { return generation != seen; });
            seen = generation;
        }
        work(*blocks[worker]);
        std::lock_guard lock(access);
        busy--;
        changed.notify_all();
    }
}

void Workers::work(Block& block) {
    catch_bad_accesses();
    while (!failed) {
        uint64_t turn = next_turn++;
        if (turn >= launch->blocks()) return;
        if (block.run(*launch, (*order)[turn])) continue;
        std::lock_guard lock(access);
        if (!failed.exchange(true)) error = block.error;
    }
}

}  // namespace

Kernel::Kernel(const char* name, void (*call)(const void*), size_t argument_bytes, unsigned most_threads)
    : name(name), call(call), argument_bytes(argument_bytes), most_threads(most_threads), next(all_kernels) {
    all_kernels = this;
}

const Kernel* find_kernel(const char* name) {
    for (const Kernel* kernel = all_kernels; kernel; kernel = kernel->next)
        if (!strcmp(kernel->name, name)) return kernel;
    return nullptr;
}

std::string run(Launch launch) {
    static std::mutex one_at_a_time;
    std::lock_guard lock(one_at_a_time);
    static uint64_t launches;
    static Workers& workers = *new Workers;  // never destroyed: its threads wait for the next launch until the process ends
    launch.number = launches++;
    begin_launch();
    return workers.run(launch);
}

}  // namespace emulator
