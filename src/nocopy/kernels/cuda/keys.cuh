// The order of elements in argmax, topk and sample: larger first, then lower index; NaN counts as -infinity,
// -0 equals 0. One 64-bit key an element: the value above, the inverted index below, so that keys differ and
// the larger key comes first.
#pragma once

#include "record.cuh"

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

__device__ inline float score_of(uint64_t key) {
    uint32_t bits = (uint32_t)(key >> 32);
    return __uint_as_float(bits & 0x80000000 ? bits & 0x7fffffff : ~bits);
}

struct Larger {
    __device__ uint64_t operator()(uint64_t a, uint64_t b) const { return a > b ? a : b; }
};
