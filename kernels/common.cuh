// What the kernels share: element types with their rounding, 16-byte vectors, sums whose order never varies, the order of floats
// by their bits, and the column segments of a selection.
//
// Arithmetic is f32 whatever the element type: `widen` on the way in (exact), `narrow` on the way out (to nearest, ties to even).
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

using bf16 = __nv_bfloat16;
using f16 = __half;
using f32 = float;

constexpr uint32_t LANES = 32;
constexpr uint32_t ALL_LANES = 0xffffffffu;

__device__ __forceinline__ uint32_t lane_index() { return threadIdx.x % LANES; }
__device__ __forceinline__ uint32_t warp_index() { return threadIdx.x / LANES; }

// ---- element types ----------------------------------------------------------------------------------------------------

// Elements in 16 bytes.
template <typename T>
constexpr uint32_t VECTOR = 16 / sizeof(T);

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(bf16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float widen(f16 x) { return __half2float(x); }

template <typename T>
__device__ __forceinline__ T narrow(float x) {
    if constexpr (sizeof(T) == 4) {
        return x;
    } else if constexpr (__is_same(T, bf16)) {
        return __float2bfloat16_rn(x);
    } else {
        return __float2half_rn(x);
    }
}

// x as T would hold it: one of the rounding points of a fused kernel.
template <typename T>
__device__ __forceinline__ float rounded(float x) {
    return widen(narrow<T>(x));
}

// The two elements that share a 32-bit word; the lower half comes first in memory.
template <typename T>
__device__ __forceinline__ void unpack(uint32_t word, float& first, float& second) {
    if constexpr (__is_same(T, bf16)) {
        first = __uint_as_float(word << 16);
        second = __uint_as_float(word & 0xffff0000u);
    } else {
        const float2 both = __half22float2(*reinterpret_cast<const __half2*>(&word));
        first = both.x;
        second = both.y;
    }
}

template <typename T>
__device__ __forceinline__ uint32_t pack(float first, float second) {
    if constexpr (__is_same(T, bf16)) {
        const __nv_bfloat162 both = __floats2bfloat162_rn(first, second);
        return *reinterpret_cast<const uint32_t*>(&both);
    } else {
        const __half2 both = __floats2half2_rn(first, second);
        return *reinterpret_cast<const uint32_t*>(&both);
    }
}

// ---- division ---------------------------------------------------------------------------------------------------------

// 1/x to 1 ulp; subnormal results are kept.
__device__ __forceinline__ float reciprocal(float x) {
    float r;
    asm("rcp.approx.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}

// a / b to the last place of f64, for b in the range of normal f32. (The language's f64 division is a function call, around which
// registers are spilled.)
__device__ __forceinline__ double divided(double a, double b) {
    double r = static_cast<double>(reciprocal(static_cast<float>(b)));
    r = fma(fma(-b, r, 1.0), r, r);
    const double quotient = a * r;
    return isinf(quotient) ? quotient : fma(fma(-b, quotient, a), r, quotient);
}

// ---- vectors ----------------------------------------------------------------------------------------------------------

// N elements of T as they lie in memory, aligned to the size of one access: 16 bytes, or 8 where there are just 8.
template <typename T, uint32_t N>
struct Packed {
    static constexpr uint32_t WORDS = N * sizeof(T) / 4;
    static constexpr uint32_t ACCESS_BYTES = WORDS % 4 == 0 ? 16 : 8;
    static_assert(WORDS % 4 == 0 || WORDS == 2, "accesses are of 16 or 8 bytes");
    uint32_t words[WORDS];

    __device__ __forceinline__ void load(const T* from) {
        if constexpr (ACCESS_BYTES == 16) {
#pragma unroll
            for (uint32_t i = 0; i < WORDS / 4; i++) {
                const uint4 v = reinterpret_cast<const uint4*>(from)[i];
                words[4 * i] = v.x, words[4 * i + 1] = v.y, words[4 * i + 2] = v.z, words[4 * i + 3] = v.w;
            }
        } else {
            const uint2 v = *reinterpret_cast<const uint2*>(from);
            words[0] = v.x, words[1] = v.y;
        }
    }

    __device__ __forceinline__ void store(T* to) const {
        if constexpr (ACCESS_BYTES == 16) {
#pragma unroll
            for (uint32_t i = 0; i < WORDS / 4; i++) {
                reinterpret_cast<uint4*>(to)[i] =
                    make_uint4(words[4 * i], words[4 * i + 1], words[4 * i + 2], words[4 * i + 3]);
            }
        } else {
            *reinterpret_cast<uint2*>(to) = make_uint2(words[0], words[1]);
        }
    }

    __device__ __forceinline__ void get(float (&x)[N]) const {
#pragma unroll
        for (uint32_t i = 0; i < WORDS; i++) {
            if constexpr (sizeof(T) == 4) {
                x[i] = __uint_as_float(words[i]);
            } else {
                unpack<T>(words[i], x[2 * i], x[2 * i + 1]);
            }
        }
    }

    __device__ __forceinline__ void set(const float (&x)[N]) {
#pragma unroll
        for (uint32_t i = 0; i < WORDS; i++) {
            if constexpr (sizeof(T) == 4) {
                words[i] = __float_as_uint(x[i]);
            } else {
                words[i] = pack<T>(x[2 * i], x[2 * i + 1]);
            }
        }
    }
};

template <typename T, uint32_t N>
__device__ __forceinline__ void load(const T* from, float (&x)[N]) {
    Packed<T, N> packed;
    packed.load(from);
    packed.get(x);
}

template <typename T, uint32_t N>
__device__ __forceinline__ void store(T* to, const float (&x)[N]) {
    Packed<T, N> packed;
    packed.set(x);
    packed.store(to);
}

// As `load`, of the first `count` elements, the rest 0. Unless `vectors` holds (the address is aligned), or if fewer than N are
// left, element by element: slower, and the same elements in the same places, so that no result depends on alignment.
template <typename T, uint32_t N>
__device__ __forceinline__ void load_some(const T* from, uint32_t count, bool vectors, float (&x)[N]) {
    if (vectors && count >= N) {
        load(from, x);
    } else {
#pragma unroll
        for (uint32_t i = 0; i < N; i++) x[i] = i < count ? widen(from[i]) : 0.0f;
    }
}

template <typename T, uint32_t N>
__device__ __forceinline__ void store_some(T* to, uint32_t count, bool vectors, const float (&x)[N]) {
    if (vectors && count >= N) {
        store(to, x);
    } else {
#pragma unroll
        for (uint32_t i = 0; i < N; i++) {
            if (i < count) to[i] = narrow<T>(x[i]);
        }
    }
}

// Whether N elements at a time can be read (or written) from each row that starts at `base` + a multiple of `stride` elements.
template <typename T, uint32_t N>
__device__ __forceinline__ bool rows_aligned(const T* base, uint64_t stride) {
    constexpr uint64_t bytes = Packed<T, N>::ACCESS_BYTES;
    return (reinterpret_cast<uint64_t>(base) | stride * sizeof(T)) % bytes == 0;
}

// ---- sums -------------------------------------------------------------------------------------------------------------

// Sum over the warp by a butterfly: the same pairs at each step whatever else runs, and the same bits in every lane.
template <typename V>
__device__ __forceinline__ V warp_sum(V v) {
#pragma unroll
    for (uint32_t step = LANES / 2; step > 0; step /= 2) v += __shfl_xor_sync(ALL_LANES, v, step);
    return v;
}

// Sum over a block of THREADS threads, in every thread: warps by `warp_sum`, then warp after warp. `partial` is shared memory
// that no other warp still reads from an earlier use.
template <uint32_t THREADS, typename V>
__device__ __forceinline__ V block_sum(V v, V (&partial)[THREADS / LANES]) {
    v = warp_sum(v);
    if (lane_index() == 0) partial[warp_index()] = v;
    __syncthreads();
    V sum = partial[0];
#pragma unroll
    for (uint32_t warp = 1; warp < THREADS / LANES; warp++) sum += partial[warp];
    return sum;
}

// As `block_sum`, the largest.
template <uint32_t THREADS>
__device__ __forceinline__ uint64_t block_max(uint64_t v, uint64_t (&partial)[THREADS / LANES]) {
#pragma unroll
    for (uint32_t step = LANES / 2; step > 0; step /= 2) {
        const uint64_t other = __shfl_xor_sync(ALL_LANES, v, step);
        v = other > v ? other : v;
    }
    if (lane_index() == 0) partial[warp_index()] = v;
    __syncthreads();
    uint64_t largest = partial[0];
#pragma unroll
    for (uint32_t warp = 1; warp < THREADS / LANES; warp++) largest = partial[warp] > largest ? partial[warp] : largest;
    return largest;
}

// ---- order ------------------------------------------------------------------------------------------------------------

// Integers in the order of the floats (IEEE 754 totalOrder: −NaN < −∞ < … < −0 < +0 < … < +∞ < +NaN).
__device__ __forceinline__ uint32_t order_of(float v) {
    const uint32_t bits = __float_as_uint(v);
    return bits ^ (static_cast<uint32_t>(static_cast<int32_t>(bits) >> 31) | 0x80000000u);
}

__device__ __forceinline__ float value_of(uint32_t order) {
    return __uint_as_float(order ^ (static_cast<uint32_t>(~static_cast<int32_t>(order) >> 31) | 0x80000000u));
}

// One key per element of a row, all different: the larger value first and, among equals, the lower index.
__device__ __forceinline__ uint64_t key_of(float v, uint32_t index) {
    return static_cast<uint64_t>(order_of(v)) << 32 | static_cast<uint32_t>(~index);
}

__device__ __forceinline__ float key_value(uint64_t key) { return value_of(static_cast<uint32_t>(key >> 32)); }
__device__ __forceinline__ uint32_t key_index(uint64_t key) { return ~static_cast<uint32_t>(key); }

// ---- selections -------------------------------------------------------------------------------------------------------

// Columns [first, first + len) of a row, which are [at, at + len) of the selected row. At most SEGMENT_MAX columns: what one warp
// takes, so that a whole row and a few heads are shared out alike. Mirrored by `kernels::Segment`.
struct Segment {
    uint32_t first;
    uint32_t len;
    uint32_t at;
    uint32_t _pad;
};
constexpr uint32_t SEGMENT_MAX = 1024;

__device__ __forceinline__ Segment load_segment(const Segment* from) {
    const uint4 v = *reinterpret_cast<const uint4*>(from);
    return Segment{v.x, v.y, v.z, v.w};
}

// Selected row `i` in the source: rows[i], or i where all rows are selected (null).
__device__ __forceinline__ uint64_t source_row(const uint32_t* rows, uint32_t i) { return rows == nullptr ? i : rows[i]; }
