// Embedding: out[r, :] = E[tokens[r], :].
//
// E [vocab, width], tokens [rows], out [rows, width] with a row stride; width a multiple of 8. The residual stream may be f32
// beside 16-bit weights (embed_bf16_f32, embed_f16_f32), else rows are copied bit for bit. Token ids are checked by the host.
//
// Split: one block per row, its threads over the row's vectors.
// Bound: bytes. Mistral-7B (width 4096, bf16): 8 KiB read + 8 KiB written per row, no arithmetic.
#include "common.cuh"

constexpr uint32_t THREADS = 128;

struct EmbedArgs {
    const void* table;
    const uint32_t* tokens;
    void* out;
    uint64_t out_stride;
    uint32_t rows;
    uint32_t width;
};

template <typename From, typename To>
__device__ __forceinline__ void embed(const EmbedArgs& a) {
    constexpr uint32_t N = VECTOR<To> < VECTOR<From> ? VECTOR<To> : VECTOR<From>;
    const uint32_t row = blockIdx.x;
    const From* from = static_cast<const From*>(a.table) + static_cast<uint64_t>(a.tokens[row]) * a.width;
    To* to = static_cast<To*>(a.out) + row * a.out_stride;
    for (uint32_t i = threadIdx.x * N; i < a.width; i += THREADS * N) {
        if constexpr (sizeof(From) == sizeof(To)) {
            Packed<From, N> packed;
            packed.load(from + i);
            packed.store(to + i);
        } else {
            float x[N];
            load(from + i, x);
            store(to + i, x);
        }
    }
}

#define ENTRY(NAME, FROM, TO) \
    extern "C" __global__ void __launch_bounds__(THREADS) NAME(const __grid_constant__ EmbedArgs a) { embed<FROM, TO>(a); }

ENTRY(embed_bf16, bf16, bf16)
ENTRY(embed_f16, f16, f16)
ENTRY(embed_f32, f32, f32)
ENTRY(embed_bf16_f32, bf16, f32)
ENTRY(embed_f16_f32, f16, f32)
