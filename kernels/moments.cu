// Sums over rows, for statistics: Σ x and the lower triangle of Σ x·xᵀ, of a chunk of at most 448 rows at a time.
//
//   spread   sum += Σ x in f64, in the order of the rows; the rows less their mean (f32), and what n times that mean leaves of each column's sum
//   outer    outer[i, j] += Σ x_i·x_j for j ≤ i: the spread's products in f32, the mean's share in f64
//
// Every number is made by the operations of src/backend/cpu/moments.rs in their order, so that the bits are those of the CPU: a product's
// sum is made of runs of 112 fused multiply-adds from zero, the runs added in order, and what is f64 there is f64 here, without
// contraction. rows, spread f32 [n, width]; mean f32 [width]; sum, rest f64 [width]; outer f64 [width, width].
//
// Split: spread: a thread a column, grid (columns / 64). outer: a block a tile of 64 × 64 of the lower triangle, a thread 4 × 4 of it, rows
// through shared memory 16 at a time; grid (tiles, tiles), tiles above the diagonal leave at once.
// Bound: spread: bytes. outer: f32 FMA, n·width² FLOP, and 16 bytes for each element of the triangle. No tensor cores: their products of
// f32 are no f32 products.
#include "common.cuh"

constexpr uint32_t COLUMNS = 64;

struct SpreadArgs {
    const float* rows;
    float* spread;
    float* mean;
    double* sum;
    double* rest;
    double share;  // 1 / n
    uint32_t n;
    uint32_t width;
};

extern "C" __global__ void __launch_bounds__(COLUMNS) moments_spread(const __grid_constant__ SpreadArgs a) {
    const uint32_t column = blockIdx.x * COLUMNS + threadIdx.x;
    if (column >= a.width) return;
    double total = 0.0;
    for (uint32_t row = 0; row < a.n; row++) {
        total = __dadd_rn(total, static_cast<double>(a.rows[static_cast<uint64_t>(row) * a.width + column]));
    }
    a.sum[column] = __dadd_rn(a.sum[column], total);
    const float mean = __double2float_rn(__dmul_rn(total, a.share));
    for (uint32_t row = 0; row < a.n; row++) {
        const uint64_t at = static_cast<uint64_t>(row) * a.width + column;
        a.spread[at] = __fsub_rn(a.rows[at], mean);
    }
    a.mean[column] = mean;
    a.rest[column] = __dsub_rn(total, __dmul_rn(static_cast<double>(a.n), static_cast<double>(mean)));
}

constexpr uint32_t TILE = 64;     // of the matrix, on either side
constexpr uint32_t EACH = 4;      // elements of a thread, on either side
constexpr uint32_t SIDE = TILE / EACH;
constexpr uint32_t THREADS = SIDE * SIDE;
constexpr uint32_t DEPTH = 16;    // rows in shared memory
constexpr uint32_t RUN = 112;     // rows that are summed in one chain
static_assert(RUN % DEPTH == 0, "a run is whole pieces");

struct OuterArgs {
    const float* spread;
    const float* mean;
    const double* rest;
    double* outer;
    uint32_t n;
    uint32_t width;
};

// A piece of the rows, the columns of one side of the tile; zeros past the last.
__device__ __forceinline__ void bring(const OuterArgs& a, uint32_t first_row, uint32_t first_column, float (&piece)[DEPTH][TILE]) {
#pragma unroll
    for (uint32_t i = threadIdx.x; i < DEPTH * TILE; i += THREADS) {
        const uint32_t row = first_row + i / TILE, column = first_column + i % TILE;
        const bool inside = row < a.n && column < a.width;
        piece[i / TILE][i % TILE] = inside ? a.spread[static_cast<uint64_t>(row) * a.width + column] : 0.0f;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) moments_outer(const __grid_constant__ OuterArgs a) {
    if (blockIdx.x > blockIdx.y) return;
    __shared__ float down[DEPTH][TILE], across[DEPTH][TILE];
    const uint32_t top = blockIdx.y * TILE, left = blockIdx.x * TILE;
    const uint32_t y = threadIdx.x / SIDE, x = threadIdx.x % SIDE;
    float sum[EACH][EACH] = {};
    for (uint32_t run = 0; run < a.n; run += RUN) {
        float chain[EACH][EACH] = {};
        const uint32_t end = min(run + RUN, a.n);
        for (uint32_t first = run; first < end; first += DEPTH) {
            bring(a, first, top, down);
            bring(a, first, left, across);
            __syncthreads();
            const uint32_t rows = min(DEPTH, end - first);
            for (uint32_t row = 0; row < rows; row++) {
                float i_side[EACH], j_side[EACH];
#pragma unroll
                for (uint32_t k = 0; k < EACH; k++) {
                    i_side[k] = down[row][y * EACH + k];
                    j_side[k] = across[row][x + k * SIDE];
                }
#pragma unroll
                for (uint32_t i = 0; i < EACH; i++) {
#pragma unroll
                    for (uint32_t j = 0; j < EACH; j++) chain[i][j] = __fmaf_rn(i_side[i], j_side[j], chain[i][j]);
                }
            }
            __syncthreads();  // before the next piece takes its place
        }
#pragma unroll
        for (uint32_t i = 0; i < EACH; i++) {
#pragma unroll
            for (uint32_t j = 0; j < EACH; j++) sum[i][j] = run == 0 ? chain[i][j] : __fadd_rn(sum[i][j], chain[i][j]);
        }
    }
#pragma unroll
    for (uint32_t i = 0; i < EACH; i++) {
        const uint32_t row = top + y * EACH + i;
        if (row >= a.width) continue;
        const double mean = static_cast<double>(a.mean[row]);
        const double all = __dadd_rn(__dmul_rn(static_cast<double>(a.n), mean), a.rest[row]);
#pragma unroll
        for (uint32_t j = 0; j < EACH; j++) {
            const uint32_t column = left + x + j * SIDE;
            if (column > row) continue;  // in the triangle, so below width too
            const double of_mean = __dadd_rn(__dmul_rn(mean, a.rest[column]), __dmul_rn(all, static_cast<double>(a.mean[column])));
            double* to = a.outer + static_cast<uint64_t>(row) * a.width + column;
            *to = __dadd_rn(*to, __dadd_rn(static_cast<double>(sum[i][j]), of_mean));
        }
    }
}
