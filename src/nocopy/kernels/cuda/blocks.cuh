// Block types: runs of elements that share scales, in GGUF's layouts (tape/blocks.py spells them out),
// decoded with the roundings of the reference. Blocks begin at even addresses and no rounder ones.
//
// block_element decodes one element, wherever it lies. The structs below decode for a matrix-vector product:
// LANES neighbouring threads share a block of ELEMENTS elements and BYTES bytes; each has QUADS runs of four
// consecutive elements, from start(lane) on, GAP apart. `fetch` is the loads, `decode` the arithmetic, so
// that many fetches can be in flight. They read blocks in global or shared memory. 16-byte words of plain
// floats have the same shape.
#pragma once

#include "record.cuh"

template <typename T>
__device__ inline T read_as(const uint8_t* at) {
    return *(const T*)at;
}

__device__ inline float half_at(const uint8_t* at) {
    return f16_to_f32(read_as<uint16_t>(at));
}

// Four bytes at an even address.
__device__ inline uint32_t word_at(const uint8_t* at) {
    return read_as<uint16_t>(at) | (uint32_t)read_as<uint16_t>(at + 2) << 16;
}

__device__ inline uint32_t byte_of(uint32_t word, int i) {
    return word >> (8 * i) & 255;
}

__device__ inline uint32_t block_elements(uint32_t dtype) {
    return dtype == NOCOPY_Q8_0 || dtype == NOCOPY_Q4_0 ? 32 : 256;
}

__device__ inline uint32_t block_bytes(uint32_t dtype) {
    switch (dtype) {
        case NOCOPY_Q8_0:
            return 34;
        case NOCOPY_Q4_0:
            return 18;
        case NOCOPY_Q4_K:
            return 144;
        case NOCOPY_Q5_K:
            return 176;
        default:
            return 210;
    }
}

__device__ inline bool is_blocks(uint32_t dtype) {
    return dtype >= NOCOPY_Q8_0;
}

// The block that an element of a block-typed operand is the first of, or lies in.
__device__ inline const uint8_t* block_at(const Tensor& t, uint64_t element) {
    return t.as<uint8_t>() + element / block_elements(t.dtype) * block_bytes(t.dtype);
}

// Scale and minimum of run j (of 32 elements) of a Q4_K or Q5_K block: 6 bits each, packed into 12 bytes.
struct Affine {
    float scale, minimum;

    __device__ Affine() {}

    __device__ Affine(const uint8_t* block, uint32_t j) {
        const uint8_t* packed = block + 4;
        uint32_t s, m;
        if (j < 4) {
            s = packed[j] & 63;
            m = packed[j + 4] & 63;
        } else {
            s = (packed[j + 4] & 15) | packed[j - 4] >> 6 << 4;
            m = packed[j + 4] >> 4 | packed[j] >> 6 << 4;
        }
        scale = half_at(block) * (float)s;
        minimum = half_at(block + 2) * (float)m;
    }

    __device__ float operator()(uint32_t quant) const { return scale * (float)quant - minimum; }
};

// Element i of a block.
__device__ inline float block_element(uint32_t dtype, const uint8_t* block, uint32_t i) {
    uint32_t run = i / 32, j = i % 32;
    switch (dtype) {
        case NOCOPY_Q8_0:
            return half_at(block) * (float)(int8_t)block[2 + i];
        case NOCOPY_Q4_0:
            return half_at(block) * (float)((int32_t)(block[2 + i % 16] >> i / 16 * 4 & 15) - 8);
        case NOCOPY_Q4_K:
            return Affine(block, run)(block[16 + run / 2 * 32 + j] >> run % 2 * 4 & 15);
        case NOCOPY_Q5_K:
            return Affine(block, run)((block[48 + run / 2 * 32 + j] >> run % 2 * 4 & 15) |
                                      (block[16 + j] >> run & 1) << 4);
        default: {
            uint32_t half = run / 4, k = run % 4;
            uint32_t low = block[64 * half + k % 2 * 32 + j] >> k / 2 * 4 & 15;
            uint32_t high = block[128 + 32 * half + j] >> 2 * k & 3;
            float scale = half_at(block + 208) * (float)(int8_t)block[192 + i / 16];
            return scale * (float)((int32_t)(low | high << 4) - 32);
        }
    }
}

// The same for an operand.
__device__ inline float load_block_element(const Tensor& t, uint64_t element) {
    return block_element(t.dtype, block_at(t, element), (uint32_t)(element % block_elements(t.dtype)));
}

struct Q8_0 {
    static constexpr int ELEMENTS = 32, BYTES = 34, LANES = 8, QUADS = 1, GAP = 0;
    struct Raw {
        uint32_t quants;
        uint16_t scale;
    };
    static __device__ uint32_t start(uint32_t lane) { return 4 * lane; }
    static __device__ Raw fetch(const uint8_t* block, uint32_t lane) {
        return {word_at(block + 2 + 4 * lane), read_as<uint16_t>(block)};
    }
    static __device__ void decode(const Raw& raw, float (&y)[4]) {
        float scale = f16_to_f32(raw.scale);
#pragma unroll
        for (int i = 0; i < 4; ++i) y[i] = scale * (float)(int8_t)byte_of(raw.quants, i);
    }
};

struct Q4_0 {
    static constexpr int ELEMENTS = 32, BYTES = 18, LANES = 4, QUADS = 2, GAP = 16;
    using Raw = Q8_0::Raw;
    static __device__ uint32_t start(uint32_t lane) { return 4 * lane; }
    static __device__ Raw fetch(const uint8_t* block, uint32_t lane) {
        return {word_at(block + 2 + 4 * lane), read_as<uint16_t>(block)};
    }
    static __device__ void decode(const Raw& raw, float (&y)[8]) {
        float scale = f16_to_f32(raw.scale);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            uint32_t both = byte_of(raw.quants, i);
            y[i] = scale * (float)((int32_t)(both & 15) - 8);
            y[4 + i] = scale * (float)((int32_t)(both >> 4) - 8);
        }
    }
};

struct Q4_K {
    static constexpr int ELEMENTS = 256, BYTES = 144, LANES = 32, QUADS = 2, GAP = 32;
    struct Raw {
        uint32_t quants;
        Affine low, high;
    };
    static __device__ uint32_t start(uint32_t lane) { return lane / 8 * 64 + lane % 8 * 4; }
    static __device__ Raw fetch(const uint8_t* block, uint32_t lane) {
        uint32_t run = lane / 8 * 2;
        return {word_at(block + 16 + 4 * lane), Affine(block, run), Affine(block, run + 1)};
    }
    static __device__ void decode(const Raw& raw, float (&y)[8]) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            uint32_t both = byte_of(raw.quants, i);
            y[i] = raw.low(both & 15);
            y[4 + i] = raw.high(both >> 4);
        }
    }
};

struct Q5_K {
    static constexpr int ELEMENTS = 256, BYTES = 176, LANES = 32, QUADS = 2, GAP = 32;
    struct Raw {
        uint32_t quants,
            fifth;  // the fifth bits of runs `run` and `run + 1` lie in bits 0 and 1 of each byte
        Affine low, high;
    };
    static __device__ uint32_t start(uint32_t lane) { return Q4_K::start(lane); }
    static __device__ Raw fetch(const uint8_t* block, uint32_t lane) {
        uint32_t run = lane / 8 * 2;
        return {word_at(block + 48 + 4 * lane), word_at(block + 16 + lane % 8 * 4) >> run, Affine(block, run),
                Affine(block, run + 1)};
    }
    static __device__ void decode(const Raw& raw, float (&y)[8]) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            uint32_t both = byte_of(raw.quants, i), fifth = byte_of(raw.fifth, i);
            y[i] = raw.low((both & 15) | (fifth & 1) << 4);
            y[4 + i] = raw.high(both >> 4 | (fifth >> 1 & 1) << 4);
        }
    }
};

struct Q6_K {
    static constexpr int ELEMENTS = 256, BYTES = 210, LANES = 16, QUADS = 4, GAP = 32;
    struct Raw {
        uint32_t first, second, high;
        int8_t scales[4];
        uint16_t scale;
    };
    static __device__ uint32_t start(uint32_t lane) { return lane / 8 * 128 + lane % 8 * 4; }
    static __device__ Raw fetch(const uint8_t* block, uint32_t lane) {
        uint32_t half = lane / 8, i = lane % 8 * 4;
        const uint8_t* low = block + 64 * half + i;
        Raw raw = {word_at(low), word_at(low + 32), word_at(block + 128 + 32 * half + i), {}, 0};
#pragma unroll
        for (int k = 0; k < 4; ++k) raw.scales[k] = (int8_t)block[192 + 8 * half + 2 * k + i / 16];
        raw.scale = read_as<uint16_t>(block + 208);
        return raw;
    }
    static __device__ void decode(const Raw& raw, float (&y)[16]) {
        float scale = f16_to_f32(raw.scale);
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            uint32_t low = (k % 2 ? raw.second : raw.first) >> k / 2 * 4, high = raw.high >> 2 * k;
            float own = scale * (float)raw.scales[k];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                uint32_t quant = (byte_of(low, i) & 15) | (byte_of(high, i) & 3) << 4;
                y[4 * k + i] = own * (float)((int32_t)quant - 32);
            }
        }
    }
};

template <int COUNT>
struct alignas(4 * COUNT) Words {
    uint32_t v[COUNT];
};

struct F32Words {
    static constexpr int ELEMENTS = 4, BYTES = 16, LANES = 1, QUADS = 1, GAP = 0;
    using Raw = Words<4>;
    static __device__ uint32_t start(uint32_t) { return 0; }
    static __device__ Raw fetch(const uint8_t* at, uint32_t) { return read_as<Raw>(at); }
    static __device__ void decode(const Raw& raw, float (&y)[4]) {
#pragma unroll
        for (int i = 0; i < 4; ++i) y[i] = __uint_as_float(raw.v[i]);
    }
};

template <bool BF16>
struct HalfWords {
    static constexpr int ELEMENTS = 8, BYTES = 16, LANES = 1, QUADS = 2, GAP = 4;
    using Raw = Words<4>;
    static __device__ uint32_t start(uint32_t) { return 0; }
    static __device__ Raw fetch(const uint8_t* at, uint32_t) { return read_as<Raw>(at); }
    static __device__ void decode(const Raw& raw, float (&y)[8]) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            uint32_t pair = raw.v[i];
            y[2 * i] = BF16 ? __uint_as_float(pair << 16) : f16_to_f32((uint16_t)pair);
            y[2 * i + 1] = BF16 ? __uint_as_float(pair & 0xffff0000) : f16_to_f32((uint16_t)(pair >> 16));
        }
    }
};

using F16Words = HalfWords<false>;
using Bf16Words = HalfWords<true>;
