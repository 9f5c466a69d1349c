// selftest NAME: launches a test kernel through the driver API and compares with plain code. Exits with 0 when all is right,
// 1 for a wrong result, 2 when the driver reports an error. Kernels named bug_* write zeros where they are right.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <string>
#include <thread>
#include <vector>

using Pointer = unsigned long long;
extern "C" {
int cuModuleGetFunction(void** function, void* module, const char* name);
int cuMemAlloc_v2(Pointer* pointer, size_t bytes);
int cuMemFree_v2(Pointer pointer);
int cuMemcpyHtoD_v2(Pointer to, const void* from, size_t bytes);
int cuMemcpyDtoH_v2(void* to, Pointer from, size_t bytes);
int cuLaunchKernel(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                   unsigned block_z, unsigned shared, void* stream, void** parameters, void** extra);
int cuMemAllocAsync(Pointer* pointer, size_t bytes, void* stream);
int cuMemFreeAsync(Pointer pointer, void* stream);
int cuMemHostAlloc(void** pointer, size_t bytes, unsigned flags);
int cuMemcpyHtoDAsync_v2(Pointer to, const void* from, size_t bytes, void* stream);
int cuMemcpyDtoHAsync_v2(void* to, Pointer from, size_t bytes, void* stream);
int cuMemsetD8Async(Pointer to, unsigned char value, size_t bytes, void* stream);
int cuModuleLoadData(void** module, const void* image);
int cuCtxSynchronize();
int cuStreamCreate(void** stream, unsigned flags);
int cuStreamSynchronize(void* stream);
int cuStreamWaitEvent(void* stream, void* event, unsigned flags);
int cuEventCreate(void** event, unsigned flags);
int cuEventRecord(void* event, void* stream);
int cuEventSynchronize(void* event);
int cuStreamBeginCapture_v2(void* stream, int mode);
int cuStreamEndCapture(void* stream, void** graph);
int cuThreadExchangeStreamCaptureMode(int* mode);
int cuMemAddressReserve(Pointer* pointer, size_t bytes, size_t alignment, Pointer wanted, unsigned long long flags);
int cuMemCreate(unsigned long long* piece, size_t bytes, const int* property, unsigned long long flags);
int cuMemMap(Pointer pointer, size_t bytes, size_t offset, unsigned long long piece, unsigned long long flags);
int cuMemSetAccess(Pointer pointer, size_t bytes, const int* access, size_t count);
int cuMemUnmap(Pointer pointer, size_t bytes);
int cuMemRelease(unsigned long long piece);
int cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long flags);
int cuGraphLaunch(void* executable, void* stream);
int cuGraphDestroy(void* graph);
int cuGraphExecDestroy(void* executable);
}

namespace {

void must(int code) {
    if (code) exit(2);
}

void expect(bool right, const char* what, size_t index) {
    if (right) return;
    fprintf(stderr, "selftest: %s is wrong at %zu\n", what, index);
    exit(1);
}

struct Args {
    Pointer a, b, out;
    int64_t n;
};

struct Grid {
    unsigned blocks, threads, shared;
};

template <class T> Pointer upload(const std::vector<T>& values) {
    if (values.empty()) return 0;
    Pointer pointer;
    must(cuMemAlloc_v2(&pointer, values.size() * sizeof(T)));
    must(cuMemcpyHtoD_v2(pointer, values.data(), values.size() * sizeof(T)));
    return pointer;
}

// Launches and returns what `out`, which holds `out` first, holds afterwards.
template <class Out, class A = float, class B = float>
std::vector<Out> launch(const char* name, Grid grid, std::vector<Out> out, const std::vector<A>& a = {},
                        const std::vector<B>& b = {}, int64_t n = 0) {
    void* function;
    must(cuModuleGetFunction(&function, nullptr, name));
    Args args = {upload(a), upload(b), upload(out), n};
    void* parameters[] = {&args};
    must(cuLaunchKernel(function, grid.blocks, 1, 1, grid.threads, 1, 1, grid.shared, nullptr, parameters, nullptr));
    must(cuMemcpyDtoH_v2(out.data(), args.out, out.size() * sizeof(Out)));
    for (Pointer pointer : {args.a, args.b, args.out}) must(cuMemFree_v2(pointer));
    return out;
}

// The multiple of 2^(exponent − bits) nearest to a normal `value`, ties to even.
float rounded(float value, int bits) {
    int exponent;
    double scaled = std::ldexp(std::frexp(double(value), &exponent), bits);
    return float(std::ldexp(std::nearbyint(scaled), exponent - bits));
}
uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}
uint16_t bf16_of(float value) { return uint16_t(bits_of(rounded(value, 8)) >> 16); }
// Of a value in the range of normal f16.
uint16_t f16_of(float value) {
    uint32_t bits = bits_of(rounded(value, 11));
    if (!(bits & 0x7fffffff)) return uint16_t(bits >> 16);
    return uint16_t((bits >> 16 & 0x8000) | (((bits >> 23 & 0xff) - 112) << 10) | (bits >> 13 & 0x3ff));
}

// Small whole numbers: every sum is exact.
std::vector<float> whole_numbers(size_t n, unsigned factor) {
    std::vector<float> values;
    for (size_t i = 0; i < n; i++) values.push_back(float(int(i * factor % 17) - 8));
    return values;
}

const size_t ROWS = 64, COLUMNS = 32, K = 64;
void gemm(const char* name, uint16_t (*convert)(float), unsigned blocks) {
    auto a = whole_numbers(blocks * ROWS * K, 5), b = whole_numbers(K * COLUMNS, 7);
    std::vector<uint16_t> low_a, low_b;
    for (float v : a) low_a.push_back(convert(v));
    for (float v : b) low_b.push_back(convert(v));
    const unsigned stage_bytes = (ROWS + COLUMNS) * 16 * 2;
    timespec start, end;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &start);
    auto out = launch<float>(name, {blocks, 128, 2 * stage_bytes}, std::vector<float>(blocks * ROWS * COLUMNS), low_a, low_b);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &end);
    double seconds = double(end.tv_sec - start.tv_sec) + 1e-9 * double(end.tv_nsec - start.tv_nsec);
    printf("%.2f GMAC/s of a core\n", 1e-9 * double(blocks * ROWS * COLUMNS * K) / seconds);
    for (size_t i = 0; i < out.size(); i += blocks > 8 ? 997 : 1) {
        float sum = 0;
        for (size_t k = 0; k < K; k++) sum += a[i / COLUMNS * K + k] * b[k * COLUMNS + i % COLUMNS];
        expect(out[i] == sum, name, i);
    }
}

// 6.4 million threads that do nothing.
void starts() {
    const unsigned blocks = 100000, threads = 64;
    timespec start, end;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &start);
    launch<uint32_t>("test_start", {blocks, threads, 0}, std::vector<uint32_t>(1));
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &end);
    double seconds = double(end.tv_sec - start.tv_sec) + 1e-9 * double(end.tv_nsec - start.tv_nsec);
    printf("%.1f M thread starts/s of a core\n", 1e-6 * blocks * threads / seconds);
}

void wrong_argument_size() {
    void* function;
    must(cuModuleGetFunction(&function, nullptr, "test_start"));
    char buffer[sizeof(Args)] = {};
    size_t bytes = sizeof(Args) - 8;
    void* extra[] = {reinterpret_cast<void*>(1), buffer, reinterpret_cast<void*>(2), &bytes, nullptr};
    must(cuLaunchKernel(function, 1, 1, 1, 64, 1, 1, 0, nullptr, nullptr, extra));
}

// ---- captures

const int GLOBAL = 0, THREAD_LOCAL = 1, NON_BLOCKING = 1, INVALIDATED = 901, WRONG_THREAD = 908;

int elsewhere(const std::function<int()>& call) {
    int code = 0;
    std::thread([&] { code = call(); }).join();
    return code;
}

// A recorded memset and copy do nothing until they are launched, and then as often as they are launched.
void recorded(void* stream) {
    Pointer memory = upload(std::vector<unsigned char>(64, 1));
    void *pinned, *graph, *executable;
    must(cuMemHostAlloc(&pinned, 64, 0));
    auto read = [&] {
        std::vector<unsigned char> values(64);
        must(cuMemcpyDtoH_v2(values.data(), memory, 64));
        return values;
    };
    must(cuStreamBeginCapture_v2(stream, THREAD_LOCAL));
    must(cuMemsetD8Async(memory, 2, 64, stream));
    must(cuMemcpyHtoDAsync_v2(memory + 32, pinned, 32, stream));
    must(cuStreamEndCapture(stream, &graph));
    expect(read()[0] == 1, "memory that only a capture has set", 0);
    must(cuGraphInstantiateWithFlags(&executable, graph, 0));
    must(cuGraphDestroy(graph));
    for (unsigned char value : {7, 8}) {
        memset(pinned, value, 64);
        must(cuGraphLaunch(executable, stream));
        auto values = read();
        for (size_t i = 0; i < 64; i++) expect(values[i] == (i < 32 ? 2 : value), "memory that a graph has set", i);
    }
    must(cuGraphExecDestroy(executable));
    must(cuMemFree_v2(memory));
}

// What cannot be recorded fails, and the capture with it.
void refused(void* stream) {
    static char pageable[64];
    Pointer memory = upload(std::vector<char>(64)), more;
    void *event, *recorded, *other;
    must(cuEventCreate(&event, 0));
    must(cuEventCreate(&recorded, 0));
    must(cuEventRecord(event, stream));
    const std::function<int()> calls[] = {
        [&] { return cuMemAlloc_v2(&more, 64); },
        [&] { return cuMemAllocAsync(&more, 64, stream); },
        [&] { return cuMemFreeAsync(memory, stream); },
        [&] { return cuMemFree_v2(memory); },
        [&] { return cuMemHostAlloc(&other, 64, 0); },
        [&] { return cuMemcpyHtoD_v2(memory, pageable, 64); },
        [&] { return cuMemcpyDtoH_v2(pageable, memory, 64); },
        [&] { return cuMemcpyHtoDAsync_v2(memory, pageable, 64, stream); },
        [&] { return cuMemcpyDtoHAsync_v2(pageable, memory, 64, stream); },
        [&] { return cuModuleLoadData(&other, pageable); },
        [&] { return cuStreamSynchronize(stream); },
        [&] { return cuCtxSynchronize(); },
        [&] { return cuEventSynchronize(event); },
        [&] { return cuEventRecord(recorded, stream) || cuEventSynchronize(recorded); },
        [&] { return cuStreamWaitEvent(stream, event, 0); },
        [&] { return elsewhere([] { return cuCtxSynchronize(); }); },
    };
    void* graph;
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        must(cuStreamBeginCapture_v2(stream, THREAD_LOCAL));
        expect(calls[i]() != 0, "a call during a capture", i);
        expect(cuMemsetD8Async(memory, 0, 64, stream) == INVALIDATED, "what follows it", i);
        expect(cuStreamEndCapture(stream, &graph) == INVALIDATED && !graph, "the end of the capture", i);
    }
    must(cuMemFree_v2(memory));
}

// Other threads may do as they like, unless the capture is global; but they may not end it.
void other_threads(void* stream) {
    for (int mode : {THREAD_LOCAL, GLOBAL}) {
        void* graph;
        Pointer memory = 0;
        must(cuStreamBeginCapture_v2(stream, mode));
        bool done = !elsewhere([&] { return cuMemAlloc_v2(&memory, 64); });
        expect(done == (mode == THREAD_LOCAL), "an allocation by another thread", size_t(mode));
        expect((cuStreamEndCapture(stream, &graph) == 0) == done, "the end of the capture", size_t(mode));
    }
    void* graph;
    must(cuStreamBeginCapture_v2(stream, THREAD_LOCAL));
    expect(elsewhere([&] { return cuStreamEndCapture(stream, &graph); }) == WRONG_THREAD, "an end by another thread", 0);
    expect(cuStreamBeginCapture_v2(stream, THREAD_LOCAL) != 0, "a second beginning", 0);
    expect(cuStreamEndCapture(stream, &graph) == INVALIDATED && cuStreamEndCapture(stream, &graph) != 0, "the ends", 0);
}

// Memory may be taken in a capture by a thread that has said that it knows; it does not become a part of it.
void relaxed(void* stream) {
    void* graph;
    Pointer memory;
    int mode = 2;
    must(cuStreamBeginCapture_v2(stream, THREAD_LOCAL));
    must(cuThreadExchangeStreamCaptureMode(&mode));
    must(cuMemAlloc_v2(&memory, 64));
    must(cuThreadExchangeStreamCaptureMode(&mode));
    expect(mode == 2 && cuMemFree_v2(memory) != 0, "a free after it", 0);
    expect(cuStreamEndCapture(stream, &graph) == INVALIDATED, "the end of the capture", 0);
    must(cuMemFree_v2(memory));
}

void captures() {
    void* stream;
    must(cuStreamCreate(&stream, NON_BLOCKING));
    recorded(stream);
    refused(stream);
    other_threads(stream);
    relaxed(stream);
}

// Pieces next to one another are one memory; where there is none, nothing works, and nothing of a piece can be given back twice.
void pieces() {
    const size_t bytes = 2 << 20;
    const int property[8] = {1, 0, 1, 0}, access[3] = {1, 0, 3};
    Pointer at;
    unsigned long long piece[2];
    must(cuMemAddressReserve(&at, 3 * bytes, 0, 0, 0));
    expect(cuMemsetD8Async(at, 1, 1, nullptr) != 0, "a use of addresses without memory", 0);
    for (int i = 0; i < 2; i++) {
        Pointer where = at + unsigned(i) * bytes;
        must(cuMemCreate(&piece[i], bytes, property, 0));
        must(cuMemMap(where, bytes, 0, piece[i], 0));
        expect(cuMemsetD8Async(where, 1, 1, nullptr) != 0, "a use before access is set", size_t(i));
        must(cuMemSetAccess(where, bytes, access, 1));
    }
    must(cuMemsetD8Async(at, 7, 2 * bytes, nullptr));
    expect(cuMemsetD8Async(at, 7, 2 * bytes + 1, nullptr) != 0, "a use past the end", 0);
    expect(cuMemMap(at, bytes, 0, piece[1], 0) != 0, "memory where there is some", 0);
    std::vector<unsigned char> values(bytes + 2);
    must(cuMemcpyDtoH_v2(values.data(), at + bytes - 1, values.size() - 1));
    for (size_t i = 0; i + 1 < values.size(); i++) expect(values[i] == 7, "memory of two pieces", i);
    expect(cuMemRelease(piece[0]) != 0, "giving back a piece in use", 0);
    must(cuMemUnmap(at, bytes));
    must(cuMemRelease(piece[0]));
    expect(cuMemUnmap(at, bytes) != 0 && cuMemRelease(piece[0]) != 0, "giving back a piece twice", 0);
    expect(cuMemcpyDtoH_v2(values.data(), at, 1) != 0, "a use of what was given back", 0);
}

void bug(const char* name) {
    const bool two = !strcmp(name, "bug_race_between_blocks") || !strcmp(name, "bug_no_fence");
    const unsigned blocks = two ? 2 : 1;
    const unsigned shared = strcmp(name, "bug_too_much_shared") ? 256 : 48 << 10;
    auto out = launch<float>(name, {blocks, 64, shared}, std::vector<float>(64), std::vector<float>(64), {}, 64);
    for (size_t i = 0; i < out.size(); i++) expect(out[i] == 0, name, i);
}

}  // namespace

int main(int, char** arguments) {
    const std::string name = arguments[1];
    if (name == "gemm_bf16") gemm("test_gemm_bf16", bf16_of, 5);
    else if (name == "gemm_f16") gemm("test_gemm_f16", f16_of, 5);
    else if (name == "speed") gemm("test_gemm_bf16", bf16_of, 4000), starts();
    else if (name == "captures") captures();
    else if (name == "pieces") pieces();
    else if (name == "wrong_argument_size") wrong_argument_size();
    else if (name == "bug_no_barrier" || name == "bug_no_wait" || name == "bug_wait_too_short" || name == "bug_early_reuse")
        gemm(name.c_str(), bf16_of, 2);
    else bug(name.c_str());
    return 0;
}
