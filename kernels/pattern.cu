// Attention by way of its pattern, for the few rows and heads whose pattern is edited: attention.cu and decode_attention.cu never
// have it whole, so what is edited is computed again, changed where it lies, and multiplied with the values.
//
// pattern_values_*   z = P·V for chosen query rows and heads of one sample. pattern f32 [heads_kept, selected, n] (attention_scores.cu
//                    writes it, or pattern_of_last_*; edit.cu changes it), v [.., K, h], z [.., H, h]. Row i of the selected ones is
//                    the query at position rows[i].x of its sample, and row rows[i].y of z. Weights are rounded to the element type,
//                    sums are f32, z is rounded once. A key that the query does not see is left out, whatever its weight.
// pattern_of_last_*  the pattern of the newest query of one sequence against its cache: q [H, h], k [capacity, K, h], pattern f32
//                    [heads_kept, n], keys that it does not see 0.
//
// The key or value at position p lies in slot p mod capacity; where there is no cache the capacity is n. h is 64, 80, 96 or 128.
//
// Split: pattern_values takes 8 rows of one head a block, a thread per column, and 64 keys at a time, whose weights all threads read
// from shared memory. pattern_of_last takes a head a block, a thread per key.
// Bits: sums over keys begin with the first key that the row sees and go in their order; they depend on the row alone.
//
// Bound: these are for experiments that touch few rows, and are as simple as they can be: f32 FMAs. All rows of a 2048-token sample,
// 32 heads of 128: 17 GFLOP, 0.26 ms at 67 TFLOP/s, and 537 MB of pattern read, 0.18 ms at 3.0 TB/s.
#include "common.cuh"

struct PatternValuesArgs {
    const float* pattern;   // [heads_kept, selected, n]
    const void* v;          // [capacity, n_kv_heads, h]
    void* z;                // [.., n_heads, h]
    const uint2* rows;      // [selected]: position in the sample, row of z
    const uint32_t* heads;  // [heads_kept], query heads
    uint32_t v_stride, z_stride;  // elements from row to row
    uint32_t n_heads, n_kv_heads;
    uint32_t selected, heads_kept;
    uint32_t n;         // tokens of the sample
    uint32_t capacity;  // slots of v
    uint32_t window;    // keys a query sees at most, its own included; 0: all
    uint32_t _pad;
};

struct PatternOfLastArgs {
    const void* q;          // [n_heads, h], after RoPE
    const void* k;          // [capacity, n_kv_heads, h], after RoPE
    float* pattern;         // [heads_kept, n]
    const uint32_t* heads;  // [heads_kept], query heads
    uint32_t k_stride;      // elements from slot to slot
    uint32_t n_heads, n_kv_heads;
    uint32_t heads_kept;
    uint32_t n;         // tokens so far, the query's own included
    uint32_t capacity;  // slots of k
    uint32_t window;    // as above
    float scale;        // of the scores: 1/√h
};

constexpr uint32_t THREADS = 128;
constexpr uint32_t ROWS = 8;   // per block
constexpr uint32_t KEYS = 64;  // per step
constexpr uint32_t LAST_THREADS = 256;
constexpr float LOG2_E = 1.4426950408889634f;

// The first key that the query at `position` sees.
__device__ __forceinline__ uint32_t first_seen(uint32_t position, uint32_t window) {
    return window == 0 || position < window ? 0 : position - window + 1;
}

template <typename T, uint32_t H>
__device__ __forceinline__ void pattern_values(const PatternValuesArgs& a) {
    __shared__ float weights[KEYS][ROWS];
    const uint32_t tiles = (a.selected + ROWS - 1) / ROWS;
    const uint32_t place = blockIdx.x / tiles, row0 = blockIdx.x % tiles * ROWS;
    const uint32_t count = min(a.selected - row0, ROWS), head = a.heads[place], d = threadIdx.x;
    const T* v = static_cast<const T*>(a.v) + head / (a.n_heads / a.n_kv_heads) * H;
    const float* pattern = a.pattern + (static_cast<uint64_t>(place) * a.selected + row0) * a.n;

    // Keys [first[r], end[r]) are those that row r sees; none for a row that is not there.
    uint32_t first[ROWS], end[ROWS], begin = a.n, stop = 0;
    float sums[ROWS] = {};
#pragma unroll
    for (uint32_t r = 0; r < ROWS; r++) {
        first[r] = end[r] = 0;
        if (r < count) {
            const uint32_t position = a.rows[row0 + r].x;
            first[r] = first_seen(position, a.window);
            end[r] = position + 1;
            begin = min(begin, first[r]);
            stop = max(stop, end[r]);
        }
    }
    for (uint32_t key0 = begin; key0 < stop; key0 += KEYS) {
        const uint32_t keys = min(stop - key0, KEYS);
        __syncthreads();  // the previous weights were read
        for (uint32_t i = threadIdx.x; i < KEYS * ROWS; i += THREADS) {
            const uint32_t r = i / KEYS, key = i % KEYS;
            weights[key][r] = r < count && key < keys ? rounded<T>(pattern[static_cast<uint64_t>(r) * a.n + key0 + key]) : 0.0f;
        }
        __syncthreads();  // these are here
        if (d >= H) continue;
        for (uint32_t j = 0; j < keys; j++) {
            const uint32_t key = key0 + j;
            const float value = widen(v[static_cast<uint64_t>(key % a.capacity) * a.v_stride + d]);
#pragma unroll
            for (uint32_t r = 0; r < ROWS; r++)
                if (key >= first[r] && key < end[r]) sums[r] = fmaf(weights[j][r], value, sums[r]);
        }
    }
    if (d >= H) return;
#pragma unroll
    for (uint32_t r = 0; r < ROWS; r++)
        if (r < count) static_cast<T*>(a.z)[static_cast<uint64_t>(a.rows[row0 + r].y) * a.z_stride + head * H + d] = narrow<T>(sums[r]);
}

// The largest of the block's values, in every thread.
__device__ __forceinline__ float largest_of_block(float v, float (&partial)[LAST_THREADS / LANES]) {
#pragma unroll
    for (uint32_t step = LANES / 2; step > 0; step /= 2) v = fmaxf(v, __shfl_xor_sync(ALL_LANES, v, step));
    if (lane_index() == 0) partial[warp_index()] = v;
    __syncthreads();
    float largest = partial[0];
#pragma unroll
    for (uint32_t warp = 1; warp < LAST_THREADS / LANES; warp++) largest = fmaxf(largest, partial[warp]);
    return largest;
}

template <typename T, uint32_t H>
__device__ __forceinline__ void pattern_of_last(const PatternOfLastArgs& a) {
    constexpr uint32_t V = VECTOR<T>;
    __shared__ float q[H];
    __shared__ float maxima[LAST_THREADS / LANES], totals[LAST_THREADS / LANES];
    const uint32_t head = a.heads[blockIdx.x], first = first_seen(a.n - 1, a.window);
    const T* k = static_cast<const T*>(a.k) + head / (a.n_heads / a.n_kv_heads) * H;
    float* pattern = a.pattern + static_cast<uint64_t>(blockIdx.x) * a.n;
    if (threadIdx.x < H) q[threadIdx.x] = widen(static_cast<const T*>(a.q)[head * H + threadIdx.x]);
    __syncthreads();

    // Each thread has the same keys in all passes: what it wrote, it alone reads.
    float largest = -INFINITY, total = 0.0f;
    for (uint32_t key = first + threadIdx.x; key < a.n; key += LAST_THREADS) {
        const T* row = k + static_cast<uint64_t>(key % a.capacity) * a.k_stride;
        float score = 0.0f;
        for (uint32_t d = 0; d < H; d += V) {
            float x[V];
            load(row + d, x);
#pragma unroll
            for (uint32_t i = 0; i < V; i++) score = fmaf(q[d + i], x[i], score);
        }
        pattern[key] = score;
        largest = fmaxf(largest, score);
    }
    largest = largest_of_block(largest, maxima);
    const float scale_log2 = a.scale * LOG2_E;
    for (uint32_t key = first + threadIdx.x; key < a.n; key += LAST_THREADS) {
        const float weight = exp2f((pattern[key] - largest) * scale_log2);
        pattern[key] = weight;
        total += weight;
    }
    const float inverse = 1.0f / block_sum<LAST_THREADS>(total, totals);
    for (uint32_t key = first + threadIdx.x; key < a.n; key += LAST_THREADS) pattern[key] *= inverse;
    for (uint32_t key = threadIdx.x; key < first; key += LAST_THREADS) pattern[key] = 0.0f;
}

#define PATTERN(TYPE, H)                                                                                                              \
    extern "C" __global__ void __launch_bounds__(THREADS) pattern_values_##TYPE##_h##H(const __grid_constant__ PatternValuesArgs a) { \
        pattern_values<TYPE, H>(a);                                                                                                   \
    }                                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(LAST_THREADS)                                                                        \
        pattern_of_last_##TYPE##_h##H(const __grid_constant__ PatternOfLastArgs a) {                                                  \
        pattern_of_last<TYPE, H>(a);                                                                                                  \
    }
#define PATTERN_HEAD_DIMS(TYPE) \
    PATTERN(TYPE, 64)           \
    PATTERN(TYPE, 80)           \
    PATTERN(TYPE, 96)           \
    PATTERN(TYPE, 128)

PATTERN_HEAD_DIMS(bf16)
PATTERN_HEAD_DIMS(f16)
PATTERN_HEAD_DIMS(f32)
