// One block of threads: who may run, who waits, and for what.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "emulator.h"
#include "fiber.h"
#include "settings.h"

namespace emulator {

constexpr unsigned LANES = 32, MOST_WARPS = 32, MOST_THREADS = LANES * MOST_WARPS;
constexpr size_t MOST_SHARED = 227 << 10;

struct Launch {
    const Kernel* kernel;
    const void* argument;
    dim3 grid, block;
    size_t shared_bytes;
    size_t most_shared;  // with the kernel's own arrays
    uint64_t number;  // of this process, so that each launch has its own random numbers
    unsigned threads() const { return block.x * block.y * block.z; }
    uint64_t blocks() const { return uint64_t(grid.x) * grid.y * grid.z; }
};

struct PendingCopy {
    Copy copy;
    unsigned group;
};

struct Fiber : Thread {
    Context context;
    unsigned index;
    bool started, done;
    const char* waits_for;
    Site site;
    // cp.async: what was issued and has not landed yet, in order, from `first` on.
    unsigned group, first_pending, end_pending;
    PendingCopy* pending;
};

// A collective of some lanes of a warp on its way: the lanes that came lie in wait with their operands.
struct Gathering {
    uint32_t mask, arrived;
    const char* what;
    Site site;
    void* operands[LANES];
};

struct Warp {
    uint32_t lanes, ready, exited;
    uint32_t priority;
    char order;  // what TSan knows __syncwarp by
    Gathering gatherings[4];
};

struct Barrier {
    unsigned arrived;
    Site site;
    uint32_t waiting[MOST_WARPS];
    unsigned generation;
    int votes[2];       // of two generations in turn: late readers still look at the last one
    char order[2];      // what TSan knows the barrier by
};

struct StaticShared {
    const void* key;
    void* address;
    size_t bytes;
};

// Runs blocks one after the other on one thread of the host.
class Block {
  public:
    Block();
    // Runs block `id` of the launch; false after a failure, which `error` then describes.
    bool run(const Launch& launch, uint64_t id);
    std::string error;

    void sync(Site site, int* vote, Vote kind);
    using Collective = void (*)(void* const* operands, uint32_t mask);
    void gather(uint32_t mask, const char* what, void* operand, Collective act, Site site);
    void* static_shared(const void* key, size_t bytes);
    unsigned char* dynamic_shared() { return shared; }
    bool in_shared(const void* address, size_t bytes) const;
    bool warp_is_full() { return warps[running().warp].lanes == ~0u; }
    char* warp_order() { return &warps[running().warp].order; }
    bool coin() { return random.next() & 1; }
    // The running fiber gives up: the launch ends with `message`.
    [[noreturn]] void abandon(const std::string& message);
    Fiber& running() { return static_cast<Fiber&>(*current); }

  private:
    void begin_threads(const Launch& launch, uint64_t id);
    void begin_shared();
    void check_shared();
    void map_shared();
    static void entry();
    void run_fibers();
    void finish(Fiber& fiber);
    Fiber* pick();
    void choose(unsigned* warp, unsigned* lane);
    void resume(Context& from, Fiber* next, bool last);
    void wait(const char* what, Site site);
    void step_back(const char* what, Site site);
    void enter_kernel();
    void open_barrier();
    void make_ready(unsigned warp, uint32_t lanes);
    [[noreturn]] void deadlock();
    Fiber& fiber(unsigned index) {
        size_t place = index + rotation;
        return fibers[place < fibers.size() ? place : place - fibers.size()];
    }

    const Launch* launch = nullptr;
    Context host;
    std::vector<Fiber> fibers;
    std::vector<Stack> free_stacks;
    unsigned rotation = 0;
    Warp warps[MOST_WARPS];
    uint32_t ready_warps = 0;
    unsigned current_warp = 0, live_threads = 0;
    Barrier barrier;
    Random random{0};
    bool failed = false;
    Context* came_from = nullptr;

    // Declared arrays from the start, each with a guard behind it; what the launch asked for ends at an unmapped page.
    unsigned char* region = nullptr;
    unsigned char* shared = nullptr;
    std::vector<StaticShared> statics;
    unsigned char* statics_end = nullptr;
};

// To be called before the blocks of a launch run: what earlier launches did comes before.
void begin_launch();

// The block that this thread of the host runs.
extern thread_local Block* block __attribute__((tls_model("initial-exec")));

}  // namespace emulator
