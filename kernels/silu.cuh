// silu(g) = g / (1 + e^−g), not yet rounded.
#pragma once

#include "common.cuh"

// f32 divides exactly. A 16-bit result has 13 bits to spare over the reciprocal's last place. That one may be
// subnormal: below g = −87 the quotient still is a normal bf16.
template <typename T>
__device__ __forceinline__ float silu(float g) {
    const float divisor = 1.0f + expf(-g);
    if constexpr (sizeof(T) == 4) {
        return g / divisor;
    } else {
        return g * reciprocal(divisor);
    }
}
