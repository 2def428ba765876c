// Residual add: out = round(a + b).
//
// a, out [rows, width] in the residual's dtype R, b [rows, width] in the compute dtype C, each with its row stride; width a
// multiple of 8. out may be a. (Where a norm follows, rms_norm.cu adds on the way.)
//
// Split: grid (rows, row's vectors / 256); a thread takes one vector of each.
// Bound: bytes. Mistral-7B (width 4096, bf16): 16 KiB read + 8 KiB written per row.
#include "common.cuh"

constexpr uint32_t THREADS = 256;

struct AddArgs {
    const void* a;
    const void* b;
    void* out;
    uint64_t a_stride;
    uint64_t b_stride;
    uint64_t out_stride;
    uint32_t rows;
    uint32_t width;
};

template <typename R, typename C>
__device__ __forceinline__ void add(const AddArgs& args) {
    constexpr uint32_t N = VECTOR<R> < VECTOR<C> ? VECTOR<R> : VECTOR<C>;
    const uint64_t row = blockIdx.x;
    const uint32_t i = (blockIdx.y * THREADS + threadIdx.x) * N;
    if (i >= args.width) return;
    float a[N], b[N];
    load(static_cast<const R*>(args.a) + row * args.a_stride + i, a);
    load(static_cast<const C*>(args.b) + row * args.b_stride + i, b);
#pragma unroll
    for (uint32_t j = 0; j < N; j++) a[j] += b[j];
    store(static_cast<R*>(args.out) + row * args.out_stride + i, a);
}

#define ENTRY(NAME, R, C) \
    extern "C" __global__ void __launch_bounds__(THREADS) NAME(const __grid_constant__ AddArgs args) { add<R, C>(args); }

ENTRY(add_bf16, bf16, bf16)
ENTRY(add_f16, f16, f16)
ENTRY(add_f32, f32, f32)
ENTRY(add_bf16_f32resid, f32, bf16)
ENTRY(add_f16_f32resid, f32, f16)
