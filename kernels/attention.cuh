// What the attention kernels share: which key a query sees, how rows come into shared memory, and the product of a query with a
// key, so that scores read out by attention_scores.cu are, bit for bit, those that attention.cu turned into z.
#pragma once

#include "mma.cuh"

constexpr float LOG2_E = 1.4426950408889634f;

// Above every distance between two tokens of a sample.
constexpr int NO_WINDOW = 0x7fffffff;

// What the arguments' `window` means: 0 is none.
__device__ __forceinline__ int window_of(uint32_t window) {
    return window == 0 ? NO_WINDOW : static_cast<int>(window);
}

// Queries and keys are counted from the sample's first token. Key j is visible to query i iff i − W < j ≤ i: W keys, the query's own
// included. As unsigned numbers one comparison says both, for a key after its query lies 2^32 behind it (W is below 2^31).
__device__ __forceinline__ bool visible(int query, int key, int window) {
    return static_cast<uint32_t>(query - key) < static_cast<uint32_t>(window);
}

// Whether some query of [q0, q1] sees some key of [k0, k1].
__device__ __forceinline__ bool any_visible(int q0, int q1, int k0, int k1, int window) {
    return k0 <= q1 && q0 - k1 < window;
}

// Whether every query of [q0, q1] sees every key of [k0, k1].
__device__ __forceinline__ bool all_visible(int q0, int q1, int k0, int k1, int window) {
    return k1 <= q0 && q1 - k0 < window;
}

// Elements from one row of a shared tile to the next. The 16 bytes of padding make a row an odd number of 16-byte chunks, so that
// the same chunk of 8 consecutive rows lies in 8 different groups of 4 banks: ldmatrix runs without conflicts for every head dim.
template <typename T, int HEAD_DIM>
__host__ __device__ constexpr int pitch() {
    return HEAD_DIM + 16 / static_cast<int>(sizeof(T));
}

// Starts copying ROWS rows of HEAD_DIM elements; those from `inside` on become zeros, since a masked key's weight of 0 does not
// make 0 of a NaN. As many neighbouring threads share a row as divide it evenly and are a power of two.
template <typename T, int HEAD_DIM, int ROWS, int THREADS>
__device__ __forceinline__ void copy_rows(T* tile, const T* first_row, uint32_t stride, int inside) {
    constexpr int ELEMENTS = 16 / sizeof(T);  // of a chunk
    constexpr int CHUNKS = HEAD_DIM / ELEMENTS;
    constexpr int SHARING = CHUNKS & -CHUNKS;
    constexpr int STEP = THREADS / SHARING;
    static_assert(HEAD_DIM % ELEMENTS == 0 && ROWS % STEP == 0, "whole chunks, the same number for every thread");
    const int row = threadIdx.x / SHARING;
    const int column = threadIdx.x % SHARING * ELEMENTS;
    const uint32_t to = shared_address(tile + row * pitch<T, HEAD_DIM>() + column);
    const T* from = first_row + row * static_cast<size_t>(stride) + column;
#pragma unroll
    for (int i = 0; i < ROWS; i += STEP) {
#pragma unroll
        for (int c = 0; c < HEAD_DIM; c += SHARING * ELEMENTS)
            cp_async_16_or_zero(to + (i * pitch<T, HEAD_DIM>() + c) * sizeof(T), from + c, row + i < inside);
        from += STEP * static_cast<size_t>(stride);
    }
}

// 2^x to 2 ulp, subnormals flushed; 0 for −∞.
__device__ __forceinline__ float ex2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// 1/x to 1 ulp.
__device__ __forceinline__ float rcp(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// q·k over the head dim in one chain of fused multiply-adds, for the f32 kernels; both rows 16-byte aligned.
template <int HEAD_DIM>
__device__ __forceinline__ float dot(const float* q, const float* k) {
    float sum = 0.0f;
#pragma unroll
    for (int d = 0; d < HEAD_DIM; d += 4) {
        const float4 a = *reinterpret_cast<const float4*>(q + d);
        const float4 b = *reinterpret_cast<const float4*>(k + d);
        sum = fmaf(a.x, b.x, sum);
        sum = fmaf(a.y, b.y, sum);
        sum = fmaf(a.z, b.z, sum);
        sum = fmaf(a.w, b.w, sum);
    }
    return sum;
}

// Where this lane's ldmatrix.x4 reads a 16×16 tile at `tile` as an A operand (query rows × dims), or, transposed, as the B operands
// of two n8 tiles (keys × dims of V).
template <typename T, int HEAD_DIM>
__device__ __forceinline__ uint32_t lane_row_major(const T* tile) {
    const int lane = threadIdx.x % WARP_LANES;
    return shared_address(tile + (lane & 15) * pitch<T, HEAD_DIM>() + (lane >> 4) * 8);
}

// The same for 16 keys × 16 dims of K: the B operands of two n8 tiles, the second from key 8 on.
template <typename T, int HEAD_DIM>
__device__ __forceinline__ uint32_t lane_keys(const T* tile) {
    const int lane = threadIdx.x % WARP_LANES;
    return shared_address(tile + ((lane & 7) + (lane >> 4) * 8) * pitch<T, HEAD_DIM>() + (lane >> 3 & 1) * 8);
}
