// The part of CUDA's driver API that vocoe and cudarc call, on top of the emulator. One device, sm_90. Everything is done
// at once and in order; streams only matter to a capture. As on a GPU, nothing works any more after a failed launch.
//
// A capture has the driver's rules: what would wait for the device, take memory or read pageable memory while a stream records
// fails and makes the capture worthless. Where the driver leaves open what it refuses, this one refuses.
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "launch.h"
#include "memory.h"

namespace {

using namespace emulator;

enum Result {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    INVALID_DEVICE = 101,
    ILLEGAL_STATE = 401,
    NOT_FOUND = 500,
    LAUNCH_FAILED = 719,
    NOT_SUPPORTED = 801,
    CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALIDATED = 901,
    CAPTURE_ISOLATION = 905,
    CAPTURE_IMPLICIT = 906,
    CAPTURED_EVENT = 907,
    CAPTURE_WRONG_THREAD = 908,
};

struct ErrorText {
    int code;
    const char *name, *text;
};
const ErrorText ERRORS[] = {
    {SUCCESS, "CUDA_SUCCESS", "no error"},
    {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {ILLEGAL_STATE, "CUDA_ERROR_ILLEGAL_STATE", "the operation cannot be performed in the present state"},
    {NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED", "the kernel failed on the emulator, which has written why to stderr"},
    {NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"},
    {CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "operation failed due to a previous error in a capture"},
    {CAPTURE_ISOLATION, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION", "dependency created on uncaptured work in another stream"},
    {CAPTURE_IMPLICIT, "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT", "operation would make the legacy stream depend on a capture"},
    {CAPTURED_EVENT, "CUDA_ERROR_CAPTURED_EVENT", "operation not permitted on an event last recorded in a capturing stream"},
    {CAPTURE_WRONG_THREAD, "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD", "attempt to end a capture of another thread"},
};

using Pointer = unsigned long long;
void* host(Pointer pointer) { return reinterpret_cast<void*>(pointer); }

int complain(int code, const char* what) {
    fprintf(stderr, "emulator: %s\n", what);
    return code;
}

// What the device answers after a launch has failed.
std::atomic<int> sticky{SUCCESS};

// ---- streams and graphs

using Operation = std::function<int()>;
struct Graph {
    std::vector<Operation> operations;
};
enum Mode { GLOBAL = 0, THREAD_LOCAL = 1, RELAXED = 2 };
struct Capture {
    Mode mode;
    std::thread::id thread;
    Graph graph;
    bool valid = true;
};
struct Stream {
    bool blocking;  // waits for the legacy stream, and that one for it
    std::unique_ptr<Capture> capture;
};
struct Event {
    timespec time;
    bool captured;  // what was recorded last is part of a capture, and has no time
};
Stream legacy_stream = {false, nullptr};

// All streams that record at the moment.
std::mutex captures_access;
std::vector<Stream*> capturing;

bool is_legacy(void* stream) { return reinterpret_cast<uintptr_t>(stream) <= 2; }  // 0, 1 and 2 name the default streams
Stream& stream_of(void* stream) { return is_legacy(stream) ? legacy_stream : *static_cast<Stream*>(stream); }

int spoil(Capture& capture, int code, const char* what) {
    capture.valid = false;
    return complain(code, (std::string("during a capture: ") + what).c_str());
}

// What the calling thread may do during captures.
thread_local Mode thread_mode = GLOBAL;

// A call that would wait for the device or change its memory at once: not from a thread that captures, nor from any while one
// captures globally, unless the thread has said that it knows.
int at_once(const char* what) {
    if (sticky || thread_mode == RELAXED) return sticky;
    std::lock_guard lock(captures_access);
    for (Stream* stream : capturing) {
        Capture& capture = *stream->capture;
        bool own = capture.thread == std::this_thread::get_id();
        if (capture.mode == GLOBAL || (capture.mode == THREAD_LOCAL && own)) return spoil(capture, CAPTURE_UNSUPPORTED, what);
    }
    return SUCCESS;
}

// Waiting for all of the device: not while any stream records.
int wait_for_all() {
    if (sticky) return sticky;
    std::lock_guard lock(captures_access);
    for (Stream* stream : capturing) return spoil(*stream->capture, CAPTURE_UNSUPPORTED, "waiting for the context");
    return SUCCESS;
}

// Waiting for one stream.
int wait_for(void* stream) {
    if (Capture* capture = stream_of(stream).capture.get())
        return spoil(*capture, CAPTURE_UNSUPPORTED, "waiting for the stream that records");
    return at_once("waiting for a stream");
}

int wait_for_event(void* event) {
    if (!static_cast<Event*>(event)->captured) return at_once("waiting for an event");
    std::lock_guard lock(captures_access);
    for (Stream* stream : capturing) stream->capture->valid = false;
    return complain(CAPTURED_EVENT, "waiting for an event that was recorded in a capture");
}

int perform(void* stream, Operation operation) {
    if (sticky) return sticky;
    if (Capture* capture = stream_of(stream).capture.get()) {
        if (!capture->valid) return CAPTURE_INVALIDATED;
        capture->graph.operations.push_back(std::move(operation));
        return SUCCESS;
    }
    if (is_legacy(stream)) {
        std::lock_guard lock(captures_access);
        for (Stream* other : capturing)
            if (other->blocking) return spoil(*other->capture, CAPTURE_IMPLICIT, "use of the legacy stream");
    }
    return operation();
}

// Memory that comes and goes with a graph is beyond this emulator, and beyond its users.
int not_in_capture(void* stream, const char* what) {
    Capture* capture = stream_of(stream).capture.get();
    return capture ? spoil(*capture, NOT_SUPPORTED, what) : int(SUCCESS);
}

int replay(const Graph& graph) {
    for (const Operation& operation : graph.operations) {
        if (sticky) return sticky;
        if (int code = operation()) return code;
    }
    return sticky;
}

void end_capture(Stream& stream) {
    std::lock_guard lock(captures_access);
    for (size_t i = 0; i < capturing.size(); i++)
        if (capturing[i] == &stream) capturing.erase(capturing.begin() + ptrdiff_t(i--));
    stream.capture.reset();
}

// ---- the host's pinned memory

std::mutex pinned_access;
std::map<const char*, size_t> pinned;

bool is_pinned(const void* address, size_t bytes) {
    std::lock_guard lock(pinned_access);
    auto at = static_cast<const char*>(address);
    auto after = pinned.upper_bound(at);
    if (after == pinned.begin()) return false;
    auto& [start, size] = *std::prev(after);
    return at + bytes <= start + size;
}

// A graph would read pageable memory later, when something else is there.
int with_host_memory(void* stream, const void* memory, size_t bytes, Operation copy) {
    Capture* capture = stream_of(stream).capture.get();
    if (capture && !is_pinned(memory, bytes)) return spoil(*capture, CAPTURE_UNSUPPORTED, "a copy of pageable memory");
    return perform(stream, std::move(copy));
}

// ---- kernels

struct Function {
    const Kernel* kernel;
    unsigned shared_limit;
    bool asked;  // for its limit: only then a block gets more than 48 KB in all
};
constexpr unsigned SHARED_WITHOUT_ASKING = 48 << 10;
constexpr int MAX_DYNAMIC_SHARED_SIZE_BYTES = 8;  // function attribute
constexpr int ATTRIBUTE_MAX_THREADS_PER_BLOCK = 0;

Function* function_of(const char* name) {
    static std::mutex access;
    static std::vector<std::unique_ptr<Function>> functions;
    std::lock_guard lock(access);
    for (auto& function : functions)
        if (!strcmp(function->kernel->name, name)) return function.get();
    const Kernel* kernel = find_kernel(name);
    if (!kernel) return nullptr;
    functions.push_back(std::make_unique<Function>(Function{kernel, SHARED_WITHOUT_ASKING, false}));
    return functions.back().get();
}

const char* launch_problem(const Function& function, const Launch& launch) {
    const dim3 &grid = launch.grid, &block = launch.block;
    if (!launch.blocks() || !launch.threads()) return "an empty grid or block";
    if (grid.x > 0x7fffffffu || grid.y > 0xffffu || grid.z > 0xffffu) return "a grid beyond 2³¹−1 × 65535 × 65535";
    if (block.x > 1024 || block.y > 1024 || block.z > 64 || launch.threads() > MOST_THREADS)
        return "a block of more than 1024 threads (64 along z)";
    if (launch.threads() > function.kernel->most_threads) return "more threads than the kernel's launch bounds";
    if (launch.shared_bytes > function.shared_limit)
        return "more dynamic shared memory than the function's attribute allows (48 KB unless set)";
    return nullptr;
}

// The argument out of a list of pointers or out of one buffer, whose size then has to fit.
const void* argument_of(const Kernel& kernel, void** parameters, void** extra) {
    if (parameters) return parameters[0];
    const uintptr_t end = 0, buffer_pointer = 1, buffer_size = 2;
    const void* buffer = nullptr;
    size_t size = 0;
    for (; extra && reinterpret_cast<uintptr_t>(extra[0]) != end; extra += 2) {
        if (reinterpret_cast<uintptr_t>(extra[0]) == buffer_pointer) buffer = extra[1];
        if (reinterpret_cast<uintptr_t>(extra[0]) == buffer_size) size = *static_cast<size_t*>(extra[1]);
    }
    return size == kernel.argument_bytes ? buffer : nullptr;
}

int execute(const Launch& launch) {
    std::string error = run(launch);
    if (error.empty()) return SUCCESS;
    sticky = LAUNCH_FAILED;
    return complain(LAUNCH_FAILED, error.c_str());
}

// ---- copies

int copy_checked(void* to, const void* from, size_t bytes, const void* device, const char* what) {
    if (!bytes) return SUCCESS;
    if (!memory::contains(device, bytes))
        return complain(INVALID_VALUE, (std::string(what) + " at an address " + memory::describe(device)).c_str());
    memmove(to, from, bytes);
    return SUCCESS;
}

struct Attribute {
    int number, value;
};
const Attribute ATTRIBUTES[] = {
    {1, 1024},  {2, 1024},    {3, 1024},     {4, 64},            // threads of a block: in all, along x, y, z
    {5, 0x7fffffff}, {6, 65535}, {7, 65535},                     // blocks of a grid along x, y, z
    {8, 48 << 10}, {9, 64 << 10}, {10, 32},                      // shared memory of a block, constant memory, warp
    {12, 65536}, {13, 1755000}, {16, 16},                        // registers of a block, kHz, multiprocessors
    {31, 1},     {36, 2619000}, {37, 5120},                      // concurrent kernels, memory's kHz, bus width
    {38, 50 << 20}, {39, 2048}, {40, 3}, {41, 1},                // L2, threads of a multiprocessor, copy engines, addressing
    {75, 9},     {76, 0},     {81, 228 << 10}, {82, 65536},      // compute capability, a multiprocessor's shared, registers
    {97, 227 << 10}, {106, 32}, {111, 1 << 10}, {115, 1},        // shared with opt-in, blocks, reserved shared, memory pools
};

// ---- device memory

std::atomic<unsigned long long> most_used;

int allocate(Pointer* pointer, size_t bytes) {
    if (sticky) return sticky;
    if (!bytes) return INVALID_VALUE;
    *pointer = reinterpret_cast<Pointer>(memory::allocate(bytes));
    if (!*pointer) return OUT_OF_MEMORY;
    if (memory::used() > most_used) most_used = memory::used();
    return SUCCESS;
}
// The piece that cuMemCreate makes: of device 0, pinned, with no handle to share it by.
struct Property {
    int type, handle_types, location, device;
    void* windows;
    unsigned char flags[8];
};
constexpr int PINNED = 1, ON_DEVICE = 1, READ_AND_WRITE = 3;
constexpr size_t GRANULARITY = 2 << 20;
struct Access {
    int location, device, flags;
};

bool is_supported(const Property& property) {
    return property.type == PINNED && property.location == ON_DEVICE && property.device == 0 && !property.handle_types;
}

int when(bool done, const char* otherwise) { return done ? int(SUCCESS) : complain(INVALID_VALUE, otherwise); }

int release(Pointer pointer) {
    if (!pointer) return SUCCESS;
    bool beside = false;
    if (!memory::release(host(pointer), &beside)) return complain(INVALID_VALUE, "a free of what is not allocated");
    if (!beside) return SUCCESS;
    sticky = LAUNCH_FAILED;
    return complain(LAUNCH_FAILED, "a kernel wrote just before or after an allocation that is freed now");
}

int pool, context, module_;
thread_local void* current_context;

}  // namespace

#define API extern "C" __attribute__((visibility("default"))) int

API cuInit(unsigned) { return SUCCESS; }
API cuDriverGetVersion(int* version) {
    *version = 13000;
    return SUCCESS;
}
// NVIDIA's libraries ask for tables of private functions; there are none.
API cuGetExportTable(const void** table, const void*) {
    *table = nullptr;
    return NOT_FOUND;
}
API cuGetErrorName(int code, const char** name) {
    for (const ErrorText& error : ERRORS)
        if (error.code == code) return *name = error.name, SUCCESS;
    *name = nullptr;
    return INVALID_VALUE;
}
API cuGetErrorString(int code, const char** text) {
    for (const ErrorText& error : ERRORS)
        if (error.code == code) return *text = error.text, SUCCESS;
    *text = nullptr;
    return INVALID_VALUE;
}

// ---- the device and its context

API cuDeviceGetCount(int* count) {
    *count = 1;
    return SUCCESS;
}
API cuDeviceGet(int* device, int ordinal) {
    *device = ordinal;
    return ordinal == 0 ? SUCCESS : INVALID_DEVICE;
}
API cuDeviceGetName(char* name, int bytes, int) {
    snprintf(name, size_t(bytes), "CPU emulator (sm_90)");
    return SUCCESS;
}
API cuDeviceGetUuid_v2(void* uuid, int) {
    memset(uuid, 0, 16);
    return SUCCESS;
}
API cuDeviceGetUuid(void* uuid, int device) { return cuDeviceGetUuid_v2(uuid, device); }
API cuDeviceTotalMem_v2(size_t* bytes, int) {
    *bytes = settings().memory_bytes;
    return SUCCESS;
}
API cuDeviceGetAttribute(int* value, int number, int) {
    *value = 0;
    for (const Attribute& attribute : ATTRIBUTES)
        if (attribute.number == number) *value = attribute.value;
    return SUCCESS;
}
API cuDevicePrimaryCtxRetain(void** out, int) {
    *out = &context;
    return SUCCESS;
}
API cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
API cuDevicePrimaryCtxSetFlags_v2(int, unsigned) { return SUCCESS; }
API cuCtxSetCurrent(void* which) {
    current_context = which;
    return SUCCESS;
}
API cuCtxGetCurrent(void** which) {
    *which = current_context;
    return SUCCESS;
}
API cuCtxGetDevice(int* device) {
    *device = 0;
    return SUCCESS;
}
API cuCtxSynchronize() { return wait_for_all(); }

// ---- streams, events, graphs

API cuStreamCreate(void** stream, unsigned flags) {
    const unsigned non_blocking = 1;
    *stream = new Stream{!(flags & non_blocking), nullptr};
    return SUCCESS;
}
API cuStreamCreateWithPriority(void** stream, unsigned flags, int) { return cuStreamCreate(stream, flags); }
API cuStreamDestroy_v2(void* stream) {
    end_capture(*static_cast<Stream*>(stream));
    delete static_cast<Stream*>(stream);
    return SUCCESS;
}
API cuStreamSynchronize(void* stream) { return wait_for(stream); }
API cuStreamQuery(void* stream) { return wait_for(stream); }
API cuStreamWaitEvent(void* stream, void* event, unsigned) {
    Capture* capture = stream_of(stream).capture.get();
    bool captured = static_cast<Event*>(event)->captured;
    if (capture && !captured) return spoil(*capture, CAPTURE_ISOLATION, "waiting for an event from outside");
    if (!capture && captured) return complain(NOT_SUPPORTED, "a capture that spreads to another stream");
    return sticky;
}
API cuLaunchHostFunc(void* stream, void (*function)(void*), void* data) {
    return perform(stream, [=] { return function(data), SUCCESS; });
}
API cuEventCreate(void** event, unsigned) {
    *event = new Event();
    return SUCCESS;
}
API cuEventDestroy_v2(void* event) {
    delete static_cast<Event*>(event);
    return SUCCESS;
}
API cuEventRecord(void* raw, void* stream) {
    auto event = static_cast<Event*>(raw);
    event->captured = stream_of(stream).capture != nullptr;
    if (event->captured) return perform(stream, [] { return SUCCESS; });
    return perform(stream, [=] { return clock_gettime(CLOCK_MONOTONIC, &event->time), SUCCESS; });
}
API cuEventSynchronize(void* event) { return wait_for_event(event); }
API cuEventQuery(void* event) { return wait_for_event(event); }
API cuEventElapsedTime_v2(float* milliseconds, void* from, void* to) {
    auto start = static_cast<Event*>(from), end = static_cast<Event*>(to);
    if (start->captured || end->captured) return complain(CAPTURED_EVENT, "the time of an event that a capture recorded");
    double seconds = double(end->time.tv_sec - start->time.tv_sec), nanoseconds = double(end->time.tv_nsec - start->time.tv_nsec);
    *milliseconds = float(seconds * 1e3 + nanoseconds * 1e-6);
    return SUCCESS;
}
API cuEventElapsedTime(float* milliseconds, void* from, void* to) { return cuEventElapsedTime_v2(milliseconds, from, to); }

API cuStreamBeginCapture_v2(void* stream, int mode) {
    if (is_legacy(stream)) return complain(CAPTURE_UNSUPPORTED, "a capture in the legacy stream");
    if (stream_of(stream).capture) return complain(ILLEGAL_STATE, "a capture in a stream that records already");
    std::lock_guard lock(captures_access);
    stream_of(stream).capture.reset(new Capture{Mode(mode), std::this_thread::get_id(), {}});
    capturing.push_back(&stream_of(stream));
    return SUCCESS;
}
API cuStreamIsCapturing(void* stream, int* status) {
    const int none = 0, active = 1, invalidated = 2;
    Capture* capture = stream_of(stream).capture.get();
    *status = !capture ? none : capture->valid ? active : invalidated;
    return SUCCESS;
}
API cuStreamEndCapture(void* stream, void** graph) {
    *graph = nullptr;
    Capture* capture = stream_of(stream).capture.get();
    if (!capture) return complain(ILLEGAL_STATE, "the end of a capture that was not begun");
    if (capture->mode != RELAXED && capture->thread != std::this_thread::get_id()) {
        capture->valid = false;
        return CAPTURE_WRONG_THREAD;
    }
    if (capture->valid) *graph = new Graph(std::move(capture->graph));
    end_capture(stream_of(stream));
    return *graph ? SUCCESS : CAPTURE_INVALIDATED;
}
API cuThreadExchangeStreamCaptureMode(int* mode) {
    int before = thread_mode;
    if (*mode < GLOBAL || *mode > RELAXED) return INVALID_VALUE;
    thread_mode = Mode(*mode);
    *mode = before;
    return SUCCESS;
}
API cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long) {
    if (!graph) return INVALID_VALUE;
    if (int refused = at_once("making a graph ready")) return refused;
    *executable = new Graph(*static_cast<Graph*>(graph));
    return SUCCESS;
}
API cuGraphUpload(void*, void*) { return SUCCESS; }
API cuGraphLaunch(void* executable, void* stream) {
    auto graph = static_cast<Graph*>(executable);
    return perform(stream, [=] { return replay(*graph); });
}
API cuGraphDestroy(void* graph) {
    delete static_cast<Graph*>(graph);
    return SUCCESS;
}
API cuGraphExecDestroy(void* executable) { return cuGraphDestroy(executable); }

// ---- memory

API cuMemGetInfo_v2(size_t* free, size_t* total) {
    *total = settings().memory_bytes;
    *free = *total - memory::used();
    return SUCCESS;
}
API cuMemAlloc_v2(Pointer* pointer, size_t bytes) {
    if (int refused = at_once("taking memory")) return refused;
    return allocate(pointer, bytes);
}
API cuMemAllocAsync(Pointer* pointer, size_t bytes, void* stream) {
    if (int refused = not_in_capture(stream, "taking memory in the graph")) return refused;
    return allocate(pointer, bytes);
}
API cuMemAllocFromPoolAsync(Pointer* pointer, size_t bytes, void*, void* stream) {
    return cuMemAllocAsync(pointer, bytes, stream);
}
API cuMemFree_v2(Pointer pointer) {
    if (int refused = at_once("giving memory back")) return refused;
    return release(pointer);
}
API cuMemFreeAsync(Pointer pointer, void* stream) {
    if (int refused = not_in_capture(stream, "giving memory back in the graph")) return refused;
    return release(pointer);
}
API cuMemGetAllocationGranularity(size_t* bytes, const Property* property, int) {
    *bytes = GRANULARITY;
    return when(is_supported(*property), "the granularity of memory that is not the device's");
}
API cuMemAddressReserve(Pointer* pointer, size_t bytes, size_t, Pointer, unsigned long long) {
    if (!bytes || bytes % GRANULARITY) return complain(INVALID_VALUE, "addresses for no whole number of pieces");
    *pointer = reinterpret_cast<Pointer>(memory::reserve(bytes));
    return *pointer ? SUCCESS : OUT_OF_MEMORY;
}
API cuMemCreate(unsigned long long* piece, size_t bytes, const Property* property, unsigned long long) {
    if (int refused = at_once("taking memory")) return refused;
    if (!is_supported(*property) || !bytes || bytes % GRANULARITY) return complain(INVALID_VALUE, "a piece of unfit memory");
    *piece = memory::create(bytes);
    if (memory::used() > most_used) most_used = memory::used();
    return *piece ? SUCCESS : OUT_OF_MEMORY;
}
API cuMemMap(Pointer pointer, size_t bytes, size_t offset, unsigned long long piece, unsigned long long) {
    if (int refused = at_once("putting memory behind addresses")) return refused;
    return when(!offset && memory::map(host(pointer), bytes, piece), "memory behind addresses that it does not fit");
}
API cuMemSetAccess(Pointer pointer, size_t bytes, const Access* access, size_t count) {
    bool ours = count == 1 && access->location == ON_DEVICE && access->device == 0 && access->flags == READ_AND_WRITE;
    return when(ours && memory::give_access(host(pointer), bytes), "access to addresses without memory");
}
API cuMemUnmap(Pointer pointer, size_t bytes) {
    if (int refused = at_once("taking memory from behind addresses")) return refused;
    return when(memory::unmap(host(pointer), bytes), "taking away memory that is not there");
}
API cuMemRelease(unsigned long long piece) {
    return when(memory::destroy(piece), "giving back a piece that is in use, or none");
}
API cuMemHostAlloc(void** pointer, size_t bytes, unsigned) {
    const size_t page = 4096;
    if (int refused = at_once("taking pinned memory")) return refused;
    if (posix_memalign(pointer, page, bytes ? bytes : 1)) return OUT_OF_MEMORY;
    std::lock_guard lock(pinned_access);
    pinned[static_cast<char*>(*pointer)] = bytes;
    return SUCCESS;
}
API cuMemFreeHost(void* pointer) {
    if (int refused = at_once("giving pinned memory back")) return refused;
    std::lock_guard lock(pinned_access);
    pinned.erase(static_cast<char*>(pointer));
    free(pointer);
    return SUCCESS;
}
API cuMemcpyHtoDAsync_v2(Pointer to, const void* from, size_t bytes, void* stream) {
    return with_host_memory(stream, from, bytes,
                            [=] { return copy_checked(host(to), from, bytes, host(to), "a copy to the device"); });
}
API cuMemcpyDtoHAsync_v2(void* to, Pointer from, size_t bytes, void* stream) {
    return with_host_memory(stream, to, bytes,
                            [=] { return copy_checked(to, host(from), bytes, host(from), "a copy from the device"); });
}
API cuMemcpyDtoDAsync_v2(Pointer to, Pointer from, size_t bytes, void* stream) {
    return perform(stream, [=]() -> int {
        if (bytes && !memory::contains(host(from), bytes))
            return complain(INVALID_VALUE, "a copy within the device from outside an allocation");
        return copy_checked(host(to), host(from), bytes, host(to), "a copy within the device");
    });
}
API cuMemsetD8Async(Pointer to, unsigned char value, size_t bytes, void* stream) {
    return perform(stream, [=]() -> int {
        if (bytes && !memory::contains(host(to), bytes)) return complain(INVALID_VALUE, "a memset outside an allocation");
        memset(host(to), value, bytes);
        return SUCCESS;
    });
}
API cuMemsetD16Async(Pointer to, unsigned short value, size_t count, void* stream) {
    return perform(stream, [=]() -> int {
        if (to % 2) return complain(INVALID_VALUE, "a memset of two bytes at an odd address");
        if (count && !memory::contains(host(to), 2 * count)) return complain(INVALID_VALUE, "a memset outside an allocation");
        std::fill_n(static_cast<unsigned short*>(host(to)), count, value);
        return SUCCESS;
    });
}
API cuMemcpyHtoD_v2(Pointer to, const void* from, size_t bytes) {
    if (int refused = at_once("a copy at once")) return refused;
    return cuMemcpyHtoDAsync_v2(to, from, bytes, nullptr);
}
API cuMemcpyDtoH_v2(void* to, Pointer from, size_t bytes) {
    if (int refused = at_once("a copy at once")) return refused;
    return cuMemcpyDtoHAsync_v2(to, from, bytes, nullptr);
}
API cuMemcpyDtoD_v2(Pointer to, Pointer from, size_t bytes) {
    if (int refused = at_once("a copy at once")) return refused;
    return cuMemcpyDtoDAsync_v2(to, from, bytes, nullptr);
}
API cuMemsetD8_v2(Pointer to, unsigned char value, size_t bytes) {
    if (int refused = at_once("setting memory at once")) return refused;
    return cuMemsetD8Async(to, value, bytes, nullptr);
}

API cuDeviceGetDefaultMemPool(void** out, int) {
    *out = &pool;
    return SUCCESS;
}
API cuDeviceGetMemPool(void** out, int device) { return cuDeviceGetDefaultMemPool(out, device); }
API cuMemPoolSetAttribute(void*, int, void*) { return SUCCESS; }
API cuMemPoolGetAttribute(void*, int attribute, void* value) {
    const int reserved_now = 5, reserved_most = 6, used_now = 7, used_most = 8;
    unsigned long long answer = 0;
    if (attribute == reserved_now || attribute == used_now) answer = memory::used();
    if (attribute == reserved_most || attribute == used_most) answer = most_used;
    memcpy(value, &answer, attribute >= 4 ? 8 : 4);
    return SUCCESS;
}
API cuMemPoolTrimTo(void*, size_t) { return SUCCESS; }

// ---- modules and launches

API cuModuleLoadData(void** out, const void*) {
    if (int refused = at_once("loading a module")) return refused;
    *out = &module_;
    return SUCCESS;
}
API cuModuleLoadDataEx(void** out, const void* image, unsigned, int*, void**) { return cuModuleLoadData(out, image); }
API cuModuleUnload(void*) { return SUCCESS; }
API cuModuleGetFunction(void** out, void*, const char* name) {
    *out = function_of(name);
    return *out ? SUCCESS : NOT_FOUND;
}
API cuFuncGetParamInfo(void* function, size_t index, size_t* offset, size_t* bytes) {
    if (index > 0) return INVALID_VALUE;
    *offset = 0;
    if (bytes) *bytes = static_cast<Function*>(function)->kernel->argument_bytes;
    return SUCCESS;
}
API cuFuncSetAttribute(void* function, int attribute, int value) {
    if (attribute != MAX_DYNAMIC_SHARED_SIZE_BYTES) return SUCCESS;
    if (value < 0 || size_t(value) > MOST_SHARED) return INVALID_VALUE;
    auto& which = *static_cast<Function*>(function);
    which.shared_limit = unsigned(value);
    which.asked = true;
    return SUCCESS;
}
API cuFuncGetAttribute(int* value, int attribute, void* function) {
    const Function& which = *static_cast<Function*>(function);
    *value = attribute == MAX_DYNAMIC_SHARED_SIZE_BYTES      ? int(which.shared_limit)
             : attribute == ATTRIBUTE_MAX_THREADS_PER_BLOCK ? int(which.kernel->most_threads)
                                                            : 0;
    return SUCCESS;
}
API cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void*, int threads, size_t) {
    if (threads <= 0) return INVALID_VALUE;
    *blocks = 2048 / threads;
    return SUCCESS;
}
API cuLaunchKernel(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                   unsigned block_z, unsigned shared_bytes, void* stream, void** parameters, void** extra) {
    const Function& which = *static_cast<Function*>(function);
    const size_t most_shared = which.asked ? MOST_SHARED : SHARED_WITHOUT_ASKING;
    Launch launch = {which.kernel, nullptr, {grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared_bytes, most_shared, 0};
    const void* argument = argument_of(*which.kernel, parameters, extra);
    const char* problem = argument ? launch_problem(which, launch) : "an argument of another size than the kernel's";
    if (problem) return complain(INVALID_VALUE, (std::string(which.kernel->name) + ": " + problem).c_str());
    // A graph runs the launch later: it keeps the argument.
    auto bytes = static_cast<const char*>(argument);
    std::vector<char> kept(bytes, bytes + which.kernel->argument_bytes);
    return perform(stream, [launch, kept = std::move(kept)]() mutable {
        launch.argument = kept.data();
        return execute(launch);
    });
}
