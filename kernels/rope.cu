// Rotary position embedding, rotate-half layout: element i of a head pairs with i + h/2 (Su et al. 2021, as Hugging Face lays it
// out). Queries and keys in one launch, read out of the packed qkv by stride, written to a destination or in place.
//
//   out[i]       = round(round(x[i] · cos[i])       + round(−x[i + h/2] · sin[i]))
//   out[i + h/2] = round(round(x[i + h/2] · cos[i]) + round(x[i] · sin[i]))          i < h/2
//
// q, q_out [rows, q_heads, h], k, k_out [rows, k_heads, h], each with its row stride; positions [rows]; cos, sin
// [positions, h/2] f32, rounded to the dtype before use, as Hugging Face does. h is a multiple of 16 (f32: 8). q_heads or k_heads may be 0: that
// side is left out. In place (out = x) is right: a pair is read and written by one thread.
//
// Split: one block per row; h/2 / 8 threads (f32: / 4) side by side make a head, and each keeps its cos and sin while it
// strides over the heads.
// Bound: bytes. Mistral-7B (32 + 8 heads of 128, bf16): 10 KiB read + 10 KiB written per row, 512 B of cos and sin.
#include "common.cuh"

constexpr uint32_t THREADS = 128;

struct RopeArgs {
    const void* q;
    const void* k;
    void* q_out;
    void* k_out;
    const uint32_t* positions;
    const float* cos;
    const float* sin;
    uint64_t q_stride;
    uint64_t k_stride;
    uint64_t q_out_stride;
    uint64_t k_out_stride;
    uint32_t rows;
    uint32_t q_heads;
    uint32_t k_heads;
    uint32_t head_dim;
};

// The products are kept apart from the sum (no fused multiply-add): each is a rounding point, also in f32.
template <typename T>
__device__ __forceinline__ void rotate(const T* from, T* to, uint32_t half, const float (&cos)[VECTOR<T>], const float (&sin)[VECTOR<T>]) {
    constexpr uint32_t N = VECTOR<T>;
    float lower[N], upper[N], out[N];
    load(from, lower);
    load(from + half, upper);
#pragma unroll
    for (uint32_t j = 0; j < N; j++) {
        out[j] = __fadd_rn(rounded<T>(__fmul_rn(lower[j], cos[j])), rounded<T>(__fmul_rn(-upper[j], sin[j])));
    }
    store(to, out);
#pragma unroll
    for (uint32_t j = 0; j < N; j++) {
        out[j] = __fadd_rn(rounded<T>(__fmul_rn(upper[j], cos[j])), rounded<T>(__fmul_rn(lower[j], sin[j])));
    }
    store(to + half, out);
}

template <typename T>
__device__ __forceinline__ void rope(const RopeArgs& a) {
    constexpr uint32_t N = VECTOR<T>;
    const uint64_t row = blockIdx.x;
    const uint32_t half = a.head_dim / 2;
    const uint32_t threads_per_head = half / N;
    const uint32_t heads_at_once = THREADS / threads_per_head;
    const uint32_t i = threadIdx.x % threads_per_head * N;
    uint32_t head = threadIdx.x / threads_per_head;
    if (head >= heads_at_once) return;

    const uint64_t angle = static_cast<uint64_t>(a.positions[row]) * half + i;
    float cos[N], sin[N];
    load(a.cos + angle, cos);
    load(a.sin + angle, sin);
#pragma unroll
    for (uint32_t j = 0; j < N; j++) cos[j] = rounded<T>(cos[j]), sin[j] = rounded<T>(sin[j]);

    for (; head < a.q_heads + a.k_heads; head += heads_at_once) {
        if (head < a.q_heads) {
            const uint32_t at = head * a.head_dim + i;
            rotate(static_cast<const T*>(a.q) + row * a.q_stride + at, static_cast<T*>(a.q_out) + row * a.q_out_stride + at, half, cos, sin);
        } else {
            const uint32_t at = (head - a.q_heads) * a.head_dim + i;
            rotate(static_cast<const T*>(a.k) + row * a.k_stride + at, static_cast<T*>(a.k_out) + row * a.k_out_stride + at, half, cos, sin);
        }
    }
}

#define ENTRY(NAME, T) \
    extern "C" __global__ void __launch_bounds__(THREADS) NAME(const __grid_constant__ RopeArgs a) { rope<T>(a); }

ENTRY(rope_bf16, bf16)
ENTRY(rope_f16, f16)
ENTRY(rope_f32, f32)
