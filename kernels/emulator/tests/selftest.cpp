// selftest NAME: launches a test kernel through the driver API and compares with plain code. Exits with 0 when all is right,
// 1 for a wrong result, 2 when the driver reports an error. Kernels named bug_* write zeros where they are right.
#include <algorithm>
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

// The multiple of 2^(exponent − bits) nearest to a normal `value`, ties to even or away from zero.
float rounded(float value, int bits, bool ties_to_even) {
    int exponent;
    double scaled = std::ldexp(std::frexp(double(value), &exponent), bits);
    double whole = ties_to_even ? std::nearbyint(scaled) : std::round(scaled);
    return float(std::ldexp(whole, exponent - bits));
}
uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}
uint16_t bf16_of(float value) { return uint16_t(bits_of(rounded(value, 8, true)) >> 16); }
// Of a value in the range of normal f16.
uint16_t f16_of(float value) {
    uint32_t bits = bits_of(rounded(value, 11, true));
    if (!(bits & 0x7fffffff)) return uint16_t(bits >> 16);
    return uint16_t((bits >> 16 & 0x8000) | (((bits >> 23 & 0xff) - 112) << 10) | (bits >> 13 & 0x3ff));
}

void convert() {
    std::vector<float> a;
    srand(1);
    for (int i = 0; i < 1000; i++) a.push_back(std::ldexp(float(rand() % 2000001 - 1000000), rand() % 12 - 24));
    for (float tie : {1.0f + 0x1p-8f, 1.0f + 3 * 0x1p-8f, 1.0f + 0x1p-11f, 1.0f + 3 * 0x1p-11f}) a.push_back(tie);
    a.erase(std::remove_if(a.begin(), a.end(), [](float v) { return v != 0 && std::fabs(v) < 0x1p-14f; }), a.end());
    auto out = launch<uint32_t>("test_convert", {3, 64, 0}, std::vector<uint32_t>(5 * a.size()), a, a, int64_t(a.size()));
    for (size_t i = 0; i < a.size(); i++) {
        expect(out[5 * i] == bf16_of(a[i]), "bf16", i);
        expect(out[5 * i + 1] == f16_of(a[i]), "f16", i);
        expect(out[5 * i + 2] == bits_of(rounded(a[i], 11, false)), "TF32", i);
        expect(out[5 * i + 3] == (bf16_of(a[i]) | uint32_t(bf16_of(-a[i])) << 16), "a pair of bf16", i);
        expect(out[5 * i + 4] == (f16_of(a[i]) | uint32_t(f16_of(-a[i])) << 16), "a pair of f16", i);
    }
}

void reduce() {
    const size_t threads = 96, blocks = 5;
    std::vector<float> a;
    for (size_t i = 0; i < threads * blocks; i++) a.push_back(float(int(i * 37 % 101) - 50));
    auto out = launch<float>("test_reduce", {blocks, threads, 0}, std::vector<float>(4 * a.size()), a);
    for (size_t i = 0; i < a.size(); i++) {
        float sum = 0, most = -INFINITY, group = 0;
        for (size_t j = i / threads * threads; j < (i / threads + 1) * threads; j++) sum += a[j], most = std::fmax(most, a[j]);
        for (size_t j = i / 8 * 8; j < i / 8 * 8 + 8; j++) group += a[j];
        expect(out[4 * i] == sum, "block_sum", i);
        expect(out[4 * i + 1] == most, "block_max", i);
        expect(out[4 * i + 2] == group, "warp_sum", i);
        expect(std::fabs(out[4 * i + 3] / std::exp2(double(a[i])) - 1) < 1e-6, "ex2", i);
    }
}

void warp() {
    auto out = launch<uint32_t>("test_warp", {1, 64, 0}, std::vector<uint32_t>(8 * 64));
    for (uint32_t me = 0; me < 64; me++) {
        uint32_t lane = me % 32, thirds = 0;
        for (uint32_t l = 0; l < 32; l++) thirds |= uint32_t((me / 32 * 32 + l) % 3 == 0) << l;
        const uint32_t expected[8] = {me / 8 * 8 + 1, me ^ 5, lane < 3 ? me : me - 3, lane % 16 > 12 ? me : me + 3, thirds,
                                      me >= 32,       me < 32, 13};
        for (int i = 0; i < 8; i++) expect(out[8 * me + size_t(i)] == expected[i], "a shuffle or vote", 8 * me + size_t(i));
    }
}

void ldmatrix() {
    auto out = launch<uint32_t>("test_ldmatrix", {1, 32, 0}, std::vector<uint32_t>(14 * 32));
    for (uint32_t lane = 0; lane < 32; lane++) {
        uint32_t g = lane / 4, t = lane % 4 * 2;
        auto plain = [&](uint32_t tile) { return (64 * tile + 8 * g + t) | (64 * tile + 8 * g + t + 1) << 16; };
        auto transposed = [&](uint32_t tile) { return (64 * tile + 8 * t + g) | (64 * tile + 8 * (t + 1) + g) << 16; };
        const uint32_t* r = &out[14 * lane];
        expect(r[0] == plain(0) && r[1] == transposed(0), "ldmatrix_x1", lane);
        for (uint32_t i = 0; i < 2; i++) expect(r[2 + i] == plain(i) && r[4 + i] == transposed(i), "ldmatrix_x2", lane);
        for (uint32_t i = 0; i < 4; i++) expect(r[6 + i] == plain(i) && r[10 + i] == transposed(i), "ldmatrix_x4", lane);
    }
}

// Small whole numbers: every sum is exact.
std::vector<float> whole_numbers(size_t n, unsigned factor) {
    std::vector<float> values;
    for (size_t i = 0; i < n; i++) values.push_back(float(int(i * factor % 17) - 8));
    return values;
}

void tf32() {
    auto a = whole_numbers(16 * 8, 5), b = whole_numbers(8 * 8, 7);
    auto out = launch<float>("test_tf32", {1, 32, 0}, std::vector<float>(16 * 8), a, b);
    for (size_t i = 0; i < out.size(); i++) {
        float sum = 0;
        for (size_t k = 0; k < 8; k++) sum += a[i / 8 * 8 + k] * b[k * 8 + i % 8];
        expect(out[i] == sum, "mma_tf32", i);
    }
}

void copy() {
    const size_t chunks = 128;
    std::vector<uint32_t> a;
    for (uint32_t i = 0; i < 4 * chunks; i++) a.push_back(i * 2654435761u);
    auto out = launch<uint32_t>("test_copy", {2, 64, 1024}, std::vector<uint32_t>(4 * chunks), a, a, int64_t(chunks));
    for (size_t i = 0; i < out.size(); i++) expect(out[i] == (i < 4 * (chunks - 1) ? a[i] : 0), "a copied word", i);
}

void last_block() {
    auto a = whole_numbers(300, 3);
    float sum = 0;
    for (float v : a) sum += v;
    auto out = launch<uint32_t>("test_last_block", {unsigned(a.size()), 32, 0}, std::vector<uint32_t>(2 + a.size()), a);
    expect(out[0] == a.size() && out[1] == bits_of(sum), "the last block's sum", 0);
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

// 6.4 million threads that convert nothing.
void starts() {
    const unsigned blocks = 100000, threads = 64;
    timespec start, end;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &start);
    launch<uint32_t>("test_convert", {blocks, threads, 0}, std::vector<uint32_t>(1), std::vector<float>(1));
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &end);
    double seconds = double(end.tv_sec - start.tv_sec) + 1e-9 * double(end.tv_nsec - start.tv_nsec);
    printf("%.1f M thread starts/s of a core\n", 1e-6 * blocks * threads / seconds);
}

void wrong_argument_size() {
    void* function;
    must(cuModuleGetFunction(&function, nullptr, "test_warp"));
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
    if (name == "convert") convert();
    else if (name == "reduce") reduce();
    else if (name == "warp") warp();
    else if (name == "ldmatrix") ldmatrix();
    else if (name == "tf32") tf32();
    else if (name == "copy") copy();
    else if (name == "last_block") last_block();
    else if (name == "gemm_bf16") gemm("test_gemm_bf16", bf16_of, 5);
    else if (name == "gemm_f16") gemm("test_gemm_f16", f16_of, 5);
    else if (name == "speed") gemm("test_gemm_bf16", bf16_of, 4000), starts();
    else if (name == "wrong_argument_size") wrong_argument_size();
    else if (name == "bug_no_barrier" || name == "bug_no_wait" || name == "bug_wait_too_short" || name == "bug_early_reuse")
        gemm(name.c_str(), bf16_of, 2);
    else bug(name.c_str());
    return 0;
}
