// Decode attention: one query per sequence against that sequence's cache of keys and values,
// out = softmax(scale · q·kᵀ over the visible keys) · v, for grouped heads.
//
// Shapes: q and out [sequences, H, h], rows with a stride of their own. k_cache and v_cache [sequences, capacity, K, h]: the key at
// position p lies in slot p mod capacity, and sequence i of the batch has cache caches[i] (null: i). lengths[sequence] counts the
// tokens so far, the query's own (already in the cache) included; with a window W the last W of them are visible, and the capacity
// must hold the visible ones. Length 0 (an idle place in the batch): zeros. h is 64, 80, 96 or 128; H a multiple of K.
//
// Split, decode_attention_*: the visible keys are cut, from the first one, into splits of 256. A block takes one split of one
// sequence for up to 4 query heads of one key/value head, which share its loads (the blocks of further heads are neighbours and find
// the rows in L2). 8 lanes share a key: lane i has chunks i, i + 8, … (16 bytes each) of the row; a lane has 8 keys, so 8 independent
// loads are under way per lane and chunk, 32 KiB per block, and nothing passes through shared memory but the weights. Dot products
// are summed over the 8 lanes by halving: at the end each lane has one whole score. Values are multiplied in the same arrangement,
// and summed over keys: 8 within a lane, 4 lane groups, 8 warps.
// decode_attention_combine_*: a block per sequence and query head sums the splits, first to last, each scaled to the common maximum.
//
// Rounding: scores and softmax f32, the weights rounded to the element type for P·V (their sum takes them unrounded), out once.
// Bits: a split's size is fixed and splits are summed in order, so a sequence's result depends on its own rows and length alone: not on
// the other sequences, the capacity, or the slot that its keys begin in.
//
// Bound: bytes, 2·visible·K·h·2 per sequence and layer. Mistral-7B (H 32, K 8, h 128, bf16), 64 sequences of 4096: 1.07 GB, 0.36 ms at
// 3.0 TB/s; 4·H·h FLOP per key, 4.3 GFLOP, run as f32 FMAs beside a conversion for every 4 of them, 0.13 ms at half of 67 TFLOP/s.
// The partial results add 1.6 %: a split writes 4·(h + 2)·4 bytes per key/value head and reads 131,072.

#include "common.cuh"

struct DecodeAttentionArgs {
    const void* q;            // [sequences, n_heads, h]
    const void* k_cache;      // [sequences, capacity, n_kv_heads, h]
    const void* v_cache;      // the same
    const uint32_t* lengths;  // [sequences]
    const uint32_t* caches;   // [sequences]: whose cache; or null
    float* partial_out;       // [sequences, n_heads, splits, h]: weighted sums, not yet divided
    float2* partial_softmax;  // [sequences, n_heads, splits]: largest raw score, sum of weights
    void* out;                // [sequences, n_heads, h]
    uint64_t k_sequence_stride, v_sequence_stride;  // elements from one sequence's cache to the next's
    uint32_t k_slot_stride, v_slot_stride;          // elements from slot to slot
    uint32_t q_stride, out_stride;                  // elements from sequence to sequence
    uint32_t sequences, n_heads, n_kv_heads;
    uint32_t capacity;  // slots
    uint32_t window;    // visible keys at most; 0: all
    uint32_t splits;    // that the partial results have room for: at least those of the longest sequence
    float scale;        // of a score: 1/√h
    uint32_t _pad;
};

constexpr uint32_t SPLIT_KEYS = 256;
constexpr uint32_t HEADS = 4;       // query heads per block
constexpr uint32_t ROW_LANES = 8;   // lanes that share a key's row
constexpr uint32_t LANE_KEYS = 8;   // keys per lane: key = 32·warp + 8·(lane / 8) + 0..7
constexpr uint32_t WARPS = SPLIT_KEYS / LANES;
constexpr uint32_t COMBINE_THREADS = 128;
constexpr float LOG2_E = 1.4426950408889634f;
static_assert(LANES / ROW_LANES * LANE_KEYS == LANES, "after halving, a warp's lanes have one key each");

// The visible keys of one sequence: `count` of them from position `first` on.
struct Visible {
    uint32_t first, count;

    __device__ __forceinline__ Visible(const DecodeAttentionArgs& a, uint32_t sequence) {
        const uint32_t length = a.lengths[sequence];
        count = a.window == 0 ? length : min(length, a.window);
        first = length - count;
    }
    __device__ __forceinline__ uint32_t splits() const { return (count + SPLIT_KEYS - 1) / SPLIT_KEYS; }
};

// A lane's 8 keys: where they begin in the cache, and how many of them exist.
template <typename T>
struct LaneRows {
    uint32_t slot, count, capacity;

    __device__ __forceinline__ LaneRows(const DecodeAttentionArgs& a, Visible visible, uint32_t key) {
        capacity = a.capacity;
        slot = (visible.first + key) % capacity;
        count = key < visible.count ? min(visible.count - key, LANE_KEYS) : 0;
    }

    // The same chunk of each row; zeros for keys that do not exist.
    __device__ __forceinline__ void load(Packed<T, VECTOR<T>> (&chunks)[LANE_KEYS], const T* rows, uint32_t stride, bool inside) const {
#pragma unroll
        for (uint32_t i = 0; i < LANE_KEYS; i++) {
            const uint32_t at = slot + i < capacity ? slot + i : slot + i - capacity;
            if (inside && i < count) {
                chunks[i].load(rows + static_cast<size_t>(at) * stride);
            } else {
#pragma unroll
                for (uint32_t word = 0; word < 4; word++) chunks[i].words[word] = 0;
            }
        }
    }
};

// Sums each v[i] over 8 neighbouring lanes; the i-th of them receives the i-th sum. Each step halves what a lane still has.
__device__ __forceinline__ float sum_by_halving(float (&v)[8]) {
    const uint32_t lane = lane_index();
#pragma unroll
    for (uint32_t half = 4; half > 0; half /= 2) {
        const bool upper = lane & half;
#pragma unroll
        for (uint32_t i = 0; i < half; i++) {
            const float given = upper ? v[i] : v[i + half];
            const float kept = upper ? v[i + half] : v[i];
            v[i] = kept + __shfl_xor_sync(ALL_LANES, given, half);
        }
    }
    return v[0];
}

// Raw scores q·k of this lane's key (key index = thread index) for the block's heads.
template <typename T, uint32_t H>
__device__ __forceinline__ float4 scores_of_lane_key(const T (&q)[HEADS][H], const T* k, uint32_t stride, const LaneRows<T>& rows) {
    constexpr uint32_t V = VECTOR<T>, CHUNKS = H / V;
    float sums[HEADS][LANE_KEYS] = {};
#pragma unroll 1  // 64 KiB under way per SM are enough, and two chunks' worth of registers would spill
    for (uint32_t c = 0; c < CHUNKS; c += ROW_LANES) {
        const uint32_t chunk = c + lane_index() % ROW_LANES;
        const bool inside = CHUNKS % ROW_LANES == 0 || chunk < CHUNKS;
        Packed<T, V> keys[LANE_KEYS];
        rows.load(keys, k + chunk * V, stride, inside);
        float query[HEADS][V] = {};
#pragma unroll
        for (uint32_t head = 0; head < HEADS; head++)
            if (inside) load(&q[head][chunk * V], query[head]);
#pragma unroll
        for (uint32_t i = 0; i < LANE_KEYS; i++) {
            float key[V];
            keys[i].get(key);
#pragma unroll
            for (uint32_t head = 0; head < HEADS; head++)
#pragma unroll
                for (uint32_t d = 0; d < V; d++) sums[head][i] = fmaf(query[head][d], key[d], sums[head][i]);
        }
    }
    return make_float4(sum_by_halving(sums[0]), sum_by_halving(sums[1]), sum_by_halving(sums[2]), sum_by_halving(sums[3]));
}

// Turns one head's scores into weights, rounded to T, and returns {largest score, sum of the unrounded weights}. One warp; `weights`
// are HEADS floats apart.
template <typename T>
__device__ __forceinline__ float2 soften(float* weights, uint32_t count, float scale_log2) {
    float score[WARPS], largest = -INFINITY, sum = 0.0f;
#pragma unroll
    for (uint32_t i = 0; i < WARPS; i++) {
        const uint32_t key = i * LANES + lane_index();
        score[i] = key < count ? weights[key * HEADS] : -INFINITY;
        largest = fmaxf(largest, score[i]);
    }
#pragma unroll
    for (uint32_t step = LANES / 2; step > 0; step /= 2) largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, step));
#pragma unroll
    for (uint32_t i = 0; i < WARPS; i++) {
        const float weight = exp2f((score[i] - largest) * scale_log2);
        sum += weight;
        weights[(i * LANES + lane_index()) * HEADS] = rounded<T>(weight);
    }
    return make_float2(largest, warp_sum(sum));
}

// The sums over a warp's 32 keys of weight · value, for one chunk of every head: lane group i (8 lanes) receives head i's.
template <typename T, uint32_t V>
__device__ __forceinline__ void weigh(float (&sums)[V], const Packed<T, V> (&values)[LANE_KEYS], const float4* weights) {
    float all[HEADS][V] = {};
#pragma unroll
    for (uint32_t i = 0; i < LANE_KEYS; i++) {
        float value[V];
        values[i].get(value);
        const float4 weight = weights[i];
#pragma unroll
        for (uint32_t d = 0; d < V; d++) {
            all[0][d] = fmaf(weight.x, value[d], all[0][d]);
            all[1][d] = fmaf(weight.y, value[d], all[1][d]);
            all[2][d] = fmaf(weight.z, value[d], all[2][d]);
            all[3][d] = fmaf(weight.w, value[d], all[3][d]);
        }
    }
    const bool upper16 = lane_index() & 16, upper8 = lane_index() & 8;
#pragma unroll
    for (uint32_t d = 0; d < V; d++) {
        float low = upper16 ? all[2][d] : all[0][d], high = upper16 ? all[3][d] : all[1][d];
        low += __shfl_xor_sync(ALL_LANES, upper16 ? all[0][d] : all[2][d], 16);
        high += __shfl_xor_sync(ALL_LANES, upper16 ? all[1][d] : all[3][d], 16);
        sums[d] = (upper8 ? high : low) + __shfl_xor_sync(ALL_LANES, upper8 ? low : high, 8);
    }
}

template <typename T, uint32_t H>
__device__ __forceinline__ void decode_attention(const DecodeAttentionArgs& a) {
    constexpr uint32_t V = VECTOR<T>, CHUNKS = H / V;
    __shared__ __align__(16) T q[HEADS][H];
    __shared__ float4 weights[SPLIT_KEYS];  // of the block's heads; raw scores at first
    __shared__ __align__(16) float warp_sums[WARPS][HEADS][H];

    const uint32_t split = blockIdx.y, sequence = blockIdx.z;
    const Visible visible(a, sequence);
    if (split >= visible.splits()) return;

    const uint32_t group = a.n_heads / a.n_kv_heads, blocks_per_group = (group + HEADS - 1) / HEADS;
    const uint32_t kv_head = blockIdx.x / blocks_per_group, head_in_group = blockIdx.x % blocks_per_group * HEADS;
    const uint32_t head0 = kv_head * group + head_in_group, heads = min(group - head_in_group, HEADS);
    const uint32_t lane = lane_index(), warp = warp_index(), split_keys = min(visible.count - split * SPLIT_KEYS, SPLIT_KEYS);
    const uint32_t lane_key = warp * LANES + lane / ROW_LANES * LANE_KEYS;
    const LaneRows<T> rows(a, visible, split * SPLIT_KEYS + lane_key);
    const uint64_t cache = source_row(a.caches, sequence);
    const T* const k = static_cast<const T*>(a.k_cache) + cache * a.k_sequence_stride + kv_head * H;
    const T* const v = static_cast<const T*>(a.v_cache) + cache * a.v_sequence_stride + kv_head * H;

    const T* const query = static_cast<const T*>(a.q) + static_cast<size_t>(sequence) * a.q_stride + head0 * H;
    for (uint32_t i = threadIdx.x; i < HEADS * H; i += SPLIT_KEYS) q[i / H][i % H] = i < heads * H ? query[i] : narrow<T>(0.0f);
    __syncthreads();
    weights[threadIdx.x] = scores_of_lane_key<T, H>(q, k, a.k_slot_stride, rows);

    // The first values are asked for before the wait for the scores, to be on their way meanwhile.
    Packed<T, V> values[LANE_KEYS];
    rows.load(values, v + lane % ROW_LANES * V, a.v_slot_stride, true);
    __syncthreads();  // scores are complete
    if (warp < heads) {
        const float2 softmax = soften<T>(reinterpret_cast<float*>(weights) + warp, split_keys, a.scale * LOG2_E);
        if (lane == 0) a.partial_softmax[(static_cast<size_t>(sequence) * a.n_heads + head0 + warp) * a.splits + split] = softmax;
    }
    __syncthreads();  // weights are

#pragma unroll 1
    for (uint32_t c = 0; c < CHUNKS; c += ROW_LANES) {
        const uint32_t chunk = c + lane % ROW_LANES;
        float sums[V];
        weigh(sums, values, weights + lane_key);
        if (CHUNKS % ROW_LANES == 0 || chunk < CHUNKS) {
#pragma unroll
            for (uint32_t d = 0; d < V; d += 4)
                *reinterpret_cast<float4*>(&warp_sums[warp][lane / ROW_LANES][chunk * V + d]) =
                    make_float4(sums[d], sums[d + 1], sums[d + 2], sums[d + 3]);
        }
        if (c + ROW_LANES < CHUNKS)
            rows.load(values, v + (chunk + ROW_LANES) * V, a.v_slot_stride, CHUNKS % ROW_LANES == 0 || chunk + ROW_LANES < CHUNKS);
    }
    __syncthreads();  // the warps' sums are

    for (uint32_t i = threadIdx.x; i < heads * H; i += SPLIT_KEYS) {
        const uint32_t head = i / H, d = i % H;
        float sum = 0.0f;
#pragma unroll
        for (uint32_t w = 0; w < WARPS; w++) sum += warp_sums[w][head][d];
        a.partial_out[((static_cast<size_t>(sequence) * a.n_heads + head0 + head) * a.splits + split) * H + d] = sum;
    }
}

template <typename T, uint32_t H>
__device__ __forceinline__ void combine(const DecodeAttentionArgs& a) {
    const uint32_t head = blockIdx.x, sequence = blockIdx.y, d = threadIdx.x;
    if (d >= H) return;
    const uint32_t splits = Visible(a, sequence).splits();
    const size_t row = (static_cast<size_t>(sequence) * a.n_heads + head) * a.splits;
    const float scale_log2 = a.scale * LOG2_E;

    float largest = -INFINITY, total = 0.0f, sum = 0.0f;
    for (uint32_t split = 0; split < splits; split++) largest = fmaxf(largest, a.partial_softmax[row + split].x);
    for (uint32_t split = 0; split < splits; split++) {
        const float2 softmax = a.partial_softmax[row + split];
        const float weight = exp2f((softmax.x - largest) * scale_log2);
        total = fmaf(weight, softmax.y, total);
        sum = fmaf(weight, a.partial_out[(row + split) * H + d], sum);
    }
    T* const out = static_cast<T*>(a.out) + static_cast<size_t>(sequence) * a.out_stride + head * H;
    out[d] = narrow<T>(splits == 0 ? 0.0f : sum / total);
}

#define DECODE_ATTENTION(TYPE, H)                                                                                          \
    extern "C" __global__ void __launch_bounds__(SPLIT_KEYS, 2)                                                            \
        decode_attention_##TYPE##_h##H(const __grid_constant__ DecodeAttentionArgs a) {                                    \
        decode_attention<TYPE, H>(a);                                                                                      \
    }                                                                                                                      \
    extern "C" __global__ void __launch_bounds__(COMBINE_THREADS)                                                          \
        decode_attention_combine_##TYPE##_h##H(const __grid_constant__ DecodeAttentionArgs a) {                            \
        combine<TYPE, H>(a);                                                                                               \
    }
#define DECODE_ATTENTION_HEAD_DIMS(TYPE) \
    DECODE_ATTENTION(TYPE, 64)           \
    DECODE_ATTENTION(TYPE, 80)           \
    DECODE_ATTENTION(TYPE, 96)           \
    DECODE_ATTENTION(TYPE, 128)

DECODE_ATTENTION_HEAD_DIMS(bf16)
DECODE_ATTENTION_HEAD_DIMS(f16)
DECODE_ATTENTION_HEAD_DIMS(f32)
