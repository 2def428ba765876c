// Keys and values of a batch's rows into the caches of their sequences, where decode_attention.cu reads them.
//
// Shapes: k and v [rows, K·h], a row stride each; the caches [slots of all sequences, K·h]; slots [rows]: which row of the caches a
// row goes to, or NOWHERE (a row that a window has passed by before the sample ends: of the rows that share a slot, the last is kept).
// Rows are 16-byte vectors whatever their element type.
//
// Split: a block per row, keys first, then values.
// Bound: bytes, each row read once and written once: Mistral-7B (K 8, h 128, bf16), 64 new tokens: 524 KB, 0.2 µs at 3.0 TB/s; the
// launch takes longer.
#include "common.cuh"

struct CacheRowsArgs {
    const uint4* k;         // [rows, k_stride]
    const uint4* v;         // [rows, v_stride]
    uint4* k_cache;         // [.., vectors]
    uint4* v_cache;         // the same
    const uint32_t* slots;  // [rows]
    uint64_t k_stride, v_stride;  // vectors from row to row
    uint32_t rows;
    uint32_t vectors;  // of a row
};

constexpr uint32_t THREADS = 128;
constexpr uint32_t NOWHERE = 0xffffffffu;

extern "C" __global__ void __launch_bounds__(THREADS) cache_rows(const __grid_constant__ CacheRowsArgs a) {
    const uint64_t row = blockIdx.x;
    const uint32_t slot = a.slots[row];
    if (slot == NOWHERE) return;
    const uint64_t to = static_cast<uint64_t>(slot) * a.vectors;
    for (uint32_t i = threadIdx.x; i < a.vectors; i += THREADS) {
        a.k_cache[to + i] = a.k[row * a.k_stride + i];
        a.v_cache[to + i] = a.v[row * a.v_stride + i];
    }
}
