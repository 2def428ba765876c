// Prefill attention: z = softmax(scale · q·kᵀ, masked) · v for samples packed end to end, causal, with an optional sliding window and
// grouped key/value heads. Optionally the log-sum-exp of each row's scores.
//
// Shapes: q [rows, H, h], k and v [rows, K, h], z [rows, H, h], each with its own row stride, so that q, k, v can be slices of the
// packed qkv and z a slab's rows; h is 64, 80, 96 or 128, H a multiple of K. lse f32 [H, rows].
//
// Split (bf16, f16). A block takes one query head and one tile of 128 queries of one sample, from a list that the host orders longest
// first; tiles begin at the sample's first token, so that a sample's bits do not depend on its neighbours. Blocks of the heads that
// share keys are neighbours, and find them in L2. Each of 4 warps holds 32 queries: 32 rather than 16, because
// every K and V fragment read from shared memory then feeds two mma. Keys come in tiles of 64, first to last; those that
// no query of the tile sees are never loaded, and a warp sits out those that none of its own 32 sees.
// Two cp.async buffers, one for K and one for V: while one is multiplied the other fills. One product of 128×64×h takes
// longer than the copy, so nothing deeper is needed, and at 68 KB (h = 128) two blocks fit an A100 or H100 SM: one's
// softmax hides behind the other's tensor cores.
// Softmax is online, in f32, on raw products: exp is ex2 with scale·log2 e folded into one fma. P is rounded to the dtype for P·V
// (the row sum takes it unrounded, as flash attention and SDPA do), and z once at the end.
//
// Split (f32). Four threads a query, 32 queries a block, 32 keys a tile, all FFMA: for the f32 compute path, where exactness
// is wanted and speed is not.
//
// Bound at Mistral-7B shapes (H 32, K 8, h 128), per layer: 4·h·H FLOP per visible (query, key) pair, half of S² in a causal sample.
//   S = 4096: 137 GFLOP = 0.17 ms at 798 TFLOP/s; q, k, v, z are 84 MB = 0.03 ms at 3.0 TB/s: bound by FLOPs.
//   S = 512:  2.15 GFLOP = 2.7 µs; 10.5 MB = 3.5 µs: bound by bytes, just.

#include "attention.cuh"

struct AttentionArgs {
    const void* q;  // [rows, n_heads, h], after RoPE
    const void* k;  // [rows, n_kv_heads, h], after RoPE
    const void* v;  // [rows, n_kv_heads, h]
    void* z;        // [rows, n_heads, h]
    float* lse;     // [n_heads, rows], natural logarithm; or null
    const uint32_t* cu_seqlens;  // [samples + 1]
    const uint2* tiles;          // [n_tiles]: sample, first query counted in the sample
    uint32_t q_stride, k_stride, v_stride, z_stride;  // elements from row to row
    uint32_t n_heads, n_kv_heads;
    uint32_t rows;    // of the batch: the row stride of lse
    uint32_t n_tiles;
    uint32_t window;  // keys a query sees at most, its own included; 0: all
    float scale;      // of the scores: 1/√h
};

// One block's share.
struct Share {
    int head, kv_head;
    size_t row0;  // the sample's first row
    int n;        // its tokens
    int first;    // the tile's first query
};

__device__ __forceinline__ Share share(const AttentionArgs& a) {
    const uint2 tile = a.tiles[blockIdx.x / a.n_heads];
    Share s;
    s.head = blockIdx.x % a.n_heads;
    s.kv_head = s.head / (a.n_heads / a.n_kv_heads);
    s.row0 = a.cu_seqlens[tile.x];
    s.n = a.cu_seqlens[tile.x + 1] - s.row0;
    s.first = tile.y;
    return s;
}

// The first key that query `first` sees, rounded down to a whole tile of keys.
__device__ __forceinline__ int first_key(int first, int window, int tile_keys) {
    return max(first - window + 1, 0) / tile_keys * tile_keys;
}

constexpr int THREADS = 128;
constexpr int WARPS = THREADS / WARP_LANES;

// ---- bf16, f16 ------------------------------------------------------------------------------------------------------

constexpr int QUERIES = 128;                  // per block
constexpr int KEYS = 64;                      // per step
constexpr int WARP_QUERIES = QUERIES / WARPS;
constexpr int M_TILES = WARP_QUERIES / 16;    // of 16 queries, per warp
constexpr int KEY_TILES = KEYS / 8;

// Scores of a warp's queries: fragment [m][n] holds queries 16m + g and + 8, keys 8n + 2t and + 1 (mma.cuh).
using Scores = float[M_TILES][KEY_TILES][4];
// Weights as the A operand of P·V: the accumulator layout of two neighbouring score fragments is the A layout of 16 keys.
using Weights = uint32_t[M_TILES][KEY_TILES / 2][4];
template <int HEAD_DIM>
using Values = float[M_TILES][HEAD_DIM / 8][4];

// Of each row that a thread has a part of, [m][half]: largest raw score so far, and this thread's part of the sum of weights.
struct Running {
    float largest[M_TILES][2];
    float sum[M_TILES][2];
};

// S = Q·Kᵀ
template <typename T, int HEAD_DIM>
__device__ __forceinline__ void multiply_keys(Scores& s, uint32_t q_at, uint32_t k_at) {
    constexpr int PITCH = pitch<T, HEAD_DIM>();
#pragma unroll
    for (int m = 0; m < M_TILES; m++)
#pragma unroll
        for (int n = 0; n < KEY_TILES; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) s[m][n][e] = 0.0f;
#pragma unroll
    for (int d = 0; d < HEAD_DIM; d += 16) {
        uint32_t q[M_TILES][4];
#pragma unroll
        for (int m = 0; m < M_TILES; m++) ldmatrix_x4(q[m], q_at + (m * 16 * PITCH + d) * sizeof(T));
#pragma unroll
        for (int n = 0; n < KEY_TILES; n += 2) {
            uint32_t k[4];
            ldmatrix_x4(k, k_at + (n * 8 * PITCH + d) * sizeof(T));
#pragma unroll
            for (int m = 0; m < M_TILES; m++) {
                mma_m16n8k16<T>(s[m][n], q[m], k[0], k[1]);
                mma_m16n8k16<T>(s[m][n + 1], q[m], k[2], k[3]);
            }
        }
    }
}

// −∞ where the key is not visible; `query`, `key`: this thread's first.
__device__ __forceinline__ void mask(Scores& s, int query, int key, int window) {
#pragma unroll
    for (int m = 0; m < M_TILES; m++)
#pragma unroll
        for (int n = 0; n < KEY_TILES; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const bool seen = visible(query + m * 16 + e / 2 * 8, key + n * 8 + e % 2, window);
                s[m][n][e] = seen ? s[m][n][e] : -INFINITY;
            }
}

// Over the 4 lanes that share a row.
__device__ __forceinline__ float row_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffff, x, 2));
}

__device__ __forceinline__ float row_sum(float x) {
    x += __shfl_xor_sync(0xffffffff, x, 1);
    return x + __shfl_xor_sync(0xffffffff, x, 2);
}

// Scores become weights relative to the largest score so far, and what was summed under the previous largest is brought down to it.
template <int HEAD_DIM>
__device__ __forceinline__ void soften(Scores& s, Values<HEAD_DIM>& z, Running& running, float scale_log2) {
#pragma unroll
    for (int m = 0; m < M_TILES; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const float before = running.largest[m][half];
            float largest = before;
#pragma unroll
            for (int n = 0; n < KEY_TILES; n++) largest = fmaxf(largest, fmaxf(s[m][n][2 * half], s[m][n][2 * half + 1]));
            largest = row_max(largest);
            running.largest[m][half] = largest;
            // A row that has seen no key yet must not compute −∞ − (−∞).
            const float base = largest == -INFINITY ? 0.0f : largest * scale_log2;
            const float shrink = ex2(fmaf(before, scale_log2, -base));
            float sum = running.sum[m][half] * shrink;
#pragma unroll
            for (int n = 0; n < KEY_TILES; n++)
#pragma unroll
                for (int e = 2 * half; e < 2 * half + 2; e++) {
                    s[m][n][e] = ex2(fmaf(s[m][n][e], scale_log2, -base));
                    sum += s[m][n][e];
                }
            running.sum[m][half] = sum;
#pragma unroll
            for (int d = 0; d < HEAD_DIM / 8; d++) {
                z[m][d][2 * half] *= shrink;
                z[m][d][2 * half + 1] *= shrink;
            }
        }
}

template <typename T>
__device__ __forceinline__ void round_weights(Weights& p, const Scores& s) {
#pragma unroll
    for (int m = 0; m < M_TILES; m++)
#pragma unroll
        for (int n = 0; n < KEY_TILES; n++)
#pragma unroll
            for (int half = 0; half < 2; half++) p[m][n / 2][n % 2 * 2 + half] = pack2<T>(s[m][n][2 * half], s[m][n][2 * half + 1]);
}

// Z += P·V
template <typename T, int HEAD_DIM>
__device__ __forceinline__ void multiply_values(Values<HEAD_DIM>& z, const Weights& p, uint32_t v_at) {
    constexpr int PITCH = pitch<T, HEAD_DIM>();
#pragma unroll
    for (int n = 0; n < KEY_TILES / 2; n++)
#pragma unroll
        for (int d = 0; d < HEAD_DIM; d += 16) {
            uint32_t v[4];
            ldmatrix_x4_trans(v, v_at + (n * 16 * PITCH + d) * sizeof(T));
#pragma unroll
            for (int m = 0; m < M_TILES; m++) {
                mma_m16n8k16<T>(z[m][d / 8], p[m][n], v[0], v[1]);
                mma_m16n8k16<T>(z[m][d / 8 + 1], p[m][n], v[2], v[3]);
            }
        }
}

// Divides by the row sums, rounds, and stores a warp's `inside` rows by way of its own rows of the query tile, for whole 16-byte pieces.
template <typename T, int HEAD_DIM>
__device__ __forceinline__ void write_z(const Values<HEAD_DIM>& z, const Running& running, T* staging, T* to, uint32_t stride, int inside) {
    constexpr int PITCH = pitch<T, HEAD_DIM>();
    constexpr int CHUNKS = HEAD_DIM / 8;
    const int lane = threadIdx.x % WARP_LANES;
    __syncwarp();
#pragma unroll
    for (int m = 0; m < M_TILES; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const float inverse = rcp(running.sum[m][half]);
            T* row = staging + (m * 16 + half * 8 + lane / 4) * PITCH + lane % 4 * 2;
#pragma unroll
            for (int d = 0; d < CHUNKS; d++)
                *reinterpret_cast<uint32_t*>(row + d * 8) = pack2<T>(z[m][d][2 * half] * inverse, z[m][d][2 * half + 1] * inverse);
        }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < WARP_QUERIES * CHUNKS / WARP_LANES; i++) {
        const int chunk = lane + i * WARP_LANES;
        const int row = chunk / CHUNKS;
        const int column = chunk % CHUNKS * 8;
        if (row < inside)
            *reinterpret_cast<uint4*>(to + row * static_cast<size_t>(stride) + column) =
                *reinterpret_cast<const uint4*>(staging + row * PITCH + column);
    }
}

template <typename T, int HEAD_DIM>
__device__ __forceinline__ void attention(const AttentionArgs& a) {
    constexpr int PITCH = pitch<T, HEAD_DIM>();
    extern __shared__ __align__(16) unsigned char shared[];
    T* q_tile = reinterpret_cast<T*>(shared);
    T* k_tile = q_tile + QUERIES * PITCH;
    T* v_tile = k_tile + KEYS * PITCH;

    const Share own = share(a);
    const int lane = threadIdx.x % WARP_LANES;
    const int warp = threadIdx.x / WARP_LANES;
    const int window = window_of(a.window);
    const T* q = static_cast<const T*>(a.q) + (own.row0 + own.first) * a.q_stride + own.head * HEAD_DIM;
    const T* k = static_cast<const T*>(a.k) + own.row0 * a.k_stride + own.kv_head * HEAD_DIM;
    const T* v = static_cast<const T*>(a.v) + own.row0 * a.v_stride + own.kv_head * HEAD_DIM;
    const auto load_keys = [&](int key) {
        copy_rows<T, HEAD_DIM, KEYS, THREADS>(k_tile, k + key * size_t(a.k_stride), a.k_stride, own.n - key);
        cp_async_commit();
    };

    // This warp's queries, and where its lanes read their fragments.
    const int first = own.first + warp * WARP_QUERIES;
    const int last = min(first + WARP_QUERIES, own.n) - 1;
    const uint32_t q_at = lane_row_major<T, HEAD_DIM>(q_tile + warp * WARP_QUERIES * PITCH);
    const uint32_t k_at = lane_keys<T, HEAD_DIM>(k_tile);
    const uint32_t v_at = lane_row_major<T, HEAD_DIM>(v_tile);

    Values<HEAD_DIM> z = {};
    Running running;
#pragma unroll
    for (int m = 0; m < M_TILES; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            running.largest[m][half] = -INFINITY;
            running.sum[m][half] = 0.0f;
        }
    const float scale_log2 = a.scale * LOG2_E;

    const int end = min(own.first + QUERIES, own.n);
    int key = first_key(own.first, window, KEYS);
    copy_rows<T, HEAD_DIM, QUERIES, THREADS>(q_tile, q, a.q_stride, own.n - own.first);
    load_keys(key);
    for (; key < end; key += KEYS) {
        cp_async_wait<0>();  // these keys are here,
        __syncthreads();     // for all warps, and no warp still reads the previous values
        copy_rows<T, HEAD_DIM, KEYS, THREADS>(v_tile, v + key * size_t(a.v_stride), a.v_stride, own.n - key);
        cp_async_commit();
        Weights p;
        const bool seen = any_visible(first, last, key, key + KEYS - 1, window);
        if (seen) {
            Scores s;
            multiply_keys<T, HEAD_DIM>(s, q_at, k_at);
            if (!all_visible(first, last, key, key + KEYS - 1, window))
                mask(s, first + lane / 4, key + lane % 4 * 2, window);
            soften<HEAD_DIM>(s, z, running, scale_log2);
            round_weights<T>(p, s);
        }
        cp_async_wait<0>();  // these values are here,
        __syncthreads();     // for all warps, and no warp still reads the keys
        if (key + KEYS < end) load_keys(key + KEYS);
        if (seen) multiply_values<T, HEAD_DIM>(z, p, v_at);
    }

    const int inside = own.n - first;
    if (inside <= 0) return;
#pragma unroll
    for (int m = 0; m < M_TILES; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            running.sum[m][half] = row_sum(running.sum[m][half]);
            const int row = m * 16 + half * 8 + lane / 4;
            if (a.lse != nullptr && lane % 4 == 0 && row < inside)
                a.lse[own.head * size_t(a.rows) + own.row0 + first + row] =
                    fmaf(running.largest[m][half], a.scale, logf(running.sum[m][half]));
        }
    T* to = static_cast<T*>(a.z) + (own.row0 + first) * a.z_stride + own.head * HEAD_DIM;
    write_z<T, HEAD_DIM>(z, running, q_tile + warp * WARP_QUERIES * PITCH, to, a.z_stride, inside);
}

// ---- f32 ------------------------------------------------------------------------------------------------------------

constexpr int F32_QUERIES = 32;  // per block: 4 threads each
constexpr int F32_KEYS = 32;     // per step: 8 for each of the 4

template <int HEAD_DIM>
__device__ __forceinline__ void attention_f32(const AttentionArgs& a) {
    constexpr int PITCH = pitch<float, HEAD_DIM>();
    constexpr int OWN = F32_KEYS / 4;
    extern __shared__ __align__(16) unsigned char shared[];
    float* q_tile = reinterpret_cast<float*>(shared);
    float* k_tile = q_tile + F32_QUERIES * PITCH;
    float* v_tile = k_tile + F32_KEYS * PITCH;

    const Share own = share(a);
    const int window = window_of(a.window);
    const float* q = static_cast<const float*>(a.q) + (own.row0 + own.first) * a.q_stride + own.head * HEAD_DIM;
    const float* k = static_cast<const float*>(a.k) + own.row0 * a.k_stride + own.kv_head * HEAD_DIM;
    const float* v = static_cast<const float*>(a.v) + own.row0 * a.v_stride + own.kv_head * HEAD_DIM;
    copy_rows<float, HEAD_DIM, F32_QUERIES, THREADS>(q_tile, q, a.q_stride, own.n - own.first);

    // Thread `part` of a query has keys part + 4i and the elements 4(part + 4i) … + 3 of z.
    const int row = threadIdx.x / 4;
    const int part = threadIdx.x % 4;
    const int query = own.first + row;
    float4 z[HEAD_DIM / 16] = {};
    float largest = -INFINITY;
    float sum = 0.0f;

    const int end = min(own.first + F32_QUERIES, own.n);
    for (int key = first_key(own.first, window, F32_KEYS); key < end; key += F32_KEYS) {
        copy_rows<float, HEAD_DIM, F32_KEYS, THREADS>(k_tile, k + key * size_t(a.k_stride), a.k_stride, own.n - key);
        copy_rows<float, HEAD_DIM, F32_KEYS, THREADS>(v_tile, v + key * size_t(a.v_stride), a.v_stride, own.n - key);
        cp_async_commit();
        cp_async_wait<0>();  // these keys and values are here,
        __syncthreads();     // for all warps
        float p[OWN];
        const float before = largest;
#pragma unroll
        for (int i = 0; i < OWN; i++) {
            const int j = part + 4 * i;
            const float score = dot<HEAD_DIM>(q_tile + row * PITCH, k_tile + j * PITCH) * a.scale;
            p[i] = visible(query, key + j, window) ? score : -INFINITY;
            largest = fmaxf(largest, p[i]);
        }
        largest = row_max(largest);
        const float base = largest == -INFINITY ? 0.0f : largest;
        const float shrink = expf(before - base);
        sum *= shrink;
#pragma unroll
        for (int i = 0; i < OWN; i++) {
            p[i] = expf(p[i] - base);
            sum += p[i];
        }
#pragma unroll
        for (int i = 0; i < HEAD_DIM / 16; i++) {
            z[i].x *= shrink;
            z[i].y *= shrink;
            z[i].z *= shrink;
            z[i].w *= shrink;
        }
#pragma unroll
        for (int j = 0; j < F32_KEYS; j++) {
            const float weight = __shfl_sync(0xffffffff, p[j / 4], j % 4, 4);
            const float4* values = reinterpret_cast<const float4*>(v_tile + j * PITCH) + part;
#pragma unroll
            for (int i = 0; i < HEAD_DIM / 16; i++) {
                const float4 value = values[4 * i];
                z[i].x = fmaf(weight, value.x, z[i].x);
                z[i].y = fmaf(weight, value.y, z[i].y);
                z[i].z = fmaf(weight, value.z, z[i].z);
                z[i].w = fmaf(weight, value.w, z[i].w);
            }
        }
        __syncthreads();  // no warp still reads these keys and values: the next may come
    }

    sum = row_sum(sum);
    if (query >= own.n) return;
    const float inverse = 1.0f / sum;
    float* to = static_cast<float*>(a.z) + (own.row0 + query) * a.z_stride + own.head * HEAD_DIM;
#pragma unroll
    for (int i = 0; i < HEAD_DIM / 16; i++)
        reinterpret_cast<float4*>(to)[part + 4 * i] =
            make_float4(z[i].x * inverse, z[i].y * inverse, z[i].z * inverse, z[i].w * inverse);
    if (a.lse != nullptr && part == 0) a.lse[own.head * size_t(a.rows) + own.row0 + query] = largest + logf(sum);
}

// ---- entries --------------------------------------------------------------------------------------------------------

// Two blocks an SM leave 255 registers a thread: at h = 128, z and the scores alone are 192. At h = 64 three blocks fit.
#define ATTENTION(h)                                                                                                       \
    extern "C" __global__ void __launch_bounds__(THREADS, h == 64 ? 3 : 2)                                                 \
        attention_bf16_h##h(const __grid_constant__ AttentionArgs a) {                                                     \
        attention<__nv_bfloat16, h>(a);                                                                                    \
    }                                                                                                                      \
    extern "C" __global__ void __launch_bounds__(THREADS, h == 64 ? 3 : 2)                                                 \
        attention_f16_h##h(const __grid_constant__ AttentionArgs a) {                                                      \
        attention<__half, h>(a);                                                                                           \
    }                                                                                                                      \
    extern "C" __global__ void __launch_bounds__(THREADS) attention_f32_h##h(const __grid_constant__ AttentionArgs a) {    \
        attention_f32<h>(a);                                                                                               \
    }

ATTENTION(64)
ATTENTION(80)
ATTENTION(96)
ATTENTION(128)
