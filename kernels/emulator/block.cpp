#include "block.h"

#include <sys/mman.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <map>

#include "sanitizer.h"

namespace emulator {

thread_local Thread* current;
thread_local Block* block;

namespace {

// What memory holds before anything is written: NaN in every floating-point type, -1 as an integer.
constexpr int POISON = 0xff;
constexpr size_t PAGE = 4096, GUARD = 128, STATIC_BYTES = 64 << 10, DYNAMIC_BYTES = 228 << 10;
constexpr size_t REGION_BYTES = STATIC_BYTES + DYNAMIC_BYTES;
constexpr unsigned MOST_PENDING = 512;

// TSan knows the start and the end of a launch by these: only launches are ordered, not the blocks of one.
char launch_begins, launch_ends;

unsigned lowest(uint32_t bits) { return unsigned(__builtin_ctz(bits)); }
unsigned highest(uint32_t bits) { return 31u - unsigned(__builtin_clz(bits)); }
uint32_t bit(unsigned index) { return 1u << index; }
uint32_t without_lowest(uint32_t bits, unsigned count) {
    while (count--) bits &= bits - 1;
    return bits;
}
unsigned any_bit(uint32_t bits, Random& random) {
    return lowest(without_lowest(bits, random.below(unsigned(__builtin_popcount(bits)))));
}

std::string text(const char* format, ...) __attribute__((format(printf, 1, 2)));
std::string text(const char* format, ...) {
    char line[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    return line;
}

}  // namespace

void begin_launch() {
    sanitizer::acquire(&launch_ends);
    sanitizer::release(&launch_begins);
}

void fail(Site site, const char* format, ...) {
    char line[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    block->abandon(site.file ? text("%s:%d: %s", site.file, site.line, line) : line);
}

// ---- the life of a block

Block::Block() { map_shared(); }

bool Block::run(const Launch& which, uint64_t id) {
    launch = &which;
    block = this;
    failed = false;
    host = Context();
    host.tsan_fiber = sanitizer::this_fiber();
    random = {settings().seed * 0x100000001b3ull + which.number * 0x9e3779b97f4a7c15ull + id};
    random.next();
    begin_shared();
    begin_threads(which, id);
    resume(host, pick(), false);
    current = nullptr;
    if (!failed) check_shared();
    block = nullptr;
    return !failed;
}

void Block::begin_threads(const Launch& which, uint64_t id) {
    unsigned threads = which.threads();
    // More fibers than threads, used in turn: to TSan, thread i of two blocks are then two threads.
    size_t wanted = threads + (sanitizer::threads ? 37 : 0);
    while (fibers.size() < wanted) {
        fibers.emplace_back();
        Fiber& fresh = fibers.back();
        fresh.pending = nullptr;
        fresh.context.tsan_fiber = sanitizer::new_fiber();
    }
    rotation = sanitizer::threads ? unsigned((rotation + 5) % fibers.size()) : 0;
    uint3 block_index = {unsigned(id % which.grid.x), unsigned(id / which.grid.x % which.grid.y),
                         unsigned(id / (uint64_t(which.grid.x) * which.grid.y))};
    uint3 thread_index = {0, 0, 0};
    for (unsigned index = 0; index < threads; index++) {
        Fiber& one = fiber(index);
        one.thread_index = thread_index;
        one.block_index = block_index;
        one.block_size = which.block;
        one.grid_size = which.grid;
        one.lane = index % LANES;
        one.warp = index / LANES;
        one.index = index;
        one.started = one.done = false;
        one.group = one.first_pending = one.end_pending = 0;
        if (++thread_index.x == which.block.x) {
            thread_index.x = 0;
            if (++thread_index.y == which.block.y) thread_index.y = 0, thread_index.z++;
        }
    }
    live_threads = threads;
    ready_warps = 0;
    current_warp = 0;
    barrier = Barrier();
    for (unsigned index = 0; index * LANES < threads; index++) {
        unsigned lanes = threads - index * LANES;
        Warp& warp = warps[index];
        warp.lanes = lanes < LANES ? bit(lanes) - 1 : ~0u;
        warp.ready = warp.exited = 0;
        warp.priority = random.next();
        for (Gathering& gathering : warp.gatherings) gathering.arrived = 0;
        make_ready(index, warp.lanes);
    }
}

// A fiber's first step. When a thread ends, the next one that has not begun takes over its stack, so that threads which
// never wait cost no switch at all.
void Block::entry() {
    arrived(*block->came_from);
    block->run_fibers();
}

void Block::run_fibers() {
    for (;;) {
        enter_kernel();
        Fiber& ended = running();
        finish(ended);
        Fiber* next = pick();
        if (next && !next->started && !sanitizer::threads) {
            next->context.stack = ended.context.stack;
            next->started = true;
            current = next;
            continue;
        }
        if (!sanitizer::threads) free_stacks.push_back(ended.context.stack);
        resume(ended.context, next, true);
    }
}

void Block::enter_kernel() {
    sanitizer::acquire(&launch_begins);
    launch->kernel->call(launch->argument);
    sanitizer::release(&launch_ends);
}

void Block::finish(Fiber& fiber) {
    Warp& warp = warps[fiber.warp];
    fiber.done = true;
    live_threads--;
    warp.exited |= bit(fiber.lane);
    for (Gathering& gathering : warp.gatherings)
        if (gathering.arrived && gathering.mask & bit(fiber.lane))
            fail(gathering.site, "%s waits for lane %u, which has ended (mask %08x)", gathering.what, fiber.lane,
                 gathering.mask);
    if (barrier.arrived && barrier.arrived == live_threads) open_barrier();
}

void Block::abandon(const std::string& message) {
    Fiber& fiber = running();
    const uint3 &b = fiber.block_index, &t = fiber.thread_index;
    error = text("%s: %s [block (%u, %u, %u), thread (%u, %u, %u)]", launch->kernel->name, message.c_str(), b.x, b.y, b.z,
                 t.x, t.y, t.z);
    failed = true;
    switch_context(fiber.context, host, true);
    abort();  // an abandoned fiber is never resumed
}

// ---- the schedule

void Block::make_ready(unsigned warp, uint32_t lanes) {
    warps[warp].ready |= lanes;
    if (lanes) ready_warps |= bit(warp);
}

// The next fiber to run; none when all have ended.
Fiber* Block::pick() {
    if (!ready_warps) {
        if (live_threads) deadlock();
        return nullptr;
    }
    unsigned warp, lane;
    choose(&warp, &lane);
    current_warp = warp;
    warps[warp].ready &= ~bit(lane);
    if (!warps[warp].ready) ready_warps &= ~bit(warp);
    return &fiber(warp * LANES + lane);
}

void Block::choose(unsigned* warp, unsigned* lane) {
    switch (settings().schedule) {
    case Schedule::Fifo: {
        uint32_t later = ready_warps & ~(bit(current_warp) - 1);
        *warp = lowest(later ? later : ready_warps);
        *lane = lowest(warps[*warp].ready);
        return;
    }
    case Schedule::Reverse:
        *warp = highest(ready_warps);
        *lane = highest(warps[*warp].ready);
        return;
    case Schedule::Random:
        *warp = any_bit(ready_warps, random);
        *lane = any_bit(warps[*warp].ready, random);
        return;
    case Schedule::Priority:
        // One warp runs far ahead of the others, and now and then it is another one.
        *warp = lowest(ready_warps);
        for (uint32_t rest = ready_warps; rest; rest &= rest - 1)
            if (warps[lowest(rest)].priority > warps[*warp].priority) *warp = lowest(rest);
        if (random.below(64) == 0) warps[*warp].priority = random.next();
        *lane = any_bit(warps[*warp].ready, random);
    }
}

void Block::resume(Context& from, Fiber* next, bool last) {
    if (!next) {
        switch_context(from, host, last);
        return;
    }
    current = next;
    came_from = &from;
    if (!next->started) {
        next->started = true;
        if (!sanitizer::threads || !next->context.stack.bottom) {
            if (free_stacks.empty()) free_stacks.push_back(new_stack());
            next->context.stack = free_stacks.back();
            free_stacks.pop_back();
        }
        prepare(next->context, entry);
    }
    switch_context(from, next->context, last);
}

// Lets others run until somebody makes the running fiber ready.
void Block::wait(const char* what, Site site) {
    Fiber& me = running();
    me.waits_for = what;
    me.site = site;
    Fiber* next = pick();
    if (next != &me) resume(me.context, next, false);
}

// Stays ready, but lets the schedule decide who goes on.
void Block::step_back(const char* what, Site site) {
    if (settings().schedule == Schedule::Fifo) return;
    make_ready(running().warp, bit(running().lane));
    wait(what, site);
}

void Block::deadlock() {
    std::map<std::string, std::pair<unsigned, unsigned>> groups;  // where → how many threads, the first of them
    for (unsigned index = 0; index < launch->threads(); index++) {
        Fiber& one = fiber(index);
        std::string where = one.done ? "have ended" : text("wait for %s at %s:%d", one.waits_for, one.site.file, one.site.line);
        groups.try_emplace(where, 0u, index).first->second.first++;
    }
    std::string message = "deadlock:";
    for (auto& [where, count] : groups)
        message += text(" %u threads (the first is %u) %s;", count.first, count.second, where.c_str());
    message.pop_back();
    abandon(message);
}

// ---- collectives

void Block::sync(Site site, int* vote, Vote kind) {
    Fiber& me = running();
    unsigned turn = barrier.generation & 1;
    if (barrier.arrived == 0) {
        barrier.site = site;
        barrier.votes[turn] = kind == Vote::All;
    } else if (barrier.site.line != site.line || barrier.site.file != site.file) {
        fail(site, "divergent barrier: other threads of the block wait at %s:%d", barrier.site.file, barrier.site.line);
    }
    if (vote) {
        int one = *vote != 0, &all = barrier.votes[turn];
        all = kind == Vote::Any ? all | one : kind == Vote::All ? all & one : all + one;
    }
    sanitizer::release(&barrier.order[turn]);
    if (++barrier.arrived == live_threads) {
        open_barrier();
        step_back("__syncthreads", site);
    } else {
        barrier.waiting[me.warp] |= bit(me.lane);
        wait("__syncthreads", site);
    }
    sanitizer::acquire(&barrier.order[turn]);
    if (vote) *vote = barrier.votes[turn];
}

void Block::open_barrier() {
    barrier.arrived = 0;
    barrier.generation++;
    bool shuffle = settings().schedule == Schedule::Priority;
    for (unsigned index = 0; index * LANES < launch->threads(); index++) {
        make_ready(index, barrier.waiting[index]);
        barrier.waiting[index] = 0;
        if (shuffle && coin()) warps[index].priority = random.next();
    }
}

// Waits until all lanes of the mask are here; the last one acts for all.
void Block::gather(uint32_t mask, const char* what, void* operand, Collective act, Site site) {
    Fiber& me = running();
    Warp& warp = warps[me.warp];
    mask &= warp.lanes;
    if (!(mask & bit(me.lane))) fail(site, "%s by lane %u, which is not in its mask %08x", what, me.lane, mask);
    if (mask & warp.exited) fail(site, "%s with mask %08x, of which lanes %08x have ended", what, mask, mask & warp.exited);
    Gathering* mine = nullptr;
    for (Gathering& one : warp.gatherings) {
        if (one.arrived && one.mask == mask) mine = &one;
        else if (one.arrived && one.mask & mask)
            fail(site, "%s with mask %08x while %s at %s:%d waits with mask %08x", what, mask, one.what, one.site.file,
                 one.site.line, one.mask);
        if (one.arrived == 0 || mine) {
            if (!mine) mine = &one;
            break;
        }
    }
    if (!mine) fail(site, "%s: more than four parts of a warp wait at once", what);
    if (mine->arrived == 0) {
        mine->mask = mask;
        mine->what = what;
        mine->site = site;
    } else if (mine->site.line != site.line || mine->what != what) {
        fail(site, "divergent warp: lane %u comes to %s while other lanes wait for %s at %s:%d", me.lane, what, mine->what,
             mine->site.file, mine->site.line);
    }
    mine->operands[me.lane] = operand;
    mine->arrived |= bit(me.lane);
    if (mine->arrived != mask) {
        wait(what, site);
        return;
    }
    mine->arrived = 0;
    if (act) act(mine->operands, mask);
    make_ready(me.warp, mask & ~bit(me.lane));
    step_back(what, site);
}

// The sanitizer knows no fences. To it, any two are in order, whatever was seen between them; one that is missing shows.
void fence() {
    static char all;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    sanitizer::acquire(&all);
    sanitizer::release(&all);
}

void sync_block(Site site) { block->sync(site, nullptr, Vote::Any); }
int vote_block(int predicate, Vote vote, Site site) {
    block->sync(site, &predicate, vote);
    return predicate;
}

// ---- shared memory

void Block::map_shared() {
    void* mapped = mmap(nullptr, REGION_BYTES + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) {
        perror("emulator: no memory for a block's shared memory");
        abort();
    }
    region = static_cast<unsigned char*>(mapped);
    mprotect(region + REGION_BYTES, PAGE, PROT_NONE);
}

void Block::begin_shared() {
    if (sanitizer::threads) {  // new pages: what another block did with the same addresses is no race
        munmap(region, REGION_BYTES + PAGE);
        map_shared();
    }
    sanitizer::allow(region, REGION_BYTES);
    size_t used = (launch->shared_bytes + GUARD - 1) / GUARD * GUARD;
    shared = region + REGION_BYTES - used;
    memset(shared - GUARD, POISON, GUARD + used);
    sanitizer::forbid(region, REGION_BYTES - used);
    sanitizer::forbid(shared + launch->shared_bytes, used - launch->shared_bytes);
    statics.clear();
    statics_end = region;
}

void* Block::static_shared(const void* key, size_t bytes) {
    for (const StaticShared& one : statics)
        if (one.key == key) return one.address;
    size_t taken = launch->shared_bytes + bytes;
    for (const StaticShared& one : statics) taken += one.bytes;
    // A GPU refuses the launch, as its driver knows before it what the arrays take.
    if (taken > launch->most_shared)
        fail(Site(), "more shared memory, arrays included, than a launch gets: %zu bytes of %zu", taken, launch->most_shared);
    unsigned char* address = statics_end;
    size_t rounded = (bytes + GUARD - 1) / GUARD * GUARD;
    if (address + rounded + GUARD > region + STATIC_BYTES)
        fail(Site(), "the arrays declared with SHARED take more than %zu bytes", STATIC_BYTES);
    sanitizer::allow(address, rounded + GUARD);
    memset(address, POISON, rounded + GUARD);
    sanitizer::forbid(address + bytes, rounded + GUARD - bytes);
    statics_end = address + rounded + GUARD;
    statics.push_back({key, address, bytes});
    return address;
}

// Writes beside the block's arrays that no unmapped page has caught.
void Block::check_shared() {
    sanitizer::allow(region, REGION_BYTES);
    auto touched = [](const unsigned char* from, const unsigned char* to) {
        while (from < to && *from == POISON) from++;
        return from < to;
    };
    bool beside = touched(shared - GUARD, shared) || touched(shared + launch->shared_bytes, region + REGION_BYTES);
    for (const StaticShared& one : statics) {
        unsigned char* end = static_cast<unsigned char*>(one.address) + one.bytes;
        beside |= touched(end, end + GUARD);
    }
    if (!beside) return;
    error = text("%s: wrote beside its shared memory", launch->kernel->name);
    failed = true;
}

bool Block::in_shared(const void* address, size_t bytes) const {
    auto from = static_cast<const unsigned char*>(address);
    if (from >= shared && from + bytes <= shared + launch->shared_bytes) return true;
    for (const StaticShared& one : statics) {
        auto start = static_cast<const unsigned char*>(one.address);
        if (from >= start && from + bytes <= start + one.bytes) return true;
    }
    return false;
}

unsigned char* dynamic_shared() { return block->dynamic_shared(); }
void* static_shared(const void* key, size_t bytes) { return block->static_shared(key, bytes); }

// ---- asynchronous copies

bool defer_copy(const Copy& copy, Site site) {
    Fiber& me = block->running();
    if ((uintptr_t(copy.shared) | uintptr_t(copy.global)) % copy.bytes)
        fail(site, "cp.async of %u bytes between addresses that are not multiples of it", copy.bytes);
    if (!block->in_shared(copy.shared, copy.bytes)) fail(site, "cp.async to an address outside the block's shared memory");
    if (settings().async == Async::Eager || (settings().async == Async::Random && block->coin())) return false;
    if (!me.pending) me.pending = static_cast<PendingCopy*>(malloc(MOST_PENDING * sizeof(PendingCopy)));
    if (me.end_pending - me.first_pending == MOST_PENDING)
        fail(site, "more than %u cp.async of one thread at once", MOST_PENDING);
    me.pending[me.end_pending++ % MOST_PENDING] = {copy, me.group};
    return true;
}

void commit_copies() { block->running().group++; }

bool next_copy(int keep, Copy* copy) {
    Fiber& me = block->running();
    if (me.first_pending == me.end_pending) return false;
    const PendingCopy& first = me.pending[me.first_pending % MOST_PENDING];
    if (first.group + unsigned(keep) >= me.group) return false;
    *copy = first.copy;
    me.first_pending++;
    return true;
}

}  // namespace emulator
