// Attention in shifted windows with relative position bias, forward and backward. For query i and key j of one window and head:
//
//   s_ij = head_dim^-1/2 q_i · k_j + table[index(i, j), head] + m_ij     p_ij = exp(s_ij − lse_i)
//   y_i = Σ_j p_ij v_j      lse_i = ln Σ_j exp s_ij
//   D_i = dy_i · y_i        ds_ij = p_ij (dy_i · v_j − D_i)
//   dq_i = head_dim^-1/2 Σ_j ds_ij k_j     dk_j = head_dim^-1/2 Σ_i ds_ij q_i     dv_j = Σ_i p_ij dy_i
//   dtable[index(i, j), head] += ds_ij     dpad = Σ (dk_j, dv_j) over padded tokens j
//
// with m_ij = −100 between two regions of a rolled window. Pad, roll and partition are index arithmetic: a token is looked up
// where it lies in qkv [B, D, H, W, 3, heads, head_dim], and padding holds `pad` as key and value and is no query. Scores are
// kept in base 2. Softmax runs online; backward makes the weights again from lse.
//
//   kernel (…_16, _32, _64: the most that head_dim may be)   rows       columns   overwrites
//   window_attention_forward                                  queries    k, v      y, lse
//   window_attention_delta                                    –          –         delta = D
//   window_attention_queries                                  q, dy      k, v      dq; table_parts
//   window_attention_keys                                     k, v       q, dy     dk, dv; pad_parts, where there is padding
//   window_attention_sums                                     –          –         dtable, dpad
//
// qkv, y, dy, dqkv are f32, bf16 or f16; pad, table, lse, delta, gradients of pad and table f32. 16 bits multiply on tensor
// cores (mma m16n8k16; p and ds are rounded as operands, not in their sums), f32 on CUDA cores; all sums are f32.
//
// Launch of the three attention kernels: groups · chunks · heads blocks, heads fastest, of `warps` ≤ 8 warps. A block walks over
// the windows of its group, window = group, group + groups, …, and takes rows chunk · warps · R and on, R = 16 a warp in
// 16 bits, 32, 16, 8 in f32 (1, 2, 4 threads a row). Columns pass through a ring of two tiles of COLUMNS tokens, filled by
// cp.async. Dynamic shared memory: see Block. delta: any blocks of THREADS. sums: blocks of THREADS for 32 outputs each.
//
// Nothing is added to memory: each warp sums ds in its own table in shared memory, where the 8 (f32: 32) queries that meet one
// key touch different entries; a block adds its warps' tables in order, `sums` the blocks' in order. So do the rows of padding.
// Bits depend on the shapes alone.
//
// Operations for n tokens a window: 4 · n² · C forward, 14 · n² · C backward (scores and dp twice, dq, dk, dv). Bytes: qkv once
// for each chunk of rows, of which all but the first come from L2; y, lse, dqkv once.
#include "../../cuda/device.cuh"

constexpr int THREADS = 256;
constexpr float LOG2E = 1.44269504f, LN2 = 0.693147181f;
// Between two regions.
constexpr float MASKED = -100.0f * LOG2E;
// What a token that is not in the grid has for its row: padding, or past the window's last token.
constexpr int PADDING = -1, NOTHING = -2;
// A tag holds a token's code, and above it its region: one bit per axis, or OUTSIDE for NOTHING.
constexpr int CODE_BITS = 20, CODE = (1 << CODE_BITS) - 1, OUTSIDE = 8;
// Bits of one axis of a place in a window.
constexpr int PLACE_BITS = 10, PLACE = (1 << PLACE_BITS) - 1;

struct WindowAttentionArgs {
    const void* qkv;     // [rows, 3, heads, head_dim]
    const float* pad;    // [3, heads, head_dim]
    const float* table;  // [offsets, heads]
    const void* dy;      // [rows, heads, head_dim], as y
    void* y;
    float* lse;          // [rows, heads], as delta
    float* delta;
    void* dqkv;
    float* table_parts;  // [tables, heads, entries]
    float* pad_parts;    // [pads, 2, heads, head_dim]
    float* dtable;
    float* dpad;
    i64 rows;            // B · D · H · W
    int size[3], window[3], shift[3], blocks[3];
    int nominal[2];      // h and w of the window that the table was made for
    int offsets;
    int span;            // the last token's code: codes of two tokens differ by at most as much
    int entries;         // of a window's part of the table: 2 · span + 1
    int heads, head_dim, tokens;
    int slots;           // tokens, filled up to whole tiles of rows and of columns
    int windows;         // of the whole batch
    int groups, chunks;
    int wide;            // rows of a head start at multiples of 16 bytes and are as many long
    int tables, pads;    // parts of dtable and of dpad; no pads where there is no padding
    float scale;         // head_dim^-1/2
};

// What a head has for each token: q, k, v or dy. `pad` is null where padding counts as zero.
template <class T> struct Part {
    const T* values;
    i64 pitch;
    const float* pad;
};

template <class T> DEVICE Part<T> part_of_qkv(const WindowAttentionArgs& args, int part, int head, bool with_pad) {
    int width = args.heads * args.head_dim, at = part * width + head * args.head_dim;
    return {static_cast<const T*>(args.qkv) + at, 3 * width, with_pad ? args.pad + at : nullptr};
}

template <class T> DEVICE Part<T> part_of_dy(const WindowAttentionArgs& args, int head) {
    return {static_cast<const T*>(args.dy) + head * args.head_dim, args.heads * args.head_dim, nullptr};
}

template <class T> DEVICE T element(const Part<T>& part, int row, int d, int head_dim) {
    if (d >= head_dim || row == NOTHING) return from_f32<T>(0.0f);
    if (row == PADDING) return from_f32<T>(part.pad ? part.pad[d] : 0.0f);
    return part.values[row * part.pitch + d];
}

// ---- a block: its windows, their tokens, and its shared memory

// Shared memory, in this order: a ring of 2 stages of 2 tiles of COLUMNS · HD; 2 stages of 2 · COLUMNS floats for the columns'
// lse and delta; `slots` rows, tags and places; `entries` biases; and for each warp what it sums up (OWN floats: none, a
// table, or 2 · HD for dk and dv of padding).
enum Pass { FORWARD, QUERIES, KEYS };

template <class T, int HD, Pass PASS> struct Block {
    static constexpr int COLUMNS = sizeof(T) == 2 ? 64 : 32;
    static constexpr int CHUNK = 16 / sizeof(T), LINE = HD / CHUNK;  // elements of 16 bytes, and such chunks of a token
    static constexpr int TILE = COLUMNS * HD * sizeof(T);            // bytes

    const WindowAttentionArgs& args;
    int head, chunk, group, own_size;
    unsigned char* ring;
    float* stats;
    int *rows, *tags, *places;
    float *bias, *own;

    __device__ __forceinline__ Block(const WindowAttentionArgs& a, unsigned char* shared) : args(a) {
        head = blockIdx.x % args.heads;
        chunk = blockIdx.x / args.heads % args.chunks;
        group = blockIdx.x / args.heads / args.chunks;
        own_size = PASS == QUERIES ? args.entries : PASS == KEYS ? 2 * HD : 0;
        ring = shared;
        stats = (float*)(ring + 4 * TILE);
        rows = (int*)(stats + 4 * COLUMNS);
        tags = rows + args.slots;
        places = tags + args.slots;
        bias = (float*)(places + args.slots);
        own = bias + args.entries;
    }

    __device__ __forceinline__ float* warps_own(int warp) const { return own + warp * own_size; }
    // This block among those of its head.
    __device__ __forceinline__ i64 part() const { return (i64)group * args.chunks + chunk; }

    // What is the same in all windows.
    __device__ __forceinline__ void prepare() {
        int h = args.nominal[0], w = args.nominal[1];
        for (int t = threadIdx.x; t < args.slots; t += blockDim.x) {
            int code = ((t / (h * w)) * (2 * h - 1) + t / w % h) * (2 * w - 1) + t % w;
            int line = t / args.window[2];
            int place = (line / args.window[1] << PLACE_BITS | line % args.window[1]) << PLACE_BITS | t % args.window[2];
            tags[t] = t < args.tokens ? code : 0;
            places[t] = t < args.tokens ? place : 0;
        }
        const float* from = args.table + (i64)((args.offsets - 1) / 2 - args.span) * args.heads + head;
        for (int i = threadIdx.x; i < args.entries; i += blockDim.x) bias[i] = from[(i64)i * args.heads] * LOG2E;
        for (int i = threadIdx.x; i < own_size * (int)(blockDim.x / 32); i += blockDim.x) own[i] = 0.0f;
    }

    // Rows and regions of a window's tokens. Each thread writes the slots that it prepared. Barriers stand on both sides.
    __device__ __forceinline__ void enter(int window) {
        int at[3], rest = window;
#pragma unroll
        for (int axis = 2; axis >= 0; axis--) {
            at[axis] = rest % args.blocks[axis] * args.window[axis] + args.shift[axis];
            rest /= args.blocks[axis];
        }
        __syncthreads();
        for (int t = threadIdx.x; t < args.slots; t += blockDim.x) {
            int place = places[t], row = rest, region = 0;
            bool inside = true;
#pragma unroll
            for (int axis = 0; axis < 3; axis++) {
                int from = at[axis] + (place >> (2 - axis) * PLACE_BITS & PLACE);
                int whole = args.blocks[axis] * args.window[axis];
                bool wrapped = from >= whole;
                from -= wrapped ? whole : 0;
                inside = inside && from < args.size[axis];
                region = region << 1 | (int)wrapped;
                row = row * args.size[axis] + from;
            }
            bool token = t < args.tokens;
            rows[t] = !token ? NOTHING : inside ? row : PADDING;
            tags[t] = (tags[t] & CODE) | (token ? region : OUTSIDE) << CODE_BITS;
        }
        __syncthreads();
    }

    // The score, in base 2, of a query and a key that have these tags, and this q · k; −∞ where there is no such key.
    __device__ __forceinline__ float score(float product, float scale, int query, int key) const {
        float value = product * scale + bias[(query & CODE) - (key & CODE) + args.span];
        float apart = key >> CODE_BITS == OUTSIDE ? -infinity() : MASKED;
        return (query ^ key) >> CODE_BITS ? value + apart : value;
    }
    static __device__ __forceinline__ float infinity() { return __uint_as_float(0x7f800000u); }

    // What subtracting makes a weight from a score. Padding is no query: no score is above +∞.
    __device__ __forceinline__ float lse_of(int row) const {
        return row >= 0 ? args.lse[(i64)row * args.heads + head] * LOG2E : infinity();
    }
    __device__ __forceinline__ float delta_of(int row) const {
        return row >= 0 ? args.delta[(i64)row * args.heads + head] : 0.0f;
    }

    // ---- columns

    __device__ __forceinline__ int tiles() const { return (args.tokens + COLUMNS - 1) / COLUMNS; }
    __device__ __forceinline__ int columns(int tile) const { return min(COLUMNS, args.tokens - tile * COLUMNS); }
    // Bytes to a chunk of a token. In 16 bits, 8 neighbouring tokens have their chunks on 8 different banks of 16 bytes.
    static __device__ __forceinline__ int offset(int column, int chunk) {
        constexpr int lines = 8 / LINE ? 8 / LINE : 1;
        return (column * LINE + (sizeof(T) == 2 ? chunk ^ (column / lines & (LINE - 1)) : chunk)) * 16;
    }
    __device__ __forceinline__ unsigned char* tile_at(int tile, int which) const {
        return ring + ((tile & 1) * 2 + which) * TILE;
    }
    __device__ __forceinline__ float* stats_at(int tile) const { return stats + (tile & 1) * 2 * COLUMNS; }

    __device__ __forceinline__ void load(int tile, const Part<T>& first, const Part<T>& second) const {
        for (int i = threadIdx.x; i < 2 * COLUMNS * LINE; i += blockDim.x) {
            int at = i % LINE, column = i / LINE % COLUMNS, which = i / LINE / COLUMNS;
            Part<T> from = {which ? second.values : first.values, which ? second.pitch : first.pitch,
                            which ? second.pad : first.pad};
            load_chunk(tile_at(tile, which) + offset(column, at), from, rows[tile * COLUMNS + column], at * CHUNK);
        }
        if (PASS == KEYS)
            for (int i = threadIdx.x; i < COLUMNS; i += blockDim.x) {
                int row = rows[tile * COLUMNS + i];
                stats_at(tile)[i] = lse_of(row);
                stats_at(tile)[COLUMNS + i] = delta_of(row);
            }
    }
    __device__ __forceinline__ void load_chunk(unsigned char* to, const Part<T>& from, int row, int d) const {
        if (args.wide && row >= 0) {
            cp_async<16>(to, from.values + row * from.pitch + d, d < args.head_dim);
            return;
        }
#pragma unroll 1
        for (int i = 0; i < CHUNK; i++) ((T*)to)[i] = element(from, row, d + i, args.head_dim);
    }
    // Calls use(tile) on every tile once it is there, while the next one is on its way.
    template <class Use> __device__ __forceinline__ void for_tiles(const Part<T>& first, const Part<T>& second, Use use) const {
        for (int next = 0; next <= tiles(); next++) {
            if (next < tiles()) load(next, first, second);
            cp_async_commit();
            if (next == 0) continue;
            cp_async_wait<1>();
            __syncthreads();
            use(next - 1);
            __syncthreads();
        }
    }

    // ---- results

    __device__ __forceinline__ T* gradient(int part, int row) const {
        return static_cast<T*>(args.dqkv) + ((i64)row * 3 + part) * args.heads * args.head_dim + head * args.head_dim;
    }
    // What all warps summed up, in the order of the warps.
    __device__ __forceinline__ float sum_of_warps(int i) const {
        float sum = 0.0f;
        for (int warp = 0; warp < (int)(blockDim.x / 32); warp++) sum += warps_own(warp)[i];
        return sum;
    }
    __device__ __forceinline__ void store_parts() const {
        __syncthreads();
        if (PASS == QUERIES) {
            float* to = args.table_parts + (part() * args.heads + head) * args.entries;
            for (int i = threadIdx.x; i < args.entries; i += blockDim.x) to[i] = sum_of_warps(i);
        }
        if (PASS == KEYS && args.pads)
            for (int i = threadIdx.x; i < 2 * HD; i += blockDim.x)
                if (i % HD < args.head_dim)
                    args.pad_parts[((part() * 2 + i / HD) * args.heads + head) * args.head_dim + i % HD] = sum_of_warps(i);
    }
};

// ---- CUDA cores, in f32: SPLIT threads hold a row, each every SPLITth chunk of 4

template <int HD, Pass PASS> struct Cuda : Block<float, HD, PASS> {
    using Base = Block<float, HD, PASS>;
    using Base::args, Base::head, Base::rows, Base::tags;
    static constexpr int SPLIT = HD / 16, ROWS = 32 / SPLIT;
    int slot, mine;  // the thread's row in the window, and which chunks of it

    __device__ __forceinline__ Cuda(const WindowAttentionArgs& a, unsigned char* shared) : Base(a, shared) {
        slot = (this->chunk * (blockDim.x / 32) + warp_index()) * ROWS + lane_index() / SPLIT;
        mine = lane_index() % SPLIT;
    }

    __device__ __forceinline__ int dim(int i) const { return (mine + i / 4 * SPLIT) * 4 + i % 4; }
    __device__ __forceinline__ void load_row(float (&values)[16], const Part<float>& part) const {
#pragma unroll
        for (int i = 0; i < 16; i++) values[i] = element(part, rows[slot], dim(i), args.head_dim);
    }
    __device__ __forceinline__ void store_row(float* to, const float (&values)[16], float scale) const {
#pragma unroll
        for (int i = 0; i < 16; i++)
            if (dim(i) < args.head_dim) to[dim(i)] = values[i] * scale;
    }
    __device__ __forceinline__ void load_column(float (&values)[16], const unsigned char* tile, int column) const {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float4 chunk = *(const float4*)(tile + Base::offset(column, mine + i * SPLIT));
            values[4 * i] = chunk.x, values[4 * i + 1] = chunk.y, values[4 * i + 2] = chunk.z, values[4 * i + 3] = chunk.w;
        }
    }
    static __device__ __forceinline__ float dot(const float (&a)[16], const float (&b)[16]) {
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < 16; i++) sum += a[i] * b[i];
        return warp_sum<SPLIT>(sum);
    }
    static __device__ __forceinline__ void add(float (&to)[16], float by, const float (&values)[16]) {
#pragma unroll
        for (int i = 0; i < 16; i++) to[i] += by * values[i];
    }

    __device__ __forceinline__ void attend() const {
        float q[16], y[16] = {}, top = -Base::infinity(), sum = 0.0f;
        load_row(q, part_of_qkv<float>(args, 0, head, true));
        float scale = args.scale * LOG2E;
        int tag = tags[slot];
        Part<float> k = part_of_qkv<float>(args, 1, head, true), v = part_of_qkv<float>(args, 2, head, true);
        this->for_tiles(k, v, [&](int tile) {
            constexpr int STEP = 8;
            const int* keys = tags + tile * Base::COLUMNS;
            for (int first = 0; first < this->columns(tile); first += STEP) {
                float s[STEP], most = top, row[16];
#pragma unroll
                for (int i = 0; i < STEP; i++) {
                    load_column(row, this->tile_at(tile, 0), first + i);
                    float product = dot(q, row);
                    s[i] = this->score(product, scale, tag, keys[first + i]);
                    most = fmaxf(most, s[i]);
                    sum = __fmaf_rn(product, 0.0f, sum);  // a score of −∞ is broken, and must not count as no weight
                }
                float shrink = ex2(top - most);
                top = most;
                sum *= shrink;
#pragma unroll
                for (int i = 0; i < 16; i++) y[i] *= shrink;
#pragma unroll
                for (int i = 0; i < STEP; i++) {
                    float p = ex2(s[i] - top);
                    sum += p;
                    load_column(row, this->tile_at(tile, 1), first + i);
                    add(y, p, row);
                }
            }
        });
        int row = rows[slot];
        if (row < 0) return;
        store_row(static_cast<float*>(args.y) + ((i64)row * args.heads + head) * args.head_dim, y, 1.0f / sum);
        if (mine == 0) args.lse[(i64)row * args.heads + head] = top * LN2 + logf(sum);
    }

    // dq and ds of queries, or dk and dv of keys.
    __device__ __forceinline__ void differentiate() {
        constexpr bool by_keys = PASS == KEYS;
        Part<float> q = part_of_qkv<float>(args, 0, head, false), dy = part_of_dy<float>(args, head);
        Part<float> k = part_of_qkv<float>(args, 1, head, true), v = part_of_qkv<float>(args, 2, head, true);
        float first[16], second[16], sum_ds[16] = {}, sum_p[16] = {};
        load_row(first, by_keys ? k : q);
        load_row(second, by_keys ? v : dy);
        float scale = args.scale * LOG2E;
        int row = rows[slot], tag = tags[slot];
        float lse = by_keys ? 0.0f : this->lse_of(row), delta = by_keys ? 0.0f : this->delta_of(row);
        float* table = this->warps_own(warp_index());
        this->for_tiles(by_keys ? q : k, by_keys ? dy : v, [&](int tile) {
            const int* others = tags + tile * Base::COLUMNS;
            const float* stats = this->stats_at(tile);
            for (int i = 0; i < this->columns(tile); i++) {
                float a[16], b[16];
                load_column(a, this->tile_at(tile, 0), i);
                load_column(b, this->tile_at(tile, 1), i);
                int other = others[i];
                float s = this->score(dot(first, a), scale, by_keys ? other : tag, by_keys ? tag : other);
                float p = ex2(s - (by_keys ? stats[i] : lse));
                float ds = p * (dot(second, b) - (by_keys ? stats[Base::COLUMNS + i] : delta));
                add(sum_ds, ds, a);
                if (by_keys) {
                    add(sum_p, p, b);
                } else {
                    if (row >= 0 && mine == 0) table[(tag & CODE) - (other & CODE) + args.span] += ds;
                    __syncwarp();  // the next key may meet the same entry in another lane
                }
            }
        });
        if (row >= 0) {
            store_row(this->gradient(by_keys ? 1 : 0, row), sum_ds, args.scale);
            if (by_keys) store_row(this->gradient(2, row), sum_p, 1.0f);
        }
        if (by_keys && args.pads) add_padding(row == PADDING, sum_ds, sum_p);
    }
    __device__ __forceinline__ void add_padding(bool counts, const float (&dk)[16], const float (&dv)[16]) const {
        float* to = this->warps_own(warp_index());
#pragma unroll
        for (int i = 0; i < 16; i++) {
            float k = counts ? dk[i] * args.scale : 0.0f, v = counts ? dv[i] : 0.0f;
#pragma unroll
            for (int lanes = SPLIT; lanes < 32; lanes *= 2) {
                k += __shfl_xor_sync(0xffffffffu, k, lanes);
                v += __shfl_xor_sync(0xffffffffu, v, lanes);
            }
            if (lane_index() < SPLIT) to[dim(i)] += k, to[HD + dim(i)] += v;
        }
    }
};

// ---- tensor cores: a warp holds 16 rows

template <class T, int HD, Pass PASS> struct Tensor : Block<T, HD, PASS> {
    using Base = Block<T, HD, PASS>;
    using Base::args, Base::head, Base::rows, Base::tags;
    static constexpr int ROWS = 16, K = HD / 16;
    int slot, pair;  // the lane's upper row (the lower one is 8 on), and its first column of 8

    __device__ __forceinline__ Tensor(const WindowAttentionArgs& a, unsigned char* shared) : Base(a, shared) {
        slot = (this->chunk * (blockDim.x / 32) + warp_index()) * ROWS + lane_index() / 4;
        pair = lane_index() % 4 * 2;
    }

    __device__ __forceinline__ void load_rows(u32 (&a)[K][4], const Part<T>& part) const {
#pragma unroll
        for (int k = 0; k < K; k++)
#pragma unroll
            for (int r = 0; r < 4; r++) {
                int row = rows[slot + r % 2 * 8], d = k * 16 + r / 2 * 8 + pair;
                u32 low = element(part, row, d, args.head_dim).bits, high = element(part, row, d + 1, args.head_dim).bits;
                a[k][r] = low | high << 16;
            }
    }
    __device__ __forceinline__ void store_row(T* to, const float (&values)[2 * K][4], int half, float scale) const {
#pragma unroll
        for (int j = 0; j < 2 * K; j++) {
            int d = j * 8 + pair;
            float low = values[j][2 * half] * scale, high = values[j][2 * half + 1] * scale;
            if (args.head_dim % 2 == 0 && d < args.head_dim) *(u32*)(to + d) = pack<T>(low, high);
            if (args.head_dim % 2 == 1 && d < args.head_dim) to[d] = from_f32<T>(low);
            if (args.head_dim % 2 == 1 && d + 1 < args.head_dim) to[d + 1] = from_f32<T>(high);
        }
    }

    // to[row, column] = Σ_d rows[row, d] · tile[column, d] for 16 columns.
    static __device__ __forceinline__ void product(float (*to)[4], const u32 (&a)[K][4], const unsigned char* tile, int first) {
        int lane = lane_index(), column = first + (lane & 7) + (lane >> 4) * 8;
#pragma unroll
        for (int half = 0; half < 2; half++)
#pragma unroll
            for (int e = 0; e < 4; e++) to[half][e] = 0.0f;
#pragma unroll
        for (int k = 0; k < K; k++) {
            u32 b[4];
            ldmatrix_x4(b, tile + Base::offset(column, k * 2 + (lane >> 3 & 1)));
            mma<T>(to[0], a[k], b[0], b[1]);
            mma<T>(to[1], a[k], b[2], b[3]);
        }
    }
    // to[row, d] += Σ_column weights[row, column] · tile[column, d] over 16 columns.
    static __device__ __forceinline__ void add(float (&to)[2 * K][4], float (*weights)[4], const unsigned char* tile, int first) {
        int lane = lane_index(), column = first + (lane & 15);
        u32 a[4] = {pack<T>(weights[0][0], weights[0][1]), pack<T>(weights[0][2], weights[0][3]),
                    pack<T>(weights[1][0], weights[1][1]), pack<T>(weights[1][2], weights[1][3])};
#pragma unroll
        for (int k = 0; k < K; k++) {
            u32 b[4];
            ldmatrix_x4_trans(b, tile + Base::offset(column, k * 2 + (lane >> 4)));
            mma<T>(to[2 * k], a, b[0], b[1]);
            mma<T>(to[2 * k + 1], a, b[2], b[3]);
        }
    }

    __device__ __forceinline__ void attend() const {
        constexpr int STEP = 32;
        u32 q[K][4];
        load_rows(q, part_of_qkv<T>(args, 0, head, true));
        float y[2 * K][4] = {}, top[2] = {-Base::infinity(), -Base::infinity()}, sum[2] = {};
        float scale = args.scale * LOG2E;
        int tag[2] = {tags[slot], tags[slot + 8]};
        Part<T> k = part_of_qkv<T>(args, 1, head, true), v = part_of_qkv<T>(args, 2, head, true);
        this->for_tiles(k, v, [&](int tile) {
            for (int first = 0; first < this->columns(tile); first += STEP) {
                float s[STEP / 8][4], most[2] = {top[0], top[1]};
#pragma unroll
                for (int j = 0; j < STEP / 8; j += 2) product(s + j, q, this->tile_at(tile, 0), first + j * 8);
#pragma unroll
                for (int j = 0; j < STEP / 8; j++) {
                    const int* keys = tags + tile * Base::COLUMNS + first + j * 8 + pair;
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        // A score of −∞ is broken, and must not count as no weight.
                        sum[e / 2] = __fmaf_rn(s[j][e], 0.0f, sum[e / 2]);
                        s[j][e] = this->score(s[j][e], scale, tag[e / 2], keys[e % 2]);
                        most[e / 2] = fmaxf(most[e / 2], s[j][e]);
                    }
                }
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    most[half] = warp_max<4>(most[half]);
                    float shrink = ex2(top[half] - most[half]);
                    top[half] = most[half];
                    sum[half] *= shrink;
#pragma unroll
                    for (int j = 0; j < 2 * K; j++) y[j][2 * half] *= shrink, y[j][2 * half + 1] *= shrink;
                }
#pragma unroll
                for (int j = 0; j < STEP / 8; j++)
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        s[j][e] = ex2(s[j][e] - top[e / 2]);
                        sum[e / 2] += s[j][e];
                    }
#pragma unroll
                for (int j = 0; j < STEP / 8; j += 2) add(y, s + j, this->tile_at(tile, 1), first + j * 8);
            }
        });
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float whole = warp_sum<4>(sum[half]);
            int row = rows[slot + half * 8];
            if (row < 0) continue;
            store_row(static_cast<T*>(args.y) + ((i64)row * args.heads + head) * args.head_dim, y, half, 1.0f / whole);
            if (pair == 0) args.lse[(i64)row * args.heads + head] = top[half] * LN2 + logf(whole);
        }
    }

    // dq and ds of queries, or dk and dv of keys.
    __device__ __forceinline__ void differentiate() {
        constexpr bool by_keys = PASS == KEYS;
        constexpr int STEP = 16;
        Part<T> q = part_of_qkv<T>(args, 0, head, false), dy = part_of_dy<T>(args, head);
        Part<T> k = part_of_qkv<T>(args, 1, head, true), v = part_of_qkv<T>(args, 2, head, true);
        u32 first_rows[K][4], second_rows[K][4];
        load_rows(first_rows, by_keys ? k : q);
        load_rows(second_rows, by_keys ? v : dy);
        float sum_ds[2 * K][4] = {}, sum_p[2 * K][4] = {}, lse[2] = {}, delta[2] = {};
        float scale = args.scale * LOG2E;
        int row[2] = {rows[slot], rows[slot + 8]}, tag[2] = {tags[slot], tags[slot + 8]};
        if (!by_keys)
            for (int half = 0; half < 2; half++) lse[half] = this->lse_of(row[half]), delta[half] = this->delta_of(row[half]);
        this->for_tiles(by_keys ? q : k, by_keys ? dy : v, [&](int tile) {
            for (int first = 0; first < this->columns(tile); first += STEP) {
                float p[2][4], ds[2][4];
                product(p, first_rows, this->tile_at(tile, 0), first);
                product(ds, second_rows, this->tile_at(tile, 1), first);
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    int column = first + j * 8 + pair;
                    const int* others = tags + tile * Base::COLUMNS + column;
                    const float* stats = this->stats_at(tile) + column;
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        int here = tag[e / 2], other = others[e % 2];
                        float s = this->score(p[j][e], scale, by_keys ? other : here, by_keys ? here : other);
                        p[j][e] = ex2(s - (by_keys ? stats[e % 2] : lse[e / 2]));
                        ds[j][e] = p[j][e] * (ds[j][e] - (by_keys ? stats[Base::COLUMNS + e % 2] : delta[e / 2]));
                    }
                    if (!by_keys) add_to_table(ds[j], row, tag, others);
                }
                add(sum_ds, ds, this->tile_at(tile, 0), first);
                if (by_keys) add(sum_p, p, this->tile_at(tile, 1), first);
            }
        });
#pragma unroll
        for (int half = 0; half < 2; half++)
            if (row[half] >= 0) {
                store_row(this->gradient(by_keys ? 1 : 0, row[half]), sum_ds, half, args.scale);
                if (by_keys) store_row(this->gradient(2, row[half]), sum_p, half, 1.0f);
            }
        if (by_keys && args.pads) add_padding(row, sum_ds, sum_p);
    }
    // ds of 16 queries and 8 keys: one key after the other, since two may meet the same entry.
    __device__ __forceinline__ void add_to_table(const float (&ds)[4], const int (&row)[2], const int (&tag)[2],
                                                 const int* keys) const {
        float* table = this->warps_own(warp_index());
#pragma unroll
        for (int e = 0; e < 2; e++) {
            float* from = table + args.span - (keys[e] & CODE);
            for (int turn = 0; turn < 8; turn += 2) {
                if (pair == turn) {
                    if (row[0] >= 0) from[tag[0] & CODE] += ds[e];
                    if (row[1] >= 0) from[tag[1] & CODE] += ds[2 + e];
                }
                __syncwarp();
            }
        }
    }
    __device__ __forceinline__ void add_padding(const int (&row)[2], const float (&dk)[2 * K][4],
                                                const float (&dv)[2 * K][4]) const {
        float* to = this->warps_own(warp_index());
#pragma unroll
        for (int j = 0; j < 2 * K; j++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                int d = j * 8 + pair + e;
                float k = over_rows(row, dk[j][e], dk[j][2 + e]) * args.scale, v = over_rows(row, dv[j][e], dv[j][2 + e]);
                if (lane_index() < 4) to[d] += k, to[HD + d] += v;
            }
    }
    static __device__ __forceinline__ float over_rows(const int (&row)[2], float upper, float lower) {
        float sum = (row[0] == PADDING ? upper : 0.0f) + (row[1] == PADDING ? lower : 0.0f);
#pragma unroll
        for (int lanes = 4; lanes < 32; lanes *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
        return sum;
    }
};

// ---- kernels

template <class Core> DEVICE void forward(const WindowAttentionArgs& args) {
    DYNAMIC_SHARED(shared);
    Core core(args, shared);
    core.prepare();
    for (int window = core.group; window < args.windows; window += args.groups) {
        core.enter(window);
        core.attend();
    }
}

template <class Core> DEVICE void backward(const WindowAttentionArgs& args) {
    DYNAMIC_SHARED(shared);
    Core core(args, shared);
    core.prepare();
    for (int window = core.group; window < args.windows; window += args.groups) {
        core.enter(window);
        core.differentiate();
    }
    core.store_parts();
}

template <class T> DEVICE void dots(const WindowAttentionArgs& args) {
    auto dy = static_cast<const T*>(args.dy);
    auto y = static_cast<const T*>(args.y);
    for (i64 i = grid_thread(); i < args.rows * args.heads; i += grid_threads()) {
        float sum = 0.0f;
        for (i64 at = i * args.head_dim; at < (i + 1) * args.head_dim; at++) sum += to_f32(dy[at]) * to_f32(y[at]);
        args.delta[i] = sum;
    }
}

// The sum over parts of one of `pitch` numbers, for which 8 warps take every eighth part. All threads call it, each warp with
// the same 32 columns; those below `pitch` are read.
DEVICE float sum_of_parts(const float* parts, i64 count, i64 pitch, i64 column) {
    SHARED(float, partial, [THREADS / 32][32]);
    float sum = 0.0f;
    if (column >= 0 && column < pitch)
        for (i64 part = warp_index(); part < count; part += THREADS / 32) sum += parts[part * pitch + column];
    partial[warp_index()][lane_index()] = sum;
    __syncthreads();
    sum = partial[0][lane_index()];
#pragma unroll
    for (int warp = 1; warp < THREADS / 32; warp++) sum += partial[warp][lane_index()];
    return sum;
}

// Blocks of 32 outputs: first dtable, transposed, then dpad.
extern "C" __global__ void __launch_bounds__(THREADS) window_attention_sums_f32(const WindowAttentionArgs args) {
    i64 width = args.heads * args.head_dim, table_blocks = ceil_div((i64)args.offsets * args.heads, 32);
    if (blockIdx.x < table_blocks) {
        i64 output = (i64)blockIdx.x * 32 + lane_index(), head = output / args.offsets, offset = output % args.offsets;
        i64 entry = offset - (args.offsets - 1) / 2 + args.span;
        bool used = head < args.heads && entry >= 0 && entry < args.entries;
        i64 pitch = args.heads * args.entries;
        float sum = sum_of_parts(args.table_parts, args.tables, pitch, used ? head * args.entries + entry : -1);
        if (head < args.heads && warp_index() == 0) args.dtable[offset * args.heads + head] = sum;
    } else {
        i64 output = (blockIdx.x - table_blocks) * 32 + lane_index();
        float sum = sum_of_parts(args.pad_parts, args.pads, 2 * width, output - width);
        if (output < 3 * width && warp_index() == 0) args.dpad[output] = sum;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) window_attention_delta_f32(const WindowAttentionArgs args) { dots<float>(args); }
extern "C" __global__ void __launch_bounds__(THREADS) window_attention_delta_bf16(const WindowAttentionArgs args) { dots<bf16>(args); }
extern "C" __global__ void __launch_bounds__(THREADS) window_attention_delta_f16(const WindowAttentionArgs args) { dots<f16>(args); }

extern "C" __global__ void __launch_bounds__(THREADS) window_attention_forward_16_f32(const WindowAttentionArgs args) { forward<Cuda<16, FORWARD>>(args); }
extern "C" __global__ void __launch_bounds__(THREADS, 2) window_attention_forward_32_f32(const WindowAttentionArgs args) { forward<Cuda<32, FORWARD>>(args); }
extern "C" __global__ void __launch_bounds__(THREADS, 1) window_attention_forward_64_f32(const WindowAttentionArgs args) { forward<Cuda<64, FORWARD>>(args); }
extern "C" __global__ void __launch_bounds__(THREADS) window_attention_queries_16_f32(const WindowAttentionArgs args) { backward<Cuda<16, QUERIES>>(args); }
extern "C" __global__ void __launch_bounds__(THREADS, 2) window_attention_queries_32_f32(const WindowAttentionArgs args) { backward<Cuda<32, QUERIES>>(args); }
extern "C" __global__ void __launch_bounds__(THREADS, 1) window_attention_queries_64_f32(const WindowAttentionArgs args) { backward<Cuda<64, QUERIES>>(args); }
extern "C" __global__ void __launch_bounds__(THREADS) window_attention_keys_16_f32(const WindowAttentionArgs args) { backward<Cuda<16, KEYS>>(args); }
extern "C" __global__ void __launch_bounds__(THREADS, 2) window_attention_keys_32_f32(const WindowAttentionArgs args) { backward<Cuda<32, KEYS>>(args); }
extern "C" __global__ void __launch_bounds__(THREADS, 1) window_attention_keys_64_f32(const WindowAttentionArgs args) { backward<Cuda<64, KEYS>>(args); }
extern "C" __global__ void __launch_bounds__(THREADS) window_attention_forward_16_bf16(const WindowAttentionArgs args) { forward<Tensor<bf16, 16, FORWARD>>(args); }
extern "C" __global__ void __launch_bounds__(THREADS) window_attention_forward_16_f16(const WindowAttentionArgs args) { forward<Tensor<f16, 16, FORWARD>>(args); }
extern "C" __global__ void __launch_bounds__(THREADS, 2) window_attention_forward_32_bf16(const WindowAttentionArgs args) { forward<Tensor<bf16, 32, FORWARD>>(args); }
extern "C" __global__ void __launch_bounds__(THREADS, 2) window_attention_forward_32_f16(const WindowAttentionArgs args) { forward<Tensor<f16, 32, FORWARD>>(args); }
extern "C" __global__ void __launch_bounds__(THREADS, 1) window_attention_forward_64_bf16(const WindowAttentionArgs args) { forward<Tensor<bf16, 64, FORWARD>>(args); }
extern "C" __global__ void __launch_bounds__(THREADS, 1) window_attention_forward_64_f16(const WindowAttentionArgs args) { forward<Tensor<f16, 64, FORWARD>>(args); }
extern "C" __global__ void __launch_bounds__(THREADS) window_attention_queries_16_bf16(const WindowAttentionArgs args) { backward<Tensor<bf16, 16, QUERIES>>(args); }
extern "C" __global__ void __launch_bounds__(THREADS) window_attention_queries_16_f16(const WindowAttentionArgs args) { backward<Tensor<f16, 16, QUERIES>>(args); }
extern "C" __global__ void __launch_bounds__(THREADS, 2) window_attention_queries_32_bf16(const WindowAttentionArgs args) { backward<Tensor<bf16, 32, QUERIES>>(args); }
extern "C" __global__ void __launch_bounds__(THREADS, 2) window_attention_queries_32_f16(const WindowAttentionArgs args) { backward<Tensor<f16, 32, QUERIES>>(args); }
extern "C" __global__ void __launch_bounds__(THREADS, 1) window_attention_queries_64_bf16(const WindowAttentionArgs args) { backward<Tensor<bf16, 64, QUERIES>>(args); }
extern "C" __global__ void __launch_bounds__(THREADS, 1) window_attention_queries_64_f16(const WindowAttentionArgs args) { backward<Tensor<f16, 64, QUERIES>>(args); }
extern "C" __global__ void __launch_bounds__(THREADS) window_attention_keys_16_bf16(const WindowAttentionArgs args) { backward<Tensor<bf16, 16, KEYS>>(args); }
extern "C" __global__ void __launch_bounds__(THREADS) window_attention_keys_16_f16(const WindowAttentionArgs args) { backward<Tensor<f16, 16, KEYS>>(args); }
extern "C" __global__ void __launch_bounds__(THREADS, 2) window_attention_keys_32_bf16(const WindowAttentionArgs args) { backward<Tensor<bf16, 32, KEYS>>(args); }
extern "C" __global__ void __launch_bounds__(THREADS, 2) window_attention_keys_32_f16(const WindowAttentionArgs args) { backward<Tensor<f16, 32, KEYS>>(args); }
extern "C" __global__ void __launch_bounds__(THREADS, 1) window_attention_keys_64_bf16(const WindowAttentionArgs args) { backward<Tensor<bf16, 64, KEYS>>(args); }
extern "C" __global__ void __launch_bounds__(THREADS, 1) window_attention_keys_64_f16(const WindowAttentionArgs args) { backward<Tensor<f16, 64, KEYS>>(args); }
