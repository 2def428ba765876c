// Reductions of selected rows, done before they are copied off the device: mean over a sample's rows, projection on directions, norm,
// the largest K components, and those of the log-softmax.
//
// source [.., stride] in bf16, f16 or f32; rows [selected] (null: row i is row i). A reduction runs over `width` columns from
// source on: for one column range the caller moves the pointer, several are gathered first. Outputs are contiguous f32 (indices u32);
// gather.cu converts them to another store dtype. Sums are in f64 in an order that depends on the width (mean: on the row's place in its
// sample) alone, so each agrees with a sequential f64 sum to about the last place of f32.
//
// reduce_mean      out [samples, width]. Samples in the selection are [cu_rows[s], cu_rows[s+1]). Where a selection comes in several launches
//                  (logits, some rows at a time), a sample may straddle them: counts[s] is the number of its rows in all launches,
//                  `earlier` how many of sample 0 came before, and the sums go from carry_out of one launch to carry_in of the next, [8, width] f64
//                  (two buffers: a launch may end one sample and begin another). A mean is written by the launch that sees the sample's last row.
//                  Split: block = 32 vectors of columns × 8 warps; warp w takes the sample's rows w, w + 8, …
//                  Bound: bytes; Mistral-7B residual (width 4096, bf16): 8 KiB read per row.
// reduce_dot       out [selected, directions]; directions [directions, width] f32.
//                  Split: one warp per 4 rows and direction. Bound: bytes for few directions (8 KiB per row, bf16, + 4 KiB of L2 per
//                  row and direction), f64 FMA for many.
// reduce_norm      out [selected]. Split: one block per row. Bound: bytes.
// reduce_top_k, reduce_log_prob_top_k
//                  values, indices [selected, k], k ≤ 1024: largest first, ties by the lower index, floats in total order. Log-probabilities are
//                  value − log Σ e^value.
//                  Split: one block per row: radix select by histograms of 11 bits of the key until the k-th largest is isolated, one
//                  more pass to collect what is not below it, bitonic sort. Bound: 4–7 passes over the row in L2; 128 KiB each for Mistral's 32000 f32 logits.
#include "logits.cuh"

// ---- mean -------------------------------------------------------------------------------------------------------------

constexpr uint32_t MEAN_GROUPS = 8;
constexpr uint32_t MEAN_THREADS = MEAN_GROUPS * LANES;

struct MeanArgs {
    const void* source;
    const uint32_t* rows;
    const uint32_t* cu_rows;
    const uint32_t* counts;
    const double* carry_in;
    double* carry_out;
    float* out;
    uint64_t source_stride;
    uint32_t samples;
    uint32_t width;
    uint32_t earlier;
    uint32_t _pad;
};

// Sums of this warp's rows, for this lane's columns, on top of `sum`.
template <typename T>
__device__ __forceinline__ void sum_rows(const MeanArgs& a, uint32_t first, uint32_t end, uint32_t column, double (&sum)[VECTOR<T>]) {
    constexpr uint32_t N = VECTOR<T>;
    const T* source = static_cast<const T*>(a.source);
    const bool vectors = rows_aligned<T, N>(source, a.source_stride);
#pragma unroll 4
    for (uint32_t i = first; i < end; i += MEAN_GROUPS) {
        float x[N];
        load_some(source + source_row(a.rows, i) * a.source_stride + column, a.width - column, vectors, x);
#pragma unroll
        for (uint32_t j = 0; j < N; j++) sum[j] += static_cast<double>(x[j]);
    }
}

template <typename T>
__device__ __forceinline__ void mean(const MeanArgs& a) {
    constexpr uint32_t N = VECTOR<T>;
    constexpr uint32_t COLUMNS = LANES * N;
    __shared__ double partial[MEAN_GROUPS][COLUMNS];
    const uint32_t sample = blockIdx.y;
    const uint32_t group = warp_index();
    const uint32_t tile = blockIdx.x * COLUMNS;
    const uint32_t column = tile + lane_index() * N;
    const uint32_t begin = a.cu_rows[sample], end = a.cu_rows[sample + 1];
    const uint32_t earlier = sample == 0 ? a.earlier : 0;
    const uint32_t count = a.counts[sample];
    const bool complete = earlier + (end - begin) == count;

    if (column < a.width) {
        const uint32_t here = min(N, a.width - column);
        double sum[N];
        const uint64_t carried = static_cast<uint64_t>(group) * a.width + column;
#pragma unroll
        for (uint32_t j = 0; j < N; j++) sum[j] = earlier > 0 && j < here ? a.carry_in[carried + j] : 0.0;
        sum_rows<T>(a, begin + (group + MEAN_GROUPS - earlier % MEAN_GROUPS) % MEAN_GROUPS, end, column, sum);
#pragma unroll
        for (uint32_t j = 0; j < N; j++) {
            if (complete) {
                partial[group][lane_index() * N + j] = sum[j];
            } else if (j < here) {
                a.carry_out[carried + j] = sum[j];
            }
        }
    }
    __syncthreads();
    const uint32_t mine = tile + threadIdx.x;
    if (!complete || threadIdx.x >= COLUMNS || mine >= a.width) return;
    double total = partial[0][threadIdx.x];
#pragma unroll
    for (uint32_t g = 1; g < MEAN_GROUPS; g++) total += partial[g][threadIdx.x];
    a.out[static_cast<uint64_t>(sample) * a.width + mine] = static_cast<float>(divided(total, count));
}

// ---- dot --------------------------------------------------------------------------------------------------------------

constexpr uint32_t DOT_THREADS = 128;
constexpr uint32_t DOT_ROWS = 4;

struct DotArgs {
    const void* source;
    const uint32_t* rows;
    const float* directions;
    float* out;
    uint64_t source_stride;
    uint32_t selected;
    uint32_t width;
    uint32_t direction_count;
    uint32_t _pad;
};

template <typename T>
__device__ __forceinline__ void dot(const DotArgs& a) {
    constexpr uint32_t N = VECTOR<T>;
    const uint32_t first = (blockIdx.x * (DOT_THREADS / LANES) + warp_index()) * DOT_ROWS;
    if (first >= a.selected) return;
    const T* source = static_cast<const T*>(a.source);
    const bool vectors = rows_aligned<T, N>(source, a.source_stride);
    const float* direction = a.directions + static_cast<uint64_t>(blockIdx.y) * a.width;
    const bool direction_vectors = rows_aligned<float, N>(a.directions, a.width);
    const T* row[DOT_ROWS];
    double sum[DOT_ROWS] = {};
#pragma unroll
    for (uint32_t r = 0; r < DOT_ROWS; r++) {
        row[r] = source + source_row(a.rows, min(first + r, a.selected - 1)) * a.source_stride;
    }
    for (uint32_t i = lane_index() * N; i < a.width; i += LANES * N) {
        float d[N];
        load_some(direction + i, a.width - i, direction_vectors, d);
#pragma unroll
        for (uint32_t r = 0; r < DOT_ROWS; r++) {
            float x[N];
            load_some(row[r] + i, a.width - i, vectors, x);
#pragma unroll
            for (uint32_t j = 0; j < N; j++) sum[r] = fma(static_cast<double>(x[j]), static_cast<double>(d[j]), sum[r]);
        }
    }
#pragma unroll
    for (uint32_t r = 0; r < DOT_ROWS; r++) {
        const double total = warp_sum(sum[r]);
        if (lane_index() == 0 && first + r < a.selected) {
            a.out[static_cast<uint64_t>(first + r) * a.direction_count + blockIdx.y] = static_cast<float>(total);
        }
    }
}

// ---- norm -------------------------------------------------------------------------------------------------------------

constexpr uint32_t NORM_THREADS = 128;

struct NormArgs {
    const void* source;
    const uint32_t* rows;
    float* out;
    uint64_t source_stride;
    uint32_t selected;
    uint32_t width;
};

template <typename T>
__device__ __forceinline__ void norm(const NormArgs& a) {
    __shared__ double partial[NORM_THREADS / LANES];
    const LongRow<T> row(a.source, a.source_stride, source_row(a.rows, blockIdx.x), a.width);
    double sum = 0.0;
    row.template for_each<NORM_THREADS>([&](float v, uint32_t) { sum = fma(static_cast<double>(v), static_cast<double>(v), sum); });
    sum = block_sum<NORM_THREADS>(sum, partial);
    if (threadIdx.x == 0) a.out[blockIdx.x] = static_cast<float>(sqrt(sum));
}

// ---- top k ------------------------------------------------------------------------------------------------------------

constexpr uint32_t TOP_THREADS = 512;
constexpr uint32_t TOP_MAX = 1024;
constexpr uint32_t DIGIT_BITS = 11;
constexpr uint32_t BINS = 1 << DIGIT_BITS;
constexpr uint32_t BINS_PER_THREAD = BINS / TOP_THREADS;

struct TopKArgs {
    const void* source;
    const uint32_t* rows;
    float* values;
    uint32_t* indices;
    uint64_t source_stride;
    uint32_t selected;
    uint32_t width;
    uint32_t k;
    uint32_t _pad;
};

// What the block shares while it looks for the k-th largest key.
struct TopK {
    uint32_t bins[BINS];
    uint32_t warp_counts[TOP_THREADS / LANES];
    uint64_t keys[TOP_MAX];
    uint32_t bin;      // the bin that the k-th largest key is in,
    uint32_t above;    // how many keys are in bins above it,
    uint32_t inside;   // and how many in it
    uint32_t collected;
};

// Finds the bin in which the count from the top reaches `wanted`. All threads; bins are complete.
__device__ __forceinline__ void find_bin(TopK& shared, uint32_t wanted) {
    uint32_t counts[BINS_PER_THREAD], mine = 0;
#pragma unroll
    for (uint32_t b = 0; b < BINS_PER_THREAD; b++) {
        counts[b] = shared.bins[BINS - 1 - (threadIdx.x * BINS_PER_THREAD + b)];
        mine += counts[b];
    }
    uint32_t upto = mine;
#pragma unroll
    for (uint32_t step = 1; step < LANES; step *= 2) {
        const uint32_t before = __shfl_up_sync(ALL_LANES, upto, step);
        if (lane_index() >= step) upto += before;
    }
    if (lane_index() == LANES - 1) shared.warp_counts[warp_index()] = upto;
    __syncthreads();
    uint32_t above = upto - mine;
    for (uint32_t warp = 0; warp < warp_index(); warp++) above += shared.warp_counts[warp];
#pragma unroll
    for (uint32_t b = 0; b < BINS_PER_THREAD; b++) {
        if (above < wanted && wanted <= above + counts[b]) {
            shared.bin = BINS - 1 - (threadIdx.x * BINS_PER_THREAD + b);
            shared.above = above;
            shared.inside = counts[b];
        }
        above += counts[b];
    }
    __syncthreads();
}

// The largest key that exactly k keys of the row reach. Keys are looked at from the top, 11 bits at a time, among those that share what is
// known; it ends when all keys of a bin are wanted: after the value's bits at the latest, unless equal values straddle the k-th place.
template <typename T>
__device__ __forceinline__ uint64_t threshold(const LongRow<T>& row, uint32_t k, TopK& shared) {
    uint64_t known = 0;
    uint32_t known_bits = 0, wanted = k;
    do {
        const uint32_t bits = min(DIGIT_BITS, 64 - known_bits);
        const uint32_t shift = 64 - known_bits - bits;
        for (uint32_t b = threadIdx.x; b < BINS; b += TOP_THREADS) shared.bins[b] = 0;
        __syncthreads();
        row.template for_each<TOP_THREADS>([&](float v, uint32_t column) {
            const uint64_t key = key_of(v, column);
            if (known_bits == 0 || key >> (64 - known_bits) == known) {
                atomicAdd(&shared.bins[static_cast<uint32_t>(key >> shift) & ((1u << bits) - 1)], 1u);
            }
        });
        __syncthreads();
        find_bin(shared, wanted);
        known = known << bits | shared.bin;
        known_bits += bits;
        wanted -= shared.above;
    } while (shared.inside != wanted && known_bits < 64);
    return known << (64 - known_bits);
}

// Sorts shared.keys[0, size), size a power of two, largest first.
__device__ __forceinline__ void sort_descending(TopK& shared, uint32_t size) {
    for (uint32_t run = 2; run <= size; run *= 2) {
        for (uint32_t apart = run / 2; apart > 0; apart /= 2) {
            __syncthreads();
            for (uint32_t i = threadIdx.x; i < size / 2; i += TOP_THREADS) {
                const uint32_t low = i / apart * apart * 2 + i % apart;
                const uint64_t a = shared.keys[low], b = shared.keys[low + apart];
                const bool descending = (low & run) == 0;
                if ((a < b) == descending) shared.keys[low] = b, shared.keys[low + apart] = a;
            }
        }
    }
    __syncthreads();
}

template <typename T, bool LOG_PROB>
__device__ __forceinline__ void top_k(const TopKArgs& a) {
    __shared__ TopK shared;
    const LongRow<T> row(a.source, a.source_stride, source_row(a.rows, blockIdx.x), a.width);
    double log_sum_exp = 0.0;
    if constexpr (LOG_PROB) {
        const float largest = key_value(largest_key<TOP_THREADS>(row));
        log_sum_exp = largest + log(sum_of_exp<TOP_THREADS>(row, largest));
    }
    const uint64_t least = threshold(row, a.k, shared);
    const uint32_t size = a.k > 1 ? 1u << (LANES - __clz(a.k - 1)) : 1;
    if (threadIdx.x == 0) shared.collected = 0;
    for (uint32_t i = a.k + threadIdx.x; i < size; i += TOP_THREADS) shared.keys[i] = 0;
    __syncthreads();
    row.template for_each<TOP_THREADS>([&](float v, uint32_t column) {
        const uint64_t key = key_of(v, column);
        if (key >= least) shared.keys[atomicAdd(&shared.collected, 1u)] = key;
    });
    sort_descending(shared, size);
    for (uint32_t i = threadIdx.x; i < a.k; i += TOP_THREADS) {
        const uint64_t at = static_cast<uint64_t>(blockIdx.x) * a.k + i;
        const float v = key_value(shared.keys[i]);
        a.values[at] = LOG_PROB ? static_cast<float>(v - log_sum_exp) : v;
        a.indices[at] = key_index(shared.keys[i]);
    }
}

// ---- entries ----------------------------------------------------------------------------------------------------------

#define ENTRY(NAME, THREADS, ARGS, BODY) \
    extern "C" __global__ void __launch_bounds__(THREADS, 1) NAME(const __grid_constant__ ARGS a) { BODY(a); }
#define ENTRIES(T)                                                                    \
    ENTRY(reduce_mean_##T, MEAN_THREADS, MeanArgs, mean<T>)                           \
    ENTRY(reduce_dot_##T, DOT_THREADS, DotArgs, dot<T>)                               \
    ENTRY(reduce_norm_##T, NORM_THREADS, NormArgs, norm<T>)                           \
    ENTRY(reduce_top_k_##T, TOP_THREADS, TopKArgs, (top_k<T, false>))                 \
    ENTRY(reduce_log_prob_top_k_##T, TOP_THREADS, TopKArgs, (top_k<T, true>))

ENTRIES(bf16)
ENTRIES(f16)
ENTRIES(f32)
