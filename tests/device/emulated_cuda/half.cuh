// Stands in for kernels/cuda/half.cuh where there is no GPU: the same four conversions in C++.
#pragma once

#include <string.h>

inline float f16_to_f32(uint16_t bits) {
    _Float16 half;
    memcpy(&half, &bits, 2);
    return (float)half;
}

inline uint16_t f32_to_f16(float value) {
    _Float16 half = (_Float16)value;
    uint16_t bits;
    memcpy(&bits, &half, 2);
    return bits;
}

inline float bf16_to_f32(uint16_t bits) {
    return __uint_as_float((uint32_t)bits << 16);
}

inline uint16_t f32_to_bf16(float value) {
    if (value != value) return 0x7fff;
    uint32_t bits = __float_as_uint(value);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
