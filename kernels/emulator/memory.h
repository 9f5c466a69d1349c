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
// Addresses with nothing behind them; null when the system refuses.
void* reserve(size_t bytes);
// A piece of memory to be put behind such addresses, by its number; 0 when the device has no more.
unsigned long long create(size_t bytes);
// Each false when it does not fit: a piece goes as a whole behind reserved addresses that nothing is behind, may be used once
// access is set, is taken away from where it was put, and then goes back to the device.
bool map(void* address, size_t bytes, unsigned long long piece);
bool give_access(void* address, size_t bytes);
bool unmap(void* address, size_t bytes);
bool destroy(unsigned long long piece);
// Whether [address, address + bytes) lies in one allocation, or in pieces that may be used.
bool contains(const void* address, size_t bytes);
// Where an address lies in words, for messages.
std::string describe(const void* address);

}  // namespace emulator::memory
