// Walking one long row (logits, or a row to be reduced) with a whole block, and its softmax in fixed order.
#pragma once

#include "common.cuh"

// One row and how it is read: its elements belong to threads vector by vector, whether or not they can be loaded as vectors.
template <typename T>
struct LongRow {
    const T* at;
    uint32_t width;
    bool vectors;

    __device__ __forceinline__ LongRow(const void* base, uint64_t stride, uint64_t row, uint32_t width)
        : at(static_cast<const T*>(base) + row * stride),
          width(width),
          vectors(rows_aligned<T, VECTOR<T>>(static_cast<const T*>(base), stride)) {}

    // Calls visit(value, column) for this thread's elements, columns rising.
    template <uint32_t THREADS, typename Visit>
    __device__ __forceinline__ void for_each(Visit visit) const {
        constexpr uint32_t N = VECTOR<T>;
        for (uint32_t i = threadIdx.x * N; i < width; i += THREADS * N) {
            float x[N];
            load_some(at + i, width - i, vectors, x);
#pragma unroll
            for (uint32_t j = 0; j < N; j++) {
                if (i + j < width) visit(x[j], i + j);
            }
        }
    }
};

// Key of the row's first largest element, in every thread.
template <uint32_t THREADS, typename T>
__device__ __forceinline__ uint64_t largest_key(const LongRow<T>& row) {
    __shared__ uint64_t partial[THREADS / LANES];
    uint64_t largest = 0;
    row.template for_each<THREADS>([&](float v, uint32_t column) {
        const uint64_t key = key_of(v, column);
        largest = key > largest ? key : largest;
    });
    return block_max<THREADS>(largest, partial);
}

// Σ e^(v − largest) over the row, in every thread: f32 exponentials (about 1 ulp), summed in f64.
template <uint32_t THREADS, typename T>
__device__ __forceinline__ double sum_of_exp(const LongRow<T>& row, float largest) {
    __shared__ double partial[THREADS / LANES];
    double sum = 0.0;
    row.template for_each<THREADS>([&](float v, uint32_t) { sum += static_cast<double>(expf(v - largest)); });
    return block_sum<THREADS>(sum, partial);
}
