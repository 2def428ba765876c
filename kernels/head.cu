// What is read off logits on the device: log-softmax statistics, the argmax, chosen tokens' log-probabilities, and the divergence of
// two rows of logits.
//
// log_softmax   logits [.., stride] in bf16, f16 or f32, `vocab` columns; rows [selected] (null: row i is row i).
//               largest, log_sum_exp, entropy [selected] f32, argmax [selected] u32 (the lowest index among equals),
//               token_log_probs [selected, tokens_per_row] f32 of tokens [selected, tokens_per_row]. Any output may be null.
//               entropy = log Z − Σ e^(v − max) (v − max) / Z in nats.
// kl            out [selected] f32 = Σ p (log p − log q), p and q the softmax (temperature 1, every token) of rows p_rows[i] of p and
//               q_rows[i] of q. Exponentials in f64: the divergence of two near distributions is a small difference of large sums.
//
// Split: one block per row, two passes over it. Sums in f64, in an order that depends on vocab alone.
// Bound: bytes, the row once from memory and once from L2: Mistral-7B (vocab 32000, f32) 128 KiB per row; kl 256 KiB per pair and
// about 70 f64 operations per token, which on a GPU with few f64 units (sm_86, sm_89) is what takes the time.
#include "logits.cuh"

constexpr uint32_t THREADS = 512;

struct LogSoftmaxArgs {
    const void* logits;
    const uint32_t* rows;
    const uint32_t* tokens;
    float* largest;
    float* log_sum_exp;
    float* entropy;
    uint32_t* argmax;
    float* token_log_probs;
    uint64_t stride;
    uint32_t selected;
    uint32_t vocab;
    uint32_t tokens_per_row;
    uint32_t _pad;
};

template <typename T>
__device__ __forceinline__ void log_softmax(const LogSoftmaxArgs& a) {
    __shared__ double exps[THREADS / LANES], weighted[THREADS / LANES];
    const LongRow<T> row(a.logits, a.stride, source_row(a.rows, blockIdx.x), a.vocab);
    const uint64_t key = largest_key<THREADS>(row);
    const float largest = key_value(key);
    double z = 0.0, shift = 0.0;
    row.template for_each<THREADS>([&](float v, uint32_t) {
        const float below = v - largest, e = expf(below);
        z += static_cast<double>(e);
        // A token of probability 0 adds nothing, also where its logit is −∞.
        if (e != 0.0f) shift = fma(static_cast<double>(e), static_cast<double>(below), shift);
    });
    z = block_sum<THREADS>(z, exps);
    shift = block_sum<THREADS>(shift, weighted);
    const double log_z = log(z);
    const double log_sum_exp = largest + log_z;
    if (threadIdx.x == 0) {
        if (a.largest != nullptr) a.largest[blockIdx.x] = largest;
        if (a.argmax != nullptr) a.argmax[blockIdx.x] = key_index(key);
        if (a.log_sum_exp != nullptr) a.log_sum_exp[blockIdx.x] = static_cast<float>(log_sum_exp);
        if (a.entropy != nullptr) a.entropy[blockIdx.x] = static_cast<float>(log_z - divided(shift, z));
    }
    for (uint32_t t = threadIdx.x; t < a.tokens_per_row; t += THREADS) {
        const uint64_t at = static_cast<uint64_t>(blockIdx.x) * a.tokens_per_row + t;
        a.token_log_probs[at] = static_cast<float>(widen(row.at[a.tokens[at]]) - log_sum_exp);
    }
}

struct KlArgs {
    const void* p;
    const void* q;
    const uint32_t* p_rows;
    const uint32_t* q_rows;
    float* out;
    uint64_t p_stride;
    uint64_t q_stride;
    uint32_t selected;
    uint32_t vocab;
};

// With P = p − max p and Q = q − max q:  KL = Σ e^P (P − Q) / Σ e^P − log Σ e^P + log Σ e^Q.
template <typename T>
__device__ __forceinline__ void kl(const KlArgs& a) {
    constexpr uint32_t N = VECTOR<T>;
    __shared__ double sums[3][THREADS / LANES];
    const LongRow<T> p(a.p, a.p_stride, source_row(a.p_rows, blockIdx.x), a.vocab);
    const LongRow<T> q(a.q, a.q_stride, source_row(a.q_rows, blockIdx.x), a.vocab);
    const double p_largest = key_value(largest_key<THREADS>(p));
    __syncthreads();  // largest_key's shared memory is used again
    const double q_largest = key_value(largest_key<THREADS>(q));
    double p_sum = 0.0, q_sum = 0.0, shift = 0.0;
    for (uint32_t i = threadIdx.x * N; i < a.vocab; i += THREADS * N) {
        float pv[N], qv[N];
        load_some(p.at + i, a.vocab - i, p.vectors, pv);
        load_some(q.at + i, a.vocab - i, q.vectors, qv);
#pragma unroll 1
        for (uint32_t j = 0; j < N && i + j < a.vocab; j++) {
            const double below_p = pv[j] - p_largest, below_q = qv[j] - q_largest;
            const double e = exp(below_p);
            p_sum += e;
            q_sum += exp(below_q);
            if (e != 0.0) shift = fma(e, below_p - below_q, shift);
        }
    }
    p_sum = block_sum<THREADS>(p_sum, sums[0]);
    q_sum = block_sum<THREADS>(q_sum, sums[1]);
    shift = block_sum<THREADS>(shift, sums[2]);
    if (threadIdx.x == 0) a.out[blockIdx.x] = static_cast<float>(divided(shift, p_sum) - log(p_sum) + log(q_sum));
}

#define ENTRIES(T)                                                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS) log_softmax_##T(const __grid_constant__ LogSoftmaxArgs a) { \
        log_softmax<T>(a);                                                                                   \
    }                                                                                                        \
    extern "C" __global__ void __launch_bounds__(THREADS, 1) kl_##T(const __grid_constant__ KlArgs a) { kl<T>(a); }

ENTRIES(bf16)
ENTRIES(f16)
ENTRIES(f32)
