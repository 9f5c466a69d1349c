// Device memory: poisoned, between unmapped pages, counted against what the device has.
#pragma once
#include <cstddef>
#include <string>

namespace emulator::memory {

// Null when the device has no more. Aligned to 16 bytes and ends where the allocation ends, to within 15 bytes.
void* allocate(size_t bytes);
// False when `address` was never allocated or is free already; `beside` tells of writes just before or after it.
bool release(void* address, bool* beside);
size_t used();
// Whether [address, address + bytes) lies in one allocation.
bool contains(const void* address, size_t bytes);
// Where an address lies in words, for messages.
std::string describe(const void* address);

}  // namespace emulator::memory
