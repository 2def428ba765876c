// The PTX that the tensor-core kernels are built from, each instruction behind one thin function:
// cp.async (global → shared without registers), ldmatrix (shared → fragments), mma.sync.m16n8k16.
//
// Everything asynchronous or warp-wide carries a "memory" clobber: the compiler must not move plain loads and stores of
// shared memory across it.
//
// Fragments of mma.m16n8k16 (PTX ISA, "Matrix fragments for mma.m16n8k16"), for lane = 4·g + t, g = 0..7, t = 0..3:
//   A (16×16, row major)   a[0] = A[g][2t, 2t+1]   a[1] = A[g+8][2t, 2t+1]   a[2] = A[g][2t+8, 2t+9]   a[3] = A[g+8][2t+8, 2t+9]
//   B (16×8, k × n)        b0   = B[2t, 2t+1][g]   b1   = B[2t+8, 2t+9][g]
//   C, D (16×8)            d[0], d[1] = D[g][2t, 2t+1]                       d[2], d[3] = D[g+8][2t, 2t+1]
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

constexpr int WARP_LANES = 32;

// The 32-bit address in the shared window that cp.async and ldmatrix take.
__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// ---- cp.async -------------------------------------------------------------------------------------------------------

// Copies 16 bytes past L1 (.cg); both addresses are multiples of 16.
__device__ __forceinline__ void cp_async_16(uint32_t to_shared, const void* from_global) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;\n" ::"r"(to_shared), "l"(from_global) : "memory");
}

// As above where `inside`; 16 zero bytes otherwise (nothing is then read, whatever the address).
__device__ __forceinline__ void cp_async_16_or_zero(uint32_t to_shared, const void* from_global, bool inside) {
    const int bytes = inside ? 16 : 0;
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;\n" ::"r"(to_shared), "l"(from_global), "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void cp_async_commit() {
    asm volatile("cp.async.commit_group;\n" ::: "memory");
}

// Waits until at most PENDING of this thread's newest groups are still under way. Other threads' copies need a barrier after it.
template <int PENDING>
__device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;\n" ::"n"(PENDING) : "memory");
}

// ---- ldmatrix -------------------------------------------------------------------------------------------------------

// Four 8×8 matrices of 16-bit elements: lane l gives the address of row l % 8 of matrix l / 8, and receives
// elements [g][2t, 2t+1] of each.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], uint32_t row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row)
                 : "memory");
}

// Each matrix transposed: the lane receives elements [2t, 2t+1][g]. For a B operand that lies in memory as k × n.
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row)
                 : "memory");
}

// ---- mma.sync -------------------------------------------------------------------------------------------------------

// d += A·B for a 16×8 tile, k = 16, f32 accumulation. T is the element type of A and B.
template <typename T>
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

template <>
__device__ __forceinline__ void mma_m16n8k16<__nv_bfloat16>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <>
__device__ __forceinline__ void mma_m16n8k16<__half>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// ---- packing and swizzling ------------------------------------------------------------------------------------------

// Two f32 rounded to nearest even, the first in the low half: how fragments and rows hold neighbours.
template <typename T>
__device__ __forceinline__ uint32_t pack2(float low, float high);

template <>
__device__ __forceinline__ uint32_t pack2<__nv_bfloat16>(float low, float high) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&pair);
}

template <>
__device__ __forceinline__ uint32_t pack2<__half>(float low, float high) {
    const __half2 pair = __floats2half2_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&pair);
}

// Byte offset of 16-byte chunk `chunk` of row `row` in a shared tile whose rows are CHUNKS (4 or a multiple of 8) chunks long.
// The XOR puts one chunk column of any 8 consecutive rows (aligned to 8) on all 8 groups of 4 banks: ldmatrix and 16-byte
// stores run without conflicts, and no padding is spent.
template <int CHUNKS>
__device__ __forceinline__ uint32_t swizzled(uint32_t row, uint32_t chunk) {
    static_assert(CHUNKS == 4 || CHUNKS % 8 == 0, "rows of 64 bytes or of multiples of 128");
    const uint32_t turn = CHUNKS == 4 ? (row >> 1) & 3 : row & 7;
    return (row * CHUNKS + (chunk ^ turn)) * 16;
}
