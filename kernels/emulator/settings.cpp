#include "settings.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "sanitizer.h"

namespace emulator {
namespace {

[[noreturn]] void reject(const char* variable, const char* value, const char* expected) {
    fprintf(stderr, "emulator: %s is \"%s\", expected %s\n", variable, value, expected);
    exit(2);
}

template <size_t count> unsigned choice(const char* variable, const char* const (&names)[count], const char* expected) {
    const char* value = getenv(variable);
    if (!value) return 0;
    for (unsigned i = 0; i < count; i++)
        if (!strcmp(value, names[i])) return i;
    reject(variable, value, expected);
}

uint64_t number(const char* variable, uint64_t otherwise) {
    const char* value = getenv(variable);
    if (!value) return otherwise;
    char* end;
    uint64_t parsed = strtoull(value, &end, 10);
    if (end == value || *end) reject(variable, value, "a whole number");
    return parsed;
}

Settings read() {
    const char* const schedules[] = {"fifo", "reverse", "random", "priority"};
    const char* const asyncs[] = {"eager", "lazy", "random"};
    unsigned cores = std::thread::hardware_concurrency();
    Settings read;
    read.schedule = Schedule(choice("EMULATOR_SCHEDULE", schedules, "fifo, reverse, random or priority"));
    read.async = Async(choice("EMULATOR_ASYNC", asyncs, "eager, lazy or random"));
    read.seed = number("EMULATOR_SEED", 1);
    read.workers = unsigned(number("EMULATOR_WORKERS", cores ? cores : 1));
    read.memory_bytes = size_t(number("EMULATOR_MEMORY_MB", 8192)) << 20;
    if (sanitizer::one_worker || read.workers == 0) read.workers = 1;
    return read;
}

}  // namespace

const Settings& settings() {
    static const Settings once = read();
    return once;
}

}  // namespace emulator
