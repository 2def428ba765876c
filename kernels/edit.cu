// Edits of an activation in place, on selected rows and columns, each with its receipt: the norm² of what is edited, before and after.
//
//   edit_add      x ← round(x + c·v)                    c·v + x is one fma in f32, then rounded to the dtype
//   edit_scale    x ← round(c·x)
//   edit_replace  x ← round(v); without v: x ← 0
//   edit_clamp    x ← round(x + (t − p)·v),  p = x·v, t = p limited to [lo, hi], v of unit length; x where lo ≤ p ≤ hi.
//                 lo = hi = 0 projects v out: x − (x·v)v. In f64, v too, rounded once: v rounded to f32 would not be of unit
//                 length, and would leave some of the component.
//
// x [.., stride] in bf16, f16 or f32; rows [selected] (null: row i is row i), each row at most once; segments: the columns. The
// edited part of a row is the segments laid end to end (`Segment::at`), and v [.., width of that], f32 (f64 for the clamp), is laid
// out like it, with a row stride of 0 for one v for all rows, else one per selected row. A projection runs over the whole edited
// part: to project within each head, launch once per head. before, after [selected] f64: the squares of the edited part summed in
// a fixed order.
//
// Split: one block per row, one warp per segment of at most 1024 columns, in turn. The clamp reads its row twice (the second
// time from L1 or L2). Sums: each lane in column order, then `block_sum`, in f64; they depend on neither grid nor alignment.
// Bound: bytes. Mistral-7B residual (width 4096, bf16): 8 KiB read + 8 KiB written per row, 16 KiB of v from L2; about
// 2 f64 FMA per element (3 for the clamp), which a GPU with few f64 units (sm_86, sm_89) takes longer over than the bytes.
#include "common.cuh"

constexpr uint32_t THREADS = 128;
constexpr uint32_t WARPS = THREADS / LANES;

struct EditArgs {
    void* x;
    const uint32_t* rows;
    const Segment* segments;
    const void* v;  // f32; f64 for the clamp
    double* before;
    double* after;
    uint64_t x_stride;
    uint64_t v_stride;
    uint32_t selected;
    uint32_t segment_count;
    float c;
    float lo;
    float hi;
    uint32_t _pad;
};

enum class Edit { Add, Scale, Replace, Clamp };

// What v is made of.
template <Edit EDIT>
struct Of {
    using V = float;
};
template <>
struct Of<Edit::Clamp> {
    using V = double;
};

// Calls visit(x, v, len) for each vector's worth of this warp's segments: where it is in x and v, and how many of its elements
// there are.
template <typename T, typename V, typename Visit>
__device__ __forceinline__ void for_each_vector(const EditArgs& a, T* x, const V* v, Visit visit) {
    for (uint32_t s = warp_index(); s < a.segment_count; s += WARPS) {
        const Segment segment = load_segment(a.segments + s);
        for (uint32_t j = lane_index() * VECTOR<T>; j < segment.len; j += LANES * VECTOR<T>) {
            visit(x + segment.first + j, v + segment.at + j, segment.len - j);
        }
    }
}

template <typename T>
__device__ __forceinline__ bool is_aligned(const T* x) {
    return reinterpret_cast<uint64_t>(x) % 16 == 0;
}

template <uint32_t N>
__device__ __forceinline__ void load_v(const float* v, uint32_t count, float (&d)[N]) {
    load_some(v, count, is_aligned(v), d);
}

template <uint32_t N>
__device__ __forceinline__ void load_v(const double* v, uint32_t count, double (&d)[N]) {
#pragma unroll
    for (uint32_t j = 0; j < N; j++) d[j] = j < count ? v[j] : 0.0;
}

// x as T would hold it, rounded once: by way of the neighbouring f32 whose last bit is odd (unless f32 holds x), which lies on
// the same side of every tie of a shorter type.
template <typename T>
__device__ __forceinline__ float rounded(double x) {
    float near = __double2float_rn(x);
    const double back = near;
    if (sizeof(T) < 4 && back != x && !isinf(near)) {
        const uint32_t bits = __float_as_uint(near);
        if (bits % 2 == 0) near = __uint_as_float(fabs(back) < fabs(x) ? bits + 1 : bits - 1);
    }
    return rounded<T>(near);
}

template <uint32_t N>
__device__ __forceinline__ double squares(const float (&x)[N]) {
    double sum = 0.0;
#pragma unroll
    for (uint32_t j = 0; j < N; j++) sum = fma(static_cast<double>(x[j]), static_cast<double>(x[j]), sum);
    return sum;
}

// p = x·v of the row's edited part, in every thread.
template <typename T>
__device__ __forceinline__ double component(const EditArgs& a, T* x, const double* v) {
    constexpr uint32_t N = VECTOR<T>;
    __shared__ double partial[WARPS];
    double sum = 0.0;
    for_each_vector(a, x, v, [&](T* at, const double* v_at, uint32_t len) {
        float e[N];
        double d[N];
        load_some(at, len, is_aligned(at), e);
        load_v(v_at, len, d);
#pragma unroll
        for (uint32_t j = 0; j < N; j++) sum = fma(static_cast<double>(e[j]), d[j], sum);
    });
    return block_sum<THREADS>(sum, partial);
}

template <Edit EDIT>
__device__ __forceinline__ typename Of<EDIT>::V edited(float x, typename Of<EDIT>::V v, typename Of<EDIT>::V c) {
    if constexpr (EDIT == Edit::Clamp) return __dadd_rn(x, __dmul_rn(c, v));
    if constexpr (EDIT == Edit::Scale) return __fmul_rn(c, x);
    if constexpr (EDIT == Edit::Replace) return v;
    return __fmaf_rn(c, v, x);
}

// Edits the row, c being the factor of v (or of x).
template <typename T, Edit EDIT>
__device__ __forceinline__ void edit_row(const EditArgs& a, T* x, const typename Of<EDIT>::V* v, typename Of<EDIT>::V c, bool untouched) {
    using V = typename Of<EDIT>::V;
    constexpr uint32_t N = VECTOR<T>;
    __shared__ double before[WARPS], after[WARPS];
    double sum_before = 0.0, sum_after = 0.0;
    for_each_vector(a, x, v, [&](T* at, const V* v_at, uint32_t len) {
        float e[N];
        V d[N] = {};
        load_some(at, len, is_aligned(at), e);
        sum_before += squares(e);
        if (untouched) return;
        if (EDIT != Edit::Scale && a.v != nullptr) load_v(v_at, len, d);
#pragma unroll
        for (uint32_t j = 0; j < N; j++) e[j] = rounded<T>(edited<EDIT>(e[j], d[j], c));
        sum_after += squares(e);
        store_some(at, len, is_aligned(at), e);
    });
    sum_before = block_sum<THREADS>(sum_before, before);
    sum_after = block_sum<THREADS>(sum_after, after);
    if (threadIdx.x == 0) {
        a.before[blockIdx.x] = sum_before;
        a.after[blockIdx.x] = untouched ? sum_before : sum_after;
    }
}

template <typename T, Edit EDIT>
__device__ __forceinline__ void edit(const EditArgs& a) {
    T* x = static_cast<T*>(a.x) + source_row(a.rows, blockIdx.x) * a.x_stride;
    const auto* v = static_cast<const typename Of<EDIT>::V*>(a.v) + blockIdx.x * a.v_stride;
    if constexpr (EDIT == Edit::Clamp) {
        const double p = component(a, x, v);
        const double limited = p < a.lo ? a.lo : p > a.hi ? a.hi : p;
        edit_row<T, EDIT>(a, x, v, limited - p, limited == p);
    } else {
        edit_row<T, EDIT>(a, x, v, a.c, false);
    }
}

#define ENTRY(NAME, T, EDIT) \
    extern "C" __global__ void __launch_bounds__(THREADS) NAME(const __grid_constant__ EditArgs a) { edit<T, EDIT>(a); }

ENTRY(edit_add_bf16, bf16, Edit::Add)
ENTRY(edit_add_f16, f16, Edit::Add)
ENTRY(edit_add_f32, f32, Edit::Add)
ENTRY(edit_scale_bf16, bf16, Edit::Scale)
ENTRY(edit_scale_f16, f16, Edit::Scale)
ENTRY(edit_scale_f32, f32, Edit::Scale)
ENTRY(edit_replace_bf16, bf16, Edit::Replace)
ENTRY(edit_replace_f16, f16, Edit::Replace)
ENTRY(edit_replace_f32, f32, Edit::Replace)
ENTRY(edit_clamp_bf16, bf16, Edit::Clamp)
ENTRY(edit_clamp_f16, f16, Edit::Clamp)
ENTRY(edit_clamp_f32, f32, Edit::Clamp)
