#include "memory.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

#include "sanitizer.h"
#include "settings.h"

namespace emulator::memory {
namespace {

constexpr size_t PAGE = 4096, ALIGNMENT = 16;
constexpr int POISON = 0xff;

struct Allocation {
    size_t bytes;
    char* mapped;  // first page, unmapped to the program
    size_t mapped_bytes;
    char* body() const { return mapped + PAGE; }
    char* body_end() const { return mapped + mapped_bytes - PAGE; }
};

std::mutex access;
std::map<char*, Allocation> allocations;
size_t total;

// Memory that is put behind reserved addresses.
struct Mapped {
    size_t bytes;
    unsigned long long piece;
    bool accessible;
};
std::map<char*, size_t> spaces;
std::map<unsigned long long, size_t> pieces;
std::map<char*, Mapped> mapped;
unsigned long long pieces_made;

bool is_reserved(const char* from, size_t bytes) {
    auto after = spaces.upper_bound(const_cast<char*>(from));
    if (after == spaces.begin()) return false;
    auto& [start, size] = *std::prev(after);
    return from + bytes <= start + size;
}

bool is_free(char* from, size_t bytes) {
    auto next = mapped.lower_bound(from);
    if (next != mapped.end() && next->first < from + bytes) return false;
    return next == mapped.begin() || std::prev(next)->first + std::prev(next)->second.bytes <= from;
}

bool is_accessible(char* from, const char* to) {
    auto at = mapped.upper_bound(from);
    if (at == mapped.begin()) return false;
    for (--at; at != mapped.end() && at->first <= from && at->second.accessible; ++at) {
        from = at->first + at->second.bytes;
        if (from >= to) return true;
    }
    return false;
}

// The sanitizer's own heap surrounds every allocation with forbidden bytes.
bool take_from_heap(size_t bytes, char** address) {
    void* taken;
    if (posix_memalign(&taken, 256, bytes)) return false;
    *address = static_cast<char*>(taken);
    return true;
}

bool take_pages(Allocation& allocation, char** address) {
    size_t body = (allocation.bytes + PAGE - 1) / PAGE * PAGE;
    allocation.mapped_bytes = body + 2 * PAGE;
    void* mapped = mmap(nullptr, allocation.mapped_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) return false;
    allocation.mapped = static_cast<char*>(mapped);
    mprotect(allocation.body(), body, PROT_READ | PROT_WRITE);
    size_t rounded = (allocation.bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    *address = allocation.body_end() - rounded;
    return true;
}

bool touched(const char* from, const char* to) {
    while (from < to && *from == char(POISON)) from++;
    return from < to;
}

}  // namespace

void* allocate(size_t bytes) {
    std::lock_guard lock(access);
    if (bytes > settings().memory_bytes - total) return nullptr;
    Allocation allocation = {bytes ? bytes : 1, nullptr, 0};
    char* address;
    if (sanitizer::addresses) {
        if (!take_from_heap(allocation.bytes, &address)) return nullptr;
        memset(address, POISON, allocation.bytes);
    } else {
        if (!take_pages(allocation, &address)) return nullptr;
        memset(allocation.body(), POISON, size_t(allocation.body_end() - allocation.body()));
    }
    allocations[address] = allocation;
    total += allocation.bytes;
    return address;
}

bool release(void* address, bool* beside) {
    std::lock_guard lock(access);
    auto found = allocations.find(static_cast<char*>(address));
    if (found == allocations.end()) return false;
    const Allocation allocation = found->second;
    *beside = false;
    if (sanitizer::addresses) {
        free(address);
    } else {
        char* start = found->first;
        *beside = touched(allocation.body(), start) || touched(start + allocation.bytes, allocation.body_end());
        munmap(allocation.mapped, allocation.mapped_bytes);
    }
    total -= allocation.bytes;
    allocations.erase(found);
    return true;
}

void* reserve(size_t bytes) {
    std::lock_guard lock(access);
    void* space = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (space == MAP_FAILED) return nullptr;
    spaces[static_cast<char*>(space)] = bytes;
    return space;
}

unsigned long long create(size_t bytes) {
    std::lock_guard lock(access);
    if (bytes > settings().memory_bytes - total) return 0;
    total += bytes;
    pieces[++pieces_made] = bytes;
    return pieces_made;
}

bool map(void* address, size_t bytes, unsigned long long piece) {
    std::lock_guard lock(access);
    auto at = static_cast<char*>(address);
    auto found = pieces.find(piece);
    if (found == pieces.end() || found->second != bytes || !is_reserved(at, bytes) || !is_free(at, bytes)) return false;
    mapped[at] = {bytes, piece, false};
    return true;
}

bool give_access(void* address, size_t bytes) {
    std::lock_guard lock(access);
    auto found = mapped.find(static_cast<char*>(address));
    if (found == mapped.end() || found->second.bytes != bytes) return false;
    // Zeros rather than poison: a piece is large, and mostly not used.
    return found->second.accessible = !mprotect(address, bytes, PROT_READ | PROT_WRITE);
}

bool unmap(void* address, size_t bytes) {
    std::lock_guard lock(access);
    auto found = mapped.find(static_cast<char*>(address));
    if (found == mapped.end() || found->second.bytes != bytes) return false;
    madvise(address, bytes, MADV_DONTNEED);
    mprotect(address, bytes, PROT_NONE);
    mapped.erase(found);
    return true;
}

bool destroy(unsigned long long piece) {
    std::lock_guard lock(access);
    auto found = pieces.find(piece);
    if (found == pieces.end()) return false;
    for (auto& [at, what] : mapped)
        if (what.piece == piece) return false;
    total -= found->second;
    pieces.erase(found);
    return true;
}

size_t used() {
    std::lock_guard lock(access);
    return total;
}

bool contains(const void* address, size_t bytes) {
    std::lock_guard lock(access);
    char* from = static_cast<char*>(const_cast<void*>(address));
    if (is_accessible(from, from + bytes)) return true;
    auto after = allocations.upper_bound(from);
    if (after == allocations.begin()) return false;
    auto& [start, allocation] = *std::prev(after);
    return from + bytes <= start + allocation.bytes;
}

std::string describe(const void* address) {
    std::lock_guard lock(access);
    char* at = static_cast<char*>(const_cast<void*>(address));
    if (is_reserved(at, 1)) return is_accessible(at, at + 1) ? "inside an allocation, misaligned" : "reserved, without memory";
    auto after = allocations.upper_bound(at);
    if (after != allocations.end() && after->first - at <= ptrdiff_t(PAGE))
        return std::to_string(after->first - at) + " bytes before an allocation of " + std::to_string(after->second.bytes) +
               " bytes";
    if (after == allocations.begin()) return "in no allocation";
    auto& [start, allocation] = *std::prev(after);
    ptrdiff_t past = at - (start + allocation.bytes);
    if (past >= 0 && past <= ptrdiff_t(2 * PAGE))
        return std::to_string(past) + " bytes past the end of an allocation of " + std::to_string(allocation.bytes) + " bytes";
    return past < 0 ? "inside an allocation, misaligned" : "in no allocation";
}

}  // namespace emulator::memory
