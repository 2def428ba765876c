// Residual add and RMSNorm in one pass (Zhang & Sennrich 2019, with the rounding points of Hugging Face's MistralRMSNorm).
//
//   resid      = round(x + y)                     if y is given; else x itself
//   scale      = sqrt(mean(resid²) + eps)         f32
//   normalized = round(resid · (1 / scale))       before the gain
//   out        = round(normalized · gain)
//
// x, resid_out [rows, width] in the residual's dtype R; y, normalized, out [rows, width] and gain [width] in the compute dtype C;
// scale [rows] f32. Each has its row stride. resid_out, scale and normalized may be null: then they are not written. width is a
// multiple of 8, at most 16384. `rms_norm_bf16`: R = C = bf16; `rms_norm_bf16_f32resid`: R = f32, C = bf16.
// resid_out may be x: a thread reads its elements before it writes them.
//
// Split: one block per row. A thread takes every 256th vector and keeps it, packed, in registers between the sum of squares and
// the scaling, so that memory sees each row once. The sum is each thread's in column order, then `block_sum`: its order depends
// on the width alone.
// Bound: bytes. Mistral-7B (width 4096, bf16), with add: 2 × 8 KiB read + 2 × 8 KiB written per row (the gain stays in L2);
// about 6 FLOP per element, nothing beside it.
#include "common.cuh"

constexpr uint32_t THREADS = 256;
constexpr uint32_t WIDTH_MAX = 16384;

struct RmsNormArgs {
    const void* x;
    const void* y;
    const void* gain;
    void* resid_out;
    float* scale;
    void* normalized;
    void* out;
    uint64_t x_stride;
    uint64_t y_stride;
    uint64_t resid_stride;
    uint64_t normalized_stride;
    uint64_t out_stride;
    uint32_t rows;
    uint32_t width;
    float eps;
    uint32_t _pad;
};

// The row's elements that this thread keeps: R [KEPT, N].
template <typename R, typename C>
struct Row {
    static constexpr uint32_t N = VECTOR<R> < VECTOR<C> ? VECTOR<R> : VECTOR<C>;
    static constexpr uint32_t KEPT = WIDTH_MAX / (THREADS * N);
    Packed<R, N> kept[KEPT];
};

// Reads x (+ y), writes resid_out, returns the sum of this thread's squares.
template <typename R, typename C>
__device__ __forceinline__ float take_row(const RmsNormArgs& a, uint64_t row, Row<R, C>& taken) {
    constexpr uint32_t N = Row<R, C>::N;
    const R* x = static_cast<const R*>(a.x) + row * a.x_stride;
    const C* y = static_cast<const C*>(a.y) + row * a.y_stride;
    R* resid = static_cast<R*>(a.resid_out) + row * a.resid_stride;
    float squares = 0.0f;
#pragma unroll
    for (uint32_t k = 0; k < Row<R, C>::KEPT; k++) {
        const uint32_t i = (k * THREADS + threadIdx.x) * N;
        if (i >= a.width) break;
        taken.kept[k].load(x + i);
        float v[N];
        taken.kept[k].get(v);
        if (a.y != nullptr) {
            float added[N];
            load(y + i, added);
#pragma unroll
            for (uint32_t j = 0; j < N; j++) v[j] += added[j];
            taken.kept[k].set(v);
            taken.kept[k].get(v);
        }
        if (a.resid_out != nullptr) taken.kept[k].store(resid + i);
#pragma unroll
        for (uint32_t j = 0; j < N; j++) squares += v[j] * v[j];
    }
    return squares;
}

template <typename R, typename C>
__device__ __forceinline__ void rms_norm(const RmsNormArgs& a) {
    constexpr uint32_t N = Row<R, C>::N;
    __shared__ float partial[THREADS / LANES];
    const uint64_t row = blockIdx.x;
    Row<R, C> taken;
    const float squares = block_sum<THREADS>(take_row(a, row, taken), partial);
    const float scale = sqrtf(squares / static_cast<float>(a.width) + a.eps);
    const float inverse = 1.0f / scale;
    if (a.scale != nullptr && threadIdx.x == 0) a.scale[row] = scale;

    const C* gain = static_cast<const C*>(a.gain);
    C* normalized = static_cast<C*>(a.normalized) + row * a.normalized_stride;
    C* out = static_cast<C*>(a.out) + row * a.out_stride;
#pragma unroll
    for (uint32_t k = 0; k < Row<R, C>::KEPT; k++) {
        const uint32_t i = (k * THREADS + threadIdx.x) * N;
        if (i >= a.width) break;
        float v[N], g[N];
        taken.kept[k].get(v);
        load(gain + i, g);
#pragma unroll
        for (uint32_t j = 0; j < N; j++) v[j] = rounded<C>(v[j] * inverse);
        if (a.normalized != nullptr) store(normalized + i, v);
#pragma unroll
        for (uint32_t j = 0; j < N; j++) v[j] *= g[j];
        store(out + i, v);
    }
}

#define ENTRY(NAME, R, C) \
    extern "C" __global__ void __launch_bounds__(THREADS) NAME(const __grid_constant__ RmsNormArgs a) { rms_norm<R, C>(a); }

ENTRY(rms_norm_bf16, bf16, bf16)
ENTRY(rms_norm_f16, f16, f16)
ENTRY(rms_norm_f32, f32, f32)
ENTRY(rms_norm_bf16_f32resid, f32, bf16)
ENTRY(rms_norm_f16_f32resid, f32, f16)
