// Rows in 8 bits: selected rows as a byte per number and a side row each, the tap for --store-dtype fp8-e4m3 and int8.
//
// Of a row the k numbers largest in magnitude are kept apart as bf16; the rest is divided by a scale (the row's, or each 64 numbers' own)
// and rounded; what reading all of it back loses is measured. Every number is made by the operations of src/compact in their order, so
// that the bits are those of the CPU: divisions and roots are rounded to nearest, nothing is contracted but products that are exact, and
// the loss is summed as a warp adds: number i in lane i mod 32, the lanes halved together.
//
// source [.., stride], rows [selected] (null: row i is row i), codes [selected, width], side [selected, side bytes]: scales, k places (u16),
// k numbers (bf16), relative error and cosine (f32), end to end; it is written in halves of words, since its length is even and no more.
//
// Split: one warp per row, 8 warps per block. A row is read twice. First each lane keeps the 9 largest of its numbers in registers, as keys
// that order by magnitude and then by place; the warp draws the k + 1 largest of all from these, which tells the numbers kept apart and,
// for a scale of the whole row, the largest of the rest. Then 64 numbers at a time are scaled, rounded, read back and compared.
// Bound: bytes, where f64 is not slow: four f64 multiply-adds a number, so on a GPU with 2 of these a clock and SM (sm_86, sm_89) that is the bound.
#include "common.cuh"

constexpr uint32_t THREADS = 256;
constexpr uint32_t GROUP = 64;          // numbers that share an int8 scale
constexpr uint32_t PER_OUTLIER = 64;    // one number is kept apart for each so many,
constexpr uint32_t MOST_OUTLIERS = 8;   // and at most so many
constexpr uint32_t INFINITE = 0x7f800000;
constexpr uint32_t QUIET_NAN = 0x7fc00000;
constexpr float LEAST_SCALE = 0x1p-126f;

struct QuantiseArgs {
    const void* source;
    const uint32_t* rows;
    uint8_t* codes;
    uint8_t* side;
    uint64_t source_stride;
    uint32_t selected;
    uint32_t width;
};

// ---- codes ------------------------------------------------------------------------------------------------------------

// What a number is stored as, `src/compact/code.rs` line by line. `scale` takes the largest magnitude as its bits.
struct E4m3 {
    static constexpr bool GROUPS = false;
    static constexpr uint32_t SCALE_BYTES = 4;

    static __device__ __forceinline__ float scale(uint32_t largest) { return fmaxf(__fdiv_rn(__uint_as_float(largest), 448.0f), LEAST_SCALE); }

    static __device__ __forceinline__ uint8_t encode(float x, float y) {
        const uint32_t sign = __float_as_uint(x) >> 24 & 0x80;
        if (isnan(y)) return (isnan(x) ? sign : 0) | 0x7f;
        const float magnitude = fminf(fabsf(y), 448.0f);
        // The last bits of a sum with 2^14 are multiples of 2^-9, which codes below 2^-6 count.
        const uint32_t below = __float_as_uint(__fadd_rn(magnitude, 16384.0f)) & 0xff;
        const uint32_t bits = __float_as_uint(magnitude);
        const uint32_t normal = ((bits + 0x7ffff + (bits >> 20 & 1)) >> 20) - ((127 - 7) << 3);
        return sign | (magnitude < 0x1p-6f ? below : normal);
    }

    static __device__ __forceinline__ float decode(uint8_t code) {
        const uint32_t exponent = code >> 3 & 15, mantissa = code & 7;
        float magnitude = __uint_as_float((exponent + 127 - 7) << 23 | mantissa << 20);
        if (exponent == 0) magnitude = static_cast<float>(mantissa) * 0x1p-9f;
        if ((code & 0x7f) == 0x7f) magnitude = __uint_as_float(QUIET_NAN);
        return code & 0x80 ? -magnitude : magnitude;
    }
};

struct Int8 {
    static constexpr bool GROUPS = true;
    static constexpr uint32_t SCALE_BYTES = 2;

    // To bf16, rounded up, so that no code is past 127.
    static __device__ __forceinline__ float scale(uint32_t largest) {
        const uint32_t bits = __float_as_uint(__fdiv_rn(__uint_as_float(largest), 127.0f));
        return fmaxf(__uint_as_float((bits + 0xffff) & 0xffff0000), LEAST_SCALE);
    }

    static __device__ __forceinline__ uint8_t encode(float, float y) {
        return isnan(y) ? 0 : static_cast<uint8_t>(__float2int_rn(fminf(fmaxf(y, -127.0f), 127.0f)));
    }

    static __device__ __forceinline__ float decode(uint8_t code) { return static_cast<float>(static_cast<int8_t>(code)); }
};

// NaN where one of the numbers is not finite.
template <typename Code>
__device__ __forceinline__ float scale_of(uint32_t largest) {
    return largest >= INFINITE ? __uint_as_float(QUIET_NAN) : Code::scale(largest);
}

// As `widen`, but that a NaN keeps its sign and payload and is made quiet, as on the CPU. (A conversion makes one NaN of all.)
template <typename T>
__device__ __forceinline__ float widen_all(T x) {
    if constexpr (__is_same(T, bf16)) {
        const uint32_t bits = __bfloat16_as_ushort(x);
        return __uint_as_float(((bits & 0x7fff) > 0x7f80 ? bits | 0x40 : bits) << 16);
    } else if constexpr (__is_same(T, f16)) {
        const uint32_t bits = __half_as_ushort(x);
        if ((bits & 0x7fff) > 0x7c00) return __uint_as_float((bits & 0x8000) << 16 | QUIET_NAN | (bits & 0x3ff) << 13);
        return widen(x);
    } else {
        return x;
    }
}

// To nearest, ties to even; a NaN keeps its sign and the upper bits of its payload, as on the CPU.
__device__ __forceinline__ uint16_t bf16_bits(float x) {
    const uint32_t bits = __float_as_uint(x);
    return isnan(x) ? bits >> 16 | 0x40 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

__device__ __forceinline__ void put_f32(uint16_t* to, float x) {
    to[0] = __float_as_uint(x) & 0xffff;
    to[1] = __float_as_uint(x) >> 16;
}

// ---- the largest numbers of a row ---------------------------------------------------------------------------------------

// The larger magnitude first (a NaN before all) and, among equals, the lower place.
__device__ __forceinline__ uint64_t magnitude_key(float x, uint32_t place) {
    return static_cast<uint64_t>(__float_as_uint(x) & 0x7fffffff) << 32 | static_cast<uint32_t>(~place);
}

struct Largest {
    uint64_t mine;       // lane i's: the i-th largest, of the k that are kept apart
    uint64_t least;      // the k-th: what comes before it is kept apart, as it is
    uint32_t of_rest;    // magnitude of the largest that is not
};

template <typename T>
__device__ __forceinline__ Largest largest_of(const T* row, uint32_t width, uint32_t k) {
    uint64_t keys[MOST_OUTLIERS + 1] = {};  // this lane's largest, in falling order
#pragma unroll 4
    for (uint32_t i = lane_index(); i < width; i += LANES) {
        uint64_t key = magnitude_key(widen_all(row[i]), i);
        if (key <= keys[MOST_OUTLIERS]) continue;
#pragma unroll
        for (uint32_t j = 0; j <= MOST_OUTLIERS; j++) {
            const uint64_t larger = key > keys[j] ? key : keys[j];
            key = key > keys[j] ? keys[j] : key;
            keys[j] = larger;
        }
    }
    Largest largest = {};
    for (uint32_t i = 0; i <= k; i++) {
        uint64_t key = keys[0];
#pragma unroll
        for (uint32_t step = LANES / 2; step > 0; step /= 2) {
            const uint64_t other = __shfl_xor_sync(ALL_LANES, key, step);
            key = other > key ? other : key;
        }
        if (keys[0] == key) {  // no two keys are equal, but zeros where none are left
#pragma unroll
            for (uint32_t j = 0; j < MOST_OUTLIERS; j++) keys[j] = keys[j + 1];
            keys[MOST_OUTLIERS] = 0;
        }
        if (i == k) {
            largest.of_rest = key >> 32;
        } else {
            largest.least = key;
            if (lane_index() == i) largest.mine = key;
        }
    }
    return largest;
}

// ---- the loss -----------------------------------------------------------------------------------------------------------

// Sums of a row and of what is read back for it. Products of f32 are exact in f64.
struct Loss {
    double error, norm, read_norm, dot;

    __device__ __forceinline__ void add(float x, float read) {
        const double d = __fsub_rn(read, x);
        error = fma(d, d, error);
        norm = fma(static_cast<double>(x), static_cast<double>(x), norm);
        read_norm = fma(static_cast<double>(read), static_cast<double>(read), read_norm);
        dot = fma(static_cast<double>(x), static_cast<double>(read), dot);
    }

    __device__ __forceinline__ void put(uint16_t* to) {
        error = warp_sum(error), norm = warp_sum(norm), read_norm = warp_sum(read_norm), dot = warp_sum(dot);
        if (lane_index() != 0) return;
        const bool none = norm == 0.0 && error == 0.0;
        const float ratio = none ? 0.0f : __double2float_rn(__dsqrt_rn(__ddiv_rn(error, norm)));
        put_f32(to, isnan(ratio) ? __uint_as_float(QUIET_NAN) : ratio);
        const double norms = __dmul_rn(__dsqrt_rn(norm), __dsqrt_rn(read_norm));
        const double cosine = read_norm == 0.0 ? 0.0 : __ddiv_rn(dot, norms);
        put_f32(to + 2, none ? 1.0f : fminf(__double2float_rn(cosine), 1.0f));
    }
};

// ---- the rows -----------------------------------------------------------------------------------------------------------

template <typename T, typename Code>
__device__ __forceinline__ void quantise(const QuantiseArgs& a) {
    const uint32_t i = blockIdx.x * (THREADS / LANES) + warp_index();
    if (i >= a.selected) return;
    const uint32_t k = min((a.width + PER_OUTLIER - 1) / PER_OUTLIER, MOST_OUTLIERS);
    const uint32_t groups = Code::GROUPS ? (a.width + GROUP - 1) / GROUP : 1;
    const uint64_t side_bytes = groups * Code::SCALE_BYTES + 4 * k + 8;
    const T* row = static_cast<const T*>(a.source) + source_row(a.rows, i) * a.source_stride;
    uint8_t* codes = a.codes + static_cast<uint64_t>(i) * a.width;
    uint16_t* scales = reinterpret_cast<uint16_t*>(a.side + i * side_bytes);
    uint16_t* places = scales + groups * Code::SCALE_BYTES / 2;

    const Largest largest = largest_of(row, a.width, k);
    if (lane_index() < k) {
        const uint32_t place = ~static_cast<uint32_t>(largest.mine);
        places[lane_index()] = place;
        places[k + lane_index()] = bf16_bits(widen_all(row[place]));
    }
    float scale = scale_of<Code>(largest.of_rest);
    if (!Code::GROUPS && lane_index() == 0) put_f32(scales, scale);

    Loss loss = {};
#pragma unroll 2
    for (uint32_t first = 0; first < a.width; first += GROUP) {
        float x[2];
        bool apart[2];
        uint32_t of_rest = 0;
#pragma unroll
        for (uint32_t j = 0; j < 2; j++) {
            const uint32_t at = first + j * LANES + lane_index();
            x[j] = at < a.width ? widen_all(row[at]) : 0.0f;
            apart[j] = magnitude_key(x[j], at) >= largest.least;
            if (!apart[j]) of_rest = max(of_rest, __float_as_uint(x[j]) & 0x7fffffff);
        }
        if constexpr (Code::GROUPS) {
#pragma unroll
            for (uint32_t step = LANES / 2; step > 0; step /= 2) of_rest = max(of_rest, __shfl_xor_sync(ALL_LANES, of_rest, step));
            scale = scale_of<Code>(of_rest);
            if (lane_index() == 0) scales[first / GROUP] = __float_as_uint(scale) >> 16;
        }
#pragma unroll
        for (uint32_t j = 0; j < 2; j++) {
            const uint32_t at = first + j * LANES + lane_index();
            if (at >= a.width) break;
            const uint8_t code = Code::encode(x[j], __fdiv_rn(x[j], scale));
            codes[at] = code;
            const float kept = __uint_as_float(static_cast<uint32_t>(bf16_bits(x[j])) << 16);
            loss.add(x[j], apart[j] ? kept : __fmul_rn(Code::decode(code), scale));
        }
    }
    loss.put(places + 2 * k);
}

#define ENTRY(NAME, T, CODE) \
    extern "C" __global__ void __launch_bounds__(THREADS) NAME(const __grid_constant__ QuantiseArgs a) { quantise<T, CODE>(a); }

ENTRY(quantise_f32_e4m3, f32, E4m3)
ENTRY(quantise_f16_e4m3, f16, E4m3)
ENTRY(quantise_bf16_e4m3, bf16, E4m3)
ENTRY(quantise_f32_int8, f32, Int8)
ENTRY(quantise_f16_int8, f16, Int8)
ENTRY(quantise_bf16_int8, bf16, Int8)
