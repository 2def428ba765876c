// out[M, F] = swiglu(x[M, K] · gate[F, K]ᵀ, x · up[F, K]ᵀ): the MLP's first product with its activation, for sm_90a. gate and up are the
// halves of one weight [2·F, K]. The sums are f32; gate and up are each rounded to the element type, then silu(gate), then the product,
// as gemm.cu and swiglu.cu round them between each other (silu.cuh).
//
// Shapes: any M ≥ 1; F and K multiples of 8. x and weight come as tensor maps of boxes of 128 rows × 64 columns with a 128-byte
// swizzle; rows past M and 2·F and columns past K arrive as zeros, so that the inner loop knows no edges.
//
//   gate_up_bf16  gate_up_f16
//
// What it saves against the two kernels: the gate-up rows are neither written nor read back. For Mistral-7B at M = 8192 that is 3 · 470
// MB, 0.47 ms at 3.0 TB/s, beside products of 2.41 ms.
//
// Split: a tile of `out` is 128 × 128, over all of K; of gate and up together 128 × 256. As many blocks as there are SMs go through the
// tiles, `gridDim.x` apart, in bands of 16 tiles of M, down M first, so that tiles under way together share x and weight in L2.
// A block is three warpgroups. In the first, one thread brings x, gate and up to a ring of stages (TMA). The others multiply, 64 rows each
// (wgmma m64n256k16: gate's and up's 128 columns lie one behind the other, so that a thread has both of every element that it
// has one of), and write. While they write, the ring fills with the next tile.
//
//   stage  x 128 × 64, gate 128 × 64, up 128 × 64: 48 KiB; 4 stages = 192 KiB. Out's 16 rows per warp pass through 34 KiB of their own,
//          so that the copies need not know of them.
//   full   of a stage: its bytes are here (one arrival, which tells how many; the copies tell the rest)
//   empty  of a stage: the 8 warps that multiply have read it out (an arrival each, after the wait for its products)
//
// Bits: an element is the sum over K in one order, 16 columns at a time, with zeros behind K, whatever M, F and the place in the batch. They
// need not be those of gemm.cu: how wgmma sums 16 products is the hardware's affair.
//
// Bound, Mistral-7B at M = 8192 (H100 SXM, 798 TFLOP/s bf16 measured): 1924 GFLOP, 2.41 ms. Bytes: 67 + 235 + 235 MB, 0.18 ms.
// Shared memory: a k = 16 step of a warpgroup reads 64 and 256 rows of 32 bytes, 10 KiB, in the 128 cycles that its tensor cores take
// for it: 80 of 128 bytes a cycle. Registers: 128 sums a thread; 40 for the warpgroup that copies leave 232 for the others.
//
// On the other GPUs the entries trap.
#include "hopper.cuh"
#include "silu.cuh"

struct GateUpArgs {
    TensorMap x;       // [M, K]
    TensorMap weight;  // [2·F, K]: gate, then up
    void* out;         // [M, F]
    uint64_t out_stride;
    uint32_t m, f, k;
    uint32_t _pad[25];
};

constexpr uint32_t TILE_M = 128, TILE_F = 128, TILE_K = 64, STAGES = 4;
constexpr uint32_t WORKERS = TILE_M / 64, WORKER_WARPS = WORKERS * 4, THREADS = (1 + WORKERS) * WARPGROUP;
constexpr uint32_t X_BYTES = TILE_M * TILE_K * 2, HALF_BYTES = TILE_F * TILE_K * 2, STAGE_BYTES = X_BYTES + 2 * HALF_BYTES;
constexpr uint32_t CORNER_PITCH = TILE_F + 8, CORNER_BYTES = 16 * CORNER_PITCH * 2;
constexpr uint32_t CORNERS = STAGES * STAGE_BYTES, BARRIERS = CORNERS + WORKER_WARPS * CORNER_BYTES;
static_assert(BARRIERS + 2 * STAGES * 8 <= 227 * 1024, "what an SM has");

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

constexpr uint32_t BAND_TILES = 16;

extern __shared__ __align__(1024) unsigned char shared_bytes[];

// A place in the ring: a stage, and the parity of the phases that its barriers are in.
struct RingPlace {
    uint32_t stage = 0, parity = 0;

    __device__ __forceinline__ void advance() {
        stage += 1;
        if (stage == STAGES) {
            stage = 0;
            parity ^= 1;
        }
    }
    __device__ __forceinline__ uint32_t full(uint32_t shared) const { return shared + BARRIERS + stage * 8; }
    __device__ __forceinline__ uint32_t empty(uint32_t shared) const { return shared + BARRIERS + (STAGES + stage) * 8; }
    __device__ __forceinline__ uint32_t bytes(uint32_t shared) const { return shared + stage * STAGE_BYTES; }
};

struct Tiles {
    uint32_t m, f, k;

    __device__ __forceinline__ explicit Tiles(const GateUpArgs& a)
        : m((a.m + TILE_M - 1) / TILE_M), f((a.f + TILE_F - 1) / TILE_F), k((a.k + TILE_K - 1) / TILE_K) {}

    __device__ __forceinline__ uint32_t count() const { return m * f; }

    __device__ __forceinline__ void place(uint32_t tile, uint32_t& row0, uint32_t& column0) const {
        const uint32_t band = tile / (BAND_TILES * f), within = tile % (BAND_TILES * f);
        const uint32_t band_tiles = min(m - band * BAND_TILES, BAND_TILES);
        row0 = (band * BAND_TILES + within % band_tiles) * TILE_M;
        column0 = within / band_tiles * TILE_F;
    }
};

// One thread: brings every stage of every tile of this block.
__device__ __forceinline__ void bring(const GateUpArgs& a, const Tiles& tiles, uint32_t shared) {
    prefetch_tensor_map(&a.x);
    prefetch_tensor_map(&a.weight);
    RingPlace at;
    for (uint32_t tile = blockIdx.x; tile < tiles.count(); tile += gridDim.x) {
        uint32_t row0, column0;
        tiles.place(tile, row0, column0);
        for (uint32_t k = 0; k < tiles.k; ++k) {
            mbarrier_wait(at.empty(shared), at.parity ^ 1);
            const uint32_t full = at.full(shared), stage = at.bytes(shared);
            mbarrier_arrive_expect(full, STAGE_BYTES);
            copy_box(stage, &a.x, k * TILE_K, row0, full);
            copy_box(stage + X_BYTES, &a.weight, k * TILE_K, column0, full);
            copy_box(stage + X_BYTES + HALF_BYTES, &a.weight, k * TILE_K, a.f + column0, full);
            at.advance();
        }
    }
}

// All of K for this warpgroup's 64 rows of the tile; frees every stage behind itself.
template <typename T>
__device__ __forceinline__ void multiply(float (&sums)[128], uint32_t k_tiles, RingPlace& at, uint32_t shared, uint32_t worker, bool signals) {
    uint32_t to_free = 0;
    for (uint32_t k = 0; k < k_tiles; ++k) {
        mbarrier_wait(at.full(shared), at.parity);
        const uint32_t stage = at.bytes(shared);
        const uint64_t x = operand_descriptor(stage + worker * 64 * TILE_K * 2), weight = operand_descriptor(stage + X_BYTES);
        wgmma_fence();
#pragma unroll
        for (uint32_t step = 0; step < TILE_K / 16; ++step) wgmma_m64n256k16<T>(sums, x + step * 2, weight + step * 2, k + step > 0);
        wgmma_commit();
        wgmma_wait<1>();  // for the stage before
        if (k > 0 && signals) mbarrier_arrive(to_free);
        to_free = at.empty(shared);
        at.advance();
    }
    wgmma_wait_for(sums);
    if (signals) mbarrier_arrive(to_free);
}

// Writes a warp's 16 rows through its corner of shared memory: a thread's sums are pairs of neighbours, memory wants 16-byte vectors in
// whole lines. The corner's padding spreads the rows over the banks.
template <typename T>
__device__ __forceinline__ void write_out(const GateUpArgs& a, const float (&sums)[128], uint32_t row0, uint32_t column0, uint32_t warp, uint32_t lane) {
    constexpr uint32_t VECTORS = TILE_F / 8;
    T* const corner = reinterpret_cast<T*>(shared_bytes + CORNERS + warp * CORNER_BYTES);
    const uint32_t g = lane / 4, t = lane % 4;
    __syncwarp();  // the tile before was read out of the corner
#pragma unroll
    for (uint32_t j = 0; j < TILE_F / 8; ++j)
#pragma unroll
        for (uint32_t h = 0; h < 2; ++h) {
            float gate[2], up[2];
            unpack<T>(pack<T>(sums[4 * j + 2 * h], sums[4 * j + 2 * h + 1]), gate[0], gate[1]);
            unpack<T>(pack<T>(sums[64 + 4 * j + 2 * h], sums[64 + 4 * j + 2 * h + 1]), up[0], up[1]);
            unpack<T>(pack<T>(silu<T>(gate[0]), silu<T>(gate[1])), gate[0], gate[1]);
            *reinterpret_cast<uint32_t*>(corner + (g + 8 * h) * CORNER_PITCH + 8 * j + 2 * t) = pack<T>(gate[0] * up[0], gate[1] * up[1]);
        }
    __syncwarp();
    T* const out = static_cast<T*>(a.out);
#pragma unroll
    for (uint32_t pass = 0; pass < 16 * VECTORS / WARP_LANES; ++pass) {
        const uint32_t at = pass * WARP_LANES + lane, r = at / VECTORS, c = at % VECTORS * 8;
        if (row0 + r < a.m && column0 + c < a.f)
            *reinterpret_cast<uint4*>(out + (row0 + r) * a.out_stride + column0 + c) = *reinterpret_cast<const uint4*>(corner + r * CORNER_PITCH + c);
    }
}

template <typename T>
__device__ __forceinline__ void gate_up(const GateUpArgs& a) {
    const uint32_t shared = shared_address(shared_bytes), warpgroup = threadIdx.x / WARPGROUP, lane = threadIdx.x % WARP_LANES;
    if (threadIdx.x == 0) {
        for (uint32_t stage = 0; stage < STAGES; ++stage) {
            mbarrier_init(shared + BARRIERS + stage * 8, 1);
            mbarrier_init(shared + BARRIERS + (STAGES + stage) * 8, WORKER_WARPS);
        }
        fence_mbarrier_init();
    }
    __syncthreads();
    const Tiles tiles(a);
    if (warpgroup == 0) {
        keep_registers<40>();
        if (threadIdx.x == 0) bring(a, tiles, shared);
        return;
    }
    take_registers<232>();
    const uint32_t worker = warpgroup - 1, warp = threadIdx.x / WARP_LANES - 4;
    RingPlace at;
    for (uint32_t tile = blockIdx.x; tile < tiles.count(); tile += gridDim.x) {
        uint32_t row0, column0;
        tiles.place(tile, row0, column0);
        float sums[128];
        multiply<T>(sums, tiles.k, at, shared, worker, lane == 0);
        write_out<T>(a, sums, row0 + warp * 16, column0, warp, lane);
    }
}

#define ENTRY(NAME, T) \
    extern "C" __global__ void __launch_bounds__(THREADS, 1) NAME(const __grid_constant__ GateUpArgs a) { gate_up<T>(a); }
#else
#define ENTRY(NAME, T) \
    extern "C" __global__ void __launch_bounds__(THREADS, 1) NAME(const __grid_constant__ GateUpArgs a) { __trap(); }
#endif

ENTRY(gate_up_bf16, __nv_bfloat16)
ENTRY(gate_up_f16, __half)
