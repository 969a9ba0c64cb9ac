// Weights in blocks, as a warp of walk.cu multiplies them: whole numbers by whole numbers, as matrices.
//
// A unit of 128 elements is four runs of 32. Of a tile of sixteen rows one run is a matrix, whose numbers are
// what the type packs, and of which four lanes have a row's eight quads: lane q of them quads q and q + 4.
// The elements that it is multiplied with are whole numbers of 16 bits with a scale for each run, an upper
// and a lower byte of each, which are two columns of the other matrix; of its eight columns each run has two,
// so that four runs come to one matrix of sums (walk_product.cuh).
#pragma once

#include "mma.cuh"

#if __CUDA_ARCH__ >= 900

constexpr uint32_t RUNS = 4;  // of a unit

// How the numbers of a run become elements.
enum class Scales {
    ONE,     // scale * number
    TWO,     // the run's upper half has a scale of its own
    AFFINE,  // scale * number - other
};

struct RunScale {
    float scale, other = 0.0f;
};

// A row's quads q and q + 4 of each run: numbers with a sign, WORTH times which are meant.
using RunQuads = Words<2>[RUNS];

// The word at an address that is 2 beyond a multiple of four.
__device__ __forceinline__ uint32_t word_across(const uint8_t* at) {
    return read_as<uint32_t>(at - 2) >> 16 | read_as<uint32_t>(at + 2) << 16;
}

// Numbers of four bits, with 8 for none, in the upper half of each byte, which the mask has.
__device__ inline uint32_t upper_halves(uint32_t word, uint32_t mask) {
    return (word & mask) ^ 0x80808080;
}

// Types whose blocks are one run. Rows and units begin at multiples of four.
template <uint32_t SHORT>
struct ShortBlocks {
    static constexpr uint32_t UNITS = 1, BYTES = RUNS * SHORT;
    static constexpr Scales SCALES = Scales::ONE;
    static __device__ __forceinline__ RunScale scale(const uint8_t* unit, uint32_t run) {
        return {half_at(unit + run * SHORT)};
    }
};

struct MatrixQ8_0 : ShortBlocks<34> {
    static constexpr float WORTH = 1.0f;
    static __device__ __forceinline__ void read(const uint8_t* unit, uint32_t q, RunQuads& y, uint32_t) {
#pragma unroll
        for (uint32_t r = 0; r < RUNS; ++r) {
            const uint8_t* at = unit + 34 * r + 2 + 4 * q;
            if (r % 2)
                y[r] = {{read_as<uint32_t>(at), read_as<uint32_t>(at + 16)}};
            else
                y[r] = {{word_across(at), word_across(at + 16)}};
        }
    }
};

struct MatrixQ4_0 : ShortBlocks<18> {
    static constexpr float WORTH = 1.0f / 16;
    static __device__ __forceinline__ void read(const uint8_t* unit, uint32_t q, RunQuads& y, uint32_t mask) {
#pragma unroll
        for (uint32_t r = 0; r < RUNS; ++r) {
            const uint8_t* at = unit + 18 * r + 2 + 4 * q;
            const uint32_t both = r % 2 ? read_as<uint32_t>(at) : word_across(at);
            y[r] = {{upper_halves(both << 4, mask), upper_halves(both, mask)}};
        }
    }
};

// Of a block of two units, which one this warp has: all are of one parity.
__device__ __forceinline__ uint32_t own_half() {
    return threadIdx.x / 32 % 2;
}

// Q4_K and Q5_K: the block's first 16 bytes are halves that the six bits of each run's scale and minimum
// count in, and those bits (`Affine`, blocks.cuh).
struct AffineBlocks {
    static constexpr uint32_t UNITS = 2;
    static constexpr Scales SCALES = Scales::AFFINE;
    static constexpr float WORTH = 1.0f;
    static __device__ __forceinline__ RunScale scale(const uint8_t* block, uint32_t run) {
        const Words4 head = read_as<Words4>(block);
        const uint32_t a = head.v[1] >> 8 * run, b = head.v[2] >> 8 * run, c = head.v[3] >> 8 * run;
        const uint32_t scale = own_half() ? (c & 15) | (a >> 2 & 48) : a & 63;
        const uint32_t minimum = own_half() ? (c >> 4 & 15) | (b >> 2 & 48) : b & 63;
        return {f16_to_f32((uint16_t)head.v[0]) * (float)scale,
                f16_to_f32((uint16_t)(head.v[0] >> 16)) * (float)minimum};
    }
    // Of pairs of runs, of which the second has the upper halves of bytes.
    static __device__ __forceinline__ void read_halves(const uint8_t* pairs, uint32_t q, RunQuads& y) {
#pragma unroll
        for (uint32_t r = 0; r < RUNS; r += 2)
#pragma unroll
            for (uint32_t i = 0; i < 2; ++i) {
                const uint32_t both = read_as<uint32_t>(pairs + 16 * r + 16 * i + 4 * q);
                y[r].v[i] = both & 0x0f0f0f0f, y[r + 1].v[i] = both >> 4 & 0x0f0f0f0f;
            }
    }
};

struct MatrixQ4_K : AffineBlocks {
    static constexpr uint32_t BYTES = 144;
    static __device__ __forceinline__ void read(const uint8_t* block, uint32_t q, RunQuads& y, uint32_t) {
        read_halves(block + 16 + 64 * own_half(), q, y);
    }
};

// The same with a fifth bit for each number.
struct MatrixQ5_K : AffineBlocks {
    static constexpr uint32_t BYTES = 176;
    static __device__ __forceinline__ void read(const uint8_t* block, uint32_t q, RunQuads& y, uint32_t) {
        read_halves(block + 48 + 64 * own_half(), q, y);
#pragma unroll
        for (uint32_t i = 0; i < 2; ++i) {
            const uint32_t fifth = read_as<uint32_t>(block + 16 + 16 * i + 4 * q) >> 4 * own_half();
#pragma unroll
            for (uint32_t r = 0; r < RUNS; ++r) y[r].v[i] |= (fifth >> r & 0x01010101) << 4;
        }
    }
};

struct MatrixQ6_K {
    static constexpr uint32_t UNITS = 2, BYTES = 210;
    static constexpr Scales SCALES = Scales::TWO;
    static constexpr float WORTH = 1.0f / 4;
    static __device__ __forceinline__ RunScale scale(const uint8_t* block, uint32_t run) {
        const float scale = half_at(block + 208);
        const uint32_t both = read_as<uint16_t>(block + 192 + 8 * own_half() + 2 * run);
        return {scale * (float)(int8_t)both, scale * (float)(int8_t)(both >> 8)};
    }
    static __device__ __forceinline__ void read(const uint8_t* block, uint32_t q, RunQuads& y, uint32_t) {
        const uint8_t *low = block + 64 * own_half() + 4 * q, *high = block + 128 + 32 * own_half() + 4 * q;
#pragma unroll
        for (uint32_t i = 0; i < 2; ++i) {
            const uint32_t two = word_at(high + 16 * i);
#pragma unroll
            for (uint32_t r = 0; r < RUNS / 2; ++r) {
                const uint32_t both = word_at(low + 32 * r + 16 * i);
                // 32 stands for none.
                y[r].v[i] = ((both << 2 & 0x3c3c3c3c) | (two << 6 - 2 * r & 0xc0c0c0c0)) ^ 0x80808080;
                y[r + 2].v[i] = ((both >> 2 & 0x3c3c3c3c) | (two << 2 - 2 * r & 0xc0c0c0c0)) ^ 0x80808080;
            }
        }
    }
};

#endif
