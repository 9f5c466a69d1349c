// What the lanes of a warp do together: shuffles, votes, and the tensor cores' instructions.
#include "block.h"
#include "sanitizer.h"

namespace emulator {
namespace {

constexpr uint32_t ALL_LANES = ~0u;
// Names of collectives: told apart by their addresses.
const char SYNC[] = "__syncwarp", SHUFFLE[] = "a shuffle", BALLOT[] = "a vote", LDMATRIX[] = "ldmatrix", MMA[] = "mma",
           MMA_TF32[] = "mma (TF32)";

struct ShuffleOperand {
    uint64_t value, result;
    Shuffle kind;
    int argument, width;
};

int source_lane(int lane, const ShuffleOperand& operand) {
    int start = lane & ~(operand.width - 1), end = start + operand.width, source = lane;
    switch (operand.kind) {
    case Shuffle::Index: source = start + (operand.argument & (operand.width - 1)); break;
    case Shuffle::Xor: source = lane ^ operand.argument; break;
    case Shuffle::Up: source = lane - operand.argument; break;
    case Shuffle::Down: source = lane + operand.argument; break;
    }
    bool outside = operand.kind == Shuffle::Up ? source < start : source >= end;
    return outside ? lane : source;
}

void shuffle_lanes(void* const* operands, uint32_t mask) {
    const uint64_t undefined = 0x7ff7dead7fbadeadull;  // NaN as a double and as a float
    for (uint32_t rest = mask; rest; rest &= rest - 1) {
        int lane = __builtin_ctz(rest);
        auto& mine = *static_cast<ShuffleOperand*>(operands[lane]);
        int source = source_lane(lane, mine);
        mine.result = mask >> source & 1 ? static_cast<ShuffleOperand*>(operands[source])->value : undefined;
    }
}

struct BallotOperand {
    int predicate;
    uint32_t result;
};

void count_votes(void* const* operands, uint32_t mask) {
    uint32_t votes = 0;
    for (uint32_t rest = mask; rest; rest &= rest - 1) {
        int lane = __builtin_ctz(rest);
        if (static_cast<BallotOperand*>(operands[lane])->predicate) votes |= 1u << lane;
    }
    for (uint32_t rest = mask; rest; rest &= rest - 1)
        static_cast<BallotOperand*>(operands[__builtin_ctz(rest)])->result = votes;
}

struct TileOperand {
    uint32_t* out;
    int tiles;
    bool transposed;
    uint16_t row[8];
};

void deal_tiles(void* const* operands, uint32_t) {
    const auto& any = *static_cast<TileOperand*>(operands[0]);
    for (int tile = 0; tile < any.tiles; tile++) {
        uint16_t elements[8][8];
        for (int row = 0; row < 8; row++)
            memcpy(elements[row], static_cast<TileOperand*>(operands[8 * tile + row])->row, sizeof elements[row]);
        for (int lane = 0; lane < 32; lane++) {
            int major = lane / 4, minor = lane % 4 * 2;
            uint32_t first = any.transposed ? elements[minor][major] : elements[major][minor];
            uint32_t second = any.transposed ? elements[minor + 1][major] : elements[major][minor + 1];
            static_cast<TileOperand*>(operands[lane])->out[tile] = first | second << 16;
        }
    }
}

float from_bf16(uint32_t bits) { return bit_cast<float>(bits << 16); }
float from_f16(uint32_t bits) { return bit_cast<_Float16>(uint16_t(bits)); }
float from_tf32(uint32_t bits) { return bit_cast<float>(bits & 0xffffe000u); }

struct MmaOperand {
    float* d;
    const uint32_t* a;
    const uint32_t* b;
};

// c (16 × 8) += a (16 × K) · b (K × 8)
template <int K> void multiply(const float (&a)[16][K], const float (&b)[K][8], float (&c)[16][8]) {
    for (int row = 0; row < 16; row++)
        for (int k = 0; k < K; k++)
            for (int column = 0; column < 8; column++) c[row][column] += a[row][k] * b[k][column];
}

void load_accumulators(void* const* operands, float (&c)[16][8]) {
    for (int lane = 0; lane < 32; lane++) {
        const float* d = static_cast<MmaOperand*>(operands[lane])->d;
        int g = lane / 4, t = lane % 4 * 2;
        c[g][t] = d[0], c[g][t + 1] = d[1], c[g + 8][t] = d[2], c[g + 8][t + 1] = d[3];
    }
}

void store_accumulators(void* const* operands, const float (&c)[16][8]) {
    for (int lane = 0; lane < 32; lane++) {
        float* d = static_cast<MmaOperand*>(operands[lane])->d;
        int g = lane / 4, t = lane % 4 * 2;
        d[0] = c[g][t], d[1] = c[g][t + 1], d[2] = c[g + 8][t], d[3] = c[g + 8][t + 1];
    }
}

template <float (*convert)(uint32_t)> void multiply_16_bit(void* const* operands, uint32_t) {
    float a[16][16], b[16][8], c[16][8];
    for (int lane = 0; lane < 32; lane++) {
        const auto& mine = *static_cast<MmaOperand*>(operands[lane]);
        int g = lane / 4, t = lane % 4 * 2;
        for (int part = 0; part < 4; part++) {
            int row = g + part % 2 * 8, k = t + part / 2 * 8;
            a[row][k] = convert(mine.a[part] & 0xffff);
            a[row][k + 1] = convert(mine.a[part] >> 16);
        }
        for (int part = 0; part < 2; part++) {
            int k = t + part * 8;
            b[k][g] = convert(mine.b[part] & 0xffff);
            b[k + 1][g] = convert(mine.b[part] >> 16);
        }
    }
    load_accumulators(operands, c);
    multiply(a, b, c);
    store_accumulators(operands, c);
}

void multiply_tf32(void* const* operands, uint32_t) {
    float a[16][8], b[8][8], c[16][8];
    for (int lane = 0; lane < 32; lane++) {
        const auto& mine = *static_cast<MmaOperand*>(operands[lane]);
        int g = lane / 4, t = lane % 4;
        for (int part = 0; part < 4; part++) a[g + part % 2 * 8][t + part / 2 * 4] = from_tf32(mine.a[part]);
        for (int part = 0; part < 2; part++) b[t + part * 4][g] = from_tf32(mine.b[part]);
    }
    load_accumulators(operands, c);
    multiply(a, b, c);
    store_accumulators(operands, c);
}

void need_full_warp(const char* what, Site site) {
    if (!block->warp_is_full()) fail(site, "%s in a warp of fewer than 32 threads", what);
}

}  // namespace

void sync_warp(unsigned mask, Site site) {
    char* order = block->warp_order();
    sanitizer::release(order);
    block->gather(mask, SYNC, nullptr, nullptr, site);
    sanitizer::acquire(order);
}

uint64_t shuffle(unsigned mask, uint64_t value, Shuffle kind, int argument, int width, Site site) {
    ShuffleOperand operand = {value, 0, kind, argument, width};
    block->gather(mask, SHUFFLE, &operand, shuffle_lanes, site);
    return operand.result;
}

unsigned ballot(unsigned mask, int predicate, Site site) {
    BallotOperand operand = {predicate, 0};
    block->gather(mask, BALLOT, &operand, count_votes, site);
    return operand.result;
}

void check_row(const void* row, Site site) {
    if (uintptr_t(row) % 16) fail(site, "ldmatrix: a row does not start at a multiple of 16 bytes");
    if (!block->in_shared(row, 16)) fail(site, "ldmatrix: a row lies outside the block's shared memory");
}

void exchange_rows(uint32_t* out, int tiles, bool transposed, const TileRow& row, Site site) {
    need_full_warp("ldmatrix", site);
    TileOperand operand = {out, tiles, transposed, {}};
    memcpy(operand.row, row.words, sizeof row.words);
    block->gather(ALL_LANES, LDMATRIX, &operand, deal_tiles, site);
}

void mma_m16n8k16(float* d, const uint32_t* a, const uint32_t* b, Operand kind, Site site) {
    need_full_warp("mma", site);
    MmaOperand operand = {d, a, b};
    block->gather(ALL_LANES, MMA, &operand, kind == Operand::Bf16 ? multiply_16_bit<from_bf16> : multiply_16_bit<from_f16>,
                  site);
}

void mma_m16n8k8_tf32(float* d, const uint32_t* a, const uint32_t* b, Site site) {
    need_full_warp("mma", site);
    MmaOperand operand = {d, a, b};
    block->gather(ALL_LANES, MMA_TF32, &operand, multiply_tf32, site);
}

}  // namespace emulator
