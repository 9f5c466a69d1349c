// selftest NAME: launches a test kernel through the driver API and compares with plain code. Exits with 0 when all is right,
// 1 for a wrong result, 2 when the driver reports an error. Kernels named bug_* write zeros where they are right.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <string>
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

void bug(const char* name) {
    const unsigned blocks = strcmp(name, "bug_race_between_blocks") ? 1 : 2;
    auto out = launch<float>(name, {blocks, 64, 256}, std::vector<float>(64), std::vector<float>(64), {}, 64);
    for (size_t i = 0; i < out.size(); i++) expect(out[i] == 0, name, i);
}

}  // namespace

int main(int, char** arguments) {
    const std::string name = arguments[1];
    if (name == "gemm_bf16") gemm("test_gemm_bf16", bf16_of, 5);
    else if (name == "gemm_f16") gemm("test_gemm_f16", f16_of, 5);
    else if (name == "speed") gemm("test_gemm_bf16", bf16_of, 4000), starts();
    else if (name == "wrong_argument_size") wrong_argument_size();
    else if (name == "bug_no_barrier" || name == "bug_no_wait" || name == "bug_wait_too_short" || name == "bug_early_reuse")
        gemm(name.c_str(), bf16_of, 2);
    else bug(name.c_str());
    return 0;
}
