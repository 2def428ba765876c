// Attention scores, or patterns, of chosen query rows and heads, for the samples that ask: what hook_attn_scores and hook_pattern
// hold. attention.cu never has them whole; this computes them again from q, k and, for patterns, the log-sum-exp it left.
//
// Shapes: q [rows, H, h], k [rows, K, h] with row strides, lse f32 [H, rows]. The output is ragged: for each sample that asks, a
// tensor [heads kept, selected rows, n] in f32, f16 or bf16, at an element offset of its own. Keys that a query does not see are −∞
// in the scores and 0 in the patterns; every element is written.
//
// Split: a block takes one kept head, up to 64 selected rows (32 for f32) of one sample and a span of its keys, from a list made by
// the host: memory stays bounded whatever is asked for, and one row of a long sample still spreads over the SMs. Keys come in
// tiles of 64, copied by cp.async into one buffer while the other is multiplied; each of 4 warps multiplies 16 of the keys with all
// rows. Products go through shared memory, and are masked, scaled and stored row by row, in runs of 64 elements. Spans that no row
// of the block sees are filled without reading anything.
// The products are made by the same instructions in the same order as in attention.cu, so that scores are bit for bit what z was made of;
// a pattern is exp(score − lse), which for the compute dtype rounds to the normalised P.
//
// Bound at Mistral-7B shapes: by the bytes written. All rows of one 4096-token sample, 32 heads, bf16: 1.07 GB = 0.36 ms per layer
// at 3.0 TB/s, for 69 GFLOP (half of the products lie above the diagonal and are not made) = 0.09 ms. The last row alone: 262 KB, and
// 8.4 MB of keys read.

#include "attention.cuh"

struct AttentionScoresTile {
    uint64_t out;            // element of `out` where this sample's tensor has the tile's first row, of the first kept head, key 0
    uint32_t first_row;      // of the sample in the batch
    uint32_t n;              // tokens of the sample
    uint32_t selected;       // where the tile's rows begin in `selected`
    uint32_t count;          // of rows, at most ROWS
    uint32_t sample_count;   // selected rows of the whole sample: from head to head are sample_count · n elements
    uint32_t key_begin, key_end;
    uint32_t _pad;
};

struct AttentionScoresArgs {
    const void* q;                     // [rows, n_heads, h], after RoPE
    const void* k;                     // [rows, n_kv_heads, h], after RoPE
    const float* lse;                  // [n_heads, rows], natural logarithm: patterns are written; null: scores are
    void* out;                         // ragged, see above
    const AttentionScoresTile* tiles;  // [n_tiles]
    const uint32_t* selected;          // query rows counted in their sample, ascending in each tile
    const uint32_t* heads;             // [heads_kept], query heads
    uint32_t q_stride, k_stride;       // elements from row to row
    uint32_t n_heads, n_kv_heads;
    uint32_t rows;                     // of the batch: the row stride of lse
    uint32_t n_tiles;
    uint32_t heads_kept;
    uint32_t window;                   // keys a query sees at most, its own included; 0: all
    uint32_t out_dtype;                // 0: f32, 1: f16, 2: bf16
    float scale;                       // of the scores: 1/√h
};

constexpr int THREADS = 128;
constexpr int WARPS = THREADS / WARP_LANES;
constexpr int KEYS = 64;                  // per step
constexpr int WARP_KEYS = KEYS / WARPS;
constexpr int PRODUCT_PITCH = KEYS + 8;   // fragments' pairs then fall on different banks

// Selected rows of a block. 99 KB of shared memory hold no more for f32 at h = 128.
template <typename T>
__host__ __device__ constexpr int tile_rows() {
    return sizeof(T) == 4 ? 32 : 64;
}

template <typename T, int HEAD_DIM>
struct Shared {
    T q[tile_rows<T>()][pitch<T, HEAD_DIM>()];
    T k[2][KEYS][pitch<T, HEAD_DIM>()];
    float product[tile_rows<T>()][PRODUCT_PITCH];
    int query[tile_rows<T>()];
    float lse[tile_rows<T>()];
};

// ---- q·k ------------------------------------------------------------------------------------------------------------

// Products of the tile's first `m_tiles` · 16 rows with this warp's 16 keys, on tensor cores.
template <typename T, int HEAD_DIM>
__device__ __forceinline__ void multiply(Shared<T, HEAD_DIM>& shared, int buffer, int m_tiles) {
    constexpr int PITCH = pitch<T, HEAD_DIM>();
    constexpr int M_TILES = tile_rows<T>() / 16;
    const int lane = threadIdx.x % WARP_LANES;
    const int first_key = threadIdx.x / WARP_LANES * WARP_KEYS;
    const uint32_t q_at = lane_row_major<T, HEAD_DIM>(shared.q[0]);
    const uint32_t k_at = lane_keys<T, HEAD_DIM>(shared.k[buffer][first_key]);
    float s[M_TILES][2][4] = {};
#pragma unroll
    for (int d = 0; d < HEAD_DIM; d += 16) {
        uint32_t k[4];
        ldmatrix_x4(k, k_at + d * sizeof(T));
#pragma unroll
        for (int m = 0; m < M_TILES; m++) {
            if (m >= m_tiles) break;
            uint32_t q[4];
            ldmatrix_x4(q, q_at + (m * 16 * PITCH + d) * sizeof(T));
            mma_m16n8k16<T>(s[m][0], q, k[0], k[1]);
            mma_m16n8k16<T>(s[m][1], q, k[2], k[3]);
        }
    }
#pragma unroll
    for (int m = 0; m < M_TILES; m++)
#pragma unroll
        for (int n = 0; n < 2; n++)
#pragma unroll
            for (int half = 0; half < 2; half++)
                *reinterpret_cast<float2*>(&shared.product[m * 16 + half * 8 + lane / 4][first_key + n * 8 + lane % 4 * 2]) =
                    make_float2(s[m][n][2 * half], s[m][n][2 * half + 1]);
}

template <int HEAD_DIM>
__device__ __forceinline__ void multiply(Shared<float, HEAD_DIM>& shared, int buffer, int m_tiles) {
    const int lane = threadIdx.x % WARP_LANES;
    const int first_key = threadIdx.x / WARP_LANES * WARP_KEYS;
    for (int row = lane / 4; row < m_tiles * 16; row += 8)
        for (int key = first_key + lane % 4; key < first_key + WARP_KEYS; key += 4)
            shared.product[row][key] = dot<HEAD_DIM>(shared.q[row], shared.k[buffer][key]);
}

// ---- scores and patterns --------------------------------------------------------------------------------------------

// exp(score − lse), computed the way the attention kernel of the same dtype does.
template <typename T>
__device__ __forceinline__ float weight(float product, float scale, float lse) {
    return ex2(fmaf(product, scale * LOG2_E, -lse * LOG2_E));
}

template <>
__device__ __forceinline__ float weight<float>(float product, float scale, float lse) {
    return expf(product * scale - lse);
}

__device__ __forceinline__ void store(void* out, uint32_t dtype, size_t at, float value) {
    if (dtype == 0)
        static_cast<float*>(out)[at] = value;
    else if (dtype == 1)
        static_cast<__half*>(out)[at] = __float2half_rn(value);
    else
        static_cast<__nv_bfloat16*>(out)[at] = __float2bfloat16_rn(value);
}

// Stores keys [key, key_end) of every row of the tile, a warp per row. `made`: the products are there; otherwise no row sees these keys.
template <typename T, int HEAD_DIM>
__device__ __forceinline__ void store_rows(const AttentionScoresArgs& a, const Shared<T, HEAD_DIM>& shared,
                                           const AttentionScoresTile& tile, size_t out, int key, bool made) {
    const bool patterns = a.lse != nullptr;
    const int window = window_of(a.window);
    const int lane = threadIdx.x % WARP_LANES;
    const int inside = min(KEYS, static_cast<int>(tile.key_end) - key);
    for (int row = threadIdx.x / WARP_LANES; row < static_cast<int>(tile.count); row += WARPS) {
        const int query = shared.query[row];
        for (int j = lane; j < inside; j += WARP_LANES) {
            float value = patterns ? 0.0f : -INFINITY;
            if (made && visible(query, key + j, window)) {
                const float product = shared.product[row][j];
                value = patterns ? weight<T>(product, a.scale, shared.lse[row]) : product * a.scale;
            }
            store(a.out, a.out_dtype, out + row * static_cast<size_t>(tile.n) + key + j, value);
        }
    }
}

// The tile's queries, gathered; rows from `count` on are zeros.
template <typename T, int HEAD_DIM>
__device__ __forceinline__ void gather_queries(Shared<T, HEAD_DIM>& shared, const T* q, uint32_t stride, int count) {
    constexpr int CHUNKS = HEAD_DIM * sizeof(T) / 16;
    constexpr int ELEMENTS = 16 / sizeof(T);
    for (int chunk = threadIdx.x; chunk < tile_rows<T>() * CHUNKS; chunk += THREADS) {
        const int row = chunk / CHUNKS;
        const int column = chunk % CHUNKS * ELEMENTS;
        const bool inside = row < count;
        const T* from = q + (inside ? shared.query[row] : 0) * static_cast<size_t>(stride) + column;
        cp_async_16_or_zero(shared_address(&shared.q[row][column]), from, inside);
    }
}

template <typename T, int HEAD_DIM>
__device__ __forceinline__ void attention_scores(const AttentionScoresArgs& a) {
    extern __shared__ __align__(16) unsigned char dynamic[];
    Shared<T, HEAD_DIM>& shared = *reinterpret_cast<Shared<T, HEAD_DIM>*>(dynamic);
    const AttentionScoresTile tile = a.tiles[blockIdx.x / a.heads_kept];
    const uint32_t place = blockIdx.x % a.heads_kept;
    const uint32_t head = a.heads[place];
    const uint32_t kv_head = head / (a.n_heads / a.n_kv_heads);
    const T* q = static_cast<const T*>(a.q) + tile.first_row * size_t(a.q_stride) + head * HEAD_DIM;
    const T* k = static_cast<const T*>(a.k) + tile.first_row * size_t(a.k_stride) + kv_head * HEAD_DIM;
    const size_t out = tile.out + place * size_t(tile.sample_count) * tile.n;

    if (threadIdx.x < tile.count) {
        const uint32_t query = a.selected[tile.selected + threadIdx.x];
        shared.query[threadIdx.x] = query;
        if (a.lse != nullptr) shared.lse[threadIdx.x] = a.lse[head * size_t(a.rows) + tile.first_row + query];
    }
    __syncthreads();
    const int first = shared.query[0];
    const int last = shared.query[tile.count - 1];
    const int m_tiles = (tile.count + 15) / 16;

    const int end = tile.key_end;
    const int window = window_of(a.window);
    const auto seen = [&](int key) { return key < end && any_visible(first, last, key, min(key + KEYS, end) - 1, window); };
    const auto load_keys = [&](int key, int buffer) {
        if (seen(key))
            copy_rows<T, HEAD_DIM, KEYS, THREADS>(shared.k[buffer][0], k + key * size_t(a.k_stride), a.k_stride, tile.n - key);
        cp_async_commit();
    };
    int buffer = 0;
    gather_queries<T, HEAD_DIM>(shared, q, a.q_stride, tile.count);
    load_keys(tile.key_begin, buffer);
    for (int key = tile.key_begin; key < end; key += KEYS) {
        cp_async_wait<0>();  // these keys are here,
        __syncthreads();     // for all warps, and no warp still reads the previous keys or products
        load_keys(key + KEYS, buffer ^ 1);
        const bool made = seen(key);
        if (made) multiply(shared, buffer, m_tiles);
        __syncthreads();  // all products are here
        store_rows<T, HEAD_DIM>(a, shared, tile, out, key, made);
        buffer ^= 1;
    }
}

#define ATTENTION_SCORES_OF(dtype, T, h)                                               \
    extern "C" __global__ void __launch_bounds__(THREADS)                              \
        attention_scores_##dtype##_h##h(const __grid_constant__ AttentionScoresArgs a) { \
        attention_scores<T, h>(a);                                                     \
    }
#define ATTENTION_SCORES(h)                   \
    ATTENTION_SCORES_OF(bf16, __nv_bfloat16, h) \
    ATTENTION_SCORES_OF(f16, __half, h)       \
    ATTENTION_SCORES_OF(f32, float, h)

ATTENTION_SCORES(64)
ATTENTION_SCORES(80)
ATTENTION_SCORES(96)
ATTENTION_SCORES(128)
