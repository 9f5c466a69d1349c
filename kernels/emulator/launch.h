// Runs a grid: its blocks, over the threads of the host.
#pragma once
#include <string>

#include "block.h"

namespace emulator {

const Kernel* find_kernel(const char* name);
// Empty when all went well, else what went wrong.
std::string run(Launch launch);

}  // namespace emulator
