// SwiGLU (Shazeer 2020): out = round(round(silu(gate)) · up), silu(g) = g / (1 + e^−g).
//
// gate, up, out [rows, width], each with its row stride, so that gate and up may be the halves of a packed gate-up row. width is
// a multiple of 8.
//
// Split: grid (rows, row's vectors / 256); a thread takes one vector of gate and one of up.
// Bound: bytes. Mistral-7B (width 14336, bf16): 56 KiB read + 28 KiB written per row; about 25 instructions per element, two of
// them on the special-function unit: half of what an H100 issues in the time that the bytes take.
#include "silu.cuh"

constexpr uint32_t THREADS = 256;

struct SwigluArgs {
    const void* gate;
    const void* up;
    void* out;
    uint64_t gate_stride;
    uint64_t up_stride;
    uint64_t out_stride;
    uint32_t rows;
    uint32_t width;
};

template <typename T>
__device__ __forceinline__ void swiglu(const SwigluArgs& a) {
    constexpr uint32_t N = VECTOR<T>;
    const uint64_t row = blockIdx.x;
    const uint32_t i = (blockIdx.y * THREADS + threadIdx.x) * N;
    if (i >= a.width) return;
    float gate[N], up[N];
    load(static_cast<const T*>(a.gate) + row * a.gate_stride + i, gate);
    load(static_cast<const T*>(a.up) + row * a.up_stride + i, up);
#pragma unroll
    for (uint32_t j = 0; j < N; j++) gate[j] = rounded<T>(silu<T>(gate[j])) * up[j];
    store(static_cast<T*>(a.out) + row * a.out_stride + i, gate);
}

#define ENTRY(NAME, T) \
    extern "C" __global__ void __launch_bounds__(THREADS) NAME(const __grid_constant__ SwigluArgs a) { swiglu<T>(a); }

ENTRY(swiglu_bf16, bf16)
ENTRY(swiglu_f16, f16)
ENTRY(swiglu_f32, f32)
