// Block types of weights: what tape/blocks.py says, decoded to f32 with the same roundings.
//
// Blocks begin at any even address, which is what their widest field needs.
#pragma once

#include <type_traits>

#include "../tape.h"
#include "simd.hpp"

namespace nocopy::NOCOPY_LEVEL {

struct Q8_0 {
    static constexpr int ELEMENTS = 32;
    uint16_t d;
    int8_t qs[32];
};
struct Q4_0 {
    static constexpr int ELEMENTS = 32;
    uint16_t d;
    uint8_t qs[16];
};
struct Q4_K {
    static constexpr int ELEMENTS = 256;
    uint16_t d, dmin;
    uint8_t scales[12];
    uint8_t qs[128];
};
struct Q5_K {
    static constexpr int ELEMENTS = 256;
    uint16_t d, dmin;
    uint8_t scales[12];
    uint8_t qh[32];
    uint8_t qs[128];
};
struct Q6_K {
    static constexpr int ELEMENTS = 256;
    uint8_t ql[128];
    uint8_t qh[64];
    int8_t scales[16];
    uint16_t d;
};
static_assert(sizeof(Q8_0) == 34 && sizeof(Q4_0) == 18 && sizeof(Q4_K) == 144 && sizeof(Q5_K) == 176 &&
              sizeof(Q6_K) == 210);

NOCOPY_INLINE bool is_blocks(uint32_t dtype) {
    return dtype >= NOCOPY_Q8_0;
}

struct BlockShape {
    int64_t elements, bytes;
};
NOCOPY_INLINE BlockShape block_shape(uint32_t dtype) {
    switch (dtype) {
        case NOCOPY_Q8_0:
            return {32, 34};
        case NOCOPY_Q4_0:
            return {32, 18};
        case NOCOPY_Q4_K:
            return {256, 144};
        case NOCOPY_Q5_K:
            return {256, 176};
        default:
            return {256, 210};
    }
}

// Calls f with a typed null pointer, as `with_float` does.
template <class Function>
NOCOPY_INLINE void with_blocks(uint32_t dtype, const Function& f) {
    switch (dtype) {
        case NOCOPY_Q8_0:
            return f(static_cast<Q8_0*>(nullptr));
        case NOCOPY_Q4_0:
            return f(static_cast<Q4_0*>(nullptr));
        case NOCOPY_Q4_K:
            return f(static_cast<Q4_K*>(nullptr));
        case NOCOPY_Q5_K:
            return f(static_cast<Q5_K*>(nullptr));
        default:
            return f(static_cast<Q6_K*>(nullptr));
    }
}

typedef int8_t SignedBytes __attribute__((vector_size(W)));

NOCOPY_INLINE float scale(uint16_t half) {
#if defined(__F16C__)
    return _cvtsh_ss(half);
#else
    Halves h{};
    h[0] = half;
    return from_half(h)[0];
#endif
}
// Compilers widen bytes in several steps; x86 has one instruction for it.
#if defined(__AVX512F__)
NOCOPY_INLINE I bytes(const uint8_t* from) {
    return (I)_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
NOCOPY_INLINE I bytes(const int8_t* from) {
    return (I)_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
#elif defined(__AVX2__)
NOCOPY_INLINE I bytes(const uint8_t* from) {
    return (I)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
}
NOCOPY_INLINE I bytes(const int8_t* from) {
    return (I)_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
}
#else
NOCOPY_INLINE I bytes(const uint8_t* from) {
    return __builtin_convertvector(load_bits<Bytes>(from), I);
}
NOCOPY_INLINE I bytes(const int8_t* from) {
    return __builtin_convertvector(load_bits<SignedBytes>(from), I);
}
#endif
NOCOPY_INLINE F to_float(I x) {
    return __builtin_convertvector(x, F);
}

// The eight 6-bit scales and minima that Q4_K and Q5_K pack into 12 bytes.
struct Affine {
    uint8_t scales[8], minima[8];
};
NOCOPY_INLINE Affine unpack(const uint8_t* packed) {
    Affine a;
    uint32_t low, middle, high;
    __builtin_memcpy(&low, packed, 4);
    __builtin_memcpy(&middle, packed + 4, 4);
    __builtin_memcpy(&high, packed + 8, 4);
    const uint32_t scales[2] = {low & 0x3f3f3f3fu, (high & 0x0f0f0f0fu) | ((low >> 2) & 0x30303030u)};
    const uint32_t minima[2] = {middle & 0x3f3f3f3fu,
                                ((high >> 4) & 0x0f0f0f0fu) | ((middle >> 2) & 0x30303030u)};
    __builtin_memcpy(a.scales, scales, 8);
    __builtin_memcpy(a.minima, minima, 8);
    return a;
}

NOCOPY_INLINE void decode_block(float* out, const Q8_0& b) {
    const float d = scale(b.d);
    for (int i = 0; i < 32; i += W) store(out + i, d * to_float(bytes(b.qs + i)));
}

NOCOPY_INLINE void decode_block(float* out, const Q4_0& b) {
    const float d = scale(b.d);
    for (int i = 0; i < 16; i += W) {
        const I pair = bytes(b.qs + i);
        store(out + i, d * to_float((pair & 15) - 8));
        store(out + 16 + i, d * to_float((pair >> 4) - 8));
    }
}

// Element i of sub-block j of a block, 0 to 15 or 31.
NOCOPY_INLINE I quants(const Q4_K& b, int j, int i) {
    return (bytes(b.qs + 32 * (j / 2) + i) >> (4 * (j % 2))) & 15;
}
NOCOPY_INLINE I quants(const Q5_K& b, int j, int i) {
    const I low = (bytes(b.qs + 32 * (j / 2) + i) >> (4 * (j % 2))) & 15;
    return low | (((bytes(b.qh + i) >> j) & 1) << 4);
}

template <class Block>
NOCOPY_INLINE void decode_affine(float* out, const Block& b) {
    const Affine a = unpack(b.scales);
    const float d = scale(b.d), dmin = scale(b.dmin);
#pragma GCC unroll 8  // so that shifts are by constants
    for (int j = 0; j < 8; j++) {
        const float step = d * (float)a.scales[j], offset = dmin * (float)a.minima[j];
        for (int i = 0; i < 32; i += W)
            store(out + 32 * j + i, rounded(step * to_float(quants(b, j, i))) - rounded(set(offset)));
    }
}
NOCOPY_INLINE void decode_block(float* out, const Q4_K& b) {
    decode_affine(out, b);
}
NOCOPY_INLINE void decode_block(float* out, const Q5_K& b) {
    decode_affine(out, b);
}

NOCOPY_INLINE void decode_block(float* out, const Q6_K& b) {
    const float d = scale(b.d);
    for (int half = 0; half < 2; half++)
#pragma GCC unroll 4  // so that shifts are by constants
        for (int k = 0; k < 4; k++)
#pragma GCC unroll 8
            for (int i = 0; i < 32; i += W) {
                const I low = (bytes(b.ql + 64 * half + 32 * (k % 2) + i) >> (4 * (k / 2))) & 15;
                const I high = (bytes(b.qh + 32 * half + i) >> (2 * k)) & 3;
                const float step = d * (float)b.scales[8 * half + 2 * k + i / 16];
                store(out + 128 * half + 32 * k + i, step * to_float((low | (high << 4)) - 32));
            }
}

template <class Block>
void decode_run(float* out, const uint8_t* from, int64_t n) {
    const Block* blocks = reinterpret_cast<const Block*>(from);
    for (int64_t i = 0; i < n; i += Block::ELEMENTS) decode_block(out + i, *blocks++);
}

// n elements, whole blocks, to f32. Never inlined: the switch would swell every reader of rows.
[[maybe_unused, gnu::noinline]] static void decode(float* out, uint32_t dtype, const uint8_t* from,
                                                   int64_t n) {
    with_blocks(dtype, [&]([[maybe_unused]] auto* type) {
        using Block = std::remove_pointer_t<decltype(type)>;
        decode_run<Block>(out, from, n);
    });
}

}  // namespace nocopy::NOCOPY_LEVEL
