// What the environment says about a run.
#pragma once
#include <cstddef>
#include <cstdint>

namespace emulator {

enum class Schedule { Fifo, Reverse, Random, Priority };
enum class Async { Eager, Lazy, Random };

struct Settings {
    Schedule schedule;
    Async async;
    uint64_t seed;
    unsigned workers;
    size_t memory_bytes;
};
// Read once; a value that means nothing ends the process with a message.
const Settings& settings();

// SplitMix64: every block draws from its own stream, so that results do not depend on who runs it.
struct Random {
    uint64_t state;
    uint32_t next() {
        uint64_t z = state += 0x9e3779b97f4a7c15ull;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
        z = (z ^ z >> 27) * 0x94d049bb133111ebull;
        return uint32_t(z >> 32);
    }
    uint32_t below(uint32_t bound) { return uint32_t(uint64_t(next()) * bound >> 32); }
};

}  // namespace emulator
