// Selected rows and columns of an activation, in another element type: the tap for partial selections and for a store dtype that
// differs from the compute dtype. With all rows and one column range it is a 2D copy.
//
//   out[i, at + j] = convert(source[rows[i], first + j])     for each segment (first, len, at), j < len
//
// source [.., stride], rows [selected] (null: row i is row i), segments [segments], out [selected, ..] with a row stride. All
// nine pairs of f32, f16, bf16: rounded to nearest even; equal types are copied bit for bit.
//
// Split: one warp per (row, segment), 8 warps per block; a segment has at most 1024 columns (`Segment`), which is four 16-byte
// vectors per lane at 16 bit. Where source and destination are aligned for it, vectors of 16 bytes (8 on the 16-bit side of a
// conversion from or to f32, so that both sides are read and written without gaps); else element by element.
// Bound: bytes. Mistral-7B residual (width 4096, bf16 → bf16): 8 KiB read + 8 KiB written per row.
#include "common.cuh"

constexpr uint32_t THREADS = 256;

struct GatherArgs {
    const void* source;
    const uint32_t* rows;
    const Segment* segments;
    void* out;
    uint64_t source_stride;
    uint64_t out_stride;
    uint32_t selected;
    uint32_t segment_count;
};

template <typename From, typename To>
__device__ __forceinline__ To converted(From x) {
    if constexpr (__is_same(From, To)) {
        return x;
    } else {
        return narrow<To>(widen(x));
    }
}

template <typename From, typename To>
__device__ __forceinline__ void copy_vectors(const From* from, To* to, uint32_t vectors) {
    constexpr uint32_t N = VECTOR<To> < VECTOR<From> ? VECTOR<To> : VECTOR<From>;
#pragma unroll 4
    for (uint32_t v = lane_index(); v < vectors; v += LANES) {
        if constexpr (__is_same(From, To)) {
            Packed<From, N> packed;
            packed.load(from + v * N);
            packed.store(to + v * N);
        } else {
            float x[N];
            load(from + v * N, x);
            store(to + v * N, x);
        }
    }
}

template <typename From, typename To>
__device__ __forceinline__ void gather(const GatherArgs& a) {
    constexpr uint32_t N = VECTOR<To> < VECTOR<From> ? VECTOR<To> : VECTOR<From>;
    const uint32_t item = blockIdx.x * (THREADS / LANES) + warp_index();
    const uint32_t i = item / a.segment_count;
    if (i >= a.selected) return;
    const Segment segment = load_segment(a.segments + item % a.segment_count);
    const From* from = static_cast<const From*>(a.source) + source_row(a.rows, i) * a.source_stride + segment.first;
    To* to = static_cast<To*>(a.out) + i * a.out_stride + segment.at;

    const bool aligned = reinterpret_cast<uint64_t>(from) % Packed<From, N>::ACCESS_BYTES == 0 &&
                         reinterpret_cast<uint64_t>(to) % Packed<To, N>::ACCESS_BYTES == 0;
    const uint32_t vectors = aligned ? segment.len / N : 0;
    copy_vectors(from, to, vectors);
    for (uint32_t j = vectors * N + lane_index(); j < segment.len; j += LANES) to[j] = converted<From, To>(from[j]);
}

#define ENTRY(NAME, FROM, TO) \
    extern "C" __global__ void __launch_bounds__(THREADS) NAME(const __grid_constant__ GatherArgs a) { gather<FROM, TO>(a); }

ENTRY(gather_f32_f32, f32, f32)
ENTRY(gather_f32_f16, f32, f16)
ENTRY(gather_f32_bf16, f32, bf16)
ENTRY(gather_f16_f32, f16, f32)
ENTRY(gather_f16_f16, f16, f16)
ENTRY(gather_f16_bf16, f16, bf16)
ENTRY(gather_bf16_f32, bf16, f32)
ENTRY(gather_bf16_f16, bf16, f16)
ENTRY(gather_bf16_bf16, bf16, bf16)
