// One 64-bit key for a value and its index, so that keys differ and the larger key comes first.
#pragma once

#include "record.cuh"

// Falls with rank: larger values first, then lower indices. -0 equals 0; NaN is -infinity.
__device__ inline uint64_t rank_key(float value, uint64_t index) {
    uint32_t bits = __float_as_uint(value);
    if (value == 0.0f) bits = 0;
    if (value != value) bits = 0xff800000;
    bits = bits & 0x80000000 ? ~bits : bits | 0x80000000;
    return (uint64_t)bits << 32 | (uint32_t)~(uint32_t)index;
}

__device__ inline uint32_t index_of(uint64_t key) {
    return ~(uint32_t)key;
}

struct Larger {
    __device__ uint64_t operator()(uint64_t a, uint64_t b) const { return a > b ? a : b; }
};
