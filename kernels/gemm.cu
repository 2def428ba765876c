// out[M, N] = x[M, K] · weight[N, K]ᵀ, accumulated in f32 and rounded once to the element type of `out`.
//
// Shapes: any M ≥ 1; N and K multiples of 8. Rows of x, weight and out lie a stride apart (elements; a multiple of 8 for 16-bit
// elements, of 4 for f32), so each may be a slice of something wider. blockIdx.z counts a batch of products whose operands
// lie batch strides apart: the per-head results z[:, head] · W_O[:, head]ᵀ are one launch.
//
//   gemm_bf16  gemm_f16                    x, weight and out of that type; tensor cores
//   gemm_bf16_f32out  gemm_f16_f32out      the sum itself, unrounded: logits, an f32 residual stream
//   gemm_f32                               FFMA (no TF32)
//   …_small                                the 16-bit entries again with a smaller tile, for few rows
//
// Split: a block computes one tile of `out`, over all of K. Blocks are numbered through bands of 16 tiles of M, down M first, so
// that the blocks under way together share x and weight in L2. K passes through a ring of shared-memory stages filled by
// cp.async; rows past M or N and columns past K arrive as zeros, so the inner loop knows no edges.
//
//   16-bit         128 × 128 × 32, 4 warps of 64 × 64, 3 stages = 48 KiB: 2 blocks per SM on every arch (sm_86 and sm_89 have 100 KiB)
//   16-bit small    64 ×  32 × 64, 4 warps of 16 × 32, 8 stages = 96 KiB: for M ≤ 64, where weight bandwidth is all: 28 KiB of weight are
//                  under way per block, more than 3.3 TB/s × 700 ns / 132 SMs = 17.5 KiB, and N = 4096 still makes 128 blocks. Also
//                  where the larger tile would leave half of an H100 idle
//   f32             64 × 128 × 16, 4 warps of 32 × 64, 8 × 8 per thread, 3 stages = 36 KiB
//
// Bits: an element is the sum over K in one fixed order (16-bit: mma by mma, 16 columns at a time, in both tile shapes; f32: runs of
// 128 columns, then the runs), with zeros behind K. It depends on its row of x and its row of weight alone: not on M, N, the place in
// the batch, the strides, or which instance computed it. There is no split over K.
//
// Bound, Mistral-7B at M = 8192 tokens (H100 SXM: 798 TFLOP/s bf16 measured, 3.0 TB/s), 2·M·N·K FLOP over (M·K + N·K + M·N)·2 bytes:
//   qkv       N =  6144, K =  4096   412 GFLOP  0.52 ms |  218 MB  0.07 ms
//   o         N =  4096, K =  4096   275 GFLOP  0.34 ms |  168 MB  0.06 ms
//   gate-up   N = 28672, K =  4096  1924 GFLOP  2.41 ms |  772 MB  0.26 ms
//   down      N =  4096, K = 14336   962 GFLOP  1.21 ms |  419 MB  0.14 ms
//   head      N = 32000, K =  4096   (selected rows only)
// all compute-bound; at M ≤ 64 the weight alone (34 to 235 MB, 0.01 to 0.08 ms) bounds it. mma.sync itself reaches about two thirds of
// what wgmma does on sm_90. Shared memory: a warp's 64 × 64 × 16 step reads 4 KiB (32 cycles at 128 B/cycle) for 65,536 multiply-adds
// (64 cycles on sm_80).

#include "mma.cuh"

struct GemmArgs {
    const void* x;       // [batch, M, K]
    const void* weight;  // [batch, N, K]
    void* out;           // [batch, M, N]
    uint64_t x_batch_stride, weight_batch_stride, out_batch_stride;  // elements from one product's operand to the next's
    uint32_t m, n, k, batch;
    uint32_t x_stride, weight_stride, out_stride;  // elements from row to row
    uint32_t _pad;
};

constexpr int BAND_TILES = 16;

template <int M_, int N_, int K_, int WARPS_M_, int WARPS_N_, int STAGES_>
struct TileShape {
    static constexpr int M = M_, N = N_, K = K_, WARPS_M = WARPS_M_, WARPS_N = WARPS_N_, STAGES = STAGES_;
    static constexpr int THREADS = WARPS_M * WARPS_N * WARP_LANES;
    static constexpr int WARP_M = M / WARPS_M, WARP_N = N / WARPS_N;
};

using Tile = TileShape<128, 128, 32, 2, 2, 3>;
using SmallTile = TileShape<64, 32, 64, 4, 1, 8>;
using TileF32 = TileShape<64, 128, 16, 2, 2, 3>;

extern __shared__ __align__(128) unsigned char shared_bytes[];

// The first row and column of this block's tile.
template <typename S>
__device__ __forceinline__ void place_tile(const GemmArgs& a, uint32_t& row0, uint32_t& column0) {
    const uint32_t tiles_m = (a.m + S::M - 1) / S::M, tiles_n = (a.n + S::N - 1) / S::N;
    const uint32_t band = blockIdx.x / (BAND_TILES * tiles_n), within = blockIdx.x % (BAND_TILES * tiles_n);
    const uint32_t band_tiles = min(tiles_m - band * BAND_TILES, (uint32_t)BAND_TILES);
    row0 = (band * BAND_TILES + within % band_tiles) * S::M;
    column0 = within / band_tiles * S::N;
}

// A thread's share of bringing ROWS × BK tiles of one operand to shared memory, along K. Rows in shared memory are swizzled.
template <typename T, int ROWS, int BK, int THREADS>
struct OperandTiles {
    static constexpr int CHUNK = 16 / sizeof(T), CHUNKS = BK / CHUNK;
    static constexpr int PASS_ROWS = THREADS / CHUNKS, PASSES = ROWS / PASS_ROWS;
    static constexpr int BYTES = ROWS * BK * sizeof(T);
    static_assert(PASS_ROWS % 8 == 0 && PASSES * PASS_ROWS == ROWS, "whole passes that keep a thread's swizzle");

    const T* source;         // this thread's chunk of the next tile, in its first row
    size_t pass_stride;      // elements between its rows
    int columns_left;        // of K, from this chunk on
    uint32_t rows_inside;    // bit p: pass p's row exists
    uint32_t chunk_address;  // in stage 0

    __device__ __forceinline__ OperandTiles(const T* operand, uint32_t stride, uint32_t row0, uint32_t rows, uint32_t k, uint32_t stage0) {
        const uint32_t row = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS;
        source = operand + (size_t)(row0 + row) * stride + chunk * CHUNK;
        pass_stride = (size_t)PASS_ROWS * stride;
        columns_left = (int)k - (int)(chunk * CHUNK);
        rows_inside = 0;
#pragma unroll
        for (int pass = 0; pass < PASSES; ++pass) rows_inside |= (row0 + row + pass * PASS_ROWS < rows ? 1u : 0u) << pass;
        chunk_address = stage0 + swizzled<CHUNKS>(row, chunk);
    }

    // Starts copying the next tile into the stage at this byte offset.
    __device__ __forceinline__ void copy_next(uint32_t stage_offset) {
#pragma unroll
        for (int pass = 0; pass < PASSES; ++pass) {
            const bool inside = columns_left > 0 && (rows_inside >> pass & 1);
            cp_async_16_or_zero(chunk_address + stage_offset + pass * PASS_ROWS * CHUNKS * 16, source + pass * pass_stride, inside);
        }
        source += BK;
        columns_left -= BK;
    }
};

// ---- 16-bit elements: tensor cores ----------------------------------------------------------------------------------

// One k = 16 step of a warp's operands, as fragments.
template <typename S>
struct Fragments {
    uint32_t x[S::WARP_M / 16][4];
    uint32_t weight[S::WARP_N / 16][4];  // two 8-column tiles each: {b0, b1} of the first, {b0, b1} of the second
};

// Where a lane's rows for ldmatrix lie.
template <typename S>
struct FragmentRows {
    static constexpr int CHUNKS = S::K / 8;
    uint32_t x_row, x_chunk, weight_row, weight_chunk;

    __device__ __forceinline__ FragmentRows(uint32_t warp, uint32_t lane) {
        x_row = warp / S::WARPS_N * S::WARP_M + lane % 16;  // matrices: rows 0-7, rows 8-15; then the same of the next chunk
        x_chunk = lane / 16;
        weight_row = warp % S::WARPS_N * S::WARP_N + lane % 8 + lane / 16 * 8;  // matrices: chunks 0, 1 of 8 rows; then of the next 8
        weight_chunk = lane / 8 % 2;
    }

    __device__ __forceinline__ void load(Fragments<S>& f, uint32_t x_stage, uint32_t weight_stage, int step) const {
        const uint32_t x0 = x_stage + swizzled<CHUNKS>(x_row, 2 * step + x_chunk);
        const uint32_t weight0 = weight_stage + swizzled<CHUNKS>(weight_row, 2 * step + weight_chunk);
        // 16 rows further on the swizzle is the same
#pragma unroll
        for (int i = 0; i < S::WARP_M / 16; ++i) ldmatrix_x4(f.x[i], x0 + i * 16 * CHUNKS * 16);
#pragma unroll
        for (int j = 0; j < S::WARP_N / 16; ++j) ldmatrix_x4(f.weight[j], weight0 + j * 16 * CHUNKS * 16);
    }
};

template <typename T, typename S>
__device__ __forceinline__ void multiply(float (&sums)[S::WARP_M / 16][S::WARP_N / 8][4], const Fragments<S>& f) {
#pragma unroll
    for (int i = 0; i < S::WARP_M / 16; ++i)
#pragma unroll
        for (int j = 0; j < S::WARP_N / 8; ++j) mma_m16n8k16<T>(sums[i][j], f.x[i], f.weight[j / 2][j % 2 * 2], f.weight[j / 2][j % 2 * 2 + 1]);
}

__device__ __forceinline__ void stage_pair(float* to, float low, float high) {
    *reinterpret_cast<float2*>(to) = make_float2(low, high);
}
template <typename T>
__device__ __forceinline__ void stage_pair(T* to, float low, float high) {
    *reinterpret_cast<uint32_t*>(to) = pack2<T>(low, high);
}

// Writes a warp's sums, 16 rows at a time, through its own corner of shared memory: fragments hold 2 neighbours, memory wants
// 16-byte vectors in whole lines. 8 elements of padding per row spread the fragment rows over the banks.
template <typename Out, typename S>
__device__ __forceinline__ void store_warp(const GemmArgs& a, Out* out, const float (&sums)[S::WARP_M / 16][S::WARP_N / 8][4],
                                           uint32_t row0, uint32_t column0, uint32_t warp, uint32_t lane) {
    constexpr int PITCH = S::WARP_N + 8, VECTOR = 16 / sizeof(Out), VECTORS = S::WARP_N / VECTOR;
    Out* const corner = reinterpret_cast<Out*>(shared_bytes) + warp * 16 * PITCH;
    const uint32_t g = lane / 4, t = lane % 4;
#pragma unroll
    for (int i = 0; i < S::WARP_M / 16; ++i) {
        __syncwarp();
#pragma unroll
        for (int j = 0; j < S::WARP_N / 8; ++j) {
            stage_pair(corner + g * PITCH + j * 8 + t * 2, sums[i][j][0], sums[i][j][1]);
            stage_pair(corner + (g + 8) * PITCH + j * 8 + t * 2, sums[i][j][2], sums[i][j][3]);
        }
        __syncwarp();
#pragma unroll
        for (int pass = 0; pass < 16 * VECTORS / WARP_LANES; ++pass) {
            const uint32_t at = pass * WARP_LANES + lane, r = at / VECTORS, c = at % VECTORS * VECTOR;
            const uint32_t row = row0 + i * 16 + r, column = column0 + c;
            if (row < a.m && column < a.n)
                *reinterpret_cast<uint4*>(out + (size_t)row * a.out_stride + column) = *reinterpret_cast<const uint4*>(corner + r * PITCH + c);
        }
    }
}

template <typename T, typename Out, typename S>
__device__ __forceinline__ void gemm(const GemmArgs& a) {
    using XTiles = OperandTiles<T, S::M, S::K, S::THREADS>;
    using WeightTiles = OperandTiles<T, S::N, S::K, S::THREADS>;
    constexpr int STAGE_BYTES = XTiles::BYTES + WeightTiles::BYTES, STEPS = S::K / 16;
    static_assert(S::WARPS_M * S::WARPS_N * 16 * (S::WARP_N + 8) * sizeof(Out) <= S::STAGES * STAGE_BYTES, "the corners fit the ring");
    static_assert(STEPS % 2 == 0, "a tile begins with the first fragment buffer");

    uint32_t row0, column0;
    place_tile<S>(a, row0, column0);
    const uint32_t ring = shared_address(shared_bytes), warp = threadIdx.x / WARP_LANES, lane = threadIdx.x % WARP_LANES;
    XTiles x(static_cast<const T*>(a.x) + blockIdx.z * a.x_batch_stride, a.x_stride, row0, a.m, a.k, ring);
    WeightTiles weight(static_cast<const T*>(a.weight) + blockIdx.z * a.weight_batch_stride, a.weight_stride, column0, a.n, a.k,
                       ring + XTiles::BYTES);
    const FragmentRows<S> rows(warp, lane);
    const int tiles = (a.k + S::K - 1) / S::K;

#pragma unroll
    for (int stage = 0; stage < S::STAGES - 1; ++stage) {
        if (stage < tiles) {
            x.copy_next(stage * STAGE_BYTES);
            weight.copy_next(stage * STAGE_BYTES);
        }
        cp_async_commit();  // an empty group where there is no tile: the waits count groups
    }

    float sums[S::WARP_M / 16][S::WARP_N / 8][4] = {};
    Fragments<S> fragments[2];  // one is multiplied while the other is loaded
    uint32_t reading = 0, writing = (S::STAGES - 1) * STAGE_BYTES;
    cp_async_wait<S::STAGES - 2>();
    __syncthreads();
    rows.load(fragments[0], ring, ring + XTiles::BYTES, 0);

    for (int tile = 0; tile < tiles; ++tile) {
#pragma unroll
        for (int step = 0; step < STEPS; ++step) {
            if (step < STEPS - 1) {
                rows.load(fragments[(step + 1) % 2], ring + reading, ring + reading + XTiles::BYTES, step + 1);
            } else if (tile + 1 < tiles) {
                reading = reading == (S::STAGES - 1) * STAGE_BYTES ? 0 : reading + STAGE_BYTES;
                cp_async_wait<S::STAGES - 2>();  // the next tile is here, as far as this thread brought it;
                __syncthreads();                 // wholly; and the stage to be written next has been read out by every warp
                rows.load(fragments[0], ring + reading, ring + reading + XTiles::BYTES, 0);
            }
            if (step == 0) {
                if (tile + S::STAGES - 1 < tiles) {
                    x.copy_next(writing);
                    weight.copy_next(writing);
                }
                cp_async_commit();
                writing = writing == (S::STAGES - 1) * STAGE_BYTES ? 0 : writing + STAGE_BYTES;
            }
            multiply<T, S>(sums, fragments[step % 2]);
        }
    }

    __syncthreads();  // every warp has read its last fragments: the ring may be written again
    store_warp<Out, S>(a, static_cast<Out*>(a.out) + blockIdx.z * a.out_batch_stride, sums, row0 + warp / S::WARPS_N * S::WARP_M,
                       column0 + warp % S::WARPS_N * S::WARP_N, warp, lane);
}

// ---- f32: FFMA ------------------------------------------------------------------------------------------------------

constexpr int F32_RUN_TILES = 8;  // 8 tiles of 16 columns: runs of 128 keep rounding near that of sums of 128 terms, not of K

// A thread computes rows lane / 8 + 4·i and columns lane % 8 + 8·j of its warp's 32 × 64: its 16-byte reads along K then meet 8
// consecutive rows of weight, and of x one row, per 8 lanes: no bank conflicts.
__device__ __forceinline__ void multiply_f32(float (&run)[8][8], const unsigned char* x_stage, const unsigned char* weight_stage,
                                             uint32_t x_row, uint32_t weight_row) {
#pragma unroll
    for (int chunk = 0; chunk < TileF32::K / 4; ++chunk) {
        float4 x[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) x[i] = *reinterpret_cast<const float4*>(x_stage + swizzled<4>(x_row + 4 * i, chunk));
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            const float4 w = *reinterpret_cast<const float4*>(weight_stage + swizzled<4>(weight_row + 8 * j, chunk));
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                run[i][j] = fmaf(x[i].x, w.x, run[i][j]);
                run[i][j] = fmaf(x[i].y, w.y, run[i][j]);
                run[i][j] = fmaf(x[i].z, w.z, run[i][j]);
                run[i][j] = fmaf(x[i].w, w.w, run[i][j]);
            }
        }
    }
}

__device__ __forceinline__ void end_run(float (&sums)[8][8], float (&run)[8][8]) {
#pragma unroll
    for (int i = 0; i < 8; ++i)
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            sums[i][j] += run[i][j];
            run[i][j] = 0.0f;
        }
}

extern "C" __global__ void __launch_bounds__(TileF32::THREADS, 2) gemm_f32(const __grid_constant__ GemmArgs a) {
    using S = TileF32;
    using XTiles = OperandTiles<float, S::M, S::K, S::THREADS>;
    using WeightTiles = OperandTiles<float, S::N, S::K, S::THREADS>;
    constexpr int STAGE_BYTES = XTiles::BYTES + WeightTiles::BYTES;

    uint32_t row0, column0;
    place_tile<S>(a, row0, column0);
    const uint32_t ring = shared_address(shared_bytes), warp = threadIdx.x / WARP_LANES, lane = threadIdx.x % WARP_LANES;
    XTiles x(static_cast<const float*>(a.x) + blockIdx.z * a.x_batch_stride, a.x_stride, row0, a.m, a.k, ring);
    WeightTiles weight(static_cast<const float*>(a.weight) + blockIdx.z * a.weight_batch_stride, a.weight_stride, column0, a.n, a.k,
                       ring + XTiles::BYTES);
    const uint32_t x_row = warp / S::WARPS_N * S::WARP_M + lane / 8, weight_row = warp % S::WARPS_N * S::WARP_N + lane % 8;
    const int tiles = (a.k + S::K - 1) / S::K;

#pragma unroll
    for (int stage = 0; stage < S::STAGES - 1; ++stage) {
        if (stage < tiles) {
            x.copy_next(stage * STAGE_BYTES);
            weight.copy_next(stage * STAGE_BYTES);
        }
        cp_async_commit();
    }

    float sums[8][8] = {}, run[8][8] = {};
    uint32_t reading = 0, writing = (S::STAGES - 1) * STAGE_BYTES;
    for (int tile = 0; tile < tiles; ++tile) {
        cp_async_wait<S::STAGES - 2>();
        __syncthreads();  // this tile is here, and the stage written next has been read out by every warp
        if (tile + S::STAGES - 1 < tiles) {
            x.copy_next(writing);
            weight.copy_next(writing);
        }
        cp_async_commit();
        multiply_f32(run, shared_bytes + reading, shared_bytes + reading + XTiles::BYTES, x_row, weight_row);
        if (tile % F32_RUN_TILES == F32_RUN_TILES - 1) end_run(sums, run);
        reading = reading == (S::STAGES - 1) * STAGE_BYTES ? 0 : reading + STAGE_BYTES;
        writing = writing == (S::STAGES - 1) * STAGE_BYTES ? 0 : writing + STAGE_BYTES;
    }
    end_run(sums, run);

    // 4 bytes per lane, but 8 neighbours to a 32-byte sector: nothing is written twice, and it happens once per block
    float* const out = static_cast<float*>(a.out) + blockIdx.z * a.out_batch_stride;
#pragma unroll
    for (int i = 0; i < 8; ++i)
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            const uint32_t row = row0 + x_row + 4 * i, column = column0 + weight_row + 8 * j;
            if (row < a.m && column < a.n) out[(size_t)row * a.out_stride + column] = sums[i][j];
        }
}

// ---- entries --------------------------------------------------------------------------------------------------------

#define GEMM(NAME, T, OUT, SHAPE)                                                                                   \
    extern "C" __global__ void __launch_bounds__(SHAPE::THREADS, 2) NAME(const __grid_constant__ GemmArgs a) {      \
        gemm<T, OUT, SHAPE>(a);                                                                                     \
    }

GEMM(gemm_bf16, __nv_bfloat16, __nv_bfloat16, Tile)
GEMM(gemm_f16, __half, __half, Tile)
GEMM(gemm_bf16_f32out, __nv_bfloat16, float, Tile)
GEMM(gemm_f16_f32out, __half, float, Tile)
GEMM(gemm_bf16_small, __nv_bfloat16, __nv_bfloat16, SmallTile)
GEMM(gemm_f16_small, __half, __half, SmallTile)
GEMM(gemm_bf16_f32out_small, __nv_bfloat16, float, SmallTile)
GEMM(gemm_f16_f32out_small, __half, float, SmallTile)
