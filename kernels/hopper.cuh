// What sm_90a has beyond mma.cuh, each instruction behind one thin function: mbarriers, tensor copies (TMA), and matrix products
// of a whole warpgroup out of shared memory (wgmma). For code under __CUDA_ARCH_FEAT_SM90_ALL only.
//
// Shared memory is written by the copies and read by the products through the async proxy. Here nothing else touches what they
// touch, so that mbarriers alone order them: a product's stage is free once wgmma_wait has returned, not before.
//
// Everything asynchronous carries a "memory" clobber, as in mma.cuh. Accumulators pass through the waits as operands: the compiler
// takes a product for done when it is issued, and would read them too early.
#pragma once

#include "mma.cuh"

constexpr int WARPGROUP = 4 * WARP_LANES;

// What cuTensorMapEncodeTiled makes; only the hardware reads it.
struct alignas(128) TensorMap {
    uint64_t opaque[16];
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// ---- mbarriers ------------------------------------------------------------------------------------------------------

// A phase ends when `arrivals` arrivals and all expected bytes are in.
__device__ __forceinline__ void mbarrier_init(uint32_t barrier, uint32_t arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Lets copies find the barriers that this thread has made; other threads need a __syncthreads besides.
__device__ __forceinline__ void fence_mbarrier_init() { asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory"); }

__device__ __forceinline__ void mbarrier_arrive(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(barrier) : "memory");
}

// Arrives, and has the phase wait for so many bytes of copies.
__device__ __forceinline__ void mbarrier_arrive_expect(uint32_t barrier, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(barrier), "r"(bytes) : "memory");
}

// Returns when the phase of this parity has ended. The first phase is of parity 0; one before it, of parity 1, counts as ended.
__device__ __forceinline__ void mbarrier_wait(uint32_t barrier, uint32_t parity) {
    uint32_t ended;
    do {
        asm volatile(
            "{\n"
            ".reg .pred p;\n"
            "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
            "selp.u32 %0, 1, 0, p;\n"
            "}\n"
            : "=r"(ended)
            : "r"(barrier), "r"(parity)
            : "memory");
    } while (!ended);
}

// ---- tensor copies --------------------------------------------------------------------------------------------------

__device__ __forceinline__ void prefetch_tensor_map(const TensorMap* map) {
    asm volatile("prefetch.tensormap [%0];\n" ::"l"(map) : "memory");
}

// Copies the map's box with its first element at (column, row) to shared memory, zeros where it leaves the tensor, and tells the
// barrier its bytes. One thread calls it.
__device__ __forceinline__ void copy_box(uint32_t to_shared, const TensorMap* map, uint32_t column, uint32_t row, uint32_t barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];\n" ::"r"(to_shared),
        "l"(map), "r"(column), "r"(row), "r"(barrier)
        : "memory");
}

// ---- wgmma ----------------------------------------------------------------------------------------------------------

// Describes rows of 64 16-bit elements, K along them, as a tensor copy with a 128-byte swizzle leaves them: groups of 8 rows in 1024
// bytes, the first on a multiple of 1024. Fields (PTX ISA, "Matrix descriptor"), addresses and distances in 16 bytes: start in
// bits 0-13, the distance of 8-row groups in 32-45, swizzle in 62-63 (1: 128 bytes). 16 columns further on the start is 2 larger.
__device__ __forceinline__ uint64_t operand_descriptor(uint32_t shared) {
    return static_cast<uint64_t>((shared & 0x3ffff) >> 4) | uint64_t{1024 >> 4} << 32 | uint64_t{1} << 62;
}

// The registers are the products' from here on.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }

// Ends a group of products.
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory"); }

#define SUMS_8(S, I) "+f"(S[I]), "+f"(S[I + 1]), "+f"(S[I + 2]), "+f"(S[I + 3]), "+f"(S[I + 4]), "+f"(S[I + 5]), "+f"(S[I + 6]), "+f"(S[I + 7])
#define SUMS_32(S, I) SUMS_8(S, I), SUMS_8(S, I + 8), SUMS_8(S, I + 16), SUMS_8(S, I + 24)
#define SUMS_128(S) SUMS_32(S, 0), SUMS_32(S, 32), SUMS_32(S, 64), SUMS_32(S, 96)

// Waits until at most PENDING of the newest groups are still under way: then the stages that the others read are free.
template <int PENDING>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(PENDING) : "memory");
}

// Waits for all; the sums may be read.
__device__ __forceinline__ void wgmma_wait_for(float (&sums)[128]) {
    asm volatile("wgmma.wait_group.sync.aligned 0;\n" : SUMS_128(sums)::"memory");
}

// sums (+)= A·Bᵀ for the warpgroup's 64 rows of A and 256 rows of B, 16 columns of each. Warp w of the group holds rows 16·w …; for
// lane = 4·g + t it has sums[4·j + 2·h + i] = D[16·w + g + 8·h][8·j + 2·t + i]. Where not `add` what was there is not looked at.
#define WGMMA_M64N256K16(TYPE)                                                                                                          \
    asm volatile(                                                                                                                       \
        "{\n"                                                                                                                           \
        ".reg .pred p;\n"                                                                                                               \
        "setp.ne.b32 p, %130, 0;\n"                                                                                                     \
        "wgmma.mma_async.sync.aligned.m64n256k16.f32." TYPE "." TYPE " "                                                                \
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                                       \
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                                              \
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                                              \
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "                                              \
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "                                              \
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "                                              \
        "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "                                  \
        "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, "                             \
        "%128, %129, p, 1, 1, 0, 0;\n"                                                                                                  \
        "}\n"                                                                                                                           \
        : SUMS_128(sums)                                                                                                                \
        : "l"(a), "l"(b), "r"(static_cast<int>(add))                                                                                    \
        : "memory")

template <typename T>
__device__ __forceinline__ void wgmma_m64n256k16(float (&sums)[128], uint64_t a, uint64_t b, bool add) {
    if constexpr (__is_same(T, __nv_bfloat16)) {
        WGMMA_M64N256K16("bf16");
    } else {
        WGMMA_M64N256K16("f16");
    }
}

// ---- registers ------------------------------------------------------------------------------------------------------

// The warpgroup gives registers back, or takes those that another gave: so many per thread from here on.
template <int REGISTERS>
__device__ __forceinline__ void keep_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(REGISTERS));
}

template <int REGISTERS>
__device__ __forceinline__ void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(REGISTERS));
}

#endif
